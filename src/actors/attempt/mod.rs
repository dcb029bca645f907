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

mod conclude;
mod host_pass;
mod look_up;

pub use conclude::kept;

use super::context::{Approaching, RouteContext};
use super::gate::Entered;
use super::item::{Item, Task};
use super::lines;
use crate::core::backoff;
use crate::core::breaker::AttemptResult;
use crate::core::doubt;
use crate::core::flood::FloodGuard;
use crate::core::ledger::entry::{Body, Intent};
use crate::core::turnstile::{Draws, NEXT, STAYS, Slot};
use crate::core::types::{MessageId, Time};
use crate::ledger::lane::LaneError;
use crate::sink::{Answer, AnswerDetail, Concerns, Moved, Sent, Sink, Verdict};
use conclude::{close_uncounted, conclude, end, note_first_try, obey, park, result_of, settle};
use host_pass::HostPass;
use look_up::look_up;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::Duration;

/// Before looking for room on a full disk again.
const NO_ROOM_WAIT: Duration = Duration::from_secs(1);
/// A place that cannot be used for want of descriptors, ports or memory rests so long, and so does its message: the
/// places that have a connection go on meanwhile.
const SHORTAGE_WAIT: Duration = Duration::from_millis(500);

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
        // What was sent on takes turns with the others, too: else each of them would be sent on before it goes on. But
        // it stays: whoever comes back is sent on once more.
        let came_back = std::mem::take(&mut item.deferred);
        if came_back {
            partner.gate.came_back(draws);
        }
        let queue = match (item.is_unsettled(), moved.is_some()) {
            (_, true) => route.queue | DOUBTS | STAYS,
            (true, false) => route.queue | DOUBTS | NEXT,
            (false, false) if item.missed || came_back => route.queue | NEXT,
            (false, false) => route.queue,
        };
        let permit = match partner.gate.enter(queue, draws.clone()).await {
            Entered::Permit(permit) => permit,
            Entered::Deferred(until) => {
                partner.metrics.limiter_wait.record(until.since(wanted));
                return defer(route, item, until);
            }
            // The node stops: the partition hands nothing out any more, and the next life takes it up. Not a later
            // time: what waits for long is copied into the ledger with it.
            Entered::Closed => return After::Again(clock.now()),
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
            Err(answer) if route.is_kept_back(item) => {
                // An outcome behind the entry that calls it delivered would have it wait, or end, once more.
                pass.finish(permit, unmade(&answer));
                return After::Again(clock.now());
            }
            Err(answer) => {
                pass.finish(permit, unmade(&answer));
                return conclude(route, item, answer, clock.now(), hops(&moved));
            }
        };
        // From here to the intent nothing else runs on this thread: an order comes before both or after both. A node that
        // stops waits for what has an intent, and for no other: that must have none then.
        if route.is_kept_back(item) || (partner.gate.is_closed() && !unsure) {
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
            item.missed = true;
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
            timeout_ms: partner.config.timeout.request.as_millis() as u32,
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
        let ready = clock.now();
        partner.gate.prepared_within(ready.since(granted));
        note_first_try(route, item, first_try, ready);
        let wait = slot_at.since(ready);
        if wait > Duration::ZERO {
            tokio::time::sleep(wait).await;
        }
        let until = valid_until.min(asked.plus(lease));
        let (mut started, mut held) = (Time::ZERO, false);
        let (of, begun) = (&*item, Cell::new(false));
        let mut may_start = || {
            started = clock.now();
            held = partner.gate.is_held(started);
            let may = started <= until && !held && !route.is_kept_back(of);
            written.set(may);
            begun.set(may);
            may
        };
        let sent = {
            let sending = pin!(partner.sink.send(connection, request, &mut may_start));
            noting_the_write(sending, &begun, || partner.gate.written(permit.slot())).await
        };
        item.missed = false;
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
                    item.missed = true;
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
                let result = result_of(&answer, item, started);
                let undecided = Undecided::begin(&route.flood);
                let mut place = Some(permit);
                if undecided.is_some()
                    && let Some(permit) = place.take()
                {
                    pass.finish(permit, result);
                }
                // Until it is known what the answer means the message may be the partner's.
                let answer = settling.answer().await;
                drop(undecided);
                if let Some(permit) = place {
                    pass.finish(permit, result);
                }
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

/// Goes on until the request is answered, and tells when it was written: after the poll in which it was begun, for it is
/// written in the same one as a rule.
fn noting_the_write<F: Future>(
    mut sending: Pin<&mut F>,
    begun: &Cell<bool>,
    tell: impl Fn(),
) -> impl Future<Output = F::Output> {
    poll_fn(move |cx| {
        let polled = sending.as_mut().poll(cx);
        if begun.take() {
            tell();
        }
        polled
    })
}

/// A refusal whose meaning is not known yet, told to the flood guard until it is dropped.
struct Undecided<'a>(&'a RefCell<FloodGuard>);

impl<'a> Undecided<'a> {
    /// None: the message keeps its place meanwhile.
    fn begin(flood: &'a RefCell<FloodGuard>) -> Option<Self> {
        let gives_place = flood.borrow_mut().undecided();
        gives_place.then(|| Self(flood))
    }
}

impl Drop for Undecided<'_> {
    fn drop(&mut self) {
        self.0.borrow_mut().decided();
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

/// The message's value has used its limit up: the message comes back at this time.
fn defer<S: Sink>(route: &RouteContext<S>, item: &mut Item, until: Time) -> After {
    item.deferred = true;
    if !route.is_current(item) {
        return OVERTAKEN;
    }
    match route.is_kept_back(item) {
        true => After::Again(route.partner.clock.now()),
        false => After::Again(until),
    }
}

/// The message's host is left alone: the message comes back at this time, unless it has become too old meanwhile.
fn away<S: Sink>(route: &Rc<RouteContext<S>>, item: &mut Item, at: Time) -> After {
    let partner = &route.partner;
    let now = partner.clock.now();
    if route.is_kept_back(item) {
        // The partition's actor knows what to do with it, and writes no outcome.
        return After::Again(now);
    }
    // Waiting for a host that does not answer ages a message, tried or not: others are answered.
    note_first_try(route, item, now, now);
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
        assert!(bytes <= 1_650, "{bytes} bytes");
    }
}
