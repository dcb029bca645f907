//! A node: starts the tree, waits for a reason to stop, drains, stops in order.

use super::hooks::{NodeHooks, Phase, Rate, Routes, Topics};
use super::live::{LONGEST_WRITE, LaneWriter, LiveNode, LiveParts};
use super::open::{OpenError, Opened, open};
use super::partner::PartnerStart;
use super::plan;
use super::reload::{Again, Present, listen, on_hangup};
use crate::actors::arbiter::{self, local};
use crate::actors::effects;
use crate::actors::gate::NodeCap;
use crate::actors::ledger::{Feed, Inputs, LedgerActor, LedgerParts};
use crate::actors::lifeline::{End, Lifeline};
use crate::actors::limiter::RateLimiterActor;
use crate::actors::supervisor::{Add, Child, Stopping, Supervisor};
use crate::actors::topic::{DrainTopic, IsTopicIdle, RoutePlan, StopTopic, TopicSupervisor};
use crate::admin::{AdminError, AdminOptions, AdminServer, serve};
use crate::clock::Clock;
use crate::config::{Config, Secret, SecretSource, TopicConfig, raise_open_files};
use crate::core::in_full::in_full;
use crate::core::ledger::entry::{Body, RouteInfo, Used};
use crate::ledger::duties::DutyRules;
use crate::ledger::keeper::{Keeper, KeeperError};
use crate::ledger::lane::{Lane, LanePort};
use crate::log::LogError;
use crate::memory::MemoryShare;
use crate::sink::secrets::{SecretError, Secrets};
use crate::telemetry::logging::Logging;
use crate::telemetry::metrics::Metrics;
use actix::prelude::*;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
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
    /// The admin port cannot be had.
    #[error(transparent)]
    Admin(#[from] AdminError),
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Messages delivered, since the ledger's beginning.
    pub delivered: u64,
    /// Dead letters kept now.
    pub dead: u64,
    /// Messages parked now.
    pub parked: u64,
    /// Messages whose request had no known outcome when the node ended: the next start decides by the doubt policy.
    pub in_doubt: u64,
    /// What would help the partners of which messages are parked.
    pub hints: Vec<String>,
    /// Why it ended.
    pub ended: Ended,
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ended {
    /// Nothing waited any more.
    #[default]
    Drained,
    /// The time ran out before everything was drained.
    TimedOut,
    /// It was told to stop, by SIGTERM or SIGINT.
    Told,
}

/// What a node is made of.
pub struct NodeParts {
    /// Its configuration.
    pub config: Config,
    /// The files that it was read from.
    pub files: Vec<PathBuf>,
    /// Reads it once more, at SIGHUP; none: SIGHUP is not listened for.
    pub again: Option<Again>,
    /// Where the secrets come from that it uses.
    pub secrets: BTreeMap<String, SecretSource>,
    /// What callers of the admin port must show, if it is set.
    pub token: Option<Secret>,
    /// The log lines, if this process set them up.
    pub logging: Option<Logging>,
}

/// How long a start waits for another process to let go of the folder: commands on it take a fraction of that.
const PATIENCE: Duration = Duration::from_secs(3);
/// So often it is looked whether the folder is free.
const LOCKED_EVERY: Duration = Duration::from_millis(20);
/// Whether nothing waits is asked so often.
const IDLE_EVERY: Duration = Duration::from_millis(20);
/// A run that ends once nothing waits says what it waits for after so long ...
const WAITS_FIRST: Duration = Duration::from_secs(10);
/// ... and then so often.
const WAITS_EVERY: Duration = Duration::from_secs(60);
/// So often it is looked for new topics that a pattern matches.
const TOPICS_EVERY: Duration = Duration::from_secs(5);
/// A smaller step of the wall clock is a clock being kept right.
const CLOCK_SET_US: u64 = 1_000_000;
/// Secrets from files are read again so often; a change resumes a partner that refused the old ones.
const SECRETS_EVERY: Duration = Duration::from_secs(10);

/// Runs a node until it is told to stop, or drained.
///
/// # Errors
/// [`RunError`].
pub fn run(parts: NodeParts, options: RunOptions) -> Result<Summary, RunError> {
    let clock = Clock::start();
    // Each request holds a descriptor; the configuration's check compares the bound with what can be had.
    let _ = raise_open_files();
    let secrets = Secrets::load(&parts.secrets).map_err(RunError::Secrets)?;
    let opened = open_patiently(&parts.config, clock)?;
    let report = &opened.report;
    tracing::info!(
        event = "restored", from = %report.folded, entries = report.entries, store = %report.store,
        took_ms = report.took.as_millis() as u64, "the ledger is read: this is where the last life ended"
    );
    System::new().block_on(Node::new(parts, clock, secrets, opened).run(options))
}

/// Opens the folder; waits a little while another process has it. A command on the folder of a stopped node holds
/// it for a moment, and must not keep the node from starting.
fn open_patiently(config: &Config, clock: Clock) -> Result<Opened, OpenError> {
    let until = Instant::now() + PATIENCE;
    loop {
        match open(config, clock) {
            Err(OpenError::Log(LogError::Locked { .. })) if Instant::now() < until => {
                std::thread::sleep(LOCKED_EVERY);
            }
            opened => return opened,
        }
    }
}

struct Node {
    config: Arc<Config>,
    present: Present,
    files: Vec<PathBuf>,
    again: Option<Again>,
    token: Option<Secret>,
    logging: Option<Logging>,
    clock: Clock,
    secrets: Secrets,
    opened: Opened,
    metrics: Arc<Metrics>,
}

type Homes = BTreeMap<String, ArbiterHandle>;

impl Node {
    fn new(parts: NodeParts, clock: Clock, secrets: Secrets, opened: Opened) -> Self {
        let config = Arc::new(parts.config);
        Self {
            present: Arc::new(parking_lot::Mutex::new(config.clone())),
            config,
            files: parts
                .files
                .iter()
                .filter_map(|file| file.canonicalize().ok())
                .collect(),
            again: parts.again,
            token: parts.token,
            logging: parts.logging,
            clock,
            secrets,
            opened,
            metrics: Arc::new(Metrics::new()),
        }
    }

    async fn run(mut self, options: RunOptions) -> Result<Summary, RunError> {
        let again = self.again.take().and_then(|again| Some((listen()?, again)));
        // Before anybody can ask the node anything: a signal that comes while it starts ends it in order, too.
        let stop = told_to_stop();
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
        let feed = Feed::new(feed);

        let inputs = Inputs::default();

        let threads = match self.config.actors.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let arbiters: Vec<Arbiter> = (0..threads).map(|_| Arbiter::new()).collect();
        let folding = Arbiter::new();
        let mut homes = Homes::new();
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
        let shares = MemoryShare::divide_beside(
            self.config.node.memory,
            plan::budget_bytes(&self.config).1 as u64,
            homes.len(),
        );
        let hooks = self.hooks(&arbiters, &homes, &shares, lane.clone());
        let (outlet, inlet) = effects::channel();
        let handles: Vec<_> = arbiters.iter().map(Arbiter::handle).collect();
        actix_rt::spawn(inlet.run(move |effects| effects::hand_to(&handles, &effects)));
        let writer = LaneWriter::open(lane.clone(), outlet.carried().clone());
        let (server, live) = self.serve(&hooks, writer)?;

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
                    metrics: self.metrics.clone(),
                    effects: outlet,
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

        let own = [
            Some(self.config.listen.admin),
            self.config.listen.probes,
            server.admin(),
            server.probes(),
        ];
        let own = own.into_iter().flatten().collect();
        self.start_partners(&homes, shares, &hooks.cap, own).await?;
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

        let main = LanePort::open(lane.clone());
        for used in keeper.with_state(|state| plan::horizons(&self.config, state.used.horizons())) {
            main.outcome(Body::Used(used));
        }
        let mut queue = 0;
        for (name, plans) in self.plan_topics(&homes, &main, &hooks, &mut queue)? {
            inputs.lock().extend(plan::inputs(&self.config, &plans));
            children.push(self.topic(name, plans, &hooks.topics));
        }
        let supervisor = Supervisor::new(
            children,
            self.config.actors.restart.clone(),
            self.clock,
            self.metrics.clone(),
            fatal.clone(),
            Lifeline::new(move |end| {
                // Nobody is above it: the process ends, and what is durable is there for the next one. The
                // receiver is gone only when the node is ending already.
                if end != End::Orderly {
                    let _ = fatal.send(format!("the supervisor failed: {end:?}"));
                }
            }),
        )
        .start();
        self.watch_secrets(&arbiters);
        if let Some((hangup, again)) = again {
            let homes = arbiters.iter().map(Arbiter::handle).collect();
            actix_rt::spawn(on_hangup(
                hangup,
                again,
                self.present.clone(),
                keeper.clone(),
                homes,
            ));
        }
        hooks.count_books();
        hooks.keep_beating();
        hooks.enter(Phase::Running);

        let deadline = options.timeout.map(|t| Instant::now() + t);
        let (mut stop, mut done) = (pin!(stop), pin!(drained(&hooks, deadline)));
        let mut look = tokio::time::interval(TOPICS_EVERY);
        let ended = loop {
            tokio::select! {
                // Nothing may act on what is not durable: no drain, no checkpoint.
                Some(reason) = fatal_reason.recv() => {
                    for arbiter in arbiters.iter().chain([&folding]) {
                        arbiter.stop();
                    }
                    return Err(RunError::Fatal(reason));
                }
                () = &mut stop => break Ended::Told,
                ended = &mut done, if options.until_drained => break ended,
                _ = look.tick() => {
                    self.tell_clock(keeper, &main);
                    match self.plan_topics(&homes, &main, &hooks, &mut queue) {
                    Ok(new) => for (name, plans) in new {
                        tracing::info!(event = "topic_found", topic = name, "a new topic matches a pattern");
                        inputs.lock().extend(plan::inputs(&self.config, &plans));
                        supervisor.do_send(Add(self.topic(name, plans, &hooks.topics)));
                    },
                    Err(error) => tracing::error!(event = "topics_unread", error = in_full(&error), "cannot look for new topics"),
                    }
                }
            }
        };
        hooks.enter(Phase::Draining);
        live.end_imports();
        tracing::info!(
            event = "draining",
            why = ?ended,
            "no new attempts; waiting for requests in flight"
        );
        supervisor.do_send(Stopping);
        let hints = hooks.hints();
        if self.drain(&hooks).await {
            // Nobody has to wait for a request of this life any more.
            main.outcome(Body::Released(vec![*life]));
        }
        server.stop();
        main.flush();
        drop(main);
        for home in &arbiters {
            arbiter::on(&home.handle(), || {
                local(|local| {
                    local.partitions.clear();
                    local.routes.clear();
                    local.orders.clear();
                    local.partners.clear();
                    local.port = None;
                });
            })
            .await;
        }
        self.settle(&lane).await;
        match keeper.checkpoint() {
            Err(error) if error.passes() => {
                let why = error.why();
                tracing::warn!(
                    event = "checkpoint_failed",
                    why,
                    "the last checkpoint cannot be written: nothing is lost, the next start reads more of the ledger"
                );
            }
            done => done?,
        }
        log.close()?;
        Ok(self.summary(ended, hints))
    }

    fn hooks(
        &self,
        arbiters: &[Arbiter],
        homes: &Homes,
        shares: &[MemoryShare],
        lane: Lane,
    ) -> Arc<NodeHooks> {
        let beat = |arbiter: &Arbiter| (arbiter.handle(), Arc::new(AtomicU64::new(self.clock.now().0)));
        let rate = |name: &String| (name.clone(), Rate::of(self.metrics.partner(name).delivered));
        Arc::new(NodeHooks {
            topics: Topics::default(),
            routes: Routes::default(),
            homes: homes.clone(),
            arbiters: arbiters.iter().map(beat).collect(),
            cap: NodeCap::new(self.config.actors.requests),
            memory: homes.keys().cloned().zip(shares.iter().cloned()).collect(),
            lane,
            metrics: self.metrics.clone(),
            log: self.opened.log.clone(),
            keeper: self.opened.keeper.clone(),
            clock: self.clock,
            phase: (Phase::Starting as u8).into(),
            config: self.config.clone(),
            present: self.present.clone(),
            rates: parking_lot::Mutex::new(homes.keys().map(rate).collect()),
            full_of_kept: parking_lot::Mutex::default(),
        })
    }

    /// Opens the admin port, and the one for probes.
    fn serve(
        &self,
        hooks: &Arc<NodeHooks>,
        writer: LaneWriter,
    ) -> Result<(AdminServer, LiveNode), AdminError> {
        let node = LiveNode::new(LiveParts {
            config: self.config.clone(),
            secrets: self.secrets.values(),
            clock: self.clock,
            log: self.opened.log.clone(),
            lane: self.opened.lane,
            keeper: self.opened.keeper.clone(),
            writer,
            longest_write: LONGEST_WRITE,
            files: self.files.clone(),
            memory: hooks.memory.values().next().cloned(),
            metrics: self.metrics.clone(),
            logging: self.logging.clone(),
            hooks: hooks.clone(),
        });
        let options = AdminOptions {
            admin: Some(self.config.listen.admin),
            probes: self.config.listen.probes,
            token: self.token.as_ref().map(|token| token.expose().to_owned()),
        };
        let server = serve(options, Arc::new(node.clone()))?;
        if let Some(address) = server.admin() {
            tracing::info!(event = "admin_port", address = %address, "status and orders: http://{address}/");
        }
        Ok((server, node))
    }

    /// Notes in the ledger that the wall clock was set: the slots of this life are told by the clock as it stood at its
    /// beginning, those of the next one will not be.
    fn tell_clock(&self, keeper: &Keeper, port: &LanePort) {
        let ahead = Clock::wall().0 as i64 - self.clock.now().0 as i64;
        let told = keeper.with_state(|state| state.used.wall_ahead());
        if ahead.abs_diff(told) >= CLOCK_SET_US {
            port.outcome(Body::Used(Used::clock(ahead)));
        }
    }

    /// Reads secrets again now and then.
    fn watch_secrets(&self, arbiters: &[Arbiter]) {
        if self.secrets.is_empty() {
            return;
        }
        let secrets = self.secrets.clone();
        let arbiters: Vec<_> = arbiters.iter().map(Arbiter::handle).collect();
        actix_rt::spawn(async move {
            loop {
                tokio::time::sleep(SECRETS_EVERY).await;
                let again = secrets.clone();
                let Ok(found) = tokio::task::spawn_blocking(move || again.reload()).await else {
                    continue;
                };
                for error in &found.errors {
                    tracing::warn!(
                        event = "secret_unreadable",
                        name = error.name,
                        error = error as &dyn std::error::Error,
                        "the old value is kept"
                    );
                }
                if found.changed.is_empty() {
                    continue;
                }
                tracing::info!(event = "secrets_changed", names = ?found.changed, "new requests use the new values");
                for home in &arbiters {
                    home.spawn_fn(|| {
                        let partners: Vec<_> = local(|l| l.partners.values().cloned().collect());
                        for partner in partners {
                            partner.hosts.borrow_mut().secrets_changed(partner.clock.now());
                            partner.gate.with(|turnstile, now| turnstile.secrets_changed(now));
                        }
                    });
                }
            }
        });
    }

    /// Makes each partner's context on its arbiter.
    async fn start_partners(
        &self,
        homes: &Homes,
        shares: Vec<MemoryShare>,
        cap: &Arc<NodeCap>,
        own: Vec<std::net::SocketAddr>,
    ) -> Result<(), RunError> {
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
                own: own.clone(),
                metrics: self.metrics.clone(),
                keeper: self.opened.keeper.clone(),
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

    fn topic(&self, name: String, plans: Vec<RoutePlan>, topics: &Topics) -> Child {
        let (topics, restart) = (topics.clone(), self.config.actors.restart.clone());
        let (clock, metrics) = (self.clock, self.metrics.clone());
        let key = name.clone();
        Child {
            kind: "topic",
            name,
            build: Box::new(move |lifeline| {
                let topic =
                    TopicSupervisor::new(plans.clone(), restart.clone(), clock, metrics.clone(), lifeline);
                topics.lock().insert(key.clone(), topic.start());
            }),
        }
    }

    /// Makes the topics that are not planned yet and plans their routes; names new routes in the ledger.
    fn plan_topics(
        &self,
        homes: &Homes,
        port: &Rc<LanePort>,
        hooks: &NodeHooks,
        queue: &mut u32,
    ) -> Result<Vec<(String, Vec<RoutePlan>)>, RunError> {
        let mut all = Vec::new();
        for section in self.config.topics.values() {
            for name in self.names(section)? {
                let place = |p: &RoutePlan| (p.topic.to_string(), p.partner.to_string(), p.at.partition);
                let mut routes = hooks.routes.lock();
                if routes.keys().any(|(topic, ..)| *topic == name) {
                    continue;
                }
                let planned = self.plan_topic(section, name, homes, port, queue)?;
                routes.extend(planned.1.iter().map(|p| (place(p), p.figures.clone())));
                all.push(planned);
            }
        }
        Ok(all)
    }

    /// The topics that a section is for.
    fn names(&self, section: &TopicConfig) -> Result<Vec<String>, RunError> {
        let Some(pattern) = &section.pattern else {
            return Ok(vec![section.name.clone()]);
        };
        let whole =
            regex::Regex::new(&format!("^(?:{pattern})$")).map_err(|e| RunError::Partners(e.to_string()))?;
        // A topic that is named goes by its own section.
        let named = |name: &String| {
            self.config
                .topics
                .values()
                .any(|t| t.pattern.is_none() && t.name == *name)
        };
        let topics = self.opened.log.topics().into_iter().map(|t| t.name);
        Ok(topics
            .filter(|name| !name.starts_with("__") && whole.is_match(name) && !named(name))
            .collect())
    }

    fn plan_topic(
        &self,
        section: &TopicConfig,
        name: String,
        homes: &Homes,
        port: &Rc<LanePort>,
        queue: &mut u32,
    ) -> Result<(String, Vec<RoutePlan>), RunError> {
        let Opened {
            log, lane, keeper, ..
        } = &self.opened;
        let meta = match (log.topic(&name), &section.pattern) {
            (Some(meta), Some(_)) => meta,
            _ => log.create_topic(&name, &crate::intake::topic_spec(&self.config, section))?,
        };
        let plans = plan::plans(&self.config, section, &meta, homes, log, (*lane, keeper), queue);
        for plan in plans.iter().filter(|p| p.at.partition == 0) {
            if plan.fresh {
                port.outcome(Body::Route(RouteInfo {
                    route: plan.at.route,
                    topic: plan.topic.to_string(),
                    topic_id: plan.topic_id,
                    partner: plan.partner.to_string(),
                }));
            }
        }
        Ok((name, plans))
    }

    /// Waits until nothing is in hand, at most `node.drain`, then ends all topics. Answers whether nothing was left
    /// on the wire.
    async fn drain(&self, hooks: &NodeHooks) -> bool {
        let until = Instant::now() + self.config.node.drain;
        let topics: Vec<_> = hooks.topics.lock().values().cloned().collect();
        let quiet = loop {
            let mut in_hand = 0;
            for topic in &topics {
                in_hand += topic.send(DrainTopic).await.map_or(0, |d| d.in_hand);
            }
            // Who has a slot and no intent yet counts for the stop, but can be in no doubt.
            if in_hand == 0 && hooks.cap.in_flight() == 0 {
                break true;
            }
            if Instant::now() >= until {
                tracing::warn!(
                    event = "drain_over",
                    in_hand,
                    "requests are still in flight; they are in doubt"
                );
                break false;
            }
            tokio::time::sleep(IDLE_EVERY).await;
        };
        for topic in &topics {
            // One that is gone has stopped already.
            let _ = topic.send(StopTopic).await;
        }
        quiet
    }

    /// Waits until everything appended is durable and folded.
    async fn settle(&self, lane: &Lane) {
        let until = Instant::now() + self.config.node.drain;
        while lane.backlog() > 0 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn summary(&self, ended: Ended, hints: Vec<String>) -> Summary {
        self.opened.keeper.with_state(|state| {
            let mut summary = Summary {
                ended,
                hints,
                ..Summary::default()
            };
            for partition in state.partitions.values() {
                // What an operator has confirmed or marked has been delivered too.
                summary.delivered += partition.counts.delivered + partition.counts.marked;
                let totals = partition.messages.totals();
                summary.dead += totals.dead;
                summary.parked += totals.parked;
                summary.in_doubt += totals.open;
            }
            summary
        })
    }
}

/// Returns when nothing waits, or the time is over.
async fn drained(hooks: &NodeHooks, deadline: Option<Instant>) -> Ended {
    let mut say = Instant::now() + WAITS_FIRST;
    loop {
        if Instant::now() >= say {
            say += WAITS_EVERY;
            for (partner, waits) in hooks.waits() {
                let why: Vec<&str> = waits.iter().map(|wait| wait.text.as_str()).collect();
                tracing::info!(event = "waiting", partner = %partner, why = why.join("; "), "not drained yet");
            }
        }
        tokio::time::sleep(IDLE_EVERY).await;
        let topics = hooks.topics.lock().clone();
        // One that is planned and not there yet has not been asked.
        let mut idle = (hooks.routes.lock().keys()).all(|(topic, ..)| topics.contains_key(topic));
        let all: Vec<_> = topics.into_values().collect();
        for topic in all {
            idle &= topic.send(IsTopicIdle).await.unwrap_or(false);
        }
        if idle {
            return Ended::Drained;
        }
        if deadline.is_some_and(|d| Instant::now() >= d) {
            return Ended::TimedOut;
        }
    }
}

/// Waits for SIGTERM or SIGINT, which are listened for from this call on. A second one ends the process at once.
fn told_to_stop() -> impl Future<Output = ()> {
    use tokio::signal::unix::{SignalKind, signal};
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    async move {
        let (Ok(mut term), Ok(mut int)) = signals else {
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
}
