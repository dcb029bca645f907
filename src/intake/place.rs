//! Which partition a record belongs to, and whether it has a message ID. Pure.
//!
//! Recipe, never change it: the first eight bytes (little endian) of blake3 over the key, or else over the message
//! ID's parts each followed by a byte 0x1f, modulo the number of partitions.

use crate::config::{IdSource, KeySource, TopicConfig};
use crate::core::pointer::{Extracted, NotJson, PointerError, Pointers};
use smallvec::SmallVec;
use std::borrow::Cow;

/// Decides where records of one topic go.
#[derive(Clone, Debug)]
pub struct Placer {
    id: Vec<IdSource>,
    /// What is picked out of each value, in one pass: the parts of the ID that are pointers, in their order, then
    /// the key if it is one, then what the caller wants.
    pointers: Pointers,
    key: Option<usize>,
    wanted: Option<usize>,
    partitions: u32,
}

/// A record on its way in.
#[derive(Clone, Copy, Debug, Default)]
pub struct Incoming<'a> {
    /// Its key, if it has one.
    pub key: Option<&'a [u8]>,
    /// Its value.
    pub value: &'a [u8],
    /// Its headers.
    pub headers: &'a [(String, String)],
}

/// Where a record goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Index of the partition; none: it has neither key nor ID, any will do.
    pub partition: Option<u32>,
    /// Whether its content gives it a message ID.
    pub has_id: bool,
    /// What the pointer found that the caller asked for ([`Placer::picking`]).
    pub picked: Option<Vec<u8>>,
}

impl Placer {
    /// For a topic with so many partitions.
    ///
    /// # Errors
    /// A pointer in the topic's ID or key that is none; a checked configuration has none.
    pub fn new(topic: &TopicConfig, partitions: u32) -> Result<Self, PointerError> {
        Self::picking(topic, partitions, None)
    }

    /// The same, picking one more value by the way: it becomes the record's key ([`Place::picked`]).
    ///
    /// # Errors
    /// As [`Placer::new`].
    pub fn picking(topic: &TopicConfig, partitions: u32, wanted: Option<&str>) -> Result<Self, PointerError> {
        let mut pointers: Vec<&str> = Vec::new();
        for source in &topic.id {
            if let IdSource::Json(pointer) = source {
                pointers.push(pointer);
            }
        }
        let key = match &topic.key {
            KeySource::Json(pointer) => {
                pointers.push(pointer);
                Some(pointers.len() - 1)
            }
            KeySource::Record => None,
        };
        let wanted = wanted.map(|pointer| {
            pointers.push(pointer);
            pointers.len() - 1
        });
        Ok(Self {
            id: topic.id.clone(),
            pointers: Pointers::compile(&pointers)?,
            key,
            wanted,
            partitions: partitions.max(1),
        })
    }

    /// Whether values are read as JSON to place them: then a value that is none is an error of [`Placer::place`].
    pub fn reads_json(&self) -> bool {
        !self.pointers.is_empty()
    }

    /// Whether the position is (part of) the message ID: no content gives one then, and none is missing.
    pub fn goes_by_position(&self) -> bool {
        self.id.contains(&IdSource::Position)
    }

    /// Places one record.
    ///
    /// # Errors
    /// The value must be read as JSON and is none.
    pub fn place(&self, record: Incoming<'_>) -> Result<Place, NotJson> {
        let mut found: SmallVec<[Option<Extracted<'_>>; 4]> = SmallVec::new();
        found.resize_with(self.pointers.len(), || None);
        if self.reads_json() {
            self.pointers.extract(record.value, &mut found)?;
        }
        let text = |at: usize| found.get(at).and_then(Option::as_ref).map(|e| e.text.as_bytes());
        let picked = self.wanted.and_then(text);
        let record_key = picked.or(record.key);
        let mut hasher = blake3::Hasher::new();
        let mut has_id = !self.id.is_empty();
        let mut next = 0;
        for source in &self.id {
            let part = match source {
                IdSource::Json(_) => {
                    next += 1;
                    text(next - 1).map(Cow::Borrowed)
                }
                IdSource::Key => record_key.map(Cow::Borrowed),
                other => part(other, &record),
            };
            match part {
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
        let key = match self.key {
            Some(at) => text(at),
            None => record_key,
        };
        let hash = match key {
            Some(key) => Some(blake3::hash(key)),
            None => has_id.then(|| hasher.finalize()),
        };
        let partition = hash.map(|hash| {
            let mut head = [0; 8];
            head.copy_from_slice(&hash.as_bytes()[..8]);
            (u64::from_le_bytes(head) % u64::from(self.partitions)) as u32
        });
        Ok(Place {
            partition,
            has_id,
            picked: picked.map(<[u8]>::to_vec),
        })
    }
}

/// One part of the message ID that is not in the JSON; none where the record does not have it.
fn part<'a>(source: &IdSource, record: &Incoming<'a>) -> Option<Cow<'a, [u8]>> {
    match source {
        IdSource::Header(name) => {
            let found = record.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
            found.map(|(_, v)| Cow::Borrowed(v.as_bytes()))
        }
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
        // A position is known only after the record has been placed; the others are read by the caller.
        IdSource::Position | IdSource::Key | IdSource::Json(_) => None,
    }
}
