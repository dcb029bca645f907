//! What waits for long and is in the ledger rests outside memory, and is woken when it is due (I6, I8).
//!
//! A million messages to which the partner said "in an hour", each without key or with a key of its own, must not fill
//! the partner's share of memory, or nothing would be read for the others. Where memory is tight such a message is
//! copied into the ledger at once ([`super::waiting`]); once that is folded, only when to wake it stays here
//! ([`crate::core::key_queues::resting`]). Then it is asked for in the fold, and its payload is read from the ledger
//! before it is sent. A restart lets what waits for long in the ledger rest from the beginning.
//!
//! What comes after it on its key stays behind it ([`super::left`]), in the topic or in the ledger (I4).

use super::super::item::{Item, Task};
use super::PartitionActor;
use super::left::AT_LEAST;
use crate::core::key_queues::resting::Rested;
use crate::core::ledger::fold::{Message, MessageState};
use crate::core::types::{KeyHash, MessageId, Time};
use crate::sink::Sink;
use actix::prelude::*;
use std::time::Duration;

/// What waits for longer than this can rest. Backoffs of a partner that refuses all come to it only after some
/// attempts: until then the share bounds how much of its topic is tried.
pub const REST_AFTER: Duration = Duration::from_secs(30);
/// Bytes of a message that holds its key, and of that key in the queues.
const HELD_BYTES: usize = size_of::<(MessageId, KeyHash)>() * 8 / 7 + 1 + 40;
/// Bytes of what an earlier life left of a record, by its offset.
const EARLIER_BYTES: usize = 48;
/// Messages woken in one turn, and where memory is tight.
const WOKEN: (usize, usize) = (256, 16);

impl<S: Sink> PartitionActor<S> {
    /// Takes what can rest out of the queues.
    pub(super) fn rest_waiting(&mut self) {
        let (now, folded) = (self.now(), self.known_to_look_ups());
        let (resting, after) = (&self.resting, self.settings.rest_after);
        let mut taken = Vec::new();
        let orders = self.route.orders.clone();
        self.queues.take_waiting(
            |key, item| {
                if orders.bar_of(&item.delivery.id).is_some() {
                    return false;
                }
                let long = item.not_before.since(now) > after && item.can_rest(folded);
                long && key.is_none_or(|key| !resting.has(key))
            },
            |key, item, due| taken.push((key, item, due)),
        );
        for (key, item, due) in taken {
            let rested = Rested {
                id: item.delivery.id,
                key,
                outage: item.outage_at_first_try,
                deferred: item.deferred,
            };
            if !self.resting.push(rested, due, now) {
                self.queue(item, Some(due));
                continue;
            }
            // The look-up knows that it waits.
            self.in_flight.remove(&item.delivery.id);
            self.uncount(item.counted);
        }
        self.count_rested();
    }

    /// Lets a message of an earlier life rest, if it waits for long, or there is no room for it, and nothing of its key
    /// stands before it.
    pub(super) fn rests_on(&mut self, id: MessageId, message: &Message, until: Time) -> bool {
        let now = self.now();
        let long = until.since(now) > self.settings.rest_after;
        let fits = self.queues.len() < AT_LEAST || self.may_take();
        if !long && fits {
            return false;
        }
        let rested = Rested {
            id,
            key: Some(message.key).filter(|key| *key != KeyHash(id.tail())),
            outage: self.outage(),
            deferred: message.first_try == Time::ZERO,
        };
        self.resting.push(rested, until, now)
    }

    /// Counts what resting costs now (I6); and what the ledger's parked messages cost by holding their keys, and what
    /// earlier lives left of records that have not come by.
    pub(super) fn count_rested(&mut self) {
        let memory = &self.route.partner.memory;
        let bytes = self.resting.bytes();
        memory.rest(std::mem::replace(&mut self.rest_counted, bytes), bytes);
        let of_earlier = self.left_at.len() + self.replaced.len() + self.taken_over.len();
        let bytes = self.holding.len() * HELD_BYTES + of_earlier * EARLIER_BYTES;
        memory.keep_beside(std::mem::replace(&mut self.beside_counted, bytes), bytes);
    }

    /// Limits have changed: what only a limit keeps back asks again.
    pub(super) fn heed_limits(&mut self) {
        let version = self.route.partner.gate.limits_version();
        if std::mem::replace(&mut self.limits_seen, version) == version {
            return;
        }
        let now = self.now();
        let sooner = |item: &mut Box<Item>| {
            if item.deferred {
                item.not_before = now;
            }
            item.deferred
        };
        self.queues.hasten(sooner, now);
        self.resting.hasten(now);
    }

    /// Queues what has rested long enough, as far as there is room.
    pub(super) fn wake(&mut self, ctx: &mut Context<Self>) {
        let now = self.now();
        if self.resting.next_due() > now || self.stands() || !self.wants_work() {
            return;
        }
        let most = if self.is_tight() { WOKEN.1 } else { WOKEN.0 };
        let woken = self.resting.wake(now, most);
        let ids: Vec<MessageId> = woken.iter().map(|rested| rested.id).collect();
        let known = self.remembered.unfinished(self.route.at, &ids);
        for (rested, message) in woken.into_iter().zip(known) {
            // One that is gone has nothing to be sent for.
            let Some(message) = message else { continue };
            let MessageState::Later { not_before } = message.state else {
                continue;
            };
            let mut item = self.restored(rested.id, &message, Task::Send);
            item.place = rested.key;
            item.not_before = not_before.min(now);
            item.outage_at_first_try = rested.outage;
            item.deferred = rested.deferred;
            self.queue(item, None);
        }
        self.count_rested();
        self.start_work(ctx);
    }
}
