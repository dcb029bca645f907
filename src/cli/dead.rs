//! `dead`: dead letters.

use super::filter::{Bulk, Filter};
use super::{CliError, Exit, Global};

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
    /// Dead letters
    List(Filter),
    /// One dead letter with payload and last answer, masked
    Show {
        /// Message ID
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Open a new round for them
    Replay(Bulk),
    /// Give their payloads up; their IDs stay known
    Drop(Bulk),
}

/// Runs the command.
pub fn run(_args: Args, _global: &Global) -> Result<Exit, CliError> {
    Err(CliError::failed("not built yet"))
}
