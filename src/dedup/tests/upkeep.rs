//! Expiry, sealing, lists, and readers beside writers.

use super::*;

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
