//! Which files were imported: the internal topic `__imports`, one partition, one JSON record an import, written in
//! the import's own transaction. So a file is in the registry if and only if its records are in the topic.
//!
//! Memory is bounded (I6): the youngest [`RECENT`] imports are known exactly, by a hash of topic and content and the
//! offset of their entry. Older ones are in a filter of fixed size; where it says "perhaps", their part of the topic is
//! read. What the registry promises (no content twice within [`MEMORY`]) does not depend on how many imports there are.

use super::source::Identity;
use crate::api::RejectedLine;
use crate::core::record::Record;
use crate::core::types::{Offset, Time, TopicId};
use crate::log::{Log, LogError, PartitionId, TopicMeta, TopicSpec};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// Name of the registry's topic.
pub const TOPIC: &str = "__imports";
/// A file is known again for so long.
const MEMORY: Duration = Duration::from_secs(400 * 86_400);
const READ_BYTES: usize = 1 << 20;
/// Imports that are known exactly.
const RECENT: usize = 50_000;
/// Words of the filter over older ones: 1 MiB, good for half a million of them before it says "perhaps" too often.
const FILTER_WORDS: usize = 1 << 17;
/// Bits that an import sets in the filter.
const FILTER_BITS: usize = 6;
/// Bytes that a recent import holds: both tables, with room to grow.
const RECENT_BYTES: usize = 160;
/// Beginnings of a file that are compared with those of earlier files.
const BEGINNINGS: usize = 10_000;

/// One import, as it is registered. Fields may be added, never renamed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Version of this form: 1.
    pub v: u32,
    /// The topic's name.
    pub topic: String,
    /// The topic's incarnation, hex.
    pub topic_id: String,
    /// blake3 of the unpacked content, hex.
    pub hash: String,
    /// Bytes of the unpacked content.
    pub size: u64,
    /// The number of the last line; of JSON that is not one value a line, of the last element.
    pub lines: u64,
    /// How it was read: `jsonl`, `json`, `csv` or `urls`. Entries of earlier versions do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// Between the fields of CSV.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delimiter: Option<char>,
    /// Lines that became records.
    pub accepted: u64,
    /// Lines that could not.
    pub rejected: u64,
    /// The first of them, and why. Entries of earlier versions do not say it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rejects: Vec<RejectedLine>,
    /// The file that holds all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reject_file: Option<String>,
    /// The file's name.
    pub name: String,
    /// When, RFC 3339.
    pub at: String,
}

impl Entry {
    /// The entry of an import of this content into this topic.
    pub(super) fn new(topic: &TopicMeta, identity: &Identity, name: &str, at: Time) -> Self {
        Self {
            v: 1,
            topic: topic.name.clone(),
            topic_id: hex(topic.id),
            hash: identity.hash.to_hex().to_string(),
            size: identity.size,
            lines: 0,
            format: None,
            delimiter: None,
            accepted: 0,
            rejected: 0,
            rejects: Vec::new(),
            reject_file: None,
            name: name.to_owned(),
            at: at.to_string(),
        }
    }
}

fn hex(id: TopicId) -> String {
    format!("{:032x}", id.0)
}

/// Topic and content in 16 bytes: enough that no two imports ever share it.
type Key = [u8; 16];

fn key(topic_id: &str, hash: &str) -> Key {
    let mut hasher = blake3::Hasher::new();
    hasher.update(topic_id.as_bytes());
    hasher.update(hash.as_bytes());
    let mut key = [0; 16];
    key.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    key
}

/// A recent import.
#[derive(Clone, Copy, Debug)]
struct Known {
    offset: Offset,
    topic: u64,
    size: u64,
    accepted: bool,
}

/// The part of a topic's ID that keeps its imports apart from those of other topics.
fn topic_of(id: &str) -> u64 {
    let hash = blake3::hash(id.as_bytes());
    let mut head = [0; 8];
    head.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(head)
}

/// What has been read of the registry. Reading on is cheap; it is done before every decision.
#[derive(Debug)]
pub(super) struct Registry {
    place: Option<(TopicId, PartitionId)>,
    next: Offset,
    recent: HashMap<Key, Known>,
    /// The keys of `recent` in the order of their offsets; those that were imported again stand here more than once.
    order: VecDeque<(Offset, Key)>,
    /// Of imports that are not recent any more; empty before there is one.
    older: Vec<u64>,
    bound: usize,
}

impl Default for Registry {
    fn default() -> Self {
        Self::with_bound(RECENT)
    }
}

impl Registry {
    /// One that knows so many imports exactly.
    pub(super) fn with_bound(bound: usize) -> Self {
        Self {
            place: None,
            next: 0,
            recent: HashMap::new(),
            order: VecDeque::new(),
            older: Vec::new(),
            bound,
        }
    }

    /// Reads what has come since the last time; makes the topic if there is none. Answers its partition.
    pub(super) fn refresh(&mut self, log: &dyn Log) -> Result<PartitionId, LogError> {
        let spec = TopicSpec {
            partitions: 1,
            retention: Some(MEMORY),
            retention_bytes: None,
        };
        let topic = match log.topic(TOPIC) {
            Some(topic) => topic,
            None => log.create_topic(TOPIC, &spec)?,
        };
        let partition = *topic
            .partitions
            .first()
            .ok_or_else(|| LogError::NoTopic(TOPIC.into()))?;
        if self.place != Some((topic.id, partition)) {
            *self = Self {
                place: Some((topic.id, partition)),
                ..Self::with_bound(self.bound)
            };
        }
        let first = log.bounds(partition)?.first;
        // What the topic does not hold any more is forgotten.
        while self.order.front().is_some_and(|(offset, _)| *offset < first) {
            self.drop_oldest();
        }
        let from = self.next.max(first);
        self.next = each(log, partition, from, None, &mut |offset, entry| {
            self.note(offset, &entry)
        })?;
        Ok(partition)
    }

