//! What the actors of one partner, and of one route partition, share on their arbiter.

use super::gate::PartnerGate;
use super::item::{Item, Task};
use super::lines::LineRules;
use crate::clock::Clock;
use crate::config::{LedgerConfig, PartnerConfig};
use crate::core::flood::FloodGuard;
use crate::core::hosts::Hosts;
use crate::core::message_id::IdScope;
use crate::core::resolve::Skips;
use crate::core::types::{MessageId, Offset, RoutePartition, Time};
use crate::core::waits::Parked;
use crate::ledger::lane::LanePort;
use crate::memory::MemoryShare;
use crate::sink::DoubtCause;
use crate::telemetry::metrics::PartnerMetrics;
use actix::prelude::*;
use hashbrown::{HashMap, HashSet};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

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
    /// Grants start slots for this partner.
    pub gate: Rc<PartnerGate>,
    /// Which hosts are left alone, where the record says which host it is for.
    pub hosts: RefCell<Hosts>,
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
    /// Where its message IDs are.
    pub scope: IdScope,
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
    /// What operators' orders say of its messages.
    pub orders: Rc<Orders>,
    /// Messages of this life that are in doubt and being settled, and why. It outlives the partition's actor, too:
    /// what one that is built again finds open in the ledger keeps the cause that it had.
    pub doubts: RefCell<HashMap<MessageId, DoubtCause>>,
    /// Stops the route when its messages die one after the other; all its partitions share it.
    pub flood: Rc<RefCell<FloodGuard>>,
    /// How its messages are named in log lines, and which are sampled.
    pub lines: LineRules,
    /// Figures that others read.
    pub figures: Arc<RouteFigures>,
}

/// Number of no actor: see [`RouteContext::overtake`].
const NOBODY: u64 = u64::MAX;

impl<S> RouteContext<S> {
    /// Has nothing begin that was handed out until now. There is no actor that would know what an order means for it,
    /// and the one that is built next takes it up anew.
    pub fn overtake(&self) {
        self.current.set(NOBODY);
    }

    /// Whether the partition's actor that handed this message out is the present one.
    #[inline]
    pub fn is_current(&self, item: &Item) -> bool {
        self.current.get() == item.owner
    }

    /// Whether an order that came after the message was handed out keeps it from being sent.
    #[inline]
    pub fn is_kept_back(&self, item: &Item) -> bool {
        self.orders.version.get() != item.checked && self.orders.keeps_back(item, self.partner.clock.now())
    }
}

/// What operators' orders say of the messages of one route partition. It outlives the partition's actor.
///
/// Asked when a message is handed out, and again wherever time has passed since: before its intent is asked for, and
/// before its first byte. The version tells whether anything has changed, so that the second question costs nothing.
#[derive(Debug, Default)]
pub struct Orders {
    version: Cell<u32>,
    /// Bounded by the orders, which wait for each other, and by the messages in flight that they are about.
    barred: RefCell<HashMap<MessageId, Barred>>,
    /// The partition's actor began from all entries before this one: what follows from them is known to it.
    begun_from: Cell<Offset>,
    skips: RefCell<Arc<Skips>>,
    /// The entry up to which the skip rules are known.
    skips_as_of: Cell<Offset>,
}

/// Why a message may not be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bar {
    /// The entry that calls it delivered is being written: wait for it.
    Claimed,
    /// It is called delivered.
    Marked,
}

/// What bars a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Barred {
    /// Entries that call it delivered and are not folded yet.
    claims: u32,
    /// One was folded, and took the message.
    marked: bool,
}

impl Orders {
    fn changed(&self) {
        self.version.set(self.version.get().wrapping_add(1));
    }

    /// What a message was asked against.
    pub fn version(&self) -> u32 {
        self.version.get()
    }

    fn change(&self, id: MessageId, change: impl FnOnce(&mut Barred)) {
        let mut all = self.barred.borrow_mut();
        let barred = all.entry(id).or_default();
        change(barred);
        if *barred == Barred::default() {
            all.remove(&id);
        }
    }

    /// An entry that calls this message delivered is being written.
    pub fn claim(&self, id: MessageId) {
        self.change(id, |barred| barred.claims += 1);
        self.changed();
    }

    /// Such an entry was folded: the message is called delivered from now on, or stays what it was.
    pub fn decided(&self, id: MessageId, marked: bool) {
        self.change(id, |barred| {
            // An entry of another node's, or of a stopped one's folder, came without a claim.
            barred.claims = barred.claims.saturating_sub(1);
            barred.marked |= marked;
        });
        self.changed();
    }

    /// The bar of a message, if there is one.
    pub fn bar_of(&self, id: &MessageId) -> Option<Bar> {
        let all = self.barred.borrow();
        if all.is_empty() {
            return None;
        }
        all.get(id).map(|barred| match barred.marked {
            true => Bar::Marked,
            false => Bar::Claimed,
        })
    }

