//! Records that lack the message ID or the key that their topic looks for, and what becomes of them: said where records
//! come in, and by `check`. Pure. Only names of fields come out, never values (I9).

use super::hints::Fields;
use super::place::Place;
use crate::config::finding::nearest;
use crate::config::{IdMissing, IdSource, KeyMissing, KeySource, TopicConfig};
use crate::telemetry::text::counted;

/// Where a topic's message IDs come from, as its section says it.
pub fn id_sources(topic: &TopicConfig) -> String {
    let one = |source: &IdSource| match source {
        IdSource::Json(pointer) => format!("json:{pointer}"),
        IdSource::Header(name) => format!("header:{name}"),
        IdSource::Query(name) => format!("query:{name}"),
        IdSource::Key => "key".to_owned(),
        IdSource::Hash => "hash".to_owned(),
        IdSource::Position => "position".to_owned(),
    };
    topic.id.iter().map(one).collect::<Vec<_>>().join(" and ")
}

/// Where records are to have their key: the field that the section names, or what was asked for where records come in.
pub fn key_source(topic: &TopicConfig, asked: Option<&str>) -> Option<String> {
    match (&topic.key, asked) {
        (KeySource::Json(pointer), _) => Some(format!("json:{pointer}")),
        (KeySource::Record, asked) => asked.map(str::to_owned),
    }
}

/// What becomes of records without key.
fn without_key(topic: &TopicConfig) -> &'static str {
    match topic.key_missing {
        KeyMissing::Unordered => "nothing orders them",
        KeyMissing::Together => "they share one key",
        KeyMissing::Dead => "they become dead letters",
    }
}

/// What becomes of records without ID that come in by themselves.
fn without_id(topic: &TopicConfig) -> &'static str {
    match topic.id_missing {
        IdMissing::Dead => "dead letters (no_id)",
        IdMissing::Position => "messages by their position",
    }
}

/// A field that the records have and that looks like the one that a `json:` source names.
fn near(source: &str, fields: &Fields) -> String {
    let name = source.rsplit('/').next().unwrap_or(source);
    let near = nearest(name, fields.names()).filter(|near| *near != name);
    near.map_or_else(String::new, |near| {
        format!("; they have a field `{near}`: {}", super::hints::pointer(near))
    })
}

/// What to say where `lacking` of so many records have no key. None: nothing stands out.
pub fn keys(
    topic: &TopicConfig,
    asked: Option<&str>,
    lacking: u64,
    records: u64,
    fields: &Fields,
) -> Option<String> {
    let source = key_source(topic, asked)?;
    let (name, what) = (&topic.name, without_key(topic));
    match lacking {
        0 => None,
        all if all == records => Some(format!(
            "none of {} has a key where topic {name} looks for it ({source}): {what}{}",
            counted(records, "record"),
            near(&source, fields)
        )),
        some => Some(format!(
            "{some} of {} have no key where topic {name} looks for it ({source}): {what}",
            counted(records, "record")
        )),
    }
}

/// The same for IDs, of records that are in the topic.
pub fn ids(topic: &TopicConfig, lacking: u64, records: u64, fields: &Fields) -> Option<String> {
    let (name, from, what) = (&topic.name, id_sources(topic), without_id(topic));
    let near = match topic.id.as_slice() {
        [IdSource::Json(pointer)] => near(pointer, fields),
        _ => String::new(),
    };
    (lacking > 0 && lacking == records).then(|| {
        format!(
            "none of the youngest {} has a message ID where topic {name} looks for it ({from}): those that no import brought become {what}{near}",
            counted(records, "record")
        )
    })
}

/// What becomes of one record that its sender may not have meant.
pub fn of_record(topic: &TopicConfig, place: &Place, by_position: bool) -> Vec<String> {
    let mut notes = Vec::new();
    let why = match &place.not_json {
        Some(error) => format!("the value is {error}"),
        None => "it is not there, or blank".to_owned(),
    };
    if !place.has_id && !by_position {
        let becomes = match topic.id_missing {
            IdMissing::Dead => "a dead letter (no_id)",
            IdMissing::Position => "a message by its position",
        };
        notes.push(format!(
            "the record has no message ID where topic {} looks for it ({}): {why}. It becomes {becomes}",
            topic.name,
            id_sources(topic)
        ));
    }
    if let (false, KeySource::Json(pointer)) = (place.has_key, &topic.key) {
        let becomes = match topic.key_missing {
            KeyMissing::Unordered => "Nothing orders it",
            KeyMissing::Together => "It shares the key of all without one",
            KeyMissing::Dead => "It becomes a dead letter (no_key)",
        };
        notes.push(format!(
            "the record has no key where topic {} looks for it (json:{pointer}): {why}. {becomes}",
            topic.name
        ));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intake::place::{Incoming, Placer};

    fn topic() -> TopicConfig {
        TopicConfig {
            id: vec![IdSource::Json("/id".into())],
            key: KeySource::Json("/custmer".into()),
            ..TopicConfig::new("t", "p")
        }
    }

    #[test]
    fn what_a_record_lacks_is_told_with_what_becomes_of_it() {
        let told = |value: &str, change: fn(&mut TopicConfig)| {
            let mut topic = topic();
            change(&mut topic);
            let placer = Placer::new(&topic, 4).unwrap();
            let incoming = Incoming {
                value: value.as_bytes(),
                ..Incoming::default()
            };
            of_record(
                &topic,
                &placer.place(incoming).unwrap(),
                placer.goes_by_position(),
            )
        };
        assert_eq!(told(r#"{"id":1,"custmer":"c"}"#, |_| ()), Vec::<String>::new());
        let broken = told("{id: 1}", |_| ());
        assert!(
            broken.len() == 2
                && broken[0].contains("json:/id")
                && broken[0].contains("not JSON")
                && broken[0].contains("a dead letter (no_id)")
                && broken[1].contains("Nothing orders it"),
            "{broken:?}"
        );
        let lenient = told(r#"{"custmer":" "}"#, |t| {
            (t.id_missing, t.key_missing) = (IdMissing::Position, KeyMissing::Dead);
        });
        assert!(
            lenient[0].contains("by its position") && lenient[1].contains("(no_key)"),
            "{lenient:?}"
        );
        let plain = told("any text", |t| {
            (t.id, t.key) = (vec![IdSource::Position], KeySource::Record)
        });
        assert_eq!(plain, Vec::<String>::new());
    }

    #[test]
    fn a_misspelt_key_is_told_with_the_field_that_is_there() {
        let mut fields = Fields::default();
        fields.note(br#"{"id":1,"customer":"kim"}"#);
        let told = keys(&topic(), None, 3, 3, &fields).unwrap();
        assert!(
            told.starts_with("none of 3 records has a key")
                && told.contains("a field `customer`: json:/customer")
                && !told.contains("kim"),
            "{told}"
        );
        let share = keys(&topic(), None, 1, 200, &fields).unwrap();
        assert!(share.starts_with("1 of 200 records have no key"), "{share}");
        assert_eq!(keys(&topic(), None, 0, 3, &fields), None);
        let by_record = TopicConfig::new("t", "p");
        assert_eq!(
            keys(&by_record, None, 3, 3, &fields),
            None,
            "no key was asked for"
        );
        assert!(keys(&by_record, Some("json:/x"), 3, 3, &fields).is_some());
    }
}
