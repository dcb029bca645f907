//! When a message whose value has used its limit up is to come back.
//!
//! Such a message does not wait at the gate, where its place would keep others out (I8): it is sent back to its queue and
//! told a time. Told the value's next slot, a hundred thousand of them would come back at once for each one that starts. So the
//! messages of a value that are away are counted, and the one that is sent away as the nth is told about when the nth
//! start will be. A time that is told reserves nothing: who comes back and finds the slot taken is told the next slot
//! ([`super::super::turnstile::NEXT`]), for its turn has come.

use super::calendar::Quota;
use super::{HashedMap, Limiter, SlidingRate};
use crate::config::model::CalendarUnit;
use crate::core::ledger::entry::BudgetDraw;
use crate::core::types::Time;
use std::time::Duration;

/// Values whose messages that are away are counted. Those of others come back at their value's next slot.
const VALUES_MAX: usize = 65_536;

/// Messages that are away, by what keeps them back.
#[derive(Debug, Default)]
pub(super) struct Deferrals {
    by: HashedMap<BudgetDraw, Away>,
    /// A full table is looked through again not before.
    not_before: Time,
}

/// Looking through a full table for each further value would be the hot path's end.
const SWEEP_AGAIN: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
struct Away {
    count: u64,
    /// When the last of them comes back: who has not come by then does not come, its message was ended meanwhile.
    last: Time,
}

impl Deferrals {
    /// One more message is sent away; `next`: the value's earliest slot. Returns about when it can start.
    pub(super) fn defer(&mut self, draw: BudgetDraw, next: Time, now: Time, limiter: &Limiter) -> Time {
        if self.by.len() >= VALUES_MAX && !self.by.contains_key(&draw) {
            if now >= self.not_before {
                self.not_before = now.plus(SWEEP_AGAIN);
                self.by.retain(|_, away| away.last > now);
            }
            if self.by.len() >= VALUES_MAX {
                return next;
            }
        }
        let away = self.by.entry(draw).or_insert(Away { count: 0, last: next });
        if away.last <= now {
            away.count = 0;
        }
        let slot = limiter.after(next, away.count);
        away.count += 1;
        away.last = away.last.max(slot);
        slot
    }

    /// One that was sent away is back.
    pub(super) fn came_back(&mut self, draw: &BudgetDraw) {
        if let Some(away) = self.by.get_mut(draw) {
            away.count = away.count.saturating_sub(1);
            if away.count == 0 {
                self.by.remove(draw);
            }
        }
    }

    /// Times that were told hold no more: the limits have changed.
    pub(super) fn clear(&mut self) {
        self.by.clear();
    }

    /// Bytes held.
    pub(super) fn memory(&self) -> usize {
        self.by.capacity() * (size_of::<(BudgetDraw, Away)>() + 1)
    }
}

impl Limiter {
    /// About when so many starts have been made from the slot `next` on: where all its rates are used up by then.
    fn after(&self, next: Time, starts: u64) -> Time {
        let windows = self
            .rates
            .sliding
            .iter()
            .map(|&SlidingRate { count, span }| (count, span));
        let quotas = self.rates.quotas.iter().map(|quota| (quota.count, length(quota)));
        let gap = self.rates.gap;
        let whole = |(count, span): (u64, Duration)| {
            let (spans, within) = (starts / count.max(1), starts % count.max(1));
            let times = |of: Duration, n: u64| of.saturating_mul(u32::try_from(n).unwrap_or(u32::MAX));
            // Those of one span come one behind the other, as they can start.
            times(span, spans).saturating_add(times(gap, within).min(span))
        };
        let even = self.rates.spacing.map_or(0, |spacing| spacing.interval_ns);
        let spaced = Duration::from_nanos(even.saturating_mul(starts));
        let waits = windows.chain(quotas).map(whole);
        next.plus(waits.fold(spaced, Duration::max))
    }

    /// How many starts its rates allow in the long run in so long a time; at least one.
    pub fn starts_within(&self, time: Duration) -> u32 {
        let of = |rate: &SlidingRate| {
            let starts = u128::from(rate.count) * time.as_nanos() / rate.span.as_nanos().max(1);
            u32::try_from(starts).unwrap_or(u32::MAX)
        };
        self.rates.sliding.iter().map(of).min().unwrap_or(u32::MAX).max(1)
    }
}

/// A span of the calendar, about.
fn length(quota: &Quota) -> Duration {
    let hours = match quota.unit {
        CalendarUnit::Hour => 1,
        CalendarUnit::Day => 24,
        CalendarUnit::Week => 7 * 24,
        CalendarUnit::Month => 30 * 24,
    };
    Duration::from_secs(3_600 * hours)
}
