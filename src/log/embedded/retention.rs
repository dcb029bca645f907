//! The log's care, on a thread of its own: retention, dropping and copying of segments, spare files.
//!
//! What it decides goes through the writer like everything else: a trim is a frame, a drop is a frame, a copy is a
//! frame, in this order; a file is used again only after its drop is durable. A crash between any two of them
//! leaves records twice on disk or a dead segment in place, never a hole.
//!
//! Order of looking: open transactions first, then the index. A transaction that is committed in between is then
//! seen at least once (the writer moves it the other way round).

use super::disk::slot_path;
use super::frame::{Entry, Origin, SectionHead};
use super::index::Item;
use super::reader::{records, sections};
use super::segment::Segment;
use super::state::{Partition, Shared, Spare};
use super::writer::Job;
use crate::core::types::Offset;
use crate::log::LogError;
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// Bytes of records copied forward in one job.
const COPY: usize = 256 * 1024;
/// Spares kept beyond the reserve after a burst (an import); the rest is given back to the file system.
const KEEP: usize = 4;

/// Wakes the care thread, and tells it to end.
#[derive(Debug, Default)]
pub(super) struct CareSignal {
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl CareSignal {
    /// There is something to do before the next turn is due.
    pub(super) fn nudge(&self) {
        self.state.lock().0 = true;
        self.changed.notify_one();
    }
    /// The log is closing.
    pub(super) fn end(&self) {
        self.state.lock().1 = true;
        self.changed.notify_one();
    }
    fn ending(&self) -> bool {
        self.state.lock().1
    }
    /// Waits for a nudge or until it is time; false at the end.
    fn wait(&self, every: Duration) -> bool {
        let mut state = self.state.lock();
        if !state.0 && !state.1 {
            self.changed.wait_for(&mut state, every);
        }
        state.0 = false;
        !state.1
    }
}

impl Shared {
    /// The care thread's life.
    pub(super) fn care(&self) {
        loop {
            self.spares();
            if !self.care.wait(self.options.care_every) {
                return;
            }
            if self.failed.get().is_some() {
                continue;
            }
            if let Err(error) = self.turn() {
                tracing::warn!(event = "log_retention_failed", %error, "retention could not do its work; it tries again");
            }
        }
    }

    /// One turn of retention; tests call it where they need it done.
    ///
    /// Only one runs at a time. Two would copy the same records forward: their copies end up mixed in one segment,
    /// a later record's before an earlier one's, and an item that begins between the two covers no whole run.
    pub(super) fn turn(&self) -> Result<(), LogError> {
        let _alone = self.caring.lock();
        self.expire()?;
        self.drop_dead()?;
        if self.copy_forward()? {
            self.drop_dead()?;
            self.care.nudge();
        }
        Ok(())
    }

    /// Has the writer make entries durable, and waits for it.
    pub(super) fn control(&self, entries: Vec<Entry>) -> Result<(), LogError> {
        self.check()?;
        let (tell, told) = mpsc::sync_channel(1);
        self.enqueue(Job::Control(
            entries,
            Box::new(move |result| {
                // Whoever asked waits for the answer.
                let _ = tell.send(result);
            }),
        ));
        told.recv().unwrap_or(Err(LogError::Closed)).map(|_| ())
    }

    /// Trims what is past its topic's retention and needed by nobody.
    fn expire(&self) -> Result<(), LogError> {
        let now = (self.options.now)();
        let topics: Vec<_> = self.topics.read().by_name.values().cloned().collect();
        let mut entries = Vec::new();
        for topic in topics {
            let oldest_kept = topic
                .entry
                .retention_us
                .map(|us| now.minus(Duration::from_micros(us)));
            // For each partition the items that may go, oldest first.
            let mut firsts: BTreeMap<u32, Offset> = BTreeMap::new();
            let mut free: Vec<(Item, u32)> = Vec::new();
            let mut total = 0;
            for p in &topic.partitions {
                let allow = p.allow.load(Ordering::Acquire);
                let index = p.index.read();
                total += index.items.iter().map(|i| u64::from(i.bytes)).sum::<u64>();
                free.extend(
                    index
                        .items
                        .iter()
                        .take_while(|i| i.end <= allow)
                        .map(|i| (*i, p.number)),
                );
            }
            free.sort_by_key(|(item, p)| (item.max_time, *p, item.base));
            let mut held_back = HashSet::new();
            for (item, p) in free {
                let too_old = oldest_kept.is_some_and(|oldest| item.max_time < oldest);
                let too_many = topic.entry.retention_bytes.is_some_and(|most| total > most);
                let in_order = firsts.get(&p).is_none_or(|first| *first <= item.base);
                if held_back.contains(&p) || !in_order || !(too_old || too_many) {
                    // Only from the front: what is behind a record that stays, stays.
                    held_back.insert(p);
                    continue;
                }
                firsts.insert(p, item.end);
                total -= u64::from(item.bytes);
            }
            entries.extend(
                firsts
                    .into_iter()
                    .map(|(partition, first)| Entry::Trim { partition, first }),
            );
        }
        match entries.is_empty() {
            true => Ok(()),
            false => self.control(entries),
        }
    }

