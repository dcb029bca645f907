//! The fold against an oracle: many random histories, legal and not, with restarts through a checkpoint anywhere.
//!
//! The oracle keeps naive sets of offsets and, for each message, the list of facts that counted; what a message is
//! follows from reading its list from the start. `SLUICEGATE_FOLD_HISTORIES` sets how many histories are tried,
//! `SLUICEGATE_FOLD_SEED` where to begin (a failure names its seed).

use super::super::codec;
use super::*;
use crate::core::record::Headers;
use crate::ledger::checkpoint;
use std::collections::BTreeSet;

type Name = (RoutePartition, MessageId);

/// Something that counted for a message.
#[derive(Clone, Debug)]
enum Fact {
    Intent(Intent),
    Later(Outcome),
    Closed(Offset, Outcome),
    Waiting(Offset, Waiting),
    Opened(Offset, Opened),
    Moved(Offset, u32),
    OpenedMoved(Offset),
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Open,
    Later,
    Parked,
    Final,
}

/// A record's place in a partition, naively.
#[derive(Default, Clone)]
struct Progress {
    finished: BTreeSet<Offset>,
    raised: Offset,
    high_water: Offset,
    counts: Counts,
}

impl Progress {
    fn done(&self, o: Offset) -> bool {
        o < self.raised || self.finished.contains(&o)
    }
    fn finish(&mut self, o: Offset) {
        self.finished.insert(o);
        self.high_water = self.high_water.max(o + 1);
    }
    fn position(&self) -> Offset {
        (0..).find(|o| !self.done(*o)).unwrap()
    }
    fn ranges(&self) -> Vec<(Offset, Offset)> {
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
struct Oracle {
    progress: BTreeMap<RoutePartition, Progress>,
    facts: BTreeMap<Name, Vec<Fact>>,
    /// Rounds that ended, with the entry that said so.
    over: BTreeMap<Name, (u32, Offset)>,
    store: BTreeMap<Name, (FinishedState, Offset)>,
    starts: BTreeMap<BudgetDraw, u64>,
    samples: BTreeMap<RoutePartition, BTreeSet<(Time, Offset)>>,
    skips: BTreeSet<u64>,
    paused: BTreeSet<String>,
}

/// Where `used` entries begin: a quarter hour before any slot.
const SPAN: Time = Time(1_789_999_200_000_000);

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
                    attempts: o.attempts,
                    first_try: *first_try,
                    since: o.when,
                    status: o.status,
                    payload: held,
                    opened: opened(o.round),
                    carried: false,
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
            Fact::Moved(at, size) => now.map(|m| Message {
                payload: Some((*at, *size)),
                ..m
            }),
            Fact::OpenedMoved(at) => now.map(|m| Message { opened: *at, ..m }),
            Fact::Gone => None,
        };
    }
    now
}

impl Oracle {
    fn message(&self, name: Name) -> Option<Message> {
        self.facts.get(&name).and_then(|f| read(f))
    }

