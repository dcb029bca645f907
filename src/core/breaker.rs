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
//! Doubts are dearer than failures: with `doubt = "park"` each of them is a message that an operator must look at.
//! So, for a partner that hangs (flood guard, I3):
//! - a place whose request ended without any answer is not used again until a definite answer comes
//!   ([`Breaker::places`]); the request may well be running at the partner still. So at most `concurrency` such
//!   doubts come before it opens. A doubt that was answered (a gateway's 502) frees its place: one alone means little;
//! - then there is one probe at a time, and once [`BreakerSettings::cheap_doubts`] doubts (twice the concurrency) have
//!   come without a definite answer between them, the next probe goes `flood.probe` later, the one after that twice
//!   as long after, at most [`LONGEST_PROBE`] times as long. A probe that fails without doubt parks nothing, and
//!   lengthens nothing.
//!
//! Refused credentials (401, 403, 407) are the partner's word about all messages, or about one. Which of both, only
//! other messages can tell. So the first refusal lets one probe at a time through, at once; an answer to any
//! other message ends the suspicion. A message that was refused while others were answered (an answer came within the
//! minute before its attempt set out, or later) goes on alone: its further refusals are its own, counted attempts
//! ([`Refusal`]), also once no other message is left. That ends where [`REFUSED_ENOUGH`] messages that set out after the
//! last answer were refused: then the credentials are bad for everybody. Refusals that are nobody's own,
//! [`REFUSED_ENOUGH`] in a row with no other answer between them, pause the partner; further probes follow after
//! [`AUTH_FIRST`], doubled up to [`AUTH_PROBE`]. If all refusals were of one message, one that was never refused is a
//! probe at once ([`Breaker::stranger`]).
//!
//! A suspicion never stands in for an outage: a probe of it that fails or hangs makes it one, and a late refusal changes
//! nothing in a breaker that is open for another reason.
//!
//! Neighbours: [`super::turnstile`] owns one for each partner, [`super::hosts`] one for each host where the URL comes
//! from the record. A restart begins closed: if the partner is still down it opens again after as many failures (none
//! of which counts as an attempt's age, see [`super::backoff`]). An operator's pause is not here but in the turnstile.

use super::types::Time;
use crate::config::model::{DoubtPolicy, PartnerConfig};
use std::time::Duration;

/// Probes of a partner that hangs are at most so many times `flood.probe` apart.
pub const LONGEST_PROBE: u32 = 10;

/// A partner that is paused for refused credentials is asked again after so long; the waits double ...
pub const AUTH_FIRST: Duration = Duration::from_secs(1);
/// ... up to this.
pub const AUTH_PROBE: Duration = Duration::from_secs(60);

/// A refusal of credentials, and three of probes, with no other answer between them, pause the partner.
pub const REFUSED_ENOUGH: u32 = 4;

/// A partner may park so many messages by hanging, however low its concurrency.
const FEWEST_CHEAP_DOUBTS: u32 = 4;

/// An answer so recent shows that the partner as a whole is up.
const RECENT_ANSWER: Duration = Duration::from_secs(60);

/// What an attempt's end says about the partner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptResult {
    /// A definite answer: delivered, refused, 429, any "try later" that is the partner's own.
    Answered,
    /// Certainly not taken, because the partner is down: failed connect, 5xx without doubt.
    Failed,
    /// May or may not have been taken, and nothing was heard: timeout, reset.
    Doubt,
    /// May or may not have been taken, but somebody answered: a gateway.
    DoubtAnswered,
    /// Credentials refused (401, 403, 407).
    CredentialsRefused {
        /// To a message that had been refused before.
        again: bool,
        /// When the attempt of this message set out that was refused first.
        since: Time,
    },
    /// Somebody answered, but not to the message itself: a redirect that is followed, a look-up. It says nothing of the
    /// credentials, nor of whether messages are taken.
    Elsewhere,
    /// A verdict rule says that the partner must be paused.
    PausedByRule,
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

/// A time for which a breaker is open without a break, by number. A probe counts for the one in which it set out: what
/// comes of one of an earlier episode says nothing of this one, and takes none of its probes' places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Episode(u32);

/// Why a partner is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Failures in a row.
    Failures,
    /// Doubts in a row: it hangs.
    Doubts,
    /// Credentials refused.
    Credentials,
    /// A verdict rule said `pause`.
    Rule,
}

