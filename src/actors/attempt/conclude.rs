//! From an answer to the outcome in the ledger, and what comes next for the message.

use super::After;
use crate::actors::context::RouteContext;
use crate::actors::item::{Item, Task};
use crate::actors::lines;
use crate::config::OnDoubt;
use crate::core::backoff::{self, Next, Tried};
use crate::core::breaker::{AttemptResult, Refusal};
use crate::core::doubt::{self, Action, Doubt, DoubtRules, Progress};
use crate::core::ledger::codec::{cut, cut_bytes};
use crate::core::ledger::entry::{Body, Kept, Outcome, OutcomeKind};
use crate::core::types::Time;
use crate::sink::{Answer, AnswerDetail, Concerns, DoubtCause, Sink, Verdict, Verified, idempotency_key};
use std::rc::Rc;
use std::time::Duration;

/// A pause that the partner asks for is worth a line from this length on.
const TOLD_PAUSE: Duration = Duration::from_secs(10);

/// Closes the intent of an attempt that does not count: nothing was written, or the credentials of all messages are
/// refused. Not after a restart either.
pub(super) fn close_uncounted<S: Sink>(
    route: &RouteContext<S>,
    item: &mut Item,
    now: Time,
    not_before: Time,
    why: &str,
) {
    if item.is_unsettled() {
        // An earlier attempt is in doubt still: so is the message, and its intent says so.
        return;
    }
    let kind = OutcomeKind::Later {
        not_before,
        first_try: item.first_try,
        key: item.key,
        reason: why.to_owned(),
        counted: false,
    };
    item.delivery.attempt += 1;
    append(route, item, now, kind);
    item.delivery.attempt -= 1;
}

pub(super) fn note_first_try<S>(route: &RouteContext<S>, item: &mut Item, first_try: Time, now: Time) {
    if item.first_try == Time::ZERO {
        item.first_try = first_try;
        item.outage_at_first_try = route.partner.gate.outage(now);
    }
}

/// Does as the partner asks, before the place of its answer is free for another start.
pub(super) fn obey<S>(route: &RouteContext<S>, item: &Item, answer: &Answer, seq: u64) {
    let Some(pace) = &answer.pace else { return };
    if answer.concerns.is_some_and(Concerns::spares_partner) {
        return;
    }
    if let (Some(host), None) = (item.host, answer.concerns) {
        let now = route.partner.clock.now();
        let hosts = &mut *route.partner.hosts.borrow_mut();
        hosts.hint(host, pace.pause, pace.remaining.zip(pace.reset), now);
        return;
    }
    let told = route.partner.gate.with(|turnstile, now| {
        let (before, mut told) = (turnstile.paused_until(), None);
        if let Some(pause) = pace.pause {
            let until = now.plus(pause);
            turnstile.pause_until(until, now);
            // A long one is said, once: not by each of the answers that were on their way.
            told = (pause >= TOLD_PAUSE && until > before.plus(TOLD_PAUSE)).then_some((pause, until));
        }
        if let (Some(remaining), Some(reset)) = (pace.remaining, pace.reset) {
            turnstile.observe_remaining(remaining, reset, seq, now);
        }
        told
    });
    if let Some((pause, until)) = told {
        tracing::info!(
            event = "partner_held", partner = %route.partner.name, status = answer.status,
            held_ms = pause.as_millis() as u64, held_until = %until,
            "the partner asks for no requests until then (Retry-After or RateLimit)"
        );
    }
}

/// What an answer says about the partner as a whole.
pub(super) fn result_of(answer: &Answer, item: &Item, started: Time) -> AttemptResult {
    match answer.verdict {
        Verdict::Delivered | Verdict::Refused => AttemptResult::Answered,
        Verdict::Pause if answer.concerns == Some(Concerns::Partner) => AttemptResult::PausedByRule,
        Verdict::Pause => AttemptResult::CredentialsRefused {
            again: item.was_refused(),
            since: first_refused(item, started),
        },
        Verdict::Unknown(_) if answer.status != 0 => AttemptResult::DoubtAnswered,
        Verdict::Unknown(_) => AttemptResult::Doubt,
        // A rule says that somebody is there, and that it is about this message or key.
        Verdict::TryLater if answer.concerns.is_some_and(Concerns::spares_partner) => AttemptResult::Answered,
        // 425 and 429 come from a partner that is up and says so.
        Verdict::TryLater if answer.status != 0 && answer.status < 500 => AttemptResult::Answered,
        Verdict::TryLater => AttemptResult::Failed,
    }
}

/// When the first of the attempts in a row set out whose credentials were refused, this one being refused too.
fn first_refused(item: &Item, started: Time) -> Time {
    match item.refused_since {
        // Built again since: at its first try, at the earliest.
        Time::ZERO if item.was_refused() && item.first_try != Time::ZERO => item.first_try,
        Time::ZERO => started,
        since => since,
    }
}

