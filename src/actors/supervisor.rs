//! `Supervisor`: the top of the tree.
//!
//! Children: one `LedgerActor`, one `RateLimiterActor` for each partner, one `TopicSupervisor` for each topic. Each
//! is built by a factory, and built again after a wait that doubles when it fails; restarts are counted. When one
//! keeps failing the node ends: a process manager starts it anew, and everything durable is in the log.

use super::fault;
use super::lifeline::{End, Lifeline};
use crate::clock::Clock;
use crate::config::RestartConfig;
use crate::core::restart::{Restart, Restarts};
use crate::telemetry::metrics::Metrics;
use actix::prelude::*;
use std::sync::Arc;
use tokio::sync::mpsc::UnboundedSender;

/// Builds a child; the lifeline belongs into it.
pub type Factory = Box<dyn Fn(Lifeline) + Send>;

/// A child of the supervisor.
pub struct Child {
    /// `ledger`, `limiter`, `topic`: what restarts are counted by.
    pub kind: &'static str,
    /// Its name in logs.
    pub name: String,
    /// How it is built.
    pub build: Factory,
}

impl std::fmt::Debug for Child {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} `{}`", self.kind, self.name)
    }
}

struct Watched {
    child: Child,
    restarts: Restarts,
}

/// See the module.
pub struct Supervisor {
    children: Vec<Watched>,
    restart: RestartConfig,
    clock: Clock,
    metrics: Arc<Metrics>,
    fatal: UnboundedSender<String>,
    stopping: bool,
    lifeline: Lifeline,
}

impl Supervisor {
    /// A supervisor of these children, built in this order. `fatal` is told why the node must end.
    pub fn new(
        children: Vec<Child>,
        restart: RestartConfig,
        clock: Clock,
        metrics: Arc<Metrics>,
        fatal: UnboundedSender<String>,
        lifeline: Lifeline,
    ) -> Self {
        let children = children
            .into_iter()
            .map(|child| Watched {
                child,
                restarts: Restarts::default(),
            })
            .collect();
        Self {
            children,
            restart,
            clock,
            metrics,
            fatal,
            stopping: false,
            lifeline,
        }
    }

    fn build(&self, index: usize, ctx: &mut Context<Self>) {
        let address = ctx.address();
        let lifeline = Lifeline::new(move |end| address.do_send(ChildEnded { index, end }));
        (self.children[index].child.build)(lifeline);
    }
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        (0..self.children.len()).for_each(|index| self.build(index, ctx));
    }
}

#[derive(Message)]
#[rtype(result = "()")]
struct ChildEnded {
    index: usize,
    end: End,
}

impl Handler<ChildEnded> for Supervisor {
    type Result = ();
    fn handle(&mut self, ChildEnded { index, end }: ChildEnded, ctx: &mut Context<Self>) {
        if self.stopping || end == End::Orderly {
            return;
        }
        fault::point("supervisor", &self.children[index].child.name);
        let now = self.clock.now();
        let watched = &mut self.children[index];
        let (kind, name) = (watched.child.kind, &watched.child.name);
        self.metrics.restarted(kind);
        tracing::error!(event = "actor_failed", kind, name, ?end, "an actor failed");
        match watched.restarts.failed(now, &self.restart) {
            Restart::At(when) => {
                ctx.run_later(when.since(now), move |act, ctx| act.build(index, ctx));
            }
            Restart::Escalate => {
                // The receiver is gone only when the node is ending already.
                let _ = self.fatal.send(format!("{kind} `{name}` keeps failing: {end:?}"));
            }
        }
    }
}

/// One child more.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Add(pub Child);

impl Handler<Add> for Supervisor {
    type Result = ();
    fn handle(&mut self, Add(child): Add, ctx: &mut Context<Self>) {
        if self.stopping {
            return;
        }
        self.children.push(Watched {
            child,
            restarts: Restarts::default(),
        });
        self.build(self.children.len() - 1, ctx);
    }
}

/// The node is stopping: nothing is built again.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Stopping;

impl Handler<Stopping> for Supervisor {
    type Result = ();
    fn handle(&mut self, _: Stopping, _: &mut Context<Self>) {
        self.stopping = true;
        self.lifeline.orderly();
    }
}
