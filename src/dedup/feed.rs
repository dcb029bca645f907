//! The feeder's side: which table and bucket a record goes into, when a table is handed over, and the sync of one
//! that is not full.

use super::block::{FORGOTTEN, OwnedRow, Row};
use super::bucket::Bucket;
use super::manifest;
use super::memtable::Memtable;
use super::store::{Shared, io_error};
use super::tail::{TailOf, TailWriter};
use super::view::{Mem, View};
use super::{DedupError, Mark, StoreOp};
use crate::core::ledger::fold::FinishedState;
use crate::core::types::{Offset, RoutePartition, Time};
use parking_lot::{MutexGuard, RwLock};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Memory tables that may wait to be written: then the feeder waits.
const BACKLOG: usize = 2;
/// A readable ID is cut to this.
const READABLE: usize = 255;
/// Bytes of readable IDs after which a table counts as full. With the records' some 25 MB it bounds what a table takes;
/// there are three of them at most.
const TEXT: usize = 8 << 20;

/// What the feeder owns.
pub(super) struct Feed {
    pub active: Option<Arc<Mem>>,
    /// The tail file of the active table, once a sync has made it.
    pub tail: Option<TailWriter>,
    pub next_run: u32,
    pub next_bucket: u32,
    /// Where the present bucket begins: where the one before it closed.
    pub began: Offset,
    /// The last route that was resolved: neighbours are mostly of the same.
    pub last_route: Option<(RoutePartition, u32)>,
    /// Everything before it was fed.
    pub fed: Mark,
}

/// What stands between feeder and spill.
#[derive(Default)]
pub(super) struct Queue {
    /// Full tables, oldest first.
    pub frozen: VecDeque<Arc<Mem>>,
    /// The oldest one is being written.
    pub busy: bool,
    /// Why the last attempt failed.
    pub error: Option<String>,
    /// The store closes.
    pub stop: bool,
    /// Runs written since opening.
    pub spills: u64,
    /// Longest of them.
    pub longest: Duration,
    /// Why the last attempt to seal a bucket failed.
    pub seal_error: Option<String>,
}

impl Shared {
    /// The table that takes the first of these operations, all said before the ledger offset `upto`. None: there is
    /// nothing they could change.
    pub(super) fn table_for(
        &self,
        feed: &mut Feed,
        ops: &[StoreOp],
        upto: Offset,
    ) -> Result<Option<Arc<Mem>>, DedupError> {
        let when = match ops.first() {
            Some(StoreOp::Finished(f)) => Some(f.when),
            _ => None,
        };
        match (&feed.active, when) {
            (None, None) => {
                // Nothing is remembered, so nothing need be forgotten; look for what is.
                let Some(when) = ops.iter().find_map(|op| match op {
                    StoreOp::Finished(f) => Some(f.when),
                    StoreOp::Forget { .. } => None,
                }) else {
                    return Ok(None);
                };
                self.start_first(feed, when);
            }
            (None, Some(when)) => self.start_first(feed, when),
            (Some(mem), Some(when)) if when >= mem.bucket.to => self.roll(feed, when, upto)?,
            (Some(mem), _) => {
                let table = mem.table.read();
                let full = table.len() >= self.env.options.memtable || table.text_bytes() > TEXT;
                drop(table);
                if full {
                    self.freeze(feed)?;
                }
            }
        }
        Ok(feed.active.clone())
    }

    /// Puts operations into a table until it is full or its bucket is over; returns how many.
    pub(super) fn put_all(&self, feed: &mut Feed, mem: &Mem, ops: &[StoreOp]) -> usize {
        let mut table = mem.table.write();
        let room = self.env.options.memtable.saturating_sub(table.len()).max(1);
        let mut taken = 0;
        for op in ops.iter().take(room) {
            let row = match op {
                StoreOp::Finished(f) if f.when >= mem.bucket.to => break,
                StoreOp::Finished(f) => {
                    let kept = self.env.options.readable
                        || matches!(
                            f.state,
                            FinishedState::Dead | FinishedState::Parked | FinishedState::Waiting
                        );
                    let readable = if kept {
                        &f.readable[..f.readable.len().min(READABLE)]
                    } else {
                        &[]
                    };
                    Row {
                        id: f.id,
                        route: self.route(feed, f.at),
                        state: f.state as u8,
                        status: f.status,
                        attempts: f.attempts,
                        when: u32::try_from(f.when.secs()).unwrap_or(u32::MAX),
                        offset: f.offset,
                        ledger: f.ledger,
                        readable,
                    }
                }
                StoreOp::Forget { at, id } => Row {
                    id: *id,
                    route: self.route(feed, *at),
                    state: FORGOTTEN,
                    status: 0,
                    attempts: 0,
                    when: u32::try_from(mem.bucket.from.secs()).unwrap_or(u32::MAX),
                    offset: 0,
                    ledger: 0,
                    readable: &[],
                },
            };
            table.put(&row);
            taken += 1;
            if table.text_bytes() > TEXT {
                break;
            }
        }
        taken
    }

