//! The store itself: feed, look-up, expiry. See the folder's header for words and files.
//!
//! Locks are taken in this order: feed, queue, manifest, view. A look-up takes none of them for longer than it
//! takes to copy a pointer, and reads memory tables under their own lock.

use super::block::{FORGOTTEN, OwnedRow, Row};
use super::bucket::{Env, folder_bytes};
use super::feed::{Feed, Queue};
use super::load::{self, Loaded, Refused, clear_unlisted, load, lock, move_aside};
use super::manifest::{self, Manifest, sync_dir};
use super::view::{BucketView, Live, Routes, View};
use super::{
    BucketInfo, DedupError, DedupOptions, DedupStats, Found, Mark, OpenReport, Rebuild, StoreOp, scan, seal,
    spill,
};
use crate::core::types::{MessageId, Offset, RoutePartition, Time};
use parking_lot::{Condvar, Mutex, RwLock};
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// What the store's handle and its spill thread share.
pub(super) struct Shared {
    pub dir: PathBuf,
    pub env: Env,
    pub routes: RwLock<Routes>,
    pub view: RwLock<Arc<View>>,
    pub feed: Mutex<Feed>,
    pub manifest: Mutex<Manifest>,
    pub queue: Mutex<Queue>,
    pub changed: Condvar,
    /// Held while IDs are carried out of a bucket, and while a sealed one takes the place of sled's: records of the
    /// one form must not be compared with those of the other. Taken before all other locks.
    pub forms: Mutex<()>,
    /// Sealed buckets' sled folders that views may still ask, oldest first.
    pub retired: Mutex<Vec<Live>>,
    /// Damage was told and written down.
    pub damage_told: AtomicBool,
    /// Everything before it is durable here.
    pub durable: AtomicU64,
    /// The same, with the entry before it. Taken after all other locks.
    pub durable_mark: Mutex<Mark>,
    /// Everything before it was fed.
    pub fed: AtomicU64,
    /// A test has a bucket's last table written before the next bucket begins.
    #[cfg(test)]
    pub roll_waits: AtomicBool,
    /// Held while the store is open; closing the file gives the lock back.
    _lock: File,
}

/// The dedup store. All methods may be called from any thread.
pub struct DedupStore {
    shared: Arc<Shared>,
    /// The threads that spill and seal.
    threads: Vec<std::thread::JoinHandle<()>>,
}

pub(super) fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DedupError {
    let path = path.to_path_buf();
    move |source| DedupError::Io { doing, path, source }
}

