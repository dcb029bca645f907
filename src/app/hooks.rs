//! What only the actors know of a running node, for its status and its health.
//!
//! Each arbiter's thread sets a beat every second: one that has not for long is stuck, and a restart helps.

use super::live::Hooks;
use super::partner::{self, PartnerFigures, figures};
use super::reload::Present;
use crate::actors::arbiter::local;
use crate::actors::context::RouteFigures;
use crate::actors::gate::NodeCap;
use crate::actors::topic::TopicSupervisor;
use crate::api::Status;
use crate::api::status::BreakerState;
use crate::clock::Clock;
use crate::config::Config;
use crate::core::breaker::Cause;
use crate::core::ledger::fold::{LaneState, Pause};
use crate::core::types::{RouteId, Time};
use crate::core::waits::{FULL_OF_KEPT, Facts, Full, Parked, Wait, hints};
use crate::ledger::desk::standing::settings;
use crate::ledger::keeper::Keeper;
use crate::ledger::lane::Lane;
use crate::log::Log;
use crate::memory::MemoryShare;
use crate::telemetry::metrics::{Counter, Metrics};
use actix::prelude::*;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

/// The topics that run, by name.
pub type Topics = Arc<Mutex<BTreeMap<String, Addr<TopicSupervisor>>>>;
/// Figures of the routes' partitions: topic, partner, partition.
pub type Routes = Arc<Mutex<BTreeMap<(String, String, u32), Arc<RouteFigures>>>>;

/// A failed connect is shown for so long: a partner that is well makes none for minutes.
const FAILURE_SHOWN: Duration = Duration::from_secs(600);
/// So often an arbiter shows that it lives, and deliveries are counted for the rate.
pub const BEAT: Duration = Duration::from_secs(1);
/// An arbiter that has shown nothing for so long is stuck.
const STUCK: Duration = Duration::from_secs(20);
/// A rate is measured over so many beats.
const RATE_BEATS: usize = 10;
/// An arbiter is waited for so long when it is asked for its figures.
const ASKED: Duration = Duration::from_millis(500);
/// Reading counts as paused above this share of the memory bound, in percent: a chunk more would not fit.
const FULL: u64 = 98;

/// The phases of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It is being built.
    Starting = 0,
    /// It delivers.
    Running = 1,
    /// It takes nothing up any more.
    Draining = 2,
}

/// See the module.
pub struct NodeHooks {
    /// The topics.
    pub topics: Topics,
    /// Their routes.
    pub routes: Routes,
    /// Where each partner lives.
    pub homes: BTreeMap<String, ArbiterHandle>,
    /// All arbiters that hold partners, each with its last beat, in microseconds.
    pub arbiters: Vec<(ArbiterHandle, Arc<AtomicU64>)>,
    /// Requests in flight.
    pub cap: Arc<NodeCap>,
    /// Each partner's share of the memory.
    pub memory: BTreeMap<String, MemoryShare>,
    /// The lane: what is written and not folded is held too.
    pub lane: Lane,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The log.
    pub log: Arc<dyn Log>,
    /// The fold.
    pub keeper: Arc<Keeper>,
    /// The time.
    pub clock: Clock,
    /// Where the node stands.
    pub phase: AtomicU8,
    /// The configuration that the node was started with, and the one that holds now.
    pub config: Arc<Config>,
    /// See above.
    pub present: Present,
    /// Deliveries of each partner, at the last beats.
    pub rates: Mutex<BTreeMap<String, Rate>>,
    /// Partners that stand because kept messages fill the memory.
    pub full_of_kept: Mutex<BTreeSet<String>>,
}

/// Deliveries of a partner at the last beats.
#[derive(Debug)]
pub struct Rate {
    counter: Counter,
    beats: VecDeque<(Time, u64)>,
}

impl Rate {
    /// Of this counter.
    pub fn of(counter: Counter) -> Self {
        Self {
            counter,
            beats: VecDeque::with_capacity(RATE_BEATS + 1),
        }
    }