    /// Round, phase and attempts of what is not simply finished.
    fn stand(&self, name: Name) -> Option<(u32, Phase, u32)> {
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

    fn step(&mut self, at: Offset, entry: &Entry) {
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
                if closed(self.stand((o.at, o.id))) {
                    self.add((o.at, o.id), Fact::Opened(at, o.clone()));
                }
            }
            Body::Command(c) => self.command(at, c),
            Body::Sample(s) => {
                self.samples.entry(s.at).or_default().insert((s.when, s.end));
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
                {
                    self.add(name, Fact::Moved(at, size(kept)));
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
                if let Some((round, ..)) = closed(self.stand((*place, *id))) {
                    self.end(at, (*place, *id), round, true);
                    self.add((*place, *id), Fact::Gone);
                }
            }
            Action::Audit { .. } => {}
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

    fn check(&self, state: &LaneState) {
        for (at, p) in &state.partitions {
            let naive = self.progress.get(at).cloned().unwrap_or_default();
            assert_eq!(p.position, naive.position(), "position");
            assert_eq!(p.finished.iter().collect::<Vec<_>>(), naive.ranges(), "finished");
            assert_eq!(p.high_water, naive.high_water, "high water");
            assert_eq!(p.counts, naive.counts, "counts");
            let samples = self.samples.get(at).into_iter().flatten().copied();
            assert_eq!(p.samples, samples.collect::<Vec<_>>(), "samples");
        }
        let known: BTreeMap<Name, Message> = state
            .messages()
            .map(|(at, id, m)| ((at, id), m.clone()))
            .collect();
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
            assert_eq!(state.used[draw].since(Time::ZERO), *starts, "starts");
        }
        assert!(state.skips.keys().eq(&self.skips), "skip rules");
        assert!(state.paused.keys().eq(&self.paused), "paused");
    }
}

/// A history in the making.
struct Maker {
    rng: fastrand::Rng,
    clock: u64,
    past: Vec<(Offset, Entry)>,
    /// Says only what an owner would: the present round, and attempts that follow each other.
    lawful: bool,
}

impl Maker {
    fn new(seed: u64) -> Self {
        Self {
            rng: fastrand::Rng::with_seed(seed),
            clock: 1_790_000_000_000_000,
            past: Vec::new(),
            lawful: false,
        }
    }

    fn now(&mut self) -> Time {
        self.clock += self.rng.u64(1..400_000);
        Time(self.clock)
    }

    fn name(&mut self) -> Name {
        let at = RoutePartition {
            route: RouteId(self.rng.u64(0..2)),
            partition: 0,
        };
        let mut id = [0; 16];
        id[7] = self.rng.u8(0..4);
        (at, MessageId(id))
    }

    fn kept(&mut self, key: KeyHash) -> Box<Kept> {
        Box::new(Kept {
            key,
            record_key: self.rng.bool().then(|| Bytes::from_static(b"k")),
            timestamp: self.now(),
            value: Bytes::from(vec![b'v'; self.rng.usize(0..9)]),
            headers: Headers(Bytes::from_static(b"hh")),
            readable: "r".into(),
            reason: "refused: x".into(),
            first_try: self.now(),
            ..Kept::default()
        })
    }

