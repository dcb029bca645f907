//! What the owner of a lane does beside folding it: checkpoints, samples, expiry of remembered IDs, retention of
//! kept payloads, trimming of the lane, and telling the log which input records nobody needs any more.
//!
//! A [`Duties`] is driven turn by turn ([`Duties::turn`]) by the `LedgerActor`; all it knows lies in the ledger, the
//! store and the log, so that a restart anywhere goes on from there: every step leaves something that a restart can
//! begin from, and doing a step twice does no harm.
//!
//! | duty | order of what becomes durable | killed in between |
//! |---|---|---|
//! | checkpoint | store's blocks, checkpoint ([`super::keeper`]) | the older checkpoint stands |
//! | sample | one entry | it is written by the next life |
//! | expiry ([`expiry`]) | IDs carried into the present bucket, bucket gone | carried twice: the newer hides the older |
//! | payloads ([`payloads`]) | one entry a message | the others go at the next turn |
//! | trim ([`trim`]) | entries carried, positions, used starts, trim | carried again; what was carried only moved |
//! | inputs | nothing: the log forgets it with the process | told again |
//!
//! Upholds I1 (an input record is let go when every route's durable position is past it), I2 (an ID is remembered
//! for its retention, by offsets and believed time) and I6 (nothing grows for ever).
//!
//! Entries that repeat earlier ones are true only of the lane's very end: they are made inside [`Writer::write`],
//! where nothing else is written and everything is folded.

pub mod expiry;
pub mod payloads;
#[cfg(test)]
mod tests;
pub mod trim;

