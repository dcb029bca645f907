//! The store against a plain map, over random histories; damage, expiry, readers beside writers.

mod age;
mod damage;
mod model;
mod upkeep;

use super::*;
use crate::core::ledger::fold::FinishedState;
use crate::core::types::{MessageId, RouteId};
use crate::patience;
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
    patience::watch();
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
    patience::until("every bucket is sealed", || {
        assert_eq!(store.stats().seal_refuses, None);
        store.stats().unsealed == 0 && store.retired() == 0
    });
}

pub(super) fn has(store: &DedupStore, n: u64) -> bool {
    store.get(at((n % 3) as u32), id(n)).unwrap().is_some()
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
