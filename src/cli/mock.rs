//! `mock`: the stand-in partner used by demo, tests and benchmarks.

use super::{CliError, Exit, Global};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Arguments of `mock`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address to listen on; port 0 takes a free one and prints it
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:18181")]
    pub listen: SocketAddr,
    /// Answer after so long: 5ms, or a range 0ms-5ms
    #[arg(long, value_name = "LATENCY", default_value = "0ms")]
    pub latency: String,
    /// Answer a share of the requests with a status, as 503=0.05; may be given several times
    #[arg(long, value_name = "STATUS=SHARE")]
    pub fail: Vec<String>,
    /// Share of the requests that get no answer at all
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub hang: f64,
    /// Share of the connections reset before the request is read
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub reset_before: f64,
    /// Share of the connections reset after the request was read (and counted)
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub reset_after: f64,
    /// Own rate limit, as 100/s: more gets 429 with Retry-After
    #[arg(long, value_name = "RATE")]
    pub limit: Option<String>,
    /// Apply the same Idempotency-Key once only
    #[arg(long)]
    pub idempotent: bool,
    /// End after so long, as 60s [default: at SIGTERM or SIGINT]
    #[arg(long = "for", value_name = "DURATION", value_parser = super::duration_arg)]
    pub duration: Option<Duration>,
    /// Write the report here as JSON at the end [default: stdout]
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Seed of everything random in it
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub seed: u64,
}

/// Runs the command.
pub fn run(_args: Args, _global: &Global) -> Result<Exit, CliError> {
    Err(CliError::failed("not built yet"))
}
