//! The oracle: naive sets of offsets and, for each message, the facts that counted.

use super::super::*;
use super::Name;
use std::collections::BTreeSet;

/// Something that counted for a message.
#[derive(Clone, Debug)]
enum Fact {
    Intent(Intent),
    Later(Outcome),
    Closed(Offset, Outcome),
    Waiting(Offset, Waiting),
    Opened(Offset, Opened),
    Moved(Offset, u32, bool),
    OpenedMoved(Offset),
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Phase {
    Open,
    Later,
    Parked,
    Final,
}

/// A record's place in a partition, naively.
#[derive(Default, Clone)]
pub(super) struct Progress {
    pub(super) finished: BTreeSet<Offset>,
    pub(super) raised: Offset,
    pub(super) high_water: Offset,
    pub(super) counts: Counts,
}

impl Progress {
    fn done(&self, o: Offset) -> bool {
        o < self.raised || self.finished.contains(&o)
    }
    fn finish(&mut self, o: Offset) {
        self.finished.insert(o);
        self.high_water = self.high_water.max(o + 1);
    }
    pub(super) fn position(&self) -> Offset {
        (0..).find(|o| !self.done(*o)).unwrap()
    }
    pub(super) fn ranges(&self) -> Vec<(Offset, Offset)> {
        let mut ranges: Vec<(Offset, Offset)> = Vec::new();
        for &o in self.finished.range(self.position()..) {
            match ranges.last_mut() {
                Some((_, end)) if *end == o => *end += 1,
                _ => ranges.push((o, o + 1)),
            }
        }
        ranges
    }
}

#[derive(Default)]
pub(super) struct Oracle {
    pub(super) progress: BTreeMap<RoutePartition, Progress>,
    facts: BTreeMap<Name, Vec<Fact>>,
    /// Rounds that ended, with the entry that said so.
    pub(super) over: BTreeMap<Name, (u32, Offset)>,
    pub(super) store: BTreeMap<Name, (FinishedState, Offset)>,
    pub(super) starts: BTreeMap<BudgetDraw, u64>,
    pub(super) samples: BTreeMap<RoutePartition, Vec<Sampled>>,
    pub(super) skips: BTreeSet<u64>,
    pub(super) paused: BTreeSet<String>,
}

fn size(k: &Kept) -> u32 {
    (k.value.len() + k.headers.0.len() + k.record_key.as_ref().map_or(0, Bytes::len)) as u32
}

fn kept_of(o: &Outcome) -> &Kept {
    match &o.kind {
        OutcomeKind::Dead(k) | OutcomeKind::Parked(k) | OutcomeKind::Skipped(k) => k,
        _ => panic!("nothing kept"),
    }
}

/// What a message is, from its facts alone.
fn read(facts: &[Fact]) -> Option<Message> {
    let mut now: Option<Message> = None;
    for fact in facts {
        let held = now.as_ref().and_then(|m| m.payload);
        let opened = |round| now.as_ref().filter(|m| m.round == round).map_or(0, |m| m.opened);
        now = match fact {
            Fact::Intent(i) => Some(Message {
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
                payload: held,
                opened: opened(i.round),
                carried: false,
                dropped: false,
            }),
            Fact::Later(o) => {
                let OutcomeKind::Later {
                    not_before,
                    first_try,
                    key,
                    ..
                } = &o.kind
                else {
                    panic!()
                };
                Some(Message {
                    state: MessageState::Later {
                        not_before: *not_before,
                    },
                    key: *key,
                    offset: o.offset,
                    round: o.round,
                    attempts: o.counted_attempts(),
                    first_try: *first_try,
                    since: o.when,
                    status: o.status,
                    payload: held,
                    opened: opened(o.round),
                    carried: false,
                    dropped: false,
                })
            }
            Fact::Closed(at, o) => Some(Message {
                state: match o.kind {
                    OutcomeKind::Dead(_) => MessageState::Dead,
                    OutcomeKind::Parked(_) => MessageState::Parked,
                    _ => MessageState::Skipped,
                },
                key: kept_of(o).key,
                offset: o.offset,
                round: o.round,
                attempts: o.attempts,
                first_try: kept_of(o).first_try,
                since: o.when,
                status: o.status,
                payload: Some((*at, size(kept_of(o)))),
                dropped: kept_of(o).dropped,
                opened: 0,
                carried: false,
            }),
            Fact::Waiting(at, w) => match now {
                Some(mut m) if m.round == w.round => {
                    m.payload = Some((*at, size(&w.kept)));
                    if let MessageState::Later { .. } = m.state
                        && w.attempts >= m.attempts
                    {
                        m.state = MessageState::Later {
                            not_before: w.not_before,
                        };
                        m.attempts = w.attempts;
                    }
                    Some(m)
                }
                _ => Some(Message {
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
                    payload: Some((*at, size(&w.kept))),
                    opened: 0,
                    carried: false,
                    dropped: false,
                }),
            },
            Fact::Opened(at, o) => now.map(|m| Message {
                opened: *at,
                state: MessageState::Later {
                    not_before: Time::ZERO,
                },
                round: o.round,
                attempts: 0,
                first_try: Time::ZERO,
                since: o.when,
                ..m
            }),
            Fact::Moved(at, size, dropped) => now.map(|m| Message {
                payload: Some((*at, *size)),
                dropped: *dropped,
                ..m
            }),
            Fact::OpenedMoved(at) => now.map(|m| Message { opened: *at, ..m }),
            Fact::Gone => None,
        };
    }
    now
}

impl Oracle {
    pub(super) fn message(&self, name: Name) -> Option<Message> {
        self.facts.get(&name).and_then(|f| read(f))
    }

