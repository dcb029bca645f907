//! Budgets split by a field: each value has its own, within a bound of bytes; shared budgets and their turns.

use super::*;

/// Numbers of values as hashes of them are: spread evenly.
fn value(n: u64) -> u64 {
    n.wrapping_add(1).wrapping_mul(0xD1B5_4A32_D192_ED03)
}

fn by(rates: Vec<Rate>) -> LimitConfig {
    LimitConfig {
        by: Some("/app".into()),
        ..limit(rates)
    }
}

#[test]
fn split_budgets_count_apart_and_what_is_over_is_swept() {
    let mut limiter = Limiter::try_new(&by(vec![sliding(2, ms(1_000))]), START).unwrap();
    assert_eq!(saturate(&mut limiter, value(7), START, ms(1_000)).len(), 2);
    assert_eq!(saturate(&mut limiter, value(8), START, ms(1_000)).len(), 2);
    // Fifty thousand values, a thousand a second: those of past seconds are dropped.
    let mut most = 0;
    for i in 0..50_000u64 {
        let now = START.plus(ms(2_000 + i));
        let slot = limiter.earliest(value(1_000 + i), now);
        assert_eq!(slot, now);
        limiter.take(value(1_000 + i), slot);
        most = most.max(limiter.instances());
    }
    assert!(most < 16_384, "{most} instances");
    // And all of them by and by, when no value is new any more.
    (0..64).for_each(|_| limiter.sweep_some(START.plus(ms(60_000))));
    assert_eq!(limiter.instances(), 0);
    assert!(limiter.memory() < 64 << 10, "{} bytes", limiter.memory());
}

/// A million values with one start a minute each: every one has its own, whatever the others do.
#[test]
fn a_million_values_have_each_their_own_budget() {
    for rates in [
        vec![sliding(1, ms(60_000))],
        vec![Rate::Calendar {
            count: 1_000,
            unit: CalendarUnit::Day,
            zone: "UTC".into(),
        }],
    ] {
        let mut limiter = Limiter::try_new(&by(rates), START).unwrap();
        limiter.set_bound(128 << 20);
        for n in 0..1_000_000 {
            let now = START.plus(Duration::from_micros(20 * n));
            assert_eq!(limiter.earliest(value(n), now), now, "value {n}");
            limiter.take(value(n), now);
        }
        assert_eq!((limiter.instances(), limiter.classes()), (1_000_000, 0));
        assert!(limiter.memory() <= 96 << 20, "{} bytes", limiter.memory());
        let again = limiter.earliest(value(5), START.plus(ms(30_000)));
        let own = START.plus(Duration::from_micros(100));
        if limiter.rates.quotas.is_empty() {
            assert_eq!(again, own.plus(ms(60_014)));
        } else {
            assert_eq!(again, START.plus(ms(30_000)));
        }
    }
}

/// Beyond the bound, in bytes, values share by classes: nobody has more than his own, and one that has spent its
/// budget keeps back nobody but those of its class.
#[test]
fn at_the_bound_values_share_in_small_classes_and_never_get_more() {
    for rates in [
        vec![sliding(3, ms(60_000))],
        vec![sliding(300, ms(60_000)), sliding(40, ms(1_000))],
        vec![
            sliding(3, ms(60_000)),
            Rate::Calendar {
                count: 4,
                unit: CalendarUnit::Hour,
                zone: "UTC".into(),
            },
        ],
    ] {
        let most = match rates[0] {
            Rate::Sliding { count, .. } => count,
            Rate::Calendar { .. } => 0,
        };
        let mut limiter = Limiter::try_new(&by(rates), START).unwrap();
        let bound = 1 << 20;
        limiter.set_bound(bound);
        let mut at_once = 0u64;
        for n in 0..60_000 {
            let now = START.plus(Duration::from_micros(100 * n));
            let mut taken = 0;
            while taken <= most && limiter.earliest(value(n), now) < now.plus(ms(20)) {
                let slot = limiter.earliest(value(n), now);
                limiter.take(value(n), slot);
                taken += 1;
            }
            assert!(taken <= most, "{taken}");
            at_once += u64::from(taken > 0);
            assert!(limiter.memory() <= bound, "{} bytes", limiter.memory());
        }
        assert!(limiter.classes() >= 200, "{} classes", limiter.classes());
        // Most of those that fit have their own, and so has each class.
        assert!(at_once >= 1_000, "{at_once}");
        // Once all is over, each has its own again.
        let later = START.plus(ms(2 * 3_600_000));
        for n in 0..100 {
            let slot = limiter.earliest(value(n), later);
            assert_eq!(slot, later.max(slot), "value {n}");
            assert!(slot.since(later) < ms(20));
            limiter.take(value(n), slot);
        }
        assert!(limiter.instances() >= 100);
    }
}

