//! The record's value inside a template: parsed a level at a time, printed as it is written.
//!
//! A number whose spelling the engine would not give back (`19.90`, `1e2`, forty digits) is an [`Exact`]; operators and
//! numeric filters get the engine's own number of it (`operators.rs`). A field that is there twice, half a surrogate
//! pair and text that is not JSON are errors where they are asked for, and only there.

use crate::core::pointer::compact;
use bytes::Bytes;
use minijinja::value::{Enumerator, Object, ObjectRepr, ValueKind};
use minijinja::{Error, ErrorKind, Value};
use serde::Deserializer as _;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, OnceLock};

/// The record's value: JSON where it begins as an object, array or string, else text, so that no digit is lost.
pub(super) fn record_value(bytes: &Bytes) -> Option<Value> {
    let trimmed = bytes.trim_ascii();
    if matches!(trimmed.first(), Some(b'{' | b'[' | b'"')) {
        let mut parser = serde_json::Deserializer::from_slice(trimmed);
        let whole = <&RawValue as serde::Deserialize>::deserialize(&mut parser).and_then(|_| parser.end());
        match whole {
            Ok(()) if trimmed[0] == b'"' => return Some(value_of(bytes.slice_ref(trimmed), "value")),
            Ok(()) => {
                return Some(Value::from_object(Json {
                    text: bytes.clone(),
                    path: "value".into(),
                    parts: OnceLock::new(),
                    whole: true,
                }));
            }
            Err(e) => {
                let text = std::str::from_utf8(bytes).ok()?;
                return Some(Value::from_object(NotJson {
                    text: text.to_owned(),
                    why: format!("`value` is not JSON at line {}, column {}", e.line(), e.column()),
                }));
            }
        }
    }
    std::str::from_utf8(bytes).ok().map(Value::from)
}

/// A JSON value by its text.
fn value_of(text: Bytes, path: &str) -> Value {
    match text.first() {
        Some(b'"') => match serde_json::from_slice::<Cow<'_, str>>(&text) {
            Ok(s) => Value::from(&*s),
            Err(_) => unreadable(format!("`{path}` holds half of a surrogate pair")),
        },
        Some(b'{' | b'[') => Value::from_object(Json {
            text,
            path: path.into(),
            parts: OnceLock::new(),
            whole: false,
        }),
        Some(b't') => Value::from(true),
        Some(b'f') => Value::from(false),
        Some(b'n') | None => Value::from(()),
        Some(_) => number(&String::from_utf8_lossy(&text)),
    }
}

fn unreadable(why: String) -> Value {
    Value::from(Error::new(ErrorKind::InvalidOperation, why))
}

/// A number: the engine's own where that is printed as it is written.
fn number(text: &str) -> Value {
    match engine_number(text) {
        Some(own) if own.to_string() == text => own,
        _ => Value::from_object(Exact(text.into())),
    }
}

fn engine_number(text: &str) -> Option<Value> {
    if let Ok(i) = text.parse::<i64>() {
        return Some(i.into());
    }
    if let Ok(i) = text.parse::<i128>() {
        return Some(i.into());
    }
    text.parse::<f64>().ok().map(Value::from)
}

/// A number with the digits that the record gives it.
#[derive(Debug)]
pub(super) struct Exact(Box<str>);

impl Object for Exact {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }
    fn is_true(self: &Arc<Self>) -> bool {
        self.0.parse::<f64>().is_ok_and(|x| x != 0.0)
    }
    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Text that begins like JSON and is not.
#[derive(Debug)]
struct NotJson {
    text: String,
    why: String,
}

impl Object for NotJson {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }
    fn get_value(self: &Arc<Self>, _: &Value) -> Option<Value> {
        Some(unreadable(self.why.clone()))
    }
    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A JSON object or array.
#[derive(Debug)]
pub(super) struct Json {
    text: Bytes,
    /// What a template calls it, for errors.
    path: Box<str>,
    parts: OnceLock<Parts>,
    /// The record's whole value: printed byte for byte.
    whole: bool,
}

#[derive(Debug)]
enum Parts {
    Object(Vec<(String, Bytes)>),
    Array(Vec<Bytes>),
    Broken,
}

impl Json {
    fn parts(&self) -> &Parts {
        self.parts.get_or_init(|| {
            let mut parser = serde_json::Deserializer::from_slice(&self.text);
            parser
                .deserialize_any(OneLevel(&self.text))
                .unwrap_or(Parts::Broken)
        })
    }

    fn is_object(&self) -> bool {
        self.text.trim_ascii_start().first() == Some(&b'{')
    }

    fn field(&self, name: &str) -> Option<Value> {
        let Parts::Object(fields) = self.parts() else {
            return match self.parts() {
                Parts::Broken => Some(unreadable(format!("`{}` has a name that is not text", self.path))),
                _ => None,
            };
        };
        let path = || format!("{}.{name}", self.path);
        let mut found = fields.iter().filter(|(n, _)| n == name);
        let (_, text) = found.next()?;
        if found.next().is_some() {
            return Some(unreadable(format!("`{}` is there twice", path())));
        }
        Some(match text.first() {
            // Paths are needed only for what may go wrong further down.
            Some(b'{' | b'[' | b'"') => value_of(text.clone(), &path()),
            _ => value_of(text.clone(), ""),
        })
    }

    /// As it is written, without spaces between tokens but for the record's whole value.
    fn text(&self) -> Cow<'_, str> {
        match std::str::from_utf8(&self.text) {
            Ok(text) if self.whole => Cow::Borrowed(text),
            Ok(text) => compact(text),
            Err(_) => Cow::Borrowed(""),
        }
    }
}

/// Splits an object or array into the texts of its parts.
struct OneLevel<'b>(&'b Bytes);

