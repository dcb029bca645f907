//! Retention, dropped segments, records carried forward.

use super::*;
use std::sync::atomic::AtomicU64;

/// Options with a clock that the test moves (microseconds).
fn with_clock() -> (EmbeddedOptions, Arc<AtomicU64>) {
    let time = Arc::new(AtomicU64::new(0));
    let read = Arc::clone(&time);
    let options = EmbeddedOptions {
        now: Arc::new(move || Time(read.load(Ordering::Acquire))),
        ..tiny()
    };
    (options, time)
}

#[test]
fn records_go_by_age_but_never_before_they_are_allowed_to() {
    let (options, time) = with_clock();
    let dir = folder();
    let log = open(dir.path(), &options).expect("opens");
    let aged = TopicSpec {
        retention: Some(Duration::from_micros(100)),
        ..spec(1)
    };
    let p = log.create_topic("t", &aged).expect("made").partitions[0];
    (0..200).for_each(|n| drop(append(&log, one(p, n, 1000)).expect("taken")));
    time.store(220, Ordering::Release);
    log.run_retention().expect("works");
    assert_eq!(
        log.bounds(p).expect("there").first,
        0,
        "nobody has passed them yet"
    );
    log.allow_trim(p, 60);
    log.run_retention().expect("works");
    let first = log.bounds(p).expect("there").first;
    assert!((30..=60).contains(&first), "{first}: up to what is allowed");
    log.allow_trim(p, 200);
    log.run_retention().expect("works");
    let first = log.bounds(p).expect("there").first;
    assert!((90..=120).contains(&first), "{first}: up to the age");
    assert!(numbers(&log, p, first).into_iter().eq(first..200));
    assert!(log.stats().segments < 10, "{:?}", log.stats());
    time.store(10_000, Ordering::Release);
    log.run_retention().expect("works");
    assert_eq!(
        log.bounds(p).expect("there"),
        Bounds {
            first: 200,
            next: 200
        }
    );
    assert_eq!(log.stats().segments, 1);
    drop(log);
    let log = open(dir.path(), &options).expect("opens");
    assert_eq!(
        log.bounds(p).expect("there"),
        Bounds {
            first: 200,
            next: 200
        }
    );
}

#[test]
fn records_go_by_size_oldest_first() {
    let dir = folder();
    let log = open(dir.path(), &tiny()).expect("opens");
    let sized = TopicSpec {
        retention_bytes: Some(50_000),
        ..spec(2)
    };
    let parts = log.create_topic("t", &sized).expect("made").partitions;
    for n in 0..200 {
        append(&log, one(parts[(n % 2) as usize], n, 1000)).expect("taken");
    }
    parts.iter().for_each(|p| log.allow_trim(*p, 100));
    log.run_retention().expect("works");
    let left: usize = parts
        .iter()
        .map(|p| numbers(&log, *p, log.bounds(*p).expect("there").first).len())
        .sum();
    assert!((30..=50).contains(&left), "{left} records of 1 KB for 50 KB");
    let firsts: Vec<_> = parts
        .iter()
        .map(|p| log.bounds(*p).expect("there").first)
        .collect();
    assert!(
        firsts[0].abs_diff(firsts[1]) < 20,
        "{firsts:?}: both partitions give"
    );
}

