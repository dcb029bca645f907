//! A frame: what one commit writes. Never change the form; a new one gets a new segment magic.
//!
//! ```text
//! 0        4           8          12        16             24            32
//! ┌────────┬───────────┬──────────┬─────────┬──────────────┬─────────────┬───────────────┬────────────────┬─────┐
//! │ crc u32│ table u32 │ body u32 │ entries │ number u64   │ time u64    │ table         │ body           │ pad │
//! └────────┴───────────┴──────────┴─────────┴──────────────┴─────────────┴───────────────┴────────────────┴─────┘
//!   crc32c of (journal UUID, segment number, place in the file, bytes 4.. of head and table)          to 8 bytes
//! ```
//!
//! The table holds [`Entry`]s. Entries of kind *section* describe, in this order, the pieces of the body, each
//! with a crc32c of its own: head and table vouch for each other and for the place, the sections for the records.
//! So a reader checks exactly what it takes, and a frame left over from an earlier use of the file (its place or
//! segment number differs) is never taken for one of this use.

use super::wire::{Wire, align8, put_text};
use crate::core::types::{Offset, Time, TopicId};

/// Bytes before the table.
pub(super) const FRAME_HEAD: usize = 32;

/// Where a section's offsets come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Origin {
    /// An ordinary batch: `base` is an offset.
    Batch,
    /// Copied forward from an older segment: `base` is the offset it always had.
    Carried,
    /// A part of this transaction: `base` counts its records of the partition from 0; the commit says where 0 is.
    Part(u64),
}

/// Records of one partition: where they stand and what vouches for them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct SectionHead {
    pub origin: Origin,
    pub partition: u32,
    pub base: Offset,
    pub count: u32,
    pub len: u32,
    pub crc: u32,
    pub max_time: Time,
}

impl SectionHead {
    pub(super) fn end(&self) -> Offset {
        self.base + u64::from(self.count)
    }
}

/// Of a transaction's records: partition, the offset of the first one there, how many.
pub(super) type Bases = Vec<(u32, Offset, u64)>;

/// A topic as the journal knows it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TopicEntry {
    pub name: String,
    pub id: TopicId,
    /// Microseconds; none: for ever.
    pub retention_us: Option<u64>,
    pub retention_bytes: Option<u64>,
    /// Numbers of its partitions, in order. A number is never given twice in a journal.
    pub partitions: Vec<u32>,
}

/// One line of a frame's table.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Entry {
    /// Records.
    Section(SectionHead),
    /// A consumer group goes on at `next`.
    Group {
        group: String,
        partition: u32,
        next: Offset,
    },
    /// A topic was made, or its settings changed.
    Topic(TopicEntry),
    /// A topic was deleted.
    Deleted { id: TopicId },
    /// Records before `first` are gone.
    Trim { partition: u32, first: Offset },
    /// Nothing in this segment lives: its file may be used again once this frame is durable.
    Dropped { segment: u64 },
    /// A transaction's parts become records: for each partition where its record 0 stands, and how many there are.
    Commit { tx: u64, bases: Bases },
}

const NONE: u64 = u64::MAX;

impl Entry {
    /// Appends the entry to a table.
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        match self {
            Entry::Section(s) => {
                let (kind, tx) = match s.origin {
                    Origin::Batch => (1, 0),
                    Origin::Carried => (2, 0),
                    Origin::Part(tx) => (3, tx),
                };
                out.push(kind);
                if kind == 3 {
                    out.extend_from_slice(&tx.to_le_bytes());
                }
                out.extend_from_slice(&s.partition.to_le_bytes());
                out.extend_from_slice(&s.base.to_le_bytes());
                out.extend_from_slice(&s.count.to_le_bytes());
                out.extend_from_slice(&s.len.to_le_bytes());
                out.extend_from_slice(&s.crc.to_le_bytes());
                out.extend_from_slice(&s.max_time.0.to_le_bytes());
            }
            Entry::Group {
                group,
                partition,
                next,
            } => {
                out.push(4);
                put_text(out, group);
                out.extend_from_slice(&partition.to_le_bytes());
                out.extend_from_slice(&next.to_le_bytes());
            }
            Entry::Topic(topic) => {
                out.push(5);
                topic.put(out);
            }
            Entry::Deleted { id } => {
                out.push(6);
                out.extend_from_slice(&id.0.to_le_bytes());
            }
            Entry::Trim { partition, first } => {
                out.push(7);
                out.extend_from_slice(&partition.to_le_bytes());
                out.extend_from_slice(&first.to_le_bytes());
            }
            Entry::Dropped { segment } => {
                out.push(8);
                out.extend_from_slice(&segment.to_le_bytes());
            }
            Entry::Commit { tx, bases } => {
                out.push(9);
                put_commit(out, *tx, bases);
            }
        }
    }

    fn take(wire: &mut Wire<'_>) -> Option<Entry> {
        let kind = wire.u8()?;
        Some(match kind {
            1..=3 => {
                let origin = match kind {
                    1 => Origin::Batch,
                    2 => Origin::Carried,
                    _ => Origin::Part(wire.u64()?),
                };
                Entry::Section(SectionHead {
                    origin,
                    partition: wire.u32()?,
                    base: wire.u64()?,
                    count: wire.u32()?,
                    len: wire.u32()?,
                    crc: wire.u32()?,
                    max_time: Time(wire.u64()?),
                })
            }
            4 => Entry::Group {
                group: wire.text()?,
                partition: wire.u32()?,
                next: wire.u64()?,
            },
            5 => Entry::Topic(TopicEntry::take(wire)?),
            6 => Entry::Deleted {
                id: TopicId(wire.u128()?),
            },
            7 => Entry::Trim {
                partition: wire.u32()?,
                first: wire.u64()?,
            },
            8 => Entry::Dropped { segment: wire.u64()? },
            9 => {
                let (tx, bases) = take_commit(wire)?;
                Entry::Commit { tx, bases }
            }
            _ => return None,
        })
    }
}

