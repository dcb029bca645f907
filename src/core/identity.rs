//! What ID, key and partition a record has. The one answer: import, send and delivery all ask here, so that no way in
//! can call a record complete which the way out calls nameless. Pure; on the path of every record.
//!
//! | source | the part of the ID | missing where |
//! |---|---|---|
//! | `json:/POINTER` | the field's text: `1` and `"1"` are one ID, `1` and `1.0` are two | not there, `null`, blank; the value is not JSON |
//! | `header:NAME`, `key` | its bytes | not there, blank |
//! | `query:NAME` | the parameter's bytes, percent-decoded, `+` as a space: `%20` and `+` are one ID | not there, blank; the value is no URL, neither plain nor as a JSON string |
//! | `hash` | the hash of the value's bytes | never |
//! | `position` | there is no ID before the record has its place | – |
//!
//! One missing part makes the whole ID missing: an empty cell of a CSV file is not an ID, and its row is not the same
//! message as the next row without one. An import then gives the line an ID of its own ([`IMPORT_ID_HEADER`]).
//!
//! A field, header or parameter that is there twice is [`Ambiguous`]: which one counts differs from reader to reader.
//!
//! ```text
//! partition  the first eight bytes (LE) of blake3 over the key, mod the number of partitions; without a key over
//!            the ID's parts, each followed by a byte 0x1f (of `hash`: the value itself); without an ID any
//! ```
//! The recipe never changes: a message that comes again must come to the partition that remembers it. For that reason
//! an empty key counts here, although it orders nothing ([`Identified::order_key`]).
//!
//! [`IMPORT_ID_HEADER`]: super::record::IMPORT_ID_HEADER

use super::pointer::{Extracted, NotJson, PointerError, Pointers, Unreadable};
use super::readable_id;
use super::record::Headers;
use crate::config::{IdSource, KeySource};
use smallvec::SmallVec;
use std::borrow::Cow;

/// A record as far as its identity goes.
#[derive(Clone, Copy, Debug)]
pub struct Content<'a> {
    /// Its key, if it has one.
    pub key: Option<&'a [u8]>,
    /// Its value.
    pub value: &'a [u8],
    /// Its headers.
    pub headers: HeadersOf<'a>,
}

/// Headers in either form.
#[derive(Clone, Copy, Debug)]
pub enum HeadersOf<'a> {
    /// Of a record in a topic.
    Record(&'a Headers),
    /// Of a record on its way in.
    Pairs(&'a [(String, String)]),
}

/// What a record has twice that it must have once. The text names it, never a value (I9).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ambiguous {
    /// A field of the value, by its JSON pointer.
    #[error("the field `{0}` is there twice")]
    Field(String),
    /// A header.
    #[error("the header `{0}` is there twice")]
    Header(String),
    /// A parameter of the URL.
    #[error("the URL has the parameter `{0}` twice")]
    Parameter(String),
}

/// Parts of an ID.
pub type Parts<'a> = SmallVec<[Cow<'a, [u8]>; 4]>;

/// The ID that a record's content gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Id<'a> {
    /// These parts, none of them blank.
    Of(Parts<'a>),
    /// A part is missing.
    Missing,
    /// The position is (a part of) it.
    ByPosition,
}

/// What is known of a record by its content alone.
#[derive(Debug)]
pub struct Identified<'a> {
    /// Its ID.
    pub id: Id<'a>,
    /// Its key as it is in the record, perhaps blank.
    pub key: Option<Cow<'a, [u8]>>,
    /// The record's own key, where a pointer gives it ([`Recipe::keyed_by`]).
    pub own_key: Option<Cow<'a, [u8]>>,
    /// The values of the further pointers.
    pub more: SmallVec<[Option<Extracted<'a>>; 4]>,
    /// Why no pointer found anything: the value is not JSON.
    pub not_json: Option<NotJson>,
}

impl Identified<'_> {
    /// The key that orders; a blank one is none, as an empty cell of a CSV file is.
    pub fn order_key(&self) -> Option<&[u8]> {
        self.key.as_deref().filter(|key| !is_blank(key))
    }
}