    fn next(&mut self, oracle: &Oracle) -> Entry {
        let (at, id) = self.name();
        let known = oracle.message((at, id));
        let legal = self.lawful || self.rng.u8(0..10) < 8;
        let round = match &known {
            Some(m) if legal => m.round,
            None if legal => oracle.over.get(&(at, id)).map_or(1, |o| o.0 + 1),
            _ => self.rng.u32(1..4),
        };
        let attempts = match &known {
            Some(m) if legal => m.attempts + self.rng.u32(0..2),
            None if legal => 1,
            _ => self.rng.u32(0..4),
        };
        let offset = match &known {
            Some(m) => m.offset,
            // The record itself, or a repetition of it further on.
            None => u64::from(id.0[7]) + if self.rng.u8(0..10) == 0 { 4 } else { 0 },
        };
        let (key, when, life) = (KeyHash(offset), self.now(), LifeId(self.rng.u64(1..3)));
        let body = match self.rng.u8(0..100) {
            0..28 => Body::Intent(Intent {
                at,
                id,
                key,
                offset,
                round,
                attempt: attempts,
                first_try: when,
                slot: when,
                budgets: (0..self.rng.u64(0..3))
                    .map(|b| BudgetDraw { budget: b, by: b / 2 })
                    .collect(),
                life,
                lease_ms: 5_000,
                timeout_ms: 10_000,
            }),
            28..62 => {
                let kind = match self.rng.u8(0..10) {
                    0..3 => OutcomeKind::Delivered {
                        readable: Bytes::from_static(b"r"),
                    },
                    3..6 => OutcomeKind::Later {
                        not_before: when,
                        first_try: when,
                        key,
                        reason: "later: 429".into(),
                    },
                    6 | 7 => OutcomeKind::Dead(self.kept(key)),
                    8 => OutcomeKind::Parked(self.kept(key)),
                    _ => OutcomeKind::Skipped(self.kept(key)),
                };
                let status = self.rng.u16(0..600);
                Body::Outcome(Outcome {
                    at,
                    id,
                    offset,
                    round,
                    attempts,
                    when,
                    life,
                    status,
                    kind,
                })
            }
            62..68 => {
                let kept = self.kept(key);
                Body::Waiting(Waiting {
                    at,
                    id,
                    offset,
                    round,
                    attempts,
                    when,
                    not_before: when,
                    kept,
                })
            }
            68..75 => {
                let round = if legal { round + 1 } else { round };
                Body::Opened(Opened {
                    at,
                    id,
                    round,
                    when,
                    idempotency_key: "i".into(),
                })
            }
            75..80 => {
                let naive = oracle.progress.get(&at).cloned().unwrap_or_default();
                let position = if legal {
                    naive.position()
                } else {
                    self.rng.u64(0..4)
                };
                let from = position + self.rng.u64(0..3);
                let finished = if legal {
                    naive.ranges()
                } else {
                    vec![(from, from + self.rng.u64(0..3))]
                };
                let high_water = self.rng.u64(0..9);
                Body::Position(Position {
                    at,
                    leader_epoch: 0,
                    position,
                    finished,
                    high_water,
                })
            }
            80..90 => {
                let rule = self.rng.u64(0..3);
                let action = match self.rng.u8(0..7) {
                    0 => Action::Forget { at, id },
                    1 => Action::Mark {
                        at,
                        id,
                        offset: self.rng.u64(0..9),
                    },
                    2 => Action::Drop { at, id },
                    3 => Action::SkipAdd(SkipRule {
                        rule,
                        topic: "t".into(),
                        partner: None,
                        matches: SkipMatch::Key(Bytes::from_static(b"k")),
                        reason: "flood".into(),
                        made: when,
                        expires: None,
                    }),
                    4 => Action::SkipRemove { rule },
                    5 => Action::Pause {
                        partner: format!("p{rule}"),
                        route: None,
                        reason: "401".into(),
                    },
                    _ => Action::Resume {
                        partner: format!("p{rule}"),
                        route: None,
                    },
                };
                let offset = self.past.len() as u64;
                Body::Command(Command {
                    offset,
                    when,
                    who: "op".into(),
                    why: "because".into(),
                    action,
                })
            }
            90..92 => Body::Sample(Sample {
                at,
                when,
                end: offset,
            }),
            92..94 => {
                let draw = BudgetDraw {
                    budget: self.rng.u64(0..2),
                    by: 0,
                };
                let count = oracle.starts.get(&draw).copied().unwrap_or(0) + self.rng.u64(0..3);
                Body::Used(Used {
                    draw,
                    window: 0,
                    since: SPAN,
                    count,
                })
            }
            94..98 if !self.past.is_empty() => {
                let held = known.and_then(|m| m.payload).map(|p| p.0);
                let any = self.rng.usize(0..self.past.len());
                let of = held
                    .and_then(|h| self.past.iter().position(|(o, _)| *o == h))
                    .unwrap_or(any);
                let (offset, entry) = self.past[of].clone();
                entry.carry(offset)
            }
            98 => Body::Released(vec![life]),
            _ => Body::Unknown {
                kind: 99,
                bytes: Bytes::from_static(b"later"),
            },
        };
        Entry {
            tenure: Tenure(1),
            body,
        }
    }
}

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(default)
}

fn genesis() -> Entry {
    let genesis = Genesis {
        ledger: 7,
        group: "embedded".into(),
        lanes: 1,
        lane: 0,
        recipe: 1,
    };
    Entry {
        tenure: Tenure(0),
        body: Body::Genesis(genesis),
    }
}

