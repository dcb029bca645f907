//! Picks values out of JSON by RFC 6901 pointers: several at once, in one pass, without building a tree. On the
//! path of every record (its ID, its key, what splits a budget).
//!
//! What a pointer picks comes as text: a string without quotes and escapes, a number or boolean as it is written
//! (`1.0` stays `1.0`, big integers stay exact), an array or object as its own text without spaces between tokens.
//! `null`, and what is not there, is nothing. Of fields with the same name the first one counts. The whole text must
//! be JSON, also behind the last value picked: half a record is not taken for one (what is passed over is checked
//! for its form, not for UTF-8).

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
}

/// A pointer that is none.
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
    /// [`PointerError`] for the first one that is none.
    pub fn compile(pointers: &[&str]) -> Result<Self, PointerError> {
        let mut nodes = vec![Node::default()];
        for (place, pointer) in pointers.iter().enumerate() {
            let mut at = 0;
            if !pointer.is_empty() {
                let steps = pointer
                    .strip_prefix('/')
                    .ok_or_else(|| PointerError::NoSlash((*pointer).to_owned()))?;
                for step in steps.split('/') {
                    at = advance(&mut nodes, at, unescape(step, pointer)?);
                }
            }
            if pointer.ends_with("/-") {
                return Err(PointerError::Dash((*pointer).to_owned()));
            }
            nodes[at].ends.push(place);
        }
        Ok(Self {
            nodes,
            count: pointers.len(),
        })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Picks the values of all pointers out of a JSON text. `out` must be as long as there are pointers; it is
    /// overwritten.
    ///
    /// # Errors
    /// [`NotJson`]; `out` then holds nothing of use.
    pub fn extract<'a>(&self, json: &'a [u8], out: &mut [Option<Extracted<'a>>]) -> Result<(), NotJson> {
        debug_assert_eq!(out.len(), self.count);
        out.fill(None);
        let mut picker = Picker {
            pointers: self,
            out,
            seen: SmallVec::from_elem(false, self.nodes.len()),
        };
        let mut json = serde_json::Deserializer::from_slice(json);
        Walk {
            picker: &mut picker,
            node: 0,
        }
        .deserialize(&mut json)?;
        Ok(json.end()?)
    }
}

fn advance(nodes: &mut Vec<Node>, at: usize, step: Box<str>) -> usize {
    if let Some(known) = nodes[at].steps.iter().find(|s| s.0 == step) {
        return known.2;
    }
    // An index has no leading zeros and no sign (RFC 6901).
    let plain = step.bytes().all(|b| b.is_ascii_digit()) && (step.len() == 1 || !step.starts_with('0'));
    let index = plain.then(|| step.parse().ok()).flatten();
    nodes.push(Node::default());
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
    /// Nodes that were met: a second field of the same name is passed over.
    seen: SmallVec<[bool; 16]>,
}

impl<'a> Picker<'_, '_, 'a> {
    fn pick(&mut self, node: usize, raw: &'a str) -> Result<(), serde_json::Error> {
        let value = value_of(raw)?;
        let ends = &self.pointers.nodes[node].ends;
        if let [place] = ends[..] {
            self.out[place] = value;
        } else {
            ends.iter().for_each(|place| self.out[*place] = value.clone());
        }
        Ok(())
    }
}

/// A value's text, of the raw text that stands in the JSON.
fn value_of(raw: &str) -> Result<Option<Extracted<'_>>, serde_json::Error> {
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
        Some(b'n') | None => return Ok(None),
        Some(_) => (JsonKind::Number, Cow::Borrowed(raw)),
    };
    Ok(Some(Extracted { kind, text }))
}

/// Without the spaces between tokens.
fn compact(raw: &str) -> Cow<'_, str> {
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
}

impl<'a> DeserializeSeed<'a> for Walk<'_, '_, '_, 'a> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'a>>(self, json: D) -> Result<(), D::Error> {
        let node = &self.picker.pointers.nodes[self.node];
        if node.ends.is_empty() {
            return json.deserialize_any(self);
        }
        let raw = <&'a RawValue as serde::Deserialize>::deserialize(json)?.get();
        self.picker.pick(self.node, raw).map_err(D::Error::custom)?;
        if !node.steps.is_empty() {
            // Both picked as a whole and gone into: rare, so read again.
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
        let Walk { picker, node } = self;
        let steps = &picker.pointers.nodes[node].steps;
        while let Some(step) = map.next_key_seed(Name { steps })? {
            match step {
                Some(node) if !picker.seen[node] => {
                    picker.seen[node] = true;
                    map.next_value_seed(Walk { picker, node })?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }

    fn visit_seq<S: SeqAccess<'a>>(self, mut seq: S) -> Result<(), S::Error> {
        let Walk { picker, node } = self;
        let steps = &picker.pointers.nodes[node].steps;
        for index in 0.. {
            let step = steps.iter().find(|s| s.1 == Some(index));
            let more = match step {
                Some(&(_, _, node)) => seq.next_element_seed(Walk { picker, node })?.is_some(),
                None => seq.next_element::<IgnoredAny>()?.is_some(),
            };
            if !more {
                break;
            }
        }
        Ok(())
    }

    // A pointer leads on from here and the value has no parts: there is nothing to pick.
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

    #[test]
    fn the_first_of_equal_fields_counts() {
        assert_eq!(one(r#"{"a":1,"a":2}"#, "/a").as_deref(), Some("1"));
        assert_eq!(one(r#"{"a":null,"a":2}"#, "/a"), None);
        assert_eq!(one(r#"{"a":5,"a":{"b":2}}"#, "/a/b"), None);
        assert_eq!(one(r#"{"a":{"b":1},"a":{"b":2}}"#, "/a/b").as_deref(), Some("1"));
        assert_eq!(one(r#"{"\u0061":1}"#, "/a").as_deref(), Some("1"));
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
        assert_eq!((told.line, told.to_string().contains("line 2")), (2, true));
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
            prop_assert_eq!(told.is_ok(), serde_json::from_str::<IgnoredAny>(&text).is_ok());
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
