//! Every key of `actors.toml`, as the types of the sections tell it: what it takes, default, effect. Manual, sample,
//! schema and effective configuration come from here.
//!
//! `schemars` gives descriptions, defaults and words, [`read::fields`] the order. What a schema has no word for stands
//! in keys of our own: `x-takes` (what it takes, as a phrase), `x-default` (what it depends on), `x-mask` (how it is
//! masked), `x-leaf` (its table is one value: `inline`, or key by key in the order of another table).

use super::model::Config;
use super::read::{self, RESERVED};
use super::tree::{join, key, quoted};
use schemars::generate::SchemaSettings;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// One key.
#[derive(Clone, Debug)]
pub struct Key {
    /// Dotted path; `NAME` stands for a section's name, `[]` for each element of a list.
    pub path: String,
    /// What it takes, in words. Empty for a table that is written by its keys.
    pub takes: String,
    /// The words that it takes, if it takes one of some words.
    pub words: Vec<String>,
    /// Its default; `null` for none.
    pub default: Value,
    /// What its default depends on, or `required`.
    pub depends: Option<String>,
    /// A value that it may have.
    pub example: Value,
    /// What it does, and what is traded for it.
    pub effect: String,
    pub(super) mask: Option<String>,
    pub(super) leaf: Option<String>,
    is_text: bool,
}

/// All keys.
pub struct Manual {
    /// In the order of the types.
    pub keys: Vec<Key>,
    fields: BTreeMap<String, &'static [&'static str]>,
}

/// All keys, as the types of the sections tell them.
pub fn manual() -> &'static Manual {
    static MANUAL: LazyLock<Manual> = LazyLock::new(Manual::new);
    &MANUAL
}

