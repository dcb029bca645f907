//! Every metric of a node: name, unit, labels and meaning, in this one file.
//!
//! Two kinds. **Counted** on the way: counters and [`Durations`], held as ready handles by whoever counts
//! ([`PartnerMetrics`] and the fields of [`Metrics`]), a relaxed atomic addition each. **Read** at a scrape: gauges, set
//! from the node's own status ([`Metrics::read`]), so that `/metrics` and `/api/status` cannot disagree.
//!
//! `docs/metrics.md` is written from the registration below; a test compares them. Labels hold names from the
//! configuration, never anything from a record (I9), so their number is bounded by the configuration.
//! After a restart counters begin at zero, as Prometheus expects.

mod histogram;

pub use histogram::Durations;

use crate::api::status::Status;
use parking_lot::Mutex;
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge;
use prometheus_client::registry::{Metric, Registry, Unit};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A number that only rises.
pub type Counter = counter::Counter<u64, AtomicU64>;
/// A number read at a scrape.
pub type Gauge = gauge::Gauge<f64, AtomicU64>;
type Labels = Vec<(&'static str, String)>;

/// One line of `docs/metrics.md`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricDoc {
    /// The name under which it is scraped.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Label names.
    pub labels: &'static str,
    /// What it says.
    pub meaning: &'static str,
}

/// What a key's actor is called among [`ACTOR_KINDS`].
const KEY_ACTOR: &str = "subpartition";
/// Kinds of actors whose restarts are counted.
pub const ACTOR_KINDS: [&str; 5] = ["topic", "partition", KEY_ACTOR, "limiter", "ledger"];

/// All metrics of a node. Shared by reference; see the module's header.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    docs: Vec<MetricDoc>,
    attempts: Family<Labels, Counter>,
    messages: Family<Labels, Counter>,
    attempt_time: Family<Labels, Durations>,
    age: Family<Labels, Durations>,
    start_delay: Family<Labels, Durations>,
    limiter_wait: Family<Labels, Durations>,
    /// Commits of the ledger that became durable.
    pub ledger_commits: Counter,
    /// Entries in them.
    pub ledger_entries: Counter,
    /// Time from asking for a commit to its being durable.
    pub ledger_commit_time: Durations,
    /// Duties of the ledger that could not be done, and are tried again.
    pub duty_failures: Counter,
    /// By kind of actor.
    restarts: BTreeMap<&'static str, Counter>,
    import_lines: Family<Labels, Counter>,
    suppressed: Counter,
    read: Mutex<ReadAtScrape>,
}

/// What the hot path of one partner counts. Cloned into every actor that needs it; clones share their counts.
#[derive(Clone, Debug)]
pub struct PartnerMetrics {
    /// Attempts that the partner took.
    pub attempt_delivered: Counter,
    /// Attempts certainly not taken, to be tried again.
    pub attempt_later: Counter,
    /// Attempts refused for credentials: the partner is paused.
    pub attempt_pause: Counter,
    /// Attempts refused for good.
    pub attempt_refused: Counter,
    /// Attempts whose outcome is unknown (I3).
    pub attempt_unknown: Counter,
    /// Attempts stopped right before the first byte: slot missed, lease over. Nothing was written.
    pub attempt_stopped: Counter,
    /// Messages delivered.
    pub delivered: Counter,
    /// Messages that became dead letters.
    pub dead: Counter,
    /// Messages parked in doubt.
    pub parked: Counter,
    /// Messages passed over by a skip rule.
    pub skipped: Counter,
    /// Records whose message was finished or in flight already.
    pub duplicate: Counter,
    /// Records that the route's `when` did not match.
    pub filtered: Counter,
    /// From the first byte written to the verdict.
    pub attempt_time: Durations,
    /// From the record's timestamp to its delivery.
    pub age: Durations,
    /// From the record's timestamp to the first byte of its first attempt.
    pub start_delay: Durations,
    /// From asking for a permit to having it.
    pub limiter_wait: Durations,
    /// Keys' actors that panicked; of all partners together.
    pub keys_restarted: Counter,
}

impl PartnerMetrics {
    /// The attempts counter of a verdict.
    #[inline]
    pub fn attempt(&self, verdict: crate::sink::Verdict) -> &Counter {
        use crate::sink::Verdict;
        match verdict {
            Verdict::Delivered => &self.attempt_delivered,
            Verdict::TryLater => &self.attempt_later,
            Verdict::Pause => &self.attempt_pause,
            Verdict::Refused => &self.attempt_refused,
            Verdict::Unknown(_) => &self.attempt_unknown,
        }
    }
}

