//! Messages that neither fold nor store knows: their records wait in a topic, or came with a file that somebody names.
//!
//! What waits has no entry in the ledger. So the topic itself is read, each record as a delivery would read it, until all
//! that is not finished was looked at or the bound of one question is met; then the answer says how much is left. A text
//! `FILE:LINE` is the source of an imported record: the registry of imports says where in which topic to begin.

use super::Desk;
use super::story::line;
use super::view::{Pick, States, View};
use crate::api::messages::{DedupState, Looked, RouteStory, Story, Unread, parse_time};
use crate::api::{ApiError, Filter, Status};
use crate::app::route_rules;
use crate::core::message_id::{IdScope, route_id};
use crate::core::ranges::RangeSet;
use crate::core::readable_id::{Meaning, meanings};
use crate::core::record::{Record, SOURCE_HEADER};
use crate::core::resolve::{Known, Resolved, Resolver, Rules};
use crate::core::shown::key_text;
use crate::core::types::{MessageId, Offset, RoutePartition, Time};
use crate::intake::import::Entry as Import;
use crate::intake::section_of;
use crate::telemetry::text::{count, counted};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Bytes of records that one question may read: a second or so.
const MOST_BYTES: usize = 128 << 20;
/// Bytes of one read, and the least where very many partitions take turns.
const CHUNK: usize = 1 << 20;
const LEAST_CHUNK: usize = 64 << 10;
/// What a record counts for besides its bytes: small ones cost time, too.
const EACH: usize = 64;
/// Records of one source that are told of: the same file may have come into several topics.
const MOST_FOUND: usize = 20;

/// Copies what a pick takes out of the fold.
pub(super) type Look<'a> = &'a dyn Fn(&Pick) -> Result<View, ApiError>;

/// A partition of a topic that is read, and what is looked for in it.
struct Walk<T> {
    topic: String,
    partition: u32,
    at: Offset,
    end: Offset,
    wanted: T,
}

/// A route that may have the message waiting in one partition.
struct Sought {
    partner: String,
    at: RoutePartition,
    /// Every record before this one is finished, or gone.
    from: Offset,
    finished: RangeSet,
    ids: Vec<(Meaning, MessageId)>,
    resolver: Resolver,
}

impl Sought {
    /// Whether the record is still to be delivered.
    fn waits(&self, offset: Offset) -> bool {
        offset >= self.from && !self.finished.contains(offset)
    }

    /// Records before this one that are not finished.
    fn before(&self, offset: Offset) -> u64 {
        let below = self.finished.iter().take_while(|(from, _)| *from < offset);
        let finished: u64 = below.map(|(from, to)| to.min(offset) - from).sum();
        offset.saturating_sub(self.from).saturating_sub(finished)
    }
}

/// The place of a record in a file, as `source` says it.
pub(super) struct SourceLine<'a> {
    file: &'a str,
    number: u64,
}

impl<'a> SourceLine<'a> {
    /// Reads `FILE:LINE`; folders do not matter, as sources have none.
    pub(super) fn of(text: &'a str) -> Option<Self> {
        let (path, number) = text.rsplit_once(':')?;
        let file = path.rsplit('/').next().filter(|file| !file.is_empty())?;
        let number = number.parse().ok()?;
        Some(Self { file, number })
    }

    fn source(&self) -> String {
        format!("{}:{}", self.file, self.number)
    }
}

impl Desk {
    /// Reads partitions in turns, so that none keeps the bound to itself. `take` says whether its partition is read on.
    fn walk<T>(
        &self,
        walks: Vec<Walk<T>>,
        take: &mut dyn FnMut(&mut Walk<T>, Record) -> bool,
    ) -> Result<Looked, ApiError> {
        let chunk = (MOST_BYTES / walks.len().max(1)).clamp(LEAST_CHUNK, CHUNK);
        let mut walks = VecDeque::from(walks);
        let (mut looked, mut room) = (Looked::default(), MOST_BYTES);
        let mut records = Vec::new();
        while let Some(mut walk) = walks.pop_front() {
            if room == 0 {
                looked.left += walk.end.saturating_sub(walk.at);
                continue;
            }
            let go_on = self
                .entries
                .records(&walk.topic, walk.partition, walk.at, chunk, &mut records)?;
            let mut goes_on = true;
            for record in records.drain(..) {
                let key = record.key.as_ref().map_or(0, bytes::Bytes::len);
                room = room.saturating_sub(record.value.len() + record.headers.0.len() + key + EACH);
                if !goes_on || record.offset >= walk.end {
                    goes_on = false;
                    continue;
                }
                looked.records += 1;
                goes_on = take(&mut walk, record);
            }
            if let Some(at) = go_on.filter(|at| goes_on && *at < walk.end) {
                walk.at = at;
                walks.push_back(walk);
            }
        }
        Ok(looked)
    }

