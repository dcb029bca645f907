//! How long a partner was down or paused.

use crate::core::types::Time;
use std::time::Duration;

/// Adds up the time in which nothing could start because of the partner or an operator.
#[derive(Clone, Debug)]
pub(super) struct OutageClock {
    total: Duration,
    counted_to: Time,
}

impl OutageClock {
    pub(super) fn new(now: Time) -> Self {
        Self {
            total: Duration::ZERO,
            counted_to: now,
        }
    }

    /// Counts up to `now`, before anything changes: whether all of the time since the last call was an outage, and
    /// until when the partner had asked for a pause.
    #[inline]
    pub(super) fn advance(&mut self, now: Time, out: bool, paused_until: Time) {
        if now <= self.counted_to {
            return;
        }
        if out {
            self.total += now.since(self.counted_to);
        } else if paused_until > self.counted_to {
            self.total += paused_until.min(now).since(self.counted_to);
        }
        self.counted_to = now;
    }

    pub(super) fn total(&self) -> Duration {
        self.total
    }
}
