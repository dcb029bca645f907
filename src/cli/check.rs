//! `check`: every mistake in the configuration at once, and the effective configuration.

use super::{CliError, Exit, Global};

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also try to connect to every partner; nothing is sent
    #[arg(long)]
    pub connect: bool,
    /// Show the effective configuration: every key with its value and where it comes from, secrets masked
    #[arg(long)]
    pub effective: bool,
}

/// Runs the command.
pub fn run(_args: Args, _global: &Global) -> Result<Exit, CliError> {
    Err(CliError::failed("not built yet"))
}
