//! Copying what waits for long into the ledger: from there on it holds no position (I1).
//!
//! A message whose retry is far away, or that has been tried for long, and the later messages of its key behind it,
//! become `waiting` entries with their payloads, in the order of the key. Once such an entry is appended the record
//! counts as finished for the position: what it needs is in the ledger, whatever becomes of the topic's record. The
//! messages stay queued, and are sent from there; where memory is tight only their places stay ([`super::left`]). A
//! restart finds them in the fold and queues them, in the same order, before anything that is read (I4).
//!
//! What an order called delivered is not copied. Its record counts as finished here, so it is over for good (`Item::over`): a
//! record that comes under its ID, once that is forgotten, is a message of its own.
//!
//! What was left in the topic behind a stuck key is copied only where the finished ranges above the position come near
//! their bound: the topic keeps it as well, and its position says so.

use super::super::context::Bar;
use super::super::item::Item;
use super::super::{attempt, blocking};
use super::left::{ids_of, read_places};
use super::start::LeftBehind;
use super::{PartitionActor, Resolved};
use crate::core::key_queues::Visit;
use crate::core::ledger::entry::{Body, Kept, Waiting};
use crate::core::ledger::fold::FinishedState;
use crate::core::record::Record;
use crate::core::types::{KeyHash, MessageId, Offset, RoutePartition, Time};
use crate::sink::{AnswerDetail, Sink};
use actix::prelude::*;
use std::collections::HashMap;
use std::time::Duration;

/// Messages copied in one go: the arbiter has other work.
const AT_ONCE: usize = 512;
/// When the next ones are copied, if there are more.
const COPY_ON: Duration = Duration::from_millis(50);

/// Whether a message is to be copied: it waits for longer than this, or has been tried for so long.
fn waits_long(first_try: Time, not_before: Time, now: Time, after: Duration) -> bool {
    let tried = first_try != Time::ZERO && now.since(first_try) >= after;
    tried || not_before.since(now) > after
}

impl<S: Sink> PartitionActor<S> {
    /// Copies what waits for long; what has given its payload up is read again first. Where memory is tight less is
    /// long: what is in the ledger can rest outside memory.
    pub(super) fn copy_waiting(&mut self, ctx: &mut Context<Self>) {
        if self.copying || self.draining {
            return;
        }
        let (wanted, more) = self.copy(HashMap::new());
        if wanted.is_empty() {
            if more {
                ctx.run_later(COPY_ON, Self::copy_waiting);
            }
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
        let loaded = load.into_actor(self).map(move |loaded, act, ctx| {
            act.copying = false;
            act.copy(loaded);
            if more {
                ctx.run_later(COPY_ON, Self::copy_waiting);
            }
        });
        ctx.spawn(loaded);
    }

    /// Copies what is at hand; returns what must be read before, and whether there is more than was looked at.
    fn copy(&mut self, mut loaded: HashMap<MessageId, Record>) -> (Vec<(MessageId, Offset)>, bool) {
        let now = self.now();
        let after = self.settings.waiting_after;
        let tight = self.is_tight() && self.route.partner.memory.may_rest();
        let rest_after = self.settings.rest_after;
        let mut more = false;
        let (at, port) = (self.route.at, self.route.partner.port.clone());
        let (mut wanted, mut finished) = (Vec::new(), Vec::new());
        let (mut marked, mut freed) = (Vec::new(), 0);
        let orders = self.route.orders.clone();
        let mut last = None;
        self.queues.visit_stuck(|item, behind| {
            if item.off_position {
                return Visit::Next;
            }
            if finished.len() + wanted.len() >= AT_ONCE {
                more = true;
                return Visit::End;
            }
            let rests = tight && item.not_before.since(now) > rest_after;
            if !(behind || rests || waits_long(item.first_try, item.not_before, now, after)) {
                return Visit::OtherKey;
            }
            let (id, offset) = (item.delivery.id, item.delivery.record.offset);
            match orders.bar_of(&id) {
                // An entry behind the one that calls it delivered would have it wait again.
                Some(Bar::Claimed) => return Visit::OtherKey,
                // Its end is written into the window here, so it must be its end whatever comes: its ID is free, and
                // what may come under it is another record.
                Some(Bar::Marked) => {
                    (item.off_position, item.over) = (true, true);
                    freed += item.shed();
                    marked.push((id, offset));
                    return Visit::Next;
                }
                None => {}
            }
            let kept = if item.shed {
                let Some(record) = loaded.remove(&id) else {
                    wanted.push((id, offset));
                    // Those behind it on its key come after it.
                    return Visit::OtherKey;
                };
                let held = std::mem::replace(&mut item.delivery.record, record);
                let kept = attempt::kept(item, AnswerDetail::default());
                item.delivery.record = held;
                kept
            } else {
                attempt::kept(item, AnswerDetail::default())
            };
            item.outcome = port.outcome(waiting_entry(at, item, now, kept));
            last = Some(item.outcome);
            item.off_position = true;
            finished.push(offset);
            Visit::Next
        });
        if last.is_some() {
            self.copied = last;
        }
        for offset in finished {
            self.window.finish(offset);
        }
        self.uncount(freed);
        for (id, offset) in marked {
            self.end_marked(id, offset);
        }
        (wanted, more)
    }
}

/// Keys that share one turn of copying from the topic.
const KEYS: usize = 8;

impl<S: Sink> PartitionActor<S> {
    /// Where finished ranges come near their bound: copies what was left in the topic behind stuck keys, in the order of
    /// each key, so that the position passes it.
    pub(super) fn copy_left(&mut self, ctx: &mut Context<Self>) {
        let crowded = self.window.ranges() * 2 >= self.settings.ranges;
        if !crowded || self.relieving || self.draining || self.stands() || self.left.is_empty() {
            return;
        }
        let after = self.settings.waiting_after;
        let (queues, resting) = (&self.queues, &self.resting);
        let keys = self.left.turn(usize::MAX, KEYS, |key| {
            // What stands before it is in the ledger already: a restart queues that first (I4).
            let copied = || queues.queued(key).all(|item| item.off_position);
            (queues.standing(key).1 || resting.has(key)) && copied()
        });
        let mut wanted = Vec::new();
        let most = AT_ONCE / keys.len().max(1);
        for key in keys {
            let offsets = self.left.first_in_topic(key, most);
            if !offsets.is_empty() {
                self.left.reading(key, true);
                wanted.push((key, offsets));
            }
        }
        if wanted.is_empty() {
            return;
        }
        self.relieving = true;
        let keys: Vec<KeyHash> = wanted.iter().map(|(key, _)| *key).collect();
        let (log, input, bytes) = (self.log.clone(), self.input, self.settings.read_chunk);
        let read =
            async move { blocking::off(move || read_places(log.as_ref(), input, &wanted, bytes)).await };
        let copied = read.into_actor(self).map(move |read, act, ctx| {
            // What cannot be read is tried again at the next turn, and holds its position so long.
            let read = read.unwrap_or_default().into_iter();
            let read: Vec<_> = read
                .filter_map(|(key, records)| Some((key, act.resolve_all(records.ok()?))))
                .collect();
            let ids = ids_of(read.iter().map(|(_, records)| records.as_slice()));
            act.ask(ids, ctx, move |act, found, ctx| {
                act.relieving = false;
                let before = act.window.ranges();
                // The same where nothing may be taken for absent.
                let mut found = found.unwrap_or_default().into_iter();
                for (key, records) in read {
                    act.copy_records(key, records, &mut found, after);
                }
                keys.into_iter().for_each(|key| act.left.reading(key, false));
                act.count_left();
                if act.window.ranges() < before {
                    act.copy_left(ctx);
                }
            });
        });
        ctx.spawn(copied);
    }