/// Turns the answer into an outcome, appends it, and says what comes next. `hops`: attempts on the way to it, from which
/// the partner sent it on; they do not count where this one does not.
pub(super) fn conclude<S: Sink>(
    route: &Rc<RouteContext<S>>,
    item: &mut Item,
    answer: Answer,
    started: Time,
    hops: u32,
) -> After {
    let partner = &route.partner;
    let now = partner.clock.now();
    partner.metrics.attempt(answer.verdict).inc();
    partner.metrics.attempt_time.record(now.since(started));
    item.delivery.attempt += 1;
    item.refused_since = match answer.verdict {
        Verdict::Pause => first_refused(item, started),
        _ => Time::ZERO,
    };
    item.status = answer.status;
    lines::attempted(route, item, &answer, now.since(started));
    if answer.concerns == Some(Concerns::Key)
        && let Some(pace) = &answer.pace
    {
        item.key_rests_until = now.plus(pace.retry_after.max(pace.pause).unwrap_or_default());
    }
    if answer.verdict == Verdict::Delivered {
        // Nobody asks for it behind this.
        let mut readable = std::mem::take(&mut item.delivery.readable);
        if readable.len() > partner.ledger.readable_id {
            readable = cut_bytes(&readable, partner.ledger.readable_id);
        }
        append(route, item, now, OutcomeKind::Delivered { readable });
        return After::Delivered;
    }
    let detail = answer.detail.map(|d| *d).unwrap_or_default();
    match answer.verdict {
        Verdict::Refused => dead(route, item, detail),
        Verdict::Unknown(cause) => {
            let doubt = Doubt {
                cause,
                attempts: item.delivery.attempt,
                first_try: item.first_try,
                slot: started,
                timeout: partner.config.timeout.request,
                taken_over: None,
            };
            settle(route, item, doubt, None, detail)
        }
        _ => {
            note_first_try(route, item, now, now);
            let (held, partner_answers) = partner.gate.with(|turnstile, now| {
                let held = turnstile.outage(now).saturating_sub(item.outage_at_first_try);
                (held, turnstile.is_answering(now))
            });
            let counts = answer.verdict != Verdict::Pause || is_its_own(route, item);
            if !counts {
                item.delivery.attempt = item.delivery.attempt.saturating_sub(hops);
            }
            let tried = Tried {
                attempts: item.delivery.attempt - u32::from(!counts),
                first_try: item.first_try,
                held,
                // A refusal that is its own was told from everybody's by the answers to others.
                partner_answers: partner_answers || (answer.verdict == Verdict::Pause && counts),
                retry_after: answer.pace.and_then(|p| p.retry_after),
            };
            match backoff::next(&partner.config.retry, tried, now, fastrand::u64(..)) {
                Next::At(not_before) => {
                    if !counts {
                        // It closes its intent and is not counted: refused credentials burn no attempts.
                        item.delivery.attempt -= 1;
                        close_uncounted(route, item, now, not_before, &detail.reason);
                    } else if !item.is_unsettled() {
                        // With an earlier attempt in doubt the intent stays open: this answer says nothing about that
                        // one.
                        let kind = OutcomeKind::Later {
                            not_before,
                            first_try: item.first_try,
                            key: item.key,
                            reason: detail.reason,
                            counted: true,
                        };
                        append(route, item, now, kind);
                    }
                    item.task = Task::Send;
                    After::Again(not_before)
                }
                Next::GiveUp(why) => {
                    let reason = format!("{why}; last: {}", detail.reason);
                    let detail = AnswerDetail {
                        reason,
                        answer: detail.answer,
                    };
                    end(route, item, detail, false)
                }
            }
        }
    }
}

/// Whether a refusal of credentials that has just come in counts as this message's own attempt: others are answered.
/// Its first refusal, which was not counted while nobody knew, is counted with it.
fn is_its_own<S: Sink>(route: &RouteContext<S>, item: &mut Item) -> bool {
    let refusal = match item.host {
        Some(host) => route.partner.hosts.borrow().refusal(host),
        None => route.partner.gate.look(|turnstile| turnstile.breaker().refusal()),
    };
    let suspected = std::mem::replace(&mut item.suspected, refusal == Refusal::Suspected);
    if refusal == Refusal::Own && suspected {
        item.delivery.attempt += 1;
    }
    refusal == Refusal::Own
}

