//! A port over a real log that is busy, full, or broken.

use super::*;
use crate::core::ledger::entry::Body;
use crate::core::types::Time;
use crate::log::embedded::{EmbeddedLog, EmbeddedOptions, Fault, FaultHook, Step};
use crate::log::{Batch, TopicSpec};
use crate::patience;
use parking_lot::Mutex;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::time::Duration;

const ENOSPC: i32 = 28;
const EIO: i32 = 5;

/// A lane on a small log, and what became of it.
struct Bench {
    _dir: tempfile::TempDir,
    log: Arc<EmbeddedLog>,
    lane: Lane,
    feed: tokio::sync::mpsc::UnboundedReceiver<Committed>,
    failed: Arc<Mutex<Option<LogError>>>,
}

fn bench(options: EmbeddedOptions) -> Bench {
    let dir = tempfile::tempdir().expect("a folder");
    let log = Arc::new(EmbeddedLog::open(dir.path(), options).expect("opens"));
    let spec = TopicSpec {
        partitions: 1,
        retention: None,
        retention_bytes: None,
    };
    let partition = log.create_topic("lane", &spec).expect("made").partitions[0];
    let failed = Arc::new(Mutex::new(None));
    let told = Arc::clone(&failed);
    let fatal = Box::new(move |error| *told.lock() = Some(error));
    let (lane, feed) = Lane::new(
        log.clone(),
        partition,
        Tenure(0),
        LifeId(1),
        Clock::start(),
        fatal,
    );
    Bench {
        _dir: dir,
        log,
        lane,
        feed,
        failed,
    }
}

/// Segments of 1 MiB, the smallest that can be configured; no gap between commits.
fn small() -> EmbeddedOptions {
    EmbeddedOptions {
        commit_gap: Duration::ZERO,
        care_every: Duration::from_millis(5),
        ..EmbeddedOptions::small()
    }
}

/// An entry that says which one it is.
fn numbered(n: u64) -> Body {
    Body::Applied { version: n }
}

fn number(entry: &Entry) -> u64 {
    match &entry.body {
        Body::Applied { version } => *version,
        other => panic!("{other:?}"),
    }
}

impl Bench {
    /// The next `n` entries that became durable; they follow each other in the log.
    async fn durable(&mut self, n: usize) -> Vec<u64> {
        let mut out = Vec::new();
        let mut next = None;
        while out.len() < n {
            let committed = self.feed.recv().await.expect("the port is there");
            if committed.entries.is_empty() {
                continue;
            }
            assert!(next.is_none_or(|next| next == committed.base));
            next = Some(committed.base + committed.entries.len() as u64);
            out.extend(committed.entries.iter().map(number));
            committed.folded(&self.lane);
        }
        out
    }

    /// Keeps the log's writer busy, with its queue full, until the sender is told to end.
    fn fill_queue(&self) -> mpsc::Sender<()> {
        let filler = |bytes: usize| {
            let mut batch = Batch::new();
            batch.push(self.lane.partition(), Time(1), None, &vec![0; bytes], b"");
            batch
        };
        let (go, wait) = mpsc::channel::<()>();
        let (began, begun) = mpsc::channel();
        let block = move |_: Result<crate::log::Appended, LogError>| {
            began.send(()).expect("waited for");
            // Ends also when the test does.
            let _ = wait.recv();
        };
        self.log.append(filler(1), Box::new(block));
        patience::hear(&begun).expect("the writer calls back");
        self.log
            .append(filler(1000), Box::new(|result| drop(result.expect("taken"))));
        go
    }
}

/// A lane whose log is busy, with its queue full, until the sender is told to end.
fn busy_bench() -> (Bench, mpsc::Sender<()>) {
    let bench = bench(EmbeddedOptions {
        queue_bytes: 1000,
        ..small()
    });
    let go = bench.fill_queue();
    (bench, go)
}

fn run(test: impl Future<Output = ()>) {
    patience::watch();
    actix_rt::System::new().block_on(patience::within(test));
}

/// While the lane's owner refuses, outcomes go on and no intent does; then intents go on by themselves.
#[test]
fn a_lane_that_refuses_takes_outcomes_alone() {
    run(async {
        let mut bench = bench(small());
        let port = LanePort::open(bench.lane.clone());
        bench.lane.refuse(Some("the store is full".into()));
        let refused = port.intent(numbered(1));
        port.outcome(numbered(2));
        port.flush();
        let why = port.durable(refused).await.expect_err("refused").to_string();
        assert!(why.contains("the store is full"), "{why}");
        assert_eq!(bench.durable(1).await, [2]);
        bench.lane.refuse(None);
        let taken = port.intent(numbered(3));
        port.flush();
        port.durable(taken).await.expect("taken");
        assert_eq!(bench.durable(1).await, [3]);
        assert_eq!(bench.lane.backlog(), 0);
    });
}