    fn note(&mut self, offset: Offset, entry: &Entry) {
        let key = key(&entry.topic_id, &entry.hash);
        let known = Known {
            offset,
            topic: topic_of(&entry.topic_id),
            size: entry.size,
            accepted: entry.accepted > 0,
        };
        self.recent.insert(key, known);
        self.order.push_back((offset, key));
        while self.order.len() > self.bound {
            if let Some(key) = self.drop_oldest() {
                if self.older.is_empty() {
                    self.older = vec![0; FILTER_WORDS];
                }
                for bit in bits(&key) {
                    self.older[bit / 64] |= 1 << (bit % 64);
                }
            }
        }
    }

    /// Takes the oldest out of those known exactly; answers its key unless it was imported again since.
    fn drop_oldest(&mut self) -> Option<Key> {
        let (offset, key) = self.order.pop_front()?;
        let newest = self.recent.get(&key).is_some_and(|known| known.offset == offset);
        newest.then(|| {
            self.recent.remove(&key);
            key
        })
    }

    /// Bytes held in memory.
    pub(super) fn held_bytes(&self) -> usize {
        self.order.len() * RECENT_BYTES + self.older.len() * 8
    }

    /// The import of this content into this incarnation of the topic, if there was one.
    pub(super) fn find(
        &self,
        log: &dyn Log,
        topic: TopicId,
        identity: &Identity,
    ) -> Result<Option<Entry>, LogError> {
        let (Some((_, partition)), topic, hash) = (self.place, hex(topic), identity.hash.to_hex()) else {
            return Ok(None);
        };
        let key = key(&topic, &hash);
        let is_it = |entry: &Entry| entry.topic_id == topic && *entry.hash == *hash;
        let (from, until) = match self.recent.get(&key) {
            Some(known) => (known.offset, known.offset + 1),
            None if self.perhaps(&key) => {
                let until = self.order.front().map_or(self.next, |(offset, _)| *offset);
                (log.bounds(partition)?.first, until)
            }
            None => return Ok(None),
        };
        let mut found = None;
        each(log, partition, from, Some(until), &mut |_, entry| {
            if is_it(&entry) {
                found = Some(entry);
            }
        })?;
        Ok(found)
    }

    fn perhaps(&self, key: &Key) -> bool {
        !self.older.is_empty() && bits(key).all(|bit| self.older[bit / 64] & (1 << (bit % 64)) != 0)
    }

    /// Sizes of recent imports into this topic that are no larger than this, rising: a file that begins with one of
    /// them has grown since. The youngest ones, where there are very many.
    pub(super) fn sizes(&self, topic: TopicId) -> Vec<u64> {
        let topic = topic_of(&hex(topic));
        let youngest = self.order.iter().rev();
        let of_topic = youngest.filter_map(|(offset, key)| {
            let known = self.recent.get(key)?;
            (known.offset == *offset && known.topic == topic && known.accepted).then_some(known.size)
        });
        let mut sizes: Vec<u64> = of_topic.filter(|size| *size > 0).take(BEGINNINGS).collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    /// Whether a beginning of a file is a recent import.
    pub(super) fn is_recent(&self, topic: TopicId, beginning: &Identity) -> bool {
        self.recent
            .contains_key(&key(&hex(topic), &beginning.hash.to_hex()))
    }
}

/// The youngest imports of files of this name, the youngest first: at most so many, looked for among so many.
const NAMED: usize = 20;
const NAMED_AMONG: u64 = 100_000;

/// Imports of files of this name, the youngest first. Of very many imports the older ones are not looked at.
///
/// # Errors
/// The registry cannot be read.
pub fn imports_named(log: &dyn Log, name: &str) -> Result<Vec<Entry>, LogError> {
    let topic = log.topic(TOPIC);
    let Some(partition) = topic.and_then(|topic| topic.partitions.first().copied()) else {
        return Ok(Vec::new());
    };
    let from = log.bounds(partition)?.next.saturating_sub(NAMED_AMONG);
    let mut found = VecDeque::new();
    each(log, partition, from, None, &mut |_, entry| {
        if entry.name == name {
            found.truncate(NAMED - 1);
            found.push_front(entry);
        }
    })?;
    Ok(found.into())
}

/// The bits of a key in the filter: two halves of the key step through it.
fn bits(key: &Key) -> impl Iterator<Item = usize> {
    let half = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&key[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    let (first, step) = (half(0), half(8) | 1);
    (0..FILTER_BITS as u64)
        .map(move |n| (first.wrapping_add(n.wrapping_mul(step)) % (FILTER_WORDS as u64 * 64)) as usize)
}

/// Hands over the entries from an offset on; answers the offset to go on at.
fn each(
    log: &dyn Log,
    partition: PartitionId,
    from: Offset,
    until: Option<Offset>,
    take: &mut dyn FnMut(Offset, Entry),
) -> Result<Offset, LogError> {
    let bounds = log.bounds(partition)?;
    let until = until.unwrap_or(bounds.next).min(bounds.next);
    let mut at = from.max(bounds.first);
    let mut records: Vec<Record> = Vec::new();
    while at < until {
        let next = log.read(partition, at, READ_BYTES, &mut records)?;
        for record in records.drain(..).filter(|record| record.offset < until) {
            // An entry of a later version still has these fields; anything else is not an entry.
            if let Ok(entry) = serde_json::from_slice::<Entry>(&record.value) {
                take(record.offset, entry);
            }
        }
        if next <= at {
            break;
        }
        at = next;
    }
    Ok(at)
}
