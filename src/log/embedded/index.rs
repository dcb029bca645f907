//! Where the records of a partition stand: a sparse list of items, each a stretch of the journal.
//!
//! An item says "the records `base..end` are in segment `segment`, in frames from `at` to `until`". It covers at
//! most about 64 KiB of the partition's own records and [`STRETCH`] bytes of journal, so memory is bounded by the
//! partition's bytes on disk, and a reader that starts at an item passes over little that is not its own.
//! Items do not overlap: what is put in later wins (a copy carried forward replaces what it copies).

use super::frame::{Origin, SectionHead};
use super::wire::Wire;
use crate::core::types::{Offset, Time};
use std::collections::{HashMap, VecDeque};

/// Own bytes after which a partition's next section begins another item.
const OWN: u32 = 64 * 1024;
/// Journal bytes after which it does so too.
const STRETCH: u32 = 1024 * 1024;
/// Bytes of an item in a footer.
pub(super) const ITEM_LEN: usize = 49;

/// A stretch of the journal that holds records of one partition.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Item {
    /// First offset (of a part: counted within its transaction until that is committed).
    pub base: Offset,
    /// One past the last.
    pub end: Offset,
    /// Sequence number of the segment.
    pub segment: u64,
    /// Where the first frame begins.
    pub at: u32,
    /// Where the last frame ends.
    pub until: u32,
    /// Bytes of the records.
    pub bytes: u32,
    /// Latest timestamp.
    pub max_time: Time,
    /// Transaction whose parts these are; 0 for ordinary and carried records.
    pub tx: u64,
    /// Of a committed part: what to add to its own count to get the offset.
    pub shift: Offset,
}

impl Item {
    /// The item without the records before `first`; `bytes` shrinks in proportion.
    fn from(self, first: Offset) -> Item {
        let all = (self.end - self.base).max(1);
        let left = self.end - first;
        Item {
            base: first,
            bytes: (u64::from(self.bytes) * left / all) as u32,
            ..self
        }
    }
    /// The item without the records from `end` on.
    fn until(self, end: Offset) -> Item {
        let all = (self.end - self.base).max(1);
        let left = end - self.base;
        Item {
            end,
            bytes: (u64::from(self.bytes) * left / all) as u32,
            ..self
        }
    }
    /// The item of a part, once it is known that record 0 of its transaction stands at `base`.
    pub(super) fn committed(self, base: Offset) -> Item {
        Item {
            base: self.base + base,
            end: self.end + base,
            shift: base,
            ..self
        }
    }
}

/// First and next offset of a partition, and where its records stand.
#[derive(Debug, Default)]
pub(super) struct PartitionIndex {
    pub first: Offset,
    pub next: Offset,
    pub items: VecDeque<Item>,
}

impl PartitionIndex {
    /// Bytes of memory.
    pub fn memory(&self) -> usize {
        size_of::<Self>() + self.items.capacity() * size_of::<Item>()
    }

    /// Puts an item in; what it overlaps gives way.
    pub(super) fn put(&mut self, item: Item) {
        if item.base >= item.end {
            return;
        }
        match self.items.back_mut() {
            None => self.items.push_back(item),
            Some(last) if item.base >= last.end => self.items.push_back(item),
            Some(last) if last.base == item.base && last.end <= item.end => *last = item,
            Some(_) => self.replace(item),
        }
    }

    fn replace(&mut self, item: Item) {
        let from = self.items.partition_point(|i| i.end <= item.base);
        let to = self.items.partition_point(|i| i.base < item.end);
        let mut with = Vec::with_capacity(3);
        if let Some(first) = self.items.get(from).filter(|i| from < to && i.base < item.base) {
            with.push(first.until(item.base));
        }
        with.push(item);
        if let Some(last) = (from < to)
            .then(|| self.items[to - 1])
            .filter(|i| i.end > item.end)
        {
            with.push(last.from(item.end));
        }
        let tail = self.items.split_off(to);
        self.items.truncate(from);
        self.items.extend(with);
        self.items.extend(tail);
    }

    /// Drops what lies before `first`.
    pub(super) fn trim(&mut self, first: Offset) {
        self.first = self.first.max(first.min(self.next));
        while self.items.front().is_some_and(|i| i.end <= self.first) {
            self.items.pop_front();
        }
        if let Some(front) = self.items.front_mut().filter(|i| i.base < self.first) {
            *front = front.from(self.first);
        }
    }

    /// The item that holds this offset, or the next one after it.
    pub(super) fn find(&self, offset: Offset) -> Option<Item> {
        let at = self.items.partition_point(|i| i.end <= offset);
        self.items.get(at).copied()
    }

    /// The first item with a record at or after `time`.
    pub(super) fn find_time(&self, time: Time) -> Option<Item> {
        self.items.iter().find(|i| i.max_time >= time).copied()
    }

    /// The first offset of `first..next` that no item holds, if there is one.
    pub(super) fn hole(&self) -> Option<Offset> {
        let mut at = self.first;
        for item in &self.items {
            if item.base > at {
                return Some(at);
            }
            at = at.max(item.end);
        }
        (at < self.next).then_some(at)
    }
}

/// The items of one segment, in the order in which they were written: its footer.
#[derive(Debug, Default)]
pub(super) struct SegmentItems {
    items: Vec<(u32, Origin, Item)>,
    /// The newest item of each partition and origin.
    newest: HashMap<(u32, Origin), usize>,
}

