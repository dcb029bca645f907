//! Starts drawn from one budget, in the form from which a limiter is rebuilt (I5). Whatever is made coarser is
//! made later: a window rebuilt from it never has fewer starts in it than there were.

use crate::core::ledger::entry::{BudgetDraw, Used};
use crate::core::types::Time;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
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

/// A life whose clock is behind the latest start by up to so long counts its starts as late as that one: never too
/// early, whichever clock was right. One that is further behind is believed, and what was known comes down to it: an
/// earlier clock was ahead, and its starts must not count as the latest for years. A limiter that is rebuilt believes
/// starts ahead of its clock by as much.
pub const BEHIND: Duration = Duration::from_secs(86_400);
/// Before 2020: no clock, but a machine that has none yet.
const NO_CLOCK: Time = Time(1_577_836_800_000_000);

const QUARTER_US: u64 = 15 * 60 * 1_000_000;
const FINE: Duration = Duration::from_secs(1);
const FINE_CELL_US: u64 = 2_000;
const CELL_US: u64 = 64_000;

fn shifted(t: Time, by_us: i64) -> Time {
    Time(t.0.saturating_add_signed(by_us))
}

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

    /// The latest start before a time; of a quarter hour, its beginning.
    pub fn latest_before(&self, t: Time) -> Option<Time> {
        let recent = self.recent.iter().rev().map(|r| r.0).find(|slot| *slot < t);
        let quarter = self.quarters.range(..t).next_back().map(|(from, _)| *from);
        recent.max(quarter)
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

    /// A slot before the latest one: rare and near the end, but for a clock that was set back between two lives.
    #[cold]
    fn add_earlier(&mut self, slot: Time, count: u32) {
        let latest = self.latest().unwrap_or(slot);
        if slot < latest.minus(RECENT) {
            // Which of the two clocks was right nobody knows. It was made after all that is known.
            if latest.since(slot) <= BEHIND || slot < NO_CLOCK {
                return self.add(latest, count);
            }
            self.bring_down(slot);
            return self.add(slot, count);
        }
        // Quotas end at edges of quarter hours, and go on where the latest start is: a clock that went back over an
        // edge draws from what is behind the edge, and so it must be found there.
        let slot = slot.max(quarter_of(latest));
        let place = self.recent.partition_point(|(t, _)| *t <= slot);
        match place.checked_sub(1).and_then(|i| self.recent.get_mut(i)) {
            Some((t, n)) if *t == slot && n.checked_add(count).is_some() => *n += count,
            _ => self.recent.insert(place, (slot, count)),
        }
        if self.recent.len() > RECENT_MAX {
            self.coarsen(latest);
        }
    }

    /// A clock that was ahead by more than a day is not believed any more: what it has told happened before `slot`.
    fn bring_down(&mut self, slot: Time) {
        for (_, n) in std::mem::take(&mut self.recent) {
            self.add(slot, n);
        }
        let mut later: u64 = self.quarters.split_off(&quarter_of(slot)).values().sum();
        while later > 0 {
            let n = later.min(u64::from(u32::MAX)) as u32;
            self.add(slot, n);
            later -= u64::from(n);
        }
    }

    /// A start of an earlier time, which a trim has carried: it counts when it was.
    pub(super) fn note_carried(&mut self, slot: Time) {
        match self.latest() {
            Some(latest) if slot < latest.minus(RECENT) => self.add_quarter(slot, 1, latest),
            _ => self.add(slot, 1),
        }
    }

    /// The same by a clock that is ahead by so much (behind, below zero). A quarter hour that is not one any more counts
    /// as the later one of the two that it lies in.
    fn by_another_clock(&self, ahead_us: i64) -> Self {
        let mut by = Self {
            recent: self
                .recent
                .iter()
                .map(|(slot, n)| (shifted(*slot, ahead_us), *n))
                .collect(),
            quarters: BTreeMap::new(),
        };
        for (from, n) in &self.quarters {
            let last = shifted(*from, ahead_us.saturating_add(QUARTER_US as i64 - 1));
            *by.quarters.entry(quarter_of(last)).or_default() += n;
        }
        by
    }

    /// Before all starts that are known.
    pub fn since_when(&self) -> Time {
        let recent = self.recent.front().map(|(slot, _)| quarter_of(*slot));
        let quarter = self.quarters.keys().next().copied();
        recent.into_iter().chain(quarter).min().unwrap_or(Time::ZERO)
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

/// Starts of all budgets, by draw. Of a split budget a value is here for as long as its starts count: its budget's
/// *horizon*, which the node writes into the ledger (a `used` entry without starts). What is older is found by and by:
/// each new value looks at its neighbours, and the hashes that values are told by are spread evenly, so that at most
/// about a third of the values are over already.
///
/// Above [`VALUES_MAX`] a new value is counted in its *class*, with those whose hashes begin alike; so is, while a class
/// has starts that count, each new value of it. The limiter does the same when it is rebuilt: never is more allowed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UsedBudgets {
    by_draw: BTreeMap<BudgetDraw, Kept>,
    horizons: BTreeMap<u64, Duration>,
    /// By how much the wall clock is ahead of the clock by which the present life tells its slots, in microseconds: it
    /// was set while the life ran. Starts are noted by the wall clock, as it stood then: the next life begins by it, and
    /// quotas go by it.
    wall_ahead: i64,
}

/// Values known apart, of all budgets.
pub const VALUES_MAX: usize = 1 << 20;
/// Neighbours that a new value looks at.
const NEIGHBOURS: usize = 4;
/// Draws that a sweep looks at.
const SWEPT: usize = 512;
/// A start counts somewhat longer than its horizon: slots come nearly in order.
const HORIZON_SLACK: Duration = Duration::from_secs(1);

/// What tells a class from a value: no hash of a value is likely to begin like that, and one that does only shares.
const CLASS: u64 = 0xC1A5_5E5C_1A55_0000;

/// Whether this stands for a class of values.
pub fn is_class(by: u64) -> bool {
    by & !0xFFFF == CLASS
}

/// The class, one of 65,536, in which a value is counted where there is no room for one more. Never change: it is in
/// the ledger.
pub fn class_of(by: u64) -> u64 {
    match is_class(by) {
        true => by,
        false => CLASS | (by.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 48),
    }
}

/// The same with only so many bits to tell classes apart, at most 16.
pub fn coarser_class(by: u64, bits: u32) -> u64 {
    CLASS | ((class_of(by) & 0xFFFF) >> (16 - bits.min(16)))
}

/// Most values of a split budget have a start or two.
#[derive(Clone, Debug, PartialEq)]
enum Kept {
    One(Time),
    Two([Time; 2]),
    Many(Box<UsedSlots>),
}

impl Kept {
    fn latest(&self) -> Time {
        match self {
            Kept::One(at) => *at,
            Kept::Two([_, at]) => *at,
            Kept::Many(used) => used.latest().unwrap_or(Time::ZERO),
        }
    }

    /// In the form that a limiter is rebuilt from.
    fn slots(&self) -> Cow<'_, UsedSlots> {
        let of = |recent: &[Time]| {
            Cow::Owned(UsedSlots {
                recent: recent.iter().map(|at| (*at, 1)).collect(),
                quarters: BTreeMap::new(),
            })
        };
        match self {
            Kept::One(at) => of(&[*at]),
            Kept::Two(both) => of(both),
            Kept::Many(used) => Cow::Borrowed(used),
        }
    }

    fn of(used: UsedSlots) -> Self {
        let singly = used.quarters.is_empty() && used.recent.iter().all(|(_, n)| *n == 1);
        match (singly, used.recent.len()) {
            (true, 1) => Kept::One(used.recent[0].0),
            (true, 2) => Kept::Two([used.recent[0].0, used.recent[1].0]),
            _ => Kept::Many(Box::new(used)),
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut UsedSlots)) {
        if let Kept::Many(used) = self {
            change(used);
            if used.recent.len() <= 2 {
                *self = Kept::of(std::mem::take(used));
            }
            return;
        }
        let mut used = self.slots().into_owned();
        change(&mut used);
        *self = Kept::of(used);
    }

    fn is_over(&self, horizons: &BTreeMap<u64, Duration>, budget: u64, now: Time) -> bool {
        let horizon = horizons.get(&budget).copied().unwrap_or(QUARTERS_KEPT);
        self.latest().plus(horizon.saturating_add(HORIZON_SLACK)) < now
    }

    #[inline]
    fn note(&mut self, slot: Time) {
        match self {
            Kept::One(at) if *at < slot && slot.since(*at) < RECENT => *self = Kept::Two([*at, slot]),
            _ => self.change(|used| used.note(slot)),
        }
    }
}

