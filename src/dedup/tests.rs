//! The store against a plain map, over random histories; damage, expiry, readers beside writers.

use super::*;
use crate::core::ledger::fold::FinishedState;
use crate::core::types::{MessageId, RouteId};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub(super) const HOUR: u64 = 3_600_000_000;

pub(super) fn options() -> DedupOptions {
    let hour = Duration::from_secs(3_600);
    DedupOptions {
        bucket: hour,
        memtable: 64,
        block: 512,
        cache: 1 << 20,
        old_cache: 1 << 20,
        ..DedupOptions::new(7)
    }
}

pub(super) fn open(dir: &Path) -> DedupStore {
    let (store, report) = DedupStore::open(dir, options()).unwrap();
    assert!(
        matches!(report.rebuild, None | Some(Rebuild::Missing)),
        "{report:?}"
    );
    store
}

pub(super) fn at(partition: u32) -> RoutePartition {
    RoutePartition {
        route: RouteId(9),
        partition,
    }
}

pub(super) fn id(n: u64) -> MessageId {
    let mut out = [0; 16];
    fastrand::Rng::with_seed(n).fill(&mut out);
    MessageId(out)
}

pub(super) fn finished(n: u64, state: FinishedState, when: u64, ledger: u64) -> Finished {
    Finished {
        at: at((n % 3) as u32),
        id: id(n),
        state,
        when: Time(when / 1_000_000 * 1_000_000),
        status: (ledger % 600) as u16,
        attempts: (n % 5) as u32,
        offset: n * 3,
        ledger,
        readable: format!("order-{n}").into(),
    }
}

/// Records `ids`, one ledger offset each from `from` on, in batches.
pub(super) fn fill(store: &DedupStore, ids: std::ops::Range<u64>, when: u64, from: u64) -> u64 {
    let mut next = from;
    let ids: Vec<u64> = ids.collect();
    for chunk in ids.chunks(50) {
        let ops: Vec<_> = (chunk.iter().zip(next..))
            .map(|(&n, ledger)| StoreOp::Finished(finished(n, FinishedState::Delivered, when, ledger)))
            .collect();
        next += chunk.len() as u64;
        store.record(&ops, next).unwrap();
    }
    next
}

/// Waits until every bucket that is over is sealed, and sled's folders are gone.
pub(super) fn settle(store: &DedupStore) {
    let began = std::time::Instant::now();
    while store.stats().unsealed > 0 || store.retired() > 0 {
        assert_eq!(store.stats().seal_refuses, None);
        assert!(began.elapsed() < Duration::from_secs(60), "it is never sealed");
        std::thread::yield_now();
    }
}

pub(super) fn has(store: &DedupStore, n: u64) -> bool {
    store.get(at((n % 3) as u32), id(n)).unwrap().is_some()
}

#[derive(Clone, Debug)]
enum Step {
    Record(Vec<(u64, u8)>),
    Forget(Vec<u64>),
    Pass(u64),
    Advance(u64),
    Expire,
    CarryAndExpire(u32),
    Sync,
    /// Waits until every bucket that is over is sealed.
    Seal,
    Reopen,
    /// Without a sync: what is after the watermark is fed again.
    Crash,
    Reset,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => proptest::collection::vec((0u64..400, 1u8..7), 1..90).prop_map(Step::Record),
        3 => proptest::collection::vec(0u64..400, 1..20).prop_map(Step::Forget),
        2 => (0u64..2 * HOUR).prop_map(Step::Pass),
        1 => (0u64..2 * HOUR).prop_map(Step::Advance),
        1 => Just(Step::Expire),
        1 => (0u32..3).prop_map(Step::CarryAndExpire),
        2 => Just(Step::Sync),
        2 => Just(Step::Seal),
        1 => Just(Step::Reopen),
        2 => Just(Step::Crash),
        1 => Just(Step::Reset),
    ];
    proptest::collection::vec(step, 1..40)
}

fn state(n: u8) -> FinishedState {
    use FinishedState::*;
    [Delivered, Dead, Skipped, Parked, Marked, Waiting][usize::from(n - 1)]
}

/// What the store must answer: the newest word on each ID, the bucket it stands in, and the ledger behind it all.
#[derive(Default)]
struct Model {
    now: u64,
    span: (u64, u64),
    /// Newest word on each ID with the start of its bucket; none: forgotten.
    words: HashMap<u64, (u64, Option<Finished>)>,
    ledger: Vec<(StoreOp, u64)>,
    /// Next ledger offset.
    next: u64,
}