impl SegmentItems {
    /// Notes a section of a frame that stands at `at..until`, and returns the item that now holds it.
    pub(super) fn add(&mut self, section: &SectionHead, segment: u64, at: u32, until: u32) -> Item {
        let key = (section.partition, section.origin);
        if let Some(held) = self.newest.get(&key).map(|n| &mut self.items[*n].2)
            && held.end == section.base
            && held.bytes < OWN
            && until - held.at <= STRETCH
        {
            held.end = section.end();
            held.until = until;
            held.bytes = held.bytes.saturating_add(section.len);
            held.max_time = held.max_time.max(section.max_time);
            return *held;
        }
        let item = Item {
            base: section.base,
            end: section.end(),
            segment,
            at,
            until,
            bytes: section.len,
            max_time: section.max_time,
            tx: match section.origin {
                Origin::Part(tx) => tx,
                Origin::Batch | Origin::Carried => 0,
            },
            shift: 0,
        };
        self.newest.insert(key, self.items.len());
        self.items.push((section.partition, section.origin, item));
        item
    }

    /// Partition, origin and item, in the order of writing.
    pub(super) fn iter(&self) -> impl Iterator<Item = &(u32, Origin, Item)> {
        self.items.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// Each item: kind u8 (1 batch, 2 carried, 3 part), partition u32, transaction u64, base u64, end u64,
    /// at u32, until u32, bytes u32, max time u64 (all LE).
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.items.len() as u32).to_le_bytes());
        for (partition, origin, item) in &self.items {
            out.push(match origin {
                Origin::Batch => 1,
                Origin::Carried => 2,
                Origin::Part(_) => 3,
            });
            out.extend_from_slice(&partition.to_le_bytes());
            out.extend_from_slice(&item.tx.to_le_bytes());
            out.extend_from_slice(&item.base.to_le_bytes());
            out.extend_from_slice(&item.end.to_le_bytes());
            out.extend_from_slice(&item.at.to_le_bytes());
            out.extend_from_slice(&item.until.to_le_bytes());
            out.extend_from_slice(&item.bytes.to_le_bytes());
            out.extend_from_slice(&item.max_time.0.to_le_bytes());
        }
    }

    /// The reverse of [`SegmentItems::encode`].
    pub(super) fn decode(bytes: &[u8], segment: u64) -> Option<SegmentItems> {
        let mut wire = Wire(bytes);
        let n = wire.u32()? as usize;
        let mut out = SegmentItems::default();
        for _ in 0..n {
            let kind = wire.u8()?;
            let partition = wire.u32()?;
            let tx = wire.u64()?;
            let item = Item {
                base: wire.u64()?,
                end: wire.u64()?,
                segment,
                at: wire.u32()?,
                until: wire.u32()?,
                bytes: wire.u32()?,
                max_time: Time(wire.u64()?),
                tx,
                shift: 0,
            };
            let origin = match kind {
                1 => Origin::Batch,
                2 => Origin::Carried,
                3 => Origin::Part(tx),
                _ => return None,
            };
            out.items.push((partition, origin, item));
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn item(base: Offset, end: Offset, segment: u64) -> Item {
        Item {
            base,
            end,
            segment,
            at: 0,
            until: 64,
            bytes: (end - base) as u32 * 10,
            max_time: Time(end),
            tx: 0,
            shift: 0,
        }
    }

    proptest! {
        /// Each offset belongs to the item that was put in last, whatever overlaps.
        #[test]
        fn the_last_put_wins(puts in prop::collection::vec((0u64..60, 1u64..20), 1..40), cut in 0u64..80) {
            let mut index = PartitionIndex { next: 100, ..Default::default() };
            let mut oracle = vec![None; 100];
            for (n, (base, len)) in puts.iter().enumerate() {
                index.put(item(*base, base + len, n as u64));
                for slot in &mut oracle[*base as usize..(base + len) as usize] {
                    *slot = Some(n as u64);
                }
            }
            index.trim(cut);
            prop_assert!(index.items.iter().zip(index.items.iter().skip(1)).all(|(a, b)| a.end <= b.base));
            for (offset, owner) in oracle.iter().enumerate().skip(cut as usize) {
                let found = index.find(offset as u64).filter(|i| i.base <= offset as u64).map(|i| i.segment);
                prop_assert_eq!(found, *owner, "offset {}", offset);
            }
        }
    }

    #[test]
    fn a_footer_comes_back() {
        let mut items = SegmentItems::default();
        for (n, origin) in [Origin::Batch, Origin::Part(5), Origin::Batch, Origin::Carried]
            .iter()
            .enumerate()
        {
            let head = SectionHead {
                origin: *origin,
                partition: 1,
                base: n as u64 * 10,
                count: 10,
                len: 1000,
                crc: 0,
                max_time: Time(n as u64),
            };
            items.add(&head, 9, n as u32 * 100, n as u32 * 100 + 100);
        }
        let mut bytes = Vec::new();
        items.encode(&mut bytes);
        assert_eq!(bytes.len(), 4 + items.len() * ITEM_LEN);
        let back = SegmentItems::decode(&bytes, 9).expect("whole");
        assert_eq!(back.items, items.items);
        assert!(SegmentItems::decode(&bytes[..bytes.len() - 1], 9).is_none());
    }

    #[test]
    fn neighbours_share_an_item_until_it_is_large() {
        let mut items = SegmentItems::default();
        let mut base = 0;
        for n in 0..100u32 {
            let head = SectionHead {
                origin: Origin::Batch,
                partition: 0,
                base,
                count: 4,
                len: 8 * 1024,
                crc: 0,
                max_time: Time(1),
            };
            items.add(&head, 1, n * 9000, n * 9000 + 9000);
            base += 4;
        }
        assert_eq!(items.len(), 13, "800 KiB in items of 64 KiB");
    }
}
