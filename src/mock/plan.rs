//! The decision about one request: which phase holds, whether the limit has room, what is done with it. Pure:
//! time (nanoseconds since the mock's start) and randomness come in as arguments.

use super::options::{Behaviour, RuleOn};
use super::spec::{Fault, FaultShare, Phase, Rate, Until};
use std::collections::VecDeque;
use std::time::Duration;

/// Nanoseconds since the mock's start.
pub type Nanos = u64;

/// A duration in nanoseconds, at most `u64::MAX`.
pub(crate) fn nanos(d: Duration) -> Nanos {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

/// Where a script stands.
#[derive(Clone, Debug)]
pub struct Script {
    phases: Vec<Phase>,
    repeat: bool,
    index: usize,
    /// When the present phase began; none while the script waits for the first request.
    since: Option<Nanos>,
    left: u64,
}

impl Script {
    /// A script that begins at `now`, or with its first request.
    pub fn new(behaviour: &Behaviour, now: Nanos) -> Self {
        let mut script = Self {
            phases: behaviour.script.clone(),
            // Phases that take neither time nor requests would go round for ever.
            repeat: behaviour.repeat
                && behaviour.script.iter().any(|p| match p.until {
                    Until::Elapsed(d) => !d.is_zero(),
                    Until::Requests(n) => n > 0,
                    Until::Always => true,
                }),
            index: 0,
            since: (!behaviour.from_first_request).then_some(now),
            left: 0,
        };
        script.enter(0);
        script
    }

    fn enter(&mut self, index: usize) {
        self.index = index;
        if index >= self.phases.len() && self.repeat {
            self.index = 0;
        }
        self.left = match self.phases.get(self.index).map(|p| p.until) {
            Some(Until::Requests(n)) => n,
            _ => 0,
        };
    }

    /// The phase that holds at `now`, after moving on past those that have ended.
    pub fn at(&mut self, now: Nanos) -> Option<&Phase> {
        if let Some(mut since) = self.since {
            loop {
                match self.phases.get(self.index).map(|p| p.until) {
                    Some(Until::Elapsed(d)) if now.saturating_sub(since) >= nanos(d) => {
                        since += nanos(d);
                    }
                    Some(Until::Requests(_)) if self.left == 0 => {}
                    _ => break,
                }
                self.enter(self.index + 1);
                self.since = Some(since);
            }
        }
        self.phases.get(self.index)
    }

    /// Counts one request at `now`: the first one may begin the script, the last one of a phase ends it. Answers
    /// whether it did either.
    pub fn count(&mut self, now: Nanos) -> bool {
        let begun = self.since.is_none();
        self.since.get_or_insert(now);
        let ended = self.left == 1;
        self.left = self.left.saturating_sub(1);
        if ended {
            self.since = Some(now);
        }
        begun || ended
    }

    /// When the present phase ends by itself.
    pub fn deadline(&self) -> Option<Nanos> {
        match self.phases.get(self.index)?.until {
            Until::Elapsed(d) => Some(self.since?.saturating_add(nanos(d))),
            _ => None,
        }
    }
}

/// The partner's own limit: at most `count` requests taken in any window.
#[derive(Clone, Debug)]
pub struct OwnLimit {
    rate: Rate,
    taken: VecDeque<Nanos>,
}

impl OwnLimit {
    /// A limit of which nothing is used.
    pub fn new(rate: Rate) -> Self {
        Self {
            rate,
            taken: VecDeque::new(),
        }
    }
    /// How long until there is room; none if there is room now.
    pub fn wait(&mut self, now: Nanos) -> Option<Duration> {
        let window = nanos(self.rate.window);
        while self
            .taken
            .front()
            .is_some_and(|t| now.saturating_sub(*t) >= window)
        {
            self.taken.pop_front();
        }
        let first = self
            .taken
            .front()
            .filter(|_| self.taken.len() >= self.rate.count)?;
        Some(Duration::from_nanos((first + window).saturating_sub(now)))
    }
    /// Counts a request that was taken.
    pub fn take(&mut self, now: Nanos) {
        self.taken.push_back(now);
    }
    /// Limit, what is left of it, and the time until the oldest request leaves the window.
    pub fn state(&self, now: Nanos) -> (usize, usize, Duration) {
        let reset = self
            .taken
            .front()
            .map_or(0, |t| (t + nanos(self.rate.window)).saturating_sub(now));
        (
            self.rate.count,
            self.rate.count.saturating_sub(self.taken.len()),
            Duration::from_nanos(reset),
        )
    }
}

/// What is known of a request when it is judged.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen<'a> {
    /// Its key; empty if it has none.
    pub key: &'a [u8],
    /// Its message ID; empty if it has none.
    pub id: &'a [u8],
    /// Its path with the query.
    pub path: &'a [u8],
    /// Whether its message ID was applied before.
    pub applied_before: bool,
}

