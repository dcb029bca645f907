//! What tests say of earlier lives, and of orders: entries as they stand in a ledger, but for what a test is about.

use super::*;
use crate::core::ledger::entry::{Intent, Outcome, OutcomeKind};

/// A partner whose next attempt is an hour away.
pub(super) fn patient() -> PartnerConfig {
    let mut config = partner();
    config.retry.first = Duration::from_secs(3_600);
    config.retry.longest = Duration::from_secs(3_600);
    config
}

/// The order that calls this message delivered.
pub(super) fn mark(n: u64) -> Action {
    Action::Mark {
        at: AT,
        id: id_of(n),
        offset: 0,
    }
}

/// The order that forgets it.
pub(super) fn forget(n: u64) -> Action {
    Action::Forget { at: AT, id: id_of(n) }
}

/// The first life's first attempt of this message, which stands at the offset of its number.
pub(super) fn intent(n: u64, key: KeyHash) -> Intent {
    Intent {
        at: AT,
        id: id_of(n),
        key,
        offset: n,
        round: 1,
        attempt: 1,
        first_try: Time(1),
        slot: Time(1),
        budgets: Default::default(),
        life: LifeId(1),
        lease_ms: 10_000,
        timeout_ms: 10_000,
    }
}

/// What became of that attempt.
pub(super) fn outcome(n: u64, status: u16, kind: OutcomeKind) -> Outcome {
    Outcome {
        at: AT,
        id: id_of(n),
        offset: n,
        round: 1,
        attempts: 1,
        when: Time(1),
        life: LifeId(1),
        status,
        kind,
    }
}

/// It will be tried again.
pub(super) fn later(key: KeyHash, first_try: Time, not_before: Time) -> OutcomeKind {
    OutcomeKind::Later {
        not_before,
        first_try,
        key,
        reason: String::new(),
        counted: true,
    }
}

impl World {
    /// An earlier life has written this.
    pub(super) fn wrote(&self, body: Body) {
        append_entry(&self.log, self.lane, &self.memory, body);
    }
}
