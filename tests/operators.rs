//! The operators' verbs, as the real binary, on the folder of a stopped node and through an admin port.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use serde_json::Value;
use sluicegate::admin::{self, AdminOptions, AdminServer, Answer, Exported, Lines, NodeApi, Upload};
use sluicegate::api::*;
use sluicegate::app::{Offline, open_log};
use sluicegate::clock::Clock;
use sluicegate::config::{self, Config};
use sluicegate::core::ledger::entry::*;
use sluicegate::core::message_id::{IdScope, route_id};
use sluicegate::core::record::{Headers, SOURCE_HEADER};
use sluicegate::core::types::*;
use sluicegate::intake::topic_spec;
use sluicegate::ledger::desk::carry_out::Carrier;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

fn actors_toml(dir: &Path, admin: &str) -> std::path::PathBuf {
    let text = format!(
        r#"
[node]
id = "n1"
data = "{}"
[listen]
admin = "{admin}"
[log]
segment = "1MiB"
[partners.acme]
url = "http://127.0.0.1:9/hook"
limits = ["50/s"]
mask = ["card"]
[topics.orders]
partner = "acme"
partitions = 1
id = "json:/id"
"#,
        dir.join("data").display()
    );
    let file = dir.join("actors.toml");
    std::fs::write(&file, text).unwrap();
    file
}

fn load(file: &Path) -> Arc<Config> {
    Arc::new(
        config::load(&[file.to_owned()], std::iter::empty())
            .unwrap()
            .config,
    )
}

fn kept(n: u64, id: MessageId, reason: &str) -> Box<Kept> {
    Box::new(Kept {
        key: KeyHash(n),
        record_key: Some(Bytes::from(format!("user-{n}"))),
        timestamp: Clock::wall(),
        value: Bytes::from(format!(r#"{{"id":"order-{n}","card":"4111-{n}"}}"#)),
        headers: Headers::encode([(SOURCE_HEADER, format!("day.jsonl:{n}").as_bytes())]),
        readable: format!("order-{n}"),
        idempotency_key: id.to_string(),
        reason: reason.into(),
        answer: r#"{"error":"no"}"#.into(),
        first_try: Clock::wall(),
        dropped: false,
    })
}

/// Messages 1 to 3 delivered, 4 and 5 dead, 6 parked.
fn fill(folder: &Offline, topic_id: TopicId) {
    let at = RoutePartition {
        route: route_id("orders", topic_id, "acme"),
        partition: 0,
    };
    let mut entries = vec![
        Body::Route(RouteInfo {
            route: at.route,
            topic: "orders".into(),
            topic_id,
            partner: "acme".into(),
        }),
        Body::Position(Position {
            at,
            leader_epoch: 0,
            position: 0,
            finished: vec![],
            high_water: 0,
        }),
    ];
    for n in 1..=6u64 {
        let id = IdScope::new("orders", topic_id, 0, "acme").id(&[format!("order-{n}").as_bytes()]);
        entries.push(Body::Intent(Intent {
            at,
            id,
            key: KeyHash(n),
            offset: n,
            round: 1,
            attempt: 1,
            first_try: Clock::wall(),
            slot: Clock::wall(),
            budgets: Default::default(),
            life: LifeId(1),
            lease_ms: 10_000,
            timeout_ms: 10_000,
        }));
        let (status, kind) = match n {
            1..=3 => (
                200,
                OutcomeKind::Delivered {
                    readable: Bytes::from(format!("order-{n}")),
                },
            ),
            4 => (422, OutcomeKind::Dead(kept(n, id, "refused: 422 email"))),
            5 => (404, OutcomeKind::Dead(kept(n, id, "refused: 404 user"))),
            _ => (0, OutcomeKind::Parked(kept(n, id, "timeout: no answer"))),
        };
        entries.push(Body::Outcome(Outcome {
            at,
            id,
            offset: n,
            round: 1,
            attempts: 1,
            when: Clock::wall(),
            life: LifeId(1),
            status,
            kind,
        }));
    }
    folder.write(entries).unwrap();
}

/// Held while a process is started, and while a folder is opened and closed in this one: between fork and exec a child
/// has the descriptors of all its parent's threads, the lock of a folder among them.
static FORKING: Mutex<()> = Mutex::new(());

fn no_fork() -> MutexGuard<'static, ()> {
    FORKING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes what `run` would leave: its topic, and in the ledger what became of the topic's messages.
fn prepared(dir: &Path, admin: &str) -> std::path::PathBuf {
    let file = actors_toml(dir, admin);
    let config = load(&file);
    let _guard = no_fork();
    let log = open_log(&config).unwrap();
    let spec = topic_spec(&config, &config.topics["orders"]);
    let topic_id = log.create_topic("orders", &spec).unwrap().id;
    log.close().unwrap();
    drop(log);
    let folder = Offline::open(config, &[]).unwrap();
    fill(&folder, topic_id);
    folder.close().unwrap();
    file
}

struct Cli<'a> {
    file: &'a Path,
    env: Vec<(&'a str, &'a str)>,
}

impl Cli<'_> {
    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluicegate"));
        command
            .env_clear()
            .env("USER", "kim")
            .arg("--config")
            .arg(self.file)
            .args(args);
        command.envs(self.env.iter().copied());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let guard = no_fork();
        let child = command.spawn().unwrap();
        drop(guard);
        child.wait_with_output().unwrap()
    }
    fn text(&self, args: &[&str]) -> String {
        let out = self.run(args);
        assert!(
            out.status.success(),
            "{args:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8(out.stdout).unwrap()
    }
    fn json(&self, args: &[&str]) -> Vec<Value> {
        let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        self.text(&args)
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect()
    }
}

