//! Reads the typed configuration out of the tree with serde, and gathers every mistake instead of stopping at the
//! first.
//!
//! serde ends at the first error. So a mistake is noted where it is found, with file and line, its node is marked as
//! wrong, and the tree is read again without it, until nothing is wrong any more: what is wrong stands at its default.
//! A key that must be there and is not is read as a [`Hole`] from then on.
//!
//! A hole can be read as anything. [`fields`] reads the whole configuration out of one, which tells which keys the
//! types take, in the order in which they are written there: the manual, the sample and the effective configuration
//! follow it.

use super::finding::{Finding, Severity, nearest};
use super::manual::manual;
use super::mask;
use super::model::Config;
use super::tree::{Data, Node, join};
use serde::de::value::{MapDeserializer, SeqDeserializer, StrDeserializer};
use serde::de::{
    self, Deserialize, DeserializeSeed, Deserializer, Expected, IntoDeserializer, Unexpected, Visitor,
};
use serde::forward_to_deserialize_any;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;

/// Name of the newtypes that take a text, a list or a table: a table (and a hole) comes as the newtype, all else as it
/// is. Only a type's own reading knows what to make of the other forms.
pub(super) const FORMS: &str = "sluicegate forms";

/// Keys and words that once were, or are kept for a later version, by [`Node::pattern`]: what is said of them instead
/// of `unknown key`. A hint stands on a line of its own.
const NOTES: &[(&str, Option<&str>, &str)] = &[
    (
        "partners.NAME.client",
        None,
        "there is one client for everything now: HTTP/1.1, HTTP/2, proxies and redirects\ntake it out",
    ),
    ("partners.NAME.sink", Some("postgres"), HTTP_ONLY),
    ("partners.NAME.sink", Some("object_store"), HTTP_ONLY),
    ("log.kind", Some("kafka"), EMBEDDED_ONLY),
    ("log.kafka", None, EMBEDDED_ONLY),
    ("log.prefix", None, EMBEDDED_ONLY),
    ("log.lanes", None, EMBEDDED_ONLY),
];
/// Keys that do nothing any more. Files that have them still load.
const IDLE: [(&str, &str); 1] = [(
    "actors.mailbox",
    "has no effect: mailboxes of actors have a fixed size, and what they hold is bounded by other keys\ntake it out",
)];
const HTTP_ONLY: &str = "this version has the http sink only, expected \"http\"";
const EMBEDDED_ONLY: &str =
    "this version has the embedded log only, expected kind = \"embedded\"\ntake the key out";
const NOT_YET: &str =
    "this section is not in this version\ntake it out; the name is kept for a later version";
/// Sections kept for later versions.
pub(super) const RESERVED: [&str; 6] = ["ingest", "import", "jobs", "reports", "alerts", "telemetry"];

/// Readings of one tree: more mistakes than this in one section are not told at once.
const ROUNDS: usize = 1_000;

/// Reads a tree. Keys that are wrong keep their defaults, and have their findings in `findings`.
pub(super) fn config(tree: &Node, findings: &mut Vec<Finding>) -> Config {
    let notes = RefCell::new(std::mem::take(findings));
    let at = At {
        node: tree,
        notes: &notes,
    };
    let error = 'read: {
        for _ in 0..ROUNDS {
            match Config::deserialize(at) {
                Ok(config) => {
                    *findings = notes.into_inner();
                    return config;
                }
                // One more node is marked.
                Err(Error::Noted) => {}
                Err(other) => break 'read other,
            }
        }
        Error::Wrong("more mistakes than these\nmend these first".to_owned())
    };
    note(&notes, tree, error);
    *findings = notes.into_inner();
    Config::default()
}

/// The keys of each table that the types know, by [`Node::pattern`] of the table, in the order of the types.
pub(super) fn fields() -> BTreeMap<String, &'static [&'static str]> {
    let fields = RefCell::new(BTreeMap::new());
    let hole = Hole {
        pattern: String::new(),
        fields: Some(&fields),
    };
    // A hole can be read as anything; a test sees to it that this holds of every type here.
    let _ = Config::deserialize(hole);
    fields.into_inner()
}

