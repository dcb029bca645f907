//! `init`: a small actors.toml to start from.

use super::{CliError, Exit, Global};

/// Arguments of `init`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address that the partner takes requests at
    #[arg(long = "http", value_name = "URL")]
    pub url: String,
    /// What the partner allows, as 50/s; may be given several times: all hold at once
    #[arg(long = "limit", value_name = "RATE")]
    pub limits: Vec<String>,
    /// Name of the topic
    #[arg(long, value_name = "NAME", default_value = "requests")]
    pub topic: String,
    /// Write over a file that is there
    #[arg(long)]
    pub force: bool,
}

/// Runs the command.
pub fn run(_args: Args, _global: &Global) -> Result<Exit, CliError> {
    Err(CliError::failed("not built yet"))
}
