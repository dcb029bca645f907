//! Turns of several partners at one budget (I8): a partner whose timer happens to fire first must not take
//! every slot.
//!
//! A partner that is kept back *claims* its turn. Whoever is [`AHEAD`] slots ahead of one that claims yields, for a
//! moment at a time, once the claim's time has come; a claim that is not taken up lapses. So each of several
//! busy partners gets its share, one that is slow to come costs the others some milliseconds, and one that was
//! away has no more than that lead to catch up.

use crate::core::types::Time;
use smallvec::SmallVec;
use std::time::Duration;

/// Slots that a partner may be ahead. More than one, so that a budget of many thousand slots a second is not bound
/// to the timers' millisecond.
const AHEAD: u64 = 16;
/// How long a partner that must yield waits before it asks again.
pub(super) const YIELD: Duration = Duration::from_millis(1);
/// So long after its time a claim lapses.
const LAPSE: Duration = Duration::from_millis(20);

/// Whose turn it is at one instance of a budget.
#[derive(Clone, Debug, Default)]
pub(super) struct Turns {
    partners: SmallVec<[Partner; 2]>,
}

#[derive(Clone, Debug)]
struct Partner {
    who: u32,
    /// Slots taken; one that was far behind counts as if it were not.
    taken: u64,
    claim: Option<Time>,
}

impl Turns {
    fn partner(&mut self, who: u32) -> &mut Partner {
        let most = self.partners.iter().map(|p| p.taken).max().unwrap_or(0);
        let at = match self.partners.iter().position(|p| p.who == who) {
            Some(at) => at,
            None => {
                self.partners.push(Partner {
                    who,
                    taken: 0,
                    claim: None,
                });
                self.partners.len() - 1
            }
        };
        let partner = &mut self.partners[at];
        partner.taken = partner.taken.max(most.saturating_sub(AHEAD));
        partner
    }

    /// A partner is kept back until `at`.
    pub(super) fn claim(&mut self, who: u32, at: Time) {
        self.partner(who).claim = Some(at);
    }

    /// A partner has taken a slot.
    pub(super) fn took(&mut self, who: u32) {
        let partner = self.partner(who);
        partner.taken += 1;
        partner.claim = None;
    }

    /// Whether a partner must let another one go first.
    pub(super) fn must_yield(&self, who: u32, horizon: Time, now: Time) -> bool {
        let Some(own) = self.partners.iter().find(|p| p.who == who) else {
            return false;
        };
        self.partners.iter().any(|p| {
            p.who != who
                && own.taken >= p.taken + AHEAD
                && p.claim.is_some_and(|at| at <= horizon && now <= at.plus(LAPSE))
        })
    }

    pub(super) fn is_idle(&self, now: Time) -> bool {
        self.partners
            .iter()
            .all(|p| p.claim.is_none_or(|at| now > at.plus(LAPSE)))
    }
}
