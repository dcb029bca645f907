//! `version`: what this binary is.

use super::{CliError, Exit, Global, Out};
use serde::Serialize;

/// Arguments of `version`.
#[derive(Debug, clap::Args)]
pub struct Args {}

#[derive(Serialize)]
struct Version {
    version: &'static str,
    profile: &'static str,
    target: String,
}

/// Prints version, profile and target.
pub fn run(_args: Args, global: &Global) -> Result<Exit, CliError> {
    let version = Version {
        version: env!("CARGO_PKG_VERSION"),
        profile: if cfg!(debug_assertions) {
            "debug"
        } else {
            "release"
        },
        target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
    };
    let text = format!(
        "sluicegate {} ({}, {})",
        version.version, version.target, version.profile
    );
    let mut out = Out::new(global);
    out.either(&version, text)?;
    out.finish()?;
    Ok(Exit::Done)
}
