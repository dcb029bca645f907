//! A failure stays with what failed: a message, a key, a host; and what is waited for is said (I8).

use super::common::*;
use rustix::process::Signal;
use serde_json::Value;
use sluicegate::mock::Behaviour;
use std::fmt::Write as _;

fn behaviour(change: &Value) -> Behaviour {
    Behaviour::default().changed(change).expect("a behaviour")
}

const QUICK: &str = "retry = { first = \"5ms\", longest = \"50ms\", attempts = 3 }\n";

/// Five records of two hundred get a 403: they end by their own attempts, and nobody waits for them.
#[test]
fn a_403_that_only_some_messages_get_ends_those_messages() {
    let bad = [
        "id=m0 403",
        "id=m40 403",
        "id=m80 403",
        "id=m120 403",
        "id=m160 403",
    ];
    let mock = partner(behaviour(&serde_json::json!({"rules": bad})));
    let rig = Rig::new(&config(&mock, &format!("concurrency = 4\n{QUICK}"), ""));
    rig.import("t", lines(0..200, 200));
    let drained = rig.drain();
    assert_eq!(
        (drained.counts(), drained.code),
        ((195, 5, 0), Some(3)),
        "{}",
        drained.said
    );
    for row in rig.list(&["dead", "list"]) {
        assert!(
            row["reason"]
                .as_str()
                .is_some_and(|r| r.starts_with("attempts: ")),
            "{row}"
        );
        assert_eq!(
            (&row["last_status"], &row["attempts"]),
            (&403.into(), &3.into()),
            "{row}"
        );
    }
    assert!(!drained.said.contains("breaker_open"), "{}", drained.said);
}

/// 429 with a long Retry-After for one user: a rule's `scope` keeps it from all others.
#[test]
fn a_retry_after_for_one_key_holds_that_key_alone() {
    for scope in ["message", "key"] {
        let one = serde_json::json!({"rules": ["key=u0 429"], "retry_after": "1h"});
        let mock = partner(behaviour(&one));
        let rule = format!("verdict = [{{ when = \"status == 429\", is = \"later\", scope = \"{scope}\" }}]");
        let rig = Rig::new(&config(&mock, &format!("concurrency = 8\n{rule}"), ""));
        rig.import("t", lines(0..100, 5));
        let mut node = rig.start(&[]);
        node.until("all others are delivered", || counts(&mock).applied == 80);
        let seen = counts(&mock);
        assert_eq!(seen.requests, 81, "{scope}: {seen:?}");
        node.signal(Signal::TERM);
        assert_eq!(node.end(), Some(0), "{}", node.said());
    }
}

/// URLs are records, and one of their hosts refuses connections: its lines come first.
#[test]
fn a_dead_host_in_a_list_of_urls_harms_only_its_own_lines() {
    let mock = partner_with(Behaviour::default(), |options| {
        options.partners[0].id = field("query:id");
        options.partners[0].key = None;
        options.partners[0].seq = None;
    });
    let rig = Rig::new("");
    let admin = rig.configure_with(
        "[partners.p]\nurl = \"{{ value }}\"\nconcurrency = 8\n[topics.t]\npartner = \"p\"\nid = \"query:id\"\n",
    );
    let mut urls = String::new();
    for n in 0..200 {
        writeln!(urls, "http://127.0.0.1:9/?id=d{n}").expect("a line");
    }
    for n in 0..200 {
        writeln!(urls, "http://{}/?id=l{n}", mock.addr()).expect("a line");
    }
    std::fs::write(rig.path("urls.txt"), urls).expect("written");
    rig.ok(&["import", "urls.txt", "--topic", "t", "--format", "urls"]);
    let mut node = rig.start(&[]);
    node.until("all live ones are delivered", || counts(&mock).ids_applied == 200);
    let waits = || -> Value {
        let answer = get(&admin, "", "/api/status");
        let body = answer
            .windows(4)
            .position(|w| w == b"\r\n\r\n")
            .map(|at| &answer[at + 4..]);
        let status: Value = serde_json::from_slice(body.expect("a body")).expect("JSON");
        status["partners"][0].clone()
    };
    node.until("the status says so", || {
        let p = waits();
        p["waits"]
            .as_array()
            .is_some_and(|w| w.iter().any(|w| w["code"] == "hosts"))
    });
    // The partner as a whole is well.
    assert_eq!(waits()["breaker"], "closed");
    node.signal(Signal::TERM);
    assert_eq!(node.end(), Some(0), "{}", node.said());
}

