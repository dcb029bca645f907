//! What became of a message: the fold and the store say where it stands, the ledger how it came there, the input
//! topic where it came from.

use super::Desk;
use super::dedup::{known, remembered};
use super::prepare::code;
use super::rows::{kept, source};
use super::view::{Candidate, View};
use crate::api::messages::{DedupState, RouteStory, Story, StoryLine};
use crate::api::{ApiError, Filter, Order};
use crate::core::ledger::codec;
use crate::core::ledger::entry::{Action, Body, Command, Entry, OutcomeKind};
use crate::core::mask::MASK;
use crate::core::shown::{key_text, text};
use crate::core::types::{MessageId, Offset, RoutePartition, Time};
use std::collections::{BTreeMap, VecDeque};

/// Lines of a story's beginning, and of its end, that are kept: with head and record it stays within ten lines.
const FIRST: usize = 2;
const LAST: usize = 4;

/// What happened to one message, while the ledger is read.
#[derive(Default)]
struct Telling {
    first: Vec<StoryLine>,
    last: VecDeque<StoryLine>,
    left_out: u64,
    /// Highest attempt of each round: one whose slot was missed has the number of the next.
    attempts: BTreeMap<u32, u32>,
    offset: Option<Offset>,
    kept: Option<crate::core::ledger::entry::Kept>,
    /// A slot is told with its verdict; one without a verdict is told alone.
    pending: Option<StoryLine>,
}

impl Telling {
    fn tell(&mut self, line: StoryLine) {
        if self.first.len() < FIRST {
            self.first.push(line);
            return;
        }
        if self.last.len() == LAST {
            self.last.pop_front();
            self.left_out += 1;
        }
        self.last.push_back(line);
    }

    fn count(&mut self, round: u32, attempt: u32) {
        let highest = self.attempts.entry(round).or_default();
        *highest = attempt.max(*highest);
    }

    fn take(&mut self, entry: Entry, ordered: Option<&Ordered>) {
        match &entry.body {
            // Its original was told, or lies before what is left of the ledger: then this is all there is, and the order
            // that stands before it is another one.
            Body::Carried { entry, .. } => {
                if self.first.is_empty() {
                    self.take((**entry).clone(), None);
                }
                return;
            }
            Body::Intent(i) => {
                self.offset = Some(i.offset);
                self.count(i.round, i.attempt);
                if let Some(unsettled) = self.pending.take() {
                    self.tell(unsettled);
                }
                self.pending = Some(line(
                    i.slot,
                    "attempt",
                    format!("{} of round {}, no verdict recorded", i.attempt, i.round),
                ));
                return;
            }
            Body::Outcome(o) => self.count(o.round, o.attempts),
            _ => {}
        }
        let told = told(&entry.body, ordered);
        if let Some(pending) = self.pending.take() {
            let settles = matches!(&entry.body, Body::Outcome(o) if o.attempts > 0);
            if !settles {
                self.tell(pending);
            }
        }
        if let Body::Outcome(o) = &entry.body {
            self.offset = Some(o.offset);
        }
        if let Some(line) = told {
            self.tell(line);
        }
        if let Some(kept) = kept(entry) {
            self.kept = Some(kept);
        }
    }

    fn lines(&mut self) -> Vec<StoryLine> {
        if let Some(unsettled) = self.pending.take() {
            self.tell(unsettled);
        }
        let mut lines = std::mem::take(&mut self.first);
        if self.left_out > 0 {
            lines.push(StoryLine {
                at: String::new(),
                event: "…".into(),
                detail: format!("{} more", self.left_out),
            });
        }
        lines.extend(self.last.drain(..));
        lines
    }
}

pub(super) fn line(at: Time, event: &str, detail: String) -> StoryLine {
    StoryLine {
        at: at.to_string(),
        event: event.to_owned(),
        detail,
    }
}

/// A line that belongs to the one before it.
pub(super) fn bare(event: &str, detail: String) -> StoryLine {
    StoryLine {
        at: String::new(),
        event: event.to_owned(),
        detail,
    }
}

/// Who gave an order about many messages, and why: the entry stands before those that carry the order out.
struct Ordered {
    verb: String,
    who: String,
    why: String,
}

