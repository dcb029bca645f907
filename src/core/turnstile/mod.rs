//! Who starts when: the one gate to a partner (I5, I8).
//!
//! Words: a *ticket* is one attempt that wants to start. A *queue* is one partition of one route. A *line* is the
//! tickets of one queue that draw from the same budgets: with `by`, one line for each value, so that an exhausted
//! value holds back nobody else. A *place* is one of the partner's requests in flight. A *slot* is the time of a
//! start, with a place and the draws from the budgets already made.
//!
//! What a start needs, all at once: no pause by an operator, the partner's own pause (Retry-After) over, the breaker's
//! leave, something left of what its RateLimit header allows, a place, and a slot of every budget.
//!
//! Fair turns: queues that can start go round, one ticket a turn, and inside a queue its lines go round. A line that
//! a budget keeps back waits in that budget's own round. When the budget's next slot comes, one line of its round
//! steps out to the lines that can start; the next one follows when that one has been served. So a slot
//! costs the same however many lines wait for it, and a queue that comes anew cannot overtake those in the round.
//!
//! Tickets that only their value of a split budget keeps back, for longer than [`NEAR`], are *deferred*: they leave with
//! the time to come back at ([`Turnstile::deferred`]). At the gate they would take the room of those that can start.
//!
//! Never a lost wake: every waiting ticket is in exactly one line; every line with tickets is in exactly one round;
//! every budget's round that is not empty either has a line stepped out or is in the list of wakes. What
//! [`Turnstile::grant`] returns is the earliest of these, or [`Time::NEVER`] where only an event (a place freed, an
//! answer, an operator) can help, after which the caller asks again.
//!
//! Neighbours: the partner's limiter actor. It asks [`Turnstile::grant`] when told to, and after each event.
//! A restart begins with an empty one; pauses by operators come from the ledger, the budgets from the slots in it.

mod fair;
mod outage;
#[cfg(test)]
mod tests;

use super::breaker::{Allow, AttemptResult, Breaker, BreakerSettings, Episode};
use super::ledger::entry::BudgetDraw;
use super::limiter::{BudgetTable, HashedMap};
use super::types::Time;
use fair::FairSet;
use outage::OutageClock;
use smallvec::SmallVec;
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

/// A line that lost so many turns because its budgets never had a slot at the same time ...
const LOST_TURNS: u8 = 8;
/// ... is given one that all of them allow, up to so far ahead, at the price of what they leave unused till then.
const FARTHEST: Duration = Duration::from_secs(1);

/// A ticket whose value has a slot so soon waits for it here: it could not be queued again and back in much less.
pub const NEAR: Duration = Duration::from_millis(25);
/// Marks a queue whose tickets wait here however long it takes: they cannot come back.
pub const STAYS: u32 = 1 << 30;
/// Marks a queue whose tickets are deferred to their value's next slot, not behind those that are away: they had a
/// slot and missed it, or were away already, or concern a message in doubt.
pub const NEXT: u32 = 1 << 29;

/// The budgets that one start draws from.
pub type Draws = SmallVec<[BudgetDraw; 2]>;

/// How soon the slot of a line must come that waits here. Two values of different budgets seldom have a slot at the same
/// time: such a line stays so long that it can lose turns, and be given one ahead.
fn near(draws: &Draws) -> Duration {
    match draws.iter().filter(|draw| draw.by != 0).count() {
        0 | 1 => NEAR,
        _ => FARTHEST * 2,
    }
}

/// Leave to start once.
#[derive(Clone, Debug, PartialEq)]
pub struct Slot {
    /// Not before this time.
    pub at: Time,
    /// Not after this time: then the slot is missed. [`Time::NEVER`] where no rate limits it.
    pub valid_until: Time,
    /// What was drawn; goes into the intent.
    pub draws: Draws,
    /// Which start of this turnstile this is, from 1: what [`Turnstile::observe_remaining`] counts from.
    pub seq: u64,
    /// The breaker's episode that it is a probe of, if it is one.
    pub probe: Option<Episode>,
}

/// A ticket's slot.
#[derive(Clone, Debug, PartialEq)]
pub struct Granted {
    /// The ticket.
    pub ticket: u64,
    /// Its slot.
    pub slot: Slot,
}

