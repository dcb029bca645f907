//! `LedgerActor`: one for each lane. Folds what became durable and writes checkpoints.
//!
//! Parent: `Supervisor`. Children: none. Group commit itself is the log's; entries reach it through the ports of the
//! arbiters ([`crate::ledger::lane`]), and come here once they are durable. If the actor fails, a new one goes on
//! with the same keeper and the same feed: what it had in hand is in the log, and is folded from there.

use super::lifeline::Lifeline;
use crate::ledger::keeper::{Keeper, KeeperError};
use crate::ledger::lane::{Committed, Lane};
use actix::prelude::*;
use std::sync::Arc;
use tokio::sync::Mutex;
use tokio::sync::mpsc::UnboundedReceiver;

/// Batches folded in one turn.
const TURN: usize = 64;

/// What became durable, and is to be folded. Outlives the actor.
pub type Feed = Arc<Mutex<UnboundedReceiver<Committed>>>;

/// See the module.
pub struct LedgerActor {
    keeper: Arc<Keeper>,
    lane: Lane,
    feed: Feed,
    checkpoint_entries: u64,
    lifeline: Lifeline,
}

impl LedgerActor {
    /// An actor that folds this feed. `checkpoint_entries`: a checkpoint is written after so many.
    pub fn new(
        keeper: Arc<Keeper>,
        lane: Lane,
        feed: Feed,
        checkpoint_entries: u64,
        lifeline: Lifeline,
    ) -> Self {
        Self {
            keeper,
            lane,
            feed,
            checkpoint_entries,
            lifeline,
        }
    }
}

impl Actor for LedgerActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        let (keeper, lane, feed) = (self.keeper.clone(), self.lane.clone(), self.feed.clone());
        let checkpoint_entries = self.checkpoint_entries;
        let fold = async move {
            let mut feed = feed.lock().await;
            loop {
                let mut batches = Vec::with_capacity(TURN);
                if feed.recv_many(&mut batches, TURN).await == 0 {
                    return Ok(());
                }
                keeper.fold(batches, &lane)?;
                if keeper.since_checkpoint() >= checkpoint_entries {
                    keeper.checkpoint()?;
                }
            }
        };
        let ended = fold
            .into_actor(self)
            .map(|result: Result<(), KeeperError>, act, ctx| {
                match result {
                    Ok(()) => act.lifeline.orderly(),
                    Err(error) => act.lifeline.failed(error),
                }
                ctx.stop();
            });
        ctx.spawn(ended);
    }
}
