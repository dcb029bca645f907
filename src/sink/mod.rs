//! Sinks map their world onto the [`Verdict`] and nothing else.
//!
//! The way of an attempt, which has a start slot already: [`Sink::prepare`] (pure: templates, no I/O), [`Sink::connect`]
//! (a connection in hand; a failure here is no doubt), the intent, then [`Sink::send`]. It asks its `gate` right before
//! the first byte, and reports what came of it.

pub mod http;
pub mod secrets;
pub mod template;

use crate::core::hosts::HostId;
use crate::core::mask::Masker;
use crate::core::record::Record;
use crate::core::types::MessageId;
use futures_util::future::LocalBoxFuture;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Everything an attempt is made of.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: u32,
    /// The record.
    pub record: Record,
    /// The message.
    pub id: MessageId,
    /// The readable ID (up to 1 KiB of it).
    pub readable: bytes::Bytes,
    /// Which round, from 1.
    pub round: u32,
    /// Which attempt of the round, from 1.
    pub attempt: u32,
    /// Idempotency-Key of the round; none: derived from the message ID and round ([`idempotency_key`]).
    pub idempotency_key: Option<Arc<str>>,
}

/// The Idempotency-Key of a message's round: the ID in hex, from the second round on with the round behind a dash.
pub fn idempotency_key(id: MessageId, round: u32) -> String {
    if round <= 1 {
        id.to_string()
    } else {
        format!("{id}-{round}")
    }
}

/// What an attempt means. Every sink maps its own world onto these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The partner took it.
    Delivered,
    /// Certainly not taken; worth another attempt.
    TryLater,
    /// Certainly not taken; credentials are refused: the partner is paused, the message waits.
    Pause,
    /// Certainly not taken, and never will be.
    Refused,
    /// May or may not have been taken: the partner's doubt policy decides (I3).
    Unknown(DoubtCause),
}

impl Verdict {
    /// The word for it, in metrics and log lines.
    pub fn word(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::TryLater => "later",
            Self::Pause => "pause",
            Self::Refused => "refused",
            Self::Unknown(_) => "unknown",
        }
    }
}

/// Why an outcome is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DoubtCause {
    /// The process, or the actor with the request in hand, ended between intent and outcome.
    Crash,
    /// Timeout or reset after the request was written.
    Timeout,
    /// A gateway answered for a partner that may have taken it.
    Gateway,
}

/// What came of one attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// What it means.
    pub verdict: Verdict,
    /// Status code; 0 where there was none.
    pub status: u16,
    /// What is told about a verdict other than `Delivered`; none on the hot path.
    pub detail: Option<Box<AnswerDetail>>,
    /// What the partner said about pace; none on the hot path.
    pub pace: Option<Box<Pace>>,
    /// Whom it concerns, where that is said; none: what its kind of answer usually concerns.
    pub concerns: Option<Concerns>,
}

/// Whom an answer, and what it says about pace, concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concerns {
    /// This message alone, by a verdict rule.
    Message,
    /// The messages of its key, by a verdict rule.
    Key,
    /// The partner as a whole, by a verdict rule.
    Partner,
    /// This node, which lacks something (descriptors, ports, memory): the partner has nothing to do with it.
    Node,
}

impl Concerns {
    /// Whether it says that the partner as a whole is not concerned.
    pub fn spares_partner(self) -> bool {
        self != Self::Partner
    }
}

/// Why, in words fit for logs and dead letters: masked and cut to a bound (I9).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AnswerDetail {
    /// A stable code, a colon, the detail: `refused: 422 email is not valid`.
    pub reason: String,
    /// First bytes of the answer.
    pub answer: String,
}

impl AnswerDetail {
    /// A reason alone: there was no answer.
    pub fn of(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            answer: String::new(),
        }
    }
}

/// What the partner said about pace: applies to the message (`not_before`) and to the partner as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pace {
    /// Retry-After, already bounded: this message not before then.
    pub retry_after: Option<Duration>,
    /// The partner as a whole: nothing starts before then (429, 503 with Retry-After; RateLimit with nothing left).
    pub pause: Option<Duration>,
    /// RateLimit: so many more requests may start ...
    pub remaining: Option<u64>,
    /// ... within so long from now.
    pub reset: Option<Duration>,
}

