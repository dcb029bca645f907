//! One bucket's sled folder: opened with guards, written run by run, read block by block.
//!
//! Nothing else in the store touches sled. sled may panic on damage; every call that can is caught and told as
//! damage. A folder stays open when its bucket is over, until that is sealed; where sealing lags behind, at most so
//! many old ones are open at once, and a closed one is opened again on a hit.

use super::block::{Block, Damage};
use super::filter::{self, Filter, Probe, Span};
use super::manifest::{RunMeta, sync_dir};
use super::{DedupError, DedupOptions};
use crate::core::types::{Offset, Time};
use parking_lot::{Mutex, RwLock, RwLockWriteGuard};
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Blocks of one sled batch: more make its log buffers larger, fewer cost more reservations.
const BATCH: usize = 64;

/// What all buckets of a store share.
pub(super) struct Env {
    pub options: DedupOptions,
    /// Number of the bucket that takes new records.
    pub present: AtomicU32,
    /// Counts openings: the clock of "least recently used".
    tick: AtomicU64,
    opened: Mutex<Vec<Arc<Bucket>>>,
    /// What was put right.
    pub repaired: Mutex<Vec<String>>,
}

impl Env {
    pub(super) fn new(options: DedupOptions) -> Self {
        Self {
            options,
            present: AtomicU32::new(u32::MAX),
            tick: AtomicU64::new(0),
            opened: Mutex::new(Vec::new()),
            repaired: Mutex::new(Vec::new()),
        }
    }

    fn is_present(&self, bucket: &Bucket) -> bool {
        self.present.load(Ordering::Relaxed) == bucket.id
    }

    /// Takes note of a folder just opened, and closes what is too much.
    fn note_opened(&self, bucket: &Arc<Bucket>) {
        self.tick.fetch_add(1, Ordering::Relaxed);
        let mut close = Vec::new();
        {
            let mut opened = self.opened.lock();
            opened.retain(|b| b.is_open() && !Arc::ptr_eq(b, bucket));
            let old = |b: &Arc<Bucket>| !self.is_present(b);
            let room = self.options.open_old.max(1) - usize::from(old(bucket));
            while opened.iter().filter(|b| old(b)).count() > room {
                let oldest = opened.iter().enumerate().filter(|(_, b)| old(b));
                let Some((at, _)) = oldest.min_by_key(|(_, b)| b.used.load(Ordering::Relaxed)) else {
                    break;
                };
                close.push(opened.swap_remove(at));
            }
            opened.push(bucket.clone());
        }
        close.iter().for_each(|b| b.close());
    }
}

enum Slot {
    Closed,
    Open(Opened),
    /// Its bucket has expired.
    Gone,
}

/// An open sled folder.
pub(super) struct Opened {
    db: sled::Db,
    /// A handle of our own on sled's file: sled's flush is no fsync.
    file: File,
    filters: HashMap<u32, Arc<Filter>>,
    /// Blob files already synced; none before the first run was.
    synced: Mutex<Option<HashSet<OsString>>>,
}

/// A span of ledger time and its folder.
pub(super) struct Bucket {
    pub id: u32,
    pub from: Time,
    pub to: Time,
    pub dir: PathBuf,
    slot: RwLock<Slot>,
    /// Runs that count, in order.
    runs: Mutex<Vec<RunMeta>>,
    used: AtomicU64,
    /// The ledger offset at which it closed; 0 while it takes records.
    closed: AtomicU64,
    /// It was open before in this life: what it holds beyond its runs is a spill under way, not the remains of one.
    cleared: AtomicBool,
}

fn key(run: u32, prefix: u16) -> [u8; 6] {
    let mut key = [0; 6];
    key[..4].copy_from_slice(&run.to_be_bytes());
    key[4..].copy_from_slice(&prefix.to_be_bytes());
    key
}

/// The block in which an ID with these first eight bytes stands, if blocks are numbered by so many bits.
#[inline]
pub(super) fn prefix(head: u64, bits: u8) -> u16 {
    ((head >> 48) >> (16 - u32::from(bits.min(16)))) as u16
}

