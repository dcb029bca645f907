//! Questions about a folded lane.

use super::*;

/// A payload held by the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldPayload {
    /// When its message came into its present state.
    pub since: Time,
    /// Route and partition.
    pub at: RoutePartition,
    /// Which message.
    pub id: MessageId,
    /// Offset of the ledger entry that holds it.
    pub ledger: Offset,
    /// Its bytes.
    pub bytes: u32,
}

impl LaneState {
    /// Messages with an attempt that is, or may be, on the wire. Goes over all messages.
    pub fn open_intents(&self) -> impl Iterator<Item = (RoutePartition, MessageId, &Message)> {
        self.messages()
            .filter(|(_, _, m)| matches!(m.state, MessageState::Open { .. }))
    }

    /// Open intents of other lives than this one: the doubts a taker must settle (I3). Intents of the own life are
    /// matched with what the process has in hand. Goes over all messages.
    pub fn doubts(&self, own: LifeId) -> impl Iterator<Item = (RoutePartition, MessageId, &Message)> {
        self.messages()
            .filter(move |(_, _, m)| matches!(m.state, MessageState::Open { life, .. } if life != own))
    }

    /// All messages that are not simply finished, in no order within a partition.
    pub fn messages(&self) -> impl Iterator<Item = (RoutePartition, MessageId, &Message)> {
        self.partitions
            .iter()
            .flat_map(|(at, p)| p.messages.iter().map(|(id, m)| (*at, *id, m)))
    }

    /// How many messages have their payload in the ledger. Goes over all messages.
    pub fn kept_count(&self) -> u64 {
        self.messages().filter(|(_, _, m)| m.payload.is_some()).count() as u64
    }

    /// Bytes of the payloads that live in the ledger. Goes over all messages.
    pub fn payload_bytes(&self) -> u64 {
        self.messages()
            .filter_map(|(_, _, m)| m.payload)
            .map(|(_, bytes)| u64::from(bytes))
            .sum()
    }

    /// The payloads that live in the ledger, those longest in their state first: the order in which retention and
    /// a size cap end them. Goes over all messages.
    pub fn payloads_by_age(&self) -> Vec<HeldPayload> {
        let mut held: Vec<HeldPayload> = self
            .messages()
            .filter_map(|(at, id, m)| {
                m.payload.map(|(ledger, bytes)| HeldPayload {
                    since: m.since,
                    at,
                    id,
                    ledger,
                    bytes,
                })
            })
            .collect();
        held.sort_unstable_by_key(|h| (h.since, h.ledger, h.id));
        held
    }
}

impl PartitionState {
    /// The round in which a message that is not in `messages` and not in the store would be sent.
    pub fn next_round(&self, id: &MessageId) -> u32 {
        self.rounds
            .get(id)
            .map_or(1, |(round, _)| round.saturating_add(1))
    }
}
