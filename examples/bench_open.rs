//! Measures how long a node's folder takes to open, before anything is delivered:
//! `cargo run --profile quick --example bench_open -- [--messages 1000000] [--dir FOLDER] [--json]`
//!
//! Three folders: a fresh one; one of a node that was killed with many entries behind its last checkpoint; the same
//! after an orderly end. The node's bar is 0.5 s from the start of the process to the first delivery; opening is to
//! take less than 0.2 s of it.

use sluicegate::app::{open, open_log};
use sluicegate::clock::Clock;
use sluicegate::config::{self, Config};
use sluicegate::core::ledger::codec;
use sluicegate::core::ledger::entry::{Body, Entry, Intent, Outcome, OutcomeKind};
use sluicegate::core::types::{KeyHash, MessageId, RouteId, RoutePartition};
use sluicegate::log::{Batch, LogError};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Instant;

type Failure = Box<dyn Error>;
/// Set for the process that fills a folder and is killed by its own abort.
const FILL: &str = "SLUICEGATE_BENCH_OPEN_FILL";
/// Opening is to take no longer, in milliseconds.
const LIMIT_MS: f64 = 200.0;
/// How often each folder is opened.
const TIMES: usize = 5;

struct Args {
    messages: u64,
    dir: PathBuf,
    json: bool,
}

fn args() -> Result<Args, Failure> {
    let mut out = Args {
        messages: 1_000_000,
        dir: std::env::temp_dir(),
        json: false,
    };
    let mut given = std::env::args().skip(1);
    while let Some(arg) = given.next() {
        let mut value = || given.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--messages" => out.messages = value()?.parse()?,
            "--dir" => out.dir = value()?.into(),
            "--json" => out.json = true,
            _ => return Err(format!("unknown argument {arg}").into()),
        }
    }
    Ok(out)
}

fn configuration(data: &Path) -> Result<Config, Failure> {
    let file = data.with_extension("toml");
    let text = format!(
        "[node]\ndata = {data:?}\n[partners.p]\nurl = \"http://127.0.0.1:1/\"\n[topics.t]\npartner = \"p\"\n"
    );
    std::fs::write(&file, text)?;
    match config::load(&[file], std::iter::empty()) {
        Ok(loaded) => Ok(loaded.config),
        Err(findings) => Err(format!("{findings:?}").into()),
    }
}

/// Intent and outcome of a message, as a node writes them.
fn entries(n: u64, clock: Clock) -> [Body; 2] {
    let at = RoutePartition {
        route: RouteId(7),
        partition: (n % 4) as u32,
    };
    let mut id = [0; 16];
    fastrand::Rng::with_seed(n).fill(&mut id);
    let (id, now) = (MessageId(id), clock.now());
    let intent = Intent {
        at,
        id,
        key: KeyHash(n % 10_000),
        offset: n / 4,
        round: 1,
        attempt: 1,
        first_try: now,
        slot: now,
        budgets: Default::default(),
        life: Default::default(),
        lease_ms: 10_000,
        timeout_ms: 10_000,
    };
    let outcome = Outcome {
        at,
        id,
        offset: n / 4,
        round: 1,
        attempts: 1,
        when: now,
        life: Default::default(),
        status: 200,
        kind: OutcomeKind::Delivered {
            readable: format!("message-{n}").into_bytes().into(),
        },
    };
    [Body::Intent(intent), Body::Outcome(outcome)]
}

/// Delivers messages as far as the ledger is concerned; the first half stands before a checkpoint. Then it is killed.
fn fill(data: &Path, messages: u64) -> Result<(), Failure> {
    let (config, clock) = (configuration(data)?, Clock::start());
    let opened = open(&config, clock)?;
    let (tell, told) = mpsc::sync_channel::<Result<(u64, Vec<Entry>), LogError>>(64);
    for from in (0..messages).step_by(500) {
        let (mut batch, mut held, mut bytes) = (Batch::new(), Vec::new(), Vec::new());
        for body in (from..(from + 500).min(messages)).flat_map(|n| entries(n, clock)) {
            let entry = Entry {
                tenure: opened.tenure,
                body,
            };
            bytes.clear();
            codec::encode(&entry, &mut bytes);
            batch.push(opened.lane, clock.now(), None, &bytes, &[]);
            held.push(entry);
        }
        let tell = tell.clone();
        let done = move |result: Result<sluicegate::log::Appended, LogError>| {
            // The receiver waits below.
            let _ = tell.send(result.map(|a| (a.bases.first().map_or(0, |b| b.1), held)));
        };
        opened.log.append(batch, Box::new(done));
        let (base, held) = told.recv()??;
        opened.keeper.fold_entries(base, &held)?;
        if from + 500 >= messages / 2 && from < messages / 2 {
            opened.keeper.checkpoint()?;
        }
    }
    // As kill -9: nothing is closed.
    std::process::abort()
}

