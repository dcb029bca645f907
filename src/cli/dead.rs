//! `dead`: dead letters.

use super::filter::{Bulk, List};
use super::order::{self, How};
use super::{CliError, Exit, Global, listing};
use crate::api::{self, Order, Query};

/// Arguments of `dead`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What `dead` does.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Dead letters, oldest first
    List(List),
    /// One dead letter with payload and last answer, hidden unless --raw
    Show(Show),
    /// Open a new round for them
    Replay(Bulk),
    /// Give their payloads up; their IDs stay known
    Drop(Bulk),
}

/// Arguments of `dead show` and `doubt show`.
#[derive(Debug, clap::Args)]
pub struct Show {
    /// Message ID
    #[arg(value_name = "ID")]
    pub id: String,
    /// Value and headers as they stand
    #[arg(long)]
    pub raw: bool,
    /// Which, if it is kept for several routes.
    #[command(flatten)]
    pub scope: super::dedup::Scope,
}

impl Show {
    /// The question.
    pub(super) fn query(&self) -> Query {
        Query::Show {
            filter: self.scope.filter(std::slice::from_ref(&self.id)),
            raw: self.raw,
        }
    }
}

/// Runs the command.
pub fn run(args: Args, global: &Global) -> Result<Exit, CliError> {
    match args.action {
        Action::List(list) => listing::list(
            global,
            &Query::Dead {
                filter: list.to_api(),
            },
        ),
        Action::Show(show) => listing::show(global, &show.query()),
        Action::Replay(bulk) => give(global, &bulk, |filter| Order::Replay {
            filter,
            skipped: false,
        }),
        Action::Drop(bulk) => give(global, &bulk, |filter| Order::Drop { filter }),
    }
}

/// A bulk order.
pub(super) fn give(
    global: &Global,
    bulk: &Bulk,
    make: impl FnOnce(api::Filter) -> Order,
) -> Result<Exit, CliError> {
    order::give(global, make(bulk.to_api()?), &How::from(bulk))
}
