//! The control side of a running node: [`NodeApi`] over its keeper, desk, log and importer.
//!
//! Nothing here sits on an arbiter of the hot path. Questions copy what they need out of the fold and are answered on
//! blocking threads; entries of orders go through a port of the lane that lives on the thread where [`LaneWriter`]
//! was made, or through that of the partner's arbiter. What follows from them the ledger's actor hands to the
//! partitions; here somebody only waits for it. What only the actors know (requests on the wire, breakers) comes in
//! through [`Hooks`].

use crate::actors::effects::{Awaiting, Carried, claim};
use crate::actors::memory::MemoryShare;
use crate::admin::{Answer, Exported, Lines, NodeApi, Upload};
use crate::api::{
    ApiError, Filter, Health, ImportReport, ImportRequest, NodeIdentity, OrderReport, OrderRequest,
    PartnerTest, Query, Reply, SendReply, SendRequest, Status,
};
use crate::clock::Clock;
use crate::config::Config;
use crate::core::ledger::entry::{Action, Body};
use crate::core::ledger::fold::LaneState;
use crate::core::types::{MessageId, Offset, RouteId, RoutePartition, Time};
use crate::intake::hints;
use crate::intake::import::Importer;
use crate::intake::serve;
use crate::ledger::desk::carry_out::{Carrier, Counter};
use crate::ledger::desk::{Desk, LogEntries, Standing, View};
use crate::ledger::keeper::Keeper;
use crate::ledger::lane::{Lane, LanePort};
use crate::log::{Log, PartitionId};
use crate::telemetry::Metrics;
use crate::telemetry::logging::Logging;
use crate::telemetry::metrics::LineResult;
use actix::ArbiterHandle;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// Orders whose entries wait to be written; one order at a time settles, so there is hardly ever more than one.
const WRITES: usize = 16;
/// Lines of an export on their way to the client.
const LINES: usize = 1_024;
/// How long whoever gave an order waits for its answer. The order itself is not given up: it takes effect as soon as the
/// ledger has it.
pub const LONGEST_WRITE: Duration = Duration::from_secs(30);

/// How long a test of a partner may take beyond its own time for a connection.
const ANSWER: Duration = Duration::from_secs(3);

/// What the actors add.
pub trait Hooks: Send + Sync + 'static {
    /// Adds what only they know: requests on the wire, rates, breakers, permits, connections, memory, restarts.
    /// ETAs are made from it afterwards.
    fn enrich(&self, status: &mut Status);
    /// The arbiter where a route's partner lives, if it is configured.
    fn home_of(&self, route: RouteId) -> Option<ArbiterHandle>;
    /// Has the partner connected to as a request would, on its own thread; nothing is sent. None: it does not run.
    fn try_out(&self, _partner: &str) -> Option<std::sync::mpsc::Receiver<Result<String, String>>> {
        None
    }
    /// What stands against calling the node alive.
    fn problems(&self) -> Vec<String>;
    /// What stands against calling it ready: starting, draining, no room.
    fn not_ready(&self) -> Vec<String>;
}

/// Tells of an entry, by its place in its order, at which offset it is; or that it was not appended, since an attempt
/// of its message is under way.
type Placed = std::sync::mpsc::Sender<(usize, Option<Offset>)>;
type Write = (Vec<(usize, Body)>, Placed);

/// A way into the lane from any thread.
#[derive(Clone, Debug)]
pub struct LaneWriter {
    writes: mpsc::Sender<Write>,
    carried: Arc<Carried>,
}

/// Entries on their way into the lane, and through it.
struct Writing {
    /// Not placed yet.
    left: usize,
    placed: std::sync::mpsc::Receiver<(usize, Option<Offset>)>,
    offsets: Vec<(usize, Offset)>,
    refused: Vec<usize>,
    awaiting: Awaiting,
}

/// Why entries are not through.
enum NotYet {
    /// They will be.
    Late,
    /// The node ends first.
    Ending,
}

