//! CPU per exactly-once delivery, beside what the same requests cost a loop that promises nothing.

use crate::bare::{self, Bare, Cost};
use crate::node::{Folder, Setup};
use crate::partner::Plan;
use crate::places::{Used, used};
use crate::records::Shape;
use crate::table::{Row, count};
use crate::{Bench, Failed};
use std::collections::HashSet;

/// One way to the partner.
struct Way {
    name: &'static str,
    tls: bool,
}

/// The main way, with its resident size and bytes.
pub fn plain(bench: &mut Bench) -> Result<Vec<Row>, Failed> {
    let way = Way {
        name: "own connections",
        tls: false,
    };
    one(bench, &way, bench.size(1_000_000))
}

/// Over TLS.
pub fn tls(bench: &mut Bench) -> Result<Vec<Row>, Failed> {
    let way = Way {
        name: "TLS",
        tls: true,
    };
    one(bench, &way, bench.size(300_000))
}

/// The two bare loops, in turns with what they are compared with.
fn loops(bench: &Bench, tls: bool) -> Result<[Cost; 2], Failed> {
    let n = bench.size(300_000);
    let measure = |which| bare::measure(&bench.partner, &bench.places, which, tls, n, bench.in_flight);
    Ok([measure(Bare::Reqwest)?, measure(Bare::Hyper)?])
}

fn one(bench: &mut Bench, way: &Way, messages: u32) -> Result<Vec<Row>, Failed> {
    let setup = Setup {
        concurrency: bench.in_flight,
        tls: way.tls,
        ..Setup::default()
    };
    let folder = Folder::new(&setup, &bench.partner, &bench.places)?;
    folder.import(Shape {
        first: 0,
        count: messages,
        keys: 10_000,
        size: 200,
    })?;
    bench.partner.plan(&Plan::default())?;
    let before = loops(bench, way.tls)?;
    bench.partner.take()?;
    let partner_before = used(bench.partner.pid(), Used::default())?;
    let mut node = folder.drain()?;
    let at_fifth = node.until(&mut bench.partner, u64::from(messages) / 5)?;
    let at_all = node.until(&mut bench.partner, u64::from(messages))?;
    let whole = node.end()?;
    let partner_after = used(bench.partner.pid(), Used::default())?;
    let arrivals = bench.partner.take()?;
    let after = loops(bench, way.tls)?;
    bench.partner.take()?;

    let distinct: HashSet<u32> = arrivals.iter().map(|a| a.id).collect();
    let n = f64::from(messages);
    // From a fifth of the messages to the last, as the peers were measured: start and end are left out.
    let fifth = &arrivals[arrivals.len() / 5..];
    let span_s = match (fifth.first(), fifth.last()) {
        (Some(first), Some(last)) => (last.at_ns - first.at_ns) as f64 / 1e9,
        _ => return Err("nothing came".into()),
    };
    let us = (at_all.cpu_s - at_fifth.cpu_s) * 1e6 / (n * 0.8);
    let reqwest = (before[0].us + after[0].us) / 2.0;
    let hyper = (before[1].us + after[1].us) / 2.0;
    let name = way.name;
    let against = format!(
        "bare reqwest {reqwest:.1} µs ({}/s), bare hyper {hyper:.1} µs ({}/s)",
        count(before[0].rate),
        count(before[1].rate)
    );
    let figure = format!(
        "{us:.1} µs = {:.2} x reqwest, {:.2} x hyper",
        us / reqwest,
        us / hyper
    );
    let what = format!("CPU per delivery, {name}");
    let mut rows = vec![match way.tls {
        true => Row::beside(what, figure, against),
        false => Row::held(
            what,
            figure,
            format!("≤ 1.00 x reqwest (aim 0.75); {against}; best peer 52.6 µs"),
            us <= reqwest,
        ),
    }];
    rows.push(Row::beside(
        format!("whole life of the process, {name}"),
        format!("{:.1} µs a delivery", whole.cpu_s * 1e6 / n),
        "start, opening, last checkpoint and end included",
    ));
    rows.push(Row::beside(
        format!("deliveries a second on one core, {name}"),
        count(fifth.len() as f64 / span_s),
        format!(
            "best peer 18,700; the partner itself took {:.1} µs a request of its own core",
            (partner_after.cpu_s - partner_before.cpu_s) * 1e6 / n
        ),
    ));
    rows.push(Row::held(
        format!("messages requested twice or never, {name}"),
        format!(
            "{}, {}",
            arrivals.len() - distinct.len(),
            messages as usize - distinct.len().min(messages as usize)
        ),
        "0, 0",
        arrivals.len() == distinct.len() && distinct.len() == messages as usize,
    ));
    if !way.tls {
        rows.push(Row::held(
            "resident, most in that run",
            format!("{:.0} MiB", whole.peak_mib),
            "≤ 150 MiB; peers 223-602 MiB",
            whole.peak_mib <= 150.0,
        ));
        rows.push(Row::beside(
            "written to disk per delivered message",
            format!("{:.0} B", whole.written as f64 / n),
            "ledger, dedup store and checkpoints; zero-filling of new segments included",
        ));
    }
    Ok(rows)
}
