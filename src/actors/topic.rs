//! `TopicSupervisor`: builds, watches and rebuilds the partitions of one topic, for every route of it.
//!
//! Parent: `Supervisor`. Children: one `PartitionActor` for each route and partition, on the arbiter of its partner.
//! A partition that fails is built again from what the fold knows, after a wait that doubles; before that, the
//! requests of the one before have come to their end and their outcomes are folded, so nothing in hand is lost or
//! sent twice. One that keeps failing makes this actor fail in its turn.

use super::arbiter::{Running, local, on};
use super::context::{Approach, RouteContext, RouteFigures};
use super::fault;
use super::lifeline::{End, Lifeline};
use super::lines::LineRules;
use super::partition::{
    AreYouIdle, Drain, Drained, NodePayloads, PartitionActor, PartitionParts, PartitionSettings, Start, Stop,
    nothing_new,
};
use crate::clock::Clock;
use crate::config::RestartConfig;
use crate::core::flood::FloodGuard;
use crate::core::message_id::IdScope;
use crate::core::resolve::{Resolver, Rules, RulesError, Skips};
use crate::core::restart::{Restart, Restarts};
use crate::core::types::{RoutePartition, TopicId};
use crate::ledger::keeper::Keeper;
use crate::log::{Log, PartitionId};
use crate::sink::http::HttpSink;
use crate::telemetry::metrics::Metrics;
use actix::prelude::*;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// What one partition of one route is built from, again and again.
#[derive(Clone)]
pub struct RoutePlan {
    /// Which.
    pub at: RoutePartition,
    /// The topic's name.
    pub topic: Arc<str>,
    /// Which incarnation of it.
    pub topic_id: TopicId,
    /// The ledger had never met the route when it was planned.
    pub fresh: bool,
    /// The partner's name.
    pub partner: Arc<str>,
    /// Number of its queue at the partner's gate.
    pub queue: u32,
    /// What makes a record a message.
    pub rules: Rules,
    /// The input partition.
    pub input: PartitionId,
    /// Where the partner lives.
    pub arbiter: ArbiterHandle,
    /// The log.
    pub log: Arc<dyn Log>,
    /// The ledger's lane.
    pub lane: PartitionId,
    /// The fold and the store.
    pub keeper: Arc<Keeper>,
    /// Bounds and rhythm.
    pub settings: PartitionSettings,
    /// One message in so many is sampled; 0 is none.
    pub sample: u64,
    /// Figures that others read.
    pub figures: Arc<RouteFigures>,
}

impl RoutePlan {
    /// Compiles the plan's rules.
    ///
    /// # Errors
    /// If the filter cannot be read.
    pub fn resolver(&self) -> Result<Resolver, RulesError> {
        Resolver::try_new(self.scope(), &self.topic, self.at.partition, self.rules.clone())
    }

    fn scope(&self) -> IdScope {
        IdScope::new(&self.topic, self.topic_id, self.at.partition, &self.partner)
    }

    fn lines(&self) -> LineRules {
        LineRules {
            sample: self.sample,
            key: self.rules.key.clone(),
            id: self.rules.id.clone(),
        }
    }
}

/// How often it is looked whether a failed partition's actor is gone, its requests have ended and their outcomes are
/// folded.
const SETTLED_EVERY: Duration = Duration::from_millis(5);

/// See the module.
pub struct TopicSupervisor {
    plans: BTreeMap<RoutePartition, RoutePlan>,
    partitions: BTreeMap<RoutePartition, Addr<PartitionActor<HttpSink>>>,
    restarts: BTreeMap<RoutePartition, Restarts>,
    restart: RestartConfig,
    clock: Clock,
    metrics: Arc<Metrics>,
    stopping: bool,
    lifeline: Lifeline,
}

impl TopicSupervisor {
    /// A supervisor of these partitions.
    pub fn new(
        plans: Vec<RoutePlan>,
        restart: RestartConfig,
        clock: Clock,
        metrics: Arc<Metrics>,
        lifeline: Lifeline,
    ) -> Self {
        Self {
            plans: plans.into_iter().map(|p| (p.at, p)).collect(),
            partitions: BTreeMap::new(),
            restarts: BTreeMap::new(),
            restart,
            clock,
            metrics,
            stopping: false,
            lifeline,
        }
    }

    fn build(&self, at: RoutePartition, ctx: &mut Context<Self>) {
        let Some(plan) = self.plans.get(&at).cloned() else {
            return;
        };
        let parent = ctx.address();
        let arbiter = plan.arbiter.clone();
        arbiter.spawn_fn(move || {
            actix_rt::spawn(start(plan, parent));
        });
    }
}

