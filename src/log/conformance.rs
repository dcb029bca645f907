//! What every implementation of the log must do, as cases that panic where it does not.
//!
//! An implementation brings a [`Subject`] and runs [`ALL`]; each case gets a fresh one. Offsets are only compared
//! with each other: an implementation may leave gaps.

use super::{Appended, Batch, Bounds, Log, LogError, PartitionId, TopicMeta, TopicSpec};
use crate::core::record::{Headers, Record};
use crate::core::types::{Offset, Time};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A log to be tested.
pub trait Subject {
    /// Opens the log; called again after the one before was closed, and then everything durable is there.
    fn open(&self) -> Arc<dyn Log>;
}

/// A case and its name.
pub type Case = (&'static str, fn(&dyn Subject));

/// All cases.
pub const ALL: &[Case] = &[
    ("records come back as they were", records_come_back),
    ("a batch spans partitions and groups", batch_spans_partitions),
    ("callbacks keep the order of the calls", callbacks_in_order),
    ("everything is there after opening again", reopening),
    ("reads are bounded and refuse what is not there", bounded_reads),
    ("watchers are told the next offset", watchers),
    ("a transaction is seen whole or never", transactions),
    ("a transaction holds back nobody", transactions_hold_back_nobody),
    ("offsets are found by time", by_time),
    ("trimmed records are gone and offsets never fall", trimming),
    ("a topic made anew is another one", incarnations),
    ("settings change, the number of partitions does not", settings),
    ("many writers keep their own order", many_writers),
    ("a closed log refuses", closed),
];

/// One minute: longer than anything here takes; a case that hangs must still end.
const LONG: Duration = Duration::from_secs(60);

fn topic(log: &dyn Log, name: &str, partitions: u32) -> TopicMeta {
    let spec = TopicSpec {
        partitions,
        retention: None,
        retention_bytes: None,
    };
    log.create_topic(name, &spec).expect("the topic is made")
}

/// Appends and hands out the answer to come.
pub fn send(log: &dyn Log, batch: Batch) -> Receiver<Result<Appended, LogError>> {
    let (tell, told) = sync_channel(1);
    log.append(batch, Box::new(move |result| drop(tell.send(result))));
    told
}

/// Appends and waits until it is durable.
pub fn append(log: &dyn Log, batch: Batch) -> Result<Appended, LogError> {
    send(log, batch)
        .recv_timeout(LONG)
        .expect("an append is answered")
}

/// A batch of records with these values.
pub fn values<'a>(partition: PartitionId, values: impl IntoIterator<Item = &'a str>) -> Batch {
    let mut batch = Batch::new();
    for value in values {
        batch.push(partition, Time(1), None, value.as_bytes(), b"");
    }
    batch
}

/// All records of a partition from an offset on.
pub fn read_all(log: &dyn Log, partition: PartitionId, mut from: Offset) -> Vec<Record> {
    let mut out = Vec::new();
    loop {
        let had = out.len();
        from = log
            .read(partition, from, 100_000, &mut out)
            .expect("what is there can be read");
        if out.len() == had {
            return out;
        }
    }
}

fn texts(records: &[Record]) -> Vec<String> {
    let text = |r: &Record| String::from_utf8_lossy(&r.value).into_owned();
    records.iter().map(text).collect()
}

fn records_come_back(subject: &dyn Subject) {
    let log = subject.open();
    let p = topic(&*log, "t", 1).partitions[0];
    let headers = Headers::encode([("a", &b"1"[..]), ("b", b"")]);
    let big = vec![7u8; 100_000];
    let mut batch = Batch::new();
    batch.push(p, Time(5), None, b"no key", b"");
    batch.push(p, Time(6), Some(b""), b"empty key", b"");
    batch.push(p, Time(7), Some(b"key"), b"", &headers.0);
    batch.push(p, Time(8), Some(&[0xff, 0]), &big, b"");
    append(&*log, batch).expect("taken");
    let got = read_all(&*log, p, 0);
    let keys: Vec<_> = got.iter().map(|r| r.key.as_deref()).collect();
    assert_eq!(keys, [None, Some(&b""[..]), Some(b"key"), Some(&[0xff, 0])]);
    let times: Vec<_> = got.iter().map(|r| r.timestamp.0).collect();
    assert_eq!(times, [5, 6, 7, 8]);
    assert_eq!(&got[0].value[..], b"no key");
    assert_eq!(got[2].headers, headers);
    assert_eq!(&got[3].value[..], &big[..]);
}

