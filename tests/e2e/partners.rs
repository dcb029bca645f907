//! Partners that misbehave in every way the stand-in knows (I2, I3, I4, I8): what was certainly not taken is tried
//! again, what may have been taken is in doubt, and nobody else pays for it.

use super::common::*;
use sluicegate::mock::{Behaviour, MockHandle, PartnerReport};

/// Short waits, so that an outage is over before anybody falls asleep; but nothing that answers is ever too late.
const QUICK: &str = "concurrency = 8\ntimeout = { connect = \"10s\", request = \"60s\" }\n\
                     retry = { first = \"5ms\", longest = \"50ms\" }\nbreaker = { open = \"50ms\", longest = \"200ms\" }\n";

/// The same for partners that do not answer.
fn impatient(request: &str) -> String {
    QUICK.replace("request = \"60s\"", &format!("request = \"{request}\""))
}

fn behaviour(change: &serde_json::Value) -> Behaviour {
    Behaviour::default().changed(change).expect("a behaviour")
}

/// Everything of a run over `messages` messages of 20 keys against one partner.
struct Run {
    drained: Drained,
    seen: PartnerReport,
    rig: Rig,
    mock: MockHandle,
}

/// `policy`: more keys of the partner's section, or all of them where it has timeouts of its own.
fn run(change: &serde_json::Value, policy: &str, messages: u64) -> Run {
    let mock = partner(behaviour(change));
    let policy = policy.replace("MOCK", &mock.addr().to_string());
    let base = if policy.contains("timeout = {") { "" } else { QUICK };
    let rig = Rig::new(&config(&mock, &format!("{base}{policy}"), ""));
    rig.import("t", lines(0..messages, 20));
    let drained = rig.drain();
    Run {
        drained,
        seen: counts(&mock),
        rig,
        mock,
    }
}

macro_rules! faults {
    ($($fault:literal),+) => { serde_json::json!({"faults": [$($fault),+]}) };
}

#[test]
fn a_partner_that_hangs_parks_no_more_than_twice_its_concurrency() {
    let mock = partner(behaviour(&faults!["hang"]));
    let rig = Rig::new(&config(&mock, &impatient("300ms"), ""));
    rig.import("t", lines(0..200, 20));
    // Many timeouts and open times of the breaker: as ten minutes are to the defaults.
    let hung = rig.start(&["--until-drained", "--timeout", "5s"]).drained();
    assert_eq!(
        (hung.code, hung.delivered, hung.dead),
        (Some(4), 0, 0),
        "{}",
        hung.said
    );
    assert!((8..=16).contains(&hung.parked), "{} parked", hung.parked);
    mock.control("partner", &serde_json::json!({"faults": []}))
        .expect("it answers again");
    rig.configure(&config(&mock, QUICK, ""));
    let drained = rig.drain();
    assert_eq!(
        drained.counts(),
        (200 - hung.parked, 0, hung.parked),
        "{}",
        drained.said
    );
    let seen = counts(&mock);
    assert_eq!(
        (seen.ids_requested_again, seen.order_violations),
        (0, 0),
        "{seen:?}"
    );
}

#[test]
fn a_short_hang_is_over_by_itself() {
    let script = serde_json::json!({"script": ["up 30x", "hang 8x", "up"]});
    let Run { drained, seen, .. } = run(&script, &impatient("3s"), 200);
    assert_eq!(drained.counts(), (192, 0, 8), "{}", drained.said);
    assert_eq!(
        (seen.ids_requested_again, seen.order_violations),
        (0, 0),
        "{seen:?}"
    );
}

#[test]
fn a_reset_after_the_request_was_written_is_a_doubt() {
    for fault in [
        "reset-before-read",
        "reset-after-read",
        "close",
        "half",
        "garbage",
    ] {
        let some = serde_json::json!({"faults": [format!("{fault}=0.05")], "idempotent": true});
        let Run { drained, seen, .. } = run(&some, "", 200);
        let broken = seen.faults.get(fault).copied().unwrap_or(0);
        assert_eq!(
            drained.counts(),
            (200 - broken, 0, broken),
            "{fault}: {}",
            drained.said
        );
        assert_eq!(seen.ids_requested_again, 0, "{fault}");
        assert_eq!(drained.code, Some(if broken > 0 { 3 } else { 0 }), "{fault}");

        let Run { drained, seen, .. } = run(&some, &format!("{}doubt = \"resend\"", impatient("1s")), 200);
        assert_eq!(drained.counts(), (200, 0, 0), "{fault}: {}", drained.said);
        assert_eq!(
            (seen.ids_applied, seen.ids_applied_again),
            (200, 0),
            "{fault}: {seen:?}"
        );
        assert_eq!(seen.order_violations, 0, "{fault}");
    }
}