/// A ticket that left: see [`Turnstile::deferred`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deferred {
    /// The ticket.
    pub ticket: u64,
    /// When it is to come back.
    pub until: Time,
}

/// The gate to one partner. See the module.
#[derive(Debug)]
pub struct Turnstile {
    /// The partner, as budgets know it that several partners share.
    who: u32,
    breaker: Breaker,
    outage: OutageClock,
    in_use: u32,
    operator: bool,
    paused_until: Time,
    remaining: Option<Remaining>,
    started: u64,

    lines: Vec<Line>,
    free_lines: Vec<u32>,
    line_of: HashedMap<(u32, Draws), u32>,
    /// Waiting tickets: the line, and a number that tells a ticket from an earlier one of the same name.
    tickets: HashedMap<u64, (u32, u64)>,
    enqueued: u64,
    /// Lines that nothing is known to keep back.
    ready: FairSet,
    /// Lines kept back by a budget.
    rounds: HashedMap<BudgetDraw, Round>,
    /// When each round's next line steps out.
    wakes: BTreeSet<(Time, BudgetDraw)>,
    /// Tickets that came to a line with no room for them, and the draw that keeps it back.
    surplus: Vec<(u64, BudgetDraw)>,
    deferred: Vec<Deferred>,
    /// When the last of the deferred tickets is to come back.
    deferred_until: Time,
}

#[derive(Debug)]
struct Line {
    queue: u32,
    draws: Draws,
    /// Tickets with their numbers; cancelled ones stay until they come to the front.
    tickets: VecDeque<(u64, u64)>,
    waiting: u32,
    /// In a round or among the ready ones.
    placed: bool,
    /// The round it has stepped out of.
    stepped_out_of: Option<BudgetDraw>,
    /// Times that its turn with one budget came while another one kept it back.
    lost_turns: u8,
    /// The split budget that keeps it back, and how many of its tickets may wait for it here.
    room: Option<(BudgetDraw, u32)>,
}

#[derive(Debug, Default)]
struct Round {
    lines: FairSet,
    wake: Option<Time>,
    stepped_out: bool,
}

/// What the partner's RateLimit header said last.
#[derive(Clone, Copy, Debug)]
struct Remaining {
    until: Time,
    /// The last start that it leaves room for.
    up_to: u64,
    /// The start whose answer said so.
    said_by: u64,
}

/// What stands before every start, whoever makes it.
enum Gate {
    /// From this time on.
    Open { not_before: Time },
    /// Nothing can be said before then; [`Time::NEVER`]: before an event.
    AskAt(Time),
}

impl Turnstile {
    /// An open gate without waiting tickets. The number of places is the breaker settings' `concurrency`.
    /// `who`: a number of the partner that no other one has.
    pub fn new(who: u32, settings: BreakerSettings, now: Time) -> Self {
        Self {
            who,
            breaker: Breaker::new(settings),
            outage: OutageClock::new(now),
            in_use: 0,
            operator: false,
            paused_until: Time::ZERO,
            remaining: None,
            started: 0,
            lines: Vec::new(),
            free_lines: Vec::new(),
            line_of: HashedMap::default(),
            tickets: HashedMap::default(),
            enqueued: 0,
            ready: FairSet::default(),
            rounds: HashedMap::default(),
            wakes: BTreeSet::new(),
            surplus: Vec::new(),
            deferred: Vec::new(),
            deferred_until: Time::ZERO,
        }
    }

    /// Changes concurrency and breaker at run time; places in use beyond the new number end by themselves.
    pub fn set(&mut self, settings: BreakerSettings) {
        self.breaker.set(settings);
    }

    /// A slot at once, if nobody waits and all is open. `lead`: how long before its slot a start can be prepared;
    /// the slot is at most so far ahead.
    #[inline]
    pub fn try_grant(
        &mut self,
        now: Time,
        lead: Duration,
        draws: &[BudgetDraw],
        budgets: &mut BudgetTable,
    ) -> Option<Slot> {
        if !self.tickets.is_empty() {
            return None;
        }
        let Gate::Open { not_before } = self.gate(now) else {
            return None;
        };
        if not_before > now.plus(lead) {
            return None;
        }
        let (at, _) = budgets.earliest(
            self.who,
            draws,
            not_before,
            lead.saturating_sub(not_before.since(now)),
        );
        if at > now.plus(lead) {
            return None;
        }
        Some(self.start(at, draws.into(), budgets))
    }

