//! The thread that writes full memory tables as runs, oldest first, and groups their filters.
//!
//! A spill that fails (no room, say) is tried again every second with the same run number; its table stays in
//! memory and is asked by look-ups until the run counts. After a failure the bucket's folder is opened anew: sled
//! refuses everything after its first error.

use super::block::{Row, encode};
use super::bucket::prefix;
use super::filter::{self, Filter, Span};
use super::manifest::{self, BucketMeta, RunMeta, STATES};
use super::memtable::Memtable;
use super::store::{Shared, io_error};
use super::view::{BucketView, Group, Mem, View};
use super::{DedupError, tail};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Runs of one group. More make its filter larger at once; fewer leave more filters to ask.
pub(super) const GROUP: usize = 8;
/// Bytes a record takes in a block, about, without its readable ID.
const RECORD: usize = 26;

/// The group that is being filled: look-ups ask its runs one by one until it is whole.
struct Growing {
    bucket: u32,
    runs: Vec<RunMeta>,
    filter: Filter,
    room: u64,
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
        })
}

fn describe(error: &DedupError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
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
    let order = table.sorted();
    let mut filter = Filter::for_ids(order.len() as u64);
    let mut states = [0u64; STATES];
    let mut routes: BTreeMap<u32, u64> = BTreeMap::new();
    let mut last = (u32::MAX, 0u64);
    for &place in &order {
        let row = table.at(place);
        filter.add(&row.id);
        states[usize::from(row.state).min(STATES - 1)] += 1;
        if row.route != last.0 {
            *routes.entry(last.0).or_default() += last.1;
            last = (row.route, 0);
        }
        last.1 += 1;
    }
    *routes.entry(last.0).or_default() += last.1;
    routes.remove(&u32::MAX);
    let bits = bits_for(
        order.len() * RECORD + table.text_bytes(),
        shared.env.options.block,
    );
    let blocks = block_count(&table, &order, bits);
    let run = RunMeta {
        seq: mem.run,
        bits,
        blocks,
        ids: order.len() as u32,
    };
    let bucket = &mem.bucket;
    bucket.with(&shared.env, |opened| {
        bucket.write_run(
            opened,
            &run,
            Blocks {
                table: &table,
                order: &order,
                bits,
            },
        )
    })?;
    let span = Span {
        first: run.seq,
        last: run.seq,
        ids: u64::from(run.ids),
    };
    // Without it the filter is built again at the next opening: not worth failing for.
    let _ = filter::append(&bucket.filters(), span, &filter);
    let upto = table.upto;

    {
        let mut manifest = shared.manifest.lock();
        let mut next = manifest.clone();
        next.watermark = next.watermark.max(upto);
        next.next_run = next.next_run.max(run.seq + 1);
        next.next_bucket = next.next_bucket.max(bucket.id + 1);
        next.routes = shared.routes.read().to_manifest();
        if next.buckets.last().is_none_or(|b| b.id != bucket.id) {
            next.buckets.push(BucketMeta {
                id: bucket.id,
                from: bucket.from.0,
                to: bucket.to.0,
                runs: Vec::new(),
                states: [0; STATES],
                routes: Vec::new(),
            });
        }
        if let Some(meta) = next.buckets.last_mut() {
            meta.runs.push(run);
            meta.states.iter_mut().zip(states).for_each(|(all, n)| *all += n);
            let known = std::mem::take(&mut meta.routes);
            known
                .into_iter()
                .for_each(|(route, n)| *routes.entry(route).or_default() += n);
            meta.routes = routes.into_iter().collect();
        }
        manifest::store(&shared.dir, &next).map_err(io_error("write the manifest in", &shared.dir))?;
        *manifest = next;
    }
    shared.durable.fetch_max(upto, Ordering::Release);
    grow(shared, mem, growing, &run, &table, &order);
    drop(table);
    bucket.add_run(run, filter.clone());
    publish(
        shared,
        mem,
        Group {
            filter: Arc::new(filter),
            runs: vec![run],
        },
    );
    if growing.as_ref().is_some_and(|g| g.runs.len() == GROUP) {
        seal(shared, growing.take());
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
        seal(shared, growing.take());
        bucket.close();
    }
    Ok(())
}

/// How many first bits of the ID number a block, so that blocks are about `block` bytes.
fn bits_for(bytes: usize, block: usize) -> u8 {
    let blocks = bytes.div_ceil(block.max(1)).max(1);
    blocks.next_power_of_two().trailing_zeros().min(16) as u8
}

fn block_count(table: &Memtable, order: &[u32], bits: u8) -> u32 {
    let mut last = None;
    let mut blocks = 0;
    for &place in order {
        let this = prefix(&table.at(place).id, bits);
        blocks += u32::from(last != Some(this));
        last = Some(this);
    }
    blocks
}

/// The blocks of a sorted table.
struct Blocks<'a> {
    table: &'a Memtable,
    order: &'a [u32],
    bits: u8,
}

