//! Reads typed values out of the tree, and gathers every mistake on the way instead of stopping at the first.

use super::finding::{Finding, Severity, nearest};
use super::tree::{Data, Node, Origin, join};
use super::{mask, units};
use crate::core::expr::{Expr, PathExpr, Vocabulary};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What a value should have been: the rest of a finding's message.
pub(super) type Expected = String;

/// Gathers findings, origins and the keys that were asked for.
#[derive(Default)]
pub(super) struct Reader {
    pub(super) findings: Vec<Finding>,
    /// Where each key that is set was written, by dotted key.
    pub(super) origins: BTreeMap<String, Origin>,
    /// Patterns of all keys asked for: what the loader accepts.
    pub(super) asked: BTreeSet<String>,
}

/// A table that is being read.
pub(super) struct Section<'t> {
    /// Dotted key, as findings name it.
    pub(super) path: String,
    /// The same with `NAME` and `[]`, as [`super::reference`] names it.
    pattern: String,
    table: Option<&'t BTreeMap<String, Node>>,
    known: Vec<&'static str>,
    /// Where the table begins.
    pub(super) origin: Origin,
}

impl<'t> Section<'t> {
    /// A key's node, which counts it as known.
    pub(super) fn take(&mut self, key: &'static str) -> Option<&'t Node> {
        self.known.push(key);
        self.table.and_then(|table| table.get(key))
    }

    /// Dotted key of one of its keys.
    pub(super) fn key(&self, key: &str) -> String {
        join(&self.path, key)
    }
}

impl Reader {
    /// Reports a mistake in a value.
    pub(super) fn wrong(&mut self, key: &str, node: &Node, message: impl Into<String>) -> &mut Finding {
        let value = mask::found(key, &node.as_written());
        self.report(Severity::Error, key, &node.origin, Some(value), message)
    }

    /// Reports anything.
    pub(super) fn report(
        &mut self,
        severity: Severity,
        key: &str,
        origin: &Origin,
        value: Option<String>,
        message: impl Into<String>,
    ) -> &mut Finding {
        let at = self.findings.len();
        self.findings.push(Finding {
            severity,
            key: key.to_owned(),
            value,
            file: origin.file(),
            line: (origin.line > 0).then_some(origin.line),
            message: message.into(),
            hint: None,
        });
        &mut self.findings[at]
    }

