//! The ledger on a log: the durable memory of what happened to each message, and how it comes back after a restart.
//!
//! The ledger is a topic; each of its partitions is a lane (`docs/architecture.md`, words). What entries say and
//! what they add up to is pure and lives in [`crate::core::ledger`]; here is what reads and writes them:
//!
//! | module | does |
//! |---|---|
//! | [`checkpoint`] | a lane's fold in a file of its own, so that a restart reads the tail only |
//! | [`restore`] | from checkpoint, log and dedup store to the fold of a lane: or the reason to stop and ask |
//! | [`payload`] | reads single entries: kept payloads, the story of a message |
//! | [`duties`] | checkpoints, expiry, retention, trimming: what keeps all of it from growing for ever |
//! | [`lane`] | group commit: the one writer of a lane |
//! | [`keeper`] | folds what became durable, feeds the store, writes checkpoints |
//! | [`desk`] | what operators ask and order |
//!
//! Upholds I1 and I2: the log decides what happened; checkpoint and dedup store are views of it, thrown away and
//! rebuilt where they do not fit it. A view that knows more than the log is another matter: then the log has lost
//! entries, and the node stops.

pub mod checkpoint;
pub mod desk;
pub mod duties;
pub mod keeper;
pub mod lane;
pub mod payload;
pub mod restore;
#[cfg(test)]
mod tests;
