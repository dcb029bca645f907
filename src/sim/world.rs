//! The lives of a simulated node, one after the other, over what outlives them.

use super::disk::Disk;
use super::operator::{self, Carried, Operator, Places};
use super::oracle::{self, Facts, Message};
use super::partner::{Mood, SimSink};
use super::scenario::Scenario;
use crate::actors::context::{Approach, PartnerContext, RouteContext, RouteFigures};
use crate::actors::gate::{NodeCap, PartnerGate};
use crate::actors::lifeline::Lifeline;
use crate::actors::limiter::{self, RateLimiterActor};
use crate::actors::lines::LineRules;
use crate::actors::partition::{
    AreYouIdle, Drain, LoadError, Loaded, PartitionActor, PartitionParts, PartitionSettings, Payloads,
    Remembered, Start, Stop, from_topic,
};
use crate::clock::{Clock, simulated};
use crate::config::{Config, IdMissing, IdSource, KeyMissing, KeySource};
use crate::core::breaker::BreakerSettings;
use crate::core::flood::FloodGuard;
use crate::core::hosts::Hosts;
use crate::core::ledger::codec;
use crate::core::ledger::entry::{Body, BudgetDraw, Entry, Genesis};
use crate::core::ledger::fold::{self, FinishedState, LaneState, MessageState};
use crate::core::limiter::BudgetTable;
use crate::core::message_id::{IdScope, budget_by};
use crate::core::ranges::RangeSet;
use crate::core::record::Record;
use crate::core::resolve::{BudgetRule, Resolved, Resolver, Rules, Share, Skips};
use crate::core::turnstile::Turnstile;
use crate::core::types::{LifeId, MessageId, Offset, RouteId, RoutePartition, Tenure, Time, TopicId};
use crate::intake::fake_log::FakeLog;
use crate::ledger::checkpoint;
use crate::ledger::lane::{Lane, LanePort};
use crate::ledger::payload;
use crate::log::{Batch, Log, PartitionId, TopicMeta, TopicSpec};
use crate::memory::MemoryShare;
use actix::prelude::*;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hashbrown::HashMap;
use parking_lot::Mutex;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// A budget that a partner's requests draw from, as the partner counts it.
#[derive(Clone)]
pub struct Draw {
    pub budget: u64,
    pub split: bool,
}

impl Draw {
    pub fn of(&self, value: &[u8]) -> BudgetDraw {
        let app = value.iter().position(|b| *b == b'A').map(|at| &value[at..at + 2]);
        BudgetDraw {
            budget: self.budget,
            by: if self.split {
                budget_by(app.unwrap_or_default())
            } else {
                0
            },
        }
    }
}

/// A partition of a partner's route.
pub fn at(partner: usize, partition: u32) -> RoutePartition {
    RoutePartition {
        route: RouteId(partner as u64),
        partition,
    }
}

/// How a life goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Life {
    /// Until it is killed, or stopped in order at some time.
    Short,
    /// Partners become well; until nothing is left to do.
    Last,
    /// Behind the last one, from the first record again: nothing is left to be sent.
    Again,
}

/// Everything must have come to its end so long after the partners are well.
const PATIENCE: Duration = Duration::from_secs(1_200);

/// See the module.
pub struct World {
    facts: Arc<Mutex<Facts>>,
    log: FakeLog,
    topic: TopicMeta,
    written: u64,
    panics: u64,
    /// What a record is, by partner and partition.
    resolvers: Vec<Vec<Resolver>>,
    metrics: Vec<crate::telemetry::metrics::PartnerMetrics>,
    ledger: crate::config::LedgerConfig,
}

/// What the fold of one life knows, and the IDs it has finished.
#[derive(Default)]
pub struct Memory {
    pub state: Mutex<LaneState>,
    pub finished: Mutex<HashMap<(RoutePartition, MessageId), FinishedState>>,
    facts: Option<Arc<Mutex<Facts>>>,
}

impl Memory {
    fn fails(&self) -> bool {
        self.facts
            .as_ref()
            .is_some_and(|facts| facts.lock().rng.u8(0..60) == 0)
    }
}

