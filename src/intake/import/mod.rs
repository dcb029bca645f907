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
mod cutter;
mod elements;
mod error;
mod grown;
mod notes;
mod options;
mod passes;
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
mod work;

pub use error::ImportError;
pub use options::{ImportOptions, KeyFrom, LONGEST, Progress};
pub use registry::{Entry, TOPIC as REGISTRY_TOPIC, imports_named};
pub use rows::Format;
pub use sample::{Sample, sample};
pub use source::Packing;

use super::hints::Fields;
use super::lacks;
use crate::api::{ImportReport, RepeatedLine};
use crate::clock::Clock;
use crate::config::TopicConfig;
use crate::intake::place::Placer;
use crate::log::{Batch, Log, LogError, TopicMeta, TopicSpec};
use crate::memory::MemoryShare;
use cutter::shape;
use error::unreadable;
use options::key_asked;
use parking_lot::{Condvar, Mutex};
use passes::{first_pass, second_pass};
use registry::Registry;
use reject::RejectFile;
use repeats::Repeats;
use source::{Identity, Whole};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use work::Work;
/// Files that are read at once, at most; others wait.
const AT_ONCE: usize = 4;
/// What one of them holds in memory: pieces, a batch, the IDs it has seen.
const HELD: usize = 12 << 20;

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
