//! The partition's actor with its key actors, gate and lane, over an in-memory log and a partner made of a closure.

mod doubts;
mod earlier;
mod effects;
mod memory;
mod order;
mod orders;
mod restart;
mod scope;

use super::*;
use crate::actors::attempt;
use crate::actors::context::{Approach, PartnerContext, RouteFigures};
use crate::actors::effects::{carry_out, claim_here};
use crate::actors::gate::{NodeCap, PartnerGate};
use crate::actors::lines::LineRules;
use crate::clock::Clock;
use crate::config::{Config, IdSource, KeySource, LimitConfig, OnDoubt, PartnerConfig, Rate};
use crate::core::breaker::{BreakerSettings, Cause};
use crate::core::hosts::HostId;
use crate::core::ledger::entry::{BudgetDraw, Intent, Outcome, OutcomeKind, SkipMatch, SkipRule};
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
use crate::memory::MemoryShare;
use crate::patience::{self, Patience};
use crate::sink::{
    Answer, AnswerDetail, Asked, Concerns, Delivery, Gate, Moved, Pace, PrepareError, Sent, Settling,
    Verdict, Verified,
};
use earlier::*;
use parking_lot::Mutex;
use std::cell::RefCell;
use std::panic::Location;
use std::sync::atomic::{AtomicUsize, Ordering};

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
    /// Taken, and answered so late that there is time for orders.
    Slowly,
    /// Taken; the thread stands still for so many ms between the last look at the clock and the write.
    Frozen(u64),
}

