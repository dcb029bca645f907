//! Writing to a lane: group commit, seen from the arbiters.
//!
//! Each arbiter has one [`LanePort`]: entries are encoded where they arise, gathered while the batch before is being
//! made durable, and handed to the log as the next one. Two streams enter a port: *outcomes* (and positions, commands:
//! whatever must still fit when the disk is full) and *intents* (refused when it is). In a batch outcomes stand first,
//! so an intent never overtakes the outcome of the attempt before it.
//!
//! A port has one batch on its way at a time: if the log does not take it, nothing behind it was taken either, and it
//! is appended again as it was ([`port`]). The log has
//!
//! | answer | outcomes | intents |
//! |---|---|---|
//! | too much waiting (`Busy`) | kept, appended again | kept, appended again |
//! | no room (`NoRoom`) | appended again by themselves, from the reserve, until they fit | refused: no attempt may start |
//! | failed, closed | the process ends | the process ends |
//!
//! What is kept counts in [`Lane::backlog`], and readers pause while that is high (I6).
//!
//! What the log has made durable goes, in offset order, to the [`Committed`] feed, from which the `LedgerActor`
//! folds it. The caller of an intent waits for [`LanePort::durable`]; nobody waits for an outcome (its position
//! does not move before it is folded: I1).
//!
//! After a restart nothing of this exists; the lane is restored by `ledger::restore`.

mod port;
#[cfg(test)]
mod tests;

use crate::clock::Clock;
use crate::core::ledger::entry::Entry;
use crate::core::types::{LifeId, Offset, Tenure};
use crate::log::{Log, LogError, PartitionId};
pub use port::{Durable, LanePort};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::mpsc;

/// Entries that are durable, in the order of the lane.
#[derive(Debug)]
pub struct Committed {
    /// Offset of the first one.
    pub base: Offset,
    /// The entries; their offsets follow each other.
    pub entries: Vec<Entry>,
    /// Where to note that they are folded.
    receipt: Receipt,
}

impl Committed {
    /// To be called when the entries are folded and the dedup store has taken them.
    pub fn folded(self, lane: &Lane) {
        lane.shared
            .backlog
            .fetch_sub(self.entries.len() as u64, Ordering::Relaxed);
        self.receipt
            .port
            .folded
            .store(self.receipt.outcomes, Ordering::Release);
    }
}

#[derive(Debug)]
struct Receipt {
    port: Arc<port::Shared>,
    /// Number of the last outcome of its port up to here.
    outcomes: u64,
}

/// A lane that this process owns. Cheap to clone; make one [`LanePort`] an arbiter from it.
#[derive(Clone)]
pub struct Lane {
    shared: Arc<LaneShared>,
}

struct LaneShared {
    log: Arc<dyn Log>,
    partition: PartitionId,
    tenure: Tenure,
    life: LifeId,
    clock: Clock,
    feed: mpsc::UnboundedSender<Committed>,
    /// Entries appended and not folded yet. Bounded by [`Lane::backlog`] being asked before records are read.
    backlog: AtomicU64,
    fatal: Box<dyn Fn(LogError) + Send + Sync>,
}

impl Lane {
    /// A lane on this partition of the log, under this tenure. `fatal` is called when the log has failed for
    /// good: the process must end (nobody whose entry was not acknowledged may act on it).
    pub fn new(
        log: Arc<dyn Log>,
        partition: PartitionId,
        tenure: Tenure,
        life: LifeId,
        clock: Clock,
        fatal: Box<dyn Fn(LogError) + Send + Sync>,
    ) -> (Lane, mpsc::UnboundedReceiver<Committed>) {
        let (feed, receiver) = mpsc::unbounded_channel();
        let shared = LaneShared {
            log,
            partition,
            tenure,
            life,
            clock,
            feed,
            backlog: AtomicU64::new(0),
            fatal,
        };
        (
            Lane {
                shared: Arc::new(shared),
            },
            receiver,
        )
    }

    /// The run of this process.
    pub fn life(&self) -> LifeId {
        self.shared.life
    }

    /// The present ownership.
    pub fn tenure(&self) -> Tenure {
        self.shared.tenure
    }

    /// Entries appended to a port but not folded yet, those included that the log does not take at present: readers
    /// pause while it is high (I6).
    pub fn backlog(&self) -> u64 {
        self.shared.backlog.load(Ordering::Relaxed)
    }

    /// The log under the lane.
    pub fn log(&self) -> &Arc<dyn Log> {
        &self.shared.log
    }

    /// The lane's partition.
    pub fn partition(&self) -> PartitionId {
        self.shared.partition
    }
}

/// Why an entry did not become durable.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LaneError {
    /// The disk is full: no attempt may start; outcomes still fit. Try again later.
    #[error("the ledger has no room for new intents: {0}")]
    NoRoom(LogError),
    /// The log has failed for good; the process is ending.
    #[error("the ledger cannot be written any more: {0}")]
    Failed(LogError),
}
