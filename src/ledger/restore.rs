//! After a start: from checkpoint, log and dedup store to the fold of a lane, or the reason to stop and ask.
//!
//! The log is the truth. A view that is *behind* it (no checkpoint, a damaged one, one from before a trim; a store
//! whose watermark lies before the lane's end) is brought up or built anew, and the [`Report`] says so. A view that
//! is *ahead* of it, or that names another entry than the log has, means that the ledger has lost entries, or is not
//! the one it was: what was delivered would be forgotten and sent again (I2), so nothing starts.
//!
//! | checkpoint | does |
//! |---|---|
//! | there, fits | only the entries behind it are folded |
//! | missing, damaged, other format | the lane is folded from its start |
//! | before the lane's start | the same: what lies between was trimmed after it had been carried |
//! | beyond the lane's end, or another entry before it | [`RestoreError::LostEntries`] |
//! | of another ledger | [`RestoreError::OtherLedger`] |
//!
//! | store's watermark | does |
//! |---|---|
//! | in the lane, fits | operations from there on are fed; those before the checkpoint by a fold from the lane's start |
//! | in the lane, before the checkpoint | the same, and told: the store was in front of the checkpoint when that was written |
//! | none, or before the lane's start | the store is emptied and fed from the lane's start |
//! | beyond the lane's end, or another entry before it | [`RestoreError::LostEntries`] |
//!
//! Neighbours: [`super::checkpoint`], the log, the dedup store behind [`StoreFeed`]. Nothing is written to the log.

use super::checkpoint::{self, Checkpoint, CheckpointError, entry_crc};
use crate::core::ledger::codec::{self, CodecError};
use crate::core::ledger::entry::{Entry, Genesis};
use crate::core::ledger::fold::{FoldError, LaneState, StoreOp};
use crate::core::record::Record;
use crate::core::types::Offset;
use crate::dedup::{DedupStore, Mark};
use crate::log::{Bounds, Log, LogError, PartitionId};
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Bytes of one read of the lane.
const CHUNK: usize = 1 << 18;
/// Chunks that are read ahead of the fold.
const AHEAD: usize = 4;
/// Operations that are handed to the store at once.
const FEED: usize = 16_384;
/// How often a restore begins again because the lane was trimmed under it.
const TRIMS: u32 = 3;

/// Why the store could not take something.
pub type FeedError = Box<dyn std::error::Error + Send + Sync>;

/// The dedup store, as a restore sees it.
pub trait StoreFeed {
    /// Next ledger offset: what lies before it is durable in the store. None: the store vouches for nothing.
    fn watermark(&self) -> Option<Mark>;
    /// Takes operations of the entries before `upto`, in the order of the ledger.
    ///
    /// # Errors
    /// If it cannot; the restore ends then.
    fn apply(&mut self, ops: Vec<StoreOp>, upto: Mark) -> Result<(), FeedError>;
    /// Forgets everything: it is then fed from the lane's start.
    ///
    /// # Errors
    /// If it cannot; the restore ends then.
    fn reset(&mut self) -> Result<(), FeedError>;
}

impl StoreFeed for &DedupStore {
    fn watermark(&self) -> Option<Mark> {
        Some(self.mark())
    }
    fn apply(&mut self, ops: Vec<StoreOp>, upto: Mark) -> Result<(), FeedError> {
        Ok(self.take(&ops, upto)?)
    }
    fn reset(&mut self) -> Result<(), FeedError> {
        Ok(DedupStore::reset(self)?)
    }
}

/// What the node takes the ledger for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Identity of the ledger, where the node knows it.
    pub ledger: Option<u128>,
    /// The group that works on it.
    pub group: String,
    /// How many lanes it has.
    pub lanes: u32,
    /// Which one this is.
    pub lane: u32,
    /// Version of the recipes.
    pub recipe: u32,
}

