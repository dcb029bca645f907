//! The gate to one partner, as the attempts on its arbiter see it: [`PartnerGate::enter`] is awaited, and what
//! comes back is a [`Permit`] with a start slot.
//!
//! The decisions are the [`Turnstile`]'s; this only maps tickets to waiting tasks. A permit that is dropped, by a
//! panic for instance, frees its place; an `enter` that is dropped gives its ticket up. So no place is ever lost.
//! The partner's `RateLimiterActor` keeps the time: it pumps when the turnstile said so.
//!
//! One wake for each grant, handed over with the slot: a ticket is in the table exactly as long as somebody waits
//! for it, so a wake can neither be lost nor spent on somebody who does not need it.

use crate::clock::Clock;
use crate::core::breaker::{AttemptResult, Cause};
use crate::core::limiter::{BudgetTable, Minded, WallStep};
use crate::core::turnstile::{Draws, Granted, Slot, Turnstile};
use crate::core::types::Time;
use hashbrown::HashMap;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::Notify;

/// Requests in flight of the whole node, over all partners and arbiters.
#[derive(Debug)]
pub struct NodeCap {
    in_flight: AtomicUsize,
    limit: usize,
}

/// At the node's cap a gate looks again after so long: the place that frees may be on another arbiter.
const AT_NODE_CAP: Duration = Duration::from_millis(5);

impl NodeCap {
    /// A cap of `limit` requests.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            in_flight: AtomicUsize::new(0),
            limit: limit.max(1),
        })
    }

    /// Requests in flight now.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Takes up to `most` places in one step, for other arbiters take from them too; says how many.
    fn take(&self, most: usize) -> usize {
        let mut taken = 0;
        let update = |in_flight: usize| {
            taken = self.limit.saturating_sub(in_flight).min(most);
            (taken > 0).then_some(in_flight + taken)
        };
        match self
            .in_flight
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, update)
        {
            Ok(_) => taken,
            Err(_) => 0,
        }
    }

    fn give_back(&self, places: usize) {
        self.in_flight.fetch_sub(places, Ordering::Relaxed);
    }
}

/// How long it takes to prepare a start, connect and commit of its intent together, as measured: mean and mean deviation, both smoothed.
#[derive(Clone, Copy, Debug)]
struct Preparing {
    mean: Duration,
    deviation: Duration,
}

impl Preparing {
    /// Bounds of the lead that comes of it. A partner that closes each connection has a lead as long as a connect takes;
    /// a shorter one would miss a slot for each message, and with it half of the limit.
    const LEAST: Duration = Duration::from_millis(2);
    const MOST: Duration = Duration::from_secs(1);
    /// Weight of what was known before: `n - 1` of `n`.
    const SMOOTH: u32 = 16;

    /// A measure that says this until something is measured.
    fn guess(lead: Duration) -> Self {
        Self {
            mean: lead / 2,
            deviation: lead / 4,
        }
    }

    fn note(&mut self, took: Duration) {
        let smooth = |old: Duration, new: Duration| (old * (Self::SMOOTH - 1) + new) / Self::SMOOTH;
        self.deviation = smooth(self.deviation, took.abs_diff(self.mean));
        self.mean = smooth(self.mean, took);
    }

    /// Two mean deviations above the mean: what is later than that has the slot's own time left.
    fn lead(&self) -> Duration {
        (self.mean + self.deviation * 2).clamp(Self::LEAST, Self::MOST)
    }
}

enum Ticket {
    Waits(Waker),
    Granted(Slot),
    Deferred(Time),
}

struct State {
    turnstile: Turnstile,
    closed: bool,
    tickets: HashMap<u64, Ticket>,
    last_ticket: u64,
    granted: Vec<Granted>,
}

