//! The embedded log through real kills, power cuts and full disks, with a process of its own that writes.
//!
//! The child is this test binary again. It says on stdout what was acknowledged to it, and is killed with SIGKILL
//! after a random number of lines; then everything it said must be there. Power cuts and full disks need root and
//! mounts; where the machine does not allow them the tests say so on stderr, as their names announce.
//! `SLUICEGATE_LOG_KILLS` sets the number of rounds.

mod support;

use sluicegate::core::record::Record;
use sluicegate::core::types::{Offset, Time};
use sluicegate::log::conformance::{append, read_all};
use sluicegate::log::embedded::{EmbeddedLog, EmbeddedOptions};
use sluicegate::log::{Batch, Log, LogError, PartitionId, TopicSpec};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::time::Duration;
use support::{Mount, copy_image, not_tested};

const CHILD: &str = "SLUICEGATE_LOG_CHILD";
/// Records of one transaction, in five parts.
const TX_RECORDS: u64 = 20;

fn options() -> EmbeddedOptions {
    EmbeddedOptions {
        segment_bytes: 256 * 1024,
        commit_gap: Duration::from_micros(200),
        care_every: Duration::from_millis(20),
        ..EmbeddedOptions::default()
    }
}

fn spec(partitions: u32) -> TopicSpec {
    TopicSpec {
        partitions,
        retention: None,
        retention_bytes: None,
    }
}

fn record(batch: &mut Batch, partition: PartitionId, n: u64) {
    let mut value = n.to_le_bytes().to_vec();
    value.resize(8 + (n.wrapping_mul(7919) % 1500) as usize, n as u8);
    batch.push(partition, Time(n), None, &value, b"");
}

fn number(record: &Record) -> u64 {
    let (head, rest) = record.value.split_first_chunk().expect("eight bytes");
    let n = u64::from_le_bytes(*head);
    assert_eq!(
        rest.len() as u64,
        n.wrapping_mul(7919) % 1500,
        "record {n} has another length"
    );
    assert!(
        rest.iter().all(|b| *b == n as u8),
        "record {n} is not as it was written"
    );
    n
}

fn numbers(log: &dyn Log, partition: PartitionId) -> Vec<u64> {
    let first = log.bounds(partition).expect("there").first;
    read_all(log, partition, first).iter().map(number).collect()
}

/// Says one line; the parent may be gone.
fn say(line: String) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Writes until it is killed: batch n holds record n in both partitions of `t`, and the group's offset n; now and
/// then a transaction, and a trim that frees segments.
#[test]
#[ignore = "the process that the other tests kill"]
fn child() {
    let dir = std::env::var(CHILD).expect("started by one of the other tests");
    let log = EmbeddedLog::open(Path::new(&dir), options()).expect("opens");
    let parts = log.create_topic("t", &spec(2)).expect("made").partitions;
    let imports = log.create_topic("imports", &spec(1)).expect("made").partitions[0];
    let first_tx = log.bounds(imports).expect("there").next / TX_RECORDS;
    let mut n = log.bounds(parts[0]).expect("there").next;
    std::thread::scope(|scope| {
        let log = &log;
        scope.spawn(move || {
            for k in first_tx.. {
                let mut tx = log.begin().expect("begun");
                for part in 0..5 {
                    let mut batch = Batch::new();
                    (0..TX_RECORDS / 5).for_each(|i| record(&mut batch, imports, k * 1000 + part * 4 + i));
                    tx.append(batch).expect("taken");
                }
                if k % 3 == 2 {
                    // Left without a commit: it must never be seen.
                    let mut dropped = log.begin().expect("begun");
                    let mut batch = Batch::new();
                    record(&mut batch, imports, u64::from(u32::MAX));
                    dropped.append(batch).expect("taken");
                    std::mem::drop(dropped);
                }
                tx.commit(Batch::new()).expect("committed");
                say(format!("tx {k}"));
            }
        });
        loop {
            let mut batch = Batch::new();
            parts.iter().for_each(|p| record(&mut batch, *p, n));
            batch.commit_offset("g", parts[0], n);
            let done = move |result: Result<_, LogError>| {
                result.expect("taken");
                say(format!("ack {n}"));
            };
            log.append(batch, Box::new(done));
            if n % 400 == 399 {
                let next = log.bounds(parts[0]).expect("there").next;
                let most = next.saturating_sub(500);
                parts.iter().for_each(|p| log.trim(*p, most).expect("trimmed"));
                say(format!("trim {most}"));
            }
            n += 1;
            if n.is_multiple_of(32) {
                // Not more than these on their way: an empty batch is answered behind them.
                append(log, Batch::new()).expect("taken");
            }
        }
    });
}

