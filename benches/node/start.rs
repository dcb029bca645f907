//! How soon a node delivers: after its start, after a kill under load, and over a million finished records that one
//! waiting key keeps above the position.

use crate::node::{Folder, Setup};
use crate::partner::{Arrival, Plan};
use crate::records::Shape;
use crate::table::{Row, seconds};
use crate::{Bench, Failed};
use std::collections::HashSet;
use std::time::Duration;

const ROUNDS: u32 = 5;

/// From a start to the first arrival that counts.
fn first_after(start_ns: u64, arrivals: &[Arrival], counts: impl Fn(&Arrival) -> bool) -> Option<Duration> {
    let first = arrivals.iter().find(|a| a.at_ns >= start_ns && counts(a))?;
    Some(Duration::from_nanos(first.at_ns - start_ns))
}

/// First delivery after a start, and after a kill under load.
pub fn start(bench: &mut Bench) -> Result<Vec<Row>, Failed> {
    let folder = Folder::new(&Setup::default(), &bench.partner, &bench.places)?;
    folder.import(Shape {
        first: 0,
        count: bench.size(1_000_000),
        keys: 10_000,
        size: 200,
    })?;
    bench.partner.plan(&Plan::default())?;
    let mut all = Vec::new();
    let mut took = Vec::new();
    for _ in 0..=ROUNDS {
        let mut node = folder.run(&[])?;
        let enough = u64::from(bench.size(60_000));
        node.until(&mut bench.partner, enough)?;
        let started = node.started_ns;
        node.kill()?;
        let arrivals = bench.partner.take()?;
        took.push(first_after(started, &arrivals, |_| true).ok_or("nothing came")?);
        all.extend(arrivals);
    }
    let distinct: HashSet<u32> = all.iter().map(|a| a.id).collect();
    let worst = took[1..].iter().max().copied().unwrap_or_default();
    Ok(vec![
        Row::held(
            "first delivery after the start of the process",
            seconds(took[0]),
            "≤ 500 ms; peers 0.2-3.4 s",
            took[0] <= Duration::from_millis(500),
        ),
        Row::held(
            format!("next delivery after kill -9 under load, worst of {ROUNDS}"),
            seconds(worst),
            "≤ 1 s; peers up to 45 s",
            worst <= Duration::from_secs(1),
        ),
        Row::held(
            "messages requested twice over these kills (doubt = park)",
            (all.len() - distinct.len()).to_string(),
            "0; peers 5,760-44,704",
            all.len() == distinct.len(),
        ),
    ])
}

/// A restart with a million finished records above the position.
pub fn finished_above(bench: &mut Bench) -> Result<Vec<Row>, Failed> {
    let setup = Setup {
        partitions: 1,
        ..Setup::default()
    };
    let finished = bench.size(1_000_000);
    let shape = Shape {
        first: 0,
        count: finished + finished / 5,
        keys: 10_000,
        size: 200,
    };
    let folder = Folder::new(&setup, &bench.partner, &bench.places)?;
    folder.import(shape)?;
    bench.partner.plan(&Plan {
        refuse: Some(0),
        ..Plan::default()
    })?;
    let mut node = folder.run(&[])?;
    node.until(&mut bench.partner, u64::from(finished) + 1_000)?;
    node.kill()?;
    let before: HashSet<u32> = bench.partner.take()?.iter().map(|a| a.id).collect();

    let mut node = folder.run(&[])?;
    node.until(&mut bench.partner, 20_000.min(u64::from(finished) / 10))?;
    let started = node.started_ns;
    node.kill()?;
    let arrivals = bench.partner.take()?;
    let others = |a: &Arrival| shape.key(a.id) != 0;
    let took = first_after(started, &arrivals, others).ok_or("nothing came")?;
    let again = arrivals.iter().filter(|a| others(a) && before.contains(&a.id));
    Ok(vec![
        Row::held(
            "next delivery after kill -9 with 1M finished records above a waiting one",
            seconds(took),
            "≤ 3 s",
            took <= Duration::from_secs(3),
        ),
        Row::held(
            "messages requested again after it",
            again.count().to_string(),
            "0",
            !arrivals.iter().any(|a| others(a) && before.contains(&a.id)),
        ),
    ])
}
