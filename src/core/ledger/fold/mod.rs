//! The fold of a lane: from its entries, in order, to what is known of every message that is not simply finished.
//! IDs that are finished go to the dedup store as [`StoreOp`]s; all the rest lives here and in the checkpoint.
//! The same code folds live commits, the tail after a restart, and a rebuild from the start: what it makes of a
//! prefix depends on the entries of that prefix alone.
//!
//! **Rules for a message** (`messages.rs` holds them; "closed" is parked, dead or skipped):
//!
//! | entry | nothing known | open | later | closed |
//! |---|---|---|---|---|
//! | intent | open | same or next attempt: replaces it | open | ignored |
//! | delivered | remembered | gone, remembered | gone, remembered | gone, remembered |
//! | mark | remembered | ignored | ignored | gone, remembered |
//! | later | later ¹ | later, unless of an earlier attempt | later, unless of an earlier attempt | ignored |
//! | waiting | later, payload here | payload here | later, payload here | ignored |
//! | parked, dead, skipped | closed ² | closed, unless of an earlier attempt | closed | parked → dead, else ignored |
//! | opened (round r + 1) | ignored | ignored | ignored | of round r: later, not before zero ³ |
//! | drop | – | ignored | ignored | gone; the ID stays remembered |
//! | forget | no longer remembered | ignored | ignored | gone, no longer remembered |
//!
//! An entry of an older round than the message's is ignored, one of a newer round is taken as if nothing were
//! known (the entry that opened it was trimmed). Whatever becomes of an intent, its slot counts as used.
//! ¹ not in a fold from offset 0, if its record is finished for the position: then it repeats what a later entry
//! settled. ² not if a round
//! as high is known to be over ([`PartitionState::rounds`]) and its record is finished. ³ not once its payload was
//! given up: then it is only listed. Giving up is a carried copy of the closed message without the payload.
//!
//! **Start.** Offset 0 must be the genesis. A fold may start at any later offset (a trim point): outcomes whose
//! intents lie before it are taken as they are; what was carried names itself again.
//!
//! **Carried** entries repeat one that lies before. If this fold has folded that one itself, only the place of its
//! payload moves; else it is applied, unless something newer than carried entries is known of the message. Nothing
//! is counted twice. A commit that carries holds every entry before the trim point of which
//! [`LaneState::must_carry`] says so and those of [`LaneState::opened_behind`], first those with a payload, then the
//! others, each in the order of their offsets; then fresh `Position`s and, last, fresh `Used`s, which fill up what
//! the carried intents lack.
//!
//! **Tenures.** On one machine there is one writer, so every entry is accepted in the order of the log. With Kafka
//! the fence comes before the `owner` entry: behind it no entry of an earlier tenure can land but those that the
//! same life stamped anew, so the order of the log decides there too, and the fold needs no rule of its own.

mod effects;
mod held;
mod messages;
pub mod used;
mod view;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

pub use effects::{Effect, Effects};
pub use held::{Messages, Totals};
pub use used::{UsedBudgets, UsedSlots};

use super::codec::{REASON_MAX, WORDS_MAX, cut};
use super::entry::*;
use crate::core::ranges::RangeSet;
use crate::core::types::*;
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

/// Message IDs are hashes already: their first eight bytes are as good as any hash of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        if let Some(head) = bytes.first_chunk::<8>() {
            self.0 = u64::from_ne_bytes(*head);
        }
    }
    // The length of the array, which is no part of the ID.
    #[inline]
    fn write_usize(&mut self, _: usize) {}
    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

/// A map by message ID.
pub type ById<V> = HashMap<MessageId, V, BuildHasherDefault<IdHasher>>;

/// Samples kept of a partition; the oldest go first, which only lengthens the memory.
pub const SAMPLES_MAX: usize = 768;
/// Rounds remembered of a partition's finished messages; beyond that the older half goes.
pub const ROUNDS_MAX: usize = 65_536;
/// Lives remembered as having nothing on the wire.
pub const RELEASED_MAX: usize = 64;

/// What is known after some prefix of a lane.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LaneState {
    /// Identity of the ledger, once its first entry was read.
    pub genesis: Option<Genesis>,
    /// The present owner.
    pub owner: Option<Owner>,
    /// The present tenure.
    pub tenure: Tenure,
    /// Offset of the first entry this fold has seen: 0, or a trim point.
    pub first: Offset,
    /// Offset of the next entry to be folded.
    pub next: Offset,
    /// Lives that said they have nothing on the wire any more, oldest first.
    pub released: Vec<LifeId>,
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
    pub used: UsedBudgets,
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

