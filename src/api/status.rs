//! What a node says of itself: `status`, `/api/status`, the page and the gauges of `/metrics` all show this.

use crate::core::waits::Wait;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A node, as it stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The node itself.
    pub node: NodeStatus,
    /// One row a route and partition.
    pub topics: Vec<TopicStatus>,
    /// One row a partner.
    pub partners: Vec<PartnerStatus>,
    /// The ledger.
    pub ledger: LedgerStatus,
    /// The dedup store.
    pub store: StoreStatus,
    /// The embedded log.
    pub log: LogStatus,
}

/// The node itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// `node.id`.
    pub id: String,
    /// Version of the program.
    pub version: String,
    /// `starting`, `running`, `draining`; `stopped` where a folder was read without a node.
    pub state: String,
    /// Process ID; 0 where there is no process.
    pub pid: u32,
    /// When it started.
    pub started: Option<String>,
    /// Seconds since then.
    pub uptime_s: f64,
    /// Bytes held (I6).
    pub memory_held: u64,
    /// Of these: messages on their way.
    #[serde(default)]
    pub memory_messages: u64,
    /// Of these: the ledger's fold: kept and waiting messages, positions, starts.
    #[serde(default)]
    pub memory_ledger: u64,
    /// Of these: filters of the store of finished IDs.
    #[serde(default)]
    pub memory_store: u64,
    /// Of these: where the log's records are.
    #[serde(default)]
    pub memory_log: u64,
    /// Of these: entries of the ledger that are written and not folded yet.
    #[serde(default)]
    pub memory_backlog: u64,
    /// Of these: values of limits with `by`. Their bound is a quarter of the whole.
    #[serde(default)]
    pub memory_budgets: u64,
    /// Values of limits with `by` that have a budget of their own now.
    #[serde(default)]
    pub budget_values: u64,
    /// Budgets that several such values share, because there is no room for more.
    #[serde(default)]
    pub budget_values_shared: u64,
    /// Their bound.
    pub memory_bound: u64,
    /// Why reading is paused, if it is.
    pub intake_paused: Option<String>,
    /// Requests on the wire over all partners.
    pub in_flight: u64,
    /// Their bound: `actors.requests`.
    pub requests: u64,
    /// Restarts of actors, by kind.
    pub restarts: BTreeMap<String, u64>,
}

/// One route in one partition.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TopicStatus {
    /// The topic.
    pub topic: String,
    /// The partner.
    pub partner: String,
    /// The partition.
    pub partition: u32,
    /// Records not finished yet: what lies behind the position and is in no finished range. Messages whose payload
    /// waits in the ledger count here too.
    pub lag: u64,
    /// Age of the oldest of them, in milliseconds.
    pub oldest_age_ms: Option<u64>,
    /// ID of the node that owns it.
    pub owner: String,
    /// Every record before this offset is finished.
    pub position: u64,
    /// One past the highest record ever taken up.
    pub high_water: u64,
    /// First record that the topic still keeps; retention moves it.
    pub begin: u64,
    /// One past the last record of the partition.
    pub end: u64,
    /// Finished ranges above the position.
    pub ranges: u64,
    /// Requests on the wire.
    pub in_flight: u64,
    /// Keys with work at present.
    pub busy_keys: u64,
    /// Messages that wait for their next attempt.
    pub waiting: u64,
    /// Messages delivered.
    pub delivered: u64,
    /// Dead letters kept.
    pub dead: u64,
    /// Messages parked in doubt.
    pub parked: u64,
    /// Messages passed over by a rule and kept.
    pub skipped: u64,
    /// Why the route is stopped, if it is.
    pub stopped: Option<String>,
}

/// One partner.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PartnerStatus {
    /// Its name.
    pub partner: String,
    /// Messages delivered, as the ledger counts them.
    pub delivered: u64,
    /// Requests on the wire.
    pub in_flight: u64,
    /// The circuit breaker.
    pub breaker: BreakerState,
    /// Seconds until what waits is delivered: [`eta_s`]. None: nothing can be said.
    pub eta_s: Option<f64>,
    /// Messages that wait: the lag of all its routes.
    pub waiting: u64,
    /// Deliveries a second, measured over the last ten seconds or so.
    pub rate: f64,
    /// The tightest of its limits, in starts a second; none: unlimited.
    pub limit: Option<f64>,
    /// Its limits in words, as in the configuration.
    pub limits: Vec<String>,
    /// Requests allowed on the wire.
    pub concurrency: u64,
    /// Messages that wait for a permit.
    pub permits_waiting: u64,
    /// Why it is paused, if it is.
    pub paused: Option<String>,
    /// No start before this time, by its own Retry-After or RateLimit.
    pub held_until: Option<String>,
    /// What its messages wait for, the weightiest first.
    pub waits: Vec<WaitStatus>,
    /// Dead letters kept.
    pub dead: u64,
    /// Messages parked in doubt.
    pub parked: u64,
    /// Messages passed over by a rule and kept.
    pub skipped: u64,
    /// What would help, in sentences.
    #[serde(default)]
    pub hints: Vec<String>,
    /// Connections open.
    pub connections: u64,
    /// Connections made.
    pub connected: u64,
    /// Connects that failed.
    pub connect_failures: u64,
    /// Why the latest connect failed, if that was within the last ten minutes.
    #[serde(default)]
    pub connect_failure: Option<String>,
    /// Idle connections found closed by the partner when they were needed.
    pub stale_connections: u64,
    /// Its sink.
    pub sink: String,
    /// Where it is: scheme, host and port, never path or query.
    pub address: String,
}

