//! What becomes of a message whose attempt has no known outcome (I3).
//!
//! ```text
//!            park ───────────────────────────────────────────────────────► Park
//!   doubt ── resend ── within the partner's idempotency window ──────────► ResendAt
//!        │          └─ outside it, or as many attempts as are allowed ───► Park
//!        └── verify ── VerifyAt ── the partner has it ───────────────────► Delivered
//!                        ▲  │ ├─── never seen, the first time ── VerifyAt
//!                        │  │ ├─── never seen, twice ─────────────────────► ResendAt
//!                        │  │ └─── unclear ───────────────────────────────► Park
//!                        └──┘ look-up not to be had: again with backoff, after `give_up_after` Park
//! ```
//!
//! When a request may no longer be running: after its own timeout, counted from its slot; and where the one who sent
//! it is gone (crash), only after that sender's lease and timeout counted from when this node took over, for until
//! then it may still be sending. To park nothing needs to be waited for.
//! A look-up is made `settle` after that, and a "never seen" is believed only the second time: the partner may
//! still be working on it, or answer from a replica that lags behind.
//!
//! Neighbours: the key's actor asks [`on_doubt`] and [`on_looked_up`]; at a start the partition asks
//! [`on_doubt`] for every open intent of an earlier life. The progress of a verify is not in the ledger: after a
//! restart the message is in doubt by crash, and asked for twice again.

use super::backoff::full_jitter;
use super::types::Time;
use crate::config::model::{DoubtConfig, DoubtPolicy, RetryConfig};
use crate::sink::{DoubtCause, Verified};
use std::time::Duration;

/// A doubt, as it stands.
#[derive(Clone, Copy, Debug)]
pub struct Doubt {
    /// Why the outcome is unknown.
    pub cause: DoubtCause,
    /// Attempts made in this round, the one in doubt included.
    pub attempts: u32,
    /// When the first of them was made.
    pub first_try: Time,
    /// The slot of the one in doubt.
    pub slot: Time,
    /// The request timeout it was sent with.
    pub timeout: Duration,
    /// For [`DoubtCause::Crash`]: when this node took the lane (or the actor was seen to be gone), and the lease of
    /// the life that sent it.
    pub taken_over: Option<(Time, Duration)>,
}

/// How a partner wants doubts to be dealt with.
#[derive(Clone, Copy, Debug)]
pub struct DoubtRules<'a> {
    /// Policy by cause.
    pub policy: DoubtConfig,
    /// How long the partner remembers an Idempotency-Key.
    pub idempotency_window: Duration,
    /// Backoff of resends and look-ups.
    pub retry: &'a RetryConfig,
    /// Wait before a look-up; none where no look-up is configured.
    pub settle: Option<Duration>,
}

/// How far a look-up has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// When the first look-up was made; zero if none was.
    pub since: Time,
    /// Answers "never seen", in a row.
    pub never_seen: u32,
    /// Look-ups in a row that could not be made.
    pub failed: u32,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Hold it for an operator.
    Park(ParkReason),
    /// Send it again, under the same Idempotency-Key, not before this time.
    ResendAt(Time),
    /// Ask the partner, not before this time.
    VerifyAt(Time, Progress),
    /// The partner has it.
    Delivered,
}

/// Why a message is held for an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParkReason {
    /// The policy says so.
    Policy(DoubtCause),
    /// The partner would no longer know the Idempotency-Key.
    OutsideWindow,
    /// As many attempts as are allowed have been made.
    Attempts,
    /// It was resent, and given up before any answer said what became of the attempt in doubt.
    Unsettled,
    /// The look-up gave an answer that is neither "has it" nor "never seen".
    Unclear,
    /// The look-up could not be had for too long.
    NoAnswer,
    /// The policy asks for a look-up and none is configured.
    NoLookUp,
}

