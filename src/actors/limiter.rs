//! `RateLimiterActor`: keeps the time of one partner's gate.
//!
//! Parent: `Supervisor`. Children: none. The attempts on its arbiter use the gate directly (a message for each
//! permit would cost more than the permit); the actor wakes when the turnstile says that time alone makes
//! the next start possible, and once a second to look after the budgets (calendar quotas follow the wall clock). It upholds I5 together with the gate. After a restart of the actor the gate is as it
//! was; after a restart of the node its budgets are rebuilt from the slots in the ledger.

use super::fault;
use super::gate::PartnerGate;
use super::lifeline::Lifeline;
use crate::clock::Clock;
use actix::prelude::*;
use std::rc::Rc;
use std::time::Duration;

/// Shortest time between two turns: the timer's own grain, so that slots are granted in batches.
const TURN: Duration = Duration::from_millis(1);

/// The budgets are looked after at least so often.
const MIND: Duration = Duration::from_secs(1);

/// See the module.
pub struct RateLimiterActor {
    gate: Rc<PartnerGate>,
    clock: Clock,
    lifeline: Lifeline,
}

impl RateLimiterActor {
    /// An actor that keeps this gate's time.
    pub fn new(gate: Rc<PartnerGate>, clock: Clock, lifeline: Lifeline) -> Self {
        Self {
            gate,
            clock,
            lifeline,
        }
    }
}

impl Actor for RateLimiterActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        let (gate, clock) = (self.gate.clone(), self.clock);
        let keep_time = async move {
            loop {
                fault::point("limiter", gate.name());
                gate.mind_budgets();
                gate.pump();
                let wait = gate.ask_at().since(clock.now()).max(TURN);
                tokio::select! {
                    () = tokio::time::sleep(wait.min(MIND)) => {}
                    () = gate.alarm.notified() => {}
                }
            }
        };
        ctx.spawn(keep_time.into_actor(self));
    }
}

/// Tells an actor to end in order.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Stop;

impl Handler<Stop> for RateLimiterActor {
    type Result = ();
    fn handle(&mut self, _: Stop, ctx: &mut Context<Self>) {
        self.lifeline.orderly();
        ctx.stop();
    }
}
