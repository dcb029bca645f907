//! The ledger through kill -9 and power cut: whatever prefix of the lane is durable, opening the folder gives the
//! fold of exactly that prefix, and the dedup store answers by it.
//!
//! The child is this test binary again: it writes entries, folds them, writes a checkpoint now and then, and says on
//! stdout how much was acknowledged to it. After a kill the folder is opened as a node opens it (checkpoint, store,
//! the entries behind them), and compared with a fold of the lane from its first entry. A power cut is the image of a
//! loop device copied at the moment of the kill; where the machine does not allow it, the test says so on stderr.
//! `SLUICEGATE_LEDGER_KILLS` sets the number of rounds.

mod support;

use sluicegate::app::{OpenError, Opened, open};
use sluicegate::clock::Clock;
use sluicegate::config::{self, Config};
use sluicegate::core::ledger::codec;
use sluicegate::core::ledger::entry::{Body, Entry, Genesis, Intent, Kept, Outcome, OutcomeKind, Position};
use sluicegate::core::ledger::fold::{Finished, FinishedState, LaneState, StoreOp};
use sluicegate::core::types::{KeyHash, MessageId, RouteId, RoutePartition, Time};
use sluicegate::dedup::{DedupOptions, DedupStore};
use sluicegate::ledger::keeper::{Keeper, KeeperError};
use sluicegate::log::Batch;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::sync::mpsc;
use support::{Mount, copy_image, not_tested};

const CHILD: &str = "SLUICEGATE_LEDGER_CHILD";
/// Messages of one batch.
const BATCH: u64 = 8;
/// Batches between two checkpoints: several in a round, and many entries behind the last one.
const CHECKPOINT: u64 = 150;

fn at() -> RoutePartition {
    RoutePartition {
        route: RouteId(7),
        partition: 3,
    }
}

fn id(n: u64) -> MessageId {
    let mut out = [0; 16];
    fastrand::Rng::with_seed(n).fill(&mut out);
    MessageId(out)
}

/// A small journal, so that kills meet full segments too.
fn configuration(data: &Path) -> Config {
    let file = data.with_extension("toml");
    let text = format!(
        "[node]\nid = \"n\"\ndata = {data:?}\n[log]\nsegment = \"1MiB\"\n[partners.p]\n\
         url = \"http://127.0.0.1:1/\"\n[topics.t]\npartner = \"p\"\n"
    );
    std::fs::write(&file, text).expect("written");
    config::load(&[file], std::iter::empty()).expect("fits").config
}

fn open_folder(data: &Path) -> Opened {
    open(&configuration(data), Clock::start()).expect("opens")
}

fn close(opened: Opened) {
    opened.log.close().expect("closed");
}

/// What the ledger says of message `n`: every kind of outcome, and some without one.
fn entries(n: u64, out: &mut Vec<Body>) {
    let when = Time(1_700_000_000_000_000 + n);
    let outcome = |attempts, kind| {
        Body::Outcome(Outcome {
            at: at(),
            id: id(n),
            offset: n,
            round: 1,
            attempts,
            when,
            life: Default::default(),
            status: (n % 600) as u16,
            kind,
        })
    };
    let intent = |attempt| {
        Body::Intent(Intent {
            at: at(),
            id: id(n),
            key: KeyHash(n % 100),
            offset: n,
            round: 1,
            attempt,
            first_try: when,
            slot: when,
            budgets: Default::default(),
            life: Default::default(),
            lease_ms: 1000,
            timeout_ms: 1000,
        })
    };
    let kept = || {
        Box::new(Kept {
            key: KeyHash(n % 100),
            value: vec![n as u8; (n % 300) as usize].into(),
            reason: format!("status: {n}"),
            ..Kept::default()
        })
    };
    let delivered = || OutcomeKind::Delivered {
        readable: format!("m{n}").into_bytes().into(),
    };
    out.push(intent(1));
    match n % 8 {
        0 => out.push(outcome(1, OutcomeKind::Dead(kept()))),
        1 => out.push(outcome(1, OutcomeKind::Parked(kept()))),
        2 => {
            let later = OutcomeKind::Later {
                not_before: when,
                first_try: when,
                key: KeyHash(n % 100),
                reason: "status: 503".into(),
                counted: true,
            };
            out.extend([outcome(1, later), intent(2), outcome(2, delivered())]);
        }
        // In doubt for ever.
        3 => {}
        _ => out.push(outcome(1, delivered())),
    }
    if n % 20 == 19 {
        out.push(Body::Position(Position {
            at: at(),
            leader_epoch: 0,
            position: n - n % 7,
            finished: vec![(n - n % 7 + 1, n - n % 7 + 2)],
            high_water: n + 1,
        }));
    }
}

