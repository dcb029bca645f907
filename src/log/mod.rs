//! The log: partitioned topics, durable atomic batches, retention. One trait, two implementations (embedded here,
//! Kafka next), one conformance suite (`conformance`).
//!
//! An append is durable when its callback says so, and never before. Reads see only what is durable.

pub mod batch;
pub mod conformance;
pub mod embedded;

use crate::core::record::Record;
use crate::core::types::{Offset, Time, TopicId};
pub use batch::Batch;
use std::path::PathBuf;
use std::time::Duration;

/// A topic-partition, numbered by the log for as long as it is open: an index, not an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartitionId(pub u32);

/// What a topic is made with. Changing retention later is an update through [`Log::create_topic`].
#[derive(Clone, Debug, PartialEq)]
pub struct TopicSpec {
    /// Number of partitions, at least 1. It never changes afterwards.
    pub partitions: u32,
    /// Records older than this may go, once every reader that matters has passed them ([`Log::allow_trim`]).
    pub retention: Option<Duration>,
    /// At most so many bytes per topic are kept, under the same condition.
    pub retention_bytes: Option<u64>,
}

/// A topic as it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct TopicMeta {
    /// Its name.
    pub name: String,
    /// Which incarnation of that name.
    pub id: TopicId,
    /// Its settings.
    pub spec: TopicSpec,
    /// Its partitions in order.
    pub partitions: Vec<PartitionId>,
}

/// First offset still readable and next offset to be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// First offset still readable.
    pub first: Offset,
    /// One past the last durable record.
    pub next: Offset,
}

/// What an append became: the base offset given in each partition of the batch, in the batch's order.
#[derive(Clone, Debug, PartialEq)]
pub struct Appended {
    /// Partition and offset of the batch's first record there.
    pub bases: Vec<(PartitionId, Offset)>,
}

/// Called once, on a thread of the log, when an append is durable or has failed for good. Must not block.
pub type Done = Box<dyn FnOnce(Result<Appended, LogError>) + Send>;

/// Figures of the log since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LogStats {
    /// Commits made durable.
    pub commits: u64,
    /// Bytes written by them.
    pub bytes: u64,
    /// Time spent in write and sync, in microseconds.
    pub sync_us: u64,
    /// Segments on disk.
    pub segments: u64,
    /// Bytes of those segments.
    pub disk_bytes: u64,
    /// Bytes of memory that tell where records are.
    pub index_bytes: u64,
}

/// Partitioned, durable topics. All methods may be called from any thread.
pub trait Log: Send + Sync + 'static {
    /// Makes a topic, or updates the retention of the one that is there. Another number of partitions is an error.
    fn create_topic(&self, name: &str, spec: &TopicSpec) -> Result<TopicMeta, LogError>;
    /// The topic of this name, if there is one.
    fn topic(&self, name: &str) -> Option<TopicMeta>;
    /// All topics, by name; internal ones begin with two underscores.
    fn topics(&self) -> Vec<TopicMeta>;
    /// Deletes a topic; the same name made again is another incarnation.
    fn delete_topic(&self, name: &str) -> Result<(), LogError>;
    /// First and next offset of a partition.
    fn bounds(&self, partition: PartitionId) -> Result<Bounds, LogError>;
    /// Reads durable records from `from` on, until `max_bytes` of them are in `out` (at least one, if there is
    /// one). Returns the offset to go on at. Reading below the first offset is [`LogError::OutOfRange`].
    fn read(
        &self,
        partition: PartitionId,
        from: Offset,
        max_bytes: usize,
        out: &mut Vec<Record>,
    ) -> Result<Offset, LogError>;
    /// Told the next offset whenever it has moved.
    fn watch(&self, partition: PartitionId) -> tokio::sync::watch::Receiver<Offset>;
    /// Appends a batch atomically: all of it is durable, or none. `done` is called in the order of the calls.
    fn append(&self, batch: Batch, done: Done);
    /// Begins a transaction larger than a batch: parts are written as they come and are invisible to every
    /// reader until [`LogTransaction::commit`]; dropped without it, they never were. Blocks the caller.
    fn begin(&self) -> Result<Box<dyn LogTransaction>, LogError>;
    /// The last committed offset of a consumer group in a partition (batches carry them: [`Batch::commit_offset`]).
    fn committed(&self, group: &str, partition: PartitionId) -> Option<Offset>;
    /// First record at or after this time, or the next offset.
    fn offset_at(&self, partition: PartitionId, time: Time) -> Result<Offset, LogError>;
    /// Records before this offset are needed by nobody: retention may take them when their time has come.
    fn allow_trim(&self, partition: PartitionId, before: Offset);
    /// Drops records before this offset now, whatever their age (the ledger's own trim).
    fn trim(&self, partition: PartitionId, before: Offset) -> Result<(), LogError>;
    /// Figures since opening.
    fn stats(&self) -> LogStats;
    /// Why no new records are taken at present (no room on the disk), if so.
    fn refuses(&self) -> Option<String>;
    /// Makes everything durable, waits for the last callback, and closes. Later appends fail.
    fn close(&self) -> Result<(), LogError>;
}

