//! Rows about kept messages: the fold says where a message stands, the ledger entry with its payload says the rest.

use super::Desk;
use super::view::{Picked, View, cursor, scope_of};
use crate::api::messages::{MessageDetail, MessageRow, ReasonMatch};
use crate::api::{ApiError, Filter, Page};
use crate::config::{IdSource, KeySource};
use crate::core::ledger::entry::{Body, Entry, Kept, OutcomeKind};
use crate::core::ledger::fold::MessageState;
use crate::core::readable_id;
use crate::core::record::SOURCE_HEADER;
use crate::core::shown::{key_text, masked_key, shown_id, text};
use crate::core::types::{MessageId, Offset, RoutePartition, Time};

/// Behind the reason of a message whose payload was given up: retention's, or the size cap's, doing.
const DROPPED: &str = "; payload dropped";

/// The payload that an entry holds, if it holds one.
pub(super) fn kept(entry: Entry) -> Option<Kept> {
    match entry.body {
        Body::Outcome(o) => match o.kind {
            OutcomeKind::Dead(kept) | OutcomeKind::Parked(kept) | OutcomeKind::Skipped(kept) => Some(*kept),
            OutcomeKind::Delivered { .. } | OutcomeKind::Later { .. } => None,
        },
        Body::Waiting(w) => Some(*w.kept),
        Body::Carried { entry, .. } => kept(*entry),
        _ => None,
    }
}

/// Where a record came from.
pub(super) fn source(headers: &crate::core::record::Headers) -> Option<String> {
    headers.get(SOURCE_HEADER).map(text)
}

/// The word for a state of the fold.
pub(super) fn state_word(state: &MessageState) -> &'static str {
    match state {
        MessageState::Open { .. } => "intent",
        MessageState::Later { .. } => "waiting",
        MessageState::Parked => "parked",
        MessageState::Dead => "dead",
        MessageState::Skipped => "skipped",
    }
}

pub(super) fn some_time(t: Time) -> Option<String> {
    (t != Time::ZERO).then(|| t.to_string())
}

/// The part of a filter that needs the payload.
pub(super) struct Inside<'f> {
    filter: &'f Filter,
    reason: Option<ReasonMatch>,
}

impl<'f> Inside<'f> {
    pub(super) fn new(filter: &'f Filter) -> Result<Self, ApiError> {
        let reason = filter.reason.as_deref().map(ReasonMatch::parse).transpose()?;
        Ok(Self { filter, reason })
    }

    pub(super) fn takes(&self, row: &MessageRow) -> bool {
        self.reason.as_ref().is_none_or(|r| r.matches(&row.reason))
            && self.filter.source.as_ref().is_none_or(|s| {
                row.source
                    .as_ref()
                    .is_some_and(|source| source.starts_with(s.as_str()))
            })
            && self
                .filter
                .key
                .as_ref()
                .is_none_or(|k| row.key.as_ref() == Some(k))
    }
}

impl Desk {
    /// The row of a picked message, and its payload if that is still there.
    pub(super) fn row(&self, view: &View, picked: &Picked) -> Result<(MessageRow, Option<Kept>), ApiError> {
        let m = &picked.message;
        let kept = match m.payload {
            Some((at, _)) => self.entries.entry(at)?.and_then(kept),
            None => None,
        };
        let (topic, partner) = view.names(picked.at.route);
        let hex = picked.id.to_string();
        let mut row = MessageRow {
            id: hex.clone(),
            partner: partner.to_owned(),
            topic: topic.to_owned(),
            partition: picked.at.partition,
            offset: m.offset,
            attempts: m.attempts,
            last_status: (m.status != 0).then_some(m.status),
            state: state_word(&m.state).to_owned(),
            hex,
            at: m.since.to_string(),
            first_try: some_time(m.first_try),
            round: m.round,
            replayable: kept.as_ref().is_some_and(|k| !k.dropped),
            ..MessageRow::default()
        };
        if let Some(kept) = &kept {
            if !kept.readable.is_empty() {
                row.id = text(kept.readable.as_bytes());
            }
            if let Some(position) = self.position(view, picked.at, picked.id, m.offset) {
                row.id = position;
            }
            row.key = key_text(self.key_source(topic), kept.record_key.as_deref(), &kept.value);
            row.reason = text(kept.reason.as_bytes());
            if kept.dropped {
                row.reason.push_str(DROPPED);
            }
            row.answer = text(kept.answer.as_bytes());
            row.source = source(&kept.headers);
            row.value_size = kept.value.len() as u64;
        }
        // What is left of a message without its payload can be told, not sent or shown.
        Ok((row, kept.filter(|k| !k.dropped)))
    }

