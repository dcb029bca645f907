//! Which files were imported: the internal topic `__imports`, one partition, one JSON record an import, written in
//! the import's own transaction. So a file is in the registry if and only if its records are in the topic.

use super::source::Identity;
use crate::core::record::Record;
use crate::core::types::{Offset, Time, TopicId};
use crate::log::{Log, LogError, PartitionId, TopicMeta, TopicSpec};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::time::Duration;

/// Name of the registry's topic.
pub const TOPIC: &str = "__imports";
/// A file is known again for so long.
const MEMORY: Duration = Duration::from_secs(400 * 86_400);
const READ_BYTES: usize = 1 << 20;

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
    /// The last line's number.
    pub lines: u64,
    /// Lines that became records.
    pub accepted: u64,
    /// Lines that could not.
    pub rejected: u64,
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
            accepted: 0,
            rejected: 0,
            name: name.to_owned(),
            at: at.to_string(),
        }
    }
}

fn hex(id: TopicId) -> String {
    format!("{:032x}", id.0)
}

/// What has been read of the registry. Reading on is cheap; it is done before every decision.
#[derive(Debug, Default)]
pub(super) struct Registry {
    place: Option<(TopicId, PartitionId)>,
    next: Offset,
    known: HashMap<(String, String), Entry>,
}

impl Registry {
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
                ..Self::default()
            };
        }
        let bounds = log.bounds(partition)?;
        self.next = self.next.max(bounds.first);
        let mut records: Vec<Record> = Vec::new();
        while self.next < bounds.next {
            let next = log.read(partition, self.next, READ_BYTES, &mut records)?;
            for record in records.drain(..) {
                // An entry of a later version still has these fields; what is none is none of ours.
                if let Ok(entry) = serde_json::from_slice::<Entry>(&record.value) {
                    self.known
                        .insert((entry.topic_id.clone(), entry.hash.clone()), entry);
                }
            }
            if next <= self.next {
                break;
            }
            self.next = next;
        }
        Ok(partition)
    }

    /// The import of this content into this incarnation of the topic, if there was one.
    pub(super) fn find(&self, topic: TopicId, identity: &Identity) -> Option<&Entry> {
        self.known.get(&(hex(topic), identity.hash.to_hex().to_string()))
    }
}
