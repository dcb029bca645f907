//! The stand-in partner: a fast HTTP/1.1 server that counts everything and misbehaves on request.
//!
//! Why it exists: what Sluicegate promises (at most once, in order, never above the limit) can only be judged at
//! the partner. Demo, tests and benchmarks therefore measure here, with the same counts.
//!
//! Words: a *partner* is a path prefix (or a listener of its own) with behaviour and counts of its own; a *fault*
//! is anything but a plain 200; a *phase* is behaviour for a time or for a number of requests; *applied* means
//! that the partner took the message: it happens once, when the request has been read and the answer decided,
//! before any delay. A fault that leaves the sender in doubt (hang, reset after read, 502, ...) applies the message or
//! not by `applied_in_doubt`.
//!
//! It speaks HTTP on raw sockets of its own: a library's server cannot reset a connection in the middle of a
//! request, drip an answer or send garbage, and costs more than counting does.
//!
//! | file | holds |
//! |---|---|
//! | [`spec`] | the text forms of latencies, faults, rates, fields, phases |
//! | [`options`] | what a partner is made with and what `POST /control` changes |
//! | [`plan`] | the decision about one request: pure, time and randomness as arguments |
//! | [`tally`] | the counts and the report |
//! | [`server`], [`connection`], [`endpoints`] | listeners, one connection, `/report`, `/control`, `/lookup/ID` |
//!
//! Nothing survives a restart, nor should it: a mock's memory is the length of its run.

pub mod options;
pub mod plan;
pub mod server;
pub mod spec;
pub mod tally;

mod connection;
mod endpoints;
#[cfg(test)]
mod tests;

pub use options::{Behaviour, ControlError, MockOptions, PartnerOptions, RetryAfter, Rule};
pub use server::{Mock, MockError, MockHandle};
pub use spec::{Fault, FaultShare, Field, Latency, Phase, Rate, Span};
pub use tally::{PartnerReport, Report, WindowReport};
