//! The operator of a simulated node: gives orders at any time, one after the other, and does not always wait for the
//! answer. An order takes the way of a real one: made up from the fold, settled against it later, written by the port
//! that a real node uses, and done when its effects are carried out.
//!
//! What an order promises is told to the [oracle](super::oracle) once it is answered, and only then.

use super::oracle::Facts;
use super::partner::SimSink;
use super::world::{Memory, Place};
use crate::actors::effects::{carry_out, claim_here};
use crate::actors::gate::PartnerGate;
use crate::actors::partition::{PartitionActor, Start, Stop, nothing_new};
use crate::api::orders::Touched;
use crate::clock::{Clock, simulated};
use crate::config::model::{LimitConfig, Rate};
use crate::core::ledger::entry::{Action, Body, SkipMatch, SkipRule};
use crate::core::ledger::fold::{Effect, Effects, FinishedState, LaneState, MessageState};
use crate::core::limiter::BudgetTable;
use crate::core::types::{MessageId, Offset, RoutePartition};
use crate::intake::fake_log::FakeLog;
use crate::ledger::desk::Prepared;
use crate::ledger::desk::plan::{Found, Item, Setting, Then};
use crate::ledger::lane::LanePort;
use crate::ledger::payload;
use crate::sink::idempotency_key;
use actix::prelude::*;
use parking_lot::Mutex;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

/// The partitions of a life.
pub type Places = Rc<RefCell<Vec<Place>>>;

/// Up to where effects were carried out in this life.
#[derive(Default)]
pub struct Carried {
    upto: Cell<Offset>,
    refused: RefCell<BTreeSet<Offset>>,
    more: Notify,
}

/// So many messages are looked at until one is found that can be forgotten.
const FORGET_TRIES: usize = 4;

/// Carries effects out, some time after they were folded and in that order.
pub async fn carry(
    mut effects: mpsc::UnboundedReceiver<(Offset, Effects)>,
    facts: Arc<Mutex<Facts>>,
    places: Places,
    gates: Vec<Rc<PartnerGate>>,
    carried: Rc<Carried>,
) {
    while let Some((upto, effects)) = effects.recv().await {
        if !effects.is_empty() {
            let late = facts.lock().rng.u64(0..4_000);
            tokio::time::sleep(Duration::from_micros(late)).await;
        }
        for (offset, effect) in &effects {
            if let Effect::Refused { .. } = effect {
                carried.refused.borrow_mut().insert(*offset);
            }
            if let Effect::Paused { partner } | Effect::Resumed { partner } = effect {
                let number = partner.trim_start_matches('p').parse().unwrap_or(0);
                let gate: &Rc<PartnerGate> = &gates[number];
                gate.with(|turnstile, now| match effect {
                    Effect::Paused { .. } => turnstile.pause(now),
                    _ => turnstile.resume(now),
                });
            }
            for place in &*places.borrow() {
                carry_out(*offset, effect, &place.route, place.actor.as_ref());
            }
        }
        carried.upto.set(upto);
        carried.more.notify_waiters();
    }
}

/// See the module.
pub struct Operator {
    pub facts: Arc<Mutex<Facts>>,
    pub memory: Arc<Memory>,
    pub log: FakeLog,
    pub places: Places,
    pub budgets: Rc<RefCell<BudgetTable>>,
    /// The way of orders that no attempt can race.
    pub port: Rc<LanePort>,
    pub carried: Rc<Carried>,
    pub clock: Clock,
}

/// What an order comes to.
enum Order {
    Prepared(Box<Prepared>),
    /// The limits of all budgets are others.
    Reload,
    /// A partition's actor fails, and is built again.
    Rebuild,
}

fn prepared(items: Vec<Item>, setting: Option<Setting>) -> Option<Order> {
    if items.is_empty() && setting.is_none() {
        return None;
    }
    Some(Order::Prepared(Box::new(Prepared {
        who: "kim".into(),
        why: "asked".into(),
        words: String::new(),
        items,
        unmet: Default::default(),
        setting,
        report: Default::default(),
    })))
}

