//! Rows about messages, and the filter that picks them.

use super::ApiError;
use crate::core::types::Time;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Which messages. Everything set must hold; the empty filter takes all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// Any of these: readable message IDs, or 32 hex digits each. At most [`FILTER_IDS`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<String>,
    /// Name of the partner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partner: Option<String>,
    /// Name of the topic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// The partition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<u32>,
    /// What the reason begins with; between slashes a regular expression (`/4[0-9]{2}/`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// In this state since this time or later: RFC 3339, or so long ago (`2h`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// In this state since before this time: RFC 3339, or so long ago.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// What the source (`file:line`) begins with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The key, exactly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The round.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub round: Option<u32>,
    /// At most so many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Only what comes after the end of an earlier page: its `next`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// Most IDs one filter names.
pub const FILTER_IDS: usize = 10_000;

impl Filter {
    /// The filter that picks this ID.
    pub fn of_id(id: impl Into<String>) -> Self {
        Self {
            ids: vec![id.into()],
            ..Self::default()
        }
    }

    /// Whether it takes everything.
    pub fn is_empty(&self) -> bool {
        Filter {
            limit: None,
            ..self.clone()
        } == Filter::default()
    }
}

/// How `Filter::reason` is to be read.
#[derive(Clone, Debug)]
pub enum ReasonMatch {
    /// The reason begins with this.
    Prefix(String),
    /// The reason matches this.
    Regex(regex::Regex),
}

impl ReasonMatch {
    /// Reads the text form.
    ///
    /// # Errors
    /// If what stands between slashes is no regular expression, or too large a one.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        match text.strip_prefix('/').and_then(|t| t.strip_suffix('/')) {
            Some(pattern) => regex::RegexBuilder::new(pattern)
                .size_limit(1 << 20)
                .build()
                .map(ReasonMatch::Regex)
                .map_err(|e| ApiError::Invalid(format!("reason `{text}` is no regular expression: {e}"))),
            None => Ok(ReasonMatch::Prefix(text.to_owned())),
        }
    }

    /// Whether this reason is meant.
    pub fn matches(&self, reason: &str) -> bool {
        match self {
            ReasonMatch::Prefix(prefix) => reason.starts_with(prefix.as_str()),
            ReasonMatch::Regex(regex) => regex.is_match(reason),
        }
    }
}

/// Reads a time of a filter: RFC 3339, a date, or so long before `now` (`90s`, `15m`, `2h`, `7d`).
///
/// # Errors
/// If it is none of these.
pub fn parse_time(text: &str, now: Time) -> Result<Time, ApiError> {
    let text = text.trim();
    if let Some(ago) = parse_ago(text) {
        return Ok(now.minus(ago));
    }
    let instant = text.parse::<jiff::Timestamp>().ok().or_else(|| {
        let date: jiff::civil::Date = text.parse().ok()?;
        Some(date.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
    });
    instant.and_then(|t| u64::try_from(t.as_microsecond()).ok()).map(Time).ok_or_else(|| {
        ApiError::Invalid(format!("`{text}` is no time, expected 2026-01-31T12:00:00Z, 2026-01-31 (UTC), or so long ago: 90s, 15m, 2h, 7d"))
    })
}

/// Reads a span: `90s`, `15m`, `2h`, `7d`.
pub fn parse_ago(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (count, unit) = text.split_at(digits);
    let seconds = match unit {
        "s" => 1,
        "m" | "min" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    Some(Duration::from_secs(
        count.parse::<u64>().ok()?.checked_mul(seconds)?,
    ))
}

/// One parked message or dead letter: `doubt list`, `dead list`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MessageRow {
    /// Readable ID; the hash in hex where none is kept.
    pub id: String,
    /// The partner.
    pub partner: String,
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// Offset of its record.
    pub offset: u64,
    /// Its key, as text; masked where a rule says so. None: it had none.
    pub key: Option<String>,
    /// A stable code, a colon, the detail.
    pub reason: String,
    /// Attempts in this round.
    pub attempts: u32,
    /// The partner's last status; none if it never answered.
    pub last_status: Option<u16>,
    /// Where the record came from: `file:line`.
    pub source: Option<String>,
    /// `parked`, `dead` or `skipped`.
    pub state: String,
    /// The hash, hex.
    pub hex: String,
    /// When it came into this state.
    pub at: String,
    /// When the first attempt of this round was made.
    pub first_try: Option<String>,
    /// The round.
    pub round: u32,
    /// First bytes of the partner's last answer, masked.
    pub answer: String,
    /// Bytes of its value.
    pub value_size: u64,
    /// The payload is still kept: it can be sent again.
    pub replayable: bool,
}

/// A kept message with its payload: `doubt show`, `dead show`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MessageDetail {
    /// What the list says.
    #[serde(flatten)]
    pub row: MessageRow,
    /// The Idempotency-Key it was, or would have been, sent with.
    pub idempotency_key: String,
    /// Timestamp of its record.
    pub timestamp: String,
    /// Headers of its record.
    pub headers: Vec<(String, String)>,
    /// Its value as text; masked unless asked for raw. Bytes that are no text are shown as `\xNN`.
    pub value: String,
    /// Whether values are masked.
    pub masked: bool,
}

