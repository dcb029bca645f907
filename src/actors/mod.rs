//! The actor tree, thin: every decision is in [`crate::core`].

pub mod lifeline;
pub mod memory;
