//! The sections about the node itself.

use super::kinds::{Address, As, Count, File, Filled, KIB, LogFilter, MIB, Maybe, Size, Time};
use super::secrets::SecretSource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

const MINUTE: Duration = Duration::from_mins(1);
const DAY: Duration = Duration::from_hours(24);

/// `[node]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NodeConfig {
    /// Name of the node, stable over restarts. The ledger notes it with everything the node does.
    #[serde(with = "As::<Filled>")]
    #[schemars(extend("x-default" = "host name", "examples" = ["node-1"]))]
    pub id: String,
    /// Folder of the embedded log, the dedup store and counters. One process at a time; on a disk that is not shared.
    #[serde(with = "As::<File>")]
    pub data: PathBuf,
    /// Bound over everything held: queues, retries, bookkeeping. At the bound the intake pauses and goes on by itself.
    /// Larger: more keys ready at once while partners are slow.
    #[serde(with = "As::<Size<{ 16 * MIB }>>")]
    pub memory: u64,
    /// How long an orderly stop waits for requests in flight. What is still out then is in doubt at the next start.
    /// Keep it above the longest request timeout.
    #[serde(with = "As::<Time<true>>")]
    pub drain: Duration,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            id: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            data: PathBuf::from("data"),
            memory: 512 * MIB,
            drain: Duration::from_secs(20),
        }
    }
}

/// `[listen]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ListenConfig {
    /// Control API, status and page. Any address but loopback needs `listen.token`.
    #[serde(with = "As::<Address>")]
    pub admin: SocketAddr,
    /// Health and metrics on a port of their own, for a balancer or scraper that must not reach the control API.
    #[serde(with = "As::<Maybe<Address>>")]
    #[schemars(extend("examples" = ["0.0.0.0:7071"]))]
    pub probes: Option<SocketAddr>,
    /// Token that control requests must carry.
    #[schemars(extend(
        "x-takes" = "`{ env = … }` or `{ file = … }`",
        "x-leaf" = "inline",
        "examples" = [{ "env": "SLUICEGATE_TOKEN" }],
    ))]
    pub token: Option<SecretSource>,
}

impl Default for ListenConfig {
    fn default() -> Self {
        Self {
            admin: SocketAddr::from((Ipv4Addr::LOCALHOST, 7070)),
            probes: None,
            token: None,
        }
    }
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// Which log holds topics and ledger. `embedded`: on this machine, no server needed.
    pub kind: LogKind,
    /// Bytes of one preallocated segment of the journal. Larger: fewer files; smaller: space comes back sooner.
    #[serde(with = "As::<Size<MIB>>")]
    pub segment: u64,
    /// Least time between two commits under load. Longer: more entries share one fdatasync (less disk work), and each
    /// delivery waits longer.
    #[serde(with = "As::<Time<true>>")]
    pub commit_gap: Duration,
    /// How long records of a topic are kept at least. A record goes once it is older than this and every route has
    /// passed it: finished it, or copied it into the ledger.
    #[serde(with = "As::<Time>")]
    pub retention: Duration,
    /// Bytes above which a topic's records go before they are that old, the oldest first; never one that a route has
    /// not passed.
    #[serde(with = "As::<Maybe<Size<MIB>>>")]
    #[schemars(extend("examples" = ["10GiB"]))]
    pub retention_bytes: Option<u64>,
}

/// The implementations of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogKind {
    /// On this machine, no server needed.
    Embedded,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            kind: LogKind::Embedded,
            segment: 64 * MIB,
            commit_gap: Duration::from_micros(400),
            retention: 7 * DAY,
            retention_bytes: None,
        }
    }
}

/// `[ledger]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LedgerConfig {
    /// How long an intent's permission to send lasts, counted from before its commit was requested. Shorter: a taker of
    /// the work waits less; too short: a slow disk makes intents expire unsent.
    #[serde(with = "As::<Time>")]
    pub lease: Duration,
    /// How long payloads of dead, parked and skipped messages are kept.
    #[serde(with = "As::<Time>")]
    pub payload_retention: Duration,
    /// Bytes of kept payloads. At the bound the oldest skipped and dead ones go first, parked never.
    #[serde(with = "As::<Size<MIB>>")]
    pub payload_bytes: u64,
    /// Bytes of the readable ID kept with an entry, so that `message ID` finds it by its own name. 0 keeps none:
    /// smaller ledger.
    #[serde(with = "As::<Count>")]
    pub readable_id: usize,
    /// A message that must wait longer than this is copied into the ledger and no longer holds its route's position.
    /// Shorter: restarts read less again; longer: fewer bytes written during an outage.
    #[serde(with = "As::<Time>")]
    pub waiting_after: Duration,
    /// How often positions that rest on no outcome (duplicates, filtered records) are written.
    #[serde(with = "As::<Time>")]
    pub position_every: Duration,
    /// Ledger entries between two checkpoints. Fewer: a start after a crash reads less; more: fewer large writes.
    #[serde(with = "As::<Count<1>>")]
    pub checkpoint_entries: u64,
    /// And at the latest so long after the one before, if anything was written. It bounds what a start after a crash
    /// reads of a slow day.
    #[serde(with = "As::<Time>")]
    pub checkpoint_every: Duration,
}

