//! Layers of settings become one tree in which every value knows where it was written.
//!
//! The `config` crate merges the layers, key by key, later ones winning. Two things it cannot do stand here: it
//! keeps only a file's name as a value's origin, and its environment mapping cannot reach names with dashes, dots
//! or capitals. So both kinds of layer are sources of our own, whose values carry `layer line name` as origin, and
//! everything lies below one root key, because the crate reads top-level keys as path expressions.
//!
//! # Environment
//!
//! `SLUICEGATE__SECTION__NAME__KEY=value`, parts separated by two underscores. Fixed words (`PARTNERS`,
//! `CONCURRENCY`) may be in any case. A name (`acme-eu`, `eu.orders`) is meant exactly as written if a section of
//! that name exists; else one that is alike but for case and punctuation (`ACME_EU` is `acme-eu`), because most
//! shells cannot export dashes and dots; else it is a new section.

use super::finding::{Finding, Severity};
use super::reference;
use config::{Map, Source, Value, ValueKind};
use std::collections::BTreeMap;
use std::fmt;

/// What every environment override begins with.
pub const ENV_PREFIX: &str = "SLUICEGATE__";
const ROOT: &str = "root";

/// Where a value was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Which layer: files from 1 in their order, then the environment. 0: nowhere, it is a default.
    pub layer: usize,
    /// Line in a file, from 1; 0 for the environment.
    pub line: usize,
    /// The file as named, or the environment variable.
    pub name: String,
}

impl Origin {
    fn encode(&self) -> String {
        format!("{} {} {}", self.layer, self.line, self.name)
    }

    fn decode(text: &str) -> Self {
        let mut parts = text.splitn(3, ' ');
        let mut number = || parts.next().and_then(|n| n.parse().ok()).unwrap_or(0);
        let (layer, line) = (number(), number());
        Self {
            layer,
            line,
            name: parts.next().unwrap_or_default().to_owned(),
        }
    }

    /// The file, or `environment NAME`; `None` for a default.
    pub fn file(&self) -> Option<String> {
        match (self.layer, self.line) {
            (0, _) => None,
            (_, 0) => Some(format!("environment {}", self.name)),
            _ => Some(self.name.clone()),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.file(), self.line) {
            (None, _) => f.write_str("default"),
            (Some(file), 0) => f.write_str(&file),
            (Some(file), line) => write!(f, "{file}:{line}"),
        }
    }
}

/// A value and where it was written.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) origin: Origin,
    pub(super) data: Data,
}

#[derive(Clone, Debug)]
pub(super) enum Data {
    Text(String),
    Int(i64),
    Float(f64),
    Flag(bool),
    List(Vec<Node>),
    Table(BTreeMap<String, Node>),
}

impl Node {
    /// The value as it could be written in a file.
    pub(super) fn as_written(&self) -> String {
        match &self.data {
            Data::Text(text) => quoted(text),
            Data::Int(n) => n.to_string(),
            Data::Float(x) => x.to_string(),
            Data::Flag(flag) => flag.to_string(),
            Data::List(items) => {
                let items: Vec<_> = items.iter().map(Node::as_written).collect();
                format!("[{}]", items.join(", "))
            }
            Data::Table(map) => {
                let items: Vec<_> = map
                    .iter()
                    .map(|(k, v)| format!("{} = {}", key(k), v.as_written()))
                    .collect();
                format!("{{ {} }}", items.join(", "))
            }
        }
    }
}

/// A text as TOML writes it.
pub(super) fn quoted(text: &str) -> String {
    toml_edit::Value::from(text).to_string()
}

/// A key as TOML writes it: quoted where it must be.
pub(super) fn key(name: &str) -> String {
    toml_edit::Key::new(name).display_repr().into_owned()
}

/// A dotted key, as findings and the effective configuration write it.
pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        key(name)
    } else {
        format!("{path}.{}", key(name))
    }
}

