//! One breaker for each host, for a partner whose URL takes its host from the record: a host that is dead, hangs or
//! wants to be left alone concerns its own messages and nobody else's (I8).
//!
//! Asked before a message stands at the partner's gate. A message whose host is left alone is sent away with a time
//! to come back: it must not take one of the few places at the gate, where others' messages stand.
//!
//! A host is *proven* while its last request was answered. Hosts that are not (new ones, failing ones) have at most
//! half of the partner's places between them, and each a quarter: connects that nobody answers take their whole
//! timeout, and live hosts need places meanwhile.
//!
//! A host that is slow would take one place after the other, for it keeps each for longer than others do. So the last places
//! are for hosts that have none: an eighth of all where one host has more than half and another was asked for lately
//! ([`LATELY`]), half as much where several share them. While one finds no free place, or gets no more although it has less than half
//! ([`CROWDED`]), no host has more than half of them, nor takes one more than twice as many as are free: so several slow hosts
//! together leave places to the others, the more the fewer they are. Whoever has none stands in line for the next one.
//!
//! Who is sent away comes back spread over a time that grows with how many were: a hundred thousand messages of one
//! dead host cost some thousand looks a second, not all of the processor.
//!
//! The number of hosts is bounded ([`MOST_HOSTS`]). What is forgotten first is a host without a request on its way:
//! one that is well, else the one used longest ago; forgetting a failing one costs a few tries. Only hashes of hosts are held: a
//! host may be part of what a record says (I9).
//!
//! Neighbours: the partner's context owns it; attempts ask and tell. A restart begins with none.

use super::breaker::{Allow, AttemptResult, Breaker, BreakerSettings, Episode, Refusal};
use super::types::Time;
use hashbrown::HashMap;
use std::time::Duration;

/// Hosts of one partner that are remembered at once, at least; more only while they all have requests on their way.
pub const MOST_HOSTS: usize = 4_096;
/// Who finds no place comes back after so long at least.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// A host that was asked for within this time may be asked for again at any moment: a place is kept for it.
pub const LATELY: Duration = Duration::from_secs(60);
/// For so long a host has at most half of the places after another one was asked for while none was free.
pub const CROWDED: Duration = Duration::from_secs(10);
/// Each message sent away makes the time over which they come back so much longer ...
const SPREAD_EACH: Duration = Duration::from_micros(200);
/// ... up to this.
const SPREAD_MOST: Duration = Duration::from_secs(60);

/// A host, by a hash of scheme, name and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HostId(pub u64);

/// Leave to go to a host; to be given to [`Hosts::finish`].
#[derive(Clone, Copy, Debug)]
#[must_use = "a pass that is not finished keeps its host's place"]
pub struct Pass {
    host: HostId,
    probe: Option<Episode>,
    proven: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Hosts {
    settings: BreakerSettings,
    hosts: HashMap<u64, Host>,
    /// Requests on their way, or waiting for a place, and those of them to hosts that were not proven.
    in_use: u32,
    unproven: u32,
    /// Which hosts were asked for, and which while no place was free.
    asked: Latest,
    crowded: Latest,
}

/// When something happened last, and when to another host than then.
#[derive(Debug, Default)]
struct Latest {
    last: Option<(HostId, Time)>,
    other: Option<Time>,
}

impl Latest {
    fn note(&mut self, host: HostId, now: Time) {
        if let Some((last, at)) = self.last
            && last != host
        {
            self.other = Some(at);
        }
        self.last = Some((host, now));
    }

