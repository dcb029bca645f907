//! One arbiter's way into the lane: what it gathers, what is on its way, what the log gave back.

use super::{BATCH_BYTES, Committed, Lane, LaneError, Receipt};
use crate::core::ledger::codec;
use crate::core::ledger::entry::{Body, Entry};
use crate::core::types::{Offset, Time};
use crate::log::{Appended, Batch, LogError, PartitionId};
use parking_lot::Mutex;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Told the offset of an entry, on a thread of the log, once it is durable.
pub type Told = Box<dyn FnOnce(Offset) + Send>;

/// A log that is busy is asked again after this time: about one commit of its own.
const BUSY_WAIT: Duration = Duration::from_millis(2);
/// A disk without room even for outcomes is asked again after this time.
const NO_ROOM_WAIT: Duration = Duration::from_millis(50);
/// How many refused ranges are remembered: their waiters have been woken long before.
const REFUSED_KEPT: usize = 64;

/// What a port and the log's thread know of each other.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Numbers up to which outcomes are durable, and intents durable or refused.
    outcomes: AtomicU64,
    intents: AtomicU64,
    /// Number up to which outcomes are folded too.
    pub(super) folded: AtomicU64,
    refused: Mutex<Vec<Refused>>,
    /// A batch is at the log and was not answered yet.
    on_its_way: AtomicBool,
    /// The batch that the log did not take, and how long to wait before it is appended again.
    returned: Mutex<Option<(Entries, Duration)>>,
    wake: Notify,
}

/// Intents `from..=to` that the log did not take.
#[derive(Debug, Clone)]
struct Refused {
    from: u64,
    to: u64,
    error: LaneError,
}

impl Shared {
    /// Has the port look for something to do.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    fn refuse(&self, from: u64, to: u64, error: LogError) {
        let mut refused = self.refused.lock();
        refused.push(Refused {
            from,
            to,
            error: LaneError::NoRoom(error),
        });
        let excess = refused.len().saturating_sub(REFUSED_KEPT);
        refused.drain(..excess);
        drop(refused);
        self.intents.store(to, Ordering::Release);
    }
}

/// The entries of a batch, in the order in which they came. `outcomes` and `intents` are the numbers of the last ones
/// up to here.
#[derive(Default)]
struct Entries {
    entries: Vec<Entry>,
    /// Who waits for the offset of which of them: orders only.
    told: Vec<(u32, Told)>,
    /// Which of them are intents.
    asked: Vec<u32>,
    outcomes: u64,
    intents: u64,
    /// Bytes that they are counted with, and those of the intents among them.
    bytes: u64,
    asked_bytes: u64,
}

impl std::fmt::Debug for Entries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entries").field("entries", &self.entries).finish()
    }
}

impl Entries {
    /// Takes the intents out; says how many there were, and with how many bytes they were counted.
    fn without_intents(&mut self) -> (u64, u64) {
        let asked = std::mem::take(&mut self.asked);
        for (place, _) in &mut self.told {
            *place -= asked.iter().filter(|a| **a < *place).count() as u32;
        }
        let (mut n, mut next) = (0, asked.iter().peekable());
        self.entries.retain(|_| {
            let is_intent = next.next_if_eq(&&n).is_some();
            n += 1;
            !is_intent
        });
        let bytes = std::mem::take(&mut self.asked_bytes);
        self.bytes -= bytes;
        (asked.len() as u64, bytes)
    }
}

/// Bytes that an entry holds until it is folded: itself with what it points to, and its encoded form.
fn held_bytes(encoded: &[u8]) -> u64 {
    (size_of::<Entry>() + 2 * encoded.len()) as u64
}

/// A batch under construction, or waiting for its turn.
#[derive(Default)]
struct Gathered {
    batch: Batch,
    sent: Entries,
}

impl Gathered {
    /// With room for so much.
    fn sized(size: &Size) -> Self {
        Self {
            batch: Batch::sized(size.bytes),
            sent: Entries {
                entries: Vec::with_capacity(size.entries),
                asked: Vec::with_capacity(size.entries / 2),
                ..Entries::default()
            },
        }
    }

