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

#[cfg(test)]
mod tests {
    use super::super::gate::Entered;
    use super::*;
    use crate::clock::simulated;
    use crate::config::PartnerConfig;
    use crate::config::model::{CalendarUnit, LimitConfig, Rate};
    use crate::core::breaker::{AttemptResult, BreakerSettings};
    use crate::core::ledger::entry::BudgetDraw;
    use crate::core::limiter::{BudgetTable, DISBELIEF};
    use crate::core::turnstile::Turnstile;
    use crate::core::types::Time;
    use std::cell::RefCell;

    const MINUTE: Duration = Duration::from_secs(60);

    /// The gate of a partner with a quota of three a day, drawn from whenever it gives something, while the machine's clock is
    /// set; returns its starts.
    fn drawn(began: Time, day: impl AsyncFnOnce(&RefCell<Vec<Time>>) + 'static) -> Vec<Time> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async move {
            let _time = simulated::begin(began);
            let clock = Clock::start();
            let mut budgets = BudgetTable::new();
            let limit = LimitConfig {
                rates: vec![Rate::Calendar {
                    count: 3,
                    unit: CalendarUnit::Day,
                    zone: "UTC".into(),
                }],
                ..LimitConfig::default()
            };
            let _ = budgets.set(1, &limit, clock.now()).unwrap();
            let partner = PartnerConfig::new("p", "http://127.0.0.1/");
            let gate = PartnerGate::new(
                "p".into(),
                Turnstile::new(0, BreakerSettings::of(&partner), clock.now()),
                Rc::new(RefCell::new(budgets)),
                clock,
                Duration::from_millis(3),
                256,
                super::super::gate::NodeCap::new(10),
            );
            let actor = RateLimiterActor::new(gate.clone(), clock, Lifeline::new(|_| {})).start();
            let starts: Rc<RefCell<Vec<Time>>> = Rc::default();
            let told = starts.clone();
            let drawing = tokio::task::spawn_local(async move {
                let draws = [BudgetDraw { budget: 1, by: 0 }].into_iter().collect();
                while let Entered::Permit(permit) = gate.enter(0, Clone::clone(&draws)).await {
                    told.borrow_mut().push(permit.slot().at);
                    permit.finish(AttemptResult::Answered);
                }
            });
            day(&starts).await;
            drawing.abort();
            actor.do_send(Stop);
            starts.take()
        })
    }

    /// The machine's clock goes an hour ahead over midnight: after five minutes the next day's quota is drawn from, and once. It
    /// goes back two hours: no quota is drawn from again before the day after.
    #[test]
    fn quotas_follow_a_clock_that_is_set() {
        let evening = Time::from_millis(1_746_228_600_000);
        assert_eq!(evening.secs() % 86_400, 23 * 3_600 + 1_800, "half past eleven");
        let drawn = drawn(evening, async |starts| {
            tokio::time::sleep(MINUTE).await;
            assert_eq!(starts.borrow().len(), 3, "the first day's");
            simulated::shift_wall(3_600_000_000);
            tokio::time::sleep(DISBELIEF - Duration::from_secs(1)).await;
            assert_eq!(starts.borrow().len(), 3, "it may be wrong");
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert_eq!(starts.borrow().len(), 6, "the second day's");
            // 00:36 of the second day. By the clock that does not jump midnight is later, and means nothing.
            tokio::time::sleep(MINUTE * 60).await;
            assert_eq!(starts.borrow().len(), 6);
            // From 01:36 to 23:36 of the first day.
            simulated::shift_wall(-7_200_000_000);
            tokio::time::sleep(MINUTE * 60 * 24).await;
            assert_eq!(starts.borrow().len(), 6, "the second day's quota is used up");
            tokio::time::sleep(MINUTE * 30).await;
            assert_eq!(starts.borrow().len(), 9, "the third day's");
        });
        assert_eq!(drawn.len(), 9);
    }
}
