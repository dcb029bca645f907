//! Finished ranges above a position: which offsets are done.
use super::types::Offset;
use std::collections::BTreeMap;

/// Disjoint half-open ranges of offsets that do not touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    ranges: BTreeMap<Offset, Offset>,
}

impl RangeSet {
    /// Adds one offset; false if it was there.
    pub fn insert(&mut self, offset: Offset) -> bool {
        self.insert_range(offset, offset + 1)
    }

    /// Adds `from..to`, merging what touches; false if all of it was there.
    pub fn insert_range(&mut self, from: Offset, to: Offset) -> bool {
        if from >= to {
            return false;
        }
        let (mut start, mut end) = (from, to);
        if let Some((&s, &e)) = self.ranges.range(..=from).next_back() {
            if e >= to {
                return false;
            }
            if e >= from {
                start = s;
                self.ranges.remove(&s);
            }
        }
        while let Some((&s, &e)) = self.ranges.range(start..=end).next() {
            end = end.max(e);
            self.ranges.remove(&s);
        }
        self.ranges.insert(start, end);
        true
    }

    /// Whether the offset is in a range.
    pub fn contains(&self, offset: Offset) -> bool {
        self.end_of(offset).is_some()
    }

    /// End of the range that holds the offset.
    pub fn end_of(&self, offset: Offset) -> Option<Offset> {
        self.ranges
            .range(..=offset)
            .next_back()
            .filter(|&(_, &e)| e > offset)
            .map(|(_, &e)| e)
    }

    /// If a range begins at or before `position`, drops it and returns its end: the new position.
    pub fn advance(&mut self, position: Offset) -> Offset {
        let mut position = position;
        while let Some((&s, &e)) = self.ranges.first_key_value() {
            if s > position {
                break;
            }
            position = position.max(e);
            self.ranges.remove(&s);
        }
        position
    }

    /// Number of ranges.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Ranges, rising.
    pub fn iter(&self) -> impl Iterator<Item = (Offset, Offset)> + '_ {
        self.ranges.iter().map(|(&s, &e)| (s, e))
    }

    /// Number of offsets in all ranges.
    pub fn covered(&self) -> u64 {
        self.ranges.iter().map(|(s, e)| e - s).sum()
    }
}