    /// The root of the tree.
    pub(super) fn root<'t>(&mut self, node: &'t Node) -> Section<'t> {
        let table = if let Data::Table(table) = &node.data {
            Some(table)
        } else {
            None
        };
        Section {
            path: String::new(),
            pattern: String::new(),
            table,
            known: Vec::new(),
            origin: node.origin.clone(),
        }
    }

    /// The table at a key; an empty one if the key is not set.
    pub(super) fn table<'t>(&mut self, parent: &mut Section<'t>, key: &'static str) -> Section<'t> {
        let path = parent.key(key);
        let pattern = dotted(&parent.pattern, key);
        match parent.take(key) {
            Some(node) => self.table_of(node, path, pattern),
            None => Section {
                path,
                pattern,
                table: None,
                known: Vec::new(),
                origin: parent.origin.clone(),
            },
        }
    }

    /// A node that must be a table.
    pub(super) fn table_of<'t>(&mut self, node: &'t Node, path: String, pattern: String) -> Section<'t> {
        let table = match &node.data {
            Data::Table(table) => Some(table),
            _ => {
                self.wrong(&path, node, "expected a table");
                None
            }
        };
        self.origins.insert(path.clone(), node.origin.clone());
        Section {
            path,
            pattern,
            table,
            known: Vec::new(),
            origin: node.origin.clone(),
        }
    }

    /// The named tables of a section (`[partners.NAME]`), in the order of their names.
    pub(super) fn named<'t>(
        &mut self,
        root: &mut Section<'t>,
        key: &'static str,
    ) -> Vec<(String, Section<'t>)> {
        let all = self.table(root, key);
        let pattern = format!("{key}.NAME");
        let mut named = Vec::new();
        for (name, node) in all.table.into_iter().flatten() {
            let path = all.key(name);
            if !good_name(name) {
                self.report(Severity::Error, &path, &node.origin, None, "not a name")
                    .hint("use letters, digits, dots, dashes and underscores, at most 200");
                continue;
            }
            let section = self.table_of(node, path, pattern.clone());
            named.push((name.clone(), section));
        }
        named
    }

    /// Reads one key into its place, if it is set.
    pub(super) fn read<T>(
        &mut self,
        section: &mut Section<'_>,
        key: &'static str,
        into: &mut T,
        parse: impl FnOnce(&Node) -> Result<T, Expected>,
    ) {
        if let Some(value) = self.maybe(section, key, parse) {
            *into = value;
        }
    }

    /// Reads one key into an optional place.
    pub(super) fn read_some<T>(
        &mut self,
        section: &mut Section<'_>,
        key: &'static str,
        into: &mut Option<T>,
        parse: impl FnOnce(&Node) -> Result<T, Expected>,
    ) {
        if let Some(value) = self.maybe(section, key, parse) {
            *into = Some(value);
        }
    }

    /// One key's value; `None` if it is not set, or wrong (which is then reported).
    pub(super) fn maybe<T>(
        &mut self,
        section: &mut Section<'_>,
        key: &'static str,
        parse: impl FnOnce(&Node) -> Result<T, Expected>,
    ) -> Option<T> {
        self.asked.insert(dotted(&section.pattern, key));
        let node = section.take(key)?;
        let path = section.key(key);
        self.origins.insert(path.clone(), node.origin.clone());
        match parse(node) {
            Ok(value) => Some(value),
            Err(expected) => {
                self.wrong(&path, node, expected);
                None
            }
        }
    }

    /// One key's value, which must be there.
    pub(super) fn required<T>(
        &mut self,
        section: &mut Section<'_>,
        key: &'static str,
        parse: impl FnOnce(&Node) -> Result<T, Expected>,
    ) -> Option<T> {
        let set = section.table.is_some_and(|table| table.contains_key(key));
        let value = self.maybe(section, key, parse);
        if !set {
            let origin = section.origin.clone();
            self.report(
                Severity::Error,
                &section.key(key),
                &origin,
                None,
                "is missing and has no default",
            );
        }
        value
    }

    /// Reports the keys of a table that nobody asked for, each with the nearest known one.
    pub(super) fn finish(&mut self, section: &Section<'_>) {
        for (name, node) in section.table.into_iter().flatten() {
            if section.known.contains(&name.as_str()) {
                continue;
            }
            let full = dotted(&section.pattern, name);
            if let Some((_, why)) = GONE.iter().find(|(key, _)| *key == full) {
                let finding = self.report(Severity::Error, &section.key(name), &node.origin, None, *why);
                finding.hint = Some("take it out".to_owned());
                continue;
            }
            // The value is not shown: under a misspelt key nobody knows whether it is a secret.
            let near = nearest(name, section.known.iter().copied());
            let known = section.known.join(", ");
            let finding = self.report(
                Severity::Error,
                &section.key(name),
                &node.origin,
                None,
                "unknown key",
            );
            finding.hint = Some(match near {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known here: {known}"),
            });
        }
    }
}

/// Keys that there once were, and why not any more.
const GONE: [(&str, &str); 1] = [(
    "partners.NAME.client",
    "there is one client for everything now: HTTP/1.1, HTTP/2, proxies and redirects",
)];

impl Finding {
    /// Says how to mend it.
    pub(super) fn hint(&mut self, hint: impl Into<String>) {
        self.hint = Some(hint.into());
    }
}

fn dotted(pattern: &str, key: &str) -> String {
    if pattern.is_empty() {
        key.to_owned()
    } else {
        format!("{pattern}.{key}")
    }
}

/// Whether a section may be called so: no separator of IDs, paths or topic names can be part of it.
fn good_name(name: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !name.is_empty() && name.len() <= 200 && name.chars().all(good) && name != "." && name != ".."
}

pub(super) fn text(node: &Node) -> Result<String, Expected> {
    match &node.data {
        Data::Text(text) => Ok(text.clone()),
        _ => Err("expected a text in quotes".into()),
    }
}

pub(super) fn filled(node: &Node) -> Result<String, Expected> {
    text(node).and_then(|t| {
        if t.trim().is_empty() {
            Err("expected a text that is not empty".into())
        } else {
            Ok(t)
        }
    })
}

pub(super) fn path(node: &Node) -> Result<std::path::PathBuf, Expected> {
    filled(node).map(Into::into)
}

pub(super) fn flag(node: &Node) -> Result<bool, Expected> {
    match &node.data {
        Data::Flag(flag) => Ok(*flag),
        _ => Err("expected true or false, without quotes".into()),
    }
}

