//! A node: starts the tree, waits for a reason to stop, drains, stops in order.

use super::open::{OpenError, Opened, open};
use super::plan;
use crate::actors::arbiter::{self, local};
use crate::actors::context::PartnerContext;
use crate::actors::gate::{NodeCap, PartnerGate};
use crate::actors::ledger::{Feed, Inputs, LedgerActor, LedgerParts};
use crate::actors::limiter::RateLimiterActor;
use crate::actors::memory::MemoryShare;
use crate::actors::supervisor::{Child, Stopping, Supervisor};
use crate::actors::topic::{DrainTopic, IsTopicIdle, RoutePlan, StopTopic, TopicSupervisor};
use crate::clock::Clock;
use crate::config::{Config, PartnerConfig};
use crate::core::breaker::BreakerSettings;
use crate::core::ledger::entry::{Body, RouteInfo};
use crate::core::limiter::BudgetTable;
use crate::core::turnstile::Turnstile;
use crate::ledger::duties::DutyRules;
use crate::ledger::keeper::KeeperError;
use crate::ledger::lane::{Lane, LanePort};
use crate::log::LogError;
use crate::sink::http::HttpSink;
use crate::sink::secrets::{SecretError, Secrets};
use crate::telemetry::metrics::Metrics;
use actix::prelude::*;
use parking_lot::Mutex;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Why a node cannot run, or ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Its folder cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Secrets are missing.
    #[error("secrets are missing: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Secrets(Vec<SecretError>),
    /// A topic cannot be made or read.
    #[error("cannot prepare the topics")]
    Log(#[from] LogError),
    /// A partner's settings cannot be carried out.
    #[error("cannot prepare the partners: {0}")]
    Partners(String),
    /// Something failed that cannot be mended while running.
    #[error("the node must end: {0}")]
    Fatal(String),
    /// The last checkpoint cannot be written; nothing is lost, the next start reads more.
    #[error("cannot write the last checkpoint")]
    Keeper(#[from] KeeperError),
}

/// How to run.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunOptions {
    /// End once nothing waits.
    pub until_drained: bool,
    /// Give up after so long.
    pub timeout: Option<Duration>,
}

/// What a run came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Messages delivered, since the ledger's beginning.
    pub delivered: u64,
    /// Dead letters kept now.
    pub dead: u64,
    /// Messages parked now.
    pub parked: u64,
    /// The time ran out before everything was drained.
    pub timed_out: bool,
}

/// Whether nothing waits is asked so often.
const IDLE_EVERY: Duration = Duration::from_millis(20);
/// How long before its slot a start is prepared: about twice a commit with its gap.
const LEAD: Duration = Duration::from_millis(4);

/// Runs a node until it is told to stop, or drained.
///
/// # Errors
/// [`RunError`].
pub fn run(config: Config, options: RunOptions) -> Result<Summary, RunError> {
    let clock = Clock::start();
    let secrets = Secrets::load(&config.secrets).map_err(RunError::Secrets)?;
    let opened = open(&config, clock)?;
    tracing::info!(event = "restored", report = ?opened.report, "the ledger is restored");
    System::new().block_on(Node::new(Arc::new(config), clock, secrets, opened).run(options))
}

struct Node {
    config: Arc<Config>,
    clock: Clock,
    secrets: Secrets,
    opened: Opened,
    metrics: Arc<Metrics>,
}

type Topics = Arc<Mutex<BTreeMap<String, Addr<TopicSupervisor>>>>;

impl Node {
    fn new(config: Arc<Config>, clock: Clock, secrets: Secrets, opened: Opened) -> Self {
        Self {
            config,
            clock,
            secrets,
            opened,
            metrics: Arc::new(Metrics::new()),
        }
    }

