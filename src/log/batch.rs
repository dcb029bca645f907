//! A batch under construction: records of several partitions, already in the form in which they are written.

use super::PartitionId;
use crate::core::types::{Offset, Time};
use bytes::{BufMut, BytesMut};

/// Records for several partitions, and consumer offsets, that become durable together or not at all.
#[derive(Default, Debug)]
pub struct Batch {
    /// One section a partition, in the order of first use.
    pub(crate) sections: Vec<Section>,
    /// Consumer offsets: group, partition, next offset to read.
    pub(crate) offsets: Vec<(String, PartitionId, Offset)>,
    /// Outcomes and positions go into the reserve when the disk is full; records do not.
    pub(crate) reserve: bool,
}

/// The records of one partition, encoded. Never change the form: for each record timestamp (u64 LE,
/// microseconds), key length (u32 LE, all ones: none), value length (u32 LE), headers length (u32 LE), then key,
/// value and headers.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) partition: PartitionId,
    pub(crate) count: u32,
    pub(crate) bytes: BytesMut,
}

/// Bytes of a record's fixed part.
pub(crate) const RECORD_HEAD: usize = 20;
/// Key length that says "no key".
pub(crate) const NO_KEY: u32 = u32::MAX;

impl Batch {
    /// An empty batch of new records: refused when the disk is full.
    pub fn new() -> Self {
        Self::default()
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
        let index = match self.sections.iter().position(|s| s.partition == partition) {
            Some(i) => i,
            None => {
                self.sections.push(Section {
                    partition,
                    count: 0,
                    bytes: BytesMut::new(),
                });
                self.sections.len() - 1
            }
        };
        let section = &mut self.sections[index];
        section.count += 1;
        let out = &mut section.bytes;
        out.reserve(RECORD_HEAD + key.map_or(0, <[u8]>::len) + value.len() + headers.len());
        out.put_u64_le(at.0);
        out.put_u32_le(key.map_or(NO_KEY, |k| k.len() as u32));
        out.put_u32_le(value.len() as u32);
        out.put_u32_le(headers.len() as u32);
        out.put_slice(key.unwrap_or_default());
        out.put_slice(value);
        out.put_slice(headers);
    }

    /// Adds a consumer offset: the group will go on reading this partition at `next`.
    pub fn commit_offset(&mut self, group: &str, partition: PartitionId, next: Offset) {
        self.offsets.push((group.to_owned(), partition, next));
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
