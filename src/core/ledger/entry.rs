//! What the ledger says, entry by entry (DESIGN section 5). An entry is durable when the log says so; whatever is
//! written is valid at every prefix: an outcome stands before the position that rests on it.

use crate::core::record::Headers;
use crate::core::types::{
    KeyHash, LifeId, MessageId, Offset, RouteId, RoutePartition, Tenure, Time, TopicId,
};
use bytes::Bytes;
use smallvec::SmallVec;
use std::time::Duration;

/// One entry of a lane, with the tenure under which it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The ownership under which it was written.
    pub tenure: Tenure,
    /// What it says.
    pub body: Body,
}

/// What an entry says.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// The first entry of every lane.
    Genesis(Genesis),
    /// A node took the lane. Its own offset is the new tenure.
    Owner(Owner),
    /// These lives have nothing on the wire any more.
    Released(Vec<LifeId>),
    /// Names a route, so that later entries need only its hash. Written when a node first meets the route.
    Route(RouteInfo),
    /// An attempt is about to start; without an outcome after a crash it is in doubt (I2, I3).
    Intent(Intent),
    /// What became of an attempt, or of a message that needs none.
    Outcome(Outcome),
    /// The payload of a message that waits long: from here on its record counts as finished for the position.
    Waiting(Waiting),
    /// How far a route has come in one partition (I1).
    Position(Position),
    /// An operator's command opened the next round of a message.
    Opened(Opened),
    /// An operator's command and its effect.
    /// Boxed, for it is rare and larger than an intent, of which many are held.
    Command(Box<Command>),
    /// The end offset of an input at a time: what the age of remembered IDs is judged by.
    Sample(Sample),
    /// Starts drawn from a budget whose window is longer than what trimming leaves.
    Used(Used),
    /// A version of the settings came into force.
    Applied {
        /// The version.
        version: u64,
    },
    /// An entry repeated, so that the segments before it can go.
    Carried {
        /// The offset of the entry it repeats (of the last one that carried it, if it was carried before). It never
        /// overrides what a newer entry said.
        original: Offset,
        /// The repeated entry.
        entry: Box<Entry>,
    },
    /// An entry of a kind this version does not know: carried, never dropped.
    Unknown {
        /// Its kind byte.
        kind: u8,
        /// Its body as it stands.
        bytes: Bytes,
    },
}

impl From<Command> for Body {
    fn from(command: Command) -> Self {
        Body::Command(Box::new(command))
    }
}

/// Identity of the ledger; must match the node's, else the node stops.
#[derive(Clone, Debug, PartialEq)]
pub struct Genesis {
    /// Drawn once when the ledger is made.
    pub ledger: u128,
    /// The group that works on it ("embedded" on one machine).
    pub group: String,
    /// How many lanes the ledger has.
    pub lanes: u32,
    /// Which lane this is.
    pub lane: u32,
    /// Version of the recipes for message IDs, keys and lanes.
    pub recipe: u32,
}

/// A node took the lane.
#[derive(Clone, Debug, PartialEq)]
pub struct Owner {
    /// The node's ID.
    pub node: String,
    /// The run of its process.
    pub life: LifeId,
    /// How long after its request an intent's permission to send lasts, in milliseconds.
    pub lease_ms: u32,
    /// The longest request timeout of any partner, in milliseconds.
    pub timeout_ms: u32,
    /// When, by the node's clock.
    pub at: Time,
}

/// Names behind a route's hash.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteInfo {
    /// The hash used by every other entry.
    pub route: RouteId,
    /// Name of the topic.
    pub topic: String,
    /// Which incarnation of that name.
    pub topic_id: TopicId,
    /// Name of the partner.
    pub partner: String,
}

/// One attempt, durable before its first byte.
#[derive(Clone, Debug, PartialEq)]
pub struct Intent {
    /// Route and partition.
    pub at: RoutePartition,
    /// Which message.
    pub id: MessageId,
    /// Its key.
    pub key: KeyHash,
    /// Position of its record.
    pub offset: Offset,
    /// Which round, from 1.
    pub round: u32,
    /// Which attempt of this round, from 1.
    pub attempt: u32,
    /// When the first attempt of this round was made.
    pub first_try: Time,
    /// The start slot. The same attempt with another slot replaces this entry; the earlier slot counts as used.
    pub slot: Time,
    /// The budgets this start draws from.
    pub budgets: SmallVec<[BudgetDraw; 2]>,
    /// The run of the process that sends.
    pub life: LifeId,
    /// Lease of that life, in milliseconds.
    pub lease_ms: u32,
    /// Request timeout, in milliseconds.
    pub timeout_ms: u32,
}

/// One start drawn from one budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BudgetDraw {
    /// Hash of the budget's name ([`crate::core::message_id::budget_id`]).
    pub budget: u64,
    /// Hash of the value that `by` names; zero where the budget is not split.
    pub by: u64,
}