    /// Puts a ticket into its line. The caller then asks [`Turnstile::grant`]. A ticket that waits already is not
    /// put in twice.
    pub fn enqueue(&mut self, queue: u32, ticket: u64, draws: Draws) {
        if self.tickets.contains_key(&ticket) {
            return;
        }
        let id = self.line(queue, draws);
        self.enqueued += 1;
        self.tickets.insert(ticket, (id, self.enqueued));
        let line = &mut self.lines[id as usize];
        line.tickets.push_back((ticket, self.enqueued));
        line.waiting += 1;
        if let Some((draw, room)) = line.room
            && line.waiting > room
        {
            self.surplus.push((ticket, draw));
        }
        if !line.placed {
            line.placed = true;
            self.ready.push(queue, id);
        }
    }

    /// Takes a waiting ticket back; false if it does not wait (any more).
    pub fn cancel(&mut self, ticket: u64) -> bool {
        let Some((id, _)) = self.tickets.remove(&ticket) else {
            return false;
        };
        let line = &mut self.lines[id as usize];
        line.waiting -= 1;
        if line.waiting == 0 {
            // The line itself is left where it is and goes when its turn comes.
            line.tickets = VecDeque::new();
        }
        true
    }

    /// Gives slots to waiting tickets, at most `max`, into `out`, and says when to ask again. The slots lie at most
    /// `lead` ahead: so long before its slot a start can be prepared.
    #[must_use = "whoever does not ask again then leaves tickets waiting"]
    pub fn grant(
        &mut self,
        now: Time,
        lead: Duration,
        max: usize,
        budgets: &mut BudgetTable,
        out: &mut Vec<Granted>,
    ) -> Time {
        let horizon = now.plus(lead);
        let mut left = max;
        for (ticket, draw) in std::mem::take(&mut self.surplus) {
            let queue = self
                .tickets
                .get(&ticket)
                .map(|(line, _)| self.lines[*line as usize].queue);
            if let Some(queue) = queue {
                self.cancel(ticket);
                // Its slot comes behind those of the ones that have room.
                self.defer((queue, ticket), draw, (now.plus(NEAR), NEAR), now, budgets);
            }
        }
        loop {
            if self.tickets.is_empty() {
                return Time::NEVER;
            }
            let not_before = match self.gate(now) {
                Gate::AskAt(at) => return at,
                Gate::Open { not_before } if not_before > horizon => return not_before.minus(lead).max(now),
                Gate::Open { not_before } => not_before,
            };
            if left == 0 {
                return now;
            }
            self.step_out_due(horizon);
            let Some(id) = self.ready.front() else {
                // Not before one microsecond from now: what is due already has stepped out above.
                let wake = self.wakes.first().map_or(Time::NEVER, |&(at, _)| at.minus(lead));
                return wake.max(Time(now.0 + 1));
            };
            if self.serve(id, now, not_before, lead, budgets, out) {
                left -= 1;
            }
        }
    }

