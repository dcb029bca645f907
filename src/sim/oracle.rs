//! What an observer who never dies knows of a history, and what he objects to.

use super::operator::PAUSE_GRACE;
use super::partner::Server;
use super::scenario::Scenario;
use crate::clock::simulated;
use crate::config::OnDoubt;
use crate::config::model::{DoubtPolicy, LimitConfig, Rate};
use crate::core::ledger::codec;
use crate::core::ledger::entry::{Action, Body, BudgetDraw, Entry, OutcomeKind, SkipRule};
use crate::core::ledger::fold::{Effect, Effects, FinishedState, LaneState, MessageState, StoreOp};
use crate::core::message_id::IdScope;
use crate::core::resolve::Skips;
use crate::core::turnstile::Draws;
use crate::core::types::{KeyHash, LifeId, MessageId, Offset, RoutePartition, Time, TopicId};
use crate::intake::fake_log::FakeLog;
use crate::log::{Log, PartitionId};
use crate::sink::Delivery;
use bytes::Bytes;
use hashbrown::{HashMap, HashSet};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// A message of the input, where it stands first.
#[derive(Clone, Debug)]
pub struct Message {
    pub id: MessageId,
    /// Its number: all that it is follows from that.
    pub number: u64,
    pub key: Option<KeyHash>,
    pub key_text: Option<String>,
    pub readable: Bytes,
    pub offset: Offset,
}

type Name = (RoutePartition, MessageId);

/// Messages that orders were about of late.
const OF_LATE: usize = 6;

/// See the module.
pub struct Facts {
    pub scenario: Scenario,
    pub rng: fastrand::Rng,
    /// Which life lives, how many steps it has left, and who waits for its end.
    pub life: u64,
    pub fuse: u64,
    pub killed: Arc<Notify>,
    pub steps: u64,
    trace: DefaultHasher,
    pub violations: Vec<String>,
    pub bad_disk: bool,
    pub full: bool,
    /// The lane's partition, and the fold of all that is durable in it.
    pub lane: PartitionId,
    pub truth: LaneState,
    /// Those entries, and where they stand.
    pub entries: Vec<(Offset, Entry)>,
    pub finished: HashMap<Name, FinishedState>,
    pub intents: HashMap<Name, u32>,
    first: HashMap<PartitionId, Offset>,
    pub messages: BTreeMap<RoutePartition, Vec<Message>>,
    pub servers: Vec<Server>,
    starts: BTreeMap<BudgetDraw, Vec<Time>>,
    pub in_flight: usize,
    /// Requests that may have been out when a life was killed.
    pub killed_in_flight: usize,
    pub lives_ended: usize,
    /// Messages that have come to an end, and not been opened or written again since.
    done: HashSet<Name>,
    /// Messages that have come to an end at some time: none of their key waits for them any more.
    once: HashSet<Name>,
    /// Messages that an order opened again: what the store says of them is about the round before.
    reopened: HashSet<Name>,
    /// The round that a request of a message must have at least.
    least_round: HashMap<Name, u32>,
    /// The last round that the ledger has told of.
    last_round: HashMap<Name, u32>,
    /// IDs that are no longer remembered.
    forgotten: HashSet<Name>,
    /// Forgotten once, and written again since.
    again: HashSet<Name>,
    /// Those of them whose order was answered: a record that comes now must be sent.
    free: BTreeSet<Name>,
    /// Messages that orders were about of late: they are what the next orders are about, more often than others.
    of_late: VecDeque<Name>,
    /// Skip rules whose order was answered.
    pub rules: BTreeMap<u64, SkipRule>,
    /// Partners whose pause was answered, and when.
    pub paused: BTreeMap<String, Time>,
    /// The limits that held, and from when.
    pub limits: Vec<(Time, LimitConfig)>,
    /// Everything is to come to its end: no orders but those that let something go on.
    pub mends: bool,
    /// Rounds that orders opened.
    opened: usize,
    /// What happens is told on standard error.
    tells: bool,
}

