//! The configuration, read again while the node runs (SIGHUP).
//!
//! What holds at once, without a start or message lost: rates and bursts of budgets, the concurrency, breaker and guard
//! against doubts of a partner. A budget keeps all starts that it knows, and takes from the ledger what a longer window
//! needs, so a changed limit holds for every window that the change lies in, and opens no second burst (I5). Fewer
//! requests in flight: those above the new number come to their end.
//! Everything else takes a restart, and is said to. A file with a mistake in it changes nothing.
//!
//! After a restart the file holds as it stands; nothing of this is in the ledger.

use super::plan;
use crate::actors::arbiter::{self, local};
use crate::config::{Config, LimitConfig, LimitRef, PartnerConfig};
use crate::core::breaker::BreakerSettings;
use crate::core::ledger::entry::Body;
use crate::ledger::keeper::Keeper;
use actix::ArbiterHandle;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Reads the configuration once more; an error says, in words, what is wrong with it.
pub type Again = Box<dyn Fn() -> Result<Config, String> + Send + Sync>;

/// The configuration that holds now.
pub type Present = Arc<Mutex<Arc<Config>>>;

/// What differs between two configurations, in words.
#[derive(Debug, Default, PartialEq)]
pub struct Changes {
    /// What holds at once.
    pub now: Vec<String>,
    /// What holds after a restart.
    pub at_restart: Vec<String>,
}

/// The configuration that a running node can have: what can change at once from `new`, all else from `old`.
pub fn merged(old: &Config, new: &Config) -> (Config, Changes) {
    let (mut merged, mut changes) = (old.clone(), Changes::default());
    for (name, limit) in &mut merged.limits {
        if let Some(new) = new.limits.get(name) {
            take_limit(limit, new, || format!("limits.{name}"), &mut changes);
        }
    }
    for (name, partner) in &mut merged.partners {
        if let Some(new) = new.partners.get(name) {
            take_partner(partner, new, &mut changes);
        }
    }
    let mut rest = |same: bool, name: String| {
        if !same {
            changes.at_restart.push(name);
        }
    };
    rest(merged.node == new.node, "node".into());
    rest(merged.listen == new.listen, "listen".into());
    rest(merged.log == new.log, "log".into());
    rest(merged.ledger == new.ledger, "ledger".into());
    rest(merged.actors == new.actors, "actors".into());
    rest(merged.logging == new.logging, "logging".into());
    rest(merged.secrets == new.secrets, "secrets".into());
    rest(merged.dedup == new.dedup, "dedup".into());
    let limits = names_that_differ("limits", &merged.limits, &new.limits);
    let partners = names_that_differ("partners", &merged.partners, &new.partners);
    let topics = names_that_differ("topics", &merged.topics, &new.topics);
    changes
        .at_restart
        .extend(limits.into_iter().chain(partners).chain(topics));
    (merged, changes)
}

fn names_that_differ<T: PartialEq>(
    section: &str,
    a: &BTreeMap<String, T>,
    b: &BTreeMap<String, T>,
) -> Vec<String> {
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let differ = names.into_iter().filter(|name| a.get(*name) != b.get(*name));
    differ.map(|name| format!("{section}.{name}")).collect()
}

fn take_limit(limit: &mut LimitConfig, new: &LimitConfig, name: impl Fn() -> String, changes: &mut Changes) {
    // What splits a budget is compiled into the routes.
    if limit.by == new.by && limit != new {
        *limit = new.clone();
        changes.now.push(name());
    }
}

fn take_partner(partner: &mut PartnerConfig, new: &PartnerConfig, changes: &mut Changes) {
    let name = partner.name.clone();
    if partner.limits.len() == new.limits.len() {
        for (limit, new) in partner.limits.iter_mut().zip(&new.limits) {
            if let (LimitRef::Inline(limit), LimitRef::Inline(new)) = (limit, new) {
                take_limit(limit, new, || format!("partners.{name}.limits"), changes);
            }
        }
    }
    if partner.concurrency != new.concurrency {
        partner.concurrency = new.concurrency;
        changes.now.push(format!("partners.{name}.concurrency"));
    }
    if partner.breaker != new.breaker {
        partner.breaker = new.breaker.clone();
        changes.now.push(format!("partners.{name}.breaker"));
    }
    if partner.flood.doubts_in_a_row != new.flood.doubts_in_a_row {
        partner.flood.doubts_in_a_row = new.flood.doubts_in_a_row;
        changes.now.push(format!("partners.{name}.flood.doubts_in_a_row"));
    }
    if partner.flood.probe != new.flood.probe {
        partner.flood.probe = new.flood.probe;
        changes.now.push(format!("partners.{name}.flood.probe"));
    }
}

