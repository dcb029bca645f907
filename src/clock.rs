//! The one place that reads a clock.
//!
//! Decisions take a [`Time`] as an argument. It counts microseconds since the Unix epoch, but after the process
//! has started it moves with `CLOCK_BOOTTIME`: it never jumps or stands still in suspend (DESIGN section 5,
//! lease), and is still comparable with what an earlier life wrote into the ledger.

use crate::core::types::Time;
use std::time::Duration;

/// A clock anchored once at the wall clock and moved on by `CLOCK_BOOTTIME`. Cheap to copy.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    wall_at_start_us: u64,
    boot_at_start_us: u64,
}

impl Clock {
    /// Anchors a clock at the present wall time.
    pub fn start() -> Self {
        Self {
            wall_at_start_us: Self::wall().0,
            boot_at_start_us: boottime_us(),
        }
    }

    /// The present time: never earlier than any time this clock has told before.
    #[inline]
    pub fn now(&self) -> Time {
        Time(self.wall_at_start_us + (boottime_us().saturating_sub(self.boot_at_start_us)))
    }

    /// The wall clock as it stands, jumps included: for calendar quotas and for telling people.
    pub fn wall() -> Time {
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Time(since_epoch.unwrap_or(Duration::ZERO).as_micros() as u64)
    }
}

fn boottime_us() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    (t.tv_sec as u64) * 1_000_000 + (t.tv_nsec as u64) / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_forward_and_starts_at_the_wall() {
        let clock = Clock::start();
        let first = clock.now();
        assert!(first.0.abs_diff(Clock::wall().0) < 1_000_000);
        assert!(clock.now() >= first);
    }
}
