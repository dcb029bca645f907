//! Restore and payload reads, over a lane in memory.

use super::checkpoint;
use super::payload::{self, PayloadError};
use super::restore::*;
use crate::core::ledger::codec::{self, kind};
use crate::core::ledger::entry::*;
use crate::core::ledger::fold::*;
use crate::core::record::{Headers, Record};
use crate::core::types::*;
use crate::dedup::Mark;
use crate::log::{
    Batch, Bounds, Done, Log, LogError, LogStats, LogTransaction, PartitionId, TopicMeta, TopicSpec,
};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::Path;

const LANE: PartitionId = PartitionId(0);
const AT: RoutePartition = RoutePartition {
    route: RouteId(5),
    partition: 1,
};

/// One partition of a log: what can be read of it, and what can happen to it.
#[derive(Default)]
struct LaneLog {
    records: Mutex<Vec<Record>>,
    first: Mutex<Offset>,
    /// Trimmed to here as soon as something is read behind the genesis.
    trim_on_read: Mutex<Option<Offset>>,
}

impl LaneLog {
    fn say(&self, body: Body) -> Offset {
        let mut bytes = Vec::new();
        codec::encode(
            &Entry {
                tenure: Tenure(1),
                body,
            },
            &mut bytes,
        );
        self.put(bytes)
    }
    fn put(&self, bytes: Vec<u8>) -> Offset {
        let mut records = self.records.lock();
        let offset = records.len() as u64;
        records.push(Record {
            offset,
            value: bytes.into(),
            ..Record::default()
        });
        offset
    }
    fn next(&self) -> Offset {
        self.records.lock().len() as u64
    }
}

impl Log for LaneLog {
    fn bounds(&self, _: PartitionId) -> Result<Bounds, LogError> {
        Ok(Bounds {
            first: *self.first.lock(),
            next: self.next(),
        })
    }
    fn read(
        &self,
        _: PartitionId,
        from: Offset,
        max_bytes: usize,
        out: &mut Vec<Record>,
    ) -> Result<Offset, LogError> {
        if from > 0
            && let Some(first) = self.trim_on_read.lock().take()
        {
            *self.first.lock() = first;
        }
        let Bounds { first, next } = self.bounds(LANE)?;
        if from < first || from > next {
            return Err(LogError::OutOfRange {
                wanted: from,
                first,
                next,
            });
        }
        let records = self.records.lock();
        let (mut at, mut bytes) = (from, 0);
        while let Some(record) = records.get(at as usize) {
            out.push(record.clone());
            at += 1;
            bytes += record.held_bytes();
            // Short of what was asked for now and then: whoever reads must go on.
            if bytes >= max_bytes || (max_bytes > 1 && at % 7_919 == 0) {
                break;
            }
        }
        Ok(at)
    }
    fn create_topic(&self, _: &str, _: &TopicSpec) -> Result<TopicMeta, LogError> {
        Err(LogError::Closed)
    }
    fn topic(&self, _: &str) -> Option<TopicMeta> {
        None
    }
    fn topics(&self) -> Vec<TopicMeta> {
        Vec::new()
    }
    fn delete_topic(&self, _: &str) -> Result<(), LogError> {
        Err(LogError::Closed)
    }
    fn watch(&self, _: PartitionId) -> tokio::sync::watch::Receiver<Offset> {
        tokio::sync::watch::channel(0).1
    }
    fn append(&self, _: Batch, done: Done) {
        done(Err(LogError::Closed));
    }
    fn begin(&self) -> Result<Box<dyn LogTransaction>, LogError> {
        Err(LogError::Closed)
    }
    fn committed(&self, _: &str, _: PartitionId) -> Option<Offset> {
        None
    }
    fn offset_at(&self, _: PartitionId, _: Time) -> Result<Offset, LogError> {
        Err(LogError::Closed)
    }
    fn allow_trim(&self, _: PartitionId, _: Offset) {}
    fn trim(&self, _: PartitionId, _: Offset) -> Result<(), LogError> {
        Err(LogError::Closed)
    }
    fn stats(&self) -> LogStats {
        LogStats::default()
    }
    fn refuses(&self) -> Option<String> {
        None
    }
    fn close(&self) -> Result<(), LogError> {
        Ok(())
    }
}