    fn is_empty(&self) -> bool {
        self.sent.entries.is_empty()
    }

    fn push(&mut self, partition: PartitionId, now: Time, encoded: &[u8], entry: Entry, is_intent: bool) {
        self.batch.push(partition, now, None, encoded, &[]);
        let bytes = held_bytes(encoded);
        self.sent.bytes += bytes;
        if is_intent {
            self.sent.asked.push(self.sent.entries.len() as u32);
            self.sent.asked_bytes += bytes;
        }
        self.sent.entries.push(entry);
    }
}

/// What batches came to lately: the largest one, forgotten little by little. One that grows is copied again and again.
#[derive(Default)]
struct Size {
    bytes: usize,
    entries: usize,
}

impl Size {
    fn note(&mut self, batch: &Gathered) {
        let lately = |size: usize, new: usize| new.max(size - size / 16);
        self.bytes = lately(self.bytes, batch.batch.bytes());
        self.entries = lately(self.entries, batch.sent.entries.len());
    }
}

struct State {
    /// Oldest first; the last one still takes entries.
    gathered: VecDeque<Gathered>,
    size: Size,
    outcomes: u64,
    intents: u64,
    /// The log did not take the first batch: it waits a while.
    pausing: bool,
    waiters: VecDeque<(u64, Waker)>,
    scratch: Vec<u8>,
}

/// One arbiter's way into the lane. Stays on its thread. What was appended goes out, also after it is dropped.
pub struct LanePort {
    core: Rc<Core>,
}

struct Core {
    lane: Lane,
    shared: Arc<Shared>,
    state: RefCell<State>,
    closing: std::cell::Cell<bool>,
}

impl LanePort {
    /// Opens a port on the present arbiter and starts the task that flushes it. The task ends with the port, once
    /// everything is out.
    pub fn open(lane: Lane) -> Rc<LanePort> {
        let core = Rc::new(Core {
            lane,
            shared: Arc::new(Shared::default()),
            state: RefCell::new(State {
                gathered: VecDeque::from([Gathered::default()]),
                size: Size::default(),
                outcomes: 0,
                intents: 0,
                pausing: false,
                waiters: VecDeque::new(),
                scratch: Vec::with_capacity(512),
            }),
            closing: std::cell::Cell::new(false),
        });
        core.lane.shared.ports.lock().push(Arc::downgrade(&core.shared));
        let flushing = Rc::clone(&core);
        actix_rt::spawn(async move {
            while !flushing.is_over() {
                flushing.shared.wake.notified().await;
                let pause = flushing.flush();
                flushing.wake_durable();
                if let Some(pause) = pause {
                    tokio::time::sleep(pause).await;
                    flushing.state.borrow_mut().pausing = false;
                    flushing.shared.wake.notify_one();
                }
            }
        });
        Rc::new(LanePort { core })
    }

    /// The lane behind the port.
    pub fn lane(&self) -> &Lane {
        &self.core.lane
    }

    /// Appends an outcome, position or command. Returns its number, for [`LanePort::folded`].
    pub fn outcome(&self, body: Body) -> u64 {
        self.core.append(body, true)
    }

    /// Appends an outcome, position or command, and has its offset told once it is durable. `told` is dropped if it
    /// never will be.
    pub fn outcome_told(&self, body: Body, told: Told) -> u64 {
        let number = self.core.append(body, true);
        let sent = self.core.state.borrow_mut().gathered.back_mut().map(|open| {
            let place = open.sent.entries.len() as u32 - 1;
            open.sent.told.push((place, told));
        });
        debug_assert!(sent.is_some(), "what was appended is gathered");
        number
    }

    /// Appends an intent. Returns its number, for [`LanePort::durable`].
    pub fn intent(&self, body: Body) -> u64 {
        self.core.append(body, false)
    }

