//! Import: a file into a topic, all of it or nothing, and never the same content twice.
//!
//! Words: the *content* is the file unpacked, in UTF-8; its hash (blake3) and length make it the same file again, under
//! whatever name and packing; the *registry* ([`registry`]) remembers contents; a *reject* is a line that could not be read.
//! Where a file is not one record a line ([`elements`]), its values are numbered instead of its lines.
//!
//! The way of a file, two passes:
//!
//! ```text
//! pass 1   unpack ─► hash ─► registry knows it? done, nothing was written
//! pass 2   thread A: unpack ─► hash ─► cut into pieces ──(bounded)──► thread B: check, place, frame ─► transaction
//!          hash the same as in pass 1? ─► reject file in its place ─► registry asked again ─► commit with its entry
//! ```
//!
//! Two passes, because the message ID of a line without one is made of the content's hash, and because a file that
//! is known must cost neither room in the log nor a transaction that holds segments. Hashing is 30 times faster than
//! importing. What cannot be read twice (stdin, an upload) is spooled first; a slow upload then holds no transaction
//! open either. A file that begins with a whole content imported before has grown since ([`grown`]): its first lines would
//! go out again where they have no message ID, so it is refused then, and either only the rest or all of it can be asked
//! for.
//!
//! Invariants: the records and the registry's entry are one transaction, so a kill at any time leaves both or neither, and
//! the next run does it again (nothing lost, nothing doubled). Memory: a few pieces and one line (I6). Reasons of
//! rejects name places, never contents (I9). At most [`AT_ONCE`] files are read at once.
//!
//! Neighbours: [`crate::log::Log`]; the admin API and the command line call [`Importer`]. After a restart: a spool
//! file left behind is removed by its name's end; everything else is in the log.

mod chunk;
mod elements;
mod grown;
mod registry;
mod reject;
mod repeats;
mod rows;
mod sample;
mod sniff;
mod source;
mod split;
#[cfg(test)]
mod tests;
mod utf16;

pub use registry::{Entry, TOPIC as REGISTRY_TOPIC, imports_named};
pub use rows::Format;
pub use sample::{Sample, sample};
pub use source::Packing;

use super::hints::{self, Fields};
use super::lacks::{self, id_sources};
use crate::actors::memory::MemoryShare;
use crate::api::{ImportReport, ImportRequest, RejectedLine, RepeatedLine};
use crate::clock::Clock;
use crate::config::TopicConfig;
use crate::core::pointer::PointerError;
use crate::core::record::{Headers, IMPORT_ID_HEADER, SOURCE_HEADER};
use crate::core::types::Time;
use crate::intake::place::{Incoming, Place, Placer};
use crate::log::{Batch, Log, LogError, LogTransaction, TopicMeta, TopicSpec};
use crate::telemetry::text::{count, counted};
use elements::Elements;
use grown::Begins;
use parking_lot::{Condvar, Mutex};
use registry::Registry;
use reject::RejectFile;
use repeats::Repeats;
use rows::Header;
use sniff::{Shape, Unclear};
use source::{Content, Identity, Whole};
use split::{Piece, Splitter};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;
use tokio::sync::watch;

/// Bytes of the longest record, unless the log's segments are smaller than usual: what the ledger may have to keep of
/// it must fit into one frame, too.
pub const LONGEST: usize = 15 << 20;
/// Room in a frame beside one record.
const FRAME_ROOM: u64 = 64 << 10;
/// Pieces between the two threads.
const AHEAD: usize = 4;
/// Rejects named in a report.
const NAMED: usize = 20;
/// Files that are read at once, at most; others wait.
const AT_ONCE: usize = 4;
/// What one of them holds in memory: pieces, a batch, the IDs it has seen.
const HELD: usize = 12 << 20;
/// A batch is written when it has so many bytes.
const BATCH: usize = 1 << 20;

/// How a file is imported.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// Name of the file, as `source` will say; folders are cut off.
    pub name: String,
    /// Its form; by name and content where not given.
    pub format: Option<Format>,
    /// Where the records' keys come from, if they are to have any.
    pub key: Option<KeyFrom>,
    /// Between the fields of CSV; by its content where not given.
    pub delimiter: Option<u8>,
    /// Import it even if the same content was imported before.
    pub again: bool,
    /// Where it begins with a content imported before: only what follows.
    pub rest: bool,
    /// The first bad line ends it, and nothing is imported.
    pub strict: bool,
    /// Where rejects are written; none: they are counted and the first ones are reported.
    pub rejects: Option<PathBuf>,
    /// Bytes of the longest line, CSV row or record. Default [`LONGEST`].
    pub longest: usize,
}

