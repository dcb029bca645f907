//! The loader as a whole: what loads, what is refused, and how it is told.

use super::check::Machine;
use super::effective::{self, Show, Which};
use super::load::load_on;
use super::read::Reader;
use super::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

const SECTION_9: &str = include_str!("../../tests/fixtures/design-section-9.toml");
const EVERYTHING: &str = include_str!("../../tests/fixtures/everything.toml");
const SMALL: &str = "
[partners.acme]
url = 'http://127.0.0.1:1/hook'
[topics.orders]
partner = 'acme'
";

fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect()
}

/// Loads texts as files `1.toml`, `2.toml`, …, on a machine without bounds.
fn load_texts(texts: &[&str], vars: &[(&str, &str)]) -> Result<Loaded, Vec<Finding>> {
    let dir = tempfile::tempdir().unwrap();
    let files: Vec<PathBuf> = texts
        .iter()
        .enumerate()
        .map(|(i, text)| {
            let file = dir.path().join(format!("{}.toml", i + 1));
            std::fs::write(&file, text).unwrap();
            file
        })
        .collect();
    load_on(&files, env(vars), &Machine::default())
}

fn good(text: &str) -> Loaded {
    load_texts(&[text], &[]).unwrap_or_else(|findings| panic!("{}", told(&findings)))
}

fn bad(text: &str) -> Vec<Finding> {
    load_texts(&[text], &[])
        .err()
        .unwrap_or_else(|| panic!("must be refused: {text}"))
}

fn told(findings: &[Finding]) -> String {
    findings.iter().map(|f| format!("{f}\n")).collect()
}

/// A text with one partner whose section holds these lines.
fn partner(lines: &str) -> String {
    format!("[topics.t]\npartner = 'p'\n[partners.p]\nurl = 'http://127.0.0.1:1/'\n{lines}\n")
}

/// Asserts that a text is refused with a finding at this key whose text contains this, and tells the rest.
#[track_caller]
fn refuses(text: &str, key: &str, says: &str) {
    let findings = bad(text);
    let hit = |f: &&Finding| f.severity == Severity::Error && f.key == key && f.to_string().contains(says);
    assert!(
        findings.iter().any(|f| hit(&f)),
        "no error at {key} with {says:?} in:\n{}",
        told(&findings)
    );
}

#[track_caller]
fn warns(text: &str, key: &str, says: &str) {
    let warnings = good(text).warnings;
    let hit = |f: &&Finding| f.key == key && f.to_string().contains(says);
    assert!(
        warnings.iter().any(|f| hit(&f)),
        "no warning at {key} with {says:?} in:\n{}",
        told(&warnings)
    );
}

#[test]
fn section_9_loads_as_it_stands_and_names_the_missing_token() {
    let loaded = good(SECTION_9);
    let acme = &loaded.config.partners["acme"];
    assert_eq!(
        acme.headers,
        [(
            "authorization".to_owned(),
            "Bearer {{ secret('acme') }}".to_owned()
        )]
    );
    assert_eq!(acme.limits, [LimitRef::Named("acme-account".into())]);
    assert_eq!(
        (acme.concurrency, acme.connect_timeout),
        (64, Duration::from_secs(2))
    );
    let topic = &loaded.config.topics["acme-requests"];
    assert_eq!(topic.deliver, [DeliverConfig::to("acme")]);
    assert_eq!(topic.id, [IdSource::Json("/id".into())]);
    assert_eq!(topic.key, KeySource::Json("/user".into()));
    let warnings = told(&loaded.warnings);
    assert!(
        warnings.contains("ACME_TOKEN is not set") && loaded.warnings.len() == 1,
        "{warnings}"
    );
    assert!(loaded.secret_sources().is_err());
    // With the token there is nothing to say, and `run` gets it.
    let loaded = load_texts(&[SECTION_9], &[("ACME_TOKEN", "s3cret-value")]).unwrap();
    assert!(loaded.warnings.is_empty(), "{}", told(&loaded.warnings));
    assert_eq!(
        loaded.secret_sources().unwrap()["acme"],
        SecretSource::Env("ACME_TOKEN".into())
    );
    assert!(!loaded.effective().contains("s3cret-value") && !format!("{loaded:?}").contains("s3cret-value"));
}