/// See the module.
pub struct PartnerGate {
    name: Arc<str>,
    state: RefCell<State>,
    budgets: Rc<RefCell<BudgetTable>>,
    clock: Clock,
    /// How long before its slot a start must be prepared: about what a commit of the ledger takes.
    preparing: Cell<Preparing>,
    /// Slots granted in one turn.
    turn: usize,
    cap: Arc<NodeCap>,
    ask_at: Cell<Time>,
    /// Steps of the wall clock seen.
    wall_steps: Cell<u64>,
    /// How often limits have changed.
    limits: Cell<u64>,
    /// Tells the keeper of the time that `ask_at` has moved closer.
    pub(super) alarm: Notify,
    /// Since when, and when last, this node lacked what a connection needs.
    short: Cell<Option<(Time, Time)>>,
}

/// A shortage of this node that has not been met for so long is over.
const SHORT_FOR: Duration = Duration::from_secs(60);

impl PartnerGate {
    /// An open gate. `turn`: slots granted in one go (`actors.permits`).
    pub fn new(
        name: Arc<str>,
        turnstile: Turnstile,
        budgets: Rc<RefCell<BudgetTable>>,
        clock: Clock,
        lead: Duration,
        turn: usize,
        cap: Arc<NodeCap>,
    ) -> Rc<Self> {
        Rc::new(Self {
            name,
            state: RefCell::new(State {
                turnstile,
                closed: false,
                tickets: HashMap::new(),
                last_ticket: 0,
                granted: Vec::new(),
            }),
            budgets,
            clock,
            preparing: Cell::new(Preparing::guess(lead)),
            turn: turn.max(1),
            cap,
            ask_at: Cell::new(Time::NEVER),
            wall_steps: Cell::new(0),
            limits: Cell::new(0),
            alarm: Notify::new(),
            short: Cell::new(None),
        })
    }

    /// Waits for a start slot. `queue` is the route partition's number: queues take fair turns.
    pub fn enter(self: &Rc<Self>, queue: u32, draws: Draws) -> Enter {
        Enter {
            gate: self.clone(),
            queue,
            draws,
            ticket: None,
        }
    }

    /// A message that was deferred is about to enter again.
    pub fn came_back(&self, draws: &Draws) {
        self.budgets.borrow_mut().came_back(draws);
    }

    /// The partner.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Looks at the turnstile.
    pub fn look<R>(&self, f: impl FnOnce(&Turnstile) -> R) -> R {
        f(&self.state.borrow().turnstile)
    }

    /// Looks at, or changes, the turnstile; then grants what that made possible.
    pub fn with<R>(&self, f: impl FnOnce(&mut Turnstile, Time) -> R) -> R {
        let now = self.clock.now();
        let result = f(&mut self.state.borrow_mut().turnstile, now);
        self.pump_at(now);
        result
    }

    /// How long nothing could start so far, for no fault of a message.
    pub fn outage(&self, now: Time) -> Duration {
        self.state.borrow_mut().turnstile.outage(now)
    }

    /// Looks at, or changes, the budgets; then grants what that made possible.
    pub fn with_budgets<R>(&self, f: impl FnOnce(&mut BudgetTable, Time) -> R) -> R {
        let result = f(&mut self.budgets.borrow_mut(), self.clock.now());
        self.limits_changed();
        result
    }

    fn limits_changed(&self) {
        self.limits.set(self.limits.get() + 1);
        self.state.borrow_mut().turnstile.limits_changed();
        self.pump();
    }

    /// Rises whenever limits have changed: messages that were sent away for them may come back at once.
    pub fn limits_version(&self) -> u64 {
        self.limits.get()
    }

    /// A start took so long to prepare: from its permit until all was there, connection and durable intent.
    #[inline]
    pub fn prepared_within(&self, took: Duration) {
        let mut preparing = self.preparing.get();
        preparing.note(took);
        self.preparing.set(preparing);
    }

    /// The request with this slot was written before now. Later than its slot is valid it counts as a start of now: what was
    /// checked right before the write may be long ago where the thread, or the machine, stood still in between.
    #[inline]
    pub fn written(&self, slot: &Slot) {
        if slot.valid_until < Time::NEVER {
            let now = self.clock.now();
            if now > slot.valid_until {
                self.budgets.borrow_mut().late(&slot.draws, slot.at, now);
            }
        }
    }

    /// Whether nothing may start now, though a slot was granted: an operator, or the partner, has paused it since.
    #[inline]
    pub fn is_held(&self, now: Time) -> bool {
        self.state.borrow().turnstile.is_held(now)
    }

