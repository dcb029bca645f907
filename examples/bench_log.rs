//! Measures the embedded log beside the disk it stands on, in one run:
//! `cargo run --profile quick --example bench_log -- [--json] [--dir FOLDER] [--seconds N] [--records N]
//! [--messages N]`
//!
//! The first row is what the disk gives: 4 KiB written and fdatasync'ed again and again into a zero-filled file.
//! The last rows say how many bytes reach the disk for each delivered message, as the system counts them
//! (`write_bytes`): intent and outcome in the ledger, then what the dedup store and a checkpoint add to them.
//! Group commit: entries of 70 bytes, a fixed number of them on their way, each sent again by its own callback.

mod support;

use sluicegate::app;
use sluicegate::clock::Clock;
use sluicegate::core::types::Time;
use sluicegate::log::embedded::{EmbeddedLog, EmbeddedOptions};
use sluicegate::log::{Batch, Log, PartitionId, TopicSpec};
use std::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};
use support::{Feeder, configuration};

struct Args {
    json: bool,
    dir: PathBuf,
    seconds: u64,
    records: u64,
    messages: u64,
}

fn args() -> Result<Args, Box<dyn Error>> {
    let mut out = Args {
        json: false,
        dir: std::env::temp_dir(),
        seconds: 2,
        records: 1_000_000,
        messages: 500_000,
    };
    let mut given = std::env::args().skip(1);
    while let Some(arg) = given.next() {
        let mut value = || given.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--json" => out.json = true,
            "--dir" => out.dir = value()?.into(),
            "--seconds" => out.seconds = value()?.parse()?,
            "--records" => out.records = value()?.parse()?,
            "--messages" => out.messages = value()?.parse()?,
            _ => return Err(format!("unknown argument {arg}").into()),
        }
    }
    Ok(out)
}

/// One line of the table.
#[derive(Default)]
struct Row {
    name: String,
    /// Entries, records or syncs a second.
    rate: f64,
    commits: f64,
    p50_us: f64,
    p99_us: f64,
    mib_s: f64,
}

impl Row {
    fn print(&self, json: bool) {
        let Row {
            name,
            rate,
            commits,
            p50_us,
            p99_us,
            mib_s,
        } = self;
        if json {
            let line = serde_json::json!({
                "name": name, "per_s": rate.round(), "commits_per_s": commits.round(),
                "p50_us": p50_us.round(), "p99_us": p99_us.round(), "mib_per_s": mib_s.round(),
            });
            println!("{line}");
        } else {
            println!("{name:<52} {rate:>11.0} {commits:>10.0} {p50_us:>8.0} {p99_us:>8.0} {mib_s:>7.0}");
        }
    }
}

fn percentile(sorted: &[u32], share: f64) -> f64 {
    let at = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(0.0, |us| f64::from(*us))
}

fn bare(dir: &Path, time: Duration) -> Result<Row, Box<dyn Error>> {
    const SIZE: u64 = 32 * 1024 * 1024;
    let path = dir.join("bare");
    let file = File::create(&path)?;
    file.write_all_at(&vec![0u8; SIZE as usize], 0)?;
    file.sync_all()?;
    let block = [7u8; 4096];
    let mut taken = Vec::new();
    let start = Instant::now();
    while start.elapsed() < time {
        let at = taken.len() as u64 * 4096 % SIZE;
        let one = Instant::now();
        file.write_all_at(&block, at)?;
        file.sync_data()?;
        taken.push(one.elapsed().as_micros() as u32);
    }
    let rate = taken.len() as f64 / start.elapsed().as_secs_f64();
    taken.sort_unstable();
    std::fs::remove_file(path)?;
    Ok(Row {
        name: "bare disk: 4 KiB + fdatasync, zero-filled file".into(),
        rate,
        commits: rate,
        p50_us: percentile(&taken, 0.5),
        p99_us: percentile(&taken, 0.99),
        mib_s: rate / 256.0,
    })
}

/// What the callbacks share.
struct Load {
    log: EmbeddedLog,
    partition: PartitionId,
    stop: AtomicBool,
    taken: Mutex<Vec<u32>>,
    ended: Mutex<mpsc::Sender<()>>,
}

