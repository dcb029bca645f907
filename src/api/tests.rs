use super::messages::{ReasonMatch, parse_time};
use super::status::eta_s;
use super::*;
use crate::core::types::Time;
use serde_json::{Value, json, to_value};

fn has(value: &Value, fields: &[&str]) {
    for field in fields {
        assert!(
            value.get(field).is_some(),
            "field `{field}` is missing in {value}"
        );
    }
}

/// The fields that scripts rely on. Never take one away from this test.
#[test]
fn the_fields_that_scripts_rely_on_are_there() {
    has(
        &to_value(MessageRow::default()).unwrap(),
        &[
            "id",
            "partner",
            "topic",
            "partition",
            "offset",
            "key",
            "reason",
            "attempts",
            "last_status",
            "source",
        ],
    );
    has(
        &to_value(MessageDetail::default()).unwrap(),
        &["id", "partner", "value", "headers"],
    );
    has(
        &to_value(DedupRow::default()).unwrap(),
        &["id", "partner", "state", "at"],
    );
    let status = Status {
        topics: vec![TopicStatus::default()],
        partners: vec![PartnerStatus::default()],
        ..Status::default()
    };
    let status = to_value(status).unwrap();
    has(
        &status["topics"][0],
        &["topic", "partner", "partition", "lag", "oldest_age_ms", "owner"],
    );
    has(
        &status["partners"][0],
        &["partner", "delivered", "in_flight", "breaker", "eta_s"],
    );
    assert_eq!(status["partners"][0]["breaker"], "closed");
}

#[test]
fn dedup_states_are_the_documented_words() {
    let words = [
        "absent",
        "intent",
        "delivered",
        "dead",
        "skipped",
        "parked",
        "waiting",
    ];
    let states = [
        DedupState::Absent,
        DedupState::Intent,
        DedupState::Delivered,
        DedupState::Dead,
        DedupState::Skipped,
        DedupState::Parked,
        DedupState::Waiting,
    ];
    for (state, word) in states.into_iter().zip(words) {
        assert_eq!(to_value(state).unwrap(), word);
        assert_eq!(state.word(), word);
    }
}

#[test]
fn orders_and_queries_survive_their_json_form() {
    let order = OrderRequest {
        order: Order::Confirm {
            filter: Filter {
                partner: Some("acme".into()),
                ..Filter::default()
            },
            outcome: Confirmed::NotTaken,
        },
        who: "kim".into(),
        why: "asked them".into(),
        dry_run: true,
        expect: Some(Expect {
            round: Some(1),
            count: None,
        }),
    };
    let text = serde_json::to_string(&order).unwrap();
    assert_eq!(serde_json::from_str::<OrderRequest>(&text).unwrap(), order);
    let query = Query::Dead {
        filter: Filter {
            round: Some(2),
            ..Filter::default()
        },
    };
    let text = serde_json::to_string(&query).unwrap();
    assert_eq!(serde_json::from_str::<Query>(&text).unwrap(), query);
    assert_eq!(
        serde_json::from_str::<Query>(r#"{"query":"dedup-stats"}"#).unwrap(),
        Query::DedupStats
    );
    assert!(
        serde_json::from_value::<Filter>(json!({"partnr": "acme"})).is_err(),
        "a mistyped filter takes all"
    );
    let reply = Reply::Messages(Page {
        rows: vec![MessageRow::default()],
        more: true,
        next: Some("place".into()),
    });
    let text = serde_json::to_string(&reply).unwrap();
    assert_eq!(serde_json::from_str::<Reply>(&text).unwrap(), reply);
}

#[test]
fn a_problem_document_keeps_code_and_hides_what_failed_inside() {
    let inside = ApiError::Internal("cannot read /data/secret-place".into());
    let problem = Problem::of(&inside, "req-1");
    assert!(!problem.detail.contains("secret-place"));
    assert_eq!((problem.status, problem.code.as_str()), (500, "internal"));
    for error in [
        ApiError::Invalid("x".into()),
        ApiError::NotFound("x".into()),
        ApiError::UnknownName("x".into()),
        ApiError::Stale("x".into()),
        ApiError::Conflict("x".into()),
        ApiError::Unavailable("x".into()),
        ApiError::NoRoom("x".into()),
        ApiError::Unauthorized,
        ApiError::Forbidden("x".into()),
    ] {
        assert_eq!(Problem::of(&error, "r").into_error(), error);
    }
}

#[test]
fn an_eta_is_what_waits_over_the_slower_of_limit_and_rate() {
    assert_eq!(eta_s(0, None, 0.0), Some(0.0));
    assert_eq!(eta_s(100, Some(50.0), 10.0), Some(10.0));
    assert_eq!(eta_s(100, Some(5.0), 10.0), Some(20.0));
    assert_eq!(eta_s(100, None, 10.0), Some(10.0));
    assert_eq!(eta_s(100, Some(5.0), 0.0), Some(20.0));
    assert_eq!(eta_s(100, None, 0.0), None);
    assert_eq!(eta_s(100, Some(f64::NAN), f64::INFINITY), None);
}

#[test]
fn times_are_read_in_every_documented_form() {
    let now = Time::from_millis(1_700_000_000_000);
    assert_eq!(
        parse_time("2h", now).unwrap(),
        Time::from_millis(1_700_000_000_000 - 7_200_000)
    );
    assert_eq!(parse_time("2023-11-14T22:13:20Z", Time::ZERO).unwrap(), now);
    assert_eq!(
        parse_time("2023-11-14", Time::ZERO).unwrap(),
        Time::from_millis(1_699_920_000_000)
    );
    for wrong in ["", "2x", "h", "yesterday", "99999999999999999999d", "-5s"] {
        assert!(parse_time(wrong, now).is_err(), "{wrong}");
    }
}

#[test]
fn a_reason_is_a_prefix_or_a_pattern() {
    assert!(
        ReasonMatch::parse("refused: 4")
            .unwrap()
            .matches("refused: 422 no")
    );
    assert!(!ReasonMatch::parse("422").unwrap().matches("refused: 422 no"));
    assert!(
        ReasonMatch::parse("/4[0-9]2/")
            .unwrap()
            .matches("refused: 422 no")
    );
    assert!(ReasonMatch::parse("/(/").is_err());
}
