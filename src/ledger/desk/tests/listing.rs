//! What lists and exports show, and which filters they take.

use super::*;

#[test]
fn a_list_says_all_that_scripts_rely_on() {
    let mut world = World::new();
    world.dead(3, "refused: 422 email", "k3");
    world.parked(4, "k4");
    let rows = world.messages(&Query::Dead {
        filter: Filter::default(),
    });
    assert_eq!(rows.len(), 1);
    let row = &rows[0];
    assert_eq!(
        (
            row.id.as_str(),
            row.partner.as_str(),
            row.topic.as_str(),
            row.partition,
            row.offset
        ),
        ("order-3", "acme", "orders", 0, 3)
    );
    assert_eq!(
        (
            row.key.as_deref(),
            row.reason.as_str(),
            row.attempts,
            row.last_status,
            row.source.as_deref()
        ),
        (
            Some("user-3"),
            "refused: 422 email",
            1,
            Some(422),
            Some("day.jsonl:3")
        )
    );
    assert_eq!(
        world.messages(&Query::Doubts {
            filter: Filter::default()
        })[0]
            .last_status,
        None
    );
}

#[test]
fn filters_hold_together() {
    let mut world = World::new();
    world.dead(1, "refused: 422 email", "k");
    world.dead(2, "refused: 404 user", "k");
    world.dead(3, "too-old: 24h", "k");
    let by = |change: fn(&mut Filter)| {
        let mut filter = Filter::default();
        change(&mut filter);
        filter
    };
    assert_eq!(
        world.dead_ids(by(|f| f.reason = Some("refused".into()))),
        ["order-1", "order-2"]
    );
    assert_eq!(
        world.dead_ids(by(|f| f.reason = Some("/4[0-9]4/".into()))),
        ["order-2"]
    );
    assert_eq!(
        world.dead_ids(by(|f| f.source = Some("day.jsonl:3".into()))),
        ["order-3"]
    );
    assert_eq!(world.dead_ids(by(|f| f.key = Some("user-1".into()))), ["order-1"]);
    assert_eq!(world.dead_ids(by(|f| f.until = Some("1h".into()))), [""; 0]);
    assert_eq!(world.dead_ids(by(|f| f.since = Some("1h".into()))).len(), 3);
    assert_eq!(world.dead_ids(by(|f| f.limit = Some(2))).len(), 2);
    assert_eq!(
        world.dead_ids(by(|f| (f.limit, f.key) = (Some(1), Some("user-2".into())))),
        ["order-2"]
    );
}

#[test]
fn a_payload_is_hidden_unless_asked_for() {
    let mut world = World::new();
    world.dead(3, "refused: 422", "k3");
    let shown = |raw| match world
        .desk
        .ask(
            &world.state,
            &Query::Show {
                filter: filter(3),
                raw,
            },
            NOW,
        )
        .unwrap()
    {
        Reply::Detail(detail) => serde_json::to_string(&detail).unwrap(),
        other => panic!("{other:?}"),
    };
    assert!(!shown(false).contains("4111") && !shown(false).contains("s3cret"));
    assert!(shown(false).contains("day.jsonl:3"));
    assert!(shown(true).contains("4111") && shown(true).contains("s3cret"));
    let missing = world.desk.ask(
        &world.state,
        &Query::Show {
            filter: filter(9),
            raw: true,
        },
        NOW,
    );
    assert!(matches!(missing, Err(ApiError::NotFound(_))));
}

#[test]
fn an_export_comes_back() {
    let mut world = World::new();
    (1..=5).for_each(|n| world.delivered(n));
    world.dead(6, "refused: 422", "k");
    let mut rows = world.exported_rows();
    assert_eq!(rows.len(), 6);
    for row in &rows {
        // The test's hashes are not made from its texts: then the export names the hash.
        assert_eq!(row.id, *row.hex.as_ref().unwrap());
    }
    rows.push(DedupRow {
        topic: "gone".into(),
        ..rows[0].clone()
    });
    let mut other = World::new();
    other.delivered(1);
    let (_, report) = other.order(Order::DedupImport { rows });
    assert_eq!((report.touched, report.refused), (4, 3), "{:?}", report.notes);
    assert_eq!(other.state_of(5), DedupState::Delivered);
}

