//! Where a partition's actor begins, and what it does with what earlier lives left behind.

use super::super::attempt;
use super::super::item::{Item, Task};
use super::PartitionActor;
use crate::config::OnDoubt;
use crate::core::backoff::believed;
use crate::core::doubt::Doubt;
use crate::core::ledger::entry::{Body, Kept, OutcomeKind, Position};
use crate::core::ledger::fold::{LaneState, Message, MessageState, Messages};
use crate::core::ranges::RangeSet;
use crate::core::record::Record;
use crate::core::resolve::Resolved;
use crate::core::types::{KeyHash, MessageId, Offset, RoutePartition, Time};
use crate::sink::{AnswerDetail, Delivery, DoubtCause, Sink};
use std::collections::HashSet;
use std::time::Duration;

/// What the fold knows of a route's partition.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// Every record before this one is finished.
    pub position: Offset,
    /// Finished ranges above it.
    pub finished: RangeSet,
    /// One past the highest record ever taken up.
    pub high_water: Offset,
    /// The partition's messages. A copy shares what may be millions with the fold.
    pub messages: Messages,
    /// Parked messages and their keys, where these hold their keys.
    pub held: Vec<(MessageId, KeyHash)>,
    /// The fold knows rounds of messages that it knows nothing else of.
    pub has_rounds: bool,
    /// Every entry of the lane before this offset is in here.
    pub folded: Offset,
    /// The route was met in this life: it begins wherever the topic does.
    pub fresh: bool,
}

impl Start {
    /// From the fold. Dead and skipped messages are finished and stay behind; of parked ones only the keys matter.
    pub fn of(lane: &LaneState, at: RoutePartition, on_doubt: OnDoubt) -> Self {
        let Some(state) = lane.partitions.get(&at) else {
            return Self {
                folded: lane.next,
                ..Self::default()
            };
        };
        let held = match on_doubt {
            OnDoubt::Hold => state.messages.parked().map(|(id, m)| (id, m.key)).collect(),
            OnDoubt::Continue => Vec::new(),
        };
        Self {
            position: state.position,
            finished: state.finished.clone(),
            high_water: state.high_water,
            messages: state.messages.clone(),
            held,
            has_rounds: !state.rounds.is_empty(),
            folded: lane.next,
            fresh: false,
        }
    }
}

/// An entry that says nothing new of a partition. Once it is folded, so is all that came before it through the same port:
/// also the intent of an attempt that was given up without an outcome, because one before it is in doubt.
pub fn nothing_new(lane: &LaneState, at: RoutePartition) -> Body {
    let known = lane.partitions.get(&at);
    let (position, high_water) = known.map_or((0, 0), |p| (p.position, p.high_water));
    Body::Position(Position {
        at,
        leader_epoch: 0,
        position,
        finished: Vec::new(),
        high_water,
    })
}

/// A message that was tried before and whose record will come by again.
#[derive(Clone, Copy, Debug)]
pub(super) struct LeftBehind {
    /// The record by which the ledger knows it.
    pub(super) offset: Offset,
    pub(super) round: u32,
    pub(super) attempts: u32,
    pub(super) first_try: Time,
    pub(super) not_before: Time,
    pub(super) status: u16,
    /// The partner's outage clock when it was first tried.
    pub(super) outage: Duration,
}

impl LeftBehind {
    /// Of a message that leaves the queues.
    pub(super) fn of_item(item: &Item) -> Self {
        Self {
            offset: item.delivery.record.offset,
            round: item.delivery.round,
            attempts: item.delivery.attempt,
            first_try: item.first_try,
            not_before: item.not_before,
            status: item.status,
            outage: item.outage_at_first_try,
        }
    }

    /// Of a message as the ledger knows it.
    pub(super) fn of_message(message: &Message, not_before: Time, outage: Duration) -> Self {
        Self {
            offset: message.offset,
            round: message.round,
            attempts: message.attempts,
            first_try: message.first_try,
            not_before,
            status: message.status,
            outage,
        }
    }
}

/// Why a message ends whose record is no longer there.
pub(super) const GONE: &str = "lost: its record left the topic before the message was finished";
/// Why one ends whose record the route does not take any more.
const FILTERED: &str = "filtered: the route no longer takes its record";
/// Why one ends whose record is another message now.
const REPLACED: &str = "replaced: its record has another message ID now";