/// Appends one entry, and the next one when it is durable.
fn again(load: &Arc<Load>) {
    let mut batch = Batch::new();
    batch.push(load.partition, Time(1), None, &[5u8; 70], b"");
    let (start, held) = (Instant::now(), Arc::clone(load));
    load.log.append(
        batch,
        Box::new(move |result| {
            result.expect("the bench's disk works");
            let us = start.elapsed().as_micros() as u32;
            held.taken.lock().expect("no panic before").push(us);
            match held.stop.load(Ordering::Relaxed) {
                false => again(&held),
                true => drop(held.ended.lock().expect("no panic before").send(())),
            }
        }),
    );
}

fn open(dir: &Path, gap: Duration) -> Result<EmbeddedLog, Box<dyn Error>> {
    let options = EmbeddedOptions {
        commit_gap: gap,
        ..EmbeddedOptions::default()
    };
    Ok(EmbeddedLog::open(dir, options)?)
}

fn spec(partitions: u32) -> TopicSpec {
    TopicSpec {
        partitions,
        retention: None,
        retention_bytes: None,
    }
}

fn commits(dir: &Path, flying: usize, gap: Duration, time: Duration) -> Result<Row, Box<dyn Error>> {
    let log = open(dir, gap)?;
    let partition = log.create_topic("entries", &spec(1))?.partitions[0];
    let (tell, told) = mpsc::channel();
    let load = Arc::new(Load {
        log,
        partition,
        stop: AtomicBool::new(false),
        taken: Mutex::default(),
        ended: Mutex::new(tell),
    });
    let before = load.log.stats();
    let start = Instant::now();
    (0..flying).for_each(|_| again(&load));
    std::thread::sleep(time);
    load.stop.store(true, Ordering::Relaxed);
    (0..flying).try_for_each(|_| told.recv())?;
    let seconds = start.elapsed().as_secs_f64();
    let after = load.log.stats();
    let mut taken = std::mem::take(&mut *load.taken.lock().map_err(|e| e.to_string())?);
    taken.sort_unstable();
    load.log.close()?;
    Ok(Row {
        name: format!("group commit, {flying} on their way, gap {gap:?}"),
        rate: taken.len() as f64 / seconds,
        commits: (after.commits - before.commits) as f64 / seconds,
        p50_us: percentile(&taken, 0.5),
        p99_us: percentile(&taken, 0.99),
        mib_s: (after.bytes - before.bytes) as f64 / seconds / 1048576.0,
    })
}

fn import_and_read(dir: &Path, records: u64) -> Result<[Row; 3], Box<dyn Error>> {
    let log = open(dir, Duration::from_millis(1))?;
    let parts = log.create_topic("lines", &spec(4))?.partitions;
    let value = [b'x'; 200];
    let before = log.stats();
    let start = Instant::now();
    let mut tx = log.begin()?;
    let mut batch = Batch::new();
    for n in 0..records {
        batch.push(
            parts[(n % 4) as usize],
            Time(n),
            Some(&n.to_le_bytes()),
            &value,
            b"",
        );
        if batch.bytes() >= 1024 * 1024 {
            tx.append(std::mem::take(&mut batch))?;
        }
    }
    tx.commit(batch)?;
    let seconds = start.elapsed().as_secs_f64();
    let after = log.stats();
    let import = Row {
        name: format!("transaction, {records} records of 200 B"),
        rate: records as f64 / seconds,
        commits: (after.commits - before.commits) as f64 / seconds,
        mib_s: (after.bytes - before.bytes) as f64 / seconds / 1048576.0,
        ..Row::default()
    };
    let start = Instant::now();
    let (mut read, mut bytes) = (0u64, 0usize);
    let mut out = Vec::new();
    for p in parts {
        let next = log.bounds(p)?.next;
        let mut at = 0;
        while at < next {
            out.clear();
            at = log.read(p, at, 256 * 1024, &mut out)?;
            read += out.len() as u64;
            bytes += out.iter().map(|r| r.held_bytes()).sum::<usize>();
        }
    }
    assert_eq!(read, records);
    let seconds = start.elapsed().as_secs_f64();
    let reading = Row {
        name: "read them, one thread, page cache warm".into(),
        rate: read as f64 / seconds,
        mib_s: bytes as f64 / seconds / 1048576.0,
        ..Row::default()
    };
    let disk_bytes = log.stats().segments * 64;
    log.close()?;
    let start = Instant::now();
    let log = open(dir, Duration::from_millis(1))?;
    let opening = Row {
        name: format!("open a log of {disk_bytes} MiB (the time is in p50)"),
        p50_us: start.elapsed().as_micros() as f64,
        ..Row::default()
    };
    log.close()?;
    Ok([import, reading, opening])
}

