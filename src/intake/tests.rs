//! One record: placed like an imported one, and its ID put where the topic looks for it.

use super::fake_log::FakeLog;
use super::place::{Incoming, Placer};
use super::send::{SendError, send, with_id};
use crate::api::SendRequest;
use crate::config::{Config, IdSource, KeySource, TopicConfig};

fn request(value: &str) -> SendRequest {
    SendRequest {
        topic: "t".into(),
        value: value.into(),
        ..SendRequest::default()
    }
}

#[test]
fn a_sent_record_stands_where_an_import_would_put_it() {
    let mut topic = TopicConfig::new("t", "p");
    topic.id = vec![IdSource::Json("/id".into())];
    let config = Config::default();
    let spec = super::topic_spec(&config, &topic);
    let log = FakeLog::default();
    for i in 0..20 {
        let value = format!("{{\"id\":{i}}}");
        let reply = send(&log, &topic, &spec, &[], &request(&value)).expect("send");
        let place = Placer::new(&topic, 4).expect("pointers").place(Incoming {
            value: value.as_bytes(),
            ..Incoming::default()
        });
        assert_eq!(Some(reply.partition), place.expect("json").partition);
        let there = &log.all("t")[reply.partition as usize][reply.offset as usize];
        assert_eq!(there.value, value);
    }
    let asked = SendRequest {
        partition: Some(9),
        ..request("{}")
    };
    assert!(matches!(
        send(&log, &topic, &spec, &[], &asked),
        Err(SendError::Partition { last: 3, .. })
    ));
}

#[test]
fn an_id_goes_where_the_topic_looks_for_it_or_is_refused() {
    let mut topic = TopicConfig::new("t", "p");
    topic.id = vec![IdSource::Header("Message-Id".into())];
    let given = SendRequest {
        headers: vec![("message-id".into(), "old".into())],
        ..request("{}")
    };
    assert_eq!(
        with_id(given, &topic, "new").expect("id").headers,
        [("Message-Id".into(), "new".into())]
    );
    topic.id = vec![IdSource::Key];
    assert_eq!(
        with_id(request("{}"), &topic, "k").expect("id").key.as_deref(),
        Some("k")
    );
    topic.id = vec![IdSource::Json("/id".into())];
    assert!(with_id(request("{}"), &topic, "x").is_err());
}

#[test]
fn a_key_decides_before_an_id_and_joined_ids_do_not_run_together() {
    let mut topic = TopicConfig::new("t", "p");
    topic.id = vec![IdSource::Json("/a".into()), IdSource::Json("/b".into())];
    let placer = Placer::new(&topic, 1_000_000).expect("pointers");
    let place = |value: &str| {
        placer
            .place(Incoming {
                value: value.as_bytes(),
                ..Incoming::default()
            })
            .expect("json")
    };
    assert_ne!(
        place(r#"{"a":"x","b":"yz"}"#).partition,
        place(r#"{"a":"xy","b":"z"}"#).partition
    );
    assert!(!place(r#"{"a":1}"#).has_id && place(r#"{"a":1}"#).partition.is_none());
    topic.key = KeySource::Json("/k".into());
    let placer = Placer::new(&topic, 1_000_000).expect("pointers");
    let place = |value: &str| {
        placer
            .place(Incoming {
                value: value.as_bytes(),
                ..Incoming::default()
            })
            .expect("json")
    };
    let (one, other) = (
        place(r#"{"a":1,"b":2,"k":"u"}"#),
        place(r#"{"a":3,"b":4,"k":"u"}"#),
    );
    assert!(one.has_id && one.partition == other.partition);
    // The recipe stands for ever: messages in a topic are found by it.
    assert_eq!(one.partition, Some(RECIPE));
}

/// Partition of key `u` among a million.
const RECIPE: u32 = 408_723;

/// What is sent is read as what is imported: a field that is there twice is refused, text without fields is not.
#[test]
fn a_record_with_a_field_twice_is_not_sent() {
    let mut topic = TopicConfig::new("t", "p");
    topic.id = vec![IdSource::Header("x-id".into())];
    topic.key = KeySource::Json("/k".into());
    topic.reads = vec!["/to".into()];
    let spec = super::topic_spec(&Config::default(), &topic);
    let log = FakeLog::default();
    let with = |value: &str, ids: &[&str]| SendRequest {
        headers: ids
            .iter()
            .map(|id| ("X-Id".to_owned(), (*id).to_owned()))
            .collect(),
        ..request(value)
    };
    for (refused, told) in [
        (with(r#"{"k":1,"k":2}"#, &["1"]), "the field `/k` is there twice"),
        (
            with(r#"{"to":1,"to":1}"#, &["1"]),
            "the field `/to` is there twice",
        ),
        (with("{}", &["1", "2"]), "the header `x-id` is there twice"),
    ] {
        let error = send(&log, &topic, &spec, &[], &refused).unwrap_err();
        let cause = std::error::Error::source(&error).expect("a cause").to_string();
        assert_eq!(
            (error.to_string(), cause),
            ("the record cannot be sent".to_owned(), told.to_owned())
        );
    }
    // Text has no fields; it goes by its header's ID, each time to the same partition.
    let places: std::collections::BTreeSet<_> = (0..8)
        .map(|_| {
            send(&log, &topic, &spec, &[], &with("text", &["1"]))
                .expect("sent")
                .partition
        })
        .collect();
    assert_eq!(places.len(), 1);
}

/// What was sent can be looked up: its ID is answered, and what becomes of it that was hardly meant.
#[test]
fn a_sent_record_is_answered_with_its_id_and_what_it_lacks() {
    let config = |mask: &[&str]| {
        let mut partner = crate::config::PartnerConfig::new("p", "http://127.0.0.1:1/");
        partner.mask = mask.iter().map(|name| (*name).to_owned()).collect();
        Config::for_test("data").with_partner(partner)
    };
    let mut topic = TopicConfig::new("t", "p");
    topic.id = vec![IdSource::Json("/a".into()), IdSource::Json("/b".into())];
    let spec = super::topic_spec(&config(&[]), &topic);
    let log = FakeLog::default();
    let sent = |topic: &TopicConfig, mask: &[&str], value: &str| {
        let maskers = super::send::maskers(&config(mask), topic);
        send(&log, topic, &spec, &maskers, &request(value)).expect("sent")
    };
    let reply = sent(&topic, &[], r#"{"a":"x","b":7}"#);
    assert_eq!((reply.id.as_deref(), reply.notes.len()), (Some("x|7"), 0));
    assert_eq!(
        sent(&topic, &["b"], r#"{"a":"x","b":7}"#).id,
        None,
        "lists hide it"
    );
    let broken = sent(&topic, &[], "{a: 1}");
    assert_eq!(broken.id, Some(format!("@{}", broken.offset)));
    assert!(
        broken.notes.len() == 1 && broken.notes[0].contains("a dead letter"),
        "{:?}",
        broken.notes
    );
    topic.id = vec![IdSource::Position];
    let plain = sent(&topic, &[], "anything");
    assert_eq!((plain.id, plain.notes.len()), (Some(plain.offset.to_string()), 0));
}