impl Remembered for Memory {
    fn look_up(
        &self,
        at: RoutePartition,
        ids: &[MessageId],
        out: &mut Vec<Option<FinishedState>>,
    ) -> Result<(), String> {
        if self.fails() {
            return Err("simulated".into());
        }
        let finished = self.finished.lock();
        out.extend(ids.iter().map(|id| finished.get(&(at, *id)).copied()));
        Ok(())
    }

    fn has_rounds(&self, at: RoutePartition) -> bool {
        let state = self.state.lock();
        state.partitions.get(&at).is_some_and(|p| !p.rounds.is_empty())
    }

    fn next_round(&self, at: RoutePartition, id: MessageId) -> u32 {
        let state = self.state.lock();
        state.partitions.get(&at).map_or(1, |p| p.next_round(&id))
    }

    fn unfinished(&self, at: RoutePartition, ids: &[MessageId]) -> Vec<Option<fold::Message>> {
        self.state.lock().unfinished(at, ids)
    }
}

struct Payload {
    log: Disk,
    memory: Arc<Memory>,
    lane: PartitionId,
    input: PartitionId,
}

impl Payloads for Payload {
    fn load(&self, at: RoutePartition, id: MessageId, offset: Offset) -> Result<Loaded, LoadError> {
        if self.memory.fails() {
            return Err(LoadError::Failed("simulated".into()));
        }
        let message = |state: &LaneState| state.partitions.get(&at)?.messages.get(&id)?.payload;
        let Some((ledger, _)) = message(&self.memory.state.lock()) else {
            let record = from_topic(&self.log, self.input, offset)?;
            return Ok(Loaded {
                record,
                idempotency_key: None,
            });
        };
        let kept = payload::kept(&self.log.kept, self.lane, ledger)
            .map_err(|e| LoadError::Failed(e.to_string()))?
            .kept;
        Ok(Loaded {
            record: Record {
                key: kept.record_key,
                value: kept.value,
                headers: kept.headers,
                timestamp: kept.timestamp,
                offset,
            },
            idempotency_key: Some(kept.idempotency_key)
                .filter(|k| !k.is_empty())
                .map(Into::into),
        })
    }
}

/// One partition of one route, in one life.
pub struct Place {
    pub route: Rc<RouteContext<SimSink>>,
    /// Number of the last one that was built.
    pub number: u64,
    /// None while another one is being built.
    pub actor: Option<Addr<PartitionActor<SimSink>>>,
    pub make: Rc<dyn Fn(Start) -> PartitionParts<SimSink>>,
}

/// The actors of one life.
struct Tree {
    operator: RefCell<Option<Operator>>,
    lane: Lane,
    port: Rc<LanePort>,
    gates: Vec<Rc<PartnerGate>>,
    keepers: Vec<Addr<RateLimiterActor>>,
    places: Places,
    memory: Vec<MemoryShare>,
    figures: Vec<Arc<RouteFigures>>,
}

impl Tree {
    /// Why partitions may hand nothing out: no actor, a route that stands, no room on the way to the gate, requests
    /// that have not come back.
    fn stands(&self) -> Vec<(bool, bool, bool, usize)> {
        let places = self.places.borrow();
        let of = |p: &Place| {
            let stopped = p.route.flood.borrow().stopped().is_some();
            let on_wire = p.route.on_wire.borrow().len();
            (p.actor.is_some(), stopped, p.route.approach.has_room(), on_wire)
        };
        places.iter().map(of).collect()
    }
}

const SPEC: TopicSpec = TopicSpec {
    partitions: 1,
    retention: None,
    retention_bytes: None,
};

