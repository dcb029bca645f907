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
use super::manual;
use config::{Map, Source, Value, ValueKind};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

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
#[derive(Debug)]
pub(super) struct Node {
    pub(super) origin: Origin,
    pub(super) data: Data,
    /// Its key in the table around it.
    pub(super) name: String,
    /// Dotted key, as findings name it.
    pub(super) path: String,
    /// The same with `NAME` and `[]`, as [`manual`] names it.
    pub(super) pattern: String,
    /// Its finding is written down: it is not read again.
    pub(super) wrong: Cell<bool>,
    /// Keys of this table that must be there and are not.
    pub(super) missing: RefCell<Vec<&'static str>>,
}

#[derive(Debug)]
pub(super) enum Data {
    Text(String),
    Int(i64),
    Float(f64),
    Flag(bool),
    List(Vec<Node>),
    Table(BTreeMap<String, Node>),
}

impl Node {
    /// Whether it is a table with this key.
    pub(super) fn has(&self, key: &str) -> bool {
        matches!(&self.data, Data::Table(map) if map.contains_key(key))
    }

    /// Where each key below it was written, by dotted key.
    pub(super) fn origins(&self) -> BTreeMap<String, Origin> {
        let mut origins = BTreeMap::new();
        self.put_origins(&mut origins);
        origins
    }

    fn put_origins(&self, origins: &mut BTreeMap<String, Origin>) {
        if !self.path.is_empty() {
            origins.insert(self.path.clone(), self.origin.clone());
        }
        match &self.data {
            Data::Table(map) => map.values().for_each(|node| node.put_origins(origins)),
            Data::List(items) => items.iter().for_each(|node| node.put_origins(origins)),
            _ => {}
        }
    }

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

/// The key in which a table's own origin travels: merging would lose it.
const ORIGIN: &str = "\0";

/// One layer of settings, as the `config` crate takes it.
#[derive(Clone, Debug)]
pub(super) struct Layer(Value);

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        Ok(Map::from_iter([(ROOT.to_owned(), self.0.clone())]))
    }
}

