//! From answers to verdicts, through the whole sink; and the look-up.

use super::server::{Polite, response};
use super::*;
use crate::core::in_full::{assert_said_once, in_full};
use crate::sink::Verified;

/// What one attempt makes of this answer.
fn of(
    answer: (u16, &'static [(&'static str, &'static str)], &'static str),
    tweak: fn(&mut PartnerConfig),
) -> Answer {
    run(async {
        let server = Polite::start(move |_| response(answer.0, answer.1, answer.2));
        let mut config = partner(&server.url());
        tweak(&mut config);
        answered(&sink(&config), &delivery("x")).await
    })
}

#[test]
fn statuses() {
    let gateway = Verdict::Unknown(DoubtCause::Gateway);
    for (status, want, why) in [
        (200, Verdict::Delivered, ""),
        (201, Verdict::Delivered, ""),
        (400, Verdict::Refused, "refused: 400 no good"),
        (401, Verdict::Pause, "paused: 401 no good"),
        (408, Verdict::Unknown(DoubtCause::Timeout), "unknown: 408 no good"),
        (409, Verdict::Refused, "refused: 409 no good"),
        (429, Verdict::TryLater, "later: 429 no good"),
        (500, gateway, "unknown: 500 no good"),
        (502, gateway, "unknown: 502 no good"),
        (503, Verdict::TryLater, "later: 503 no good"),
    ] {
        let got = run(async move {
            let server = Polite::start(move |_| response(status, &[], "no \n good"));
            answered(&sink(&partner(&server.url())), &delivery("x")).await
        });
        assert_eq!((got.verdict, got.status, reason(&got)), (want, status, why));
        assert_eq!(
            got.detail.map(|d| d.answer),
            (status >= 300).then(|| "no \n good".to_owned())
        );
    }
}

#[test]
fn a_409_under_resend_is_later() {
    let resend = |config: &mut PartnerConfig| config.doubt.crash = DoubtPolicy::Resend;
    assert_eq!(of((409, &[], "in progress"), resend).verdict, Verdict::TryLater);
    let without_key = |config: &mut PartnerConfig| {
        config.doubt.crash = DoubtPolicy::Resend;
        config.idempotency_key = false;
    };
    assert_eq!(
        of((409, &[], "in progress"), without_key).verdict,
        Verdict::Refused
    );
}

#[test]
fn a_503_that_tells_of_a_broken_upstream_is_doubt() {
    let text =
        "upstream connect error or disconnect/reset before headers. reset reason: connection termination";
    let got = of((503, &[("retry-after", "1")], text), |_| {});
    assert_eq!(got.verdict, Verdict::Unknown(DoubtCause::Gateway));
    let got = of((503, &[("x-envoy-response-flags", "UC")], ""), |_| {});
    assert_eq!(got.verdict, Verdict::Unknown(DoubtCause::Gateway));
    let got = of((503, &[("x-envoy-overloaded", "true")], "overloaded"), |_| {});
    assert_eq!(got.verdict, Verdict::TryLater);
}

#[test]
fn redirects_are_refused_with_where_they_lead() {
    let got = of(
        (
            302,
            &[("location", "https://other.example/login?token=abcdef&n=1")],
            "",
        ),
        |_| {},
    );
    assert_eq!(got.verdict, Verdict::Refused);
    assert_eq!(
        reason(&got),
        "refused: 302 a redirect to https://other.example/login?token=***&n=1 that is not followed"
    );
}

#[test]
fn retry_after_comes_along() {
    let got = of((429, &[("retry-after", "7")], ""), |_| {});
    let pace = *got.pace.unwrap();
    assert_eq!(
        (pace.retry_after, pace.pause),
        (Some(Duration::from_secs(7)), Some(Duration::from_secs(7)))
    );
    let got = of((200, &[("ratelimit", "\"p\";r=0;t=5")], ""), |_| {});
    assert_eq!(got.verdict, Verdict::Delivered);
    assert_eq!(got.pace.unwrap().pause, Some(Duration::from_secs(5)));
}

