//! Which messages a list or a bulk command means: the same options everywhere.

use super::CliError;
use crate::api;
use crate::clock::Clock;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Options that pick messages. All that are given must hold.
#[derive(Clone, Debug, Default, PartialEq, clap::Args, Serialize, Deserialize)]
#[command(next_help_heading = "Which messages")]
pub struct Filter {
    /// Of this partner
    #[arg(long, value_name = "NAME")]
    pub partner: Option<String>,
    /// Of this topic
    #[arg(long, value_name = "NAME")]
    pub topic: Option<String>,
    /// Of this partition
    #[arg(long, value_name = "NUMBER")]
    pub partition: Option<u32>,
    /// With this key
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// Whose reason begins with this text; /…/ is a regular expression
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Whose source begins with this text (FILE, or FILE:LINE)
    #[arg(long, value_name = "SOURCE")]
    pub source: Option<String>,
    /// At most so old, as 24h
    #[arg(long, value_name = "AGE", value_parser = super::duration_arg)]
    pub since: Option<Duration>,
    /// At least so old, as 10m
    #[arg(long, value_name = "AGE", value_parser = super::duration_arg)]
    pub until: Option<Duration>,
    /// At most so many, oldest first
    #[arg(long, value_name = "COUNT")]
    pub limit: Option<u64>,
}

impl Filter {
    /// As the node understands it: ages become times, counted from now.
    pub fn to_api(&self, ids: &[String]) -> api::Filter {
        let now = Clock::wall();
        api::Filter {
            ids: ids.to_vec(),
            partner: self.partner.clone(),
            topic: self.topic.clone(),
            partition: self.partition,
            reason: self.reason.clone(),
            since: self.since.map(|age| now.minus(age).to_string()),
            until: self.until.map(|age| now.minus(age).to_string()),
            source: self.source.clone(),
            key: self.key.clone(),
            round: None,
            limit: self.limit.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
            after: None,
        }
    }

    /// Whether it picks everything.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What a list shows: a filter, and where to go on.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct List {
    /// Which messages.
    #[command(flatten)]
    pub filter: Filter,
    /// Go on behind an earlier list, which has said this place at its end
    #[arg(long, value_name = "PLACE")]
    pub after: Option<String>,
}

impl List {
    /// As the node understands it.
    pub fn to_api(&self) -> api::Filter {
        api::Filter {
            after: self.after.clone(),
            ..self.filter.to_api(&[])
        }
    }
}

/// What a bulk command touches: IDs, or a filter, or expressly all.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Bulk {
    /// Message IDs
    #[arg(value_name = "ID")]
    pub ids: Vec<String>,
    /// Everything: needed where neither ID nor filter is given
    #[arg(long)]
    pub all: bool,
    /// Only count what would be touched
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask before touching anything
    #[arg(long)]
    pub yes: bool,
    /// Why, for the record
    #[arg(long = "because", value_name = "TEXT")]
    pub because: Option<String>,
    /// Which messages.
    #[command(flatten)]
    pub filter: Filter,
}

impl Bulk {
    /// The filter, if it names something.
    ///
    /// # Errors
    /// As [`Bulk::check`].
    pub fn to_api(&self) -> Result<api::Filter, CliError> {
        self.check()?;
        Ok(self.filter.to_api(&self.ids))
    }

    /// Refuses a command that names nothing: nobody should touch everything by leaving an argument out.
    pub fn check(&self) -> Result<(), CliError> {
        if self.ids.is_empty() && self.filter.is_empty() && !self.all {
            return Err(CliError::usage("no message is named")
                .mend("give IDs, a filter (see --help), or --all; --dry-run only counts"));
        }
        if self.all && !self.ids.is_empty() {
            return Err(CliError::usage("both IDs and --all are given").mend("give one of them"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bulk_command_must_name_something() {
        let mut bulk = Bulk::default();
        assert!(bulk.check().is_err());
        bulk.filter.partner = Some("acme".into());
        assert!(bulk.check().is_ok());
        assert!(
            Bulk {
                all: true,
                ..Bulk::default()
            }
            .check()
            .is_ok()
        );
        assert!(
            Bulk {
                all: true,
                ids: vec!["x".into()],
                ..Bulk::default()
            }
            .check()
            .is_err()
        );
    }
}
