//! What a node tells while it works: log lines, metrics, rejects, the story of a message.

use super::common::*;
use rustix::process::Signal;
use serde_json::Value;
use sluicegate::mock::Behaviour;

/// The value of a metric's line that begins like this.
fn metric(text: &str, line: &str) -> f64 {
    let found = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' '));
    found
        .unwrap_or_else(|| panic!("no {line} in {text}"))
        .parse()
        .expect("a number")
}

#[test]
fn a_running_node_tells_of_every_sampled_message_and_counts_all() {
    let mock = partner(Behaviour::default());
    let rig = Rig::new("");
    let admin = rig.configure_with(&format!(
        "[logging]\nformat = \"json\"\nsample = 1\n{}",
        config(&mock, "", "")
    ));
    let mut node = rig.start(&[]);
    node.wait_for_admin();
    // Three good lines, one of them without an ID, and one that is no JSON.
    let file = format!("{}{{\"user\":\"u9\",\"seq\":1}}\nnonsense\n", lines(0..2, 2));
    std::fs::write(rig.path("day.jsonl"), file).expect("written");
    let report: Value =
        serde_json::from_str(&rig.ok(&["import", "day.jsonl", "--topic", "t", "--json"])).expect("a report");
    assert_eq!(
        (&report["accepted"], &report["rejected"]),
        (&3.into(), &1.into()),
        "{report}"
    );
    let rejects = report["reject_file"].as_str().expect("a reject file");
    let rejects = std::fs::read_to_string(rig.path(rejects)).expect("the rejects");
    assert!(
        rejects.contains("\"line\":4") && rejects.contains("nonsense"),
        "{rejects}"
    );
    node.until("all are delivered", || counts(&mock).requests == 3);
    let metrics = || String::from_utf8(get(&admin, "", "/metrics")).expect("text");
    node.until("the ledger is folded", || {
        metric(&metrics(), "sluicegate_ledger_entries_total") >= 6.0
    });

    let text = metrics();
    assert!(metric(&text, "sluicegate_ledger_commits_total") >= 1.0);
    assert!(metric(&text, "sluicegate_ledger_commit_seconds_count") >= 1.0);
    assert_eq!(
        metric(
            &text,
            "sluicegate_messages_total{partner=\"p\",outcome=\"delivered\"}"
        ),
        3.0
    );
    assert_eq!(
        metric(
            &text,
            "sluicegate_import_lines_total{topic=\"t\",result=\"accepted\"}"
        ),
        3.0
    );
    assert_eq!(
        metric(
            &text,
            "sluicegate_import_lines_total{topic=\"t\",result=\"rejected\"}"
        ),
        1.0
    );
    for kind in ["topic", "partition", "subpartition", "limiter", "ledger"] {
        assert_eq!(
            metric(
                &text,
                &format!("sluicegate_actor_restarts_total{{kind=\"{kind}\"}}")
            ),
            0.0
        );
    }

    // The line without an ID is known by the file's hash and its number.
    let named = format!("{}:3", &report["hash"].as_str().expect("a hash")[..32]);
    let story = rig.ok(&["message", &named]);
    assert!(
        story.contains("delivered, 1 attempt\n") && story.contains("day.jsonl:3"),
        "{story}"
    );

    node.signal(Signal::TERM);
    assert_eq!(node.end(), Some(0));
    let said: Vec<Value> = node
        .said()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in {line}")))
        .collect();
    let attempts: Vec<&Value> = said.iter().filter(|line| line["event"] == "attempt").collect();
    assert_eq!(attempts.len(), 3, "{said:?}");
    for id in ["m0", "m1", named.as_str()] {
        let line = attempts.iter().find(|line| line["message_id"] == id);
        let line = line.unwrap_or_else(|| panic!("no line about {id} in {attempts:?}"));
        for (field, value) in [
            ("level", "info".into()),
            ("topic", "t".into()),
            ("partner", "p".into()),
            ("attempt", Value::from(1)),
            ("verdict", "delivered".into()),
            ("status", 200.into()),
        ] {
            assert_eq!(line[field], value, "{field} of {line}");
        }
        assert!(
            line["key"].is_string() && line["offset"].is_u64() && line["partition"].is_u64(),
            "{line}"
        );
    }
}
