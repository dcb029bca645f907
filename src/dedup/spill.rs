//! The thread that writes full memory tables as runs, oldest first, and groups their filters.
//!
//! A spill that fails (no room, say) is tried again every second with the same run number; its table stays in
//! memory and is asked by look-ups until the run counts. After a failure the bucket's folder is opened anew: sled
//! refuses everything after its first error.

use super::block::{Row, encode};
use super::bucket::{Bucket, prefix};
use super::filter::{self, Filter, Probe, Span};
use super::manifest::{self, BucketMeta, RunMeta, STATES, Tally};
use super::memtable::Memtable;
use super::store::{Shared, io_error};
use super::view::{BucketView, Group, Live, Mem, View};
use super::{DedupError, tail};
use crate::core::in_full::in_full;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Runs of one group. More leave fewer filters to ask, and make a group's filter larger while it is not full.
pub(super) const GROUP: usize = 16;
/// Bytes a record takes in a block, about, without its readable ID.
const RECORD: usize = 26;

/// The group that takes new runs. From its second run on, look-ups ask its filter.
struct Growing {
    bucket: Arc<Bucket>,
    /// Oldest first.
    runs: Vec<RunMeta>,
    filter: Arc<Filter>,
    room: u64,
}

impl Growing {
    fn new(bucket: Arc<Bucket>, room: u64) -> Self {
        Self {
            bucket,
            runs: Vec::new(),
            filter: Arc::new(Filter::for_ids(room)),
            room,
        }
    }

    fn ids(&self) -> u64 {
        self.runs.iter().map(|r| u64::from(r.ids)).sum()
    }

    fn span(&self) -> Option<Span> {
        let (first, last) = (self.runs.first()?, self.runs.last()?);
        (first.seq != last.seq).then(|| Span {
            first: first.seq,
            last: last.seq,
            ids: self.ids(),
        })
    }

    fn group(&self) -> Group {
        Group {
            filter: self.filter.clone(),
            runs: self.runs.iter().rev().copied().collect(),
        }
    }
}

/// Starts the thread.
pub(super) fn start(shared: Arc<Shared>) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("dedup-spill".into())
        .spawn(move || {
            let mut growing = adopt(&shared);
            while let Some(mem) = next(&shared) {
                let began = Instant::now();
                let done = catch_unwind(AssertUnwindSafe(|| spill(&shared, &mem, &mut growing)));
                let error = match done {
                    Ok(Ok(())) => None,
                    Ok(Err(e)) => Some(describe(&e)),
                    Err(_) => Some("a spill panicked".to_owned()),
                };
                if error.is_some() {
                    mem.bucket.close();
                }
                finish(&shared, &mem, error, began.elapsed());
            }
            // Saves building it again from the blocks; what cannot be written is built again.
            if let Some((growing, span)) = growing.as_ref().and_then(|g| Some((g, g.span()?))) {
                let _ = filter::replace(&growing.bucket.part(), span, &growing.filter);
            }
        })
}

/// An error with its cause.
pub(super) fn describe(error: &DedupError) -> String {
    in_full(error)
}

/// Waits for the oldest full table. None: the store closes.
fn next(shared: &Shared) -> Option<Arc<Mem>> {
    let mut queue = shared.queue.lock();
    loop {
        if queue.stop {
            return None;
        }
        if let Some(mem) = queue.frozen.front().cloned() {
            queue.busy = true;
            return Some(mem);
        }
        shared.changed.wait(&mut queue);
    }
}

fn finish(shared: &Shared, mem: &Arc<Mem>, error: Option<String>, took: Duration) {
    let mut queue = shared.queue.lock();
    queue.busy = false;
    queue.error = error;
    if queue.error.is_none() {
        // A reset may have emptied the queue meanwhile.
        if queue.frozen.front().is_some_and(|m| Arc::ptr_eq(m, mem)) {
            queue.frozen.pop_front();
        }
        queue.spills += 1;
        queue.longest = queue.longest.max(took);
        shared.changed.notify_all();
        return;
    }
    shared.changed.notify_all();
    let until = Instant::now() + Duration::from_secs(1);
    while !queue.stop && !queue.frozen.is_empty() {
        if shared.changed.wait_until(&mut queue, until).timed_out() {
            break;
        }
    }
}

