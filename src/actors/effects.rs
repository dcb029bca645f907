//! Carries the effects of operators' orders from the ledger's actor to partitions and gates, and reports back.
//!
//! ```text
//!  order ─► entry ─► lane ─► LedgerActor folds ─► Outlet ─► each arbiter: carry_out ─► Carried ─► the handler of the order
//! ```
//!
//! Every arbiter gets the effects in the order of the lane and takes those of its routes. Once all arbiters have acted,
//! [`Carried`] reports the offset. A handler may wait for it or leave: what is carried out stays the same.
//!
//! An order to call a message delivered can race the message's own first attempt: the ledger does not know a message
//! that was never tried. So its entry is appended on the partner's arbiter, by the port that intents use, and bars
//! the message in that moment ([`claim`]): an intent is either asked for before, and the order is refused, or never.
//! The fold decides in the order of the lane, and its effect ends the bar.
//!
//! After a restart nothing of this exists; partitions begin from the fold.

use super::arbiter::{Local, local};
use super::context::{Orders, RouteContext};
use super::partition::{Follow, PartitionActor};
use crate::core::ledger::entry::Body;
use crate::core::ledger::fold::{Effect, Effects};
use crate::core::resolve::Skips;
use crate::core::types::{MessageId, Offset, RoutePartition};
use crate::ledger::keeper::Keeper;
use crate::ledger::lane::{LanePort, Told};
use crate::sink::Sink;
use actix::{Addr, ArbiterHandle};
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use tokio::sync::{mpsc, oneshot};

/// Refused entries that are remembered for whoever gave the order: more than one order has.
const REFUSED_KEPT: usize = 16_384;

/// Up to where effects were carried out. Readable from any thread.
#[derive(Debug, Default)]
pub struct Carried {
    state: Mutex<CarriedState>,
    changed: Condvar,
    awaited: AtomicUsize,
}

#[derive(Debug, Default)]
struct CarriedState {
    upto: Offset,
    /// Offsets of entries that changed nothing.
    refused: BTreeSet<Offset>,
}

/// Somebody waits for an entry; while one of these lives every turn of folding is reported.
#[derive(Debug)]
pub struct Awaiting(Arc<Carried>);

impl Carried {
    /// To be held from before an entry is appended until it is waited for.
    pub fn awaiting(self: &Arc<Self>) -> Awaiting {
        self.awaited.fetch_add(1, Ordering::SeqCst);
        Awaiting(self.clone())
    }

    fn publish(&self, upto: Offset, refused: Vec<Offset>) {
        let mut state = self.state.lock();
        state.upto = state.upto.max(upto);
        state.refused.extend(refused);
        while state.refused.len() > REFUSED_KEPT {
            state.refused.pop_first();
        }
        drop(state);
        self.changed.notify_all();
    }
}

impl Awaiting {
    /// Waits, blocking, until the entry at this offset is folded and its effects are carried out. Says whether the
    /// fold refused it; none: not until then.
    pub fn wait(&self, offset: Offset, until: Instant) -> Option<bool> {
        let mut state = self.0.state.lock();
        while state.upto <= offset {
            if self.0.changed.wait_until(&mut state, until).timed_out() && state.upto <= offset {
                return None;
            }
        }
        Some(state.refused.contains(&offset))
    }
}

impl Drop for Awaiting {
    fn drop(&mut self) {
        self.0.awaited.fetch_sub(1, Ordering::SeqCst);
    }
}

type Folded = (Offset, Effects);

/// Where the ledger's actor puts effects. Outlives the actor.
#[derive(Clone, Debug)]
pub struct Outlet {
    /// Bounded by the orders, of which one is written at a time, in parts.
    sender: mpsc::UnboundedSender<Folded>,
    carried: Arc<Carried>,
}

/// Where they come out.
#[derive(Debug)]
pub struct Inlet {
    receiver: mpsc::UnboundedReceiver<Folded>,
    carried: Arc<Carried>,
}

/// Both ends.
pub fn channel() -> (Outlet, Inlet) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let carried = Arc::new(Carried::default());
    let outlet = Outlet {
        sender,
        carried: carried.clone(),
    };
    (outlet, Inlet { receiver, carried })
}

impl Outlet {
    /// Up to where they were carried out.
    pub fn carried(&self) -> &Arc<Carried> {
        &self.carried
    }

    /// Hands on what follows from what is folded.
    pub fn hand_on(&self, keeper: &Keeper) {
        let (upto, effects) = keeper.take_effects();
        if !effects.is_empty() || self.carried.awaited.load(Ordering::SeqCst) > 0 {
            // The other end goes only when the node ends.
            let _ = self.sender.send((upto, effects));
        }
    }
}

impl Inlet {
    /// Carries effects out until the other end is gone. `hand` gives them to all whom they may concern, at once, and
    /// returns who answers when they have acted.
    pub async fn run(mut self, hand: impl Fn(Arc<Effects>) -> Vec<oneshot::Receiver<()>>) {
        let mut under_way = FuturesOrdered::new();
        loop {
            tokio::select! {
                folded = self.receiver.recv() => {
                    let Some((upto, effects)) = folded else { return };
                    let refused = |(at, effect): &(Offset, Effect)| {
                        matches!(effect, Effect::Refused { .. }).then_some(*at)
                    };
                    let refused: Vec<Offset> = effects.iter().filter_map(refused).collect();
                    let answers = match effects.is_empty() {
                        true => Vec::new(),
                        false => hand(Arc::new(effects)),
                    };
                    under_way.push_back(async move {
                        for answer in answers {
                            // One that is gone has nothing to carry out.
                            let _ = answer.await;
                        }
                        (upto, refused)
                    });
                }
                Some((upto, refused)) = under_way.next() => self.carried.publish(upto, refused),
            }
        }
    }
}

