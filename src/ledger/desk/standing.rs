//! The part of `status` that the ledger knows: what is finished, what waits, what is kept. A running node adds what
//! is on the wire; a stopped one has nothing there.

use super::Desk;
use crate::api::status::{LedgerStatus, PartnerStatus, Status, StoreStatus, TopicStatus};
use crate::config::{CalendarUnit, Config, LimitConfig, LimitRef, PartnerConfig, PartnerRef, Rate, units};
use crate::core::ledger::fold::{Counts, LaneState, Message, Pause};
use crate::core::types::{Offset, RouteId, RoutePartition, Time};
use crate::core::waits;
use std::collections::BTreeMap;

/// Totals of a route's partition, as the fold has them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    /// Every record before this one is finished.
    pub position: Offset,
    /// One past the highest record ever taken up.
    pub high_water: Offset,
    /// Records in finished ranges above the position.
    pub covered: u64,
    /// Those ranges.
    pub ranges: u64,
    /// Attempts that are, or may be, on the wire.
    pub open: u64,
    /// Messages that wait for their next attempt.
    pub waiting: u64,
    /// Messages that are finished for the position only: their payload waits, or is on the wire, from the ledger.
    pub from_ledger: u64,
    /// Messages in doubt.
    pub parked: u64,
    /// Dead letters.
    pub dead: u64,
    /// Messages passed over.
    pub skipped: u64,
    /// When the longest waiting message was first tried, or opened again.
    pub oldest_waiting: Option<Time>,
    /// Finished messages.
    pub counts: Counts,
}

/// A copy of what `status` needs of a fold: one pass over the messages in memory, no I/O.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// Topic and partner of each route.
    routes: BTreeMap<RouteId, (String, String)>,
    tallies: BTreeMap<RoutePartition, Tally>,
    paused: BTreeMap<String, Pause>,
    stopped: BTreeMap<RouteId, Pause>,
    owner: String,
    ledger: u128,
    first: Offset,
    next: Offset,
    tenure: Offset,
}

impl Standing {
    /// Copies it.
    pub fn of(state: &LaneState) -> Self {
        Self {
            routes: state
                .routes
                .values()
                .map(|r| (r.route, (r.topic.clone(), r.partner.clone())))
                .collect(),
            tallies: state
                .partitions
                .keys()
                .map(|at| (*at, tally(state, *at)))
                .collect(),
            paused: state.paused.clone(),
            stopped: state.stopped.clone(),
            owner: state.owner.as_ref().map(|o| o.node.clone()).unwrap_or_default(),
            ledger: state.genesis.as_ref().map_or(0, |g| g.ledger),
            first: state.first,
            next: state.next,
            tenure: state.tenure.0,
        }
    }
}

fn tally(state: &LaneState, at: RoutePartition) -> Tally {
    let Some(p) = state.partitions.get(&at) else {
        return Tally::default();
    };
    let mut t = Tally {
        position: p.position,
        high_water: p.high_water,
        covered: p.finished.covered(),
        ranges: p.finished.len() as u64,
        counts: p.counts,
        ..Tally::default()
    };
    let totals = p.messages.totals();
    (t.open, t.waiting, t.from_ledger) = (totals.open, totals.later, totals.from_ledger);
    (t.parked, t.dead, t.skipped) = (totals.parked, totals.dead, totals.skipped);
    t.oldest_waiting = p.messages.unsettled().map(|(_, m)| since(&m)).min();
    t
}

/// When a message was first tried in its round, or came into its state.
fn since(m: &Message) -> Time {
    match m.first_try {
        Time::ZERO => m.since,
        first_try => first_try,
    }
}

/// Why a route is stopped, where only the ledger knows it.
const GONE: &str = "not in the configuration (any more): nothing of it is sent; what is known of it is kept until it comes back";

