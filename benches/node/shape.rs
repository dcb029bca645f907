//! Slow partners and short work: how near the node comes to what the partner could take.

use crate::bare::{self, Bare};
use crate::node::{Folder, Setup};
use crate::partner::{Arrival, Plan};
use crate::records::Shape;
use crate::table::{Row, count, seconds};
use crate::{Bench, Failed};
use std::collections::HashMap;
use std::time::Duration;

/// Times that a message came before an earlier one of its key.
fn order_broken(arrivals: &[Arrival], shape: &Shape) -> usize {
    let mut last: HashMap<u32, u32> = HashMap::new();
    arrivals
        .iter()
        .filter(|a| {
            last.insert(shape.key(a.id), a.id)
                .is_some_and(|before| before >= a.id)
        })
        .count()
}

/// One partition, 100 ms an answer, 1,000 in flight.
pub fn slow(bench: &mut Bench) -> Result<Vec<Row>, Failed> {
    let setup = Setup {
        partitions: 1,
        concurrency: 1_000,
        ..Setup::default()
    };
    let shape = Shape {
        first: 0,
        count: bench.size(200_000),
        keys: 10_000,
        size: 200,
    };
    let folder = Folder::new(&setup, &bench.partner, &bench.places)?;
    folder.import(shape)?;
    bench.partner.plan(&Plan {
        delay_us: (100_000, 100_000),
        ..Plan::default()
    })?;
    let mut node = folder.drain()?;
    let n = u64::from(shape.count);
    let at_fifth = node.until(&mut bench.partner, n / 5)?;
    let at_all = node.until(&mut bench.partner, n)?;
    node.end()?;
    let arrivals = bench.partner.take()?;
    let broken = order_broken(&arrivals, &shape);
    let part = &arrivals[arrivals.len() / 5..];
    let (Some(first), Some(last)) = (part.first(), part.last()) else {
        return Err("nothing came".into());
    };
    // What bare connections get from the same partner: the ideal less what partner and machine take.
    let bare = bare::measure(
        &bench.partner,
        &bench.places,
        Bare::Hyper,
        false,
        shape.count / 2,
        1_000,
    )?;
    bench.partner.take()?;
    let rate = part.len() as f64 / ((last.at_ns - first.at_ns) as f64 / 1e9);
    Ok(vec![
        Row::held(
            "one partition, 10,000 keys, 100 ms an answer, 1,000 in flight",
            format!("{}/s", count(rate)),
            format!(
                "≥ 9,700/s of 10,000; best peer 9,115; bare hyper connections beside it {}",
                count(bare.rate)
            ),
            rate >= 9_700.0,
        ),
        Row::beside(
            "CPU per delivery in that run",
            format!(
                "{:.1} µs",
                (at_all.cpu_s - at_fifth.cpu_s) * 1e6 / part.len() as f64
            ),
            "peers 49-243 µs",
        ),
        Row::held("order of a key broken", broken.to_string(), "0", broken == 0),
    ])
}

/// First to last delivery of 10,000 short messages, all keys but `stuck`.
fn burst(bench: &mut Bench, stuck: Option<u32>) -> Result<Duration, Failed> {
    let setup = Setup {
        partitions: 1,
        concurrency: 100,
        partner: "timeout = { request = \"60s\" }".into(),
        ..Setup::default()
    };
    let shape = Shape {
        first: 0,
        count: 10_000,
        keys: 1_000,
        size: 200,
    };
    let folder = Folder::new(&setup, &bench.partner, &bench.places)?;
    folder.import(shape)?;
    bench.partner.plan(&Plan {
        delay_us: (0, 5_000),
        stuck: stuck.map(|key| (key, 30_000)),
        refuse: None,
        ..Plan::default()
    })?;
    let mut node = folder.run(&[])?;
    // The stuck key shows its first message, the nine behind it wait.
    let expected = if stuck.is_some() { 9_991 } else { 10_000 };
    node.until(&mut bench.partner, expected)?;
    node.kill()?;
    let mut arrivals = bench.partner.take()?;
    arrivals.retain(|a| stuck != Some(shape.key(a.id)));
    match (arrivals.first(), arrivals.last()) {
        (Some(first), Some(last)) => Ok(Duration::from_nanos(last.at_ns - first.at_ns)),
        _ => Err("nothing came".into()),
    }
}

/// 10,000 messages of 0-5 ms, and the same with one key stuck.
pub fn short(bench: &mut Bench) -> Result<Vec<Row>, Failed> {
    let (mut without, mut with) = (Vec::new(), Vec::new());
    // By turns, so that what else the machine does hits both.
    for _ in 0..5 {
        without.push(burst(bench, None)?);
        with.push(burst(bench, Some(500))?);
    }
    without.sort();
    with.sort();
    let (median, stuck) = (without[2], with[2]);
    let ratio = stuck.as_secs_f64() / median.as_secs_f64();
    Ok(vec![
        Row::held(
            "10,000 messages of 0-5 ms, 1,000 keys, 100 in flight: first to last, median of 5",
            seconds(median),
            "≤ 400 ms (ideal 250); peers 0.7-3.0 s",
            median <= Duration::from_millis(400),
        ),
        Row::held(
            "the same with one key stuck for 30 s, all other keys",
            format!("{} = {ratio:.2} x", seconds(stuck)),
            "≤ 1.05 x; lanes by key hash: > 200 s",
            ratio <= 1.05,
        ),
    ])
}
