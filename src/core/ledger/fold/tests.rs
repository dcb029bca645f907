//! Rules of the fold, each said as an example.

use super::*;
use crate::core::ledger::codec::READABLE_MAX;

const AT: RoutePartition = RoutePartition {
    route: RouteId(5),
    partition: 1,
};
const ME: LifeId = LifeId(1);

fn id(n: u8) -> MessageId {
    MessageId([n; 16])
}

struct Lane {
    state: LaneState,
    ops: Vec<StoreOp>,
}

impl Lane {
    fn new() -> Self {
        let mut lane = Lane {
            state: LaneState::default(),
            ops: Vec::new(),
        };
        let genesis = Genesis {
            ledger: 7,
            group: "embedded".into(),
            lanes: 1,
            lane: 0,
            recipe: 1,
        };
        lane.say(Body::Genesis(genesis));
        lane
    }
    /// Says something at the lane's end; returns where it stands.
    fn say(&mut self, body: Body) -> Offset {
        let at = self.state.next;
        self.state
            .apply(
                at,
                &Entry {
                    tenure: Tenure(0),
                    body,
                },
                &mut self.ops,
            )
            .unwrap();
        at
    }
    fn intent(&mut self, n: u8, attempt: u32, life: LifeId) -> Offset {
        self.say(Body::Intent(Intent {
            at: AT,
            id: id(n),
            key: KeyHash(9),
            offset: n.into(),
            round: 1,
            attempt,
            first_try: Time(1_000),
            slot: Time(1_000 + u64::from(attempt)),
            budgets: [BudgetDraw { budget: 3, by: 0 }].into_iter().collect(),
            life,
            lease_ms: 5_000,
            timeout_ms: 10_000,
        }))
    }
    fn outcome(&mut self, n: u8, round: u32, attempts: u32, kind: OutcomeKind) -> Offset {
        let when = Time(5_000);
        let (at, id, offset, life, status) = (AT, id(n), n.into(), ME, 422);
        self.say(Body::Outcome(Outcome {
            at,
            id,
            offset,
            round,
            attempts,
            when,
            life,
            status,
            kind,
        }))
    }
    fn opened(&mut self, n: u8, round: u32) -> Offset {
        let (at, id, when) = (AT, id(n), Time(6_000));
        self.say(Body::Opened(Opened {
            at,
            id,
            round,
            when,
            idempotency_key: String::new(),
        }))
    }
    fn command(&mut self, action: Action) -> Offset {
        let offset = self.state.next;
        self.say(Body::from(Command {
            offset,
            when: Time(7_000),
            who: String::new(),
            why: String::new(),
            action,
        }))
    }
    fn part(&self) -> &PartitionState {
        &self.state.partitions[&AT]
    }
    fn message(&self, n: u8) -> Option<Message> {
        self.part().messages.get(&id(n))
    }
    fn last_op(&self) -> Option<FinishedState> {
        match self.ops.last() {
            Some(StoreOp::Finished(f)) => Some(f.state),
            _ => None,
        }
    }
}

fn delivered() -> OutcomeKind {
    OutcomeKind::Delivered {
        readable: Bytes::from_static(b"order-1"),
    }
}
fn kept(value: &'static str) -> Box<Kept> {
    Box::new(Kept {
        key: KeyHash(9),
        value: Bytes::from_static(value.as_bytes()),
        ..Kept::default()
    })
}
fn later() -> OutcomeKind {
    OutcomeKind::Later {
        not_before: Time(9_000),
        first_try: Time(1_000),
        key: KeyHash(9),
        reason: String::new(),
        counted: true,
    }
}

