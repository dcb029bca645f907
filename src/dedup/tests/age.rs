//! When a bucket closes and goes, whatever the machine's clock shows.

use super::*;

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