fn batch_spans_partitions(subject: &dyn Subject) {
    let log = subject.open();
    let parts = topic(&*log, "t", 3).partitions;
    let other = topic(&*log, "other", 1).partitions[0];
    append(&*log, values(parts[1], ["before"])).expect("taken");
    let mut batch = Batch::new();
    batch.push(parts[2], Time(1), None, b"c", b"");
    batch.push(parts[1], Time(1), None, b"b", b"");
    batch.push(other, Time(1), None, b"o", b"");
    batch.push(parts[2], Time(1), None, b"c2", b"");
    batch.commit_offset("g", parts[1], 77);
    let appended = append(&*log, batch).expect("taken");
    let order: Vec<_> = appended.bases.iter().map(|(p, _)| *p).collect();
    assert_eq!(order, [parts[2], parts[1], other]);
    for (partition, base) in &appended.bases {
        let got = read_all(&*log, *partition, *base);
        assert_eq!(got[0].offset, *base);
    }
    assert_eq!(texts(&read_all(&*log, parts[2], 0)), ["c", "c2"]);
    assert_eq!(texts(&read_all(&*log, parts[1], 0)), ["before", "b"]);
    assert_eq!(log.committed("g", parts[1]), Some(77));
    assert_eq!(log.committed("g", parts[2]), None);
    assert_eq!(log.committed("h", parts[1]), None);
}

fn callbacks_in_order(subject: &dyn Subject) {
    let log = subject.open();
    let parts = topic(&*log, "t", 2).partitions;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (tell, told) = sync_channel(1000);
    for n in 0..500usize {
        let (seen, tell) = (Arc::clone(&seen), tell.clone());
        let batch = match n % 7 {
            // Refused ones keep their place too.
            6 => values(PartitionId(4_000_000), ["x"]),
            _ => values(parts[n % 2], ["x"]),
        };
        let done = move |result: Result<Appended, LogError>| {
            seen.lock().expect("no panic before").push((n, result.is_ok()));
            let _ = tell.send(());
        };
        log.append(batch, Box::new(done));
    }
    (0..500).for_each(|_| told.recv_timeout(LONG).expect("answered"));
    let seen = seen.lock().expect("no panic before");
    assert!(seen.iter().map(|(n, _)| *n).eq(0..500));
    assert!(seen.iter().all(|(n, ok)| *ok == (n % 7 != 6)));
}

fn reopening(subject: &dyn Subject) {
    let log = subject.open();
    let made = topic(&*log, "t", 2);
    topic(&*log, "__internal", 1);
    for n in 0..50 {
        let mut batch = values(made.partitions[n % 2], [format!("v{n}").as_str()]);
        batch.commit_offset("g", made.partitions[0], n as u64);
        append(&*log, batch).expect("taken");
    }
    let before: Vec<Vec<Record>> = (made.partitions.iter()).map(|p| read_all(&*log, *p, 0)).collect();
    log.close().expect("closed");
    drop(log);
    let log = subject.open();
    let again = log.topic("t").expect("still there");
    assert_eq!((again.id, &again.spec), (made.id, &made.spec));
    let names: Vec<_> = log.topics().into_iter().map(|t| t.name).collect();
    assert_eq!(names, ["__internal", "t"]);
    for (p, before) in again.partitions.iter().zip(before) {
        assert_eq!(read_all(&*log, *p, 0), before);
    }
    assert_eq!(log.committed("g", again.partitions[0]), Some(49));
    let next = log.bounds(again.partitions[0]).expect("there").next;
    let more = append(&*log, values(again.partitions[0], ["more"])).expect("taken");
    assert!(more.bases[0].1 >= next);
    assert_eq!(
        *log.watch(again.partitions[1]).borrow(),
        log.bounds(again.partitions[1]).expect("there").next
    );
}

