//! The effective configuration, and what is never shown (I9).

use super::super::effective::{self, Show, Which};
use super::{EVERYTHING, SECTION_9, SMALL, bad, good, partner, told};

#[test]
fn the_effective_configuration_reads_back_the_same() {
    for text in [SECTION_9, EVERYTHING, SMALL, include_str!("../../../actors.toml")] {
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
[partners.q]
url = { token = 'planted-9' }
redirect_to = ['https://u:planted-10@a.example', 'https://b.example']
[[limits]]
name = 'planted-11'
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
