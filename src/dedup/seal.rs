//! The thread that seals buckets: what a bucket that is over holds in sled, run by run, becomes one sorted file.
//!
//! Records are merged stripe by stripe: a stripe is a range of IDs, the one of the smallest blocks there are, so that
//! at most one block of each run is held at a time. Of an ID recorded twice the newest record stays. Look-ups go on in
//! sled until the manifest calls the bucket sealed; then the folder goes, once no view can ask it any more.
//!
//! It can be broken off anywhere: a file that the manifest does not name is removed at the next opening, and begun
//! anew. Where the file cannot be written (no room, say) the bucket stays in sled, and it is tried again.

use super::DedupError;
use super::block::{Block, Row};
use super::bucket::{Bucket, prefix};
use super::directory::{COLUMNS, Directory, WORTH};
use super::feed::Queue;
use super::manifest::{self, RunMeta, Tally};
use super::sealed::{self, SealWriter, Sealed};
use super::store::{Shared, io_error};
use super::view::{BucketView, Live, View};
use crate::core::types::MessageId;
use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes of a sealed block, about: what a look-up of a present ID reads and checks.
const BLOCK: usize = 4 << 10;
/// Bytes a record takes in a block, about, without its readable ID.
const RECORD: usize = 26;
/// Blocks of a run that are read together: as many as stand in one leaf of sled.
const AHEAD: usize = 16;
/// Blocks that are held read ahead, over all runs.
const HELD: usize = 2_048;
/// After a failure it is tried again so much later.
const AGAIN: Duration = Duration::from_secs(30);
/// How often it is asked whether anybody still holds a view of what was sealed.
const STILL_ASKED: Duration = Duration::from_millis(50);
/// The thread stands behind others by so much ("nice"): whoever delivers goes first.
const NICE: i32 = 10;

/// Starts the thread.
pub(super) fn start(shared: Arc<Shared>) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("dedup-seal".into())
        .spawn(move || {
            // On Linux this is about the calling thread; where it is refused, sealing is as quick as others.
            let _ = rustix::process::setpriority_process(None, NICE);
            direct(&shared);
            let mut failed = None;
            while let Some(live) = next(&shared, failed) {
                let sealing = || shared.watched(|| seal(&shared, &live));
                let error = match catch_unwind(AssertUnwindSafe(sealing)) {
                    Ok(Ok(())) => None,
                    Ok(Err(e)) => Some(super::spill::describe(&e)),
                    Err(_) => Some("sealing panicked".to_owned()),
                };
                failed = error.is_some().then(Instant::now);
                if let Some(error) = &error {
                    // It takes room that is needed elsewhere; if even this fails, the next try writes it anew.
                    let _ = sealed::discard(&shared.dir, live.bucket.id);
                    tracing::warn!(
                        event = "seal_failed",
                        bucket = live.bucket.id,
                        error,
                        "a bucket of delivered IDs cannot be sealed: it stays in sled, where look-ups take longer"
                    );
                }
                shared.queue.lock().seal_error = error;
                direct(&shared);
            }
        })
}

/// Waits for a bucket that is over and that nobody writes any more. None: the store closes.
fn next(shared: &Shared, failed: Option<Instant>) -> Option<Live> {
    loop {
        let left = drop_retired(shared).then_some(STILL_ASKED);
        let mut queue = shared.queue.lock();
        if queue.stop {
            return None;
        }
        let wait = failed.map(|at| AGAIN.saturating_sub(at.elapsed()));
        if wait.is_none_or(|wait| wait.is_zero())
            && let Some(live) = over(shared, &queue)
        {
            return Some(live);
        }
        match wait.filter(|w| !w.is_zero()).into_iter().chain(left).min() {
            Some(wait) => _ = shared.changed.wait_for(&mut queue, wait),
            None => shared.changed.wait(&mut queue),
        }
    }
}

/// The newest such bucket: its folder is open still, and it is asked the most.
fn over(shared: &Shared, queue: &Queue) -> Option<Live> {
    let view = shared.view.read();
    let present = shared.env.present.load(Ordering::Relaxed);
    let written = |id: u32| id == present || queue.frozen.iter().any(|m| m.bucket.id == id);
    let mut live = view.buckets.iter().filter_map(BucketView::live);
    live.find(|l| !written(l.bucket.id)).cloned()
}

