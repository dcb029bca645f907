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
            6..9 => limiter.missed(0, now),
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

fn wall(text: &str) -> Time {
    let at: jiff::Timestamp = text.parse().unwrap();
    Time(at.as_microsecond() as u64)
}

fn quota(count: u64, unit: CalendarUnit, zone: &str, now: Time) -> Limiter {
    Limiter::try_new(
        &limit(vec![Rate::Calendar {
            count,
            unit,
            zone: zone.into(),
        }]),
        now,
    )
    .unwrap()
}

#[test]
fn a_missed_slot_of_a_quota_is_given_back() {
    // Noon of 1 July 2025 in London.
    let noon = Time::from_millis(1_751_367_600_000);
    let mut day = quota(3, CalendarUnit::Day, "Europe/London", noon);
    let today = |limiter: &mut Limiter| {
        let slot = limiter.earliest(0, noon);
        let is_today = slot.since(noon) < ms(1_000);
        if is_today {
            limiter.take(0, slot);
        }
        is_today.then_some(slot)
    };
    let slots: Vec<_> = (0..3).filter_map(|_| today(&mut day)).collect();
    assert_eq!((slots.len(), today(&mut day)), (3, None));
    day.missed(0, slots[1]);
    assert!(today(&mut day).is_some());
    assert_eq!(today(&mut day), None, "given back once");
    // One of a span that is over gives the present one nothing.
    let tomorrow = noon.plus(ms(24 * 3_600_000));
    let slot = day.earliest(0, tomorrow);
    day.take(0, slot);
    (0..5).for_each(|_| day.missed(0, slots[0]));
    for _ in 0..2 {
        let slot = day.earliest(0, tomorrow);
        assert!(slot.since(tomorrow) < ms(1_000));
        day.take(0, slot);
    }
    assert!(day.earliest(0, tomorrow).since(tomorrow) > ms(3_600_000));
}

#[test]
fn a_day_is_from_midnight_to_midnight_also_where_the_clocks_change() {
    // London: 30 March 2025 has 23 hours, 26 October 25.
    for (from, until) in [
        ("2025-03-30T00:00:00Z", "2025-03-30T23:00:00Z"),
        ("2025-10-25T23:00:00Z", "2025-10-27T00:00:00Z"),
        ("2025-06-30T23:00:00Z", "2025-07-01T23:00:00Z"),
    ] {
        let (from, until) = (wall(from).plus(ms(10)), wall(until));
        let mut limiter = quota(3, CalendarUnit::Day, "Europe/London", from);
        for _ in 0..3 {
            let slot = limiter.earliest(0, from);
            assert!(slot.since(from) < ms(1));
            limiter.take(0, slot);
        }
        let opens = until.plus(ms(10));
        assert_eq!(limiter.earliest(0, from), opens);
        limiter.take(0, opens);
        assert!(
            limiter.earliest(0, opens).since(opens) < ms(1),
            "two more of the next day"
        );
    }
}

#[test]
fn no_slot_lies_so_near_an_edge_that_it_could_count_behind_it() {
    let midnight = wall("2025-05-02T07:00:00Z");
    let mut limiter = quota(
        10,
        CalendarUnit::Day,
        "America/Los_Angeles",
        midnight.minus(ms(60_000)),
    );
    // Valid for 4 ms, under way for up to 10, by a clock that may differ as much.
    let opens = midnight.plus(ms(10));
    assert_eq!(
        limiter.earliest(0, midnight.minus(ms(15))),
        midnight.minus(ms(15))
    );
    for at in [midnight.minus(ms(14)), midnight, midnight.plus(ms(9)), opens] {
        assert_eq!(limiter.earliest(0, at), opens);
    }
    assert_eq!(
        limiter.earliest(0, midnight.plus(ms(86_400_000 - 3))),
        opens.plus(ms(86_400_000))
    );
}