impl Facts {
    pub fn new(scenario: Scenario, lane: PartitionId) -> Self {
        Self {
            rng: fastrand::Rng::with_seed(scenario.seed),
            life: 0,
            fuse: u64::MAX,
            killed: Arc::default(),
            steps: 0,
            trace: DefaultHasher::new(),
            violations: Vec::new(),
            bad_disk: scenario.bad_disk,
            full: false,
            lane,
            truth: LaneState::default(),
            entries: Vec::new(),
            finished: HashMap::new(),
            intents: HashMap::new(),
            first: HashMap::new(),
            messages: BTreeMap::new(),
            servers: scenario.partners.iter().map(|_| Server::default()).collect(),
            starts: BTreeMap::new(),
            in_flight: 0,
            killed_in_flight: 0,
            lives_ended: 0,
            done: HashSet::new(),
            once: HashSet::new(),
            reopened: HashSet::new(),
            least_round: HashMap::new(),
            last_round: HashMap::new(),
            forgotten: HashSet::new(),
            again: HashSet::new(),
            free: BTreeSet::new(),
            of_late: VecDeque::new(),
            rules: BTreeMap::new(),
            paused: BTreeMap::new(),
            limits: scenario.limit.iter().map(|l| (Time::ZERO, l.clone())).collect(),
            mends: false,
            opened: 0,
            tells: std::env::var_os("SLUICEGATE_SIM_TELL").is_some(),
            scenario,
        }
    }

    /// Something that the outside could see is about to happen. False: the process was killed before.
    pub fn step(&mut self, life: u64) -> bool {
        if life != self.life || self.fuse == 0 {
            return false;
        }
        self.fuse -= 1;
        self.steps += 1;
        (simulated::now(), self.fuse).hash(&mut self.trace);
        if self.fuse == 0 {
            self.killed.notify_one();
        }
        self.fuse > 0
    }

    pub fn trace(&self) -> u64 {
        self.trace.finish()
    }

    pub fn object(&mut self, what: String) {
        if self.violations.len() < 10 {
            self.violations
                .push(format!("{} (life {}): {what}", simulated::now(), self.life));
        }
    }

    /// Tells what happens as it happens, where somebody wants to follow one history.
    pub fn tell(&self, what: impl FnOnce() -> String) {
        if self.tells {
            eprintln!("{} life {}: {}", simulated::now(), self.life, what());
        }
    }

    /// New entries are durable.
    pub fn persisted(&mut self, log: &FakeLog) {
        for (at, entry) in entries(log, self.lane, self.truth.next) {
            let (mut ops, mut effects) = (Vec::new(), Vec::new());
            if let Err(e) = self.truth.apply_live(at, &entry, &mut ops, &mut effects) {
                self.object(format!("the lane cannot be folded: {e}"));
            }
            self.tell(|| format!("durable {at}: {:.400}", format!("{:?}", entry.body)));
            self.entry(&entry);
            self.ended_or_not(&ops, &effects);
            take(&mut self.finished, ops);
            self.entries.push((at, entry));
        }
    }

    /// What became durable ends messages, or begins them anew.
    fn ended_or_not(&mut self, ops: &[StoreOp], effects: &Effects) {
        for op in ops {
            match op {
                StoreOp::Finished(f) if f.state != FinishedState::Waiting => {
                    let name = (f.at, f.id);
                    self.done.insert(name);
                    self.once.insert(name);
                    self.reopened.remove(&name);
                    self.forgotten.remove(&name);
                }
                _ => {}
            }
        }
        for (_, effect) in effects {
            match effect {
                Effect::Opened { at, id, round, .. } => {
                    let name = (*at, *id);
                    self.reopened.insert(name);
                    self.done.remove(&name);
                    self.least_round.insert(name, *round);
                    self.last_round.insert(name, *round);
                    self.opened += 1;
                }
                Effect::Forgotten { at, id } => {
                    let last = self.last_round.get(&(*at, *id)).copied().unwrap_or(1);
                    // One that was called delivered before its first attempt, and is forgotten while its record waits
                    // still, goes in its first round: nothing was ever sent under that round's Idempotency-Key.
                    if self.intents.contains_key(&(*at, *id)) {
                        self.least_round.insert((*at, *id), last + 1);
                    }
                    self.forgotten.insert((*at, *id));
                    self.reopened.remove(&(*at, *id));
                }
                _ => {}
            }
        }
    }

