//! `completions`: what a shell needs to complete commands and options.

use super::{CliError, Exit, Global, Out};

/// Arguments of `completions`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which shell
    #[arg(value_name = "SHELL")]
    pub shell: clap_complete::Shell,
}

/// Prints the completions.
pub fn run(args: Args, global: &Global) -> Result<Exit, CliError> {
    // Rendered into memory first: the generator panics when it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "sluicegate", &mut script);
    let mut out = Out::new(global);
    out.bytes(&script)?;
    out.finish()?;
    Ok(Exit::Done)
}
