//! What each entry makes of a message: the table in [`super`], row by row.

use super::super::codec::{READABLE_MAX, cut, cut_bytes};
use super::*;

impl Message {
    pub(super) fn closed(&self) -> bool {
        matches!(
            self.state,
            MessageState::Parked | MessageState::Dead | MessageState::Skipped
        )
    }
}

/// The ledger entry that holds a payload, and how many bytes the payload has.
fn payload(at: Offset, kept: &Kept) -> Option<(Offset, u32)> {
    let bytes = kept.value.len() + kept.headers.0.len() + kept.record_key.as_ref().map_or(0, Bytes::len);
    Some((at, u32::try_from(bytes).unwrap_or(u32::MAX)))
}

fn readable(kept: &Kept) -> Bytes {
    Bytes::copy_from_slice(cut(&kept.readable, READABLE_MAX).as_bytes())
}

impl PartitionState {
    /// Whether the record at this offset is finished for the position.
    pub fn is_finished(&self, offset: Offset) -> bool {
        offset < self.position || self.finished.contains(offset)
    }

    /// The record is finished; false if it was.
    fn finish(&mut self, offset: Offset) -> bool {
        self.high_water = self.high_water.max(offset.saturating_add(1));
        if offset == self.position && offset < Offset::MAX {
            self.position += 1;
            if !self.finished.is_empty() {
                self.position = self.finished.advance(self.position);
            }
            return true;
        }
        offset > self.position && offset < Offset::MAX && self.finished.insert(offset)
    }

    /// A message leaves `messages`, or was never there: keeps its round if that is not simply the first.
    fn over(&mut self, at: Offset, id: MessageId, round: u32) {
        if round > 1 || self.rounds.contains_key(&id) {
            self.end_round(at, id, round);
        }
    }

    fn end_round(&mut self, at: Offset, id: MessageId, round: u32) {
        let known = self.rounds.entry(id).or_insert((round, at));
        *known = (known.0.max(round), at);
        if self.rounds.len() > ROUNDS_MAX {
            // The older half goes: its messages may be sent under a round, and Idempotency-Key, used before.
            let mut ends: Vec<Offset> = self.rounds.values().map(|r| r.1).collect();
            let middle = ends.len() / 2;
            let from = *ends.select_nth_unstable(middle).1;
            self.rounds.retain(|_, r| r.1 >= from);
        }
    }

    /// Whether this round of a message that is not in `messages` is known to have ended.
    fn is_over(&self, id: MessageId, round: u32, offset: Offset) -> bool {
        self.is_finished(offset) && self.rounds.get(&id).is_some_and(|known| known.0 >= round)
    }

    pub(super) fn intent(&mut self, i: &Intent, carried: bool) {
        self.high_water = self.high_water.max(i.offset.saturating_add(1));
        let (payload, opened) = match self.messages.get(&i.id) {
            Some(m) if m.round > i.round => return,
            Some(m) if m.round == i.round => {
                if m.closed() || i.attempt < m.attempts {
                    return;
                }
                (m.payload, m.opened)
            }
            Some(m) => (m.payload, 0),
            None => (None, 0),
        };
        self.messages.insert(
            i.id,
            Message {
                state: MessageState::Open {
                    slot: i.slot,
                    life: i.life,
                    lease_ms: i.lease_ms,
                    timeout_ms: i.timeout_ms,
                },
                key: i.key,
                offset: i.offset,
                round: i.round,
                attempts: i.attempt,
                first_try: i.first_try,
                since: i.slot,
                status: 0,
                payload,
                dropped: false,
                opened,
                carried,
            },
        );
    }

    /// `whole`: the fold has seen the lane from its start.
    pub(super) fn outcome(
        &mut self,
        at: Offset,
        o: &Outcome,
        carried: bool,
        whole: bool,
        ops: &mut Vec<StoreOp>,
    ) {
        match &o.kind {
            OutcomeKind::Delivered { readable } => self.delivered(at, o, readable, carried, ops),
            OutcomeKind::Later { .. } => self.later(o, carried, whole),
            OutcomeKind::Dead(kept) => self.closed(at, o, kept, FinishedState::Dead, carried, ops),
            OutcomeKind::Parked(kept) => self.closed(at, o, kept, FinishedState::Parked, carried, ops),
            OutcomeKind::Skipped(kept) => self.closed(at, o, kept, FinishedState::Skipped, carried, ops),
        }
    }

