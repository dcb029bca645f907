//! The values of a budget that is split by a field (`by`): each has all the rates for itself.
//!
//! Millions of values have a start or two each, so a value begins as 32 bytes and grows with what must be known of it:
//!
//! | form | knows |
//! |---|---|
//! | one | how many starts, all as late as the last of them |
//! | few | up to [`FEW`] groups of starts, each as late as its last |
//! | full | an instance of its own, as a budget has that is not split |
//!
//! The bound is in bytes. Where there is no room to grow, a value stays coarser: it may use less of its limit, never
//! more. Where there is no room for one more value, it goes into a *class*: values whose hashes begin alike share one
//! budget. So a value never has more than its limit, and one of a class waits only for those of its own class. While a
//! class has starts that count, its new values stay in it: they would have two budgets else.
//!
//! A value whose starts are all out of every window is nothing; it is swept.

use super::calendar::Drawn;
use super::sliding::SlidingWindow;
use super::{GIVEN_BACK, HashedMap, Instance, Rates};
use crate::core::ledger::fold::used::{coarser_class, is_class};
use crate::core::types::Time;
use smallvec::SmallVec;
use std::time::Duration;

/// The map is in so many parts, so that neither growth nor a sweep of a million values is one long pause.
const SHARDS: usize = 64;
/// Groups of starts of a value in its second form.
const FEW: usize = 16;
/// Of the bound, in quarters: values of their own.
const OWN: usize = 3;
/// A full part is looked through again for values that are over not before.
const SWEEP_AGAIN: Duration = Duration::from_secs(1);
/// Buckets of a full window of a value: fewer the more of the bound is taken.
const RESOLUTIONS: [u64; 3] = [2_048, 256, 64];
/// And where there is no room at all.
const COARSEST: u64 = 8;

/// See the module.
#[derive(Debug)]
pub(super) struct Values {
    shards: Vec<Shard>,
    classes: HashedMap<u64, Kept>,
    bound: usize,
    /// Bytes of the parts' tables, and of what values hold beside them.
    tables: usize,
    heap: usize,
    sweep_next: usize,
}

#[derive(Debug, Default)]
struct Shard {
    map: HashedMap<u64, Kept>,
    sweep_at: usize,
    not_before: Time,
}

#[derive(Debug)]
enum Kept {
    One(One),
    Few(Box<Few>),
    Full(Box<Instance>),
}

#[derive(Debug)]
struct One {
    at: Time,
    starts: u32,
    drawn: Drawn,
}

#[derive(Debug)]
struct Few {
    /// Rising.
    starts: SmallVec<[(Time, u32); 3]>,
    drawn: Drawn,
}

/// Bytes of a [`Few`] with all of its groups.
const FEW_BYTES: usize = size_of::<Few>() + FEW * size_of::<(Time, u32)>();
/// Bytes that a class may come to.
const CLASS_BYTES: usize = 1_024;
/// Bytes of one place in a table.
const PLACE: usize = size_of::<(u64, Kept)>() + 1;

/// Where a value's starts are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Home {
    /// By itself.
    Own,
    /// By itself, once it has one.
    New,
    /// With others.
    Class(u64),
}

impl Values {
    pub(super) fn new(bound: usize) -> Self {
        Self {
            shards: Vec::new(),
            classes: HashedMap::default(),
            bound,
            tables: 0,
            heap: 0,
            sweep_next: 0,
        }
    }

    pub(super) fn set_bound(&mut self, bytes: usize) {
        self.bound = bytes;
    }

