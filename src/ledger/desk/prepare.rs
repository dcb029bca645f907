//! The middle step of an order: filters that need payloads, Idempotency-Keys of next rounds, what cannot be done.

use super::Desk;
use super::plan::{Found, Item, NAMED, Prepared, Setting, Then, groups};
use super::rows::Inside;
use super::view::{Candidate, Picked, View, scope_of};
use crate::api::messages::{DedupRow, DedupState, MessageRow, parse_ago, parse_time};
use crate::api::orders::{Confirmed, IMPORT_ROWS, Order, OrderReport, OrderRequest, Touched};
use crate::api::{ApiError, Filter};
use crate::config::model::{DeliverConfig, PartnerRef};
use crate::config::{Config, IdSource};
use crate::core::ledger::entry::{Kept, SkipMatch, SkipRule};
use crate::core::ledger::fold::{FinishedState, MessageState};
use crate::core::readable_id::{Meaning, meanings};
use crate::core::types::{MessageId, RouteId, RoutePartition, Time};
use crate::sink::idempotency_key;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// Skip rules at once: every record is asked against them, and each change hands all of them to every route.
pub(super) const SKIPS_MOST: usize = 10_000;

/// Neither ledger nor configuration leads there.
pub(super) const NOWHERE: &str = "no such topic, partner or partition: a topic is there once records were imported or its node was started";

/// The stable code of a reason: what stands before its colon. Details would make endless groups.
pub(super) fn code(reason: &str) -> &str {
    reason.split_once(':').map_or(reason, |(code, _)| code)
}

/// The Idempotency-Key of the round after this one (`kept` is the closed message).
///
/// It stays the same while an attempt under it may be unsettled: the partner's own memory is then the last guard
/// against a second effect. After a definite refusal it must be another one, or a partner that remembers answers
/// would repeat its refusal for ever. What was never sent has no answer to be remembered.
fn next_key(id: MessageId, picked: &Picked, kept: &Kept, settled: bool) -> String {
    let never_sent = picked.message.attempts == 0 && picked.message.round == 1;
    let refused = code(&kept.reason) == "refused";
    if settled || never_sent || refused || kept.idempotency_key.is_empty() {
        idempotency_key(id, picked.message.round.saturating_add(1))
    } else {
        kept.idempotency_key.clone()
    }
}

fn found(picked: &Picked) -> Option<Found> {
    let round = picked.message.round;
    match picked.message.state {
        MessageState::Parked => Some(Found::Parked(round)),
        MessageState::Dead => Some(Found::Dead(round)),
        MessageState::Skipped => Some(Found::Skipped(round)),
        MessageState::Open { .. } | MessageState::Later { .. } => None,
    }
}

impl Desk {
    /// Makes an order up from what was picked for it. `more` in the report: more match than one order takes.
    ///
    /// # Errors
    /// [`ApiError`]: what the order names does not exist or cannot be done at all, another number of messages
    /// matches than was expected, or payloads cannot be read.
    pub fn prepare(&self, view: &View, request: &OrderRequest, now: Time) -> Result<Prepared, ApiError> {
        let order = &request.order;
        let mut making = Making {
            prepared: Prepared {
                who: request.who.clone(),
                why: request.why.clone(),
                words: words(order),
                items: Vec::new(),
                unmet: view.unmet.clone(),
                setting: None,
                report: OrderReport {
                    verb: order.verb().to_owned(),
                    dry_run: request.dry_run,
                    more: view.more,
                    at: now.to_string(),
                    ..OrderReport::default()
                },
            },
            round: request.expect.as_ref().and_then(|e| e.round),
        };
        match order {
            Order::Replay { filter, .. }
            | Order::Drop { filter }
            | Order::Resend { filter }
            | Order::Confirm { filter, .. } => {
                self.exists(view, filter)?;
                self.held(view, order, filter, &mut making)?;
            }
            Order::Forget { filter } => self.forget(view, filter, &mut making)?,
            Order::Mark { filter } => self.mark(view, filter, &mut making)?,
            Order::DedupImport { rows } => self.import_ids(view, rows, &mut making)?,
            setting => making.prepared.setting = Some(self.setting(view, setting, request, now)?),
        }
        if making.prepared.setting.is_some() && request.dry_run {
            making.prepared.report.touched = 1;
        }
        let count = making.prepared.items.len() as u64;
        if let Some(expected) = request.expect.as_ref().and_then(|e| e.count)
            && expected != count
        {
            return Err(ApiError::Stale(format!(
                "{count} messages match now, {expected} were expected"
            )));
        }
        for item in &mut making.prepared.items {
            let named = &mut item.named;
            named.id = self
                .shown_name(&named.topic, &named.partner, &named.id)
                .unwrap_or_else(|| item.id.to_string());
        }
        making.summarize(request.dry_run);
        Ok(making.prepared)
    }

