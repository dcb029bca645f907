//! The table of keys, the shipped file and the manual say what the loader does.

use super::super::effective::{self, Show};
use super::super::manual::{is_named, manual};
use super::super::{pages, read};
use super::{EVERYTHING, good, partner};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Each commented-out key of the shipped file can stand as it is written there.
#[test]
fn what_the_shipped_file_comments_out_loads() {
    let not_at_once = ["#file = ", "#deliver = ", "#ca = "];
    let lines = pages::sample();
    let lines = lines.lines().map(|line| match line.strip_prefix('#') {
        Some(key) if key.starts_with([' ', ':']) || not_at_once.iter().any(|k| line.starts_with(k)) => line,
        Some(key) => key,
        None => line,
    });
    let all: Vec<&str> = lines.collect();
    let loaded = good(&all.join("\n"));
    assert_eq!(loaded.config.partners["example"].retry.attempts, Some(100));
    assert_eq!(loaded.config.limits["acme-account"].rates.len(), 3);
    let set = all
        .iter()
        .filter(|line| line.contains(" = ") && !line.starts_with('#'))
        .count();
    assert!(set > 80, "only {set} keys are shown");
}

/// An editor is told every key, and nothing of this machine.
#[test]
fn the_schema_has_every_key() {
    let schema = pages::schema();
    let text = schema.to_string();
    for gone in ["\"x-", "\"required\":", "\"default\":null"] {
        assert!(!text.contains(gone), "{gone}");
    }
    let node = &schema["properties"]["node"];
    assert_eq!(node["properties"]["drain"]["default"], "20s");
    for of_this_machine in [&node["default"], &node["properties"]["id"]["default"]] {
        assert!(of_this_machine.is_null(), "{of_this_machine}");
    }
    let partner = &schema["properties"]["partners"]["additionalProperties"]["properties"];
    for key in manual()
        .keys
        .iter()
        .filter_map(|key| key.path.strip_prefix("partners.NAME."))
    {
        let name = key.split(['.', '[']).next().unwrap_or_default();
        assert!(partner[name]["description"].is_string(), "{key}");
    }
}

/// A hole reads as anything: so the manual knows the keys of every table.
#[test]
fn the_types_tell_all_their_keys() {
    assert!(read::whole_from_a_hole().is_ok());
    let fields = read::fields();
    for (table, last) in [
        ("", "dedup"),
        ("actors.restart", "within"),
        ("secrets.NAME", "file"),
        ("partners.NAME.doubt", "gateway"),
        ("partners.NAME.verdict[]", "scope"),
        ("topics.NAME.deliver[]", "when"),
    ] {
        assert_eq!(fields[table].last(), Some(&last), "{table}");
    }
    // What names of sections are is written down, for it must be known before a tree is there.
    let named: BTreeSet<_> = fields
        .keys()
        .filter_map(|table| table.strip_suffix(".NAME"))
        .collect();
    assert!(
        named.iter().all(|section| is_named(section)) && named.len() == 4,
        "{named:?}"
    );
    for key in &manual().keys {
        assert!(!key.effect.is_empty(), "{}", key.path);
    }
}

#[test]
fn the_everything_file_sets_every_key_and_loads() {
    let loaded = good(EVERYTHING);
    let set: BTreeSet<String> = loaded.sources.keys().map(|path| pattern_of(path)).collect();
    for key in manual().keys.iter().filter(|key| !key.takes.is_empty()) {
        assert!(
            set.contains(&key.path),
            "{} is not set in everything.toml",
            key.path
        );
    }
    assert!(loaded.config.partners["full"].verify.is_some());
}

/// `partners.acme.verdict[0].when` → `partners.NAME.verdict[].when`
fn pattern_of(path: &str) -> String {
    let parts: Vec<&str> = path.split('.').collect();
    let named = is_named(parts[0]);
    let parts = parts.iter().enumerate().map(|(i, part)| match i {
        1 if named => "NAME".to_owned(),
        _ => part.split('[').next().unwrap().to_owned() + if part.contains('[') { "[]" } else { "" },
    });
    parts.collect::<Vec<_>>().join(".")
}

#[test]
fn the_table_tells_the_defaults_that_hold() {
    let loaded = good(
        "[partners.NAME]\nurl = 'http://127.0.0.1:1/'\n[topics.NAME]\npartner = 'NAME'\n[partners.NAME.verify]\nurl = 'http://127.0.0.1:1/'\ndelivered = 'status == 200'\nnever_seen = 'status == 404'\n",
    );
    let entries = effective::entries(&loaded.config, Show::Masked);
    let mut compared = 0;
    for entry in entries {
        let Some(key) = manual().find(&entry.pattern) else {
            panic!("{} is not in the manual", entry.pattern);
        };
        // One of `partner` and `deliver` is always set.
        if key.depends.is_none() && key.path != "topics.NAME.deliver" {
            assert_eq!(key.default, entry.value, "{}", entry.pattern);
            compared += 1;
        }
    }
    assert!(compared > 60, "{compared}");
    // Defaults that depend on another key.
    let config = &loaded.config;
    let p = &config.partners["NAME"];
    assert_eq!(p.flood.doubts_in_a_row as usize, p.concurrency);
    assert_eq!(p.verify.as_ref().unwrap().timeout, p.timeout.request);
}

#[test]
fn what_is_printed_is_up_to_date() {
    for (name, page) in [
        ("docs/configuration.md", pages::markdown()),
        ("actors.toml", pages::sample()),
    ] {
        let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name);
        if std::env::var_os("SLUICEGATE_WRITE_DOCS").is_some() {
            std::fs::write(&file, &page).unwrap();
        }
        let stored = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(
            stored == page,
            "{name} is old: SLUICEGATE_WRITE_DOCS=1 cargo test --lib config::tests::manual writes it"
        );
    }
}

#[test]
fn every_choice_of_the_table_is_taken() {
    for key in &manual().keys {
        for word in &key.words {
            if key.path.ends_with("verdict[].scope") {
                good(&partner(&format!(
                    "verdict = [{{ when = 'status == 429', is = 'later', scope = '{word}' }}]"
                )));
                continue;
            }
            if key.path.contains("verdict[]") {
                good(&partner(&format!(
                    "verdict = [{{ when = 'status == 200', is = '{word}' }}]"
                )));
                continue;
            }
            let (section, name) = key.path.rsplit_once('.').unwrap();
            let (section, name) = match section.strip_suffix(".doubt") {
                Some(section) => (section, format!("doubt = {{ {name} = '{word}' }}")),
                None => (section, format!("{name} = '{word}'")),
            };
            let needs = match word.as_str() {
                "verify" => {
                    "verify = { url = 'http://127.0.0.1:1/', delivered = 'status == 200', never_seen = 'status == 404' }"
                }
                _ => "",
            };
            let text = match section {
                "partners.NAME" => partner(&format!("{name}\n{needs}")),
                "topics.NAME" => {
                    format!("[topics.t]\n{name}\npartner = 'p'\n[partners.p]\nurl = 'http://127.0.0.1:1/'\n")
                }
                section => format!("[{section}]\n{name}\n"),
            };
            good(&text);
        }
    }
}