impl PartnerStatus {
    /// Says when what waits will be delivered. Of a partner that stands nothing can be said: when it goes on is not up
    /// to this node.
    pub fn estimate(&mut self) {
        let stands =
            self.paused.is_some() || self.held_until.is_some() || self.breaker != BreakerState::Closed;
        self.eta_s = match stands && self.waiting > 0 {
            true => None,
            false => eta_s(self.waiting, self.limit, self.rate),
        };
    }
}

/// One thing that a partner's messages wait for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WaitStatus {
    /// A stable word: paused, stopped, credentials, rule, breaker, retry_after, node_short, hosts, limit, settling,
    /// held, retries, in_flight.
    pub code: String,
    /// In words.
    pub text: String,
    /// Until when, where that is known.
    pub until: Option<String>,
}

impl From<Wait> for WaitStatus {
    fn from(wait: Wait) -> Self {
        Self {
            code: wait.code.to_owned(),
            text: wait.text,
            until: wait.until.map(|at| at.to_string()),
        }
    }
}

/// A circuit breaker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BreakerState {
    /// Requests pass.
    #[default]
    Closed,
    /// None passes.
    Open,
    /// Probes pass.
    HalfOpen,
}

impl BreakerState {
    /// 0 closed, 0.5 probing, 1 open.
    pub fn gauge(self) -> f64 {
        match self {
            BreakerState::Closed => 0.0,
            BreakerState::HalfOpen => 0.5,
            BreakerState::Open => 1.0,
        }
    }
    /// The word that `--json` and tables show.
    pub fn word(self) -> &'static str {
        match self {
            BreakerState::Closed => "closed",
            BreakerState::Open => "open",
            BreakerState::HalfOpen => "half-open",
        }
    }
}

/// The ledger.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LedgerStatus {
    /// Its UUID.
    pub ledger: String,
    /// Entries not trimmed yet.
    pub entries: u64,
    /// Offset of its next entry.
    pub next: u64,
    /// The present tenure.
    pub tenure: u64,
    /// Entries behind the last checkpoint.
    pub since_checkpoint: u64,
    /// Payloads of kept messages given up by retention or the size cap since the node started.
    pub payloads_dropped: u64,
    /// Why no checkpoint can be written at present, if so: a restart would read more of the ledger.
    pub behind: Option<String>,
}

/// The dedup store.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoreStatus {
    /// IDs in it.
    pub ids: u64,
    /// Buckets.
    pub buckets: u64,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Bytes in memory: filters and what is not written yet.
    pub memory_bytes: u64,
}

/// The embedded log.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogStatus {
    /// Commits since opening.
    pub commits: u64,
    /// Bytes written by them.
    pub bytes: u64,
    /// Time spent in write and sync, in microseconds.
    pub sync_us: u64,
    /// Segments on disk.
    pub segments: u64,
    /// Their bytes.
    pub disk_bytes: u64,
    /// Why no new records are taken, if so.
    pub refuses: Option<String>,
}

/// Seconds until `waiting` messages are delivered: waiting ÷ min(limit, measured rate), all a second. Nothing waits:
/// zero. Nothing moves: none. A partner that was idle has no measured rate yet: the limit alone says how long.
pub fn eta_s(waiting: u64, limit: Option<f64>, rate: f64) -> Option<f64> {
    if waiting == 0 {
        return Some(0.0);
    }
    let rate = Some(rate).filter(|r| r.is_finite() && *r > 0.0);
    let limit = limit.filter(|l| l.is_finite() && *l > 0.0);
    let speed = match (limit, rate) {
        (Some(limit), Some(rate)) => limit.min(rate),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => return None,
    };
    Some(waiting as f64 / speed)
}