impl Writing {
    /// Waits, blocking, until all are folded and their effects carried out.
    fn finish(&mut self, until: Instant) -> Result<(), NotYet> {
        while self.left > 0 {
            let wait = until.saturating_duration_since(Instant::now());
            match self.placed.recv_timeout(wait) {
                Ok((entry, Some(offset))) => self.offsets.push((entry, offset)),
                Ok((entry, None)) => self.refused.push(entry),
                Err(RecvTimeoutError::Timeout) => return Err(NotYet::Late),
                Err(RecvTimeoutError::Disconnected) => return Err(NotYet::Ending),
            }
            self.left -= 1;
        }
        while let Some((entry, offset)) = self.offsets.last().copied() {
            if self.awaiting.wait(offset, until).ok_or(NotYet::Late)? {
                self.refused.push(entry);
            }
            self.offsets.pop();
        }
        Ok(())
    }
}

fn ending() -> ApiError {
    ApiError::Unavailable("the node is stopping".into())
}

impl LaneWriter {
    /// Opens a port of the lane on the present arbiter (or system) thread. It closes with the last clone.
    pub fn open(lane: Lane, carried: Arc<Carried>) -> Self {
        let (writes, mut receiver) = mpsc::channel::<Write>(WRITES);
        actix_rt::spawn(async move {
            let port = LanePort::open(lane);
            while let Some((bodies, placed)) = receiver.recv().await {
                for (place, body) in bodies {
                    let placed = placed.clone();
                    // The asker may have gone away; the entries stand all the same.
                    let told = move |offset| {
                        let _ = placed.send((place, Some(offset)));
                    };
                    port.outcome_told(body, Box::new(told));
                }
                port.flush();
            }
        });
        Self { writes, carried }
    }

    /// Appends entries. One that calls a message delivered which the ledger does not know goes in on its partner's
    /// arbiter, where `home_of` says there is one: an attempt of it may be about to begin there.
    fn begin(
        &self,
        entries: Vec<Body>,
        home_of: impl Fn(RouteId) -> Option<ArbiterHandle>,
    ) -> Result<Writing, ApiError> {
        let (placed, receiver) = std::sync::mpsc::channel();
        let writing = Writing {
            left: entries.len(),
            placed: receiver,
            offsets: Vec::new(),
            refused: Vec::new(),
            awaiting: self.carried.awaiting(),
        };
        let (mut marks, mut others) = (BTreeMap::new(), Vec::new());
        for (place, body) in entries.into_iter().enumerate() {
            match marked(&body) {
                Some((at, id)) => {
                    let of_route: &mut Vec<_> = marks.entry(at.route).or_default();
                    of_route.push((place, at, id, body));
                }
                None => others.push((place, body)),
            }
        }
        for (route, marks) in marks {
            let Some(home) = home_of(route) else {
                others.extend(marks.into_iter().map(|(place, _, _, body)| (place, body)));
                continue;
            };
            let placed = placed.clone();
            home.spawn_fn(move || {
                for (place, at, id, body) in marks {
                    let told = placed.clone();
                    let told = Box::new(move |offset| {
                        let _ = told.send((place, Some(offset)));
                    });
                    if !claim(at, id, body, told) {
                        // Nobody listens any more only if the asker has left.
                        let _ = placed.send((place, None));
                    }
                }
            });
        }
        if !others.is_empty() {
            self.writes
                .blocking_send((others, placed))
                .map_err(|_| ending())?;
        }
        Ok(writing)
    }
}

/// The message that an entry calls delivered.
fn marked(body: &Body) -> Option<(RoutePartition, MessageId)> {
    let Body::Command(command) = body else {
        return None;
    };
    match command.action {
        Action::Mark { at, id, .. } => Some((at, id)),
        _ => None,
    }
}

