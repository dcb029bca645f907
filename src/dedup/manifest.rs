//! What the store is made of: one small file, replaced as a whole.
//!
//! A run counts once it stands here; blocks of a run that does not are remains of a spill that was cut off. The
//! file is one line and a JSON object, so that it can be read in an emergency:
//!
//! ```text
//! sluicegate-dedup <format> <crc32c of the rest, hex> <length of the rest>\n
//! { "ledger": …, "watermark": …, … }
//! ```
//!
//! It is written beside its place, synced, renamed, and the folder synced: after a crash there is the old one or
//! the new one. A new form of the store takes the next format number; an older store is then built again.

use super::Mark;
use crate::core::types::{Offset, Time};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Format of manifest, blocks, keys, tail and sealed files together. Format 1 had no sealed buckets, and is read.
pub const FORMAT: u32 = 2;
/// Name of the file.
pub(super) const NAME: &str = "MANIFEST";
const WORD: &str = "sluicegate-dedup";
/// States 0 (forgotten) to 6 (waiting), by their numbers.
pub(super) const STATES: usize = 7;

/// One sorted batch of records in a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RunMeta {
    /// Its number: newer runs have higher ones, over all buckets.
    pub seq: u32,
    /// A record stands in the block numbered by so many first bits of its ID.
    pub bits: u8,
    /// How many blocks it has.
    pub blocks: u32,
    /// How many records it has, forgotten ones included.
    pub ids: u32,
}

/// One bucket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct BucketMeta {
    /// Its number, rising.
    pub id: u32,
    /// Start of its span, microseconds.
    pub from: u64,
    /// End of its span, microseconds.
    pub to: u64,
    /// Runs in order.
    pub runs: Vec<RunMeta>,
    /// Records by state number.
    pub states: [u64; STATES],
    /// Records by route: (index in the dictionary, count).
    pub routes: Vec<(u32, u64)>,
    /// Its records stand in a plain file (`sealed`) as one run, not in sled.
    #[serde(default)]
    pub sealed: bool,
    /// The ledger offset at which it closed: everything in it is said by entries before that. None while it is open, and
    /// of a bucket that closed before 0.2.
    #[serde(default)]
    pub closed: Option<Offset>,
}

/// Counts records by state and by route.
#[derive(Default)]
pub(super) struct Tally {
    states: [u64; STATES],
    routes: BTreeMap<u32, u64>,
    /// The route at hand and its count: neighbours are mostly of the same.
    last: (u32, u64),
}

impl Tally {
    /// Counts one record.
    #[inline]
    pub(super) fn count(&mut self, state: u8, route: u32) {
        self.states[usize::from(state).min(STATES - 1)] += 1;
        if route != self.last.0 {
            *self.routes.entry(self.last.0).or_default() += self.last.1;
            self.last = (route, 0);
        }
        self.last.1 += 1;
    }

    /// Records by state, and by route.
    pub(super) fn end(mut self) -> ([u64; STATES], BTreeMap<u32, u64>) {
        *self.routes.entry(self.last.0).or_default() += self.last.1;
        self.routes.retain(|_, n| *n > 0);
        (self.states, self.routes)
    }
}

impl BucketMeta {
    /// Takes up a run with its records by state and by route.
    pub(super) fn add(&mut self, run: RunMeta, states: [u64; STATES], mut routes: BTreeMap<u32, u64>) {
        self.runs.push(run);
        self.states.iter_mut().zip(states).for_each(|(all, n)| *all += n);
        self.routes
            .iter()
            .for_each(|&(route, n)| *routes.entry(route).or_default() += n);
        self.routes = routes.into_iter().collect();
    }
    /// Records in all runs.
    pub(super) fn records(&self) -> u64 {
        self.runs.iter().map(|r| u64::from(r.ids)).sum()
    }
    /// Start of its span.
    pub(super) fn from(&self) -> Time {
        Time(self.from)
    }
    /// End of its span.
    pub(super) fn to(&self) -> Time {
        Time(self.to)
    }
}

/// The store as it stands on disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// Identity of the ledger, in hex.
    pub ledger: String,
    /// Next ledger offset: everything before it is in runs. How much further the tail file comes, that says itself:
    /// one that is cut, damaged or gone takes nothing away from this.
    pub watermark: Offset,
    /// Checksum of the ledger entry before the watermark; 0 if it is not known.
    #[serde(default)]
    pub entry: u32,
    /// The watermark speaks of runs alone. Before 0.2 it could also mean what stood in the tail file.
    #[serde(default)]
    pub of_runs: bool,
    /// Of the tail file of this run so many bytes hold what was carried out of a bucket that has gone: nothing feeds
    /// it again, and without it the store must be built again.
    #[serde(default)]
    pub carried: Option<(u32, u64)>,
    /// The ledger offset at which the newest bucket closed that has expired.
    #[serde(default)]
    pub gone: Offset,
    /// Number of the next run.
    pub next_run: u32,
    /// Number of the next bucket.
    pub next_bucket: u32,
    /// Route partitions (route as hex, partition) by their index in records. Only ever appended to.
    pub routes: Vec<(String, u32)>,
    /// Buckets, oldest first.
    pub buckets: Vec<BucketMeta>,
}