/// One partition of one route.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PartitionState {
    /// Every record before this one is finished.
    pub position: Offset,
    /// Finished ranges at or above the position.
    pub finished: RangeSet,
    /// One past the highest record ever taken up.
    pub high_water: Offset,
    /// Leader epoch of the position (Kafka); 0 on the embedded log.
    pub leader_epoch: u32,
    /// Messages with an open intent, waiting, parked, dead or skipped.
    pub messages: Messages,
    /// The last round, and the ledger offset that ended it, of messages that are in `messages` no longer and were
    /// opened again, dropped or forgotten: their next round must be a higher one. Bounded by [`ROUNDS_MAX`].
    pub rounds: ById<(u32, Offset)>,
    /// End offsets of the input at times, in the order of the ledger: what judges the age of IDs.
    pub samples: Vec<Sampled>,
    /// Finished messages by what became of them, since the lane's start.
    pub counts: Counts,
}

/// The end of a partition's input at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampled {
    /// Offset of the ledger entry that said so first; 0 if it is not known (from a checkpoint of 0.1).
    pub ledger: Offset,
    /// Under which tenure: all times of one come from one clock, which runs on and never jumps.
    pub tenure: Tenure,
    /// When, by that clock.
    pub when: Time,
    /// The next offset of the input then.
    pub end: Offset,
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
    /// Called delivered by a command.
    pub marked: u64,
}

/// A message that is not simply finished.
#[derive(Clone, Copy, Debug, PartialEq)]
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
    /// That entry holds the message without its payload: it was given up, and the message is only listed. Such a
    /// message cannot be opened again.
    pub dropped: bool,
    /// Offset of the ledger entry that opened its round and fixes its Idempotency-Key; 0 in the first round, and
    /// once the round is closed: the kept message names the key then.
    pub opened: Offset,
    /// Whether all that is known of it was carried: the fold started behind the entries themselves.
    pub carried: bool,
}

