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
