//! A whole node in this process, with each kind of actor made to panic in turn.

use super::*;
use crate::actors::fault::armed;
use crate::api::SendRequest;
use crate::config::{
    Config, IdSource, KeySource, LimitConfig, LimitRef, OnDoubt, PartnerConfig, Rate, TopicConfig,
};
use crate::intake::{send::send, topic_spec};
use crate::mock::{Behaviour, Field, Latency, Mock, MockHandle, MockOptions, PartnerOptions};
use std::time::Duration;

const MESSAGES: u64 = 600;

struct World {
    dir: tempfile::TempDir,
    mock: MockHandle,
    topic: String,
}

impl World {
    /// A topic of this name with messages in it, and a partner that takes two milliseconds for each.
    fn new(topic: &str) -> Self {
        let partner = PartnerOptions {
            key: Some(Field::Json("/user".into())),
            seq: Some(Field::Json("/seq".into())),
            behaviour: Behaviour {
                latency: Latency::Fixed(Duration::from_millis(2)),
                ..Behaviour::default()
            },
            ..PartnerOptions::default()
        };
        let options = MockOptions {
            listen: "127.0.0.1:0".parse().unwrap(),
            partners: vec![partner],
            ..MockOptions::default()
        };
        let world = Self {
            dir: tempfile::tempdir().unwrap(),
            mock: Mock::start(options).unwrap(),
            topic: topic.to_owned(),
        };
        let config = world.config();
        let (log, section) = (open_log(&config).unwrap(), &config.topics[topic]);
        let spec = topic_spec(&config, section);
        for n in 0..MESSAGES {
            let record = SendRequest {
                topic: topic.to_owned(),
                value: format!(r#"{{"id":{n},"user":"u{}","seq":{n}}}"#, n % 37),
                ..SendRequest::default()
            };
            send(log.as_ref(), section, &spec, &[], &record).unwrap();
        }
        log.close().unwrap();
        world
    }

    fn config(&self) -> Config {
        let mut partner = PartnerConfig::new(&self.topic, format!("http://{}/", self.mock.addr()));
        partner.concurrency = 16;
        partner.on_doubt = OnDoubt::Continue;
        // So that the limiter has something to do.
        partner.limits = vec![LimitRef::Inline(LimitConfig {
            rates: vec![Rate::Sliding {
                count: 20,
                window: Duration::from_millis(10),
            }],
            ..LimitConfig::default()
        })];
        let topic = TopicConfig {
            id: vec![IdSource::Json("/id".into())],
            key: KeySource::Json("/user".into()),
            ..TopicConfig::new(&self.topic, &self.topic)
        };
        let mut config = Config::for_test(self.dir.path())
            .with_partner(partner)
            .with_topic(topic);
        config.log.segment = 1 << 20;
        config.actors.restart.first = Duration::from_millis(5);
        config
    }

    /// A life until nothing waits.
    fn live(&self) -> Result<Summary, RunError> {
        let parts = NodeParts {
            files: Vec::new(),
            again: None,
            config: self.config(),
            secrets: Default::default(),
            token: None,
            logging: None,
        };
        let options = RunOptions {
            until_drained: true,
            timeout: Some(Duration::from_secs(60)),
        };
        std::thread::spawn(move || run(parts, options)).join().unwrap()
    }

    /// Each message reached the partner at most once and in the order of its key, and none is lost.
    fn check(&self, summary: Summary) {
        let seen = self.mock.report().partners.remove(0);
        assert_eq!(summary.ended, Ended::Drained, "{summary:?}");
        assert_eq!(summary.delivered + summary.parked, MESSAGES, "{summary:?}");
        assert_eq!(summary.dead, 0);
        assert!(seen.ids_applied >= summary.delivered);
        assert_eq!((seen.ids_requested_again, seen.order_violations), (0, 0));
        assert_eq!(armed::left(&self.topic), 0, "every fault has come");
    }

    fn ledger_folder(&self) -> String {
        self.dir.path().join("ledger").to_str().unwrap().to_owned()
    }
}

#[test]
fn a_panic_of_any_actor_loses_nothing_and_sends_nothing_twice() {
    for kind in ["subpartition", "partition", "topic", "limiter", "ledger"] {
        let world = World::new(&format!("panics-{kind}"));
        let name = match kind {
            "ledger" => world.ledger_folder(),
            _ => world.topic.clone(),
        };
        for nth in [3, 2] {
            armed::arm(kind, &name, nth);
        }
        let summary = world.live().unwrap_or_else(|e| panic!("{kind}: {e}"));
        world.check(summary);
        assert_eq!(armed::left(&name), 0, "{kind}: every fault has come");
    }
}

#[test]
fn without_its_supervisor_the_node_ends() {
    let world = World::new("panics-supervisor");
    armed::arm("supervisor", &world.topic, 1);
    // The topic's own end is what the supervisor hears of.
    armed::arm("topic", &world.topic, 2);
    let ended = world.live().unwrap_err();
    assert!(
        matches!(&ended, RunError::Fatal(why) if why.contains("supervisor")),
        "{ended}"
    );
}
