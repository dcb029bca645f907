//! When the next start may be (I5): the arithmetic of one budget.
//!
//! A *slot* is the time of a start, from which it is valid for a short while ([`Limiter::validity`]); one that is
//! missed is spent, but of a long window or a quota ([`Limiter::missed`]). A budget has *rates* that all hold at once:
//! over any sliding window, or a quota of a calendar span. It may be split: one *instance* for each value that `by`
//! names, each with all the rates. With `burst = n` at most n starts are back to back, then they are evenly spaced.
//!
//! Invariants: for whatever slots are taken, as long as each is at or after what [`Limiter::earliest`] said: starts
//! within the slots' validity (of one that was written later [`Limiter::late`] is told), and a way to the partner that
//! takes unequal time by up to the budget's *margin*, exceed no rate in any window, as the partner counts (I5). At
//! least 98.5 % of a rate over a second or more can be used with the default margin. Memory is bounded in bytes (I6): see [`values`]. Slots of one instance only rise.
//!
//! A quota goes by the wall clock, also while the node runs ([`Limiter::set_wall_offset`]): a step back is believed at
//! once, for it opens nothing; a step forward that would open the next span is believed after [`DISBELIEF`], and until
//! then nothing is drawn from the quota, so that neither reading of the clock is exceeded.
//!
//! Neighbours: [`BudgetTable`] holds the budgets of a node, [`super::turnstile`] draws from it. After a restart
//! [`Limiter::restore`] rebuilds it from the slots in the ledger.

mod budgets;
mod calendar;
mod deferral;
mod sharing;
mod sliding;
#[cfg(test)]
mod tests;
mod values;

pub use budgets::{BudgetTable, Minded, Values as BudgetValues};

use super::ledger::fold::UsedSlots;
use super::ledger::fold::used::RECENT;
use super::types::Time;
use crate::config::model::{CalendarUnit, LimitConfig, Rate};
use calendar::{Drawn, Quota};
use hashbrown::HashMap;
use jiff::tz::TimeZone;
use sliding::SlidingWindow;
use smallvec::SmallVec;
use std::hash::{BuildHasherDefault, Hasher};
use std::time::Duration;
use values::Values;

/// The longest validity of a slot: time enough for a thread to come round and write.
pub const VALIDITY: Duration = Duration::from_millis(4);

/// A step of the wall clock forward that would open a quota's next span is believed after so long. Time enough for
/// what corrects a clock to correct itself; a partner whose quota is not at an edge notices nothing of it.
pub const DISBELIEF: Duration = Duration::from_secs(5 * 60);
/// A smaller step is a clock being kept right.
const SMALL_STEP_US: i64 = 1_000_000;

/// Bytes for the values of a split budget where nobody says another bound.
const VALUES_BYTES: usize = 16 << 20;

/// A window of this length or more gets a slot back that was missed.
const GIVEN_BACK: Duration = Duration::from_secs(10);

/// Slots of one budget are at least so far apart where nothing else spaces them, for a thread needs about 10 to
/// 20 us to write a request and would miss the later ones of a thousand slots at one time.
const LEAST_GAP: Duration = Duration::from_micros(50);

/// Missed slots move them apart by no more than this: who misses slots so far apart would miss any.
const WIDEST_GAP: Duration = Duration::from_millis(100);

/// For how long a start of a budget with these rates counts, at most: then it need not be known any more.
pub fn horizon(limit: &LimitConfig) -> Duration {
    let counts = |rate: &Rate| match rate {
        Rate::Sliding { window, .. } => window.saturating_add(sliding::guard(*window, limit.margin)),
        // The longest that a zone makes of it.
        Rate::Calendar { unit, .. } => Duration::from_secs(
            3_600
                * match unit {
                    CalendarUnit::Hour => 1,
                    CalendarUnit::Day => 25,
                    CalendarUnit::Week => 7 * 24 + 1,
                    CalendarUnit::Month => 31 * 24 + 1,
                },
        ),
    };
    limit.rates.iter().map(counts).max().unwrap_or(Duration::ZERO)
}