fn item(at: RoutePartition, id: MessageId, expected: Found, then: Then) -> Item {
    let (named, reason) = (Touched::default(), String::new());
    Item {
        at,
        id,
        expected,
        then,
        named,
        reason,
    }
}

impl Operator {
    /// Gives orders until the life ends; once everything is to come to its end only what lets it go on.
    pub async fn work(self) {
        loop {
            let wait = self.facts.lock().rng.u64(1..60);
            tokio::time::sleep(Duration::from_millis(wait)).await;
            let mends = self.facts.lock().mends;
            let order = if mends { self.mend() } else { self.think() };
            match order {
                Some(Order::Prepared(prepared)) => {
                    let pause = self.facts.lock().rng.u64(0..6_000);
                    tokio::time::sleep(Duration::from_micros(pause)).await;
                    self.give(*prepared).await;
                }
                Some(Order::Reload) => self.reload(),
                Some(Order::Rebuild) => self.rebuild().await,
                None => {}
            }
        }
    }

    /// Lets go on what stands.
    fn mend(&self) -> Option<Order> {
        let state = self.memory.state.lock();
        let setting = match (state.paused.keys().next(), state.stopped.keys().next()) {
            (Some(partner), _) => Setting::Resume(partner.clone()),
            (None, Some(route)) => Setting::ResumeRoute(*route),
            (None, None) => return None,
        };
        drop(state);
        prepared(Vec::new(), Some(setting))
    }

    /// Makes an order up from what the fold knows now.
    fn think(&self) -> Option<Order> {
        let state = self.memory.state.lock();
        let facts = &mut *self.facts.lock();
        let verb = facts.rng.u8(0..20);
        match verb {
            0..3 => {
                let many = if verb == 0 { facts.rng.usize(2..9) } else { 1 };
                let marks = (0..many).filter_map(|_| self.mark(&state, facts));
                prepared(marks.collect(), None)
            }
            3..5 => {
                let (at, id) = facts.pick()?;
                let rule = self.rule(facts, at, id)?;
                prepared(Vec::new(), Some(Setting::SkipAdd(rule)))
            }
            5..7 => {
                let rules: Vec<u64> = state.skips.keys().copied().collect();
                let rule = *pick(facts, &rules)?;
                prepared(Vec::new(), Some(Setting::SkipRemove(rule)))
            }
            7..10 => {
                let dead = closed(&state, |s| {
                    matches!(s, MessageState::Dead | MessageState::Skipped)
                });
                let (at, id) = *pick(facts, &dead)?;
                let expected = Found::of(&state, at, id)?;
                let (Found::Dead(round) | Found::Skipped(round)) = expected else {
                    return None;
                };
                let then = match (verb, expected) {
                    (7, Found::Dead(_)) => Then::Drop,
                    _ => Then::Open {
                        idempotency_key: idempotency_key(id, round + 1),
                    },
                };
                prepared(vec![item(at, id, expected, then)], None)
            }
            10..13 => {
                let parked = closed(&state, |s| *s == MessageState::Parked);
                let (at, id) = *pick(facts, &parked)?;
                let expected = Found::of(&state, at, id)?;
                let Found::Parked(round) = expected else {
                    return None;
                };
                let then = match verb {
                    10 => Then::Mark { offset: 0 },
                    11 => Then::Open {
                        idempotency_key: idempotency_key(id, round + 1),
                    },
                    _ => Then::Open {
                        idempotency_key: self.same_key(&state, facts, at, id)?,
                    },
                };
                prepared(vec![item(at, id, expected, then)], None)
            }
            13..15 => {
                let forgets = |facts: &mut Facts| {
                    let (at, id) = facts.pick()?;
                    let expected = Found::of(&state, at, id)?;
                    let finished = self.memory.finished.lock().contains_key(&(at, id));
                    let fits = finished && !matches!(expected, Found::Parked(_));
                    fits.then(|| item(at, id, expected, Then::Forget))
                };
                let found = (0..FORGET_TRIES).find_map(|_| forgets(facts))?;
                prepared(vec![found], None)
            }
            15 => {
                let partner = format!("p{}", facts.rng.usize(0..facts.scenario.partners.len()));
                prepared(Vec::new(), Some(Setting::Pause(partner)))
            }
            16 | 17 => {
                drop(state);
                self.mend()
            }
            18 => Some(Order::Reload),
            _ => Some(Order::Rebuild),
        }
    }

