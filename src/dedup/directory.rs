//! One look that rules out eight sealed buckets.
//!
//! Each bucket's filter is some MiB, so an ID that is in none of ten buckets costs ten places of memory far apart.
//! A directory holds the first half of the filters of up to eight buckets side by side: a line for each stretch of
//! hash values, in it a byte for each bit of a filter's block, in the byte a bit for each bucket. Where it lets an ID
//! through (about one in 40 for each bucket) the bucket's own filter is asked. It is made from the filters alone, and
//! never changes; a bucket that has gone leaves a bit that nobody asks for.

use super::filter::{Filter, Probe, index_in};

/// Buckets of one directory.
pub(super) const COLUMNS: usize = 8;
/// Fewer are asked one by one.
pub(super) const WORTH: usize = 3;

/// The bits of two words of a filter's block, for all buckets: two lines of the processor's cache, side by side.
#[repr(align(64))]
struct Line([[u8; 64]; 2]);

/// Says which of several sealed buckets may hold an ID.
pub(super) struct Directory {
    lines: Box<[Line]>,
    /// Numbers of the buckets, by their bits.
    buckets: Vec<u32>,
}

impl Directory {
    /// The directory of these buckets, at most [`COLUMNS`], by number and filter. None if `stop` says so meanwhile.
    pub(super) fn of(buckets: &[(u32, &Filter)], stop: impl Fn() -> bool) -> Option<Self> {
        let len = buckets.iter().map(|(_, f)| f.blocks()).max().unwrap_or(0);
        let mut lines: Box<[Line]> = (0..len).map(|_| Line([[0; 64]; 2])).collect();
        for (column, (_, filter)) in buckets.iter().take(COLUMNS).enumerate() {
            if stop() {
                return None;
            }
            let (bit, blocks) = (1u8 << column, filter.blocks());
            for (n, line) in lines.iter_mut().enumerate() {
                // All blocks in which a hash that belongs to this line can lie.
                let (from, to) = (n * blocks / len, ((n + 1) * blocks).div_ceil(len));
                let mut words = [0u64; 2];
                for block in from..to {
                    let of_block = filter.words(block);
                    (0..2).for_each(|w| words[w] |= of_block[w]);
                }
                for (bytes, mut word) in line.0.iter_mut().zip(words) {
                    while word != 0 {
                        bytes[word.trailing_zeros() as usize] |= bit;
                        word &= word - 1;
                    }
                }
            }
        }
        Some(Self {
            lines,
            buckets: buckets.iter().take(COLUMNS).map(|(id, _)| *id).collect(),
        })
    }

    /// Its buckets, by their bits.
    pub(super) fn buckets(&self) -> &[u32] {
        &self.buckets
    }

    /// The bits of the buckets that may hold an ID; in all others it certainly is not.
    #[inline]
    pub(super) fn may_hold(&self, probe: &Probe) -> u8 {
        let [first, second] = &self.lines[index_in(probe.hash, self.lines.len())].0;
        let [a, b, c, d] = probe.spots.map(|s| usize::from(s & 63));
        first[a] & first[b] & second[c] & second[d]
    }

    /// Bytes it holds in memory.
    pub(super) fn bytes(&self) -> u64 {
        (self.lines.len() * size_of::<Line>()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::types::MessageId;

    fn probe(n: u64) -> Probe {
        let mut out = [0; 16];
        fastrand::Rng::with_seed(n).fill(&mut out);
        Probe::of(&MessageId(out))
    }

    /// Buckets of very different sizes: none that holds an ID is ever ruled out, and most others are.
    #[test]
    fn rules_out_no_bucket_that_holds_an_id() {
        let sizes = [1u64, 40, 5_000, 20_000, 19_999, 777, 0, 12_345];
        let filters: Vec<Filter> = sizes
            .iter()
            .enumerate()
            .map(|(n, &size)| {
                let filter = Filter::with_bits(size, 16);
                (0..size).for_each(|i| filter.add(&probe(n as u64 * 1_000_000 + i)));
                filter
            })
            .collect();
        let named: Vec<(u32, &Filter)> = (10..).zip(&filters).collect();
        let directory = Directory::of(&named, || false).unwrap();
        assert_eq!(directory.buckets(), [10, 11, 12, 13, 14, 15, 16, 17]);
        for (n, &size) in sizes.iter().enumerate() {
            let held = |i| directory.may_hold(&probe(n as u64 * 1_000_000 + i)) >> n & 1 == 1;
            assert!((0..size).all(held), "bucket {n}");
        }
        let absent = (0..50_000).map(|n| directory.may_hold(&probe(90_000_000 + n)).count_ones());
        let through: u32 = absent.sum();
        assert!(through < 50_000 * 8 / 20, "{through} of 400000 let through");
        assert!(Directory::of(&named, || true).is_none());
    }
}
