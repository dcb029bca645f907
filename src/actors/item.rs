//! A message on its way through a partition: queued, in hand of a key's actor, or waiting.

use crate::core::doubt::{Doubt, Progress};
use crate::core::hosts::HostId;
use crate::core::key_queues::Queued;
use crate::core::types::{KeyHash, Time};
use crate::sink::Delivery;
use std::time::Duration;

/// What is to be done with an item when its turn comes.
#[derive(Clone, Copy, Debug)]
pub enum Task {
    /// Send it.
    Send,
    /// Its outcome is unknown: decide by the partner's policy.
    Doubt(Doubt),
    /// Its outcome is unknown: ask the partner's look-up.
    LookUp(Doubt, Progress),
}

/// See the module.
#[derive(Debug)]
pub struct Item {
    /// The message. `attempt` counts the attempts already made in this round.
    pub delivery: Delivery,
    /// Its key; a record without key has the hash of its ID, which no other shares.
    pub key: KeyHash,
    /// The key under which it queues; none: it is a unit of its own.
    pub place: Option<KeyHash>,
    /// Number of the partition's actor that has it.
    pub owner: u64,
    /// What is to be done.
    pub task: Task,
    /// The version of the route's orders that it was asked against when it was handed out.
    pub checked: u32,
    /// First attempt of this round; zero if none was made.
    pub first_try: Time,
    /// The partner's outage clock when the first attempt was made.
    pub outage_at_first_try: Duration,
    /// A resend of a doubt must start before then.
    pub resend_until: Time,
    /// Not to be tried again before this time; zero while nothing holds it back.
    pub not_before: Time,
    /// Last status; 0 if none.
    pub status: u16,
    /// Its host, once that is known, where the record says which.
    pub host: Option<HostId>,
    /// When the attempt set out that was the first of those whose credentials were refused; zero: its last was not.
    pub refused_since: Time,
    /// Its credentials were refused once without that being counted: it is, if the refusals turn out to be its own.
    pub suspected: bool,
    /// Where it ends without being delivered, the next message of its key waits until then; zero if nothing says so.
    pub key_rests_until: Time,
    /// The payload was given up to save memory and must be read again.
    pub shed: bool,
    /// Its record counts as finished for the position already (`waiting`, or a later round).
    pub off_position: bool,
    /// An order ended it, and its record with it: only its place in the queue is left. A later record of its ID is a
    /// message of its own.
    pub over: bool,
    /// The ledger has an intent of it that no outcome has closed, though a look-up said that it was not taken: to the
    /// ledger it is in doubt, and nobody who makes it anew from there may find it so.
    pub open: bool,
    /// The gate sent it away until its value of a limit has a slot.
    pub deferred: bool,
    /// It had a slot and missed it, and has not started since: the next free one of its value is its own.
    pub missed: bool,
    /// Number of its last outcome in the lane's port.
    pub outcome: u64,
    /// Bytes counted for it against the memory bound. Who has it shed its payload gives back what that freed.
    pub counted: usize,
}

/// Bytes of bookkeeping for an item beside its payload: the boxed struct, its queue node, its ID in the set of
/// those in flight, and the allocator's rounding (measured with records of 20 B, `docs/benchmarks.md`).
pub const ITEM_OVERHEAD: usize = 512;

impl Item {
    /// Whether it is being resent because an earlier attempt of this round is in doubt: until the partner takes or
    /// refuses it under the same Idempotency-Key, nobody knows whether it was taken.
    pub fn is_unsettled(&self) -> bool {
        self.resend_until != Time::NEVER
    }

    /// Whether its last attempt ended with refused credentials.
    pub fn was_refused(&self) -> bool {
        // The status is what is known of one that was built again; behind a redirect it is the redirect's meanwhile.
        self.refused_since != Time::ZERO || matches!(self.status, 401 | 403 | 407)
    }

    /// Bytes it holds now, bookkeeping included (I6).
    pub fn memory(&self) -> usize {
        ITEM_OVERHEAD + self.bytes()
    }
}

impl Item {
    /// Gives the payload up, to be read again when its turn comes; returns how many bytes that freed.
    pub fn shed(&mut self) -> usize {
        let freed = self.delivery.record.held_bytes();
        let record = &mut self.delivery.record;
        record.key = None;
        record.value = bytes::Bytes::new();
        record.headers = crate::core::record::Headers::none();
        self.shed = true;
        self.counted = self.counted.saturating_sub(freed);
        freed
    }

    /// Whether it can be made anew from its record, or from its payload in the ledger, and what the ledger knows of
    /// its attempts. `folded`: the number of the last outcome that is folded.
    pub fn can_be_left(&self, folded: u64) -> bool {
        matches!(self.task, Task::Send)
            && self.place.is_some()
            && !self.is_unsettled()
            && !self.open
            // The Idempotency-Key of a later round is in the ledger, with its payload.
            && (self.off_position || (self.delivery.round == 1 && self.delivery.idempotency_key.is_none()))
            && (!self.off_position || self.outcome <= folded)
    }

    /// Whether all that is needed to send it again is in the ledger. `folded` as above.
    pub fn can_rest(&self, folded: u64) -> bool {
        matches!(self.task, Task::Send)
            && !self.over
            && !self.is_unsettled()
            && !self.open
            && self.off_position
            && self.outcome <= folded
    }

    fn bytes(&self) -> usize {
        self.delivery.record.held_bytes()
    }
}

impl Queued for Box<Item> {
    fn is_urgent(&self) -> bool {
        !matches!(self.task, Task::Send) || self.is_unsettled()
    }
}
