//! Orderly stops: what is in flight is waited for, nothing is left in doubt, and a second signal ends it at once.

use super::common::*;
use rustix::process::Signal;
use sluicegate::mock::Behaviour;

fn slow() -> Behaviour {
    Behaviour {
        latency: "50ms".parse().expect("a latency"),
        ..Behaviour::default()
    }
}

#[test]
fn sigterm_waits_for_what_is_in_flight_and_leaves_no_doubt() {
    for signal in [Signal::TERM, Signal::INT] {
        let mock = partner(slow());
        let rig = Rig::new(&config(&mock, "concurrency = 8", ""));
        rig.import("t", lines(0..200, 20));
        let mut node = rig.start(&[]);
        node.until("some requests", || counts(&mock).requests >= 20);
        node.signal(signal);
        assert_eq!(node.end(), Some(0), "{}", node.said());
        let seen = counts(&mock);
        assert!(seen.requests < 200, "it went on after the signal");
        // All that was sent is accounted for: the next life sends exactly the rest.
        let drained = rig.drain();
        assert_eq!(
            (drained.counts(), drained.code),
            ((200, 0, 0), Some(0)),
            "{}",
            drained.said
        );
        let seen = counts(&mock);
        assert_eq!((seen.requests, seen.ids, seen.order_violations), (200, 200, 0));
    }
}

#[test]
fn a_batch_that_is_told_to_stop_does_not_say_that_it_is_done() {
    let mock = partner(slow());
    let rig = Rig::new(&config(&mock, "concurrency = 8", ""));
    rig.import("t", lines(0..200, 20));
    let mut node = rig.start(&["--until-drained"]);
    node.until("some requests", || counts(&mock).requests >= 20);
    node.signal(Signal::TERM);
    let stopped = node.drained();
    assert_eq!(
        (stopped.code, stopped.dead, stopped.parked),
        (Some(1), 0, 0),
        "{}",
        stopped.said
    );
    assert_eq!(stopped.delivered, counts(&mock).requests, "{}", stopped.said);
    assert!(!stopped.said.contains("\ndrained: "), "{}", stopped.said);
}

#[test]
fn a_stop_does_not_wait_for_those_who_wait_for_a_slot() {
    // Ten keys, and a partner that wants to be left alone for an hour.
    let later = serde_json::json!({"faults": ["429"], "retry_after": "1h"});
    let mock = partner(Behaviour::default().changed(&later).expect("a behaviour"));
    let rig = Rig::new(&format!(
        "[node]\ndrain = \"1h\"\n{}",
        config(&mock, "concurrency = 2", "")
    ));
    rig.import("t", lines(0..100, 10));
    let mut node = rig.start(&[]);
    node.until("it has said so", || counts(&mock).statuses.contains_key(&429));
    node.signal(Signal::TERM);
    assert_eq!(node.end(), Some(0), "{}", node.said());
    assert_eq!(rig.list(&["doubt", "list"]).len(), 0);
}

#[test]
fn what_does_not_answer_within_the_drain_time_is_in_doubt() {
    let mock = partner(
        Behaviour::default()
            .changed(&serde_json::json!({"faults": ["hang"]}))
            .expect("hangs"),
    );
    let rig = Rig::new(&format!(
        "[node]\ndrain = \"300ms\"\n{}",
        config(&mock, "concurrency = 8", "")
    ));
    rig.import("t", lines(0..100, 20));
    let mut node = rig.start(&[]);
    node.until("all places are taken", || counts(&mock).requests == 8);
    node.signal(Signal::TERM);
    // Each is counted once, and whoever stopped it learns of them.
    assert_eq!(node.end(), Some(3), "{}", node.said());
    let said = node.said();
    assert!(
        said.contains("drain_over") && said.contains("\"in_hand\":8"),
        "{said}"
    );
    assert!(
        said.contains("in doubt: the outcome of 8 requests is not known"),
        "{said}"
    );
    mock.control("partner", &serde_json::json!({"faults": []}))
        .expect("it answers again");
    let drained = rig.drain();
    assert_eq!(drained.counts(), (92, 0, 8), "{}", drained.said);
    assert_eq!(counts(&mock).ids_requested_again, 0);
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mock = partner(
        Behaviour::default()
            .changed(&serde_json::json!({"faults": ["hang"]}))
            .expect("hangs"),
    );
    let rig = Rig::new(&format!(
        "[node]\ndrain = \"1h\"\n{}",
        config(&mock, "concurrency = 8\ntimeout = { request = \"1h\" }", "")
    ));
    rig.import("t", lines(0..100, 20));
    let mut node = rig.start(&[]);
    node.until("all places are taken", || counts(&mock).requests == 8);
    node.signal(Signal::TERM);
    let said = || {
        String::from_utf8_lossy(
            &rig.all_said()
                .into_iter()
                .map(|f| f.1)
                .collect::<Vec<_>>()
                .concat(),
        )
        .into_owned()
    };
    node.until("the stop has begun", || said().contains("draining"));
    node.signal(Signal::TERM);
    assert_eq!(node.end(), Some(130), "{}", node.said());
    mock.control("partner", &serde_json::json!({"faults": []}))
        .expect("it answers again");
    let drained = rig.drain();
    assert_eq!(drained.counts(), (92, 0, 8), "{}", drained.said);
}