impl<S: Sink> PartitionActor<S> {
    /// Takes over from earlier lives. Doubts, and what waits with its payload in the ledger, queue before any record
    /// that is read: in the order of their offsets, so that each key goes on where it stood (I4).
    pub(super) fn take_over(&mut self, start: Start) {
        let now = self.now();
        start.held.iter().for_each(|(id, key)| self.hold(*id, *key));
        let config = self.route.partner.config.clone();
        let retry = &config.retry;
        let messages = start.messages;
        let mut order: Vec<_> = messages.unsettled().map(|(id, m)| (m.offset, id)).collect();
        order.sort_unstable();
        // Keys that something stands in front of already: what comes after it stands behind it, whatever its time.
        let mut begun = HashSet::new();
        for (_, id) in order {
            let Some(message) = messages.get(&id) else {
                continue;
            };
            match message.state {
                MessageState::Parked | MessageState::Dead | MessageState::Skipped => {}
                MessageState::Open {
                    slot,
                    timeout_ms,
                    life,
                    ..
                } => {
                    // What this very life was settling when the actor failed keeps its cause, and needs nobody to be gone.
                    let own = life == self.route.partner.port.lane().life();
                    let known = self.route.doubts.borrow().get(&id).copied().filter(|_| own);
                    let doubt = Doubt {
                        cause: known.unwrap_or(DoubtCause::Crash),
                        attempts: message.attempts,
                        first_try: message.first_try,
                        // A clock that was ahead then holds no look-up back.
                        slot: slot.min(now),
                        timeout: Duration::from_millis(u64::from(timeout_ms)),
                        // The folder's lock says that the process that sent it is gone: no lease to wait for.
                        taken_over: known.is_none().then_some((now, Duration::ZERO)),
                    };
                    if message.payload.is_none() {
                        self.taken_over.insert(id, message.offset);
                    }
                    let item = self.restored(id, &message, Task::Doubt(doubt));
                    begun.insert(message.key);
                    self.queue(item, None);
                }
                MessageState::Later { not_before }
                    if message.payload.is_some() && self.is_far_behind(&message) =>
                {
                    self.leave_in_ledger(id, &message, believed(not_before, now, retry));
                }
                MessageState::Later { not_before } if message.payload.is_some() => {
                    let not_before = believed(not_before, now, retry);
                    let first = begun.insert(message.key);
                    if first && self.rests_on(id, &message, not_before) {
                        continue;
                    }
                    let mut item = self.restored(id, &message, Task::Send);
                    item.not_before = not_before;
                    // Beside one that rests a later round goes at its own time.
                    let until = (first || self.resting.has(message.key)).then_some(not_before);
                    self.queue(item, until);
                }
                MessageState::Later { not_before } => {
                    let not_before = believed(not_before, now, retry);
                    let offset = message.offset;
                    let left = LeftBehind::of_message(&message, not_before, self.outage());
                    self.left_at.insert(offset, (id, message.key));
                    self.left_behind.insert(id, left);
                    if self.window.is_finished(offset) {
                        // An earlier life passed it by: its record comes by no more.
                        self.end_left(offset, None, REPLACED);
                    }
                }
            }
        }
        self.count_left();
        self.count_rested();
    }

    pub(super) fn outage(&self) -> Duration {
        self.route
            .partner
            .gate
            .with(|turnstile, now| turnstile.outage(now))
    }

    /// Takes up what was left of this message, if anything was.
    pub(super) fn take_left(&mut self, offset: Offset, id: &MessageId) -> Option<LeftBehind> {
        if self.left_behind.is_empty() {
            return None;
        }
        if self.left_at.get(&offset).is_some_and(|left| left.0 == *id) {
            self.left_at.remove(&offset);
        }
        self.left_behind.remove(id)
    }