fn bounded_reads(subject: &dyn Subject) {
    let log = subject.open();
    let p = topic(&*log, "t", 1).partitions[0];
    assert_eq!(log.bounds(p).expect("there"), Bounds { first: 0, next: 0 });
    let mut out = Vec::new();
    assert_eq!(log.read(p, 0, 100, &mut out).expect("empty is no error"), 0);
    assert!(out.is_empty());
    let big = "x".repeat(1000);
    for _ in 0..10 {
        append(&*log, values(p, (0..20).map(|_| big.as_str()))).expect("taken");
    }
    let next = log.read(p, 0, 1, &mut out).expect("readable");
    assert_eq!(out.len(), 1, "at least one, however small the bound");
    log.read(p, next, 10_500, &mut out).expect("readable");
    assert!((10..=13).contains(&out.len()), "{} records for 10 KB", out.len());
    // Every step size reads the same.
    for bytes in [1, 1_500, 7_000, 64_000, 10_000_000] {
        let (mut at, mut got) = (0, Vec::new());
        while at < log.bounds(p).expect("there").next {
            at = log.read(p, at, bytes, &mut got).expect("readable");
        }
        assert_eq!(got.len(), 200);
        assert!(got.windows(2).all(|w| w[0].offset < w[1].offset));
    }
    let end = log.bounds(p).expect("there").next;
    assert!(matches!(
        log.read(p, end + 1, 1, &mut out),
        Err(LogError::OutOfRange { wanted, next, .. }) if wanted == end + 1 && next == end
    ));
    assert!(log.bounds(PartitionId(4_000_000)).is_err());
}

fn watchers(subject: &dyn Subject) {
    let log = subject.open();
    let parts = topic(&*log, "t", 2).partitions;
    let mut mine = log.watch(parts[0]);
    let mut other = log.watch(parts[1]);
    mine.mark_unchanged();
    other.mark_unchanged();
    append(&*log, values(parts[0], ["a", "b"])).expect("taken");
    assert!(mine.has_changed().expect("open"));
    assert_eq!(
        *mine.borrow_and_update(),
        log.bounds(parts[0]).expect("there").next
    );
    assert!(!other.has_changed().expect("open"));
}

fn transactions(subject: &dyn Subject) {
    let log = subject.open();
    let parts = topic(&*log, "t", 2).partitions;
    append(&*log, values(parts[0], ["first"])).expect("taken");
    let mut dropped = log.begin().expect("begun");
    dropped.append(values(parts[0], ["never"])).expect("taken");
    let mut tx = log.begin().expect("begun");
    let mut wanted = vec!["first".to_owned()];
    for part in 0..40 {
        let mut batch = Batch::new();
        for line in 0..50 {
            let value = format!("part {part} line {line}");
            batch.push(parts[0], Time(1), Some(b"k"), value.as_bytes(), b"");
            wanted.push(value);
        }
        batch.push(parts[1], Time(1), None, b"x", b"");
        batch.commit_offset("imports", parts[1], part);
        tx.append(batch).expect("taken");
    }
    drop(dropped);
    assert_eq!(
        read_all(&*log, parts[0], 0).len(),
        1,
        "nothing of it is seen before the commit"
    );
    assert_eq!(log.committed("imports", parts[1]), None);
    let watch = log.watch(parts[1]);
    let mut last = values(parts[1], ["registry"]);
    last.commit_offset("imports", parts[0], 5);
    let appended = tx.commit(last).expect("committed");
    assert_eq!(texts(&read_all(&*log, parts[0], 0)), wanted);
    let mut second = vec!["x"; 40];
    second.push("registry");
    assert_eq!(texts(&read_all(&*log, parts[1], 0)), second);
    assert_eq!(*watch.borrow(), log.bounds(parts[1]).expect("there").next);
    assert_eq!(log.committed("imports", parts[1]), Some(39));
    assert_eq!(log.committed("imports", parts[0]), Some(5));
    let base = appended
        .bases
        .iter()
        .find(|(p, _)| *p == parts[0])
        .expect("named")
        .1;
    assert_eq!(&read_all(&*log, parts[0], base)[0].value[..], b"part 0 line 0");
    log.close().expect("closed");
    drop(log);
    let log = subject.open();
    let parts = log.topic("t").expect("there").partitions;
    assert_eq!(texts(&read_all(&*log, parts[0], 0)), wanted);
    assert_eq!(texts(&read_all(&*log, parts[1], 0)), second);
}

