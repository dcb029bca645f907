//! Every key of `actors.toml`, as the types of the sections tell it: what it takes, default, effect. The
//! [pages](super::pages) and the effective configuration come from here.
//!
//! `schemars` gives descriptions, defaults and words, [`read::fields`] the order. What a schema has no word for stands
//! in keys of our own: `x-takes` (what it takes, as a phrase), `x-default` (what it depends on), `x-mask` (how it is
//! masked), `x-leaf` (its table is one value: `inline`, or key by key in the order of another table).

use super::model::Config;
use super::read;
use super::tree::{join, key, quoted};
use schemars::generate::SchemaSettings;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// One key.
#[derive(Clone, Debug)]
pub(super) struct Key {
    /// Dotted path; `NAME` stands for a section's name, `[]` for each element of a list.
    pub(super) path: String,
    /// What it takes, in words. Empty for a table that is written by its keys.
    pub(super) takes: String,
    /// The words that it takes, if it takes one of some words.
    pub(super) words: Vec<String>,
    /// Its default; `null` for none.
    pub(super) default: Value,
    /// What its default depends on, or `required`.
    pub(super) depends: Option<String>,
    /// A value that it may have.
    pub(super) example: Value,
    /// What it does, and what is traded for it.
    pub(super) effect: String,
    pub(super) mask: Option<String>,
    pub(super) leaf: Option<String>,
    is_text: bool,
}

/// All keys.
pub(super) struct Manual {
    /// In the order of the types.
    pub(super) keys: Vec<Key>,
    fields: BTreeMap<String, &'static [&'static str]>,
}

/// All keys, as the types of the sections tell them.
pub(super) fn manual() -> &'static Manual {
    static MANUAL: LazyLock<Manual> = LazyLock::new(Manual::new);
    &MANUAL
}

/// The schema of the whole file, with our own keys in it.
pub(super) fn full_schema() -> Value {
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    settings
        .into_generator()
        .into_root_schema_for::<Config>()
        .to_value()
}

fn text(schema: &Value, name: &str) -> Option<String> {
    schema.get(name).and_then(Value::as_str).map(str::to_owned)
}

/// A schema and, where it has several forms, those.
fn forms(schema: &Value) -> impl Iterator<Item = &Value> {
    let several = ["anyOf", "oneOf"]
        .into_iter()
        .filter_map(|of| schema.get(of)?.as_array())
        .flatten();
    std::iter::once(schema).chain(several)
}

fn property<'a>(schema: &'a Value, name: &str) -> Option<&'a Value> {
    forms(schema).find_map(|form| form.get("properties")?.get(name))
}

fn words(schema: &Value) -> Vec<String> {
    let listed = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
    let own = listed
        .chain(schema.get("const"))
        .filter_map(Value::as_str)
        .map(str::to_owned);
    own.chain(forms(schema).skip(1).flat_map(words)).collect()
}

impl Key {
    fn new(path: String, schema: &Value, required: bool) -> Self {
        let words = words(schema);
        let kind = schema.get("type").and_then(Value::as_str).unwrap_or_default();
        let phrase = text(schema, "x-takes");
        let least = schema.get("minimum").unwrap_or(&Value::Null);
        let depends = text(schema, "x-default").or_else(|| required.then(|| "required".to_owned()));
        let default = match schema.get("default") {
            Some(default) if depends.is_none() && !is_empty(default) => default.clone(),
            _ => Value::Null,
        };
        let example = schema.get("examples").and_then(|examples| examples.get(0));
        Self {
            is_text: phrase.is_none() && (kind == "string" || !words.is_empty()),
            takes: phrase.unwrap_or_else(|| match kind {
                _ if !words.is_empty() => words.join(", "),
                "boolean" => "true, false".to_owned(),
                "integer" => format!("count ≥ {least}"),
                _ => text(schema, "format").unwrap_or_else(|| "text".to_owned()),
            }),
            effect: text(schema, "description").unwrap_or_default().replace('\n', " "),
            example: example.cloned().unwrap_or_default(),
            mask: text(schema, "x-mask"),
            leaf: text(schema, "x-leaf"),
            path,
            words,
            default,
            depends,
        }
    }
}