    /// Closed messages that the filter takes.
    fn held(&self, view: &View, order: &Order, filter: &Filter, making: &mut Making) -> Result<(), ApiError> {
        let inside = Inside::new(filter)?;
        let limit = filter.limit.unwrap_or(usize::MAX);
        let mut without_payload = 0;
        for picked in &view.picked {
            let (row, kept) = self.row(view, picked)?;
            if !inside.takes(&row) {
                continue;
            }
            if making.prepared.items.len() >= limit {
                making.prepared.report.more = true;
                break;
            }
            let then = match (order, &kept) {
                (Order::Drop { .. }, _) => Then::Drop,
                (
                    Order::Confirm {
                        outcome: Confirmed::Delivered,
                        ..
                    },
                    _,
                ) => Then::Mark {
                    offset: picked.message.offset,
                },
                (_, None) => {
                    without_payload += 1;
                    continue;
                }
                (Order::Resend { .. }, Some(kept)) => Then::Open {
                    idempotency_key: next_key(picked.id, picked, kept, false),
                },
                (Order::Confirm { .. }, Some(kept)) => Then::Open {
                    idempotency_key: next_key(picked.id, picked, kept, true),
                },
                (_, Some(kept)) => Then::Open {
                    idempotency_key: next_key(picked.id, picked, kept, false),
                },
            };
            if let Some(expected) = found(picked) {
                making.push(picked.at, picked.id, expected, then, &row);
            }
        }
        making.refuse(
            without_payload,
            "have no payload any more and cannot be sent again",
        );
        Ok(())
    }

    fn forget(&self, view: &View, filter: &Filter, making: &mut Making) -> Result<(), ApiError> {
        let (mut busy, mut parked) = (0, 0);
        for candidate in &view.candidates {
            let picked = view.held(candidate);
            match picked {
                Some(picked) => match found(picked) {
                    None => busy += 1,
                    Some(Found::Parked(_)) => parked += 1,
                    Some(expected) => {
                        let (row, _) = self.row(view, picked)?;
                        making.push(picked.at, picked.id, expected, Then::Forget, &row);
                    }
                },
                None => {
                    if let Some(row) = self.remembered(view, filter, candidate)? {
                        making.push(candidate.at, candidate.id, Found::NotHeld, Then::Forget, &row);
                    }
                }
            }
        }
        making.refuse(
            busy,
            "wait for an attempt or its verdict; forget them once they are finished",
        );
        making.refuse(
            parked,
            "are in doubt; settle them with `doubt confirm` or `doubt resend`",
        );
        if making.prepared.items.is_empty() && busy + parked == 0 {
            return Err(ApiError::NotFound("none of these IDs is remembered".into()));
        }
        Ok(())
    }

    fn mark(&self, view: &View, filter: &Filter, making: &mut Making) -> Result<(), ApiError> {
        if view.places.is_empty() {
            return Err(ApiError::NotFound(NOWHERE.into()));
        }
        let (mut busy, mut done) = (0, 0);
        for (index, asked) in filter.ids.iter().enumerate() {
            let candidates = view.candidates_of(index);
            let mut known = false;
            for candidate in candidates {
                if let Some(picked) = view.held(candidate) {
                    known = true;
                    match found(picked) {
                        None => busy += 1,
                        Some(expected) => {
                            let (row, _) = self.row(view, picked)?;
                            let then = Then::Mark {
                                offset: picked.message.offset,
                            };
                            making.push(picked.at, picked.id, expected, then, &row);
                        }
                    }
                } else if let Some(found) = self.memory.get(candidate.at, candidate.id)? {
                    known = true;
                    if matches!(found.state, FinishedState::Delivered | FinishedState::Marked) {
                        done += 1;
                    } else if let Some(row) = self.remembered(view, filter, candidate)? {
                        let then = Then::Mark { offset: found.offset };
                        making.push(candidate.at, candidate.id, Found::NotHeld, then, &row);
                    }
                }
            }
            if !known {
                self.mark_unknown(view, asked, candidates, making)?;
            }
        }
        making.refuse(
            busy,
            "wait for an attempt or its verdict; `skip add --id` passes over what has not begun",
        );
        making.refuse(done, "are delivered already");
        Ok(())
    }

