//! What a partner's messages wait for, and what would help: said the same by `run --until-drained`, `status` and its
//! JSON. Pure: the facts come in, words come out.

use super::breaker::Cause;
use super::types::Time;
use crate::config::{DoubtConfig, DoubtPolicy};
use std::collections::BTreeMap;
use std::time::Duration;

/// A slot that comes so soon is nothing that anybody waits for.
const SOON: Duration = Duration::from_secs(1);

/// A partition that takes nothing up for so long, although its topic has more, stands: sooner it is one that has to do.
pub const STANDS_AFTER: Duration = Duration::from_secs(10);

/// Dead, parked, skipped and waiting messages of the ledger fill the memory.
pub const FULL_OF_KEPT: &str = "dead, parked and waiting messages fill node.memory: settle, replay or drop some (`dead list`, `doubt list`), or raise node.memory";

/// Why a partition takes up no more of its topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Full {
    /// Its partner's messages in the ledger fill the memory.
    Kept = 1,
    /// Its partner's messages in hand do: they wait, and no more of them may rest in the ledger.
    Memory,
    /// As many finished ranges lie above its position as may.
    Ranges,
    /// As many messages as may are in hand, or on their way to the gate.
    Work,
    /// What was written to the ledger is not durable or not folded yet.
    Ledger,
    /// Its records cannot be read, or looked up.
    Unreadable,
}

impl Full {
    /// Every reason.
    pub const ALL: [Full; 6] = [
        Full::Kept,
        Full::Memory,
        Full::Ranges,
        Full::Work,
        Full::Ledger,
        Full::Unreadable,
    ];

    /// The reason with this number; none: it is not full.
    pub fn of(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|full| *full as u8 == number)
    }

    /// A stable word.
    fn code(self) -> &'static str {
        match self {
            Full::Kept | Full::Memory => "memory",
            Full::Ranges => "ranges",
            Full::Work => "window",
            Full::Ledger => "ledger",
            Full::Unreadable => "unreadable",
        }
    }

    fn why(self) -> &'static str {
        match self {
            Full::Kept => FULL_OF_KEPT,
            Full::Memory => {
                "messages that wait fill its part of node.memory: it goes on when some of them are through; a larger node.memory takes more"
            }
            Full::Ranges => {
                "unfinished messages lie between too many finished ones: it goes on when the oldest are through; a larger actors.ranges takes more"
            }
            Full::Work => "as many messages as it may take up are in hand",
            Full::Ledger => "the ledger does not keep up: look at the disk",
            Full::Unreadable => {
                "its records cannot be read or looked up: the log line `read_failed` says why"
            }
        }
    }
}

/// How a partner and its routes stand.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Who paused it, and why.
    pub paused: Option<(String, String)>,
    /// Why its routes stand: the topic, and the reason.
    pub stopped: Vec<(String, String)>,
    /// Why the breaker leaves it alone, and until when (then probes go).
    pub breaker: Option<(Cause, Time)>,
    /// It asked for no starts before then.
    pub held_until: Time,
    /// Hosts that are left alone, where records say which host they are for, and when the first is tried again.
    pub hosts: (usize, Time),
    /// Messages that wait for a slot, and when somebody looks again whether there is one; [`Time::NEVER`]: when a
    /// request in flight has ended.
    pub at_gate: (usize, Time),
    /// Until when messages are deferred whose value of `by` has used its limit up; in the past if none is.
    pub deferred_until: Time,
    /// Since when this node lacks descriptors, ports or memory for connections to it.
    pub short_since: Option<Time>,
    /// Partitions that have taken nothing up for [`STANDS_AFTER`] although their topics have more: how many, and why.
    pub full: BTreeMap<Full, u64>,
    /// Messages in doubt that are being looked up or sent again.
    pub settling: u64,
    /// Keys that wait until an operator settles a doubt.
    pub held_keys: u64,
    /// Messages that wait for their next attempt.
    pub retrying: u64,
    /// Requests in flight.
    pub in_flight: u64,
}

