//! From a record that was read to a message in its key's queue.

use super::super::item::{Item, Task};
use super::super::{
    attempt, blocking,
    context::{Bar, RouteContext},
    lines,
};
use super::look_ups::NoAnswer;
use super::{PartitionActor, start};
use crate::core::in_full::in_full;
use crate::core::ledger::entry::{Action, Body, Command, Outcome, OutcomeKind};
use crate::core::ledger::fold::{FinishedState, Message};
use crate::core::record::Record;
use crate::core::resolve::{Known, Resolved, Resolver};
use crate::core::turnstile::Draws;
use crate::core::types::{KeyHash, MessageId, Offset, RoutePartition, Time};
use crate::ledger::keeper::Keeper;
use crate::log::LogError;
use crate::sink::{AnswerDetail, Delivery, Sink};
use crate::telemetry::every::Every;
use actix::prelude::*;
use std::rc::Rc;
use std::time::Duration;

/// Code of the reason: the route is stopped because records left its topic.
const LOST: &str = "lost:";

/// Says what a record is. Pure; one for each route partition.
pub trait Resolve: Send {
    /// What the record is.
    fn resolve(&mut self, record: &Record) -> Resolved;
    /// The budgets that a start of it draws from.
    fn draws(&mut self, record: &Record) -> Draws;
}

impl Resolve for Resolver {
    fn resolve(&mut self, record: &Record) -> Resolved {
        Resolver::resolve(self, record)
    }
    fn draws(&mut self, record: &Record) -> Draws {
        Resolver::draws(self, record)
    }
}

/// Answers which messages are finished.
pub trait Remembered: Send + Sync {
    /// For each ID, in order, what became of it; appended to `out`.
    ///
    /// # Errors
    /// If the memory cannot be asked: then nothing may be taken for absent (I2). In words, for people.
    fn look_up(
        &self,
        at: RoutePartition,
        ids: &[MessageId],
        out: &mut Vec<Option<FinishedState>>,
    ) -> Result<(), String>;

    /// Whether rounds are known of messages of which no more is known.
    fn has_rounds(&self, at: RoutePartition) -> bool;

    /// The round that begins with a record of a message of which no more is known. Asked only where rounds of such
    /// messages are known at all.
    fn next_round(&self, at: RoutePartition, id: MessageId) -> u32;

    /// What is known of messages that are not finished; none of those that are.
    fn unfinished(&self, at: RoutePartition, ids: &[MessageId]) -> Vec<Option<Message>>;
}

/// Before a message is looked at again that an order is about: its entry is being written.
const CLAIMED_WAIT: Duration = Duration::from_millis(5);
static READ_FAILED: Every = Every::new(Duration::from_secs(10));
/// Before a failed read is tried again.
const READ_AGAIN: Duration = Duration::from_secs(1);

impl Remembered for Keeper {
    fn look_up(
        &self,
        at: RoutePartition,
        ids: &[MessageId],
        out: &mut Vec<Option<FinishedState>>,
    ) -> Result<(), String> {
        Keeper::look_up(self, at, ids, out).map_err(|error| in_full(&error))
    }

    fn has_rounds(&self, at: RoutePartition) -> bool {
        self.with_state(|state| state.partitions.get(&at).is_some_and(|p| !p.rounds.is_empty()))
    }

    fn next_round(&self, at: RoutePartition, id: MessageId) -> u32 {
        self.with_state(|state| state.partitions.get(&at).map_or(1, |p| p.next_round(&id)))
    }

    fn unfinished(&self, at: RoutePartition, ids: &[MessageId]) -> Vec<Option<Message>> {
        self.with_state(|state| state.unfinished(at, ids))
    }
}

/// Records that were read and are to be looked up.
struct Sorted {
    /// Each with what is wrong with it, if something is.
    messages: Vec<(Record, Known, Option<String>)>,
    /// One past the last record.
    expected: Offset,
}

/// Whether a message is passed over instead of being sent.
pub(super) enum Passed {
    /// No: send it.
    No(Box<Item>),
    /// It waits for an order to be decided; its place is free.
    Waits,
    /// It is finished, and its place, of this key, can be taken.
    Over(Option<KeyHash>),
}

