//! `PartitionActor`: one partition of one route, in order per key.
//!
//! Parent: `TopicSupervisor`. Children: one [`SubpartitionActor`](super::subpartition::SubpartitionActor) for each key that
//! has work.
//! It reads its partition ahead, asks what each record is ([`Resolve`]) and whether its message is finished
//! ([`Remembered`]), queues the rest by key, and alone knows which offsets are finished (the [`window`]). Upholds
//! I1 (the position passes only what is finished and durable), I4 (with the key queues), I6 (reading pauses at the
//! partner's share of memory, and what cannot start is left outside memory, `left.rs`), I8 (it shares nothing but the
//! log and the lane with other routes).
//!
//! After a restart it begins from what the fold knows: position, finished ranges, and the messages that were
//! waiting or in doubt; the rest is read again.

pub mod crew;
mod intake;
mod left;
mod load;
mod look_ups;
mod orders;
mod rest;
mod start;
#[cfg(test)]
mod tests;
mod waiting;
pub mod window;

use crate::core::resolve::Resolved;
use intake::Passed;
pub use intake::{Remembered, Resolve};
pub use load::{LoadError, Loaded, NodePayloads, Payloads, from_topic};
pub use orders::Follow;
pub use rest::REST_AFTER;
pub use start::{Start, nothing_new};

use super::attempt::After;
use super::context::{Refill, RouteContext};
use super::fault;
use super::item::{Item, Task};
use super::lifeline::Lifeline;
use super::subpartition::{Work, WorkEnd, WorkEnded};
use crate::core::doubt::Doubt;
use crate::core::key_queues::KeyQueues;
use crate::core::key_queues::left::Left;
use crate::core::key_queues::resting::Resting;
use crate::core::ledger::entry::{Action, Body, Command, Position};
use crate::core::types::{KeyHash, MessageId, Offset, Time};
use crate::core::waits::Full;
use crate::log::{Log, PartitionId};
use crate::sink::{DoubtCause, Sink};
use actix::prelude::*;
use crew::Crew;
use hashbrown::{HashMap, HashSet};
use look_ups::LookUps;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use window::Window;

/// A message that waits longer than this gives its payload up and is read again when its turn comes.
const SHED_AFTER: Duration = Duration::from_secs(5);

/// Bounds and rhythm of a partition's actor, from `[actors]` and `[ledger]`.
#[derive(Clone, Debug)]
pub struct PartitionSettings {
    /// Keys at work at once.
    pub busy_keys: usize,
    /// Messages handed out that have no start slot yet.
    pub ahead: usize,
    /// Bytes read in one go.
    pub read_chunk: usize,
    /// Messages held with their payload.
    pub window: usize,
    /// Finished ranges above the position.
    pub ranges: usize,
    /// How often it looks for retries that are due and for room to read on: [`TICK`], but in simulated time.
    pub tick: Duration,
    /// How often a position that rests on no outcome is written.
    pub position_every: Duration,
    /// What waits longer than this is copied into the ledger.
    pub waiting_after: Duration,
    /// What waits longer than this, and is in the ledger, can rest outside memory.
    pub rest_after: Duration,
    /// After so long in which nothing was taken up although there is more, the reason is told: `STANDS_AFTER`, but in tests.
    pub stands_after: Duration,
    /// Entries of the lane that may be durable and not folded before reading pauses.
    pub backlog: u64,
    /// Bytes that they may hold.
    pub backlog_bytes: u64,
}

/// Everything a partition's actor is built from; its parent keeps what it takes to build it again.
pub struct PartitionParts<S> {
    /// What it shares with its keys' actors.
    pub route: Rc<RouteContext<S>>,
    /// The log.
    pub log: Arc<dyn Log>,
    /// The input partition.
    pub input: PartitionId,
    /// What a record is.
    pub resolve: Box<dyn Resolve>,
    /// What is finished.
    pub remembered: Arc<dyn Remembered>,
    /// Where payloads are read again.
    pub payloads: Arc<dyn Payloads>,
    /// What the fold knows.
    pub start: Start,
    /// Bounds and rhythm.
    pub settings: PartitionSettings,
    /// Tells the parent of its end.
    pub lifeline: Lifeline,
}