impl Desk {
    /// What the ledger, the store and the inputs say of where everything stands. Partners and topics of the
    /// configuration that the ledger has not met yet are there, too.
    pub fn status(&self, standing: &Standing, now: Time) -> Status {
        let stats = self.memory.stats();
        let mut status = Status {
            topics: self.topics(standing, now),
            ledger: LedgerStatus {
                ledger: format!("{:032x}", standing.ledger),
                entries: standing.next.saturating_sub(standing.first),
                next: standing.next,
                tenure: standing.tenure,
                since_checkpoint: 0,
                payloads_dropped: 0,
                behind: None,
            },
            store: StoreStatus {
                ids: stats.ids,
                buckets: stats.buckets.len() as u64,
                disk_bytes: stats.disk_bytes,
                memory_bytes: stats.memory_bytes,
            },
            ..Status::default()
        };
        if let Ok((first, _)) = self.entries.bounds() {
            status.ledger.entries = standing.next.saturating_sub(first);
        }
        status
            .topics
            .sort_by(|a, b| (&a.topic, &a.partner, a.partition).cmp(&(&b.topic, &b.partner, b.partition)));
        status.partners = self.partners(standing, &status.topics);
        status.node.id.clone_from(&self.config.node.id);
        status.node.version = env!("CARGO_PKG_VERSION").to_owned();
        status.node.memory_bound = self.config.node.memory;
        status.node.requests = self.config.actors.requests as u64;
        status
    }

    /// Rows of all partitions of all routes: also of those of which the ledger has nothing to tell yet.
    fn topics(&self, standing: &Standing, now: Time) -> Vec<TopicStatus> {
        let mut all: BTreeMap<RoutePartition, Option<&Tally>> =
            standing.tallies.iter().map(|(at, t)| (*at, Some(t))).collect();
        for (route, (topic, _)) in &standing.routes {
            let there = (0..).take_while(|p| self.entries.input_bounds(topic, *p).is_some());
            for partition in there {
                let at = RoutePartition {
                    route: *route,
                    partition,
                };
                all.entry(at).or_default();
            }
        }
        let fresh = Tally::default();
        let row = |(at, tally): (&RoutePartition, &Option<&Tally>)| {
            let (topic, partner) = standing.routes.get(&at.route)?;
            Some(self.topic(standing, (topic, partner), *at, tally.unwrap_or(&fresh), now))
        };
        let mut rows: Vec<TopicStatus> = all.iter().filter_map(row).collect();
        // Records may be in a topic before a node has met its routes.
        for served in self.served() {
            let names = (&served.route.topic, &served.route.partner);
            if standing.routes.values().any(|(t, p)| (t, p) == names) {
                continue;
            }
            for (at, begin) in served.places() {
                let unmet = Tally {
                    position: begin,
                    ..Tally::default()
                };
                rows.push(self.topic(standing, (names.0, names.1), at, &unmet, now));
            }
        }
        rows
    }

    fn topic(
        &self,
        standing: &Standing,
        (topic, partner): (&str, &str),
        at: RoutePartition,
        t: &Tally,
        now: Time,
    ) -> TopicStatus {
        let (begin, end) = self
            .entries
            .input_bounds(topic, at.partition)
            .unwrap_or((t.position, t.position));
        let unread = end.saturating_sub(t.position).saturating_sub(t.covered);
        // The record at the position is the oldest that the topic still has to give; what waits in the ledger may
        // be older.
        let first_unfinished = (unread > 0)
            .then(|| self.entries.record(topic, at.partition, t.position))
            .flatten()
            .map(|r| r.timestamp);
        let oldest = [first_unfinished, t.oldest_waiting].into_iter().flatten().min();
        TopicStatus {
            topic: topic.to_owned(),
            partner: partner.to_owned(),
            partition: at.partition,
            lag: unread + t.from_ledger,
            oldest_age_ms: oldest.map(|t| u64::try_from(now.since(t).as_millis()).unwrap_or(u64::MAX)),
            owner: standing.owner.clone(),
            position: t.position,
            high_water: t.high_water,
            begin,
            end,
            ranges: t.ranges,
            in_flight: 0,
            busy_keys: 0,
            waiting: t.waiting,
            delivered: t.counts.delivered + t.counts.marked,
            dead: t.dead,
            parked: t.parked,
            skipped: t.skipped,
            stopped: match standing.stopped.get(&at.route) {
                Some(pause) => Some(pause.reason.clone()),
                None if self.is_configured(topic, partner) => None,
                None => Some(GONE.to_owned()),
            },
        }
    }

