//! Sealed buckets: the file against a plain map, the same answers in both forms, every changed byte, what a kill
//! leaves behind.

use super::block::{OwnedRow, Row};
use super::manifest::{BucketMeta, RunMeta, STATES};
use super::sealed::{SealWriter, Sealed};
use super::tests::{HOUR, at, fill, finished, has, id, open, options, settle};
use super::*;
use crate::core::ledger::fold::FinishedState;
use crate::core::types::MessageId;
use crate::patience;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

fn meta(rows: usize, blocks: usize) -> BucketMeta {
    let run = RunMeta {
        seq: 9,
        bits: 0,
        blocks: blocks as u32,
        ids: rows as u32,
    };
    BucketMeta {
        id: 4,
        from: 10,
        to: 20,
        runs: vec![run],
        states: [0; STATES],
        routes: Vec::new(),
        sealed: true,
        closed: None,
    }
}

/// Writes a sealed file, in blocks of so many rows.
fn write(dir: &Path, rows: &[Row<'_>], each: usize) -> BucketMeta {
    let mut writer = SealWriter::begin(dir, 4, rows.len() as u64).unwrap();
    let mut rest = rows;
    while !rest.is_empty() {
        let mut n = each.min(rest.len());
        while n < rest.len() && rest[n].id.head() == rest[n - 1].id.head() {
            n += 1;
        }
        writer.block(&rest[..n]).unwrap();
        rest = &rest[n..];
    }
    let unnamed = writer.end(9, Time(10), Time(20)).unwrap();
    let (ids, blocks) = unnamed.size();
    unnamed.name(dir).unwrap();
    meta(ids as usize, blocks)
}

fn rows() -> impl Strategy<Value = Vec<OwnedRow>> {
    // Few heads: many IDs share their first eight bytes.
    let row = (0u64..40, any::<u64>(), 0u8..7, any::<u64>()).prop_map(|(head, tail, state, offset)| {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&head.wrapping_mul(0x0123_4567_89ab_cdef).to_be_bytes());
        bytes[8..].copy_from_slice(&tail.to_be_bytes());
        OwnedRow {
            row: Row {
                id: MessageId(bytes),
                route: 1,
                state,
                status: 200,
                attempts: 3,
                when: 77,
                offset,
                ledger: offset / 2,
                readable: &[],
            },
            readable: format!("r{tail}").into(),
        }
    });
    proptest::collection::vec(row, 1..200).prop_map(|mut rows| {
        rows.sort_by_key(|r| r.row.id);
        rows.dedup_by_key(|r| r.row.id);
        rows
    })
}

fn get(sealed: &Sealed, id: &MessageId) -> Result<Option<OwnedRow>, DedupError> {
    let mut found = None;
    let probe = super::filter::Probe::of(id);
    if sealed.may_hold(&probe) && sealed.find(id, |row| found = Some(row.to_owned_row()))? {
        assert!(found.is_some());
    }
    Ok(found)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_sealed_file_answers_like_a_map(rows in rows(), each in 1usize..40, others in proptest::collection::vec(any::<[u8; 16]>(), 20)) {
        let dir = tempfile::tempdir().unwrap();
        let borrowed: Vec<_> = rows.iter().map(OwnedRow::borrow).collect();
        let meta = write(dir.path(), &borrowed, each);
        let (sealed, repaired) = Sealed::open(dir.path(), &meta).unwrap();
        prop_assert!(!repaired);
        let map: BTreeMap<MessageId, &OwnedRow> = rows.iter().map(|r| (r.row.id, r)).collect();
        let neighbours = rows.iter().map(|r| { let mut id = r.row.id; id.0[15] ^= 1; id });
        let all: Vec<MessageId> = neighbours.chain(rows.iter().map(|r| r.row.id)).chain(others.into_iter().map(MessageId)).collect();
        for id in all {
            let found = get(&sealed, &id).unwrap();
            prop_assert_eq!(found.as_ref(), map.get(&id).copied());
        }
        let mut listed = Vec::new();
        let whole = sealed.each_row(&mut |row| {
            listed.push(row.to_owned_row());
            Ok(ControlFlow::Continue(()))
        });
        prop_assert!(whole.unwrap().is_continue());
        prop_assert_eq!(listed, rows);
    }
}

