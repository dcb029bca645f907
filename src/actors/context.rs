//! What the actors of one partner, and of one route partition, share on their arbiter.

use super::gate::PartnerGate;
use super::item::Item;
use super::lines::LineRules;
use super::memory::MemoryShare;
use crate::clock::Clock;
use crate::config::{LedgerConfig, PartnerConfig};
use crate::core::flood::FloodGuard;
use crate::core::types::{MessageId, RoutePartition};
use crate::ledger::lane::LanePort;
use crate::telemetry::metrics::PartnerMetrics;
use actix::prelude::*;
use hashbrown::HashSet;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// One partner, on the arbiter where all its work is done.
pub struct PartnerContext<S> {
    /// Its name.
    pub name: Arc<str>,
    /// Its settings.
    pub config: Arc<PartnerConfig>,
    /// Bounds of what is kept in the ledger.
    pub ledger: LedgerConfig,
    /// The way to it.
    pub sink: S,
    /// The way into the lane.
    pub port: Rc<LanePort>,
    /// Who may start when.
    pub gate: Rc<PartnerGate>,
    /// Bytes held by its routes.
    pub memory: MemoryShare,
    /// What is counted.
    pub metrics: PartnerMetrics,
    /// The time.
    pub clock: Clock,
}

/// One partition of one route.
pub struct RouteContext<S> {
    /// Which.
    pub at: RoutePartition,
    /// The topic's name.
    pub topic: Arc<str>,
    /// The number of its queue at the gate.
    pub queue: u32,
    /// Its messages on their way to a start slot.
    pub approach: Approach,
    /// The partner.
    pub partner: Rc<PartnerContext<S>>,
    /// Number of the partition's actor that may begin attempts. What another one handed out and has no intent yet is
    /// given up: the actor that was built again has it, too.
    pub current: Cell<u64>,
    /// Messages with an attempt between intent and outcome in this process. It outlives the partition's actor: one
    /// that is built again waits until the requests of the one before have come to their end (M13 of the protocol:
    /// a doubt is one only when the request object is really gone).
    pub on_wire: RefCell<HashSet<MessageId>>,
    /// Stops the route when its messages die one after the other; all its partitions share it.
    pub flood: Rc<RefCell<FloodGuard>>,
    /// How its messages are named in log lines, and which are sampled.
    pub lines: LineRules,
    /// Figures that others read.
    pub figures: Arc<RouteFigures>,
}

impl<S> RouteContext<S> {
    /// Whether the partition's actor that handed this message out is the present one.
    #[inline]
    pub fn is_current(&self, item: &Item) -> bool {
        self.current.get() == item.owner
    }
}

/// Asks a partition's actor to hand out more messages: few of its own wait at the gate.
#[derive(Message, Debug, Clone, Copy)]
#[rtype(result = "()")]
pub struct Refill;

/// How many messages of one route partition have been handed out and have no start slot yet. A few must stand at the
/// gate, so that a place that frees is taken at once and queues get fair turns. Each one more costs memory that is
/// cold by the time its turn comes: with 128 a partition instead of 16 a delivery took 8 % more CPU.
pub struct Approach {
    /// Most at once.
    bound: usize,
    waiting: Cell<usize>,
    /// The partition has more to hand out.
    more: Cell<bool>,
    refill: RefCell<Option<Recipient<Refill>>>,
}

impl Approach {
    /// With room for so many.
    pub fn new(bound: usize) -> Self {
        Self {
            bound: bound.max(1),
            waiting: Cell::new(0),
            more: Cell::new(false),
            refill: RefCell::new(None),
        }
    }

    /// The partition's actor, which is told when there is room again.
    pub fn serves(&self, partition: Recipient<Refill>) {
        *self.refill.borrow_mut() = Some(partition);
    }

    /// Whether one more may set out. If not, [`Refill`] follows.
    pub fn has_room(&self) -> bool {
        let room = self.waiting.get() < self.bound;
        self.more.set(!room);
        room
    }

    /// One more sets out; whoever has it in hand makes an [`Approaching`] of it.
    pub fn set_out(&self) {
        self.waiting.set(self.waiting.get() + 1);
    }

    fn arrived(&self) {
        let waiting = self.waiting.get() - 1;
        self.waiting.set(waiting);
        if waiting <= self.bound / 2
            && self.more.replace(false)
            && let Some(partition) = &*self.refill.borrow()
        {
            // One message at a time: `more` is set again only by its handler.
            partition.do_send(Refill);
        }
    }
}

/// A message that set out; it has arrived when this is dropped.
pub struct Approaching<S>(Rc<RouteContext<S>>);

impl<S> Approaching<S> {
    /// Of a message that [`Approach::set_out`] counted.
    pub fn of(route: Rc<RouteContext<S>>) -> Self {
        Self(route)
    }
}

impl<S> Drop for Approaching<S> {
    fn drop(&mut self) {
        self.0.approach.arrived();
    }
}

/// Figures of one route partition, readable from any thread.
#[derive(Debug, Default)]
pub struct RouteFigures {
    /// Every record before this offset is finished.
    pub position: AtomicU64,
    /// Next offset to be read.
    pub read: AtomicU64,
    /// Messages queued or in hand.
    pub queued: AtomicU64,
    /// Messages that wait for a retry or a look-up.
    pub waiting: AtomicU64,
    /// Keys busy.
    pub busy_keys: AtomicU64,
    /// Messages in the hands of keys' actors.
    pub in_hand: AtomicU64,
}
