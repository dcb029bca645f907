//! The one reader of JSON: picks values out of it by RFC 6901 pointers, several at once, in one pass, without building
//! a tree. On the path of every record: its ID, its key, what splits a budget, conditions; and over answers.
//!
//! What a pointer picks comes as text: a string without quotes and escapes, a number or boolean as it is written
//! (`1.0` stays `1.0`, big integers stay exact, `1e400` is a number), an array or object as its own text without
//! spaces between tokens. `null`, and what is not there, is nothing.
//!
//! **A field that is there twice is an error** ([`Unreadable::Twice`]) where a pointer leads through it: parsers
//! disagree on which one counts, so the partner might see another ID than the one that is remembered. Fields that no
//! pointer asks for are not looked at.
//!
//! The whole text must be JSON, also after the last value picked: half a record is not taken for one. Values that are
//! passed over are checked for their form only: neither the range of a number nor half a surrogate pair matters there.

use serde::de::{DeserializeSeed, Deserializer as _, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::fmt;

/// A value that a pointer picked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extracted<'a> {
    /// What it is in JSON.
    pub kind: JsonKind,
    /// Its text.
    pub text: Cow<'a, str>,
}

/// What a picked value is in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JsonKind {
    /// A string.
    Text,
    /// A number.
    Number,
    /// `true` or `false`.
    Bool,
    /// An array.
    Array,
    /// An object.
    Object,
    /// `null`; only [`Pointers::read`] gives it.
    Null,
}

/// An invalid pointer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PointerError {
    /// It must be empty (the whole) or begin with a slash.
    #[error("the JSON pointer `{0}` must begin with `/`")]
    NoSlash(String),
    /// A tilde stands before something else than 0 or 1.
    #[error("the JSON pointer `{0}` has a `~` that is not `~0` or `~1`")]
    Tilde(String),
    /// The element behind an array's last one never is there.
    #[error("the JSON pointer `{0}` ends in `-`, which is never there")]
    Dash(String),
}

/// A text that is not JSON.
#[derive(Debug, thiserror::Error)]
#[error("not JSON at line {line}, column {column}")]
pub struct NotJson {
    /// Line of the fault, from 1.
    pub line: usize,
    /// Column of the fault, from 1; 0 at the end of the line before.
    pub column: usize,
    /// What the parser says; it names no content (I9).
    source: serde_json::Error,
}

/// Why a JSON text gives no values. The texts name fields, never content (I9).
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// It is not JSON.
    #[error(transparent)]
    NotJson(#[from] NotJson),
    /// A field that a pointer leads through is there twice.
    #[error("the field `{0}` is there twice")]
    Twice(String),
}

impl From<serde_json::Error> for NotJson {
    fn from(source: serde_json::Error) -> Self {
        NotJson {
            line: source.line(),
            column: source.column(),
            source,
        }
    }
}

/// A step of the tree into which pointers are folded.
#[derive(Clone, Debug, Default)]
struct Node {
    /// Pointers that end here: places in the output.
    ends: SmallVec<[usize; 1]>,
    /// Steps from here: the name (and, where it is one, the index) and the node they lead to.
    steps: Vec<(Box<str>, Option<usize>, usize)>,
    /// The node that leads here; the root leads to itself.
    parent: usize,
}

/// Compiled pointers.
#[derive(Clone, Debug)]
pub struct Pointers {
    nodes: Vec<Node>,
    count: usize,
}

impl Pointers {
    /// Compiles pointers; [`Pointers::extract`] gives their values in this order.
    ///
    /// # Errors
    /// [`PointerError`] for the first invalid one.
    pub fn compile(pointers: &[&str]) -> Result<Self, PointerError> {
        Self::with_watched(pointers, &[])
    }