/// Stands for the clock where a budget's hash stands else. Never change.
const CLOCK: u64 = 0xC10C_C10C_C10C_C10C;

impl Used {
    /// Starts of this budget count for so long (rounded up to seconds): its longest window or quota.
    pub fn horizon(budget: u64, horizon: Duration) -> Self {
        let seconds = horizon.as_secs() + u64::from(horizon.subsec_nanos() > 0);
        Self {
            draw: BudgetDraw { budget, by: 0 },
            window: u32::try_from(seconds).unwrap_or(u32::MAX).max(1),
            since: Time::ZERO,
            count: 0,
        }
    }

    /// One start more, of which no intent tells: a look-up's.
    pub fn start(draw: BudgetDraw, slot: Time) -> Self {
        Self {
            draw,
            window: 1,
            since: slot,
            count: 1,
        }
    }

    /// Whether it is one start more, and no sum.
    pub fn is_start(&self) -> bool {
        self.window > 0 && self.count > 0
    }

    /// The wall clock was set: it is so many microseconds ahead of the clock by which this life tells its slots.
    pub fn clock(ahead_us: i64) -> Self {
        Self {
            draw: BudgetDraw { budget: CLOCK, by: 0 },
            window: 0,
            since: Time(ahead_us.cast_unsigned() ^ (1 << 63)),
            count: 0,
        }
    }

    /// What [`Used::clock`] says, if it is one.
    pub fn wall_ahead(&self) -> Option<i64> {
        let is_clock = self.draw.budget == CLOCK && self.count == 0;
        is_clock.then_some((self.since.0 ^ (1 << 63)).cast_signed())
    }

    /// Whether it says that, and nothing of starts.
    pub fn is_horizon(&self) -> bool {
        self.window > 0 && self.count == 0
    }
}

/// What became of a message's attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Route and partition.
    pub at: RoutePartition,
    /// Which message.
    pub id: MessageId,
    /// Position of its record.
    pub offset: Offset,
    /// Which round.
    pub round: u32,
    /// Attempts made in this round so far, this one included. Zero: it was never sent (skipped, invalid).
    pub attempts: u32,
    /// When the verdict came, by the node's clock.
    pub when: Time,
    /// The run of the process that says so.
    pub life: LifeId,
    /// The partner's status code; 0 where there was none.
    pub status: u16,
    /// The verdict, and what must be kept with it.
    pub kind: OutcomeKind,
}

impl Outcome {
    /// Attempts of this round that count.
    pub fn counted_attempts(&self) -> u32 {
        let uncounted = matches!(self.kind, OutcomeKind::Later { counted: false, .. });
        self.attempts.saturating_sub(u32::from(uncounted))
    }
}

/// The verdict of an [`Outcome`].
#[derive(Clone, Debug, PartialEq)]
pub enum OutcomeKind {
    /// The partner took it.
    Delivered {
        /// The readable ID, cut to a bound; empty where it is not kept.
        readable: Bytes,
    },
    /// Certainly not taken; to be tried again. Closes the intent.
    Later {
        /// Not before this time.
        not_before: Time,
        /// When the first attempt of this round was made.
        first_try: Time,
        /// Its key.
        key: KeyHash,
        /// Why, cut to a bound, masked.
        reason: String,
        /// Whether the attempt counts. One that was never written (a missed slot, a node that falls short), or that met
        /// a partner that refuses everybody's credentials, does not.
        counted: bool,
    },
    /// Refused for good, or too old.
    Dead(Box<Kept>),
    /// In doubt, held for an operator.
    Parked(Box<Kept>),
    /// Passed over by a rule.
    Skipped(Box<Kept>),
}

/// A message copied into the ledger: what replay or an operator needs, whatever becomes of the input topic.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Kept {
    /// Its key, hashed.
    pub key: KeyHash,
    /// Its record's key.
    pub record_key: Option<Bytes>,
    /// Its record's timestamp.
    pub timestamp: Time,
    /// Its record's value; never cut.
    pub value: Bytes,
    /// Its record's headers.
    pub headers: Headers,
    /// The readable message ID, cut to a bound.
    pub readable: String,
    /// The Idempotency-Key it was, or would have been, sent with.
    pub idempotency_key: String,
    /// Why it is here: a stable code, a colon, the detail; masked, cut to a bound.
    pub reason: String,
    /// First bytes of the partner's last answer; masked, cut to a bound.
    pub answer: String,
    /// When the first attempt of this round was made; zero if none was.
    pub first_try: Time,
    /// Its payload was given up: record key, value and headers are gone, the rest is kept to be told.
    pub dropped: bool,
}

impl Kept {
    /// The same without record key, value and headers.
    pub fn without_payload(&self) -> Self {
        Self {
            record_key: None,
            value: Bytes::new(),
            headers: Headers::none(),
            dropped: true,
            ..self.clone()
        }
    }
}