/// One history: the fold agrees with the oracle, and a fold that was restarted from checkpoints at random places
/// agrees with the one that was not. `every`: at every offset, else now and then and at the end.
fn history(seed: u64, every: bool) {
    let mut maker = Maker::new(seed);
    let (mut straight, mut oracle) = (LaneState::default(), Oracle::default());
    let (mut restarted, mut ops) = (LaneState::default(), Vec::new());
    let mut store: BTreeMap<Name, (FinishedState, Offset)> = BTreeMap::new();
    let mut at = 0;
    let length = maker.rng.usize(1..30);
    for n in 0..length {
        let mut entry = if n == 0 { genesis() } else { maker.next(&oracle) };
        let mut repeated = Vec::new();
        if maker.rng.u8(0..8) == 0 {
            // As it comes back from the log.
            let mut bytes = Vec::new();
            codec::encode(&entry, &mut bytes);
            entry = codec::decode(&bytes.into()).unwrap();
        }
        straight.apply(at, &entry, &mut ops).unwrap();
        restarted.apply(at, &entry, &mut repeated).unwrap();
        assert_eq!(ops, repeated);
        for op in ops.drain(..) {
            match op {
                StoreOp::Finished(f) => {
                    assert_eq!(f.ledger, at);
                    store.insert((f.at, f.id), (f.state, f.ledger));
                }
                StoreOp::Forget { at, id } => {
                    store.remove(&(at, id));
                }
            }
        }
        oracle.step(at, &entry);
        if every || n + 1 == length || maker.rng.u8(0..16) == 0 {
            oracle.check(&straight);
            assert_eq!(store, oracle.store, "store");
        }
        if every || maker.rng.u8(0..16) == 0 {
            let bytes = checkpoint::encode(&restarted, 7, 1);
            restarted = checkpoint::decode(&bytes.into(), "memory".into()).unwrap().state;
            assert_eq!(restarted, straight, "from a checkpoint");
        }
        maker.past.push((at, entry));
        // The log may have gaps.
        at += 1 + u64::from(maker.rng.u8(0..10) == 0);
    }
    assert_eq!(restarted, straight, "at the end");
}

fn each(count: u64, what: impl Fn(u64)) {
    let first = from_env("SLUICEGATE_FOLD_SEED", 0);
    for seed in first..first + count {
        if let Err(cause) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| what(seed))) {
            eprintln!("history with SLUICEGATE_FOLD_SEED={seed}");
            std::panic::resume_unwind(cause);
        }
    }
}

#[test]
fn the_fold_agrees_with_the_oracle() {
    each(from_env("SLUICEGATE_FOLD_HISTORIES", 15_000), |seed| {
        history(seed, false)
    });
}

#[test]
fn the_fold_from_a_checkpoint_equals_the_fold_from_the_start_at_every_offset() {
    each(from_env("SLUICEGATE_FOLD_HISTORIES", 15_000) / 20, |seed| {
        history(seed ^ 0x5eed_0000, true)
    });
}

/// A lane as its owner writes it.
struct Lane {
    maker: Maker,
    whole: LaneState,
    oracle: Oracle,
    entries: Vec<(Offset, Entry)>,
}

impl Lane {
    fn say(&mut self, entry: Entry) {
        let at = self.entries.len() as u64;
        self.whole.apply(at, &entry, &mut Vec::new()).unwrap();
        self.oracle.step(at, &entry);
        self.maker.past.push((at, entry.clone()));
        self.entries.push((at, entry));
    }

    fn say_body(&mut self, body: Body) {
        self.say(Entry {
            tenure: Tenure(1),
            body,
        });
    }

    /// What an owner would not say is not said: a fold that starts later cannot know that it is stale.
    fn would_say(&self, entry: &Entry) -> bool {
        match &entry.body {
            Body::Intent(_) | Body::Outcome(_) | Body::Opened(_) => {
                let (mut after, mut told) = (self.whole.clone(), Vec::new());
                after.apply(self.entries.len() as u64, entry, &mut told).unwrap();
                let known = |s: &LaneState| -> BTreeMap<Name, Message> {
                    s.messages().map(|(at, id, m)| ((at, id), m.clone())).collect()
                };
                !told.is_empty() || known(&after) != known(&self.whole)
            }
            // Once the payload is in the ledger it is not copied again.
            Body::Waiting(w) => self
                .oracle
                .message((w.at, w.id))
                .is_none_or(|m| m.payload.is_none() && matches!(m.state, MessageState::Later { .. })),
            // It waits for the verdict.
            Body::Command(Command {
                action: Action::Forget { at, id },
                ..
            }) => self.oracle.message((*at, *id)).is_none_or(|m| m.closed()),
            Body::Carried { .. } => false,
            _ => true,
        }
    }

