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
        #[cfg(test)]
        if let Some(now) = simulated::wall() {
            return now;
        }
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Time(since_epoch.unwrap_or(Duration::ZERO).as_micros() as u64)
    }
}

fn boottime_us() -> u64 {
    #[cfg(test)]
    if let Some(now) = simulated::boottime_us() {
        return now;
    }
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    (t.tv_sec as u64) * 1_000_000 + (t.tv_nsec as u64) / 1_000
}

/// Time as a simulation tells it: the paused clock of the tokio runtime on this thread.
#[cfg(test)]
pub(crate) mod simulated {
    use crate::core::types::Time;
    use std::cell::Cell;
    use tokio::time::Instant;

    thread_local! {
        static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
        static WALL_US: Cell<i64> = const { Cell::new(0) };
    }

    /// From now on, and until the guard is dropped, clocks of this thread follow tokio's; the wall clock begins at
    /// this time.
    pub(crate) fn begin(wall: Time) -> impl Drop {
        struct Guard;
        impl Drop for Guard {
            fn drop(&mut self) {
                BEGAN.set(None);
            }
        }
        BEGAN.set(Some(Instant::now()));
        WALL_US.set(wall.0 as i64);
        Guard
    }

    /// Whether time is simulated on this thread.
    pub(crate) fn is_on() -> bool {
        BEGAN.get().is_some()
    }

    /// Time since the beginning, which no clock that is set can move.
    pub(crate) fn now() -> Time {
        Time(boottime_us().unwrap_or(0))
    }

    /// Somebody sets the wall clock.
    pub(crate) fn shift_wall(by_us: i64) {
        WALL_US.set(WALL_US.get() + by_us);
    }

    pub(super) fn boottime_us() -> Option<u64> {
        BEGAN.get().map(|began| began.elapsed().as_micros() as u64)
    }

    pub(super) fn wall() -> Option<Time> {
        boottime_us().map(|us| Time((us as i64 + WALL_US.get()) as u64))
    }
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