    /// `found`: what became of each that is a message; those of the next key follow. Where it ends nothing is known.
    fn copy_records(
        &mut self,
        key: KeyHash,
        records: Vec<(Record, Resolved)>,
        found: &mut impl Iterator<Item = Option<FinishedState>>,
        after: Duration,
    ) {
        let now = self.now();
        let mut copied = Vec::with_capacity(records.len());
        let mut goes_on = true;
        for (record, resolved) in records {
            let offset = record.offset;
            let (known, invalid) = match resolved {
                Resolved::Filtered if goes_on => {
                    self.window.finish_silently(offset, offset + 1);
                    copied.push(None);
                    continue;
                }
                Resolved::Filtered => continue,
                Resolved::Message(known) => (known, false),
                // It becomes a dead letter when its key goes on.
                Resolved::Invalid(known, _) => (known, true),
            };
            let Some(found) = found.next() else { break };
            goes_on = goes_on && !invalid && !self.is_claimed(&known.id);
            if !goes_on {
                continue;
            }
            let finished = found.is_some();
            if self.window.is_finished(offset) || self.is_duplicate(offset, &known, finished) {
                copied.push(None);
                continue;
            }
            let mut item = self.new_item(record, known);
            let id = item.delivery.id;
            if let Some(tried) = self.left_behind.get(&id) {
                if !waits_long(tried.first_try, tried.not_before, now, after) {
                    goes_on = false;
                    continue;
                }
                item.resume(*tried);
            } else if self.has_rounds {
                let round = self.remembered.next_round(self.route.at, id);
                if round > 1 {
                    item.delivery.round = round;
                    // Its place does not tell the round.
                    self.left_behind.insert(id, LeftBehind::of_item(&item));
                }
            }
            let kept = attempt::kept(&item, AnswerDetail::default());
            let number = self
                .route
                .partner
                .port
                .outcome(waiting_entry(self.route.at, &item, now, kept));
            // Until it is folded the look-up does not know it.
            self.in_flight.insert(id);
            self.unfolded.push_back((number, id));
            self.window.finish(offset);
            copied.push(Some(id));
        }
        self.left.copied(key, &copied);
    }
}

fn waiting_entry(at: RoutePartition, item: &Item, now: Time, kept: Box<Kept>) -> Body {
    Body::Waiting(Waiting {
        at,
        id: item.delivery.id,
        offset: item.delivery.record.offset,
        round: item.delivery.round,
        attempts: item.delivery.attempt,
        when: now,
        not_before: item.not_before,
        kept,
    })
}