#[test]
fn spans_of_every_unit_end_where_the_calendar_says() {
    let now = wall("2024-02-14T10:20:30Z");
    for (unit, zone, end) in [
        (CalendarUnit::Hour, "UTC", "2024-02-14T11:00:00Z"),
        (CalendarUnit::Hour, "Asia/Kolkata", "2024-02-14T10:30:00Z"),
        (CalendarUnit::Day, "Asia/Tokyo", "2024-02-14T15:00:00Z"),
        (CalendarUnit::Week, "UTC", "2024-02-19T00:00:00Z"),
        (CalendarUnit::Month, "UTC", "2024-03-01T00:00:00Z"),
    ] {
        let mut limiter = quota(1, unit, zone, now);
        limiter.take(0, now);
        assert_eq!(
            limiter.earliest(0, now),
            wall(end).plus(ms(10)),
            "{unit:?} {zone}"
        );
    }
    let monday = wall("2024-02-12T00:00:00Z");
    let mut limiter = quota(1, CalendarUnit::Week, "UTC", monday);
    limiter.take(0, monday);
    assert_eq!(limiter.earliest(0, monday), wall("2024-02-19T00:00:00.010Z"));
}

#[test]
fn odd_zones_and_times_do_not_panic_and_always_go_on() {
    let zones = [
        "Pacific/Apia",
        "Australia/Lord_Howe",
        "America/Sao_Paulo",
        "Africa/Cairo",
        "Asia/Kathmandu",
    ];
    let days = [
        "2011-12-29T00:00:00Z",
        "2018-11-03T00:00:00Z",
        "2023-04-27T00:00:00Z",
        "2024-10-05T00:00:00Z",
    ];
    for zone in zones {
        for unit in [
            CalendarUnit::Hour,
            CalendarUnit::Day,
            CalendarUnit::Week,
            CalendarUnit::Month,
        ] {
            for day in days.map(wall) {
                let mut limiter = quota(1, unit, zone, day);
                let mut at = day;
                for _ in 0..100 {
                    limiter.take(0, at);
                    let next = limiter.earliest(0, at);
                    assert!(next > at, "{zone} {unit:?} {at}");
                    at = next;
                }
            }
            for at in [Time::ZERO, Time(i64::MAX as u64), Time::NEVER] {
                let mut limiter = quota(1, unit, zone, at);
                limiter.take(0, at);
                limiter.earliest(0, at);
            }
        }
    }
    let bad = Rate::Calendar {
        count: 1,
        unit: CalendarUnit::Day,
        zone: "Mars/Olympus".into(),
    };
    let error = Limiter::try_new(&limit(vec![bad]), START).unwrap_err();
    assert_eq!(error.to_string(), "unknown time zone `Mars/Olympus`");
}

#[test]
fn a_quota_follows_the_wall_and_a_wall_set_back_opens_no_second_one() {
    let noon = wall("2025-05-02T12:00:00Z");
    let mut limiter = quota(2, CalendarUnit::Day, "UTC", noon);
    limiter.take(0, noon);
    limiter.take(0, noon);
    // The wall clock is an hour ahead of the clock that slots are told by: no edge lies between them.
    assert_eq!(limiter.set_wall_offset(3_600_000_000, noon), WallStep::Believed);
    let next = limiter.earliest(0, noon);
    assert_eq!(next, wall("2025-05-02T23:00:00.010Z"));
    limiter.take(0, next);
    limiter.take(0, next);
    assert_eq!(limiter.set_wall_offset(-86_400_000_000, next), WallStep::Believed);
    assert_eq!(limiter.earliest(0, next), wall("2025-05-05T00:00:00.010Z"));
}

