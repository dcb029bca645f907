//! What a condition makes of a scope.

use crate::core::pointer::{Extracted, JsonKind, Pointers, Unreadable, value_of};
use crate::core::record::Record;
use regex::Regex;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::cell::OnceCell;
use std::cmp::Ordering;
use std::collections::BTreeMap;

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
    /// Any other number, and how it is written.
    Float(f64, Cow<'a, str>),
    /// A JSON string or a text in quotes.
    Text(Cow<'a, str>),
    /// Text without a type: a header, a key, a whole document. A number where it is compared with one.
    Raw(Cow<'a, str>),
    /// The text of a JSON array or object.
    Tree(Cow<'a, str>),
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
    /// The whole text.
    Document,
    /// The value that this one of the expression's pointers picks.
    Field(usize),
}

/// A scope with what the expression's pointers picked out of its document, read once and only if it is needed.
pub(super) struct Reading<'a, S> {
    pub(super) scope: &'a S,
    pointers: &'a Pointers,
    fields: OnceCell<Fields<'a>>,
}

pub(super) struct Fields<'a> {
    pub(super) found: SmallVec<[Option<Extracted<'a>>; 4]>,
    pub(super) fault: Option<Unreadable>,
}

impl<'a, S: Scope> Reading<'a, S> {
    pub(super) fn of(scope: &'a S, pointers: &'a Pointers) -> Self {
        Self {
            scope,
            pointers,
            fields: OnceCell::new(),
        }
    }

    pub(super) fn fields(&self) -> &Fields<'a> {
        self.fields.get_or_init(|| {
            let document = self.scope.document();
            let mut found = SmallVec::from_elem(None, self.pointers.len());
            let fault = self.pointers.read(document, &mut found).err();
            if fault.is_some() {
                // A number has no closing sign: where the document ends within it, another one is left.
                let end = number_at_end(document);
                for field in &mut found {
                    let field: &mut Option<Extracted<'_>> = field;
                    field.take_if(|f| f.kind == JsonKind::Number && end == Some(f.text.as_bytes()));
                }
            }
            Fields { found, fault }
        })
    }

    /// Why the document could not be read, if it was needed and could not.
    pub(super) fn into_fault(self) -> Option<Unreadable> {
        self.fields.into_inner().and_then(|f| f.fault)
    }
}

fn number_at_end(document: &[u8]) -> Option<&[u8]> {
    let of_number = |b: &u8| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E');
    let start = document.iter().rposition(|b| !of_number(b)).map_or(0, |i| i + 1);
    document.get(start..).filter(|end| !end.is_empty())
}

impl Node {
    pub(super) fn test<S: Scope>(&self, scope: &Reading<'_, S>) -> bool {
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

    pub(super) fn text<S: Scope>(&self, scope: &Reading<'_, S>) -> Option<String> {
        match self.value(scope) {
            Val::Missing | Val::Null => None,
            value => value.as_text().map(Cow::into_owned),
        }
    }

    fn value<'a, S: Scope>(&'a self, reading: &'a Reading<'_, S>) -> Val<'a> {
        let scope = reading.scope;
        match self {
            Node::Literal(value) => value.borrowed(),
            Node::Root(root) => scope.root(*root),
            Node::Header(name) => match scope.header(name) {
                Some(bytes) => Val::Raw(String::from_utf8_lossy(bytes)),
                None => Val::Missing,
            },
            Node::Document => Val::Raw(String::from_utf8_lossy(scope.document())),
            Node::Field(at) => match reading.fields().found.get(*at) {
                Some(Some(field)) => Val::of(field),
                _ => Val::Missing,
            },
            condition => Val::Bool(condition.test(reading)),
        }
    }
}

impl<'a> Val<'a> {
    fn of(field: &'a Extracted<'_>) -> Self {
        let text = &*field.text;
        match field.kind {
            JsonKind::Null => Val::Null,
            JsonKind::Bool => Val::Bool(text == "true"),
            JsonKind::Number => Val::number(Cow::Borrowed(text)).unwrap_or(Val::Missing),
            JsonKind::Text => Val::Text(Cow::Borrowed(text)),
            JsonKind::Array | JsonKind::Object => Val::Tree(Cow::Borrowed(text)),
        }
    }

    /// A number by its text.
    pub(super) fn number(text: Cow<'a, str>) -> Option<Self> {
        // An integer in any other spelling than Rust's own (`-0`) keeps its text.
        match text.parse::<i128>() {
            Ok(i) if i != 0 || &*text == "0" => Some(Val::Int(i)),
            _ => Some(Val::Float(text.parse().ok()?, text)),
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
            Val::Float(x, s) => Val::Float(*x, Cow::Borrowed(s)),
            Val::Text(s) => Val::Text(Cow::Borrowed(s)),
            Val::Raw(s) => Val::Raw(Cow::Borrowed(s)),
            Val::Tree(s) => Val::Tree(Cow::Borrowed(s)),
        }
    }

    fn as_text(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Val::Missing => return None,
            Val::Null => Cow::Borrowed("null"),
            Val::Bool(b) => Cow::Borrowed(if *b { "true" } else { "false" }),
            Val::Int(i) => Cow::Owned(i.to_string()),
            Val::Float(_, s) | Val::Text(s) | Val::Raw(s) | Val::Tree(s) => Cow::Borrowed(s),
        })
    }

    /// The number that a text without a type stands for.
    fn untyped_number(&self) -> Option<Val<'static>> {
        let Val::Raw(text) = self else { return None };
        let text = text.trim();
        match (text.parse(), text.parse()) {
            (Ok(i), _) => Some(Val::Int(i)),
            (_, Ok(x)) => Some(Val::Float(x, Cow::Borrowed(""))),
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
            Val::Tree(text) => tree_contains(text, b),
            _ => texts(a, b).is_some_and(|(a, b)| a.contains(&*b)),
        },
        Op::StartsWith => texts(a, b).is_some_and(|(a, b)| a.starts_with(&*b)),
        Op::EndsWith => texts(a, b).is_some_and(|(a, b)| a.ends_with(&*b)),
    }
}

/// Whether an array holds a value, or an object a name.
fn tree_contains(text: &str, wanted: &Val<'_>) -> bool {
    if text.starts_with('{') {
        let fields = serde_json::from_str::<BTreeMap<Cow<'_, str>, IgnoredAny>>(text);
        return wanted
            .as_text()
            .is_some_and(|name| fields.is_ok_and(|f| f.contains_key(&*name)));
    }
    serde_json::from_str::<Vec<&RawValue>>(text).is_ok_and(|list| {
        list.into_iter()
            .filter_map(|element| value_of(element.get()).ok())
            .any(|element| equal(&Val::of(&element), wanted))
    })
}

/// Whether two documents say the same, whatever the order of their fields.
fn same_trees(a: &str, b: &str) -> bool {
    let tree = |text| serde_json::from_str::<serde_json::Value>(text).ok();
    tree(a).is_some_and(|a| Some(a) == tree(b))
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
        (Val::Tree(a), Val::Tree(b)) => a == b || same_trees(a, b),
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
        (Val::Float(a, _), Val::Float(b, _)) => a.partial_cmp(b),
        (Val::Int(a), Val::Float(b, _)) => (*a as f64).partial_cmp(b),
        (Val::Float(a, _), Val::Int(b)) => a.partial_cmp(&(*b as f64)),
        (Val::Raw(_), Val::Int(_) | Val::Float(..)) => numbers(&a.untyped_number()?, b),
        (Val::Int(_) | Val::Float(..), Val::Raw(_)) => numbers(a, &b.untyped_number()?),
        _ => None,
    }
}