/// Gives effects to these arbiters.
pub fn hand_to(arbiters: &[ArbiterHandle], effects: &Arc<Effects>) -> Vec<oneshot::Receiver<()>> {
    let hand = |arbiter: &ArbiterHandle| {
        let (done, answer) = oneshot::channel();
        let effects = effects.clone();
        arbiter.spawn_fn(move || {
            local(|local| here(local, &effects));
            // Who waits may be gone.
            let _ = done.send(());
        });
        answer
    };
    arbiters.iter().map(hand).collect()
}

/// Carries effects out for whatever lives on this arbiter.
fn here(local: &mut Local, effects: &Effects) {
    for (offset, effect) in effects {
        match effect {
            Effect::Paused { partner } | Effect::Resumed { partner } => {
                if let Some(partner) = local.partners.get(partner.as_str()) {
                    if let Effect::Resumed { .. } = effect {
                        partner.hosts.borrow_mut().resume(partner.clock.now());
                    }
                    partner.gate.with(|turnstile, now| match effect {
                        Effect::Paused { .. } => turnstile.pause(now),
                        _ => turnstile.resume(now),
                    });
                }
            }
            Effect::Opened { at, .. }
            | Effect::Settled { at, .. }
            | Effect::Marked { at, .. }
            | Effect::Forgotten { at, .. }
            | Effect::Refused { at, .. } => match local.routes.get(at) {
                Some(route) => {
                    let actor = local.partitions.get(at).and_then(|p| p.actor.as_ref());
                    carry_out(*offset, effect, route, actor);
                }
                None => {
                    if let (Some(orders), Some(id)) = (local.orders.get(at), effect.claimed()) {
                        orders.decided(id, false);
                    }
                }
            },
            Effect::SkipsChanged(_) | Effect::RouteStopped { .. } | Effect::RouteResumed { .. } => {
                for (at, route) in &local.routes {
                    let actor = local.partitions.get(at).and_then(|p| p.actor.as_ref());
                    carry_out(*offset, effect, route, actor);
                }
            }
        }
    }
}

/// Carries an effect out for a route's partition, as far as it concerns that. Without an actor the next one finds it
/// in the fold.
pub fn carry_out<S: Sink>(
    offset: Offset,
    effect: &Effect,
    route: &RouteContext<S>,
    actor: Option<&Addr<PartitionActor<S>>>,
) {
    let follow = || {
        if let Some(actor) = actor {
            // An operator's orders are few, and wait for each other.
            actor.do_send(Follow(offset, effect.clone()));
        }
    };
    match effect {
        Effect::Marked { at, id } if *at == route.at => {
            let runs = actor.is_some_and(Addr::connected);
            if !runs {
                route.overtake();
            }
            // An actor that began from the fold, or is to begin, asks the store. A bar would meet what has come since.
            route.orders.decided(*id, runs && !route.orders.knows(offset));
            follow();
        }
        Effect::Refused { at, .. } if *at == route.at => {
            if let Some(id) = effect.claimed() {
                route.orders.decided(id, false);
            }
        }
        Effect::Forgotten { at, id } if *at == route.at => {
            // It was called delivered before: a record of it that waits still, or comes now, is sent.
            if !route.orders.knows(offset) {
                route.orders.unmark(id);
            }
            follow();
        }
        Effect::Opened { at, .. } | Effect::Settled { at, .. } if *at == route.at => {
            follow();
        }
        Effect::SkipsChanged(rules) => {
            let skips = Skips::of(rules.iter(), &route.topic, &route.partner.name, &route.scope);
            route.orders.set_skips(offset, Arc::new(skips));
        }
        Effect::RouteStopped { route: which, reason } if *which == route.at.route => {
            route.flood.borrow_mut().stop(reason);
        }
        Effect::RouteResumed { route: which } if *which == route.at.route => {
            route.flood.borrow_mut().resume();
            follow();
        }
        _ => {}
    }
}

/// Appends the entry that calls a message delivered, unless an attempt of it has begun; bars the message from then on.
/// To be called on the arbiter of its partner. False: an attempt is under way, nothing was appended.
pub fn claim(at: RoutePartition, id: MessageId, body: Body, told: Told) -> bool {
    local(|local| {
        let Some(port) = &local.port else {
            return false;
        };
        let orders = local.orders.entry(at).or_default();
        let route = local.routes.get(&at);
        let began = route.is_some_and(|route| route.on_wire.borrow().contains(&id));
        !began && claim_here(orders, port, id, body, told)
    })
}

/// The same for a message of which no attempt is on the wire.
pub fn claim_here(orders: &Orders, port: &LanePort, id: MessageId, body: Body, told: Told) -> bool {
    orders.claim(id);
    port.outcome_told(body, told);
    true
}
