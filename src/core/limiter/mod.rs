//! When the next start may be (I5): the arithmetic of one budget.
//!
//! A *slot* is the time of a start, from which it is valid for a short while ([`Limiter::validity`]); one that is
//! missed is spent. A budget has *rates* that all hold at once: over any sliding window, or a quota of a calendar
//! span. It may be split: one *instance* for each value that `by` names, each with all the rates.
//! With `burst = n` at most n starts are back to back, then they are evenly spaced.
//!
//! Invariants: for whatever slots are taken, as long as each is at or after what [`Limiter::earliest`] said: starts
//! within the slots' validity, and up to as much jitter of the network, exceed no rate in any window (I5). At
//! least 98.5 % of a rate over a second or more can be used. Memory is bounded (I6): by the number of instances
//! ([`MAX_INSTANCES`]), each with fewer buckets the more there are. Slots of one instance only rise.
//!
//! Neighbours: [`BudgetTable`] holds the budgets of a node, [`super::turnstile`] draws from it. After a restart
//! [`Limiter::restore`] rebuilds it from the slots in the ledger.

mod budgets;
mod calendar;
mod sharing;
mod sliding;
#[cfg(test)]
mod tests;

pub use budgets::BudgetTable;

use super::ledger::fold::UsedSlots;
use super::types::Time;
use crate::config::model::{LimitConfig, Rate};
use calendar::CalendarQuota;
use hashbrown::HashMap;
use jiff::tz::TimeZone;
use sliding::SlidingWindow;
use smallvec::SmallVec;
use std::hash::{BuildHasherDefault, Hasher};
use std::time::Duration;

/// Most values of `by` that are counted apart at one time. More share one instance until there is room: each of
/// them then gets less than its own limit, never more.
pub const MAX_INSTANCES: usize = 16_384;

/// The longest validity of a slot: half of the longest guard. Time enough for a thread to come round and write.
pub const VALIDITY: Duration = Duration::from_millis(5);

/// Slots of one budget are at least so far apart where nothing else spaces them, for a thread needs about 10 to
/// 20 us to write a request and would miss the later ones of a thousand slots at one time.
const LEAST_GAP: Duration = Duration::from_micros(50);

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

/// One budget. See the module.
#[derive(Debug)]
pub struct Limiter {
    sliding: SmallVec<[(u64, Duration); 2]>,
    /// Models of the quotas, of which nothing is used.
    quotas: SmallVec<[CalendarQuota; 1]>,
    spacing: Option<Spacing>,
    validity: Duration,
    /// Least distance of two slots: now, and the bounds between which missed slots move it.
    gap: Duration,
    least_gap: Duration,
    widest_gap: Duration,
    taken_since_miss: u32,
    wall_offset: i64,
    /// The instance of a budget that is not split.
    sole: Instance,
    split: HashedMap<u64, Instance>,
    /// Shared by the values beyond [`MAX_INSTANCES`].
    overflow: Option<Box<Instance>>,
    sweep_at: usize,
    sweep_not_before: Time,
}

/// Even spacing behind a burst (the generic cell rate algorithm): starts are due `interval_ns` apart and may come
/// early by `tolerance_ns`.
#[derive(Clone, Copy, Debug)]
struct Spacing {
    interval_ns: u64,
    tolerance_ns: u64,
}

#[derive(Clone, Debug, Default)]
struct Instance {
    windows: SmallVec<[SlidingWindow; 2]>,
    quotas: SmallVec<[CalendarQuota; 0]>,
    /// When the next start would be due if all were evenly spaced, in nanoseconds.
    due_ns: u64,
    last: Option<Time>,
}

impl Limiter {
    /// A budget of which nothing is used.
    ///
    /// # Errors
    /// A zone that the time zone database does not know.
    pub fn try_new(limit: &LimitConfig, now: Time) -> Result<Self, LimitError> {
        let mut limiter = Self {
            sliding: SmallVec::new(),
            quotas: SmallVec::new(),
            spacing: None,
            validity: VALIDITY,
            gap: Duration::ZERO,
            least_gap: Duration::ZERO,
            widest_gap: Duration::ZERO,
            taken_since_miss: 0,
            wall_offset: 0,
            sole: Instance::default(),
            split: HashedMap::default(),
            overflow: None,
            sweep_at: 64,
            sweep_not_before: Time::ZERO,
        };
        limiter.configure(limit, now)?;
        limiter.sole = limiter.new_instance(1, now);
        Ok(limiter)
    }

    /// Whether it limits nothing.
    pub fn is_unlimited(&self) -> bool {
        self.sliding.is_empty() && self.quotas.is_empty()
    }