impl<S: Sink> PartitionActor<S> {
    /// Reads the next chunk, unless one is being read or there is no room.
    pub(super) fn read_on(&mut self, ctx: &mut Context<Self>) {
        if self.reading || !self.may_read() {
            return;
        }
        let from = self.window.next_unfinished(self.next_read);
        // What lies between is finished. Where that is all there is, the partition has read everything.
        self.next_read = from;
        match self.log.bounds(self.input) {
            Ok(bounds) if from < bounds.next => {}
            // At the end; the next tick looks again.
            _ => return,
        }
        self.reading = true;
        let (log, input, bytes) = (self.log.clone(), self.input, self.chunk());
        let expected = self.expected;
        let read = async move {
            let read = blocking::off(move || {
                let mut records = Vec::with_capacity(expected);
                log.read(input, from, bytes, &mut records)
                    .map(|next| (records, next))
            });
            read.await
        };
        let taken = read.into_actor(self).map(move |result, act, ctx| match result {
            Ok(Ok((records, next))) => {
                act.expected = records.len();
                act.look_up(from, records, next, ctx);
            }
            Ok(Err(error)) => act.read_failed(error, ctx),
            Err(error) => act.give_up(error, ctx),
        });
        ctx.spawn(taken);
    }

    fn read_failed(&mut self, error: LogError, ctx: &mut Context<Self>) {
        match error {
            LogError::OutOfRange { first, .. } if self.next_read < first => {
                self.meet_first(first);
                self.reading = false;
            }
            error => self.read_again(&error.to_string(), ctx),
        }
    }

    fn read_again(&mut self, why: &str, ctx: &mut Context<Self>) {
        if let Some(suppressed) = READ_FAILED.speak(&self.route.topic) {
            tracing::error!(event = "read_failed", topic = %self.route.topic, why, suppressed, "cannot take up records; trying again");
        }
        self.unreadable = true;
        self.read_later(READ_AGAIN, ctx);
    }

    fn read_later(&mut self, after: Duration, ctx: &mut Context<Self>) {
        ctx.run_later(after, |act, ctx| {
            act.reading = false;
            act.read_on(ctx);
        });
    }

    /// The topic begins at this record, behind the one that would be read next. A new route begins there. One that was
    /// there before has lost what it had not finished: it stands until an operator lets it go on behind the loss.
    pub(super) fn meet_first(&mut self, first: Offset) {
        let from = self.window.next_unfinished(self.next_read);
        let (topic, partner) = (&*self.route.topic, &*self.route.partner.name);
        let partition = self.route.at.partition;
        if from >= first {
            self.next_read = from;
        } else if self.fresh {
            tracing::info!(
                event = "route_begins",
                topic,
                partner,
                partition,
                from = first,
                "a new route begins at the first record that the topic still has"
            );
            self.go_on_behind(first);
        } else {
            tracing::error!(
                event = "offsets_lost",
                topic,
                partner,
                partition,
                from,
                to = first,
                "records left the topic before this route had finished them: the route is stopped until `sluicegate partners resume --topic`"
            );
            let last = first - 1;
            let range = if from == last {
                format!("record {from}")
            } else {
                format!("records {from} to {last}")
            };
            self.lost = Some(first);
            self.stop_route(
                "retention",
                format!(
                    "{LOST} {range} of partition {partition} left the topic before they were finished; `sluicegate partners resume {partner} --topic {topic}` goes on behind them"
                ),
            );
        }
    }

    /// Goes on at this record, and gives up what lies before it.
    pub(super) fn go_on_behind(&mut self, first: Offset) {
        self.window.finish_silently(self.window.position(), first);
        self.window.seen(first.saturating_sub(1));
        self.next_read = self.next_read.max(first);
        let gone: Vec<_> = self.left_at.range(..first).map(|(offset, _)| *offset).collect();
        for offset in gone {
            self.end_left(offset, None, start::GONE);
        }
        self.write_position();
    }

    fn give_up(&mut self, error: impl std::fmt::Display, ctx: &mut Context<Self>) {
        self.lifeline.failed(error);
        ctx.stop();
    }

    /// Asks what became of records that were read. Then takes them up.
    fn look_up(&mut self, from: Offset, records: Vec<Record>, next: Offset, ctx: &mut Context<Self>) {
        let (ids, sorted) = self.sort_out(from, records);
        self.ask(ids, ctx, move |act, found, ctx| match found {
            Ok(found) => act.looked_up(sorted, found, next, ctx),
            Err(NoAnswer::Refused(why)) => act.read_again(&why, ctx),
            Err(NoAnswer::Ended(error)) => act.give_up(error, ctx),
        });
    }

    fn looked_up(
        &mut self,
        sorted: Sorted,
        found: Vec<Option<FinishedState>>,
        next: Offset,
        ctx: &mut Context<Self>,
    ) {
        if !self.take_up(sorted, found, next) {
            return self.read_later(CLAIMED_WAIT, ctx);
        }
        self.reading = false;
        self.unreadable = false;
        self.start_work(ctx);
        self.read_on(ctx);
    }

