//! `partners`: list, show, test, pause and resume partners, forget routes.

use super::node;
use super::order::{self, How};
use super::{CliError, Exit, Global, Out, status};
use crate::api::{Order, PartnerStatus};
use crate::telemetry::text::count;

/// Arguments of `partners`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What `partners` does.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Every partner with its state
    List,
    /// One partner in full
    Show {
        /// Partner
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Have the node connect to a partner and tell what it found; nothing is delivered
    Test {
        /// Partner
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Start no request to a partner until it is resumed
    Pause {
        /// Partner
        #[arg(value_name = "NAME")]
        name: String,
        /// Why, for the record
        #[arg(long = "because", value_name = "TEXT")]
        because: Option<String>,
        /// Do not ask before pausing it
        #[arg(long)]
        yes: bool,
    },
    /// Let a paused partner, or (--topic) a stopped route to it, go on
    Resume {
        /// Partner
        #[arg(value_name = "NAME")]
        name: String,
        /// The route from this topic, which the flood guard or a loss of records has stopped
        #[arg(long, value_name = "NAME")]
        topic: Option<String>,
        /// Why, for the record
        #[arg(long = "because", value_name = "TEXT")]
        because: Option<String>,
    },
    /// Give up what is known of a route that the configuration no longer has: its records may leave the topic
    Forget {
        /// Partner
        #[arg(value_name = "NAME")]
        name: String,
        /// Topic of the route
        #[arg(long, value_name = "NAME")]
        topic: String,
        /// Why, for the record
        #[arg(long = "because", value_name = "TEXT")]
        because: Option<String>,
        /// Do not ask before forgetting it
        #[arg(long)]
        yes: bool,
    },
}

/// Runs the command.
pub fn run(args: Args, global: &Global) -> Result<Exit, CliError> {
    match args.action {
        Action::List => list(global),
        Action::Show { name } => show(global, &name),
        Action::Test { name } => test(global, &name),
        Action::Pause { name, because, yes } => order::give(
            global,
            Order::Pause { partner: name },
            &How {
                why: because,
                yes,
                dry_run: false,
            },
        ),
        Action::Forget {
            name,
            topic,
            because,
            yes,
        } => order::give(
            global,
            Order::ForgetRoute { topic, partner: name },
            &How {
                why: because,
                yes,
                dry_run: false,
            },
        ),
        Action::Resume { name, topic, because } => {
            let order = match topic {
                Some(topic) => Order::ResumeRoute { topic, partner: name },
                None => Order::Resume { partner: name },
            };
            // It undoes what held traffic back: asking again would only cost time.
            order::give(
                global,
                order,
                &How {
                    why: because,
                    yes: true,
                    dry_run: false,
                },
            )
        }
    }
}

fn list(global: &Global) -> Result<Exit, CliError> {
    let status = node::with(global, |node| node.status())?;
    let mut out = Out::new(global);
    if out.is_json() {
        status.partners.iter().try_for_each(|p| out.object(p))?;
    } else {
        status::partners(&status.partners).print(&mut out)?;
    }
    out.finish()?;
    Ok(Exit::Done)
}

fn show(global: &Global, name: &str) -> Result<Exit, CliError> {
    let status = node::with(global, |node| node.status())?;
    let names = status.partners.iter().map(|p| p.partner.as_str());
    status::is_one_of("partner", name, names, "`sluicegate partners list` names them")?;
    let mut out = Out::new(global);
    let Some(p) = status.partners.iter().find(|p| p.partner == name) else {
        return out.finish().map(|()| Exit::Done);
    };
    if out.is_json() {
        out.object(p)?;
    } else {
        fields(p)
            .into_iter()
            .try_for_each(|(name, value)| out.line(format!("{name:<18} {value}")))?;
    }
    out.finish()?;
    Ok(Exit::Done)
}

fn fields(p: &PartnerStatus) -> Vec<(&'static str, String)> {
    let limits = if p.limits.is_empty() {
        "none".to_owned()
    } else {
        p.limits.join(", ")
    };
    vec![
        ("partner", p.partner.clone()),
        ("sink", format!("{} {}", p.sink, p.address)),
        ("traffic", status::traffic(p)),
        (
            "waits for",
            match p.waits.as_slice() {
                [] => "nothing".to_owned(),
                waits => waits
                    .iter()
                    .map(|w| w.text.clone())
                    .collect::<Vec<_>>()
                    .join("; "),
            },
        ),
        ("limits", limits),
        ("rate", format!("{:.1}/s", p.rate)),
        (
            "in flight",
            format!("{} of {}", count(p.in_flight), count(p.concurrency)),
        ),
        ("permits waiting", count(p.permits_waiting)),
        ("delivered", count(p.delivered)),
        (
            "waiting",
            format!("{}, done in {}", count(p.waiting), status::done_in(p)),
        ),
        ("dead", count(p.dead)),
        ("in doubt", count(p.parked)),
        ("skipped", count(p.skipped)),
        (
            "connections",
            format!(
                "{} open, {} made, {} failed",
                count(p.connections),
                count(p.connected),
                count(p.connect_failures)
            ),
        ),
        (
            "last failed",
            p.connect_failure.clone().unwrap_or_else(|| "-".to_owned()),
        ),
        ("found closed", count(p.stale_connections)),
    ]
}

fn test(global: &Global, name: &str) -> Result<Exit, CliError> {
    let found = node::with(global, |node| node.test_partner(name))?;
    let mut out = Out::new(global);
    let text = match found.ok {
        true => format!(
            "{} takes connections at {} ({:.1} ms): {}",
            found.partner, found.address, found.connect_ms, found.detail
        ),
        false => format!(
            "{} takes no connection at {}: {}",
            found.partner, found.address, found.detail
        ),
    };
    out.either(&found, text)?;
    out.finish()?;
    Ok(if found.ok { Exit::Done } else { Exit::Failed })
}
