//! The dedup store under kill -9 and power cut: a child process feeds it, is killed, and everything below the
//! watermark that it told must be there, with its value.
//!
//! `SLUICEGATE_CRASH_ROUNDS` sets the number of kills (default 8) and of power cuts (default 3). The power cut needs
//! root and a loop device; where it cannot run it says so on stderr.

#![allow(clippy::unwrap_used)]

mod support;

use sluicegate::core::ledger::fold::{Finished, FinishedState, StoreOp};
use sluicegate::core::types::{MessageId, RouteId, RoutePartition, Time};
use sluicegate::dedup::{DedupOptions, DedupStore, OpenReport};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::{Mount, copy_image, not_tested};

const HOUR: u64 = 3_600_000_000;
/// Ledger offsets of one bucket.
const SPAN: u64 = 20_000;
/// Buckets kept.
const KEEP: u64 = 4;

fn options() -> DedupOptions {
    let hour = Duration::from_secs(3_600);
    DedupOptions {
        bucket: hour,
        memtable: 2_048,
        block: 2_048,
        cache: 8 << 20,
        ..DedupOptions::new(3)
    }
}

fn at() -> RoutePartition {
    RoutePartition {
        route: RouteId(5),
        partition: 1,
    }
}

fn id(n: u64) -> MessageId {
    let mut out = [0; 16];
    fastrand::Rng::with_seed(n).fill(&mut out);
    MessageId(out)
}

fn finished(n: u64) -> Finished {
    Finished {
        at: at(),
        id: id(n),
        state: if n.is_multiple_of(3) {
            FinishedState::Dead
        } else {
            FinishedState::Delivered
        },
        when: Time((1_000 + n / SPAN) * HOUR),
        status: (n % 599) as u16,
        attempts: (n % 7) as u32,
        offset: n * 2,
        ledger: n,
        readable: format!("n{n}").into(),
    }
}

/// The ledger: every tenth entry forgets what came five before it.
fn op(n: u64) -> StoreOp {
    if n % 10 == 9 {
        StoreOp::Forget {
            at: at(),
            id: id(n - 5),
        }
    } else {
        StoreOp::Finished(finished(n))
    }
}

/// What the store must answer of ledger offset `n`, once the ledger is taken up to `upto`.
fn expected(n: u64, upto: u64) -> Option<Finished> {
    (n % 10 != 9 && !(n % 10 == 4 && n + 5 < upto)).then(|| finished(n))
}

/// The child: opens, feeds, syncs and expires until it is killed. Each line it writes is a fact.
#[test]
fn child() {
    let (Ok(dir), Ok(told)) = (
        std::env::var("SLUICEGATE_CRASH_DIR"),
        std::env::var("SLUICEGATE_CRASH_TOLD"),
    ) else {
        return;
    };
    let mut told = File::options().append(true).create(true).open(told).unwrap();
    let mut tell = |line: String| told.write_all(line.as_bytes()).unwrap();
    tell("opening\n".into());
    let (store, report) = DedupStore::open(Path::new(&dir), options()).unwrap();
    let mut next = store.watermark();
    tell(format!("opened {next} {:?}\n", report.rebuild));
    let mut expired = next / SPAN;
    let mut last = 0;
    loop {
        let ops: Vec<_> = (next..next + 64).map(op).collect();
        next += 64;
        store.record(&ops, next).unwrap();
        if next.is_multiple_of(64 * 13) {
            store.sync().unwrap();
            assert_eq!(store.watermark(), next);
        }
        let durable = store.watermark();
        if durable > last {
            last = durable;
            tell(format!("durable {durable}\n"));
        }
        if next / SPAN > expired {
            expired = next / SPAN;
            if let Some(oldest) = store.buckets().first().filter(|_| expired >= KEEP) {
                let end = oldest.to.0 / HOUR - 1_000;
                if end + KEEP <= expired + 1 {
                    tell(format!("expiring {}\n", end * SPAN));
                    store.expire(oldest.id).unwrap();
                }
            }
        }
    }
}

/// What the child told before it died.
#[derive(Debug, Default)]
struct Told {
    durable: u64,
    /// Everything before it may be gone.
    expiring: u64,
    opened: bool,
}

