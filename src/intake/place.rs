//! Which partition a record belongs to, and whether it has a message ID. Pure.
//!
//! Recipe, never change it: the first eight bytes (little endian) of blake3 over the key, or else over the message
//! ID's parts each followed by a byte 0x1f, modulo the number of partitions.

use crate::config::{IdSource, KeySource, TopicConfig};
use serde_json::Value;
use std::borrow::Cow;

/// Decides where records of one topic go.
#[derive(Clone, Debug)]
pub struct Placer {
    id: Vec<IdSource>,
    key: KeySource,
    partitions: u32,
}

/// A record on its way in.
#[derive(Clone, Copy, Debug, Default)]
pub struct Incoming<'a> {
    /// Its key, if it has one.
    pub key: Option<&'a [u8]>,
    /// Its value.
    pub value: &'a [u8],
    /// Its value parsed, if it is JSON and somebody has parsed it; it is parsed here where it is needed and missing.
    pub json: Option<&'a Value>,
    /// Its headers.
    pub headers: &'a [(String, String)],
}

/// Where a record goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the partition; none: it has neither key nor ID, any will do.
    pub partition: Option<u32>,
    /// Whether its content gives it a message ID.
    pub has_id: bool,
}

impl Placer {
    /// For a topic with so many partitions.
    pub fn new(topic: &TopicConfig, partitions: u32) -> Self {
        Self {
            id: topic.id.clone(),
            key: topic.key.clone(),
            partitions: partitions.max(1),
        }
    }

    /// Whether values must be parsed as JSON to place them.
    pub fn reads_json(&self) -> bool {
        matches!(self.key, KeySource::Json(_)) || self.id.iter().any(|s| matches!(s, IdSource::Json(_)))
    }

    /// Places one record.
    pub fn place(&self, record: Incoming<'_>) -> Place {
        let parsed;
        let json = match record.json {
            None if self.reads_json() => {
                parsed = serde_json::from_slice(record.value).unwrap_or_default();
                &parsed
            }
            given => given.unwrap_or(&Value::Null),
        };
        let mut hasher = blake3::Hasher::new();
        let mut has_id = !self.id.is_empty();
        for source in &self.id {
            match part(source, &record, json) {
                Some(text) => {
                    hasher.update(&text);
                    hasher.update(&[0x1f]);
                }
                None => {
                    has_id = false;
                    break;
                }
            }
        }
        let key = match &self.key {
            KeySource::Record => record.key.map(Cow::Borrowed),
            KeySource::Json(pointer) => text_of(json.pointer(pointer)),
        };
        let hash = match key {
            Some(key) => Some(blake3::hash(&key)),
            None => has_id.then(|| hasher.finalize()),
        };
        let partition = hash.map(|hash| {
            let mut head = [0; 8];
            head.copy_from_slice(&hash.as_bytes()[..8]);
            (u64::from_le_bytes(head) % u64::from(self.partitions)) as u32
        });
        Place { partition, has_id }
    }
}

/// One part of the message ID; none where the record does not have it.
fn part<'a>(source: &IdSource, record: &Incoming<'a>, json: &'a Value) -> Option<Cow<'a, [u8]>> {
    match source {
        IdSource::Header(name) => {
            let found = record.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
            found.map(|(_, v)| Cow::Borrowed(v.as_bytes()))
        }
        IdSource::Json(pointer) => text_of(json.pointer(pointer)),
        IdSource::Key => record.key.map(Cow::Borrowed),
        IdSource::Hash => Some(Cow::Borrowed(record.value)),
        IdSource::Query(name) => {
            let url = std::str::from_utf8(record.value).ok()?;
            let (_, query) = url.split_once('?')?;
            let query = query.split('#').next().unwrap_or(query);
            let mut pairs = url::form_urlencoded::parse(query.as_bytes());
            pairs
                .find(|(n, _)| n == name)
                .map(|(_, v)| Cow::Owned(v.into_owned().into_bytes()))
        }
        // Known only after the record has been placed.
        IdSource::Position => None,
    }
}

/// A JSON value as the text that identifies it; none for null and what is not there.
fn text_of(value: Option<&Value>) -> Option<Cow<'_, [u8]>> {
    match value? {
        Value::Null => None,
        Value::String(text) => Some(Cow::Borrowed(text.as_bytes())),
        other => Some(Cow::Owned(other.to_string().into_bytes())),
    }
}