impl Expected {
    fn check(&self, is: &Genesis) -> Result<(), RestoreError> {
        let pairs = [
            ("group", self.group.clone(), is.group.clone()),
            ("number of lanes", self.lanes.to_string(), is.lanes.to_string()),
            ("lane", self.lane.to_string(), is.lane.to_string()),
            (
                "version of the recipes",
                self.recipe.to_string(),
                is.recipe.to_string(),
            ),
        ];
        for (what, expected, found) in pairs {
            if expected != found {
                return Err(RestoreError::OtherLedger {
                    what,
                    expected,
                    found,
                });
            }
        }
        match self.ledger {
            Some(expected) => same_ledger(expected, is.ledger),
            None => Ok(()),
        }
    }
}

fn same_ledger(expected: u128, found: u128) -> Result<(), RestoreError> {
    if expected == found {
        return Ok(());
    }
    Err(RestoreError::OtherLedger {
        what: "identity",
        expected: format!("{expected:032x}"),
        found: format!("{found:032x}"),
    })
}

/// Why a lane cannot be restored. All but [`RestoreError::Log`] ask for a person.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// A view knows entries that the lane does not have.
    #[error(
        "the ledger has lost entries: {view} knows it up to {known}, {found}; \
         restore the log from a backup, or move the views away if what was delivered may go out again"
    )]
    LostEntries {
        /// Which view.
        view: &'static str,
        /// Up to where that knows the lane.
        known: Offset,
        /// What the lane has there.
        found: String,
    },
    /// The ledger is not the one that the node, or its checkpoint, belongs to.
    #[error("this is another ledger: its {what} is {found}, expected {expected}")]
    OtherLedger {
        /// What differs.
        what: &'static str,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The lane has entries, and no genesis among them.
    #[error("the ledger has no genesis: its lane begins at {first}")]
    NoGenesis {
        /// Where it begins.
        first: Offset,
    },
    /// An entry cannot be read.
    #[error("ledger entry {at} cannot be read")]
    Entry {
        /// Its offset.
        at: Offset,
        /// Why.
        source: CodecError,
    },
    /// An entry cannot follow what was before it.
    #[error(transparent)]
    Fold(#[from] FoldError),
    /// The checkpoint cannot be read for a reason that is not its content.
    #[error(transparent)]
    Checkpoint(CheckpointError),
    /// The store cannot take what it must.
    #[error("the dedup store cannot be brought up")]
    Store(#[source] FeedError),
    /// The log cannot be read.
    #[error("the ledger cannot be read")]
    Log(#[from] LogError),
}

/// Where the fold came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FoldedFrom {
    /// The lane is empty: its genesis is still to be written.
    Nothing,
    /// A checkpoint, and the entries behind it.
    Checkpoint {
        /// The first entry behind it.
        at: Offset,
    },
    /// The lane's start.
    Start {
        /// Why there was no checkpoint to be had.
        why: String,
    },
}

/// What was done to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreFed {
    /// It was fed from here on; nothing, if that is the lane's end.
    From(Offset),
    /// It was emptied, and fed from the lane's start.
    Rebuilt,
}

/// What a restore did, for the log and for people.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Where the fold came from.
    pub folded: FoldedFrom,
    /// What was done to the store.
    pub store: StoreFed,
    /// First and next offset of the lane.
    pub bounds: Bounds,
    /// Entries read.
    pub entries: u64,
    /// Operations the store was given.
    pub fed: u64,
    /// The store had less than the checkpoint, which is written behind it: part of it was damaged or taken away.
    pub store_fell_back: bool,
    /// How long it took.
    pub took: Duration,
}

impl fmt::Display for FoldedFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("an empty ledger"),
            Self::Checkpoint { at } => write!(f, "a checkpoint and what is behind it, from offset {at} on"),
            Self::Start { why } => write!(f, "the ledger's start: {why}"),
        }
    }
}

impl fmt::Display for StoreFed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::From(offset) => write!(f, "fed from offset {offset} on"),
            Self::Rebuilt => f.write_str("built again from the ledger's start"),
        }
    }
}