#[derive(Default)]
struct Partner {
    /// (key, number of the message, what was replied), in the order of arrival.
    seen: Vec<(String, u64, Reply)>,
    /// What was looked up, and how many requests had been seen by then.
    asked: Vec<(MessageId, usize)>,
    /// When each request and look-up came, by a clock that does not jump.
    came: Vec<std::time::Instant>,
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

impl FakeSink {
    /// Waits until the partner has seen so many requests.
    async fn until_seen(&self, requests: usize) {
        let patience = Patience::begin();
        loop {
            let seen = self.partner.lock().seen.len();
            if seen >= requests {
                return;
            }
            patience.hold("so many requests", || format!("{seen} of {requests}"));
            tokio::task::yield_now().await;
        }
    }
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
            self.until_seen(self.silent_until).await;
            return Err(Answer {
                verdict: Verdict::TryLater,
                status: 0,
                detail: Some(Box::new(AnswerDetail::default())),
                pace: None,
                concerns: None,
            });
        }
        if delivery.record.key.as_deref() == Some(b"slow to connect") {
            self.until_seen(self.silent_until).await;
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
        if let Reply::Frozen(ms) = reply {
            std::thread::sleep(Duration::from_millis(ms));
        }
        {
            let partner = &mut *self.partner.lock();
            partner.seen.push((key, number, reply));
            partner.came.push(std::time::Instant::now());
        }
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
            self.until_seen(self.silent_until).await;
        }
        if let Reply::TakeAt(requests) = reply {
            self.until_seen(requests).await;
        }
        if reply == Reply::Slowly {
            tokio::time::sleep(Duration::from_secs(2)).await;
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
            let own = self.clone();
            let settling = Settling::new(async move {
                own.until_seen(requests).await;
                answer(Verdict::Unknown(DoubtCause::Timeout))
            });
            return Sent::Settling(answer(Verdict::Refused), settling);
        }
        let (verdict, status) = match reply {
            Reply::Take | Reply::TakeAt(_) | Reply::Slowly | Reply::Frozen(_) => (Verdict::Delivered, 200),
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
    /// Look-ups fail.
    refused: std::sync::atomic::AtomicBool,
}

impl Remembered for Memory {
    fn look_up(
        &self,
        _: RoutePartition,
        ids: &[MessageId],
        out: &mut Vec<Option<FinishedState>>,
    ) -> Result<(), String> {
        if self.refused.load(Ordering::Relaxed) {
            return Err("no look-ups at present".to_owned());
        }
        let finished = self.finished.lock();
        out.extend(ids.iter().map(|id| finished.get(id).copied()));
        drop(finished);
        let slow = self.slow.lock().take_if(|(whose, _)| whose(ids));
        if let Some((_, slow)) = slow {
            slow();
        }
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
    #[track_caller]
    fn until(&self, holds: impl Fn(&Self) -> bool) -> impl Future<Output = ()> {
        let (patience, from) = (Patience::begin(), Location::caller());
        async move {
            while !holds(self) {
                patience.hold("what is waited for", || format!("{from}: {}", self.world()));
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    /// Waits until nothing is left to do.
    #[track_caller]
    fn idle(&self) -> impl Future<Output = ()> {
        let (patience, from) = (Patience::begin(), Location::caller());
        async move {
            while !self.is_idle().await {
                patience.hold("a partition without work", || format!("{from}: {}", self.world()));
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    }

    /// Waits until the partition says that it stands for this.
    async fn stands_for(&self, full: Full) {
        self.until(|living| living.route.figures.full.load(Ordering::Relaxed) == full as u8)
            .await;
    }

    /// Waits until it says so no more.
    async fn goes_on(&self) {
        self.until(|living| living.route.figures.full.load(Ordering::Relaxed) == 0)
            .await;
    }

    /// What a test sees that waits in vain.
    fn world(&self) -> String {
        let (route, state) = (&self.route, self.memory.state.lock());
        let (gate, lane) = (&route.partner.gate, route.partner.port.lane());
        let known = state.partitions.get(&AT);
        let seen = &route.partner.sink.partner.lock().seen;
        format!(
            "position {:?}, {:?}, {} requests, the last ones {:?}; {:?}; at the gate {} wait and {} are in, it asks at {}; \
             on the wire {:?}; {} entries are not folded; {} bytes are held",
            known.map(|p| p.position),
            known.map(|p| p.counts),
            seen.len(),
            seen.iter().rev().take(5).collect::<Vec<_>>(),
            route.figures,
            gate.waiting(),
            gate.in_use(),
            gate.ask_at(),
            route.on_wire.borrow(),
            lane.backlog(),
            route.partner.memory.held(),
        )
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

    /// Looks into the actor, or changes it.
    async fn look<R: Send + 'static>(
        &self,
        look: impl FnOnce(&mut PartitionActor<FakeSink>) -> R + Send + 'static,
    ) -> R {
        let (told, seen) = tokio::sync::oneshot::channel();
        let look = Look(Box::new(move |act| drop(told.send(look(act)))));
        self.actor.send(look).await.expect("a living actor");
        seen.await.expect("it looked")
    }

    /// How many requests of a message the partner has seen.
    fn seen(partner: &Mutex<Partner>, number: u64) -> usize {
        partner.lock().seen.iter().filter(|s| s.1 == number).count()
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
        self.until(|l| l.route.partner.port.folded() >= last).await;
        self.route.partner.memory.held()
    }
}

type Looking = Box<dyn FnOnce(&mut PartitionActor<FakeSink>) + Send>;

#[derive(Message)]
#[rtype(result = "()")]
struct Look(Looking);

impl Handler<Look> for PartitionActor<FakeSink> {
    type Result = ();
    fn handle(&mut self, look: Look, _: &mut Context<Self>) {
        (look.0)(self);
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
    copy_every: Duration,
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
    /// Effects that are carried out only once somebody says so.
    late: Rc<RefCell<Option<crate::core::ledger::fold::Effects>>>,
}

impl World {
    fn new() -> Self {
        patience::watch();
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
            copy_every: Duration::from_millis(20),
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
            late: Rc::default(),
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
        let patience = Patience::begin();
        while !living.is_idle().await && !until(&self.memory.state.lock()) {
            patience.hold("the end of a life", || living.world());
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
        let (whom, late) = (here.clone(), self.late.clone());
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
                if let Some(late) = &mut *late.borrow_mut() {
                    late.append(&mut effects);
                }
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
            tick: TICK,
            position_every: self.copy_every,
            waiting_after: self.waiting_after,
            rest_after: self.rest_after,
            stands_after: Duration::from_millis(10),
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
            let later = Outcome {
                id,
                attempts: m.attempts + 1,
                when: Time(2),
                ..outcome(m.offset, 429, later(m.key, m.first_try, Time(3)))
            };
            self.wrote(Body::Outcome(later));
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

/// Every other record is of a key that waits an hour, or whose doubt holds it.
fn every_other_slow(n: u64) -> impl Iterator<Item = (Option<String>, u64)> {
    (0..n).map(|i| match i % 2 {
        0 => (Some("slow".to_owned()), i),
        _ => (Some(format!("k{}", i / 2 % 50)), i),
    })
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

/// Every other record waits for long: without key, or each with a key of its own.
fn every_other_waits(n: u64, keyed: bool) -> impl Iterator<Item = (Option<String>, u64)> {
    (0..n).map(move |i| match i % 2 {
        0 => (keyed.then(|| format!("w{i}")), i),
        _ => (Some(format!("k{}", i / 2 % 50)), i),
    })
}

/// Each record has a key of its own.
fn apart(n: u64) -> impl Iterator<Item = (Option<String>, u64)> {
    (0..n).map(|i| (Some(format!("k{i}")), i))
}

fn requests(world: &World, number: u64) -> usize {
    world.partner.lock().seen.iter().filter(|s| s.1 == number).count()
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
    living.until(|_| counts() == (1, 0)).await;
    living.idle().await;
    // Read in one go: whoever is behind the key's record shows that it was read.
    world.append((1..12).map(|n| (Some(format!("k{}", n - 1)), n)));
    living.until(|_| counts().1 >= 10).await;
    assert!(!living.is_idle().await, "it waits");
    living.stop().await;
    assert_eq!(requests(&world, 1), 0);
}
