//! Leave to go to a message's host, where records say which host it is.

use crate::actors::context::PartnerContext;
use crate::actors::gate::Permit;
use crate::actors::item::Item;
use crate::core::breaker::AttemptResult;
use crate::core::hosts::Pass;
use crate::core::types::Time;
use crate::sink::Sink;

/// Leave to go to the message's host, where the record says which; given back when dropped.
pub(super) struct HostPass<'a, S> {
    pub(super) partner: &'a PartnerContext<S>,
    pub(super) pass: Option<Pass>,
}

impl<'a, S: Sink> HostPass<'a, S> {
    /// Asks, unless it has leave. Err: the host is left alone; when to come back.
    pub(super) fn ask(&mut self, item: &mut Item) -> Result<(), Time> {
        let partner = self.partner;
        if item.host.is_none() {
            item.host = partner.sink.host(&item.delivery);
        }
        if let (Some(host), None) = (item.host, &self.pass) {
            let now = partner.clock.now();
            let hosts = &mut *partner.hosts.borrow_mut();
            self.pass = Some(hosts.ask(host, item.was_refused(), now, fastrand::u64(..))?);
        }
        Ok(())
    }
}

impl<S> HostPass<'_, S> {
    fn tell(&mut self, result: AttemptResult) {
        if let Some(pass) = self.pass.take() {
            let now = self.partner.clock.now();
            let hosts = &mut *self.partner.hosts.borrow_mut();
            hosts.finish(pass, result, now, fastrand::u64(..));
        }
    }

    /// The attempt has ended: its place is free, and the breakers know. What a host among many does says nothing of
    /// the partner, but for doubts: each may park a message, whichever host it is (I3).
    pub(super) fn finish(&mut self, permit: Permit, result: AttemptResult) {
        let of_partner = match (self.pass.is_some(), result) {
            (true, AttemptResult::Failed | AttemptResult::CredentialsRefused { .. }) => {
                AttemptResult::NotMade
            }
            (_, result) => result,
        };
        self.tell(result);
        permit.finish(of_partner);
    }
}

impl<S> Drop for HostPass<'_, S> {
    fn drop(&mut self) {
        self.tell(AttemptResult::NotMade);
    }
}