    /// Whether it happened to another host than this one within this time.
    fn of_another(&self, host: HostId, now: Time, within: Duration) -> bool {
        let at = match self.last {
            Some((last, at)) if last != host => Some(at),
            _ => self.other,
        };
        at.is_some_and(|at| now.since(at) <= within)
    }
}

#[derive(Debug)]
struct Host {
    breaker: Breaker,
    in_use: u32,
    proven: bool,
    failed: bool,
    paused_until: Time,
    /// So many more requests until then, by its RateLimit header.
    left: Option<(u64, Time)>,
    /// Messages sent away lately.
    sent_away: u32,
    used: Time,
}

impl Host {
    fn is_well(&self, now: Time) -> bool {
        self.breaker.is_open().is_none() && !self.failed && self.paused_until <= now
    }
}

/// The breaker settings of one host among many.
fn share(settings: &BreakerSettings) -> BreakerSettings {
    let concurrency = (settings.concurrency / 2).max(1);
    BreakerSettings {
        concurrency,
        doubts_in_a_row: settings.doubts_in_a_row.min(concurrency.max(3)),
        ..settings.clone()
    }
}

impl Hosts {
    /// No hosts yet; `settings` are the partner's.
    pub fn new(settings: BreakerSettings) -> Self {
        Self {
            settings,
            hosts: HashMap::new(),
            in_use: 0,
            unproven: 0,
            asked: Latest::default(),
            crowded: Latest::default(),
        }
    }

    /// Changes the settings; what has been counted stays.
    pub fn set(&mut self, settings: BreakerSettings) {
        for host in self.hosts.values_mut() {
            host.breaker.set(share(&settings));
        }
        self.settings = settings;
    }

    /// How many are remembered.
    pub fn len(&self) -> usize {
        self.hosts.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }

    /// Whether a message to this host may stand at the gate; if not, when it comes back. `refused_before`: its credentials were
    /// refused. `rnd` is a random number.
    ///
    /// # Errors
    /// When to ask again.
    pub fn ask(&mut self, host: HostId, refused_before: bool, now: Time, rnd: u64) -> Result<Pass, Time> {
        if self.hosts.len() >= MOST_HOSTS && !self.hosts.contains_key(&host.0) {
            self.make_room(now);
        }
        let settings = &self.settings;
        let h = self.hosts.entry(host.0).or_insert_with(|| Host {
            breaker: Breaker::new(share(settings)),
            in_use: 0,
            proven: false,
            failed: false,
            paused_until: Time::ZERO,
            left: None,
            sent_away: 0,
            used: now,
        });
        h.used = now;
        if !refused_before {
            h.breaker.stranger(now);
        }
        if let Err(at) = h.may_go(now) {
            return Err(h.send_away(at.unwrap_or(now), now, rnd));
        }
        // Who is left alone waits for no place: only now it counts among those that want one.
        let most = self.settings.concurrency.max(1);
        self.asked.note(host, now);
        if self.in_use >= most {
            self.crowded.note(host, now);
        }
        let (has, proven) = (h.in_use, h.proven);
        let full = match proven {
            true => self.is_full(host, has, now),
            false => has >= (most / 4).max(1) || self.unproven >= (most / 2).max(1),
        };
        if full && proven && has < most / 2 {
            self.crowded.note(host, now);
        }
        let h = self.hosts.get_mut(&host.0).expect("it was asked for right above");
        if full {
            return Err(h.send_away(now, now, rnd));
        }
        h.in_use += 1;
        self.in_use += 1;
        let (probe, proven) = (h.breaker.on_start(), h.proven);
        self.unproven += u32::from(!proven);
        if let Some((left, _)) = &mut h.left {
            *left = left.saturating_sub(1);
        }
        Ok(Pass { host, probe, proven })
    }

    /// Whether a proven host that has so many places may have no further one at present.
    fn is_full(&self, host: HostId, has: u32, now: Time) -> bool {
        let most = self.settings.concurrency.max(1);
        // Places that several hosts leave to whoever has none.
        let kept = most.div_ceil(16).min(most / 8);
        if self.crowded.of_another(host, now, CROWDED) {
            let free = most.saturating_sub(self.in_use);
            return has >= (most / 2).max(1) || (has > 0 && (free <= kept.max(1) || has >= 2 * free));
        }
        if self.asked.of_another(host, now, LATELY) {
            // What is not proven has its own bound.
            let free = (most + self.unproven).saturating_sub(self.in_use);
            let kept = if has >= most.div_ceil(2) { most / 8 } else { kept };
            return has >= most || (has > 0 && free <= kept);
        }
        has >= most
    }