    /// Serves the line in front of the ready ones, or puts it where it belongs. True if it was given a slot.
    fn serve(
        &mut self,
        id: u32,
        now: Time,
        not_before: Time,
        lead: Duration,
        budgets: &mut BudgetTable,
        out: &mut Vec<Granted>,
    ) -> bool {
        let line = &mut self.lines[id as usize];
        let from = line.stepped_out_of;
        if line.waiting == 0 {
            self.ready.pop_unserved();
            line.stepped_out_of = None;
            self.drop_line(id);
            self.step_in(from);
            return false;
        }
        line.room = None;
        let (at, last) = budgets.earliest(
            self.who,
            &line.draws,
            not_before,
            lead.saturating_sub(not_before.since(now)),
        );
        if let Some(draw) = last
            && draw.by != 0
            && at > now.plus(lead)
            && line.queue & STAYS == 0
        {
            let near = near(&line.draws);
            let room = match at > now.plus(lead).plus(near) {
                true => 0,
                false => budgets.starts_within(draw, near),
            };
            line.room = Some((draw, room));
            if line.waiting > room {
                self.defer_behind(id, room, draw, at, now, budgets);
            }
            if room == 0 {
                self.ready.pop_unserved();
                self.drop_line(id);
                self.step_in(from);
                return false;
            }
        }
        let line = &mut self.lines[id as usize];
        // Others wait for one of these budgets already: behind them. (One that has waited its turn for one
        // budget does not ask who waits for the others: it could be sent to and fro for ever.)
        if from.is_none()
            && let Some(draw) = line.draws.iter().copied().find(|d| self.rounds.contains_key(d))
        {
            self.ready.pop_unserved();
            if let Some(round) = self.rounds.get_mut(&draw) {
                round.lines.push(line.queue, id);
            }
            return false;
        }
        let patient = line.lost_turns >= LOST_TURNS && at <= now.plus(FARTHEST);
        if let Some(draw) = last
            && at > now.plus(lead)
            && !patient
        {
            self.ready.pop_unserved();
            line.stepped_out_of = None;
            if from.is_some_and(|d| d != draw) {
                line.lost_turns = line.lost_turns.saturating_add(1);
            }
            let queue = line.queue;
            let round = self.rounds.entry(draw).or_default();
            if from == Some(draw) {
                round.lines.put_back(queue, id);
                round.stepped_out = false;
            } else {
                round.lines.push(queue, id);
            }
            if !round.stepped_out && round.wake.is_none() {
                round.wake = Some(at);
                self.wakes.insert((at, draw));
            }
            if from != Some(draw) {
                self.step_in(from);
            }
            return false;
        }
        self.ready.pop();
        let ticket = loop {
            let Some((ticket, number)) = line.tickets.pop_front() else {
                break None;
            };
            if self.tickets.get(&ticket).is_some_and(|&(_, n)| n == number) {
                break Some(ticket);
            }
        };
        line.stepped_out_of = None;
        line.lost_turns = 0;
        let Some(ticket) = ticket else {
            debug_assert!(false, "a line counts its waiting tickets");
            line.waiting = 0;
            self.drop_line(id);
            self.step_in(from);
            return false;
        };
        self.tickets.remove(&ticket);
        line.waiting -= 1;
        let draws = line.draws.clone();
        let (queue, more) = (line.queue, line.waiting > 0);
        if more {
            // Back into the round it came from, behind the others, while there is one.
            match from.and_then(|draw| self.rounds.get_mut(&draw)) {
                Some(round) => round.lines.push(queue, id),
                None => self.ready.push(queue, id),
            }
        } else {
            self.drop_line(id);
        }
        self.step_in(from);
        let slot = self.start(at, draws, budgets);
        out.push(Granted { ticket, slot });
        true
    }

    /// The line's tickets but the first `room` are deferred, from its next slot on.
    fn defer_behind(
        &mut self,
        id: u32,
        room: u32,
        draw: BudgetDraw,
        next: Time,
        now: Time,
        budgets: &mut BudgetTable,
    ) {
        let line = &mut self.lines[id as usize];
        let (queue, near) = (line.queue, near(&line.draws));
        let waits =
            |&(ticket, number): &(u64, u64)| self.tickets.get(&ticket).is_some_and(|&(_, n)| n == number);
        let all = line.tickets.drain(..).filter(waits);
        let mut all: VecDeque<(u64, u64)> = all.collect();
        let surplus = all.split_off(all.len().min(room as usize));
        line.tickets = all;
        line.waiting = line.tickets.len() as u32;
        for (ticket, _) in surplus {
            self.tickets.remove(&ticket);
            self.defer((queue, ticket), draw, (next, near), now, budgets);
        }
    }

    /// Sends a ticket away that this draw keeps back. `next`: its value's next slot; `near`: how soon it must come for
    /// the ticket to wait here.
    fn defer(
        &mut self,
        (queue, ticket): (u32, u64),
        draw: BudgetDraw,
        (next, near): (Time, Duration),
        now: Time,
        budgets: &mut BudgetTable,
    ) {
        let slot = budgets.defer(draw, next, now);
        let slot = if queue & NEXT != 0 { next } else { slot };
        // Not right before its slot, for it has to come here first. And never so soon that it comes and goes without end.
        let until = slot.minus(near - near / 5).max(now.plus(NEAR));
        self.deferred_until = self.deferred_until.max(until);
        self.deferred.push(Deferred { ticket, until });
    }

