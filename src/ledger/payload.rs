//! Single entries of a lane: the kept payload behind a message, the key under which its round is sent.
//!
//! The fold remembers *where* a payload lies ([`crate::core::ledger::fold::Message::payload`]), and which entry
//! opened a round ([`crate::core::ledger::fold::Message::opened`]); here it is read when a retry, a replay or an
//! operator needs it. The story of a message is the desk's ([`super::desk`]).

use crate::core::ledger::codec::{self, CodecError};
use crate::core::ledger::entry::{Body, Entry, Kept, OutcomeKind};
use crate::core::types::{MessageId, Offset, RoutePartition};
use crate::log::{Log, LogError, PartitionId};

/// A message as the ledger keeps it.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptMessage {
    /// Route and partition.
    pub at: RoutePartition,
    /// Which message.
    pub id: MessageId,
    /// Position of its record.
    pub offset: Offset,
    /// The round in which it was kept.
    pub round: u32,
    /// Attempts made in that round then.
    pub attempts: u32,
    /// The partner's last status code; 0 where there was none.
    pub status: u16,
    /// The message.
    pub kept: Kept,
}

/// Why an entry of the ledger cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PayloadError {
    /// The log cannot be read there; where it was trimmed, the fold that named the offset is out of date.
    #[error("ledger entry {at} cannot be read")]
    Log {
        /// The entry's offset.
        at: Offset,
        /// Why.
        source: LogError,
    },
    /// The payload was given up; the message is only listed.
    #[error("the payload was given up: ledger entry {at} tells of it without")]
    Dropped {
        /// The entry's offset.
        at: Offset,
    },
    /// There is no entry.
    #[error("ledger entry {at} is not there")]
    Missing {
        /// The entry's offset.
        at: Offset,
    },
    /// It is no entry.
    #[error("ledger entry {at} cannot be read")]
    Damaged {
        /// The entry's offset.
        at: Offset,
        /// Why.
        source: CodecError,
    },
    /// It is an entry of another kind.
    #[error("ledger entry {at} holds no {what}")]
    Other {
        /// The entry's offset.
        at: Offset,
        /// What was looked for.
        what: &'static str,
    },
}

/// Reads one entry; of a carried one that which it repeats.
///
/// # Errors
/// [`PayloadError`].
pub fn entry(log: &dyn Log, lane: PartitionId, at: Offset) -> Result<Entry, PayloadError> {
    let mut records = Vec::new();
    log.read(lane, at, 1, &mut records)
        .map_err(|source| PayloadError::Log { at, source })?;
    let record = records.into_iter().next().filter(|r| r.offset == at);
    let record = record.ok_or(PayloadError::Missing { at })?;
    let entry = codec::decode(&record.value).map_err(|source| PayloadError::Damaged { at, source })?;
    match entry.body {
        Body::Carried { entry, .. } => Ok(*entry),
        _ => Ok(entry),
    }
}

/// Reads the message kept at this offset: of a dead, parked or skipped outcome, or of one that waits. Its payload
/// is a slice of what was read and keeps that alive.
///
/// # Errors
/// [`PayloadError`].
pub fn kept(log: &dyn Log, lane: PartitionId, at: Offset) -> Result<KeptMessage, PayloadError> {
    let other = PayloadError::Other { at, what: "payload" };
    match entry(log, lane, at)?.body {
        Body::Outcome(o) => match o.kind {
            OutcomeKind::Dead(kept) | OutcomeKind::Parked(kept) | OutcomeKind::Skipped(kept) => {
                Ok(KeptMessage {
                    at: o.at,
                    id: o.id,
                    offset: o.offset,
                    round: o.round,
                    attempts: o.attempts,
                    status: o.status,
                    kept: *kept,
                })
            }
            _ => Err(other),
        },
        Body::Waiting(w) => Ok(KeptMessage {
            at: w.at,
            id: w.id,
            offset: w.offset,
            round: w.round,
            attempts: w.attempts,
            status: 0,
            kept: *w.kept,
        }),
        _ => Err(other),
    }
}

/// Reads the Idempotency-Key that the `opened` entry at this offset fixed for its round.
///
/// # Errors
/// [`PayloadError`].
pub fn idempotency_key(log: &dyn Log, lane: PartitionId, at: Offset) -> Result<String, PayloadError> {
    match entry(log, lane, at)?.body {
        Body::Opened(o) => Ok(o.idempotency_key),
        _ => Err(PayloadError::Other {
            at,
            what: "opened round",
        }),
    }
}
