//! Round trips of arbitrary entries, hostile bytes, bounds, sizes, and bytes that must never change.

use super::super::entry::*;
use super::*;
use crate::core::record::Headers;
use crate::core::types::*;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn written(entry: &Entry) -> Bytes {
    let mut out = Vec::new();
    encode(entry, &mut out);
    out.into()
}

fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..max).prop_map(Bytes::from)
}

prop_compose! {
    fn places()(route: u64, partition in prop_oneof![0u32..9, any::<u32>()]) -> RoutePartition {
        RoutePartition { route: RouteId(route), partition }
    }
}

fn times() -> impl Strategy<Value = Time> {
    prop_oneof![
        Just(Time::ZERO),
        Just(Time::NEVER),
        (1_790_000_000_000_000u64..1_790_000_100_000_000).prop_map(Time),
        any::<u64>().prop_map(Time),
    ]
}

prop_compose! {
    fn kepts()(
        (key, record_key, timestamp, first_try) in (any::<u64>(), option::of(bytes(9)), times(), times()),
        (value, headers) in (bytes(40), bytes(20)),
        (readable, idempotency_key, reason, answer) in (".{0,9}", ".{0,9}", ".{0,9}", ".{0,9}"),
    ) -> Box<Kept> {
        Box::new(Kept {
            key: KeyHash(key), record_key, timestamp, value, headers: Headers(headers), readable,
            idempotency_key, reason, answer, first_try, dropped: false,
        })
    }
}

prop_compose! {
    fn intents()(
        (at, id, key, offset) in (places(), any::<[u8; 16]>(), any::<u64>(), any::<u64>()),
        (round, attempt, first_try, slot) in (0u32..4, any::<u32>(), times(), times()),
        budgets in vec((any::<u64>(), prop_oneof![Just(0u64), any::<u64>()]), 0..4),
        (life, lease_ms, timeout_ms) in (any::<u64>(), any::<u32>(), any::<u32>()),
    ) -> Intent {
        Intent {
            at, id: MessageId(id), key: KeyHash(key), offset, round, attempt, first_try, slot,
            budgets: budgets.into_iter().map(|(budget, by)| BudgetDraw { budget, by }).collect(),
            life: LifeId(life), lease_ms, timeout_ms,
        }
    }
}

fn outcome_kinds() -> impl Strategy<Value = OutcomeKind> {
    prop_oneof![
        bytes(40).prop_map(|readable| OutcomeKind::Delivered { readable }),
        (times(), times(), any::<u64>(), ".{0,9}", any::<bool>()).prop_map(
            |(not_before, first_try, key, reason, counted)| {
                OutcomeKind::Later {
                    counted,
                    not_before,
                    first_try,
                    key: KeyHash(key),
                    reason,
                }
            }
        ),
        kepts().prop_map(OutcomeKind::Dead),
        kepts().prop_map(OutcomeKind::Parked),
        kepts().prop_map(OutcomeKind::Skipped),
    ]
}

prop_compose! {
    fn outcomes()(
        (at, id, offset, round) in (places(), any::<[u8; 16]>(), any::<u64>(), any::<u32>()),
        (attempts, when, life, status) in (any::<u32>(), times(), any::<u64>(), any::<u16>()),
        kind in outcome_kinds(),
    ) -> Outcome {
        Outcome { at, id: MessageId(id), offset, round, attempts, when, life: LifeId(life), status, kind }
    }
}

fn skip_rules() -> impl Strategy<Value = SkipRule> {
    let of = (
        any::<u64>(),
        ".{0,9}",
        option::of(".{0,9}"),
        any::<bool>(),
        bytes(9),
        ".{0,9}",
        times(),
    );
    (of, option::of(0..u64::MAX)).prop_map(|((rule, topic, partner, id, what, reason, made), expires)| {
        SkipRule {
            rule,
            topic,
            partner,
            matches: if id {
                SkipMatch::Id(what)
            } else {
                SkipMatch::Key(what)
            },
            reason,
            made,
            expires: expires.map(Time),
        }
    })
}

fn actions() -> impl Strategy<Value = Action> {
    let message = || (places(), any::<[u8; 16]>().prop_map(MessageId));
    let paused = || (".{0,9}", option::of(any::<u64>().prop_map(RouteId)));
    prop_oneof![
        message().prop_map(|(at, id)| Action::Forget { at, id }),
        (message(), any::<u64>()).prop_map(|((at, id), offset)| Action::Mark { at, id, offset }),
        message().prop_map(|(at, id)| Action::Drop { at, id }),
        skip_rules().prop_map(Action::SkipAdd),
        any::<u64>().prop_map(|rule| Action::SkipRemove { rule }),
        (paused(), ".{0,9}").prop_map(|((partner, route), reason)| Action::Pause {
            partner,
            route,
            reason
        }),
        paused().prop_map(|(partner, route)| Action::Resume { partner, route }),
        (".{0,9}", any::<u64>()).prop_map(|(order, touched)| Action::Audit { order, touched }),
    ]
}

