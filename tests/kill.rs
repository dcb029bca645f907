//! The real binary, killed with SIGKILL in the middle of its work again and again, against a partner that counts.
//!
//! With `doubt = "park"` each message reaches the partner at most once; what is delivered and what is parked is all;
//! parked are no more than were in flight at the kills (I1, I2, I3), and the order of each key holds (I4).

use sluicegate::mock::{Behaviour, Field, Latency, Mock, MockOptions};
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const MESSAGES: u64 = 6_000;
const KILLS: u64 = 5;
const CONCURRENCY: u64 = 16;

fn sluicegate(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluicegate"));
    command.current_dir(dir).args(args).stdin(Stdio::null());
    command
}

fn node(dir: &Path) -> Child {
    let mut run = sluicegate(dir, &["run", "--until-drained", "--timeout", "100s"]);
    run.stderr(Stdio::piped()).spawn().expect("a node")
}

#[test]
fn killed_again_and_again_no_message_is_lost_or_sent_twice() {
    let dir = tempfile::tempdir().expect("a folder");
    let latency = "1ms..4ms".parse::<Latency>().expect("a latency");
    let behaviour = Behaviour {
        latency,
        ..Behaviour::default()
    };
    let mut options = MockOptions::on_free_port(behaviour);
    options.partners[0].key = Some("json:/user".parse::<Field>().expect("a field"));
    options.partners[0].seq = Some("json:/seq".parse::<Field>().expect("a field"));
    let mock = Mock::start(options).expect("a partner");
    let partner = |field: &str| {
        let report = serde_json::to_value(mock.report()).expect("a report");
        report["partners"][0][field]
            .as_u64()
            .unwrap_or_else(|| panic!("no {field} in {report}"))
    };
    let config = format!(
        "[listen]\nadmin = \"127.0.0.1:{}\"\n[partners.p]\nurl = \"http://{}/\"\nconcurrency = {CONCURRENCY}\n\
         [topics.t]\npartner = \"p\"\nid = \"json:/id\"\nkey = \"json:/user\"\n",
        free_port(),
        mock.addr()
    );
    std::fs::write(dir.path().join("actors.toml"), config).expect("written");
    let mut lines = String::new();
    for i in 0..MESSAGES {
        writeln!(lines, "{{\"id\":\"m{i}\",\"user\":\"u{}\",\"seq\":{i}}}", i % 97).expect("a line");
    }
    std::fs::write(dir.path().join("in.jsonl"), lines).expect("written");
    let import = sluicegate(dir.path(), &["import", "in.jsonl", "--topic", "t"])
        .output()
        .expect("an import");
    assert!(
        import.status.success(),
        "{}",
        String::from_utf8_lossy(&import.stderr)
    );

    for kill in 1..=KILLS {
        let mut node = node(dir.path());
        // Killed once it has done some work, at a moment of its own.
        let enough = MESSAGES * kill / (KILLS + 2) + fastrand::u64(..100);
        let patience = Instant::now() + Duration::from_secs(60);
        while partner("requests") < enough {
            assert!(
                Instant::now() < patience,
                "the node delivers nothing after kill {}",
                kill - 1
            );
            assert_eq!(
                node.try_wait().expect("its state"),
                None,
                "the node ended by itself"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        node.kill().expect("killed");
        node.wait().expect("its end");
    }
    let last = node(dir.path()).wait_with_output().expect("the last life");
    let said = String::from_utf8_lossy(&last.stderr);
    let summary = said.lines().last().unwrap_or_default();
    let numbers: Vec<u64> = summary
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|n| n.parse().ok())
        .collect();
    let [delivered, dead, parked] = numbers[..] else {
        panic!("no summary: {said}")
    };
    assert_eq!((delivered + parked, dead), (MESSAGES, 0), "{said}");
    assert!(parked <= KILLS * CONCURRENCY, "{parked} parked");
    assert_eq!(partner("ids_requested_again"), 0);
    assert_eq!(partner("order_violations"), 0);
    assert!(partner("ids") >= delivered);
    assert_eq!(
        last.status.code(),
        Some(if parked == 0 { 0 } else { 3 }),
        "{said}"
    );
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address").port()
}