/// A budget that cannot be made.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LimitError {
    /// The zone is not in the time zone database.
    #[error("unknown time zone `{zone}`")]
    Zone {
        /// Its name.
        zone: String,
        /// What the database says.
        source: jiff::Error,
    },
}

/// What a change of rates leaves unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct RatesChanged {
    /// A window is longer than all before, or a quota is new: it knows only the starts of the others. The caller
    /// calls [`Limiter::restore`] with what the ledger knows; until then the new window may allow too much.
    pub needs_history: bool,
}

/// Hashes what is a hash already.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Prehashed(u64);

impl Hasher for Prehashed {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.write_u64(u64::from(b));
        }
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0.rotate_left(23) ^ n)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .rotate_left(29);
    }
    fn write_u32(&mut self, n: u32) {
        self.write_u64(u64::from(n));
    }
}

/// A map whose keys are hashes.
pub(crate) type HashedMap<K, V> = HashMap<K, V, BuildHasherDefault<Prehashed>>;

/// What a step of the wall clock comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum WallStep {
    /// Nothing has changed.
    None,
    /// It is believed: quotas go by it.
    Believed,
    /// It would open a quota's next span, and is believed from this time on if it lasts. Until then nothing is drawn
    /// from the budget.
    Waits(Time),
}

/// One budget. See the module.
#[derive(Debug)]
pub struct Limiter {
    rates: Rates,
    validity: Duration,
    /// Bounds between which missed slots move the least distance of two slots.
    least_gap: Duration,
    widest_gap: Duration,
    taken_since_miss: u32,
    /// A step of the wall clock that is not believed yet: the offset, and from when on it is.
    step: Option<(i64, Time)>,
    /// The instance of a budget that is not split.
    sole: Instance,
    values: Values,
}

/// What holds for every instance of a budget.
#[derive(Clone, Debug, Default)]
struct Rates {
    sliding: SmallVec<[SlidingRate; 2]>,
    quotas: SmallVec<[Quota; 1]>,
    spacing: Option<Spacing>,
    /// Least distance of two slots.
    gap: Duration,
    /// The longest window with its guard.
    longest: Duration,
    wall_offset: i64,
}

#[derive(Clone, Copy, Debug)]
struct SlidingRate {
    count: u64,
    /// Length of the window and guard.
    span: Duration,
}

/// Even spacing behind a burst (the generic cell rate algorithm): starts are due `interval_ns` apart and may come
/// early by `tolerance_ns`.
#[derive(Clone, Copy, Debug)]
struct Spacing {
    interval_ns: u64,
    tolerance_ns: u64,
}

/// What is drawn from a budget, or by one value of a split one.
#[derive(Clone, Debug, Default)]
struct Instance {
    windows: SmallVec<[SlidingWindow; 2]>,
    /// From each quota.
    drawn: SmallVec<[Drawn; 1]>,
    /// When the next start would be due if all were evenly spaced, in nanoseconds.
    due_ns: u64,
    last: Option<Time>,
    resolution: u64,
}

/// Buckets of a full window of a budget that is not split.
const RESOLUTION: u64 = 2_048;

impl Limiter {
    /// A budget of which nothing is used.
    ///
    /// # Errors
    /// A zone that the time zone database does not know.
    pub fn try_new(limit: &LimitConfig, now: Time) -> Result<Self, LimitError> {
        let mut limiter = Self {
            rates: Rates::default(),
            validity: VALIDITY,
            least_gap: Duration::ZERO,
            widest_gap: Duration::ZERO,
            taken_since_miss: 0,
            step: None,
            sole: Instance::default(),
            values: Values::new(VALUES_BYTES),
        };
        limiter.configure(limit, now)?;
        limiter.sole = Instance::of(&limiter.rates, RESOLUTION);
        Ok(limiter)
    }

    /// Whether it limits nothing.
    pub fn is_unlimited(&self) -> bool {
        self.rates.sliding.is_empty() && self.rates.quotas.is_empty()
    }