    /// Values counted at present, each for itself.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|s| s.map.len()).sum()
    }

    /// Classes that values share.
    pub(super) fn classes(&self) -> usize {
        self.classes.len()
    }

    /// Bytes held.
    pub(super) fn memory(&self) -> usize {
        self.tables + self.heap + table(self.classes.capacity())
    }

    #[inline]
    pub(super) fn earliest(&self, by: u64, from: Time, rates: &Rates) -> Time {
        let kept = match self.home(by, from, rates) {
            Home::Own => self.own(by),
            Home::New => None,
            Home::Class(class) => self.classes.get(&class),
        };
        match kept {
            None => rates.earliest(&[], Drawn::default(), from),
            Some(Kept::One(one)) => rates.earliest(&[(one.at, one.starts)], one.drawn, from),
            Some(Kept::Few(few)) => rates.earliest(&few.starts, few.drawn, from),
            Some(Kept::Full(instance)) => instance.earliest(from, rates),
        }
    }

    #[inline]
    pub(super) fn take(&mut self, by: u64, slot: Time, rates: &mut Rates) {
        rates.advance(slot);
        self.with(by, slot, rates, |kept, rates, room| kept.take(slot, rates, room));
    }

    /// A slot was not met: quotas and long windows get it back.
    pub(super) fn give_back(&mut self, by: u64, slot: Time, rates: &Rates) {
        let kept = match self.home(by, slot, rates) {
            Home::Own => self.shards[shard_of(by)].map.get_mut(&by),
            Home::Class(class) => self.classes.get_mut(&class),
            Home::New => None,
        };
        if let Some(kept) = kept {
            kept.give_back(slot, rates);
        }
    }

    /// Counts starts from before the value began to count. `starts`, `of_spans`: rising, as windows and as quotas
    /// count them.
    pub(super) fn restore(
        &mut self,
        by: u64,
        starts: &[(Time, u64)],
        of_spans: &[(Time, u64)],
        now: Time,
        rates: &Rates,
    ) {
        let mut drawn = Drawn::default();
        for quota in &rates.quotas {
            quota.add_history(&mut drawn, of_spans, rates.wall_offset);
        }
        let counts = starts.iter().any(|&(at, _)| at.plus(rates.longest) > now)
            || rates
                .quotas
                .iter()
                .any(|q| !q.is_idle(drawn, now, rates.wall_offset));
        if !counts {
            return;
        }
        let shared = is_class(by) || matches!(self.home(by, now, rates), Home::Class(_));
        self.with(by, now, rates, |kept, rates, room| {
            kept.restore(starts, of_spans, shared, now, rates, room)
        });
    }

    /// Other rates hold.
    pub(super) fn change(&mut self, rates: &Rates, same_quota: bool, now: Time) {
        let (mut heap, mut classes) = (0, std::mem::take(&mut self.classes));
        let all = self.shards.iter_mut().flat_map(|s| s.map.values_mut());
        for kept in all.chain(classes.values_mut()) {
            if !same_quota && let Some(drawn) = kept.drawn() {
                *drawn = Drawn::default();
            }
            if let Kept::Full(instance) = kept {
                instance.change(rates, now);
            } else if rates.always_full() {
                let mut instance = Instance::of(rates, RESOLUTIONS[2]);
                kept.replay(&mut instance, rates);
                *kept = Kept::Full(Box::new(instance));
            }
            heap += kept.heap(rates);
        }
        (self.classes, self.heap) = (classes, heap);
    }

    /// Drops what is over of one part, and of the classes: all of it by and by.
    pub(super) fn sweep_some(&mut self, now: Time, rates: &Rates) {
        if !self.shards.is_empty() {
            self.sweep_next = (self.sweep_next + 1) % SHARDS;
            self.sweep(self.sweep_next, now, rates);
        }
        if !self.classes.is_empty() {
            let mut freed = 0;
            self.classes.retain(|_, kept| kept.stays(now, rates, &mut freed));
            self.classes.shrink_to(2 * self.classes.len());
            self.heap -= freed;
        }
    }

    /// Does something with what counts for a value, made if need be.
    fn with(&mut self, by: u64, now: Time, rates: &Rates, f: impl FnOnce(&mut Kept, &Rates, &mut Room<'_>)) {
        let mut home = self.home(by, now, rates);
        if home != Home::Own && !is_class(by) {
            // What is over makes room, also for a value of its own where there was a class.
            home = self.made_room(by, now, rates);
        }
        let (tables, bound) = (self.tables, self.bound);
        let mut room = Room {
            tables,
            bound,
            heap: &mut self.heap,
        };
        match home {
            Home::Class(class) => {
                let kept = self
                    .classes
                    .entry(class)
                    .or_insert_with(|| Kept::new(rates, &mut room));
                f(kept, rates, &mut room);
            }
            Home::Own | Home::New => {
                if self.shards.is_empty() {
                    self.shards.resize_with(SHARDS, Shard::default);
                }
                let map = &mut self.shards[shard_of(by)].map;
                let before = table(map.capacity());
                let kept = map.entry(by).or_insert_with(|| Kept::new(rates, &mut room));
                f(kept, rates, &mut room);
                self.tables = self.tables + table(map.capacity()) - before;
            }
        }
    }

    fn own(&self, by: u64) -> Option<&Kept> {
        self.shards.get(shard_of(by))?.map.get(&by)
    }

    #[inline]
    fn home(&self, by: u64, at: Time, rates: &Rates) -> Home {
        if self.own(by).is_some() {
            return Home::Own;
        }
        let class = self.class(by);
        if is_class(by) {
            return Home::Class(class);
        }
        let live = !self.classes.is_empty()
            && self
                .classes
                .get(&class)
                .is_some_and(|kept| !kept.is_idle(at, rates));
        if live || !self.has_room(by, rates) {
            return Home::Class(class);
        }
        Home::New
    }

    /// The class of a value: as many as a quarter of the bound has room for, at most as many as the ledger tells apart.
    fn class(&self, by: u64) -> u64 {
        let most = (self.bound / 4 / CLASS_BYTES).max(16);
        coarser_class(by, most.ilog2().min(16))
    }

    fn has_room(&self, by: u64, rates: &Rates) -> bool {
        let growth =
            self.shards
                .get(shard_of(by))
                .map_or(table(1), |s| match s.map.len() < s.map.capacity() {
                    true => 0,
                    false => table(s.map.capacity() + 1) - table(s.map.capacity()),
                });
        let full = if rates.always_full() {
            rates.full_bytes(COARSEST)
        } else {
            0
        };
        self.tables + self.heap + growth + full <= self.bound / 4 * OWN
    }

    /// Sweeps the value's part where it is large or full; says where the value goes now.
    fn made_room(&mut self, by: u64, now: Time, rates: &Rates) -> Home {
        let class = self.class(by);
        let over = |kept: &Kept| kept.is_idle(now, rates);
        if self.classes.get(&class).is_some_and(over)
            && let Some(kept) = self.classes.remove(&class)
        {
            self.heap -= kept.heap(rates);
        }
        let full = !self.has_room(by, rates);
        let part = self.shards.get(shard_of(by));
        if part.is_some_and(|s| (full || s.map.len() >= s.sweep_at.max(64)) && now >= s.not_before) {
            self.sweep(shard_of(by), now, rates);
        }
        self.home(by, now, rates)
    }

    fn sweep(&mut self, part: usize, now: Time, rates: &Rates) {
        let shard = &mut self.shards[part];
        let before = table(shard.map.capacity());
        let mut freed = 0;
        shard.map.retain(|_, kept| kept.stays(now, rates, &mut freed));
        if shard.map.len() < shard.map.capacity() / 4 {
            shard.map.shrink_to(2 * shard.map.len());
        }
        shard.sweep_at = 2 * shard.map.len();
        // Full of busy ones: looking through them for each new value would be the hot path's end.
        shard.not_before = now.plus(SWEEP_AGAIN);
        self.tables = self.tables + table(shard.map.capacity()) - before;
        self.heap -= freed;
    }
}

