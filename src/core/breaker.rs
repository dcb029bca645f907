//! When a partner is left alone because it fails: a circuit breaker, and the pause after refused credentials.
//!
//! ```text
//!            failures or doubts in a row            open time is over
//!   closed ─────────────────────────────► open ───────────────────────► half open: probes
//!     ▲                                    ▲  doubled, up to `longest`     │        │
//!     │                                    └────────── failure, doubt ─────┘        │
//!     └───────────────────────────── a definite answer ─────────────────────────────┘
//! ```
//!
//! While it is open no attempts are burnt: messages wait. A *failure* is a sign that the partner is down: a failed
//! connect, a timeout, a 5xx. A refusal or a 429 is a definite answer: somebody is there.
//!
//! Doubts (timeouts after the request was written) are dearer than failures: with `doubt = "park"` each of them is
//! a message that an operator must look at. So, for a partner that hangs (flood guard, I3):
//! - a place whose request ended in doubt is not used again until a definite answer comes ([`Breaker::places`]);
//!   the request may well be running at the partner still. So at most `concurrency` doubts come before it opens;
//! - then there is one probe at a time, and once `2 x concurrency` doubts have come without a definite answer
//!   between them, none until [`DOUBT_WINDOW`] after the first; from there `concurrency` in each further window.
//!
//! Neighbours: [`super::turnstile`] owns one for each partner. A restart begins closed: if the partner is still
//! down it opens again after as many failures (none of which counts as an attempt's age, see
//! [`super::backoff`]). An operator's pause is not here but in the turnstile.

use super::types::Time;
use crate::config::model::{DoubtPolicy, PartnerConfig};
use std::time::Duration;

/// A partner that hangs for so long may park no more than `2 x concurrency` messages.
pub const DOUBT_WINDOW: Duration = Duration::from_secs(600);

/// How often a partner that refuses our credentials is asked again.
pub const AUTH_PROBE: Duration = Duration::from_secs(60);

/// An answer so recent shows that the partner as a whole is up.
const RECENT_ANSWER: Duration = Duration::from_secs(60);

/// What an attempt's end says about the partner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptResult {
    /// A definite answer: delivered, refused, 429, any "try later" that is the partner's own.
    Answered,
    /// Certainly not taken, because the partner is down: failed connect, 5xx without doubt.
    Failed,
    /// May or may not have been taken: timeout, reset, gateway.
    Doubt,
    /// Credentials refused (401, 403).
    CredentialsRefused,
    /// Nothing was written: the slot was missed, the lease was over, the message was cancelled.
    NotMade,
}

/// Whether an attempt may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allow {
    /// Yes.
    Yes,
    /// Yes, as a probe.
    Probe,
    /// Not before this time; [`Time::NEVER`]: not before a probe on its way has come back.
    NotBefore(Time),
}

/// Why a partner is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Failures in a row.
    Failures,
    /// Doubts in a row: it hangs.
    Doubts,
    /// Credentials refused.
    Credentials,
}

/// How the breaker of a partner is set.
#[derive(Clone, Debug, PartialEq)]
pub struct BreakerSettings {
    /// Failures in a row that open it; 0: failures alone do not.
    pub failures: u32,
    /// First open time.
    pub open: Duration,
    /// Longest open time.
    pub longest: Duration,
    /// Probes at once.
    pub probes: u32,
    /// Doubts in a row that open it.
    pub doubts_in_a_row: u32,
    /// Requests in flight.
    pub concurrency: u32,
    /// Whether a doubt parks its message.
    pub doubts_park: bool,
}

impl BreakerSettings {
    /// The settings of a configured partner.
    pub fn of(partner: &PartnerConfig) -> Self {
        let parks = [partner.doubt.timeout, partner.doubt.gateway].contains(&DoubtPolicy::Park);
        Self {
            failures: partner.breaker.failures,
            open: partner.breaker.open,
            longest: partner.breaker.longest,
            probes: partner.breaker.probes,
            doubts_in_a_row: partner.flood.doubts_in_a_row,
            concurrency: u32::try_from(partner.concurrency).unwrap_or(u32::MAX),
            doubts_park: parks,
        }
    }
}

