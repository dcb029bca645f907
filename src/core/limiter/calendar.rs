//! Quotas that are renewed when a clock on the partner's wall says so: at midnight in Los Angeles.

use crate::config::model::CalendarUnit;
use crate::core::types::Time;
use jiff::civil::{Date, Weekday};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan, Zoned};
use std::time::Duration;

/// No slot so shortly before an edge: its start must not be counted in the span after it.
const EDGE_GUARD: Duration = Duration::from_millis(10);

const HOUR_US: i64 = 3_600_000_000;

/// One quota and what is used of its present span.
///
/// Spans are laid by the wall clock in the quota's zone: from midnight to midnight, so 23 or 25 hours long where
/// the clocks change. They only move forward: a wall clock that is set back opens no second quota.
#[derive(Clone, Debug)]
pub(super) struct CalendarQuota {
    pub(super) count: u64,
    pub(super) unit: CalendarUnit,
    zone: TimeZone,
    zone_name: Box<str>,
    /// The present span, microseconds of the wall clock, half open.
    start: i64,
    end: i64,
    used: u64,
    /// Every start of the span since then is in `used`.
    known_since: Time,
}

impl CalendarQuota {
    /// A quota of which nothing is used, in the span that holds `now`.
    pub(super) fn new(
        count: u64,
        unit: CalendarUnit,
        zone: TimeZone,
        zone_name: &str,
        now: Time,
        wall_offset: i64,
    ) -> Self {
        let (start, end) = span_of(wall(now, wall_offset), unit, &zone);
        let zone_name = zone_name.into();
        Self {
            count: count.max(1),
            unit,
            zone,
            zone_name,
            start,
            end,
            used: 0,
            known_since: now,
        }
    }

    /// Whether both are renewed at the same times.
    pub(super) fn is_same_span(&self, other: &Self) -> bool {
        self.unit == other.unit && self.zone_name == other.zone_name
    }

    /// A quota like this one, of which nothing is used.
    pub(super) fn unused(&self, now: Time, wall_offset: i64) -> Self {
        Self::new(
            self.count,
            self.unit,
            self.zone.clone(),
            &self.zone_name,
            now,
            wall_offset,
        )
    }

    pub(super) fn is_idle(&self, now: Time, wall_offset: i64) -> bool {
        self.used == 0 || wall(now, wall_offset) >= self.end
    }

    #[inline]
    pub(super) fn earliest(&self, from: Time, wall_offset: i64) -> Time {
        let at = wall(from, wall_offset);
        let guard = EDGE_GUARD.as_micros() as i64;
        if at >= self.end {
            // A span in which nothing is taken yet; but not so shortly before its end.
            let (_, end) = span_of(at, self.unit, &self.zone);
            return if at.saturating_add(guard) >= end {
                unwall(end, wall_offset)
            } else {
                from
            };
        }
        if self.used < self.count && at.saturating_add(guard) < self.end {
            return from;
        }
        from.max(unwall(self.end, wall_offset))
    }

    #[inline]
    pub(super) fn take(&mut self, slot: Time, wall_offset: i64) {
        let at = wall(slot, wall_offset);
        if at >= self.end {
            let (start, end) = span_of(at, self.unit, &self.zone);
            self.start = start.max(self.end);
            self.end = end;
            self.used = 0;
        }
        self.used += 1;
    }

    /// A slot that was taken was not used.
    pub(super) fn give_back(&mut self, slot: Time, wall_offset: i64) {
        let at = wall(slot, wall_offset);
        if at >= self.start && at < self.end {
            self.used = self.used.saturating_sub(1);
        }
    }

    /// Adds what was used before this value began to count. `older` is rising: (from, until, starts).
    pub(super) fn add_older(&mut self, older: &[(Time, Time, u64)], wall_offset: i64) {
        for &(from, until, starts) in older {
            if from < self.known_since && wall(until, wall_offset) >= self.start {
                self.used += starts;
            }
        }
        self.known_since = unwall(self.start, wall_offset).min(self.known_since);
    }
}

fn wall(t: Time, offset: i64) -> i64 {
    i64::try_from(t.0).unwrap_or(i64::MAX).saturating_add(offset)
}

fn unwall(us: i64, offset: i64) -> Time {
    Time(us.saturating_sub(offset).max(0) as u64)
}

/// The span that holds a moment of the wall clock. Never empty, never panics: where a zone's rules cannot be
/// followed (years out of range) the span is laid in UTC.
fn span_of(at: i64, unit: CalendarUnit, zone: &TimeZone) -> (i64, i64) {
    let civil = match Timestamp::from_microsecond(at) {
        Ok(t) => span_in_zone(&t.to_zoned(zone.clone()), unit),
        Err(_) => None,
    };
    match civil {
        Some((start, end)) if start <= at && at < end => (start, end),
        _ => {
            let len = match unit {
                CalendarUnit::Hour => HOUR_US,
                CalendarUnit::Day => 24 * HOUR_US,
                CalendarUnit::Week => 7 * 24 * HOUR_US,
                CalendarUnit::Month => 31 * 24 * HOUR_US,
            };
            let start = at - at.rem_euclid(len);
            (start, start.saturating_add(len))
        }
    }
}

fn span_in_zone(at: &Zoned, unit: CalendarUnit) -> Option<(i64, i64)> {
    let midnight = |day: Date| -> Option<i64> {
        // Where the clocks change at midnight the day begins at the first moment it has.
        let first = day.to_zoned(at.time_zone().clone()).ok()?.start_of_day().ok()?;
        Some(first.timestamp().as_microsecond())
    };
    let today = at.date();
    match unit {
        CalendarUnit::Hour => {
            let into = (i64::from(at.minute()) * 60 + i64::from(at.second())) * 1_000_000
                + i64::from(at.subsec_nanosecond() / 1_000);
            let start = at.timestamp().as_microsecond() - into;
            Some((start, start + HOUR_US))
        }
        CalendarUnit::Day => Some((midnight(today)?, midnight(today.tomorrow().ok()?)?)),
        CalendarUnit::Week => {
            let monday = if today.weekday() == Weekday::Monday {
                today
            } else {
                today.nth_weekday(-1, Weekday::Monday).ok()?
            };
            Some((midnight(monday)?, midnight(monday.checked_add(7.days()).ok()?)?))
        }
        CalendarUnit::Month => {
            let first = today.first_of_month();
            Some((midnight(first)?, midnight(first.checked_add(1.month()).ok()?)?))
        }
    }
}