/// What [`Sink::send`] did.
#[derive(Debug, PartialEq)]
pub enum Sent {
    /// The request was written, or may have been; this is what came of it.
    Answered(Answer),
    /// An answer came, so that nothing is in flight any more; whether it is this request's is known a little later. Then
    /// it is either this one, or `Unknown`.
    Settling(Answer, Settling),
    /// The gate said no right before the first byte: nothing was written.
    Stopped,
    /// Nothing was written: no connection could be had any more. The answer says `TryLater`.
    NeverWritten(Answer),
    /// The partner sent the request on to another address: the next attempt goes there, with a start and an intent
    /// of its own. The answer says `TryLater` where it was certainly not taken here, else `Unknown`.
    Moved(Answer, Box<Moved>),
}

/// What an answer turns out to mean.
pub struct Settling(LocalBoxFuture<'static, Answer>);

impl Settling {
    /// What it means once this future is over.
    pub fn new(answer: impl Future<Output = Answer> + 'static) -> Self {
        Self(Box::pin(answer))
    }

    /// Waits for it.
    pub async fn answer(self) -> Answer {
        self.0.await
    }
}

impl std::fmt::Debug for Settling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Settling")
    }
}

impl PartialEq for Settling {
    fn eq(&self, _: &Self) -> bool {
        false
    }
}

/// Where a partner sent a request on to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The URL.
    pub to: String,
    /// Redirects that led there.
    pub followed: u32,
    /// The status of a redirect after which the request may have been taken already.
    pub unsure: Option<u16>,
}

/// A record from which no request can be made: a template that fails, a URL that is none. The message is dead.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct PrepareError(pub String);

/// Asked once, on the thread that writes, right before the first byte: slot still valid, lease not over, lane
/// still ours (I2, I5, I7). It notes the start.
pub type Gate<'a> = &'a mut dyn FnMut() -> bool;

/// Figures of a sink.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SinkStats {
    /// Connections open now.
    pub connections: u64,
    /// Connections made.
    pub connected: u64,
    /// Connects that failed.
    pub connect_failures: u64,
    /// Idle connections found closed by the partner when they were needed.
    pub stale: u64,
}

/// Where a look-up says a message in doubt stands (`verify`).
#[derive(Clone, Debug, PartialEq)]
pub enum Verified {
    /// The partner has it.
    Delivered,
    /// The partner has never seen it.
    NeverSeen,
    /// The look-up could not be made or answered "try later": ask again.
    AskAgain(String),
    /// Any other answer: park.
    Unclear(String),
}

/// What [`Sink::ask`] did.
#[derive(Clone, Debug, PartialEq)]
pub enum Asked {
    /// The gate said no right before the first byte.
    Stopped,
    /// This is what came of it.
    Answered {
        /// For the message.
        verified: Verified,
        /// Whether the partner answered, whatever it said.
        reached: bool,
        /// What it said about pace.
        pace: Option<Box<Pace>>,
    },
}

/// A partner as the actors see it. Everything stays on one arbiter, so futures need not be `Send`.
pub trait Sink: 'static {
    /// A request ready to be written.
    type Request;
    /// A connection in hand.
    type Connection;
    /// Makes the request; no I/O.
    fn prepare(&self, delivery: &Delivery) -> Result<Self::Request, PrepareError>;
    /// The host of the request, where it is the record that says which; none where all requests go to the same one.
    fn host(&self, _: &Delivery) -> Option<HostId> {
        None
    }
    /// The same for an attempt that the partner sent on to another address ([`Sent::Moved`]).
    ///
    /// # Errors
    /// Also where the sink knows no redirects.
    fn prepare_moved(&self, _: &Delivery, _: &Moved) -> Result<Self::Request, PrepareError> {
        Err(PrepareError("this sink follows no redirects".to_owned()))
    }
    /// Gets a connection. A failure is an answer that says `TryLater`: nothing was written; or `Refused`: this
    /// message's address may not be reached.
    fn connect(&self, request: &Self::Request) -> impl Future<Output = Result<Self::Connection, Answer>>;
    /// Asks the gate, writes the request, reads the answer.
    fn send(
        &self,
        connection: Self::Connection,
        request: Self::Request,
        gate: Gate<'_>,
    ) -> impl Future<Output = Sent>;
    /// Makes the request of the partner's look-up; no I/O. None can be made: what that means for the message.
    fn look_up(&self, delivery: &Delivery) -> Result<Self::Request, Verified>;
    /// Asks the gate, then the partner's look-up, where a message in doubt stands.
    fn ask(
        &self,
        connection: Self::Connection,
        request: Self::Request,
        gate: Gate<'_>,
    ) -> impl Future<Output = Asked>;
    /// What makes text about this partner's messages fit to be shown (I9).
    fn masker(&self) -> Rc<Masker>;
}
