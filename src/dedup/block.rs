//! A block: some hundreds of records of finished messages, sorted by ID, packed by column.
//!
//! Every column has one width, the least that fits this block, so any record is found by binary search and read
//! without decoding the others. IDs leave out the bytes that all of the block share. Little endian. Format 1,
//! never change it; a new one takes the next number.
//!
//! ```text
//! 0   format u8 = 1
//! 1   shared u8                  bytes at the head of every ID that are the same in all (at most 15)
//! 2   widths 6 x u8              bytes a record in: when, class, route, offset, ledger, end of readable
//! 8   count u32
//! 12  classes u32
//! 16  when u32, route u32        least value of the column
//! 24  offset u64, ledger u64     least value of the column
//! 40  shared bytes
//!     classes x (state u8, status u16, attempts u32)
//!     count x (16 - shared) bytes of ID, rising
//!     count x width, for each of the six columns in turn
//!     readable IDs, one after the other
//! ```
//!
//! State 0 is a record that was forgotten: it hides older ones.

use crate::core::types::{MessageId, Offset};
use bytes::Bytes;
use std::collections::HashMap;

/// The state of a record that hides older ones: the ID is forgotten.
pub(super) const FORGOTTEN: u8 = 0;
const FORMAT: u8 = 1;
const HEAD: usize = 40;
const CLASS: usize = 7;
const COLUMNS: usize = 6;

/// What the store keeps of one finished message. The route is an index into the store's dictionary.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Row<'a> {
    pub id: MessageId,
    pub route: u32,
    pub state: u8,
    pub status: u16,
    pub attempts: u32,
    /// Seconds since the epoch.
    pub when: u32,
    pub offset: Offset,
    pub ledger: Offset,
    pub readable: &'a [u8],
}

/// A block whose bytes are not what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Damage(pub &'static str);

fn width_of(span: u64) -> u8 {
    (64 - span.leading_zeros()).div_ceil(8) as u8
}

fn put(out: &mut Vec<u8>, value: u64, width: u8) {
    out.extend_from_slice(&value.to_le_bytes()[..usize::from(width)]);
}

