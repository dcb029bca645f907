//! What looks like a message ID or a key in records whose topic does not say. [`Fields`] is pure: it is fed with records
//! and says in the end which field each of them has, and whether its values are all different.
//!
//! Only names of fields come out, never values (I9).

use super::lacks;
use super::place::{Incoming, Placer};
use crate::config::{Config, IdSource, KeySource, TopicConfig};
use crate::log::Log;
use serde_json::Value;
use std::collections::{HashMap, HashSet};

/// Records that are looked at: more would not change the answer.
const RECORDS: usize = 1_000;
/// One record in so many may lack the field that is proposed as message ID.
const SPARE: usize = 20;
/// Fields that are followed.
const FIELDS: usize = 200;
/// Names of fields that hold a message ID, best first, as [`plain`] writes them.
const IDS: [&str; 22] = [
    "messageid",
    "eventid",
    "requestid",
    "idempotencykey",
    "id",
    "uuid",
    "guid",
    "msgid",
    "recordid",
    "transactionid",
    "txid",
    "txnid",
    "orderid",
    "conversionid",
    "clickid",
    "deliveryid",
    "notificationid",
    "callid",
    "leadid",
    "paymentid",
    "invoiceid",
    "externalid",
];
/// Names of fields that hold what orders records.
const KEYS: [&str; 17] = [
    "userid",
    "user",
    "customerid",
    "customer",
    "accountid",
    "account",
    "profileid",
    "deviceid",
    "contactid",
    "subscriberid",
    "memberid",
    "personid",
    "clientid",
    "sessionid",
    "email",
    "entityid",
    "tenantid",
];

/// A name without what spellings differ in: `Message_ID`, `messageId` and `message-id` are one.
fn plain(name: &str) -> String {
    name.chars()
        .filter(|c| c.is_alphanumeric())
        .flat_map(char::to_lowercase)
        .collect()
}

/// What is known of a field.
#[derive(Debug, Default)]
struct Field {
    /// Records that have it, neither null nor blank nor an object or array.
    records: usize,
    /// Hashes of its values.
    values: HashSet<u64>,
}

/// The top-level fields of some records.
#[derive(Debug, Default)]
pub struct Fields {
    records: usize,
    /// Records that are no JSON objects.
    others: usize,
    fields: HashMap<String, Field>,
    order: Vec<String>,
}

impl Fields {
    /// Whether further records would be looked at.
    pub fn wants_more(&self) -> bool {
        self.records < RECORDS
    }

    /// Takes a record's value in.
    pub fn note(&mut self, value: &[u8]) {
        if !self.wants_more() {
            return;
        }
        self.records += 1;
        let Ok(Value::Object(object)) = serde_json::from_slice::<Value>(value) else {
            self.others += 1;
            return;
        };
        for (name, value) in object {
            let text = match &value {
                Value::String(text) if !text.trim().is_empty() => text.clone(),
                Value::Number(number) => number.to_string(),
                _ => continue,
            };
            if !self.fields.contains_key(&name) {
                if self.order.len() >= FIELDS {
                    continue;
                }
                self.order.push(name.clone());
            }
            let field = self.fields.entry(name).or_default();
            field.records += 1;
            let mut head = [0; 8];
            head.copy_from_slice(&blake3::hash(text.as_bytes()).as_bytes()[..8]);
            field.values.insert(u64::from_le_bytes(head));
        }
    }

    /// The names of the fields, in the order in which they turned up.
    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.order.iter().map(String::as_str)
    }

    /// How many records were looked at.
    pub fn records(&self) -> usize {
        self.records
    }

    /// Fields by a list of names, the best name first.
    fn named<'a>(&'a self, names: &'a [&str], fits: impl Fn(&Field) -> bool + 'a) -> Option<&'a str> {
        let rank = |field: &str| {
            let plain = plain(field);
            names.iter().position(|name| *name == plain)
        };
        let found = self.order.iter().filter_map(|name| Some((rank(name)?, name)));
        found
            .filter(|(_, name)| fits(&self.fields[*name]))
            .min_by_key(|(rank, _)| *rank)
            .map(|(_, name)| name.as_str())
    }

    /// The field that is a message ID by its name: nearly each record has it, and no two have the same value. A record
    /// without it is one of those that every export has; an import gives it an ID of its own.
    pub fn id(&self) -> Option<&str> {
        let least = self.nearly_all();
        self.named(&IDS, move |field| {
            field.records >= least && field.values.len() == field.records
        })
    }

    /// Records that have this field.
    pub fn with(&self, field: &str) -> usize {
        self.fields.get(field).map_or(0, |field| field.records)
    }

    fn nearly_all(&self) -> usize {
        (self.records - self.records / SPARE).max(1)
    }

    /// A field that is a message ID by its name and that nearly each record has, though some share it: how many values.
    pub fn repeated_id(&self) -> Option<(&str, usize)> {
        let least = self.nearly_all();
        let name = self.named(&IDS, move |field| {
            field.records >= least && field.values.len() < field.records
        })?;
        Some((name, self.fields[name].values.len()))
    }

    /// The field that orders records by its name: each record has it.
    pub fn key(&self) -> Option<&str> {
        let all = self.records;
        self.named(&KEYS, move |field| all > 0 && field.records == all)
    }
}

