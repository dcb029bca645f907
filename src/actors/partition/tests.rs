//! The partition's actor with its key actors, gate and lane, over an in-memory log and a partner made of a closure.

use super::*;
use crate::actors::attempt;
use crate::actors::context::{Approach, PartnerContext, RouteFigures};
use crate::actors::effects::{carry_out, claim_here};
use crate::actors::gate::{NodeCap, PartnerGate};
use crate::actors::lines::LineRules;
use crate::actors::memory::MemoryShare;
use crate::clock::Clock;
use crate::config::{Config, IdSource, KeySource, LimitConfig, OnDoubt, PartnerConfig, Rate};
use crate::core::breaker::{BreakerSettings, Cause};
use crate::core::hosts::HostId;
use crate::core::ledger::entry::{BudgetDraw, SkipMatch, SkipRule};
use crate::core::ledger::fold::{FinishedState, LaneState, Message, MessageState, StoreOp};
use crate::core::limiter::BudgetTable;
use crate::core::mask::Masker;
use crate::core::message_id::IdScope;
use crate::core::record::Record;
use crate::core::resolve::Known;
use crate::core::turnstile::{Draws, Turnstile};
use crate::core::types::{LifeId, RouteId, RoutePartition, Tenure, TopicId};
use crate::intake::fake_log::FakeLog;
use crate::ledger::lane::{Lane, LanePort};
use crate::log::{Batch, TopicSpec};
use crate::sink::{
    Answer, AnswerDetail, Asked, Concerns, Delivery, Gate, Moved, Pace, PrepareError, Sent, Settling,
    Verdict, Verified,
};
use parking_lot::Mutex;
use std::cell::RefCell;
use std::sync::atomic::AtomicUsize;

const AT: RoutePartition = RoutePartition {
    route: RouteId(7),
    partition: 0,
};

/// The round of a request that was sent on.
const BEHIND: u32 = u32::MAX;

/// What the partner does with the n-th request of a message.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Reply {
    Take,
    TryLater,
    Refuse,
    /// Refused, which turns out to be in doubt once so many requests have come.
    DoubtAt(usize),
    Silence,
    /// Taken once so many requests have come.
    TakeAt(usize),
    /// 403.
    Forbid,
    /// 403 behind a redirect.
    ForbidBehind,
    /// 429 with a Retry-After of an hour, by a verdict rule for these.
    Wait(Option<Concerns>),
    PanicBefore,
    PanicAfter,
}

#[derive(Default)]
struct Partner {
    /// (key, number of the message, what was replied), in the order of arrival.
    seen: Vec<(String, u64, Reply)>,
    /// What was looked up, and how many requests had been seen by then.
    asked: Vec<(MessageId, usize)>,
}

#[derive(Clone)]
struct FakeSink {
    partner: Arc<Mutex<Partner>>,
    plan: Arc<dyn Fn(u64, u32) -> Reply + Send + Sync>,
    /// Attempts of which no request can be made.
    no_request: fn(u64, u32) -> bool,
    /// Connects that still fail for want of descriptors.
    short: Arc<AtomicUsize>,
    /// Connects to the dead host fail, and [`Reply::Wait`] comes, only once so many requests have come.
    silent_until: usize,
    /// Each of the first 600 connects takes so long: the partner closes its connections.
    connect_takes: Duration,
    /// Connects made.
    connects: Arc<AtomicUsize>,
}

impl Sink for FakeSink {
    type Request = Delivery;
    type Connection = ();

    fn prepare(&self, delivery: &Delivery) -> Result<Delivery, PrepareError> {
        let number = String::from_utf8_lossy(&delivery.record.value).parse().ok();
        match number {
            None => Err(PrepareError("empty".into())),
            Some(number) if (self.no_request)(number, delivery.attempt) => {
                Err(PrepareError("a secret is gone".into()))
            }
            Some(_) => Ok(delivery.clone()),
        }
    }

    fn prepare_moved(&self, delivery: &Delivery, _: &Moved) -> Result<Delivery, PrepareError> {
        Ok(Delivery {
            round: BEHIND,
            ..delivery.clone()
        })
    }

    /// Keys say for which host a record is, if they begin so.
    fn host(&self, delivery: &Delivery) -> Option<HostId> {
        let key = delivery.record.key.as_deref().unwrap_or_default();
        match key.get(..4)? {
            b"dead" => Some(HostId(1)),
            b"live" => Some(HostId(2)),
            _ => None,
        }
    }

    async fn connect(&self, delivery: &Delivery) -> Result<(), Answer> {
        let connects = self.connects.fetch_add(1, Ordering::Relaxed);
        // It must end where every slot is missed, too.
        if connects < 600 && self.connect_takes > Duration::ZERO {
            tokio::time::sleep(self.connect_takes).await;
        }
        if self.host(delivery) == Some(HostId(1)) {
            // Nobody answers the connect, while others are served.
            while self.partner.lock().seen.len() < self.silent_until {
                tokio::task::yield_now().await;
            }
            return Err(Answer {
                verdict: Verdict::TryLater,
                status: 0,
                detail: Some(Box::new(AnswerDetail::default())),
                pace: None,
                concerns: None,
            });
        }
        let still = self.short.load(Ordering::Relaxed);
        if still == 0 {
            return Ok(());
        }
        self.short.store(still - 1, Ordering::Relaxed);
        Err(Answer {
            verdict: Verdict::TryLater,
            status: 0,
            detail: Some(Box::new(AnswerDetail::default())),
            pace: None,
            concerns: Some(Concerns::Node),
        })
    }

    async fn send(&self, (): (), delivery: Delivery, gate: Gate<'_>) -> Sent {
        let number: u64 = String::from_utf8_lossy(&delivery.record.value)
            .parse()
            .expect("a number");
        let reply = (self.plan)(number, delivery.attempt);
        assert!(
            reply != Reply::PanicBefore,
            "a planned panic before the first byte"
        );
        if !gate() {
            return Sent::Stopped;
        }
        let key = String::from_utf8_lossy(delivery.record.key.as_deref().unwrap_or_default()).into_owned();
        self.partner.lock().seen.push((key, number, reply));
        tokio::task::yield_now().await;
        if reply == Reply::ForbidBehind && delivery.round != BEHIND {
            let answer = Answer {
                verdict: Verdict::TryLater,
                status: 307,
                detail: Some(Box::new(AnswerDetail::default())),
                pace: None,
                concerns: None,
            };
            let to = Moved {
                to: "/login".into(),
                followed: 1,
                unsure: None,
            };
            return Sent::Moved(answer, Box::new(to));
        }
        if let Reply::Wait(_) = reply {
            while self.partner.lock().seen.len() < self.silent_until {
                tokio::task::yield_now().await;
            }
        }
        if let Reply::TakeAt(requests) = reply {
            while self.partner.lock().seen.len() < requests {
                tokio::task::yield_now().await;
            }
        }
        assert!(reply != Reply::PanicAfter, "a planned panic after the first byte");
        if let Reply::DoubtAt(requests) = reply {
            let answer = |verdict| Answer {
                verdict,
                status: 422,
                detail: Some(Box::new(AnswerDetail::default())),
                pace: None,
                concerns: None,
            };
            let partner = self.partner.clone();
            let settling = Settling::new(async move {
                while partner.lock().seen.len() < requests {
                    tokio::task::yield_now().await;
                }
                answer(Verdict::Unknown(DoubtCause::Timeout))
            });
            return Sent::Settling(answer(Verdict::Refused), settling);
        }
        let (verdict, status) = match reply {
            Reply::Take | Reply::TakeAt(_) => (Verdict::Delivered, 200),
            Reply::TryLater => (Verdict::TryLater, 429),
            Reply::Refuse => (Verdict::Refused, 422),
            Reply::Forbid | Reply::ForbidBehind => (Verdict::Pause, 403),
            Reply::Wait(_) => (Verdict::TryLater, 429),
            _ => (Verdict::Unknown(DoubtCause::Timeout), 0),
        };
        let detail = (verdict != Verdict::Delivered).then(|| Box::new(AnswerDetail::default()));
        Sent::Answered(Answer {
            verdict,
            status,
            detail,
            pace: matches!(reply, Reply::Wait(_)).then(|| {
                Box::new(Pace {
                    retry_after: Some(Duration::from_secs(3_600)),
                    pause: Some(Duration::from_secs(3_600)),
                    ..Pace::default()
                })
            }),
            concerns: match reply {
                Reply::Wait(concerns) => concerns,
                _ => None,
            },
        })
    }

    fn look_up(&self, delivery: &Delivery) -> Result<Delivery, Verified> {
        Ok(delivery.clone())
    }

    async fn ask(&self, (): (), delivery: Delivery, gate: Gate<'_>) -> Asked {
        if !gate() {
            return Asked::Stopped;
        }
        let partner = &mut *self.partner.lock();
        partner.asked.push((delivery.id, partner.seen.len()));
        Asked::Answered {
            verified: Verified::Delivered,
            reached: true,
            pace: None,
        }
    }

    fn masker(&self) -> Rc<Masker> {
        Rc::default()
    }
}

/// Numbers from here on are no messages.
const INVALID: u64 = 1_000_000;

/// The plan's numbers from here on are filtered, where a test says so; or are another message.
#[derive(Clone, Copy, Default, PartialEq)]
enum Changed {
    #[default]
    No,
    Filtered,
    OtherId,
}

struct ByKey {
    changed: Changed,
    draws: Draws,
}
impl ByKey {
    fn id(value: &[u8]) -> MessageId {
        let mut id = [0; 16];
        let text = &value[..value.len().min(16)];
        id[..text.len()].copy_from_slice(text);
        MessageId(id)
    }
}

impl Resolve for ByKey {
    fn resolve(&mut self, record: &Record) -> Resolved {
        let key = record.key.as_ref().map(|k| crate::core::message_id::key_hash(k));
        if self.changed == Changed::Filtered {
            return Resolved::Filtered;
        }
        let mut id = ByKey::id(&record.value);
        if self.changed == Changed::OtherId {
            id.0[15] = 1;
        }
        let known = Known {
            id,
            key,
            readable: record.value.clone(),
        };
        match String::from_utf8_lossy(&record.value).parse::<u64>() {
            Ok(INVALID..) => Resolved::Invalid(known, "invalid: no ID".into()),
            _ => Resolved::Message(known),
        }
    }
    fn draws(&mut self, _: &Record) -> Draws {
        self.draws.clone()
    }
}

type Slow = (fn(&[MessageId]) -> bool, Box<dyn FnOnce() + Send>);

/// The fold of the lane and the IDs it has finished, as the `LedgerActor` keeps them.
#[derive(Default)]
struct Memory {
    state: Mutex<LaneState>,
    finished: Mutex<std::collections::HashMap<MessageId, FinishedState>>,
    /// What the next look-up of IDs like these does once it has its answer, and before it gives it.
    slow: Mutex<Option<Slow>>,
}

impl Remembered for Memory {
    fn look_up(
        &self,
        _: RoutePartition,
        ids: &[MessageId],
        out: &mut Vec<Option<FinishedState>>,
    ) -> Result<(), String> {
        let finished = self.finished.lock();
        out.extend(ids.iter().map(|id| finished.get(id).copied()));
        drop(finished);
        let slow = self.slow.lock().take_if(|(whose, _)| whose(ids));
        if let Some((_, slow)) = slow {
            slow();
        }
        Ok(())
    }

    fn next_round(&self, at: RoutePartition, id: MessageId) -> u32 {
        let state = self.state.lock();
        state.partitions.get(&at).map_or(1, |p| p.next_round(&id))
    }

    fn unfinished(&self, at: RoutePartition, ids: &[MessageId]) -> Vec<Option<Message>> {
        self.state.lock().unfinished(at, ids)
    }
}