/// Whatever byte of the file changes, and wherever it is cut off: it is told, or no answer is another one.
#[test]
fn every_changed_byte_is_told_or_harmless() {
    let dir = tempfile::tempdir().unwrap();
    let rows: Vec<OwnedRow> = (0..120u64)
        .map(|n| {
            let mut row = Row {
                id: id(n),
                route: 1,
                state: 1 + (n % 6) as u8,
                status: 200,
                attempts: n as u32,
                when: 1_000,
                offset: n * 3,
                ledger: n,
                readable: &[],
            };
            row.id.0[0] = n as u8;
            OwnedRow {
                row,
                readable: format!("order-{n}").into(),
            }
        })
        .collect();
    let borrowed: Vec<_> = rows.iter().map(OwnedRow::borrow).collect();
    let meta = write(dir.path(), &borrowed, 30);
    let path = super::sealed::path(dir.path(), 4);
    let good = std::fs::read(&path).unwrap();
    let (mut told, mut repaired) = (0, 0);
    let mut check = |bytes: &[u8], what: &str| {
        std::fs::write(&path, bytes).unwrap();
        let sealed = match Sealed::open(dir.path(), &meta) {
            Ok((sealed, built)) => {
                repaired += usize::from(built);
                sealed
            }
            Err(DedupError::Damaged { .. }) => return told += 1,
            Err(other) => panic!("{what}: {other}"),
        };
        let mut damaged = 0;
        for row in &rows {
            match get(&sealed, &row.row.id) {
                Ok(found) => assert_eq!(found.as_ref(), Some(row), "{what}"),
                Err(DedupError::Damaged { .. }) => damaged += 1,
                Err(other) => panic!("{what}: {other}"),
            }
        }
        let scan = sealed.each_row(&mut |_| Ok(ControlFlow::Continue(())));
        assert_eq!(damaged > 0, scan.is_err(), "{what}");
        told += usize::from(damaged > 0);
    };
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        check(&bad, &format!("byte {at}"));
    }
    for len in (0..good.len()).step_by(7) {
        check(&good[..len], &format!("cut at {len}"));
    }
    check(&[good.clone(), vec![0]].concat(), "one byte more");
    // All but the changed bytes of the filter, which is built again.
    let filter = 240_usize.div_ceil(32) * 32;
    let cuts = good.len().div_ceil(7) + 1;
    assert_eq!((told, repaired), (good.len() - filter + cuts, filter));
}

/// A store with a bucket that is over, and one that takes records.
fn two_buckets(dir: &Path) -> DedupStore {
    let store = open(dir);
    let next = fill(&store, 0..500, 100 * HOUR, 0);
    // Recorded again, and forgotten: of each ID the newest word counts.
    let again = finished(7, FinishedState::Dead, 100 * HOUR, next);
    let forget = StoreOp::Forget { at: at(2), id: id(8) };
    store
        .record(&[StoreOp::Finished(again), forget], next + 2)
        .unwrap();
    fill(&store, 1_000..1_001, 101 * HOUR, next + 2);
    store.sync().unwrap();
    store
}