/// See the module.
pub struct PartitionActor<S: Sink> {
    route: Rc<RouteContext<S>>,
    log: Arc<dyn Log>,
    input: PartitionId,
    resolve: Box<dyn Resolve>,
    remembered: Arc<dyn Remembered>,
    payloads: Arc<dyn Payloads>,
    settings: PartitionSettings,
    lifeline: Lifeline,
    window: Window,
    queues: KeyQueues<Box<Item>>,
    crew: Crew<S>,
    parent_of_crew: Option<Rc<Recipient<WorkEnded>>>,
    /// Messages queued, in hand, or finished and not yet folded: a second record of one shares its fate.
    in_flight: HashSet<MessageId>,
    /// Finished messages whose outcome is not folded yet, by the number of their outcome.
    unfolded: VecDeque<(u64, MessageId)>,
    /// What earlier lives left behind, until its record comes by again.
    left_behind: HashMap<MessageId, start::LeftBehind>,
    /// What stays behind keys that wait or are held, outside memory.
    left: Left,
    /// Bytes counted for `left` and `left_behind`.
    left_counted: usize,
    /// What waits for long in the ledger, to be woken.
    resting: Resting,
    /// The version of the partner's limits that it knows.
    limits_seen: u64,
    /// Bytes counted for it, and for keys that are held and what earlier lives left.
    rest_counted: usize,
    beside_counted: usize,
    /// The number of the last outcome by which something was copied into the ledger, until it is folded.
    copied: Option<u64>,
    /// What was left is being read, or looked up.
    reading_back: bool,
    /// What was left is being copied into the ledger.
    relieving: bool,
    /// Stuck messages that stayed in memory when there was little room.
    stuck_kept: usize,
    /// What lives before this one left behind, and its key, by the offset of the record, until that comes by.
    left_at: BTreeMap<Offset, (MessageId, KeyHash)>,
    /// Records that are another message now, by that one: what is left of them ends when it does.
    replaced: HashMap<MessageId, Offset>,
    /// Doubts of earlier lives, queued before their record comes by, and its offset.
    taken_over: HashMap<MessageId, Offset>,
    start: Option<Start>,
    /// What earlier entries of the lane say was in the fold that it began from.
    folded_before: Offset,
    /// The fold knows rounds of messages that it knows nothing else of.
    has_rounds: bool,
    /// Messages in doubt that hold their key, and that key.
    holding: HashMap<MessageId, KeyHash>,
    next_read: Offset,
    /// Where it reads next, and since when.
    standing_since: (Offset, Time),
    /// The last read or look-up failed.
    unreadable: bool,
    /// The route was met in this life.
    fresh: bool,
    /// The topic begins here, behind what was not finished: an operator must say that it may go on.
    lost: Option<Offset>,
    reading: bool,
    /// Look-ups that are being made.
    look_ups: LookUps,
    /// Records that the last read brought.
    expected: usize,
    /// Payloads of what waits long are being read.
    copying: bool,
    draining: bool,
    in_hand: usize,
    /// Bytes counted for the messages of this actor.
    held: usize,
}

/// Keys at work for each request that may be in flight: those on the wire, those at the gate, and those whose doubt
/// is looked up or whose payload is read. More would only wait, each with a future in memory.
const AT_WORK: usize = 2;
/// Keys with work that wait for a place: while there are so many, more records would only grow cold in memory. It is
/// what 100,000 messages a second take in one [`TICK`]. Where few keys hold the records, reading goes on to the window.
const READY_ENOUGH: usize = 512;
/// At least so many, so that look-ups and payloads that are being read leave room for sending.
const PLACES_MIN: usize = 16;

/// Keys that a partition may have at work at once.
fn places(settings: &PartitionSettings, concurrency: usize) -> usize {
    let useful = concurrency.saturating_mul(AT_WORK).max(PLACES_MIN);
    settings.busy_keys.min(useful)
}