    async fn run(self, options: RunOptions) -> Result<Summary, RunError> {
        let (fatal, mut fatal_reason) = tokio::sync::mpsc::unbounded_channel();
        let Opened {
            log,
            lane,
            keeper,
            tenure,
            life,
            ..
        } = &self.opened;
        let log_failed = fatal.clone();
        let on_fatal = Box::new(move |error: LogError| drop(log_failed.send(error.to_string())));
        let (lane, feed) = Lane::new(log.clone(), *lane, *tenure, *life, self.clock, on_fatal);
        let feed: Feed = Arc::new(tokio::sync::Mutex::new(feed));

        let inputs = Inputs::default();

        let threads = match self.config.actors.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let arbiters: Vec<Arbiter> = (0..threads).map(|_| Arbiter::new()).collect();
        let folding = Arbiter::new();
        let mut homes: BTreeMap<String, ArbiterHandle> = BTreeMap::new();
        for (i, group) in plan::groups(&self.config).into_iter().enumerate() {
            let home = arbiters[i % threads].handle();
            homes.extend(group.into_iter().map(|name| (name, home.clone())));
        }
        for home in &arbiters {
            let lane = lane.clone();
            arbiter::on(&home.handle(), move || {
                local(|local| local.port = Some(LanePort::open(lane)));
            })
            .await;
        }

        // The ledger folds before anything is asked of it.
        let mut children = vec![Child {
            kind: "ledger",
            name: "lane 0".into(),
            build: {
                let parts = LedgerParts {
                    keeper: keeper.clone(),
                    lane: lane.clone(),
                    feed: feed.clone(),
                    inputs: inputs.clone(),
                    rules: DutyRules::of(&self.config),
                    clock: self.clock,
                };
                let folding = folding.handle();
                Box::new(move |lifeline| {
                    let parts = parts.clone();
                    folding.spawn_fn(move || {
                        LedgerActor::new(parts, lifeline).start();
                    });
                })
            },
        }];

        self.start_partners(&homes).await?;
        for (name, home) in &homes {
            let (partner, home, clock): (Arc<str>, _, _) = (name.as_str().into(), home.clone(), self.clock);
            children.push(Child {
                kind: "limiter",
                name: name.clone(),
                build: Box::new(move |lifeline| {
                    let partner = partner.clone();
                    home.spawn_fn(move || {
                        if let Some(context) = local(|l| l.partners.get(&partner).cloned()) {
                            RateLimiterActor::new(context.gate.clone(), clock, lifeline).start();
                        }
                    });
                }),
            });
        }

        let topics: Topics = Topics::default();
        let main = LanePort::open(lane.clone());
        for (name, plans) in self.plan_topics(&homes, &main)? {
            inputs.lock().extend(plan::inputs(&self.config, &plans));
            let (topics, restart) = (topics.clone(), self.config.actors.restart.clone());
            let (clock, metrics) = (self.clock, self.metrics.clone());
            let key = name.clone();
            children.push(Child {
                kind: "topic",
                name,
                build: Box::new(move |lifeline| {
                    let topic = TopicSupervisor::new(
                        plans.clone(),
                        restart.clone(),
                        clock,
                        metrics.clone(),
                        lifeline,
                    );
                    topics.lock().insert(key.clone(), topic.start());
                }),
            });
        }
        let supervisor = Supervisor::new(
            children,
            self.config.actors.restart.clone(),
            self.clock,
            self.metrics.clone(),
            fatal.clone(),
        )
        .start();

        let mut timed_out = false;
        let deadline = options.timeout.map(|t| Instant::now() + t);
        let failure = tokio::select! {
            reason = fatal_reason.recv() => reason,
            () = told_to_stop() => None,
            out_of_time = drained(&topics, deadline), if options.until_drained => {
                timed_out = out_of_time;
                None
            }
        };
        if let Some(reason) = failure {
            // Nothing may act on what is not durable: no drain, no checkpoint.
            return Err(RunError::Fatal(reason));
        }
        tracing::info!(
            event = "draining",
            "no new attempts; waiting for requests in flight"
        );
        supervisor.do_send(Stopping);
        self.drain(&topics).await;
        main.flush();
        drop(main);
        for home in &arbiters {
            arbiter::on(&home.handle(), || {
                local(|local| {
                    local.routes.clear();
                    local.partners.clear();
                    local.port = None;
                });
            })
            .await;
        }
        self.settle(&lane).await;
        keeper.checkpoint()?;
        log.close()?;
        Ok(self.summary(timed_out))
    }