struct FromTopic {
    log: Arc<dyn Log>,
    input: PartitionId,
    /// The record whose payload was given up.
    gone: Option<Offset>,
}

impl Payloads for FromTopic {
    fn load(&self, _: RoutePartition, _: MessageId, offset: Offset) -> Result<Loaded, LoadError> {
        if self.gone == Some(offset) {
            return Err(LoadError::Gone);
        }
        let record = from_topic(self.log.as_ref(), self.input, offset)?;
        Ok(Loaded {
            record,
            idempotency_key: None,
        })
    }
}

type Here = (Rc<RouteContext<FakeSink>>, Addr<PartitionActor<FakeSink>>);

/// A partition that runs.
struct Living {
    actor: Addr<PartitionActor<FakeSink>>,
    route: Rc<RouteContext<FakeSink>>,
    keeper: Addr<crate::actors::limiter::RateLimiterActor>,
    memory: Arc<Memory>,
}

impl Living {
    async fn is_idle(&self) -> bool {
        self.actor.send(AreYouIdle).await.expect("a living actor").idle
    }

    /// Waits until something holds.
    async fn until(&self, holds: impl Fn(&Self) -> bool) {
        while !holds(self) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Waits until nothing is left to do.
    async fn idle(&self) {
        while !self.is_idle().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn delivered(&self) -> u64 {
        let state = self.memory.state.lock();
        state.partitions.get(&AT).map_or(0, |p| p.counts.delivered)
    }

    fn pause(&self, pause: bool) {
        self.route.partner.gate.with(|turnstile, now| match pause {
            true => turnstile.pause(now),
            false => turnstile.resume(now),
        });
    }

    /// Writes an order's entries, and waits until they are folded and carried out. Says which the fold took: none was
    /// written for a message that is on the wire.
    async fn order(&self, body: Body) -> bool {
        let (told, offset) = tokio::sync::oneshot::channel();
        let told = Box::new(move |at| {
            let _ = told.send(at);
        });
        let port = &self.route.partner.port;
        match &body {
            Body::Command(c) => match c.action {
                Action::Mark { id, .. } => {
                    if self.route.on_wire.borrow().contains(&id) {
                        return false;
                    }
                    claim_here(&self.route.orders, port, id, body, told);
                }
                _ => drop(port.outcome_told(body, told)),
            },
            _ => drop(port.outcome_told(body, told)),
        }
        let offset = offset.await.expect("it becomes durable");
        self.until(|l| l.memory.state.lock().next > offset).await;
        tokio::task::yield_now().await;
        true
    }

    async fn command(&self, action: Action) -> bool {
        self.order(command(action)).await
    }

    async fn stop(self) -> u64 {
        self.actor.send(Stop).await.expect("a living actor");
        let stop = self.keeper.send(crate::actors::limiter::Stop);
        stop.await.expect("a living actor");
        // The next life begins from all that this one has said.
        let port = &self.route.partner.port;
        port.flush();
        let last = port.last_outcome();
        while port.folded() < last {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.route.partner.memory.held()
    }
}

fn command(action: Action) -> Body {
    Body::from(Command {
        offset: 1,
        when: Time(1),
        who: "kim".into(),
        why: String::new(),
        action,
    })
}

fn id_of(number: u64) -> MessageId {
    ByKey::id(number.to_string().as_bytes())
}

struct World {
    log: FakeLog,
    input: PartitionId,
    lane: PartitionId,
    memory: Arc<Memory>,
    partner: Arc<Mutex<Partner>>,
    lives: u64,
    waiting_after: Duration,
    rest_after: Duration,
    ranges: usize,
    /// The partner's share, and how many such shares the node has.
    share: u64,
    shares: usize,
    /// Numbers have sixteen digits, so that the tails of their IDs differ, as those of real ones do.
    long: bool,
    changed: Changed,
    fresh: bool,
    gone: Option<Offset>,
    no_request: fn(u64, u32) -> bool,
    short: Arc<AtomicUsize>,
    silent_until: usize,
    connect_takes: Duration,
    connects: Arc<AtomicUsize>,
    /// What the life that begins was settling when its actor failed.
    settling: Vec<(MessageId, DoubtCause)>,
    limit: Option<LimitConfig>,
}

impl World {
    fn new() -> Self {
        let log = FakeLog::default();
        let spec = TopicSpec {
            partitions: 1,
            retention: None,
            retention_bytes: None,
        };
        let input = log.create_topic("t", &spec).expect("a topic").partitions[0];
        let lane = log.create_topic("__ledger", &spec).expect("a topic").partitions[0];
        let memory = Arc::new(Memory::default());
        let genesis = crate::core::ledger::entry::Genesis {
            ledger: 1,
            group: "embedded".into(),
            lanes: 1,
            lane: 0,
            recipe: 1,
        };
        append_entry(&log, lane, &memory, Body::Genesis(genesis));
        Self {
            log,
            input,
            lane,
            memory,
            partner: Arc::default(),
            lives: 0,
            waiting_after: Duration::from_secs(600),
            rest_after: REST_AFTER,
            ranges: 1_000,
            share: 64 << 20,
            shares: 1,
            long: false,
            changed: Changed::No,
            fresh: false,
            gone: None,
            no_request: |_, _| false,
            short: Arc::default(),
            silent_until: 0,
            connect_takes: Duration::ZERO,
            connects: Arc::default(),
            settling: Vec::new(),
            limit: None,
        }
    }

    fn append(&self, records: impl IntoIterator<Item = (Option<String>, u64)>) {
        let mut batch = Batch::new();
        for (key, number) in records {
            let key = key.as_ref().map(|k| k.as_bytes());
            let width = if self.long { 16 } else { 0 };
            batch.push(
                self.input,
                Time(1),
                key,
                format!("{number:0width$}").as_bytes(),
                &[],
            );
        }
        self.log.append(batch, Box::new(|r| drop(r.expect("appended"))));
    }

    /// Runs one life of the partition until it is idle; returns the bytes it holds at its end.
    async fn live(
        &mut self,
        config: PartnerConfig,
        plan: impl Fn(u64, u32) -> Reply + Send + Sync + 'static,
    ) -> u64 {
        self.live_until(config, plan, |_| false).await
    }

    /// The same, until the fold is as wanted.
    async fn live_until(
        &mut self,
        config: PartnerConfig,
        plan: impl Fn(u64, u32) -> Reply + Send + Sync + 'static,
        until: impl Fn(&LaneState) -> bool,
    ) -> u64 {
        let living = self.begin(config, plan);
        while !living.is_idle().await && !until(&self.memory.state.lock()) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        living.stop().await
    }

    /// Begins a life of the partition.
    fn begin(
        &mut self,
        config: PartnerConfig,
        plan: impl Fn(u64, u32) -> Reply + Send + Sync + 'static,
    ) -> Living {
        self.lives += 1;
        let life = LifeId(self.lives);
        let clock = Clock::start();
        let log: Arc<dyn Log> = Arc::new(self.log.clone());
        let fatal = Box::new(|error| panic!("the log failed: {error}"));
        let (lane, mut feed) = Lane::new(log.clone(), self.lane, Tenure(0), life, clock, fatal);
        let (memory, folded_lane) = (self.memory.clone(), lane.clone());
        let here: Rc<RefCell<Option<Here>>> = Rc::default();
        let whom = here.clone();
        actix_rt::spawn(async move {
            while let Some(committed) = feed.recv().await {
                let (mut ops, mut effects) = (Vec::new(), Vec::new());
                let mut state = memory.state.lock();
                for (i, entry) in committed.entries.iter().enumerate() {
                    state
                        .apply_live(committed.base + i as u64, entry, &mut ops, &mut effects)
                        .expect("a valid ledger");
                }
                for op in ops {
                    match op {
                        StoreOp::Finished(f) => drop(memory.finished.lock().insert(f.id, f.state)),
                        StoreOp::Forget { id, .. } => drop(memory.finished.lock().remove(&id)),
                    }
                }
                drop(state);
                if let Some((route, actor)) = &*whom.borrow() {
                    for (offset, effect) in &effects {
                        carry_out(*offset, effect, route, Some(actor));
                    }
                }
                committed.folded(&folded_lane);
            }
        });
        let port = LanePort::open(lane);
        let turnstile = Turnstile::new(0, BreakerSettings::of(&config), clock.now());
        let mut budgets = BudgetTable::new();
        let mut draws = Draws::new();
        if let Some(limit) = &self.limit {
            let _ = budgets.set(1, limit, clock.now()).expect("a limit");
            draws.push(BudgetDraw { budget: 1, by: 0 });
        }
        let budgets = Rc::new(RefCell::new(budgets));
        let gate = PartnerGate::new(
            "p".into(),
            turnstile,
            budgets,
            clock,
            Duration::from_millis(3),
            256,
            NodeCap::new(100),
        );
        let memory_share = MemoryShare::divide(self.share * self.shares as u64, self.shares).remove(0);
        let sink = FakeSink {
            partner: self.partner.clone(),
            plan: Arc::new(plan),
            no_request: self.no_request,
            short: self.short.clone(),
            silent_until: self.silent_until,
            connect_takes: self.connect_takes,
            connects: self.connects.clone(),
        };
        let defaults = Config::for_test("data");
        let flood = config.flood.dead_in_a_row;
        let on_doubt = config.on_doubt;
        let hosts = RefCell::new(crate::core::hosts::Hosts::new(BreakerSettings::of(&config)));
        let partner = Rc::new(PartnerContext {
            hosts,
            name: "p".into(),
            config: Arc::new(config),
            ledger: defaults.ledger.clone(),
            sink,
            port,
            gate,
            memory: memory_share.clone(),
            metrics: crate::telemetry::metrics::Metrics::new().partner("p"),
            clock,
        });
        let keeper =
            crate::actors::limiter::RateLimiterActor::new(partner.gate.clone(), clock, Lifeline::new(|_| {}));
        let keeper = keeper.start();
        let route = Rc::new(RouteContext {
            at: AT,
            topic: "t".into(),
            scope: IdScope::new("t", TopicId(1), 0, "p"),
            queue: 0,
            approach: Approach::new(4),
            partner,
            current: Default::default(),
            on_wire: RefCell::default(),
            orders: Rc::default(),
            doubts: RefCell::new(self.settling.iter().copied().collect()),
            flood: Rc::new(RefCell::new(crate::core::flood::FloodGuard::new(flood))),
            lines: LineRules {
                sample: 1,
                key: KeySource::Record,
                id: vec![IdSource::Hash],
            },
            figures: Arc::new(RouteFigures::default()),
        });
        let start = Start {
            fresh: self.fresh,
            ..Start::of(&self.memory.state.lock(), AT, on_doubt)
        };
        let settings = PartitionSettings {
            busy_keys: 16,
            ahead: 4,
            read_chunk: 4_096,
            window: 1_000,
            ranges: self.ranges,
            position_every: Duration::from_millis(20),
            waiting_after: self.waiting_after,
            rest_after: self.rest_after,
            backlog: 100_000,
            backlog_bytes: 64 << 20,
        };
        let parts = PartitionParts {
            route: route.clone(),
            log: log.clone(),
            input: self.input,
            resolve: Box::new(ByKey {
                changed: self.changed,
                draws,
            }),
            remembered: self.memory.clone(),
            payloads: Arc::new(FromTopic {
                log,
                input: self.input,
                gone: self.gone,
            }),
            start,
            settings,
            lifeline: Lifeline::new(|_| {}),
        };
        let actor = PartitionActor::new(parts).start();
        *here.borrow_mut() = Some((route.clone(), actor.clone()));
        Living {
            actor,
            route,
            keeper,
            memory: self.memory.clone(),
        }
    }

    /// Every wait of a key is over: time does not pass in a test, so the ledger says so.
    fn make_due(&self, key: KeyHash) {
        self.make_due_where(|m| m.key == key);
    }

    fn make_due_where(&self, which: impl Fn(&Message) -> bool) {
        let waiting: Vec<_> = {
            let state = self.memory.state.lock();
            let messages = state.partitions[&AT].messages.iter();
            let waits = |m: &Message| which(m) && matches!(m.state, MessageState::Later { .. });
            messages.filter(|(_, m)| waits(m)).collect()
        };
        for (id, m) in waiting {
            let later = crate::core::ledger::entry::Outcome {
                at: AT,
                id,
                offset: m.offset,
                round: 1,
                attempts: m.attempts + 1,
                when: Time(2),
                life: LifeId(1),
                status: 429,
                kind: crate::core::ledger::entry::OutcomeKind::Later {
                    not_before: Time(3),
                    first_try: m.first_try,
                    key: m.key,
                    reason: String::new(),
                    counted: true,
                },
            };
            append_entry(&self.log, self.lane, &self.memory, Body::Outcome(later));
        }
    }

    fn position(&self) -> Offset {
        self.memory.state.lock().partitions[&AT].position
    }
}

/// What an earlier life left in the lane.
fn append_entry(log: &FakeLog, lane: PartitionId, memory: &Memory, body: Body) {
    let entry = crate::core::ledger::entry::Entry {
        tenure: Tenure(0),
        body,
    };
    let mut bytes = Vec::new();
    crate::core::ledger::codec::encode(&entry, &mut bytes);
    let at = log.bounds(lane).expect("the lane").next;
    let mut batch = Batch::new();
    batch.push(lane, Time(1), None, &bytes, &[]);
    log.append(batch, Box::new(|r| drop(r.expect("appended"))));
    memory
        .state
        .lock()
        .apply(at, &entry, &mut Vec::new())
        .expect("a valid ledger");
}

fn partner() -> PartnerConfig {
    let mut config = PartnerConfig::new("p", "http://127.0.0.1/");
    config.retry.first = Duration::from_millis(2);
    config.retry.longest = Duration::from_millis(5);
    config
}

fn keyed(n: u64) -> impl Iterator<Item = (Option<String>, u64)> {
    (0..n).map(|i| (Some(format!("k{}", i % 7)), i))
}

fn assert_order(seen: &[(String, u64, Reply)]) {
    let mut last: std::collections::HashMap<&str, u64> = Default::default();
    for (key, number, _) in seen {
        if let Some(before) = last.insert(key, *number) {
            assert!(before <= *number, "key {key}: {number} came after {before}");
        }
    }
}

/// A partner that closes each connection: a start is prepared as long ahead as its connect takes, and nearly every slot is
/// met. Prepared no longer ahead than a commit takes, each slot is over before there is a connection.
#[actix::test]
async fn a_partner_that_closes_its_connections_has_its_slots_met() {
    let mut world = World::new();
    world.limit = Some(LimitConfig {
        rates: vec![Rate::Sliding {
            count: 100,
            window: Duration::from_secs(1),
        }],
        burst: Some(1),
        ..LimitConfig::default()
    });
    world.connect_takes = Duration::from_millis(50);
    world.append((0..60).map(|n| (Some(format!("k{n}")), n)));
    world.live(partner(), |_, _| Reply::Take).await;
    let connects = world.connects.load(Ordering::Relaxed);
    assert_eq!(world.memory.state.lock().partitions[&AT].counts.delivered, 60);
    assert!(connects < 3 * 60, "{connects} connects for 60 messages");
}

/// A doubt is settled soon, although hundreds of messages wait for the partner's limit: its look-up takes turns with
/// them at the gate, and does not wait for their room there.
#[actix_rt::test]
async fn a_look_up_does_not_wait_behind_a_backlog() {
    let mut world = World::new();
    world.limit = Some(LimitConfig {
        rates: vec![Rate::Sliding {
            count: 200,
            window: Duration::from_secs(1),
        }],
        burst: Some(1),
        ..LimitConfig::default()
    });
    world.append((0..300).map(|n| (Some(format!("k{n}")), n)));
    let mut config = partner();
    config.request_timeout = Duration::from_millis(10);
    config.doubt.timeout = crate::config::model::DoubtPolicy::Verify;
    let mut verify =
        crate::config::model::VerifyConfig::new("http://127.0.0.1/", "true", "true", config.request_timeout);
    verify.settle = Duration::from_millis(10);
    config.verify = Some(verify);
    let doubtful = |number, _| if number == 3 { Reply::Silence } else { Reply::Take };
    world.live(config, doubtful).await;
    let partner = world.partner.lock();
    assert_eq!(partner.asked.len(), 1);
    let (_, seen) = partner.asked[0];
    assert!(seen < 60, "looked up after {seen} of 300 requests");
}

#[actix_rt::test]
async fn each_record_is_delivered_once_in_the_order_of_its_key() {
    let mut world = World::new();
    world.append(keyed(500));
    let held = world.live(partner(), |_, _| Reply::Take).await;
    let seen = std::mem::take(&mut world.partner.lock().seen);
    assert_eq!(seen.len(), 500);
    assert_order(&seen);
    assert_eq!((world.position(), held), (500, 0));
    // Another life, and the same records again: nothing is sent.
    world.append(keyed(500));
    world.live(partner(), |_, _| Reply::Take).await;
    assert_eq!(world.partner.lock().seen, []);
    assert_eq!(world.position(), 1_000, "duplicates finish their offsets");
}

/// Few messages stand at the gate, but all places are taken: as many keys are in flight as there are.
#[actix_rt::test]
async fn who_gets_a_slot_makes_room_at_the_gate_for_the_next() {
    let mut world = World::new();
    let keys = 15;
    world.append((0..keys).map(|i| (Some(format!("k{i}")), i)));
    world
        .live(partner(), move |_, _| Reply::TakeAt(keys as usize))
        .await;
    assert_eq!(world.partner.lock().seen.len(), keys as usize);
}

/// Whose an answer is may be known a little later: its place at the partner is free meanwhile, its key is not (I4), and
/// what it turns out to be is what counts.
#[actix_rt::test]
async fn an_answer_that_settles_later_holds_its_key_and_no_place() {
    let mut world = World::new();
    world.append((0..10).map(|i| (Some(format!("k{}", i % 5)), i)));
    let mut config = partner();
    config.concurrency = 1;
    let reply = |number, _| {
        if number == 0 {
            Reply::DoubtAt(9)
        } else {
            Reply::Take
        }
    };
    world.live(config, reply).await;
    let seen = std::mem::take(&mut world.partner.lock().seen);
    let last = seen.last().map(|(_, number, _)| *number);
    assert_eq!((seen.len(), last), (10, Some(5)), "{seen:?}");
    assert_order(&seen);
    let state = world.memory.state.lock();
    assert_eq!(state.partitions[&AT].counts.parked, 1);
}

#[actix_rt::test]
async fn a_retry_keeps_the_order_of_its_key_and_blocks_no_other() {
    let mut world = World::new();
    world.append(keyed(70));
    world
        .live(partner(), |n, attempt| match (n, attempt) {
            (3, 1..=4) => Reply::TryLater,
            (10, _) => Reply::Refuse,
            _ => Reply::Take,
        })
        .await;
    let seen = &world.partner.lock().seen;
    assert_order(seen);
    assert_eq!(seen.iter().filter(|s| s.1 == 3).count(), 5);
    assert_eq!(seen.len(), 74);
    let state = world.memory.state.lock();
    let counts = state.partitions[&AT].counts;
    assert_eq!((counts.delivered, counts.dead), (69, 1));
    assert_eq!(state.partitions[&AT].position, 70);
}

/// A look-up that waits for the disk holds nobody back on its arbiter; and what is finished after it was answered, and
/// before the answer is there, is not sent again.
#[actix_rt::test]
async fn a_slow_look_up_holds_nobody_back_and_misses_nothing() {
    use std::sync::atomic::AtomicBool;
    let mut world = World::new();
    let takes = Arc::new(AtomicBool::new(false));
    let plan = takes.clone();
    world.append([(None, 1)]);
    let living = world.begin(partner(), move |_, _| match plan.load(Ordering::Relaxed) {
        true => Reply::Take,
        false => Reply::TryLater,
    });
    let seen = world.partner.clone();
    living.until(|_| !seen.lock().seen.is_empty()).await;
    // The same message comes by once more; it is in flight, and the memory does not know it.
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (began, stood) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (tell, timed_out) = (began.clone(), stood.clone());
    let slow = Box::new(move || {
        tell.store(true, Ordering::Release);
        timed_out.store(
            wait.recv_timeout(Duration::from_secs(20)).is_err(),
            Ordering::Release,
        );
    });
    *living.memory.slow.lock() = Some((|_| true, slow));
    world.append([(None, 1)]);
    living.until(|_| began.load(Ordering::Acquire)).await;
    // It is delivered and folded while the look-up still waits, and an order has the actor forget what is folded.
    takes.store(true, Ordering::Relaxed);
    living
        .until(|l| l.memory.finished.lock().contains_key(&id_of(1)))
        .await;
    assert!(
        living
            .command(Action::Mark {
                at: AT,
                id: id_of(99),
                offset: 0,
            })
            .await
    );
    let sent = seen.lock().seen.len();
    go.send(()).expect("the look-up waits");
    living.idle().await;
    assert_eq!(seen.lock().seen.len(), sent, "it is not sent again");
    assert!(
        !stood.load(Ordering::Acquire),
        "the look-up held the arbiter back"
    );
    living.stop().await;
    assert_eq!(world.position(), 2);
}

#[actix_rt::test]
async fn records_without_key_and_duplicates_in_flight() {
    let mut world = World::new();
    world.append((0..50).flat_map(|n| [(None, n), (None, n)]));
    world.live(partner(), |_, _| Reply::Take).await;
    assert_eq!(world.partner.lock().seen.len(), 50);
    assert_eq!(world.position(), 100);
}

#[actix_rt::test]
async fn records_that_are_no_messages_stop_the_route_after_so_many() {
    let mut world = World::new();
    world.append((0..200).map(|n| (None, INVALID + n)));
    world.append(keyed(10));
    let mut config = partner();
    config.flood.dead_in_a_row = 50;
    let stopped = |state: &LaneState| state.stopped.contains_key(&AT.route);
    world
        .live_until(config.clone(), |_, _| Reply::Take, stopped)
        .await;
    let dead = |world: &World| world.memory.state.lock().partitions[&AT].counts.dead;
    assert_eq!(dead(&world), 50);
    assert!(world.position() <= 50 && world.partner.lock().seen.is_empty());
    // An operator who has no guard lets the rest go: each record once.
    config.flood.dead_in_a_row = 0;
    world.live(config, |_, _| Reply::Take).await;
    assert_eq!((dead(&world), world.position()), (200, 210));
    assert_eq!(world.partner.lock().seen.len(), 10);
}

#[actix_rt::test]
async fn silence_parks_and_holds_its_key_where_asked() {
    let mut world = World::new();
    world.append(keyed(21));
    let mut config = partner();
    config.on_doubt = OnDoubt::Continue;
    world
        .live(config, |n, _| if n == 7 { Reply::Silence } else { Reply::Take })
        .await;
    assert_eq!(world.partner.lock().seen.len(), 21);
    let state = world.memory.state.lock();
    let parked: Vec<_> = state.partitions[&AT]
        .messages
        .values()
        .filter(|m| m.state == MessageState::Parked)
        .collect();
    assert_eq!(parked.len(), 1);
    assert_eq!((parked[0].offset, parked[0].payload.is_some()), (7, true));
    assert_eq!(state.partitions[&AT].position, 21);
}

#[actix_rt::test]
async fn a_panic_of_a_keys_actor_loses_nothing_and_sends_nothing_twice() {
    let mut world = World::new();
    world.append(keyed(40));
    let before = std::sync::atomic::AtomicBool::new(true);
    world
        .live(partner(), move |n, _| match n {
            5 if before.swap(false, Ordering::Relaxed) => Reply::PanicBefore,
            12 => Reply::PanicAfter,
            _ => Reply::Take,
        })
        .await;
    let seen = world.partner.lock().seen.clone();
    assert_order(&seen);
    assert_eq!(seen.len(), 40, "each message was written once");
    let state = world.memory.state.lock();
    let counts = state.partitions[&AT].counts;
    // The one that may have been written is in doubt, and parked by the policy.
    assert_eq!((counts.delivered, counts.parked), (39, 1));
    assert_eq!(state.partitions[&AT].position, 40);
}

#[actix_rt::test]
async fn a_doubt_of_an_earlier_life_is_parked_before_its_key_goes_on() {
    let mut world = World::new();
    world.append(keyed(14));
    world.lives = 1;
    // An earlier life wrote the intent of record 2 and died.
    let intent = crate::core::ledger::entry::Intent {
        at: AT,
        id: MessageId(*b"2\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
        key: KeyHash(b"k2".iter().fold(17, |h, b| h * 31 + u64::from(*b))),
        offset: 2,
        round: 1,
        attempt: 1,
        first_try: Time(1),
        slot: Time(1),
        budgets: Default::default(),
        life: LifeId(1),
        lease_ms: 10_000,
        timeout_ms: 10_000,
    };
    append_entry(&world.log, world.lane, &world.memory, Body::Intent(intent));
    world.live(partner(), |_, _| Reply::Take).await;
    let seen = world.partner.lock().seen.clone();
    assert_eq!(seen.len(), 13);
    assert!(
        seen.iter().all(|s| s.1 != 2),
        "what is in doubt is not sent again"
    );
    let state = world.memory.state.lock();
    let message = state.partitions[&AT]
        .messages
        .get(&MessageId(*b"2\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"))
        .expect("it is parked");
    assert_eq!(
        (&message.state, message.payload.is_some()),
        (&MessageState::Parked, true)
    );
    assert_eq!(state.partitions[&AT].position, 14);
}

/// Retries noted by a life whose clock was a month ahead: with and without their payload in the ledger they go on as
/// soon as any retry would.
#[actix_rt::test]
async fn retries_noted_by_a_clock_that_was_ahead_are_not_waited_for() {
    use crate::core::ledger::entry::{Kept, Outcome, OutcomeKind, Waiting};
    let mut world = World::new();
    world.append((0..4).map(|n| (Some(format!("k{n}")), n)));
    world.lives = 1;
    let month = Duration::from_secs(30 * 86_400);
    let ahead = Clock::start().now().plus(month);
    for n in 1..=2 {
        let key = crate::core::message_id::key_hash(format!("k{n}").as_bytes());
        let intent = crate::core::ledger::entry::Intent {
            at: AT,
            id: id_of(n),
            key,
            offset: n,
            round: 1,
            attempt: 1,
            first_try: ahead,
            slot: ahead,
            budgets: Default::default(),
            life: LifeId(1),
            lease_ms: 10_000,
            timeout_ms: 10_000,
        };
        let later = Outcome {
            at: AT,
            id: id_of(n),
            offset: n,
            round: 1,
            attempts: 1,
            when: ahead,
            life: LifeId(1),
            status: 503,
            kind: OutcomeKind::Later {
                not_before: ahead.plus(month),
                first_try: ahead,
                key,
                reason: String::new(),
                counted: true,
            },
        };
        let mut bodies = vec![Body::Intent(intent), Body::Outcome(later)];
        if n == 2 {
            bodies.push(Body::Waiting(Waiting {
                at: AT,
                id: id_of(n),
                offset: n,
                round: 1,
                attempts: 1,
                when: ahead,
                not_before: ahead.plus(month),
                kept: Box::new(Kept {
                    key,
                    value: bytes::Bytes::from_static(b"2"),
                    ..Kept::default()
                }),
            }));
        }
        bodies
            .into_iter()
            .for_each(|body| append_entry(&world.log, world.lane, &world.memory, body));
    }
    let mut config = partner();
    config.retry.longest_retry_after = Duration::from_millis(20);
    let life = world.live(config, |_, _| Reply::Take);
    tokio::time::timeout(Duration::from_secs(60), life)
        .await
        .expect("nothing waits for next month");
    assert_eq!(world.partner.lock().seen.len(), 4);
    assert_eq!(world.position(), 4);
}

#[test]
fn after_is_small() {
    assert!(size_of::<attempt::After>() <= 16);
}

/// One key waits for long: it, and what stands behind it, goes into the ledger, and the position passes all of it. A
/// restart reads none of it, and sends it in order from there.
#[actix_rt::test]
async fn what_waits_long_holds_no_position_and_keeps_its_order_over_a_restart() {
    let mut world = World::new();
    world.waiting_after = Duration::from_millis(300);
    world.append(keyed(70));
    let mut patient = partner();
    patient.retry.first = Duration::from_secs(3_600);
    patient.retry.longest = Duration::from_secs(3_600);
    let plan = |n, _| match n {
        3 => Reply::TryLater,
        _ => Reply::Take,
    };
    let passed = |state: &LaneState| state.partitions.get(&AT).is_some_and(|p| p.position == 70);
    // A backoff with jitter may be shorter than what counts as long; then the age counts.
    world.live_until(patient, plan, passed).await;
    let waiting = |world: &World| {
        let state = world.memory.state.lock();
        let mut held: Vec<_> = state.partitions[&AT].messages.values().collect();
        held.sort_by_key(|m| m.offset);
        held
    };
    let held = waiting(&world);
    assert_eq!(
        held.iter().map(|m| m.offset).collect::<Vec<_>>(),
        (3..70).step_by(7).collect::<Vec<_>>()
    );
    assert!(held.iter().all(|m| m.payload.is_some()));
    assert!(held.iter().all(|m| matches!(m.state, MessageState::Later { .. })));
    assert_eq!((held[0].attempts, held[1].attempts), (1, 0));
    let first = std::mem::take(&mut world.partner.lock().seen);
    assert_eq!(first.len(), 61, "60 of the other keys, and one attempt");

    // The retry is due: time does not pass in a test, so the ledger says so.
    for m in &held[..1] {
        let (id, _) = {
            let state = world.memory.state.lock();
            let found = state.partitions[&AT]
                .messages
                .iter()
                .find(|(_, o)| o.offset == m.offset);
            found.expect("it waits")
        };
        let later = crate::core::ledger::entry::Outcome {
            at: AT,
            id,
            offset: m.offset,
            round: 1,
            attempts: 2,
            when: Time(2),
            life: LifeId(1),
            status: 429,
            kind: crate::core::ledger::entry::OutcomeKind::Later {
                not_before: Time(3),
                first_try: m.first_try,
                key: m.key,
                reason: String::new(),
                counted: true,
            },
        };
        append_entry(&world.log, world.lane, &world.memory, Body::Outcome(later));
    }
    let read = world.log.read_count(world.input);
    world.live(partner(), |_, _| Reply::Take).await;
    let seen = std::mem::take(&mut world.partner.lock().seen);
    assert_eq!(
        seen.iter().map(|s| s.1).collect::<Vec<_>>(),
        (3..70).step_by(7).collect::<Vec<_>>()
    );
    // Their payloads alone: this test's are in the topic.
    assert_eq!(world.log.read_count(world.input) - read, 10);
    assert!(waiting(&world).is_empty());
    assert_eq!(world.position(), 70);
}

/// A thousand finished records above one that waits: a restart reads around them.
#[actix_rt::test]
async fn finished_ranges_are_not_read_again() {
    let mut world = World::new();
    // It holds the position for as long as this test lasts.
    world.waiting_after = Duration::from_secs(86_400);
    world.append(keyed(1_000));
    let mut patient = partner();
    patient.retry.first = Duration::from_secs(3_600);
    patient.retry.longest = Duration::from_secs(3_600);
    let plan = |n, _| match n {
        0 => Reply::TryLater,
        _ => Reply::Take,
    };
    let all_but_one_key = |state: &LaneState| {
        let p = state.partitions.get(&AT);
        p.is_some_and(|p| p.position == 0 && p.counts.delivered == 1_000 - 143)
    };
    world.live_until(patient.clone(), plan, all_but_one_key).await;
    world.append([(Some("new".to_owned()), 1_000)]);
    let read = world.log.read_count(world.input);
    let new_one = |state: &LaneState| state.partitions[&AT].counts.delivered == 1_000 - 142;
    world.live_until(patient, plan, new_one).await;
    // The waiting key's own 143 records, and the new one.
    assert_eq!(world.log.read_count(world.input) - read, 144);
}

#[actix_rt::test]
async fn a_replay_whose_payload_has_gone_holds_nothing_back() {
    let mut world = World::new();
    world.append(keyed(21));
    let mut id = [0; 16];
    id[0] = b'7';
    let (id, key) = (
        MessageId(id),
        KeyHash(b"k0".iter().fold(17, |h, b| h * 31 + u64::from(*b))),
    );
    let kept = crate::core::ledger::entry::Kept {
        key,
        record_key: None,
        timestamp: Time(1),
        value: "7".into(),
        headers: crate::core::record::Headers::none(),
        readable: "7".into(),
        idempotency_key: "7".into(),
        reason: String::new(),
        answer: String::new(),
        first_try: Time(1),
        dropped: false,
    };
    let dead = crate::core::ledger::entry::Outcome {
        at: AT,
        id,
        offset: 7,
        round: 1,
        attempts: 1,
        when: Time(1),
        life: LifeId(1),
        status: 422,
        kind: crate::core::ledger::entry::OutcomeKind::Dead(Box::new(kept)),
    };
    append_entry(&world.log, world.lane, &world.memory, Body::Outcome(dead));
    let opened = crate::core::ledger::entry::Opened {
        at: AT,
        id,
        round: 2,
        when: Time(1),
        idempotency_key: "7-2".into(),
    };
    append_entry(&world.log, world.lane, &world.memory, Body::Opened(opened));
    world.gone = Some(7);
    let held = world.live(partner(), |_, _| Reply::Take).await;
    assert_eq!(
        (world.partner.lock().seen.len(), world.position(), held),
        (20, 21, 0)
    );
}

/// An earlier life has delivered these records and no others.
fn delivered_before(world: &World, offsets: &[u64]) {
    for offset in offsets {
        let mut id = [0; 16];
        id[..offset.to_string().len()].copy_from_slice(offset.to_string().as_bytes());
        let outcome = crate::core::ledger::entry::Outcome {
            at: AT,
            id: MessageId(id),
            offset: *offset,
            round: 1,
            attempts: 1,
            when: Time(1),
            life: LifeId(1),
            status: 200,
            kind: crate::core::ledger::entry::OutcomeKind::Delivered {
                readable: Default::default(),
            },
        };
        append_entry(&world.log, world.lane, &world.memory, Body::Outcome(outcome));
    }
}

#[actix_rt::test]
async fn what_an_earlier_life_finished_at_the_end_of_the_topic_is_not_waited_for() {
    let mut world = World::new();
    world.append(keyed(8));
    delivered_before(&world, &[5, 6, 7]);
    world.live(partner(), |_, _| Reply::Take).await;
    assert_eq!(world.partner.lock().seen.len(), 5);
    assert_eq!(world.position(), 8);
}

#[actix_rt::test]
async fn gaps_between_finished_ranges_are_filled_although_the_ranges_are_at_their_bound() {
    let mut world = World::new();
    world.append(keyed(12));
    world.ranges = 3;
    delivered_before(&world, &[1, 3, 5, 7, 9]);
    world.live(partner(), |_, _| Reply::Take).await;
    assert_eq!(world.partner.lock().seen.len(), 7);
    assert_eq!(world.position(), 12);
}

/// What operators' orders promise about messages that stand at the gate already: after the answer none of them is
/// sent, whatever the order was.
#[actix::test]
async fn an_order_reaches_what_stands_at_the_gate() {
    for what in ["mark", "skip a key", "skip an ID"] {
        let mut world = World::new();
        world.append((0..40).map(|n| (Some(format!("k{}", n % 20)), n)));
        let living = world.begin(partner(), |_, _| Reply::Take);
        living.pause(true);
        living.until(|l| l.route.partner.gate.waiting() == 4).await;
        let of = |n: u64| match what {
            "mark" => Action::Mark {
                at: AT,
                id: id_of(n),
                offset: 0,
            },
            _ => Action::SkipAdd(SkipRule {
                rule: n + 1,
                topic: "t".into(),
                partner: None,
                matches: match what {
                    "skip a key" => SkipMatch::Key(format!("k{n}").into_bytes().into()),
                    _ => SkipMatch::Id(id_of(n).to_string().into_bytes().into()),
                },
                reason: "flood".into(),
                made: Time(1),
                expires: None,
            }),
        };
        for n in 0..10 {
            assert!(living.command(of(n)).await, "{what} {n}");
        }
        living.pause(false);
        living.idle().await;
        let left = living.route.orders.bar_of(&id_of(0));
        assert_eq!(left, None, "{what}: a mark is spent with its record");
        living.stop().await;
        let mut sent: Vec<_> = world.partner.lock().seen.iter().map(|s| s.1).collect();
        sent.sort_unstable();
        let all = (0..40).filter(|n| {
            if what == "skip a key" {
                n % 20 >= 10
            } else {
                *n >= 10
            }
        });
        assert_eq!(sent, all.collect::<Vec<_>>(), "{what}");
        assert_eq!(world.position(), 40, "{what}");
    }
}

/// A mark that met its record, or came too late for it, does not swallow a later record of the same ID.
#[actix::test]
async fn a_stale_mark_swallows_nothing() {
    let mut world = World::new();
    world.append([(None, 0), (None, 1)]);
    let living = world.begin(partner(), |_, _| Reply::Take);
    living.pause(true);
    living.until(|l| l.route.partner.gate.waiting() == 2).await;
    let (mark, forget) = (
        Action::Mark {
            at: AT,
            id: id_of(0),
            offset: 0,
        },
        Action::Forget { at: AT, id: id_of(0) },
    );
    assert!(living.command(mark.clone()).await);
    living.pause(false);
    living.idle().await;
    assert!(living.command(forget.clone()).await);
    world.append([(None, 0)]);
    living.idle().await;
    assert_eq!(
        world.partner.lock().seen.len(),
        2,
        "1, and 0 once it was forgotten"
    );
    // Delivered, and marked only then.
    assert!(living.command(mark).await);
    assert!(living.command(forget).await);
    world.append([(None, 0)]);
    living.idle().await;
    living.stop().await;
    assert_eq!(world.partner.lock().seen.len(), 3);
    assert_eq!(world.position(), 4);
}

/// An order about a message whose attempt has begun is refused, never answered "delivered" and then sent.
#[actix::test]
async fn a_mark_that_comes_too_late_is_refused() {
    let mut world = World::new();
    world.append([(None, 0)]);
    let living = world.begin(partner(), |_, _| Reply::TakeAt(2));
    living.until(|l| !l.route.on_wire.borrow().is_empty()).await;
    let mark = |n| Action::Mark {
        at: AT,
        id: id_of(n),
        offset: 0,
    };
    assert!(!living.command(mark(0)).await, "it is on the wire");
    world.append([(None, 1)]);
    living.idle().await;
    living.stop().await;
    assert_eq!(world.partner.lock().seen.len(), 2);
    // One that waits for its next attempt: the entry is written, and the fold refuses it.
    world.append([(None, 2)]);
    let living = world.begin(
        partner(),
        |_, attempt| if attempt < 3 { Reply::TryLater } else { Reply::Take },
    );
    living
        .until(|l| !l.memory.state.lock().partitions[&AT].messages.is_empty())
        .await;
    if living.command(mark(2)).await {
        assert!(!living.memory.state.lock().partitions[&AT].messages.is_empty());
    }
    living.idle().await;
    assert_eq!(living.route.orders.bar_of(&id_of(2)), None);
    living.stop().await;
    let state = world.memory.state.lock();
    assert_eq!(
        (
            state.partitions[&AT].counts.delivered,
            state.partitions[&AT].counts.marked
        ),
        (3, 0)
    );
}

/// `on_doubt = "hold"`: orders about other messages of the key, dead ones, leave its doubt alone.
#[actix::test]
async fn a_hold_ends_with_its_own_message_only() {
    let mut config = partner();
    config.on_doubt = OnDoubt::Hold;
    config.doubt = crate::config::model::DoubtConfig::all(crate::config::DoubtPolicy::Park);
    let key = || Some("k".to_owned());
    for order in ["drop", "forget", "mark", "replay"] {
        let mut world = World::new();
        world.append([(key(), 3), (key(), 5), (key(), 6), (key(), 7)]);
        let living = world.begin(config.clone(), |n, _| match n {
            3 => Reply::Refuse,
            5 => Reply::Silence,
            _ => Reply::Take,
        });
        living
            .until(|l| {
                l.memory
                    .state
                    .lock()
                    .partitions
                    .get(&AT)
                    .is_some_and(|p| p.counts.parked == 1)
            })
            .await;
        let id = id_of(3);
        let body = match order {
            "drop" => command(Action::Drop { at: AT, id }),
            "forget" => command(Action::Forget { at: AT, id }),
            "mark" => command(Action::Mark {
                at: AT,
                id,
                offset: 0,
            }),
            _ => Body::Opened(crate::core::ledger::entry::Opened {
                at: AT,
                id,
                round: 2,
                when: Time(1),
                idempotency_key: "again".into(),
            }),
        };
        assert!(living.order(body).await);
        tokio::time::sleep(Duration::from_millis(30)).await;
        let sent = |world: &World| world.partner.lock().seen.iter().map(|s| s.1).collect::<Vec<_>>();
        assert_eq!(sent(&world), [3, 5], "{order}: the doubt of 5 holds the key");
        assert!(
            living
                .command(Action::Mark {
                    at: AT,
                    id: id_of(5),
                    offset: 0
                })
                .await
        );
        living
            .until(|l| l.memory.state.lock().partitions[&AT].counts.delivered == 2)
            .await;
        living.stop().await;
        assert_eq!(&sent(&world)[2..4], [6, 7], "{order}");
    }
}

/// A message that was forgotten begins a later round, under another Idempotency-Key, live and after a restart.
#[actix::test]
async fn a_forgotten_message_begins_a_later_round() {
    for restart in [false, true] {
        let mut world = World::new();
        world.append([(None, 0)]);
        let mut living = world.begin(partner(), |_, _| Reply::Take);
        living.idle().await;
        living
            .until(|l| l.memory.state.lock().partitions[&AT].counts.delivered == 1)
            .await;
        assert!(living.command(Action::Forget { at: AT, id: id_of(0) }).await);
        if restart {
            living.stop().await;
            living = world.begin(partner(), |_, _| Reply::Take);
        }
        world.append([(None, 0)]);
        living
            .until(|l| l.memory.state.lock().partitions[&AT].counts.delivered == 2)
            .await;
        living.stop().await;
        assert_eq!(world.memory.state.lock().partitions[&AT].next_round(&id_of(0)), 3);
    }
}

/// An effect of an entry that the partition began from is known to it.
#[actix::test]
async fn an_effect_that_the_start_knows_is_ignored() {
    let mut world = World::new();
    world.append([(None, 0)]);
    let living = world.begin(partner(), |_, _| Reply::Refuse);
    living
        .until(|l| {
            l.memory
                .state
                .lock()
                .partitions
                .get(&AT)
                .is_some_and(|p| p.counts.dead == 1)
        })
        .await;
    living.stop().await;
    let opened = crate::core::ledger::entry::Opened {
        at: AT,
        id: id_of(0),
        round: 2,
        when: Time(1),
        idempotency_key: "again".into(),
    };
    let offset = world.memory.state.lock().next;
    append_entry(&world.log, world.lane, &world.memory, Body::Opened(opened));
    let living = world.begin(partner(), |_, _| Reply::Take);
    living
        .until(|l| l.memory.state.lock().partitions[&AT].counts.delivered == 1)
        .await;
    // It comes late: the partition began behind it, and has sent the round.
    let effect = crate::core::ledger::fold::Effect::Opened {
        at: AT,
        id: id_of(0),
        round: 2,
        key: KeyHash(1),
        offset: 0,
        idempotency_key: "again".into(),
    };
    carry_out(offset, &effect, &living.route, Some(&living.actor));
    living.idle().await;
    living.stop().await;
    assert_eq!(world.partner.lock().seen.len(), 2);
}

/// Every other record is of a key that waits an hour, or whose doubt holds it.
fn every_other_slow(n: u64) -> impl Iterator<Item = (Option<String>, u64)> {
    (0..n).map(|i| match i % 2 {
        0 => (Some("slow".to_owned()), i),
        _ => (Some(format!("k{}", i / 2 % 50)), i),
    })
}

/// Share of memory; what becomes of the first message of the slow key; whether that holds the key; finished ranges.
const STUCK: [(u64, Reply, OnDoubt, usize); 5] = [
    (1 << 20, Reply::TryLater, OnDoubt::Continue, 20_000),
    (1 << 20, Reply::Silence, OnDoubt::Hold, 20_000),
    // 16 MiB over 501 partners: not even one chunk.
    (33 << 10, Reply::TryLater, OnDoubt::Continue, 20_000),
    (33 << 10, Reply::Silence, OnDoubt::Hold, 20_000),
    // More gaps than the position may have above it: what is left goes into the ledger.
    (1 << 20, Reply::TryLater, OnDoubt::Continue, 500),
];

/// Ten thousand records behind one key that waits or is held: all others of its partition are delivered, and a restart
/// delivers what stood behind it, in order.
#[actix_rt::test]
async fn a_stuck_key_does_not_starve_the_others_of_its_partner() {
    for (share, reply, on_doubt, ranges) in STUCK {
        let mut world = World::new();
        world.share = share;
        world.ranges = ranges;
        // A backoff with jitter may be shorter than what counts as long.
        world.waiting_after = Duration::from_millis(100);
        world.append(every_other_slow(20_000));
        let mut patient = partner();
        patient.on_doubt = on_doubt;
        patient.retry.first = Duration::from_secs(3_600);
        patient.retry.longest = Duration::from_secs(3_600);
        let plan = move |n, _| match n {
            0 => reply,
            _ => Reply::Take,
        };
        let others = |state: &LaneState| {
            state
                .partitions
                .get(&AT)
                .is_some_and(|p| p.counts.delivered == 10_000)
        };
        let held = world.live_until(patient, plan, others).await;
        let seen = std::mem::take(&mut world.partner.lock().seen);
        assert_eq!(seen.len(), 10_001, "share {share}, {reply:?}");
        assert_order(&seen);
        assert!(held <= share.max(100 << 10), "{held} bytes of {share}");
        // The doubt is not held in the next life, and the retry is due.
        world.make_due(crate::core::message_id::key_hash(b"slow"));
        world.live(partner(), |_, _| Reply::Take).await;
        let seen = std::mem::take(&mut world.partner.lock().seen);
        let first = u64::from(on_doubt == OnDoubt::Hold) * 2;
        assert_eq!(
            seen.iter().map(|s| s.1).collect::<Vec<_>>(),
            (first..20_000).step_by(2).collect::<Vec<_>>()
        );
        assert_eq!(world.position(), 20_000);
    }
}

/// A key that goes on has what was left of it read back, in order, and each message once.
#[actix_rt::test]
async fn what_was_left_behind_a_key_goes_on_with_it() {
    for share in [64 << 20, 33 << 10] {
        let mut world = World::new();
        world.share = share;
        world.ranges = 20_000;
        world.append(every_other_slow(6_000));
        // The same messages once more: duplicates of what is left are sent once, too.
        world.append(every_other_slow(6_000));
        let mut config = partner();
        config.retry.first = Duration::from_millis(300);
        config.retry.longest = Duration::from_millis(300);
        let held = world
            .live(config, |n, attempt| match (n, attempt) {
                (0, 1..=3) | (2_000, 1..=2) => Reply::TryLater,
                _ => Reply::Take,
            })
            .await;
        let seen = std::mem::take(&mut world.partner.lock().seen);
        assert_order(&seen);
        let taken = seen.iter().filter(|s| s.2 == Reply::Take).count();
        assert_eq!((taken, world.position(), held), (6_000, 12_000, 0));
    }
}

/// A message has two records under two keys. The first was left behind its key, so that the second one was tried and
/// waits; a restart takes the first one up, and the second one is its duplicate. Another restart loses nothing of that.
#[actix_rt::test]
async fn a_message_that_goes_on_by_another_record_of_it_is_not_lost() {
    let mut world = World::new();
    // Nothing is copied into the ledger meanwhile.
    world.waiting_after = Duration::from_secs(36_000);
    let slow = |n: u64| (Some("slow".to_owned()), n);
    let mut patient = partner();
    patient.retry.first = Duration::from_secs(3_600);
    patient.retry.longest = Duration::from_secs(3_600);
    world.append([slow(0)]);
    let waits = |number: u64, offset: Offset| {
        move |state: &LaneState| {
            let of = |p: &crate::core::ledger::fold::PartitionState| p.messages.get(&id_of(number));
            let message = state.partitions.get(&AT).and_then(of);
            message.is_some_and(|m| m.offset == offset && matches!(m.state, MessageState::Later { .. }))
        }
    };
    let living = world.begin(patient.clone(), |n, _| match n {
        100 => Reply::Take,
        _ => Reply::TryLater,
    });
    living.until(|l| waits(0, 0)(&l.memory.state.lock())).await;
    living
        .until(|l| l.route.figures.waiting.load(Ordering::Relaxed) == 1)
        .await;
    // More behind the slow key than is queued behind it, and the message once more under another one.
    world.append(
        (1..=40)
            .map(slow)
            .chain([slow(77), (Some("other".to_owned()), 77)]),
    );
    living.until(|l| waits(77, 42)(&l.memory.state.lock())).await;
    living.stop().await;
    // The slow key goes on, and waits once more before the message's turn comes.
    world.make_due(crate::core::message_id::key_hash(b"slow"));
    let plan = |n, _| match n {
        5 => Reply::TryLater,
        _ => Reply::Take,
    };
    let duplicate = |state: &LaneState| state.partitions[&AT].is_finished(42) && waits(5, 5)(state);
    let living = world.begin(patient, plan);
    // Nothing goes before all is read: the key does not wait yet, and the first record of the message is queued.
    living.pause(true);
    living
        .until(|l| l.route.figures.read.load(Ordering::Relaxed) == 43)
        .await;
    living.pause(false);
    living.until(|l| duplicate(&l.memory.state.lock())).await;
    living.stop().await;
    assert_eq!(requests(&world, 77), 1);
    world.make_due(crate::core::message_id::key_hash(b"slow"));
    world.live(partner(), |_, _| Reply::Take).await;
    let seen = std::mem::take(&mut world.partner.lock().seen);
    let taken = seen.iter().filter(|s| s.1 == 77 && s.2 == Reply::Take).count();
    assert_eq!((taken, world.position()), (1, 43));
    assert_eq!(world.memory.state.lock().partitions[&AT].counts.skipped, 0);
}

/// Whether all these are of the slow key of [`every_other_slow`], and were read together: in a test the intake reads one by one.
fn all_slow(ids: &[MessageId]) -> bool {
    let number = |id: &MessageId| {
        String::from_utf8_lossy(&id.0)
            .trim_end_matches('\0')
            .parse::<u64>()
    };
    ids.len() > 1 && ids.iter().all(|id| number(id).is_ok_and(|n| n % 2 == 0))
}

/// What was left behind a key is looked up away from the arbiter, when it is read back and when it is copied: a look-up
/// that waits for the disk holds nobody back, and what is called delivered meanwhile is not sent.
#[actix_rt::test]
async fn a_slow_look_up_of_what_was_left_holds_nobody_back() {
    use std::sync::atomic::AtomicBool;
    for copied in [false, true] {
        let mut world = World::new();
        world.share = 33 << 10;
        if copied {
            // More gaps than the position may have above it: what is left goes into the ledger.
            world.ranges = 20;
            world.waiting_after = Duration::from_millis(100);
        } else {
            world.ranges = 5_000;
        }
        world.append(every_other_slow(1_000));
        let mut config = partner();
        let wait = if copied { 3_600_000 } else { 300 };
        config.retry.first = Duration::from_millis(wait);
        config.retry.longest = Duration::from_millis(wait);
        let (began, stood) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (go, waits) = std::sync::mpsc::channel::<()>();
        let (tell, timed_out) = (began.clone(), stood.clone());
        *world.memory.slow.lock() = Some((
            all_slow,
            Box::new(move || {
                tell.store(true, Ordering::Release);
                let waited = waits.recv_timeout(Duration::from_secs(20));
                timed_out.store(waited.is_err(), Ordering::Release);
            }),
        ));
        // The backoff has jitter: as many attempts as it takes until much is left.
        let plan = move |n, attempt| match (n, copied) {
            (0, true) => Reply::TryLater,
            (0, false) if attempt < 8 => Reply::TryLater,
            _ => Reply::Take,
        };
        let living = world.begin(config, plan);
        living.until(|_| began.load(Ordering::Acquire)).await;
        let (before, last) = (living.delivered(), id_of(998));
        let mark = Action::Mark {
            at: AT,
            id: last,
            offset: 998,
        };
        assert!(living.command(mark).await);
        world.append([(Some("new".to_owned()), 5_001)]);
        if !copied {
            living.until(|l| l.delivered() > before).await;
        }
        go.send(()).expect("the look-up waits");
        let all = if copied { 501 } else { 1_000 };
        living.until(|l| l.delivered() == all).await;
        assert!(
            !stood.load(Ordering::Acquire),
            "the look-up held the arbiter back"
        );
        living.stop().await;
        let seen = world.partner.lock();
        assert_order(&seen.seen);
        assert!(seen.seen.iter().all(|s| s.1 != 998), "it was called delivered");
    }
}

/// Every other record waits for long: without key, or each with a key of its own.
fn every_other_waits(n: u64, keyed: bool) -> impl Iterator<Item = (Option<String>, u64)> {
    (0..n).map(move |i| match i % 2 {
        0 => (keyed.then(|| format!("w{i}")), i),
        _ => (Some(format!("k{}", i / 2 % 50)), i),
    })
}

/// Thousands of messages that the partner wants in an hour, one by one, rest in the ledger and starve nobody; a restart
/// lets them rest on, at some bytes each, and sends them when they are due.
#[actix_rt::test]
async fn messages_that_wait_one_by_one_rest_in_the_ledger() {
    for keyed in [false, true] {
        let mut world = World::new();
        (world.share, world.shares, world.ranges) = (256 << 10, 32, 20_000);
        world.long = true;
        world.append(every_other_waits(8_000, keyed));
        let plan = |n, _| match n % 2 {
            0 => Reply::Wait(Some(Concerns::Message)),
            _ => Reply::Take,
        };
        let living = world.begin(partner(), plan);
        living.until(|l| l.delivered() == 4_000).await;
        let memory = living.route.partner.memory.clone();
        // All but what there is room for.
        living.until(|_| memory.held() <= 140 << 10).await;
        let rested = memory.books().ledger();
        // The waits have jitter: times of their own for many of them.
        assert!(rested > 3_500 * 20 && rested < 4_000 * 100, "{rested} bytes");
        let held = living.stop().await;
        assert!(held <= 140 << 10, "{held} bytes");
        assert_eq!(memory.books().ledger(), 0, "given back");
        assert_eq!(world.partner.lock().seen.len(), 8_000);

        // What is in the ledger rests from the beginning.
        let living = world.begin(partner(), plan);
        let memory = living.route.partner.memory.clone();
        living.until(|_| memory.books().ledger() > 3_500 * 20).await;
        living.stop().await;
        let waiting: Vec<_> = {
            let state = world.memory.state.lock();
            state.partitions[&AT].messages.unsettled().collect()
        };
        assert_eq!(waiting.len(), 4_000);
        world.make_due_where(|_| true);
        world.partner.lock().seen.clear();
        world.live(partner(), |_, _| Reply::Take).await;
        let mut sent: Vec<_> = world.partner.lock().seen.iter().map(|s| s.1).collect();
        sent.sort_unstable();
        assert_eq!(sent, (0..8_000).step_by(2).collect::<Vec<_>>());
        assert_eq!(world.position(), 8_000);
    }
}

/// What rests is woken when it is due, and what came behind it on its key follows it; a second record of it is a
/// duplicate, also while it rests.
#[actix_rt::test]
async fn what_rests_is_woken_in_time_and_its_key_follows() {
    let mut world = World::new();
    (world.share, world.ranges) = (64 << 10, 20_000);
    world.rest_after = Duration::from_millis(100);
    // Each key twice, the second record behind all first ones; and all of it once more.
    let records = || (0..2_000u64).map(|i| ((i % 4 != 0).then(|| format!("k{}", i % 1_000)), i));
    world.append(records().chain(records()));
    let mut config = partner();
    config.retry.first = Duration::from_millis(3_000);
    config.retry.longest = Duration::from_millis(3_000);
    let plan = |n, attempt| match (n, attempt) {
        (0..1_000, 1) => Reply::TryLater,
        _ => Reply::Take,
    };
    let living = world.begin(config, plan);
    let memory = living.route.partner.memory.clone();
    living.until(|_| memory.books().ledger() > 100 * 20).await;
    living.idle().await;
    assert_eq!((living.stop().await, memory.books().ledger()), (0, 0));
    let seen = world.partner.lock();
    let keyed: Vec<_> = seen.seen.iter().filter(|s| !s.0.is_empty()).cloned().collect();
    assert_order(&keyed);
    assert_eq!(seen.seen.iter().filter(|s| s.2 == Reply::Take).count(), 2_000);
    drop(seen);
    assert_eq!(world.position(), 4_000);
}

/// An earlier life with more memory has tried thousands of messages whose records are still in the topic: what is known of
/// them may be more than the share, and they are read all the same.
#[actix_rt::test]
async fn what_a_larger_share_left_keeps_a_smaller_one_from_nothing() {
    let mut world = World::new();
    (world.share, world.ranges) = (64 << 10, 5_000);
    world.append(apart(2_000));
    let first_try = Clock::start().now();
    for offset in 0..2_000 {
        let later = crate::core::ledger::entry::Outcome {
            at: AT,
            id: id_of(offset),
            offset,
            round: 1,
            attempts: 1,
            when: Time(2),
            life: LifeId(1),
            status: 429,
            kind: crate::core::ledger::entry::OutcomeKind::Later {
                not_before: Time(3),
                first_try,
                key: crate::core::message_id::key_hash(format!("k{offset}").as_bytes()),
                reason: String::new(),
                counted: true,
            },
        };
        append_entry(&world.log, world.lane, &world.memory, Body::Outcome(later));
    }
    let life = world.live(partner(), |_, _| Reply::Take);
    let held = tokio::time::timeout(Duration::from_secs(60), life).await;
    assert_eq!(held.expect("it does not stand"), 0);
    assert_eq!(world.partner.lock().seen.len(), 2_000);
    assert_eq!(world.position(), 2_000);
}

/// What waits in the ledger behind one key is left there by a restart, and goes in order from there.
#[actix_rt::test]
async fn a_restart_leaves_in_the_ledger_what_waits_there_behind_a_key() {
    let mut world = World::new();
    world.share = 64 << 10;
    let key = crate::core::message_id::key_hash(b"slow");
    world.append((0..500).map(|n| (Some("slow".to_owned()), n)));
    for offset in 0..500u64 {
        let text = offset.to_string();
        let mut id = [0; 16];
        id[..text.len()].copy_from_slice(text.as_bytes());
        let kept = crate::core::ledger::entry::Kept {
            key,
            record_key: Some("slow".into()),
            timestamp: Time(1),
            value: text.clone().into(),
            headers: crate::core::record::Headers::none(),
            readable: text,
            idempotency_key: String::new(),
            reason: String::new(),
            answer: String::new(),
            first_try: Time::ZERO,
            dropped: false,
        };
        let waiting = crate::core::ledger::entry::Waiting {
            at: AT,
            id: MessageId(id),
            offset,
            round: 1,
            attempts: 0,
            when: Time(1),
            not_before: Time(2),
            kept: Box::new(kept),
        };
        append_entry(&world.log, world.lane, &world.memory, Body::Waiting(waiting));
    }
    assert_eq!(world.position(), 500);
    let held = world.live(partner(), |_, _| Reply::Take).await;
    let seen = std::mem::take(&mut world.partner.lock().seen);
    assert_eq!(
        seen.iter().map(|s| s.1).collect::<Vec<_>>(),
        (0..500).collect::<Vec<_>>()
    );
    assert_eq!(held, 0);
}

/// Each record has a key of its own.
fn apart(n: u64) -> impl Iterator<Item = (Option<String>, u64)> {
    (0..n).map(|i| (Some(format!("k{i}")), i))
}

fn requests(world: &World, number: u64) -> usize {
    world.partner.lock().seen.iter().filter(|s| s.1 == number).count()
}

/// One poisonous record used to stop the whole partner for a minute at a time, and never ended itself.
#[actix_rt::test]
async fn a_403_that_only_some_messages_get_is_their_own() {
    let mut world = World::new();
    world.append(apart(200));
    let mut config = partner();
    config.concurrency = 4;
    config.retry.attempts = Some(3);
    let bad = |n: u64| n.is_multiple_of(40);
    world
        .live(
            config,
            move |n, _| if bad(n) { Reply::Forbid } else { Reply::Take },
        )
        .await;
    let counts = world.memory.state.lock().partitions[&AT].counts;
    assert_eq!((counts.delivered, counts.dead), (195, 5));
    for n in (0..200).filter(|n| bad(*n)) {
        // The first one is not counted until it is known whose it is.
        assert!(
            (3..=4).contains(&requests(&world, n)),
            "{n}: {}",
            requests(&world, n)
        );
    }
}

#[actix_rt::test]
async fn a_403_for_everybody_pauses_the_partner_and_counts_for_nobody_not_even_after_a_restart() {
    let mut world = World::new();
    world.append(apart(50));
    let mut config = partner();
    config.concurrency = 4;
    config.retry.attempts = Some(1);
    let partner = world.partner.clone();
    // Four on their way, and three probes; then a second's pause.
    let paused = move |state: &LaneState| {
        let closed = |m: crate::core::ledger::fold::Message| matches!(m.state, MessageState::Later { .. });
        partner.lock().seen.len() >= 7
            && state
                .partitions
                .get(&AT)
                .is_some_and(|p| p.messages.values().all(closed))
    };
    world
        .live_until(config.clone(), |_, _| Reply::Forbid, paused)
        .await;
    {
        let state = world.memory.state.lock();
        assert_eq!(state.partitions[&AT].counts.dead, 0);
        for message in state.partitions[&AT].messages.values() {
            assert_eq!((message.attempts, message.status), (0, 403));
        }
    }
    // With an attempt counted they would be dead at the first failure now.
    world.live(config, |_, _| Reply::Take).await;
    let counts = world.memory.state.lock().partitions[&AT].counts;
    assert_eq!((counts.delivered, counts.dead), (50, 0));
}

/// Behind a redirect a 403 was nobody's: each 307 said that all was well, so the message was never counted, given up
/// or held back. 937 requests in 17 seconds.
#[actix_rt::test]
async fn a_403_behind_a_redirect_pauses_the_partner_and_counts_for_nobody() {
    let mut world = World::new();
    world.append(apart(5));
    let mut config = partner();
    config.retry.attempts = Some(3);
    let living = world.begin(config, |_, _| Reply::ForbidBehind);
    let left_alone = |l: &Living| l.route.partner.gate.look(|t| t.breaker().left_alone());
    living.until(|l| left_alone(l).is_some()).await;
    assert!(matches!(left_alone(&living), Some((Cause::Credentials, _))));
    living.stop().await;
    // Two requests for each of five first ones and three probes, and as many to redirects whose next hop was waiting.
    let seen = world.partner.lock().seen.len();
    assert!((8..=26).contains(&seen), "{seen}");
    assert_eq!(world.memory.state.lock().partitions[&AT].counts.dead, 0);
}

/// The same where the others are answered: they end by their own attempts, also once nobody else is left.
#[actix_rt::test]
async fn messages_that_alone_are_refused_end_once_the_others_are_through() {
    for refusal in [Reply::Forbid, Reply::ForbidBehind] {
        let mut world = World::new();
        world.append(apart(40));
        let mut config = partner();
        config.retry.attempts = Some(3);
        config.concurrency = 8;
        let plan = move |n: u64, _| if n.is_multiple_of(2) { Reply::Take } else { refusal };
        world.live(config, plan).await;
        let counts = world.memory.state.lock().partitions[&AT].counts;
        assert_eq!((counts.delivered, counts.dead), (20, 20), "{refusal:?}");
        let seen = world.partner.lock().seen.len();
        assert!(seen <= 20 + 20 * 8, "{refusal:?}: {seen}");
    }
}

/// 429 with Retry-After for one user: the rule's scope keeps it from everybody else.
#[actix_rt::test]
async fn a_wait_that_concerns_a_message_or_key_holds_nobody_else() {
    for concerns in [Concerns::Message, Concerns::Key] {
        let mut world = World::new();
        world.append(keyed(70));
        let plan = move |n, _| match n {
            0 => Reply::Wait(Some(concerns)),
            _ => Reply::Take,
        };
        let others = |state: &LaneState| {
            state
                .partitions
                .get(&AT)
                .is_some_and(|p| p.counts.delivered == 60)
        };
        world.live_until(partner(), plan, others).await;
        let seen = world.partner.lock().seen.clone();
        assert_eq!(seen.len(), 61, "{concerns:?}: its key waits behind it, in order");
    }
}

#[actix_rt::test]
async fn a_key_rests_although_its_message_has_ended_where_the_rule_says_so() {
    for (concerns, next) in [(Concerns::Message, 1), (Concerns::Key, 0)] {
        let mut world = World::new();
        // The key's messages come one behind the other; the second is there when the first is answered, for those behind
        // it have been sent.
        world.silent_until = 39;
        world.append((0..40).map(|i| (Some(format!("k{}", if i < 2 { 0 } else { i })), i)));
        let mut config = partner();
        config.retry.attempts = Some(1);
        let plan = move |n, _| match n {
            0 => Reply::Wait(Some(concerns)),
            _ => Reply::Take,
        };
        let over = move |state: &LaneState| {
            let at = state.partitions.get(&AT);
            at.is_some_and(|p| p.counts.dead == 1 && p.counts.delivered == 38 + next)
        };
        world.live_until(config, plan, over).await;
        assert_eq!(requests(&world, 1) as u64, next, "{concerns:?}");
    }
}

/// The key's next message is not even in the topic when the one ends that brought the rest.
#[actix_rt::test]
async fn a_key_rests_for_a_message_that_is_read_later() {
    let mut world = World::new();
    world.append([(Some("k0".to_owned()), 0)]);
    let mut config = partner();
    config.retry.attempts = Some(1);
    let living = world.begin(config, |n, _| match n {
        0 => Reply::Wait(Some(Concerns::Key)),
        _ => Reply::Take,
    });
    let memory = world.memory.clone();
    let counts = || {
        let state = memory.state.lock();
        let at = state.partitions.get(&AT);
        at.map_or((0, 0), |p| (p.counts.dead, p.counts.delivered))
    };
    while counts() != (1, 0) || !living.is_idle().await {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // Read in one go: whoever is behind the key's record shows that it was read.
    world.append((1..12).map(|n| (Some(format!("k{}", n - 1)), n)));
    while counts() != (1, 10) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(!living.is_idle().await, "it waits");
    living.stop().await;
    assert_eq!(requests(&world, 1), 0);
}

#[actix_rt::test]
async fn a_resend_of_which_no_request_can_be_made_is_parked_not_dead() {
    let mut world = World::new();
    world.append(keyed(7));
    world.no_request = |n, attempt| n == 3 && attempt == 2;
    let mut config = partner();
    config.doubt = crate::config::model::DoubtConfig::all(crate::config::model::DoubtPolicy::Resend);
    config.request_timeout = Duration::from_millis(1);
    world
        .live(config, |n, _| if n == 3 { Reply::Silence } else { Reply::Take })
        .await;
    let counts = world.memory.state.lock().partitions[&AT].counts;
    assert_eq!((counts.delivered, counts.dead, counts.parked), (6, 0, 1));
}

#[actix_rt::test]
async fn what_this_node_lacks_is_not_the_partners_failure_and_burns_no_attempt() {
    let mut world = World::new();
    world.append(apart(10));
    world.short = Arc::new(AtomicUsize::new(3));
    let mut config = partner();
    config.concurrency = 2;
    config.retry.attempts = Some(1);
    config.breaker.failures = 1;
    config.breaker.open = Duration::from_secs(3_600);
    config.breaker.longest = Duration::from_secs(3_600);
    world.live(config, |_, _| Reply::Take).await;
    let counts = world.memory.state.lock().partitions[&AT].counts;
    assert_eq!((counts.delivered, counts.dead), (10, 0));
    assert_eq!(world.partner.lock().seen.len(), 10);
}

/// The partition's actor failed and was built again in the same life: what was being settled keeps its cause.
#[actix_rt::test]
async fn a_doubt_of_this_life_keeps_its_cause_when_the_partition_is_built_again() {
    use crate::config::model::{DoubtConfig, DoubtPolicy, VerifyConfig};
    for (settling, delivered) in [(Some(DoubtCause::Timeout), 7), (None, 6)] {
        let mut world = World::new();
        world.append(keyed(7));
        let intent = crate::core::ledger::entry::Intent {
            at: AT,
            id: id_of(2),
            key: KeyHash(b"k2".iter().fold(17, |h, b| h * 31 + u64::from(*b))),
            offset: 2,
            round: 1,
            attempt: 1,
            first_try: Time(1),
            slot: Time(1),
            budgets: Default::default(),
            life: LifeId(1),
            lease_ms: 10_000,
            timeout_ms: 1,
        };
        append_entry(&world.log, world.lane, &world.memory, Body::Intent(intent));
        world.settling = settling.map(|cause| (id_of(2), cause)).into_iter().collect();
        let mut config = partner();
        config.doubt = DoubtConfig {
            timeout: DoubtPolicy::Verify,
            ..DoubtConfig::all(DoubtPolicy::Park)
        };
        let second = Duration::from_secs(1);
        let mut verify = VerifyConfig::new("http://127.0.0.1/", "status == 200", "status == 404", second);
        verify.settle = Duration::ZERO;
        config.verify = Some(verify);
        world.live(config, |_, _| Reply::Take).await;
        let counts = world.memory.state.lock().partitions[&AT].counts;
        assert_eq!(
            (counts.delivered, counts.parked),
            (delivered, 7 - delivered),
            "{settling:?}"
        );
    }
}

/// URLs are records, and one host of them is dead: refuses, or never answers a connect.
#[actix_rt::test]
async fn a_dead_host_harms_only_its_own_messages() {
    type Order = fn(u64) -> bool;
    let orders: [(&str, Order); 3] = [
        ("all dead ones first", |n| n < 200),
        ("nineteen dead ones for each live one", |n| n % 20 != 0),
        ("in turns", |n| n % 2 == 0),
    ];
    for (order, dead) in orders {
        for silent in [false, true] {
            let mut world = World::new();
            let live = (0..400).filter(|n| !dead(*n)).count();
            world
                .append((0..400).map(|n| (Some(format!("{}{n}", if dead(n) { "dead" } else { "live" })), n)));
            world.silent_until = if silent { live } else { 0 };
            let mut config = partner();
            config.concurrency = 8;
            let all_live = move |state: &LaneState| {
                state
                    .partitions
                    .get(&AT)
                    .is_some_and(|p| p.counts.delivered == live as u64)
            };
            world.live_until(config, |_, _| Reply::Take, all_live).await;
            let seen = world.partner.lock().seen.len();
            assert_eq!(seen, live, "{order}, silent: {silent}");
        }
    }
}

/// A rule against a flooding key: once kept messages have filled half of the memory, what it passes over is remembered
/// by its ID, costs no row of the fold, and is not sent by a second import either.
#[actix::test]
async fn a_flood_that_a_rule_skips_is_remembered_without_being_kept() {
    for full in [false, true] {
        let mut world = World::new();
        let living = world.begin(partner(), |_, _| Reply::Take);
        if full {
            let memory = &living.route.partner.memory;
            memory.set_kept(48 << 20);
            memory.books().set(48 << 20, 48 << 20, 0);
        }
        let rule = SkipRule {
            rule: 1,
            topic: "t".into(),
            partner: None,
            matches: SkipMatch::Key("hot".into()),
            reason: "flood".into(),
            made: Time(1),
            expires: None,
        };
        assert!(living.command(Action::SkipAdd(rule)).await);
        let flood = || (0..200).map(|n| (Some("hot".to_owned()), n));
        world.append(flood());
        world.append(flood());
        living.idle().await;
        living.stop().await;
        assert_eq!(world.partner.lock().seen, []);
        assert_eq!(world.position(), 400);
        let state = world.memory.state.lock();
        let partition = &state.partitions[&AT];
        let kept = if full { 0 } else { 200 };
        assert_eq!((partition.counts.skipped, partition.messages.len()), (200, kept));
        let finished = world.memory.finished.lock();
        assert_eq!(
            finished
                .values()
                .filter(|s| **s == FinishedState::Skipped)
                .count(),
            200
        );
    }
}

/// A partner whose kept messages fill the memory takes nothing up, and goes on when some of them are gone.
#[actix::test]
async fn who_fills_the_memory_with_kept_messages_stands_until_some_are_gone() {
    let mut world = World::new();
    let living = world.begin(partner(), |_, _| Reply::Take);
    let memory = living.route.partner.memory.clone();
    memory.set_kept(62 << 20);
    memory.books().set(62 << 20, 62 << 20, 0);
    world.append(keyed(50));
    tokio::time::sleep(Duration::from_millis(40)).await;
    assert!(!living.is_idle().await);
    assert_eq!(world.partner.lock().seen, []);
    memory.set_kept(1 << 20);
    memory.books().set(1 << 20, 1 << 20, 0);
    living.idle().await;
    living.stop().await;
    assert_eq!(world.partner.lock().seen.len(), 50);
}

/// A route that the ledger knows stands where its records left the topic, until an operator lets it go on; one that is
/// new begins where the topic does.
#[actix::test]
async fn lost_records_stop_a_route_that_was_there_before() {
    let mut world = World::new();
    world.append((0..10).map(|n| (None, n)));
    let living = world.begin(
        partner(),
        |n, _| if n == 3 { Reply::TryLater } else { Reply::Take },
    );
    living
        .until(|l| {
            l.memory
                .state
                .lock()
                .partitions
                .get(&AT)
                .is_some_and(|p| p.counts.delivered == 9)
        })
        .await;
    living.stop().await;
    assert_eq!(world.position(), 3);
    world.append((10..20).map(|n| (None, n)));
    world.log.trim(world.input, 13).expect("trimmed");
    for life in 0..2 {
        let living = world.begin(partner(), |_, _| Reply::Take);
        living.until(|l| !l.memory.state.lock().stopped.is_empty()).await;
        let reason = living.memory.state.lock().stopped[&AT.route].reason.clone();
        assert!(
            reason.starts_with("lost: records 3 to 12 of partition 0 left the topic"),
            "{reason}"
        );
        assert!(
            !living.is_idle().await,
            "a drain does not end before somebody has decided"
        );
        if life == 1 {
            let resume = Action::Resume {
                partner: String::new(),
                route: Some(AT.route),
            };
            assert!(living.command(resume).await);
            living.idle().await;
        }
        living.stop().await;
    }
    assert_eq!(
        (
            world.position(),
            world.partner.lock().seen.iter().filter(|s| s.1 >= 10).count()
        ),
        (20, 7)
    );
    {
        let state = world.memory.state.lock();
        let left = state.partitions[&AT].messages.get(&id_of(3)).expect("it is kept");
        assert_eq!(
            (&left.state, left.dropped, state.stopped.len()),
            (&MessageState::Dead, true, 0),
            "what was tried is listed"
        );
    }
    // A third life finds nothing to ask.
    world.live(partner(), |_, _| Reply::Take).await;
    let mut world = World::new();
    world.fresh = true;
    world.append((0..10).map(|n| (None, n)));
    world.log.trim(world.input, 5).expect("trimmed");
    world.live(partner(), |_, _| Reply::Take).await;
    assert_eq!((world.position(), world.partner.lock().seen.len()), (10, 5));
    assert!(world.memory.state.lock().stopped.is_empty());
}

/// What an earlier life tried ends where its record is no longer taken, or is another message now: a drain ends, and
/// the message says why.
#[actix::test]
async fn what_is_left_of_records_that_changed_ends() {
    for changed in [Changed::Filtered, Changed::OtherId] {
        let mut world = World::new();
        world.append((0..3).map(|n| (None, n)));
        let waits = |state: &LaneState| {
            let later = |m: &Message| matches!(m.state, MessageState::Later { .. });
            state
                .partitions
                .get(&AT)
                .is_some_and(|p| p.messages.values().filter(later).count() == 3)
        };
        world.live_until(partner(), |_, _| Reply::TryLater, waits).await;
        assert!(waits(&world.memory.state.lock()));
        world.changed = changed;
        world.live(partner(), |_, _| Reply::Take).await;
        let sent = world
            .partner
            .lock()
            .seen
            .iter()
            .filter(|s| s.2 == Reply::Take)
            .count();
        assert_eq!(sent, if changed == Changed::OtherId { 3 } else { 0 });
        assert_eq!(world.position(), 3);
        let state = world.memory.state.lock();
        for n in 0..3 {
            assert_eq!(
                state.partitions[&AT]
                    .messages
                    .get(&id_of(n))
                    .expect("it is kept")
                    .state,
                MessageState::Skipped,
                "{n}"
            );
        }
    }
}

/// A doubt whose record has left the topic ends parked: it is listed, and cannot be sent.
#[actix::test]
async fn a_doubt_whose_record_is_gone_is_parked() {
    let mut world = World::new();
    world.append([(None, 0), (None, 1)]);
    let intent = crate::core::ledger::entry::Intent {
        at: AT,
        id: id_of(0),
        key: KeyHash(1),
        offset: 0,
        round: 1,
        attempt: 1,
        first_try: Time(1),
        slot: Time(1),
        budgets: Default::default(),
        life: LifeId(99),
        lease_ms: 1,
        timeout_ms: 1,
    };
    append_entry(&world.log, world.lane, &world.memory, Body::Intent(intent));
    world.log.trim(world.input, 1).expect("trimmed");
    world.fresh = true;
    let parked = |state: &LaneState| state.partitions[&AT].counts.parked == 1;
    world.live_until(partner(), |_, _| Reply::Take, parked).await;
    assert!(
        world.memory.state.lock().partitions[&AT]
            .messages
            .get(&id_of(0))
            .is_some_and(|m| m.dropped)
    );
}

/// Called delivered while it stood at the gate, and forgotten before its turn came: it is sent, once, with whatever
/// record of it has come meanwhile.
#[actix::test]
async fn a_mark_that_was_taken_back_swallows_nothing() {
    let mut world = World::new();
    world.append([(None, 0)]);
    let living = world.begin(partner(), |_, _| Reply::Take);
    living.pause(true);
    living.until(|l| l.route.partner.gate.waiting() == 1).await;
    let mark = Action::Mark {
        at: AT,
        id: id_of(0),
        offset: 0,
    };
    assert!(living.command(mark).await);
    let forget = Action::Forget { at: AT, id: id_of(0) };
    assert!(living.command(forget).await);
    world.append([(None, 0)]);
    living.pause(false);
    living.idle().await;
    living.stop().await;
    assert_eq!(world.partner.lock().seen.len(), 1);
    assert_eq!(world.position(), 2);
}

/// Replays that a rule passes over: each leaves its place to the next one. A replayed record that is no message has an ID
/// as well, which a rule may name.
#[actix::test]
async fn replays_that_a_rule_passes_over_leave_their_places() {
    const MANY: u64 = 200;
    let mut world = World::new();
    world.append((0..MANY).map(|n| (None, INVALID + n)));
    let mut config = partner();
    config.flood.dead_in_a_row = 0;
    world.live(config.clone(), |_, _| Reply::Take).await;
    let rule = |n: u64| SkipRule {
        rule: n + 1,
        topic: "t".into(),
        partner: None,
        matches: SkipMatch::Id(id_of(INVALID + n).to_string().into_bytes().into()),
        reason: "flood".into(),
        made: Time(1),
        expires: None,
    };
    let rules: Vec<_> = (0..MANY).map(rule).collect();
    for n in 0..MANY {
        let opened = Body::Opened(crate::core::ledger::entry::Opened {
            at: AT,
            id: id_of(INVALID + n),
            round: 2,
            when: Time(1),
            idempotency_key: "again".into(),
        });
        append_entry(&world.log, world.lane, &world.memory, opened);
    }
    config.concurrency = 2;
    let living = world.begin(config, |_, _| Reply::Take);
    let skips = crate::core::resolve::Skips::of(rules.iter(), "t", "p", &living.route.scope);
    living.route.orders.set_skips(0, Arc::new(skips));
    // More than one of them has its place at once, and nothing else happens that would give a free place away.
    let all = living.until(|l| l.memory.state.lock().partitions[&AT].counts.skipped == MANY);
    tokio::time::timeout(Duration::from_secs(20), all)
        .await
        .expect("all of them get their turn");
    living.stop().await;
    assert_eq!(world.partner.lock().seen, []);
}
