//! What an open log knows: topics, partitions and where their records stand, segments, spares, failures.
//!
//! All of it is rebuilt at opening from catalogue, footers and the newest segment's frames, through the same
//! [`Shared::apply`] that the writer calls once a frame is durable. Lock order: a partition's index before the
//! segments; nothing else is held together.

use super::catalogue::Catalogue;
use super::disk::Disk;
use super::frame::{Bases, Entry, Origin, TopicEntry};
use super::index::{Item, PartitionIndex, SegmentItems};
use super::segment::Segment;
use super::writer::Queue;
use super::{EmbeddedOptions, retention::CareSignal};
use crate::core::types::Offset;
use crate::log::{LogError, PartitionId};
use parking_lot::{Condvar, Mutex, RwLock};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::sync::watch;

/// Where a reader stopped, so that the next read need not start at the item's beginning.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hint {
    pub offset: Offset,
    pub segment: u64,
    /// Where the item begins: items of carried and of new records may cover the same frames, so a place says
    /// nothing without the item it belongs to.
    pub base: Offset,
    pub at: u64,
}

/// One partition. Its number is its [`PartitionId`] and stays the same in the journal.
#[derive(Debug)]
pub(super) struct Partition {
    pub number: u32,
    pub topic: String,
    pub index: RwLock<PartitionIndex>,
    pub watch: watch::Sender<Offset>,
    /// Retention may take records before this.
    pub allow: AtomicU64,
    pub gone: AtomicBool,
    /// As many as routes that read one partition in turn usually are.
    pub hints: Mutex<[Hint; 4]>,
}

/// One topic.
#[derive(Debug)]
pub(super) struct Topic {
    pub entry: TopicEntry,
    pub partitions: Vec<Arc<Partition>>,
}

/// Topics by name, partitions by number.
#[derive(Debug, Default)]
pub(super) struct Topics {
    pub by_name: BTreeMap<String, Arc<Topic>>,
    pub partitions: Vec<Option<Arc<Partition>>>,
    pub next_partition: u32,
}

/// The parts of a transaction that is not committed: items that count from 0 in each partition.
pub(super) type Parts = HashMap<u32, Vec<Item>>;

/// A file that may become the next segment.
#[derive(Debug)]
pub(super) struct Spare {
    pub slot: u32,
    pub file: Arc<File>,
}

/// Files that hold nothing.
#[derive(Debug, Default)]
pub(super) struct Spares {
    pub ready: VecDeque<Spare>,
    /// Dropped segments that a reader may still be looking at.
    pub limbo: Vec<Arc<Segment>>,
    pub next_slot: u32,
}

/// Counters behind [`crate::log::LogStats`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub commits: AtomicU64,
    pub bytes: AtomicU64,
    pub sync_us: AtomicU64,
}

/// What all threads of an open log share.
pub(super) struct Shared {
    pub dir: PathBuf,
    pub options: EmbeddedOptions,
    pub journal: u128,
    pub disk: Disk,
    pub topics: RwLock<Topics>,
    pub segments: RwLock<BTreeMap<u64, Arc<Segment>>>,
    pub groups: RwLock<HashMap<String, HashMap<u32, Offset>>>,
    /// Transactions with parts on disk and no commit yet.
    pub open: Mutex<HashMap<u64, Parts>>,
    /// Committed ones whose parts lie where they were written.
    pub commits: Mutex<BTreeMap<u64, Bases>>,
    pub next_tx: AtomicU64,
    pub spares: Mutex<Spares>,
    pub queue: Mutex<Queue>,
    /// Wakes the writer.
    pub wake: Condvar,
    /// Wakes transactions that wait for room in the queue.
    pub room: Condvar,
    pub care: CareSignal,
    /// Held by whoever does the log's care: see [`Shared::turn`].
    pub caring: Mutex<()>,
    pub failed: OnceLock<LogError>,
    pub full: Mutex<Option<String>>,
    pub counters: Counters,
    /// Held until the log is closed, and its threads have ended; the system gives it back when the process ends, however
    /// it ends.
    pub lock: Mutex<Option<File>>,
}

impl Shared {
    pub(super) fn new(dir: &Path, options: EmbeddedOptions, journal: u128) -> Self {
        Self {
            dir: dir.to_owned(),
            disk: Disk::new(options.fault.clone()),
            options,
            journal,
            topics: RwLock::default(),
            segments: RwLock::default(),
            groups: RwLock::default(),
            open: Mutex::default(),
            commits: Mutex::default(),
            next_tx: AtomicU64::new(1),
            spares: Mutex::default(),
            queue: Mutex::default(),
            wake: Condvar::new(),
            room: Condvar::new(),
            care: CareSignal::default(),
            caring: Mutex::default(),
            failed: OnceLock::new(),
            full: Mutex::default(),
            counters: Counters::default(),
            lock: Mutex::default(),
        }
    }