/// Makes what is merged hold on all arbiters.
async fn apply(config: &Arc<Config>, keeper: &Arc<Keeper>, homes: &[ArbiterHandle]) {
    for home in homes {
        let (config, keeper) = (config.clone(), keeper.clone());
        arbiter::on(home, move || {
            let (partners, port) = local(|l| {
                let partners: Vec<_> = l.partners.values().cloned().collect();
                (partners, l.port.clone())
            });
            // A longer window needs more of what is to come. Each arbiter says it: once more does no harm.
            for used in keeper.with_state(|state| plan::horizons(&config, state.used.horizons())) {
                if let Some(port) = &port {
                    port.outcome(Body::Used(used));
                }
            }
            for context in partners {
                let Some(partner) = config.partners.get(&*context.name) else {
                    continue;
                };
                for (budget, limit) in plan::budgets(&config, partner) {
                    context.gate.with_budgets(|table, now| match table.set(budget, limit, now) {
                        Ok(changed) if changed.needs_history => {
                            keeper.with_state(|state| table.restore(budget, &state.used, now));
                        }
                        Ok(_) => {}
                        Err(error) => tracing::error!(
                            event = "limit_refused", partner = %context.name, %error, "the old limit is kept"
                        ),
                    });
                }
                let settings = BreakerSettings::of(partner);
                context.hosts.borrow_mut().set(settings.clone());
                context.gate.with(|turnstile, _| turnstile.set(settings));
            }
        })
        .await;
    }
}

/// Listens for SIGHUP. From then on one does not end the process: to be called before the node does anything.
pub fn listen() -> Option<Signal> {
    let hangup = signal(SignalKind::hangup());
    if hangup.is_err() {
        tracing::error!(event = "no_signals", "cannot listen for SIGHUP");
    }
    hangup.ok()
}

/// Reads the configuration again at every SIGHUP, for as long as the node runs.
pub async fn on_hangup(
    mut hangup: Signal,
    again: Again,
    present: Present,
    keeper: Arc<Keeper>,
    homes: Vec<ArbiterHandle>,
) {
    let again = Arc::new(again);
    while hangup.recv().await.is_some() {
        let read = again.clone();
        let Ok(read) = tokio::task::spawn_blocking(move || read()).await else {
            continue;
        };
        let new = match read {
            Ok(new) => new,
            Err(error) => {
                tracing::error!(
                    event = "configuration_refused",
                    error,
                    "the configuration that held still holds"
                );
                continue;
            }
        };
        let old = present.lock().clone();
        let (merged, changes) = merged(&old, &new);
        let merged = Arc::new(merged);
        apply(&merged, &keeper, &homes).await;
        *present.lock() = merged;
        tracing::info!(event = "configuration_read", now = ?changes.now, "the configuration was read again");
        if !changes.at_restart.is_empty() {
            let sections = &changes.at_restart;
            tracing::warn!(
                event = "restart_needed",
                ?sections,
                "these have changed too, and hold after a restart"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Rate;
    use std::time::Duration;

    fn rate(count: u64) -> LimitConfig {
        LimitConfig {
            rates: vec![Rate::Sliding {
                count,
                window: Duration::from_secs(1),
            }],
            ..LimitConfig::default()
        }
    }

    fn config(change: impl FnOnce(&mut PartnerConfig)) -> Config {
        let mut partner = PartnerConfig::new("acme", "http://127.0.0.1/");
        partner.limits = vec![LimitRef::Inline(rate(10)), LimitRef::Named("shared".into())];
        change(&mut partner);
        Config::for_test("data")
            .with_limit("shared", rate(20))
            .with_partner(partner)
    }

    #[test]
    fn what_can_change_at_once_is_taken_and_the_rest_is_named() {
        let old = config(|_| {});
        assert_eq!(merged(&old, &old), (old.clone(), Changes::default()));
        let mut new = config(|p| {
            p.limits[0] = LimitRef::Inline(rate(50));
            p.concurrency = 3;
            p.url = "http://127.0.0.2/".into();
        });
        new.limits.insert("shared".into(), rate(5));
        new.node.memory += 1;
        let (merged, changes) = merged(&old, &new);
        let partner = &merged.partners["acme"];
        assert_eq!(
            (partner.concurrency, &partner.limits),
            (3, &new.partners["acme"].limits)
        );
        assert_eq!(
            (&partner.url, &merged.limits),
            (&old.partners["acme"].url, &new.limits)
        );
        assert_eq!(
            changes.now,
            [
                "limits.shared",
                "partners.acme.limits",
                "partners.acme.concurrency"
            ]
        );
        assert_eq!(changes.at_restart, ["node", "partners.acme"]);
    }

    #[test]
    fn what_is_compiled_into_routes_waits_for_a_restart() {
        let old = config(|_| {});
        let new = config(|p| {
            let mut split = rate(50);
            split.by = Some("/app".into());
            p.limits[0] = LimitRef::Inline(split);
        });
        let (same, changes) = merged(&old, &new);
        assert_eq!(same, old);
        assert_eq!(
            (changes.now.len(), changes.at_restart),
            (0, vec!["partners.acme".to_owned()])
        );
        let new = config(|p| drop(p.limits.pop()));
        assert_eq!(merged(&old, &new).1.at_restart, ["partners.acme"]);
    }
}