/// A lane as it stands.
#[derive(Clone, Debug)]
pub struct Restored {
    /// Its fold.
    pub state: LaneState,
    /// Checksum of its last entry, for the next checkpoint; 0 if it has none.
    pub last_entry_crc: u32,
    /// What was done.
    pub report: Report,
}

/// Restores a lane: see the module's header.
///
/// # Errors
/// [`RestoreError`].
pub fn restore(
    log: &dyn Log,
    lane: PartitionId,
    dir: &Path,
    expected: &Expected,
    feed: &mut dyn StoreFeed,
) -> Result<Restored, RestoreError> {
    let began = Instant::now();
    let mut tries = 0;
    loop {
        match attempt(log, lane, dir, expected, feed) {
            // What it stood on was trimmed meanwhile: from nothing, at the new start.
            Err(RestoreError::Log(LogError::OutOfRange { wanted, first, .. }))
                if wanted < first && tries < TRIMS =>
            {
                tries += 1;
            }
            Ok(mut restored) => {
                restored.report.took = began.elapsed();
                return Ok(restored);
            }
            Err(e) => return Err(e),
        }
    }
}

fn attempt(
    log: &dyn Log,
    lane: PartitionId,
    dir: &Path,
    expected: &Expected,
    feed: &mut dyn StoreFeed,
) -> Result<Restored, RestoreError> {
    let bounds = log.bounds(lane)?;
    let genesis = read_genesis(log, lane, bounds)?;
    if let Some(genesis) = &genesis {
        expected.check(genesis)?;
    }
    let (checkpoint, why) = match checkpoint::read(dir) {
        Ok(Some(checkpoint)) => usable(log, lane, bounds, expected, genesis.as_ref(), checkpoint)?,
        Ok(None) => (None, "there is no checkpoint".to_owned()),
        Err(e @ CheckpointError::Io { .. }) => return Err(RestoreError::Checkpoint(e)),
        Err(e) => (None, e.to_string()),
    };
    let mark = feed.watermark();
    let (fed_from, store) = match mark.map(|mark| mark.next) {
        Some(known) if known > bounds.next => {
            return Err(RestoreError::LostEntries {
                view: "the dedup store",
                known,
                found: format!("it ends at {}", bounds.next),
            });
        }
        Some(known) if known >= bounds.first => {
            let entry = mark.map_or(0, |mark| mark.entry);
            // A store without the checksum is one of 0.1, or has taken nothing yet.
            if entry != 0 && known > bounds.first {
                same_entry(log, lane, "the dedup store", known, entry)?;
            }
            (known, StoreFed::From(known))
        }
        _ => {
            feed.reset().map_err(RestoreError::Store)?;
            (bounds.first, StoreFed::Rebuilt)
        }
    };

    let mut run = Run {
        log,
        lane,
        feed,
        fed_from,
        end: bounds.next,
        ops: Vec::new(),
        entries: 0,
        fed: 0,
    };
    let mut store_fell_back = false;
    let (mut state, mut crc, folded) = match checkpoint {
        Some(checkpoint) => {
            let at = checkpoint.state.next;
            store_fell_back = fed_from < at;
            if fed_from < at {
                // Only for what it tells the store. From the lane's start: whether an order was refused, and what a route
                // that was forgotten had waiting, depends on what came before.
                run.fold(&mut LaneState::default(), bounds.first, at)?;
            }
            let from = FoldedFrom::Checkpoint { at };
            (checkpoint.state, checkpoint.last_entry_crc, from)
        }
        None if bounds.next == 0 => (LaneState::default(), 0, FoldedFrom::Nothing),
        None => (LaneState::default(), 0, FoldedFrom::Start { why }),
    };
    let from = state.next.max(bounds.first);
    if let Some(last) = run.fold(&mut state, from, bounds.next)? {
        crc = last;
    }
    // Whether this fold began behind a trim cannot be told from what is here: a life before may have begun so, and ended
    // in the middle. What is not there is forgotten in vain.
    if bounds.first > 0 && fed_from < bounds.next {
        run.unlearn(&state);
    }
    run.hand_over(Mark {
        next: bounds.next,
        entry: crc,
    })?;
    match &state.genesis {
        Some(genesis) => expected.check(genesis)?,
        None if bounds.next == 0 => {}
        None => return Err(RestoreError::NoGenesis { first: bounds.first }),
    }
    let report = Report {
        folded,
        store,
        bounds,
        entries: run.entries,
        fed: run.fed,
        store_fell_back,
        took: Duration::ZERO,
    };
    Ok(Restored {
        state,
        last_entry_crc: crc,
        report,
    })
}