    /// For how long a slot is valid: half of the guard of the shortest window.
    pub fn validity(&self) -> Duration {
        self.validity
    }

    /// The wall clock minus the clock that slots are told by, in microseconds: quotas go by the wall clock. The
    /// caller decides whether to believe a jump: one forward begins the next span with a fresh quota.
    pub fn set_wall_offset(&mut self, offset_us: i64) {
        self.wall_offset = offset_us;
    }

    /// The earliest slot at or after `not_before` that all rates allow. Takes nothing.
    #[inline]
    pub fn earliest(&mut self, by: u64, not_before: Time) -> Time {
        if self.is_unlimited() {
            return not_before;
        }
        let (offset, spacing, gap) = (self.wall_offset, self.spacing, self.gap);
        let instance = self.instance(by, not_before);
        let mut slot = match instance.last {
            Some(last) => not_before.max(last.plus(gap)),
            None => not_before,
        };
        if let Some(spacing) = spacing {
            let from_ns = instance.due_ns.saturating_sub(spacing.tolerance_ns);
            slot = slot.max(Time(from_ns.div_ceil(1_000)));
        }
        // Whatever allows a time allows every later one: one pass over all is enough.
        for window in &instance.windows {
            slot = window.earliest(slot);
        }
        for quota in &instance.quotas {
            slot = quota.earliest(slot, offset);
        }
        slot
    }

    /// Draws one start at a slot that [`Limiter::earliest`] allows (or a later one).
    #[inline]
    pub fn take(&mut self, by: u64, slot: Time) {
        if self.is_unlimited() {
            return;
        }
        if self.gap > self.least_gap {
            self.taken_since_miss += 1;
            if self.taken_since_miss >= 1_024 {
                self.taken_since_miss = 0;
                self.gap = (self.gap * 7 / 8).max(self.least_gap);
            }
        }
        let (offset, spacing) = (self.wall_offset, self.spacing);
        let instance = self.instance(by, slot);
        // Windows rely on slots that rise, also where a caller took one earlier than it was told.
        let slot = instance.last.map_or(slot, |last| slot.max(last));
        instance.last = Some(slot);
        if let Some(spacing) = spacing {
            instance.due_ns = instance
                .due_ns
                .max(slot.0.saturating_mul(1_000))
                .saturating_add(spacing.interval_ns);
        }
        for window in &mut instance.windows {
            window.take(slot, 1);
        }
        for quota in &mut instance.quotas {
            quota.take(slot, offset);
        }
    }

    /// A slot was not met in time: the next ones are set further apart, up to nearly even spacing, and closer
    /// again by and by. A missed slot is spent, and where all slots of a second lie in its first 50 ms a thread
    /// that misses some misses as many in each second. A quota gets it back, for there is no second chance before
    /// its span ends, and the partner has seen no request.
    pub fn missed(&mut self, by: u64, slot: Time) {
        self.taken_since_miss = 0;
        self.gap = (self.gap * 2).min(self.widest_gap).max(self.least_gap);
        if self.quotas.is_empty() {
            return;
        }
        let offset = self.wall_offset;
        for quota in &mut self.instance(by, slot).quotas {
            quota.give_back(slot, offset);
        }
    }

    /// Counts what the ledger knows of starts before this value began to count: after a restart (no fresh burst),
    /// or after new rates need a history. A slot later than `now` is counted as now. What is known already is not
    /// counted again.
    pub fn restore(&mut self, by: u64, used: &UsedSlots, now: Time) {
        if self.is_unlimited() {
            return;
        }
        let recent_from = used.recent.front().map_or(now, |&(at, _)| at.min(now));
        // A quarter hour counts at its end for a window, which is no later than the first start kept singly.
        let mut starts: Vec<(Time, u64)> = used
            .quarters
            .iter()
            .map(|(&from, &n)| (from.plus(QUARTER).min(recent_from).max(from.min(now)), n))
            .chain(used.recent.iter().map(|&(at, n)| (at.min(now), u64::from(n))))
            .collect();
        starts.sort_unstable_by_key(|&(at, _)| at);
        let spans: Vec<(Time, Time, u64)> = used
            .quarters
            .iter()
            // The last microsecond of a quarter hour: a span that begins with the next one has none of it.
            .map(|(&from, &n)| {
                (
                    from,
                    from.plus(QUARTER).minus(Duration::from_micros(1)).min(now),
                    n,
                )
            })
            .chain(
                used.recent
                    .iter()
                    .map(|&(at, n)| (at.min(now), at.min(now), u64::from(n))),
            )
            .collect();

        let (offset, spacing) = (self.wall_offset, self.spacing);
        let instance = self.instance(by, now);
        for window in &mut instance.windows {
            // Singly kept starts cover the last minute: what stands in quarter hours is out of a shorter window.
            if window.span() <= RECENT {
                let singly = starts.partition_point(|&(at, _)| at < recent_from);
                window.prepend(&starts[singly..]);
            } else {
                window.prepend(&starts);
            }
        }
        for quota in &mut instance.quotas {
            quota.add_older(&spans, offset);
        }
        if let Some(spacing) = spacing {
            for &(at, n) in &starts {
                let due = instance.due_ns.max(at.0.saturating_mul(1_000));
                instance.due_ns = due.saturating_add(spacing.interval_ns.saturating_mul(n));
            }
            // However many they were, the burst is at most used up: more would be a pause nobody asked for.
            let used_up = now.0.saturating_mul(1_000).saturating_add(spacing.tolerance_ns);
            instance.due_ns = instance.due_ns.min(used_up.saturating_add(spacing.interval_ns));
        }
        let newest = starts.last().map(|&(at, _)| at);
        instance.last = instance.last.max(newest);
    }

