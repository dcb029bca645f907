//! What is known of IDs: the fold knows those that are not simply finished, the store all others.

use super::Desk;
use super::prepare::NOWHERE;
use super::sources::Wanted;
use super::view::{View, scope_of};
use crate::api::messages::{CountRow, DedupStats, parse_time};
use crate::api::{ApiError, DedupRow, DedupState, Filter, Page};
use crate::core::ledger::fold::{Finished, FinishedState, MessageState};
use crate::core::mask::MASK;
use crate::core::message_id::IdScope;
use crate::core::readable_id::meanings;
use crate::core::shown::text;
use crate::core::types::{RouteId, RoutePartition, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

/// Rows of a list where no limit is given.
const LISTED: usize = 1_000;
/// Most rows of a list; for more there is the export.
const MOST_LISTED: usize = 100_000;

/// The word for what the store remembers.
pub(super) fn remembered(state: FinishedState) -> DedupState {
    match state {
        FinishedState::Delivered | FinishedState::Marked => DedupState::Delivered,
        FinishedState::Dead => DedupState::Dead,
        FinishedState::Skipped => DedupState::Skipped,
        FinishedState::Parked => DedupState::Parked,
        FinishedState::Waiting => DedupState::Waiting,
    }
}

/// The word for what the fold says.
pub(super) fn known(state: &MessageState) -> DedupState {
    match state {
        MessageState::Open { .. } => DedupState::Intent,
        MessageState::Later { .. } => DedupState::Waiting,
        MessageState::Parked => DedupState::Parked,
        MessageState::Dead => DedupState::Dead,
        MessageState::Skipped => DedupState::Skipped,
    }
}

fn row_of(view: &View, found: &Finished) -> DedupRow {
    let (topic, partner) = view.names(found.at.route);
    let hex = found.id.to_string();
    DedupRow {
        id: if found.readable.is_empty() {
            hex.clone()
        } else {
            text(&found.readable)
        },
        partner: partner.to_owned(),
        state: remembered(found.state),
        at: Some(found.when.to_string()),
        topic: topic.to_owned(),
        partition: Some(found.at.partition),
        hex: Some(hex),
        offset: Some(found.offset),
        attempts: Some(found.attempts),
        last_status: (found.status != 0).then_some(found.status),
        round: None,
        marked: found.state == FinishedState::Marked,
        topic_id: None,
    }
}

impl Desk {
    /// A row as it may be shown; exports alone have every ID as it stands.
    fn veiled_dedup(&self, view: &View, at: RoutePartition, mut row: DedupRow) -> DedupRow {
        let hash = row.hex.clone().unwrap_or_default();
        let id = row.hex.as_deref().and_then(|hex| hex.parse().ok());
        let position = id
            .zip(row.offset)
            .and_then(|(id, offset)| self.position(view, at, id, offset));
        row.id = match position {
            Some(position) => position,
            None if row.id == hash => hash,
            None => self.shown_name(&row.topic, &row.partner, &row.id).unwrap_or(hash),
        };
        row
    }
}

/// The row of an export: its ID is one that can be hashed anew elsewhere, else the hash.
fn exported(view: &View, found: &Finished, scopes: &mut BTreeMap<RoutePartition, IdScope>) -> DedupRow {
    let mut row = row_of(view, found);
    let Some(route) = view.routes.get(&found.at.route) else {
        return row;
    };
    let scope = scopes
        .entry(found.at)
        .or_insert_with(|| scope_of(route, found.at.partition));
    let whole = std::str::from_utf8(&found.readable).ok();
    // Readable IDs are cut to a bound as they are kept: a cut one would be another message's.
    if !whole.is_some_and(|text| meanings(text, scope).iter().any(|(_, id)| *id == found.id)) {
        row.id = found.id.to_string();
    }
    row.topic_id = Some(format!("{:032x}", route.topic_id.0));
    row
}

impl Desk {
    /// One row for every route and partition that knows the ID, and one "absent" for every route that does not.
    pub(super) fn dedup_get(&self, view: &View, filter: &Filter) -> Result<Vec<DedupRow>, ApiError> {
        let routes: BTreeSet<RouteId> = view.places.keys().map(|at| at.route).collect();
        if routes.is_empty() {
            return Err(ApiError::NotFound(NOWHERE.into()));
        }
        let mut rows = Vec::new();
        for (index, asked) in filter.ids.iter().enumerate() {
            let mut knowing = BTreeSet::new();
            for candidate in view.candidates_of(index) {
                let open = view.held(candidate);
                let row = match open {
                    Some(picked) => {
                        let (row, _) = self.row(view, picked)?;
                        // While only the topic has the payload, the ID as it was asked for is the best name.
                        let id = if row.replayable { row.id } else { asked.clone() };
                        Some(DedupRow {
                            id,
                            partner: row.partner,
                            state: known(&picked.message.state),
                            at: Some(row.at),
                            topic: row.topic,
                            partition: Some(row.partition),
                            hex: Some(row.hex),
                            offset: Some(row.offset),
                            attempts: Some(row.attempts),
                            last_status: row.last_status,
                            round: Some(row.round),
                            marked: false,
                            topic_id: None,
                        })
                    }
                    None => self
                        .memory
                        .get(candidate.at, candidate.id)?
                        .map(|found| row_of(view, &found)),
                };
                if let Some(row) = row {
                    knowing.insert(candidate.at.route);
                    rows.push(self.veiled_dedup(view, candidate.at, row));
                }
            }
            for route in routes.difference(&knowing) {
                let (topic, partner) = view.names(*route);
                rows.push(DedupRow {
                    // Nothing is known of it: where IDs are hidden, so is one that somebody asks for.
                    id: self
                        .shown_name(topic, partner, asked)
                        .unwrap_or_else(|| MASK.to_owned()),
                    topic: topic.to_owned(),
                    partner: partner.to_owned(),
                    ..DedupRow::default()
                });
            }
        }
        Ok(rows)
    }

    fn wanted(view: &View, filter: &Filter, now: Time) -> Result<Wanted, ApiError> {
        if filter.reason.is_some()
            || filter.source.is_some()
            || filter.key.is_some()
            || filter.round.is_some()
        {
            return Err(ApiError::Invalid(
                "the store knows no reason, source, key or round of an ID: filter by partner, topic, partition and time".into(),
            ));
        }
        if filter.after.is_some() {
            return Err(ApiError::Invalid(
                "`after` is for the lists of dead and parked messages; `dedup export` gives all remembered IDs".into(),
            ));
        }
        let time = |text: &Option<String>| text.as_deref().map(|t| parse_time(t, now)).transpose();
        Ok(Wanted {
            places: view.places.keys().copied().collect(),
            states: None,
            since: time(&filter.since)?,
            until: time(&filter.until)?,
        })
    }

    pub(super) fn dedup_list(
        &self,
        view: &View,
        filter: &Filter,
        now: Time,
    ) -> Result<Page<DedupRow>, ApiError> {
        let wanted = Self::wanted(view, filter, now)?;
        let limit = filter.limit.unwrap_or(LISTED).min(MOST_LISTED);
        let mut page = Page {
            rows: Vec::new(),
            more: false,
            next: None,
        };
        self.memory.each(&wanted, &mut |found| {
            if page.rows.len() == limit {
                page.more = true;
                return ControlFlow::Break(());
            }
            page.rows
                .push(self.veiled_dedup(view, found.at, row_of(view, &found)));
            ControlFlow::Continue(())
        })?;
        Ok(page)
    }

    /// Every remembered ID that the filter takes, one line of JSON each, without its line end. `take` says whether
    /// to go on.
    ///
    /// # Errors
    /// If the filter cannot be read, or the store.
    pub fn export(
        &self,
        view: &View,
        filter: &Filter,
        now: Time,
        take: &mut dyn FnMut(String) -> ControlFlow<()>,
    ) -> Result<(), ApiError> {
        let wanted = Self::wanted(view, filter, now)?;
        let mut failed = None;
        let mut scopes = BTreeMap::new();
        self.memory
            .each(
                &wanted,
                &mut |found| match serde_json::to_string(&exported(view, &found, &mut scopes)) {
                    Ok(line) => take(line),
                    Err(e) => {
                        failed = Some(ApiError::Internal(e.to_string()));
                        ControlFlow::Break(())
                    }
                },
            )?;
        failed.map_or(Ok(()), Err)
    }

    pub(super) fn dedup_stats(&self, view: &View) -> Result<DedupStats, ApiError> {
        let mut totals: BTreeMap<(String, &'static str), u64> = BTreeMap::new();
        for (at, progress) in &view.places {
            let (_, partner) = view.names(at.route);
            let c = progress.counts;
            for (state, count) in [
                ("delivered", c.delivered),
                ("dead", c.dead),
                ("parked", c.parked),
                ("skipped", c.skipped),
                ("marked", c.marked),
            ] {
                if count > 0 {
                    *totals.entry((partner.to_owned(), state)).or_default() += count;
                }
            }
        }
        let mut stats = self.memory.stats();
        stats.messages = totals
            .into_iter()
            .map(|((partner, state), count)| CountRow {
                partner,
                state: state.to_owned(),
                count,
            })
            .collect();
        Ok(stats)
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows::state_word;
    use super::*;

    #[test]
    fn fold_and_store_use_the_same_words() {
        for (state, word) in [
            (MessageState::Parked, DedupState::Parked),
            (MessageState::Dead, DedupState::Dead),
            (MessageState::Skipped, DedupState::Skipped),
            (
                MessageState::Later {
                    not_before: Time::ZERO,
                },
                DedupState::Waiting,
            ),
        ] {
            assert_eq!(known(&state), word);
            assert_eq!(state_word(&state), word.word());
        }
    }
}
