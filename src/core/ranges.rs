//! Finished ranges above a position: which offsets are done. Kept as few ranges, since most records finish nearly
//! in order: a million records above one that waits are one range, or as many as there are gaps.

use super::types::Offset;
use std::collections::BTreeMap;

/// Disjoint half-open ranges of offsets that do not touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    ranges: BTreeMap<Offset, Offset>,
}

impl RangeSet {
    /// Adds one offset; false if it was there. The last offset there is cannot be in a set: false.
    #[inline]
    pub fn insert(&mut self, offset: Offset) -> bool {
        self.insert_range(offset, offset.saturating_add(1))
    }

    /// Adds `from..to`, merging what touches; false if all of it was there.
    pub fn insert_range(&mut self, from: Offset, to: Offset) -> bool {
        if from >= to {
            return false;
        }
        let next = self.ranges.range(from + 1..).next().map(|(&s, &e)| (s, e));
        // The range that begins at or before `from`, if it reaches it, grows in place.
        let before = self.ranges.range_mut(..=from).next_back();
        let end = match before {
            Some((_, e)) if *e >= to => return false,
            Some((_, e)) if *e >= from => {
                *e = to;
                if next.is_none_or(|(s, _)| s > to) {
                    return true;
                }
                e
            }
            _ => self.ranges.entry(from).insert_entry(to).into_mut(),
        };
        // Swallows what it now touches.
        let mut reach = *end;
        let mut swallowed = next;
        while let Some((s, e)) = swallowed {
            if s > reach {
                break;
            }
            self.ranges.remove(&s);
            reach = reach.max(e);
            swallowed = self.ranges.range(s + 1..).next().map(|(&s, &e)| (s, e));
        }
        if let Some((_, e)) = self.ranges.range_mut(..=from).next_back() {
            *e = reach;
        }
        true
    }

    /// Takes ranges that rise, are not empty and do not touch; none where they are not like that.
    pub fn from_rising(ranges: Vec<(Offset, Offset)>) -> Option<Self> {
        let rising = ranges.windows(2).all(|pair| pair[0].1 < pair[1].0);
        let filled = ranges.iter().all(|(s, e)| s < e);
        (rising && filled).then(|| Self {
            ranges: ranges.into_iter().collect(),
        })
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// Maximal runs of a naive set.
    fn runs(set: &BTreeSet<u64>) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for &o in set {
            match runs.last_mut() {
                Some((_, end)) if *end == o => *end += 1,
                _ => runs.push((o, o + 1)),
            }
        }
        runs
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        #[test]
        fn does_what_a_naive_set_does(steps in prop::collection::vec((0u64..60, 0u64..6, 0u8..10), 0..60)) {
            let (mut ranges, mut naive) = (RangeSet::default(), BTreeSet::new());
            let mut position = 0;
            for (from, len, what) in steps {
                match what {
                    0..6 => {
                        prop_assert_eq!(ranges.insert(from), naive.insert(from));
                    }
                    6..9 => {
                        let new = (from..from + len).filter(|o| naive.insert(*o)).count();
                        prop_assert_eq!(ranges.insert_range(from, from + len), new > 0);
                    }
                    _ => {
                        position = position.max(from / 8);
                        let moved = ranges.advance(position);
                        // The naive way: as long as the next one, or any behind the position, is there.
                        while naive.first().is_some_and(|first| *first <= position) {
                            position = position.max(naive.pop_first().unwrap() + 1);
                        }
                        prop_assert_eq!(moved, position);
                    }
                }
                prop_assert_eq!(ranges.iter().collect::<Vec<_>>(), runs(&naive));
                prop_assert_eq!(RangeSet::from_rising(runs(&naive)), Some(ranges.clone()));
                prop_assert_eq!(ranges.len(), runs(&naive).len());
                prop_assert_eq!(ranges.is_empty(), naive.is_empty());
                prop_assert_eq!(ranges.covered(), naive.len() as u64);
                for o in 0..70 {
                    prop_assert_eq!(ranges.contains(o), naive.contains(&o));
                    let end = runs(&naive).iter().find(|(s, e)| *s <= o && o < *e).map(|r| r.1);
                    prop_assert_eq!(ranges.end_of(o), end);
                }
            }
        }
    }

    #[test]
    fn ranges_that_touch_or_fall_are_refused() {
        for bad in [
            vec![(1, 1)],
            vec![(1, 3), (3, 4)],
            vec![(5, 6), (1, 2)],
            vec![(4, 2)],
        ] {
            assert_eq!(RangeSet::from_rising(bad), None);
        }
    }

    #[test]
    fn the_last_offset_there_is_does_not_overflow() {
        let mut ranges = RangeSet::default();
        assert!(!ranges.insert(u64::MAX));
        assert!(ranges.insert_range(u64::MAX - 1, u64::MAX));
        assert_eq!(ranges.advance(u64::MAX - 1), u64::MAX);
    }
}
