//! What is printed from the keys: the manual (`docs/configuration.md`), the sample (`actors.toml`), the schema for
//! editors.

use super::manual::{Key, full_schema, is_empty, is_named, manual};
use super::read::RESERVED;
use serde_json::Value;

const HEAD: &str = "\
# Configuration

Printed from the sections in `src/config/`; `SLUICEGATE_WRITE_DOCS=1 cargo test --lib config::tests::manual` writes it
again, and `actors.toml` with it.

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

## Editors

`sluicegate schema > actors.schema.json` writes the JSON Schema of the file. Editors with TOML support (Even Better TOML, Taplo)
complete and explain keys by it where the file begins with `#:schema actors.schema.json`.

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

const SAMPLE_HEAD: &str = "\
#:schema actors.schema.json
# Settings of a Sluicegate node. Every key is shown: what is commented out stands at its default, or is an example where
# there is none. `sluicegate check` finds mistakes, `sluicegate check --effective` shows what holds and where it comes from.
# All keys with their effects: docs/configuration.md. Several files overlay each other (`--config A --config B`), and
# SLUICEGATE__SECTION__KEY in the environment goes over all of them. Editors complete and explain keys once
# `sluicegate schema > actors.schema.json` has run.
";

/// What the sections with names are called in the sample.
const NAMES: [(&str, &str); 4] = [
    ("secrets", "acme"),
    ("limits", "acme-account"),
    ("partners", "example"),
    ("topics", "requests"),
];

/// What the sample sets.
const SET: [(&str, &str); 6] = [
    ("node.data", "\"data\""),
    ("partners.NAME.url", "\"http://127.0.0.1:18181/hook\""),
    ("partners.NAME.limits", "[\"50/s\"]"),
    ("topics.NAME.partner", "\"example\""),
    ("topics.NAME.id", "\"json:/id\""),
    ("topics.NAME.key", "\"json:/user\""),
];

/// The shipped `actors.toml`: every key, commented out unless the sample sets it.
pub fn sample() -> String {
    let mut page = SAMPLE_HEAD.to_owned();
    let manual = manual();
    let mut shown = String::new();
    for key in &manual.keys {
        let Some((section, short)) = key.path.split_once('.') else {
            let name = NAMES.iter().find(|(section, _)| *section == key.path);
            let header = match name {
                Some((section, name)) => format!("[{section}.{name}]"),
                None => format!("[{}]", key.path),
            };
            let of_it = |set: &str| set.split('.').next() == Some(&key.path);
            let is_set = name.is_none() || SET.iter().any(|(set, _)| of_it(set));
            let mark = if is_set { "" } else { "#" };
            page.push_str(&format!("\n{}{mark}{header}\n", comment(&key.effect)));
            continue;
        };
        // A table that has an example, or a short form, is shown as a whole.
        let is_part = !shown.is_empty()
            && key
                .path
                .strip_prefix(&shown)
                .is_some_and(|rest| rest.starts_with(['.', '[']));
        if is_part || (key.takes.is_empty() && is_empty(&key.example)) {
            continue;
        }
        shown.clone_from(&key.path);
        let set = SET.iter().find(|(path, _)| *path == key.path);
        let usual = if is_empty(&key.default) || key.default.is_object() {
            &key.example
        } else {
            &key.default
        };
        let value = set.map_or_else(|| manual.toml(&key.path, usual), |(_, value)| (*value).to_owned());
        let short = if is_named(section) {
            short.trim_start_matches("NAME.")
        } else {
            short
        };
        let line = format!("{}{short} = {value}", if set.is_some() { "" } else { "#" });
        page.push_str(&explained(&line, key));
    }
    page
}

/// A line of the sample with the first sentence of what its key does: behind it, or above it where that is too long.
fn explained(line: &str, key: &Key) -> String {
    let sentence = key
        .effect
        .split(". ")
        .next()
        .unwrap_or_default()
        .trim_end_matches('.');
    let words = if key.words.len() > 1 {
        format!("{}: ", key.words.join(" | "))
    } else {
        String::new()
    };
    let behind = format!("{line:<27} # {words}{sentence}");
    if behind.chars().count() <= WIDTH {
        return format!("{behind}\n");
    }
    format!("{}{line}\n", comment(&format!("{words}{sentence}")))
}

/// Longest line of the sample.
const WIDTH: usize = 120;

/// A text as lines of comment.
fn comment(text: &str) -> String {
    let mut lines = String::new();
    let mut line = String::from("#");
    for word in text.split(' ') {
        if line.chars().count() + 1 + word.chars().count() > WIDTH {
            lines.push_str(&line);
            lines.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    format!("{lines}{line}\n")
}

/// The JSON Schema of the file, for editors. Nothing is required, for several files may overlay each other.
pub fn schema() -> Value {
    let mut schema = full_schema();
    plain(&mut schema);
    schema["title"] = "actors.toml of Sluicegate".into();
    schema
}

/// Takes out of a schema what only we understand.
fn plain(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            // The default of a table stands at its keys.
            let is_idle = |default: &Value| default.is_null() || default.is_object();
            if map.contains_key("x-default") || map.get("default").is_some_and(is_idle) {
                map.remove("default");
            }
            map.retain(|name, value| !name.starts_with("x-") && (name != "required" || !value.is_array()));
            if let Some(Value::String(text)) = map.get_mut("description") {
                *text = text.replace('\n', " ");
            }
            map.values_mut().for_each(plain);
        }
        Value::Array(items) => items.iter_mut().for_each(plain),
        _ => {}
    }
}