/// Waits until something holds. False: another start of the partition has begun meanwhile, and goes on in the place of
/// this one, which must touch nothing any more.
async fn until(at: RoutePartition, number: u64, holds: impl Fn() -> bool) -> bool {
    loop {
        let newest = local(|local| local.partitions.get(&at).map(|running| running.start));
        if newest != Some(number) {
            return false;
        }
        if holds() {
            return true;
        }
        tokio::time::sleep(SETTLED_EVERY).await;
    }
}

/// Starts a partition on the present arbiter, once what an earlier one left behind has settled. Starts of one partition
/// may meet, where its parent fails again while it is being built: the newest one goes on, alone.
async fn start(plan: RoutePlan, parent: Addr<TopicSupervisor>) {
    let at = plan.at;
    let number = local(|local| {
        let running = local.partitions.entry(at).or_default();
        running.start += 1;
        // It lives on where it was its parent that failed.
        if let Some(earlier) = running.actor.take() {
            earlier.do_send(Stop);
            running.leaving = Some(earlier);
        }
        running.start
    });
    let is_gone = || local(|local| !local.partitions.get(&at).is_some_and(Running::is_left));
    if !until(at, number, is_gone).await {
        return;
    }
    let ended = parent.clone();
    let lifeline = Lifeline::new(move |end| ended.do_send(PartitionEnded { at, end }));
    let resolver = match plan.resolver() {
        Ok(resolver) => resolver,
        Err(error) => return lifeline.failed(error),
    };
    // What is folded after this reaches the route by its effects: it is there before anything else runs here.
    let (stopped, skips, as_of) = plan.keeper.with_state(|state| {
        let skips = Skips::of(state.skips.values(), &plan.topic, &plan.partner, &plan.scope());
        let stopped = state.stopped.get(&at.route).map(|p| p.reason.clone());
        (stopped, skips, state.next)
    });
    let route = local(|local| {
        let partner = local.partners.get(&plan.partner)?.clone();
        let flood = local.floods.entry(at.route).or_insert_with(|| {
            let limit = partner.config.flood.dead_in_a_row;
            Rc::new(RefCell::new(FloodGuard::restored(limit, stopped)))
        });
        let flood = flood.clone();
        let orders = local.orders.entry(at).or_default().clone();
        orders.set_skips(as_of, Arc::new(skips));
        let context = || {
            Rc::new(RouteContext {
                at,
                topic: plan.topic.clone(),
                scope: plan.scope(),
                queue: plan.queue,
                approach: Approach::new(plan.settings.ahead),
                partner,
                current: Cell::new(0),
                on_wire: RefCell::default(),
                orders,
                doubts: RefCell::default(),
                flood,
                lines: plan.lines(),
                figures: plan.figures.clone(),
            })
        };
        Some(local.routes.entry(at).or_insert_with(context).clone())
    });
    let Some(route) = route else {
        return lifeline.failed("the partner is not on this arbiter");
    };
    // From here on what the earlier one had in hand begins nothing; then what it has begun comes to its end.
    route.current.set(number);
    let port = &route.partner.port;
    port.flush();
    if !until(at, number, || route.on_wire.borrow().is_empty()).await {
        return lifeline.orderly();
    }
    if number > 1 {
        port.outcome(plan.keeper.with_state(|state| nothing_new(state, at)));
        port.flush();
    }
    let last = port.last_outcome();
    if !until(at, number, || port.folded() >= last).await {
        return lifeline.orderly();
    }
    // An order that came meanwhile may have had it overtaken, too.
    route.current.set(number);
    let on_doubt = route.partner.config.on_doubt;
    let start = Start {
        fresh: plan.fresh,
        ..plan.keeper.with_state(|state| Start::of(state, at, on_doubt))
    };
    let parts = PartitionParts {
        route,
        log: plan.log.clone(),
        input: plan.input,
        resolve: Box::new(resolver),
        remembered: plan.keeper.clone(),
        payloads: Arc::new(NodePayloads {
            log: plan.log,
            input: plan.input,
            lane: plan.lane,
            keeper: plan.keeper,
        }),
        start,
        settings: plan.settings,
        lifeline,
    };
    let partition = PartitionActor::new(parts).start();
    // Nothing else has run on this arbiter since it was found to be the newest start.
    local(|local| local.partitions.entry(at).or_default().actor = Some(partition.clone()));
    parent.do_send(PartitionStarted { at, partition });
}

impl Actor for TopicSupervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        let all: Vec<_> = self.plans.keys().copied().collect();
        all.into_iter().for_each(|at| self.build(at, ctx));
    }
}