impl Model {
    fn put(&mut self, n: u64, word: Option<Finished>) {
        if let Some(f) = &word
            && (self.span.1 == 0 || f.when.0 >= self.span.1)
        {
            self.span = (
                (f.when.0 / HOUR * HOUR).max(self.span.1),
                f.when.0 / HOUR * HOUR + HOUR,
            );
        }
        if word.is_some() || self.span.1 != 0 {
            self.words.insert(n, (self.span.0, word));
        }
    }
}

fn run(steps: &[Step]) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Some(open(dir.path()));
    let mut model = Model {
        now: 100 * HOUR,
        ..Model::default()
    };
    for step in steps {
        let s = store.as_ref().unwrap();
        match step {
            Step::Record(items) => {
                let mut ops = Vec::new();
                for &(n, st) in items {
                    let f = finished(n, state(st), model.now, model.next);
                    model.ledger.push((StoreOp::Finished(f.clone()), n));
                    ops.push(StoreOp::Finished(f.clone()));
                    model.put(n, Some(f));
                    model.next += 1;
                }
                s.record(&ops, model.next).unwrap();
            }
            Step::Forget(items) => {
                let mut ops = Vec::new();
                for &n in items {
                    let op = StoreOp::Forget {
                        at: at((n % 3) as u32),
                        id: id(n),
                    };
                    model.ledger.push((op.clone(), n));
                    ops.push(op);
                    model.put(n, None);
                    model.next += 1;
                }
                s.record(&ops, model.next).unwrap();
            }
            Step::Pass(us) => model.now += us,
            Step::Advance(us) => {
                model.now += us;
                s.advance(Time(model.now)).unwrap();
                if model.span.1 != 0 && model.now >= model.span.1 {
                    model.span = (
                        (model.now / HOUR * HOUR).max(model.span.1),
                        model.now / HOUR * HOUR + HOUR,
                    );
                }
            }
            Step::Expire | Step::CarryAndExpire(_) => {
                s.sync().unwrap();
                let Some(oldest) = s.buckets().first().cloned() else {
                    continue;
                };
                let from = oldest.from.0;
                if oldest.present {
                    prop_assert!(matches!(s.expire(oldest.id), Err(DedupError::Present(_))));
                    continue;
                }
                if let Step::CarryAndExpire(partition) = step {
                    s.carry(oldest.id, &[at(*partition)]).unwrap();
                    let present = model.span.0;
                    for (n, (bucket, word)) in &mut model.words {
                        if *bucket == from && word.is_some() && n % 3 == u64::from(*partition) {
                            *bucket = present;
                        }
                    }
                }
                s.expire(oldest.id).unwrap();
                model.words.retain(|_, (bucket, _)| *bucket != from);
            }
            Step::Sync => {
                s.sync().unwrap();
                prop_assert_eq!(s.watermark(), model.next);
            }
            Step::Seal => settle(s),
            Step::Reopen | Step::Crash => {
                if matches!(step, Step::Reopen) {
                    s.sync().unwrap();
                }
                let least = s.watermark();
                drop(store.take());
                let s = store.insert(open(dir.path()));
                let from = s.watermark();
                prop_assert!(
                    from >= least,
                    "durable up to {} was told, {} is there",
                    least,
                    from
                );
                // A bucket that only an advance had begun is not kept: what is fed again may stand in another.
                model.span = s.present_span().map_or((0, 0), |(from, to)| (from.0, to.0));
                let rest: Vec<_> = model.ledger[from as usize..].to_vec();
                for (i, (op, n)) in rest.iter().enumerate() {
                    s.record(std::slice::from_ref(op), from + i as u64 + 1).unwrap();
                    model.put(
                        *n,
                        match op {
                            StoreOp::Finished(f) => Some(f.clone()),
                            StoreOp::Forget { .. } => None,
                        },
                    );
                }
            }
            Step::Reset => {
                s.reset().unwrap();
                prop_assert_eq!(s.watermark(), 0);
                model.words.clear();
                model.ledger.clear();
                model.next = 0;
                model.span = (0, 0);
            }
        }
        let s = store.as_ref().unwrap();
        for partition in 0..3 {
            let numbers: Vec<u64> = (0..400).filter(|n| n % 3 == u64::from(partition)).collect();
            let ids: Vec<_> = numbers.iter().map(|&n| id(n)).collect();
            let mut out = Vec::new();
            s.lookup(at(partition), &ids, &mut out).unwrap();
            for (n, answer) in numbers.iter().zip(out) {
                let expected = model.words.get(n).and_then(|(_, word)| word.clone());
                prop_assert_eq!(&answer, &expected, "ID {} after {:?}", n, step);
            }
        }
        let mut listed = BTreeMap::new();
        s.iterate(&IdFilter::default(), &mut |f| {
            assert!(listed.insert(f.id, f).is_none(), "listed twice");
            ControlFlow::Continue(())
        })
        .unwrap();
        let expected: BTreeMap<_, _> = model
            .words
            .values()
            .filter_map(|(_, word)| word.clone())
            .map(|f| (f.id, f))
            .collect();
        prop_assert_eq!(listed, expected);
    }
    Ok(())
}