    fn mark(&self, state: &LaneState, facts: &mut Facts) -> Option<Item> {
        let (at, id) = facts.pick()?;
        let expected = Found::of(state, at, id)?;
        let finished = self.memory.finished.lock().get(&(at, id)).copied();
        let done = matches!(finished, Some(FinishedState::Delivered | FinishedState::Marked));
        let parked = matches!(expected, Found::Parked(_));
        (!done && !parked).then(|| item(at, id, expected, Then::Mark { offset: 0 }))
    }

    fn rule(&self, facts: &mut Facts, at: RoutePartition, id: MessageId) -> Option<SkipRule> {
        let message = facts.messages.get(&at)?.iter().find(|m| m.id == id)?.clone();
        let matches = match (&message.key_text, facts.rng.bool()) {
            (Some(key), true) => SkipMatch::Key(key.clone().into()),
            _ => SkipMatch::Id(message.readable.clone()),
        };
        let partner = facts.rng.bool().then(|| format!("p{}", at.route.0));
        Some(SkipRule {
            rule: 0,
            topic: "t".into(),
            partner,
            matches,
            reason: "flood".into(),
            made: self.clock.now(),
            expires: None,
        })
    }

    /// The Idempotency-Key of the round that was parked.
    fn same_key(
        &self,
        state: &LaneState,
        facts: &Facts,
        at: RoutePartition,
        id: MessageId,
    ) -> Option<String> {
        let (ledger, _) = state.partitions.get(&at)?.messages.get(&id)?.payload?;
        let kept = payload::kept(&self.log, facts.lane, ledger).ok()?;
        Some(kept.kept.idempotency_key)
    }

    /// Settles an order, writes it, and waits for it.
    async fn give(&self, prepared: Prepared) {
        let entries = {
            let state = self.memory.state.lock();
            prepared
                .settle(&state, self.clock.now(), 0..prepared.items.len())
                .entries
        };
        if entries.is_empty() {
            return;
        }
        self.asked(&entries);
        let (told, mut offsets) = mpsc::unbounded_channel();
        let mut written = 0;
        for (place, body) in entries.iter().enumerate() {
            let told = told.clone();
            let told = Box::new(move |offset| {
                let _ = told.send((place, offset));
            });
            let marked = match body {
                Body::Command(c) => match c.action {
                    Action::Mark { at, id, .. } => Some((at, id)),
                    _ => None,
                },
                _ => None,
            };
            match marked {
                Some((at, id)) => {
                    let places = self.places.borrow();
                    let Some(at) = places.iter().find(|p| p.route.at == at) else {
                        continue;
                    };
                    let began = at.route.on_wire.borrow().contains(&id);
                    let port = &at.route.partner.port;
                    if !began && claim_here(&at.route.orders, port, id, body.clone(), told) {
                        written += 1;
                    }
                }
                None => {
                    self.port.outcome_told(body.clone(), told);
                    written += 1;
                }
            }
        }
        self.port.flush();
        let mut took = Vec::new();
        for _ in 0..written {
            let Some((place, offset)) = offsets.recv().await else {
                return;
            };
            while self.carried.upto.get() <= offset {
                self.carried.more.notified().await;
            }
            if !self.carried.refused.borrow_mut().remove(&offset) {
                took.push(place);
            }
        }
        // Sometimes the answer is lost: then nobody may rely on it.
        let facts = &mut *self.facts.lock();
        if facts.rng.u8(0..4) > 0 {
            for place in took {
                facts.answered(&entries[place]);
            }
        }
    }