#[derive(Message)]
#[rtype(result = "()")]
struct PartitionStarted {
    at: RoutePartition,
    partition: Addr<PartitionActor<HttpSink>>,
}

impl Handler<PartitionStarted> for TopicSupervisor {
    type Result = ();
    fn handle(&mut self, started: PartitionStarted, _: &mut Context<Self>) {
        if self.stopping {
            started.partition.do_send(Stop);
        }
        self.partitions.insert(started.at, started.partition);
    }
}

#[derive(Message)]
#[rtype(result = "()")]
struct PartitionEnded {
    at: RoutePartition,
    end: End,
}

impl Handler<PartitionEnded> for TopicSupervisor {
    type Result = ();
    fn handle(&mut self, PartitionEnded { at, end }: PartitionEnded, ctx: &mut Context<Self>) {
        self.partitions.remove(&at);
        if self.stopping || end == End::Orderly {
            return;
        }
        self.metrics.restarted("partition");
        tracing::error!(
            event = "actor_failed",
            kind = "partition",
            partition = at.partition,
            ?end,
            "a partition failed"
        );
        let now = self.clock.now();
        match self.restarts.entry(at).or_default().failed(now, &self.restart) {
            Restart::At(when) => {
                ctx.run_later(when.since(now), move |act, ctx| act.build(at, ctx));
            }
            Restart::Escalate => {
                self.lifeline
                    .failed(format!("partition {} keeps failing: {end:?}", at.partition));
                ctx.stop();
            }
        }
    }
}

/// Stops new attempts of a route's partition that has no actor; answers how many are under way.
fn left_on_wire(at: RoutePartition) -> usize {
    local(|local| {
        let Some(route) = local.routes.get(&at) else {
            return 0;
        };
        route.partner.gate.close();
        route.on_wire.borrow().len()
    })
}

/// Stops intake and new attempts of all partitions; answers what is still in hand.
#[derive(Message)]
#[rtype(result = "Drained")]
pub struct DrainTopic;

impl Handler<DrainTopic> for TopicSupervisor {
    type Result = ResponseFuture<Drained>;
    fn handle(&mut self, _: DrainTopic, _: &mut Context<Self>) -> Self::Result {
        self.stopping = true;
        let partitions = self.partitions.clone();
        let plans: Vec<_> = self.plans.values().map(|p| (p.at, p.arbiter.clone())).collect();
        Box::pin(async move {
            let mut all = Drained {
                in_hand: 0,
                idle: true,
            };
            for (at, arbiter) in plans {
                let drained = match partitions.get(&at) {
                    Some(partition) => partition.send(Drain).await.ok(),
                    None => None,
                };
                let one = match drained {
                    Some(one) => one,
                    // It is being built again: requests of the one before may be on the wire still.
                    None => Drained {
                        in_hand: on(&arbiter, move || left_on_wire(at)).await.unwrap_or(0),
                        idle: false,
                    },
                };
                all = Drained {
                    in_hand: all.in_hand + one.in_hand,
                    idle: all.idle && one.idle,
                };
            }
            all
        })
    }
}

/// Asks whether nothing is left to do in any partition.
#[derive(Message)]
#[rtype(result = "bool")]
pub struct IsTopicIdle;

impl Handler<IsTopicIdle> for TopicSupervisor {
    type Result = ResponseFuture<bool>;
    fn handle(&mut self, _: IsTopicIdle, _: &mut Context<Self>) -> Self::Result {
        if let Some(plan) = self.plans.values().next() {
            fault::point("topic", &plan.topic);
        }
        let all_there = self.partitions.len() == self.plans.len();
        let partitions: Vec<_> = self.partitions.values().cloned().collect();
        Box::pin(async move {
            for partition in partitions {
                if !partition.send(AreYouIdle).await.is_ok_and(|answer| answer.idle) {
                    return false;
                }
            }
            all_there
        })
    }
}

/// Ends all partitions in order, then itself.
#[derive(Message)]
#[rtype(result = "()")]
pub struct StopTopic;

impl Handler<StopTopic> for TopicSupervisor {
    type Result = ResponseActFuture<Self, ()>;
    fn handle(&mut self, _: StopTopic, _: &mut Context<Self>) -> Self::Result {
        self.stopping = true;
        let partitions: Vec<_> = self.partitions.values().cloned().collect();
        let stop = async move {
            for partition in partitions {
                // One that is gone has stopped already.
                let _ = partition.send(Stop).await;
            }
        };
        Box::pin(stop.into_actor(self).map(|(), act, ctx| {
            act.lifeline.orderly();
            ctx.stop();
        }))
    }
}
