//! Messages that wait in their topic, and lines of imported files.

use super::*;
use crate::api::RejectedLine;
use crate::api::messages::Story;
use crate::api::status::{PartnerStatus, Status, TopicStatus, WaitStatus};
use crate::core::message_id::route_id;
use crate::intake::import::Entry as Import;

/// The route as records name it.
fn here() -> RoutePartition {
    RoutePartition {
        route: route_id("orders", TopicId(5), "acme"),
        partition: AT.partition,
    }
}

impl World {
    fn append(&self, offset: Offset, value: impl Into<Bytes>, source: &str) {
        self.lane.topic.lock().push(Record {
            offset,
            timestamp: NOW,
            value: value.into(),
            headers: Headers::encode([(SOURCE_HEADER, source.as_bytes())]),
            ..Record::default()
        });
    }

    /// Everything before 10, and from 12 to 20, is finished.
    fn has_come_to_ten(&mut self) {
        self.write(Body::Route(RouteInfo {
            route: here().route,
            topic: "orders".into(),
            topic_id: TopicId(5),
            partner: "acme".into(),
        }));
        self.write(Body::Position(Position {
            at: here(),
            leader_epoch: 0,
            position: 10,
            finished: vec![(12, 20)],
            high_water: 20,
        }));
    }

    fn story(&self, id: &str) -> Story {
        let query = Query::Story {
            filter: Filter::of_id(id),
        };
        match self.desk.ask(&self.state, &query, NOW).unwrap() {
            Reply::Story(story) => story,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_message_that_waits_in_its_topic_is_found_there() {
    let mut world = World::new();
    world.has_come_to_ten();
    for offset in 0..60 {
        world.append(offset, format!(r#"{{"id":"a{offset}"}}"#), "day.jsonl:1");
    }
    let story = world.story("a40");
    let [route] = story.routes.as_slice() else {
        panic!("{story:?}")
    };
    assert_eq!(
        (route.state, route.attempts, route.offset, route.source.as_deref()),
        (DedupState::Waiting, 0, Some(40), Some("day.jsonl:1"))
    );
    // From 10 to 40, but for the eight that are finished.
    assert_eq!(route.unread.as_ref().map(|u| u.before), Some(22));
    let events: Vec<&str> = route.lines.iter().map(|l| l.event.as_str()).collect();
    assert_eq!(events, ["appended", "waits"]);
    // What is finished does not wait, even where nothing of it is remembered any more.
    for finished in ["a5", "a15"] {
        let story = world.story(finished);
        assert!(story.routes.is_empty(), "{story:?}");
        assert_eq!(
            story.looked.map(|l| (l.records, l.left)),
            Some((50, 0)),
            "{finished}"
        );
    }
    assert_eq!(
        world.story("a10").routes[0].unread.as_ref().map(|u| u.before),
        Some(0)
    );
    // What the ledger knows is told from there.
    let id = IdScope::new("orders", TopicId(5), AT.partition, "acme").id(&[b"a40"]);
    world.write(Body::Intent(Intent {
        at: here(),
        id,
        key: KeyHash(1),
        offset: 40,
        round: 1,
        attempt: 1,
        first_try: NOW,
        slot: NOW,
        budgets: Default::default(),
        life: LifeId(1),
        lease_ms: 10_000,
        timeout_ms: 10_000,
    }));
    let story = world.story("a40");
    assert!(
        story.routes.len() == 1 && story.routes[0].state == DedupState::Intent,
        "{story:?}"
    );
    assert_eq!(story.looked, None);
}

#[test]
fn a_search_that_met_its_bound_says_how_much_is_left() {
    let world = World::new();
    // All of them are one text in memory.
    let large = Bytes::from(vec![b'x'; 2 << 20]);
    for offset in 0..99 {
        world.append(offset, large.clone(), "");
    }
    world.append(99, r#"{"id":"far"}"#.as_bytes().to_vec(), "");
    let story = world.story("far");
    assert!(story.routes.is_empty());
    let looked = story.looked.unwrap();
    assert_eq!((looked.records, looked.left), (64, 36), "{looked:?}");
    // Once less waits it is found.
    world.lane.topic.lock().drain(..50);
    assert_eq!(world.story("far").routes[0].offset, Some(99));
}

#[test]
fn why_a_route_stands_is_said_with_its_waiting_message() {
    let world = World::new();
    world.append(3, r#"{"id":"a"}"#.as_bytes().to_vec(), "");
    let story = world.story("a");
    let explained = |status: Status| {
        let mut story = story.clone();
        explain(&mut story, &status);
        let route = story.routes.remove(0);
        let said: Vec<String> = route
            .lines
            .into_iter()
            .filter(|l| l.event == "because")
            .map(|l| l.detail)
            .collect();
        let why = route.unread.unwrap().why;
        assert_eq!(why, said);
        why
    };
    let wait = |code: &str, text: &str| WaitStatus {
        code: code.into(),
        text: text.into(),
        until: None,
    };
    let partner = |waits: Vec<WaitStatus>| Status {
        partners: vec![PartnerStatus {
            partner: "acme".into(),
            waits,
            ..PartnerStatus::default()
        }],
        ..Status::default()
    };
    assert_eq!(
        explained(partner(vec![wait("in_flight", "2 in flight")])),
        [""; 0]
    );
    assert_eq!(
        explained(partner(vec![wait("breaker", "it is down"), wait("retries", "5")])),
        ["acme: it is down"]
    );
    let mut stopped = Status::default();
    stopped.node.state = "stopped".into();
    stopped.topics = vec![TopicStatus {
        topic: "orders".into(),
        partner: "acme".into(),
        partition: AT.partition,
        stopped: Some("lost: records".into()),
        ..TopicStatus::default()
    }];
    assert_eq!(
        explained(stopped),
        [
            "no node runs on this folder",
            "the route is stopped: lost: records"
        ]
    );
}

fn import(name: &str, lines: u64) -> Import {
    serde_json::from_value(serde_json::json!({
        "v": 1, "topic": "orders", "topic_id": format!("{:032x}", 5), "hash": "h", "size": 1,
        "lines": lines, "accepted": lines, "rejected": 0, "name": name, "at": NOW.to_string(),
    }))
    .unwrap()
}

#[test]
fn a_line_of_an_imported_file_is_found_by_its_number() {
    let mut world = World::new();
    world.has_come_to_ten();
    for offset in 0..60u64 {
        let source = format!("day.jsonl:{}", offset + 1);
        world.append(offset, format!(r#"{{"id":"a{offset}"}}"#), &source);
    }
    let mut told = import("day.jsonl", 70);
    told.rejected = 2;
    told.rejects = vec![RejectedLine {
        line: 66,
        reason: "not JSON".into(),
    }];
    told.reject_file = Some("/x/day.jsonl.rejects".into());
    world.lane.imports.lock().push(told);
    let waits = world.story("exports/day.jsonl:41");
    assert_eq!(
        (waits.routes[0].state, waits.routes[0].offset),
        (DedupState::Waiting, Some(40))
    );
    assert_eq!((waits.looked, waits.id.as_str()), (None, "exports/day.jsonl:41"));
    // Finished and forgotten: its record still says where it stood.
    let old = world.story("day.jsonl:5");
    assert_eq!(
        (old.routes[0].state, old.routes[0].lines[1].event.as_str()),
        (DedupState::Absent, "finished")
    );
    // In the ledger by its ID.
    let id = IdScope::new("orders", TopicId(5), AT.partition, "acme").id(&[b"a14"]);
    world.write(Body::Outcome(Outcome {
        at: here(),
        id,
        offset: 14,
        round: 1,
        attempts: 1,
        when: NOW,
        life: LifeId(1),
        status: 200,
        kind: OutcomeKind::Delivered {
            readable: Bytes::new(),
        },
    }));
    let delivered = world.story("day.jsonl:15");
    assert_eq!(delivered.routes[0].state, DedupState::Delivered);
    // What is no record says why.
    let notes = |id: &str| {
        let story = world.story(id);
        assert!(story.routes.is_empty() && story.looked.is_none(), "{story:?}");
        story.notes.concat()
    };
    let rejected = notes("day.jsonl:66");
    assert!(
        rejected.contains("was rejected: not JSON") && rejected.contains("/x/day.jsonl.rejects"),
        "{rejected}"
    );
    assert!(notes("day.jsonl:71").contains("ends with line 70"));
    assert!(notes("day.jsonl:67").contains("no record of its line 67 is there"));
    // No such file: then it is an ID as any other.
    assert!(world.story("other.jsonl:1").looked.is_some());
}

#[test]
fn a_line_whose_record_is_gone_is_found_in_what_the_ledger_keeps() {
    let mut world = World::new();
    world.lane.imports.lock().push(import("day.jsonl", 9));
    world.dead(5, "refused: 422", "k5");
    world.dead(6, "refused: 422", "k6");
    let story = world.story("day.jsonl:5");
    assert_eq!(story.routes.len(), 1, "{story:?}");
    assert_eq!(
        (story.routes[0].state, story.routes[0].hex.clone()),
        (DedupState::Dead, id(5).to_string())
    );
}