pub(super) fn duration(node: &Node) -> Result<Duration, Expected> {
    let parsed = text(node)
        .map_err(|_| "expected a duration in quotes, with its unit: \"200ms\", \"2s\", \"5m\", \"24h\"")?;
    units::parse_duration(&parsed).map_err(|e| e.to_string())
}

/// A duration above zero.
pub(super) fn some_time(node: &Node) -> Result<Duration, Expected> {
    duration(node).and_then(|d| {
        if d.is_zero() {
            Err("expected more than zero".into())
        } else {
            Ok(d)
        }
    })
}

pub(super) fn size(node: &Node) -> Result<u64, Expected> {
    let parsed = text(node)
        .map_err(|_| "expected a size in quotes, with its unit: \"512MiB\", \"64KiB\", \"10KB\"")?;
    units::parse_size(&parsed).map_err(|e| e.to_string())
}

/// A size of at least this.
pub(super) fn size_from(least: u64) -> impl Fn(&Node) -> Result<u64, Expected> {
    move |node| {
        let bytes = size(node)?;
        if bytes < least {
            Err(format!("expected at least {}", units::size(least)))
        } else {
            Ok(bytes)
        }
    }
}

/// A whole number of at least this.
pub(super) fn count<T: TryFrom<i64>>(least: i64) -> impl Fn(&Node) -> Result<T, Expected> {
    move |node| {
        let expected = || format!("expected a whole number of at least {least}, without quotes");
        match &node.data {
            Data::Int(n) if *n >= least => T::try_from(*n).map_err(|_| "expected a smaller number".into()),
            _ => Err(expected()),
        }
    }
}

/// One of some words.
pub(super) fn choice<T: Copy>(words: &[(&str, T)]) -> impl Fn(&Node) -> Result<T, Expected> {
    move |node| {
        let found = text(node)?;
        words
            .iter()
            .find(|(word, _)| *word == found)
            .map(|(_, value)| *value)
            .ok_or_else(|| {
                let all: Vec<_> = words.iter().map(|(word, _)| *word).collect();
                let near =
                    nearest(&found, all.iter().copied()).map(|near| format!("; did you mean `{near}`?"));
                format!("expected one of {}{}", all.join(", "), near.unwrap_or_default())
            })
    }
}

/// A list of texts; a single text is a list of one.
pub(super) fn texts(node: &Node) -> Result<Vec<String>, Expected> {
    match &node.data {
        Data::Text(text) => Ok(vec![text.clone()]),
        Data::List(items) => items
            .iter()
            .map(text)
            .collect::<Result<_, _>>()
            .map_err(|_| "expected a list of texts".into()),
        _ => Err("expected a list of texts".into()),
    }
}

/// Every text of a list, or the only one, read by itself: all that are wrong are told, by their texts.
pub(super) fn each<T>(node: &Node, one: impl Fn(&str) -> Result<T, Expected>) -> Result<Vec<T>, Expected> {
    let texts = texts(node)?;
    let mut values = Vec::with_capacity(texts.len());
    let mut wrong = Vec::new();
    for text in &texts {
        match one(text) {
            Ok(value) => values.push(value),
            Err(expected) if texts.len() == 1 => wrong.push(expected),
            Err(expected) => wrong.push(format!("`{text}`: {expected}")),
        }
    }
    if wrong.is_empty() {
        Ok(values)
    } else {
        Err(wrong.join("; "))
    }
}

/// `HOST:PORT` with a numeric host.
pub(super) fn address(node: &Node) -> Result<std::net::SocketAddr, Expected> {
    let form = "expected an address with a port, as 127.0.0.1:7070 or [::1]:7070";
    text(node)?
        .replace("localhost:", "127.0.0.1:")
        .parse()
        .map_err(|_| form.into())
}

/// `json:/POINTER`, as the pointer without its prefix.
pub(super) fn json_pointer(text: &str) -> Result<String, Expected> {
    let form = "expected json:/POINTER, as json:/user or json:/order/id (`~1` for a slash, `~0` for a tilde)";
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

/// A condition, which compiles.
pub(super) fn condition(about: Vocabulary) -> impl Fn(&Node) -> Result<String, Expected> {
    move |node| {
        let text = filled(node)?;
        Expr::compile(&text, about)
            .map(|_| text)
            .map_err(|e| format!("not a condition: {e}"))
    }
}

/// Where a reason stands in an answer, or a text in quotes.
pub(super) fn reason(node: &Node) -> Result<String, Expected> {
    let text = filled(node)?;
    PathExpr::compile(&text, Vocabulary::Answer)
        .map(|_| text)
        .map_err(|e| format!("not a path: {e}"))
}
