//! Bad and hostile input: records, configurations, folders, ports, disks. A clear error, nothing lost, and the rest
//! goes on (I1, I8).

use super::common::*;
use serde_json::json;
use sluicegate::mock::{Behaviour, MockHandle};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Sends one record.
fn send(rig: &Rig, topic: &str, value: impl AsRef<[u8]>) {
    std::fs::write(rig.path("value"), value).expect("written");
    rig.ok(&["send", "--topic", topic, "@value"]);
}

fn big_segments(mock: &MockHandle, rest: &str) -> String {
    format!("[log]\nsegment = \"64MiB\"\n{}", config(mock, "", rest))
}

#[test]
fn broken_records_become_dead_letters_and_the_rest_goes_on() {
    let mock = partner(Behaviour::default());
    let rig = Rig::new(&big_segments(&mock, "partitions = 1"));
    let long = "x".repeat(1 << 20);
    send(&rig, "t", r#"{"id":"first","user":"u","seq":1}"#);
    let broken: [&[u8]; 7] = [
        b"not JSON at all",
        b"",
        b"{\"id\":",
        b"[]",
        br#"{"user":"u"}"#,
        br#"{"id":null,"user":"u"}"#,
        b"{\"user\":\"u\",\"deep\":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    ];
    for record in broken {
        send(&rig, "t", record);
    }
    send(
        &rig,
        "t",
        format!(r#"{{"id":"long key","user":"{long}","seq":2}}"#),
    );
    send(&rig, "t", format!(r#"{{"id":"{long}","user":"u","seq":3}}"#));
    let huge = format!(
        r#"{{"id":"huge","user":"u","seq":4,"pad":"{}"}}"#,
        long.repeat(10)
    );
    send(&rig, "t", &huge);
    send(&rig, "t", r#"{"id":"last","user":"u","seq":5}"#);
    let drained = rig.drain();
    assert_eq!(
        (drained.counts(), drained.code),
        ((5, 7, 0), Some(3)),
        "{}",
        drained.said
    );
    let seen = counts(&mock);
    assert_eq!((seen.applied, seen.order_violations), (5, 0), "{seen:?}");
    assert!(seen.bytes_in > 10 << 20, "{}", seen.bytes_in);
    let dead = rig.list(&["dead", "list"]);
    assert_eq!(dead.len(), 7);
    for row in &dead {
        assert!(
            row["reason"].as_str().is_some_and(|r| r.starts_with("no_id")),
            "{row}"
        );
        assert_eq!(
            (&row["attempts"], &row["replayable"]),
            (&json!(0), &json!(true)),
            "{row}"
        );
    }
    // What is dead stays so, and is not looked at again.
    assert_eq!(rig.drain().counts(), (5, 7, 0));
}

#[test]
fn what_is_no_text_is_refused_where_it_comes_in() {
    let mock = partner(Behaviour::default());
    let rig = Rig::new(&config(&mock, "", ""));
    let broken: [&[u8]; 3] = [
        b"\xff\xfe\x00\x80 no text",
        b"{\"id\":\"\xff\xfe\"}",
        b"{\"id\":\"cut off",
    ];
    std::fs::write(rig.path("value"), broken[0]).expect("written");
    let refused = rig.call(&["send", "--topic", "t", "@value"]);
    let why = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{why}");
    assert!(why.contains("UTF-8"), "{why}");
    // Among good lines of a file: those come in, the others are kept beside it.
    let mut file = lines(0..10, 3).into_bytes();
    for line in broken {
        file.extend_from_slice(line);
        file.push(b'\n');
    }
    file.extend_from_slice(lines(10..20, 3).as_bytes());
    std::fs::write(rig.path("mixed.jsonl"), file).expect("written");
    let imported = rig.call(&["import", "mixed.jsonl", "--topic", "t"]);
    let said =
        String::from_utf8_lossy(&imported.stderr).into_owned() + &String::from_utf8_lossy(&imported.stdout);
    for line in [11, 12, 13] {
        assert!(
            said.contains(&line.to_string()),
            "line {line} is not named: {said}"
        );
    }
    let rejects = std::fs::read(rig.path("mixed.jsonl.rejects")).expect("a reject file");
    assert!(
        rejects.windows(7).any(|w| w == b"cut off"),
        "{}",
        String::from_utf8_lossy(&rejects)
    );
    assert_eq!(rig.drain().counts(), (20, 0, 0));
}

#[test]
fn a_record_that_no_segment_holds_is_refused_where_it_comes_in() {
    let mock = partner(Behaviour::default());
    let rig = Rig::new(&config(&mock, "", ""));
    let huge = format!(r#"{{"id":"huge","user":"u","pad":"{}"}}"#, "x".repeat(10 << 20));
    std::fs::write(rig.path("value"), huge).expect("written");
    let refused = rig.call(&["send", "--topic", "t", "@value"]);
    let why = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{why}");
    assert!(why.contains("log.segment"), "{why}");
    send(&rig, "t", r#"{"id":"small","user":"u"}"#);
    assert_eq!(rig.drain().counts(), (1, 0, 0));
}

#[test]
fn records_without_id_or_key_go_by_their_settings() {
    for (settings, expected) in [
        ("id_missing = \"dead\"", (14, 3, 0)),
        ("id_missing = \"position\"", (17, 0, 0)),
        (
            "id_missing = \"position\"\nkey_missing = \"unordered\"",
            (17, 0, 0),
        ),
        (
            "id_missing = \"position\"\nkey_missing = \"together\"",
            (17, 0, 0),
        ),
        ("id_missing = \"position\"\nkey_missing = \"dead\"", (7, 10, 0)),
        ("id_missing = \"dead\"\nkey_missing = \"dead\"", (4, 13, 0)),
    ] {
        let slow = Behaviour {
            latency: "5ms".parse().expect("a latency"),
            ..Behaviour::default()
        };
        let mock = partner(slow);
        let rig = Rig::new(&config(&mock, "", &format!("partitions = 1\n{settings}")));
        let mut records = String::new();
        for i in 0..10 {
            writeln!(records, "{{\"id\":\"m{i}\",\"seq\":{i}}}").expect("a line");
        }
        // Lines of a file without an ID go by the file's hash and their number, whatever the setting says.
        for i in 0..4 {
            writeln!(records, "{{\"user\":\"u{i}\",\"seq\":{i}}}").expect("a line");
        }
        rig.import("t", records);
        for i in 4..7 {
            send(&rig, "t", format!("{{\"user\":\"u{i}\",\"seq\":{i}}}"));
        }
        let drained = rig.drain();
        assert_eq!(drained.counts(), expected, "{settings}: {}", drained.said);
        let seen = counts(&mock);
        assert_eq!(seen.requests, expected.0, "{settings}");
        for row in rig.list(&["dead", "list"]) {
            let reason = row["reason"].as_str().unwrap_or_default();
            assert!(
                reason.contains("id") || reason.contains("key"),
                "{settings}: {row}"
            );
        }
    }
}

#[test]
fn records_without_key_are_one_after_the_other_where_asked() {
    let slow = Behaviour {
        latency: "2ms".parse().expect("a latency"),
        ..Behaviour::default()
    };
    let records: String = (0..60)
        .map(|i| format!("{{\"id\":\"m{i}\",\"all\":1,\"seq\":{i}}}\n"))
        .collect();
    for (setting, together) in [("together", true), ("unordered", false)] {
        let mock = partner_with(slow.clone(), |options| {
            options.partners[0].key = Some(field("json:/all"));
        });
        let rig = Rig::new(&config(
            &mock,
            "",
            &format!("partitions = 1\nkey_missing = \"{setting}\""),
        ));
        rig.import("t", &records);
        assert_eq!(rig.drain().counts(), (60, 0, 0), "{setting}");
        let seen = counts(&mock);
        if together {
            assert_eq!(
                (seen.in_flight_peak, seen.order_violations, seen.overlaps),
                (1, 0, 0)
            );
        } else {
            assert!(seen.in_flight_peak > 1, "{seen:?}");
        }
    }
}

#[test]
fn one_key_for_all_and_a_key_for_each() {
    let mock = partner(Behaviour::default());
    let rig = Rig::new(&config(&mock, "", ""));
    rig.import("t", lines(0..500, 1));
    assert_eq!(rig.drain().counts(), (500, 0, 0));
    let seen = counts(&mock);
    assert_eq!(
        (seen.order_violations, seen.overlaps, seen.in_flight_peak),
        (0, 0, 1),
        "{seen:?}"
    );

    let keys = setting("SLUICEGATE_KEYS", 20_000);
    let mock = partner(Behaviour::default());
    let rig = Rig::new(&format!(
        "[log]\nsegment = \"64MiB\"\n{}",
        config(&mock, "", "busy_keys = 50")
    ));
    rig.import("t", lines(0..keys, u64::MAX));
    assert_eq!(rig.drain().counts(), (keys, 0, 0));
    let seen = counts(&mock);
    assert_eq!((seen.keys, seen.requests), (keys, keys));
}

#[test]
fn duplicates_are_answered_from_memory_wherever_they_come() {
    let slow = Behaviour {
        latency: "20ms".parse().expect("a latency"),
        ..Behaviour::default()
    };
    let mock = partner(slow);
    let rig = Rig::new(&config(&mock, "", ""));
    // Each three times in a row: the first is in flight while the others come.
    let thrice: String = lines(0..200, 50)
        .lines()
        .map(|l| format!("{l}\n{l}\n{l}\n"))
        .collect();
    rig.import("t", &thrice);
    let drained = rig.drain();
    assert_eq!(drained.counts(), (200, 0, 0), "{}", drained.said);
    assert_eq!(counts(&mock).requests, 200);
    // The same file is known by its content; when told to, its records are taken again, and none is sent again.
    std::fs::write(rig.path("again.jsonl"), &thrice).expect("written");
    rig.ok(&["import", "again.jsonl", "--topic", "t"]);
    rig.ok(&["import", "again.jsonl", "--topic", "t", "--again"]);
    // In a later life, beside new ones, and with a kill in the middle.
    rig.import("t", lines(100..300, 50));
    let mut node = rig.start(&[]);
    node.until("some of the new ones", || counts(&mock).requests > 220);
    node.kill();
    rig.import(
        "t",
        lines(0..300, 50)
            .lines()
            .rev()
            .map(|l| format!("{l}\n"))
            .collect::<String>(),
    );
    let drained = rig.drain();
    assert_eq!(
        (drained.delivered + drained.parked, drained.dead),
        (300, 0),
        "{}",
        drained.said
    );
    let seen = counts(&mock);
    assert_eq!(
        (seen.ids_requested_again, seen.ids),
        (0, seen.requests),
        "{:?}",
        seen.requested_again
    );
}

#[test]
fn all_mistakes_of_a_configuration_are_told_at_once() {
    let rig = Rig::new("");
    let text = "[node]\nmemory = \"lots\"\n[partners.p]\nurl = \"ftp://nowhere\"\nconcurency = 5\ndoubt = \"maybe\"\n\
                [topics.t]\npartner = \"q\"\npartitions = 0\nid = \"json:id\"\n[limits.l]\nrates = [\"5/fortnight\"]\n";
    std::fs::write(rig.path("actors.toml"), text).expect("written");
    for command in ["check", "run"] {
        let refused = rig.call(&[command]);
        let said =
            String::from_utf8_lossy(&refused.stderr).into_owned() + &String::from_utf8_lossy(&refused.stdout);
        assert_eq!(refused.status.code(), Some(2), "{command}: {said}");
        for line in [2, 4, 5, 6, 8, 9, 10, 12] {
            assert!(
                said.contains(&format!("actors.toml:{line}")),
                "{command}: line {line} is missing in {said}"
            );
        }
        assert!(
            said.contains("concurrency"),
            "{command}: the nearest key is not named in {said}"
        );
    }
    assert!(
        !rig.path("data").exists(),
        "a refused configuration must leave no trace"
    );
    let refused = rig.call(&["run", "--config", "nowhere.toml"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("nowhere.toml"));
}

#[test]
fn a_second_process_on_the_folder_is_turned_away() {
    let slow = Behaviour {
        latency: "20ms".parse().expect("a latency"),
        ..Behaviour::default()
    };
    let mock = partner(slow);
    let rig = Rig::new(&config(&mock, "concurrency = 4", ""));
    rig.import("t", lines(0..200, 20));
    let mut node = rig.start(&[]);
    node.until("it works", || counts(&mock).requests > 4);
    let second = rig.call(&["run"]);
    let why = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{why}");
    assert!(
        why.contains("data") && (why.contains("another process") || why.contains("in use")),
        "{why}"
    );
    node.until("the first goes on", || counts(&mock).applied == 200);
    node.signal(rustix::process::Signal::TERM);
    assert_eq!(node.end(), Some(0), "{}", node.said());
    let drained = rig.drain();
    assert_eq!(drained.counts(), (200, 0, 0), "{}", drained.said);
    assert_eq!(counts(&mock).requests, 200);
}

#[test]
fn a_port_that_is_taken_is_named() {
    let mock = partner(Behaviour::default());
    let rig = Rig::new(&config(&mock, "", ""));
    rig.import("t", lines(0..20, 20));
    let text = std::fs::read_to_string(rig.path("actors.toml")).expect("the configuration");
    let (_, rest) = text.split_once("admin = \"").expect("an admin address");
    let (address, _) = rest.split_once('"').expect("its end");
    let taken = std::net::TcpListener::bind(address).expect("the port is free before");
    let refused = rig.call(&["run", "--until-drained"]);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{why}");
    assert!(why.contains(address), "{why}");
    assert_eq!(
        counts(&mock).requests,
        0,
        "nothing may be sent by a node that cannot be reached"
    );
    drop(taken);
    assert_eq!(rig.drain().counts(), (20, 0, 0));
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let mock = partner(Behaviour::default());
    let rig = Rig::new(&format!(
        "[node]\ndata = \"file/data\"\n{}",
        config(&mock, "", "")
    ));
    std::fs::write(rig.path("file"), "in the way").expect("written");
    for command in ["run", "status"] {
        let refused = rig.call(&[command]);
        let why = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{command}: {why}");
        assert!(why.contains("file/data"), "{command}: {why}");
    }
}

/// A file system of a few megabytes. Mounting needs rights that not every machine gives.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, megabytes: u32) -> Option<Self> {
        std::fs::create_dir(at).expect("a folder");
        let size = format!("size={megabytes}m");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "none"])
            .arg(at)
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(at.to_owned())),
            other => {
                eprintln!(
                    "NOT PROVED HERE: this machine does not allow a small disk to be mounted: {other:?}"
                );
                None
            }
        }
    }

    fn again(&self, option: &str) {
        let option = format!("remount,{option}");
        let done = Command::new("mount").args(["-o", &option]).arg(&self.0).status();
        assert!(done.is_ok_and(|s| s.success()), "{option}");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // At the latest the machine's end unmounts it.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_read_only_folder_is_named() {
    let mock = partner(Behaviour::default());
    let rig = Rig::new(&format!(
        "[node]\ndata = \"disk/data\"\n{}",
        config(&mock, "", "")
    ));
    let Some(disk) = SmallDisk::mount(&rig.path("disk"), 64) else {
        return;
    };
    rig.import("t", lines(0..20, 20));
    disk.again("ro");
    let refused = rig.call(&["run", "--until-drained"]);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{why}");
    assert!(
        why.contains("disk/data") && why.to_lowercase().contains("read-only"),
        "{why}"
    );
    assert_eq!(counts(&mock).requests, 0);
    disk.again("rw");
    assert_eq!(rig.drain().counts(), (20, 0, 0));
}

#[test]
fn a_full_disk_stops_the_work_and_loses_nothing() {
    let mock = partner(Behaviour::default());
    let rig = Rig::new(&format!(
        "[node]\ndata = \"disk/data\"\n[log]\nsegment = \"1MiB\"\n{}",
        config(&mock, "concurrency = 64", "")
    ));
    let Some(_disk) = SmallDisk::mount(&rig.path("disk"), 48) else {
        return;
    };
    rig.import("t", lines(0..40_000, 500));
    let mut node = rig.start(&[]);
    node.until("it works", || counts(&mock).requests > 200);
    // The rest of the disk goes to somebody else.
    let ballast = rig.path("disk/ballast");
    let mut file = std::fs::File::create(&ballast).expect("a file");
    while std::io::Write::write_all(&mut file, &[0; 65_536]).is_ok() {}
    drop(file);
    // It goes on as far as the room that it has reserved reaches, then stands, and says why.
    node.until("it stands", || {
        let before = counts(&mock).requests;
        std::thread::sleep(std::time::Duration::from_millis(1_500));
        before == counts(&mock).requests
    });
    assert!(counts(&mock).requests < 40_000, "the disk was not full");
    std::fs::write(rig.path("more.jsonl"), lines(40_000..40_100, 100)).expect("written");
    let refused = rig.call(&["import", "more.jsonl", "--topic", "t"]);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success(),
        "an import that cannot be kept must say so: {why}"
    );
    assert!(node.is_running());
    std::fs::remove_file(&ballast).expect("room again");
    node.until("all is delivered", || counts(&mock).ids == 40_000);
    rig.ok(&["import", "more.jsonl", "--topic", "t"]);
    node.until("the import is delivered too", || counts(&mock).ids == 40_100);
    node.signal(rustix::process::Signal::TERM);
    assert_eq!(node.end(), Some(0), "{}", node.said());
    let drained = rig.drain();
    assert_eq!(drained.counts(), (40_100, 0, 0), "{}", drained.said);
    let seen = counts(&mock);
    assert_eq!((seen.requests, seen.order_violations), (40_100, 0), "{seen:?}");
}

/// Segments made smaller under a record that is larger than a quarter of them: what becomes of it can be kept, and it is
/// sent once.
#[test]
fn a_record_larger_than_the_segments_of_today_is_kept() {
    let behaviour = Behaviour::default().changed(&json!({"rules": ["id=large 413"]}));
    let mock = partner(behaviour.expect("a behaviour"));
    let rig = Rig::new(&big_segments(&mock, ""));
    let pad = "x".repeat(6 << 20);
    send(
        &rig,
        "t",
        format!(r#"{{"id":"large","user":"u","seq":1,"pad":"{pad}"}}"#),
    );
    rig.configure(&format!("[log]\nsegment = \"1MiB\"\n{}", config(&mock, "", "")));
    for _ in 0..3 {
        let drained = rig.drain();
        assert_eq!(drained.counts(), (0, 1, 0), "{}", drained.said);
    }
    assert_eq!(counts(&mock).requests, 1);
    mock.control("partner", &json!({"rules": []}))
        .expect("it takes all");
    rig.ok(&["dead", "replay", "--all", "--because", "mended"]);
    assert_eq!(rig.drain().counts(), (1, 0, 0));
    let seen = counts(&mock);
    assert_eq!((seen.requests, seen.applied), (2, 1), "{seen:?}");
    assert!(seen.bytes_in > 12 << 20, "{}", seen.bytes_in);
}

/// What the admin port answers, with its status line.
fn ask(address: &str, path: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).expect("the admin port");
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"
    )
    .expect("asked");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    answer
}

/// A disk that others have filled: checkpoints and the store of delivered IDs cannot be written, again and again. The
/// node says so, delivers on from the room that it has set aside, and is well again once there is room.
///
/// `SLUICEGATE_FULL_DISK_SECONDS` is the long form: so long, with segments and restarts as by default.
#[test]
fn a_disk_that_stays_full_ends_nothing() {
    let seconds = setting("SLUICEGATE_FULL_DISK_SECONDS", 0);
    let long = seconds > 0;
    let messages = 200 * (seconds + if long { 90 } else { 20 });
    let mock = partner(Behaviour::default());
    let rig = Rig::new("");
    let quick = "[log]\nsegment = \"4MiB\"\n[ledger]\ncheckpoint_every = \"200ms\"\n\
                 [actors]\nrestart = { first = \"10ms\", escalate_after = 3 }\n";
    let log = if long {
        "[log]\nsegment = \"64MiB\"\n"
    } else {
        quick
    };
    let admin = rig.configure_with(&format!(
        "[node]\ndata = \"disk/data\"\n{log}{}",
        config(&mock, "limits = [\"200/s\"]", "")
    ));
    let Some(_disk) = SmallDisk::mount(&rig.path("disk"), if long { 400 } else { 40 }) else {
        return;
    };
    rig.import("t", lines(0..messages, 500));
    let mut node = rig.start(&[]);
    node.wait_for_admin();
    let status =
        || -> serde_json::Value { serde_json::from_str(&rig.ok(&["status", "--json"])).expect("JSON") };
    let segment = if long { 64 << 20 } else { 4 << 20 };
    node.until("it has set room aside", || {
        status()["log"]["disk_bytes"].as_u64() >= Some(4 * segment) && counts(&mock).ids > 100
    });
    assert!(ask(&admin, "/readyz").starts_with("HTTP/1.1 200"));
    let ballast = rig.path("disk/ballast");
    let mut file = std::fs::File::create(&ballast).expect("a file");
    while std::io::Write::write_all(&mut file, &[0; 4_096]).is_ok() {}
    drop(file);
    node.until("it says that it cannot write", || {
        status()["ledger"]["behind"]
            .as_str()
            .is_some_and(|why| why.contains("No space left"))
    });
    let ready = ask(&admin, "/readyz");
    assert!(
        ready.starts_with("HTTP/1.1 503") && ready.contains("No space left"),
        "{ready}"
    );
    assert!(ask(&admin, "/healthz").starts_with("HTTP/1.1 200"));
    let failures = || {
        let metrics = ask(&admin, "/metrics");
        let line = |l: &&str| l.starts_with("sluicegate_ledger_duty_failures_total ");
        let line = metrics.lines().find(line).expect("counted").to_owned();
        let number = line.rsplit(' ').next().and_then(|n| n.parse::<f64>().ok());
        assert!(metrics.contains("\nsluicegate_ledger_behind 1"), "{metrics}");
        number.expect("a number")
    };
    // More often than an actor may fail.
    node.until("it has tried again and again", || failures() > 12.0);
    let began = std::time::Instant::now();
    while began.elapsed() < std::time::Duration::from_secs(seconds) {
        assert!(node.is_running());
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let sent = counts(&mock).ids;
    node.until("it delivers while the disk is full", || {
        counts(&mock).ids > sent + 100
    });
    // It ends in order, and comes up again.
    node.signal(rustix::process::Signal::TERM);
    assert_eq!(node.end(), Some(0), "{}", node.said());
    assert!(node.said().contains("checkpoint_failed"), "{}", node.said());
    let mut node = rig.start(&[]);
    node.wait_for_admin();
    let sent = counts(&mock).ids;
    node.until("it delivers again", || counts(&mock).ids > sent + 50);
    node.until("it says so again", || !status()["ledger"]["behind"].is_null());
    std::fs::remove_file(&ballast).expect("room again");
    let room = std::time::Instant::now();
    node.until("it is well again", || {
        ask(&admin, "/readyz").starts_with("HTTP/1.1 200")
    });
    println!(
        "full for {:?}, well again {:?} after room was made",
        began.elapsed(),
        room.elapsed()
    );
    assert!(!long || room.elapsed() < std::time::Duration::from_secs(5));
    assert!(status()["ledger"]["behind"].is_null());
    node.until("all is delivered", || counts(&mock).ids == messages);
    assert_eq!(status()["node"]["restarts"]["ledger"].as_u64().unwrap_or(0), 0);
    node.signal(rustix::process::Signal::TERM);
    assert_eq!(node.end(), Some(0), "{}", node.said());
    let drained = rig.drain();
    assert_eq!(drained.counts(), (messages, 0, 0), "{}", drained.said);
    let seen = counts(&mock);
    assert_eq!((seen.requests, seen.order_violations), (messages, 0), "{seen:?}");
}