impl std::fmt::Display for ParkReason {
    /// A stable code, a colon, the detail.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ParkReason::Policy(DoubtCause::Crash) => {
                "doubt_crash: the process ended while the request was out"
            }
            ParkReason::Policy(DoubtCause::Timeout) => {
                "doubt_timeout: the request was written, and no answer says what became of it"
            }
            ParkReason::Policy(DoubtCause::Gateway) => {
                "doubt_gateway: the answer leaves open whether the partner took it"
            }
            ParkReason::OutsideWindow => "doubt_window: the partner no longer knows the idempotency key",
            ParkReason::Attempts => "doubt_attempts: no further attempt is allowed",
            ParkReason::Unsettled => "doubt_unsettled: an attempt in doubt was never settled",
            ParkReason::Unclear => "doubt_unclear: the look-up gave no clear answer",
            ParkReason::NoAnswer => "doubt_no_answer: the look-up could not be had",
            ParkReason::NoLookUp => "doubt_no_look_up: no look-up is configured",
        })
    }
}

/// What becomes of a doubt that has just come up. `rnd` is a random number.
pub fn on_doubt(doubt: &Doubt, rules: &DoubtRules<'_>, now: Time, rnd: u64) -> Action {
    let policy = match doubt.cause {
        DoubtCause::Crash => rules.policy.crash,
        DoubtCause::Timeout => rules.policy.timeout,
        DoubtCause::Gateway => rules.policy.gateway,
    };
    match policy {
        DoubtPolicy::Park => Action::Park(ParkReason::Policy(doubt.cause)),
        DoubtPolicy::Resend => resend(doubt, rules, now, rnd),
        DoubtPolicy::Verify => match rules.settle {
            Some(settle) => Action::VerifyAt(over(doubt).max(now).plus(settle), Progress::default()),
            None => Action::Park(ParkReason::NoLookUp),
        },
    }
}

/// What becomes of a doubt after a look-up.
pub fn on_looked_up(
    answer: &Verified,
    progress: Progress,
    doubt: &Doubt,
    rules: &DoubtRules<'_>,
    now: Time,
    rnd: u64,
) -> Action {
    let since = if progress.since == Time::ZERO {
        now
    } else {
        progress.since
    };
    match answer {
        Verified::Delivered => Action::Delivered,
        Verified::Unclear(_) => Action::Park(ParkReason::Unclear),
        Verified::NeverSeen if progress.never_seen == 0 => {
            let settle = rules.settle.unwrap_or_default();
            Action::VerifyAt(
                now.plus(settle),
                Progress {
                    since,
                    never_seen: 1,
                    failed: 0,
                },
            )
        }
        // Never seen is a definite answer: the partner does not need to know the key any more.
        Verified::NeverSeen => match rules.retry.attempts {
            Some(most) if doubt.attempts >= most => Action::Park(ParkReason::Attempts),
            _ => Action::ResendAt(now),
        },
        Verified::AskAgain(_) => {
            if now.since(since) >= rules.retry.give_up_after {
                return Action::Park(ParkReason::NoAnswer);
            }
            let failed = progress.failed.saturating_add(1);
            let wait = full_jitter(rules.retry.first, rules.retry.longest, failed, rnd);
            Action::VerifyAt(
                now.plus(wait),
                Progress {
                    since,
                    failed,
                    ..progress
                },
            )
        }
    }
}

/// When the request in doubt is certainly no longer being sent, and its own time is over.
fn over(doubt: &Doubt) -> Time {
    let own = doubt.slot.plus(doubt.timeout);
    match doubt.taken_over {
        Some((at, lease)) => own.max(at.plus(lease).plus(doubt.timeout)),
        None => own,
    }
}

fn resend(doubt: &Doubt, rules: &DoubtRules<'_>, now: Time, rnd: u64) -> Action {
    if rules.retry.attempts.is_some_and(|most| doubt.attempts >= most) {
        return Action::Park(ParkReason::Attempts);
    }
    let wait = full_jitter(rules.retry.first, rules.retry.longest, doubt.attempts, rnd);
    // Beside a first request that still runs it would only be answered "in progress".
    let at = over(doubt).max(now).plus(wait);
    if at > resend_until(doubt.first_try, rules) {
        return Action::Park(ParkReason::OutsideWindow);
    }
    Action::ResendAt(at)
}

/// Until when a doubt may be resent: asked again right before the start, for a message that waits for a slot may
/// wait longer than the partner remembers it.
pub fn resend_until(first_try: Time, rules: &DoubtRules<'_>) -> Time {
    first_try.plus(rules.idempotency_window)
}

#[cfg(test)]
mod tests;