/// What became of an imported line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineResult {
    /// It is a record now.
    Accepted,
    /// It was in a file imported before.
    Known,
    /// It could not be read as a record.
    Rejected,
}

impl LineResult {
    fn label(self) -> &'static str {
        match self {
            LineResult::Accepted => "accepted",
            LineResult::Known => "known",
            LineResult::Rejected => "rejected",
        }
    }
}

/// Registers and documents at once, so that the one cannot be without the other.
struct Book {
    registry: Registry,
    docs: Vec<MetricDoc>,
}

impl Book {
    fn add<M: Metric + Clone>(
        &mut self,
        kind: &'static str,
        name: &'static str,
        unit: Option<Unit>,
        labels: &'static str,
        meaning: &'static str,
        metric: M,
    ) -> M {
        let suffix = unit
            .as_ref()
            .map(|u| format!("_{}", u.as_str()))
            .unwrap_or_default();
        let total = if kind == "counter" { "_total" } else { "" };
        self.docs.push(MetricDoc {
            name: format!("sluicegate_{name}{suffix}{total}"),
            kind,
            labels,
            meaning,
        });
        match unit {
            Some(unit) => self
                .registry
                .register_with_unit(name, meaning, unit, metric.clone()),
            None => self.registry.register(name, meaning, metric.clone()),
        }
        metric
    }

    fn counter(&mut self, name: &'static str, meaning: &'static str) -> Counter {
        self.add("counter", name, None, "", meaning, Counter::default())
    }

    fn counters(
        &mut self,
        name: &'static str,
        labels: &'static str,
        meaning: &'static str,
    ) -> Family<Labels, Counter> {
        self.add("counter", name, None, labels, meaning, Family::default())
    }

    fn durations(
        &mut self,
        name: &'static str,
        labels: &'static str,
        meaning: &'static str,
    ) -> Family<Labels, Durations> {
        self.add(
            "histogram",
            name,
            Some(Unit::Seconds),
            labels,
            meaning,
            Family::default(),
        )
    }

    fn gauge(&mut self, name: &'static str, unit: Option<Unit>, meaning: &'static str) -> Gauge {
        self.add("gauge", name, unit, "", meaning, Gauge::default())
    }

    fn gauges(
        &mut self,
        name: &'static str,
        unit: Option<Unit>,
        labels: &'static str,
        meaning: &'static str,
    ) -> Family<Labels, Gauge> {
        self.add("gauge", name, unit, labels, meaning, Family::default())
    }
}

const ROUTE: &str = "topic, partner, partition";

