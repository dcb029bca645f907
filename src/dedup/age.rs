//! Which bucket of IDs may go, and when the present one must end whatever the clock says. Pure.
//!
//! An ID must be remembered while its message may come again. Clocks do not tell that: a partition that is eight
//! days behind would meet its own duplicates after the IDs are gone (I2). So a bucket goes by offsets: when
//! look-ups have passed the end that the input had one retention after the bucket closed. The owner of a lane
//! writes that end into the ledger every so often, a sample. The price: a partition that stands still keeps its
//! part of the buckets: it is carried on from one to the next.
//!
//! "After" is an order of the ledger: a bucket knows the ledger offset at which it closed, a sample the one at which it
//! was written. How much time has passed between samples their times say, as far as they can be believed ([`Passed`]):
//! a cluster that was off for a week, or a clock that was set, ages nothing at once. `docs/decisions/0014` argues this.

use crate::core::ledger::fold::Sampled;
use crate::core::ledger::passed::Passed;
use crate::core::types::{Offset, RoutePartition};
use std::time::Duration;

/// What is known of one route partition's input.
#[derive(Clone, Debug)]
pub struct RouteAge<'a> {
    /// Which route partition.
    pub at: RoutePartition,
    /// How long its IDs must be remembered after their bucket closed.
    pub retention: Duration,
    /// End offsets of its input at times, in the order of the ledger.
    pub samples: &'a [Sampled],
    /// Every record before this one has been looked up.
    pub looked_up: Offset,
    /// Records of it in the bucket.
    pub ids: u64,
}

/// What of a closed bucket must stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Route partitions whose IDs are not due.
    pub routes: Vec<RoutePartition>,
    /// IDs of those.
    pub ids: u64,
    /// IDs of all.
    pub all: u64,
}

/// The end offset that look-ups must have passed before IDs of a bucket that closed at this ledger offset may go: that
/// of the first sample at which one retention is over. None while there is no such sample.
pub fn end_of_memory(
    samples: &[Sampled],
    closed: Offset,
    retention: Duration,
    interval: Duration,
) -> Option<Offset> {
    let mut passed = Passed::since(closed, samples, interval);
    let over = passed.find(|(passed, _)| *passed >= retention);
    over.map(|(_, sample)| sample.end)
}

/// Whether the present bucket, which began at this ledger offset, must end although its span does not: a clock that was
/// ahead has put that into the future, or one that falls back again and again never comes to its end.
pub fn is_overlong(samples: &[Sampled], began: Offset, span: Duration, interval: Duration) -> bool {
    let long = span.saturating_mul(2);
    Passed::since(began, samples, interval).any(|(passed, _)| passed >= long)
}

/// Whether the IDs of this route partition may go.
pub fn is_due(route: &RouteAge<'_>, closed: Offset, interval: Duration) -> bool {
    end_of_memory(route.samples, closed, route.retention, interval).is_some_and(|end| route.looked_up >= end)
}