    /// Whether one of its rates goes by the calendar.
    pub fn has_quotas(&self) -> bool {
        !self.rates.quotas.is_empty()
    }

    /// For how long a slot is valid.
    pub fn validity(&self) -> Duration {
        self.validity
    }

    /// The bound of what its values hold, in bytes.
    pub fn set_bound(&mut self, bytes: usize) {
        self.values.set_bound(bytes);
    }

    /// The wall clock minus the clock that slots are told by, in microseconds: quotas go by the wall clock.
    pub fn set_wall_offset(&mut self, offset_us: i64, now: Time) -> WallStep {
        let present = self.rates.wall_offset;
        if let Some((step, from)) = self.step
            && step.abs_diff(offset_us) <= SMALL_STEP_US as u64
        {
            if now < from {
                return WallStep::Waits(from);
            }
        } else if offset_us > present.saturating_add(SMALL_STEP_US)
            && self.rates.quotas.iter().any(|q| q.opens(now, present, offset_us))
        {
            let from = now.plus(DISBELIEF);
            self.step = Some((offset_us, from));
            return WallStep::Waits(from);
        }
        self.step = None;
        self.rates.wall_offset = offset_us;
        if present == offset_us {
            WallStep::None
        } else {
            WallStep::Believed
        }
    }

    /// Until when nothing is drawn, since a step of the wall clock is not believed yet.
    pub fn disbelief(&self) -> Option<Time> {
        self.step.map(|(_, from)| from)
    }

    /// The earliest slot at or after `not_before` that all rates allow. Takes nothing.
    #[inline]
    pub fn earliest(&mut self, by: u64, not_before: Time) -> Time {
        if self.is_unlimited() {
            return not_before;
        }
        let mut from = not_before;
        if let Some((_, until)) = self.step {
            from = from.max(until);
        }
        match by {
            0 => self.sole.earliest(from, &self.rates),
            by => self.values.earliest(by, from, &self.rates),
        }
    }

    /// Draws one start at a slot that [`Limiter::earliest`] allows (or a later one).
    #[inline]
    pub fn take(&mut self, by: u64, slot: Time) {
        if self.is_unlimited() {
            return;
        }
        if self.rates.gap > self.least_gap {
            self.taken_since_miss += 1;
            if self.taken_since_miss >= 1_024 {
                self.taken_since_miss = 0;
                self.rates.gap = (self.rates.gap * 7 / 8).max(self.least_gap);
            }
        }
        match by {
            0 => {
                self.rates.advance(slot);
                self.sole.take(slot, &self.rates);
            }
            by => self.values.take(by, slot, &mut self.rates),
        }
    }

    /// A slot was not met in time: the next ones are set further apart, up to nearly even spacing, and closer
    /// again by and by. Of a short window a missed slot is spent, and where all slots of a second lie in its first 50 ms
    /// a thread that misses some misses as many in each second. A quota and a window of [`GIVEN_BACK`] get it
    /// back, for there is no second chance for long, and the partner has seen no request.
    pub fn missed(&mut self, by: u64, slot: Time) {
        self.taken_since_miss = 0;
        self.rates.gap = (self.rates.gap * 2).min(self.widest_gap).max(self.least_gap);
        self.give_back(by, slot);
    }

    /// The start of a slot was written as late as `at`, when the slot was not valid any more: the thread, or the machine,
    /// stood still between the last look at the clock and the write. It counts when it was. A short window keeps it at
    /// its slot besides, as one that was missed.
    pub fn late(&mut self, by: u64, slot: Time, at: Time) {
        self.give_back(by, slot);
        self.take(by, at);
    }

    fn give_back(&mut self, by: u64, slot: Time) {
        if self.rates.quotas.is_empty() && self.rates.longest < GIVEN_BACK {
            return;
        }
        match by {
            0 => self.sole.give_back(slot, &self.rates),
            by => self.values.give_back(by, slot, &self.rates),
        }
    }