/// One layer of settings, as the `config` crate takes it.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    root: Value,
    /// Tables lose their origin when they are merged; it is kept here, by dotted key.
    tables: BTreeMap<String, Origin>,
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        Ok(Map::from_iter([(ROOT.to_owned(), self.root.clone())]))
    }
}

/// Reads one file's text. A text that is no TOML is one finding.
pub(super) fn file_layer(layer: usize, name: &str, text: &str) -> Result<Layer, Box<Finding>> {
    let lines = LineIndex::new(text);
    let document = toml_edit::Document::parse(text).map_err(|e| {
        Box::new(Finding {
            severity: Severity::Error,
            key: String::new(),
            // The text itself is not shown: it may hold a secret.
            value: None,
            file: Some(name.to_owned()),
            line: e.span().map(|span| lines.line(span.start)),
            message: format!("not TOML: {}", e.message().trim().replace('\n', ", ")),
            hint: None,
        })
    })?;
    let mut reader = FileReader {
        layer,
        name,
        lines,
        tables: BTreeMap::new(),
    };
    let root = reader.table(document.as_table(), "", 1);
    Ok(Layer {
        root,
        tables: reader.tables,
    })
}

/// Byte offsets of line starts.
struct LineIndex(Vec<usize>);

impl LineIndex {
    fn new(text: &str) -> Self {
        Self(
            std::iter::once(0)
                .chain(text.match_indices('\n').map(|(at, _)| at + 1))
                .collect(),
        )
    }

    fn line(&self, at: usize) -> usize {
        self.0.partition_point(|start| *start <= at)
    }
}

struct FileReader<'a> {
    layer: usize,
    name: &'a str,
    lines: LineIndex,
    tables: BTreeMap<String, Origin>,
}

impl FileReader<'_> {
    fn origin(&self, line: usize) -> Origin {
        Origin {
            layer: self.layer,
            line,
            name: self.name.to_owned(),
        }
    }

    fn table(&mut self, table: &dyn toml_edit::TableLike, path: &str, line: usize) -> Value {
        let origin = self.origin(line);
        let mut map = Map::new();
        for (name, item) in table.iter() {
            let span = table
                .get_key_value(name)
                .and_then(|(key, _)| key.span())
                .or_else(|| item.span());
            let line = span.map_or(line, |span| self.lines.line(span.start));
            let value = self.item(item, &join(path, name), line);
            map.insert(name.to_owned(), value);
        }
        let value = Value::new(Some(&origin.encode()), map);
        self.tables.insert(path.to_owned(), origin);
        value
    }

    fn item(&mut self, item: &toml_edit::Item, path: &str, line: usize) -> Value {
        match item {
            toml_edit::Item::Value(value) => self.value(value, path, line),
            toml_edit::Item::Table(table) => self.table(table, path, line),
            toml_edit::Item::ArrayOfTables(tables) => {
                let items: Vec<_> = tables
                    .iter()
                    .enumerate()
                    .map(|(i, table)| {
                        let line = table.span().map_or(line, |span| self.lines.line(span.start));
                        self.table(table, &format!("{path}[{i}]"), line)
                    })
                    .collect();
                Value::new(Some(&self.origin(line).encode()), items)
            }
            toml_edit::Item::None => Value::new(Some(&self.origin(line).encode()), ValueKind::Nil),
        }
    }

    fn value(&mut self, value: &toml_edit::Value, path: &str, line: usize) -> Value {
        use toml_edit::Value as Toml;
        let origin = self.origin(line).encode();
        match value {
            Toml::String(text) => Value::new(Some(&origin), text.value().as_str()),
            Toml::Integer(n) => Value::new(Some(&origin), *n.value()),
            Toml::Float(x) => Value::new(Some(&origin), *x.value()),
            Toml::Boolean(flag) => Value::new(Some(&origin), *flag.value()),
            Toml::Datetime(at) => Value::new(Some(&origin), at.value().to_string()),
            Toml::InlineTable(table) => self.table(table, path, line),
            Toml::Array(array) => {
                let items: Vec<_> = array
                    .iter()
                    .enumerate()
                    .map(|(i, item)| {
                        let line = item.span().map_or(line, |span| self.lines.line(span.start));
                        self.value(item, &format!("{path}[{i}]"), line)
                    })
                    .collect();
                Value::new(Some(&origin), items)
            }
        }
    }
}