/// Makes directories of the sealed buckets, as far as they are not there yet: from the oldest on, so that full ones
/// stay as they are while buckets are added.
fn direct(shared: &Shared) {
    let view = shared.view.read().clone();
    let sealed = view.buckets.iter().rev().filter_map(|b| match b {
        BucketView::Sealed(sealed) => Some(sealed),
        BucketView::Live(_) => None,
    });
    let sealed: Vec<_> = sealed.collect();
    let stays = |d: &&Arc<Directory>| {
        let there = |id: &u32| sealed.iter().any(|s| s.id == *id);
        d.buckets().len() == COLUMNS && d.buckets().iter().any(there)
    };
    let mut directories: Vec<Arc<Directory>> = view.directories.iter().filter(stays).cloned().collect();
    let missing = |s: &&&Arc<Sealed>| !directories.iter().any(|d| d.buckets().contains(&s.id));
    let rest: Vec<_> = sealed.iter().filter(missing).collect();
    for group in rest.chunks(COLUMNS).filter(|g| g.len() >= WORTH) {
        let named: Vec<_> = group.iter().map(|s| (s.id, s.filter())).collect();
        let Some(directory) = Directory::of(&named, || shared.queue.lock().stop) else {
            return;
        };
        directories.push(Arc::new(directory));
    }
    let mut view = shared.view.write();
    let mut next = View::clone(&view);
    next.directories = directories;
    *view = Arc::new(next);
}

/// Removes sled folders that nobody can ask any more. True: some are left.
fn drop_retired(shared: &Shared) -> bool {
    let mut retired = shared.retired.lock();
    for live in retired.extract_if(.., |l| Arc::strong_count(&l.pin) == 1) {
        if let Err(error) = live.bucket.remove() {
            // It is closed, and goes at the next opening.
            tracing::warn!(event = "sealed_left", bucket = live.bucket.id, %error, "the folder of a sealed bucket cannot be removed");
        }
    }
    !retired.is_empty()
}

/// Seals one bucket. Breaks off without an error where the bucket goes, or the store closes.
fn seal(shared: &Shared, live: &Live) -> Result<(), DedupError> {
    let bucket = &live.bucket;
    let failed = |e| io_error("seal", &sealed::path(&shared.dir, bucket.id))(e);
    let runs = bucket.runs();
    let Some(newest) = runs.last().copied() else {
        return Ok(());
    };
    let ids = runs.iter().map(|r| u64::from(r.ids)).sum();
    let mut writer = SealWriter::begin(&shared.dir, bucket.id, ids).map_err(failed)?;
    let mut tally = Tally::default();
    let mut merge = Merge::new(shared, bucket, &runs);
    while let Some(stripe) = merge.next_stripe()? {
        for rows in stripe.blocks() {
            rows.iter().for_each(|r| tally.count(r.state, r.route));
            writer.block(rows).map_err(failed)?;
        }
        if shared.queue.lock().stop {
            return sealed::discard(&shared.dir, bucket.id).map_err(failed);
        }
    }
    if merge.gone {
        return sealed::discard(&shared.dir, bucket.id).map_err(failed);
    }
    merge.check_all_read()?;
    let unnamed = writer.end(newest.seq, bucket.from, bucket.to).map_err(failed)?;
    let (ids, blocks) = unnamed.size();
    let run = RunMeta {
        seq: newest.seq,
        bits: 0,
        blocks: blocks as u32,
        ids: u32::try_from(ids).map_err(|_| bucket.damaged("it has more IDs than can be"))?,
    };

    let _form = shared.forms.lock();
    let mut manifest = shared.manifest.lock();
    let mut next = manifest.clone();
    let Some(meta) = next.buckets.iter_mut().find(|b| b.id == bucket.id) else {
        // It expired, or the store was reset.
        return sealed::discard(&shared.dir, bucket.id).map_err(failed);
    };
    let (states, routes) = tally.end();
    meta.runs = vec![run];
    meta.states = states;
    meta.routes = routes.into_iter().collect();
    meta.sealed = true;
    let sealed = Arc::new(unnamed.name(&shared.dir).map_err(failed)?);
    manifest::store(&shared.dir, &next).map_err(io_error("write the manifest in", &shared.dir))?;
    *manifest = next;
    shared.retired.lock().push(live.clone());
    let mut view = shared.view.write();
    let mut next = View::clone(&view);
    for seen in &mut next.buckets {
        if seen.id() == bucket.id {
            *seen = BucketView::Sealed(sealed.clone());
        }
    }
    *view = Arc::new(next);
    Ok(())
}

/// One run, read from its first block to its last.
struct Cursor<'a> {
    run: &'a RunMeta,
    /// Blocks read and not used up, with their numbers.
    ahead: VecDeque<(u16, sled::IVec)>,
    /// Number of the next block to read, beyond all when they are read.
    next: u32,
    /// Rows of the first of `ahead` that were taken.
    taken: usize,
    blocks: u32,
    ids: u64,
}

/// The runs of a bucket, merged.
struct Merge<'a> {
    shared: &'a Shared,
    bucket: &'a Arc<Bucket>,
    /// Newest first.
    cursors: Vec<Cursor<'a>>,
    /// First bits of an ID that number its stripe.
    bits: u8,
    stripe: u32,
    /// How many blocks of a run are read at once.
    read: usize,
    /// The bucket expired meanwhile.
    gone: bool,
}

/// Rows of one stripe, sorted, each ID once.
struct Stripe<'a> {
    rows: Vec<Row<'a>>,
}