/// The whole configuration out of a hole.
#[cfg(test)]
pub(super) fn whole_from_a_hole() -> Result<Config, Error> {
    Config::deserialize(Hole {
        pattern: String::new(),
        fields: None,
    })
}

/// Why a value could not be read.
#[derive(Debug)]
pub(super) enum Error {
    /// Its finding is written down.
    Noted,
    /// What is wrong; a hint stands on a second line.
    Wrong(String),
    /// A key that nobody knows, and those that are known.
    Unknown(&'static [&'static str]),
    /// A key that must be there.
    Missing(&'static str),
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Noted => f.write_str("told already"),
            Error::Wrong(message) => f.write_str(message),
            Error::Unknown(_) => f.write_str("unknown key"),
            Error::Missing(key) => write!(f, "{key} is missing and has no default"),
        }
    }
}

/// The values that serde found are not shown: they may be secrets.
impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Error::Wrong(message.to_string())
    }

    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let expected = expected.to_string();
        Error::Wrong(match expected.as_str() {
            "a boolean" => "expected true or false, without quotes".to_owned(),
            "a string" => "expected a text in quotes".to_owned(),
            "a sequence" => "expected a list".to_owned(),
            other if other == "a map" || other.starts_with("struct ") => "expected a table".to_owned(),
            other => format!("expected {other}"),
        })
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn unknown_variant(found: &str, words: &'static [&'static str]) -> Self {
        let near = nearest(found, words.iter().copied()).map(|near| format!("; did you mean `{near}`?"));
        Error::Wrong(match words {
            [only] => format!("expected \"{only}\""),
            _ => format!("expected one of {}{}", words.join(", "), near.unwrap_or_default()),
        })
    }

    fn unknown_field(_: &str, known: &'static [&'static str]) -> Self {
        Error::Unknown(known)
    }

    fn missing_field(key: &'static str) -> Self {
        Error::Missing(key)
    }
}

type Notes = RefCell<Vec<Finding>>;

/// Notes an error of a node, unless that is done already, and takes the node out of what is read next.
fn note(notes: &Notes, node: &Node, error: Error) -> Error {
    let mut finding = Finding::at(Severity::Error, &node.path, Some(&node.origin));
    let special = |word: Option<&str>| {
        let mut all = NOTES.iter();
        let of_it = all.find(|(pattern, of, _)| *pattern == node.pattern && *of == word);
        of_it.map(|(.., text)| (*text).to_owned())
    };
    let text = match error {
        Error::Noted => return Error::Noted,
        Error::Missing(key) => {
            node.missing.borrow_mut().push(key);
            // A wrong value has its finding already.
            if node.has(key) {
                return Error::Noted;
            }
            finding.key = join(&node.path, key);
            "is missing and has no default".to_owned()
        }
        // The value is not shown: under a misspelt key nobody knows whether it is a secret.
        Error::Unknown(known) => {
            node.wrong.set(true);
            let idle = IDLE.iter().find(|(pattern, _)| *pattern == node.pattern);
            if let Some((_, text)) = idle {
                finding.severity = Severity::Warning;
                notes.borrow_mut().push(finding.says(text));
                return Error::Noted;
            }
            let reserved = RESERVED
                .contains(&node.pattern.as_str())
                .then(|| NOT_YET.to_owned());
            let unknown = || match nearest(&node.name, known.iter().copied()) {
                Some(near) => format!("unknown key\ndid you mean `{near}`?"),
                None => format!("unknown key\nknown here: {}", known.join(", ")),
            };
            reserved.or_else(|| special(None)).unwrap_or_else(unknown)
        }
        Error::Wrong(mut text) => {
            node.wrong.set(true);
            // Nor is a table, or a list of them: it may hold anything.
            let is_table = |node: &Node| matches!(node.data, Data::Table(_));
            let in_list = matches!(&node.data, Data::List(items) if items.iter().any(is_table));
            if !is_table(node) && !in_list {
                finding.value = Some(mask::found(&node.path, &node.as_written()));
            }
            if let Some(key) = manual().find(&node.pattern).filter(|_| text == "expected a list") {
                text.push_str(&format!(", as {}", manual().toml(&key.path, &key.example)));
            }
            match &node.data {
                Data::Text(word) => special(Some(word)).unwrap_or(text),
                _ => text,
            }
        }
    };
    notes.borrow_mut().push(finding.says(&text));
    Error::Noted
}