    /// The routes of a topic as the configuration has them, as far as the filter takes them.
    fn routes_of(&self, topic: &str, filter: &Filter) -> Vec<(String, Rules)> {
        if filter.topic.as_deref().is_some_and(|wanted| wanted != topic) {
            return Vec::new();
        }
        let Some(section) = section_of(&self.config, topic) else {
            return Vec::new();
        };
        let mut routes = route_rules(&self.config, &section);
        routes.retain(|(partner, _)| filter.partner.as_ref().is_none_or(|wanted| wanted == partner));
        routes
    }

    fn sought(
        &self,
        view: &View,
        topic: &str,
        partition: u32,
        partner: &str,
        rules: &Rules,
        asked: &str,
    ) -> Option<Sought> {
        let (topic_id, _) = self.entries.topic(topic)?;
        let (begin, _) = self.entries.input_bounds(topic, partition)?;
        let at = RoutePartition {
            route: route_id(topic, topic_id, partner),
            partition,
        };
        let scope = IdScope::new(topic, topic_id, partition, partner);
        let progress = view.places.get(&at).cloned().unwrap_or_default();
        Some(Sought {
            partner: partner.to_owned(),
            at,
            from: progress.position.max(begin),
            finished: progress.finished,
            ids: meanings(asked, &scope).into_iter().collect(),
            // A configuration that was checked has rules that compile.
            resolver: Resolver::try_new(scope, topic, partition, rules.clone()).ok()?,
        })
    }

    /// Looks for the asked message among the records that wait: in all topics, or in the other routes of topics where it
    /// is known.
    fn unread(
        &self,
        view: &View,
        filter: &Filter,
        known: &[RouteStory],
        now: Time,
    ) -> Result<(Vec<RouteStory>, Looked), ApiError> {
        let asked = filter.ids.first().map_or("", String::as_str);
        let mut walks = Vec::new();
        for topic in self.entries.topics() {
            if !known.is_empty() && known.iter().all(|route| route.topic != topic) {
                continue;
            }
            let mut routes = self.routes_of(&topic, filter);
            let is_known = |partner: &str| known.iter().any(|r| r.topic == topic && r.partner == partner);
            routes.retain(|(partner, _)| !is_known(partner));
            let partitions = self.entries.topic(&topic).map_or(0, |(_, partitions)| partitions);
            let wanted = (0..partitions).filter(|p| filter.partition.is_none_or(|wanted| wanted == *p));
            for partition in wanted {
                let sought = |(partner, rules): &(String, Rules)| {
                    self.sought(view, &topic, partition, partner, rules, asked)
                };
                let sought: Vec<Sought> = routes.iter().filter_map(sought).collect();
                let end = self.entries.input_bounds(&topic, partition).map_or(0, |b| b.1);
                let from = sought.iter().map(|s| s.from).min().unwrap_or(end);
                if from < end {
                    walks.push(Walk {
                        topic: topic.clone(),
                        partition,
                        at: from,
                        end,
                        wanted: sought,
                    });
                }
            }
        }
        let mut found = Vec::new();
        // A message has one partition. But each partition has a record at a position.
        let mut settled: BTreeSet<(String, String)> = BTreeSet::new();
        let looked = self.walk(walks, &mut |walk, record| {
            let (topic, partition) = (&walk.topic, walk.partition);
            walk.wanted.retain(|route| {
                if settled.contains(&(topic.clone(), route.partner.clone())) {
                    return false;
                }
                if !route.waits(record.offset) {
                    return true;
                }
                let known = match route.resolver.resolve(&record) {
                    Resolved::Message(known) | Resolved::Invalid(known, _) => known,
                    Resolved::Filtered => return true,
                };
                let Some((meaning, _)) = route.ids.iter().find(|(_, id)| *id == known.id) else {
                    return true;
                };
                if *meaning != Meaning::Position {
                    settled.insert((topic.clone(), route.partner.clone()));
                }
                found.push(self.waiting(topic, partition, route, &record, &known, now));
                false
            });
            !walk.wanted.is_empty()
        })?;
        Ok((found, looked))
    }

