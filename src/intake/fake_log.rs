//! An in-memory log for tests, which can fail at any step of a transaction.

use crate::core::record::{Headers, Record};
use crate::core::types::{Offset, Time, TopicId};
use crate::log::batch::{NO_KEY, RECORD_HEAD};
use crate::log::{
    Appended, Batch, Bounds, Done, Log, LogError, LogStats, LogTransaction, PartitionId, TopicMeta, TopicSpec,
};
use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// Where a transaction breaks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Break {
    /// Never.
    Never,
    /// At its n-th append, from 0.
    Append(usize),
    /// Before the commit does anything.
    BeforeCommit,
    /// After the commit is durable, before it answers.
    AfterCommit,
}

#[derive(Default)]
struct State {
    topics: Vec<TopicMeta>,
    partitions: Vec<Vec<Record>>,
    breaks: Option<Break>,
    refuses: Option<String>,
    begun: usize,
    read: HashMap<PartitionId, usize>,
    /// Where partitions begin that were trimmed.
    first: HashMap<PartitionId, Offset>,
}

/// The log. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct FakeLog(Arc<Mutex<State>>);

impl FakeLog {
    /// The next transactions break here.
    pub(crate) fn breaks(&self, at: Break) {
        self.0.lock().breaks = Some(at);
    }
    /// From now on there is no room.
    pub(crate) fn refuse(&self, why: &str) {
        self.0.lock().refuses = Some(why.to_owned());
    }
    /// Records of a partition that were read so far.
    pub(crate) fn read_count(&self, p: PartitionId) -> usize {
        self.0.lock().read.get(&p).copied().unwrap_or(0)
    }
    /// Transactions begun so far.
    pub(crate) fn begun(&self) -> usize {
        self.0.lock().begun
    }
    /// All records of a topic, partition by partition.
    pub(crate) fn all(&self, topic: &str) -> Vec<Vec<Record>> {
        let state = self.0.lock();
        let meta = state.topics.iter().find(|t| t.name == topic);
        meta.map_or_else(Vec::new, |t| {
            t.partitions
                .iter()
                .map(|p| state.partitions[p.0 as usize].clone())
                .collect()
        })
    }
}

fn failed() -> LogError {
    LogError::Failed {
        path: "fake".into(),
        detail: "broken on purpose".into(),
    }
}

fn apply(state: &mut State, batch: Batch) -> Appended {
    let mut bases = Vec::new();
    for section in batch.sections {
        let records = &mut state.partitions[section.partition.0 as usize];
        bases.push((section.partition, records.len() as Offset));
        let mut bytes: Bytes = section.bytes.freeze();
        for _ in 0..section.count {
            let mut head = bytes.split_to(RECORD_HEAD);
            let timestamp = Time(head.get_u64_le());
            let (key, value, headers) = (head.get_u32_le(), head.get_u32_le(), head.get_u32_le());
            let key = (key != NO_KEY).then(|| bytes.split_to(key as usize));
            let value = bytes.split_to(value as usize);
            let headers = Headers(bytes.split_to(headers as usize));
            records.push(Record {
                offset: records.len() as Offset,
                timestamp,
                key,
                value,
                headers,
            });
        }
    }
    Appended { bases }
}

struct FakeTransaction {
    log: FakeLog,
    parts: Vec<Batch>,
}

impl LogTransaction for FakeTransaction {
    fn append(&mut self, batch: Batch) -> Result<(), LogError> {
        if self.log.0.lock().breaks == Some(Break::Append(self.parts.len())) {
            return Err(failed());
        }
        self.parts.push(batch);
        Ok(())
    }
    fn commit(mut self: Box<Self>, last: Batch) -> Result<Appended, LogError> {
        let mut state = self.log.0.lock();
        if state.breaks == Some(Break::BeforeCommit) {
            return Err(failed());
        }
        let mut appended = Appended { bases: Vec::new() };
        self.parts.push(last);
        for part in std::mem::take(&mut self.parts) {
            appended.bases.extend(apply(&mut state, part).bases);
        }
        if state.breaks == Some(Break::AfterCommit) {
            return Err(failed());
        }
        Ok(appended)
    }
}

