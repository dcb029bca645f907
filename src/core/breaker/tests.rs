use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

const START: Time = Time::from_millis(1_700_000_000_000);

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn settings() -> BreakerSettings {
    BreakerSettings {
        failures: 3,
        open: secs(1),
        longest: secs(60),
        probes: 2,
        doubts_in_a_row: 3,
        concurrency: 8,
        doubts_park: true,
    }
}

fn attempt(breaker: &mut Breaker, result: AttemptResult, now: Time) {
    let probe = breaker.on_start();
    breaker.on_result(result, probe, now, 0);
}

#[test]
fn opens_after_failures_in_a_row_and_closes_after_a_probe() {
    let mut breaker = Breaker::new(settings());
    for result in [
        AttemptResult::Failed,
        AttemptResult::Failed,
        AttemptResult::Answered,
        AttemptResult::Failed,
    ] {
        attempt(&mut breaker, result, START);
    }
    attempt(&mut breaker, AttemptResult::Failed, START);
    assert_eq!(breaker.allows(START), Allow::Yes, "two in a row so far");
    attempt(&mut breaker, AttemptResult::Failed, START);
    let until = START.plus(secs(1));
    assert_eq!(breaker.allows(START), Allow::NotBefore(until));
    assert_eq!((breaker.name(START), breaker.name(until)), ("open", "half-open"));
    // Two probes at once, not three.
    assert_eq!(breaker.allows(until), Allow::Probe);
    assert!(breaker.on_start());
    assert_eq!(breaker.allows(until), Allow::Probe);
    assert!(breaker.on_start());
    assert_eq!(breaker.allows(until), Allow::NotBefore(Time::NEVER));
    breaker.on_result(AttemptResult::Answered, true, until, 0);
    assert_eq!(breaker.allows(until), Allow::Yes);
    assert!(breaker.is_answering(until) && !breaker.is_answering(until.plus(secs(61))));
}

#[test]
fn open_time_doubles_up_to_the_longest_and_is_shortened_by_chance() {
    let mut breaker = Breaker::new(BreakerSettings {
        longest: secs(5),
        ..settings()
    });
    (0..3).for_each(|_| attempt(&mut breaker, AttemptResult::Failed, START));
    let mut now = START;
    for expect in [1, 2, 4, 5, 5] {
        let Allow::NotBefore(until) = breaker.allows(now) else {
            panic!("not open")
        };
        assert_eq!(until.since(now), secs(expect));
        now = until;
        attempt(&mut breaker, AttemptResult::Failed, now);
    }
    let probe = breaker.on_start();
    breaker.on_result(AttemptResult::Failed, probe, now, u64::MAX);
    let Allow::NotBefore(until) = breaker.allows(now) else {
        panic!("not open")
    };
    assert!(until.since(now) >= secs(5) * 3 / 4 && until.since(now) < secs(4));
}

#[test]
fn late_results_of_earlier_requests_neither_close_nor_prolong() {
    let mut breaker = Breaker::new(settings());
    (0..6).for_each(|_| assert!(!breaker.on_start()));
    (0..3).for_each(|_| breaker.on_result(AttemptResult::Failed, false, START, 0));
    let open = breaker.allows(START);
    breaker.on_result(AttemptResult::Answered, false, START.plus(secs(0)), 0);
    breaker.on_result(AttemptResult::Failed, false, START.plus(secs(0)), 0);
    assert_eq!(breaker.allows(START), open);
}

#[test]
fn refused_credentials_are_tried_once_a_minute_or_when_a_secret_changes() {
    let mut breaker = Breaker::new(settings());
    attempt(&mut breaker, AttemptResult::CredentialsRefused, START);
    let mut now = START;
    for result in [
        AttemptResult::CredentialsRefused,
        AttemptResult::Failed,
        AttemptResult::Doubt,
    ] {
        assert_eq!(breaker.allows(now), Allow::NotBefore(now.plus(AUTH_PROBE)));
        now = now.plus(AUTH_PROBE);
        assert_eq!(breaker.allows(now), Allow::Probe);
        attempt(&mut breaker, result, now);
        assert_eq!(breaker.name(now), "credentials");
    }
    breaker.secrets_changed(now);
    assert_eq!(breaker.allows(now), Allow::Probe);
    assert!(breaker.on_start());
    assert_eq!(
        breaker.allows(now),
        Allow::NotBefore(Time::NEVER),
        "one at a time"
    );
    breaker.on_result(AttemptResult::Answered, true, now, 0);
    assert_eq!(breaker.allows(now), Allow::Yes);
}

#[test]
fn a_refusal_or_429_is_no_failure() {
    let mut breaker = Breaker::new(BreakerSettings {
        failures: 1,
        ..settings()
    });
    (0..100).for_each(|_| attempt(&mut breaker, AttemptResult::Answered, START));
    assert_eq!(breaker.allows(START), Allow::Yes);
}

