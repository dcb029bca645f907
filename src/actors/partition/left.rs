//! What stays behind a key that waits or is held: outside memory, and read back when the key goes on (I6, I8).
//!
//! A key whose first message waits for an hour, or is in doubt and held, must not fill its partner's share of memory
//! with the records behind it, or nothing would be read for the other keys. So beyond [`BEHIND`] messages, or where
//! memory is tight, only the *place* of a message is kept ([`Place`]): its record in the topic, which is not finished and
//! holds the position, or its `waiting` entry in the ledger. What is queued already is taken out of the queues when
//! memory gets tight, also the message that waits, with what is known of its attempts ([`LeftBehind`]).
//!
//! A record that is read back goes the same way as one that is read for the first time: look-up, skip rules, queue. So
//! what was marked, skipped or delivered meanwhile is noticed, and a second record of its ID is a duplicate whichever
//! of the two comes first. A restart begins with nothing left: unfinished records are read again, waiting entries are
//! in the fold.
//!
//! Every partition may hold [`FLOOR`] bytes of messages that can start, whatever its partner's share: it always goes
//! on. What is left has a bound of its own: half of the share, or [`LEFT_LEAST`].

use super::super::blocking;
use super::super::item::{ITEM_OVERHEAD, Item, Task};
use super::start::LeftBehind;
use super::{PartitionActor, Resolved, SHED_AFTER};
use crate::core::in_full::in_full;
use crate::core::key_queues::left::Place;
use crate::core::ledger::fold::{FinishedState, Message, MessageState};
use crate::core::record::Record;
use crate::core::types::{KeyHash, MessageId, Offset, Time};
use crate::log::{Log, PartitionId};
use crate::sink::Sink;
use actix::prelude::*;
use std::time::Duration;

/// Messages queued behind a key that waits or is held while there is memory enough: they go on without being read again.
const BEHIND: usize = 32;
/// Bytes of messages that a partition may hold whatever its partner's share.
pub const FLOOR: usize = 16 << 10;
/// Bytes of places that a partition may keep whatever its partner's share: some 50,000.
const LEFT_LEAST: u64 = 64 << 10;
/// Bytes of one read at least.
const CHUNK_LEAST: usize = 4 << 10;
/// A key has more read back when so few of its messages are queued.
const LOW: usize = 8;
/// Keys looked at in one turn, and keys and messages of each that are read back in one go.
const LOOK: usize = 256;
const ENOUGH: (usize, usize) = (32, 64);
/// The same where memory is tight.
const TIGHT: (usize, usize) = (4, 8);
/// Messages that can start while there is no room at all.
pub(super) const AT_LEAST: usize = 64;
/// Bytes of bookkeeping of what is known of a message that was left after an attempt.
const TRIED_BYTES: usize = size_of::<(MessageId, LeftBehind)>() * 8 / 7 + 1;
/// Before what cannot be read is tried again. Nothing is lost by waiting: it stays unfinished.
const READ_AGAIN: Duration = Duration::from_secs(5);

/// Records of a key, in order, or why they cannot be read.
pub(super) type Back = (KeyHash, Result<Vec<Record>, String>);

impl<S: Sink> PartitionActor<S> {
    /// Whether at most half of the partner's share is free.
    pub(super) fn is_tight(&self) -> bool {
        let memory = &self.route.partner.memory;
        memory.room() <= memory.bound() / 2
    }

    /// Whether there is room for another read (I6).
    pub(super) fn has_room(&self) -> bool {
        let memory = &self.route.partner.memory;
        let room = memory.room() > (CHUNK_LEAST + ITEM_OVERHEAD) as u64 || self.is_on_the_floor();
        let full = memory.is_full_of_kept();
        // What earlier lives left of records that have not come by grows less only by reading.
        let left = self.left_counted.saturating_sub(self.left_at.len() * TRIED_BYTES);
        room && !full && left as u64 <= (memory.bound() / 2).max(LEFT_LEAST)
    }

    /// Whether one more message may be queued.
    pub(super) fn may_take(&self) -> bool {
        self.route.partner.memory.room() > 0 || self.is_on_the_floor()
    }

    fn is_on_the_floor(&self) -> bool {
        self.held - self.left_counted <= FLOOR
    }

    /// Bytes of the next read: less where there is little room, so that it can be taken up.
    pub(super) fn chunk(&self) -> usize {
        let room = usize::try_from(self.route.partner.memory.room()).unwrap_or(usize::MAX);
        let whole = self.settings.read_chunk;
        (room / 4).max(CHUNK_LEAST).min(whole)
    }

