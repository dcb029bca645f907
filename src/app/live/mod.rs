//! The control side of a running node: [`NodeApi`] over its keeper, desk, log and importer.
//!
//! Nothing here sits on an arbiter of the hot path. Questions copy what they need out of the fold and are answered on
//! blocking threads; entries of orders go through a port of the lane that lives on the thread where [`LaneWriter`]
//! was made, or through that of the partner's arbiter. What follows from them the ledger's actor hands to the
//! partitions; here somebody only waits for it. What only the actors know (requests on the wire, breakers) comes in
//! through [`Hooks`].

#[cfg(test)]
mod tests;
mod writer;

pub use writer::LaneWriter;

use crate::admin::{Answer, Exported, Lines, NodeApi, Upload};
use crate::api::{
    ApiError, Filter, Health, ImportReport, ImportRequest, NodeIdentity, OrderReport, OrderRequest,
    PartnerTest, Query, Reply, SendReply, SendRequest, Status,
};
use crate::clock::Clock;
use crate::config::Config;
use crate::core::ledger::entry::Body;
use crate::core::ledger::fold::LaneState;
use crate::core::types::{RouteId, Time};
use crate::intake::hints;
use crate::intake::import::Importer;
use crate::intake::serve;
use crate::ledger::desk::carry_out::{Carrier, Counter};
use crate::ledger::desk::{Desk, LogEntries, Pick, Standing, View, explain};
use crate::ledger::keeper::Keeper;
use crate::log::{Log, PartitionId};
use crate::memory::MemoryShare;
use crate::telemetry::Metrics;
use crate::telemetry::logging::Logging;
use crate::telemetry::metrics::LineResult;
use actix::ArbiterHandle;
use parking_lot::Mutex;
use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use writer::{NotYet, Writing, ending};
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
            p.estimate();
        }
        status
    }

    fn view_for(&self, query: &Query) -> Result<(View, Time), ApiError> {
        let now = self.parts.clock.now();
        let pick = Desk::pick_for_query(query, now)?;
        let served = self.desk.served();
        let view = self
            .parts
            .keeper
            .with_state(|state| View::of(state, &pick, &served))?;
        Ok((view, now))
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
        let longest = config.timeout.connect + ANSWER;
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
                topics: crate::intake::topic_identities(node.parts.log.as_ref()),
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
            let served = node.desk.served();
            let keeper = &node.parts.keeper;
            let look = |pick: &Pick| keeper.with_state(|state| View::of(state, pick, &served));
            let mut reply = node.desk.answer(&look, &query, node.parts.clock.now())?;
            if let Reply::Story(story) = &mut reply
                && story.routes.iter().any(|route| route.unread.is_some())
            {
                explain(story, &node.status());
            }
            Ok(reply)
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
