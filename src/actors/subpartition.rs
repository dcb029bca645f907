//! `SubpartitionActor`: one key that has work. Made on demand; when its key has no more, it serves the next one.
//!
//! Parent: `PartitionActor`, which hands it one message at a time and gets one [`WorkEnded`] back (the
//! [crew](super::partition::crew) knows who is free). It holds one
//! future, its attempt. Upholds I4: the next message of the key comes only after the verdict on this one. If it
//! panics the message in hand goes back to the parent, with whether its request may have been written; nothing of it
//! survives a restart of the node but what is in the ledger.

use super::attempt::{After, attempt};
use super::context::{Approaching, RouteContext};
use super::fault;
use super::item::{Item, Task};
use super::lines;
use crate::core::turnstile::Draws;
use crate::sink::Sink;
use actix::prelude::*;
use std::cell::Cell;
use std::rc::Rc;
use tracing::Instrument;

/// A message to be worked on.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Work {
    /// The message.
    pub item: Box<Item>,
    /// The budgets that a start draws from.
    pub draws: Draws,
}

/// The message comes back.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct WorkEnded {
    /// Number of the actor in its crew.
    pub by: u32,
    /// The message.
    pub item: Box<Item>,
    /// How it ended.
    pub end: WorkEnd,
}

/// How the work on a message ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkEnd {
    /// With a verdict; what comes next.
    After(After),
    /// The actor panicked. `written`: the request may have reached the partner.
    Panicked {
        /// See above.
        written: bool,
    },
}

/// See the module.
pub struct SubpartitionActor<S> {
    number: u32,
    route: Rc<RouteContext<S>>,
    parent: Rc<Recipient<WorkEnded>>,
}

impl<S: Sink> SubpartitionActor<S> {
    /// An actor without work yet, with its number in its crew.
    pub fn new(number: u32, route: Rc<RouteContext<S>>, parent: Rc<Recipient<WorkEnded>>) -> Self {
        Self {
            number,
            route,
            parent,
        }
    }
}

impl<S: Sink> Actor for SubpartitionActor<S> {
    type Context = Context<Self>;
}

/// Holds the message in hand; gives it back when it is dropped, so that a panic loses nothing.
struct InHand {
    by: u32,
    item: Option<Box<Item>>,
    written: Cell<bool>,
    parent: Rc<Recipient<WorkEnded>>,
}

impl InHand {
    fn give_back(&mut self, end: WorkEnd) {
        if let Some(item) = self.item.take() {
            // Bounded by the busy keys of the partition: each has at most one message in hand.
            let by = self.by;
            self.parent.do_send(WorkEnded { by, item, end });
        }
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.give_back(WorkEnd::Panicked {
            written: self.written.get(),
        });
    }
}

impl<S: Sink> Handler<Work> for SubpartitionActor<S> {
    type Result = ();

    fn handle(&mut self, work: Work, ctx: &mut Context<Self>) {
        let route = self.route.clone();
        let sends = matches!(work.item.task, Task::Send);
        let mut approaching = sends.then(|| Approaching::of(route.clone()));
        let span = lines::span(&route, &work.item);
        let mut hand = InHand {
            by: self.number,
            item: Some(work.item),
            written: Cell::new(false),
            parent: self.parent.clone(),
        };
        let attempt = async move {
            if let Some(item) = &mut hand.item {
                fault::point("subpartition", &route.topic);
                let after = attempt(&route, item, &work.draws, &mut approaching, &hand.written).await;
                hand.give_back(WorkEnd::After(after));
            }
        };
        match span {
            None => ctx.spawn(attempt.into_actor(self)),
            Some(span) => ctx.spawn(attempt.instrument(span).into_actor(self)),
        };
    }
}