    /// New rates, at once, with the starts known so far: a lower rate holds for them too, a higher one gives no
    /// second burst.
    ///
    /// # Errors
    /// As [`Limiter::try_new`]; then nothing has changed.
    pub fn set_rates(&mut self, limit: &LimitConfig, now: Time) -> Result<RatesChanged, LimitError> {
        let was_unlimited = self.is_unlimited();
        let old_quotas = self.quotas.clone();
        let longest = self
            .sliding
            .iter()
            .map(|&(_, w)| w)
            .max()
            .unwrap_or(Duration::ZERO);
        self.configure(limit, now)?;
        let needs_history = was_unlimited && !self.is_unlimited()
            || self.sliding.iter().any(|&(_, w)| w > longest)
            || self
                .quotas
                .iter()
                .any(|q| !old_quotas.iter().any(|o| o.is_same_span(q)));
        let mut sole = std::mem::take(&mut self.sole);
        self.change(&mut sole, 1, now);
        self.sole = sole;
        let mut split = std::mem::take(&mut self.split);
        let live = split.len();
        split
            .values_mut()
            .for_each(|instance| self.change(instance, live, now));
        self.split = split;
        if let Some(mut overflow) = self.overflow.take() {
            self.change(&mut overflow, live, now);
            self.overflow = Some(overflow);
        }
        Ok(RatesChanged { needs_history })
    }

    /// Values of `by` counted at present.
    pub fn instances(&self) -> usize {
        self.split.len()
    }

    /// Bytes held, roughly.
    pub fn memory(&self) -> usize {
        let of = |i: &Instance| i.windows.iter().map(SlidingWindow::memory).sum::<usize>();
        of(&self.sole)
            + self.overflow.as_deref().map_or(0, of)
            + self.split.values().map(of).sum::<usize>()
            + self.split.capacity() * (size_of::<(u64, Instance)>() + 1)
    }

    fn configure(&mut self, limit: &LimitConfig, now: Time) -> Result<(), LimitError> {
        let mut sliding: SmallVec<[(u64, Duration); 2]> = SmallVec::new();
        let mut quotas: SmallVec<[CalendarQuota; 1]> = SmallVec::new();
        for rate in &limit.rates {
            match rate {
                Rate::Sliding { count, window } => sliding.push(((*count).max(1), *window)),
                Rate::Calendar { count, unit, zone } => {
                    let tz = TimeZone::get(zone).map_err(|source| LimitError::Zone {
                        zone: zone.clone(),
                        source,
                    })?;
                    quotas.push(CalendarQuota::new(*count, *unit, tz, zone, now, self.wall_offset));
                }
            }
        }
        // The slowest rate in the long run, as the distance of its starts.
        let slowest = sliding
            .iter()
            .map(|&(n, w)| interval_ns(w + sliding::guard(w), n))
            .max();
        self.spacing = limit.burst.zip(slowest).map(|(burst, interval_ns)| Spacing {
            interval_ns,
            tolerance_ns: interval_ns.saturating_mul(u64::from(burst.max(1)) - 1),
        });
        self.validity = sliding
            .iter()
            .map(|&(_, w)| sliding::guard(w) / 2)
            .min()
            .unwrap_or(VALIDITY)
            .min(VALIDITY);
        // A quarter of even spacing leaves room to catch up after a stall; nine tenths nearly none.
        let fastest = sliding.iter().map(|&(n, w)| interval_ns(w, n)).min();
        self.least_gap = fastest.map_or(Duration::ZERO, |ns| Duration::from_nanos(ns / 4).min(LEAST_GAP));
        self.widest_gap = fastest.map_or(Duration::ZERO, |ns| Duration::from_nanos(ns - ns / 10));
        self.gap = self.least_gap;
        self.sliding = sliding;
        self.quotas = quotas;
        Ok(())
    }

