//! The desk: what operators ask and order, over a lane's fold, the dedup store and the ledger itself. The same code
//! works inside a running node and on the folder of a stopped one (`offline`).
//!
//! **Questions** go in two steps, since the fold belongs to the actor that owns the lane: [`view::View::of`] copies
//! out what is needed (no I/O), [`Desk::answer`] does the rest on a thread that may wait. What neither fold nor store
//! knows may still wait in a topic: [`unread`] looks there, within a bound.
//!
//! **Orders** go in three: the same copy; [`Desk::prepare`], which reads payloads, applies the filter to them, and
//! notes for every message the state and round that the order was made up for; and [`plan::Prepared::settle`], on
//! the lane's own actor again, which compares them with the fold as it is *then* and gives the entries to write.
//! A message that has moved on in between is answered "stale": of two orders the first in the ledger wins.
//! What follows for the partitions follows from the folded entries ([`Effect`](crate::core::ledger::fold::Effect)),
//! whether or not the one who gave the order still waits. The fold has the last word: an entry about a message that
//! is no longer what the order took it for changes nothing, and counts as stale.
//!
//! Every order leaves a `command` entry (who, when, why); bulk orders one `audit` in front of what they do.
//! Upholds I2 (a round is opened by a command only, an ID is forgotten by a command only) and I9 (payloads are
//! shown as they stand only where one message is asked for so).
//!
//! A restart in the middle: entries are written in order, each valid by itself; what was not written was not done.

pub mod carry_out;
mod dedup;
pub mod plan;
mod prepare;
mod rows;
mod served;
pub mod sources;
pub mod standing;
mod story;
#[cfg(test)]
mod tests;
mod unread;
pub mod view;

pub use plan::{Plan, Prepared};
pub use served::Served;
pub use sources::{Entries, LogEntries, Memory};
pub use standing::Standing;
pub use unread::explain;
pub use view::{Pick, States, View};

use crate::api::{ApiError, Filter, Order, Page, Query, Reply, SkipRow};
use crate::config::Config;
use crate::config::finding::nearest;
use crate::core::ledger::entry::SkipMatch;
use crate::core::mask::{MASK, Masker};
use crate::core::shown;
use crate::core::types::Time;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Answers questions and makes orders up. Cheap to clone; every method may block and belongs on a thread that may.
#[derive(Clone)]
pub struct Desk {
    memory: Arc<dyn Memory>,
    entries: Arc<dyn Entries>,
    config: Arc<Config>,
    /// One a partner, and one for partners that the configuration does not name.
    maskers: Arc<(BTreeMap<String, Masker>, Masker)>,
}

impl Desk {
    /// Over these. `secrets` are the configuration's own, to be masked wherever they turn up.
    pub fn new(
        memory: Arc<dyn Memory>,
        entries: Arc<dyn Entries>,
        config: Arc<Config>,
        secrets: &[Arc<str>],
    ) -> Self {
        let maskers = config
            .partners
            .iter()
            .map(|(name, p)| (name.clone(), Masker::new(&p.mask, secrets)))
            .collect();
        Self {
            memory,
            entries,
            maskers: Arc::new((maskers, Masker::new(&[], secrets))),
            config,
        }
    }

    /// Whether the filter's partner and topic are there: an empty list for a misspelt name would read as all clear.
    fn exists(&self, view: &View, filter: &Filter) -> Result<(), ApiError> {
        let partner = filter.partner.iter().map(|name| self.partner_exists(view, name));
        let topic = filter.topic.iter().map(|name| self.topic_exists(view, name));
        partner.chain(topic).collect()
    }

    fn partner_exists(&self, view: &View, name: &str) -> Result<(), ApiError> {
        let served = view.routes.values().map(|route| route.partner.as_str());
        let known = served.chain(self.config.partners.keys().map(String::as_str));
        must_be_there("partner", name, known)
    }

    fn topic_exists(&self, view: &View, name: &str) -> Result<(), ApiError> {
        if self.config.section_of(name).is_some() {
            return Ok(());
        }
        let served = view.routes.values().map(|route| route.topic.as_str());
        let sections = self.config.topics.values().filter(|t| t.pattern.is_none());
        must_be_there("topic", name, served.chain(sections.map(|t| t.name.as_str())))
    }

    fn masker(&self, partner: &str) -> &Masker {
        self.maskers.0.get(partner).unwrap_or(&self.maskers.1)
    }

    /// What a question needs of the fold.
    ///
    /// # Errors
    /// [`ApiError::Invalid`] if its filter cannot be read.
    pub fn pick_for_query(query: &Query, now: Time) -> Result<Pick, ApiError> {
        match query {
            Query::Doubts { filter } => Pick::new(filter, States::PARKED, now),
            Query::Dead { filter } => Pick::new(filter, States::DEAD, now),
            Query::Show { filter, .. } => {
                named(filter)?;
                Pick::new(filter, States::CLOSED, now)
            }
            Query::Story { filter } => {
                named(filter)?;
                Ok(Pick::new(filter, States::ALL, now)?.with_ranges())
            }
            Query::DedupGet { filter } => {
                named(filter)?;
                Pick::new(filter, States::ALL, now)
            }
            Query::DedupList { filter } => Pick::new(filter, States::NONE, now),
            Query::DedupStats | Query::Skips => Pick::new(&Filter::default(), States::NONE, now),
        }
    }