impl ImportOptions {
    /// Usual options for a file of this name.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            format: None,
            key: None,
            delimiter: None,
            again: false,
            rest: false,
            strict: false,
            rejects: None,
            longest: LONGEST,
        }
    }

    /// Takes no record longer than fits into a frame of a log with segments of this size.
    pub fn within(mut self, segment_bytes: u64) -> Self {
        let room = (segment_bytes / 4).saturating_sub(FRAME_ROOM).max(1 << 10);
        self.longest = self.longest.min(usize::try_from(room).unwrap_or(usize::MAX));
        self
    }

    /// As a request to a node says it. The reject file is named by the node.
    ///
    /// # Errors
    /// What is wrong with the request.
    pub fn of_request(request: &ImportRequest) -> Result<Self, String> {
        let mut options = Self::new(request.name.as_str());
        options.again = request.again;
        options.rest = request.rest;
        if options.again && options.rest {
            return Err("again imports all lines, rest only the new ones: say one of them".into());
        }
        options.delimiter = request.delimiter.as_deref().map(delimiter).transpose()?;
        options.strict = request.strict;
        options.key = request.key.as_deref().map(str::parse).transpose()?;
        options.format = match request.format.as_deref() {
            None | Some("auto") => None,
            Some(word) => Some(Format::of_word(word).ok_or_else(|| {
                format!("unknown format `{word}`, expected jsonl, json, csv, urls or auto")
            })?),
        };
        Ok(options)
    }

    fn short_name(&self) -> &str {
        let short = self.name.rsplit('/').next().unwrap_or(&self.name);
        if short.is_empty() { "stdin" } else { short }
    }
}

/// Reads a delimiter: one character, or its name.
fn delimiter(text: &str) -> Result<u8, String> {
    match (text, text.as_bytes()) {
        ("tab" | "\\t", _) => Ok(b'\t'),
        (_, [byte]) if byte.is_ascii() && !matches!(byte, b'"' | b'\n' | b'\r') => Ok(*byte),
        _ => Err(format!(
            "the delimiter `{text}` cannot be used, expected one character, or tab"
        )),
    }
}

/// Where an imported record's key comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyFrom {
    /// `json:/POINTER` into the value.
    Json(String),
    /// A column of a CSV file.
    Column(String),
}

impl std::str::FromStr for KeyFrom {
    type Err = String;
    /// Reads `json:/POINTER` or the name of a column.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("json:") {
            Some(pointer) if pointer.starts_with('/') => Ok(KeyFrom::Json(pointer.to_owned())),
            Some(_) => Err("expected json:/POINTER or the name of a CSV column".into()),
            None => Ok(KeyFrom::Column(text.to_owned())),
        }
    }
}

/// How far an import is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Which pass: 1 hashes, 2 imports.
    pub pass: u8,
    /// Bytes of the file read in this pass (packed, where it is packed).
    pub bytes: u64,
    /// Bytes of the file.
    pub total: u64,
    /// Lines taken.
    pub lines: u64,
}

/// Why a file was not imported. Nothing of it is in the topic then.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file cannot be read, or unpacking it failed.
    #[error("cannot read `{name}`")]
    Read {
        /// Its name.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// A file of the import's own (spool, rejects) cannot be written.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nothing says what form it has.
    #[error("cannot tell whether `{name}` holds JSON lines, CSV or URLs")]
    Format {
        /// Its name.
        name: String,
    },
    /// The header of a CSV file is not usable, or a column that was asked for is not there.
    #[error("the CSV header of `{name}` cannot be used: {reason}")]
    Header {
        /// Its name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A bad line, and every line had to be good.
    #[error("line {line} of `{name}` cannot be read: {reason}")]
    BadLine {
        /// Its name.
        name: String,
        /// The line.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// Not one line could be read: most likely it has another form.
    #[error(
        "none of the {lines} lines of `{name}` can be read as {format}; the first, line {line}: {reason}"
    )]
    NothingValid {
        /// Its name.
        name: String,
        /// How it was read.
        format: Format,
        /// Lines seen.
        lines: u64,
        /// The first bad one.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// JSON lines were asked for, and its values go over several lines.
    #[error("`{name}` is not one JSON value a line: its first value goes over several lines")]
    OverLines {
        /// Its name.
        name: String,
    },
    /// It begins with a content that was imported before, and its lines have no message IDs.
    #[error(
        "`{name}` begins with all of `{earlier}`, imported at {at}: its first {} would be sent again, as {unit} {line} has no message ID",
        first(*lines, unit)
    )]
    Grown {
        /// Its name.
        name: String,
        /// The name of the earlier file.
        earlier: String,
        /// When that was imported.
        at: String,
        /// How many lines (or elements) they share.
        lines: u64,
        /// The first of them without an ID.
        line: u64,
        /// `line` or `element`.
        unit: &'static str,
    },
    /// It begins with a content that was imported before, and which of its records that had cannot be told.
    #[error(
        "`{name}` begins with all of `{earlier}`, imported at {at}, but what of it is new cannot be told: {why}. Import what is new as a file of its own, or all of it again"
    )]
    Unsure {
        /// Its name.
        name: String,
        /// The name of the earlier file.
        earlier: String,
        /// When that was imported.
        at: String,
        /// Why not.
        why: String,
    },
    /// It was written to between the two passes.
    #[error("`{name}` changed while it was imported")]
    Changed {
        /// Its name.
        name: String,
    },
    /// The node stops.
    #[error("the node is stopping; nothing of `{name}` was imported: import it again once the node runs")]
    Ending {
        /// Its name.
        name: String,
    },
    /// A pointer (to the key, or of the topic's section) that is none.
    #[error(transparent)]
    Pointer(#[from] PointerError),
    /// The log refused.
    #[error(transparent)]
    Log(#[from] LogError),
}

impl ImportError {
    fn unsure(name: &str, entry: &Entry, why: String) -> Self {
        Self::Unsure {
            name: name.to_owned(),
            earlier: entry.name.clone(),
            at: entry.at.clone(),
            why,
        }
    }

    fn unclear(unclear: Unclear, name: &str) -> Self {
        let name = name.to_owned();
        match unclear {
            Unclear::Format => Self::Format { name },
            Unclear::OverLines => Self::OverLines { name },
        }
    }
}

/// So many of a file's first lines.
fn first(n: u64, unit: &str) -> String {
    if n == 1 { unit.to_owned() } else { counted(n, unit) }
}

/// `1 record has`, `1,200 records have`.
fn have(n: u64, thing: &str) -> String {
    format!("{} {}", counted(n, thing), if n == 1 { "has" } else { "have" })
}

/// Imports files into one log. One for each log and process: it holds the registry, and two imports of the same
/// content at once meet here.
pub struct Importer {
    log: Arc<dyn Log>,
    spool: PathBuf,
    registry: Mutex<Registry>,
    ending: watch::Sender<bool>,
    at_work: Mutex<usize>,
    work_ended: Condvar,
    memory: Option<MemoryShare>,
    /// Bytes of the registry that `memory` knows of.
    counted: Mutex<usize>,
}

/// One of the files that are read.
struct AtWork<'a>(&'a Importer);

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        *self.0.at_work.lock() -= 1;
        self.0.work_ended.notify_one();
        if let Some(memory) = &self.0.memory {
            memory.give_back(HELD);
        }
    }
}