    #[inline]
    fn route(&self, feed: &mut Feed, at: RoutePartition) -> u32 {
        if let Some((last, index)) = feed.last_route
            && last == at
        {
            return index;
        }
        let known = self.routes.read().index(at);
        let index = known.unwrap_or_else(|| self.routes.write().insert(at));
        feed.last_route = Some((at, index));
        index
    }

    /// Begins the first bucket there is.
    fn start_first(&self, feed: &mut Feed, when: Time) {
        feed.began = feed.fed.next;
        self.manifest.lock().gone = feed.began;
        self.start_bucket(feed, when);
    }

    /// Begins the bucket in which this time lies, behind all others, with an empty table. Where the one before it lies in
    /// the future (the clock was ahead, and is right again) their spans say nothing of which is the older one.
    fn start_bucket(&self, feed: &mut Feed, when: Time) {
        let span = (self.env.options.bucket.as_micros() as u64).max(1);
        let newest = self
            .view
            .read()
            .buckets
            .first()
            .map_or(Time::ZERO, |b| b.span().1);
        let before = feed.active.as_ref().map_or(newest, |m| m.bucket.to.max(newest));
        let (start, end) = (when.0 / span * span, (when.0 / span + 1) * span);
        let start = match before < Time(end) {
            true => Time(start).max(before),
            false => Time(start),
        };
        let bucket = Bucket::new(&self.dir, feed.next_bucket, start, Time(end), Vec::new());
        feed.next_bucket += 1;
        self.start_table(feed, bucket);
    }

    fn start_table(&self, feed: &mut Feed, bucket: Arc<Bucket>) {
        let room = feed
            .active
            .as_ref()
            .map_or(0, |m| m.table.read().len())
            .min(self.env.options.memtable);
        let table = Memtable::with_room(room, feed.fed);
        self.env.present.store(bucket.id, Ordering::Relaxed);
        let mem = Arc::new(Mem {
            run: feed.next_run,
            bucket,
            table: RwLock::new(table),
        });
        feed.next_run += 1;
        feed.tail = None;
        feed.active = Some(mem.clone());
        let mut view = self.view.write();
        let mut next = View::clone(&view);
        next.mems.insert(0, mem);
        *view = Arc::new(next);
    }

    /// Hands the active table over to be written and begins the next one of the same bucket.
    fn freeze(&self, feed: &mut Feed) -> Result<(), DedupError> {
        let Some(mem) = feed.active.clone() else {
            return Ok(());
        };
        self.hand_over(mem.clone())?;
        self.start_table(feed, mem.bucket.clone());
        Ok(())
    }

    /// Ends the present bucket and begins the one of this time. `at`: everything in it is said before this ledger offset.
    pub(super) fn roll(&self, feed: &mut Feed, when: Time, at: Offset) -> Result<(), DedupError> {
        let Some(mem) = feed.active.clone() else {
            return Ok(());
        };
        let written = mem.table.read().len() > 0;
        if written {
            // Refused or not: before anything has changed.
            drop(self.wait_for_room()?);
        }
        self.close(feed, &mem.bucket, at);
        if written {
            self.hand_over(mem.clone())?;
            #[cfg(test)]
            if self.roll_waits.load(Ordering::Relaxed) {
                self.wait_drained()?;
            }
            self.start_bucket(feed, when);
            // Its last table may have been written before the next bucket was the present one: whoever seals looked
            // then, and sleeps.
            self.tell();
            return Ok(());
        }
        // An empty table becomes no run: its number is given again, and nobody closes its bucket but this.
        feed.next_run = mem.run;
        {
            let mut view = self.view.write();
            let mut next = View::clone(&view);
            next.mems.retain(|m| m.run != mem.run);
            *view = Arc::new(next);
        }
        self.start_bucket(feed, when);
        // Where nothing of it is written any more it can be sealed.
        self.tell();
        Ok(())
    }

    /// Notes where a bucket ends: with its runs the manifest says so, as soon as it is written next.
    fn close(&self, feed: &mut Feed, bucket: &Bucket, at: Offset) {
        bucket.note_closed(at);
        feed.began = at;
        let mut manifest = self.manifest.lock();
        if let Some(meta) = manifest.buckets.iter_mut().find(|b| b.id == bucket.id) {
            meta.closed = Some(at);
        }
    }

    /// Wakes whoever waits for a change of what the queue's lock does not guard. The lock is taken once in between:
    /// a sleeper that looked before the change sleeps by then, and is woken; one that looks later sees the change.
    pub(super) fn tell(&self) {
        drop(self.queue.lock());
        self.changed.notify_all();
    }

