//! A whole node in this process, with each kind of actor made to panic in turn.

use super::*;
use crate::actors::arbiter::local;
use crate::actors::effects;
use crate::actors::fault::armed;
use crate::actors::gate::NodeCap;
use crate::actors::ledger::{Feed, Inputs, LedgerActor, LedgerParts};
use crate::actors::lifeline::Lifeline;
use crate::actors::limiter::RateLimiterActor;
use crate::actors::partition::HoldUp;
use crate::actors::topic::TopicSupervisor;
use crate::api::SendRequest;
use crate::clock::Clock;
use crate::config::{
    Config, IdSource, KeySource, LimitConfig, LimitRef, OnDoubt, PartnerConfig, Rate, TopicConfig,
};
use crate::intake::{send::send, topic_spec};
use crate::ledger::duties::DutyRules;
use crate::ledger::lane::{Lane, LanePort};
use crate::log::Log;
use crate::memory::MemoryShare;
use crate::mock::{Behaviour, Field, Latency, Mock, MockHandle, MockOptions, PartnerOptions};
use crate::patience::{self, Patience};
use crate::sink::secrets::Secrets;
use crate::telemetry::metrics::Metrics;
use actix::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
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
        patience::watch();
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
        let log = open_log(&world.config()).unwrap();
        (0..MESSAGES).for_each(|n| world.send(log.as_ref(), n));
        log.close().unwrap();
        world
    }

    /// Writes one message to the topic.
    fn send(&self, log: &dyn Log, n: u64) {
        let config = self.config();
        let section = &config.topics[&self.topic];
        let record = SendRequest {
            topic: self.topic.clone(),
            value: format!(r#"{{"id":{n},"user":"u{}","seq":{n}}}"#, n % 37),
            ..SendRequest::default()
        };
        send(log, section, &topic_spec(&config, section), &[], &record).unwrap();
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
        patience::join(std::thread::spawn(move || run(parts, options))).unwrap()
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

/// A topic's supervisor fails again while its partition is being built: of two starts that meet the later one goes on,
/// alone, and what the earlier one still does takes nothing from it.
#[test]
fn of_two_starts_of_a_partition_the_later_one_goes_on() {
    let world = World::new("two-starts");
    let config = Arc::new(world.config());
    System::new().block_on(async {
        let clock = Clock::start();
        let opened = open(&config, clock).unwrap();
        let (log, keeper) = (opened.log.clone(), opened.keeper.clone());
        let fatal = Box::new(|error| panic!("the log failed: {error}"));
        let (lane, feed) = Lane::new(log.clone(), opened.lane, opened.tenure, opened.life, clock, fatal);
        local(|local| local.port = Some(LanePort::open(lane.clone())));
        let metrics = Arc::new(Metrics::new());
        let ledger = LedgerParts {
            keeper: keeper.clone(),
            lane,
            feed: Feed::new(feed),
            inputs: Inputs::default(),
            rules: DutyRules::of(&config),
            clock,
            metrics: metrics.clone(),
            effects: effects::channel().0,
        };
        LedgerActor::new(ledger, Lifeline::new(|_| {})).start();
        let partner = partner::PartnerStart {
            number: 0,
            partner: config.partners[&world.topic].clone(),
            memory: MemoryShare::divide(64 << 20, 1).remove(0),
            config: config.clone(),
            clock,
            secrets: Secrets::none(),
            cap: NodeCap::new(100),
            metrics: metrics.clone(),
            keeper: keeper.clone(),
            paused: false,
            own: Vec::new(),
        };
        partner.start().unwrap();
        let gate = local(|local| local.partners[world.topic.as_str()].gate.clone());
        RateLimiterActor::new(gate.clone(), clock, Lifeline::new(|_| {})).start();
        let homes = BTreeMap::from([(world.topic.clone(), Arbiter::current())]);
        let (section, meta) = (&config.topics[&world.topic], log.topic(&world.topic).unwrap());
        let plans = plan::plans(
            &config,
            section,
            &meta,
            &homes,
            &log,
            (opened.lane, &keeper),
            &mut 0,
        );
        let supervise = || {
            let restart = config.actors.restart.clone();
            TopicSupervisor::new(
                plans.clone(),
                restart,
                clock,
                metrics.clone(),
                Lifeline::new(|_| {}),
            )
            .start()
        };
        let delivered =
            || keeper.with_state(|s| s.partitions.values().map(|p| p.counts.delivered).sum::<u64>());
        let until_delivered = async |messages: u64| {
            let patience = Patience::begin();
            while delivered() < messages {
                patience.hold("all are delivered", || format!("{} of {messages}", delivered()));
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let running = || local(|l| l.partitions.values().next().map(|p| (p.start, p.actor.is_some())));
        let _first = supervise();
        until_delivered(MESSAGES).await;
        // Nothing is on the wire, and what the next actor takes up stays at the gate.
        gate.with(|turnstile, now| turnstile.pause(now));
        (0..20).for_each(|n| world.send(log.as_ref(), MESSAGES + n));
        // As after two panics of the topic's supervisor: the first partition's actor lives on, and nobody hears of it.
        // It takes its time to stop.
        let earlier = local(|l| l.partitions.values().find_map(|p| p.actor.clone())).unwrap();
        let (go, held_up) = tokio::sync::oneshot::channel();
        earlier.send(HoldUp(held_up)).await.unwrap();
        let _two = (supervise(), supervise());
        for _ in 0..50 {
            tokio::time::sleep(Duration::from_millis(2)).await;
            let another = running().is_some_and(|(_, is_there)| is_there);
            assert!(earlier.connected() && !another, "one actor at a time (I2)");
        }
        go.send(()).unwrap();
        let patience = Patience::begin();
        while running() != Some((3, true)) {
            patience.hold("the third start has made an actor", || format!("{:?}", running()));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        gate.with(|turnstile, now| turnstile.resume(now));
        until_delivered(MESSAGES + 20).await;
        let seen = world.mock.report().partners.remove(0);
        assert_eq!((seen.ids_applied, seen.requests), (MESSAGES + 20, MESSAGES + 20));
        assert_eq!((seen.ids_requested_again, seen.order_violations), (0, 0));
    });
}