/// End of the names of spool files.
const SPOOL_END: &str = ".sluicegate-spool";

impl Importer {
    /// For this log; what cannot be read twice is spooled in this folder, which is made if it is not there. Spool files
    /// that a killed process left behind are removed: whoever has the log open is alone with the folder.
    pub fn new(log: Arc<dyn Log>, spool: impl Into<PathBuf>) -> Self {
        let spool = spool.into();
        if let Err(error) = clean(&spool) {
            // It costs room, nothing else.
            tracing::warn!(event = "spool_left", path = %spool.display(), %error, "cannot remove files of an earlier import");
        }
        Self {
            log,
            spool,
            registry: Mutex::new(Registry::default()),
            ending: watch::Sender::new(false),
            at_work: Mutex::new(0),
            work_ended: Condvar::new(),
            memory: None,
            counted: Mutex::new(0),
        }
    }

    /// Counts what it holds.
    pub fn counted_in(mut self, memory: MemoryShare) -> Self {
        self.memory = Some(memory);
        self
    }

    /// Files that are read at once: fewer where `node.memory` is small.
    fn at_once(&self) -> usize {
        let fit = |memory: &MemoryShare| memory.bound() as usize / 4 / HELD;
        self.memory.as_ref().map_or(AT_ONCE, fit).clamp(1, AT_ONCE)
    }