/// What a [`LiveNode`] is made of.
pub struct LiveParts {
    /// The configuration.
    pub config: Arc<Config>,
    /// Its secrets, to be masked.
    pub secrets: Vec<Arc<str>>,
    /// The clock of the node.
    pub clock: Clock,
    /// The log.
    pub log: Arc<dyn Log>,
    /// The lane's partition.
    pub lane: PartitionId,
    /// The lane's fold and store.
    pub keeper: Arc<Keeper>,
    /// The way into the lane.
    pub writer: LaneWriter,
    /// How long an order's answer is waited for: [`LONGEST_WRITE`] but in tests.
    pub longest_write: Duration,
    /// The configuration files that the node was started with, absolute.
    pub files: Vec<PathBuf>,
    /// What the node holds in memory, to be counted in.
    pub memory: Option<MemoryShare>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The log lines, if this process set them up.
    pub logging: Option<Logging>,
    /// What the actors add.
    pub hooks: Arc<dyn Hooks>,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct LiveNode(Arc<Inner>);

struct Inner {
    parts: LiveParts,
    desk: Desk,
    counter: Counter,
    /// The entries of an order that was answered before they were through.
    late: Mutex<Option<Writing>>,
    importer: Importer,
    started: Time,
    began: Instant,
}

impl LiveNode {
    /// A node of these parts.
    pub fn new(parts: LiveParts) -> Self {
        let entries = LogEntries::new(parts.log.clone(), parts.lane);
        let desk = Desk::new(
            parts.keeper.clone(),
            Arc::new(entries),
            parts.config.clone(),
            &parts.secrets,
        );
        let mut importer = Importer::new(parts.log.clone(), parts.config.node.data.join("spool"));
        if let Some(memory) = &parts.memory {
            importer = importer.counted_in(memory.of_node());
        }
        Self(Arc::new(Inner {
            desk,
            counter: Counter::default(),
            late: Mutex::default(),
            importer,
            started: Clock::wall(),
            began: Instant::now(),
            parts,
        }))
    }

    /// Ends imports: those under way answer that the node stops, and no further one is taken. One that commits at
    /// this moment is still whole.
    pub fn end_imports(&self) {
        self.0.importer.end();
    }

    /// Runs work that may block, away from every runtime thread.
    fn off<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, ApiError> + Send + 'static,
    ) -> Answer<T> {
        let inner = self.0.clone();
        Box::pin(async move {
            match tokio::task::spawn_blocking(move || work(&inner)).await {
                Ok(result) => result,
                Err(e) => Err(ApiError::Internal(format!("the work failed: {e}"))),
            }
        })
    }
}

impl Inner {
    fn status(&self) -> Status {
        let standing = self.parts.keeper.with_state(Standing::of);
        let mut status = self.desk.status(&standing, self.parts.clock.now());
        let node = &mut status.node;
        node.state = "running".to_owned();
        node.pid = std::process::id();
        node.started = Some(self.started.to_string());
        node.uptime_s = self.began.elapsed().as_secs_f64();
        status.ledger.since_checkpoint = self.parts.keeper.since_checkpoint();
        status.ledger.payloads_dropped = self.parts.keeper.dropped();
        let log = self.parts.log.stats();
        status.log.commits = log.commits;
        status.log.bytes = log.bytes;
        status.log.sync_us = log.sync_us;
        status.log.segments = log.segments;
        status.log.disk_bytes = log.disk_bytes;
        status.log.refuses = self.parts.log.refuses();
        status.ledger.behind = self.parts.keeper.behind();
        self.parts.hooks.enrich(&mut status);
        for p in &mut status.partners {
            p.eta_s = if p.paused.is_some() {
                None
            } else {
                crate::api::status::eta_s(p.waiting, p.limit, p.rate)
            };
        }
        status
    }

    fn view_for(&self, query: &Query) -> Result<(View, Time), ApiError> {
        let now = self.parts.clock.now();
        let pick = Desk::pick_for_query(query, now)?;
        Ok((self.parts.keeper.with_state(|state| View::of(state, &pick))?, now))
    }

    fn import(&self, request: &ImportRequest, file: Upload) -> Result<ImportReport, ApiError> {
        let report = serve::import_upload(
            &self.importer,
            &self.parts.config,
            request,
            &mut file.into_reader(),
        )?;
        let count = |result, n| self.parts.metrics.import_lines(&request.topic, result).inc_by(n);
        let taken = if report.known {
            LineResult::Known
        } else {
            LineResult::Accepted
        };
        count(taken, report.accepted);
        count(LineResult::Rejected, report.rejected);
        Ok(report)
    }