/// A transaction and where its records stand; the same form in frames and catalogues.
pub(super) fn put_commit(out: &mut Vec<u8>, tx: u64, bases: &[(u32, Offset, u64)]) {
    out.extend_from_slice(&tx.to_le_bytes());
    out.extend_from_slice(&(bases.len() as u32).to_le_bytes());
    for (partition, base, count) in bases {
        out.extend_from_slice(&partition.to_le_bytes());
        out.extend_from_slice(&base.to_le_bytes());
        out.extend_from_slice(&count.to_le_bytes());
    }
}

/// The reverse of [`put_commit`].
pub(super) fn take_commit(wire: &mut Wire<'_>) -> Option<(u64, Bases)> {
    let tx = wire.u64()?;
    let n = wire.u32()?;
    let bases = (0..n).map(|_| Some((wire.u32()?, wire.u64()?, wire.u64()?)));
    Some((tx, bases.collect::<Option<_>>()?))
}

impl TopicEntry {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_text(out, &self.name);
        out.extend_from_slice(&self.id.0.to_le_bytes());
        out.extend_from_slice(&self.retention_us.unwrap_or(NONE).to_le_bytes());
        out.extend_from_slice(&self.retention_bytes.unwrap_or(NONE).to_le_bytes());
        out.extend_from_slice(&(self.partitions.len() as u32).to_le_bytes());
        for partition in &self.partitions {
            out.extend_from_slice(&partition.to_le_bytes());
        }
    }

    pub(super) fn take(wire: &mut Wire<'_>) -> Option<Self> {
        let name = wire.text()?;
        let id = TopicId(wire.u128()?);
        let retention_us = Some(wire.u64()?).filter(|n| *n != NONE);
        let retention_bytes = Some(wire.u64()?).filter(|n| *n != NONE);
        let n = wire.u32()?;
        let partitions = (0..n).map(|_| wire.u32()).collect::<Option<_>>()?;
        Some(Self {
            name,
            id,
            retention_us,
            retention_bytes,
            partitions,
        })
    }
}

/// Where a frame stands: what its checksum binds it to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub journal: u128,
    pub segment: u64,
    pub at: u64,
}

impl Place {
    fn crc(&self, head_and_table: &[u8]) -> u32 {
        let mut place = [0u8; 32];
        place[..16].copy_from_slice(&self.journal.to_le_bytes());
        place[16..24].copy_from_slice(&self.segment.to_le_bytes());
        place[24..].copy_from_slice(&self.at.to_le_bytes());
        crc32c::crc32c_append(crc32c::crc32c(&place), &head_and_table[4..])
    }
}

/// The lengths that a frame's head claims, not yet vouched for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lengths {
    pub table: usize,
    pub body: usize,
    pub number: u64,
}

impl Lengths {
    /// Reads the head; `None` where there is none.
    pub(super) fn peek(head: &[u8]) -> Option<Lengths> {
        let mut wire = Wire(head.get(4..FRAME_HEAD)?);
        let (table, body, _entries, number) = (wire.u32()?, wire.u32()?, wire.u32()?, wire.u64()?);
        (number != 0 && table != 0).then_some(Lengths {
            table: table as usize,
            body: body as usize,
            number,
        })
    }
    /// Bytes from the frame's beginning to its body.
    pub(super) fn to_body(self) -> usize {
        FRAME_HEAD + self.table
    }
    /// Bytes to the next frame.
    pub(super) fn total(self) -> u64 {
        align8((FRAME_HEAD + self.table + self.body) as u64)
    }
}

/// Head and table of a frame whose checksum fits.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub number: u64,
    pub entries: Vec<Entry>,
}