impl<S: Sink> PartitionActor<S> {
    /// An actor that begins from what `parts.start` says.
    pub fn new(parts: PartitionParts<S>) -> Self {
        let start = parts.start;
        let limits_seen = parts.route.partner.gate.limits_version();
        let places = places(&parts.settings, parts.route.partner.config.concurrency);
        Self {
            route: parts.route,
            log: parts.log,
            input: parts.input,
            resolve: parts.resolve,
            remembered: parts.remembered,
            payloads: parts.payloads,
            lifeline: parts.lifeline,
            window: Window::new(start.position, start.finished.clone(), start.high_water),
            queues: KeyQueues::new(places),
            settings: parts.settings,
            crew: Crew::default(),
            parent_of_crew: None,
            in_flight: HashSet::new(),
            unfolded: VecDeque::new(),
            left_behind: HashMap::new(),
            left: Left::default(),
            left_counted: 0,
            resting: Resting::default(),
            limits_seen,
            rest_counted: 0,
            beside_counted: 0,
            copied: None,
            reading_back: false,
            relieving: false,
            stuck_kept: 0,
            left_at: BTreeMap::new(),
            replaced: HashMap::new(),
            taken_over: HashMap::new(),
            next_read: start.position,
            standing_since: (start.position, Time::ZERO),
            unreadable: false,
            folded_before: start.folded,
            has_rounds: start.has_rounds,
            fresh: start.fresh,
            lost: None,
            holding: HashMap::new(),
            start: Some(start),
            reading: false,
            look_ups: LookUps::default(),
            expected: 0,
            copying: false,
            draining: false,
            in_hand: 0,
            held: 0,
        }
    }

    fn now(&self) -> Time {
        self.route.partner.clock.now()
    }

    /// Queues a message, counting what it holds.
    fn queue(&mut self, mut item: Box<Item>, until: Option<Time>) {
        self.count(&mut item);
        self.in_flight.insert(item.delivery.id);
        match until {
            Some(until) => {
                let now = self.now();
                match item.place {
                    Some(place) => self.queues.wait_until(Some(place), item, until, now),
                    None => self.queues.restore_unordered(item, until, now),
                }
            }
            None => self.queues.push(item.place, item),
        }
    }

    /// Counts what the message holds now instead of what it held before (I6).
    fn count(&mut self, item: &mut Item) {
        let bytes = item.memory();
        self.route.partner.memory.take(bytes);
        self.held += bytes;
        self.uncount(std::mem::replace(&mut item.counted, bytes));
    }

    fn uncount(&mut self, bytes: usize) {
        self.route.partner.memory.give_back(bytes);
        self.held -= bytes;
    }

    /// Hands out work as long as there are free places.
    fn start_work(&mut self, ctx: &mut Context<Self>) {
        if self.stands() {
            return;
        }
        // Doubts do not wait for the room that messages have at the gate: there they take turns with these.
        while let Some((_, item)) = self.queues.next_urgent() {
            self.in_hand += 1;
            self.hand_out(item, ctx);
        }
        while self.route.approach.has_room()
            && let Some((_, item)) = self.queues.next_ready()
        {
            self.in_hand += 1;
            self.hand_out(item, ctx);
        }
    }

    /// Whether nothing new may be started: the node drains, or the flood guard has stopped the route.
    fn stands(&self) -> bool {
        self.draining || self.route.flood.borrow().stopped().is_some()
    }

    /// Hands the message out; where it is passed over, the next one of its key in its place.
    fn hand_out(&mut self, mut item: Box<Item>, ctx: &mut Context<Self>) {
        let item = loop {
            let passed = if item.over {
                self.leave_queue(&item)
            } else {
                if let Some(until) = self.kept_away(&item) {
                    self.again(item, until);
                    return;
                }
                if item.shed {
                    self.load(item, ctx);
                    return;
                }
                match self.passed_over(item) {
                    Passed::No(item) => break item,
                    Passed::Waits => return,
                    Passed::Over(place) => place,
                }
            };
            match self.next_in_place(passed) {
                Some(next) => item = next,
                None => return,
            }
        };
        let draws = self.resolve.draws(&item.delivery.record);
        if matches!(item.task, Task::Send) {
            self.route.approach.set_out();
        }
        let parent = self.parent(ctx);
        self.crew.assign(Work { item, draws }, &self.route, &parent);
    }

