use super::*;

const START: Time = Time::from_millis(1_700_000_000_000);
const SECOND: Duration = Duration::from_secs(1);

fn retry() -> RetryConfig {
    RetryConfig {
        first: Duration::from_millis(200),
        longest: Duration::from_secs(300),
        give_up_after: Duration::from_secs(3_600),
        attempts: None,
        longest_retry_after: Duration::from_secs(3_600),
    }
}

fn rules(policy: DoubtPolicy, retry: &RetryConfig) -> DoubtRules<'_> {
    DoubtRules {
        policy: DoubtConfig {
            crash: policy,
            timeout: policy,
            gateway: policy,
        },
        idempotency_window: 3_600 * SECOND,
        retry,
        settle: Some(SECOND),
    }
}

fn doubt(cause: DoubtCause) -> Doubt {
    Doubt {
        cause,
        attempts: 1,
        first_try: START,
        slot: START,
        timeout: 10 * SECOND,
        taken_over: None,
    }
}

#[test]
fn park_waits_for_nothing_and_each_cause_has_its_policy() {
    let retry = retry();
    let mut rules = rules(DoubtPolicy::Park, &retry);
    rules.policy.gateway = DoubtPolicy::Resend;
    let now = START.plus(SECOND);
    for cause in [DoubtCause::Crash, DoubtCause::Timeout] {
        assert_eq!(
            on_doubt(&doubt(cause), &rules, now, 0),
            Action::Park(ParkReason::Policy(cause))
        );
    }
    assert!(matches!(
        on_doubt(&doubt(DoubtCause::Gateway), &rules, now, 0),
        Action::ResendAt(_)
    ));
}

#[test]
fn a_resend_waits_until_the_first_request_is_over_and_keeps_to_the_window() {
    let retry = retry();
    let rules = rules(DoubtPolicy::Resend, &retry);
    // A gateway answers at once, the request behind it may run for its whole timeout.
    let Action::ResendAt(at) = on_doubt(&doubt(DoubtCause::Gateway), &rules, START.plus(SECOND), 0) else {
        panic!("not resent");
    };
    assert!(at >= START.plus(10 * SECOND));
    // After a crash: lease and timeout of the one who sent it, from when it was taken over.
    let taken = START.plus(60 * SECOND);
    let crash = Doubt {
        taken_over: Some((taken, 7 * SECOND)),
        ..doubt(DoubtCause::Crash)
    };
    let Action::ResendAt(at) = on_doubt(&crash, &rules, taken, 0) else {
        panic!("not resent");
    };
    assert!(at >= taken.plus(17 * SECOND) && at < taken.plus(18 * SECOND));
    let late = START.plus(3_601 * SECOND);
    assert_eq!(
        on_doubt(&doubt(DoubtCause::Timeout), &rules, late, 0),
        Action::Park(ParkReason::OutsideWindow)
    );
}

#[test]
fn attempts_bound_resends_too() {
    let retry = RetryConfig {
        attempts: Some(2),
        ..retry()
    };
    let rules = rules(DoubtPolicy::Resend, &retry);
    let second = Doubt {
        attempts: 2,
        ..doubt(DoubtCause::Timeout)
    };
    assert_eq!(
        on_doubt(&second, &rules, START, 0),
        Action::Park(ParkReason::Attempts)
    );
}

#[test]
fn verify_believes_never_seen_the_second_time_only() {
    let retry = retry();
    let rules = rules(DoubtPolicy::Verify, &retry);
    let doubt = doubt(DoubtCause::Timeout);
    let now = START.plus(10 * SECOND);
    let Action::VerifyAt(at, progress) = on_doubt(&doubt, &rules, now, 0) else {
        panic!("not verified");
    };
    assert_eq!(at, now.plus(SECOND));
    let look = |answer: &Verified, progress, at| on_looked_up(answer, progress, &doubt, &rules, at, u64::MAX);
    assert_eq!(look(&Verified::Delivered, progress, at), Action::Delivered);
    assert_eq!(
        look(&Verified::Unclear("?".into()), progress, at),
        Action::Park(ParkReason::Unclear)
    );
    let Action::VerifyAt(second, progress) = look(&Verified::NeverSeen, progress, at) else {
        panic!("believed at once");
    };
    assert_eq!(second, at.plus(SECOND));
    // In between the look-up fails: what it said before still counts.
    let Action::VerifyAt(third, progress) = look(&Verified::AskAgain("503".into()), progress, second) else {
        panic!("not asked again");
    };
    assert_eq!(
        look(&Verified::NeverSeen, progress, third),
        Action::ResendAt(third)
    );
    assert_eq!(look(&Verified::Delivered, progress, third), Action::Delivered);
}

#[test]
fn a_look_up_that_is_down_is_asked_with_backoff_and_parks_in_the_end() {
    let retry = retry();
    let rules = rules(DoubtPolicy::Verify, &retry);
    let doubt = doubt(DoubtCause::Timeout);
    let (mut now, mut progress) = (START.plus(11 * SECOND), Progress::default());
    let mut asked = 0;
    let reason = loop {
        match on_looked_up(
            &Verified::AskAgain("503".into()),
            progress,
            &doubt,
            &rules,
            now,
            u64::MAX,
        ) {
            Action::VerifyAt(at, next) => {
                assert!(at > now && at.since(now) <= retry.longest);
                (now, progress) = (at, next);
                asked += 1;
            }
            Action::Park(reason) => break reason,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(reason, ParkReason::NoAnswer);
    assert!((15..40).contains(&asked), "asked {asked} times in an hour");
}

#[test]
fn verify_without_a_look_up_parks() {
    let retry = retry();
    let rules = DoubtRules {
        settle: None,
        ..rules(DoubtPolicy::Verify, &retry)
    };
    let got = on_doubt(&doubt(DoubtCause::Timeout), &rules, START, 0);
    assert_eq!(got, Action::Park(ParkReason::NoLookUp));
}