/// One thing that is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// A stable word for it.
    pub code: &'static str,
    /// In words.
    pub text: String,
    /// Until when, where that is known.
    pub until: Option<Time>,
}

impl Facts {
    /// What is waited for, the weightiest first.
    pub fn waits(&self, now: Time) -> Vec<Wait> {
        let mut waits = Vec::new();
        let mut say = |code, text: String, until: Option<Time>| waits.push(Wait { code, text, until });
        if let Some((who, why)) = &self.paused {
            let why = if why.is_empty() {
                String::new()
            } else {
                format!(": {why}")
            };
            say("paused", format!("paused by {who}{why}"), None);
        }
        for (topic, why) in &self.stopped {
            say(
                "stopped",
                format!("the route from {topic} is stopped: {why}"),
                None,
            );
        }
        if let Some((cause, until)) = self.breaker {
            let next = if until > now {
                format!("the next probe goes at {until}")
            } else {
                "a probe is on its way, or waits for a message".to_owned()
            };
            let (code, what) = match cause {
                Cause::Credentials => (
                    "credentials",
                    "it refuses the credentials of every message (401, 403 or 407); a changed secret is tried at once",
                ),
                Cause::Rule => ("rule", "a verdict rule says pause"),
                Cause::Failures => ("breaker", "it is down: the breaker is open"),
                Cause::Doubts => ("breaker", "it gives no clear answers: the breaker is open"),
            };
            say(code, format!("{what}; {next}"), (until > now).then_some(until));
        }
        if self.held_until > now {
            let until = self.held_until;
            let text = format!("it asked for no requests before {until} (Retry-After or RateLimit)");
            say("retry_after", text, Some(until));
        }
        if let Some(since) = self.short_since {
            let text = format!("this node has been short of descriptors, ports or memory since {since}");
            say("node_short", text, None);
        }
        if self.hosts.0 > 0 {
            let (hosts, first) = self.hosts;
            let text = format!(
                "{} left alone; the first is tried again at {first}",
                count(hosts as u64, "host")
            );
            say("hosts", text, Some(first));
        }
        let stands = self.paused.is_some() || self.breaker.is_some() || self.held_until > now;
        let (waiting, next) = self.at_gate;
        if !stands && waiting > 0 && next != Time::NEVER && next > now.plus(SOON) {
            say(
                "limit",
                format!("its limits are used up: the next start is at {next}"),
                Some(next),
            );
        } else if !stands && self.deferred_until > now.plus(SOON) {
            let until = self.deferred_until;
            say(
                "limit",
                format!(
                    "the limits of some values of `by` are used up: their messages are sent up to {until}"
                ),
                Some(until),
            );
        }
        for (full, partitions) in &self.full {
            // What keeps its messages from going keeps them in hand: that was said.
            if *full == Full::Work && stands {
                continue;
            }
            let partitions = count(*partitions, "partition");
            say(
                full.code(),
                format!("{partitions} taking up nothing more: {}", full.why()),
                None,
            );
        }
        if self.settling > 0 {
            let text = format!(
                "{} in doubt being looked up or sent again",
                count(self.settling, "message")
            );
            say("settling", text, None);
        }
        if self.held_keys > 0 {
            let keys = count(self.held_keys, "key");
            say(
                "held",
                format!("{keys} held until doubts are settled: `sluicegate doubt list`"),
                None,
            );
        }
        if self.retrying > 0 {
            let text = format!("{} waiting for the next attempt", count(self.retrying, "message"));
            say("retries", text, None);
        }
        if self.in_flight > 0 {
            say(
                "in_flight",
                format!("{} in flight", count(self.in_flight, "request")),
                None,
            );
        }
        waits
    }
}

fn count(n: u64, what: &str) -> String {
    if n == 1 {
        format!("1 {what}")
    } else {
        format!("{n} {what}s")
    }
}

/// How many messages of a partner this life parked, by the cause of their doubt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parked {
    /// The process had ended.
    pub crash: u64,
    /// Nobody answered.
    pub timeout: u64,
    /// A gateway answered.
    pub gateway: u64,
}