/// A value of the tree.
#[derive(Clone, Copy)]
struct At<'t> {
    node: &'t Node,
    notes: &'t Notes,
}

impl<'de> Deserializer<'de> for At<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.data {
            Data::Text(text) => visitor.visit_str(text),
            Data::Int(n) => visitor.visit_i64(*n),
            // No key takes a fraction; one that is not finite would be read as a hole.
            Data::Float(x) => visitor.visit_f64(if x.is_finite() { *x } else { f64::MAX }),
            Data::Flag(flag) => visitor.visit_bool(*flag),
            Data::List(items) => visitor.visit_seq(Items {
                items: items.iter(),
                notes: self.notes,
            }),
            Data::Table(map) => visitor.visit_map(Entries {
                of: self,
                entries: map.iter(),
                missing: self.node.missing.borrow().clone(),
                value: None,
            }),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.node.data {
            Data::Table(_) => visitor.visit_newtype_struct(self),
            _ if name != FORMS => visitor.visit_newtype_struct(self),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.node.data {
            Data::Table(_) => self.deserialize_any(visitor),
            _ => Err(de::Error::invalid_type(Unexpected::Other(""), &visitor)),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        words: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.node.data {
            Data::Text(word) => visitor.visit_enum(word.as_str().into_deserializer()),
            _ => Err(de::Error::unknown_variant("", words)),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

struct Items<'t> {
    items: std::slice::Iter<'t, Node>,
    notes: &'t Notes,
}

impl<'de> de::SeqAccess<'de> for Items<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let notes = self.notes;
        let Some(node) = self.items.find(|node| !node.wrong.get()) else {
            return Ok(None);
        };
        seed.deserialize(At { node, notes })
            .map(Some)
            .map_err(|e| note(notes, node, e))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

struct Entries<'t> {
    of: At<'t>,
    entries: std::collections::btree_map::Iter<'t, String, Node>,
    missing: Vec<&'static str>,
    value: Option<&'t Node>,
}

impl<'de> de::MapAccess<'de> for Entries<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let key = |name| seed.deserialize(StrDeserializer::new(name)).map(Some);
        if let Some((name, node)) = self.entries.find(|(_, node)| !node.wrong.get()) {
            self.value = Some(node);
            return key(name).map_err(|e| note(self.of.notes, node, e));
        }
        self.value = None;
        match self.missing.pop() {
            Some(name) => key(name),
            None => Ok(None),
        }
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Error> {
        let notes = self.of.notes;
        match self.value {
            Some(node) => seed
                .deserialize(At { node, notes })
                .map_err(|e| note(notes, node, e)),
            None => seed.deserialize(Hole {
                pattern: String::new(),
                fields: None,
            }),
        }
    }
}

/// Where a value should be: it reads as an empty or first value of whatever type is asked for, with all its keys.
struct Hole<'f> {
    pattern: String,
    fields: Option<&'f RefCell<BTreeMap<String, &'static [&'static str]>>>,
}

impl Hole<'_> {
    fn at(&self, pattern: String) -> Self {
        Self {
            pattern,
            fields: self.fields,
        }
    }

    fn table<'de, V: Visitor<'de>>(self, keys: &[&'static str], visitor: V) -> Result<V::Value, Error> {
        let entries = keys.iter().map(|key| (*key, self.at(join(&self.pattern, key))));
        visitor.visit_map(MapDeserializer::new(entries))
    }
}

impl<'de> IntoDeserializer<'de, Error> for Hole<'_> {
    type Deserializer = Self;
    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Hole<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_bool(false)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let element = self.at(format!("{}[]", self.pattern));
        visitor.visit_seq(SeqDeserializer::new(std::iter::once(element)))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.table(&["NAME"], visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        keys: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        if let Some(fields) = self.fields {
            fields.borrow_mut().insert(self.pattern.clone(), keys);
        }
        self.table(keys, visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        words: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_enum(words.first().copied().unwrap_or_default().into_deserializer())
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct tuple
        tuple_struct identifier ignored_any
    }
}
