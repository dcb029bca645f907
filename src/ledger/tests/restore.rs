//! From a lane, a checkpoint and a store to a fold: whatever each of the three lacks, and what stops the node.

use super::*;

#[test]
fn any_checkpoint_and_any_store_behind_the_lane_come_to_the_same() {
    let log = lane();
    let end = log.next();
    let (state, store, crc) = folded(&log, end);
    for at in 0..=end {
        for known in 0..=end {
            let dir = tempfile::tempdir().unwrap();
            if at > 0 {
                write_checkpoint(&log, dir.path(), at);
            }
            let mut behind = folded(&log, known).1;
            let restored = restore(&log, LANE, dir.path(), &expected(), &mut behind).unwrap();
            assert_eq!(restored.state, state);
            assert_eq!(restored.last_entry_crc, crc);
            assert_eq!(behind, store, "checkpoint {at}, store {known}");
            assert_eq!(restored.report.store, StoreFed::From(known));
            match at {
                0 => assert!(matches!(restored.report.folded, FoldedFrom::Start { .. })),
                _ => assert_eq!(restored.report.folded, FoldedFrom::Checkpoint { at }),
            }
            let read = if at > 0 {
                (end - at) + if known < at { at } else { 0 }
            } else {
                end
            };
            assert_eq!(restored.report.entries, read, "only what must be read is");
        }
    }
}

/// A store that fell back is told what became of orders, not what they asked for: one that the lane refused, since an attempt
/// was under way, must not make its record a duplicate (I1).
#[test]
fn a_store_that_fell_back_is_told_of_no_order_that_was_refused() {
    let log = lane();
    let mark = Action::Mark {
        at: AT,
        id: id(2),
        offset: 2,
    };
    log.say(command(mark));
    log.say(outcome(5, delivered()));
    let (state, store, _) = folded(&log, log.next());
    assert!(state.partitions[&AT].messages.contains_key(&id(2)) && !store.ids.contains_key(&id(2)));
    for known in 0..=log.next() {
        let dir = tempfile::tempdir().unwrap();
        write_checkpoint(&log, dir.path(), log.next());
        let mut behind = folded(&log, known).1;
        restore(&log, LANE, dir.path(), &expected(), &mut behind).unwrap();
        assert_eq!(behind, store, "store {known}");
    }
}

/// The same behind a trim, where the intent of the attempt is gone and only its carried copy stands behind the order.
#[test]
fn an_order_that_was_refused_is_refused_behind_a_trim() {
    let log = lane();
    let mark = Action::Mark {
        at: AT,
        id: id(2),
        offset: 2,
    };
    let refused = log.say(command(mark));
    let (state, store, _) = folded(&log, log.next());
    let known = |store: &Store| store.ids.contains_key(&id(2));
    assert!(state.partitions[&AT].messages.contains_key(&id(2)) && !known(&store));
    let before = log.next();
    for at in 0..refused {
        let entry = codec::decode(&log.records.lock()[at as usize].value.clone()).unwrap();
        if state.must_carry(at, &entry) {
            log.say(entry.carry(at));
        }
    }
    // The views of the node were written before it carried, or after; each of them may be lost, the store with any part.
    let views: Vec<_> = [before, log.next()]
        .map(|at| tempfile::tempdir().map(|dir| (at, dir)).unwrap())
        .into();
    for (at, dir) in &views {
        write_checkpoint(&log, dir.path(), *at);
    }
    let stores: Vec<Store> = (0..=log.next()).map(|known| folded(&log, known).1).collect();
    *log.first.lock() = refused;
    let none = tempfile::tempdir().unwrap();
    for dir in views.iter().map(|(_, dir)| dir).chain([&none]) {
        for (upto, store) in stores.iter().enumerate() {
            let mut store = store.clone();
            let restored = restore(&log, LANE, dir.path(), &expected(), &mut store).unwrap();
            assert!(restored.state.partitions[&AT].messages.contains_key(&id(2)));
            assert!(!known(&store), "store up to {upto}");
        }
    }
}

#[test]
fn an_empty_lane_is_told_as_such() {
    let (log, dir) = (LaneLog::default(), tempfile::tempdir().unwrap());
    let mut store = Store {
        upto: Some(0),
        ..Store::default()
    };
    let restored = restore(&log, LANE, dir.path(), &expected(), &mut store).unwrap();
    assert_eq!(
        (restored.report.folded, restored.state),
        (FoldedFrom::Nothing, LaneState::default())
    );
}