    /// Round, phase and attempts of what is not simply finished.
    pub(super) fn stand(&self, name: Name) -> Option<(u32, Phase, u32)> {
        self.message(name).map(|m| {
            let phase = match m.state {
                MessageState::Open { .. } => Phase::Open,
                MessageState::Later { .. } => Phase::Later,
                MessageState::Parked => Phase::Parked,
                MessageState::Dead | MessageState::Skipped => Phase::Final,
            };
            (m.round, phase, m.attempts)
        })
    }

    fn settled(&self, name: Name, round: u32, offset: Offset) -> bool {
        let known = self.over.get(&name).is_some_and(|o| o.0 >= round);
        known && self.progress.get(&name.0).is_some_and(|p| p.done(offset))
    }

    fn add(&mut self, name: Name, fact: Fact) {
        self.facts.entry(name).or_default().push(fact);
    }

    fn end(&mut self, at: Offset, name: Name, round: u32, always: bool) {
        if always || round > 1 || self.over.contains_key(&name) {
            let before = self.over.get(&name).map_or(0, |o| o.0);
            self.over.insert(name, (before.max(round), at));
        }
    }

    pub(super) fn step(&mut self, at: Offset, entry: &Entry) {
        match &entry.body {
            Body::Intent(i) => {
                for b in &i.budgets {
                    *self.starts.entry(*b).or_default() += 1;
                }
                let name = (i.at, i.id);
                let p = self.progress.entry(i.at).or_default();
                p.high_water = p.high_water.max(i.offset + 1);
                let counts = match self.stand(name) {
                    None => true,
                    Some((round, _, _)) if round != i.round => round < i.round,
                    Some((_, Phase::Open | Phase::Later, attempts)) => i.attempt >= attempts,
                    Some(_) => false,
                };
                if counts {
                    self.add(name, Fact::Intent(i.clone()));
                }
            }
            Body::Outcome(o) => self.outcome(at, o),
            Body::Waiting(w) => {
                let name = (w.at, w.id);
                let counts = match self.stand(name) {
                    None => !self.settled(name, w.round, w.offset),
                    Some((round, _, _)) if round != w.round => round < w.round,
                    Some((_, phase, _)) => matches!(phase, Phase::Open | Phase::Later),
                };
                if counts {
                    self.add(name, Fact::Waiting(at, w.clone()));
                    self.progress.entry(w.at).or_default().finish(w.offset);
                    self.store.insert(name, (FinishedState::Waiting, at));
                }
            }
            Body::Position(p) => {
                let own = self.progress.entry(p.at).or_default();
                own.raised = own.raised.max(p.position);
                for &(s, e) in &p.finished {
                    own.finished.extend(s..e);
                    own.high_water = own.high_water.max(e);
                }
                own.high_water = own.high_water.max(p.high_water).max(own.position());
            }
            Body::Opened(o) => {
                let closed = |s: Option<(u32, Phase, u32)>| {
                    s.is_some_and(|(r, p, _)| r + 1 == o.round && matches!(p, Phase::Parked | Phase::Final))
                };
                let dropped = self.message((o.at, o.id)).is_some_and(|m| m.dropped);
                if closed(self.stand((o.at, o.id))) && !dropped {
                    self.add((o.at, o.id), Fact::Opened(at, o.clone()));
                }
            }
            Body::Command(c) => self.command(at, c),
            Body::Sample(s) => {
                self.samples.entry(s.at).or_default().push(Sampled {
                    ledger: at,
                    tenure: entry.tenure,
                    when: s.when,
                    end: s.end,
                });
            }
            Body::Used(u) => {
                let known = self.starts.entry(u.draw).or_default();
                *known = (*known).max(u.count);
            }
            Body::Carried { original, entry } => {
                let (name, kept) = match &entry.body {
                    Body::Outcome(o) if !matches!(o.kind, OutcomeKind::Later { .. }) => {
                        if let OutcomeKind::Delivered { .. } = o.kind {
                            if self.message((o.at, o.id)).is_none() {
                                let counts = self.progress.get(&o.at).map(|p| p.counts);
                                self.outcome(at, o);
                                self.progress.entry(o.at).or_default().counts = counts.unwrap_or_default();
                            }
                            return;
                        }
                        ((o.at, o.id), kept_of(o))
                    }
                    Body::Opened(o) => {
                        let name = (o.at, o.id);
                        if self
                            .message(name)
                            .is_some_and(|m| m.round == o.round && m.opened <= *original)
                        {
                            self.add(name, Fact::OpenedMoved(at));
                        }
                        return;
                    }
                    Body::Waiting(w) => ((w.at, w.id), &*w.kept),
                    _ => return,
                };
                if let Some(m) = self.message(name)
                    && m.payload.is_none_or(|p| p.0 <= *original)
                    && (m.closed() || !kept.dropped)
                {
                    self.add(name, Fact::Moved(at, size(kept), kept.dropped));
                }
            }
            _ => {}
        }
    }

