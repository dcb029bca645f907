//! `render`: the request a record would become, not sent.

use super::{CliError, Exit, Global};

/// Arguments of `render`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The record's value; - reads it from stdin
    #[arg(value_name = "VALUE")]
    pub value: String,
    /// Topic section that the record is of
    #[arg(long, value_name = "NAME", required_unless_present = "partner")]
    pub topic: Option<String>,
    /// Partner to render for [default: every partner of the topic]
    #[arg(long, value_name = "NAME")]
    pub partner: Option<String>,
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
