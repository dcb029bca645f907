//! The forms of values in a file: each is read, printed and described in one place.
//!
//! A field of a section names its kind, as `#[serde(with = "As::<Time>")]`. serde reads and prints by it, and the
//! schema, and with it the manual, takes its description from it. What a kind says of a value that it refuses begins
//! with what it expected; a hint may stand on a second line.

use super::model::{DeliverConfig, DoubtConfig, LimitConfig, LimitRef, Rate};
use super::read::{Error, FORMS};
use super::{mask, template, units};
use crate::core::expr::{Expr, PathExpr, Vocabulary};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::BorrowedStrDeserializer;
use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub(super) const KIB: u64 = 1 << 10;
pub(super) const MIB: u64 = 1 << 20;

/// A form of values of type `T`.
pub(super) trait Kind<T>: Described {
    /// Reads a value.
    fn read(value: &Value) -> Result<T, String>;
    /// Prints it as [`Kind::read`] takes it.
    fn print(value: &T) -> Value;
}

/// What schema and manual say of a kind.
pub(super) trait Described {
    /// A value of this kind: what a [hole](super::read) reads as.
    fn example() -> Value;
    /// Its schema. `format` is the word that the manual has for it; `x-takes` a phrase, where several forms are taken.
    fn schema() -> Schema;
}

/// A kind for serde and schema.
pub(super) struct As<K>(PhantomData<K>);

impl<K> As<K> {
    pub(super) fn deserialize<'de, T, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error>
    where
        K: Kind<T>,
    {
        let value = match Value::deserialize(deserializer)? {
            Value::Null => K::example(),
            value => value,
        };
        K::read(&value).map_err(de::Error::custom)
    }

    pub(super) fn serialize<T, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error>
    where
        K: Kind<T>,
    {
        K::print(value).serialize(serializer)
    }
}

/// The schema of a field whose `with` names this type.
macro_rules! schema_of {
    ([$($generic:ident: $bound:ident)?] $type:ty, |$generator:pat_param| $schema:expr) => {
        impl$(<$generic: $bound>)? JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                std::any::type_name::<Self>().into()
            }
            fn json_schema($generator: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    };
}

schema_of!([K: Described] As<K>, |_| K::schema());

/// A kind whose values may be left out.
pub(super) struct Maybe<K>(PhantomData<K>);

impl<K: Described> Described for Maybe<K> {
    fn example() -> Value {
        Value::Null
    }
    fn schema() -> Schema {
        K::schema()
    }
}

impl<K: Kind<T>, T> Kind<Option<T>> for Maybe<K> {
    fn read(value: &Value) -> Result<Option<T>, String> {
        if value.is_null() {
            Ok(None)
        } else {
            K::read(value).map(Some)
        }
    }
    fn print(value: &Option<T>) -> Value {
        value.as_ref().map_or(Value::Null, K::print)
    }
}

/// A list of values; a single one is a list of one, and prints so where it is `ALONE`. At least `LEAST`.
pub(super) struct List<K, const LEAST: usize = 0, const ALONE: bool = false>(PhantomData<K>);

impl<K: Described, const LEAST: usize, const ALONE: bool> List<K, LEAST, ALONE> {
    /// What one of its values is called.
    fn word() -> String {
        let item = K::schema();
        let word = item.get("x-takes").or_else(|| item.get("format"));
        word.and_then(Value::as_str).unwrap_or("text").to_owned()
    }
}

impl<K: Described, const LEAST: usize, const ALONE: bool> Described for List<K, LEAST, ALONE> {
    fn example() -> Value {
        Value::Array(vec![K::example()])
    }
    fn schema() -> Schema {
        let (item, word) = (K::schema(), Self::word());
        let takes = if ALONE {
            format!("{word}, or list of {word}s")
        } else {
            format!("list of {word}s")
        };
        json_schema!({
            "anyOf": [{ "type": "array", "items": item, "minItems": LEAST }, item],
            "x-takes": takes,
        })
    }
}

