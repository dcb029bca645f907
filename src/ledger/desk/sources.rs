//! What the desk reads from: the store of finished IDs, and the ledger with its input topics. Small traits, so that
//! the desk's rules are testable without either.

use crate::api::ApiError;
use crate::api::messages::{BucketRow, DedupStats};
use crate::core::in_full::in_full;
use crate::core::ledger::codec;
use crate::core::ledger::entry::Entry;
use crate::core::ledger::fold::{Finished, FinishedState};
use crate::core::record::Record;
use crate::core::types::{MessageId, Offset, RoutePartition, Time, TopicId};
use crate::dedup::IdFilter;
use crate::intake::import::{Entry as Import, imports_named};
use crate::ledger::keeper::Keeper;
use crate::log::{Log, LogError, PartitionId};
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Which finished IDs a list wants.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Of these route partitions.
    pub places: HashSet<RoutePartition>,
    /// In these states; none: all.
    pub states: Option<HashSet<FinishedState>>,
    /// Finished at this time or later.
    pub since: Option<Time>,
    /// Finished before this time.
    pub until: Option<Time>,
}

/// The store of finished IDs.
pub trait Memory: Send + Sync {
    /// What is remembered of an ID.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn get(&self, at: RoutePartition, id: MessageId) -> Result<Option<Finished>, ApiError>;
    /// Of which route and partition a remembered ID is.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn holder(&self, id: MessageId) -> Result<Option<RoutePartition>, ApiError>;
    /// Walks through what is remembered, newest first, as far as the visitor goes.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn each(
        &self,
        wanted: &Wanted,
        visit: &mut dyn FnMut(Finished) -> ControlFlow<()>,
    ) -> Result<(), ApiError>;
    /// Its figures, without messages by state.
    fn stats(&self) -> DedupStats;
}

/// The ledger's entries, and records of input topics.
pub trait Entries: Send + Sync {
    /// First and next offset of the ledger.
    ///
    /// # Errors
    /// If the log cannot be read.
    fn bounds(&self) -> Result<(Offset, Offset), ApiError>;
    /// Encoded entries from `from` on, a bounded number of bytes of them, and where to go on. None: the end.
    ///
    /// # Errors
    /// If the log cannot be read.
    fn read(&self, from: Offset, out: &mut Vec<(Offset, bytes::Bytes)>) -> Result<Option<Offset>, ApiError>;
    /// One entry. None: it was trimmed.
    ///
    /// # Errors
    /// If the log cannot be read, or the entry is damaged.
    fn entry(&self, at: Offset) -> Result<Option<Entry>, ApiError>;
    /// One record of an input topic. None: it is not there (any more).
    fn record(&self, topic: &str, partition: u32, offset: Offset) -> Option<Record>;
    /// Next offset of a partition of an input topic, and its first readable one. None: no such partition.
    fn input_bounds(&self, topic: &str, partition: u32) -> Option<(Offset, Offset)>;
    /// Names of the input topics.
    fn topics(&self) -> Vec<String>;
    /// Incarnation and number of partitions of an input topic.
    fn topic(&self, name: &str) -> Option<(TopicId, u32)>;
    /// Records of an input topic from `from` on, about so many bytes of them, and where to go on. None: the end.
    ///
    /// # Errors
    /// If the log cannot be read.
    fn records(
        &self,
        topic: &str,
        partition: u32,
        from: Offset,
        bytes: usize,
        out: &mut Vec<Record>,
    ) -> Result<Option<Offset>, ApiError>;
    /// The first record of a partition that may be of this time or later.
    fn offset_at(&self, topic: &str, partition: u32, time: Time) -> Option<Offset>;
    /// Imports of files of this name, the youngest first.
    ///
    /// # Errors
    /// If the log cannot be read.
    fn imports(&self, name: &str) -> Result<Vec<Import>, ApiError>;
}

impl Memory for Keeper {
    fn get(&self, at: RoutePartition, id: MessageId) -> Result<Option<Finished>, ApiError> {
        self.store()
            .get(at, id)
            .map_err(|e| ApiError::Internal(in_full(&e)))
    }

    fn holder(&self, id: MessageId) -> Result<Option<RoutePartition>, ApiError> {
        self.store()
            .holder(id)
            .map_err(|e| ApiError::Internal(in_full(&e)))
    }

    fn each(
        &self,
        wanted: &Wanted,
        visit: &mut dyn FnMut(Finished) -> ControlFlow<()>,
    ) -> Result<(), ApiError> {
        let filter = IdFilter {
            at: Some(wanted.places.clone()),
            states: wanted.states.clone(),
            from: wanted.since,
            to: wanted.until,
            prefix: None,
        };
        self.store()
            .iterate(&filter, visit)
            .map_err(|e| ApiError::Internal(in_full(&e)))
    }

