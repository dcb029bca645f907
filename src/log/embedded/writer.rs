//! The one thread that writes: it gathers what waits into a frame, writes and syncs it, and answers.
//!
//! What arrives during a commit forms the next frame, so there is never more than one frame that is not durable.
//! Under load two commits begin at least `commit_gap` apart; an append that comes alone is committed at once.
//! Parts of large transactions travel in the same frames, at most [`BULK`] bytes in each (or one part): an import
//! makes the commits of others longer by about a millisecond, not by its own length.

use super::frame::{Entry, FRAME_HEAD, Origin, Place, SectionHead, seal};
use super::index::SegmentItems;
use super::segment::{Segment, encode_footer, encode_head, footer_room, trailer_at};
use super::state::{Shared, Spare};
use super::transaction::TxShared;
use super::{disk, wire::align8};
use crate::core::types::Offset;
use crate::log::{Appended, Batch, Done, LogError, PartitionId};
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Bytes of transaction parts and of records carried forward in one frame.
const BULK: usize = 1024 * 1024;
/// Upper bound of a section's line in the table.
const SECTION_COST: usize = 56;

/// Who may take the last free segments, the humblest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// New records: never the reserve.
    Normal,
    /// Outcomes and positions: all of the reserve but one segment.
    Reserve,
    /// The log's own care (trims, drops, copies): everything, because it makes room.
    Internal,
}

/// What waits for the writer.
pub(super) enum Job {
    Batch(Batch, Done),
    /// Refused where it was appended; told here, so that answers keep the order of the calls.
    Refused(LogError, Done),
    Control(Vec<Entry>, Done),
    Part(Arc<TxShared>, Batch),
    Commit(Arc<TxShared>, Batch, Done),
    Abort(Arc<TxShared>),
    Carry(Vec<(SectionHead, Bytes)>, Done),
}

impl Job {
    fn level(&self) -> Level {
        match self {
            Job::Batch(batch, _) if batch.reserve => Level::Reserve,
            Job::Batch(..) | Job::Part(..) | Job::Commit(..) => Level::Normal,
            Job::Control(..) | Job::Carry(..) | Job::Refused(..) | Job::Abort(_) => Level::Internal,
        }
    }

    /// At most so many bytes of a frame, and sections.
    fn cost(&self) -> (usize, usize) {
        match self {
            Job::Batch(batch, _) | Job::Part(_, batch) => (batch_cost(batch), batch.sections.len()),
            Job::Commit(tx, last, _) => (batch_cost(last) + tx.commit_cost(), last.sections.len()),
            Job::Control(entries, _) => {
                let mut table = Vec::new();
                entries.iter().for_each(|e| e.put(&mut table));
                (table.len(), 0)
            }
            Job::Carry(sections, _) => {
                let bytes: usize = sections.iter().map(|(_, b)| b.len() + SECTION_COST).sum();
                (bytes, sections.len())
            }
            Job::Refused(..) | Job::Abort(_) => (0, 0),
        }
    }
}

/// At most so many bytes of a frame.
pub(super) fn batch_cost(batch: &Batch) -> usize {
    let groups: usize = batch.offsets.iter().map(|(g, ..)| g.len() + 16).sum();
    batch.bytes() + batch.sections.len() * SECTION_COST + groups
}

/// What waits, in two lines: batches and the log's own entries; bulk (parts, commits, copies).
#[derive(Default)]
pub(super) struct Queue {
    pub jobs: VecDeque<Job>,
    pub bytes: usize,
    pub bulk: VecDeque<Job>,
    pub bulk_bytes: usize,
    /// Records and entries in `jobs`: more than one means load.
    pub waiting: usize,
    pub closing: bool,
    /// The writer sleeps until it is woken.
    pub idle: bool,
    /// The writer has ended: whoever appends is answered on the spot.
    pub ended: bool,
}

impl Shared {
    /// Puts a job into the line of batches.
    pub(super) fn enqueue(&self, job: Job) {
        let mut queue = self.queue.lock();
        let closed = queue.closing;
        let job = match job {
            Job::Batch(_, done) if closed => Job::Refused(LogError::Closed, done),
            Job::Control(_, done) if closed => Job::Refused(LogError::Closed, done),
            Job::Batch(batch, done) => {
                let bytes = batch_cost(&batch);
                let limit = self.options.queue_bytes;
                if queue.bytes > 0 && queue.bytes + bytes > limit {
                    let waiting = queue.bytes;
                    Job::Refused(LogError::Busy { waiting, limit }, done)
                } else {
                    queue.bytes += bytes;
                    queue.waiting += batch.len();
                    Job::Batch(batch, done)
                }
            }
            other => other,
        };
        if queue.ended {
            drop(queue);
            return self.refuse_ended(job);
        }
        queue.jobs.push_back(job);
        self.wake_writer(queue);
    }