    /// What an order needs of the fold.
    ///
    /// # Errors
    /// [`ApiError::Invalid`] if its filter cannot be read, or it names nothing where it must.
    pub fn pick_for_order(order: &Order, now: Time) -> Result<Pick, ApiError> {
        match order {
            Order::Replay {
                filter,
                skipped: false,
            }
            | Order::Drop { filter } => Pick::new(filter, States::DEAD, now),
            Order::Replay {
                filter,
                skipped: true,
            } => Pick::new(filter, States::SKIPPED, now),
            Order::Resend { filter } | Order::Confirm { filter, .. } => {
                Pick::new(filter, States::PARKED, now)
            }
            Order::Forget { filter } | Order::Mark { filter } => {
                named(filter)?;
                Pick::new(filter, States::ALL, now)
            }
            Order::DedupImport { .. }
            | Order::SkipAdd { .. }
            | Order::SkipRemove { .. }
            | Order::Pause { .. }
            | Order::Resume { .. }
            | Order::ForgetRoute { .. }
            | Order::ResumeRoute { .. } => Pick::new(&Filter::default(), States::NONE, now),
        }
    }

    /// Answers a question. `look` copies what a pick takes out of the fold: a question may need that twice.
    ///
    /// # Errors
    /// [`ApiError`]: not found, or the store or the ledger cannot be read.
    pub fn answer(
        &self,
        look: &dyn Fn(&Pick) -> Result<View, ApiError>,
        query: &Query,
        now: Time,
    ) -> Result<Reply, ApiError> {
        let view = &look(&Self::pick_for_query(query, now)?)?;
        match query {
            Query::Doubts { filter } | Query::Dead { filter } => {
                self.exists(view, filter)?;
                Ok(Reply::Messages(self.messages(view, filter)?))
            }
            Query::Show { filter, raw } => Ok(Reply::Detail(Box::new(self.detail(view, filter, *raw)?))),
            Query::Story { filter } => {
                self.exists(view, filter)?;
                Ok(Reply::Story(self.whole_story(look, view, filter, now)?))
            }
            Query::DedupGet { filter } => {
                self.exists(view, filter)?;
                Ok(Reply::Dedup(Page {
                    rows: self.dedup_get(view, filter)?,
                    more: false,
                    next: None,
                }))
            }
            Query::DedupList { filter } => {
                self.exists(view, filter)?;
                Ok(Reply::Dedup(self.dedup_list(view, filter, now)?))
            }
            Query::DedupStats => Ok(Reply::DedupStats(self.dedup_stats(view)?)),
            Query::Skips => Ok(Reply::Skips(self.skip_rows(view))),
        }
    }
}

/// An error that proposes the nearest name, unless it is one of those.
fn must_be_there<'a>(
    what: &str,
    name: &str,
    known: impl Iterator<Item = &'a str> + Clone,
) -> Result<(), ApiError> {
    if known.clone().any(|there| there == name) {
        return Ok(());
    }
    let near = nearest(name, known).map(|near| format!(", did you mean `{near}`?"));
    let near = near.unwrap_or_default();
    Err(ApiError::UnknownName(format!(
        "there is no {what} `{name}`{near}"
    )))
}

/// Some questions and orders are about messages by name: nobody should forget everything by leaving an ID out.
fn named(filter: &Filter) -> Result<(), ApiError> {
    if filter.ids.is_empty() {
        Err(ApiError::Invalid("a message ID is needed".into()))
    } else {
        Ok(())
    }
}

impl Desk {
    fn skip_rows(&self, view: &View) -> Vec<SkipRow> {
        view.skips
            .values()
            .map(|rule| {
                let partner = rule.partner.as_deref().unwrap_or_default();
                let (key, id) = match &rule.matches {
                    SkipMatch::Key(key) => (
                        Some(self.veiled_key(&rule.topic, partner, &shown::text(key))),
                        None,
                    ),
                    SkipMatch::Id(id) => {
                        let shown = self.shown_name(&rule.topic, partner, &shown::text(id));
                        (None, Some(shown.unwrap_or_else(|| MASK.to_owned())))
                    }
                };
                SkipRow {
                    rule: rule.rule,
                    topic: rule.topic.clone(),
                    partner: rule.partner.clone(),
                    key,
                    id,
                    reason: rule.reason.clone(),
                    made: rule.made.to_string(),
                    expires: rule.expires.map(|t| t.to_string()),
                }
            })
            .collect()
    }
}