/// A dedup store in memory.
#[derive(Default, Clone, Debug, PartialEq)]
struct Store {
    ids: BTreeMap<MessageId, (FinishedState, Offset)>,
    upto: Option<Offset>,
    /// Checksum of the entry before it.
    entry: u32,
    resets: u32,
}

impl StoreFeed for Store {
    fn watermark(&self) -> Option<Mark> {
        let mark = |next| Mark {
            next,
            entry: self.entry,
        };
        self.upto.map(mark)
    }
    fn apply(&mut self, ops: Vec<StoreOp>, Mark { next: upto, entry }: Mark) -> Result<(), FeedError> {
        assert!(self.upto.is_none_or(|known| upto > known), "fed twice");
        self.entry = entry;
        for op in ops {
            match op {
                StoreOp::Finished(f) => {
                    assert!(f.ledger < upto && self.upto.is_none_or(|known| f.ledger >= known));
                    self.ids.insert(f.id, (f.state, f.ledger));
                }
                StoreOp::Forget { id, .. } => {
                    self.ids.remove(&id);
                }
            }
        }
        self.upto = Some(upto);
        Ok(())
    }
    fn reset(&mut self) -> Result<(), FeedError> {
        *self = Store {
            resets: self.resets + 1,
            upto: Some(0),
            ..Store::default()
        };
        Ok(())
    }
}

fn id(n: u64) -> MessageId {
    let mut id = [7; 16];
    id[..8].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    MessageId(id)
}

fn genesis() -> Genesis {
    Genesis {
        ledger: 7,
        group: "embedded".into(),
        lanes: 1,
        lane: 0,
        recipe: 1,
    }
}

fn expected() -> Expected {
    Expected {
        ledger: Some(7),
        group: "embedded".into(),
        lanes: 1,
        lane: 0,
        recipe: 1,
    }
}

fn intent(n: u64) -> Body {
    Body::Intent(Intent {
        at: AT,
        id: id(n),
        key: KeyHash(n),
        offset: n,
        round: 1,
        attempt: 1,
        first_try: Time(1_790_000_000_000_000 + n),
        slot: Time(1_790_000_000_000_000 + n),
        budgets: [BudgetDraw { budget: 3, by: 0 }].into_iter().collect(),
        life: LifeId(1),
        lease_ms: 5_000,
        timeout_ms: 10_000,
    })
}

fn outcome(n: u64, kind: OutcomeKind) -> Body {
    Body::Outcome(Outcome {
        at: AT,
        id: id(n),
        offset: n,
        round: 1,
        attempts: 1,
        when: Time(1_790_000_000_000_000 + n),
        life: LifeId(1),
        status: 200,
        kind,
    })
}

fn delivered() -> OutcomeKind {
    OutcomeKind::Delivered {
        readable: Bytes::from_static(b"order-0123456789-abc"),
    }
}

fn kept(value: &'static str) -> Box<Kept> {
    Box::new(Kept {
        key: KeyHash(9),
        value: Bytes::from_static(value.as_bytes()),
        headers: Headers::encode([("a", &b"1"[..])]),
        ..Kept::default()
    })
}

fn forget(n: u64) -> Body {
    Body::from(Command {
        offset: n,
        when: Time(1),
        who: "op".into(),
        why: String::new(),
        action: Action::Forget { at: AT, id: id(n) },
    })
}

