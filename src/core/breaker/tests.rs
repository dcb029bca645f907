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
        doubt_probe: Duration::from_secs(60),
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
    let probe = breaker.on_start();
    assert_eq!(breaker.allows(until), Allow::Probe);
    assert!(probe.is_some() && breaker.on_start() == probe);
    assert_eq!(breaker.allows(until), Allow::NotBefore(Time::NEVER));
    breaker.on_result(AttemptResult::Answered, probe, until, 0);
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
    (0..6).for_each(|_| assert!(breaker.on_start().is_none()));
    (0..3).for_each(|_| breaker.on_result(AttemptResult::Failed, None, START, 0));
    let open = breaker.allows(START);
    breaker.on_result(AttemptResult::Answered, None, START.plus(secs(0)), 0);
    breaker.on_result(AttemptResult::Failed, None, START.plus(secs(0)), 0);
    assert_eq!(breaker.allows(START), open);
}

/// Two probes set out. One is answered, the partner fails again, and only then the other one comes back: it is none of the
/// probes of this time, whatever it brings.
#[test]
fn a_probe_of_an_earlier_episode_says_nothing_of_this_one() {
    for late in [
        AttemptResult::Answered,
        AttemptResult::Failed,
        AttemptResult::Doubt,
        REFUSED,
        AttemptResult::NotMade,
    ] {
        let mut breaker = Breaker::new(settings());
        let mut now = START;
        let fail = |breaker: &mut Breaker, now| {
            (0..3).for_each(|_| attempt(breaker, AttemptResult::Failed, now));
            match breaker.allows(now) {
                Allow::NotBefore(until) => until,
                allowed => panic!("{allowed:?} after three failures"),
            }
        };
        now = fail(&mut breaker, now);
        let (first, second) = (breaker.on_start(), breaker.on_start());
        breaker.on_result(AttemptResult::Answered, first, now, 0);
        assert_eq!(breaker.allows(now), Allow::Yes);
        let until = fail(&mut breaker, now);
        let probes = (breaker.on_start(), breaker.on_start());
        assert!(probes.0.is_some() && probes.0 != first);
        breaker.on_result(late, second, now, 0);
        let is_open = breaker.is_open().map(|(cause, _, until)| (cause, until));
        assert_eq!(is_open, Some((Cause::Failures, until)), "{late:?}");
        assert_eq!(
            breaker.allows(until),
            Allow::NotBefore(Time::NEVER),
            "{late:?}: it frees no place"
        );
        breaker.on_result(AttemptResult::Answered, probes.0, until, 0);
        assert_eq!(breaker.allows(until), Allow::Yes);
    }
}

const REFUSED: AttemptResult = AttemptResult::CredentialsRefused {
    again: false,
    since: START,
};
const REFUSED_AGAIN: AttemptResult = AttemptResult::CredentialsRefused {
    again: true,
    since: START,
};

#[test]
fn a_partner_whose_probes_are_refused_as_well_is_paused_until_an_answer_or_a_changed_secret() {
    let mut breaker = Breaker::new(settings());
    // Five were on their way: what they bring is one refusal.
    let sent: Vec<_> = (0..5).map(|_| breaker.on_start()).collect();
    for probe in sent {
        breaker.on_result(REFUSED, probe, START, 0);
        assert_eq!(breaker.refusal(), Refusal::Suspected);
    }
    for _ in 0..2 {
        assert_eq!(breaker.allows(START), Allow::Probe, "at once");
        attempt(&mut breaker, REFUSED, START);
        assert_eq!(
            (breaker.refusal(), breaker.left_alone()),
            (Refusal::Suspected, None)
        );
    }
    let mut now = START;
    for wait in [1, 2, 4, 8, 16, 32, 60, 60] {
        assert_eq!(breaker.allows(now), Allow::Probe);
        attempt(&mut breaker, REFUSED, now);
        assert_eq!(breaker.refusal(), Refusal::Partner);
        let until = now.plus(secs(wait));
        assert_eq!(breaker.left_alone(), Some((Cause::Credentials, until)));
        assert_eq!(breaker.allows(now), Allow::NotBefore(until));
        assert!(!breaker.stranger(now), "several messages were refused");
        now = until;
    }
    // Whatever the probe comes to, this stays the reason.
    for result in [AttemptResult::Failed, AttemptResult::Doubt] {
        attempt(&mut breaker, result, now);
        assert_eq!(breaker.name(now), "credentials");
        breaker.secrets_changed(now);
        assert_eq!(breaker.allows(now), Allow::Probe);
    }
    let probe = breaker.on_start();
    assert_eq!(
        breaker.allows(now),
        Allow::NotBefore(Time::NEVER),
        "one at a time"
    );
    breaker.on_result(AttemptResult::Answered, probe, now, 0);
    assert_eq!(breaker.allows(now), Allow::Yes);
    assert_eq!(breaker.left_alone(), None);
}

