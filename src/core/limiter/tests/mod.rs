mod quotas;
mod values;
mod windows;

use super::*;
use crate::config::model::CalendarUnit;
use crate::core::ledger::entry::{BudgetDraw, Used};
use crate::core::ledger::fold::UsedBudgets;
use proptest::prelude::*;
use std::collections::VecDeque;

const START: Time = Time::from_millis(1_700_000_000_000);

fn sliding(count: u64, window: Duration) -> Rate {
    Rate::Sliding { count, window }
}

fn limit(rates: Vec<Rate>) -> LimitConfig {
    LimitConfig {
        rates,
        by: None,
        burst: None,
        margin: ms(10),
    }
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// All that the ledger knows of a budget that is not split.
fn restore(limiter: &mut Limiter, used: &UsedSlots, now: Time) {
    limiter.restore(|each| each(0, used), now);
}

/// Cases of the property tests; more with `SLUICEGATE_CASES`.
fn cases(default: u32) -> ProptestConfig {
    let cases = std::env::var("SLUICEGATE_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(default);
    ProptestConfig::with_cases(cases)
}

/// The most starts in any window of this length, half open, wherever it is laid.
fn most_in_a_window(starts: &[Time], window: Duration) -> usize {
    let mut sorted = starts.to_vec();
    sorted.sort_unstable();
    let (mut from, mut most) = (0, 0);
    for (to, &at) in sorted.iter().enumerate() {
        while sorted[from].plus(window) <= at {
            from += 1;
        }
        most = most.max(to - from + 1);
    }
    most
}

/// What the fold of a lane keeps of slots: the last minute singly, the rest by quarter hours.
fn folded(slots: &[Time]) -> UsedSlots {
    let mut used = UsedSlots {
        recent: VecDeque::new(),
        ..UsedSlots::default()
    };
    let newest = slots.iter().max().copied().unwrap_or(Time::ZERO);
    let mut sorted = slots.to_vec();
    sorted.sort_unstable();
    for &slot in &sorted {
        if newest.since(slot) <= ms(60_000) {
            used.recent.push_back((slot, 1));
        } else {
            *used
                .quarters
                .entry(Time(slot.0 - slot.0 % 900_000_000))
                .or_default() += 1;
        }
    }
    used
}

#[derive(Clone, Debug)]
struct Arrival {
    wait_us: u64,
    late: u8,
    event: u8,
}

fn arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    let arrival = (
        prop_oneof![4 => Just(0u64), 4 => 0u64..5_000, 2 => 0u64..400_000, 1 => 0u64..3_000_000],
        any::<u8>(),
        any::<u8>(),
    )
        .prop_map(|(wait_us, late, event)| Arrival { wait_us, late, event });
    prop::collection::vec(arrival, 1..600)
}

fn rates() -> impl Strategy<Value = Vec<(u64, u64)>> {
    let window = prop_oneof![Just(100u64), Just(250), Just(1_000), Just(2_000), Just(7_000)];
    prop::collection::vec((1u64..60, window), 1..4)
}

/// Slots taken one after the other as early as allowed, for so long.
fn saturate(limiter: &mut Limiter, by: u64, from: Time, span: Duration) -> Vec<Time> {
    let (mut slots, mut at) = (Vec::new(), from);
    loop {
        at = limiter.earliest(by, at);
        if at >= from.plus(span) {
            return slots;
        }
        limiter.take(by, at);
        slots.push(at);
    }
}