    /// An order was answered: its entry holds.
    pub fn answered(&mut self, body: &Body) {
        let Body::Command(command) = body else { return };
        self.tell(|| format!("answered: {:?}", command.action));
        match &command.action {
            Action::Mark { at, id, .. } if self.finished.get(&(*at, *id)) != Some(&FinishedState::Marked) => {
                let found = self.finished.get(&(*at, *id));
                self.object(format!("{id} was called delivered, the store says {found:?}"));
            }
            Action::Forget { at, id } => drop(self.free.insert((*at, *id))),
            Action::SkipAdd(rule) => drop(self.rules.insert(rule.rule, rule.clone())),
            Action::Pause { partner, .. } => drop(self.paused.insert(partner.clone(), simulated::now())),
            _ => {}
        }
    }

    /// A message for an order: one of those that orders were about of late, or any.
    pub fn pick(&mut self) -> Option<Name> {
        if !self.of_late.is_empty() && self.rng.bool() {
            return Some(self.of_late[self.rng.usize(0..self.of_late.len())]);
        }
        let places = self.messages.len();
        let (at, all) = self.messages.iter().nth(self.rng.usize(0..places.max(1)))?;
        let message = all.get(self.rng.usize(0..all.len().max(1)))?;
        Some((*at, message.id))
    }

    /// An order is about this message.
    pub fn ordered(&mut self, name: Name) {
        if !self.of_late.contains(&name) {
            self.of_late.push_back(name);
        }
        if self.of_late.len() > OF_LATE {
            self.of_late.pop_front();
        }
    }

    /// Number of a message that was forgotten, if one was.
    pub fn any_forgotten(&mut self) -> Option<u64> {
        let n = self.rng.usize(0..self.free.len().max(1));
        let (at, id) = self.free.iter().nth(n)?;
        let message = self.messages.get(at)?.iter().find(|m| m.id == *id)?;
        Some(message.number)
    }

    /// How many IDs are not remembered.
    pub fn forgotten(&self) -> usize {
        self.forgotten.len()
    }

    /// A record of this message is written to the input.
    pub fn written(&mut self, at: RoutePartition, id: MessageId) {
        if self.free.remove(&(at, id)) && self.forgotten.remove(&(at, id)) {
            // Nothing is known of it: it must be sent.
            self.done.remove(&(at, id));
            self.again.insert((at, id));
        }
    }