/// A transaction of many parts. See [`Log::begin`].
pub trait LogTransaction: Send {
    /// Writes one part. Several parts may be on their way to the disk.
    fn append(&mut self, batch: Batch) -> Result<(), LogError>;
    /// Makes all parts visible at once, durably, together with `last` (for instance a registry record).
    fn commit(self: Box<Self>, last: Batch) -> Result<Appended, LogError>;
}

/// What can go wrong at the log. Variants by what the caller would do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    /// Another process has the folder open.
    #[error("the log in `{0}` is in use by another process; stop it, or use its admin port", path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// There is no room for a new segment: intake stops, outcomes still fit. Try again when there is room.
    #[error("no room for a new segment in `{0}`: {detail}", path.display())]
    NoRoom {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        detail: String,
    },
    /// A write or sync inside preallocated room failed: the process must end (never a retry on the same file).
    #[error("cannot write the log in `{0}`: {detail}; the node must stop, nothing after the last commit counts", path.display())]
    Failed {
        /// The file.
        path: PathBuf,
        /// What the system said.
        detail: String,
    },
    /// A bad frame with a valid one behind it, or a damaged catalogue: never cut off silently.
    #[error("the log file `{0}` is damaged at byte {at}: {detail}; restore it from a backup", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where.
        at: u64,
        /// What does not fit.
        detail: String,
    },
    /// Opening or preparing a file failed.
    #[error("cannot open `{0}`: {detail}", path.display())]
    Open {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        detail: String,
    },
    /// Its folder is on a disk, or has rights, that allow no writing.
    #[error("cannot write to `{0}`: {detail}; opening a log writes to it, also only to look at it: copy the node's folder to where it can be written (cp -a), and name the copy as node.data", path.display())]
    ReadOnly {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        detail: String,
    },
    /// No such topic.
    #[error("no topic `{0}`")]
    NoTopic(String),
    /// The topic exists with other settings.
    #[error("topic `{topic}` has {has} partitions, {wanted} were asked for; the number cannot change")]
    Partitions {
        /// The topic.
        topic: String,
        /// What it has.
        has: u32,
        /// What was asked for.
        wanted: u32,
    },
    /// The offset is not (or no longer) there.
    #[error("offset {wanted} is outside {first}..{next}")]
    OutOfRange {
        /// The offset asked for.
        wanted: Offset,
        /// First readable.
        first: Offset,
        /// Next to be given.
        next: Offset,
    },
    /// One batch or record is larger than a frame may be.
    #[error("a batch of {bytes} bytes is larger than the limit of {limit}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// More waits to be written than the log holds in memory: keep the records and try again.
    #[error("{waiting} bytes wait to be written; the log takes no more than {limit} at once")]
    Busy {
        /// Bytes waiting.
        waiting: usize,
        /// The bound.
        limit: usize,
    },
    /// The log is closed, or closing.
    #[error("the log is closed")]
    Closed,
}