impl DedupStore {
    /// Opens the store in this folder, or makes it. What cannot be trusted is moved aside and reported: the store
    /// is then empty, and says so.
    ///
    /// # Errors
    /// [`DedupError::InUse`] if another process has it open; [`DedupError::Io`] if the folder cannot be used.
    pub fn open(dir: &Path, options: DedupOptions) -> Result<(DedupStore, OpenReport), DedupError> {
        let began = Instant::now();
        crate::files::folder(dir).map_err(io_error("create", dir))?;
        let lock = lock(dir)?;
        let env = Env::new(options);
        let (loaded, rebuild) = match load(dir, &env) {
            Ok(loaded) => (loaded, None),
            Err(Refused::Rebuild(why)) => (Loaded::default(), Some(why)),
            Err(Refused::Error(DedupError::Damaged { why, .. })) => {
                (Loaded::default(), Some(Rebuild::Damaged(why)))
            }
            Err(Refused::Error(other)) => return Err(other),
        };
        let mut moved_to = None;
        let mut manifest = loaded.manifest;
        if let Some(why) = &rebuild {
            env.present.store(u32::MAX, Ordering::Relaxed);
            if *why != Rebuild::Missing {
                moved_to = Some(move_aside(dir).map_err(io_error("move aside what is damaged in", dir))?);
            }
            manifest.ledger = format!("{:x}", env.options.ledger);
            manifest.of_runs = true;
            manifest::store(dir, &manifest).map_err(io_error("write the manifest in", dir))?;
        } else if loaded.stamped {
            // Where that cannot be written the next opening notes a later offset, and its buckets stay longer.
            let _ = manifest::store(dir, &manifest);
        }
        let repaired = std::mem::take(&mut *env.repaired.lock());
        let feed = Feed {
            active: loaded.active,
            tail: loaded.tail,
            next_run: loaded.next_run,
            next_bucket: loaded.next_bucket,
            began: loaded.began,
            last_route: None,
            fed: loaded.upto,
        };
        let shared = Arc::new(Shared {
            dir: dir.to_path_buf(),
            env,
            routes: RwLock::new(loaded.routes),
            view: RwLock::new(Arc::new(loaded.view)),
            feed: Mutex::new(feed),
            manifest: Mutex::new(manifest),
            queue: Mutex::new(Queue::default()),
            changed: Condvar::new(),
            forms: Mutex::default(),
            retired: Mutex::default(),
            damage_told: AtomicBool::new(false),
            durable: AtomicU64::new(loaded.upto.next),
            durable_mark: Mutex::new(loaded.upto),
            fed: AtomicU64::new(loaded.upto.next),
            #[cfg(test)]
            roll_waits: AtomicBool::new(false),
            _lock: lock,
        });
        let mut store = DedupStore {
            shared,
            threads: Vec::new(),
        };
        for start in [spill::start, seal::start] {
            let thread = start(store.shared.clone()).map_err(io_error("start a thread for", dir))?;
            store.threads.push(thread);
        }
        Ok((
            store,
            OpenReport {
                rebuild,
                moved_to,
                repaired,
                took: began.elapsed(),
            },
        ))
    }

    /// Takes what the ledger says up to `upto`, the next ledger offset; in ledger order. Operations that end at or
    /// before what was fed already are passed over. Waits while two full memory tables are being written.
    ///
    /// # Errors
    /// [`DedupError::Backlog`] if they cannot be written: try the same again later.
    pub fn record(&self, ops: &[StoreOp], upto: Offset) -> Result<(), DedupError> {
        self.take(ops, Mark { next: upto, entry: 0 })
    }

    /// As [`DedupStore::record`], and keeps the checksum of the entry before `upto` beside the watermark.
    ///
    /// # Errors
    /// As [`DedupStore::record`].
    pub fn take(&self, ops: &[StoreOp], upto: Mark) -> Result<(), DedupError> {
        let shared = &*self.shared;
        let mut feed = shared.feed.lock();
        if upto.next <= feed.fed.next {
            return Ok(());
        }
        let mut rest = ops;
        while !rest.is_empty() {
            let mem = shared.table_for(&mut feed, rest, upto.next)?;
            let Some(mem) = mem else { break };
            let taken = shared.put_all(&mut feed, &mem, rest);
            rest = &rest[taken..];
        }
        if let Some(active) = &feed.active {
            active.table.write().upto = upto;
        }
        feed.fed = upto;
        shared.fed.store(upto.next, Ordering::Release);
        Ok(())
    }

    /// The same as [`DedupStore::record`], under the name that restore uses.
    ///
    /// # Errors
    /// As [`DedupStore::record`].
    pub fn apply(&self, ops: &[StoreOp], upto: Offset) -> Result<(), DedupError> {
        self.record(ops, upto)
    }

    /// Next ledger offset: everything before it is durable here.
    pub fn watermark(&self) -> Offset {
        self.shared.durable.load(Ordering::Acquire)
    }

    /// [`DedupStore::watermark`] with the entry before it.
    pub fn mark(&self) -> Mark {
        *self.shared.durable_mark.lock()
    }

    /// Makes everything fed so far durable.
    ///
    /// # Errors
    /// [`DedupError::Backlog`] if full tables cannot be written, [`DedupError::Io`] if the tail cannot.
    pub fn sync(&self) -> Result<(), DedupError> {
        let mut feed = self.shared.feed.lock();
        self.shared.sync(&mut feed)
    }

