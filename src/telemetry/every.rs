//! The brake on log lines: a site (and, where it matters, a partner) speaks at most once an interval, and says how
//! often it kept silent meanwhile. A partner that is down fails ten thousand attempts a second; the log gets one line.
//!
//! ```
//! use sluicegate::telemetry::every::Every;
//! static SLOW: Every = Every::new(std::time::Duration::from_secs(10));
//! if let Some(suppressed) = SLOW.speak("acme") {
//!     tracing::warn!(event = "attempt_failed", partner = "acme", suppressed, "partner refuses connections");
//! }
//! ```

use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Keys one site remembers. Names come from the configuration; more than that share the one beyond the last.
const MOST_KEYS: usize = 1_024;

static SUPPRESSED: AtomicU64 = AtomicU64::new(0);

/// Lines held back by all sites since the process started.
pub fn suppressed() -> u64 {
    SUPPRESSED.load(Relaxed)
}

/// One site in the code. Make it a `static`.
pub struct Every {
    interval: Duration,
    keys: LazyLock<Mutex<HashMap<String, Spoken>>>,
}

struct Spoken {
    at: Instant,
    kept_silent: u64,
}

impl Every {
    /// A site that speaks at most once an interval for each key.
    pub const fn new(interval: Duration) -> Self {
        Self {
            interval,
            keys: LazyLock::new(|| Mutex::new(HashMap::new())),
        }
    }

    /// Whether this line may be written: then with the number of lines held back since the last one.
    pub fn speak(&self, key: &str) -> Option<u64> {
        self.speak_at(key, Instant::now())
    }

    fn speak_at(&self, key: &str, now: Instant) -> Option<u64> {
        let mut keys = self.keys.lock();
        let key = if keys.contains_key(key) || keys.len() < MOST_KEYS {
            key
        } else {
            ""
        };
        match keys.get_mut(key) {
            Some(spoken) if now.saturating_duration_since(spoken.at) < self.interval => {
                spoken.kept_silent += 1;
                SUPPRESSED.fetch_add(1, Relaxed);
                None
            }
            Some(spoken) => {
                spoken.at = now;
                Some(std::mem::take(&mut spoken.kept_silent))
            }
            None => {
                keys.insert(
                    key.to_owned(),
                    Spoken {
                        at: now,
                        kept_silent: 0,
                    },
                );
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_speaks_once_an_interval_and_counts_the_rest() {
        let site = Every::new(Duration::from_secs(10));
        let start = Instant::now();
        assert_eq!(site.speak_at("acme", start), Some(0));
        for s in 1..10 {
            assert_eq!(site.speak_at("acme", start + Duration::from_secs(s)), None);
        }
        assert_eq!(
            site.speak_at("other", start + Duration::from_secs(5)),
            Some(0),
            "another key is not held back"
        );
        assert_eq!(site.speak_at("acme", start + Duration::from_secs(10)), Some(9));
        assert_eq!(site.speak_at("acme", start + Duration::from_secs(20)), Some(0));
    }

    #[test]
    fn endless_keys_do_not_grow_memory() {
        let site = Every::new(Duration::from_secs(10));
        let start = Instant::now();
        for i in 0..10 * MOST_KEYS {
            site.speak_at(&i.to_string(), start);
        }
        assert!(site.keys.lock().len() <= MOST_KEYS + 1);
    }
}
