//! Secrets planted wherever they can stand, and everything that the node and its commands say searched for them (I9).

use super::common::*;
use rustix::process::Signal;
use sluicegate::mock::Behaviour;

/// In the environment, for a header.
const BEARER: &str = "PLANTED-bearer-5a1f";
/// In a file, for a header.
const SIGNED: &str = "PLANTED-file-77c2";
/// In the environment, for a parameter of the URL.
const PARAMETER: &str = "PLANTED-parameter-0be4";
/// In the environment: the token of the admin port.
const ADMIN: &str = "PLANTED-admin-91d3";
/// Written into a URL of the configuration itself.
const LITERAL: &str = "PLANTED-literal-c0de";
/// In a field of the records that everybody calls a secret.
const PASSWORD: &str = "PLANTED-password-3f3f";
/// In a field of the records that this partner's `mask` names.
const CARD: &str = "PLANTED-card-4111";
/// In a parameter of URLs that are records.
const IN_URL: &str = "PLANTED-url-token-8e8e";
/// In what the partner answers.
const ANSWERED: &str = "PLANTED-answered-6b6b";
/// In the address that the partner redirects to.
const REDIRECT: &str = "PLANTED-redirect-2d2d";

/// What must never be said, and what must not even be stored: a record is stored as it came.
const NEVER_SAID: [&str; 10] = [
    BEARER, SIGNED, PARAMETER, ADMIN, LITERAL, PASSWORD, CARD, IN_URL, ANSWERED, REDIRECT,
];
const NEVER_STORED: [&str; 7] = [BEARER, SIGNED, PARAMETER, ADMIN, LITERAL, ANSWERED, REDIRECT];

fn assert_none_of(planted: &[&str], what: &str, bytes: &[u8]) {
    for secret in planted {
        let found = memchr::memmem::find(bytes, secret.as_bytes());
        if let Some(at) = found {
            let around = &bytes[at.saturating_sub(200)..bytes.len().min(at + 60)];
            panic!("{secret} stands in {what}: …{}…", String::from_utf8_lossy(around));
        }
    }
}

/// Every command that prints something, about messages that were delivered, are dead, and are in doubt.
fn say_everything(rig: &Rig) {
    let lists: [&[&str]; 9] = [
        &["status"],
        &["dead", "list"],
        &["doubt", "list"],
        &["dedup", "stats"],
        &["dedup", "list"],
        &["dedup", "export"],
        &["skip", "list"],
        &["check"],
        &["dead", "replay", "--all", "--dry-run"],
    ];
    for list in lists {
        rig.call(list);
        rig.call(&[list, &["--json"]].concat());
    }
    for (list, show) in [("dead", "dead"), ("doubt", "doubt")] {
        let rows = rig.list(&[list, "list"]);
        assert!(!rows.is_empty(), "nothing is {list}");
        // Some of each: every one is a process of its own.
        for row in rows.into_iter().take(4) {
            let id = row["id"].as_str().expect("an ID");
            rig.ok(&[show, "show", id]);
            rig.ok(&[show, "show", id, "--json"]);
            rig.ok(&["message", id]);
            rig.ok(&["message", id, "--json"]);
        }
    }
    rig.ok(&["message", "m0"]);
}

