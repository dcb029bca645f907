//! Sluicegate takes records from topics and delivers each one, exactly once, to the partner it is meant for.
//!
//! The architecture, its words and its numbered invariants (I1-I9) stand in `docs/architecture.md`; code and
//! tests refer to the numbers. Read the folders in this order: [`core`] (every decision, pure), [`log`] and
//! [`ledger`] (what is durable), [`dedup`] (the view that answers "was this sent?"), [`sink`] (partners),
//! [`actors`] (the thin shell that carries decisions out), [`app`] (wiring).

pub mod actors;
pub mod admin;
pub mod api;
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod core;
pub mod dedup;
pub mod demo;
pub mod files;
pub mod intake;
pub mod ledger;
pub mod log;
pub mod memory;
pub mod mock;
#[cfg(test)]
#[path = "../tests/support/patience.rs"]
mod patience;
#[cfg(test)]
mod sim;
pub mod sink;
pub mod telemetry;