    /// Looks after the budgets, about once a second: quotas follow the wall clock, values that are over go. What is
    /// remarkable is told.
    pub fn mind_budgets(&self) {
        let now = self.clock.now();
        let mut table = self.budgets.borrow_mut();
        let minded = table.mind(now, || Clock::wall().0 as i64 - now.0 as i64);
        let steps = table.wall_steps();
        drop(table);
        for news in minded {
            tell_budgets(&news, now);
        }
        if steps != self.wall_steps.replace(steps) {
            // A quota's slots have moved.
            self.limits_changed();
        }
    }

    /// Whether the node stops: nobody gets in any more.
    pub fn is_closed(&self) -> bool {
        self.state.borrow().closed
    }

    /// Grants nothing any more: who waits, and who comes, is sent away.
    pub fn close(&self) {
        let waiting = {
            let state = &mut *self.state.borrow_mut();
            state.closed = true;
            let all = state.tickets.iter_mut();
            let waiting: Vec<Waker> = all
                .filter_map(|(_, ticket)| match ticket {
                    Ticket::Waits(waker) => Some(waker.clone()),
                    Ticket::Granted(_) | Ticket::Deferred(_) => None,
                })
                .collect();
            waiting
        };
        for waker in waiting {
            waker.wake();
        }
    }

    /// When [`PartnerGate::pump`] must be called at the latest.
    pub fn ask_at(&self) -> Time {
        self.ask_at.get()
    }

    /// Attempts that wait for a slot.
    pub fn waiting(&self) -> usize {
        self.state.borrow().turnstile.waiting()
    }

    /// Requests in flight.
    pub fn in_use(&self) -> u32 {
        self.state.borrow().turnstile.in_use()
    }

    /// Grants slots to those who wait, as far as that is possible now.
    pub fn pump(&self) {
        self.pump_at(self.clock.now());
    }

    fn pump_at(&self, now: Time) {
        let mut woken: smallvec::SmallVec<[Waker; 8]> = smallvec::SmallVec::new();
        let ask_at = {
            let State {
                turnstile,
                tickets,
                granted,
                closed,
                ..
            } = &mut *self.state.borrow_mut();
            if *closed || turnstile.waiting() == 0 {
                // Nobody is kept waiting by a time that is over: whoever comes next is looked after at once.
                self.ask_at.set(Time::NEVER);
                return;
            }
            let room = self.cap.take(self.turn.min(turnstile.waiting()));
            let ask_at = if room == 0 {
                now.plus(AT_NODE_CAP)
            } else {
                turnstile.grant(
                    now,
                    self.preparing.get().lead(),
                    room,
                    &mut self.budgets.borrow_mut(),
                    granted,
                )
            };
            self.cap.give_back(room - granted.len());
            let granted = granted.drain(..).map(|g| (g.ticket, Ticket::Granted(g.slot)));
            let deferred = turnstile
                .deferred()
                .map(|d| (d.ticket, Ticket::Deferred(d.until)));
            for (ticket, state) in granted.chain(deferred) {
                if let Some(Ticket::Waits(waker)) = tickets.insert(ticket, state) {
                    woken.push(waker);
                }
            }
            ask_at
        };
        for waker in woken {
            waker.wake();
        }
        if ask_at < self.ask_at.replace(ask_at) {
            self.alarm.notify_one();
        }
    }

    fn try_enter(&self, draws: &Draws) -> Option<Slot> {
        if self.cap.take(1) == 0 {
            return None;
        }
        let slot = self.state.borrow_mut().turnstile.try_grant(
            self.clock.now(),
            self.preparing.get().lead(),
            draws,
            &mut self.budgets.borrow_mut(),
        );
        if slot.is_none() {
            self.cap.give_back(1);
        }
        slot
    }

