//! `dedup`: the store of delivered IDs.

use super::{CliError, Exit, Global};
use std::path::PathBuf;

/// Arguments of `dedup`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// Where an ID is looked for.
#[derive(Clone, Debug, clap::Args)]
pub struct Scope {
    /// Partner
    #[arg(long, value_name = "NAME")]
    pub partner: Option<String>,
    /// Topic
    #[arg(long, value_name = "NAME")]
    pub topic: Option<String>,
    /// Partition
    #[arg(long, value_name = "NUMBER")]
    pub partition: Option<u32>,
}

/// What `dedup` does.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Buckets, IDs, bytes, expiry
    Stats,
    /// What the store knows of an ID
    Get {
        /// Message ID
        #[arg(value_name = "ID")]
        id: String,
        /// Where to look.
        #[command(flatten)]
        scope: Scope,
    },
    /// IDs, oldest bucket first
    List {
        /// Where to look.
        #[command(flatten)]
        scope: Scope,
        /// At most so many
        #[arg(long, value_name = "COUNT", default_value_t = 1_000)]
        limit: u64,
    },
    /// Write all IDs to a file, as JSON lines
    Export {
        /// File to write; - is stdout
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Which IDs.
        #[command(flatten)]
        scope: Scope,
    },
    /// Take IDs from an exported file: they count as finished from then on
    Import {
        /// File to read; - is stdin
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Only count what would be taken in
        #[arg(long)]
        dry_run: bool,
    },
    /// Forget an ID: the same message would be sent again
    Forget {
        /// Message ID
        #[arg(value_name = "ID")]
        id: String,
        /// Where.
        #[command(flatten)]
        scope: Scope,
        /// Why, for the record
        #[arg(long = "because", value_name = "TEXT")]
        because: Option<String>,
        /// Only tell what would be forgotten
        #[arg(long)]
        dry_run: bool,
    },
    /// Mark an ID as delivered: the message will not be sent
    Mark {
        /// Message ID
        #[arg(value_name = "ID")]
        id: String,
        /// Where.
        #[command(flatten)]
        scope: Scope,
        /// Why, for the record
        #[arg(long = "because", value_name = "TEXT")]
        because: Option<String>,
        /// Only tell what would be marked
        #[arg(long)]
        dry_run: bool,
    },
}

/// Runs the command.
pub fn run(_args: Args, _global: &Global) -> Result<Exit, CliError> {
    Err(CliError::failed("not built yet"))
}