    /// The record that was called delivered came to its end, or that is taken back: it must not meet a later one with
    /// the same ID.
    pub fn unmark(&self, id: &MessageId) {
        let mut all = self.barred.borrow_mut();
        if all.is_empty() {
            return;
        }
        if let Some(barred) = all.get_mut(id) {
            barred.marked = false;
            if *barred == Barred::default() {
                all.remove(id);
            }
        }
    }

    /// Keeps only those called delivered for which this is so.
    pub fn keep_marked(&self, keep: impl Fn(&MessageId) -> bool) {
        let mut all = self.barred.borrow_mut();
        if all.is_empty() {
            return;
        }
        all.retain(|id, barred| {
            barred.marked &= keep(id);
            *barred != Barred::default()
        });
    }

    /// A partition's actor begins from all entries before this one. What was called delivered before is in the store
    /// that it asks.
    pub fn begin_from(&self, folded: Offset) {
        self.begun_from.set(folded);
        self.keep_marked(|_| false);
    }

    /// Whether what follows from this entry is known to the partition's actor from its beginning.
    pub fn knows(&self, entry: Offset) -> bool {
        entry < self.begun_from.get()
    }

    /// Puts skip rules in force, unless newer ones are.
    pub fn set_skips(&self, as_of: Offset, skips: Arc<Skips>) {
        if as_of >= self.skips_as_of.get() {
            self.skips_as_of.set(as_of);
            *self.skips.borrow_mut() = skips;
            self.changed();
        }
    }

    /// Whether any skip rule is in force.
    pub fn has_skips(&self) -> bool {
        !self.skips.borrow().is_empty()
    }

    /// The rule that passes a message over, if one does. One whose earlier attempt is in doubt is not passed over:
    /// its doubt comes first.
    pub fn skipped(&self, item: &Item, now: Time) -> Option<String> {
        let skips = self.skips.borrow();
        if skips.is_empty() || !matches!(item.task, Task::Send) || item.is_unsettled() {
            return None;
        }
        let reason = skips.reason(item.place, &item.delivery.id, now);
        reason.map(str::to_owned)
    }

    #[cold]
    fn keeps_back(&self, item: &Item, now: Time) -> bool {
        self.bar_of(&item.delivery.id).is_some() || self.skipped(item, now).is_some()
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
    /// Messages in doubt that are being settled.
    pub settling: AtomicU64,
    /// Keys that wait until a doubt is settled.
    pub held_keys: AtomicU64,
    /// Why it takes up nothing more, if it has stood so for long ([`Full`](crate::core::waits::Full)); else 0.
    pub full: AtomicU8,
    /// Messages parked in this life by the partner's policy: crash, timeout, gateway.
    pub parked: [AtomicU64; 3],
}

impl RouteFigures {
    /// One more message was parked by the policy for this cause.
    pub fn parked_for(&self, cause: DoubtCause) {
        let which = match cause {
            DoubtCause::Crash => 0,
            DoubtCause::Timeout => 1,
            DoubtCause::Gateway => 2,
        };
        self.parked[which].fetch_add(1, Ordering::Relaxed);
    }

    /// Messages parked so.
    pub fn parked(&self) -> Parked {
        let [crash, timeout, gateway] = [0, 1, 2].map(|i| self.parked[i].load(Ordering::Relaxed));
        Parked {
            crash,
            timeout,
            gateway,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: MessageId = MessageId([7; 16]);

    #[test]
    fn each_claim_bars_until_it_is_decided() {
        let orders = Orders::default();
        orders.claim(ID);
        orders.claim(ID);
        orders.decided(ID, false);
        assert_eq!(orders.bar_of(&ID), Some(Bar::Claimed), "the other one");
        orders.decided(ID, true);
        assert_eq!(orders.bar_of(&ID), Some(Bar::Marked));
        // A later claim that is refused takes no mark back; nor does a later one keep what is taken back.
        orders.claim(ID);
        orders.decided(ID, false);
        assert_eq!(orders.bar_of(&ID), Some(Bar::Marked));
        orders.claim(ID);
        orders.unmark(&ID);
        assert_eq!(orders.bar_of(&ID), Some(Bar::Claimed));
        orders.decided(ID, false);
        assert_eq!(orders.bar_of(&ID), None);
    }

    #[test]
    fn an_actor_that_begins_asks_the_store_for_what_was_marked() {
        let orders = Orders::default();
        orders.claim(ID);
        orders.decided(MessageId([8; 16]), true);
        orders.begin_from(9);
        assert_eq!(orders.bar_of(&MessageId([8; 16])), None);
        assert_eq!(orders.bar_of(&ID), Some(Bar::Claimed));
        assert!(orders.knows(8) && !orders.knows(9));
    }
}