    /// An ID that nothing is known of is marked in every partition where it may turn up: which one is decided by
    /// whoever writes the record. A hash belongs to one partition, so that must be named.
    fn mark_unknown(
        &self,
        view: &View,
        asked: &str,
        candidates: &[Candidate],
        making: &mut Making,
    ) -> Result<(), ApiError> {
        let mut places = BTreeSet::new();
        for candidate in candidates {
            let (topic, partner) = view.names(candidate.at.route);
            // Where one partition is left, a text that looks like a hash may well be one: then both are marked, as
            // no record can ever have the other.
            let meant = match candidate.meaning {
                Meaning::Hash => view.places.len() == 1,
                other => other == intended(&self.config, topic, asked),
            };
            if !meant {
                continue;
            }
            if candidate.meaning == Meaning::Hash
                && let Some(holder) = self.memory.holder(candidate.id)?
            {
                // The store knows an ID once: marked here, it would be unknown there, and sent again (I2).
                let (topic, partner) = view.names(holder.route);
                return Err(ApiError::Invalid(format!(
                    "`{asked}` is a message of {topic} to {partner}, partition {}: mark it there",
                    holder.partition
                )));
            }
            places.insert(candidate.at);
            let row = MessageRow {
                id: asked.to_owned(),
                topic: topic.to_owned(),
                partner: partner.to_owned(),
                partition: candidate.at.partition,
                state: DedupState::Absent.word().to_owned(),
                ..MessageRow::default()
            };
            making.push(
                candidate.at,
                candidate.id,
                Found::NotHeld,
                Then::Mark { offset: 0 },
                &row,
            );
        }
        if places.is_empty() {
            return Err(ApiError::Invalid(format!(
                "nothing is known of `{asked}`, and its hash cannot be made from this text: give the hash, with topic, partner and partition"
            )));
        }
        if places.len() > 1 {
            making.prepared.report.notes.push(format!(
                "nothing is known of `{asked}`: it is marked in all {} partitions of its routes",
                places.len()
            ));
        }
        Ok(())
    }

    /// Lines of an export: what they call delivered is called so here, unless more is known.
    fn import_ids(&self, view: &View, rows: &[DedupRow], making: &mut Making) -> Result<(), ApiError> {
        if rows.len() > IMPORT_ROWS {
            return Err(ApiError::Invalid(format!("at most {IMPORT_ROWS} rows in one go")));
        }
        let mut by_name: BTreeMap<(&str, &str), Vec<RoutePartition>> = BTreeMap::new();
        for at in view.places.keys() {
            let (topic, partner) = view.names(at.route);
            by_name.entry((topic, partner)).or_default().push(*at);
        }
        let (mut other, mut nowhere, mut known) = (0, 0, 0);
        for row in rows {
            if row.state != DedupState::Delivered {
                other += 1;
                continue;
            }
            let places = by_name.get(&(row.topic.as_str(), row.partner.as_str()));
            let (mut marked, mut found) = (0, 0);
            for &at in places.into_iter().flatten() {
                // A list that is no export does not know the partition: the ID is marked wherever it may turn up.
                if row.partition.is_some_and(|partition| partition != at.partition) {
                    continue;
                }
                let Some((meaning, id)) = self.imported_id(view, row, at) else {
                    continue;
                };
                if self.memory.get(at, id)?.is_some() {
                    found += 1;
                    continue;
                }
                // A hash belongs to one partition. Called delivered in another one it would be unknown in its own.
                if meaning == Meaning::Hash && (row.partition.is_none() || self.memory.holder(id)?.is_some())
                {
                    continue;
                }
                marked += 1;
                let named = MessageRow {
                    id: row.id.clone(),
                    topic: row.topic.clone(),
                    partner: row.partner.clone(),
                    partition: at.partition,
                    state: DedupState::Absent.word().to_owned(),
                    ..MessageRow::default()
                };
                let then = Then::Mark {
                    offset: row.offset.unwrap_or(0),
                };
                making.push(at, id, Found::NotHeld, then, &named);
            }
            match (marked, found) {
                (0, 0) => nowhere += 1,
                (0, _) => known += 1,
                _ => {}
            }
        }
        making.refuse(known, "are known here already");
        making.refuse(
            other,
            "are not called delivered by the export, and their payload is not in it",
        );
        making.refuse(
            nowhere,
            "belong to a topic, partner or partition that is not known here, or are hashes of another partition",
        );
        Ok(())
    }