/// The genesis, where the lane still begins with it: it is looked at before anything is believed of the views.
fn read_genesis(log: &dyn Log, lane: PartitionId, bounds: Bounds) -> Result<Option<Genesis>, RestoreError> {
    if bounds.first > 0 || bounds.next == 0 {
        return Ok(None);
    }
    match one(log, lane, 0)? {
        Some(record) => {
            let mut state = LaneState::default();
            state.apply(0, &decode(&record)?, &mut Vec::new())?;
            Ok(state.genesis)
        }
        None => Ok(None),
    }
}

/// The checkpoint, if the fold can go on from it; else why not.
fn usable(
    log: &dyn Log,
    lane: PartitionId,
    bounds: Bounds,
    expected: &Expected,
    genesis: Option<&Genesis>,
    checkpoint: Checkpoint,
) -> Result<(Option<Checkpoint>, String), RestoreError> {
    if let Some(ledger) = genesis.map(|g| g.ledger).or(expected.ledger) {
        same_ledger(checkpoint.ledger, ledger)?;
    }
    let next = checkpoint.state.next;
    let lost = |found: String| RestoreError::LostEntries {
        view: "the checkpoint",
        known: next,
        found,
    };
    if next > bounds.next {
        return Err(lost(format!("it ends at {}", bounds.next)));
    }
    if next < bounds.first {
        let why = format!(
            "the checkpoint stands at {next}, before the lane's start at {}",
            bounds.first
        );
        return Ok((None, why));
    }
    if next > bounds.first {
        same_entry(log, lane, "the checkpoint", next, checkpoint.last_entry_crc)?;
    }
    Ok((Some(checkpoint), String::new()))
}

/// Checks that the entry before `known` is the one that a view has seen there.
fn same_entry(
    log: &dyn Log,
    lane: PartitionId,
    view: &'static str,
    known: Offset,
    entry: u32,
) -> Result<(), RestoreError> {
    let found = match one(log, lane, known - 1)? {
        Some(record) if entry_crc(&record.value) == entry => return Ok(()),
        Some(_) => format!("and entry {} is not the one it was", known - 1),
        None => format!("and entry {} is missing", known - 1),
    };
    Err(RestoreError::LostEntries { view, known, found })
}

/// The record at this offset; none if there is none.
fn one(log: &dyn Log, lane: PartitionId, at: Offset) -> Result<Option<Record>, RestoreError> {
    let mut records = Vec::new();
    log.read(lane, at, 1, &mut records)?;
    Ok(records.into_iter().next().filter(|r| r.offset == at))
}

fn decode(record: &Record) -> Result<Entry, RestoreError> {
    codec::decode(&record.value).map_err(|source| RestoreError::Entry {
        at: record.offset,
        source,
    })
}

/// Entries that were read together.
struct Chunk {
    /// Offset, entry, and its checksum.
    entries: Vec<(Offset, Entry, u32)>,
}