    /// What is told of a record that waits in a topic.
    fn waiting(
        &self,
        topic: &str,
        partition: u32,
        route: &Sought,
        record: &Record,
        known: &Known,
        now: Time,
    ) -> RouteStory {
        let mut story = self.of_record(topic, partition, &route.partner, record, known);
        let before = route.before(record.offset);
        story.state = DedupState::Waiting;
        let behind = match before {
            0 => "it is the next of its partition".to_owned(),
            n => format!(
                "{} before it in its partition {} not finished",
                counted(n, "record"),
                are(n)
            ),
        };
        let detail = format!("in the topic, no attempt of it has begun; {behind}");
        story.lines.push(line(now, "waits", detail));
        story.unread = Some(Unread {
            before,
            why: Vec::new(),
        });
        story
    }

    /// What the record itself says of its message.
    fn of_record(
        &self,
        topic: &str,
        partition: u32,
        partner: &str,
        record: &Record,
        known: &Known,
    ) -> RouteStory {
        let key = key_text(self.key_source(topic), record.key.as_deref(), &record.value);
        let appended = format!("{topic}/{partition} offset {}", record.offset);
        RouteStory {
            topic: topic.to_owned(),
            partner: partner.to_owned(),
            partition,
            hex: known.id.to_string(),
            offset: Some(record.offset),
            source: super::rows::source(&record.headers),
            key: key.map(|key| self.veiled_key(topic, partner, &key)),
            lines: vec![line(record.timestamp, "appended", appended)],
            ..RouteStory::default()
        }
    }

    /// What became of a message, wherever that stands: in ledger and store, in what waits in topics, by the file that it
    /// came with.
    pub(super) fn whole_story(
        &self,
        look: Look<'_>,
        view: &View,
        filter: &Filter,
        now: Time,
    ) -> Result<Story, ApiError> {
        let asked = filter.ids.first().map_or("", String::as_str);
        let mut story = self.story(view, filter)?;
        let (waiting, looked) = self.unread(view, filter, &story.routes, now)?;
        story.routes.extend(waiting);
        let source = SourceLine::of(asked).filter(|_| story.routes.is_empty());
        let mut is_source = false;
        if let Some(source) = source {
            let imports = self.entries.imports(source.file)?;
            if !imports.is_empty() {
                is_source = true;
                self.by_source(look, filter, &source, &imports, now, &mut story)?;
            }
        }
        if looked.left > 0 || (story.routes.is_empty() && !is_source) {
            story.looked = Some(looked);
        }
        if !is_source {
            self.hide_name(view, &mut story);
        }
        story.notes.extend(several(asked, &story.routes));
        Ok(story)
    }

