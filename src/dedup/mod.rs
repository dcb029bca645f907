//! The dedup store: every finished message ID, found by ID. It answers "was this sent?" (I2).
//!
//! It is a *view* of the ledger: fed with [`StoreOp`]s in ledger order, it can always be built again. What it must
//! never do is forget quietly; so whatever is doubtful at opening is moved aside and reported, and the caller
//! feeds the ledger from [`DedupStore::watermark`] on.
//!
//! Words: a **memory table** takes records until it is full (or its bucket is over) and becomes one **run**:
//! records sorted by ID, packed into **blocks** of some hundreds, each block one entry of sled. Runs belong to a
//! **bucket**, a span of ledger time with a sled folder of its own, because removing the folder is the only way
//! sled gives back disk and memory. **Filters** say "never recorded" without a look at sled: one for each run, and
//! one for each **group** of up to sixteen runs, which is asked first. Newer records hide older ones; `forget` is such a
//! record.
//!
//! ```text
//! DIR/LOCK                 locked (flock) while a process has the store open
//! DIR/MANIFEST             which buckets and runs count, watermark, ledger, routes   (manifest.rs)
//! DIR/tail-<run>           records of the memory table that a sync made durable, and how far the ledger is taken
//!                          with them: the manifest vouches for runs alone                (tail.rs)
//! DIR/bucket-<n>/          one sled folder: `db`, `conf`, `snap.*`, `blobs/`
//!                filters   filters of its runs and groups                            (filter.rs)
//! DIR/sealed-<n>           a bucket that is over, instead of its sled folder            (sealed.rs)
//! DIR/DAMAGED              damage that was met: the next opening refuses the store
//! DIR/damaged-<n>/         what was moved aside last
//!
//! sled key   run u32 BE | first bits of the ID, u16 BE   ->  block                   (block.rs)
//!            run u32 BE                                  ->  blocks u32 LE | records u32 LE; the run's last write
//! ```
//!
//! Keys rise with every spill: sled's leaves fill one after the other and are not touched again. sled's `flush` is
//! no fsync, so `db` and blobs are synced here before the manifest names a run. A kill inside sled's own open can
//! leave `snap.*.generating` behind, which it later takes for a snapshot: such files are removed first.
//!
//! A bucket is over when a record, or the clock, is beyond its span; or, where a clock that was ahead has put its span into the
//! future, when the ledger shows that it has been open for two spans ([`age`]). It notes the ledger offset at which it
//! closed, from which its age counts. Its span is for people, and no promise: clocks are set.
//!
//! A bucket that is over is **sealed** in the background: each ID once, sorted, in one plain file with one filter.
//! `forget` and `mark` never touch it: they are records of the present bucket, which hide older ones.
//!
//! Neighbours: the lane (or restore) feeds it; `PartitionActor` looks up batches; the admin API lists. Threads:
//! one spills, one seals; look-ups run on any thread and wait for none of them, but for a closed bucket that could
//! not be sealed yet to open.
//!
//! After a restart: everything before the watermark is there: before the manifest's in runs, before the tail's in runs
//! and in its whole frames. A tail that is cut, damaged or gone therefore only brings the watermark back. What came
//! later is fed again; feeding again what is already there does no harm as long as it is fed to its end.

pub mod age;
mod block;
mod bucket;
mod directory;
mod feed;
mod filter;
mod load;
mod manifest;
mod memtable;
mod scan;
mod seal;
mod sealed;
#[cfg(test)]
mod sealed_tests;
mod spill;
mod store;
mod tail;
#[cfg(test)]
mod tests;
mod view;

use crate::core::ledger::fold::Finished;
use crate::core::types::{Offset, RoutePartition, Time};
use std::path::PathBuf;
use std::time::Duration;

pub use crate::core::ledger::fold::StoreOp;
pub use manifest::FORMAT;
pub use scan::IdFilter;
pub use store::DedupStore;

/// What the store remembers of an ID. Times are kept to the second.
pub type Found = Finished;

/// How far the ledger is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// The next offset: everything before it.
    pub next: Offset,
    /// Checksum of the entry before it, by which a ledger that lost entries and grew again is told from the one that
    /// was; 0 if it is not known.
    pub entry: u32,
}

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct DedupOptions {
    /// Identity of the ledger it is a view of. A store of another ledger is moved aside.
    pub ledger: u128,
    /// Span of ledger time of one bucket. Longer spans: fewer filters to ask; shorter ones: finer expiry.
    pub bucket: Duration,
    /// Cache of the present bucket, bytes, as sled counts it. As large as the bucket on disk (some 40 B an ID) it
    /// makes look-ups of present IDs five times as fast; sled may hold more than it is set to.
    pub cache: u64,
    /// Cache of each older bucket that is not sealed yet and had to be opened again, bytes.
    pub old_cache: u64,
    /// How many older buckets may be open at once while they wait to be sealed; further ones hold only filters in
    /// memory, and a look-up that a filter lets through (one absent ID in 150) opens and closes them by turns.
    pub open_old: usize,
    /// Records of a memory table, about 60 bytes each; at most three tables are held.
    pub memtable: usize,
    /// Bytes of a block, about. Sixteen of them must stay below 128 KiB, or sled writes a file for each leaf.
    pub block: usize,
    /// Whether readable IDs are kept of all messages (their length more on disk each), or only of those an
    /// operator looks for: dead, parked, waiting.
    pub readable: bool,
    /// An open of one bucket that takes longer counts as damage.
    pub open_limit: Duration,
}

