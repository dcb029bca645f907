//! From what an operator types to the message that is meant.

use super::*;

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
    let view = View::of(
        &old.state,
        &Desk::pick_for_query(&Query::DedupStats, NOW).unwrap(),
    )
    .unwrap();
    let mut rows: Vec<DedupRow> = Vec::new();
    let mut take = |line: String| {
        rows.push(serde_json::from_str(&line).unwrap());
        ControlFlow::Continue(())
    };
    old.desk
        .export(&view, &Filter::default(), NOW, &mut take)
        .unwrap();
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
    let other = RoutePartition { partition: 2, ..AT };
    world.write(Body::Position(Position {
        at: other,
        leader_epoch: 0,
        position: 0,
        finished: Vec::new(),
        high_water: 0,
    }));
    let (effects, report) = world.order(Order::Mark {
        filter: Filter::of_id("a|1"),
    });
    let marked = |at: RoutePartition| {
        let id = IdScope::new("orders", TopicId(5), at.partition, "acme").id(&[b"a|1"]);
        Effect::Marked { at, id }
    };
    assert_eq!(effects, [marked(AT), marked(other)]);
    assert!(report.notes[0].contains("all 2 partitions"), "{:?}", report.notes);
    let hash = world.prepare(Order::Mark { filter: filter(9) });
    let report = hash.unwrap().report;
    assert!(
        report.notes[0].contains("all 2 partitions"),
        "the topic's IDs are texts, also those that look like a hash"
    );
}