    /// The message that a line of an export stands for in this partition.
    fn imported_id(&self, view: &View, row: &DedupRow, at: RoutePartition) -> Option<(Meaning, MessageId)> {
        let route = view.routes.get(&at.route)?;
        let hex = row.hex.as_deref().unwrap_or_default();
        let same_topic = row.topic_id.as_deref() == Some(&format!("{:032x}", route.topic_id.0));
        if same_topic || row.id.is_empty() || row.id == hex {
            let id = hex.parse().ok().filter(|_| same_topic)?;
            return Some((Meaning::Hash, id));
        }
        // Another incarnation has other hashes: the readable ID is hashed anew.
        let wanted = intended(&self.config, &row.topic, &row.id);
        let all = meanings(&row.id, &scope_of(route, at.partition));
        all.into_iter().find(|(meaning, _)| *meaning == wanted)
    }

    /// The row of an ID that the store remembers.
    fn remembered(
        &self,
        view: &View,
        filter: &Filter,
        candidate: &Candidate,
    ) -> Result<Option<MessageRow>, ApiError> {
        let Some(found) = self.memory.get(candidate.at, candidate.id)? else {
            return Ok(None);
        };
        let (topic, partner) = view.names(candidate.at.route);
        let asked = filter.ids.get(candidate.asked).cloned().unwrap_or_default();
        Ok(Some(MessageRow {
            id: asked,
            topic: topic.to_owned(),
            partner: partner.to_owned(),
            partition: candidate.at.partition,
            state: super::dedup::remembered(found.state).word().to_owned(),
            offset: found.offset,
            ..MessageRow::default()
        }))
    }

    fn setting(
        &self,
        view: &View,
        order: &Order,
        request: &OrderRequest,
        now: Time,
    ) -> Result<Setting, ApiError> {
        let partner_exists = |name: &str| self.partner_exists(view, name);
        match order {
            Order::SkipAdd {
                topic,
                partner,
                key,
                id,
                expires,
            } => {
                self.topic_exists(view, topic)?;
                partner.as_deref().map(partner_exists).transpose()?;
                let matches = match (key, id) {
                    (Some(key), None) => SkipMatch::Key(Bytes::from(key.clone())),
                    (None, Some(id)) => SkipMatch::Id(Bytes::from(id.clone())),
                    _ => {
                        return Err(ApiError::Invalid(
                            "a skip rule names a key or a message ID, one of them".into(),
                        ));
                    }
                };
                if request.why.trim().is_empty() {
                    return Err(ApiError::Invalid("a skip rule needs a reason".into()));
                }
                // The same rule again takes the place of the first.
                let same = |r: &SkipRule| r.topic == *topic && r.partner == *partner && r.matches == matches;
                if view.skips.len() >= SKIPS_MOST && !view.skips.values().any(same) {
                    return Err(ApiError::Conflict(format!(
                        "there are {SKIPS_MOST} skip rules, and there can be no more: `skip remove` those that are not needed (`skip list`); IDs that must never be sent can be called delivered with `dedup mark` or `dedup import`"
                    )));
                }
                let expires = expires.as_deref().map(|text| ends(text, now)).transpose()?;
                Ok(Setting::SkipAdd(SkipRule {
                    rule: 0,
                    topic: topic.clone(),
                    partner: partner.clone(),
                    matches,
                    reason: request.why.clone(),
                    made: now,
                    expires,
                }))
            }
            Order::SkipRemove { rule } => match view.skips.contains_key(rule) {
                true => Ok(Setting::SkipRemove(*rule)),
                false => Err(ApiError::NotFound(format!("no skip rule {rule}"))),
            },
            Order::Pause { partner } => partner_exists(partner).map(|()| Setting::Pause(partner.clone())),
            Order::Resume { partner } => partner_exists(partner).map(|()| Setting::Resume(partner.clone())),
            Order::ResumeRoute { topic, partner } => route_of(view, topic, partner).map(Setting::ResumeRoute),
            Order::ForgetRoute { topic, partner } => {
                let route = route_of(view, topic, partner)?;
                if serves(&self.config, topic, partner) {
                    return Err(ApiError::Conflict(format!(
                        "the configuration has a route from `{topic}` to `{partner}`: take it out, restart, then forget it"
                    )));
                }
                Ok(Setting::ForgetRoute(route))
            }
            Order::Replay { .. }
            | Order::Drop { .. }
            | Order::Resend { .. }
            | Order::Confirm { .. }
            | Order::Forget { .. }
            | Order::Mark { .. }
            | Order::DedupImport { .. } => {
                Err(ApiError::Invalid(format!("{} is about messages", order.verb())))
            }
        }
    }
}

