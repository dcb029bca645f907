//! The typed configuration. What is in a value of these types has been checked: every reference resolves, every
//! count that must not be zero is not, every template, pattern and pointer has been parsed once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Everything `actors.toml` and its overlays say, with defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[node]`
    pub node: NodeConfig,
    /// `[listen]`
    pub listen: ListenConfig,
    /// `[log]`
    pub log: LogConfig,
    /// `[ledger]`
    pub ledger: LedgerConfig,
    /// `[actors]`
    pub actors: ActorsConfig,
    /// `[logging]`
    pub logging: LoggingConfig,
    /// `[secrets]`, by name.
    pub secrets: BTreeMap<String, SecretSource>,
    /// `[limits.NAME]`
    pub limits: BTreeMap<String, LimitConfig>,
    /// `[partners.NAME]`
    pub partners: BTreeMap<String, PartnerConfig>,
    /// `[topics.NAME]`
    pub topics: BTreeMap<String, TopicConfig>,
    /// `[dedup]`
    pub dedup: DedupConfig,
}

/// `[node]`
#[derive(Clone, Debug, PartialEq)]
pub struct NodeConfig {
    /// Stable over restarts. Default: the host name.
    pub id: String,
    /// Folder of embedded log, dedup store, counters. Default `data`.
    pub data: PathBuf,
    /// Bound in bytes over everything held (I6). Default 512 MiB.
    pub memory: u64,
    /// How long an orderly stop waits for requests in flight. Default 20 s.
    pub drain: Duration,
}

/// `[listen]`
#[derive(Clone, Debug, PartialEq)]
pub struct ListenConfig {
    /// Control API and page. Default 127.0.0.1:7070; any address but loopback needs `token`.
    pub admin: SocketAddr,
    /// Health and metrics alone, if wanted on a port of their own.
    pub probes: Option<SocketAddr>,
    /// Where the admin token comes from.
    pub token: Option<SecretSource>,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq)]
pub struct LogConfig {
    /// Which log.
    pub kind: LogKind,
    /// Bytes of one preallocated segment. Default 64 MiB.
    pub segment: u64,
    /// Least time between two commits under load. Default 1 ms.
    pub commit_gap: Duration,
    /// Default retention of topics. Default 7 days.
    pub retention: Duration,
    /// Default size bound of topics, bytes. Default none.
    pub retention_bytes: Option<u64>,
}

/// The implementations of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogKind {
    /// On this machine, no server needed.
    Embedded,
}

/// `[ledger]`
#[derive(Clone, Debug, PartialEq)]
pub struct LedgerConfig {
    /// How long an intent's permission to send lasts, from before its commit was requested. Default 10 s.
    pub lease: Duration,
    /// How long payloads of dead, parked and skipped messages are kept. Default 30 days.
    pub payload_retention: Duration,
    /// At most so many bytes of kept payloads; the oldest skipped and dead go first, parked never. Default 4 GiB.
    pub payload_bytes: u64,
    /// Readable IDs are kept up to so many bytes; 0 keeps none. Default 40.
    pub readable_id: usize,
    /// A message that must wait longer than this is copied into the ledger, and no longer holds the position.
    /// Default 10 min.
    pub waiting_after: Duration,
    /// How often positions that rest on no outcome (duplicates, filtered records) are written. Default 1 s.
    pub position_every: Duration,
    /// How often a checkpoint is written, in ledger entries. Default 1,000,000.
    pub checkpoint_entries: u64,
    /// And after so long, if there was any entry. Default 10 s.
    pub checkpoint_every: Duration,
}

/// `[actors]`: the concurrency of the tree.
#[derive(Clone, Debug, PartialEq)]
pub struct ActorsConfig {
    /// Arbiter threads; 0 = one a core. Default 0.
    pub threads: usize,
    /// Subpartition actors at once in one partition. Default 1,000.
    pub busy_keys: usize,
    /// Requests in flight of the node over all partners. Default 10,000.
    pub requests: usize,
    /// Bytes of records a partition reads in one go. Default 64 KiB.
    pub read_chunk: usize,
    /// Most records a partition holds in memory (queued or in flight), besides `node.memory`. Default 100,000.
    pub window: usize,
    /// Finished ranges above a position; at this bound reading ahead stops. Default 100,000.
    pub ranges: usize,
    /// Mailbox capacity of long-lived actors. Default 1,024.
    pub mailbox: usize,
    /// Permits that a limiter grants in one turn. Default 256.
    pub permits: usize,
    /// When a failed actor is built again.
    pub restart: RestartConfig,
}

