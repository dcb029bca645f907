//! Memory while millions of records wait for a partner that is down, while the ledger keeps a million messages, and
//! while a limit counts a million values.

use crate::node::{Folder, Node, Setup};
use crate::partner::{Fate, Plan};
use crate::places::Pinned;
use crate::records::Shape;
use crate::table::{Row, count};
use crate::{Bench, Failed};
use std::time::{Duration, Instant};

const BOUND_MIB: f64 = 256.0;
/// Files of one import each; one at a time is on the disk besides the folder.
const PIECE: u32 = 500_000;

/// 5M records of 1 KB, then 5M of 20 B.
pub fn memory(bench: &mut Bench) -> Result<Vec<Row>, Failed> {
    let mut rows = Vec::new();
    for (size, name) in [(1_000, "1 KB"), (20, "20 B")] {
        rows.extend(waiting(bench, size, name)?);
    }
    Ok(rows)
}

fn waiting(bench: &Bench, size: usize, name: &str) -> Result<Vec<Row>, Failed> {
    // A port that nobody listens on.
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let setup = Setup {
        node: format!("memory = \"{BOUND_MIB}MiB\""),
        url: Some(format!("http://127.0.0.1:{port}/hook")),
        place: Pinned::Free,
        ..Setup::default()
    };
    let folder = Folder::new(&setup, &bench.partner, &bench.places)?;
    let total = bench.size(5_000_000);
    for first in (0..total).step_by(PIECE as usize) {
        folder.import(Shape {
            first,
            count: PIECE.min(total - first),
            keys: 1_000_000,
            size,
        })?;
    }
    let mut node = folder.run(&[])?;
    let start = Instant::now();
    let span = Duration::from_secs(if bench.quick { 10 } else { 60 });
    let mut peak = 0.0;
    while start.elapsed() < span {
        let used = node.used()?;
        if used.ended {
            return Err("the node ended".into());
        }
        peak = used.peak_mib;
        std::thread::sleep(Duration::from_millis(100));
    }
    let cpu = node.used()?.cpu_s;
    node.kill()?;
    Ok(vec![
        Row::held(
            format!(
                "resident, {} records of {name} waiting, partner down",
                count(f64::from(total))
            ),
            format!("{peak:.0} MiB"),
            format!("≤ {:.0} MiB (bound {BOUND_MIB:.0} + 150)", BOUND_MIB + 150.0),
            peak <= BOUND_MIB + 150.0,
        ),
        Row::beside(
            format!("CPU in those {} s, {name}", span.as_secs()),
            format!("{cpu:.1} s"),
            "opening, reading to the bound, then waiting",
        ),
    ])
}

const KEPT_MIB: f64 = 64.0;
/// How long a node is left alone before it counts as idle.
const IDLE: Duration = Duration::from_secs(20);

/// A million messages refused, in doubt, and passed over by a rule.
pub fn kept(bench: &mut Bench) -> Result<Vec<Row>, Failed> {
    let mut rows = Vec::new();
    for (what, fate) in [
        ("dead", Some(Fate::Dead)),
        ("parked", Some(Fate::Parked)),
        ("skipped", None),
    ] {
        bench.partner.plan(&Plan {
            all: fate,
            ..Plan::default()
        })?;
        rows.extend(all_kept(bench, what)?);
        bench.partner.take()?;
    }
    bench.partner.plan(&Plan::default())?;
    Ok(rows)
}

fn all_kept(bench: &Bench, what: &str) -> Result<Vec<Row>, Failed> {
    let setup = Setup {
        node: format!("memory = \"{KEPT_MIB}MiB\""),
        // A partner that does nothing but fail is left alone: here it is asked for all of them.
        partner: "flood = { dead_in_a_row = 0, doubts_in_a_row = 1000000000 }\nbreaker = { failures = 0 }\n"
            .into(),
        place: Pinned::Free,
        ..Setup::default()
    };
    let folder = Folder::new(&setup, &bench.partner, &bench.places)?;
    let total = bench.size(1_000_000);
    // One key: the rule is against it.
    let keys = if what == "skipped" { 1 } else { 1_000 };
    folder.import(Shape {
        first: 0,
        count: total,
        keys,
        size: 240,
    })?;
    if what == "skipped" {
        folder.tell(&[
            "skip",
            "add",
            "--topic",
            "t",
            "--key",
            "k000000000",
            "--because",
            "flood",
        ])?;
    }
    measured(&folder, total, what, KEPT_MIB)
}