    fn beat(&mut self, now: Time) {
        self.beats.push_back((now, self.counter.get()));
        if self.beats.len() > RATE_BEATS {
            self.beats.pop_front();
        }
    }

    fn now(&self, now: Time) -> f64 {
        let Some((since, before)) = self.beats.front() else {
            return 0.0;
        };
        let seconds = now.since(*since).as_secs_f64();
        if seconds < 0.1 {
            return 0.0;
        }
        self.counter.get().saturating_sub(*before) as f64 / seconds
    }
}

impl NodeHooks {
    /// Says where the node stands now.
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    fn is_in(&self, phase: Phase) -> bool {
        self.phase.load(Ordering::Relaxed) == phase as u8
    }

    /// Counts deliveries and looks after the arbiters, until it is dropped.
    pub fn keep_beating(self: &Arc<Self>) {
        for (arbiter, beat) in &self.arbiters {
            let (beat, clock) = (beat.clone(), self.clock);
            let memory = self.memory.values().next().cloned();
            arbiter.spawn(async move {
                loop {
                    beat.store(clock.now().0, Ordering::Relaxed);
                    memory.iter().for_each(partner::count_budgets);
                    tokio::time::sleep(BEAT).await;
                }
            });
        }
        let hooks = Arc::downgrade(self);
        actix_rt::spawn(async move {
            while let Some(hooks) = hooks.upgrade() {
                let now = hooks.clock.now();
                hooks.rates.lock().values_mut().for_each(|rate| rate.beat(now));
                hooks.count_books();
                drop(hooks);
                tokio::time::sleep(BEAT).await;
            }
        });
    }

    /// The figures of all partners whose arbiters answer.
    fn partners(&self) -> Vec<PartnerFigures> {
        let (answer, answers) = std::sync::mpsc::channel();
        for (arbiter, _) in &self.arbiters {
            let answer = answer.clone();
            arbiter.spawn_fn(move || {
                // Nobody waits any longer only if this arbiter was late.
                let _ = answer.send(figures());
            });
        }
        drop(answer);
        let until = std::time::Instant::now() + ASKED;
        let mut all = Vec::new();
        while let Ok(some) = answers.recv_timeout(until.saturating_duration_since(std::time::Instant::now()))
        {
            all.extend(some);
        }
        all
    }

    /// What each partner's messages wait for, where they do.
    pub fn waits(&self) -> Vec<(Arc<str>, Vec<Wait>)> {
        let now = self.clock.now();
        let of = |figures: PartnerFigures| (figures.name.clone(), self.facts(&figures).waits(now));
        let all = self.partners().into_iter().map(of);
        all.filter(|(_, waits)| !waits.is_empty()).collect()
    }

    /// What would help the partners of which messages are parked.
    pub fn hints(&self) -> Vec<String> {
        let mut parked: BTreeMap<String, Parked> = BTreeMap::new();
        for ((_, partner, _), figures) in self.routes.lock().iter() {
            let (sum, more) = (parked.entry(partner.clone()).or_default(), figures.parked());
            sum.crash += more.crash;
            sum.timeout += more.timeout;
            sum.gateway += more.gateway;
        }
        let mut all: BTreeMap<String, u64> = BTreeMap::new();
        self.keeper.with_state(|state| {
            for (at, partition) in &state.partitions {
                let parked = partition.messages.totals().parked;
                if let Some(route) = state.routes.get(&at.route).filter(|_| parked > 0) {
                    *all.entry(route.partner.clone()).or_default() += parked;
                }
            }
        });
        for partner in all.keys() {
            parked.entry(partner.clone()).or_default();
        }
        let of = |(partner, parked): (&String, &Parked)| {
            let policies = self.config.partners.get(partner).map(|p| &p.doubt);
            hints(partner, *parked, all.get(partner).copied().unwrap_or(0), policies)
        };
        parked.iter().flat_map(of).collect()
    }