/// Packs rows that are sorted by ID, each ID once, at least one.
pub(super) fn encode(rows: &[Row<'_>]) -> Vec<u8> {
    let (first, last) = match rows {
        [] => return Vec::new(),
        [one] => (one, one),
        [first, .., last] => (first, last),
    };
    let shared = first
        .id
        .0
        .iter()
        .zip(&last.id.0)
        .take_while(|(a, b)| a == b)
        .count()
        .min(15);
    let mut least = [u64::MAX; 4];
    let mut most = [0u64; 4];
    let mut classes: Vec<(u8, u16, u32)> = Vec::new();
    let mut known: HashMap<(u8, u16, u32), u32> = HashMap::new();
    let mut class_of = Vec::with_capacity(rows.len());
    let mut readable = 0u64;
    let mut before = None;
    for row in rows {
        let values = [u64::from(row.when), u64::from(row.route), row.offset, row.ledger];
        for (i, v) in values.into_iter().enumerate() {
            least[i] = least[i].min(v);
            most[i] = most[i].max(v);
        }
        let class = (row.state, row.status, row.attempts);
        // Neighbours are mostly alike: the map is asked only when they are not.
        let n = match before {
            Some((c, n)) if c == class => n,
            _ => *known.entry(class).or_insert_with(|| {
                classes.push(class);
                classes.len() as u32 - 1
            }),
        };
        before = Some((class, n));
        class_of.push(n);
        readable += row.readable.len() as u64;
    }
    let widths = [
        width_of(most[0] - least[0]),
        width_of(classes.len() as u64 - 1),
        width_of(most[1] - least[1]),
        width_of(most[2] - least[2]),
        width_of(most[3] - least[3]),
        width_of(readable),
    ];
    let stride = 16 - shared + widths.iter().map(|&w| usize::from(w)).sum::<usize>();
    let mut out =
        Vec::with_capacity(HEAD + shared + classes.len() * CLASS + rows.len() * stride + readable as usize);
    out.extend_from_slice(&[FORMAT, shared as u8]);
    out.extend_from_slice(&widths);
    out.extend_from_slice(&(rows.len() as u32).to_le_bytes());
    out.extend_from_slice(&(classes.len() as u32).to_le_bytes());
    put(&mut out, least[0], 4);
    put(&mut out, least[1], 4);
    put(&mut out, least[2], 8);
    put(&mut out, least[3], 8);
    out.extend_from_slice(&first.id.0[..shared]);
    for (state, status, attempts) in &classes {
        out.push(*state);
        out.extend_from_slice(&status.to_le_bytes());
        out.extend_from_slice(&attempts.to_le_bytes());
    }
    rows.iter().for_each(|r| out.extend_from_slice(&r.id.0[shared..]));
    rows.iter()
        .for_each(|r| put(&mut out, u64::from(r.when) - least[0], widths[0]));
    class_of
        .iter()
        .for_each(|&c| put(&mut out, u64::from(c), widths[1]));
    rows.iter()
        .for_each(|r| put(&mut out, u64::from(r.route) - least[1], widths[2]));
    rows.iter()
        .for_each(|r| put(&mut out, r.offset - least[2], widths[3]));
    rows.iter()
        .for_each(|r| put(&mut out, r.ledger - least[3], widths[4]));
    let mut end = 0;
    for row in rows {
        end += row.readable.len() as u64;
        put(&mut out, end, widths[5]);
    }
    rows.iter().for_each(|r| out.extend_from_slice(r.readable));
    out
}

/// A block as it stands in the store, checked once for its sizes.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    count: usize,
    shared: &'a [u8],
    classes: &'a [u8],
    ids: &'a [u8],
    columns: [&'a [u8]; COLUMNS],
    widths: [usize; COLUMNS],
    when: u32,
    route: u32,
    offset: u64,
    ledger: u64,
    readable: &'a [u8],
}

fn number(bytes: &[u8]) -> u64 {
    let mut b = [0; 8];
    b[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(b)
}

impl<'a> Block<'a> {
    /// Checks head and sizes.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Damage> {
        let (head, mut rest) = bytes
            .split_at_checked(HEAD)
            .ok_or(Damage("shorter than its head"))?;
        if head[0] != FORMAT {
            return Err(Damage("unknown format"));
        }
        let shared = usize::from(head[1]);
        if shared > 15 || head[2..8].iter().any(|&w| w > 8) {
            return Err(Damage("impossible widths"));
        }
        let widths: [usize; COLUMNS] = std::array::from_fn(|i| usize::from(head[2 + i]));
        let count = number(&head[8..12]) as usize;
        let classes = number(&head[12..16]) as usize;
        let mut take = |n: usize| {
            let (part, tail) = rest
                .split_at_checked(n)
                .ok_or(Damage("shorter than its columns"))?;
            rest = tail;
            Ok(part)
        };
        let shared = take(shared)?;
        let classes = take(classes.saturating_mul(CLASS))?;
        let ids = take(count.saturating_mul(16 - shared.len()))?;
        let mut columns: [&[u8]; COLUMNS] = [&[]; COLUMNS];
        for (column, width) in columns.iter_mut().zip(widths) {
            *column = take(count.saturating_mul(width))?;
        }
        Ok(Self {
            count,
            shared,
            classes,
            ids,
            columns,
            widths,
            when: number(&head[16..20]) as u32,
            route: number(&head[20..24]) as u32,
            offset: number(&head[24..32]),
            ledger: number(&head[32..40]),
            readable: rest,
        })
    }

    /// How many records it holds.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    fn suffix(&self, i: usize) -> &'a [u8] {
        let n = 16 - self.shared.len();
        &self.ids[i * n..(i + 1) * n]
    }

    /// The i-th ID.
    pub(super) fn id(&self, i: usize) -> MessageId {
        let mut id = [0; 16];
        id[..self.shared.len()].copy_from_slice(self.shared);
        id[self.shared.len()..].copy_from_slice(self.suffix(i));
        MessageId(id)
    }

    /// Where this ID stands, compared in all 16 bytes.
    pub(super) fn find(&self, id: &MessageId) -> Option<usize> {
        let (head, tail) = id.0.split_at(self.shared.len());
        if head != self.shared {
            return None;
        }
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = (low + high) / 2;
            match self.suffix(middle).cmp(tail) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Some(middle),
            }
        }
        None
    }

    fn cell(&self, column: usize, i: usize) -> u64 {
        let w = self.widths[column];
        number(&self.columns[column][i * w..(i + 1) * w])
    }

    /// The i-th record.
    pub(super) fn row(&self, i: usize) -> Result<Row<'a>, Damage> {
        let class = self.cell(1, i) as usize;
        let class = self
            .classes
            .get(class * CLASS..(class + 1) * CLASS)
            .ok_or(Damage("no such class"))?;
        let start = if i == 0 { 0 } else { self.cell(5, i - 1) } as usize;
        let readable = self
            .readable
            .get(start..self.cell(5, i) as usize)
            .ok_or(Damage("readable ID cut off"))?;
        let wrapped = Damage("a value larger than its type");
        Ok(Row {
            id: self.id(i),
            route: self.route.checked_add(self.cell(2, i) as u32).ok_or(wrapped)?,
            state: class[0],
            status: number(&class[1..3]) as u16,
            attempts: number(&class[3..7]) as u32,
            when: self.when.checked_add(self.cell(0, i) as u32).ok_or(wrapped)?,
            offset: self.offset.checked_add(self.cell(3, i)).ok_or(wrapped)?,
            ledger: self.ledger.checked_add(self.cell(4, i)).ok_or(wrapped)?,
            readable,
        })
    }
}