/// A million values of a limit's `by`, each with one start, which counts for an hour.
pub fn values(bench: &mut Bench) -> Result<Vec<Row>, Failed> {
    let setup = Setup {
        node: format!("memory = \"{BOUND_MIB}MiB\""),
        // With a burst: where a start misses its slot, the next one is not six minutes away.
        partner: "limits = { rates = [\"10/h\"], burst = 10, by = \"json:/user\" }\n".into(),
        place: Pinned::Free,
        ..Setup::default()
    };
    let folder = Folder::new(&setup, &bench.partner, &bench.places)?;
    let total = bench.size(1_000_000);
    folder.import(Shape {
        first: 0,
        count: total,
        keys: total,
        size: 240,
    })?;
    let rows = measured(&folder, total, "values of `by`", BOUND_MIB)?;
    bench.partner.take()?;
    Ok(rows)
}

/// Runs a node until every record has passed, leaves it alone, kills it and starts it again.
fn measured(folder: &Folder<'_>, total: u32, what: &str, bound_mib: f64) -> Result<Vec<Row>, Failed> {
    let mut node = folder.run(&[])?;
    let stopped = until_passed(folder, &mut node, total)?;
    let peak = node.used()?.peak_mib;
    std::thread::sleep(IDLE);
    let idle = node.resident_mib()?;
    let checkpoint = std::fs::metadata(folder.path().join("data/ledger/checkpoint"))?.len();
    node.kill()?;
    let mut again = folder.run(&[])?;
    until_passed(folder, &mut again, total)?;
    let (began, resident) = (again.used()?.peak_mib, again.resident_mib()?);
    again.kill()?;
    let most = bound_mib + 150.0;
    let name = format!(
        "{} {what}, node.memory = {bound_mib:.0} MiB",
        count(f64::from(total))
    );
    let held = |row: &str, mib: f64| {
        let limit = format!("≤ {most:.0} MiB (bound {bound_mib:.0} + 150)");
        Row::held(
            format!("{row}, {name}"),
            format!("{mib:.0} MiB"),
            limit,
            mib <= most,
        )
    };
    Ok(vec![
        held("most resident", peak),
        held("resident when idle", idle),
        held("most resident after kill -9 and a start", began),
        Row::beside(
            format!("resident then, {name}"),
            format!("{resident:.0} MiB"),
            "the same",
        ),
        Row::beside(
            format!("checkpoint, {name}"),
            format!("{:.1} MB", checkpoint as f64 / 1e6),
            stopped.unwrap_or_else(|| "all of them are finished".into()),
        ),
    ])
}

/// Waits until every record is finished, or a route says why it stands.
fn until_passed(folder: &Folder<'_>, node: &mut Node, total: u32) -> Result<Option<String>, Failed> {
    let start = Instant::now();
    let (mut passed, mut told) = (0, start);
    loop {
        if node.used()?.ended {
            return Err("the node ended".into());
        }
        if start.elapsed() > Duration::from_secs(600) {
            return Err(format!("{passed} of {total} have passed, and it takes too long").into());
        }
        if told.elapsed() > Duration::from_secs(30) {
            eprintln!("{passed} of {total} have passed");
            told = Instant::now();
        }
        std::thread::sleep(Duration::from_millis(500));
        let Ok(text) = folder.tell(&["status", "--json"]) else {
            // Its admin port is not open yet.
            continue;
        };
        let status: serde_json::Value = serde_json::from_str(&text)?;
        let topics = status["topics"].as_array().ok_or("no topics")?;
        passed = topics.iter().filter_map(|t| t["position"].as_u64()).sum::<u64>();
        if passed >= u64::from(total) {
            return Ok(None);
        }
        if let Some(why) = topics.iter().find_map(|t| t["stopped"].as_str()) {
            return Ok(Some(format!("{passed} of them, then: {why}")));
        }
    }
}
