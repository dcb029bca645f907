//! Writing to a lane: group commit, seen from the arbiters.
//!
//! Each arbiter has one [`LanePort`]: entries are encoded where they arise, gathered while the batch before is being
//! made durable, and handed to the log as the next one. Two streams enter a port: *outcomes* (and positions, commands:
//! whatever must still fit when the disk is full) and *intents* (refused when it is). Both keep the order in which they
//! came, so an intent never overtakes the outcome of the attempt before it.
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
//! Intents are refused too while the lane's owner says so ([`Lane::refuse`]): the store of delivered IDs takes nothing.
//!
//! What is kept counts in [`Lane::backlog`] and [`Lane::backlog_bytes`], and readers pause while either is high (I6).
//!
//! A [`Hold`] stops all ports for a moment: what they are given gathers, nothing is lost. The lane's owner then folds
//! what is still on its way and writes what must be true of the lane's very end: entries carried before a trim.
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
use crate::core::ledger::codec;
use crate::core::ledger::entry::{Body, Entry};
use crate::core::types::{LifeId, Offset, Tenure};
use crate::log::{Batch, Log, LogError, PartitionId};
use parking_lot::{Mutex, RwLock};
pub use port::{Durable, LanePort, Told};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::mpsc;

/// A batch takes no further entry that would make it larger than this; one that is larger (a kept payload) stands
/// alone. Half of what the log takes at once with the smallest segments that can be configured.
const BATCH_BYTES: usize = 128 * 1024;

/// Entries that are durable, in the order of the lane. One without entries says that the log did not take a batch:
/// whoever waits for [`Lane::in_log`] looks again.
#[derive(Debug)]
pub struct Committed {
    /// Offset of the first one.
    pub base: Offset,
    /// The entries; their offsets follow each other.
    pub entries: Vec<Entry>,
    /// From handing them to the log to its answer.
    pub took: Duration,
    /// Where to note that they are folded.
    receipt: Receipt,
}

impl Committed {
    /// To be called when the entries are folded and the dedup store has taken them.
    pub fn folded(self, lane: &Lane) {
        let entries = self.entries.len() as u64;
        lane.shared.in_log.fetch_sub(entries, Ordering::Relaxed);
        lane.shared.forget(entries, self.receipt.bytes);
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
    /// Bytes that the entries were counted with.
    bytes: u64,
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
    /// Bytes that they hold, about.
    backlog_bytes: AtomicU64,
    /// Those of them that were handed to the log.
    in_log: AtomicU64,
    /// Whether the ports keep what they have. Read for as long as it takes to hand something over.
    held: RwLock<bool>,
    ports: Mutex<Vec<Weak<port::Shared>>>,
    /// Why the lane's owner lets no intent in, if so; the flag is asked for each batch.
    refused: Mutex<Option<String>>,
    is_refused: AtomicBool,
    fatal: Box<dyn Fn(LogError) + Send + Sync>,
}

impl LaneShared {
    /// So many entries are folded, or were refused.
    fn forget(&self, entries: u64, bytes: u64) {
        self.backlog.fetch_sub(entries, Ordering::Relaxed);
        self.backlog_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
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
            backlog_bytes: AtomicU64::new(0),
            in_log: AtomicU64::new(0),
            held: RwLock::new(false),
            ports: Mutex::default(),
            refused: Mutex::default(),
            is_refused: AtomicBool::new(false),
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

    /// Entries appended to a port but not folded yet, those included that the log does not take at present: readers
    /// pause while it is high (I6).
    pub fn backlog(&self) -> u64 {
        self.shared.backlog.load(Ordering::Relaxed)
    }

    /// Bytes that [`Lane::backlog`] holds, about: entries that keep a payload are as large as that, twice, since the log
    /// needs them encoded.
    pub fn backlog_bytes(&self) -> u64 {
        self.shared.backlog_bytes.load(Ordering::Relaxed)
    }

    /// Entries handed to the log and not folded yet.
    pub fn in_log(&self) -> u64 {
        self.shared.in_log.load(Ordering::Relaxed)
    }

    /// Stops all ports until the hold is dropped. What was handed to the log before is still on its way: wait until
    /// [`Lane::in_log`] is zero. One at a time: the lane's owner alone does this.
    pub fn hold(&self) -> Hold {
        *self.shared.held.write() = true;
        Hold { lane: self.clone() }
    }

    /// Lets no intent in for this reason, or lets them in again. Outcomes go on as before.
    pub fn refuse(&self, why: Option<String>) {
        let mut refused = self.shared.refused.lock();
        self.shared.is_refused.store(why.is_some(), Ordering::Release);
        *refused = why;
    }

    /// Whether the lane's owner lets no intent in.
    pub fn is_refused(&self) -> bool {
        self.shared.is_refused.load(Ordering::Acquire)
    }

    /// Why no attempt may start at present, if so: the log has no room, or the lane's owner says so.
    pub fn refuses(&self) -> Option<String> {
        let own = || self.is_refused().then(|| self.shared.refused.lock().clone());
        self.shared.log.refuses().or_else(|| own().flatten())
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

/// See [`Lane::hold`].
pub struct Hold {
    lane: Lane,
}

impl Hold {
    /// Appends entries and waits until they are durable; large ones in several batches. They do not go to the feed:
    /// fold them at their offsets, given with each batch in `written`, before the hold ends.
    ///
    /// # Errors
    /// As the log says; what is in `written` is durable all the same.
    pub async fn write(
        &self,
        bodies: Vec<Body>,
        written: &mut Vec<(Offset, Vec<Entry>)>,
    ) -> Result<(), LogError> {
        let shared = &self.lane.shared;
        let now = shared.clock.now();
        let (mut batch, mut entries, mut bytes) = (Batch::from_reserve(), Vec::new(), Vec::new());
        for body in bodies {
            let entry = Entry {
                tenure: shared.tenure,
                body,
            };
            bytes.clear();
            codec::encode(&entry, &mut bytes);
            if batch.bytes() + bytes.len() > BATCH_BYTES && !entries.is_empty() {
                let full = std::mem::replace(&mut batch, Batch::from_reserve());
                written.push(self.append(full, std::mem::take(&mut entries)).await?);
            }
            batch.push(shared.partition, now, None, &bytes, &[]);
            entries.push(entry);
        }
        if !entries.is_empty() {
            written.push(self.append(batch, entries).await?);
        }
        Ok(())
    }

    async fn append(&self, batch: Batch, entries: Vec<Entry>) -> Result<(Offset, Vec<Entry>), LogError> {
        let (done, result) = tokio::sync::oneshot::channel();
        // Whoever asked may be gone.
        let tell = Box::new(move |r| drop(done.send(r)));
        self.lane.shared.log.append(batch, tell);
        let appended = result.await.map_err(|_| LogError::Closed)??;
        Ok((appended.bases.first().map_or(0, |b| b.1), entries))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let shared = &self.lane.shared;
        *shared.held.write() = false;
        shared.ports.lock().retain(|port| match port.upgrade() {
            Some(port) => {
                port.wake();
                true
            }
            None => false,
        });
    }
}

/// Why an entry did not become durable.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LaneError {
    /// The disk is full: no attempt may start; outcomes still fit. Try again later.
    #[error("the ledger has no room for new intents: {0}")]
    NoRoom(LogError),
}
