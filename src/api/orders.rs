//! Orders: what an operator tells a node to do, and what it reports back.

use super::messages::{DedupRow, Filter};
use serde::{Deserialize, Serialize};

/// An order with who gave it and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderRequest {
    /// What to do.
    pub order: Order,
    /// Who, as far as that is known: stands in the ledger.
    #[serde(default)]
    pub who: String,
    /// Why: stands in the ledger.
    #[serde(default)]
    pub why: String,
    /// Only say what would be touched.
    #[serde(default)]
    pub dry_run: bool,
    /// What the messages were like when the order was made up; those that have moved on are answered "stale".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<Expect>,
}

/// The state and round that an order was made up for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// The round; none: any.
    #[serde(default)]
    pub round: Option<u32>,
    /// So many messages must match, neither more nor fewer; none: any number.
    #[serde(default)]
    pub count: Option<u64>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Order {
    /// Opens the next round of dead letters, or of skipped messages where `skipped` says so.
    Replay {
        /// Which of them.
        filter: Filter,
        /// Skipped messages instead of dead ones.
        #[serde(default)]
        skipped: bool,
    },
    /// Gives up the kept payload of dead letters; their IDs stay remembered.
    Drop {
        /// Which of them.
        filter: Filter,
    },
    /// Sends parked messages again, though the partner may have taken them: with the same Idempotency-Key.
    Resend {
        /// Which of them.
        filter: Filter,
    },
    /// Settles parked messages.
    Confirm {
        /// Which of them.
        filter: Filter,
        /// What the operator found out.
        outcome: Confirmed,
    },
    /// IDs are no longer remembered: the same record, appended again, would be sent again.
    Forget {
        /// At least the ID; topic, partner and partition narrow it down.
        filter: Filter,
    },
    /// IDs are called delivered without being sent.
    Mark {
        /// At least the ID; topic, partner and partition narrow it down.
        filter: Filter,
    },
    /// IDs of an earlier export are called delivered. At most [`IMPORT_ROWS`] an order.
    DedupImport {
        /// Lines of the export.
        rows: Vec<DedupRow>,
    },
    /// Adds a skip rule.
    SkipAdd {
        /// On which topic.
        topic: String,
        /// For which partner; none: all of the topic's.
        #[serde(default)]
        partner: Option<String>,
        /// This key.
        #[serde(default)]
        key: Option<String>,
        /// This message ID.
        #[serde(default)]
        id: Option<String>,
        /// When it ends: RFC 3339, or after so long (`2h`).
        #[serde(default)]
        expires: Option<String>,
    },
    /// Undoes a skip rule.
    SkipRemove {
        /// Its number.
        rule: u64,
    },
    /// Starts nothing more for a partner; what waits keeps waiting, and its age stands still.
    Pause {
        /// The partner.
        partner: String,
    },
    /// Ends the pause of a partner.
    Resume {
        /// The partner.
        partner: String,
    },
    /// Gives up what is known of a route that the configuration no longer has.
    ForgetRoute {
        /// Its topic.
        topic: String,
        /// Its partner.
        partner: String,
    },
    /// Starts a stopped route again.
    ResumeRoute {
        /// Its topic.
        topic: String,
        /// Its partner.
        partner: String,
    },
}

/// Most rows of one [`Order::DedupImport`]: bounds the memory of one order (I6).
pub const IMPORT_ROWS: usize = 10_000;

/// What an operator found out about a message in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confirmed {
    /// The partner has it: it is called delivered.
    Delivered,
    /// The partner has not: it is sent again, with a new Idempotency-Key.
    NotTaken,
}

impl Order {
    /// The verb, as in the audit and in reports.
    pub fn verb(&self) -> &'static str {
        match self {
            Order::Replay { .. } => "replay",
            Order::Drop { .. } => "drop",
            Order::Resend { .. } => "resend",
            Order::Confirm {
                outcome: Confirmed::Delivered,
                ..
            } => "confirm delivered",
            Order::Confirm {
                outcome: Confirmed::NotTaken,
                ..
            } => "confirm not taken",
            Order::Forget { .. } => "forget",
            Order::Mark { .. } => "mark",
            Order::DedupImport { .. } => "dedup import",
            Order::SkipAdd { .. } => "skip add",
            Order::SkipRemove { .. } => "skip remove",
            Order::Pause { .. } => "pause",
            Order::Resume { .. } => "resume",
            Order::ResumeRoute { .. } => "resume route",
            Order::ForgetRoute { .. } => "forget route",
        }
    }
}

/// What an order did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OrderReport {
    /// The verb.
    pub verb: String,
    /// Nothing was done: these are the messages it would touch.
    pub dry_run: bool,
    /// Messages (or rules, partners, routes) touched.
    pub touched: u64,
    /// Messages that had moved on when their turn came: not touched.
    pub stale: u64,
    /// Messages that match but cannot be touched, with the reason in `notes`.
    pub refused: u64,
    /// More match than one order takes: give it again for the rest.
    #[serde(default)]
    pub more: bool,
    /// How many by partner and reason.
    pub groups: Vec<Group>,
    /// The first of them.
    pub messages: Vec<Touched>,
    /// What the operator should know.
    pub notes: Vec<String>,
    /// When it was made up or carried out.
    pub at: String,
}

/// A number of messages of one partner with one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The partner.
    pub partner: String,
    /// The reason: only its stable code, so that details do not make endless groups.
    pub reason: String,
    /// How many.
    pub count: u64,
}

/// One message that an order touched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touched {
    /// Readable ID, or hex.
    pub id: String,
    /// The partner.
    pub partner: String,
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// The state it was in.
    pub state: String,
    /// The round it was in.
    pub round: u32,
}