#[test]
fn answers_like_a_map() {
    let cases = std::env::var("SLUICEGATE_DEDUP_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(12);
    let config = ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(steps in steps())| run(&steps)?);
}

#[test]
fn a_second_one_on_the_folder_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let second = DedupStore::open(dir.path(), options());
    assert!(matches!(second, Err(DedupError::InUse { .. })));
    drop(store);
    open(dir.path());
}

/// Damages a store, opens it, and returns the report.
fn after(damage: impl FnOnce(&Path), options: DedupOptions) -> (OpenReport, u64, bool) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    fill(&store, 0..1_000, 100 * HOUR, 0);
    store.sync().unwrap();
    drop(store);
    damage(dir.path());
    let (store, report) = DedupStore::open(dir.path(), options).unwrap();
    if let Some(path) = &report.moved_to {
        assert!(path.is_dir());
    }
    let all = (0..1_000).all(|n| has(&store, n));
    (report, store.watermark(), all)
}

fn bucket(dir: &Path) -> std::path::PathBuf {
    dir.join("bucket-0")
}

#[test]
fn damage_is_told_and_never_an_empty_store() {
    type Harm = (&'static str, fn(&Path));
    let harms: [Harm; 6] = [
        ("manifest cut", |d| {
            std::fs::write(d.join("MANIFEST"), b"sluicegate-dedup 1 0").unwrap()
        }),
        ("manifest deleted", |d| {
            std::fs::remove_file(d.join("MANIFEST")).unwrap()
        }),
        ("bucket deleted", |d| std::fs::remove_dir_all(bucket(d)).unwrap()),
        ("database deleted", |d| {
            std::fs::remove_file(bucket(d).join("db")).unwrap()
        }),
        ("database emptied", |d| {
            std::fs::write(bucket(d).join("db"), b"").unwrap()
        }),
        ("database overwritten", |d| {
            let path = bucket(d).join("db");
            let len = std::fs::metadata(&path).unwrap().len() as usize;
            std::fs::write(path, vec![0x5a; len]).unwrap();
        }),
    ];
    for (name, harm) in harms {
        let (report, watermark, _) = after(harm, options());
        assert!(
            matches!(report.rebuild, Some(Rebuild::Damaged(_))),
            "{name}: {report:?}"
        );
        assert!(report.moved_to.is_some() && watermark == 0, "{name}");
    }
    let (report, ..) = after(
        |_| (),
        DedupOptions {
            ledger: 8,
            ..options()
        },
    );
    assert_eq!(report.rebuild, Some(Rebuild::OtherLedger("7".into())));
    let newer = |d: &Path| {
        let text = std::fs::read_to_string(d.join("MANIFEST")).unwrap();
        std::fs::write(d.join("MANIFEST"), text.replacen("dedup 2", "dedup 3", 1)).unwrap();
    };
    assert_eq!(after(newer, options()).0.rebuild, Some(Rebuild::Format(3)));
    let gone = |d: &Path| {
        std::fs::remove_dir_all(d).unwrap();
    };
    assert_eq!(after(gone, options()).0.rebuild, Some(Rebuild::Missing));
}

#[test]
fn what_can_be_put_right_is() {
    let filters = |d: &Path| bucket(d).join("filters");
    let (report, watermark, all) = after(|d| std::fs::remove_file(filters(d)).unwrap(), options());
    assert!(
        report.rebuild.is_none() && watermark == 1_000 && all,
        "{report:?}"
    );
    assert!(report.repaired.iter().any(|r| r.contains("filter")), "{report:?}");
    let flip = |d: &Path| {
        let mut bytes = std::fs::read(filters(d)).unwrap();
        bytes.iter_mut().skip(40).step_by(97).for_each(|b| *b = 0);
        std::fs::write(filters(d), bytes).unwrap();
    };
    let (report, watermark, all) = after(flip, options());
    assert!(
        report.rebuild.is_none() && watermark == 1_000 && all,
        "{report:?}"
    );
    // What a kill inside sled's open leaves: without the guard every later open fails.
    let half = |d: &Path| {
        for lsn in ["0000000000000000", "00000000000FFFFF"] {
            std::fs::write(bucket(d).join(format!("snap.{lsn}.generating")), b"half").unwrap();
        }
    };
    let (report, watermark, all) = after(half, options());
    assert!(
        report.rebuild.is_none() && watermark == 1_000 && all,
        "{report:?}"
    );
    assert_eq!(
        report.repaired.iter().filter(|r| r.contains("snap.")).count(),
        2,
        "{report:?}"
    );
}

/// A spill that was cut off before the manifest named its run: its blocks must not answer, and its number is used
/// again.
#[test]
fn a_half_written_spill_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let next = fill(&store, 0..128, 100 * HOUR, 0);
    store.sync().unwrap();
    let kept = || {
        std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter(|p| p.is_file())
    };
    let before: Vec<_> = kept().map(|p| (p.clone(), std::fs::read(p).unwrap())).collect();
    fill(&store, 1_000..1_200, 100 * HOUR, next);
    store.sync().unwrap();
    drop(store);
    kept().for_each(|p| std::fs::remove_file(p).unwrap());
    before
        .iter()
        .for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
    let store = open(dir.path());
    assert_eq!(store.watermark(), next);
    assert!((0..128).all(|n| has(&store, n)));
    assert!(!(1_000..1_200).any(|n| has(&store, n)));
    // Other IDs under the same run numbers: the old blocks must not shine through.
    fill(&store, 2_000..2_300, 100 * HOUR, next);
    store.sync().unwrap();
    assert!((2_000..2_300).all(|n| has(&store, n)) && !(1_000..1_200).any(|n| has(&store, n)));
    drop(store);
    let store = open(dir.path());
    assert!((2_000..2_300).all(|n| has(&store, n)) && !(1_000..1_200).any(|n| has(&store, n)));
}

