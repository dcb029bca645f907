//! What the admin server, its client and the offline commands say to each other: plain serde types, no behaviour but
//! what reads or checks them. Field names are an interface that scripts rely on (DESIGN section 9); they may be added
//! to, never renamed.
//!
//! Times are RFC 3339 in UTC. Message IDs are readable text where it is kept, else the hash in hex.

pub mod messages;
pub mod orders;
pub mod status;

pub use messages::{
    DedupRow, DedupState, DedupStats, Filter, MessageDetail, MessageRow, SkipRow, Story, StoryLine,
};
pub use orders::{Confirmed, Expect, Group, Order, OrderReport, OrderRequest, Touched};
pub use status::{BreakerState, PartnerStatus, Status, TopicStatus};

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A question to a node, or to a stopped node's folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "query", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Query {
    /// Parked messages.
    Doubts {
        /// Which of them.
        filter: Filter,
    },
    /// Dead letters.
    Dead {
        /// Which of them.
        filter: Filter,
    },
    /// One kept message with its payload.
    Show {
        /// Which: at least its ID.
        filter: Filter,
        /// Payload, headers and answer as they stand. Default: masked.
        raw: bool,
    },
    /// What became of a message, in every route.
    Story {
        /// One ID; topic, partner and partition narrow it down.
        filter: Filter,
    },
    /// What the dedup store and the ledger say of an ID.
    DedupGet {
        /// Readable ID, or 32 hex digits; topic, partner and partition narrow it down.
        filter: Filter,
    },
    /// Remembered IDs, newest first, up to the filter's limit. All of them: `/api/dedup/export`.
    DedupList {
        /// IDs, partner, topic, partition, since, until and limit apply.
        filter: Filter,
    },
    /// Figures of the dedup store.
    DedupStats,
    /// Skip rules in force.
    Skips,
}

/// The answer to a [`Query`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", content = "body", rename_all = "kebab-case")]
pub enum Reply {
    /// To `Doubts` and `Dead`.
    Messages(Page<MessageRow>),
    /// To `Show`.
    Detail(Box<MessageDetail>),
    /// To `Story`.
    Story(Story),
    /// To `DedupGet` and `DedupList`.
    Dedup(Page<DedupRow>),
    /// To `DedupStats`.
    DedupStats(DedupStats),
    /// To `Skips`.
    Skips(Vec<SkipRow>),
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Page<T> {
    /// The rows.
    pub rows: Vec<T>,
    /// More rows match than the limit let through.
    pub more: bool,
    /// Where the list goes on: the filter's `after` for the next page. Lists of kept messages have it where there are more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// One record to append to a topic: `send`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SendRequest {
    /// The topic.
    pub topic: String,
    /// Its key, if it has one.
    #[serde(default)]
    pub key: Option<String>,
    /// Its value.
    pub value: String,
    /// Its headers.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// Which partition. Default: by key, else by message ID.
    #[serde(default)]
    pub partition: Option<u32>,
}

/// Where a sent record stands, durable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendReply {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// Its offset.
    pub offset: u64,
    /// Its readable message ID, as lists show it; none where it is masked or lists hide it.
    pub id: Option<String>,
    /// What becomes of it that the sender may not have meant, in sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What an import into a running node is told; the file itself is the body of the request, packed (gz, zst) or not:
/// its first bytes tell.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportRequest {
    /// Into which topic.
    pub topic: String,
    /// Name of the file: what `source` will say.
    pub name: String,
    /// `jsonl`, `json`, `csv`, `urls` or `auto`.
    #[serde(default)]
    pub format: Option<String>,
    /// Import it even if the same content was imported before.
    #[serde(default)]
    pub again: bool,
    /// Where the records' keys come from: `json:/POINTER` or the name of a CSV column.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The first bad line ends it, and nothing is imported.
    #[serde(default)]
    pub strict: bool,
    /// Between the fields of CSV: one character, or `tab`. Default: by the content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delimiter: Option<String>,
    /// Where the file begins with one that was imported before: only what comes after it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rest: bool,
}