/// The breaker of one partner. See the module.
#[derive(Clone, Debug)]
pub struct Breaker {
    settings: BreakerSettings,
    open: Option<Open>,
    /// Failures and doubts since the last definite answer.
    failures: u32,
    /// Doubts since the last definite answer.
    doubts: u32,
    /// Doubts counted against `2 x concurrency`, and since when.
    window_doubts: u32,
    window_since: Time,
    /// Times it opened in a row.
    opened: u32,
    in_flight: u32,
    last_answer: Option<Time>,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    cause: Cause,
    since: Time,
    until: Time,
    probes: u32,
}

impl Breaker {
    /// A closed one.
    pub fn new(settings: BreakerSettings) -> Self {
        Self {
            settings,
            open: None,
            failures: 0,
            doubts: 0,
            window_doubts: 0,
            window_since: Time::ZERO,
            opened: 0,
            in_flight: 0,
            last_answer: None,
        }
    }

    /// Requests that may be in flight while all is well.
    pub fn concurrency(&self) -> u32 {
        self.settings.concurrency
    }

    /// Changes the settings; what has been counted stays.
    pub fn set(&mut self, settings: BreakerSettings) {
        self.settings = settings;
    }

    /// Whether an attempt may start now.
    #[inline]
    pub fn allows(&mut self, now: Time) -> Allow {
        match self.open {
            None => Allow::Yes,
            Some(open) => self.allows_probe(open, now),
        }
    }

    fn allows_probe(&mut self, open: Open, now: Time) -> Allow {
        if now < open.until {
            return Allow::NotBefore(open.until);
        }
        let at_once = if self.doubts == 0 && open.cause == Cause::Failures {
            self.settings.probes
        } else {
            1
        };
        if open.probes >= at_once.max(1) {
            return Allow::NotBefore(Time::NEVER);
        }
        if self.settings.doubts_park {
            let concurrency = self.settings.concurrency.max(1);
            let window_end = self.window_since.plus(DOUBT_WINDOW);
            if self.window_doubts >= concurrency.saturating_mul(2) && now >= window_end {
                self.window_doubts = concurrency;
                self.window_since = now;
            }
            // What is in flight may come to a doubt too.
            if self.window_doubts.saturating_add(self.in_flight) >= concurrency.saturating_mul(2) {
                return Allow::NotBefore(if self.in_flight > 0 {
                    Time::NEVER
                } else {
                    window_end
                });
            }
        }
        Allow::Probe
    }

    /// How many of the partner's places may be in use: each doubt since the last definite answer keeps one.
    #[inline]
    pub fn places(&self) -> u32 {
        if self.open.is_some() {
            // Probes are counted by themselves.
            return self.settings.concurrency.max(1);
        }
        self.settings.concurrency.max(1).saturating_sub(self.doubts)
    }

    /// An attempt that was allowed starts. True: it is a probe, to be told to [`Breaker::on_result`].
    #[inline]
    pub fn on_start(&mut self) -> bool {
        self.in_flight += 1;
        match &mut self.open {
            Some(open) => {
                open.probes += 1;
                true
            }
            None => false,
        }
    }

