use super::*;
use proptest::prelude::*;

fn masker() -> Masker {
    Masker::new(
        &["Loyalty-Number".to_owned()],
        &["s3cr3t/Value+1".into(), "line one\nline-two".into()],
    )
}

#[test]
fn what_is_told_by_its_name() {
    let m = masker();
    for (text, want) in [
        (
            "https://a.example/x?token=abc123&n=1",
            "https://a.example/x?token=***&n=1",
        ),
        (
            "https://a.example/x?user%5Bemail%5D=a&n=1",
            "https://a.example/x?user%5Bemail%5D=***&n=1",
        ),
        (
            "/go?next=https%3A%2F%2Fb%2F%3Fapi_key%3Dabc%26n%3D1&k=2",
            "/go?next=https%3A%2F%2Fb%2F%3Fapi_key%3D***%26n%3D1&k=2",
        ),
        (r#"{"password":"a\"b","n":1}"#, r#"{"password":"***","n":1}"#),
        (
            r#"{"accessToken" : "abc", "x": [1]}"#,
            r#"{"accessToken" : "***", "x": [1]}"#,
        ),
        (r#"{"phone":447700900123,"n":1}"#, r#"{"phone":***,"n":1}"#),
        (
            r#"{"address":{"street":"x","no":[1,2]},"n":1}"#,
            r#"{"address":***,"n":1}"#,
        ),
        (
            r#"{"error":"{\"token\":\"abc\",\"n\":1}"}"#,
            r#"{"error":"{\"token\":\"***\",\"n\":1}"}"#,
        ),
        (
            r#"{"token":null,"auth":true,"n":1}"#,
            r#"{"token":null,"auth":true,"n":1}"#,
        ),
        ("Authorization: Bearer abc def\nx: 1", "Authorization: ***\nx: 1"),
        ("Set-Cookie: sid=abc; path=/", "Set-Cookie: ***; path=/"),
        (
            "<password>abc</password><n>1</n>",
            "<password>***</password><n>1</n>",
        ),
        ("loyalty_number=77&n=1", "loyalty_number=***&n=1"),
        ("{'secret': 'abc'}", "{'secret': '***'}"),
        (
            "status=422 partner=acme offset=7",
            "status=422 partner=acme offset=7",
        ),
        (r#"{"token":"cut off he"#, r#"{"token":"***"#),
        (r#"{"address":{"street":"cut"#, r#"{"address":***"#),
        ("?sig=", "?sig="),
    ] {
        assert_eq!(m.text(text), want, "{text}");
    }
}

#[test]
fn what_is_told_by_its_form() {
    let m = masker();
    for (text, want) in [
        ("http://user:pa55@host/x", "http://***@host/x"),
        ("connect to http://user:pa5", "connect to http://***"),
        (
            "cannot reach http://127.0.0.1:8080",
            "cannot reach http://127.0.0.1:8080",
        ),
        ("invalid Bearer aBc123xyz given", "invalid Bearer *** given"),
        ("Bearer authentication failed", "Bearer authentication failed"),
        ("no such user anna.b@example.com here", "no such user *** here"),
        ("q=anna%40example.com&n=1", "q=***&n=1"),
        ("got eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc now", "got *** now"),
        ("call +44 7700 900123, please", "call ***, please"),
        ("at 2023-11-14T22:13:20+0000", "at 2023-11-14T22:13:20+0000"),
    ] {
        assert_eq!(m.text(text), want, "{text}");
    }
}

#[test]
fn known_secrets_in_every_form() {
    let m = masker();
    let base64 = base64(b"s3cr3t/Value+1");
    for text in [
        "s3cr3t/Value+1",
        "s3cr3t%2FValue%2B1",
        "s3cr3t%2fvalue%2b1",
        &base64,
        "line-two",
    ] {
        let masked = m.text(&format!("before {text} after"));
        assert_eq!(masked, "before *** after", "{text}");
    }
    // Cut at either end, with and without a sign of it.
    assert_eq!(m.text("sent s3cr3t/Va"), "sent ***");
    assert_eq!(m.text("sent s3cr3t/Va…"), "sent ***…");
    assert_eq!(m.text("t/Value+1 was sent"), "*** was sent");
    assert_eq!(m.text("s3cr3t/Value+1s3cr3t/Value+1"), "***");
}

/// A partner echoes a credential as its own software writes it.
#[test]
fn known_secrets_in_any_encoding() {
    let m = masker();
    let secret = "s3cr3t/Value+1";
    for user in ["", "u", "us", "user", "user:", "a much longer name:"] {
        for behind in ["", "x", "xy", "xyz"] {
            let text = base64(format!("{user}{secret}{behind}").as_bytes());
            for text in [
                text.trim_end_matches('=').to_owned(),
                text.replace('+', "-").replace('/', "_"),
                text,
            ] {
                assert_eq!(
                    m.text(&format!("got {text}, sorry")),
                    "got ***, sorry",
                    "{user} {behind}"
                );
            }
        }
    }
    for text in [
        "s3cr3t/Value%2B1",
        "s3cr3t%2fValue+1",
        "%73%33cr3t%2FValue%2b1",
        r"s3cr3t\/Value+1",
        r"s3cr3t\u002fValue\u002B1",
        r"s3cr3t\x2fValue+1",
        "s3cr3t&#x2F;Value&#43;1",
    ] {
        assert_eq!(m.text(&format!("sent {text} there")), "sent *** there", "{text}");
    }
    // Cut within an encoding.
    assert_eq!(m.text(r"sent s3cr3t\/Val"), "sent ***");
    assert_eq!(m.text("a 50% & b \\ c &amp; d"), "a 50% & b \\ c &amp; d");
}

#[test]
fn names() {
    for name in [
        "token",
        "access_token",
        "accessToken",
        "X-Api-Key",
        "API_KEY",
        "userEmail",
        "client.ip",
        "ip",
        "IP",
        "Authorization",
        "proxy-authorization",
        "Set-Cookie",
        "x-amz-signature",
        "userpassword",
        "deviceId",
        "idfa",
        "user[email]",
        "hashedEmailAddress",
    ] {
        assert!(is_telling(name), "{name}");
    }
    for name in [
        "status", "shipping", "tokyo", "monkey", "zipper", "message", "reason", "keyboard", "opinion", "id",
    ] {
        assert!(!is_telling(name), "{name}");
    }
}

/// Partners invent names for headers that carry credentials.
#[test]
fn a_literal_header_shows_only_what_is_plainly_harmless() {
    for (name, value) in [
        ("x-lit", "planted-literal-17"),
        ("x-partner", "Zm9vYmFyYmF6"),
        ("authorization", "x"),
        ("x-account", "acme-production"),
    ] {
        assert!(!shows_literal(name, value), "{name}");
    }
    for (name, value) in [
        ("Content-Type", "application/vnd.acme.v2+json; charset=utf-8"),
        ("user-agent", "a long name of a client/1.0"),
        ("x-version", "3"),
        ("x-api-version", "2024-01-01"),
        ("x-source", "batch"),
    ] {
        assert!(shows_literal(name, value), "{name}");
    }
}

#[test]
fn headers() {
    let m = masker();
    assert_eq!(m.header("authorization", "Bearer x"), "***");
    assert_eq!(m.header("idempotency-key", "00ff"), "00ff");
    assert_eq!(m.header("x-request", "s3cr3t/Value+1"), "***");
    assert_eq!(m.header("content-type", "application/json"), "application/json");
}

fn piece_of(secret: &str, masked: &str, least: usize) -> bool {
    let chars: Vec<char> = secret.chars().collect();
    chars
        .windows(least)
        .any(|w| masked.contains(&w.iter().collect::<String>()))
}

proptest! {
    /// A known secret is not in the masked text, wherever it stood and however the text was cut; of a piece at a cut
    /// at most three letters are left.
    #[test]
    fn a_known_secret_never_shows(
        secret in "[A-Za-z0-9+/=_ü-]{12,30}", before in "\\PC{0,20}", after in "\\PC{0,20}", cut in 0.0f64..=1.0,
    ) {
        prop_assume!(!piece_of(&secret, &before, 4) && !piece_of(&secret, &after, 4));
        let m = Masker::new(&[], &[secret.as_str().into()]);
        let whole = format!("{before}{secret}{after}");
        let masked = m.text(&whole);
        prop_assert!(!masked.contains(&secret), "{masked}");
        let mut at = (whole.len() as f64 * cut) as usize;
        while !whole.is_char_boundary(at) {
            at -= 1;
        }
        let masked = m.text(&whole[..at]);
        prop_assert!(!piece_of(&secret, &masked, 5), "{masked}");
    }

    /// What stands under a telling name does not show, in any form, at any cut.
    #[test]
    fn a_named_value_never_shows(
        value in "[A-Za-z0-9]{8,24}",
        name in prop_oneof![Just("token"), Just("api_key"), Just("userEmail"), Just("X-Signature"), Just("password")],
        form in 0usize..8, cut in 0.0f64..=1.0,
    ) {
        let open = match form {
            0 => format!(r#"{{"a":1,"{name}":"{value}","z":2}}"#),
            1 => format!(r#"{{"{name}" :  ["{value}", {{"x":"{value}"}}], "z":2}}"#),
            2 => format!("https://h.example/p?a=1&{name}={value}&z=2"),
            3 => format!("a=1; {name}={value}; z=2"),
            4 => format!("{name}: {value}\r\nz: 2"),
            5 => format!("<a>1</a><{name}>{value}</{name}>"),
            6 => serde_json::json!({"raw": format!(r#"{{"{name}":"{value}"}}"#)}).to_string(),
            _ => format!("next=https%3A%2F%2Fh%2F%3F{name}%3D{value}%26z%3D2"),
        };
        let at = (open.len() as f64 * cut) as usize;
        let m = Masker::default();
        prop_assert!(!piece_of(&value, &m.text(&open), 4), "{open} -> {}", m.text(&open));
        prop_assert!(!piece_of(&value, &m.text(&open[..at]), 4), "{} -> {}", &open[..at], m.text(&open[..at]));
    }

    /// Masking never panics, and what is masked stays masked.
    #[test]
    fn any_text_will_do(text in "[\\PC:=\"\\\\{}\\[\\]@%<>&?/+ü]{0,60}", bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        let m = masker();
        m.text(&text);
        m.bytes(&bytes);
    }
}

/// A gateway wraps the answer of another one: JSON inside a JSON string, a parameter inside a link, and so on.
#[test]
fn a_secret_is_found_under_several_layers_of_escapes_and_where_they_are_mixed() {
    let m = masker();
    let secret = "s3cr3t/Value+1";
    let json = |text: &str| {
        let quoted = serde_json::Value::from(text).to_string();
        quoted[1..quoted.len() - 1].to_owned()
    };
    let php = secret.replace('/', "\\/");
    let percent = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let html = |text: &str| {
        text.replace('&', "&amp;")
            .replace('/', "&#47;")
            .replace('+', "&#x2B;")
    };
    for wrapped in [
        json(&php),
        json(&json(&php)),
        json(&json(&json(&php))),
        "s3cr3t%2FValue&#43;1".to_owned(),
        "s3cr3t\\u002FValue%2B1".to_owned(),
        "s3cr3t\\\\u002fValue\\\\u002B1".to_owned(),
        percent(&percent(&percent(secret))),
        html(&html(secret)),
        html(&percent(&json(&php))),
        percent(&html(&php)),
        json(&html(&percent(secret))),
        super::base64(format!("u:{php}").as_bytes()),
        percent(&super::base64(percent(secret).as_bytes())),
    ] {
        let masked = m.text(&format!("<a>{wrapped}</a> behind"));
        assert_eq!(masked, "<a>***</a> behind", "{wrapped}");
    }
    // A secret that itself looks escaped.
    let own = Masker::new(&[], &["a%2Fb\\nc&amp;d".into()]);
    for wrapped in [
        "a%2Fb\\nc&amp;d".to_owned(),
        json("a%2Fb\\nc&amp;d"),
        json(&json("a%2Fb\\nc&amp;d")),
        json(&percent("a%2Fb\\nc&amp;d")),
    ] {
        // With its own escapes some of these are deeper than is followed.
        let masked = own.text(&format!("({wrapped})"));
        assert!(["(***)", "***"].contains(&&*masked), "{wrapped}: {masked}");
    }
}

#[test]
fn names_are_seen_in_json_inside_json_inside_json() {
    let m = masker();
    let mut text = r#"{"token":"abc123"}"#.to_owned();
    for depth in 0..4 {
        let masked = m.text(&text);
        assert!(!masked.contains("abc123"), "{depth}: {masked}");
        text = serde_json::json!({ "error": text }).to_string();
    }
}

/// Escapes of escapes cost bounded work.
#[test]
fn a_text_made_of_escapes_is_masked_in_bounded_work() {
    let hostile = "%255C%5C\\u0025&#37;26amp;".repeat(2_000);
    let (views, words) = super::encoded::views(hostile.as_bytes());
    assert!(views.len() <= 24 && words.len() <= views.len());
    assert_eq!(masker().text(&hostile), MASK);
}

/// What is escaped deeper than anybody looks may be anything: the word is masked, and what stands beside it is not.
#[test]
fn words_escaped_deeper_than_is_followed_are_masked_whole() {
    let m = masker();
    let percent = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let mut wrapped = "s3cr3t/Value+1".to_owned();
    for depth in 1..=9 {
        wrapped = percent(&wrapped);
        let masked = m.text(&format!("refused: 422 (at {wrapped}) 100% sure"));
        assert!(!masked.contains("cr3t"), "{depth}: {masked}");
        assert!(
            masked.starts_with("refused: 422 ") && masked.ends_with(" 100% sure"),
            "{depth}: {masked}"
        );
    }
    let mut path = r"\\host\share \".to_owned();
    assert_eq!(m.text(&path), path, "that is no deep escape");
    for _ in 0..5 {
        path = path.replace('\\', r"\\");
    }
    assert!(!m.text(&path).contains("share"));
    // Where there are no secrets, there is nothing to hide.
    assert_eq!(Masker::new(&[], &[]).text(&path), path);
}

#[test]
fn a_secret_packed_twice_is_found() {
    let m = masker();
    for user in ["", "u", "us", "user:"] {
        for behind in ["", "x", "xy"] {
            let once = base64(format!("{user}s3cr3t/Value+1{behind}").as_bytes());
            for before in ["", "B", "Ba", "Basic "] {
                let twice = base64(format!("{before}{once}").as_bytes());
                let masked = m.text(&format!("got {twice}, sorry"));
                assert_eq!(masked, "got ***, sorry", "{user} {behind} {before}");
            }
        }
    }
}
