//! The folder of a stopped node, for the commands that make sense there: the same desk as in a running one, over
//! the same lane, with nobody on the wire.
//!
//! The log's lock keeps a node and a command apart. What a command writes is durable before it reports; closing
//! leaves a checkpoint, so that the next start reads little.

use super::open::{OpenError, Opened, open};
use crate::api::{ApiError, Filter, Order, OrderReport, OrderRequest, Query, Reply, Status};
use crate::clock::Clock;
use crate::config::Config;
use crate::core::in_full::in_full;
use crate::core::ledger::codec;
use crate::core::ledger::entry::{Body, Entry};
use crate::core::ledger::fold::{Effect, LaneState};
use crate::core::types::Time;
use crate::dedup::DedupError;
use crate::intake::topic_spec;
use crate::ledger::desk::carry_out::{Carrier, Counter};
use crate::ledger::desk::{Desk, LogEntries, Pick, Standing, View, explain};
use crate::ledger::keeper::KeeperError;
use crate::log::{Batch, LogError, TopicSpec};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

/// Why a folder cannot be worked on.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// There is nothing.
    #[error("there is no node's data in `{}`", .0.display())]
    Nothing(PathBuf),
    /// Another process works on it.
    #[error("another process has `{}` open, but no admin port answers: a node that is starting or stopping, or another command", .0.display())]
    InUse(PathBuf),
    /// It cannot be opened.
    #[error(transparent)]
    Open(OpenError),
    /// It cannot be closed in order; what was reported durable is durable.
    #[error("cannot close the folder")]
    Close(#[from] KeeperError),
    /// The log cannot be closed in order.
    #[error("cannot close the log")]
    Log(#[from] LogError),
}

/// An open folder with a desk over it. Close it with [`Offline::close`].
pub struct Offline {
    opened: Opened,
    desk: Desk,
    config: Arc<Config>,
    clock: Clock,
    counter: Counter,
}

impl Offline {
    /// What stands out in the records of its topics.
    pub fn hints(&self, config: &Config) -> Vec<String> {
        crate::intake::hints::of_topics(self.opened.log.as_ref(), config)
    }

    /// Opens the folder of `config.node.data`. `secrets` are masked wherever they turn up.
    ///
    /// # Errors
    /// [`OfflineError`]; a folder that is not there is not made.
    pub fn open(config: Arc<Config>, secrets: &[Arc<str>]) -> Result<Self, OfflineError> {
        let data = config.node.data.clone();
        if !data.join("log").is_dir() {
            return Err(OfflineError::Nothing(data));
        }
        let clock = Clock::start();
        let opened = open(&config, clock).map_err(|e| match e {
            OpenError::Log(LogError::Locked { .. }) | OpenError::Store(DedupError::InUse { .. }) => {
                OfflineError::InUse(data)
            }
            other => OfflineError::Open(other),
        })?;
        let entries = LogEntries::new(opened.log.clone(), opened.lane);
        let desk = Desk::new(opened.keeper.clone(), Arc::new(entries), config.clone(), secrets);
        Ok(Self {
            opened,
            desk,
            config,
            clock,
            counter: Counter::default(),
        })
    }

    /// The node as it stands: nothing is on the wire.
    pub fn status(&self) -> Status {
        let standing = self.opened.keeper.with_state(Standing::of);
        let mut status = self.desk.status(&standing, self.clock.now());
        status.node.state = "stopped".to_owned();
        status.ledger.since_checkpoint = self.opened.keeper.since_checkpoint();
        let log = self.opened.log.stats();
        status.log.segments = log.segments;
        status.log.disk_bytes = log.disk_bytes;
        status.log.refuses = self.opened.log.refuses();
        status.ledger.behind = self.opened.keeper.behind();
        status
    }

    /// Answers a question.
    ///
    /// # Errors
    /// [`ApiError`].
    pub fn query(&self, query: &Query) -> Result<Reply, ApiError> {
        let served = self.desk.served();
        let keeper = &self.opened.keeper;
        let look = |pick: &Pick| keeper.with_state(|state| View::of(state, pick, &served));
        let mut reply = self.desk.answer(&look, query, self.clock.now())?;
        if let Reply::Story(story) = &mut reply
            && story.routes.iter().any(|route| route.unread.is_some())
        {
            explain(story, &self.status());
        }
        Ok(reply)
    }

    /// Remembered IDs, one line of JSON each, as long as `take` goes on.
    ///
    /// # Errors
    /// [`ApiError`].
    pub fn export(
        &self,
        filter: &Filter,
        take: &mut dyn FnMut(String) -> ControlFlow<()>,
    ) -> Result<(), ApiError> {
        let now = self.clock.now();
        let pick = Desk::pick_for_query(
            &Query::DedupList {
                filter: filter.clone(),
            },
            now,
        )?;
        let served = self.desk.served();
        let view = (self.opened.keeper).with_state(|state| View::of(state, &pick, &served))?;
        self.desk.export(&view, filter, now, take)
    }

    /// Carries an order out.
    ///
    /// # Errors
    /// [`ApiError`].
    pub fn order(&self, request: &OrderRequest) -> Result<OrderReport, ApiError> {
        if !request.dry_run {
            self.make_topics(&request.order)?;
        }
        self.desk.carry_out(&self.counter, self, request)
    }

    /// Topics that the configuration names and that no node has made yet, if this order is also about them: IDs are called
    /// delivered in what it says is there, before the first start as after it.
    fn to_make<'a>(&'a self, order: &'a Order) -> impl Iterator<Item = (&'a str, TopicSpec)> {
        let meant: Vec<Option<&str>> = match order {
            Order::Mark { filter } => vec![filter.topic.as_deref()],
            Order::DedupImport { rows } => {
                let mut of: Vec<_> = rows.iter().map(|row| Some(row.topic.as_str())).collect();
                of.dedup();
                of
            }
            _ => Vec::new(),
        };
        let is_meant = move |topic: &str| meant.iter().any(|of| of.is_none_or(|of| of == topic));
        let named = self
            .config
            .topics
            .values()
            .filter(move |t| t.pattern.is_none() && is_meant(&t.name));
        let missing = named.filter(|t| self.opened.log.topic(&t.name).is_none());
        missing.map(|t| (t.name.as_str(), topic_spec(&self.config, t)))
    }

    fn make_topics(&self, order: &Order) -> Result<(), ApiError> {
        for (topic, spec) in self.to_make(order) {
            let made = self.opened.log.create_topic(topic, &spec);
            made.map_err(|e| ApiError::Internal(format!("cannot make topic `{topic}`: {e}")))?;
        }
        Ok(())
    }

    /// Leaves a checkpoint and gives the folder back.
    ///
    /// # Errors
    /// If it cannot be left in order; nothing that was reported is lost.
    pub fn close(self) -> Result<(), OfflineError> {
        match self.opened.keeper.checkpoint() {
            // A full disk: nothing is lost, the next start reads more.
            Err(error) if error.passes() => {
                let why = error.why();
                tracing::warn!(
                    event = "checkpoint_failed",
                    why,
                    "the checkpoint cannot be written"
                );
            }
            done => done?,
        }
        self.opened.log.close()?;
        Ok(())
    }
}

