//! What a segment begins with: everything that must be known although the frames that said it may be gone.
//!
//! The newest segment's catalogue and its frames are the whole state; older segments only hold records.

use super::frame::{Bases, TopicEntry, put_commit, take_commit};
use super::wire::{Wire, put_text};
use crate::core::types::Offset;

/// The state of the journal at the beginning of a segment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Catalogue {
    /// Number of the segment's first frame.
    pub next_frame: u64,
    /// Number for the next transaction: numbers are never given twice.
    pub next_tx: u64,
    /// Number for the next partition that is made: likewise.
    pub next_partition: u32,
    /// Segments in which something may live, this one not among them, with their slots.
    pub segments: Vec<(u64, u32)>,
    /// Topics, each with first and next offset of its partitions.
    pub topics: Vec<(TopicEntry, Vec<(Offset, Offset)>)>,
    /// Consumer groups: name, partition, next offset.
    pub groups: Vec<(String, u32, Offset)>,
    /// Committed transactions whose parts still lie where they were written: where their records stand. A frame
    /// with a commit may go before the parts do.
    pub commits: Vec<(u64, Bases)>,
}

impl Catalogue {
    /// All numbers LE; lists with their length (u32) before them; names with theirs (u16).
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.next_frame.to_le_bytes());
        out.extend_from_slice(&self.next_tx.to_le_bytes());
        out.extend_from_slice(&self.next_partition.to_le_bytes());
        out.extend_from_slice(&(self.segments.len() as u32).to_le_bytes());
        for (number, slot) in &self.segments {
            out.extend_from_slice(&number.to_le_bytes());
            out.extend_from_slice(&slot.to_le_bytes());
        }
        out.extend_from_slice(&(self.topics.len() as u32).to_le_bytes());
        for (topic, bounds) in &self.topics {
            topic.put(out);
            for (first, next) in bounds {
                out.extend_from_slice(&first.to_le_bytes());
                out.extend_from_slice(&next.to_le_bytes());
            }
        }
        out.extend_from_slice(&(self.groups.len() as u32).to_le_bytes());
        for (group, partition, next) in &self.groups {
            put_text(out, group);
            out.extend_from_slice(&partition.to_le_bytes());
            out.extend_from_slice(&next.to_le_bytes());
        }
        out.extend_from_slice(&(self.commits.len() as u32).to_le_bytes());
        for (tx, bases) in &self.commits {
            put_commit(out, *tx, bases);
        }
    }

    /// The reverse of [`Catalogue::encode`].
    pub(super) fn decode(bytes: &[u8]) -> Option<Catalogue> {
        let wire = &mut Wire(bytes);
        let mut out = Catalogue {
            next_frame: wire.u64()?,
            next_tx: wire.u64()?,
            next_partition: wire.u32()?,
            ..Catalogue::default()
        };
        for _ in 0..wire.u32()? {
            out.segments.push((wire.u64()?, wire.u32()?));
        }
        for _ in 0..wire.u32()? {
            let topic = TopicEntry::take(wire)?;
            let bounds = (topic.partitions.iter())
                .map(|_| Some((wire.u64()?, wire.u64()?)))
                .collect::<Option<_>>()?;
            out.topics.push((topic, bounds));
        }
        for _ in 0..wire.u32()? {
            out.groups.push((wire.text()?, wire.u32()?, wire.u64()?));
        }
        for _ in 0..wire.u32()? {
            out.commits.push(take_commit(wire)?);
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::types::TopicId;

    #[test]
    fn comes_back_whole_or_not_at_all() {
        let topic = TopicEntry {
            name: "t".into(),
            id: TopicId(5),
            retention_us: None,
            retention_bytes: Some(10),
            partitions: vec![0, 1],
        };
        let catalogue = Catalogue {
            next_frame: 7,
            next_tx: 3,
            next_partition: 2,
            segments: vec![(1, 0), (4, 2)],
            topics: vec![(topic, vec![(3, 9), (0, 0)])],
            groups: vec![("g".into(), 1, 6)],
            commits: vec![(2, vec![(0, 4, 5)])],
        };
        let mut bytes = Vec::new();
        catalogue.encode(&mut bytes);
        assert_eq!(Catalogue::decode(&bytes), Some(catalogue));
        for n in 0..bytes.len() {
            assert_eq!(Catalogue::decode(&bytes[..n]), None);
        }
    }
}
