//! The disk of a simulated node: an in-memory log whose batches become durable at once or late, and where a kill may
//! fall before, in between and after.

use super::oracle::Facts;
use crate::core::record::Record;
use crate::core::types::{Offset, Time};
use crate::intake::fake_log::FakeLog;
use crate::log::{
    Appended, Batch, Bounds, Done, Log, LogError, LogStats, LogTransaction, PartitionId, TopicMeta, TopicSpec,
};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// The log of one life, over what outlives it.
#[derive(Clone)]
pub struct Disk {
    pub kept: FakeLog,
    pub facts: Arc<Mutex<Facts>>,
    /// Which life it belongs to: later ones must not hear of its batches.
    pub life: u64,
    /// Held while a batch is written and answered.
    pub turn: Arc<tokio::sync::Mutex<()>>,
}

fn full() -> LogError {
    LogError::NoRoom {
        path: "simulated".into(),
        detail: "full".into(),
    }
}

impl Disk {
    /// What this life may still do: the next step.
    fn step(&self) -> bool {
        self.facts.lock().step(self.life)
    }

    fn persist(&self, batch: Batch) -> Appended {
        let appended = self.log_now(batch);
        self.facts.lock().persisted(&self.kept);
        appended
    }

    fn log_now(&self, batch: Batch) -> Appended {
        let result = Arc::new(Mutex::new(None));
        let told = result.clone();
        self.kept.append(batch, Box::new(move |r| *told.lock() = Some(r)));
        let appended = result.lock().take();
        appended
            .expect("it answers at once")
            .expect("it takes everything")
    }
}

impl Log for Disk {
    fn append(&self, batch: Batch, done: Done) {
        let (before, after, refused) = {
            let facts = &mut *self.facts.lock();
            let slow = facts.rng.u8(0..40) == 0;
            let mut wait =
                |most: u64| Duration::from_micros(facts.rng.u64(0..if slow { most * 40 } else { most }));
            let (before, after) = (wait(1_500), wait(1_500));
            let refused = if !facts.bad_disk {
                None
            } else if facts.full && !batch.may_use_reserve() {
                Some(full())
            } else {
                (facts.rng.u8(0..20) == 0).then_some(LogError::Busy { waiting: 1, limit: 1 })
            };
            (before, after, refused)
        };
        if !self.step() {
            return;
        }
        let disk = self.clone();
        tokio::task::spawn_local(async move {
            // One batch at a time, and answers in the order of the calls, whichever port they come from.
            let _turn = disk.turn.clone().lock_owned().await;
            tokio::time::sleep(before).await;
            if let Some(error) = refused {
                return done(Err(error));
            }
            if !disk.step() {
                return;
            }
            let appended = disk.persist(batch);
            if !disk.step() {
                return;
            }
            tokio::time::sleep(after).await;
            if disk.step() {
                done(Ok(appended));
            }
        });
    }

    fn bounds(&self, partition: PartitionId) -> Result<Bounds, LogError> {
        let mut bounds = self.kept.bounds(partition)?;
        bounds.first = self.facts.lock().first_of(partition);
        Ok(bounds)
    }

    fn read(
        &self,
        partition: PartitionId,
        from: Offset,
        bytes: usize,
        out: &mut Vec<Record>,
    ) -> Result<Offset, LogError> {
        let Bounds { first, next } = self.bounds(partition)?;
        if from < first {
            return Err(LogError::OutOfRange {
                wanted: from,
                first,
                next,
            });
        }
        self.kept.read(partition, from, bytes, out)
    }

    fn refuses(&self) -> Option<String> {
        self.facts.lock().full.then(|| "full".to_owned())
    }

    fn create_topic(&self, name: &str, spec: &TopicSpec) -> Result<TopicMeta, LogError> {
        self.kept.create_topic(name, spec)
    }
    fn topic(&self, name: &str) -> Option<TopicMeta> {
        self.kept.topic(name)
    }
    fn topics(&self) -> Vec<TopicMeta> {
        self.kept.topics()
    }
    fn delete_topic(&self, name: &str) -> Result<(), LogError> {
        self.kept.delete_topic(name)
    }
    fn watch(&self, partition: PartitionId) -> tokio::sync::watch::Receiver<Offset> {
        self.kept.watch(partition)
    }
    fn begin(&self) -> Result<Box<dyn LogTransaction>, LogError> {
        self.kept.begin()
    }
    fn committed(&self, group: &str, partition: PartitionId) -> Option<Offset> {
        self.kept.committed(group, partition)
    }
    fn offset_at(&self, partition: PartitionId, time: Time) -> Result<Offset, LogError> {
        self.kept.offset_at(partition, time)
    }
    fn allow_trim(&self, _: PartitionId, _: Offset) {}
    fn trim(&self, _: PartitionId, _: Offset) -> Result<(), LogError> {
        Ok(())
    }
    fn stats(&self) -> LogStats {
        LogStats::default()
    }
    fn close(&self) -> Result<(), LogError> {
        Ok(())
    }
}
