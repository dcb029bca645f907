//! All budgets of a node, by the hash of their names. Several partners may draw from one.

use super::deferral::Deferrals;
use super::sharing::{Turns, YIELD};
use super::{HashedMap, LimitError, Limiter, RatesChanged, VALIDITY, WallStep};
use crate::config::model::LimitConfig;
use crate::core::ledger::entry::BudgetDraw;
use crate::core::ledger::fold::UsedBudgets;
use crate::core::types::Time;
use std::time::Duration;

/// The budgets of a node. The caller shares it (`Rc<RefCell<…>>`); calls are short and never nest.
///
/// A draw from a budget that is not in the table is free: it was removed by a reload while the message waited.
#[derive(Debug, Default)]
pub struct BudgetTable {
    limiters: HashedMap<u64, Limiter>,
    /// Turns at budgets that several partners draw from.
    shared: HashedMap<u64, SharedTurns>,
    /// How often a step of the wall clock changed something.
    wall_steps: u64,
    /// Messages that were sent away until their value has a slot.
    deferrals: Deferrals,
    sweep_next: usize,
    mind_at: Time,
    told_full: bool,
}

/// How often a table is looked after.
const MIND_EVERY: Duration = Duration::from_secs(1);

/// What [`BudgetTable::mind`] has to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Minded {
    /// The wall clock was set.
    WallStep(WallStep),
    /// There is no room for more values of their own.
    Full(Values),
    /// There is again.
    Room(Values),
}

/// Turns at one budget, by the value that splits it.
#[derive(Debug, Default)]
struct SharedTurns {
    by: HashedMap<u64, Turns>,
    sweep_at: usize,
}

/// Values of a shared budget that partners take turns at. Beyond them whoever comes first is served first, within
/// the limit.
const TURNS_MAX: usize = 16_384;

impl SharedTurns {
    /// The turns at one value; none if there are too many that somebody waits for.
    fn of(&mut self, by: u64, now: Time) -> Option<&mut Turns> {
        if !self.by.contains_key(&by) && self.by.len() >= self.sweep_at.max(64) {
            self.by.retain(|_, turns| !turns.is_idle(now));
            // Not again before there are twice as many: looking through all at each start would be the hot path's end.
            self.sweep_at = (2 * self.by.len()).max(64);
        }
        if self.by.len() >= TURNS_MAX && !self.by.contains_key(&by) {
            return None;
        }
        Some(self.by.entry(by).or_default())
    }
}

/// The values of the split budgets of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Values {
    /// Values that have a budget of their own now.
    pub own: usize,
    /// Budgets that several values share, for there was no room for more.
    pub classes: usize,
    /// Bytes that they hold.
    pub bytes: usize,
}

impl BudgetTable {
    /// A table without budgets.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a budget, or gives one that is there new rates.
    ///
    /// # Errors
    /// A time zone that is not known; then nothing has changed.
    pub fn set(&mut self, budget: u64, limit: &LimitConfig, now: Time) -> Result<RatesChanged, LimitError> {
        self.deferrals.clear();
        match self.limiters.get_mut(&budget) {
            Some(limiter) => limiter.set_rates(limit, now),
            None => {
                self.limiters.insert(budget, Limiter::try_new(limit, now)?);
                Ok(RatesChanged { needs_history: true })
            }
        }
    }

    /// Says whether several partners draw from a budget: then they take turns.
    pub fn set_shared(&mut self, budget: u64, shared: bool) {
        if shared {
            self.shared.entry(budget).or_default();
        } else {
            self.shared.remove(&budget);
        }
    }

    /// Removes a budget: nothing is limited by it any more.
    pub fn remove(&mut self, budget: u64) {
        self.limiters.remove(&budget);
        self.shared.remove(&budget);
    }

    /// One budget.
    pub fn get_mut(&mut self, budget: u64) -> Option<&mut Limiter> {
        self.limiters.get_mut(&budget)
    }

    /// Looks after the budgets, at most once a second: tells the quotas how far the wall clock is ahead of the clock that
    /// slots are told by (in microseconds), drops some of what is over. Returns what is worth telling.
    pub fn mind(&mut self, now: Time, wall_offset: impl FnOnce() -> i64) -> Vec<Minded> {
        if now < self.mind_at {
            return Vec::new();
        }
        self.mind_at = now.plus(MIND_EVERY);
        let mut news = self.set_wall_offset(wall_offset(), now);
        self.sweep_some(now);
        let values = self.values();
        let full = values.classes > 0;
        if full != std::mem::replace(&mut self.told_full, full) {
            news.push(match full {
                true => Minded::Full(values),
                false => Minded::Room(values),
            });
        }
        news
    }

    fn set_wall_offset(&mut self, offset_us: i64, now: Time) -> Vec<Minded> {
        let mut steps: Vec<Minded> = Vec::new();
        for limiter in self.limiters.values_mut() {
            let waited = limiter.disbelief();
            let step = limiter.set_wall_offset(offset_us, now);
            let news = match step {
                WallStep::None => waited.is_some(),
                WallStep::Believed => true,
                WallStep::Waits(_) => waited.is_none(),
            };
            if news && limiter.has_quotas() {
                self.wall_steps += 1;
                self.deferrals.clear();
                // One clock, told once, however many quotas follow it.
                if !steps.contains(&Minded::WallStep(step)) {
                    steps.push(Minded::WallStep(step));
                }
            }
        }
        steps
    }

    /// How often a step of the wall clock changed something: a caller that has seen fewer looks at its starts again.
    pub fn wall_steps(&self) -> u64 {
        self.wall_steps
    }