/// Restart of failed actors.
#[derive(Clone, Debug, PartialEq)]
pub struct RestartConfig {
    /// Wait before the first restart; doubles from there. Default 100 ms.
    pub first: Duration,
    /// Longest wait. Default 30 s.
    pub longest: Duration,
    /// So many failures within `within` escalate to the parent; at the top the node ends. Default 10.
    pub escalate_after: u32,
    /// See `escalate_after`. Default 5 min.
    pub within: Duration,
}

/// `[logging]`
#[derive(Clone, Debug, PartialEq)]
pub struct LoggingConfig {
    /// Filter, as `info` or `sluicegate=debug,warn`. Default `info`.
    pub level: String,
    /// Pretty on a terminal, JSON otherwise, unless set.
    pub format: LogFormat,
    /// About one message in so many is sampled (`docs/logs.md`); 0 = none. Default 0.
    pub sample: u64,
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Pretty on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

/// Where a secret comes from; a literal is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// An environment variable.
    Env(String),
    /// A file; a trailing line end is cut off.
    File(PathBuf),
}

/// A budget of starts.
#[derive(Clone, Debug, PartialEq)]
pub struct LimitConfig {
    /// All hold at once.
    pub rates: Vec<Rate>,
    /// One such budget for each value of this JSON pointer (text as in the file: `/app_id`).
    pub by: Option<String>,
    /// At most so many starts back to back before starts are spaced evenly. Default: no spacing.
    pub burst: Option<u32>,
    /// By how much the way to the partner may differ from one request to the next: windows are longer by that, and
    /// quotas begin later and end earlier, so that the limit holds for what the partner counts.
    pub margin: Duration,
}

/// One rate of a budget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rate {
    /// At most `count` starts in any window of this length: `500/s`, `20000/min`, `10/250ms`.
    Sliding {
        /// Starts.
        count: u64,
        /// Length of the window.
        window: Duration,
    },
    /// At most `count` starts in each calendar day (hour, week, month) of a zone: `1000000/day@Europe/London`.
    Calendar {
        /// Starts.
        count: u64,
        /// Which span.
        unit: CalendarUnit,
        /// IANA name of the zone.
        zone: String,
    },
}

/// Spans of calendar quotas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CalendarUnit {
    /// From full hour to full hour.
    Hour,
    /// From midnight to midnight: 23 or 25 hours where the clock changes.
    Day,
    /// From Monday.
    Week,
    /// From the first.
    Month,
}

/// Where a partner's limit is defined.
#[derive(Clone, Debug, PartialEq)]
pub enum LimitRef {
    /// In `[limits.NAME]`, perhaps shared with other partners.
    Named(String),
    /// At the partner itself; the budget is then called after the partner.
    Inline(LimitConfig),
}

/// `[partners.NAME]`
#[derive(Clone, Debug, PartialEq)]
pub struct PartnerConfig {
    /// Name of the section.
    pub name: String,
    /// Which sink.
    pub sink: SinkKind,
    /// Template of the URL. For `from_value` topics (a record that is just a URL) it may be `{{ value }}`.
    pub url: String,
    /// Request method. Default POST; GET where the URL is the record's value.
    pub method: String,
    /// Header names and templates of their values.
    pub headers: Vec<(String, String)>,
    /// Template of the body. Default: the record's value as it stands (nothing for GET and HEAD).
    pub body: Option<String>,
    /// Requests in flight. Default 64.
    pub concurrency: usize,
    /// Budgets that every start draws from.
    pub limits: Vec<LimitRef>,
    /// Times after which a step of a request is given up.
    pub timeout: TimeoutConfig,
    /// Backoff.
    pub retry: RetryConfig,
    /// What to do with doubts, by cause.
    pub doubt: DoubtConfig,
    /// Whether a key waits until a doubt of its message is settled. Default continue.
    pub on_doubt: OnDoubt,
    /// How long the partner remembers an Idempotency-Key: the bound of `resend`. Default 24 h.
    pub idempotency_window: Duration,
    /// The look-up for `verify`.
    pub verify: Option<VerifyConfig>,
    /// Rules before the defaults; first match wins.
    pub verdict: Vec<VerdictRuleConfig>,
    /// HTTP/2, where the partner agrees. Default off.
    pub http2: bool,
    /// Proxy URL.
    pub proxy: Option<String>,
    /// Redirects followed. Default 0.
    pub redirects: u32,
    /// Origins that redirects may lead to besides their own. Default none.
    pub redirect_to: Vec<String>,
    /// How far URLs reach whose host a record names. Default usual.
    pub url_reach: Reach,
    /// Whether header names are written `Like-This`. Default no.
    pub title_case_headers: bool,
    /// Whether RateLimit headers are heeded. Default yes.
    pub rate_limit_headers: bool,
    /// Bytes of an answer read at most; the rest is not looked at. Default 64 KiB.
    pub answer_limit: usize,
    /// Extra CA certificates (PEM).
    pub ca: Option<PathBuf>,
    /// Whether `Idempotency-Key` is sent. Default yes.
    pub idempotency_key: bool,
    /// Whether `traceparent` is sent. Default yes.
    pub traceparent: bool,
    /// Circuit breaker.
    pub breaker: BreakerConfig,
    /// Flood guards.
    pub flood: FloodConfig,
    /// How long delivered IDs are remembered for this partner; default `dedup.retention`.
    pub retention: Option<Duration>,
    /// Extra names of query parameters and JSON fields to mask.
    pub mask: Vec<String>,
}