    /// Until when the message's host is left alone, if it is and the message is not too old to wait for it. Before its payload is
    /// read again: a dead host may have a hundred thousand of them.
    fn kept_away(&self, item: &Item) -> Option<Time> {
        let host = item.host.filter(|_| matches!(item.task, Task::Send))?;
        let (partner, now) = (&self.route.partner, self.now());
        if now.since(item.first_try) >= partner.config.retry.give_up_after {
            return None;
        }
        let hosts = &mut *partner.hosts.borrow_mut();
        hosts.keeps_away(host, now, fastrand::u64(..))
    }

    fn parent(&mut self, ctx: &mut Context<Self>) -> Rc<Recipient<WorkEnded>> {
        self.parent_of_crew
            .get_or_insert_with(|| Rc::new(ctx.address().recipient()))
            .clone()
    }

    /// The message is finished: its offset too, if it counts for the position; the key goes on.
    fn finish(&mut self, item: Box<Item>, hold: bool, ctx: &mut Context<Self>) {
        if hold && let Some(place) = item.place {
            self.hold(item.delivery.id, place);
        }
        let place = self.end(&item);
        if item.key_rests_until == Time::ZERO {
            return self.free_place(place, ctx);
        }
        let now = self.now();
        if item.key_rests_until > now {
            // The partner's word about this key outlives the message that brought it.
            let more = place.is_some_and(|key| self.left.has(key));
            self.queues.rest(place, item.key_rests_until, now, more);
        } else {
            self.free_place(place, ctx);
        }
    }

    /// The message is in doubt, and its key waits until that is settled.
    fn hold(&mut self, id: MessageId, key: KeyHash) {
        if self.holding.insert(id, key).is_none() {
            self.queues.hold(key);
        }
    }

    /// Notes that the message is finished; its place is still taken.
    fn end(&mut self, item: &Item) -> Option<KeyHash> {
        self.end_replaced(&item.delivery.id);
        self.route.orders.unmark(&item.delivery.id);
        self.unfolded.push_back((item.outcome, item.delivery.id));
        if !item.off_position {
            self.window.finish(item.delivery.record.offset);
        }
        self.leave_queue(item)
    }

    /// A message that was called delivered ends, and its record with it. The operator's entry is its outcome, and is
    /// folded; that the record is finished no entry says yet. Its ID is free: what comes under it is looked up.
    fn end_marked(&mut self, id: MessageId, offset: Offset) {
        self.end_replaced(&id);
        self.in_flight.remove(&id);
        self.window.finish_silently(offset, offset + 1);
        // What is being looked up may have been answered before it was called delivered.
        if self.look_ups.is_empty() {
            self.route.orders.unmark(&id);
        }
    }

    /// The message has been in hand, and is no more. Returns its place, which is still taken.
    fn leave_queue(&mut self, item: &Item) -> Option<KeyHash> {
        self.in_hand -= 1;
        self.uncount(item.counted);
        item.place
    }

    fn free_place(&mut self, place: Option<KeyHash>, ctx: &mut Context<Self>) {
        if let Some(next) = self.next_in_place(place) {
            self.hand_out(next, ctx);
        }
    }

    /// The key's next message, for the place of the one that has left it.
    fn next_in_place(&mut self, place: Option<KeyHash>) -> Option<Box<Item>> {
        let next = self.queues.done(place)?;
        if self.stands() {
            // It goes back to the front, and on when the route does.
            let now = self.now();
            self.queues.wait_until(place, next, now, now);
            return None;
        }
        self.in_hand += 1;
        Some(next)
    }

    /// One more dead letter: if it is one too many in a row, the route stops, also over restarts.
    fn count_dead(&self) {
        let route = &self.route;
        let mut flood = route.flood.borrow_mut();
        let Some(stop) = flood.dead("see `dead list`") else {
            return;
        };
        tracing::error!(
            event = "route_stopped", topic = %route.topic, partner = %route.partner.name, dead = stop.dead,
            "too many dead letters in a row: the route is stopped until `sluicegate partners resume --topic`"
        );
        let reason = stop.to_string();
        self.write_stop("flood guard", reason);
    }

