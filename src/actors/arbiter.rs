//! What an arbiter thread holds for the actors on it: its port into the lane, its partners, their routes.
//!
//! These are `Rc`s and never leave the thread, so whoever starts an actor there does it by a closure that runs on the
//! thread ([`on`]). Everything of a partner, and of partners that share a budget, is on one arbiter: a message to
//! another core costs more than a delivery's share of all other messages.

use super::context::{Orders, PartnerContext, RouteContext};
use super::partition::PartitionActor;
use crate::core::flood::FloodGuard;
use crate::core::types::{RouteId, RoutePartition};
use crate::ledger::lane::LanePort;
use crate::sink::http::HttpSink;
use actix::{Addr, ArbiterHandle};
use hashbrown::HashMap;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

/// See the module.
#[derive(Default)]
pub struct Local {
    /// The way into the lane.
    pub port: Option<Rc<LanePort>>,
    /// Partners by name.
    pub partners: HashMap<Arc<str>, Rc<PartnerContext<HttpSink>>>,
    /// Routes that have been started here; they outlive their actors.
    pub routes: HashMap<RoutePartition, Rc<RouteContext<HttpSink>>>,
    /// What orders say of the routes' messages; may be there before the route.
    pub orders: HashMap<RoutePartition, Rc<Orders>>,
    /// The actors of the routes' partitions.
    pub partitions: HashMap<RoutePartition, Running>,
    /// Flood guards of the routes.
    pub floods: HashMap<RouteId, Rc<RefCell<FloodGuard>>>,
}

/// The actor of a route's partition: at most one runs, whoever is its parent (I2).
#[derive(Default)]
pub struct Running {
    /// Rises with each start; one that finds another number than its own has been overtaken.
    pub start: u64,
    /// The one that runs, or ran last.
    pub actor: Option<Addr<PartitionActor<HttpSink>>>,
    /// The one before, which was told to stop. Every later start waits for its end, not only the one that told it:
    /// that one may be overtaken meanwhile.
    pub leaving: Option<Addr<PartitionActor<HttpSink>>>,
}

impl Running {
    /// Whether an earlier actor still runs.
    pub fn is_left(&self) -> bool {
        self.leaving.as_ref().is_some_and(Addr::connected)
    }
}

thread_local! {
    static LOCAL: RefCell<Local> = RefCell::new(Local::default());
}

/// Looks at, or changes, what this arbiter holds.
pub fn local<R>(f: impl FnOnce(&mut Local) -> R) -> R {
    LOCAL.with(|local| f(&mut local.borrow_mut()))
}

/// Runs a closure on an arbiter and waits for its result. None: the arbiter is gone.
pub async fn on<R: Send + 'static>(
    arbiter: &ArbiterHandle,
    f: impl FnOnce() -> R + Send + 'static,
) -> Option<R> {
    let (answer, result) = tokio::sync::oneshot::channel();
    let sent = arbiter.spawn_fn(move || {
        // The asker is gone only when the node is ending.
        let _ = answer.send(f());
    });
    if sent { result.await.ok() } else { None }
}