impl<'b> Visitor<'b> for OneLevel<'b> {
    type Value = Parts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or array")
    }
    fn visit_map<M: MapAccess<'b>>(self, mut map: M) -> Result<Parts, M::Error> {
        let mut fields = Vec::new();
        while let Some((name, raw)) = map.next_entry::<String, &'b RawValue>()? {
            fields.push((name, self.0.slice_ref(raw.get().as_bytes())));
        }
        Ok(Parts::Object(fields))
    }
    fn visit_seq<S: SeqAccess<'b>>(self, mut seq: S) -> Result<Parts, S::Error> {
        let mut elements = Vec::new();
        while let Some(raw) = seq.next_element::<&'b RawValue>()? {
            elements.push(self.0.slice_ref(raw.get().as_bytes()));
        }
        Ok(Parts::Array(elements))
    }
}

impl Object for Json {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        if self.is_object() {
            ObjectRepr::Map
        } else {
            ObjectRepr::Seq
        }
    }
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match (self.parts(), key.as_str()) {
            (Parts::Array(elements), None) => {
                let at = usize::try_from(engine(key)).ok()?;
                let text = elements.get(at)?;
                Some(value_of(text.clone(), &format!("{}[{at}]", self.path)))
            }
            (Parts::Array(_), Some(_)) => None,
            (_, Some(name)) => self.field(name),
            (_, None) => self.field(&key.to_string()),
        }
    }
    fn enumerate(self: &Arc<Self>) -> Enumerator {
        match self.parts() {
            Parts::Object(fields) => Enumerator::Values(
                fields
                    .iter()
                    .map(|(name, _)| Value::from(name.as_str()))
                    .collect(),
            ),
            Parts::Array(elements) => Enumerator::Seq(elements.len()),
            Parts::Broken => Enumerator::NonEnumerable,
        }
    }
    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

/// The engine's own number of an [`Exact`] one; all else as it is.
pub(super) fn engine(value: &Value) -> Value {
    match value.downcast_object_ref::<Exact>() {
        Some(exact) => engine_number(&exact.0).unwrap_or_else(|| value.clone()),
        None => value.clone(),
    }
}

/// The same for the elements of a list, if any of them is exact.
pub(super) fn engine_list(value: &Value) -> Value {
    if value.kind() != ValueKind::Seq {
        return engine(value);
    }
    match value.try_iter() {
        Ok(elements) => {
            let elements: Vec<Value> = elements.collect();
            let exact = |v: &Value| v.downcast_object_ref::<Exact>().is_some();
            match elements.iter().any(exact) {
                true => elements.iter().map(engine).collect(),
                false => value.clone(),
            }
        }
        Err(_) => value.clone(),
    }
}

/// The text that a value is printed as: JSON's, but for texts, which stand without quotes.
pub(super) fn shown(value: &Value) -> Result<Cow<'_, str>, Error> {
    if let Some(text) = value.as_str() {
        return Ok(Cow::Borrowed(text));
    }
    let mut out = String::new();
    match value.kind() {
        ValueKind::Plain => out.push_str(&value.to_string()),
        _ => match value.downcast_object_ref::<Json>() {
            Some(json) => out.push_str(&json.text()),
            None => write(value, &mut out)?,
        },
    }
    Ok(Cow::Owned(out))
}

/// Writes a value as JSON, without spaces; what the record holds with its own spelling.
pub(super) fn write(value: &Value, out: &mut String) -> Result<(), Error> {
    if let Some(json) = value.downcast_object_ref::<Json>() {
        let text = std::str::from_utf8(&json.text).unwrap_or_default();
        out.push_str(&compact(text));
        return Ok(());
    }
    match value.kind() {
        ValueKind::Invalid => {
            // The only way to the error inside.
            return match Value::from(vec![value.clone()]).try_iter()?.checked().next() {
                Some(Err(error)) => Err(error),
                _ => Ok(()),
            };
        }
        ValueKind::None | ValueKind::Undefined => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => {
            let text = value.to_string();
            match text.as_str() {
                "NaN" | "inf" | "-inf" => {
                    return Err(Error::new(
                        ErrorKind::InvalidOperation,
                        format!("a number came out as {text}, which JSON does not have"),
                    ));
                }
                text => out.push_str(text),
            }
        }
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (i, element) in value.try_iter()?.checked().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write(&element?, out)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (i, name) in value.try_iter()?.checked().enumerate() {
                let name = name?;
                if i > 0 {
                    out.push(',');
                }
                text(&shown(&name)?, out);
                out.push(':');
                write(&value.get_item(&name)?, out)?;
            }
            out.push('}');
        }
        _ if value.downcast_object_ref::<Exact>().is_some() => out.push_str(&value.to_string()),
        _ => match value.as_str() {
            Some(s) => text(s, out),
            None => text(&value.to_string(), out),
        },
    }
    Ok(())
}

fn text(s: &str, out: &mut String) {
    out.push_str(&serde_json::Value::from(s).to_string());
}

/// A JSON text with a line for each element.
pub(super) fn pretty(json: &str, indent: usize) -> String {
    let mut out = String::with_capacity(json.len() * 2);
    let (mut depth, mut inside, mut escaped) = (0usize, false, false);
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', depth * indent));
    };
    let mut chars = json.chars().peekable();
    while let Some(c) = chars.next() {
        if inside {
            inside = escaped || c != '"';
            escaped = !escaped && c == '\\';
            out.push(c);
            continue;
        }
        match c {
            '{' | '[' => {
                out.push(c);
                match chars.peek() {
                    Some('}' | ']') => out.extend(chars.next()),
                    _ => {
                        depth += 1;
                        line(&mut out, depth);
                    }
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            c => {
                inside = c == '"';
                out.push(c);
            }
        }
    }
    out
}