impl World {
    pub fn new(scenario: Scenario) -> Self {
        let log = FakeLog::default();
        let lane = log.create_topic("__ledger", &SPEC).expect("a topic").partitions[0];
        let spec = TopicSpec {
            partitions: scenario.partitions,
            ..SPEC
        };
        let topic = log.create_topic("t", &spec).expect("a topic");
        let genesis = Entry {
            tenure: Tenure(0),
            body: Body::Genesis(Genesis {
                ledger: 7,
                group: "embedded".into(),
                lanes: 1,
                lane: 0,
                recipe: 1,
            }),
        };
        let mut bytes = Vec::new();
        codec::encode(&genesis, &mut bytes);
        let mut batch = Batch::new();
        batch.push(lane, Time(1), None, &bytes, &[]);
        log.append(batch, Box::new(|r| drop(r.expect("appended"))));
        let mut facts = Facts::new(scenario, lane);
        facts.persisted(&log);
        count_panics();
        let scenario = facts.scenario.clone();
        let of = |partner| {
            (0..scenario.partitions)
                .map(|p| Self::resolver(&scenario, partner, p))
                .collect()
        };
        let partners = 0..scenario.partners.len();
        Self {
            facts: Arc::new(Mutex::new(facts)),
            log,
            topic,
            written: 0,
            panics: PANICS.get(),
            resolvers: partners.clone().map(of).collect(),
            metrics: partners
                .map(|n| METRICS.with(|m| m.partner(&format!("p{n}"))))
                .collect(),
            ledger: LEDGER.with(Clone::clone),
        }
    }

    fn resolver(scenario: &Scenario, partner: usize, partition: u32) -> Resolver {
        let name = &scenario.partners[partner].name;
        let budget = |limit: &crate::config::LimitConfig| BudgetRule {
            budget: scenario.budget(partner),
            by: limit.by.clone(),
        };
        let rules = Rules {
            id: vec![IdSource::Json("/id".into())],
            key: KeySource::Json("/key".into()),
            key_missing: KeyMissing::Unordered,
            id_missing: IdMissing::Dead,
            when: Some("value.for != 'nobody'".into()),
            share: Share::All,
            budgets: scenario.limit.iter().map(budget).collect(),
        };
        let scope = IdScope::new("t", TopicId(2), partition, name);
        Resolver::try_new(scope, "t", partition, rules).expect("rules that can be compiled")
    }