/// The sinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinkKind {
    /// HTTP request per message.
    Http,
}

/// How far URLs reach whose host a record names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Anywhere but link-local and reserved addresses, where clouds keep the credentials of their machines.
    Usual,
    /// Public addresses only.
    Public,
    /// Anywhere.
    Any,
}

/// `timeout = { … }`
#[derive(Clone, Debug, PartialEq)]
pub struct TimeoutConfig {
    /// Time for a connection to stand. Default 2 s. A failed connect is no doubt.
    pub connect: Duration,
    /// Time from first byte written to last byte of the answer. Default 10 s.
    pub request: Duration,
    /// Longest life of a connection; a new one resolves the name anew. Default 5 min.
    pub connection: Duration,
}

/// `retry = { … }`
#[derive(Clone, Debug, PartialEq)]
pub struct RetryConfig {
    /// First backoff. Default 200 ms.
    pub first: Duration,
    /// Longest backoff. Default 5 min.
    pub longest: Duration,
    /// Age, from the first try, after which a message is dead. Default 24 h.
    pub give_up_after: Duration,
    /// Attempts after which a message is dead. Default: no bound.
    pub attempts: Option<u32>,
    /// Bound on the partner's own Retry-After. Default 1 h.
    pub longest_retry_after: Duration,
}

/// What to do with an attempt whose outcome is unknown (I3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DoubtPolicy {
    /// Hold it for an operator: at most once.
    Park,
    /// Send it again with the same Idempotency-Key, within the partner's window.
    Resend,
    /// Ask the partner's look-up URL.
    Verify,
}

/// One policy a cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DoubtConfig {
    /// The process ended between intent and outcome.
    pub crash: DoubtPolicy,
    /// Timeout or reset after the request was written.
    pub timeout: DoubtPolicy,
    /// 502, 504, and 503 that a proxy gives for a broken upstream connection.
    pub gateway: DoubtPolicy,
}

/// Whether a doubt holds its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDoubt {
    /// The key goes on.
    Continue,
    /// The key waits until the doubt is settled.
    Hold,
}

/// `verify = { … }`
#[derive(Clone, Debug, PartialEq)]
pub struct VerifyConfig {
    /// Template of the look-up URL.
    pub url: String,
    /// Method. Default GET.
    pub method: String,
    /// Headers, as at the partner.
    pub headers: Vec<(String, String)>,
    /// Expression over the answer: the partner has it.
    pub delivered: String,
    /// Expression over the answer: the partner has never seen it. Any other answer parks.
    pub never_seen: String,
    /// Wait before asking, once the request cannot be on its way any more. Default 1 s.
    pub settle: Duration,
    /// Requests of this look-up within so long. Default: the partner's request timeout.
    pub timeout: Duration,
}

/// One verdict rule.
#[derive(Clone, Debug, PartialEq)]
pub struct VerdictRuleConfig {
    /// Expression over `status`, `header["…"]`, `body…`.
    pub when: String,
    /// The verdict.
    pub is: RuleVerdict,
    /// Path of the reason (`body.message`) or a text in quotes.
    pub reason: Option<String>,
    /// For `later`: wait at least so long.
    pub after: Option<Duration>,
    /// Whom the answer's waits and rate hints concern. Default: the partner's own headers hold the partner, `after`
    /// holds the message.
    pub scope: Option<RuleScope>,
}

