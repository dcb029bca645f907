//! From deliveries to requests, and what of it is shown.

use super::server::Polite;
use super::*;

fn prepared(tweak: impl FnOnce(&mut PartnerConfig), d: &Delivery) -> Result<Request, PrepareError> {
    let mut config = partner("http://partner.example:8080/hook?v=1");
    tweak(&mut config);
    sink(&config).prepare(d)
}

fn header<'a>(request: &'a Request, name: &str) -> Option<&'a str> {
    request.headers().get(name).map(|v| v.to_str().unwrap())
}

fn refused(tweak: impl FnOnce(&mut PartnerConfig)) -> String {
    let mut config = partner("http://partner.example/");
    tweak(&mut config);
    match HttpSink::try_new(&config, &Secrets::none(), Clock::start()) {
        Ok(_) => panic!("it was taken"),
        Err(e) => e.to_string(),
    }
}

#[test]
fn by_default_the_value_is_posted() {
    let request = prepared(|_| {}, &delivery(r#" {"a":1}"#)).unwrap();
    assert_eq!(request.url(), "http://partner.example:8080/hook?v=1");
    assert_eq!(*request.method(), http::Method::POST);
    assert_eq!(request.body(), r#" {"a":1}"#);
    assert_eq!(header(&request, "host"), Some("partner.example:8080"));
    assert_eq!(header(&request, "content-type"), Some("application/json"));
    assert_eq!(
        header(&request, "idempotency-key"),
        Some("ab".repeat(16).as_str())
    );
    assert_eq!(
        header(&prepared(|_| {}, &delivery("plain")).unwrap(), "content-type"),
        None
    );
    let empty = prepared(|_| {}, &delivery("")).unwrap();
    assert_eq!(header(&empty, "content-length"), Some("0"));
}

#[test]
fn the_trace_is_the_message_and_the_span_the_attempt() {
    let mut d = delivery("x");
    let trace = |d: &Delivery| {
        header(&prepared(|_| {}, d).unwrap(), "traceparent")
            .unwrap()
            .to_owned()
    };
    let first = trace(&d);
    assert_eq!(first.len(), 55);
    assert!(
        first.starts_with(&format!("00-{}-", "ab".repeat(16))) && first.ends_with("-00"),
        "{first}"
    );
    assert_eq!(trace(&d), first);
    d.attempt = 2;
    let second = trace(&d);
    assert_eq!(second[..36], first[..36]);
    assert_ne!(second[36..52], first[36..52]);
    d.id = MessageId([0; 16]);
    assert_ne!(trace(&d)[3..35], "0".repeat(32));
}

#[test]
fn the_idempotency_key_follows_the_round() {
    let mut d = delivery("x");
    d.round = 2;
    let request = prepared(|_| {}, &d).unwrap();
    assert_eq!(
        header(&request, "idempotency-key"),
        Some(format!("{}-2", "ab".repeat(16)).as_str())
    );
    d.idempotency_key = Some("kept-one".into());
    assert_eq!(
        header(&prepared(|_| {}, &d).unwrap(), "idempotency-key"),
        Some("kept-one")
    );
    let off = prepared(
        |c| {
            c.idempotency_key = false;
            c.traceparent = false;
        },
        &d,
    )
    .unwrap();
    assert_eq!(
        (header(&off, "idempotency-key"), header(&off, "traceparent")),
        (None, None)
    );
    let own = |c: &mut PartnerConfig| c.headers = vec![("Idempotency-Key".into(), "{{ id }}".into())];
    assert_eq!(
        header(&prepared(own, &d).unwrap(), "idempotency-key"),
        Some("order-1")
    );
}

#[test]
fn templates_see_everything_a_record_has() {
    let d = delivery(r#"{"user":{"name":"Jo & Co","n":3},"list":[1,"b"]}"#);
    let render = |template: &str| {
        let body = template.to_owned();
        let request = prepared(|c| c.body = Some(body), &d);
        request
            .map(|r| String::from_utf8(r.body().to_vec()).unwrap())
            .map_err(|e| e.0)
    };
    for (template, want) in [
        ("{{ value.user.name }}", "Jo & Co"),
        ("{{ value.user.name | urlencode }}", "Jo%20%26%20Co"),
        ("{{ value.user.n + 1 }}", "4"),
        ("{{ value.list[1] }}", "b"),
        ("{{ value.user }}", r#"{"name":"Jo & Co","n":3}"#),
        ("{{ value.user | tojson }}", r#"{"name":"Jo \u0026 Co","n":3}"#),
        (
            "x{{ value }}y",
            r#"x{"user":{"name":"Jo & Co","n":3},"list":[1,"b"]}y"#,
        ),
        (
            "{{ key }} {{ topic }} {{ partition }} {{ offset }}",
            "user-7 orders 3 42",
        ),
        ("{{ time }}", "2023-11-14T22:13:20.123Z"),
        ("{{ id }} {{ attempt }} {{ partner }}", "order-1 1 acme"),
        (
            "{{ source }} {{ headers['x-kind'] }} {{ headers['X-KIND'] }}",
            "day.jsonl:17 test test",
        ),
        (
            "{{ message_id }} {{ idempotency_key }}",
            &format!("{0} {0}", "ab".repeat(16)),
        ),
        ("l:{% for x in value.list %}[{{ x }}]{% endfor %}", "l:[1][b]"),
        ("{% if value.gone is defined %}a{% else %}b{% endif %}", "b"),
        ("{{ value.gone | default('none') }}", "none"),
        ("no template", "no template"),
    ] {
        assert_eq!(render(template).as_deref(), Ok(want), "{template}");
    }
    assert_eq!(
        render("{{ value.gone }}").unwrap_err(),
        "body: `value.gone` is undefined"
    );
    assert_eq!(
        render("{{ value.gone.deeper }}").unwrap_err(),
        "body: `value.gone` is undefined"
    );
    assert_eq!(
        render("{{ headers.gone }}").unwrap_err(),
        "body: `headers.gone` is undefined"
    );
    let mut keyless = d.clone();
    keyless.record.key = None;
    let told = prepared(|c| c.body = Some("{{ key }}".into()), &keyless).unwrap_err();
    assert_eq!(told.0, "body: `key` is undefined");
}

#[test]
fn numbers_and_texts_stay_as_they_are() {
    for value in [
        "12345678901234567890123",
        "1.10",
        "007",
        "plain text",
        "{broken",
        "",
        "ü",
    ] {
        let request = prepared(|c| c.body = Some("<{{ value }}>".into()), &delivery(value)).unwrap();
        assert_eq!(request.body(), format!("<{value}>"));
    }
    // A JSON string is the text it holds.
    let request = prepared(|c| c.body = Some("<{{ value }}>".into()), &delivery(r#""a\nb""#)).unwrap();
    assert_eq!(request.body(), "<a\nb>");
    let mut binary = delivery("");
    binary.record.value = bytes::Bytes::from_static(b"\xff\xfe");
    assert_eq!(prepared(|_| {}, &binary).unwrap().body(), &b"\xff\xfe"[..]);
    let told = prepared(|c| c.body = Some("<{{ value }}>".into()), &binary).unwrap_err();
    assert_eq!(told.0, "body: `value` is not UTF-8 text");
}

#[test]
fn mistakes_in_templates_are_found_before_any_record() {
    let unknown = refused(|c| c.body = Some("{{ vlaue.x }}".into()));
    assert!(
        unknown.starts_with("body: unknown variable `vlaue` (did you mean `value`?); known are value,"),
        "{unknown}"
    );
    assert_eq!(
        refused(|c| c.headers = vec![("authorization".into(), "Bearer {{ secret('acme') }}".into())]),
        "header `authorization`: no secret `acme` in [secrets]"
    );
    assert!(refused(|c| c.url = "http://a.example/{{ value".into()).starts_with("url: "));
    assert_eq!(
        refused(|c| c.url = "ftp://a.example/".into()),
        "url: the URL begins with ftp:, expected http: or https:"
    );
    assert_eq!(
        refused(|c| c.method = "BAD METHOD".into()),
        "`BAD METHOD` is not a request method that can be used"
    );
    assert_eq!(
        refused(|c| c.method = "CONNECT".into()),
        "`CONNECT` is not a request method that can be used"
    );
    for name in ["Content-Length", "transfer-encoding", "Connection", "upgrade"] {
        let told = refused(|c| c.headers = vec![(name.into(), "1".into())]);
        assert_eq!(
            told,
            format!("header `{name}`: this header is set by the client itself")
        );
    }
    assert_eq!(
        refused(|c| c.headers = vec![("a b".into(), "1".into())]),
        "header `a b`: not a header name"
    );
}

#[test]
fn a_record_cannot_smuggle() {
    for value in ["x\r\nx-evil: 1", "x\ny", "x\0"] {
        let told = prepared(
            |c| c.headers = vec![("x-user".into(), "{{ value }}".into())],
            &delivery(value),
        );
        let told = told.unwrap_err().0;
        assert_eq!(
            told,
            "the value of header `x-user` holds a control character (a line end?)"
        );
    }
    let url = |value: &str| {
        prepared(
            |c| c.url = "http://a.example/{{ value }}".into(),
            &delivery(value),
        )
    };
    assert!(
        url("x\r\nhost: evil")
            .unwrap_err()
            .0
            .starts_with("url: the URL holds a control character")
    );
    assert!(url("a b").is_err());
    assert_eq!(
        url("a/../b?c=d#e").unwrap().url(),
        "http://a.example:80/a%2F..%2Fb%3Fc=d%23e",
        "a value stays in its segment"
    );
    assert!(url("..").unwrap_err().0.contains("lead to another path"));
    let whole = |value: &str| {
        prepared(
            |c| {
                c.url = "{{ value }}".into();
                c.method = "GET".into();
            },
            &delivery(value),
        )
    };
    assert_eq!(
        whole(" https://b.example/x?y=1\n").unwrap().url(),
        "https://b.example:443/x?y=1"
    );
    assert_eq!(
        whole("\"https://b.example/x\"").unwrap().url(),
        "https://b.example:443/x"
    );
    for value in [
        "file:///etc/passwd",
        "//b.example",
        "b.example/x",
        "http://",
        "https://[::1",
        "http://b.example:99999/",
    ] {
        assert!(whole(value).is_err(), "{value}");
    }
}

#[test]
fn userinfo_becomes_a_header_and_is_not_shown() {
    let mut config = partner("http://user:pa55word@partner.example/");
    let plain = sink(&config);
    let rendered = plain.render(&delivery("x")).unwrap();
    let request = plain.prepare(&delivery("x")).unwrap();
    assert_eq!(
        header(&request, "authorization"),
        Some("Basic dXNlcjpwYTU1d29yZA==")
    );
    assert!(!format!("{rendered:?}").contains("pa55word") && !format!("{rendered:?}").contains("dXNl"));
    config.headers = vec![("authorization".into(), "mine".into())];
    assert_eq!(
        header(&sink(&config).prepare(&delivery("x")).unwrap(), "authorization"),
        Some("mine")
    );
}

#[test]
fn secrets_are_used_renewed_and_never_shown() {
    run(async {
        let server = Polite::start(|heard| {
            // A partner that quotes what it was sent.
            let quoted = format!("bad credentials: {}", heard.header("x-auth-raw").unwrap());
            super::server::response(422, &[], &quoted)
        });
        let (dir, secrets) = secrets(&[("acme", "S3cr3t-Value-One"), ("path", "p4th-t0ken")]);
        let mut config = partner(&format!(
            "http://{}/{{{{ secret('path') }}}}/hook",
            server.address
        ));
        config.headers = vec![
            ("authorization".into(), "Bearer {{ secret('acme') }}".into()),
            ("x-auth-raw".into(), "{{ secret('acme') }}/{{ key }}".into()),
        ];
        let sink = HttpSink::try_new(&config, &secrets, Clock::start()).unwrap();
        let d = delivery(r#"{"card_number":"4111111111111111","note":"S3cr3t-Value-One"}"#);
        let answer = answered(&sink, &d).await;
        {
            let heard = server.heard.lock();
            assert_eq!(heard[0].uri, "/p4th-t0ken/hook");
            assert_eq!(heard[0].header("authorization"), Some("Bearer S3cr3t-Value-One"));
            assert_eq!(heard[0].header("x-auth-raw"), Some("S3cr3t-Value-One/user-7"));
        }
        assert_eq!(answer.verdict, Verdict::Refused);
        let shown = format!("{answer:?} {:?} {secrets:?}", sink.render(&d).unwrap());
        for secret in ["S3cr3t-Value-One", "p4th-t0ken", "4111111111111111"] {
            assert!(!shown.contains(secret), "{shown}");
        }
        assert!(shown.contains("***"));

        std::fs::write(dir.path().join("acme"), "An0ther-Value").unwrap();
        assert_eq!(secrets.reload().changed, ["acme"]);
        let answer = answered(&sink, &d).await;
        let heard = server.heard.lock();
        assert_eq!(heard[1].header("authorization"), Some("Bearer An0ther-Value"));
        assert_eq!(heard[1].header("x-auth-raw"), Some("An0ther-Value/user-7"));
        assert!(!format!("{answer:?}").contains("An0ther-Value"));
    });
}

#[test]
fn what_is_rendered_is_what_would_be_sent() {
    let mut config = partner("http://partner.example/hook?api_key=abcdefgh&n=1");
    config.headers = vec![("x-kind".into(), "{{ headers['x-kind'] }}".into())];
    config.mask = vec!["shoe_size".into()];
    let rendered = sink(&config)
        .render(&delivery(r#"{"email":"a@b.example","shoe_size":44,"n":1}"#))
        .unwrap();
    assert_eq!(rendered.method, "POST");
    assert_eq!(rendered.url, "http://partner.example:80/hook?api_key=***&n=1");
    assert_eq!(rendered.body, r#"{"email":"***","shoe_size":***,"n":1}"#);
    let header = |name: &str| {
        rendered
            .headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    };
    assert_eq!(header("x-kind"), Some("test"));
    assert_eq!(header("idempotency-key"), Some("ab".repeat(16).as_str()));
}

#[test]
fn a_head_has_no_body_and_its_answer_none_either() {
    run(async {
        let server = Polite::start(|_| super::server::response(200, &[], "not sent for HEAD"));
        let mut config = partner(&server.url());
        config.method = "HEAD".into();
        let sink = sink(&config);
        for _ in 0..2 {
            assert_eq!(answered(&sink, &delivery("x")).await.verdict, Verdict::Delivered);
        }
        assert_eq!(server.heard.lock()[0].method, "HEAD");
        assert!(server.heard.lock()[0].body.is_empty());
        assert_eq!(sink.stats().connected, 1);
    });
}

/// What says that it is JSON is JSON: else the partner would refuse it, or worse, take half of it.
#[test]
fn a_body_that_claims_json_is_json() {
    let made = |template: &str, content_type: Option<&str>, value: &str| {
        prepared(
            |c| {
                c.body = Some(template.into());
                let headers = content_type.map(|t| ("Content-Type".to_owned(), t.to_owned()));
                c.headers.extend(headers);
            },
            &delivery(value),
        )
        .map(|r| r.body())
        .map_err(|e| e.0)
    };
    let name = r#"{"name": "{{ value.name }}"}"#;
    assert!(made(name, None, r#"{"name":"Jo"}"#).is_ok());
    for content_type in [
        None,
        Some("application/json"),
        Some("application/vnd.api+JSON; charset=utf-8"),
    ] {
        let told = made(name, content_type, r#"{"name":"Jo \"x\" Co"}"#).unwrap_err();
        assert!(
            told.starts_with("body: not JSON at line 1, column 15") && !told.contains("Jo"),
            "{told}"
        );
    }
    for content_type in [
        "text/plain",
        "application/x-ndjson",
        "application/x-www-form-urlencoded",
    ] {
        assert!(
            made(name, Some(content_type), r#"{"name":"\""}"#).is_ok(),
            "{content_type}"
        );
    }
    assert!(made("a={{ value.name }}", None, r#"{"name":"\""}"#).is_ok());
    // The record's own bytes are its own affair.
    assert!(prepared(|_| {}, &delivery("{half")).is_ok());
}

/// A partner that deduplicates compares bodies under one key.
#[test]
fn the_body_of_a_message_stays_the_same_where_it_is_sent_again() {
    use crate::config::model::DoubtPolicy;
    let body_of = |doubt: Option<DoubtPolicy>, attempt: u32| {
        let d = Delivery {
            attempt,
            ..delivery("x")
        };
        let request = prepared(
            |c| {
                c.body = Some("try {{ attempt }}".into());
                c.headers = vec![("x-try".into(), "{{ attempt }}".into())];
                if let Some(policy) = doubt {
                    c.doubt.timeout = policy;
                }
            },
            &d,
        )
        .unwrap();
        let header = request.headers()["x-try"].to_str().unwrap().to_owned();
        (String::from_utf8(request.body().to_vec()).unwrap(), header)
    };
    let third = |body: &str| (body.to_owned(), "3".to_owned());
    assert_eq!(body_of(Some(DoubtPolicy::Resend), 3), third("try 1"));
    assert_eq!(body_of(None, 3), third("try 3"));
}

/// `urlencode` is for any place of a URL, and a secret in its user info is encoded whole either way.
#[test]
fn a_secret_in_the_user_info_is_encoded_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("k");
    std::fs::write(&path, "p/a@s:s?#%41").unwrap();
    let sources = std::collections::BTreeMap::from([("k".to_owned(), SecretSource::File(path))]);
    let secrets = Secrets::load(&sources).unwrap();
    for template in ["{{ secret('k') | urlencode }}", "{{ secret('k') }}"] {
        let config = partner(&format!("http://user:{template}@h.example/x"));
        let sink = HttpSink::try_new(&config, &secrets, Clock::start()).unwrap();
        let request = sink.prepare(&delivery("x")).unwrap();
        assert_eq!(request.url(), "http://h.example:80/x");
        // user:p/a@s:s?#%41
        assert_eq!(
            header(&request, "authorization"),
            Some(format!("Basic {}", crate::core::mask::base64(b"user:p/a@s:s?#%41")).as_str())
        );
    }
}

/// The mask takes what follows `authorization:` for a credential: a reason must not look like one.
#[test]
fn the_mask_leaves_the_cause() {
    let masker = Masker::new(&[], &["s3cret-value".into()]);
    for (template, value) in [
        ("Bearer {{ value }}", "x\ny"),
        ("Bearer {{ value.token }}", "{}"),
        ("Bearer {{ value.token }}", r#"{"token":1,"token":2}"#),
    ] {
        let told = prepared(
            |c| c.headers = vec![("authorization".into(), template.into())],
            &delivery(value),
        )
        .unwrap_err()
        .0;
        let reason = format!("invalid: {told}");
        assert!(reason.contains("`authorization`"), "{reason}");
        assert_eq!(masker.text(&reason), reason);
    }
}