    /// Counts what the ledger knows of starts before this budget began to count: after a restart (no fresh burst),
    /// or after new rates need a history. A slot later than `now` is counted as now. What is known already is not
    /// counted again. All that is known of a budget comes at once.
    pub fn restore<'u>(&mut self, history: impl Fn(&mut dyn FnMut(u64, &UsedSlots)) + 'u, now: Time) {
        if self.is_unlimited() {
            return;
        }
        let offset = self.rates.wall_offset;
        for quota in self.rates.quotas.iter_mut().filter(|q| q.wants_history) {
            let (believed_to, mut latest) = (quota.believed_to(now, offset), None);
            history(&mut |_, used| latest = latest.max(used.latest_before(believed_to)));
            if let Some(latest) = latest {
                quota.reach(latest, offset);
            }
        }
        history(&mut |by, used| self.restore_one(by, used, now));
        self.rates.quotas.iter_mut().for_each(|q| q.wants_history = false);
    }

    fn restore_one(&mut self, by: u64, used: &UsedSlots, now: Time) {
        // A quarter hour counts at its end for a window, and before all that is kept singly.
        let singly_from = used
            .latest()
            .map_or(Time::ZERO, |latest| latest.minus(RECENT))
            .min(now);
        let mut starts: Vec<(Time, u64)> = used
            .quarters
            .iter()
            .map(|(&from, &n)| (from.plus(QUARTER).min(singly_from).max(from.min(now)), n))
            .chain(used.recent.iter().map(|&(at, n)| (at.min(now), u64::from(n))))
            .collect();
        starts.sort_unstable_by_key(|&(at, _)| at);
        let of_spans: Vec<(Time, u64)> = used
            .quarters
            .iter()
            // The last microsecond of a quarter hour: a span that begins with the next one has none of it.
            .map(|(&from, &n)| (from.plus(QUARTER).minus(Duration::from_micros(1)), n))
            .chain(used.recent.iter().map(|&(at, n)| (at, u64::from(n))))
            .collect();
        match by {
            0 => self.sole.restore(&starts, &of_spans, false, now, &self.rates),
            by => self.values.restore(by, &starts, &of_spans, now, &self.rates),
        }
    }

    /// New rates, at once, with the starts known so far: a lower rate holds for them too, a higher one gives no
    /// second burst.
    ///
    /// # Errors
    /// As [`Limiter::try_new`]; then nothing has changed.
    pub fn set_rates(&mut self, limit: &LimitConfig, now: Time) -> Result<RatesChanged, LimitError> {
        let was_unlimited = self.is_unlimited();
        let old = self.rates.clone();
        self.configure(limit, now)?;
        let known = |quota: &Quota| old.quotas.iter().find(|o| o.is_same_span(quota));
        let same = |(quota, i): (&Quota, usize)| old.quotas.get(i).is_some_and(|o| o.is_same_span(quota));
        let same_quotas = old.quotas.len() == self.rates.quotas.len()
            && (0..).zip(&self.rates.quotas).all(|(i, q)| same((q, i)));
        let needs_history = was_unlimited && !self.is_unlimited()
            || self.rates.longest > old.longest
            || self.rates.quotas.iter().any(|q| known(q).is_none());
        if same_quotas {
            for (quota, old) in self.rates.quotas.iter_mut().zip(&old.quotas) {
                quota.go_on_from(old);
            }
        }
        self.sole.change(&self.rates, now);
        self.values.change(&self.rates, same_quotas, now);
        if !same_quotas {
            self.sole.drawn = self.rates.quotas.iter().map(|_| Drawn::default()).collect();
        }
        Ok(RatesChanged {
            needs_history: needs_history || (!same_quotas && !self.rates.quotas.is_empty()),
        })
    }

    /// Values of `by` counted at present, each for itself.
    pub fn instances(&self) -> usize {
        self.values.len()
    }

    /// Classes of values that share a budget, for there was no room for one more value.
    pub fn classes(&self) -> usize {
        self.values.classes()
    }

    /// Drops some of what is over.
    pub fn sweep_some(&mut self, now: Time) {
        self.values.sweep_some(now, &self.rates);
    }

    /// Bytes held, roughly.
    pub fn memory(&self) -> usize {
        self.sole.windows.iter().map(SlidingWindow::memory).sum::<usize>() + self.values.memory()
    }

    fn configure(&mut self, limit: &LimitConfig, now: Time) -> Result<(), LimitError> {
        let mut rates = Rates {
            wall_offset: self.rates.wall_offset,
            ..Rates::default()
        };
        let windows = limit.rates.iter().filter_map(|rate| match rate {
            Rate::Sliding { count, window } => Some(((*count).max(1), *window)),
            Rate::Calendar { .. } => None,
        });
        let windows: SmallVec<[(u64, Duration); 2]> = windows.collect();
        self.validity = windows
            .iter()
            .map(|&(_, w)| sliding::validity(w))
            .min()
            .unwrap_or(VALIDITY);
        for &(count, window) in &windows {
            let span = window.saturating_add(sliding::guard(window, limit.margin));
            rates.sliding.push(SlidingRate { count, span });
        }
        rates.longest = rates.sliding.iter().map(|w| w.span).max().unwrap_or_default();
        for rate in &limit.rates {
            if let Rate::Calendar { count, unit, zone } = rate {
                let tz = TimeZone::get(zone).map_err(|source| LimitError::Zone {
                    zone: zone.clone(),
                    source,
                })?;
                let guards = (self.validity, limit.margin);
                let quota = Quota::new(*count, *unit, (tz, zone), guards, now, rates.wall_offset);
                rates.quotas.push(quota);
            }
        }
        // The slowest rate in the long run, as the distance of its starts.
        let slowest = rates.sliding.iter().map(|w| interval_ns(w.span, w.count)).max();
        rates.spacing = limit.burst.zip(slowest).map(|(burst, interval_ns)| Spacing {
            interval_ns,
            tolerance_ns: interval_ns.saturating_mul(u64::from(burst.max(1)) - 1),
        });
        // A quarter of even spacing leaves room to catch up after a stall; nine tenths nearly none.
        let fastest = windows.iter().map(|&(n, w)| interval_ns(w, n)).min();
        self.least_gap = fastest.map_or(Duration::ZERO, |ns| Duration::from_nanos(ns / 4).min(LEAST_GAP));
        let widest = fastest.map_or(Duration::ZERO, |ns| Duration::from_nanos(ns - ns / 10));
        self.widest_gap = widest.min(WIDEST_GAP);
        rates.gap = self.least_gap;
        self.rates = rates;
        Ok(())
    }
}