    fn stats(&self) -> DedupStats {
        let stats = self.store().stats();
        let buckets: Vec<BucketRow> = stats
            .buckets
            .iter()
            .map(|b| BucketRow {
                from: b.from.to_string(),
                to: b.to.to_string(),
                sealed: b.sealed,
                ids: b.records,
                disk_bytes: b.disk_bytes,
                memory_bytes: b.filter_bytes,
            })
            .collect();
        let ids = buckets.iter().map(|b| b.ids).sum::<u64>() + stats.in_memory;
        DedupStats {
            ids,
            disk_bytes: stats.disk_bytes,
            memory_bytes: stats.filter_bytes + stats.cache_bytes,
            bytes_per_id: if ids == 0 {
                0.0
            } else {
                stats.disk_bytes as f64 / ids as f64
            },
            buckets,
            seal_refuses: stats.seal_refuses,
            messages: Vec::new(),
        }
    }
}

/// [`Entries`] of a log.
#[derive(Clone)]
pub struct LogEntries {
    log: Arc<dyn Log>,
    ledger: PartitionId,
}

/// Bytes of one read of a scan.
const CHUNK: usize = 1 << 20;

impl LogEntries {
    /// The ledger is this partition of this log.
    pub fn new(log: Arc<dyn Log>, ledger: PartitionId) -> Self {
        Self { log, ledger }
    }

    fn partition(&self, topic: &str, partition: u32) -> Option<PartitionId> {
        self.log.topic(topic)?.partitions.get(partition as usize).copied()
    }
}

fn unreadable(error: &LogError) -> ApiError {
    ApiError::Internal(format!("cannot read the log: {}", in_full(error)))
}

impl Entries for LogEntries {
    fn bounds(&self) -> Result<(Offset, Offset), ApiError> {
        let bounds = self.log.bounds(self.ledger).map_err(|e| unreadable(&e))?;
        Ok((bounds.first, bounds.next))
    }

    fn read(&self, from: Offset, out: &mut Vec<(Offset, bytes::Bytes)>) -> Result<Option<Offset>, ApiError> {
        let (first, next) = self.bounds()?;
        // What was trimmed since is not told; the lane never moves back.
        let from = from.max(first);
        if from >= next {
            return Ok(None);
        }
        let mut records = Vec::new();
        let go_on = self
            .log
            .read(self.ledger, from, CHUNK, &mut records)
            .map_err(|e| unreadable(&e))?;
        out.extend(records.into_iter().map(|r| (r.offset, r.value)));
        Ok((go_on > from).then_some(go_on))
    }

    fn entry(&self, at: Offset) -> Result<Option<Entry>, ApiError> {
        let mut records = Vec::new();
        match self.log.read(self.ledger, at, 1, &mut records) {
            Ok(_) => {}
            Err(LogError::OutOfRange { .. }) => return Ok(None),
            Err(e) => return Err(unreadable(&e)),
        }
        match records.into_iter().find(|r| r.offset == at) {
            Some(record) => codec::decode(&record.value)
                .map(Some)
                .map_err(|e| ApiError::Internal(format!("ledger entry {at}: {e}"))),
            None => Ok(None),
        }
    }

    fn record(&self, topic: &str, partition: u32, offset: Offset) -> Option<Record> {
        let partition = self.partition(topic, partition)?;
        let mut records = Vec::new();
        self.log.read(partition, offset, 1, &mut records).ok()?;
        records.into_iter().find(|r| r.offset == offset)
    }

    fn input_bounds(&self, topic: &str, partition: u32) -> Option<(Offset, Offset)> {
        let bounds = self.log.bounds(self.partition(topic, partition)?).ok()?;
        Some((bounds.first, bounds.next))
    }

    fn topics(&self) -> Vec<String> {
        let names = self.log.topics().into_iter().map(|topic| topic.name);
        names.filter(|name| !name.starts_with("__")).collect()
    }

    fn topic(&self, name: &str) -> Option<(TopicId, u32)> {
        let meta = self.log.topic(name)?;
        Some((meta.id, meta.partitions.len() as u32))
    }

    fn records(
        &self,
        topic: &str,
        partition: u32,
        from: Offset,
        bytes: usize,
        out: &mut Vec<Record>,
    ) -> Result<Option<Offset>, ApiError> {
        let Some(partition) = self.partition(topic, partition) else {
            return Ok(None);
        };
        let bounds = self.log.bounds(partition).map_err(|e| unreadable(&e))?;
        let from = from.max(bounds.first);
        if from >= bounds.next {
            return Ok(None);
        }
        match self.log.read(partition, from, bytes, out) {
            Ok(go_on) => Ok((go_on > from).then_some(go_on)),
            // Retention was faster.
            Err(LogError::OutOfRange { .. }) => Ok(None),
            Err(e) => Err(unreadable(&e)),
        }
    }

    fn offset_at(&self, topic: &str, partition: u32, time: Time) -> Option<Offset> {
        self.log.offset_at(self.partition(topic, partition)?, time).ok()
    }

    fn imports(&self, name: &str) -> Result<Vec<Import>, ApiError> {
        imports_named(self.log.as_ref(), name).map_err(|e| unreadable(&e))
    }
}