/// What is known of an ID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DedupState {
    /// Nothing: never seen, or no longer remembered.
    #[default]
    Absent,
    /// An attempt is, or may be, on the wire.
    Intent,
    /// The partner took it, or a command says so.
    Delivered,
    /// Refused for good, or too old.
    Dead,
    /// Passed over by a rule.
    Skipped,
    /// In doubt, held for an operator.
    Parked,
    /// Tried, or opened again; to be tried.
    Waiting,
}

impl DedupState {
    /// The word that `--json` and tables show.
    pub fn word(self) -> &'static str {
        match self {
            DedupState::Absent => "absent",
            DedupState::Intent => "intent",
            DedupState::Delivered => "delivered",
            DedupState::Dead => "dead",
            DedupState::Skipped => "skipped",
            DedupState::Parked => "parked",
            DedupState::Waiting => "waiting",
        }
    }
}

/// An ID in one route: `dedup get`, `dedup list`, a line of `dedup export`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DedupRow {
    /// Readable ID; the hash in hex where none is kept.
    pub id: String,
    /// The partner.
    pub partner: String,
    /// What is known.
    pub state: DedupState,
    /// Since when; none if absent.
    pub at: Option<String>,
    /// The topic.
    pub topic: String,
    /// The partition; none if absent from all.
    pub partition: Option<u32>,
    /// The hash, hex; none if absent from all.
    pub hex: Option<String>,
    /// Offset of its record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// Attempts in the last round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// The partner's last status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_status: Option<u16>,
    /// The round, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round: Option<u32>,
    /// Called delivered by a command, without being sent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub marked: bool,
    /// Incarnation of the topic, hex: hashes of another one mean nothing. Only in exports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic_id: Option<String>,
}

/// Figures of the dedup store.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DedupStats {
    /// IDs in it.
    pub ids: u64,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Bytes in memory.
    pub memory_bytes: u64,
    /// Bytes on disk for each ID.
    pub bytes_per_id: f64,
    /// Its buckets, oldest first.
    pub buckets: Vec<BucketRow>,
    /// Why a bucket that is over cannot be sealed, while that lasts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seal_refuses: Option<String>,
    /// Messages by partner and what became of them, as the ledger counts them.
    pub messages: Vec<CountRow>,
}

/// One bucket of the dedup store.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BucketRow {
    /// Start of its span.
    pub from: String,
    /// End of its span.
    pub to: String,
    /// Over and sealed into a plain file; if not, in sled.
    pub sealed: bool,
    /// IDs in it.
    pub ids: u64,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Bytes in memory.
    pub memory_bytes: u64,
}

/// Messages of one partner in one state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CountRow {
    /// The partner.
    pub partner: String,
    /// The state.
    pub state: String,
    /// How many.
    pub count: u64,
}

/// A skip rule: `skip list`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SkipRow {
    /// Its number.
    pub rule: u64,
    /// The topic.
    pub topic: String,
    /// The partner; none: all of the topic's.
    pub partner: Option<String>,
    /// The key it matches, if it matches keys.
    pub key: Option<String>,
    /// The message ID it matches, if it matches IDs.
    pub id: Option<String>,
    /// Why, as the operator said.
    pub reason: String,
    /// When it was made.
    pub made: String,
    /// When it ends by itself, if it does.
    pub expires: Option<String>,
}

/// What became of a message, in every route that knows it: `message ID`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Story {
    /// What was asked for.
    pub id: String,
    /// One story a route and partition.
    pub routes: Vec<RouteStory>,
    /// Part of the ledger was trimmed: what lies before this offset is not told.
    pub told_from: u64,
    /// What was looked through of the records that wait in topics, where neither ledger nor store knows the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub looked: Option<Looked>,
    /// What else is known, in sentences: of the file that was asked for, for instance.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// How far a search in topics came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Looked {
    /// Records that were looked at.
    pub records: u64,
    /// Records that were not, because the search met its bound.
    pub left: u64,
}

/// A message whose record waits in the topic: no attempt of it has begun.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unread {
    /// Records before it in its partition that are not finished.
    pub before: u64,
    /// Why its route stands, where it does.
    pub why: Vec<String>,
}

/// What became of a message in one route.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RouteStory {
    /// The topic.
    pub topic: String,
    /// The partner.
    pub partner: String,
    /// The partition.
    pub partition: u32,
    /// The hash, hex.
    pub hex: String,
    /// Where it stands.
    pub state: DedupState,
    /// Offset of its record.
    pub offset: Option<u64>,
    /// Where the record came from: `file:line`.
    pub source: Option<String>,
    /// Its key, as text; masked where a rule says so.
    pub key: Option<String>,
    /// Attempts over all rounds.
    pub attempts: u32,
    /// What happened, in order; long ones have their middle left out.
    pub lines: Vec<StoryLine>,
    /// Set while its record waits in the topic and no attempt has begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unread: Option<Unread>,
}

/// One thing that happened to a message.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StoryLine {
    /// When.
    pub at: String,
    /// What, as a word: appended, attempt, delivered, later, dead, parked, skipped, waiting, opened, command, waits,
    /// because.
    pub event: String,
    /// The rest, in words.
    pub detail: String,
}