    fn test(&self, partner: &str) -> Result<PartnerTest, ApiError> {
        let Some(config) = self.parts.config.partners.get(partner) else {
            return Err(ApiError::NotFound(format!("no partner `{partner}`")));
        };
        let mut test = PartnerTest {
            partner: partner.to_owned(),
            ..PartnerTest::default()
        };
        let parsed = url::Url::parse(&config.url).ok();
        let target = parsed
            .as_ref()
            .and_then(|u| Some((u.host_str()?.to_owned(), u.port_or_known_default()?)));
        // A host that a record fills in is no host.
        let Some((host, port)) = target.filter(|(host, _)| !host.contains(['{', '%'])) else {
            test.detail = "its address is known only with a record".to_owned();
            return Ok(test);
        };
        test.address = format!("{host}:{port}");
        let began = Instant::now();
        let found = self.parts.hooks.try_out(partner);
        let longest = config.connect_timeout + ANSWER;
        match found.map(|found| found.recv_timeout(longest)) {
            Some(Ok(Ok(found))) => {
                test.ok = true;
                test.detail = format!("{found}; nothing was sent");
            }
            Some(Ok(Err(why))) => test.detail = why,
            Some(Err(_)) => test.detail = format!("no answer from the partner's thread within {longest:?}"),
            None => test.detail = "the node does not run this partner".to_owned(),
        }
        test.connect_ms = began.elapsed().as_secs_f64() * 1e3;
        Ok(test)
    }
}

impl Carrier for Inner {
    fn look(&self, at: &mut dyn FnMut(&LaneState)) {
        self.parts.keeper.with_state(at);
    }
    fn ready(&self) -> Result<(), ApiError> {
        let mut late = self.late.lock();
        if let Some(writing) = &mut *late {
            let until = Instant::now() + self.parts.longest_write;
            writing.finish(until).map_err(|why| match why {
                NotYet::Late => ApiError::Unavailable(
                    "an earlier order is still being written, this one was not begun: try again once the ledger answers"
                        .into(),
                ),
                NotYet::Ending => ending(),
            })?;
        }
        *late = None;
        Ok(())
    }
    fn write(&self, entries: Vec<Body>) -> Result<Vec<usize>, ApiError> {
        let hooks = &self.parts.hooks;
        let mut writing = self.parts.writer.begin(entries, |route| hooks.home_of(route))?;
        match writing.finish(Instant::now() + self.parts.longest_write) {
            Ok(()) => Ok(writing.refused),
            Err(NotYet::Ending) => Err(ending()),
            Err(NotYet::Late) => {
                *self.late.lock() = Some(writing);
                Err(ApiError::Unavailable(
                    "the ledger does not answer; the order takes effect as soon as it does".into(),
                ))
            }
        }
    }
    fn now(&self) -> Time {
        self.parts.clock.now()
    }
}

impl NodeApi for LiveNode {
    fn identity(&self) -> Answer<NodeIdentity> {
        self.off(|node| {
            let data = &node.parts.config.node.data;
            let journal = crate::log::embedded::journal_of(&data.join("log"));
            let files = node.parts.files.iter();
            Ok(NodeIdentity {
                id: node.parts.config.node.id.clone(),
                data: data
                    .canonicalize()
                    .unwrap_or_else(|_| data.clone())
                    .display()
                    .to_string(),
                journal: journal.map(|uuid| format!("{uuid:032x}")).unwrap_or_default(),
                files: files.map(|file| file.display().to_string()).collect(),
            })
        })
    }

    fn hints(&self) -> Answer<Vec<String>> {
        self.off(|node| Ok(hints::of_topics(node.parts.log.as_ref(), &node.parts.config)))
    }

    fn status(&self) -> Answer<Status> {
        self.off(|node| Ok(node.status()))
    }

    fn query(&self, query: Query) -> Answer<Reply> {
        self.off(move |node| {
            let (view, now) = node.view_for(&query)?;
            node.desk.answer(&view, &query, now)
        })
    }