/// Deals with an unknown outcome, after a look-up if one was made.
pub(super) fn settle<S: Sink>(
    route: &Rc<RouteContext<S>>,
    item: &mut Item,
    doubt: Doubt,
    looked_up: Option<(Verified, Progress)>,
    detail: AnswerDetail,
) -> After {
    let partner = &route.partner;
    let config = &partner.config;
    let rules = DoubtRules {
        policy: config.doubt,
        idempotency_window: config.idempotency_window,
        retry: &config.retry,
        settle: config.verify.as_ref().map(|v| v.settle),
    };
    let now = partner.clock.now();
    let rnd = fastrand::u64(..);
    let verified = looked_up.is_some();
    let action = match &looked_up {
        None => doubt::on_doubt(&doubt, &rules, now, rnd),
        Some((answer, progress)) => doubt::on_looked_up(answer, *progress, &doubt, &rules, now, rnd),
    };
    match action {
        Action::Delivered => {
            let readable = cut_bytes(&item.delivery.readable, partner.ledger.readable_id);
            append(route, item, now, OutcomeKind::Delivered { readable });
            After::Delivered
        }
        Action::Park(reason) => {
            if let doubt::ParkReason::Policy(cause) = reason {
                route.figures.parked_for(cause);
            }
            let reason = if detail.reason.is_empty() {
                reason.to_string()
            } else {
                format!("{reason}; {}", detail.reason)
            };
            park(
                route,
                item,
                AnswerDetail {
                    reason,
                    answer: detail.answer,
                },
            )
        }
        // The intent stays open: after a crash the message is in doubt still, and decided by the policy for that.
        Action::ResendAt(at) => {
            note_doubt(route, item, doubt.cause);
            item.task = Task::Send;
            item.open = verified;
            item.resend_until = if verified {
                Time::NEVER
            } else {
                doubt::resend_until(doubt.first_try, &rules)
            };
            After::Again(at)
        }
        Action::VerifyAt(at, progress) => {
            note_doubt(route, item, doubt.cause);
            item.task = Task::LookUp(doubt, progress);
            After::Again(at)
        }
    }
}

/// While this life settles a doubt its cause is remembered, for a partition that is built again.
fn note_doubt<S>(route: &RouteContext<S>, item: &Item, cause: DoubtCause) {
    route.doubts.borrow_mut().insert(item.delivery.id, cause);
}

/// Ends a message of which no further attempt is made: parked where an earlier one may have been taken (I3), else dead.
pub(super) fn end<S: Sink>(
    route: &Rc<RouteContext<S>>,
    item: &mut Item,
    detail: AnswerDetail,
    unsure: bool,
) -> After {
    if !item.is_unsettled() && !unsure {
        return dead(route, item, detail);
    }
    let reason = format!("{}; {}", doubt::ParkReason::Unsettled, detail.reason);
    park(route, item, AnswerDetail { reason, ..detail })
}

pub(super) fn dead<S: Sink>(route: &Rc<RouteContext<S>>, item: &mut Item, detail: AnswerDetail) -> After {
    let kept = kept(item, detail);
    append(route, item, route.partner.clock.now(), OutcomeKind::Dead(kept));
    After::Dead
}

pub(super) fn park<S: Sink>(route: &Rc<RouteContext<S>>, item: &mut Item, detail: AnswerDetail) -> After {
    let kept = kept(item, detail);
    append(route, item, route.partner.clock.now(), OutcomeKind::Parked(kept));
    After::Parked {
        hold: route.partner.config.on_doubt == OnDoubt::Hold,
    }
}

/// Bytes of a readable ID kept with a message that an operator must look at.
const KEPT_READABLE: usize = 1_024;

/// The message as it is kept in the ledger.
pub fn kept(item: &Item, detail: AnswerDetail) -> Box<Kept> {
    let delivery = &item.delivery;
    let idempotency = match &delivery.idempotency_key {
        Some(key) => key.to_string(),
        None => idempotency_key(delivery.id, delivery.round),
    };
    Box::new(Kept {
        key: item.key,
        record_key: delivery.record.key.clone(),
        timestamp: delivery.record.timestamp,
        value: delivery.record.value.clone(),
        headers: delivery.record.headers.clone(),
        readable: cut(&String::from_utf8_lossy(&delivery.readable), KEPT_READABLE).to_owned(),
        idempotency_key: idempotency,
        reason: detail.reason,
        answer: detail.answer,
        first_try: item.first_try,
        dropped: false,
    })
}

pub(super) fn append<S: Sink>(route: &RouteContext<S>, item: &mut Item, when: Time, kind: OutcomeKind) {
    let metrics = &route.partner.metrics;
    match &kind {
        OutcomeKind::Delivered { .. } => {
            metrics.delivered.inc();
            metrics.age.record(when.since(item.delivery.record.timestamp));
        }
        OutcomeKind::Dead(kept) => {
            metrics.dead.inc();
            lines::dead(route, item, kept);
        }
        OutcomeKind::Parked(kept) => {
            metrics.parked.inc();
            lines::parked(route, item, kept);
        }
        OutcomeKind::Later { .. } | OutcomeKind::Skipped(_) => {}
    }
    if !route.doubts.borrow().is_empty() {
        route.doubts.borrow_mut().remove(&item.delivery.id);
    }
    item.open = false;
    let port = &route.partner.port;
    item.outcome = port.outcome(Body::Outcome(Outcome {
        at: route.at,
        id: item.delivery.id,
        offset: item.delivery.record.offset,
        round: item.delivery.round,
        attempts: item.delivery.attempt,
        when,
        life: port.lane().life(),
        status: item.status,
        kind,
    }));
}