    fn outcome(&mut self, at: Offset, o: &Outcome) {
        let name = (o.at, o.id);
        let stand = self.stand(name);
        if stand.is_some_and(|s| s.0 > o.round) {
            return;
        }
        let same = stand.filter(|s| s.0 == o.round);
        let settled = stand.is_none() && self.settled(name, o.round, o.offset);
        let p = self.progress.entry(o.at).or_default();
        let late = same.is_some_and(|s| o.attempts < s.2);
        match &o.kind {
            OutcomeKind::Delivered { .. } => {
                if settled {
                    return;
                }
                if stand.is_some() || !p.done(o.offset) {
                    p.counts.delivered += 1;
                }
                p.finish(o.offset);
                self.end(at, name, o.round, false);
                self.store.insert(name, (FinishedState::Delivered, at));
                self.add(name, Fact::Gone);
            }
            OutcomeKind::Later { .. } => {
                let repeats = stand.is_none() && p.done(o.offset) && o.round <= 1;
                let closed = same.is_some_and(|s| matches!(s.1, Phase::Parked | Phase::Final));
                if !(settled || repeats || closed || late) {
                    p.high_water = p.high_water.max(o.offset + 1);
                    self.add(name, Fact::Later(o.clone()));
                }
            }
            kind => {
                let dead = matches!(kind, OutcomeKind::Dead(_));
                let refused = match same {
                    None => settled,
                    Some((_, Phase::Open, _)) => late,
                    Some((_, Phase::Later, _)) => false,
                    Some((_, Phase::Parked, _)) => !dead,
                    Some((_, Phase::Final, _)) => true,
                };
                if refused {
                    return;
                }
                let (count, state) = match kind {
                    OutcomeKind::Dead(_) => (&mut p.counts.dead, FinishedState::Dead),
                    OutcomeKind::Parked(_) => (&mut p.counts.parked, FinishedState::Parked),
                    _ => (&mut p.counts.skipped, FinishedState::Skipped),
                };
                *count += 1;
                p.finish(o.offset);
                self.store.insert(name, (state, at));
                self.add(name, Fact::Closed(at, o.clone()));
            }
        }
    }