/// The number of the last block.
pub(super) fn last_block(bits: u8) -> u16 {
    prefix(u64::MAX, bits)
}

impl Bucket {
    pub(super) fn new(dir: &Path, id: u32, from: Time, to: Time, runs: Vec<RunMeta>) -> Arc<Self> {
        Arc::new(Self {
            id,
            from,
            to,
            dir: dir.join(format!("bucket-{id}")),
            slot: RwLock::new(Slot::Closed),
            runs: Mutex::new(runs),
            used: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            cleared: AtomicBool::new(false),
        })
    }

    /// It takes no more: everything in it is said by ledger entries before this offset.
    pub(super) fn note_closed(&self, at: Offset) {
        self.closed.store(at, Ordering::Release);
    }

    /// Where it closed, if it has.
    pub(super) fn closed(&self) -> Option<Offset> {
        Some(self.closed.load(Ordering::Acquire)).filter(|at| *at > 0)
    }

    /// Where its filters are kept.
    pub(super) fn filters(&self) -> PathBuf {
        self.dir.join("filters")
    }

    /// Where the filter of a group that is not full yet is kept at a close.
    pub(super) fn part(&self) -> PathBuf {
        self.dir.join("filters.part")
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(*self.slot.read(), Slot::Open(_))
    }

    /// Closes its folder; it is opened again when asked for.
    pub(super) fn close(&self) {
        let mut slot = self.slot.write();
        if matches!(*slot, Slot::Open(_)) {
            close(std::mem::replace(&mut *slot, Slot::Closed));
        }
    }