#[test]
fn doubts_go_by_the_policy_of_their_cause() {
    // Resets and 504s, half of both applied; the partner does not deduplicate, but answers look-ups.
    let some = serde_json::json!({"faults": ["reset-after-read=0.05", "504=0.05"], "applied_in_doubt": 0.5});
    let policy = "doubt = { timeout = \"verify\", gateway = \"park\" }\n\
                  verify = { url = \"http://MOCK/lookup/{{ value.id }}\", delivered = \"body.known\", \
                  never_seen = \"not body.known\", settle = \"5ms\" }";
    let Run {
        drained, seen, rig, ..
    } = run(&some, &format!("{}{policy}", impatient("1s")), 400);
    let gateway = seen.faults.get("status").copied().unwrap_or(0);
    assert_eq!(drained.counts(), (400 - gateway, 0, gateway), "{}", drained.said);
    assert_eq!(
        (seen.ids_applied_again, seen.order_violations),
        (0, 0),
        "{seen:?}"
    );
    for row in rig.list(&["doubt", "list", "--limit", "1000"]) {
        assert!(
            row["reason"]
                .as_str()
                .is_some_and(|r| r.starts_with("doubt_gateway")),
            "{row}"
        );
        assert_eq!(row["last_status"], 504, "{row}");
    }
}

#[test]
fn a_slow_drip_counts_as_no_answer_and_a_quick_one_as_an_answer() {
    let Run { drained, .. } = run(&faults!["drip:200us"], "", 20);
    assert_eq!(drained.counts(), (20, 0, 0), "{}", drained.said);
    let script = serde_json::json!({"script": ["drip:100ms 8x", "up"]});
    let Run { drained, seen, .. } = run(&script, &impatient("3s"), 100);
    assert_eq!(drained.counts(), (92, 0, 8), "{}", drained.said);
    assert_eq!(seen.ids_requested_again, 0);
}

#[test]
fn storms_of_429_lose_nothing_and_park_nothing() {
    // Its own limit, told in each of the ways partners tell it.
    for retry_after in ["1s", "date:1s", "auto", "none"] {
        let limited = serde_json::json!({"limits": ["60/s"], "retry_after": retry_after});
        let Run { drained, seen, .. } = run(&limited, "", 120);
        assert_eq!(drained.counts(), (120, 0, 0), "{retry_after}: {}", drained.said);
        assert_eq!(
            (seen.ids_applied, seen.applied),
            (120, 120),
            "{retry_after}: {seen:?}"
        );
        assert_eq!(seen.order_violations, 0, "{retry_after}");
        assert!(seen.limited > 0, "{retry_after}: the limit was never met");
        if retry_after != "none" {
            // What was on its way when the first 429 came, and then silence for as long as was asked.
            assert!(
                seen.limited <= 6 * 8,
                "{retry_after}: {} requests into the limit",
                seen.limited
            );
            assert!(
                seen.longest_gap_ms >= 900.0,
                "{retry_after}: {}",
                seen.longest_gap_ms
            );
        }
    }
}

#[test]
fn a_503_says_when_to_come_back() {
    let script = serde_json::json!({"script": ["up 20x", "503 10x", "up"], "retry_after": "1s"});
    let Run { drained, seen, .. } = run(&script, "", 100);
    assert_eq!(drained.counts(), (100, 0, 0), "{}", drained.said);
    assert_eq!((seen.applied, seen.order_violations), (100, 0), "{seen:?}");
    assert!(seen.longest_gap_ms >= 900.0, "{}", seen.longest_gap_ms);
}

