//! Failing writes and syncs, power cuts at every step, full disks.

use super::*;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const EROFS: i32 = 30;

fn with_fault(hook: impl Fn(Step, u64) -> Option<Fault> + Send + Sync + 'static) -> EmbeddedOptions {
    EmbeddedOptions {
        fault: Some(Arc::new(move |step, n| hook(step, n).or(unsynced(step)))),
        ..tiny()
    }
}

#[test]
fn a_failed_write_or_sync_ends_the_log_for_good() {
    for step in [Step::Write, Step::Sync] {
        let dir = folder();
        let armed = Arc::new(AtomicBool::new(false));
        let hook = Arc::clone(&armed);
        // Once only: a second try would succeed, and must not be made.
        let options = with_fault(move |s, _| {
            (s == step && hook.swap(false, Ordering::AcqRel)).then_some(Fault::Error(EIO))
        });
        let log = open(dir.path(), &options).expect("opens");
        let p = log.create_topic("t", &spec(1)).expect("made").partitions[0];
        (0..5).for_each(|n| drop(append(&log, one(p, n, 10)).expect("taken")));
        let mut tx = log.begin().expect("begun");
        armed.store(true, Ordering::Release);
        let waiting: Vec<_> = (5..8).map(|n| conformance::send(&log, one(p, n, 10))).collect();
        for answer in waiting {
            assert!(matches!(
                patience::hear(&answer).expect("answered"),
                Err(LogError::Failed { .. })
            ));
        }
        assert!(matches!(
            append(&log, one(p, 9, 10)),
            Err(LogError::Failed { .. })
        ));
        assert!(matches!(
            log.create_topic("u", &spec(1)),
            Err(LogError::Failed { .. })
        ));
        assert!(matches!(log.begin().map(|_| ()), Err(LogError::Failed { .. })));
        assert!(matches!(log.bounds(p), Err(LogError::Failed { .. })));
        assert!(tx.append(one(p, 10, 10)).is_err());
        assert!(tx.commit(Batch::new()).is_err());
        assert!(matches!(log.close(), Err(LogError::Failed { .. })));
        drop(log);
        let log = open(dir.path(), &tiny()).expect("opens");
        let found = numbers(&log, p, 0);
        assert!(found.len() >= 5 && found.into_iter().eq(0..log.bounds(p).expect("there").next));
    }
}

/// What one run did: batches acknowledged, and how a transaction ended.
struct Run {
    acknowledged: Vec<u64>,
    /// Numbers below this were trimmed, or may have been.
    trimmed: u64,
    committed: Option<bool>,
    steps: usize,
}

const TX: u64 = 1_000_000;

/// Batches over two partitions, group offsets, a transaction, trims that free segments: all that writes.
fn run(dir: &Path, cut: Option<(u64, usize)>) -> Run {
    let steps = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&steps);
    let options = with_fault(move |_, n| {
        count.fetch_add(1, Ordering::Relaxed);
        cut.filter(|(at, _)| *at == n).map(|(_, bytes)| Fault::Cut(bytes))
    });
    let mut out = Run {
        acknowledged: Vec::new(),
        trimmed: 0,
        committed: None,
        steps: 0,
    };
    // A closure that ends at the first failure: the process is dead then.
    let mut life = || -> Option<()> {
        let log = open(dir, &options).ok()?;
        let parts = log.create_topic("t", &spec(2)).ok()?.partitions;
        let pinned = log.create_topic("pinned", &spec(1)).ok()?.partitions[0];
        let mut tx = Some(log.begin().ok()?);
        for n in 0..40u64 {
            let mut batch = one(parts[0], n, 900);
            batch.push(parts[1], Time(n), None, &value(n, 300), b"");
            if n % 10 == 0 {
                batch.push(pinned, Time(n), None, &value(n, 30), b"");
            }
            batch.commit_offset("g", parts[0], n);
            acknowledged(&log, batch)?;
            out.acknowledged.push(n);
            if n % 7 == 0
                && let Some(tx) = &mut tx
            {
                tx.append(one(parts[1], TX + n, 500)).ok()?;
            }
            if n == 25
                && let Some(tx) = tx.take()
            {
                out.committed = Some(false);
                tx.commit(one(parts[1], TX + n, 20)).ok()?;
                out.committed = Some(true);
            }
            if n % 12 == 11 {
                out.trimmed = n - 2;
                for p in &parts {
                    let first = log.bounds(*p).ok()?.next - 3;
                    log.trim(*p, first).ok()?;
                }
                log.run_retention().ok()?;
            }
        }
        log.close().ok()
    };
    life();
    out.steps = steps.load(Ordering::Relaxed);
    out
}

