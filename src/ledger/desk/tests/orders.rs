//! What orders do, once, and what they leave alone.

use super::*;

#[test]
fn a_replay_opens_the_next_round_once() {
    let mut world = World::new();
    world.dead(3, "refused: 422", &id(3).to_string());
    let (first, second) = (
        world.prepare(replay(filter(3))).unwrap(),
        world.prepare(replay(filter(3))).unwrap(),
    );
    let (effects, report) = world.carry_out(&first);
    assert_eq!((report.touched, report.stale), (1, 0));
    let Effect::Opened {
        round,
        idempotency_key,
        ..
    } = &effects[0]
    else {
        panic!("{effects:?}")
    };
    assert_eq!(
        (*round, &**idempotency_key),
        (2, format!("{}-2", id(3)).as_str()),
        "a refusal is settled"
    );
    assert_eq!(world.state_of(3), DedupState::Waiting);
    let (effects, report) = world.carry_out(&second);
    assert_eq!((report.touched, report.stale, effects.len()), (0, 1, 0));
    assert_eq!(world.state.partitions[&AT].messages.get(&id(3)).unwrap().round, 2);
}

#[test]
fn the_key_stays_while_an_attempt_may_be_unsettled() {
    let mut world = World::new();
    world.dead(1, "too-old: 24h", "first-key");
    world.parked(2, "doubt-key");
    world.parked(3, "other-key");
    let key = |effects: Vec<Effect>| match effects.into_iter().next() {
        Some(Effect::Opened { idempotency_key, .. }) => idempotency_key.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(key(world.order(replay(filter(1))).0), "first-key");
    assert_eq!(
        key(world.order(Order::Resend { filter: filter(2) }).0),
        "doubt-key"
    );
    let not_taken = Order::Confirm {
        filter: filter(3),
        outcome: Confirmed::NotTaken,
    };
    assert_eq!(key(world.order(not_taken).0), format!("{}-2", id(3)));
}

#[test]
fn a_confirmed_delivery_is_remembered() {
    let mut world = World::new();
    world.parked(4, "k");
    let (effects, report) = world.order(Order::Confirm {
        filter: filter(4),
        outcome: Confirmed::Delivered,
    });
    assert_eq!(report.touched, 1);
    assert!(effects.contains(&Effect::Settled { at: AT, id: id(4) }));
    assert_eq!(world.state_of(4), DedupState::Delivered);
    assert!(
        world
            .messages(&Query::Doubts {
                filter: Filter::default()
            })
            .is_empty()
    );
    let Body::Command(c) = world.lane.entry(world.state.next - 1).unwrap().unwrap().body else {
        panic!()
    };
    assert_eq!(
        (c.who.as_str(), c.why.as_str(), c.offset),
        ("kim", "asked", 1),
        "who and why are in the ledger"
    );
}

#[test]
fn what_moves_is_left_alone() {
    let mut world = World::new();
    world.intent(1, 1, 1);
    world.parked(2, "k");
    world.delivered(3);
    let forget = |n| Order::Forget { filter: filter(n) };
    let busy = world.prepare(forget(1)).unwrap();
    assert_eq!((busy.items.len(), busy.report.refused), (0, 1));
    let doubt = world.prepare(forget(2)).unwrap();
    assert_eq!((doubt.items.len(), doubt.report.refused), (0, 1));
    assert!(matches!(world.prepare(forget(9)), Err(ApiError::NotFound(_))));
    assert_eq!(
        world
            .prepare(Order::Mark { filter: filter(1) })
            .unwrap()
            .report
            .refused,
        1
    );
    assert_eq!(
        world
            .prepare(Order::Mark { filter: filter(3) })
            .unwrap()
            .report
            .refused,
        1
    );
    // Forgotten between making up and settling: the verdict of a new attempt must not be lost.
    let prepared = world.prepare(forget(3)).unwrap();
    world.lane.store.lock().clear();
    world.intent(3, 1, 1);
    assert_eq!(world.carry_out(&prepared).1.stale, 1);
}

#[test]
fn forgotten_is_absent_and_marked_is_delivered() {
    let mut world = World::new();
    world.delivered(3);
    assert_eq!(world.order(Order::Forget { filter: filter(3) }).1.touched, 1);
    assert_eq!(world.state_of(3), DedupState::Absent);
    let (effects, _) = world.order(Order::Mark { filter: filter(3) });
    assert!(effects.contains(&Effect::Marked { at: AT, id: id(3) }));
    assert_eq!(
        effects.len(),
        2,
        "a text that looks like a hash is marked as both"
    );
    let row = world
        .desk
        .ask(&world.state, &Query::DedupGet { filter: filter(3) }, NOW)
        .unwrap();
    let Reply::Dedup(page) = row else { panic!() };
    assert!(
        page.rows
            .iter()
            .all(|r| r.state == DedupState::Delivered && r.marked)
    );
    assert!(matches!(
        world.prepare(Order::Forget {
            filter: Filter::default()
        }),
        Err(ApiError::Invalid(_))
    ));
}

#[test]
fn a_dry_run_counts_by_partner_and_reason() {
    let mut world = World::new();
    world.dead(1, "refused: 422 a", "k");
    world.dead(2, "refused: 404 b", "k");
    world.dead(3, "too-old: 24h", "k");
    let mut request = OrderRequest {
        order: replay(Filter::default()),
        who: String::new(),
        why: String::new(),
        dry_run: true,
        expect: None,
    };
    let report = world.prepare_request(&request).unwrap().report;
    assert_eq!((report.touched, report.dry_run), (3, true));
    let groups: Vec<_> = report
        .groups
        .iter()
        .map(|g| (g.partner.as_str(), g.reason.as_str(), g.count))
        .collect();
    assert_eq!(groups, [("acme", "refused", 2), ("acme", "too-old", 1)]);
    request.expect = Some(Expect {
        round: Some(2),
        count: None,
    });
    assert_eq!(world.prepare_request(&request).unwrap().report.stale, 3);
    request.expect = Some(Expect {
        round: None,
        count: Some(2),
    });
    assert!(matches!(world.prepare_request(&request), Err(ApiError::Stale(_))));
}

#[derive(Clone, Debug)]
enum Step {
    Dead(u8),
    Parked(u8),
    Delivered(u8),
    Intent(u8),
    Prepare(usize, u8),
    Settle,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let n = 1u8..6;
    let step = prop_oneof![
        n.clone().prop_map(Step::Dead),
        n.clone().prop_map(Step::Parked),
        n.clone().prop_map(Step::Delivered),
        n.clone().prop_map(Step::Intent),
        (0usize..7, n).prop_map(|(verb, n)| Step::Prepare(verb, n)),
        Just(Step::Settle),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    /// Orders made up at any time and settled at any later time, between any verdicts: what is on the wire or
    /// waits is never touched, a round is opened only from the one before, and each effect is what the fold says
    /// once the entries are in it.
    #[test]
    fn orders_never_race_verdicts(steps in steps()) {
        let mut world = World::new();
        let mut made: Vec<Prepared> = Vec::new();
        for step in steps {
            match step {
                Step::Dead(n) => world.outcome(n, 1, 1, OutcomeKind::Dead(World::kept(n, "refused: 4", "k"))),
                Step::Parked(n) => world.outcome(n, 1, 1, OutcomeKind::Parked(World::kept(n, "timeout: x", "k"))),
                Step::Delivered(n) => world.outcome(n, 1, 1, OutcomeKind::Delivered { readable: Bytes::new() }),
                Step::Intent(n) => {
                    let round = world.state.partitions[&AT].messages.get(&id(n)).map_or(1, |m| m.round);
                    world.intent(n, round, 1);
                }
                Step::Prepare(verb, n) => {
                    let filter = filter(n);
                    let order = match verb {
                        0 => replay(filter),
                        1 => Order::Drop { filter },
                        2 => Order::Resend { filter },
                        3 => Order::Confirm { filter, outcome: Confirmed::Delivered },
                        4 => Order::Confirm { filter, outcome: Confirmed::NotTaken },
                        5 => Order::Forget { filter },
                        _ => Order::Mark { filter },
                    };
                    made.extend(world.prepare(order));
                }
                Step::Settle => {
                    let Some(prepared) = made.pop() else { continue };
                    let before = world.state.clone();
                    let (effects, report) = world.carry_out(&prepared);
                    prop_assert_eq!(report.touched + report.stale, prepared.items.len() as u64);
                    for item in &prepared.items {
                        let busy = before.partitions[&AT].messages.get(&item.id).is_some_and(|m| {
                            matches!(m.state, MessageState::Open { .. } | MessageState::Later { .. })
                        });
                        if busy {
                            prop_assert_eq!(world.state.partitions[&AT].messages.get(&item.id), before.partitions[&AT].messages.get(&item.id));
                        }
                    }
                    for effect in effects {
                        let messages = &world.state.partitions[&AT].messages;
                        match effect {
                            Effect::Opened { id, round, .. } => {
                                prop_assert_eq!(before.partitions[&AT].messages.get(&id).unwrap().round + 1, round);
                                prop_assert_eq!(messages.get(&id).unwrap().round, round);
                            }
                            Effect::Marked { id, .. } => {
                                prop_assert!(!messages.contains_key(&id));
                                prop_assert!(world.lane.store.lock().contains_key(&(AT, id)));
                            }
                            Effect::Forgotten { id, .. } => {
                                prop_assert!(!messages.contains_key(&id));
                                prop_assert!(!world.lane.store.lock().contains_key(&(AT, id)));
                            }
                            Effect::Settled { id, .. } => prop_assert!(!messages.contains_key(&id)),
                            other => prop_assert!(false, "{:?}", other),
                        }
                    }
                }
            }
        }
    }
}