impl<K: Kind<T>, T, const LEAST: usize, const ALONE: bool> Kind<Vec<T>> for List<K, LEAST, ALONE> {
    fn read(value: &Value) -> Result<Vec<T>, String> {
        let (word, example) = (Self::word(), Self::example());
        let items = match value {
            Value::Array(items) if items.iter().all(Value::is_string) => items.as_slice(),
            Value::String(_) => std::slice::from_ref(value),
            _ => return Err(format!("expected a list of {word}s, as {example}")),
        };
        if items.len() < LEAST {
            return Err(format!("expected at least one {word}, as {example}"));
        }
        // All that are wrong are told, by their texts.
        let mut values = Vec::with_capacity(items.len());
        let mut wrong = Vec::new();
        for item in items {
            match K::read(item) {
                Ok(value) => values.push(value),
                Err(why) if items.len() == 1 => wrong.push(why),
                Err(why) => wrong.push(format!(
                    "`{}`: {why}",
                    mask::url(item.as_str().unwrap_or_default())
                )),
            }
        }
        if wrong.is_empty() {
            Ok(values)
        } else {
            Err(wrong.join("; "))
        }
    }

    fn print(values: &Vec<T>) -> Value {
        match values.as_slice() {
            [one] if ALONE => K::print(one),
            many => many.iter().map(K::print).collect(),
        }
    }
}

/// A whole number from `LEAST` to `MOST`.
pub(super) struct Count<const LEAST: u32 = 0, const MOST: u32 = { u32::MAX }>;

impl<const LEAST: u32, const MOST: u32> Described for Count<LEAST, MOST> {
    fn example() -> Value {
        LEAST.into()
    }
    fn schema() -> Schema {
        json_schema!({ "type": "integer", "minimum": LEAST })
    }
}

impl<T: TryFrom<u64> + TryInto<u64> + Copy, const LEAST: u32, const MOST: u32> Kind<T>
    for Count<LEAST, MOST>
{
    fn read(value: &Value) -> Result<T, String> {
        let expected = || format!("expected a whole number of at least {LEAST}, without quotes");
        let n = value
            .as_u64()
            .filter(|n| *n >= u64::from(LEAST))
            .ok_or_else(expected)?;
        if MOST < u32::MAX && n > u64::from(MOST) {
            return Err(format!("expected at most {MOST}"));
        }
        T::try_from(n).map_err(|_| "expected a smaller number".into())
    }
    fn print(value: &T) -> Value {
        (*value).try_into().unwrap_or(u64::MAX).into()
    }
}

/// A kind that is a text in the file.
pub(super) trait Text {
    /// The word that the manual has for it.
    const FORMAT: &'static str = "text";
    /// A phrase instead, for what a word does not say.
    const TAKES: Option<&'static str> = None;
    /// How it is masked where it is shown: as `url` or `body`.
    const MASK: Option<&'static str> = None;
    /// A text of this kind.
    const EXAMPLE: &'static str;
    /// What is expected in place of what is no text.
    const EXPECTED: &'static str = "a text in quotes";
    /// What it is in the code.
    type Of;
    /// Reads it.
    fn parse(text: &str) -> Result<Self::Of, String>;
    /// Prints it.
    fn text(value: &Self::Of) -> String;
}

impl<K: Text> Described for K {
    fn example() -> Value {
        K::EXAMPLE.into()
    }
    fn schema() -> Schema {
        let mut schema = json_schema!({ "type": "string" });
        if K::FORMAT != "text" {
            schema.insert("format".to_owned(), K::FORMAT.into());
        }
        for (name, value) in [("x-takes", K::TAKES), ("x-mask", K::MASK)] {
            if let Some(value) = value {
                schema.insert(name.to_owned(), value.into());
            }
        }
        schema
    }
}

impl<K: Text> Kind<K::Of> for K {
    fn read(value: &Value) -> Result<K::Of, String> {
        K::parse(
            value
                .as_str()
                .ok_or_else(|| format!("expected {}", K::EXPECTED))?,
        )
    }
    fn print(value: &K::Of) -> Value {
        K::text(value).into()
    }
}

