//! Tests of the log as a whole: the conformance suite, a model, damage, faults, full disks, retention.

mod care;
mod damage;
mod faults;
mod model;

use super::*;
use crate::log::conformance::{self, Subject, append, read_all};
use crate::log::{Appended, TopicSpec};
use crate::patience;
use std::path::PathBuf;

/// A folder in memory where there is one: these tests sync thousands of times, and what they test is not the disk.
pub(super) fn folder() -> tempfile::TempDir {
    patience::watch();
    let memory = Path::new("/dev/shm");
    let made = match memory.is_dir() {
        true => tempfile::tempdir_in(memory),
        false => tempfile::tempdir(),
    };
    made.expect("a folder")
}

/// Segments of 16 KiB, batches up to 4 KiB, no gap, retention only when asked for.
pub(super) fn tiny() -> EmbeddedOptions {
    EmbeddedOptions {
        segment_bytes: 16 * 1024,
        commit_gap: Duration::ZERO,
        zero_rate: 0,
        care_every: Duration::from_secs(3600),
        fault: Some(Arc::new(|step, _| unsynced(step))),
        ..EmbeddedOptions::default()
    }
}

/// Of a log whose disk these tests read through the page cache.
pub(super) fn unsynced(step: Step) -> Option<Fault> {
    (step == Step::Sync).then_some(Fault::Unsynced)
}

pub(super) fn open(dir: &Path, options: &EmbeddedOptions) -> Result<EmbeddedLog, LogError> {
    EmbeddedLog::open(dir, options.clone())
}

pub(super) fn spec(partitions: u32) -> TopicSpec {
    TopicSpec {
        partitions,
        retention: None,
        retention_bytes: None,
    }
}

/// A batch of one record whose value says which it is, padded to a size.
pub(super) fn one(partition: PartitionId, n: u64, size: usize) -> Batch {
    let mut batch = Batch::new();
    batch.push(partition, Time(n), Some(b"key"), &value(n, size), b"");
    batch
}

pub(super) fn value(n: u64, size: usize) -> Vec<u8> {
    let mut value = n.to_le_bytes().to_vec();
    value.resize(size.max(8), n as u8);
    value
}

pub(super) fn number(record: &Record) -> u64 {
    let (head, rest) = record.value.split_first_chunk().expect("eight bytes");
    let n = u64::from_le_bytes(*head);
    assert!(
        rest.iter().all(|b| *b == n as u8),
        "record {n} is not as it was written"
    );
    n
}

pub(super) fn numbers(log: &dyn Log, partition: PartitionId, from: Offset) -> Vec<u64> {
    read_all(log, partition, from).iter().map(number).collect()
}

/// What a kill at this moment leaves of an open log: all files as they are at one and the same time. Taken on the
/// writer's own thread while nobody does the log's care, else the files would be read one after the other while they
/// change, which no kill does.
pub(super) fn killed(log: &EmbeddedLog) -> tempfile::TempDir {
    put_back(&moment(log))
}

/// The files of an open log at one moment; see [`killed`].
pub(super) fn moment(log: &EmbeddedLog) -> Vec<(PathBuf, Vec<u8>)> {
    let _no_care = log.shared.caring.lock();
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    let dir = log.shared.dir.clone();
    let look = move |_: Result<Appended, LogError>| drop(tell.send(snapshot(&dir)));
    log.shared.enqueue(Job::Control(Vec::new(), Box::new(look)));
    patience::hear(&told).expect("the writer answers")
}

/// The files of a log that nobody writes to.
pub(super) fn snapshot(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut out: Vec<_> = std::fs::read_dir(dir)
        .expect("readable")
        .map(|e| e.expect("readable").path())
        .map(|p| {
            (
                p.file_name().expect("a file").into(),
                std::fs::read(&p).expect("readable"),
            )
        })
        .collect();
    out.sort();
    out
}

pub(super) fn put_back(files: &[(PathBuf, Vec<u8>)]) -> tempfile::TempDir {
    let dir = folder();
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes).expect("written");
    }
    dir
}

struct Folder {
    dir: tempfile::TempDir,
    options: EmbeddedOptions,
}