/// Writes until it is killed.
#[test]
#[ignore = "the process that the other tests kill"]
fn child() {
    let data = std::env::var(CHILD).expect("started by one of the other tests");
    let opened = open_folder(Path::new(&data));
    let mut next = opened.log.bounds(opened.lane).expect("there").next;
    let mut n = next * 100;
    for round in 1.. {
        let (mut batch, mut held, mut bytes) = (Batch::from_reserve(), Vec::new(), Vec::new());
        let mut bodies = Vec::new();
        (n..n + BATCH).for_each(|n| entries(n, &mut bodies));
        n += BATCH;
        for body in bodies {
            let entry = Entry {
                tenure: opened.tenure,
                body,
            };
            bytes.clear();
            codec::encode(&entry, &mut bytes);
            batch.push(opened.lane, Time(1), None, &bytes, b"");
            held.push(entry);
        }
        let (tell, told) = mpsc::sync_channel(1);
        opened.log.append(batch, Box::new(move |r| drop(tell.send(r))));
        let base = told.recv().expect("answered").expect("taken").bases[0].1;
        assert_eq!(base, next);
        next += held.len() as u64;
        let mut out = std::io::stdout().lock();
        // The parent may be gone.
        let _ = writeln!(out, "ack {next}").and_then(|()| out.flush());
        drop(out);
        opened.keeper.fold_entries(base, &held).expect("folds");
        if round % CHECKPOINT == 0 {
            opened.keeper.checkpoint().expect("written");
        }
    }
}

/// Lets a child write so many batches and kills it. Returns the offset up to which entries were acknowledged.
fn write_and_kill(data: &Path, batches: usize, at_the_kill: impl FnOnce()) -> u64 {
    let mut child = support::spawn_child(CHILD, data);
    let out = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut acks = out.map_while(Result::ok).filter_map(|line| {
        let (_, n) = line.split_once("ack ")?;
        n.trim().parse::<u64>().ok()
    });
    let heard = acks
        .by_ref()
        .take(batches)
        .last()
        .expect("the child goes on until it is killed");
    child.kill().expect("SIGKILL");
    child.wait().expect("ended");
    at_the_kill();
    acks.last().unwrap_or(heard)
}

/// Opens the folder as a node does, and compares with what the lane says from its first entry on.
fn check(data: &Path, acknowledged: u64) {
    let opened = open_folder(data);
    let bounds = opened.log.bounds(opened.lane).expect("there");
    assert!(
        bounds.next > acknowledged,
        "{acknowledged} entries were acknowledged, {} are there",
        bounds.next
    );
    let (mut state, mut ops, mut records) = (LaneState::default(), Vec::new(), Vec::new());
    let mut from = bounds.first;
    while from < bounds.next {
        records.clear();
        from = opened
            .log
            .read(opened.lane, from, 1 << 20, &mut records)
            .expect("readable");
        for record in &records {
            let entry = codec::decode(&record.value).expect("whole");
            state.apply(record.offset, &entry, &mut ops).expect("folds");
        }
    }
    opened.keeper.with_state(|restored| {
        assert_eq!(restored.next, state.next);
        assert!(
            *restored == state,
            "restored by {:?}, and not the fold of the lane",
            opened.report
        );
    });
    let mut wanted: HashMap<MessageId, &Finished> = HashMap::new();
    for op in &ops {
        match op {
            StoreOp::Finished(f) => drop(wanted.insert(f.id, f)),
            other => panic!("nothing else was written: {other:?}"),
        }
    }
    let ids: Vec<MessageId> = wanted.keys().copied().collect();
    assert!(ids.len() > 10, "{} messages are finished", ids.len());
    let mut found = Vec::new();
    opened.keeper.look_up(at(), &ids, &mut found).expect("answers");
    let answers: Vec<Option<FinishedState>> = ids.iter().map(|id| Some(wanted[id].state)).collect();
    assert_eq!(found, answers);
    let absent: Vec<MessageId> = (0..1000).map(|n| id(u64::MAX - n)).collect();
    found.clear();
    opened.keeper.look_up(at(), &absent, &mut found).expect("answers");
    assert!(found.iter().all(Option::is_none));
    close(opened);
}

fn rounds(default: usize) -> usize {
    let given = std::env::var("SLUICEGATE_LEDGER_KILLS").ok();
    given.and_then(|n| n.parse().ok()).unwrap_or(default)
}

#[test]
fn the_fold_after_a_kill_is_the_fold_of_the_lane() {
    let _alone = support::alone();
    let dir = tempfile::tempdir().expect("a folder");
    let data = dir.path().join("data");
    for _ in 0..rounds(4) {
        let acknowledged = write_and_kill(&data, fastrand::usize(20..500), || {});
        check(&data, acknowledged);
    }
}