/// How a topic's records are identified, compiled.
#[derive(Clone, Debug)]
pub struct Recipe {
    id: Vec<IdSource>,
    by_position: bool,
    /// Those of the ID's parts in their order, then of the key, of the record's own key, then the further ones.
    pointers: Pointers,
    key_is_field: bool,
    own_key_is_field: bool,
    more: usize,
}

impl Recipe {
    /// For these sources. `more` are further pointers to pick, `watched` fields that must not be there twice.
    ///
    /// # Errors
    /// An invalid pointer; a checked configuration has none.
    pub fn try_new(
        id: &[IdSource],
        key: &KeySource,
        more: &[&str],
        watched: &[&str],
    ) -> Result<Self, PointerError> {
        Self::compile(id, key, None, more, watched)
    }

    /// The same, for records whose own key is yet to be picked out of their value.
    ///
    /// # Errors
    /// As [`Recipe::try_new`].
    pub fn keyed_by(
        id: &[IdSource],
        key: &KeySource,
        own_key: &str,
        watched: &[&str],
    ) -> Result<Self, PointerError> {
        Self::compile(id, key, Some(own_key), &[], watched)
    }

    fn compile(
        id: &[IdSource],
        key: &KeySource,
        own_key: Option<&str>,
        more: &[&str],
        watched: &[&str],
    ) -> Result<Self, PointerError> {
        let mut pointers: Vec<&str> = Vec::new();
        pointers.extend(id.iter().filter_map(|source| match source {
            IdSource::Json(pointer) => Some(pointer.as_str()),
            _ => None,
        }));
        if let KeySource::Json(pointer) = key {
            pointers.push(pointer);
        }
        pointers.extend(own_key);
        pointers.extend(more);
        Ok(Self {
            id: id.to_vec(),
            by_position: id.contains(&IdSource::Position),
            pointers: Pointers::with_watched(&pointers, watched)?,
            key_is_field: matches!(key, KeySource::Json(_)),
            own_key_is_field: own_key.is_some(),
            more: more.len(),
        })
    }

    /// Whether values are read as JSON at all.
    pub fn reads_json(&self) -> bool {
        !self.pointers.is_empty()
    }

    /// Whether the position is (a part of) the ID: no content gives one then, and none is missing.
    pub fn goes_by_position(&self) -> bool {
        self.by_position
    }

    /// What a record is. A value that is not JSON has no fields.
    ///
    /// # Errors
    /// [`Ambiguous`].
    pub fn identify<'a>(&self, record: Content<'a>) -> Result<Identified<'a>, Ambiguous> {
        let mut found: SmallVec<[Option<Extracted<'a>>; 4]> = SmallVec::from_elem(None, self.pointers.len());
        let mut not_json = None;
        if self.reads_json() {
            match self.pointers.extract(record.value, &mut found) {
                Ok(()) => {}
                Err(Unreadable::Twice(field)) => return Err(Ambiguous::Field(field)),
                Err(Unreadable::NotJson(error)) => {
                    found.fill(None);
                    not_json = Some(error);
                }
            }
        }
        let more = match self.more {
            0 => SmallVec::new(),
            more => found.drain(found.len() - more..).collect(),
        };
        let own_key = match self.own_key_is_field {
            true => found.pop().flatten().map(bytes_of),
            false => None,
        };
        let record_key = || own_key.clone().or_else(|| record.key.map(Cow::Borrowed));
        let key = match self.key_is_field {
            true => found.pop().flatten().map(bytes_of),
            false => record_key(),
        };
        let id = self.id(&record, &mut found, record_key)?;
        Ok(Identified {
            id,
            key,
            own_key,
            more,
            not_json,
        })
    }

    fn id<'a>(
        &self,
        record: &Content<'a>,
        fields: &mut [Option<Extracted<'a>>],
        record_key: impl Fn() -> Option<Cow<'a, [u8]>>,
    ) -> Result<Id<'a>, Ambiguous> {
        if self.by_position {
            return Ok(Id::ByPosition);
        }
        let mut fields = fields.iter_mut();
        let mut parts = Parts::new();
        for source in &self.id {
            let part = match source {
                IdSource::Header(name) => header(record.headers, name)?.map(Cow::Borrowed),
                IdSource::Json(_) => fields.next().and_then(Option::take).map(bytes_of),
                IdSource::Key => record_key(),
                IdSource::Hash => Some(Cow::Owned(readable_id::of_value(record.value).into_bytes())),
                IdSource::Query(name) => parameter(record.value, name)?,
                IdSource::Position => None,
            };
            match part {
                Some(part) if !is_blank(&part) => parts.push(part),
                _ => return Ok(Id::Missing),
            }
        }
        Ok(match parts.is_empty() {
            true => Id::Missing,
            false => Id::Of(parts),
        })
    }

    /// The partition of a record among so many; none: any will do.
    pub fn partition(&self, found: &Identified<'_>, value: &[u8], partitions: u32) -> Option<u32> {
        let hash = match (&found.key, &found.id) {
            (Some(key), _) => blake3::hash(key),
            (None, Id::Of(parts)) => {
                let mut hasher = blake3::Hasher::new();
                for (part, source) in parts.iter().zip(&self.id) {
                    hasher.update(match source {
                        IdSource::Hash => value,
                        _ => part,
                    });
                    hasher.update(&[0x1f]);
                }
                hasher.finalize()
            }
            (None, _) => return None,
        };
        let mut head = [0; 8];
        head.copy_from_slice(&hash.as_bytes()[..8]);
        Some((u64::from_le_bytes(head) % u64::from(partitions.max(1))) as u32)
    }
}

