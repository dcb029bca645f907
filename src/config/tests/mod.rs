//! The loader as a whole: what loads, what is refused, and how it is told.

mod checks;
mod manual;
mod shown;

use super::check::Machine;
use super::load::load_on;
use super::*;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

const SECTION_9: &str = include_str!("../../../tests/fixtures/design-section-9.toml");
const EVERYTHING: &str = include_str!("../../../tests/fixtures/everything.toml");
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
        (acme.concurrency, acme.timeout.connect),
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
    let loaded = good(include_str!("../../../actors.toml"));
    assert!(loaded.warnings.is_empty(), "{}", told(&loaded.warnings));
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
rates = ['5/s', '5/fortnight', '5/day@Mars/Base']
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
        (10, "limits.acme-account.rates", "`5/fortnight`: expected a rate"),
        (10, "limits.acme-account.rates", "`5/day@Mars/Base`: "),
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
    assert_eq!(errors, 10, "{told}");
    assert!(
        findings
            .iter()
            .all(|f| f.file.as_deref().is_some_and(|file| file.ends_with("1.toml"))),
        "{told}"
    );
}

/// A wrong form is told with the right one, and what follows from it is not told as a mistake of its own.
#[test]
fn a_wrong_form_is_told_once_with_the_right_one() {
    for (lines, key, says) in [
        (
            "limits = 5",
            "partners.p.limits",
            "a list of names or rates, or a table",
        ),
        (
            "limits = [5, 'x']",
            "partners.p.limits",
            "a list of names or rates, or a table",
        ),
        ("doubt = 5", "partners.p.doubt", "or one a cause: { crash = "),
        ("doubt = 'prak'", "partners.p.doubt", "or one a cause: { crash = "),
        (
            "doubt = { crash = 'x' }",
            "partners.p.doubt.crash",
            "expected one of park, resend, verify",
        ),
        (
            "verdict = 5",
            "partners.p.verdict",
            "expected a list, as [{ when = ",
        ),
        ("verify = 5", "partners.p.verify", "expected a table"),
        ("timeout = []", "partners.p.timeout", "expected a table"),
        ("headers = 5", "partners.p.headers", "as { x-api-version = "),
        ("mask = [1]", "partners.p.mask", "expected a list of texts, as ["),
        (
            "redirect_to = 5",
            "partners.p.redirect_to",
            "expected a list of origins, as [",
        ),
        (
            "http2 = 1",
            "partners.p.http2",
            "expected true or false, without quotes",
        ),
        (
            "url_reach = 5",
            "partners.p.url_reach",
            "expected one of usual, public, any",
        ),
        (
            "redirects = -1",
            "partners.p.redirects",
            "a whole number of at least 0",
        ),
        (
            "concurrency = 1.5",
            "partners.p.concurrency",
            "a whole number of at least 1",
        ),
        (
            "concurrency = nan",
            "partners.p.concurrency",
            "a whole number of at least 1",
        ),
        ("retention = nan", "partners.p.retention", "a duration in quotes"),
        ("answer_limit = 5", "partners.p.answer_limit", "a size in quotes"),
        ("ca = ''", "partners.p.ca", "not empty"),
    ] {
        let findings = bad(&partner(lines));
        let told = told(&findings);
        assert!(
            findings.len() == 1 && findings[0].key == key && told.contains(says),
            "{lines}: {told}"
        );
    }
    for (text, key) in [
        ("[topics.t]\npartner = 'p'\n[partners]\np = 5\n", "partners.p"),
        ("[topics.t]\npartner = 'p'\n[partners.p]\n", "partners.p.url"),
        (
            "[topics.t]\npartner = 5\n[partners.p]\nurl = 'http://h/'\n",
            "topics.t.partner",
        ),
        (
            "[topics.t]\npartner = 'p'\n[partners.p]\nurl = 'http://h/'\nlimits = 'l'\n[limits]\nl = 5\n",
            "limits.l",
        ),
    ] {
        let findings = bad(text);
        let errors: Vec<_> = findings
            .iter()
            .filter(|f| f.severity == Severity::Error)
            .collect();
        assert!(errors.len() == 1 && errors[0].key == key, "{}", told(&findings));
    }
}

/// Each section is read to its end, whatever the others say.
#[test]
fn many_mistakes_of_many_sections_are_told_in_one_go() {
    let sections: String = (0..300)
        .map(|n| format!("[partners.p{n}]\nurl = 'http://h/'\nretry = {{ frist = '1s', longest = 'x' }}\nconcurrency = 0\n"))
        .collect();
    let errors = bad(&sections)
        .into_iter()
        .filter(|f| f.severity == Severity::Error);
    assert_eq!(errors.count(), 900);
    // What is no configuration at all ends, too.
    let rubbish: String = (0..3_000).map(|n| format!("key{n} = {n}\n")).collect();
    let errors = bad(&format!("[node]\n{rubbish}"));
    assert!(told(&errors).contains("more mistakes than these"));
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
[listen]
token = { file = '/nonexistent' }
";
    let base = format!(
        "{SMALL}[listen]\ntoken = {{ env = 'A' }}\n[secrets]\na = {{ env = 'A' }}\n[partners.acme.timeout]\nconnect = '1s'\nrequest = '2s'\n"
    );
    let loaded = load_texts(&[&base, over], &[]).unwrap_or_else(|f| panic!("{}", told(&f)));
    let acme = &loaded.config.partners["acme"];
    assert_eq!(acme.url, "http://127.0.0.1:1/hook");
    assert_eq!(
        (acme.concurrency, acme.timeout.request),
        (7, Duration::from_secs(3))
    );
    assert_eq!(acme.timeout.connect, Duration::from_secs(1));
    assert_eq!(
        loaded.config.secrets["a"],
        SecretSource::File("/nonexistent".into())
    );
    assert_eq!(
        loaded.config.listen.token,
        Some(SecretSource::File("/nonexistent".into()))
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
    assert_eq!((eu.concurrency, eu.timeout.request), (5, Duration::from_secs(3)));
    assert_eq!(eu.headers, [("X-Api-Version".to_owned(), "3".to_owned())]);
    assert_eq!((eu.body.as_deref(), eu.http2), (Some("[1, 2]"), true));
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

proptest::proptest! {
    /// Whatever a file or a variable says, the loader answers; it never panics.
    #[test]
    fn no_value_breaks_the_loader(at in 0usize..200, value in ".{0,12}", name in "[A-Za-z_.-]{1,30}") {
        let keys = &super::manual::manual().keys;
        let key = keys[at % keys.len()].path.replace("[]", "").replace("NAME", "full");
        let variable = format!("SLUICEGATE__{}", key.replace('.', "__"));
        let mut vars = env(&[(&variable, &value)]);
        vars.insert(format!("SLUICEGATE__{name}"), value.clone());
        let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/everything.toml");
        let _ = load_on(&[file], vars, &Machine::default());
        let _ = load_text("x", &value);
        let _ = load_text("x", &format!("{name} = {value}"));
    }
}