/// Whose an ID is, wherever it lies: in memory, in sled, sealed; forgotten it is nobody's.
#[test]
fn an_id_is_told_whose_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for n in 0..200 {
        let done = finished(n, FinishedState::Delivered, 7 * HOUR + n, n);
        store.record(&[StoreOp::Finished(done)], n + 1).unwrap();
    }
    let whose = |n: u64| store.holder(id(n)).unwrap();
    assert!((0..200).all(|n| whose(n) == Some(at((n % 3) as u32))));
    let forget = StoreOp::Forget { at: at(1), id: id(1) };
    store.record(&[forget], 201).unwrap();
    assert_eq!((whose(1), whose(2), whose(900)), (None, Some(at(2)), None));
}

#[test]
fn expiry_gives_disk_and_filters_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut next = 0;
    for hour in 0..4 {
        next = fill(
            &store,
            hour * 2_000..(hour + 1) * 2_000,
            (100 + hour) * HOUR,
            next,
        );
    }
    store.sync().unwrap();
    let before = store.stats();
    assert_eq!(before.buckets.len(), 4);
    let first = before.buckets[0].clone();
    assert!(!first.open && first.records == 2_000);
    assert_eq!(first.routes.iter().map(|r| r.1).sum::<u64>(), 2_000);
    let newest = before.buckets[3].id;
    assert!(matches!(store.expire(newest), Err(DedupError::Present(_))));
    assert!(matches!(
        store.expire(before.buckets[1].id),
        Err(DedupError::NotOldest(_))
    ));
    assert!(matches!(store.expire(99), Err(DedupError::NoBucket(99))));
    let freed = store.expire(first.id).unwrap();
    let after = store.stats();
    assert!(
        freed > 0 && before.disk_bytes - after.disk_bytes >= freed,
        "{freed} {before:?} {after:?}"
    );
    assert!(after.filter_bytes <= before.filter_bytes - first.filter_bytes);
    assert!(!dir.path().join(format!("bucket-{}", first.id)).exists());
    assert!(!(0..2_000).any(|n| has(&store, n)) && (2_000..8_000).all(|n| has(&store, n)));
}