/// A missed slot, or a partner that refuses all credentials: the attempt ended, and counts after a restart no more than before.
#[test]
fn an_attempt_that_does_not_count_is_not_counted() {
    let mut lane = Lane::new();
    let uncounted = || match later() {
        OutcomeKind::Later {
            not_before,
            first_try,
            key,
            reason,
            ..
        } => OutcomeKind::Later {
            not_before,
            first_try,
            key,
            reason,
            counted: false,
        },
        other => other,
    };
    for _ in 0..3 {
        lane.intent(0, 1, ME);
        lane.outcome(0, 1, 1, uncounted());
        assert_eq!(lane.state.open_intents().count(), 0);
        assert_eq!(lane.message(0).unwrap().attempts, 0);
    }
    lane.intent(0, 1, ME);
    lane.outcome(0, 1, 1, later());
    assert_eq!(lane.message(0).unwrap().attempts, 1);
    lane.intent(0, 2, ME);
    // Said again of the one before: it is on the wire still.
    lane.outcome(0, 1, 1, uncounted());
    assert_eq!(lane.state.open_intents().count(), 1);
    lane.outcome(0, 1, 2, uncounted());
    assert_eq!(lane.message(0).unwrap().attempts, 1);
}

#[test]
fn a_delivery_is_remembered_and_moves_the_position() {
    let mut lane = Lane::new();
    for n in [0, 1] {
        lane.intent(n, 1, ME);
    }
    lane.outcome(1, 1, 1, delivered());
    assert_eq!(
        (
            lane.part().position,
            lane.part().finished.len(),
            lane.part().high_water
        ),
        (0, 1, 2)
    );
    lane.outcome(0, 1, 1, delivered());
    lane.outcome(0, 1, 1, delivered());
    assert_eq!((lane.part().position, lane.part().finished.len()), (2, 0));
    assert_eq!(lane.part().counts.delivered, 2);
    assert!(lane.part().messages.is_empty());
}

#[test]
fn a_definite_not_taken_closes_the_intent_and_keeps_attempts_and_age() {
    let mut lane = Lane::new();
    lane.intent(0, 1, ME);
    lane.outcome(0, 1, 1, later());
    assert_eq!(lane.state.open_intents().count(), 0);
    let m = lane.message(0).unwrap();
    assert_eq!(
        (m.attempts, m.first_try, &m.state),
        (
            1,
            Time(1_000),
            &MessageState::Later {
                not_before: Time(9_000)
            }
        )
    );
    assert_eq!(lane.part().position, 0);
    lane.intent(0, 2, ME);
    // The first attempt's verdict, said again: the second is still on the wire.
    lane.outcome(0, 1, 1, later());
    assert_eq!(lane.state.open_intents().count(), 1);
    assert_eq!(
        lane.state
            .used
            .get(&BudgetDraw { budget: 3, by: 0 })
            .unwrap()
            .since(Time::ZERO),
        2
    );
}

#[test]
fn doubts_are_the_open_intents_of_other_lives() {
    let mut lane = Lane::new();
    lane.intent(0, 1, ME);
    lane.intent(1, 1, LifeId(2));
    let doubts: Vec<_> = lane.state.doubts(ME).map(|(_, id, _)| id).collect();
    assert_eq!(doubts, [id(1)]);
}

#[test]
fn a_slot_taken_anew_counts_twice() {
    let mut lane = Lane::new();
    lane.intent(0, 1, ME);
    lane.intent(0, 1, ME);
    assert_eq!(
        lane.state
            .used
            .get(&BudgetDraw { budget: 3, by: 0 })
            .unwrap()
            .since(Time::ZERO),
        2
    );
    assert_eq!(lane.state.open_intents().count(), 1);
}

#[test]
fn a_second_replay_of_the_same_round_is_stale() {
    let mut lane = Lane::new();
    let dead = lane.outcome(0, 1, 1, OutcomeKind::Dead(kept("payload")));
    lane.opened(0, 3);
    assert_eq!(lane.message(0).unwrap().round, 1, "not the next round");
    lane.opened(0, 2);
    let opened = lane.message(0).unwrap();
    assert_eq!(
        (opened.round, opened.attempts, opened.payload),
        (2, 0, Some((dead, 7)))
    );
    assert_eq!(
        opened.state,
        MessageState::Later {
            not_before: Time::ZERO
        }
    );
    lane.opened(0, 2);
    assert_eq!(lane.message(0), Some(opened));
    lane.outcome(0, 1, 3, delivered());
    assert_eq!(lane.message(0), Some(opened), "an older round");
    lane.outcome(0, 2, 1, delivered());
    assert_eq!(
        (lane.message(0), lane.last_op()),
        (None, Some(FinishedState::Delivered))
    );
    assert_eq!(lane.part().next_round(&id(0)), 3);
    assert_eq!((lane.part().counts.dead, lane.part().counts.delivered), (1, 1));
}

