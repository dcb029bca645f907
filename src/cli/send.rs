//! `send`: one record into a topic.

use super::{CliError, Exit, Global};

/// Arguments of `send`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The record's value; - reads it from stdin
    #[arg(value_name = "VALUE")]
    pub value: String,
    /// Topic to write to
    #[arg(long, value_name = "NAME")]
    pub topic: String,
    /// The record's key
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// A header of the record; may be given several times
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = super::header_arg)]
    pub headers: Vec<(String, String)>,
}

/// Runs the command.
pub fn run(_args: Args, _global: &Global) -> Result<Exit, CliError> {
    Err(CliError::failed("not built yet"))
}