impl UsedBudgets {
    /// Notes one start.
    #[inline]
    pub fn note(&mut self, draw: BudgetDraw, slot: Time) {
        let slot = shifted(slot, self.wall_ahead);
        let Some(kept) = self.by_draw.get_mut(&draw) else {
            return self.note_new(draw, slot);
        };
        if draw.by != 0 && kept.is_over(&self.horizons, draw.budget, slot) {
            *kept = Kept::One(slot);
        } else {
            kept.note(slot);
        }
    }

    fn note_new(&mut self, draw: BudgetDraw, slot: Time) {
        let draw = self.home(draw, slot);
        match self.by_draw.entry(draw) {
            Entry::Occupied(mut known) => known.get_mut().note(slot),
            Entry::Vacant(place) => {
                place.insert(Kept::One(slot));
            }
        }
    }

    /// A start of an earlier time, which a trim has carried.
    pub(super) fn note_carried(&mut self, draw: BudgetDraw, slot: Time) {
        let draw = self.home(draw, slot);
        let kept = self.by_draw.entry(draw).or_insert(Kept::One(slot));
        if kept.latest() != slot {
            kept.change(|used| used.note_carried(slot));
        }
    }

    /// Another life begins, by the wall clock as it stands.
    pub fn new_life(&mut self) {
        self.wall_ahead = 0;
    }