/// A partner that answers 200 and means "later": the wait that it asks for is the message's, as with any other status.
/// Where it means what it says there is nothing to wait for.
#[test]
fn a_wait_in_a_2xx_holds_where_a_rule_says_later() {
    fn later(config: &mut PartnerConfig, scope: Option<RuleScope>) {
        config.verdict = vec![VerdictRuleConfig {
            when: "status < 300".into(),
            is: RuleVerdict::Later,
            reason: None,
            after: None,
            scope,
        }];
    }
    type Tweak = fn(&mut PartnerConfig);
    let wait = Some(Duration::from_secs(7));
    let cases: [(u16, Tweak, Option<Duration>); 4] = [
        (200, |c| later(c, None), None),
        (202, |c| later(c, Some(RuleScope::Message)), None),
        (202, |c| later(c, Some(RuleScope::Key)), None),
        (200, |c| later(c, Some(RuleScope::Partner)), wait),
    ];
    for (n, (status, tweak, pause)) in cases.into_iter().enumerate() {
        let got = of((status, &[("retry-after", "7")], ""), tweak);
        assert_eq!(got.verdict, Verdict::TryLater, "{n}");
        let pace = got.pace.expect("the wait");
        assert_eq!((pace.retry_after, pace.pause), (wait, pause), "{n}");
    }
    let got = of((202, &[("retry-after", "7")], ""), |_| {});
    assert_eq!((got.verdict, got.pace), (Verdict::Delivered, None));
    let got = of(
        (202, &[("retry-after", "7"), ("ratelimit", "\"p\";r=3;t=5")], ""),
        |_| {},
    );
    let pace = got.pace.expect("what is left");
    assert_eq!((pace.retry_after, pace.remaining), (None, Some(3)));
}

