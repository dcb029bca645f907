//! `doubt`: messages whose delivery is in doubt, parked for an operator (I3).

use super::dead::{Show, give};
use super::filter::{Bulk, List};
use super::{CliError, Exit, Global, listing};
use crate::api::{Confirmed, Order, Query};

/// Arguments of `doubt`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What `doubt` does.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Parked messages, oldest first
    List(List),
    /// One parked message with payload and last answer, hidden unless --raw
    Show(Show),
    /// Send them again with the same Idempotency-Key, though the partner may have taken them
    Resend(Bulk),
    /// Settle them: the partner has taken them, or (--not-taken) has not
    Confirm(Confirm),
}

/// Arguments of `doubt confirm`.
#[derive(Debug, clap::Args)]
pub struct Confirm {
    /// The partner has not taken them: they are sent again, with a new Idempotency-Key
    #[arg(long)]
    pub not_taken: bool,
    /// Which messages.
    #[command(flatten)]
    pub bulk: Bulk,
}

/// Runs the command.
pub fn run(args: Args, global: &Global) -> Result<Exit, CliError> {
    match args.action {
        Action::List(list) => listing::list(
            global,
            &Query::Doubts {
                filter: list.to_api(),
            },
        ),
        Action::Show(show) => listing::show(global, &show.query()),
        Action::Resend(bulk) => give(global, &bulk, |filter| Order::Resend { filter }),
        Action::Confirm(Confirm { not_taken, bulk }) => {
            let outcome = if not_taken {
                Confirmed::NotTaken
            } else {
                Confirmed::Delivered
            };
            give(global, &bulk, |filter| Order::Confirm { filter, outcome })
        }
    }
}