/// What is done with a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Wait before the answer.
    pub delay: Duration,
    /// The fault, or a plain 200.
    pub fault: Option<Fault>,
    /// Whether the message is applied by it.
    pub applied: bool,
    /// Whether it was over the partner's own limit, and how long until that has room.
    pub limited: Option<Duration>,
}

/// Judges one request. `limits` are counted when the request gets through to them.
pub fn decide(
    behaviour: &Behaviour,
    phase: Option<&Phase>,
    seen: Seen<'_>,
    limits: &mut [OwnLimit],
    now: Nanos,
    rng: &mut fastrand::Rng,
) -> Plan {
    let rule = behaviour.rules.iter().find(|rule| match rule.on {
        RuleOn::Key => rule.matches(seen.key),
        RuleOn::Id => rule.matches(seen.id),
        RuleOn::Path => rule.matches(seen.path),
    });
    let special = rule.map(|r| &r.then).or(phase);
    let faults = special.map_or(&behaviour.faults, |p| &p.faults);
    let latency = special.and_then(|p| p.latency).unwrap_or(behaviour.latency);
    let mut plan = Plan {
        delay: latency.draw(rng),
        fault: draw(faults, rng),
        applied: false,
        limited: None,
    };
    // What it has taken before it does not refuse for its content.
    if behaviour.idempotent
        && seen.applied_before
        && matches!(
            plan.fault,
            Some(Fault::ErrorBody | Fault::Status(400..=428 | 430..=499))
        )
    {
        plan.fault = None;
    }
    // The limit stands in front of the partner's logic, but not in front of a dead partner.
    if matches!(plan.fault, None | Some(Fault::Status(_) | Fault::ErrorBody)) {
        plan.limited = limits.iter_mut().filter_map(|l| l.wait(now)).max();
        if plan.limited.is_some() {
            plan.fault = Some(Fault::Status(429));
        } else {
            limits.iter_mut().for_each(|l| l.take(now));
        }
    }
    if let Some(Fault::Hang(Some(more))) = plan.fault {
        plan.delay += more;
        plan.fault = None;
    }
    let takes = match plan.fault {
        None | Some(Fault::Status(200..=299)) => true,
        Some(Fault::Status(502 | 504)) => in_doubt(behaviour, rng),
        Some(Fault::Status(_) | Fault::ErrorBody | Fault::ResetBeforeRead | Fault::Down) => false,
        Some(_) => in_doubt(behaviour, rng),
    };
    plan.applied = takes && !(behaviour.idempotent && seen.applied_before);
    plan
}

fn in_doubt(behaviour: &Behaviour, rng: &mut fastrand::Rng) -> bool {
    rng.f64() < behaviour.applied_in_doubt
}