/// What a child said before it was killed.
#[derive(Debug, Default)]
struct Said {
    last: Option<u64>,
    tx: Option<u64>,
    trimmed: Offset,
}

impl Said {
    fn hear(&mut self, line: &str) -> bool {
        // The harness writes the test's name without a line end before the first line.
        let words: Vec<&str> = line.split_whitespace().rev().collect();
        let [n, what, ..] = words[..] else { return false };
        let Ok(n) = n.parse::<u64>() else { return false };
        match what {
            "ack" => {
                assert!(
                    self.last.is_none_or(|last| n == last + 1),
                    "acknowledged out of order"
                );
                self.last = Some(n);
            }
            "tx" => self.tx = Some(n),
            "trim" => self.trimmed = n,
            _ => return false,
        }
        true
    }
}

/// Lets a child write until it has said so many lines, kills it, and hears the rest of what it said.
fn write_and_kill(dir: &Path, lines: usize, said: &mut Said, at_the_kill: impl FnOnce()) {
    let mut child = support::spawn_child(CHILD, dir);
    let mut out = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut heard = 0;
    said.last = None;
    while heard < lines {
        let line = out
            .next()
            .expect("the child goes on until it is killed")
            .expect("text");
        heard += usize::from(said.hear(&line));
    }
    child.kill().expect("SIGKILL");
    child.wait().expect("ended");
    at_the_kill();
    out.map_while(Result::ok).for_each(|line| {
        said.hear(&line);
    });
}

/// Everything that was said is there, in order, nothing by halves.
fn check(dir: &Path, said: &Said) -> u64 {
    let log = EmbeddedLog::open(dir, options()).expect("opens after the kill");
    let parts = log.topic("t").expect("there").partitions;
    let first = numbers(&log, parts[0]);
    let bounds = log.bounds(parts[0]).expect("there");
    assert!(
        first.iter().copied().eq(bounds.first..bounds.next),
        "gaps after the kill"
    );
    let last = said.last.expect("something was acknowledged");
    assert!(
        bounds.next > last,
        "{last} was acknowledged, {} is next",
        bounds.next
    );
    assert!(bounds.next <= last + 40, "more than was ever on its way");
    let second = log.bounds(parts[1]).expect("there");
    assert_eq!(second.next, bounds.next, "half a batch");
    assert!(numbers(&log, parts[1]).into_iter().eq(second.first..second.next));
    assert!(
        bounds.first <= said.trimmed.max(bounds.next.saturating_sub(500)),
        "more gone than was trimmed"
    );
    assert_eq!(log.committed("g", parts[0]), Some(bounds.next - 1));
    let imports = log.topic("imports").expect("there").partitions[0];
    let lines = numbers(&log, imports);
    let count = lines.len() as u64 / TX_RECORDS;
    let wanted = (0..count).flat_map(|k| (0..TX_RECORDS).map(move |i| k * 1000 + i));
    assert!(
        lines.into_iter().eq(wanted),
        "a transaction is there by halves, or one without a commit is"
    );
    assert!(
        said.tx.is_none_or(|k| k < count),
        "{:?} was committed, {count} are there",
        said.tx
    );
    log.close().expect("closed");
    bounds.next
}

fn rounds(default: usize) -> usize {
    let given = std::env::var("SLUICEGATE_LOG_KILLS")
        .ok()
        .and_then(|n| n.parse().ok());
    given.unwrap_or(default)
}

