//! The last step of an order: against the fold as it is now, into entries. Pure.
//!
//! | verb | takes | entries | the message then |
//! |---|---|---|---|
//! | replay | dead (or skipped), payload kept | `opened` | waits, round n+1 |
//! | resend | parked, payload kept | `opened`, the same Idempotency-Key | waits, round n+1 |
//! | confirm not taken | parked, payload kept | `opened`, a new key | waits, round n+1 |
//! | confirm delivered | parked | `command` mark | delivered |
//! | drop | dead | `command` drop | gone; its ID stays remembered |
//! | forget | finished; dead or skipped too | `command` forget | no longer remembered |
//! | mark, import | unknown, or closed | `command` mark | delivered |
//!
//! What is on the wire or waits for its next attempt is never touched: an order about it would race its verdict.

use super::served::Served;
use crate::api::orders::{Group, OrderReport, Touched};
use crate::core::ledger::entry::{Action, Body, Command, Opened, SkipMatch, SkipRule};
use crate::core::ledger::fold::{LaneState, MessageState};
use crate::core::types::{MessageId, Offset, RouteId, RoutePartition, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Messages that one call of [`Prepared::settle`] should take: one commit of some 100 KB, some ms of the lane.
pub const CHUNK: usize = 1_000;
/// Messages that a report names.
pub(super) const NAMED: usize = 100;

/// What a message must still be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Parked in this round.
    Parked(u32),
    /// Dead in this round.
    Dead(u32),
    /// Skipped in this round.
    Skipped(u32),
    /// Not in the fold: unknown, or simply finished.
    NotHeld,
}

impl Found {
    /// What the fold says of a message now. None: it is on the wire, or waits for its next attempt.
    pub fn of(state: &LaneState, at: RoutePartition, id: MessageId) -> Option<Self> {
        let message = state.partitions.get(&at).and_then(|p| p.messages.get(&id));
        match message {
            None => Some(Found::NotHeld),
            Some(m) => match m.state {
                MessageState::Parked => Some(Found::Parked(m.round)),
                MessageState::Dead => Some(Found::Dead(m.round)),
                MessageState::Skipped => Some(Found::Skipped(m.round)),
                MessageState::Open { .. } | MessageState::Later { .. } => None,
            },
        }
    }
}

/// What is done to a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Then {
    /// The next round begins, with this Idempotency-Key.
    Open {
        /// The key.
        idempotency_key: String,
    },
    /// It is called delivered.
    Mark {
        /// Position of its record, if known; else 0.
        offset: Offset,
    },
    /// Its payload is given up.
    Drop,
    /// Its ID is no longer remembered.
    Forget,
}

/// A message of an order, with what it was like when the order was made up.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// Route and partition.
    pub at: RoutePartition,
    /// Which message.
    pub id: MessageId,
    /// What it must still be like.
    pub expected: Found,
    /// What is done to it.
    pub then: Then,
    /// For the report.
    pub named: Touched,
    /// For the report: the stable code of its reason.
    pub reason: String,
}

/// What an order does besides messages.
#[derive(Clone, Debug, PartialEq)]
pub enum Setting {
    /// Adds a skip rule; its number is given as it is settled.
    SkipAdd(SkipRule),
    /// Undoes a skip rule.
    SkipRemove(u64),
    /// Pauses a partner.
    Pause(String),
    /// Resumes a partner.
    Resume(String),
    /// Starts a stopped route again.
    ResumeRoute(RouteId),
    /// Gives up what is known of a route.
    ForgetRoute(RouteId),
}

/// An order that was made up: settle it against the fold, part by part.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    /// Who.
    pub who: String,
    /// Why.
    pub why: String,
    /// The order in words, for the audit.
    pub words: String,
    /// Its messages.
    pub items: Vec<Item>,
    /// Routes among theirs that the ledger has not met.
    pub unmet: BTreeMap<RouteId, Served>,
    /// Or what else it does.
    pub setting: Option<Setting>,
    /// What is known before anything is done: a dry run ends with this.
    pub report: OrderReport,
}

/// What a part of an order comes to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// To be appended to the lane, in this order.
    pub entries: Vec<Body>,
    /// What each message's entry is about.
    about: Vec<About>,
    /// What is known without them.
    report: OrderReport,
}

