//! One attempt of one message, from the start slot to the outcome in the ledger.
//!
//! ```text
//! permit (place + slot) ─► request ─► connection ─► intent durable ─► slot's time ─► gate ─► first byte ─► answer
//!     ▲                                                                   │ missed                           │
//!     └───────────────────────── another slot ◄───────────────────────────┘          outcome appended ◄──────┘
//! ```
//!
//! Upholds I2 (no byte before the intent is durable and its lease holds), I3 (only an attempt whose request may have
//! been written is in doubt), I5 (a start is within its slot). The outcome is appended here, not by the partition's
//! actor: what is known must be recorded even if that actor has just failed.

use super::context::{Approaching, PartnerContext, RouteContext};
use super::gate::Permit;
use super::item::{Item, Task};
use super::lines;
use crate::config::OnDoubt;
use crate::core::backoff::{self, Next, Tried};
use crate::core::breaker::{AttemptResult, Refusal};
use crate::core::doubt::{self, Action, Doubt, DoubtRules, Progress};
use crate::core::hosts::Pass;
use crate::core::ledger::codec::{cut, cut_bytes};
use crate::core::ledger::entry::{Body, BudgetDraw, Intent, Kept, Outcome, OutcomeKind, Used};
use crate::core::turnstile::{Draws, Slot};
use crate::core::types::{MessageId, Time};
use crate::ledger::lane::LaneError;
use crate::sink::{
    Answer, AnswerDetail, Asked, Concerns, DoubtCause, Moved, Pace, Sent, Sink, Verdict, Verified,
    idempotency_key,
};
use smallvec::SmallVec;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// Before looking for room on a full disk again.
const NO_ROOM_WAIT: Duration = Duration::from_secs(1);
/// A place that cannot be used for want of descriptors, ports or memory rests so long, and so does its message: the
/// places that have a connection go on meanwhile.
const SHORTAGE_WAIT: Duration = Duration::from_millis(500);
/// A pause that the partner asks for is worth a line from this length on.
const TOLD_PAUSE: Duration = Duration::from_secs(10);

/// Marks the queue, at the gate, of a route partition's messages in doubt: they take turns with its others, so that
/// settling a doubt does not wait behind a backlog.
const DOUBTS: u32 = 1 << 31;

/// What comes after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// The partner took it.
    Delivered,
    /// It became a dead letter.
    Dead,
    /// It is held for an operator; `hold`: and so is its key.
    Parked {
        /// The key waits until the doubt is settled.
        hold: bool,
    },
    /// It goes on at this time: a retry or a look-up.
    Again(Time),
}

/// Of a message whose partition is built again: that one takes it up anew, and nobody listens here any more.
const OVERTAKEN: After = After::Again(Time::NEVER);

/// Takes the item's message out of the set of those on the wire, whatever happens.
struct OnWire<'a, S> {
    route: &'a RouteContext<S>,
    id: MessageId,
}

impl<'a, S> OnWire<'a, S> {
    fn begin(route: &'a RouteContext<S>, id: MessageId) -> Self {
        route.on_wire.borrow_mut().insert(id);
        Self { route, id }
    }
}

impl<S> Drop for OnWire<'_, S> {
    fn drop(&mut self) {
        self.route.on_wire.borrow_mut().remove(&self.id);
    }
}

/// Leave to go to the message's host, where the record says which; given back when dropped.
struct HostPass<'a, S> {
    partner: &'a PartnerContext<S>,
    pass: Option<Pass>,
}

impl<'a, S: Sink> HostPass<'a, S> {
    /// Asks, unless it has leave. Err: the host is left alone; when to come back.
    fn ask(&mut self, item: &mut Item) -> Result<(), Time> {
        let partner = self.partner;
        if item.host.is_none() {
            item.host = partner.sink.host(&item.delivery);
        }
        if let (Some(host), None) = (item.host, &self.pass) {
            let now = partner.clock.now();
            let hosts = &mut *partner.hosts.borrow_mut();
            self.pass = Some(hosts.ask(host, item.was_refused(), now, fastrand::u64(..))?);
        }
        Ok(())
    }
}