/// Folds messages `from..` into the keeper until it says no.
fn fold_until_refused(keeper: &Keeper, from: u64, most: u64) -> (u64, Option<KeeperError>) {
    for n in from..from + most {
        let body = entries_of(n);
        let next = keeper.with_state(|s| s.next);
        if let Err(error) = keeper.catch_up().and_then(|()| keeper.fold_entries(next, &body)) {
            return (n + 1, Some(error));
        }
    }
    (from + most, None)
}

fn entries_of(n: u64) -> Vec<Entry> {
    let mut bodies = Vec::new();
    entries(n, &mut bodies);
    let entry = |body| Entry {
        tenure: Default::default(),
        body,
    };
    bodies.into_iter().map(entry).collect()
}

/// A store that cannot write for want of room is asked again: nothing that was folded is lost, what is known stays
/// known, and with room it goes on by itself.
#[test]
fn a_full_disk_under_the_store_is_waited_for() {
    let _alone = support::alone();
    let folder = tempfile::tempdir().expect("a folder");
    let disk = match Mount::tmpfs(16, &folder.path().join("disk")) {
        Ok(disk) => disk,
        Err(why) => return not_tested("a full disk under the ledger's views", &why),
    };
    let options = DedupOptions {
        memtable: 2_048,
        block: 2_048,
        cache: 1 << 20,
        ..DedupOptions::new(9)
    };
    let dir = disk.0.join("dedup");
    let (store, _) = DedupStore::open(&dir, options).expect("opens");
    let keeper = Keeper::new(LaneState::default(), 0, store, disk.0.join("ledger"), 9);
    let genesis = Entry {
        tenure: Default::default(),
        body: Body::Genesis(Genesis {
            ledger: 9,
            group: "g".into(),
            lanes: 1,
            lane: 0,
            recipe: 1,
        }),
    };
    keeper.fold_entries(0, &[genesis]).expect("folds");
    let (first, refused) = fold_until_refused(&keeper, 0, 6_000);
    assert!(refused.is_none());
    keeper.checkpoint().expect("there is room");
    let ballast = disk.0.join("ballast");
    let mut file = std::fs::File::create(&ballast).expect("a file");
    while file.write_all(&[1; 4096]).is_ok() {}
    let (last, refused) = fold_until_refused(&keeper, first, 200_000);
    let refused = refused.expect("the disk is full");
    assert!(refused.passes(), "{}", refused.why());
    let why = keeper.refuses().expect("told");
    assert!(why.contains("No space left"), "{why}");
    let known = |keeper: &Keeper, upto: u64| -> Result<Option<usize>, KeeperError> {
        // Those in doubt have no outcome.
        let ids: Vec<MessageId> = (0..upto).filter(|n| n % 8 != 3).map(id).collect();
        let mut found = Vec::new();
        keeper.look_up(at(), &ids, &mut found)?;
        Ok(found.iter().position(Option::is_none))
    };
    // sled wants room to open a folder. Until there is some the store may say that it cannot be asked; never that it
    // does not know an ID.
    match known(&keeper, last - 1) {
        Ok(unknown) => assert_eq!(unknown, None),
        Err(error) => assert!(error.passes(), "{}", error.why()),
    }
    for _ in 0..3 {
        let again = keeper.catch_up().expect_err("still full");
        assert!(again.passes());
        assert!(keeper.checkpoint().expect_err("still full").passes());
        assert!(keeper.behind().is_some());
    }
    drop(file);
    std::fs::remove_file(&ballast).expect("room again");
    let began = std::time::Instant::now();
    while keeper.catch_up().is_err() {
        assert!(
            began.elapsed() < std::time::Duration::from_secs(60),
            "it never goes on"
        );
        std::thread::yield_now();
    }
    assert_eq!(keeper.refuses(), None);
    assert_eq!(known(&keeper, last).expect("answers"), None);
    let (last, refused) = fold_until_refused(&keeper, last, 5_000);
    assert!(refused.is_none());
    keeper.checkpoint().expect("there is room");
    assert_eq!(
        (keeper.behind(), known(&keeper, last).expect("answers")),
        (None, None)
    );
}