/// `json:/POINTER` of a top-level field.
pub fn pointer(field: &str) -> String {
    format!("json:/{}", field.replace('~', "~0").replace('/', "~1"))
}

/// What to say of a topic whose section names no ID, to somebody whose records have one. None: nothing stands out.
pub fn unused_id(topic: &str, fields: &Fields) -> Option<String> {
    let id = fields.id()?;
    let who = match (fields.with(id), fields.records()) {
        (1, 2..) => format!("1 of {} records has", fields.records()),
        (some, all) if some < all => format!("{some} of {all} records have"),
        _ => "each record has".to_owned(),
    };
    Some(format!(
        "{who} a field `{id}` of its own, but topic {topic} does not use it as message ID: the same record from another \
         file or sender would be sent again, and no message can be looked up by it. To use it: id = \"{}\" in [topics.{topic}]",
        pointer(id)
    ))
}

/// Records of a topic that are looked at, and bytes at most.
const SAMPLE: (usize, usize) = (200, 256 << 10);
/// Topics that are looked at.
const TOPICS: usize = 200;

/// Topics whose youngest records have an obvious ID that their section does not use, or lack the ID or key that it looks
/// for. Reads some records of each topic; what cannot be read has no hint.
pub fn of_topics(log: &dyn Log, config: &Config) -> Vec<String> {
    let topics = log
        .topics()
        .into_iter()
        .filter(|topic| !topic.name.starts_with("__"));
    let wanted = topics.filter_map(|topic| Some((super::section_of(config, &topic.name)?, topic)));
    let wanted = wanted.filter(|(section, _)| goes_by_position(section) || looks_inside(section));
    let mut hints = Vec::new();
    for (section, topic) in wanted.take(TOPICS) {
        let mut fields = Fields::default();
        let mut records = Vec::new();
        let Ok(placer) = Placer::new(&section, topic.spec.partitions) else {
            continue;
        };
        let (mut all, mut no_id, mut no_key) = (0, 0, 0);
        for partition in &topic.partitions {
            let Ok(bounds) = log.bounds(*partition) else {
                continue;
            };
            let mut from = bounds.next.saturating_sub(SAMPLE.0 as u64).max(bounds.first);
            let (mut taken, mut bytes) = (0, 0);
            while from < bounds.next && taken < SAMPLE.0 && bytes < SAMPLE.1 {
                match log.read(*partition, from, SAMPLE.1, &mut records) {
                    Ok(next) if next > from => from = next,
                    _ => break,
                }
                // A read gives whole batches, which may be more than was asked for.
                for record in records.drain(..).take(SAMPLE.0 - taken) {
                    (taken, bytes) = (taken + 1, bytes + record.value.len());
                    fields.note(&record.value);
                    let headers: Vec<(String, String)> = record
                        .headers
                        .iter()
                        .map(|(name, value)| (lossy(name), lossy(value)))
                        .collect();
                    let placed = placer.place(Incoming {
                        key: record.key.as_deref(),
                        value: &record.value,
                        headers: &headers,
                    });
                    // One that has something twice is a dead letter with a reason of its own.
                    if let Ok(place) = placed {
                        all += 1;
                        no_id += u64::from(!place.has_id);
                        no_key += u64::from(!place.has_key);
                    }
                }
            }
        }
        match goes_by_position(&section) {
            true => hints.extend(unused_id(&topic.name, &fields)),
            false => hints.extend(lacks::ids(&section, no_id, all, &fields)),
        }
        // Some records without a key may be meant so, and an import has counted them.
        if no_key == all {
            hints.extend(lacks::keys(&section, None, no_key, all, &fields));
        }
    }
    hints
}