/// One record a segment lives for ever, the rest is trimmed: the disk must not fill up with dead bytes.
#[test]
fn what_lives_long_is_carried_forward() {
    let dir = folder();
    let log = open(dir.path(), &tiny()).expect("opens");
    let pinned = log.create_topic("pinned", &spec(1)).expect("made").partitions[0];
    let busy = log.create_topic("busy", &spec(1)).expect("made").partitions[0];
    let mut most = 0;
    for n in 0..600 {
        let mut batch = one(busy, n, 1000);
        if n % 10 == 0 {
            batch.push(pinned, Time(n), Some(b"k"), &value(n, 100), b"h");
        }
        append(&log, batch).expect("taken");
        if n % 20 == 19 {
            let next = log.bounds(busy).expect("there").next;
            log.trim(busy, next).expect("trimmed");
            (0..10).for_each(|_| log.run_retention().expect("works"));
            most = most.max(log.stats().segments);
        }
    }
    // 60 records of about 130 bytes live: less than a segment. Without copying it would be 40 segments.
    assert!(most <= 8, "{most} segments");
    assert!(numbers(&log, pinned, 0).into_iter().eq((0..600).step_by(10)));
    let before = read_all(&log, pinned, 0);
    drop(log);
    let log = open(dir.path(), &tiny()).expect("opens");
    assert_eq!(read_all(&log, pinned, 0), before);
    assert_eq!(
        log.bounds(busy).expect("there"),
        Bounds {
            first: 600,
            next: 600
        }
    );
}

/// Two who do the log's care at once must not both copy the same records: the copies would be mixed in one segment.
#[test]
fn care_is_done_by_one_at_a_time() {
    for round in 0..20 {
        let dir = folder();
        let log = open(dir.path(), &tiny()).expect("opens");
        let kept = log.create_topic("kept", &spec(1)).expect("made").partitions[0];
        let busy = log.create_topic("busy", &spec(1)).expect("made").partitions[0];
        for n in 0..60 {
            append(&log, one(kept, n, 700)).expect("taken");
            append(&log, one(busy, n, 3000)).expect("taken");
        }
        log.trim(busy, 60).expect("trimmed");
        let together = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    together.wait();
                    (0..8).for_each(|_| log.run_retention().expect("works"));
                });
            }
        });
        assert!(numbers(&log, kept, 0).into_iter().eq(0..60), "round {round}");
        let living = 60 * 720;
        let written = log.stats().bytes;
        assert!(
            written < 60 * 3900 + 2 * living + 40_000,
            "{written} bytes: nothing is copied twice"
        );
    }
}

/// Records of a transaction keep their offsets when they are carried out of the segments of their parts.
#[test]
fn parts_are_carried_too_and_their_commit_is_remembered() {
    let dir = folder();
    let log = open(dir.path(), &tiny()).expect("opens");
    let kept = log.create_topic("kept", &spec(1)).expect("made").partitions[0];
    let busy = log.create_topic("busy", &spec(1)).expect("made").partitions[0];
    append(&log, one(kept, 0, 100)).expect("taken");
    let mut tx = log.begin().expect("begun");
    for n in 1..40 {
        tx.append(one(kept, n, 100)).expect("taken");
        append(&log, one(busy, n, 1000)).expect("taken");
    }
    tx.commit(Batch::new()).expect("committed");
    let wanted = read_all(&log, kept, 0);
    assert_eq!(wanted.len(), 40);
    for round in 0..4 {
        for n in 0..40 {
            append(&log, one(busy, n, 1000)).expect("taken");
        }
        let next = log.bounds(busy).expect("there").next;
        log.trim(busy, next).expect("trimmed");
        if round > 0 {
            (0..20).for_each(|_| log.run_retention().expect("works"));
        }
        assert_eq!(read_all(&log, kept, 0), wanted, "round {round}");
        let copy = killed(&log);
        let again = open(copy.path(), &tiny()).expect("opens");
        assert_eq!(read_all(&again, kept, 0), wanted, "round {round}, opened again");
    }
    assert!(log.stats().segments <= 8, "{:?}", log.stats());
}