/// A step forward over an edge: believed after a while, and meanwhile nothing is drawn, for one of the two clocks is
/// wrong and nobody knows which.
#[test]
fn a_step_over_an_edge_is_believed_after_a_while() {
    let evening = wall("2025-05-02T23:30:00Z");
    let hour = 3_600_000_000;
    let mut limiter = quota(3, CalendarUnit::Day, "UTC", evening);
    limiter.take(0, evening);
    let believed = evening.plus(DISBELIEF);
    assert_eq!(limiter.set_wall_offset(hour, evening), WallStep::Waits(believed));
    assert_eq!(limiter.earliest(0, evening.plus(ms(10))), believed);
    // It goes away again: as if nothing had been.
    assert_eq!(
        limiter.set_wall_offset(0, evening.plus(ms(60_000))),
        WallStep::None
    );
    assert_eq!(
        saturate(&mut limiter, 0, evening.plus(ms(60_000)), ms(1_000)).len(),
        2
    );
    // It comes again, and lasts.
    let again = evening.plus(ms(120_000));
    assert_eq!(
        limiter.set_wall_offset(hour, again),
        WallStep::Waits(again.plus(DISBELIEF))
    );
    let half = again.plus(DISBELIEF / 2);
    assert_eq!(
        limiter.set_wall_offset(hour + 1_000, half),
        WallStep::Waits(again.plus(DISBELIEF))
    );
    let lasts = again.plus(DISBELIEF);
    assert_eq!(limiter.set_wall_offset(hour, lasts), WallStep::Believed);
    assert_eq!(saturate(&mut limiter, 0, lasts, ms(1_000)).len(), 3, "tomorrow's");
}

/// A clock set back over a restart: what was used counts in the present span, or the quota goes on in the span after
/// it, if the starts were made there.
#[test]
fn a_clock_set_back_over_a_restart_opens_no_second_quota() {
    for (unit, back_s, next) in [
        (CalendarUnit::Day, 5, "2025-05-03T00:00:00.010Z"),
        (CalendarUnit::Day, 30, "2025-05-03T00:00:00.010Z"),
        (CalendarUnit::Day, 7_200, "2025-05-03T00:00:00.010Z"),
        // To the day before: the quota of today is used up all the same.
        (CalendarUnit::Day, 13 * 3_600, "2025-05-03T00:00:00.010Z"),
        // A clock that was years ahead is not believed: today is used up, tomorrow is free.
        (CalendarUnit::Day, 1_000 * 86_400, "2022-08-07T00:00:00.010Z"),
        (CalendarUnit::Hour, 300, "2025-05-02T13:00:00.010Z"),
        (CalendarUnit::Hour, 1_500, "2025-05-02T13:00:00.010Z"),
    ] {
        let then = wall("2025-05-02T12:10:00Z");
        let slots: Vec<Time> = (0..20).map(|n| then.plus(ms(n * 100))).collect();
        for used in [
            folded(&slots),
            folded(&[&slots[..], &[then.plus(ms(120_000))]].concat()),
        ] {
            let now = then.minus(Duration::from_secs(back_s));
            let mut limiter = quota(20, unit, "UTC", now);
            restore(&mut limiter, &used, now);
            assert_eq!(limiter.earliest(0, now), wall(next), "{unit:?} {back_s} s");
        }
    }
}

