//! What a condition makes of a scope.

use crate::core::record::Record;
use regex::Regex;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value as Json;
use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;

/// The things a condition can start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    /// Status code of an answer.
    Status,
    /// Key of a record.
    Key,
    /// Name of the topic.
    Topic,
    /// Number of the partition.
    Partition,
    /// Offset of a record.
    Offset,
}

/// Where a condition gets its values.
pub trait Scope {
    /// A root that is no header and no document; `Missing` where the scope has none.
    fn root(&self, root: Root) -> Val<'_>;
    /// The first header of this name, letter case aside.
    fn header(&self, name: &str) -> Option<&[u8]>;
    /// Body or value.
    fn document(&self) -> &[u8];
}

/// A value in a condition.
#[derive(Clone, Debug, PartialEq)]
pub enum Val<'a> {
    /// It is not there.
    Missing,
    /// JSON null.
    Null,
    /// JSON true or false.
    Bool(bool),
    /// A whole number.
    Int(i128),
    /// Any other number.
    Float(f64),
    /// A JSON string or a text in quotes.
    Text(Cow<'a, str>),
    /// Text without a type: a header, a key, a whole document. A number where it is compared with one.
    Raw(Cow<'a, str>),
    /// A JSON array or object.
    Tree(Json),
}

/// A record with its place, for filters.
#[derive(Clone, Copy, Debug)]
pub struct RecordScope<'a> {
    /// The topic's name.
    pub topic: &'a str,
    /// The partition.
    pub partition: u32,
    /// The record.
    pub record: &'a Record,
}

impl Scope for RecordScope<'_> {
    fn root(&self, root: Root) -> Val<'_> {
        match root {
            Root::Key => match &self.record.key {
                Some(key) => Val::Raw(String::from_utf8_lossy(key)),
                None => Val::Missing,
            },
            Root::Topic => Val::Text(Cow::Borrowed(self.topic)),
            Root::Partition => Val::Int(self.partition.into()),
            Root::Offset => Val::Int(self.record.offset.into()),
            Root::Status => Val::Missing,
        }
    }
    fn header(&self, name: &str) -> Option<&[u8]> {
        self.record.headers.get(name)
    }
    fn document(&self) -> &[u8] {
        &self.record.value
    }
}

/// One step into a JSON document: a name in objects, the same as an index in arrays.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Step {
    pub(super) name: String,
    index: Option<usize>,
}

impl Step {
    pub(super) fn new(name: String) -> Self {
        // A JSON pointer's index has no leading zeros (RFC 6901).
        let plain = name == "0" || !name.starts_with('0');
        let index = if plain && name.bytes().all(|b| b.is_ascii_digit()) {
            name.parse().ok()
        } else {
            None
        };
        Self { name, index }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Contains,
    StartsWith,
    EndsWith,
}

#[derive(Clone, Debug)]
pub(super) enum Node {
    And(Vec<Node>),
    Or(Vec<Node>),
    Not(Box<Node>),
    Compare(Box<Node>, Op, Box<Node>),
    In(Box<Node>, Vec<Node>),
    Matches(Box<Node>, Regex),
    Exists(Box<Node>),
    Literal(Val<'static>),
    Root(Root),
    Header(String),
    Document(Vec<Step>),
}

impl Node {
    pub(super) fn test(&self, scope: &impl Scope) -> bool {
        match self {
            Node::And(all) => all.iter().all(|n| n.test(scope)),
            Node::Or(any) => any.iter().any(|n| n.test(scope)),
            Node::Not(inner) => !inner.test(scope),
            Node::Compare(a, op, b) => compare(&a.value(scope), *op, &b.value(scope)),
            Node::In(a, list) => {
                let value = a.value(scope);
                list.iter().any(|b| compare(&value, Op::Eq, &b.value(scope)))
            }
            Node::Matches(a, regex) => a.value(scope).as_text().is_some_and(|t| regex.is_match(&t)),
            Node::Exists(a) => a.value(scope) != Val::Missing,
            value => match value.value(scope) {
                Val::Bool(b) => b,
                Val::Raw(text) => text == "true",
                _ => false,
            },
        }
    }

    pub(super) fn text(&self, scope: &impl Scope) -> Option<String> {
        match self.value(scope) {
            Val::Missing | Val::Null => None,
            value => value.as_text().map(Cow::into_owned),
        }
    }