    fn hand_over(&self, mem: Arc<Mem>) -> Result<(), DedupError> {
        self.wait_for_room()?.frozen.push_back(mem);
        self.changed.notify_all();
        Ok(())
    }

    /// Waits until one more full table may wait. Only the feeder adds any.
    fn wait_for_room(&self) -> Result<MutexGuard<'_, Queue>, DedupError> {
        let mut queue = self.queue.lock();
        while queue.frozen.len() >= BACKLOG {
            if let Some(why) = &queue.error {
                return Err(DedupError::Backlog { why: why.clone() });
            }
            self.changed.wait(&mut queue);
        }
        Ok(queue)
    }

    /// Waits until no full table waits.
    pub(super) fn wait_drained(&self) -> Result<(), DedupError> {
        let mut queue = self.queue.lock();
        while !queue.frozen.is_empty() {
            if let Some(why) = &queue.error {
                return Err(DedupError::Backlog { why: why.clone() });
            }
            self.changed.wait(&mut queue);
        }
        Ok(())
    }

    pub(super) fn sync(&self, feed: &mut MutexGuard<'_, Feed>) -> Result<(), DedupError> {
        let fed = feed.fed;
        self.wait_drained()?;
        let (table_len, tailed) = match &feed.active {
            Some(mem) => {
                let table = mem.table.read();
                (table.len(), table.tailed)
            }
            None => (0, 0),
        };
        if fed.next == self.durable.load(Ordering::Relaxed) && table_len == tailed {
            return Ok(());
        }
        let failed = |e| io_error("write the tail in", &self.dir)(e);
        match feed.active.clone() {
            // Progress without records too: only the file that holds the others may say that they are there.
            Some(mem) if table_len > 0 => {
                let of = TailOf {
                    run: mem.run,
                    bucket: mem.bucket.id,
                    from: mem.bucket.from,
                    to: mem.bucket.to,
                };
                let mut tail = match feed.tail.take() {
                    Some(tail) => tail,
                    None => TailWriter::make(&self.dir, of).map_err(failed)?,
                };
                {
                    let routes = self.routes.read();
                    let table = mem.table.read();
                    let rows = table.rows(tailed, usize::MAX);
                    let written = tail.append(fed, rows.filter_map(|row| Some((routes.at(row.route)?, row))));
                    drop(table);
                    feed.tail = Some(tail);
                    written.map_err(failed)?;
                }
                mem.table.write().tailed = table_len;
            }
            _ => {
                // All records are in runs.
                let mut manifest = self.manifest.lock();
                let mut next = manifest.clone();
                next.reach(fed);
                manifest::store(&self.dir, &next).map_err(io_error("write the manifest in", &self.dir))?;
                *manifest = next;
            }
        }
        self.durable(fed);
        Ok(())
    }

    /// So much of the tail of this run nothing can feed again.
    pub(super) fn needs_tail(&self, run: u32, bytes: u64) -> Result<(), DedupError> {
        let mut manifest = self.manifest.lock();
        let mut next = manifest.clone();
        next.carried = Some((run, bytes));
        manifest::store(&self.dir, &next).map_err(io_error("write the manifest in", &self.dir))?;
        *manifest = next;
        Ok(())
    }

    /// Everything before it is durable here.
    pub(super) fn durable(&self, mark: Mark) {
        let mut durable = self.durable_mark.lock();
        *durable = (*durable).max(mark);
        self.durable.fetch_max(mark.next, Ordering::Release);
    }

    /// Puts rows of the oldest bucket into the active table, as far as nothing newer hides them.
    pub(super) fn carry_rows(&self, rows: &mut Vec<(u32, OwnedRow)>) -> Result<u64, DedupError> {
        let mut carried = 0;
        let mut feed = self.feed.lock();
        for (run, row) in rows.drain(..) {
            let Some(mem) = feed.active.clone() else { break };
            let full = mem.table.read().len() >= self.env.options.memtable;
            if full {
                self.freeze(&mut feed)?;
            }
            let view = self.view.read().clone();
            if self.hidden(&view, run, &row.row.id)? {
                continue;
            }
            if let Some(mem) = &feed.active {
                mem.table.write().put(&row.borrow());
                carried += 1;
            }
        }
        Ok(carried)
    }

    pub(super) fn check_oldest(&self, feed: &Feed, bucket: u32) -> Result<(), DedupError> {
        if feed.active.as_ref().is_some_and(|m| m.bucket.id == bucket) {
            return Err(DedupError::Present(bucket));
        }
        self.wait_drained()?;
        let view = self.view.read();
        match view.buckets.last() {
            Some(oldest) if oldest.id() == bucket => Ok(()),
            _ if view.buckets.iter().any(|b| b.id() == bucket) => Err(DedupError::NotOldest(bucket)),
            _ => Err(DedupError::NoBucket(bucket)),
        }
    }
}