/// Whether a part or key says nothing.
fn is_blank(text: &[u8]) -> bool {
    text.iter().all(u8::is_ascii_whitespace)
}

fn bytes_of(picked: Extracted<'_>) -> Cow<'_, [u8]> {
    match picked.text {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    }
}

fn header<'a>(headers: HeadersOf<'a>, name: &str) -> Result<Option<&'a [u8]>, Ambiguous> {
    let is = |n: &[u8]| n.eq_ignore_ascii_case(name.as_bytes());
    let (first, second) = match headers {
        HeadersOf::Record(headers) => {
            let mut found = headers.iter().filter(|(n, _)| is(n)).map(|(_, v)| v);
            (found.next(), found.next())
        }
        HeadersOf::Pairs(pairs) => {
            let mut found = pairs.iter().filter(|(n, _)| is(n.as_bytes()));
            let mut next = || found.next().map(|(_, v)| v.as_bytes());
            (next(), next())
        }
    };
    match second {
        Some(_) => Err(Ambiguous::Header(name.to_owned())),
        None => Ok(first),
    }
}

/// A parameter of the URL that a value is: as it stands, or as a JSON string. In bytes: what is not UTF-8 when it is
/// decoded must not become the same replacement character as something else.
fn parameter<'a>(value: &[u8], name: &str) -> Result<Option<Cow<'a, [u8]>>, Ambiguous> {
    let value = value.trim_ascii();
    let unquoted: String;
    let url = match value.first() {
        Some(b'"') => match serde_json::from_slice::<String>(value) {
            Ok(text) => {
                unquoted = text;
                unquoted.trim().as_bytes()
            }
            Err(_) => return Ok(None),
        },
        _ => value,
    };
    let has_scheme = memchr::memchr(b':', url).is_some_and(|end| {
        url[0].is_ascii_alphabetic()
            && url[..end]
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
    });
    if !has_scheme || std::str::from_utf8(url).is_err() {
        return Ok(None);
    }
    let url = &url[..memchr::memchr(b'#', url).unwrap_or(url.len())];
    let Some(query) = memchr::memchr(b'?', url).map(|at| &url[at + 1..]) else {
        return Ok(None);
    };
    let mut found = None;
    for pair in query.split(|b| *b == b'&').filter(|pair| !pair.is_empty()) {
        let (n, v) = match memchr::memchr(b'=', pair) {
            Some(at) => (&pair[..at], &pair[at + 1..]),
            None => (pair, &[][..]),
        };
        if decoded(n) == name.as_bytes() {
            if found.is_some() {
                return Err(Ambiguous::Parameter(name.to_owned()));
            }
            found = Some(Cow::Owned(decoded(v)));
        }
    }
    Ok(found)
}