    /// By how much the wall clock is ahead of the present life's clock, in microseconds.
    pub fn wall_ahead(&self) -> i64 {
        self.wall_ahead
    }

    /// A `used` entry. Without starts it may say how long starts of its budget count, or that the wall clock was set.
    pub(crate) fn fill_up(&mut self, used: &Used) {
        if let Some(ahead) = used.wall_ahead() {
            self.wall_ahead = ahead;
        } else if used.is_horizon() {
            self.horizons
                .insert(used.draw.budget, Duration::from_secs(used.window.into()));
        } else if used.is_start() {
            self.note(used.draw, used.since);
        } else if used.count > 0 {
            let draw = self.home(used.draw, used.since);
            let kept = self
                .by_draw
                .entry(draw)
                .or_insert_with(|| Kept::Many(Box::default()));
            kept.change(|slots| slots.fill_up(used.since, used.count));
        }
    }

    /// Where a draw's starts are noted: by itself, or in its class.
    fn home(&mut self, draw: BudgetDraw, now: Time) -> BudgetDraw {
        if draw.by == 0 || is_class(draw.by) || self.by_draw.contains_key(&draw) {
            return draw;
        }
        self.drop_over(draw, NEIGHBOURS, now);
        let class = BudgetDraw {
            by: class_of(draw.by),
            ..draw
        };
        let class_counts = self
            .by_draw
            .get(&class)
            .map(|kept| !self.is_over(&class, kept, now));
        if class_counts == Some(false) {
            self.by_draw.remove(&class);
        }
        if class_counts == Some(true) || self.by_draw.len() >= VALUES_MAX {
            class
        } else {
            draw
        }
    }

