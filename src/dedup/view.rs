//! What look-ups see, and how they search it: memory tables, then buckets, newest first.

use super::DedupError;
use super::Found;
use super::block::Row;
use super::bucket::{Bucket, prefix};
use super::directory::Directory;
use super::filter::{Filter, Probe};
use super::manifest::RunMeta;
use super::memtable::Memtable;
use super::sealed::Sealed;
use super::store::Shared;
use crate::core::ledger::fold::FinishedState;
use crate::core::types::{MessageId, RoutePartition, Time};
use bytes::Bytes;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::Arc;

/// A memory table, the run it becomes and the bucket it belongs to.
pub(super) struct Mem {
    pub run: u32,
    pub bucket: Arc<Bucket>,
    pub table: RwLock<Memtable>,
}

/// Runs that one filter stands for.
#[derive(Clone)]
pub(super) struct Group {
    pub filter: Arc<Filter>,
    /// Newest first.
    pub runs: Vec<RunMeta>,
}

/// A bucket as look-ups see it.
#[derive(Clone)]
pub(super) enum BucketView {
    /// It takes records, or waits to be sealed.
    Live(Live),
    /// It is over, and stands in a plain file.
    Sealed(Arc<Sealed>),
}

/// A bucket in sled.
#[derive(Clone)]
pub(super) struct Live {
    pub bucket: Arc<Bucket>,
    /// Newest first.
    pub groups: Vec<Group>,
    /// Held by every view that names the bucket: once it is sealed and nobody else holds this, sled may go.
    pub pin: Arc<()>,
}

impl BucketView {
    /// Its number.
    pub(super) fn id(&self) -> u32 {
        match self {
            BucketView::Live(live) => live.bucket.id,
            BucketView::Sealed(sealed) => sealed.id,
        }
    }

    /// Its span of ledger time.
    pub(super) fn span(&self) -> (Time, Time) {
        match self {
            BucketView::Live(live) => (live.bucket.from, live.bucket.to),
            BucketView::Sealed(sealed) => (sealed.from, sealed.to),
        }
    }

    /// The bucket, if it is in sled.
    pub(super) fn live(&self) -> Option<&Live> {
        match self {
            BucketView::Live(live) => Some(live),
            BucketView::Sealed(_) => None,
        }
    }
}

/// Everything that can be asked, newest first.
#[derive(Clone, Default)]
pub(super) struct View {
    pub mems: Vec<Arc<Mem>>,
    pub buckets: Vec<BucketView>,
    /// Directories of sealed buckets; those that are in none are asked one by one.
    pub directories: Vec<Arc<Directory>>,
}

impl View {
    /// The directory of a sealed bucket, and the bucket's bit in it.
    fn directory_of(&self, bucket: u32) -> Option<(usize, u8)> {
        let column = |d: &Arc<Directory>| d.buckets().iter().position(|&b| b == bucket);
        let mut all = self.directories.iter().enumerate();
        all.find_map(|(n, d)| Some((n, 1u8 << column(d)?)))
    }
}

/// Route partitions by the index that records carry.
#[derive(Default)]
pub(super) struct Routes {
    list: Vec<RoutePartition>,
    index: HashMap<RoutePartition, u32>,
}

impl Routes {
    /// The route partition of an index.
    pub(super) fn at(&self, index: u32) -> Option<RoutePartition> {
        self.list.get(index as usize).copied()
    }
    /// The index of a route partition.
    pub(super) fn index(&self, at: RoutePartition) -> Option<u32> {
        self.index.get(&at).copied()
    }
    /// Its index; the next one where it is new.
    pub(super) fn insert(&mut self, at: RoutePartition) -> u32 {
        *self.index.entry(at).or_insert_with(|| {
            self.list.push(at);
            self.list.len() as u32 - 1
        })
    }
    /// The form in which they stand in the manifest.
    pub(super) fn to_manifest(&self) -> Vec<(String, u32)> {
        self.list
            .iter()
            .map(|r| (format!("{:x}", r.route.0), r.partition))
            .collect()
    }
}

impl Shared {
    /// One pass of a look-up. False: a bucket went meanwhile, and the answers do not count.
    pub(super) fn look(
        &self,
        at: RoutePartition,
        ids: &[MessageId],
        out: &mut Vec<Option<Found>>,
    ) -> Result<bool, DedupError> {
        out.clear();
        out.resize(ids.len(), None);
        let Some(route) = self.routes.read().index(at) else {
            return Ok(true);
        };
        self.look_for(ids, |i, row| {
            if row.route == route {
                out[i as usize] = found(at, row);
            }
        })
    }

