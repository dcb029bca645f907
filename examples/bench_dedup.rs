//! Measures the dedup store with random IDs, beside the naive layout (one sled entry an ID) in the same run.
//!
//! `cargo run --release --example bench_dedup -- [--ids 10M] [--buckets 1] [--naive 3M] [--cache 384] [--block 6144] [--batch 256]
//! [--open-old 16] [--old-cache 8] [--seconds 3] [--dir DIR] [--json]`. Caches are in MiB: the present bucket's, and each
//! older one's, of which `--open-old` may be open at once.

use sluicegate::core::ledger::fold::{Finished, FinishedState, StoreOp};
use sluicegate::core::types::{MessageId, RouteId, RoutePartition, Time};
use sluicegate::dedup::{DedupOptions, DedupStore};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

type Failure = Box<dyn Error>;

struct Options {
    ids: u64,
    buckets: u64,
    naive: u64,
    cache: u64,
    block: usize,
    open_old: usize,
    old_cache: u64,
    batch: usize,
    seconds: f64,
    dir: PathBuf,
    json: bool,
}

fn count(text: &str) -> Result<u64, Failure> {
    let (digits, factor) = match text.as_bytes().last() {
        Some(b'M' | b'm') => (&text[..text.len() - 1], 1_000_000),
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1_000),
        _ => (text, 1),
    };
    Ok(digits.parse::<u64>()? * factor)
}

fn options() -> Result<Options, Failure> {
    let mut o = Options {
        ids: 10_000_000,
        buckets: 1,
        naive: 3_000_000,
        cache: 384,
        block: 6 << 10,
        open_old: DedupOptions::new(1).open_old,
        old_cache: DedupOptions::new(1).old_cache >> 20,
        batch: 256,
        seconds: 3.0,
        dir: std::env::temp_dir(),
        json: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            "--ids" => o.ids = count(&value()?)?,
            "--buckets" => o.buckets = count(&value()?)?.max(1),
            "--naive" => o.naive = count(&value()?)?,
            "--cache" => o.cache = value()?.parse()?,
            "--block" => o.block = value()?.parse()?,
            "--open-old" => o.open_old = value()?.parse()?,
            "--old-cache" => o.old_cache = value()?.parse()?,
            "--batch" => o.batch = value()?.parse()?,
            "--seconds" => o.seconds = value()?.parse()?,
            "--dir" => o.dir = value()?.into(),
            "--json" => o.json = true,
            other => return Err(format!("unknown argument `{other}`").into()),
        }
    }
    Ok(o)
}