/// What an import became.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportReport {
    /// The file.
    pub name: String,
    /// Its topic.
    pub topic: String,
    /// Lines that are records now.
    pub accepted: u64,
    /// Lines that could not be read as records.
    pub rejected: u64,
    /// The same content was imported before: nothing was done.
    pub known: bool,
    /// Hash of the content, hex.
    pub hash: String,
    /// The first rejected lines.
    pub rejects: Vec<RejectedLine>,
    /// The reject file on the node, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reject_file: Option<String>,
    /// Lines whose message ID an earlier line of the file has: of those in one partition one record is sent. Above some 100,000
    /// different IDs an estimate.
    #[serde(default)]
    pub duplicates: u64,
    /// The first of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repeated: Vec<RepeatedLine>,
    /// Lines left out because an earlier import has them (`rest`).
    #[serde(default)]
    pub passed_over: u64,
    /// A line of which an earlier import has read only a part, as it had no line end then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub went_on: Option<u64>,
    /// What should be known of the file, in sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A line with the message ID of an earlier line of its file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepeatedLine {
    /// Its number, from 1.
    pub line: u64,
    /// The number of the earlier line.
    pub first: u64,
}

/// A line that could not be read as a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedLine {
    /// Its number, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub reason: String,
}

/// What a trial connection to a partner showed; no request is sent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PartnerTest {
    /// The partner.
    pub partner: String,
    /// Whether a connection (with TLS where the URL says so) could be made.
    pub ok: bool,
    /// How long it took, in milliseconds.
    pub connect_ms: f64,
    /// Where it went: host and port.
    pub address: String,
    /// What went wrong, or was agreed on.
    pub detail: String,
}

/// Which node it is that answers: what a command compares with the configuration at hand.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeIdentity {
    /// `node.id`.
    pub id: String,
    /// Its folder, absolute.
    pub data: String,
    /// UUID of the journal in that folder, hex.
    pub journal: String,
    /// The configuration files that it was started with, absolute.
    #[serde(default)]
    pub files: Vec<String>,
    /// Its topics: what message IDs are made with.
    #[serde(default)]
    pub topics: BTreeMap<String, TopicIdentity>,
}

/// Which incarnation of a topic it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicIdentity {
    /// Its ID, hex.
    pub id: String,
    /// Its partitions.
    pub partitions: u32,
}

/// Whether a node is alive, or ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Whether it is.
    pub ok: bool,
    /// What stands against it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

impl Health {
    /// Nothing stands against it.
    pub fn good() -> Self {
        Self {
            ok: true,
            problems: Vec::new(),
        }
    }
    /// These things stand against it; none: it is good.
    pub fn of(problems: Vec<String>) -> Self {
        Self {
            ok: problems.is_empty(),
            problems,
        }
    }
}

/// Why a request to a node, or an offline command, was not done. Variants by what the caller would do.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ApiError {
    /// The request itself is wrong.
    #[error("{0}")]
    Invalid(String),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// It names a partner or topic that there is not: most likely a misspelt one.
    #[error("{0}")]
    UnknownName(String),
    /// The message has moved on since the order was made up.
    #[error("stale: {0}")]
    Stale(String),
    /// It cannot be done in the present state.
    #[error("{0}")]
    Conflict(String),
    /// The node is starting, draining, or stopped by an error. Try again.
    #[error("{0}")]
    Unavailable(String),
    /// No room on the disk.
    #[error("{0}")]
    NoRoom(String),
    /// The body is larger than the bound.
    #[error("the body is larger than {limit} bytes")]
    TooLarge {
        /// The bound.
        limit: usize,
    },
    /// A token is required, or another one.
    #[error("this node asks for a token: set SLUICEGATE_TOKEN")]
    Unauthorized,
    /// The request comes from where none may come from.
    #[error("{0}")]
    Forbidden(String),
    /// Something failed inside the node.
    #[error("{0}")]
    Internal(String),
}

