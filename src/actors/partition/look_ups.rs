//! Look-ups of a partition: which messages are finished, asked away from the arbiter.
//!
//! A look-up may read from the disk, and open what is closed: meanwhile the partner's other messages go on. What is
//! finished after it began it may not know, so that stays in flight, and what is called delivered stays marked, until
//! its answer is here.

use super::super::blocking;
use super::PartitionActor;
use crate::core::ledger::fold::FinishedState;
use crate::core::types::MessageId;
use crate::sink::Sink;
use actix::prelude::*;

/// Those that are being made: of what was read, of what is read back, of what is copied.
#[derive(Debug, Default)]
pub(super) struct LookUps {
    /// For each the number of the last outcome that was folded when it began.
    began: Vec<u64>,
}

impl LookUps {
    fn begin(&mut self, folded: u64) {
        self.began.push(folded);
    }

    fn end(&mut self, folded: u64) {
        if let Some(place) = self.began.iter().position(|began| *began == folded) {
            self.began.swap_remove(place);
        }
    }

    /// Whether none is being made.
    pub(super) fn is_empty(&self) -> bool {
        self.began.is_empty()
    }

    /// The number of the last outcome that all of them know, if so many are folded now.
    fn know(&self, folded: u64) -> u64 {
        self.began.iter().copied().fold(folded, u64::min)
    }
}

/// Why there is no answer.
pub(super) enum NoAnswer {
    /// The memory cannot be asked now. In words, for people.
    Refused(String),
    /// Whoever asked panicked, or the runtime is ending.
    Ended(tokio::task::JoinError),
}

impl std::fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NoAnswer::Refused(why) => f.write_str(why),
            NoAnswer::Ended(error) => error.fmt(f),
        }
    }
}

impl<S: Sink> PartitionActor<S> {
    /// The number of the last outcome that every look-up knows, also one that is being made.
    pub(super) fn known_to_look_ups(&self) -> u64 {
        self.look_ups.know(self.route.partner.port.folded())
    }

    /// Asks what became of messages; `then` is told, for each in order.
    pub(super) fn ask(
        &mut self,
        ids: Vec<MessageId>,
        ctx: &mut Context<Self>,
        then: impl FnOnce(&mut Self, Result<Vec<Option<FinishedState>>, NoAnswer>, &mut Context<Self>) + 'static,
    ) {
        self.forget_folded();
        if ids.is_empty() {
            return then(self, Ok(Vec::new()), ctx);
        }
        let folded = self.route.partner.port.folded();
        self.look_ups.begin(folded);
        let (remembered, at, known) = (self.remembered.clone(), self.route.at, self.has_rounds);
        let look = async move {
            let look = blocking::off(move || {
                let mut found = Vec::with_capacity(ids.len());
                remembered.look_up(at, &ids, &mut found)?;
                // Behind the look-up: a message that it does not know any more begins a later round.
                Ok::<_, String>((found, known || remembered.has_rounds(at)))
            });
            look.await
        };
        let answered = look.into_actor(self).map(move |result, act, ctx| {
            act.look_ups.end(folded);
            let found = match result {
                Ok(Ok((found, rounds))) => {
                    act.has_rounds |= rounds;
                    Ok(found)
                }
                Ok(Err(why)) => Err(NoAnswer::Refused(why)),
                Err(error) => Err(NoAnswer::Ended(error)),
            };
            then(act, found, ctx);
        });
        ctx.spawn(answered);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_folded_after_the_oldest_look_up_began_is_not_known_to_all() {
        let mut look_ups = LookUps::default();
        assert_eq!(look_ups.know(7), 7);
        look_ups.begin(7);
        look_ups.begin(9);
        look_ups.begin(7);
        assert_eq!(look_ups.know(12), 7);
        look_ups.end(7);
        assert_eq!(look_ups.know(12), 7, "another one began then");
        look_ups.end(7);
        assert_eq!(look_ups.know(12), 9);
        look_ups.end(9);
        assert_eq!((look_ups.know(12), look_ups.is_empty()), (12, true));
    }
}