impl<S> HostPass<'_, S> {
    fn tell(&mut self, result: AttemptResult) {
        if let Some(pass) = self.pass.take() {
            let now = self.partner.clock.now();
            let hosts = &mut *self.partner.hosts.borrow_mut();
            hosts.finish(pass, result, now, fastrand::u64(..));
        }
    }

    /// The attempt has ended: its place is free, and the breakers know. What a host among many does says nothing of
    /// the partner, but for doubts: each may park a message, whichever host it is (I3).
    fn finish(&mut self, permit: Permit, result: AttemptResult) {
        let of_partner = match (self.pass.is_some(), result) {
            (true, AttemptResult::Failed | AttemptResult::CredentialsRefused { .. }) => {
                AttemptResult::NotMade
            }
            (_, result) => result,
        };
        self.tell(result);
        permit.finish(of_partner);
    }
}

impl<S> Drop for HostPass<'_, S> {
    fn drop(&mut self) {
        self.tell(AttemptResult::NotMade);
    }
}

/// Does what is to be done with the item now. `approaching` is given up once it has a start slot; `written` is set
/// when its request may have reached the partner.
pub async fn attempt<S: Sink>(
    route: &Rc<RouteContext<S>>,
    item: &mut Item,
    draws: &Draws,
    approaching: &mut Option<Approaching<S>>,
    written: &Cell<bool>,
) -> After {
    match item.task {
        Task::Send => send(route, item, draws, approaching, written).await,
        Task::Doubt(doubt) => settle(route, item, doubt, None, AnswerDetail::default()),
        // Boxed: look-ups are rare, and their future is larger than that of a request.
        Task::LookUp(doubt, progress) => Box::pin(look_up(route, item, draws, doubt, progress)).await,
    }
}

/// Asks the partner's look-up. It is a request like another for what the partner allows (I5), so it takes a place and
/// draws from the budgets, and nothing is asked of a partner that is paused or left alone. It changes nothing there,
/// so it needs no intent; but the next life must know of its start.
async fn look_up<S: Sink>(
    route: &Rc<RouteContext<S>>,
    item: &mut Item,
    draws: &Draws,
    doubt: Doubt,
    progress: Progress,
) -> After {
    let partner = &route.partner;
    let clock = partner.clock;
    'slots: loop {
        let Some(permit) = partner.gate.enter(route.queue | DOUBTS, draws.clone()).await else {
            return After::Again(clock.now());
        };
        if !route.is_current(item) {
            return OVERTAKEN;
        }
        let granted = clock.now();
        let request = match partner.sink.look_up(&item.delivery) {
            Ok(request) => request,
            Err(verified) => {
                drop(permit);
                return after_look_up(route, item, doubt, verified, progress);
            }
        };
        let connection = match partner.sink.connect(&request).await {
            Ok(connection) => connection,
            Err(answer) => {
                permit.finish(AttemptResult::Failed);
                let why = answer.detail.map(|d| d.reason).unwrap_or_default();
                return after_look_up(route, item, doubt, Verified::AskAgain(why), progress);
            }
        };
        let Slot {
            at: slot_at,
            valid_until,
            seq,
            ..
        } = *permit.slot();
        let asked = clock.now();
        if asked > valid_until {
            // The connect took longer than was left for it: the next one is begun earlier.
            partner.gate.prepared_within(asked.since(granted));
            permit.missed();
            continue;
        }
        let told =
            |draw: &BudgetDraw| (partner.port).intent(Body::Used(Used::start(*draw, slot_at.max(asked))));
        let told: SmallVec<[u64; 2]> = permit.slot().draws.iter().map(told).collect();
        for number in told {
            match partner.port.durable(number).await {
                Ok(()) => {}
                Err(LaneError::NoRoom(_)) => {
                    drop(permit);
                    tokio::time::sleep(NO_ROOM_WAIT).await;
                    continue 'slots;
                }
            }
        }
        partner.gate.prepared_within(clock.now().since(granted));
        let wait = slot_at.since(clock.now());
        if wait > Duration::ZERO {
            tokio::time::sleep(wait).await;
        }
        let mut held = false;
        let mut may_start = || {
            let now = clock.now();
            held = partner.gate.is_held(now);
            now <= valid_until && !held
        };
        match partner.sink.ask(connection, request, &mut may_start).await {
            Asked::Stopped if held => drop(permit),
            Asked::Stopped => permit.missed(),
            Asked::Answered {
                verified,
                reached,
                pace,
            } => {
                obey_look_up(route, pace.as_deref(), seq);
                permit.finish(match reached {
                    true => AttemptResult::Elsewhere,
                    false => AttemptResult::Failed,
                });
                return after_look_up(route, item, doubt, verified, progress);
            }
        }
    }
}