    /// Bytes that live in each segment but the one that is written; open transactions keep theirs whole.
    fn living(&self) -> BTreeMap<u64, u64> {
        let sealed: Vec<(u64, u64)> = {
            let segments = self.segments.read();
            let newest = segments.keys().next_back().copied();
            (segments.values())
                .filter(|s| Some(s.number) != newest)
                .map(|s| (s.number, s.size))
                .collect()
        };
        let mut live: BTreeMap<u64, u64> = sealed.iter().map(|(n, _)| (*n, 0)).collect();
        let open: HashSet<u64> = (self.open.lock().values())
            .flat_map(|parts| parts.values().flatten().map(|i| i.segment))
            .collect();
        for p in self.all_partitions() {
            for item in &p.index.read().items {
                if let Some(bytes) = live.get_mut(&item.segment) {
                    // An item without bytes would still be an item.
                    *bytes += u64::from(item.bytes).max(1);
                }
            }
        }
        for (number, size) in sealed {
            if open.contains(&number) {
                live.insert(number, size);
            }
        }
        live
    }

    /// Drops segments in which nothing lives.
    fn drop_dead(&self) -> Result<(), LogError> {
        let dead: Vec<Entry> = (self.living().into_iter())
            .filter(|(_, bytes)| *bytes == 0)
            .map(|(segment, _)| Entry::Dropped { segment })
            .collect();
        match dead.is_empty() {
            true => Ok(()),
            false => self.control(dead),
        }
    }

    /// Copies the records of one segment forward, if that is worth it: at most half of it lives, and all full
    /// segments together hold more dead bytes than living ones and one segment more. So dead bytes stay below
    /// half of the disk's, and each byte freed costs at most one byte written.
    fn copy_forward(&self) -> Result<bool, LogError> {
        let live = self.living();
        let size = self.options.segment_bytes;
        // Segments of other sizes count as they are: one that was made for a single large frame is full of it.
        let sizes: BTreeMap<u64, u64> = (self.segments.read().iter())
            .map(|(number, segment)| (*number, segment.size))
            .collect();
        let size_of = |number: &u64| sizes.get(number).copied().unwrap_or(size);
        let living: u64 = live.values().sum();
        let all: u64 = live.keys().map(size_of).sum();
        let dead = all.saturating_sub(living);
        let Some((number, bytes)) = live.into_iter().min_by_key(|(number, bytes)| (*bytes, *number)) else {
            return Ok(false);
        };
        if bytes * 2 > size_of(&number) || dead <= living + size {
            return Ok(false);
        }
        let Some(segment) = self.segments.read().get(&number).cloned() else {
            return Ok(false);
        };
        tracing::debug!(
            event = "log_copying",
            segment = number,
            bytes,
            "copying what lives in a segment forward"
        );
        for partition in self.all_partitions() {
            self.copy_partition(&partition, &segment)?;
        }
        Ok(true)
    }

    fn copy_partition(&self, partition: &Partition, segment: &Segment) -> Result<(), LogError> {
        let items: Vec<Item> = (partition.index.read().items.iter())
            .filter(|i| i.segment == segment.number)
            .copied()
            .collect();
        let most = COPY.min(self.options.max_frame / 2);
        let mut held: Vec<(SectionHead, Bytes)> = Vec::new();
        let mut bytes = 0;
        for item in items {
            let from = u64::from(item.at);
            sections(
                self.journal,
                segment,
                partition.number,
                &item,
                from,
                &mut |_, head, raw| {
                    if bytes > 0 && bytes + raw.len() > most {
                        self.copy_job(std::mem::take(&mut held))?;
                        bytes = 0;
                    }
                    if let Some((head, raw)) = clip(&head, raw, &item) {
                        bytes += raw.len();
                        held.push((head, raw));
                    }
                    Ok(ControlFlow::Continue(()))
                },
            )?;
        }
        self.copy_job(held)
    }