    pub(super) fn messages(&self, view: &View, filter: &Filter) -> Result<Page<MessageRow>, ApiError> {
        let inside = Inside::new(filter)?;
        let limit = filter.limit.unwrap_or(super::view::MOST);
        let mut page = Page {
            rows: Vec::new(),
            more: view.more,
            next: None,
        };
        // The last one that was looked at, whether or not the filter took it: nothing is looked at twice.
        let mut last = None;
        for picked in &view.picked {
            let (row, _) = self.row(view, picked)?;
            let place = (picked.message.since, picked.at, picked.id);
            if !inside.takes(&row) {
                last = Some(place);
                continue;
            }
            if page.rows.len() >= limit {
                page.more = true;
                break;
            }
            last = Some(place);
            page.rows.push(self.veiled(row));
        }
        page.next = last.filter(|_| page.more).map(cursor);
        Ok(page)
    }

    pub(super) fn detail(&self, view: &View, filter: &Filter, raw: bool) -> Result<MessageDetail, ApiError> {
        let asked = filter.ids.first().map_or("", String::as_str);
        let picked = match view.picked.as_slice() {
            [] => {
                return Err(ApiError::NotFound(format!(
                    "no message `{asked}` is dead, parked or skipped; `sluicegate message` tells what became of it"
                )));
            }
            [one] => one,
            [..] => {
                let routes: Vec<String> = view.picked.iter().map(|p| place(view, p)).collect();
                return Err(ApiError::Conflict(format!(
                    "`{asked}` is kept for several routes ({}): name the partner, topic or partition",
                    routes.join(", ")
                )));
            }
        };
        let (row, kept) = self.row(view, picked)?;
        let kept = kept.unwrap_or_default();
        let masker = self.masker(&row.partner);
        let header = |name: &[u8], value: &[u8]| {
            let (name, value) = (text(name), text(value));
            let shown = if raw { value } else { masker.header(&name, &value) };
            (name, shown)
        };
        Ok(MessageDetail {
            idempotency_key: kept.idempotency_key.clone(),
            timestamp: some_time(kept.timestamp).unwrap_or_default(),
            headers: kept
                .headers
                .iter()
                .map(|(name, value)| header(name, value))
                .collect(),
            value: if raw {
                text(&kept.value)
            } else {
                masker.text(&text(&kept.value))
            },
            masked: !raw,
            row: if raw { row } else { self.veiled(row) },
        })
    }

    /// A row as it may be shown: rows are matched against filters as they are.
    fn veiled(&self, mut row: MessageRow) -> MessageRow {
        let sources = self.config.section_of(&row.topic).map_or(&[][..], |t| &t.id);
        // A position says nothing of what a record holds.
        if row.id != readable_id::marked_position(row.offset) {
            row.id =
                shown_id(sources, row.id.as_bytes(), self.masker(&row.partner)).unwrap_or(row.hex.clone());
        }
        row.key = row.key.map(|key| self.veiled_key(&row.topic, &row.partner, &key));
        row
    }

    /// An ID that was typed or is kept, as it may be shown with this topic and partner; a hash always may.
    pub(super) fn shown_name(&self, topic: &str, partner: &str, id: &str) -> Option<String> {
        if id.parse::<MessageId>().is_ok() {
            return Some(id.to_owned());
        }
        let sources = self.config.section_of(topic).map_or(&[][..], |t| &t.id);
        shown_id(sources, id.as_bytes(), self.masker(partner))
    }

    /// The name of a message that goes by its position, where others of its topic go by what they say.
    pub(super) fn position(
        &self,
        view: &View,
        at: RoutePartition,
        id: MessageId,
        offset: Offset,
    ) -> Option<String> {
        let route = view.routes.get(&at.route)?;
        let section = self.config.section_of(&route.topic)?;
        let is_position = scope_of(route, at.partition).position(offset) == id;
        (is_position && !section.id.contains(&IdSource::Position))
            .then(|| readable_id::marked_position(offset))
    }

    /// How a topic's messages get their key.
    pub(super) fn key_source(&self, topic: &str) -> &KeySource {
        self.config
            .section_of(topic)
            .map_or(&KeySource::Record, |t| &t.key)
    }

    /// A key as it may be shown.
    pub(super) fn veiled_key(&self, topic: &str, partner: &str, key: &str) -> String {
        masked_key(self.key_source(topic), key, self.masker(partner))
    }
}

pub(super) fn place(view: &View, picked: &Picked) -> String {
    let (topic, partner) = view.names(picked.at.route);
    format!("{topic}/{} to {partner}", picked.at.partition)
}
