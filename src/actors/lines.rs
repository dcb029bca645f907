//! Log lines about single messages (`docs/logs.md`), and the span of a sampled one.
//!
//! A partner that fails ten thousand attempts a second must not write ten thousand lines: each kind of line comes at
//! most every ten seconds for each partner and says how many were held back. One message in
//! `logging.sample` is sampled: its work happens within a span that names it, and its lines are never held back.
//! Which ones is decided by the message's ID alone, so that a retry, a restart and an operator's replay of a sampled
//! message are seen, too. A message that is not sampled and goes well costs one comparison.

use super::context::RouteContext;
use super::item::Item;
use crate::config::{IdSource, KeySource};
use crate::core::ledger::codec::cut;
use crate::core::ledger::entry::Kept;
use crate::core::readable_id;
use crate::core::shown;
use crate::core::types::MessageId;
use crate::sink::{Answer, Sink, Verdict};
use crate::telemetry::every::Every;
use std::time::Duration;
use tracing::Span;

/// Between two lines of one kind about one partner.
const BRAKE: Duration = Duration::from_secs(10);
/// Bytes of a key or an ID in a line.
const SHOWN: usize = 200;

/// How one route's messages are named in log lines, and which are sampled.
#[derive(Clone, Debug)]
pub struct LineRules {
    /// One message in so many is sampled; 0 is none.
    pub sample: u64,
    /// Where keys come from.
    pub key: KeySource,
    /// Where IDs come from.
    pub id: Vec<IdSource>,
}

impl LineRules {
    /// Whether this message is sampled.
    #[inline]
    pub fn samples(&self, id: MessageId) -> bool {
        self.sample != 0 && id.tail().is_multiple_of(self.sample)
    }
}

/// ID and key of a message, fit to be shown (I9).
fn names<S: Sink>(route: &RouteContext<S>, item: &Item) -> (String, Option<String>) {
    let masker = route.partner.sink.masker();
    let (rules, delivery) = (&route.lines, &item.delivery);
    let record = &delivery.record;
    // As lists and commands name one that goes by its position while others of its topic do not.
    let marked = !rules.id.is_empty()
        && !rules.id.contains(&IdSource::Position)
        && delivery.id == route.scope.position(record.offset);
    let id = match marked {
        true => readable_id::marked_position(record.offset),
        false => shown::shown_id(&rules.id, &delivery.readable, &masker)
            .map_or_else(|| delivery.id.to_string(), |id| cut(&id, SHOWN).to_owned()),
    };
    let key = shown::key_text(&rules.key, record.key.as_deref(), &record.value).map(|key| {
        let key = shown::masked_key(&rules.key, &key, &masker);
        cut(&key, SHOWN).to_owned()
    });
    (id, key)
}

/// The span in which a sampled message is worked on; none for all others.
pub fn span<S: Sink>(route: &RouteContext<S>, item: &Item) -> Option<Span> {
    if !route.lines.samples(item.delivery.id) {
        return None;
    }
    let (message_id, key) = names(route, item);
    Some(tracing::info_span!(
        "message",
        topic = %route.topic,
        partition = route.at.partition,
        offset = item.delivery.record.offset,
        partner = %route.partner.name,
        message_id,
        key,
    ))
}

/// Writes a line about a message at this level: within a sampled one's span as it is, else with the message's
/// names, and held back where such lines come too often.
macro_rules! about {
    ($level:ident, $route:expr, $item:expr, $($fields:tt)+) => {{
        static SITE: Every = Every::new(BRAKE);
        let (route, item) = ($route, $item);
        if route.lines.samples(item.delivery.id) {
            tracing::event!(tracing::Level::$level, $($fields)+);
        } else if tracing::enabled!(tracing::Level::$level)
            && let Some(suppressed) = SITE.speak(&route.partner.name)
        {
            let (message_id, key) = names(route, item);
            tracing::event!(
                tracing::Level::$level,
                topic = %route.topic,
                partition = route.at.partition,
                offset = item.delivery.record.offset,
                partner = %route.partner.name,
                message_id,
                key,
                suppressed,
                $($fields)+
            );
        }
    }};
}

/// An attempt has a verdict. `item` counts it already; `took` is from its first byte.
pub fn attempted<S: Sink>(route: &RouteContext<S>, item: &Item, answer: &Answer, took: Duration) {
    let attempt = item.delivery.attempt;
    let took_ms = took.as_millis() as u64;
    let status = (answer.status != 0).then_some(answer.status);
    let why = answer.detail.as_deref().map_or("", |d| d.reason.as_str());
    let verdict = answer.verdict.word();
    match answer.verdict {
        Verdict::Delivered => {
            if route.lines.samples(item.delivery.id) {
                tracing::info!(
                    event = "attempt",
                    attempt,
                    verdict,
                    status,
                    took_ms,
                    "the partner took it"
                );
            }
        }
        Verdict::TryLater | Verdict::Pause => {
            about!(
                WARN,
                route,
                item,
                event = "attempt",
                attempt,
                verdict,
                status,
                took_ms,
                why,
                "it is tried again"
            );
        }
        Verdict::Refused | Verdict::Unknown(_) => {
            about!(
                WARN,
                route,
                item,
                event = "attempt",
                attempt,
                verdict,
                status,
                took_ms,
                why,
                "not delivered"
            );
        }
    }
}

/// A message became a dead letter.
pub fn dead<S: Sink>(route: &RouteContext<S>, item: &Item, kept: &Kept) {
    let (attempts, why) = (item.delivery.attempt, kept.reason.as_str());
    about!(
        WARN,
        route,
        item,
        event = "dead",
        attempts,
        why,
        "a dead letter: `sluicegate dead list`"
    );
}

/// A message is held for an operator.
pub fn parked<S: Sink>(route: &RouteContext<S>, item: &Item, kept: &Kept) {
    let (attempts, why) = (item.delivery.attempt, kept.reason.as_str());
    about!(
        WARN,
        route,
        item,
        event = "parked",
        attempts,
        why,
        "in doubt, held for an operator: `sluicegate doubt list`"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn about_one_in_so_many_is_sampled_and_always_the_same_ones() {
        let rules = |sample| LineRules {
            sample,
            key: KeySource::Record,
            id: Vec::new(),
        };
        let id = |n: u32| {
            let hash = blake3::hash(&n.to_be_bytes());
            MessageId(hash.as_bytes()[..16].try_into().unwrap())
        };
        let sampled = |sample| (0..10_000).filter(|n| rules(sample).samples(id(*n))).count();
        assert_eq!((sampled(0), sampled(1)), (0, 10_000));
        assert!((60..140).contains(&sampled(100)), "{}", sampled(100));
    }
}
