//! Orders of an operator, from the outside: what stands at the gate when they come, keys on hold, routes that are taken
//! out, messages whose record is another one after a restart, a ledger that is older than its views (I1, I2, I4).

use super::common::*;
use serde_json::{Value, json};
use sluicegate::mock::{Behaviour, MockHandle};
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::TcpStream;
use std::path::Path;

/// Partners `p0` … with a topic each, `t0` ….
fn each_its_topic(mocks: &[MockHandle]) -> String {
    let mut text = String::new();
    for (n, mock) in mocks.iter().enumerate() {
        write!(
            text,
            "[partners.p{n}]\nurl = \"http://{}/\"\n\
             [topics.t{n}]\npartner = \"p{n}\"\nid = \"json:/id\"\nkey = \"json:/user\"\n",
            mock.addr()
        )
        .expect("written");
    }
    text
}

fn status(rig: &Rig) -> Value {
    serde_json::from_str(&rig.ok(&["status", "--json"])).expect("an object")
}

fn numbers<'a>(list: &'a Value, field: &'a str) -> impl Iterator<Item = u64> + 'a {
    let rows = list.as_array().expect("a list");
    rows.iter().map(move |row| row[field].as_u64().expect("a number"))
}

/// Waits until every route has finished what its topic has.
fn until_done(node: &mut Node, rig: &Rig) {
    node.until("all is done", || {
        let topics = &status(rig)["topics"];
        numbers(topics, "lag")
            .chain(numbers(topics, "waiting"))
            .all(|n| n == 0)
    });
}

fn requests(mock: &MockHandle, id: &str) -> u32 {
    mock.id("partner", id).expect("its count").requests
}

/// Messages of other keys stand at the gate too, but those of an order are not sent once it is answered: not by what is
/// at the gate already, and not after a restart.
#[test]
fn orders_reach_what_stands_at_the_gate() {
    let messages = lines(0..200, 40);
    let mocks: Vec<_> = (0..4).map(|_| partner(Behaviour::default())).collect();
    // What another node has delivered.
    let earlier = partner(Behaviour::default());
    let other = Rig::new(&each_its_topic(std::slice::from_ref(&earlier)));
    other.import("t0", &messages);
    assert_eq!(other.drain().counts(), (200, 0, 0));
    other.ok(&["dedup", "export", "ids"]);
    let rows = std::fs::read_to_string(other.path("ids")).expect("an export");
    let (known, left) = rows
        .split_once('\n')
        .map(|(first, rest)| (rest, first))
        .expect("rows");
    let left: Value = serde_json::from_str(left).expect("a row");

    let rig = Rig::new(&each_its_topic(&mocks));
    std::fs::write(rig.path("known"), known).expect("written");
    let mut node = rig.start(&[]);
    node.wait_for_admin();
    // Orders are about partitions that have delivered something.
    let first = lines(0..40, 40).replace("\"m", "\"first-");
    for topic in ["t0", "t1", "t2", "t3"] {
        rig.import(topic, &first);
    }
    until_done(&mut node, &rig);
    for n in 0..4 {
        rig.ok(&["partners", "pause", &format!("p{n}"), "--yes"]);
    }
    let mut bad = lines(0..20, 20);
    for i in 0..100 {
        writeln!(bad, "{{\"id\":\"b{i}\",\"user\":\"bad\",\"seq\":{i}}}").expect("a line");
    }
    for topic in ["t0", "t1", "t3"] {
        rig.import(topic, &messages);
    }
    rig.import("t2", &bad);
    node.until("messages at every gate", || {
        numbers(&status(&rig)["partners"], "permits_waiting").all(|n| n > 8)
    });
    let said = rig.ok(&["dedup", "import", "known"]);
    assert!(said.contains("199 IDs are called delivered"), "{said}");
    // More of each than stand at the gate.
    for i in 0..45 {
        rig.ok(&["dedup", "mark", &format!("m{i}"), "--topic", "t1", "--yes"]);
        rig.ok(&[
            "skip",
            "add",
            "--topic",
            "t3",
            "--id",
            &format!("m{i}"),
            "--because",
            "test",
        ]);
    }
    rig.ok(&[
        "skip",
        "add",
        "--topic",
        "t2",
        "--key",
        "bad",
        "--because",
        "test",
    ]);
    for n in 0..4 {
        rig.ok(&["partners", "resume", &format!("p{n}")]);
    }
    until_done(&mut node, &rig);
    let assert_sent = || {
        let sent: Vec<_> = mocks.iter().map(|mock| counts(mock).requests).collect();
        assert_eq!(sent, [41, 195, 60, 195]);
        assert_eq!(requests(&mocks[0], left["id"].as_str().expect("an ID")), 1);
        for i in 0..45 {
            let id = format!("m{i}");
            assert_eq!(
                (requests(&mocks[1], &id), requests(&mocks[3], &id)),
                (0, 0),
                "{id}"
            );
        }
        assert_eq!(requests(&mocks[2], "b0") + requests(&mocks[2], "b99"), 0);
    };
    assert_sent();
    for (topic, id, words) in [
        (
            "t0",
            known.lines().next().map_or("", |row| row),
            "called delivered",
        ),
        ("t1", "m13", "called delivered"),
        ("t2", "b7", "skipped"),
        ("t3", "m13", "skipped"),
    ] {
        let id = match serde_json::from_str::<Value>(id) {
            Ok(row) => row["id"].as_str().expect("an ID").to_owned(),
            Err(_) => id.to_owned(),
        };
        let story = rig.ok(&["message", &id, "--topic", topic]);
        assert!(story.contains(words), "{topic} {id}: {story}");
        assert!(!story.contains("attempt 1"), "{topic} {id}: {story}");
    }
    node.kill();
    assert_eq!(rig.drain().counts().1, 0);
    assert_sent();
}