/// URLs are records, and three of their four hosts take two seconds for each request. Each has a backlog; the fourth is through with
/// its own while they have done a few rounds.
#[test]
fn several_slow_hosts_leave_places_to_a_quick_one() {
    let host = |latency: &str| {
        partner_with(behaviour(&serde_json::json!({"latency": latency})), |options| {
            options.partners[0].id = field("query:id");
            options.partners[0].key = None;
            options.partners[0].seq = None;
        })
    };
    let (slow, quick) = ([(); 3].map(|()| host("2s")), host("1ms"));
    let rig = Rig::new(
        "[partners.p]\nurl = \"{{ value }}\"\nconcurrency = 16\n[topics.t]\npartner = \"p\"\nid = \"query:id\"\n",
    );
    let mut urls = String::new();
    for n in 0..400 {
        for (at, host) in slow.iter().enumerate() {
            writeln!(urls, "http://{}/?id=s{at}-{n}", host.addr()).expect("a line");
        }
        writeln!(urls, "http://{}/?id=q{n}", quick.addr()).expect("a line");
    }
    std::fs::write(rig.path("urls.txt"), urls).expect("written");
    rig.ok(&["import", "urls.txt", "--topic", "t", "--format", "urls"]);
    let mut node = rig.start(&[]);
    node.until("the quick host has all", || counts(&quick).ids_applied == 400);
    let done: u64 = slow.iter().map(|host| counts(host).ids_applied).sum();
    assert!(done < 300, "the slow ones had {done} meanwhile");
    node.kill();
}

#[test]
fn a_run_that_waits_says_for_what_and_the_status_says_the_same() {
    let mock = partner(behaviour(&serde_json::json!({"faults": ["401"]})));
    let rig = Rig::new(&config(&mock, "", ""));
    rig.import("t", lines(0..50, 50));
    let mut node = rig.start(&["--until-drained", "--timeout", "100s"]);
    node.until_said("refuses the credentials of every message");
    let said = node.said();
    let line = said.lines().find(|line| line.contains("\"event\":\"waiting\""));
    let line: Value = serde_json::from_str(line.expect("a line about it")).expect("JSON");
    let why = line["why"].as_str().expect("why");
    let shown = rig.ok(&["status"]);
    let credentials = why.split("; ").next().expect("the first of it");
    assert!(shown.contains(credentials), "{why} in {shown}");
    node.signal(Signal::TERM);
    assert_eq!(node.end(), Some(1), "{}", node.said());
}

#[test]
fn the_summary_says_which_setting_would_have_helped() {
    let mock = partner(behaviour(&serde_json::json!({"rules": ["id=m1* 502"]})));
    let rig = Rig::new(&config(
        &mock,
        "concurrency = 1\nflood = { doubts_in_a_row = 100 }\n",
        "",
    ));
    rig.import("t", lines(0..20, 20));
    let drained = rig.drain();
    assert_eq!(drained.counts(), (9, 0, 11), "{}", drained.said);
    assert!(
        drained
            .said
            .contains("hint: p: 11 messages parked by a gateway's answer")
            && drained.said.contains("set doubt.gateway"),
        "{}",
        drained.said
    );
}

/// More requests in flight than this node can open connections for: that is not the partner's failure.
#[test]
fn a_node_without_descriptors_burns_no_attempt_and_blames_nobody() {
    let mock = partner(behaviour(&serde_json::json!({"latency": "20ms"})));
    let retry = "retry = { first = \"5ms\", longest = \"50ms\", attempts = 2 }";
    let rig = Rig::new(&config(&mock, &format!("concurrency = 64\n{retry}"), ""));
    let mut node = rig.start(&[]);
    node.wait_for_admin();
    node.limit_files(16);
    rig.import("t", lines(0..400, 400));
    node.until("all is delivered", || counts(&mock).applied == 400);
    let said = node.said();
    assert_eq!(said.matches("\"event\":\"node_short\"").count(), 1, "{said}");
    assert!(!said.contains("breaker_open"), "{said}");
    assert_eq!(counts(&mock).requests, 400);
    node.signal(Signal::TERM);
    assert_eq!(node.end(), Some(0), "{}", node.said());
    assert_eq!(rig.list(&["dead", "list"]).len(), 0);
}
