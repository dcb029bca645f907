//! `dedup`: the store of delivered IDs.

use super::listing::unexpected;
use super::node::{self, Node, who};
use super::order::{self, How};
use super::table::{Column, Table};
use super::{CliError, Exit, Global, Out};
use crate::api::messages::DedupStats;
use crate::api::orders::{IMPORT_ROWS, OrderReport, OrderRequest};
use crate::api::{DedupRow, Filter, Order, Page, Query, Reply};
use crate::telemetry::text::{bytes, count};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// Arguments of `dedup`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// Where an ID is looked for.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Scope {
    /// Partner
    #[arg(long, value_name = "NAME")]
    pub partner: Option<String>,
    /// Topic
    #[arg(long, value_name = "NAME")]
    pub topic: Option<String>,
    /// Partition
    #[arg(long, value_name = "NUMBER")]
    pub partition: Option<u32>,
}

impl Scope {
    /// These IDs there.
    pub(super) fn filter(&self, ids: &[String]) -> Filter {
        Filter {
            ids: ids.to_vec(),
            partner: self.partner.clone(),
            topic: self.topic.clone(),
            partition: self.partition,
            ..Filter::default()
        }
    }
}

/// What `dedup` does.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Buckets, IDs, bytes
    Stats,
    /// What is known of an ID, for every route
    Get {
        /// Message ID
        #[arg(value_name = "ID")]
        id: String,
        /// Where to look.
        #[command(flatten)]
        scope: Scope,
    },
    /// IDs, newest first
    List {
        /// Where to look.
        #[command(flatten)]
        scope: Scope,
        /// At most so many
        #[arg(long, value_name = "COUNT", default_value_t = 1_000)]
        limit: u64,
    },
    /// Write all IDs to a file, as JSON lines
    Export {
        /// File to write; - is stdout
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Which IDs.
        #[command(flatten)]
        scope: Scope,
    },
    /// Take IDs from an exported file, or one JSON object a line with id, topic, partner and state "delivered": they count as delivered from then on
    Import {
        /// File to read; - is stdin
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Why, for the record
        #[arg(long = "because", value_name = "TEXT")]
        because: Option<String>,
        /// Only count what would be taken in
        #[arg(long)]
        dry_run: bool,
    },
    /// Forget an ID: the same message would be sent again
    Forget(Change),
    /// Mark an ID as delivered: the message will not be sent
    Mark(Change),
}

/// Arguments of `dedup forget` and `dedup mark`.
#[derive(Debug, clap::Args)]
pub struct Change {
    /// Message ID
    #[arg(value_name = "ID")]
    pub id: String,
    /// Where.
    #[command(flatten)]
    pub scope: Scope,
    /// Why, for the record
    #[arg(long = "because", value_name = "TEXT")]
    pub because: Option<String>,
    /// Only tell what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask before doing it
    #[arg(long)]
    pub yes: bool,
}

/// Runs the command.
pub fn run(args: Args, global: &Global) -> Result<Exit, CliError> {
    match args.action {
        Action::Stats => stats(global),
        Action::Get { id, scope } => get(global, scope.filter(&[id])),
        Action::List { scope, limit } => {
            let limit = Some(usize::try_from(limit).unwrap_or(usize::MAX));
            list(
                global,
                &Query::DedupList {
                    filter: Filter {
                        limit,
                        ..scope.filter(&[])
                    },
                },
            )
        }
        Action::Export { file, scope } => {
            node::with(global, |node| export(node, global, &file, &scope.filter(&[])))
        }
        Action::Import {
            file,
            because,
            dry_run,
        } => node::with(global, |node| import(node, global, &file, because, dry_run)),
        Action::Forget(change) => alter(global, change, |filter| Order::Forget { filter }),
        Action::Mark(change) => alter(global, change, |filter| Order::Mark { filter }),
    }
}

fn alter(global: &Global, change: Change, make: impl FnOnce(Filter) -> Order) -> Result<Exit, CliError> {
    let how = How {
        why: change.because,
        dry_run: change.dry_run,
        yes: change.yes,
    };
    order::give(global, make(change.scope.filter(&[change.id])), &how)
}

