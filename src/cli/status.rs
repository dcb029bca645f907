//! `status`: lag by count and age, owners, limits, breakers, ETA.

use super::listing::one_line;
use super::node;
use super::table::{Column, Table};
use super::{CliError, Exit, Global, Out};
use crate::api::status::{BreakerState, PartnerStatus, Status, TopicStatus};
use crate::config::Loaded;
use crate::config::finding::nearest;
use crate::telemetry::text::{bytes, count, span};
use std::time::Duration;

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this topic
    #[arg(long, value_name = "NAME")]
    pub topic: Option<String>,
    /// Only this partner
    #[arg(long, value_name = "NAME")]
    pub partner: Option<String>,
}

/// Runs the command.
pub fn run(args: Args, global: &Global) -> Result<Exit, CliError> {
    let mut status = node::with(global, |node| node.status())?;
    must_be_there(&status, &args, global)?;
    narrow(&mut status, &args);
    let mut out = Out::new(global);
    if out.is_json() {
        out.object(&status)?;
    } else {
        print(&mut out, &status)?;
    }
    out.finish()?;
    Ok(Exit::Done)
}

/// An empty table for a misspelt name would read as all clear.
fn must_be_there(status: &Status, args: &Args, global: &Global) -> Result<(), CliError> {
    if let Some(name) = &args.partner {
        let names = status.partners.iter().map(|p| p.partner.as_str());
        is_one_of("partner", name, names, "`sluicegate partners list` names them")?;
    }
    if let Some(name) = &args.topic {
        // A topic that is not made yet has no row, but may have its section. The node of another machine is asked alone.
        let config = match &global.admin {
            Some(_) => None,
            None => global.load().ok(),
        };
        let is_section = |loaded: &Loaded| loaded.config.section_of(name).is_some();
        if !config.as_ref().is_some_and(is_section) {
            let sections = config.iter().flat_map(|loaded| loaded.config.topics.values());
            let sections = sections.filter(|t| t.pattern.is_none()).map(|t| t.name.as_str());
            let rows = status.topics.iter().map(|t| t.topic.as_str());
            is_one_of(
                "topic",
                name,
                rows.chain(sections),
                "`sluicegate status` names them",
            )?;
        }
    }
    Ok(())
}

/// Refuses a name that is not among these, and proposes the nearest.
pub(super) fn is_one_of<'a>(
    what: &str,
    name: &str,
    names: impl Iterator<Item = &'a str> + Clone,
    mend: &str,
) -> Result<(), CliError> {
    if names.clone().any(|there| there == name) {
        return Ok(());
    }
    let error = CliError::usage(format!("there is no {what} `{name}`"));
    Err(match nearest(name, names) {
        Some(near) => error.mend(format!("did you mean `{near}`?")),
        None => error.mend(mend),
    })
}

fn narrow(status: &mut Status, args: &Args) {
    status.topics.retain(|t| {
        args.topic.as_ref().is_none_or(|name| *name == t.topic)
            && args.partner.as_ref().is_none_or(|name| *name == t.partner)
    });
    let fed: Vec<String> = status.topics.iter().map(|t| t.partner.clone()).collect();
    status.partners.retain(|p| {
        args.partner.as_ref().is_none_or(|name| *name == p.partner)
            && (args.topic.is_none() || fed.contains(&p.partner))
    });
}

fn seconds(s: f64) -> String {
    span(Duration::from_secs_f64(s.clamp(0.0, 1e12)))
}

/// Whether a partner takes requests, in words.
pub(super) fn traffic(p: &PartnerStatus) -> String {
    match (&p.paused, &p.held_until) {
        (Some(why), _) => format!("paused: {}", one_line(why)),
        (None, Some(until)) => format!("holds until {until}"),
        (None, None) => p.breaker.word().to_owned(),
    }
}

/// Whether nothing but probes goes to a partner.
fn stands(p: &PartnerStatus) -> bool {
    p.paused.is_some() || p.held_until.is_some() || p.breaker != BreakerState::Closed
}

/// When what waits will be delivered, in words.
pub(super) fn done_in(p: &PartnerStatus) -> String {
    match p.eta_s {
        _ if p.waiting == 0 => "-".to_owned(),
        // What stands makes no headway, whatever its limit says.
        _ if stands(p) => "unknown".to_owned(),
        Some(s) => seconds(s),
        None => "unknown".to_owned(),
    }
}