/// What waits is counted in bytes, payloads and all, wherever it waits; and nothing of it remains once it is folded.
#[test]
fn what_waits_counts_with_its_bytes() {
    run(async {
        let (mut bench, go) = busy_bench();
        let port = LanePort::open(bench.lane.clone());
        let large = || Body::Unknown {
            kind: 200,
            bytes: vec![0; 50_000].into(),
        };
        (0..4).for_each(|_| _ = port.outcome(large()));
        let refused = port.intent(numbered(9));
        port.flush();
        let held = bench.lane.backlog_bytes();
        assert!((400_000..410_000).contains(&held), "{held}");
        bench.lane.refuse(Some("full".into()));
        go.send(()).expect("the callback waits");
        port.durable(refused).await.expect_err("refused");
        let mut taken = 0;
        while taken < 4 {
            let committed = bench.feed.recv().await.expect("the port is there");
            taken += committed.entries.len();
            committed.folded(&bench.lane);
        }
        assert_eq!((bench.lane.backlog(), bench.lane.backlog_bytes()), (0, 0));
    });
}

/// What a busy log does not take is kept, outcomes and intents, and is appended again in its order.
#[test]
fn a_busy_log_is_asked_again() {
    run(async {
        let (mut bench, go) = busy_bench();
        let port = LanePort::open(bench.lane.clone());
        let intent = port.intent(numbered(2));
        port.outcome(numbered(1));
        port.flush();
        // The batch was refused by now, and what comes later waits behind it.
        port.outcome(numbered(3));
        assert_eq!(bench.lane.backlog(), 3, "what waits counts for the readers");
        go.send(()).expect("the callback waits");
        port.durable(intent).await.expect("durable in the end");
        assert_eq!(bench.durable(3).await, [2, 1, 3], "as they came");
        assert_eq!(bench.lane.backlog(), 0);
        assert_eq!(port.folded(), port.last_outcome());
        assert!(bench.failed.lock().is_none(), "{:?}", bench.failed.lock());
    });
}

/// While the lane is held nothing new reaches the log; what a busy log gives back meanwhile is not waited for.
#[test]
fn a_hold_is_not_kept_waiting_by_what_was_given_back() {
    run(async {
        let (mut bench, go) = busy_bench();
        let port = LanePort::open(bench.lane.clone());
        port.outcome(numbered(1));
        port.flush();
        let hold = bench.lane.hold();
        port.outcome(numbered(3));
        go.send(()).expect("the callback waits");
        while bench.lane.in_log() > 0 {
            bench.feed.recv().await.expect("told").folded(&bench.lane);
        }
        let mut written = Vec::new();
        hold.write(vec![numbered(2)], &mut written)
            .await
            .expect("the log takes it");
        assert_eq!(number(&written[0].1[0]), 2);
        port.flush();
        assert_eq!(bench.lane.backlog(), 2);
        drop(hold);
        assert_eq!(bench.durable(2).await, [1, 3], "behind what the hold wrote");
        assert!(bench.log.bounds(bench.lane.partition()).expect("there").next >= 5);
    });
}

/// A port that is dropped while the log is busy does not take its outcomes with it.
#[test]
fn what_was_appended_goes_out_after_the_port_is_gone() {
    run(async {
        let (mut bench, go) = busy_bench();
        let port = LanePort::open(bench.lane.clone());
        (0..5).for_each(|n| _ = port.outcome(numbered(n)));
        port.flush();
        (5..9).for_each(|n| _ = port.outcome(numbered(n)));
        drop(port);
        go.send(()).expect("the callback waits");
        assert_eq!(bench.durable(9).await, (0..9).collect::<Vec<_>>());
    });
}

/// A disk that is full while the hook says so.
fn full_disk() -> (EmbeddedOptions, Arc<AtomicBool>) {
    let full = Arc::new(AtomicBool::new(false));
    let hook = Arc::clone(&full);
    let fault: FaultHook = Arc::new(move |step, _| {
        (step == Step::Allocate && hook.load(Ordering::Acquire)).then_some(Fault::Error(ENOSPC))
    });
    let options = EmbeddedOptions {
        fault: Some(fault),
        ..small()
    };
    (options, full)
}

