//! Opening: what is read from the disk, what is put right, what is refused and moved aside.

use super::block::Row;
use super::bucket::{Bucket, Env};
use super::filter::{self, Filter};
use super::manifest::{self, Manifest, Unusable, sync_dir};
use super::memtable::Memtable;
use super::sealed::{self, Sealed};
use super::store::io_error;
use super::tail::{self, TailWriter};
use super::view::{BucketView, Group, Live, Mem, Routes, View};
use super::{DedupError, Mark, Rebuild};
use crate::core::types::{Offset, RouteId, RoutePartition, Time};
use parking_lot::RwLock;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What opening read from the disk.
#[derive(Default)]
pub(super) struct Loaded {
    pub manifest: Manifest,
    pub view: View,
    pub active: Option<Arc<Mem>>,
    pub tail: Option<TailWriter>,
    pub routes: Routes,
    pub upto: Mark,
    pub next_run: u32,
    pub next_bucket: u32,
    /// Where the present bucket begins.
    pub began: Offset,
    /// The manifest has changed by that some bucket's end was not known.
    pub stamped: bool,
}

pub(super) fn lock(dir: &Path) -> Result<File, DedupError> {
    use rustix::fs::{FlockOperation, flock};
    let path = dir.join("LOCK");
    let file = crate::files::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(io_error("open", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(DedupError::InUse {
            path: dir.to_path_buf(),
        }),
        Err(e) => Err(io_error("lock", &path)(e.into())),
    }
}

pub(super) enum Refused {
    Rebuild(Rebuild),
    Error(DedupError),
}

impl From<DedupError> for Refused {
    fn from(error: DedupError) -> Self {
        Refused::Error(error)
    }
}

pub(super) fn load(dir: &Path, env: &Env) -> Result<Loaded, Refused> {
    let damaged = |why: String| Refused::Rebuild(Rebuild::Damaged(why));
    match fs::read_to_string(dir.join(DAMAGED)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        why => return Err(damaged(why.unwrap_or_default())),
    }
    let manifest = match manifest::load(dir) {
        Ok(manifest) => manifest,
        Err(Unusable::Missing) => {
            let listed = unlisted(dir, &Manifest::default()).map_err(io_error("read", dir))?;
            let why = if listed.is_empty() {
                Rebuild::Missing
            } else {
                Rebuild::Damaged("there is data, but no manifest".into())
            };
            return Err(Refused::Rebuild(why));
        }
        Err(Unusable::Format(found)) => return Err(Refused::Rebuild(Rebuild::Format(found))),
        Err(Unusable::Damaged(why)) => return Err(damaged(why)),
    };
    if manifest.ledger != format!("{:x}", env.options.ledger) {
        return Err(Refused::Rebuild(Rebuild::OtherLedger(manifest.ledger)));
    }
    clear_unlisted(dir, &manifest).map_err(io_error("clear", dir))?;
    let (run, next_bucket) = (manifest.next_run, manifest.next_bucket);
    let mut loaded = Loaded {
        upto: manifest.mark(),
        next_run: run,
        next_bucket,
        manifest,
        ..Loaded::default()
    };
    for (route, partition) in &loaded.manifest.routes {
        let route = u64::from_str_radix(route, 16).map_err(|e| damaged(format!("route `{route}`: {e}")))?;
        loaded.routes.insert(RoutePartition {
            route: RouteId(route),
            partition: *partition,
        });
    }
    let mut table = Memtable::with_room(0, loaded.upto);
    let routes = &mut loaded.routes;
    let found = tail::read(dir, run, |at, row| {
        table.put(&Row {
            route: routes.insert(at),
            ..row
        })
    })
    .map_err(io_error("read the tail in", dir))?;
    let tail = match found {
        tail::Found::Tail(tail) => {
            if tail.cut > 0 {
                env.repaired.lock().push(format!(
                    "cut {} bytes off the tail, which are no whole frame: what they held is fed again from the ledger",
                    tail.cut
                ));
            }
            Some(tail)
        }
        tail::Found::Headless => {
            let what = "removed a tail whose head is none: what it held is fed again from the ledger";
            env.repaired.lock().push(what.to_owned());
            tail::remove(dir, run).map_err(io_error("remove the tail in", dir))?;
            None
        }
        tail::Found::Nothing => None,
    };
    if let Some((of, least)) = loaded.manifest.carried
        && of == run
        && tail.as_ref().map_or(0, |t| t.valid) < least
    {
        return Err(damaged(
            "what was carried out of an older bucket is missing".into(),
        ));
    }
    if !loaded.manifest.of_runs {
        loaded.upto = of_0_1(&loaded.manifest, tail.as_ref()).ok_or_else(|| {
            damaged("its newest records are missing in part, and its version does not say which".into())
        })?;
        (loaded.manifest.watermark, loaded.manifest.entry) = (0, 0);
        loaded.manifest.of_runs = true;
    }
    let last = loaded.manifest.buckets.last().map(|b| b.id);
    env.present.store(
        tail.as_ref().map(|t| t.of.bucket).or(last).unwrap_or(u32::MAX),
        Ordering::Relaxed,
    );
    for meta in &loaded.manifest.buckets {
        if meta.sealed {
            let (sealed, repaired) = Sealed::open(dir, meta)?;
            if repaired {
                let what = format!("built the filter of the sealed bucket {} again", meta.id);
                env.repaired.lock().push(what);
            }
            let sealed = BucketView::Sealed(Arc::new(sealed));
            loaded.view.buckets.insert(0, sealed);
            continue;
        }
        let bucket = Bucket::new(dir, meta.id, meta.from(), meta.to(), meta.runs.clone());
        bucket.check_there()?;
        if Some(meta.id) == last {
            // The guards of opening are for the folder that will be written.
            bucket.with(env, |_| Ok(()))?;
        }
        let groups = load_groups(env, &bucket, meta)?;
        let live = Live {
            bucket,
            groups,
            pin: Arc::default(),
        };
        loaded.view.buckets.insert(0, BucketView::Live(live));
    }
    let newest = loaded.view.buckets.first();
    let bucket = match (&tail, newest) {
        (Some(t), newest) if newest.is_none_or(|b| b.id() != t.of.bucket) => {
            Some(Bucket::new(dir, t.of.bucket, t.of.from, t.of.to, Vec::new()))
        }
        (_, Some(BucketView::Live(live))) => Some(live.bucket.clone()),
        // Nothing of its successor was durable yet, and a sealed bucket takes nothing more.
        (None, Some(BucketView::Sealed(sealed))) => {
            let span = (env.options.bucket.as_micros() as u64).max(1);
            let end = Time((sealed.to.0 / span + 1) * span);
            env.present.store(next_bucket, Ordering::Relaxed);
            Some(Bucket::new(dir, next_bucket, sealed.to, end, Vec::new()))
        }
        (Some(t), Some(BucketView::Sealed(_))) => {
            return Err(damaged(format!(
                "the tail belongs to the sealed bucket {}",
                t.of.bucket
            )));
        }
        (_, None) => None,
    };
    let present = bucket.as_ref().map_or(u32::MAX, |b| b.id);
    if let Some(bucket) = bucket {
        loaded.next_bucket = next_bucket.max(bucket.id + 1);
        if let Some(t) = &tail {
            loaded.upto = loaded.upto.max(t.upto);
            loaded.tail = Some(TailWriter::again(dir, t).map_err(io_error("open the tail in", dir))?);
        }
        table.tailed = table.len();
        table.upto = loaded.upto;
        let mem = Arc::new(Mem {
            run,
            bucket,
            table: RwLock::new(table),
        });
        loaded.next_run = run + 1;
        loaded.view.mems.push(mem.clone());
        loaded.active = Some(mem);
    }
    loaded.stamped = stamp(&mut loaded.manifest, present, loaded.upto.next);
    loaded.began = loaded.manifest.present_from(present);
    Ok(loaded)
}

/// Notes of every bucket that is over, and does not say where it ended, that it ended here at the latest: it was closed by a
/// version that did not say, or the process was killed before it was written down. True: there was one.
fn stamp(manifest: &mut Manifest, present: u32, upto: Offset) -> bool {
    let mut stamped = false;
    for meta in &mut manifest.buckets {
        if meta.id == present {
            // It takes records again.
            meta.closed = None;
        } else if meta.closed.is_none() && upto > 0 {
            (meta.closed, stamped) = (Some(upto), true);
        }
    }
    stamped
}

/// Up to where a store of 0.1 has everything. Its manifest may have said more than the runs hold, for what stood in the
/// tail file then. So only the frames of that file count: they begin where the runs end. None: nothing can be told; also
/// where a frame is not whole, for what was carried out of an older bucket may have stood in it.
fn of_0_1(manifest: &Manifest, tail: Option<&tail::Tail>) -> Option<Mark> {
    match tail {
        Some(tail) if tail.frames > 0 && tail.cut == 0 => Some(tail.upto),
        _ if manifest.watermark == 0 => Some(Mark::default()),
        _ => None,
    }
}

/// The filters of a bucket: those of groups where they are there, else those of single runs, else built again.
fn load_groups(
    env: &Env,
    bucket: &Arc<Bucket>,
    meta: &manifest::BucketMeta,
) -> Result<Vec<Group>, DedupError> {
    let span = |s: filter::Span| {
        let first = meta.runs.iter().position(|r| r.seq == s.first)?;
        let last = meta.runs.iter().position(|r| r.seq == s.last)?;
        let runs = meta.runs.get(first..=last)?;
        (runs.iter().map(|r| u64::from(r.ids)).sum::<u64>() == s.ids).then_some((first, last))
    };
    let mut found: HashMap<usize, (usize, Filter)> = HashMap::new();
    let whole = |s: filter::Span| s.first != s.last && span(s).is_some();
    for (s, filter) in filter::load(&bucket.part(), whole)
        .into_iter()
        .chain(filter::load(&bucket.filters(), whole))
    {
        if let Some((first, last)) = span(s) {
            found.insert(first, (last, filter));
        }
    }
    let mut groups = Vec::new();
    let mut single = Vec::new();
    let mut at = 0;
    while at < meta.runs.len() {
        let (last, filter) = match found.remove(&at) {
            Some((last, filter)) => (last, Some(filter)),
            None => (at, None),
        };
        let mut runs = meta.runs[at..=last].to_vec();
        runs.reverse();
        if filter.is_none() {
            single.push((groups.len(), runs[0]));
        }
        // A group without a filter gets its run's below; until then this one lets nothing through.
        groups.push(Group {
            filter: Arc::new(filter.unwrap_or_else(|| Filter::for_ids(0))),
            runs,
        });
        at = last + 1;
    }
    let wanted = |s: filter::Span| {
        s.first == s.last
            && single
                .iter()
                .any(|(_, r)| r.seq == s.first && u64::from(r.ids) == s.ids)
    };
    let mut kept: HashMap<u32, Filter> = filter::load(&bucket.filters(), wanted)
        .into_iter()
        .map(|(s, f)| (s.first, f))
        .collect();
    for (group, run) in single {
        let filter = match kept.remove(&run.seq) {
            Some(filter) => filter,
            None => {
                let built = bucket.with(env, |opened| bucket.filter_of(opened, &run))?;
                built.ok_or(DedupError::NoBucket(bucket.id))?
            }
        };
        groups[group].filter = Arc::new(filter);
    }
    groups.reverse();
    Ok(groups)
}

/// Folders, sealed files and tails that the manifest does not know: of a bucket that has expired, or whose first run
/// was not finished; sled's folder of a sealed bucket, and the file of one whose sealing was cut off.
fn unlisted(dir: &Path, manifest: &Manifest) -> io::Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name
            .to_str()
            .and_then(|n| n.strip_prefix("bucket-"))
            .and_then(|n| n.parse::<u32>().ok());
        let counts = |n: u32, sealed: bool| manifest.buckets.iter().any(|b| b.id == n && b.sealed == sealed);
        let sealed = name.to_str().and_then(sealed::bucket_of);
        // Of what is written to be sealed only the finished file may count.
        let named = sealed.is_some_and(|n| entry.path() == sealed::path(dir, n) && counts(n, true));
        if number.is_some_and(|n| !counts(n, false)) || (sealed.is_some() && !named) {
            out.push(entry.path());
        }
    }
    let tails = tail::list(dir)?
        .into_iter()
        .filter(|&run| run != manifest.next_run || manifest.ledger.is_empty());
    out.extend(tails.map(|run| dir.join(format!("tail-{run}"))));
    Ok(out)
}