    fn order(&self, order: OrderRequest) -> Answer<OrderReport> {
        self.off(move |node| {
            let report = node.desk.carry_out(&node.counter, node, &order)?;
            if !order.dry_run {
                tracing::info!(
                    event = "order",
                    verb = report.verb,
                    who = order.who,
                    why = order.why,
                    touched = report.touched,
                    stale = report.stale,
                    "an operator's order was carried out"
                );
            }
            Ok(report)
        })
    }

    fn export(&self, filter: Filter) -> Answer<Lines> {
        let node = self.0.clone();
        let (tx, rx) = mpsc::channel(LINES);
        tokio::task::spawn_blocking(move || {
            let query = Query::DedupList {
                filter: filter.clone(),
            };
            let result = node.view_for(&query).and_then(|(view, now)| {
                node.desk.export(&view, &filter, now, &mut |line| match tx
                    .blocking_send(Ok(Exported::Line(line)))
                {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(_) => ControlFlow::Break(()),
                })
            });
            // Nobody listens any more only if the client has left.
            let _ = tx.blocking_send(result.map(|()| Exported::End));
        });
        Box::pin(async move {
            let mut rx = rx;
            // A filter that cannot be read is an answer of its own, not a broken export.
            match rx.recv().await {
                Some(Err(e)) => Err(e),
                None => Err(ApiError::Internal("the export has failed".into())),
                Some(Ok(first)) => Ok(with_first(first, rx)),
            }
        })
    }

    fn import(&self, request: ImportRequest, file: Upload) -> Answer<ImportReport> {
        let interrupter = file.interrupter();
        let mut ending = self.0.importer.ending();
        let mut work = self.off(move |node| node.import(&request, file));
        Box::pin(async move {
            tokio::select! {
                done = &mut work => return done,
                () = ended(&mut ending) => {}
            }
            // A reader that waits for the next piece has to hear of it. Whether the import was faster the work says.
            let stopping = io::Error::new(io::ErrorKind::ConnectionAborted, "the node is stopping");
            interrupter.interrupt(stopping).await;
            work.await
        })
    }

    fn send(&self, record: SendRequest) -> Answer<SendReply> {
        self.off(move |node| serve::send_record(node.parts.log.as_ref(), &node.parts.config, &record))
    }

    fn test_partner(&self, partner: String) -> Answer<PartnerTest> {
        self.off(move |node| node.test(&partner))
    }

    fn metrics(&self) -> Answer<String> {
        self.off(|node| {
            node.parts.metrics.read(&node.status());
            Ok(node.parts.metrics.encode())
        })
    }

    fn set_log_level(&self, level: String) -> Result<(), ApiError> {
        match &self.0.parts.logging {
            Some(logging) => logging
                .set_level(&level)
                .map_err(|e| ApiError::Invalid(e.to_string())),
            None => Err(ApiError::Conflict(
                "this process has not set up its log lines".into(),
            )),
        }
    }

    fn health(&self) -> Health {
        Health::of(self.0.parts.hooks.problems())
    }

    fn ready(&self) -> Health {
        Health::of(self.0.parts.hooks.not_ready())
    }
}

/// Waits until imports have to end.
async fn ended(ending: &mut watch::Receiver<bool>) {
    // It closes with the node, which is an end as well.
    let _ = ending.wait_for(|ended| *ended).await;
}