/// States of a [`Message`].
#[derive(Clone, Copy, Debug, PartialEq)]
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
    pub readable: Bytes,
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
    ///
    /// # Errors
    /// [`FoldError`]; the state is then as it was before.
    pub fn apply(&mut self, at: Offset, entry: &Entry, ops: &mut Vec<StoreOp>) -> Result<(), FoldError> {
        self.apply_live(at, entry, ops, &mut Effects::new())
    }

    /// The same in a running node: appends to `effects` what follows for its actors, too.
    ///
    /// # Errors
    /// [`FoldError`]; the state is then as it was before.
    pub fn apply_live(
        &mut self,
        at: Offset,
        entry: &Entry,
        ops: &mut Vec<StoreOp>,
        effects: &mut Effects,
    ) -> Result<(), FoldError> {
        if at < self.next {
            return Err(FoldError::Order { at, next: self.next });
        }
        let nothing_yet = self.next == 0;
        if let Body::Genesis(_) = entry.body {
            if !nothing_yet || at != 0 {
                return Err(genesis_error(at, "a second genesis"));
            }
        } else if nothing_yet && at == 0 {
            return Err(genesis_error(at, "the lane does not begin with its genesis"));
        }
        if let Body::Carried { entry, .. } = &entry.body
            && let Body::Genesis(carried) = &entry.body
            && self.genesis.as_ref().is_some_and(|known| known != carried)
        {
            return Err(genesis_error(at, "a carried genesis differs from the first one"));
        }
        if nothing_yet {
            self.first = at;
        }
        self.next = at + 1;
        match &entry.body {
            Body::Intent(i) => {
                self.note_used(i);
                self.partition(i.at).intent(i, false);
            }
            Body::Outcome(o) => {
                let whole = self.first == 0;
                self.partition(o.at).outcome(at, o, false, whole, ops);
            }
            Body::Waiting(w) => self.partition(w.at).waiting(at, w, false, ops),
            Body::Position(p) => self.partition(p.at).raise(p),
            Body::Opened(o) => effects.push((at, self.open(at, o))),
            Body::Command(c) => {
                let mut follow = |effect| effects.push((at, effect));
                self.command(at, c, ops, &mut follow);
            }
            Body::Sample(s) => {
                self.used.sweep_some(at, s.when);
                self.partition(s.at).sample(at, entry.tenure, s);
            }
            Body::Used(u) => self.used.fill_up(u),
            Body::Applied { version } => self.settings = self.settings.max(*version),
            Body::Genesis(g) => self.genesis = Some(g.clone()),
            Body::Owner(o) => {
                if self.owner.as_ref().is_none_or(|known| known.life != o.life) {
                    self.used.new_life();
                }
                self.owner(at, o);
            }
            Body::Released(lives) => self.release(lives),
            Body::Route(r) => {
                self.routes.insert(r.route, r.clone());
            }
            Body::Carried { original, entry } => self.carried(at, *original, entry, ops),
            Body::Unknown { .. } => {}
        }
        Ok(())
    }

    fn partition(&mut self, at: RoutePartition) -> &mut PartitionState {
        self.partitions.entry(at).or_default()
    }

    fn note_used(&mut self, i: &Intent) {
        for draw in &i.budgets {
            self.used.note(*draw, i.slot);
        }
    }

    fn owner(&mut self, at: Offset, owner: &Owner) {
        self.released.retain(|life| *life != owner.life);
        self.tenure = Tenure(at);
        self.owner = Some(owner.clone());
    }

    fn release(&mut self, lives: &[LifeId]) {
        for life in lives {
            self.released.retain(|known| known != life);
            self.released.push(*life);
        }
        let over = self.released.len().saturating_sub(RELEASED_MAX);
        self.released.drain(..over);
    }

    fn open(&mut self, at: Offset, o: &Opened) -> Effect {
        let (place, id) = (o.at, o.id);
        match self.partition(place).opened(at, o, false) {
            Some(m) => Effect::Opened {
                at: place,
                id,
                round: o.round,
                key: m.key,
                offset: m.offset,
                idempotency_key: o.idempotency_key.as_str().into(),
            },
            None => Effect::Refused {
                at: place,
                id,
                mark: false,
            },
        }
    }

    fn command(&mut self, at: Offset, c: &Command, ops: &mut Vec<StoreOp>, follow: &mut dyn FnMut(Effect)) {
        self.commands = self.commands.max(c.offset);
        match &c.action {
            Action::Forget { at: place, id } => {
                let ended = self.partition(*place).forget(at, *place, *id, ops);
                follow_end(
                    ended,
                    *place,
                    *id,
                    Some(Effect::Forgotten { at: *place, id: *id }),
                    follow,
                );
            }
            Action::Mark {
                at: place,
                id,
                offset,
            } => {
                let ended = self.partition(*place).mark(at, *place, *id, *offset, c.when, ops);
                follow_end(
                    ended,
                    *place,
                    *id,
                    Some(Effect::Marked { at: *place, id: *id }),
                    follow,
                );
            }
            Action::Drop { at: place, id } => {
                let ended = self.partition(*place).give_up(at, *id);
                follow_end(ended, *place, *id, None, follow);
            }
            Action::SkipAdd(rule) => {
                self.skips.insert(rule.rule, cut_rule(rule));
                follow(self.skips_changed());
            }
            Action::SkipRemove { rule } => {
                self.skips.remove(rule);
                follow(self.skips_changed());
            }
            Action::Pause {
                partner,
                route,
                reason,
            } => {
                let pause = Pause {
                    reason: cut(reason, REASON_MAX).to_owned(),
                    since: c.when,
                    who: cut(&c.who, WORDS_MAX).to_owned(),
                };
                match route {
                    Some(route) => {
                        follow(Effect::RouteStopped {
                            route: *route,
                            reason: pause.reason.clone(),
                        });
                        self.stopped.insert(*route, pause)
                    }
                    None => {
                        follow(Effect::Paused {
                            partner: partner.clone(),
                        });
                        self.paused.insert(partner.clone(), pause)
                    }
                };
            }
            Action::Audit { .. } => {}
            Action::ForgetRoute { route } => {
                let ledger = at;
                self.partitions.retain(|at, partition| {
                    let stays = at.route != *route;
                    if !stays {
                        partition.forget_all(ledger, *at, c.when, ops);
                    }
                    stays
                });
                self.routes.remove(route);
                self.stopped.remove(route);
            }
            Action::Resume { partner, route } => {
                match route {
                    Some(route) => {
                        follow(Effect::RouteResumed { route: *route });
                        self.stopped.remove(route)
                    }
                    None => {
                        follow(Effect::Resumed {
                            partner: partner.clone(),
                        });
                        self.paused.remove(partner)
                    }
                };
            }
        }
    }

    fn skips_changed(&self) -> Effect {
        Effect::SkipsChanged(Arc::new(self.skips.values().cloned().collect()))
    }

    /// An entry repeated: what this fold has folded itself only moves; else it is news, if nothing newer is known.
    fn carried(&mut self, at: Offset, original: Offset, entry: &Entry, ops: &mut Vec<StoreOp>) {
        let news = original < self.first;
        match &entry.body {
            Body::Outcome(o) => self.partition(o.at).carried_outcome(at, original, news, o, ops),
            Body::Waiting(w) => self.partition(w.at).carried_waiting(at, original, news, w, ops),
            // These only rise, so that a repetition changes nothing.
            Body::Position(p) => self.partition(p.at).raise(p),
            Body::Applied { version } => self.settings = self.settings.max(*version),
            Body::Used(u) => self.used.fill_up(u),
            Body::Genesis(g) => self.genesis = Some(g.clone()),
            Body::Opened(o) => self.partition(o.at).carried_opened(at, original, o),
            _ if !news => {}
            Body::Intent(i) => {
                for draw in &i.budgets {
                    self.used.note_carried(*draw, i.slot);
                }
                self.partition(i.at).carried_intent(i);
            }
            Body::Sample(s) => self.partition(s.at).sample(original, entry.tenure, s),
            Body::Owner(o) => {
                if self.owner.is_none() {
                    self.owner(original, o);
                }
            }
            Body::Released(lives) => self.release(lives),
            Body::Route(r) => {
                self.routes.entry(r.route).or_insert_with(|| r.clone());
            }
            Body::Command(c) => self.carried_command(at, c, ops),
            Body::Carried { .. } | Body::Unknown { .. } => {}
        }
    }

    fn carried_command(&mut self, at: Offset, c: &Command, ops: &mut Vec<StoreOp>) {
        let known = match &c.action {
            Action::SkipAdd(rule) => self.skips.contains_key(&rule.rule),
            Action::Pause { route: Some(r), .. } => self.stopped.contains_key(r),
            Action::Pause { partner, .. } => self.paused.contains_key(partner),
            Action::Mark { at, id, .. } => self
                .partitions
                .get(at)
                .is_some_and(|p| p.messages.contains_key(id)),
            // What these undid may have been done again since.
            Action::Forget { .. }
            | Action::Drop { .. }
            | Action::Audit { .. }
            | Action::ForgetRoute { .. }
            | Action::Resume { .. }
            | Action::SkipRemove { .. } => true,
        };
        if known {
            self.commands = self.commands.max(c.offset);
        } else {
            self.command(at, c, ops, &mut |_| {});
        }
    }
}

