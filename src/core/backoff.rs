//! When a message that was certainly not taken is tried again, and when it is given up.
//!
//! Exponential with full jitter: the n-th wait is drawn evenly between nothing and `first x 2^(n-1)`, at most
//! `longest`. So thousands of messages that failed together do not come back together. What the partner asks for
//! (Retry-After, itself bounded by `longest_retry_after`) is a lower bound, and the message's own backoff is another:
//! the longer of the two holds. A partner that says "0 s", or names a date in the past, switches nothing off; and one
//! that says "1 s" to every attempt is asked less and less often all the same.
//!
//! A message is given up only by its own fault. An outage must not drain a topic into the dead letters, so
//! - time in which the partner was down or paused ([`super::turnstile::Turnstile::outage`]) makes it no older, and
//! - it is never given up while the partner answers nobody ([`super::turnstile::Turnstile::is_answering`]). That
//!   rule needs no memory: after a restart in the middle of an outage, of which the first part is forgotten, it
//!   holds until the partner is back.
//!
//! The number of attempts, where it is bounded, counts as it is: while the breaker is open none are made.

use super::types::Time;
use crate::config::model::RetryConfig;
use std::time::Duration;

/// What is known of a message after an attempt that was not taken.
#[derive(Clone, Copy, Debug)]
pub struct Tried {
    /// Attempts made in this round, this one included.
    pub attempts: u32,
    /// When the first of them was made.
    pub first_try: Time,
    /// How much of the time since then the partner was down or paused.
    pub held: Duration,
    /// Whether the partner answers others.
    pub partner_answers: bool,
    /// What the partner asked for.
    pub retry_after: Option<Duration>,
}

/// When a message of an earlier life is tried again that is not to be before `not_before`: a clock that was ahead then
/// must not make it wait longer than any wait can be.
pub fn believed(not_before: Time, now: Time, retry: &RetryConfig) -> Time {
    // The partner's wish is spread by a tenth.
    let asked = retry
        .longest_retry_after
        .saturating_add(retry.longest_retry_after / 10);
    not_before.min(now.plus(retry.longest.saturating_add(asked)))
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another attempt, not before this time.
    At(Time),
    /// None: the message is a dead letter.
    GiveUp(GiveUp),
}

/// Why there is no further attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GiveUp {
    /// It is older than `give_up_after`, outages not counted.
    TooOld {
        /// Its age.
        age: Duration,
    },
    /// As many attempts as are allowed have been made.
    Attempts {
        /// How many.
        made: u32,
    },
}

impl std::fmt::Display for GiveUp {
    /// A stable code, a colon, the detail: fit for the reason of a dead letter.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            GiveUp::TooOld { age } => write!(f, "too_old: not taken within {} s", age.as_secs()),
            GiveUp::Attempts { made } => write!(f, "attempts: not taken in {made} attempts"),
        }
    }
}

/// When to try again, from `now`, with the random number `rnd`.
pub fn next(retry: &RetryConfig, tried: Tried, now: Time, rnd: u64) -> Next {
    if tried.partner_answers {
        if let Some(most) = retry.attempts
            && tried.attempts >= most
        {
            return Next::GiveUp(GiveUp::Attempts { made: tried.attempts });
        }
        let age = now.since(tried.first_try).saturating_sub(tried.held);
        if age >= retry.give_up_after {
            return Next::GiveUp(GiveUp::TooOld { age });
        }
    }
    let own = full_jitter(retry.first, retry.longest, tried.attempts, rnd);
    let asked = tried.retry_after.map_or(Duration::ZERO, |asked| {
        // Spread over a tenth of what was asked for: all that were told the same time would come at once.
        let asked = asked.min(retry.longest_retry_after);
        asked.saturating_add(fraction(asked / 10, rnd))
    });
    Next::At(now.plus(own.max(asked)))
}

/// An even draw between nothing and `most`.
fn fraction(most: Duration, rnd: u64) -> Duration {
    let most_us = u64::try_from(most.as_micros()).unwrap_or(u64::MAX);
    // The high half of a product is a fair draw without a division.
    let drawn_us = (u128::from(most_us) * u128::from(rnd)) >> 64;
    Duration::from_micros(drawn_us as u64)
}