/// Gauges, and counters that are kept elsewhere, set from a [`Status`].
#[derive(Debug)]
struct ReadAtScrape {
    lag: Family<Labels, Gauge>,
    oldest: Family<Labels, Gauge>,
    held: Family<Labels, Gauge>,
    stopped: Family<Labels, Gauge>,
    in_flight: Family<Labels, Gauge>,
    permits_waiting: Family<Labels, Gauge>,
    breaker_open: Family<Labels, Gauge>,
    paused: Family<Labels, Gauge>,
    eta: Family<Labels, Gauge>,
    connections: Family<Labels, Gauge>,
    connects: Family<Labels, Counter>,
    connect_failures: Family<Labels, Counter>,
    stale_connections: Family<Labels, Counter>,
    memory_held: Gauge,
    memory_part: Family<Labels, Gauge>,
    budget_values: Family<Labels, Gauge>,
    memory_bound: Gauge,
    intake_paused: Gauge,
    log_commits: Counter,
    log_bytes: Counter,
    log_disk: Gauge,
    ledger_records: Gauge,
    ledger_behind: Gauge,
    payloads_dropped: Counter,
    store_ids: Gauge,
    store_disk: Gauge,
    store_memory: Gauge,
    store_buckets: Gauge,
    uptime: Gauge,
    info: Family<Labels, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A registry with every metric in it, all at zero.
    pub fn new() -> Self {
        let mut book = Book {
            registry: Registry::with_prefix("sluicegate"),
            docs: Vec::new(),
        };
        let b = &mut book;
        let attempts = b.counters(
            "attempts",
            "partner, verdict",
            "requests by verdict: delivered, later, pause, refused, unknown, stopped (right before the first byte; nothing was written)",
        );
        let messages = b.counters(
            "messages",
            "partner, outcome",
            "messages by what became of them: delivered, dead, parked, skipped; and records that needed no request: duplicate, filtered",
        );
        let attempt_time = b.durations("attempt", "partner", "from the first byte written to the verdict");
        let age = b.durations("age", "partner", "from a record's timestamp to its delivery");
        let start_delay = b.durations(
            "start_delay",
            "partner",
            "from a record's timestamp to the first byte of its first attempt",
        );
        let limiter_wait = b.durations("limiter_wait", "partner", "from asking for a permit to having it");
        let ledger_commits = b.counter(
            "ledger_commits",
            "group commits of the ledger that became durable",
        );
        let ledger_entries = b.counter("ledger_entries", "entries in those commits");
        let ledger_commit_time = b.add(
            "histogram",
            "ledger_commit",
            Some(Unit::Seconds),
            "",
            "from asking for a ledger commit to its being durable",
            Durations::default(),
        );
        let duty_failures = b.counter(
            "ledger_duty_failures",
            "checkpoints, expiries, trims that could not be done and are tried again (no room on the disk, say)",
        );
        let restarts = b.counters(
            "actor_restarts",
            "kind",
            "actors rebuilt after a failure, by kind of actor",
        );
        let of_kind = |kind: &'static str| {
            (
                kind,
                restarts.get_or_create_owned(&vec![("kind", kind.to_owned())]),
            )
        };
        let restarts = ACTOR_KINDS.map(of_kind).into();
        let import_lines = b.counters(
            "import_lines",
            "topic, result",
            "imported lines: accepted, known (in a file imported before), rejected",
        );
        let suppressed = b.counter(
            "log_lines_suppressed",
            "log lines held back because their kind came too often",
        );
        let read = ReadAtScrape::new(b);
        let Book { registry, docs } = book;
        Self {
            registry,
            docs,
            attempts,
            messages,
            attempt_time,
            age,
            start_delay,
            limiter_wait,
            ledger_commits,
            ledger_entries,
            ledger_commit_time,
            duty_failures,
            restarts,
            import_lines,
            suppressed,
            read: Mutex::new(read),
        }
    }

    /// The handles of one partner. Asking again gives handles on the same counts. Not for the hot path.
    pub fn partner(&self, partner: &str) -> PartnerMetrics {
        let attempt = |verdict: &str| {
            self.attempts.get_or_create_owned(&vec![
                ("partner", partner.to_owned()),
                ("verdict", verdict.to_owned()),
            ])
        };
        let message = |outcome: &str| {
            self.messages.get_or_create_owned(&vec![
                ("partner", partner.to_owned()),
                ("outcome", outcome.to_owned()),
            ])
        };
        let of = |family: &Family<Labels, Durations>| {
            family.get_or_create_owned(&vec![("partner", partner.to_owned())])
        };
        PartnerMetrics {
            attempt_delivered: attempt("delivered"),
            attempt_later: attempt("later"),
            attempt_pause: attempt("pause"),
            attempt_refused: attempt("refused"),
            attempt_unknown: attempt("unknown"),
            attempt_stopped: attempt("stopped"),
            delivered: message("delivered"),
            dead: message("dead"),
            parked: message("parked"),
            skipped: message("skipped"),
            duplicate: message("duplicate"),
            filtered: message("filtered"),
            attempt_time: of(&self.attempt_time),
            age: of(&self.age),
            start_delay: of(&self.start_delay),
            limiter_wait: of(&self.limiter_wait),
            keys_restarted: self.restarts.get(KEY_ACTOR).cloned().unwrap_or_default(),
        }
    }

    /// Counts one restart of an actor of this kind, one of [`ACTOR_KINDS`].
    pub fn restarted(&self, kind: &'static str) {
        let counter = self.restarts.get(kind);
        debug_assert!(counter.is_some(), "an unknown kind of actor: {kind}");
        if let Some(counter) = counter {
            counter.inc();
        }
    }

    /// Restarts of actors, of the kinds that had any.
    pub fn restarts(&self) -> BTreeMap<String, u64> {
        let counts = self
            .restarts
            .iter()
            .map(|(kind, n)| ((*kind).to_owned(), n.get()));
        counts.filter(|(_, n)| *n > 0).collect()
    }

    /// The counter of imported lines of a topic; take it once an import.
    pub fn import_lines(&self, topic: &str, result: LineResult) -> Counter {
        self.import_lines.get_or_create_owned(&vec![
            ("topic", topic.to_owned()),
            ("result", result.label().to_owned()),
        ])
    }

    /// Sets what is read at a scrape. Partners and partitions that are gone go from the output, too.
    pub fn read(&self, status: &Status) {
        self.read.lock().set(status);
        let suppressed = super::every::suppressed();
        self.suppressed.inner().store(suppressed, Relaxed);
    }

    /// The exposition in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        let _one_scrape_at_a_time = self.read.lock();
        let mut out = String::with_capacity(16 * 1024);
        // Writing to a string cannot fail; what was encoded so far is still well formed.
        let _ = text::encode(&mut out, &self.registry);
        out
    }

    /// What is registered, for `docs/metrics.md`.
    pub fn docs(&self) -> &[MetricDoc] {
        &self.docs
    }
}