#[test]
fn lists_by_route_state_time_and_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let next = fill(&store, 0..300, 100 * HOUR, 0);
    let dead = StoreOp::Finished(finished(5, FinishedState::Dead, 102 * HOUR, next));
    let later = StoreOp::Finished(finished(1_000, FinishedState::Parked, 102 * HOUR, next + 1));
    store.record(&[dead, later], next + 2).unwrap();
    let count = |filter: IdFilter| {
        let mut seen = Vec::new();
        let mut visit = |f: Found| {
            seen.push(f);
            ControlFlow::Continue(())
        };
        store.iterate(&filter, &mut visit).unwrap();
        seen.len()
    };
    assert_eq!(count(IdFilter::default()), 301);
    assert_eq!(
        count(IdFilter {
            at: Some([at(1)].into()),
            ..IdFilter::default()
        }),
        101
    );
    assert_eq!(
        count(IdFilter {
            states: Some([FinishedState::Dead].into()),
            ..IdFilter::default()
        }),
        1
    );
    assert_eq!(
        count(IdFilter {
            from: Some(Time(101 * HOUR)),
            ..IdFilter::default()
        }),
        2
    );
    assert_eq!(
        count(IdFilter {
            to: Some(Time(101 * HOUR)),
            ..IdFilter::default()
        }),
        299
    );
    assert_eq!(
        count(IdFilter {
            prefix: Some("order-29".into()),
            ..IdFilter::default()
        }),
        11
    );
    assert_eq!(
        count(IdFilter {
            prefix: Some(id(7).to_string()),
            ..IdFilter::default()
        }),
        1
    );
    let mut one = 0;
    let mut stop = |_| {
        one += 1;
        ControlFlow::Break(())
    };
    store.iterate(&IdFilter::default(), &mut stop).unwrap();
    assert_eq!(one, 1);
}

/// Two readers ask all the while what two threads record, through spills, rolls, expiry and carrying: whatever was
/// told to be recorded is found.
#[test]
fn readers_beside_writers_miss_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let told = AtomicU64::new(0);
    let done = AtomicBool::new(false);
    let expired = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for reader in 0..2 {
            let (store, told, done, expired) = (&store, &told, &done, &expired);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(reader);
                let mut out = Vec::new();
                while !done.load(Ordering::Acquire) {
                    let last = told.load(Ordering::Acquire);
                    if last == 0 {
                        continue;
                    }
                    // IDs of partition 0 are carried, so they stay whatever expires.
                    let ids: Vec<u64> = (0..40).map(|_| random.u64(0..last) / 3 * 3).collect();
                    let hashed: Vec<_> = ids.iter().map(|&n| id(n)).collect();
                    store.lookup(at(0), &hashed, &mut out).unwrap();
                    for (n, found) in ids.iter().zip(&out) {
                        let seen = expired.load(Ordering::Acquire);
                        assert!(
                            found.as_ref().is_some_and(|f| f.offset == n * 3),
                            "{n} of {last}, expired {seen}"
                        );
                    }
                }
            });
        }
        let mut next = 0;
        for hour in 0..12 {
            for _ in 0..6 {
                let from = next;
                next = fill(&store, from..from + 100, (100 + hour) * HOUR, from);
                told.store(next, Ordering::Release);
            }
            if hour > 2 {
                store.sync().unwrap();
                let oldest = store.buckets()[0].id;
                store.carry(oldest, &[at(0)]).unwrap();
                store.expire(oldest).unwrap();
                expired.fetch_add(1, Ordering::Release);
            }
        }
        done.store(true, Ordering::Release);
    });
    assert!((0..7_200).step_by(3).all(|n| has(&store, n)));
    assert!(!(1..600).step_by(3).any(|n| has(&store, n)));
}

/// A bucket whose last table is written before the next one begins is sealed without anything further.
#[test]
fn a_bucket_is_sealed_without_further_records() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.roll_waits();
    let mut next = 0;
    for hour in 100..104 {
        next = fill(&store, next..next + 10, hour * HOUR, next);
        store.advance(Time((hour + 1) * HOUR)).unwrap();
        settle(&store);
        assert_eq!(store.buckets().len() as u64, hour - 99);
    }
}

/// What two lives leave behind: sealed buckets, a bucket in sled with several runs, a tail with records and progress
/// without any, and IDs carried out of a bucket that is gone. The ledger is its operations.
struct Left {
    dir: tempfile::TempDir,
    ledger: Vec<StoreOp>,
    /// IDs that must be known.
    known: Vec<u64>,
}