    /// Appends records to the topic: new ones, and some that were there before.
    fn write(&mut self, records: u64) {
        let facts = self.facts.clone();
        let facts = &mut *facts.lock();
        let scenario = facts.scenario.clone();
        for _ in 0..records {
            // Some of them come again: any, or one that was forgotten.
            let again = match facts.rng.u8(0..8) {
                0 if self.written > 0 => Some(facts.rng.u64(0..self.written)),
                1 | 2 => facts.any_forgotten(),
                _ => None,
            };
            let n = again.unwrap_or_else(|| {
                self.written += 1;
                self.written - 1
            });
            // What a message is follows from its number: a second record of it is the same.
            let mut of = fastrand::Rng::with_seed(scenario.seed.wrapping_mul(1_000) + n);
            let key_text = match of.u8(0..6) {
                0 => None,
                _ => Some(format!("k{}", of.u64(0..scenario.keys))),
            };
            let key = key_text
                .iter()
                .map(|key| format!(r#","key":"{key}""#))
                .collect::<String>();
            let end = ["\"}", "\"}", "\"}", "\"}", "\"}", "broken\"}"][of.usize(0..6)];
            let who = if of.u8(0..12) == 0 { "nobody" } else { "all" };
            let id = if of.u8(0..20) == 0 {
                "null".into()
            } else {
                format!("{n}")
            };
            let value = format!(
                r#"{{"id":{id}{key},"app":"A{}","for":"{who}","x":"{end}"#,
                of.u8(0..3)
            );
            let partition = (n % u64::from(scenario.partitions)) as u32;
            let input = self.topic.partitions[partition as usize];
            let mut batch = Batch::new();
            batch.push(input, Time(1), None, value.as_bytes(), &[]);
            let offset = self.log.bounds(input).expect("the topic").next;
            self.log.append(batch, Box::new(|r| drop(r.expect("appended"))));
            let record = Record {
                value: value.clone().into_bytes().into(),
                offset,
                ..Record::default()
            };
            for partner in 0..scenario.partners.len() {
                let resolved = self.resolvers[partner][partition as usize].resolve(&record);
                let (Resolved::Message(known) | Resolved::Invalid(known, _)) = resolved else {
                    continue;
                };
                facts.written(at(partner, partition), known.id);
                let messages = facts.messages.entry(at(partner, partition)).or_default();
                if messages.iter().all(|m| m.id != known.id) {
                    messages.push(Message {
                        id: known.id,
                        number: n,
                        key: known.key,
                        key_text: key_text.clone(),
                        readable: known.readable,
                        offset,
                    });
                }
            }
        }
    }

    /// The fold, read again: from the start to a checkpoint somewhere, and from there to the end.
    fn restored(&self) -> Memory {
        let (mut state, mut finished) = (LaneState::default(), HashMap::new());
        let facts = &mut *self.facts.lock();
        let pause = facts.rng.usize(0..facts.entries.len());
        for (n, (offset, entry)) in facts.entries.iter().enumerate() {
            let mut ops = Vec::new();
            state.apply(*offset, entry, &mut ops).expect("a valid lane");
            oracle::take(&mut finished, ops);
            if n == pause {
                let bytes = checkpoint::encode(&state, 7, 0);
                let read = checkpoint::decode(&bytes.into(), "simulated".into());
                state = read.expect("a valid checkpoint").state;
            }
        }
        if state != facts.truth {
            facts.object("a fold from a checkpoint differs from the one that was never stopped".into());
        }
        Memory {
            state: Mutex::new(state),
            finished: Mutex::new(finished),
            facts: Some(self.facts.clone()),
        }
    }

    fn start(&self, kind: Life) -> Tree {
        let (scenario, life) = {
            let facts = &mut *self.facts.lock();
            facts.life += 1;
            facts.fuse = match kind {
                Life::Short => facts.rng.u64(1..400),
                _ => u64::MAX,
            };
            (facts.scenario.clone(), facts.life)
        };
        let clock = Clock::start();
        let memory = Arc::new(self.restored());
        let disk = Disk {
            kept: self.log.clone(),
            facts: self.facts.clone(),
            life,
            turn: Arc::default(),
        };
        let log: Arc<dyn Log> = Arc::new(disk.clone());
        let lane_at = self.facts.lock().lane;
        let fatal = Box::new(|error| panic!("the log failed: {error}"));
        let (lane, mut feed) = Lane::new(log.clone(), lane_at, Tenure(0), LifeId(life), clock, fatal);
        let (told, effects) = tokio::sync::mpsc::unbounded_channel();
        let (folding, folded) = (memory.clone(), lane.clone());
        tokio::task::spawn_local(async move {
            while let Some(committed) = feed.recv().await {
                let late = folding
                    .facts
                    .as_ref()
                    .map_or(0, |facts| facts.lock().rng.u64(0..8_000));
                tokio::time::sleep(Duration::from_micros(late.saturating_sub(5_000))).await;
                let mut effects = Vec::new();
                for (n, entry) in committed.entries.iter().enumerate() {
                    let (mut ops, at) = (Vec::new(), committed.base + n as u64);
                    folding
                        .state
                        .lock()
                        .apply_live(at, entry, &mut ops, &mut effects)
                        .expect("a valid lane");
                    oracle::take(&mut folding.finished.lock(), ops);
                }
                let upto = folding.state.lock().next;
                // Nobody listens any more only if the life is ending.
                let _ = told.send((upto, effects));
                committed.folded(&folded);
            }
        });
        let port = LanePort::open(lane.clone());
        let budgets = Rc::new(RefCell::new(BudgetTable::new()));
        let cap = NodeCap::new(scenario.node_cap);
        let shares = MemoryShare::divide(scenario.memory, scenario.partners.len());
        let mut tree = Tree {
            lane,
            port: port.clone(),
            gates: Vec::new(),
            keepers: Vec::new(),
            operator: RefCell::default(),
            places: Places::default(),
            memory: shares.clone(),
            figures: Vec::new(),
        };
        for (n, config) in scenario.partners.iter().enumerate() {
            let gate = self.gate(&scenario, n, clock, &budgets, &memory, cap.clone());
            let draw = |limit: &crate::config::LimitConfig| Draw {
                budget: scenario.budget(n),
                split: limit.by.is_some(),
            };
            let sink = SimSink {
                facts: self.facts.clone(),
                life,
                partner: n,
                draws: scenario.limit.iter().map(draw).collect(),
            };
            let partner = Rc::new(PartnerContext {
                hosts: RefCell::new(Hosts::new(crate::core::breaker::BreakerSettings::of(config))),
                name: config.name.as_str().into(),
                config: Arc::new(config.clone()),
                ledger: self.ledger.clone(),
                sink,
                port: port.clone(),
                gate: gate.clone(),
                memory: shares[n].clone(),
                metrics: self.metrics[n].clone(),
                clock,
            });
            tree.keepers
                .push(RateLimiterActor::new(gate.clone(), clock, Lifeline::new(|_| {})).start());
            tree.gates.push(gate);
            let stopped = memory
                .state
                .lock()
                .stopped
                .get(&at(n, 0).route)
                .map(|p| p.reason.clone());
            let flood = FloodGuard::restored(config.flood.dead_in_a_row, stopped);
            let flood = Rc::new(RefCell::new(flood));
            for (partition, input) in self.topic.partitions.iter().enumerate() {
                let at = at(n, partition as u32);
                let start = Start::of(&memory.state.lock(), at, config.on_doubt);
                let start = match kind {
                    // As after a `seek` to the beginning: the IDs alone say what is done.
                    Life::Again => Start {
                        fresh: true,
                        position: 0,
                        finished: RangeSet::default(),
                        high_water: 0,
                        ..start
                    },
                    _ => start,
                };
                let route = RouteContext {
                    at,
                    topic: "t".into(),
                    scope: IdScope::new("t", TopicId(2), partition as u32, &config.name),
                    queue: partition as u32,
                    approach: Approach::new(scenario.ahead),
                    partner: partner.clone(),
                    current: Default::default(),
                    on_wire: RefCell::default(),
                    orders: Rc::default(),
                    doubts: RefCell::default(),
                    flood: flood.clone(),
                    lines: LineRules {
                        sample: 0,
                        key: KeySource::Record,
                        id: vec![IdSource::Hash],
                    },
                    figures: Arc::new(RouteFigures::default()),
                };
                tree.figures.push(route.figures.clone());
                let route = Rc::new(route);
                let skips = Skips::of(
                    memory.state.lock().skips.values(),
                    "t",
                    &config.name,
                    &route.scope,
                );
                route.orders.set_skips(0, Arc::new(skips));
                let (input, scenario, disk) = (*input, scenario.clone(), disk.clone());
                let (of, log, memory) = (route.clone(), log.clone(), memory.clone());
                let make = move |start| PartitionParts {
                    route: of.clone(),
                    log: log.clone(),
                    input,
                    resolve: Box::new(Self::resolver(&scenario, n, partition as u32)),
                    remembered: memory.clone(),
                    payloads: Arc::new(Payload {
                        log: disk.clone(),
                        memory: memory.clone(),
                        lane: lane_at,
                        input,
                    }),
                    start,
                    settings: PartitionSettings {
                        busy_keys: scenario.busy_keys,
                        ahead: scenario.ahead,
                        read_chunk: 4_096,
                        window: scenario.window,
                        ranges: scenario.ranges,
                        tick: scenario.tick,
                        position_every: scenario.position_every,
                        waiting_after: scenario.waiting_after,
                        rest_after: scenario.rest_after,
                        stands_after: crate::core::waits::STANDS_AFTER,
                        backlog: 10_000,
                        backlog_bytes: 64 << 20,
                    },
                    lifeline: Lifeline::new(|_| {}),
                };
                let actor = PartitionActor::new(make(start)).start();
                tree.places.borrow_mut().push(Place {
                    route,
                    number: 0,
                    actor: Some(actor),
                    make: Rc::new(make),
                });
            }
        }
        let carried = Rc::new(Carried::default());
        let (facts, places, gates) = (self.facts.clone(), tree.places.clone(), tree.gates.clone());
        tokio::task::spawn_local(operator::carry(effects, facts, places, gates, carried.clone()));
        *tree.operator.borrow_mut() = Some(Operator {
            facts: self.facts.clone(),
            memory,
            log: self.log.clone(),
            places: tree.places.clone(),
            budgets,
            port: LanePort::open(tree.lane.clone()),
            carried,
            clock,
        });
        tree
    }

    fn gate(
        &self,
        scenario: &Scenario,
        partner: usize,
        clock: Clock,
        budgets: &Rc<RefCell<BudgetTable>>,
        memory: &Memory,
        cap: Arc<NodeCap>,
    ) -> Rc<PartnerGate> {
        let (now, config) = (clock.now(), &scenario.partners[partner]);
        let limit = self.facts.lock().limits.last().map(|l| l.1.clone());
        if let Some(limit) = &limit {
            let (table, budget) = (&mut *budgets.borrow_mut(), scenario.budget(partner));
            if table.get_mut(budget).is_none() {
                let _ = table.set(budget, limit, now).expect("a limit that can be set");
                table.set_shared(budget, scenario.shared && scenario.partners.len() > 1);
                table.restore(budget, &memory.state.lock().used, now);
            }
        }
        let mut turnstile = Turnstile::new(partner as u32, BreakerSettings::of(config), now);
        if memory.state.lock().paused.contains_key(&config.name) {
            turnstile.pause(now);
        }
        let name = config.name.as_str().into();
        PartnerGate::new(
            name,
            turnstile,
            budgets.clone(),
            clock,
            Duration::from_millis(4),
            256,
            cap,
        )
    }

    /// All lives of the history.
    pub async fn run(&mut self) {
        let lives = self.facts.lock().scenario.lives;
        for n in 0..lives {
            let kind = if n + 1 == lives { Life::Last } else { Life::Short };
            self.live(kind).await;
        }
        self.live(Life::Again).await;
    }

    async fn live(&mut self, kind: Life) {
        let tasks = tokio::task::LocalSet::new();
        // Polled when it is woken itself, not at each turn of the tasks: that takes a fifth of a history's time.
        let mut one = FuturesUnordered::from_iter([self.one_life(kind)]);
        tasks.run_until(one.next()).await;
        drop(one);
        self.facts.lock().fuse = 0;
        // Whatever still ran ends here, and can do nothing any more.
        drop(tasks);
        let facts = &mut *self.facts.lock();
        facts.ended();
        if PANICS.get() > self.panics {
            self.panics = PANICS.get();
            facts.object("something panicked".into());
        }
        // Back only: a clock set forward while a node is down is time that has passed, for all that it can know.
        let most = facts.scenario.clock_set_back.as_micros() as i64;
        let by = if most > 0 { facts.rng.i64(0..most) } else { 0 };
        simulated::shift_wall(-by);
    }

    async fn one_life(&mut self, kind: Life) {
        let killed = self.facts.lock().killed.clone();
        let tree = self.start(kind);
        let began = simulated::now();
        let (hangs, total) = {
            let facts = &mut *self.facts.lock();
            let hangs = facts.scenario.hangs.filter(|_| kind != Life::Again);
            if kind == Life::Again {
                facts.servers.iter_mut().for_each(|s| s.mood = Mood::Healthy);
            }
            (hangs, facts.scenario.messages)
        };
        let (asked, forgotten) = (self.requests(), self.facts.lock().forgotten());
        self.facts.lock().mends = false;
        let operator = match tree.operator.borrow_mut().take() {
            Some(operator) if hangs.is_none() && kind != Life::Again => {
                Some(tokio::task::spawn_local(operator.work()))
            }
            _ => None,
        };
        loop {
            let wait = self.facts.lock().rng.u64(1..120);
            let wait = Duration::from_millis(if hangs.is_some() { wait * 20 } else { wait });
            tokio::select! {
                biased;
                () = killed.notified() => return,
                () = tokio::time::sleep(wait) => {}
            }
            let lived = simulated::now().since(began);
            let left = total.saturating_sub(self.written);
            let chunk = self.facts.lock().rng.u64(1..30).min(left);
            self.write(chunk);
            match kind {
                Life::Short => {
                    self.disturb(hangs.is_some());
                    let stop = self.facts.lock().rng.u8(0..40) == 0;
                    if stop {
                        if let Some(operator) = operator {
                            operator.abort();
                        }
                        return self.stop(&tree).await;
                    }
                }
                Life::Last => {
                    let ill = hangs.unwrap_or(Duration::from_millis(500));
                    if lived < ill {
                        self.disturb(hangs.is_some());
                        continue;
                    }
                    self.recover();
                    let over = left == 0 && self.facts.lock().unfinished().is_empty();
                    if over {
                        // The operator lets go on what he has paused last.
                        self.settled(&tree).await;
                        return;
                    }
                    if lived > ill + PATIENCE {
                        let facts = &mut *self.facts.lock();
                        let left = facts.unfinished();
                        let first = left
                            .first()
                            .map(|(at, m)| (*at, m, facts.finished.get(&(*at, m.id))));
                        let gates: Vec<_> = tree
                            .gates
                            .iter()
                            .map(|g| (g.waiting(), g.in_use(), g.ask_at()))
                            .collect();
                        let what = format!(
                            "{} messages never end, first {first:?}; {:?} {gates:?} {:?}",
                            left.len(),
                            tree.figures,
                            tree.stands()
                        );
                        return facts.object(what);
                    }
                }
                Life::Again => {
                    if lived > Duration::from_secs(1) {
                        // One that is not remembered may go again.
                        let sent = self.requests() - asked;
                        if sent > forgotten && self.facts.lock().unfinished().is_empty() {
                            self.facts
                                .lock()
                                .object(format!("{sent} finished messages are sent again (I2)"));
                        }
                        return;
                    }
                }
            }
        }
    }

    fn requests(&self) -> usize {
        self.facts
            .lock()
            .servers
            .iter()
            .map(super::partner::Server::total)
            .sum()
    }

    /// Something changes outside.
    fn disturb(&self, hangs: bool) {
        let facts = &mut *self.facts.lock();
        for n in 0..facts.servers.len() {
            if hangs {
                facts.servers[n].mood = Mood::Dead;
            } else if facts.rng.u8(0..4) == 0 {
                facts.servers[n].mood = Mood::any(&mut facts.rng);
            }
        }
        facts.full = facts.bad_disk && facts.rng.u8(0..10) == 0;
        if facts.scenario.forgets && facts.rng.bool() {
            facts.forget(&self.topic.partitions);
        }
    }

    fn recover(&self) {
        let facts = &mut *self.facts.lock();
        facts.full = false;
        facts.mends = true;
        facts.servers.iter_mut().for_each(|s| s.mood = Mood::Healthy);
    }

    /// Nothing is left to do: the position has passed everything, and nothing is held in memory.
    async fn settled(&self, tree: &Tree) {
        let mut idle = false;
        // A payload that cannot be read is tried again after five seconds, and may fail a few times.
        for _ in 0..200 {
            tokio::time::sleep(Duration::from_millis(200)).await;
            if std::mem::replace(&mut idle, self.is_idle(tree).await) {
                break;
            }
        }
        let facts = &mut *self.facts.lock();
        let holds = facts
            .scenario
            .partners
            .iter()
            .any(|p| p.on_doubt == crate::config::OnDoubt::Hold);
        if holds {
            return;
        }
        if !idle {
            let left: Vec<_> = facts
                .truth
                .messages()
                .filter(|(_, _, m)| matches!(m.state, MessageState::Later { .. }))
                .collect();
            let what = format!(
                "all is finished, yet a partition is not idle: {left:?} {:?}",
                tree.figures
            );
            facts.object(what);
        }
        for (at, messages) in facts.messages.clone() {
            let end = messages.last().map_or(0, |m| m.offset + 1);
            let position = facts.truth.partitions.get(&at).map_or(0, |p| p.position);
            if position < end {
                facts.object(format!(
                    "all is finished, yet the position of {at:?} is {position} of {end} (I1)"
                ));
            }
        }
        let held: u64 = tree.memory.iter().map(MemoryShare::held).sum();
        if held > 0 {
            facts.object(format!("all is finished, yet {held} bytes are held (I6)"));
        }
    }

    async fn is_idle(&self, tree: &Tree) -> bool {
        let places = tree.places.borrow().len();
        for number in 0..places {
            let actor = tree.places.borrow()[number].actor.clone();
            let Some(actor) = actor else { continue };
            if !actor.send(AreYouIdle).await.is_ok_and(|a| a.idle) {
                return false;
            }
        }
        true
    }

    /// Stops in order, if it is not killed on the way.
    async fn stop(&self, tree: &Tree) {
        let killed = self.facts.lock().killed.clone();
        let draining = async {
            for _ in 0..400 {
                let mut in_hand = 0;
                let places = tree.places.borrow().len();
                for number in 0..places {
                    let (route, actor) = {
                        let place = &tree.places.borrow()[number];
                        (place.route.clone(), place.actor.clone())
                    };
                    in_hand += match actor {
                        Some(actor) => actor.send(Drain).await.map_or(0, |d| d.in_hand),
                        None => {
                            route.partner.gate.close();
                            route.on_wire.borrow().len()
                        }
                    };
                }
                if in_hand == 0 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let actors: Vec<_> = tree
                .places
                .borrow()
                .iter()
                .filter_map(|p| p.actor.clone())
                .collect();
            for actor in actors {
                let _ = actor.send(Stop).await;
            }
            for keeper in &tree.keepers {
                let _ = keeper.send(limiter::Stop).await;
            }
            while tree.port.outcomes_durable() < tree.port.last_outcome() || tree.lane.in_log() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            biased;
            () = killed.notified() => return,
            ended = tokio::time::timeout(PATIENCE, draining) => if ended.is_err() {
                let (lane, port) = (&tree.lane, &tree.port);
                let left = (lane.in_log(), lane.backlog(), port.outcomes_durable(), port.last_outcome());
                self.facts.lock().object(format!("a stop never ends: {left:?}"));
            }
        }
        let facts = &mut *self.facts.lock();
        let parks = |at: RoutePartition| {
            facts.scenario.partners[at.route.0 as usize].doubt.crash == crate::config::DoubtPolicy::Park
        };
        let open: Vec<_> = {
            let own = |m: &crate::core::ledger::fold::Message| match m.state {
                MessageState::Open { life, .. } => life == LifeId(facts.life),
                _ => false,
            };
            let open = facts.truth.open_intents();
            open.filter(|(at, _, m)| parks(*at) && own(m)).collect()
        };
        if !open.is_empty() {
            let what = format!("intents are open after a stop in order (I3): {open:?}");
            facts.object(what);
        }
    }

    /// What is to be said in the end.
    pub fn verdict(self) -> Result<(u64, u64), String> {
        let facts = &mut *self.facts.lock();
        facts.windows();
        facts.parked();
        facts.effects();
        let delivered = facts.truth.partitions.values().map(|p| p.counts.delivered).sum();
        if facts.violations.is_empty() {
            return Ok((facts.trace(), delivered));
        }
        let violations = facts.violations.join("\n");
        Err(format!(
            "seed {}: {violations}\n{:#?}",
            facts.scenario.seed, facts.scenario
        ))
    }
}

thread_local! {
    static METRICS: crate::telemetry::metrics::Metrics = crate::telemetry::metrics::Metrics::new();
    static LEDGER: crate::config::LedgerConfig = Config::for_test("data").ledger;
    static PANICS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Counts panics of this thread: one in a task would only end that task.
fn count_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            before(info);
        }));
    });
}