    /// Until when a budget gives nothing, for a step of the wall clock is not believed yet.
    pub fn disbelief(&self) -> Option<Time> {
        self.limiters.values().filter_map(Limiter::disbelief).max()
    }

    /// Counts all that the ledger knows of a budget: see [`Limiter::restore`].
    pub fn restore(&mut self, budget: u64, used: &UsedBudgets, now: Time) {
        if let Some(limiter) = self.limiters.get_mut(&budget) {
            limiter.restore(|each| used.each_of(budget, |by, slots| each(by, slots)), now);
        }
    }

    /// The values of all split budgets.
    pub fn values(&self) -> Values {
        let limiters = self.limiters.values();
        let beside = Values {
            bytes: self.deferrals.memory(),
            ..Values::default()
        };
        limiters.fold(beside, |sum, limiter| Values {
            own: sum.own + limiter.instances(),
            classes: sum.classes + limiter.classes(),
            bytes: sum.bytes + limiter.memory(),
        })
    }

    #[cfg(test)]
    pub(super) fn turns(&self, budget: u64) -> usize {
        self.shared.get(&budget).map_or(0, |turns| turns.by.len())
    }

    /// Drops some of what is over, of one budget after the other: all of it by and by.
    pub fn sweep_some(&mut self, now: Time) {
        self.sweep_next = (self.sweep_next + 1) % self.limiters.len().max(1);
        if let Some(limiter) = self.limiters.values_mut().nth(self.sweep_next) {
            limiter.sweep_some(now);
        }
    }

    /// The earliest slot that all these budgets allow the partner `who`, and the one of them that is last to allow
    /// it (none if nothing but the present keeps it back). The slot's validity does not end before `now + lead`:
    /// what must be done before the start takes that long. A slot later than that is a claim at a shared budget.
    #[inline]
    pub fn earliest(
        &mut self,
        who: u32,
        draws: &[BudgetDraw],
        now: Time,
        lead: Duration,
    ) -> (Time, Option<BudgetDraw>) {
        let mut slot = now;
        let mut last = None;
        for draw in draws {
            if let Some(limiter) = self.limiters.get_mut(&draw.budget) {
                let from = slot.max(now.plus(lead.saturating_sub(limiter.validity())));
                slot = limiter.earliest(draw.by, from);
                if slot > from {
                    last = Some(*draw);
                }
            }
        }
        if !self.shared.is_empty() {
            self.heed_turns(who, draws, now, now.plus(lead), &mut slot, &mut last);
        }
        (slot, last)
    }

    /// Sends a message away that this draw keeps back; `next`: the earliest slot. Returns about when it can start: in
    /// turn with those that are away already.
    pub fn defer(&mut self, draw: BudgetDraw, next: Time, now: Time) -> Time {
        match self.limiters.get(&draw.budget) {
            Some(limiter) => self.deferrals.defer(draw, next, now, limiter),
            None => next,
        }
    }

    /// A message that was sent away is back.
    pub fn came_back(&mut self, draws: &[BudgetDraw]) {
        draws.iter().for_each(|draw| self.deferrals.came_back(draw));
    }

    /// See [`Limiter::starts_within`].
    pub fn starts_within(&self, draw: BudgetDraw, time: Duration) -> u32 {
        let limiter = self.limiters.get(&draw.budget);
        limiter.map_or(u32::MAX, |limiter| limiter.starts_within(time))
    }

    fn heed_turns(
        &mut self,
        who: u32,
        draws: &[BudgetDraw],
        now: Time,
        horizon: Time,
        slot: &mut Time,
        last: &mut Option<BudgetDraw>,
    ) {
        for draw in draws {
            let Some(turns) = self.shared.get_mut(&draw.budget) else {
                continue;
            };
            if *slot > horizon {
                if *last == Some(*draw)
                    && let Some(turns) = turns.of(draw.by, now)
                {
                    turns.claim(who, *slot);
                }
            } else if turns
                .by
                .get_mut(&draw.by)
                .is_some_and(|t| t.must_yield(who, horizon, now))
            {
                *slot = horizon.plus(YIELD);
                *last = Some(*draw);
                return;
            }
        }
    }

    /// Draws one start of the partner `who` from all these budgets. Returns for how long the slot is valid; none:
    /// nothing limits it.
    #[inline]
    pub fn take(&mut self, who: u32, draws: &[BudgetDraw], slot: Time) -> Option<Duration> {
        let mut valid = None;
        for draw in draws {
            if let Some(limiter) = self.limiters.get_mut(&draw.budget)
                && !limiter.is_unlimited()
            {
                limiter.take(draw.by, slot);
                valid = Some(valid.unwrap_or(VALIDITY).min(limiter.validity()));
            }
        }
        if !self.shared.is_empty() {
            for draw in draws {
                let shared = self.shared.get_mut(&draw.budget);
                if let Some(turns) = shared.and_then(|turns| turns.of(draw.by, slot)) {
                    turns.took(who);
                }
            }
        }
        valid
    }

    /// The start with these draws and this slot was written as late as `at`: see [`Limiter::late`].
    pub fn late(&mut self, draws: &[BudgetDraw], slot: Time, at: Time) {
        for draw in draws {
            if let Some(limiter) = self.limiters.get_mut(&draw.budget) {
                limiter.late(draw.by, slot, at);
            }
        }
    }

    /// The slot at this time with these draws was not met: see [`Limiter::missed`].
    pub fn missed(&mut self, draws: &[BudgetDraw], slot: Time) {
        for draw in draws {
            if let Some(limiter) = self.limiters.get_mut(&draw.budget) {
                limiter.missed(draw.by, slot);
            }
        }
    }
}
