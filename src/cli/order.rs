//! What all write verbs share: say what will be touched, ask, do it, tell what was done.

use super::filter::Bulk;
use super::node::{self, Node, who};
use super::{CliError, Exit, Global, Out};
use crate::api::messages::parse_time;
use crate::api::orders::{Expect, Order, OrderReport, OrderRequest};
use crate::core::types::Time;
use crate::telemetry::text::{count, counted};
use std::io::{self, BufRead, IsTerminal, Write};

/// How an order is to be given.
#[derive(Clone, Debug, Default)]
pub struct How {
    /// Why, for the record.
    pub why: Option<String>,
    /// Only count.
    pub dry_run: bool,
    /// Do not ask.
    pub yes: bool,
}

impl From<&Bulk> for How {
    fn from(bulk: &Bulk) -> Self {
        Self {
            why: bulk.because.clone(),
            dry_run: bulk.dry_run,
            yes: bulk.yes,
        }
    }
}

/// Makes the order up, shows what it would touch, asks on a terminal, gives it, and shows what it did.
///
/// # Errors
/// If the node cannot be asked or refuses.
pub fn give(global: &Global, order: Order, how: &How) -> Result<Exit, CliError> {
    let mut out = Out::new(global);
    let exit = node::with(global, |node| {
        give_to(node, &mut out, order, how, &mut ask_on_terminal)
    })?;
    out.finish()?;
    Ok(exit)
}

/// The same, with the node, the output and the question as arguments.
pub(super) fn give_to(
    node: &Node,
    out: &mut Out,
    order: Order,
    how: &How,
    ask: &mut dyn FnMut(&str) -> Option<bool>,
) -> Result<Exit, CliError> {
    let mut request = OrderRequest {
        order,
        who: who(),
        why: how.why.clone().unwrap_or_default(),
        dry_run: true,
        expect: None,
    };
    let would = node.order(&request)?;
    if how.dry_run {
        show(out, &request.order, &would)?;
        return Ok(Exit::Done);
    }
    if would.touched == 0 {
        show(out, &request.order, &would)?;
        return Ok(if named(&request.order) {
            Exit::Failed
        } else {
            Exit::Done
        });
    }
    tell(&would);
    if !how.yes && ask(&format!("{} {}?", would.verb, things(&would))) == Some(false) {
        eprintln!("nothing was done");
        return Ok(Exit::Failed);
    }
    request.dry_run = false;
    request.expect = Some(expected(&request.order, &would));
    // What came after the list was shown is not meant.
    if let Some(filter) = filter_of(&mut request.order)
        && filter.ids.is_empty()
        && filter.until.is_none()
    {
        filter.until = Some(just_after(&would.at));
    }
    let mut did = node.order(&request)?;
    while did.more && did.touched > 0 && filter_of(&mut request.order).is_some_and(|f| f.limit.is_none()) {
        request.expect = None;
        let next = node.order(&request)?;
        let (more, touched) = (next.more, next.touched);
        did.add(&next);
        did.more = more && touched > 0;
    }
    show(out, &request.order, &did)?;
    Ok(if did.touched == 0 {
        Exit::Failed
    } else {
        Exit::Done
    })
}

/// The first millisecond after a time as reports print it: what happened in the same one was seen.
fn just_after(at: &str) -> String {
    match parse_time(at, Time::ZERO) {
        Ok(t) => t.plus(std::time::Duration::from_millis(1)).to_string(),
        Err(_) => at.to_owned(),
    }
}

/// Whether the order is about a rule, a partner or a route, not about messages.
fn is_setting(order: &Order) -> bool {
    matches!(
        order,
        Order::SkipAdd { .. }
            | Order::SkipRemove { .. }
            | Order::Pause { .. }
            | Order::Resume { .. }
            | Order::ForgetRoute { .. }
            | Order::ResumeRoute { .. }
    )
}

/// Whether the order names what it is about: then touching nothing is a failure.
fn named(order: &Order) -> bool {
    match order {
        Order::Replay { filter, .. }
        | Order::Drop { filter }
        | Order::Resend { filter }
        | Order::Confirm { filter, .. }
        | Order::Forget { filter }
        | Order::Mark { filter } => !filter.ids.is_empty(),
        Order::DedupImport { .. } => false,
        _ => true,
    }
}

fn filter_of(order: &mut Order) -> Option<&mut crate::api::Filter> {
    match order {
        Order::Replay { filter, .. }
        | Order::Drop { filter }
        | Order::Resend { filter }
        | Order::Confirm { filter, .. } => Some(filter),
        _ => None,
    }
}

fn expected(order: &Order, would: &OrderReport) -> Expect {
    Expect {
        round: match would.messages.as_slice() {
            [one] if would.touched == 1 => Some(one.round),
            _ => None,
        },
        count: named(order)
            .then_some(would.touched)
            .filter(|_| !would.messages.is_empty()),
    }
}

fn things(report: &OrderReport) -> String {
    match (report.messages.as_slice(), report.touched) {
        ([], _) => "this".to_owned(),
        ([one], 1) => format!("message {} ({} to {})", one.id, one.topic, one.partner),
        (_, n) => format!(
            "{}{}",
            if report.more { "more than " } else { "" },
            counted(n, "message")
        ),
    }
}

/// What will be touched, for people, on stderr.
fn tell(would: &OrderReport) {
    let mut text = String::new();
    // A setting touches what its own command line names.
    if !would.messages.is_empty() {
        text.push_str(&format!("{}: {}\n", would.verb, things(would)));
    }
    for g in &would.groups {
        text.push_str(&format!("  {:>9}  {}  {}\n", count(g.count), g.partner, g.reason));
    }
    for note in &would.notes {
        text.push_str(&format!("  {note}\n"));
    }
    eprint!("{text}");
}

fn show(out: &mut Out, order: &Order, report: &OrderReport) -> Result<(), CliError> {
    if out.is_json() {
        return out.object(report);
    }
    let counted = || {
        let more = if report.more { "more than " } else { "" };
        format!("{more}{}", counted(report.touched, "message"))
    };
    let what = match (report.dry_run, report.touched) {
        (true, 0) => ": nothing to do".to_owned(),
        (false, 0) => ": nothing done".to_owned(),
        (true, _) => format!(" would touch {}", counted()),
        (false, 1) if report.messages.is_empty() => ": done".to_owned(),
        (false, _) => format!(": {}", counted()),
    };
    out.line(format!("{}{what}", report.verb))?;
    for g in &report.groups {
        out.line(format!("  {:>9}  {}  {}", count(g.count), g.partner, g.reason))?;
    }
    // A setting that stands already says so in its note.
    if report.stale > 0 && !is_setting(order) {
        out.line(format!(
            "  {:>9}  stale: moved on in the meantime, not touched",
            count(report.stale)
        ))?;
    }
    for note in &report.notes {
        out.line(format!("  {note}"))?;
    }
    if report.touched + report.stale + report.refused == 0 {
        out.line("  no message fits; `sluicegate message ID` tells where one stands")?;
    }
    Ok(())
}

/// Asks on the terminal. None: there is nobody to ask, and a script has said what it wants.
fn ask_on_terminal(question: &str) -> Option<bool> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return None;
    }
    let mut err = io::stderr();
    let _ = write!(err, "{question} [y/N] ");
    let _ = err.flush();
    let mut line = String::new();
    // An end of input is a no.
    stdin.lock().read_line(&mut line).ok()?;
    Some(matches!(line.trim(), "y" | "Y" | "yes"))
}