    /// Closes and removes its folder for good. Look-ups under way find nothing in it any more.
    pub(super) fn remove(&self) -> io::Result<()> {
        let mut slot = self.slot.write();
        close(std::mem::replace(&mut *slot, Slot::Gone));
        match fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Works with the open folder; opens it first where it is closed. None: the bucket is gone.
    pub(super) fn with<R>(
        self: &Arc<Self>,
        env: &Env,
        work: impl FnOnce(&Opened) -> Result<R, DedupError>,
    ) -> Result<Option<R>, DedupError> {
        {
            let slot = self.slot.read();
            match &*slot {
                Slot::Open(opened) => {
                    let tick = env.tick.load(Ordering::Relaxed);
                    if self.used.load(Ordering::Relaxed) != tick {
                        self.used.store(tick, Ordering::Relaxed);
                    }
                    return work(opened).map(Some);
                }
                Slot::Gone => return Ok(None),
                Slot::Closed => {}
            }
        }
        let mut slot = self.slot.write();
        let mut newly = false;
        if matches!(*slot, Slot::Closed) {
            *slot = Slot::Open(self.open(env)?);
            newly = true;
        }
        let slot = RwLockWriteGuard::downgrade(slot);
        let done = match &*slot {
            Slot::Open(opened) => work(opened).map(Some),
            _ => Ok(None),
        };
        drop(slot);
        if newly {
            env.note_opened(self);
        }
        done
    }

    /// Its runs that count, in order.
    pub(super) fn runs(&self) -> Vec<RunMeta> {
        self.runs.lock().clone()
    }

    /// Damage of this bucket, as the store's error.
    pub(super) fn damaged(&self, why: impl Into<String>) -> DedupError {
        DedupError::Damaged {
            path: self.dir.clone(),
            why: why.into(),
        }
    }

    fn io(&self, doing: &'static str) -> impl FnOnce(io::Error) -> DedupError {
        let path = self.dir.clone();
        move |source| DedupError::Io { doing, path, source }
    }

    fn sled(&self, error: sled::Error) -> DedupError {
        match error {
            sled::Error::Io(source) => self.io("read or write the database in")(source),
            other => self.damaged(other.to_string()),
        }
    }

    /// Calls into sled. It panics on some kinds of damage.
    fn guarded<R>(&self, call: impl FnOnce() -> sled::Result<R>) -> Result<R, DedupError> {
        match catch_unwind(AssertUnwindSafe(call)) {
            Ok(done) => done.map_err(|e| self.sled(e)),
            Err(_) => Err(self.damaged("the database panicked")),
        }
    }

    /// Checks that the folder of a bucket with runs is there at all.
    pub(super) fn check_there(&self) -> Result<(), DedupError> {
        if self.runs.lock().is_empty() || self.dir.join("db").is_file() {
            return Ok(());
        }
        Err(self.damaged("its database file is missing"))
    }

    fn open(&self, env: &Env) -> Result<Opened, DedupError> {
        let runs = self.runs.lock().clone();
        self.check_there()?;
        let first = !self.cleared.load(Ordering::Acquire);
        if runs.is_empty() && first {
            // Whatever a spill that was cut off left here does not count.
            if let Err(e) = fs::remove_dir_all(&self.dir)
                && e.kind() != io::ErrorKind::NotFound
            {
                return Err(self.io("clear")(e));
            }
            crate::files::folder(&self.dir).map_err(self.io("create"))?;
        }
        self.remove_half_snapshots(env).map_err(self.io("clear"))?;
        self.wait_for_lock(env.options.open_limit)?;
        let cache = if env.is_present(self) {
            env.options.cache
        } else {
            env.options.old_cache
        };
        let db = self.open_within(cache, env.options.open_limit)?;
        let file = File::open(self.dir.join("db")).map_err(self.io("open"))?;
        let synced = Mutex::new((!runs.is_empty()).then(HashSet::new));
        let mut opened = Opened {
            db,
            file,
            filters: HashMap::new(),
            synced,
        };
        self.check_runs(&opened, &runs)?;
        if first {
            self.remove_half_runs(&opened, &runs)?;
        }
        let wanted =
            |s: Span| s.first == s.last && runs.iter().any(|r| r.seq == s.first && u64::from(r.ids) == s.ids);
        opened.filters = filter::load(&self.filters(), wanted)
            .into_iter()
            .map(|(s, f)| (s.first, Arc::new(f)))
            .collect();
        for run in &runs {
            if !opened.filters.contains_key(&run.seq) {
                let filter = self.filter_of(&opened, run)?;
                opened.filters.insert(run.seq, Arc::new(filter));
                env.repaired
                    .lock()
                    .push(format!("built the filter of run {} again", run.seq));
            }
        }
        self.cleared.store(true, Ordering::Release);
        Ok(opened)
    }

    /// A kill inside sled's own open leaves these, and it would later take one for the newest snapshot.
    fn remove_half_snapshots(&self, env: &Env) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("snap.") && name.ends_with(".generating") {
                fs::remove_file(entry.path())?;
                env.repaired
                    .lock()
                    .push(format!("removed the half-written {name} of bucket {}", self.id));
            }
        }
        Ok(())
    }

    /// Waits until nobody holds sled's lock: a folder closed a moment ago may still be held by a thread of sled.
    fn wait_for_lock(&self, limit: Duration) -> Result<(), DedupError> {
        use rustix::fs::{FlockOperation, flock};
        let file = match File::open(self.dir.join("db")) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(self.io("open")(e)),
        };
        let began = Instant::now();
        while let Err(e) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if e != rustix::io::Errno::WOULDBLOCK {
                return Err(self.io("lock")(e.into()));
            }
            if began.elapsed() > limit.min(Duration::from_secs(10)) {
                return Err(DedupError::InUse {
                    path: self.dir.clone(),
                });
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Opens sled on a thread of its own, so that neither a panic nor a hang of its recovery is ours.
    fn open_within(&self, cache: u64, limit: Duration) -> Result<sled::Db, DedupError> {
        let config = sled::Config::new().path(&self.dir).cache_capacity(cache);
        let (send, receive) = std::sync::mpsc::sync_channel(1);
        std::thread::Builder::new()
            .name("dedup-open".into())
            .spawn(move || {
                // Nobody receives once the time limit is over; then the database is closed here.
                let _ = send.send(catch_unwind(AssertUnwindSafe(|| config.open())));
            })
            .map_err(self.io("start a thread to open"))?;
        match receive.recv_timeout(limit) {
            Ok(Ok(opened)) => opened.map_err(|e| self.sled(e)),
            Ok(Err(_)) => Err(self.damaged("the database panicked while it was opened")),
            Err(_) => Err(self.damaged(format!("the database did not open within {} s", limit.as_secs()))),
        }
    }

    /// Every run that counts must be there: its head entry was written last.
    fn check_runs(&self, opened: &Opened, runs: &[RunMeta]) -> Result<(), DedupError> {
        for run in runs {
            let head = self.guarded(|| opened.db.get(run.seq.to_be_bytes()))?;
            let expected = run_head(run);
            if head.as_deref() != Some(&expected[..]) {
                return Err(self.damaged(format!("run {} is not in its database", run.seq)));
            }
        }
        Ok(())
    }

    /// What lies behind the runs that count is left of a spill that was cut off. Its run number is given again, and
    /// its blocks must not stand between those of the next one.
    fn remove_half_runs(&self, opened: &Opened, runs: &[RunMeta]) -> Result<(), DedupError> {
        let next = runs.last().map_or(0, |r| r.seq + 1);
        self.guarded(|| {
            let rest: Vec<_> = opened
                .db
                .range(next.to_be_bytes()..)
                .keys()
                .collect::<sled::Result<_>>()?;
            rest.into_iter()
                .try_for_each(|key| opened.db.remove(key).map(|_| ()))
        })
    }

    /// Writes a run of so many records and makes it durable; it counts once the manifest names it. The blocks'
    /// number is known when the last one is written.
    pub(super) fn write_run(
        &self,
        opened: &Opened,
        mut run: RunMeta,
        blocks: impl Iterator<Item = (u16, Vec<u8>)>,
    ) -> Result<RunMeta, DedupError> {
        let mut batch = sled::Batch::default();
        let mut in_batch = 0;
        for (prefix, bytes) in blocks {
            batch.insert(&key(run.seq, prefix), bytes);
            in_batch += 1;
            run.blocks += 1;
            if in_batch == BATCH {
                let full = std::mem::take(&mut batch);
                self.guarded(|| opened.db.apply_batch(full))?;
                in_batch = 0;
            }
        }
        self.guarded(|| {
            opened.db.apply_batch(batch)?;
            opened.db.insert(run.seq.to_be_bytes(), &run_head(&run)[..])?;
            opened.db.flush()
        })?;
        self.sync(opened).map_err(self.io("sync"))?;
        Ok(run)
    }

    fn sync(&self, opened: &Opened) -> io::Result<()> {
        opened.file.sync_data()?;
        let mut synced = opened.synced.lock();
        let first = synced.is_none();
        let synced = synced.get_or_insert_default();
        if first {
            // `conf` decides whether sled opens at all, and sled does not sync it.
            for entry in fs::read_dir(&self.dir)? {
                let path = entry?.path();
                if path.is_file() {
                    File::open(path)?.sync_all()?;
                }
            }
        }
        let blobs = self.dir.join("blobs");
        if blobs.is_dir() {
            let mut newer = false;
            for entry in fs::read_dir(&blobs)? {
                let entry = entry?;
                if synced.insert(entry.file_name()) {
                    match File::open(entry.path()) {
                        Ok(file) => file.sync_all()?,
                        // sled removes blobs that it has replaced.
                        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                        Err(e) => return Err(e),
                    }
                    newer = true;
                }
            }
            if newer || first {
                sync_dir(&blobs)?;
            }
        }
        if first {
            sync_dir(&self.dir)?;
            if let Some(parent) = self.dir.parent() {
                sync_dir(parent)?;
            }
        }
        Ok(())
    }

    /// Takes up a run that the manifest names, with its filter.
    pub(super) fn add_run(&self, run: RunMeta, filter: Arc<Filter>) {
        if let Slot::Open(opened) = &mut *self.slot.write() {
            opened.filters.insert(run.seq, filter);
        }
        self.runs.lock().push(run);
    }

    /// So many blocks of a run at most, with their numbers, from number `from` on. Read together: they are
    /// neighbours in sled, and it need not find their leaf for each.
    pub(super) fn blocks_from(
        &self,
        opened: &Opened,
        run: u32,
        from: u16,
        most: usize,
    ) -> Result<Vec<(u16, sled::IVec)>, DedupError> {
        self.guarded(|| {
            let range = opened.db.range(key(run, from)..=key(run, u16::MAX));
            let number = |key: &[u8]| key.last_chunk().map_or(0, |b| u16::from_be_bytes(*b));
            range
                .take(most)
                .map(|entry| entry.map(|(key, block)| (number(&key), block)))
                .collect()
        })
    }

    /// One block, if the run has it.
    pub(super) fn block(
        &self,
        opened: &Opened,
        run: u32,
        prefix: u16,
    ) -> Result<Option<sled::IVec>, DedupError> {
        self.guarded(|| opened.db.get(key(run, prefix)))
    }

    /// Whether the run's own filter lets this ID through.
    pub(super) fn may_hold(&self, opened: &Opened, run: u32, probe: &Probe) -> bool {
        opened.filters.get(&run).is_none_or(|f| f.may_hold(probe))
    }

    /// Gives every block of a run to `visit`, in order of IDs.
    pub(super) fn each_block(
        &self,
        opened: &Opened,
        run: &RunMeta,
        mut visit: impl FnMut(&Block<'_>) -> Result<(), DedupError>,
    ) -> Result<(), DedupError> {
        for prefix in 0..=last_block(run.bits) {
            if let Some(bytes) = self.block(opened, run.seq, prefix)? {
                visit(&self.parse(&bytes)?)?;
            }
        }
        Ok(())
    }

    /// Checks a block read.
    pub(super) fn parse<'a>(&self, bytes: &'a [u8]) -> Result<Block<'a>, DedupError> {
        Block::parse(bytes).map_err(|e| self.block_damage(e))
    }

    /// Damage inside a block, as the store's error.
    pub(super) fn block_damage(&self, damage: Damage) -> DedupError {
        self.damaged(format!("a block is {}", damage.0))
    }

    /// Builds a run's filter from its blocks.
    pub(super) fn filter_of(&self, opened: &Opened, run: &RunMeta) -> Result<Filter, DedupError> {
        let filter = Filter::for_ids(u64::from(run.ids));
        self.add_to_filter(opened, run, &filter)?;
        Ok(filter)
    }

    /// Adds a run's IDs to a filter; all of them must be there.
    pub(super) fn add_to_filter(
        &self,
        opened: &Opened,
        run: &RunMeta,
        filter: &Filter,
    ) -> Result<(), DedupError> {
        let mut ids = 0u64;
        self.each_block(opened, run, |block| {
            (0..block.len()).for_each(|i| filter.add(&Probe::of(&block.id(i))));
            ids += block.len() as u64;
            Ok(())
        })?;
        if ids != u64::from(run.ids) {
            return Err(self.damaged(format!("run {} has {ids} records, not {}", run.seq, run.ids)));
        }
        Ok(())
    }

    /// Bytes of its folder on disk.
    pub(super) fn disk_bytes(&self) -> u64 {
        folder_bytes(&self.dir)
    }

    /// Bytes of its runs' filters in memory.
    pub(super) fn run_filter_bytes(&self) -> u64 {
        match &*self.slot.read() {
            Slot::Open(opened) => opened.filters.values().map(|f| f.bytes()).sum(),
            _ => 0,
        }
    }
}

/// sled flushes when it is dropped, and may panic there after a failed write.
fn close(slot: Slot) {
    let _ = catch_unwind(AssertUnwindSafe(move || drop(slot)));
}

fn run_head(run: &RunMeta) -> [u8; 8] {
    let mut out = [0; 8];
    out[..4].copy_from_slice(&run.blocks.to_le_bytes());
    out[4..].copy_from_slice(&run.ids.to_le_bytes());
    out
}

/// Bytes that a folder takes on disk (allocated blocks, not lengths).
pub(super) fn folder_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => folder_bytes(&entry.path()),
        Ok(meta) => meta.blocks() * 512,
        Err(_) => 0,
    });
    sizes.sum()
}