    /// The messages of one line of a file.
    fn by_source(
        &self,
        look: Look<'_>,
        filter: &Filter,
        source: &SourceLine<'_>,
        imports: &[Import],
        now: Time,
        story: &mut Story,
    ) -> Result<(), ApiError> {
        let found = self.records_of(filter, source, imports, now)?;
        for (topic, partition, record) in &found {
            for (partner, rules) in self.routes_of(topic, filter) {
                // The hash names it whatever its ID looks like.
                let Some(mut route) = self.sought(&View::default(), topic, *partition, &partner, &rules, "")
                else {
                    continue;
                };
                let known = match route.resolver.resolve(record) {
                    Resolved::Message(known) | Resolved::Invalid(known, _) => known,
                    Resolved::Filtered => {
                        story.notes.push(format!(
                            "{} is offset {} of {topic}/{partition}: it is not for {partner}, whose condition or field takes others",
                            source.source(),
                            record.offset
                        ));
                        continue;
                    }
                };
                let (of_one, view) = self.by_hash(look, topic, *partition, &partner, known.id, now)?;
                if !of_one.is_empty() {
                    story.routes.extend(of_one);
                    continue;
                }
                if let Some(progress) = view.places.get(&route.at) {
                    route.from = route.from.max(progress.position);
                    route.finished = progress.finished.clone();
                }
                story.routes.push(if route.waits(record.offset) {
                    self.waiting(topic, *partition, &route, record, &known, now)
                } else {
                    let mut told = self.of_record(topic, *partition, &partner, record, &known);
                    let detail = "what became of it is no longer remembered (dedup.retention)".to_owned();
                    told.lines.push(line(now, "finished", detail));
                    told
                });
            }
        }
        if !found.is_empty() {
            return Ok(());
        }
        // The record has left the topic, but the ledger may keep its payload.
        let kept = Filter {
            ids: Vec::new(),
            source: Some(source.source()),
            ..filter.clone()
        };
        let view = look(&Pick::new(&kept, States::CLOSED, now)?)?;
        for picked in &view.picked {
            let (row, _) = self.row(&view, picked)?;
            if row.source.as_deref() == Some(source.source().as_str()) && story.routes.len() < MOST_FOUND {
                let at = picked.at;
                let (of_one, _) =
                    self.by_hash(look, &row.topic, at.partition, &row.partner, picked.id, now)?;
                story.routes.extend(of_one);
            }
        }
        if story.routes.is_empty() {
            let wanted = |import: &&Import| filter.topic.as_ref().is_none_or(|t| *t == import.topic);
            let told = imports.iter().filter(wanted).take(3);
            story
                .notes
                .extend(told.map(|import| without_record(source, import)));
        }
        Ok(())
    }

    fn by_hash(
        &self,
        look: Look<'_>,
        topic: &str,
        partition: u32,
        partner: &str,
        id: MessageId,
        now: Time,
    ) -> Result<(Vec<RouteStory>, View), ApiError> {
        let filter = Filter {
            topic: Some(topic.to_owned()),
            partner: Some(partner.to_owned()),
            partition: Some(partition),
            ..Filter::of_id(id.to_string())
        };
        let view = look(&Pick::new(&filter, States::ALL, now)?.with_ranges())?;
        let routes = self.story(&view, &filter)?.routes;
        Ok((routes, view))
    }

    /// The records of a file's line that are still in their topics.
    fn records_of(
        &self,
        filter: &Filter,
        source: &SourceLine<'_>,
        imports: &[Import],
        now: Time,
    ) -> Result<Vec<(String, u32, Record)>, ApiError> {
        // Per topic: how many imports had such a line, and when the first one began.
        let mut topics: BTreeMap<&str, (usize, Time)> = BTreeMap::new();
        for import in imports {
            let wanted = filter.topic.as_ref().is_none_or(|t| *t == import.topic);
            let there = self.entries.topic(&import.topic);
            let same = there.is_some_and(|(id, _)| format!("{:032x}", id.0) == import.topic_id);
            if wanted && same && source.number <= import.lines {
                let at = parse_time(&import.at, now).unwrap_or(Time::ZERO);
                let of = topics.entry(&import.topic).or_insert((0, at));
                *of = (of.0 + 1, of.1.min(at));
            }
        }
        let mut walks = Vec::new();
        for (topic, (_, since)) in &topics {
            let partitions = self.entries.topic(topic).map_or(0, |(_, partitions)| partitions);
            for partition in (0..partitions).filter(|p| filter.partition.is_none_or(|wanted| wanted == *p)) {
                let Some((begin, end)) = self.entries.input_bounds(topic, partition) else {
                    continue;
                };
                let at = self.entries.offset_at(topic, partition, *since).unwrap_or(begin);
                walks.push(Walk {
                    topic: (*topic).to_owned(),
                    partition,
                    at: at.max(begin),
                    end,
                    wanted: (),
                });
            }
        }
        let wanted = source.source();
        let mut found = Vec::new();
        let mut of_topic: BTreeMap<String, usize> = BTreeMap::new();
        self.walk(walks, &mut |walk, record| {
            let there = of_topic.entry(walk.topic.clone()).or_default();
            if record.headers.get(SOURCE_HEADER) == Some(wanted.as_bytes()) && found.len() < MOST_FOUND {
                *there += 1;
                found.push((walk.topic.clone(), walk.partition, record));
            }
            let all = topics.get(walk.topic.as_str()).map_or(0, |of| of.0);
            *there < all
        })?;
        Ok(found)
    }
}