/// The payload of a message that waits, with what its retry needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Waiting {
    /// Route and partition.
    pub at: RoutePartition,
    /// Which message.
    pub id: MessageId,
    /// Position of its record: it counts as finished for the route's position from here on.
    pub offset: Offset,
    /// Which round.
    pub round: u32,
    /// Attempts made in this round so far.
    pub attempts: u32,
    /// When this was said, by the node's clock.
    pub when: Time,
    /// Not before this time.
    pub not_before: Time,
    /// The message.
    pub kept: Box<Kept>,
}

/// How far a route has come in one partition.
#[derive(Clone, Debug, PartialEq)]
pub struct Position {
    /// Route and partition.
    pub at: RoutePartition,
    /// Leader epoch of the position (Kafka); 0 on the embedded log.
    pub leader_epoch: u32,
    /// Every record before this one is finished.
    pub position: Offset,
    /// Finished ranges above it, half open, rising, not touching.
    pub finished: Vec<(Offset, Offset)>,
    /// One past the highest record ever taken up. It never falls.
    pub high_water: Offset,
}

/// The next round of a message.
#[derive(Clone, Debug, PartialEq)]
pub struct Opened {
    /// Route and partition.
    pub at: RoutePartition,
    /// Which message.
    pub id: MessageId,
    /// The round that begins, from 2.
    pub round: u32,
    /// When.
    pub when: Time,
    /// The Idempotency-Key of this round.
    pub idempotency_key: String,
}

/// An operator's command, applied once by the owner of the lane.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    /// Its offset in the command topic (Kafka), or a number that rises (embedded).
    pub offset: Offset,
    /// When it was applied.
    pub when: Time,
    /// Who gave it, as far as that is known.
    pub who: String,
    /// Why.
    pub why: String,
    /// What it does.
    pub action: Action,
}

/// What a command does to the ledger.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// The message's ID is no longer remembered. The round is not reset.
    Forget {
        /// Route and partition.
        at: RoutePartition,
        /// Which message.
        id: MessageId,
    },
    /// The message is called delivered without being sent: `dedup mark`, `dedup import`, `doubt confirm`.
    Mark {
        /// Route and partition.
        at: RoutePartition,
        /// Which message.
        id: MessageId,
        /// Position of its record, if known.
        offset: Offset,
    },
    /// The kept payload of a dead, skipped or parked message is given up; the ID stays remembered.
    Drop {
        /// Route and partition.
        at: RoutePartition,
        /// Which message.
        id: MessageId,
    },
    /// A skip rule is added or replaced.
    SkipAdd(SkipRule),
    /// A skip rule is undone.
    SkipRemove {
        /// Its number.
        rule: u64,
    },
    /// A partner is paused by an operator or by the node itself (401/403, flood guard).
    Pause {
        /// Name of the partner; empty: a route is stopped.
        partner: String,
        /// The stopped route, if it is one.
        route: Option<RouteId>,
        /// Why.
        reason: String,
    },
    /// Who ordered what for many messages at once: stands before the entries that carry the order out, and changes
    /// nothing by itself.
    Audit {
        /// The order in words: verb and filter.
        order: String,
        /// How many messages it touched.
        touched: u64,
    },
    /// What is known of a route that no node serves any more is given up: its positions hold no record, and its dead
    /// and parked messages are gone.
    ForgetRoute {
        /// The route.
        route: RouteId,
    },
    /// A pause or stop ends.
    Resume {
        /// Name of the partner; empty: a route.
        partner: String,
        /// The route, if it is one.
        route: Option<RouteId>,
    },
}

/// Records that are passed over: an exact key or ID on a topic.
#[derive(Clone, Debug, PartialEq)]
pub struct SkipRule {
    /// Number of the rule.
    pub rule: u64,
    /// Topic it applies to.
    pub topic: String,
    /// Partner it applies to; none: all of the topic's.
    pub partner: Option<String>,
    /// What is matched, exactly.
    pub matches: SkipMatch,
    /// Why, as the operator said.
    pub reason: String,
    /// When it was made.
    pub made: Time,
    /// When it ends by itself, if it does.
    pub expires: Option<Time>,
}

/// What a skip rule matches.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SkipMatch {
    /// The key, as text or bytes.
    Key(Bytes),
    /// The readable message ID.
    Id(Bytes),
}

/// The end of an input at a time.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Route and partition.
    pub at: RoutePartition,
    /// When, by the ledger's time.
    pub when: Time,
    /// The next offset of the input then.
    pub end: Offset,
}

/// Starts drawn from a budget. Without starts and with a window: for how long starts of the whole budget count.
#[derive(Clone, Debug, PartialEq)]
pub struct Used {
    /// Which budget.
    pub draw: BudgetDraw,
    /// Zero; without starts, for how long starts count, in seconds; with a start, one: it is one more than those known.
    pub window: u32,
    /// Start of the span that `count` is about.
    pub since: Time,
    /// Starts in it.
    pub count: u64,
}
