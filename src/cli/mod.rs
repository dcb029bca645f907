//! The command line: one file per command, and here what all share.
//!
//! Data goes to stdout ([`Out`]), messages to stderr. Every error has one form:
//!
//! ```text
//! error: what went wrong
//!   where
//!   how to mend it
//! ```
//!
//! Exit codes are [`Exit`]. A reader of stdout that goes away (`| head`) is no error. Neighbours: [`crate::config`]
//! for settings and environment, [`crate::app`] for a node, the admin API for a node that runs.

pub mod check;
pub mod completions;
pub mod dead;
pub mod dedup;
pub mod demo;
pub mod door;
pub mod doubt;
pub mod error;
pub mod filter;
pub mod health;
pub mod import;
pub mod init;
mod listing;
pub mod man;
pub mod message;
pub mod mock;
pub mod node;
pub mod order;
pub mod out;
pub mod partners;
pub mod reference;
pub mod render;
pub mod run;
pub mod schema;
pub mod send;
pub mod skip;
pub mod status;
pub mod table;
pub mod version;

use crate::config::{self, Loaded, Secret};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
pub use error::{CliError, Exit};
pub use out::Out;
use std::path::PathBuf;

/// Delivers each record of a topic to the partner it is meant for, exactly once, never faster than the partner
/// allows.
#[derive(Debug, Parser)]
#[command(
    name = "sluicegate",
    version,
    max_term_width = 100,
    disable_help_subcommand = true
)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// Configuration; several times: later files win, key by key [default: ./actors.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Vec<PathBuf>,
    /// Admin address of the node to talk to, as 127.0.0.1:7070 [default: listen.admin of the configuration]
    #[arg(long, global = true, value_name = "ADDRESS", env = "SLUICEGATE_ADMIN")]
    pub admin: Option<String>,
    /// Data as JSON: a list one object a line, a single thing one object
    #[arg(long, global = true)]
    pub json: bool,
    /// Log filter, as debug or sluicegate=debug,warn [default: logging.level of the configuration]
    #[arg(long, global = true, value_name = "FILTER")]
    pub log_level: Option<String>,
}

impl Global {
    /// The configuration files to load: those given, else `./actors.toml`.
    pub fn files(&self) -> Vec<PathBuf> {
        if self.config.is_empty() {
            vec![PathBuf::from("actors.toml")]
        } else {
            self.config.clone()
        }
    }

    /// Loads the configuration; `--log-level` goes over `logging.level`. Warnings are left to the caller.
    ///
    /// # Errors
    /// Every mistake in it (exit code 2).
    pub fn load(&self) -> Result<Loaded, CliError> {
        let level = self
            .log_level
            .iter()
            .map(|level| ("SLUICEGATE__LOGGING__LEVEL".to_owned(), level.clone()));
        config::load(&self.files(), config::process_env().chain(level)).map_err(CliError::configuration)
    }

    /// Address of the node's admin port, as `127.0.0.1:7070`: from `--admin`, else `SLUICEGATE_ADMIN`, else the
    /// configuration.
    ///
    /// # Errors
    /// An address that is none, or mistakes in the configuration where that is asked.
    pub fn admin_address(&self) -> Result<String, CliError> {
        let Some(given) = &self.admin else {
            return Ok(self.load()?.config.listen.admin.to_string());
        };
        let address = given
            .strip_prefix("http://")
            .unwrap_or(given)
            .trim_end_matches('/');
        match address.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(address.to_owned()),
            _ => Err(CliError::usage(format!("not an admin address: {given}"))
                .mend("write --admin 127.0.0.1:7070, or set SLUICEGATE_ADMIN")),
        }
    }

    /// Token for the admin port: `SLUICEGATE_TOKEN`, else what `listen.token` of the configuration names, if there is
    /// a configuration and the token can be had here.
    pub fn token(&self) -> Option<Secret> {
        let given =
            config::process_env().find(|(name, value)| name == "SLUICEGATE_TOKEN" && !value.is_empty());
        match given {
            Some((_, token)) => Some(Secret::new(token)),
            None => self.load().ok().and_then(|loaded| loaded.token().ok().flatten()),
        }
    }
}

/// Every command. The order and the groups of the help page are in [`GROUPS`].
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a node
    Run(run::Args),
    /// Bring files into a topic: one transaction a file, resumable, never twice
    Import(import::Args),
    /// Put one record into a topic
    Send(send::Args),
    /// Lag, owners, limits, breakers, ETA
    Status(status::Args),
    /// Whether the node is alive, or ready: for probes
    Health(health::Args),
    /// What became of a message, everywhere
    Message(message::Args),
    /// List, show, test, pause and resume partners; forget routes
    Partners(partners::Args),
    /// Look into the store of delivered IDs, and change it
    Dedup(dedup::Args),
    /// Messages whose delivery is in doubt
    Doubt(doubt::Args),
    /// Dead letters: list, show, replay, drop
    Dead(dead::Args),
    /// Skip rules for a key or an ID, with reason and expiry
    Skip(skip::Args),
    /// Write a small actors.toml to start from
    Init(init::Args),
    /// Check the configuration and show the effective one
    Check(check::Args),
    /// Show the request a record would become, without sending it
    Render(render::Args),
    /// Print the JSON Schema of actors.toml, by which editors complete and explain its keys
    Schema(schema::Args),
    /// The whole system on this machine in one go
    Demo(demo::Args),
    /// The stand-in partner used by demo, tests and benchmarks
    Mock(Box<mock::Args>),
    /// Print shell completions
    Completions(completions::Args),
    /// Print the manual page
    Man(man::Args),
    /// Print version and build
    Version(version::Args),
}