    /// Whether the configuration still has this route.
    fn is_configured(&self, topic: &str, partner: &str) -> bool {
        let Some(section) = self.config.section_of(topic) else {
            return false;
        };
        self.config.partners.contains_key(partner)
            && section.deliver.iter().any(|d| match &d.partner {
                PartnerRef::Named(name) => name == partner,
                PartnerRef::Field(_) => true,
            })
    }

    fn partners(&self, standing: &Standing, topics: &[TopicStatus]) -> Vec<PartnerStatus> {
        let mut partners: BTreeMap<&str, PartnerStatus> = BTreeMap::new();
        for name in self.config.partners.keys() {
            partners.insert(name, PartnerStatus::default());
        }
        for t in topics {
            let p = partners.entry(&t.partner).or_default();
            p.delivered += t.delivered;
            p.waiting += t.lag;
            p.dead += t.dead;
            p.parked += t.parked;
            p.skipped += t.skipped;
        }
        partners
            .into_iter()
            .map(|(name, mut p)| {
                p.partner = name.to_owned();
                p.paused = standing.paused.get(name).map(|pause| pause.reason.clone());
                settings(&self.config, &mut p);
                p.hints = self.hints(&p);
                p.estimate();
                p
            })
            .collect()
    }
}

impl Desk {
    /// What would help a partner's parked messages, whichever life parked them.
    fn hints(&self, p: &PartnerStatus) -> Vec<String> {
        let policies = self.config.partners.get(&p.partner).map(|partner| &partner.doubt);
        waits::parked_hint(&p.partner, p.parked, 0, policies)
            .into_iter()
            .collect()
    }
}

/// What the configuration says of a partner, for its status.
pub fn settings(config: &Config, p: &mut PartnerStatus) {
    let Some(partner) = config.partners.get(&p.partner) else {
        return;
    };
    let budgets = budgets(config, partner);
    p.limits = budgets.iter().flat_map(|b| &b.rates).map(units::rate).collect();
    let whole = budgets.iter().filter(|b| b.by.is_none());
    p.limit = whole.flat_map(|b| &b.rates).map(per_second).reduce(f64::min);
    p.concurrency = partner.concurrency as u64;
    p.sink = "http".to_owned();
    p.address = address(&partner.url);
}

fn budgets<'c>(config: &'c Config, partner: &'c PartnerConfig) -> Vec<&'c LimitConfig> {
    let found = partner.limits.iter().filter_map(|limit| match limit {
        LimitRef::Named(name) => config.limits.get(name),
        LimitRef::Inline(limit) => Some(limit),
    });
    found.collect()
}

/// Starts a second that a rate allows over its whole window.
pub fn per_second(rate: &Rate) -> f64 {
    match rate {
        Rate::Sliding { count, window } => *count as f64 / window.as_secs_f64().max(1e-6),
        Rate::Calendar { count, unit, .. } => {
            let seconds = match unit {
                CalendarUnit::Hour => 3_600.0,
                CalendarUnit::Day => 86_400.0,
                CalendarUnit::Week => 604_800.0,
                // A mean month: this is for an estimate only.
                CalendarUnit::Month => 2_629_746.0,
            };
            *count as f64 / seconds
        }
    }
}

/// Scheme, host and port of a partner's URL; what a record fills in stays as it is written.
fn address(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    // A name and password before the host are nobody's business (I9).
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if scheme.is_empty() {
        "by record".to_owned()
    } else {
        format!("{scheme}://{host}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_rate_is_starts_a_second() {
        assert_eq!(
            per_second(&Rate::Sliding {
                count: 500,
                window: Duration::from_secs(1)
            }),
            500.0
        );
        assert_eq!(
            per_second(&Rate::Sliding {
                count: 600,
                window: Duration::from_secs(60)
            }),
            10.0
        );
        let day = Rate::Calendar {
            count: 86_400,
            unit: CalendarUnit::Day,
            zone: "UTC".into(),
        };
        assert_eq!(per_second(&day), 1.0);
    }

    #[test]
    fn an_address_shows_no_credentials() {
        assert_eq!(
            address("https://user:pw@api.example:8443/hook?token=x"),
            "https://api.example:8443"
        );
        assert_eq!(address("http://127.0.0.1:18181/hook"), "http://127.0.0.1:18181");
        assert_eq!(address("{{ value }}"), "by record");
    }
}