    /// The record of a message that an earlier life left comes by: it may be something else now, since the topic's
    /// settings were changed.
    pub(super) fn meet_left(&mut self, record: &Record, resolved: &Resolved) {
        let offset = record.offset;
        let Some((left, _)) = self.left_at.get(&offset).copied() else {
            return;
        };
        match resolved {
            Resolved::Filtered => self.end_left(offset, Some(record.clone()), FILTERED),
            Resolved::Message(known) | Resolved::Invalid(known, _) if known.id == left => {
                self.left_at.remove(&offset);
            }
            // The record is not finished before the message that it is now: this one ends with it.
            Resolved::Message(known) | Resolved::Invalid(known, _) => {
                self.replaced.insert(known.id, offset);
            }
        }
    }

    /// A message came to its end: with it ends the one that its record was before.
    pub(super) fn end_replaced(&mut self, by: &MessageId) {
        if !self.replaced.is_empty()
            && let Some(offset) = self.replaced.remove(by)
        {
            self.end_left(offset, None, REPLACED);
        }
    }

    /// Ends what earlier lives left of records before this offset: all of them have been read, and it was in none.
    pub(super) fn end_passed(&mut self, next: Offset) {
        if self.left_at.is_empty() {
            return;
        }
        let replaced: HashSet<Offset> = self.replaced.values().copied().collect();
        let passed = self.left_at.range(..next).map(|(offset, _)| *offset);
        let passed: Vec<_> = passed.filter(|offset| !replaced.contains(offset)).collect();
        for offset in passed {
            self.end_left(offset, None, GONE);
        }
    }

    /// Ends a message that an earlier life left and that cannot be sent any more.
    pub(super) fn end_left(&mut self, offset: Offset, record: Option<Record>, reason: &str) {
        let Some((id, key)) = self.left_at.remove(&offset) else {
            return;
        };
        let Some(left) = self.left_behind.remove(&id) else {
            return;
        };
        let message = Message {
            state: MessageState::Later {
                not_before: Time::ZERO,
            },
            key,
            offset,
            round: left.round,
            attempts: left.attempts,
            first_try: left.first_try,
            since: Time::ZERO,
            status: left.status,
            payload: None,
            dropped: false,
            opened: 0,
            carried: false,
        };
        let mut item = self.restored(id, &message, Task::Send);
        let metrics = &self.route.partner.metrics;
        let kind = match record {
            Some(record) => {
                item.delivery.record = record;
                metrics.skipped.inc();
                let detail = AnswerDetail {
                    reason: reason.to_owned(),
                    answer: String::new(),
                };
                OutcomeKind::Skipped(attempt::kept(&item, detail))
            }
            None if reason == GONE => {
                metrics.dead.inc();
                OutcomeKind::Dead(self.kept_without_record(&item, reason))
            }
            None => {
                metrics.skipped.inc();
                OutcomeKind::Skipped(self.kept_without_record(&item, reason))
            }
        };
        item.outcome = self.route.append_unsent(&item, kind);
        self.in_flight.insert(id);
        self.unfolded.push_back((item.outcome, id));
        self.window.finish(offset);
    }

    /// What is kept of a message whose record is gone.
    pub(super) fn kept_without_record(&self, item: &Item, reason: &str) -> Box<Kept> {
        let detail = AnswerDetail {
            reason: reason.to_owned(),
            answer: String::new(),
        };
        let mut kept = attempt::kept(item, detail);
        kept.dropped = true;
        kept
    }

    /// A message of which only the ledger's facts are in memory: its payload is read when its turn comes.
    pub(super) fn restored(&self, id: MessageId, message: &Message, task: Task) -> Box<Item> {
        Box::new(Item {
            owner: self.route.current.get(),
            delivery: Delivery {
                topic: self.route.topic.clone(),
                partition: self.route.at.partition,
                record: Record {
                    offset: message.offset,
                    ..Record::default()
                },
                id,
                readable: bytes::Bytes::new(),
                round: message.round,
                attempt: message.attempts,
                idempotency_key: None,
            },
            key: message.key,
            place: Some(message.key),
            task,
            first_try: message.first_try,
            outage_at_first_try: self.outage(),
            resend_until: Time::NEVER,
            not_before: Time::ZERO,
            checked: 0,
            status: message.status,
            host: None,
            refused_since: Time::ZERO,
            suspected: false,
            key_rests_until: Time::ZERO,
            shed: true,
            off_position: message.payload.is_some(),
            over: false,
            open: false,
            deferred: false,
            missed: false,
            outcome: 0,
            counted: 0,
        })
    }
}
