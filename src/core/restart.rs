//! When a failed actor is built again, and when its parent must give up.

use super::types::Time;
use crate::config::RestartConfig;
use std::collections::VecDeque;

/// Failures of one child.
#[derive(Clone, Debug, Default)]
pub struct Restarts {
    recent: VecDeque<Time>,
}

/// What to do about a failed child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// Build it again at this time.
    At(Time),
    /// It keeps failing: the parent fails in its turn.
    Escalate,
}

impl Restarts {
    /// Notes a failure and decides. The wait doubles with each failure within `config.within`.
    pub fn failed(&mut self, now: Time, config: &RestartConfig) -> Restart {
        while self.recent.front().is_some_and(|&t| now.since(t) > config.within) {
            self.recent.pop_front();
        }
        self.recent.push_back(now);
        let failures = self.recent.len() as u32;
        if failures >= config.escalate_after.max(1) {
            return Restart::Escalate;
        }
        let wait = config
            .first
            .saturating_mul(1u32.checked_shl(failures - 1).unwrap_or(u32::MAX));
        Restart::At(now.plus(wait.min(config.longest)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn config() -> RestartConfig {
        RestartConfig {
            first: Duration::from_millis(100),
            longest: Duration::from_millis(350),
            escalate_after: 5,
            within: Duration::from_secs(60),
        }
    }

    #[test]
    fn waits_double_up_to_the_longest_then_escalate() {
        let mut restarts = Restarts::default();
        let t = Time::from_millis(1_000_000);
        let waits: Vec<_> = (0..4)
            .map(|_| match restarts.failed(t, &config()) {
                Restart::At(at) => at.since(t).as_millis(),
                Restart::Escalate => panic!("too early"),
            })
            .collect();
        assert_eq!(waits, [100, 200, 350, 350]);
        assert_eq!(restarts.failed(t, &config()), Restart::Escalate);
    }

    #[test]
    fn old_failures_are_forgiven() {
        let mut restarts = Restarts::default();
        for minute in 0..20 {
            let now = Time::from_millis(minute * 61_000 + 1);
            assert!(matches!(restarts.failed(now, &config()), Restart::At(_)));
        }
    }
}
