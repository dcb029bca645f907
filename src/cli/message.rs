//! `message ID`: what became of a message, everywhere.

use super::{CliError, Exit, Global};

/// Arguments of `message`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Message ID: as in the record, or its 32 hexadecimal digits
    #[arg(value_name = "ID")]
    pub id: String,
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
