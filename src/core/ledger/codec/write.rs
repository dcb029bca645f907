//! Entries to bytes.

use super::super::entry::*;
use super::super::wire::*;
use super::*;
use crate::core::types::Time;

/// Appends an entry's byte form. Texts beyond their bounds are cut; of a carried entry inside a carried one only
/// the innermost is written.
pub fn encode(entry: &Entry, out: &mut Vec<u8>) {
    out.reserve(112);
    let start = |out: &mut Vec<u8>, kind: u8| {
        out.extend_from_slice(&[FORMAT, kind]);
        put_varint(out, entry.tenure.0);
    };
    match &entry.body {
        Body::Intent(i) => {
            start(out, kind::INTENT);
            intent(out, i);
        }
        Body::Outcome(o) => {
            start(
                out,
                match o.kind {
                    OutcomeKind::Delivered { .. } => kind::DELIVERED,
                    OutcomeKind::Later { counted: true, .. } => kind::LATER,
                    OutcomeKind::Later { counted: false, .. } => kind::UNCOUNTED,
                    OutcomeKind::Dead(_) => kind::DEAD,
                    OutcomeKind::Parked(_) => kind::PARKED,
                    OutcomeKind::Skipped(_) => kind::SKIPPED,
                },
            );
            outcome(out, o);
        }
        Body::Genesis(g) => {
            start(out, kind::GENESIS);
            put_u128(out, g.ledger);
            put_bytes(out, g.group.as_bytes());
            for n in [g.lanes, g.lane, g.recipe] {
                put_varint(out, n.into());
            }
        }
        Body::Owner(o) => {
            start(out, kind::OWNER);
            put_bytes(out, o.node.as_bytes());
            put_u64(out, o.life.0);
            put_varint(out, o.lease_ms.into());
            put_varint(out, o.timeout_ms.into());
            put_u64(out, o.at.0);
        }
        Body::Released(lives) => {
            start(out, kind::RELEASED);
            put_varint(out, lives.len() as u64);
            lives.iter().for_each(|life| put_u64(out, life.0));
        }
        Body::Route(r) => {
            start(out, kind::ROUTE);
            put_u64(out, r.route.0);
            put_u128(out, r.topic_id.0);
            put_bytes(out, r.topic.as_bytes());
            put_bytes(out, r.partner.as_bytes());
        }
        Body::Waiting(w) => {
            start(out, kind::WAITING);
            message(out, w.at, w.id);
            put_varint(out, w.offset);
            tries(out, w.attempts, w.round);
            put_u64(out, w.when.0);
            put_delta(out, w.when.0, w.not_before.0);
            kept(out, &w.kept);
        }
        Body::Position(p) => {
            start(out, kind::POSITION);
            position(out, p);
        }
        Body::Opened(o) => {
            start(out, kind::OPENED);
            message(out, o.at, o.id);
            put_varint(out, o.round.into());
            put_u64(out, o.when.0);
            put_bytes(out, o.idempotency_key.as_bytes());
        }
        Body::Command(c) => {
            start(out, kind::COMMAND);
            act(out, &c.action);
            put_varint(out, c.offset);
            put_u64(out, c.when.0);
            put_bytes(out, cut(&c.who, WORDS_MAX).as_bytes());
            put_bytes(out, cut(&c.why, WORDS_MAX).as_bytes());
        }
        Body::Sample(s) => {
            start(out, kind::SAMPLE);
            place(out, s.at);
            put_u64(out, s.when.0);
            put_varint(out, s.end);
        }
        Body::Used(u) => {
            start(out, kind::USED);
            put_u64(out, u.draw.budget);
            put_u64(out, u.draw.by);
            put_varint(out, u.window.into());
            put_varint(out, u.since.0);
            put_varint(out, u.count);
        }
        Body::Applied { version } => {
            start(out, kind::APPLIED);
            put_varint(out, *version);
        }
        Body::Carried {
            original,
            entry: carried,
        } => {
            start(out, kind::CARRIED);
            put_varint(out, *original);
            let mut innermost = carried;
            while let Body::Carried { entry, .. } = &innermost.body {
                innermost = entry;
            }
            encode(innermost, out);
        }
        Body::Unknown { kind, bytes } => {
            start(out, *kind);
            out.extend_from_slice(bytes);
        }
    }
}

#[inline]
fn place(out: &mut Vec<u8>, at: RoutePartition) {
    put_u64(out, at.route.0);
    put_varint(out, at.partition.into());
}

#[inline]
fn message(out: &mut Vec<u8>, at: RoutePartition, id: MessageId) {
    out.extend_from_slice(&id.0);
    place(out, at);
}

#[inline]
fn tries(out: &mut Vec<u8>, attempts: u32, round: u32) {
    put_varint(out, u64::from(attempts) << 1 | u64::from(round != 1));
    if round != 1 {
        put_varint(out, round.into());
    }
}

#[inline]
fn intent(out: &mut Vec<u8>, i: &Intent) {
    message(out, i.at, i.id);
    put_u64(out, i.key.0);
    put_varint(out, i.offset);
    tries(out, i.attempt, i.round);
    put_u64(out, i.slot.0);
    put_delta(out, i.slot.0, i.first_try.0);
    let split = i.budgets.iter().any(|b| b.by != 0);
    put_varint(out, (i.budgets.len() as u64) << 1 | u64::from(split));
    for b in &i.budgets {
        put_u64(out, b.budget);
        if split {
            put_u64(out, b.by);
        }
    }
    put_u64(out, i.life.0);
    put_varint(out, i.lease_ms.into());
    put_varint(out, i.timeout_ms.into());
}