#[test]
fn both_forms_say_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let store = two_buckets(dir.path());
    settle(&store);
    let info = store.buckets()[0].clone();
    assert!(info.sealed && !info.open && info.runs == 1, "{info:?}");
    assert_eq!((info.records, info.states.iter().sum::<u64>()), (500, 500));
    assert_eq!((info.states[0], info.states[1], info.states[2]), (1, 498, 1));
    assert_eq!(info.routes.iter().map(|r| r.1).sum::<u64>(), 500);
    assert!(!dir.path().join("bucket-0").exists() && dir.path().join("sealed-0").is_file());
    let check = |store: &DedupStore| {
        assert!((0..500).all(|n| has(store, n) == (n != 8)));
        assert!((1_001..3_000).all(|n| !has(store, n)));
        let seven = store.get(at(1), id(7)).unwrap().unwrap();
        assert_eq!(
            (seven.state, seven.readable),
            (FinishedState::Dead, "order-7".into())
        );
        assert_eq!(
            store.get(at(0), id(7)).unwrap(),
            None,
            "IDs belong to their route"
        );
        let mut listed = 0;
        let mut count = |_| {
            listed += 1;
            ControlFlow::Continue(())
        };
        store.iterate(&IdFilter::default(), &mut count).unwrap();
        assert_eq!(listed, 500);
    };
    check(&store);
    drop(store);
    let store = open(dir.path());
    check(&store);

    // Orders about what is sealed are records of the present bucket, and hide it.
    let next = store.watermark();
    let forget = StoreOp::Forget { at: at(0), id: id(9) };
    let marked = finished(10, FinishedState::Marked, 101 * HOUR, next + 1);
    store
        .record(&[forget, StoreOp::Finished(marked)], next + 2)
        .unwrap();
    let state = |n: u64| store.get(at((n % 3) as u32), id(n)).unwrap().map(|f| f.state);
    assert_eq!((state(9), state(10)), (None, Some(FinishedState::Marked)));
    let carried = store.carry(0, &[at(0)]).unwrap();
    assert_eq!(carried, 166, "of 167 of this partition one is forgotten");
    assert!(store.expire(0).unwrap() > 0);
    assert!(!dir.path().join("sealed-0").exists());
    assert_eq!((state(9), state(10)), (None, Some(FinishedState::Marked)));
    assert!((0..500).all(|n| has(&store, n) == (n % 3 == 0 && n != 9 || n == 10)));
}

/// What a kill leaves at each step of sealing, and the store of a version that did not seal.
#[test]
fn a_kill_at_any_step_is_put_right() {
    let dir = tempfile::tempdir().unwrap();
    let store = two_buckets(dir.path());
    settle(&store);
    drop(store);
    let sealed = std::fs::read(dir.path().join("sealed-0")).unwrap();
    let check = |what: &str| {
        let store = open(dir.path());
        settle(&store);
        assert!(
            (0..500).all(|n| has(&store, n) == (n != 8)) && has(&store, 1_000),
            "{what}"
        );
        let names: Vec<String> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|n| n.contains("-0"))
            .collect();
        assert_eq!(names, ["sealed-0"], "{what}");
    };
    // The manifest names the file, sled's folder was not removed yet, or only by half.
    std::fs::create_dir(dir.path().join("bucket-0")).unwrap();
    std::fs::write(dir.path().join("bucket-0/db"), b"half").unwrap();
    check("named, sled is still there");
    // Files of sealing that was cut off, before and after the rename, beside a bucket in sled.
    let other = tempfile::tempdir().unwrap();
    for (name, bytes) in [
        ("sealed-0.new", &sealed[..100]),
        ("sealed-0", &sealed[..]),
        ("sealed-0", &sealed[..50]),
    ] {
        let dir = other.path().join(name);
        let store = open(&dir);
        let next = fill(&store, 0..200, 100 * HOUR, 0);
        store.sync().unwrap();
        drop(store);
        std::fs::write(dir.join(name), bytes).unwrap();
        let store = open(&dir);
        assert!((0..200).all(|n| has(&store, n)) && !dir.join(name).exists());
        fill(&store, 200..201, 101 * HOUR, next);
        settle(&store);
        assert!((0..201).all(|n| has(&store, n)) && dir.join("sealed-0").is_file());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

/// A bucket is sealed before anything of its successor is durable, and then the store is killed: what is fed again
/// goes into a bucket of its own.
#[test]
fn nothing_is_added_to_a_sealed_bucket() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let next = fill(&store, 0..200, 100 * HOUR, 0);
    store.sync().unwrap();
    store.advance(Time(101 * HOUR)).unwrap();
    settle(&store);
    drop(store);
    let store = open(dir.path());
    let forget = StoreOp::Forget { at: at(1), id: id(4) };
    store.record(&[forget], next + 1).unwrap();
    // A time of the sealed bucket's: it may be fed again so.
    let next = fill(&store, 200..400, 100 * HOUR + 5, next + 1);
    store.sync().unwrap();
    assert_eq!(store.watermark(), next);
    settle(&store);
    let check = |store: &DedupStore| assert!((0..400).all(|n| has(store, n) == (n != 4)));
    check(&store);
    drop(store);
    let store = open(dir.path());
    check(&store);
    let next = fill(&store, 400..500, 102 * HOUR, next);
    store.sync().unwrap();
    settle(&store);
    check(&store);
    assert_eq!((store.watermark(), store.stats().buckets.len()), (next, 3));
}