    /// The error that poisoned the log, if one did.
    pub(super) fn check(&self) -> Result<(), LogError> {
        self.failed.get().map_or(Ok(()), |e| Err(e.clone()))
    }

    /// A write or sync failed: from here on everybody gets this error.
    pub(super) fn poison(&self, path: &Path, cause: &io::Error) -> LogError {
        let error = LogError::Failed {
            path: path.to_owned(),
            detail: cause.to_string(),
        };
        tracing::error!(event = "log_failed", path = %path.display(), %cause, "the log cannot write; it takes nothing any more");
        self.failed.get_or_init(|| error).clone()
    }

    pub(super) fn no_room(&self, detail: String) -> LogError {
        LogError::NoRoom {
            path: self.dir.clone(),
            detail,
        }
    }

    /// A partition that is there.
    pub(super) fn partition(&self, id: PartitionId) -> Result<Arc<Partition>, LogError> {
        self.partition_number(id.0)
            .ok_or_else(|| LogError::NoTopic(format!("#{}", id.0)))
    }

    pub(super) fn partition_number(&self, number: u32) -> Option<Arc<Partition>> {
        self.topics
            .read()
            .partitions
            .get(number as usize)
            .cloned()
            .flatten()
    }

    pub(super) fn all_partitions(&self) -> Vec<Arc<Partition>> {
        self.topics.read().partitions.iter().flatten().cloned().collect()
    }

    /// Takes in the state at the beginning of the newest segment.
    pub(super) fn load(&self, catalogue: &Catalogue) {
        self.next_tx.store(catalogue.next_tx, Ordering::Release);
        for (topic, bounds) in &catalogue.topics {
            self.put_topic(topic);
            for (number, (first, next)) in topic.partitions.iter().zip(bounds) {
                if let Some(p) = self.partition_number(*number) {
                    let mut index = p.index.write();
                    (index.first, index.next) = (*first, *next);
                }
            }
        }
        let mut topics = self.topics.write();
        topics.next_partition = topics.next_partition.max(catalogue.next_partition);
        drop(topics);
        let mut groups = self.groups.write();
        for (group, partition, next) in &catalogue.groups {
            groups.entry(group.clone()).or_default().insert(*partition, *next);
        }
        drop(groups);
        self.commits.lock().extend(catalogue.commits.iter().cloned());
    }

    /// The state now, for the beginning of the next segment.
    pub(super) fn catalogue(&self, next_frame: u64) -> Catalogue {
        let topics = self.topics.read();
        let mut used = HashSet::new();
        let mut out = Catalogue {
            next_frame,
            next_tx: self.next_tx.load(Ordering::Acquire),
            next_partition: topics.next_partition,
            segments: self
                .segments
                .read()
                .values()
                .map(|s| (s.number, s.slot))
                .collect(),
            ..Catalogue::default()
        };
        for topic in topics.by_name.values() {
            let bounds = topic.partitions.iter().map(|p| {
                let index = p.index.read();
                used.extend(index.items.iter().map(|i| i.tx).filter(|tx| *tx != 0));
                (index.first, index.next)
            });
            let bounds = bounds.collect();
            out.topics.push((topic.entry.clone(), bounds));
        }
        drop(topics);
        for (group, offsets) in self.groups.read().iter() {
            out.groups
                .extend(offsets.iter().map(|(p, next)| (group.clone(), *p, *next)));
        }
        let mut commits = self.commits.lock();
        commits.retain(|tx, _| used.contains(tx));
        out.commits = commits.iter().map(|(tx, bases)| (*tx, bases.clone())).collect();
        out
    }

    fn put_topic(&self, entry: &TopicEntry) {
        let mut topics = self.topics.write();
        let partitions = match topics.by_name.get(&entry.name) {
            Some(held) if held.entry.id == entry.id => held.partitions.clone(),
            _ => {
                let made = entry.partitions.iter().map(|number| {
                    Arc::new(Partition {
                        number: *number,
                        topic: entry.name.clone(),
                        index: RwLock::default(),
                        watch: watch::Sender::new(0),
                        allow: AtomicU64::new(0),
                        gone: AtomicBool::new(false),
                        hints: Mutex::default(),
                    })
                });
                made.collect::<Vec<_>>()
            }
        };
        for partition in &partitions {
            let at = partition.number as usize;
            if topics.partitions.len() <= at {
                topics.partitions.resize(at + 1, None);
            }
            topics.partitions[at] = Some(Arc::clone(partition));
            topics.next_partition = topics.next_partition.max(partition.number + 1);
        }
        let topic = Topic {
            entry: entry.clone(),
            partitions,
        };
        topics.by_name.insert(entry.name.clone(), Arc::new(topic));
    }

