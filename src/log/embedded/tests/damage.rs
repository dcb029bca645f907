//! Torn tails are cut off, damage is told.

use super::*;
use proptest::prelude::*;

/// A log of one topic with records 0..n in one partition; its files before and after the last batch, which holds
/// three records in two partitions.
type Files = Vec<(PathBuf, Vec<u8>)>;

fn before_and_after(n: u64) -> (Files, Files) {
    let dir = folder();
    let log = open(dir.path(), &tiny()).expect("opens");
    let parts = log.create_topic("t", &spec(2)).expect("made").partitions;
    (0..n).for_each(|i| drop(append(&log, one(parts[0], i, 40)).expect("taken")));
    let before = moment(&log);
    let mut last = one(parts[0], n, 40);
    last.push(parts[1], Time(1), None, &value(1, 20), b"");
    last.push(parts[0], Time(1), None, &value(n + 1, 30), b"");
    append(&log, last).expect("taken");
    let after = moment(&log);
    (before, after)
}

/// Which file the last batch changed, and where. Spares may come up in between; they are no difference.
fn changed(before: &Files, after: &Files) -> (usize, std::ops::Range<usize>) {
    for (at, (name, new)) in after.iter().enumerate() {
        let Some((_, old)) = before.iter().find(|(n, _)| n == name) else {
            continue;
        };
        let Some(first) = (0..new.len()).find(|i| old.get(*i) != new.get(*i)) else {
            continue;
        };
        let last = (0..new.len())
            .rfind(|i| old.get(*i) != new.get(*i))
            .expect("one differs");
        return (at, first..last + 1);
    }
    panic!("the last batch changed nothing");
}

/// Opens these files: how many records are in each partition. Then the log must go on as if nothing had been.
fn records_after_opening(files: &Files) -> Result<(usize, usize), LogError> {
    let dir = put_back(files);
    let log = open(dir.path(), &tiny())?;
    let parts = log.topic("t").expect("there").partitions;
    let found = (
        read_all(&log, parts[0], 0).len(),
        read_all(&log, parts[1], 0).len(),
    );
    assert!(numbers(&log, parts[0], 0).into_iter().eq(0..found.0 as u64));
    append(&log, one(parts[0], found.0 as u64, 10)).expect("goes on");
    drop(log);
    let log = open(dir.path(), &tiny())?;
    assert!(numbers(&log, parts[0], 0).into_iter().eq(0..found.0 as u64 + 1));
    Ok(found)
}

