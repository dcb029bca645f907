//! Writing to a lane: group commit, seen from the arbiters.
//!
//! Each arbiter has one [`LanePort`]: entries are encoded where they arise, gathered for one turn of the event
//! loop, and handed to the log, whose writer makes everything that waits durable with one sync. Two streams leave
//! a port: *outcomes* (and positions, commands: whatever must still fit when the disk is full) and *intents*
//! (refused when it is). Outcomes go first, so an intent never overtakes the outcome of the attempt before it.
//!
//! What the log has made durable goes, in offset order, to the [`Committed`] feed, from which the `LedgerActor`
//! folds it. The caller of an intent waits for [`LanePort::durable`]; nobody waits for an outcome (its position
//! does not move before it is folded: I1).
//!
//! A [`Hold`] stops all ports for a moment: what they are given gathers, nothing is lost. The lane's owner then folds
//! what is still on its way and writes what must be true of the lane's very end: entries carried before a trim.
//!
//! After a restart nothing of this exists; the lane is restored by `ledger::restore`.

use crate::clock::Clock;
use crate::core::ledger::codec;
use crate::core::ledger::entry::{Body, Entry};
use crate::core::types::{LifeId, Offset, Tenure};
use crate::log::{Batch, Log, LogError, PartitionId};
use parking_lot::{Mutex, RwLock};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use tokio::sync::{Notify, mpsc};

/// A batch is handed to the log early when its entries reach this many bytes (kept payloads can be large).
const EARLY_FLUSH_BYTES: usize = 1 << 20;
/// A batch takes no further entry that would make it larger than this.
const BATCH_BYTES: usize = 1 << 20;

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
        if self.receipt.stream == Stream::Outcomes {
            self.receipt
                .port
                .folded
                .store(self.receipt.last, Ordering::Release);
        }
    }
}

#[derive(Debug)]
struct Receipt {
    port: Arc<PortShared>,
    stream: Stream,
    last: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    Outcomes,
    Intents,
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
    /// Entries made durable and not folded yet. Bounded by [`Lane::backlog`] being asked before records are read.
    backlog: AtomicU64,
    /// Whether the ports keep what they have. Read for as long as it takes to hand something over.
    held: RwLock<bool>,
    /// What ports that ended during a hold still had: outcomes before intents, in the order of their ends.
    orphans: Mutex<Vec<(Arc<PortShared>, Stream, Pending)>>,
    ports: Mutex<Vec<Weak<PortShared>>>,
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
            held: RwLock::new(false),
            orphans: Mutex::default(),
            ports: Mutex::default(),
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

    /// Entries durable but not folded yet: readers pause while it is high (I6).
    pub fn backlog(&self) -> u64 {
        self.shared.backlog.load(Ordering::Relaxed)
    }

    /// Whether everything that was given to ports that have ended is durable and folded.
    pub fn is_settled(&self) -> bool {
        // In this order: what leaves the orphans is in the backlog.
        self.shared.orphans.lock().is_empty() && self.backlog() == 0
    }