#[test]
fn the_shipped_file_loads_without_a_word() {
    let loaded = good(include_str!("../../actors.toml"));
    assert!(loaded.warnings.is_empty(), "{}", told(&loaded.warnings));
}

/// Each commented-out key of the shipped file is one that the loader knows.
#[test]
fn what_the_shipped_file_comments_out_exists() {
    let shipped = include_str!("../../actors.toml");
    let mut section = String::new();
    let mut seen = 0;
    for line in shipped.lines() {
        let line = line.strip_prefix("# ").unwrap_or(line);
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            section = name.to_owned();
        } else if let Some((key, _)) = line
            .split_once(" = ")
            .filter(|(key, _)| !key.trim().contains(' '))
        {
            let mut path: Vec<String> = section
                .split('.')
                .chain(key.trim().split('.'))
                .map(str::to_owned)
                .collect();
            // Tables and secrets written inline name their first key only.
            let known = reference::KEYS.iter().any(|k| {
                if reference::is_named(&path[0]) && path.len() > 1 {
                    path[1] = "NAME".into();
                }
                let dotted = path.join(".");
                let rest = k.path.strip_prefix(&dotted);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
            });
            assert!(known, "{section}: {line}");
            seen += 1;
        }
    }
    assert!(seen > 40, "only {seen} keys are shown");
}

#[test]
fn all_mistakes_are_told_at_once_with_file_line_and_nearest_name() {
    let text = "\
[node]
memory = '512'
drian = '20s'
[partners.acme]
url = 'ftp://x/'
concurrency = 0
timeout = { conect = '1s' }
limits = 'acme-acount'
[limits.acme-account]
rates = ['5/s']
[topics.t]
partner = 'acmee'
partitions = 'four'
[shoes]
";
    let findings = bad(text);
    let told = told(&findings);
    for (line, key, says) in [
        (2, "node.memory", "expected a size with its unit"),
        (3, "node.drian", "did you mean `drain`?"),
        (5, "partners.acme.url", "http://"),
        (6, "partners.acme.concurrency", "at least 1"),
        (7, "partners.acme.timeout.conect", "did you mean `connect`?"),
        (8, "partners.acme.limits", "did you mean `acme-account`?"),
        (12, "topics.t.partner", "did you mean `acme`?"),
        (13, "topics.t.partitions", "whole number"),
        (14, "shoes", "known here: "),
    ] {
        let hit = findings
            .iter()
            .any(|f| f.line == Some(line) && f.key == key && f.to_string().contains(says));
        assert!(hit, "{key} on line {line}: {says}\n{told}");
    }
    let errors = findings.iter().filter(|f| f.severity == Severity::Error).count();
    assert_eq!(errors, 9, "{told}");
    assert!(
        findings
            .iter()
            .all(|f| f.file.as_deref().is_some_and(|file| file.ends_with("1.toml"))),
        "{told}"
    );
}

#[test]
fn broken_toml_is_told_without_its_text() {
    let findings = bad("[secrets]\nacme = \"s3cret\n[node]\n");
    assert_eq!((findings.len(), findings[0].line), (1, Some(2)));
    assert!(!told(&findings).contains("s3cret"));
    // One finding for each file that cannot be read.
    let findings = load_texts(&["a = ", "b = "], &[]).unwrap_err();
    assert_eq!(findings.len(), 2);
}

#[test]
fn a_missing_file_points_to_init() {
    let findings = load(&["/nonexistent/actors.toml".into()], std::iter::empty()).unwrap_err();
    assert!(told(&findings).contains("no such file") && told(&findings).contains("sluicegate init"));
}