    /// Puts a job into the line of bulk, once there is room for it.
    pub(super) fn enqueue_bulk(&self, job: Job) {
        let bytes = job.cost().0;
        let mut queue = self.queue.lock();
        while queue.bulk_bytes > 0 && queue.bulk_bytes + bytes > self.options.bulk_bytes && !queue.ended {
            self.room.wait(&mut queue);
        }
        if queue.ended || queue.closing {
            drop(queue);
            return self.refuse_ended(job);
        }
        queue.bulk_bytes += bytes;
        queue.bulk.push_back(job);
        self.wake_writer(queue);
    }

    fn wake_writer(&self, mut queue: parking_lot::MutexGuard<'_, Queue>) {
        let sleeps = std::mem::take(&mut queue.idle);
        drop(queue);
        if sleeps {
            self.wake.notify_one();
        }
    }

    fn refuse_ended(&self, job: Job) {
        let error = self.failed.get().cloned().unwrap_or(LogError::Closed);
        match job {
            Job::Refused(error, done) => done(Err(error)),
            Job::Batch(_, done) | Job::Control(_, done) | Job::Commit(_, _, done) | Job::Carry(_, done) => {
                done(Err(error));
            }
            Job::Part(tx, _) => tx.fail(error),
            Job::Abort(_) => {}
        }
    }

    /// Takes a file for the next segment. Whoever may not have the last ones makes a new one, or is refused.
    fn take_spare(&self, level: Level) -> Result<Spare, LogError> {
        let keep = match level {
            Level::Normal => self.options.reserve,
            Level::Reserve => 1,
            Level::Internal => 0,
        };
        loop {
            let mut spares = self.spares.lock();
            if spares.ready.len() > keep
                && let Some(spare) = spares.ready.pop_front()
            {
                return Ok(spare);
            }
            let slot = spares.next_slot;
            spares.next_slot += 1;
            drop(spares);
            // No spare was ready: its room is taken now. The reserve comes first: whoever is held to it must not take
            // the room that it needs.
            let spare = self.make_slot(slot, self.options.segment_bytes)?;
            self.spares.lock().ready.push_back(spare);
        }
    }

    /// A file of a size of its own, which no spare has.
    fn make_spare(&self, size: u64) -> Result<Spare, LogError> {
        let mut spares = self.spares.lock();
        let slot = spares.next_slot;
        spares.next_slot += 1;
        drop(spares);
        self.make_slot(slot, size)
    }

    /// Takes room for a segment, without zeros, which would make everybody wait.
    fn make_slot(&self, slot: u32, size: u64) -> Result<Spare, LogError> {
        let path = disk::slot_path(&self.dir, slot);
        match self.disk.allocate(&path, size, 0, |_| true) {
            Ok(Some(file)) => Ok(Spare {
                slot,
                file: Arc::new(file),
            }),
            Ok(None) => Err(self.no_room("making a segment was given up".into())),
            Err(e) => Err(self.no_room(e.to_string())),
        }
    }
}

/// The segment that is being written.
pub(super) struct Active {
    pub segment: Arc<Segment>,
    pub at: u64,
    pub items: SegmentItems,
    pub next_frame: u64,
}

/// A job taken from the queue, and why it is refused, if it is.
struct Taken {
    job: Job,
    refused: Option<LogError>,
}

/// The writer's own state.
pub(super) struct Writer {
    shared: Arc<Shared>,
    active: Active,
    /// Records each open transaction has in each partition.
    counts: HashMap<u64, HashMap<u32, u64>>,
    buffer: Vec<u8>,
    last_start: Option<Instant>,
    last_load: bool,
}

/// Sections and other entries of the frame under construction.
#[derive(Default)]
struct Builder {
    sections: Vec<(SectionHead, Vec<Bytes>)>,
    newest: HashMap<(u32, Origin), usize>,
    rest: Vec<Entry>,
    nexts: HashMap<u32, Offset>,
    answers: Vec<(Done, Result<Appended, LogError>)>,
    /// Transactions that end with this frame.
    ended: Vec<u64>,
}

