//! From what an operator types to the message that is meant.

use super::*;
use crate::core::message_id::route_id;

#[test]
fn readable_ids_are_found_and_survive_another_incarnation() {
    let scope = |topic_id| IdScope::new("orders", TopicId(topic_id), AT.partition, "acme");
    let delivered = |world: &mut World, id, readable: &str| {
        world.write(Body::Outcome(Outcome {
            at: AT,
            id,
            offset: 1,
            round: 1,
            attempts: 1,
            when: NOW,
            life: LifeId(1),
            status: 200,
            kind: OutcomeKind::Delivered {
                readable: Bytes::from(readable.to_owned()),
            },
        }));
    };
    let state = |world: &World, text: &str| {
        let query = Query::DedupGet {
            filter: Filter::of_id(text),
        };
        match world.desk.ask(&world.state, &query, NOW).unwrap() {
            Reply::Dedup(page) => (page.rows[0].id.clone(), page.rows[0].state),
            other => panic!("{other:?}"),
        }
    };
    let mut old = World::new();
    delivered(&mut old, scope(5).id(&[b"a-1"]), "a-1");
    delivered(&mut old, scope(5).id(&[b"very long, kept in part"]), "very long");
    assert_eq!(state(&old, "a-1"), ("a-1".into(), DedupState::Delivered));
    assert_eq!(state(&old, "a-2"), ("a-2".into(), DedupState::Absent));
    let rows = old.exported_rows();
    let mut new = World::new();
    new.write(Body::Route(RouteInfo {
        route: AT.route,
        topic: "orders".into(),
        topic_id: TopicId(6),
        partner: "acme".into(),
    }));
    let (effects, report) = new.order(Order::DedupImport { rows });
    assert_eq!(
        (report.touched, report.refused),
        (1, 1),
        "a cut ID is not taken for another message"
    );
    assert_eq!(
        effects,
        [Effect::Marked {
            at: AT,
            id: scope(6).id(&[b"a-1"])
        }]
    );
    assert_eq!(state(&new, "a-1").1, DedupState::Delivered);
}

#[test]
fn an_unknown_id_is_marked_wherever_it_may_turn_up() {
    let mut world = World::new();
    let other = world.meet(2);
    let (effects, report) = world.order(Order::Mark {
        filter: Filter::of_id("a|1"),
    });
    let marked = |at: RoutePartition| {
        let id = IdScope::new("orders", TopicId(5), at.partition, "acme").id(&[b"a|1"]);
        Effect::Marked { at, id }
    };
    assert_eq!(effects, [marked(AT), marked(other)]);
    assert!(report.notes[0].contains("all 2 partitions"), "{:?}", report.notes);
    let hash = world.prepare(Order::Mark { filter: filter(9) }).unwrap();
    assert!(
        hash.report.notes[0].contains("all 2 partitions"),
        "the topic's IDs are texts, also those that look like a hash"
    );
    // In one partition the text may be a hash, too: two meanings of it, and one partition.
    let one = Filter {
        partition: Some(2),
        ..filter(9)
    };
    let one = world.prepare(Order::Mark { filter: one }).unwrap();
    assert_eq!((one.items.len(), one.report.notes), (2, Vec::new()));
}

/// A list made from the partner's own records knows no partitions: a line without one is taken in for all of them.
#[test]
fn a_list_without_partitions_is_taken_in_for_all_of_them() {
    let mut world = World::new();
    let other = world.meet(2);
    let rows = |lines: &[&str]| Order::DedupImport {
        rows: lines.iter().map(|l| serde_json::from_str(l).unwrap()).collect(),
    };
    let line = r#"{"id":"a|1","topic":"orders","partner":"acme","state":"delivered"}"#;
    let elsewhere = r#"{"id":"a|1","topic":"orders","partner":"nobody","state":"delivered"}"#;
    let (effects, report) = world.order(rows(&[line, elsewhere]));
    let marked = |at: RoutePartition| {
        let id = IdScope::new("orders", TopicId(5), at.partition, "acme").id(&[b"a|1"]);
        Effect::Marked { at, id }
    };
    assert_eq!(effects, [marked(AT), marked(other)]);
    assert_eq!((report.touched, report.refused), (2, 1), "{:?}", report.notes);
    let (effects, report) = world.order(rows(&[line]));
    assert_eq!(
        (effects.len(), report.touched, report.refused),
        (0, 0, 1),
        "{:?}",
        report.notes
    );
    assert!(
        report.notes[0].contains("known here already"),
        "{:?}",
        report.notes
    );
}

