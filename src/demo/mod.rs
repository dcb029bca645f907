//! The demonstration: a day of requests for three partners, delivered while the node is killed twice.
//!
//! Why it exists: so that anybody can see on their own machine, in under two minutes, what exactly once means here, and
//! where it ends. Nothing of it is staged: the node, the imports and the stand-in partners are child processes of the
//! same binary, used as anybody would use them, and the table at the end is counted at both ends.
//!
//! | file | holds |
//! |---|---|
//! | [`scenario`] | partners, limits, policies; the files `actors.toml` and `mock.toml`. Pure |
//! | [`generate`] | the request files. Deterministic for a seed |
//! | [`reconcile`] | what was made = what was delivered + dead + parked, and the table. Pure |
//! | [`watch`] | progress, as bars or lines |
//! | [`stage`] | child processes: mock, import, node; kills; reports |
//!
//! | partner | is | policy for doubts |
//! |---|---|---|
//! | `tracker` | fast and sound: attribution URLs | `park`: at most once, an operator decides |
//! | `crm` | flaky, idempotent: JSON events, in order per user | `resend` with the same Idempotency-Key |
//! | `shop` | down for a while: CSV orders | `verify`: asks the partner's look-up URL |

pub mod generate;
pub mod reconcile;
pub mod scenario;
pub mod stage;
pub mod watch;

#[cfg(test)]
mod tests;