/// Reads and decodes the entries of a range, until all are sent, one cannot be read, or nobody listens any more.
fn read_ahead(
    log: &dyn Log,
    lane: PartitionId,
    range: Range<Offset>,
    send: &mpsc::SyncSender<Result<Chunk, RestoreError>>,
) {
    let (mut from, mut records) = (range.start, Vec::new());
    while from < range.end {
        records.clear();
        let read = log.read(lane, from, CHUNK, &mut records);
        let inside = || records.iter().take_while(|r| r.offset < range.end);
        let chunk = read.map_err(RestoreError::from).and_then(|go_on| {
            let entries = inside().map(|r| Ok((r.offset, decode(r)?, entry_crc(&r.value))));
            let entries = entries.collect::<Result<_, RestoreError>>()?;
            Ok((go_on, Chunk { entries }))
        });
        let (go_on, chunk) = match chunk {
            Ok((go_on, chunk)) => (go_on, Ok(chunk)),
            Err(error) => (from, Err(error)),
        };
        // Whoever does not listen any more has failed already.
        if send.send(chunk).is_err() || go_on <= from {
            return;
        }
        from = go_on;
    }
}

struct Run<'a> {
    log: &'a dyn Log,
    lane: PartitionId,
    feed: &'a mut dyn StoreFeed,
    /// What the store has not taken begins here.
    fed_from: Offset,
    /// The lane's end.
    end: Offset,
    ops: Vec<StoreOp>,
    entries: u64,
    fed: u64,
}

impl Run<'_> {
    /// Folds the entries of `from..to`; returns the checksum of the last one. A thread of its own reads and decodes
    /// them ahead: that takes as long as folding.
    fn fold(&mut self, state: &mut LaneState, from: Offset, to: Offset) -> Result<Option<u32>, RestoreError> {
        if from >= to {
            return Ok(None);
        }
        let (log, lane) = (self.log, self.lane);
        std::thread::scope(|scope| {
            let (send, chunks) = mpsc::sync_channel(AHEAD);
            scope.spawn(move || read_ahead(log, lane, from..to, &send));
            let mut crc = None;
            for chunk in chunks {
                let chunk: Chunk = chunk?;
                for (offset, entry, sum) in &chunk.entries {
                    self.fold_one(state, *offset, entry, *sum)?;
                    crc = Some(*sum);
                }
            }
            Ok(crc)
        })
    }

    fn fold_one(
        &mut self,
        state: &mut LaneState,
        offset: Offset,
        entry: &Entry,
        sum: u32,
    ) -> Result<(), RestoreError> {
        let before = self.ops.len();
        state.apply(offset, entry, &mut self.ops)?;
        if offset < self.fed_from {
            self.ops.truncate(before);
        }
        self.entries += 1;
        // What is behind the last entry goes with it: the store takes nothing for a place that it has.
        if self.ops.len() >= FEED && offset + 1 < self.end {
            let ops = std::mem::replace(&mut self.ops, Vec::with_capacity(FEED + 8));
            self.fed += ops.len() as u64;
            let upto = Mark {
                next: offset + 1,
                entry: sum,
            };
            self.feed.apply(ops, upto).map_err(RestoreError::Store)?;
            self.fed_from = offset + 1;
        }
        Ok(())
    }

    /// What the store was told by a fold that began behind a trim and is not so. An order to call a message delivered that came while
    /// an attempt was under way changed nothing; with the intent gone it looks like one about a message that nobody
    /// had begun. The message is carried, and not finished: known as finished, its record would be passed over (I1).
    /// What has its payload in the ledger is not looked for in the topic.
    fn unlearn(&mut self, state: &LaneState) {
        for (at, partition) in &state.partitions {
            let unfinished = partition
                .messages
                .unsettled()
                .filter(|(_, m)| m.payload.is_none());
            self.ops
                .extend(unfinished.map(|(id, _)| StoreOp::Forget { at: *at, id }));
        }
    }

    /// The rest, and that nothing is missing before `upto`.
    fn hand_over(&mut self, upto: Mark) -> Result<(), RestoreError> {
        if upto.next > self.fed_from {
            self.fed += self.ops.len() as u64;
            let ops = std::mem::take(&mut self.ops);
            self.feed.apply(ops, upto).map_err(RestoreError::Store)?;
        }
        Ok(())
    }
}
