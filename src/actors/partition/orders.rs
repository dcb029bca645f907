//! What operators' orders mean to a partition that runs: effects of folded entries, in the order of the lane. Effects
//! of entries that were in the fold which this actor began from are known to it, and ignored.
//!
//! What concerns messages that are handed out already stands in [`Orders`](super::super::context::Orders), and is
//! there before the effect comes here.

use super::super::item::Item;
use super::PartitionActor;
use crate::core::ledger::fold::{Effect, Message, MessageState};
use crate::core::types::{KeyHash, MessageId, Offset, Time};
use crate::sink::Sink;
use actix::prelude::*;
use std::sync::Arc;

/// An effect, and the offset of the entry that it follows from.
#[derive(Message, Clone, Debug)]
#[rtype(result = "()")]
pub struct Follow(pub Offset, pub Effect);

impl<S: Sink> Handler<Follow> for PartitionActor<S> {
    type Result = ();

    fn handle(&mut self, Follow(offset, effect): Follow, ctx: &mut Context<Self>) {
        if offset < self.folded_before {
            return;
        }
        match effect {
            Effect::Opened {
                id,
                round,
                key,
                offset,
                idempotency_key,
                ..
            } => self.open_round(id, round, key, offset, idempotency_key),
            Effect::Settled { id, .. } => self.let_go(id),
            Effect::Marked { id, .. } => {
                self.release(id);
                // What is being looked up may have been answered before.
                if !self.in_flight.contains(&id) && self.look_ups.is_empty() {
                    self.route.orders.unmark(&id);
                }
            }
            // A record of it that waits in memory goes on, whichever it is; else the next one is a new message.
            Effect::Forgotten { id, .. } => {
                self.has_rounds = true;
                self.release(id);
            }
            Effect::RouteResumed { .. } => {
                if let Some(first) = self.lost.take() {
                    self.go_on_behind(first);
                }
                self.read_on(ctx);
            }
            _ => {}
        }
        self.start_work(ctx);
    }
}

impl<S: Sink> PartitionActor<S> {
    fn open_round(
        &mut self,
        id: MessageId,
        round: u32,
        key: KeyHash,
        offset: Offset,
        idempotency_key: Arc<str>,
    ) {
        self.release(id);
        if self.in_flight.contains(&id) {
            debug_assert!(false, "a round is opened of a message that is in flight");
            return;
        }
        let message = Message {
            state: MessageState::Later {
                not_before: Time::ZERO,
            },
            key,
            offset,
            round,
            attempts: 0,
            first_try: Time::ZERO,
            since: Time::ZERO,
            status: 0,
            payload: None,
            dropped: false,
            opened: 0,
            carried: false,
        };
        let mut item: Box<Item> = self.restored(id, &message, super::Task::Send);
        item.delivery.idempotency_key = Some(idempotency_key);
        item.off_position = true;
        // Where its own doubt held the key it goes before what waited behind it (I4); else at a time of its own.
        if self.holding.contains_key(&id) {
            let now = self.now();
            self.queue(item, Some(now));
            self.let_go(id);
        } else {
            self.queue(item, None);
        }
    }

    /// The doubt of this message, and of no other, holds its key no longer.
    fn let_go(&mut self, id: MessageId) {
        if let Some(key) = self.holding.remove(&id) {
            self.queues.unhold(key);
        }
    }
}