#[test]
fn a_5xx_is_a_doubt_and_a_4xx_is_not() {
    for (status, dead, parked) in [
        ("500", false, true),
        ("502", false, true),
        ("504", false, true),
        ("501", true, false),
        ("400", true, false),
        ("404", true, false),
        ("302", true, false),
    ] {
        let script = serde_json::json!({"script": ["up 20x", format!("{status} 4x"), "up"]});
        let Run {
            drained, seen, rig, ..
        } = run(&script, "", 60);
        let expected = (56, if dead { 4 } else { 0 }, if parked { 4 } else { 0 });
        assert_eq!(drained.counts(), expected, "{status}: {}", drained.said);
        assert_eq!(seen.ids_requested_again, 0, "{status}");
        let list = if dead { "dead" } else { "doubt" };
        let rows = rig.list(&[list, "list"]);
        assert_eq!(rows.len(), 4, "{status}");
        for row in rows {
            assert_eq!(row["last_status"].to_string(), status, "{row}");
            let answer = row["answer"].as_str().unwrap_or_default();
            assert!(
                answer.contains("not taken"),
                "what the partner said is kept: {row}"
            );
        }
    }
}

#[test]
fn refused_credentials_pause_the_partner_and_burn_no_message() {
    let mock = partner(behaviour(&serde_json::json!({"faults": ["401"]})));
    let rig = Rig::new(&config(&mock, QUICK, ""));
    rig.import("t", lines(0..100, 20));
    let paused = rig.start(&["--until-drained", "--timeout", "3s"]).drained();
    assert_eq!(
        (paused.counts(), paused.code),
        ((0, 0, 0), Some(4)),
        "{}",
        paused.said
    );
    // What was on its way, three probes, and then one after one second and two more.
    assert!(
        counts(&mock).requests <= 8 + 3 + 2,
        "{} requests",
        counts(&mock).requests
    );
    mock.control("partner", &serde_json::json!({"faults": []}))
        .expect("it answers again");
    let drained = rig.drain();
    assert_eq!(drained.counts(), (100, 0, 0), "{}", drained.said);
    let seen = counts(&mock);
    assert_eq!((seen.applied, seen.order_violations), (100, 0), "{seen:?}");
}

#[test]
fn a_changed_secret_resumes_a_partner_that_refused_the_old_one() {
    let mock = partner(behaviour(&faults!["401"]));
    let secret = "headers = { authorization = \"Bearer {{ secret('token') }}\" }";
    let rig = Rig::new(&config(
        &mock,
        &format!("{QUICK}{secret}"),
        "[secrets]\ntoken = { file = \"token\" }",
    ));
    std::fs::write(rig.path("token"), "old").expect("written");
    rig.import("t", lines(0..100, 20));
    let mut node = rig.start(&[]);
    node.until("the old one is refused", || {
        counts(&mock).statuses.contains_key(&401)
    });
    mock.control("partner", &serde_json::json!({"faults": []}))
        .expect("it takes the new one");
    std::fs::write(rig.path("token"), "new").expect("written");
    node.until("all is delivered", || counts(&mock).applied == 100);
    let seen = counts(&mock);
    // Without the change the probes become as rare as one a minute.
    assert!(seen.longest_gap_ms < 55_000.0, "{}", seen.longest_gap_ms);
    assert_eq!(seen.order_violations, 0);
    node.signal(rustix::process::Signal::TERM);
    assert_eq!(node.end(), Some(0), "{}", node.said());
    let drained = rig.drain();
    assert_eq!(
        (drained.counts(), drained.code),
        ((100, 0, 0), Some(0)),
        "{}",
        drained.said
    );
}

#[test]
fn a_huge_answer_is_read_to_a_bound() {
    let Run { drained, seen, .. } = run(&faults!["huge:20000000"], "", 20);
    assert_eq!(drained.counts(), (20, 0, 0), "{}", drained.said);
    assert_eq!(seen.applied, 20);
}

#[test]
fn a_200_with_an_error_inside_goes_by_the_verdict_rules() {
    let rule = "verdict = [{ when = \"status == 200 and body.code == 17\", is = \"IS\", reason = \"body.message\" }]";
    let script = serde_json::json!({"script": ["up 20x", "error-body 5x", "up"]});
    let Run { drained, rig, .. } = run(&script, &rule.replace("IS", "refused"), 60);
    assert_eq!(drained.counts(), (55, 5, 0), "{}", drained.said);
    for row in rig.list(&["dead", "list"]) {
        assert!(
            row["reason"].as_str().is_some_and(|r| r.contains("not taken")),
            "{row}"
        );
    }
    let Run { drained, seen, .. } = run(&script, &rule.replace("IS", "later"), 60);
    assert_eq!(drained.counts(), (60, 0, 0), "{}", drained.said);
    assert_eq!(
        (seen.applied, seen.requests, seen.order_violations),
        (60, 65, 0),
        "{seen:?}"
    );
    let Run { drained, .. } = run(&script, &rule.replace("IS", "unknown"), 60);
    assert_eq!(drained.counts(), (55, 0, 5), "{}", drained.said);
}