    /// The same, and watches over more fields: they are not picked, but an error if they are there twice.
    ///
    /// # Errors
    /// [`PointerError`] for the first invalid one.
    pub fn with_watched(pointers: &[&str], watched: &[&str]) -> Result<Self, PointerError> {
        let mut all = Self {
            nodes: vec![Node::default()],
            count: 0,
        };
        for pointer in pointers {
            all.pick_at(steps_of(pointer)?);
        }
        for pointer in watched {
            let steps = steps_of(pointer)?;
            steps
                .into_iter()
                .fold(0, |at, step| advance(&mut all.nodes, at, step));
        }
        Ok(all)
    }

    /// Of paths that are steps already.
    pub fn of_paths(paths: &[Vec<String>]) -> Self {
        let mut all = Self {
            nodes: vec![Node::default()],
            count: 0,
        };
        for path in paths {
            all.pick_at(path.iter().map(|step| step.as_str().into()).collect());
        }
        all
    }

    fn pick_at(&mut self, steps: Vec<Box<str>>) {
        let at = steps
            .into_iter()
            .fold(0, |at, step| advance(&mut self.nodes, at, step));
        self.nodes[at].ends.push(self.count);
        self.count += 1;
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is nothing to read a text for.
    pub fn is_empty(&self) -> bool {
        self.count == 0 && self.nodes.len() == 1
    }

    /// Picks the values of all pointers out of a JSON text. `out` must be as long as there are pointers; it is
    /// overwritten.
    ///
    /// # Errors
    /// [`Unreadable`]; `out` then holds nothing of use.
    pub fn extract<'a>(&self, json: &'a [u8], out: &mut [Option<Extracted<'a>>]) -> Result<(), Unreadable> {
        self.run(json, out, false)?;
        for found in out {
            found.take_if(|f| f.kind == JsonKind::Null);
        }
        Ok(())
    }

    /// The same, with `null` told apart from what is not there. Of a text that is not JSON, `out` holds the values
    /// that were complete before the fault.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn read<'a>(&self, json: &'a [u8], out: &mut [Option<Extracted<'a>>]) -> Result<(), Unreadable> {
        let first = self.run(json, out, false);
        if let Err(Unreadable::NotJson(_)) = &first {
            // Once more, for what is complete within objects that are not.
            if let Err(twice @ Unreadable::Twice(_)) = self.run(json, out, true) {
                return Err(twice);
            }
        }
        first
    }

    fn run<'a>(
        &self,
        json: &'a [u8],
        out: &mut [Option<Extracted<'a>>],
        broken: bool,
    ) -> Result<(), Unreadable> {
        debug_assert_eq!(out.len(), self.count);
        out.fill(None);
        let mut picker = Picker {
            pointers: self,
            out,
            seen: SmallVec::from_elem(false, self.nodes.len()),
            twice: None,
            broken,
        };
        let walk = Walk {
            picker: &mut picker,
            node: 0,
            is_container: matches!(json.trim_ascii_start().first(), Some(b'{' | b'[')),
        };
        // Checked once as a whole, not again with each name and value. Where it is no text as a whole, what nobody asks
        // for may still be anything.
        let read = match std::str::from_utf8(json) {
            Ok(text) => walk_through(walk, serde_json::Deserializer::from_str(text)),
            Err(_) => walk_through(walk, serde_json::Deserializer::from_slice(json)),
        };
        let twice = picker.twice;
        if let Err(error) = read {
            return Err(match twice {
                Some(node) => {
                    out.fill(None);
                    Unreadable::Twice(self.path(node))
                }
                None => NotJson::from(error).into(),
            });
        }
        Ok(())
    }

    /// The pointer that leads to a node.
    fn path(&self, mut node: usize) -> String {
        let mut names = Vec::new();
        while node != 0 {
            let parent = self.nodes[node].parent;
            let step = self.nodes[parent].steps.iter().find(|s| s.2 == node);
            names.extend(step.map(|s| s.0.replace('~', "~0").replace('/', "~1")));
            node = parent;
        }
        names
            .iter()
            .rev()
            .fold(String::new(), |path, name| path + "/" + name)
    }
}