#[test]
fn waiting_finishes_the_record_but_not_the_message() {
    let mut lane = Lane::new();
    lane.intent(0, 1, ME);
    lane.outcome(0, 1, 1, later());
    let at = lane.say(Body::Waiting(Waiting {
        at: AT,
        id: id(0),
        offset: 0,
        round: 1,
        attempts: 1,
        when: Time(8_000),
        not_before: Time(99_000),
        kept: kept("payload"),
    }));
    assert_eq!(
        (lane.part().position, lane.last_op()),
        (1, Some(FinishedState::Waiting))
    );
    let m = lane.message(0).unwrap();
    assert_eq!(
        (&m.state, m.payload),
        (
            &MessageState::Later {
                not_before: Time(99_000)
            },
            Some((at, 7))
        )
    );
    lane.intent(0, 2, ME);
    assert_eq!(lane.message(0).unwrap().payload, Some((at, 7)));
    lane.outcome(0, 1, 2, delivered());
    assert_eq!((lane.message(0), lane.part().counts.delivered), (None, 1));
}

/// A route that is forgotten and comes back begins at the first record that is left: what it had not delivered goes then.
#[test]
fn of_a_forgotten_route_what_waited_is_not_known_as_finished() {
    let mut lane = Lane::new();
    let waiting = |n: u8| {
        Body::Waiting(Waiting {
            at: AT,
            id: id(n),
            offset: n.into(),
            round: 1,
            attempts: 0,
            when: Time(1),
            not_before: Time(2),
            kept: kept("a"),
        })
    };
    lane.outcome(0, 1, 1, delivered());
    lane.outcome(1, 1, 1, OutcomeKind::Dead(kept("a")));
    lane.outcome(2, 1, 1, OutcomeKind::Parked(kept("a")));
    lane.say(waiting(3));
    lane.outcome(4, 1, 1, OutcomeKind::Dead(kept("a")));
    lane.opened(4, 2);
    // In doubt: whether it was taken nobody knows.
    lane.say(waiting(5));
    lane.intent(5, 1, ME);
    lane.intent(6, 1, ME);
    // Tried, not taken, and only the topic has it: of this one the store knew nothing.
    lane.intent(7, 1, ME);
    lane.outcome(7, 1, 1, later());
    lane.ops.clear();
    lane.command(Action::ForgetRoute { route: AT.route });
    let ended = |op: &StoreOp| match op {
        StoreOp::Finished(f) => (f.id, Some(f.state)),
        StoreOp::Forget { id, .. } => (*id, None),
    };
    let mut left: Vec<_> = lane.ops.iter().map(ended).collect();
    left.sort_unstable();
    let doubt = Some(FinishedState::Parked);
    assert_eq!(left, [(id(3), None), (id(5), doubt), (id(6), doubt)]);
    assert!(lane.state.partitions.is_empty());
}

#[test]
fn a_forgotten_message_goes_on_in_a_higher_round() {
    let mut lane = Lane::new();
    lane.intent(0, 1, ME);
    lane.command(Action::Forget { at: AT, id: id(0) });
    assert!(
        lane.ops.is_empty() && lane.message(0).is_some(),
        "a forget waits for the verdict"
    );
    lane.outcome(0, 1, 1, delivered());
    lane.command(Action::Forget { at: AT, id: id(0) });
    assert_eq!(lane.ops.last(), Some(&StoreOp::Forget { at: AT, id: id(0) }));
    assert_eq!(
        (lane.part().next_round(&id(0)), lane.part().next_round(&id(1))),
        (2, 1)
    );
}