impl Log for FakeLog {
    fn create_topic(&self, name: &str, spec: &TopicSpec) -> Result<TopicMeta, LogError> {
        let mut state = self.0.lock();
        let id = TopicId(state.topics.len() as u128 + 1);
        let first = state.partitions.len() as u32;
        let partitions: Vec<_> = (first..first + spec.partitions).map(PartitionId).collect();
        state
            .partitions
            .resize_with(partitions.len() + first as usize, Vec::new);
        let meta = TopicMeta {
            name: name.into(),
            id,
            spec: spec.clone(),
            partitions,
        };
        state.topics.push(meta.clone());
        Ok(meta)
    }
    fn topic(&self, name: &str) -> Option<TopicMeta> {
        self.0.lock().topics.iter().find(|t| t.name == name).cloned()
    }
    fn topics(&self) -> Vec<TopicMeta> {
        self.0.lock().topics.clone()
    }
    fn delete_topic(&self, name: &str) -> Result<(), LogError> {
        let mut state = self.0.lock();
        state
            .topics
            .iter_mut()
            .filter(|t| t.name == name)
            .for_each(|t| t.name.push_str(" (deleted)"));
        Ok(())
    }
    fn bounds(&self, partition: PartitionId) -> Result<Bounds, LogError> {
        let state = self.0.lock();
        Ok(Bounds {
            first: state.first.get(&partition).copied().unwrap_or(0),
            next: state.partitions[partition.0 as usize].len() as Offset,
        })
    }
    fn read(
        &self,
        p: PartitionId,
        from: Offset,
        _: usize,
        out: &mut Vec<Record>,
    ) -> Result<Offset, LogError> {
        // One at a time: whoever reads must go on by itself.
        let mut state = self.0.lock();
        let first = state.first.get(&p).copied().unwrap_or(0);
        if from < first {
            return Err(LogError::OutOfRange {
                wanted: from,
                first,
                next: state.partitions[p.0 as usize].len() as Offset,
            });
        }
        let record = state.partitions[p.0 as usize].get(from as usize).cloned();
        let got = usize::from(record.is_some());
        *state.read.entry(p).or_default() += got;
        out.extend(record);
        Ok(from + got as u64)
    }
    fn watch(&self, _: PartitionId) -> tokio::sync::watch::Receiver<Offset> {
        tokio::sync::watch::channel(0).1
    }
    fn append(&self, batch: Batch, done: Done) {
        let appended = apply(&mut self.0.lock(), batch);
        done(Ok(appended));
    }
    fn begin(&self) -> Result<Box<dyn LogTransaction>, LogError> {
        self.0.lock().begun += 1;
        Ok(Box::new(FakeTransaction {
            log: self.clone(),
            parts: Vec::new(),
        }))
    }
    fn committed(&self, _: &str, _: PartitionId) -> Option<Offset> {
        None
    }
    fn offset_at(&self, _: PartitionId, _: Time) -> Result<Offset, LogError> {
        Ok(0)
    }
    fn allow_trim(&self, _: PartitionId, _: Offset) {}
    fn trim(&self, partition: PartitionId, to: Offset) -> Result<(), LogError> {
        self.0.lock().first.insert(partition, to);
        Ok(())
    }
    fn stats(&self) -> LogStats {
        LogStats::default()
    }
    fn refuses(&self) -> Option<String> {
        self.0.lock().refuses.clone()
    }
    fn close(&self) -> Result<(), LogError> {
        Ok(())
    }
}

/// All values of a topic, sorted.
pub(crate) fn values(log: &FakeLog, topic: &str) -> Vec<String> {
    let all = log.all(topic).into_iter().flatten();
    let mut values: Vec<String> = all
        .map(|r| String::from_utf8_lossy(&r.value).into_owned())
        .collect();
    values.sort();
    values
}

/// How often each value is there.
pub(crate) fn counts(log: &FakeLog, topic: &str) -> HashMap<String, usize> {
    values(log, topic)
        .into_iter()
        .fold(HashMap::new(), |mut counts, value| {
            *counts.entry(value).or_default() += 1;
            counts
        })
}