fn after_look_up<S: Sink>(
    route: &Rc<RouteContext<S>>,
    item: &mut Item,
    doubt: Doubt,
    verified: Verified,
    progress: Progress,
) -> After {
    if !route.is_current(item) {
        return OVERTAKEN;
    }
    let looked_up = Some((verified, progress));
    settle(route, item, doubt, looked_up, AnswerDetail::default())
}

async fn send<S: Sink>(
    route: &Rc<RouteContext<S>>,
    item: &mut Item,
    draws: &Draws,
    approaching: &mut Option<Approaching<S>>,
    written: &Cell<bool>,
) -> After {
    let partner = &route.partner;
    let clock = partner.clock;
    // Where the partner sent the request on to. Not remembered over a failure: the next attempt asks anew.
    let mut moved: Option<Box<Moved>> = None;
    // Kept while the request is sent on: what becomes of it there is what becomes of the message at its host.
    let mut pass = HostPass { partner, pass: None };
    let mut gave_way = false;
    loop {
        if !route.is_current(item) {
            return OVERTAKEN;
        }
        if let Err(at) = pass.ask(item) {
            return away(route, item, at);
        }
        if !item.was_refused() {
            partner.gate.stranger();
        }
        let wanted = clock.now();
        if route.is_kept_back(item) {
            // The partition's actor knows what to do with it.
            return After::Again(wanted);
        }
        // What was sent on takes turns with the others, too: else each of them would be sent on before it goes on.
        let queue = match item.is_unsettled() || moved.is_some() {
            true => route.queue | DOUBTS,
            false => route.queue,
        };
        let Some(permit) = partner.gate.enter(queue, draws.clone()).await else {
            // The node stops: the partition hands nothing out any more, and the next life takes it up. Not a later
            // time: what waits for long is copied into the ledger with it.
            return After::Again(clock.now());
        };
        if permit.slot().probe.is_some()
            && item.was_refused()
            && !gave_way
            && partner.gate.waits_for_stranger()
        {
            // Whether the credentials are good for others only another message can tell: one of those that wait. Once,
            // for all of them may have been refused.
            gave_way = true;
            drop(permit);
            continue;
        }
        drop(approaching.take());
        if !route.is_current(item) {
            return OVERTAKEN;
        }
        let granted = clock.now();
        if let Some(host) = item.host
            && moved.is_none()
            && let Some(at) = (partner.hosts.borrow_mut()).keeps_away(host, granted, fastrand::u64(..))
        {
            // While it waited for its slot others found the host dead.
            drop(permit);
            return away(route, item, at);
        }
        let unsure = moved.as_ref().is_some_and(|m| m.unsure.is_some());
        if route.flood.borrow().stopped().is_some() && !unsure {
            // The flood guard stopped the route meanwhile: it goes on when the route does.
            drop(permit);
            return After::Again(granted);
        }
        if route.is_kept_back(item) {
            drop(permit);
            return After::Again(granted);
        }
        partner.metrics.limiter_wait.record(granted.since(wanted));
        if granted > item.resend_until {
            drop(permit);
            let reason = doubt::ParkReason::OutsideWindow.to_string();
            return park(route, item, AnswerDetail::of(reason));
        }
        // The request tells which attempt it is.
        item.delivery.attempt += 1;
        let prepared = match &moved {
            None => partner.sink.prepare(&item.delivery),
            Some(moved) => partner.sink.prepare_moved(&item.delivery, moved),
        };
        item.delivery.attempt -= 1;
        let request = match prepared {
            Ok(request) => request,
            Err(error) => {
                let detail = AnswerDetail::of(format!("invalid: {error}"));
                drop(permit);
                return end(route, item, detail, unsure);
            }
        };
        let connection = partner.sink.connect(&request).await;
        if !route.is_current(item) {
            return OVERTAKEN;
        }
        let connection = match connection {
            Ok(connection) => connection,
            Err(answer) if answer.concerns == Some(Concerns::Node) => {
                fall_short(route, &answer);
                // With the place in hand: so many fewer start while what they need is missing.
                tokio::time::sleep(SHORTAGE_WAIT).await;
                permit.finish(AttemptResult::NotMade);
                if unsure {
                    // From where it was sent on it must not be sent again.
                    continue;
                }
                return After::Again(clock.now().plus(SHORTAGE_WAIT));
            }
            Err(answer) => {
                pass.finish(permit, unmade(&answer));
                return conclude(route, item, answer, clock.now(), hops(&moved));
            }
        };
        // From here to the intent nothing else runs on this thread: an order comes before both or after both.
        if route.is_kept_back(item) {
            drop(permit);
            return After::Again(clock.now());
        }
        // The lease counts from before the commit is asked for.
        let asked = clock.now();
        let Slot {
            at: slot_at,
            valid_until,
            seq,
            ..
        } = *permit.slot();
        if asked > valid_until {
            // The connect took longer than was left for it: the next one is begun earlier.
            partner.gate.prepared_within(asked.since(granted));
            permit.missed();
            continue;
        }
        let first_try = if item.first_try == Time::ZERO {
            asked
        } else {
            item.first_try
        };
        let lease = partner.ledger.lease;
        let intent = partner.port.intent(Body::Intent(Intent {
            at: route.at,
            id: item.delivery.id,
            key: item.key,
            offset: item.delivery.record.offset,
            round: item.delivery.round,
            attempt: item.delivery.attempt + 1,
            first_try,
            slot: slot_at.max(asked),
            budgets: permit.slot().draws.clone(),
            life: partner.port.lane().life(),
            lease_ms: lease.as_millis() as u32,
            timeout_ms: partner.config.request_timeout.as_millis() as u32,
        }));
        let on_wire = OnWire::begin(route, item.delivery.id);
        match partner.port.durable(intent).await {
            Ok(()) => {}
            // From where it was sent on it must not be sent again.
            Err(LaneError::NoRoom(_)) if unsure => {
                tokio::time::sleep(NO_ROOM_WAIT).await;
                continue;
            }
            Err(LaneError::NoRoom(_)) => return After::Again(clock.now().plus(NO_ROOM_WAIT)),
        }
        // What stands before a start is the connect, if one was needed, and the commit.
        partner.gate.prepared_within(clock.now().since(granted));
        note_first_try(route, item, first_try);
        let wait = slot_at.since(clock.now());
        if wait > Duration::ZERO {
            tokio::time::sleep(wait).await;
        }
        let until = valid_until.min(asked.plus(lease));
        let (mut started, mut held) = (Time::ZERO, false);
        let of = &*item;
        let mut may_start = || {
            started = clock.now();
            held = partner.gate.is_held(started);
            let may = started <= until && !held && !route.is_kept_back(of);
            written.set(may);
            may
        };
        let sent = partner.sink.send(connection, request, &mut may_start).await;
        return match sent {
            Sent::Stopped => {
                drop(on_wire);
                written.set(false);
                partner.metrics.attempt_stopped.inc();
                if held {
                    // The partner was paused meanwhile: that is no slot missed for want of time.
                    drop(permit);
                } else {
                    permit.missed();
                }
                // The next slot may be a day away: meanwhile a process that ends must not leave a doubt behind.
                if !unsure {
                    let now = clock.now();
                    close_uncounted(route, item, now, now, "not sent: its start slot was missed");
                }
                continue;
            }
            Sent::NeverWritten(answer) if answer.concerns == Some(Concerns::Node) => {
                drop(on_wire);
                written.set(false);
                fall_short(route, &answer);
                let again = clock.now().plus(SHORTAGE_WAIT);
                permit.finish(AttemptResult::NotMade);
                if unsure {
                    tokio::time::sleep(SHORTAGE_WAIT).await;
                    continue;
                }
                close_uncounted(route, item, clock.now(), again, "not sent: this node falls short");
                After::Again(again)
            }
            Sent::NeverWritten(answer) => {
                drop(on_wire);
                written.set(false);
                pass.finish(permit, unmade(&answer));
                conclude(route, item, answer, started, hops(&moved))
            }
            Sent::Answered(answer) => {
                drop(on_wire);
                note_delay(route, item, started);
                obey(route, item, &answer, seq);
                pass.finish(permit, result_of(&answer, item, started));
                conclude(route, item, answer, started, hops(&moved))
            }
            Sent::Settling(answer, settling) => {
                note_delay(route, item, started);
                obey(route, item, &answer, seq);
                pass.finish(permit, result_of(&answer, item, started));
                // Until it is known what the answer means the message may be the partner's.
                let answer = settling.answer().await;
                drop(on_wire);
                conclude(route, item, answer, started, hops(&moved))
            }
            Sent::Moved(answer, to) => {
                drop(on_wire);
                obey(route, item, &answer, seq);
                // Whether messages are taken there, and with these credentials, only the next hop tells.
                permit.finish(AttemptResult::Elsewhere);
                sent_on(route, item, answer, started);
                moved = Some(to);
                continue;
            }
        };
    }
}