impl Default for LedgerConfig {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(10),
            payload_retention: 30 * DAY,
            payload_bytes: 4 * 1024 * MIB,
            readable_id: 40,
            waiting_after: 10 * MINUTE,
            position_every: Duration::from_secs(1),
            checkpoint_entries: 1_000_000,
            checkpoint_every: Duration::from_secs(10),
        }
    }
}

/// `[actors]`: the concurrency of the tree.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ActorsConfig {
    /// Arbiter threads that run the actors; 0 is one a core.
    #[serde(with = "As::<Count>")]
    pub threads: usize,
    /// Subpartition actors at once in one partition: keys whose messages are in flight or waiting for a slot. Key 1,001
    /// waits its turn. Of one partition never more than twice the partner's `concurrency` (at least 16). Those that
    /// wait for a slot are few: their share of half the `concurrency`, 4 to 16 of each partition. Must exceed rate x
    /// latency ÷ partitions.
    #[serde(with = "As::<Count<1>>")]
    pub busy_keys: usize,
    /// Requests in flight of the node over all partners. Each needs a file descriptor.
    #[serde(with = "As::<Count<1>>")]
    pub requests: usize,
    /// Bytes of records that a partition reads from the log in one go. Larger: fewer reads; smaller: memory is shared
    /// more evenly among partitions.
    #[serde(with = "As::<Size<{ 4 * KIB }>>")]
    pub read_chunk: usize,
    /// Most records that a partition holds, queued or in flight, besides `node.memory`. A larger window finds work for
    /// more keys when a few keys hold most records; once 512 keys are ready to start (more where `concurrency` is
    /// larger), reading waits for them.
    #[serde(with = "As::<Count<1>>")]
    pub window: usize,
    /// Finished ranges kept above a position. At the bound reading ahead stops until the oldest unfinished record moves
    /// on.
    #[serde(with = "As::<Count<1>>")]
    pub ranges: usize,
    /// Start slots that a limiter grants to one partition in one turn. More: fewer messages between actors; fewer:
    /// fairer turns among partitions at a low limit.
    #[serde(with = "As::<Count<1>>")]
    pub permits: usize,
    /// When a failed actor is built again.
    pub restart: RestartConfig,
}

/// Restart of failed actors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RestartConfig {
    /// Wait before a failed actor is built again; doubles from there.
    #[serde(with = "As::<Time>")]
    pub first: Duration,
    /// Longest such wait.
    #[serde(with = "As::<Time>")]
    pub longest: Duration,
    /// Failures of one actor within `within` after which its parent is restarted; at the top the node ends.
    #[serde(with = "As::<Count<1>>")]
    pub escalate_after: u32,
    /// See `actors.restart.escalate_after`.
    #[serde(with = "As::<Time>")]
    pub within: Duration,
}

impl Default for ActorsConfig {
    fn default() -> Self {
        Self {
            threads: 0,
            busy_keys: 1_000,
            requests: 10_000,
            read_chunk: 64 * KIB as usize,
            window: 4_000,
            ranges: 100_000,
            permits: 256,
            restart: RestartConfig::default(),
        }
    }
}

impl Default for RestartConfig {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(100),
            longest: Duration::from_secs(30),
            escalate_after: 10,
            within: 5 * MINUTE,
        }
    }
}

/// `[logging]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LoggingConfig {
    /// Which log lines: `info`, or by module as `sluicegate=debug,warn`.
    #[serde(with = "As::<LogFilter>")]
    pub level: String,
    /// `auto`: pretty on a terminal, JSON otherwise.
    pub format: LogFormat,
    /// About one message in so many is sampled: a span, and a line for each of its attempts (`docs/logs.md`). 0 is none
    /// and costs nothing.
    #[serde(with = "As::<Count>")]
    pub sample: u64,
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Pretty on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

impl Default for LoggingConfig {
    fn default() -> Self {
        Self {
            level: "info".into(),
            format: LogFormat::Auto,
            sample: 0,
        }
    }
}

/// `[dedup]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DedupConfig {
    /// How long finished IDs are remembered: a new record with an older one is sent. A weekly rerun falls on day 7.
    #[serde(with = "As::<Time>")]
    pub retention: Duration,
    /// Span of one bucket: the step in which memory and disk come back.
    #[serde(with = "As::<Time>")]
    pub bucket: Duration,
    /// Cache of the newest bucket. As large as the bucket on disk (some 40 B an ID) it makes look-ups of duplicates
    /// five times as fast.
    #[serde(with = "As::<Size<MIB>>")]
    pub cache: u64,
}

impl Default for DedupConfig {
    fn default() -> Self {
        Self {
            retention: 8 * DAY,
            bucket: DAY,
            cache: 16 * MIB,
        }
    }
}