    /// Sends a message away whose host is left alone, before anything is done for it. None: it may ask.
    pub fn keeps_away(&mut self, host: HostId, now: Time, rnd: u64) -> Option<Time> {
        let h = self.hosts.get_mut(&host.0)?;
        let open = h.breaker.is_open().map_or(Time::ZERO, |open| open.2);
        let until = open.max(h.paused_until);
        (until > now).then(|| h.send_away(until, now, rnd))
    }

    /// A request has ended, or was not made.
    pub fn finish(&mut self, pass: Pass, result: AttemptResult, now: Time, rnd: u64) {
        self.in_use -= 1;
        self.unproven -= u32::from(!pass.proven);
        let Some(h) = self.hosts.get_mut(&pass.host.0) else {
            return;
        };
        h.in_use = h.in_use.saturating_sub(1);
        match result {
            AttemptResult::Answered => {
                (h.proven, h.failed, h.sent_away) = (true, false, 0);
            }
            AttemptResult::Failed | AttemptResult::Doubt | AttemptResult::DoubtAnswered => {
                (h.proven, h.failed) = (false, true);
                h.sent_away /= 2;
            }
            AttemptResult::CredentialsRefused { .. } | AttemptResult::Elsewhere => h.proven = true,
            AttemptResult::PausedByRule | AttemptResult::NotMade => {}
        }
        h.breaker.on_result(result, pass.probe, now, rnd);
    }

    /// What the host's answer said about pace.
    pub fn hint(&mut self, host: HostId, pause: Option<Duration>, left: Option<(u64, Duration)>, now: Time) {
        let Some(h) = self.hosts.get_mut(&host.0) else {
            return;
        };
        if let Some(pause) = pause {
            h.paused_until = h.paused_until.max(now.plus(pause));
        }
        if let Some((left, reset)) = left {
            // Those on their way may not have been counted by the host yet; the one that was answered has been.
            let on_their_way = u64::from(h.in_use.saturating_sub(1));
            h.left = Some((left.saturating_sub(on_their_way), now.plus(reset)));
        }
    }

    /// What the refusal of credentials that this host has just given turned out to be.
    pub fn refusal(&self, host: HostId) -> Refusal {
        self.hosts
            .get(&host.0)
            .map_or(Refusal::Suspected, |h| h.breaker.refusal())
    }

    /// How many hosts are left alone, and when the first of them is tried again.
    pub fn left_alone(&self, now: Time) -> (usize, Time) {
        let until = |h: &Host| {
            let open = h.breaker.left_alone().map(|(_, until)| until);
            open.or((h.paused_until > now).then_some(h.paused_until))
        };
        let all = self.hosts.values().filter_map(until);
        all.fold((0, Time::NEVER), |(n, first), until| (n + 1, first.min(until)))
    }

    /// An operator lets the partner go on: every host's pause ends, and each failing one may be tried at once.
    pub fn resume(&mut self, now: Time) {
        for h in self.hosts.values_mut() {
            h.paused_until = Time::ZERO;
            h.left = None;
            h.sent_away = 0;
            h.breaker.probe_now(now);
        }
    }

    /// A secret of the partner has changed.
    pub fn secrets_changed(&mut self, now: Time) {
        for h in self.hosts.values_mut() {
            h.breaker.secrets_changed(now);
        }
    }

    /// Forgets hosts without a request on its way: all that are well, and if that is little, the half used longest ago.
    fn make_room(&mut self, now: Time) {
        self.hosts.retain(|_, h| h.in_use > 0 || !h.is_well(now));
        if self.hosts.len() * 4 < MOST_HOSTS * 3 {
            return;
        }
        let mut used: Vec<Time> = self.hosts.values().map(|h| h.used).collect();
        let middle = used.len() / 2;
        let middle = *used.select_nth_unstable(middle).1;
        self.hosts.retain(|_, h| h.in_use > 0 || h.used > middle);
    }
}

impl Host {
    /// Counts one more message sent away until then, and says when it comes back.
    fn send_away(&mut self, until: Time, now: Time, rnd: u64) -> Time {
        self.sent_away = self.sent_away.saturating_add(1);
        let spread = SPREAD_EACH.saturating_mul(self.sent_away).min(SPREAD_MOST);
        let part = spread.mul_f64((rnd >> 11) as f64 / (1u64 << 53) as f64);
        until.max(now.plus(LOOK_AGAIN)).plus(part)
    }