#[test]
fn an_open_transaction_keeps_its_segments_and_a_dropped_one_does_not() {
    let dir = folder();
    let log = open(dir.path(), &tiny()).expect("opens");
    let p = log.create_topic("t", &spec(1)).expect("made").partitions[0];
    let mut kept = log.begin().expect("begun");
    let mut dropped = log.begin().expect("begun");
    for n in 0..20 {
        kept.append(one(p, n, 2000)).expect("taken");
        dropped.append(one(p, 100 + n, 2000)).expect("taken");
    }
    drop(dropped);
    append(&log, one(p, 200, 10)).expect("taken");
    log.trim(p, 1).expect("trimmed");
    (0..10).for_each(|_| log.run_retention().expect("works"));
    kept.commit(Batch::new()).expect("committed");
    assert!(numbers(&log, p, 1).into_iter().eq(0..20));
    log.trim(p, 21).expect("trimmed");
    (0..10).for_each(|_| log.run_retention().expect("works"));
    assert_eq!(log.stats().segments, 1, "nothing lives any more");
}

#[test]
fn a_deleted_topic_gives_its_room_back() {
    let dir = folder();
    let log = open(dir.path(), &tiny()).expect("opens");
    let p = log.create_topic("t", &spec(1)).expect("made").partitions[0];
    let mut batch = one(p, 0, 10);
    batch.commit_offset("g", p, 1);
    append(&log, batch).expect("taken");
    (0..100).for_each(|n| drop(append(&log, one(p, n, 1000)).expect("taken")));
    log.delete_topic("t").expect("deleted");
    log.run_retention().expect("works");
    assert_eq!(log.stats().segments, 1);
    assert_eq!(log.committed("g", p), None);
    assert!(matches!(append(&log, one(p, 0, 10)), Err(LogError::NoTopic(_))));
}

/// A reader that is slow while segments are dropped and used again reads what it was promised, or is told that it
/// is gone: never bytes of a later use.
#[test]
fn files_are_not_used_again_under_a_reader() {
    let dir = folder();
    let mut options = tiny();
    options.care_every = Duration::from_millis(1);
    let log = Arc::new(open(dir.path(), &options).expect("opens"));
    let p = log.create_topic("t", &spec(1)).expect("made").partitions[0];
    std::thread::scope(|scope| {
        let writer = Arc::clone(&log);
        let writing = scope.spawn(move || {
            for n in 0..3000 {
                append(&*writer, one(p, n, 1000)).expect("taken");
                if n % 16 == 15 {
                    writer.trim(p, n - 10).expect("trimmed");
                }
            }
        });
        let (mut got, mut read) = (Vec::new(), 0);
        while !writing.is_finished() {
            let bounds = log.bounds(p).expect("there");
            got.clear();
            match log.read(p, bounds.first, 20_000, &mut got) {
                Ok(_) => assert!(got.iter().all(|r| number(r) == r.offset)),
                Err(LogError::OutOfRange { .. }) => {}
                Err(other) => panic!("{other}"),
            }
            read += got.len();
        }
        assert!(read > 0);
    });
    assert!(log.stats().segments < 20, "{:?}", log.stats());
}

/// Small batches that never end do not starve a transaction whose parts are as large as a frame may be.
#[test]
fn large_parts_get_their_turn_under_load() {
    use std::sync::atomic::AtomicBool;
    let dir = folder();
    let log = Arc::new(open(dir.path(), &EmbeddedOptions::small()).expect("opens"));
    let parts = log.create_topic("t", &spec(2)).expect("made").partitions;
    let ended = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (busy, stop, small) = (Arc::clone(&log), Arc::clone(&ended), parts[0]);
        scope.spawn(move || {
            while !stop.load(Ordering::Acquire) {
                let sent: Vec<_> = (0..64)
                    .map(|n| conformance::send(&*busy, one(small, n, 10)))
                    .collect();
                sent.iter()
                    .for_each(|s| drop(patience::hear(s).expect("answered").expect("taken")));
            }
        });
        let mut tx = log.begin().expect("begun");
        for n in 0..10 {
            tx.append(one(parts[1], n, 200_000)).expect("taken");
        }
        tx.commit(Batch::new()).expect("committed");
        ended.store(true, Ordering::Release);
    });
    assert!(numbers(&*log, parts[1], 0).into_iter().eq(0..10));
}