    /// Tells the ledger's time: a bucket that is over closes even if nothing is recorded any more.
    ///
    /// # Errors
    /// As [`DedupStore::record`].
    pub fn advance(&self, now: Time) -> Result<(), DedupError> {
        let mut feed = self.shared.feed.lock();
        if feed.active.as_ref().is_some_and(|mem| now >= mem.bucket.to) {
            let at = feed.fed.next;
            self.shared.roll(&mut feed, now, at)?;
        }
        Ok(())
    }

    /// Ends the present bucket whatever its span says, and begins the one of this time.
    ///
    /// # Errors
    /// As [`DedupStore::record`].
    pub fn close_present(&self, now: Time) -> Result<(), DedupError> {
        let mut feed = self.shared.feed.lock();
        let at = feed.fed.next;
        self.shared.roll(&mut feed, now, at)
    }

    /// The ledger offset at which the bucket began that takes new records, if there is one.
    pub fn present_from(&self) -> Option<Offset> {
        let feed = self.shared.feed.lock();
        feed.active.as_ref().map(|_| feed.began)
    }

    /// Looks up a batch of IDs of one route partition: `out` gets one answer for each, in order. IDs are scoped to
    /// their route partition; what was recorded under another one is no answer.
    ///
    /// # Errors
    /// [`DedupError::Damaged`]: nothing of the answer counts. [`DedupError::Io`]: may be asked again.
    pub fn lookup(
        &self,
        at: RoutePartition,
        ids: &[MessageId],
        out: &mut Vec<Option<Found>>,
    ) -> Result<(), DedupError> {
        // A bucket that goes while it is asked may have been carried into a table that this view does not have.
        while !self.shared.watched(|| self.shared.look(at, ids, out))? {}
        Ok(())
    }

    /// Whose message an ID is that somebody gives as a hash.
    ///
    /// # Errors
    /// As [`DedupStore::lookup`].
    pub fn holder(&self, id: MessageId) -> Result<Option<RoutePartition>, DedupError> {
        let mut route = None;
        let mut take = |_, row: &Row<'_>| route = (row.state != FORGOTTEN).then_some(row.route);
        while !self.shared.watched(|| self.shared.look_for(&[id], &mut take))? {}
        Ok(route.and_then(|route| self.shared.routes.read().at(route)))
    }

    /// Looks up one ID.
    ///
    /// # Errors
    /// As [`DedupStore::lookup`].
    pub fn get(&self, at: RoutePartition, id: MessageId) -> Result<Option<Found>, DedupError> {
        let mut out = Vec::with_capacity(1);
        self.lookup(at, &[id], &mut out)?;
        Ok(out.pop().flatten())
    }

    /// Gives what passes the filter to `visit`, each ID once with its newest record, until that breaks off. Memory
    /// stays bounded by a block; the order is that of runs, newest first. What is recorded meanwhile may be missed.
    ///
    /// # Errors
    /// As [`DedupStore::lookup`].
    pub fn iterate(
        &self,
        filter: &super::IdFilter,
        visit: &mut dyn FnMut(Found) -> std::ops::ControlFlow<()>,
    ) -> Result<(), DedupError> {
        self.shared.watched(|| scan::iterate(&self.shared, filter, visit))
    }

    /// Span of the bucket that takes new records, if there is one; it is not in [`DedupStore::buckets`] before its
    /// first records are written.
    pub fn present_span(&self) -> Option<(Time, Time)> {
        self.shared
            .feed
            .lock()
            .active
            .as_ref()
            .map(|m| (m.bucket.from, m.bucket.to))
    }

    /// Buckets with records on disk, oldest first.
    pub fn buckets(&self) -> Vec<BucketInfo> {
        self.shared.buckets()
    }