/// Whom a verdict rule's answer concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleScope {
    /// This message alone.
    Message,
    /// The messages of its key.
    Key,
    /// The partner as a whole.
    Partner,
}

/// Verdicts that a rule can give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleVerdict {
    /// The partner took it.
    Delivered,
    /// Certainly not taken, try later.
    Later,
    /// Refused for good.
    Refused,
    /// May or may not have been taken.
    Unknown,
    /// The partner must be paused (credentials), the message is tried later.
    Pause,
}

/// Circuit breaker of a partner.
#[derive(Clone, Debug, PartialEq)]
pub struct BreakerConfig {
    /// Failures in a row that open it; 0 = no breaker. Default 20.
    pub failures: u32,
    /// How long it stays open first; doubles up to `longest`. Default 1 s.
    pub open: Duration,
    /// Longest open time. Default 1 min.
    pub longest: Duration,
    /// Probes at once when half open. Default 1.
    pub probes: u32,
}

/// Flood guards of a partner.
#[derive(Clone, Debug, PartialEq)]
pub struct FloodConfig {
    /// So many dead messages in a row of one topic stop the route; 0 = never. Default 1,000.
    pub dead_in_a_row: u32,
    /// So many doubts in a row open the breaker. Default: the partner's concurrency, at least 3.
    pub doubts_in_a_row: u32,
    /// After twice as many doubts in a row as the concurrency, the next probe waits so long, each further one twice
    /// as long as the one before, up to ten times this. Default 1 min.
    pub probe: Duration,
}

/// `[topics.NAME]`
#[derive(Clone, Debug, PartialEq)]
pub struct TopicConfig {
    /// Name of the section; the topic's name unless `pattern` is set.
    pub name: String,
    /// Regular expression over whole topic names, if the section is for many topics.
    pub pattern: Option<String>,
    /// The partners it feeds.
    pub deliver: Vec<DeliverConfig>,
    /// Partitions it is made with. Default 4.
    pub partitions: u32,
    /// What makes a message the same again; joined where several. Default: its position.
    pub id: Vec<IdSource>,
    /// The unit of order. Default: the record's key.
    pub key: KeySource,
    /// JSON pointers of the fields that conditions, routes, budgets and templates of its partners look at: each must
    /// be there once. Not a setting: found when the configuration is loaded.
    pub reads: Vec<String>,
    /// What to do with a record without key. Default unordered.
    pub key_missing: KeyMissing,
    /// What to do with a record without ID. Default dead.
    pub id_missing: IdMissing,
    /// Retention; default `log.retention`.
    pub retention: Option<Duration>,
    /// Size bound; default `log.retention_bytes`.
    pub retention_bytes: Option<u64>,
    /// Default `actors.busy_keys`.
    pub busy_keys: Option<usize>,
}

/// One route of a topic section.
#[derive(Clone, Debug, PartialEq)]
pub struct DeliverConfig {
    /// Which partner.
    pub partner: PartnerRef,
    /// Filter expression over the record; records that do not match are finished at once.
    pub when: Option<String>,
}

/// A partner by name, or by what a field of the record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartnerRef {
    /// A section of `[partners]`.
    Named(String),
    /// JSON pointer to the partner's name; an unknown name makes the record a dead letter.
    Field(String),
}

/// Parts of a message ID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdSource {
    /// `header:NAME`
    Header(String),
    /// `json:/POINTER`
    Json(String),
    /// `key`
    Key,
    /// `hash`: of the value.
    Hash,
    /// `query:NAME`: a parameter of the URL that the value is.
    Query(String),
    /// `position`
    Position,
}

/// The unit of order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// The record's key.
    Record,
    /// `json:/POINTER`
    Json(String),
}

/// What to do with a record without key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyMissing {
    /// Each is a key of its own.
    Unordered,
    /// All share one key.
    Together,
    /// Dead letter.
    Dead,
}

/// What to do with a record without ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdMissing {
    /// Dead letter.
    Dead,
    /// Its position is its ID.
    Position,
}

/// `[dedup]`
#[derive(Clone, Debug, PartialEq)]
pub struct DedupConfig {
    /// How long finished IDs are remembered. Default 8 days.
    pub retention: Duration,
    /// Span of one bucket. Default 1 day.
    pub bucket: Duration,
    /// sled cache of the newest bucket, bytes. Default 64 MiB.
    pub cache: u64,
}