/// Bytes of a table with room for so many values.
fn table(capacity: usize) -> usize {
    match capacity {
        0 => 0,
        n => (n * 8 / 7).next_power_of_two().max(4) * PLACE,
    }
}

fn shard_of(by: u64) -> usize {
    (by.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 58) as usize
}

/// What is left for values to grow.
struct Room<'a> {
    tables: usize,
    bound: usize,
    heap: &'a mut usize,
}

impl Room<'_> {
    /// Takes so many bytes if the bound, in quarters, allows it.
    fn take(&mut self, bytes: usize, quarters: usize) -> bool {
        let fits = self.tables + *self.heap + bytes <= self.bound / 4 * quarters;
        if fits {
            *self.heap += bytes;
        }
        fits
    }
}

impl Kept {
    fn new(rates: &Rates, room: &mut Room<'_>) -> Self {
        if rates.always_full() {
            let resolution = Self::resolution(rates, room).unwrap_or_else(|| {
                *room.heap += rates.full_bytes(COARSEST);
                COARSEST
            });
            return Kept::Full(Box::new(Instance::of(rates, resolution)));
        }
        Kept::One(One {
            at: Time::ZERO,
            starts: 0,
            drawn: Drawn::default(),
        })
    }

    /// The finest resolution that there is room for; its bytes are taken.
    fn resolution(rates: &Rates, room: &mut Room<'_>) -> Option<u64> {
        let fits = |&(quarters, resolution): &(usize, u64)| room.take(rates.full_bytes(resolution), quarters);
        (1..)
            .zip(RESOLUTIONS)
            .find(fits)
            .map(|(_, resolution)| resolution)
    }