#[test]
fn no_secret_is_ever_said() {
    let script = serde_json::json!({
        "script": ["up 10x", "400 5x", "302 5x", "reset-after-read 3x", "503 3x", "501 2x", "up"],
        "retry_after": "none",
        "headers": [["location", format!("http://127.0.0.1:1/?access_token={REDIRECT}&x=1")]],
        "error_answer": format!("{{\"error\":\"you sent Bearer {BEARER}, {SIGNED} and {PARAMETER}\",\"access_token\":\"{ANSWERED}\"}}"),
    });
    let mock = partner(Behaviour::default().changed(&script).expect("a behaviour"));
    let address = mock.addr();
    let mut rig = Rig::new("");
    for (name, value) in [
        ("PLANT_BEARER", BEARER),
        ("PLANT_PARAMETER", PARAMETER),
        ("PLANT_ADMIN", ADMIN),
        ("SLUICEGATE_TOKEN", ADMIN),
    ] {
        rig.set_env(name, value);
    }
    std::fs::write(rig.path("signed"), format!("{SIGNED}\n")).expect("a secret's file");
    let admin = rig.configure_with(&format!(
        "token = {{ env = \"PLANT_ADMIN\" }}\n[logging]\nlevel = \"trace\"\nsample = 1\n[secrets]\n\
         bearer = {{ env = \"PLANT_BEARER\" }}\nparameter = {{ env = \"PLANT_PARAMETER\" }}\nsigned = {{ file = \"signed\" }}\n\
         [partners.p]\n\
         url = \"http://{address}/hook?api_key={LITERAL}&sig={{{{ secret('parameter') }}}}&id={{{{ value.id }}}}\"\n\
         headers = {{ authorization = \"Bearer {{{{ secret('bearer') }}}}\", x-signed = \"{{{{ secret('signed') }}}}\" }}\n\
         concurrency = 4\nretry = {{ first = \"5ms\" }}\nmask = [\"card\"]\n\
         [partners.r]\nurl = \"{{{{ value }}}}\"\nconcurrency = 4\nretry = {{ first = \"5ms\" }}\n\
         [topics.t]\npartner = \"p\"\nid = \"json:/id\"\nkey = \"json:/user\"\n\
         [topics.u]\npartner = \"r\"\nid = \"query:id\"\n"
    ));
    let records: String = (0..60)
        .map(|i| format!("{{\"id\":\"m{i}\",\"user\":\"u{}\",\"seq\":{i},\"password\":\"{PASSWORD}\",\"card\":\"{CARD}\"}}\n", i % 7))
        .collect();
    rig.import("t", records);
    let urls: String = (0..20)
        .map(|i| format!("http://{address}/get?token={IN_URL}&id=r{i}\n"))
        .collect();
    std::fs::write(rig.path("urls.txt"), urls).expect("written");
    rig.ok(&["import", "urls.txt", "--topic", "u", "--format", "urls"]);

    let mut node = rig.start(&[]);
    node.until("all were tried", || {
        let seen = counts(&mock);
        seen.requests >= 83 && seen.in_flight == 0
    });
    let mut said = Vec::new();
    for path in ["/", "/metrics", "/api/status", "/healthz", "/readyz"] {
        said.push((path.to_owned(), get(&admin, ADMIN, path)));
    }
    say_everything(&rig);
    rig.call(&["partners", "list"]);
    for name in ["p", "r"] {
        rig.ok(&["partners", "show", name]);
        rig.ok(&["partners", "show", name, "--json"]);
        rig.call(&["partners", "test", name]);
    }
    // A restart in the middle of replays, by kill -9; then an orderly one.
    rig.ok(&["dead", "replay", "--all", "--yes"]);
    node.kill();
    let mut node = rig.start(&[]);
    node.wait_for_admin();
    rig.ok(&["status"]);
    node.signal(Signal::TERM);
    assert_eq!(node.end(), Some(0), "{}", node.said());
    rig.drain();
    mock.control(
        "partner",
        &serde_json::json!({"faults": ["400=0.5", "reset-after-read=0.5"], "script": []}),
    )
    .expect("some more to tell of");
    let more: String = (60..90)
        .map(|i| {
            format!(
                "{{\"id\":\"m{i}\",\"user\":\"u{}\",\"password\":\"{PASSWORD}\",\"card\":\"{CARD}\"}}\n",
                i % 7
            )
        })
        .collect();
    rig.import("t", more);
    rig.drain();
    say_everything(&rig);

    // The secrets did their work: the requests carried them.
    assert!(counts(&mock).requests > 80);
    said.extend(
        rig.all_said()
            .into_iter()
            .map(|(path, bytes)| (path.display().to_string(), bytes)),
    );
    // What stood beside them is there, so what is missing was masked, not left out.
    for beside in ["you sent", "127.0.0.1:1/", "api_key", "access_token"] {
        let shown = said
            .iter()
            .any(|(_, bytes)| memchr::memmem::find(bytes, beside.as_bytes()).is_some());
        assert!(shown, "`{beside}` is shown nowhere");
    }
    let total: usize = said.iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(total > 50_000, "only {total} bytes were said");
    for (what, bytes) in &said {
        assert_none_of(&NEVER_SAID, what, bytes);
    }
    for (path, bytes) in files(&rig.path("data")) {
        assert_none_of(&NEVER_STORED, &path.display().to_string(), &bytes);
    }
}

#[test]
fn a_secret_in_the_wrong_place_is_refused_without_being_shown() {
    let rig = Rig::new("");
    std::fs::write(
        rig.path("actors.toml"),
        format!(
            "[secrets]\nacme = \"{LITERAL}\"\n[partners.p]\nurl = \"http://127.0.0.1:1/?token={PARAMETER}\"\n\
             headers = {{ authorization = \"Bearer {BEARER}\", host = \"{SIGNED}\" }}\nproxy = \"http://user:{ADMIN}@127.0.0.1:1\"\n\
             [topics.t]\npartner = \"p\"\npartitions = 0\n"
        ),
    )
    .expect("written");
    let refused = rig.call(&["check"]);
    assert_eq!(
        refused.status.code(),
        Some(2),
        "{}",
        String::from_utf8_lossy(&refused.stderr)
    );
    for (path, bytes) in rig.all_said() {
        assert_none_of(&NEVER_SAID, &path.display().to_string(), &bytes);
    }
    // And where everything is right, the effective configuration shows none of it.
    std::fs::write(
        rig.path("actors.toml"),
        format!(
            "[partners.p]\nurl = \"http://127.0.0.1:1/?token={PARAMETER}\"\nheaders = {{ authorization = \"Bearer {BEARER}\" }}\n\
             proxy = \"http://user:{ADMIN}@127.0.0.1:1\"\n[topics.t]\npartner = \"p\"\n"
        ),
    )
    .expect("written");
    rig.ok(&["check"]);
    rig.ok(&["check", "--json"]);
    for (path, bytes) in rig.all_said() {
        assert_none_of(&NEVER_SAID, &path.display().to_string(), &bytes);
    }
}
