//! Starts drawn from one budget, in the form from which a limiter is rebuilt (I5). Whatever is made coarser is
//! made later: a window rebuilt from it never has fewer starts in it than there were.

use crate::core::types::Time;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Starts of one budget. Kept: those of the last 65 seconds nearly one by one, and counts per quarter hour behind
/// that for up to 32 days, so that every window can be rebuilt conservatively.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UsedSlots {
    /// Recent starts: (slot, count), rising. At most [`RECENT_MAX`]: then those of the last second are rounded up
    /// within cells of 2 ms, the others of 64 ms.
    pub recent: VecDeque<(Time, u32)>,
    /// Older starts by UTC quarter hour: (start of the quarter hour, count), rising. Quarter hours, so that every
    /// zone's midnight falls on an edge.
    pub quarters: BTreeMap<Time, u64>,
}

/// How long starts are kept one by one: the longest short window (a minute), and a margin for a restart.
pub const RECENT: Duration = Duration::from_secs(65);
/// How many items `recent` has at most.
pub const RECENT_MAX: usize = 2_048;
/// How long quarter hours are kept: the longest month and a day.
pub const QUARTERS_KEPT: Duration = Duration::from_secs(32 * 86_400);

const QUARTER_US: u64 = 15 * 60 * 1_000_000;
const FINE: Duration = Duration::from_secs(1);
const FINE_CELL_US: u64 = 2_000;
const CELL_US: u64 = 64_000;

/// The quarter hour, in UTC, that a time is in.
pub fn quarter_of(t: Time) -> Time {
    Time(t.0 - t.0 % QUARTER_US)
}

impl UsedSlots {
    /// Notes one start. Slots come nearly, not strictly, in order.
    #[inline]
    pub fn note(&mut self, slot: Time) {
        self.add(slot, 1);
    }

    /// Starts at or after a time, at least as many as there were: where it lies before the recent ones, the quarter
    /// hour that it is in counts whole.
    pub fn since(&self, t: Time) -> u64 {
        self.known(t, quarter_of(t))
    }

    /// Recent starts from `t` on and, if there were others behind them, the quarter hours from `quarter` on.
    fn known(&self, t: Time, quarter: Time) -> u64 {
        let recent = self.recent.iter().rev().take_while(|(s, _)| *s >= t);
        let recent: u64 = recent.map(|(_, n)| u64::from(*n)).sum();
        if self.latest().is_some_and(|latest| t >= latest.minus(RECENT)) {
            return recent;
        }
        recent + self.quarters.range(quarter..).map(|(_, n)| n).sum::<u64>()
    }

    /// The latest start known.
    pub fn latest(&self) -> Option<Time> {
        self.recent.back().map(|r| r.0)
    }

    /// A `used` entry: since `since` there were `count` starts. Those that are not known, since their intents were
    /// trimmed, are put at the latest start known. Only quarter hours that begin at or after `since` are taken for
    /// known.
    pub(super) fn fill_up(&mut self, since: Time, count: u64) {
        let mut missing = count.saturating_sub(self.known(since, since));
        let slot = self.latest().unwrap_or(since).max(since);
        while missing > 0 {
            let n = missing.min(u64::from(u32::MAX)) as u32;
            self.add(slot, n);
            missing -= u64::from(n);
        }
    }

    #[inline]
    fn add(&mut self, slot: Time, count: u32) {
        match self.recent.back_mut() {
            Some((last, n)) if *last == slot && n.checked_add(count).is_some() => {
                *n += count;
                return;
            }
            Some((last, _)) if *last > slot => return self.add_earlier(slot, count),
            _ => self.recent.push_back((slot, count)),
        }
        let keep_from = slot.minus(RECENT);
        while let Some(&(t, n)) = self.recent.front() {
            if t >= keep_from {
                break;
            }
            self.recent.pop_front();
            self.add_quarter(t, n, slot);
        }
        if self.recent.len() > RECENT_MAX {
            self.coarsen(slot);
        }
    }

    /// A slot before the latest one: rare and near the end, but for a clock that was set back.
    #[cold]
    fn add_earlier(&mut self, slot: Time, count: u32) {
        let latest = self.latest().unwrap_or(slot);
        if slot < latest.minus(RECENT) {
            return self.add_quarter(slot, count, latest);
        }
        let place = self.recent.partition_point(|(t, _)| *t <= slot);
        match place.checked_sub(1).and_then(|i| self.recent.get_mut(i)) {
            Some((t, n)) if *t == slot && n.checked_add(count).is_some() => *n += count,
            _ => self.recent.insert(place, (slot, count)),
        }
        if self.recent.len() > RECENT_MAX {
            self.coarsen(latest);
        }
    }

