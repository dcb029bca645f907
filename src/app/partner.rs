//! A partner is made ready on its arbiter: budgets, gate, sink. And it is asked there how it stands.

use super::plan;
use crate::actors::arbiter::local;
use crate::actors::context::PartnerContext;
use crate::actors::gate::{NodeCap, PartnerGate};
use crate::clock::Clock;
use crate::config::{Config, PartnerConfig};
use crate::core::breaker::{BreakerSettings, Cause};
use crate::core::hosts::Hosts;
use crate::core::in_full::in_full;
use crate::core::limiter::BudgetTable;
use crate::core::turnstile::Turnstile;
use crate::core::types::Time;
use crate::ledger::keeper::Keeper;
use crate::memory::MemoryShare;
use crate::sink::SinkStats;
use crate::sink::http::HttpSink;
use crate::sink::secrets::Secrets;
use crate::telemetry::metrics::Metrics;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// How long before its slot a start is prepared: about twice a commit with its gap.
const LEAD: Duration = Duration::from_millis(4);

/// What a partner is started from, on its arbiter.
pub struct PartnerStart {
    /// Its number among the partners.
    pub number: u32,
    /// Its settings.
    pub partner: PartnerConfig,
    /// Its share of the memory.
    pub memory: MemoryShare,
    /// All settings.
    pub config: Arc<Config>,
    /// The time.
    pub clock: Clock,
    /// The secrets.
    pub secrets: Secrets,
    /// The node's requests in flight.
    pub cap: Arc<NodeCap>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Knows the slots that earlier lives used.
    pub keeper: Arc<Keeper>,
    /// An operator has paused it.
    pub paused: bool,
    /// The node's own listeners: no request goes there.
    pub own: Vec<std::net::SocketAddr>,
}

thread_local! {
    /// Budgets of the partners on this arbiter.
    static BUDGETS: Rc<RefCell<BudgetTable>> = Rc::new(RefCell::new(BudgetTable::new()));
    /// What is counted of them: bytes, budgets of their own, shared ones.
    static COUNTED: Cell<[u64; 3]> = const { Cell::new([0; 3]) };
}

impl PartnerStart {
    /// Makes the partner's context, to be found by its name.
    ///
    /// # Errors
    /// In words: a setting that cannot be carried out.
    pub fn start(self) -> Result<(), String> {
        let now = self.clock.now();
        let table = BUDGETS.with(Rc::clone);
        for (budget, limit) in plan::budgets(&self.config, &self.partner) {
            let table = &mut *table.borrow_mut();
            if table.get_mut(budget).is_none() {
                // Nothing was granted under another rate yet, so nothing has to be waited for.
                let _ = table
                    .set(budget, limit, now)
                    .map_err(|e| format!("{}: {e}", self.partner.name))?;
                if let Some(limiter) = table.get_mut(budget) {
                    limiter.set_bound(plan::budget_bytes(&self.config).0);
                }
                table.set_shared(budget, plan::drawers(&self.config, budget) > 1);
                // No fresh burst after a restart: the slots of the last windows are in the ledger (I5).
                self.keeper
                    .with_state(|state| table.restore(budget, &state.used, now));
            }
        }
        let mut turnstile = Turnstile::new(self.number, BreakerSettings::of(&self.partner), now);
        if self.paused {
            turnstile.pause(now);
        }
        let hosts = RefCell::new(Hosts::new(BreakerSettings::of(&self.partner)));
        let permits = self.config.actors.permits;
        let name: Arc<str> = self.partner.name.as_str().into();
        let gate = PartnerGate::new(
            name.clone(),
            turnstile,
            table,
            self.clock,
            LEAD,
            permits,
            self.cap,
        );
        let sink = HttpSink::try_new_beside(&self.partner, &self.secrets, self.clock, &self.own)
            .map_err(|e| format!("{}: {}", self.partner.name, in_full(&e)))?;
        let port = local(|l| l.port.clone()).ok_or("no port on this arbiter")?;
        let context = PartnerContext {
            name: name.clone(),
            metrics: self.metrics.partner(&name),
            config: Arc::new(self.partner),
            ledger: self.config.ledger.clone(),
            sink,
            port,
            gate,
            hosts,
            memory: self.memory,
            clock: self.clock,
        };
        local(|l| l.partners.insert(name, Rc::new(context)));
        Ok(())
    }
}

/// Counts what the budgets on this arbiter hold now instead of what they held before (I6).
pub fn count_budgets(memory: &MemoryShare) {
    let values = BUDGETS.with(|table| table.borrow().values());
    let now = [values.bytes, values.own, values.classes].map(|n| n as u64);
    memory.books().change_budgets(COUNTED.replace(now), now);
}

/// How a partner stands, as only its arbiter knows.
#[derive(Clone, Debug)]
pub struct PartnerFigures {
    /// Its name.
    pub name: Arc<str>,
    /// Requests on the wire, or about to be.
    pub in_flight: u32,
    /// Attempts that wait for a slot.
    pub waiting: usize,
    /// Why and until when its breaker is not closed, if it is not.
    pub open: Option<(Cause, Time)>,
    /// The same as far as it is worth telling.
    pub left_alone: Option<(Cause, Time)>,
    /// Hosts of its that are left alone, and when the first is tried again.
    pub hosts: (usize, Time),
    /// When its gate is looked at again, if nothing happens before.
    pub ask_at: Time,
    /// Until when messages are deferred whose value of `by` has used its limit up.
    pub deferred_until: Time,
    /// Since when this node lacks what connections to it need.
    pub short_since: Option<Time>,
    /// It asked for no starts before this time; in the past if it did not.
    pub held_until: Time,
    /// Its connections.
    pub connections: SinkStats,
    /// Why the latest connect failed, and how long ago.
    pub connect_failure: Option<(String, std::time::Duration)>,
}

/// How all partners on this arbiter stand.
pub fn figures() -> Vec<PartnerFigures> {
    local(|local| {
        let of = |(name, partner): (&Arc<str>, &Rc<PartnerContext<HttpSink>>)| {
            partner.gate.look(|turnstile| PartnerFigures {
                name: name.clone(),
                in_flight: turnstile.in_use(),
                waiting: turnstile.waiting(),
                left_alone: turnstile.breaker().left_alone(),
                hosts: partner.hosts.borrow().left_alone(partner.clock.now()),
                ask_at: partner.gate.ask_at(),
                deferred_until: turnstile.deferred_until(),
                short_since: partner.gate.short_since(partner.clock.now()),
                open: turnstile
                    .breaker()
                    .is_open()
                    .map(|(cause, _, until)| (cause, until)),
                held_until: turnstile.paused_until(),
                connections: partner.sink.stats(),
                connect_failure: partner.sink.connect_failure(),
            })
        };
        local.partners.iter().map(of).collect()
    })
}