    /// Whether a record of this key that was read now is left where it is.
    pub(super) fn stays_behind(&self, key: Option<KeyHash>) -> bool {
        let Some(key) = key else { return false };
        if self.left.has(key) || self.resting.has(key) {
            return true;
        }
        if self.queues.stuck() == 0 {
            return false;
        }
        let (queued, stuck) = self.queues.standing(key);
        stuck && (queued >= BEHIND || self.is_tight())
    }

    /// Leaves a record that was read where it is.
    pub(super) fn leave(&mut self, key: Option<KeyHash>, offset: Offset) {
        if let Some(key) = key {
            self.left.push(key, Place::Topic(offset));
        }
    }

    /// Whether this message of an earlier life is one of many behind its key.
    pub(super) fn is_far_behind(&self, message: &Message) -> bool {
        let first_round = message.round == 1 && message.opened == 0;
        let key = message.key;
        let behind = self.left.has(key) || self.resting.has(key);
        first_round && (behind || self.queues.standing(key).0 >= BEHIND)
    }

    /// Leaves a message of an earlier life in the ledger.
    pub(super) fn leave_in_ledger(&mut self, id: MessageId, message: &Message, not_before: Time) {
        self.left.push(message.key, Place::Ledger(id, message.offset));
        if message.attempts > 0 {
            let tried = LeftBehind::of_message(message, not_before, self.outage());
            self.left_behind.insert(id, tried);
        }
    }

    /// Counts what the places cost now (I6).
    pub(super) fn count_left(&mut self) {
        let bytes = self.left.bytes() + self.left_behind.len() * TRIED_BYTES;
        if bytes == self.left_counted {
            return;
        }
        self.route.partner.memory.take(bytes);
        self.held += bytes;
        let before = std::mem::replace(&mut self.left_counted, bytes);
        self.uncount(before);
    }

    /// Where memory is tight: takes what cannot start out of the queues, and leaves it, or lets it rest.
    pub(super) fn leave_stuck(&mut self, ctx: &mut Context<Self>) {
        if self
            .copied
            .is_some_and(|number| self.known_to_look_ups() >= number)
        {
            self.copied = None;
            self.stuck_kept = 0;
        }
        // Looks at all that is stuck: not again for a few more.
        let kept = self.stuck_kept + self.stuck_kept / 16;
        // What a look-up that is being made does not know yet stays in flight until its answer is here.
        if !self.look_ups.is_empty() || self.queues.stuck() <= kept || !self.is_tight() {
            return;
        }
        let (now, folded) = (self.now(), self.known_to_look_ups());
        let (may_rest, rest_after) = (self.route.partner.memory.may_rest(), self.settings.rest_after);
        if may_rest {
            self.rest_waiting();
        }
        let mut taken = Vec::new();
        let orders = self.route.orders.clone();
        self.queues.take_stuck(
            |item| {
                // What is called delivered ends when its turn comes: outside, nothing would say so.
                if orders.bar_of(&item.delivery.id).is_some() {
                    return false;
                }
                // What is tried again at once is not worth reading twice; what waits for long goes into the ledger, and
                // rests.
                let wait = item.not_before.since(now);
                let soon = item.not_before > now && wait <= SHED_AFTER;
                let rests = may_rest && wait > rest_after;
                item.over || (item.can_be_left(folded) && !soon && !rests)
            },
            |key, items| taken.push((key, items)),
        );
        for (key, items) in taken {
            if !self.left.takes_front(key) {
                // What comes behind them is being read.
                items
                    .into_iter()
                    .for_each(|item| self.queues.push(Some(key), item));
                continue;
            }
            for item in items.into_iter().rev() {
                self.leave_item(key, &item);
            }
        }
        self.stuck_kept = self.queues.stuck();
        self.count_left();
        if may_rest && self.is_tight() {
            self.copy_waiting(ctx);
        }
    }

    fn leave_item(&mut self, key: KeyHash, item: &Item) {
        if item.over {
            return self.uncount(item.counted);
        }
        let (id, offset) = (item.delivery.id, item.delivery.record.offset);
        let place = match item.off_position {
            true => Place::Ledger(id, offset),
            false => Place::Topic(offset),
        };
        self.left.push_front(key, place);
        // The look-up knows what the ledger has of it; of what is in the topic the first record that is read goes.
        self.in_flight.remove(&id);
        self.uncount(item.counted);
        // Its place does not tell the round.
        if item.delivery.attempt > 0 || item.delivery.round > 1 || item.not_before != Time::ZERO {
            self.left_behind.insert(id, LeftBehind::of_item(item));
        }
    }