    fn leave(&self, slot: &Slot, result: AttemptResult) {
        self.cap.give_back(1);
        let now = self.clock.now();
        let turned = {
            let turnstile = &mut self.state.borrow_mut().turnstile;
            let before = turnstile.breaker().left_alone();
            turnstile.finish(slot, result, now, fastrand::u64(..));
            let after = turnstile.breaker().left_alone();
            (before != after).then_some((before, after))
        };
        if let Some((before, after)) = turned {
            self.tell_breaker(before, after, now);
        }
        self.pump_at(now);
    }

    #[cold]
    fn tell_breaker(&self, before: Option<(Cause, Time)>, after: Option<(Cause, Time)>, now: Time) {
        let partner = &*self.name;
        match (before, after) {
            (None, Some((cause, until))) => tracing::warn!(
                event = "breaker_open", partner, cause = ?cause, probe_in_ms = until.since(now).as_millis() as u64,
                probe_at = %until, "the partner is left alone; probes go on"
            ),
            // As rare as the probes are.
            (Some(_), Some((cause, until))) => tracing::info!(
                event = "breaker_waits", partner, cause = ?cause, probe_in_ms = until.since(now).as_millis() as u64,
                probe_at = %until, "the probe had no success: the partner is left alone until the next one"
            ),
            (_, None) => tracing::info!(event = "breaker_closed", partner, "the partner answers again"),
        }
    }

    /// A message whose credentials were never refused is about to ask for a slot.
    #[inline]
    pub fn stranger(&self) {
        if self.look(|turnstile| turnstile.breaker().wants_stranger()) {
            let told = self.state.borrow_mut().turnstile.stranger(self.clock.now());
            if told {
                self.pump();
            }
        }
    }

    /// Whether somebody waits for a slot while it is open whose credentials the partner refuses.
    pub fn waits_for_stranger(&self) -> bool {
        self.look(|turnstile| turnstile.breaker().wants_stranger() && turnstile.waiting() > 0)
    }

    /// This node lacked something that a connection needs. True: it is news.
    pub fn falls_short(&self, now: Time) -> bool {
        let (since, last) = self.short.get().unwrap_or((now, Time::ZERO));
        let news = now.since(last) > SHORT_FOR;
        self.short.set(Some((if news { now } else { since }, now)));
        news
    }

    /// Since when this node lacks what connections to the partner need, if it does.
    pub fn short_since(&self, now: Time) -> Option<Time> {
        let (since, last) = self.short.get()?;
        (now.since(last) <= SHORT_FOR).then_some(since)
    }

    fn miss(&self, slot: &Slot) {
        self.cap.give_back(1);
        let now = self.clock.now();
        self.state
            .borrow_mut()
            .turnstile
            .missed(slot, now, &mut self.budgets.borrow_mut());
        self.pump_at(now);
    }
}

fn tell_budgets(news: &Minded, now: Time) {
    match news {
        Minded::WallStep(WallStep::Waits(until)) => tracing::warn!(
            event = "clock_doubted",
            wait_s = until.since(now).as_secs(),
            "the wall clock went ahead over the edge of a calendar quota: nothing is drawn from it until the clock has \
             kept that time"
        ),
        Minded::WallStep(step) => tracing::info!(
            event = "clock_followed",
            believed = matches!(step, WallStep::Believed),
            "the wall clock was set: calendar quotas go by it"
        ),
        Minded::Full(values) => tracing::warn!(
            event = "budget_values_full",
            values = values.own,
            bytes = values.bytes,
            shared = values.classes,
            "more values of `by` than there is memory for: new ones share budgets in small groups, each within its \
             limit; raise node.memory"
        ),
        Minded::Room(values) => tracing::info!(
            event = "budget_values_room",
            values = values.own,
            "each value of `by` has its own budget again"
        ),
    }
}

/// What comes of waiting at the gate.
pub enum Entered {
    /// Leave to start.
    Permit(Permit),
    /// Its value of a split budget is used up: it is to come again at this time.
    Deferred(Time),
    /// The gate is closed: the node stops.
    Closed,
}

/// Waits for a slot; see [`PartnerGate::enter`].
pub struct Enter {
    gate: Rc<PartnerGate>,
    queue: u32,
    draws: Draws,
    ticket: Option<u64>,
}

