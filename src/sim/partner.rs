//! The partners of a simulated node. What a partner does with a request is decided when that begins, its effect
//! included: that comes at its time, whether or not the process that asked lives to see it.

use super::oracle::Facts;
use crate::clock::simulated;
use crate::core::mask::Masker;
use crate::core::types::{MessageId, RoutePartition, Time};
use crate::sink::{
    Answer, AnswerDetail, Asked, Delivery, DoubtCause, Gate, Pace, PrepareError, Sent, Sink, Verdict,
    Verified, idempotency_key,
};
use hashbrown::HashMap;
use parking_lot::Mutex;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

type Name = (RoutePartition, MessageId);

/// How a partner feels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    #[default]
    Healthy,
    /// A bit of everything.
    Flaky,
    /// 429, sometimes with Retry-After.
    Throttling,
    /// No answers; some requests have their effect, late.
    Hanging,
    /// No answers and no effects.
    Dead,
    /// No connections.
    Down,
    /// Answers take most of the timeout.
    Slow,
}

impl Mood {
    pub fn any(rng: &mut fastrand::Rng) -> Self {
        const ALL: [Mood; 8] = [
            Mood::Healthy,
            Mood::Healthy,
            Mood::Flaky,
            Mood::Flaky,
            Mood::Throttling,
            Mood::Hanging,
            Mood::Down,
            Mood::Slow,
        ];
        ALL[rng.usize(0..ALL.len())]
    }
}

struct Request {
    round: u32,
    idempotency: String,
    /// When it has its effect.
    effect: Option<Time>,
    /// It has been answered with a definite no.
    refused: bool,
}

/// One partner: what it was asked, over all lives.
#[derive(Default)]
pub struct Server {
    pub mood: Mood,
    /// Requests whose client still waits.
    pub in_flight: usize,
    asked: HashMap<Name, Vec<Request>>,
}

impl Server {
    /// Requests of a message so far.
    pub fn requests(&self, name: Name) -> usize {
        self.asked.get(&name).map_or(0, Vec::len)
    }

    /// Requests so far, of all messages.
    pub fn total(&self) -> usize {
        self.asked.values().map(Vec::len).sum()
    }

    fn any(&self, name: Name, round: u32, f: impl Fn(&Request) -> bool) -> bool {
        let all = self.asked.get(&name);
        all.is_some_and(|all| all.iter().any(|r| r.round == round && f(r)))
    }

    /// Whether, for all that a node can know, one of a round may have been taken.
    pub fn may_have(&self, name: Name, round: u32) -> bool {
        self.any(name, round, |r| !r.refused)
    }

    /// Whether one of a round has its effect, now or later.
    pub fn took(&self, name: Name, round: u32) -> bool {
        self.any(name, round, |r| r.effect.is_some())
    }

    /// Whether the partner has what a request of this round asked for: a resend under the Idempotency-Key of the round
    /// before has no effect of its own, and is answered with the one that was there.
    pub fn has(&self, name: Name, round: u32) -> bool {
        let all = self.asked.get(&name).map_or(&[][..], |all| all);
        let there = |key: &str| {
            let mut same = all.iter().filter(|r| r.idempotency == key);
            same.any(|r| r.effect.is_some_and(|at| at <= simulated::now()))
        };
        self.any(name, round, |r| there(&r.idempotency))
    }

    /// How often a message was taken in a round, by a partner that knows an Idempotency-Key again.
    pub fn applied(&self, name: Name, round: u32) -> usize {
        let mut keys: Vec<&str> = Vec::new();
        for request in self.asked.get(&name).into_iter().flatten() {
            if request.round == round
                && request.effect.is_some()
                && !keys.contains(&request.idempotency.as_str())
            {
                keys.push(&request.idempotency);
            }
        }
        keys.len()
    }
}

/// What becomes of one request.
struct Fate {
    effect: Option<Duration>,
    answer: Option<(Duration, Verdict, u16, Option<Duration>)>,
}