    fn delivered(
        &mut self,
        at: Offset,
        o: &Outcome,
        readable: &Bytes,
        carried: bool,
        ops: &mut Vec<StoreOp>,
    ) {
        let known = match self.messages.get(&o.id) {
            Some(m) if m.round > o.round => return,
            Some(_) => true,
            None if self.is_over(o.id, o.round, o.offset) => return,
            None => false,
        };
        if known {
            self.messages.remove(&o.id);
        }
        let first_time = self.finish(o.offset);
        self.over(at, o.id, o.round);
        if !carried && (known || first_time) {
            self.counts.delivered += 1;
        }
        ops.push(StoreOp::Finished(finished(
            at,
            o,
            FinishedState::Delivered,
            cut_bytes(readable, READABLE_MAX),
        )));
    }

    fn later(&mut self, o: &Outcome, carried: bool, whole: bool) {
        let OutcomeKind::Later {
            not_before,
            first_try,
            key,
            ..
        } = o.kind
        else {
            return;
        };
        let (payload, opened) = match self.messages.get(&o.id) {
            Some(m) if m.round > o.round => return,
            Some(m) if m.round == o.round && (m.closed() || o.attempts < m.attempts) => return,
            Some(m) if m.round == o.round => (m.payload, m.opened),
            Some(m) => (m.payload, 0),
            None if whole && self.is_finished(o.offset) && o.round <= 1 => return,
            None if self.is_over(o.id, o.round, o.offset) => return,
            None => (None, 0),
        };
        self.high_water = self.high_water.max(o.offset.saturating_add(1));
        self.messages.insert(
            o.id,
            Message {
                state: MessageState::Later { not_before },
                key,
                offset: o.offset,
                round: o.round,
                attempts: o.counted_attempts(),
                first_try,
                since: o.when,
                status: o.status,
                payload,
                dropped: false,
                opened,
                carried,
            },
        );
    }

    fn closed(
        &mut self,
        at: Offset,
        o: &Outcome,
        kept: &Kept,
        state: FinishedState,
        carried: bool,
        ops: &mut Vec<StoreOp>,
    ) {
        match self.messages.get(&o.id) {
            Some(m) if m.round > o.round => return,
            Some(m) if m.round == o.round => match m.state {
                MessageState::Open { .. } if o.attempts < m.attempts => return,
                // An operator, or a look-up, may still settle a doubt; a definite verdict stands.
                MessageState::Parked if state != FinishedState::Dead => return,
                MessageState::Dead | MessageState::Skipped => return,
                _ => {}
            },
            Some(_) => {}
            None if self.is_over(o.id, o.round, o.offset) => return,
            None => {}
        }
        self.finish(o.offset);
        let (state_now, count) = match state {
            FinishedState::Dead => (MessageState::Dead, &mut self.counts.dead),
            FinishedState::Parked => (MessageState::Parked, &mut self.counts.parked),
            _ => (MessageState::Skipped, &mut self.counts.skipped),
        };
        *count += u64::from(!carried);
        self.messages.insert(
            o.id,
            Message {
                state: state_now,
                key: kept.key,
                offset: o.offset,
                round: o.round,
                attempts: o.attempts,
                first_try: kept.first_try,
                since: o.when,
                status: o.status,
                payload: payload(at, kept),
                dropped: kept.dropped,
                opened: 0,
                carried,
            },
        );
        ops.push(StoreOp::Finished(finished(at, o, state, readable(kept))));
    }

    pub(super) fn waiting(&mut self, at: Offset, w: &Waiting, carried: bool, ops: &mut Vec<StoreOp>) {
        let over = self.is_over(w.id, w.round, w.offset);
        match self.messages.get(&w.id) {
            Some(m) if m.round > w.round => return,
            Some(mut m) if m.round == w.round => {
                if m.closed() {
                    return;
                }
                m.payload = payload(at, &w.kept);
                m.carried &= carried;
                if !matches!(m.state, MessageState::Open { .. }) && w.attempts >= m.attempts {
                    m.state = MessageState::Later {
                        not_before: w.not_before,
                    };
                    m.attempts = w.attempts;
                }
                self.messages.insert(w.id, m);
            }
            Some(_) => self.wait(at, w, carried),
            None if over => return,
            None => self.wait(at, w, carried),
        }
        self.finish(w.offset);
        ops.push(StoreOp::Finished(Finished {
            at: w.at,
            id: w.id,
            state: FinishedState::Waiting,
            when: w.when,
            status: 0,
            attempts: w.attempts,
            offset: w.offset,
            ledger: at,
            readable: readable(&w.kept),
        }));
    }