/// Full disk: intents are refused, outcomes go into the reserve; once that is gone too they wait, and nothing is lost.
#[test]
fn a_full_disk_refuses_intents_and_keeps_outcomes() {
    run(async {
        let (options, full) = full_disk();
        let mut bench = bench(options);
        let port = LanePort::open(bench.lane.clone());
        // One segment is written, three are ready: the reserve is made after opening.
        while bench.log.stats().disk_bytes < 4 << 20 {
            tokio::task::yield_now().await;
        }
        full.store(true, Ordering::Release);
        let (mut n, mut wanted) = (0, Vec::new());
        let mut asked = |port: &Rc<LanePort>| {
            // Enough to fill segments: about 100 KB at once.
            (0..2000).for_each(|_| {
                port.outcome(numbered(n));
                wanted.push(n);
                n += 1;
            });
            port.intent(numbered(u64::MAX))
        };
        let mut refused = 0;
        while refused < 3 {
            let intent = asked(&port);
            match port.durable(intent).await {
                Ok(()) => assert_eq!(refused, 0, "it is full until it is not"),
                Err(LaneError::NoRoom(_)) => refused += 1,
            }
        }
        // Far more than the reserve holds.
        (0..100).for_each(|_| _ = asked(&port));
        full.store(false, Ordering::Release);
        let mut got = Vec::new();
        while got.len() < wanted.len() {
            got.extend(bench.durable(1).await.into_iter().filter(|n| *n != u64::MAX));
        }
        assert_eq!(got, wanted, "every outcome, in its order");
        assert!(bench.failed.lock().is_none(), "{:?}", bench.failed.lock());
        // Intents are taken again.
        loop {
            let intent = port.intent(numbered(u64::MAX));
            if port.durable(intent).await.is_ok() {
                break;
            }
        }
    });
}

/// A failed sync ends the node.
#[test]
fn a_failed_log_is_told() {
    run(async {
        let broken = Arc::new(AtomicBool::new(false));
        let hook = Arc::clone(&broken);
        let fault: FaultHook = Arc::new(move |step, _| {
            (step == Step::Sync && hook.load(Ordering::Acquire)).then_some(Fault::Error(EIO))
        });
        let bench = bench(EmbeddedOptions {
            fault: Some(fault),
            ..small()
        });
        let port = LanePort::open(bench.lane.clone());
        broken.store(true, Ordering::Release);
        port.outcome(numbered(1));
        port.flush();
        while bench.failed.lock().is_none() {
            tokio::task::yield_now().await;
        }
        assert!(matches!(*bench.failed.lock(), Some(LogError::Failed { .. })));
        assert_eq!(port.outcomes_durable(), 0);
    });
}

/// An outcome that keeps the largest record that the log takes fits too.
#[test]
fn the_largest_record_can_be_kept() {
    run(async {
        let mut bench = bench(small());
        let port = LanePort::open(bench.lane.clone());
        let largest = 256 * 1024 - 100;
        let mut record = Batch::new();
        record.push(bench.lane.partition(), Time(1), None, &vec![0; largest], b"");
        let (tell, told) = mpsc::channel();
        bench.log.append(record, Box::new(move |r| drop(tell.send(r))));
        patience::hear(&told)
            .expect("answered")
            .expect("the log takes it");
        port.outcome(Body::Unknown {
            kind: 200,
            bytes: vec![0; largest + 8 * 1024].into(),
        });
        port.flush();
        let committed = bench.feed.recv().await.expect("the port is there");
        assert_eq!(committed.entries.len(), 1);
    });
}

/// A position with as many finished ranges as there may be is larger than a quarter of the smallest segment.
#[test]
fn a_position_of_many_ranges_is_taken() {
    run(async {
        let mut bench = bench(small());
        let port = LanePort::open(bench.lane.clone());
        let finished: Vec<(u64, u64)> = (1..100_000).map(|n| (n * 1_000, n * 1_000 + 500)).collect();
        for position in 0..3 {
            port.outcome(Body::Position(crate::core::ledger::entry::Position {
                at: crate::core::types::RoutePartition {
                    route: crate::core::types::RouteId(1),
                    partition: 0,
                },
                leader_epoch: 0,
                position,
                finished: finished.clone(),
                high_water: 100_000_000,
            }));
            port.flush();
            let committed = bench.feed.recv().await.expect("the port is there");
            let Body::Position(taken) = &committed.entries[0].body else {
                panic!("{committed:?}")
            };
            assert_eq!((taken.position, taken.finished.len()), (position, finished.len()));
            committed.folded(&bench.lane);
        }
        assert!(bench.failed.lock().is_none());
    });
}

/// Entries larger than a batch go out in several, in order.
#[test]
fn much_goes_out_in_several_batches() {
    run(async {
        let mut bench = bench(small());
        let port = LanePort::open(bench.lane.clone());
        let many = 100_000;
        (0..many).for_each(|n| _ = port.outcome(numbered(n)));
        assert!(bench.durable(many as usize).await.into_iter().eq(0..many));
        assert!(bench.log.stats().commits > 3, "{:?}", bench.log.stats());
    });
}