/// Kinds that are texts in the code, too: name, word of the manual, mask, example, and what is wrong with a text.
macro_rules! texts {
    ($($(#[$doc:meta])* $name:ident: $format:literal, $mask:expr, $example:literal, $check:expr;)*) => {$(
        $(#[$doc])*
        pub(super) struct $name;

        impl Text for $name {
            const FORMAT: &'static str = $format;
            const MASK: Option<&'static str> = $mask;
            const EXAMPLE: &'static str = $example;
            type Of = String;
            fn parse(text: &str) -> Result<String, String> {
                let check: fn(&str) -> Result<(), String> = $check;
                check(text).map(|()| text.to_owned())
            }
            fn text(value: &String) -> String {
                value.clone()
            }
        }
    )*};
}

texts! {
    /// Any text.
    Any: "text", None, "text", |_| Ok(());
    /// A text that is not empty.
    Filled: "text", None, "text", filled;
    /// A filter of log lines.
    LogFilter: "text", None, "info", log_filter;
    /// A request method.
    Method: "text", None, "POST", method;
    /// A template that compiles and knows its names.
    Template: "template", Some("body"), "{{ value }}", template::check;
    /// The template of an address.
    Url: "template", Some("url"), "http://127.0.0.1/", url_template;
    /// The address of a proxy.
    Proxy: "text", Some("url"), "http://127.0.0.1:3128", proxy;
    /// Scheme, host and port.
    WebOrigin: "origin", None, "https://eu.api.example", web_origin;
    /// A condition over an answer, which compiles.
    OverAnswer: "expression", None, "status == 200", |text| condition(text, Vocabulary::Answer);
    /// A condition over a record, which compiles.
    OverRecord: "expression", None, "partition == 0", |text| condition(text, Vocabulary::Record);
    /// Where a reason stands in an answer, or a text in quotes.
    Reason: "text", None, "body.message", reason;
}

fn filled(text: &str) -> Result<(), String> {
    match text.trim() {
        "" => Err("expected a text that is not empty".into()),
        _ => Ok(()),
    }
}

fn log_filter(text: &str) -> Result<(), String> {
    filled(text)?;
    match units::parse_log_filter(text) {
        Ok(_) => Ok(()),
        Err(why) => Err(format!(
            "expected a log filter, as info or sluicegate=debug,warn: {why}"
        )),
    }
}

fn method(text: &str) -> Result<(), String> {
    filled(text)?;
    let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    if http::Method::from_bytes(text.as_bytes()).is_err() {
        return Err("expected a request method, as POST".into());
    }
    // Methods are case-sensitive on the wire: `post` would be another one.
    match known.iter().find(|method| method.eq_ignore_ascii_case(text)) {
        Some(method) if *method != text => Err(format!("expected \"{method}\": methods are case-sensitive")),
        _ => Ok(()),
    }
}

fn url_template(text: &str) -> Result<(), String> {
    template::check(text)?;
    let start = text.trim_start();
    let good = if mask::is_template(start) {
        let head = start.split("{{").next().unwrap_or_default();
        let schemes = ["http://", "https://"];
        head.is_empty() || head.contains("{%") || schemes.iter().any(|scheme| head.starts_with(scheme))
    } else if text.contains(|c: char| c.is_control() || c.is_whitespace()) {
        // The parser would drop line ends and encode spaces in silence.
        return Err("expected an address without spaces and line ends".into());
    } else {
        is_url(start, &["http", "https"], url::Url::has_host)
    };
    good.then_some(())
        .ok_or_else(|| "expected an address that begins with http:// or https://".into())
}

fn is_url(text: &str, schemes: &[&str], is_good: impl Fn(&url::Url) -> bool) -> bool {
    url::Url::parse(text).is_ok_and(|url| schemes.contains(&url.scheme()) && is_good(&url))
}

fn proxy(text: &str) -> Result<(), String> {
    let good = is_url(text, &["http", "https", "socks5", "socks5h"], |_| true);
    let form = "expected the address of a proxy, as http://127.0.0.1:3128 or socks5://127.0.0.1:1080";
    good.then_some(()).ok_or_else(|| form.into())
}

fn web_origin(text: &str) -> Result<(), String> {
    let good = is_url(text, &["http", "https"], |url| {
        url.has_host() && url.path() == "/" && url.query().is_none() && url.username().is_empty()
    });
    let form = "expected a list of origins: scheme, host and port, without a path, as https://eu.api.example";
    good.then_some(()).ok_or_else(|| form.into())
}

fn condition(text: &str, about: Vocabulary) -> Result<(), String> {
    filled(text)?;
    Expr::compile(text, about)
        .map(drop)
        .map_err(|e| format!("not a condition: {e}"))
}

fn reason(text: &str) -> Result<(), String> {
    filled(text)?;
    PathExpr::compile(text, Vocabulary::Answer)
        .map(drop)
        .map_err(|e| format!("not a path: {e}"))
}

/// A file or folder, from the working directory if relative.
pub(super) struct File;

impl Text for File {
    const FORMAT: &'static str = "path";
    const EXAMPLE: &'static str = "file";
    type Of = PathBuf;
    fn parse(text: &str) -> Result<PathBuf, String> {
        filled(text).map(|()| text.into())
    }
    fn text(value: &PathBuf) -> String {
        value.display().to_string()
    }
}

/// A duration with its unit; above zero unless `ZERO` is taken.
pub(super) struct Time<const ZERO: bool = false>;

impl<const ZERO: bool> Text for Time<ZERO> {
    const FORMAT: &'static str = "duration";
    const EXAMPLE: &'static str = "1s";
    const EXPECTED: &'static str = "a duration in quotes, with its unit: \"200ms\", \"2s\", \"5m\", \"24h\"";
    type Of = Duration;
    fn parse(text: &str) -> Result<Duration, String> {
        match units::parse_duration(text) {
            Ok(Duration::ZERO) if !ZERO => Err("expected more than zero".into()),
            parsed => parsed.map_err(|e| e.to_string()),
        }
    }
    fn text(value: &Duration) -> String {
        units::duration(*value)
    }
}

/// A size in bytes with its unit, at least this.
pub(super) struct Size<const LEAST: u64 = 0>;

impl<const LEAST: u64> Described for Size<LEAST> {
    fn example() -> Value {
        units::size(LEAST.max(MIB)).into()
    }
    fn schema() -> Schema {
        json_schema!({ "type": "string", "format": "size" })
    }
}

impl<T: TryFrom<u64> + TryInto<u64> + Copy, const LEAST: u64> Kind<T> for Size<LEAST> {
    fn read(value: &Value) -> Result<T, String> {
        let text = value
            .as_str()
            .ok_or("expected a size in quotes, with its unit: \"512MiB\", \"64KiB\", \"10KB\"")?;
        let bytes = units::parse_size(text).map_err(|e| e.to_string())?;
        if bytes < LEAST {
            return Err(format!("expected at least {}", units::size(LEAST)));
        }
        T::try_from(bytes).map_err(|_| "expected a smaller size".into())
    }
    fn print(value: &T) -> Value {
        units::size((*value).try_into().unwrap_or(u64::MAX)).into()
    }
}

/// `HOST:PORT` with a numeric host.
pub(super) struct Address;

impl Text for Address {
    const FORMAT: &'static str = "address:port";
    const EXAMPLE: &'static str = "127.0.0.1:7070";
    type Of = SocketAddr;
    fn parse(text: &str) -> Result<SocketAddr, String> {
        text.replace("localhost:", "127.0.0.1:")
            .parse()
            .map_err(|_| "expected an address with a port, as 127.0.0.1:7070 or [::1]:7070".into())
    }
    fn text(value: &SocketAddr) -> String {
        value.to_string()
    }
}

/// `json:/POINTER`, kept without its prefix.
pub(super) struct Pointer;

impl Text for Pointer {
    const TAKES: Option<&'static str> = Some("`json:/POINTER`");
    const EXAMPLE: &'static str = "json:/field";
    type Of = String;
    fn parse(text: &str) -> Result<String, String> {
        let form =
            "expected json:/POINTER, as json:/user or json:/order/id (`~1` for a slash, `~0` for a tilde)";
        let pointer = text.strip_prefix("json:").ok_or(form)?;
        let escapes = pointer
            .split('~')
            .skip(1)
            .all(|rest| rest.starts_with(['0', '1']));
        if (pointer.is_empty() || pointer.starts_with('/')) && escapes {
            Ok(pointer.to_owned())
        } else {
            Err(form.into())
        }
    }
    fn text(value: &String) -> String {
        format!("json:{value}")
    }
}

/// A regular expression over whole names.
pub(super) struct Pattern;

impl Text for Pattern {
    const TAKES: Option<&'static str> = Some("regular expression");
    const EXAMPLE: &'static str = "eu\\..*";
    type Of = String;
    fn parse(text: &str) -> Result<String, String> {
        filled(text)?;
        super::topic::whole_name(text).map_err(|_| "expected a regular expression, as eu\\\\..*")?;
        Ok(text.to_owned())
    }
    fn text(value: &String) -> String {
        value.clone()
    }
}

/// Names and templates of headers.
pub(super) struct Headers;

impl Headers {
    pub(super) fn serialize<S: Serializer>(
        headers: &[(String, String)],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_map(headers.iter().map(|(name, value)| (name, value)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<(String, String)>, D::Error> {
        deserializer.deserialize_map(Self)
    }
}

impl<'de> Visitor<'de> for Headers {
    type Value = Vec<(String, String)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table, as { x-api-version = \"3\" }")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut headers: Vec<(String, String)> = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            let twice = headers.iter().any(|(other, _)| other.eq_ignore_ascii_case(&name));
            let value = map.next_value_seed(HeaderValue { name: &name, twice })?;
            headers.push((name, value));
        }
        Ok(headers)
    }
}

struct HeaderValue<'a> {
    name: &'a str,
    twice: bool,
}

impl<'de> DeserializeSeed<'de> for HeaderValue<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        let client = ["content-length", "transfer-encoding", "connection", "host"];
        let wrong = if http::HeaderName::from_bytes(self.name.as_bytes()).is_err() {
            "not a header name"
        } else if self.twice {
            "the same header stands here twice, in different case"
        } else if client.contains(&self.name.to_ascii_lowercase().as_str()) {
            "this header is set by the client itself\ntake it out"
        } else {
            let value: String = As::<Template>::deserialize(deserializer)?;
            if mask::is_template(&value) || http::HeaderValue::from_str(&value).is_ok() {
                return Ok(value);
            }
            "not a header value: it holds a control character\ntake it out"
        };
        Err(de::Error::custom(wrong))
    }
}

