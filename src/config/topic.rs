//! `[topics.NAME]`.

use super::kinds::{
    As, Count, Filled, List, MIB, Maybe, OverRecord, Pattern, Pointer, Short, Size, Text, Time, or_short,
};
use super::model::Config;
use regex::Regex;
use schemars::{JsonSchema, Schema, json_schema};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// `[topics.NAME]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TopicConfig {
    /// Name of the section; the topic's name unless `pattern` is set.
    #[serde(skip)]
    pub name: String,
    /// Short for `deliver` with one partner. `json:/POINTER`: the record names its partner; an unknown name makes it a
    /// dead letter.
    #[serde(skip_serializing, with = "As::<Maybe<PartnerRef>>")]
    #[schemars(extend("x-default" = "required, or deliver", "examples" = ["acme"]))]
    pub partner: Option<PartnerRef>,
    /// The partners that the topic feeds, each by a route with progress of its own. Only one of `partner` and `deliver` can stand.
    #[schemars(extend("examples" = [[{ "partner": "acme", "when": "value.country == 'GB'" }]]))]
    pub deliver: Vec<DeliverConfig>,
    /// The section is for all topics whose whole name matches. A section of exactly the topic's name goes before, then
    /// the first match in alphabetical order.
    #[serde(rename = "match", with = "As::<Maybe<Pattern>>")]
    #[schemars(extend("examples" = ["requests\\..*"]))]
    pub pattern: Option<String>,
    /// Partitions the topic is made with. Cannot shrink; more later changes which partition a key falls to.
    // 23 p mod L spreads partitions over lanes; more than this is a typing mistake, not a topic.
    #[serde(with = "As::<Count<1, 10_000>>")]
    pub partitions: u32,
    /// What makes a record the same message again: `header:NAME`, `json:/POINTER`, `key`, `hash` (of the value),
    /// `query:NAME` (of the URL that the value is), `position`; a list is joined.
    #[serde(with = "As::<List<IdSource, 1, true>>")]
    pub id: Vec<IdSource>,
    /// A record without ID: dead letter, or its position is its ID. An imported line without one has an ID of its own:
    /// the first 32 hex digits of the file's hash, a colon, and the line's number.
    pub id_missing: IdMissing,
    /// The unit of order: the record's key, or a field of its value.
    #[serde(with = "As::<KeySource>")]
    pub key: KeySource,
    /// A record without key: a key of its own, one key for all such, or dead letter.
    pub key_missing: KeyMissing,
    /// How long its records are kept.
    #[serde(with = "As::<Maybe<Time>>")]
    #[schemars(extend("x-default" = "log.retention", "examples" = ["7d"]))]
    pub retention: Option<Duration>,
    /// Bytes it may keep.
    #[serde(with = "As::<Maybe<Size<MIB>>>")]
    #[schemars(extend("x-default" = "log.retention_bytes", "examples" = ["10GiB"]))]
    pub retention_bytes: Option<u64>,
    /// Subpartition actors at once in one of its partitions.
    #[serde(with = "As::<Maybe<Count<1>>>")]
    #[schemars(extend("x-default" = "actors.busy_keys", "examples" = [1_000]))]
    pub busy_keys: Option<usize>,
    /// JSON pointers of the fields that conditions, routes, budgets and templates of its partners look at: each must
    /// be there once. Not a setting: found when the configuration is loaded.
    #[serde(skip)]
    pub reads: Vec<String>,
}

impl Default for TopicConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            partner: None,
            deliver: Vec::new(),
            pattern: None,
            partitions: 4,
            id: vec![IdSource::Position],
            id_missing: IdMissing::Dead,
            key: KeySource::Record,
            key_missing: KeyMissing::Unordered,
            retention: None,
            retention_bytes: None,
            busy_keys: None,
            reads: Vec::new(),
        }
    }
}

impl TopicConfig {
    /// A topic delivered to one partner, with every default: four partitions, ordered by the record's key, and
    /// every record a message of its own (ID = its position: two equal records are two messages, nothing is
    /// dropped for looking alike).
    pub fn new(name: impl Into<String>, partner: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            deliver: vec![DeliverConfig::to(partner)],
            ..Self::default()
        }
    }

    /// `partner` is short for `deliver` with one partner.
    pub(super) fn complete(&mut self) {
        if let Some(partner) = self.partner.take().filter(|_| self.deliver.is_empty()) {
            self.deliver = vec![DeliverConfig { partner, when: None }];
        }
    }
}

/// A pattern over whole topic names.
pub(super) fn whole_name(pattern: &str) -> Result<Regex, regex::Error> {
    Regex::new(&format!("^(?:{pattern})$"))
}

