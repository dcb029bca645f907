//! From what an operator types to the hashes it stands for.

use crate::core::ledger::entry::RouteInfo;
use crate::core::types::MessageId;
use smallvec::SmallVec;

/// The hashes that a text may mean in one partition of a route.
pub(super) fn of_text(text: &str, _route: &RouteInfo, _partition: u32) -> SmallVec<[MessageId; 2]> {
    text.to_ascii_lowercase().parse().ok().into_iter().collect()
}