    /// Says what records are that were read: the IDs to be looked up, and the messages, in one order.
    fn sort_out(&mut self, from: Offset, records: Vec<Record>) -> (Vec<MessageId>, Sorted) {
        let mut ids = Vec::with_capacity(records.len());
        let mut messages = Vec::with_capacity(records.len());
        let mut expected = from;
        for record in records {
            // Offsets may have gaps (M6 of the protocol): what holds no record is finished.
            self.window.finish_silently(expected, record.offset);
            expected = record.offset + 1;
            self.window.seen(record.offset);
            if self.window.is_finished(record.offset) {
                continue;
            }
            let resolved = self.resolve.resolve(&record);
            if self.left_at.contains_key(&record.offset) {
                self.meet_left(&record, &resolved);
            }
            match resolved {
                Resolved::Filtered => {
                    self.route.partner.metrics.filtered.inc();
                    self.window.finish_silently(record.offset, record.offset + 1);
                }
                Resolved::Message(known) => {
                    ids.push(known.id);
                    messages.push((record, known, None));
                }
                Resolved::Invalid(known, reason) => {
                    ids.push(known.id);
                    let reason = self.route.partner.sink.masker().text(&reason);
                    messages.push((record, known, Some(reason)));
                }
            }
        }
        (ids, Sorted { messages, expected })
    }

    /// Takes up records that were looked up: queue or finish. False: not all of them yet, an order about one is being
    /// decided.
    fn take_up(&mut self, sorted: Sorted, found: Vec<Option<FinishedState>>, next: Offset) -> bool {
        self.window.finish_silently(sorted.expected, next);
        self.next_read = next;
        for ((record, known, verdict), found) in sorted.messages.into_iter().zip(found) {
            let offset = record.offset;
            if self.taken_over.get(&known.id) == Some(&offset) {
                // Its doubt is queued already, and finishes this offset.
                self.taken_over.remove(&known.id);
                continue;
            }
            if self.is_claimed(&known.id) {
                // Whether it is called delivered is being decided: it is read again, and looked up again, then.
                self.next_read = offset;
                self.count_left();
                return false;
            }
            if self.is_duplicate(offset, &known, found.is_some()) {
                continue;
            }
            if verdict.is_none() && self.stays_behind(known.key) {
                self.leave(known.key, offset);
                continue;
            }
            // Read again when the route goes on, or when there is room: this one, and what comes after it.
            if (verdict.is_some() && self.stands()) || !self.may_take() {
                self.next_read = offset;
                break;
            }
            self.admit(record, known, verdict);
        }
        self.end_passed(self.next_read);
        self.count_left();
        self.forget_marks();
        true
    }

    /// Whether an order about this message, of which nothing is in flight, is being decided.
    pub(super) fn is_claimed(&self, id: &MessageId) -> bool {
        self.route.orders.bar_of(id) == Some(Bar::Claimed) && !self.in_flight.contains(id)
    }

    /// What an order called delivered while records were looked up stands in no queue. Not while a look-up is being
    /// made: it may have been answered before.
    pub(super) fn forget_marks(&self) {
        if !self.look_ups.is_empty() {
            return;
        }
        let in_flight = &self.in_flight;
        self.route.orders.keep_marked(|id| in_flight.contains(id));
    }

    /// Whether the record shares the fate of one before it, or was called delivered: then it is finished, and writes
    /// nothing (M1 of the protocol).
    pub(super) fn is_duplicate(&mut self, offset: Offset, known: &Known, finished: bool) -> bool {
        let marked = || self.route.orders.bar_of(&known.id) == Some(Bar::Marked);
        let duplicate = finished || marked() || self.in_flight.contains(&known.id);
        if duplicate {
            self.end_replaced(&known.id);
            self.route.partner.metrics.duplicate.inc();
            self.window.finish_silently(offset, offset + 1);
        }
        duplicate
    }

    /// Queues a message; one that is invalid is dead at once, for this reason.
    pub(super) fn admit(&mut self, record: Record, known: Known, invalid: Option<String>) {
        let offset = record.offset;
        let mut item = self.new_item(record, known);
        let Some(reason) = invalid else {
            let mut until = None;
            if let Some(left) = self.take_left(offset, &item.delivery.id) {
                item.resume(left);
                if left.offset != offset {
                    self.goes_by(&item);
                }
                // Behind others of its key it goes when they have gone, whatever its time.
                let idle = item.place.is_none_or(|key| self.queues.is_idle(key));
                until = (idle && left.not_before > self.now()).then_some(left.not_before);
            } else if self.has_rounds {
                item.delivery.round = self.remembered.next_round(self.route.at, item.delivery.id);
            }
            self.queue(item, until);
            return;
        };
        let detail = AnswerDetail {
            reason,
            answer: String::new(),
        };
        let kept = attempt::kept(&item, detail);
        lines::dead(&self.route, &item, &kept);
        item.outcome = self.route.append_unsent(&item, OutcomeKind::Dead(kept));
        self.route.partner.metrics.dead.inc();
        self.in_flight.insert(item.delivery.id);
        self.unfolded.push_back((item.outcome, item.delivery.id));
        self.window.finish(offset);
        self.count_dead();
    }