impl Config {
    /// The section that decides about a topic: the one of exactly its name, else the first pattern in alphabetical
    /// order of the sections. One topic has one section, so its ID and key mean one thing.
    pub fn section_of(&self, topic: &str) -> Option<&TopicConfig> {
        let named = self.topics.get(topic).filter(|t| t.pattern.is_none());
        named.or_else(|| {
            self.topics.values().find(|t| {
                t.pattern
                    .as_ref()
                    .is_some_and(|p| whole_name(p).is_ok_and(|regex| regex.is_match(topic)))
            })
        })
    }
}

/// One route of a topic section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
#[schemars(transform = or_name)]
pub struct DeliverConfig {
    /// A partner that the topic feeds, with progress of its own. An element may be just the name.
    #[serde(with = "As::<PartnerRef>")]
    pub partner: PartnerRef,
    /// Only records for which this holds; others are finished at once.
    #[serde(default, with = "As::<Maybe<OverRecord>>")]
    pub when: Option<String>,
}

impl DeliverConfig {
    /// Everything to one partner.
    pub fn to(partner: impl Into<String>) -> Self {
        Self {
            partner: PartnerRef::Named(partner.into()),
            when: None,
        }
    }
}

fn or_name(schema: &mut Schema) {
    or_short(schema, json_schema!({ "type": "string" }));
}

impl Short for DeliverConfig {
    const FORMS: &'static str = "a partner, as \"acme\" or { partner = \"acme\", when = \"…\" }";
    fn short(text: &str) -> Result<Self, String> {
        PartnerRef::parse(text).map(|partner| Self { partner, when: None })
    }
}

/// A partner by name, or by what a field of the record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartnerRef {
    /// A section of `[partners]`.
    Named(String),
    /// JSON pointer to the partner's name; an unknown name makes the record a dead letter.
    Field(String),
}

impl Text for PartnerRef {
    const TAKES: Option<&'static str> = Some("name or `json:/POINTER`");
    const EXAMPLE: &'static str = "acme";
    type Of = Self;
    fn parse(text: &str) -> Result<Self, String> {
        match text.starts_with("json:") {
            true => Pointer::parse(text).map(Self::Field),
            false => Filled::parse(text).map(Self::Named),
        }
    }
    fn text(value: &Self) -> String {
        match value {
            PartnerRef::Named(name) => name.clone(),
            PartnerRef::Field(pointer) => format!("json:{pointer}"),
        }
    }
}

/// Parts of a message ID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdSource {
    /// `header:NAME`
    Header(String),
    /// `json:/POINTER`
    Json(String),
    /// `key`
    Key,
    /// `hash`: of the value.
    Hash,
    /// `query:NAME`: a parameter of the URL that the value is.
    Query(String),
    /// `position`
    Position,
}

impl Text for IdSource {
    const TAKES: Option<&'static str> = Some("source");
    const EXAMPLE: &'static str = "json:/id";
    type Of = Self;
    fn parse(text: &str) -> Result<Self, String> {
        let form = "expected header:NAME, json:/POINTER, key, hash, query:NAME or position";
        match text.split_once(':') {
            None => match text {
                "key" => Ok(Self::Key),
                "hash" => Ok(Self::Hash),
                "position" => Ok(Self::Position),
                _ => Err(form.into()),
            },
            Some(("header", name)) if !name.is_empty() => Ok(Self::Header(name.to_owned())),
            Some(("query", name)) if !name.is_empty() => Ok(Self::Query(name.to_owned())),
            Some(("json", _)) => Pointer::parse(text).map(Self::Json),
            Some(_) => Err(form.into()),
        }
    }
    fn text(value: &Self) -> String {
        match value {
            IdSource::Header(name) => format!("header:{name}"),
            IdSource::Json(pointer) => format!("json:{pointer}"),
            IdSource::Key => "key".into(),
            IdSource::Hash => "hash".into(),
            IdSource::Query(name) => format!("query:{name}"),
            IdSource::Position => "position".into(),
        }
    }
}

/// The unit of order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// The record's key.
    Record,
    /// `json:/POINTER`
    Json(String),
}

impl Text for KeySource {
    const TAKES: Option<&'static str> = Some("`record` or `json:/POINTER`");
    const EXAMPLE: &'static str = "record";
    type Of = Self;
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "record" => Ok(Self::Record),
            json if json.starts_with("json:") => Pointer::parse(json).map(Self::Json),
            _ => Err("expected \"record\" or \"json:/POINTER\"".into()),
        }
    }
    fn text(value: &Self) -> String {
        match value {
            KeySource::Record => "record".into(),
            KeySource::Json(pointer) => format!("json:{pointer}"),
        }
    }
}

/// What to do with a record without key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeyMissing {
    /// Each is a key of its own.
    Unordered,
    /// All share one key.
    Together,
    /// Dead letter.
    Dead,
}

/// What to do with a record without ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum IdMissing {
    /// Dead letter.
    Dead,
    /// Its position is its ID.
    Position,
}
