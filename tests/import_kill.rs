//! Import with the real binary on the real log: killed at any time and run again, each line is there once.

use sluicegate::log::Log;
use sluicegate::log::embedded::{EmbeddedLog, EmbeddedOptions};
use std::collections::HashMap;
use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const LINES: usize = 60_000;

fn import(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluicegate"));
    command.args(["import", "--topic", "t", "--quiet", "--json", "a.jsonl"]);
    command.current_dir(folder).env_remove("SLUICEGATE_ADMIN");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Kills to make; more with SLUICEGATE_KILLS.
fn kills() -> u32 {
    std::env::var("SLUICEGATE_KILLS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(8)
}

#[test]
fn killed_at_any_time_and_run_again_each_line_is_there_once() {
    let folder = tempfile::tempdir().expect("folder");
    let mut text = String::new();
    for i in 0..LINES {
        let _ = writeln!(text, "{{\"id\":{i},\"pad\":\"{}\"}}", "x".repeat(150));
    }
    std::fs::write(folder.path().join("a.jsonl"), &text).expect("write");
    // A port that nobody listens on: the folder of a stopped node is meant.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|l| l.local_addr())
        .expect("port")
        .port();
    let config = format!(
        "[listen]\nadmin = \"127.0.0.1:{port}\"\n[log]\nsegment = \"4MiB\"\n[partners.p]\nurl = \"http://127.0.0.1:1/\"\n[topics.t]\npartner = \"p\"\nid = \"json:/id\"\n"
    );
    std::fs::write(folder.path().join("actors.toml"), config).expect("write");

    // How long a whole import takes here, in a folder of its own.
    let trial = tempfile::tempdir().expect("folder");
    for name in ["a.jsonl", "actors.toml"] {
        std::fs::copy(folder.path().join(name), trial.path().join(name)).expect("copy");
    }
    let begun = Instant::now();
    let whole = import(trial.path()).output().expect("run");
    assert!(
        whole.status.success(),
        "{}",
        String::from_utf8_lossy(&whole.stderr)
    );
    let whole = begun.elapsed();

    let mut ended_early = 0;
    for kill in 0..kills() {
        let mut child = import(folder.path()).spawn().expect("run");
        // Spread over the whole run, the commit at its end included.
        let after = whole.mul_f64(f64::from(kill + 1) / f64::from(kills()));
        let begun = Instant::now();
        while begun.elapsed() < after && child.try_wait().expect("wait").is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        ended_early += u32::from(child.try_wait().expect("wait").is_none());
        child.kill().expect("kill");
        child.wait().expect("wait");
    }
    assert!(ended_early > 0, "no kill hit a running import");
    let last = import(folder.path()).output().expect("run");
    assert!(last.status.success(), "{}", String::from_utf8_lossy(&last.stderr));
    let again = import(folder.path()).output().expect("run");
    let report: serde_json::Value = serde_json::from_slice(&again.stdout).expect("report");
    assert_eq!(report["known"], true);
    assert_eq!(report["accepted"], LINES);

    let options = EmbeddedOptions {
        segment_bytes: 4 << 20,
        ..EmbeddedOptions::default()
    };
    let log = EmbeddedLog::open(&folder.path().join("data/log"), options).expect("open");
    let mut counts: HashMap<String, u32> = HashMap::new();
    for partition in log.topic("t").expect("topic").partitions {
        let (mut next, end) = log.bounds(partition).map(|b| (b.first, b.next)).expect("bounds");
        while next < end {
            let mut records = Vec::new();
            next = log.read(partition, next, 1 << 20, &mut records).expect("read");
            for record in records {
                *counts
                    .entry(String::from_utf8_lossy(&record.value).into_owned())
                    .or_default() += 1;
            }
        }
    }
    assert_eq!(counts.len(), LINES);
    assert!(counts.values().all(|n| *n == 1));
    assert!(text.lines().all(|line| counts.contains_key(line)));
    log.close().expect("close");
}