fn are(n: u64) -> &'static str {
    if n == 1 { "is" } else { "are" }
}

/// What an import says of a line of which there is no record.
fn without_record(source: &SourceLine<'_>, import: &Import) -> String {
    let (line, file) = (source.number, &import.name);
    let unit = match import.format.as_deref() {
        Some("json") => "element",
        _ => "line",
    };
    let when = format!("imported into {} at {}", import.topic, import.at);
    let all = match &import.reject_file {
        Some(path) => format!("; all that were rejected: {path}"),
        None => String::new(),
    };
    if let Some(reject) = import.rejects.iter().find(|reject| reject.line == line) {
        return format!(
            "{unit} {line} of {file}, {when}, was rejected: {}{all}",
            reject.reason
        );
    }
    if line > import.lines {
        return format!("{file}, {when}, ends with {unit} {}", count(import.lines));
    }
    let rejected = match import.rejected {
        0 => String::new(),
        n => format!(", or one of the {} that were rejected{all}", counted(n, unit)),
    };
    format!(
        "{file} was {when}, but no record of its {unit} {line} is there: it has left the topic (log.retention; then ask by its message ID), or the {unit} was blank or a header{rejected}"
    )
}

/// A number may be the position of a record in each partition.
fn several(asked: &str, routes: &[RouteStory]) -> Option<String> {
    let offset: Offset = asked.strip_prefix('@').unwrap_or(asked).parse().ok()?;
    let by_position = |r: &&RouteStory| r.offset == Some(offset);
    let places: BTreeSet<(&str, u32)> = routes
        .iter()
        .filter(by_position)
        .map(|r| (r.topic.as_str(), r.partition))
        .collect();
    (places.len() > 1).then(|| {
        format!(
            "{offset} is a position, and {} have a record there: --topic and --partition name one, and so does FILE:LINE, as `from` shows it",
            counted(places.len() as u64, "partition")
        )
    })
}

/// Says of messages that wait in their topic why their routes stand, as the status has it.
pub fn explain(story: &mut Story, status: &Status) {
    for route in &mut story.routes {
        let Some(unread) = &mut route.unread else { continue };
        let mut why = Vec::new();
        if status.node.state == "stopped" {
            why.push("no node runs on this folder".to_owned());
        }
        why.extend(status.node.intake_paused.iter().cloned());
        why.extend(status.log.refuses.iter().cloned());
        if let Some(partner) = status.partners.iter().find(|p| p.partner == route.partner) {
            // Those that are served are nothing to wonder about.
            let stands = |code: &str| !matches!(code, "in_flight" | "retries" | "stopped");
            let waits = partner.waits.iter().filter(|wait| stands(&wait.code));
            why.extend(waits.map(|wait| format!("{}: {}", partner.partner, wait.text)));
            if partner.waits.is_empty() {
                let paused = partner.paused.iter();
                why.extend(paused.map(|reason| format!("{} is paused: {reason}", partner.partner)));
            }
        }
        let row = status.topics.iter().find(|t| {
            (t.topic.as_str(), t.partner.as_str(), t.partition)
                == (route.topic.as_str(), route.partner.as_str(), route.partition)
        });
        let stopped = row.and_then(|row| row.stopped.as_ref());
        why.extend(stopped.map(|reason| format!("the route is stopped: {reason}")));
        why.dedup();
        let because = why
            .iter()
            .map(|reason| super::story::bare("because", reason.clone()));
        route.lines.extend(because);
        unread.why = why;
    }
}
