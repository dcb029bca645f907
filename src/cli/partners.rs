//! `partners`: list, show, test, pause and resume partners.

use super::{CliError, Exit, Global};

/// Arguments of `partners`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What `partners` does.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Every partner with its state
    List,
    /// One partner in full
    Show {
        /// Partner
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Connect to a partner and tell what was found; nothing is delivered
    Test {
        /// Partner
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Start no request to a partner until it is resumed
    Pause {
        /// Partner
        #[arg(value_name = "NAME")]
        name: String,
        /// Why, for the record
        #[arg(long = "because", value_name = "TEXT")]
        because: Option<String>,
    },
    /// Let a paused partner go on
    Resume {
        /// Partner
        #[arg(value_name = "NAME")]
        name: String,
    },
}

/// Runs the command.
pub fn run(_args: Args, _global: &Global) -> Result<Exit, CliError> {
    Err(CliError::failed("not built yet"))
}