    /// Stops the route for this reason, unless it stands for one like it: all its partitions, also over restarts.
    fn stop_route(&self, who: &str, reason: String) {
        let code = reason.split_inclusive(':').next().unwrap_or_default();
        let mut flood = self.route.flood.borrow_mut();
        if flood.stopped().is_some_and(|stop| stop.reason.starts_with(code)) {
            return;
        }
        flood.stop(&reason);
        drop(flood);
        self.write_stop(who, reason);
    }

    fn write_stop(&self, who: &str, reason: String) {
        let route = &self.route;
        route.partner.port.outcome(Body::from(Command {
            offset: 0,
            when: route.partner.clock.now(),
            who: who.into(),
            why: String::new(),
            action: Action::Pause {
                partner: String::new(),
                route: Some(route.at.route),
                reason,
            },
        }));
    }

    /// The message goes on later; its key waits, its place is free.
    fn again(&mut self, mut item: Box<Item>, at: Time) {
        self.in_hand -= 1;
        let now = self.now();
        item.not_before = at;
        if at.since(now) > SHED_AFTER && !item.shed {
            let freed = item.shed();
            self.uncount(freed);
        }
        self.count(&mut item);
        self.queues.wait_until(item.place, item, at, now);
    }

    /// Forgets which messages are in flight once the look-up knows them. Not while one is being made: it may have been
    /// answered before they were folded, or called delivered.
    fn forget_folded(&mut self) {
        if !self.look_ups.is_empty() {
            return;
        }
        let folded = self.route.partner.port.folded();
        while let Some((number, _)) = self.unfolded.front() {
            if *number > folded {
                break;
            }
            if let Some((_, id)) = self.unfolded.pop_front() {
                self.in_flight.remove(&id);
            }
        }
    }

    /// The end of this message is folded, or an order about it would have been refused; but it may stand behind one
    /// that is not. Its ID is free.
    fn release(&mut self, id: MessageId) {
        self.forget_folded();
        if !self.in_flight.contains(&id) {
            return;
        }
        let (folded, before) = (self.route.partner.port.folded(), self.unfolded.len());
        self.unfolded
            .retain(|(number, known)| *known != id || *number > folded);
        if self.unfolded.len() < before {
            self.in_flight.remove(&id);
        }
    }

    /// Whether more records may be taken up (I6).
    fn may_read(&self) -> bool {
        !self.stands() && self.full().is_none()
    }

    /// What keeps it from taking up more records (I6).
    fn full(&self) -> Option<Full> {
        if !self.has_room() {
            let kept = self.route.partner.memory.is_full_of_kept();
            return Some(if kept { Full::Kept } else { Full::Memory });
        }
        if self.window.ranges() >= self.settings.ranges && !self.has_gaps() {
            return Some(Full::Ranges);
        }
        let ready = READY_ENOUGH.max(places(&self.settings, self.route.partner.config.concurrency));
        if self.queues.len().saturating_sub(self.queues.stuck()) >= self.settings.window
            || self.queues.ready() >= ready
        {
            return Some(Full::Work);
        }
        let lane = self.route.partner.port.lane();
        let behind =
            lane.backlog() >= self.settings.backlog || lane.backlog_bytes() >= self.settings.backlog_bytes;
        behind.then_some(Full::Ledger)
    }

    /// Notes why it has taken up nothing for long, if there is more to take up.
    fn tell_full(&mut self) {
        let full = match self.unreadable {
            true => Some(Full::Unreadable),
            false => self.full(),
        };
        let now = self.now();
        let standing = (self.next_read, self.standing_since.1);
        let Some(full) = full.filter(|_| standing.0 == self.standing_since.0) else {
            self.standing_since = (self.next_read, now);
            self.route.figures.full.store(0, Ordering::Relaxed);
            return;
        };
        let long = now.since(standing.1) >= self.settings.stands_after;
        let has_more = || self.log.bounds(self.input).is_ok_and(|b| self.next_read < b.next);
        let told = if long && has_more() { full as u8 } else { 0 };
        self.route.figures.full.store(told, Ordering::Relaxed);
    }

    /// Whether what would be read next has been taken up by an earlier life: it fills a gap between finished ranges,
    /// and their bound must not keep it out, for only that makes them fewer again.
    fn has_gaps(&self) -> bool {
        self.window.next_unfinished(self.next_read) < self.window.high_water()
    }