impl Manifest {
    /// Everything before it is in runs.
    pub(super) fn mark(&self) -> Mark {
        Mark {
            next: self.watermark,
            entry: self.entry,
        }
    }

    /// Where the present bucket begins, if that is none of those listed, or the last: where the one before it closed.
    pub(super) fn present_from(&self, present: u32) -> Offset {
        let before = self.buckets.iter().rev().filter(|b| b.id != present);
        before.filter_map(|b| b.closed).next().unwrap_or(self.gone)
    }

    /// Runs hold everything before this, too.
    pub(super) fn reach(&mut self, mark: Mark) {
        if mark.next >= self.watermark {
            (self.watermark, self.entry) = (mark.next, mark.entry);
        }
    }
}

/// Why a manifest cannot be used.
#[derive(Debug)]
pub(super) enum Unusable {
    /// There is none.
    Missing,
    /// Another format number.
    Format(u32),
    /// It is not what was written.
    Damaged(String),
}

/// Reads and checks the manifest of this folder.
pub(super) fn load(dir: &Path) -> Result<Manifest, Unusable> {
    let bytes = match fs::read(dir.join(NAME)) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(Unusable::Missing),
        Err(e) => return Err(Unusable::Damaged(format!("cannot read the manifest: {e}"))),
    };
    let damaged = |why: &str| Unusable::Damaged(format!("the manifest is damaged: {why}"));
    let line = bytes
        .iter()
        .position(|&b| b == b'\n')
        .ok_or_else(|| damaged("no first line"))?;
    let head = std::str::from_utf8(&bytes[..line]).map_err(|_| damaged("first line is not text"))?;
    let mut words = head.split(' ');
    if words.next() != Some(WORD) {
        return Err(damaged("first line is another file's"));
    }
    let format = words
        .next()
        .and_then(|w| w.parse().ok())
        .ok_or_else(|| damaged("no format"))?;
    if !(1..=FORMAT).contains(&format) {
        return Err(Unusable::Format(format));
    }
    let crc = words.next().and_then(|w| u32::from_str_radix(w, 16).ok());
    let len = words.next().and_then(|w| w.parse::<usize>().ok());
    let body = &bytes[line + 1..];
    if len != Some(body.len()) || crc != Some(crc32c::crc32c(body)) {
        return Err(damaged("length or checksum does not fit"));
    }
    serde_json::from_slice(body).map_err(|e| damaged(&e.to_string()))
}

/// Replaces the manifest of this folder, durably.
pub(super) fn store(dir: &Path, manifest: &Manifest) -> io::Result<()> {
    let body = serde_json::to_vec(manifest)?;
    let beside = dir.join("MANIFEST.new");
    let head = format!("{WORD} {FORMAT} {:08x} {}\n", crc32c::crc32c(&body), body.len());
    let written = (|| {
        let mut file = crate::files::create(&beside)?;
        file.write_all(head.as_bytes())?;
        file.write_all(&body)?;
        file.sync_all()?;
        fs::rename(&beside, dir.join(NAME))
    })();
    if written.is_err() {
        // On a full disk a half-written file takes room that others need; the error at hand is the one to tell.
        let _ = fs::remove_file(&beside);
    }
    written?;
    sync_dir(dir)
}

/// Makes the entries of a folder durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_and_every_changed_byte_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(load(dir.path()), Err(Unusable::Missing)));
        let run = RunMeta {
            seq: 3,
            bits: 10,
            blocks: 1024,
            ids: 77,
        };
        let bucket = BucketMeta {
            id: 1,
            from: 5,
            to: 9,
            runs: vec![run],
            states: [1; STATES],
            routes: vec![(0, 77)],
            sealed: true,
            closed: Some(11),
        };
        let manifest = Manifest {
            ledger: "ff".into(),
            watermark: 12,
            entry: 99,
            of_runs: true,
            carried: Some((4, 99)),
            gone: 7,
            next_run: 4,
            next_bucket: 2,
            routes: vec![("a".into(), 0)],
            buckets: vec![bucket],
        };
        store(dir.path(), &manifest).unwrap();
        assert_eq!(load(dir.path()).unwrap(), manifest);
        let good = fs::read(dir.path().join(NAME)).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(dir.path().join(NAME), &bad).unwrap();
            assert!(load(dir.path()).is_err(), "byte {at}");
        }
    }
}