/// A name or value of a URL's query, decoded as forms are.
fn decoded(text: &[u8]) -> Vec<u8> {
    let spaced: Vec<u8> = text.iter().map(|b| if *b == b'+' { b' ' } else { *b }).collect();
    percent_encoding::percent_decode(&spaced).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(id: &[IdSource], key: KeySource) -> Recipe {
        Recipe::try_new(id, &key, &[], &[]).expect("pointers")
    }

    fn content(value: &[u8]) -> Content<'_> {
        Content {
            key: None,
            value,
            headers: HeadersOf::Pairs(&[]),
        }
    }

    fn id_of(recipe: &Recipe, value: &[u8]) -> Option<Vec<Vec<u8>>> {
        match recipe.identify(content(value)).expect("nothing twice").id {
            Id::Of(parts) => Some(parts.iter().map(|p| p.to_vec()).collect()),
            Id::Missing => None,
            Id::ByPosition => panic!(),
        }
    }

    fn json(pointer: &str) -> IdSource {
        IdSource::Json(pointer.into())
    }

    /// An empty cell, null and a missing field are the same: no ID.
    #[test]
    fn an_empty_part_is_a_missing_one() {
        let one = recipe(&[json("/id")], KeySource::Record);
        let joined = recipe(&[json("/id"), json("/b")], KeySource::Record);
        for missing in [
            r#"{"id":""}"#,
            r#"{"id":null}"#,
            "{}",
            r#"{"id":" \t"}"#,
            "not json",
        ] {
            assert_eq!(id_of(&one, missing.as_bytes()), None, "{missing}");
        }
        for missing in [r#"{"id":"x","b":""}"#, r#"{"id":"x"}"#, r#"{"id":"","b":"x"}"#] {
            assert_eq!(id_of(&joined, missing.as_bytes()), None, "{missing}");
        }
        for (there, text) in [
            (r#"{"id":0}"#, "0"),
            (r#"{"id":false}"#, "false"),
            (r#"{"id":" x "}"#, " x "),
            (r#"{"id":[1]}"#, "[1]"),
        ] {
            assert_eq!(id_of(&one, there.as_bytes()), Some(vec![text.into()]), "{there}");
        }
        for source in [IdSource::Key, IdSource::Header("x-id".into())] {
            let recipe = recipe(&[source], KeySource::Record);
            for text in ["", " "] {
                let pairs = [("X-Id".to_owned(), text.to_owned())];
                let record = Content {
                    key: Some(text.as_bytes()),
                    value: b"{}",
                    headers: HeadersOf::Pairs(&pairs),
                };
                assert_eq!(recipe.identify(record).expect("once").id, Id::Missing);
            }
        }
    }

    /// A blank key orders nothing, but the record stays in the partition that it always went to.
    #[test]
    fn a_blank_key_is_no_key_but_keeps_its_partition() {
        let recipe = recipe(&[json("/id")], KeySource::Json("/user".into()));
        let place = |value: &str| {
            let found = recipe.identify(content(value.as_bytes())).expect("once");
            (
                found.order_key().map(<[u8]>::to_vec),
                recipe.partition(&found, value.as_bytes(), 1_000),
            )
        };
        let head = u64::from_le_bytes(blake3::hash(b"").as_bytes()[..8].try_into().expect("eight"));
        assert_eq!(
            place(r#"{"id":1,"user":""}"#),
            (None, Some((head % 1_000) as u32))
        );
        assert_eq!(place(r#"{"id":1,"user":"u"}"#).0, Some(b"u".to_vec()));
        assert_eq!(
            place(r#"{"id":1,"user":null}"#),
            (None, place(r#"{"id":1}"#).1),
            "placed by the ID"
        );
    }

    #[test]
    fn numbers_and_texts_are_their_digits() {
        let recipe = recipe(&[json("/n")], KeySource::Record);
        let ids: std::collections::BTreeSet<_> = [
            "123456789012345678901234567890",
            "123456789012345678901234567891",
            "19.90",
            "19.9",
            "1e2",
            "1E2",
            "100",
            "100.0",
            "-0",
            "0",
            "1e400",
            "18446744073709551616",
        ]
        .iter()
        .map(|n| id_of(&recipe, format!(r#"{{"n":{n},"x":1e999}}"#).as_bytes()))
        .collect();
        assert_eq!(ids.len(), 12);
        assert_eq!(id_of(&recipe, br#"{"n":1}"#), id_of(&recipe, br#"{"n":"1"}"#));
    }

    #[test]
    fn a_query_parameter_is_bytes() {
        let recipe = recipe(&[IdSource::Query("n".into())], KeySource::Record);
        let id = |url: &str| id_of(&recipe, url.as_bytes());
        let different = [
            "http://h/s?n=M%FCller",
            "http://h/s?n=M%F6ller",
            "http://h/s?n=M%C3%BCller",
            "http://h/s?n=M%EF%BF%BDller",
            "http://h/s?n=%00",
            "http://h/s?n=%zz",
            "http://h/s?n=1;n=2",
        ];
        let ids: std::collections::BTreeSet<_> = different.iter().map(|u| id(u)).collect();
        assert_eq!(ids.len(), different.len());
        for (a, b) in [
            ("http://h/s?n=a+b", "HTTPS://h/?x=1&n=a%20b#n=c"),
            ("http://h/s?n=abc==", "http://h/s?n=abc%3D%3D"),
            // A URL as a JSON string is the same URL.
            ("http://h/s?a=1&n=6", r#""http://h/s?a=1\u0026n=6""#),
            ("http://h/s?n=5", r#" "http:\/\/h\/s?n=5" "#),
            ("http://h/s?%6E=5", "http://h/s?n=5"),
        ] {
            assert!(id(a).is_some() && id(a) == id(b), "{a} {b}");
        }
        for missing in [
            "http://h/s?n=",
            "http://h/s?n",
            "http://h/s?N=1",
            "http://h/s",
            "/s?n=1",
            "how? n=1",
            r#"{"u":"http://h/s?n=1"}"#,
            "",
        ] {
            assert_eq!(id(missing), None, "{missing}");
        }
    }

    #[test]
    fn what_is_there_twice_is_refused() {
        let fails = |source: IdSource, key: KeySource, value: &str, pairs: &[(String, String)]| {
            recipe(&[source], key)
                .identify(Content {
                    key: None,
                    value: value.as_bytes(),
                    headers: HeadersOf::Pairs(pairs),
                })
                .unwrap_err()
        };
        let pair = |n: &str| (n.to_owned(), "1".to_owned());
        let field = || Ambiguous::Field("/a".into());
        let twice = r#"{"a":{"id":"A","k":"k1"},"a":{"id":"B","k":"k2"}}"#;
        assert_eq!(fails(json("/a/id"), KeySource::Record, twice, &[]), field());
        assert_eq!(
            fails(IdSource::Hash, KeySource::Json("/a/k".into()), twice, &[]),
            field()
        );
        assert_eq!(
            fails(
                IdSource::Header("x-id".into()),
                KeySource::Record,
                "{}",
                &[pair("X-ID"), pair("x-id")]
            ),
            Ambiguous::Header("x-id".into())
        );
        assert_eq!(
            fails(
                IdSource::Query("id".into()),
                KeySource::Record,
                "http://h/?id=&id=5",
                &[]
            ),
            Ambiguous::Parameter("id".into())
        );
        let watched = Recipe::try_new(&[IdSource::Hash], &KeySource::Record, &[], &["/a"]).expect("pointers");
        assert_eq!(watched.identify(content(twice.as_bytes())).unwrap_err(), field());
        assert!(watched.reads_json());
        assert!(watched.identify(content(b"plain text")).is_ok());
    }

    /// Whether it is on its way in or in the topic, a record is the same.
    #[test]
    fn headers_count_in_either_form() {
        let recipe = recipe(&[IdSource::Header("x-id".into())], KeySource::Record);
        let pairs = [("X-Id".to_owned(), "7".to_owned())];
        let encoded = Headers::encode([("X-Id", &b"7"[..])]);
        let id = |headers| {
            recipe
                .identify(Content {
                    key: None,
                    value: b"",
                    headers,
                })
                .expect("once")
                .id
        };
        assert_eq!(id(HeadersOf::Pairs(&pairs)), id(HeadersOf::Record(&encoded)));
    }
}
