//! Keeps what the lane adds up to: folds what became durable, feeds the dedup store, writes checkpoints, answers
//! look-ups. Shared by the `LedgerActor` (who folds) and the partitions (who ask).
//!
//! Order of durability: the log, then the store's blocks, then the checkpoint that rests on them. A store or a
//! checkpoint that cannot be written (a full disk) is behind, and follows once it can: nothing is lost by it. What the
//! store does not take is owed to it ([`Keeper::catch_up`]), and nothing more is folded meanwhile. After a restart
//! [`super::restore`] brings back a keeper that knows exactly what the log knows (I1, I2).

use super::checkpoint::{self, CheckpointError};
use super::payload::{self, KeptMessage, PayloadError};
use crate::core::in_full::in_full;
use crate::core::ledger::codec;
use crate::core::ledger::entry::Entry;
use crate::core::ledger::fold::{Effects, FinishedState, FoldError, LaneState, StoreOp};
use crate::core::types::{MessageId, Offset, RoutePartition};
use crate::dedup::{DedupError, DedupStore, Found, Mark};
use crate::log::{Log, LogError, PartitionId};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why the keeper cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The lane's entries do not follow each other.
    #[error("the ledger cannot be folded")]
    Fold(#[from] FoldError),
    /// The dedup store cannot take or answer something.
    #[error("the dedup store failed")]
    Store(#[from] DedupError),
    /// An entry was folded in part: only a restore mends it.
    #[error("the fold broke off inside an entry")]
    Torn,
    /// A duty panicked.
    #[error("a duty of the ledger panicked")]
    Duties,
    /// The checkpoint cannot be written.
    #[error("the ledger's checkpoint cannot be written")]
    Checkpoint(#[from] CheckpointError),
}

impl KeeperError {
    /// Whether nothing is lost, and the same may be tried again: a view cannot be written at present. The log is the
    /// truth, and the views follow it once they can.
    pub fn passes(&self) -> bool {
        match self {
            Self::Store(error) => error.passes(),
            Self::Checkpoint(error) => matches!(error, CheckpointError::Io { .. }),
            Self::Fold(_) | Self::Torn | Self::Duties => false,
        }
    }

    /// In words, with its causes.
    pub fn why(&self) -> String {
        in_full(self)
    }
}

/// Operations for which room is kept between two batches.
const OWED_KEPT: usize = 4_096;
/// How often a payload is looked for again because it was moved meanwhile.
const MOVES: u32 = 8;

/// See the module.
pub struct Keeper {
    folded: Mutex<Folded>,
    store: DedupStore,
    dir: PathBuf,
    ledger: u128,
    since_checkpoint: AtomicU64,
    /// What the fold has said and the store has not taken yet. Only who folds takes this lock.
    owed: Mutex<Owed>,
    /// Why the store takes nothing more, and why the last checkpoint could not be written, while that lasts.
    refuses: Mutex<Option<String>>,
    behind: Mutex<Option<String>>,
    dropped: AtomicU64,
    /// One checkpoint at a time, and what lies before the last one: [`Keeper::checkpointed`].
    writing: Mutex<Offset>,
}

#[derive(Default)]
struct Owed {
    ops: Vec<StoreOp>,
    upto: Mark,
    /// An entry is being folded: set for good where that breaks off.
    inside: bool,
}

/// Bytes of memory that a lane's fold and store hold.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// The whole fold.
    pub ledger: u64,
    /// Its messages alone.
    pub messages: u64,
    /// Those of each partner.
    pub by_partner: BTreeMap<String, u64>,
    /// Filters of the store.
    pub store: u64,
}

struct Folded {
    state: LaneState,
    /// Encoded form of the last entry, for its checksum in the checkpoint.
    last_entry_crc: u32,
    /// What follows from folded entries and was not taken yet.
    effects: Effects,
}

/// Sets why something does not work at present, or that it works again.
fn set_reason(place: &Mutex<Option<String>>, why: Option<String>) {
    let mut place = place.lock();
    if place.is_some() || why.is_some() {
        *place = why;
    }
}

impl Keeper {
    /// The folder of its checkpoints: what tells one keeper from another.
    pub fn name(&self) -> &str {
        self.dir.to_str().unwrap_or_default()
    }

    /// A keeper of a restored lane. `dir` holds the checkpoint.
    pub fn new(state: LaneState, last_entry_crc: u32, store: DedupStore, dir: PathBuf, ledger: u128) -> Self {
        Self {
            owed: Mutex::default(),
            refuses: Mutex::default(),
            behind: Mutex::default(),
            folded: Mutex::new(Folded {
                state,
                last_entry_crc,
                effects: Effects::new(),
            }),
            store,
            dir,
            ledger,
            since_checkpoint: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            writing: Mutex::new(0),
        }
    }

    /// Folds entries that follow each other from `base` on and are durable, and gives the store what they say. Those
    /// that are folded already are passed over.
    ///
    /// # Errors
    /// If the ledger is not what it should be: the caller must not fold on. Where the error passes
    /// ([`KeeperError::passes`]) the entries are folded, and the store lacks what they say: [`Keeper::catch_up`]
    /// before more is folded.
    pub fn fold_entries(&self, base: Offset, entries: &[Entry]) -> Result<(), KeeperError> {
        let owed = &mut *self.owed.lock();
        {
            let Folded {
                state,
                last_entry_crc,
                effects,
            } = &mut *self.folded.lock();
            if std::mem::replace(&mut owed.inside, true) {
                return Err(KeeperError::Torn);
            }
            for (i, entry) in entries.iter().enumerate() {
                let at = base + i as u64;
                if at >= state.next {
                    state.apply_live(at, entry, &mut owed.ops, effects)?;
                }
            }
            owed.inside = false;
            if let Some(last) = entries.last()
                && base + entries.len() as u64 == state.next
            {
                let mut bytes = Vec::with_capacity(128);
                codec::encode(last, &mut bytes);
                *last_entry_crc = checkpoint::entry_crc(&bytes);
            }
            owed.upto = Mark {
                next: state.next,
                entry: *last_entry_crc,
            };
        }
        self.since_checkpoint
            .fetch_add(entries.len() as u64, Ordering::Relaxed);
        self.hand_over(owed)
    }

    /// Gives the store what it did not take when it was folded.
    ///
    /// # Errors
    /// If it does not take it now either; one that [passes](KeeperError::passes) may be tried again.
    pub fn catch_up(&self) -> Result<(), KeeperError> {
        let owed = &mut *self.owed.lock();
        match owed.ops.is_empty() {
            true => Ok(()),
            false => self.hand_over(owed),
        }
    }

    fn hand_over(&self, owed: &mut Owed) -> Result<(), KeeperError> {
        match self.store.take(&owed.ops, owed.upto) {
            Ok(()) => {
                owed.ops.clear();
                // A trim's worth of operations must not be held for ever.
                owed.ops.shrink_to(OWED_KEPT);
                set_reason(&self.refuses, None);
                Ok(())
            }
            Err(error) => {
                let error = KeeperError::from(error);
                set_reason(&self.refuses, Some(error.why()));
                Err(error)
            }
        }
    }

    /// Why the store of delivered IDs takes nothing more at present, if so: no attempt may start, for what comes of
    /// it could not be looked up.
    pub fn refuses(&self) -> Option<String> {
        self.refuses.lock().clone()
    }

    /// Why no checkpoint can be written at present, if so. Nothing is lost; a restart would read more of the ledger.
    pub fn behind(&self) -> Option<String> {
        self.behind.lock().clone()
    }

    /// What follows from the entries folded since this was asked last, and the offset up to which they are folded.
    /// The store has what goes with it: look-ups agree.
    pub fn take_effects(&self) -> (Offset, Effects) {
        let folded = &mut *self.folded.lock();
        (folded.state.next, std::mem::take(&mut folded.effects))
    }

    /// Entries folded since the last checkpoint.
    pub fn since_checkpoint(&self) -> u64 {
        self.since_checkpoint.load(Ordering::Relaxed)
    }

    /// Makes the store durable up to what is folded, then writes the checkpoint that rests on it.
    ///
    /// # Errors
    /// If either cannot be written; the older checkpoint stands then.
    pub fn checkpoint(&self) -> Result<(), KeeperError> {
        let mut writing = self.writing.lock();
        let done = self.write_checkpoint(&mut writing);
        set_reason(&self.behind, done.as_ref().err().map(KeeperError::why));
        done
    }

    fn write_checkpoint(&self, writing: &mut Offset) -> Result<(), KeeperError> {
        // Most of what must be synced is synced before anything is copied: where it cannot be, nothing is done in vain.
        self.store.sync()?;
        // Copied while nothing is folded: a copy shares what may be millions. Synced and written without holding
        // anybody back.
        let (state, last_entry_crc, entries) = {
            let folded = self.folded.lock();
            let entries = self.since_checkpoint.swap(0, Ordering::Relaxed);
            (folded.state.clone(), folded.last_entry_crc, entries)
        };
        let written = (|| {
            self.store.sync()?;
            checkpoint::write(&self.dir, &state, self.ledger, last_entry_crc)?;
            Ok(())
        })();
        match written {
            Ok(()) => *writing = state.next,
            Err(_) => _ = self.since_checkpoint.fetch_add(entries, Ordering::Relaxed),
        }
        written
    }

    /// A restart reads the lane from here on: everything before it is in the last checkpoint of this run and in
    /// the store. 0 before the first one.
    pub fn checkpointed(&self) -> Offset {
        *self.writing.lock()
    }

    /// Payloads were given up, or their messages left the list: retention's doing.
    pub fn count_dropped(&self, payloads: u64) {
        self.dropped.fetch_add(payloads, Ordering::Relaxed);
    }

    /// Payloads given up by retention or the size cap since the process started.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Bytes of memory. Cheap: the fold counts as it goes.
    pub fn memory(&self) -> Held {
        let mut held = Held {
            store: self.store.filter_bytes(),
            ..Held::default()
        };
        self.with_state(|state| {
            held.ledger = state.memory() as u64;
            for (at, partition) in &state.partitions {
                let bytes = partition.messages.memory() as u64;
                held.messages += bytes;
                if let Some(route) = state.routes.get(&at.route) {
                    *held.by_partner.entry(route.partner.clone()).or_default() += bytes;
                }
            }
        });
        held
    }

    /// Looks at the fold. Must be short: folding waits meanwhile.
    pub fn with_state<R>(&self, look: impl FnOnce(&LaneState) -> R) -> R {
        look(&self.folded.lock().state)
    }

    /// The dedup store.
    pub fn store(&self) -> &DedupStore {
        &self.store
    }

    /// The message as the ledger keeps it, with the Idempotency-Key of its present round; none if only the topic
    /// has its payload.
    ///
    /// # Errors
    /// [`PayloadError`]: it cannot be read, or was given up.
    pub fn kept(
        &self,
        log: &dyn Log,
        lane: PartitionId,
        at: RoutePartition,
        id: MessageId,
    ) -> Result<Option<KeptMessage>, PayloadError> {
        let mut tries = 0;
        loop {
            let known = self.with_state(|state| {
                let message = state.partitions.get(&at)?.messages.get(&id)?;
                Some((message.payload?.0, message.opened, message.dropped))
            });
            let Some((ledger, opened, dropped)) = known else {
                return Ok(None);
            };
            if dropped {
                return Err(PayloadError::Dropped { at: ledger });
            }
            let read = payload::kept(log, lane, ledger).and_then(|mut kept| {
                if opened > 0 {
                    kept.kept.idempotency_key = payload::idempotency_key(log, lane, opened)?;
                }
                Ok(kept)
            });
            match read {
                // Carried forward and trimmed since it was looked for: the fold knows the new place.
                Err(PayloadError::Log {
                    source: LogError::OutOfRange { .. },
                    ..
                }) if tries < MOVES => tries += 1,
                read => return read.map(Some),
            }
        }
    }

    /// What became of these messages, in order, appended to `out`.
    ///
    /// # Errors
    /// If the store cannot be read: then nothing may be taken for absent (I2).
    pub fn look_up(
        &self,
        at: RoutePartition,
        ids: &[MessageId],
        out: &mut Vec<Option<FinishedState>>,
    ) -> Result<(), KeeperError> {
        let mut found = Vec::with_capacity(ids.len());
        self.store.lookup(at, ids, &mut found)?;
        // What the ledger lists outlives the memory of IDs: a second record of it is no new message. What came into
        // the list since the store was asked is in flight, and what an order called delivered meanwhile is barred.
        self.with_state(|state| {
            let partition = state.partitions.get(&at);
            let listed = |id| partition?.listed(id);
            let known = |(found, id): (Option<Found>, _)| found.map(|f| f.state).or_else(|| listed(id));
            out.extend(found.into_iter().zip(ids).map(known));
        });
        Ok(())
    }
}
