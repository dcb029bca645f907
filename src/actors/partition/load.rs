//! Reading a payload again that was given up to save memory, or that an earlier life had in hand.

use super::super::item::Item;
use super::PartitionActor;
use crate::core::record::Record;
use crate::core::types::{MessageId, Offset, RoutePartition};
use crate::log::{Log, PartitionId};
use crate::sink::Sink;
use actix::prelude::*;
use std::sync::Arc;
use std::time::Duration;

/// Where the payload of a message is read again. Blocks.
pub trait Payloads: Send + Sync {
    /// The record of this message, from the topic or, where it is kept, from the ledger; the error is for people.
    fn load(&self, at: RoutePartition, id: MessageId, offset: Offset) -> Result<Record, String>;
}

/// Payloads from the input topic alone.
pub struct TopicPayloads {
    /// The log.
    pub log: Arc<dyn Log>,
    /// The input partition.
    pub input: PartitionId,
}

impl Payloads for TopicPayloads {
    fn load(&self, _: RoutePartition, _: MessageId, offset: Offset) -> Result<Record, String> {
        let mut records = Vec::with_capacity(1);
        self.log
            .read(self.input, offset, 1, &mut records)
            .map_err(|e| e.to_string())?;
        match records.into_iter().next() {
            Some(record) if record.offset == offset => Ok(record),
            _ => Err(format!("no record at offset {offset}")),
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
            let read = tokio::task::spawn_blocking(move || payloads.load(at, id, offset));
            (item, read.await)
        };
        let loaded = load.into_actor(self).map(move |(mut item, read), act, ctx| match read {
            Ok(Ok(record)) => {
                item.delivery.record = record;
                item.shed = false;
                if item.delivery.readable.is_empty()
                    && let super::Resolved::Message(known) = act.resolve.resolve(&item.delivery.record)
                {
                    item.delivery.readable = known.readable;
                }
                act.count(&mut item);
                act.hand_out(item, ctx);
            }
            failed => {
                let why = match failed {
                    Ok(Err(why)) => why,
                    Err(error) => error.to_string(),
                    Ok(Ok(_)) => String::new(),
                };
                tracing::error!(event = "payload_missing", topic = %act.route.topic, offset, why, "cannot read a payload again");
                let at = act.now().plus(LOAD_AGAIN);
                act.again(item, at);
            }
        });
        ctx.spawn(loaded);
    }
}