fn spill(shared: &Shared, mem: &Arc<Mem>, growing: &mut Option<Growing>) -> Result<(), DedupError> {
    let table = mem.table.read();
    let bucket = &mem.bucket;
    let order = table.sorted();
    let group = take_into(shared, bucket, growing, order.len() as u64);
    let filter = Arc::new(Filter::for_ids(order.len() as u64));
    let bits = bits_for(
        order.len() * RECORD + table.text_bytes(),
        shared.env.options.block,
    );
    let run = RunMeta {
        seq: mem.run,
        bits,
        blocks: 0,
        ids: order.len() as u32,
    };
    let mut blocks = Blocks {
        table: &table,
        order: &order,
        bits,
        block: Vec::new(),
        probes: Vec::new(),
        filters: [&filter, &group.filter],
        tally: Tally::default(),
    };
    let run = bucket.with(&shared.env, |opened| bucket.write_run(opened, run, &mut blocks))?;
    let run = run.ok_or(DedupError::NoBucket(bucket.id))?;
    let (states, routes) = blocks.tally.end();
    let span = Span {
        first: run.seq,
        last: run.seq,
        ids: u64::from(run.ids),
    };
    // Without it the filter is built again at the next opening: not worth failing for.
    let _ = filter::append(&bucket.filters(), span, &filter);
    let upto = table.upto;
    drop(table);

    {
        let mut manifest = shared.manifest.lock();
        let mut next = manifest.clone();
        next.reach(upto);
        next.next_run = next.next_run.max(run.seq + 1);
        next.next_bucket = next.next_bucket.max(bucket.id + 1);
        next.routes = shared.routes.read().to_manifest();
        let (from, to) = (bucket.from.0, bucket.to.0);
        if next.buckets.last().is_none_or(|b| b.id != bucket.id) {
            let (states, routes, runs) = ([0; STATES], Vec::new(), Vec::new());
            next.buckets.push(BucketMeta {
                id: bucket.id,
                from,
                to,
                runs,
                states,
                routes,
                sealed: false,
                closed: None,
            });
        }
        if let Some(meta) = next.buckets.last_mut() {
            meta.add(run, states, routes);
            meta.closed = bucket.closed();
        }
        manifest::store(&shared.dir, &next).map_err(io_error("write the manifest in", &shared.dir))?;
        *manifest = next;
    }
    shared.durable(upto);
    bucket.add_run(run, filter.clone());
    group.runs.push(run);
    group.room = group.room.saturating_sub(u64::from(run.ids));
    let full = group.runs.len() == GROUP;
    let seen = if group.runs.len() == 1 {
        Group {
            filter,
            runs: vec![run],
        }
    } else {
        group.group()
    };
    publish(shared, mem, seen);
    if full {
        end_group(shared, growing.take());
    }
    // A tail that stays behind is not read again: its run number is past.
    let _ = tail::remove(&shared.dir, mem.run);
    let over = shared.env.present.load(Ordering::Relaxed) != bucket.id;
    if over
        && !shared
            .queue
            .lock()
            .frozen
            .iter()
            .skip(1)
            .any(|m| m.bucket.id == bucket.id)
    {
        // It is sealed next, with a filter of its own: this one need not be kept.
        *growing = None;
    }
    Ok(())
}

/// How many first bits of the ID number a block, so that blocks are about `block` bytes.
fn bits_for(bytes: usize, block: usize) -> u8 {
    let blocks = bytes.div_ceil(block.max(1)).max(1);
    blocks.next_power_of_two().trailing_zeros().min(16) as u8
}

/// The blocks of a sorted table; fills its filters and counts its records on the way, since each record is fetched
/// from memory only once.
struct Blocks<'a> {
    table: &'a Memtable,
    /// What is left of the table, sorted.
    order: &'a [(u64, u32)],
    bits: u8,
    /// Rows of the block at hand, and what filters ask of them.
    block: Vec<Row<'a>>,
    probes: Vec<Probe>,
    filters: [&'a Filter; 2],
    tally: Tally,
}

impl Iterator for Blocks<'_> {
    type Item = (u16, Vec<u8>);
    fn next(&mut self) -> Option<(u16, Vec<u8>)> {
        let number = prefix(self.order.first()?.0, self.bits);
        let inside = |&&(head, _): &&(u64, u32)| prefix(head, self.bits) == number;
        let (block, rest) = self.order.split_at(self.order.iter().take_while(inside).count());
        self.order = rest;
        self.table.fetch(block);
        self.block.clear();
        self.block
            .extend(block.iter().map(|&(_, place)| self.table.at(place)));
        self.probes.clear();
        self.probes
            .extend(self.block.iter().map(|row| Probe::of(&row.id)));
        self.filters.iter().for_each(|f| f.add_all(&self.probes));
        self.block
            .iter()
            .for_each(|row| self.tally.count(row.state, row.route));
        Some((number, encode(&self.block)))
    }
}