    /// Keys that may be at work at once; the partner's concurrency may have been changed.
    fn places(&self) -> usize {
        let concurrency = self
            .route
            .partner
            .gate
            .look(|turnstile| turnstile.breaker().concurrency());
        places(&self.settings, concurrency as usize)
    }

    fn write_position(&mut self) {
        if let Some((position, finished, high_water)) = self.window.to_write() {
            let at = self.route.at;
            let body = Body::Position(Position {
                at,
                leader_epoch: 0,
                position,
                finished,
                high_water,
            });
            self.route.partner.port.outcome(body);
        }
    }

    fn tell_figures(&self) {
        let figures = &self.route.figures;
        figures.position.store(self.window.position(), Ordering::Relaxed);
        figures.read.store(self.next_read, Ordering::Relaxed);
        figures.queued.store(
            (self.queues.len() + self.left.len() + self.resting.len() + self.in_hand) as u64,
            Ordering::Relaxed,
        );
        figures.waiting.store(
            (self.queues.waiting() + self.resting.len()) as u64,
            Ordering::Relaxed,
        );
        figures
            .busy_keys
            .store(self.queues.busy() as u64, Ordering::Relaxed);
        figures.in_hand.store(self.in_hand as u64, Ordering::Relaxed);
        let settling = self.route.doubts.borrow().len() as u64;
        figures.settling.store(settling, Ordering::Relaxed);
        figures
            .held_keys
            .store(self.holding.len() as u64, Ordering::Relaxed);
    }

    /// Whether nothing is queued, waiting or in hand, and everything there was to read has been read.
    fn is_idle(&self) -> bool {
        let at_end = self
            .log
            .bounds(self.input)
            .is_ok_and(|b| self.next_read >= b.next);
        at_end
            && self.in_hand == 0
            && self.queues.is_empty()
            && self.left.is_empty()
            && self.resting.is_empty()
            && self.left_behind.is_empty()
    }
}

impl<S: Sink> Actor for PartitionActor<S> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.route.approach.serves(ctx.address().recipient());
        self.route.orders.begin_from(self.folded_before);
        if let Some(start) = self.start.take() {
            self.take_over(start);
        }
        if let Ok(bounds) = self.log.bounds(self.input)
            && self.next_read < bounds.first
        {
            self.meet_first(bounds.first);
        }
        if self.fresh {
            // From here on the topic keeps what it has not passed, also where its partner is paused before the first
            // attempt and the route is taken out of the configuration.
            self.window.introduce();
            self.write_position();
        }
        self.start_work(ctx);
        self.read_on(ctx);
        ctx.run_interval(self.settings.tick, |act, ctx| act.tick(ctx));
        ctx.run_interval(self.settings.position_every, |act, ctx| {
            act.queues.set_busy_keys(act.places());
            act.stuck_kept = 0;
            act.count_rested();
            act.copy_waiting(ctx);
            act.copy_left(ctx);
            act.write_position();
        });
    }
}

/// How often a partition looks for retries that are due and for room to read on.
pub const TICK: Duration = Duration::from_millis(5);

impl<S: Sink> PartitionActor<S> {
    fn tick(&mut self, ctx: &mut Context<Self>) {
        self.forget_folded();
        self.heed_limits();
        let now = self.now();
        if self.queues.next_due() <= now {
            self.queues.due(now);
            self.start_work(ctx);
        }
        self.leave_stuck(ctx);
        self.wake(ctx);
        self.read_back(ctx);
        self.read_on(ctx);
        self.tell_figures();
        self.tell_full();
    }
}

impl<S: Sink> Handler<WorkEnded> for PartitionActor<S> {
    type Result = ();