    /// Whether more of what is outside memory may be queued.
    pub(super) fn wants_work(&self) -> bool {
        let at_work = self.queues.len().saturating_sub(self.queues.stuck());
        at_work < AT_LEAST || (self.may_take() && at_work < self.settings.window)
    }

    /// Reads back what was left behind keys that can go on.
    pub(super) fn read_back(&mut self, ctx: &mut Context<Self>) {
        if self.left.is_empty() || self.reading_back || self.stands() {
            return;
        }
        if !self.wants_work() {
            return;
        }
        let (keys, most) = if self.is_tight() { TIGHT } else { ENOUGH };
        let (queues, resting) = (&self.queues, &self.resting);
        let keys = self.left.turn(LOOK, keys, |key| {
            let (queued, stuck) = queues.standing(key);
            !stuck && queued <= LOW && !resting.has(key)
        });
        let mut wanted = Vec::new();
        for key in keys {
            let places = self.left.first(key, most);
            let in_ledger = places
                .iter()
                .take_while(|p| matches!(p, Place::Ledger(..)))
                .count();
            for place in &places[..in_ledger] {
                self.left.pop(key);
                if let Place::Ledger(id, offset) = *place {
                    self.queue_from_ledger(key, id, offset);
                }
            }
            let in_topic = places[in_ledger..]
                .iter()
                .take_while(|p| matches!(p, Place::Topic(_)));
            let offsets: Vec<Offset> = in_topic.map(Place::offset).collect();
            if !offsets.is_empty() {
                self.left.reading(key, true);
                wanted.push((key, offsets));
            }
        }
        self.count_left();
        self.start_work(ctx);
        if wanted.is_empty() {
            return;
        }
        self.reading_back = true;
        let (log, input, bytes) = (self.log.clone(), self.input, self.chunk());
        let keys: Vec<KeyHash> = wanted.iter().map(|(key, _)| *key).collect();
        let read =
            async move { blocking::off(move || read_places(log.as_ref(), input, &wanted, bytes)).await };
        let taken = read.into_actor(self).map(move |read, act, ctx| {
            let read = match read {
                Ok(read) => read,
                Err(error) => {
                    let failed = |key: &KeyHash| (*key, Err(error.to_string()));
                    keys.iter().map(failed).collect()
                }
            };
            act.look_up_back(read, ctx);
        });
        ctx.spawn(taken);
    }

    fn queue_from_ledger(&mut self, key: KeyHash, id: MessageId, offset: Offset) {
        let tried = self.left_behind.remove(&id);
        let not_before = tried.map_or(Time::ZERO, |t| t.not_before);
        let message = Message {
            state: MessageState::Later { not_before },
            key,
            offset,
            round: tried.map_or(1, |t| t.round),
            attempts: tried.map_or(0, |t| t.attempts),
            first_try: tried.map_or(Time::ZERO, |t| t.first_try),
            since: Time::ZERO,
            status: tried.map_or(0, |t| t.status),
            payload: Some((0, 0)),
            dropped: false,
            opened: 0,
            carried: false,
        };
        let mut item = self.restored(id, &message, Task::Send);
        item.not_before = not_before;
        // Behind others of its key it goes when they have gone, whatever its time.
        let waits = not_before > self.now() && self.queues.is_idle(key);
        let until = waits.then_some(not_before);
        self.queue(item, until);
    }

    /// Asks what became of records that were read back, and takes up those of each key.
    fn look_up_back(&mut self, read: Vec<Back>, ctx: &mut Context<Self>) {
        let mut known = Vec::with_capacity(read.len());
        for (key, records) in read {
            match records {
                Ok(records) => known.push((key, self.resolve_all(records))),
                Err(why) => self.not_read_back(key, &why, ctx),
            }
        }
        let ids = ids_of(known.iter().map(|(_, records)| records.as_slice()));
        self.ask(ids, ctx, move |act, found, ctx| {
            act.reading_back = false;
            match found {
                Ok(found) => {
                    let mut found = found.into_iter();
                    for (key, records) in known {
                        act.take_up_again(key, records, &mut found);
                        act.left.reading(key, false);
                    }
                    act.forget_marks();
                }
                Err(why) => {
                    let why = why.to_string();
                    known
                        .iter()
                        .for_each(|(key, _)| act.not_read_back(*key, &why, ctx));
                }
            }
            act.count_left();
            act.start_work(ctx);
        });
    }

