//! Looking up what became of a record, from the moment it is in a topic.

use super::common::*;
use serde_json::Value;
use sluicegate::mock::Behaviour;

fn said(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The newcomer's question: it was imported, nothing was delivered yet; where is it?
#[test]
fn a_record_is_found_before_it_is_tried() {
    let mock = partner(Behaviour::default());
    let rig = Rig::new(&config(&mock, "", "partitions = 4"));
    let text = lines(0..40, 5) + "broken\n";
    std::fs::write(rig.path("day.jsonl"), text).expect("written");
    rig.ok(&["import", "day.jsonl", "--topic", "t"]);
    // No node has run yet.
    let story = rig.ok(&["message", "m17"]);
    assert!(
        story.contains("message m17 to p: waiting, 0 attempts")
            && story.contains("from day.jsonl:18")
            && story.contains("no node runs on this folder"),
        "{story}"
    );
    let status = rig.ok(&["status", "--json"]);
    let status: Value = serde_json::from_str(&status).expect("status");
    assert_eq!(status["partners"][0]["waiting"], 40, "{status}");
    // What is sent is what `render` shows: the node makes IDs with the topic's identity.
    let value = lines(17..18, 5);
    let rendered = rig.ok(&["render", value.trim_end(), "--topic", "t", "--json"]);
    let rendered: Value = serde_json::from_str(&rendered).expect("rendered");
    let of_story = |rig: &Rig, id: &str| -> Value {
        serde_json::from_str(&rig.ok(&["message", id, "--json"])).expect("a story")
    };
    let told = of_story(&rig, "m17");
    assert_eq!(
        rendered["headers"]["idempotency-key"], told["routes"][0]["hex"],
        "{rendered}"
    );
    assert_eq!(rendered["partition"], told["routes"][0]["partition"]);
    assert!(rendered.get("examples").is_none(), "{rendered}");

    let mut node = rig.start(&[]);
    node.wait_for_admin();
    node.until("all", || counts(&mock).ids == 40);
    rig.ok(&[
        "partners",
        "pause",
        "p",
        "--because",
        "their maintenance",
        "--yes",
    ]);
    let sent = rig.ok(&["send", "--topic", "t", r#"{"id":"late","user":"u1","seq":1}"#]);
    assert!(sent.contains(": message late"), "{sent}");
    let story = rig.ok(&["message", "late"]);
    assert!(
        story.contains("waiting, 0 attempts") && story.contains("their maintenance"),
        "{story}"
    );
    // By the file's line: delivered ones, and what is no record.
    let by_line = of_story(&rig, "day.jsonl:18");
    assert_eq!(by_line["routes"][0]["state"], "delivered", "{by_line}");
    assert_eq!(by_line["routes"][0]["hex"], told["routes"][0]["hex"]);
    let rejected = rig.call(&["message", "day.jsonl:41"]);
    assert_eq!(rejected.status.code(), Some(1));
    assert!(
        said(&rejected).contains("line 41 of day.jsonl")
            && said(&rejected).contains("was rejected: not JSON"),
        "{}",
        said(&rejected)
    );
    let unknown = rig.call(&["message", "m99"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(
        said(&unknown).contains("none of the 1 record that waits"),
        "{}",
        said(&unknown)
    );
}

/// An empty list for a misspelt name would read as all clear.
#[test]
fn a_name_that_is_not_there_is_wrong_usage() {
    let mock = partner(Behaviour::default());
    let rig = Rig::new(&config(&mock, "", ""));
    rig.import("t", lines(0..3, 2));
    let wrong: [&[&str]; 7] = [
        &["status", "--partner", "q"],
        &["status", "--topic", "tt"],
        &["dead", "list", "--partner", "q"],
        &["doubt", "list", "--topic", "tt"],
        &["message", "m1", "--partner", "q"],
        &["dedup", "list", "--topic", "tt"],
        &["partners", "show", "q"],
    ];
    for args in wrong {
        let output = rig.call(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", said(&output));
        assert!(
            said(&output).contains("there is no"),
            "{args:?}: {}",
            said(&output)
        );
    }
    for args in [
        &["status", "--topic", "t"][..],
        &["dead", "list", "--partner", "p"],
    ] {
        rig.ok(args);
    }
}

/// What a line of the log names can be looked up by that name.
#[test]
fn logs_and_lists_name_a_message_alike() {
    let mock = partner(Behaviour::default());
    let refuses = "verdict = [{ when = \"status == 200\", is = \"refused\" }]";
    let rig = Rig::new(&config(
        &mock,
        refuses,
        "id_missing = \"position\"\npartitions = 1",
    ));
    rig.ok(&["send", "--topic", "t", r#"{"user":"u1"}"#]);
    let drained = rig.drain();
    assert_eq!(drained.counts(), (0, 1, 0), "{}", drained.said);
    let dead = rig.list(&["dead", "list"]);
    assert_eq!(dead[0]["id"], "@0");
    assert!(drained.said.contains("\"message_id\":\"@0\""), "{}", drained.said);
    assert!(rig.ok(&["message", "@0"]).contains("message @0 to p: dead"));
}