#[test]
fn marking_settles_a_parked_message_and_an_unknown_one_moves_nothing() {
    let mut lane = Lane::new();
    lane.outcome(3, 1, 1, OutcomeKind::Parked(kept("x")));
    lane.command(Action::Mark {
        at: AT,
        id: id(3),
        offset: 3,
    });
    assert_eq!(
        (lane.message(3), lane.last_op()),
        (None, Some(FinishedState::Marked))
    );
    lane.command(Action::Mark {
        at: AT,
        id: id(0),
        offset: 0,
    });
    assert_eq!(lane.part().position, 0, "the record itself was not read yet");
    assert_eq!(lane.part().counts.marked, 2);
}

#[test]
fn a_dropped_payload_is_gone_and_the_id_remembered() {
    let mut lane = Lane::new();
    lane.outcome(0, 1, 1, OutcomeKind::Dead(kept("x")));
    let remembered = lane.ops.len();
    assert_eq!((lane.state.totals().kept, lane.state.payload_bytes()), (1, 1));
    lane.command(Action::Drop { at: AT, id: id(0) });
    assert_eq!((lane.state.totals().kept, lane.ops.len()), (0, remembered));
    lane.opened(0, 2);
    assert_eq!(lane.message(0), None);
}

#[test]
fn payloads_that_are_kept_are_listed() {
    let mut lane = Lane::new();
    for n in [4, 2, 3] {
        lane.outcome(n, 1, 1, OutcomeKind::Dead(kept("x")));
    }
    let listed = |lane: &Lane| {
        let mut held = crate::core::ledger::retention::payloads(&lane.state, None, 100);
        held.sort_by_key(|p| p.ledger);
        held.iter()
            .map(|p| (p.id, p.bytes, p.dropped))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        listed(&lane),
        [(id(4), 1, false), (id(2), 1, false), (id(3), 1, false)]
    );
}

#[test]
fn the_genesis_is_first_and_alone() {
    let mut state = LaneState::default();
    let applied = Entry {
        tenure: Tenure(0),
        body: Body::Applied { version: 3 },
    };
    assert!(matches!(
        state.apply(0, &applied, &mut Vec::new()),
        Err(FoldError::Genesis { at: 0, .. })
    ));
    assert_eq!(state, LaneState::default());
    let mut lane = Lane::new();
    let genesis = Entry {
        tenure: Tenure(0),
        body: Body::Genesis(lane.state.genesis.clone().unwrap()),
    };
    assert!(matches!(
        lane.state.apply(1, &genesis, &mut Vec::new()),
        Err(FoldError::Genesis { at: 1, .. })
    ));
    assert_eq!(
        lane.state.apply(0, &applied, &mut Vec::new()),
        Err(FoldError::Order { at: 0, next: 1 })
    );
    // A trimmed lane begins later, with a carried one.
    let mut trimmed = LaneState::default();
    trimmed.apply(9, &applied, &mut Vec::new()).unwrap();
    let carried = Entry {
        tenure: Tenure(0),
        body: genesis.carry(0),
    };
    trimmed.apply(10, &carried, &mut Vec::new()).unwrap();
    assert_eq!(trimmed.genesis, lane.state.genesis);
}

#[test]
fn an_owner_begins_a_tenure_and_takes_back_its_release() {
    let mut lane = Lane::new();
    lane.say(Body::Released(vec![LifeId(4), ME]));
    let owner = Owner {
        node: "n".into(),
        life: ME,
        lease_ms: 1,
        timeout_ms: 1,
        at: Time(1),
    };
    let at = lane.say(Body::Owner(owner));
    assert_eq!(
        (lane.state.tenure, &lane.state.released[..]),
        (Tenure(at), &[LifeId(4)][..])
    );
}

