//! The look-up of a message in doubt, at the partner: a request like another for its limits, without an intent.

use super::conclude::settle;
use super::{After, DOUBTS, NO_ROOM_WAIT, OVERTAKEN, defer, noting_the_write};
use crate::actors::context::RouteContext;
use crate::actors::gate::Entered;
use crate::actors::item::Item;
use crate::core::breaker::AttemptResult;
use crate::core::doubt::{Doubt, Progress};
use crate::core::ledger::entry::{Body, BudgetDraw, Used};
use crate::core::turnstile::{Draws, NEXT, Slot};
use crate::ledger::lane::LaneError;
use crate::sink::{AnswerDetail, Asked, Pace, Sink, Verified};
use smallvec::SmallVec;
use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

/// Asks the partner's look-up. It is a request like another for what the partner allows (I5), so it takes a place and
/// draws from the budgets, and nothing is asked of a partner that is paused or left alone. It changes nothing there,
/// so it needs no intent; but the next life must know of its start.
pub(super) async fn look_up<S: Sink>(
    route: &Rc<RouteContext<S>>,
    item: &mut Item,
    draws: &Draws,
    doubt: Doubt,
    progress: Progress,
) -> After {
    let partner = &route.partner;
    let clock = partner.clock;
    'slots: loop {
        if std::mem::take(&mut item.deferred) {
            partner.gate.came_back(draws);
        }
        let permit = match partner
            .gate
            .enter(route.queue | DOUBTS | NEXT, draws.clone())
            .await
        {
            Entered::Permit(permit) => permit,
            Entered::Deferred(until) => return defer(route, item, until),
            Entered::Closed => return After::Again(clock.now()),
        };
        if !route.is_current(item) {
            return OVERTAKEN;
        }
        let granted = clock.now();
        let request = match partner.sink.look_up(&item.delivery) {
            Ok(request) => request,
            Err(verified) => {
                drop(permit);
                return after_look_up(route, item, doubt, verified, progress);
            }
        };
        let connection = match partner.sink.connect(&request).await {
            Ok(connection) => connection,
            Err(answer) => {
                permit.finish(AttemptResult::Failed);
                let why = answer.detail.map(|d| d.reason).unwrap_or_default();
                return after_look_up(route, item, doubt, Verified::AskAgain(why), progress);
            }
        };
        let Slot {
            at: slot_at,
            valid_until,
            seq,
            ..
        } = *permit.slot();
        let asked = clock.now();
        if asked > valid_until {
            // The connect took longer than was left for it: the next one is begun earlier.
            partner.gate.prepared_within(asked.since(granted));
            permit.missed();
            item.missed = true;
            continue;
        }
        let told =
            |draw: &BudgetDraw| (partner.port).intent(Body::Used(Used::start(*draw, slot_at.max(asked))));
        let told: SmallVec<[u64; 2]> = permit.slot().draws.iter().map(told).collect();
        for number in told {
            match partner.port.durable(number).await {
                Ok(()) => {}
                Err(LaneError::NoRoom(_)) => {
                    drop(permit);
                    tokio::time::sleep(NO_ROOM_WAIT).await;
                    continue 'slots;
                }
            }
        }
        partner.gate.prepared_within(clock.now().since(granted));
        let wait = slot_at.since(clock.now());
        if wait > Duration::ZERO {
            tokio::time::sleep(wait).await;
        }
        let (mut held, begun) = (false, Cell::new(false));
        let mut may_start = || {
            let now = clock.now();
            held = partner.gate.is_held(now);
            let may = now <= valid_until && !held;
            begun.set(may);
            may
        };
        let asked = {
            let asking = pin!(partner.sink.ask(connection, request, &mut may_start));
            noting_the_write(asking, &begun, || partner.gate.written(permit.slot())).await
        };
        match asked {
            Asked::Stopped if held => drop(permit),
            Asked::Stopped => {
                permit.missed();
                item.missed = true;
            }
            Asked::Answered {
                verified,
                reached,
                pace,
            } => {
                item.missed = false;
                obey_look_up(route, pace.as_deref(), seq);
                permit.finish(match reached {
                    true => AttemptResult::Elsewhere,
                    false => AttemptResult::Failed,
                });
                return after_look_up(route, item, doubt, verified, progress);
            }
        }
    }
}

fn after_look_up<S: Sink>(
    route: &Rc<RouteContext<S>>,
    item: &mut Item,
    doubt: Doubt,
    verified: Verified,
    progress: Progress,
) -> After {
    if !route.is_current(item) {
        return OVERTAKEN;
    }
    let looked_up = Some((verified, progress));
    settle(route, item, doubt, looked_up, AnswerDetail::default())
}

/// Does as the partner asks in the answer to a look-up.
fn obey_look_up<S>(route: &RouteContext<S>, pace: Option<&Pace>, seq: u64) {
    let Some(pace) = pace else { return };
    route.partner.gate.with(|turnstile, now| {
        if let Some(pause) = pace.pause {
            turnstile.pause_until(now.plus(pause), now);
        }
        if let (Some(remaining), Some(reset)) = (pace.remaining, pace.reset) {
            turnstile.observe_remaining(remaining, reset, seq, now);
        }
    });
}
