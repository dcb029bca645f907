//! Orders through a real folder, lane and admin port.

use super::*;
use crate::actors::effects;
use crate::actors::ledger::{Feed, Inputs, LedgerActor, LedgerParts};
use crate::actors::lifeline::Lifeline;
use crate::admin::{AdminOptions, Client, ClientError, serve};
use crate::api::{Order, Page};
use crate::app::open;
use crate::config::TopicConfig;
use crate::config::{IdSource, PartnerConfig};
use crate::core::ledger::entry::{Kept, Outcome, OutcomeKind, Position, RouteInfo};
use crate::core::ledger::fold::Effect;
use crate::core::message_id::{IdScope, route_id};
use crate::core::types::*;
use crate::ledger::duties::DutyRules;
use crate::ledger::lane::Lane;
use actix::prelude::*;
use parking_lot::Mutex;

#[derive(Default)]
struct Noting(Mutex<Vec<Effect>>);

impl Hooks for Noting {
    fn enrich(&self, status: &mut Status) {
        status.partners[0].rate = 10.0;
        status.node.in_flight = 3;
    }
    fn home_of(&self, _: RouteId) -> Option<ArbiterHandle> {
        None
    }
    fn problems(&self) -> Vec<String> {
        Vec::new()
    }
    fn not_ready(&self) -> Vec<String> {
        vec!["draining".into()]
    }
}