/// Takes the mark of damage away.
pub(super) fn unmark_damaged(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join(DAMAGED)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

pub(super) fn clear_unlisted(dir: &Path, manifest: &Manifest) -> io::Result<()> {
    for path in unlisted(dir, manifest)? {
        if path.is_dir() {
            fs::remove_dir_all(path)?;
        } else {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

const DAMAGED: &str = "DAMAGED";

/// Notes that damage was met: the next opening refuses the store.
pub(super) fn mark_damaged(dir: &Path, why: &str) -> io::Result<()> {
    let mut file = crate::files::create(&dir.join(DAMAGED))?;
    file.write_all(why.as_bytes())?;
    file.sync_all()?;
    sync_dir(dir)
}

/// Moves everything but the lock into a folder beside it; what was moved there before goes.
pub(super) fn move_aside(dir: &Path) -> io::Result<PathBuf> {
    let mut number = 0;
    let mut names = Vec::new();
    let mut before = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        match name
            .to_str()
            .and_then(|n| n.strip_prefix("damaged-"))
            .and_then(|n| n.parse::<u32>().ok())
        {
            Some(n) => {
                number = number.max(n + 1);
                before.push(name);
            }
            None if name == "LOCK" => {}
            None => names.push(name),
        }
    }
    let aside = dir.join(format!("damaged-{number}"));
    fs::create_dir(&aside)?;
    // While the mark of damage stands, a crash in here changes nothing: it goes last.
    names.sort_by_key(|name| name == DAMAGED);
    for name in names {
        fs::rename(dir.join(&name), aside.join(&name))?;
    }
    for name in before {
        fs::remove_dir_all(dir.join(name))?;
    }
    sync_dir(dir)?;
    Ok(aside)
}