/// What must stay of a bucket that closed at this ledger offset and holds IDs of these route partitions, sampled every
/// `interval`.
pub fn held(closed: Offset, routes: &[RouteAge<'_>], interval: Duration) -> Held {
    let held = routes
        .iter()
        .filter(|r| r.ids > 0 && !is_due(r, closed, interval));
    Held {
        ids: held.clone().map(|r| r.ids).sum(),
        routes: held.map(|r| r.at).collect(),
        all: routes.iter().map(|r| r.ids).sum(),
    }
}

/// The buckets that go, of these, oldest first: once what must stay of them is carried into the present one. Buckets go
/// in their order, so one that must stay keeps those behind it. It is carried as soon as that copies at most half of what
/// goes with it: a route that stands keeps its part of the buckets and not those of all others, and nothing is copied
/// where most of what lies behind must stay, too.
pub fn going(buckets: impl IntoIterator<Item = Held>) -> Vec<Held> {
    let (mut seen, mut go) = (Vec::new(), 0);
    let (mut ids, mut all) = (0, 0);
    for bucket in buckets {
        ids += bucket.ids;
        all += bucket.all;
        seen.push(bucket);
        if ids * 2 <= all {
            (go, ids, all) = (seen.len(), 0, 0);
        }
    }
    seen.truncate(go);
    seen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::types::{RouteId, Tenure, Time};
    use proptest::prelude::*;

    const HOUR: Duration = Duration::from_secs(3_600);
    const DAY: Duration = Duration::from_secs(86_400);

    fn hour(n: u64) -> Time {
        Time(n * 3_600_000_000)
    }

    /// One tenure's hourly samples: at hour n stands ledger entry n, and the input ends at 10 n.
    fn hourly(from: u64, to: u64) -> Vec<Sampled> {
        lives(&[(from, to - from, from)])
    }

    /// Tenures one behind the other: each begins at this hour of the ledger, lasts so many hours, and its clock shows this
    /// hour at its beginning.
    fn lives(lives: &[(u64, u64, u64)]) -> Vec<Sampled> {
        let of = |&(began, hours, shows): &(u64, u64, u64)| {
            (0..hours).map(move |h| Sampled {
                ledger: began + h,
                tenure: Tenure(began),
                when: hour(shows + h),
                end: (began + h) * 10,
            })
        };
        lives.iter().flat_map(of).collect()
    }

    fn route(samples: &[Sampled], looked_up: Offset, ids: u64, partition: u32) -> RouteAge<'_> {
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
        let closed = 24;
        let end = 24 * 9 * 10;
        assert_eq!(end_of_memory(&samples, closed, DAY * 8, HOUR), Some(end));
        assert!(!is_due(&route(&samples, end - 1, 1, 0), closed, HOUR));
        assert!(is_due(&route(&samples, end, 1, 0), closed, HOUR));
        assert!(!is_due(&route(&samples[..24 * 9], u64::MAX, 1, 0), closed, HOUR));
    }

    #[test]
    fn a_jump_of_the_clock_is_not_believed() {
        // Two days by its own clock, then a restart with the clock a year ahead.
        let (ahead, long) = (24 * 365, 24 * 20);
        let samples = lives(&[(0, 48, 0), (48, long, 48 + ahead)]);
        // The jump counts as two hours of the eight days.
        assert_eq!(
            end_of_memory(&samples, 24, DAY * 8, HOUR),
            Some((24 + 24 * 8 - 1) * 10)
        );
        // The clock is right again, and goes on from where it was right last.
        let samples = lives(&[(0, 48, 0), (48, 10, 48 + ahead), (58, long, 59)]);
        assert_eq!(
            end_of_memory(&samples, 24, DAY * 8, HOUR),
            Some((24 + 24 * 8 - 2) * 10)
        );
        // It falls back to 1970, for as long as that lasts.
        let samples = lives(&[(24 * 365, 48, 24 * 365), (24 * 365 + 48, long, 0)]);
        let closed = 24 * 365 + 24;
        assert_eq!(
            end_of_memory(&samples, closed, DAY * 8, HOUR),
            Some((closed + 24 * 8 + 1) * 10)
        );
        // To and fro adds nothing, however often.
        let flaps: Vec<_> = (0..2_000).map(|n| (n, 1, 100 + 1_000 * (n % 2))).collect();
        assert_eq!(end_of_memory(&lives(&flaps), 10, HOUR * 3, HOUR), None);
    }

    /// A node that is started once a day for some minutes takes one sample a day: each stands for two intervals, whatever
    /// a clock said that was ahead once.
    #[test]
    fn short_lives_grow_old_too() {
        let mut days: Vec<_> = (0..200).map(|day| (day, 1, 24 * day)).collect();
        assert_eq!(
            end_of_memory(&lives(&days), 50, DAY * 8, HOUR),
            Some((50 + 96) * 10)
        );
        days[100].2 += 24 * 10_000;
        assert_eq!(
            end_of_memory(&lives(&days), 50, DAY * 8, HOUR),
            Some((50 + 96) * 10),
            "the day that was ahead counts as one like the others"
        );
        days[100].2 = 0;
        assert_eq!(
            end_of_memory(&lives(&days), 50, DAY * 8, HOUR),
            Some((50 + 97) * 10)
        );
    }

    #[test]
    fn a_bucket_whose_span_lies_in_the_future_is_overlong_after_two() {
        let samples = lives(&[(0, 10, 24 * 365), (10, 100, 20)]);
        assert!(!is_overlong(&samples[..48], 0, DAY, HOUR));
        assert!(is_overlong(&samples, 0, DAY, HOUR));
        assert!(!is_overlong(&samples, 70, DAY, HOUR));
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
        let held = |ages: &[RouteAge<'_>]| held(24, ages, HOUR);
        let of = |ids: u64, all: u64| Held {
            routes: (ids > 0).then_some(ages[1].at).into_iter().collect(),
            ids,
            all,
        };
        assert_eq!(held(&ages), of(10, 100));
        assert_eq!(held(&ages[..1]), of(0, 90));
        assert_eq!(held(&ages[1..]), of(10, 10));
        assert_eq!(held(&[]), of(0, 0));
        let count = |buckets: &[(u64, u64)]| going(buckets.iter().map(|(ids, all)| of(*ids, *all))).len();
        assert_eq!(count(&[(10, 100), (0, 90), (0, 0), (10, 10)]), 3);
        assert_eq!(count(&[(10, 10), (90, 90)]), 0);
        // Most of it must stay, and what lies behind goes: it is carried, so that the others can go.
        assert_eq!(count(&[(60, 100), (0, 10), (0, 10), (90, 90)]), 3);
        assert_eq!(count(&[(100, 100), (60, 100), (0, 80)]), 0);
        assert_eq!(count(&[(100, 100), (60, 100), (0, 80), (0, 40), (90, 90)]), 4);
        // What goes by itself pays for nobody behind it.
        assert_eq!(count(&[(0, 1_000), (90, 90), (90, 90)]), 1);
    }

    /// What happens to a machine: it runs for so many minutes (a sample each half hour, and one at its start), is off for
    /// so many, and its clock may show another time then.
    #[derive(Clone, Debug)]
    struct Spell {
        runs: u64,
        off: u64,
        clock: Set,
    }

    #[derive(Clone, Copy, Debug)]
    enum Set {
        Right,
        /// Off by so many hours.
        Off(i64),
        /// As it was.
        Stays,
        /// 1970, as after a boot without a battery.
        Epoch,
    }

    fn spells() -> impl Strategy<Value = Vec<Spell>> {
        let clock = prop_oneof![
            3 => Just(Set::Right),
            2 => (-9_000i64..9_000).prop_map(Set::Off),
            2 => (-30i64..30).prop_map(Set::Off),
            2 => Just(Set::Stays),
            1 => Just(Set::Epoch),
        ];
        let runs = prop_oneof![0u64..40, 0u64..600, 0u64..20_000];
        let off = prop_oneof![0u64..5, 0u64..200, 0u64..10_000];
        let spell = (runs, off, clock).prop_map(|(runs, off, clock)| Spell { runs, off, clock });
        proptest::collection::vec(spell, 1..60)
    }

    /// The samples, each with the minute at which it was truly taken.
    fn history(spells: &[Spell]) -> Vec<(u64, Sampled)> {
        // Years after 1970.
        let mut truth = 20_000_000u64;
        let mut wrong = 0i64;
        let mut out: Vec<(u64, Sampled)> = Vec::new();
        for (tenure, spell) in spells.iter().enumerate() {
            wrong = match spell.clock {
                Set::Right => 0,
                Set::Off(hours) => hours * 60,
                Set::Stays => wrong,
                Set::Epoch => -(truth as i64),
            };
            for minute in (0..=spell.runs).step_by(30) {
                let ledger = out.len() as u64;
                let shows = (truth + minute).saturating_add_signed(wrong);
                let sample = Sampled {
                    ledger,
                    tenure: Tenure(tenure as u64),
                    when: Time(shows * 60_000_000),
                    end: ledger,
                };
                out.push((truth + minute, sample));
            }
            truth += spell.runs + spell.off;
        }
        out
    }

    proptest! {
        /// Whatever the clock was set to: no ID goes before its retention, less two intervals for each restart since its
        /// bucket closed. And what runs on for a retention forgets at last, whatever the clock showed before.
        #[test]
        fn no_clock_shortens_the_memory_or_makes_it_endless(spells in spells(), closed in 0u64..400) {
            let interval = HOUR / 2;
            let retention = DAY * 3;
            let mut spells = spells;
            spells.push(Spell { runs: 60 * 24 * 4, off: 0, clock: Set::Stays });
            let history = history(&spells);
            let samples: Vec<Sampled> = history.iter().map(|(_, sample)| *sample).collect();
            let last = samples[samples.len() - 1].tenure;
            let began = samples.iter().find(|s| s.tenure == last).map_or(0, |s| s.ledger);
            let closed = closed.min(began);
            let end = end_of_memory(&samples, closed, retention, interval);
            prop_assert!(end.is_some(), "it never goes");
            let end = end.unwrap_or_default() as usize;
            let minutes = history[end].0 - history[closed as usize].0;
            let tenures = samples[closed as usize..=end].windows(2);
            let restarts = tenures.filter(|pair| pair[0].tenure != pair[1].tenure).count() as u32;
            let passed = Duration::from_secs(minutes * 60);
            prop_assert!(passed + interval * 2 * restarts >= retention, "{passed:?} with {restarts} restarts");
            let short = end_of_memory(&samples[..end], closed, retention, interval);
            prop_assert_eq!(short, None);
        }

        /// A clock that goes to and fro between three times and runs on at each of them: what passes counts three times at
        /// most, however often it goes. No jump counts.
        #[test]
        fn a_clock_that_goes_to_and_fro_adds_no_jumps(order in proptest::collection::vec(0usize..3, 3..200), runs in 0u64..90) {
            let offsets = [0, -9_000, 7_000];
            let spell = |n: &usize| Spell { runs, off: 1, clock: Set::Off(offsets[*n]) };
            let mut spells: Vec<Spell> = [0, 1, 2].iter().map(spell).collect();
            spells.extend(order.iter().map(spell));
            let history = history(&spells);
            let samples: Vec<Sampled> = history.iter().map(|(_, sample)| *sample).collect();
            let from = samples.iter().find(|s| s.tenure == Tenure(3)).map_or(0, |s| s.ledger);
            let passed = Passed::since(from, &samples, HOUR / 2).last().map_or(Duration::ZERO, |p| p.0);
            let minutes = history[samples.len() - 1].0 - history[from as usize].0;
            // The first return to a time counts from when it was shown last.
            let most = Duration::from_secs(60 * 3 * (minutes + 3 * (runs + 1)));
            prop_assert!(passed <= most, "{passed:?} in {minutes} minutes");
        }
    }
}