/// A real folder, lane and folding actor behind a real admin port; only the deliveries are left out.
#[test]
fn orders_reach_the_ledger_of_a_running_node() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::for_test(dir.path())
        .with_partner(PartnerConfig::new("acme", "http://127.0.0.1:1/hook"))
        .with_topic(TopicConfig {
            id: vec![IdSource::Json("/id".into())],
            ..TopicConfig::new("orders", "acme")
        });
    config.log.segment = 1 << 20;
    let config = Arc::new(config);
    let clock = Clock::start();
    let opened = open(&config, clock).unwrap();
    let hooks = Arc::new(Noting::default());
    System::new().block_on(async {
        let (lane, feed) = Lane::new(
            opened.log.clone(),
            opened.lane,
            opened.tenure,
            opened.life,
            clock,
            Box::new(|e| panic!("{e}")),
        );
        let feed = Feed::new(feed);
        let lifeline = Lifeline::new(|_| {});
        let (outlet, inlet) = effects::channel();
        let noting = hooks.clone();
        actix_rt::spawn(inlet.run(move |effects| {
            noting
                .0
                .lock()
                .extend(effects.iter().map(|(_, effect)| effect.clone()));
            Vec::new()
        }));
        let parts = LedgerParts {
            keeper: opened.keeper.clone(),
            lane: lane.clone(),
            feed,
            inputs: Inputs::default(),
            rules: DutyRules::of(&config),
            clock,
            metrics: Arc::default(),
            effects: outlet.clone(),
        };
        LedgerActor::new(parts, lifeline).start();
        let holding = lane.clone();
        let writer = LaneWriter::open(lane, outlet.carried().clone());
        let node = LiveNode::new(LiveParts {
            config: config.clone(),
            secrets: Vec::new(),
            clock,
            log: opened.log.clone(),
            lane: opened.lane,
            keeper: opened.keeper.clone(),
            writer: writer.clone(),
            files: Vec::new(),
            memory: MemoryShare::divide(1 << 30, 1).first().cloned(),
            metrics: Arc::new(Metrics::new()),
            longest_write: Duration::from_millis(200),
            logging: None,
            hooks: hooks.clone(),
        });
        let options = AdminOptions {
            admin: Some(config.listen.admin),
            ..AdminOptions::default()
        };
        let server = serve(options, Arc::new(node)).unwrap();
        let client = Client::new(&server.admin().unwrap().to_string(), None).unwrap();

        let topic = TopicId(5);
        let at = RoutePartition {
            route: route_id("orders", topic, "acme"),
            partition: 0,
        };
        let id = IdScope::new("orders", topic, 0, "acme").id(&[b"a-1"]);
        let entries = vec![
            Body::Route(RouteInfo {
                route: at.route,
                topic: "orders".into(),
                topic_id: topic,
                partner: "acme".into(),
            }),
            Body::Position(Position {
                at,
                leader_epoch: 0,
                position: 0,
                finished: vec![],
                high_water: 0,
            }),
            Body::Outcome(Outcome {
                at,
                id,
                offset: 0,
                round: 1,
                attempts: 1,
                when: clock.now(),
                life: LifeId(1),
                status: 422,
                kind: OutcomeKind::Dead(Box::new(Kept {
                    readable: "a-1".into(),
                    reason: "refused: 422".into(),
                    ..Kept::default()
                })),
            }),
        ];
        let written = actix_rt::task::spawn_blocking(move || {
            let mut writing = writer.begin(entries, |_| None)?;
            assert!(writing.finish(Instant::now() + LONGEST_WRITE).is_ok());
            Ok::<_, ApiError>(writing.refused)
        });
        assert_eq!(written.await.unwrap().unwrap(), Vec::<usize>::new());

        let dead = Query::Dead {
            filter: Filter::default(),
        };
        let Reply::Messages(Page { rows, .. }) = client.query(&dead).await.unwrap() else {
            panic!()
        };
        assert_eq!(rows[0].id, "a-1");
        let order = OrderRequest {
            order: Order::Replay {
                filter: Filter::of_id("a-1"),
                skipped: false,
            },
            who: "kim".into(),
            why: "mended".into(),
            dry_run: false,
            expect: None,
        };
        assert_eq!(client.order(&order).await.unwrap().touched, 1);
        assert!(matches!(
            hooks.0.lock().as_slice(),
            [Effect::Opened { round: 2, .. }]
        ));
        assert_eq!(
            client.order(&order).await.unwrap().touched,
            0,
            "it is folded before it is answered"
        );

        // A lane that takes nothing: the answer does not wait for ever, the order's effect comes all the same.
        let held = holding.hold();
        let pause = |partner: &str| OrderRequest {
            order: Order::Pause {
                partner: partner.into(),
            },
            ..order.clone()
        };
        let late = client.order(&pause("acme")).await;
        assert!(
            matches!(late, Err(ClientError::Api(ApiError::Unavailable(_)))),
            "{late:?}"
        );
        let next = client.order(&pause("acme")).await;
        assert!(
            next.is_err(),
            "no order is settled against a fold that lacks the one before"
        );
        drop(held);
        assert_eq!(client.order(&pause("acme")).await.unwrap().touched, 1);
        let paused = |e: &&Effect| matches!(e, Effect::Paused { partner } if partner == "acme");
        assert_eq!(hooks.0.lock().iter().filter(paused).count(), 2);
        let resume = OrderRequest {
            order: Order::Resume {
                partner: "acme".into(),
            },
            ..order.clone()
        };
        assert_eq!(client.order(&resume).await.unwrap().touched, 1);

        let status = client.status().await.unwrap();
        assert_eq!(
            (status.node.state.as_str(), status.node.in_flight),
            ("running", 3)
        );
        assert_eq!(status.partners[0].eta_s, Some(0.1), "one waits, ten a second");

        let record = SendRequest {
            topic: "orders".into(),
            value: r#"{"id":"b"}"#.into(),
            ..SendRequest::default()
        };
        assert_eq!(client.send(&record).await.unwrap().offset, 0);
        let wrong = SendRequest {
            topic: "other".into(),
            ..record
        };
        assert!(matches!(
            client.send(&wrong).await,
            Err(ClientError::Api(ApiError::NotFound(_)))
        ));

        let file = ImportRequest {
            topic: "orders".into(),
            name: "day.jsonl".into(),
            ..ImportRequest::default()
        };
        let lines = || {
            futures_util::stream::iter([Ok(bytes::Bytes::from_static(
                b"{\"id\":1}\n{\"id\":2}\nnonsense\n",
            ))])
        };
        let report = client.import(&file, lines()).await.unwrap();
        assert_eq!((report.accepted, report.rejected, report.known), (2, 1, false));
        assert!(client.import(&file, lines()).await.unwrap().known);

        let mut text = Vec::new();
        let take = |piece: &[u8]| std::io::Write::write_all(&mut text, piece);
        client.export(&Filter::default(), take).await.unwrap();
        assert!(!client.test_partner("acme").await.unwrap().ok);
        let wrong = Filter {
            since: Some("yesterday".into()),
            ..Filter::default()
        };
        let refused = client.export(&wrong, |_| Ok(())).await;
        assert!(
            matches!(refused, Err(ClientError::Api(ApiError::Invalid(_)))),
            "{refused:?}"
        );
        System::current().stop();
    });
    opened.log.close().unwrap();
}