fn transactions_hold_back_nobody(subject: &dyn Subject) {
    let log = subject.open();
    let p = topic(&*log, "t", 1).partitions[0];
    let mut tx = log.begin().expect("begun");
    tx.append(values(p, ["tx 1"])).expect("taken");
    append(&*log, values(p, ["a"])).expect("taken");
    assert_eq!(
        texts(&read_all(&*log, p, 0)),
        ["a"],
        "read although a transaction is open"
    );
    let mut second = log.begin().expect("begun");
    second.append(values(p, ["tx 2"])).expect("taken");
    tx.append(values(p, ["tx 1 again"])).expect("taken");
    second.commit(Batch::new()).expect("committed");
    append(&*log, values(p, ["b"])).expect("taken");
    tx.commit(Batch::new()).expect("committed");
    assert_eq!(
        texts(&read_all(&*log, p, 0)),
        ["a", "tx 2", "b", "tx 1", "tx 1 again"]
    );
    let empty = log.begin().expect("begun");
    empty
        .commit(values(p, ["alone"]))
        .expect("a transaction may consist of its last batch");
    assert_eq!(read_all(&*log, p, 0).len(), 6);
}

fn by_time(subject: &dyn Subject) {
    let log = subject.open();
    let p = topic(&*log, "t", 1).partitions[0];
    let mut offsets = Vec::new();
    for n in 0..100u64 {
        let mut batch = Batch::new();
        batch.push(p, Time::from_millis(1_000 + n * 10), None, &[0; 3000], b"");
        offsets.push(append(&*log, batch).expect("taken").bases[0].1);
    }
    let at = |ms| log.offset_at(p, Time::from_millis(ms)).expect("there");
    assert_eq!(at(0), offsets[0]);
    assert_eq!(at(1_000), offsets[0]);
    assert_eq!(at(1_001), offsets[1]);
    assert_eq!(at(1_500), offsets[50]);
    assert_eq!(at(9_999), log.bounds(p).expect("there").next);
}

fn trimming(subject: &dyn Subject) {
    let log = subject.open();
    let p = topic(&*log, "t", 1).partitions[0];
    append(&*log, values(p, (0..10).map(|_| "x"))).expect("taken");
    let all = read_all(&*log, p, 0);
    log.trim(p, all[4].offset).expect("trimmed");
    assert_eq!(log.bounds(p).expect("there").first, all[4].offset);
    assert_eq!(read_all(&*log, p, all[4].offset), all[4..]);
    assert!(matches!(
        log.read(p, 0, 1, &mut Vec::new()),
        Err(LogError::OutOfRange { wanted: 0, .. })
    ));
    log.trim(p, 0).expect("trimming less than before does nothing");
    let next = log.bounds(p).expect("there").next;
    log.trim(p, next).expect("trimmed");
    assert_eq!(log.bounds(p).expect("there"), Bounds { first: next, next });
    assert!(log.trim(p, next + 1).is_err());
    log.close().expect("closed");
    drop(log);
    let log = subject.open();
    let p = log.topic("t").expect("there").partitions[0];
    assert_eq!(log.bounds(p).expect("there"), Bounds { first: next, next });
    assert!(append(&*log, values(p, ["y"])).expect("taken").bases[0].1 >= next);
}