    fn entry(&mut self, entry: &Entry) {
        match &entry.body {
            Body::Intent(i) => *self.intents.entry((i.at, i.id)).or_default() += 1,
            Body::Waiting(w) => {
                let last = self.last_round.entry((w.at, w.id)).or_default();
                *last = w.round.max(*last);
            }
            Body::Outcome(o) => {
                let (server, key) = (self.server_of(o.at), (o.at, o.id));
                let last = self.last_round.entry(key).or_default();
                *last = o.round.max(*last);
                // A look-up that says "never seen" settles what was not known before.
                let taken = match self.scenario.partners[server].doubt.crash {
                    DoubtPolicy::Verify => self.servers[server].took(key, o.round),
                    _ => self.servers[server].may_have(key, o.round),
                };
                match &o.kind {
                    OutcomeKind::Delivered { .. } if !self.servers[server].has(key, o.round) => {
                        self.object(format!("{} is called delivered, the partner never took it", o.id));
                    }
                    OutcomeKind::Dead(_) if taken => {
                        self.object(format!("{} is called dead, the partner may have taken it", o.id));
                    }
                    OutcomeKind::Parked(_) if !self.intents.contains_key(&key) => {
                        self.object(format!("{} is parked without an intent (I3)", o.id));
                    }
                    OutcomeKind::Parked(kept) | OutcomeKind::Dead(kept) if kept.value.is_empty() => {
                        self.object(format!("{} is kept without its payload (I1)", o.id));
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }

    pub fn server_of(&self, at: RoutePartition) -> usize {
        at.route.0 as usize
    }

    /// First offset of an input that is still there.
    pub fn first_of(&self, partition: PartitionId) -> Offset {
        self.first.get(&partition).copied().unwrap_or(0)
    }

    /// The topic forgets what all routes have passed, for good.
    pub fn forget(&mut self, inputs: &[PartitionId]) {
        for (n, input) in inputs.iter().enumerate() {
            let passed = |(at, _): &(&RoutePartition, &Vec<Message>)| at.partition == n as u32;
            let position = |at| self.truth.partitions.get(at).map_or(0, |p| p.position);
            let least = self
                .messages
                .iter()
                .filter(passed)
                .map(|(at, _)| position(at))
                .min();
            let first = self.first.entry(*input).or_default();
            *first = (*first).max(least.unwrap_or(0));
        }
    }

    /// A request's first byte is being written.
    pub fn request(&mut self, at: RoutePartition, delivery: &Delivery, draws: &Draws) {
        let (server, name, now) = (self.server_of(at), (at, delivery.id), simulated::now());
        let what = format!(
            "{} of {at:?} round {} attempt {}",
            delivery.id, delivery.round, delivery.attempt
        );
        let config = self.scenario.partners[server].clone();
        self.tell(|| format!("request: {what} {:?}", delivery.idempotency_key));
        let known = self
            .truth
            .partitions
            .get(&at)
            .and_then(|p| p.messages.get(&delivery.id));
        let life = LifeId(self.life);
        let intended = known.is_some_and(|m| {
            let open = matches!(&m.state, MessageState::Open { life: by, .. } if *by == life);
            open && (m.round, m.attempts) == (delivery.round, delivery.attempt)
        });
        if !intended {
            self.object(format!(
                "{what} is sent without a durable intent of its own (I2): {known:?}"
            ));
        }
        let reopened = self.reopened.contains(&name);
        if let Some(state) = (self.finished.get(&name)).filter(|s| **s != FinishedState::Waiting && !reopened)
        {
            self.object(format!("{what} is sent although it is {state:?} (I2)"));
        }
        if self
            .least_round
            .get(&name)
            .is_some_and(|least| delivery.round < *least)
        {
            self.object(format!("{what} is sent in a round that is over (I2)"));
        }
        self.promised(at, delivery, &what);
        let (earlier, round) = (&self.servers[server], delivery.round);
        match config.doubt.crash {
            DoubtPolicy::Park if earlier.may_have(name, round) => {
                self.object(format!("{what} is sent, the partner may have it already (I2)"));
            }
            DoubtPolicy::Verify if earlier.took(name, round) => {
                self.object(format!("{what} is sent again, the partner took it (I2)"));
            }
            _ => {}
        }
        let requests = self.servers[server].requests(name) as u32 + 1;
        if requests > self.intents.get(&name).copied().unwrap_or(0) {
            self.object(format!("{what}: {requests} requests with fewer intents (I2)"));
        }
        self.order(at, delivery, &what, config.on_doubt);
        self.servers[server].in_flight += 1;
        self.in_flight += 1;
        if self.servers[server].in_flight > config.concurrency {
            self.object(format!(
                "{what} is request {} of {}",
                self.servers[server].in_flight, config.concurrency
            ));
        }
        if self.in_flight > self.scenario.node_cap {
            self.object(format!("{what} is above the node's cap"));
        }
        for draw in draws {
            self.starts.entry(*draw).or_default().push(now);
        }
        (name, now).hash(&mut self.trace);
    }

    /// What orders promised that were answered.
    fn promised(&mut self, at: RoutePartition, delivery: &Delivery, what: &str) {
        let (server, now) = (self.server_of(at), simulated::now());
        let partner = self.scenario.partners[server].name.clone();
        if self
            .paused
            .get(&partner)
            .is_some_and(|since| now.since(*since) > PAUSE_GRACE)
        {
            self.object(format!("{what} is sent although its partner is paused"));
        }
        // One that a kill left with an intent is in doubt for the node, whether or not a request came.
        let resent =
            self.scenario.partners[server].doubt.crash == DoubtPolicy::Resend && delivery.attempt > 1;
        if resent || self.rules.is_empty() || self.servers[server].may_have((at, delivery.id), delivery.round)
        {
            // A doubt is settled first.
            return;
        }
        let Some(message) = self
            .messages
            .get(&at)
            .and_then(|all| all.iter().find(|m| m.id == delivery.id))
        else {
            return;
        };
        let scope = IdScope::new("t", TopicId(2), at.partition, &partner);
        let skips = Skips::of(self.rules.values(), "t", &partner, &scope);
        if let Some(rule) = skips.reason(message.key, &message.id, now) {
            let what = format!("{what} is sent although {rule}");
            self.object(what);
        }
    }

    /// I4: whatever stands before it on its key has come to its end.
    fn order(&mut self, at: RoutePartition, delivery: &Delivery, what: &str, on_doubt: OnDoubt) {
        let messages = self.messages.get(&at).map_or(&[][..], |m| m);
        let Some(this) = messages.iter().find(|m| m.id == delivery.id) else {
            return self.object(format!("{what} is no message of the input"));
        };
        let Some(key) = this.key else { return };
        let held = messages
            .iter()
            .filter(|m| on_doubt == OnDoubt::Hold && m.key == Some(key) && m.id != this.id)
            .find(|m| self.is_parked((at, m.id)));
        let before = messages
            .iter()
            .take_while(|m| m.offset < this.offset && delivery.round == 1);
        let mut before = before.filter(|m| m.key == Some(key));
        // A later round goes at its own time.
        let open = held.or_else(|| before.find(|m| !self.once.contains(&(at, m.id))));
        if let Some(open) = open {
            let what = format!(
                "{what} at {} overtakes {} at {} (I4)",
                this.offset, open.id, open.offset
            );
            self.object(what);
        }
    }

    fn is_parked(&self, name: Name) -> bool {
        self.finished.get(&name) == Some(&FinishedState::Parked) && !self.reopened.contains(&name)
    }

    /// A life has ended, by a kill or in order.
    pub fn ended(&mut self) {
        self.killed_in_flight += self.truth.open_intents().count();
        self.lives_ended += 1;
        self.in_flight = 0;
        for server in &mut self.servers {
            server.in_flight = 0;
        }
    }

    /// Messages that have not come to an end, but for those whose key a doubt holds.
    pub fn unfinished(&self) -> Vec<(RoutePartition, &Message)> {
        let mut left = Vec::new();
        for (at, messages) in &self.messages {
            let hold = self.scenario.partners[self.server_of(*at)].on_doubt == OnDoubt::Hold;
            let parked = messages.iter().filter(|m| hold && self.is_parked((*at, m.id)));
            let held: HashSet<_> = parked.filter_map(|m| m.key).collect();
            let open = messages.iter().filter(|m| !self.done.contains(&(*at, m.id)));
            let free = open.filter(|m| m.key.is_none_or(|key| !held.contains(&key)));
            left.extend(free.map(|m| (*at, m)));
        }
        left
    }

    /// I5: over all lives.
    pub fn windows(&mut self) {
        let mut objections = Vec::new();
        for (draw, starts) in &self.starts {
            let rates = self.limits.first().map_or(0, |l| l.1.rates.len());
            for rate in 0..rates {
                for (i, late) in starts.iter().enumerate() {
                    let Some((count, window)) = self.allowed(rate, *late) else {
                        continue;
                    };
                    let n = count as usize;
                    if i < n {
                        continue;
                    }
                    let apart = late.since(starts[i - n]);
                    if apart < window {
                        objections.push(format!(
                            "{} starts within {apart:?} at {late} where {count}/{window:?} are allowed ({draw:?}, I5)",
                            n + 1
                        ));
                        break;
                    }
                }
            }
        }
        objections.into_iter().for_each(|o| self.object(o));
    }

    /// What a rate allowed in the window that ends at this time: the most that held in it.
    fn allowed(&self, rate: usize, at: Time) -> Option<(u64, Duration)> {
        let of = |limit: &LimitConfig| match limit.rates.get(rate) {
            Some(Rate::Sliding { count, window }) => Some((*count, *window)),
            _ => None,
        };
        let window = of(&self.limits.first()?.1)?.1;
        let from = at.minus(window);
        let ends = self.limits.iter().skip(1).map(|l| l.0).chain([Time::NEVER]);
        let held = self
            .limits
            .iter()
            .zip(ends)
            .filter(|((begin, _), end)| *begin <= at && *end >= from);
        held.filter_map(|((_, limit), _)| of(limit)).max_by_key(|l| l.0)
    }

    /// At the end: what the ledger calls delivered was taken once.
    pub fn effects(&mut self) {
        let mut objections = Vec::new();
        let in_doubt = |(at, id): Name| {
            let known = self.truth.partitions.get(&at).and_then(|p| p.messages.get(&id));
            known.is_some_and(|m| matches!(m.state, MessageState::Open { .. }))
        };
        for (at, messages) in &self.messages {
            let server = &self.servers[self.server_of(*at)];
            for message in messages {
                let (name, state) = ((*at, message.id), self.finished.get(&(*at, message.id)));
                let round = self.last_round.get(&name).copied().unwrap_or(1);
                let applied = server.applied(name, round);
                let fits = match state {
                    // Or, under the key of the round before, in that one.
                    Some(FinishedState::Delivered) => {
                        applied == 1 || (applied == 0 && server.has(name, round))
                    }
                    // In doubt still, behind a key that another doubt holds: copied, or of a later round.
                    _ if in_doubt(name) => applied <= 1,
                    // An operator may have called delivered what was in doubt.
                    Some(FinishedState::Parked | FinishedState::Marked) => applied <= 1,
                    None if self.forgotten.contains(&name) => applied <= 1,
                    // Behind a key that a doubt holds: not sent since.
                    None if self.again.contains(&name) => applied <= 1,
                    _ => applied == 0,
                };
                if !fits {
                    objections.push(format!("{name:?} is {state:?} and was taken {applied} times"));
                }
            }
        }
        objections.into_iter().for_each(|o| self.object(o));
    }

    /// I3: a partner that only hangs costs no more than this many parked messages a life, beside those that were out
    /// at a kill.
    pub fn parked(&mut self) {
        let parked: u64 = self.truth.partitions.values().map(|p| p.counts.parked).sum();
        let concurrency: usize = self.scenario.partners.iter().map(|p| p.concurrency).sum();
        let bound = self.killed_in_flight + self.opened + 2 * concurrency * (self.lives_ended + 1);
        if self.scenario.hangs.is_some() && parked as usize > bound {
            self.object(format!("{parked} parked, at most {bound} may be (I3)"));
        }
    }
}

/// Applies what a fold says of finished messages.
pub fn take(finished: &mut HashMap<Name, FinishedState>, ops: Vec<StoreOp>) {
    for op in ops {
        match op {
            StoreOp::Finished(f) => drop(finished.insert((f.at, f.id), f.state)),
            StoreOp::Forget { at, id } => drop(finished.remove(&(at, id))),
        }
    }
}

/// The entries of a lane from an offset on.
fn entries(log: &FakeLog, lane: PartitionId, from: Offset) -> Vec<(Offset, Entry)> {
    let mut records = Vec::new();
    let mut at = from;
    let end = log.bounds(lane).expect("the lane").next;
    while at < end {
        at = log
            .read(lane, at, usize::MAX, &mut records)
            .expect("the lane can be read");
    }
    let decoded =
        |r: crate::core::record::Record| (r.offset, codec::decode(&r.value).expect("a valid entry"));
    records.into_iter().map(decoded).collect()
}