#[derive(Clone, Debug, PartialEq)]
struct About {
    /// The entry's place among the entries.
    entry: usize,
    named: Touched,
    reason: String,
}

impl Plan {
    /// What was touched and what not, if the fold refused these entries. Add the parts up with [`OrderReport::add`].
    pub fn report(&self, refused: &[usize]) -> OrderReport {
        let mut report = self.report.clone();
        let mut counts = BTreeMap::new();
        for About { entry, named, reason } in &self.about {
            if refused.contains(entry) {
                report.stale += 1;
                continue;
            }
            report.touched += 1;
            if report.messages.len() < NAMED {
                report.messages.push(named.clone());
            }
            *counts.entry((named.partner.clone(), reason.clone())).or_default() += 1;
        }
        if !refused.is_empty() {
            let count = refused.len();
            report.notes.push(format!(
                "{count} are being sent at this moment: look at them again once they have an answer"
            ));
        }
        report.groups = groups(counts);
        report
    }
}

impl Prepared {
    /// The parts in which to settle it. A setting is one part, too.
    pub fn parts(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let len = self.items.len();
        let parts = if self.setting.is_some() {
            1
        } else {
            len.div_ceil(CHUNK)
        };
        (0..parts).map(move |i| i * CHUNK..((i + 1) * CHUNK).min(len))
    }

    /// What is to be written, and folded, before any part is settled: a route must have its names and its beginning where an
    /// ID of it is remembered, or a restart would take it for one that lost its records.
    pub fn introductions(&self, state: &LaneState) -> Vec<Body> {
        let routes: BTreeSet<RouteId> = self.items.iter().map(|item| item.at.route).collect();
        let unmet = self.unmet.iter().filter(|(route, _)| {
            let meant = routes.contains(route);
            meant && !state.routes.contains_key(route)
        });
        unmet.flat_map(|(_, served)| served.introduction()).collect()
    }

    /// Makes entries of one part, as far as its messages are still what they were.
    ///
    /// One part at a time: `state` must hold the entries of every part that was settled before, of this and of other
    /// orders, or two orders could open the same round.
    pub fn settle(&self, state: &LaneState, now: Time, part: Range<usize>) -> Plan {
        let mut making = Making {
            plan: Plan::default(),
            next_command: state.commands + 1,
            prepared: self,
            now,
        };
        making.plan.report.verb.clone_from(&self.report.verb);
        making.plan.report.at = now.to_string();
        if let Some(setting) = &self.setting {
            making.setting(state, setting);
        } else {
            let items = self.items.get(part.clone()).unwrap_or_default();
            if part.start == 0 && items.iter().any(|i| matches!(i.then, Then::Open { .. })) {
                let touched = self.items.len() as u64;
                making.command(Action::Audit {
                    order: self.words.clone(),
                    touched,
                });
            }
            for item in items {
                making.item(state, item);
            }
            // An audit alone says that something was done, and nothing was.
            if making.plan.about.is_empty() {
                making.plan.entries.clear();
            }
        }
        making.plan
    }
}

struct Making<'p> {
    plan: Plan,
    next_command: Offset,
    prepared: &'p Prepared,
    now: Time,
}