/// The power fails at every single step, before it, in the middle of it and after its write: what was acknowledged
/// is there in order, no batch is half there, the transaction is whole or gone.
#[test]
fn a_power_cut_at_any_step_loses_nothing() {
    let whole = run(folder().path(), None);
    assert_eq!((whole.acknowledged.len(), whole.committed), (40, Some(true)));
    assert!(whole.steps > 100, "{} steps", whole.steps);
    for at in 0..whole.steps as u64 {
        for bytes in [0, 700, usize::MAX] {
            let dir = folder();
            let before = run(dir.path(), Some((at, bytes)));
            check_after_cut(
                dir.path(),
                &before,
                &format!("cut at step {at} after {bytes} bytes"),
            );
        }
    }
}

fn check_after_cut(dir: &Path, before: &Run, when: &str) {
    let log = open(dir, &tiny()).unwrap_or_else(|e| panic!("{when}: {e}"));
    let Some(topic) = log.topic("t") else {
        assert!(before.acknowledged.is_empty(), "{when}");
        return;
    };
    let read = |p: PartitionId| numbers(&log, p, log.bounds(p).expect("there").first);
    let first = read(topic.partitions[0]);
    let (parts, second): (Vec<u64>, Vec<u64>) = read(topic.partitions[1]).into_iter().partition(|n| *n >= TX);
    let end = before.acknowledged.len() as u64;
    // At most one batch more than acknowledged; none missing but what was trimmed.
    let last = first.last().map_or(0, |n| n + 1);
    assert!(last == end || last == end + 1, "{when}: {last} of {end}");
    assert!(
        first.first().is_none_or(|n| *n <= before.trimmed),
        "{when}: {first:?}"
    );
    assert!(first.windows(2).all(|w| w[0] + 1 == w[1]), "{when}: {first:?}");
    assert_eq!(second.last().map_or(0, |n| n + 1), last, "{when}: half a batch");
    assert!(second.windows(2).all(|w| w[0] + 1 == w[1]), "{when}: {second:?}");
    let pinned = log.topic("pinned").map_or(Vec::new(), |t| read(t.partitions[0]));
    assert!(
        pinned.into_iter().eq((0..last).step_by(10)),
        "{when}: pinned records"
    );
    if last > 0 {
        assert_eq!(log.committed("g", topic.partitions[0]), Some(last - 1), "{when}");
    }
    let trimmed_away = before.trimmed > 25;
    match before.committed {
        None => assert!(parts.is_empty(), "{when}: parts without a commit"),
        Some(true) if !trimmed_away => assert_eq!(parts.len(), 5, "{when}"),
        // The commit was on its way: all or nothing.
        Some(false) => assert!(parts.is_empty() || parts.len() == 5, "{when}: {parts:?}"),
        Some(true) => {}
    }
}

/// A disk that gives no further room, for this reason, while the flag says so.
fn no_room(why: i32) -> (EmbeddedOptions, Arc<AtomicBool>) {
    let full = Arc::new(AtomicBool::new(false));
    let hook = Arc::clone(&full);
    let mut options = with_fault(move |step, _| {
        (step == Step::Allocate && hook.load(Ordering::Acquire)).then_some(Fault::Error(why))
    });
    options.care_every = Duration::from_millis(5);
    (options, full)
}

fn until_it_takes_again(log: &EmbeddedLog) {
    patience::until("room on the disk again", || log.refuses().is_none());
}

#[test]
fn a_full_disk_refuses_records_takes_outcomes_and_recovers() {
    refuses_records_takes_outcomes_and_recovers(ENOSPC, "space");
}

