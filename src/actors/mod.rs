//! The actor tree, thin: every decision is in [`crate::core`].

pub mod gate;
pub mod lifeline;
pub mod limiter;
pub mod memory;