#[test]
fn a_quota_survives_a_restart() {
    let midnight = wall("2025-05-02T07:00:00Z");
    let zone = "America/Los_Angeles";
    // Two of the day before, three of this one, two of them within the last minute.
    let now = midnight.plus(ms(7_200_000));
    let slots = [
        midnight.minus(ms(1_000_000)),
        midnight.minus(ms(11)),
        midnight,
        now.minus(ms(50_000)),
        now.minus(ms(1)),
    ];
    let mut limiter = quota(5, CalendarUnit::Day, zone, now);
    restore(&mut limiter, &folded(&slots), now);
    restore(&mut limiter, &folded(&slots), now);
    assert_eq!(saturate(&mut limiter, 0, now, ms(3_600_000)).len(), 2);
    assert_eq!(limiter.earliest(0, now), midnight.plus(ms(86_400_010)));
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

/// After so many seconds, or so many before the wall clock's next full hour, the clock is set by so many seconds, and the node
/// is restarted or not.
#[derive(Clone, Copy, Debug)]
enum Step {
    After(i64, i32, bool),
    BeforeTheHour(i64, i32, bool),
}

/// Steps of the clock, as they come, in a life and over restarts, ahead by any time and back by up to 20 hours: from all
/// spans that the clock was ever in, as far as it was believed, no more is drawn than those spans have.
fn quotas_hold(steps: &[Step], count: u64) -> Result<(), TestCaseError> {
    const HOUR: i64 = 3_600_000_000;
    let mut true_us = wall("2025-05-02T12:00:00Z").0 as i64;
    // How far ahead of the true time are the wall clock, and the clock by which this life tells its slots.
    let (mut error_us, mut life_us) = (0i64, 0i64);
    let (mut offset_us, mut highest_us) = (0i64, true_us);
    let mut used = UsedBudgets::default();
    let draw = BudgetDraw { budget: 1, by: 0 };
    let mut limiter = quota(count, CalendarUnit::Hour, "UTC", Time(true_us as u64));
    let mut spans = std::collections::BTreeSet::from([true_us / HOUR]);
    let mut drawn = 0u64;
    for &step in steps {
        let (seconds, step_s, restart) = match step {
            Step::After(seconds, step_s, restart) => (seconds, step_s, restart),
            Step::BeforeTheHour(seconds, step_s, restart) => {
                let left = HOUR - (true_us + error_us).rem_euclid(HOUR);
                ((left / 1_000_000 - seconds).max(0), step_s, restart)
            }
        };
        true_us += seconds * 1_000_000;
        error_us += i64::from(step_s) * 1_000_000;
        error_us = error_us.max(highest_us - 20 * HOUR - true_us);
        highest_us = highest_us.max(true_us + error_us);
        if restart {
            used.new_life();
            life_us = error_us;
            offset_us = 0;
            let now = Time((true_us + life_us) as u64);
            limiter = quota(count, CalendarUnit::Hour, "UTC", now);
            limiter.restore(|each| used.each_of(1, |by, slots| each(by, slots)), now);
            spans.insert((true_us + life_us) / HOUR);
        }
        // The node looks at the wall clock every few seconds, and notes in the ledger that it was set.
        let now = Time((true_us + life_us) as u64);
        if let WallStep::Believed = limiter.set_wall_offset(error_us - life_us, now) {
            offset_us = error_us - life_us;
        }
        used.fill_up(&Used::clock(error_us - life_us));
        spans.insert((true_us + life_us + offset_us) / HOUR);
        for _ in 0..7 {
            let slot = limiter.earliest(0, now);
            if slot > now.plus(ms(1_000)) {
                break;
            }
            limiter.take(0, slot);
            used.note(draw, slot);
            spans.insert((slot.0 as i64 + offset_us) / HOUR);
            drawn += 1;
        }
        prop_assert!(
            drawn <= count * spans.len() as u64,
            "{drawn} drawn in {} spans of {count}",
            spans.len()
        );
    }
    Ok(())
}

/// The clock goes back over an edge in a life, by less than a minute, and the node is restarted: what was drawn before the
/// edge by that clock was drawn from the span behind it.
#[test]
fn a_step_back_over_an_edge_and_a_restart_open_no_second_quota() {
    let steps = [
        Step::BeforeTheHour(60, 0, false),
        Step::After(10, 0, false),
        Step::After(10, 0, false),
        Step::After(10, 0, false),
        Step::After(50, 0, false),
        Step::After(1, -40, false),
        Step::After(30, 0, true),
        Step::After(1, 0, false),
    ];
    for count in 1..30 {
        quotas_hold(&steps, count).unwrap();
    }
}

fn step() -> impl Strategy<Value = Step> {
    let set = prop_oneof![
        6 => Just(0i32),
        3 => -90i32..90,
        1 => -400i32..400,
        1 => -7_200i32..7_200,
        1 => -90_000i32..90_000,
    ];
    let seconds = prop_oneof![Just(0i64), 0i64..60, 0i64..900];
    (prop::bool::weighted(0.2), seconds, set, prop::bool::weighted(0.2)).prop_map(
        |(before_the_hour, seconds, set, restart)| match before_the_hour {
            true => Step::BeforeTheHour(seconds, set, restart),
            false => Step::After(seconds, set, restart),
        },
    )
}

proptest! {
    #![proptest_config(cases(1_000))]

    #[test]
    fn no_quota_is_opened_twice_however_the_clock_is_set(
        steps in prop::collection::vec(step(), 1..60),
        count in 1u64..30,
    ) {
        quotas_hold(&steps, count)?;
    }
}
