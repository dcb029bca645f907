//! Reading a payload again that was given up to save memory, or that an earlier life had in hand.

use super::super::blocking;
use super::super::item::Item;
use super::PartitionActor;
use crate::core::in_full::in_full;
use crate::core::ledger::entry::OutcomeKind;
use crate::core::record::Record;
use crate::core::types::{MessageId, Offset, RoutePartition};
use crate::ledger::keeper::Keeper;
use crate::ledger::payload::PayloadError;
use crate::log::{Log, LogError, PartitionId};
use crate::sink::Sink;
use actix::prelude::*;
use std::sync::Arc;
use std::time::Duration;

/// What a message is sent from.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// Its record.
    pub record: Record,
    /// The Idempotency-Key of its round, where that was fixed.
    pub idempotency_key: Option<Arc<str>>,
}

/// Why a payload was not read again.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LoadError {
    /// It was given up (retention, the size cap, an operator), or its record has left the topic: the message is only
    /// listed, and cannot be sent.
    #[error("its payload was given up")]
    Gone,
    /// It cannot be read now. In words, for people.
    #[error("{0}")]
    Failed(String),
}

impl From<String> for LoadError {
    fn from(why: String) -> Self {
        LoadError::Failed(why)
    }
}

/// Where the payload of a message is read again. Blocks.
pub trait Payloads: Send + Sync {
    /// What this message is sent from: kept in the ledger, else in the topic.
    ///
    /// # Errors
    /// [`LoadError`].
    fn load(&self, at: RoutePartition, id: MessageId, offset: Offset) -> Result<Loaded, LoadError>;
}

/// A record of an input topic.
///
/// # Errors
/// If it cannot be read, or is no longer there.
pub fn from_topic(log: &dyn Log, input: PartitionId, offset: Offset) -> Result<Record, LoadError> {
    let mut records = Vec::with_capacity(1);
    log.read(input, offset, 1, &mut records).map_err(|e| match e {
        LogError::OutOfRange { first, .. } if offset < first => LoadError::Gone,
        error => LoadError::Failed(error.to_string()),
    })?;
    match records.into_iter().next() {
        Some(record) if record.offset == offset => Ok(record),
        _ => Err(LoadError::Failed(format!("no record at offset {offset}"))),
    }
}

/// Payloads of a node: where the fold knows of one in the ledger, that; else the topic's.
pub struct NodePayloads {
    /// The log.
    pub log: Arc<dyn Log>,
    /// The input partition.
    pub input: PartitionId,
    /// The ledger's lane.
    pub lane: PartitionId,
    /// Its fold.
    pub keeper: Arc<Keeper>,
}

impl Payloads for NodePayloads {
    fn load(&self, at: RoutePartition, id: MessageId, offset: Offset) -> Result<Loaded, LoadError> {
        match self.keeper.kept(self.log.as_ref(), self.lane, at, id) {
            Ok(None) => Ok(Loaded {
                record: from_topic(self.log.as_ref(), self.input, offset)?,
                idempotency_key: None,
            }),
            Ok(Some(message)) => Ok(Loaded {
                record: Record {
                    key: message.kept.record_key,
                    value: message.kept.value,
                    headers: message.kept.headers,
                    timestamp: message.kept.timestamp,
                    offset,
                },
                idempotency_key: Some(message.kept.idempotency_key)
                    .filter(|key| !key.is_empty())
                    .map(Into::into),
            }),
            Err(PayloadError::Dropped { .. }) => Err(LoadError::Gone),
            Err(error) => Err(LoadError::Failed(in_full(&error))),
        }
    }
}

/// Before a payload that cannot be read is tried again. Nothing is lost by waiting: the record stays unfinished.
const LOAD_AGAIN: Duration = Duration::from_secs(5);

impl<S: Sink> PartitionActor<S> {
    /// Reads the payload off the arbiter, then hands the message out. At most `busy_keys` of these are under way.
    pub(super) fn load(&mut self, item: Box<Item>, ctx: &mut Context<Self>) {
        let payloads = self.payloads.clone();
        let (at, id, offset) = (self.route.at, item.delivery.id, item.delivery.record.offset);
        let load = async move {
            let read = blocking::off(move || payloads.load(at, id, offset));
            (item, read.await)
        };
        let loaded = load.into_actor(self).map(move |(mut item, read), act, ctx| match read {
            Ok(Ok(loaded)) => {
                item.delivery.record = loaded.record;
                if loaded.idempotency_key.is_some() {
                    item.delivery.idempotency_key = loaded.idempotency_key;
                }
                item.shed = false;
                if item.delivery.readable.is_empty()
                    // One that is invalid can be replayed; it has an ID as well, and rules may name it.
                    && let super::Resolved::Message(known) | super::Resolved::Invalid(known, _) =
                        act.resolve.resolve(&item.delivery.record)
                {
                    item.delivery.readable = known.readable;
                }
                act.count(&mut item);
                act.hand_out(item, ctx);
                // It may have been passed over, and its place be free.
                act.start_work(ctx);
            }
            // A round that was opened at the moment its payload went: the ledger lists the message as it was before.
            Ok(Err(LoadError::Gone)) if item.off_position => act.let_lie(*item, ctx),
            Ok(Err(LoadError::Gone)) => act.lost(item, ctx),
            failed => {
                let why = match failed {
                    Ok(Err(why)) => why.to_string(),
                    Err(error) => error.to_string(),
                    Ok(Ok(_)) => String::new(),
                };
                tracing::error!(event = "payload_missing", topic = %act.route.topic, offset, why, "cannot read a payload again");
                let at = act.now().plus(LOAD_AGAIN);
                act.again(item, at);
                act.start_work(ctx);
            }
        });
        ctx.spawn(loaded);
    }

    /// A message whose record left the topic before it was finished: it ends, and the ledger says how.
    fn lost(&mut self, mut item: Box<Item>, ctx: &mut Context<Self>) {
        let doubt = !matches!(item.task, super::Task::Send) || item.is_unsettled();
        let kept = self.kept_without_record(&item, super::start::GONE);
        let hold = doubt && self.route.partner.config.on_doubt == crate::config::OnDoubt::Hold;
        item.outcome = match doubt {
            true => {
                self.route.partner.metrics.parked.inc();
                self.route.append_unsent(&item, OutcomeKind::Parked(kept))
            }
            false => {
                self.route.partner.metrics.dead.inc();
                self.route.append_unsent(&item, OutcomeKind::Dead(kept))
            }
        };
        self.finish(item, hold, ctx);
        self.start_work(ctx);
    }

    /// A message that cannot be sent any more: its key goes on without it.
    fn let_lie(&mut self, item: Item, ctx: &mut Context<Self>) {
        tracing::warn!(
            event = "payload_gone", topic = %self.route.topic, partner = %self.route.partner.name,
            message_id = %item.delivery.id, "a replay came too late: its payload was given up"
        );
        self.in_hand -= 1;
        self.uncount(item.counted);
        self.in_flight.remove(&item.delivery.id);
        self.free_place(item.place, ctx);
        self.start_work(ctx);
    }
}