    fn new_instance(&self, live: usize, now: Time) -> Instance {
        Instance {
            windows: self
                .sliding
                .iter()
                .map(|&(count, window)| SlidingWindow::new(count, window, resolution(live)))
                .collect(),
            quotas: self
                .quotas
                .iter()
                .map(|q| q.unused(now, self.wall_offset))
                .collect(),
            due_ns: 0,
            last: None,
        }
    }

    fn change(&self, instance: &mut Instance, live: usize, now: Time) {
        let mut new = self.new_instance(live, now);
        let longest = instance.windows.iter().max_by_key(|w| w.span());
        for (window, &(count, len)) in new.windows.iter_mut().zip(&self.sliding) {
            let same = instance.windows.iter().find(|old| old.span() == window.span());
            if let Some(old) = same.or(longest) {
                *window = old.changed(count, len, resolution(live));
            }
        }
        for quota in &mut new.quotas {
            if let Some(old) = instance.quotas.iter().find(|old| old.is_same_span(quota)) {
                let count = quota.count;
                *quota = old.clone();
                quota.count = count;
            }
        }
        new.last = instance.last;
        // A burst begins used up, as after a restart.
        if let Some(spacing) = self.spacing {
            let used_up = now.0.saturating_mul(1_000).saturating_add(spacing.tolerance_ns);
            new.due_ns = if instance.last.is_none() {
                0
            } else {
                instance.due_ns.max(used_up).min(used_up)
            };
        }
        *instance = new;
    }

    #[inline]
    fn instance(&mut self, by: u64, now: Time) -> &mut Instance {
        if by == 0 {
            return &mut self.sole;
        }
        self.split_instance(by, now)
    }

    fn split_instance(&mut self, by: u64, now: Time) -> &mut Instance {
        if !self.split.contains_key(&by) && !self.make_room(now) {
            let fresh = self.new_instance(MAX_INSTANCES, now);
            return self.overflow.get_or_insert_with(|| Box::new(fresh));
        }
        if !self.split.contains_key(&by) {
            let fresh = self.new_instance(self.split.len(), now);
            self.split.insert(by, fresh);
        }
        self.split
            .get_mut(&by)
            .expect("it was there or has just been put there")
    }

    /// Whether a new instance may be made; drops idle ones when there are many.
    fn make_room(&mut self, now: Time) -> bool {
        let offset = self.wall_offset;
        if let Some(overflow) = &self.overflow {
            // A value that has starts in there would begin with none in an instance of its own.
            if !overflow.is_idle(now, offset) {
                return false;
            }
            self.overflow = None;
        }
        if self.split.len() >= self.sweep_at && now >= self.sweep_not_before {
            self.split.retain(|_, instance| !instance.is_idle(now, offset));
            self.sweep_at = (2 * self.split.len()).clamp(64, MAX_INSTANCES);
            // Full of busy ones: looking through them again for each new value would be the hot path's end.
            if self.split.len() >= MAX_INSTANCES {
                self.sweep_not_before = now.plus(Duration::from_secs(1));
            }
            if self.split.len() < self.split.capacity() / 8 {
                self.split.shrink_to(self.split.len() * 2);
            }
        }
        self.split.len() < MAX_INSTANCES
    }
}

impl Instance {
    fn is_idle(&self, now: Time, wall_offset: i64) -> bool {
        self.windows.iter().all(|w| w.is_idle(now))
            && self.quotas.iter().all(|q| q.is_idle(now, wall_offset))
            && self.due_ns / 1_000 <= now.0
    }
}

/// What [`UsedSlots::quarters`] counts by.
const QUARTER: Duration = Duration::from_secs(15 * 60);
/// A minute's window and its guard: [`UsedSlots::recent`] goes back somewhat further.
const RECENT: Duration = Duration::from_millis(60_010);

/// Buckets of a full window, fewer where there are many instances: 64 fine ones hold 4 MiB a rate at most, 4,096
/// and 16,384 coarser ones 32 MiB each. 1/64 is the greatest loss of use, with more than 4,096 values busy at once.
fn resolution(live: usize) -> u64 {
    match live {
        0..64 => 2_048,
        64..4_096 => 256,
        _ => 64,
    }
}

fn interval_ns(window: Duration, count: u64) -> u64 {
    u64::try_from(window.as_nanos() / u128::from(count.max(1))).unwrap_or(u64::MAX)
}