#[test]
fn what_is_kept_beside_messages_is_bounded() {
    let mut lane = Lane::new();
    for n in 0..3_000u64 {
        lane.say(Body::Sample(Sample {
            at: AT,
            when: Time(n),
            end: n,
        }));
        lane.say(Body::Released(vec![LifeId(n)]));
    }
    assert!(lane.part().samples.len() <= SAMPLES_MAX);
    let last = lane.part().samples.last().unwrap();
    assert_eq!((last.when, last.end), (Time(2_999), 2_999));
    assert_eq!(lane.state.released.len(), RELEASED_MAX);
    // As well mixed as real IDs are.
    let id = |n: u64| {
        MessageId((u128::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)).to_be_bytes())
    };
    for n in 0..=ROUNDS_MAX as u64 {
        lane.command(Action::Forget { at: AT, id: id(n) });
    }
    let rounds = &lane.part().rounds;
    assert!(rounds.len() <= ROUNDS_MAX / 2 + 1);
    assert!(rounds.contains_key(&id(ROUNDS_MAX as u64)));
}

/// Rounds that were pushed out, or that went with a forgotten route, make nothing be sent again: what the ledger keeps has its round with
/// itself, and what it does not keep is begun anew only by a record that nobody remembers, which begins it once. What is lost is that
/// the new round has another Idempotency-Key than an earlier one.
#[test]
fn lost_rounds_reopen_nothing() {
    let mixed = |n: u64| {
        MessageId((u128::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)).to_be_bytes())
    };
    for forgotten_route in [false, true] {
        let mut lane = Lane::new();
        // Kept in its second round, over in its second round, and forgotten in its second round.
        for n in [1, 2, 3] {
            lane.outcome(n, 1, 1, OutcomeKind::Dead(kept("a")));
            lane.opened(n, 2);
        }
        lane.outcome(1, 2, 1, OutcomeKind::Dead(kept("a")));
        lane.outcome(2, 2, 1, delivered());
        lane.outcome(3, 2, 1, delivered());
        lane.command(Action::Forget { at: AT, id: id(3) });
        assert_eq!(
            (lane.part().next_round(&id(2)), lane.part().next_round(&id(3))),
            (3, 3)
        );
        if forgotten_route {
            lane.command(Action::ForgetRoute { route: AT.route });
            let before = lane.state.clone();
            // A replay made up before comes too late.
            for round in 2..5 {
                lane.opened(1, round);
            }
            assert!(lane.message(1).is_none() && before.partitions.is_empty());
            continue;
        }
        for n in 0..=ROUNDS_MAX as u64 {
            lane.command(Action::Forget {
                at: AT,
                id: mixed(n + 10),
            });
        }
        assert_eq!(
            (lane.part().next_round(&id(2)), lane.part().next_round(&id(3))),
            (1, 1)
        );
        lane.ops.clear();
        // Replays of what is over, or once more of a round that was, change nothing.
        for n in [2, 3] {
            for round in 1..5 {
                lane.opened(n, round);
                assert!(lane.message(n).is_none(), "{n} in round {round}");
            }
        }
        for round in [1, 2, 4] {
            lane.opened(1, round);
            assert_eq!(
                lane.message(1).map(|m| m.state),
                Some(MessageState::Dead),
                "round {round}"
            );
        }
        lane.opened(1, 3);
        assert_eq!(lane.message(1).map(|m| m.round), Some(3));
        // What the store knows stays known, and what was forgotten stays forgotten.
        assert!(lane.ops.is_empty(), "{:?}", lane.ops);
    }
}