    fn wait(&mut self, at: Offset, w: &Waiting, carried: bool) {
        self.messages.insert(
            w.id,
            Message {
                state: MessageState::Later {
                    not_before: w.not_before,
                },
                key: w.kept.key,
                offset: w.offset,
                round: w.round,
                attempts: w.attempts,
                first_try: w.kept.first_try,
                since: w.when,
                status: 0,
                payload: payload(at, &w.kept),
                dropped: false,
                opened: 0,
                carried,
            },
        );
    }

    /// The message whose round was opened; none: it is not one that can be opened so.
    pub(super) fn opened(&mut self, at: Offset, o: &Opened, carried: bool) -> Option<Message> {
        let mut m = self.messages.get(&o.id)?;
        // Without its payload there is nothing that the next round could send.
        if !m.closed() || m.dropped || m.round.checked_add(1) != Some(o.round) {
            return None;
        }
        m.state = MessageState::Later {
            not_before: Time::ZERO,
        };
        m.round = o.round;
        m.attempts = 0;
        m.first_try = Time::ZERO;
        m.since = o.when;
        m.opened = at;
        m.carried &= carried;
        self.messages.insert(o.id, m);
        Some(m)
    }

    /// Whether a carried entry that lies before the start of this fold adds to what is known of a message: nothing
    /// is known, or only what was carried before it.
    fn adds(&self, id: MessageId, round: u32) -> bool {
        match self.messages.get(&id) {
            Some(m) => m.round < round || (m.round == round && m.carried),
            None => true,
        }
    }

    pub(super) fn carried_intent(&mut self, i: &Intent) {
        if self.adds(i.id, i.round) {
            self.intent(i, true);
        }
    }

    /// Also one that this fold has folded itself: what it opened may have been carried, and so met only now.
    pub(super) fn carried_opened(&mut self, at: Offset, original: Offset, o: &Opened) {
        match self.messages.get(&o.id) {
            Some(m) if m.round == o.round && m.opened <= original => {
                self.messages.insert(o.id, Message { opened: at, ..m });
            }
            Some(m) if m.carried => drop(self.opened(at, o, true)),
            _ => {}
        }
    }

    pub(super) fn carried_outcome(
        &mut self,
        at: Offset,
        original: Offset,
        news: bool,
        o: &Outcome,
        ops: &mut Vec<StoreOp>,
    ) {
        match &o.kind {
            // Carried so that the ID is remembered on: the store takes it into its present bucket.
            OutcomeKind::Delivered { readable } => {
                if !self.messages.contains_key(&o.id) {
                    self.delivered(at, o, readable, true, ops);
                }
            }
            _ if news && self.adds(o.id, o.round) => self.outcome(at, o, true, false, ops),
            OutcomeKind::Later { .. } => {}
            OutcomeKind::Dead(kept) | OutcomeKind::Parked(kept) | OutcomeKind::Skipped(kept) => {
                self.move_payload(at, original, o.id, kept);
            }
        }
    }

    pub(super) fn carried_waiting(
        &mut self,
        at: Offset,
        original: Offset,
        news: bool,
        w: &Waiting,
        ops: &mut Vec<StoreOp>,
    ) {
        // Where something of its round is known already, that says more than this first copy.
        if news && self.messages.get(&w.id).is_none_or(|m| m.round < w.round) {
            self.waiting(at, w, true, ops);
        } else {
            self.move_payload(at, original, w.id, &w.kept);
        }
    }

    fn move_payload(&mut self, at: Offset, original: Offset, id: MessageId, kept: &Kept) {
        if let Some(mut m) = self.messages.get(&id)
            && m.payload.is_none_or(|(o, _)| o <= original)
            // Given up only where it is held for an operator: a round that began before still sends it.
            && (m.closed() || !kept.dropped)
        {
            m.payload = payload(at, kept);
            m.dropped = kept.dropped;
            self.messages.insert(id, m);
        }
    }

    pub(super) fn forget(
        &mut self,
        ledger: Offset,
        at: RoutePartition,
        id: MessageId,
        ops: &mut Vec<StoreOp>,
    ) -> Ended {
        let (round, doubt) = match self.messages.get(&id) {
            // The owner lets a `forget` wait for the verdict; one that did not would have the message sent twice.
            Some(m) if !m.closed() => return Ended::Refused,
            Some(m) => (m.round, m.state == MessageState::Parked),
            None => (1, false),
        };
        self.messages.remove(&id);
        self.end_round(ledger, id, round);
        ops.push(StoreOp::Forget { at, id });
        Ended::Over { doubt }
    }

