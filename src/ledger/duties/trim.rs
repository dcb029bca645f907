//! Trimming: the lane's entries before some offset go, after what must live on was carried, durably, to its end.
//!
//! The point is as far as three things allow: the last checkpoint and the store's blocks (a restart must not need
//! what is gone), the IDs that the store still remembers (the lane is what it would be built from again), and the
//! rule that at most half of the bytes before the point may have to be carried: copying then never costs more than
//! writing did. Which entries those are is the fold's to say ([`LaneState::must_carry`]) and, for finished messages,
//! the store's.
//!
//! Carrying goes in parts, each true of the lane's end when it is written; between two parts the lane goes on. The
//! last part ends with all positions, and what the budgets have used follows; then the log trims. Killed anywhere before that, the lane is
//! whole, and some of its entries stand in it twice.

use super::{Duties, DutyError, Writer};
use crate::core::ledger::codec;
use crate::core::ledger::entry::{Action, Body, BudgetDraw, Command, Entry, Outcome, OutcomeKind, Position};
use crate::core::ledger::fold::{Finished, FinishedState, LaneState};
use crate::core::ledger::retention::{Over, over_since};
use crate::core::types::{MessageId, Offset, RoutePartition, Time};
use crate::ledger::keeper::Keeper;
use crate::log::{Bounds, Log, PartitionId};
use std::collections::{BTreeMap, HashSet};

/// Bytes of one read of the lane.
const CHUNK: usize = 1 << 20;
/// A look over the lane ends after so many bytes, if the point found by then is a good one.
const LOOK: u64 = 128 << 20;
/// Entries carried by one trim at most.
const MOST: usize = 2_000_000;
/// Bytes of entries carried in one write: the lane is held meanwhile.
const PART_BYTES: usize = 1 << 20;
/// Entries carried in one write.
const PART: usize = 1_000;
/// Who carries an operator's order on, in the ledger's words.
const WHO: &str = "sluicegate";

/// What a look over the lane has found.
struct Point {
    /// Everything before it may go, once these entries are carried.
    trim: Offset,
    carry: Vec<Offset>,
}

/// An entry as it was read: offset, bytes, the entry.
type Read = (Offset, usize, Entry);
/// Samples that stand before this offset, and were taken when what ended then has been kept for long enough, are not asked
/// for any more.
type SamplesFrom = BTreeMap<RoutePartition, (Offset, Over)>;

/// What a finished message's entry has left in the store, if that is still what the store says.
enum Remembered {
    /// The store names this entry.
    ByEntry,
    /// The store names this state of the record, by whatever entry.
    As(FinishedState, Offset, u32),
}

impl Remembered {
    fn is(&self, at: Offset, found: &Finished) -> bool {
        match self {
            Remembered::ByEntry => found.ledger == at,
            Remembered::As(state, offset, attempts) => {
                (found.state, found.offset, found.attempts) == (*state, *offset, *attempts)
            }
        }
    }
}

impl Duties {
    pub(super) fn trim(&mut self, now: Time, writer: &dyn Writer) -> Result<(), DutyError> {
        let Bounds { first, .. } = self.log.bounds(self.lane)?;
        let limit = self.trim_limit()?;
        if limit < first.saturating_add(self.rules.trim_least).max(self.trim_again) {
            return Ok(());
        }
        let Some(point) = self.look(first, limit)? else {
            // Not before there is half as much again to look at, or for something to have ended.
            self.trim_again = limit + (limit - first) / 2;
            return Ok(());
        };
        if point.trim < first.saturating_add(self.rules.trim_least) {
            self.trim_again = limit + (limit - first) / 2;
            return Ok(());
        }
        self.trim_again = 0;
        let carried = point.carry.len();
        self.carry(&point, now, writer)?;
        self.log.trim(self.lane, point.trim)?;
        tracing::info!(
            event = "ledger_trimmed",
            from = first,
            to = point.trim,
            carried,
            "entries that nothing rests on any more are gone"
        );
        Ok(())
    }

    /// Up to where neither a restart nor a rebuild of the store needs the lane.
    fn trim_limit(&self) -> Result<Offset, DutyError> {
        let store = self.keeper.store();
        let restart = self.keeper.checkpointed().min(store.watermark());
        // What is remembered longer than its neighbours is looked for entry by entry.
        match (store.remembers_from_offset(), store.remembers_from()) {
            (Some(from), _) if from > 0 => Ok(restart.min(from)),
            // Of a store of 0.1 no more is known than a time.
            (_, Some(from)) => Ok(restart.min(self.log.offset_at(self.lane, from)?)),
            _ => Ok(restart),
        }
    }