impl Subject for Folder {
    fn open(&self) -> Arc<dyn Log> {
        Arc::new(open(self.dir.path(), &self.options).expect("opens"))
    }
}

#[test]
fn conforms() {
    for (name, case) in conformance::ALL {
        eprintln!("{name}");
        case(&Folder {
            dir: folder(),
            options: EmbeddedOptions::small(),
        });
    }
}

/// The same with segments that are full after a few batches.
#[test]
fn conforms_across_many_segments() {
    for (name, case) in conformance::ALL {
        eprintln!("{name}");
        case(&Folder {
            dir: folder(),
            options: EmbeddedOptions {
                segment_bytes: 512 * 1024,
                ..tiny()
            },
        });
    }
}

#[test]
fn a_second_opening_is_refused_while_the_first_lasts() {
    let dir = folder();
    let log = open(dir.path(), &tiny()).expect("opens");
    assert!(matches!(open(dir.path(), &tiny()), Err(LogError::Locked { .. })));
    log.close().expect("closed");
    open(dir.path(), &tiny()).expect("opens once the first is closed");
}

/// A folder on read-only media, or of another user: the error says why looking at it writes, and what to do.
#[test]
fn a_folder_that_cannot_be_written_to_is_told_with_a_way_out() {
    use std::io::ErrorKind::{ReadOnlyFilesystem, StorageFull};
    use std::os::unix::fs::PermissionsExt;
    let dir = folder();
    let lock = dir.path().join("lock");
    let told = super::recovery::cannot_write(dir.path(), &lock, &ReadOnlyFilesystem.into());
    assert!(matches!(told, LogError::ReadOnly { .. }) && told.to_string().contains("cp -a"));
    let full = super::recovery::cannot_write(dir.path(), &lock, &StorageFull.into());
    assert!(matches!(full, LogError::Open { .. }), "{full}");
    let log = open(dir.path(), &tiny()).expect("opens");
    log.close().expect("closed");
    let of_others = std::fs::Permissions::from_mode(0o400);
    std::fs::set_permissions(&lock, of_others).expect("the owner may");
    // No right binds root.
    if std::fs::File::options().write(true).open(&lock).is_err() {
        assert!(matches!(
            open(dir.path(), &tiny()),
            Err(LogError::ReadOnly { .. })
        ));
    }
}

/// What the log knows of its records in memory grows with them, is told, and goes with them.
#[test]
fn the_index_in_memory_is_told() {
    let dir = folder();
    let log = open(dir.path(), &tiny()).expect("opens");
    let p = log.create_topic("t", &spec(1)).expect("made").partitions[0];
    let empty = log.stats().index_bytes;
    for n in 0..200 {
        append(&log, one(p, n, 3_000)).expect("appended");
    }
    let full = log.stats().index_bytes;
    assert!(
        full > empty + 30 * 72 && full < empty + 1_000 * 72,
        "{empty}, then {full}"
    );
}

#[test]
fn too_large_and_too_many_is_refused() {
    let dir = folder();
    let options = EmbeddedOptions {
        queue_bytes: 3000,
        ..tiny()
    };
    let log = open(dir.path(), &options).expect("opens");
    let p = log.create_topic("t", &spec(1)).expect("made").partitions[0];
    let big = append(&log, one(p, 1, 5000));
    assert!(matches!(big, Err(LogError::TooLarge { limit: 4096, .. })));
    // The writer is kept busy by a callback that waits, so that what follows piles up.
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (began, begun) = std::sync::mpsc::channel();
    log.append(
        one(p, 2, 10),
        Box::new(move |_| {
            began.send(()).expect("waited for");
            patience::hear(&wait).expect("told to go on");
        }),
    );
    // It has taken the first one alone, and takes nothing more before it is told to.
    patience::hear(&begun).expect("the writer calls back");
    let waiting: Vec<_> = (3..8).map(|n| conformance::send(&log, one(p, n, 1000))).collect();
    go.send(()).expect("the callback waits");
    let answers: Vec<_> = waiting
        .iter()
        .map(|w| patience::hear(w).expect("answered"))
        .collect();
    let busy = answers
        .iter()
        .filter(|a| matches!(a, Err(LogError::Busy { limit: 3000, .. })));
    assert_eq!(busy.count(), 3, "{answers:?}");
    let taken = answers.iter().filter(|a| a.is_ok()).count();
    assert_eq!(numbers(&log, p, 0).len(), taken + 1);
}

