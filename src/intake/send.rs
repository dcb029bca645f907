//! One record into a topic: what `send` does, and the admin API for it.

use super::lacks;
use super::place::{Incoming, Placer};
use crate::api::{SendReply, SendRequest};
use crate::clock::Clock;
use crate::config::{Config, DeliverConfig, IdSource, PartnerRef, TopicConfig};
use crate::core::identity::Ambiguous;
use crate::core::mask::Masker;
use crate::core::pointer::PointerError;
use crate::core::readable_id;
use crate::core::record::Headers;
use crate::core::shown::shown_id;
use crate::core::types::Offset;
use crate::log::{Batch, Log, LogError, TopicSpec};

/// Why a record was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The topic has no such partition.
    #[error("topic `{topic}` has partitions 0 to {last}, not {asked}")]
    Partition {
        /// The topic.
        topic: String,
        /// Its last partition.
        last: u32,
        /// What was asked for.
        asked: u32,
    },
    /// The record cannot have the ID that was asked for.
    #[error("the message ID of topic `{topic}` comes from {from}; give it there")]
    Id {
        /// The topic.
        topic: String,
        /// Where its IDs come from.
        from: &'static str,
    },
    /// The record has something twice that decides about it.
    #[error("the record cannot be sent")]
    Ambiguous(#[from] Ambiguous),
    /// An invalid pointer in the topic's section.
    #[error(transparent)]
    Pointer(#[from] PointerError),
    /// No room on the disk.
    #[error("no record is taken at present: {0}")]
    NoRoom(String),
    /// It is longer than the log takes.
    #[error(
        "the record has {bytes} bytes, and the log takes {limit}: a larger log.segment takes more (a quarter of it)"
    )]
    TooLong {
        /// Its size.
        bytes: usize,
        /// The bound.
        limit: usize,
    },
    /// The log refused.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// Puts a message ID where this topic looks for it.
pub fn with_id(mut request: SendRequest, topic: &TopicConfig, id: &str) -> Result<SendRequest, SendError> {
    let from = match topic.id.as_slice() {
        [IdSource::Header(name)] => {
            request.headers.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
            request.headers.push((name.clone(), id.to_owned()));
            return Ok(request);
        }
        [IdSource::Key] => {
            request.key = Some(id.to_owned());
            return Ok(request);
        }
        [IdSource::Json(_)] => "a field of the value",
        [IdSource::Query(_)] => "a parameter of the URL",
        [IdSource::Hash] => "the hash of the value",
        [IdSource::Position] | [] => "the record's position",
        _ => "several sources joined",
    };
    Err(SendError::Id {
        topic: topic.name.clone(),
        from,
    })
}

/// What the partners of a topic hide in lists, as far as their settings say it.
pub fn maskers(config: &Config, topic: &TopicConfig) -> Vec<Masker> {
    let by_record = topic
        .deliver
        .iter()
        .any(|d| matches!(d.partner, PartnerRef::Field(_)));
    let named = |name: &str| {
        let is_it = |d: &DeliverConfig| matches!(&d.partner, PartnerRef::Named(n) if n == name);
        topic.deliver.iter().any(is_it)
    };
    let partners = config.partners.iter();
    let fed = partners.filter(|(name, _)| by_record || named(name));
    fed.map(|(_, partner)| Masker::new(&partner.mask, &[])).collect()
}

/// Appends one record, durably; the topic is made if it is not there. Its ID is answered unless one of the maskers hides
/// it. Blocks.
pub fn send(
    log: &dyn Log,
    topic: &TopicConfig,
    spec: &TopicSpec,
    maskers: &[Masker],
    request: &SendRequest,
) -> Result<SendReply, SendError> {
    // First of all: on a full disk every other reason would mislead.
    if let Some(why) = log.refuses() {
        return Err(SendError::NoRoom(why));
    }
    let meta = match log.topic(&topic.name) {
        Some(meta) => meta,
        None => log.create_topic(&topic.name, spec)?,
    };
    let count = meta.partitions.len() as u32;
    let incoming = Incoming {
        key: request.key.as_ref().map(String::as_bytes),
        value: request.value.as_bytes(),
        headers: &request.headers,
    };
    // A value that is not JSON has no fields, and may still be sent: what becomes of it the topic's rules decide.
    let placer = Placer::new(topic, count)?;
    let placed = placer.place(incoming)?;
    // A record with neither key nor ID may go anywhere.
    let index = request
        .partition
        .or(placed.partition)
        .unwrap_or_else(|| fastrand::u32(..count.max(1)));
    let partition = *meta
        .partitions
        .get(index as usize)
        .ok_or_else(|| SendError::Partition {
            topic: meta.name.clone(),
            last: count.saturating_sub(1),
            asked: index,
        })?;
    let headers = Headers::encode(request.headers.iter().map(|(n, v)| (n.as_str(), v.as_bytes())));
    let mut batch = Batch::new();
    batch.push(partition, Clock::wall(), incoming.key, incoming.value, &headers.0);
    let (told, answer) = std::sync::mpsc::sync_channel(1);
    log.append(
        batch,
        Box::new(move |result| {
            // Nobody waits any more only if this thread is gone.
            let _ = told.send(result);
        }),
    );
    let appended = answer
        .recv()
        .map_err(|_| LogError::Closed)?
        .map_err(|e| match e {
            LogError::TooLarge { bytes, limit } => SendError::TooLong { bytes, limit },
            other => SendError::Log(other),
        })?;
    let offset = appended.bases.first().map_or(0, |(_, base)| *base);
    Ok(SendReply {
        topic: meta.name,
        partition: index,
        offset,
        id: shown(topic, maskers, placer.readable(incoming), offset),
        notes: lacks::of_record(topic, &placed, placer.goes_by_position()),
    })
}

/// The message ID as lists show it; none where a partner's lists hide it, or where it has none before it is dead.
fn shown(
    topic: &TopicConfig,
    maskers: &[Masker],
    readable: Option<Vec<u8>>,
    offset: Offset,
) -> Option<String> {
    match readable {
        Some(readable) => {
            let shown = shown_id(
                &topic.id,
                &readable,
                maskers.first().unwrap_or(&Masker::default()),
            );
            let hidden = |masker: &Masker| shown_id(&topic.id, &readable, masker).is_none();
            shown.filter(|_| !maskers.iter().any(hidden))
        }
        None if topic.id.contains(&IdSource::Position) || topic.id.is_empty() => {
            Some(readable_id::of_position(offset))
        }
        None => Some(readable_id::marked_position(offset)),
    }
}
