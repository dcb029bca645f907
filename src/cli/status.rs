//! `status`: lag by count and age, owners, limits, breakers, ETA.

use super::{CliError, Exit, Global};

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this topic
    #[arg(long, value_name = "NAME")]
    pub topic: Option<String>,
    /// Only this partner
    #[arg(long, value_name = "NAME")]
    pub partner: Option<String>,
}

/// Runs the command.
pub fn run(_args: Args, _global: &Global) -> Result<Exit, CliError> {
    Err(CliError::failed("not built yet"))
}
