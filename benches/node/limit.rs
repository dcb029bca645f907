//! A limit of 1,000 a second over 16 partitions: held in every sliding second, and used, also across a kill.

use crate::node::{Folder, Setup};
use crate::partner::{Arrival, Plan};
use crate::records::Shape;
use crate::table::{Row, seconds};
use crate::{Bench, Failed};
use std::time::Duration;

const LIMIT: usize = 1_000;
const SECOND: u64 = 1_000_000_000;

/// Most arrivals in any window so long, its end not included.
fn busiest(arrivals: &[Arrival], window_ns: u64) -> usize {
    let mut first = 0;
    let mut most = 0;
    for (i, a) in arrivals.iter().enumerate() {
        while a.at_ns - arrivals[first].at_ns >= window_ns {
            first += 1;
        }
        most = most.max(i + 1 - first);
    }
    most
}

fn folder<'a>(bench: &'a Bench, messages: u32) -> Result<Folder<'a>, Failed> {
    let setup = Setup {
        partitions: 16,
        partner: format!("limits = [\"{LIMIT}/s\"]"),
        ..Setup::default()
    };
    let folder = Folder::new(&setup, &bench.partner, &bench.places)?;
    folder.import(Shape {
        first: 0,
        count: messages,
        keys: 10_000,
        size: 200,
    })?;
    Ok(folder)
}

/// A steady run, and one with a kill in the middle.
pub fn limit(bench: &mut Bench) -> Result<Vec<Row>, Failed> {
    let span_s = if bench.quick { 10 } else { 60 };
    let (mut runs, mut stalls) = (Vec::new(), Vec::new());
    for kill in [false, true] {
        bench.partner.plan(&Plan::default())?;
        bench.partner.stall()?;
        let folder = folder(bench, u32::try_from(span_s * LIMIT as u64)? + 5_000)?;
        run_for(&folder, span_s, kill)?;
        drop(folder);
        let mut arrivals = bench.partner.take()?;
        let end = arrivals.first().map_or(0, |a| a.at_ns) + span_s * SECOND;
        arrivals.retain(|a| a.at_ns < end);
        stalls.push(bench.partner.stall()?);
        runs.push(arrivals);
    }
    let steady = &runs[0];
    let killed = &runs[1];
    let used = steady.len() as f64 / (LIMIT as u64 * span_s) as f64;
    // The longest silence is the time it was dead; what is left is what could be used.
    let gap = killed
        .windows(2)
        .map(|w| w[1].at_ns - w[0].at_ns)
        .max()
        .unwrap_or_default();
    let alive_s = span_s as f64 - gap as f64 / SECOND as f64;
    let name = format!("limit 1,000/s, 16 partitions, {span_s} s: busiest sliding second at the partner");
    Ok(vec![
        judged(&name, steady, stalls[0]),
        Row::held(
            "of the limit used",
            format!("{:.2} %", used * 100.0),
            "≥ 98.5 %",
            used >= 0.985,
        ),
        judged(
            "busiest sliding second across kill -9 and restart",
            killed,
            stalls[1],
        ),
        Row::beside(
            "of the limit used in that run",
            format!("{:.2} %", killed.len() as f64 / (LIMIT as f64 * alive_s) * 100.0),
            format!("the {} ms of silence not counted", gap / 1_000_000),
        ),
    ])
}

/// A partner that read up to D late cannot tell a full second from one and D: what it saw within a second less D
/// did arrive within one second. So more than the limit in there is proof, more in a second alone is not.
fn judged(name: &str, arrivals: &[Arrival], stall: Duration) -> Row {
    let seen = busiest(arrivals, SECOND);
    let late = u64::try_from(stall.as_nanos()).unwrap_or(SECOND);
    let proven = busiest(arrivals, SECOND.saturating_sub(late));
    let row = Row::held(
        name,
        seen.to_string(),
        format!(
            "≤ 1,000; the partner itself read up to {} late, within a second less that: {proven}",
            seconds(stall)
        ),
        seen <= LIMIT,
    );
    if seen > LIMIT && proven <= LIMIT {
        row.unclear()
    } else {
        row
    }
}

/// Lets the node work for so long; with a kill and a start at once after a third of the time.
fn run_for(folder: &Folder<'_>, span_s: u64, kill: bool) -> Result<(), Failed> {
    let mut node = folder.run(&[])?;
    if kill {
        std::thread::sleep(Duration::from_secs(span_s / 3));
        node.kill()?;
        node = folder.run(&[])?;
        std::thread::sleep(Duration::from_secs(span_s - span_s / 3 + 2));
    } else {
        std::thread::sleep(Duration::from_secs(span_s + 2));
    }
    node.kill()
}