    fn add_quarter(&mut self, t: Time, count: u32, latest: Time) {
        let quarter = quarter_of(t);
        let oldest = quarter_of(latest.minus(QUARTERS_KEPT));
        if quarter < oldest {
            return;
        }
        if let Some(n) = self.quarters.get_mut(&quarter) {
            *n += u64::from(count);
            return;
        }
        self.quarters.insert(quarter, u64::from(count));
        while self.quarters.first_key_value().is_some_and(|(q, _)| *q < oldest) {
            self.quarters.pop_first();
        }
    }

    /// One item a cell, at the latest slot in it; never over the edge of a quarter hour. At most 500 and 1,000
    /// cells (and the edges), so that there is room again.
    fn coarsen(&mut self, latest: Time) {
        let fine_from = latest.minus(FINE);
        let cell = |t: Time| {
            let width = if t >= fine_from { FINE_CELL_US } else { CELL_US };
            (t >= fine_from, t.0 / width, t.0 / QUARTER_US)
        };
        let mut coarse: VecDeque<(Time, u32)> = VecDeque::with_capacity(RECENT_MAX + 1);
        for &(t, n) in &self.recent {
            match coarse.back_mut() {
                Some((last, m)) if cell(*last) == cell(t) && m.checked_add(n).is_some() => {
                    *last = t;
                    *m += n;
                }
                _ => coarse.push_back((t, n)),
            }
        }
        self.recent = coarse;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const START: u64 = 1_790_000_000_000_000;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        /// At any time, over any span, the coarse form has at least the starts that were there, and for the spans
        /// that limiters use hardly more.
        #[test]
        fn no_window_has_fewer_starts_than_were_made(
            steps in proptest::collection::vec((0u64..4_000_000, 1usize..400), 1..60),
            seed: u64,
        ) {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (mut used, mut all, mut now) = (UsedSlots::default(), Vec::new(), START);
            for (pause, burst) in steps {
                now += pause;
                for _ in 0..burst {
                    now += rng.u64(0..2_000);
                    // Commits end out of order by some ms.
                    let slot = Time(now - rng.u64(0..3_000));
                    used.note(slot);
                    all.push(slot);
                }
                prop_assert!(used.recent.len() <= RECENT_MAX);
                prop_assert!(used.recent.iter().is_sorted());
                for back in [1_000u64, 250_000, 1_000_000, 10_000_000, 60_000_000, 3_600_000_000] {
                    let from = Time(now - back);
                    let true_count = all.iter().filter(|t| **t >= from).count() as u64;
                    prop_assert!(used.since(from) >= true_count);
                    let slack = if back <= 60_000_000 { 64_000 } else { QUARTER_US };
                    let wider = Time(now - back - slack);
                    prop_assert!(used.since(from) <= all.iter().filter(|t| **t >= wider).count() as u64);
                }
            }
            prop_assert_eq!(used.since(Time::ZERO), all.len() as u64);
        }
    }

    #[test]
    fn a_full_minute_at_20_000_a_second_stays_small_and_fine() {
        let mut used = UsedSlots::default();
        for i in 0..70 * 20_000u64 {
            used.note(Time(START + i * 50));
        }
        let now = START + 70 * 1_000_000;
        assert!(used.recent.len() <= RECENT_MAX);
        for (back, most) in [(1_000_000u64, 1.003), (60_000_000, 1.002)] {
            let exact = (back / 50) as f64;
            let got = used.since(Time(now - back)) as f64;
            assert!(got >= exact && got <= exact * most + 100.0, "{got} for {exact}");
        }
    }

    #[test]
    fn old_quarters_go() {
        let mut used = UsedSlots::default();
        for day in 0..100u64 {
            used.note(Time(START + day * 86_400_000_000));
        }
        assert!(used.quarters.len() <= 33, "{}", used.quarters.len());
        assert_eq!(used.since(Time(START + 80 * 86_400_000_000)), 20);
    }

    #[test]
    fn a_count_fills_up_what_is_missing_and_no_more() {
        let day = Time(START - START % 86_400_000_000);
        let mut used = UsedSlots::default();
        for i in 0..100u64 {
            used.note(Time(day.0 + i * 60_000_000));
        }
        used.fill_up(day, 100);
        assert_eq!(used.since(day), 100);
        used.fill_up(day, 1_000);
        assert_eq!(used.since(day), 1_000);
        assert_eq!(used.since(Time(day.0 + 99 * 60_000_000)), 901);
        // Behind the recent ones a quarter hour counts whole.
        assert_eq!(used.since(Time(day.0 + 14 * 60_000_000)), 1_000);
    }
}
