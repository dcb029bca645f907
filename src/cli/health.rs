//! `health`: whether the node is alive, or ready, as an exit code: for the probes of a container.
//!
//! The node itself is asked, at its admin port, where `/healthz` and `/readyz` need no token. No answer is "no": unlike other
//! commands this one never looks into the folder of a stopped node.
//!
//! Alive and ready are two questions. Who is not alive is to be started again; who is not ready (a full disk, an order to stop,
//! a start that takes its time) is to be left alone and, where that can be, given nothing to do: a restart would turn what
//! is on the wire into doubts, and mend nothing.

use super::node::is_well;
use super::{CliError, Exit, Global, Out};

/// Arguments of `health`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Whether it takes and delivers, instead of whether a restart would help
    #[arg(long)]
    pub ready: bool,
}

/// Runs the command.
pub fn run(args: &Args, global: &Global) -> Result<Exit, CliError> {
    let (address, health) = is_well(global, args.ready)?;
    let mut out = Out::new(global);
    let word = if args.ready { "ready" } else { "alive" };
    if health.ok {
        out.either(&health, word)?;
        out.finish()?;
        return Ok(Exit::Done);
    }
    if out.is_json() {
        out.object(&health)?;
        out.finish()?;
    }
    Err(CliError::failed(format!("not {word}: {}", health.problems.join("; "))).at(address))
}