fn of_partner(partner: &str) -> Labels {
    vec![("partner", partner.to_owned())]
}

fn flag(set: bool) -> f64 {
    if set { 1.0 } else { 0.0 }
}

impl ReadAtScrape {
    fn new(b: &mut Book) -> Self {
        Self {
            lag: b.gauges(
                "lag_records",
                None,
                ROUTE,
                "records of the partition not finished yet",
            ),
            oldest: b.gauges(
                "lag_age",
                Some(Unit::Seconds),
                ROUTE,
                "age of the oldest record not finished yet",
            ),
            held: b.gauges(
                "held_messages",
                None,
                "topic, partner, partition, state",
                "messages kept in the ledger: waiting, parked, dead, skipped",
            ),
            stopped: b.gauges(
                "route_stopped",
                None,
                ROUTE,
                "1 while the route is stopped (flood guard, operator)",
            ),
            in_flight: b.gauges("in_flight", None, "partner", "requests on the wire"),
            permits_waiting: b.gauges(
                "permits_waiting",
                None,
                "partner",
                "messages that wait for a permit",
            ),
            breaker_open: b.gauges(
                "breaker_open",
                None,
                "partner",
                "1 while the circuit breaker is open, 0.5 while it probes",
            ),
            paused: b.gauges("partner_paused", None, "partner", "1 while the partner is paused"),
            eta: b.gauges(
                "eta",
                Some(Unit::Seconds),
                "partner",
                "time to drain what waits: waiting / min(limit, measured rate); absent while unknown",
            ),
            connections: b.gauges("connections", None, "partner", "connections open"),
            connects: b.counters("connects", "partner", "connections made"),
            connect_failures: b.counters("connect_failures", "partner", "connects that failed"),
            stale_connections: b.counters(
                "stale_connections",
                "partner",
                "idle connections found closed by the partner when they were needed",
            ),
            memory_held: b.gauge(
                "memory_held",
                Some(Unit::Bytes),
                "bytes held by queues, retries, bookkeeping (I6)",
            ),
            memory_part: b.gauges(
                "memory_part",
                Some(Unit::Bytes),
                "part",
                "of these: messages on their way, the ledger's fold, filters of the store, where the log has its records, entries not folded yet, values of limits with `by`",
            ),
            budget_values: b.gauges(
                "budget_values",
                None,
                "kind",
                "values of limits with `by`: own have a budget of their own, shared counts the budgets of those that found no room",
            ),
            memory_bound: b.gauge("memory_bound", Some(Unit::Bytes), "their bound: node.memory"),
            intake_paused: b.gauge(
                "intake_paused",
                None,
                "1 while reading is paused at the memory bound or for want of disk",
            ),
            log_commits: b.counter("log_commits", "commits of the embedded log"),
            log_bytes: b.counter("log_written_bytes", "bytes written by them"),
            log_disk: b.gauge(
                "log_disk",
                Some(Unit::Bytes),
                "bytes of the log's segments on disk",
            ),
            ledger_records: b.gauge("ledger_records", None, "entries of the ledger not trimmed yet"),
            ledger_behind: b.gauge(
                "ledger_behind",
                None,
                "1 while no checkpoint of the ledger can be written: nothing is lost, a restart would read more",
            ),
            payloads_dropped: b.counter(
                "payloads_dropped",
                "payloads of kept messages given up by retention or the size cap",
            ),
            store_ids: b.gauge("store_ids", None, "IDs in the dedup store"),
            store_disk: b.gauge(
                "store_disk",
                Some(Unit::Bytes),
                "bytes of the dedup store on disk",
            ),
            store_memory: b.gauge(
                "store_memory",
                Some(Unit::Bytes),
                "bytes of the dedup store in memory",
            ),
            store_buckets: b.gauge("store_buckets", None, "buckets of the dedup store"),
            uptime: b.gauge("uptime", Some(Unit::Seconds), "time since the process started"),
            info: b.gauges("node_info", None, "node, version", "always 1"),
        }
    }