    /// Looks for the furthest point before `limit` behind which at most half of the bytes must be carried.
    fn look(&self, first: Offset, limit: Offset) -> Result<Option<Point>, DutyError> {
        let samples_from = self.samples_from();
        let (mut total, mut kept) = (0u64, 0u64);
        let mut carry = Vec::new();
        let mut best: Option<(Offset, usize)> = None;
        let mut at = first;
        while at < limit {
            let (entries, next) = read(self.log.as_ref(), self.lane, at, limit)?;
            let needed = self.needed(&entries, &samples_from)?;
            for (n, (offset, bytes, _)) in entries.iter().enumerate() {
                total += *bytes as u64;
                if needed.contains(&n) {
                    kept += *bytes as u64;
                    carry.push(*offset);
                }
                if kept * 2 <= total {
                    best = Some((offset + 1, carry.len()));
                }
            }
            let good = best.is_some_and(|(trim, _)| trim + 1 >= next);
            if next <= at || carry.len() >= MOST || (total >= LOOK && good) {
                break;
            }
            at = next;
        }
        Ok(best.map(|(trim, count)| {
            carry.truncate(count);
            Point { trim, carry }
        }))
    }

    /// From where on samples are needed: to judge the oldest bucket and the oldest payload.
    fn samples_from(&self) -> SamplesFrom {
        let buckets = self.keeper.store().remembers_from_offset();
        let (retention, interval) = (self.rules.payload_retention, self.rules.sample_interval());
        self.keeper.with_state(|state| {
            let from = |samples| Some((buckets?, over_since(samples, retention, interval)?));
            let partitions = state.partitions.iter();
            partitions
                .filter_map(|(at, p)| Some((*at, from(&p.samples)?)))
                .collect()
        })
    }

    /// Which of these entries must live on, by their place in the list.
    fn needed(&self, entries: &[Read], samples_from: &SamplesFrom) -> Result<HashSet<usize>, DutyError> {
        let mut needed = HashSet::new();
        let mut asked: BTreeMap<RoutePartition, Vec<(usize, MessageId, Remembered)>> = BTreeMap::new();
        self.keeper.with_state(|state| {
            for (n, (offset, _, entry)) in entries.iter().enumerate() {
                if is_old_sample(*offset, entry, samples_from) {
                    continue;
                }
                if state.must_carry(*offset, entry) {
                    needed.insert(n);
                } else if let Some((at, id, what)) = left_in_store(state, entry) {
                    asked.entry(at).or_default().push((n, id, what));
                }
            }
        });
        let mut found = Vec::new();
        for (at, asked) in asked {
            let ids: Vec<MessageId> = asked.iter().map(|(_, id, _)| *id).collect();
            self.keeper.store().lookup(at, &ids, &mut found)?;
            for ((n, _, what), found) in asked.iter().zip(&found) {
                if found.as_ref().is_some_and(|f| what.is(entries[*n].0, f)) {
                    needed.insert(*n);
                }
            }
        }
        Ok(needed)
    }

    fn carry(&self, point: &Point, now: Time, writer: &dyn Writer) -> Result<(), DutyError> {
        let mut rest = point.carry.as_slice();
        let mut part: Vec<Read> = Vec::new();
        let (mut bytes, mut at) = (0, rest.first().copied().unwrap_or(point.trim));
        while let Some(&wanted) = rest.first() {
            // Straight on: what must be carried lies close together, or there is little of it.
            let (entries, next) = read(self.log.as_ref(), self.lane, at.max(wanted), point.trim)?;
            for entry in entries {
                if rest.first() != Some(&entry.0) {
                    continue;
                }
                rest = &rest[1..];
                bytes += entry.1;
                let trim = entry.0 + 1;
                part.push(entry);
                if part.len() >= PART || bytes >= PART_BYTES {
                    bytes = 0;
                    self.carry_part(std::mem::take(&mut part), trim, false, writer)?;
                }
            }
            if next <= at {
                break;
            }
            at = next;
        }
        self.carry_part(part, point.trim, true, writer)?;
        self.used(now, writer)
    }

    /// What the budgets have used, as far as it still counts. Behind everything carried; in parts, for a split budget
    /// may have a million values, and the lane is held for each part.
    fn used(&self, now: Time, writer: &dyn Writer) -> Result<(), DutyError> {
        let mut after: Option<BudgetDraw> = None;
        loop {
            let (told, last) = std::sync::mpsc::channel();
            writer.write(Box::new(move |keeper| {
                let (entries, last) = keeper.with_state(|state| state.used.entries(after, PART, now));
                // The receiver is gone only when the duties are.
                let _ = told.send(last);
                Ok(entries.into_iter().map(Body::Used).collect())
            }))?;
            match last.try_recv() {
                Ok(Some(last)) => after = Some(last),
                _ => return Ok(()),
            }
        }
    }

    /// Carries these entries, all before `trim`, and what must stand behind them.
    fn carry_part(
        &self,
        part: Vec<Read>,
        trim: Offset,
        last: bool,
        writer: &dyn Writer,
    ) -> Result<(), DutyError> {
        let (log, lane) = (self.log.clone(), self.lane);
        writer.write(Box::new(move |keeper| {
            let mut part = part;
            for at in keeper.with_state(|state| state.opened_behind(trim)) {
                let (entries, _) = read(log.as_ref(), lane, at, at + 1)?;
                part.extend(entries);
            }
            let bodies = carried(keeper, part, trim)?;
            Ok(match last {
                true => bodies.into_iter().chain(keeper.with_state(at_the_end)).collect(),
                false => bodies,
            })
        }))
    }
}

