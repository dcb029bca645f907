//! What operators' orders mean to a partition that runs. Each comes after its entries are durable and folded, so a
//! partition that is built again finds it in the fold; one that comes twice is known by what is in flight already.

use super::super::item::Item;
use super::PartitionActor;
use crate::core::ledger::fold::{Message, MessageState};
use crate::core::resolve::Skips;
use crate::core::types::{KeyHash, MessageId, Offset, Time};
use crate::sink::Sink;
use actix::prelude::*;
use std::sync::Arc;

/// What follows from an order, for one partition of one route.
#[derive(Message, Clone, Debug)]
#[rtype(result = "()")]
pub enum Told {
    /// A new round of a message begins: it is sent from its kept payload.
    Opened {
        /// Which.
        id: MessageId,
        /// Its round.
        round: u32,
        /// Its key.
        key: KeyHash,
        /// Position of its record.
        offset: Offset,
        /// Idempotency-Key of the round.
        idempotency_key: Arc<str>,
    },
    /// A doubt was settled, or a kept message given up: its key may go on.
    Settled {
        /// Its key.
        key: KeyHash,
    },
    /// A message is called delivered: a record of it that waits in memory is a duplicate now.
    Marked {
        /// Which.
        id: MessageId,
    },
    /// The route's skip rules are others.
    Skips(Arc<Skips>),
    /// The route's stop is over.
    RouteResumed,
}

impl<S: Sink> Handler<Told> for PartitionActor<S> {
    type Result = ();

    fn handle(&mut self, told: Told, ctx: &mut Context<Self>) {
        match told {
            Told::Opened {
                id,
                round,
                key,
                offset,
                idempotency_key,
            } => self.open_round(id, round, key, offset, idempotency_key),
            Told::Settled { key } => self.let_go(key),
            Told::Marked { id } => {
                self.forget_folded();
                if self.in_flight.contains(&id) {
                    self.marked.insert(id);
                }
            }
            Told::Skips(skips) => self.skips = skips,
            Told::RouteResumed => {
                self.route.flood.borrow_mut().resume();
                self.read_on(ctx);
            }
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
        // The outcome of the round before is folded: the order was settled against it.
        self.forget_folded();
        if self.in_flight.contains(&id) {
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
        let held = self.queues.is_held(key);
        // Where its own doubt held the key it goes before what waited behind it (I4); else at a time of its own.
        if held {
            let now = self.now();
            self.queue(item, Some(now));
            self.queues.unhold(key);
        } else {
            self.queue(item, None);
        }
    }

    fn let_go(&mut self, key: KeyHash) {
        if self.queues.is_held(key) {
            self.queues.unhold(key);
        }
    }
}