#[test]
fn later_files_win_key_by_key() {
    let over = "
[partners.acme]
concurrency = 7
timeout.request = '3s'
limits = ['5/s']
[secrets]
a = { file = '/nonexistent' }
[topics.orders]
deliver = [{ partner = 'acme', when = 'partition == 0' }]
";
    let base = format!(
        "{SMALL}[secrets]\na = {{ env = 'A' }}\n[partners.acme.timeout]\nconnect = '1s'\nrequest = '2s'\n"
    );
    let loaded = load_texts(&[&base, over], &[]).unwrap_or_else(|f| panic!("{}", told(&f)));
    let acme = &loaded.config.partners["acme"];
    assert_eq!(acme.url, "http://127.0.0.1:1/hook");
    assert_eq!(
        (acme.concurrency, acme.request_timeout),
        (7, Duration::from_secs(3))
    );
    assert_eq!(acme.connect_timeout, Duration::from_secs(1));
    assert_eq!(
        loaded.config.secrets["a"],
        SecretSource::File("/nonexistent".into())
    );
    assert_eq!(
        loaded.config.topics["orders"].deliver[0].when.as_deref(),
        Some("partition == 0")
    );
    let source = &loaded.sources["partners.acme.concurrency"];
    assert!(source.name.ends_with("2.toml") && source.line == 3, "{source}");
    assert!(loaded.effective().contains("concurrency = 7  # "));
}

#[test]
fn the_environment_reaches_every_name() {
    let text = "
[partners.acme-eu]
url = 'http://127.0.0.1:1/'
[partners.'eu.Orders_2']
url = 'http://127.0.0.1:1/'
[partners.under__score]
url = 'http://127.0.0.1:1/'
[topics.t]
deliver = ['acme-eu', 'eu.Orders_2', 'under__score']
";
    let vars = [
        ("SLUICEGATE__PARTNERS__acme-eu__CONCURRENCY", "5"),
        ("SLUICEGATE__PARTNERS__ACME_EU__TIMEOUT__REQUEST", "3s"),
        ("SLUICEGATE__partners__eu.Orders_2__concurrency", "6"),
        ("SLUICEGATE__PARTNERS__EU_ORDERS_2__LIMITS", "[\"7/s\"]"),
        ("SLUICEGATE__PARTNERS__UNDER__SCORE__CONCURRENCY", "8"),
        ("SLUICEGATE__PARTNERS__acme-eu__HEADERS__X-Api-Version", "3"),
        ("SLUICEGATE__PARTNERS__acme-eu__BODY", "[1, 2]"),
        ("SLUICEGATE__PARTNERS__acme-eu__HTTP2", "true"),
        ("SLUICEGATE__PARTNERS__New-One__URL", "http://127.0.0.1:2/"),
        ("SLUICEGATE__NODE__MEMORY", "1GiB"),
        ("SLUICEGATE__ACTORS__RESTART__FIRST", "1s"),
        ("SLUICEGATE_ADMIN", "not a key"),
        ("OTHER", "1"),
    ];
    let loaded = load_texts(&[text], &vars).unwrap_or_else(|f| panic!("{}", told(&f)));
    let config = &loaded.config;
    let eu = &config.partners["acme-eu"];
    assert_eq!((eu.concurrency, eu.request_timeout), (5, Duration::from_secs(3)));
    assert_eq!(eu.headers, [("X-Api-Version".to_owned(), "3".to_owned())]);
    assert_eq!(
        (eu.body.as_deref(), eu.http2, eu.client),
        (Some("[1, 2]"), true, ClientKind::Reqwest)
    );
    assert_eq!(config.partners["eu.Orders_2"].concurrency, 6);
    assert!(
        matches!(&config.partners["eu.Orders_2"].limits[..], [LimitRef::Inline(l)] if l.rates.len() == 1)
    );
    assert_eq!(config.partners["under__score"].concurrency, 8);
    assert_eq!(config.partners["New-One"].url, "http://127.0.0.1:2/");
    assert_eq!(config.node.memory, 1 << 30);
    assert_eq!(config.actors.restart.first, Duration::from_secs(1));
    assert_eq!(
        loaded.sources["partners.acme-eu.concurrency"].to_string(),
        "environment SLUICEGATE__PARTNERS__acme-eu__CONCURRENCY"
    );
}

