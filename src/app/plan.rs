//! From the configuration to what is started: which route goes where.

use crate::actors::context::RouteFigures;
use crate::actors::ledger::InputFigures;
use crate::actors::partition::{PartitionSettings, REST_AFTER, TICK};
use crate::actors::topic::RoutePlan;
use crate::config::{Config, LimitConfig, LimitRef, PartnerConfig, PartnerRef, TopicConfig};
use crate::core::ledger::entry::Used;
use crate::core::limiter;
use crate::core::message_id::{budget_id, route_id};
use crate::core::resolve::{BudgetRule, Rules, Share};
use crate::core::types::RoutePartition;
use crate::core::waits::STANDS_AFTER;
use crate::ledger::keeper::Keeper;
use crate::log::{Log, PartitionId, TopicMeta};
use actix::ArbiterHandle;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Budgets of a partner: hash of the name and limit. An inline one is called after the partner, with a separator
/// that no name can contain.
pub fn budgets<'a>(config: &'a Config, partner: &'a PartnerConfig) -> Vec<(u64, &'a LimitConfig)> {
    let budget = |limit: &'a LimitRef| match limit {
        LimitRef::Named(name) => config.limits.get(name).map(|limit| (budget_id(name), limit)),
        LimitRef::Inline(limit) => Some((budget_id(&format!("partner\0{}", partner.name)), limit)),
    };
    partner.limits.iter().filter_map(budget).collect()
}

/// How many partners draw from a budget.
pub fn drawers(config: &Config, budget: u64) -> usize {
    let draws = |p: &&PartnerConfig| budgets(config, p).iter().any(|b| b.0 == budget);
    config.partners.values().filter(draws).count()
}

/// Bytes for the values of one budget that is split by a field, and of all of them: together a quarter of the node's
/// memory.
pub fn budget_bytes(config: &Config) -> (usize, usize) {
    let all = config
        .partners
        .values()
        .flat_map(|partner| budgets(config, partner));
    let split: BTreeSet<u64> = all.filter(|(_, limit)| limit.by.is_some()).map(|b| b.0).collect();
    if split.is_empty() {
        return (0, 0);
    }
    let quarter = usize::try_from(config.node.memory / 4).unwrap_or(usize::MAX);
    (quarter / split.len(), quarter)
}

/// For how long starts of each budget count, where that is not what the ledger says.
pub fn horizons(config: &Config, known: &BTreeMap<u64, Duration>) -> Vec<Used> {
    let all = config
        .partners
        .values()
        .flat_map(|partner| budgets(config, partner));
    let all: BTreeMap<u64, Used> = all
        .map(|(budget, limit)| (budget, Used::horizon(budget, limiter::horizon(limit))))
        .collect();
    let news = |used: &Used| {
        let known = known.get(&used.draw.budget).map(Duration::as_secs);
        known != Some(used.window.into())
    };
    all.into_values().filter(news).collect()
}

/// Groups of partners that share a budget, each to live on one arbiter.
pub fn groups(config: &Config) -> Vec<Vec<String>> {
    let mut groups: Vec<(Vec<String>, Vec<u64>)> = Vec::new();
    for partner in config.partners.values() {
        let mine: Vec<u64> = budgets(config, partner).into_iter().map(|b| b.0).collect();
        let (same, others): (Vec<_>, Vec<_>) = groups
            .into_iter()
            .partition(|(_, theirs)| theirs.iter().any(|b| mine.contains(b)));
        let mut group = (vec![partner.name.clone()], mine);
        for (names, budgets) in same {
            group.0.extend(names);
            group.1.extend(budgets);
        }
        groups = others;
        groups.push(group);
    }
    groups.into_iter().map(|g| g.0).collect()
}

/// The routes of a topic section: partner, filter, share.
fn routes(config: &Config, topic: &TopicConfig) -> Vec<(String, Option<String>, Share)> {
    let mut routes = Vec::new();
    for deliver in &topic.deliver {
        match &deliver.partner {
            PartnerRef::Named(name) => routes.push((name.clone(), deliver.when.clone(), Share::All)),
            PartnerRef::Field(pointer) => {
                let all: Vec<String> = config.partners.keys().cloned().collect();
                for (i, partner) in all.iter().enumerate() {
                    // One route answers for records that name no partner there is.
                    let unknown = (i == 0).then(|| all.clone());
                    let share = Share::Named {
                        pointer: pointer.clone(),
                        partner: partner.clone(),
                        unknown,
                    };
                    routes.push((partner.clone(), deliver.when.clone(), share));
                }
            }
        }
    }
    routes
}

fn rules_of(
    config: &Config,
    section: &TopicConfig,
    partner: &PartnerConfig,
    when: Option<String>,
    share: Share,
) -> Rules {
    let budgets = budgets(config, partner).into_iter();
    Rules {
        id: section.id.clone(),
        key: section.key.clone(),
        key_missing: section.key_missing,
        id_missing: section.id_missing,
        when,
        share,
        budgets: budgets
            .map(|(budget, limit)| BudgetRule {
                budget,
                by: limit.by.clone(),
            })
            .collect(),
    }
}