fn two_lives() -> Left {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Vec::new();
    let mut store = open(dir.path());
    let feed = |store: &DedupStore, ledger: &mut Vec<StoreOp>, ids: std::ops::Range<u64>, hour: u64| {
        for n in ids {
            let at = ledger.len() as u64;
            // What is no outcome moves the ledger on as well.
            let op = StoreOp::Finished(finished(n, FinishedState::Delivered, hour * HOUR, at));
            ledger.push(op.clone());
            store.take(&[op], mark(at + 1)).unwrap();
        }
    };
    feed(&store, &mut ledger, 0..150, 100);
    feed(&store, &mut ledger, 150..300, 101);
    store.sync().unwrap();
    settle(&store);
    let oldest = store.buckets()[0].id;
    store.carry(oldest, &[at(0)]).unwrap();
    store.expire(oldest).unwrap();
    feed(&store, &mut ledger, 300..320, 101);
    store.sync().unwrap();
    drop(store);
    store = open(dir.path());
    assert_eq!(store.watermark(), 320);
    feed(&store, &mut ledger, 320..520, 102);
    store.sync().unwrap();
    settle(&store);
    feed(&store, &mut ledger, 520..540, 102);
    store.sync().unwrap();
    // Entries without an operation: the watermark moves, and nothing else.
    let more = StoreOp::Forget {
        at: at(1),
        id: id(1_000_001),
    };
    ledger.push(more.clone());
    store.take(&[], mark(541)).unwrap();
    store.sync().unwrap();
    assert_eq!(store.watermark(), 541);
    drop(store);
    let known = (0..540).filter(|n| *n >= 150 || n % 3 == 0).collect();
    Left { dir, ledger, known }
}

fn mark(next: u64) -> Mark {
    Mark {
        next,
        entry: next as u32,
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &target),
            false => drop(std::fs::copy(&path, &target).unwrap()),
        }
    }
}

fn files(dir: &Path, below: &Path, out: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(dir.join(below)).unwrap() {
        let name = below.join(entry.unwrap().file_name());
        match dir.join(&name).is_dir() {
            true => files(dir, &name, out),
            false => out.push(name),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Harm {
    Remove,
    Empty,
    Half,
    Last,
    Flip(usize),
}

impl Harm {
    fn does(self, file: &Path) {
        let mut bytes = std::fs::read(file).unwrap();
        let len = bytes.len();
        match self {
            Harm::Remove => return std::fs::remove_file(file).unwrap(),
            Harm::Empty => bytes.clear(),
            Harm::Half => bytes.truncate(len / 2),
            Harm::Last => bytes.truncate(len.saturating_sub(1)),
            Harm::Flip(at) => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 0x10;
                }
            }
        }
        std::fs::write(file, bytes).unwrap();
    }
}

/// Whatever file of the folder is cut, changed, emptied or removed between two lives: what the store does not have it
/// does not vouch for, and the ledger gives it back; or it says that it is damaged. No ID is taken for absent.
#[test]
fn no_damage_to_the_folder_makes_an_id_unknown() {
    let left = two_lives();
    let mut names = Vec::new();
    files(left.dir.path(), Path::new(""), &mut names);
    let rng = &mut fastrand::Rng::with_seed(7);
    let (mut fell_back, mut refused, mut rebuilt) = (0, 0, 0);
    for name in &names {
        let bytes = std::fs::read(left.dir.path().join(name)).unwrap();
        let written: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at] != 0).collect();
        let mut harms = vec![Harm::Remove, Harm::Empty, Harm::Half, Harm::Last];
        if !written.is_empty() {
            harms.extend((0..8).map(|_| Harm::Flip(written[rng.usize(..written.len())])));
        }
        for harm in harms {
            let dir = tempfile::tempdir().unwrap();
            copy(left.dir.path(), dir.path());
            harm.does(&dir.path().join(name));
            let what = format!("{} {harm:?}", name.display());
            let (store, report) = DedupStore::open(dir.path(), options()).unwrap();
            let from = store.watermark();
            assert!(from <= 541, "{what}");
            rebuilt += u32::from(report.rebuild.is_some());
            fell_back += u32::from(report.rebuild.is_none() && from < 541);
            for (n, op) in (from..).zip(&left.ledger[from as usize..]) {
                store.take(std::slice::from_ref(op), mark(n + 1)).unwrap();
            }
            for &n in &left.known {
                match store.get(at((n % 3) as u32), id(n)) {
                    Ok(found) => assert!(
                        found.is_some(),
                        "{what}: ID {n} is unknown, {report:?}, fed from {from}"
                    ),
                    Err(DedupError::Damaged { .. }) => refused += 1,
                    Err(other) => panic!("{what}: {other}"),
                }
            }
        }
    }
    assert!(
        fell_back > 5 && rebuilt > 5,
        "{fell_back} fell back, {rebuilt} rebuilt, {refused} refused"
    );
}

