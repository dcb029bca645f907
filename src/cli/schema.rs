//! `schema`: the JSON Schema of `actors.toml`, for editors.

use super::{CliError, Exit, Global, Out};
use crate::config::pages;

/// Arguments of `schema`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Prints the schema.
pub fn run(_: Args, global: &Global) -> Result<Exit, CliError> {
    let mut out = Out::new(global);
    out.line(format!("{:#}", pages::schema()))?;
    out.finish()?;
    Ok(Exit::Done)
}