impl Fate {
    /// A request to a partner of this mood. Effects come before timeout and settle time are over, so that a look-up
    /// that is believed is right to be.
    fn of(mood: Mood, timeout: Duration, rng: &mut fastrand::Rng) -> Self {
        let within = |rng: &mut fastrand::Rng, d: Duration| d.mul_f64(rng.f64());
        let quick = within(rng, timeout / 4);
        let answered = |effect: bool, at, verdict, status| Fate {
            effect: effect.then_some(at),
            answer: Some((at, verdict, status, None)),
        };
        let unknown = Verdict::Unknown(DoubtCause::Timeout);
        match mood {
            Mood::Healthy => answered(true, quick, Verdict::Delivered, 200),
            Mood::Slow => {
                let at = timeout / 2 + within(rng, timeout * 3 / 4);
                answered(true, at, Verdict::Delivered, 200)
            }
            Mood::Throttling => Fate {
                effect: None,
                answer: Some((
                    quick,
                    Verdict::TryLater,
                    429,
                    rng.bool().then(|| within(rng, Duration::from_millis(300))),
                )),
            },
            Mood::Dead => Fate {
                effect: None,
                answer: None,
            },
            Mood::Hanging | Mood::Down => Fate {
                effect: rng
                    .bool()
                    .then(|| within(rng, timeout + Duration::from_millis(400))),
                answer: None,
            },
            Mood::Flaky => match rng.u8(0..12) {
                0..5 => answered(true, quick, Verdict::Delivered, 200),
                5 => answered(false, quick, Verdict::TryLater, 503),
                6 => answered(false, quick, Verdict::Refused, 422),
                // Reset after and before it was taken.
                7 => answered(true, quick, unknown, 0),
                8 => answered(false, quick, unknown, 0),
                9 => answered(rng.bool(), quick, Verdict::Unknown(DoubtCause::Gateway), 502),
                10 => Fate::of(Mood::Hanging, timeout, rng),
                _ => Fate::of(Mood::Throttling, timeout, rng),
            },
        }
    }
}

/// The way from one life to one partner.
pub struct SimSink {
    pub facts: Arc<Mutex<Facts>>,
    pub life: u64,
    pub partner: usize,
    /// Its budget, where it has one, and the pointer that splits it.
    pub draws: Vec<super::world::Draw>,
}

impl SimSink {
    async fn step(&self) {
        if !self.facts.lock().step(self.life) {
            std::future::pending::<()>().await;
        }
    }

    fn fails(verdict: Verdict, status: u16) -> Answer {
        Answer {
            verdict,
            status,
            detail: Some(Box::new(AnswerDetail::default())),
            pace: None,
            concerns: None,
        }
    }
}

impl Sink for SimSink {
    type Request = Delivery;
    type Connection = ();

    fn prepare(&self, delivery: &Delivery) -> Result<Delivery, PrepareError> {
        match delivery.record.value.ends_with(b"broken\"}") {
            true => Err(PrepareError("broken".into())),
            false => Ok(delivery.clone()),
        }
    }

    async fn connect(&self, _: &Delivery) -> Result<(), Answer> {
        self.step().await;
        let (wait, down) = {
            let facts = &mut *self.facts.lock();
            let wait = Duration::from_micros(facts.rng.u64(0..2_000));
            (wait, facts.servers[self.partner].mood == Mood::Down)
        };
        tokio::time::sleep(wait).await;
        match down {
            true => Err(Self::fails(Verdict::TryLater, 0)),
            false => Ok(()),
        }
    }

