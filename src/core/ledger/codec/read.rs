//! Bytes to entries. Whatever the bytes are: an entry or an error, never a panic, and never more memory than a
//! small multiple of them.

use super::super::entry::*;
use super::super::wire::*;
use super::*;
use crate::core::record::Headers;
use crate::core::types::*;
use smallvec::SmallVec;

/// Reads an entry. Payloads, keys, headers and readable IDs of delivered messages are slices of `bytes`, not
/// copies: they keep the buffer they came from alive as long as they are held.
///
/// # Errors
/// See [`CodecError`].
pub fn decode(bytes: &Bytes) -> Result<Entry, CodecError> {
    entry(bytes, &mut Reader::new(bytes), true)
}

fn entry(src: &Bytes, r: &mut Reader<'_>, outermost: bool) -> Result<Entry, CodecError> {
    let (format, kind) = (r.u8()?, r.u8()?);
    if format == 0 || format > FORMAT {
        return Err(CodecError::Format(format));
    }
    let tenure = Tenure(r.varint()?);
    let body = match kind {
        kind::INTENT => Body::Intent(intent(r)?),
        kind::DELIVERED..=kind::SKIPPED | kind::UNCOUNTED => Body::Outcome(outcome(src, r, kind)?),
        kind::GENESIS => Body::Genesis(Genesis {
            ledger: r.u128()?,
            group: r.text()?,
            lanes: r.varint32()?,
            lane: r.varint32()?,
            recipe: r.varint32()?,
        }),
        kind::OWNER => Body::Owner(Owner {
            node: r.text()?,
            life: LifeId(r.u64()?),
            lease_ms: r.varint32()?,
            timeout_ms: r.varint32()?,
            at: Time(r.u64()?),
        }),
        kind::RELEASED => {
            let count = r.count(8)?;
            Body::Released(
                (0..count)
                    .map(|_| Ok(LifeId(r.u64()?)))
                    .collect::<Result<_, _>>()?,
            )
        }
        kind::ROUTE => Body::Route(RouteInfo {
            route: RouteId(r.u64()?),
            topic_id: TopicId(r.u128()?),
            topic: r.text()?,
            partner: r.text()?,
        }),
        kind::WAITING => {
            let (id, at) = message(r)?;
            let offset = r.varint()?;
            let (attempts, round) = tries(r)?;
            let when = Time(r.u64()?);
            Body::Waiting(Waiting {
                at,
                id,
                offset,
                round,
                attempts,
                when,
                not_before: Time(r.delta(when.0)?),
                kept: Box::new(kept(src, r)?),
            })
        }
        kind::POSITION => Body::Position(position(r)?),
        kind::OPENED => {
            let (id, at) = message(r)?;
            Body::Opened(Opened {
                at,
                id,
                round: r.varint32()?,
                when: Time(r.u64()?),
                idempotency_key: r.text()?,
            })
        }
        kind::COMMAND => {
            let action = act(src, r)?;
            Body::from(Command {
                offset: r.varint()?,
                when: Time(r.u64()?),
                who: r.text()?,
                why: r.text()?,
                action,
            })
        }
        kind::SAMPLE => Body::Sample(Sample {
            at: place(r)?,
            when: Time(r.u64()?),
            end: r.varint()?,
        }),
        kind::USED => Body::Used(Used {
            draw: BudgetDraw {
                budget: r.u64()?,
                by: r.u64()?,
            },
            window: r.varint32()?,
            since: Time(r.varint()?),
            count: r.varint()?,
        }),
        kind::APPLIED => Body::Applied { version: r.varint()? },
        // One level only: the writer never nests them, and bytes that do would eat the stack.
        kind::CARRIED if outermost => Body::Carried {
            original: r.varint()?,
            entry: Box::new(entry(src, r, false)?),
        },
        kind::CARRIED => return Err(CodecError::Malformed("a carried entry")),
        kind => {
            let bytes = src.slice_ref(r.rest());
            return Ok(Entry {
                tenure,
                body: Body::Unknown { kind, bytes },
            });
        }
    };
    // An inner entry of an unknown kind has taken all there was.
    if !matches!(&body, Body::Carried { .. }) {
        r.end()?;
    }
    Ok(Entry { tenure, body })
}

#[inline]
fn message(r: &mut Reader<'_>) -> Result<(MessageId, RoutePartition), CodecError> {
    Ok((MessageId(r.array()?), place(r)?))
}

#[inline]
fn tries(r: &mut Reader<'_>) -> Result<(u32, u32), CodecError> {
    let v = r.varint()?;
    let attempts = u32::try_from(v >> 1).map_err(|_| CodecError::Malformed("a number"))?;
    let round = if v & 1 == 0 { 1 } else { r.varint32()? };
    Ok((attempts, round))
}

#[inline]
fn intent(r: &mut Reader<'_>) -> Result<Intent, CodecError> {
    let (id, at) = message(r)?;
    let key = KeyHash(r.u64()?);
    let offset = r.varint()?;
    let (attempt, round) = tries(r)?;
    let slot = Time(r.u64()?);
    let first_try = Time(r.delta(slot.0)?);
    let head = r.varint()?;
    let split = head & 1 == 1;
    if head >> 1 > (r.rest().len() / 8) as u64 {
        return Err(CodecError::Short);
    }
    let mut budgets = SmallVec::new();
    for _ in 0..head >> 1 {
        budgets.push(BudgetDraw {
            budget: r.u64()?,
            by: if split { r.u64()? } else { 0 },
        });
    }
    Ok(Intent {
        at,
        id,
        key,
        offset,
        round,
        attempt,
        first_try,
        slot,
        budgets,
        life: LifeId(r.u64()?),
        lease_ms: r.varint32()?,
        timeout_ms: r.varint32()?,
    })
}