/// Reads the overrides of the environment; `files` is the tree that the files alone gave.
pub(super) fn env_layer(
    layer: usize,
    files: &Node,
    env: &BTreeMap<String, String>,
    findings: &mut Vec<Finding>,
) -> Layer {
    let mut root = Value::new(None, Map::<String, Value>::new());
    let mut tables = BTreeMap::new();
    for (name, text) in env.range(ENV_PREFIX.to_owned()..) {
        let Some(rest) = name.strip_prefix(ENV_PREFIX) else {
            break;
        };
        let origin = Origin {
            layer,
            line: 0,
            name: name.clone(),
        };
        let mut refuse = |message: String, hint: &str| {
            findings.push(Finding {
                severity: Severity::Error,
                key: String::new(),
                value: None,
                file: origin.file(),
                line: None,
                message,
                hint: Some(hint.to_owned()),
            });
        };
        let parts: Vec<&str> = rest.split("__").collect();
        if parts.len() < 2 || parts.iter().any(|part| part.is_empty()) {
            let hint = "write SLUICEGATE__SECTION__KEY or SLUICEGATE__SECTION__NAME__KEY, as SLUICEGATE__NODE__MEMORY=1GiB";
            refuse("not the name of a key".into(), hint);
            continue;
        }
        let path = match resolve(&parts, files) {
            Ok(path) => path,
            Err(candidates) => {
                refuse(
                    format!("may mean several sections: {}", candidates.join(", ")),
                    "write the section's name exactly, as: env 'SLUICEGATE__PARTNERS__acme-eu__CONCURRENCY=5' sluicegate run",
                );
                continue;
            }
        };
        let mut dotted = String::new();
        for part in &path[..path.len() - 1] {
            dotted = join(&dotted, part);
            tables.insert(dotted.clone(), origin.clone());
        }
        let value = env_value(&path, text, &origin.encode());
        put(&mut root, &path, value);
    }
    Layer { root, tables }
}

/// The dotted path that the parts of a variable's name mean, or the sections it may mean.
fn resolve(parts: &[&str], files: &Node) -> Result<Vec<String>, Vec<String>> {
    let section = parts[0].to_lowercase();
    let mut path = vec![section.clone()];
    let mut rest = &parts[1..];
    if reference::is_named(&section) {
        let Data::Table(top) = &files.data else {
            return Ok(path);
        };
        let names: Vec<&str> = match top.get(&section).map(|node| &node.data) {
            Some(Data::Table(named)) => named.keys().map(String::as_str).collect(),
            _ => Vec::new(),
        };
        let alike = |name: &str, text: &str| squash(name) == squash(text);
        // A name may hold two underscores itself: the longest join that is a section is meant.
        let mut found = None;
        for taken in (1..=rest.len()).rev() {
            let text = rest[..taken].join("__");
            if names.contains(&text.as_str()) {
                found = Some((text, taken));
                break;
            }
            let near: Vec<_> = names.iter().filter(|name| alike(name, &text)).collect();
            match near[..] {
                [] => {}
                [name] => {
                    found = Some(((*name).to_owned(), taken));
                    break;
                }
                _ => return Err(near.iter().map(ToString::to_string).collect()),
            }
        }
        let (name, taken) = found.unwrap_or_else(|| (rest[0].to_owned(), 1));
        path.push(name);
        rest = &rest[taken..];
    }
    for part in rest {
        // Names of headers and properties of the log are free and kept as they are.
        let free = reference::is_free_table(&path);
        path.push(if free {
            (*part).to_owned()
        } else {
            part.to_lowercase()
        });
    }
    Ok(path)
}