    async fn send(&self, (): (), delivery: Delivery, gate: Gate<'_>) -> Sent {
        self.step().await;
        let (stall, closed) = {
            let rng = &mut self.facts.lock().rng;
            (rng.u8(0..30) == 0, rng.u8(0..30) == 0)
        };
        if stall {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if closed {
            return Sent::NeverWritten(Self::fails(Verdict::TryLater, 0));
        }
        if !gate() {
            return Sent::Stopped;
        }
        self.step().await;
        let at = super::world::at(self.partner, delivery.partition);
        let name = (at, delivery.id);
        let (number, fate, timeout) = {
            let facts = &mut *self.facts.lock();
            let draws = self.draws.iter().map(|d| d.of(&delivery.record.value)).collect();
            facts.request(at, &delivery, &draws);
            let timeout = facts.scenario.partners[self.partner].timeout.request;
            let server = &mut facts.servers[self.partner];
            let mut fate = Fate::of(server.mood, timeout, &mut facts.rng);
            let idempotency = match &delivery.idempotency_key {
                Some(key) => key.to_string(),
                None => idempotency_key(delivery.id, delivery.round),
            };
            let asked = server.asked.entry(name).or_default();
            // A partner that knows the key does not judge the message again; while it is at it still, it says so.
            let mut effects = asked
                .iter()
                .filter(|r| r.idempotency == idempotency)
                .filter_map(|r| r.effect);
            if let (Some(effect), Some((_, verdict @ Verdict::Refused, status, _))) =
                (effects.next(), &mut fate.answer)
            {
                (*verdict, *status) = match effect <= simulated::now() {
                    true => (Verdict::Delivered, 200),
                    false => (Verdict::TryLater, 409),
                };
            }
            asked.push(Request {
                round: delivery.round,
                idempotency,
                effect: fate.effect.map(|d| simulated::now().plus(d)),
                refused: false,
            });
            (asked.len() - 1, fate, timeout)
        };
        self.step().await;
        let answer = match fate.answer {
            Some((at, ..)) if at > timeout => None,
            other => other,
        };
        tokio::time::sleep(answer.map_or(timeout, |a| a.0)).await;
        self.step().await;
        let (_, verdict, status, retry_after) =
            answer.unwrap_or((timeout, Verdict::Unknown(DoubtCause::Timeout), 0, None));
        {
            let facts = &mut *self.facts.lock();
            facts.in_flight -= 1;
            let server = &mut facts.servers[self.partner];
            server.in_flight -= 1;
            let no = matches!(verdict, Verdict::TryLater | Verdict::Refused | Verdict::Pause);
            let asked = server.asked.entry(name).or_default();
            asked[number].refused = no;
            if verdict == Verdict::Refused {
                // It knows the key of none of the earlier ones: it took none of them.
                asked.iter_mut().for_each(|r| r.refused |= r.effect.is_none());
            }
        }
        let pace = retry_after.map(|d| Pace {
            retry_after: Some(d),
            pause: Some(d),
            ..Pace::default()
        });
        Sent::Answered(Answer {
            verdict,
            status,
            detail: (verdict != Verdict::Delivered).then(|| Box::new(AnswerDetail::default())),
            pace: pace.map(Box::new),
            concerns: None,
        })
    }

    fn look_up(&self, delivery: &Delivery) -> Result<Self::Request, Verified> {
        Ok(self.prepare(delivery).expect("every delivery makes a request"))
    }

    async fn ask(&self, _: Self::Connection, delivery: Self::Request, gate: Gate<'_>) -> Asked {
        self.step().await;
        if !gate() {
            return Asked::Stopped;
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
        self.step().await;
        let facts = &mut *self.facts.lock();
        let name = (super::world::at(self.partner, delivery.partition), delivery.id);
        let server = &facts.servers[self.partner];
        if server.mood == Mood::Down || facts.rng.u8(0..6) == 0 {
            return Asked::Answered {
                verified: Verified::AskAgain("down".into()),
                reached: false,
                pace: None,
            };
        }
        Asked::Answered {
            verified: match server.has(name, delivery.round) {
                true => Verified::Delivered,
                false => Verified::NeverSeen,
            },
            reached: true,
            pace: None,
        }
    }

    fn masker(&self) -> Rc<Masker> {
        Rc::default()
    }
}
