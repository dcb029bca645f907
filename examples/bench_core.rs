//! What the decisions on the path of a send cost, in nanoseconds an operation and bytes an item.
//!
//! `cargo run --profile quick --example bench_core`. Each figure is the best of five rounds in one run on one thread,
//! so that a busy machine disturbs little; compare figures of one run only.

use sluicegate::config::model::{LimitConfig, Rate};
use sluicegate::core::breaker::{AttemptResult, BreakerSettings};
use sluicegate::core::key_queues::KeyQueues;
use sluicegate::core::ledger::entry::BudgetDraw;
use sluicegate::core::limiter::{BudgetTable, Limiter};
use sluicegate::core::turnstile::{Granted, Turnstile};
use sluicegate::core::types::{KeyHash, Time};
use std::hint::black_box;
use std::time::{Duration, Instant};

const START: Time = Time::from_millis(1_700_000_000_000);
const LEAD: Duration = Duration::from_millis(3);

/// Best of five rounds: nanoseconds an operation.
fn best(operations: u64, mut round: impl FnMut()) -> f64 {
    (0..5)
        .map(|_| {
            let from = Instant::now();
            round();
            from.elapsed().as_nanos() as f64 / operations as f64
        })
        .fold(f64::INFINITY, f64::min)
}

fn line(what: &str, ns: f64) {
    println!("{what:<66} {ns:>8.1} ns");
}

fn limit(count: u64, secs: u64) -> LimitConfig {
    let rates = vec![Rate::Sliding {
        count,
        window: Duration::from_secs(secs),
    }];
    LimitConfig {
        rates,
        by: None,
        burst: None,
        ..LimitConfig::default()
    }
}

fn settings(concurrency: u32) -> BreakerSettings {
    BreakerSettings {
        failures: 20,
        open: Duration::from_secs(1),
        longest: Duration::from_secs(60),
        probes: 1,
        doubts_in_a_row: concurrency,
        concurrency,
        doubts_park: true,
        doubt_probe: Duration::from_secs(60),
    }
}

/// What a queued record may look like: a position and a place for its payload.
struct Item {
    _offset: u64,
}
impl sluicegate::core::key_queues::Queued for Item {}
fn limiters() {
    const N: u64 = 1_000_000;
    for (name, count, secs) in [
        ("limiter: earliest + take, 1,000/s, saturated", 1_000, 1),
        (
            "limiter: earliest + take, 100,000/s (buckets), saturated",
            100_000,
            1,
        ),
        (
            "limiter: earliest + take, 1,000,000/min, saturated",
            1_000_000,
            60,
        ),
    ] {
        let Ok(mut limiter) = Limiter::try_new(&limit(count, secs), START) else {
            return;
        };
        let mut at = START;
        let ns = best(N, || {
            for _ in 0..N {
                at = limiter.earliest(0, at);
                limiter.take(0, at);
            }
        });
        line(name, ns);
    }
    let Ok(mut limiter) = Limiter::try_new(&limit(1_000, 1), START) else {
        return;
    };
    let mut at = START;
    let mut by = 0;
    let ns = best(N, || {
        for _ in 0..N {
            by = by % 1_000 + 1;
            at = at.plus(Duration::from_micros(2));
            let slot = limiter.earliest(by, at);
            limiter.take(by, slot);
        }
    });
    line("limiter: the same, split over 1,000 values", ns);
}

