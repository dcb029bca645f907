//! What a question or an order needs of a lane's fold, copied out in one go.
//!
//! The fold belongs to the actor that owns the lane; reading payloads, filters on what they hold, and tables take
//! time that it must not spend (I8). So it only picks: a pass over the messages in memory, bounded copies, no I/O.

use super::served::Served;
use crate::api::messages::{FILTER_IDS, parse_time};
use crate::api::{ApiError, Filter};
use crate::core::ledger::entry::{RouteInfo, SkipRule};
use crate::core::ledger::fold::{Counts, LaneState, Message, MessageState};
use crate::core::message_id::IdScope;
use crate::core::ranges::RangeSet;
use crate::core::readable_id::{Meaning, meanings};
use crate::core::types::{MessageId, Offset, RouteId, RoutePartition, Time};
use std::collections::{BTreeMap, HashMap};

/// Most messages that one question or order takes up: some 20 MB. Orders that match more say so.
pub const MOST: usize = 100_000;
/// Most hashes that one question may make of its IDs, one a route and partition: some 30 ms.
const MOST_HASHES: usize = 200_000;

/// States of messages that are kept in the fold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct States {
    /// On the wire.
    pub open: bool,
    /// Waits for its next attempt.
    pub later: bool,
    /// In doubt.
    pub parked: bool,
    /// Dead letter.
    pub dead: bool,
    /// Passed over by a rule.
    pub skipped: bool,
}

impl States {
    /// Every state.
    pub const ALL: States = States {
        open: true,
        later: true,
        parked: true,
        dead: true,
        skipped: true,
    };
    /// Closed ones: what an operator may act on.
    pub const CLOSED: States = States {
        open: false,
        later: false,
        ..States::ALL
    };
    /// Only parked.
    pub const PARKED: States = States {
        dead: false,
        skipped: false,
        ..States::CLOSED
    };
    /// Only dead.
    pub const DEAD: States = States {
        parked: false,
        skipped: false,
        ..States::CLOSED
    };
    /// Only skipped.
    pub const SKIPPED: States = States {
        parked: false,
        dead: false,
        ..States::CLOSED
    };
    /// None: only routes and rules are wanted.
    pub const NONE: States = States {
        open: false,
        later: false,
        parked: false,
        dead: false,
        skipped: false,
    };

    fn holds(self, state: &MessageState) -> bool {
        match state {
            MessageState::Open { .. } => self.open,
            MessageState::Later { .. } => self.later,
            MessageState::Parked => self.parked,
            MessageState::Dead => self.dead,
            MessageState::Skipped => self.skipped,
        }
    }
}

/// What of a filter can be decided without reading a payload.
#[derive(Clone, Debug)]
pub struct Pick {
    pub(super) filter: Filter,
    states: States,
    since: Option<Time>,
    until: Option<Time>,
    after: Option<Place>,
    most: usize,
    ranges: bool,
}

/// Where a message stands in a list, oldest first: the order of every page, so that a cursor goes on exactly behind it.
pub(super) type Place = (Time, RoutePartition, MessageId);

/// A place as clients hand it back. They keep it as it is; the form may change.
pub(super) fn cursor((since, at, id): Place) -> String {
    format!("{}.{:016x}.{}.{id}", since.0, at.route.0, at.partition)
}

fn parse_cursor(text: &str) -> Result<Place, ApiError> {
    let read = || {
        let mut parts = text.split('.');
        let since = Time(parts.next()?.parse().ok()?);
        let route = RouteId(u64::from_str_radix(parts.next()?, 16).ok()?);
        let partition = parts.next()?.parse().ok()?;
        let id = parts.next()?.parse().ok()?;
        let at = RoutePartition { route, partition };
        parts.next().is_none().then_some((since, at, id))
    };
    read().ok_or_else(|| {
        ApiError::Invalid(format!(
            "`{text}` is no place in a list; `after` takes the `next` of the page before"
        ))
    })
}