fn plain_bodies() -> impl Strategy<Value = Body> {
    let numbers = || (any::<u32>(), any::<u32>(), any::<u32>());
    prop_oneof![
        intents().prop_map(Body::Intent),
        outcomes().prop_map(Body::Outcome),
        (any::<u128>(), ".{0,9}", numbers()).prop_map(|(ledger, group, (lanes, lane, recipe))| {
            Body::Genesis(Genesis {
                ledger,
                group,
                lanes,
                lane,
                recipe,
            })
        }),
        (".{0,9}", any::<u64>(), any::<u32>(), any::<u32>(), times()).prop_map(
            |(node, life, lease_ms, timeout_ms, at)| {
                Body::Owner(Owner {
                    node,
                    life: LifeId(life),
                    lease_ms,
                    timeout_ms,
                    at,
                })
            }
        ),
        vec(any::<u64>().prop_map(LifeId), 0..4).prop_map(Body::Released),
        (any::<u64>(), ".{0,9}", any::<u128>(), ".{0,9}").prop_map(|(route, topic, id, partner)| {
            Body::Route(RouteInfo {
                route: RouteId(route),
                topic,
                topic_id: TopicId(id),
                partner,
            })
        }),
        (outcomes(), times(), kepts()).prop_map(|(o, not_before, kept)| {
            let Outcome {
                at,
                id,
                offset,
                round,
                attempts,
                when,
                ..
            } = o;
            Body::Waiting(Waiting {
                at,
                id,
                offset,
                round,
                attempts,
                when,
                not_before,
                kept,
            })
        }),
        (places(), numbers(), any::<u64>(), vec(any::<(u64, u64)>(), 0..5)).prop_map(
            |(at, (leader_epoch, position, _), high_water, finished)| {
                Body::Position(Position {
                    at,
                    leader_epoch,
                    position: position.into(),
                    finished,
                    high_water,
                })
            }
        ),
        (outcomes(), ".{0,9}").prop_map(|(o, idempotency_key)| {
            let Outcome {
                at, id, round, when, ..
            } = o;
            Body::Opened(Opened {
                at,
                id,
                round,
                when,
                idempotency_key,
            })
        }),
        (any::<u64>(), times(), ".{0,9}", ".{0,9}", actions()).prop_map(
            |(offset, when, who, why, action)| {
                Body::from(Command {
                    offset,
                    when,
                    who,
                    why,
                    action,
                })
            }
        ),
        (places(), times(), any::<u64>()).prop_map(|(at, when, end)| Body::Sample(Sample { at, when, end })),
        (any::<(u64, u64)>(), any::<u32>(), times(), any::<u64>()).prop_map(
            |((budget, by), window, since, count)| {
                Body::Used(Used {
                    draw: BudgetDraw { budget, by },
                    window,
                    since,
                    count,
                })
            }
        ),
        any::<u64>().prop_map(|version| Body::Applied { version }),
        (200u8.., bytes(20)).prop_map(|(kind, bytes)| Body::Unknown { kind, bytes }),
    ]
}

fn entries() -> impl Strategy<Value = Entry> {
    let plain = || {
        (any::<u64>(), plain_bodies()).prop_map(|(tenure, body)| Entry {
            tenure: Tenure(tenure),
            body,
        })
    };
    prop_oneof![
        5 => plain(),
        1 => (any::<u64>(), any::<u64>(), plain())
            .prop_map(|(tenure, original, entry)| Entry { tenure: Tenure(tenure), body: entry.carry(original) }),
    ]
}