/// A rule against a flood passes over messages that were never sent, and keeps none of them: what an operator forgot must
/// still come again in a later round.
#[test]
fn a_flood_that_is_passed_over_pushes_no_rounds_out() {
    let mut lane = Lane::new();
    let mixed = |n: u64| {
        MessageId((u128::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)).to_be_bytes())
    };
    lane.outcome(1, 1, 1, delivered());
    lane.command(Action::Forget { at: AT, id: id(1) });
    for n in 2..ROUNDS_MAX as u64 + 4 {
        lane.say(Body::Outcome(Outcome {
            at: AT,
            id: mixed(n),
            offset: n,
            round: 1,
            attempts: 0,
            when: Time(5_000),
            life: ME,
            status: 0,
            kind: OutcomeKind::Skipped(kept("")),
        }));
        lane.command(Action::Drop { at: AT, id: mixed(n) });
        lane.ops.clear();
    }
    assert_eq!(lane.part().next_round(&id(1)), 2);
    assert_eq!(lane.part().rounds.len(), 1);
    // One that was sent begins a later round when it comes again.
    lane.outcome(9, 1, 1, OutcomeKind::Dead(kept("")));
    lane.command(Action::Drop { at: AT, id: id(9) });
    assert_eq!(lane.part().next_round(&id(9)), 2);
}

#[test]
fn live_and_restored_fold_see_the_same_words() {
    let mut lane = Lane::new();
    let readable = Bytes::from("é".repeat(READABLE_MAX));
    lane.outcome(0, 1, 1, OutcomeKind::Delivered { readable });
    let Some(StoreOp::Finished(f)) = lane.ops.last() else {
        panic!()
    };
    assert_eq!(f.readable.len(), READABLE_MAX);
    let reason = "é".repeat(REASON_MAX);
    lane.command(Action::Pause {
        partner: "p".into(),
        route: None,
        reason,
    });
    assert_eq!(lane.state.paused["p"].reason.len(), REASON_MAX);
}

/// Printed by `cargo test --profile quick fold::tests::speed -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn speed() {
    const N: u64 = 2_000_000;
    const FLYING: u64 = 1_000;
    let mut lane = Lane::new();
    lane.state.partitions.entry(AT).or_default();
    let id = |n: u64| {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        MessageId(id)
    };
    let mut intent = Entry {
        tenure: Tenure(0),
        body: Body::Intent(Intent {
            at: AT,
            id: id(0),
            key: KeyHash(9),
            offset: 0,
            round: 1,
            attempt: 1,
            first_try: Time(1),
            slot: Time(1_790_000_000_000_000),
            budgets: [BudgetDraw { budget: 3, by: 0 }].into_iter().collect(),
            life: ME,
            lease_ms: 5_000,
            timeout_ms: 10_000,
        }),
    };
    let mut outcome = Entry {
        tenure: Tenure(0),
        body: Body::Outcome(Outcome {
            at: AT,
            id: id(0),
            offset: 0,
            round: 1,
            attempts: 1,
            when: Time(1),
            life: ME,
            status: 200,
            kind: delivered(),
        }),
    };
    let (mut next, began) = (1, std::time::Instant::now());
    for n in 0..N + FLYING {
        if n < N {
            let Body::Intent(i) = &mut intent.body else {
                panic!()
            };
            (i.id, i.offset, i.slot) = (id(n), n, Time(i.slot.0 + 20));
            lane.state.apply(next, &intent, &mut lane.ops).unwrap();
            next += 1;
        }
        if n >= FLYING {
            let Body::Outcome(o) = &mut outcome.body else {
                panic!()
            };
            // Nearly in order, as partners answer.
            let m = (n - FLYING) ^ 7;
            (o.id, o.offset) = (id(m), m);
            lane.state.apply(next, &outcome, &mut lane.ops).unwrap();
            next += 1;
        }
        if lane.ops.len() >= 4_096 {
            lane.ops.clear();
        }
    }
    println!("intent and outcome {:?}", began.elapsed() / N as u32);
    assert_eq!(lane.part().position, N);
    println!("message {} B in memory", size_of::<Message>());
}