fn read(told: &Path) -> Told {
    let mut out = Told::default();
    for line in fs::read_to_string(told).unwrap_or_default().lines() {
        let number = || {
            line.split(' ')
                .nth(1)
                .and_then(|n| n.parse::<u64>().ok())
                .unwrap_or(0)
        };
        match line.split(' ').next() {
            Some("durable") => out.durable = out.durable.max(number()),
            Some("expiring") => out.expiring = out.expiring.max(number()),
            Some("opening") => out.opened = false,
            Some("opened") => out.opened = true,
            _ => {}
        }
    }
    out
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(dir: &Path, told: &Path) -> Running {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env("SLUICEGATE_CRASH_DIR", dir)
        .env("SLUICEGATE_CRASH_TOLD", told)
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    Running(child)
}

/// Waits until the child has written so many lines of this kind.
fn wait_for(told: &Path, word: &str, times: usize, child: &mut Running) {
    let began = Instant::now();
    while fs::read_to_string(told)
        .unwrap_or_default()
        .lines()
        .filter(|l| l.starts_with(word))
        .count()
        < times
    {
        assert!(child.0.try_wait().unwrap().is_none(), "the child ended by itself");
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "the child does not get on"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Opens the store and compares all that must be there. Returns its watermark.
fn check(dir: &Path, told: &Told, round: &str) -> u64 {
    let (store, report): (_, OpenReport) = DedupStore::open(dir, options()).unwrap();
    let watermark = store.watermark();
    assert!(
        report.rebuild.is_none() || told.durable == 0,
        "{round}: {told:?} {report:?}"
    );
    assert!(
        watermark >= told.durable,
        "{round}: told {told:?}, there is {watermark}"
    );
    let numbers: Vec<u64> = (told.expiring..watermark).collect();
    let mut out = Vec::new();
    for chunk in numbers.chunks(512) {
        let ids: Vec<_> = chunk.iter().map(|&n| id(n)).collect();
        store.lookup(at(), &ids, &mut out).unwrap();
        for (&n, found) in chunk.iter().zip(&out) {
            // What lies beyond the watermark may have been recorded as well, and forgotten.
            if n % 10 == 4 && n + 5 >= watermark {
                continue;
            }
            assert_eq!(
                *found,
                expected(n, watermark),
                "{round}: ID {n}, watermark {watermark}, {told:?}"
            );
        }
    }
    watermark
}

fn rounds(default: u64) -> u64 {
    std::env::var("SLUICEGATE_CRASH_ROUNDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(default)
}

/// Where sealing stands in a folder: a file is being written, or one is finished beside its sled folder.
fn sealing(dir: &Path) -> bool {
    let Ok(entries) = fs::read_dir(dir) else {
        return false;
    };
    let names: Vec<String> = entries
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .collect();
    let number = |n: &String| n.strip_prefix("sealed-").map(str::to_owned);
    names
        .iter()
        .filter_map(number)
        .any(|n| n.ends_with(".new") || names.contains(&format!("bucket-{n}")))
}

/// Killed while it feeds, spills, seals, syncs and expires; every third time inside the open of the store, and every
/// third time in the middle of sealing a bucket.
#[test]
fn survives_kill_9() {
    let _alone = support::alone();
    let folder = tempfile::tempdir().unwrap();
    let (dir, told) = (folder.path().join("store"), folder.path().join("told"));
    let mut random = fastrand::Rng::with_seed(11);
    let (mut inside_open, mut inside_sealing, mut last) = (0, 0, 0);
    for round in 0..rounds(8) {
        let openings = fs::read_to_string(&told)
            .unwrap_or_default()
            .matches("opening\n")
            .count();
        let mut child = start(&dir, &told);
        wait_for(&told, "opening", openings + 1, &mut child);
        let longest = if round % 3 == 2 { 12_000 } else { 600_000 };
        if round % 3 == 1 {
            let began = Instant::now();
            while !sealing(&dir) {
                assert!(began.elapsed() < Duration::from_secs(60), "nothing is sealed");
                std::hint::spin_loop();
            }
            std::thread::sleep(Duration::from_micros(random.u64(0..20_000)));
        } else {
            std::thread::sleep(Duration::from_micros(random.u64(0..longest)));
        }
        drop(child);
        let facts = read(&told);
        inside_open += u64::from(!facts.opened);
        inside_sealing += u64::from(sealing(&dir));
        last = check(&dir, &facts, &format!("kill {round}"));
    }
    eprintln!(
        "{} kills, {inside_open} of them inside open, {inside_sealing} while a bucket was sealed, {last} ledger entries taken",
        rounds(8)
    );
    assert!(last > 0);
}

#[test]
fn survives_power_cut() {
    let _alone = support::alone();
    let mut random = fastrand::Rng::with_seed(5);
    let mut last = 0;
    for round in 0..rounds(3) {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let (image, copy, told) = (path("image"), path("copy"), path("told"));
        let device = match Mount::new_image(&image, 512, &path("live")) {
            Ok(device) => device,
            Err(why) => return not_tested("power cuts of the dedup store", &why),
        };
        let dir = device.0.join("store");
        let mut child = start(&dir, &told);
        wait_for(&told, "durable", random.usize(1..60), &mut child);
        drop(child);
        // Facts that were told before the copy began are in the copy.
        let facts = read(&told);
        copy_image(&image, &copy);
        drop(device);
        let cut = Mount::image(&copy, &path("cut")).unwrap();
        last = check(&cut.0.join("store"), &facts, &format!("power cut {round}")).max(last);
    }
    eprintln!("{} power cuts, up to {last} ledger entries taken", rounds(3));
    assert!(last > 0);
}

/// No room for a sealed file: the bucket stays in sled and answers, the store says why, and with room again the next
/// opening seals it.
#[test]
fn a_full_disk_leaves_the_bucket_in_sled() {
    let _alone = support::alone();
    let folder = tempfile::tempdir().unwrap();
    let disk = match Mount::tmpfs(48, &folder.path().join("disk")) {
        Ok(disk) => disk,
        Err(why) => return not_tested("a full disk under the dedup store", &why),
    };
    let (dir, ballast) = (disk.0.join("store"), disk.0.join("ballast"));
    // One bucket with all: its file needs much more room than the last run on its way into sled.
    let options = DedupOptions {
        bucket: Duration::from_secs(24 * 3_600),
        ..options()
    };
    let count = 6 * SPAN;
    let (store, _) = DedupStore::open(&dir, options.clone()).unwrap();
    for from in (0..count).step_by(500) {
        let ops: Vec<_> = (from..from + 500).map(op).collect();
        store.record(&ops, from + 500).unwrap();
    }
    // Sealing is kept off until the disk is full: its file cannot be made where a folder stands.
    let blocked = dir.join("sealed-0.new");
    fs::create_dir(&blocked).unwrap();
    let next = StoreOp::Finished(Finished {
        when: Time(2_000 * HOUR),
        ..finished(count)
    });
    store.record(&[next], count + 1).unwrap();
    store.sync().unwrap();
    wait(|| store.stats().seal_refuses);
    drop(store);
    let mut file = File::create(&ballast).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    file.set_len(file.metadata().unwrap().len() - (2 << 20)).unwrap();
    let (store, report) = DedupStore::open(&dir, options.clone()).unwrap();
    assert!(report.rebuild.is_none() && !blocked.is_dir(), "{report:?}");
    let refused = wait(|| store.stats().seal_refuses);
    assert!(refused.contains("No space left"), "{refused}");
    assert_eq!(store.stats().unsealed, 1);
    let answers = |store: &DedupStore| {
        let mut out = Vec::new();
        for from in (0..count).step_by(500) {
            let ids: Vec<_> = (from..from + 500).map(id).collect();
            store.lookup(at(), &ids, &mut out).unwrap();
            for (n, found) in (from..).zip(&out) {
                assert_eq!(*found, expected(n, count), "ID {n}");
            }
        }
    };
    answers(&store);
    drop((store, file));
    fs::remove_file(&ballast).unwrap();
    let (store, report) = DedupStore::open(&dir, options).unwrap();
    assert!(report.rebuild.is_none(), "{report:?}");
    wait(|| (store.stats().unsealed == 0).then_some(()));
    assert!(store.buckets()[0].sealed);
    answers(&store);
}

fn wait<R>(ready: impl Fn() -> Option<R>) -> R {
    let began = Instant::now();
    loop {
        if let Some(ready) = ready() {
            return ready;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "it never comes");
        std::thread::sleep(Duration::from_millis(2));
    }
}