impl Carrier for Offline {
    fn look(&self, at: &mut dyn FnMut(&LaneState)) {
        self.opened.keeper.with_state(at);
    }

    fn ready(&self) -> Result<(), ApiError> {
        Ok(())
    }

    fn write(&self, entries: Vec<Body>) -> Result<Vec<usize>, ApiError> {
        let failed = |what: &dyn std::error::Error| {
            ApiError::Internal(format!("cannot write the ledger: {}", in_full(what)))
        };
        let entries: Vec<Entry> = entries
            .into_iter()
            .map(|body| Entry {
                tenure: self.opened.tenure,
                body,
            })
            .collect();
        let mut batch = Batch::from_reserve();
        let mut bytes = Vec::new();
        for entry in &entries {
            bytes.clear();
            codec::encode(entry, &mut bytes);
            batch.push(self.opened.lane, self.clock.now(), None, &bytes, &[]);
        }
        let (done, result) = std::sync::mpsc::sync_channel(1);
        // The receiver waits right below.
        self.opened
            .log
            .append(batch, Box::new(move |r| drop(done.send(r))));
        let appended = result.recv().map_err(|e| failed(&e))?.map_err(|e| match e {
            LogError::NoRoom { .. } => ApiError::NoRoom(e.to_string()),
            other => failed(&other),
        })?;
        let base = appended.bases.first().map(|b| b.1).ok_or_else(|| {
            ApiError::Internal("cannot write the ledger: the log gave no offset".to_owned())
        })?;
        match self.opened.keeper.fold_entries(base, &entries) {
            // It is in the ledger and folded; the store follows at the next start.
            Err(error) if error.passes() => {}
            done => done.map_err(|e| failed(&e))?,
        }
        // Nobody is there to act: the next start finds everything in the ledger.
        let (_, effects) = self.opened.keeper.take_effects();
        let refused = effects
            .iter()
            .filter(|(_, e)| matches!(e, Effect::Refused { .. }));
        Ok(refused.map(|(at, _)| (at - base) as usize).collect())
    }

    fn now(&self) -> Time {
        self.clock.now()
    }

    fn would_make(&self, order: &Order) -> Vec<(String, u32)> {
        let topics = self.to_make(order);
        // As the log makes them.
        topics
            .map(|(name, spec)| (name.to_owned(), spec.partitions.max(1)))
            .collect()
    }
}
