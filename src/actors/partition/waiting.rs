//! Copying what waits for long into the ledger: from there on it holds no position (I1).
//!
//! A message whose retry is far away, or that has been tried for long, and the later messages of its key behind it,
//! become `waiting` entries with their payloads, in the order of the key. Once such an entry is appended the record
//! counts as finished for the position: what it needs is in the ledger, whatever becomes of the topic's record. In
//! memory nothing changes: the messages stay queued, and are sent from there. A restart finds them in the fold and
//! queues them, in the same order, before anything that is read (I4).

use super::super::item::Item;
use super::super::{attempt, blocking};
use super::PartitionActor;
use crate::core::ledger::entry::{Body, Waiting};
use crate::core::record::Record;
use crate::core::types::{MessageId, Offset, Time};
use crate::sink::{AnswerDetail, Sink};
use actix::prelude::*;
use std::collections::HashMap;

/// Messages copied in one go: the arbiter has other work.
const AT_ONCE: usize = 512;

impl Item {
    /// Whether it is to be copied: it waits for longer than this, or has been tried for so long.
    fn waits_long(&self, now: Time, after: std::time::Duration) -> bool {
        let tried = self.first_try != Time::ZERO && now.since(self.first_try) >= after;
        tried || self.not_before.since(now) > after
    }
}

impl<S: Sink> PartitionActor<S> {
    /// Copies what waits for long; what has given its payload up is read again first.
    pub(super) fn copy_waiting(&mut self, ctx: &mut Context<Self>) {
        if self.copying || self.draining {
            return;
        }
        let wanted = self.copy(HashMap::new());
        if wanted.is_empty() {
            return;
        }
        self.copying = true;
        let (payloads, at) = (self.payloads.clone(), self.route.at);
        let load = async move {
            let read = blocking::off(move || {
                let read = |(id, offset)| Some((id, payloads.load(at, id, offset).ok()?.record));
                // One that cannot be read is tried again at the next turn, and holds its position so long.
                wanted.into_iter().filter_map(read).collect::<HashMap<_, _>>()
            });
            read.await.unwrap_or_default()
        };
        let loaded = load.into_actor(self).map(|loaded, act, _| {
            act.copying = false;
            act.copy(loaded);
        });
        ctx.spawn(loaded);
    }

    /// Copies what is at hand; returns what must be read before.
    fn copy(&mut self, mut loaded: HashMap<MessageId, Record>) -> Vec<(MessageId, Offset)> {
        let now = self.now();
        let after = self.settings.waiting_after;
        let (at, port) = (self.route.at, self.route.partner.port.clone());
        let (mut wanted, mut finished) = (Vec::new(), Vec::new());
        self.queues.visit_stuck(|item, behind| {
            if item.off_position {
                return true;
            }
            if finished.len() + wanted.len() >= AT_ONCE || !(behind || item.waits_long(now, after)) {
                return false;
            }
            let (id, offset) = (item.delivery.id, item.delivery.record.offset);
            let kept = if item.shed {
                let Some(record) = loaded.remove(&id) else {
                    wanted.push((id, offset));
                    // Those behind it on its key come after it.
                    return false;
                };
                let held = std::mem::replace(&mut item.delivery.record, record);
                let kept = attempt::kept(item, AnswerDetail::default());
                item.delivery.record = held;
                kept
            } else {
                attempt::kept(item, AnswerDetail::default())
            };
            port.outcome(Body::Waiting(Waiting {
                at,
                id,
                offset,
                round: item.delivery.round,
                attempts: item.delivery.attempt,
                when: now,
                not_before: item.not_before,
                kept,
            }));
            item.off_position = true;
            finished.push(offset);
            true
        });
        for offset in finished {
            self.window.finish(offset);
        }
        wanted
    }
}