impl Ordered {
    fn of(command: &Command) -> Option<Self> {
        let Action::Audit { order, .. } = &command.action else {
            return None;
        };
        let order: Option<Order> = serde_json::from_str(order).ok();
        Some(Self {
            verb: order.map_or_else(|| "a command".to_owned(), |order| format!("`{}`", order.verb())),
            who: command.who.clone(),
            why: command.why.clone(),
        })
    }
}

fn by_whom(who: &str, why: &str) -> String {
    let who = match who {
        "" => String::new(),
        who => format!(" by {}", text(who.as_bytes())),
    };
    let why = match why {
        "" => String::new(),
        why => format!(": {}", text(why.as_bytes())),
    };
    format!("{who}{why}")
}

/// The stable code of an attempt that was never written: what stands before the colon of its reason.
const NOT_SENT: &str = "not sent";

fn told(body: &Body, ordered: Option<&Ordered>) -> Option<StoryLine> {
    Some(match body {
        Body::Outcome(o) => {
            if let OutcomeKind::Later {
                not_before, reason, ..
            } = &o.kind
                && code(reason) == NOT_SENT
            {
                // The status in the entry is that of an earlier attempt.
                let reason = text(reason.as_bytes());
                let detail = format!(
                    "attempt {} of round {} was {reason}; again after {not_before}",
                    o.attempts, o.round
                );
                return Some(line(o.when, "later", detail));
            }
            let attempt = match o.attempts {
                0 => "without an attempt".to_owned(),
                n => format!("attempt {n} of round {}", o.round),
            };
            // What was not tried in this round has no status in it.
            let status = if o.status == 0 || o.attempts == 0 {
                String::new()
            } else {
                format!(", status {}", o.status)
            };
            let (event, reason) = match &o.kind {
                OutcomeKind::Delivered { .. } => ("delivered", String::new()),
                OutcomeKind::Later {
                    not_before, reason, ..
                } => (
                    "later",
                    format!(", again after {not_before}: {}", text(reason.as_bytes())),
                ),
                OutcomeKind::Dead(kept) => ("dead", format!(": {}", text(kept.reason.as_bytes()))),
                OutcomeKind::Parked(kept) => ("parked", format!(": {}", text(kept.reason.as_bytes()))),
                OutcomeKind::Skipped(kept) => ("skipped", format!(": {}", text(kept.reason.as_bytes()))),
            };
            line(o.when, event, format!("{attempt}{status}{reason}"))
        }
        Body::Waiting(w) => line(
            w.when,
            "waiting",
            format!(
                "payload copied into the ledger, next attempt after {}",
                w.not_before
            ),
        ),
        Body::Opened(o) => {
            let (verb, by) = match ordered {
                Some(ordered) => (ordered.verb.as_str(), by_whom(&ordered.who, &ordered.why)),
                // Its order's own entry lies before what is left of the ledger.
                None => ("a command", String::new()),
            };
            line(o.when, "opened", format!("round {} by {verb}{by}", o.round))
        }
        Body::Command(c) => {
            let what = match c.action {
                Action::Mark { .. } => "called delivered",
                Action::Forget { .. } => "forgotten",
                Action::Drop { .. } => "payload given up",
                _ => return None,
            };
            line(c.when, "command", format!("{what}{}", by_whom(&c.who, &c.why)))
        }
        _ => return None,
    })
}