/// Entries from `from` on, at most to `limit`: offset, bytes, entry; and where to go on.
fn read(
    log: &dyn Log,
    lane: PartitionId,
    from: Offset,
    limit: Offset,
) -> Result<(Vec<Read>, Offset), DutyError> {
    let mut records = Vec::new();
    // One alone is read alone: behind it may lie large payloads.
    let bytes = if limit - from == 1 { 1 } else { CHUNK };
    let next = log.read(lane, from, bytes, &mut records)?;
    let mut entries = Vec::with_capacity(records.len());
    for record in records.into_iter().take_while(|r| r.offset < limit) {
        let at = record.offset;
        let entry = codec::decode(&record.value).map_err(|source| DutyError::Entry { at, source })?;
        entries.push((at, record.value.len(), entry));
    }
    Ok((entries, next.min(limit)))
}

fn is_old_sample(at: Offset, entry: &Entry, from: &SamplesFrom) -> bool {
    match &entry.body {
        Body::Carried { original, entry } => is_old_sample(*original, entry, from),
        Body::Sample(s) => (from.get(&s.at))
            .is_some_and(|(offset, over)| at < *offset && s.when < over.before() && over.is(s.when)),
        _ => false,
    }
}

/// What this entry has left in the store, for a message that the fold does not list.
fn left_in_store(state: &LaneState, entry: &Entry) -> Option<(RoutePartition, MessageId, Remembered)> {
    let listed = |at: &RoutePartition, id: &MessageId| {
        state
            .partitions
            .get(at)
            .is_some_and(|p| p.messages.contains_key(id))
    };
    match &entry.body {
        Body::Carried { entry, .. } => left_in_store(state, entry),
        Body::Outcome(o) if !listed(&o.at, &o.id) => {
            let state = match &o.kind {
                OutcomeKind::Delivered { .. } => return Some((o.at, o.id, Remembered::ByEntry)),
                OutcomeKind::Later { .. } => return None,
                OutcomeKind::Dead(_) => FinishedState::Dead,
                OutcomeKind::Parked(_) => FinishedState::Parked,
                OutcomeKind::Skipped(_) => FinishedState::Skipped,
            };
            Some((o.at, o.id, Remembered::As(state, o.offset, o.attempts)))
        }
        Body::Command(command) => match &command.action {
            Action::Mark { at, id, .. } if !listed(at, id) => Some((*at, *id, Remembered::ByEntry)),
            _ => None,
        },
        _ => None,
    }
}

/// What these entries become at the lane's end, as far as they are still needed: first those with a payload, then
/// the others, each in the order of their offsets.
fn carried(keeper: &Keeper, mut part: Vec<Read>, trim: Offset) -> Result<Vec<Body>, DutyError> {
    part.sort_by_key(|(at, _, entry)| (!entry.holds_payload(), *at));
    let mut bodies = Vec::with_capacity(part.len());
    let mut asked = Vec::new();
    keeper.with_state(|state| {
        for (at, _, entry) in part {
            if at >= trim || state.must_carry(at, &entry) {
                bodies.push(entry.carry(at));
            } else if let Some((place, id, what)) = left_in_store(state, &entry) {
                asked.push((at, entry, place, id, what));
            }
        }
    });
    for (at, entry, place, id, what) in asked {
        // Not yet forgotten by an order that came meanwhile.
        let found = keeper.store().get(place, id)?;
        if found.is_some_and(|found| what.is(at, &found)) {
            match what {
                Remembered::ByEntry => bodies.push(entry.carry(at)),
                Remembered::As(..) => {
                    bodies.extend(only_remembered(at, entry, place, id).into_iter().flatten())
                }
            }
        }
    }
    Ok(bodies)
}

/// A message that left the list, and whose ID is remembered: carried without its payload, and dropped again.
fn only_remembered(at: Offset, entry: Entry, place: RoutePartition, id: MessageId) -> Option<[Body; 2]> {
    let when = outcome(&entry)?.when;
    let drop = Command {
        offset: 0,
        when,
        who: WHO.into(),
        why: "carried".into(),
        action: Action::Drop { at: place, id },
    };
    Some([entry.without_payload(at)?, drop.into()])
}

fn outcome(entry: &Entry) -> Option<&Outcome> {
    match &entry.body {
        Body::Outcome(o) => Some(o),
        Body::Carried { entry, .. } => outcome(entry),
        _ => None,
    }
}

/// What stands behind everything carried: where each route is.
fn at_the_end(state: &LaneState) -> Vec<Body> {
    let positions = state.partitions.iter().map(|(at, p)| {
        Body::Position(Position {
            at: *at,
            leader_epoch: p.leader_epoch,
            position: p.position,
            finished: p.finished.iter().collect(),
            high_water: p.high_water,
        })
    });
    positions.collect()
}