    fn delete_topic(&self, id: crate::core::types::TopicId) {
        let mut topics = self.topics.write();
        let Some(name) = (topics.by_name.values())
            .find(|t| t.entry.id == id)
            .map(|t| t.entry.name.clone())
        else {
            return;
        };
        let Some(topic) = topics.by_name.remove(&name) else {
            return;
        };
        for partition in &topic.partitions {
            partition.gone.store(true, Ordering::Release);
            topics.partitions[partition.number as usize] = None;
        }
        drop(topics);
        let gone: HashSet<u32> = topic.entry.partitions.iter().copied().collect();
        for offsets in self.groups.write().values_mut() {
            offsets.retain(|p, _| !gone.contains(p));
        }
    }

    /// Takes in an item of a footer.
    pub(super) fn place(&self, partition: u32, origin: Origin, item: Item) {
        match origin {
            Origin::Batch | Origin::Carried => self.put_item(partition, item),
            Origin::Part(tx) => {
                let commits = self.commits.lock();
                let Some(bases) = commits.get(&tx) else {
                    drop(commits);
                    let mut open = self.open.lock();
                    return open
                        .entry(tx)
                        .or_default()
                        .entry(partition)
                        .or_default()
                        .push(item);
                };
                let base = bases
                    .iter()
                    .find(|(p, ..)| *p == partition)
                    .map(|(_, base, _)| *base);
                drop(commits);
                if let Some(base) = base {
                    self.put_item(partition, item.committed(base));
                }
            }
        }
    }

    fn put_item(&self, partition: u32, item: Item) {
        if let Some(p) = self.partition_number(partition) {
            let mut index = p.index.write();
            index.put(item);
            let first = index.first;
            index.trim(first);
        }
    }

    /// Takes in a durable frame that stands at `at..until` of a segment: from here on readers see it. Returns the
    /// segments it drops.
    pub(super) fn apply(
        &self,
        entries: &[Entry],
        segment: u64,
        (at, until): (u64, u64),
        items: &mut SegmentItems,
    ) -> Vec<u64> {
        let mut dropped = Vec::new();
        for entry in entries {
            match entry {
                Entry::Section(s) => {
                    let item = items.add(s, segment, at as u32, until as u32);
                    match s.origin {
                        Origin::Part(tx) => {
                            let mut open = self.open.lock();
                            let held = open.entry(tx).or_default().entry(s.partition).or_default();
                            match held.last_mut().filter(|i| i.base == item.base) {
                                Some(last) => *last = item,
                                None => held.push(item),
                            }
                        }
                        Origin::Carried => self.put_item(s.partition, item),
                        Origin::Batch => {
                            if let Some(p) = self.partition_number(s.partition) {
                                let mut index = p.index.write();
                                index.next = index.next.max(s.end());
                                let first = index.first;
                                index.put(item);
                                if item.base < first {
                                    index.trim(first);
                                }
                            }
                        }
                    }
                }
                Entry::Group {
                    group,
                    partition,
                    next,
                } => {
                    let mut groups = self.groups.write();
                    match groups.get_mut(group) {
                        Some(offsets) => offsets.insert(*partition, *next),
                        None => groups.entry(group.clone()).or_default().insert(*partition, *next),
                    };
                }
                Entry::Topic(topic) => self.put_topic(topic),
                Entry::Deleted { id } => self.delete_topic(*id),
                Entry::Trim { partition, first } => {
                    if let Some(p) = self.partition_number(*partition) {
                        p.index.write().trim(*first);
                    }
                }
                Entry::Dropped { segment } => dropped.push(*segment),
                Entry::Commit { tx, bases } => self.commit(*tx, bases),
            }
        }
        dropped
    }

    fn commit(&self, tx: u64, bases: &[(u32, Offset, u64)]) {
        // First into the index, then out of the open ones: whoever looks for what lives looks the other way round.
        let parts = self.open.lock().get(&tx).cloned().unwrap_or_default();
        self.commits.lock().insert(tx, bases.to_vec());
        for (partition, base, count) in bases {
            let Some(p) = self.partition_number(*partition) else {
                continue;
            };
            let mut index = p.index.write();
            index.next = index.next.max(base + count);
            for item in parts.get(partition).into_iter().flatten() {
                index.put(item.committed(*base));
            }
        }
        self.open.lock().remove(&tx);
    }

    /// Tells those who watch the partitions of a frame.
    pub(super) fn tell(&self, entries: &[Entry]) {
        let tell = |number: u32| {
            if let Some(p) = self.partition_number(number) {
                let next = p.index.read().next;
                p.watch
                    .send_if_modified(|told| std::mem::replace(told, next) != next);
            }
        };
        for entry in entries {
            match entry {
                Entry::Section(s) if s.origin == Origin::Batch => tell(s.partition),
                Entry::Commit { bases, .. } => bases.iter().for_each(|(p, ..)| tell(*p)),
                _ => {}
            }
        }
    }
}