fn walk_through<'a, R: serde_json::de::Read<'a>>(
    walk: Walk<'_, '_, '_, 'a>,
    mut parser: serde_json::Deserializer<R>,
) -> Result<(), serde_json::Error> {
    walk.deserialize(&mut parser)?;
    parser.end()
}

/// The steps of a pointer.
fn steps_of(pointer: &str) -> Result<Vec<Box<str>>, PointerError> {
    if pointer.is_empty() {
        return Ok(Vec::new());
    }
    let steps = pointer
        .strip_prefix('/')
        .ok_or_else(|| PointerError::NoSlash(pointer.to_owned()))?;
    if pointer.ends_with("/-") {
        return Err(PointerError::Dash(pointer.to_owned()));
    }
    steps.split('/').map(|step| unescape(step, pointer)).collect()
}

fn advance(nodes: &mut Vec<Node>, at: usize, step: Box<str>) -> usize {
    if let Some(known) = nodes[at].steps.iter().find(|s| s.0 == step) {
        return known.2;
    }
    // An index has no leading zeros and no sign (RFC 6901).
    let plain = step.bytes().all(|b| b.is_ascii_digit()) && (step.len() == 1 || !step.starts_with('0'));
    let index = plain.then(|| step.parse().ok()).flatten();
    nodes.push(Node {
        parent: at,
        ..Node::default()
    });
    let to = nodes.len() - 1;
    nodes[at].steps.push((step, index, to));
    to
}

fn unescape(step: &str, pointer: &str) -> Result<Box<str>, PointerError> {
    let mut out = String::with_capacity(step.len());
    let mut chars = step.chars();
    while let Some(c) = chars.next() {
        match c {
            '~' => match chars.next() {
                Some('0') => out.push('~'),
                Some('1') => out.push('/'),
                _ => return Err(PointerError::Tilde(pointer.to_owned())),
            },
            c => out.push(c),
        }
    }
    Ok(out.into())
}

struct Picker<'p, 'o, 'a> {
    pointers: &'p Pointers,
    out: &'o mut [Option<Extracted<'a>>],
    /// Nodes that were met.
    seen: SmallVec<[bool; 16]>,
    /// A node that was met a second time.
    twice: Option<usize>,
    /// The text is not JSON: go into values as far as it goes.
    broken: bool,
}

impl<'a> Picker<'_, '_, 'a> {
    fn pick(&mut self, node: usize, raw: &'a str) -> Result<(), serde_json::Error> {
        let value = value_of(raw)?;
        let ends = &self.pointers.nodes[node].ends;
        if let [place] = ends[..] {
            self.out[place] = Some(value);
        } else {
            ends.iter()
                .for_each(|place| self.out[*place] = Some(value.clone()));
        }
        Ok(())
    }
}

/// A value's text, of its raw text in the JSON.
pub(super) fn value_of(raw: &str) -> Result<Extracted<'_>, serde_json::Error> {
    let (kind, text) = match raw.as_bytes().first() {
        Some(b'"') => {
            let inner = &raw[1..raw.len().saturating_sub(1)];
            let text = match memchr::memchr(b'\\', inner.as_bytes()) {
                None => Cow::Borrowed(inner),
                Some(_) => Cow::Owned(serde_json::from_str(raw)?),
            };
            (JsonKind::Text, text)
        }
        Some(b'{') => (JsonKind::Object, compact(raw)),
        Some(b'[') => (JsonKind::Array, compact(raw)),
        Some(b't' | b'f') => (JsonKind::Bool, Cow::Borrowed(raw)),
        Some(b'n') | None => (JsonKind::Null, Cow::Borrowed("null")),
        Some(_) => (JsonKind::Number, Cow::Borrowed(raw)),
    };
    Ok(Extracted { kind, text })
}