    /// The message goes on by another record of it than the one that the ledger knows. That one is a duplicate now, and a
    /// restart would take a finished record for the end of its message (I1): so the ledger knows it by this record
    /// before a position says that the other one is finished.
    fn goes_by(&self, item: &Item) {
        let later = OutcomeKind::Later {
            not_before: item.not_before,
            first_try: item.first_try,
            key: item.key,
            reason: "goes on by another record of the same message".to_owned(),
            counted: true,
        };
        self.route.append_unsent(item, later);
    }

    pub(super) fn new_item(&self, record: Record, known: Known) -> Box<Item> {
        Box::new(Item {
            owner: self.route.current.get(),
            key: known.key.unwrap_or(KeyHash(known.id.tail())),
            place: known.key,
            delivery: Delivery {
                topic: self.route.topic.clone(),
                partition: self.route.at.partition,
                record,
                id: known.id,
                readable: known.readable,
                round: 1,
                attempt: 0,
                idempotency_key: None,
            },
            task: Task::Send,
            first_try: Time::ZERO,
            outage_at_first_try: Duration::ZERO,
            resend_until: Time::NEVER,
            not_before: Time::ZERO,
            checked: 0,
            status: 0,
            host: None,
            refused_since: Time::ZERO,
            suspected: false,
            key_rests_until: Time::ZERO,
            shed: false,
            off_position: false,
            over: false,
            open: false,
            deferred: false,
            missed: false,
            outcome: 0,
            counted: 0,
        })
    }

    /// Whether the message must not be sent: an operator called it delivered, or a rule passes it over. Then it is
    /// finished, or waits until the order is decided; it comes back otherwise.
    pub(super) fn passed_over(&mut self, mut item: Box<Item>) -> Passed {
        item.checked = self.route.orders.version();
        match self.route.orders.bar_of(&item.delivery.id) {
            Some(Bar::Marked) => {
                self.end_marked(item.delivery.id, item.delivery.record.offset);
                return Passed::Over(self.leave_queue(&item));
            }
            Some(Bar::Claimed) => {
                let at = self.now().plus(CLAIMED_WAIT);
                self.again(item, at);
                return Passed::Waits;
            }
            None => {}
        }
        if !self.route.orders.has_skips() {
            return Passed::No(item);
        }
        let now = self.now();
        let Some(reason) = self.route.orders.skipped(&item, now) else {
            return Passed::No(item);
        };
        let detail = AnswerDetail {
            reason,
            answer: String::new(),
        };
        let mut kept = attempt::kept(&item, detail);
        // A rule against a flooding key: its millions are remembered, and only the first of them kept.
        let only_remembered = self.route.partner.memory.is_half_full_of_kept();
        if only_remembered {
            *kept = kept.without_payload();
        }
        item.outcome = self.route.append_unsent(&item, OutcomeKind::Skipped(kept));
        if only_remembered {
            let drop = Action::Drop {
                at: self.route.at,
                id: item.delivery.id,
            };
            item.outcome = self.route.partner.port.outcome(Body::from(Command {
                offset: 0,
                when: now,
                who: "skip rule".into(),
                why: String::new(),
                action: drop,
            }));
        }
        self.route.partner.metrics.skipped.inc();
        Passed::Over(self.end(&item))
    }
}

impl Item {
    /// Goes on where an attempt before has left it.
    pub(super) fn resume(&mut self, left: start::LeftBehind) {
        self.delivery.round = left.round;
        self.delivery.attempt = left.attempts;
        self.first_try = left.first_try;
        self.outage_at_first_try = left.outage;
        self.not_before = left.not_before;
        self.status = left.status;
    }
}

impl<S> RouteContext<S> {
    pub(super) fn append_unsent(self: &Rc<Self>, item: &Item, kind: OutcomeKind) -> u64 {
        let port = &self.partner.port;
        port.outcome(Body::Outcome(Outcome {
            at: self.at,
            id: item.delivery.id,
            offset: item.delivery.record.offset,
            round: item.delivery.round,
            attempts: item.delivery.attempt,
            when: self.partner.clock.now(),
            life: port.lane().life(),
            status: item.status,
            kind,
        }))
    }
}
