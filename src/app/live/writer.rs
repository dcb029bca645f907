//! The way of an order's entries into the lane, from any thread, and the wait until their effects are carried out.
//!
//! Entries go through a port on the thread where [`LaneWriter`] was opened. One that calls a message delivered goes
//! through the port of the partner's arbiter ([`claim`]): an attempt of the message may be about to begin there.

use crate::actors::effects::{Awaiting, Carried, claim};
use crate::api::ApiError;
use crate::core::ledger::entry::{Action, Body};
use crate::core::types::{MessageId, Offset, RouteId, RoutePartition};
use crate::ledger::lane::{Lane, LanePort};
use actix::ArbiterHandle;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Instant;
use tokio::sync::mpsc;

/// Orders whose entries wait to be written; one order at a time settles, so there is hardly ever more than one.
const WRITES: usize = 16;

/// Tells of an entry, by its place in its order, at which offset it is; or that it was not appended, since an attempt
/// of its message is under way.
type Placed = std::sync::mpsc::Sender<(usize, Option<Offset>)>;

type Write = (Vec<(usize, Body)>, Placed);

/// A way into the lane from any thread.
#[derive(Clone, Debug)]
pub struct LaneWriter {
    writes: mpsc::Sender<Write>,
    carried: Arc<Carried>,
}

/// Entries on their way into the lane, and through it.
pub(super) struct Writing {
    /// Not placed yet.
    left: usize,
    placed: std::sync::mpsc::Receiver<(usize, Option<Offset>)>,
    offsets: Vec<(usize, Offset)>,
    pub(super) refused: Vec<usize>,
    awaiting: Awaiting,
}

/// Why entries are not through.
pub(super) enum NotYet {
    /// They will be.
    Late,
    /// The node ends first.
    Ending,
}

impl Writing {
    /// Waits, blocking, until all are folded and their effects carried out.
    pub(super) fn finish(&mut self, until: Instant) -> Result<(), NotYet> {
        while self.left > 0 {
            let wait = until.saturating_duration_since(Instant::now());
            match self.placed.recv_timeout(wait) {
                Ok((entry, Some(offset))) => self.offsets.push((entry, offset)),
                Ok((entry, None)) => self.refused.push(entry),
                Err(RecvTimeoutError::Timeout) => return Err(NotYet::Late),
                Err(RecvTimeoutError::Disconnected) => return Err(NotYet::Ending),
            }
            self.left -= 1;
        }
        while let Some((entry, offset)) = self.offsets.last().copied() {
            if self.awaiting.wait(offset, until).ok_or(NotYet::Late)? {
                self.refused.push(entry);
            }
            self.offsets.pop();
        }
        Ok(())
    }
}

pub(super) fn ending() -> ApiError {
    ApiError::Unavailable("the node is stopping".into())
}

impl LaneWriter {
    /// Opens a port of the lane on the present arbiter (or system) thread. It closes with the last clone.
    pub fn open(lane: Lane, carried: Arc<Carried>) -> Self {
        let (writes, mut receiver) = mpsc::channel::<Write>(WRITES);
        actix_rt::spawn(async move {
            let port = LanePort::open(lane);
            while let Some((bodies, placed)) = receiver.recv().await {
                for (place, body) in bodies {
                    let placed = placed.clone();
                    // The asker may have gone away; the entries stand all the same.
                    let told = move |offset| {
                        let _ = placed.send((place, Some(offset)));
                    };
                    port.outcome_told(body, Box::new(told));
                }
                port.flush();
            }
        });
        Self { writes, carried }
    }

    /// Appends entries. One that calls a message delivered which the ledger does not know goes in on its partner's
    /// arbiter, where `home_of` says there is one: an attempt of it may be about to begin there.
    pub(super) fn begin(
        &self,
        entries: Vec<Body>,
        home_of: impl Fn(RouteId) -> Option<ArbiterHandle>,
    ) -> Result<Writing, ApiError> {
        let (placed, receiver) = std::sync::mpsc::channel();
        let writing = Writing {
            left: entries.len(),
            placed: receiver,
            offsets: Vec::new(),
            refused: Vec::new(),
            awaiting: self.carried.awaiting(),
        };
        let (mut marks, mut others) = (BTreeMap::new(), Vec::new());
        for (place, body) in entries.into_iter().enumerate() {
            match marked(&body) {
                Some((at, id)) => {
                    let of_route: &mut Vec<_> = marks.entry(at.route).or_default();
                    of_route.push((place, at, id, body));
                }
                None => others.push((place, body)),
            }
        }
        for (route, marks) in marks {
            let Some(home) = home_of(route) else {
                others.extend(marks.into_iter().map(|(place, _, _, body)| (place, body)));
                continue;
            };
            let placed = placed.clone();
            home.spawn_fn(move || {
                for (place, at, id, body) in marks {
                    let told = placed.clone();
                    let told = Box::new(move |offset| {
                        let _ = told.send((place, Some(offset)));
                    });
                    if !claim(at, id, body, told) {
                        // Nobody listens any more only if the asker has left.
                        let _ = placed.send((place, None));
                    }
                }
            });
        }
        if !others.is_empty() {
            self.writes
                .blocking_send((others, placed))
                .map_err(|_| ending())?;
        }
        Ok(writing)
    }
}

/// The message that an entry calls delivered.
fn marked(body: &Body) -> Option<(RoutePartition, MessageId)> {
    let Body::Command(command) = body else {
        return None;
    };
    match command.action {
        Action::Mark { at, id, .. } => Some((at, id)),
        _ => None,
    }
}