    /// Waits for its turn.
    fn begin_work(&self, name: &str) -> Result<AtWork<'_>, ImportError> {
        let mut at_work = self.at_work.lock();
        while *at_work >= self.at_once() {
            self.goes_on(name)?;
            self.work_ended.wait_for(&mut at_work, Duration::from_millis(200));
        }
        *at_work += 1;
        if let Some(memory) = &self.memory {
            memory.take(HELD);
        }
        Ok(AtWork(self))
    }

    /// Counts the registry as it is now.
    fn count(&self, registry: &Registry) {
        if let Some(memory) = &self.memory {
            let (mut counted, now) = (self.counted.lock(), registry.held_bytes());
            match now.checked_sub(*counted) {
                Some(more) => memory.take(more),
                None => memory.give_back(*counted - now),
            }
            *counted = now;
        }
    }

    /// Ends all imports: none begins and none commits from now on, but for one that is committing already.
    pub fn end(&self) {
        self.ending.send_replace(true);
    }

    /// Becomes true when imports have to end.
    pub fn ending(&self) -> watch::Receiver<bool> {
        self.ending.subscribe()
    }

    fn goes_on(&self, name: &str) -> Result<(), ImportError> {
        match *self.ending.borrow() {
            false => Ok(()),
            true => Err(ImportError::Ending {
                name: name.to_owned(),
            }),
        }
    }

    /// Imports a file into the topic of this section, which is made if it is not there. Blocks.
    pub fn import_file(
        &self,
        topic: &TopicConfig,
        spec: &TopicSpec,
        path: &Path,
        options: &ImportOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<ImportReport, ImportError> {
        let name = options.short_name();
        let kind = path.metadata().map_err(|e| unreadable(name, e))?;
        if kind.is_file() {
            return self.import_content(topic, spec, path, options, progress);
        }
        // A pipe gives its bytes once.
        let mut pipe = File::open(path).map_err(|e| unreadable(name, e))?;
        self.import_reader(topic, spec, &mut pipe, options, progress)
    }

    fn import_content(
        &self,
        topic: &TopicConfig,
        spec: &TopicSpec,
        path: &Path,
        options: &ImportOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<ImportReport, ImportError> {
        let name = options.short_name();
        let meta = self.topic(&topic.name, spec)?;
        let total = path.metadata().map_err(|e| unreadable(name, e))?.len();
        // Both passes: a packed file may ask for a window of 128 MiB to be unpacked in either.
        let _at_work = self.begin_work(name)?;
        let sizes = {
            let mut registry = self.registry.lock();
            registry.refresh(&*self.log)?;
            registry.sizes(meta.id)
        };
        let is_known = |beginning: &Identity| self.registry.lock().is_recent(meta.id, beginning);
        let Whole {
            identity,
            beginning,
            ends_in_line,
        } = first_pass(path, name, total, &sizes, &is_known, progress)?;
        if !options.again
            && let Some(report) = self.known(&meta, &identity, name)?
        {
            return Ok(report);
        }
        let earlier = match beginning {
            Some(beginning) if !options.again => {
                let registry = self.registry.lock();
                let entry = registry.find(&*self.log, meta.id, &beginning.identity)?;
                entry.map(|entry| (entry, beginning))
            }
            _ => None,
        };
        let (shape, begins) = match earlier {
            None => (shape(path, options)?, None),
            Some((entry, beginning)) => {
                let goes_on = || self.goes_on(name);
                let (shape, begins) = grown::compare(path, options, entry, &beginning, &goes_on)?;
                (shape, Some(begins))
            }
        };
        let wanted = match &options.key {
            Some(KeyFrom::Json(pointer)) => Some(pointer.as_str()),
            _ => None,
        };
        let placer = Placer::picking(topic, meta.spec.partitions, wanted)?;
        let transaction = self.log.begin()?;
        let mut work = Work {
            name,
            options,
            shape,
            identity,
            placer,
            topic,
            meta: &meta,
            at: Clock::wall(),
            batch: Batch::new(),
            transaction,
            rejects: RejectFile::new(options.rejects.as_deref()),
            reports: Vec::new(),
            accepted: 0,
            rejected: 0,
            last_line: 0,
            header: None,
            key_column: None,
            begins,
            ends_in_line,
            passed_over: 0,
            without_id: 0,
            wants_key: lacks::key_source(topic, key_asked(options).as_deref()).is_some(),
            without_key: 0,
            repeated_headers: 0,
            repeats: Repeats::default(),
            shortened: false,
            fields: Fields::default(),
        };
        second_pass(path, name, total, &mut work, progress, &|| self.goes_on(name))?;
        self.commit(work)
    }

    /// Imports what comes out of a reader: it is spooled first. Blocks.
    pub fn import_reader(
        &self,
        topic: &TopicConfig,
        spec: &TopicSpec,
        reader: &mut dyn Read,
        options: &ImportOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<ImportReport, ImportError> {
        let unwritable = |source| ImportError::Write {
            path: self.spool.clone(),
            source,
        };
        crate::files::folder(&self.spool).map_err(unwritable)?;
        let mut spool = tempfile::Builder::new()
            .prefix("import-")
            .suffix(SPOOL_END)
            .tempfile_in(&self.spool)
            .map_err(unwritable)?;
        let mut buf = vec![0; 256 << 10];
        let mut bytes = 0;
        loop {
            let n = match reader.read(&mut buf) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    // A node that stops breaks its uploads off itself.
                    self.goes_on(options.short_name())?;
                    return Err(unreadable(options.short_name(), e));
                }
            };
            self.goes_on(options.short_name())?;
            io::Write::write_all(&mut spool, &buf[..n]).map_err(unwritable)?;
            bytes += n as u64;
            progress(Progress {
                pass: 1,
                bytes,
                total: 0,
                lines: 0,
            });
        }
        self.import_content(topic, spec, spool.path(), options, progress)
    }

    /// The topic as it stands, or made.
    fn topic(&self, name: &str, spec: &TopicSpec) -> Result<TopicMeta, LogError> {
        match self.log.topic(name) {
            Some(meta) => Ok(meta),
            None => self.log.create_topic(name, spec),
        }
    }

    fn known(
        &self,
        meta: &TopicMeta,
        identity: &Identity,
        name: &str,
    ) -> Result<Option<ImportReport>, LogError> {
        let mut registry = self.registry.lock();
        registry.refresh(&*self.log)?;
        self.count(&registry);
        let found = registry.find(&*self.log, meta.id, identity)?;
        Ok(found.map(|entry| known_report(&entry, name)))
    }

    /// Commits what pass 2 has written, unless another import of the same content was faster.
    fn commit(&self, work: Work<'_>) -> Result<ImportReport, ImportError> {
        let (notes, (duplicates, _)) = (work.notes(), work.repeats.count());
        let Work {
            name,
            options,
            identity,
            meta,
            at,
            batch,
            mut transaction,
            rejects,
            ..
        } = work;
        if !batch.is_empty() {
            transaction.append(batch)?;
        }
        // Held over the commit: two imports of the same content at once must see each other.
        let mut registry = self.registry.lock();
        self.goes_on(name)?;
        let partition = registry.refresh(&*self.log)?;
        if !options.again
            && let Some(entry) = registry.find(&*self.log, meta.id, &identity)?
        {
            return Ok(known_report(&entry, name));
        }
        let mut entry = Entry {
            rejects: work.reports.clone(),
            lines: work.last_line,
            format: Some(work.shape.format.word().to_owned()),
            delimiter: (work.shape.format == Format::Csv).then(|| char::from(work.shape.delimiter)),
            accepted: work.accepted,
            rejected: work.rejected,
            ..Entry::new(meta, &identity, name, at)
        };
        let reject_path = options.rejects.clone();
        let reject_file = rejects.finish(&entry.hash).map_err(|source| ImportError::Write {
            path: reject_path.unwrap_or_default(),
            source,
        })?;
        entry.reject_file = reject_file.as_ref().map(|path| {
            let absolute = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            absolute.display().to_string()
        });
        let mut last = Batch::new();
        let value = serde_json::to_vec(&entry).map_err(|e| ImportError::Write {
            path: PathBuf::from(REGISTRY_TOPIC),
            source: e.into(),
        })?;
        last.push(partition, at, Some(entry.topic.as_bytes()), &value, &[]);
        if let Err(e) = transaction.commit(last) {
            if let Some(file) = reject_file {
                // Rejects of an import that is not there would mislead; the next run writes them anew.
                let _ = std::fs::remove_file(file);
            }
            return Err(e.into());
        }
        let repeated = work.repeats.named.iter();
        Ok(ImportReport {
            name: name.to_owned(),
            topic: meta.name.clone(),
            accepted: work.accepted,
            rejected: work.rejected,
            known: false,
            hash: entry.hash,
            rejects: work.reports,
            reject_file: reject_file.map(|p| p.display().to_string()),
            duplicates,
            repeated: repeated
                .map(|(line, first)| RepeatedLine {
                    line: *line,
                    first: *first,
                })
                .collect(),
            passed_over: work.passed_over,
            went_on: work.begins.as_ref().and_then(|begins| begins.went_on),
            notes,
        })
    }
}

