//! A durable log on this machine: one journal for all topics, an index per partition.
//!
//! ```text
//! folder/
//!   lock              held by the process that has the log open
//!   journal           its identity: a UUID that every checksum covers
//!   seg-000000.log    slots: files of one size, used again and again; a segment is one use (see `segment`)
//!   seg-000001.log
//!
//! append ─► queue ─► writer ─► frame ─► pwrite + fdatasync ─► index, watchers, callbacks
//!             ▲                                                  │
//!   parts, copies                                    readers: index ─► pread ─► records
//! ```
//!
//! Words: a *batch* is what a caller appends; a *section* holds records of one partition; a *frame* is what one
//! commit writes: all batches that arrived during the one before (`frame`). A *segment* is a run of frames in one
//! file; it begins with a *catalogue* of all state and ends with a *footer* that holds its part of the index.
//!
//! What holds:
//! - An append is durable when its callback says so; readers see only what is durable. At most one frame is not.
//! - All of a batch is there after a crash, or nothing of it. Of a transaction too (`transaction`).
//! - Damage is never cut off as a torn tail (`recovery`).
//! - A failed write or sync poisons the log: the page cache can no longer be believed. A full disk does not: only
//!   new segments need room, and the last spares are kept for outcomes and for the log's own care.
//! - Offsets of a partition have no gaps between first and next, and next never falls, also when all its records
//!   are gone.
//!
//! Threads: `log-writer` writes and calls back; `log-care` prepares spare files and does retention (`retention`).
//! A restart reads catalogue, footers, and the frames of the newest segment.

mod catalogue;
mod disk;
mod frame;
mod index;
mod reader;
mod recovery;
mod retention;
mod segment;
mod state;
#[cfg(test)]
mod tests;
mod transaction;
mod wire;
mod writer;

pub use disk::{Fault, FaultHook, Step};
pub use recovery::journal_of;

use super::{
    Batch, Bounds, Done, Log, LogError, LogStats, LogTransaction, PartitionId, TopicMeta, TopicSpec,
};
use crate::clock::Clock;
use crate::core::record::Record;
use crate::core::types::{Offset, Time, TopicId};
use frame::{Entry, TopicEntry};
use parking_lot::Mutex;
use state::{Partition, Shared, Topic};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::watch;
use transaction::EmbeddedTransaction;
use writer::{Job, Writer, batch_cost};

/// How an embedded log is opened.
#[derive(Clone)]
pub struct EmbeddedOptions {
    /// Bytes of one preallocated segment; 16 KiB to 1 GiB. Default 64 MiB. Another size than before is fine: files
    /// of the old size go as they fall free, and what was taken with larger segments gets one as large as it needs.
    pub segment_bytes: u64,
    /// Least time between the beginnings of two commits under load. Default 1 ms: a commit costs some 60 µs of
    /// CPU whatever is in it. An append that comes alone does not wait.
    pub commit_gap: Duration,
    /// Largest batch, in bytes of its encoded records and their heads; at most a quarter of a segment. Default 16 MiB.
    /// One that may use the reserve may be a quarter larger than with the largest segments there are: it keeps a record
    /// that was taken when they were larger than now.
    pub max_frame: usize,
    /// Batches wait in memory for the writer up to this many bytes, then appends get [`LogError::Busy`].
    /// Default 64 MiB.
    pub queue_bytes: usize,
    /// Parts of transactions wait up to this many bytes, then the import is blocked. Default 8 MiB.
    pub bulk_bytes: usize,
    /// Spare segments that new records never take: for outcomes, and the last one for the log's own care. At
    /// least 2; default 2.
    pub reserve: usize,
    /// Bytes of zeros a second while a spare is prepared; 0 for no limit. Default 64 MiB/s.
    pub zero_rate: u64,
    /// How often retention looks, and a full disk is tried again. Default 1 s.
    pub care_every: Duration,
    /// What retention by time compares records with.
    pub now: Arc<dyn Fn() -> Time + Send + Sync>,
    /// Lets tests make steps fail.
    pub fault: Option<FaultHook>,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        let clock = Clock::start();
        Self {
            segment_bytes: 64 * 1024 * 1024,
            commit_gap: Duration::from_millis(1),
            max_frame: MAX_FRAME,
            queue_bytes: 64 * 1024 * 1024,
            bulk_bytes: 8 * 1024 * 1024,
            reserve: 2,
            zero_rate: 64 * 1024 * 1024,
            care_every: Duration::from_secs(1),
            now: Arc::new(move || clock.now()),
            fault: None,
        }
    }
}

impl EmbeddedOptions {
    /// Small segments: what tests want, where nobody waits for 64 MiB of zeros.
    pub fn small() -> Self {
        Self {
            segment_bytes: 1024 * 1024,
            zero_rate: 0,
            ..Self::default()
        }
    }

    fn bounded(mut self) -> Self {
        self.segment_bytes = self.segment_bytes.clamp(16 * 1024, 1024 * 1024 * 1024) / 4096 * 4096;
        self.reserve = self.reserve.max(2);
        self.max_frame = self
            .max_frame
            .min((self.segment_bytes / 4) as usize)
            .min(MAX_FRAME);
        self
    }
}

