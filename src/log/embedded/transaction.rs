//! Transactions larger than a batch: an import of 300 MB.
//!
//! Parts are written like batches, in the same frames, but tagged with the transaction's number, and their records
//! are only counted (0, 1, 2 … in each partition). The commit says at which offset each partition's record 0
//! stands: the next free one at that moment. So a long transaction keeps no other writer waiting, leaves no gap in
//! the offsets, and holds back no reader. Parts without a commit are dead: dropped at opening, and their room is
//! taken back like that of any other dead records. An open transaction keeps its segments.

use super::state::Shared;
use super::writer::{Job, batch_cost};
use crate::core::types::Offset;
use crate::log::{Appended, Batch, LogError, LogTransaction, PartitionId};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::sync::{Arc, mpsc};

/// What a transaction and the writer know of each other.
pub(super) struct TxShared {
    pub number: u64,
    state: Mutex<TxState>,
}

#[derive(Default)]
struct TxState {
    error: Option<LogError>,
    offsets: Vec<(String, PartitionId, Offset)>,
    offsets_cost: usize,
    partitions: HashSet<PartitionId>,
}

impl TxShared {
    /// A part could not be written: the transaction can no longer be committed.
    pub(super) fn fail(&self, error: LogError) {
        self.state.lock().error.get_or_insert(error);
    }
    pub(super) fn error(&self) -> Option<LogError> {
        self.state.lock().error.clone()
    }
    /// Group offsets of a part: they count with the commit.
    pub(super) fn keep_offsets(&self, offsets: Vec<(String, PartitionId, Offset)>) {
        self.state.lock().offsets.extend(offsets);
    }
    pub(super) fn take_offsets(&self) -> Vec<(String, PartitionId, Offset)> {
        std::mem::take(&mut self.state.lock().offsets)
    }
    /// At most so many bytes of the frame with the commit, its last batch not included.
    pub(super) fn commit_cost(&self) -> usize {
        let state = self.state.lock();
        32 + 20 * state.partitions.len() + state.offsets_cost
    }
}

pub(super) struct EmbeddedTransaction {
    shared: Arc<Shared>,
    tx: Arc<TxShared>,
    committed: bool,
}

impl EmbeddedTransaction {
    pub(super) fn new(shared: Arc<Shared>, number: u64) -> Self {
        Self {
            shared,
            tx: Arc::new(TxShared {
                number,
                state: Mutex::default(),
            }),
            committed: false,
        }
    }

    fn fits(&self, batch: &Batch) -> Result<(), LogError> {
        let (bytes, limit) = (
            batch_cost(batch) + self.tx.commit_cost(),
            self.shared.options.max_frame,
        );
        if bytes > limit {
            return Err(LogError::TooLarge { bytes, limit });
        }
        Ok(())
    }
}

impl LogTransaction for EmbeddedTransaction {
    fn append(&mut self, batch: Batch) -> Result<(), LogError> {
        self.shared.check()?;
        if let Some(error) = self.tx.error() {
            return Err(error);
        }
        self.fits(&batch)?;
        let mut state = self.tx.state.lock();
        state
            .partitions
            .extend(batch.sections.iter().map(|s| s.partition));
        state.offsets_cost += batch.offsets.iter().map(|(g, ..)| g.len() + 16).sum::<usize>();
        drop(state);
        self.shared.enqueue_bulk(Job::Part(Arc::clone(&self.tx), batch));
        Ok(())
    }

    fn commit(mut self: Box<Self>, last: Batch) -> Result<Appended, LogError> {
        self.shared.check()?;
        self.fits(&last)?;
        self.committed = true;
        let (tell, told) = mpsc::sync_channel(1);
        let done = Box::new(move |result| {
            // The committer waits for it; if its thread is gone, nobody wants to know.
            let _ = tell.send(result);
        });
        self.shared
            .enqueue_bulk(Job::Commit(Arc::clone(&self.tx), last, done));
        told.recv().unwrap_or(Err(LogError::Closed))
    }
}

impl Drop for EmbeddedTransaction {
    fn drop(&mut self) {
        if !self.committed {
            self.shared.enqueue_bulk(Job::Abort(Arc::clone(&self.tx)));
        }
    }
}