fn known_report(entry: &Entry, name: &str) -> ImportReport {
    ImportReport {
        name: name.to_owned(),
        topic: entry.topic.clone(),
        accepted: entry.accepted,
        rejected: entry.rejected,
        known: true,
        hash: entry.hash.clone(),
        ..ImportReport::default()
    }
}

/// Where the command wants keys from, as it says it.
fn key_asked(options: &ImportOptions) -> Option<String> {
    options.key.as_ref().map(|key| match key {
        KeyFrom::Json(pointer) => format!("json:{pointer}"),
        KeyFrom::Column(name) => format!("column {name}"),
    })
}

/// Removes the spool files in a folder.
fn clean(spool: &Path) -> io::Result<()> {
    let files = match std::fs::read_dir(spool) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for file in files {
        let file = file?;
        if file.file_name().to_string_lossy().ends_with(SPOOL_END) {
            std::fs::remove_file(file.path())?;
        }
    }
    Ok(())
}

fn unreadable(name: &str, source: io::Error) -> ImportError {
    ImportError::Read {
        name: name.to_owned(),
        source,
    }
}

fn first_pass(
    path: &Path,
    name: &str,
    total: u64,
    sizes: &[u64],
    is_known: &dyn Fn(&Identity) -> bool,
    progress: &mut dyn FnMut(Progress),
) -> Result<Whole, ImportError> {
    let read = Arc::new(AtomicU64::new(0));
    let mut content = Content::open(path, read.clone()).map_err(|e| unreadable(name, e))?;
    let each = || {
        progress(Progress {
            pass: 1,
            bytes: read.load(Ordering::Relaxed),
            total,
            lines: 0,
        });
    };
    content
        .hash_all(sizes, is_known, each)
        .map_err(|e| unreadable(name, e))
}

/// What the file holds: asked for, or by its name and how the content begins.
fn shape(path: &Path, options: &ImportOptions) -> Result<Shape, ImportError> {
    let name = options.short_name();
    let content = Content::open(path, Arc::default()).map_err(|e| unreadable(name, e))?;
    let mut start = Vec::new();
    content
        .take(sniff::BEGINNING)
        .read_to_end(&mut start)
        .map_err(|e| unreadable(name, e))?;
    let whole = (start.len() as u64) < sniff::BEGINNING;
    sniff::shape(&start, whole, name, options.format, options.delimiter)
        .map_err(|unclear| ImportError::unclear(unclear, name))
}

/// What cuts the content into pieces.
enum Cutter<R> {
    Records(Splitter<R>),
    Values(Elements<R>),
}

impl<R: Read> Cutter<R> {
    fn new(content: R, shape: Shape, longest: usize) -> Self {
        match shape.format {
            Format::Csv => Self::Records(Splitter::rows(content, shape.delimiter, longest)),
            Format::Json => Self::Values(Elements::new(content, longest)),
            Format::JsonLines | Format::Urls => Self::Records(Splitter::lines(content, longest)),
        }
    }

    fn next(&mut self) -> io::Result<Option<Piece>> {
        match self {
            Self::Records(splitter) => splitter.next(),
            Self::Values(elements) => elements.next(),
        }
    }

    fn into_inner(self) -> R {
        match self {
            Self::Records(splitter) => splitter.into_inner(),
            Self::Values(elements) => elements.into_inner(),
        }
    }
}

