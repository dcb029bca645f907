//! Opening a node's folder: log, ledger, dedup store. The same for a node and for commands on a stopped one.

use crate::clock::Clock;
use crate::config::Config;
use crate::core::ledger::codec;
use crate::core::ledger::entry::{Body, Entry, Genesis, Owner};
use crate::core::message_id::RECIPE;
use crate::core::types::{LifeId, Offset, Tenure};
use crate::dedup::{DedupError, DedupOptions, DedupStore, Rebuild};
use crate::ledger::keeper::{Keeper, KeeperError};
use crate::ledger::restore::{self, Expected, Report, RestoreError};
use crate::log::embedded::{EmbeddedLog, EmbeddedOptions};
use crate::log::{Batch, Log, LogError, PartitionId, TopicSpec};
use std::sync::Arc;
use std::time::Duration;

/// The ledger's topic.
pub const LEDGER_TOPIC: &str = "__ledger";
/// A clock may be put right by so much without a word.
const CLOCK_SLIP: Duration = Duration::from_secs(60);
/// Who works on the ledger of one machine.
const GROUP: &str = "embedded";

/// Why a folder cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder cannot be made.
    #[error("cannot make the folder `{0}`", path.display())]
    Folder {
        /// The folder.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The log cannot be opened or written.
    #[error("cannot open the log")]
    Log(#[from] LogError),
    /// The dedup store cannot be opened.
    #[error("cannot open the store of delivered IDs")]
    Store(#[from] DedupError),
    /// The ledger does not fit what this node remembers of it.
    #[error("cannot restore the ledger")]
    Restore(#[from] RestoreError),
    /// The ledger cannot be taken over.
    #[error("cannot take the ledger over")]
    Take(#[from] KeeperError),
}

/// An open folder.
pub struct Opened {
    /// The log.
    pub log: Arc<dyn Log>,
    /// The lane.
    pub lane: PartitionId,
    /// Its fold, and the store.
    pub keeper: Arc<Keeper>,
    /// The tenure under which this process writes.
    pub tenure: Tenure,
    /// This run of the process.
    pub life: LifeId,
    /// What restoring did.
    pub report: Report,
}

fn folder(path: std::path::PathBuf) -> Result<std::path::PathBuf, OpenError> {
    match crate::files::folder(&path) {
        Ok(()) => Ok(path),
        Err(source) => Err(OpenError::Folder { path, source }),
    }
}

/// Closes what an older version, or somebody else, left open to everybody on this machine.
fn close_folders(data: &std::path::Path) {
    // Not `node.data` itself: it may be a folder of somebody else's, with more in it.
    let folders = ["log", "dedup", "ledger", "spool", "rejects"].map(|name| data.join(name));
    match crate::files::tighten(&folders) {
        Ok(closed) => {
            for path in closed {
                tracing::info!(event = "folder_closed", path = %path.display(), "others on this machine could read what it holds; it is for its owner only now (0700)");
            }
        }
        Err((path, error)) => {
            tracing::warn!(event = "folder_open", path = %path.display(), %error, "others on this machine can read what it holds: chmod 700 it, or give it to the user that the node runs as");
        }
    }
}

/// Opens the log alone: for commands that bring records in while no node runs.
///
/// # Errors
/// [`OpenError`]; another process on the folder is [`LogError::Locked`].
pub fn open_log(config: &Config) -> Result<Arc<dyn Log>, OpenError> {
    let options = EmbeddedOptions {
        segment_bytes: config.log.segment,
        commit_gap: config.log.commit_gap,
        ..EmbeddedOptions::default()
    };
    Ok(Arc::new(EmbeddedLog::open(
        &folder(config.node.data.join("log"))?,
        options,
    )?))
}

/// Opens the folder of `config.node.data`, or makes it. It is locked until the log is closed.
///
/// # Errors
/// [`OpenError`]; another process on the folder is [`LogError::Locked`].
pub fn open(config: &Config, clock: Clock) -> Result<Opened, OpenError> {
    let data = &config.node.data;
    close_folders(data);
    let log = open_log(config)?;
    let spec = TopicSpec {
        partitions: 1,
        retention: None,
        retention_bytes: None,
    };
    let topic = log.create_topic(LEDGER_TOPIC, &spec)?;
    let lane = topic.partitions[0];
    // The ledger is known by the incarnation of its topic: a topic made anew is another ledger.
    let ledger = topic.id.0;
    let life = LifeId(fastrand::u64(1..));
    let options = DedupOptions {
        bucket: config.dedup.bucket,
        cache: config.dedup.cache,
        readable: config.ledger.readable_id > 0,
        ..DedupOptions::new(ledger)
    };
    let (store, found) = DedupStore::open(&folder(data.join("dedup"))?, options)?;
    if let Some(why) = found.rebuild.filter(|why| *why != Rebuild::Missing) {
        let aside = found.moved_to.unwrap_or_default();
        tracing::warn!(event = "dedup_rebuilt", %why, moved_to = %aside.display(), "the store of delivered IDs is built again from the ledger");
    }
    for what in found.repaired {
        tracing::info!(
            event = "dedup_repaired",
            what,
            "the store of delivered IDs was put right"
        );
    }
    let expected = Expected {
        ledger: Some(ledger),
        group: GROUP.into(),
        lanes: 1,
        lane: 0,
        recipe: RECIPE,
    };
    let dir = folder(data.join("ledger"))?;
    let restored = restore::restore(log.as_ref(), lane, &dir, &expected, &mut &store)?;
    if restored.report.store_fell_back {
        let fed = restored.report.store;
        tracing::warn!(event = "dedup_fell_back", %fed, "part of the store of delivered IDs was damaged or taken away; the ledger has given it back");
    }
    let now = clock.now();
    if let Some(last) = restored.state.owner.as_ref().map(|owner| owner.at)
        && now.plus(CLOCK_SLIP) < last
    {
        // What a clock that was ahead has written stays as it is; whoever looks for its traces should know when.
        tracing::warn!(event = "clock_behind", %now, last_start = %last, "this machine's clock is behind the last start of this node: one of the two was wrong");
    }
    let keeper = Keeper::new(restored.state, restored.last_entry_crc, store, dir, ledger);
    // Only now, when ledger and views are known to fit each other: a start that is refused leaves the lane as it is,
    // and the next one is refused too.
    let write = |tenure, body| {
        let entry = Entry { tenure, body };
        let at = write(log.as_ref(), lane, clock, &entry)?;
        match keeper.fold_entries(at, &[entry]) {
            // The store follows when there is room.
            Err(error) if !error.passes() => Err(OpenError::from(error)),
            _ => Ok(()),
        }
    };
    if restored.report.bounds.next == 0 {
        let genesis = Genesis {
            ledger,
            group: GROUP.into(),
            lanes: 1,
            lane: 0,
            recipe: RECIPE,
        };
        write(Tenure(0), Body::Genesis(genesis))?;
    }
    let timeout = config
        .partners
        .values()
        .map(|p| p.timeout.request.as_millis() as u32)
        .max();
    let owner = Owner {
        node: config.node.id.clone(),
        life,
        lease_ms: config.ledger.lease.as_millis() as u32,
        timeout_ms: timeout.unwrap_or(0),
        at: clock.now(),
    };
    let tenure = Tenure(log.bounds(lane)?.next);
    write(tenure, Body::Owner(owner))?;
    Ok(Opened {
        log,
        lane,
        keeper: Arc::new(keeper),
        tenure,
        life,
        report: restored.report,
    })
}

/// Writes one entry and waits until it is durable.
fn write(log: &dyn Log, lane: PartitionId, clock: Clock, entry: &Entry) -> Result<Offset, LogError> {
    let mut bytes = Vec::new();
    codec::encode(entry, &mut bytes);
    let mut batch = Batch::from_reserve();
    batch.push(lane, clock.now(), None, &bytes, &[]);
    let (done, result) = std::sync::mpsc::sync_channel(1);
    // The receiver waits right below.
    log.append(batch, Box::new(move |r| drop(done.send(r))));
    let appended = result.recv().map_err(|_| LogError::Closed)??;
    Ok(appended.bases.first().map_or(0, |b| b.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    /// Everything below a folder that others could read.
    fn open_to_others(dir: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.metadata().expect("there").permissions().mode() & 0o077 != 0 {
                found.push(path.display().to_string());
            }
            if path.is_dir() {
                open_to_others(&path, found);
            }
        }
    }

    #[test]
    fn what_a_node_keeps_is_for_its_owner_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = Config::for_test(folder.path().join("data"));
        let life = || {
            let opened = open(&config, Clock::start()).expect("opened");
            opened.keeper.checkpoint().expect("a checkpoint");
            opened.log.close().expect("closed");
        };
        life();
        let check = || {
            let mut found = Vec::new();
            open_to_others(folder.path(), &mut found);
            assert_eq!(found, Vec::<String>::new());
        };
        check();
        // As an older version left it.
        for name in ["log", "dedup", "ledger"] {
            let path = config.node.data.join(name);
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("set");
        }
        life();
        check();
    }
}