fn note_delay<S>(route: &RouteContext<S>, item: &Item, started: Time) {
    if item.delivery.attempt == 0 && item.delivery.round == 1 {
        let delay = started.since(item.delivery.record.timestamp);
        route.partner.metrics.start_delay.record(delay);
    }
}

/// Attempts that were sent on and closed, on the way to this one.
fn hops(moved: &Option<Box<Moved>>) -> u32 {
    let sure = moved.as_ref().filter(|m| m.unsure.is_none());
    sure.map_or(0, |m| m.followed)
}

/// Notes an attempt that the partner sent on to another address. Its intent is closed where it was certainly not
/// taken; else it stays open, and the next one stands in its place.
fn sent_on<S: Sink>(route: &Rc<RouteContext<S>>, item: &mut Item, answer: Answer, started: Time) {
    let partner = &route.partner;
    let now = partner.clock.now();
    partner.metrics.attempt(answer.verdict).inc();
    partner.metrics.attempt_time.record(now.since(started));
    item.status = answer.status;
    item.delivery.attempt += 1;
    lines::attempted(route, item, &answer, now.since(started));
    if answer.verdict == Verdict::TryLater && !item.is_unsettled() {
        // Whether it counts is known once the last hop has been answered.
        item.delivery.attempt -= 1;
        let why = answer.detail.map(|d| d.reason).unwrap_or_default();
        close_uncounted(route, item, now, now, &why);
        item.delivery.attempt += 1;
    }
}

