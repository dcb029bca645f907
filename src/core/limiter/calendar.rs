//! Quotas that are renewed when a clock on the partner's wall says so: at midnight in Los Angeles.

use crate::config::model::CalendarUnit;
use crate::core::ledger::fold::used::BEHIND;
use crate::core::types::Time;
use jiff::civil::{Date, Weekday};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan, Zoned};
use std::time::Duration;

const HOUR_US: i64 = 3_600_000_000;

/// One quota, and the span of the calendar that it is in.
///
/// Spans are laid by the wall clock in the quota's zone: from midnight to midnight, so 23 or 25 hours long where
/// the clocks change. They only move forward: a wall clock that is set back opens no second quota.
#[derive(Clone, Debug)]
pub(super) struct Quota {
    pub(super) count: u64,
    pub(super) unit: CalendarUnit,
    zone: TimeZone,
    zone_name: Box<str>,
    /// The present span, microseconds of the wall clock, half open, and its number.
    start: i64,
    end: i64,
    number: u32,
    /// No slot so shortly before an edge, or behind one: its start must not be counted in the other span, by a clock
    /// that differs from ours by as much as the margin.
    before_edge: i64,
    behind_edge: i64,
    /// What was drawn before this value began to count is not known yet.
    pub(super) wants_history: bool,
}

/// What one value has drawn from a quota. It says nothing about any span but the one it names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Drawn {
    span: u32,
    used: u32,
}

impl Quota {
    /// A quota in the span that holds `now`.
    pub(super) fn new(
        count: u64,
        unit: CalendarUnit,
        (zone, zone_name): (TimeZone, &str),
        (validity, margin): (Duration, Duration),
        now: Time,
        wall_offset: i64,
    ) -> Self {
        let (start, end) = span_of(wall(now, wall_offset), unit, &zone);
        let (validity, margin) = (validity.as_micros() as i64, margin.as_micros() as i64);
        Self {
            count: count.clamp(1, u64::from(u32::MAX)),
            unit,
            zone,
            zone_name: zone_name.into(),
            start,
            end,
            number: 1,
            before_edge: validity.saturating_add(margin).min((end - start) / 4),
            behind_edge: margin.min((end - start) / 4),
            wants_history: true,
        }
    }

    /// Whether both are renewed at the same times.
    pub(super) fn is_same_span(&self, other: &Self) -> bool {
        self.unit == other.unit && self.zone_name == other.zone_name
    }

    /// The span that another quota, which is renewed at the same times, is in, with what is drawn there.
    pub(super) fn go_on_from(&mut self, other: &Self) {
        (self.start, self.end, self.number) = (other.start, other.end, other.number);
        self.wants_history = other.wants_history;
    }

    /// Whether nothing of the present span is drawn.
    pub(super) fn is_idle(&self, drawn: Drawn, now: Time, wall_offset: i64) -> bool {
        self.used(drawn) == 0 || wall(now, wall_offset) >= self.end
    }

    fn used(&self, drawn: Drawn) -> u64 {
        if drawn.span == self.number {
            u64::from(drawn.used)
        } else {
            0
        }
    }

    #[inline]
    pub(super) fn earliest(&self, drawn: Drawn, from: Time, wall_offset: i64) -> Time {
        let at = wall(from, wall_offset);
        let in_span = |start: i64, end: i64| {
            if at >= start && at - start < self.behind_edge {
                return from.max(unwall(start.saturating_add(self.behind_edge), wall_offset));
            }
            if at.saturating_add(self.before_edge) >= end {
                return from.max(unwall(end.saturating_add(self.behind_edge), wall_offset));
            }
            from
        };
        if at >= self.end {
            // A span in which nothing is drawn yet.
            let (start, end) = span_of(at, self.unit, &self.zone);
            return in_span(start, end);
        }
        if self.used(drawn) < self.count {
            return in_span(self.start, self.end);
        }
        from.max(unwall(self.end.saturating_add(self.behind_edge), wall_offset))
    }

    /// A slot is taken: the span goes on to the one that it is in.
    #[inline]
    pub(super) fn advance(&mut self, slot: Time, wall_offset: i64) {
        self.advance_to(wall(slot, wall_offset));
    }

    fn advance_to(&mut self, at: i64) {
        if at >= self.end {
            let (start, end) = span_of(at, self.unit, &self.zone);
            self.start = start.max(self.end);
            self.end = end;
            self.number = self.number.wrapping_add(1);
        }
    }

    /// One start of the present span.
    #[inline]
    pub(super) fn take(&self, drawn: &mut Drawn) {
        self.add(drawn, 1);
    }

    fn add(&self, drawn: &mut Drawn, starts: u64) {
        let used = self.used(*drawn).saturating_add(starts);
        *drawn = Drawn {
            span: self.number,
            used: u32::try_from(used).unwrap_or(u32::MAX),
        };
    }

    /// A slot that was taken was not used.
    pub(super) fn give_back(&self, drawn: &mut Drawn, slot: Time, wall_offset: i64) {
        let at = wall(slot, wall_offset);
        if at >= self.start && at < self.end && drawn.span == self.number {
            drawn.used = drawn.used.saturating_sub(1);
        }
    }

    /// Starts before this time are believed to be when they say: up to the end of the span after the present one, and
    /// up to as far ahead as the ledger counts by them. One further ahead was made by a clock that nobody believes any
    /// more.
    pub(super) fn believed_to(&self, now: Time, wall_offset: i64) -> Time {
        unwall(self.end.saturating_add(self.end - self.start), wall_offset).max(now.plus(BEHIND))
    }

    /// The ledger knows of a start as late as this. One in a later span than the present one was made before a clock was
    /// set back: the quota goes on in that span, which is not opened a second time.
    pub(super) fn reach(&mut self, latest: Time, wall_offset: i64) {
        self.advance_to(wall(latest, wall_offset));
    }

    /// Adds starts from before this value began to count, each with the latest time that it may have been made at.
    /// Those of earlier spans do not count; what lies in the future does: a clock was set back since.
    pub(super) fn add_history(&self, drawn: &mut Drawn, starts: &[(Time, u64)], wall_offset: i64) {
        if self.wants_history {
            let of_span = starts
                .iter()
                .filter(|(until, _)| wall(*until, wall_offset) >= self.start);
            self.add(drawn, of_span.map(|(_, n)| n).sum());
        }
    }

    /// Whether a step of the wall clock, from one offset to another one further ahead, opens a span that the clock
    /// before the step was not in.
    pub(super) fn opens(&self, now: Time, from: i64, to: i64) -> bool {
        let before = wall(now, from);
        let end = if before < self.end {
            self.end
        } else {
            span_of(before, self.unit, &self.zone).1
        };
        wall(now, to) >= end
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