    fn value<'a>(&'a self, scope: &'a impl Scope) -> Val<'a> {
        match self {
            Node::Literal(value) => value.borrowed(),
            Node::Root(root) => scope.root(*root),
            Node::Header(name) => match scope.header(name) {
                Some(bytes) => Val::Raw(String::from_utf8_lossy(bytes)),
                None => Val::Missing,
            },
            Node::Document(path) if path.is_empty() => Val::Raw(String::from_utf8_lossy(scope.document())),
            Node::Document(path) => dig(scope.document(), path).map_or(Val::Missing, Val::from),
            condition => Val::Bool(condition.test(scope)),
        }
    }
}

impl From<Json> for Val<'_> {
    fn from(json: Json) -> Self {
        match json {
            Json::Null => Val::Null,
            Json::Bool(b) => Val::Bool(b),
            Json::Number(n) => match (n.as_i64(), n.as_u64()) {
                (Some(i), _) => Val::Int(i.into()),
                (_, Some(u)) => Val::Int(u.into()),
                _ => Val::Float(n.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(s) => Val::Text(Cow::Owned(s)),
            tree => Val::Tree(tree),
        }
    }
}

impl Val<'_> {
    fn borrowed(&self) -> Val<'_> {
        match self {
            Val::Missing => Val::Missing,
            Val::Null => Val::Null,
            Val::Bool(b) => Val::Bool(*b),
            Val::Int(i) => Val::Int(*i),
            Val::Float(x) => Val::Float(*x),
            Val::Text(s) => Val::Text(Cow::Borrowed(s)),
            Val::Raw(s) => Val::Raw(Cow::Borrowed(s)),
            Val::Tree(t) => Val::Tree(t.clone()),
        }
    }

    fn as_text(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Val::Missing => return None,
            Val::Null => Cow::Borrowed("null"),
            Val::Bool(b) => Cow::Borrowed(if *b { "true" } else { "false" }),
            Val::Int(i) => Cow::Owned(i.to_string()),
            Val::Float(x) => Cow::Owned(x.to_string()),
            Val::Text(s) | Val::Raw(s) => Cow::Borrowed(s),
            Val::Tree(t) => Cow::Owned(t.to_string()),
        })
    }

    /// The number that a text without a type stands for.
    fn untyped_number(&self) -> Option<Val<'static>> {
        let Val::Raw(text) = self else { return None };
        let text = text.trim();
        match (text.parse(), text.parse()) {
            (Ok(i), _) => Some(Val::Int(i)),
            (_, Ok(x)) => Some(Val::Float(x)),
            _ => None,
        }
    }
}

fn compare(a: &Val<'_>, op: Op, b: &Val<'_>) -> bool {
    if *a == Val::Missing || *b == Val::Missing {
        return false;
    }
    match op {
        Op::Eq => equal(a, b),
        Op::Ne => !equal(a, b),
        Op::Lt => order(a, b).is_some_and(Ordering::is_lt),
        Op::Le => order(a, b).is_some_and(Ordering::is_le),
        Op::Gt => order(a, b).is_some_and(Ordering::is_gt),
        Op::Ge => order(a, b).is_some_and(Ordering::is_ge),
        Op::Contains => match a {
            Val::Tree(Json::Array(list)) => list.iter().any(|x| equal(&Val::from(x.clone()), b)),
            Val::Tree(Json::Object(map)) => b.as_text().is_some_and(|name| map.contains_key(&*name)),
            _ => texts(a, b).is_some_and(|(a, b)| a.contains(&*b)),
        },
        Op::StartsWith => texts(a, b).is_some_and(|(a, b)| a.starts_with(&*b)),
        Op::EndsWith => texts(a, b).is_some_and(|(a, b)| a.ends_with(&*b)),
    }
}

fn texts<'v>(a: &'v Val<'_>, b: &'v Val<'_>) -> Option<(Cow<'v, str>, Cow<'v, str>)> {
    Some((a.as_text()?, b.as_text()?))
}

fn equal(a: &Val<'_>, b: &Val<'_>) -> bool {
    match (a, b) {
        (Val::Text(a) | Val::Raw(a), Val::Text(b) | Val::Raw(b)) => a == b,
        (Val::Raw(a), Val::Bool(b)) | (Val::Bool(b), Val::Raw(a)) => a == if *b { "true" } else { "false" },
        (Val::Null, Val::Null) => true,
        (Val::Bool(a), Val::Bool(b)) => a == b,
        (Val::Tree(a), Val::Tree(b)) => a == b,
        _ => numbers(a, b) == Some(Ordering::Equal),
    }
}