fn turnstiles() {
    const N: u64 = 1_000_000;
    let mut table = BudgetTable::new();
    let _ = table.set(1, &limit(100_000_000, 1), START);
    for (name, draws) in [
        ("turnstile: try_grant + finish, no rates", &[][..]),
        (
            "turnstile: try_grant + finish, one rate",
            &[BudgetDraw { budget: 1, by: 0 }][..],
        ),
    ] {
        let mut gate = Turnstile::new(0, settings(256), START);
        let mut now = START;
        let ns = best(N, || {
            for i in 0..N {
                now = now.plus(Duration::from_micros(1));
                if let Some(slot) = gate.try_grant(now, LEAD, draws, &mut table) {
                    gate.finish(black_box(&slot), AttemptResult::Answered, now, i);
                }
            }
        });
        line(name, ns);
    }
    for (name, rate, queues, values) in [
        (
            "turnstile: enqueue + grant + finish, 4 queues, no wait",
            100_000_000,
            4,
            1,
        ),
        ("turnstile: the same, 1,000/s saturated, 4 queues", 1_000, 4, 1),
        (
            "turnstile: the same, 1,000/s saturated, 500 queues",
            1_000,
            500,
            1,
        ),
        (
            "turnstile: the same, 4 queues of 1,000 values each",
            1_000,
            4,
            1_000,
        ),
    ] {
        let mut table = BudgetTable::new();
        let _ = table.set(1, &limit(rate, 1), START);
        let _ = table.set(2, &limit(100_000, 1), START);
        let mut gate = Turnstile::new(0, settings(256), START);
        let (mut now, mut ticket, mut out) = (START, 0u64, Vec::new());
        const GRANTS: u64 = 100_000;
        let ns = best(GRANTS, || {
            let mut granted = 0;
            while granted < GRANTS {
                while gate.waiting() < 4_000 {
                    ticket += 1;
                    let by = (ticket / queues) % values + 1;
                    let draws = [BudgetDraw { budget: 2, by }, BudgetDraw { budget: 1, by: 0 }];
                    gate.enqueue((ticket % queues) as u32, ticket, draws.into());
                }
                let ask = gate.grant(now, LEAD, 256, &mut table, &mut out);
                granted += out.len() as u64;
                for Granted { slot, .. } in out.drain(..) {
                    gate.finish(&slot, AttemptResult::Answered, now, 0);
                }
                now = now
                    .max(if ask == Time::NEVER { now } else { ask })
                    .plus(Duration::from_micros(100));
            }
        });
        line(name, ns);
    }
}

fn queues() {
    const N: u64 = 1_000_000;
    for (name, keys) in [
        ("key queues: push + next + done, 10,000 keys in turn", 10_000),
        (
            "key queues: push + next + done, 1,000,000 keys in turn",
            1_000_000,
        ),
        ("key queues: push + next + done, one key", 1),
    ] {
        let ns = best(N, || {
            let mut queues = KeyQueues::new(1_000);
            for chunk in 0..N / 1_000 {
                for i in 0..1_000 {
                    let key = (chunk * 1_000 + i) % keys;
                    let hash = KeyHash(key.wrapping_mul(0xA24B_AED4_963E_E407));
                    queues.push(Some(hash), Item { _offset: i });
                }
                while let Some((key, item)) = queues.next_ready() {
                    black_box(item);
                    while let Some(item) = queues.done(key) {
                        black_box(item);
                    }
                }
            }
        });
        line(name, ns);
    }
    let now = START;
    let mut queues = KeyQueues::new(usize::MAX);
    let ns = best(N, || {
        for i in 0..N {
            queues.push(
                Some(KeyHash(i.wrapping_mul(0xA24B_AED4_963E_E407))),
                Item { _offset: i },
            );
        }
        while let Some((key, item)) = queues.next_ready() {
            let key_no = key.map_or(0, |k| k.0);
            queues.wait_until(
                key,
                item,
                now.plus(Duration::from_micros(key_no % 300_000_000)),
                now,
            );
        }
        queues.due(Time::NEVER);
        while let Some((key, _)) = queues.next_ready() {
            queues.done(key);
        }
    });
    line(
        "key queues: a whole life with one retry, 1,000,000 keys at once",
        ns,
    );
    for (name, keys) in [("behind one key", 1), ("each with a key of its own", u64::MAX)] {
        let mut queues = KeyQueues::new(1_000);
        let n = 5_000_000u64;
        let from = Instant::now();
        for i in 0..n {
            let key = if keys == 1 {
                1
            } else {
                i.wrapping_mul(0xA24B_AED4_963E_E407)
            };
            queues.push(Some(KeyHash(key)), Item { _offset: i });
        }
        let push = from.elapsed().as_nanos() as f64 / n as f64;
        let bytes = queues.memory() as f64 / n as f64;
        println!(
            "key queues: 5,000,000 items {name}: {push:.1} ns a push, {bytes:.1} B an item (item itself: {} B)",
            size_of::<Item>()
        );
    }
}

fn main() {
    limiters();
    turnstiles();
    queues();
}