/// The schema of the whole file, with our own keys in it.
fn full_schema() -> Value {
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
            if let Some(section) = of.get("additionalProperties").filter(|_| self.is_table(&named)) {
                self.table(&named, section);
                continue;
            }
            let mut required = forms(schema)
                .filter_map(|form| form.get("required")?.as_array())
                .flatten();
            let mut key = Key::new(path.clone(), of, required.any(|key| key == name));
            let parts = match of.get("items") {
                _ if key.leaf.is_some() => None,
                Some(items) if self.is_table(&element) => Some((element, items)),
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
    pub fn find(&self, path: &str) -> Option<&Key> {
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
pub fn is_named(section: &str) -> bool {
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

const HEAD: &str = "\
# Configuration

Printed from the sections in `src/config/`; `SLUICEGATE_WRITE_DOCS=1 cargo test --lib config::tests::manual` writes it
again.

Sluicegate reads `./actors.toml`, or the files that `--config` names: several overlay each other key by key, the later
one wins. Lists are replaced, tables are merged. `sluicegate check` names every mistake with file and line, and
`sluicegate check --effective` shows every value and where it comes from, secrets masked. Only a partner's `url` and the
link between topic and partner have no default.

## Environment

`SLUICEGATE__SECTION__KEY` or `SLUICEGATE__SECTION__NAME__KEY` goes over all files; parts are separated by two underscores:

```sh
SLUICEGATE__NODE__MEMORY=1GiB sluicegate run
SLUICEGATE__PARTNERS__ACME_EU__TIMEOUT__REQUEST=5s sluicegate run           # acme-eu, acme.eu or Acme_EU
env 'SLUICEGATE__PARTNERS__acme-eu__CONCURRENCY=5' sluicegate run           # the exact name
env 'SLUICEGATE__PARTNERS__acme-eu__HEADERS__X-Api-Version=3' sluicegate run
```

Section and key may be in any case. A name is meant exactly as written if such a section exists; else the one that is
alike but for case and punctuation (several such are an error); else it begins a new section. Header names are kept as
written. Text is taken as it stands; counts, lists and tables as TOML writes them: `SLUICEGATE__PARTNERS__acme__LIMITS='[\"5/s\"]'`.

`SLUICEGATE_ADMIN` and `SLUICEGATE_TOKEN` tell commands which node to talk to, and with what token.

## Units

| kind | forms |
|---|---|
| duration | `200ms`, `2s`, `5m`, `24h`, `8d`, `1h30m`; a bare number is refused |
| size | `512MiB`, `64KiB` (1,024s), `10KB` (1,000s), `100B` |
| rate | `500/s`, `20000/min`, `10/250ms`, `7/day`: any sliding window of that length; `1000000/day@Europe/London`: from midnight to midnight of a zone |
| template | `{{ }}` over `value`, `key`, `headers`, `topic`, `partition`, `offset`, `time`, `id`, `message_id`, `attempt`, `partner`, `source`, `idempotency_key` and `secret('name')` |

Names of sections are letters, digits, `.`, `_` and `-`, at most 200 bytes.
";

const WHICH: &str = "
## Which knob matters when

Per node. What is not named can stay at its default.

| actor | 10 messages/s | 1,000 messages/s | 100,000 messages/s (several nodes or fast partners) |
|---|---|---|---|
| all: `actors.threads` | 1 is enough and saves memory | 0 (one a core) | 0; cores are the bound |
| partition: `topics.NAME.partitions` | 1 keeps everything in one order of reading | 4 | 2 x cores of the cluster or more |
| partition: `actors.window`, `actors.read_chunk` | default | default; raise `window` where few keys hold most records | `read_chunk` 1 MiB; `window` x record size x partitions must fit `node.memory` |
| partition: `actors.ranges` | default | default | raise where one stuck key lets millions of others finish |
| subpartition: `actors.busy_keys`, `topics.NAME.busy_keys` | default | ≥ rate x latency ÷ partitions: 1,000/s x 0.1 s ÷ 4 = 25; default is ample | 100,000/s x 0.1 s ÷ 16 = 625; raise to twice that |
| limiter: `partners.NAME.limits` | what the partner allows: the first knob at any rate | the same | the same |
| limiter: `partners.NAME.concurrency` | default | rate x latency: 1,000/s x 0.1 s = 100 | rate x latency, bounded by `actors.requests` |
| limiter: `actors.permits` | 1 to 16: fair turns at a low limit | default | 1,024: fewer messages between actors |
| ledger: `log.commit_gap` | default: a commit follows at once when idle | default | 2-5 ms: larger commits, each delivery that much later |
| ledger: `ledger.checkpoint_entries` | default | default | 5,000,000 where restarts may take a second longer |
| node: `actors.requests` | default | default | sum of rate x latency over partners; needs as many file descriptors |
| supervisors: `actors.restart.*` | default | default | default |
";

/// The manual page as Markdown.
pub fn markdown() -> String {
    let mut page = String::from(HEAD);
    let mut section = "";
    let manual = manual();
    for key in manual.keys.iter().filter(|key| !key.takes.is_empty()) {
        let (head, short) = key.path.split_once('.').unwrap_or((&key.path, ""));
        if head != section {
            section = head;
            let title = if is_named(head) {
                format!("{head}.NAME")
            } else {
                head.to_owned()
            };
            page.push_str(&format!(
                "\n## `[{title}]`\n\n| key | takes | default | effect |\n|---|---|---|---|\n"
            ));
        }
        let short = short.strip_prefix("NAME.").unwrap_or(short);
        let default = match (&key.depends, &key.default) {
            (Some(depends), _) => depends.clone(),
            (None, Value::Null | Value::Object(_)) => "unset".to_owned(),
            (None, default) => format!("`{}`", manual.toml(&key.path, default)),
        };
        let effect = key.effect.replace('|', "\\|");
        page.push_str(&format!("| `{short}` | {} | {default} | {effect} |\n", key.takes));
    }
    page.push_str(WHICH);
    let reserved = RESERVED.map(|name| format!("`{name}`")).join(", ");
    page.push_str(&format!(
        "\nSection names kept for later versions: {reserved}; and `log.kafka`.\n"
    ));
    page
}