    fn set(&self, status: &Status) {
        for family in [&self.lag, &self.oldest, &self.held, &self.stopped] {
            family.clear();
        }
        for t in &status.topics {
            let labels = || -> Labels {
                vec![
                    ("topic", t.topic.clone()),
                    ("partner", t.partner.clone()),
                    ("partition", t.partition.to_string()),
                ]
            };
            self.lag.get_or_create(&labels()).set(t.lag as f64);
            self.oldest
                .get_or_create(&labels())
                .set(t.oldest_age_ms.unwrap_or(0) as f64 / 1e3);
            self.stopped
                .get_or_create(&labels())
                .set(flag(t.stopped.is_some()));
            for (state, count) in [
                ("waiting", t.waiting),
                ("parked", t.parked),
                ("dead", t.dead),
                ("skipped", t.skipped),
            ] {
                let mut labels = labels();
                labels.push(("state", state.to_owned()));
                self.held.get_or_create(&labels).set(count as f64);
            }
        }
        self.set_partners(status);
        let node = &status.node;
        self.memory_held.set(node.memory_held as f64);
        for (part, bytes) in [
            ("messages", node.memory_messages),
            ("ledger", node.memory_ledger),
            ("store", node.memory_store),
            ("log", node.memory_log),
            ("backlog", node.memory_backlog),
            ("budgets", node.memory_budgets),
        ] {
            let labels = vec![("part", part.to_owned())];
            self.memory_part.get_or_create(&labels).set(bytes as f64);
        }
        for (kind, values) in [("own", node.budget_values), ("shared", node.budget_values_shared)] {
            let labels = vec![("kind", kind.to_owned())];
            self.budget_values.get_or_create(&labels).set(values as f64);
        }
        self.memory_bound.set(node.memory_bound as f64);
        self.intake_paused.set(flag(node.intake_paused.is_some()));
        self.uptime.set(node.uptime_s);
        self.info.clear();
        self.info
            .get_or_create(&vec![
                ("node", node.id.clone()),
                ("version", node.version.clone()),
            ])
            .set(1.0);
        self.log_commits.inner().store(status.log.commits, Relaxed);
        self.log_bytes.inner().store(status.log.bytes, Relaxed);
        self.log_disk.set(status.log.disk_bytes as f64);
        self.ledger_records.set(status.ledger.entries as f64);
        self.ledger_behind.set(flag(status.ledger.behind.is_some()));
        self.payloads_dropped
            .inner()
            .store(status.ledger.payloads_dropped, Relaxed);
        self.store_ids.set(status.store.ids as f64);
        self.store_disk.set(status.store.disk_bytes as f64);
        self.store_memory.set(status.store.memory_bytes as f64);
        self.store_buckets.set(status.store.buckets as f64);
    }

    fn set_partners(&self, status: &Status) {
        let gauges = [
            &self.in_flight,
            &self.permits_waiting,
            &self.breaker_open,
            &self.paused,
            &self.eta,
            &self.connections,
        ];
        gauges.iter().for_each(|family| family.clear());
        for p in &status.partners {
            let labels = of_partner(&p.partner);
            self.in_flight.get_or_create(&labels).set(p.in_flight as f64);
            self.permits_waiting
                .get_or_create(&labels)
                .set(p.permits_waiting as f64);
            self.breaker_open.get_or_create(&labels).set(p.breaker.gauge());
            self.paused.get_or_create(&labels).set(flag(p.paused.is_some()));
            if let Some(eta) = p.eta_s {
                self.eta.get_or_create(&labels).set(eta);
            }
            self.connections.get_or_create(&labels).set(p.connections as f64);
            self.connects
                .get_or_create(&labels)
                .inner()
                .store(p.connected, Relaxed);
            self.connect_failures
                .get_or_create(&labels)
                .inner()
                .store(p.connect_failures, Relaxed);
            self.stale_connections
                .get_or_create(&labels)
                .inner()
                .store(p.stale_connections, Relaxed);
        }
    }
}

/// `docs/metrics.md`, as it must stand.
pub fn manual() -> String {
    let metrics = Metrics::new();
    let mut out = String::from(
        "# Metrics\n\nServed as OpenMetrics text at `/metrics` of the admin port, and of the probes port where one is set.\n\
         This page is made from the registration in `src/telemetry/metrics/mod.rs`; a test keeps them alike.\n\
         Labels hold names from the configuration only. Counters begin at zero with each process.\n\n\
         | name | kind | labels | meaning |\n|---|---|---|---|\n",
    );
    let by_name: BTreeMap<&str, &MetricDoc> = metrics.docs().iter().map(|d| (d.name.as_str(), d)).collect();
    for d in by_name.values() {
        let labels = if d.labels.is_empty() { "-" } else { d.labels };
        out.push_str(&format!(
            "| `{}` | {} | {} | {} |\n",
            d.name, d.kind, labels, d.meaning
        ));
    }
    out
}

#[cfg(test)]
mod tests;