impl Iterator for Blocks<'_> {
    type Item = (u16, Vec<u8>);
    fn next(&mut self) -> Option<(u16, Vec<u8>)> {
        let first = prefix(&self.table.at(*self.order.first()?).id, self.bits);
        let same = |&&place: &&u32| prefix(&self.table.at(place).id, self.bits) == first;
        let rows: Vec<Row<'_>> = self
            .order
            .iter()
            .take_while(same)
            .map(|&p| self.table.at(p))
            .collect();
        self.order = &self.order[rows.len()..];
        Some((first, encode(&rows)))
    }
}

/// Adds a run to the group that is being filled.
fn grow(
    shared: &Shared,
    mem: &Mem,
    growing: &mut Option<Growing>,
    run: &RunMeta,
    table: &Memtable,
    order: &[u32],
) {
    let fits =
        |g: &Growing| g.bucket == mem.bucket.id && g.room >= u64::from(run.ids) && g.runs.len() < GROUP;
    if growing.as_ref().is_some_and(|g| !fits(g)) {
        seal(shared, growing.take());
    }
    let room = (shared.env.options.memtable.max(order.len()) * GROUP) as u64;
    let group = growing.get_or_insert_with(|| Growing {
        bucket: mem.bucket.id,
        runs: Vec::new(),
        filter: Filter::for_ids(room),
        room,
    });
    order
        .iter()
        .for_each(|&place| group.filter.add(&table.at(place).id));
    group.room = group.room.saturating_sub(u64::from(run.ids));
    group.runs.push(*run);
}

/// Lets look-ups ask the run instead of its table.
fn publish(shared: &Shared, mem: &Arc<Mem>, group: Group) {
    let mut view = shared.view.write();
    let mut next = View::clone(&view);
    next.mems.retain(|m| m.run != mem.run);
    match next.buckets.first_mut() {
        Some(newest) if newest.bucket.id == mem.bucket.id => newest.groups.insert(0, group),
        _ => next.buckets.insert(
            0,
            BucketView {
                bucket: mem.bucket.clone(),
                groups: vec![group],
            },
        ),
    }
    *view = Arc::new(next);
}

/// Puts a group's filter in the place of its runs', for look-ups and in the file.
fn seal(shared: &Shared, growing: Option<Growing>) {
    let Some(Growing {
        bucket,
        mut runs,
        filter,
        ..
    }) = growing
    else {
        return;
    };
    let (Some(first), Some(last)) = (runs.first().copied(), runs.last().copied()) else {
        return;
    };
    if runs.len() < 2 {
        return;
    }
    let ids = runs.iter().map(|r| u64::from(r.ids)).sum();
    let seen = shared
        .view
        .read()
        .buckets
        .iter()
        .find(|b| b.bucket.id == bucket)
        .map(|b| b.bucket.clone());
    let Some(seen) = seen else { return };
    // As for single runs: what the file lacks is built again.
    let _ = filter::append(
        &seen.filters(),
        Span {
            first: first.seq,
            last: last.seq,
            ids,
        },
        &filter,
    );
    runs.reverse();
    let mut view = shared.view.write();
    let mut next = View::clone(&view);
    let Some(seen) = next.buckets.iter_mut().find(|b| b.bucket.id == bucket) else {
        return;
    };
    let inside = |g: &Group| g.runs.iter().all(|r| (first.seq..=last.seq).contains(&r.seq));
    let Some(at) = seen.groups.iter().position(inside) else {
        return;
    };
    seen.groups.retain(|g| !inside(g));
    seen.groups.insert(
        at,
        Group {
            filter: Arc::new(filter),
            runs,
        },
    );
    *view = Arc::new(next);
}

/// After an opening: goes on with the group that was being filled, from the runs' blocks.
fn adopt(shared: &Shared) -> Option<Growing> {
    let view = shared.view.read().clone();
    let newest = view.buckets.first()?;
    let mut runs: Vec<RunMeta> = newest
        .groups
        .iter()
        .take_while(|g| g.runs.len() == 1)
        .take(GROUP - 1)
        .map(|g| g.runs[0])
        .collect();
    runs.reverse();
    let ids: u64 = runs.iter().map(|r| u64::from(r.ids)).sum();
    let room = (shared.env.options.memtable * GROUP) as u64;
    if runs.is_empty() || ids > room {
        return None;
    }
    let mut filter = Filter::for_ids(room);
    let bucket = &newest.bucket;
    // One run at a time: a look-up that must open the folder does not wait for all of them. If one cannot be
    // read, its runs stay as they are, asked one by one.
    for run in &runs {
        let added = catch_unwind(AssertUnwindSafe(|| {
            bucket.with(&shared.env, |opened| {
                bucket.add_to_filter(opened, run, &mut filter)
            })
        }));
        if !matches!(added, Ok(Ok(Some(())))) || shared.queue.lock().stop {
            return None;
        }
    }
    Some(Growing {
        bucket: bucket.id,
        runs,
        filter,
        room: room - ids,
    })
}
