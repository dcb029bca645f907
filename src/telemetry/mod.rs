//! What a node tells about itself: metrics ([`metrics`]), log lines ([`logging`]), and the brake that keeps log lines
//! from becoming a storm ([`every`]).
//!
//! Callers mask before they tell (I9): nothing here sees a record's value, a header or a secret.

pub mod every;
pub mod logging;
pub mod metrics;
pub mod terminal;
pub mod text;

pub use metrics::{Metrics, PartnerMetrics};
