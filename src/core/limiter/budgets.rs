//! All budgets of a node, by the hash of their names. Several partners may draw from one.

use super::sharing::{Turns, YIELD};
use super::{HashedMap, LimitError, Limiter, MAX_INSTANCES, RatesChanged, VALIDITY};
use crate::config::model::LimitConfig;
use crate::core::ledger::entry::BudgetDraw;
use crate::core::ledger::fold::UsedSlots;
use crate::core::types::Time;
use std::time::Duration;

/// The budgets of a node. The caller shares it (`Rc<RefCell<…>>`); calls are short and never nest.
///
/// A draw from a budget that is not in the table is free: it was removed by a reload while the message waited.
#[derive(Debug, Default)]
pub struct BudgetTable {
    limiters: HashedMap<u64, Limiter>,
    /// Turns at budgets that several partners draw from.
    shared: HashedMap<u64, HashedMap<u64, Turns>>,
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

    /// See [`Limiter::set_wall_offset`].
    pub fn set_wall_offset(&mut self, offset_us: i64) {
        self.limiters
            .values_mut()
            .for_each(|l| l.set_wall_offset(offset_us));
    }

    /// See [`Limiter::restore`].
    pub fn restore(&mut self, draw: BudgetDraw, used: &UsedSlots, now: Time) {
        if let Some(limiter) = self.limiters.get_mut(&draw.budget) {
            limiter.restore(draw.by, used, now);
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
                if *last == Some(*draw) {
                    turns.entry(draw.by).or_default().claim(who, *slot);
                }
            } else if turns
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
                if let Some(turns) = self.shared.get_mut(&draw.budget) {
                    if turns.len() >= MAX_INSTANCES {
                        turns.retain(|_, t| !t.is_idle(slot));
                    }
                    turns.entry(draw.by).or_default().took(who);
                }
            }
        }
        valid
    }

    /// The slot at this time with these draws was not met: see [`Limiter::missed`].
    pub fn missed(&mut self, draws: &[BudgetDraw], slot: Time) {
        for draw in draws {
            if let Some(limiter) = self.limiters.get_mut(&draw.budget) {
                limiter.missed(draw.by, slot);
            }
        }
    }

    /// Bytes held, roughly.
    pub fn memory(&self) -> usize {
        self.limiters.values().map(Limiter::memory).sum()
    }
}
