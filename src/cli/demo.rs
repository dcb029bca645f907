//! `demo`: the whole system on this machine in one go.

use super::{CliError, Exit, Global};
use std::path::PathBuf;

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Keep the data folder and print what to try on it
    #[arg(long)]
    pub keep: bool,
    /// Folder to work in [default: a temporary one]
    #[arg(long, value_name = "FOLDER")]
    pub dir: Option<PathBuf>,
    /// How many messages to make and deliver
    #[arg(long, value_name = "COUNT", default_value_t = 200_000)]
    pub messages: u64,
    /// Seed of everything random in it
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub seed: u64,
}

/// Runs the command.
pub fn run(_args: Args, _global: &Global) -> Result<Exit, CliError> {
    Err(CliError::failed("not built yet"))
}
