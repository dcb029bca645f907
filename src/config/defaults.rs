//! Every default, once. The loader starts from these values and overwrites what files and environment say;
//! [`super::reference`] documents them, and a test holds the two together.

use super::model::*;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

impl Default for Config {
    /// A node without partners and topics.
    fn default() -> Self {
        Self {
            node: NodeConfig::default(),
            listen: ListenConfig::default(),
            log: LogConfig::default(),
            ledger: LedgerConfig::default(),
            actors: ActorsConfig::default(),
            logging: LoggingConfig::default(),
            secrets: BTreeMap::new(),
            limits: BTreeMap::new(),
            partners: BTreeMap::new(),
            topics: BTreeMap::new(),
            dedup: DedupConfig::default(),
        }
    }
}

impl Config {
    /// Defaults for a test or a tool: everything below `data`, a fixed node ID, and an admin port that the system
    /// picks. Add partners and topics with [`Config::with_partner`] and [`Config::with_topic`].
    pub fn for_test(data: impl Into<PathBuf>) -> Self {
        let mut config = Self::default();
        config.node.id = "test-node".into();
        config.node.data = data.into();
        config.listen.admin = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        config
    }

    /// Adds (or replaces) a partner under its own name.
    pub fn with_partner(mut self, partner: PartnerConfig) -> Self {
        self.partners.insert(partner.name.clone(), partner);
        self
    }

    /// Adds (or replaces) a topic section under its own name.
    pub fn with_topic(mut self, topic: TopicConfig) -> Self {
        self.topics.insert(topic.name.clone(), topic);
        self
    }

    /// Adds (or replaces) a shared budget.
    pub fn with_limit(mut self, name: impl Into<String>, limit: LimitConfig) -> Self {
        self.limits.insert(name.into(), limit);
        self
    }
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

impl Default for ListenConfig {
    fn default() -> Self {
        Self {
            admin: SocketAddr::from((Ipv4Addr::LOCALHOST, 7070)),
            probes: None,
            token: None,
        }
    }
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

impl Default for LedgerConfig {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(10),
            payload_retention: 30 * DAY,
            payload_bytes: 4 * GIB,
            readable_id: 40,
            waiting_after: 10 * MINUTE,
            position_every: Duration::from_secs(1),
            checkpoint_entries: 1_000_000,
            checkpoint_every: Duration::from_secs(10),
        }
    }
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
            mailbox: 1_024,
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

impl Default for LoggingConfig {
    fn default() -> Self {
        Self {
            level: "info".into(),
            format: LogFormat::Auto,
            sample: 0,
        }
    }
}

impl Default for LimitConfig {
    fn default() -> Self {
        Self {
            rates: Vec::new(),
            by: None,
            burst: None,
            margin: Duration::from_millis(10),
        }
    }
}

impl Default for TimeoutConfig {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            request: Duration::from_secs(10),
            connection: 5 * MINUTE,
        }
    }
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(200),
            longest: 5 * MINUTE,
            give_up_after: DAY,
            attempts: None,
            longest_retry_after: HOUR,
        }
    }
}

impl Default for DoubtConfig {
    fn default() -> Self {
        Self::all(DoubtPolicy::Park)
    }
}

impl DoubtConfig {
    /// The same policy whatever the cause.
    pub const fn all(policy: DoubtPolicy) -> Self {
        Self {
            crash: policy,
            timeout: policy,
            gateway: policy,
        }
    }

    /// Whether any cause goes by this policy.
    pub fn uses(&self, policy: DoubtPolicy) -> bool {
        [self.crash, self.timeout, self.gateway].contains(&policy)
    }
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            failures: 20,
            open: Duration::from_secs(1),
            longest: MINUTE,
            probes: 1,
        }
    }
}

impl FloodConfig {
    /// The guards of a partner with this many requests in flight.
    pub fn for_concurrency(concurrency: usize) -> Self {
        Self {
            dead_in_a_row: 1_000,
            // One gateway error, or two, say little, however few requests are in flight.
            doubts_in_a_row: u32::try_from(concurrency).unwrap_or(u32::MAX).max(3),
            probe: Duration::from_secs(60),
        }
    }
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

/// Whether a URL template is the record's value and nothing else (a record that is just a URL).
pub fn url_is_the_value(url: &str) -> bool {
    let inner = url
        .trim()
        .strip_prefix("{{")
        .and_then(|rest| rest.strip_suffix("}}"));
    inner.is_some_and(|name| name.trim().trim_matches('-').trim() == "value")
}

impl PartnerConfig {
    /// An HTTP partner at `url` with every default. The method is POST, or GET where the URL is the record's value.
    pub fn new(name: impl Into<String>, url: impl Into<String>) -> Self {
        let url = url.into();
        let concurrency = 64;
        Self {
            name: name.into(),
            sink: SinkKind::Http,
            method: if url_is_the_value(&url) { "GET" } else { "POST" }.into(),
            url,
            headers: Vec::new(),
            body: None,
            concurrency,
            limits: Vec::new(),
            timeout: TimeoutConfig::default(),
            retry: RetryConfig::default(),
            doubt: DoubtConfig::default(),
            on_doubt: OnDoubt::Continue,
            idempotency_window: DAY,
            verify: None,
            verdict: Vec::new(),
            http2: false,
            proxy: None,
            redirects: 0,
            redirect_to: Vec::new(),
            url_reach: Reach::Usual,
            title_case_headers: false,
            rate_limit_headers: true,
            answer_limit: 64 * KIB as usize,
            ca: None,
            idempotency_key: true,
            traceparent: true,
            breaker: BreakerConfig::default(),
            flood: FloodConfig::for_concurrency(concurrency),
            retention: None,
            mask: Vec::new(),
        }
    }
}

impl VerifyConfig {
    /// A look-up at `url` with every default; `request_timeout` is the partner's.
    pub fn new(
        url: impl Into<String>,
        delivered: impl Into<String>,
        never_seen: impl Into<String>,
        request_timeout: Duration,
    ) -> Self {
        Self {
            url: url.into(),
            method: "GET".into(),
            headers: Vec::new(),
            delivered: delivered.into(),
            never_seen: never_seen.into(),
            settle: Duration::from_secs(1),
            timeout: request_timeout,
        }
    }
}

impl TopicConfig {
    /// A topic delivered to one partner, with every default: four partitions, ordered by the record's key, and
    /// every record a message of its own (ID = its position: two equal records are two messages, nothing is
    /// dropped for looking alike).
    pub fn new(name: impl Into<String>, partner: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            pattern: None,
            deliver: vec![DeliverConfig::to(partner)],
            partitions: 4,
            id: vec![IdSource::Position],
            key: KeySource::Record,
            reads: Vec::new(),
            key_missing: KeyMissing::Unordered,
            id_missing: IdMissing::Dead,
            retention: None,
            retention_bytes: None,
            busy_keys: None,
        }
    }
}

impl DeliverConfig {
    /// Everything to one partner.
    pub fn to(partner: impl Into<String>) -> Self {
        Self {
            partner: PartnerRef::Named(partner.into()),
            when: None,
        }
    }
}