/// The commands by what one wants to do, in the order of the help page.
pub const GROUPS: [(&str, &[&str]); 5] = [
    ("Deliver", &["run", "import", "send"]),
    ("Inspect", &["status", "health", "message", "partners", "dedup"]),
    ("Operate", &["doubt", "dead", "skip"]),
    ("Configure", &["init", "check", "render", "schema"]),
    ("Try and test", &["demo", "mock", "completions", "man", "version"]),
];

/// The whole command line as clap knows it, help page included.
pub fn command() -> clap::Command {
    let command = Cli::command();
    let page = grouped_help(&command);
    command.help_template(page)
}

fn grouped_help(command: &clap::Command) -> String {
    let mut page = String::from("{about}\n\nUsage: {usage}\n");
    for (group, names) in GROUPS {
        page.push_str(&format!("\n{group}:\n"));
        for name in names {
            let about = command.find_subcommand(name).and_then(clap::Command::get_about);
            page.push_str(&format!(
                "  {name:<12} {}\n",
                about.map(ToString::to_string).unwrap_or_default()
            ));
        }
    }
    page.push_str("\n{options}\n\nA command in detail: sluicegate COMMAND --help\n");
    page.push_str("Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 drained with dead or parked, 4 timed out\n");
    page
}

/// Runs the command named by the process arguments.
pub fn main() -> std::process::ExitCode {
    let cli = match command()
        .try_get_matches()
        .and_then(|matches| Cli::from_arg_matches(&matches))
    {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version are no errors; a reader that went away does not matter either.
            let _ = e.print();
            return if e.use_stderr() { Exit::Usage } else { Exit::Done }.into();
        }
    };
    match dispatch(cli.command, &cli.global) {
        Ok(exit) => exit.into(),
        Err(e) => {
            e.print();
            e.exit().into()
        }
    }
}

fn dispatch(command: Command, global: &Global) -> Result<Exit, CliError> {
    match command {
        Command::Run(args) => run::run(args, global),
        Command::Import(args) => import::run(args, global),
        Command::Send(args) => send::run(args, global),
        Command::Status(args) => status::run(args, global),
        Command::Health(args) => health::run(&args, global),
        Command::Message(args) => message::run(args, global),
        Command::Partners(args) => partners::run(args, global),
        Command::Dedup(args) => dedup::run(args, global),
        Command::Doubt(args) => doubt::run(args, global),
        Command::Dead(args) => dead::run(args, global),
        Command::Skip(args) => skip::run(args, global),
        Command::Init(args) => init::run(args, global),
        Command::Check(args) => check::run(args, global),
        Command::Render(args) => render::run(args, global),
        Command::Schema(args) => schema::run(args, global),
        Command::Demo(args) => demo::run(args, global),
        Command::Mock(args) => mock::run(*args, global),
        Command::Completions(args) => completions::run(args, global),
        Command::Man(args) => man::run(args, global),
        Command::Version(args) => version::run(args, global),
    }
}

/// Reads a duration argument (`200ms`, `5m`).
pub fn duration_arg(text: &str) -> Result<std::time::Duration, String> {
    crate::config::units::parse_duration(text).map_err(|e| e.to_string())
}

/// Reads a header argument, `NAME=VALUE`.
pub fn header_arg(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn every_command_stands_in_one_group() {
        let command = command();
        let mut declared: Vec<_> = command.get_subcommands().map(clap::Command::get_name).collect();
        let mut grouped: Vec<_> = GROUPS
            .iter()
            .flat_map(|(_, names)| names.iter().copied())
            .collect();
        declared.sort_unstable();
        grouped.sort_unstable();
        assert_eq!(declared, grouped);
    }

    #[test]
    fn every_command_and_option_is_explained() {
        fn walk(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for arg in command.get_arguments() {
                assert!(
                    arg.get_help().is_some(),
                    "{} {}",
                    command.get_name(),
                    arg.get_id()
                );
            }
            command.get_subcommands().for_each(walk);
        }
        walk(&command());
    }

    #[test]
    fn the_first_configuration_file_is_actors_toml() {
        assert_eq!(Global::default().files(), [PathBuf::from("actors.toml")]);
    }

    #[test]
    fn the_admin_address_is_given_or_comes_from_the_configuration() {
        let given = |admin: &str| {
            Global {
                admin: Some(admin.into()),
                ..Global::default()
            }
            .admin_address()
        };
        assert_eq!(given("http://node-2:7070/").unwrap(), "node-2:7070");
        assert_eq!(given("nowhere").unwrap_err().exit(), Exit::Usage);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("actors.toml");
        std::fs::write(&file, "[listen]\nadmin = '127.0.0.1:7171'\n").unwrap();
        let global = Global {
            config: vec![file.clone()],
            log_level: Some("debug".into()),
            ..Global::default()
        };
        assert_eq!(global.admin_address().unwrap(), "127.0.0.1:7171");
        assert_eq!(global.load().unwrap().config.logging.level, "debug");
        std::fs::write(&file, "[nod]\n").unwrap();
        assert_eq!(global.admin_address().unwrap_err().exit(), Exit::Usage);
    }
}