fn order(a: &Val<'_>, b: &Val<'_>) -> Option<Ordering> {
    match (a, b) {
        (Val::Text(a) | Val::Raw(a), Val::Text(b) | Val::Raw(b)) => Some(a.cmp(b)),
        _ => numbers(a, b),
    }
}

fn numbers(a: &Val<'_>, b: &Val<'_>) -> Option<Ordering> {
    match (a, b) {
        (Val::Int(a), Val::Int(b)) => Some(a.cmp(b)),
        (Val::Float(a), Val::Float(b)) => a.partial_cmp(b),
        (Val::Int(a), Val::Float(b)) => (*a as f64).partial_cmp(b),
        (Val::Float(a), Val::Int(b)) => a.partial_cmp(&(*b as f64)),
        (Val::Raw(_), Val::Int(_) | Val::Float(_)) => numbers(&a.untyped_number()?, b),
        (Val::Int(_) | Val::Float(_), Val::Raw(_)) => numbers(a, &b.untyped_number()?),
        _ => None,
    }
}

/// What stands at a path of a JSON document; of a document that ends too early, what stands before its end.
/// Of a name that stands there twice the last one counts, as in most parsers.
pub(super) fn dig(document: &[u8], path: &[Step]) -> Option<Json> {
    let mut found = None;
    let mut json = serde_json::Deserializer::from_slice(document);
    let whole: Result<(), _> = Dig {
        path,
        found: &mut found,
    }
    .deserialize(&mut json);
    // An error after the value was found does not take it away. But a number has no closing sign: where the
    // document ends within it, what is left is another number.
    if whole.is_err() && found.as_ref().is_some_and(Json::is_number) && found == number_at_end(document) {
        return None;
    }
    found
}

fn number_at_end(document: &[u8]) -> Option<Json> {
    let of_number = |b: &u8| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E');
    let start = document.iter().rposition(|b| !of_number(b)).map_or(0, |i| i + 1);
    serde_json::from_slice(&document[start..]).ok()
}

struct Dig<'p> {
    path: &'p [Step],
    found: &'p mut Option<Json>,
}

impl<'de> DeserializeSeed<'de> for Dig<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        if self.path.is_empty() {
            *self.found = Some(serde::Deserialize::deserialize(json)?);
            Ok(())
        } else {
            json.deserialize_any(self)
        }
    }
}

/// Anything else than an object or array has nothing below it.
macro_rules! nothing_below {
    ($($visit:ident($type:ty)),*) => { $(fn $visit<E>(self, _: $type) -> Result<(), E> { Ok(()) })* };
}

impl<'de> Visitor<'de> for Dig<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    nothing_below!(
        visit_bool(bool),
        visit_i64(i64),
        visit_u64(u64),
        visit_f64(f64),
        visit_str(&str)
    );

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((step, below)) = self.path.split_first() else {
            return Ok(());
        };
        while let Some(hit) = map.next_key_seed(NameIs(&step.name))? {
            if hit {
                *self.found = None;
                map.next_value_seed(Dig {
                    path: below,
                    found: &mut *self.found,
                })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Some((step, below)) = self.path.split_first() else {
            return Ok(());
        };
        for i in 0.. {
            let more = if step.index == Some(i) {
                seq.next_element_seed(Dig {
                    path: below,
                    found: &mut *self.found,
                })?
                .is_some()
            } else {
                seq.next_element::<IgnoredAny>()?.is_some()
            };
            if !more {
                break;
            }
        }
        Ok(())
    }
}

/// Compares a key without keeping it.
struct NameIs<'n>(&'n str);

impl<'de> DeserializeSeed<'de> for NameIs<'_> {
    type Value = bool;
    fn deserialize<D: Deserializer<'de>>(self, key: D) -> Result<bool, D::Error> {
        key.deserialize_str(self)
    }
}

impl Visitor<'_> for NameIs<'_> {
    type Value = bool;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }
    fn visit_str<E>(self, name: &str) -> Result<bool, E> {
        Ok(name == self.0)
    }
}