    fn heap(&self, rates: &Rates) -> usize {
        match self {
            Kept::One(_) => 0,
            Kept::Few(_) => FEW_BYTES,
            Kept::Full(instance) => rates.full_bytes(instance.resolution),
        }
    }

    fn is_idle(&self, now: Time, rates: &Rates) -> bool {
        let (last, drawn) = match self {
            Kept::One(one) => (one.at, one.drawn),
            Kept::Few(few) => (few.starts.last().map_or(Time::ZERO, |s| s.0), few.drawn),
            Kept::Full(instance) => return instance.is_idle(now, rates),
        };
        last.plus(rates.longest) <= now
            && rates
                .quotas
                .iter()
                .all(|q| q.is_idle(drawn, now, rates.wall_offset))
    }

    fn stays(&self, now: Time, rates: &Rates, freed: &mut usize) -> bool {
        let stays = !self.is_idle(now, rates);
        if !stays {
            *freed += self.heap(rates);
        }
        stays
    }

    fn take(&mut self, slot: Time, rates: &Rates, room: &mut Room<'_>) {
        if let Kept::Full(instance) = self {
            return instance.take(slot, rates);
        }
        self.add(slot, 1, rates, room);
        if let (Some(quota), Some(drawn)) = (rates.quotas.first(), self.drawn()) {
            quota.take(drawn);
        }
    }

    fn give_back(&mut self, slot: Time, rates: &Rates) {
        if let Kept::Full(instance) = self {
            return instance.give_back(slot, rates);
        }
        if let (Some(quota), Some(drawn)) = (rates.quotas.first(), self.drawn()) {
            quota.give_back(drawn, slot, rates.wall_offset);
        }
        // The groups stand for all windows at once.
        if rates.sliding.iter().any(|window| window.span < GIVEN_BACK) {
            return;
        }
        let over = slot.plus(rates.longest);
        match self {
            Kept::One(one) if one.at >= over => {}
            Kept::Few(few) if few.starts.last().is_some_and(|group| group.0 >= over) => {}
            Kept::One(one) if one.at >= slot => one.starts = one.starts.saturating_sub(1),
            Kept::Few(few) => {
                let at = few.starts.partition_point(|group| group.0 < slot);
                if let Some(group) = few.starts.get_mut(at) {
                    group.1 = group.1.saturating_sub(1);
                    if group.1 == 0 {
                        few.starts.remove(at);
                    }
                }
            }
            Kept::One(_) | Kept::Full(_) => {}
        }
    }

    fn drawn(&mut self) -> Option<&mut Drawn> {
        match self {
            Kept::One(one) => Some(&mut one.drawn),
            Kept::Few(few) => Some(&mut few.drawn),
            Kept::Full(_) => None,
        }
    }

    /// Starts at a slot that is not before the last one; for the windows only.
    fn add(&mut self, slot: Time, starts: u32, rates: &Rates, room: &mut Room<'_>) {
        match self {
            Kept::Full(instance) => {
                for window in &mut instance.windows {
                    window.take(slot, u64::from(starts));
                }
                instance.last = instance.last.max(Some(slot));
            }
            Kept::One(one) => {
                let slot = slot.max(one.at);
                if one.starts == 0 || one.at == slot || one.at.plus(rates.longest) <= slot {
                    let over = one.at.plus(rates.longest) <= slot;
                    one.starts = if over {
                        starts
                    } else {
                        one.starts.saturating_add(starts)
                    };
                    one.at = slot;
                } else if room.take(FEW_BYTES, 4) {
                    let mut few = Few {
                        starts: SmallVec::new(),
                        drawn: one.drawn,
                    };
                    few.starts.extend([(one.at, one.starts), (slot, starts)]);
                    *self = Kept::Few(Box::new(few));
                } else {
                    // All as late as the last: it waits longer than it must.
                    (one.at, one.starts) = (slot, one.starts.saturating_add(starts));
                }
            }
            Kept::Few(few) => {
                let slot = few.starts.last().map_or(slot, |last| slot.max(last.0));
                let over = few
                    .starts
                    .iter()
                    .take_while(|s| s.0.plus(rates.longest) <= slot)
                    .count();
                few.starts.drain(..over);
                match few.starts.last_mut() {
                    Some(last) if last.0 == slot => last.1 = last.1.saturating_add(starts),
                    _ => few.starts.push((slot, starts)),
                }
                if few.starts.len() > FEW {
                    self.grow(rates, room);
                }
            }
        }
    }