/// Marked at the gate, forgotten, and written again: the new record is a message like any other.
#[test]
fn a_mark_that_was_taken_back_swallows_nothing() {
    let mock = partner(Behaviour::default());
    let rig = Rig::new(&config(&mock, "", "partitions = 1"));
    let mut node = rig.start(&[]);
    node.wait_for_admin();
    rig.import("t", lines(9..10, 1));
    until_done(&mut node, &rig);
    rig.ok(&["partners", "pause", "p", "--yes"]);
    rig.import("t", lines(0..6, 6));
    node.until("messages at the gate", || {
        numbers(&status(&rig)["partners"], "permits_waiting").all(|n| n == 6)
    });
    for id in ["m0", "m1"] {
        rig.ok(&["dedup", "mark", id, "--yes"]);
    }
    // One is taken back while it stands at the gate, the other one after its turn has come.
    rig.ok(&["dedup", "forget", "m1", "--yes"]);
    rig.ok(&["partners", "resume", "p"]);
    until_done(&mut node, &rig);
    rig.ok(&["dedup", "forget", "m0", "--yes"]);
    for id in ["m0", "m1", "m5"] {
        rig.ok(&[
            "send",
            "--topic",
            "t",
            &format!("{{\"id\":\"{id}\",\"user\":\"{id}\",\"seq\":1}}"),
        ]);
    }
    until_done(&mut node, &rig);
    let sent = || ["m0", "m1", "m2", "m3", "m4", "m5"].map(|id| requests(&mock, id));
    assert_eq!(sent(), [1, 1, 1, 1, 1, 1]);
    node.kill();
    let drained = rig.drain();
    assert_eq!((drained.dead, drained.parked), (0, 0), "{}", drained.said);
    assert_eq!(sent(), [1, 1, 1, 1, 1, 1]);
}

/// A folder on which no node has run is told what another one has delivered: by its export, by a list of a partner's own, and by
/// `dedup mark`. None of it goes out, in no partition, also where the topic was made by telling.
#[test]
fn a_fresh_folder_is_told_what_was_delivered_elsewhere() {
    let messages = lines(0..60, 60);
    let mocks: Vec<_> = (0..2).map(|_| partner(Behaviour::default())).collect();
    let earlier = partner(Behaviour::default());
    let other = Rig::new(&each_its_topic(std::slice::from_ref(&earlier)));
    other.import("t0", &messages);
    assert_eq!(other.drain().counts(), (60, 0, 0));
    other.ok(&["dedup", "export", "ids"]);

    let rig = Rig::new(&each_its_topic(&mocks));
    std::fs::copy(other.path("ids"), rig.path("ids")).expect("copied");
    let row = |n: u32| json!({"id": format!("m{n}"), "topic": "t1", "partner": "p1", "state": "delivered"});
    let own: String = (0..40).map(|n| format!("{}\n", row(n))).collect();
    std::fs::write(rig.path("own"), own).expect("written");
    rig.import("t0", &messages);
    let said = rig.ok(&["dedup", "import", "ids"]);
    assert!(said.contains("60 IDs are called delivered, 0 are not"), "{said}");
    // Nothing was ever imported into `t1`.
    rig.ok(&["dedup", "import", "own"]);
    for n in 40..50 {
        rig.ok(&["dedup", "mark", &format!("m{n}"), "--topic", "t1", "--yes"]);
    }
    rig.import("t1", &messages);
    assert_eq!(rig.drain().code, Some(0));
    let sent: Vec<_> = mocks.iter().map(|mock| counts(mock).requests).collect();
    assert_eq!(sent, [0, 10]);
}

