//! The key actors of one partition: who is at work, who is free.
//!
//! An actor whose key has nothing more serves the next key that needs one; the one freed last goes first, for its
//! memory is still near. (Making and dropping an actor for every delivery costs eight allocations, 0.5 µs.) Some stay
//! while there is nothing to do, the rest go.

use super::super::context::RouteContext;
use super::super::subpartition::{SubpartitionActor, Work, WorkEnded};
use crate::sink::Sink;
use actix::dev::SendError;
use actix::prelude::*;
use std::rc::Rc;

/// Free actors that are kept.
const FREE_KEPT: usize = 64;

/// See the module.
pub struct Crew<S: Sink> {
    members: Vec<Option<Addr<SubpartitionActor<S>>>>,
    /// Numbers of living members without work; the one freed last at the end.
    free: Vec<u32>,
    /// Numbers that nobody has.
    vacant: Vec<u32>,
}

impl<S: Sink> Default for Crew<S> {
    /// Nobody yet.
    fn default() -> Self {
        Self {
            members: Vec::new(),
            free: Vec::new(),
            vacant: Vec::new(),
        }
    }
}

impl<S: Sink> Crew<S> {
    /// Gives the work to a free member, or to a new one.
    pub fn assign(&mut self, mut work: Work, route: &Rc<RouteContext<S>>, parent: &Rc<Recipient<WorkEnded>>) {
        loop {
            let number = self.free.pop().unwrap_or_else(|| self.hire(route, parent));
            let Some(Some(member)) = self.members.get(number as usize) else {
                continue;
            };
            match member.try_send(work) {
                Ok(()) => return,
                // It died without a word, or holds a message that was not counted: another one has to do it.
                Err(SendError::Closed(back) | SendError::Full(back)) => work = back,
            }
            self.gone(number);
        }
    }

    fn hire(&mut self, route: &Rc<RouteContext<S>>, parent: &Rc<Recipient<WorkEnded>>) -> u32 {
        let number = self.vacant.pop().unwrap_or_else(|| {
            self.members.push(None);
            (self.members.len() - 1) as u32
        });
        let member = SubpartitionActor::new(number, route.clone(), parent.clone()).start();
        self.members[number as usize] = Some(member);
        number
    }

    /// The member has ended its work.
    pub fn freed(&mut self, number: u32) {
        if self.free.len() < FREE_KEPT {
            self.free.push(number);
        } else {
            self.gone(number);
        }
    }

    /// The member has failed, or is not needed.
    pub fn gone(&mut self, number: u32) {
        if let Some(member) = self.members.get_mut(number as usize)
            && member.take().is_some()
        {
            self.vacant.push(number);
        }
    }
}
