//! `skip`: rules that finish a key's or an ID's records without sending them.

use super::listing::unexpected;
use super::node;
use super::order::{self, How};
use super::table::{Column, Table};
use super::{CliError, Exit, Global, Out};
use crate::api::{Order, Query, Reply};
use crate::clock::Clock;
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
    /// Rules in force
    List,
    /// Take a rule back; what it skipped stays skipped
    Remove {
        /// Number of the rule, from `skip list`
        #[arg(value_name = "RULE")]
        rule: u64,
        /// Why, for the record
        #[arg(long = "because", value_name = "TEXT")]
        because: Option<String>,
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
    /// Of this topic
    #[arg(long, value_name = "NAME")]
    pub topic: String,
    /// Only for this partner
    #[arg(long, value_name = "NAME")]
    pub partner: Option<String>,
    /// Why, for the record
    #[arg(long = "because", value_name = "TEXT")]
    pub because: String,
    /// The rule ends after so long, as 24h
    #[arg(long, value_name = "DURATION", value_parser = super::duration_arg)]
    pub expires: Option<Duration>,
    /// Do not ask before adding it
    #[arg(long)]
    pub yes: bool,
    /// Only tell what would be done
    #[arg(long)]
    pub dry_run: bool,
}

/// Runs the command.
pub fn run(args: Args, global: &Global) -> Result<Exit, CliError> {
    match args.action {
        Action::Add(add) => {
            let order = Order::SkipAdd {
                topic: add.topic,
                partner: add.partner,
                key: add.key,
                id: add.id,
                expires: add.expires.map(|after| Clock::wall().plus(after).to_string()),
            };
            order::give(
                global,
                order,
                &How {
                    why: Some(add.because),
                    dry_run: add.dry_run,
                    yes: add.yes,
                },
            )
        }
        Action::List => list(global),
        Action::Remove { rule, because } => order::give(
            global,
            Order::SkipRemove { rule },
            &How {
                why: because,
                yes: true,
                dry_run: false,
            },
        ),
    }
}

fn list(global: &Global) -> Result<Exit, CliError> {
    let Reply::Skips(rules) = node::with(global, |node| node.query(&Query::Skips))? else {
        return Err(unexpected());
    };
    let mut out = Out::new(global);
    if out.is_json() {
        rules.iter().try_for_each(|rule| out.object(rule))?;
    } else if rules.is_empty() {
        out.line("none")?;
    } else {
        let mut table = Table::new([
            Column::Number("RULE"),
            Column::Text("TOPIC"),
            Column::Text("PARTNER"),
            Column::Text("SKIPS"),
            Column::Text("UNTIL"),
            Column::Text("MADE"),
            Column::Text("REASON"),
        ]);
        for r in &rules {
            let what = match (&r.key, &r.id) {
                (Some(key), _) => format!("key {key}"),
                (None, Some(id)) => format!("ID {id}"),
                (None, None) => "-".to_owned(),
            };
            table.row([
                r.rule.to_string(),
                r.topic.clone(),
                r.partner.clone().unwrap_or_else(|| "all".into()),
                what,
                r.expires.clone().unwrap_or_else(|| "removed".into()),
                r.made.clone(),
                r.reason.clone(),
            ]);
        }
        table.print(&mut out)?;
    }
    out.finish()?;
    Ok(Exit::Done)
}