/// The group that takes a run of so many records of this bucket.
fn take_into<'a>(
    shared: &Shared,
    bucket: &Arc<Bucket>,
    growing: &'a mut Option<Growing>,
    ids: u64,
) -> &'a mut Growing {
    let fits = |g: &Growing| g.bucket.id == bucket.id && g.room >= ids && g.runs.len() < GROUP;
    if growing.as_ref().is_some_and(|g| !fits(g)) {
        end_group(shared, growing.take().filter(|g| g.bucket.id == bucket.id));
    }
    let room = (shared.env.options.memtable as u64).max(ids) * GROUP as u64;
    growing.get_or_insert_with(|| Growing::new(bucket.clone(), room))
}

/// Lets look-ups ask the run instead of its table.
fn publish(shared: &Shared, mem: &Arc<Mem>, group: Group) {
    let mut view = shared.view.write();
    let mut next = View::clone(&view);
    next.mems.retain(|m| m.run != mem.run);
    if next.buckets.first().is_none_or(|b| b.id() != mem.bucket.id) {
        let live = Live {
            bucket: mem.bucket.clone(),
            groups: Vec::new(),
            pin: Arc::default(),
        };
        next.buckets.insert(0, BucketView::Live(live));
    }
    if let Some(BucketView::Live(live)) = next.buckets.first_mut() {
        put_group(live, group);
    }
    *view = Arc::new(next);
}

/// Puts a group in the place of those of its runs.
fn put_group(bucket: &mut Live, group: Group) {
    let (Some(last), Some(first)) = (group.runs.first(), group.runs.last()) else {
        return;
    };
    let span = first.seq..=last.seq;
    let inside = |g: &Group| g.runs.iter().all(|r| span.contains(&r.seq));
    let at = bucket.groups.iter().position(inside).unwrap_or(0);
    bucket.groups.retain(|g| !inside(g));
    bucket.groups.insert(at, group);
}

/// Ends a group: its filter goes into the file, and is made smaller first if it is mostly empty.
fn end_group(shared: &Shared, growing: Option<Growing>) {
    let Some(mut growing) = growing else { return };
    let Some(span) = growing.span() else { return };
    if growing.filter.room() > span.ids * 2 {
        let fitting = Filter::for_ids(span.ids);
        if add_runs(shared, &growing.bucket, &growing.runs, &fitting) {
            growing.filter = Arc::new(fitting);
            show(shared, &growing);
        }
    }
    // As for single runs: what the file lacks is built again.
    let _ = filter::append(&growing.bucket.filters(), span, &growing.filter);
}

fn show(shared: &Shared, growing: &Growing) {
    let mut view = shared.view.write();
    let mut next = View::clone(&view);
    // It may have been sealed meanwhile.
    let seen = next.buckets.iter_mut().find(|b| b.id() == growing.bucket.id);
    if let Some(BucketView::Live(live)) = seen {
        put_group(live, growing.group());
        *view = Arc::new(next);
    }
}

/// Adds runs to a filter from their blocks. False: one could not be read, or the store closes.
fn add_runs(shared: &Shared, bucket: &Arc<Bucket>, runs: &[RunMeta], filter: &Filter) -> bool {
    // One run at a time: a look-up that must open the folder does not wait for all of them.
    runs.iter().all(|run| {
        let add = || bucket.with(&shared.env, |opened| bucket.add_to_filter(opened, run, filter));
        matches!(catch_unwind(AssertUnwindSafe(add)), Ok(Ok(Some(())))) && !shared.queue.lock().stop
    })
}

/// After an opening: goes on with the group that was growing, from its filter if that was kept at the close, else
/// from the blocks; until that is done, look-ups ask its runs one by one.
fn adopt(shared: &Shared) -> Option<Growing> {
    let view = shared.view.read().clone();
    let present = shared.env.present.load(Ordering::Relaxed);
    let newest = view.buckets.first()?.live().filter(|b| b.bucket.id == present)?;
    let bucket = newest.bucket.clone();
    let first = newest.groups.first()?;
    let full = shared.env.options.memtable as u64 * GROUP as u64;
    let runs = |groups: &[Group]| -> Vec<RunMeta> {
        groups
            .iter()
            .rev()
            .flat_map(|g| g.runs.iter().rev().copied())
            .collect()
    };
    let mut growing = if first.runs.len() > 1 {
        let runs = runs(&newest.groups[..1]);
        Growing {
            bucket,
            runs,
            filter: first.filter.clone(),
            room: first.filter.room(),
        }
    } else {
        let loose = newest
            .groups
            .iter()
            .take_while(|g| g.runs.len() == 1)
            .take(GROUP - 1)
            .count();
        let mut growing = Growing::new(bucket, full);
        growing.runs = runs(&newest.groups[..loose]);
        if !add_runs(shared, &growing.bucket, &growing.runs, &growing.filter) {
            return None;
        }
        if growing.runs.len() > 1 {
            show(shared, &growing);
        }
        growing
    };
    growing.room = growing.room.checked_sub(growing.ids())?;
    (growing.runs.len() < GROUP).then_some(growing)
}
