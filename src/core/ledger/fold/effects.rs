//! What follows from folded entries for the actors of a running node.
//!
//! An operator's order becomes entries of the lane; folding them yields these effects, beside the operations on the
//! dedup store. The ledger's actor hands them to the partitions and gates that they concern. Whether the one who gave
//! the order still waits for an answer does not matter, nor on which node he asked. A partition that is being built
//! takes everything up to an offset from the fold itself, and ignores effects of entries before that offset.
//!
//! Carried entries have no effect: what they repeat was in force before.

use super::super::entry::SkipRule;
use crate::core::types::{KeyHash, MessageId, Offset, RouteId, RoutePartition};
use std::sync::Arc;

/// An effect, and the offset of the entry that it follows from.
pub type Effects = Vec<(Offset, Effect)>;

/// What follows from one entry.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// A round begins: send the message from its kept payload.
    Opened {
        /// Route and partition.
        at: RoutePartition,
        /// Which message.
        id: MessageId,
        /// The round.
        round: u32,
        /// Its key.
        key: KeyHash,
        /// Position of its record.
        offset: Offset,
        /// The Idempotency-Key of this round.
        idempotency_key: Arc<str>,
    },
    /// A doubt was settled: if it held its key, the key may go on.
    Settled {
        /// Route and partition.
        at: RoutePartition,
        /// The message that was in doubt.
        id: MessageId,
    },
    /// An ID is called delivered: a record of it that waits in memory is a duplicate now.
    Marked {
        /// Route and partition.
        at: RoutePartition,
        /// Which message.
        id: MessageId,
    },
    /// An ID is no longer remembered; the next record of it begins a later round.
    Forgotten {
        /// Route and partition.
        at: RoutePartition,
        /// Which message.
        id: MessageId,
    },
    /// The entry changed nothing: its message was not what the order took it for.
    Refused {
        /// Route and partition.
        at: RoutePartition,
        /// Which message.
        id: MessageId,
        /// The entry would have called it delivered.
        mark: bool,
    },
    /// These are the skip rules now.
    SkipsChanged(Arc<Vec<SkipRule>>),
    /// A partner is paused.
    Paused {
        /// Which.
        partner: String,
    },
    /// A partner's pause ended.
    Resumed {
        /// Which.
        partner: String,
    },
    /// A route stopped.
    RouteStopped {
        /// Which.
        route: RouteId,
        /// Why.
        reason: String,
    },
    /// A stopped route goes on.
    RouteResumed {
        /// Which.
        route: RouteId,
    },
}

impl Effect {
    /// The message whose calling delivered this decides, if it does.
    pub fn claimed(&self) -> Option<MessageId> {
        match self {
            Effect::Marked { id, .. } | Effect::Refused { id, mark: true, .. } => Some(*id),
            _ => None,
        }
    }
}