/// A JSON text without the spaces between its tokens.
pub fn compact(raw: &str) -> Cow<'_, str> {
    if !raw.bytes().any(|b| matches!(b, b' ' | b'\n' | b'\r' | b'\t')) {
        return Cow::Borrowed(raw);
    }
    let mut out = String::with_capacity(raw.len());
    let (mut inside, mut escaped) = (false, false);
    for c in raw.chars() {
        if inside {
            inside = escaped || c != '"';
            escaped = !escaped && c == '\\';
        } else if matches!(c, ' ' | '\n' | '\r' | '\t') {
            continue;
        } else {
            inside = c == '"';
        }
        out.push(c);
    }
    Cow::Owned(out)
}

/// Goes into a value at a node.
struct Walk<'w, 'p, 'o, 'a> {
    picker: &'w mut Picker<'p, 'o, 'a>,
    node: usize,
    /// Whether the value is known to be an object or array.
    is_container: bool,
}

impl<'a> DeserializeSeed<'a> for Walk<'_, '_, '_, 'a> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'a>>(self, json: D) -> Result<(), D::Error> {
        let node = &self.picker.pointers.nodes[self.node];
        if node.ends.is_empty() && node.steps.is_empty() {
            // Only watched.
            return <IgnoredAny as serde::Deserialize>::deserialize(json).map(drop);
        }
        if node.ends.is_empty() && (self.is_container || self.picker.broken) {
            return json.deserialize_any(self);
        }
        // Taken raw first: a parser that goes into any value refuses numbers it cannot hold, asked for or not.
        let raw = <&'a RawValue as serde::Deserialize>::deserialize(json)?.get();
        if !node.ends.is_empty() {
            self.picker.pick(self.node, raw).map_err(D::Error::custom)?;
        }
        if !node.steps.is_empty() && raw.starts_with(['{', '[']) {
            let mut inner = serde_json::Deserializer::from_str(raw);
            inner.deserialize_any(self).map_err(D::Error::custom)?;
        }
        Ok(())
    }
}

impl<'a> Visitor<'a> for Walk<'_, '_, '_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<(), M::Error> {
        let Walk { picker, node, .. } = self;
        let steps = &picker.pointers.nodes[node].steps;
        while let Some(step) = map.next_key_seed(Name { steps })? {
            match step {
                Some(node) if picker.seen[node] => {
                    picker.twice = Some(node);
                    return Err(M::Error::custom("a field is there twice"));
                }
                Some(node) => {
                    picker.seen[node] = true;
                    map.next_value_seed(Walk {
                        picker,
                        node,
                        is_container: false,
                    })?;
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }

    fn visit_seq<S: SeqAccess<'a>>(self, mut seq: S) -> Result<(), S::Error> {
        let Walk { picker, node, .. } = self;
        let steps = &picker.pointers.nodes[node].steps;
        for index in 0.. {
            let step = steps.iter().find(|s| s.1 == Some(index));
            let more = match step {
                Some(&(_, _, node)) => seq
                    .next_element_seed(Walk {
                        picker,
                        node,
                        is_container: false,
                    })?
                    .is_some(),
                None => seq.next_element::<IgnoredAny>()?.is_some(),
            };
            if !more {
                break;
            }
        }
        Ok(())
    }

    // In a broken text: nothing below it can be picked.
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// Reads a field's name: the node that its step leads to.
struct Name<'s> {
    steps: &'s [(Box<str>, Option<usize>, usize)],
}

