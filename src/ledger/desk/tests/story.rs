//! What is told of one message.

use super::*;

#[test]
fn a_story_is_told_in_order_and_in_ten_lines() {
    let mut world = World::new();
    world.lane.topic.lock().push(Record {
        offset: 3,
        timestamp: NOW,
        key: Some("user-3".into()),
        headers: Headers::encode([(SOURCE_HEADER, &b"day.jsonl:42"[..])]),
        ..Record::default()
    });
    for attempt in 1..=20 {
        world.intent(3, 1, attempt);
        let later = OutcomeKind::Later {
            not_before: NOW,
            first_try: NOW,
            key: KeyHash(3),
            reason: "429 slow down".into(),
            counted: true,
        };
        world.outcome(3, 1, attempt, later);
        world.delivered(100 + attempt as u8);
    }
    world.intent(3, 1, 21);
    world.outcome(
        3,
        1,
        21,
        OutcomeKind::Delivered {
            readable: Bytes::new(),
        },
    );
    let story = match world
        .desk
        .ask(&world.state, &Query::Story { filter: filter(3) }, NOW)
        .unwrap()
    {
        Reply::Story(story) => story,
        other => panic!("{other:?}"),
    };
    let [route] = story.routes.as_slice() else {
        panic!("{story:?}")
    };
    assert_eq!(
        (route.state, route.attempts, route.offset),
        (DedupState::Delivered, 21, Some(3))
    );
    assert_eq!(
        (route.source.as_deref(), route.key.as_deref()),
        (Some("day.jsonl:42"), Some("user-3"))
    );
    assert!(route.lines.len() <= 9, "{:?}", route.lines);
    assert_eq!(route.lines[0].event, "appended");
    assert_eq!(route.lines[1].event, "later");
    assert_eq!(route.lines.last().unwrap().event, "delivered");
    let nothing = world
        .desk
        .ask(&world.state, &Query::Story { filter: filter(99) }, NOW)
        .unwrap();
    assert!(matches!(nothing, Reply::Story(s) if s.routes.is_empty()));
}

#[test]
fn an_attempt_without_a_verdict_is_told() {
    let mut world = World::new();
    world.intent(3, 1, 1);
    let Reply::Story(story) = world
        .desk
        .ask(&world.state, &Query::Story { filter: filter(3) }, NOW)
        .unwrap()
    else {
        panic!()
    };
    assert_eq!(story.routes[0].state, DedupState::Intent);
    assert_eq!(story.routes[0].lines[0].event, "attempt");
}

#[test]
fn an_attempt_whose_slot_was_missed_does_not_count() {
    let mut world = World::new();
    world.intent(3, 1, 1);
    let missed = OutcomeKind::Later {
        not_before: NOW,
        first_try: NOW,
        key: KeyHash(3),
        reason: "not sent: its start slot was missed".to_owned(),
        counted: false,
    };
    world.outcome(3, 1, 1, missed);
    world.delivered(3);
    let query = Query::Story { filter: filter(3) };
    let Reply::Story(story) = world.desk.ask(&world.state, &query, NOW).unwrap() else {
        panic!()
    };
    let events: Vec<&str> = story.routes[0].lines.iter().map(|l| l.event.as_str()).collect();
    assert_eq!(
        (story.routes[0].attempts, events),
        (1, vec!["later", "delivered"])
    );
}

fn only_route(world: &World, n: u8) -> crate::api::messages::RouteStory {
    let query = Query::Story { filter: filter(n) };
    match world.desk.ask(&world.state, &query, NOW).unwrap() {
        Reply::Story(story) => story.routes.into_iter().next().unwrap(),
        other => panic!("{other:?}"),
    }
}

/// The ledger notes the last status with every outcome: of a slot that was missed, or a message that is given up before
/// its first attempt of a round, it is the status of an earlier round.
#[test]
fn what_was_not_sent_has_no_status() {
    let mut world = World::new();
    world.intent(3, 1, 1);
    world.outcome(3, 1, 1, OutcomeKind::Dead(World::kept(3, "refused: 500", "k3")));
    world.order(replay(filter(3)));
    world.intent(3, 2, 1);
    let missed = |status| {
        Body::Outcome(Outcome {
            at: AT,
            id: id(3),
            offset: 3,
            round: 2,
            attempts: 1,
            when: NOW,
            life: LifeId(1),
            status,
            kind: OutcomeKind::Later {
                not_before: NOW,
                first_try: NOW,
                key: KeyHash(3),
                reason: "not sent: its start slot was missed".to_owned(),
                counted: false,
            },
        })
    };
    world.write(missed(500));
    let lines = only_route(&world, 3).lines;
    let told = lines.last().unwrap();
    assert_eq!(told.event, "later");
    assert!(
        told.detail
            .starts_with("attempt 1 of round 2 was not sent: its start slot was missed; again after"),
        "{}",
        told.detail
    );
    world.write(Body::Outcome(Outcome {
        at: AT,
        id: id(3),
        offset: 3,
        round: 2,
        attempts: 0,
        when: NOW,
        life: LifeId(1),
        status: 500,
        kind: OutcomeKind::Dead(World::kept(3, "too_old: 24h", "k3")),
    }));
    let lines = only_route(&world, 3).lines;
    assert_eq!(lines.last().unwrap().detail, "without an attempt: too_old: 24h");
}

#[test]
fn a_round_says_who_opened_it_and_why() {
    let not_taken = |filter| Order::Confirm {
        filter,
        outcome: Confirmed::NotTaken,
    };
    let resend = |filter| Order::Resend { filter };
    let all: [(&str, &dyn Fn(Filter) -> Order); 3] = [
        ("replay", &replay),
        ("resend", &resend),
        ("confirm not taken", &not_taken),
    ];
    for (verb, order) in all {
        let mut world = World::new();
        match verb {
            "replay" => world.dead(3, "refused: 500", "k3"),
            _ => world.parked(3, "k3"),
        }
        world.order(order(filter(3)));
        let lines = only_route(&world, 3).lines;
        let opened = lines.iter().find(|l| l.event == "opened").unwrap();
        assert_eq!(opened.detail, format!("round 2 by `{verb}` by kim: asked"));
    }
}