#[test]
fn a_refusal_that_only_one_message_gets_is_its_own() {
    let mut breaker = Breaker::new(settings());
    let good = breaker.on_start();
    attempt(&mut breaker, REFUSED, START);
    assert_eq!(breaker.refusal(), Refusal::Suspected);
    assert_eq!(breaker.places(), 8);
    // The answer to a request that was on its way beside it is proof enough.
    breaker.on_result(AttemptResult::Answered, good, START, 0);
    assert_eq!(breaker.allows(START), Allow::Yes);
    // From now on it may be refused as often as it likes, also when nobody else is left.
    for second in [1, 2, 30, 59, 70, 600] {
        attempt(&mut breaker, REFUSED_AGAIN, START.plus(secs(second)));
        assert_eq!(breaker.refusal(), Refusal::Own);
        assert_eq!(breaker.allows(START), Allow::Yes);
    }
    // Nobody had been answered for long when this one was refused first: nothing is known.
    let late = START.plus(secs(70));
    attempt(&mut breaker, REFUSED_AGAIN_LATE, late);
    assert_eq!(breaker.refusal(), Refusal::Suspected);
    assert_eq!(breaker.allows(late), Allow::Probe);
}

const REFUSED_AGAIN_LATE: AttemptResult = AttemptResult::CredentialsRefused {
    again: true,
    since: START.plus(Duration::from_secs(70)),
};

/// Twenty records of forty get a 401. Once the others were through, four first refusals in a row paused the partner for
/// good, and the batch never ended.
#[test]
fn refused_messages_end_by_themselves_once_the_others_are_through() {
    let mut breaker = Breaker::new(settings());
    let late: Vec<_> = (0..6).map(|_| breaker.on_start()).collect();
    attempt(&mut breaker, AttemptResult::Answered, START);
    // They had set out before the last answer came.
    for probe in late {
        breaker.on_result(REFUSED, probe, START, 0);
    }
    for n in 0..12 {
        assert_eq!(
            breaker.allows(START),
            if n == 0 { Allow::Probe } else { Allow::Yes }
        );
        attempt(&mut breaker, REFUSED_AGAIN, START);
        assert_eq!(breaker.refusal(), Refusal::Own, "{n}");
    }
    // But when messages that set out later are refused, one after the other, it is everybody's.
    let later = START.plus(secs(1));
    for _ in 0..REFUSED_ENOUGH {
        let since = later;
        attempt(
            &mut breaker,
            AttemptResult::CredentialsRefused { again: false, since },
            later,
        );
    }
    assert_eq!(breaker.refusal(), Refusal::Partner);
    let until = later.plus(AUTH_FIRST);
    attempt(&mut breaker, REFUSED_AGAIN, until);
    assert_eq!(breaker.refusal(), Refusal::Partner);
}

/// One 401, and then the partner is down: status and log said "its limits are used up", and each new message was a
/// probe at once.
#[test]
fn a_suspicion_whose_probe_fails_is_an_outage() {
    for (result, cause) in [
        (AttemptResult::Failed, Cause::Failures),
        (AttemptResult::Doubt, Cause::Doubts),
        (AttemptResult::DoubtAnswered, Cause::Doubts),
    ] {
        let mut breaker = Breaker::new(settings());
        attempt(&mut breaker, REFUSED, START);
        assert_eq!(breaker.left_alone(), None, "a suspicion only");
        attempt(&mut breaker, result, START);
        let until = START.plus(secs(1));
        assert_eq!(breaker.left_alone(), Some((cause, until)));
        assert!(!breaker.stranger(START), "it is down, not refusing");
        assert_eq!(breaker.allows(START), Allow::NotBefore(until));
    }
    // Paused for the credentials of one message, and down since: new messages wait for the open time, too.
    let mut breaker = Breaker::new(settings());
    attempt(&mut breaker, REFUSED, START);
    (1..REFUSED_ENOUGH).for_each(|_| attempt(&mut breaker, REFUSED_AGAIN, START));
    let now = START.plus(AUTH_FIRST);
    let late = breaker.on_start();
    attempt(&mut breaker, AttemptResult::Doubt, now);
    assert!(matches!(breaker.left_alone(), Some((Cause::Credentials, _))));
    assert!(!breaker.stranger(now));
    let open = breaker.allows(now);
    assert!(matches!(open, Allow::NotBefore(at) if at > now));
    breaker.on_result(AttemptResult::NotMade, late, now, 0);
    assert_eq!(breaker.allows(now), open);
}

