//! kill -9, again and again, at random moments of one run; one suite for each policy for doubts (I1-I4).

use super::common::*;
use sluicegate::mock::{Behaviour, MockHandle};
use std::time::{Duration, Instant};

/// Requests in flight at most, so at each kill too.
const CONCURRENCY: u64 = 32;
const KEYS: u64 = 997;

/// A run over all messages, killed so many times.
struct Run {
    mock: MockHandle,
    messages: u64,
    kills: u64,
    drained: Drained,
    rig: Rig,
}

/// Kills the node at random moments until the last life drains the topic. `policy` are keys of the partner's section.
fn run(name: &str, behaviour: Behaviour, policy: &str) -> Run {
    let messages = setting("SLUICEGATE_MESSAGES", 6_000);
    let kills = setting("SLUICEGATE_KILLS", 5);
    let mock = partner(behaviour);
    let policy = format!(
        "concurrency = {CONCURRENCY}\n{}",
        policy.replace("MOCK", &mock.addr().to_string())
    );
    let rig = Rig::new(&config(&mock, &policy, ""));
    rig.import("t", lines(0..messages, KEYS));

    let mut in_doubt = Duration::ZERO;
    let began = Instant::now();
    for kill in 1..=kills {
        let mut node = rig.start(&["--until-drained", "--timeout", "100s"]);
        // Killed once it has done some new work, at a moment of its own.
        let enough = messages * kill / (kills + 2) + fastrand::u64(..messages / (kills + 2) / 2 + 1);
        let before = Instant::now();
        let already = counts(&mock).requests;
        node.until("some requests of this life", || {
            counts(&mock).requests >= enough.max(already + 1)
        });
        std::thread::sleep(Duration::from_micros(fastrand::u64(..3_000)));
        in_doubt += before.elapsed();
        node.kill();
    }
    let drained = rig.drain();
    println!(
        "{name}: {messages} messages, {kills} kills: delivered {}, parked {}, dead {}, requests {}, requested again {}, \
         applied again {}, order violations {}, overlaps {}, look-ups {}, {:.1} s (of it {:.1} s in lives that were killed)",
        drained.delivered,
        drained.parked,
        drained.dead,
        counts(&mock).requests,
        counts(&mock).ids_requested_again,
        counts(&mock).ids_applied_again,
        counts(&mock).order_violations,
        counts(&mock).overlaps,
        counts(&mock).lookups,
        began.elapsed().as_secs_f64(),
        in_doubt.as_secs_f64(),
    );
    Run {
        mock,
        messages,
        kills,
        drained,
        rig,
    }
}

fn quick_partner() -> Behaviour {
    Behaviour {
        latency: "1ms..4ms".parse().expect("a latency"),
        ..Behaviour::default()
    }
}

#[test]
fn park_sends_at_most_once_and_loses_nothing() {
    let run = run("park", quick_partner(), "doubt = \"park\"");
    let (said, seen) = (&run.drained.said, counts(&run.mock));
    assert_eq!(run.drained.delivered + run.drained.parked, run.messages, "{said}");
    assert_eq!(run.drained.dead, 0, "{said}");
    assert!(
        run.drained.parked <= run.kills * CONCURRENCY,
        "{} parked",
        run.drained.parked
    );
    assert_eq!(seen.ids_requested_again, 0, "{:?}", seen.requested_again);
    assert_eq!((seen.order_violations, seen.overlaps), (0, 0));
    // What is delivered has been at the partner; only what is parked may never have left.
    assert!(seen.ids >= run.drained.delivered && seen.ids <= run.messages);
    let code = if run.drained.parked == 0 { 0 } else { 3 };
    assert_eq!(run.drained.code, Some(code), "{said}");
    // Every parked message can be looked at: payload, reason, source.
    let parked = run.rig.list(&["doubt", "list", "--limit", "1000000"]);
    assert_eq!(parked.len() as u64, run.drained.parked);
    for row in &parked {
        let reason = row["reason"].as_str().expect("a reason");
        assert!(reason.starts_with("doubt_crash"), "{row}");
        assert_eq!(row["replayable"], true, "{row}");
    }
}

#[test]
fn resend_delivers_all_and_the_partner_applies_each_once() {
    let behaviour = Behaviour {
        idempotent: true,
        ..quick_partner()
    };
    let policy = "doubt = \"resend\"\ntimeout = { request = \"500ms\" }\nretry = { first = \"10ms\" }";
    let run = run("resend", behaviour, policy);
    let (said, seen) = (&run.drained.said, counts(&run.mock));
    assert_eq!(run.drained.counts(), (run.messages, 0, 0), "{said}");
    assert_eq!((seen.ids_applied, seen.ids_applied_again), (run.messages, 0));
    // Sent again is what was in flight at a kill, and nothing else.
    assert!(seen.ids_requested_again <= run.kills * CONCURRENCY, "{seen:?}");
    assert_eq!(seen.order_violations, 0, "{seen:?}");
    assert_eq!(run.drained.code, Some(0), "{said}");
}

#[test]
fn verify_delivers_all_and_none_twice() {
    let policy = "doubt = \"verify\"\ntimeout = { request = \"500ms\" }\nretry = { first = \"10ms\" }\n\
                  verify = { url = \"http://MOCK/lookup/{{ value.id }}\", delivered = \"body.known\", \
                  never_seen = \"not body.known\", settle = \"20ms\" }";
    let run = run("verify", quick_partner(), policy);
    let (said, seen) = (&run.drained.said, counts(&run.mock));
    assert_eq!(run.drained.counts(), (run.messages, 0, 0), "{said}");
    // This partner does not deduplicate: a second request would be applied a second time.
    assert_eq!((seen.ids_applied, seen.ids_applied_again), (run.messages, 0));
    assert_eq!(seen.requests, run.messages, "{seen:?}");
    assert!(seen.lookups > 0 || run.kills == 0, "no doubt was ever looked up");
    assert_eq!((seen.order_violations, seen.overlaps), (0, 0), "{seen:?}");
    assert_eq!(run.drained.code, Some(0), "{said}");
}
