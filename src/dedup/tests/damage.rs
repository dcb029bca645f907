//! Damage to the folder: said and mended, never an ID forgotten (I2).

use super::*;

#[test]
fn a_second_one_on_the_folder_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let second = DedupStore::open(dir.path(), options());
    assert!(matches!(second, Err(DedupError::InUse { .. })));
    drop(store);
    open(dir.path());
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
