//! Samples, and the end of remembered IDs: which bucket may go is decided by [`crate::dedup::age`].

use super::{Duties, DutyError, Input, Writer};
use crate::core::ledger::entry::{Body, Sample};
use crate::core::ledger::fold::Sampled;
use crate::core::types::{Offset, RoutePartition, Time};
use crate::dedup::BucketInfo;
use crate::dedup::age::{Held, RouteAge, end_of_memory, going, held, is_overlong};
use std::cell::LazyCell;
use std::collections::BTreeMap;
use std::time::Duration;

/// How far look-ups had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LookedUp {
    /// What came of look-ups before this one is in the ledger.
    sure: Offset,
    /// Look-ups had come so far, then.
    told: (Time, Offset),
}

impl Duties {
    /// A look-up that found something leaves its trace in a position, which is written a little later: until then
    /// the ID must stay, for after a crash the record is looked up again.
    pub(super) fn note_looked_up(&mut self, now: Time, inputs: &[Input]) {
        let settled = self.rules.position_every * 2 + Duration::from_secs(1).min(self.rules.look_every);
        for input in inputs {
            let told = (now, input.looked_up);
            let known = self
                .looked_up
                .entry(input.at)
                .or_insert(LookedUp { sure: 0, told });
            if input.looked_up < known.told.1 {
                // Its actor was built again, and looks up once more.
                *known = LookedUp {
                    sure: known.sure.min(input.looked_up),
                    told,
                };
            } else if now.since(known.told.0) >= settled {
                *known = LookedUp {
                    sure: known.told.1,
                    told,
                };
            }
        }
    }

    /// Writes the end of every input down, when it is time.
    pub(super) fn sample(
        &mut self,
        now: Time,
        inputs: &[Input],
        writer: &dyn Writer,
    ) -> Result<(), DutyError> {
        let interval = self.rules.sample_interval();
        let due: Vec<&Input> = self.keeper.with_state(|state| {
            // The one written last, not the latest: where the clock was set back, the latest stays in the future for as
            // long as the clock was wrong, and one sample every interval is enough then too.
            let last = |at| match self.sampled.get(at) {
                Some(last) => Some(*last),
                None => Some(state.partitions.get(at)?.samples.last()?.when),
            };
            let is_due = |at| last(at).is_none_or(|last| now < last || now.since(last) >= interval);
            inputs.iter().filter(|input| is_due(&input.at)).collect()
        });
        // One that is due alone (a new route) is written alone; after that they go together.
        let mut samples = Vec::with_capacity(due.len());
        let sampled: Vec<(RoutePartition, Time)> = due.iter().map(|input| (input.at, now)).collect();
        for input in due {
            let end = self.log.bounds(input.input)?.next;
            samples.push(Body::Sample(Sample {
                at: input.at,
                when: now,
                end,
            }));
        }
        if !samples.is_empty() {
            writer.write(Box::new(move |_| Ok(samples)))?;
            self.sampled.extend(sampled);
        }
        Ok(())
    }

    /// Lets buckets go that are due, oldest first.
    pub(super) fn expire(&self, now: Time, inputs: &[Input]) -> Result<(), DutyError> {
        let store = self.keeper.store();
        store.advance(now)?;
        if let Some(until) = self.overlong(now) {
            store.close_present(now)?;
            tracing::info!(
                event = "bucket_closed",
                until = %until,
                "the present bucket of IDs was open for two spans: the machine's clock was set, and the next one begins"
            );
        }
        let buckets = store.buckets();
        let closed = buckets.iter().take_while(|bucket| !bucket.present);
        let going = going(closed.map_while(|bucket| self.held(bucket, inputs)));
        for (bucket, held) in buckets.iter().zip(going) {
            let carried = match held.routes.is_empty() {
                true => 0,
                false => store.carry(bucket.id, &held.routes)?,
            };
            let freed = store.expire(bucket.id)?;
            tracing::info!(
                event = "bucket_expired",
                bucket = bucket.id,
                until = %bucket.to,
                ids = bucket.records,
                carried,
                freed,
                "IDs are older than the memory: their bucket is gone"
            );
        }
        Ok(())
    }

    /// The end of the present bucket's span, if the bucket must close before that.
    fn overlong(&self, now: Time) -> Option<Time> {
        let store = self.keeper.store();
        let (began, (_, until)) = (store.present_from()?, store.present_span()?);
        let (span, interval) = (self.rules.bucket, self.rules.sample_interval());
        let over = self.keeper.with_state(|state| {
            // It began with this tenure, whose clock does not jump, and ends within a span: mostly so, and nothing to count.
            if began >= state.tenure.0 && until <= now.plus(span) {
                return false;
            }
            // Whichever partition was sampled longest: each is a witness of its own.
            let mut partitions = state.partitions.values();
            partitions.any(|p| is_overlong(&p.samples, began, span, interval))
        });
        over.then_some(until)
    }

    /// What of a closed bucket must stay. None: it is young, or it is not known when it closed; so are those behind it.
    fn held(&self, bucket: &BucketInfo, inputs: &[Input]) -> Option<Held> {
        let closed = bucket.closed?;
        let retention: BTreeMap<RoutePartition, Duration> =
            inputs.iter().map(|i| (i.at, i.retention)).collect();
        let (interval, longest) = (self.rules.sample_interval(), self.rules.retention);
        self.keeper.with_state(|state| {
            // Nobody looks IDs of a forgotten route up, or samples its input: any other input tells how much time has
            // passed. They stay for that long, since the route may come back, and must not stay for ever.
            let of_another = LazyCell::new(|| {
                let is_over = |s: &&[Sampled]| end_of_memory(s, closed, longest, interval).is_some();
                let mut samples = state.partitions.values().map(|p| p.samples.as_slice());
                samples.find(is_over)
            });
            let age = |&(at, ids)| {
                let known = state.partitions.get(&at);
                // A route that is not configured now looks nothing up: it stands at its position.
                let looked_up = match self.looked_up.get(&at) {
                    Some(looked_up) => looked_up.sure,
                    None => known.map_or(Offset::MAX, |p| p.position),
                };
                RouteAge {
                    at,
                    retention: retention.get(&at).copied().unwrap_or(longest),
                    samples: match known {
                        Some(partition) => &partition.samples,
                        None => of_another.unwrap_or_default(),
                    },
                    looked_up,
                    ids,
                }
            };
            let ages: Vec<RouteAge<'_>> = bucket.routes.iter().map(age).collect();
            let held = held(closed, &ages, interval);
            let is_young = held.ids > 0 && held.ids == held.all && of_another.is_none();
            (!is_young).then_some(held)
        })
    }
}
