//! Measures how long a node's folder takes to open, before anything is delivered:
//! `cargo run --profile quick --example bench_open -- [--messages 1000000] [--dir FOLDER] [--json]`
//!
//! Three folders: a fresh one; one of a node that was killed with many entries behind its last checkpoint; the same
//! after an orderly end. The node's bar is 0.5 s from the start of the process to the first delivery; opening is to
//! take less than 0.2 s of it.

mod support;

use sluicegate::app::{open, open_log};
use sluicegate::clock::Clock;
use sluicegate::config::Config;
use std::path::{Path, PathBuf};
use std::time::Instant;
use support::{Failure, Feeder, configuration};

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

/// Delivers messages as far as the ledger is concerned; the first half stands before a checkpoint. Then it is killed.
fn fill(data: &Path, messages: u64) -> Result<(), Failure> {
    let (config, clock) = (configuration(data)?, Clock::start());
    let opened = open(&config, clock)?;
    let feeder = Feeder::new(&opened, clock);
    for from in (0..messages).step_by(500) {
        let (base, entries) = feeder.append(from..(from + 500).min(messages))?;
        opened.keeper.fold_entries(base, &entries)?;
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