/// What [`peek`] must find, from the entry itself.
fn expected_peek(entry: &Entry) -> Peek {
    let (mut at, mut id) = (None, None);
    let kind = match &entry.body {
        Body::Carried { original, entry } => {
            return Peek {
                carried: Some(*original),
                ..expected_peek(entry)
            };
        }
        Body::Genesis(_) => 1,
        Body::Owner(_) => 2,
        Body::Released(_) => 3,
        Body::Route(_) => 4,
        Body::Intent(i) => {
            (at, id) = (Some(i.at), Some(i.id));
            5
        }
        Body::Outcome(o) => {
            (at, id) = (Some(o.at), Some(o.id));
            match o.kind {
                OutcomeKind::Delivered { .. } => 6,
                OutcomeKind::Later { counted: true, .. } => 7,
                OutcomeKind::Later { counted: false, .. } => 19,
                OutcomeKind::Dead(_) => 8,
                OutcomeKind::Parked(_) => 9,
                OutcomeKind::Skipped(_) => 10,
            }
        }
        Body::Waiting(w) => {
            (at, id) = (Some(w.at), Some(w.id));
            11
        }
        Body::Position(p) => {
            at = Some(p.at);
            12
        }
        Body::Opened(o) => {
            (at, id) = (Some(o.at), Some(o.id));
            13
        }
        Body::Command(c) => {
            if let Action::Forget { at: a, id: i }
            | Action::Mark { at: a, id: i, .. }
            | Action::Drop { at: a, id: i } = &c.action
            {
                (at, id) = (Some(*a), Some(*i));
            }
            14
        }
        Body::Sample(s) => {
            at = Some(s.at);
            15
        }
        Body::Used(_) => 16,
        Body::Applied { .. } => 17,
        Body::Unknown { kind, .. } => *kind,
    };
    Peek {
        kind,
        carried: None,
        at,
        id,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn every_entry_comes_back(entry in entries()) {
        let bytes = written(&entry);
        prop_assert_eq!(peek(&bytes), Some(expected_peek(&entry)));
        prop_assert_eq!(decode(&bytes), Ok(entry));
    }

    #[test]
    fn a_cut_or_changed_entry_never_panics(entry in entries(), at: prop::sample::Index, to: u8) {
        let bytes = written(&entry);
        let at = at.index(bytes.len());
        let cut = bytes.slice(..at);
        peek(&cut);
        // Only what ends in raw bytes can be cut and still be an entry.
        if let Ok(Entry { body, .. }) = decode(&cut) {
            let open_end = |body: &Body| matches!(
                body,
                Body::Unknown { .. } | Body::Outcome(Outcome { kind: OutcomeKind::Delivered { .. }, .. })
            );
            let tolerated = match &body {
                Body::Carried { entry, .. } => open_end(&entry.body),
                body => open_end(body),
            };
            prop_assert!(tolerated);
        }
        let mut changed = bytes.to_vec();
        changed[at] = to;
        let changed = Bytes::from(changed);
        peek(&changed);
        if let Ok(entry) = decode(&changed) {
            prop_assert_eq!(decode(&written(&entry)), Ok(entry));
        }
    }

    #[test]
    fn garbage_is_an_error_or_an_entry(mut garbage in vec(any::<u8>(), 0..200), kind in 1u8..20) {
        let _ = decode(&Bytes::from(garbage.clone()));
        if garbage.len() > 2 {
            garbage[0] = FORMAT;
            garbage[1] = kind;
        }
        peek(&garbage);
        let _ = decode(&Bytes::from(garbage));
    }
}

fn sample_intent() -> Entry {
    Entry {
        tenure: Tenure(2_500_000),
        body: Body::Intent(Intent {
            at: RoutePartition {
                route: RouteId(0x0102_0304_0506_0708),
                partition: 3,
            },
            id: MessageId(*b"0123456789abcdef"),
            key: KeyHash(0x1112_1314_1516_1718),
            offset: 3_000_000,
            round: 1,
            attempt: 1,
            first_try: Time(1_790_000_000_000_000),
            slot: Time(1_790_000_000_000_500),
            budgets: [BudgetDraw {
                budget: 0x2122_2324_2526_2728,
                by: 0,
            }]
            .into_iter()
            .collect(),
            life: LifeId(0x3132_3334_3536_3738),
            lease_ms: 5_000,
            timeout_ms: 10_000,
        }),
    }
}

fn sample_delivered(readable: &'static str) -> Entry {
    Entry {
        tenure: Tenure(2_500_000),
        body: Body::Outcome(Outcome {
            at: RoutePartition {
                route: RouteId(0x0102_0304_0506_0708),
                partition: 3,
            },
            id: MessageId(*b"0123456789abcdef"),
            offset: 3_000_000,
            round: 1,
            attempts: 1,
            when: Time(1_790_000_000_000_000),
            life: LifeId(0x3132_3334_3536_3738),
            status: 200,
            kind: OutcomeKind::Delivered {
                readable: Bytes::from_static(readable.as_bytes()),
            },
        }),
    }
}

#[test]
fn what_was_written_once_reads_for_ever() {
    assert_eq!(
        hex(&written(&sample_intent())),
        "0105a0cb9801303132333435363738396162636465660807060504030201031817161514131211c08db70102f4e125dafe5b0600e70702282726252423222138373635343332318827904e"
    );
    assert_eq!(
        hex(&written(&sample_delivered("ord-1"))),
        "0106a0cb980130313233343536373839616263646566080706050403020103c08db7010200e025dafe5b06003837363534333231006f72642d31"
    );
}

#[test]
fn entries_of_the_hot_path_are_small() {
    let intent = written(&sample_intent()).len();
    let delivered = written(&sample_delivered("order-0123456789-abc")).len();
    println!("intent {intent} B, delivered {delivered} B");
    assert!(intent <= 78, "{intent}");
    assert!(delivered <= 75, "{delivered}");
}

#[test]
fn long_words_are_cut_at_a_character_and_payloads_never() {
    let mut entry = sample_delivered("");
    let Body::Outcome(outcome) = &mut entry.body else {
        unreachable!()
    };
    let long = "é".repeat(5_000);
    outcome.kind = OutcomeKind::Delivered {
        readable: Bytes::from(format!("x{long}")),
    };
    let Ok(Entry {
        body: Body::Outcome(back),
        ..
    }) = decode(&written(&entry))
    else {
        panic!()
    };
    let OutcomeKind::Delivered { readable } = back.kind else {
        panic!()
    };
    assert_eq!(readable.len(), READABLE_MAX - 1);
    assert!(std::str::from_utf8(&readable).is_ok());

    let Body::Outcome(outcome) = &mut entry.body else {
        unreachable!()
    };
    let value = Bytes::from(vec![7; 3 << 20]);
    outcome.kind = OutcomeKind::Dead(Box::new(Kept {
        value: value.clone(),
        readable: format!("x{long}"),
        reason: format!("x{long}"),
        answer: format!("x{long}"),
        ..Kept::default()
    }));
    let Ok(Entry {
        body: Body::Outcome(back),
        ..
    }) = decode(&written(&entry))
    else {
        panic!()
    };
    let OutcomeKind::Dead(kept) = back.kind else {
        panic!()
    };
    assert_eq!(kept.value, value);
    assert_eq!(
        (kept.readable.len(), kept.reason.len(), kept.answer.len()),
        (READABLE_MAX - 1, REASON_MAX - 1, ANSWER_MAX - 1)
    );
}

#[test]
fn bytes_that_are_no_text_are_cut_at_the_bound() {
    assert_eq!(cut_bytes(&Bytes::from(vec![0x80; 9]), 6).len(), 6);
    assert_eq!(cut_bytes(&Bytes::from_static("a\u{10348}b".as_bytes()), 4), "a");
    assert_eq!(cut_bytes(&Bytes::from_static(b"abc"), 3), "abc");
}

#[test]
fn a_newer_format_is_told_from_damage() {
    let mut bytes = written(&sample_intent()).to_vec();
    bytes[0] = 2;
    assert_eq!(peek(&bytes), None);
    assert_eq!(decode(&bytes.into()), Err(CodecError::Format(2)));
    let mut bytes = written(&sample_intent()).to_vec();
    bytes.push(0);
    assert_eq!(decode(&bytes.into()), Err(CodecError::Trailing(1)));
}

#[test]
fn an_entry_is_carried_once() {
    let once = Entry {
        tenure: Tenure(9),
        body: sample_intent().carry(7),
    };
    let twice = Entry {
        tenure: Tenure(9),
        body: once.clone().carry(800),
    };
    let Body::Carried { original: 800, entry } = &twice.body else {
        panic!("{twice:?}")
    };
    assert_eq!(**entry, sample_intent());
    let nested = Entry {
        tenure: Tenure(9),
        body: Body::Carried {
            original: 800,
            entry: Box::new(once),
        },
    };
    assert_eq!(decode(&written(&nested)), Ok(twice));
    let mut deep = Vec::new();
    for _ in 0..100_000 {
        deep.extend_from_slice(&[FORMAT, kind::CARRIED, 0, 0]);
    }
    assert_eq!(
        decode(&deep.into()),
        Err(CodecError::Malformed("a carried entry"))
    );
}

/// Rough speed, printed by `cargo test --profile quick codec::tests::speed -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn speed() {
    const N: u32 = 2_000_000;
    for entry in [sample_intent(), sample_delivered("order-0123456789-abc")] {
        let mut out = Vec::with_capacity(256);
        let began = std::time::Instant::now();
        for _ in 0..N {
            out.clear();
            encode(std::hint::black_box(&entry), &mut out);
            std::hint::black_box(&out);
        }
        let encoding = began.elapsed() / N;
        let bytes = Bytes::from(out);
        let began = std::time::Instant::now();
        for _ in 0..N {
            std::hint::black_box(decode(std::hint::black_box(&bytes)).unwrap());
        }
        let decoding = began.elapsed() / N;
        let began = std::time::Instant::now();
        for _ in 0..N {
            std::hint::black_box(peek(std::hint::black_box(&bytes)));
        }
        println!(
            "{} B: encode {encoding:?}, decode {decoding:?}, peek {:?}",
            bytes.len(),
            began.elapsed() / N
        );
    }
    println!("entry {} B in memory", size_of::<Entry>());
}