impl Rates {
    /// Quotas go on to the span that a slot is in.
    #[inline]
    fn advance(&mut self, slot: Time) {
        for quota in &mut self.quotas {
            quota.advance(slot, self.wall_offset);
        }
    }
}

impl Instance {
    /// One of which nothing is used.
    fn of(rates: &Rates, resolution: u64) -> Self {
        let windows = rates.sliding.iter();
        Self {
            windows: windows
                .map(|w| SlidingWindow::new(w.count, w.span, resolution))
                .collect(),
            drawn: rates.quotas.iter().map(|_| Drawn::default()).collect(),
            due_ns: 0,
            last: None,
            resolution,
        }
    }

    #[inline]
    fn earliest(&self, from: Time, rates: &Rates) -> Time {
        let mut slot = match self.last {
            Some(last) => from.max(last.plus(rates.gap)),
            None => from,
        };
        if let Some(spacing) = rates.spacing {
            let from_ns = self.due_ns.saturating_sub(spacing.tolerance_ns);
            slot = slot.max(Time(from_ns.div_ceil(1_000)));
        }
        // Whatever allows a time allows every later one: one pass over all is enough.
        for window in &self.windows {
            slot = window.earliest(slot);
        }
        for (quota, drawn) in rates.quotas.iter().zip(&self.drawn) {
            slot = quota.earliest(*drawn, slot, rates.wall_offset);
        }
        slot
    }

