//! An order from end to end: pick, prepare, settle part by part, write. The same in a running node and on a stopped
//! one's folder; they differ in how they write ([`Carrier`]).

use super::{Desk, View};
use crate::api::{ApiError, Order, OrderReport, OrderRequest};
use crate::core::ledger::entry::Body;
use crate::core::ledger::fold::LaneState;
use crate::core::types::Time;
use parking_lot::Mutex;

/// A lane that orders can be carried out on.
pub trait Carrier {
    /// Looks at the fold, briefly.
    fn look(&self, at: &mut dyn FnMut(&LaneState));
    /// Waits until the entries of earlier orders are folded.
    ///
    /// # Errors
    /// If they are not after a while: then no order can be settled.
    fn ready(&self) -> Result<(), ApiError>;
    /// Appends entries, and comes back when they are durable and folded and what follows from them is done. Answers
    /// which of them, by their place, changed nothing.
    ///
    /// # Errors
    /// If that takes too long: the order takes effect as soon as its entries are durable. Or if the node ends: then
    /// they may or may not be there, as after a crash.
    fn write(&self, entries: Vec<Body>) -> Result<Vec<usize>, ApiError>;
    /// The present time.
    fn now(&self) -> Time;
    /// Topics that the order would have made before it is carried out, with their partitions: a dry run must count what they
    /// will hold.
    fn would_make(&self, order: &Order) -> Vec<(String, u32)> {
        let _ = order;
        Vec::new()
    }
}

/// One order at a time: an order is settled against a fold that holds all orders before it, or two could open the
/// same round. One of these a lane.
#[derive(Debug, Default)]
pub struct Counter(Mutex<()>);

impl Desk {
    /// Carries an order out, or (dry run) says what it would touch. Blocks until it is durable.
    ///
    /// # Errors
    /// [`ApiError`]: it cannot be done, or not any more. What was reported durable before stays done.
    pub fn carry_out(
        &self,
        counter: &Counter,
        lane: &dyn Carrier,
        request: &OrderRequest,
    ) -> Result<OrderReport, ApiError> {
        let _turn = (!request.dry_run).then(|| counter.0.lock());
        if !request.dry_run {
            lane.ready()?;
        }
        let now = lane.now();
        let pick = Self::pick_for_order(&request.order, now)?;
        let mut view = Ok(View::default());
        let mut served = self.served();
        for (topic, partitions) in lane.would_make(&request.order) {
            served.extend(self.served_once_made(&topic, partitions));
        }
        lane.look(&mut |state| view = View::of(state, &pick, &served));
        let view = view?;
        let prepared = self.prepare(&view, request, now)?;
        let mut report = prepared.report.clone();
        if request.dry_run {
            return Ok(report);
        }
        let mut met = Vec::new();
        lane.look(&mut |state| met = prepared.introductions(state));
        if !met.is_empty() {
            lane.write(met)?;
        }
        for part in prepared.parts() {
            let now = lane.now();
            let mut plan = super::Plan::default();
            lane.look(&mut |state| plan = prepared.settle(state, now, part.clone()));
            let refused = match std::mem::take(&mut plan.entries) {
                nothing if nothing.is_empty() => Vec::new(),
                entries => lane.write(entries)?,
            };
            report.add(&plan.report(&refused));
        }
        Ok(report)
    }
}