impl ApiError {
    /// The stable code, as in `docs/admin-api.md`.
    pub fn code(&self) -> &'static str {
        match self {
            ApiError::Invalid(_) => "invalid",
            ApiError::NotFound(_) => "not-found",
            ApiError::UnknownName(_) => "unknown-name",
            ApiError::Stale(_) => "stale",
            ApiError::Conflict(_) => "conflict",
            ApiError::Unavailable(_) => "unavailable",
            ApiError::NoRoom(_) => "no-room",
            ApiError::TooLarge { .. } => "too-large",
            ApiError::Unauthorized => "unauthorized",
            ApiError::Forbidden(_) => "forbidden",
            ApiError::Internal(_) => "internal",
        }
    }

    /// The status of the HTTP answer.
    pub fn status(&self) -> u16 {
        match self {
            ApiError::Invalid(_) => 400,
            ApiError::Unauthorized => 401,
            ApiError::Forbidden(_) => 403,
            ApiError::NotFound(_) | ApiError::UnknownName(_) => 404,
            ApiError::Stale(_) | ApiError::Conflict(_) => 409,
            ApiError::TooLarge { .. } => 413,
            ApiError::Internal(_) => 500,
            ApiError::Unavailable(_) => 503,
            ApiError::NoRoom(_) => 507,
        }
    }

    fn title(&self) -> &'static str {
        match self {
            ApiError::Invalid(_) => "the request is not valid",
            ApiError::NotFound(_) => "there is no such thing",
            ApiError::UnknownName(_) => "there is no partner or topic of that name",
            ApiError::Stale(_) => "the message has moved on",
            ApiError::Conflict(_) => "not possible in the present state",
            ApiError::Unavailable(_) => "the node cannot do this now",
            ApiError::NoRoom(_) => "no room on the disk",
            ApiError::TooLarge { .. } => "the body is too large",
            ApiError::Unauthorized => "a token is required",
            ApiError::Forbidden(_) => "not allowed from here",
            ApiError::Internal(_) => "the node failed",
        }
    }
}

/// A problem document after RFC 9457.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `urn:sluicegate:problem:CODE`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What kind of problem, in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened this time.
    pub detail: String,
    /// The stable code.
    pub code: String,
    /// The request's number, as in the node's log.
    pub instance: String,
}

impl Problem {
    /// The document for an error. What failed inside the node is not told to the outside: it is in the log, under
    /// the request's number.
    pub fn of(error: &ApiError, request: &str) -> Self {
        let detail = match error {
            ApiError::Internal(_) => format!("the node's log says more under request {request}"),
            other => other.to_string(),
        };
        Self {
            kind: format!("urn:sluicegate:problem:{}", error.code()),
            title: error.title().to_owned(),
            status: error.status(),
            detail,
            code: error.code().to_owned(),
            instance: request.to_owned(),
        }
    }

    /// The error behind a document, as a client sees it.
    pub fn into_error(self) -> ApiError {
        match self.code.as_str() {
            "invalid" => ApiError::Invalid(self.detail),
            "not-found" => ApiError::NotFound(self.detail),
            "unknown-name" => ApiError::UnknownName(self.detail),
            "stale" => ApiError::Stale(self.detail.trim_start_matches("stale: ").to_owned()),
            "conflict" => ApiError::Conflict(self.detail),
            "unavailable" => ApiError::Unavailable(self.detail),
            "no-room" => ApiError::NoRoom(self.detail),
            "unauthorized" => ApiError::Unauthorized,
            "forbidden" | "too-large" => ApiError::Forbidden(self.detail),
            _ => ApiError::Internal(self.detail),
        }
    }
}

#[cfg(test)]
mod tests;