    /// Start of the oldest bucket, the present one included: nothing older is remembered, but what was carried.
    pub fn remembers_from(&self) -> Option<Time> {
        let view = self.shared.view.read().clone();
        let oldest = view.buckets.last().map(|b| b.span().0);
        let table = view.mems.last().map(|m| m.bucket.from);
        oldest.into_iter().chain(table).min()
    }

    /// The ledger offset at which the oldest bucket began, the present one included: what was said before is remembered only
    /// where it was carried. 0: it is not known, or the first entry.
    pub fn remembers_from_offset(&self) -> Option<Offset> {
        let view = self.shared.view.read().clone();
        let any = !view.buckets.is_empty() || !view.mems.is_empty();
        any.then(|| self.shared.manifest.lock().gone)
    }

    /// Removes the oldest bucket with everything that is recorded in it; returns the bytes of disk it gave back.
    ///
    /// # Errors
    /// [`DedupError::NotOldest`], [`DedupError::Present`], [`DedupError::NoBucket`]; [`DedupError::Io`] if its
    /// folder cannot be removed: it is then no longer asked, and goes at the next opening.
    pub fn expire(&self, bucket: u32) -> Result<u64, DedupError> {
        let shared = &*self.shared;
        let feed = shared.feed.lock();
        shared.check_oldest(&feed, bucket)?;
        // Its last table may still be waiting.
        shared.wait_drained()?;
        let mut manifest = shared.manifest.lock();
        let mut next = manifest.clone();
        let closed = next
            .buckets
            .iter()
            .find(|b| b.id == bucket)
            .and_then(|b| b.closed);
        next.gone = next.gone.max(closed.unwrap_or(0));
        next.buckets.retain(|b| b.id != bucket);
        manifest::store(&shared.dir, &next).map_err(io_error("write the manifest in", &shared.dir))?;
        *manifest = next;
        let mut gone = None;
        {
            let mut view = shared.view.write();
            let mut next = View::clone(&view);
            if let Some(at) = next.buckets.iter().position(|b| b.id() == bucket) {
                gone = Some(next.buckets.remove(at));
            }
            *view = Arc::new(next);
        }
        drop(manifest);
        let Some(gone) = gone else {
            return Err(DedupError::NoBucket(bucket));
        };
        let mut bytes = shared.remove(&gone)?;
        let left: Vec<Live> = shared
            .retired
            .lock()
            .extract_if(.., |l| l.bucket.id == bucket)
            .collect();
        for live in left {
            bytes += shared.remove(&BucketView::Live(live))?;
        }
        sync_dir(&shared.dir).map_err(io_error("sync", &shared.dir))?;
        Ok(bytes)
    }

