//! The byte form of the ledger's entries. Never change: what is written once must be read for ever. A new field
//! is a new kind, or a new format byte; a kind that is not known comes back as [`Body::Unknown`] and is carried.
//!
//! ```text
//! entry    format u8 (1) | kind u8 | tenure varint | body of that kind, to the end
//! place    route u64 | partition varint
//! message  id 16 bytes | place                       (so that `peek` finds them at once)
//! tries    varint: attempts · 2 + (1 if a round follows) | round varint, if it is not 1
//! text     varint length | UTF-8
//!
//!  1 genesis    ledger u128 | group text | lanes, lane, recipe varint
//!  2 owner      node text | life u64 | lease, timeout varint | at u64
//!  3 released   count varint | lives u64 …
//!  4 route      route u64 | topic id u128 | topic text | partner text
//!  5 intent     message | key u64 | offset varint | tries | slot u64 | slot → first try signed |
//!               count · 2 + (1 if split by a value) varint | budgets: budget u64 (, by u64) … |
//!               life u64 | lease, timeout varint
//!  6 delivered  outcome | readable, to the end
//!  7 later      outcome | when → not before signed | when → first try signed | key u64 | reason text
//!  8 dead, 9 parked, 10 skipped                      outcome | kept
//! 11 waiting    message | offset varint | tries | when u64 | when → not before signed | kept
//! 12 position   place | leader epoch, position varint | high water signed from position |
//!               count varint | ranges: start signed from the end before (first: position), end signed from start …
//! 13 opened     message | round varint | when u64 | idempotency key text
//! 14 command    action u8 | what it is about | offset varint | when u64 | who text | why text
//! 15 sample     place | when u64 | end varint
//! 16 used       budget u64 | by u64 | window varint | since varint | count varint
//! 17 applied    version varint
//! 19 uncounted  as 7: a `later` whose attempt does not count
//! 18 carried    original varint | an entry of any other kind, whole, to the end
//!
//! outcome  message | offset varint | tries | when u64 | life u64 | status - 200 (mod 65536) varint
//! kept     key u64 | 1 u8, record key bytes, or 0 u8, or 2 u8: no key, payload given up | timestamp, first try varint | value, headers bytes |
//!          readable, idempotency key, reason, answer text
//! action   1 forget: message | 2 mark: message, offset varint | 3 drop: message |
//!          4 skip add: rule varint, topic text, 1 u8 and partner text or 0 u8, 0 u8 key or 1 u8 ID, its bytes,
//!            reason text, made u64, expires varint (0: never, else + 1) | 5 skip remove: rule varint |
//!          6 pause: partner text, 1 u8 and route u64 or 0 u8, reason text | 7 resume: partner text, route as in 6 |
//!          8 audit: order text, touched varint
//! ```
//! An intent takes about 75 bytes, a delivered outcome 54 and its readable ID. Readable IDs, reasons, answers and
//! the words of a command are cut to the bounds below as they are written; a payload never is.

mod read;
mod write;

#[cfg(test)]
mod tests;

use super::entry::{Body, Entry, OutcomeKind};
use super::wire::Reader;
use crate::core::types::{MessageId, Offset, RouteId, RoutePartition};
use bytes::Bytes;

pub use read::decode;
pub(crate) use read::skip_rule as read_skip_rule;
pub use write::encode;
pub(crate) use write::skip_rule as write_skip_rule;

/// The format byte of every entry this version writes, and the highest it reads.
pub const FORMAT: u8 = 1;
/// Longest readable message ID that is written, in bytes.
pub const READABLE_MAX: usize = 1024;
/// Longest reason of an outcome, a pause or a skip rule, in bytes.
pub const REASON_MAX: usize = 512;
/// Longest answer of a partner that is kept, in bytes.
pub const ANSWER_MAX: usize = 2048;
/// Longest "who" or "why" of a command, in bytes.
pub const WORDS_MAX: usize = 512;

/// The kind bytes. Never change; new kinds get new numbers.
pub mod kind {
    #![allow(missing_docs)]
    pub const GENESIS: u8 = 1;
    pub const OWNER: u8 = 2;
    pub const RELEASED: u8 = 3;
    pub const ROUTE: u8 = 4;
    pub const INTENT: u8 = 5;
    pub const DELIVERED: u8 = 6;
    pub const LATER: u8 = 7;
    pub const DEAD: u8 = 8;
    pub const PARKED: u8 = 9;
    pub const SKIPPED: u8 = 10;
    pub const WAITING: u8 = 11;
    pub const POSITION: u8 = 12;
    pub const OPENED: u8 = 13;
    pub const COMMAND: u8 = 14;
    pub const SAMPLE: u8 = 15;
    pub const USED: u8 = 16;
    pub const APPLIED: u8 = 17;
    pub const CARRIED: u8 = 18;
    pub const UNCOUNTED: u8 = 19;
}

/// The first byte of an action. Never change.
pub(super) mod action {
    pub const FORGET: u8 = 1;
    pub const MARK: u8 = 2;
    pub const DROP: u8 = 3;
    pub const SKIP_ADD: u8 = 4;
    pub const SKIP_REMOVE: u8 = 5;
    pub const PAUSE: u8 = 6;
    pub const RESUME: u8 = 7;
    pub const AUDIT: u8 = 8;
    pub const FORGET_ROUTE: u8 = 9;
}