fn second_pass(
    path: &Path,
    name: &str,
    total: u64,
    work: &mut Work<'_>,
    progress: &mut dyn FnMut(Progress),
    goes_on: &dyn Fn() -> Result<(), ImportError>,
) -> Result<(), ImportError> {
    let read = Arc::new(AtomicU64::new(0));
    let content = Content::open(path, read.clone()).map_err(|e| unreadable(name, e))?;
    let mut cutter = Cutter::new(content, work.shape, work.options.longest);
    std::thread::scope(|scope| {
        let (pieces, taken) = mpsc::sync_channel::<Piece>(AHEAD);
        let reader = std::thread::Builder::new()
            .name("import-read".into())
            .spawn_scoped(scope, move || {
                while let Some(piece) = cutter.next()? {
                    if pieces.send(piece).is_err() {
                        // The other side has given up, and says why.
                        break;
                    }
                }
                Ok::<_, io::Error>(cutter.into_inner().identity())
            });
        let reader = reader.map_err(|e| unreadable(name, e))?;
        let mut failed = None;
        for piece in taken {
            if let Err(e) = goes_on().and_then(|()| work.take(piece)) {
                failed = Some(e);
                break;
            }
            progress(Progress {
                pass: 2,
                bytes: read.load(Ordering::Relaxed),
                total,
                lines: work.accepted + work.rejected,
            });
        }
        let identity = reader
            .join()
            .map_err(|_| unreadable(name, io::Error::other("the reading thread failed")))?;
        match (failed, identity) {
            (Some(error), _) => Err(error),
            (None, Err(e)) => Err(unreadable(name, e)),
            (None, Ok(identity)) if identity != work.identity => Err(ImportError::Changed {
                name: name.to_owned(),
            }),
            (None, Ok(_)) => work.check(),
        }
    })
}

/// What the second pass carries along.
struct Work<'a> {
    name: &'a str,
    options: &'a ImportOptions,
    shape: Shape,
    identity: Identity,
    placer: Placer,
    topic: &'a TopicConfig,
    meta: &'a TopicMeta,
    at: Time,
    batch: Batch,
    transaction: Box<dyn LogTransaction>,
    rejects: RejectFile,
    reports: Vec<RejectedLine>,
    accepted: u64,
    rejected: u64,
    last_line: u64,
    header: Option<Header>,
    key_column: Option<usize>,
    begins: Option<Begins>,
    /// The last line has no line end.
    ends_in_line: bool,
    /// Lines left out because an earlier import has them.
    passed_over: u64,
    /// Records whose content gives them no message ID, where the topic looks for one in it.
    without_id: u64,
    /// Whether records are to have a key, and those that have none.
    wants_key: bool,
    without_key: u64,
    repeated_headers: u64,
    repeats: Repeats,
    /// A repeated ID looks like a number that a spreadsheet has rounded.
    shortened: bool,
    /// What records hold, where the topic uses no ID of theirs.
    fields: Fields,
}