    /// Drops what is over of the draws that follow this one.
    fn drop_over(&mut self, draw: BudgetDraw, neighbours: usize, now: Time) {
        let mut over: SmallVec<[BudgetDraw; NEIGHBOURS]> = SmallVec::new();
        let next = self.by_draw.range((Bound::Excluded(draw), Bound::Unbounded));
        for (draw, kept) in next.take(neighbours) {
            if draw.by != 0 && self.is_over(draw, kept, now) {
                over.push(*draw);
            }
        }
        for draw in over {
            self.by_draw.remove(&draw);
        }
    }

    /// Drops what is over somewhere, where `at` (any number) says: all of it by and by, also while no value is new.
    pub(super) fn sweep_some(&mut self, at: u64, now: Time) {
        let Some((&first, _)) = self.by_draw.first_key_value() else {
            return;
        };
        let spread = at.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let split = self
            .horizons
            .keys()
            .nth((at % self.horizons.len().max(1) as u64) as usize);
        let from = BudgetDraw {
            budget: split.copied().unwrap_or(first.budget),
            by: spread,
        };
        self.drop_over(from, self.by_draw.len().clamp(NEIGHBOURS, SWEPT), now);
    }

    /// Whether no start of a draw counts any more, for whoever starts at `now`.
    fn is_over(&self, draw: &BudgetDraw, kept: &Kept, now: Time) -> bool {
        kept.is_over(&self.horizons, draw.budget, now)
    }

