//! Retention and size cap of kept payloads: [`crate::core::ledger::retention`] decides, here it is carried out.
//!
//! A payload that goes for want of room leaves its message listed: a carried copy of the entry without the payload
//! takes its place. A message whose retention is over leaves the list; its ID stays remembered. A parked one stays
//! listed.

use super::{Duties, DutyError, Writer};
use crate::core::ledger::entry::{Action, Body, Command};
use crate::core::ledger::fold::MessageState;
use crate::core::ledger::retention::{MOST, Over, give_up, is_due, over_since, payloads};
use crate::core::types::{MessageId, Offset, RoutePartition};
use crate::ledger::keeper::Keeper;
use crate::ledger::payload::{self, PayloadError};
use crate::telemetry::every::Every;
use std::time::Duration;

/// Messages in one write: the lane is held meanwhile.
const AT_ONCE: usize = 256;
/// Who gives up payloads, in the ledger's words.
const WHO: &str = "sluicegate";

static TOLD: Every = Every::new(Duration::from_secs(60));

impl Duties {
    pub(super) fn payloads(&self, writer: &dyn Writer) -> Result<(), DutyError> {
        let interval = self.rules.sample_interval();
        let retention = self.rules.payload_retention;
        let due = self.keeper.with_state(|state| {
            let samples = state.partitions.values().map(|p| p.samples.as_slice());
            // Whichever partition was sampled longest: each is a witness of its own.
            let over = samples.filter_map(|s| over_since(s, retention, interval));
            let over = over.max_by_key(Over::before);
            let due = is_due(state, over.as_ref(), self.rules.payload_bytes);
            due.then(|| (payloads(state, over.as_ref(), MOST), state.payload_bytes(), over))
        });
        let Some((held, bytes, over)) = due else {
            return Ok(());
        };
        let plan = give_up(held, bytes, over.as_ref(), self.rules.payload_bytes);
        let (messages, for_room) = (plan.messages.len(), plan.for_room);
        let payloads = plan.payloads.len();
        for part in plan.messages.chunks(AT_ONCE) {
            let part = part.to_vec();
            writer.write(Box::new(move |keeper| Ok(drop_messages(keeper, &part))))?;
        }
        for part in plan.payloads.chunks(AT_ONCE) {
            let bodies = self.without_payloads(part)?;
            writer.write(Box::new(move |keeper| Ok(still_held(keeper, bodies))))?;
        }
        self.keeper.count_dropped((messages + payloads) as u64);
        if messages > 0 {
            tracing::info!(
                event = "kept_over",
                messages,
                "kept longer than ledger.payload_retention: gone from the list"
            );
        }
        if payloads > 0
            && let Some(suppressed) = TOLD.speak("")
        {
            tracing::warn!(
                event = "payloads_dropped",
                payloads,
                for_room,
                bytes = plan.bytes,
                most = self.rules.payload_bytes,
                suppressed,
                "payloads of kept messages are given up; the messages stay listed and cannot be sent again"
            );
        }
        Ok(())
    }
}

fn drop_messages(keeper: &Keeper, part: &[(RoutePartition, MessageId)]) -> Vec<Body> {
    keeper.with_state(|state| {
        let ended = |(at, id): &(RoutePartition, MessageId)| {
            let message = state.partitions.get(at)?.messages.get(id)?;
            let ended = matches!(message.state, MessageState::Dead | MessageState::Skipped);
            ended.then_some((*at, *id, message.since))
        };
        let drops = part.iter().filter_map(ended).map(|(at, id, since)| {
            Body::from(Command {
                offset: state.commands,
                when: since,
                who: WHO.into(),
                why: "retention".into(),
                action: Action::Drop { at, id },
            })
        });
        drops.collect()
    })
}

/// A message whose payload goes, where that lies, and the entry that says so.
type WithoutPayload = (RoutePartition, MessageId, Offset, Body);

impl Duties {
    /// Read while the lane goes on: entries never change.
    fn without_payloads(
        &self,
        part: &[(RoutePartition, MessageId, Offset)],
    ) -> Result<Vec<WithoutPayload>, DutyError> {
        let mut bodies = Vec::with_capacity(part.len());
        for (at, id, ledger) in part {
            let entry = match payload::entry(self.log.as_ref(), self.lane, *ledger) {
                Ok(entry) => entry,
                Err(PayloadError::Damaged { at, source }) => return Err(DutyError::Entry { at, source }),
                Err(PayloadError::Log { source, .. }) => return Err(DutyError::Log(source)),
                // The fold names an entry that holds a payload.
                Err(_) => continue,
            };
            if let Some(body) = entry.without_payload(*ledger) {
                bodies.push((*at, *id, *ledger, body));
            }
        }
        Ok(bodies)
    }
}

/// Those of messages that nobody has opened again, or settled, meanwhile.
fn still_held(keeper: &Keeper, bodies: Vec<WithoutPayload>) -> Vec<Body> {
    keeper.with_state(|state| {
        let still = bodies.into_iter().filter(|(at, id, ledger, _)| {
            let messages = state.partitions.get(at).map(|p| &p.messages);
            messages.and_then(|m| m.get(id)).is_some_and(|message| {
                let closed = !matches!(
                    message.state,
                    MessageState::Open { .. } | MessageState::Later { .. }
                );
                closed && message.payload.is_some_and(|p| p.0 == *ledger)
            })
        });
        still.map(|(.., body)| body).collect()
    })
}