/// Why the crate's own mapping is not used: it folds case, and no separator reaches a name with a dash in it.
#[test]
fn the_crates_own_environment_mapping_fails_on_such_names() {
    let vars = config_crate_env("SLUICEGATE__PARTNERS__Acme-EU__CONCURRENCY", "5");
    let partners = vars.get_table("partners").unwrap();
    assert!(!partners.contains_key("Acme-EU") && partners.contains_key("acme-eu"));
}

fn config_crate_env(name: &str, value: &str) -> ::config::Config {
    let source = ::config::Environment::with_prefix("SLUICEGATE")
        .separator("__")
        .source(Some(::config::Map::from_iter([(
            name.to_owned(),
            value.to_owned(),
        )])));
    ::config::Config::builder().add_source(source).build().unwrap()
}

#[test]
fn mistakes_in_the_environment_name_the_variable() {
    let two = "
[partners.a-b]
url = 'http://127.0.0.1:1/'
[partners.a_b]
url = 'http://127.0.0.1:1/'
[topics.t]
deliver = ['a-b', 'a_b']
";
    let vars = [
        ("SLUICEGATE__PARTNERS__A_B__CONCURRENCY", "5"),
        ("SLUICEGATE__NODE__MEMROY", "1GiB"),
        ("SLUICEGATE__NODE", "x"),
        ("SLUICEGATE__PARTNERS__a-b__CONCURRENCY", "many"),
    ];
    let findings = load_texts(&[two], &vars).unwrap_err();
    let told = told(&findings);
    assert_eq!(findings.len(), 4, "{told}");
    assert!(
        told.contains("SLUICEGATE__PARTNERS__A_B__CONCURRENCY: may mean several sections: a-b, a_b"),
        "{told}"
    );
    assert!(
        told.contains("SLUICEGATE__NODE__MEMROY: node.memroy: unknown key\n  did you mean `memory`?"),
        "{told}"
    );
    assert!(
        told.contains("environment SLUICEGATE__NODE: not the name of a key"),
        "{told}"
    );
    assert!(
        told.contains("a-b__CONCURRENCY: partners.a-b.concurrency = \"many\": expected a whole number"),
        "{told}"
    );
}

#[test]
fn the_everything_file_sets_every_key_and_loads() {
    let loaded = good(EVERYTHING);
    let shown: BTreeSet<String> = reference::KEYS.iter().map(|k| k.path.to_owned()).collect();
    // What the loader asked for while it read, and nothing else, stands in the table.
    let layer = super::tree::file_layer(1, "everything.toml", EVERYTHING).unwrap();
    let tree = super::tree::merge(&[layer]).unwrap();
    let mut reader = Reader::default();
    super::sections::config(&mut reader, &tree);
    let container = |path: &str| {
        shown
            .iter()
            .any(|k| k.starts_with(&format!("{path}.")) || k.starts_with(&format!("{path}[].")))
    };
    let asked: BTreeSet<String> = reader
        .asked
        .into_iter()
        .filter(|path| shown.contains(path) || !container(path))
        .collect();
    assert_eq!(asked, shown);
    // And every one of them is really set in that file.
    let set: BTreeSet<String> = reader.origins.keys().map(|path| pattern_of(path)).collect();
    for key in &shown {
        assert!(set.contains(key), "{key} is not set in everything.toml");
    }
    assert!(loaded.config.partners["full"].verify.is_some());
}