schema_of!([] Headers, |_| json_schema!({
    "type": "object",
    "additionalProperties": { "type": "string" },
    "x-takes": "table of templates",
    "x-mask": "header",
}));

/// A type whose table has a text as its short form. Its derived reading and printing is `remote`, so that it can be
/// wrapped here.
pub(super) trait Short: Sized {
    /// All forms, for a finding.
    const FORMS: &'static str;
    /// Reads the short form.
    fn short(text: &str) -> Result<Self, String>;
}

/// What serde needs of [`Short`] types.
macro_rules! short {
    ($($type:ident)*) => {$(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Forms;

                impl<'de> Visitor<'de> for Forms {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($type::FORMS)
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        $type::short(text).map_err(E::custom)
                    }
                    fn visit_newtype_struct<D: Deserializer<'de>>(self, table: D) -> Result<$type, D::Error> {
                        $type::deserialize(table)
                    }
                }
                deserializer.deserialize_newtype_struct(FORMS, Forms)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                $type::serialize(self, serializer)
            }
        }
    )*};
}

short! { DeliverConfig DoubtConfig }

/// Says in the schema of a table that its short form is taken, too.
pub(super) fn or_short(table: &mut Schema, short: Schema) {
    *table = json_schema!({ "anyOf": [short, std::mem::take(table)] });
}