fn has(value: &Value, fields: &[&str]) {
    fields
        .iter()
        .for_each(|f| assert!(value.get(f).is_some(), "{f} is missing in {value}"));
}

/// Every verb once, in an order in which each finds what it needs.
fn all_verbs(cli: &Cli<'_>, dir: &Path) {
    let status = &cli.json(&["status"])[0];
    has(
        &status["topics"][0],
        &["topic", "partner", "partition", "lag", "oldest_age_ms", "owner"],
    );
    has(
        &status["partners"][0],
        &["partner", "delivered", "in_flight", "breaker", "eta_s"],
    );
    assert_eq!(status["partners"][0]["delivered"], 3);
    assert_eq!(status["topics"][0]["owner"], "n1");
    assert!(cli.text(&["status"]).contains("acme"));

    let listed = [
        "id",
        "partner",
        "topic",
        "partition",
        "offset",
        "key",
        "reason",
        "attempts",
        "last_status",
        "source",
    ];
    let dead = cli.json(&["dead", "list"]);
    assert_eq!(dead.len(), 2);
    has(&dead[0], &listed);
    assert_eq!(dead[0]["id"], "order-4");
    assert_eq!(dead[0]["source"], "day.jsonl:4");
    let doubt = cli.json(&["doubt", "list"]);
    assert_eq!(doubt.len(), 1);
    has(&doubt[0], &listed);
    assert_eq!(cli.json(&["dead", "list", "--reason", "refused: 404"]).len(), 1);

    let shown = cli.text(&["dead", "show", "order-4"]);
    assert!(shown.contains("order-4") && !shown.contains("4111-4"), "{shown}");
    assert!(cli.text(&["dead", "show", "order-4", "--raw"]).contains("4111-4"));

    let got = cli.json(&["dedup", "get", "order-1"]);
    has(&got[0], &["id", "partner", "state", "at"]);
    assert_eq!((&got[0]["state"], got.len()), (&Value::from("delivered"), 1));
    assert_eq!(cli.json(&["dedup", "get", "order-99"])[0]["state"], "absent");
    assert_eq!(cli.json(&["dedup", "get", "order-6"])[0]["state"], "parked");
    assert!(cli.json(&["dedup", "list"]).len() >= 3);
    assert_eq!(cli.json(&["dedup", "stats"])[0]["messages"][0]["partner"], "acme");

    let story = cli.text(&["message", "order-4"]);
    assert!(
        story.contains("day.jsonl:4") && story.contains("refused: 422"),
        "{story}"
    );
    assert!(story.lines().count() <= 10, "{story}");
    assert_eq!(cli.run(&["message", "order-99"]).status.code(), Some(1));

    let would = cli.text(&["dead", "replay", "--all", "--dry-run"]);
    assert!(would.contains("would touch 2 messages"), "{would}");
    assert_eq!(cli.json(&["dead", "list"]).len(), 2, "a dry run does nothing");
    let did = &cli.json(&["dead", "replay", "order-4", "--because", "mended"])[0];
    assert_eq!(did["touched"], 1);
    assert_eq!(cli.json(&["dedup", "get", "order-4"])[0]["state"], "waiting");
    assert_eq!(
        cli.run(&["dead", "replay", "order-4"]).status.code(),
        Some(1),
        "it waits already"
    );
    assert_eq!(
        cli.run(&["dead", "replay"]).status.code(),
        Some(2),
        "nothing is named"
    );
    assert_eq!(
        cli.json(&["dead", "drop", "--reason", "/40[0-9]/"])[0]["touched"],
        1
    );
    assert!(cli.json(&["dead", "list"]).is_empty());

    assert_eq!(cli.json(&["doubt", "confirm", "order-6"])[0]["touched"], 1);
    assert_eq!(cli.json(&["dedup", "get", "order-6"])[0]["state"], "delivered");
    assert_eq!(
        cli.json(&["dedup", "forget", "order-1", "--because", "test"])[0]["touched"],
        1
    );
    assert_eq!(cli.json(&["dedup", "get", "order-1"])[0]["state"], "absent");
    assert_eq!(cli.json(&["dedup", "mark", "order-1"])[0]["touched"], 1);
    assert_eq!(cli.json(&["dedup", "get", "order-1"])[0]["state"], "delivered");

    let export = dir.join("ids.jsonl");
    cli.text(&["dedup", "export", export.to_str().unwrap()]);
    let lines = std::fs::read_to_string(&export).unwrap();
    assert!(lines.contains("order-2"), "{lines}");
    let again = &cli.json(&["dedup", "import", export.to_str().unwrap()])[0];
    assert_eq!(again["touched"], 0, "all of them are known");

    let add = [
        "skip",
        "add",
        "--topic",
        "orders",
        "--key",
        "user-9",
        "--because",
        "flood",
        "--expires",
        "2h",
    ];
    cli.text(&add);
    let rules = cli.json(&["skip", "list"]);
    assert_eq!((rules.len(), &rules[0]["key"]), (1, &Value::from("user-9")));
    let rule = rules[0]["rule"].to_string();
    cli.text(&["skip", "remove", &rule]);
    assert!(cli.json(&["skip", "list"]).is_empty());

    cli.text(&["partners", "pause", "acme", "--because", "they asked"]);
    let partner = &cli.json(&["partners", "show", "acme"])[0];
    assert_eq!(partner["paused"], "they asked");
    assert!(cli.text(&["partners", "list"]).contains("paused: they asked"));
    cli.text(&["partners", "resume", "acme"]);
    assert_eq!(cli.json(&["partners", "list"])[0]["paused"], Value::Null);
    let unknown = cli.run(&["partners", "show", "acne"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("did you mean `acme`"));
}

#[test]
fn on_the_folder_of_a_stopped_node() {
    let dir = tempfile::tempdir().unwrap();
    // Nobody listens on port 1.
    let file = prepared(dir.path(), "127.0.0.1:1");
    let cli = Cli {
        file: &file,
        env: Vec::new(),
    };
    all_verbs(&cli, dir.path());
    let test = cli.run(&["partners", "test", "acme"]);
    assert!(String::from_utf8_lossy(&test.stderr).contains("check --connect"));
}

/// On a folder that no node has run on, `dedup mark` makes the topics that the configuration names. What it shows first, and a
/// dry run, count them already, and make none.
#[test]
fn marks_count_topics_that_they_will_make() {
    let dir = tempfile::tempdir().unwrap();
    let file = actors_toml(dir.path(), "127.0.0.1:1");
    let mut text = std::fs::read_to_string(&file).unwrap();
    text.push_str("[topics.returns]\npartner = \"acme\"\npartitions = 3\nid = \"json:/id\"\n");
    std::fs::write(&file, text).unwrap();
    std::fs::create_dir_all(dir.path().join("data/log")).unwrap();
    let cli = Cli {
        file: &file,
        env: Vec::new(),
    };
    let topics = || {
        let _guard = no_fork();
        let log = open_log(&load(&file)).unwrap();
        let names = log.topics().into_iter().map(|topic| topic.name);
        let names: Vec<_> = names.filter(|name| !name.starts_with("__")).collect();
        log.close().unwrap();
        names
    };
    let would = &cli.json(&["dedup", "mark", "a", "--dry-run"])[0];
    assert_eq!((&would["touched"], topics().len()), (&Value::from(4), 0));
    let did = &cli.json(&["dedup", "mark", "a", "--topic", "returns"])[0];
    assert_eq!(
        (&did["touched"], topics().len()),
        (&Value::from(3), 1),
        "the other one is not meant"
    );
    assert_eq!(cli.json(&["dedup", "mark", "b"])[0]["touched"], 4);
    assert_eq!(topics().len(), 2);
    let again = cli.run(&["dedup", "mark", "b"]);
    assert_eq!(again.status.code(), Some(1), "it is marked already");
}

#[test]
fn a_folder_that_is_in_use_or_missing_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let file = actors_toml(dir.path(), "127.0.0.1:1");
    let cli = Cli {
        file: &file,
        env: Vec::new(),
    };
    let missing = String::from_utf8(cli.run(&["dead", "list"]).stderr).unwrap();
    assert!(missing.contains("no data of one"), "{missing}");
    assert!(!dir.path().join("data").exists(), "a question makes no folder");
    prepared(dir.path(), "127.0.0.1:1");
    let _held = Offline::open(load(&file), &[]).unwrap();
    let busy = String::from_utf8(cli.run(&["dead", "list"]).stderr).unwrap();
    assert!(
        busy.contains("has this folder open") && busy.contains("127.0.0.1:1"),
        "{busy}"
    );
}