/// A lane with something of everything, its fold, and the store that belongs to it.
fn lane() -> LaneLog {
    let log = LaneLog::default();
    log.say(Body::Genesis(genesis()));
    for n in 0..6 {
        log.say(intent(n));
    }
    log.say(outcome(0, delivered()));
    log.say(outcome(1, OutcomeKind::Dead(kept("dead"))));
    log.say(outcome(3, OutcomeKind::Parked(kept("parked"))));
    log.say(outcome(4, delivered()));
    log.say(forget(4));
    log.say(outcome(5, delivered()));
    log
}

/// The fold and the store after the first `upto` entries.
fn folded(log: &LaneLog, upto: Offset) -> (LaneState, Store, u32) {
    let (mut state, mut store, mut crc) = (LaneState::default(), Store::default(), 0);
    store.upto = Some(0);
    for record in log.records.lock().iter().take(upto as usize) {
        let mut ops = Vec::new();
        state
            .apply(record.offset, &codec::decode(&record.value).unwrap(), &mut ops)
            .unwrap();
        crc = checkpoint::entry_crc(&record.value);
        let upto = Mark {
            next: record.offset + 1,
            entry: crc,
        };
        store.apply(ops, upto).unwrap();
    }
    (state, store, crc)
}

fn write_checkpoint(log: &LaneLog, dir: &Path, at: Offset) {
    let (state, _, crc) = folded(log, at);
    checkpoint::write(dir, &state, 7, crc).unwrap();
}

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
                (end - at) + at.saturating_sub(known)
            } else {
                end
            };
            assert_eq!(restored.report.entries, read, "only what must be read is");
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
    let mut kept: Vec<_> = crate::core::ledger::retention::payloads(&restored.state)
        .iter()
        .map(|p| (p.since, p.ledger, p.id))
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

#[test]
fn payloads_and_keys_are_read_where_the_fold_says() {
    let log = lane();
    let waiting = log.say(Body::Waiting(Waiting {
        at: AT,
        id: id(2),
        offset: 2,
        round: 1,
        attempts: 1,
        when: Time(1),
        not_before: Time(2),
        kept: kept("waiting"),
    }));
    log.say(Body::Opened(Opened {
        at: AT,
        id: id(1),
        round: 2,
        when: Time(3),
        idempotency_key: "k-2".into(),
    }));
    let (state, ..) = folded(&log, log.next());
    let message = |n: u64| state.partitions[&AT].messages.get(&id(n)).unwrap();
    for (n, value) in [(1, "dead"), (3, "parked"), (2, "waiting")] {
        let (at, size) = message(n).payload.unwrap();
        let read = payload::kept(&log, LANE, at).unwrap();
        assert_eq!(
            (read.id, &*read.kept.value, read.offset),
            (id(n), value.as_bytes(), n)
        );
        let headers = Headers::encode([("a", &b"1"[..])]);
        assert_eq!(size as usize, value.len() + headers.0.len());
        // Also where it was carried to.
        let entry = payload::entry(&log, LANE, at).unwrap();
        let moved = log.say(entry.carry(at));
        assert_eq!(payload::kept(&log, LANE, moved).unwrap(), read);
    }
    assert_eq!(
        payload::idempotency_key(&log, LANE, message(1).opened).unwrap(),
        "k-2"
    );
    assert!(matches!(
        payload::kept(&log, LANE, 1),
        Err(PayloadError::Other {
            at: 1,
            what: "payload"
        })
    ));
    assert!(matches!(
        payload::idempotency_key(&log, LANE, waiting),
        Err(PayloadError::Other { .. })
    ));
    assert!(matches!(
        payload::kept(&log, LANE, log.next()),
        Err(PayloadError::Missing { .. })
    ));
    *log.first.lock() = 5;
    assert!(matches!(
        payload::kept(&log, LANE, 1),
        Err(PayloadError::Log { .. })
    ));
    let garbage = log.put(vec![1, kind::INTENT]);
    assert!(matches!(
        payload::kept(&log, LANE, garbage),
        Err(PayloadError::Damaged { .. })
    ));
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
