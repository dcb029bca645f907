//! The counts of one partner, exact and cheap enough to be always on, and the report made of them.

use super::plan::{Nanos, Plan, nanos};
use super::spec::{Rate, Span};
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

/// At most so many message IDs are named in a report (duplicates), so many bytes of each.
const NAMED: usize = 20;
const NAMED_BYTES: usize = 80;

/// IDs and keys are hashes already: their first bytes are as good a hash as any. The last write wins: an array
/// writes its length first, and then itself.
#[derive(Default, Clone)]
struct Taken(u64);
impl Hasher for Taken {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        let mut head = [0; 8];
        let n = bytes.len().min(8);
        head[..n].copy_from_slice(&bytes[..n]);
        self.0 = u64::from_le_bytes(head);
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }
}
type ByHash<K, V> = HashMap<K, V, BuildHasherDefault<Taken>>;

/// Hash of a message ID or key: the first half of its blake3.
pub fn hash16(text: &[u8]) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&blake3::hash(text).as_bytes()[..16]);
    out
}

/// What is counted for one message ID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IdCount {
    /// Requests with it.
    pub requests: u32,
    /// Times it was applied.
    pub applied: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct KeyState {
    highest: Option<u64>,
    in_flight: u32,
}

/// Highest count of arrivals in any window `(t - length, t]`.
#[derive(Clone, Debug)]
pub struct Window {
    length: Nanos,
    arrivals: VecDeque<Nanos>,
    max: usize,
}

impl Window {
    /// A window of this length in which nothing has arrived.
    pub fn new(length: Nanos) -> Self {
        Self {
            length,
            arrivals: VecDeque::new(),
            max: 0,
        }
    }
    /// Counts an arrival. Arrivals may come in slightly out of order (read first, judged later).
    pub fn arrive(&mut self, at: Nanos) {
        match self.arrivals.back() {
            Some(last) if *last > at => {
                let place = self.arrivals.partition_point(|t| *t <= at);
                self.arrivals.insert(place, at);
            }
            _ => self.arrivals.push_back(at),
        }
        let newest = self.arrivals.back().copied().unwrap_or(at);
        while self.arrivals.front().is_some_and(|t| newest - *t >= self.length) {
            self.arrivals.pop_front();
        }
        self.max = self.max.max(self.arrivals.len());
    }
    /// The highest count so far.
    pub fn max(&self) -> usize {
        self.max
    }
}

/// A request as it is counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Arrival<'a> {
    /// When its head was read.
    pub at: Nanos,
    /// Its message ID; empty if it has none.
    pub id: &'a [u8],
    /// Its key; empty if it has none.
    pub key: &'a [u8],
    /// Its sequence number within the key.
    pub seq: Option<u64>,
    /// Its bytes, head and body.
    pub bytes: usize,
}

/// What is to be ended when the request is answered or given up.
#[derive(Clone, Copy, Debug)]
pub struct Open {
    key: Option<u64>,
}

/// All counts of one partner.
#[derive(Debug, Default)]
pub struct Tally {
    requests: u64,
    without_id: u64,
    repeats: u64,
    applied: u64,
    applied_without_id: u64,
    limited: u64,
    statuses: BTreeMap<u16, u64>,
    faults: BTreeMap<&'static str, u64>,
    unanswered: u64,
    in_flight: u64,
    in_flight_peak: u64,
    bytes_in: u64,
    bytes_out: u64,
    connections: u64,
    bad_requests: u64,
    lookups: u64,
    ids: ByHash<[u8; 16], IdCount>,
    ids_applied: u64,
    ids_applied_again: u64,
    ids_requested_again: u64,
    most_requests: u32,
    keys: ByHash<u64, KeyState>,
    order_violations: u64,
    overlaps: u64,
    windows: Vec<Window>,
    /// Limits that are to be kept.
    most: Vec<(Rate, Window)>,
    first_at: Option<Nanos>,
    last_at: Nanos,
    longest_gap: Nanos,
    named: Vec<(String, [u8; 16])>,
}

impl Tally {
    /// Nothing counted yet; arrivals will be counted over these windows, and held against these limits.
    pub fn new(windows: &[Span], most: &[Rate]) -> Self {
        let held = |rate: &Rate| (*rate, Window::new(nanos(rate.window)));
        Self {
            most: most.iter().map(held).collect(),
            windows: windows.iter().map(|w| Window::new(nanos(w.0))).collect(),
            ..Self::default()
        }
    }

    /// What is counted for an ID.
    pub fn id(&self, id: &[u8]) -> IdCount {
        self.ids.get(&hash16(id)).copied().unwrap_or_default()
    }

