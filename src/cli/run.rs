//! `run`: a node.

use super::{CliError, Exit, Global};
use std::time::Duration;

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// End once nothing waits, with a summary; exit code 3 if messages are dead or parked
    #[arg(long)]
    pub until_drained: bool,
    /// With --until-drained: give up after so long, as 2h; exit code 4
    #[arg(long, value_name = "DURATION", value_parser = super::duration_arg, requires = "until_drained")]
    pub timeout: Option<Duration>,
}

/// Runs the command.
pub fn run(_args: Args, _global: &Global) -> Result<Exit, CliError> {
    Err(CliError::failed("not built yet"))
}
