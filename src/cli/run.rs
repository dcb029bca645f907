//! `run`: a node.

use super::{CliError, Exit, Global, Out};
use crate::app;
use crate::telemetry::text::counted;
use serde::Serialize;
use std::time::Duration;

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// End once nothing waits, with a summary; exit code 3 if messages are dead or parked, 1 if it was told to stop before. Without this option: 3 if a stop left requests in doubt
    #[arg(long)]
    pub until_drained: bool,
    /// With --until-drained: give up after so long, as 2h; exit code 4
    #[arg(long, value_name = "DURATION", value_parser = super::duration_arg, requires = "until_drained")]
    pub timeout: Option<Duration>,
}

/// `--json`: what a run with `--until-drained` came to.
#[derive(Serialize)]
struct Done<'a> {
    /// How it ended, in words: drained, timed out, stopped …
    ended: &'a str,
    delivered: u64,
    dead: u64,
    parked: u64,
    in_doubt: u64,
    hints: &'a [String],
}

/// Runs the command.
pub fn run(args: Args, global: &Global) -> Result<Exit, CliError> {
    let loaded = global.load()?;
    let files = global.clone();
    let again = move || {
        let loaded = files.load().map_err(|e| e.in_full())?;
        Ok(loaded.config)
    };
    let secrets = loaded.secret_sources().map_err(CliError::configuration)?;
    let token = loaded
        .token()
        .map_err(|e| CliError::failed("cannot read the token of the admin port").caused_by(e))?;
    let config = loaded.config;
    let logging = crate::telemetry::logging::start(&config.logging, &config.node.id)
        .map_err(|e| CliError::failed("cannot set up logging").caused_by(e))?;
    let options = app::RunOptions {
        until_drained: args.until_drained,
        timeout: args.timeout,
    };
    let parts = app::NodeParts {
        config,
        files: global.files(),
        again: Some(Box::new(again)),
        secrets,
        token,
        logging: Some(logging),
    };
    let summary = app::run(parts, options).map_err(|e| CliError::failed("the node failed").caused_by(e))?;
    if args.until_drained {
        let word = match summary.ended {
            app::Ended::Drained => "drained",
            app::Ended::TimedOut => "timed out",
            app::Ended::Told => "stopped before everything was drained",
        };
        let mut out = Out::new(global);
        out.either(
            &Done {
                ended: word,
                delivered: summary.delivered,
                dead: summary.dead,
                parked: summary.parked,
                in_doubt: summary.in_doubt,
                hints: &summary.hints,
            },
            format_args!(
                "{word}: {} delivered, {} dead, {} parked",
                summary.delivered, summary.dead, summary.parked
            ),
        )?;
        out.finish()?;
    }
    if summary.in_doubt > 0 {
        eprintln!(
            "in doubt: the outcome of {} is not known; the next start decides by each partner's doubt policy",
            counted(summary.in_doubt, "request")
        );
    }
    if args.until_drained {
        summary.hints.iter().for_each(|hint| eprintln!("hint: {hint}"));
    }
    Ok(match summary.ended {
        app::Ended::TimedOut => Exit::TimedOut,
        // Whoever runs a batch must not take a stop for its end.
        app::Ended::Told if args.until_drained => Exit::Failed,
        app::Ended::Drained if summary.dead + summary.parked > 0 => Exit::Incomplete,
        // An orderly stop leaves nothing in doubt; this one did.
        app::Ended::Told if summary.in_doubt > 0 => Exit::Incomplete,
        app::Ended::Told | app::Ended::Drained => Exit::Done,
    })
}