/// Largest batch with segments of any size.
const MAX_FRAME: usize = 16 * 1024 * 1024;
/// Largest batch that may use the reserve: it keeps one of the largest records, whatever segments are like now.
const KEPT_LIMIT: usize = MAX_FRAME + MAX_FRAME / 4;

/// See the module. Dropping it closes it.
pub struct EmbeddedLog {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// One topic is made at a time: two callers with one name must get one topic.
    making: Mutex<()>,
}

impl EmbeddedLog {
    /// Opens the log in this folder, or makes one. What was acknowledged before a crash is there; what was not
    /// may be.
    ///
    /// # Errors
    /// [`LogError::Locked`] if another process has it open, [`LogError::Corrupt`] if it is damaged,
    /// [`LogError::NoRoom`] if a first segment does not fit, [`LogError::Open`] for what else the system says.
    pub fn open(dir: &Path, options: EmbeddedOptions) -> Result<EmbeddedLog, LogError> {
        let lock = recovery::lock(dir)?;
        let (shared, active) = recovery::open(dir, options.bounded())?;
        *shared.lock.lock() = Some(lock);
        let writer = Writer::new(Arc::clone(&shared), active);
        let log = EmbeddedLog {
            shared: Arc::clone(&shared),
            threads: Mutex::default(),
            making: Mutex::default(),
        };
        let care = Arc::clone(&shared);
        let failed = |e: std::io::Error| LogError::Open {
            path: dir.to_owned(),
            detail: e.to_string(),
        };
        let threads = [
            std::thread::Builder::new()
                .name("log-writer".into())
                .spawn(move || writer.live()),
            std::thread::Builder::new()
                .name("log-care".into())
                .spawn(move || care.care()),
        ];
        for thread in threads {
            log.threads.lock().push(thread.map_err(failed)?);
        }
        Ok(log)
    }

    fn meta(topic: &Topic) -> TopicMeta {
        TopicMeta {
            name: topic.entry.name.clone(),
            id: topic.entry.id,
            spec: TopicSpec {
                partitions: topic.entry.partitions.len() as u32,
                retention: topic.entry.retention_us.map(Duration::from_micros),
                retention_bytes: topic.entry.retention_bytes,
            },
            partitions: topic.partitions.iter().map(|p| PartitionId(p.number)).collect(),
        }
    }

    fn found(&self, name: &str) -> Option<Arc<Topic>> {
        self.shared.topics.read().by_name.get(name).cloned()
    }

    fn partition(&self, id: PartitionId) -> Result<Arc<Partition>, LogError> {
        self.shared.check()?;
        self.shared.partition(id)
    }

    /// Does now what retention does every [`EmbeddedOptions::care_every`]: expires, drops, copies one segment.
    pub fn run_retention(&self) -> Result<(), LogError> {
        self.shared.turn()
    }
}

impl Log for EmbeddedLog {
    fn create_topic(&self, name: &str, spec: &TopicSpec) -> Result<TopicMeta, LogError> {
        self.shared.check()?;
        let _one_at_a_time = self.making.lock();
        let wanted = spec.partitions.max(1);
        let retention_us = spec
            .retention
            .map(|d| d.as_micros().min(u128::from(u64::MAX - 1)) as u64);
        let entry = match self.found(name) {
            Some(topic) => {
                let has = topic.entry.partitions.len() as u32;
                if has != wanted {
                    return Err(LogError::Partitions {
                        topic: name.to_owned(),
                        has,
                        wanted,
                    });
                }
                if topic.entry.retention_us == retention_us
                    && topic.entry.retention_bytes == spec.retention_bytes
                {
                    return Ok(Self::meta(&topic));
                }
                TopicEntry {
                    retention_us,
                    retention_bytes: spec.retention_bytes,
                    ..topic.entry.clone()
                }
            }
            None => {
                // Catalogue and frame hold it whole, and a name has two bytes for its length.
                let bytes = name.len() + wanted as usize * 32;
                let limit = (self.shared.options.segment_bytes / 16) as usize;
                if bytes > limit || name.len() > usize::from(u16::MAX) {
                    return Err(LogError::TooLarge { bytes, limit });
                }
                let mut topics = self.shared.topics.write();
                let first = topics.next_partition;
                topics.next_partition += wanted;
                TopicEntry {
                    name: name.to_owned(),
                    id: TopicId(uuid::Uuid::new_v4().as_u128()),
                    retention_us,
                    retention_bytes: spec.retention_bytes,
                    partitions: (first..first + wanted).collect(),
                }
            }
        };
        self.shared.control(vec![Entry::Topic(entry)])?;
        self.topic(name).ok_or_else(|| LogError::NoTopic(name.to_owned()))
    }

    fn topic(&self, name: &str) -> Option<TopicMeta> {
        self.found(name).map(|t| Self::meta(&t))
    }

    fn topics(&self) -> Vec<TopicMeta> {
        let topics = self.shared.topics.read();
        topics.by_name.values().map(|t| Self::meta(t)).collect()
    }