impl Future for Enter {
    type Output = Entered;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Entered> {
        let gate = self.gate.clone();
        if gate.state.borrow().closed {
            return Poll::Ready(Entered::Closed);
        }
        let ticket = match self.ticket {
            None => {
                if let Some(slot) = gate.try_enter(&self.draws) {
                    return Poll::Ready(Entered::Permit(Permit {
                        gate,
                        slot: Some(slot),
                    }));
                }
                let ticket = {
                    let state = &mut *gate.state.borrow_mut();
                    state.last_ticket += 1;
                    let ticket = state.last_ticket;
                    state.tickets.insert(ticket, Ticket::Waits(cx.waker().clone()));
                    state.turnstile.enqueue(self.queue, ticket, self.draws.clone());
                    ticket
                };
                self.ticket = Some(ticket);
                gate.pump();
                ticket
            }
            Some(ticket) => ticket,
        };
        let state = &mut *gate.state.borrow_mut();
        match state.tickets.get_mut(&ticket) {
            Some(Ticket::Waits(waker)) => {
                waker.clone_from(cx.waker());
                Poll::Pending
            }
            Some(Ticket::Granted(_) | Ticket::Deferred(_)) | None => {
                self.ticket = None;
                match state.tickets.remove(&ticket) {
                    Some(Ticket::Granted(slot)) => Poll::Ready(Entered::Permit(Permit {
                        gate: gate.clone(),
                        slot: Some(slot),
                    })),
                    Some(Ticket::Deferred(until)) => Poll::Ready(Entered::Deferred(until)),
                    // Not reachable: a ticket stays in the table until its future takes it out.
                    _ => Poll::Pending,
                }
            }
        }
    }
}

impl Drop for Enter {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let slot = {
            let state = &mut *self.gate.state.borrow_mut();
            match state.tickets.remove(&ticket) {
                Some(Ticket::Granted(slot)) => Some(slot),
                _ => {
                    state.turnstile.cancel(ticket);
                    None
                }
            }
        };
        if let Some(slot) = slot {
            self.gate.leave(&slot, AttemptResult::NotMade);
        }
    }
}

/// Leave to start one request, and a place among those in flight until it is finished or dropped.
pub struct Permit {
    gate: Rc<PartnerGate>,
    slot: Option<Slot>,
}

impl Permit {
    /// The start slot.
    pub fn slot(&self) -> &Slot {
        self.slot
            .as_ref()
            .expect("a permit holds its slot until it is given up")
    }

    /// The attempt has ended: the place is free, the breaker knows.
    pub fn finish(mut self, result: AttemptResult) {
        if let Some(slot) = self.slot.take() {
            self.gate.leave(&slot, result);
        }
    }