#[test]
fn connections_closed_while_idle_are_no_doubt() {
    // A pause of a second, in which the partner closes every connection that waits.
    let mock = partner_with(
        behaviour(&serde_json::json!({"script": ["up 40x", "429 8x", "up"], "retry_after": "1s"})),
        |options| options.partners[0].idle_timeout = Some("700ms".parse().expect("a span")),
    );
    let rig = Rig::new(&config(&mock, QUICK, ""));
    rig.import("t", lines(0..200, 20));
    let drained = rig.drain();
    let seen = counts(&mock);
    assert_eq!(drained.counts(), (200, 0, 0), "{}", drained.said);
    assert!(seen.connections > 8, "no connection was ever closed: {seen:?}");
    assert_eq!((seen.applied, seen.unanswered), (200, 0), "{seen:?}");
}

#[test]
fn a_partner_that_is_down_at_first_and_in_between_loses_nothing() {
    let mock = partner(behaviour(&serde_json::json!({"faults": ["down"]})));
    let rig = Rig::new(&config(&mock, QUICK, ""));
    rig.import("t", lines(0..200, 20));
    // Down: failed connects are no doubt and burn nothing.
    let down = rig.start(&["--until-drained", "--timeout", "2s"]).drained();
    assert_eq!((down.counts(), down.code), ((0, 0, 0), Some(4)), "{}", down.said);
    assert_eq!(counts(&mock).requests, 0);
    // It comes up while the node is waiting for it.
    let node = rig.start(&["--until-drained", "--timeout", "100s"]);
    mock.control("partner", &serde_json::json!({"faults": []}))
        .expect("it is up");
    let drained = node.drained();
    let seen = counts(&mock);
    assert_eq!(drained.counts(), (200, 0, 0), "{}", drained.said);
    assert_eq!((seen.requests, seen.order_violations), (200, 0), "{seen:?}");
}

#[test]
fn a_partner_that_goes_down_under_load_leaves_only_what_was_in_flight_in_doubt() {
    let script = serde_json::json!({"script": ["up 100x", "down 700ms", "up"], "latency": "5ms"});
    let Run { drained, seen, .. } = run(&script, "", 300);
    assert_eq!(drained.delivered + drained.parked, 300, "{}", drained.said);
    assert!(drained.parked <= 8 && drained.dead == 0, "{}", drained.said);
    assert_eq!(
        (seen.ids_requested_again, seen.order_violations),
        (0, 0),
        "{seen:?}"
    );
}

#[test]
fn a_stuck_key_holds_nobody_else() {
    // One key gets no answer at all; another one only refusals to be tried later.
    let stuck = serde_json::json!({"rules": ["key=u7 hang", "key=u8 429"], "retry_after": "none"});
    let mock = partner(behaviour(&stuck));
    let policy =
        "concurrency = 8\ntimeout = { request = \"10m\" }\nretry = { first = \"5ms\", longest = \"20ms\" }";
    let rig = Rig::new(&config(&mock, policy, ""));
    rig.import("t", lines(0..1_000, 20));
    let mut node = rig.start(&[]);
    // The one that hangs was applied, too: whether its sender hears of it is another matter.
    node.until("all other keys are done", || counts(&mock).ids_applied >= 901);
    node.until("the refused key is tried again and again", || {
        counts(&mock).statuses.get(&429).copied().unwrap_or(0) > 20
    });
    let seen = counts(&mock);
    assert!(seen.mistakes().is_empty(), "{:?}", seen.mistakes());
    // The others, the one that hangs (taken, perhaps), and the first of the refused key.
    assert_eq!(
        (seen.ids, seen.order_violations, seen.overlaps),
        (902, 0, 0),
        "{seen:?}"
    );
    node.kill();
    mock.control("partner", &serde_json::json!({"rules": []}))
        .expect("all answer again");
    let drained = rig.drain();
    // The one that hung, and what was between intent and outcome at the kill.
    assert_eq!(
        (drained.delivered + drained.parked, drained.dead),
        (1_000, 0),
        "{}",
        drained.said
    );
    assert!((1..=8).contains(&drained.parked), "{}", drained.said);
    assert_eq!(counts(&mock).order_violations, 0);
}