#[test]
fn a_damaged_checkpoint_is_told_and_built_anew() {
    let (log, dir) = (lane(), tempfile::tempdir().unwrap());
    write_checkpoint(&log, dir.path(), 9);
    let file = dir.path().join(checkpoint::FILE);
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let mut store = Store {
        upto: Some(0),
        ..Store::default()
    };
    let restored = restore(&log, LANE, dir.path(), &expected(), &mut store).unwrap();
    let FoldedFrom::Start { why } = restored.report.folded else {
        panic!()
    };
    assert!(why.contains("damaged"), "{why}");
    assert_eq!(restored.state, folded(&log, log.next()).0);
}

#[test]
fn a_store_that_vouches_for_nothing_is_fed_from_the_start() {
    let (log, dir) = (lane(), tempfile::tempdir().unwrap());
    write_checkpoint(&log, dir.path(), 9);
    let mut store = Store {
        ids: [(id(77), (FinishedState::Delivered, 3))].into(),
        ..Store::default()
    };
    let restored = restore(&log, LANE, dir.path(), &expected(), &mut store).unwrap();
    assert_eq!((restored.report.store, store.resets), (StoreFed::Rebuilt, 1));
    assert_eq!(store.ids, folded(&log, log.next()).1.ids);
}

#[test]
fn views_from_before_a_trim_are_built_anew() {
    let (log, dir) = (lane(), tempfile::tempdir().unwrap());
    let live = folded(&log, log.next()).0;
    for at in 0..log.next() {
        let entry = codec::decode(&log.records.lock()[at as usize].value.clone()).unwrap();
        if live.must_carry(at, &entry) {
            log.say(entry.carry(at));
        }
    }
    write_checkpoint(&log, dir.path(), 4);
    *log.first.lock() = 13;
    let mut store = folded(&log, 3).1;
    let restored = restore(&log, LANE, dir.path(), &expected(), &mut store).unwrap();
    let FoldedFrom::Start { why } = restored.report.folded else {
        panic!()
    };
    assert!(why.contains("before the lane's start"), "{why}");
    assert_eq!(restored.report.store, StoreFed::Rebuilt);
    let messages = restored.state.messages();
    let mut kept: Vec<_> = messages
        .filter_map(|(_, id, m)| Some((m.since, m.payload?.0, id)))
        .collect();
    kept.sort_unstable();
    assert_eq!(kept.iter().map(|k| k.2).collect::<Vec<_>>(), [id(1), id(3)]);
    assert_eq!(
        restored
            .state
            .open_intents()
            .map(|(_, id, _)| id)
            .collect::<Vec<_>>(),
        [id(2)]
    );
    // Not as if nothing had been there: a checkpoint that fits is still taken.
    let (state, _, crc) = {
        let mut state = LaneState::default();
        let mut crc = 0;
        for record in &log.records.lock()[13..] {
            state
                .apply(
                    record.offset,
                    &codec::decode(&record.value).unwrap(),
                    &mut Vec::new(),
                )
                .unwrap();
            crc = checkpoint::entry_crc(&record.value);
        }
        (state, (), crc)
    };
    checkpoint::write(dir.path(), &state, 7, crc).unwrap();
    let restored = restore(&log, LANE, dir.path(), &expected(), &mut store).unwrap();
    assert_eq!(restored.report.folded, FoldedFrom::Checkpoint { at: log.next() });
}

#[test]
fn a_lane_trimmed_while_it_is_read_is_read_again() {
    let (log, dir) = (lane(), tempfile::tempdir().unwrap());
    log.say(
        Entry {
            tenure: Tenure(1),
            body: Body::Genesis(genesis()),
        }
        .carry(0),
    );
    write_checkpoint(&log, dir.path(), 9);
    *log.trim_on_read.lock() = Some(13);
    let mut store = Store {
        upto: Some(0),
        ..Store::default()
    };
    let restored = restore(&log, LANE, dir.path(), &expected(), &mut store).unwrap();
    assert_eq!(restored.report.bounds.first, 13);
    assert_eq!(restored.report.store, StoreFed::Rebuilt);
}

