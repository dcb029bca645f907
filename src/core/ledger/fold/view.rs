//! Questions about a folded lane.

use super::*;

/// Bytes of a partition beside what it lists, of a finished range in its tree, of a remembered round in its table, and
/// of the starts drawn from a budget.
const PARTITION_BYTES: usize = 400;
const RANGE_BYTES: usize = 26;
const ROUND_BYTES: usize = 37;
/// Bytes of a skip rule: names, words, its place in the tree, and its copies where it is in force.
const SKIP_BYTES: usize = 700;

impl LaneState {
    /// Messages with an attempt that is, or may be, on the wire.
    #[cfg(test)]
    pub fn open_intents(&self) -> impl Iterator<Item = (RoutePartition, MessageId, Message)> {
        self.partitions
            .iter()
            .flat_map(|(at, p)| p.messages.live().map(|(id, m)| (*at, id, m)))
            .filter(|(_, _, m)| matches!(m.state, MessageState::Open { .. }))
    }

    /// Open intents of other lives than this one: the doubts a taker must settle (I3). Intents of the own life are
    /// matched with what the process has in hand.
    #[cfg(test)]
    pub fn doubts(&self, own: LifeId) -> impl Iterator<Item = (RoutePartition, MessageId, Message)> {
        self.open_intents()
            .filter(move |(_, _, m)| matches!(m.state, MessageState::Open { life, .. } if life != own))
    }

    /// All messages that are not simply finished, in no order within a partition.
    pub fn messages(&self) -> impl Iterator<Item = (RoutePartition, MessageId, Message)> {
        self.partitions
            .iter()
            .flat_map(|(at, p)| p.messages.iter().map(|(id, m)| (*at, id, m)))
    }

    /// Bytes of memory, as near as counting entries comes.
    pub fn memory(&self) -> usize {
        let partitions = self.partitions.values().map(|p| {
            PARTITION_BYTES
                + p.messages.memory()
                + p.finished.len() * RANGE_BYTES
                + p.rounds.capacity() * ROUND_BYTES
                + p.samples.capacity() * size_of::<Sampled>()
        });
        partitions.sum::<usize>() + self.used.memory() + self.skips.len() * SKIP_BYTES
    }

    /// Of each message what is known, unless it is closed or gone.
    pub fn unfinished(&self, at: RoutePartition, ids: &[MessageId]) -> Vec<Option<Message>> {
        let messages = self.partitions.get(&at).map(|p| &p.messages);
        let one = |id: &MessageId| messages?.get(id).filter(|m| !m.closed());
        ids.iter().map(one).collect()
    }

    /// How many messages are in which state.
    pub fn totals(&self) -> Totals {
        let mut all = Totals::default();
        self.partitions
            .values()
            .for_each(|p| all.add(&p.messages.totals()));
        all
    }

    /// Bytes of the payloads that live in the ledger, those given up not counted.
    pub fn payload_bytes(&self) -> u64 {
        self.totals().payload_bytes
    }
}

impl LaneState {
    /// Entries at or behind a trim point that must be carried too, rising: those that opened a round whose payload
    /// lies before it, or was carried behind them by an owner who died before it could carry them as well. A fold
    /// that starts at the trim point meets them before there is anything to open.
    pub fn opened_behind(&self, trim: Offset) -> Vec<Offset> {
        let unsettled = self.partitions.values().flat_map(|p| p.messages.unsettled());
        let too_early = |m: &Message| m.payload.is_some_and(|p| p.0 < trim || p.0 > m.opened);
        let mut opened: Vec<Offset> = unsettled
            .filter(|(_, m)| m.opened >= trim && too_early(m))
            .map(|(_, m)| m.opened)
            .collect();
        opened.sort_unstable();
        opened
    }

    /// Whether this entry, at its offset, must be carried before the lane may be trimmed behind it: for what this
    /// state, folded to the lane's end, still rests on. Not asked for: positions and `used`, which are written anew,
    /// and delivered messages, whose IDs are the dedup store's (carry those of a bucket that is kept).
    pub fn must_carry(&self, offset: Offset, entry: &Entry) -> bool {
        let message =
            |at: &RoutePartition, id: &MessageId| self.partitions.get(at).and_then(|p| p.messages.get(id));
        match &entry.body {
            // A sample is known by where it stood first.
            Body::Carried { original, entry } => match &entry.body {
                Body::Sample(_) => self.must_carry(*original, entry),
                _ => self.must_carry(offset, entry),
            },
            Body::Genesis(_) | Body::Unknown { .. } => true,
            Body::Owner(o) => self.owner.as_ref() == Some(o),
            Body::Route(r) => self.routes.contains_key(&r.route),
            Body::Applied { version } => self.settings == *version,
            Body::Intent(i) => message(&i.at, &i.id).is_some_and(|m| {
                matches!(m.state, MessageState::Open { slot, .. } if slot == i.slot)
                    && (m.round, m.attempts) == (i.round, i.attempt)
            }),
            Body::Outcome(o) => message(&o.at, &o.id).is_some_and(|m| match &o.kind {
                OutcomeKind::Delivered { .. } => false,
                OutcomeKind::Later { not_before, .. } => {
                    m.state
                        == MessageState::Later {
                            not_before: *not_before,
                        }
                        && (m.round, m.attempts) == (o.round, o.counted_attempts())
                }
                _ => m.payload.is_some_and(|p| p.0 == offset),
            }),
            Body::Waiting(w) => {
                message(&w.at, &w.id).is_some_and(|m| m.payload.is_some_and(|p| p.0 == offset))
            }
            Body::Opened(o) => message(&o.at, &o.id).is_some_and(|m| m.opened == offset && !m.closed()),
            Body::Command(c) => match &c.action {
                Action::SkipAdd(rule) => self.skips.get(&rule.rule).is_some_and(|r| r.made == rule.made),
                Action::Pause { route: Some(r), .. } => {
                    self.stopped.get(r).is_some_and(|p| p.since == c.when)
                }
                Action::Pause { partner, .. } => self.paused.get(partner).is_some_and(|p| p.since == c.when),
                _ => false,
            },
            Body::Sample(s) => self.partitions.get(&s.at).is_some_and(|p| {
                let known = |sample: &Sampled| sample.ledger.cmp(&offset);
                p.samples.binary_search_by(known).is_ok()
            }),
            Body::Position(_) | Body::Used(_) | Body::Released(_) => false,
        }
    }
}

impl PartitionState {
    /// What a message that is listed with its payload answers for: it is known as long as that lasts, also once the
    /// store has let its ID go. One that only the topic has is none: its record is still to be taken up.
    pub fn listed(&self, id: &MessageId) -> Option<FinishedState> {
        if self.messages.totals().kept == 0 {
            return None;
        }
        let message = self.messages.get(id).filter(|m| m.payload.is_some())?;
        Some(match message.state {
            MessageState::Parked => FinishedState::Parked,
            MessageState::Dead => FinishedState::Dead,
            MessageState::Skipped => FinishedState::Skipped,
            MessageState::Open { .. } | MessageState::Later { .. } => FinishedState::Waiting,
        })
    }

    /// The round in which a message that is not in `messages` and not in the store would be sent.
    pub fn next_round(&self, id: &MessageId) -> u32 {
        self.rounds
            .get(id)
            .map_or(1, |(round, _)| round.saturating_add(1))
    }
}
