//! An answer that says "not taken", on a connection that was used before, and the connection that shows whose answer it
//! is ([`crate::core::stray`]).
//!
//! What shows it may come a little later than the answer. Meanwhile nothing is in flight, so the answer is handed on at
//! once, and the attempt gives its place at the partner free. A kill meanwhile leaves the message in doubt, for its
//! outcome is not in the ledger yet.

use super::pool::{Alone, Turn};
use crate::core::stray::{Patience, Seen, Whose, Why, whose};
use std::time::Duration;

/// See the module.
pub(super) struct Unsettled {
    alone: Alone,
    seen: Seen,
    patience: Patience,
    wait: Duration,
}

impl Unsettled {
    /// Looks at what the kernel knows now: why it is not known whose answer it is, or nothing where it is believed.
    /// `whole`: it was read to its end.
    ///
    /// # Errors
    /// That it is not known yet.
    pub(super) fn begin(
        mut alone: Alone,
        mut seen: Seen,
        whole: bool,
        patience: Patience,
    ) -> Result<Option<Why>, Box<Self>> {
        if whole && !seen.unacknowledged {
            let conn = alone.conn();
            seen.behind = conn.behind();
            seen.closes = !conn.is_open();
        }
        match whose(&seen, &patience) {
            Whose::Wait(wait) => Err(Box::new(Self {
                alone,
                seen,
                patience,
                wait,
            })),
            Whose::Its if !whole => Ok(None),
            its => Ok(end(alone, its)),
        }
    }

    /// Waits: why it is not known whose answer it is, or nothing where it is believed.
    pub(super) async fn settled(mut self) -> Option<Why> {
        self.seen.behind = self.alone.conn().behind_within(self.wait).await;
        end(self.alone, whose(&self.seen, &self.patience))
    }

    /// It is believed without waiting.
    pub(super) fn believe(self) {
        end(self.alone, Whose::Its);
    }

    /// Leave to wait without a place at the partner, as long as not too many do.
    pub(super) fn turn(&self) -> Option<Turn> {
        self.alone.turn()
    }
}

/// Gives the connection back, or up.
fn end(mut alone: Alone, whose: Whose) -> Option<Why> {
    match whose {
        Whose::NotKnown(why) => {
            alone.distrust();
            Some(why)
        }
        Whose::Its | Whose::Wait(_) => {
            alone.done();
            None
        }
    }
}