/// A wait between nothing and `first x 2^(attempts-1)`, at most `longest`; never below a millisecond, so that a
/// loop of instant failures cannot spin.
pub fn full_jitter(first: Duration, longest: Duration, attempts: u32, rnd: u64) -> Duration {
    let doublings = attempts.saturating_sub(1).min(31);
    let most = first.saturating_mul(1 << doublings).min(longest);
    fraction(most, rnd).max(Duration::from_millis(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn retry() -> RetryConfig {
        RetryConfig {
            first: Duration::from_millis(200),
            longest: Duration::from_secs(300),
            give_up_after: Duration::from_secs(86_400),
            attempts: None,
            longest_retry_after: Duration::from_secs(3_600),
        }
    }

    const START: Time = Time::from_millis(1_700_000_000_000);

    fn tried(attempts: u32) -> Tried {
        Tried {
            attempts,
            first_try: START,
            held: Duration::ZERO,
            partner_answers: true,
            retry_after: None,
        }
    }

    proptest! {
        #[test]
        fn stays_within_its_bounds(
            attempts in 1u32..200,
            rnd: u64,
            after in prop::option::of(prop_oneof![Just(0u64), 0u64..3_000, 0u64..10_000_000]),
        ) {
            let retry = retry();
            let asked = after.map(Duration::from_millis);
            let wait = |retry_after| match next(&retry, Tried { retry_after, ..tried(attempts) }, START, rnd) {
                Next::At(at) => at.since(START),
                Next::GiveUp(why) => panic!("given up: {why}"),
            };
            let own = wait(None);
            let most = retry.first * 2u32.saturating_pow(attempts - 1).min(1 << 20);
            prop_assert!(own >= Duration::from_millis(1) && own <= most.min(retry.longest));
            // Neither the partner's wish nor the message's own backoff is ever undercut.
            let got = wait(asked);
            let asked = asked.map_or(Duration::ZERO, |a| a.min(retry.longest_retry_after));
            prop_assert!(got >= asked && got >= own);
            prop_assert!(got <= own.max(asked + asked / 10));
        }
    }

    #[test]
    fn jitter_is_full_and_grows_to_the_longest() {
        let at = |attempts, rnd| match next(&retry(), tried(attempts), START, rnd) {
            Next::At(at) => at.since(START),
            Next::GiveUp(why) => panic!("given up: {why}"),
        };
        assert_eq!(at(1, 0), Duration::from_millis(1));
        assert!(at(1, u64::MAX) > Duration::from_millis(199));
        assert!(at(3, u64::MAX) > Duration::from_millis(799));
        assert!(at(30, u64::MAX) > Duration::from_millis(299_999));
        assert_eq!(at(4, u64::MAX / 2).as_millis(), 799);
    }

    /// 200 messages whose partner answers every attempt at once with this wish, for ten seconds: how many requests
    /// the busiest of them makes, and all of them together.
    fn requests_within_ten_seconds(asked: Option<Duration>) -> (u32, u32) {
        let mut random = fastrand::Rng::with_seed(7);
        let end = START.plus(Duration::from_secs(10));
        let each: Vec<u32> = (0..200)
            .map(|_| {
                let (mut now, mut attempts) = (START, 0);
                while now < end {
                    attempts += 1;
                    let tried = Tried {
                        retry_after: asked,
                        ..tried(attempts)
                    };
                    match next(&retry(), tried, now, random.u64(..)) {
                        Next::At(at) => now = at,
                        Next::GiveUp(why) => panic!("given up: {why}"),
                    }
                }
                attempts
            })
            .collect();
        (each.iter().copied().max().unwrap_or(0), each.iter().sum())
    }

    /// Gateways round "0.4 s" down to 0, send dates that have just passed, and a RateLimit reset of 0: each used to
    /// bring thousands of requests a second.
    #[test]
    fn a_retry_after_of_nothing_leaves_the_backoff_as_it_is() {
        let (most, all) = requests_within_ten_seconds(Some(Duration::ZERO));
        assert!(most <= 12, "{most} requests of one message");
        assert_eq!((most, all), requests_within_ten_seconds(None));
        // "1 s" for ever: less and less often.
        let (most, all) = requests_within_ten_seconds(Some(Duration::from_secs(1)));
        assert!(most <= 8 && all < 8 * 200, "{most}, {all}");
    }

    #[test]
    fn gives_up_by_age_but_an_outage_makes_nobody_older() {
        let day = Duration::from_secs(86_400);
        let now = START.plus(day);
        assert_eq!(
            next(&retry(), tried(9), now, 1),
            Next::GiveUp(GiveUp::TooOld { age: day })
        );
        let held = Tried {
            held: Duration::from_secs(1),
            ..tried(9)
        };
        assert!(matches!(next(&retry(), held, now, 1), Next::At(_)));
        let nobody_home = Tried {
            partner_answers: false,
            ..tried(9)
        };
        assert!(matches!(
            next(&retry(), nobody_home, now.plus(day), 1),
            Next::At(_)
        ));
    }

    #[test]
    fn gives_up_after_the_attempts_that_are_allowed() {
        let retry = RetryConfig {
            attempts: Some(3),
            ..retry()
        };
        assert!(matches!(next(&retry, tried(2), START, 1), Next::At(_)));
        assert_eq!(
            next(&retry, tried(3), START, 1),
            Next::GiveUp(GiveUp::Attempts { made: 3 })
        );
    }

    /// A life whose clock was a month ahead has noted waits; the clock is right again.
    #[test]
    fn a_wait_noted_by_a_clock_that_was_ahead_is_no_longer_than_a_wait_can_be() {
        let retry = RetryConfig::default();
        let now = Time(1_790_000_000_000_000);
        let month = Duration::from_secs(30 * 86_400);
        let longest = retry.longest + retry.longest_retry_after + retry.longest_retry_after / 10;
        assert_eq!(believed(now.plus(month), now, &retry), now.plus(longest));
        for wait in [Duration::ZERO, Duration::from_secs(1), longest] {
            assert_eq!(believed(now.plus(wait), now, &retry), now.plus(wait));
        }
        assert_eq!(believed(now.minus(month), now, &retry), now.minus(month));
    }
}