/// Puts the first line back in front.
fn with_first(first: Exported, mut rest: Lines) -> Lines {
    let (tx, rx) = mpsc::channel(LINES);
    tokio::spawn(async move {
        let mut next = Some(Ok(first));
        while let Some(line) = next {
            if tx.send(line).await.is_err() {
                break;
            }
            next = rest.recv().await;
        }
    });
    rx
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::effects;
    use crate::actors::ledger::{Feed, Inputs, LedgerActor, LedgerParts};
    use crate::actors::lifeline::Lifeline;
    use crate::admin::{AdminOptions, Client, ClientError, serve};
    use crate::api::{Order, Page};
    use crate::app::open;
    use crate::config::TopicConfig;
    use crate::config::{IdSource, PartnerConfig};
    use crate::core::ledger::entry::{Kept, Outcome, OutcomeKind, Position, RouteInfo};
    use crate::core::ledger::fold::Effect;
    use crate::core::message_id::{IdScope, route_id};
    use crate::core::types::*;
    use crate::ledger::duties::DutyRules;
    use actix::prelude::*;
    use parking_lot::Mutex;

    #[derive(Default)]
    struct Noting(Mutex<Vec<Effect>>);

    impl Hooks for Noting {
        fn enrich(&self, status: &mut Status) {
            status.partners[0].rate = 10.0;
            status.node.in_flight = 3;
        }
        fn home_of(&self, _: RouteId) -> Option<ArbiterHandle> {
            None
        }
        fn problems(&self) -> Vec<String> {
            Vec::new()
        }
        fn not_ready(&self) -> Vec<String> {
            vec!["draining".into()]
        }
    }

    /// A real folder, lane and folding actor behind a real admin port; only the deliveries are left out.
    #[test]
    fn orders_reach_the_ledger_of_a_running_node() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::for_test(dir.path())
            .with_partner(PartnerConfig::new("acme", "http://127.0.0.1:1/hook"))
            .with_topic(TopicConfig {
                id: vec![IdSource::Json("/id".into())],
                ..TopicConfig::new("orders", "acme")
            });
        config.log.segment = 1 << 20;
        let config = Arc::new(config);
        let clock = Clock::start();
        let opened = open(&config, clock).unwrap();
        let hooks = Arc::new(Noting::default());
        System::new().block_on(async {
            let (lane, feed) = Lane::new(
                opened.log.clone(),
                opened.lane,
                opened.tenure,
                opened.life,
                clock,
                Box::new(|e| panic!("{e}")),
            );
            let feed = Feed::new(feed);
            let lifeline = Lifeline::new(|_| {});
            let (outlet, inlet) = effects::channel();
            let noting = hooks.clone();
            actix_rt::spawn(inlet.run(move |effects| {
                noting
                    .0
                    .lock()
                    .extend(effects.iter().map(|(_, effect)| effect.clone()));
                Vec::new()
            }));
            let parts = LedgerParts {
                keeper: opened.keeper.clone(),
                lane: lane.clone(),
                feed,
                inputs: Inputs::default(),
                rules: DutyRules::of(&config),
                clock,
                metrics: Arc::default(),
                effects: outlet.clone(),
            };
            LedgerActor::new(parts, lifeline).start();
            let holding = lane.clone();
            let writer = LaneWriter::open(lane, outlet.carried().clone());
            let node = LiveNode::new(LiveParts {
                config: config.clone(),
                secrets: Vec::new(),
                clock,
                log: opened.log.clone(),
                lane: opened.lane,
                keeper: opened.keeper.clone(),
                writer: writer.clone(),
                files: Vec::new(),
                memory: MemoryShare::divide(1 << 30, 1).first().cloned(),
                metrics: Arc::new(Metrics::new()),
                longest_write: Duration::from_millis(200),
                logging: None,
                hooks: hooks.clone(),
            });
            let options = AdminOptions {
                admin: Some(config.listen.admin),
                ..AdminOptions::default()
            };
            let server = serve(options, Arc::new(node)).unwrap();
            let client = Client::new(&server.admin().unwrap().to_string(), None).unwrap();

            let topic = TopicId(5);
            let at = RoutePartition {
                route: route_id("orders", topic, "acme"),
                partition: 0,
            };
            let id = IdScope::new("orders", topic, 0, "acme").id(&[b"a-1"]);
            let entries = vec![
                Body::Route(RouteInfo {
                    route: at.route,
                    topic: "orders".into(),
                    topic_id: topic,
                    partner: "acme".into(),
                }),
                Body::Position(Position {
                    at,
                    leader_epoch: 0,
                    position: 0,
                    finished: vec![],
                    high_water: 0,
                }),
                Body::Outcome(Outcome {
                    at,
                    id,
                    offset: 0,
                    round: 1,
                    attempts: 1,
                    when: clock.now(),
                    life: LifeId(1),
                    status: 422,
                    kind: OutcomeKind::Dead(Box::new(Kept {
                        readable: "a-1".into(),
                        reason: "refused: 422".into(),
                        ..Kept::default()
                    })),
                }),
            ];
            let written = actix_rt::task::spawn_blocking(move || {
                let mut writing = writer.begin(entries, |_| None)?;
                assert!(writing.finish(Instant::now() + LONGEST_WRITE).is_ok());
                Ok::<_, ApiError>(writing.refused)
            });
            assert_eq!(written.await.unwrap().unwrap(), Vec::<usize>::new());

            let dead = Query::Dead {
                filter: Filter::default(),
            };
            let Reply::Messages(Page { rows, .. }) = client.query(&dead).await.unwrap() else {
                panic!()
            };
            assert_eq!(rows[0].id, "a-1");
            let order = OrderRequest {
                order: Order::Replay {
                    filter: Filter::of_id("a-1"),
                    skipped: false,
                },
                who: "kim".into(),
                why: "mended".into(),
                dry_run: false,
                expect: None,
            };
            assert_eq!(client.order(&order).await.unwrap().touched, 1);
            assert!(matches!(
                hooks.0.lock().as_slice(),
                [Effect::Opened { round: 2, .. }]
            ));
            assert_eq!(
                client.order(&order).await.unwrap().touched,
                0,
                "it is folded before it is answered"
            );

            // A lane that takes nothing: the answer does not wait for ever, the order's effect comes all the same.
            let held = holding.hold();
            let pause = |partner: &str| OrderRequest {
                order: Order::Pause {
                    partner: partner.into(),
                },
                ..order.clone()
            };
            let late = client.order(&pause("acme")).await;
            assert!(
                matches!(late, Err(ClientError::Api(ApiError::Unavailable(_)))),
                "{late:?}"
            );
            let next = client.order(&pause("acme")).await;
            assert!(
                next.is_err(),
                "no order is settled against a fold that lacks the one before"
            );
            drop(held);
            assert_eq!(client.order(&pause("acme")).await.unwrap().touched, 1);
            let paused = |e: &&Effect| matches!(e, Effect::Paused { partner } if partner == "acme");
            assert_eq!(hooks.0.lock().iter().filter(paused).count(), 2);
            let resume = OrderRequest {
                order: Order::Resume {
                    partner: "acme".into(),
                },
                ..order.clone()
            };
            assert_eq!(client.order(&resume).await.unwrap().touched, 1);

            let status = client.status().await.unwrap();
            assert_eq!(
                (status.node.state.as_str(), status.node.in_flight),
                ("running", 3)
            );
            assert_eq!(status.partners[0].eta_s, Some(0.1), "one waits, ten a second");

            let record = SendRequest {
                topic: "orders".into(),
                value: r#"{"id":"b"}"#.into(),
                ..SendRequest::default()
            };
            assert_eq!(client.send(&record).await.unwrap().offset, 0);
            let wrong = SendRequest {
                topic: "other".into(),
                ..record
            };
            assert!(matches!(
                client.send(&wrong).await,
                Err(ClientError::Api(ApiError::NotFound(_)))
            ));

            let file = ImportRequest {
                topic: "orders".into(),
                name: "day.jsonl".into(),
                ..ImportRequest::default()
            };
            let lines = || {
                futures_util::stream::iter([Ok(bytes::Bytes::from_static(
                    b"{\"id\":1}\n{\"id\":2}\nnonsense\n",
                ))])
            };
            let report = client.import(&file, lines()).await.unwrap();
            assert_eq!((report.accepted, report.rejected, report.known), (2, 1, false));
            assert!(client.import(&file, lines()).await.unwrap().known);

            let mut text = Vec::new();
            let take = |piece: &[u8]| std::io::Write::write_all(&mut text, piece);
            client.export(&Filter::default(), take).await.unwrap();
            assert!(!client.test_partner("acme").await.unwrap().ok);
            let wrong = Filter {
                since: Some("yesterday".into()),
                ..Filter::default()
            };
            let refused = client.export(&wrong, |_| Ok(())).await;
            assert!(
                matches!(refused, Err(ClientError::Api(ApiError::Invalid(_)))),
                "{refused:?}"
            );
            System::current().stop();
        });
        opened.log.close().unwrap();
    }
}