/// `partners.acme.verdict[0].when` → `partners.NAME.verdict[].when`
fn pattern_of(path: &str) -> String {
    let parts: Vec<&str> = path.split('.').collect();
    let named = reference::is_named(parts[0]);
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
        let path = format!("{}.{}", entry.section, entry.key);
        let Some(key) = reference::KEYS.iter().find(|k| k.path == path) else {
            assert!(
                ["partners.NAME.verdict", "topics.NAME.deliver"].contains(&path.as_str()),
                "{path} is not in the table"
            );
            continue;
        };
        match (key.default, &entry.value) {
            (default, _) if default.starts_with('[') => {}
            (default, value) => assert_eq!(default, value.as_deref().unwrap_or(""), "{path}"),
        }
        compared += 1;
    }
    assert!(compared > 60, "{compared}");
    // Defaults that depend on another key.
    let config = &loaded.config;
    let p = &config.partners["NAME"];
    assert_eq!(p.flood.doubts_in_a_row as usize, p.concurrency);
    assert_eq!(p.verify.as_ref().unwrap().timeout, p.request_timeout);
    assert_eq!(p.client, ClientKind::Pool);
}

#[test]
fn the_manual_is_up_to_date() {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let page = reference::markdown();
    if std::env::var_os("SLUICEGATE_WRITE_DOCS").is_some() {
        std::fs::write(&file, &page).unwrap();
    }
    let stored = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        stored == page,
        "docs/configuration.md is old: SLUICEGATE_WRITE_DOCS=1 cargo test --lib config:: writes it"
    );
}