/// A disk that the system has made read-only gives no room for new files either; what is open can be written as long as the
/// system lets it be. (Where that fails, the process ends as after any failed write, and its next start says why.)
#[test]
fn a_disk_that_became_read_only_is_like_a_full_one() {
    refuses_records_takes_outcomes_and_recovers(EROFS, "Read-only file system");
}

fn refuses_records_takes_outcomes_and_recovers(why: i32, says: &str) {
    let dir = folder();
    let (options, full) = no_room(why);
    let log = open(dir.path(), &options).expect("opens");
    let p = log.create_topic("t", &spec(1)).expect("made").partitions[0];
    append(&log, one(p, 0, 1000)).expect("taken");
    // The reserve is made after opening, on another thread.
    patience::until("the reserve", || {
        log.shared.spares.lock().ready.len() > options.reserve
    });
    full.store(true, Ordering::Release);
    let mut n = 1;
    let error = loop {
        match append(&log, one(p, n, 1000)) {
            Ok(_) => n += 1,
            Err(error) => break error,
        }
        assert!(n < 200, "never full");
    };
    assert!(matches!(error, LogError::NoRoom { .. }), "{error}");
    assert!(log.refuses().is_some_and(|why| why.contains(says)), "{says}");
    assert!(
        matches!(append(&log, one(p, n, 10)), Err(LogError::NoRoom { .. })),
        "small ones neither"
    );
    assert!(matches!(log.begin().map(|_| ()), Err(LogError::NoRoom { .. })));
    // Outcomes fit: what is left of the segment and one spare.
    let outcome = |n| {
        let mut batch = Batch::from_reserve();
        batch.push(p, Time(n), None, &value(n, 1000), b"");
        batch
    };
    let mut outcomes = 0;
    while append(&log, outcome(n)).is_ok() {
        (n, outcomes) = (n + 1, outcomes + 1);
        assert!(outcomes < 100, "the reserve ends somewhere");
    }
    assert!(
        outcomes >= 12,
        "{outcomes} outcomes of 1 KB in segments of 16 KiB"
    );
    // The log's own care still has a segment: trimming makes room without the disk giving any.
    let next = log.bounds(p).expect("there").next;
    log.trim(p, next - 2).expect("trims although the disk is full");
    until_it_takes_again(&log);
    assert_eq!(log.refuses(), None, "recovers by itself");
    append(&log, one(p, n, 1000)).expect("taken again");
    drop(log);
    let log = open(dir.path(), &tiny()).expect("opens");
    assert!(numbers(&log, p, next - 2).into_iter().eq(n - 2..=n));
}

#[test]
fn room_on_the_disk_ends_the_refusal_too() {
    let dir = folder();
    let (options, full) = no_room(ENOSPC);
    let log = open(dir.path(), &options).expect("opens");
    let p = log.create_topic("t", &spec(1)).expect("made").partitions[0];
    full.store(true, Ordering::Release);
    let mut taken = Vec::new();
    let mut tx = log.begin().expect("begun");
    let mut n = 0;
    while append(&log, one(p, n, 1000)).is_ok() {
        taken.push(n);
        n += 1;
    }
    // A transaction that meets the full disk fails as a whole.
    let failed = (0..20).find_map(|n| tx.append(one(p, TX + n, 2000)).err());
    let error = failed.unwrap_or_else(|| tx.commit(Batch::new()).expect_err("no room"));
    assert!(matches!(error, LogError::NoRoom { .. }), "{error}");
    full.store(false, Ordering::Release);
    until_it_takes_again(&log);
    append(&log, one(p, n, 1000)).expect("taken again");
    taken.push(n);
    assert_eq!(numbers(&log, p, 0), taken);
}

#[test]
fn no_room_for_the_first_segment_is_said() {
    let dir = folder();
    let options = with_fault(|step, _| (step == Step::Allocate).then_some(Fault::Error(ENOSPC)));
    assert!(matches!(open(dir.path(), &options), Err(LogError::NoRoom { .. })));
    open(dir.path(), &tiny()).expect("opens once there is room");
}