#[test]
fn killed_at_random_it_keeps_what_it_acknowledged() {
    let _alone = support::alone();
    let dir = tempfile::tempdir().expect("a folder");
    let (mut said, mut before) = (Said::default(), 0);
    for round in 0..rounds(8) {
        let lines = fastrand::usize(1..2500);
        write_and_kill(dir.path(), lines, &mut said, || {});
        let next = check(dir.path(), &said);
        assert!(next > before, "round {round}");
        before = next;
    }
}

#[test]
fn a_second_process_is_refused() {
    let _alone = support::alone();
    let dir = tempfile::tempdir().expect("a folder");
    let log = EmbeddedLog::open(dir.path(), options()).expect("opens");
    let mut child = support::spawn_child(CHILD, dir.path());
    assert!(
        !child.wait().expect("ended").success(),
        "the child must not open it"
    );
    drop(log);
    let mut said = Said::default();
    write_and_kill(dir.path(), 1, &mut said, || {});
}

/// The image of a loop device is copied at the moment of the kill: what the file system had handed to the device
/// is there, what was only in its page cache is not, as when the power fails.
#[test]
fn power_cut_on_a_loop_device_or_loudly_not_tested() {
    let _alone = support::alone();
    let dir = tempfile::tempdir().expect("a folder");
    let image = dir.path().join("image");
    let mount = match Mount::new_image(&image, 48, &dir.path().join("disk")) {
        Ok(mount) => mount,
        Err(why) => return not_tested("power cuts of the log", &why),
    };
    let mut said = Said::default();
    for round in 0..rounds(4) {
        let copy = dir.path().join(format!("copy-{round}"));
        write_and_kill(&mount.0.join("log"), fastrand::usize(1..1500), &mut said, || {
            copy_image(&image, &copy);
        });
        let after = Mount::image(&copy, &dir.path().join(format!("after-{round}")))
            .expect("the copy is mounted like the image");
        check(&after.0.join("log"), &said);
        drop(after);
        // The next round goes on where the kill alone left it.
        check(&mount.0.join("log"), &said);
        std::fs::remove_file(&copy).expect("removed");
    }
}

#[test]
fn full_disk_on_a_small_tmpfs_or_loudly_not_tested() {
    let _alone = support::alone();
    let dir = tempfile::tempdir().expect("a folder");
    let mount = match Mount::tmpfs(4, &dir.path().join("disk")) {
        Ok(mount) => mount,
        Err(why) => return not_tested("a full disk under the log", &why),
    };
    let folder = mount.0.join("log");
    let log = EmbeddedLog::open(&folder, options()).expect("opens");
    let p = log.create_topic("t", &spec(1)).expect("made").partitions[0];
    let mut n = 0;
    let take = |n: u64, mut batch: Batch| {
        record(&mut batch, p, n);
        append(&log, batch)
    };
    let error = loop {
        match take(n, Batch::new()) {
            Ok(_) => n += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(&error, LogError::NoRoom { .. }), "{error}");
    assert!(n > 3000, "{n} records of 760 B in 4 MiB, reserve left out");
    assert!(log.refuses().is_some());
    for _ in 0..100 {
        take(n, Batch::from_reserve()).expect("outcomes still fit");
        n += 1;
    }
    assert!(
        numbers(&log, p).into_iter().eq(0..n),
        "all can be read on a full disk"
    );
    drop(log);
    // Opening needs no room either; a trim gives the room back, and records are taken again.
    let log = EmbeddedLog::open(&folder, options()).expect("opens on a full disk");
    assert!(numbers(&log, p).into_iter().eq(0..n));
    log.trim(p, n - 10).expect("trimmed");
    // Room comes back file by file behind the trim: whoever is quicker than that is refused once more.
    let began = std::time::Instant::now();
    for more in n..n + 1000 {
        loop {
            let mut batch = Batch::new();
            record(&mut batch, p, more);
            match append(&log, batch) {
                Ok(_) => break,
                Err(LogError::NoRoom { .. }) if began.elapsed() < Duration::from_secs(60) => {
                    std::thread::yield_now();
                }
                Err(error) => panic!("{error}: there must be room again"),
            }
        }
    }
    assert!(log.refuses().is_none());
    drop(log);
}
