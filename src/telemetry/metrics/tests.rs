use super::*;
use crate::api::status::{BreakerState, PartnerStatus, TopicStatus};

fn status() -> Status {
    Status {
        topics: vec![TopicStatus {
            topic: "orders".into(),
            partner: "acme".into(),
            partition: 3,
            lag: 17,
            oldest_age_ms: Some(2_500),
            parked: 2,
            ..TopicStatus::default()
        }],
        partners: vec![PartnerStatus {
            partner: "acme".into(),
            in_flight: 5,
            breaker: BreakerState::HalfOpen,
            connected: 9,
            ..PartnerStatus::default()
        }],
        ..Status::default()
    }
}

#[test]
fn counts_and_gauges_are_scraped_under_their_documented_names() {
    let metrics = Metrics::new();
    let acme = metrics.partner("acme");
    acme.attempt(crate::sink::Verdict::Delivered).inc();
    metrics.partner("acme").attempt_delivered.inc();
    acme.delivered.inc();
    acme.attempt_time.record_us(700);
    metrics.restarted("partition");
    acme.keys_restarted.inc();
    assert_eq!(
        metrics.restarts(),
        [("partition".to_owned(), 1), ("subpartition".to_owned(), 1)].into()
    );
    metrics.import_lines("orders", LineResult::Rejected).inc_by(4);
    metrics.read(&status());
    let text = metrics.encode();
    for line in [
        r#"sluicegate_attempts_total{partner="acme",verdict="delivered"} 2"#,
        r#"sluicegate_messages_total{partner="acme",outcome="delivered"} 1"#,
        r#"sluicegate_attempt_seconds_bucket{le="0.001",partner="acme"} 1"#,
        r#"sluicegate_attempt_seconds_count{partner="acme"} 1"#,
        r#"sluicegate_lag_records{topic="orders",partner="acme",partition="3"} 17.0"#,
        r#"sluicegate_lag_age_seconds{topic="orders",partner="acme",partition="3"} 2.5"#,
        r#"sluicegate_held_messages{topic="orders",partner="acme",partition="3",state="parked"} 2.0"#,
        r#"sluicegate_in_flight{partner="acme"} 5.0"#,
        r#"sluicegate_breaker_open{partner="acme"} 0.5"#,
        r#"sluicegate_connects_total{partner="acme"} 9"#,
        r#"sluicegate_actor_restarts_total{kind="partition"} 1"#,
        r#"sluicegate_actor_restarts_total{kind="subpartition"} 1"#,
        r#"sluicegate_actor_restarts_total{kind="ledger"} 0"#,
        r#"sluicegate_import_lines_total{topic="orders",result="rejected"} 4"#,
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    for doc in metrics.docs() {
        let name = doc.name.strip_suffix("_total").unwrap_or(&doc.name);
        assert!(
            text.contains(&format!("# TYPE {name} {}", doc.kind)) || !text.contains(name),
            "{}",
            doc.name
        );
    }
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn what_is_gone_is_no_longer_scraped() {
    let metrics = Metrics::new();
    metrics.read(&status());
    metrics.read(&Status::default());
    assert!(!metrics.encode().contains("orders"));
}

#[test]
fn the_manual_names_every_metric() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    if std::env::var_os("SLUICEGATE_WRITE_DOCS").is_some() {
        std::fs::write(&path, manual()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap();
    assert_eq!(
        written,
        manual(),
        "run the tests once with SLUICEGATE_WRITE_DOCS=1"
    );
}