fn squash(name: &str) -> String {
    name.chars()
        .map(|c| {
            if c.is_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '_'
            }
        })
        .collect()
}

/// Keys that are text take the value as it stands; all others take it as TOML would, else as text.
fn env_value(path: &[String], text: &str, origin: &str) -> Value {
    let origin = origin.to_owned();
    let parsed = match reference::takes_plain_text(path) {
        true => None,
        false => text.parse::<toml_edit::Value>().ok(),
    };
    match parsed {
        Some(value) => plain(&value, &origin),
        None => Value::new(Some(&origin), text),
    }
}

fn plain(value: &toml_edit::Value, origin: &String) -> Value {
    use toml_edit::Value as Toml;
    match value {
        Toml::String(text) => Value::new(Some(origin), text.value().as_str()),
        Toml::Integer(n) => Value::new(Some(origin), *n.value()),
        Toml::Float(x) => Value::new(Some(origin), *x.value()),
        Toml::Boolean(flag) => Value::new(Some(origin), *flag.value()),
        Toml::Datetime(at) => Value::new(Some(origin), at.value().to_string()),
        Toml::Array(items) => Value::new(
            Some(origin),
            items.iter().map(|item| plain(item, origin)).collect::<Vec<_>>(),
        ),
        Toml::InlineTable(table) => {
            let map = table
                .iter()
                .map(|(name, item)| (name.to_owned(), plain(item, origin)));
            Value::new(Some(origin), map.collect::<Map<_, _>>())
        }
    }
}

fn put(root: &mut Value, path: &[String], value: Value) {
    let mut at = root;
    for part in path {
        if !matches!(at.kind, ValueKind::Table(_)) {
            at.kind = ValueKind::Table(Map::new());
        }
        let ValueKind::Table(map) = &mut at.kind else {
            return;
        };
        at = map
            .entry(part.clone())
            .or_insert_with(|| Value::new(None, ValueKind::Nil));
    }
    *at = value;
}

/// Merges layers, later ones winning, into one tree.
pub(super) fn merge(layers: &[Layer]) -> Result<Node, config::ConfigError> {
    let builder = layers.iter().fold(config::Config::builder(), |builder, layer| {
        builder.add_source(layer.clone())
    });
    let mut merged = builder.build()?.collect()?;
    let mut tables = BTreeMap::new();
    for layer in layers {
        tables.extend(layer.tables.clone());
    }
    let root = merged
        .remove(ROOT)
        .unwrap_or_else(|| Value::new(None, Map::<String, Value>::new()));
    Ok(node(root, "", &tables))
}

fn node(value: Value, path: &str, tables: &BTreeMap<String, Origin>) -> Node {
    let origin = value
        .origin()
        .map(Origin::decode)
        .or_else(|| tables.get(path).cloned())
        .unwrap_or_default();
    let data = match value.kind {
        ValueKind::Table(map) => Data::Table(
            map.into_iter()
                .map(|(name, v)| (name.clone(), node(v, &join(path, &name), tables)))
                .collect(),
        ),
        ValueKind::Array(items) => Data::List(
            items
                .into_iter()
                .enumerate()
                .map(|(i, v)| node(v, &format!("{path}[{i}]"), tables))
                .collect(),
        ),
        ValueKind::Boolean(flag) => Data::Flag(flag),
        ValueKind::I64(n) => Data::Int(n),
        ValueKind::Float(x) => Data::Float(x),
        ValueKind::String(text) => Data::Text(text),
        // TOML has no wider integers and no nothing; kept as text they fail their type check with a finding.
        ValueKind::U64(n) => Data::Text(n.to_string()),
        ValueKind::I128(n) => Data::Text(n.to_string()),
        ValueKind::U128(n) => Data::Text(n.to_string()),
        ValueKind::Nil => Data::Text(String::new()),
    };
    Node { origin, data }
}
