//! A histogram for hot paths: fixed buckets, one atomic each, no lock.

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the buckets in microseconds, 1-2.5-5 from 0.5 ms to 10 s, then by hand to a day: attempts end
/// within seconds, ages may be hours.
const BOUNDS_US: [u64; 21] = [
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    1_800_000_000,
    3_600_000_000,
    21_600_000_000,
    86_400_000_000,
];

/// Durations, counted in buckets. Clones share their counts. Recording is one search in 21 bounds and two relaxed
/// atomic additions.
#[derive(Clone, Debug, Default)]
pub struct Durations(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    sum_us: AtomicU64,
    /// The last one holds what is above every bound.
    counts: [AtomicU64; BOUNDS_US.len() + 1],
}

impl Durations {
    /// Counts one duration.
    #[inline]
    pub fn record(&self, duration: Duration) {
        self.record_us(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
    }

    /// Counts one duration given in microseconds.
    #[inline]
    pub fn record_us(&self, us: u64) {
        let bucket = BOUNDS_US.partition_point(|&bound| bound < us);
        self.0.counts[bucket].fetch_add(1, Relaxed);
        // A sum that wraps would be worse than one that is a little short: no single value adds more than a year.
        self.0.sum_us.fetch_add(us.min(365 * 86_400_000_000), Relaxed);
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.0.counts.iter().map(|c| c.load(Relaxed)).sum()
    }

    /// Their sum.
    pub fn sum(&self) -> Duration {
        Duration::from_micros(self.0.sum_us.load(Relaxed))
    }
}

impl TypedMetric for Durations {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Durations {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let bounds = BOUNDS_US.iter().map(|&us| us as f64 / 1e6).chain([f64::MAX]);
        let buckets: Vec<(f64, u64)> = bounds
            .zip(self.0.counts.iter().map(|c| c.load(Relaxed)))
            .collect();
        // The count is taken from the same reading as the buckets, else a scrape could see them disagree.
        let count = buckets.iter().map(|&(_, n)| n).sum();
        encoder.encode_histogram::<NoLabelSet>(self.sum().as_secs_f64(), count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_value_on_a_bound_counts_below_it() {
        let durations = Durations::default();
        durations.record_us(500);
        durations.record_us(501);
        assert_eq!(durations.0.counts[0].load(Relaxed), 1);
        assert_eq!(durations.0.counts[1].load(Relaxed), 1);
    }

    proptest! {
        #[test]
        fn nothing_is_lost(values in proptest::collection::vec(any::<u64>(), 0..200)) {
            let durations = Durations::default();
            values.iter().for_each(|&us| durations.record_us(us));
            prop_assert_eq!(durations.count(), values.len() as u64);
        }
    }
}
