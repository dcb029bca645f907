//! The effective configuration as text: every key, its value, and where that comes from, credentials masked (I9).
//!
//! It is valid `actors.toml` itself (keys without a value stand as comments), and read again it gives the same
//! configuration, as far as nothing is masked.

use super::manual::{Manual, is_empty, manual};
use super::mask;
use super::model::Config;
use super::tree::{Origin, join, key};
use serde_json::Value;
use std::collections::BTreeMap;

/// One key of the effective configuration.
pub(super) struct Entry {
    /// The section it stands in: `node`, `partners.acme`.
    pub(super) section: String,
    /// The key within it: `timeout.connect`.
    pub(super) key: String,
    /// The same as [`manual`] names it, with its section: `partners.NAME.timeout.connect`.
    pub(super) pattern: String,
    /// The value; `null` where it has none.
    pub(super) value: Value,
}

/// Whether credentials are masked. Unmasked is for telling whether two configurations are the same.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Show {
    Masked,
    #[cfg(test)]
    Plain,
}

/// Every key of a configuration, in the order of the manual.
pub(super) fn entries(config: &Config, show: Show) -> Vec<Entry> {
    let all = serde_json::to_value(config).unwrap_or_default();
    let mut writer = Writer {
        manual: manual(),
        show,
        section: String::new(),
        entries: Vec::new(),
    };
    for (section, value) in writer.manual.parts("", &all) {
        let pattern = format!("{section}.NAME");
        match value {
            Value::Object(named) if writer.manual.is_table(&pattern) => {
                for (name, value) in named {
                    writer.section = join(section, name);
                    writer.table("", &pattern, value);
                }
            }
            table => {
                writer.section = section.to_owned();
                writer.table("", section, table);
            }
        }
    }
    writer.entries
}

struct Writer {
    manual: &'static Manual,
    show: Show,
    section: String,
    entries: Vec<Entry>,
}

impl Writer {
    fn table(&mut self, prefix: &str, pattern: &str, table: &Value) {
        for (name, value) in self.manual.parts(pattern, table) {
            let (path, pattern) = (format!("{prefix}{name}"), join(pattern, name));
            let leaf = self.manual.find(&pattern).and_then(|key| key.leaf.as_deref());
            match value {
                Value::Object(_) if leaf.is_none() && self.manual.is_table(&pattern) => {
                    self.table(&format!("{path}."), &pattern, value);
                }
                // Names of one's own, as those of headers, or a form with keys of its own.
                Value::Object(map) if leaf != Some("inline") && !map.is_empty() => {
                    let parts = match leaf {
                        Some(form) => self.manual.parts(form, value),
                        None => map.iter().map(|(name, value)| (name.as_str(), value)).collect(),
                    };
                    for (name, value) in parts {
                        self.put(format!("{path}.{}", key(name)), &pattern, name, value);
                    }
                }
                value => self.put(path, &pattern, "", value),
            }
        }
    }

    fn put(&mut self, key: String, pattern: &str, name: &str, value: &Value) {
        let mut value = if is_empty(value) {
            Value::Null
        } else {
            value.clone()
        };
        // In a list, what is not set does not stand.
        let items = value.as_array_mut().into_iter().flatten();
        for table in items.filter_map(Value::as_object_mut) {
            table.retain(|_, value| !value.is_null());
        }
        self.entries.push(Entry {
            section: self.section.clone(),
            value: self.masked(pattern, name, value),
            key,
            pattern: pattern.to_owned(),
        });
    }

    /// What may hold a credential is masked by its kind.
    fn masked(&self, pattern: &str, name: &str, value: Value) -> Value {
        let kind = self.manual.find(pattern).and_then(|key| key.mask.as_deref());
        match (self.show, kind, value) {
            (Show::Masked, Some("header"), Value::String(text)) => mask::header(name, &text).into(),
            (Show::Masked, Some("url"), Value::String(text)) => mask::url(&text).into(),
            (Show::Masked, Some(_), Value::String(text)) => mask::body(&text).into(),
            (.., value) => value,
        }
    }
}

/// Where a key was written: itself, or the nearest table around it that was written as one value.
pub(super) fn origin_of<'a>(
    origins: &'a BTreeMap<String, Origin>,
    section: &str,
    key: &str,
) -> Option<&'a Origin> {
    let full = format!("{section}.{key}");
    if let Some(origin) = origins.get(&full) {
        return Some(origin);
    }
    match key {
        // The short form of a route.
        "deliver" => origins.get(&format!("{section}.partner")),
        // `doubt = "park"` sets each cause, `limits = ["5/s"]` the rates.
        _ if key.starts_with("doubt.") || key == "limits.rates" => {
            let short = key.split('.').next().unwrap_or_default();
            origins.get(&format!("{section}.{short}"))
        }
        _ => None,
    }
}

/// Which keys are printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// Every key, defaults too.
    All,
    /// What files or environment say.
    Set,
}

/// The effective configuration as text.
pub(super) fn print(config: &Config, origins: &BTreeMap<String, Origin>, show: Show, which: Which) -> String {
    let mut text = String::new();
    let mut section = String::new();
    for entry in entries(config, show) {
        let origin = origin_of(origins, &entry.section, &entry.key);
        if which == Which::Set && origin.is_none() {
            continue;
        }
        if entry.section != section {
            if !section.is_empty() {
                text.push('\n');
            }
            text.push_str(&format!("[{}]\n", entry.section));
            section.clone_from(&entry.section);
        }
        if entry.value.is_null() {
            text.push_str(&format!("# {} is not set\n", entry.key));
            continue;
        }
        let value = manual().toml(&entry.pattern, &entry.value);
        let origin = origin.map_or_else(|| "default".to_owned(), ToString::to_string);
        let origin = origin.replace(['\n', '\r'], " ");
        text.push_str(&format!("{} = {value}  # {origin}\n", entry.key));
    }
    text
}