#[test]
fn a_key_on_hold_waits_for_its_doubt() {
    let script = serde_json::json!({"rules": ["id=m7 reset-after-read"]});
    let Run {
        drained,
        seen,
        rig,
        mock,
    } = {
        let mock = partner(behaviour(&script));
        let rig = Rig::new(&config(&mock, &format!("{QUICK}on_doubt = \"hold\""), ""));
        rig.import("t", lines(0..100, 20));
        let drained = rig.start(&["--until-drained", "--timeout", "3s"]).drained();
        Run {
            drained,
            seen: counts(&mock),
            rig,
            mock,
        }
    };
    // m27, m47, m67 and m87 are of the same key and wait behind m7.
    assert_eq!(
        (drained.counts(), drained.code),
        ((95, 0, 1), Some(4)),
        "{}",
        drained.said
    );
    assert_eq!(seen.requests, 96);
    rig.ok(&["doubt", "confirm", "m7", "--yes"]);
    let drained = rig.drain();
    assert_eq!(drained.counts(), (100, 0, 0), "{}", drained.said);
    let seen = counts(&mock);
    assert_eq!((seen.requests, seen.order_violations), (100, 0), "{seen:?}");
}

#[test]
fn many_dead_in_a_row_stop_the_route_which_says_so() {
    let mock = partner(behaviour(&faults!["400"]));
    let policy = format!("{QUICK}flood = {{ dead_in_a_row = 20 }}");
    let rig = Rig::new(&config(&mock, &policy, ""));
    rig.import("t", lines(0..400, 100));
    let args = ["--until-drained", "--timeout", "4s"];
    let stopped = rig.start(&args).drained();
    assert!(stopped.said.contains("route_stopped"), "{}", stopped.said);
    assert_eq!(
        (stopped.code, stopped.delivered, stopped.parked),
        (Some(4), 0, 0),
        "{}",
        stopped.said
    );
    // Twenty in a row over all partitions, and what was in flight meanwhile.
    assert!((20..=28).contains(&stopped.dead), "{} dead", stopped.dead);

    // The stop lasts over a restart, for whatever the partner answers now; then it is lifted, and the dead replayed.
    mock.control("partner", &serde_json::json!({"faults": []}))
        .expect("it takes them now");
    let still = rig.start(&args).drained();
    assert_eq!(still.counts(), (0, stopped.dead, 0), "{}", still.said);
    let mut node = rig.start(&[]);
    node.wait_for_admin();
    rig.ok(&["partners", "resume", "p", "--topic", "t"]);
    node.until("the rest is delivered", || {
        counts(&mock).applied == 400 - stopped.dead
    });
    rig.ok(&["dead", "replay", "--all", "--yes"]);
    node.until("the dead are delivered", || counts(&mock).applied == 400);
    node.signal(rustix::process::Signal::TERM);
    assert_eq!(node.end(), Some(0), "{}", node.said());
    let drained = rig.drain();
    assert_eq!(
        (drained.counts(), drained.code),
        ((400, 0, 0), Some(0)),
        "{}",
        drained.said
    );
    let seen = counts(&mock);
    assert_eq!(
        (seen.ids_applied_again, seen.requests_after_applied),
        (0, 0),
        "{seen:?}"
    );
}

#[test]
fn the_other_partner_of_a_topic_notices_nothing() {
    let bad = partner(behaviour(&faults!["hang"]));
    let good = partner(Behaviour::default());
    let impatient = impatient("300ms");
    let rig = Rig::new(&format!(
        "[partners.bad]\nurl = \"http://{}/\"\n{impatient}\n[partners.good]\nurl = \"http://{}/\"\n{QUICK}\n\
         [topics.t]\ndeliver = [\"bad\", \"good\"]\nid = \"json:/id\"\nkey = \"json:/user\"\n",
        bad.addr(),
        good.addr()
    ));
    rig.import("t", lines(0..300, 20));
    let mut node = rig.start(&[]);
    node.until("the good partner has all", || counts(&good).applied == 300);
    assert_eq!(counts(&good).requests, 300);
    assert!(counts(&bad).requests <= 16);
}