impl Pick {
    /// Reads a filter.
    ///
    /// # Errors
    /// [`ApiError::Invalid`] if a time is none, or too many IDs are named.
    pub fn new(filter: &Filter, states: States, now: Time) -> Result<Self, ApiError> {
        if filter.ids.len() > FILTER_IDS {
            return Err(ApiError::Invalid(format!("at most {FILTER_IDS} IDs in one go")));
        }
        let time = |text: &Option<String>| text.as_deref().map(|text| parse_time(text, now)).transpose();
        // A limit holds for what is left after the payload's own fields were looked at.
        let looks_inside = filter.reason.is_some() || filter.source.is_some() || filter.key.is_some();
        let most = if looks_inside {
            MOST
        } else {
            filter.limit.unwrap_or(MOST).min(MOST)
        };
        Ok(Self {
            filter: filter.clone(),
            states,
            since: time(&filter.since)?,
            until: time(&filter.until)?,
            after: filter.after.as_deref().map(parse_cursor).transpose()?,
            most,
            ranges: false,
        })
    }

    /// The same, with the finished ranges of each partition.
    pub(super) fn with_ranges(mut self) -> Self {
        self.ranges = true;
        self
    }

    fn takes_route(&self, route: &RouteInfo) -> bool {
        self.filter.topic.as_ref().is_none_or(|t| *t == route.topic)
            && self.filter.partner.as_ref().is_none_or(|p| *p == route.partner)
    }

    fn takes(&self, at: RoutePartition, id: MessageId, m: &Message) -> bool {
        self.after.is_none_or(|after| (m.since, at, id) > after)
            && self.states.holds(&m.state)
            && self.filter.round.is_none_or(|r| r == m.round)
            && self.since.is_none_or(|t| m.since >= t)
            && self.until.is_none_or(|t| m.since < t)
    }
}

/// A message as it was picked.
#[derive(Clone, Debug, PartialEq)]
pub struct Picked {
    /// Route and partition.
    pub at: RoutePartition,
    /// Which message.
    pub id: MessageId,
    /// What the fold says of it.
    pub message: Message,
}

/// An ID that was asked for, in one route and partition.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Which of the filter's IDs.
    pub asked: usize,
    /// Route and partition.
    pub at: RoutePartition,
    /// What the text is taken for.
    pub meaning: Meaning,
    /// The hash it has there.
    pub id: MessageId,
}

/// Progress of a route in one partition.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// Every record before this one is finished.
    pub position: Offset,
    /// One past the highest record ever taken up.
    pub high_water: Offset,
    /// Finished messages.
    pub counts: Counts,
    /// Finished ranges above the position, where they were asked for.
    pub finished: RangeSet,
}

/// What was picked.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Every route, by hash.
    pub routes: BTreeMap<RouteId, RouteInfo>,
    /// Route partitions that the filter takes.
    pub places: BTreeMap<RoutePartition, Progress>,
    /// Messages, those longest in their state first.
    pub picked: Vec<Picked>,
    /// More match than were taken.
    pub more: bool,
    /// The filter's IDs where they may be, in the filter's order.
    pub candidates: Vec<Candidate>,
    /// Where in `picked` a message stands.
    index: HashMap<(RoutePartition, MessageId), usize>,
    /// Skip rules.
    pub skips: BTreeMap<u64, SkipRule>,
    /// Routes that are served and that the ledger has not met.
    pub unmet: BTreeMap<RouteId, Served>,
}

impl View {
    /// Copies out of the fold what the pick takes. What is served is there, whether or not the ledger has met it.
    ///
    /// # Errors
    /// [`ApiError::Invalid`] if the filter's IDs would have to be looked for in too many places.
    pub fn of(state: &LaneState, pick: &Pick, served: &[Served]) -> Result<Self, ApiError> {
        let mut view = View {
            routes: state.routes.clone(),
            skips: state.skips.clone(),
            ..View::default()
        };
        for (at, partition) in &state.partitions {
            let taken = state
                .routes
                .get(&at.route)
                .is_some_and(|route| pick.takes_route(route))
                && pick.filter.partition.is_none_or(|p| p == at.partition);
            if taken {
                let progress = Progress {
                    position: partition.position,
                    high_water: partition.high_water,
                    counts: partition.counts,
                    finished: match pick.ranges {
                        true => partition.finished.clone(),
                        false => RangeSet::default(),
                    },
                };
                view.places.insert(*at, progress);
            }
        }
        for served in served {
            view.add(state, pick, served);
        }
        if pick.filter.ids.is_empty() {
            view.pick_all(state, pick);
        } else {
            view.pick_ids(state, pick)?;
            view.index = view
                .picked
                .iter()
                .enumerate()
                .map(|(i, p)| ((p.at, p.id), i))
                .collect();
        }
        Ok(view)
    }