    /// Stops all ports until the hold is dropped. What was handed to the log before is still on its way: wait until
    /// [`Lane::backlog`] is zero. One at a time: the lane's owner alone does this.
    pub fn hold(&self) -> Hold {
        *self.shared.held.write() = true;
        Hold { lane: self.clone() }
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
        let mut held = shared.held.write();
        for (port, stream, pending) in shared.orphans.lock().drain(..) {
            hand_over(shared, port, stream, pending);
        }
        *held = false;
        drop(held);
        shared.ports.lock().retain(|port| match port.upgrade() {
            Some(port) => {
                port.wake.notify_one();
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
    /// The log has failed for good; the process is ending.
    #[error("the ledger cannot be written any more: {0}")]
    Failed(LogError),
}

#[derive(Debug, Default)]
struct PortShared {
    outcomes: AtomicU64,
    intents: AtomicU64,
    folded: AtomicU64,
    refused: Mutex<Vec<Refused>>,
    wake: Notify,
}

/// Intents `from..=to` that the log did not take.
#[derive(Debug, Clone)]
struct Refused {
    from: u64,
    to: u64,
    error: LaneError,
}

/// How many refused ranges are remembered: their waiters have been woken long before.
const REFUSED_KEPT: usize = 64;

#[derive(Default)]
struct Pending {
    batch: Batch,
    entries: Vec<Entry>,
    first: u64,
    last: u64,
}

impl Pending {
    fn new(reserve: bool, last: u64) -> Self {
        let batch = if reserve {
            Batch::from_reserve()
        } else {
            Batch::new()
        };
        Self {
            batch,
            entries: Vec::new(),
            first: last + 1,
            last,
        }
    }
}

impl Pending {
    /// What is gathered; the next entry begins another one.
    fn take(&mut self, stream: Stream) -> Pending {
        let next = Pending::new(stream == Stream::Outcomes, self.last);
        std::mem::replace(self, next)
    }
}

struct PortState {
    outcomes: Pending,
    intents: Pending,
    /// What became too large for one batch while the lane was held.
    full_outcomes: Vec<Pending>,
    full_intents: Vec<Pending>,
    waiters: VecDeque<(u64, Waker)>,
    scratch: Vec<u8>,
}

impl PortState {
    fn of(&mut self, stream: Stream) -> (&mut Vec<Pending>, &mut Pending) {
        match stream {
            Stream::Outcomes => (&mut self.full_outcomes, &mut self.outcomes),
            Stream::Intents => (&mut self.full_intents, &mut self.intents),
        }
    }
}

/// One arbiter's way into the lane. Stays on its thread.
pub struct LanePort {
    lane: Lane,
    shared: Arc<PortShared>,
    state: RefCell<PortState>,
}

impl LanePort {
    /// Opens a port on the present arbiter and starts the task that flushes it. The task ends with the port.
    pub fn open(lane: Lane) -> Rc<LanePort> {
        let port = Rc::new(LanePort {
            lane,
            shared: Arc::new(PortShared::default()),
            state: RefCell::new(PortState {
                outcomes: Pending::new(true, 0),
                intents: Pending::new(false, 0),
                full_outcomes: Vec::new(),
                full_intents: Vec::new(),
                waiters: VecDeque::new(),
                scratch: Vec::with_capacity(512),
            }),
        });
        port.lane.shared.ports.lock().push(Arc::downgrade(&port.shared));
        let weak = Rc::downgrade(&port);
        let shared = port.shared.clone();
        actix_rt::spawn(async move {
            loop {
                shared.wake.notified().await;
                let Some(port) = weak.upgrade() else { break };
                port.flush();
                port.wake_durable();
            }
        });
        port
    }

    /// The lane behind the port.
    pub fn lane(&self) -> &Lane {
        &self.lane
    }

    /// Appends an outcome, position or command. Returns its number, for [`LanePort::folded`] and
    /// [`LanePort::outcomes_durable`].
    pub fn outcome(&self, body: Body) -> u64 {
        self.append(body, Stream::Outcomes)
    }

    /// Appends an intent. Returns its number, for [`LanePort::durable`].
    pub fn intent(&self, body: Body) -> u64 {
        self.append(body, Stream::Intents)
    }

    fn append(&self, body: Body, stream: Stream) -> u64 {
        let entry = Entry {
            tenure: self.lane.shared.tenure,
            body,
        };
        let now = self.lane.shared.clock.now();
        let (number, first, large) = {
            let state = &mut *self.state.borrow_mut();
            state.scratch.clear();
            codec::encode(&entry, &mut state.scratch);
            let pending = match stream {
                Stream::Outcomes => &mut state.outcomes,
                Stream::Intents => &mut state.intents,
            };
            // One batch is one frame of the log, and a payload may be large.
            if pending.batch.bytes() + state.scratch.len() > BATCH_BYTES && !pending.entries.is_empty() {
                let full = pending.take(stream);
                match stream {
                    Stream::Outcomes => state.full_outcomes.push(full),
                    Stream::Intents => state.full_intents.push(full),
                }
            }
            pending
                .batch
                .push(self.lane.shared.partition, now, None, &state.scratch, &[]);
            pending.entries.push(entry);
            pending.last += 1;
            (
                pending.last,
                pending.entries.len() == 1,
                pending.batch.bytes() > EARLY_FLUSH_BYTES,
            )
        };
        if large {
            self.flush();
        } else if first {
            self.shared.wake.notify_one();
        }
        number
    }

    /// Hands everything gathered so far to the log, unless the lane is held: then it waits for that to end.
    pub fn flush(&self) {
        let shared = &self.lane.shared;
        // Until it is handed over: a hold that begins meanwhile waits, and then knows of it.
        let held = shared.held.read();
        if *held {
            return;
        }
        for (stream, pending) in self.take_pending() {
            hand_over(shared, self.shared.clone(), stream, pending);
        }
    }

    /// Outcomes first: see the module header.
    fn take_pending(&self) -> Vec<(Stream, Pending)> {
        let state = &mut *self.state.borrow_mut();
        let mut taken = Vec::new();
        for stream in [Stream::Outcomes, Stream::Intents] {
            let (full, slot) = state.of(stream);
            taken.extend(full.drain(..).map(|pending| (stream, pending)));
            if !slot.entries.is_empty() {
                taken.push((stream, slot.take(stream)));
            }
        }
        taken
    }

    fn wake_durable(&self) {
        let intents = self.shared.intents.load(Ordering::Acquire);
        let mut state = self.state.borrow_mut();
        while let Some((number, _)) = state.waiters.front() {
            if *number > intents {
                break;
            }
            if let Some((_, waker)) = state.waiters.pop_front() {
                waker.wake();
            }
        }
    }

    /// Waits until the intent of this number is durable, or was refused.
    pub fn durable(self: &Rc<Self>, number: u64) -> Durable {
        Durable {
            port: self.clone(),
            number,
            registered: None,
        }
    }

    /// The number up to which outcomes are durable *and* folded: look-ups know them.
    pub fn folded(&self) -> u64 {
        self.shared.folded.load(Ordering::Acquire)
    }

    /// Number of the last outcome appended.
    pub fn last_outcome(&self) -> u64 {
        self.state.borrow().outcomes.last
    }

    /// Number up to which outcomes are durable.
    pub fn outcomes_durable(&self) -> u64 {
        self.shared.outcomes.load(Ordering::Acquire)
    }
}

/// Hands entries to the log, which calls back when they are durable.
fn hand_over(lane: &Arc<LaneShared>, port: Arc<PortShared>, stream: Stream, pending: Pending) {
    let Pending {
        batch,
        entries,
        first,
        last,
    } = pending;
    let lane = lane.clone();
    lane.backlog.fetch_add(entries.len() as u64, Ordering::Relaxed);
    let log = lane.log.clone();
    let done = move |result: Result<crate::log::Appended, LogError>| match result {
        Ok(appended) => {
            let base = appended.bases.first().map_or(0, |b| b.1);
            let receipt = Receipt {
                port: port.clone(),
                stream,
                last,
            };
            // The receiver is gone only when the process ends.
            let _ = lane.feed.send(Committed {
                base,
                entries,
                receipt,
            });
            let durable = match stream {
                Stream::Outcomes => &port.outcomes,
                Stream::Intents => &port.intents,
            };
            durable.store(last, Ordering::Release);
            port.wake.notify_one();
        }
        Err(error) => {
            lane.backlog.fetch_sub(entries.len() as u64, Ordering::Relaxed);
            let no_room = matches!(error, LogError::NoRoom { .. } | LogError::Busy { .. });
            if no_room && stream == Stream::Intents {
                let mut refused = port.refused.lock();
                let error = LaneError::NoRoom(error);
                refused.push(Refused {
                    from: first,
                    to: last,
                    error,
                });
                let excess = refused.len().saturating_sub(REFUSED_KEPT);
                refused.drain(..excess);
                drop(refused);
                port.intents.store(last, Ordering::Release);
                port.wake.notify_one();
            } else {
                // An outcome that cannot be recorded, or a log that failed: nothing may act on it.
                (lane.fatal)(error);
            }
        }
    };
    log.append(batch, Box::new(done));
}

/// See [`LanePort::durable`].
pub struct Durable {
    port: Rc<LanePort>,
    number: u64,
    registered: Option<Waker>,
}

impl Future for Durable {
    type Output = Result<(), LaneError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let shared = &self.port.shared;
        if shared.intents.load(Ordering::Acquire) >= self.number {
            let number = self.number;
            let refused = shared.refused.lock();
            let error = refused
                .iter()
                .find(|r| r.from <= number && number <= r.to)
                .map(|r| r.error.clone());
            return Poll::Ready(error.map_or(Ok(()), Err));
        }
        // Being woken is a hint to look again: registering twice costs one wake, never a lost one.
        if !self.registered.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            self.port
                .state
                .borrow_mut()
                .waiters
                .push_back((self.number, cx.waker().clone()));
            self.registered = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for LanePort {
    fn drop(&mut self) {
        // What was appended goes out even if nobody is left to wait for it; during a hold, when that ends.
        let shared = &self.lane.shared;
        let held = shared.held.read();
        for (stream, pending) in self.take_pending() {
            match *held {
                true => shared.orphans.lock().push((self.shared.clone(), stream, pending)),
                false => hand_over(shared, self.shared.clone(), stream, pending),
            }
        }
        drop(held);
        // Lets the flush task see that the port is gone.
        self.shared.wake.notify_one();
    }
}
