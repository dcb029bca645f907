//! `doubt`: messages whose delivery is in doubt, parked for an operator (I3).

use super::filter::{Bulk, Filter};
use super::{CliError, Exit, Global};

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
    /// Parked messages
    List(Filter),
    /// One parked message with payload and history, masked
    Show {
        /// Message ID
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Send them again: the partner has not taken them
    Resend(Bulk),
    /// Mark them delivered: the partner has taken them
    Confirm(Bulk),
}

/// Runs the command.
pub fn run(_args: Args, _global: &Global) -> Result<Exit, CliError> {
    Err(CliError::failed("not built yet"))
}