    fn handle(&mut self, ended: WorkEnded, ctx: &mut Context<Self>) {
        fault::point("partition", &self.route.topic);
        let WorkEnded { by, mut item, end } = ended;
        match end {
            WorkEnd::After(_) => self.crew.freed(by),
            WorkEnd::Panicked { .. } => self.crew.gone(by),
        }
        match end {
            WorkEnd::After(After::Delivered) => {
                self.route.flood.borrow_mut().delivered();
                self.finish(item, false, ctx);
            }
            WorkEnd::After(After::Dead) => {
                self.count_dead();
                self.finish(item, false, ctx);
            }
            WorkEnd::After(After::Parked { hold }) => self.finish(item, hold, ctx),
            WorkEnd::After(After::Again(at)) => self.again(item, at),
            WorkEnd::Panicked { written } => {
                // Its key's actor is gone; a new one is made for the next turn.
                let now = self.now();
                self.route.partner.metrics.keys_restarted.inc();
                tracing::error!(
                    event = "actor_failed", kind = "subpartition", topic = %self.route.topic,
                    partner = %self.route.partner.name, written, "a key's actor panicked; its message goes on"
                );
                if written {
                    item.task = Task::Doubt(Doubt {
                        cause: DoubtCause::Crash,
                        attempts: item.delivery.attempt + 1,
                        first_try: item.first_try,
                        slot: now,
                        timeout: self.route.partner.config.timeout.request,
                        taken_over: Some((now, Duration::ZERO)),
                    });
                    item.delivery.attempt += 1;
                }
                self.again(item, now.plus(AFTER_PANIC));
            }
        }
        self.start_work(ctx);
    }
}

impl<S: Sink> Handler<Refill> for PartitionActor<S> {
    type Result = ();

    fn handle(&mut self, _: Refill, ctx: &mut Context<Self>) {
        self.start_work(ctx);
    }
}

/// A message whose actor panicked waits so long before its next turn: a record that makes every actor panic must not
/// keep a core busy (I8).
const AFTER_PANIC: Duration = Duration::from_millis(100);

/// Stop taking up records and starting attempts; answers whether nothing is in hand any more.
#[derive(Message)]
#[rtype(result = "Drained")]
pub struct Drain;

/// Answer to [`Drain`] and [`AreYouIdle`].
#[derive(MessageResponse, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Messages in the hands of keys' actors; while draining, those whose request is on the wire or about to be.
    pub in_hand: usize,
    /// Nothing is queued or waiting, and everything has been read.
    pub idle: bool,
}

impl<S: Sink> Handler<Drain> for PartitionActor<S> {
    type Result = Drained;
    fn handle(&mut self, _: Drain, _: &mut Context<Self>) -> Drained {
        self.draining = true;
        // What waits for a slot is not waited for.
        self.route.partner.gate.close();
        self.write_position();
        // Who waits for a slot gets none any more; who has one comes to its end.
        let gate = &self.route.partner.gate;
        gate.with(|turnstile, now| turnstile.pause(now));
        Drained {
            in_hand: self.route.on_wire.borrow().len(),
            idle: self.is_idle(),
        }
    }
}

/// Asks whether there is nothing left to do (`run --until-drained`).
#[derive(Message)]
#[rtype(result = "Drained")]
pub struct AreYouIdle;

impl<S: Sink> Handler<AreYouIdle> for PartitionActor<S> {
    type Result = Drained;
    fn handle(&mut self, _: AreYouIdle, _: &mut Context<Self>) -> Drained {
        Drained {
            in_hand: self.in_hand,
            idle: self.is_idle(),
        }
    }
}

/// Ends the actor in order.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Stop;

impl<S: Sink> Handler<Stop> for PartitionActor<S> {
    type Result = ();
    fn handle(&mut self, _: Stop, ctx: &mut Context<Self>) {
        self.write_position();
        self.lifeline.orderly();
        ctx.stop();
    }
}

/// Has the actor hear nothing, not even that it is to stop, until this is over.
#[cfg(test)]
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct HoldUp(pub(crate) tokio::sync::oneshot::Receiver<()>);

#[cfg(test)]
impl<S: Sink> Handler<HoldUp> for PartitionActor<S> {
    type Result = ();
    fn handle(&mut self, HoldUp(over): HoldUp, ctx: &mut Context<Self>) {
        ctx.wait(over.into_actor(self).map(|_, _, _| ()));
    }
}

impl<S: Sink> Drop for PartitionActor<S> {
    fn drop(&mut self) {
        // What it held is given up with it; what its keys' actors have in hand is not counted any more.
        self.route.partner.memory.give_back(self.held);
        self.route.partner.memory.rest(self.rest_counted, 0);
        self.route.partner.memory.keep_beside(self.beside_counted, 0);
    }
}