/// What a refusal of credentials turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The message's own: others are answered.
    Own,
    /// Not known yet: the next answer to another message will tell.
    Suspected,
    /// The partner's: it is paused.
    Partner,
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
    /// Once [`BreakerSettings::cheap_doubts`] have come in a row: the wait before the next probe.
    pub doubt_probe: Duration,
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
            doubt_probe: partner.flood.probe,
        }
    }

    /// Doubts in a row after which each further one is made rare.
    pub fn cheap_doubts(&self) -> u32 {
        self.concurrency.saturating_mul(2).max(FEWEST_CHEAP_DOUBTS)
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
    /// Those of them that nobody answered: each keeps its place.
    silent: u32,
    /// Doubts beyond the cheap ones: how often the wait before a probe has been doubled.
    beyond: u32,
    /// Refusals of credentials since the last other answer that pause the partner, and those of messages that had not
    /// been refused before and set out after that answer.
    refused: u32,
    strangers: u32,
    /// Times it opened in a row.
    opened: u32,
    /// The latest episode.
    episode: Episode,
    in_flight: u32,
    last_answer: Option<Time>,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    episode: Episode,
    cause: Cause,
    since: Time,
    until: Time,
    probes: u32,
    /// Its last probe failed or hung, whatever the cause: it is down as well.
    down: bool,
}

impl Open {
    /// Whether only refused credentials are the reason.
    fn is_refusing(&self) -> bool {
        self.cause == Cause::Credentials && !self.down
    }
}