impl Builder {
    fn add(&mut self, head: SectionHead, bytes: Bytes) {
        let key = (head.partition, head.origin);
        if let Some(at) = self.newest.get(&key) {
            let (held, pieces) = &mut self.sections[*at];
            if held.end() == head.base && held.len as usize + bytes.len() <= crate::log::batch::CHUNK {
                held.count += head.count;
                held.len += head.len;
                held.crc = crc32c::crc32c_append(held.crc, &bytes);
                held.max_time = held.max_time.max(head.max_time);
                return pieces.push(bytes);
            }
        }
        self.newest.insert(key, self.sections.len());
        let head = SectionHead {
            crc: crc32c::crc32c(&bytes),
            ..head
        };
        self.sections.push((head, vec![bytes]));
    }

    /// The offset that the next record of a partition gets in this frame.
    fn next(&mut self, shared: &Shared, partition: u32) -> Option<&mut Offset> {
        match self.nexts.entry(partition) {
            std::collections::hash_map::Entry::Occupied(held) => Some(held.into_mut()),
            std::collections::hash_map::Entry::Vacant(free) => {
                let next = shared.partition_number(partition)?.index.read().next;
                Some(free.insert(next))
            }
        }
    }

    /// Adds a batch's records and group offsets. Nothing is added if one of its partitions is gone.
    fn batch(&mut self, shared: &Shared, batch: Batch) -> Result<Appended, LogError> {
        for s in &batch.sections {
            shared.partition(s.partition)?;
        }
        for (_, partition, _) in &batch.offsets {
            shared.partition(*partition)?;
        }
        let mut bases: Vec<(PartitionId, Offset)> = Vec::new();
        for s in batch.sections {
            let Some(next) = self.next(shared, s.partition.0) else {
                return Err(LogError::NoTopic(format!("#{}", s.partition.0)));
            };
            let base = *next;
            *next += u64::from(s.count);
            if !bases.iter().any(|(p, _)| *p == s.partition) {
                bases.push((s.partition, base));
            }
            let head = SectionHead {
                origin: Origin::Batch,
                partition: s.partition.0,
                base,
                count: s.count,
                len: s.bytes.len() as u32,
                crc: 0,
                max_time: s.max_time,
            };
            self.add(head, s.bytes.freeze());
        }
        for (group, partition, next) in batch.offsets {
            self.rest.push(Entry::Group {
                group,
                partition: partition.0,
                next,
            });
        }
        Ok(Appended { bases })
    }
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, active: Active) -> Self {
        Self {
            shared,
            active,
            counts: HashMap::new(),
            buffer: Vec::new(),
            last_start: None,
            last_load: false,
        }
    }

    /// The writer thread's life. A callback that panics must not leave everybody waiting for an answer: the log
    /// counts as failed then.
    pub(super) fn live(self) {
        let shared = Arc::clone(&self.shared);
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || self.run()));
        if ran.is_err() {
            let cause = std::io::Error::other("the writer has panicked");
            let error = shared.poison(&shared.dir, &cause);
            let mut queue = shared.queue.lock();
            queue.ended = true;
            let left: Vec<Job> = queue.jobs.drain(..).collect();
            let bulk: Vec<Job> = queue.bulk.drain(..).collect();
            drop(queue);
            left.into_iter()
                .chain(bulk)
                .for_each(|job| shared.refuse_ended(job));
            tracing::error!(event = "log_ended", %error, "the log has ended");
        }
        shared.room.notify_all();
    }

    /// Works until the log is closed and nothing waits any more.
    fn run(mut self) {
        while let Some(jobs) = self.take() {
            self.commit(jobs);
        }
    }

    /// Waits for work and takes a frame's worth of it. `None`: closed, and nothing is left.
    fn take(&mut self) -> Option<Vec<Taken>> {
        let shared = Arc::clone(&self.shared);
        let mut queue = shared.queue.lock();
        loop {
            if queue.jobs.is_empty() && queue.bulk.is_empty() {
                if queue.closing {
                    // Under the same lock: what is appended from here on is answered where it is appended.
                    queue.ended = true;
                    return None;
                }
                queue.idle = true;
                shared.wake.wait(&mut queue);
                queue.idle = false;
                continue;
            }
            let load = self.last_load || queue.waiting > 1 || !queue.bulk.is_empty();
            let due = self.last_start.map(|at| at + shared.options.commit_gap);
            match due {
                Some(due) if load && !queue.closing && Instant::now() < due => {
                    shared.wake.wait_until(&mut queue, due);
                }
                _ => break,
            }
        }
        let mut taken = Vec::new();
        let mut room = shared.options.max_frame;
        while let Some(job) = queue.jobs.front() {
            let cost = job.cost().0;
            if cost > room && !taken.is_empty() {
                break;
            }
            room = room.saturating_sub(cost);
            let Some(job) = queue.jobs.pop_front() else { break };
            if let Job::Batch(batch, _) = &job {
                queue.bytes -= cost;
                queue.waiting -= batch.len();
            }
            taken.push(Taken { job, refused: None });
        }
        // One of them in any case, however large: small batches that never end must not starve an import.
        let (mut bulk, mut any) = (BULK, false);
        while let Some(job) = queue.bulk.front() {
            let cost = job.cost().0;
            if (any && cost > bulk) || (cost > room && !taken.is_empty()) {
                break;
            }
            (bulk, room, any) = (bulk.saturating_sub(cost), room.saturating_sub(cost), true);
            let Some(job) = queue.bulk.pop_front() else { break };
            queue.bulk_bytes = queue.bulk_bytes.saturating_sub(cost);
            taken.push(Taken { job, refused: None });
        }
        drop(queue);
        shared.room.notify_all();
        Some(taken)
    }

    fn commit(&mut self, mut jobs: Vec<Taken>) {
        let start = Instant::now();
        if let Err(e) = self.shared.check() {
            jobs.iter_mut().for_each(|t| t.refused = Some(e.clone()));
        } else if let Err(e) = self.make_room(&mut jobs) {
            jobs.iter_mut().for_each(|t| t.refused = Some(e.clone()));
        }
        let mut builder = Builder::default();
        for taken in jobs {
            self.build(&mut builder, taken);
        }
        if builder.sections.is_empty() && builder.rest.is_empty() {
            self.forget(&builder.ended);
            return builder.answers.into_iter().for_each(|(done, r)| done(r));
        }
        let written = self.write(&mut builder);
        self.last_start = Some(start);
        if let Err(error) = written {
            for (done, result) in builder.answers {
                done(result.and_then(|_| Err(error.clone())));
            }
            return;
        }
        let counters = &self.shared.counters;
        counters.commits.fetch_add(1, Ordering::Relaxed);
        counters
            .sync_us
            .fetch_add(start.elapsed().as_micros() as u64, Ordering::Relaxed);
        for (done, result) in builder.answers {
            done(result);
        }
    }

    /// Sees to it that what is not refused fits into the active segment.
    fn make_room(&mut self, jobs: &mut [Taken]) -> Result<(), LogError> {
        if let Some(why) = self.shared.full.lock().clone() {
            let error = self.shared.no_room(why);
            let normal = jobs.iter_mut().filter(|t| t.job.level() == Level::Normal);
            normal.for_each(|t| t.refused = Some(error.clone()));
        }
        loop {
            let open = jobs.iter().filter(|t| t.refused.is_none());
            let (bytes, sections) = open
                .clone()
                .map(|t| t.job.cost())
                .fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
            let needs = align8((FRAME_HEAD + bytes) as u64) + footer_room(self.active.items.len() + sections);
            if bytes == 0 || self.active.at + needs <= self.active.segment.size {
                return Ok(());
            }
            let Some(level) = open.map(|t| t.job.level()).min() else {
                return Ok(());
            };
            let error = match self.roll(level, bytes, sections) {
                Ok(()) => {
                    self.shared.care.nudge();
                    return Ok(());
                }
                Err(e @ LogError::Failed { .. }) => return Err(e),
                Err(e) => e,
            };
            if level == Level::Normal {
                tracing::warn!(event = "log_no_room", %error, "no new records are taken");
                *self.shared.full.lock() = Some(match &error {
                    LogError::NoRoom { detail, .. } => detail.clone(),
                    other => other.to_string(),
                });
                self.shared.care.nudge();
            }
            let same = jobs
                .iter_mut()
                .filter(|t| t.refused.is_none() && t.job.level() == level);
            same.for_each(|t| t.refused = Some(error.clone()));
        }
    }

    /// Begins the next segment, with room for a frame of so many bytes and sections: its head first, then the footer of
    /// the one that is full, then frames. So a segment with a footer always has a successor, and opening can tell a
    /// lost one.
    ///
    /// A frame that fits into no segment of the usual size gets one as large as it needs: the outcome that keeps a
    /// record from before segments were made smaller, or a copy of it, must not be refused for good.
    fn roll(&mut self, level: Level, bytes: usize, sections: usize) -> Result<(), LogError> {
        let shared = &self.shared;
        let number = self.active.segment.number + 1;
        let catalogue = shared.catalogue(self.active.next_frame);
        let head = encode_head(shared.journal, number, &catalogue);
        let usual = shared.options.segment_bytes;
        if head.len() as u64 > usual / 3 {
            return Err(shared.no_room(format!(
                "the catalogue takes {} bytes of a segment of {usual}",
                head.len()
            )));
        }
        let frame = align8((FRAME_HEAD + bytes) as u64) + footer_room(sections);
        let needed = (disk::after(head.len()) + frame).next_multiple_of(4096);
        let spare = match needed > usual {
            true => shared.make_spare(needed)?,
            false => shared.take_spare(level)?,
        };
        let size = needed.max(usual);
        let path = disk::slot_path(&shared.dir, spare.slot);
        let made = shared.disk.write(&spare.file, &head, 0);
        made.and_then(|()| shared.disk.sync(&spare.file))
            .map_err(|e| shared.poison(&path, &e))?;
        write_footer(shared, &self.active.segment, &self.active.items, self.active.at)?;
        let segment = Arc::new(Segment {
            number,
            slot: spare.slot,
            path,
            file: spare.file,
            frames: disk::after(head.len()),
            first_frame: self.active.next_frame,
            size,
        });
        shared.segments.write().insert(number, Arc::clone(&segment));
        shared
            .counters
            .bytes
            .fetch_add(head.len() as u64, Ordering::Relaxed);
        self.active.at = segment.frames;
        self.active.segment = segment;
        self.active.items = SegmentItems::default();
        Ok(())
    }

    fn build(&mut self, builder: &mut Builder, Taken { job, refused }: Taken) {
        match (job, refused) {
            (Job::Refused(error, done), _) => builder.answers.push((done, Err(error))),
            (Job::Batch(_, done) | Job::Control(_, done) | Job::Carry(_, done), Some(error)) => {
                builder.answers.push((done, Err(error)));
            }
            (Job::Batch(batch, done), None) => {
                let result = builder.batch(&self.shared, batch);
                builder.answers.push((done, result));
            }
            (Job::Control(entries, done), None) => {
                builder.rest.extend(entries);
                builder.answers.push((done, Ok(Appended { bases: Vec::new() })));
            }
            (Job::Carry(sections, done), None) => {
                for (head, bytes) in sections {
                    builder.add(head, bytes);
                }
                builder.answers.push((done, Ok(Appended { bases: Vec::new() })));
            }
            (Job::Abort(tx), _) => {
                self.counts.remove(&tx.number);
                builder.ended.push(tx.number);
            }
            (Job::Part(tx, _), Some(error)) => {
                self.counts.remove(&tx.number);
                tx.fail(error);
            }
            (Job::Part(tx, batch), None) => {
                if let Err(error) = self.part(builder, &tx, batch) {
                    tx.fail(error);
                }
            }
            (Job::Commit(tx, last, done), refused) => {
                let result = match refused.or_else(|| tx.error()) {
                    Some(error) => Err(error),
                    None => self.end(builder, &tx, last),
                };
                if result.is_err() {
                    // Its parts are never seen; what of them is in this frame is left there, dead.
                    builder.ended.push(tx.number);
                }
                self.counts.remove(&tx.number);
                builder.answers.push((done, result));
            }
        }
    }

    fn part(&mut self, builder: &mut Builder, tx: &TxShared, batch: Batch) -> Result<(), LogError> {
        if tx.error().is_some() {
            return Ok(());
        }
        for s in &batch.sections {
            self.shared.partition(s.partition)?;
        }
        let counts = self.counts.entry(tx.number).or_default();
        for s in batch.sections {
            let next = counts.entry(s.partition.0).or_default();
            let head = SectionHead {
                origin: Origin::Part(tx.number),
                partition: s.partition.0,
                base: *next,
                count: s.count,
                len: s.bytes.len() as u32,
                crc: 0,
                max_time: s.max_time,
            };
            *next += u64::from(s.count);
            builder.add(head, s.bytes.freeze());
        }
        // Offsets of groups count only once the transaction does.
        tx.keep_offsets(batch.offsets);
        Ok(())
    }

    /// Gives the parts of a transaction their offsets, and adds its last batch behind them.
    fn end(&mut self, builder: &mut Builder, tx: &TxShared, mut last: Batch) -> Result<Appended, LogError> {
        let counts = self.counts.remove(&tx.number).unwrap_or_default();
        for number in counts.keys() {
            self.shared.partition(PartitionId(*number))?;
        }
        for s in &last.sections {
            self.shared.partition(s.partition)?;
        }
        let mut offsets = tx.take_offsets();
        offsets.append(&mut last.offsets);
        last.offsets = offsets;
        let mut bases = Vec::with_capacity(counts.len());
        for (partition, count) in counts {
            let Some(next) = builder.next(&self.shared, partition) else {
                return Err(LogError::NoTopic(format!("#{partition}")));
            };
            bases.push((partition, *next, count));
            *next += count;
        }
        bases.sort_unstable();
        let mut appended: Vec<_> = bases
            .iter()
            .map(|(p, base, _)| (PartitionId(*p), *base))
            .collect();
        let of_last = builder.batch(&self.shared, last)?;
        let more = of_last
            .bases
            .into_iter()
            .filter(|(p, _)| !bases.iter().any(|(q, ..)| *q == p.0));
        appended.extend(more);
        builder.rest.push(Entry::Commit { tx: tx.number, bases });
        Ok(Appended { bases: appended })
    }

    /// Transactions that ended without a commit: their parts are dead.
    fn forget(&self, ended: &[u64]) {
        let mut open = self.shared.open.lock();
        for tx in ended {
            open.remove(tx);
        }
    }

    /// Writes the frame, makes it durable, shows it to the readers.
    fn write(&mut self, builder: &mut Builder) -> Result<(), LogError> {
        let shared = &self.shared;
        let mut entries: Vec<Entry> = Vec::with_capacity(builder.sections.len() + builder.rest.len());
        entries.extend(builder.sections.iter().map(|(head, _)| Entry::Section(*head)));
        entries.append(&mut builder.rest);
        let segment = &self.active.segment;
        let at = self.active.at;
        let place = Place {
            journal: shared.journal,
            segment: segment.number,
            at,
        };
        let body = builder
            .sections
            .iter()
            .flat_map(|(_, pieces)| pieces)
            .map(|b| &b[..]);
        let now = (shared.options.now)();
        seal(
            &mut self.buffer,
            &entries,
            body,
            self.active.next_frame,
            now,
            place,
        );
        let until = at + self.buffer.len() as u64;
        shared
            .disk
            .write(&segment.file, &self.buffer, at)
            .and_then(|()| shared.disk.sync(&segment.file))
            .map_err(|e| shared.poison(&segment.path, &e))?;
        shared
            .counters
            .bytes
            .fetch_add(self.buffer.len() as u64, Ordering::Relaxed);
        self.last_load = builder.sections.iter().map(|(h, _)| h.count).sum::<u32>() > 1;
        let number = segment.number;
        let dropped = shared.apply(&entries, number, (at, until), &mut self.active.items);
        self.active.at = until;
        self.active.next_frame += 1;
        shared.tell(&entries);
        if !dropped.is_empty() {
            shared.release(&dropped);
        }
        self.forget(&builder.ended);
        if self.buffer.capacity() > 2 * BULK {
            self.buffer = Vec::new();
        }
        Ok(())
    }
}

/// Writes the index of a segment behind its frames, durably.
pub(super) fn write_footer(
    shared: &Shared,
    segment: &Segment,
    items: &SegmentItems,
    at: u64,
) -> Result<(), LogError> {
    let (footer, trailer) = encode_footer(items, segment.number, at);
    shared
        .disk
        .write(&segment.file, &footer, at)
        .and_then(|()| {
            shared
                .disk
                .write(&segment.file, &trailer, trailer_at(segment.size))
        })
        .and_then(|()| shared.disk.sync(&segment.file))
        .map_err(|e| shared.poison(&segment.path, &e))
}
