//! Keeps what the lane adds up to: folds what became durable, feeds the dedup store, writes checkpoints, answers
//! look-ups. Shared by the `LedgerActor` (who folds) and the partitions (who ask).
//!
//! Order of durability: the log, then the store's blocks, then the checkpoint that rests on them. After a restart
//! [`super::restore`] brings back a keeper that knows exactly what the log knows (I1, I2).

use super::checkpoint::{self, CheckpointError};
use super::lane::{Committed, Lane};
use crate::core::ledger::codec;
use crate::core::ledger::entry::Entry;
use crate::core::ledger::fold::{FinishedState, FoldError, LaneState};
use crate::core::types::{MessageId, Offset, RoutePartition};
use crate::dedup::{DedupError, DedupStore};
use parking_lot::Mutex;
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
    /// The checkpoint cannot be written.
    #[error("the ledger's checkpoint cannot be written")]
    Checkpoint(#[from] CheckpointError),
}

/// See the module.
pub struct Keeper {
    folded: Mutex<Folded>,
    store: DedupStore,
    dir: PathBuf,
    ledger: u128,
    since_checkpoint: AtomicU64,
}

struct Folded {
    state: LaneState,
    /// Encoded form of the last entry, for its checksum in the checkpoint.
    last_entry_crc: u32,
}

impl Keeper {
    /// A keeper of a restored lane. `dir` holds the checkpoint.
    pub fn new(state: LaneState, last_entry_crc: u32, store: DedupStore, dir: PathBuf, ledger: u128) -> Self {
        Self {
            folded: Mutex::new(Folded {
                state,
                last_entry_crc,
            }),
            store,
            dir,
            ledger,
            since_checkpoint: AtomicU64::new(0),
        }
    }

    /// Folds what became durable. Entries that a restore has folded already are passed over.
    ///
    /// # Errors
    /// If the ledger or the store is not what it should be: the caller must not fold on.
    pub fn fold(&self, batches: Vec<Committed>, lane: &Lane) -> Result<(), KeeperError> {
        for batch in batches {
            self.fold_entries(batch.base, &batch.entries)?;
            batch.folded(lane);
        }
        Ok(())
    }

    /// Folds entries that follow each other from `base` on and are durable.
    ///
    /// # Errors
    /// As [`Keeper::fold`].
    pub fn fold_entries(&self, base: Offset, entries: &[Entry]) -> Result<(), KeeperError> {
        let mut ops = Vec::with_capacity(entries.len() / 2 + 1);
        let upto = {
            let Folded {
                state,
                last_entry_crc,
            } = &mut *self.folded.lock();
            for (i, entry) in entries.iter().enumerate() {
                let at = base + i as u64;
                if at >= state.next {
                    state.apply(at, entry, &mut ops)?;
                }
            }
            if let Some(last) = entries.last() {
                let mut bytes = Vec::with_capacity(128);
                codec::encode(last, &mut bytes);
                *last_entry_crc = checkpoint::entry_crc(&bytes);
            }
            state.next
        };
        self.store.record(&ops, upto)?;
        self.since_checkpoint
            .fetch_add(entries.len() as u64, Ordering::Relaxed);
        Ok(())
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
        // Encoded while nothing is folded; synced and written without holding anybody back.
        let bytes = {
            let folded = self.folded.lock();
            checkpoint::encode(&folded.state, self.ledger, folded.last_entry_crc)
        };
        self.since_checkpoint.store(0, Ordering::Relaxed);
        self.store.sync()?;
        checkpoint::store(&self.dir, &bytes)?;
        Ok(())
    }

    /// Looks at the fold. Must be short: folding waits meanwhile.
    pub fn with_state<R>(&self, look: impl FnOnce(&LaneState) -> R) -> R {
        look(&self.folded.lock().state)
    }

    /// The dedup store.
    pub fn store(&self) -> &DedupStore {
        &self.store
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
        out.extend(found.into_iter().map(|f| f.map(|f| f.state)));
        Ok(())
    }
}