    /// What is known of a draw, as a limiter is rebuilt from it.
    pub fn get(&self, draw: &BudgetDraw) -> Option<Cow<'_, UsedSlots>> {
        self.by_draw.get(draw).map(Kept::slots)
    }

    /// All that is known, by draw, by the wall clock.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&BudgetDraw, Cow<'_, UsedSlots>)> {
        self.by_draw.iter().map(|(draw, kept)| (draw, kept.slots()))
    }

    /// What is known of one budget, by the present life's clock and by value: zero, where it is not split; a class, where several values were counted
    /// together.
    pub fn each_of(&self, budget: u64, mut each: impl FnMut(u64, &UsedSlots)) {
        let all = BudgetDraw { budget, by: 0 }..=BudgetDraw { budget, by: u64::MAX };
        for (draw, kept) in self.by_draw.range(all) {
            match self.wall_ahead {
                0 => each(draw.by, &kept.slots()),
                ahead => each(draw.by, &kept.slots().by_another_clock(ahead.saturating_neg())),
            }
        }
    }

    /// How long starts of each budget count, as far as the ledger says.
    pub fn horizons(&self) -> &BTreeMap<u64, Duration> {
        &self.horizons
    }

    /// `used` entries for up to `most` draws behind `after`, of what still counts at `now`; and the last draw looked at,
    /// if there may be more behind it. The horizons stand before the first draw.
    pub fn entries(
        &self,
        after: Option<BudgetDraw>,
        most: usize,
        now: Time,
    ) -> (Vec<Used>, Option<BudgetDraw>) {
        let mut entries = Vec::new();
        if after.is_none() {
            entries.extend(
                self.horizons
                    .iter()
                    .map(|(budget, horizon)| Used::horizon(*budget, *horizon)),
            );
            if self.wall_ahead != 0 {
                entries.push(Used::clock(self.wall_ahead));
            }
        }
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut last = None;
        for (draw, kept) in self.by_draw.range((from, Bound::Unbounded)).take(most) {
            last = Some(*draw);
            if draw.by != 0 && self.is_over(draw, kept, now) {
                continue;
            }
            let slots = kept.slots();
            let since = slots.since_when();
            entries.push(Used {
                draw: *draw,
                window: 0,
                since,
                count: slots.since(since),
            });
        }
        (entries, last)
    }

    /// Draws known.
    pub fn len(&self) -> usize {
        self.by_draw.len()
    }

    /// Whether nothing was drawn yet.
    pub fn is_empty(&self) -> bool {
        self.by_draw.is_empty()
    }

    /// Bytes held, roughly.
    pub fn memory(&self) -> usize {
        // Nodes of the map are two thirds full where keys come in no order.
        self.by_draw.len() * (size_of::<(BudgetDraw, Kept)>() * 3 / 2)
    }

    pub(crate) fn insert(&mut self, draw: BudgetDraw, used: UsedSlots) {
        self.by_draw.insert(draw, Kept::of(used));
    }

    pub(crate) fn set_wall_ahead(&mut self, us: i64) {
        self.wall_ahead = us;
    }

    pub(crate) fn set_horizon(&mut self, budget: u64, horizon: Duration) {
        self.horizons.insert(budget, horizon);
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

    fn second(n: u64) -> Time {
        Time(START + n * 1_000_000)
    }

    /// As hashes of values are: spread evenly.
    fn draw(n: u64) -> BudgetDraw {
        BudgetDraw {
            budget: 7,
            by: n.wrapping_add(1).wrapping_mul(0xD1B5_4A32_D192_ED03),
        }
    }

    /// Two hundred thousand values with one start each, a thousand a second, under a limit of a minute: what is over
    /// leaves, so that memory follows the values of the last minute; and a trim writes only what is young.
    #[test]
    fn values_leave_once_their_starts_count_no_more() {
        let mut used = UsedBudgets::default();
        used.fill_up(&Used::horizon(7, Duration::from_millis(60_014)));
        let mut most = 0;
        for n in 0..200_000 {
            used.note(draw(n), Time(START + n * 1_000));
            most = most.max(used.len());
        }
        assert!(most < 100_000, "{most} values");
        let now = second(200);
        let (entries, _) = used.entries(None, usize::MAX, now);
        assert_eq!(entries[0], Used::horizon(7, Duration::from_secs(61)));
        // A minute, and the second and a bit that the horizon is rounded up by.
        assert!(
            (60_000..=63_000).contains(&(entries.len() - 1)),
            "{}",
            entries.len()
        );
        // No value is new any more: what is over goes all the same, as the samples come.
        for n in 0..3_000 {
            used.sweep_some(n, second(1_000));
        }
        assert!(used.len() < 2_000, "{} left", used.len());
        // One of the last minute is known as it was.
        let mut fresh = UsedBudgets::default();
        fresh.note(draw(5), second(1));
        fresh.note(draw(5), second(2));
        assert_eq!(fresh.get(&draw(5)).map(|u| u.since(second(2))), Some(1));
    }

    /// A start of which no intent tells is one more than those known, also at the same time.
    #[test]
    fn a_start_without_an_intent_is_one_more() {
        let mut used = UsedBudgets::default();
        used.note(draw(5), second(1));
        used.fill_up(&Used::start(draw(5), second(1)));
        used.fill_up(&Used::start(draw(5), second(1)));
        used.fill_up(&Used::start(draw(6), second(2)));
        let known = |n| used.get(&draw(n)).map(|u| u.since(second(1)));
        assert_eq!((known(5), known(6)), (Some(3), Some(1)));
    }

    /// Without a horizon a value stays for as long as any quota may last.
    #[test]
    fn a_budget_without_a_horizon_forgets_nothing_of_a_month() {
        let mut used = UsedBudgets::default();
        for n in 0..2_000 {
            used.note(draw(n), second(n * 600));
        }
        assert_eq!(used.len(), 2_000);
    }

    #[test]
    fn beyond_the_bound_values_are_counted_in_their_classes() {
        let mut used = UsedBudgets::default();
        used.fill_up(&Used::horizon(7, Duration::from_secs(3_600)));
        let (apart, more) = (VALUES_MAX as u64, 3_000);
        for n in 0..apart + more {
            used.note(draw(n), second(n / 100_000));
        }
        assert!(used.len() <= VALUES_MAX + 65_536);
        let mut in_classes = 0;
        used.each_of(7, |by, slots| {
            if is_class(by) {
                in_classes += slots.since(Time::ZERO);
            }
        });
        assert_eq!(in_classes, more);
        assert!(used.memory() < 96 << 20, "{}", used.memory());
        // A class that counts takes its new values also when there is room again; one that is over does not.
        let known = draw(apart + 5);
        let class = BudgetDraw {
            by: class_of(known.by),
            ..known
        };
        let before = used.get(&class).map(|u| u.since(Time::ZERO));
        used.note(known, second(20));
        assert_eq!(
            used.get(&class).map(|u| u.since(Time::ZERO)),
            before.map(|n| n + 1)
        );
        assert_eq!(coarser_class(class.by, 16), class.by);
    }

    /// Starts that come late within a quarter hour are where they were. One of the quarter hour before counts behind the
    /// edge: there it was drawn, if the clock went back over it.
    #[test]
    fn a_start_behind_the_latest_does_not_go_back_over_an_edge() {
        let edge = quarter_of(Time(START + 900_000_000));
        let mut used = UsedSlots::default();
        for at in [
            edge.plus(Duration::from_secs(30)),
            edge.plus(Duration::from_secs(20)),
            edge.minus(Duration::from_secs(10)),
        ] {
            used.note(at);
        }
        assert_eq!(
            (used.since(edge), used.latest()),
            (3, Some(edge.plus(Duration::from_secs(30))))
        );
        let after = Duration::from_micros(1);
        assert_eq!(used.since(edge.plus(after)), 2);
    }

    /// A life whose clock stands behind, or at 1970, starts as much as any other: nothing of it is dropped.
    #[test]
    fn starts_of_a_life_whose_clock_is_behind_count() {
        for behind in [70, 7_200, 80_000, START / 1_000_000 - 5] {
            let mut used = UsedSlots::default();
            for n in 0..900 {
                used.note(Time(START + n * 1_000));
            }
            let now = Time(START - behind * 1_000_000);
            for n in 0..50 {
                used.note(now.plus(Duration::from_secs(n * 60)));
            }
            assert_eq!(used.since(second(0)), 950, "{behind} s behind");
        }
    }

    /// A life whose clock was ahead by years: what it told counts before what comes then, and not for years.
    #[test]
    fn a_clock_that_was_years_ahead_is_not_believed_for_years() {
        let mut used = UsedSlots::default();
        let ahead = START + 400 * 86_400 * 1_000_000;
        for n in 0..900 {
            used.note(Time(ahead + n * 1_000_000));
        }
        used.note(second(0));
        assert_eq!((used.since(second(0)), used.latest()), (901, Some(second(0))));
        for n in 1..=3 {
            used.note(second(n * 3_600));
        }
        assert_eq!(used.since(second(3_600)), 3);
        assert_eq!(used.since(Time::ZERO), 904);
    }

    /// The clock was behind by 40 minutes and set right while the node ran: the starts from then on are where the next
    /// life, whose clock is right from its beginning, has them; this life has them by its own clock.
    #[test]
    fn starts_count_by_the_clock_as_it_stood() {
        let mut used = UsedBudgets::default();
        used.note(draw(0), second(0));
        used.fill_up(&Used::clock(2_400_000_000));
        used.note(draw(9), second(200));
        let latest = |used: &UsedBudgets| {
            let mut latest = Vec::new();
            used.each_of(7, |by, slots| latest.push((by == draw(9).by, slots.latest())));
            latest
                .into_iter()
                .filter_map(|(is, at)| at.filter(|_| is))
                .collect::<Vec<_>>()
        };
        assert_eq!(latest(&used), [second(200)]);
        let (entries, _) = used.entries(None, 10, second(200));
        assert!(entries.contains(&Used::clock(2_400_000_000)));
        used.new_life();
        assert_eq!(latest(&used), [second(2_600)]);
        assert_eq!(used.get(&draw(0)).and_then(|u| u.latest()), Some(second(0)));
    }
}