    /// Counts a request that has come in. Answers its handle and whether its ID was applied before.
    pub fn arrive(&mut self, arrival: Arrival<'_>) -> (Open, bool) {
        self.requests += 1;
        self.bytes_in += arrival.bytes as u64;
        self.in_flight += 1;
        self.in_flight_peak = self.in_flight_peak.max(self.in_flight);
        if self.first_at.is_some() {
            self.longest_gap = self.longest_gap.max(arrival.at.saturating_sub(self.last_at));
        }
        self.first_at.get_or_insert(arrival.at);
        self.last_at = self.last_at.max(arrival.at);
        self.windows.iter_mut().for_each(|w| w.arrive(arrival.at));
        self.most.iter_mut().for_each(|(_, w)| w.arrive(arrival.at));
        let before = if arrival.id.is_empty() {
            self.without_id += 1;
            false
        } else {
            let hash = hash16(arrival.id);
            let count = self.ids.entry(hash).or_default();
            count.requests += 1;
            self.most_requests = self.most_requests.max(count.requests);
            if count.requests == 2 {
                self.ids_requested_again += 1;
                if self.named.len() < NAMED {
                    let shown = &arrival.id[..arrival.id.len().min(NAMED_BYTES)];
                    self.named
                        .push((String::from_utf8_lossy(shown).into_owned(), hash));
                }
            }
            count.applied > 0
        };
        let key = (!arrival.key.is_empty()).then(|| {
            let hash = hash16(arrival.key);
            let mut head = [0; 8];
            head.copy_from_slice(&hash[..8]);
            u64::from_le_bytes(head)
        });
        if let Some(key) = key {
            let state = self.keys.entry(key).or_default();
            if state.in_flight > 0 {
                self.overlaps += 1;
            }
            state.in_flight += 1;
            if let Some(seq) = arrival.seq {
                if state.highest.is_some_and(|highest| seq < highest) {
                    self.order_violations += 1;
                }
                state.highest = state.highest.max(Some(seq));
            }
        }
        (Open { key }, before)
    }

    /// Counts what was decided. `id` is the one the request arrived with.
    pub fn judge(&mut self, id: &[u8], before: bool, plan: &Plan) {
        if before {
            self.repeats += 1;
        }
        if plan.limited.is_some() {
            self.limited += 1;
        }
        if let Some(fault) = plan.fault {
            *self.faults.entry(fault.name()).or_default() += 1;
        }
        if plan.applied {
            self.applied += 1;
            if id.is_empty() {
                self.applied_without_id += 1;
            } else {
                let count = self.ids.entry(hash16(id)).or_default();
                count.applied += 1;
                match count.applied {
                    1 => self.ids_applied += 1,
                    2 => self.ids_applied_again += 1,
                    _ => {}
                }
            }
        }
    }

    /// Ends a request: answered with this status and so many bytes, or not answered.
    pub fn finish(&mut self, open: Open, status: Option<u16>, bytes: usize) {
        self.in_flight -= 1;
        self.bytes_out += bytes as u64;
        match status {
            Some(status) => *self.statuses.entry(status).or_default() += 1,
            None => self.unanswered += 1,
        }
        if let Some(state) = open.key.and_then(|key| self.keys.get_mut(&key)) {
            state.in_flight -= 1;
        }
    }

    /// Counts a connection.
    pub fn connected(&mut self) {
        self.connections += 1;
    }
    /// Counts bytes that were no request.
    pub fn bad_request(&mut self) {
        self.bad_requests += 1;
    }
    /// Counts a look-up: a limit is on all that is asked of the partner.
    pub fn looked_up(&mut self, at: Nanos) {
        self.lookups += 1;
        self.most.iter_mut().for_each(|(_, w)| w.arrive(at));
    }