    fn copy_job(&self, sections: Vec<(SectionHead, Bytes)>) -> Result<(), LogError> {
        if sections.is_empty() {
            return Ok(());
        }
        let (tell, told) = mpsc::sync_channel(1);
        self.enqueue_bulk(Job::Carry(
            sections,
            Box::new(move |result| {
                // The care thread waits for it.
                let _ = tell.send(result);
            }),
        ));
        told.recv().unwrap_or(Err(LogError::Closed)).map(|_| ())
    }

    /// Segments whose drop is durable: no reader finds them any more, and their files may be used again once
    /// the last reader that still looks at one is gone.
    pub(super) fn release(&self, dropped: &[u64]) {
        let mut segments = self.segments.write();
        let gone: Vec<_> = dropped.iter().filter_map(|n| segments.remove(n)).collect();
        drop(segments);
        self.spares.lock().limbo.extend(gone);
        self.care.nudge();
    }

    /// Sees to it that files for the next segments are there, and takes new records again once they are.
    pub(super) fn spares(&self) {
        let _alone = self.caring.lock();
        self.reuse();
        let wanted = self.options.reserve + 1;
        while !self.care.ending() && self.failed.get().is_none() {
            let mut spares = self.spares.lock();
            if spares.ready.len() >= wanted {
                break;
            }
            let slot = spares.next_slot;
            spares.next_slot += 1;
            drop(spares);
            let size = self.options.segment_bytes;
            let mut pace = Pace::new(self.options.zero_rate);
            let made = self.disk.allocate(&slot_path(&self.dir, slot), size, size, |n| {
                pace.spend(n);
                !self.care.ending()
            });
            match made {
                Ok(Some(file)) => self.spares.lock().ready.push_back(Spare {
                    slot,
                    file: Arc::new(file),
                }),
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(event = "log_no_spare", %error, "cannot prepare a spare segment");
                    break;
                }
            }
        }
        let enough = self.spares.lock().ready.len() > self.options.reserve;
        if enough && self.full.lock().take().is_some() {
            tracing::info!(
                event = "log_room_again",
                "there is room again; new records are taken"
            );
        }
    }

    /// Turns dropped segments that nobody reads any more into spares, or gives their room back.
    fn reuse(&self) {
        let mut spares = self.spares.lock();
        let limbo = std::mem::take(&mut spares.limbo);
        for segment in limbo {
            match Arc::try_unwrap(segment) {
                Err(still_read) => spares.limbo.push(still_read),
                Ok(s) => {
                    let right = s.size == self.options.segment_bytes;
                    if right && spares.ready.len() < self.options.reserve + KEEP {
                        spares.ready.push_back(Spare {
                            slot: s.slot,
                            file: s.file,
                        });
                    } else if let Err(error) = std::fs::remove_file(&s.path) {
                        tracing::warn!(event = "log_file_left", path = %s.path.display(), %error, "cannot remove a segment");
                    }
                }
            }
        }
    }
}

/// The part of a section that an item still covers, as a section to be copied.
fn clip(head: &SectionHead, bytes: &[u8], item: &Item) -> Option<(SectionHead, Bytes)> {
    let (from, to) = (head.base.max(item.base), head.end().min(item.end));
    if from >= to {
        return None;
    }
    let ends = records(head, bytes);
    let (mut start, mut end) = (0, 0);
    for raw in ends {
        if raw.offset < from {
            start = raw.end;
        }
        if raw.offset < to {
            end = raw.end;
        }
    }
    let copied = Bytes::copy_from_slice(bytes.get(start..end)?);
    let head = SectionHead {
        origin: Origin::Carried,
        base: from,
        count: (to - from) as u32,
        len: copied.len() as u32,
        ..*head
    };
    Some((head, copied))
}

/// Holds a background writer to a rate, so that the commits beside it stay quick.
struct Pace {
    started: Instant,
    spent: u64,
    /// Bytes a second; 0: as fast as it goes.
    rate: u64,
}

impl Pace {
    fn new(rate: u64) -> Self {
        Self {
            started: Instant::now(),
            spent: 0,
            rate,
        }
    }
    fn spend(&mut self, bytes: usize) {
        if self.rate == 0 {
            return;
        }
        self.spent += bytes as u64;
        let due = Duration::from_secs_f64(self.spent as f64 / self.rate as f64);
        std::thread::sleep(due.saturating_sub(self.started.elapsed()));
    }
}