#[test]
fn files_of_another_size_are_used_up() {
    let dir = folder();
    let log = open(dir.path(), &tiny()).expect("opens");
    let p = log.create_topic("t", &spec(1)).expect("made").partitions[0];
    (0..60).for_each(|n| drop(append(&log, one(p, n, 1000)).expect("taken")));
    drop(log);
    let larger = EmbeddedOptions {
        segment_bytes: 32 * 1024,
        ..tiny()
    };
    let log = open(dir.path(), &larger).expect("opens");
    (60..120).for_each(|n| drop(append(&log, one(p, n, 1000)).expect("taken")));
    assert!(numbers(&log, p, 0).into_iter().eq(0..120));
    drop(log);
    let log = open(dir.path(), &tiny()).expect("opens");
    assert!(numbers(&log, p, 0).into_iter().eq(0..120));
}

/// Segments are made smaller than what the log has taken: an outcome that keeps a large record is written all the same,
/// copied forward, and read after every opening; new records as large are refused.
#[test]
fn what_was_taken_with_larger_segments_can_be_kept_with_smaller_ones() {
    let dir = folder();
    let larger = EmbeddedOptions {
        segment_bytes: 1024 * 1024,
        ..tiny()
    };
    let log = open(dir.path(), &larger).expect("opens");
    let p = log.create_topic("t", &spec(1)).expect("made").partitions[0];
    let lane = log.create_topic("lane", &spec(1)).expect("made").partitions[0];
    append(&log, one(p, 0, 200_000)).expect("taken");
    drop(log);
    let kept = |n: u64| {
        let mut batch = one(lane, n, 220_000);
        batch.reserve = true;
        batch
    };
    let log = open(dir.path(), &tiny()).expect("opens");
    assert!(matches!(
        append(&log, one(p, 1, 200_000)),
        Err(LogError::TooLarge { .. })
    ));
    for n in 0..3 {
        append(&log, kept(n)).expect("kept");
        append(&log, one(p, n + 1, 100)).expect("taken");
    }
    drop(log);
    for _ in 0..2 {
        let log = open(dir.path(), &tiny()).expect("opens");
        let first = log.bounds(lane).expect("there").first;
        assert!(numbers(&log, lane, first).into_iter().eq(0..3));
        // The large record of the input is still alive when its segment is given up.
        for n in 0..60 {
            append(&log, one(lane, 100 + n, 1_000)).expect("taken");
        }
        log.trim(lane, log.bounds(lane).expect("there").next - 1)
            .expect("trimmed");
        (0..10).for_each(|_| log.run_retention().expect("done"));
        append(&log, kept(3)).expect("kept");
        log.trim(lane, log.bounds(lane).expect("there").next - 1)
            .expect("trimmed");
        (0..10).for_each(|_| log.run_retention().expect("done"));
        let mut records = Vec::new();
        log.read(p, 0, 1, &mut records).expect("readable");
        assert!(records[0].value.len() >= 200_000);
        let last = log.bounds(lane).expect("there").next - 1;
        log.read(lane, last, 1, &mut records).expect("readable");
        assert!(records.last().is_some_and(|r| r.value.len() >= 220_000));
        append(&log, kept(0)).expect("kept");
        log.trim(lane, last + 1).expect("trimmed");
        drop(log);
        let log = open(dir.path(), &tiny()).expect("opens");
        append(&log, kept(1)).expect("kept");
        append(&log, kept(2)).expect("kept");
        log.trim(lane, log.bounds(lane).expect("there").next - 3)
            .expect("trimmed");
    }
}

/// Appends one after the other; what was acknowledged, with its place.
pub(super) fn acknowledged(log: &EmbeddedLog, batch: Batch) -> Option<Appended> {
    append(log, batch).ok()
}