    /// The report. `wall_at_start_us` makes times of day out of times since the start.
    pub fn report(&self, name: &str, url: String, wall_at_start_us: u64) -> PartnerReport {
        PartnerReport {
            name: name.to_owned(),
            url,
            requests: self.requests,
            ids: self.ids.len() as u64,
            without_id: self.without_id,
            applied: self.applied,
            ids_applied: self.ids_applied,
            ids_requested_again: self.ids_requested_again,
            ids_applied_again: self.ids_applied_again,
            most_requests_of_an_id: self.most_requests,
            applied_without_id: self.applied_without_id,
            requests_after_applied: self.repeats,
            requested_again: self
                .named
                .iter()
                .map(|(id, hash)| {
                    let count = self.ids.get(hash).copied().unwrap_or_default();
                    RepeatedId {
                        id: id.clone(),
                        requests: count.requests,
                        applied: count.applied,
                    }
                })
                .collect(),
            limited: self.limited,
            statuses: self.statuses.clone(),
            faults: self
                .faults
                .iter()
                .map(|(name, n)| ((*name).to_owned(), *n))
                .collect(),
            unanswered: self.unanswered,
            in_flight: self.in_flight,
            in_flight_peak: self.in_flight_peak,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            connections: self.connections,
            bad_requests: self.bad_requests,
            lookups: self.lookups,
            keys: self.keys.len() as u64,
            order_violations: self.order_violations,
            overlaps: self.overlaps,
            windows: self
                .windows
                .iter()
                .map(|w| WindowReport {
                    window_ms: w.length as f64 / 1e6,
                    max: w.max as u64,
                })
                .collect(),
            limits: self
                .most
                .iter()
                .map(|(rate, window)| LimitReport {
                    limit: rate.to_string(),
                    most: window.max as u64,
                    kept: window.max <= rate.count,
                })
                .collect(),
            first_at_us: self.first_at.map(|at| wall_at_start_us + at / 1_000),
            last_at_us: self.first_at.map(|_| wall_at_start_us + self.last_at / 1_000),
            longest_gap_ms: self.longest_gap as f64 / 1e6,
        }
    }
}

/// What a mock has seen, all partners.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Since its start.
    pub uptime_ms: u64,
    /// Requests of all partners.
    pub requests: u64,
    /// CPU time of the whole process (user and system), in microseconds.
    pub cpu_us: u64,
    /// The two divided; means something where the process does nothing else.
    pub cpu_us_per_request: f64,
    /// Whether every limit was kept that a partner was meant to see kept; none if there was none.
    #[serde(default)]
    pub limits_kept: Option<bool>,
    /// One each.
    pub partners: Vec<PartnerReport>,
}

impl Report {
    /// The partner of this name.
    pub fn partner(&self, name: &str) -> Option<&PartnerReport> {
        self.partners.iter().find(|p| p.name == name)
    }

    /// The limits that were exceeded, in words.
    pub fn exceeded(&self) -> Vec<String> {
        let partners = self.partners.iter();
        partners
            .flat_map(|p| p.limits.iter().filter(|l| !l.kept).map(move |l| (p, l)))
            .map(|(p, l)| format!("{}: {} arrived in one window of {}", p.name, l.most, l.limit))
            .collect()
    }
}

impl PartnerReport {
    /// Where its sums do not add up: a report is one snapshot, so they always do.
    pub fn mistakes(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut same = |what: &str, sum: u64, of: u64| {
            if sum != of {
                found.push(format!("{what}: {sum} are not {of}"));
            }
        };
        let answered: u64 = self.statuses.values().sum();
        same(
            "requests",
            answered + self.unanswered + self.in_flight,
            self.requests,
        );
        let applied_once = self.ids_applied + self.applied_without_id;
        if self.ids_applied_again == 0 {
            same("applied", applied_once, self.applied);
        } else if self.applied <= applied_once {
            found.push("applied: fewer than were applied again".to_owned());
        }
        if self.ids_applied > self.ids || self.ids + self.without_id > self.requests {
            found.push("more IDs than requests".to_owned());
        }
        found
    }
}

