//! What a history is about, drawn from its seed.

use crate::config::model::{DoubtConfig, DoubtPolicy, LimitConfig, LimitRef, Rate, VerifyConfig};
use crate::config::{OnDoubt, PartnerConfig};
use crate::core::types::Time;
use std::time::Duration;

/// The wall clock at the beginning of a history.
pub const START: Time = Time(1_790_000_000_000_000);

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub seed: u64,
    /// Partners; each has a route of its own from the one topic.
    pub partners: Vec<PartnerConfig>,
    /// The budget that all partners share, or each has one of its own.
    pub shared: bool,
    /// Rates of the budgets.
    pub limit: Option<LimitConfig>,
    pub partitions: u32,
    pub keys: u64,
    pub messages: u64,
    pub lives: u32,
    pub busy_keys: usize,
    /// Messages handed out that have no start slot yet.
    pub ahead: usize,
    pub window: usize,
    pub node_cap: usize,
    pub tick: Duration,
    pub position_every: Duration,
    pub waiting_after: Duration,
    pub ranges: usize,
    /// The disk is sometimes busy, or full for a while.
    pub bad_disk: bool,
    /// The topic forgets what every route has passed.
    pub forgets: bool,
    /// The wall clock is set back at each restart, by at most so much.
    pub clock_set_back: Duration,
    /// What the node may hold: much, or so little that what waits is left outside.
    pub memory: u64,
    pub rest_after: Duration,
    /// The partners do nothing but hang for so long.
    pub hangs: Option<Duration>,
}

impl Scenario {
    pub fn of(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed ^ 0x51_01_CE);
        let limit = (rng.u8(0..4) > 0).then(|| limit(&mut rng));
        let shared = rng.bool();
        let partners = (0..rng.u64(1..=2)).map(|n| partner(n, &limit, shared, &mut rng));
        Self {
            partners: partners.collect(),
            seed,
            shared,
            limit,
            partitions: rng.u32(1..=2),
            keys: rng.u64(1..12),
            messages: rng.u64(20..120),
            lives: rng.u32(2..7),
            busy_keys: rng.usize(1..12),
            ahead: rng.usize(1..6),
            window: rng.usize(4..200),
            node_cap: rng.usize(2..20),
            // Seldom as short as a node's: most of the time would go into looking for nothing.
            tick: ms([5, 20, 40, 80][rng.usize(0..4)]),
            position_every: ms([50, 100, 200][rng.usize(0..3)]),
            waiting_after: ms(rng.u64(50..3_000)),
            ranges: rng.usize(2..50),
            bad_disk: rng.u8(0..3) == 0,
            forgets: rng.bool(),
            clock_set_back: if rng.u8(0..4) == 0 {
                ms(5_000)
            } else {
                Duration::ZERO
            },
            memory: [1 << 20, 20 << 10][rng.usize(0..2)],
            rest_after: ms(rng.u64(20..400)),
            hangs: None,
        }
    }

    /// One whose partners take nothing and answer nothing for ten minutes, and whose doubts are parked.
    pub fn hanging(seed: u64) -> Self {
        let mut scenario = Self::of(seed);
        scenario.hangs = Some(ms(600_000));
        scenario.lives = 2;
        for p in &mut scenario.partners {
            p.doubt = DoubtConfig::all(DoubtPolicy::Park);
            p.concurrency = p.concurrency.min(4);
            p.flood.doubts_in_a_row = p.concurrency as u32;
            // Nobody is there to let a route go on.
            p.flood.dead_in_a_row = 0;
        }
        scenario
    }

    /// The budget that this partner draws from.
    pub fn budget(&self, partner: usize) -> u64 {
        if self.shared { 77 } else { 100 + partner as u64 }
    }
}

fn limit(rng: &mut fastrand::Rng) -> LimitConfig {
    let window = |rng: &mut fastrand::Rng| ms([100, 250, 1_000, 3_000][rng.usize(0..4)]);
    let mut rates = Vec::new();
    for _ in 0..rng.usize(1..=2) {
        let window = window(rng);
        // At least ten starts a second, so that a history ends; few enough to be what holds a life back.
        let least = (window.as_millis() as u64 / 100).max(2);
        rates.push(Rate::Sliding {
            count: rng.u64(least..least * 3),
            window,
        });
    }
    LimitConfig {
        rates,
        by: (rng.u8(0..4) == 0).then(|| "/app".to_owned()),
        burst: (rng.u8(0..3) == 0).then(|| rng.u32(1..10)),
        ..LimitConfig::default()
    }
}

fn partner(n: u64, limit: &Option<LimitConfig>, shared: bool, rng: &mut fastrand::Rng) -> PartnerConfig {
    let mut p = PartnerConfig::new(format!("p{n}"), "http://127.0.0.1/");
    p.concurrency = rng.usize(1..9);
    p.timeout.request = ms(rng.u64(50..400));
    p.retry.first = ms(rng.u64(2..50));
    p.retry.longest = ms(rng.u64(50..500));
    p.retry.longest_retry_after = ms(800);
    p.retry.attempts = (rng.u8(0..4) == 0).then(|| rng.u32(2..9));
    p.doubt =
        DoubtConfig::all([DoubtPolicy::Park, DoubtPolicy::Resend, DoubtPolicy::Verify][rng.usize(0..3)]);
    p.on_doubt = if rng.u8(0..4) == 0 {
        OnDoubt::Hold
    } else {
        OnDoubt::Continue
    };
    let mut verify = VerifyConfig::new("http://127.0.0.1/", "true", "true", p.timeout.request);
    verify.settle = ms(500);
    p.verify = Some(verify);
    p.breaker.failures = rng.u32(2..12);
    p.breaker.open = ms(rng.u64(20..200));
    p.breaker.longest = ms(1_000);
    p.breaker.probes = rng.u32(1..3);
    p.flood.dead_in_a_row = [0, 0, 3, 8][rng.usize(0..4)];
    p.flood.doubts_in_a_row = p.concurrency as u32;
    p.limits = match (limit, shared) {
        (None, _) => Vec::new(),
        (Some(_), true) => vec![LimitRef::Named("shared".into())],
        (Some(limit), false) => vec![LimitRef::Inline(limit.clone())],
    };
    p
}
