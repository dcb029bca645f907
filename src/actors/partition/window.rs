//! Which offsets of a partition are finished: the position, finished ranges above it, and the high-water mark.
//! Pure. What it says rests only on outcomes appended before (I1): the caller writes it behind them.

use crate::core::ranges::RangeSet;
use crate::core::types::Offset;

/// Position, finished ranges, high-water mark; and whether the ledger can derive them from outcomes alone.
pub type Snapshot = (Offset, Vec<(Offset, Offset)>, Offset);

/// See the module.
#[derive(Debug)]
pub struct Window {
    position: Offset,
    finished: RangeSet,
    high_water: Offset,
    /// Something was finished without an outcome (duplicates, filtered records) since the last writing, or the ledger has
    /// not met the route.
    unwritten: bool,
}

impl Window {
    /// A window as the fold knows it.
    pub fn new(position: Offset, finished: RangeSet, high_water: Offset) -> Self {
        Self {
            position,
            finished,
            high_water,
            unwritten: false,
        }
    }

    /// Every record before this offset is finished.
    pub fn position(&self) -> Offset {
        self.position
    }

    /// Number of finished ranges above the position.
    pub fn ranges(&self) -> usize {
        self.finished.len()
    }

    /// The first offset at or after this one that is not finished.
    pub fn next_unfinished(&self, offset: Offset) -> Offset {
        let offset = offset.max(self.position);
        self.finished.end_of(offset).unwrap_or(offset)
    }

    /// Whether the offset is finished.
    pub fn is_finished(&self, offset: Offset) -> bool {
        offset < self.position || self.finished.contains(offset)
    }

    /// One past the highest record ever taken up.
    pub fn high_water(&self) -> Offset {
        self.high_water
    }

    /// A record was taken up.
    pub fn seen(&mut self, offset: Offset) {
        self.high_water = self.high_water.max(offset + 1);
    }

    /// An offset is finished by an outcome in the ledger.
    pub fn finish(&mut self, offset: Offset) {
        if offset >= self.position {
            self.finished.insert(offset);
            self.position = self.finished.advance(self.position);
        }
    }

    /// Offsets from `from` up to `to` hold no record, or one that is finished without an entry of its own.
    pub fn finish_silently(&mut self, from: Offset, to: Offset) {
        let from = from.max(self.position);
        if from < to {
            self.finished.insert_range(from, to);
            self.position = self.finished.advance(self.position);
            self.unwritten = true;
        }
    }

    /// The ledger has not met the route: its position is to be written although nothing is finished.
    pub fn introduce(&mut self) {
        self.unwritten = true;
    }

    /// What must be written into the ledger, if it cannot be derived from outcomes there.
    pub fn to_write(&mut self) -> Option<Snapshot> {
        std::mem::take(&mut self.unwritten)
            .then(|| (self.position, self.finished.iter().collect(), self.high_water))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_position_waits_for_the_slowest() {
        let mut window = Window::new(10, RangeSet::default(), 10);
        window.finish(11);
        window.finish(12);
        assert_eq!(
            (
                window.position(),
                window.next_unfinished(10),
                window.next_unfinished(11)
            ),
            (10, 10, 13)
        );
        assert_eq!(window.to_write(), None, "outcomes tell it already");
        window.finish_silently(10, 11);
        assert_eq!(window.position(), 13);
        assert_eq!(window.to_write(), Some((13, vec![], 10)));
    }
}