#[test]
fn a_command_on_the_folder_does_not_keep_a_node_from_starting() {
    let mock = partner(Behaviour::default());
    let rig = Rig::new(&config(&mock, "", ""));
    rig.import("t", lines(0..50, 10));
    let folder = rig.path("data/log");
    let command = sluicegate::log::embedded::EmbeddedLog::open(&folder, Default::default())
        .expect("the folder is free");
    let mut node = rig.start(&["--until-drained"]);
    // Longer than it takes to start, and to find the folder taken.
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert!(node.is_running());
    drop(command);
    assert_eq!(node.drained().counts(), (50, 0, 0));
}

/// A client of the admin port is in the middle of a file when the node is told to stop. Half a file is no file: it must
/// not be in the topic, and the whole file imported afterwards must go out once.
#[test]
fn an_upload_that_a_stop_cuts_off_is_no_file() {
    use std::io::{Read, Write};
    let mock = partner(Behaviour::default());
    let url = mock.addr();
    // No ID: a line goes by its position, and would go out again from another file.
    let text = format!("\n[partners.p]\nurl = \"http://{url}/\"\n[topics.t]\npartner = \"p\"\n");
    let whole = lines(0..2_000, 20);
    let half = &whole[..whole.len() / 2];
    let mut sent = 0;
    for framing in [
        format!("content-length: {}", whole.len()),
        "transfer-encoding: chunked".into(),
    ] {
        let rig = Rig::new("");
        let admin = rig.configure_with(&text);
        let mut node = rig.start(&[]);
        node.wait_for_admin();
        let mut upload = std::net::TcpStream::connect(&admin).expect("the admin port");
        let chunked = framing.starts_with("transfer");
        let head = format!(
            "POST /api/import?topic=t&name=day.jsonl HTTP/1.1\r\nhost: {admin}\r\ncontent-type: application/octet-stream\r\n{framing}\r\n\r\n"
        );
        upload.write_all(head.as_bytes()).expect("the head is sent");
        if chunked {
            write!(upload, "{:x}\r\n{half}\r\n", half.len()).expect("a half is sent");
        } else {
            upload.write_all(half.as_bytes()).expect("a half is sent");
        }
        // The node has begun to take it in.
        let spool = rig.path("data/spool");
        node.until("the spool", || {
            std::fs::read_dir(&spool).is_ok_and(|mut files| {
                files.any(|f| f.is_ok_and(|f| f.metadata().is_ok_and(|m| m.len() > 0)))
            })
        });
        node.signal(Signal::TERM);
        assert_eq!(node.end(), Some(0), "{}", node.said());
        let mut answer = String::new();
        upload.read_to_string(&mut answer).expect("an answer");
        assert!(
            answer.starts_with("HTTP/1.1 503") && answer.contains("stopping"),
            "{answer}"
        );
        assert_eq!(counts(&mock).requests, sent, "half a file went out");
        rig.import("t", &whole);
        let drained = rig.drain();
        assert_eq!(
            (drained.counts(), drained.code),
            ((2_000, 0, 0), Some(0)),
            "{}",
            drained.said
        );
        sent += 2_000;
        assert_eq!(counts(&mock).requests, sent, "lines went out twice");
    }
}

/// What restarts containers asks whether the node is alive: one that drains is, and takes nothing more. A node that is gone is not,
/// although its folder can be asked for its status.
#[test]
fn a_node_that_drains_is_alive_and_not_ready() {
    let rules = serde_json::json!({"rules": ["id=* hang"]});
    let mock = partner(Behaviour::default().changed(&rules).expect("a behaviour"));
    let rig = Rig::new("");
    let probes = format!("127.0.0.1:{}", free_port());
    rig.configure_with(&format!(
        "probes = \"{probes}\"\n[node]\ndrain = \"100s\"\n{}",
        config(&mock, "", "")
    ));
    let mut node = rig.start(&[]);
    node.wait_for_admin();
    let ends = |at: &[&str]| {
        let ends = [["health", "--json"].as_slice(), &["health", "--ready", "--json"]];
        ends.map(|args| rig.call(&[at, args].concat()).status.code())
    };
    // The port of the configuration, and that of the probes.
    let asked = || {
        let both = [ends(&[]), ends(&["--admin", &probes])];
        if both[0] == both[1] { both[0] } else { [None, None] }
    };
    node.until("alive and ready", || asked() == [Some(0), Some(0)]);
    rig.import("t", lines(0..1, 1));
    node.until("a request is out", || counts(&mock).requests == 1);
    node.signal(rustix::process::Signal::TERM);
    node.until("alive, and not ready", || asked() == [Some(0), Some(1)]);
    let told = rig.call(&["health", "--ready"]);
    let told = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(told.contains("error: not ready: draining"), "{told}");
    // A mistake in a file that the node has not read says nothing of it.
    let file = rig.path("actors.toml");
    let good = std::fs::read_to_string(&file).expect("the configuration");
    std::fs::write(&file, good.replace("drain =", "drian =")).expect("written");
    assert_eq!(ends(&["--admin", &probes]), [Some(0), Some(1)]);
    std::fs::write(&file, good).expect("written");
    node.kill();
    assert_eq!(asked(), [Some(1), Some(1)]);
    rig.ok(&["status"]);
}