fn stats(global: &Global) -> Result<Exit, CliError> {
    let Reply::DedupStats(stats) = node::with(global, |node| node.query(&Query::DedupStats))? else {
        return Err(unexpected());
    };
    let mut out = Out::new(global);
    if out.is_json() {
        out.object(&stats)?;
    } else {
        print_stats(&mut out, &stats)?;
    }
    out.finish()?;
    Ok(Exit::Done)
}

fn print_stats(out: &mut Out, stats: &DedupStats) -> Result<(), CliError> {
    out.line(format!(
        "{} IDs, {} on disk ({:.0} B each), {} in memory",
        count(stats.ids),
        bytes(stats.disk_bytes),
        stats.bytes_per_id,
        bytes(stats.memory_bytes)
    ))?;
    let mut buckets = Table::new([
        Column::Text("FROM"),
        Column::Text("TO"),
        Column::Text("FORM"),
        Column::Number("IDS"),
        Column::Number("DISK"),
        Column::Number("MEMORY"),
    ]);
    for b in &stats.buckets {
        buckets.row([
            b.from.clone(),
            b.to.clone(),
            if b.sealed { "sealed" } else { "sled" }.to_owned(),
            count(b.ids),
            bytes(b.disk_bytes),
            bytes(b.memory_bytes),
        ]);
    }
    if !buckets.is_empty() {
        out.line("")?;
        buckets.print(out)?;
    }
    if let Some(why) = &stats.seal_refuses {
        out.line("")?;
        out.line(format!(
            "a bucket that is over cannot be sealed, look-ups take longer: {why}"
        ))?;
    }
    let mut messages = Table::new([
        Column::Text("PARTNER"),
        Column::Text("STATE"),
        Column::Number("MESSAGES"),
    ]);
    for m in &stats.messages {
        messages.row([m.partner.clone(), m.state.clone(), count(m.count)]);
    }
    if !messages.is_empty() {
        out.line("")?;
        messages.print(out)?;
    }
    Ok(())
}

fn print_rows(out: &mut Out, rows: &[DedupRow]) -> Result<(), CliError> {
    if out.is_json() {
        return rows.iter().try_for_each(|row| out.object(row));
    }
    let dash = || "-".to_owned();
    let mut table = Table::new([
        Column::Text("ID"),
        Column::Text("PARTNER"),
        Column::Text("STATE"),
        Column::Text("AT"),
        Column::Text("TOPIC"),
        Column::Number("PARTITION"),
        Column::Number("OFFSET"),
        Column::Number("ATTEMPTS"),
        Column::Number("STATUS"),
    ]);
    for row in rows {
        let state = if row.marked {
            format!("{} (marked)", row.state.word())
        } else {
            row.state.word().to_owned()
        };
        table.row([
            row.id.clone(),
            row.partner.clone(),
            state,
            row.at.clone().unwrap_or_else(dash),
            row.topic.clone(),
            row.partition.map_or_else(dash, |p| p.to_string()),
            row.offset.map_or_else(dash, |o| o.to_string()),
            row.attempts.map_or_else(dash, |a| a.to_string()),
            row.last_status.map_or_else(dash, |s| s.to_string()),
        ]);
    }
    table.print(out)
}

fn get(global: &Global, filter: Filter) -> Result<Exit, CliError> {
    let Reply::Dedup(Page { rows, .. }) = node::with(global, |node| node.query(&Query::DedupGet { filter }))?
    else {
        return Err(unexpected());
    };
    let mut out = Out::new(global);
    print_rows(&mut out, &rows)?;
    out.finish()?;
    Ok(Exit::Done)
}

fn list(global: &Global, query: &Query) -> Result<Exit, CliError> {
    let Reply::Dedup(Page { rows, more, .. }) = node::with(global, |node| node.query(query))? else {
        return Err(unexpected());
    };
    let mut out = Out::new(global);
    if rows.is_empty() && !out.is_json() {
        out.line("none")?;
    } else {
        print_rows(&mut out, &rows)?;
    }
    out.finish()?;
    if more {
        eprintln!(
            "there are more than these {}; raise --limit, or use `dedup export`",
            count(rows.len() as u64)
        );
    }
    Ok(Exit::Done)
}