impl Parked {
    fn all(self) -> u64 {
        self.crash + self.timeout + self.gateway
    }
}

/// What is to be done about messages that are parked now and that this life has not parked: `parked` in all, `lately`
/// of them by this life. A policy that was changed since does not touch them, and its setting does not say so.
pub fn parked_hint(
    partner: &str,
    parked: u64,
    lately: u64,
    policies: Option<&DoubtConfig>,
) -> Option<String> {
    let earlier = parked.saturating_sub(lately);
    if earlier == 0 {
        return None;
    }
    let messages = match lately {
        0 => format!("{} parked", count(parked, "message")),
        _ => format!("{} parked earlier, {parked} in all", count(earlier, "message")),
    };
    let settles = policies.is_some_and(|p| {
        [p.crash, p.timeout, p.gateway]
            .iter()
            .any(|policy| *policy != DoubtPolicy::Park)
    });
    Some(match settles {
        true => format!(
            "{partner}: {messages}: its setting `doubt` holds for doubts that come from now on; to send these again under the same \
             Idempotency-Key: `sluicegate doubt resend --partner {partner}` (--dry-run counts first)"
        ),
        false => format!("{partner}: {messages}: `sluicegate doubt list --partner {partner}` names them"),
    })
}

/// What would help this partner, in the words of its settings: about the messages that this life parked, by the cause of
/// their doubt, and about those that are parked (`all`) since earlier.
pub fn hints(partner: &str, parked: Parked, all: u64, policies: Option<&DoubtConfig>) -> Vec<String> {
    let mut hints = Vec::new();
    let mut hint = |n: u64, what: &str, key: &str, more: &str| {
        if n > 0 {
            let messages = count(n, "message");
            hints.push(format!(
                "{partner}: {messages} parked {what}: set doubt.{key} to \"resend\" (it knows an Idempotency-Key again) or \
                 \"verify\" (it can be asked){more}; what it has: `sluicegate doubt list --partner {partner}`"
            ));
        }
    };
    hint(
        parked.gateway,
        "by a gateway's answer (500, 502, 504)",
        "gateway",
        "",
    );
    hint(
        parked.timeout,
        "for want of an answer (timeout, reset)",
        "timeout",
        ", or raise timeout.request if it is only slow",
    );
    hint(parked.crash, "because the process before had ended", "crash", "");
    hints.extend(parked_hint(partner, all, parked.all(), policies));
    hints
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::from_millis(1_700_000_000_000);

    fn codes(facts: &Facts) -> Vec<&'static str> {
        facts.waits(NOW).iter().map(|w| w.code).collect()
    }

    #[test]
    fn everything_that_is_waited_for_is_named() {
        let hour = NOW.plus(Duration::from_secs(3600));
        let all = Facts {
            paused: Some(("kim".into(), "their maintenance".into())),
            stopped: vec![("t".into(), "flood".into())],
            breaker: Some((Cause::Doubts, hour)),
            held_until: hour,
            hosts: (2, hour),
            at_gate: (5, hour),
            deferred_until: hour,
            short_since: Some(NOW),
            full: Full::ALL.into_iter().map(|full| (full, 1)).collect(),
            settling: 1,
            held_keys: 3,
            retrying: 1_000,
            in_flight: 2,
        };
        assert_eq!(
            codes(&all),
            [
                "paused",
                "stopped",
                "breaker",
                "retry_after",
                "node_short",
                "hosts",
                "memory",
                "memory",
                "ranges",
                "ledger",
                "unreadable",
                "settling",
                "held",
                "retries",
                "in_flight"
            ]
        );
        let text: Vec<String> = all.waits(NOW).into_iter().map(|w| w.text).collect();
        assert_eq!(text[0], "paused by kim: their maintenance");
        assert!(
            text[2].contains("the next probe goes at 2023-11-14T23:13:20"),
            "{}",
            text[2]
        );
        assert_eq!(
            text[6],
            format!("1 partition taking up nothing more: {FULL_OF_KEPT}")
        );
        assert_eq!(
            text[12],
            "3 keys held until doubts are settled: `sluicegate doubt list`"
        );
        assert_eq!(codes(&Facts::default()), Vec::<&str>::new());
    }

    #[test]
    fn a_full_window_is_said_where_nothing_else_is() {
        let full = Facts {
            full: BTreeMap::from([(Full::Work, 2)]),
            ..Facts::default()
        };
        assert_eq!(codes(&full), ["window"]);
        let paused = Facts {
            paused: Some(("kim".into(), String::new())),
            ..full
        };
        assert_eq!(codes(&paused), ["paused"]);
        let numbers = (0..=u8::MAX).filter_map(Full::of);
        assert_eq!(numbers.collect::<Vec<_>>(), Full::ALL);
    }

    #[test]
    fn a_limit_is_waited_for_only_where_nothing_else_holds_and_it_takes_its_time() {
        let at = |next| Facts {
            at_gate: (1, next),
            ..Facts::default()
        };
        assert_eq!(
            codes(&at(NOW.plus(Duration::from_millis(20)))),
            Vec::<&str>::new()
        );
        assert_eq!(codes(&at(Time::NEVER)), Vec::<&str>::new());
        let deferred = |deferred_until| Facts {
            deferred_until,
            ..Facts::default()
        };
        assert_eq!(
            codes(&deferred(NOW.plus(Duration::from_millis(20)))),
            Vec::<&str>::new()
        );
        let hour = deferred(NOW.plus(Duration::from_secs(3600)));
        assert_eq!(codes(&hour), ["limit"]);
        let paused = Facts {
            paused: Some(("kim".into(), String::new())),
            ..hour
        };
        assert_eq!(codes(&paused), ["paused"]);
        let midnight = NOW.plus(Duration::from_secs(7_200));
        assert_eq!(codes(&at(midnight)), ["limit"]);
        assert_eq!(at(midnight).waits(NOW)[0].until, Some(midnight));
        let refused = Facts {
            breaker: Some((Cause::Credentials, NOW)),
            ..at(midnight)
        };
        let waits = refused.waits(NOW);
        assert_eq!(
            (waits.len(), waits[0].code, waits[0].until),
            (1, "credentials", None)
        );
    }

    #[test]
    fn hints_name_the_setting_that_helps() {
        assert_eq!(hints("p", Parked::default(), 0, None), Vec::<String>::new());
        let parked = Parked {
            gateway: 20,
            timeout: 1,
            crash: 0,
        };
        let hints = hints("p", parked, 21, None);
        assert_eq!(hints.len(), 2);
        assert!(
            hints[0].starts_with("p: 20 messages parked by a gateway's answer")
                && hints[0].contains("set doubt.gateway")
        );
        assert!(
            hints[1].starts_with("p: 1 message parked for want of an answer")
                && hints[1].contains("timeout.request")
        );
    }

    /// A policy that was set after the fact leaves what is parked where it is, and a hint counts all of it.
    #[test]
    fn what_earlier_lives_parked_is_counted_and_named() {
        let policy = |timeout| DoubtConfig {
            crash: DoubtPolicy::Park,
            timeout,
            gateway: DoubtPolicy::Park,
        };
        let (park, resend) = (policy(DoubtPolicy::Park), policy(DoubtPolicy::Resend));
        assert_eq!(parked_hint("p", 3, 3, Some(&resend)), None);
        let told = parked_hint("p", 52, 0, Some(&resend)).unwrap();
        assert!(
            told.starts_with("p: 52 messages parked: its setting")
                && told.contains("doubt resend --partner p"),
            "{told}"
        );
        let told = parked_hint("p", 52, 0, Some(&park)).unwrap();
        assert!(told.contains("doubt list --partner p"), "{told}");
        let one = Parked {
            timeout: 1,
            ..Parked::default()
        };
        let told = hints("p", one, 65, None);
        assert!(
            told.len() == 2 && told[1].starts_with("p: 64 messages parked earlier, 65 in all"),
            "{told:?}"
        );
    }
}