    /// Hands what was gathered to the log now, if nothing is on its way and the lane is not held; else it follows by
    /// itself.
    pub fn flush(&self) {
        if self.core.flush().is_some() {
            // The flushing task does the waiting.
            self.core.state.borrow_mut().pausing = false;
            self.core.shared.wake.notify_one();
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
        self.core.shared.folded.load(Ordering::Acquire)
    }

    /// Number of the last outcome appended.
    pub fn last_outcome(&self) -> u64 {
        self.core.state.borrow().outcomes
    }

    /// Number up to which outcomes are durable.
    #[cfg(test)]
    pub fn outcomes_durable(&self) -> u64 {
        self.core.shared.outcomes.load(Ordering::Acquire)
    }
}

impl Drop for LanePort {
    fn drop(&mut self) {
        self.core.closing.set(true);
        // The flushing task sends what is left, and then ends.
        self.core.flush();
        self.core.shared.wake.notify_one();
    }
}

impl Core {
    fn is_over(&self) -> bool {
        let sent = self.state.borrow().gathered.iter().all(Gathered::is_empty);
        let answered =
            !self.shared.on_its_way.load(Ordering::Acquire) && self.shared.returned.lock().is_none();
        self.closing.get() && sent && answered
    }

    fn append(&self, body: Body, outcome: bool) -> u64 {
        let entry = Entry {
            tenure: self.lane.shared.tenure,
            body,
        };
        let now = self.lane.shared.clock.now();
        self.lane.shared.backlog.fetch_add(1, Ordering::Relaxed);
        let state = &mut *self.state.borrow_mut();
        state.scratch.clear();
        codec::encode(&entry, &mut state.scratch);
        let held = held_bytes(&state.scratch);
        self.lane.shared.backlog_bytes.fetch_add(held, Ordering::Relaxed);
        let full = |g: &Gathered| !g.is_empty() && g.batch.bytes() + state.scratch.len() > BATCH_BYTES;
        if state.gathered.back().is_none_or(full) {
            state.gathered.push_back(Gathered::default());
        }
        let number = match outcome {
            true => &mut state.outcomes,
            false => &mut state.intents,
        };
        *number += 1;
        let number = *number;
        if let Some(open) = state.gathered.back_mut() {
            let first = open.is_empty();
            open.push(self.lane.shared.partition, now, &state.scratch, entry, !outcome);
            (open.sent.outcomes, open.sent.intents) = (state.outcomes, state.intents);
            if first {
                self.shared.wake.notify_one();
            }
        }
        number
    }

    /// The next batch to be appended, if its turn has come: what the log gave back stands first again.
    fn next(&self) -> Result<Option<Gathered>, Duration> {
        let state = &mut *self.state.borrow_mut();
        if let Some((entries, pause)) = self.shared.returned.lock().take() {
            state.gathered.push_front(self.again(entries, &mut state.scratch));
            state.pausing = true;
            return Err(pause);
        }
        if state.pausing || self.shared.on_its_way.load(Ordering::Acquire) {
            return Ok(None);
        }
        if state.gathered.front().is_none_or(Gathered::is_empty) {
            return Ok(None);
        }
        let next = state.gathered.pop_front();
        if let Some(next) = &next {
            state.size.note(next);
        }
        if state.gathered.is_empty() {
            state.gathered.push_back(Gathered::sized(&state.size));
        }
        Ok(next)
    }

    /// Encodes what the log gave back.
    fn again(&self, entries: Entries, scratch: &mut Vec<u8>) -> Gathered {
        let now = self.lane.shared.clock.now();
        let mut batch = Batch::new();
        for entry in &entries.entries {
            scratch.clear();
            codec::encode(entry, scratch);
            batch.push(self.lane.shared.partition, now, None, scratch, &[]);
        }
        Gathered { batch, sent: entries }
    }