/// Concurrency 64: twenty doubts open it. A late 401 replaced that by a suspicion, which the next late 200 ended: 64
/// more requests went to a partner that hangs.
#[test]
fn late_answers_change_nothing_while_a_partner_hangs() {
    let late = [
        REFUSED,
        REFUSED_AGAIN,
        AttemptResult::Answered,
        AttemptResult::Elsewhere,
        AttemptResult::PausedByRule,
        REFUSED,
        AttemptResult::Answered,
    ];
    for doubts in [20, 64] {
        let mut breaker = Breaker::new(BreakerSettings {
            concurrency: 64,
            doubts_in_a_row: 20,
            failures: 0,
            ..settings()
        });
        let sent: Vec<_> = (0..doubts + late.len()).map(|_| breaker.on_start()).collect();
        sent[..doubts]
            .iter()
            .for_each(|probe| breaker.on_result(AttemptResult::Doubt, *probe, START, 0));
        let counted = (breaker.doubts, breaker.silent);
        for result in late {
            breaker.on_result(result, None, START, 0);
            assert_eq!((breaker.doubts, breaker.silent), counted, "{result:?}");
            assert!(
                matches!(breaker.allows(START), Allow::NotBefore(at) if at >= START.plus(secs(1))),
                "{result:?}"
            );
        }
    }
}

/// A partner behind a redirect that refuses everybody, hangs or is down: the redirect's own answer, and that of a
/// look-up, told each time that all was well.
#[test]
fn an_answer_elsewhere_says_nothing_of_deliveries() {
    for (result, cause, times) in [
        (REFUSED, Cause::Credentials, REFUSED_ENOUGH),
        (AttemptResult::Failed, Cause::Failures, 3),
        (AttemptResult::Doubt, Cause::Doubts, 3),
    ] {
        let mut breaker = Breaker::new(settings());
        for _ in 0..times {
            attempt(&mut breaker, AttemptResult::Elsewhere, START);
            attempt(&mut breaker, result, START);
        }
        assert!(
            matches!(breaker.left_alone(), Some((c, until)) if c == cause && until > START),
            "{result:?}"
        );
    }
}

#[test]
fn one_poisonous_message_alone_does_not_keep_a_new_one_waiting() {
    let mut breaker = Breaker::new(settings());
    attempt(&mut breaker, REFUSED, START);
    (0..9).for_each(|_| attempt(&mut breaker, REFUSED_AGAIN, START));
    assert!(matches!(breaker.allows(START), Allow::NotBefore(at) if at > START));
    assert!(breaker.wants_stranger() && breaker.stranger(START));
    assert_eq!(breaker.allows(START), Allow::Probe);
    attempt(&mut breaker, AttemptResult::Answered, START);
    assert_eq!(breaker.allows(START), Allow::Yes);
}

#[test]
fn a_rules_pause_holds_against_late_answers() {
    let mut breaker = Breaker::new(settings());
    let late: Vec<_> = (0..3).map(|_| breaker.on_start()).collect();
    attempt(&mut breaker, AttemptResult::PausedByRule, START);
    let until = START.plus(AUTH_PROBE);
    for (probe, result) in late
        .into_iter()
        .zip([AttemptResult::Answered, REFUSED, AttemptResult::Failed])
    {
        breaker.on_result(result, probe, START, 0);
        assert_eq!(breaker.left_alone(), Some((Cause::Rule, until)));
    }
    assert_eq!(breaker.allows(until), Allow::Probe);
    attempt(&mut breaker, AttemptResult::Answered, until);
    assert_eq!(breaker.allows(until), Allow::Yes);
}

/// One 502 in a hundred at concurrency 1 opened the breaker each time.
#[test]
fn a_gateway_error_now_and_then_opens_nothing() {
    for concurrency in [1, 2, 8] {
        let mut partner = crate::config::PartnerConfig::new("p", "http://127.0.0.1/");
        partner.concurrency = concurrency;
        partner.flood = crate::config::model::FloodConfig::for_concurrency(concurrency);
        let mut breaker = Breaker::new(BreakerSettings::of(&partner));
        for _ in 0..100 {
            attempt(&mut breaker, AttemptResult::DoubtAnswered, START);
            assert_eq!(breaker.allows(START), Allow::Yes);
            assert_eq!(
                breaker.places() as usize,
                concurrency,
                "somebody answered: the place is free"
            );
            attempt(&mut breaker, AttemptResult::Answered, START);
        }
        (0..concurrency.max(3)).for_each(|_| attempt(&mut breaker, AttemptResult::DoubtAnswered, START));
        assert!(matches!(breaker.left_alone(), Some((Cause::Doubts, _))));
    }
}