/// The one byte that cost a hundred messages: flipped inside the tail, whose records the manifest vouched for.
#[test]
fn a_tail_that_is_short_or_gone_is_fed_again() {
    for (harm, repaired) in [
        (Harm::Flip(400), "whole frame"),
        (Harm::Half, "whole frame"),
        (Harm::Empty, "head"),
        (Harm::Remove, ""),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let next = fill(&store, 0..40, 100 * HOUR, 0);
        store.sync().unwrap();
        store.record(&[], next + 5).unwrap();
        store.sync().unwrap();
        drop(store);
        let store = open(dir.path());
        assert_eq!(store.watermark(), 45);
        store.record(&[], 50).unwrap();
        store.sync().unwrap();
        drop(store);
        harm.does(&dir.path().join("tail-0"));
        let (store, report) = DedupStore::open(dir.path(), options()).unwrap();
        assert_eq!(report.rebuild, None, "{harm:?}");
        assert!(store.watermark() < 40, "{harm:?}: {}", store.watermark());
        assert!(report.repaired.concat().contains(repaired), "{report:?}");
        fill(&store, 0..40, 100 * HOUR, 0);
        assert!((0..40).all(|n| has(&store, n)), "{harm:?}");
    }
}

/// IDs that were carried stand in no entry behind the runs' mark: a store that lost them is built again as a whole.
#[test]
fn carried_ids_that_are_lost_cost_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    fill(&store, 0..30, 100 * HOUR, 0);
    fill(&store, 30..60, 101 * HOUR, 30);
    store.sync().unwrap();
    settle(&store);
    let oldest = store.buckets()[0].id;
    assert_eq!(store.carry(oldest, &[at(0)]).unwrap(), 10);
    store.expire(oldest).unwrap();
    drop(store);
    let (store, report) = DedupStore::open(dir.path(), options()).unwrap();
    assert!(report.rebuild.is_none() && has(&store, 0), "{report:?}");
    drop(store);
    let tail = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path());
    let tail = tail
        .into_iter()
        .find(|p| p.to_string_lossy().contains("tail-"))
        .unwrap();
    Harm::Last.does(&tail);
    let (store, report) = DedupStore::open(dir.path(), options()).unwrap();
    assert!(matches!(report.rebuild, Some(Rebuild::Damaged(_))), "{report:?}");
    assert_eq!(store.watermark(), 0);
}

#[test]
fn the_entry_before_the_watermark_is_kept_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    for (round, next) in [(0u64, 10u64), (1, 150), (2, 151), (3, 300)] {
        let store = open(dir.path());
        let from = store.watermark();
        let ops: Vec<_> = (from..next)
            .map(|n| StoreOp::Finished(finished(n, FinishedState::Delivered, 100 * HOUR, n)))
            .collect();
        store.take(&ops, mark(next)).unwrap();
        store.sync().unwrap();
        assert_eq!(store.mark(), mark(next), "round {round}");
        drop(store);
        assert_eq!(open(dir.path()).mark(), mark(next), "round {round}");
    }
}

/// What happens to a store on a machine whose clock may be set at any time.
#[derive(Clone, Debug)]
enum Tick {
    /// So much time passes, and these IDs are recorded by a clock that is wrong by so many hours.
    Record(u64, Vec<u64>, i64),
    /// The clock is told.
    Advance(i64),
    /// The present bucket is open for too long.
    Close(i64),
    Sync,
    Expire,
    /// With a sync before, or without: what is after the watermark is fed again, at once.
    Open(bool),
}

fn ticks() -> impl Strategy<Value = Vec<Tick>> {
    let wrong = || prop_oneof![4 => Just(0i64), 1 => -2i64..3, 1 => -90i64..9_000];
    let ids = proptest::collection::vec(0u64..300, 1..70);
    let tick = prop_oneof![
        8 => (0..HOUR, ids, wrong()).prop_map(|(pass, ids, wrong)| Tick::Record(pass, ids, wrong)),
        2 => wrong().prop_map(Tick::Advance),
        1 => wrong().prop_map(Tick::Close),
        1 => Just(Tick::Sync),
        2 => Just(Tick::Expire),
        2 => any::<bool>().prop_map(Tick::Open),
    ];
    proptest::collection::vec(tick, 1..40)
}