    fn facts(&self, figures: &PartnerFigures) -> Facts {
        let (paused, stopped) = self.keeper.with_state(|state| {
            let paused = state
                .paused
                .get(&*figures.name)
                .map(|p| (p.who.clone(), p.reason.clone()));
            let of_partner = |(route, pause): (&RouteId, &Pause)| {
                let route = state.routes.get(route).filter(|r| *r.partner == *figures.name)?;
                Some((route.topic.to_string(), pause.reason.clone()))
            };
            (paused, state.stopped.iter().filter_map(of_partner).collect())
        });
        let mut facts = Facts {
            paused,
            stopped,
            breaker: figures.left_alone,
            held_until: figures.held_until,
            hosts: figures.hosts,
            at_gate: (figures.waiting, figures.ask_at),
            deferred_until: figures.deferred_until,
            short_since: figures.short_since,
            in_flight: u64::from(figures.in_flight),
            ..Facts::default()
        };
        for ((_, partner, _), route) in self.routes.lock().iter() {
            if **partner == *figures.name {
                facts.settling += route.settling.load(Ordering::Relaxed);
                facts.held_keys += route.held_keys.load(Ordering::Relaxed);
                facts.retrying += route.waiting.load(Ordering::Relaxed);
                if let Some(full) = Full::of(route.full.load(Ordering::Relaxed)) {
                    *facts.full.entry(full).or_default() += 1;
                }
            }
        }
        facts
    }

    fn full(&self) -> bool {
        let full = |m: &MemoryShare| m.node_held() * 100 >= m.node_bound() * FULL;
        self.memory.values().next().is_some_and(full)
    }

    /// Notes what the fold and the store hold, against the node's bound (I6).
    pub fn count_books(&self) {
        let held = self.keeper.memory();
        let index = self.log.stats().index_bytes;
        let mut full = self.full_of_kept.lock();
        for (partner, share) in &self.memory {
            share.set_kept(held.by_partner.get(partner).copied().unwrap_or(0));
            share.books().set(held.ledger, held.messages, held.store);
            share.books().set_log(index);
        }
        for (partner, share) in &self.memory {
            if !share.is_full_of_kept() {
                full.remove(partner);
            } else if full.insert(partner.clone()) {
                tracing::error!(event = "memory_full_of_kept", partner, "{FULL_OF_KEPT}");
            }
        }
    }
}

impl Hooks for NodeHooks {
    fn try_out(&self, partner: &str) -> Option<std::sync::mpsc::Receiver<Result<String, String>>> {
        let home = self.homes.get(partner)?;
        let (told, found) = std::sync::mpsc::channel();
        let partner = partner.to_owned();
        home.spawn_fn(move || {
            let context = local(|l| l.partners.get(partner.as_str()).cloned());
            if let Some(context) = context {
                // Nobody waits any longer only if it took too long.
                actix_rt::spawn(async move { drop(told.send(context.sink.test().await)) });
            }
        });
        Some(found)
    }

