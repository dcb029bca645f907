//! Sliding windows: never more in any, as the partner counts, and nearly all of what is allowed.

use super::*;

/// Starts at random times within their slots, misses, restarts and changes of the rates on the way: no window holds
/// more than any rate in force during all of it.
fn holds(
    rates: &[(u64, u64)],
    burst: Option<u32>,
    arrivals: &[Arrival],
    changes: bool,
) -> Result<(), TestCaseError> {
    let config = |factor: u64| LimitConfig {
        rates: rates.iter().map(|&(n, w)| sliding(n * factor, ms(w))).collect(),
        burst,
        ..LimitConfig::default()
    };
    let mut limiter = Limiter::try_new(&config(1), START).unwrap();
    let (mut now, mut slots, mut starts) = (START, Vec::new(), Vec::new());
    let mut factor = 1;
    for arrival in arrivals {
        now = now.plus(Duration::from_micros(arrival.wait_us));
        match arrival.event {
            0..6 => {
                // The process died now: what it had not started it never will.
                starts.retain(|&at: &Time| at <= now);
                limiter = Limiter::try_new(&config(factor), now).unwrap();
                restore(&mut limiter, &folded(&slots), now);
            }
            6..9 => {
                // The last slot was not met: nothing was started.
                if let Some(&slot) = slots.last()
                    && starts.last().is_some_and(|&at| at >= slot)
                {
                    starts.pop();
                    limiter.missed(0, slot);
                }
            }
            9..12 if changes => {
                factor = 3 - factor;
                let changed = limiter.set_rates(&config(factor), now).unwrap();
                prop_assert!(!changed.needs_history);
            }
            _ => {}
        }
        let slot = limiter.earliest(0, now);
        prop_assert!(slot >= now);
        limiter.take(0, slot);
        slots.push(slot);
        // Written within the slot, seen by the partner after up to the margin.
        let late = (limiter.validity() + ms(10)) * u32::from(arrival.late) / 255;
        starts.push(slot.plus(late));
        now = now.max(slot.minus(ms(5)));
    }
    let factor = if changes { 2 } else { 1 };
    for &(count, window) in rates {
        let most = most_in_a_window(&starts, ms(window));
        prop_assert!(
            most as u64 <= count * factor,
            "{} starts in {} ms, {} allowed",
            most,
            window,
            count
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn no_window_holds_more_than_its_rate(rates in rates(), burst in prop::option::of(1u32..20), arrivals in arrivals()) {
        holds(&rates, burst, &arrivals, false)?;
    }

    #[test]
    fn nor_when_rates_change_on_the_way(rates in rates(), arrivals in arrivals()) {
        holds(&rates, None, &arrivals, true)?;
    }
}

#[test]
fn at_least_98_5_percent_of_a_rate_can_be_used() {
    for (count, window, spans) in [
        (1, 1_000, 200),
        (10, 1_000, 200),
        (1_000, 1_000, 60),
        (4_096, 1_000, 10),
        (4_097, 1_000, 10),
        (20_000, 1_000, 10),
        (20_000, 60_000, 10),
        (300_000, 60_000, 3),
    ] {
        let mut limiter = Limiter::try_new(&limit(vec![sliding(count, ms(window))]), START).unwrap();
        let slots = saturate(&mut limiter, 0, START, ms(window * spans));
        let most = most_in_a_window(&slots, ms(window));
        assert!(most as u64 <= count, "{most} of {count} in {window} ms");
        // The first window's start is left out: there all of it may come at once.
        let use_of_it = slots.len() as f64 / (count * spans) as f64;
        assert!(
            use_of_it >= 0.985,
            "{count} in {window} ms: {:.2} % used",
            use_of_it * 100.0
        );
        assert!(limiter.memory() < 300_000, "{} bytes", limiter.memory());
    }
}

#[test]
fn slots_are_valid_for_some_milliseconds() {
    let validity = |w| {
        Limiter::try_new(&limit(vec![sliding(9, w)]), START)
            .unwrap()
            .validity()
    };
    assert_eq!(validity(ms(1_000)), ms(4));
    assert_eq!(validity(ms(86_400_000)), ms(4));
    assert_eq!(validity(ms(250)), ms(1));
    assert_eq!(validity(ms(20)), Duration::from_micros(500));
}

#[test]
fn a_burst_is_followed_by_even_spacing() {
    let config = LimitConfig {
        burst: Some(5),
        ..limit(vec![sliding(10, ms(1_000))])
    };
    let mut limiter = Limiter::try_new(&config, START).unwrap();
    let slots = saturate(&mut limiter, 0, START, ms(3_000));
    assert!(slots[4].since(START) < ms(1), "five at once: {:?}", &slots[..5]);
    // Evenly spaced until the window is full; then, after a rest, another burst.
    for pair in slots[4..10].windows(2) {
        let apart = pair[1].since(pair[0]);
        assert!(apart >= ms(100) && apart <= ms(102), "{apart:?}");
    }
    assert_eq!(slots[10], START.plus(ms(1_014)));
    for six in slots.windows(6) {
        assert!(six[5].since(six[0]) >= ms(100), "six back to back: {six:?}");
    }
    // After a restart nothing is left of the burst, after a long rest all of it is there again.
    let mut again = Limiter::try_new(&config, START).unwrap();
    let now = slots[slots.len() - 1].plus(ms(1));
    restore(&mut again, &folded(&slots), now);
    assert!(again.earliest(0, now).since(now) >= ms(90));
    let rested = now.plus(ms(60_000));
    assert_eq!(saturate(&mut again, 0, rested, ms(50)).len(), 5);
}

#[test]
fn missed_slots_move_the_next_ones_apart_and_that_passes() {
    let mut limiter = Limiter::try_new(&limit(vec![sliding(1_000, ms(1_000))]), START).unwrap();
    let span_of_100 = |limiter: &mut Limiter, from| {
        let slots = saturate(limiter, 0, from, ms(500));
        slots[99].since(slots[0])
    };
    let close = span_of_100(&mut limiter, START);
    assert_eq!(close, Duration::from_micros(99 * 50));
    (0..3).for_each(|_| limiter.missed(0, START));
    let apart = span_of_100(&mut limiter, START.plus(ms(5_000)));
    assert_eq!(apart, close * 8);
    (0..30).for_each(|_| limiter.missed(0, START));
    let slots = saturate(&mut limiter, 0, START.plus(ms(10_000)), ms(10_000));
    assert!(slots.len() >= 9_850, "even so the rate is used: {}", slots.len());
    saturate(&mut limiter, 0, START.plus(ms(20_000)), ms(60_000));
    assert_eq!(span_of_100(&mut limiter, START.plus(ms(90_000))), close);
}

/// Two an hour, and a burst of two: a slot that a busy machine missed must not cost half an hour.
#[test]
fn a_long_window_gets_a_missed_slot_back() {
    let hours = |burst| LimitConfig {
        burst,
        by: Some("/app".into()),
        ..limit(vec![sliding(3, ms(3_600_000))])
    };
    for (burst, by) in [(None, 0), (None, 9), (Some(3), 0), (Some(3), 9)] {
        let mut limiter = Limiter::try_new(&hours(burst), START).unwrap();
        let take = |limiter: &mut Limiter, now| {
            let slot = limiter.earliest(by, now);
            limiter.take(by, slot);
            slot
        };
        let first = take(&mut limiter, START);
        let second = take(&mut limiter, START.plus(ms(10)));
        let third = take(&mut limiter, START.plus(ms(20)));
        let later = START.plus(ms(50));
        assert!(limiter.earliest(by, later) > START.plus(ms(1_000_000)));
        limiter.missed(by, second);
        assert_eq!(take(&mut limiter, later), later, "{burst:?} {by}");
        limiter.missed(by, first);
        limiter.missed(by, third);
        // However many were missed before, of whatever value: that they are set apart is not seen over an hour.
        (0..50).for_each(|_| limiter.missed(by + 1, START.plus(ms(100_000))));
        let slots = saturate(&mut limiter, by, START.plus(ms(60)), ms(1_000));
        assert_eq!(slots.len(), 2, "{burst:?} {by}: one was met");
        (0..50).for_each(|_| limiter.missed(by, later.plus(ms(100_000))));
        assert_eq!(
            saturate(&mut limiter, by, START.plus(ms(2_000)), ms(1_000)).len(),
            0
        );
    }
}

/// The last start of a full window was written late, by more than the guard: it counts when it was, for a sole budget and
/// for each way in which a value's starts are kept.
#[test]
fn a_late_start_counts_when_it_was() {
    for (window, by) in [(1_000, 0), (1_000, 9), (20_000, 0), (20_000, 9)] {
        let config = LimitConfig {
            by: Some("/app".into()),
            ..limit(vec![sliding(5, ms(window))])
        };
        let mut limiter = Limiter::try_new(&config, START).unwrap();
        let mut starts = saturate(&mut limiter, by, START, ms(100));
        let (last, at) = (starts[4], START.plus(ms(400)));
        limiter.late(by, last, at);
        starts[4] = at;
        starts.extend(saturate(&mut limiter, by, at, ms(3 * window)));
        assert!(starts.len() >= 15, "{window} {by}: {starts:?}");
        assert!(
            most_in_a_window(&starts, ms(window)) <= 5,
            "{window} {by}: {starts:?}"
        );
    }
}

/// A miss that is told when its window is over gives nothing back: what would go is a start that was made.
#[test]
fn a_slot_given_back_late_takes_no_other_start_away() {
    let limit = |burst| LimitConfig {
        burst,
        by: Some("/app".into()),
        ..limit(vec![sliding(2, ms(10_000))])
    };
    for (burst, by) in [(None, 0), (None, 9), (Some(2), 0), (Some(2), 9)] {
        let mut limiter = Limiter::try_new(&limit(burst), START).unwrap();
        let mut starts = Vec::new();
        for at in [0, 1_000, 10_100] {
            let slot = limiter.earliest(by, START.plus(ms(at)));
            limiter.take(by, slot);
            starts.push(slot);
        }
        limiter.missed(by, starts[0]);
        let next = limiter.earliest(by, starts[2].plus(ms(100)));
        assert!(
            next.since(starts[1]) >= ms(10_000),
            "{burst:?} {by}: {:?}",
            next.since(starts[1])
        );
    }
}

#[test]
fn lowering_holds_at_once_and_raising_gives_no_second_burst() {
    let mut limiter = Limiter::try_new(&limit(vec![sliding(100, ms(1_000))]), START).unwrap();
    let mut slots = saturate(&mut limiter, 0, START, ms(100));
    assert_eq!(slots.len(), 100);
    let later = START.plus(ms(200));
    let changed = limiter
        .set_rates(&limit(vec![sliding(10, ms(1_000))]), later)
        .unwrap();
    assert!(!changed.needs_history);
    assert!(limiter.earliest(0, later) >= START.plus(ms(1_014)));
    let changed = limiter
        .set_rates(&limit(vec![sliding(150, ms(1_000))]), later)
        .unwrap();
    assert!(!changed.needs_history);
    slots.extend(saturate(&mut limiter, 0, later, ms(5_000)));
    assert!(most_in_a_window(&slots, ms(1_000)) <= 150);
    // A longer window has to be told what was before.
    let longer = limit(vec![sliding(150, ms(1_000)), sliding(1_000, ms(60_000))]);
    assert!(
        limiter
            .set_rates(&longer, later.plus(ms(5_000)))
            .unwrap()
            .needs_history
    );
    let now = later.plus(ms(5_000));
    restore(&mut limiter, &folded(&slots), now);
    slots.extend(saturate(&mut limiter, 0, now, ms(100_000)));
    assert!(most_in_a_window(&slots, ms(60_000)) <= 1_000);
}

#[test]
fn what_the_ledger_knows_is_counted_once() {
    let mut limiter = Limiter::try_new(&limit(vec![sliding(100, ms(600_000))]), START).unwrap();
    let slots: Vec<Time> = (0..40).map(|i| START.plus(ms(i * 5_000))).collect();
    let now = START.plus(ms(200_000));
    let used = folded(&slots);
    restore(&mut limiter, &used, now);
    restore(&mut limiter, &used, now);
    assert_eq!(saturate(&mut limiter, 0, now, ms(10_000)).len(), 60);
}

#[test]
fn a_slot_in_the_future_counts_as_now() {
    let mut limiter = Limiter::try_new(&limit(vec![sliding(1, ms(1_000))]), START).unwrap();
    restore(&mut limiter, &folded(&[START.plus(ms(3_600_000))]), START);
    assert_eq!(limiter.earliest(0, START), START.plus(ms(1_014)));
}