/// A ledger that lost its end while the store did not is refused however often it is tried, and left as it is.
#[test]
fn lost_entries_are_refused_at_every_start() {
    let _alone = support::alone();
    let dir = tempfile::tempdir().expect("a folder");
    let data = dir.path().join("data");
    let write = |opened: &Opened, numbers: std::ops::Range<u64>| {
        for n in numbers {
            let entries = entries_of(n);
            let (mut batch, mut bytes) = (Batch::from_reserve(), Vec::new());
            for entry in &entries {
                bytes.clear();
                codec::encode(entry, &mut bytes);
                batch.push(opened.lane, Time(1), None, &bytes, b"");
            }
            let (tell, told) = mpsc::sync_channel(1);
            opened.log.append(batch, Box::new(move |r| drop(tell.send(r))));
            let base = told.recv().expect("answered").expect("taken").bases[0].1;
            opened.keeper.fold_entries(base, &entries).expect("folds");
        }
    };
    let opened = open_folder(&data);
    write(&opened, 0..20);
    opened.keeper.checkpoint().expect("written");
    close(opened);
    let log = data.join("log");
    let before = dir.path().join("before");
    copy_folder(&log, &before);
    let opened = open_folder(&data);
    // One entry behind the owner's: as many as a start that is refused would write.
    write(&opened, 3..4);
    opened.keeper.checkpoint().expect("written");
    close(opened);
    std::fs::remove_dir_all(&log).expect("removed");
    copy_folder(&before, &log);
    std::fs::remove_file(data.join("ledger/checkpoint")).expect("removed");
    for _ in 0..4 {
        let refused = open(&configuration(&data), Clock::start())
            .map(|_| ())
            .expect_err("refused");
        let OpenError::Restore(why) = refused else {
            panic!("{refused}")
        };
        assert!(why.to_string().contains("has lost entries"), "{why}");
    }
    // The checkpoint refuses it, too, where it is older than the store.
    assert!(std::fs::read_dir(&log).expect("there").count() > 1);
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("made");
    for entry in std::fs::read_dir(from).expect("there") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        match path.is_dir() {
            true => copy_folder(&path, &target),
            false => drop(std::fs::copy(&path, &target).expect("copied")),
        }
    }
}

/// A folder of version 0.1, as two runs and a third left it. The zeros at the end of its segment are left out.
fn older(dir: &Path) -> Config {
    let data = dir.join("data");
    copy_folder(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/0.1"),
        &data,
    );
    let segment = std::fs::File::options()
        .write(true)
        .open(data.join("log/seg-000000.log"))
        .expect("there");
    segment.set_len(1 << 20).expect("as long as it was");
    configuration(&data)
}

fn all_of_0_1(opened: &Opened) {
    let mut states: HashMap<FinishedState, u32> = HashMap::new();
    let count = &mut |f: Finished| {
        *states.entry(f.state).or_default() += 1;
        std::ops::ControlFlow::Continue(())
    };
    opened
        .keeper
        .store()
        .iterate(&Default::default(), count)
        .expect("readable");
    let of = |state| states.get(&state).copied().unwrap_or(0);
    assert_eq!(
        (
            of(FinishedState::Delivered),
            of(FinishedState::Dead),
            of(FinishedState::Parked)
        ),
        (128, 16, 16)
    );
}

#[test]
fn a_folder_of_0_1_opens_and_knows_all_of_it() {
    let _alone = support::alone();
    let dir = tempfile::tempdir().expect("a folder");
    let config = older(dir.path());
    for _ in 0..3 {
        let opened = open(&config, Clock::start()).expect("opens");
        all_of_0_1(&opened);
        opened.keeper.checkpoint().expect("written");
        close(opened);
    }
    // Its tail cut, changed, emptied or gone: its manifest cannot say what stood there, and nothing is forgotten.
    for harm in 0..5 {
        let dir = tempfile::tempdir().expect("a folder");
        let config = older(dir.path());
        let tail = dir.path().join("data/dedup/tail-2");
        let mut bytes = std::fs::read(&tail).expect("there");
        match harm {
            0 => bytes[1_200] ^= 1,
            1 => bytes.truncate(1_200),
            2 => bytes.clear(),
            3 => bytes[40] ^= 1,
            _ => {}
        }
        std::fs::write(&tail, &bytes).expect("written");
        if harm == 4 {
            std::fs::remove_file(&tail).expect("removed");
        }
        for _ in 0..2 {
            let opened = open(&config, Clock::start()).expect("opens");
            all_of_0_1(&opened);
            close(opened);
        }
    }
}

#[test]
fn power_cut_on_a_loop_device_or_loudly_not_tested() {
    let _alone = support::alone();
    let dir = tempfile::tempdir().expect("a folder");
    let image = dir.path().join("image");
    let mount = match Mount::new_image(&image, 96, &dir.path().join("disk")) {
        Ok(mount) => mount,
        Err(why) => return not_tested("power cuts of the ledger", &why),
    };
    let data = mount.0.join("data");
    for round in 0..rounds(3) {
        let copy = dir.path().join(format!("copy-{round}"));
        let acknowledged = write_and_kill(&data, fastrand::usize(20..400), || copy_image(&image, &copy));
        let after =
            Mount::image(&copy, &dir.path().join(format!("after-{round}"))).expect("mounted like the image");
        check(&after.0.join("data"), acknowledged);
        drop(after);
        std::fs::remove_file(&copy).expect("removed");
        // The next round goes on where the kill alone left it.
        check(&data, acknowledged);
    }
}