#[test]
fn every_choice_of_the_table_is_taken() {
    for key in reference::KEYS {
        let reference::Kind::Choice(words) = key.kind else {
            continue;
        };
        for word in words {
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
            let needs = match *word {
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

#[test]
fn the_effective_configuration_reads_back_the_same() {
    for text in [SECTION_9, EVERYTHING, SMALL, include_str!("../../actors.toml")] {
        let loaded = good(text);
        let plain = effective::print(&loaded.config, &loaded.sources, Show::Plain, Which::All);
        let again = good(&plain);
        assert_eq!(again.config, loaded.config, "{plain}");
    }
}

#[test]
fn the_effective_configuration_masks_and_tells_where_from() {
    let text = partner(
        "headers = { Authorization = 'Bearer planted-1', x-version = '3' }\nproxy = 'http://u:planted-2@127.0.0.1:1/'\nmethod = 'POST'\nbody = '{\"token\": \"planted-3\"}'\nverify = { url = 'http://127.0.0.1:1/?api_key=planted-4', delivered = 'status == 200', never_seen = 'status == 404', headers = { cookie = 'planted-5' } }",
    );
    let loaded = good(&text);
    let shown = format!(
        "{} {} {:?} {}",
        loaded.effective(),
        loaded.effective_json(),
        loaded,
        told(&loaded.warnings)
    );
    assert!(!shown.contains("planted"), "{shown}");
    assert!(shown.contains("headers.x-version = \"3\"  # "));
    assert_eq!(
        loaded
            .warnings
            .iter()
            .filter(|w| w.message.contains("secret or personal"))
            .count(),
        5,
        "{}",
        told(&loaded.warnings)
    );
    let json = loaded.effective_json();
    assert_eq!(json["partners.p.concurrency"]["value"], 64);
    assert_eq!(json["partners.p.concurrency"]["source"], "default");
    let set = loaded.effective_set();
    assert!(
        set.contains("method = \"POST\"") && !set.contains("# default") && !set.contains("planted"),
        "{set}"
    );
    assert!(
        json["partners.p.method"]["source"]
            .as_str()
            .unwrap()
            .ends_with("1.toml:7")
    );
}

#[test]
fn mistakes_never_show_a_secret() {
    let text = "
[secrets]
a = 'planted-1'
b = { env = 'X', value = 'planted-2' }
[listen]
token = 'planted-3'
[partners.p]
url = 'ftp://u:planted-4@host/?token=planted-5'
headers = { authorization = ['planted-6'], 'bad name' = 'planted-7' }
hedaers = { authorization = 'planted-8' }
[topics.t]
partner = 'p'
";
    let told = told(&bad(text));
    assert!(!told.contains("planted"), "{told}");
    for key in [
        "secrets.a",
        "secrets.b.value",
        "listen.token",
        "partners.p.url",
        "partners.p.hedaers",
    ] {
        assert!(told.contains(key), "{key}\n{told}");
    }
}

#[test]
fn every_form_of_limits_is_taken() {
    let limits = |lines: &str| {
        good(&format!("[limits.a]\nrates = ['9/s']\n{}", partner(lines)))
            .config
            .partners["p"]
            .limits
            .clone()
    };
    let five = Rate::Sliding {
        count: 5,
        window: Duration::from_secs(1),
    };
    let own = |by: Option<&str>| {
        LimitRef::Inline(LimitConfig {
            rates: vec![five.clone()],
            by: by.map(str::to_owned),
            burst: None,
        })
    };
    let named = LimitRef::Named("a".to_owned());
    assert_eq!(limits(""), []);
    assert_eq!(limits("limits = 'a'"), std::slice::from_ref(&named));
    assert_eq!(limits("limits = '5/s'"), [own(None)]);
    assert_eq!(limits("limits = ['5/s']"), [own(None)]);
    assert_eq!(limits("limits = ['a', '5/s']"), [named, own(None)]);
    assert_eq!(
        limits("limits = { rates = ['5/s'], by = 'json:/app_id' }"),
        [own(Some("/app_id"))]
    );
    refuses(
        &partner("limits = 5"),
        "partners.p.limits",
        "name of a [limits.NAME]",
    );
    refuses(
        &partner("limits = ['5/fortnight']"),
        "partners.p.limits",
        "a rate",
    );
    refuses(
        &partner("limits = ['5/day@Mars/Base']"),
        "partners.p.limits",
        "IANA",
    );
    refuses(
        &partner("limits = { burst = 3 }"),
        "partners.p.limits.rates",
        "is missing",
    );
}

#[test]
fn contradictions_are_refused() {
    let verify = "verify = { url = 'http://127.0.0.1:1/', delivered = 'status == 200', never_seen = 'status == 404' }\n";
    refuses(&partner("doubt = 'verify'"), "partners.p.doubt", "no look-up");
    warns(&partner(verify), "partners.p.verify", "no effect");
    refuses(
        &partner("doubt = 'resend'\nidempotency_key = false"),
        "partners.p.idempotency_key",
        "cannot tell a repeat",
    );
    refuses(
        &partner("doubt = { timeout = 'resend' }\nidempotency_window = '5s'"),
        "partners.p.idempotency_window",
        "all would park",
    );
    warns(
        &partner("doubt = 'resend'"),
        "partners.p.idempotency_window",
        "is not set",
    );
    warns(
        &partner("idempotency_window = '1h'"),
        "partners.p.idempotency_window",
        "no effect",
    );
    refuses(
        &partner("doubt = 'prak'"),
        "partners.p.doubt",
        "did you mean `park`?",
    );
    refuses(
        &partner("method = 'GET'\nbody = 'x'"),
        "partners.p.body",
        "no body",
    );
    refuses(
        &partner("method = 'post'"),
        "partners.p.method",
        "expected \"POST\"",
    );
    refuses(
        &partner("client = 'pool'\nhttp2 = true"),
        "partners.p.http2",
        "reqwest",
    );
    refuses(
        &partner("retry = { first = '10m' }"),
        "partners.p.retry.first",
        "longer than retry.longest",
    );
    refuses(
        &partner("retry = { give_up_after = '9d' }"),
        "partners.p.retry.give_up_after",
        "remembered for 8d",
    );
    refuses(
        &partner("retention = '1h'"),
        "partners.p.retention",
        "remembered for 1h",
    );
    refuses(
        &partner("headers = { x = \"{{ secret('nope') }}\" }"),
        "partners.p.headers.x",
        "[secrets]: nope",
    );
    refuses(
        &partner("headers = { x = '{{ valeu }}' }"),
        "partners.p.headers.x",
        "did you mean `value`?",
    );
    refuses(
        &partner("headers = { content-length = '1' }"),
        "partners.p.headers.content-length",
        "client itself",
    );
    refuses(
        &partner("ca = '/nonexistent.pem'"),
        "partners.p.ca",
        "cannot read",
    );
    refuses(&partner("sink = 'postgres'"), "partners.p.sink", "http sink only");
    refuses(
        &partner("verdict = [{ when = 'status == 200', is = 'refused', after = '1s' }]"),
        "partners.p.verdict[0].after",
        "later",
    );
    refuses(
        "[listen]\nadmin = '0.0.0.0:7070'",
        "listen.admin",
        "needs a token",
    );
    refuses(
        "[listen]\nprobes = '127.0.0.1:7070'",
        "listen.probes",
        "admin address",
    );
    refuses("[log]\nkind = 'kafka'", "log.kind", "embedded log only");
    refuses(
        "[log.kafka]\n'bootstrap.servers' = 'x'",
        "log.kafka",
        "embedded log only",
    );
    refuses("[log]\nretention = '1m'", "log.retention", "waiting_after");
    refuses(
        "[dedup]\nretention = '1h'\nbucket = '1d'",
        "dedup.bucket",
        "longer than dedup.retention",
    );
    for reserved in reference::RESERVED {
        refuses(&format!("[{reserved}]\nx = 1"), reserved, "not in this version");
    }
    refuses(
        "[partners.'a b']\nurl = 'http://x/'",
        "partners.\"a b\"",
        "not a name",
    );
}

#[test]
fn topics_and_their_routes_are_checked() {
    let p = "[partners.p]\nurl = 'http://127.0.0.1:1/'\n";
    let topic = |lines: &str| format!("{p}[topics.t]\n{lines}\n");
    refuses(&topic(""), "topics.t", "names no partner");
    refuses(&topic("deliver = []"), "topics.t.deliver", "list of partners");
    refuses(
        &topic("partner = 'p'\ndeliver = ['p']"),
        "topics.t.partner",
        "beside `deliver`",
    );
    refuses(
        &topic("deliver = ['p', { partner = 'p', when = 'partition == 0' }]"),
        "topics.t.deliver[1].partner",
        "twice",
    );
    refuses(
        &topic("deliver = [{ when = 'partition == 0' }]"),
        "topics.t.deliver[0].partner",
        "is missing",
    );
    refuses(
        &topic("partner = 'p'\nmatch = '('"),
        "topics.t.match",
        "regular expression",
    );
    refuses(
        &topic("partner = 'p'\nid = 'jsn:/id'"),
        "topics.t.id",
        "expected header:NAME",
    );
    refuses(
        &topic("partner = 'p'\nid = ['json:/a', 'json:b']"),
        "topics.t.id",
        "json:/POINTER",
    );
    refuses(
        &topic("partner = 'p'\nkey = 'json:/a~2'"),
        "topics.t.key",
        "json:/POINTER",
    );
    refuses(
        &topic("partner = 'p'\nretention = '1s'"),
        "topics.t.retention",
        "waiting_after",
    );
    warns(
        &topic("partner = 'p'\nid = ['position', 'key']"),
        "topics.t.id",
        "of its own",
    );
    let by_field = good(&topic("partner = 'json:/to'"));
    assert_eq!(
        by_field.config.topics["t"].deliver[0].partner,
        PartnerRef::Field("/to".into())
    );
    assert!(by_field.warnings.is_empty(), "{}", told(&by_field.warnings));

    let patterns = format!(
        "{}[topics.all]\nmatch = 't.*'\npartner = 'p'\n[topics.some]\nmatch = 'tx.*'\npartner = 'p'\n",
        topic("partner = 'p'")
    );
    warns(&patterns, "topics.all.match", "own section goes first");
    let config = good(&patterns).config;
    let section = |topic: &str| config.section_of(topic).map(|t| t.name.as_str());
    assert_eq!(
        (section("t"), section("tx1"), section("xt")),
        (Some("t"), Some("all"), None)
    );
    let same =
        format!("{p}[topics.a]\nmatch = 'x.*'\npartner = 'p'\n[topics.b]\nmatch = 'x.*'\npartner = 'p'\n");
    refuses(&same, "topics.b.match", "same pattern");
}

#[test]
fn where_attempts_or_age_is_moot_it_is_said() {
    let retry = |retry: &str| partner(&format!("retry = {{ {retry} }}"));
    warns(
        &retry("attempts = 3, give_up_after = '24h'"),
        "partners.p.retry.attempts",
        "never reached",
    );
    warns(
        &retry("attempts = 100000"),
        "partners.p.retry.attempts",
        "comes first",
    );
    // Without a word of the user's about the age, attempts may decide alone.
    assert!(good(&retry("attempts = 3")).warnings.is_empty());
    assert!(
        good(&retry("attempts = 400, give_up_after = '24h'"))
            .warnings
            .is_empty()
    );
    warns(
        &retry("first = '2s', longest = '3s', give_up_after = '1s'"),
        "partners.p.retry.give_up_after",
        "first retry",
    );
}

#[test]
fn what_nobody_uses_is_said() {
    warns("[limits.l]\nrates = ['5/s']", "limits.l", "no partner draws");
    warns("[secrets]\ns = { env = 'S' }", "secrets.s", "no template uses it");
    warns(
        "[partners.p]\nurl = 'http://127.0.0.1:1/'",
        "partners.p",
        "no topic feeds it",
    );
    warns(
        &partner("limits = ['5/s', '100/s']"),
        "partners.p.limits.rates",
        "never bites",
    );
    assert!(good(&partner("limits = ['5/s', '100/min']")).warnings.is_empty());
}

#[test]
fn requests_in_flight_fit_the_open_files() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("actors.toml");
    let machine = |open_files| Machine {
        open_files: Some(open_files),
    };
    std::fs::write(&file, partner("concurrency = 64")).unwrap();
    let files = [file.clone()];
    // The default of 10,000 is only a cap: what the partners can use counts.
    assert!(
        load_on(&files, env(&[]), &machine(1_024))
            .unwrap()
            .warnings
            .is_empty()
    );
    let findings = load_on(&files, env(&[]), &machine(300)).unwrap_err();
    assert!(
        told(&findings).contains("exceed the limit of 300 open files"),
        "{}",
        told(&findings)
    );
    std::fs::write(&file, partner("concurrency = 64") + "[actors]\nrequests = 5000\n").unwrap();
    let warnings = load_on(&files, env(&[]), &machine(1_024)).unwrap().warnings;
    assert!(
        told(&warnings).contains("5000 requests in flight"),
        "{}",
        told(&warnings)
    );
}

#[test]
fn a_record_that_is_a_url_is_a_get() {
    let method = |lines: &str| {
        good(&format!("[topics.t]\npartner = 'p'\n[partners.p]\n{lines}\n"))
            .config
            .partners["p"]
            .method
            .clone()
    };
    assert_eq!(method("url = '{{ value }}'"), "GET");
    assert_eq!(method("url = '{{ value }}'\nmethod = 'POST'"), "POST");
    assert_eq!(method("url = 'https://x/{{ value }}'"), "POST");
}

proptest::proptest! {
    /// Whatever a file or a variable says, the loader answers; it never panics.
    #[test]
    fn no_value_breaks_the_loader(at in 0usize..200, value in ".{0,12}", name in "[A-Za-z_.-]{1,30}") {
        let key = reference::KEYS[at % reference::KEYS.len()].path.replace("[]", "").replace("NAME", "full");
        let variable = format!("SLUICEGATE__{}", key.replace('.', "__"));
        let mut vars = env(&[(&variable, &value)]);
        vars.insert(format!("SLUICEGATE__{name}"), value.clone());
        let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/everything.toml");
        let _ = load_on(&[file], vars, &Machine::default());
        let _ = load_text("x", &value);
        let _ = load_text("x", &format!("{name} = {value}"));
    }
}