/// What opening took, in milliseconds.
struct Took {
    log: f64,
    all: f64,
    folded: u64,
}

fn time(config: &Config, orderly: bool) -> Result<Took, Failure> {
    let began = Instant::now();
    open_log(config)?.close()?;
    let log = began.elapsed().as_secs_f64() * 1e3;
    let began = Instant::now();
    let opened = open(config, Clock::start())?;
    let all = began.elapsed().as_secs_f64() * 1e3;
    if orderly {
        opened.keeper.checkpoint()?;
    }
    opened.log.close()?;
    Ok(Took {
        log,
        all,
        folded: opened.report.entries,
    })
}

fn main() -> Result<(), Failure> {
    let args = args()?;
    if let Some(data) = std::env::var_os(FILL) {
        return fill(Path::new(&data), args.messages);
    }
    let folder = tempfile::tempdir_in(&args.dir)?;
    let mut rows: Vec<(&str, Vec<Took>)> = Vec::new();
    let mut fresh = Vec::new();
    for n in 0..TIMES {
        let config = configuration(&folder.path().join(format!("fresh-{n}")))?;
        let began = Instant::now();
        let opened = open(&config, Clock::start())?;
        let all = began.elapsed().as_secs_f64() * 1e3;
        opened.log.close()?;
        drop(opened);
        // Of the log alone: in a folder of its own.
        let config = configuration(&folder.path().join(format!("fresh-log-{n}")))?;
        let began = Instant::now();
        let log = open_log(&config)?;
        let took = began.elapsed().as_secs_f64() * 1e3;
        log.close()?;
        fresh.push(Took {
            log: took,
            all,
            folded: 0,
        });
    }
    rows.push(("fresh folder", fresh));
    let data = folder.path().join("used");
    let ended = std::process::Command::new(std::env::current_exe()?)
        .args(["--messages", &args.messages.to_string()])
        .env(FILL, &data)
        .status()?;
    if ended.code().is_some() {
        return Err(format!("filling the folder ended with {ended}").into());
    }
    let config = configuration(&data)?;
    rows.push((
        "killed, half of it behind the checkpoint",
        vec![time(&config, true)?],
    ));
    let orderly: Result<Vec<Took>, Failure> = (0..TIMES).map(|_| time(&config, true)).collect();
    rows.push(("after an orderly end", orderly?));
    if !args.json {
        println!(
            "{} messages delivered; milliseconds; median of {TIMES} where there are so many",
            args.messages
        );
        println!(
            "{:<42} {:>8} {:>8} {:>9} {:>8}  entries folded",
            "folder", "log", "all", "worst", "limit"
        );
    }
    for (name, mut took) in rows {
        took.sort_by(|a, b| a.all.total_cmp(&b.all));
        let (Some(median), Some(worst)) = (took.get(took.len() / 2), took.last()) else {
            continue;
        };
        if args.json {
            println!(
                "{}",
                serde_json::json!({ "folder": name, "log_ms": median.log, "all_ms": median.all,
                    "worst_ms": worst.all, "limit_ms": LIMIT_MS, "folded": median.folded })
            );
        } else {
            println!(
                "{name:<42} {:>8.1} {:>8.1} {:>9.1} {LIMIT_MS:>8.0}  {}{}",
                median.log,
                median.all,
                worst.all,
                median.folded,
                if median.all > LIMIT_MS { "  MISSED" } else { "" }
            );
        }
    }
    Ok(())
}