/// A key waits for the doubt of one of its messages. Orders about another one of its messages let nothing go.
#[test]
fn a_hold_ends_with_its_own_message_only() {
    let rules = json!({"rules": ["id=*-3 400", "id=*-5 hang"]});
    let mock = partner(Behaviour::default().changed(&rules).expect("a behaviour"));
    let policy =
        "on_doubt = \"hold\"\ntimeout = { connect = \"10s\", request = \"300ms\" }\nconcurrency = 64";
    let rig = Rig::new(&config(&mock, policy, "partitions = 1"));
    let orders = [
        ["dead", "drop"],
        ["dead", "replay"],
        ["dedup", "mark"],
        ["dedup", "forget"],
    ];
    let mut messages = String::new();
    for seq in 3..8 {
        for key in 0..orders.len() {
            let line = json!({"id": format!("{key}-{seq}"), "user": format!("u{key}"), "seq": seq});
            writeln!(messages, "{line}").expect("a line");
        }
    }
    let mut node = rig.start(&[]);
    node.wait_for_admin();
    rig.import("t", messages);
    node.until("every key is held", || {
        rig.list(&["doubt", "list"]).len() == orders.len()
    });
    for (key, [noun, verb]) in orders.iter().enumerate() {
        rig.ok(&[noun, verb, &format!("{key}-3"), "--yes"]);
    }
    // What an order lets go is on its way before what comes after it is done.
    for turn in 0..3 {
        rig.ok(&[
            "send",
            "--topic",
            "t",
            &format!("{{\"id\":\"later-{turn}\",\"user\":\"w\",\"seq\":{turn}}}"),
        ]);
        node.until("the later message", || {
            requests(&mock, &format!("later-{turn}")) == 1
        });
    }
    for (key, order) in orders.iter().enumerate() {
        let sent = [6, 7].map(|seq| requests(&mock, &format!("{key}-{seq}")));
        assert_eq!(sent, [0, 0], "{order:?}");
    }
    assert_eq!(rig.list(&["doubt", "list"]).len(), orders.len());
    for key in 0..orders.len() {
        rig.ok(&["doubt", "confirm", &format!("{key}-5"), "--yes"]);
        node.until("the key goes on", || requests(&mock, &format!("{key}-7")) == 1);
    }
    node.until("the replayed one", || requests(&mock, "1-3") == 2);
    for (key, order) in orders.iter().enumerate() {
        let sent = [3, 4, 5, 6, 7].map(|seq| requests(&mock, &format!("{key}-{seq}")));
        assert_eq!(sent, [1 + u32::from(key == 1), 1, 1, 1, 1], "{order:?}");
    }
}

/// One topic, delivered to `a` and, if it is there, to `b`.
fn fed(mocks: &[MockHandle; 2], with_b: bool) -> String {
    let mut text = String::new();
    for (name, mock) in ["a", "b"].iter().zip(mocks).take(1 + usize::from(with_b)) {
        writeln!(text, "[partners.{name}]\nurl = \"http://{}/\"", mock.addr()).expect("written");
    }
    let to = if with_b { ", { partner = \"b\" }" } else { "" };
    write!(
        text,
        "[topics.feed]\ndeliver = [{{ partner = \"a\" }}{to}]\nid = \"json:/id\"\nkey = \"json:/user\"\nretention = \"1s\"\n\
         [ledger]\nwaiting_after = \"300ms\"\nposition_every = \"50ms\"\ncheckpoint_every = \"200ms\"\n"
    )
    .expect("written");
    text
}