/// The store knows an ID once: called delivered in a partition that is not its own, it would be unknown in its own, and
/// sent again.
#[test]
fn a_hash_is_not_marked_in_a_partition_that_is_not_its_own() {
    let mut world = World::new();
    world.meet(2);
    world.delivered(4);
    let mark = Order::Mark {
        filter: Filter {
            partition: Some(2),
            ..filter(4)
        },
    };
    let refused = world.prepare(mark).unwrap_err().to_string();
    assert!(refused.contains("of orders to acme, partition 0"), "{refused}");
    let row = DedupRow {
        id: id(4).to_string(),
        hex: Some(id(4).to_string()),
        topic: "orders".into(),
        topic_id: Some(format!("{:032x}", 5)),
        partner: "acme".into(),
        partition: Some(2),
        state: DedupState::Delivered,
        ..DedupRow::default()
    };
    let report = world.prepare(Order::DedupImport { rows: vec![row] }).unwrap();
    assert_eq!((report.items.len(), report.report.refused), (0, 1));

    // The same line without a partition goes to its holder alone, where it is known; a hash that nobody holds goes nowhere.
    let line = |n: u8, hex: bool| DedupRow {
        id: id(n).to_string(),
        hex: hex.then(|| id(n).to_string()),
        topic: "orders".into(),
        topic_id: hex.then(|| format!("{:032x}", 5)),
        partner: "acme".into(),
        state: DedupState::Delivered,
        ..DedupRow::default()
    };
    // A topic that the configuration does not know: texts that look like a hash are taken for one.
    let config = Config::for_test("data").with_partner(PartnerConfig::new("acme", "http://127.0.0.1:1"));
    world.desk = Desk::new(world.lane.clone(), world.lane.clone(), Arc::new(config), &[]);
    let rows = vec![line(4, true), line(4, false), line(9, true), line(9, false)];
    let prepared = world.prepare(Order::DedupImport { rows }).unwrap();
    let report = prepared.report;
    assert_eq!(
        (prepared.items.len(), report.refused),
        (0, 4),
        "{:?}",
        report.notes
    );
    assert!(
        report.notes[0].starts_with("2 are known here already"),
        "{:?}",
        report.notes
    );
}