use super::keeper::{Keeper, KeeperError};
use crate::config::Config;
use crate::core::ledger::codec::CodecError;
use crate::core::ledger::entry::Body;
use crate::core::types::{Offset, RouteId, RoutePartition, Time};
use crate::dedup::DedupError;
use crate::log::{Log, LogError, PartitionId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Why a duty was not done.
#[derive(Debug, thiserror::Error)]
pub enum DutyError {
    /// The fold, the store or the checkpoint failed. Where it [passes](KeeperError::passes) it is tried again; else
    /// the lane's owner cannot go on.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// The log refused; tried again at the next turn.
    #[error("the ledger's log refused")]
    Log(#[from] LogError),
    /// An entry that must be carried cannot be read.
    #[error("ledger entry {at} cannot be read")]
    Entry {
        /// Its offset.
        at: Offset,
        /// Why.
        source: CodecError,
    },
    /// Somebody else writes to the lane.
    #[error("the ledger ends at {end}, its fold at {folded}")]
    Gap {
        /// Where the lane ends.
        end: Offset,
        /// Where the fold ends.
        folded: Offset,
    },
    /// The lane's owner is ending.
    #[error("the ledger's owner is ending")]
    Ending,
}

impl DutyError {
    /// Whether the lane's owner can go on, and the duty is tried again.
    pub fn passes(&self) -> bool {
        match self {
            Self::Keeper(error) => error.passes(),
            Self::Ending => false,
            Self::Log(_) | Self::Entry { .. } | Self::Gap { .. } => true,
        }
    }
}

impl From<DedupError> for DutyError {
    fn from(error: DedupError) -> Self {
        DutyError::Keeper(error.into())
    }
}

/// Makes entries from what is known at the lane's very end.
pub type Make = Box<dyn FnOnce(&Keeper) -> Result<Vec<Body>, DutyError> + Send>;

/// The way into the lane for its owner.
pub trait Writer {
    /// Calls `make` while nothing else is written to the lane and everything in it is folded, appends what it made,
    /// and comes back when that is durable and folded. Blocks.
    ///
    /// # Errors
    /// What `make` says, or why the entries are not known to be durable: they may be there or not.
    fn write(&self, make: Make) -> Result<(), DutyError>;
}

/// Bounds and rhythm of the duties.
#[derive(Clone, Debug)]
pub struct DutyRules {
    /// A checkpoint is written after so many entries.
    pub checkpoint_entries: u64,
    /// And after so long, if there was any entry.
    pub checkpoint_every: Duration,
    /// How long payloads are kept.
    pub payload_retention: Duration,
    /// Bytes of kept payloads.
    pub payload_bytes: u64,
    /// Span of a bucket of IDs.
    pub bucket: Duration,
    /// How long IDs are remembered, of the route that remembers longest.
    pub retention: Duration,
    /// How often partitions write their positions: what was looked up so long ago is in the ledger.
    pub position_every: Duration,
    /// How often payloads, buckets and the lane's start are looked at.
    pub look_every: Duration,
    /// Fewer entries than these are not trimmed.
    pub trim_least: u64,
}

/// How often payloads, buckets and the lane's start are looked at, unless buckets are shorter than usual.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A checkpoint that could not be written is tried again after this time.
const CHECKPOINT_AGAIN: Duration = Duration::from_secs(2);
/// Trimming fewer entries than these would cost more in positions than it frees: some 800 KB.
const TRIM_LEAST: u64 = 10_000;
/// Samples that a retention may span: the fold keeps twice as many of a partition.
const SAMPLES: u32 = 350;

impl DutyRules {
    /// As configured.
    pub fn of(config: &Config) -> Self {
        let longest = config.partners.values().filter_map(|p| p.retention).max();
        Self {
            checkpoint_entries: config.ledger.checkpoint_entries,
            checkpoint_every: config.ledger.checkpoint_every,
            payload_retention: config.ledger.payload_retention,
            payload_bytes: config.ledger.payload_bytes,
            bucket: config.dedup.bucket,
            retention: longest.unwrap_or_default().max(config.dedup.retention),
            position_every: config.ledger.position_every,
            look_every: LOOK_EVERY.min(config.dedup.bucket / 4),
            trim_least: TRIM_LEAST,
        }
    }

    /// How often the ends of the inputs are written down: 24 times a bucket or payload retention, whichever is
    /// shorter, but never so often that the fold could not keep them for the longest retention.
    pub fn sample_interval(&self) -> Duration {
        let longest = (self.retention + self.bucket).max(self.payload_retention);
        let wanted = self.bucket.min(self.payload_retention) / 24;
        wanted.max(longest / SAMPLES).max(Duration::from_millis(1))
    }
}

/// One partition of a route, as it stands at a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Input {
    /// Which.
    pub at: RoutePartition,
    /// The topic's partition.
    pub input: PartitionId,
    /// How long its IDs are remembered.
    pub retention: Duration,
    /// Every record before this one has been looked up.
    pub looked_up: Offset,
}

/// See the module.
pub struct Duties {
    keeper: Arc<Keeper>,
    log: Arc<dyn Log>,
    lane: PartitionId,
    rules: DutyRules,
    last_checkpoint: Option<Time>,
    /// The last one could not be written: the next try.
    checkpoint_again: Option<Time>,
    next_look: Time,
    /// When this life sampled each input last.
    sampled: BTreeMap<RoutePartition, Time>,
    /// Up to where was looked up, as far as what came of it is durable by now.
    looked_up: BTreeMap<RoutePartition, expiry::LookedUp>,
    /// The lane's start was looked at in vain: not again before the lane may be trimmed to here.
    trim_again: Offset,
}

impl Duties {
    /// Duties of the owner of this lane.
    pub fn new(keeper: Arc<Keeper>, log: Arc<dyn Log>, lane: PartitionId, rules: DutyRules) -> Self {
        Self {
            keeper,
            log,
            lane,
            rules,
            last_checkpoint: None,
            checkpoint_again: None,
            next_look: Time::ZERO,
            sampled: BTreeMap::new(),
            looked_up: BTreeMap::new(),
            trim_again: 0,
        }
    }

    /// Does what is due. Blocks. A duty that cannot be done keeps none of the others from being done: where the disk is
    /// full, expiry and trims make room.
    ///
    /// # Errors
    /// Of the first duty that could not be done; it comes again. One that does not [pass](DutyError::passes) ends the
    /// turn, and is for good.
    pub fn turn(&mut self, now: Time, inputs: &[Input], writer: &dyn Writer) -> Result<(), DutyError> {
        let mut first = Ok(());
        let mut put_off = |done: Result<(), DutyError>| match done {
            Err(error) if !error.passes() => Err(error),
            Err(error) => {
                if first.is_ok() {
                    first = Err(error);
                }
                Ok(())
            }
            Ok(()) => Ok(()),
        };
        put_off(self.checkpoint(now))?;
        self.allow_trim(inputs);
        self.note_looked_up(now, inputs);
        put_off(self.sample(now, inputs, writer))?;
        if now >= self.next_look {
            self.next_look = now.plus(self.rules.look_every);
            put_off(self.payloads(writer))?;
            put_off(self.expire(now, inputs))?;
            put_off(self.trim(now, writer))?;
        }
        first
    }

    fn checkpoint(&mut self, now: Time) -> Result<(), DutyError> {
        let entries = self.keeper.since_checkpoint();
        let last = *self.last_checkpoint.get_or_insert(now);
        let over = entries > 0 && now.since(last) >= self.rules.checkpoint_every;
        let due = match self.checkpoint_again {
            Some(again) => now >= again || now < last,
            None => over || entries >= self.rules.checkpoint_entries,
        };
        if due {
            self.last_checkpoint = Some(now);
            let again = self.rules.checkpoint_every.min(CHECKPOINT_AGAIN);
            self.checkpoint_again = Some(now.plus(again));
            self.keeper.checkpoint()?;
            self.checkpoint_again = None;
        }
        Ok(())
    }

    /// Inputs of routes that no configuration has at present, and their positions: what stands behind one is kept until
    /// the route is back, or an operator forgets it.
    fn unserved(&self, inputs: &[Input]) -> Vec<(PartitionId, Offset)> {
        let served: BTreeSet<RouteId> = inputs.iter().map(|input| input.at.route).collect();
        let unserved: Vec<_> = self.keeper.with_state(|state| {
            let unserved = state
                .partitions
                .iter()
                .filter(|(at, _)| !served.contains(&at.route));
            let known =
                unserved.filter_map(|(at, p)| Some((at.partition, p.position, state.routes.get(&at.route)?)));
            known
                .map(|(partition, position, route)| {
                    (partition, position, route.topic.clone(), route.topic_id)
                })
                .collect()
        });
        let input = |(partition, position, topic, id): (u32, Offset, String, _)| {
            let meta = self.log.topic(&topic).filter(|meta| meta.id == id)?;
            Some((*meta.partitions.get(partition as usize)?, position))
        };
        unserved.into_iter().filter_map(input).collect()
    }

    /// Tells the log up to where no route needs the records of an input: what stands before a route's durable
    /// position is finished, or has its payload in the ledger (I1).
    fn allow_trim(&self, inputs: &[Input]) {
        let mut needed: BTreeMap<PartitionId, Offset> = BTreeMap::new();
        self.keeper.with_state(|state| {
            for input in inputs {
                let position = state.partitions.get(&input.at).map_or(0, |p| p.position);
                let from = needed.entry(input.input).or_insert(position);
                *from = position.min(*from);
            }
        });
        for (input, position) in self.unserved(inputs) {
            if let Some(from) = needed.get_mut(&input) {
                *from = position.min(*from);
            }
        }
        for (input, from) in needed {
            self.log.allow_trim(input, from);
        }
    }
}