    /// Its route is forgotten, and may come back: what waits with its payload in the ledger was never taken, and must
    /// not be known as finished then. A message whose next round was opened was finished before. What is on the wire,
    /// or may be, is in doubt for good: it is remembered as such, and not sent again (I2).
    pub(super) fn forget_all(&self, ledger: Offset, at: RoutePartition, when: Time, ops: &mut Vec<StoreOp>) {
        ops.extend(self.messages.unsettled().filter_map(|(id, m)| match m.state {
            MessageState::Later { .. } if m.payload.is_some() && m.opened == 0 => {
                Some(StoreOp::Forget { at, id })
            }
            MessageState::Open { .. } => Some(StoreOp::Finished(Finished {
                at,
                id,
                state: FinishedState::Parked,
                when,
                status: m.status,
                attempts: m.attempts,
                offset: m.offset,
                ledger,
                readable: Bytes::new(),
            })),
            _ => None,
        }));
    }

    pub(super) fn mark(
        &mut self,
        ledger: Offset,
        at: RoutePartition,
        id: MessageId,
        offset: Offset,
        when: Time,
        ops: &mut Vec<StoreOp>,
    ) -> Ended {
        // An attempt was made, or may be under way: its verdict decides, and the order was given too late.
        if self.messages.get(&id).is_some_and(|m| !m.closed()) {
            return Ended::Refused;
        }
        let mut doubt = false;
        let mut done = Finished {
            at,
            id,
            state: FinishedState::Marked,
            when,
            status: 0,
            attempts: 0,
            offset,
            ledger,
            readable: Bytes::new(),
        };
        // Only a record that the ledger knows is finished by this: the offset of a command is what someone typed.
        if let Some(m) = self.messages.remove(&id) {
            doubt = m.state == MessageState::Parked;
            (done.offset, done.attempts, done.status) = (m.offset, m.attempts, m.status);
            self.finish(m.offset);
            self.over(ledger, id, m.round);
        }
        self.counts.marked += 1;
        ops.push(StoreOp::Finished(done));
        Ended::Over { doubt }
    }

    pub(super) fn give_up(&mut self, ledger: Offset, id: MessageId) -> Ended {
        let Some(m) = self.messages.get(&id).filter(|m| m.closed()) else {
            return Ended::Refused;
        };
        let doubt = m.state == MessageState::Parked;
        self.messages.remove(&id);
        // The first round of a message that was never sent: no Idempotency-Key of it was ever used. A rule against a
        // flood drops such messages by the million, and must not push the rounds of others out.
        match m.attempts {
            0 => self.over(ledger, id, m.round),
            _ => self.end_round(ledger, id, m.round),
        }
        Ended::Over { doubt }
    }

    pub(super) fn raise(&mut self, p: &Position) {
        if p.position >= self.position {
            self.leader_epoch = p.leader_epoch;
            self.position = p.position;
        }
        for &(start, end) in &p.finished {
            self.finished.insert_range(start.max(self.position), end);
            self.high_water = self.high_water.max(end);
        }
        // Also drops what lies below the position now.
        self.position = self.finished.advance(self.position);
        self.high_water = self.high_water.max(p.high_water).max(self.position);
    }

    /// A sample, said first by the entry at `ledger`.
    pub(super) fn sample(&mut self, ledger: Offset, tenure: Tenure, s: &Sample) {
        let place = self.samples.partition_point(|known| known.ledger < ledger);
        if self
            .samples
            .get(place)
            .is_some_and(|known| known.ledger == ledger)
        {
            return;
        }
        let sampled = Sampled {
            ledger,
            tenure,
            when: s.when,
            end: s.end,
        };
        self.samples.insert(place, sampled);
        if self.samples.len() > SAMPLES_MAX {
            self.samples.drain(..SAMPLES_MAX / 8);
        }
    }
}

fn finished(at: Offset, o: &Outcome, state: FinishedState, readable: Bytes) -> Finished {
    Finished {
        at: o.at,
        id: o.id,
        state,
        when: o.when,
        status: o.status,
        attempts: o.attempts,
        offset: o.offset,
        ledger: at,
        readable,
    }
}