/// Whatever the clock shows, and wherever the process dies: what a bucket holds is said before it closed, so nothing goes
/// with it that was said later.
fn closes_behind_what_it_holds(ticks: &[Tick]) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Some(open(dir.path()));
    let mut ledger: Vec<StoreOp> = Vec::new();
    let mut said: BTreeMap<u64, u64> = BTreeMap::new();
    let mut truth = 100 * HOUR;
    let clock = |truth: u64, wrong: i64| truth.saturating_add_signed(wrong * HOUR as i64);
    for tick in ticks {
        let s = store.as_ref().unwrap();
        match tick {
            Tick::Record(pass, ids, wrong) => {
                truth += pass;
                let first = ledger.len();
                for n in ids {
                    let at = ledger.len() as u64;
                    let state = FinishedState::Delivered;
                    ledger.push(StoreOp::Finished(finished(*n, state, clock(truth, *wrong), at)));
                    said.insert(*n, at);
                }
                s.record(&ledger[first..], ledger.len() as u64).unwrap();
            }
            Tick::Advance(wrong) => s.advance(Time(clock(truth, *wrong))).unwrap(),
            Tick::Close(wrong) => s.close_present(Time(clock(truth, *wrong))).unwrap(),
            Tick::Sync => s.sync().unwrap(),
            Tick::Expire => {
                s.sync().unwrap();
                let oldest = s.buckets().first().cloned();
                if let Some(oldest) = oldest.filter(|b| !b.present) {
                    s.expire(oldest.id).unwrap();
                    prop_assert!(s.remembers_from_offset() >= oldest.closed);
                }
            }
            Tick::Open(sync) => {
                if *sync {
                    s.sync().unwrap();
                }
                drop(store.take());
                let s = store.insert(open(dir.path()));
                let from = s.watermark() as usize;
                s.record(&ledger[from..], ledger.len() as u64).unwrap();
            }
        }
        let s = store.as_ref().unwrap();
        let mut before = 0;
        for bucket in s.buckets().iter().filter(|b| !b.present) {
            let closed = bucket.closed.expect("one that is over says where it ended");
            prop_assert!((before..=ledger.len() as u64).contains(&closed));
            before = closed;
        }
        prop_assert!(s.present_from().is_none_or(|from| from >= before));
        let Some(from) = s.remembers_from_offset() else {
            continue;
        };
        for (n, at) in said.iter().filter(|(_, at)| **at >= from) {
            prop_assert!(
                has(s, *n),
                "ID {n}, said at {at}, is gone with what was said before {from}"
            );
        }
    }
    Ok(())
}

#[test]
fn whatever_the_clock_shows_a_bucket_closes_behind_what_it_holds() {
    let config = ProptestConfig {
        cases: 24,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(ticks in ticks())| closes_behind_what_it_holds(&ticks)?);
}

/// A clock that was a year ahead has put the present bucket into the future: once that is closed, the next one is of the
/// clock's own time again, also for what is opened anew.
#[test]
fn a_bucket_of_the_future_gives_way_to_one_of_the_present() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (now, ahead) = (100 * HOUR, 9_000 * HOUR);
    let next = fill(&store, 0..100, now, 0);
    let next = fill(&store, 100..110, ahead, next);
    let next = fill(&store, 110..200, now, next);
    assert_eq!(store.present_span(), Some((Time(ahead), Time(ahead + HOUR))));
    assert_eq!(store.present_from(), Some(110));
    store.close_present(Time(now)).unwrap();
    assert_eq!(store.present_span(), Some((Time(now), Time(now + HOUR))));
    let next = fill(&store, 200..300, now, next);
    store.sync().unwrap();
    drop(store);
    let store = open(dir.path());
    settle(&store);
    assert_eq!(store.present_span(), Some((Time(now), Time(now + HOUR))));
    let closed: Vec<_> = store.buckets().iter().filter_map(|b| b.closed).collect();
    assert_eq!((closed, store.present_from()), (vec![110, 200], Some(200)));
    fill(&store, 300..310, now + HOUR, next);
    for _ in 0..2 {
        let oldest = store.buckets()[0].id;
        store.expire(oldest).unwrap();
    }
    assert_eq!(store.remembers_from_offset(), Some(200));
    assert!((200..310).all(|n| has(&store, n)) && (0..200).all(|n| !has(&store, n)));
}

/// A store of 0.1 does not say where its buckets closed: they count as closed where it was opened first, so their IDs are
/// remembered for longer, never shorter.
#[test]
fn buckets_of_0_1_count_as_closed_where_they_are_met() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut next = 0;
    for hour in 100..104 {
        next = fill(&store, next..next + 70, hour * HOUR, next);
    }
    store.sync().unwrap();
    settle(&store);
    drop(store);
    let mut manifest = manifest::load(dir.path()).unwrap();
    manifest.buckets.iter_mut().for_each(|b| b.closed = None);
    manifest.gone = 0;
    manifest::store(dir.path(), &manifest).unwrap();
    for _ in 0..2 {
        let store = open(dir.path());
        let closed: Vec<_> = store
            .buckets()
            .iter()
            .filter(|b| !b.present)
            .map(|b| b.closed)
            .collect();
        assert_eq!(closed, vec![Some(280); 3]);
        assert_eq!(store.present_from(), Some(280));
    }
    let manifest = manifest::load(dir.path()).unwrap();
    assert_eq!(manifest.buckets[0].closed, Some(280), "it is written down");
}
