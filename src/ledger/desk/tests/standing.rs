//! Rules, pauses and where everything stands.

use super::*;

/// Skip rules come from operators, and from their scripts: there is a bound, and the way out is said.
#[test]
fn there_are_so_many_skip_rules_and_no_more() {
    let mut world = World::new();
    let add = |key: String| Order::SkipAdd {
        topic: "orders".into(),
        partner: None,
        key: Some(key),
        id: None,
        expires: None,
    };
    world.order(add("user-0".into()));
    let rule = world.state.skips.values().next().cloned().unwrap();
    for n in 1..crate::ledger::desk::prepare::SKIPS_MOST as u64 {
        let mut rule = rule.clone();
        (rule.rule, rule.matches) = (1_000_000 + n, SkipMatch::Key(format!("user-{n}").into()));
        world.state.skips.insert(rule.rule, rule);
    }
    assert!(world.state.memory() >= 7_000_000, "and they are counted");
    let refused = world.prepare(add("one-more".into()));
    assert!(
        matches!(&refused, Err(ApiError::Conflict(why)) if why.contains("`skip remove`")),
        "{refused:?}"
    );
    world
        .prepare(add("user-77".into()))
        .expect("the same rule again is no new one");
}

#[test]
fn rules_and_pauses_are_set_and_undone() {
    let mut world = World::new();
    let add = Order::SkipAdd {
        topic: "orders".into(),
        partner: None,
        key: Some("user-1".into()),
        id: None,
        expires: Some("2h".into()),
    };
    let effects = world.order(add.clone()).0;
    assert!(matches!(&effects[..], [Effect::SkipsChanged(rules)] if rules.len() == 1));
    world.order(add);
    let rules: Vec<u64> = world.state.skips.keys().copied().collect();
    assert_eq!(rules.len(), 1, "the same rule again is the same rule");
    assert_eq!(
        world.state.skips[&rules[0]].expires,
        Some(NOW.plus(std::time::Duration::from_secs(7_200)))
    );
    let remove = world.prepare(Order::SkipRemove { rule: rules[0] }).unwrap();
    assert_eq!(world.carry_out(&remove).1.touched, 1);
    assert_eq!(
        world.carry_out(&remove).1.stale,
        1,
        "of two orders the first wins"
    );
    assert!(matches!(
        world.prepare(Order::SkipRemove { rule: 99 }),
        Err(ApiError::NotFound(_))
    ));
    world.order(Order::Pause {
        partner: "acme".into(),
    });
    assert_eq!(world.state.paused["acme"].reason, "asked");
    assert_eq!(
        world
            .order(Order::Resume {
                partner: "acme".into()
            })
            .1
            .touched,
        1
    );
    let again = world
        .order(Order::Resume {
            partner: "acme".into(),
        })
        .1;
    assert_eq!(
        (again.stale, again.touched),
        (0, 1),
        "an open breaker is to send a probe"
    );
    assert!(again.notes[0].contains("was not paused"), "{:?}", again.notes);
    assert!(matches!(
        world.prepare(Order::Pause {
            partner: "acne".into()
        }),
        Err(ApiError::UnknownName(_))
    ));
    let route = |partner: &str| Order::ResumeRoute {
        topic: "orders".into(),
        partner: partner.into(),
    };
    assert_eq!(world.order(route("acme")).1.stale, 1);
    assert!(world.prepare(route("other")).is_err());
}

#[test]
fn a_standing_counts_what_is_not_finished() {
    let mut world = World::new();
    world.lane.topic.lock().push(Record {
        offset: 10,
        timestamp: NOW.minus(std::time::Duration::from_secs(5)),
        ..Record::default()
    });
    world.write(Body::Position(Position {
        at: AT,
        leader_epoch: 0,
        position: 10,
        finished: vec![(12, 20)],
        high_water: 20,
    }));
    world.delivered(21);
    world.dead(22, "refused: 422", "k");
    world.parked(23, "k");
    world.intent(24, 1, 1);
    world.order(replay(filter(22)));
    let status = world.desk.status(&Standing::of(&world.state), NOW);
    assert_eq!(
        status.topics.len(),
        AT.partition as usize + 1,
        "all partitions show"
    );
    let t = &status.topics[AT.partition as usize];
    // Of 100 records 10 lie below the position, 8 are in a range, 3 more were finished; one of those waits again.
    assert_eq!((t.position, t.end, t.lag), (10, 100, 100 - 10 - 8 - 3 + 1));
    assert_eq!((t.waiting, t.dead, t.parked, t.delivered), (1, 0, 1, 1));
    assert_eq!(t.oldest_age_ms, Some(5_000));
    let p = &status.partners[0];
    let lag = t.lag + 100 * u64::from(AT.partition);
    assert_eq!((p.partner.as_str(), p.waiting, p.delivered), ("acme", lag, 1));
    assert_eq!(p.eta_s, None, "nothing is known of its pace");
}

#[test]
fn a_route_that_is_not_in_the_configuration_says_so() {
    let mut world = World::new();
    let stands = |world: &World| {
        let status = world.desk.status(&Standing::of(&world.state), NOW);
        let rows = status.topics.into_iter().filter(|t| t.stopped.is_some());
        rows.map(|t| (t.topic, t.partner)).collect::<Vec<_>>()
    };
    assert_eq!(stands(&world), []);
    for (route, topic, partner) in [(8, "orders", "former"), (9, "gone", "acme")] {
        world.write(Body::Route(RouteInfo {
            route: RouteId(route),
            topic: topic.into(),
            topic_id: TopicId(5),
            partner: partner.into(),
        }));
        let at = RoutePartition {
            route: RouteId(route),
            partition: 0,
        };
        world.write(Body::Position(Position {
            at,
            leader_epoch: 0,
            position: 3,
            finished: Vec::new(),
            high_water: 3,
        }));
    }
    let found: std::collections::BTreeSet<_> = stands(&world).into_iter().collect();
    let gone = [("gone", "acme"), ("orders", "former")].map(|(t, p)| (t.to_owned(), p.to_owned()));
    assert_eq!(found.into_iter().collect::<Vec<_>>(), gone);
}
