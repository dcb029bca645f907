//! A batch under construction: records of several partitions, already in the form in which they are written.
//!
//! Encoding happens here, on the caller's thread, so that the one thread that writes the log only copies. A
//! partition's records are cut into chunks of about [`CHUNK`] bytes: a chunk is what a reader fetches and checks
//! at once, so a reader that wants one record never reads a whole import.

use super::PartitionId;
use crate::core::types::{Offset, Time};
use bytes::{BufMut, BytesMut};

/// Records for several partitions, and consumer offsets, that become durable together or not at all.
#[derive(Default, Debug)]
pub struct Batch {
    /// Chunks in the order of first use; those of one partition follow each other in the order of its records.
    pub(crate) sections: Vec<Section>,
    /// Consumer offsets: group, partition, next offset to read.
    pub(crate) offsets: Vec<(String, PartitionId, Offset)>,
    /// Outcomes and positions go into the reserve when the disk is full; records do not.
    pub(crate) reserve: bool,
    /// Room made for its first section.
    hint: usize,
    /// The section that the last record went to: most batches write to one partition many times in a row.
    last: usize,
}

/// Records of one partition, encoded. Never change the form: for each record timestamp (u64 LE,
/// microseconds), key length (u32 LE, all ones: none), value length (u32 LE), headers length (u32 LE), then key,
/// value and headers.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) partition: PartitionId,
    pub(crate) count: u32,
    /// The latest timestamp in it: what retention and look-ups by time go by.
    pub(crate) max_time: Time,
    pub(crate) bytes: BytesMut,
}

/// Bytes of a record's fixed part.
pub(crate) const RECORD_HEAD: usize = 20;
/// Key length that says "no key".
pub(crate) const NO_KEY: u32 = u32::MAX;
/// A section takes records until it holds this many bytes, and is then followed by another one.
pub(crate) const CHUNK: usize = 64 * 1024;

impl Batch {
    /// An empty batch of new records: refused when the disk is full.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty batch with room for records of so many bytes altogether.
    pub fn sized(bytes: usize) -> Self {
        Self {
            hint: bytes.min(CHUNK),
            ..Self::default()
        }
    }

    /// An empty batch that may use the reserve when the disk is full: outcomes, positions.
    pub fn from_reserve() -> Self {
        Self {
            reserve: true,
            ..Self::default()
        }
    }

    /// Adds one record.
    pub fn push(
        &mut self,
        partition: PartitionId,
        at: Time,
        key: Option<&[u8]>,
        value: &[u8],
        headers: &[u8],
    ) {
        let size = RECORD_HEAD + key.map_or(0, <[u8]>::len) + value.len() + headers.len();
        let section = self.section_for(partition, size);
        section.count += 1;
        section.max_time = section.max_time.max(at);
        let out = &mut section.bytes;
        out.reserve(size);
        out.put_u64_le(at.0);
        out.put_u32_le(key.map_or(NO_KEY, |k| k.len() as u32));
        out.put_u32_le(value.len() as u32);
        out.put_u32_le(headers.len() as u32);
        out.put_slice(key.unwrap_or_default());
        out.put_slice(value);
        out.put_slice(headers);
    }

    /// The partition's newest section, or another one where that is full.
    fn section_for(&mut self, partition: PartitionId, size: usize) -> &mut Section {
        let held = self.sections.get(self.last).filter(|s| s.partition == partition);
        if held.is_none() {
            let newest = self.sections.iter().rposition(|s| s.partition == partition);
            self.last = newest.unwrap_or(self.sections.len());
        }
        let open = self.sections.get(self.last);
        if open.is_none_or(|s| s.count > 0 && s.bytes.len() + size > CHUNK) {
            self.last = self.sections.len();
            self.sections.push(Section {
                partition,
                count: 0,
                max_time: Time::ZERO,
                bytes: BytesMut::with_capacity(std::mem::take(&mut self.hint)),
            });
        }
        &mut self.sections[self.last]
    }

    /// Adds a consumer offset: the group will go on reading this partition at `next`.
    pub fn commit_offset(&mut self, group: &str, partition: PartitionId, next: Offset) {
        self.offsets.push((group.to_owned(), partition, next));
    }

    /// Adds all of another batch behind what is in this one. Which of the two may use the reserve is not looked at:
    /// this one's kind stays.
    pub fn join(&mut self, other: Batch) {
        self.sections.extend(other.sections);
        self.offsets.extend(other.offsets);
        self.last = self.sections.len().saturating_sub(1);
    }

    /// Whether it may use the reserve when the disk is full.
    pub fn may_use_reserve(&self) -> bool {
        self.reserve
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.sections.iter().map(|s| s.count as usize).sum()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.sections.is_empty() && self.offsets.is_empty()
    }

    /// Bytes of the encoded records.
    pub fn bytes(&self) -> usize {
        self.sections.iter().map(|s| s.bytes.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_cut_into_chunks_that_keep_the_order() {
        let mut batch = Batch::new();
        let value = vec![7u8; 1000];
        for i in 0..200u64 {
            batch.push(PartitionId((i % 2) as u32), Time(i), None, &value, b"");
        }
        assert_eq!(batch.len(), 200);
        assert_eq!(batch.bytes(), 200 * 1020);
        assert!(batch.sections.len() >= 4, "two partitions of 100 KiB each");
        for p in 0..2 {
            let times: Vec<Time> = (batch.sections.iter())
                .filter(|s| s.partition == PartitionId(p))
                .map(|s| s.max_time)
                .collect();
            assert!(times.is_sorted());
        }
        assert!(batch.sections.iter().all(|s| s.bytes.len() <= CHUNK));
    }

    #[test]
    fn joined_batches_keep_their_order() {
        let (mut first, mut second) = (Batch::from_reserve(), Batch::new());
        first.push(PartitionId(0), Time(1), None, b"a", b"");
        second.push(PartitionId(0), Time(2), None, b"b", b"");
        second.push(PartitionId(0), Time(3), None, b"c", b"");
        first.join(second);
        first.push(PartitionId(0), Time(4), None, b"d", b"");
        assert_eq!(
            first
                .sections
                .iter()
                .map(|s| (s.count, s.max_time.0))
                .collect::<Vec<_>>(),
            [(1, 1), (3, 4)]
        );
        assert!(first.may_use_reserve());
    }

    #[test]
    fn a_record_larger_than_a_chunk_stands_alone() {
        let mut batch = Batch::new();
        batch.push(PartitionId(0), Time(1), None, b"small", b"");
        batch.push(PartitionId(0), Time(1), None, &vec![0; 2 * CHUNK], b"");
        batch.push(PartitionId(0), Time(1), None, b"small", b"");
        assert_eq!(
            batch.sections.iter().map(|s| s.count).collect::<Vec<_>>(),
            [1, 1, 1]
        );
    }
}
