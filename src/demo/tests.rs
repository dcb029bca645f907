//! What of the demonstration can be tested without a node: files, configuration, the table.

use super::generate::generate;
use super::reconcile::{NodeCount, Row, Table};
use super::scenario::Scenario;
use crate::config::{self, TopicConfig};
use crate::intake::fake_log::FakeLog;
use crate::intake::import::{ImportOptions, Importer};
use crate::intake::topic_spec;
use crate::mock::{MockOptions, PartnerReport};
use std::collections::HashSet;
use std::sync::Arc;

fn configured(scenario: &Scenario) -> config::Config {
    let admin = ([127, 0, 0, 1], 7_070).into();
    let text = scenario.actors_toml(
        admin,
        ["http://127.0.0.1:1/", "http://127.0.0.1:2/", "http://127.0.0.1:3"],
    );
    config::load_text("actors.toml", &text)
        .expect("its own configuration is good")
        .config
}

#[test]
fn its_files_of_settings_load() {
    let scenario = Scenario::new(200_000, 1);
    let config = configured(&scenario);
    assert_eq!((config.partners.len(), config.topics.len()), (3, 3));
    let mock: MockOptions = toml::from_str(&scenario.mock_toml()).expect("options");
    let names: Vec<_> = mock.partners.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, scenario.parts().map(|p| p.name));
}

#[test]
fn two_hundred_thousand_messages_fit_into_two_minutes() {
    let scenario = Scenario::new(200_000, 1);
    assert_eq!(scenario.messages(), 200_000);
    for part in scenario.parts() {
        assert!(part.messages / part.limit <= 45, "{part:?}");
    }
    assert_eq!(Scenario::new(7, 1).messages(), 7);
}

#[test]
fn the_request_files_hold_what_they_say() {
    let folder = tempfile::tempdir().expect("folder");
    let scenario = Scenario::new(4_000, 3);
    let files = generate(&scenario, folder.path(), "http://127.0.0.1:9/").expect("files");
    let config = configured(&scenario);
    let log = FakeLog::default();
    let importer = Importer::new(Arc::new(log.clone()), folder.path().join("spool"));
    for file in &files {
        let topic: &TopicConfig = &config.topics[file.topic];
        let name = file.path.display().to_string();
        let spec = topic_spec(&config, topic);
        let report = importer
            .import_file(topic, &spec, &file.path, &ImportOptions::new(name), &mut |_| {})
            .expect("import");
        assert_eq!(report.known, file.copy, "{}", report.name);
        assert!(report.known || report.rejected == file.bad, "{}", report.name);
    }
    for part in scenario.parts() {
        let records: Vec<_> = log.all(part.topic).into_iter().flatten().collect();
        let different: HashSet<_> = records.iter().map(|r| r.value.clone()).collect();
        let repeats: u64 = files
            .iter()
            .filter(|f| f.topic == part.topic && !f.copy)
            .map(|f| f.repeats)
            .sum();
        assert!(repeats > 0);
        assert_eq!(different.len() as u64, part.messages, "{}", part.name);
        assert_eq!(records.len() as u64, part.messages + repeats, "{}", part.name);
    }
    // The same seed makes the same files.
    let again = tempfile::tempdir().expect("folder");
    let copies = generate(&scenario, again.path(), "http://127.0.0.1:9").expect("files");
    for (one, other) in files.iter().zip(&copies) {
        assert_eq!(
            std::fs::read(&one.path).expect("read"),
            std::fs::read(&other.path).expect("read")
        );
    }
}

fn row() -> Row {
    let scenario = Scenario::new(100, 1);
    let node = NodeCount {
        delivered: 45,
        dead: [("422 not taken".to_owned(), 3)].into(),
        parked: 2,
        waiting: 0,
    };
    let seen = PartnerReport {
        requests: 60,
        ids_applied: 46,
        ..PartnerReport::default()
    };
    Row::new(&scenario.tracker, 1, node, &seen)
}

#[test]
fn what_adds_up_is_said_to_and_what_does_not_is_named() {
    let good = Table::new(vec![row()]);
    assert_eq!(good.mistakes, Vec::<String>::new());
    assert!(good.to_string().contains("It adds up") && good.to_string().contains("3 x 422 not taken"));
    type Damage = fn(&mut Row);
    let broken: [(Damage, &str); 7] = [
        (|r| r.node.delivered -= 1, "is not 50 sent"),
        (|r| (r.node.delivered, r.node.waiting) = (44, 1), "not finished"),
        (|r| r.applied_again = 1, "applied more than once"),
        (|r| r.applied = 44, "has only 44"),
        (|r| r.applied = 48, "only 45 delivered and 2 parked"),
        (|r| r.order_violations = 1, "out of order"),
        (|r| r.most = r.limit + 1, "arrived in one second"),
    ];
    for (damage, said) in broken {
        let mut row = row();
        damage(&mut row);
        let table = Table::new(vec![row]);
        assert!(
            table.mistakes.iter().any(|m| m.contains(said)),
            "{said}: {:?}",
            table.mistakes
        );
        assert!(table.to_string().contains("does not add up") && !table.to_string().contains("It adds up"));
    }
}