fn draw(faults: &[FaultShare], rng: &mut fastrand::Rng) -> Option<Fault> {
    if faults.is_empty() {
        return None;
    }
    let mut at = rng.f64();
    faults.iter().find_map(|f| {
        at -= f.share;
        (at < 0.0).then_some(f.fault)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: Nanos = 1_000_000_000;

    fn scripted(phases: &[&str], repeat: bool) -> Behaviour {
        let script = phases.iter().map(|p| p.parse().expect("phase")).collect();
        Behaviour {
            script,
            repeat,
            ..Behaviour::default()
        }
    }

    #[test]
    fn a_script_goes_by_time_and_by_count() {
        let mut script = Script::new(&scripted(&["up 5s", "503 3x", "hang 1s"], false), 0);
        assert_eq!(script.deadline(), Some(5 * S));
        assert!(script.at(4 * S).is_some_and(|p| p.faults.is_empty()));
        for _ in 0..3 {
            assert!(
                script
                    .at(6 * S)
                    .is_some_and(|p| p.faults[0].fault == Fault::Status(503))
            );
            script.count(6 * S);
        }
        assert!(
            script
                .at(6 * S)
                .is_some_and(|p| p.faults[0].fault == Fault::Hang(None))
        );
        assert_eq!(script.deadline(), Some(7 * S));
        assert!(script.at(7 * S).is_none());
    }

    #[test]
    fn a_repeated_script_comes_round_and_an_empty_one_does_not_spin() {
        let mut script = Script::new(&scripted(&["up 1s", "down 1s"], true), 0);
        for second in 0..100 {
            let down = script.at(second * S).is_some_and(|p| !p.faults.is_empty());
            assert_eq!(down, second % 2 == 1, "second {second}");
        }
        let mut empty = Script::new(&scripted(&["up 0s", "503 0x"], true), 0);
        assert!(empty.at(S).is_none());
    }

    #[test]
    fn a_script_can_wait_for_the_first_request() {
        let behaviour = Behaviour {
            from_first_request: true,
            ..scripted(&["down 1s"], false)
        };
        let mut script = Script::new(&behaviour, 0);
        assert!(script.at(50 * S).is_some() && script.deadline().is_none());
        script.count(50 * S);
        assert_eq!(script.deadline(), Some(51 * S));
    }

    #[test]
    fn doubt_is_applied_as_set_and_an_idempotent_partner_applies_once() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut judge = |faults: &str, doubt: f64, idempotent: bool, before: bool| {
            let faults = if faults.is_empty() {
                Vec::new()
            } else {
                vec![faults.parse().expect("fault")]
            };
            let behaviour = Behaviour {
                faults,
                applied_in_doubt: doubt,
                idempotent,
                ..Behaviour::default()
            };
            let seen = Seen {
                applied_before: before,
                ..Seen::default()
            };
            decide(&behaviour, None, seen, &mut [], 0, &mut rng).applied
        };
        assert!(judge("", 0.0, false, false));
        assert!(
            judge("", 0.0, false, true),
            "a partner that is not idempotent applies twice"
        );
        assert!(!judge("", 0.0, true, true));
        for doubtful in [
            "hang",
            "reset-after-read",
            "502",
            "504",
            "garbage",
            "half",
            "close",
            "drip",
            "huge",
        ] {
            assert!(judge(doubtful, 1.0, false, false), "{doubtful}");
            assert!(!judge(doubtful, 0.0, false, false), "{doubtful}");
        }
        for never in [
            "reset-before-read",
            "429",
            "503",
            "500",
            "400",
            "error-body",
            "down",
        ] {
            assert!(!judge(never, 1.0, false, false), "{never}");
        }
    }

    proptest! {
        /// Whatever comes in, no window holds more taken requests than the limit allows, and none is refused for nothing.
        #[test]
        fn the_own_limit_is_exact(gaps in proptest::collection::vec(0u64..400, 1..300), count in 1usize..9) {
            let behaviour = Behaviour::default();
            let mut limits = vec![OwnLimit::new(Rate { count, window: Duration::from_nanos(1_000) })];
            let mut rng = fastrand::Rng::with_seed(3);
            let (mut now, mut taken) = (0u64, Vec::<u64>::new());
            for gap in gaps {
                now += gap;
                let plan = decide(&behaviour, None, Seen::default(), &mut limits, now, &mut rng);
                let in_window = taken.iter().filter(|t| now - **t < 1_000).count();
                prop_assert_eq!(plan.limited.is_none(), in_window < count);
                match plan.limited {
                    None => taken.push(now),
                    Some(wait) => {
                        let then = now + nanos(wait);
                        prop_assert!(taken.iter().filter(|t| then - **t < 1_000).count() < count);
                    }
                }
            }
        }
    }
}