/// The n-th random ID: two rounds of a mixing function, some 3 ns.
fn id(n: u64) -> MessageId {
    let mix = |mut x: u64| {
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    let a = mix(n.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15));
    let b = mix(n
        .wrapping_mul(2)
        .wrapping_add(1)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut out = [0; 16];
    out[..8].copy_from_slice(&a.to_le_bytes());
    out[8..].copy_from_slice(&b.to_le_bytes());
    MessageId(out)
}

fn at() -> RoutePartition {
    RoutePartition {
        route: RouteId(1),
        partition: 0,
    }
}

fn clock(id: rustix::time::ClockId) -> f64 {
    let t = rustix::time::clock_gettime(id);
    t.tv_sec as f64 + t.tv_nsec as f64 / 1e9
}

/// CPU seconds of the whole process.
fn cpu() -> f64 {
    clock(rustix::time::ClockId::ProcessCPUTime)
}

/// CPU seconds of this thread: on a busy machine the rate that they make up for says more than the clock's.
fn own_cpu() -> f64 {
    clock(rustix::time::ClockId::ThreadCPUTime)
}

/// Resident memory and its peak, MiB.
fn memory() -> (f64, f64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = |name: &str| {
        let line = status.lines().find(|l| l.starts_with(name));
        let kb = line
            .and_then(|l| l.split_whitespace().nth(1))
            .and_then(|n| n.parse::<f64>().ok());
        kb.unwrap_or(0.0) / 1024.0
    };
    (line("VmRSS:"), line("VmHWM:"))
}

fn disk(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0;
    };
    entries
        .flatten()
        .map(|e| match e.metadata() {
            Ok(m) if m.is_dir() => disk(&e.path()),
            Ok(m) => m.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

/// Name, value, unit, and the limit: at least (`true`) or at most (`false`).
type Row = (&'static str, f64, &'static str, Option<(bool, f64)>);

#[derive(Default)]
struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// A figure with its limit: at least (`true`) or at most (`false`).
    fn add(&mut self, name: &'static str, value: f64, unit: &'static str, limit: Option<(bool, f64)>) {
        eprintln!("  {name}: {value:.3} {unit}");
        self.rows.push((name, value, unit, limit));
    }

    fn print(&self, json: bool) {
        if json {
            let object: serde_json::Map<String, serde_json::Value> = self
                .rows
                .iter()
                .map(|r| (r.0.replace(' ', "_"), serde_json::json!(r.1)))
                .collect();
            println!("{}", serde_json::Value::Object(object));
            return;
        }
        println!(
            "{:<34} {:>12}  {:<8} {:>12}",
            "figure", "measured", "unit", "limit"
        );
        for (name, value, unit, limit) in &self.rows {
            let limit = match limit {
                Some((least, limit)) => {
                    let holds = if *least { value >= limit } else { value <= limit };
                    format!(
                        "{} {limit:.1}{}",
                        if *least { ">=" } else { "<=" },
                        if holds { "" } else { "  MISSED" }
                    )
                }
                None => String::new(),
            };
            println!("{name:<34} {value:>12.3}  {unit:<8} {limit:>12}");
        }
    }
}

/// What asking came to.
struct Asked {
    /// Millions a second.
    rate: f64,
    /// Millions a second of this thread's CPU time.
    rate_cpu: f64,
    asked: u64,
    found: u64,
}

/// Asks for random IDs of `from..from + range` for so long.
fn ask(store: &DedupStore, o: &Options, from: u64, range: u64, seconds: f64) -> Result<Asked, Failure> {
    let mut random = fastrand::Rng::with_seed(from);
    let (mut asked, mut found) = (0u64, 0u64);
    let mut ids = Vec::with_capacity(o.batch);
    let mut out = Vec::new();
    let (began, cpu) = (Instant::now(), own_cpu());
    loop {
        ids.clear();
        ids.extend((0..o.batch).map(|_| id(from + random.u64(0..range))));
        store.lookup(at(), &ids, &mut out)?;
        asked += ids.len() as u64;
        found += out.iter().flatten().count() as u64;
        if began.elapsed().as_secs_f64() >= seconds {
            break;
        }
    }
    let millions = asked as f64 / 1e6;
    let rate = millions / began.elapsed().as_secs_f64();
    Ok(Asked {
        rate,
        rate_cpu: millions / (own_cpu() - cpu),
        asked,
        found,
    })
}

fn blocks(o: &Options, report: &mut Report) -> Result<(), Failure> {
    let folder = tempfile::tempdir_in(&o.dir)?;
    let dir = folder.path().join("dedup");
    let hour = Duration::from_secs(3_600);
    let options = DedupOptions {
        bucket: hour,
        cache: o.cache << 20,
        block: o.block,
        open_old: o.open_old,
        old_cache: o.old_cache << 20,
        ..DedupOptions::new(1)
    };
    let (store, _) = DedupStore::open(&dir, options.clone())?;
    let one = o.buckets == 1;
    let span = o.ids.div_ceil(o.buckets);
    let (began, cpu_before, own_before) = (Instant::now(), cpu(), own_cpu());
    let mut ops = Vec::with_capacity(256);
    let mut n = 0;
    while n < o.ids {
        ops.clear();
        for n in n..(n + 256).min(o.ids) {
            // A bucket takes its hour; an outcome follows its intent in the ledger.
            let when = (n / span) * hour.as_micros() as u64 + (n % span) * 3_500_000_000 / span;
            ops.push(StoreOp::Finished(Finished {
                at: at(),
                id: id(n),
                state: FinishedState::Delivered,
                when: Time(1_700_002_800_000_000 + when),
                status: 200,
                attempts: 1,
                offset: n,
                ledger: 2 * n,
                readable: bytes::Bytes::new(),
            }));
        }
        n += ops.len() as u64;
        store.record(&ops, 2 * n)?;
    }
    let (fed, fed_cpu) = (began.elapsed().as_secs_f64(), own_cpu() - own_before);
    report.add(
        "record by CPU time of the feeder",
        o.ids as f64 / fed_cpu / 1e6,
        "M/s",
        None,
    );
    store.sync()?;
    let durable = began.elapsed().as_secs_f64();
    // Buckets that are over are sealed behind the feeder.
    let mut unsealed = store.stats().unsealed;
    while unsealed > 0 && store.stats().seal_refuses.is_none() {
        std::thread::sleep(Duration::from_millis(20));
        unsealed = store.stats().unsealed;
    }
    let sealed = began.elapsed().as_secs_f64();
    let ids = o.ids as f64;
    report.add("record", ids / fed / 1e6, "M/s", Some((true, 2.0)));
    report.add("record until durable", ids / durable / 1e6, "M/s", None);
    if !one {
        report.add("all sealed after that", sealed - durable, "s", None);
    }
    report.add("record CPU", (cpu() - cpu_before) * 1e6 / ids, "us/ID", None);
    report.add(
        "longest spill",
        store.stats().longest_spill.as_secs_f64() * 1e3,
        "ms",
        None,
    );
    report.add("disk", disk(&dir) as f64 / ids, "B/ID", Some((false, 45.0)));
    report.add("resident after recording", memory().0, "MiB", None);

    let absent = ask(&store, o, 1 << 40, 1 << 40, o.seconds)?;
    assert_eq!(absent.found, 0, "an absent ID was found");
    report.add("absent look-ups", absent.rate, "M/s", Some((true, 3.0)));
    report.add("absent look-ups by CPU time", absent.rate_cpu, "M/s", None);
    let first = ask(&store, o, 0, o.ids, 1.0)?;
    let present = ask(&store, o, 0, o.ids, o.seconds)?;
    assert_eq!(
        first.asked + present.asked,
        first.found + present.found,
        "a present ID was not found"
    );
    report.add("present look-ups, first second", first.rate * 1e3, "k/s", None);
    report.add("present look-ups", present.rate * 1e3, "k/s", Some((true, 100.0)));
    report.add(
        "present look-ups by CPU time",
        present.rate_cpu * 1e3,
        "k/s",
        None,
    );
    let bound = if one { 600.0 } else { 1024.0 };
    let stats = store.stats();
    report.add("filters", stats.filter_bytes as f64 / ids, "B/ID", None);
    report.add("resident after look-ups", memory().0, "MiB", Some((false, bound)));
    report.add("resident, peak", memory().1, "MiB", Some((false, bound)));

    drop(store);
    let began = Instant::now();
    let (store, opened) = DedupStore::open(&dir, options)?;
    assert!(
        opened.rebuild.is_none() && opened.repaired.is_empty(),
        "{opened:?}"
    );
    assert_eq!(store.watermark(), 2 * o.ids);
    report.add("open", began.elapsed().as_secs_f64(), "s", Some((false, 0.5)));
    let first = ask(&store, o, 0, o.ids, 0.0)?;
    assert_eq!(first.asked, first.found);
    report.add(
        "open and first present batch",
        began.elapsed().as_secs_f64(),
        "s",
        None,
    );
    let after = ask(&store, o, 0, o.ids, 1.0)?;
    report.add("present, first second after open", after.rate * 1e3, "k/s", None);
    report.add("the same by CPU time", after.rate_cpu * 1e3, "k/s", None);
    let resident = memory().0;
    report.add(
        "resident after open and look-ups",
        resident,
        "MiB",
        Some((false, bound)),
    );

    // The bucket must be over to expire.
    store.advance(Time(1_800_000_000_000_000))?;
    let before = disk(&dir);
    let began = Instant::now();
    let oldest = store.buckets().first().map(|b| b.id).ok_or("no bucket")?;
    store.expire(oldest)?;
    report.add(
        "expiry of a bucket",
        began.elapsed().as_secs_f64() * 1e3,
        "ms",
        None,
    );
    report.add(
        "disk given back",
        (before - disk(&dir)) as f64 / (1 << 20) as f64,
        "MiB",
        None,
    );
    // The allocator returns pages some seconds after they were freed, as calls come in.
    let until = Instant::now() + Duration::from_secs(12);
    while Instant::now() < until {
        ask(&store, o, 1 << 40, 1 << 40, 0.01)?;
        std::thread::sleep(Duration::from_millis(100));
    }
    report.add("memory given back", resident - memory().0, "MiB", None);
    report.add("resident at the end", memory().0, "MiB", None);
    Ok(())
}

fn naive(o: &Options, report: &mut Report) -> Result<(), Failure> {
    let folder = tempfile::tempdir_in(&o.dir)?;
    let resident = memory().0;
    let db = sled::Config::new()
        .path(folder.path().join("naive"))
        .cache_capacity(o.cache << 20)
        .open()?;
    let (began, cpu_before) = (Instant::now(), cpu());
    let mut n = 0;
    while n < o.naive {
        let mut batch = sled::Batch::default();
        let end = (n + 256).min(o.naive);
        (n..end).for_each(|n| batch.insert(&id(n).0, &[1u8; 24]));
        db.apply_batch(batch)?;
        n = end;
    }
    db.flush()?;
    let ids = o.naive as f64;
    report.add(
        "naive: record",
        ids / began.elapsed().as_secs_f64() / 1e6,
        "M/s",
        None,
    );
    report.add(
        "naive: record CPU",
        (cpu() - cpu_before) * 1e6 / ids,
        "us/ID",
        None,
    );
    report.add("naive: disk", disk(folder.path()) as f64 / ids, "B/ID", None);
    let mut random = fastrand::Rng::with_seed(1);
    let mut rate = |from: u64| -> Result<f64, Failure> {
        let (began, mut asked) = (Instant::now(), 0u64);
        while began.elapsed().as_secs_f64() < o.seconds {
            for _ in 0..64 {
                db.get(id(from + random.u64(0..o.naive)).0)?;
            }
            asked += 64;
        }
        Ok(asked as f64 / began.elapsed().as_secs_f64())
    };
    report.add("naive: absent look-ups", rate(1 << 40)? / 1e6, "M/s", None);
    report.add("naive: present look-ups", rate(0)? / 1e3, "k/s", None);
    report.add("naive: resident", memory().0 - resident, "MiB", None);
    Ok(())
}

/// jemalloc gives freed memory back when its owner next allocates, unless a thread of its own does it.
const ALLOCATOR_OPTIONS: (&str, &str) = (
    "_RJEM_MALLOC_CONF",
    "background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0",
);

fn main() -> Result<(), Failure> {
    if std::env::var_os(ALLOCATOR_OPTIONS.0).is_none() {
        // It reads them once, at the start of the process.
        let mut again = std::process::Command::new(std::env::current_exe()?);
        let ended = again
            .args(std::env::args_os().skip(1))
            .env(ALLOCATOR_OPTIONS.0, ALLOCATOR_OPTIONS.1)
            .status()?;
        std::process::exit(ended.code().unwrap_or(1));
    }
    let o = options()?;
    eprintln!(
        "{} IDs over {} bucket(s), cache {} MiB, batches of {}",
        o.ids, o.buckets, o.cache, o.batch
    );
    let mut report = Report::default();
    blocks(&o, &mut report)?;
    if o.naive > 0 {
        naive(&o, &mut report)?;
    }
    report.print(o.json);
    Ok(())
}
