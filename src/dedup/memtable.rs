//! Records that are not in sled yet, in the order of the ledger, found by ID.
//!
//! One memory table becomes one run. Records are only appended: a later one of the same ID takes the earlier one's
//! place in the index, so that what was added since a sync can be written to the tail file as it stands.

use super::Mark;
use super::block::Row;
use super::filter::mix;
use crate::core::types::{MessageId, Offset};
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

struct Rec {
    id: MessageId,
    offset: Offset,
    ledger: Offset,
    route: u32,
    when: u32,
    attempts: u32,
    text: u32,
    status: u16,
    text_len: u16,
    state: u8,
    live: bool,
}

/// Records in memory. At most `u32::MAX` of them, and as many bytes of readable IDs.
#[derive(Default)]
pub(super) struct Memtable {
    recs: Vec<Rec>,
    index: HashTable<u32>,
    text: Vec<u8>,
    /// Records up to this one are in the tail file.
    pub tailed: usize,
    /// The ledger is taken up to here.
    pub upto: Mark,
}

impl Memtable {
    /// An empty table with room for so many records.
    pub(super) fn with_room(records: usize, upto: Mark) -> Self {
        Self {
            recs: Vec::with_capacity(records),
            index: HashTable::with_capacity(records),
            upto,
            ..Self::default()
        }
    }

    /// How many records were appended, replaced ones included.
    pub(super) fn len(&self) -> usize {
        self.recs.len()
    }

    /// Bytes of readable IDs.
    pub(super) fn text_bytes(&self) -> usize {
        self.text.len()
    }

    /// Appends a record. It hides an earlier one of the same ID.
    pub(super) fn put(&mut self, row: &Row<'_>) {
        let recs = &mut self.recs;
        let next = recs.len() as u32;
        let slot = self.index.entry(
            mix(&row.id),
            |&i| recs[i as usize].id == row.id,
            |&i| mix(&recs[i as usize].id),
        );
        match slot {
            Entry::Occupied(mut slot) => {
                let old = std::mem::replace(slot.get_mut(), next);
                recs[old as usize].live = false;
            }
            Entry::Vacant(slot) => {
                slot.insert(next);
            }
        }
        let text_len = row.readable.len().min(usize::from(u16::MAX));
        let text = self.text.len() as u32;
        self.text.extend_from_slice(&row.readable[..text_len]);
        self.recs.push(Rec {
            id: row.id,
            offset: row.offset,
            ledger: row.ledger,
            route: row.route,
            when: row.when,
            attempts: row.attempts,
            text,
            status: row.status,
            text_len: text_len as u16,
            state: row.state,
            live: true,
        });
    }

    fn row(&self, rec: &Rec) -> Row<'_> {
        let start = rec.text as usize;
        Row {
            id: rec.id,
            route: rec.route,
            state: rec.state,
            status: rec.status,
            attempts: rec.attempts,
            when: rec.when,
            offset: rec.offset,
            ledger: rec.ledger,
            readable: &self.text[start..start + usize::from(rec.text_len)],
        }
    }

    /// The newest record of this ID, whose [`mix`] is given.
    #[inline]
    pub(super) fn get(&self, id: &MessageId, hash: u64) -> Option<Row<'_>> {
        let at = self.index.find(hash, |&i| self.recs[i as usize].id == *id)?;
        Some(self.row(&self.recs[*at as usize]))
    }

    /// The records from `first` on that no later one hides, in the order they came, at most `limit` looked at.
    pub(super) fn rows(&self, first: usize, limit: usize) -> impl Iterator<Item = Row<'_>> {
        let recs = self.recs.get(first..).unwrap_or_default();
        recs.iter().take(limit).filter(|r| r.live).map(|r| self.row(r))
    }

    /// The records that no later one hides, sorted by ID: the ID's first eight bytes, and the place for
    /// [`Memtable::at`].
    pub(super) fn sorted(&self) -> Vec<(u64, u32)> {
        let live = self.recs.iter().enumerate().filter(|(_, r)| r.live);
        let mut order: Vec<(u64, u32)> = live.map(|(i, r)| (r.id.head(), i as u32)).collect();
        order.sort_unstable_by(|a, b| {
            let tails = || self.recs[a.1 as usize].id.cmp(&self.recs[b.1 as usize].id);
            a.0.cmp(&b.0).then_with(tails)
        });
        order
    }

    /// Fetches records from memory. They lie far from each other: asked for one after the other, with nothing in
    /// between, many are on their way at once.
    pub(super) fn fetch(&self, places: &[(u64, u32)]) {
        let look = |sum: u64, &(_, place): &(u64, u32)| {
            let rec = &self.recs[place as usize];
            sum ^ rec.offset ^ u64::from(rec.id.0[15])
        };
        std::hint::black_box(places.iter().fold(0, look));
    }

    /// The record at this place.
    pub(super) fn at(&self, place: u32) -> Row<'_> {
        self.row(&self.recs[place as usize])
    }
}
