//! Stops a route whose messages die one after the other: a changed field at the partner must not turn a whole
//! topic into dead letters.
//!
//! Counted are dead messages in a row of one route on this node, whatever the reason (refused, too old, no request
//! could be made of it). A delivered message ends the row; parked and skipped ones and duplicates say nothing. The
//! stop is written into the ledger by the caller, and lasts over restarts until an operator resumes the route. The
//! row itself is not kept over a restart.

/// The guard of one route.
#[derive(Clone, Debug)]
pub struct FloodGuard {
    limit: u32,
    in_a_row: u32,
    /// Refusals of which it is not known yet whether they are their message's own.
    undecided: u32,
    stopped: Option<Stop>,
}

/// Why a route is stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Dead in a row.
    pub dead: u32,
    /// The reason of the last of them.
    pub reason: String,
}

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "flood: {} dead in a row, the last one: {}",
            self.dead, self.reason
        )
    }
}

impl FloodGuard {
    /// A guard that stops after `limit` dead in a row; 0: never.
    pub fn new(limit: u32) -> Self {
        Self {
            limit,
            in_a_row: 0,
            undecided: 0,
            stopped: None,
        }
    }

    /// A guard as an earlier life left it: standing for this reason, or not.
    pub fn restored(limit: u32, stopped: Option<String>) -> Self {
        Self {
            stopped: stopped.map(|reason| Stop { dead: limit, reason }),
            ..Self::new(limit)
        }
    }

    /// A message was refused, and in a moment it will be known whether the refusal is its own. True: its place can go
    /// to another message meanwhile, and the caller tells with [`FloodGuard::decided`] when it is known. Not where the row
    /// nears its end: what starts before these are counted would die beyond the limit.
    #[must_use]
    pub fn undecided(&mut self) -> bool {
        let far = self.limit == 0 || self.in_a_row.saturating_add(self.undecided) < self.limit / 2;
        self.undecided += u32::from(far);
        far
    }

    /// What a refusal means is known.
    pub fn decided(&mut self) {
        self.undecided = self.undecided.saturating_sub(1);
    }

    /// A message was delivered.
    #[inline]
    pub fn delivered(&mut self) {
        self.in_a_row = 0;
    }

    /// A message became a dead letter. Returns the stop if it is this one that brings it about.
    pub fn dead(&mut self, reason: &str) -> Option<&Stop> {
        self.in_a_row = self.in_a_row.saturating_add(1);
        if self.limit == 0 || self.in_a_row < self.limit || self.stopped.is_some() {
            return None;
        }
        self.stopped = Some(Stop {
            dead: self.in_a_row,
            reason: reason.to_owned(),
        });
        self.stopped.as_ref()
    }

    /// Why the route is stopped, if it is.
    pub fn stopped(&self) -> Option<&Stop> {
        self.stopped.as_ref()
    }

    /// The route must stand, for this reason.
    pub fn stop(&mut self, reason: &str) {
        self.stopped = Some(Stop {
            dead: self.in_a_row,
            reason: reason.to_owned(),
        });
    }

    /// An operator lets the route go on; the row begins anew.
    pub fn resume(&mut self) {
        self.stopped = None;
        self.in_a_row = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_its_end_a_row_gives_no_places_away() {
        let mut guard = FloodGuard::new(6);
        assert_eq!(
            [guard.undecided(), guard.undecided(), guard.undecided()],
            [true; 3]
        );
        assert!(!guard.undecided(), "three may become half of the row");
        guard.decided();
        assert!(guard.undecided());
        for _ in 0..3 {
            guard.decided();
            assert_eq!(guard.dead("refused"), None);
        }
        assert!(!guard.undecided());
        guard.delivered();
        assert!(guard.undecided());
        let mut none = FloodGuard::new(0);
        assert!((0..1_000).all(|_| none.undecided()));
    }

    #[test]
    fn a_row_of_dead_stops_once_and_a_delivery_ends_the_row() {
        let mut guard = FloodGuard::new(3);
        assert_eq!(guard.dead("a"), None);
        assert_eq!(guard.dead("b"), None);
        guard.delivered();
        assert_eq!(guard.dead("c"), None);
        assert_eq!(guard.dead("d"), None);
        let stop = guard.dead("refused: 422").cloned().unwrap();
        assert_eq!(
            stop.to_string(),
            "flood: 3 dead in a row, the last one: refused: 422"
        );
        // What was in flight still comes in, without a second stop; nor does a late delivery undo it.
        assert_eq!(guard.dead("e"), None);
        guard.delivered();
        assert_eq!(guard.stopped(), Some(&stop));
        guard.resume();
        assert_eq!(guard.stopped(), None);
        assert_eq!(guard.dead("f"), None);
    }

    #[test]
    fn zero_never_stops() {
        let mut guard = FloodGuard::new(0);
        assert!((0..10_000).all(|_| guard.dead("x").is_none()));
    }
}