/// Where lists and logs name messages by their hash, so do all answers; only the export has every ID.
#[test]
fn ids_of_masked_fields_are_shown_nowhere() {
    let planted = "jane.doe@example.org";
    let mut world = World::new();
    let config = Config::for_test("data")
        .with_partner(PartnerConfig::new("acme", "http://127.0.0.1:1"))
        .with_topic(TopicConfig {
            id: vec![IdSource::Json("/email".into())],
            key: KeySource::Json("/email".into()),
            ..TopicConfig::new("orders", "acme")
        });
    world.desk = Desk::new(world.lane.clone(), world.lane.clone(), Arc::new(config), &[]);
    let scope = IdScope::new("orders", TopicId(5), AT.partition, "acme");
    let kept = |readable: &str| Kept {
        readable: readable.to_owned(),
        value: Bytes::from(format!(r#"{{"email":"{readable}"}}"#)),
        ..Kept::default()
    };
    let outcome = |offset, id, kind| {
        Body::Outcome(Outcome {
            at: AT,
            id,
            offset,
            round: 1,
            attempts: 1,
            when: NOW,
            life: LifeId(1),
            status: 200,
            kind,
        })
    };
    let readable = Bytes::from_static(planted.as_bytes());
    world.write(outcome(
        1,
        scope.id(&[planted.as_bytes()]),
        OutcomeKind::Delivered { readable },
    ));
    let dead = format!("dead.{planted}");
    world.write(outcome(
        2,
        scope.id(&[dead.as_bytes()]),
        OutcomeKind::Dead(Box::new(kept(&dead))),
    ));
    world.write(outcome(
        3,
        scope.position(3),
        OutcomeKind::Dead(Box::new(kept("3"))),
    ));
    let ask = |world: &World, query: Query| {
        let reply = world.desk.ask(&world.state, &query, NOW).unwrap();
        serde_json::to_string(&reply).unwrap()
    };
    let by = |text: &str| Filter::of_id(text);
    let mut answers = vec![
        ask(
            &world,
            Query::DedupList {
                filter: Filter::default(),
            },
        ),
        ask(&world, Query::DedupGet { filter: by(planted) }),
        ask(&world, Query::DedupGet { filter: by(&dead) }),
        ask(
            &world,
            Query::DedupGet {
                filter: by("unknown@example.org"),
            },
        ),
        ask(
            &world,
            Query::Dead {
                filter: Filter::default(),
            },
        ),
        ask(&world, Query::Story { filter: by(planted) }),
        ask(
            &world,
            Query::Story {
                filter: by("unknown@example.org"),
            },
        ),
    ];
    let hash = scope.id(&[planted.as_bytes()]).to_string();
    assert!(
        answers[0].contains(&hash) && answers[1].contains(&hash),
        "{answers:?}"
    );
    assert!(answers[5].contains(&hash), "{}", answers[5]);
    // A message that goes by its position, among those that do not.
    assert!(answers[4].contains("\"@3\""), "{}", answers[4]);
    for order in [
        Order::Drop { filter: by(&dead) },
        Order::Forget { filter: by(planted) },
        Order::Mark {
            filter: by("new@example.org"),
        },
    ] {
        let (_, report) = world.order(order);
        answers.push(serde_json::to_string(&report).unwrap());
    }
    let secret = || Some("skip@example.org".to_owned());
    for (key, id) in [(secret(), None), (None, secret())] {
        world.order(Order::SkipAdd {
            topic: "orders".into(),
            partner: None,
            key,
            id,
            expires: None,
        });
    }
    answers.push(ask(&world, Query::Skips));
    assert_eq!(answers.last().unwrap().matches("***").count(), 2, "{answers:?}");
    for answer in &answers {
        assert!(!answer.contains("example.org"), "{answer}");
    }
    let lines = world.export();
    assert!(lines.concat().contains("example.org"), "{lines:?}");
}

/// A node that has never run takes in what another one has delivered: what configuration and topic say is there, is there.
#[test]
fn a_fresh_folder_is_told_what_was_delivered_elsewhere() {
    let mut world = World::fresh();
    let line = |id: &str, partition, topic: &str| DedupRow {
        id: id.into(),
        topic: topic.into(),
        partner: "acme".into(),
        partition,
        state: DedupState::Delivered,
        ..DedupRow::default()
    };
    let rows = vec![
        line("a", Some(0), "orders"),
        line("b", None, "orders"),
        line("c", Some(2), "orders"),
        line("d", Some(0), "others"),
    ];
    let (_, report) = world.order(Order::DedupImport { rows });
    // "b" counts for each of the two partitions.
    assert_eq!((report.touched, report.refused), (3, 2), "{:?}", report.notes);
    let mark = |text: &str| Order::Mark {
        filter: Filter::of_id(text),
    };
    let (_, report) = world.order(mark("e"));
    assert_eq!(report.touched, 2, "{:?}", report.notes);
    let route = route_id("orders", TopicId(5), "acme");
    let known = |world: &World, partition, text: &str| {
        let id = IdScope::new("orders", TopicId(5), partition, "acme").id(&[text.as_bytes()]);
        world
            .lane
            .store
            .lock()
            .contains_key(&(RoutePartition { route, partition }, id))
    };
    let told: Vec<_> = [0, 1]
        .map(|p| ["a", "b", "e"].map(|id| known(&world, p, id)))
        .into();
    assert_eq!(told, [[true, true, true], [false, true, true]]);
    // The start of a node finds the route as if a start had met it: at the first record that the topic has.
    assert_eq!(world.state.routes[&route].partner, "acme");
    for partition in 0..2 {
        let met = &world.state.partitions[&RoutePartition { route, partition }];
        assert_eq!((met.position, met.high_water), (40, 40));
    }
    // What is known is not brought in again, and questions know the route too.
    let (_, report) = world.order(mark("e"));
    assert_eq!((report.touched, report.refused), (0, 2), "{:?}", report.notes);
    let asked = Query::DedupGet {
        filter: Filter::of_id("nobody"),
    };
    let fresh = World::fresh();
    for world in [&fresh, &world] {
        let reply = world.desk.ask(&world.state, &asked, NOW).unwrap();
        assert!(matches!(reply, Reply::Dedup(page) if page.rows[0].state == DedupState::Absent));
    }
}