    /// Carries what lies from `first` to `trim` and must live on.
    fn carry(&mut self, first: u64, trim: u64) {
        let opened = self.whole.opened_behind(trim);
        let mut carry: Vec<_> = self.entries[first as usize..].to_vec();
        carry.retain(|(at, entry)| match *at < trim {
            true => self.whole.must_carry(*at, entry),
            false => opened.contains(at),
        });
        carry.sort_by_key(|(_, entry)| !entry.holds_payload());
        for (at, entry) in carry {
            self.say_body(entry.carry(at));
        }
        for (at, p) in self.whole.partitions.clone() {
            self.say_body(Body::Position(Position {
                at,
                leader_epoch: p.leader_epoch,
                position: p.position,
                finished: p.finished.iter().collect(),
                high_water: p.high_water,
            }));
        }
        for (draw, used) in self.whole.used.clone() {
            let count = used.since(SPAN);
            self.say_body(Body::Used(Used {
                draw,
                window: 0,
                since: SPAN,
                count,
            }));
        }
    }

    fn check_from(&self, trim: u64) {
        let whole = &self.whole;
        let mut trimmed = LaneState::default();
        for (at, entry) in &self.entries[trim as usize..] {
            trimmed.apply(*at, entry, &mut Vec::new()).unwrap();
        }
        assert_eq!(trimmed.genesis, whole.genesis);
        assert_eq!(trimmed.skips, whole.skips);
        assert_eq!(trimmed.paused, whole.paused);
        for (draw, used) in &whole.used {
            assert!(trimmed.used[draw].since(SPAN) >= used.since(SPAN));
        }
        for (at, p) in &whole.partitions {
            let t = &trimmed.partitions[at];
            assert_eq!(
                (t.position, &t.finished, t.high_water),
                (p.position, &p.finished, p.high_water)
            );
            assert_eq!(t.samples, p.samples);
            for (id, m) in &p.messages {
                let got = t
                    .messages
                    .get(id)
                    .unwrap_or_else(|| panic!("{id} of {m:?} is lost"));
                let what = |m: &Message| {
                    (
                        m.state.clone(),
                        m.round,
                        m.attempts,
                        m.offset,
                        m.key,
                        m.payload,
                        m.opened,
                    )
                };
                assert_eq!(what(got), what(m), "{id}");
            }
            for id in t.messages.keys() {
                assert!(
                    p.messages.contains_key(id),
                    "{id} has come back: {:?}",
                    t.messages[id]
                );
            }
        }
    }
}

/// A lane that was trimmed, behind what had to be carried, folds to the same: three times over.
#[test]
fn a_trimmed_lane_folds_to_the_same() {
    each(from_env("SLUICEGATE_FOLD_HISTORIES", 15_000) / 20, |seed| {
        let mut maker = Maker::new(seed);
        maker.lawful = true;
        let mut lane = Lane {
            maker,
            whole: LaneState::default(),
            oracle: Oracle::default(),
            entries: Vec::new(),
        };
        lane.say(genesis());
        let mut trim = 0;
        for _ in 0..3 {
            for _ in 0..lane.maker.rng.usize(1..25) {
                let entry = lane.maker.next(&lane.oracle);
                if lane.would_say(&entry) {
                    lane.say(entry);
                }
            }
            let first = trim;
            trim = lane.maker.rng.u64(first.max(1)..=lane.entries.len() as u64);
            lane.carry(first, trim);
            lane.check_from(trim);
        }
    });
}
