//! Restore and payload reads, over a lane in memory.

mod payloads;
mod restore;

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
    command(Action::Forget { at: AT, id: id(n) })
}

fn command(action: Action) -> Body {
    Body::from(Command {
        offset: 0,
        when: Time(1),
        who: "op".into(),
        why: String::new(),
        action,
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