/// What one value may use, however little room it has: never more than its limit in any window, and after a restart
/// from what the ledger knows of the values and classes neither.
fn values_hold(rates: &[(u64, u64)], bound: usize, arrivals: &[Arrival]) -> Result<(), TestCaseError> {
    let config = by(rates.iter().map(|&(n, w)| sliding(n, ms(w))).collect());
    let fresh = |now| {
        let mut limiter = Limiter::try_new(&config, now).unwrap();
        limiter.set_bound(bound);
        limiter
    };
    let mut limiter = fresh(START);
    let (mut now, mut used) = (START, UsedBudgets::default());
    used.set_horizon(1, horizon(&config));
    let mut starts: Vec<Vec<Time>> = vec![Vec::new(); 40];
    for arrival in arrivals {
        now = now.plus(Duration::from_micros(arrival.wait_us));
        if arrival.event < 4 {
            // The process died now: what it had not started it never will.
            starts.iter_mut().for_each(|own| own.retain(|&at| at <= now));
            limiter = fresh(now);
            limiter.restore(|each| used.each_of(1, |by, slots| each(by, slots)), now);
        }
        let n = usize::from(arrival.late) % starts.len();
        let draw = BudgetDraw {
            budget: 1,
            by: value(n as u64),
        };
        for _ in 0..1 + arrival.event % 7 {
            let slot = limiter.earliest(draw.by, now);
            prop_assert!(slot >= now);
            if slot > now.plus(ms(100)) {
                break;
            }
            limiter.take(draw.by, slot);
            used.note(draw, slot);
            starts[n].push(slot);
        }
        prop_assert!(limiter.memory() <= bound + 16_384, "{} bytes", limiter.memory());
    }
    for own in &starts {
        for &(count, window) in rates {
            let most = most_in_a_window(own, ms(window));
            prop_assert!(most as u64 <= count, "{most} in {window} ms, {count} allowed");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn no_value_exceeds_its_limit_whatever_room_there_is(
        rates in rates(),
        bound in prop_oneof![Just(1usize << 12), Just(1 << 14), Just(1 << 20)],
        arrivals in arrivals(),
    ) {
        values_hold(&rates, bound, &arrivals)?;
    }
}

#[test]
fn two_busy_partners_share_a_budget_evenly() {
    let draws = [BudgetDraw { budget: 1, by: 0 }];
    for count in [20u64, 1_000] {
        let mut table = BudgetTable::new();
        let _ = table
            .set(1, &limit(vec![sliding(count, ms(1_000))]), START)
            .unwrap();
        table.set_shared(1, true);
        let lead = ms(3);
        let mut taken = [0u64; 3];
        // Partner 0 always comes first; partner 2 claims once and never comes again.
        table.take(2, &draws, START);
        let mut wake = [START; 3];
        let mut now = START;
        while now < START.plus(ms(60_000)) {
            for who in [0u32, 1, 2] {
                while wake[who as usize] <= now {
                    let (slot, _) = table.earliest(who, &draws, now, lead);
                    if slot > now.plus(lead) {
                        wake[who as usize] = if who == 2 { Time::NEVER } else { slot.minus(lead) };
                        break;
                    }
                    table.take(who, &draws, slot);
                    taken[who as usize] += 1;
                }
            }
            now = now.plus(ms(1));
        }
        let all: u64 = taken.iter().sum();
        assert!(all as f64 >= 0.97 * (count * 60) as f64, "{taken:?}");
        assert!(taken[0].abs_diff(taken[1]) <= all / 100 + 20, "{taken:?}");
    }
}

/// More values than turns are kept for: who comes first goes first, and no start walks over all of them.
#[test]
fn turns_of_a_shared_budget_are_bounded() {
    let mut table = BudgetTable::new();
    let _ = table.set(1, &by(vec![sliding(1, ms(60_000))]), START).unwrap();
    table.set_shared(1, true);
    for n in 0..60_000u64 {
        let draws = [BudgetDraw {
            budget: 1,
            by: value(n),
        }];
        let (slot, _) = table.earliest(0, &draws, START, ms(3));
        table.take(0, &draws, slot);
        // The other one is kept back, and claims its turn.
        let (later, _) = table.earliest(1, &draws, START, ms(3));
        assert!(later > START.plus(ms(59_000)));
        assert!(table.turns(1) <= 16_384, "{}", table.turns(1));
    }
}