/// Whether a value says nothing.
pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

impl Manual {
    fn new() -> Self {
        let mut manual = Self {
            keys: Vec::new(),
            fields: read::fields(),
        };
        manual.table("", &full_schema());
        manual
    }

    /// Adds the keys of a table.
    fn table(&mut self, pattern: &str, schema: &Value) {
        for name in self.fields.get(pattern).copied().unwrap_or_default() {
            let Some(of) = property(schema, name) else {
                continue;
            };
            let path = join(pattern, name);
            let (named, element) = (format!("{path}.NAME"), format!("{path}[]"));
            let mut required = forms(schema)
                .filter_map(|form| form.get("required")?.as_array())
                .flatten();
            let mut key = Key::new(path.clone(), of, required.any(|key| key == name));
            let parts = match (of.get("items"), of.get("additionalProperties")) {
                _ if key.leaf.is_some() => None,
                (Some(items), _) if self.is_table(&element) => Some((element, items)),
                (_, Some(section)) if self.is_table(&named) => Some((named, section)),
                _ => self.is_table(&path).then_some((path, of)),
            };
            if parts.is_some() && of.get("x-takes").is_none() {
                key.takes.clear();
            }
            self.keys.push(key);
            if let Some((pattern, schema)) = parts {
                self.table(&pattern, schema);
            }
        }
    }

    /// Whether there is a table of this path.
    pub(super) fn is_table(&self, pattern: &str) -> bool {
        self.fields.contains_key(pattern)
    }

    /// The key of this path.
    pub(super) fn find(&self, path: &str) -> Option<&Key> {
        self.keys.iter().find(|key| key.path == path)
    }

    /// The parts of a table, in the order of the types.
    pub(super) fn parts<'v>(&self, pattern: &str, table: &'v Value) -> Vec<(&'static str, &'v Value)> {
        let fields = self.fields.get(pattern).copied().unwrap_or_default();
        fields
            .iter()
            .filter_map(|name| Some((*name, table.get(name)?)))
            .collect()
    }

    /// A value as TOML writes it.
    pub(super) fn toml(&self, pattern: &str, value: &Value) -> String {
        match value {
            Value::String(text) => quoted(text),
            Value::Array(items) => {
                let element = format!("{pattern}[]");
                let items: Vec<_> = items.iter().map(|item| self.toml(&element, item)).collect();
                format!("[{}]", items.join(", "))
            }
            Value::Object(map) => {
                let parts = match self.is_table(pattern) {
                    true => self.parts(pattern, value),
                    false => map.iter().map(|(name, value)| (name.as_str(), value)).collect(),
                };
                let parts = parts.into_iter().filter(|(_, value)| !value.is_null());
                let parts: Vec<_> = parts
                    .map(|(name, value)| format!("{} = {}", key(name), self.toml("", value)))
                    .collect();
                format!("{{ {} }}", parts.join(", "))
            }
            other => other.to_string(),
        }
    }
}

/// Whether a top-level section holds named sections (`[partners.acme]`).
pub(super) fn is_named(section: &str) -> bool {
    ["secrets", "limits", "partners", "topics"].contains(&section)
}

/// The key of a path of real names.
fn find(path: &[String]) -> Option<&'static Key> {
    let parts = path.iter().enumerate().map(|(i, part)| match i {
        1 if is_named(&path[0]) => "NAME",
        _ => part.as_str(),
    });
    manual().find(&parts.collect::<Vec<_>>().join("."))
}

/// Whether names below this path are free (header names).
pub(super) fn is_free_table(path: &[String]) -> bool {
    find(path).is_some_and(|key| key.mask.as_deref() == Some("header"))
}

/// Whether a value at this path is text whatever it looks like: a token of digits stays text.
pub(super) fn takes_plain_text(path: &[String]) -> bool {
    find(path).is_some_and(|key| key.is_text)
        || path.split_last().is_some_and(|(_, table)| is_free_table(table))
}