    fn not_read_back(&mut self, key: KeyHash, why: &str, ctx: &mut Context<Self>) {
        tracing::error!(
            event = "payload_missing", topic = %self.route.topic, why, "cannot read records again that were left behind a waiting key"
        );
        ctx.run_later(READ_AGAIN, move |act, _| act.left.reading(key, false));
    }

    /// What these records are.
    pub(super) fn resolve_all(&mut self, records: Vec<Record>) -> Vec<(Record, Resolved)> {
        let resolved = records.into_iter().map(|record| {
            let resolved = self.resolve.resolve(&record);
            (record, resolved)
        });
        resolved.collect()
    }

    /// `found`: what became of each that is a message; those of the next key follow.
    fn take_up_again(
        &mut self,
        key: KeyHash,
        records: Vec<(Record, Resolved)>,
        found: &mut impl Iterator<Item = Option<FinishedState>>,
    ) {
        let mut goes_on = true;
        for (record, resolved) in records {
            let offset = record.offset;
            let (known, invalid) = match resolved {
                Resolved::Filtered => {
                    goes_on = goes_on && self.is_next(key, offset);
                    if goes_on {
                        self.left.pop(key);
                        self.window.finish_silently(offset, offset + 1);
                    }
                    continue;
                }
                Resolved::Message(known) => (known, None),
                Resolved::Invalid(known, reason) => {
                    let reason = self.route.partner.sink.masker().text(&reason);
                    (known, Some(reason))
                }
            };
            let finished = found.next().flatten().is_some();
            // Whether it is called delivered may be being decided: it is read again then.
            goes_on = goes_on && self.is_next(key, offset) && !self.is_claimed(&known.id);
            if !goes_on {
                continue;
            }
            self.left.pop(key);
            if self.window.is_finished(offset) || self.is_duplicate(offset, &known, finished) {
                continue;
            }
            self.admit(record, known, invalid);
        }
    }

    /// Whether this record is the next one of its key, and may be taken up.
    fn is_next(&self, key: KeyHash, offset: Offset) -> bool {
        !self.stands() && self.left.first(key, 1) == [Place::Topic(offset)]
    }
}

/// IDs of all that are messages, in order.
pub(super) fn ids_of<'a>(of: impl Iterator<Item = &'a [(Record, Resolved)]>) -> Vec<MessageId> {
    let id = |(_, resolved): &(Record, Resolved)| match resolved {
        Resolved::Filtered => None,
        Resolved::Message(known) | Resolved::Invalid(known, _) => Some(known.id),
    };
    of.flat_map(|records| records.iter().filter_map(id)).collect()
}

/// Reads records of keys, the offsets of each rising. At least one record of the first key; of what follows as much as
/// fits into so many bytes.
pub(super) fn read_places(
    log: &dyn Log,
    input: PartitionId,
    wanted: &[(KeyHash, Vec<Offset>)],
    bytes: usize,
) -> Vec<Back> {
    let mut room = bytes;
    let mut back = Vec::with_capacity(wanted.len());
    for (key, offsets) in wanted {
        let least = usize::from(back.is_empty());
        back.push((*key, read_offsets(log, input, offsets, least, &mut room)));
    }
    back
}

/// So many offsets that lie within so many are read in one go.
const CLOSE: (usize, u64) = (8, 64);

fn read_offsets(
    log: &dyn Log,
    input: PartitionId,
    offsets: &[Offset],
    least: usize,
    room: &mut usize,
) -> Result<Vec<Record>, String> {
    let mut records = Vec::with_capacity(offsets.len());
    let mut chunk = Vec::new();
    let mut rest = offsets;
    while let Some(first) = rest.first().copied() {
        if *room == 0 && records.len() >= least {
            break;
        }
        let close = rest
            .get(CLOSE.0)
            .is_some_and(|o| o.saturating_sub(first) < CLOSE.1);
        chunk.clear();
        log.read(input, first, if close { CHUNK_LEAST } else { 1 }, &mut chunk)
            .map_err(|e| in_full(&e))?;
        if chunk.first().is_none_or(|record| record.offset != first) {
            return Err(format!("no record at offset {first}"));
        }
        for record in chunk.drain(..) {
            if rest.first() == Some(&record.offset) {
                rest = &rest[1..];
                *room = room.saturating_sub(record.held_bytes() + ITEM_OVERHEAD);
                records.push(record);
            }
        }
    }
    Ok(records)
}