    /// An attempt has ended. `rnd` is a random number: the open time is shortened by up to a quarter, so that
    /// nodes do not probe in step.
    #[inline]
    pub fn on_result(&mut self, result: AttemptResult, probe: bool, now: Time, rnd: u64) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if probe && let Some(open) = &mut self.open {
            open.probes = open.probes.saturating_sub(1);
        }
        match result {
            AttemptResult::NotMade => {}
            AttemptResult::Answered => {
                self.last_answer = Some(now);
                // The late answer to a request from before it opened says little about now: it must neither
                // close it nor give back what the doubts have used up.
                if self.open.is_none() || probe {
                    self.open = None;
                    self.opened = 0;
                    self.failures = 0;
                    self.doubts = 0;
                    self.window_doubts = 0;
                }
            }
            AttemptResult::Failed => {
                self.failures = self.failures.saturating_add(1);
                let enough = self.settings.failures > 0 && self.failures >= self.settings.failures;
                if probe || (self.open.is_none() && enough) {
                    self.trip(Cause::Failures, now, rnd);
                }
            }
            AttemptResult::Doubt => {
                if self.window_doubts == 0 {
                    self.window_since = now;
                }
                self.failures = self.failures.saturating_add(1);
                self.doubts = self.doubts.saturating_add(1);
                self.window_doubts = self.window_doubts.saturating_add(1);
                let settings = &self.settings;
                let enough = (settings.failures > 0 && self.failures >= settings.failures)
                    || self.doubts >= settings.doubts_in_a_row.clamp(1, settings.concurrency.max(1));
                if probe || (self.open.is_none() && enough) {
                    self.trip(Cause::Doubts, now, rnd);
                }
            }
            AttemptResult::CredentialsRefused => {
                // Somebody answers, so it is neither failure nor doubt.
                self.failures = 0;
                self.doubts = 0;
                self.window_doubts = 0;
                let since = self.open.map_or(now, |open| open.since);
                let probes = self.open.map_or(0, |open| open.probes);
                let until = now.plus(AUTH_PROBE);
                self.open = Some(Open {
                    cause: Cause::Credentials,
                    since,
                    until,
                    probes,
                });
            }
        }
    }

    fn trip(&mut self, cause: Cause, now: Time, rnd: u64) {
        let longest = self.settings.longest.max(self.settings.open);
        let full = self
            .settings
            .open
            .saturating_mul(1 << self.opened.min(20))
            .min(longest);
        self.opened = self.opened.saturating_add(1);
        let cut = (full / 4).mul_f64((rnd >> 11) as f64 / (1u64 << 53) as f64);
        let (since, probes, cause) = match self.open {
            // Refused credentials stay the reason until an answer comes.
            Some(open) if open.cause == Cause::Credentials => (open.since, open.probes, open.cause),
            Some(open) => (open.since, open.probes, cause),
            None => (now, 0, cause),
        };
        let mut until = now.plus(full - cut);
        if cause == Cause::Credentials {
            until = until.max(now.plus(AUTH_PROBE));
        }
        self.open = Some(Open {
            cause,
            since,
            until,
            probes,
        });
    }

    /// A secret of the partner has changed: if its credentials were refused, a probe may go at once.
    pub fn secrets_changed(&mut self, now: Time) {
        if let Some(open) = &mut self.open
            && open.cause == Cause::Credentials
        {
            open.until = open.until.min(now);
        }
    }

    /// An operator wants to see now whether the partner is back: a probe may go at once, at the price of one more
    /// doubt.
    pub fn probe_now(&mut self, now: Time) {
        if let Some(open) = &mut self.open {
            open.until = open.until.min(now);
            self.window_doubts = self
                .window_doubts
                .min(self.settings.concurrency.saturating_mul(2) - 1);
        }
    }

    /// Since when, until when (then probes go) and why the partner is left alone.
    pub fn is_open(&self) -> Option<(Cause, Time, Time)> {
        self.open.map(|open| (open.cause, open.since, open.until))
    }

    /// Whether the partner has given anybody a definite answer within the last minute and is not left alone.
    /// Only then can a message be too old by its own fault.
    pub fn is_answering(&self, now: Time) -> bool {
        self.open.is_none() && self.last_answer.is_some_and(|at| now.since(at) <= RECENT_ANSWER)
    }

    /// One word for status and metrics.
    pub fn name(&self, now: Time) -> &'static str {
        match self.open {
            None => "closed",
            Some(open) if open.cause == Cause::Credentials => "credentials",
            Some(open) if now < open.until => "open",
            Some(_) => "half-open",
        }
    }
}

#[cfg(test)]
mod tests;