/// The budgets of a partner: a name, a list of names and rates, or a table.
pub(super) struct Limits;

const LIMITS: &str = "the name of a [limits.NAME], a list of names or rates, or a table\nas limits = \"acme-account\", limits = [\"500/s\", \"20000/min\"] or limits = { rates = [\"500/s\"] }";

impl Limits {
    pub(super) fn serialize<S: Serializer>(limits: &[LimitRef], serializer: S) -> Result<S::Ok, S::Error> {
        match limits {
            [LimitRef::Named(name)] => name.serialize(serializer),
            [LimitRef::Inline(limit)] => limit.serialize(serializer),
            // A list cannot hold a table, and none of several is ever read of one.
            many => serializer.collect_seq(many.iter().flat_map(|limit| match limit {
                LimitRef::Named(name) => vec![name.clone()],
                LimitRef::Inline(own) => own.rates.iter().map(Rate::text).collect(),
            })),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<LimitRef>, D::Error> {
        deserializer.deserialize_newtype_struct(FORMS, Self)
    }

    fn of_texts<E: de::Error>(texts: &[String]) -> Result<Vec<LimitRef>, E> {
        let mut limits = Vec::new();
        let mut own = LimitConfig::default();
        let mut wrong = Vec::new();
        for text in texts {
            // No name can hold a slash, and every rate does.
            if !text.contains('/') {
                limits.push(LimitRef::Named(text.clone()));
                continue;
            }
            match units::parse_rate(text) {
                Ok(rate) => own.rates.push(rate),
                Err(e) => wrong.push(format!("`{text}`: {e}")),
            }
        }
        if !wrong.is_empty() {
            return Err(E::custom(wrong.join("; ")));
        }
        if !own.rates.is_empty() {
            limits.push(LimitRef::Inline(own));
        }
        Ok(limits)
    }
}

impl<'de> Visitor<'de> for Limits {
    type Value = Vec<LimitRef>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(LIMITS)
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<LimitRef>, E> {
        Self::of_texts(&[text.to_owned()])
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<LimitRef>, A::Error> {
        let mut texts = Vec::new();
        while let Some(item) = seq.next_element::<Value>()? {
            match item {
                Value::String(text) => texts.push(text),
                _ => return Err(de::Error::custom(format!("expected {LIMITS}"))),
            }
        }
        Self::of_texts(&texts)
    }
    fn visit_newtype_struct<D: Deserializer<'de>>(self, table: D) -> Result<Vec<LimitRef>, D::Error> {
        LimitConfig::deserialize(table).map(|limit| vec![LimitRef::Inline(limit)])
    }
}

schema_of!([] Limits, |generator| json_schema!({
    "anyOf": [
        { "type": "string" },
        { "type": "array", "items": { "type": "string" } },
        LimitConfig::json_schema(generator),
    ],
    "x-takes": "name, list of names or rates, or table",
    "x-leaf": "limits.NAME",
}));

/// Sections by name. One that is wrong does not keep the others from being read.
pub(super) fn named<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, T>, D::Error> {
    deserializer.deserialize_map(Named(PhantomData))
}

struct Named<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Named<T> {
    type Value = BTreeMap<String, T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut sections = BTreeMap::new();
        let mut failed = None;
        loop {
            match map.next_entry::<Name, T>() {
                Ok(Some((Name(name), section))) => drop(sections.insert(name, section)),
                Ok(None) => break,
                Err(e) => failed = Some(e),
            }
        }
        failed.map_or(Ok(sections), Err)
    }
}

/// Name of a section: no separator of IDs, paths or topic names can be part of it.
struct Name(String);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if !name.is_empty() && name.len() <= 200 && name.chars().all(good) && name != "." && name != ".." {
            return Ok(Self(name));
        }
        let hint = "use letters, digits, dots, dashes and underscores, at most 200";
        Err(de::Error::custom(format!("not a name\n{hint}")))
    }
}

/// A value of a type whose values are words.
pub(super) fn word<'de, T: Deserialize<'de>>(text: &'de str) -> Result<T, String> {
    T::deserialize(BorrowedStrDeserializer::<Error>::new(text)).map_err(|e| e.to_string())
}
