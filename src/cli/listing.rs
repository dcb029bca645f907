//! What `dead` and `doubt` share: a list of kept messages, and one of them in full.

use super::node;
use super::table::{Column, Table};
use super::{CliError, Exit, Global, Out};
use crate::api::messages::{MessageDetail, MessageRow};
use crate::api::{Page, Query, Reply};
use crate::telemetry::text::{bytes, count};

/// The node gave another kind of answer than was asked for.
pub(super) fn unexpected() -> CliError {
    CliError::failed("the node answered something else").mend("use a command of the node's own version")
}

/// Prints a list: `query` must be one that is answered with messages.
pub(super) fn list(global: &Global, query: &Query) -> Result<Exit, CliError> {
    let Reply::Messages(page) = node::with(global, |node| node.query(query))? else {
        return Err(unexpected());
    };
    let mut out = Out::new(global);
    print(&mut out, &page)?;
    out.finish()?;
    Ok(Exit::Done)
}

pub(super) fn print(out: &mut Out, page: &Page<MessageRow>) -> Result<(), CliError> {
    if out.is_json() {
        page.rows.iter().try_for_each(|row| out.object(row))?;
    } else if page.rows.is_empty() {
        out.line("none")?;
    } else {
        let mut table = Table::new([
            Column::Text("ID"),
            Column::Text("PARTNER"),
            Column::Text("TOPIC"),
            Column::Number("PARTITION"),
            Column::Number("OFFSET"),
            Column::Text("KEY"),
            Column::Number("ATTEMPTS"),
            Column::Number("STATUS"),
            Column::Text("SINCE"),
            Column::Text("SOURCE"),
            Column::Text("REASON"),
        ]);
        for row in &page.rows {
            table.row([
                row.id.clone(),
                row.partner.clone(),
                row.topic.clone(),
                row.partition.to_string(),
                row.offset.to_string(),
                row.key.clone().unwrap_or_else(|| "-".into()),
                row.attempts.to_string(),
                row.last_status.map_or("-".into(), |s| s.to_string()),
                row.at.clone(),
                row.source.clone().unwrap_or_else(|| "-".into()),
                row.reason.clone(),
            ]);
        }
        table.print(out)?;
    }
    if page.more {
        out.flush()?;
        eprintln!("{}", more(page.rows.len() as u64, page.next.as_deref()));
    }
    Ok(())
}

/// What is said below a list that is not whole.
fn more(rows: u64, next: Option<&str>) -> String {
    let these = match rows {
        0 => "none of those that were looked at fits, and there are more".to_owned(),
        1 => "there are more than this one".to_owned(),
        n => format!("there are more than these {}", count(n)),
    };
    match next {
        Some(next) => format!("{these}: narrow the list, or go on behind them with --after {next}"),
        None => format!("{these}: narrow the list, or raise --limit"),
    }
}

/// Prints one message in full.
pub(super) fn show(global: &Global, query: &Query) -> Result<Exit, CliError> {
    let Reply::Detail(detail) = node::with(global, |node| node.query(query))? else {
        return Err(unexpected());
    };
    let mut out = Out::new(global);
    if out.is_json() {
        out.object(&detail)?;
    } else {
        print_detail(&mut out, &detail)?;
    }
    out.finish()?;
    Ok(Exit::Done)
}

fn print_detail(out: &mut Out, detail: &MessageDetail) -> Result<(), CliError> {
    let row = &detail.row;
    let dash = || "-".to_owned();
    let mut field = |name: &str, value: String| out.line(format!("{name:<17} {}", one_line(&value)));
    field("id", row.id.clone())?;
    field("hash", row.hex.clone())?;
    field(
        "state",
        format!("{} since {}, round {}", row.state, row.at, row.round),
    )?;
    field(
        "route",
        format!(
            "{}/{} offset {} to {}",
            row.topic, row.partition, row.offset, row.partner
        ),
    )?;
    field("key", row.key.clone().unwrap_or_else(dash))?;
    field("source", row.source.clone().unwrap_or_else(dash))?;
    field("reason", row.reason.clone())?;
    field("attempts", row.attempts.to_string())?;
    field("first try", row.first_try.clone().unwrap_or_else(dash))?;
    field(
        "last status",
        row.last_status.map_or_else(dash, |s| s.to_string()),
    )?;
    field("last answer", row.answer.clone())?;
    field("idempotency key", detail.idempotency_key.clone())?;
    field("record's time", detail.timestamp.clone())?;
    for (name, value) in &detail.headers {
        field("header", format!("{name}: {value}"))?;
    }
    if !row.replayable {
        field("value", "no longer kept".into())?;
    } else if detail.masked {
        field("value", format!("{}; --raw shows it", bytes(row.value_size)))?;
    } else {
        field("value", bytes(row.value_size))?;
        // As it was: the value is what was asked for. Control characters are escaped by the node already.
        out.line(&detail.value)?;
    }
    Ok(())
}

/// Text of others on one line.
pub(super) fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_is_not_whole_says_how_to_go_on() {
        assert_eq!(
            more(1, Some("5.a")),
            "there are more than this one: narrow the list, or go on behind them with --after 5.a"
        );
        assert!(more(1_000, None).starts_with("there are more than these 1,000: narrow"));
        assert!(more(0, Some("x")).starts_with("none of those"));
    }
}