impl DedupOptions {
    /// The defaults, for the view of this ledger.
    pub fn new(ledger: u128) -> Self {
        Self {
            ledger,
            bucket: Duration::from_secs(86_400),
            cache: 64 << 20,
            old_cache: 4 << 20,
            open_old: 4,
            memtable: 1 << 18,
            block: 6 << 10,
            readable: true,
            open_limit: Duration::from_secs(60),
        }
    }
}

/// What opening found.
#[derive(Debug)]
pub struct OpenReport {
    /// Set: the store is empty and must be fed from the start of the ledger.
    pub rebuild: Option<Rebuild>,
    /// Where the damaged or foreign store was moved.
    pub moved_to: Option<PathBuf>,
    /// What was put right on the way, for the log.
    pub repaired: Vec<String>,
    /// How long it took.
    pub took: Duration,
}

/// Why a store must be built again from the ledger.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rebuild {
    /// There was none: new, or deleted.
    #[error("there is no store")]
    Missing,
    /// It is not what was written.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// It is the view of another ledger.
    #[error("it belongs to the ledger {0}")]
    OtherLedger(String),
    /// It has another format.
    #[error("it has format {0}, this version writes {FORMAT}")]
    Format(u32),
}

/// What can go wrong at the store.
#[derive(Debug, thiserror::Error)]
pub enum DedupError {
    /// Another process has it open: ask that one.
    #[error("the dedup store in `{0}` is in use by another process; stop it, or use its admin port", .path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// The system refused something; may be tried again.
    #[error("cannot {doing} `{0}`", .path.display())]
    Io {
        /// What was to be done.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not what was written. No look-up can be trusted: [`DedupStore::reset`], and feed the ledger again.
    #[error("the dedup store in `{0}` is damaged: {why}; it must be built again from the ledger", .path.display())]
    Damaged {
        /// The folder.
        path: PathBuf,
        /// What does not fit.
        why: String,
    },
    /// Both waiting memory tables are full and cannot be written. The operations were not taken; try again.
    #[error("the dedup store takes nothing more: {why}")]
    Backlog {
        /// Why the last spill failed.
        why: String,
    },
    /// The bucket takes new records: it cannot go, and nothing can be carried out of it.
    #[error("bucket {0} is the present one")]
    Present(u32),
    /// Buckets go oldest first: a later one may hide what an older one says.
    #[error("bucket {0} is not the oldest one")]
    NotOldest(u32),
    /// No such bucket.
    #[error("there is no bucket {0}")]
    NoBucket(u32),
}

impl DedupError {
    /// Whether the store is as good as before, and the same may be tried again: there is no room at present, say.
    pub fn passes(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::Backlog { .. } | Self::InUse { .. })
    }
}

/// A bucket as it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct BucketInfo {
    /// Its number: older buckets have lower ones.
    pub id: u32,
    /// Start of its span of ledger time.
    pub from: Time,
    /// End of its span.
    pub to: Time,
    /// The ledger offset at which it closed: all its records are said before that. None while it is open, or not known.
    pub closed: Option<Offset>,
    /// Whether new records go into it.
    pub present: bool,
    /// Whether it is in sled, and its folder is open.
    pub open: bool,
    /// Whether it is over and stands in a plain file.
    pub sealed: bool,
    /// Records written to it. An ID that was recorded twice, or forgotten, counts each time, until it is sealed.
    pub records: u64,
    /// Records by state, as numbered by `FinishedState`; 0 counts forgotten ones.
    pub states: [u64; 7],
    /// Records by route partition, forgotten ones included.
    pub routes: Vec<(RoutePartition, u64)>,
    /// Runs; a sealed one is one.
    pub runs: usize,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Bytes of filters in memory.
    pub filter_bytes: u64,
}

/// The store as it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct DedupStats {
    /// Buckets, oldest first.
    pub buckets: Vec<BucketInfo>,
    /// Records in memory tables, not in any bucket yet.
    pub in_memory: u64,
    /// Memory tables that wait to be written.
    pub waiting_tables: usize,
    /// Bytes of filters in memory.
    pub filter_bytes: u64,
    /// Caches that sled was asked to stay within, for all open buckets, bytes.
    pub cache_bytes: u64,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Everything before it is durable here.
    pub watermark: Offset,
    /// Everything before it was fed.
    pub fed: Offset,
    /// Runs written since opening.
    pub spills: u64,
    /// Longest of them.
    pub longest_spill: Duration,
    /// Why the last spill failed, while that lasts.
    pub refuses: Option<String>,
    /// Buckets that are over and not sealed yet.
    pub unsealed: usize,
    /// Why the last attempt to seal one failed, while that lasts. They are asked in sled until then.
    pub seal_refuses: Option<String>,
}