/// What a text that nothing is known of stands for, by the topic's settings.
fn intended(config: &Config, topic: &str, text: &str) -> Meaning {
    let sources = config.section_of(topic).map_or(&[][..], |t| t.id.as_slice());
    match sources {
        [IdSource::Position] => Meaning::Position,
        [_] => Meaning::Whole,
        [] if text.parse::<MessageId>().is_ok() => Meaning::Hash,
        [] => Meaning::Whole,
        [..] => Meaning::Parts,
    }
}

fn route_of(view: &View, topic: &str, partner: &str) -> Result<RouteId, ApiError> {
    let named = view
        .routes
        .values()
        .find(|r| r.topic == topic && r.partner == partner);
    named
        .map(|r| r.route)
        .ok_or_else(|| ApiError::NotFound(format!("no route from `{topic}` to `{partner}`")))
}

/// Whether the configuration has this route.
fn serves(config: &Config, topic: &str, partner: &str) -> bool {
    let to_it = |d: &DeliverConfig| match &d.partner {
        PartnerRef::Named(name) => name == partner,
        PartnerRef::Field(_) => config.partners.contains_key(partner),
    };
    config
        .section_of(topic)
        .is_some_and(|t| t.deliver.iter().any(to_it))
}

/// When a rule ends: after so long, or at a time to come.
fn ends(text: &str, now: Time) -> Result<Time, ApiError> {
    let at = match parse_ago(text.trim()) {
        Some(after) => now.plus(after),
        None => parse_time(text, now)?,
    };
    if at <= now {
        Err(ApiError::Invalid(format!("`{text}` is over already")))
    } else {
        Ok(at)
    }
}

/// The order in words, for the audit: its JSON says it exactly, without a row of an import.
fn words(order: &Order) -> String {
    match order {
        Order::DedupImport { rows } => format!("dedup import of {} rows", rows.len()),
        other => serde_json::to_string(other).unwrap_or_else(|_| other.verb().to_owned()),
    }
}

struct Making {
    prepared: Prepared,
    /// The round that every message must be in.
    round: Option<u32>,
}

impl Making {
    fn push(&mut self, at: RoutePartition, id: MessageId, expected: Found, then: Then, row: &MessageRow) {
        let round = match expected {
            Found::Parked(r) | Found::Dead(r) | Found::Skipped(r) => r,
            Found::NotHeld => 0,
        };
        if self.round.is_some_and(|wanted| wanted != round) {
            self.prepared.report.stale += 1;
            return;
        }
        self.prepared.items.push(Item {
            at,
            id,
            expected,
            then,
            named: Touched {
                id: row.id.clone(),
                partner: row.partner.clone(),
                topic: row.topic.clone(),
                partition: row.partition,
                state: row.state.clone(),
                round,
            },
            reason: code(&row.reason).to_owned(),
        });
    }

    fn refuse(&mut self, count: u64, why: &str) {
        if count > 0 {
            self.prepared.report.refused += count;
            self.prepared.report.notes.push(format!("{count} {why}"));
        }
    }

    /// What a dry run tells: what would be touched. Else these figures come from settling.
    fn summarize(&mut self, dry_run: bool) {
        if !dry_run {
            return;
        }
        let items = &self.prepared.items;
        let mut counts = BTreeMap::new();
        for item in items {
            *counts
                .entry((item.named.partner.clone(), item.reason.clone()))
                .or_default() += 1;
        }
        let report = &mut self.prepared.report;
        report.touched += items.len() as u64;
        report.messages = items.iter().take(NAMED).map(|i| i.named.clone()).collect();
        report.groups = groups(counts);
    }
}