fn export(node: &Node, global: &Global, file: &Path, filter: &Filter) -> Result<Exit, CliError> {
    if file == Path::new("-") {
        let mut out = Out::new(global);
        node.export(filter, &mut |piece| out.bytes(piece).map_err(io::Error::other))?;
        out.finish()?;
        return Ok(Exit::Done);
    }
    // Under its own name only when it is whole: half an export, imported elsewhere, would send the rest again.
    let partial = PathBuf::from(format!("{}.partial", file.display()));
    let cannot = |e: io::Error| {
        CliError::failed("cannot write the export")
            .at(partial.display())
            .caused_by(e)
    };
    let mut to = io::BufWriter::new(File::create(&partial).map_err(cannot)?);
    let mut lines = 0u64;
    node.export(filter, &mut |piece| {
        lines += piece.iter().filter(|b| **b == b'\n').count() as u64;
        to.write_all(piece)
    })?;
    let to = to.into_inner().map_err(|e| cannot(e.into_error()))?;
    to.sync_all().map_err(cannot)?;
    std::fs::rename(&partial, file).map_err(cannot)?;
    eprintln!("{} IDs written to {}", count(lines), file.display());
    Ok(Exit::Done)
}

fn import(
    node: &Node,
    global: &Global,
    file: &Path,
    because: Option<String>,
    dry_run: bool,
) -> Result<Exit, CliError> {
    let place = file.display().to_string();
    let reader: Box<dyn BufRead> = if file == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        let open = File::open(file)
            .map_err(|e| CliError::failed("cannot read the export").at(&place).caused_by(e))?;
        Box::new(BufReader::new(open))
    };
    let mut request = OrderRequest {
        order: Order::DedupImport { rows: Vec::new() },
        who: who(),
        why: because.unwrap_or_default(),
        dry_run,
        expect: None,
    };
    let mut total: Option<OrderReport> = None;
    for_each_part(reader, IMPORT_ROWS, |rows| {
        request.order = Order::DedupImport { rows };
        let part = node.order(&request)?;
        match &mut total {
            Some(total) => total.add(&part),
            None => total = Some(part),
        }
        Ok(())
    })
    .map_err(|e| e.at(&place))?;
    let report = total.unwrap_or_else(|| OrderReport {
        verb: "dedup import".into(),
        dry_run,
        ..OrderReport::default()
    });
    let mut out = Out::new(global);
    let would = if dry_run { "would be" } else { "are" };
    let text = format!(
        "{} IDs {would} called delivered, {} are not taken in",
        count(report.touched),
        count(report.refused)
    );
    out.either(&report, text)?;
    out.finish()?;
    if !global.json {
        report.notes.iter().for_each(|note| eprintln!("note: {note}"));
    }
    Ok(Exit::Done)
}

/// Reads rows and hands them on in parts of at most `most`. A line that is no row ends it: half of an import is
/// harmless (the rest can be imported again), a wrong guess at a line is not.
fn for_each_part(
    reader: impl BufRead,
    most: usize,
    mut take: impl FnMut(Vec<DedupRow>) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let mut rows = Vec::new();
    for (number, line) in reader.lines().enumerate() {
        let line = line.map_err(|e| CliError::failed("cannot read the export").caused_by(e))?;
        if line.trim().is_empty() {
            continue;
        }
        let row = serde_json::from_str(&line).map_err(|e| {
            CliError::failed(format!("line {} is no row of an export", number + 1))
                .mend("lines before it are taken in; mend it and import the file again")
                .caused_by(e)
        })?;
        rows.push(row);
        if rows.len() == most {
            take(std::mem::take(&mut rows))?;
        }
    }
    if rows.is_empty() { Ok(()) } else { take(rows) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str) -> String {
        serde_json::to_string(&DedupRow {
            id: id.into(),
            ..DedupRow::default()
        })
        .unwrap()
    }

    #[test]
    fn an_export_is_read_in_parts() {
        let text = format!("{}\n\n{}\n{}\n", row("a"), row("b"), row("c"));
        let mut parts = Vec::new();
        for_each_part(text.as_bytes(), 2, |rows| {
            parts.push(rows.into_iter().map(|r| r.id).collect::<Vec<_>>());
            Ok(())
        })
        .unwrap();
        assert_eq!(parts, [vec!["a", "b"], vec!["c"]]);
        let wrong = format!("{}\nnonsense\n", row("a"));
        let error = for_each_part(wrong.as_bytes(), 2, |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
    }
}