impl Frame {
    /// Checks and decodes head and table. `bytes` begins at the frame and holds at least both.
    pub(super) fn decode(bytes: &[u8], place: Place) -> Option<Frame> {
        let lengths = Lengths::peek(bytes)?;
        let checked = bytes.get(..lengths.to_body())?;
        let crc = Wire(checked).u32()?;
        if crc != place.crc(checked) {
            return None;
        }
        let count = Wire(&checked[12..]).u32()?;
        let mut wire = Wire(&checked[FRAME_HEAD..]);
        let entries = (0..count)
            .map(|_| Entry::take(&mut wire))
            .collect::<Option<Vec<_>>>()?;
        Some(Frame {
            number: lengths.number,
            entries,
        })
    }

    /// Whether every section's records fit their checksum. `body` holds the whole body.
    pub(super) fn body_fits(&self, body: &[u8]) -> bool {
        let mut rest = body;
        self.sections().all(|s| {
            let Some((bytes, tail)) = rest.split_at_checked(s.len as usize) else {
                return false;
            };
            rest = tail;
            crc32c::crc32c(bytes) == s.crc
        })
    }

    pub(super) fn sections(&self) -> impl Iterator<Item = &SectionHead> {
        self.entries.iter().filter_map(|e| match e {
            Entry::Section(s) => Some(s),
            _ => None,
        })
    }
}

/// Puts a frame together in `out` (cleared first). `body` yields the pieces of the body in the order of the
/// section entries.
pub(super) fn seal<'a>(
    out: &mut Vec<u8>,
    entries: &[Entry],
    body: impl Iterator<Item = &'a [u8]>,
    number: u64,
    now: Time,
    place: Place,
) {
    out.clear();
    out.resize(FRAME_HEAD, 0);
    for entry in entries {
        entry.put(out);
    }
    let table = out.len() - FRAME_HEAD;
    let to_body = out.len();
    for piece in body {
        out.extend_from_slice(piece);
    }
    let body = out.len() - to_body;
    out[4..8].copy_from_slice(&(table as u32).to_le_bytes());
    out[8..12].copy_from_slice(&(body as u32).to_le_bytes());
    out[12..16].copy_from_slice(&(entries.len() as u32).to_le_bytes());
    out[16..24].copy_from_slice(&number.to_le_bytes());
    out[24..32].copy_from_slice(&now.0.to_le_bytes());
    let crc = place.crc(&out[..to_body]);
    out[..4].copy_from_slice(&crc.to_le_bytes());
    out.resize(align8(out.len() as u64) as usize, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<Entry> {
        let topic = TopicEntry {
            name: "orders".into(),
            id: TopicId(99),
            retention_us: Some(5),
            retention_bytes: None,
            partitions: vec![3, 4],
        };
        let section = SectionHead {
            origin: Origin::Part(7),
            partition: 3,
            base: 10,
            count: 2,
            len: 4,
            crc: crc32c::crc32c(b"body"),
            max_time: Time(5),
        };
        vec![
            Entry::Section(section),
            Entry::Group {
                group: "g".into(),
                partition: 3,
                next: 12,
            },
            Entry::Topic(topic),
            Entry::Deleted { id: TopicId(98) },
            Entry::Trim {
                partition: 4,
                first: 8,
            },
            Entry::Dropped { segment: 2 },
            Entry::Commit {
                tx: 7,
                bases: vec![(3, 100, 2)],
            },
        ]
    }

    const PLACE: Place = Place {
        journal: 1,
        segment: 2,
        at: 4096,
    };

    #[test]
    fn every_entry_comes_back() {
        let mut out = Vec::new();
        seal(&mut out, &sample(), [&b"body"[..]].into_iter(), 5, Time(9), PLACE);
        let frame = Frame::decode(&out, PLACE).expect("valid");
        assert_eq!(frame.entries, sample());
        assert_eq!(frame.number, 5);
        let lengths = Lengths::peek(&out).expect("head");
        assert_eq!(lengths.total(), out.len() as u64);
        assert!(frame.body_fits(&out[lengths.to_body()..lengths.to_body() + lengths.body]));
    }

    #[test]
    fn any_flipped_bit_and_any_other_place_is_seen() {
        let mut out = Vec::new();
        seal(&mut out, &sample(), [&b"body"[..]].into_iter(), 5, Time(9), PLACE);
        let lengths = Lengths::peek(&out).expect("head");
        let used = lengths.to_body() + lengths.body;
        for bit in 0..used * 8 {
            let mut bad = out.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let fits = Frame::decode(&bad, PLACE)
                .is_some_and(|f| f.body_fits(bad.get(lengths.to_body()..used).unwrap_or_default()));
            assert!(!fits, "bit {bit}");
        }
        for place in [
            Place { journal: 2, ..PLACE },
            Place { segment: 3, ..PLACE },
            Place { at: 4104, ..PLACE },
        ] {
            assert!(Frame::decode(&out, place).is_none());
        }
    }
}
