//! The ledger through kill -9 and power cut: whatever prefix of the lane is durable, opening the folder gives the
//! fold of exactly that prefix, and the dedup store answers by it.
//!
//! The child is this test binary again: it writes entries, folds them, writes a checkpoint now and then, and says on
//! stdout how much was acknowledged to it. After a kill the folder is opened as a node opens it (checkpoint, store,
//! the entries behind them), and compared with a fold of the lane from its first entry. A power cut is the image of a
//! loop device copied at the moment of the kill; where the machine does not allow it, the test says so on stderr.
//! `SLUICEGATE_LEDGER_KILLS` sets the number of rounds.

mod support;

use sluicegate::app::{Opened, open};
use sluicegate::clock::Clock;
use sluicegate::config::{self, Config};
use sluicegate::core::ledger::codec;
use sluicegate::core::ledger::entry::{Body, Entry, Intent, Kept, Outcome, OutcomeKind, Position};
use sluicegate::core::ledger::fold::{Finished, FinishedState, LaneState, StoreOp};
use sluicegate::core::types::{KeyHash, MessageId, RouteId, RoutePartition, Time};
use sluicegate::log::Batch;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
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

fn spawn(data: &Path) -> Child {
    Command::new(std::env::current_exe().expect("this binary"))
        .args([
            "--exact",
            "child",
            "--ignored",
            "--nocapture",
            "--test-threads",
            "1",
        ])
        .env(CHILD, data)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts")
}

/// Lets a child write so many batches and kills it. Returns the offset up to which entries were acknowledged.
fn write_and_kill(data: &Path, batches: usize, at_the_kill: impl FnOnce()) -> u64 {
    let mut child = spawn(data);
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