    fn delete_topic(&self, name: &str) -> Result<(), LogError> {
        self.shared.check()?;
        let topic = self
            .found(name)
            .ok_or_else(|| LogError::NoTopic(name.to_owned()))?;
        self.shared.control(vec![Entry::Deleted { id: topic.entry.id }])
    }

    fn bounds(&self, partition: PartitionId) -> Result<Bounds, LogError> {
        Ok(self.partition(partition)?.bounds())
    }

    fn read(
        &self,
        partition: PartitionId,
        from: Offset,
        max_bytes: usize,
        out: &mut Vec<Record>,
    ) -> Result<Offset, LogError> {
        let partition = self.partition(partition)?;
        self.shared.read(&partition, from, max_bytes, out)
    }

    fn watch(&self, partition: PartitionId) -> watch::Receiver<Offset> {
        match self.shared.partition(partition) {
            Ok(p) => p.watch.subscribe(),
            // Of a partition that is gone nothing will ever be told: a receiver whose sender is dropped says so.
            Err(_) => watch::Sender::new(0).subscribe(),
        }
    }

    fn append(&self, batch: Batch, done: Done) {
        // The outcome that keeps a record is a little larger than the record, which was as large as allowed then.
        let limit = match batch.reserve {
            true => KEPT_LIMIT,
            false => self.shared.options.max_frame,
        };
        let bytes = batch_cost(&batch);
        let job = match self.shared.check() {
            Err(error) => Job::Refused(error, done),
            Ok(()) if bytes > limit => Job::Refused(LogError::TooLarge { bytes, limit }, done),
            Ok(()) => Job::Batch(batch, done),
        };
        self.shared.enqueue(job);
    }

    fn begin(&self) -> Result<Box<dyn LogTransaction>, LogError> {
        self.shared.check()?;
        if let Some(why) = self.refuses() {
            return Err(self.shared.no_room(why));
        }
        let number = self.shared.next_tx.fetch_add(1, Ordering::AcqRel);
        Ok(Box::new(EmbeddedTransaction::new(
            Arc::clone(&self.shared),
            number,
        )))
    }

    fn committed(&self, group: &str, partition: PartitionId) -> Option<Offset> {
        self.shared.groups.read().get(group)?.get(&partition.0).copied()
    }

    fn offset_at(&self, partition: PartitionId, time: Time) -> Result<Offset, LogError> {
        let partition = self.partition(partition)?;
        self.shared.offset_at(&partition, time)
    }

    fn allow_trim(&self, partition: PartitionId, before: Offset) {
        if let Ok(partition) = self.shared.partition(partition) {
            partition.allow.fetch_max(before, Ordering::AcqRel);
        }
    }

    fn trim(&self, partition: PartitionId, before: Offset) -> Result<(), LogError> {
        let p = self.partition(partition)?;
        let Bounds { first, next } = p.bounds();
        if before > next {
            return Err(LogError::OutOfRange {
                wanted: before,
                first,
                next,
            });
        }
        if before <= first {
            return Ok(());
        }
        self.shared.control(vec![Entry::Trim {
            partition: p.number,
            first: before,
        }])?;
        self.shared.care.nudge();
        Ok(())
    }

    fn stats(&self) -> LogStats {
        let counters = &self.shared.counters;
        let index_bytes = {
            let topics = self.shared.topics.read();
            let indexes = topics.partitions.iter().flatten();
            indexes.map(|p| p.index.read().memory() as u64).sum()
        };
        let segments = self.shared.segments.read();
        let spares = self.shared.spares.lock();
        let idle = spares.ready.len() as u64 * self.shared.options.segment_bytes
            + spares.limbo.iter().map(|s| s.size).sum::<u64>();
        LogStats {
            index_bytes,
            commits: counters.commits.load(Ordering::Relaxed),
            bytes: counters.bytes.load(Ordering::Relaxed),
            sync_us: counters.sync_us.load(Ordering::Relaxed),
            segments: segments.len() as u64,
            disk_bytes: segments.values().map(|s| s.size).sum::<u64>() + idle,
        }
    }

    fn refuses(&self) -> Option<String> {
        self.shared.full.lock().clone()
    }

    fn close(&self) -> Result<(), LogError> {
        self.shared.care.end();
        self.shared.queue.lock().closing = true;
        self.shared.wake.notify_all();
        self.shared.room.notify_all();
        let threads = std::mem::take(&mut *self.threads.lock());
        if threads.is_empty() {
            // Closed before: who does that gives the lock back, or the last of the threads.
            return self.shared.check();
        }
        let own = std::thread::current().id();
        if threads.iter().any(|thread| thread.thread().id() == own) {
            // A callback closes the log, on the writer's own thread. The other one may be waiting for the writer at this
            // moment: to wait for it here would be for ever. Both end behind this, and with the last one goes the lock.
            return self.shared.check();
        }
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!(event = "log_panicked", "a thread of the log has panicked");
            }
        }
        self.shared.lock.lock().take();
        self.shared.check()
    }
}

impl Drop for EmbeddedLog {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::debug!(event = "log_dropped", %error, "the log was dropped after a failure");
        }
    }
}