#[test]
fn rules_come_first_and_the_first_that_matches_decides() {
    let tweak = |config: &mut PartnerConfig| {
        let rule = |when: &str, is, reason: Option<&str>, after| VerdictRuleConfig {
            when: when.into(),
            is,
            reason: reason.map(str::to_owned),
            after,
            scope: None,
        };
        config.verdict = vec![
            rule(
                "header[\"x-maintenance\"] exists",
                RuleVerdict::Later,
                None,
                Some(Duration::from_secs(30)),
            ),
            rule(
                "status == 200 and body.code == 7",
                RuleVerdict::Later,
                Some("body.message"),
                None,
            ),
            rule(
                "status == 200 and body.code != 0",
                RuleVerdict::Refused,
                Some("body.message"),
                None,
            ),
            rule(
                "status == 404 and body.state == \"known\"",
                RuleVerdict::Delivered,
                None,
                None,
            ),
            rule(
                "status == 418",
                RuleVerdict::Unknown,
                Some("'teapots are unclear'"),
                None,
            ),
            rule("status == 419", RuleVerdict::Pause, None, None),
        ];
    };
    let got = of((200, &[], r#"{"code":0}"#), tweak);
    assert_eq!((got.verdict, got.detail), (Verdict::Delivered, None));
    let got = of(
        (200, &[], r#"{"code":5,"message":"unknown user a@b.example"}"#),
        tweak,
    );
    assert_eq!((got.verdict, got.status), (Verdict::Refused, 200));
    assert_eq!(reason(&got), "refused: 200 (verdict rule 3) unknown user ***");
    let got = of((200, &[], r#"{"code":7,"message":"busy"}"#), tweak);
    assert_eq!(
        (got.verdict, reason(&got)),
        (Verdict::TryLater, "later: 200 (verdict rule 2) busy")
    );
    let got = of((200, &[("x-maintenance", "1")], r#"{"code":0}"#), tweak);
    assert_eq!(got.verdict, Verdict::TryLater);
    assert_eq!(got.pace.unwrap().retry_after, Some(Duration::from_secs(30)));
    assert_eq!(
        of((404, &[], r#"{"state":"known"}"#), tweak).verdict,
        Verdict::Delivered
    );
    let got = of((418, &[], ""), tweak);
    assert_eq!(got.verdict, Verdict::Unknown(DoubtCause::Gateway));
    assert_eq!(reason(&got), "unknown: 418 (verdict rule 5) teapots are unclear");
    assert_eq!(of((419, &[], ""), tweak).verdict, Verdict::Pause);
    // A body without the field is no error; one that is no JSON leaves open what the rules would have said.
    assert_eq!(of((200, &[], "{}"), tweak).verdict, Verdict::Delivered);
    assert_eq!(
        of((200, &[], "ok"), tweak).verdict,
        Verdict::Unknown(DoubtCause::Timeout)
    );
    assert_eq!(of((201, &[], "ok"), tweak).verdict, Verdict::Delivered);
}

#[test]
fn a_rule_that_cannot_be_compiled_is_named() {
    let mut config = partner("http://127.0.0.1:1/");
    config.verdict = vec![VerdictRuleConfig {
        when: "status = 200".into(),
        is: RuleVerdict::Refused,
        reason: None,
        after: None,
        scope: None,
    }];
    let Err(e) = HttpSink::try_new(&config, &Secrets::none(), Clock::start()) else {
        panic!("it was taken")
    };
    assert_said_once(&e);
    assert_eq!(
        in_full(&e),
        "verdict rule 1, when: column 8: expected `and`, `or` or the end, found `=` (equality is written `==`)"
    );
}

#[test]
fn a_plain_success_asks_for_no_body() {
    let sink = sink(&partner("http://127.0.0.1:1/"));
    assert!(!sink.reading.needs_body(200));
    assert!(sink.reading.needs_body(422));
}

#[test]
fn the_look_up_tells_where_a_message_stands() {
    run(async {
        let server = Polite::start(|heard| match heard.uri.as_str() {
            "/seen/order-1?try=1" => response(200, &[], r#"{"state":"done"}"#),
            "/seen/order-2?try=1" => response(404, &[], ""),
            "/seen/order-3?try=1" => response(200, &[], r#"{"state":"odd token=abcdef"}"#),
            _ => response(503, &[], ""),
        });
        let mut config = partner(&server.url());
        config.verify = Some(VerifyConfig {
            url: format!(
                "http://{}/seen/{{{{ id }}}}?try={{{{ attempt }}}}",
                server.address
            ),
            method: "GET".into(),
            headers: vec![("x-who".into(), "{{ partner }}".into())],
            delivered: "status == 200 and body.state == \"done\"".into(),
            never_seen: "status == 404".into(),
            settle: Duration::from_secs(1),
            timeout: Duration::from_secs(5),
        });
        let sink = sink(&config);
        let mut d = delivery("x");
        let mut ask = async |id: &'static str| {
            d.readable = bytes::Bytes::from_static(id.as_bytes());
            sink.verify(&d).await
        };
        assert_eq!(ask("order-1").await, Verified::Delivered);
        assert_eq!(ask("order-2").await, Verified::NeverSeen);
        let Verified::Unclear(why) = ask("order-3").await else {
            panic!()
        };
        assert!(
            why.starts_with("verify: 200 matches neither") && !why.contains("abcdef"),
            "{why}"
        );
        assert_eq!(
            ask("order-4").await,
            Verified::AskAgain("verify: the look-up answered 503".into())
        );
        let heard = server.heard.lock();
        assert_eq!(
            (heard[0].method.as_str(), heard[0].header("x-who")),
            ("GET", Some("acme"))
        );
        assert!(heard[0].header("idempotency-key").is_none() && heard[0].body.is_empty());
    });
}

#[test]
fn a_look_up_that_cannot_be_made_is_made_again() {
    run(async {
        let mut config = partner("http://127.0.0.1:1/");
        assert!(matches!(
            sink(&config).verify(&delivery("x")).await,
            Verified::Unclear(_)
        ));
        config.verify = Some(VerifyConfig {
            url: "http://127.0.0.1:1/".into(),
            method: "GET".into(),
            headers: vec![],
            delivered: "status == 200".into(),
            never_seen: "status < 300".into(),
            settle: Duration::from_secs(1),
            timeout: Duration::from_secs(5),
        });
        assert!(matches!(
            sink(&config).verify(&delivery("x")).await,
            Verified::AskAgain(_)
        ));
        let server = Polite::ok();
        if let Some(verify) = &mut config.verify {
            verify.url = server.url();
        }
        let Verified::Unclear(why) = sink(&config).verify(&delivery("x")).await else {
            panic!()
        };
        assert_eq!(why, "verify: 200 matches both `delivered` and `never_seen`");
    });
}

/// 429 for one user: what a rule's `scope` makes of the hints.
#[test]
fn a_rule_says_whom_the_hints_concern() {
    use crate::config::model::RuleScope;
    use crate::sink::Concerns;
    fn rule(config: &mut PartnerConfig, scope: Option<RuleScope>) {
        config.verdict = vec![VerdictRuleConfig {
            when: "status == 429".into(),
            is: RuleVerdict::Later,
            reason: None,
            after: Some(Duration::from_secs(3600)),
            scope,
        }];
    }
    type Tweak = fn(&mut PartnerConfig);
    let hour = Duration::from_secs(3600);
    let cases: [(Tweak, Option<Concerns>, Option<Duration>); 4] = [
        (|c| rule(c, None), None, Some(Duration::from_secs(30))),
        (
            |c| rule(c, Some(RuleScope::Message)),
            Some(Concerns::Message),
            None,
        ),
        (|c| rule(c, Some(RuleScope::Key)), Some(Concerns::Key), None),
        // `after` is longer than what the header asks for, and holds the partner too.
        (
            |c| rule(c, Some(RuleScope::Partner)),
            Some(Concerns::Partner),
            Some(hour),
        ),
    ];
    for (tweak, concerns, pause) in cases {
        let got = of((429, &[("retry-after", "30")], ""), tweak);
        let pace = got.pace.expect("what it says about pace");
        assert_eq!((got.concerns, pace.retry_after), (concerns, Some(hour)));
        if let Some(pause) = pause {
            assert_eq!(pace.pause, Some(pause), "{concerns:?}");
        }
    }
    // Without `after` the scope holds for the answer's own wait, whatever its status.
    fn bare(config: &mut PartnerConfig, scope: Option<RuleScope>) {
        rule(config, scope);
        config.verdict[0].when = "status == 400".into();
        config.verdict[0].after = None;
    }
    let cases: [(Tweak, Option<Duration>); 3] = [
        (|c| bare(c, None), None),
        (|c| bare(c, Some(RuleScope::Message)), None),
        (
            |c| bare(c, Some(RuleScope::Partner)),
            Some(Duration::from_secs(30)),
        ),
    ];
    for (tweak, pause) in cases {
        let got = of((400, &[("retry-after", "30")], ""), tweak);
        assert_eq!(got.pace.expect("a wait").pause, pause);
    }
    let got = of((403, &[], ""), |config| {
        config.verdict = vec![rule_of(RuleVerdict::Pause)]
    });
    assert_eq!(
        (got.verdict, got.concerns),
        (Verdict::Pause, Some(Concerns::Partner))
    );
    let got = of((403, &[], ""), |_| {});
    assert_eq!((got.verdict, got.concerns), (Verdict::Pause, None));
}

fn rule_of(is: RuleVerdict) -> VerdictRuleConfig {
    VerdictRuleConfig {
        when: "status == 403".into(),
        is,
        reason: None,
        after: None,
        scope: None,
    }
}

#[test]
fn a_shortage_of_this_node_is_told_from_a_partner_that_is_down() {
    use std::io::Error;
    for code in [24, 23, 105, 12, 99] {
        let of_partner = |e: &Error| is_shortage(e);
        let plain = Error::from_raw_os_error(code);
        assert!(of_partner(&plain), "{plain}");
        assert!(of_partner(&Error::other(Error::from_raw_os_error(code))));
    }
    for code in [111, 104, 110, 113, 101] {
        let plain = Error::from_raw_os_error(code);
        assert!(!is_shortage(&plain), "{plain}");
    }
}