fn print(out: &mut Out, status: &Status) -> Result<(), CliError> {
    let n = &status.node;
    out.line(format!(
        "{} {} (version {}, up {}): memory {} of {}, {} of {} requests on the wire, {} IDs remembered on {}",
        n.id,
        n.state,
        n.version,
        seconds(n.uptime_s),
        bytes(n.memory_held),
        bytes(n.memory_bound),
        count(n.in_flight),
        count(n.requests),
        count(status.store.ids),
        bytes(status.store.disk_bytes),
    ))?;
    let problems = [&n.intake_paused, &status.log.refuses, &status.ledger.behind];
    for problem in problems.into_iter().flatten() {
        out.line(format!("! {}", one_line(problem)))?;
    }
    for (kind, restarts) in &n.restarts {
        out.line(format!("! {} restarts of {kind}", count(*restarts)))?;
    }
    out.line("")?;
    partners(&status.partners).print(out)?;
    // A request in flight, or a retry, is nothing to wonder about while the partner is served.
    let quiet = |code: &str| matches!(code, "in_flight" | "retries");
    for p in &status.partners {
        for wait in p.waits.iter().filter(|wait| !quiet(&wait.code)) {
            out.line(format!("! {}: {}", p.partner, one_line(&wait.text)))?;
        }
    }
    for hint in status.partners.iter().flat_map(|p| &p.hints) {
        out.line(format!("hint: {}", one_line(hint)))?;
    }
    out.line("")?;
    topics(&status.topics).print(out)?;
    for t in status.topics.iter().filter(|t| t.stopped.is_some()) {
        let why = t.stopped.as_deref().unwrap_or_default();
        out.line(format!(
            "! {}/{} to {} is stopped: {}",
            t.topic,
            t.partition,
            t.partner,
            one_line(why)
        ))?;
    }
    Ok(())
}

/// The partners as a table.
pub(super) fn partners(partners: &[PartnerStatus]) -> Table {
    let mut table = Table::new([
        Column::Text("PARTNER"),
        Column::Text("BREAKER"),
        Column::Number("DELIVERED"),
        Column::Number("WAITING"),
        Column::Number("RATE/S"),
        Column::Text("LIMIT"),
        Column::Number("IN FLIGHT"),
        Column::Number("DONE IN"),
        Column::Number("DEAD"),
        Column::Number("DOUBT"),
        Column::Number("SKIPPED"),
    ]);
    for p in partners {
        table.row([
            p.partner.clone(),
            traffic(p),
            count(p.delivered),
            count(p.waiting),
            format!("{:.1}", p.rate),
            if p.limits.is_empty() {
                "none".into()
            } else {
                p.limits.join(", ")
            },
            format!("{} of {}", count(p.in_flight), count(p.concurrency)),
            done_in(p),
            count(p.dead),
            count(p.parked),
            count(p.skipped),
        ]);
    }
    table
}

fn topics(topics: &[TopicStatus]) -> Table {
    let mut table = Table::new([
        Column::Text("TOPIC"),
        Column::Text("PARTNER"),
        Column::Number("PARTITION"),
        Column::Number("LAG"),
        Column::Number("OLDEST"),
        Column::Number("POSITION"),
        Column::Number("END"),
        Column::Number("WAITING"),
        Column::Number("DEAD"),
        Column::Number("DOUBT"),
        Column::Text("OWNER"),
    ]);
    for t in topics {
        table.row([
            t.topic.clone(),
            t.partner.clone(),
            t.partition.to_string(),
            count(t.lag),
            t.oldest_age_ms
                .map_or("-".into(), |ms| span(Duration::from_millis(ms))),
            count(t.position),
            count(t.end),
            count(t.waiting),
            count(t.dead),
            count(t.parked),
            t.owner.clone(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_narrowed_to_what_was_asked_for() {
        let topic = |topic: &str, partner: &str| TopicStatus {
            topic: topic.into(),
            partner: partner.into(),
            ..TopicStatus::default()
        };
        let partner = |name: &str| PartnerStatus {
            partner: name.into(),
            ..PartnerStatus::default()
        };
        let mut status = Status {
            topics: vec![topic("a", "x"), topic("a", "y"), topic("b", "y")],
            partners: vec![partner("x"), partner("y")],
            ..Status::default()
        };
        narrow(
            &mut status,
            &Args {
                topic: Some("b".into()),
                partner: None,
            },
        );
        assert_eq!((status.topics.len(), status.partners.len()), (1, 1));
        assert_eq!(status.partners[0].partner, "y");
    }

    #[test]
    fn nothing_waiting_needs_no_time() {
        let mut p = PartnerStatus {
            waiting: 0,
            eta_s: Some(0.0),
            ..PartnerStatus::default()
        };
        assert_eq!(done_in(&p), "-");
        (p.waiting, p.eta_s) = (100, Some(200.0));
        assert_eq!(done_in(&p), "3m 20s");
        // A partner that is down is not done in 3s because its limit would allow it.
        p.breaker = BreakerState::Open;
        assert_eq!(done_in(&p), "unknown");
        (p.breaker, p.held_until) = (BreakerState::Closed, Some("soon".into()));
        assert_eq!(done_in(&p), "unknown");
        (p.held_until, p.eta_s) = (None, None);
        assert_eq!(done_in(&p), "unknown");
    }
}
