//! Which bucket of IDs may go. Pure.
//!
//! An ID must be remembered while its message may come again. Clocks do not tell that: a partition that is eight
//! days behind would meet its own duplicates after the IDs are gone (I2). So a bucket goes by offsets: when
//! look-ups have passed the end that the input had one retention after the bucket closed. The owner of a lane
//! writes that end into the ledger every so often, a sample. The price: a partition that stands still keeps its
//! buckets, or its part of them.
//!
//! Time between samples is believed up to two intervals: a cluster that was off for a week, or a clock that
//! jumped, ages nothing at once.

use crate::core::types::{Offset, RoutePartition, Time};
use std::time::Duration;

/// What is known of one route partition's input.
#[derive(Clone, Debug)]
pub struct RouteAge<'a> {
    /// Which route partition.
    pub at: RoutePartition,
    /// How long its IDs must be remembered after their bucket closed.
    pub retention: Duration,
    /// End offsets of its input at times, in the order they were written.
    pub samples: &'a [(Time, Offset)],
    /// Every record before this one has been looked up.
    pub looked_up: Offset,
    /// Records of it in the bucket.
    pub ids: u64,
}

/// What may be done with a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BucketAge {
    /// It stays.
    Keep,
    /// It goes once the IDs of these route partitions are carried into the present bucket.
    Carry(Vec<RoutePartition>),
    /// It goes.
    Go,
}

/// The end offset that look-ups must have passed before IDs of a bucket that closed at `closed` may go: that of
/// the first sample at which one retention is over. None while there is no such sample.
pub fn end_of_memory(
    samples: &[(Time, Offset)],
    closed: Time,
    retention: Duration,
    interval: Duration,
) -> Option<Offset> {
    let most = interval.saturating_mul(2);
    let mut last = closed;
    let mut passed = Duration::ZERO;
    for &(when, end) in samples.iter().skip_while(|(when, _)| *when < closed) {
        passed += when.since(last).min(most);
        // A sample after a jump back adds nothing until the clock is where it was.
        last = last.max(when);
        if passed >= retention {
            return Some(end);
        }
    }
    None
}

/// Whether the IDs of this route partition may go.
pub fn is_due(route: &RouteAge<'_>, closed: Time, interval: Duration) -> bool {
    end_of_memory(route.samples, closed, route.retention, interval).is_some_and(|end| route.looked_up >= end)
}

/// What may be done with a bucket that closed at `closed` and holds IDs of these route partitions, sampled every
/// `interval`. Those that are not due are carried if they are at most half of its IDs; else it stays, for nothing
/// is won by copying most of it.
pub fn judge(closed: Time, routes: &[RouteAge<'_>], interval: Duration) -> BucketAge {
    let held: Vec<&RouteAge<'_>> = routes
        .iter()
        .filter(|r| r.ids > 0 && !is_due(r, closed, interval))
        .collect();
    if held.is_empty() {
        return BucketAge::Go;
    }
    let all: u64 = routes.iter().map(|r| r.ids).sum();
    if held.iter().map(|r| r.ids).sum::<u64>() * 2 > all {
        return BucketAge::Keep;
    }
    BucketAge::Carry(held.iter().map(|r| r.at).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::types::RouteId;
    use proptest::prelude::*;

    const HOUR: Duration = Duration::from_secs(3_600);
    const DAY: Duration = Duration::from_secs(86_400);

    fn hour(n: u64) -> Time {
        Time(n * 3_600_000_000)
    }

    fn hourly(from: u64, to: u64) -> Vec<(Time, Offset)> {
        (from..to).map(|h| (hour(h), h * 10)).collect()
    }

    fn route(samples: &[(Time, Offset)], looked_up: Offset, ids: u64, partition: u32) -> RouteAge<'_> {
        let at = RoutePartition {
            route: RouteId(1),
            partition,
        };
        RouteAge {
            at,
            retention: DAY * 8,
            samples,
            looked_up,
            ids,
        }
    }

    #[test]
    fn goes_by_offsets_not_by_clocks() {
        let samples = hourly(0, 24 * 20);
        let closed = hour(24);
        let end = 24 * 9 * 10;
        assert_eq!(end_of_memory(&samples, closed, DAY * 8, HOUR), Some(end));
        assert!(!is_due(&route(&samples, end - 1, 1, 0), closed, HOUR));
        assert!(is_due(&route(&samples, end, 1, 0), closed, HOUR));
        assert!(!is_due(&route(&samples[..24 * 9], u64::MAX, 1, 0), closed, HOUR));
    }

    #[test]
    fn a_jump_of_the_clock_is_not_believed() {
        let mut samples = hourly(0, 30);
        samples.extend(hourly(30 + 24 * 365, 30 + 24 * 365 + 100));
        assert_eq!(end_of_memory(&samples, hour(24), DAY * 8, HOUR), None);
        // The jump counts as two hours of the eight days.
        samples.extend(hourly(30 + 24 * 365 + 100, 30 + 24 * 375));
        let end = (30 + 24 * 365 + 24 * 8 - 7) * 10;
        assert_eq!(end_of_memory(&samples, hour(24), DAY * 8, HOUR), Some(end));
        // Back and forth adds nothing.
        let back: Vec<_> = (0..10_000).map(|n| (hour(24 + n % 2), n)).collect();
        assert_eq!(end_of_memory(&back, hour(24), DAY, HOUR), None);
    }

    #[test]
    fn a_few_that_stay_are_carried_and_most_keep_the_bucket() {
        let samples = hourly(0, 24 * 20);
        let (late, done) = (0, u64::MAX);
        let ages = [
            route(&samples, done, 90, 0),
            route(&samples, late, 10, 1),
            route(&samples, late, 0, 2),
        ];
        assert_eq!(judge(hour(24), &ages, HOUR), BucketAge::Carry(vec![ages[1].at]));
        assert_eq!(judge(hour(24), &ages[..1], HOUR), BucketAge::Go);
        assert_eq!(judge(hour(24), &ages[1..], HOUR), BucketAge::Keep);
        assert_eq!(judge(hour(24), &[], HOUR), BucketAge::Go);
    }

    proptest! {
        /// Whatever the clock did: no ID goes before the samples that were written after its bucket closed could
        /// make up the retention, each standing for two intervals at most; and more samples never shorten it.
        #[test]
        fn never_early(gaps in proptest::collection::vec(0u64..100, 0..300), closed in 0u64..500, days in 1u32..4) {
            let mut now = 0;
            let samples: Vec<_> = gaps.iter().enumerate().map(|(n, g)| { now += g; (hour(now), n as u64) }).collect();
            let retention = DAY * days;
            let found = end_of_memory(&samples, hour(closed), retention, HOUR);
            if let Some(end) = found {
                let after = samples[..=end as usize].iter().filter(|s| s.0 >= hour(closed)).count() as u32;
                prop_assert!(HOUR * 2 * after >= retention);
                prop_assert!(samples[end as usize].0 >= hour(closed).plus(retention));
                let short = end_of_memory(&samples[..end as usize], hour(closed), retention, HOUR);
                prop_assert_eq!(short, None);
            }
        }
    }
}