/// An order, by the API.
fn order(admin: &str, order: &Value) -> (u16, Value) {
    let body = json!({"order": order, "who": "test", "why": "test"}).to_string();
    let mut stream = TcpStream::connect(admin).expect("the admin port");
    write!(
        stream,
        "POST /api/order HTTP/1.1\r\nhost: {admin}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
    .expect("asked");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|s| s.parse().ok())
        .expect("a status");
    (status, serde_json::from_str(body).expect("an object"))
}

/// A route that is taken out keeps its records, however long ago they are, until it comes back or somebody says that
/// it does not.
#[test]
fn a_route_that_is_taken_out_loses_nothing_until_it_is_forgotten() {
    const MESSAGES: u64 = 2_000;
    let mocks = [partner(Behaviour::default()), partner(Behaviour::default())];
    let kept = |rig: &Rig| {
        let status = status(rig);
        let rows = status["topics"].as_array().expect("a list");
        let of_a = rows.iter().filter(|row| row["partner"] == "a");
        let number = |row: &Value, field: &str| row[field].as_u64().expect("an offset");
        of_a.map(|row| number(row, "end") - number(row, "begin"))
            .sum::<u64>()
    };
    for forget in ["", "command", "api"] {
        let before = mocks.each_ref().map(|mock| counts(mock).requests);
        let sent = || {
            let now = mocks.each_ref().map(|mock| counts(mock).requests);
            (now[0] - before[0], now[1] - before[1])
        };
        let rig = Rig::new(&fed(&mocks, true));
        let mut node = rig.start(&[]);
        node.wait_for_admin();
        rig.ok(&["partners", "pause", "b", "--yes"]);
        rig.import("feed", lines(0..MESSAGES, 50));
        node.until("a has all", || sent().0 == MESSAGES);
        // It is not forgotten as long as it is there.
        let refused = rig.call(&["partners", "forget", "b", "--topic", "feed", "--yes"]);
        assert_ne!(refused.status.code(), Some(0));
        let why = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(why.contains("configuration"), "{why}");
        node.kill();

        let admin = rig.configure_with(&format!("\n{}", fed(&mocks, false)));
        let mut node = rig.start(&[]);
        node.wait_for_admin();
        // Later records go, and with them the time passes in which the others could have gone.
        let wanted = json!({"verb": "forget-route", "topic": "feed", "partner": "b"});
        match forget {
            "command" => drop(rig.ok(&["partners", "forget", "b", "--topic", "feed", "--yes"])),
            "api" => {
                let (status, report) = order(&admin, &wanted);
                assert_eq!((status, &report["touched"]), (200, &json!(1)), "{report}");
            }
            _ => {}
        }
        rig.import("feed", lines(MESSAGES..2 * MESSAGES, 50));
        node.until("a has these, too", || sent().0 == 2 * MESSAGES);
        if forget.is_empty() {
            // A topic beside it would have lost them by now: a whole retention has passed, and some.
            let began = std::time::Instant::now();
            node.until("time", || began.elapsed() > std::time::Duration::from_secs(4));
            assert_eq!(kept(&rig), 2 * MESSAGES);
        } else {
            node.until("the topic keeps nothing", || kept(&rig) == 0);
            // What is not known any more cannot be forgotten again.
            let (status, report) = order(&admin, &wanted);
            assert!(status >= 400 || report["touched"] == 0, "{status} {report}");
        }
        node.kill();

        rig.configure(&fed(&mocks, true));
        let mut node = rig.start(&[]);
        node.wait_for_admin();
        rig.ok(&["partners", "resume", "b"]);
        rig.import("feed", lines(2 * MESSAGES..2 * MESSAGES + 10, 10));
        until_done(&mut node, &rig);
        let of_b = if forget.is_empty() { 2 * MESSAGES + 10 } else { 10 };
        assert_eq!(sent(), (2 * MESSAGES + 10, of_b), "{forget}");
        let stopped = &status(&rig)["topics"];
        assert!(
            stopped
                .as_array()
                .expect("a list")
                .iter()
                .all(|t| t["stopped"].is_null()),
            "{stopped}"
        );
    }
}