/// Why bytes are no entry of the ledger. The node stops: the log has checksums, so this is no torn write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The bytes end too soon.
    #[error("the entry ends too soon")]
    Short,
    /// Written by a version newer than this one.
    #[error("the entry has format {0}, this version reads up to {FORMAT}")]
    Format(u8),
    /// A field is not what it must be.
    #[error("{0} in the entry is malformed")]
    Malformed(&'static str),
    /// More bytes than the kind has fields.
    #[error("{0} bytes too many in the entry")]
    Trailing(usize),
}

/// What a scan needs to know of an entry, without decoding it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peek {
    /// Its kind ([`kind`]); of a carried entry the kind of the one it repeats.
    pub kind: u8,
    /// The offset it repeats, if it is carried.
    pub carried: Option<Offset>,
    /// Route and partition, for kinds that have one.
    pub at: Option<RoutePartition>,
    /// The message, for kinds that are about one.
    pub id: Option<MessageId>,
}

/// Looks at the head of an encoded entry. None: too short, or of a newer format; what is behind the head is not
/// checked.
#[inline]
pub fn peek(bytes: &[u8]) -> Option<Peek> {
    let mut r = Reader::new(bytes);
    let head = |r: &mut Reader<'_>| -> Result<u8, CodecError> {
        let (format, kind) = (r.u8()?, r.u8()?);
        if format == 0 || format > FORMAT {
            return Err(CodecError::Format(format));
        }
        r.varint()?;
        Ok(kind)
    };
    let mut look = || -> Result<Peek, CodecError> {
        let mut kind = head(&mut r)?;
        let mut carried = None;
        if kind == kind::CARRIED {
            carried = Some(r.varint()?);
            kind = head(&mut r)?;
        }
        let about_message = match kind {
            kind::INTENT..=kind::WAITING | kind::OPENED | kind::UNCOUNTED => true,
            kind::COMMAND => matches!(r.u8()?, action::FORGET | action::MARK | action::DROP),
            _ => false,
        };
        let id = match about_message {
            true => Some(MessageId(r.array()?)),
            false => None,
        };
        let at = match about_message || matches!(kind, kind::POSITION | kind::SAMPLE) {
            true => Some(place(&mut r)?),
            false => None,
        };
        Ok(Peek {
            kind,
            carried,
            at,
            id,
        })
    };
    look().ok()
}

#[inline]
fn place(r: &mut Reader<'_>) -> Result<RoutePartition, CodecError> {
    Ok(RoutePartition {
        route: RouteId(r.u64()?),
        partition: r.varint32()?,
    })
}

/// The first `max` bytes of a text, less what would split a character.
pub fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

/// The first `max` bytes, less what would split a character where they are UTF-8.
pub fn cut_bytes(bytes: &Bytes, max: usize) -> Bytes {
    if bytes.len() <= max {
        return bytes.clone();
    }
    let mut end = max;
    // A character has at most three continuation bytes; more of them are no text, and cut where the bound is.
    while end > 0 && max - end < 4 && bytes[end] & 0xc0 == 0x80 {
        end -= 1;
    }
    if bytes[end] & 0xc0 == 0x80 {
        end = max;
    }
    bytes.slice(..end)
}

impl Entry {
    /// Whether a message's payload is in it: dead, parked, skipped or waiting, carried or not.
    pub fn holds_payload(&self) -> bool {
        match &self.body {
            Body::Outcome(o) => matches!(
                o.kind,
                OutcomeKind::Dead(_) | OutcomeKind::Parked(_) | OutcomeKind::Skipped(_)
            ),
            Body::Waiting(_) => true,
            Body::Carried { entry, .. } => entry.holds_payload(),
            _ => false,
        }
    }

    /// What says of the dead, parked or skipped message of this entry, read at `offset`, that its payload is given
    /// up; none if no such message is in it.
    pub fn without_payload(self, offset: Offset) -> Option<Body> {
        let entry = match self.body {
            Body::Carried { entry, .. } => *entry,
            _ => self,
        };
        let Body::Outcome(mut outcome) = entry.body else {
            return None;
        };
        match &mut outcome.kind {
            OutcomeKind::Dead(kept) | OutcomeKind::Parked(kept) | OutcomeKind::Skipped(kept) => {
                **kept = kept.without_payload();
            }
            _ => return None,
        }
        let entry = Entry {
            tenure: entry.tenure,
            body: Body::Outcome(outcome),
        };
        Some(entry.carry(offset))
    }

    /// What says this entry, read at `offset`, once more at the lane's end, so that what is before it can go. Of an
    /// entry that is carried itself the repeated one is taken out: carried entries never nest. A sample keeps the offset at
    /// which it was said first, for ages are counted by that.
    pub fn carry(self, offset: Offset) -> Body {
        let (original, entry) = match self.body {
            Body::Carried { original, entry } if matches!(entry.body, Body::Sample(_)) => (original, entry),
            Body::Carried { entry, .. } => (offset, entry),
            _ => (offset, Box::new(self)),
        };
        Body::Carried { original, entry }
    }
}
