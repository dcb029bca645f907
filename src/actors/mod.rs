//! The actor tree, thin: every decision is in [`crate::core`].
//!
//! ```text
//! Supervisor            builds, watches, rebuilds with backoff                                        main thread
//! ├─ LedgerActor        one for each lane: folds what is durable, does the lane's duties              ledger's arbiter
//! ├─ RateLimiterActor   one for each partner: wakes its gate when time alone makes a start possible   partner's arbiter
//! └─ TopicSupervisor    one for each topic: builds the partitions of its routes again                 main thread
//!    └─ PartitionActor  one for each route and partition: reads, looks up, queues by key              partner's arbiter
//!       └─ SubpartitionActor   one for each key with work: one attempt at a time                      partner's arbiter
//! ```
//!
//! | message | from | to |
//! |---|---|---|
//! | `Work` | `PartitionActor` | `SubpartitionActor`: one message to be sent |
//! | `WorkEnded` | `SubpartitionActor` | `PartitionActor`: what became of it |
//! | `Refill` | a message that has its start slot | `PartitionActor`: there is room for another at the gate |
//! | `Follow` | [`effects`] | `PartitionActor`: what follows from an operator's order |
//! | `Drain`, `AreYouIdle` | `TopicSupervisor` | `PartitionActor`: stop, or say whether everything is done |
//! | a failure ([`lifeline`]) | every actor | its parent, which builds it again |
//!
//! Everything else is shared state on one arbiter ([`context`], [`gate`]): a message costs more than what it would carry.

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
pub mod partition;
pub mod subpartition;
pub mod supervisor;
pub mod topic;