impl<'a> DeserializeSeed<'a> for Name<'_> {
    type Value = Option<usize>;

    fn deserialize<D: serde::Deserializer<'a>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    #[inline]
    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.steps.iter().find(|s| *s.0 == *name).map(|s| s.2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn pick(json: &str, pointers: &[&str]) -> Vec<Option<String>> {
        let compiled = Pointers::compile(pointers).unwrap();
        let mut out = vec![None; compiled.len()];
        compiled.extract(json.as_bytes(), &mut out).unwrap();
        out.into_iter().map(|v| v.map(|v| v.text.into_owned())).collect()
    }

    fn one(json: &str, pointer: &str) -> Option<String> {
        pick(json, &[pointer]).remove(0)
    }

    fn refused(json: &[u8], pointer: &str) -> bool {
        let compiled = Pointers::compile(&[pointer]).unwrap();
        compiled.extract(json, &mut [None]).is_err()
    }

    /// What nobody asks for may be any bytes, what is asked for and what it is called may not.
    #[test]
    fn a_text_that_is_not_utf8_everywhere_is_read_where_it_is() {
        let compiled = Pointers::compile(&["/id"]).unwrap();
        let picked = |json: &[u8]| {
            let mut out = [None];
            let read = compiled.extract(json, &mut out).is_ok();
            let [found] = out;
            read.then_some(found.map(|v| v.text.into_owned()))
        };
        assert_eq!(picked(b"{\"x\":\"\xff\",\"id\":7}"), Some(Some("7".to_owned())));
        assert_eq!(
            picked("{\"x\":\"é\",\"id\":\"é\"}".as_bytes()),
            Some(Some("é".to_owned()))
        );
        assert_eq!(picked(b"{\"id\":\"\xff\"}"), None);
        assert_eq!(picked(b"{\"\xff\":1,\"id\":7}"), None);
    }

    #[test]
    fn values_come_as_text() {
        let json = r#"{ "s": "a\u00e9\"b", "plain": "x", "n": 1.0, "big": 123456789012345678901234567890,
            "e": 1e5, "t": true, "z": null, "o": { "a" : [ 1 , "b c" ] }, "empty": "" }"#;
        let picked = pick(
            json,
            &[
                "/s", "/plain", "/n", "/big", "/e", "/t", "/z", "/o", "/empty", "/none",
            ],
        );
        let text = |t: &str| Some(t.to_owned());
        assert_eq!(
            picked,
            [
                text("aé\"b"),
                text("x"),
                text("1.0"),
                text("123456789012345678901234567890"),
                text("1e5"),
                text("true"),
                None,
                text(r#"{"a":[1,"b c"]}"#),
                text(""),
                None
            ]
        );
    }

    #[test]
    fn pointers_reach_into_objects_and_arrays() {
        let json = r#"{"a":{"b":[10,{"c":"x"},12]},"d/e":1,"m~n":2,"":3,"0":4}"#;
        assert_eq!(one(json, "/a/b/1/c").as_deref(), Some("x"));
        assert_eq!(one(json, "/a/b/0").as_deref(), Some("10"));
        assert_eq!(one(json, "/a/b/2").as_deref(), Some("12"));
        assert_eq!(one(json, "/a/b/00"), None);
        assert_eq!(one(json, "/a/b/3"), None);
        assert_eq!(one(json, "/d~1e").as_deref(), Some("1"));
        assert_eq!(one(json, "/m~0n").as_deref(), Some("2"));
        assert_eq!(one(json, "/").as_deref(), Some("3"));
        assert_eq!(one(json, "/0").as_deref(), Some("4"));
        assert_eq!(one(json, "").as_deref(), Some(json));
        assert_eq!(one("[[7]]", "/0/0").as_deref(), Some("7"));
        assert_eq!(one(r#""text""#, "").as_deref(), Some("text"));
    }

    #[test]
    fn one_pointer_may_lead_through_another_or_stand_twice() {
        let json = r#"{"a":{"b":1}}"#;
        let picked = pick(json, &["/a/b", "/a", "/a/b"]);
        let texts: Vec<_> = picked.iter().map(Option::as_deref).collect();
        assert_eq!(texts, [Some("1"), Some(r#"{"b":1}"#), Some("1")]);
    }

    /// Which of two fields of one name counts differs from parser to parser: neither is believed.
    #[test]
    fn a_field_that_is_there_twice_is_refused_where_it_is_asked_for() {
        for (json, pointer, field) in [
            (r#"{"a":1,"a":2}"#, "/a", "/a"),
            (r#"{"a":1,"a":1}"#, "/a", "/a"),
            (r#"{"a":null,"a":2}"#, "/a", "/a"),
            (r#"{"a":5,"a":{"b":2}}"#, "/a/b", "/a"),
            (r#"{"a":{"b":1},"a":{"b":2}}"#, "/a/b", "/a"),
            (r#"{"a":{"b":1,"c":3,"b":2}}"#, "/a/b", "/a/b"),
            (r#"{"x/y":{"~":1,"~":2}}"#, "/x~1y/~0", "/x~1y/~0"),
            (r#"{"a":1,"\u0061":2}"#, "/a", "/a"),
            (r#"[{"a":1,"a":2}]"#, "/0/a", "/0/a"),
        ] {
            for compiled in [
                Pointers::compile(&[pointer]),
                Pointers::with_watched(&[], &[pointer]),
            ] {
                let compiled = compiled.unwrap();
                let mut out = vec![None; compiled.len()];
                let told = compiled.extract(json.as_bytes(), &mut out).unwrap_err();
                assert_eq!(
                    told.to_string(),
                    format!("the field `{field}` is there twice"),
                    "{json}"
                );
            }
        }
        // What nobody asks for is nobody's concern.
        assert_eq!(one(r#"{"a":1,"b":2,"b":3}"#, "/a").as_deref(), Some("1"));
        assert_eq!(one(r#"{"a":{"c":1,"c":2,"b":3}}"#, "/a/b").as_deref(), Some("3"));
        assert_eq!(one(r#"{"\u0061":1}"#, "/a").as_deref(), Some("1"));
    }

    /// RFC 8259 bounds neither numbers nor depth; what is not picked need not make sense.
    #[test]
    fn what_is_passed_over_may_be_odd() {
        for odd in [
            "1e400",
            r#""\ud83d""#,
            &format!("{}1{}", "[".repeat(200), "]".repeat(200)),
        ] {
            let json = format!(r#"{{"n":{odd},"id":"c","o":{{"n":{odd},"x":7}}}}"#);
            assert_eq!(one(&json, "/id").as_deref(), Some("c"), "{odd}");
            assert_eq!(one(&json, "/o/x").as_deref(), Some("7"), "{odd}");
            assert_eq!(one(&json, "/n/x"), None, "{odd}");
        }
        assert_eq!(one(r#"{"n":1e400}"#, "/n").as_deref(), Some("1e400"));
        assert!(refused(br#"{"n":"\ud83d"}"#, "/n"));
    }

    #[test]
    fn null_is_told_apart_where_it_matters_and_a_cut_keeps_what_came_before() {
        let compiled = Pointers::compile(&["/a", "/b", "/c"]).unwrap();
        let mut out = vec![None; 3];
        compiled.read(br#"{"a":null,"b":1}"#, &mut out).unwrap();
        assert_eq!(out[0].as_ref().map(|v| v.kind), Some(JsonKind::Null));
        assert_eq!(out[2], None);
        assert!(matches!(
            compiled.read(br#"{"a":1,"b":"x","c":"cu"#, &mut out),
            Err(Unreadable::NotJson(_))
        ));
        assert_eq!(
            (out[0].is_some(), out[1].is_some(), out[2].is_some()),
            (true, true, false)
        );
        let nested = Pointers::compile(&["/o/a", "/o"]).unwrap();
        let mut out = vec![None; 2];
        nested.read(br#"{"o":{"a":7,"b":"#, &mut out).unwrap_err();
        assert_eq!(out[1], None);
        let alone = Pointers::compile(&["/o/a"]).unwrap();
        alone.read(br#"{"o":{"a":7,"b":"#, &mut out[..1]).unwrap_err();
        assert_eq!(out[0].as_ref().map(|v| &*v.text), Some("7"));
    }

    #[test]
    fn what_is_not_json_is_told_wherever_it_stands() {
        for bad in [
            "",
            "{",
            r#"{"a":1"#,
            r#"{"a":1}}"#,
            r#"{"a":1,}"#,
            r#"{"a":1 "b":2}"#,
            r#"{"a":"\q"}"#,
            r#"{"b":"\q","a":1}"#,
            r#"{"a":01}"#,
            "nul",
            "[1,2",
        ] {
            assert!(refused(bad.as_bytes(), "/a"), "{bad}");
        }
        assert!(refused(b"{\"a\":\"\xff\"}", "/a"));
        let compiled = Pointers::compile(&["/a"]).unwrap();
        let told = compiled.extract(b"{\n \"a\": x }", &mut [None]).unwrap_err();
        assert!(told.to_string().contains("line 2"), "{told}");
    }

    #[test]
    fn deep_nesting_is_no_danger() {
        let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(
            one(&format!(r#"{{"x":{deep},"a":1}}"#), "/a").as_deref(),
            Some("1")
        );
        assert_eq!(one(&format!(r#"{{"a":{deep}}}"#), "/a"), Some(deep));
    }

    #[test]
    fn what_is_no_pointer_is_refused() {
        assert_eq!(
            Pointers::compile(&["a"]).unwrap_err(),
            PointerError::NoSlash("a".into())
        );
        for bad in ["/~", "/a~2", "/x~"] {
            assert!(matches!(Pointers::compile(&[bad]), Err(PointerError::Tilde(_))));
        }
        assert!(matches!(Pointers::compile(&["/a/-"]), Err(PointerError::Dash(_))));
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-c\"\\\\é\n ]{0,4}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map("[a-c/~0]{0,2}", inner, 0..4)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]
        #[test]
        fn agrees_with_a_tree(
            value in json(),
            pointers in proptest::collection::vec("(/([a-c]|~0|~1|0|1|2){0,2}){0,3}", 1..5),
            pretty: bool,
        ) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
            let text = text.unwrap();
            let pointers: Vec<&str> = pointers.iter().map(String::as_str).collect();
            for (got, pointer) in pick(&text, &pointers).into_iter().zip(pointers) {
                let want = value.pointer(pointer).filter(|v| !v.is_null()).map(|v| match v {
                    Value::String(s) => s.clone(),
                    v => v.to_string(),
                });
                prop_assert_eq!(got, want, "{}", pointer);
            }
        }

        #[test]
        fn garbage_never_panics(garbage: Vec<u8>, text in "[\\[\\]{}\",:0-9a\\\\ ]{0,30}") {
            let compiled = Pointers::compile(&["/a", "/0/a"]).unwrap();
            let _ = compiled.extract(&garbage, &mut [None, None]);
            let told = compiled.extract(text.as_bytes(), &mut [None, None]);
            let is_json = !matches!(told, Err(Unreadable::NotJson(_)));
            prop_assert_eq!(is_json, serde_json::from_str::<IgnoredAny>(&text).is_ok());
        }
    }

    /// Printed by `cargo test --profile quick pointer::tests::speed -- --ignored --nocapture`.
    #[test]
    #[ignore = "a measurement"]
    fn speed() {
        const N: u32 = 1_000_000;
        let json = br#"{"id":"order-0123456789-abc","event":"purchase","user":"user-000123","ts":1790000000123,"amount":19.99,"currency":"EUR","items":[{"sku":"A-1","n":2},{"sku":"B-7","n":1}],"consent":true,"ua":"Mozilla/5.0"}"#;
        for pointers in [&["/id"][..], &["/id", "/user", "/items/1/sku"]] {
            let compiled = Pointers::compile(pointers).unwrap();
            let mut out = vec![None; pointers.len()];
            let began = std::time::Instant::now();
            for _ in 0..N {
                compiled.extract(std::hint::black_box(json), &mut out).unwrap();
                std::hint::black_box(&out);
            }
            println!(
                "{} of {} bytes: {:?}",
                pointers.len(),
                json.len(),
                began.elapsed() / N
            );
        }
    }
}
