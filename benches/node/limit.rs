//! A limit of 1,000 a second over 16 partitions: held in every sliding second, and used, also across a kill.

use crate::node::{Folder, Setup};
use crate::partner::{Arrival, Plan};
use crate::records::Shape;
use crate::table::{Row, seconds};
use crate::{Bench, Failed};
use std::time::Duration;

const LIMIT: usize = 1_000;
const SECOND: u64 = 1_000_000_000;

/// Most arrivals in any second, its end not included.
fn busiest_second(arrivals: &[Arrival]) -> usize {
    let mut first = 0;
    let mut most = 0;
    for (i, a) in arrivals.iter().enumerate() {
        while a.at_ns - arrivals[first].at_ns >= SECOND {
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
        stalls.push(seconds(bench.partner.stall()?));
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
    Ok(vec![
        Row::held(
            format!("limit 1,000/s, 16 partitions, {span_s} s: busiest sliding second at the partner"),
            busiest_second(steady).to_string(),
            format!("≤ 1,000; the partner itself was late by {} at most", stalls[0]),
            busiest_second(steady) <= LIMIT,
        ),
        Row::held(
            "of the limit used",
            format!("{:.2} %", used * 100.0),
            "≥ 98.5 %",
            used >= 0.985,
        ),
        Row::held(
            "busiest sliding second across kill -9 and restart",
            busiest_second(killed).to_string(),
            format!("≤ 1,000; the partner itself was late by {} at most", stalls[1]),
            busiest_second(killed) <= LIMIT,
        ),
        Row::beside(
            "of the limit used in that run",
            format!("{:.2} %", killed.len() as f64 / (LIMIT as f64 * alive_s) * 100.0),
            format!("the {} ms of silence not counted", gap / 1_000_000),
        ),
    ])
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
