//! The actor tree, thin: every decision is in [`crate::core`].

pub mod arbiter;
pub mod attempt;
pub mod blocking;
pub mod context;
pub mod effects;
pub mod fault;
pub mod gate;
pub mod item;
pub mod ledger;
pub mod lifeline;
pub mod limiter;
pub mod lines;
pub mod memory;
pub mod partition;
pub mod subpartition;
pub mod supervisor;
pub mod topic;