#[test]
fn a_view_that_knows_more_than_the_lane_stops_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let attempt = |log: &LaneLog, store: &mut Store| restore(log, LANE, dir.path(), &expected(), store);
    let (whole, cut) = (lane(), lane());
    cut.records.lock().truncate(9);
    let up_to_date = folded(&whole, whole.next()).1;
    let told = attempt(&cut, &mut up_to_date.clone()).unwrap_err();
    assert!(
        matches!(
            told,
            RestoreError::LostEntries {
                view: "the dedup store",
                known: 13,
                ..
            }
        ),
        "{told}"
    );

    write_checkpoint(&whole, dir.path(), whole.next());
    let told = attempt(&cut, &mut folded(&cut, 5).1).unwrap_err();
    assert!(
        matches!(
            told,
            RestoreError::LostEntries {
                view: "the checkpoint",
                known: 13,
                ..
            }
        ),
        "{told}"
    );
    // Grown past the checkpoint with other entries.
    for n in 20..30 {
        cut.say(intent(n));
    }
    let told = attempt(&cut, &mut folded(&cut, 5).1).unwrap_err();
    assert!(
        matches!(
            told,
            RestoreError::LostEntries {
                view: "the checkpoint",
                ..
            }
        ),
        "{told}"
    );
    // The same of the store: grown to where it was, or past it, with other entries. However often it is tried.
    let other = tempfile::tempdir().unwrap();
    for _ in 0..5 {
        let known = folded(&whole, 11).1;
        let told = restore(&cut, LANE, other.path(), &expected(), &mut known.clone()).unwrap_err();
        assert!(
            matches!(
                told,
                RestoreError::LostEntries {
                    view: "the dedup store",
                    known: 11,
                    ..
                }
            ),
            "{told}"
        );
        assert!(
            told.to_string().contains("entry 10 is not the one it was"),
            "{told}"
        );
    }
    // Lost as a whole.
    let told = attempt(&LaneLog::default(), &mut Store::default()).unwrap_err();
    assert!(matches!(told, RestoreError::LostEntries { .. }), "{told}");
}

#[test]
fn another_ledger_stops_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let others: [fn(&mut Genesis); 5] = [
        |g| g.ledger = 8,
        |g| g.group = "x".into(),
        |g| g.lanes = 2,
        |g| g.lane = 1,
        |g| g.recipe = 2,
    ];
    for change in others {
        let log = LaneLog::default();
        let mut other = genesis();
        change(&mut other);
        log.say(Body::Genesis(other));
        let told = restore(&log, LANE, dir.path(), &expected(), &mut Store::default()).unwrap_err();
        assert!(matches!(told, RestoreError::OtherLedger { .. }), "{told}");
    }
    // The node does not know which ledger it had, its checkpoint does.
    let log = lane();
    let (state, _, crc) = folded(&log, log.next());
    checkpoint::write(dir.path(), &state, 8, crc).unwrap();
    let unknown = Expected {
        ledger: None,
        ..expected()
    };
    let told = restore(&log, LANE, dir.path(), &unknown, &mut Store::default()).unwrap_err();
    assert!(
        matches!(told, RestoreError::OtherLedger { what: "identity", .. }),
        "{told}"
    );
}

#[test]
fn a_lane_without_genesis_or_with_garbage_stops_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let attempt = |log: &LaneLog| restore(log, LANE, dir.path(), &expected(), &mut Store::default());
    let log = LaneLog::default();
    log.say(intent(0));
    assert!(matches!(
        attempt(&log),
        Err(RestoreError::Fold(FoldError::Genesis { at: 0, .. }))
    ));
    log.say(intent(1));
    *log.first.lock() = 1;
    assert!(matches!(attempt(&log), Err(RestoreError::NoGenesis { first: 1 })));
    let log = lane();
    let at = log.put(b"\x01\x05garbage".to_vec());
    assert!(matches!(attempt(&log), Err(RestoreError::Entry { at: told, .. }) if told == at));
}

#[test]
fn a_store_that_cannot_take_it_ends_the_restore() {
    struct Broken;
    impl StoreFeed for Broken {
        fn watermark(&self) -> Option<Mark> {
            Some(Mark::default())
        }
        fn apply(&mut self, _: Vec<StoreOp>, _: Mark) -> Result<(), FeedError> {
            Err("disk full".into())
        }
        fn reset(&mut self) -> Result<(), FeedError> {
            Ok(())
        }
    }
    let (log, dir) = (lane(), tempfile::tempdir().unwrap());
    let told = restore(&log, LANE, dir.path(), &expected(), &mut Broken).unwrap_err();
    assert!(matches!(told, RestoreError::Store(_)));
}

/// Printed by `cargo test --profile quick ledger::tests::speed -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn speed() {
    let log = LaneLog::default();
    log.say(Body::Genesis(genesis()));
    const N: u64 = 2_500_000;
    for n in 0..N + 1_000 {
        if n < N {
            log.say(intent(n));
        }
        if n >= 1_000 {
            log.say(outcome((n - 1_000) ^ 7, delivered()));
        }
    }
    struct Sink(u64);
    impl StoreFeed for Sink {
        fn watermark(&self) -> Option<Mark> {
            Some(Mark::default())
        }
        fn apply(&mut self, ops: Vec<StoreOp>, _: Mark) -> Result<(), FeedError> {
            self.0 += ops.len() as u64;
            Ok(())
        }
        fn reset(&mut self) -> Result<(), FeedError> {
            Ok(())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let mut sink = Sink(0);
    let restored = restore(&log, LANE, dir.path(), &expected(), &mut sink).unwrap();
    assert_eq!((sink.0, restored.report.fed), (N, N));
    println!(
        "{} entries in {:?}",
        restored.report.entries, restored.report.took
    );
}