    /// Adds what the ledger does not know of a route that is served.
    fn add(&mut self, state: &LaneState, pick: &Pick, served: &Served) {
        let route = &served.route;
        if !state.routes.contains_key(&route.route) {
            self.routes.insert(route.route, route.clone());
            self.unmet.insert(route.route, served.clone());
        }
        if !pick.takes_route(route) {
            return;
        }
        for (at, begin) in served.places() {
            if pick.filter.partition.is_none_or(|p| p == at.partition) {
                self.places.entry(at).or_insert_with(|| Progress {
                    position: begin,
                    high_water: begin,
                    ..Progress::default()
                });
            }
        }
    }

    fn pick_all(&mut self, state: &LaneState, pick: &Pick) {
        if pick.states == States::NONE {
            return;
        }
        let mut taken: Vec<(Time, RoutePartition, MessageId)> = Vec::new();
        for at in self.places.keys() {
            let messages = state
                .partitions
                .get(at)
                .into_iter()
                .flat_map(|p| p.messages.iter());
            for (id, m) in messages.filter(|(id, m)| pick.takes(*at, *id, m)) {
                taken.push((m.since, *at, id));
                // Keeps the oldest without holding all of them: never more than twice the bound in memory.
                if taken.len() > 2 * MOST {
                    keep_oldest(&mut taken, pick.most);
                    self.more = true;
                }
            }
        }
        if taken.len() > pick.most {
            keep_oldest(&mut taken, pick.most);
            self.more = true;
        }
        taken.sort_unstable();
        for (_, at, id) in taken {
            self.take(state, at, id);
        }
    }

    fn pick_ids(&mut self, state: &LaneState, pick: &Pick) -> Result<(), ApiError> {
        let asked = &pick.filter.ids;
        if asked.len().saturating_mul(self.places.len()) > MOST_HASHES {
            return Err(ApiError::Invalid(
                "too many IDs for all topics and partners at once: name a topic or a partner".into(),
            ));
        }
        for (index, text) in asked.iter().enumerate() {
            for at in self.places.keys() {
                let Some(route) = self.routes.get(&at.route) else {
                    continue;
                };
                for (meaning, id) in meanings(text, &scope_of(route, at.partition)) {
                    self.candidates.push(Candidate {
                        asked: index,
                        at: *at,
                        meaning,
                        id,
                    });
                }
            }
        }
        let mut found: Vec<(RoutePartition, MessageId)> =
            self.candidates.iter().map(|c| (c.at, c.id)).collect();
        found.sort_unstable();
        found.dedup();
        for (at, id) in found {
            let message = state.partitions.get(&at).and_then(|p| p.messages.get(&id));
            if message.is_some_and(|m| pick.takes(at, id, &m)) {
                if self.picked.len() == pick.most {
                    self.more = true;
                    break;
                }
                self.take(state, at, id);
            }
        }
        self.picked.sort_by_key(|p| (p.message.since, p.at, p.id));
        Ok(())
    }

    fn take(&mut self, state: &LaneState, at: RoutePartition, id: MessageId) {
        if let Some(message) = state.partitions.get(&at).and_then(|p| p.messages.get(&id)) {
            self.picked.push(Picked { at, id, message });
        }
    }

    /// The picked message behind one of the filter's IDs, if the fold holds it.
    pub fn held(&self, candidate: &Candidate) -> Option<&Picked> {
        self.index
            .get(&(candidate.at, candidate.id))
            .and_then(|&i| self.picked.get(i))
    }

    /// Where the filter's n-th ID may be.
    pub fn candidates_of(&self, asked: usize) -> &[Candidate] {
        let from = self.candidates.partition_point(|c| c.asked < asked);
        let to = self.candidates.partition_point(|c| c.asked <= asked);
        &self.candidates[from..to]
    }

    /// Topic and partner of a route; words that no name can be where the ledger does not name it.
    pub fn names(&self, route: RouteId) -> (&str, &str) {
        self.routes
            .get(&route)
            .map_or(("(unknown)", "(unknown)"), |r| (&r.topic, &r.partner))
    }
}

/// Where message IDs of a route's partition are told apart.
pub(super) fn scope_of(route: &RouteInfo, partition: u32) -> IdScope {
    IdScope::new(&route.topic, route.topic_id, partition, &route.partner)
}

fn keep_oldest<T: Ord>(rows: &mut Vec<T>, most: usize) {
    if rows.len() > most {
        rows.select_nth_unstable(most);
        rows.truncate(most);
    }
}