fn incarnations(subject: &dyn Subject) {
    let log = subject.open();
    let old = topic(&*log, "t", 1);
    append(&*log, values(old.partitions[0], ["old"])).expect("taken");
    log.delete_topic("t").expect("deleted");
    assert!(matches!(log.delete_topic("t"), Err(LogError::NoTopic(_))));
    assert_eq!(log.topic("t"), None);
    assert!(log.bounds(old.partitions[0]).is_err());
    let new = topic(&*log, "t", 2);
    assert_ne!(new.id, old.id);
    assert!(read_all(&*log, new.partitions[0], 0).is_empty());
    append(&*log, values(new.partitions[0], ["new"])).expect("taken");
    log.close().expect("closed");
    drop(log);
    let log = subject.open();
    let again = log.topic("t").expect("there");
    assert_eq!(again.id, new.id);
    assert_eq!(texts(&read_all(&*log, again.partitions[0], 0)), ["new"]);
}

fn settings(subject: &dyn Subject) {
    let log = subject.open();
    let made = topic(&*log, "t", 2);
    let spec = TopicSpec {
        partitions: 2,
        retention: Some(Duration::from_secs(60)),
        retention_bytes: Some(1 << 30),
    };
    let changed = log.create_topic("t", &spec).expect("changed");
    assert_eq!((changed.id, &changed.spec), (made.id, &spec));
    let wrong = TopicSpec {
        partitions: 3,
        ..spec
    };
    assert!(matches!(
        log.create_topic("t", &wrong),
        Err(LogError::Partitions {
            has: 2,
            wanted: 3,
            ..
        })
    ));
}

fn many_writers(subject: &dyn Subject) {
    let log = subject.open();
    let parts = topic(&*log, "t", 2).partitions;
    std::thread::scope(|scope| {
        for writer in 0..4u32 {
            let (log, parts) = (Arc::clone(&log), parts.clone());
            scope.spawn(move || {
                let mut answers = Vec::new();
                for n in 0..200u32 {
                    let mut batch = Batch::new();
                    let value = format!("{writer} {n}");
                    parts
                        .iter()
                        .for_each(|p| batch.push(*p, Time(1), None, value.as_bytes(), b""));
                    answers.push(send(&*log, batch));
                }
                for answer in answers {
                    answer.recv_timeout(LONG).expect("answered").expect("taken");
                }
            });
        }
        // A reader at the same time sees prefixes only.
        let (log, p) = (Arc::clone(&log), parts[0]);
        scope.spawn(move || {
            let (mut at, mut next) = (0, [0u32; 4]);
            let mut got = Vec::new();
            while next.iter().sum::<u32>() < 800 {
                got.clear();
                at = log.read(p, at, 10_000, &mut got).expect("readable");
                for text in texts(&got) {
                    let (writer, n) = text.split_once(' ').expect("as written");
                    let expected = &mut next[writer.parse::<usize>().expect("as written")];
                    assert_eq!(n.parse::<u32>().expect("as written"), *expected);
                    *expected += 1;
                }
            }
        });
    });
    assert_eq!(
        texts(&read_all(&*log, parts[0], 0)),
        texts(&read_all(&*log, parts[1], 0)),
        "batches keep one order over all partitions"
    );
}

fn closed(subject: &dyn Subject) {
    let log = subject.open();
    let p = topic(&*log, "t", 1).partitions[0];
    let waiting = send(&*log, values(p, ["x"]));
    log.close().expect("closed");
    waiting
        .recv_timeout(LONG)
        .expect("answered")
        .expect("what was appended before is durable");
    assert!(matches!(append(&*log, values(p, ["y"])), Err(LogError::Closed)));
    assert!(log.create_topic("u", &topic_spec()).is_err());
    log.close().expect("closing twice is fine");
}

fn topic_spec() -> TopicSpec {
    TopicSpec {
        partitions: 1,
        retention: None,
        retention_bytes: None,
    }
}
