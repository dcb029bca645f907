//! `skip`: rules that finish a key's or an ID's records without sending them.

use super::{CliError, Exit, Global};
use std::time::Duration;

/// Arguments of `skip`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What `skip` does.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Add a rule
    Add(Add),
    /// Rules, with what each has skipped
    List,
    /// Take a rule back; what it skipped stays skipped
    Remove {
        /// Number of the rule, from `skip list`
        #[arg(value_name = "RULE")]
        rule: u64,
    },
}

/// Arguments of `skip add`.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["key", "id"])))]
pub struct Add {
    /// Records with exactly this key
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// The message with exactly this ID
    #[arg(long, value_name = "ID")]
    pub id: Option<String>,
    /// Only of this topic
    #[arg(long, value_name = "NAME")]
    pub topic: Option<String>,
    /// Only for this partner
    #[arg(long, value_name = "NAME")]
    pub partner: Option<String>,
    /// Why, for the record
    #[arg(long = "because", value_name = "TEXT")]
    pub because: String,
    /// The rule ends after so long, as 24h
    #[arg(long, value_name = "DURATION", value_parser = super::duration_arg)]
    pub expires: Option<Duration>,
}

/// Runs the command.
pub fn run(_args: Args, _global: &Global) -> Result<Exit, CliError> {
    Err(CliError::failed("not built yet"))
}