    /// More than a few groups: an instance of its own, or half as many groups.
    fn grow(&mut self, rates: &Rates, room: &mut Room<'_>) {
        if let Some(resolution) = Self::resolution(rates, room) {
            *room.heap -= FEW_BYTES;
            let mut instance = Instance::of(rates, resolution);
            self.replay(&mut instance, rates);
            *self = Kept::Full(Box::new(instance));
        } else if let Kept::Few(few) = self {
            let merged = few.starts.chunks(2).map(|two| {
                let (last, _) = two[two.len() - 1];
                (last, two.iter().fold(0, |sum: u32, s| sum.saturating_add(s.1)))
            });
            few.starts = merged.collect();
        }
    }

    /// The same starts in an instance of which nothing is used.
    fn replay(&self, instance: &mut Instance, rates: &Rates) {
        let (one, few);
        let (starts, drawn) = match self {
            Kept::One(o) => {
                one = [(o.at, o.starts)];
                (&one[..], o.drawn)
            }
            Kept::Few(f) => {
                few = &f.starts;
                (&few[..], f.drawn)
            }
            Kept::Full(_) => return,
        };
        for &(at, starts) in starts.iter().filter(|s| s.1 > 0) {
            for window in &mut instance.windows {
                window.take(at, u64::from(starts));
            }
            instance.note_due(at, u64::from(starts), rates);
            instance.last = Some(at);
        }
        if let Some(first) = instance.drawn.first_mut() {
            *first = drawn;
        }
    }

    fn restore(
        &mut self,
        starts: &[(Time, u64)],
        of_spans: &[(Time, u64)],
        shared: bool,
        now: Time,
        rates: &Rates,
        room: &mut Room<'_>,
    ) {
        let known: SmallVec<[(Time, u32); 4]> = match self {
            Kept::Full(instance) => return instance.restore(starts, of_spans, shared, now, rates),
            Kept::One(one) => [(one.at, one.starts)].into_iter().filter(|s| s.1 > 0).collect(),
            Kept::Few(few) => few.starts.iter().copied().collect(),
        };
        for quota in &rates.quotas {
            if let Some(drawn) = self.drawn() {
                quota.add_history(drawn, of_spans, rates.wall_offset);
            }
        }
        // What is known already is not counted again; of a class the others' starts are known.
        let first = known.first().map_or(Time::NEVER, |s| s.0);
        let news = starts.iter().filter(|s| shared || s.0 < first);
        let news = news.map(|&(at, n)| (at, u32::try_from(n).unwrap_or(u32::MAX)));
        let mut all: Vec<(Time, u32)> = known.into_iter().chain(news).collect();
        all.sort_by_key(|s| s.0);
        let drawn = self.drawn().map(|d| *d).unwrap_or_default();
        if matches!(self, Kept::Few(_)) {
            *room.heap -= FEW_BYTES;
        }
        *self = Kept::One(One {
            at: Time::ZERO,
            starts: 0,
            drawn,
        });
        for (at, n) in all {
            self.add(at, n, rates, room);
        }
    }
}

impl Rates {
    /// Whether a value of such rates cannot be told by a few groups of starts.
    fn always_full(&self) -> bool {
        self.spacing.is_some() || self.quotas.len() > 1
    }

    /// Bytes of a value's full form.
    fn full_bytes(&self, resolution: u64) -> usize {
        let windows = self.sliding.iter();
        size_of::<Instance>()
            + windows
                .map(|w| SlidingWindow::most_memory(w.count, resolution))
                .sum::<usize>()
    }

    /// The earliest start of a value that has these starts (rising), not before `from`.
    fn earliest(&self, starts: &[(Time, u32)], drawn: Drawn, from: Time) -> Time {
        let mut slot = match starts.last() {
            Some(&(last, n)) if n > 0 => from.max(last.plus(self.gap)),
            _ => from,
        };
        for window in &self.sliding {
            // So many of the oldest must be out of the window.
            let total: u64 = starts.iter().map(|s| u64::from(s.1)).sum();
            let Some(mut must_go) = (total + 1).checked_sub(window.count).filter(|n| *n > 0) else {
                continue;
            };
            for &(at, n) in starts {
                if u64::from(n) >= must_go {
                    slot = slot.max(at.plus(window.span));
                    break;
                }
                must_go -= u64::from(n);
            }
        }
        for quota in &self.quotas {
            slot = quota.earliest(drawn, slot, self.wall_offset);
        }
        slot
    }
}
