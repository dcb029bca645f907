//! A node's delivery in simulated time, killed between any two steps, against an oracle that never dies.
//!
//! Everything is the product's own: partitions, key queues, attempts, gate, turnstile, budgets, breaker, the lane's
//! group commit, the fold and the checkpoint. Made up are the disk ([`disk`]: it persists at once or late,
//! acknowledges late, is busy or full, forgets what nobody needs), the partners ([`partner`]: slow, failing, throttling,
//! hanging, with resets before and after they took a request) and the time, which jumps from event to event.
//!
//! All the while an [`operator`] gives orders: marks, skip rules, replays, forgetting, dropping, settling doubts, pauses,
//! other limits, partitions that fail and are built again; and does not always get an answer.
//!
//! A *life* ([`world`]) runs until it is killed at its n-th step, is stopped in order, or has nothing left to do. A
//! *step* is whatever the outside could see: a batch that becomes durable, its acknowledgement, a request before and
//! after its first byte, its effect, its answer. Between two steps a process has only changed its memory, which a
//! kill takes away, so killing at steps is killing anywhere. The next life begins from what is durable, its fold taken
//! through a checkpoint at a random place.
//!
//! [`oracle`] checks at every step, and at the end: I1 nothing lost, I2 nothing sent twice knowingly, I3 doubts only
//! where a request may have been written, I4 order per key, I5 no window above its limit, over restarts too; what
//! orders promise: nothing marked or skipped is sent once that was answered, a forgotten message is sent again and under
//! a later round, a doubt alone holds its key; and that everything ends once the partner is well.
//!
//! `SLUICEGATE_SIM_RUNS` sets how many histories each test tries, `SLUICEGATE_SIM_SEED` where to begin. A failure names its
//! seed; `SLUICEGATE_SIM_RUNS=1 SLUICEGATE_SIM_SEED=n` with `killed_anywhere_a` runs that history again, step for step, and
//! `SLUICEGATE_SIM_TELL=1` tells it: what becomes durable, what is requested, which orders are answered.

mod disk;
mod operator;
mod oracle;
mod partner;
mod scenario;
mod world;

use scenario::Scenario;
use world::World;

/// Histories tried where nothing else is asked for, by each of the tests below.
const RUNS: u64 = 100;

fn from_env(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// One history. Returns a figure of all its steps, and how many messages were delivered; or what there is to object.
fn history(scenario: Scenario) -> Result<(u64, u64), String> {
    crate::patience::watch();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async move {
        let _time = crate::clock::simulated::begin(scenario::START);
        fastrand::seed(scenario.seed);
        let mut world = World::new(scenario);
        world.run().await;
        world.verdict()
    })
}

/// Objections after which no more histories are tried.
const ENOUGH: usize = 20;
/// So many histories after one another are worth a line, on standard error.
const TOLD_EVERY: u64 = 5_000;

/// Every `step`-th seed from `first` on.
fn histories(first: u64, step: u64) {
    let runs = from_env("SLUICEGATE_SIM_RUNS", RUNS);
    let seed = from_env("SLUICEGATE_SIM_SEED", 0);
    let (mut delivered, mut objections, began) = (0, Vec::new(), std::time::Instant::now());
    for n in 0..runs {
        match history(Scenario::of(seed + first + n * step)) {
            Ok((_, of_this)) => delivered += of_this,
            Err(objection) => {
                eprintln!("{objection}");
                objections.push(objection);
            }
        }
        if (n + 1) % TOLD_EVERY == 0 {
            let took = began.elapsed().as_secs_f64();
            let (rate, objected) = ((n + 1) as f64 / took, objections.len());
            eprintln!(
                "{} histories, {delivered} messages delivered, {objected} objections, {rate:.0} a second",
                n + 1
            );
        }
        if objections.len() == ENOUGH {
            break;
        }
    }
    assert!(objections.is_empty(), "{}", objections.join("\n"));
    assert!(
        delivered > 0,
        "the histories delivered nothing: they prove nothing"
    );
}

// Four tests, so that cores share them; each has a quarter of the seeds.
#[test]
fn killed_anywhere_a() {
    histories(0, 4);
}

#[test]
fn killed_anywhere_b() {
    histories(1, 4);
}

#[test]
fn killed_anywhere_c() {
    histories(2, 4);
}

#[test]
fn killed_anywhere_d() {
    histories(3, 4);
}

#[test]
fn a_seed_is_one_history() {
    for seed in 0..8 {
        assert_eq!(
            history(Scenario::of(seed)),
            history(Scenario::of(seed)),
            "seed {seed}"
        );
    }
}

#[test]
fn a_partner_that_hangs_parks_few() {
    for seed in 0..from_env("SLUICEGATE_SIM_RUNS", RUNS).div_ceil(15) {
        let objection = history(Scenario::hanging(seed)).err();
        assert_eq!(objection, None);
    }
}