/// What an order made of a message that it ends.
enum Ended {
    /// Nothing: the message is on the wire, or waits for its next attempt.
    Refused,
    /// It is over. `doubt`: it was parked.
    Over { doubt: bool },
}

fn follow_end(
    ended: Ended,
    at: RoutePartition,
    id: MessageId,
    effect: Option<Effect>,
    follow: &mut dyn FnMut(Effect),
) {
    match ended {
        Ended::Refused => follow(Effect::Refused {
            at,
            id,
            mark: matches!(effect, Some(Effect::Marked { .. })),
        }),
        Ended::Over { doubt } => {
            effect.into_iter().for_each(&mut *follow);
            if doubt {
                follow(Effect::Settled { at, id });
            }
        }
    }
}

fn genesis_error(at: Offset, detail: &str) -> FoldError {
    FoldError::Genesis {
        at,
        detail: detail.to_owned(),
    }
}

/// The rule as it comes back from the ledger: live and after a restart it must be the same one.
pub(crate) fn cut_rule(rule: &SkipRule) -> SkipRule {
    let copy = |bytes: &Bytes| Bytes::copy_from_slice(bytes);
    SkipRule {
        // A copy, not a slice that keeps the buffer it was read into alive.
        matches: match &rule.matches {
            SkipMatch::Key(key) => SkipMatch::Key(copy(key)),
            SkipMatch::Id(id) => SkipMatch::Id(copy(id)),
        },
        reason: cut(&rule.reason, REASON_MAX).to_owned(),
        ..rule.clone()
    }
}
