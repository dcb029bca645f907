//! Turns of several partners at one budget (I8): a partner whose timer happens to fire first must not take
//! every slot.
//!
//! A partner that is kept back *claims* its turn. Who has taken [`IN_A_ROW`] slots since another one last took
//! one yields, for a moment at a time, to a claim whose time has come; a claim that is not taken up lapses. So each
//! of several busy partners gets its share, and one that is slow to come costs the others some milliseconds.

use crate::core::types::Time;
use smallvec::SmallVec;
use std::time::Duration;

/// Slots in a row while another partner claims one. More than one, so that a budget of many thousand slots a second
/// is not bound to the timers' millisecond.
const IN_A_ROW: u32 = 16;
/// How long a partner that must yield waits before it asks again.
pub(super) const YIELD: Duration = Duration::from_millis(1);
/// So long after its time a claim lapses.
const LAPSE: Duration = Duration::from_millis(20);

/// Whose turn it is at one instance of a budget.
#[derive(Clone, Debug, Default)]
pub(super) struct Turns {
    last: u32,
    in_a_row: u32,
    claims: SmallVec<[(u32, Time); 2]>,
}

impl Turns {
    /// A partner is kept back until `at`.
    pub(super) fn claim(&mut self, who: u32, at: Time) {
        match self.claims.iter_mut().find(|(partner, _)| *partner == who) {
            Some(claim) => claim.1 = at,
            None => self.claims.push((who, at)),
        }
    }

    /// A partner has taken a slot.
    pub(super) fn took(&mut self, who: u32) {
        if self.last == who {
            self.in_a_row = self.in_a_row.saturating_add(1);
        } else {
            self.last = who;
            self.in_a_row = 1;
        }
        self.claims.retain(|(partner, _)| *partner != who);
    }

    /// Whether a partner must let another one go first.
    pub(super) fn must_yield(&mut self, who: u32, horizon: Time, now: Time) -> bool {
        if self.claims.is_empty() || self.last != who || self.in_a_row < IN_A_ROW {
            return false;
        }
        self.claims.retain(|&mut (_, at)| now <= at.plus(LAPSE));
        self.claims
            .iter()
            .any(|&(partner, at)| partner != who && at <= horizon)
    }

    pub(super) fn is_idle(&self, now: Time) -> bool {
        self.claims.iter().all(|&(_, at)| now > at.plus(LAPSE))
    }
}