/// Partner and rules of each route of a topic section, as a node would carry them out.
pub fn rules(config: &Config, section: &TopicConfig) -> Vec<(String, Rules)> {
    let known = |(partner, when, share): (String, Option<String>, Share)| {
        let settings = config.partners.get(&partner)?;
        let rules = rules_of(config, section, settings, when, share);
        Some((partner, rules))
    };
    routes(config, section).into_iter().filter_map(known).collect()
}

/// Plans of all route partitions of one topic.
pub fn plans(
    config: &Config,
    section: &TopicConfig,
    meta: &TopicMeta,
    arbiters: &BTreeMap<String, ArbiterHandle>,
    log: &Arc<dyn Log>,
    (lane, keeper): (PartitionId, &Arc<Keeper>),
    queue: &mut u32,
) -> Vec<RoutePlan> {
    let mut plans = Vec::new();
    for (partner, when, share) in routes(config, section) {
        let Some((settings, arbiter)) = config.partners.get(&partner).zip(arbiters.get(&partner)) else {
            continue;
        };
        let rules = rules_of(config, section, settings, when, share);
        let route = route_id(&meta.name, meta.id, &partner);
        let ahead = ahead(settings.concurrency, meta.partitions.len(), &rules);
        for (partition, input) in meta.partitions.iter().enumerate() {
            *queue += 1;
            plans.push(RoutePlan {
                at: RoutePartition {
                    route,
                    partition: partition as u32,
                },
                topic: meta.name.as_str().into(),
                topic_id: meta.id,
                fresh: keeper.with_state(|state| !state.routes.contains_key(&route)),
                partner: partner.as_str().into(),
                queue: *queue,
                rules: rules.clone(),
                input: *input,
                arbiter: arbiter.clone(),
                log: log.clone(),
                lane,
                keeper: keeper.clone(),
                settings: PartitionSettings {
                    busy_keys: section.busy_keys.unwrap_or(config.actors.busy_keys),
                    ahead,
                    read_chunk: config.actors.read_chunk,
                    window: config.actors.window,
                    ranges: config.actors.ranges,
                    tick: TICK,
                    position_every: config.ledger.position_every,
                    waiting_after: config.ledger.waiting_after,
                    stands_after: STANDS_AFTER,
                    rest_after: REST_AFTER,
                    backlog: BACKLOG,
                    backlog_bytes: config.node.memory / BACKLOG_SHARE,
                },
                sample: config.logging.sample,
                figures: Arc::new(RouteFigures::default()),
            });
        }
    }
    plans
}

/// Messages of one partition that stand at its partner's gate without a start slot: enough to take a place that
/// frees at once, and each its share of them. Where budgets are split by a field, as many as may be in flight: the
/// first ones may all wait for a budget that is spent.
fn ahead(concurrency: usize, partitions: usize, rules: &Rules) -> usize {
    match rules.budgets.iter().any(|budget| budget.by.is_some()) {
        true => concurrency.max(AHEAD.1),
        false => (concurrency / 2 / partitions.max(1)).clamp(AHEAD.0, AHEAD.1),
    }
}

/// Bounds of that share. Between 16 and 128 the CPU of a delivery grew by 8 %, between 1 and 16 not at all.
const AHEAD: (usize, usize) = (4, 16);

/// What the ledger's duties need to know of these partitions.
pub fn inputs(config: &Config, plans: &[RoutePlan]) -> Vec<InputFigures> {
    let retention = |partner: &str| config.partners.get(partner).and_then(|p| p.retention);
    let input = |plan: &RoutePlan| InputFigures {
        at: plan.at,
        input: plan.input,
        retention: retention(&plan.partner).unwrap_or(config.dedup.retention),
        figures: plan.figures.clone(),
    };
    plans.iter().map(input).collect()
}

/// Entries written and not folded at which reading pauses.
const BACKLOG: u64 = 500_000;
/// And the share of `node.memory` that they may hold: a quarter.
const BACKLOG_SHARE: u64 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partners_that_share_a_budget_live_together() {
        let with = |name: &str, limits: &[&str]| {
            let mut partner = PartnerConfig::new(name, "http://127.0.0.1/");
            partner.limits = limits.iter().map(|l| LimitRef::Named(l.to_string())).collect();
            partner
        };
        let limit = LimitConfig::default();
        let config = Config::for_test("data")
            .with_limit("x", limit.clone())
            .with_limit("y", limit)
            .with_partner(with("a", &["x"]))
            .with_partner(with("b", &["y"]))
            .with_partner(with("c", &["x", "y"]))
            .with_partner(with("d", &[]));
        let mut groups = groups(&config);
        groups.iter_mut().for_each(|g| g.sort());
        groups.sort();
        assert_eq!(groups, [vec!["a", "b", "c"], vec!["d"]]);
    }
}