impl Breaker {
    /// A closed one.
    pub fn new(settings: BreakerSettings) -> Self {
        Self {
            settings,
            open: None,
            failures: 0,
            doubts: 0,
            silent: 0,
            beyond: 0,
            refused: 0,
            strangers: 0,
            opened: 0,
            episode: Episode(0),
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
        // What is in flight from before may come to a doubt too: its end is waited for.
        if self.settings.doubts_park
            && self.in_flight > 0
            && self.doubts.saturating_add(self.in_flight) >= self.settings.cheap_doubts()
        {
            return Allow::NotBefore(Time::NEVER);
        }
        Allow::Probe
    }

    /// How many of the partner's places may be in use: each doubt that nobody answered keeps one, until a definite
    /// answer comes.
    #[inline]
    pub fn places(&self) -> u32 {
        if self.open.is_some() {
            // Probes are counted by themselves.
            return self.settings.concurrency.max(1);
        }
        self.settings.concurrency.max(1).saturating_sub(self.silent)
    }

    /// An attempt that was allowed starts. While the breaker is open it is a probe of this episode, to be told to
    /// [`Breaker::on_result`].
    #[inline]
    pub fn on_start(&mut self) -> Option<Episode> {
        self.in_flight += 1;
        let open = self.open.as_mut()?;
        open.probes += 1;
        Some(open.episode)
    }

    /// The number of the episode that is open, or of a new one.
    fn this_episode(&mut self) -> Episode {
        match self.open {
            Some(open) => open.episode,
            None => {
                self.episode = Episode(self.episode.0.wrapping_add(1));
                self.episode
            }
        }
    }

    /// An attempt has ended. `rnd` is a random number: the open time is shortened by up to a quarter, so that
    /// nodes do not probe in step.
    #[inline]
    pub fn on_result(&mut self, result: AttemptResult, probe: Option<Episode>, now: Time, rnd: u64) {
        self.in_flight = self.in_flight.saturating_sub(1);
        let mut probes = self.open.as_mut().filter(|open| probe == Some(open.episode));
        let probe = probes.is_some();
        if let Some(open) = &mut probes {
            open.probes = open.probes.saturating_sub(1);
        }
        match result {
            AttemptResult::NotMade | AttemptResult::Elsewhere => {}
            AttemptResult::Answered => {
                self.last_answer = Some(now);
                // The late answer to a request from before it opened says little about now: it must neither
                // close it nor give back what the doubts have used up. But of credentials it says that they are good.
                let tells = probe || self.open.is_none_or(|open| open.is_refusing());
                if tells {
                    self.open = None;
                    self.opened = 0;
                    self.refused = 0;
                    self.strangers = 0;
                    self.heard();
                }
            }
            AttemptResult::Failed => {
                self.failures = self.failures.saturating_add(1);
                let enough = self.settings.failures > 0 && self.failures >= self.settings.failures;
                if probe || (self.open.is_none() && enough) {
                    self.trip(Cause::Failures, now, rnd);
                }
            }
            AttemptResult::Doubt | AttemptResult::DoubtAnswered => {
                self.failures = self.failures.saturating_add(1);
                self.doubts = self.doubts.saturating_add(1);
                self.silent += u32::from(result == AttemptResult::Doubt);
                let settings = &self.settings;
                let enough = (settings.failures > 0 && self.failures >= settings.failures)
                    || self.doubts >= settings.doubts_in_a_row.max(1)
                    || self.silent >= settings.concurrency.max(1);
                if probe || (self.open.is_none() && enough) {
                    self.trip(Cause::Doubts, now, rnd);
                }
            }
            AttemptResult::CredentialsRefused { again, since } => self.refuse(again, since, probe, now),
            AttemptResult::PausedByRule => {
                if self.is_news(probe) {
                    self.heard();
                }
                let until = now.plus(AUTH_PROBE);
                let episode = self.this_episode();
                let before = self.open.unwrap_or(Open {
                    episode,
                    cause: Cause::Rule,
                    since: now,
                    until,
                    probes: 0,
                    down: false,
                });
                // What was open for longer stays so: a late answer does not bring the next probe nearer.
                let until = if probe { until } else { until.max(before.until) };
                self.open = Some(Open {
                    cause: Cause::Rule,
                    until,
                    down: before.down && !probe,
                    ..before
                });
            }
        }
    }

    /// Somebody answers: what was counted against a partner that is down or hangs begins anew.
    fn heard(&mut self) {
        self.failures = 0;
        self.doubts = 0;
        self.silent = 0;
        self.beyond = 0;
    }

    /// Whether an answer tells how the partner is now: not if it is late, from before the breaker opened for another
    /// reason than refused credentials.
    fn is_news(&self, probe: bool) -> bool {
        probe || self.open.is_none_or(|open| open.is_refusing())
    }

    /// Credentials were refused.
    fn refuse(&mut self, again: bool, since: Time, probe: bool, now: Time) {
        if !self.is_news(probe) {
            return;
        }
        self.heard();
        if !again && self.last_answer.is_none_or(|at| since > at) {
            self.strangers = self.strangers.saturating_add(1);
        }
        let by_rule = self.open.is_some_and(|open| open.cause == Cause::Rule);
        if again && !by_rule && self.is_its_own(since) {
            // It says nothing of others' credentials, and neither did the refusal that was suspected to.
            if probe {
                self.open = None;
                self.refused = 0;
                self.opened = 0;
            }
            return;
        }
        let episode = self.this_episode();
        match &mut self.open {
            Some(open) if open.cause == Cause::Credentials => {
                open.down &= !probe;
                // Late refusals of requests from before say nothing new.
                if probe {
                    self.refused = self.refused.saturating_add(1);
                    open.until = now;
                    if self.refused >= REFUSED_ENOUGH {
                        let wait = AUTH_FIRST.saturating_mul(1 << self.opened.min(20));
                        self.opened = self.opened.saturating_add(1);
                        open.until = now.plus(wait.min(AUTH_PROBE));
                    }
                }
            }
            Some(open) if open.cause == Cause::Rule => {
                open.down = false;
                open.until = now.plus(AUTH_PROBE);
            }
            open => {
                self.refused = 1;
                self.opened = 0;
                *open = Some(Open {
                    episode,
                    cause: Cause::Credentials,
                    since: open.map_or(now, |open| open.since),
                    until: now,
                    probes: open.map_or(0, |open| open.probes),
                    down: false,
                });
            }
        }
    }

    /// Whether further refusals of a message whose first refused attempt set out at `since` are its own: others were
    /// answered then, or have been since, and not everybody who set out later was refused.
    fn is_its_own(&self, since: Time) -> bool {
        self.strangers < REFUSED_ENOUGH
            && self
                .last_answer
                .is_some_and(|at| since.since(at) <= RECENT_ANSWER)
    }

    /// What the refusal that has just come in turned out to be.
    pub fn refusal(&self) -> Refusal {
        match self.open {
            None => Refusal::Own,
            Some(open) if matches!(open.cause, Cause::Failures | Cause::Doubts) => Refusal::Suspected,
            Some(_) if self.is_suspicious() => Refusal::Suspected,
            Some(_) => Refusal::Partner,
        }
    }

    /// Whether some message's credentials were refused, and it is not known yet whether everybody's are.
    fn is_suspicious(&self) -> bool {
        self.refused < REFUSED_ENOUGH && self.open.is_some_and(|open| open.cause == Cause::Credentials)
    }

    /// Whether a probe of a message that was never refused would tell more than one of a message that was.
    pub fn wants_stranger(&self) -> bool {
        self.open.is_some_and(|open| open.cause == Cause::Credentials)
    }

    /// A message whose credentials were never refused wants to start. Where one message alone has been refused so
    /// far, it is a probe at once. True: ask again who may start.
    pub fn stranger(&mut self, now: Time) -> bool {
        match &mut self.open {
            Some(open) if open.is_refusing() && self.strangers <= 1 && open.until > now => {
                open.until = now;
                true
            }
            _ => false,
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
        let mut full = full;
        if cause == Cause::Doubts && self.settings.doubts_park && self.doubts >= self.settings.cheap_doubts()
        {
            let most = self.settings.doubt_probe.saturating_mul(LONGEST_PROBE);
            let wait = self.settings.doubt_probe.saturating_mul(1 << self.beyond.min(10));
            self.beyond = self.beyond.saturating_add(1);
            full = full.max(wait.min(most));
        }
        let cut = (full / 4).mul_f64((rnd >> 11) as f64 / (1u64 << 53) as f64);
        let suspicious = self.is_suspicious();
        if suspicious {
            // It is down; whether it refuses credentials is for later.
            self.refused = 0;
            self.strangers = 0;
        }
        let (since, probes, cause) = match self.open {
            Some(open) if suspicious => (open.since, open.probes, cause),
            // Refused credentials, and a rule's pause, stay the reason until an answer comes.
            Some(open) if matches!(open.cause, Cause::Credentials | Cause::Rule) => {
                (open.since, open.probes, open.cause)
            }
            Some(open) => (open.since, open.probes, cause),
            None => (now, 0, cause),
        };
        let mut until = now.plus(full - cut);
        if cause == Cause::Rule {
            until = until.max(now.plus(AUTH_PROBE));
        }
        self.open = Some(Open {
            episode: self.this_episode(),
            cause,
            since,
            until,
            probes,
            down: true,
        });
    }

    /// A secret of the partner has changed: if its credentials were refused, a probe may go at once.
    pub fn secrets_changed(&mut self, now: Time) {
        if let Some(open) = &mut self.open
            && matches!(open.cause, Cause::Credentials | Cause::Rule)
        {
            open.until = open.until.min(now);
            self.opened = 0;
        }
    }

    /// An operator wants to see now whether the partner is back: a probe may go at once, at the price of one more
    /// doubt.
    pub fn probe_now(&mut self, now: Time) {
        if let Some(open) = &mut self.open {
            open.until = open.until.min(now);
        }
    }

    /// Since when, until when (then probes go) and why the partner is left alone.
    pub fn is_open(&self) -> Option<(Cause, Time, Time)> {
        self.open.map(|open| (open.cause, open.since, open.until))
    }

    /// The same as far as it is worth telling: not while it is only suspected that credentials are refused.
    pub fn left_alone(&self) -> Option<(Cause, Time)> {
        let open = self.open.filter(|_| !self.is_suspicious())?;
        Some((open.cause, open.until))
    }

    /// Whether the partner has given anybody a definite answer within the last minute and is not left alone.
    /// Only then can a message be too old by its own fault.
    pub fn is_answering(&self, now: Time) -> bool {
        self.open.is_none() && self.answered_lately(now)
    }

    /// Whether it has given anybody a definite answer since then, and is not left alone.
    pub fn has_answered_since(&self, then: Time) -> bool {
        self.open.is_none() && self.last_answer.is_some_and(|at| at >= then)
    }

    fn answered_lately(&self, now: Time) -> bool {
        self.last_answer.is_some_and(|at| now.since(at) <= RECENT_ANSWER)
    }

    /// One word for its state.
    #[cfg(test)]
    pub fn name(&self, now: Time) -> &'static str {
        match self.open {
            None => "closed",
            Some(open) if matches!(open.cause, Cause::Credentials | Cause::Rule) => "credentials",
            Some(open) if now < open.until => "open",
            Some(_) => "half-open",
        }
    }
}

#[cfg(test)]
mod tests;