/// Damage in a block shows when it is read: the answer is an error, and the next opening refuses the store.
#[test]
fn damage_that_a_look_up_meets_is_built_again_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let store = two_buckets(dir.path());
    settle(&store);
    drop(store);
    let path = dir.path().join("sealed-0");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[200] ^= 4;
    std::fs::write(&path, &bytes).unwrap();
    let store = open(dir.path());
    let told: Vec<DedupError> = (0..500)
        .filter_map(|n| store.get(at((n % 3) as u32), id(n)).err())
        .collect();
    assert!(!told.is_empty() && told.len() < 500);
    assert!(
        told.iter().all(|e| matches!(e, DedupError::Damaged { .. })),
        "{told:?}"
    );
    assert!(told[0].to_string().contains("checksum"), "{}", told[0]);
    drop(store);
    let (store, report) = DedupStore::open(dir.path(), options()).unwrap();
    assert!(
        matches!(&report.rebuild, Some(Rebuild::Damaged(why)) if why.contains("checksum")),
        "{report:?}"
    );
    assert_eq!(store.watermark(), 0);
    fill(&store, 0..500, 100 * HOUR, 0);
    store.sync().unwrap();
    drop(store);
    let store = open(dir.path());
    assert!((0..500).all(|n| has(&store, n)));
}

/// A sealed file that is gone, or another one's, is damage that opening tells.
#[test]
fn a_missing_or_foreign_file_is_told() {
    for foreign in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let store = two_buckets(dir.path());
        settle(&store);
        drop(store);
        let path = dir.path().join("sealed-0");
        std::fs::remove_file(&path).unwrap();
        if foreign {
            let rows: Vec<OwnedRow> = Vec::new();
            let borrowed: Vec<_> = rows.iter().map(OwnedRow::borrow).collect();
            write(dir.path(), &borrowed, 1);
            std::fs::rename(dir.path().join("sealed-4"), &path).unwrap();
        }
        let (_, report) = DedupStore::open(dir.path(), options()).unwrap();
        assert!(matches!(report.rebuild, Some(Rebuild::Damaged(_))), "{report:?}");
    }
}

/// Where the file cannot be written the bucket stays in sled, and the store says why.
#[test]
fn what_cannot_be_sealed_stays_in_sled() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let next = fill(&store, 0..200, 100 * HOUR, 0);
    store.sync().unwrap();
    std::fs::create_dir(dir.path().join("sealed-0.new")).unwrap();
    fill(&store, 200..201, 101 * HOUR, next);
    patience::until("a bucket that cannot be sealed", || {
        store.stats().seal_refuses.is_some()
    });
    let why = store.stats().seal_refuses.unwrap();
    assert!(why.contains("cannot seal"), "{why}");
    assert_eq!(store.stats().unsealed, 1);
    assert!((0..201).all(|n| has(&store, n)));
    drop(store);
    let store = open(dir.path());
    store.advance(Time(102 * HOUR)).unwrap();
    settle(&store);
    assert!((0..200).all(|n| has(&store, n)));
}
