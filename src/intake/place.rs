//! Which partition a record on its way in belongs to, and whether it has a message ID: what
//! [`crate::core::identity`] says of it. Pure.

use crate::config::TopicConfig;
use crate::core::identity::{Ambiguous, Content, HeadersOf, Id, Recipe};
use crate::core::pointer::{NotJson, PointerError};
use crate::core::readable_id;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Decides where records of one topic go.
#[derive(Clone, Debug)]
pub struct Placer {
    recipe: Recipe,
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
#[derive(Debug, Default)]
pub struct Place {
    /// Index of the partition; none: it has neither key nor ID, any will do.
    pub partition: Option<u32>,
    /// Whether its content gives it a message ID.
    pub has_id: bool,
    /// Whether it has a key that orders it.
    pub has_key: bool,
    /// A hash of that ID, within its partition.
    pub id_hash: u64,
    /// The ID looks like a number that a spreadsheet has rounded: `1.23457E+17`.
    pub looks_rounded: bool,
    /// What the pointer found that the caller asked for ([`Placer::picking`]).
    pub picked: Option<Vec<u8>>,
    /// The value had to be read as JSON and is not: it has no fields.
    pub not_json: Option<NotJson>,
}

impl Placer {
    /// For a topic with so many partitions.
    ///
    /// # Errors
    /// An invalid pointer in the topic's section; a checked configuration has none.
    pub fn new(topic: &TopicConfig, partitions: u32) -> Result<Self, PointerError> {
        Self::picking(topic, partitions, None)
    }

    /// The same, picking one more value by the way: it becomes the record's key ([`Place::picked`]).
    ///
    /// # Errors
    /// As [`Placer::new`].
    pub fn picking(topic: &TopicConfig, partitions: u32, wanted: Option<&str>) -> Result<Self, PointerError> {
        let watched: Vec<&str> = topic.reads.iter().map(String::as_str).collect();
        let recipe = match wanted {
            Some(pointer) => Recipe::keyed_by(&topic.id, &topic.key, pointer, &watched)?,
            None => Recipe::try_new(&topic.id, &topic.key, &[], &watched)?,
        };
        Ok(Self { recipe, partitions })
    }

    /// Whether values are read as JSON to place them, so that [`Place::not_json`] tells of one that is not.
    pub fn reads_json(&self) -> bool {
        self.recipe.reads_json()
    }

    /// Whether the position is (part of) the message ID: no content gives one then, and none is missing.
    pub fn goes_by_position(&self) -> bool {
        self.recipe.goes_by_position()
    }

    /// The readable message ID that a record's content gives it.
    pub fn readable(&self, record: Incoming<'_>) -> Option<Vec<u8>> {
        let found = self.recipe.identify(content(record)).ok()?;
        let Id::Of(parts) = &found.id else { return None };
        let parts: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
        Some(readable_id::join(&parts))
    }

    /// Places one record.
    ///
    /// # Errors
    /// It has something twice that decides about it.
    pub fn place(&self, record: Incoming<'_>) -> Result<Place, Ambiguous> {
        let found = self.recipe.identify(content(record))?;
        let partition = self.recipe.partition(&found, record.value, self.partitions);
        let (mut id_hash, mut looks_rounded) = (0, false);
        if let Id::Of(parts) = &found.id {
            // For comparisons within one import only, so a quick one will do.
            let mut hasher = DefaultHasher::new();
            partition.hash(&mut hasher);
            parts.hash(&mut hasher);
            id_hash = hasher.finish();
            looks_rounded = parts.iter().any(|part| is_rounded(part));
        }
        Ok(Place {
            partition,
            has_id: matches!(found.id, Id::Of(_)),
            has_key: found.order_key().is_some(),
            id_hash,
            looks_rounded,
            picked: found.own_key.map(std::borrow::Cow::into_owned),
            not_json: found.not_json,
        })
    }
}

fn content(record: Incoming<'_>) -> Content<'_> {
    Content {
        key: record.key,
        value: record.value,
        headers: HeadersOf::Pairs(record.headers),
    }
}

/// Whether a text is a number as spreadsheets write large ones.
fn is_rounded(text: &[u8]) -> bool {
    let Some(at) = text.iter().position(|byte| matches!(byte, b'E' | b'e')) else {
        return false;
    };
    let digits = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let number = text[..at]
        .iter()
        .all(|b| b.is_ascii_digit() || matches!(b, b'.' | b','));
    number && at > 0 && text[at + 1..].strip_prefix(b"+").is_some_and(digits)
}
