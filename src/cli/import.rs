//! `import`: files into a topic, one transaction a file, resumable, never twice.

use super::{CliError, Exit, Global};
use std::path::PathBuf;

/// Arguments of `import`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files; gz and zst are unpacked
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Topic to write to
    #[arg(long, value_name = "NAME")]
    pub topic: String,
    /// Form of the files
    #[arg(long, value_enum, default_value_t = Format::Auto)]
    pub format: Format,
    /// Where the records' keys come from, as json:/user or a CSV column [default: key of the topic section]
    #[arg(long, value_name = "SOURCE")]
    pub key: Option<String>,
    /// File for lines that cannot be read [default: FILE.rejects beside each file]
    #[arg(long, value_name = "FILE")]
    pub rejects: Option<PathBuf>,
    /// End with exit code 1 at the first bad line, and import nothing of its file
    #[arg(long)]
    pub strict: bool,
    /// No progress bar
    #[arg(long)]
    pub quiet: bool,
}

/// Forms of a file to import.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// By the file's name and first line
    Auto,
    /// One JSON value a line
    Jsonl,
    /// CSV with a header line; each row becomes a JSON object
    Csv,
    /// One URL a line
    Urls,
}

/// Runs the command.
pub fn run(_args: Args, _global: &Global) -> Result<Exit, CliError> {
    Err(CliError::failed("not built yet"))
}