/// A partner that hangs: the first probes as the open time says, then ever rarer, but never none for ten minutes.
#[test]
fn probes_after_doubts_become_rare_but_do_not_cease() {
    let mut breaker = Breaker::new(BreakerSettings {
        concurrency: 1,
        ..settings()
    });
    let mut now = START;
    let mut waits = Vec::new();
    for _ in 0..10 {
        attempt(&mut breaker, AttemptResult::Doubt, now);
        let Allow::NotBefore(until) = breaker.allows(now) else {
            panic!("not open")
        };
        assert_eq!(breaker.left_alone(), Some((Cause::Doubts, until)), "it is said");
        waits.push(until.since(now).as_secs());
        now = until;
        assert_eq!(breaker.allows(now), Allow::Probe);
    }
    assert_eq!(waits, [1, 2, 4, 60, 120, 240, 480, 600, 600, 600]);
    // A probe that is not even taken parks nothing, and the next one is as near as the open time says.
    attempt(&mut breaker, AttemptResult::Failed, now);
    assert_eq!(breaker.allows(now), Allow::NotBefore(now.plus(secs(60))));
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

    /// The flood guard: ten minutes of hanging park no more than twice the concurrency and a few rare probes, whether
    /// nobody answers or a gateway does; and afterwards all goes on.
    #[test]
    fn a_partner_that_hangs_parks_little_more_than_twice_its_concurrency(
        gateway: bool,
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
        doubt_probe: Duration::from_secs(60),
        });
        // An answer that takes longer than the timeout is none.
        let latency = Duration::from_millis(latency_ms.min(timeout_ms));
        let timeout = Duration::from_millis(timeout_ms);
        let hang = (START.plus(secs(5)), START.plus(secs(605)));
        let end = START.plus(secs(3_000));
        let mut in_flight: BTreeSet<(Time, u64, Option<Episode>, bool)> = BTreeSet::new();
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
                let result = match (doubt, gateway) {
                    (true, true) => AttemptResult::DoubtAnswered,
                    (true, false) => AttemptResult::Doubt,
                    (false, _) => AttemptResult::Answered,
                };
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
        // Probes 1, 2, 4, 8 minutes apart, less a quarter by chance. A threshold above the concurrency is a user's own.
        let most = (2 * concurrency).max(4) + 5 + doubts_in_a_row.saturating_sub(concurrency);
        prop_assert!(parked <= most, "{} parked with concurrency {}", parked, concurrency);
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
    for wait in [1, 2, 4, 60] {
        attempt(&mut breaker, AttemptResult::Doubt, now);
        assert_eq!(breaker.allows(now), Allow::NotBefore(now.plus(secs(wait))));
        now = now.plus(secs(wait.min(30)));
    }
    breaker.probe_now(now);
    assert_eq!(breaker.allows(now), Allow::Probe);
    // Where a doubt parks nothing, probes go on as the open time allows.
    breaker.set(BreakerSettings {
        doubts_park: false,
        concurrency: 1,
        ..settings()
    });
    attempt(&mut breaker, AttemptResult::Doubt, now);
    assert_eq!(breaker.allows(now), Allow::NotBefore(now.plus(secs(16))));
}

/// Messages of a dead host were never given up once the live hosts were done: only an answer within the last minute
/// was taken for a sign that the partner is up.
#[test]
fn what_was_answered_since_a_message_was_first_tried_counts_for_its_age() {
    let mut breaker = Breaker::new(settings());
    let first_try = START;
    attempt(&mut breaker, AttemptResult::Answered, START.plus(secs(1)));
    for later in [2, 61, 62, 100_000] {
        let now = START.plus(secs(later));
        assert!(breaker.has_answered_since(first_try));
        assert_eq!(breaker.is_answering(now), later <= 61);
    }
    assert!(!breaker.has_answered_since(START.plus(secs(2))));
    (0..3).for_each(|_| attempt(&mut breaker, AttemptResult::Failed, START.plus(secs(2))));
    assert!(!breaker.has_answered_since(first_try), "it is left alone");
}