/// What an attempt says about the partner as a whole for which nothing was written. One whose address may not be
/// reached says nothing: it is the message's own failure.
fn unmade(answer: &Answer) -> AttemptResult {
    match answer.verdict {
        Verdict::Refused => AttemptResult::NotMade,
        _ => AttemptResult::Failed,
    }
}

/// Says once that this node lacks what a connection needs.
#[cold]
fn fall_short<S: Sink>(route: &RouteContext<S>, answer: &Answer) {
    let partner = &route.partner;
    if partner.gate.falls_short(partner.clock.now()) {
        let why = answer.detail.as_deref().map_or("", |d| d.reason.as_str());
        tracing::error!(
            event = "node_short", partner = %partner.name, why,
            "connections cannot be made for want of descriptors, ports or memory: no attempt is counted, it goes on by itself"
        );
    }
}

/// Closes the intent of an attempt that does not count: nothing was written, or the credentials of all messages are
/// refused. Not after a restart either.
fn close_uncounted<S: Sink>(
    route: &RouteContext<S>,
    item: &mut Item,
    now: Time,
    not_before: Time,
    why: &str,
) {
    if item.is_unsettled() {
        // An earlier attempt is in doubt still: so is the message, and its intent says so.
        return;
    }
    let kind = OutcomeKind::Later {
        not_before,
        first_try: item.first_try,
        key: item.key,
        reason: why.to_owned(),
        counted: false,
    };
    item.delivery.attempt += 1;
    append(route, item, now, kind);
    item.delivery.attempt -= 1;
}

/// The message's host is left alone: the message comes back at this time, unless it has become too old meanwhile.
fn away<S: Sink>(route: &Rc<RouteContext<S>>, item: &mut Item, at: Time) -> After {
    let partner = &route.partner;
    let now = partner.clock.now();
    // Waiting for a host that does not answer ages a message, tried or not: others are answered.
    note_first_try(route, item, now);
    let give_up_after = partner.config.retry.give_up_after;
    if now.since(item.first_try) < give_up_after {
        return After::Again(at);
    }
    let (held, answers) = (partner.gate).with(|turnstile, now| {
        (
            turnstile.outage(now),
            turnstile.has_answered_since(item.first_try),
        )
    });
    let age = now
        .since(item.first_try)
        .saturating_sub(held.saturating_sub(item.outage_at_first_try));
    if !answers || age < give_up_after {
        return After::Again(at);
    }
    let reason = format!("{}; its host is left alone", backoff::GiveUp::TooOld { age });
    let detail = AnswerDetail::of(reason);
    end(route, item, detail, false)
}

fn note_first_try<S>(route: &RouteContext<S>, item: &mut Item, first_try: Time) {
    if item.first_try == Time::ZERO {
        item.first_try = first_try;
        item.outage_at_first_try = route.partner.gate.with(|turnstile, now| turnstile.outage(now));
    }
}