    /// The slot's time is over before the first byte: another one is needed.
    pub fn missed(mut self) {
        if let Some(slot) = self.slot.take() {
            self.gate.miss(&slot);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.gate.leave(&slot, AttemptResult::NotMade);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PartnerConfig;
    use crate::core::breaker::BreakerSettings;
    use futures_util::FutureExt;

    fn gate(concurrency: usize, cap: usize) -> Rc<PartnerGate> {
        let mut partner = PartnerConfig::new("p", "http://127.0.0.1/");
        partner.concurrency = concurrency;
        let clock = Clock::start();
        let turnstile = Turnstile::new(0, BreakerSettings::of(&partner), clock.now());
        let budgets = Rc::new(RefCell::new(BudgetTable::new()));
        PartnerGate::new(
            "p".into(),
            turnstile,
            budgets,
            clock,
            Duration::from_millis(3),
            256,
            NodeCap::new(cap),
        )
    }

    /// The permit, if there is one by now.
    fn permit(entered: Option<Entered>) -> Option<Permit> {
        match entered? {
            Entered::Permit(permit) => Some(permit),
            Entered::Deferred(_) | Entered::Closed => None,
        }
    }

    fn entered(gate: &Rc<PartnerGate>) -> Permit {
        permit(gate.enter(0, Draws::new()).now_or_never()).expect("a free place")
    }

    #[test]
    fn a_place_that_is_freed_goes_to_who_waits() {
        let gate = gate(1, 10);
        let first = entered(&gate);
        let mut second = Box::pin(gate.enter(0, Draws::new()));
        assert!(second.as_mut().now_or_never().is_none());
        first.finish(AttemptResult::Answered);
        let second = permit(second.as_mut().now_or_never()).expect("the freed place");
        assert_eq!(gate.in_use(), 1);
        drop(second);
        assert_eq!((gate.in_use(), gate.cap.in_flight()), (0, 0));
    }

    #[test]
    fn who_gives_up_waiting_leaves_no_trace() {
        let gate = gate(1, 10);
        let first = entered(&gate);
        let mut second = Box::pin(gate.enter(0, Draws::new()));
        let mut third = Box::pin(gate.enter(1, Draws::new()));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(third.as_mut().now_or_never().is_none());
        first.finish(AttemptResult::Answered);
        // The second was granted the place but is dropped before it looks: the third gets it.
        drop(second);
        assert!(third.as_mut().now_or_never().is_some());
        assert_eq!((gate.waiting(), gate.cap.in_flight()), (0, 0));
        // Nor does a time for which it waited wake anybody any more.
        gate.with(|turnstile, now| turnstile.pause_until(now.plus(Duration::from_secs(60)), now));
        let mut fourth = Box::pin(gate.enter(0, Draws::new()));
        assert!(fourth.as_mut().now_or_never().is_none());
        assert!(gate.ask_at() < Time::NEVER);
        drop(fourth);
        gate.pump();
        assert_eq!(gate.ask_at(), Time::NEVER);
    }

    #[test]
    fn the_nodes_cap_holds_over_gates() {
        let gate = gate(5, 1);
        let first = entered(&gate);
        let mut second = Box::pin(gate.enter(0, Draws::new()));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(gate.ask_at() < Time::NEVER, "somebody must look again");
        first.finish(AttemptResult::Answered);
        assert!(second.as_mut().now_or_never().is_some());
    }

    #[test]
    fn a_closed_gate_sends_everybody_away() {
        let gate = gate(1, 10);
        let first = entered(&gate);
        let mut second = Box::pin(gate.enter(0, Draws::new()));
        assert!(second.as_mut().now_or_never().is_none());
        gate.close();
        assert!(permit(second.as_mut().now_or_never()).is_none());
        drop(second);
        // Who is inside may finish.
        first.finish(AttemptResult::Answered);
        assert_eq!((gate.waiting(), gate.in_use(), gate.cap.in_flight()), (0, 0, 0));
        let third = gate.enter(0, Draws::new()).now_or_never();
        assert!(matches!(third, Some(Entered::Closed)));
    }

    #[test]
    fn gates_of_many_threads_never_exceed_the_nodes_cap() {
        let cap = NodeCap::new(5);
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let cap = cap.clone();
                std::thread::spawn(move || {
                    for most in (1..8).cycle().take(20_000) {
                        let taken = cap.take(most);
                        assert!(taken <= most && cap.in_flight() <= 5);
                        cap.give_back(taken);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().expect("a thread"));
        assert_eq!(cap.in_flight(), 0);
    }

    #[test]
    fn the_lead_follows_what_preparing_takes() {
        let mut preparing = Preparing::guess(Duration::from_millis(4));
        assert_eq!(preparing.lead(), Duration::from_millis(4));
        (0..200).for_each(|_| preparing.note(Duration::from_millis(20)));
        assert!(
            (19..23).contains(&preparing.lead().as_millis()),
            "{:?}",
            preparing.lead()
        );
        // What varies is met with room to spare.
        (0..200).for_each(|i| preparing.note(Duration::from_millis(if i % 2 == 0 { 5 } else { 25 })));
        assert!(
            (30..40).contains(&preparing.lead().as_millis()),
            "{:?}",
            preparing.lead()
        );
        (0..500).for_each(|_| preparing.note(Duration::from_micros(100)));
        assert_eq!(preparing.lead(), Preparing::LEAST);
        (0..500).for_each(|_| preparing.note(Duration::from_secs(9)));
        assert_eq!(preparing.lead(), Preparing::MOST);
    }
}