/// Messages that were tried, and are no message of the route any more after a restart, keep no run from its end.
#[test]
fn what_is_left_of_messages_that_changed_ends() {
    let mock = partner(Behaviour::default());
    for (case, change, words, sent_again) in [
        ("the same", "", "delivered", 5),
        (
            "filtered",
            "deliver = [{ partner = \"p\", when = \"value.seq > 99\" }]\n",
            "filtered",
            0,
        ),
        ("another ID", "id = \"json:/other\"\n", "replaced", 5),
    ] {
        let busy = json!({"rules": ["id=* 429"], "retry_after": "none"});
        mock.control("partner", &busy).expect("it is busy");
        let retry = "retry = { first = \"200ms\", longest = \"500ms\" }\n";
        let with = |change: &str| {
            let mut topic =
                "partner = \"p\"\nid = \"json:/id\"\nkey = \"json:/user\"\npartitions = 1\n".to_owned();
            if change.starts_with("id") {
                topic = topic.replace("id = \"json:/id\"\n", change);
            } else if !change.is_empty() {
                topic = topic.replace("partner = \"p\"\n", change);
            }
            format!(
                "[partners.p]\nurl = \"http://{}/\"\n{retry}[topics.t]\n{topic}",
                mock.addr()
            )
        };
        let rig = Rig::new(&with(""));
        let mut records = String::new();
        for i in 0..5 {
            let record = json!({"id": format!("{case}{i}"), "other": format!("{case}o{i}"), "user": format!("u{i}"), "seq": i});
            writeln!(records, "{record}").expect("a line");
        }
        rig.import("t", records);
        let mut node = rig.start(&[]);
        node.until("each was tried", || {
            (0..5).all(|i| requests(&mock, &format!("{case}{i}")) > 0)
        });
        node.kill();
        rig.configure(&with(change));
        mock.control("partner", &json!({"rules": []}))
            .expect("it answers");
        let before = counts(&mock).applied;
        let drained = rig.drain();
        assert_eq!(drained.dead, 0, "{case}: {}", drained.said);
        // A kill in the middle of an attempt leaves that one in doubt.
        let doubts = rig.list(&["doubt", "list"]).len() as u64;
        assert!(matches!(drained.code, Some(0 | 3)), "{case}: {}", drained.said);
        assert!(counts(&mock).applied - before <= sent_again, "{case}");
        if sent_again > 0 {
            assert!(
                counts(&mock).applied - before + doubts >= sent_again,
                "{case}: {}",
                drained.said
            );
        }
        let stories: Vec<_> = (0..5)
            .map(|i| rig.ok(&["message", &format!("{case}{i}")]))
            .collect();
        let told = stories.iter().filter(|story| story.contains(words)).count() as u64;
        assert!(told + doubts >= 5, "{case}: {stories:?}");
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).expect("a copy")),
        }
    }
}

/// An old copy of the log beside newer views: no start sends anything or changes anything, until the views are moved
/// away on purpose.
#[test]
fn a_ledger_that_has_lost_entries_is_refused_at_every_start() {
    let mock = partner(Behaviour::default());
    let rig = Rig::new(&config(&mock, "", ""));
    rig.import("t", lines(0..100, 10));
    assert_eq!(rig.drain().counts(), (100, 0, 0));
    copy(&rig.path("data"), &rig.path("backup"));
    rig.import("t", lines(100..300, 10));
    assert_eq!(rig.drain().counts(), (300, 0, 0));
    // The log is everything but the views.
    for entry in std::fs::read_dir(rig.path("backup")).expect("a folder") {
        let name = entry.expect("an entry").file_name();
        if name == "dedup" || name == "ledger" || !rig.path("backup").join(&name).is_dir() {
            continue;
        }
        let there = rig.path("data").join(&name);
        std::fs::remove_dir_all(&there).expect("removed");
        copy(&rig.path("backup").join(&name), &there);
    }
    let before = files(&rig.path("data/ledger"));
    for _ in 0..3 {
        let mut node = rig.start(&["--until-drained", "--timeout", "100s"]);
        assert_eq!(node.end(), Some(1), "{}", node.said());
        assert!(
            node.said().contains("the ledger has lost entries"),
            "{}",
            node.said()
        );
    }
    assert_eq!(files(&rig.path("data/ledger")), before);
    assert_eq!(counts(&mock).requests, 300);
    for view in ["dedup", "ledger"] {
        std::fs::rename(rig.path("data").join(view), rig.path(view)).expect("moved away");
    }
    let drained = rig.drain();
    assert_eq!((drained.dead, drained.parked), (0, 0), "{}", drained.said);
    assert_eq!(
        counts(&mock).requests,
        300,
        "what the older log knows is still known"
    );
}