/// A node whose actors are asleep: the real desk behind the real admin port.
struct Sleeping(Offline);

fn now<T: Send + 'static>(answer: Result<T, ApiError>) -> Answer<T> {
    Box::pin(std::future::ready(answer))
}

impl NodeApi for Sleeping {
    fn status(&self) -> Answer<Status> {
        now(Ok(self.0.status()))
    }
    fn query(&self, query: Query) -> Answer<Reply> {
        now(self.0.query(&query))
    }
    fn order(&self, order: OrderRequest) -> Answer<OrderReport> {
        now(self.0.order(&order))
    }
    fn export(&self, filter: Filter) -> Answer<Lines> {
        let (tx, rx) = tokio::sync::mpsc::channel(10_000);
        let sent = self
            .0
            .export(&filter, &mut |line| match tx.try_send(Ok(Exported::Line(line))) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            });
        now(sent.map(|()| {
            tx.try_send(Ok(Exported::End)).expect("there is room");
            rx
        }))
    }
    fn import(&self, _: ImportRequest, _: Upload) -> Answer<ImportReport> {
        now(Err(ApiError::Unavailable("asleep".into())))
    }
    fn send(&self, _: SendRequest) -> Answer<SendReply> {
        now(Err(ApiError::Unavailable("asleep".into())))
    }
    fn test_partner(&self, _: String) -> Answer<PartnerTest> {
        now(Err(ApiError::Unavailable("asleep".into())))
    }
    fn metrics(&self) -> Answer<String> {
        now(Ok(String::new()))
    }
    fn set_log_level(&self, _: String) -> Result<(), ApiError> {
        Ok(())
    }
    fn health(&self) -> Health {
        Health::good()
    }
    fn ready(&self) -> Health {
        Health::good()
    }
}