    /// Whether requests may go to it at all; if not, when they may, where that is known.
    fn may_go(&mut self, now: Time) -> Result<(), Option<Time>> {
        if let Allow::NotBefore(at) = self.breaker.allows(now) {
            return Err((at != Time::NEVER).then(|| at.max(self.paused_until)));
        }
        if self.paused_until > now {
            return Err(Some(self.paused_until));
        }
        match self.left {
            Some((_, until)) if until <= now => self.left = None,
            Some((0, until)) => return Err(Some(until)),
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Time = Time::from_millis(1_700_000_000_000);
    const DEAD: HostId = HostId(1);
    const LIVE: HostId = HostId(2);

    fn hosts(concurrency: u32) -> Hosts {
        let mut partner = crate::config::PartnerConfig::new("p", "{{ value }}");
        partner.concurrency = concurrency as usize;
        Hosts::new(BreakerSettings::of(&partner))
    }

    fn tell(hosts: &mut Hosts, host: HostId, result: AttemptResult, now: Time) {
        let pass = hosts.ask(host, false, now, 0).expect("leave to go");
        hosts.finish(pass, result, now, 0);
    }

    #[test]
    fn a_dead_host_is_left_alone_and_a_live_one_does_not_notice() {
        let mut hosts = hosts(8);
        (0..20).for_each(|_| tell(&mut hosts, DEAD, AttemptResult::Failed, START));
        let until = hosts.ask(DEAD, false, START, 0).expect_err("it is left alone");
        assert_eq!(until.since(START), Duration::from_secs(1));
        assert_eq!(hosts.keeps_away(DEAD, START, 0), Some(until));
        assert_eq!(hosts.left_alone(START), (1, until));
        (0..100).for_each(|_| tell(&mut hosts, LIVE, AttemptResult::Answered, START));
        assert_eq!(hosts.keeps_away(LIVE, START, 0), None);
        // One probe, and the host is back.
        let probe = hosts.ask(DEAD, false, until, 0).expect("a probe");
        assert!(hosts.ask(DEAD, false, until, 0).is_err(), "one at a time");
        hosts.finish(probe, AttemptResult::Answered, until, 0);
        assert_eq!(hosts.left_alone(until), (0, Time::NEVER));
        tell(&mut hosts, DEAD, AttemptResult::Answered, until);
    }

    #[test]
    fn hosts_that_never_answered_leave_half_of_the_places_to_those_that_did() {
        for (concurrency, unproven) in [(64, 32), (8, 4), (2, 1), (1, 1)] {
            let mut hosts = hosts(concurrency);
            tell(&mut hosts, LIVE, AttemptResult::Answered, START);
            // A hundred hosts whose connects nobody answers.
            let mut out: Vec<Pass> = (10..110)
                .filter_map(|n| hosts.ask(HostId(n), false, START, 0).ok())
                .collect();
            assert_eq!(out.len(), unproven);
            let live = (0..concurrency).filter_map(|_| hosts.ask(LIVE, false, START, 0).ok());
            let live: Vec<Pass> = live.collect();
            assert_eq!(live.len(), (concurrency - concurrency / 8) as usize);
            out.extend(live);
            out.into_iter()
                .for_each(|pass| hosts.finish(pass, AttemptResult::NotMade, START, 0));
            assert!(hosts.ask(HostId(10), false, START, 0).is_ok());
        }
    }

    /// The places of a partner: who has leave to go waits for one in turn, and keeps it as long
    /// as its host takes.
    struct Places {
        hosts: Hosts,
        free: usize,
        queue: std::collections::VecDeque<(Pass, Time, Duration)>,
        on_their_way: Vec<(Time, Pass)>,
    }

    impl Places {
        fn new(concurrency: u32) -> Self {
            let mut hosts = hosts(concurrency);
            tell(&mut hosts, SLOW, AttemptResult::Answered, START.minus(LATELY * 2));
            tell(&mut hosts, LIVE, AttemptResult::Answered, START.minus(LATELY * 2));
            Self {
                hosts,
                free: concurrency as usize,
                queue: std::collections::VecDeque::new(),
                on_their_way: Vec::new(),
            }
        }

        /// As many messages as may go, at most so many, to a host that takes so long.
        fn offer(&mut self, host: HostId, messages: usize, takes: Duration, now: Time) {
            for _ in 0..messages {
                match self.hosts.ask(host, false, now, 0) {
                    Ok(pass) => self.queue.push_back((pass, now, takes)),
                    Err(_) => return,
                }
            }
        }

        /// Ends what has been answered.
        fn end(&mut self, now: Time) {
            for (_, pass) in self.on_their_way.extract_if(.., |(at, _)| *at <= now) {
                self.hosts.finish(pass, AttemptResult::Answered, now, 0);
                self.free += 1;
            }
        }

        /// Begins what has a place; how long each of the live host's had waited for one.
        fn begin(&mut self, now: Time) -> Vec<Duration> {
            let mut waited = Vec::new();
            while self.free > 0 {
                let Some((pass, since, takes)) = self.queue.pop_front() else {
                    break;
                };
                self.free -= 1;
                if pass.host == LIVE {
                    waited.push(now.since(since));
                }
                self.on_their_way.push((now.plus(takes), pass));
            }
            waited
        }
    }

    const SLOW: HostId = HostId(3);
    const TICK: Duration = Duration::from_millis(10);

    /// A host that takes ten seconds for each request took all places, and a quick one got one place in a thousand.
    #[test]
    fn a_slow_host_leaves_half_of_the_places_to_those_that_wait() {
        let mut places = Places::new(64);
        let (mut now, mut quick) = (START, 0);
        for tick in 0..12_000 {
            places.end(now);
            places.offer(SLOW, 100, Duration::from_secs(10), now);
            places.offer(LIVE, 100, TICK, now);
            let began = places.begin(now).len();
            // From the first answers of the slow one on.
            quick += if tick >= 2_000 { began } else { 0 };
            now = now.plus(TICK);
        }
        let slow = places.on_their_way.iter().filter(|(_, pass)| pass.host == SLOW);
        assert!((28..=33).contains(&slow.count()), "it has its half");
        assert!(quick >= 10_000 * 28, "{quick} requests went to the quick host");
    }

    /// Several slow hosts with a backlog: alone they have nearly all places, each its part; a quick one that comes with a
    /// backlog gets places of its own, and one with a message now and then waits for none.
    #[test]
    fn slow_hosts_together_leave_places_to_the_others() {
        for (concurrency, slow) in [(64, 2), (64, 3), (64, 7), (64, 20), (16, 3)] {
            let mut places = Places::new(concurrency);
            let hosts: Vec<HostId> = (100..100 + slow).map(HostId).collect();
            for host in &hosts {
                tell(
                    &mut places.hosts,
                    *host,
                    AttemptResult::Answered,
                    START.minus(LATELY * 2),
                );
            }
            let mut rng = fastrand::Rng::with_seed(7);
            let (mut now, mut began, mut waited) = (START, Vec::new(), Vec::new());
            for tick in 0..18_000 {
                places.end(now);
                for host in hosts.iter().cycle().take(hosts.len() * 4) {
                    // Not all at the same time.
                    let takes = Duration::from_millis(rng.u64(5_000..15_000));
                    places.offer(*host, 1, takes, now);
                }
                // A minute of backlog, then a message a second.
                let offered = match tick {
                    6_000..12_000 => 100,
                    12_000.. if tick % 100 == 0 => 1,
                    _ => 0,
                };
                places.offer(LIVE, offered, TICK, now);
                let waits = places.begin(now);
                match tick {
                    5_999 => {
                        let used = places.on_their_way.len();
                        assert!(used * 10 >= concurrency as usize * 8, "{used} of {concurrency}");
                    }
                    // The first ones wait for what was on its way before.
                    9_000..12_000 => began.push(waits.len()),
                    14_000.. => waited.extend(waits),
                    _ => {}
                }
                now = now.plus(TICK);
            }
            assert!(
                began.iter().all(|n| *n > 0),
                "{slow} slow hosts, {concurrency} places: {began:?}"
            );
            let longest = waited.iter().max();
            assert_eq!(
                longest,
                Some(&Duration::ZERO),
                "{slow} slow hosts, {concurrency} places"
            );
        }
    }

    /// One message a second for a quick host: it finds a place at once, although a slow one has a backlog. While there is
    /// nobody else the slow one may have them all.
    #[test]
    fn a_few_places_are_kept_for_hosts_that_were_asked_for_lately() {
        let mut places = Places::new(64);
        let mut now = START;
        for tick in 0..6_000 {
            places.end(now);
            places.offer(SLOW, 100, Duration::from_secs(10), now);
            if tick % 100 == 99 {
                places.offer(LIVE, 1, TICK, now);
            }
            let waited = places.begin(now);
            if tick == 50 {
                assert_eq!((places.free, places.on_their_way.len()), (0, 64), "all of them");
            }
            // The first one waits for what was on its way before.
            if tick > 1_200 && tick % 100 == 99 {
                assert_eq!(waited, [Duration::ZERO], "tick {tick}");
            }
            now = now.plus(TICK);
        }
    }

    #[test]
    fn hints_of_one_host_hold_that_host() {
        let mut hosts = hosts(8);
        tell(&mut hosts, LIVE, AttemptResult::Answered, START);
        tell(&mut hosts, DEAD, AttemptResult::Answered, START);
        let minute = Duration::from_secs(60);
        hosts.hint(DEAD, Some(minute), None, START);
        assert_eq!(
            hosts.ask(DEAD, false, START, 0).expect_err("paused"),
            START.plus(minute)
        );
        hosts.hint(LIVE, None, Some((2, minute)), START);
        (0..2).for_each(|_| tell(&mut hosts, LIVE, AttemptResult::Answered, START));
        assert_eq!(
            hosts.ask(LIVE, false, START, 0).expect_err("nothing is left"),
            START.plus(minute)
        );
        hosts.resume(START);
        tell(&mut hosts, DEAD, AttemptResult::Answered, START);
        tell(&mut hosts, LIVE, AttemptResult::Answered, START);
    }

    #[test]
    fn who_is_sent_away_comes_back_spread_over_a_growing_time() {
        let mut hosts = hosts(8);
        hosts.hint(DEAD, None, None, START);
        tell(&mut hosts, DEAD, AttemptResult::Answered, START);
        hosts.hint(DEAD, Some(Duration::from_secs(1)), None, START);
        let mut last = Time::ZERO;
        for _ in 0..1_000_000 {
            last = hosts.ask(DEAD, false, START, u64::MAX).expect_err("paused");
        }
        let wait = last.since(START);
        assert!(
            wait > Duration::from_secs(60) && wait <= Duration::from_secs(61),
            "{wait:?}"
        );
    }

    #[test]
    fn the_number_of_hosts_is_bounded_and_what_goes_first_is_well() {
        let mut hosts = hosts(8);
        (0..20).for_each(|_| tell(&mut hosts, DEAD, AttemptResult::Failed, START));
        for n in 0..100_000u64 {
            tell(
                &mut hosts,
                HostId(1_000 + n),
                AttemptResult::Answered,
                START.plus(Duration::from_millis(n)),
            );
            assert!(hosts.len() <= MOST_HOSTS);
        }
        assert!(hosts.hosts.contains_key(&DEAD.0), "the failing one is remembered");
        // All fail, each with another name: those used longest ago are forgotten.
        for n in 0..100_000u64 {
            tell(
                &mut hosts,
                HostId(1_000_000 + n),
                AttemptResult::Failed,
                START.plus(Duration::from_secs(200 + n)),
            );
            assert!(hosts.len() <= MOST_HOSTS);
        }
        assert!(!hosts.hosts.contains_key(&DEAD.0));
        assert_eq!((hosts.in_use, hosts.unproven), (0, 0));
    }
}