#[inline]
fn outcome(src: &Bytes, r: &mut Reader<'_>, kind: u8) -> Result<Outcome, CodecError> {
    let (id, at) = message(r)?;
    let offset = r.varint()?;
    let (attempts, round) = tries(r)?;
    let when = Time(r.u64()?);
    let life = LifeId(r.u64()?);
    let status = u16::try_from(r.varint()?).map_err(|_| CodecError::Malformed("a status"))?;
    let kind = match kind {
        kind::DELIVERED => {
            let readable = src.slice_ref(r.rest());
            *r = Reader::new(&[]);
            OutcomeKind::Delivered { readable }
        }
        kind::LATER | kind::UNCOUNTED => OutcomeKind::Later {
            counted: kind == kind::LATER,
            not_before: Time(r.delta(when.0)?),
            first_try: Time(r.delta(when.0)?),
            key: KeyHash(r.u64()?),
            reason: r.text()?,
        },
        kind::DEAD => OutcomeKind::Dead(Box::new(kept(src, r)?)),
        kind::PARKED => OutcomeKind::Parked(Box::new(kept(src, r)?)),
        _ => OutcomeKind::Skipped(Box::new(kept(src, r)?)),
    };
    Ok(Outcome {
        at,
        id,
        offset,
        round,
        attempts,
        when,
        life,
        status: status.wrapping_add(200),
        kind,
    })
}

fn kept(src: &Bytes, r: &mut Reader<'_>) -> Result<Kept, CodecError> {
    let key = KeyHash(r.u64()?);
    let (record_key, dropped) = match r.u8()? {
        0 => (None, false),
        1 => (Some(src.slice_ref(r.bytes()?)), false),
        2 => (None, true),
        _ => return Err(CodecError::Malformed("a flag")),
    };
    Ok(Kept {
        key,
        record_key,
        dropped,
        timestamp: Time(r.varint()?),
        first_try: Time(r.varint()?),
        value: src.slice_ref(r.bytes()?),
        headers: Headers(src.slice_ref(r.bytes()?)),
        readable: r.text()?,
        idempotency_key: r.text()?,
        reason: r.text()?,
        answer: r.text()?,
    })
}

fn position(r: &mut Reader<'_>) -> Result<Position, CodecError> {
    let at = place(r)?;
    let leader_epoch = r.varint32()?;
    let position = r.varint()?;
    let high_water = r.delta(position)?;
    let count = r.count(2)?;
    let mut finished = Vec::with_capacity(count);
    let mut before = position;
    for _ in 0..count {
        let start = r.delta(before)?;
        before = r.delta(start)?;
        finished.push((start, before));
    }
    Ok(Position {
        at,
        leader_epoch,
        position,
        finished,
        high_water,
    })
}

fn flag(r: &mut Reader<'_>) -> Result<bool, CodecError> {
    match r.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(CodecError::Malformed("a flag")),
    }
}

fn act(src: &Bytes, r: &mut Reader<'_>) -> Result<Action, CodecError> {
    Ok(match r.u8()? {
        action::FORGET => {
            let (id, at) = message(r)?;
            Action::Forget { at, id }
        }
        action::MARK => {
            let (id, at) = message(r)?;
            let offset = r.varint()?;
            Action::Mark { at, id, offset }
        }
        action::DROP => {
            let (id, at) = message(r)?;
            Action::Drop { at, id }
        }
        action::SKIP_ADD => Action::SkipAdd(skip_rule(src, r)?),
        action::SKIP_REMOVE => Action::SkipRemove { rule: r.varint()? },
        action::PAUSE => {
            let (partner, route) = pause(r)?;
            Action::Pause {
                partner,
                route,
                reason: r.text()?,
            }
        }
        action::RESUME => {
            let (partner, route) = pause(r)?;
            Action::Resume { partner, route }
        }
        action::FORGET_ROUTE => Action::ForgetRoute {
            route: RouteId(r.u64()?),
        },
        action::AUDIT => Action::Audit {
            order: r.text()?,
            touched: r.varint()?,
        },
        _ => return Err(CodecError::Malformed("an action")),
    })
}

/// A skip rule as it also stands in the checkpoint.
pub(crate) fn skip_rule(src: &Bytes, r: &mut Reader<'_>) -> Result<SkipRule, CodecError> {
    Ok(SkipRule {
        rule: r.varint()?,
        topic: r.text()?,
        partner: match flag(r)? {
            true => Some(r.text()?),
            false => None,
        },
        matches: match flag(r)? {
            false => SkipMatch::Key(src.slice_ref(r.bytes()?)),
            true => SkipMatch::Id(src.slice_ref(r.bytes()?)),
        },
        reason: r.text()?,
        made: Time(r.u64()?),
        expires: r.varint()?.checked_sub(1).map(Time),
    })
}

fn pause(r: &mut Reader<'_>) -> Result<(String, Option<RouteId>), CodecError> {
    let partner = r.text()?;
    let route = match flag(r)? {
        true => Some(RouteId(r.u64()?)),
        false => None,
    };
    Ok((partner, route))
}
