//! What an observer who never dies knows of a history, and what he objects to.

use super::partner::Server;
use super::scenario::Scenario;
use crate::clock::simulated;
use crate::config::OnDoubt;
use crate::config::model::{DoubtPolicy, Rate};
use crate::core::ledger::codec;
use crate::core::ledger::entry::{Body, BudgetDraw, Entry, OutcomeKind};
use crate::core::ledger::fold::{FinishedState, LaneState, MessageState, StoreOp};
use crate::core::turnstile::Draws;
use crate::core::types::{KeyHash, LifeId, MessageId, Offset, RoutePartition, Time};
use crate::intake::fake_log::FakeLog;
use crate::log::{Log, PartitionId};
use crate::sink::Delivery;
use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use tokio::sync::Notify;

/// A message of the input, where it stands first.
#[derive(Clone, Debug)]
pub struct Message {
    pub id: MessageId,
    pub key: Option<KeyHash>,
    pub offset: Offset,
}

type Name = (RoutePartition, MessageId);

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
            finished: HashMap::new(),
            intents: HashMap::new(),
            first: HashMap::new(),
            messages: BTreeMap::new(),
            servers: scenario.partners.iter().map(|_| Server::default()).collect(),
            starts: BTreeMap::new(),
            in_flight: 0,
            killed_in_flight: 0,
            lives_ended: 0,
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

    /// New entries are durable.
    pub fn persisted(&mut self, log: &FakeLog) {
        for (at, entry) in entries(log, self.lane, self.truth.next) {
            let mut ops = Vec::new();
            if let Err(e) = self.truth.apply(at, &entry, &mut ops) {
                self.object(format!("the lane cannot be folded: {e}"));
            }
            take(&mut self.finished, ops);
            self.entry(&entry);
        }
    }

    fn entry(&mut self, entry: &Entry) {
        match &entry.body {
            Body::Intent(i) => *self.intents.entry((i.at, i.id)).or_default() += 1,
            Body::Outcome(o) => {
                let (server, key) = (self.server_of(o.at), (o.at, o.id));
                // A look-up that says "never seen" settles what was not known before.
                let taken = match self.scenario.partners[server].doubt.crash {
                    DoubtPolicy::Verify => self.servers[server].took(key),
                    _ => self.servers[server].may_have(key),
                };
                match &o.kind {
                    OutcomeKind::Delivered { .. } if !self.servers[server].has(key) => {
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
        if let Some(state) = self.finished.get(&name).filter(|s| **s != FinishedState::Waiting) {
            self.object(format!("{what} is sent although it is {state:?} (I2)"));
        }
        let earlier = &self.servers[server];
        match config.doubt.crash {
            DoubtPolicy::Park if earlier.may_have(name) => {
                self.object(format!("{what} is sent, the partner may have it already (I2)"));
            }
            DoubtPolicy::Verify if earlier.took(name) => {
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

    /// I4: whatever stands before it on its key has come to its end.
    fn order(&mut self, at: RoutePartition, delivery: &Delivery, what: &str, on_doubt: OnDoubt) {
        let messages = self.messages.get(&at).map_or(&[][..], |m| m);
        let Some(this) = messages.iter().find(|m| m.id == delivery.id) else {
            return self.object(format!("{what} is no message of the input"));
        };
        let Some(key) = this.key else { return };
        let before = messages.iter().take_while(|m| m.offset < this.offset);
        let open = before.filter(|m| m.key == Some(key)).find(|m| {
            let state = self.finished.get(&(at, m.id));
            match state {
                None | Some(FinishedState::Waiting) => true,
                Some(FinishedState::Parked) => on_doubt == OnDoubt::Hold,
                Some(_) => false,
            }
        });
        if let Some(open) = open {
            let what = format!(
                "{what} at {} overtakes {} at {} (I4)",
                this.offset, open.id, open.offset
            );
            self.object(what);
        }
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
            let mut held = std::collections::HashSet::new();
            for message in messages {
                match self.finished.get(&(*at, message.id)) {
                    Some(FinishedState::Parked) if hold => drop(held.insert(message.key)),
                    None | Some(FinishedState::Waiting) => {
                        if message.key.is_none() || !held.contains(&message.key) {
                            left.push((*at, message));
                        }
                    }
                    Some(_) => {}
                }
            }
        }
        left
    }

    /// I5: over all lives.
    pub fn windows(&mut self) {
        let Some(limit) = self.scenario.limit.clone() else {
            return;
        };
        let mut objections = Vec::new();
        for (draw, starts) in &self.starts {
            for rate in &limit.rates {
                let Rate::Sliding { count, window } = rate else {
                    continue;
                };
                let n = *count as usize;
                for (i, late) in starts.iter().enumerate().skip(n) {
                    let apart = late.since(starts[i - n]);
                    if apart < *window {
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

    /// At the end: what the ledger calls delivered was taken once.
    pub fn effects(&mut self) {
        let mut objections = Vec::new();
        for (at, messages) in &self.messages {
            let server = &self.servers[self.server_of(*at)];
            for message in messages {
                let (name, state) = ((*at, message.id), self.finished.get(&(*at, message.id)));
                let applied = server.applied(name);
                let fits = match state {
                    Some(FinishedState::Delivered) => applied == 1,
                    Some(FinishedState::Parked) => applied <= 1,
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
        let bound = self.killed_in_flight + 2 * concurrency * (self.lives_ended + 1);
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
pub fn entries(log: &FakeLog, lane: PartitionId, from: Offset) -> Vec<(Offset, Entry)> {
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