/// A callback that panics must not leave the others waiting.
#[test]
fn a_panicking_callback_fails_the_log() {
    let dir = folder();
    let log = open(dir.path(), &tiny()).expect("opens");
    let p = log.create_topic("t", &spec(1)).expect("made").partitions[0];
    let held = Arc::new(Mutex::new(()));
    let guard = held.lock();
    let waits = Arc::clone(&held);
    log.append(
        one(p, 0, 10),
        Box::new(move |_| {
            drop(waits.lock());
            panic!("as a test wants it");
        }),
    );
    // In the frame of the one that panics its answer may be lost with it; behind it, it is told.
    let waiting: Vec<_> = (1..4).map(|n| conformance::send(&log, one(p, n, 10))).collect();
    drop(guard);
    for answer in waiting {
        assert!(matches!(
            patience::hear(&answer),
            Ok(Err(LogError::Failed { .. })) | Err(_)
        ));
    }
    assert!(matches!(
        append(&log, one(p, 2, 10)),
        Err(LogError::Failed { .. })
    ));
}

/// A file system, or a filter of system calls, that does not know how to take room at once: zeros take it.
#[test]
fn where_room_cannot_be_taken_at_once_zeros_take_it() {
    for errno in [22, 38, 95] {
        let dir = folder();
        let options = with_fault(move |step, _| (step == Step::Fallocate).then_some(Fault::Error(errno)));
        let log = open(dir.path(), &options).expect("opens");
        let p = log.create_topic("t", &spec(1)).expect("made").partitions[0];
        (0..60).for_each(|n| drop(append(&log, one(p, n, 1000)).expect("taken")));
        assert!(numbers(&log, p, 0).into_iter().eq(0..60), "{errno}");
        let taken = std::fs::read_dir(dir.path()).expect("there").map(|entry| {
            use std::os::unix::fs::MetadataExt;
            let meta = entry.expect("an entry").metadata().expect("its size");
            (meta.len(), meta.blocks() * 512)
        });
        assert!(taken.into_iter().all(|(len, taken)| taken >= len), "no holes");
    }
    let full = with_fault(|step, _| (step == Step::Fallocate).then_some(Fault::Error(ENOSPC)));
    assert!(matches!(
        open(folder().path(), &full),
        Err(LogError::NoRoom { .. })
    ));
}

#[test]
fn folders_are_made_with_those_above_them() {
    let dir = folder();
    let deep = dir.path().join("a/b/c");
    crate::files::folder(&deep).expect("made");
    crate::files::folder(&deep).expect("there already");
    assert!(deep.is_dir());
    std::fs::write(dir.path().join("file"), b"").expect("written");
    assert!(crate::files::folder(&dir.path().join("file/b")).is_err());
}

/// Whoever holds the log last may be a callback, on the writer's own thread, while the log's care waits for the writer:
/// neither waits for the other, and the folder is free once both have ended.
#[test]
fn a_callback_may_be_the_last_to_hold_the_log() {
    let dir = folder();
    let mut options = tiny();
    options.care_every = Duration::from_millis(1);
    let log = Arc::new(open(dir.path(), &options).expect("opens"));
    let old = TopicSpec {
        retention: Some(Duration::from_secs(1)),
        ..spec(1)
    };
    let p = log.create_topic("t", &old).expect("made").partitions[0];
    append(&*log, one(p, 0, 10)).expect("taken");
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (began, begun) = std::sync::mpsc::channel();
    let (tell, dropped) = std::sync::mpsc::channel();
    let last = Arc::clone(&log);
    log.append(
        one(p, 1, 10),
        Box::new(move |_| {
            began.send(()).expect("waited for");
            patience::hear(&wait).expect("told to go on");
            // What is past its retention: care has the writer write that it goes, and waits for the answer.
            patience::until("care waits for the writer", || {
                !last.shared.queue.lock().jobs.is_empty()
            });
            drop(last);
            // Who waits for it may have given up.
            let _ = tell.send(());
        }),
    );
    patience::hear(&begun).expect("the writer calls back");
    log.allow_trim(p, 2);
    drop(log);
    go.send(()).expect("the callback waits");
    patience::hear(&dropped).expect("the callback ends");
    patience::until("the folder is free", || open(dir.path(), &tiny()).is_ok());
}