/// A row that owns its readable ID.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct OwnedRow {
    pub row: Row<'static>,
    pub readable: Bytes,
}

impl Row<'_> {
    /// The same row with its readable ID copied.
    pub(super) fn to_owned_row(self) -> OwnedRow {
        let readable = Bytes::copy_from_slice(self.readable);
        OwnedRow {
            row: Row {
                readable: &[],
                ..self
            },
            readable,
        }
    }
}

impl OwnedRow {
    /// The row with its readable ID in place.
    pub(super) fn borrow(&self) -> Row<'_> {
        Row {
            readable: &self.readable,
            ..self.row
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rows() -> impl Strategy<Value = Vec<OwnedRow>> {
        let row = (
            any::<[u8; 16]>(),
            (0u32..5_000, 0u8..7, any::<u16>(), 0u32..40, any::<u32>()),
            (any::<u64>(), any::<u64>()),
            proptest::collection::vec(any::<u8>(), 0..12),
        )
            .prop_map(
                |(id, (route, state, status, attempts, when), (offset, ledger), readable)| OwnedRow {
                    row: Row {
                        id: MessageId(id),
                        route,
                        state,
                        status,
                        attempts,
                        when,
                        offset,
                        ledger,
                        readable: &[],
                    },
                    readable: readable.into(),
                },
            );
        (proptest::collection::vec(row, 1..60), 0usize..16).prop_map(|(mut rows, same)| {
            let head = rows[0].row.id.0;
            rows.iter_mut()
                .for_each(|r| r.row.id.0[..same].copy_from_slice(&head[..same]));
            rows.sort_by_key(|r| r.row.id);
            rows.dedup_by_key(|r| r.row.id);
            rows
        })
    }

    proptest! {
        #[test]
        fn every_row_comes_back(rows in rows()) {
            let borrowed: Vec<_> = rows.iter().map(OwnedRow::borrow).collect();
            let bytes = encode(&borrowed);
            let block = Block::parse(&bytes).unwrap();
            prop_assert_eq!(block.len(), rows.len());
            for (i, row) in borrowed.iter().enumerate() {
                prop_assert_eq!(block.row(i).unwrap(), *row);
                prop_assert_eq!(block.find(&row.id), Some(i));
                let mut other = row.id;
                other.0[15] ^= 1;
                let there = borrowed.iter().position(|r| r.id == other);
                prop_assert_eq!(block.find(&other), there);
            }
        }

        #[test]
        fn damage_never_panics(rows in rows(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
            let borrowed: Vec<_> = rows.iter().map(OwnedRow::borrow).collect();
            let mut bytes = encode(&borrowed);
            let n = at.index(bytes.len());
            bytes[n] = byte;
            bytes.truncate(cut.index(bytes.len()) + 1);
            if let Ok(block) = Block::parse(&bytes) {
                for i in 0..block.len().min(100) {
                    let _ = block.row(i);
                    block.find(&block.id(i));
                }
            }
        }
    }
}