#[test]
fn a_tail_torn_at_any_byte_is_cut_off() {
    let (before, after) = before_and_after(5);
    let (file, range) = changed(&before, &after);
    assert!(range.len() > 200, "{range:?}");
    for cut in range.clone() {
        let mut files = after.clone();
        let old = before
            .iter()
            .find(|(n, _)| *n == files[file].0)
            .expect("there")
            .1
            .clone();
        files[file].1[cut..].copy_from_slice(&old[cut..]);
        assert_eq!(
            records_after_opening(&files).expect("a torn tail is no damage"),
            (5, 0),
            "cut at {cut}"
        );
    }
    assert_eq!(records_after_opening(&after).expect("whole"), (7, 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Sectors of the last frame reach the disk in any order: it is there whole, or not at all.
    #[test]
    fn a_tail_torn_in_pieces_is_cut_off(kept in prop::collection::vec(any::<bool>(), 64)) {
        let (before, after) = before_and_after(5);
        let (file, range) = changed(&before, &after);
        let mut files = after.clone();
        let old = before.iter().find(|(n, _)| *n == files[file].0).expect("there").1.clone();
        for (piece, at) in range.clone().step_by(8).enumerate() {
            let to = (at + 8).min(range.end);
            if !kept[piece % kept.len()] {
                files[file].1[at..to].copy_from_slice(&old[at..to]);
            }
        }
        let whole = files[file].1 == after[file].1;
        let found = records_after_opening(&files).expect("a torn tail is no damage");
        prop_assert_eq!(found, if whole { (7, 1) } else { (5, 0) });
    }
}

#[test]
fn a_flipped_byte_before_the_last_frame_stops_the_opening() {
    let (before, after) = before_and_after(4);
    let (file, range) = changed(&before, &after);
    let mut stopped = 0;
    for at in 0..range.start {
        let mut files = after.clone();
        files[file].1[at] ^= 0x10;
        let dir = put_back(&files);
        match open(dir.path(), &tiny()) {
            Err(LogError::Corrupt { .. }) => stopped += 1,
            Err(other) => panic!("byte {at}: {other}"),
            // Padding between frames says nothing.
            Ok(log) => {
                let parts = log.topic("t").expect("there").partitions;
                assert!(numbers(&log, parts[0], 0).into_iter().eq(0..6), "byte {at}");
            }
        }
    }
    assert!(stopped * 10 > range.start * 9, "{stopped} of {}", range.start);
}

/// Older segments are not read at opening: there damage must show when it is read, and a damaged footer must do
/// no harm.
#[test]
fn no_flipped_byte_of_an_older_segment_is_delivered() {
    let dir = folder();
    let log = open(dir.path(), &tiny()).expect("opens");
    let p = log.create_topic("t", &spec(1)).expect("made").partitions[0];
    (0..30).for_each(|n| drop(append(&log, one(p, n, 1000)).expect("taken")));
    assert!(log.stats().segments >= 3);
    let files = moment(&log);
    drop(log);
    let (mut told, mut whole) = (0, 0);
    for at in (0..16 * 1024).step_by(37) {
        let mut files = files.clone();
        let oldest = files
            .iter_mut()
            .find(|(n, _)| n.ends_with("seg-000000.log"))
            .expect("there");
        oldest.1[at] ^= 1;
        let dir = put_back(&files);
        let log = match open(dir.path(), &tiny()) {
            Ok(log) => log,
            Err(LogError::Corrupt { .. }) => {
                told += 1;
                continue;
            }
            Err(other) => panic!("byte {at}: {other}"),
        };
        let (mut got, mut next) = (Vec::new(), 0);
        let error = loop {
            match log.read(p, next, 100, &mut got) {
                Ok(after) if after == next => break None,
                Ok(after) => next = after,
                Err(error) => break Some(error),
            }
        };
        assert!(got.iter().map(number).eq(0..got.len() as u64), "byte {at}");
        match error {
            Some(LogError::Corrupt { .. }) => told += 1,
            Some(other) => panic!("byte {at}: {other}"),
            None => {
                assert_eq!(got.len(), 30);
                whole += 1;
            }
        }
    }
    assert!(told > 300, "{told} told, {whole} did no harm");
}

#[test]
fn a_missing_file_stops_the_opening() {
    let dir = folder();
    let log = open(dir.path(), &tiny()).expect("opens");
    let p = log.create_topic("t", &spec(1)).expect("made").partitions[0];
    (0..60).for_each(|n| drop(append(&log, one(p, n, 1000)).expect("taken")));
    let live: Vec<PathBuf> = (log.shared.segments.read().values())
        .map(|s| s.path.file_name().expect("a file").into())
        .collect();
    drop(log);
    let files = snapshot(dir.path());
    assert!(live.len() > 3);
    for name in live.iter().chain([&PathBuf::from("journal")]) {
        let rest: Files = files.iter().filter(|(n, _)| n != name).cloned().collect();
        let dir = put_back(&rest);
        let opened = open(dir.path(), &tiny());
        assert!(
            matches!(opened, Err(LogError::Corrupt { .. })),
            "without {}",
            name.display()
        );
    }
}

#[test]
fn a_file_of_another_journal_is_refused() {
    let (mut files, _) = before_and_after(1);
    let (other, _) = before_and_after(1);
    let from = other
        .iter()
        .find(|(n, _)| n.ends_with("seg-000000.log"))
        .expect("there");
    files.push(("seg-000099.log".into(), from.1.clone()));
    let dir = put_back(&files);
    assert!(matches!(open(dir.path(), &tiny()), Err(LogError::Corrupt { .. })));
}