    /// The same, whichever routes the IDs are of: gives the newest row of each that has one.
    pub(super) fn look_for(
        &self,
        ids: &[MessageId],
        mut answer: impl FnMut(u32, &Row<'_>),
    ) -> Result<bool, DedupError> {
        let shared = self;
        let view = shared.view.read().clone();
        let probes: Vec<Probe> = ids.iter().map(Probe::of).collect();
        let mut open: Vec<u32> = (0..ids.len() as u32).collect();
        for mem in &view.mems {
            let table = mem.table.read();
            if table.len() == 0 {
                continue;
            }
            open.retain(|&i| match table.get(&ids[i as usize], probes[i as usize].hash) {
                Some(row) => {
                    answer(i, &row);
                    false
                }
                None => true,
            });
        }
        let mut maybe: Vec<u32> = vec![0; open.len()];
        // What the directory at hand says of each ID.
        let mut said: (Option<usize>, Vec<u8>) = (None, Vec::new());
        for bucket in &view.buckets {
            let live = match bucket {
                BucketView::Live(live) => live,
                BucketView::Sealed(sealed) => {
                    let Some((directory, bit)) = view.directory_of(sealed.id) else {
                        let ask = |i: u32| {
                            let found = sealed.find(&ids[i as usize], |row| answer(i, row));
                            found.map(Some)
                        };
                        let may_hold = |i: u32| sealed.may_hold(&probes[i as usize]);
                        ask_filter(&mut open, &mut maybe, may_hold, ask)?;
                        continue;
                    };
                    if said.0 != Some(directory) {
                        said = (Some(directory), vec![0; ids.len()]);
                        let directory = &view.directories[directory];
                        for &i in &open {
                            said.1[i as usize] = directory.may_hold(&probes[i as usize]);
                        }
                    }
                    let ask = |i: u32| {
                        if !sealed.may_hold(&probes[i as usize]) {
                            return Ok(Some(false));
                        }
                        let found = sealed.find(&ids[i as usize], |row| answer(i, row));
                        found.map(Some)
                    };
                    ask_filter(&mut open, &mut maybe, |i| said.1[i as usize] & bit != 0, ask)?;
                    continue;
                }
            };
            for group in &live.groups {
                let ask = |i: u32| {
                    let (id, probe) = (&ids[i as usize], &probes[i as usize]);
                    shared.in_group(&live.bucket, group, (id, probe), None, |row| answer(i, row))
                };
                let may_hold = |i: u32| group.filter.may_hold(&probes[i as usize]);
                if !ask_filter(&mut open, &mut maybe, may_hold, ask)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Looks for an ID in a group's runs, those after `after` only; gives the newest record to `take`. None: the
    /// bucket is gone.
    pub(super) fn in_group(
        &self,
        bucket: &Arc<Bucket>,
        group: &Group,
        (id, probe): (&MessageId, &Probe),
        after: Option<u32>,
        mut take: impl FnMut(&Row<'_>),
    ) -> Result<Option<bool>, DedupError> {
        bucket.with(&self.env, |opened| {
            for run in &group.runs {
                if after.is_some_and(|after| run.seq <= after) {
                    break;
                }
                if group.runs.len() > 1 && !bucket.may_hold(opened, run.seq, probe) {
                    continue;
                }
                let Some(bytes) = bucket.block(opened, run.seq, prefix(id.head(), run.bits))? else {
                    continue;
                };
                let block = bucket.parse(&bytes)?;
                if let Some(i) = block.find(id) {
                    take(&block.row(i).map_err(|e| bucket.block_damage(e))?);
                    return Ok(true);
                }
            }
            Ok(false)
        })
    }

    /// Whether anything newer than this run says something of the ID.
    pub(super) fn hidden(&self, view: &View, run: u32, id: &MessageId) -> Result<bool, DedupError> {
        let probe = Probe::of(id);
        if view
            .mems
            .iter()
            .take_while(|m| m.run > run)
            .any(|m| m.table.read().get(id, probe.hash).is_some())
        {
            return Ok(true);
        }
        for bucket in &view.buckets {
            let live = match bucket {
                BucketView::Live(live) => live,
                BucketView::Sealed(sealed) => {
                    if sealed.run <= run {
                        return Ok(false);
                    }
                    if sealed.may_hold(&probe) && sealed.find(id, |_| ())? {
                        return Ok(true);
                    }
                    continue;
                }
            };
            for group in &live.groups {
                if group.runs.first().is_none_or(|r| r.seq <= run) {
                    return Ok(false);
                }
                if group.filter.may_hold(&probe)
                    && self.in_group(&live.bucket, group, (id, &probe), Some(run), |_| ())? == Some(true)
                {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

/// Asks one filter about all that is still open, and where it lets an ID through, what stands behind it; takes what
/// was answered out of `open`. False: what stands behind it is gone.
#[inline]
fn ask_filter(
    open: &mut Vec<u32>,
    maybe: &mut [u32],
    may_hold: impl Fn(u32) -> bool,
    mut ask: impl FnMut(u32) -> Result<Option<bool>, DedupError>,
) -> Result<bool, DedupError> {
    // No branch in here: what misses the cache is fetched for several IDs at once.
    let mut hits = 0;
    for &i in open.iter() {
        maybe[hits] = i;
        hits += usize::from(may_hold(i));
    }
    let mut resolved = false;
    for i in &mut maybe[..hits] {
        match ask(*i)? {
            Some(true) => resolved = true,
            Some(false) => *i = u32::MAX,
            None => return Ok(false),
        }
    }
    if resolved {
        // Both lists rise: one pass takes out what was answered.
        let mut answered = maybe[..hits].iter().filter(|&&i| i != u32::MAX).peekable();
        open.retain(|i| answered.next_if_eq(&i).is_none());
    }
    Ok(true)
}

/// A row as the answer of a look-up; none if it says that the ID was forgotten.
pub(super) fn found(at: RoutePartition, row: &Row<'_>) -> Option<Found> {
    let state = match row.state {
        1 => FinishedState::Delivered,
        2 => FinishedState::Dead,
        3 => FinishedState::Skipped,
        4 => FinishedState::Parked,
        5 => FinishedState::Marked,
        6 => FinishedState::Waiting,
        _ => return None,
    };
    Some(Found {
        at,
        id: row.id,
        state,
        when: Time::from_millis(u64::from(row.when) * 1_000),
        status: row.status,
        attempts: row.attempts,
        offset: row.offset,
        ledger: row.ledger,
        readable: Bytes::copy_from_slice(row.readable),
    })
}
