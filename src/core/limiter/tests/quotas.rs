//! Calendar quotas: zones, edges, and clocks that are set.

use super::*;

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