/// Does as the partner asks in the answer to a look-up.
fn obey_look_up<S>(route: &RouteContext<S>, pace: Option<&Pace>, seq: u64) {
    let Some(pace) = pace else { return };
    route.partner.gate.with(|turnstile, now| {
        if let Some(pause) = pace.pause {
            turnstile.pause_until(now.plus(pause), now);
        }
        if let (Some(remaining), Some(reset)) = (pace.remaining, pace.reset) {
            turnstile.observe_remaining(remaining, reset, seq, now);
        }
    });
}

/// Does as the partner asks, before the place of its answer is free for another start.
fn obey<S>(route: &RouteContext<S>, item: &Item, answer: &Answer, seq: u64) {
    let Some(pace) = &answer.pace else { return };
    if answer.concerns.is_some_and(Concerns::spares_partner) {
        return;
    }
    if let (Some(host), None) = (item.host, answer.concerns) {
        let now = route.partner.clock.now();
        let hosts = &mut *route.partner.hosts.borrow_mut();
        hosts.hint(host, pace.pause, pace.remaining.zip(pace.reset), now);
        return;
    }
    let told = route.partner.gate.with(|turnstile, now| {
        let (before, mut told) = (turnstile.paused_until(), None);
        if let Some(pause) = pace.pause {
            let until = now.plus(pause);
            turnstile.pause_until(until, now);
            // A long one is said, once: not by each of the answers that were on their way.
            told = (pause >= TOLD_PAUSE && until > before.plus(TOLD_PAUSE)).then_some((pause, until));
        }
        if let (Some(remaining), Some(reset)) = (pace.remaining, pace.reset) {
            turnstile.observe_remaining(remaining, reset, seq, now);
        }
        told
    });
    if let Some((pause, until)) = told {
        tracing::info!(
            event = "partner_held", partner = %route.partner.name, status = answer.status,
            held_ms = pause.as_millis() as u64, held_until = %until,
            "the partner asks for no requests until then (Retry-After or RateLimit)"
        );
    }
}

/// What an answer says about the partner as a whole.
fn result_of(answer: &Answer, item: &Item, started: Time) -> AttemptResult {
    match answer.verdict {
        Verdict::Delivered | Verdict::Refused => AttemptResult::Answered,
        Verdict::Pause if answer.concerns == Some(Concerns::Partner) => AttemptResult::PausedByRule,
        Verdict::Pause => AttemptResult::CredentialsRefused {
            again: item.was_refused(),
            since: first_refused(item, started),
        },
        Verdict::Unknown(_) if answer.status != 0 => AttemptResult::DoubtAnswered,
        Verdict::Unknown(_) => AttemptResult::Doubt,
        // A rule says that somebody is there, and that it is about this message or key.
        Verdict::TryLater if answer.concerns.is_some_and(Concerns::spares_partner) => AttemptResult::Answered,
        // 425 and 429 come from a partner that is up and says so.
        Verdict::TryLater if answer.status != 0 && answer.status < 500 => AttemptResult::Answered,
        Verdict::TryLater => AttemptResult::Failed,
    }
}

/// When the first of the attempts in a row set out whose credentials were refused, this one being refused too.
fn first_refused(item: &Item, started: Time) -> Time {
    match item.refused_since {
        // Built again since: at its first try, at the earliest.
        Time::ZERO if item.was_refused() && item.first_try != Time::ZERO => item.first_try,
        Time::ZERO => started,
        since => since,
    }
}