impl Work<'_> {
    fn take(&mut self, piece: Piece) -> Result<(), ImportError> {
        match piece {
            // Without its header the rows mean nothing; the next row must not be taken for it.
            Piece::Bad { reason, .. } if self.shape.format == Format::Csv && self.header.is_none() => {
                Err(ImportError::Header {
                    name: self.name.to_owned(),
                    reason: reason.to_owned(),
                })
            }
            Piece::Bad { line, sample, reason } => self.reject(line, reason.into(), &sample),
            Piece::Records { line, bytes } if self.shape.format == Format::Csv => self.rows(line, &bytes),
            Piece::Records { line, bytes } => self.lines(line, &bytes),
            Piece::Values { bytes, values } => self.values(&bytes, &values),
        }
    }

    /// Only CSV has columns.
    fn no_columns(&self) -> Result<(), ImportError> {
        match &self.options.key {
            Some(KeyFrom::Column(_)) => Err(ImportError::Header {
                name: self.name.to_owned(),
                reason: "it has no columns; give the key as json:/POINTER".to_owned(),
            }),
            _ => Ok(()),
        }
    }

    fn values(&mut self, bytes: &[u8], values: &[split::Value]) -> Result<(), ImportError> {
        self.no_columns()?;
        for value in values {
            let text = &bytes[value.bytes.clone()];
            // Checked here even if the placer reads it, too: the reason says where the element begins.
            match rows::json_line(text, false) {
                Ok(json) => self.record(value.number, &json, None, text)?,
                Err(reason) => {
                    let reason = format!("element {}, from line {} on: {reason}", value.number, value.line);
                    self.reject(value.number, reason, text)?;
                }
            }
            self.last_line = value.number;
        }
        Ok(())
    }

    fn lines(&mut self, first: u64, bytes: &[u8]) -> Result<(), ImportError> {
        self.no_columns()?;
        let placer_parses = self.placer.reads_json();
        for (line, text) in rows::lines(bytes, first) {
            if !text.is_empty() {
                let row = match self.shape.format {
                    _ if text.len() > self.options.longest => Err(split::TOO_LONG.to_owned()),
                    Format::Urls => rows::url_line(text),
                    _ => rows::json_line(text, placer_parses),
                };
                match row {
                    Ok(value) => self.record(line, &value, None, text)?,
                    Err(reason) => self.reject(line, reason, text)?,
                }
            }
            self.last_line = line;
        }
        Ok(())
    }

    fn rows(&mut self, first: u64, bytes: &[u8]) -> Result<(), ImportError> {
        let mut rows = rows::Rows::new(bytes, first, self.shape.delimiter);
        while let Some(line) = rows.next().map_err(|e| unreadable(self.name, e))? {
            self.last_line = line;
            let (row, raw) = (rows.row(), rows.raw());
            if std::mem::take(&mut self.shape.sep_line) {
                continue;
            }
            let unusable_at = |reason| ImportError::Header {
                name: self.name.to_owned(),
                reason,
            };
            let Some(header) = &self.header else {
                let unusable = |reason| ImportError::Header {
                    name: self.name.to_owned(),
                    reason,
                };
                let header = Header::new(row).map_err(unusable)?;
                if let Some(KeyFrom::Column(name)) = &self.options.key {
                    let missing = || unusable(format!("it has no column `{name}`"));
                    self.key_column = Some(header.column(name).ok_or_else(missing)?);
                }
                self.header = Some(header);
                continue;
            };
            if header.is_repeated(row) {
                self.repeated_headers += 1;
                continue;
            }
            if header.is_shuffled(row) {
                let reason = format!(
                    "line {line} is another header, with the columns in another order; import the files that were put together one by one"
                );
                return Err(unusable_at(reason));
            }
            let read = match header.object(row) {
                _ if raw.len() > self.options.longest => Err(split::TOO_LONG.to_owned()),
                other => other,
            };
            match read {
                Ok(value) => {
                    let key = self
                        .key_column
                        .and_then(|column| row.get(column))
                        .filter(|k| !k.is_empty());
                    self.record(line, &value, key, raw)?;
                }
                Err(reason) => self.reject(line, reason, raw)?,
            }
        }
        Ok(())
    }

    /// Takes a record. `raw` is its line, should it be rejected after all.
    fn record(&mut self, line: u64, value: &[u8], key: Option<&[u8]>, raw: &[u8]) -> Result<(), ImportError> {
        use std::fmt::Write;
        let incoming = Incoming {
            key,
            value,
            headers: &[],
        };
        let place = match self.placer.place(incoming) {
            // Only what claims to be JSON is refused for not being it; a URL has no fields, and perhaps no ID.
            Ok(Place {
                not_json: Some(e), ..
            }) if self.shape.format != Format::Urls => {
                return self.reject(line, rows::placing_failed(&e), raw);
            }
            Ok(place) => place,
            Err(twice) => return self.reject(line, twice.to_string(), raw),
        };
        if let Some(begins) = self.begins.as_ref().filter(|begins| begins.has(line)) {
            if self.options.rest {
                self.passed_over += 1;
                return Ok(());
            }
            match &begins.unsure {
                _ if place.has_id => {}
                Some(why) => return Err(ImportError::unsure(self.name, &begins.entry, why.clone())),
                None => {
                    return Err(ImportError::Grown {
                        name: self.name.to_owned(),
                        earlier: begins.entry.name.clone(),
                        at: begins.entry.at.clone(),
                        lines: begins.last,
                        line,
                        unit: self.shape.format.unit(),
                    });
                }
            }
        }
        if place.has_id {
            if self.repeats.note(place.id_hash, line) && !self.shortened {
                self.shortened = place.looks_rounded;
            }
        } else {
            self.without_id += 1;
        }
        let lacks_key = self.wants_key && !place.has_key;
        self.without_key += u64::from(lacks_key);
        if (!place.has_id || lacks_key) && self.fields.wants_more() {
            self.fields.note(value);
        }
        let count = self.meta.partitions.len().max(1);
        let index = place.partition.map_or(line as usize % count, |p| p as usize);
        let missing = || LogError::NoTopic(self.meta.name.clone());
        let partition = *self.meta.partitions.get(index).ok_or_else(missing)?;
        // Writing into a string cannot fail.
        let mut source = String::with_capacity(self.name.len() + 8);
        let _ = write!(source, "{}:{line}", self.name);
        let needs_id = !place.has_id && !self.placer.goes_by_position();
        let id = needs_id.then(|| format!("{}:{line}", &self.identity.hash.to_hex()[..32]));
        let pairs = std::iter::once((SOURCE_HEADER, source.as_bytes()))
            .chain(id.iter().map(|id| (IMPORT_ID_HEADER, id.as_bytes())));
        let headers = Headers::encode(pairs);
        let key = place.picked.as_deref().or(key);
        let size = value.len() + key.map_or(0, <[u8]>::len) + headers.0.len();
        if size > self.options.longest {
            return self.reject(line, split::TOO_LONG.to_owned(), raw);
        }
        // Neither a batch of small records nor one with a single large one is above the log's bound.
        if !self.batch.is_empty() && self.batch.bytes() + size > BATCH.min(self.options.longest) {
            self.transaction.append(std::mem::take(&mut self.batch))?;
        }
        self.batch.push(partition, self.at, key, value, &headers.0);
        self.accepted += 1;
        Ok(())
    }

    fn reject(&mut self, line: u64, reason: String, bytes: &[u8]) -> Result<(), ImportError> {
        if self.options.rest && self.begins.as_ref().is_some_and(|begins| begins.has(line)) {
            // The earlier import has said so.
            self.last_line = line;
            return Ok(());
        }
        if self.options.strict {
            return Err(ImportError::BadLine {
                name: self.name.to_owned(),
                line,
                reason,
            });
        }
        self.rejects
            .add(line, &reason, bytes)
            .map_err(|source| ImportError::Write {
                path: self.options.rejects.clone().unwrap_or_default(),
                source,
            })?;
        self.rejected += 1;
        self.last_line = line;
        if self.reports.len() < NAMED {
            self.reports.push(RejectedLine { line, reason });
        }
        Ok(())
    }

    /// What somebody should know of a file that was imported all the same.
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.shape.format == Format::Csv
            && self.shape.delimiter != b','
            && self.options.delimiter.is_none()
        {
            let name = match self.shape.delimiter {
                b'\t' => "a tab".to_owned(),
                other => format!("`{}`", char::from(other)),
            };
            notes.push(format!(
                "its fields are taken to be separated by {name}; --delimiter says otherwise"
            ));
        }
        if self.repeated_headers > 0 {
            let n = counted(self.repeated_headers, "repeated header");
            notes.push(format!("{n} left out: files were put together"));
        }
        if let Some(begins) = &self.begins {
            let entry = &begins.entry;
            let what = match self.options.rest {
                true => "left out",
                false => "message IDs that are known are not sent again",
            };
            let (of, at) = (&entry.name, &entry.at);
            notes.push(match begins.unsure {
                None => format!(
                    "its first {} of `{of}`, imported at {at}: {what}",
                    match begins.last {
                        1 => format!("{} is that", self.shape.format.unit()),
                        n => format!("{} are those", counted(n, self.shape.format.unit())),
                    }
                ),
                Some(_) => format!(
                    "it begins with all of `{of}`, imported at {at}: message IDs that are known are not sent again"
                ),
            });
        }
        if let Some((line, begins)) = self.begins.as_ref().and_then(|b| Some((b.went_on?, b))) {
            let (of, at) = (&begins.entry.name, &begins.entry.at);
            notes.push(format!(
                "line {line} had no end when `{of}` was imported at {at}, and has gone on since: that import has read a part of it. The whole line is imported now; but where the part has the same message ID, that ID is known, and the whole is not sent. `sluicegate message {}:{line}` tells; to send it: `dedup forget ID`, then import a file with that line alone",
                self.name
            ));
        }
        // A JSON value that is cut off cannot be read; a row or a URL can.
        if self.ends_in_line && matches!(self.shape.format, Format::Csv | Format::Urls) {
            notes.push(format!(
                "its last line, {}, has no line end and was taken as whole: if the file is still being written, import it once it is complete",
                self.last_line
            ));
        }
        if let (n @ 1.., exact) = self.repeats.count() {
            let about = if exact { "" } else { "about " };
            let named: Vec<_> = self
                .repeats
                .named
                .iter()
                .take(3)
                .map(|(line, first)| format!("line {line} that of line {first}"))
                .collect();
            notes.push(format!(
                "{about}{} the message ID of an earlier line in it ({}): of those in one partition one record is sent",
                match n {
                    1 => "1 line repeats".to_owned(),
                    n => format!("{} lines repeat", count(n)),
                },
                named.join(", ")
            ));
            if self.shortened {
                notes.push("repeated IDs look like 1.23E+17: a spreadsheet has rounded them; export that column as text".to_owned());
            }
        }
        let goes_by_content = !self.placer.goes_by_position();
        if goes_by_content && self.without_id > 0 && self.accepted > 0 {
            let all = if self.without_id == self.accepted {
                "none of its records has"
            } else {
                "records without"
            };
            let from = id_sources(self.topic);
            let columns = match &self.header {
                Some(header) if self.without_id == self.accepted => {
                    format!("; its columns are {}", header.names().join(", "))
                }
                _ => String::new(),
            };
            notes.push(match self.without_id == self.accepted {
                true => format!("{all} a message ID where topic {} looks for it ({from}){columns}: each goes by its file and line", self.meta.name),
                false => format!("{} no message ID where topic {} looks for it ({from}): each goes by its file and line", have(self.without_id, "record"), self.meta.name),
            });
        }
        notes.extend(lacks::keys(
            self.topic,
            key_asked(self.options).as_deref(),
            self.without_key,
            self.accepted,
            &self.fields,
        ));
        if self.without_id == self.accepted && self.accepted > 0 {
            notes.extend(hints::unused_id(&self.meta.name, &self.fields));
        }
        notes
    }

    /// A file of which no line is good was meant to be read otherwise.
    fn check(&self) -> Result<(), ImportError> {
        match self.reports.first() {
            Some(first) if self.accepted == 0 => Err(ImportError::NothingValid {
                name: self.name.to_owned(),
                format: self.shape.format,
                lines: self.rejected,
                line: first.line,
                reason: first.reason.clone(),
            }),
            _ => Ok(()),
        }
    }
}