fn serve(file: &Path, token: &str) -> AdminServer {
    let folder = Offline::open(load(file), &[]).unwrap();
    let options = AdminOptions {
        admin: Some("127.0.0.1:0".parse().unwrap()),
        probes: None,
        token: Some(token.to_owned()),
    };
    admin::serve(options, Arc::new(Sleeping(folder))).unwrap()
}

#[test]
fn through_the_admin_port_of_a_node() {
    let dir = tempfile::tempdir().unwrap();
    let file = prepared(dir.path(), "127.0.0.1:1");
    let server = serve(&file, "t0ken");
    let admin = server.admin().unwrap().to_string();
    let stranger = Cli {
        file: &file,
        env: vec![("SLUICEGATE_ADMIN", &admin)],
    };
    let refused = String::from_utf8(stranger.run(&["dead", "list"]).stderr).unwrap();
    assert!(refused.contains("SLUICEGATE_TOKEN"), "{refused}");
    let cli = Cli {
        file: &file,
        env: vec![("SLUICEGATE_ADMIN", &admin), ("SLUICEGATE_TOKEN", "t0ken")],
    };
    all_verbs(&cli, dir.path());
    let out = cli.run(&["partners", "test", "acme"]);
    assert!(String::from_utf8_lossy(&out.stderr).contains("asleep"));
}