    #[inline]
    fn take(&mut self, slot: Time, rates: &Rates) {
        // Windows rely on slots that rise, also where a caller took one earlier than it was told.
        let slot = self.last.map_or(slot, |last| slot.max(last));
        self.last = Some(slot);
        if let Some(spacing) = rates.spacing {
            self.due_ns = self
                .due_ns
                .max(slot.0.saturating_mul(1_000))
                .saturating_add(spacing.interval_ns);
        }
        for window in &mut self.windows {
            window.take(slot, 1);
        }
        for (quota, drawn) in rates.quotas.iter().zip(&mut self.drawn) {
            quota.take(drawn);
        }
    }

    fn give_back(&mut self, slot: Time, rates: &Rates) {
        for (quota, drawn) in rates.quotas.iter().zip(&mut self.drawn) {
            quota.give_back(drawn, slot, rates.wall_offset);
        }
        if self.last.is_some_and(|last| slot.plus(rates.longest) <= last) {
            return;
        }
        for window in self.windows.iter_mut().filter(|w| w.span() >= GIVEN_BACK) {
            window.give_back(slot);
        }
        // Spacing is that of the slowest rate, whose window is the longest but for odd settings.
        if let Some(spacing) = rates.spacing
            && rates.longest >= GIVEN_BACK
        {
            self.due_ns = self.due_ns.saturating_sub(spacing.interval_ns);
        }
    }

    fn note_due(&mut self, at: Time, starts: u64, rates: &Rates) {
        if let Some(spacing) = rates.spacing {
            let due = self.due_ns.max(at.0.saturating_mul(1_000));
            self.due_ns = due.saturating_add(spacing.interval_ns.saturating_mul(starts));
        }
    }

    /// `shared`: the starts of others are known here, and these are not among them.
    fn restore(
        &mut self,
        starts: &[(Time, u64)],
        of_spans: &[(Time, u64)],
        shared: bool,
        now: Time,
        rates: &Rates,
    ) {
        for window in &mut self.windows {
            match shared {
                true => window.merge(starts),
                false => window.prepend(starts),
            }
        }
        for (quota, drawn) in rates.quotas.iter().zip(&mut self.drawn) {
            quota.add_history(drawn, of_spans, rates.wall_offset);
        }
        if let Some(spacing) = rates.spacing {
            for &(at, n) in starts {
                self.note_due(at, n, rates);
            }
            // However many they were, the burst is at most used up: more would be a pause nobody asked for.
            let used_up = now.0.saturating_mul(1_000).saturating_add(spacing.tolerance_ns);
            self.due_ns = self.due_ns.min(used_up.saturating_add(spacing.interval_ns));
        }
        self.last = self.last.max(starts.last().map(|&(at, _)| at));
    }

    fn change(&mut self, rates: &Rates, now: Time) {
        let mut new = Self::of(rates, self.resolution);
        let longest = self.windows.iter().max_by_key(|w| w.span());
        for (window, rate) in new.windows.iter_mut().zip(&rates.sliding) {
            let same = self.windows.iter().find(|old| old.span() == rate.span);
            if let Some(old) = same.or(longest) {
                *window = old.changed(rate.count, rate.span, self.resolution);
            }
        }
        if new.drawn.len() == self.drawn.len() {
            new.drawn = self.drawn.clone();
        }
        new.last = self.last;
        // A burst begins used up, as after a restart.
        if let Some(spacing) = rates.spacing
            && self.last.is_some()
        {
            new.due_ns = now.0.saturating_mul(1_000).saturating_add(spacing.tolerance_ns);
        }
        *self = new;
    }

    fn is_idle(&self, now: Time, rates: &Rates) -> bool {
        let drawn = || rates.quotas.iter().zip(&self.drawn);
        self.windows.iter().all(|w| w.is_idle(now))
            && drawn().all(|(q, d)| q.is_idle(*d, now, rates.wall_offset))
            && self.due_ns / 1_000 <= now.0
    }
}

/// What [`UsedSlots::quarters`] counts by.
const QUARTER: Duration = Duration::from_secs(15 * 60);

fn interval_ns(window: Duration, count: u64) -> u64 {
    u64::try_from(window.as_nanos() / u128::from(count.max(1))).unwrap_or(u64::MAX)
}