impl Stripe<'_> {
    /// Its rows in pieces of a block each.
    fn blocks(&self) -> impl Iterator<Item = &[Row<'_>]> {
        let text: usize = self.rows.iter().map(|r| r.readable.len()).sum();
        let bytes = self.rows.len() * RECORD + text;
        let each = self.rows.len().div_ceil(bytes.div_ceil(BLOCK).max(1)).max(1);
        let mut rest = &self.rows[..];
        std::iter::from_fn(move || {
            let mut n = each.min(rest.len());
            // IDs with the same head stand in one block.
            while n > 0 && n < rest.len() && rest[n].id.head() == rest[n - 1].id.head() {
                n += 1;
            }
            let (block, more) = rest.split_at(n);
            rest = more;
            (n > 0).then_some(block)
        })
    }
}

impl<'a> Merge<'a> {
    fn new(shared: &'a Shared, bucket: &'a Arc<Bucket>, runs: &'a [RunMeta]) -> Self {
        let cursor = |run| Cursor {
            run,
            ahead: VecDeque::new(),
            next: 0,
            taken: 0,
            blocks: 0,
            ids: 0,
        };
        Self {
            shared,
            bucket,
            cursors: runs.iter().rev().map(cursor).collect(),
            bits: runs.iter().map(|r| r.bits.min(16)).max().unwrap_or(0),
            stripe: 0,
            read: (HELD / runs.len().max(1)).clamp(1, AHEAD),
            gone: false,
        }
    }

    /// The next range of IDs. None: that was the last one, or the bucket is gone.
    fn next_stripe(&mut self) -> Result<Option<Stripe<'_>>, DedupError> {
        let stripe = self.stripe;
        if stripe >> self.bits != 0 {
            return Ok(None);
        }
        self.stripe += 1;
        for cursor in &mut self.cursors {
            let wanted = stripe >> (self.bits - cursor.run.bits.min(16));
            while cursor.ahead.front().is_some_and(|(n, _)| u32::from(*n) < wanted) {
                cursor.ahead.pop_front();
                cursor.taken = 0;
            }
            if cursor.ahead.is_empty() && cursor.next <= u32::from(u16::MAX) {
                let (seq, from) = (cursor.run.seq, cursor.next as u16);
                let read = self.bucket.with(&self.shared.env, |opened| {
                    self.bucket.blocks_from(opened, seq, from, self.read)
                })?;
                let Some(read) = read else {
                    self.gone = true;
                    return Ok(None);
                };
                cursor.next = match read.last() {
                    Some((last, _)) if read.len() == self.read => u32::from(*last) + 1,
                    _ => u32::from(u16::MAX) + 1,
                };
                cursor.blocks += read.len() as u32;
                cursor.ahead.extend(read);
            }
        }
        let mut blocks: Vec<(Block<'_>, Range<usize>)> = Vec::with_capacity(self.cursors.len());
        for cursor in &mut self.cursors {
            let wanted = stripe >> (self.bits - cursor.run.bits.min(16));
            let front = cursor.ahead.front().filter(|(n, _)| u32::from(*n) == wanted);
            let Some((_, bytes)) = front else { continue };
            let block = self.bucket.parse(bytes)?;
            let mut end = cursor.taken;
            while end < block.len() && u32::from(prefix(block.id(end).head(), self.bits)) == stripe {
                end += 1;
            }
            cursor.ids += (end - cursor.taken) as u64;
            blocks.push((block, cursor.taken..end));
            cursor.taken = end;
        }
        // Newer runs come first: of equal IDs the first one stays.
        let mut order: Vec<(u64, u32, u32)> = Vec::new();
        for (at, (block, rows)) in blocks.iter().enumerate() {
            order.extend(rows.clone().map(|i| (block.id(i).head(), at as u32, i as u32)));
        }
        let id = |&(_, at, i): &(u64, u32, u32)| -> MessageId { blocks[at as usize].0.id(i as usize) };
        order.sort_unstable_by(|a, b| {
            a.0.cmp(&b.0)
                .then_with(|| id(a).cmp(&id(b)))
                .then_with(|| a.1.cmp(&b.1))
        });
        order.dedup_by(|later, first| later.0 == first.0 && id(later) == id(first));
        let rows = order.iter().map(|&(_, at, i)| {
            let row = blocks[at as usize].0.row(i as usize);
            row.map_err(|e| self.bucket.block_damage(e))
        });
        Ok(Some(Stripe {
            rows: rows.collect::<Result<_, _>>()?,
        }))
    }

    /// What sled gave must be all that was written: what it lost without a word must not be lost for good.
    fn check_all_read(&self) -> Result<(), DedupError> {
        for Cursor { run, blocks, ids, .. } in &self.cursors {
            if (*blocks, *ids) != (run.blocks, u64::from(run.ids)) {
                let why = format!(
                    "run {} has {blocks} blocks with {ids} records, not {} with {}",
                    run.seq, run.blocks, run.ids
                );
                return Err(self.bucket.damaged(why));
            }
        }
        Ok(())
    }
}
