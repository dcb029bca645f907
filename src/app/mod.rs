//! Wiring only: builds each part of a node from its configuration, starts and stops them in order.

mod hooks;
pub mod live;
mod offline;
mod open;
mod partner;
mod plan;
pub mod reload;
mod run;
#[cfg(test)]
mod tests;

pub use offline::{Offline, OfflineError};
pub use open::{OpenError, Opened, open, open_log};
pub use plan::rules as route_rules;
pub use run::{Ended, NodeParts, RunError, RunOptions, Summary, run};