    fn enrich(&self, status: &mut Status) {
        let now = self.clock.now();
        if !self.is_in(Phase::Running) {
            let starting = self.is_in(Phase::Starting);
            status.node.state = if starting { "starting" } else { "draining" }.to_owned();
        }
        status.node.in_flight = self.cap.in_flight() as u64;
        if let Some(memory) = self.memory.values().next() {
            status.node.memory_backlog = self.lane.backlog_bytes();
            status.node.memory_held = memory.node_held() + status.node.memory_backlog;
            status.node.memory_messages = memory.node_messages();
            status.node.memory_ledger = memory.books().ledger();
            status.node.memory_store = memory.books().store();
            status.node.memory_log = memory.books().log();
            let [bytes, own, shared] = memory.books().budgets();
            status.node.memory_budgets = bytes;
            status.node.budget_values = own;
            status.node.budget_values_shared = shared;
        }
        for topic in &mut status.topics {
            let share = self.memory.get(&topic.partner);
            if topic.stopped.is_none() && share.is_some_and(MemoryShare::is_full_of_kept) {
                topic.stopped = Some(FULL_OF_KEPT.to_owned());
            }
        }
        status.node.restarts = self.metrics.restarts();
        status.node.intake_paused = match self.log.refuses().or_else(|| self.keeper.refuses()) {
            Some(why) => Some(why),
            None if self.full() => Some("the memory bound is reached; it goes on by itself".to_owned()),
            None => None,
        };
        let routes = self.routes.lock();
        for topic in &mut status.topics {
            let of = (topic.topic.clone(), topic.partner.clone(), topic.partition);
            if let Some(figures) = routes.get(&of) {
                topic.in_flight = figures.in_hand.load(Ordering::Relaxed);
                topic.busy_keys = figures.busy_keys.load(Ordering::Relaxed);
                topic.waiting = figures.waiting.load(Ordering::Relaxed);
            }
        }
        drop(routes);
        let present = self.present.lock().clone();
        if !Arc::ptr_eq(&present, &self.config) {
            status.partners.iter_mut().for_each(|p| settings(&present, p));
        }
        let partners = self.partners();
        let rates = self.rates.lock();
        for partner in &mut status.partners {
            if let Some(rate) = rates.get(&partner.partner) {
                partner.rate = rate.now(now);
            }
            let Some(figures) = partners.iter().find(|p| *p.name == *partner.partner) else {
                continue;
            };
            partner.in_flight = u64::from(figures.in_flight);
            partner.permits_waiting = figures.waiting as u64;
            partner.breaker = match figures.open {
                None => BreakerState::Closed,
                Some((_, until)) if until <= now => BreakerState::HalfOpen,
                Some(_) => BreakerState::Open,
            };
            let credentials = |(cause, _): &(Cause, Time)| matches!(cause, Cause::Credentials | Cause::Rule);
            if partner.paused.is_none() && figures.left_alone.as_ref().is_some_and(credentials) {
                let why = "it refuses the credentials (401, 403, or a verdict rule): a probe at least once a minute, or a changed secret, goes on";
                partner.paused = Some(why.to_owned());
            }
            let facts = self.facts(figures);
            partner.waits = facts.waits(now).into_iter().map(Into::into).collect();
            partner.held_until = (figures.held_until > now).then(|| figures.held_until.to_string());
            partner.connections = figures.connections.connections;
            partner.connected = figures.connections.connected;
            partner.connect_failures = figures.connections.connect_failures;
            partner.stale_connections = figures.connections.stale;
            partner.connect_failure = figures
                .connect_failure
                .clone()
                .filter(|(_, ago)| *ago < FAILURE_SHOWN)
                .map(|(why, ago)| format!("{why} ({} s ago)", ago.as_secs()));
        }
    }

    fn home_of(&self, route: RouteId) -> Option<ArbiterHandle> {
        let partner = |s: &LaneState| s.routes.get(&route).map(|r| r.partner.clone());
        self.homes.get(&self.keeper.with_state(partner)?).cloned()
    }

    fn problems(&self) -> Vec<String> {
        let now = self.clock.now();
        let stuck = |beat: &Arc<AtomicU64>| now.since(Time(beat.load(Ordering::Relaxed))) > STUCK;
        let stuck = self.arbiters.iter().filter(|(_, beat)| stuck(beat)).count();
        if stuck == 0 || self.is_in(Phase::Starting) {
            return Vec::new();
        }
        vec![format!(
            "{stuck} of {} worker threads do not move",
            self.arbiters.len()
        )]
    }

    fn not_ready(&self) -> Vec<String> {
        let mut why = self.problems();
        if self.is_in(Phase::Starting) {
            why.push("starting".to_owned());
        }
        if self.is_in(Phase::Draining) {
            why.push("draining".to_owned());
        }
        why.extend(self.log.refuses());
        why.extend(self.keeper.refuses());
        why.extend(self.keeper.behind());
        why
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_deliveries_over_the_last_beats() {
        let counter = Counter::default();
        let mut rate = Rate::of(counter.clone());
        assert_eq!(rate.now(Time(0)), 0.0);
        for second in 0..20u64 {
            rate.beat(Time(second * 1_000_000));
            counter.inc_by(50);
        }
        // The oldest of ten beats was at second 10, with 500 counted before it.
        assert_eq!(rate.now(Time(20_000_000)), 50.0);
    }
}