fn goes_by_position(section: &TopicConfig) -> bool {
    section.id.iter().all(|source| *source == IdSource::Position)
}

/// Whether records may lack what their topic looks for.
fn looks_inside(section: &TopicConfig) -> bool {
    let by_content = |source: &IdSource| !matches!(source, IdSource::Position | IdSource::Hash);
    section.id.iter().any(by_content) || matches!(section.key, KeySource::Json(_))
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(lines: &[&str]) -> Fields {
        let mut fields = Fields::default();
        lines.iter().for_each(|line| fields.note(line.as_bytes()));
        fields
    }

    #[test]
    fn an_id_is_a_known_name_that_every_record_has_with_a_value_of_its_own() {
        let told = |lines: &[&str]| fields(lines).id().map(str::to_owned);
        assert_eq!(
            told(&[r#"{"id":1,"n":5}"#, r#"{"id":2,"n":5}"#]).as_deref(),
            Some("id")
        );
        assert_eq!(
            told(&[r#"{"id":1,"eventId":"a"}"#, r#"{"eventId":"b","id":2}"#]).as_deref(),
            Some("eventId")
        );
        for none in [
            &[r#"{"id":1}"#, r#"{"id":1}"#][..],
            &[r#"{"id":1}"#, r#"{"n":1}"#],
            &[r#"{"id":null}"#],
            &[r#"{"id":{}}"#],
            &["[1]"],
            &["http://x/"],
            &[],
        ] {
            assert_eq!(told(none), None, "{none:?}");
        }
        let twice = fields(&[r#"{"id":1,"user_id":7}"#, r#"{"id":1,"user_id":8}"#]);
        assert_eq!(
            (twice.repeated_id(), twice.key()),
            (Some(("id", 1)), Some("user_id"))
        );
        assert_eq!(pointer("a/b~"), "json:/a~1b~0");
        let rows: Vec<String> = (0..40).map(|n| format!(r#"{{"id":"{n}"}}"#)).collect();
        let mut lines: Vec<&str> = rows.iter().map(String::as_str).collect();
        lines[7] = r#"{"id":"","n":1}"#;
        lines[8] = r#"{"n":1}"#;
        assert_eq!(told(&lines).as_deref(), Some("id"), "two of forty lack it");
        let hint = unused_id("t", &fields(&lines)).expect("a hint");
        assert!(hint.starts_with("38 of 40 records have"), "{hint}");
        lines[9] = r#"{"n":1}"#;
        assert_eq!(told(&lines), None, "three of forty lack it");
        let text = unused_id("t", &fields(&[r#"{"uuid":"secret-value"}"#])).expect("a hint");
        assert!(
            text.contains("id = \"json:/uuid\"") && !text.contains("secret-value"),
            "{text}"
        );
    }

    #[test]
    fn what_records_of_a_topic_lack_is_found_where_they_stand() {
        use crate::intake::fake_log::FakeLog;
        use crate::intake::send::send;
        let topic = TopicConfig {
            id: vec![IdSource::Json("/nr".into())],
            key: KeySource::Json("/custmer".into()),
            ..TopicConfig::new("t", "p")
        };
        let config = Config::for_test("data").with_topic(topic.clone());
        let log = FakeLog::default();
        let record = |value: &str| crate::api::SendRequest {
            topic: "t".into(),
            value: value.into(),
            ..Default::default()
        };
        let spec = crate::intake::topic_spec(&config, &topic);
        for n in 0..3 {
            let value = format!(r#"{{"n":{n},"customer":"kim"}}"#);
            send(&log, &topic, &spec, &[], &record(&value)).expect("sent");
        }
        let told = of_topics(&log, &config);
        assert!(
            told.len() == 2
                && told[0].starts_with("none of the youngest 3 records has a message ID")
                && told[1].contains("a field `customer`: json:/customer")
                && !told.concat().contains("kim"),
            "{told:?}"
        );
        send(&log, &topic, &spec, &[], &record(r#"{"nr":1,"custmer":"lee"}"#)).expect("sent");
        assert_eq!(of_topics(&log, &config), [""; 0], "some without may be meant so");
    }
}