impl Making<'_> {
    fn command(&mut self, action: Action) {
        self.plan.entries.push(Body::from(Command {
            offset: self.next_command,
            when: self.now,
            who: self.prepared.who.clone(),
            why: self.prepared.why.clone(),
            action,
        }));
        self.next_command += 1;
    }

    fn item(&mut self, state: &LaneState, item: &Item) {
        let (at, id) = (item.at, item.id);
        if Found::of(state, at, id) != Some(item.expected) {
            self.plan.report.stale += 1;
            return;
        }
        let held = state.partitions.get(&at).and_then(|p| p.messages.get(&id));
        match (&item.then, held) {
            (Then::Open { idempotency_key }, Some(m)) => {
                let Some(round) = m.round.checked_add(1) else {
                    self.plan.report.stale += 1;
                    return;
                };
                self.plan.entries.push(Body::Opened(Opened {
                    at,
                    id,
                    round,
                    when: self.now,
                    idempotency_key: idempotency_key.clone(),
                }));
            }
            (Then::Open { .. }, None) => {
                self.plan.report.stale += 1;
                return;
            }
            (Then::Mark { offset }, _) => {
                self.command(Action::Mark {
                    at,
                    id,
                    offset: *offset,
                });
            }
            (Then::Drop, _) => self.command(Action::Drop { at, id }),
            (Then::Forget, _) => self.command(Action::Forget { at, id }),
        }
        self.plan.about.push(About {
            entry: self.plan.entries.len() - 1,
            named: item.named.clone(),
            reason: item.reason.clone(),
        });
    }

    fn setting(&mut self, state: &LaneState, setting: &Setting) {
        let why = self.prepared.why.clone();
        match setting {
            Setting::SkipAdd(rule) => {
                let same = |r: &&SkipRule| {
                    (&r.topic, &r.partner, &r.matches) == (&rule.topic, &rule.partner, &rule.matches)
                };
                // The same rule again replaces the first, so that one `remove` undoes it.
                let number = state
                    .skips
                    .values()
                    .find(same)
                    .map_or(self.next_command, |r| r.rule);
                let rule = SkipRule {
                    rule: number,
                    made: self.now,
                    ..rule.clone()
                };
                let what = match &rule.matches {
                    SkipMatch::Key(_) => "key",
                    SkipMatch::Id(_) => "message ID",
                };
                self.plan
                    .report
                    .notes
                    .push(format!("rule {number} skips this {what}"));
                self.command(Action::SkipAdd(rule));
            }
            Setting::SkipRemove(rule) => {
                if !state.skips.contains_key(rule) {
                    return self.moot(format!("there is no rule {rule} any more"));
                }
                self.command(Action::SkipRemove { rule: *rule });
            }
            Setting::Pause(partner) => {
                let reason = if why.is_empty() {
                    "paused by an operator".to_owned()
                } else {
                    why
                };
                self.command(Action::Pause {
                    partner: partner.clone(),
                    route: None,
                    reason,
                });
            }
            Setting::Resume(partner) => {
                // The breaker is no matter of the ledger: an operator who knows that the partner is back asks for a probe
                // now, paused or not.
                if !state.paused.contains_key(partner) {
                    self.plan.report.notes.push(format!(
                        "`{partner}` was not paused: an open breaker sends a probe now; a route that the flood guard stopped goes on with --topic"
                    ));
                }
                self.command(Action::Resume {
                    partner: partner.clone(),
                    route: None,
                });
            }
            Setting::ForgetRoute(route) => {
                if !state.routes.contains_key(route) {
                    return self.moot("nothing is known of the route".to_owned());
                }
                self.command(Action::ForgetRoute { route: *route });
            }
            Setting::ResumeRoute(route) => {
                if !state.stopped.contains_key(route) {
                    return self.moot("the route is not stopped".to_owned());
                }
                self.command(Action::Resume {
                    partner: String::new(),
                    route: Some(*route),
                });
            }
        }
        self.plan.report.touched = 1;
    }

    fn moot(&mut self, note: String) {
        self.plan.report.stale = 1;
        self.plan.report.notes.push(note);
    }
}

/// Groups for a report, the largest first.
pub(super) fn groups(counts: BTreeMap<(String, String), u64>) -> Vec<Group> {
    let mut groups: Vec<Group> = counts
        .into_iter()
        .map(|((partner, reason), count)| Group {
            partner,
            reason,
            count,
        })
        .collect();
    groups.sort_by(|a, b| {
        b.count
            .cmp(&a.count)
            .then_with(|| (&a.partner, &a.reason).cmp(&(&b.partner, &b.reason)))
    });
    groups
}

impl OrderReport {
    /// Adds what another part of the same order did.
    pub fn add(&mut self, part: &OrderReport) {
        self.touched += part.touched;
        self.stale += part.stale;
        self.refused += part.refused;
        self.at.clone_from(&part.at);
        self.notes.extend(part.notes.iter().cloned());
        let room = NAMED.saturating_sub(self.messages.len());
        self.messages.extend(part.messages.iter().take(room).cloned());
        let mut counts = BTreeMap::new();
        for g in self.groups.drain(..).chain(part.groups.iter().cloned()) {
            *counts.entry((g.partner, g.reason)).or_default() += g.count;
        }
        self.groups = groups(counts);
    }
}