    fn command(&mut self, at: Offset, c: &Command) {
        let closed = |s: Option<(u32, Phase, u32)>| s.filter(|s| matches!(s.1, Phase::Parked | Phase::Final));
        match &c.action {
            Action::Forget { at: place, id } => {
                let stand = self.stand((*place, *id));
                if stand.is_none() || closed(stand).is_some() {
                    self.store.remove(&(*place, *id));
                    self.end(at, (*place, *id), stand.map_or(1, |s| s.0), true);
                    self.add((*place, *id), Fact::Gone);
                }
            }
            Action::Mark { at: place, id, .. }
                if self.stand((*place, *id)).is_some() && closed(self.stand((*place, *id))).is_none() => {}
            Action::Mark { at: place, id, .. } => {
                let p = self.progress.entry(*place).or_default();
                p.counts.marked += 1;
                if let Some(m) = self.message((*place, *id)) {
                    self.progress.entry(*place).or_default().finish(m.offset);
                    self.end(at, (*place, *id), m.round, false);
                }
                self.store.insert((*place, *id), (FinishedState::Marked, at));
                self.add((*place, *id), Fact::Gone);
            }
            Action::Drop { at: place, id } => {
                if let Some((round, _, attempts)) = closed(self.stand((*place, *id))) {
                    self.end(at, (*place, *id), round, attempts > 0);
                    self.add((*place, *id), Fact::Gone);
                }
            }
            Action::Audit { .. } => {}
            // The maker makes none.
            Action::ForgetRoute { .. } => {}
            Action::SkipAdd(rule) => {
                self.skips.insert(rule.rule);
            }
            Action::SkipRemove { rule } => {
                self.skips.remove(rule);
            }
            Action::Pause { partner, .. } => {
                self.paused.insert(partner.clone());
            }
            Action::Resume { partner, .. } => {
                self.paused.remove(partner);
            }
        }
    }

    pub(super) fn check(&self, state: &LaneState) {
        for (at, p) in &state.partitions {
            let naive = self.progress.get(at).cloned().unwrap_or_default();
            assert_eq!(p.position, naive.position(), "position");
            assert_eq!(p.finished.iter().collect::<Vec<_>>(), naive.ranges(), "finished");
            assert_eq!(p.high_water, naive.high_water, "high water");
            assert_eq!(p.counts, naive.counts, "counts");
            let samples = self.samples.get(at).map_or(&[][..], Vec::as_slice);
            assert_eq!(p.samples, samples, "samples");
        }
        let known: BTreeMap<Name, Message> = state.messages().map(|(at, id, m)| ((at, id), m)).collect();
        let told: BTreeMap<Name, Message> = self
            .facts
            .iter()
            .filter_map(|(name, f)| read(f).map(|m| (*name, m)))
            .collect();
        assert_eq!(known, told, "messages");
        let rounds = state
            .partitions
            .iter()
            .flat_map(|(at, p)| p.rounds.iter().map(|(id, r)| ((*at, *id), *r)));
        assert_eq!(rounds.collect::<BTreeMap<_, _>>(), self.over, "rounds");
        for (draw, starts) in &self.starts {
            let known = state.used.get(draw).map_or(0, |used| used.since(Time::ZERO));
            assert_eq!(known, *starts, "starts");
        }
        assert!(state.skips.keys().eq(&self.skips), "skip rules");
        assert!(state.paused.keys().eq(&self.paused), "paused");
    }
}