    /// Makes each partner's context on its arbiter.
    async fn start_partners(&self, homes: &BTreeMap<String, ArbiterHandle>) -> Result<(), RunError> {
        let cap = NodeCap::new(self.config.actors.requests);
        let shares = MemoryShare::divide(self.config.node.memory, homes.len());
        for (i, ((name, home), memory)) in homes.iter().zip(shares).enumerate() {
            let Some(partner) = self.config.partners.get(name).cloned() else {
                continue;
            };
            let start = PartnerStart {
                number: i as u32,
                partner,
                memory,
                config: self.config.clone(),
                clock: self.clock,
                secrets: self.secrets.clone(),
                cap: cap.clone(),
                metrics: self.metrics.clone(),
                used: self.opened.keeper.with_state(|s| s.used.clone()),
                paused: self.opened.keeper.with_state(|s| s.paused.contains_key(name)),
            };
            match arbiter::on(home, move || start.start()).await {
                Some(Ok(())) => {}
                Some(Err(why)) => return Err(RunError::Partners(why)),
                None => return Err(RunError::Fatal("an arbiter ended".into())),
            }
        }
        Ok(())
    }

    /// Makes the topics and plans their routes; names new routes in the ledger.
    fn plan_topics(
        &self,
        homes: &BTreeMap<String, ArbiterHandle>,
        port: &Rc<LanePort>,
    ) -> Result<Vec<(String, Vec<RoutePlan>)>, RunError> {
        let log = &self.opened.log;
        let mut queue = 0;
        let mut all = Vec::new();
        for section in self.config.topics.values() {
            let names = match &section.pattern {
                None => vec![section.name.clone()],
                Some(pattern) => {
                    let whole = regex::Regex::new(&format!("^(?:{pattern})$"))
                        .map_err(|e| RunError::Partners(e.to_string()))?;
                    let topics = log.topics().into_iter().map(|t| t.name);
                    topics
                        .filter(|name| !name.starts_with("__") && whole.is_match(name))
                        .collect()
                }
            };
            for name in names {
                let meta = match (log.topic(&name), &section.pattern) {
                    (Some(meta), Some(_)) => meta,
                    _ => log.create_topic(&name, &crate::intake::topic_spec(&self.config, section))?,
                };
                let plans = plan::plans(
                    &self.config,
                    section,
                    &meta,
                    homes,
                    log,
                    &self.opened.keeper,
                    &mut queue,
                );
                for plan in plans.iter().filter(|p| p.at.partition == 0) {
                    let known = self
                        .opened
                        .keeper
                        .with_state(|s| s.routes.contains_key(&plan.at.route));
                    if !known {
                        port.outcome(Body::Route(RouteInfo {
                            route: plan.at.route,
                            topic: plan.topic.to_string(),
                            topic_id: plan.topic_id,
                            partner: plan.partner.to_string(),
                        }));
                    }
                }
                all.push((name, plans));
            }
        }
        Ok(all)
    }

    /// Waits until nothing is in hand, at most `node.drain`, then ends all topics.
    async fn drain(&self, topics: &Topics) {
        let until = Instant::now() + self.config.node.drain;
        let topics: Vec<_> = topics.lock().values().cloned().collect();
        loop {
            let mut in_hand = 0;
            for topic in &topics {
                in_hand += topic.send(DrainTopic).await.map_or(0, |d| d.in_hand);
            }
            if in_hand == 0 {
                break;
            }
            if Instant::now() >= until {
                tracing::warn!(
                    event = "drain_over",
                    in_hand,
                    "requests are still in flight; they are in doubt"
                );
                break;
            }
            tokio::time::sleep(IDLE_EVERY).await;
        }
        for topic in &topics {
            // One that is gone has stopped already.
            let _ = topic.send(StopTopic).await;
        }
    }