#[test]
fn each_doubt_keeps_its_place_until_somebody_answers() {
    let mut breaker = Breaker::new(settings());
    attempt(&mut breaker, AttemptResult::Doubt, START);
    attempt(&mut breaker, AttemptResult::Doubt, START);
    assert_eq!(breaker.places(), 6);
    attempt(&mut breaker, AttemptResult::Answered, START);
    assert_eq!(breaker.places(), 8);
}

/// A partner that answers within `latency`, and hangs from `hang_from` for `hang`: what a request started at `at`
/// comes to, and when.
fn outcome(at: Time, latency: Duration, timeout: Duration, hang: (Time, Time)) -> (Time, AttemptResult) {
    let answered = at.plus(latency);
    if answered > hang.0 && at < hang.1 {
        (at.plus(timeout), AttemptResult::Doubt)
    } else {
        (answered, AttemptResult::Answered)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        std::env::var("SLUICEGATE_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(100)
    ))]

    /// The flood guard: ten minutes of hanging park no more than twice the concurrency, and afterwards all goes on.
    #[test]
    fn a_partner_that_hangs_parks_at_most_twice_its_concurrency(
        concurrency in 1u32..80,
        failures in 0u32..40,
        doubts_in_a_row in 0u32..100,
        probes in 1u32..6,
        open_ms in 1u64..5_000,
        latency_ms in 1u64..2_000,
        timeout_ms in 1_000u64..40_000,
        gap_us in prop_oneof![Just(0u64), 0u64..50_000, 0u64..3_000_000],
        rnd: u64,
    ) {
        let mut breaker = Breaker::new(BreakerSettings {
            failures,
            open: Duration::from_millis(open_ms),
            longest: secs(60),
            probes,
            doubts_in_a_row,
            concurrency,
            doubts_park: true,
        });
        let (latency, timeout) = (Duration::from_millis(latency_ms), Duration::from_millis(timeout_ms));
        let hang = (START.plus(secs(5)), START.plus(secs(605)));
        let end = START.plus(secs(2_500));
        let mut in_flight: BTreeSet<(Time, u64, bool, bool)> = BTreeSet::new();
        let (mut now, mut serial, mut parked, mut after) = (START, 0u64, 0u32, 0u64);
        let mut next_arrival = START;
        while now < end {
            while let Some(&(at, _, probe, doubt)) = in_flight.first() {
                if at > now {
                    break;
                }
                in_flight.pop_first();
                parked += u32::from(doubt);
                after += u64::from(!doubt && at > hang.1.plus(secs(60)));
                let result = if doubt { AttemptResult::Doubt } else { AttemptResult::Answered };
                breaker.on_result(result, probe, at, rnd.wrapping_mul(serial | 1));
            }
            let mut wake = Time::NEVER;
            while (in_flight.len() as u32) < breaker.places() && next_arrival <= now && wake == Time::NEVER {
                match breaker.allows(now) {
                    Allow::NotBefore(at) => {
                        wake = at;
                        break;
                    }
                    Allow::Yes | Allow::Probe => {
                        serial += 1;
                        let probe = breaker.on_start();
                        let (at, result) = outcome(now, latency, timeout, hang);
                        in_flight.insert((at, serial, probe, result == AttemptResult::Doubt));
                        if gap_us > 0 {
                            next_arrival = now.plus(Duration::from_micros(gap_us));
                        }
                    }
                }
                // Enough for a fast partner: time must move.
                if serial > 40_000 {
                    next_arrival = now.plus(secs(1));
                    break;
                }
            }
            let event = in_flight.first().map_or(Time::NEVER, |&(at, ..)| at);
            let arrival = if next_arrival > now { next_arrival } else { Time::NEVER };
            now = event.min(wake).min(arrival).max(Time(now.0 + 1));
        }
        prop_assert!(parked <= 2 * concurrency, "{} parked with concurrency {}", parked, concurrency);
        prop_assert!(after > 0, "nothing was delivered after the partner came back");
    }
}

#[test]
fn an_operator_may_ask_at_any_time() {
    let mut breaker = Breaker::new(BreakerSettings {
        concurrency: 1,
        ..settings()
    });
    let mut now = START;
    attempt(&mut breaker, AttemptResult::Doubt, now);
    now = now.plus(secs(1));
    assert_eq!(breaker.allows(now), Allow::Probe);
    attempt(&mut breaker, AttemptResult::Doubt, now);
    now = now.plus(secs(300));
    assert_eq!(
        breaker.allows(now),
        Allow::NotBefore(START.plus(DOUBT_WINDOW)),
        "two doubts of one place"
    );
    breaker.probe_now(now);
    assert_eq!(breaker.allows(now), Allow::Probe);
    // Where a doubt parks nothing, probes go on as the open time allows.
    breaker.set(BreakerSettings {
        doubts_park: false,
        concurrency: 1,
        ..settings()
    });
    attempt(&mut breaker, AttemptResult::Doubt, now);
    assert_eq!(breaker.allows(now), Allow::NotBefore(now.plus(secs(4))));
}