impl Desk {
    /// Reads the whole ledger once, for all candidates together.
    pub(super) fn story(&self, view: &View, filter: &Filter) -> Result<Story, ApiError> {
        let mut tellings: BTreeMap<(RoutePartition, MessageId), Telling> = view
            .candidates
            .iter()
            .map(|c| ((c.at, c.id), Telling::default()))
            .collect();
        let (told_from, next) = self.entries.bounds()?;
        let mut from = told_from;
        let mut ordered = None;
        let mut chunk = Vec::new();
        while from < next {
            let Some(go_on) = self.entries.read(from, &mut chunk)? else {
                break;
            };
            for (offset, bytes) in chunk.drain(..) {
                let Some(peek) = codec::peek(&bytes) else { continue };
                let decode = || {
                    codec::decode(&bytes)
                        .map_err(|e| ApiError::Internal(format!("ledger entry {offset}: {e}")))
                };
                let (Some(at), Some(id)) = (peek.at, peek.id) else {
                    if peek.kind == codec::kind::COMMAND
                        && peek.carried.is_none()
                        && let Body::Command(command) = decode()?.body
                        && let Some(audit) = Ordered::of(&command)
                    {
                        ordered = Some(audit);
                    }
                    continue;
                };
                if let Some(telling) = tellings.get_mut(&(at, id)) {
                    telling.take(decode()?, ordered.as_ref());
                }
            }
            from = go_on;
        }
        let mut story = Story {
            id: filter.ids.first().cloned().unwrap_or_default(),
            told_from,
            ..Story::default()
        };
        for candidate in &view.candidates {
            let telling = tellings.remove(&(candidate.at, candidate.id)).unwrap_or_default();
            if let Some(route) = self.route_story(view, candidate, telling)? {
                story.routes.push(route);
            }
        }
        Ok(story)
    }

    /// With a route that hides its IDs the question names the message by its hash.
    pub(super) fn hide_name(&self, view: &View, story: &mut Story) {
        let hides = |route: &&RouteStory| self.shown_name(&route.topic, &route.partner, &story.id).is_none();
        if let Some(hex) = story.routes.iter().find(hides).map(|route| route.hex.clone()) {
            story.id = hex;
        } else if story.routes.is_empty()
            && view.places.keys().any(|at| {
                let (topic, partner) = view.names(at.route);
                self.shown_name(topic, partner, &story.id).is_none()
            })
        {
            story.id = MASK.to_owned();
        }
    }

    fn route_story(
        &self,
        view: &View,
        candidate: &Candidate,
        mut telling: Telling,
    ) -> Result<Option<RouteStory>, ApiError> {
        let (at, id) = (candidate.at, candidate.id);
        let held = view.held(candidate);
        let found = if held.is_none() {
            self.memory.get(at, id)?
        } else {
            None
        };
        let mut lines = telling.lines();
        if held.is_none() && found.is_none() && lines.is_empty() {
            return Ok(None);
        }
        let state = match (held, &found) {
            (Some(picked), _) => known(&picked.message.state),
            (None, Some(found)) => remembered(found.state),
            (None, None) => DedupState::Absent,
        };
        let offset = held
            .map(|p| p.message.offset)
            .or(found.as_ref().map(|f| f.offset))
            .or(telling.offset);
        let (topic, partner) = view.names(at.route);
        let record = offset.and_then(|offset| self.entries.record(topic, at.partition, offset));
        let kept = telling.kept.take();
        let timestamp = record
            .as_ref()
            .map(|r| r.timestamp)
            .or(kept.as_ref().map(|k| k.timestamp));
        let headers = record
            .as_ref()
            .map(|r| &r.headers)
            .or(kept.as_ref().map(|k| &k.headers));
        let key = match (&record, &kept) {
            (Some(r), _) => key_text(self.key_source(topic), r.key.as_deref(), &r.value),
            (None, Some(k)) => key_text(self.key_source(topic), k.record_key.as_deref(), &k.value),
            (None, None) => None,
        };
        let key = key.map(|key| self.veiled_key(topic, partner, &key));
        if let (Some(timestamp), Some(offset)) = (timestamp, offset) {
            lines.insert(
                0,
                line(
                    timestamp,
                    "appended",
                    format!("{topic}/{} offset {offset}", at.partition),
                ),
            );
        }
        if let (Some(found), 0) = (&found, lines.len().saturating_sub(1)) {
            // The ledger's own entries are trimmed: the store's short memory is what is left.
            lines.push(line(
                found.when,
                remembered(found.state).word(),
                format!("{} attempts", found.attempts),
            ));
        }
        Ok(Some(RouteStory {
            topic: topic.to_owned(),
            partner: partner.to_owned(),
            partition: at.partition,
            hex: id.to_string(),
            state,
            offset,
            source: headers.and_then(source),
            key,
            attempts: telling
                .attempts
                .values()
                .sum::<u32>()
                .max(found.map_or(0, |f| f.attempts)),
            lines,
            unread: None,
        }))
    }
}
