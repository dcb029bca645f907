//! Makes histories up: mostly what an owner would say, and some of what it never would.

use super::super::*;
use super::oracle::Oracle;
use super::{Name, SPAN};
use crate::core::record::Headers;

/// A history in the making.
pub(super) struct Maker {
    pub(super) rng: fastrand::Rng,
    pub(super) clock: u64,
    pub(super) past: Vec<(Offset, Entry)>,
    /// Says only what an owner would: the present round, and attempts that follow each other.
    pub(super) lawful: bool,
}

impl Maker {
    pub(super) fn new(seed: u64) -> Self {
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

    pub(super) fn next(&mut self, oracle: &Oracle) -> Entry {
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
                        counted: self.rng.u8(0..4) > 0,
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
                Body::from(Command {
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