    /// Copies what the oldest bucket still says of these route partitions into the present one, durably: then it
    /// may expire. Returns how many records. Where newer buckets know better, nothing is copied.
    ///
    /// # Errors
    /// As [`DedupStore::expire`] and [`DedupStore::record`].
    pub fn carry(&self, bucket: u32, routes: &[RoutePartition]) -> Result<u64, DedupError> {
        let shared = &*self.shared;
        let _form = shared.forms.lock();
        shared.check_oldest(&shared.feed.lock(), bucket)?;
        let known = shared.routes.read();
        let wanted: HashSet<u32> = routes.iter().filter_map(|r| known.index(*r)).collect();
        drop(known);
        let mut carried = 0;
        let mut chunk: Vec<(u32, OwnedRow)> = Vec::new();
        let mut take = |run, row: &Row<'_>| {
            if wanted.contains(&row.route) && row.state != FORGOTTEN {
                chunk.push((run, row.to_owned_row()));
            }
            if chunk.len() >= 1_024 {
                carried += shared.carry_rows(&mut chunk)?;
            }
            Ok(())
        };
        shared.watched(|| scan::bucket_rows(shared, bucket, &mut take))?;
        carried += shared.carry_rows(&mut chunk)?;
        let mut feed = shared.feed.lock();
        shared.sync(&mut feed)?;
        if carried > 0
            && let (Some(mem), Some(tail)) = (&feed.active, &feed.tail)
        {
            shared.needs_tail(mem.run, tail.len())?;
        }
        Ok(carried)
    }

    #[cfg(test)]
    pub(super) fn roll_waits(&self) {
        self.shared.roll_waits.store(true, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(super) fn retired(&self) -> usize {
        self.shared.retired.lock().len()
    }

    /// Figures of the store. Walks its folders.
    pub fn stats(&self) -> DedupStats {
        let shared = &*self.shared;
        let buckets = shared.buckets();
        let view = shared.view.read().clone();
        let queue = shared.queue.lock();
        let options = &shared.env.options;
        let cache = |b: &BucketInfo| match (b.open, b.present) {
            (false, _) => 0,
            (true, true) => options.cache,
            (true, false) => options.old_cache,
        };
        DedupStats {
            in_memory: view.mems.iter().map(|m| m.table.read().len() as u64).sum(),
            waiting_tables: queue.frozen.len(),
            filter_bytes: buckets.iter().map(|b| b.filter_bytes).sum::<u64>()
                + view.directories.iter().map(|d| d.bytes()).sum::<u64>(),
            cache_bytes: buckets.iter().map(cache).sum(),
            disk_bytes: folder_bytes(&shared.dir),
            watermark: self.watermark(),
            fed: shared.fed.load(Ordering::Acquire),
            spills: queue.spills,
            longest_spill: queue.longest,
            refuses: queue.error.clone(),
            unsealed: buckets.iter().filter(|b| !b.sealed && !b.present).count(),
            seal_refuses: queue.seal_error.clone(),
            buckets,
        }
    }

    /// Bytes of filters in memory. Asked every second: looks at no folder.
    pub fn filter_bytes(&self) -> u64 {
        let view = self.shared.view.read().clone();
        let directories = view.directories.iter().map(|d| d.bytes()).sum::<u64>();
        let buckets = view.buckets.iter().map(|bucket| match bucket {
            BucketView::Sealed(sealed) => sealed.memory_bytes(),
            BucketView::Live(Live { bucket, groups, .. }) => {
                groups.iter().map(|g| g.filter.bytes()).sum::<u64>() + bucket.run_filter_bytes()
            }
        });
        directories + buckets.sum::<u64>()
    }

    /// Empties the store, durably: it is then fed from the start of the ledger.
    ///
    /// # Errors
    /// [`DedupError::Io`] if a folder cannot be removed.
    pub fn reset(&self) -> Result<(), DedupError> {
        let shared = &*self.shared;
        let mut feed = shared.feed.lock();
        let mut queue = shared.queue.lock();
        queue.frozen.clear();
        shared.changed.notify_all();
        while queue.busy {
            shared.changed.wait(&mut queue);
        }
        queue.error = None;
        drop(queue);
        let mut manifest = shared.manifest.lock();
        // Numbers go on: no file of the old store can be taken for one of the new.
        *manifest = Manifest {
            ledger: std::mem::take(&mut manifest.ledger),
            next_run: feed.next_run,
            next_bucket: feed.next_bucket,
            of_runs: true,
            ..Manifest::default()
        };
        manifest::store(&shared.dir, &manifest).map_err(io_error("write the manifest in", &shared.dir))?;
        let old = std::mem::take(&mut *shared.view.write());
        *shared.routes.write() = Routes::default();
        feed.active = None;
        feed.tail = None;
        feed.began = 0;
        feed.last_route = None;
        shared.env.present.store(u32::MAX, Ordering::Relaxed);
        feed.fed = Mark::default();
        *shared.durable_mark.lock() = Mark::default();
        shared.durable.store(0, Ordering::Release);
        shared.fed.store(0, Ordering::Release);
        let retired = std::mem::take(&mut *shared.retired.lock());
        for bucket in old
            .buckets
            .iter()
            .cloned()
            .chain(retired.into_iter().map(BucketView::Live))
        {
            shared.remove(&bucket)?;
        }
        clear_unlisted(&shared.dir, &manifest).map_err(io_error("clear", &shared.dir))?;
        load::unmark_damaged(&shared.dir).map_err(io_error("clear", &shared.dir))?;
        shared.damage_told.store(false, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for DedupStore {
    /// Ends the spill thread after what it is at, and breaks off sealing. Without [`DedupStore::sync`] before, what is not durable is fed
    /// again after the next opening.
    fn drop(&mut self) {
        self.shared.queue.lock().stop = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // It catches its own panics; there is nobody to tell in a drop.
            let _ = thread.join();
        }
        let view = self.shared.view.read().clone();
        let live = view.buckets.iter().filter_map(BucketView::live);
        live.for_each(|l| l.bucket.close());
        self.shared.retired.lock().iter().for_each(|l| l.bucket.close());
        view.mems.iter().for_each(|m| m.bucket.close());
    }
}

impl Shared {
    /// Writes down that damage was met: whoever opens the store next finds it refused, and builds it again.
    pub(super) fn watched<R>(&self, work: impl FnOnce() -> Result<R, DedupError>) -> Result<R, DedupError> {
        let done = work();
        if let Err(DedupError::Damaged { path, why }) = &done
            && !self.damage_told.swap(true, Ordering::Relaxed)
        {
            tracing::error!(
                event = "dedup_damaged",
                path = %path.display(),
                why,
                "the store of delivered IDs is damaged: it is built again from the ledger at the next start"
            );
            if let Err(error) = load::mark_damaged(&self.dir, &format!("{why} (`{}`)", path.display())) {
                tracing::error!(event = "dedup_damaged", %error, "this cannot be written down: remove the store's folder before the next start");
            }
        }
        done
    }

    /// Removes a bucket's files; returns the bytes of disk that they took.
    fn remove(&self, bucket: &BucketView) -> Result<u64, DedupError> {
        match bucket {
            BucketView::Live(Live { bucket, .. }) => {
                let bytes = bucket.disk_bytes();
                bucket.remove().map_err(io_error("remove", &bucket.dir))?;
                Ok(bytes)
            }
            BucketView::Sealed(sealed) => {
                let bytes = sealed.disk_bytes();
                sealed.remove().map_err(io_error("remove", sealed.path()))?;
                Ok(bytes)
            }
        }
    }

    fn buckets(&self) -> Vec<BucketInfo> {
        let manifest = self.manifest.lock().clone();
        let view = self.view.read().clone();
        let routes = self.routes.read();
        let present = self.env.present.load(Ordering::Relaxed);
        let info = |meta: &manifest::BucketMeta| {
            let seen = view.buckets.iter().find(|b| b.id() == meta.id)?;
            let (open, disk_bytes, filter_bytes) = match seen {
                BucketView::Sealed(sealed) => (false, sealed.disk_bytes(), sealed.memory_bytes()),
                BucketView::Live(Live { bucket, groups, .. }) => {
                    let groups = groups.iter().map(|g| g.filter.bytes()).sum::<u64>();
                    let bytes = groups + bucket.run_filter_bytes();
                    (bucket.is_open(), bucket.disk_bytes(), bytes)
                }
            };
            Some(BucketInfo {
                id: meta.id,
                from: meta.from(),
                to: meta.to(),
                closed: meta.closed,
                present: meta.id == present,
                open,
                sealed: matches!(seen, BucketView::Sealed(_)),
                records: meta.records(),
                states: meta.states,
                routes: meta
                    .routes
                    .iter()
                    .filter_map(|&(r, n)| Some((routes.at(r)?, n)))
                    .collect(),
                runs: meta.runs.len(),
                disk_bytes,
                filter_bytes,
            })
        };
        manifest.buckets.iter().filter_map(info).collect()
    }
}