    /// Waits until everything appended is durable and folded.
    async fn settle(&self, lane: &Lane) {
        let until = Instant::now() + self.config.node.drain;
        while !lane.is_settled() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn summary(&self, timed_out: bool) -> Summary {
        use crate::core::ledger::fold::MessageState;
        self.opened.keeper.with_state(|state| {
            let mut summary = Summary {
                timed_out,
                ..Summary::default()
            };
            for partition in state.partitions.values() {
                summary.delivered += partition.counts.delivered;
                for message in partition.messages.values() {
                    match message.state {
                        MessageState::Dead => summary.dead += 1,
                        MessageState::Parked => summary.parked += 1,
                        _ => {}
                    }
                }
            }
            summary
        })
    }
}

/// Returns when nothing waits (false), or the time is over (true).
async fn drained(topics: &Topics, deadline: Option<Instant>) -> bool {
    loop {
        tokio::time::sleep(IDLE_EVERY).await;
        let all: Vec<_> = topics.lock().values().cloned().collect();
        let mut idle = true;
        for topic in all {
            idle &= topic.send(IsTopicIdle).await.unwrap_or(false);
        }
        if idle {
            return false;
        }
        if deadline.is_some_and(|d| Instant::now() >= d) {
            return true;
        }
    }
}

/// SIGTERM or SIGINT; a second one ends the process at once.
async fn told_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!(
            event = "no_signals",
            "cannot listen for signals; only kill -9 will end this node"
        );
        return std::future::pending().await;
    };
    tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
    actix_rt::spawn(async move {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        tracing::warn!(event = "second_signal", "ending at once");
        std::process::exit(130);
    });
}

/// What a partner is started from, on its arbiter.
struct PartnerStart {
    number: u32,
    partner: PartnerConfig,
    memory: MemoryShare,
    config: Arc<Config>,
    clock: Clock,
    secrets: Secrets,
    cap: Arc<NodeCap>,
    metrics: Arc<Metrics>,
    used: BTreeMap<crate::core::ledger::entry::BudgetDraw, crate::core::ledger::fold::UsedSlots>,
    paused: bool,
}

thread_local! {
    /// Budgets of the partners on this arbiter.
    static BUDGETS: Rc<RefCell<BudgetTable>> = Rc::new(RefCell::new(BudgetTable::new()));
}

impl PartnerStart {
    fn start(self) -> Result<(), String> {
        let now = self.clock.now();
        let table = BUDGETS.with(Rc::clone);
        for (budget, limit) in plan::budgets(&self.config, &self.partner) {
            let table = &mut *table.borrow_mut();
            if table.get_mut(budget).is_none() {
                // Nothing was granted under another rate yet, so nothing has to be waited for.
                let _ = table
                    .set(budget, limit, now)
                    .map_err(|e| format!("{}: {e}", self.partner.name))?;
                // No fresh burst after a restart: the slots of the last windows are in the ledger (I5).
                for (draw, used) in self.used.iter().filter(|(draw, _)| draw.budget == budget) {
                    table.restore(*draw, used, now);
                }
            }
        }
        let mut turnstile = Turnstile::new(self.number, BreakerSettings::of(&self.partner), now);
        if self.paused {
            turnstile.pause(now);
        }
        let permits = self.config.actors.permits;
        let gate = PartnerGate::new(turnstile, table, self.clock, LEAD, permits, self.cap);
        let sink = HttpSink::try_new(&self.partner, &self.secrets, self.clock)
            .map_err(|e| format!("{}: {e}", self.partner.name))?;
        let port = local(|l| l.port.clone()).ok_or("no port on this arbiter")?;
        let name: Arc<str> = self.partner.name.as_str().into();
        let context = PartnerContext {
            name: name.clone(),
            metrics: self.metrics.partner(&name),
            config: Arc::new(self.partner),
            ledger: self.config.ledger.clone(),
            sink,
            port,
            gate,
            memory: self.memory,
            clock: self.clock,
        };
        local(|l| l.partners.insert(name, Rc::new(context)));
        Ok(())
    }
}