    /// Hands the next batch to the log. `Some`: the log did not take the last one; wait so long, then call again.
    fn flush(&self) -> Option<Duration> {
        // Until it is handed over: a hold that begins meanwhile waits, and then knows of it.
        let held = self.lane.shared.held.read();
        if *held {
            return None;
        }
        let mut next = match self.next() {
            Err(pause) => return Some(pause),
            Ok(None) => return None,
            Ok(Some(next)) => next,
        };
        let lane = &self.lane.shared;
        if !next.sent.asked.is_empty()
            && let Some(why) = self.lane.refuses()
        {
            // Known beforehand: the outcomes need not fail with them.
            let error = LogError::NoRoom {
                path: std::path::PathBuf::new(),
                detail: why,
            };
            next = self.refuse(next.sent, error);
            if next.is_empty() {
                self.shared.wake.notify_one();
                return None;
            }
        }
        let Gathered { mut batch, sent } = next;
        batch.reserve = sent.asked.is_empty();
        lane.in_log
            .fetch_add(sent.entries.len() as u64, Ordering::Relaxed);
        self.shared.on_its_way.store(true, Ordering::Release);
        let (lane, port) = (self.lane.clone(), self.shared.clone());
        let asked = Instant::now();
        self.lane.shared.log.append(
            batch,
            Box::new(move |result| answered(&lane, &port, sent, asked.elapsed(), result)),
        );
        None
    }

    fn refuse(&self, mut sent: Entries, error: LogError) -> Gathered {
        let (intents, bytes) = sent.without_intents();
        self.lane.shared.forget(intents, bytes);
        self.shared
            .refuse(sent.intents + 1 - intents, sent.intents, error);
        self.again(sent, &mut self.state.borrow_mut().scratch)
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
}

/// The log's answer to a batch, on a thread of the log.
fn answered(
    lane: &Lane,
    port: &Arc<Shared>,
    mut sent: Entries,
    took: Duration,
    result: Result<Appended, LogError>,
) {
    let lane = &lane.shared;
    let mut committed = Vec::new();
    let (mut base, mut durable, mut told, mut bytes) = (0, None, Vec::new(), 0);
    match result {
        Ok(appended) => {
            base = appended.bases.first().map_or(0, |b| b.1);
            durable = Some((sent.outcomes, sent.intents));
            (committed, told, bytes) = (sent.entries, sent.told, sent.bytes);
        }
        // A log that failed: nothing may act on it any more.
        Err(error) if !matches!(error, LogError::Busy { .. } | LogError::NoRoom { .. }) => {
            return (lane.fatal)(error);
        }
        Err(error) => {
            lane.in_log
                .fetch_sub(sent.entries.len() as u64, Ordering::Relaxed);
            let mut pause = BUSY_WAIT;
            if matches!(error, LogError::NoRoom { .. }) {
                let (asked, bytes) = sent.without_intents();
                // Without the intents outcomes may use the reserve; once that is gone too, time must pass.
                pause = if asked > 0 { Duration::ZERO } else { NO_ROOM_WAIT };
                lane.forget(asked, bytes);
                if asked > 0 {
                    port.refuse(sent.intents + 1 - asked, sent.intents, error);
                }
            }
            if !sent.entries.is_empty() {
                *port.returned.lock() = Some((sent, pause));
            }
        }
    }
    let receipt = Receipt {
        port: port.clone(),
        outcomes: durable.map_or_else(|| port.outcomes.load(Ordering::Acquire), |d| d.0),
        bytes,
    };
    for (place, told) in told {
        told(base + u64::from(place));
    }
    // The receiver is gone only when the process ends.
    let _ = lane.feed.send(Committed {
        base,
        entries: committed,
        took,
        receipt,
    });
    if let Some((outcomes, intents)) = durable {
        port.outcomes.store(outcomes, Ordering::Release);
        port.intents.store(intents, Ordering::Release);
    }
    port.on_its_way.store(false, Ordering::Release);
    port.wake.notify_one();
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
        let shared = &self.port.core.shared;
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
                .core
                .state
                .borrow_mut()
                .waiters
                .push_back((self.number, cx.waker().clone()));
            self.registered = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}
