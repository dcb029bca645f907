//! How much time has passed, as the samples of a lane tell it: in the order of the ledger, whatever clocks showed. Pure.
//!
//! - Within one tenure all times come from one clock, which runs on but never jumps: the difference counts, up to two
//!   intervals.
//! - Between two tenures the machine's clock may have been set. What counts is how far the later time goes beyond the
//!   times that were shown before and are not later than it, up to two intervals. A clock that falls back, or goes to and
//!   fro between times it has shown before, adds nothing by that; one that was ahead by years and is right again goes on
//!   from where it was right last.
//!
//! So a clock may say what it likes: a restart adds at most two intervals that have not passed, and that only where the
//! clock shows a time it has not shown before. `docs/decisions/0014` argues this; the ages of IDs
//! ([`crate::dedup::age`]) and of kept payloads ([`super::retention`]) rest on it, and their tests are this one's.

use super::fold::Sampled;
use crate::core::types::{Offset, Time};
use std::time::Duration;

/// Stretches of time that one tenure's clock showed, kept apart; beyond that the two earliest are taken for one, which
/// only makes more of the time count as shown.
const STRETCHES: usize = 64;

/// Goes over samples in the order of the ledger, and tells with each of those from `from` on how much time has passed
/// since the first of them, as far as that can be believed.
pub struct Passed<'a> {
    samples: std::slice::Iter<'a, Sampled>,
    from: Offset,
    most: Duration,
    passed: Duration,
    before: Option<Sampled>,
    /// Where the clock of the tenure at hand began.
    began: Time,
    /// What the clocks of earlier tenures showed: from, to, rising.
    shown: Vec<(Time, Time)>,
}

impl<'a> Passed<'a> {
    /// Over these samples, taken every `interval`, since the ledger offset `from`.
    pub fn since(from: Offset, samples: &'a [Sampled], interval: Duration) -> Self {
        Self {
            samples: samples.iter(),
            from,
            most: interval.saturating_mul(2),
            passed: Duration::ZERO,
            before: None,
            began: Time::ZERO,
            shown: Vec::new(),
        }
    }

    /// A tenure's clock went from `began` to `to`.
    fn show(&mut self, to: Time) {
        let stretch = (self.began, to);
        let place = self.shown.partition_point(|known| *known <= stretch);
        self.shown.insert(place, stretch);
        if self.shown.len() > STRETCHES {
            let first = self.shown.remove(0);
            self.shown[0] = (first.0, self.shown[0].1.max(first.1));
        }
    }

    /// How far a time goes beyond what was shown before and is not later than it.
    fn beyond_shown(&self, when: Time) -> Duration {
        let reached = |&(from, to): &(Time, Time)| (from <= when).then_some(to.min(when));
        let last = self.shown.iter().filter_map(reached).max();
        last.map_or(Duration::ZERO, |last| when.since(last))
    }
}

impl Iterator for Passed<'_> {
    /// The time that has passed, and the sample.
    type Item = (Duration, Sampled);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let sample = *self.samples.next()?;
            let gap = match self.before {
                Some(before) if before.tenure == sample.tenure => sample.when.since(before.when),
                Some(before) => {
                    self.show(before.when);
                    self.began = sample.when;
                    self.beyond_shown(sample.when)
                }
                None => {
                    self.began = sample.when;
                    Duration::ZERO
                }
            };
            // Of the gap before the first one that counts nobody knows how much lies behind `from`.
            if self.before.is_some_and(|before| before.ledger >= self.from) {
                self.passed += gap.min(self.most);
            }
            self.before = Some(sample);
            if sample.ledger >= self.from {
                return Some((self.passed, sample));
            }
        }
    }
}
