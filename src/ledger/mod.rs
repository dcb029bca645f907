//! The ledger: writing to a lane, checkpoints, restoring, questions and commands.

pub mod lane;