/// What follows from orders: once, for what they change; a mark that meets an attempt is refused by whoever folds it.
#[test]
fn effects_follow_from_what_changed() {
    let at = RoutePartition {
        route: RouteId(7),
        partition: 0,
    };
    let id = |n: u8| MessageId([n; 16]);
    let mut state = LaneState::default();
    let mut fold = |body: Body| {
        let entry = Entry {
            tenure: Tenure(0),
            body,
        };
        let (mut ops, mut effects) = (Vec::new(), Effects::new());
        let next = state.next;
        state.apply_live(next, &entry, &mut ops, &mut effects).unwrap();
        assert!(effects.iter().all(|(offset, _)| *offset == next));
        (
            effects.into_iter().map(|(_, effect)| effect).collect::<Vec<_>>(),
            ops.len(),
        )
    };
    let command = |action| {
        Body::from(Command {
            offset: 1,
            when: Time(1),
            who: String::new(),
            why: String::new(),
            action,
        })
    };
    let outcome = |n: u8, kind| {
        Body::Outcome(Outcome {
            at,
            id: id(n),
            offset: n.into(),
            round: 1,
            attempts: 1,
            when: Time(1),
            life: LifeId(1),
            status: 0,
            kind,
        })
    };
    let mark = |n: u8| {
        command(Action::Mark {
            at,
            id: id(n),
            offset: 0,
        })
    };
    fold(Body::Genesis(Genesis {
        ledger: 1,
        group: "embedded".into(),
        lanes: 1,
        lane: 0,
        recipe: 1,
    }));
    let (refused, marked) = (
        Effect::Refused {
            at,
            id: id(1),
            mark: true,
        },
        Effect::Marked { at, id: id(1) },
    );
    let settled = |n: u8| Effect::Settled { at, id: id(n) };
    fold(Body::Intent(Intent {
        at,
        id: id(1),
        key: KeyHash(1),
        offset: 1,
        round: 1,
        attempt: 1,
        first_try: Time(1),
        slot: Time(1),
        budgets: Default::default(),
        life: LifeId(1),
        lease_ms: 1,
        timeout_ms: 1,
    }));
    assert_eq!(fold(mark(1)), (vec![refused.clone()], 0), "it is on the wire");
    fold(outcome(
        1,
        OutcomeKind::Later {
            not_before: Time(9),
            first_try: Time(1),
            key: KeyHash(1),
            reason: String::new(),
            counted: true,
        },
    ));
    assert_eq!(fold(mark(1)), (vec![refused], 0), "it waits for its next attempt");
    fold(outcome(1, OutcomeKind::Parked(Box::default())));
    assert_eq!(fold(mark(1)), (vec![marked, settled(1)], 1));
    // Only a doubt holds a key; what was dead held nothing.
    fold(outcome(2, OutcomeKind::Dead(Box::default())));
    assert_eq!(fold(command(Action::Drop { at, id: id(2) })), (vec![], 0));
    assert_eq!(
        fold(command(Action::Drop { at, id: id(2) })).0,
        [Effect::Refused {
            at,
            id: id(2),
            mark: false
        }]
    );
    fold(outcome(3, OutcomeKind::Parked(Box::default())));
    assert_eq!(
        fold(command(Action::Forget { at, id: id(3) })).0,
        [Effect::Forgotten { at, id: id(3) }, settled(3)]
    );
    fold(outcome(4, OutcomeKind::Dead(Box::default())));
    let opened = |round| {
        Body::Opened(Opened {
            at,
            id: id(4),
            round,
            when: Time(1),
            idempotency_key: "k".into(),
        })
    };
    assert!(matches!(fold(opened(2)).0[..], [Effect::Opened { round: 2, .. }]));
    assert_eq!(
        fold(opened(2)).0,
        [Effect::Refused {
            at,
            id: id(4),
            mark: false
        }],
        "once"
    );
    let pause = || Action::Pause {
        partner: "p".into(),
        route: None,
        reason: "x".into(),
    };
    assert_eq!(fold(command(pause())).0, [Effect::Paused { partner: "p".into() }]);
    // What is carried repeats an entry whose effect was carried out.
    let carried = Body::Carried {
        original: 1,
        entry: Box::new(Entry {
            tenure: Tenure(0),
            body: command(pause()),
        }),
    };
    assert_eq!(fold(carried).0, []);
}