    /// From here on what was promised before may be undone.
    fn asked(&self, entries: &[Body]) {
        let facts = &mut *self.facts.lock();
        for body in entries {
            if let Some(name) = about(body) {
                facts.ordered(name);
            }
            if let Body::Command(c) = body {
                match &c.action {
                    Action::SkipRemove { rule } => drop(facts.rules.remove(rule)),
                    Action::SkipAdd(rule) => drop(facts.rules.remove(&rule.rule)),
                    Action::Resume { partner, .. } => drop(facts.paused.remove(partner)),
                    _ => {}
                }
            }
        }
    }

    /// The budgets' rates are changed, as a node does when its configuration is read again.
    fn reload(&self) {
        let (limit, partners) = {
            let facts = &mut *self.facts.lock();
            let Some(limit) = facts.scenario.limit.clone() else {
                return;
            };
            let by = facts.rng.u64(1..4);
            let limit = changed(&limit, by);
            facts.limits.push((simulated::now(), limit.clone()));
            (limit, facts.scenario.clone())
        };
        let (now, used) = (self.clock.now(), self.memory.state.lock().used.clone());
        let table = &mut *self.budgets.borrow_mut();
        for partner in 0..partners.partners.len() {
            let budget = partners.budget(partner);
            let changed = table.set(budget, &limit, now).expect("a limit that can be set");
            if changed.needs_history {
                table.restore(budget, &used, now);
            }
        }
    }

    /// A partition's actor ends, and another one begins from the fold: as its supervisor does it.
    async fn rebuild(&self) {
        let number = {
            let places = self.places.borrow();
            self.facts.lock().rng.usize(0..places.len())
        };
        let (route, earlier, make) = {
            let place = &mut self.places.borrow_mut()[number];
            (place.route.clone(), place.actor.take(), place.make.clone())
        };
        if let Some(earlier) = earlier {
            earlier.do_send(Stop);
            while earlier.connected() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        let current = {
            let place = &mut self.places.borrow_mut()[number];
            place.number += 1;
            place.number
        };
        route.current.set(current);
        let port = &route.partner.port;
        port.flush();
        while !route.on_wire.borrow().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        port.outcome(nothing_new(&self.memory.state.lock(), route.at));
        port.flush();
        let last = port.last_outcome();
        while port.folded() < last {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // An order that came meanwhile may have had it overtaken, too.
        route.current.set(current);
        let told = format!("{:?} is built again", route.at);
        self.facts.lock().tell(|| told);
        let start = Start::of(&self.memory.state.lock(), route.at, route.partner.config.on_doubt);
        let actor: Addr<PartitionActor<SimSink>> = PartitionActor::new(make(start)).start();
        self.places.borrow_mut()[number].actor = Some(actor);
    }
}

/// The message that an entry is about.
fn about(body: &Body) -> Option<(RoutePartition, MessageId)> {
    match body {
        Body::Opened(o) => Some((o.at, o.id)),
        Body::Command(c) => match c.action {
            Action::Mark { at, id, .. } | Action::Forget { at, id } | Action::Drop { at, id } => {
                Some((at, id))
            }
            _ => None,
        },
        _ => None,
    }
}

/// The limit with other counts.
fn changed(limit: &LimitConfig, by: u64) -> LimitConfig {
    let rates = limit.rates.iter().map(|rate| match rate {
        Rate::Sliding { count, window } => Rate::Sliding {
            count: (count * by / 2).max(1),
            window: *window,
        },
        other => other.clone(),
    });
    LimitConfig {
        rates: rates.collect(),
        ..limit.clone()
    }
}

fn pick<'a, T>(facts: &mut Facts, all: &'a [T]) -> Option<&'a T> {
    (!all.is_empty()).then(|| &all[facts.rng.usize(0..all.len())])
}

fn closed(state: &LaneState, which: impl Fn(&MessageState) -> bool) -> Vec<(RoutePartition, MessageId)> {
    let all = state.messages().filter(|(_, _, m)| which(&m.state) && !m.dropped);
    let mut all: Vec<_> = all.map(|(at, id, _)| (at, id)).collect();
    // The fold's own order differs from run to run.
    all.sort_unstable();
    all
}

/// A pause, as the oracle knows it: requests that have their slot already may still start for a moment.
pub const PAUSE_GRACE: Duration = Duration::from_millis(60);