#[inline]
fn outcome(out: &mut Vec<u8>, o: &Outcome) {
    message(out, o.at, o.id);
    put_varint(out, o.offset);
    tries(out, o.attempts, o.round);
    put_u64(out, o.when.0);
    put_u64(out, o.life.0);
    put_varint(out, o.status.wrapping_sub(200).into());
    match &o.kind {
        OutcomeKind::Delivered { readable } => out.extend_from_slice(&cut_bytes(readable, READABLE_MAX)),
        OutcomeKind::Later {
            not_before,
            first_try,
            key,
            reason,
            counted: _,
        } => {
            put_delta(out, o.when.0, not_before.0);
            put_delta(out, o.when.0, first_try.0);
            put_u64(out, key.0);
            put_bytes(out, cut(reason, REASON_MAX).as_bytes());
        }
        OutcomeKind::Dead(k) | OutcomeKind::Parked(k) | OutcomeKind::Skipped(k) => kept(out, k),
    }
}

fn kept(out: &mut Vec<u8>, k: &Kept) {
    out.reserve(k.value.len() + k.headers.0.len() + 256);
    put_u64(out, k.key.0);
    match &k.record_key {
        Some(key) => {
            out.push(1);
            put_bytes(out, key);
        }
        None if k.dropped => out.push(2),
        None => out.push(0),
    }
    put_varint(out, k.timestamp.0);
    put_varint(out, k.first_try.0);
    put_bytes(out, &k.value);
    put_bytes(out, &k.headers.0);
    put_bytes(out, cut(&k.readable, READABLE_MAX).as_bytes());
    put_bytes(out, k.idempotency_key.as_bytes());
    put_bytes(out, cut(&k.reason, REASON_MAX).as_bytes());
    put_bytes(out, cut(&k.answer, ANSWER_MAX).as_bytes());
}

fn position(out: &mut Vec<u8>, p: &Position) {
    place(out, p.at);
    put_varint(out, p.leader_epoch.into());
    put_varint(out, p.position);
    put_delta(out, p.position, p.high_water);
    put_varint(out, p.finished.len() as u64);
    out.reserve(p.finished.len() * 3);
    let mut before = p.position;
    for &(start, end) in &p.finished {
        put_delta(out, before, start);
        put_delta(out, start, end);
        before = end;
    }
}

fn act(out: &mut Vec<u8>, a: &Action) {
    match a {
        Action::Forget { at, id } => {
            out.push(action::FORGET);
            message(out, *at, *id);
        }
        Action::Mark { at, id, offset } => {
            out.push(action::MARK);
            message(out, *at, *id);
            put_varint(out, *offset);
        }
        Action::Drop { at, id } => {
            out.push(action::DROP);
            message(out, *at, *id);
        }
        Action::SkipAdd(rule) => {
            out.push(action::SKIP_ADD);
            skip_rule(out, rule);
        }
        Action::SkipRemove { rule } => {
            out.push(action::SKIP_REMOVE);
            put_varint(out, *rule);
        }
        Action::Pause {
            partner,
            route,
            reason,
        } => {
            out.push(action::PAUSE);
            pause(out, partner, *route);
            put_bytes(out, cut(reason, REASON_MAX).as_bytes());
        }
        Action::Audit { order, touched } => {
            out.push(action::AUDIT);
            put_bytes(out, cut(order, WORDS_MAX).as_bytes());
            put_varint(out, *touched);
        }
        Action::ForgetRoute { route } => {
            out.push(action::FORGET_ROUTE);
            out.extend_from_slice(&route.0.to_le_bytes());
        }
        Action::Resume { partner, route } => {
            out.push(action::RESUME);
            pause(out, partner, *route);
        }
    }
}

/// A skip rule as it also stands in the checkpoint.
pub(crate) fn skip_rule(out: &mut Vec<u8>, rule: &SkipRule) {
    put_varint(out, rule.rule);
    put_bytes(out, rule.topic.as_bytes());
    match &rule.partner {
        Some(partner) => {
            out.push(1);
            put_bytes(out, partner.as_bytes());
        }
        None => out.push(0),
    }
    let (what, bytes) = match &rule.matches {
        SkipMatch::Key(key) => (0, key),
        SkipMatch::Id(id) => (1, id),
    };
    out.push(what);
    put_bytes(out, bytes);
    put_bytes(out, cut(&rule.reason, REASON_MAX).as_bytes());
    put_u64(out, rule.made.0);
    // Saturating: a rule that ends at the end of time ends one microsecond earlier.
    put_varint(out, rule.expires.map_or(0, |Time(t)| t.saturating_add(1)));
}

fn pause(out: &mut Vec<u8>, partner: &str, route: Option<RouteId>) {
    put_bytes(out, partner.as_bytes());
    match route {
        Some(route) => {
            out.push(1);
            put_u64(out, route.0);
        }
        None => out.push(0),
    }
}