/// Reads one file's text. A text that is no TOML is one finding.
pub(super) fn file_layer(layer: usize, name: &str, text: &str) -> Result<Layer, Box<Finding>> {
    let lines = LineIndex::new(text);
    let origin = |line| Origin {
        layer,
        line,
        name: name.to_owned(),
    };
    let document = toml_edit::Document::parse(text).map_err(|e| {
        // The text itself is not shown: it may hold a secret.
        let message = format!("not TOML: {}", e.message().trim().replace('\n', ", "));
        let mut finding = Finding::at(Severity::Error, "", None).says(&message);
        finding.file = Some(name.to_owned());
        finding.line = e.span().map(|span| lines.line(span.start));
        Box::new(finding)
    })?;
    let written = |span: Option<Range<usize>>, around: &Origin| match span {
        Some(span) => origin(lines.line(span.start)),
        None => around.clone(),
    };
    Ok(Layer(table(document.as_table(), &origin(1), &written)))
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

/// Where a span lies, by its place and what is around it.
type Written<'a> = &'a dyn Fn(Option<Range<usize>>, &Origin) -> Origin;

/// TOML as values that say where they were written.
fn table(table: &dyn toml_edit::TableLike, origin: &Origin, written: Written<'_>) -> Value {
    let mut map = Map::new();
    for (name, of) in table.iter() {
        let span = table.get_key_value(name).and_then(|(key, _)| key.span());
        let origin = written(span.or_else(|| of.span()), origin);
        map.insert(name.to_owned(), item(of, &origin, written));
    }
    table_of(map, origin)
}

fn table_of(mut map: Map<String, Value>, origin: &Origin) -> Value {
    map.insert(ORIGIN.to_owned(), Value::new(None, origin.encode()));
    Value::new(None, map)
}

fn item(item: &toml_edit::Item, origin: &Origin, written: Written<'_>) -> Value {
    match item {
        toml_edit::Item::Value(of) => value(of, origin, written),
        toml_edit::Item::Table(of) => table(of, origin, written),
        toml_edit::Item::ArrayOfTables(tables) => {
            let tables = tables
                .iter()
                .map(|of| table(of, &written(of.span(), origin), written));
            Value::new(Some(&origin.encode()), tables.collect::<Vec<_>>())
        }
        toml_edit::Item::None => Value::new(Some(&origin.encode()), ValueKind::Nil),
    }
}

fn value(of: &toml_edit::Value, origin: &Origin, written: Written<'_>) -> Value {
    use toml_edit::Value as Toml;
    let kind: ValueKind = match of {
        Toml::String(text) => text.value().as_str().into(),
        Toml::Integer(n) => (*n.value()).into(),
        Toml::Float(x) => (*x.value()).into(),
        Toml::Boolean(flag) => (*flag.value()).into(),
        Toml::Datetime(at) => at.value().to_string().into(),
        Toml::InlineTable(of) => return table(of, origin, written),
        Toml::Array(items) => {
            let items = items
                .iter()
                .map(|of| value(of, &written(of.span(), origin), written));
            items.collect::<Vec<_>>().into()
        }
    };
    Value::new(Some(&origin.encode()), kind)
}

/// Reads the overrides of the environment; `files` is the tree that the files alone gave.
pub(super) fn env_layer(
    layer: usize,
    files: &Node,
    env: &BTreeMap<String, String>,
    findings: &mut Vec<Finding>,
) -> Layer {
    let mut root = table_of(Map::new(), &Origin::default());
    for (name, text) in env.range(ENV_PREFIX.to_owned()..) {
        let Some(rest) = name.strip_prefix(ENV_PREFIX) else {
            break;
        };
        let origin = Origin {
            layer,
            line: 0,
            name: name.clone(),
        };
        let mut refuse =
            |text: &str| findings.push(Finding::at(Severity::Error, "", Some(&origin)).says(text));
        let parts: Vec<&str> = rest.split("__").collect();
        if parts.len() < 2 || parts.iter().any(|part| part.is_empty()) {
            refuse(
                "not the name of a key\nwrite SLUICEGATE__SECTION__KEY or SLUICEGATE__SECTION__NAME__KEY, as SLUICEGATE__NODE__MEMORY=1GiB",
            );
            continue;
        }
        let path = match resolve(&parts, files) {
            Ok(path) => path,
            Err(candidates) => {
                refuse(&format!(
                    "may mean several sections: {}\nwrite the section's name exactly, as: env 'SLUICEGATE__PARTNERS__acme-eu__CONCURRENCY=5' sluicegate run",
                    candidates.join(", ")
                ));
                continue;
            }
        };
        // Keys that are text take the value as it stands; all others take it as TOML would, else as text.
        let parsed = match manual::takes_plain_text(&path) {
            true => None,
            false => text.parse::<toml_edit::Value>().ok(),
        };
        let of = match parsed {
            Some(of) => value(&of, &origin, &|_, around| around.clone()),
            None => Value::new(Some(&origin.encode()), text.as_str()),
        };
        put(&mut root, &path, of, &origin);
    }
    Layer(root)
}

/// The dotted path that the parts of a variable's name mean, or the sections it may mean.
fn resolve(parts: &[&str], files: &Node) -> Result<Vec<String>, Vec<String>> {
    let section = parts[0].to_lowercase();
    let mut path = vec![section.clone()];
    let mut rest = &parts[1..];
    if manual::is_named(&section) {
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
        let free = manual::is_free_table(&path);
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

fn put(root: &mut Value, path: &[String], value: Value, origin: &Origin) {
    let mut at = root;
    for part in path {
        if !matches!(at.kind, ValueKind::Table(_)) {
            *at = table_of(Map::new(), origin);
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
    let root = builder.build()?.collect()?.remove(ROOT);
    let root = root.unwrap_or_else(|| table_of(Map::new(), &Origin::default()));
    Ok(node(root, String::new(), String::new(), String::new()))
}

/// Pairs of keys of one table of which one can stand: an overlay cannot take the other one away, so the later layer
/// wins. In one layer it is a mistake.
const EXCLUSIVE: [(&str, &str, &str); 3] = [
    ("secrets.NAME", "env", "file"),
    ("listen.token", "env", "file"),
    ("topics.NAME", "partner", "deliver"),
];

fn node(value: Value, name: String, path: String, pattern: String) -> Node {
    let mut origin = value.origin().map(Origin::decode).unwrap_or_default();
    let data = match value.kind {
        ValueKind::Table(mut map) => {
            let own = map.remove(ORIGIN).and_then(|own| own.into_string().ok());
            origin = own.map_or(origin, |own| Origin::decode(&own));
            let child = |(name, of): (String, Value)| {
                let path = join(&path, &name);
                let pattern = match manual::is_named(&pattern) {
                    true => format!("{pattern}.NAME"),
                    false => join(&pattern, &name),
                };
                (name.clone(), node(of, name, path, pattern))
            };
            let mut map: BTreeMap<String, Node> = map.into_iter().map(child).collect();
            for (of, one, other) in EXCLUSIVE {
                let layer = |key| map.get(key).map(|node: &Node| node.origin.layer);
                if of == pattern
                    && let (Some(a), Some(b)) = (layer(one), layer(other))
                    && a != b
                {
                    map.remove(if a < b { one } else { other });
                }
            }
            Data::Table(map)
        }
        ValueKind::Array(items) => {
            let pattern = format!("{pattern}[]");
            let items = items.into_iter().enumerate();
            let items = items.map(|(i, of)| node(of, name.clone(), format!("{path}[{i}]"), pattern.clone()));
            Data::List(items.collect())
        }
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
    Node {
        origin,
        data,
        name,
        path,
        pattern,
        wrong: Cell::new(false),
        missing: RefCell::default(),
    }
}
