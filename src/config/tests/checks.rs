//! Contradictions, references and doubtful values.

use super::super::check::Machine;
use super::super::load::load_on;
use super::super::*;
use super::{env, good, partner, refuses, told, warns};
use std::time::Duration;

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
            margin: std::time::Duration::from_millis(10),
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
        &partner("client = 'reqwest'"),
        "partners.p.client",
        "one client for everything",
    );
    refuses(
        &partner("redirect_to = ['https://a.example/path']"),
        "partners.p.redirect_to",
        "a list of origins",
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
    let folder = tempfile::tempdir().unwrap();
    let garbage = folder.path().join("ca.pem");
    for (content, wanted) in [
        ("garbage", "holds no certificate in PEM"),
        (
            "-----BEGIN CERTIFICATE-----\nZ2FyYmFnZQ==\n-----END CERTIFICATE-----\n",
            "no certificate in PEM",
        ),
    ] {
        std::fs::write(&garbage, content).unwrap();
        let text = partner(&format!("ca = '{}'", garbage.display()));
        refuses(&text, "partners.p.ca", wanted);
    }
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
    for reserved in super::super::read::RESERVED {
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
    warns(
        &topic("partner = 'p'\nid = ['json:/user/email', 'key']"),
        "topics.t.id",
        "by their hash",
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

/// A file of an earlier version loads, and is told that the key does nothing.
#[test]
fn a_key_without_effect_is_warned_of() {
    warns("[actors]\nmailbox = 512", "actors.mailbox", "has no effect");
    warns("actors = { mailbox = 'x' }", "actors.mailbox", "take it out");
    refuses("[actors]\nmailboxes = 512", "actors.mailboxes", "unknown key");
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
    warns("[node]", "topics", "nothing to deliver");
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

/// What a template may do that its author is unlikely to mean.
#[test]
fn doubtful_templates_are_warned_of() {
    let resend = "doubt = 'resend'\nbody = '{\"n\": {{ attempt }}}'";
    warns(&partner(resend), "partners.p.body", "always 1");
    let quiet = good(&partner("body = '{\"n\": {{ attempt }}}'"));
    assert!(quiet.warnings.iter().all(|w| w.key != "partners.p.body"));
    let text = "[partners.p]\nurl = 'http://h{{ value.u }}'\n[topics.t]\npartner = 'p'";
    warns(text, "partners.p.url", "right after the host");
}

/// Fields that must be there once are found in conditions, routes, budgets and templates.
#[test]
fn a_topic_knows_which_fields_its_partners_read() {
    let loaded = good(
        "[limits.l]\nrates = ['9/s']\nby = 'json:/app'\n[partners.p]\nurl = 'http://h/{{ value.user.id }}'\nlimits = 'l'\n\
         [topics.t]\ndeliver = [{ partner = 'p', when = 'value.kind == 1 or value /a~1b exists' }]\n\
         [topics.u]\ndeliver = [{ partner = 'json:/to' }]\n",
    );
    let reads = |topic: &str| loaded.config.topics[topic].reads.clone();
    assert_eq!(reads("t"), ["/app", "/a~1b", "/kind", "/user/id"]);
    assert_eq!(reads("u"), ["/app", "/to", "/user/id"]);
}

/// 16 MiB over 501 partners is half a read each: they go on, a few records at a time, and `check` says so with a cure.
#[test]
fn a_share_of_memory_below_a_few_reads_is_told() {
    let many = |memory: &str| {
        let partners: String = (0..501)
            .map(|n| format!("[partners.p{n}]\nurl = 'http://127.0.0.1/'\n"))
            .collect();
        format!("[node]\nmemory = '{memory}'\n{partners}")
    };
    warns(&many("16MiB"), "node.memory", "raise it to 126MiB");
    let found = good(&many("512MiB"));
    assert!(found.warnings.iter().all(|f| f.key != "node.memory"));
}