/// Bytes that this process has had written to the disk so far; none where the system does not count them.
fn written() -> Option<u64> {
    let io = std::fs::read_to_string("/proc/self/io").ok()?;
    let line = io.lines().find_map(|l| l.strip_prefix("write_bytes: "))?;
    line.parse().ok()
}

/// Bytes on the disk for each delivered message, by what writes them.
fn per_message(dir: &Path, messages: u64, json: bool) -> Result<(), Box<dyn Error>> {
    const TOGETHER: u64 = 256;
    let (config, clock) = (configuration(&dir.join("node"))?, Clock::start());
    let opened = app::open(&config, clock)?;
    // Segments are zero-filled once and used again and again: not what a message costs.
    let mut before = written();
    loop {
        std::thread::sleep(Duration::from_millis(300));
        let now = written();
        if now == before {
            break;
        }
        before = now;
    }
    let feeder = Feeder::new(&opened, clock);
    let mut folded = Vec::new();
    for from in (0..messages).step_by(TOGETHER as usize) {
        folded.push(feeder.append(from..(from + TOGETHER).min(messages))?);
    }
    let entries: usize = folded.iter().map(|(_, e)| e.len()).sum();
    let appended = written();
    for (base, entries) in folded {
        opened.keeper.fold_entries(base, &entries)?;
    }
    opened.keeper.store().sync()?;
    let stored = written();
    opened.keeper.checkpoint()?;
    let checkpointed = written();
    opened.log.close()?;
    let each = |from: Option<u64>, to: Option<u64>| Some((to? - from?) as f64 / messages as f64);
    let rows = [
        (
            format!(
                "ledger, {} entries a message, {TOGETHER} messages a commit",
                entries as u64 / messages
            ),
            each(before, appended),
        ),
        ("dedup store".to_owned(), each(appended, stored)),
        (
            format!("one checkpoint in {messages} messages"),
            each(stored, checkpointed),
        ),
        ("together".to_owned(), each(before, checkpointed)),
    ];
    for (name, bytes) in rows {
        match (json, bytes) {
            (true, bytes) => println!(
                "{}",
                serde_json::json!({ "name": name, "bytes_per_message": bytes })
            ),
            (false, Some(bytes)) => println!("bytes on disk per delivered message: {name:<52} {bytes:>8.1}"),
            (false, None) => {
                println!("bytes on disk per delivered message: {name:<52} not counted by this system")
            }
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = args()?;
    let dir = tempfile::tempdir_in(&args.dir)?;
    let time = Duration::from_secs(args.seconds);
    if !args.json {
        let (what, rate, commits, p50, p99, mib) =
            ("what", "a second", "commits/s", "p50 us", "p99 us", "MiB/s");
        println!("{what:<52} {rate:>11} {commits:>10} {p50:>8} {p99:>8} {mib:>7}");
    }
    bare(dir.path(), time)?.print(args.json);
    // The log's spares are zero-filled in the background at first: not what is to be measured.
    let log = dir.path().join("log");
    let warm = open(&log, Duration::ZERO)?;
    while warm.stats().disk_bytes < 4 * 64 * 1024 * 1024 {
        std::thread::sleep(Duration::from_millis(50));
    }
    warm.close()?;
    for (flying, gap) in [(1, 0), (1, 1), (64, 0), (64, 1), (256, 1), (1024, 1)] {
        commits(&log, flying, Duration::from_millis(gap), time)?.print(args.json);
    }
    for row in import_and_read(&log, args.records)? {
        row.print(args.json);
    }
    bare(dir.path(), time)?.print(args.json);
    per_message(dir.path(), args.messages, args.json)
}