/// What one partner has seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PartnerReport {
    /// Its name.
    pub name: String,
    /// Where it is reached.
    pub url: String,
    /// Requests read (look-ups, reports and control not counted).
    pub requests: u64,
    /// Different message IDs.
    pub ids: u64,
    /// Requests without a message ID.
    pub without_id: u64,
    /// Times a message was applied.
    pub applied: u64,
    /// Different message IDs applied.
    pub ids_applied: u64,
    /// Message IDs that came in more than one request (retries included).
    pub ids_requested_again: u64,
    /// Message IDs applied more than once: duplicates that did damage.
    pub ids_applied_again: u64,
    /// The most requests that one message ID came in.
    pub most_requests_of_an_id: u32,
    /// Requests without an ID that were applied.
    pub applied_without_id: u64,
    /// Requests for a message that had been applied before: what an exactly-once sender never sends, unless its
    /// policy for doubts says so.
    pub requests_after_applied: u64,
    /// Some IDs that came more than once.
    pub requested_again: Vec<RepeatedId>,
    /// Requests over its own limit.
    pub limited: u64,
    /// Answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Faults by name.
    pub faults: BTreeMap<String, u64>,
    /// Requests that ended without a complete answer.
    pub unanswered: u64,
    /// Requests not ended yet.
    pub in_flight: u64,
    /// Most requests not ended at one time.
    pub in_flight_peak: u64,
    /// Bytes of requests.
    pub bytes_in: u64,
    /// Bytes of answers.
    pub bytes_out: u64,
    /// Connections taken.
    pub connections: u64,
    /// Things read that were no HTTP request.
    pub bad_requests: u64,
    /// Look-ups answered.
    pub lookups: u64,
    /// Different keys.
    pub keys: u64,
    /// Requests whose sequence number was below an earlier one of their key.
    pub order_violations: u64,
    /// Requests that came while another one of their key was not ended. A sender that has given up on a hanging
    /// request and goes on may count here, if its close is seen late.
    pub overlaps: u64,
    /// Most arrivals in any sliding window.
    pub windows: Vec<WindowReport>,
    /// Limits that it was meant to see kept.
    #[serde(default)]
    pub limits: Vec<LimitReport>,
    /// First arrival, microseconds since the epoch.
    pub first_at_us: Option<u64>,
    /// Last arrival, microseconds since the epoch.
    pub last_at_us: Option<u64>,
    /// Longest time between two arrivals.
    pub longest_gap_ms: f64,
}

/// A message ID that came more than once.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RepeatedId {
    /// The ID, cut to 80 bytes.
    pub id: String,
    /// Requests.
    pub requests: u32,
    /// Times applied.
    pub applied: u32,
}

/// Whether a limit was kept, as the partner counts: by arrival, in every sliding window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LimitReport {
    /// The limit: `500/s`.
    pub limit: String,
    /// Most arrivals in any of its windows.
    pub most: u64,
    /// The verdict.
    pub kept: bool,
}

/// Most arrivals in any window of a length.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WindowReport {
    /// Its length.
    pub window_ms: f64,
    /// Most arrivals in `(t - length, t]`.
    pub max: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request<'a>(at: Nanos, id: &'a str, key: &'a str, seq: u64) -> Arrival<'a> {
        Arrival {
            at,
            id: id.as_bytes(),
            key: key.as_bytes(),
            seq: Some(seq),
            bytes: 10,
        }
    }

    #[test]
    fn order_and_overlap_are_told_apart() {
        let mut tally = Tally::new(&[], &[]);
        let (first, _) = tally.arrive(request(1, "a", "k", 1));
        let (second, _) = tally.arrive(request(2, "b", "k", 2));
        tally.finish(first, Some(200), 1);
        tally.finish(second, None, 0);
        let (again, _) = tally.arrive(request(3, "b", "k", 2));
        tally.finish(again, Some(200), 1);
        let (late, _) = tally.arrive(request(4, "a", "k", 1));
        tally.finish(late, Some(200), 1);
        let report = tally.report("p", String::new(), 0);
        assert_eq!(
            (report.overlaps, report.order_violations, report.unanswered),
            (1, 1, 1)
        );
        assert_eq!((report.in_flight, report.in_flight_peak), (0, 2));
        assert_eq!(report.requested_again.len(), 2);
    }

    /// By arrival over sliding windows, wherever they lie: five in a row that straddle a second are five in a second.
    #[test]
    fn a_limit_has_a_verdict() {
        let rate: Rate = "4/s".parse().expect("a rate");
        for (gap_ms, most, kept) in [(251, 4, true), (249, 5, false)] {
            let mut tally = Tally::new(&[], &[rate]);
            for n in 0..20u64 {
                tally.arrive(request(600_000_000 + n * gap_ms * 1_000_000, "a", "", n));
            }
            let report = tally.report("p", String::new(), 0);
            let expected = LimitReport {
                limit: "4/1s".into(),
                most,
                kept,
            };
            assert_eq!(report.limits, [expected]);
            let whole = Report {
                partners: vec![report],
                ..Report::default()
            };
            assert_eq!(whole.exceeded().len(), usize::from(!kept));
        }
    }

    proptest! {
        /// The window's maximum equals the count of a plain search over all arrivals, also a little out of order.
        #[test]
        fn window_maximum_is_exact(gaps in proptest::collection::vec(0u64..50, 1..200), length in 1u64..200) {
            let mut window = Window::new(length);
            let (mut now, mut all) = (0, Vec::new());
            for gap in gaps {
                now += gap;
                window.arrive(now);
                all.push(now);
            }
            let oracle = all.iter().map(|end| all.iter().filter(|t| **t <= *end && *end - **t < length).count()).max();
            prop_assert_eq!(Some(window.max()), oracle);
        }
    }
}
