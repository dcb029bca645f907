//! Message IDs that are in one file twice. Pure, in bounded memory.
//!
//! Up to [`KEPT`] different IDs the count is exact. Beyond that only IDs whose hash ends in a number of zero bits are
//! kept, one bit more each time the bound is reached, and the count is an estimate: a pair of equal IDs is kept or left
//! out together.

use hashbrown::HashMap;

/// Different IDs that are kept: some 5 MB at most.
const KEPT: usize = 100_000;
/// Repeats that are named.
const NAMED: usize = 5;

/// Counts repeats.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    /// Hash of an ID to the line that had it first.
    seen: HashMap<u64, u64>,
    /// Zero bits that a kept hash ends in.
    bits: u32,
    /// Repeats among those kept.
    found: u64,
    /// The first ones: a line, and the one that it repeats.
    pub(super) named: Vec<(u64, u64)>,
}

impl Repeats {
    /// Notes the ID of a line; true if an earlier line had it.
    pub(super) fn note(&mut self, id: u64, line: u64) -> bool {
        if id.trailing_zeros() < self.bits {
            return false;
        }
        if let Some(first) = self.seen.get(&id) {
            self.found += 1;
            if self.named.len() < NAMED {
                self.named.push((line, *first));
            }
            return true;
        }
        if self.seen.len() >= KEPT {
            self.bits += 1;
            let bits = self.bits;
            self.seen.retain(|id, _| id.trailing_zeros() >= bits);
            // What was counted at the wider net counts as much at the narrower one.
            self.found = self.found.div_ceil(2);
            if id.trailing_zeros() < bits {
                return false;
            }
        }
        self.seen.insert(id, line);
        false
    }

    /// How many lines repeat an earlier ID, and whether that is exact.
    pub(super) fn count(&self) -> (u64, bool) {
        (self.found << self.bits, self.bits == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(i: u64) -> u64 {
        let hash = blake3::hash(&i.to_le_bytes());
        let mut head = [0; 8];
        head.copy_from_slice(&hash.as_bytes()[..8]);
        u64::from_le_bytes(head)
    }

    #[test]
    fn repeats_are_counted_and_named_exactly_and_beyond_the_bound_about() {
        let mut repeats = Repeats::default();
        for (line, id) in [7, 8, 7, 9, 7].into_iter().enumerate() {
            repeats.note(hash(id), line as u64 + 1);
        }
        assert_eq!(
            (repeats.count(), &repeats.named[..]),
            ((2, true), &[(3, 1), (5, 1)][..])
        );

        let mut repeats = Repeats::default();
        let all = 300_000;
        for i in 0..all {
            repeats.note(hash(i), i);
        }
        assert!(repeats.seen.len() <= KEPT);
        // A tenth of them once more.
        for i in 0..all / 10 {
            repeats.note(hash(i), all + i);
        }
        let (count, exact) = repeats.count();
        assert!(!exact && count.abs_diff(30_000) < 3_000, "{count}");
    }
}