    /// Tickets that left since the last call. They are to be put in again, at the time that each was told, after
    /// [`BudgetTable::came_back`].
    pub fn deferred(&mut self) -> std::vec::Drain<'_, Deferred> {
        self.deferred.drain(..)
    }

    /// Until when tickets are deferred; in the past if none is.
    pub fn deferred_until(&self) -> Time {
        self.deferred_until
    }

    /// An attempt with a slot has ended, or was never made: its place is free, the breaker knows. `rnd` is a
    /// random number. The caller asks [`Turnstile::grant`] afterwards.
    #[inline]
    pub fn finish(&mut self, slot: &Slot, result: AttemptResult, now: Time, rnd: u64) {
        debug_assert!(self.in_use > 0, "a place is freed once");
        self.in_use = self.in_use.saturating_sub(1);
        self.outage.advance(
            now,
            self.operator || self.breaker.is_open().is_some(),
            self.paused_until,
        );
        self.breaker.on_result(result, slot.probe, now, rnd);
    }

    /// A slot was not met in time ([`BudgetTable::missed`]): its place is free, and the next slots are set further apart.
    pub fn missed(&mut self, slot: &Slot, now: Time, budgets: &mut BudgetTable) {
        budgets.missed(&slot.draws, slot.at);
        self.finish(slot, AttemptResult::NotMade, now, 0);
    }

    /// Nothing starts before `until` (Retry-After and the like). A shorter pause does not cut a longer one.
    pub fn pause_until(&mut self, until: Time, now: Time) {
        self.advance_outage(now);
        self.paused_until = self.paused_until.max(until);
    }

    /// An operator pauses the partner.
    pub fn pause(&mut self, now: Time) {
        self.advance_outage(now);
        self.operator = true;
    }

    /// An operator lets the partner go on: every pause ends, and an open breaker tries a probe at once.
    pub fn resume(&mut self, now: Time) {
        self.advance_outage(now);
        self.operator = false;
        self.paused_until = Time::ZERO;
        self.remaining = None;
        self.breaker.probe_now(now);
    }

    /// A secret of the partner has changed.
    pub fn secrets_changed(&mut self, now: Time) {
        self.breaker.secrets_changed(now);
    }

    /// See [`Breaker::stranger`]. True: the caller asks [`Turnstile::grant`].
    pub fn stranger(&mut self, now: Time) -> bool {
        self.breaker.stranger(now)
    }

    /// The partner's RateLimit header: so many more starts within so long. Starts after the one that was
    /// answered (`seq` of its slot) are taken for not yet counted by the partner. The answer to the latest start
    /// holds, for answers overtake each other.
    pub fn observe_remaining(&mut self, remaining: u64, reset: Duration, seq: u64, now: Time) {
        if self.remaining.is_some_and(|r| r.said_by > seq && r.until > now) {
            return;
        }
        let until = now.plus(reset);
        self.remaining = Some(Remaining {
            until,
            up_to: seq.saturating_add(remaining),
            said_by: seq,
        });
    }

    /// How long, since this turnstile was made, the partner was down or paused: breaker not closed, pause by an
    /// operator or by the partner itself. That time does not make a message older (`give_up_after`).
    pub fn outage(&mut self, now: Time) -> Duration {
        self.advance_outage(now);
        self.outage.total()
    }

    /// See [`Breaker::has_answered_since`].
    pub fn has_answered_since(&self, then: Time) -> bool {
        !self.operator && self.breaker.has_answered_since(then)
    }

    /// See [`Breaker::is_answering`].
    pub fn is_answering(&self, now: Time) -> bool {
        !self.operator && self.breaker.is_answering(now)
    }

    /// Limits were raised: what waits for them is looked at again by the next [`Turnstile::grant`].
    pub fn limits_changed(&mut self) {
        self.deferred_until = Time::ZERO;
        for (_, draw) in std::mem::take(&mut self.wakes) {
            if let Some(round) = self.rounds.get_mut(&draw) {
                round.wake = Some(Time::ZERO);
                self.wakes.insert((Time::ZERO, draw));
            }
        }
    }

    /// The breaker, to look at.
    pub fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// Whether nothing may start now, whatever was granted before: a pause, by an operator or by the partner.
    #[inline]
    pub fn is_held(&self, now: Time) -> bool {
        self.operator || self.paused_until > now
    }

    /// Until when the partner itself has asked for a pause; in the past if it has not.
    pub fn paused_until(&self) -> Time {
        self.paused_until
    }

    /// Places in use.
    pub fn in_use(&self) -> u32 {
        self.in_use
    }

    /// Tickets waiting.
    pub fn waiting(&self) -> usize {
        self.tickets.len()
    }

    #[inline]
    fn gate(&mut self, now: Time) -> Gate {
        if self.operator || self.in_use >= self.breaker.places() {
            return Gate::AskAt(Time::NEVER);
        }
        let mut not_before = now.max(self.paused_until);
        match self.breaker.allows(now) {
            Allow::Yes | Allow::Probe => {}
            // No lead: a probe is counted when it starts, so it is not given before its time.
            Allow::NotBefore(at) => return Gate::AskAt(at.max(self.paused_until)),
        }
        if let Some(hint) = self.remaining {
            if hint.until <= now {
                self.remaining = None;
            } else if self.started >= hint.up_to {
                not_before = not_before.max(hint.until);
            }
        }
        Gate::Open { not_before }
    }

    #[inline]
    fn start(&mut self, at: Time, draws: Draws, budgets: &mut BudgetTable) -> Slot {
        let valid = if draws.is_empty() {
            None
        } else {
            budgets.take(self.who, &draws, at)
        };
        self.in_use += 1;
        self.started += 1;
        let probe = self.breaker.on_start();
        let valid_until = valid.map_or(Time::NEVER, |v| at.plus(v));
        Slot {
            at,
            valid_until,
            draws,
            seq: self.started,
            probe,
        }
    }

    fn advance_outage(&mut self, now: Time) {
        self.outage.advance(
            now,
            self.operator || self.breaker.is_open().is_some(),
            self.paused_until,
        );
    }

    /// One line of every round whose time has come steps out to the ready ones.
    fn step_out_due(&mut self, horizon: Time) {
        while let Some(&(at, draw)) = self.wakes.first() {
            if at > horizon {
                break;
            }
            self.wakes.remove(&(at, draw));
            if let Some(round) = self.rounds.get_mut(&draw) {
                round.wake = None;
            }
            self.step_out(draw);
        }
    }

    fn step_out(&mut self, draw: BudgetDraw) {
        let Some(round) = self.rounds.get_mut(&draw) else {
            return;
        };
        match round.lines.pop() {
            Some(id) => {
                round.stepped_out = true;
                let line = &mut self.lines[id as usize];
                line.stepped_out_of = Some(draw);
                self.ready.push(line.queue, id);
            }
            None => {
                self.rounds.remove(&draw);
            }
        }
    }

    /// The line that had stepped out of this round has been dealt with: the next one follows.
    fn step_in(&mut self, round: Option<BudgetDraw>) {
        if let Some(draw) = round {
            self.step_out(draw);
        }
    }

    fn line(&mut self, queue: u32, draws: Draws) -> u32 {
        let lines = &mut self.lines;
        let free = &mut self.free_lines;
        *self
            .line_of
            .entry((queue, draws))
            .or_insert_with_key(|(queue, draws)| {
                let line = Line {
                    queue: *queue,
                    draws: draws.clone(),
                    tickets: VecDeque::new(),
                    waiting: 0,
                    placed: false,
                    stepped_out_of: None,
                    lost_turns: 0,
                    room: None,
                };
                match free.pop() {
                    Some(id) => {
                        lines[id as usize] = line;
                        id
                    }
                    None => {
                        lines.push(line);
                        (lines.len() - 1) as u32
                    }
                }
            })
    }

    fn drop_line(&mut self, id: u32) {
        let line = &mut self.lines[id as usize];
        line.placed = false;
        let draws = std::mem::take(&mut line.draws);
        line.tickets = VecDeque::new();
        self.line_of.remove(&(line.queue, draws));
        self.free_lines.push(id);
    }
}