/// Turns the answer into an outcome, appends it, and says what comes next. `hops`: attempts on the way to it, from which
/// the partner sent it on; they do not count where this one does not.
fn conclude<S: Sink>(
    route: &Rc<RouteContext<S>>,
    item: &mut Item,
    answer: Answer,
    started: Time,
    hops: u32,
) -> After {
    let partner = &route.partner;
    let now = partner.clock.now();
    partner.metrics.attempt(answer.verdict).inc();
    partner.metrics.attempt_time.record(now.since(started));
    item.delivery.attempt += 1;
    item.refused_since = match answer.verdict {
        Verdict::Pause => first_refused(item, started),
        _ => Time::ZERO,
    };
    item.status = answer.status;
    lines::attempted(route, item, &answer, now.since(started));
    if answer.concerns == Some(Concerns::Key)
        && let Some(pace) = &answer.pace
    {
        item.key_rests_until = now.plus(pace.retry_after.max(pace.pause).unwrap_or_default());
    }
    if answer.verdict == Verdict::Delivered {
        let bound = partner.ledger.readable_id;
        let readable = cut_bytes(&item.delivery.readable, bound);
        append(route, item, now, OutcomeKind::Delivered { readable });
        return After::Delivered;
    }
    let detail = answer.detail.map(|d| *d).unwrap_or_default();
    match answer.verdict {
        Verdict::Refused => dead(route, item, detail),
        Verdict::Unknown(cause) => {
            let doubt = Doubt {
                cause,
                attempts: item.delivery.attempt,
                first_try: item.first_try,
                slot: started,
                timeout: partner.config.request_timeout,
                taken_over: None,
            };
            settle(route, item, doubt, None, detail)
        }
        _ => {
            note_first_try(route, item, now);
            let (held, partner_answers) = partner.gate.with(|turnstile, now| {
                let held = turnstile.outage(now).saturating_sub(item.outage_at_first_try);
                (held, turnstile.is_answering(now))
            });
            let counts = answer.verdict != Verdict::Pause || is_its_own(route, item);
            if !counts {
                item.delivery.attempt = item.delivery.attempt.saturating_sub(hops);
            }
            let tried = Tried {
                attempts: item.delivery.attempt - u32::from(!counts),
                first_try: item.first_try,
                held,
                partner_answers,
                retry_after: answer.pace.and_then(|p| p.retry_after),
            };
            match backoff::next(&partner.config.retry, tried, now, fastrand::u64(..)) {
                Next::At(not_before) => {
                    if !counts {
                        // It closes its intent and is not counted: refused credentials burn no attempts.
                        item.delivery.attempt -= 1;
                        close_uncounted(route, item, now, not_before, &detail.reason);
                    } else if !item.is_unsettled() {
                        // With an earlier attempt in doubt the intent stays open: this answer says nothing about that
                        // one.
                        let kind = OutcomeKind::Later {
                            not_before,
                            first_try: item.first_try,
                            key: item.key,
                            reason: detail.reason,
                            counted: true,
                        };
                        append(route, item, now, kind);
                    }
                    item.task = Task::Send;
                    After::Again(not_before)
                }
                Next::GiveUp(why) => {
                    let reason = format!("{why}; last: {}", detail.reason);
                    let detail = AnswerDetail {
                        reason,
                        answer: detail.answer,
                    };
                    end(route, item, detail, false)
                }
            }
        }
    }
}

/// Whether a refusal of credentials that has just come in counts as this message's own attempt: others are answered.
/// Its first refusal, which was not counted while nobody knew, is counted with it.
fn is_its_own<S: Sink>(route: &RouteContext<S>, item: &mut Item) -> bool {
    let refusal = match item.host {
        Some(host) => route.partner.hosts.borrow().refusal(host),
        None => route.partner.gate.look(|turnstile| turnstile.breaker().refusal()),
    };
    let suspected = std::mem::replace(&mut item.suspected, refusal == Refusal::Suspected);
    if refusal == Refusal::Own && suspected {
        item.delivery.attempt += 1;
    }
    refusal == Refusal::Own
}

/// Deals with an unknown outcome, after a look-up if one was made.
fn settle<S: Sink>(
    route: &Rc<RouteContext<S>>,
    item: &mut Item,
    doubt: Doubt,
    looked_up: Option<(Verified, Progress)>,
    detail: AnswerDetail,
) -> After {
    let partner = &route.partner;
    let config = &partner.config;
    let rules = DoubtRules {
        policy: config.doubt,
        idempotency_window: config.idempotency_window,
        retry: &config.retry,
        settle: config.verify.as_ref().map(|v| v.settle),
    };
    let now = partner.clock.now();
    let rnd = fastrand::u64(..);
    let verified = looked_up.is_some();
    let action = match &looked_up {
        None => doubt::on_doubt(&doubt, &rules, now, rnd),
        Some((answer, progress)) => doubt::on_looked_up(answer, *progress, &doubt, &rules, now, rnd),
    };
    match action {
        Action::Delivered => {
            let readable = cut_bytes(&item.delivery.readable, partner.ledger.readable_id);
            append(route, item, now, OutcomeKind::Delivered { readable });
            After::Delivered
        }
        Action::Park(reason) => {
            if let doubt::ParkReason::Policy(cause) = reason {
                route.figures.parked_for(cause);
            }
            let reason = if detail.reason.is_empty() {
                reason.to_string()
            } else {
                format!("{reason}; {}", detail.reason)
            };
            park(
                route,
                item,
                AnswerDetail {
                    reason,
                    answer: detail.answer,
                },
            )
        }
        // The intent stays open: after a crash the message is in doubt still, and decided by the policy for that.
        Action::ResendAt(at) => {
            note_doubt(route, item, doubt.cause);
            item.task = Task::Send;
            item.resend_until = if verified {
                Time::NEVER
            } else {
                doubt::resend_until(doubt.first_try, &rules)
            };
            After::Again(at)
        }
        Action::VerifyAt(at, progress) => {
            note_doubt(route, item, doubt.cause);
            item.task = Task::LookUp(doubt, progress);
            After::Again(at)
        }
    }
}