#[test]
fn keys_and_payloads_are_masked() {
    let mut world = World::new();
    let config = Config::for_test("data")
        .with_partner(PartnerConfig {
            mask: vec!["card".into()],
            ..PartnerConfig::new("acme", "http://127.0.0.1:1")
        })
        .with_topic(TopicConfig {
            key: KeySource::Json("/card".into()),
            ..TopicConfig::new("orders", "acme")
        });
    world.desk = Desk::new(world.lane.clone(), world.lane.clone(), Arc::new(config), &[]);
    world.dead(3, "refused: 422", "k3");
    let row = &world.messages(&Query::Dead {
        filter: Filter::default(),
    })[0];
    assert_eq!(row.key.as_deref(), Some("***"));
    let by_key = Filter {
        key: Some("4111".into()),
        ..Filter::default()
    };
    assert_eq!(world.dead_ids(by_key).len(), 1, "a filter sees what a list hides");
}

/// An empty list for a misspelt name would read as all clear.
#[test]
fn a_name_that_is_not_there_is_told() {
    let mut world = World::new();
    world.dead(1, "refused: 400", "k");
    for (partner, topic) in [(Some("acne"), None), (None, Some("odrers"))] {
        let filter = Filter {
            partner: partner.map(str::to_owned),
            topic: topic.map(str::to_owned),
            ..Filter::default()
        };
        let query = Query::Dead {
            filter: filter.clone(),
        };
        let asked = world.desk.ask(&world.state, &query, NOW);
        assert!(
            matches!(&asked, Err(ApiError::UnknownName(told)) if told.contains("did you mean")),
            "{asked:?}"
        );
        let story = Query::Story {
            filter: Filter {
                ids: vec!["x".into()],
                ..filter.clone()
            },
        };
        let asked = world.desk.ask(&world.state, &story, NOW);
        assert!(matches!(asked, Err(ApiError::UnknownName(_))), "{asked:?}");
        let ordered = world.prepare(Order::Drop { filter });
        assert!(matches!(ordered, Err(ApiError::UnknownName(_))), "{ordered:?}");
    }
}

/// A list has pages: each goes on exactly behind the one before, also where a filter looks into payloads.
#[test]
fn pages_of_a_list_are_the_whole_list() {
    let mut world = World::new();
    for n in 1..=9 {
        let reason = if n % 3 == 0 {
            "refused: 404"
        } else {
            "refused: 422"
        };
        world.dead(n, reason, "k");
    }
    let pages = |reason: Option<&str>, limit| {
        let mut filter = Filter {
            reason: reason.map(str::to_owned),
            limit: Some(limit),
            ..Filter::default()
        };
        let (mut ids, mut pages) = (Vec::new(), 0);
        loop {
            let query = Query::Dead {
                filter: filter.clone(),
            };
            let Reply::Messages(page) = world.desk.ask(&world.state, &query, NOW).unwrap() else {
                panic!()
            };
            assert!(page.rows.len() <= limit && page.next.is_some() == page.more);
            ids.extend(page.rows.into_iter().map(|row| row.id));
            pages += 1;
            match page.next {
                Some(next) => filter.after = Some(next),
                None => return (ids, pages),
            }
        }
    };
    let whole = world.dead_ids(Filter::default());
    assert_eq!(whole.len(), 9);
    assert_eq!(pages(None, 2), (whole.clone(), 5));
    assert_eq!(pages(None, 100), (whole, 1));
    assert_eq!(
        pages(Some("refused: 404"), 1).0,
        ["order-3", "order-6", "order-9"]
    );
    let wrong = Filter {
        after: Some("7".into()),
        ..Filter::default()
    };
    let asked = world.desk.ask(&world.state, &Query::Dead { filter: wrong }, NOW);
    assert!(matches!(asked, Err(ApiError::Invalid(_))), "{asked:?}");
}