/// While this life settles a doubt its cause is remembered, for a partition that is built again.
fn note_doubt<S>(route: &RouteContext<S>, item: &Item, cause: DoubtCause) {
    route.doubts.borrow_mut().insert(item.delivery.id, cause);
}

/// Ends a message of which no further attempt is made: parked where an earlier one may have been taken (I3), else dead.
fn end<S: Sink>(route: &Rc<RouteContext<S>>, item: &mut Item, detail: AnswerDetail, unsure: bool) -> After {
    if !item.is_unsettled() && !unsure {
        return dead(route, item, detail);
    }
    let reason = format!("{}; {}", doubt::ParkReason::Unsettled, detail.reason);
    park(route, item, AnswerDetail { reason, ..detail })
}

fn dead<S: Sink>(route: &Rc<RouteContext<S>>, item: &mut Item, detail: AnswerDetail) -> After {
    let kept = kept(item, detail);
    append(route, item, route.partner.clock.now(), OutcomeKind::Dead(kept));
    After::Dead
}

fn park<S: Sink>(route: &Rc<RouteContext<S>>, item: &mut Item, detail: AnswerDetail) -> After {
    let kept = kept(item, detail);
    append(route, item, route.partner.clock.now(), OutcomeKind::Parked(kept));
    After::Parked {
        hold: route.partner.config.on_doubt == OnDoubt::Hold,
    }
}

/// Bytes of a readable ID kept with a message that an operator must look at.
const KEPT_READABLE: usize = 1_024;

/// The message as it is kept in the ledger.
pub fn kept(item: &Item, detail: AnswerDetail) -> Box<Kept> {
    let delivery = &item.delivery;
    let idempotency = match &delivery.idempotency_key {
        Some(key) => key.to_string(),
        None => idempotency_key(delivery.id, delivery.round),
    };
    Box::new(Kept {
        key: item.key,
        record_key: delivery.record.key.clone(),
        timestamp: delivery.record.timestamp,
        value: delivery.record.value.clone(),
        headers: delivery.record.headers.clone(),
        readable: cut(&String::from_utf8_lossy(&delivery.readable), KEPT_READABLE).to_owned(),
        idempotency_key: idempotency,
        reason: detail.reason,
        answer: detail.answer,
        first_try: item.first_try,
        dropped: false,
    })
}

fn append<S: Sink>(route: &RouteContext<S>, item: &mut Item, when: Time, kind: OutcomeKind) {
    let metrics = &route.partner.metrics;
    match &kind {
        OutcomeKind::Delivered { .. } => {
            metrics.delivered.inc();
            metrics.age.record(when.since(item.delivery.record.timestamp));
        }
        OutcomeKind::Dead(kept) => {
            metrics.dead.inc();
            lines::dead(route, item, kept);
        }
        OutcomeKind::Parked(kept) => {
            metrics.parked.inc();
            lines::parked(route, item, kept);
        }
        OutcomeKind::Later { .. } | OutcomeKind::Skipped(_) => {}
    }
    if !route.doubts.borrow().is_empty() {
        route.doubts.borrow_mut().remove(&item.delivery.id);
    }
    let port = &route.partner.port;
    item.outcome = port.outcome(Body::Outcome(Outcome {
        at: route.at,
        id: item.delivery.id,
        offset: item.delivery.record.offset,
        round: item.delivery.round,
        attempts: item.delivery.attempt,
        when,
        life: port.lane().life(),
        status: item.status,
        kind,
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::http::HttpSink;

    fn size<A, B, C, D, E, F: Future>(_: impl Fn(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn the_future_of_an_attempt_is_small() {
        let bytes = size(attempt::<HttpSink>);
        // It is moved twice on its way to the executor, once a delivery.
        assert!(bytes <= 2_048, "{bytes} bytes");
    }
}
