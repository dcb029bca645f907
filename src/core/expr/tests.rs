use super::*;
use crate::core::record::{Headers, Record};
use bytes::Bytes;
use proptest::prelude::*;

struct Reply<'a>(i128, &'a [(&'a str, &'a str)], &'a str);

impl Scope for Reply<'_> {
    fn root(&self, root: Root) -> Val<'_> {
        if root == Root::Status {
            Val::Int(self.0)
        } else {
            Val::Missing
        }
    }
    fn header(&self, name: &str) -> Option<&[u8]> {
        self.1
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_bytes())
    }
    fn document(&self) -> &[u8] {
        self.2.as_bytes()
    }
}

fn holds(text: &str, scope: &impl Scope) -> bool {
    Expr::compile(text, Vocabulary::Answer)
        .unwrap_or_else(|e| panic!("{text}: {e}"))
        .test(scope)
}

const BODY: &str = r#"{"code":7,"ok":true,"big":18446744073709551615,"pi":3.5,"none":null,"text":"7",
    "errors":[{"type":"rate","n":1},{"type":"other"}],"a/b":{"~":"deep"},"tags":["x","y"],"01":"lead"}"#;

#[test]
fn answers() {
    let reply = Reply(200, &[("X-Error", "5"), ("x-ok", "true")], BODY);
    for (text, want) in [
        ("status == 200 and body.code != 0", true),
        ("status == 200 and body.code == 0", false),
        ("header[\"x-error\"] exists", true),
        ("headers.x-error == 5", true),
        ("header['X-ERROR'] == '5'", true),
        ("header[\"x-error\"] > 4.5", true),
        ("header[\"x-none\"] exists", false),
        ("not header[\"x-none\"] exists", true),
        ("header[\"x-ok\"]", true),
        ("body.errors[0].type == \"rate\"", true),
        ("body.errors[1].type == \"rate\"", false),
        ("body /errors/1/type == \"other\"", true),
        ("body/errors/1/type in [\"a\", \"other\"]", true),
        ("body /a~1b/~0 == 'deep'", true),
        ("body[\"a/b\"]['~'] == 'deep'", true),
        ("(body /code) == 7", true),
        ("body.code in [1, 7]", true),
        ("body.code not in [1, 7]", false),
        ("body.big == 18446744073709551615", true),
        ("body.big == 18446744073709551614", false),
        ("body.pi >= 3.5 and body.pi < 4", true),
        ("body.text == 7", false),
        ("body.text == \"7\"", true),
        ("body.ok", true),
        ("not body.ok or status >= 300", false),
        ("body.none == null", true),
        ("body.none exists", true),
        ("body.gone == null", false),
        ("body.gone != 1", false),
        ("not (body.gone == 1)", true),
        ("body.errors.type exists", false),
        ("body.code.deeper exists", false),
        ("body contains \"rate\"", true),
        ("body.tags contains \"y\"", true),
        ("body.tags contains \"z\"", false),
        ("body.errors[0] contains \"type\"", true),
        ("body matches \"(?i)\\bRATE\\b\"", true),
        ("body.errors[0].type starts_with \"ra\"", true),
        ("body.errors[0].type ends_with \"te\"", true),
        ("body /01 == 'lead'", true),
        ("status == 500 or status == 200 and body.code == 7", true),
        ("not not body.ok", true),
        ("-1 < 0 and 1e3 == 1000", true),
        ("true", true),
    ] {
        assert_eq!(holds(text, &reply), want, "{text}");
    }
}

#[test]
fn what_is_no_json_or_cut_short_is_read_as_far_as_it_goes() {
    let cut = &BODY[..120];
    assert!(serde_json::from_str::<serde_json::Value>(cut).is_err());
    assert!(holds("body.code == 7", &Reply(200, &[], cut)));
    assert!(!holds("body.tags exists", &Reply(200, &[], cut)));
    let html = Reply(502, &[], "<html>Bad Gateway");
    assert!(!holds("body.code exists", &html));
    assert!(holds("body starts_with '<html>'", &html));
    assert!(!holds("body.a exists", &Reply(200, &[], "")));
}

/// A verdict must not rest on one of two fields of the same name, nor on a document that cannot be read.
#[test]
fn a_field_that_is_there_twice_and_what_is_not_json_are_told() {
    let told = |text: &str, body: &str| {
        let expr = Expr::compile(text, Vocabulary::Answer).unwrap();
        let told = expr.try_test(&Reply(200, &[], body));
        told.map_err(|e| e.to_string())
    };
    for body in [
        r#"{"a":1,"a":2}"#,
        r#"{"a":{"b":1},"a":{"b":2}}"#,
        r#"{"a":{"b":1},"a":3}"#,
        r#"{"\u0061":1,"a":{"b":1}}"#,
    ] {
        for text in [
            "body.a == 2",
            "body.a.b exists",
            "not body.a exists",
            "status == 200 and body.a != 9",
        ] {
            assert_eq!(
                told(text, body),
                Err("the field `/a` is there twice".to_owned()),
                "{text} over {body}"
            );
            let expr = Expr::compile("body.a exists", Vocabulary::Answer).unwrap();
            assert!(!expr.test(&Reply(200, &[], body)));
        }
        // Who does not look does not care.
        assert_eq!(told("status == 200 or body.a == 1", body), Ok(true));
        assert_eq!(told("body contains 'a'", body), Ok(true));
    }
    for body in ["<html>", r#"{"a":"#, r#"{"a":1"#, "{'a':1}", "\u{feff}{\"a\":1}"] {
        assert!(told("body.a != 1", body).is_err(), "{body}");
    }
    assert_eq!(told("body.b == 1", r#"{"a":1e400,"n":"\ud83d","b":1}"#), Ok(true));
}

#[test]
fn numbers_keep_their_digits() {
    let body = r#"{"price":19.90,"big":123456789012345678901234567890,"e":1e2,"huge":1e400,"z":-0}"#;
    let reply = Reply(200, &[], body);
    for (text, want) in [
        ("body.price matches '\\.90$'", true),
        ("body.price == 19.9", true),
        ("body.big == 123456789012345678901234567890", true),
        ("body.big == 123456789012345678901234567891", false),
        ("body.e == 100", true),
        ("body.huge > 1e300", true),
        ("body.z == 0", true),
    ] {
        assert_eq!(holds(text, &reply), want, "{text}");
    }
    let reason = |text| PathExpr::compile(text, Vocabulary::Answer).unwrap().text(&reply);
    assert_eq!(reason("body.price").as_deref(), Some("19.90"));
    assert_eq!(reason("body.z").as_deref(), Some("-0"));
}

#[test]
fn records() {
    let record = Record {
        offset: 42,
        key: Some(Bytes::from_static(b"user-7")),
        value: Bytes::from_static(br#"{"kind":"click","n":3}"#),
        headers: Headers::encode([("X-Test", &b"1"[..])]),
        ..Record::default()
    };
    let scope = RecordScope {
        topic: "events",
        partition: 3,
        record: &record,
    };
    for (text, want) in [
        ("value.kind == 'click' and key starts_with 'user-'", true),
        ("headers[\"x-test\"] == 1", true),
        ("topic == 'events' and partition == 3 and offset > 41", true),
        ("value contains 'click'", true),
        ("key == 7", false),
    ] {
        let expr = Expr::compile(text, Vocabulary::Record).unwrap();
        assert_eq!(expr.test(&scope), want, "{text}");
    }
    let none = Record::default();
    let scope = RecordScope {
        topic: "events",
        partition: 3,
        record: &none,
    };
    assert!(
        !Expr::compile("key exists or value.kind exists", Vocabulary::Record)
            .unwrap()
            .test(&scope)
    );
}

#[test]
fn only_what_looks_at_the_document_says_so() {
    let uses = |text| Expr::compile(text, Vocabulary::Answer).unwrap().uses_document();
    assert!(!uses("status == 200 and header.x exists"));
    assert!(uses("status == 200 or body.x exists"));
}

#[test]
fn a_reason_is_a_path_or_a_text() {
    let reply = Reply(200, &[], BODY);
    let reason = |text| PathExpr::compile(text, Vocabulary::Answer).unwrap().text(&reply);
    assert_eq!(reason("body.errors[0].type").as_deref(), Some("rate"));
    assert_eq!(reason("body.code").as_deref(), Some("7"));
    assert_eq!(
        reason("body.errors[0]").as_deref(),
        Some(r#"{"type":"rate","n":1}"#)
    );
    assert_eq!(reason("'quota is used up'").as_deref(), Some("quota is used up"));
    assert_eq!(reason("body.gone"), None);
}

#[test]
fn mistakes_are_told_with_column_and_hint() {
    for (text, want) in [
        (
            "status = 200",
            "column 8: expected `and`, `or` or the end, found `=` (equality is written `==`)",
        ),
        (
            "status == 200 && body.x == 1",
            "column 15: expected `and`, `or` or the end, found `&` (`&&` is written `and`)",
        ),
        (
            "satus == 200",
            "column 1: unknown name `satus` (did you mean `status`?)",
        ),
        (
            "status == ok",
            "column 11: unknown name `ok` (known are status, header, body; a text needs quotes)",
        ),
        (
            "value.x == 1",
            "column 1: unknown name `value` (known are status, header, body; a text needs quotes)",
        ),
        ("status ==", "column 10: expected a value, found the end"),
        ("", "column 1: expected a value, found the end"),
        ("(status == 200", "column 15: expected `)`, found `the end`"),
        (
            "header == 1",
            "column 7: expected a header's name in brackets (write `header[\"x-name\"]`)",
        ),
        (
            "header[x] exists",
            "column 8: expected a header's name in quotes (write `header[\"x-name\"]`)",
        ),
        (
            "body.x in 1",
            "column 11: expected `[`, found `1` (a list is written `[1, 2]`)",
        ),
        (
            "body matches \"a(\"",
            "column 14: the pattern cannot be used: unclosed group",
        ),
        ("body == \"x", "column 9: no closing \""),
        ("body. == 1", "column 6: expected a name after `.`"),
        (
            "body /a~2 exists",
            "column 6: not a JSON pointer (`~` is written `~0`, `/` is written `~1`)",
        ),
        (
            "status == 0x10",
            "column 11: `0x10` is not a number (a text needs quotes)",
        ),
        ("status.code == 1", "column 7: `status` has nothing below it"),
        (
            "ü == 1",
            "column 1: unknown name `ü` (known are status, header, body; a text needs quotes)",
        ),
        (
            "body.ä is defined",
            "column 8: expected `and`, `or` or the end, found `is` (`is defined` is written `exists`)",
        ),
        (
            "!body.ok",
            "column 1: expected a value, found `!` (`!` is written `not`)",
        ),
    ] {
        let told = Expr::compile(text, Vocabulary::Answer).unwrap_err();
        assert_eq!(told.to_string(), want, "{text}");
    }
    let deep = "(".repeat(10_000);
    assert!(
        Expr::compile(&deep, Vocabulary::Answer)
            .unwrap_err()
            .message
            .contains("at most")
    );
    let deep = format!("{}true", "not ".repeat(1000));
    assert!(
        Expr::compile(&deep, Vocabulary::Answer)
            .unwrap_err()
            .message
            .contains("nested")
    );
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        "[a-c~/ü\"\\\\]{0,4}".prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
            prop::collection::vec(("[a-c~/0-1]{0,2}", inner), 0..4)
                .prop_map(|pairs| serde_json::Value::Object(pairs.into_iter().collect())),
        ]
    })
}

/// What the condition language finds at a path, `null` told apart from what is missing.
fn at_path(text: &str, parts: &[String]) -> Option<String> {
    let steps: String = parts
        .iter()
        .map(|p| format!("[{}]", serde_json::Value::from(p.as_str())))
        .collect();
    let reply = Reply(200, &[], text);
    let exists = holds(&format!("body{steps} exists"), &reply);
    let path = PathExpr::compile(&format!("body{steps}"), Vocabulary::Answer).unwrap();
    exists.then(|| path.text(&reply).unwrap_or_else(|| "null".to_owned()))
}

fn as_text(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

proptest! {
    /// Whatever is written compiles or is refused; nothing panics.
    #[test]
    fn no_text_panics(text in "\\PC{0,40}", words in prop::collection::vec(prop_oneof![
        Just("body"), Just(".a"), Just("[0]"), Just("=="), Just("and"), Just("not"), Just("("), Just(")"),
        Just("in"), Just("["), Just("]"), Just(","), Just("'x'"), Just("1"), Just("/a"), Just("exists"), Just("header")
    ], 0..12)) {
        let reply = Reply(200, &[], BODY);
        for text in [text, words.join(" "), words.concat()] {
            if let Ok(expr) = Expr::compile(&text, Vocabulary::Answer) {
                expr.test(&reply);
            }
        }
    }

    /// A path finds what `serde_json`'s own pointer finds, in whole documents.
    #[test]
    fn digs_as_a_pointer_does(doc in json(), parts in prop::collection::vec("[a-c~/0-1]{0,2}", 1..4)) {
        let text = doc.to_string();
        let pointer: String = parts.iter().map(|p| format!("/{}", p.replace('~', "~0").replace('/', "~1"))).collect();
        let found = at_path(&text, &parts);
        prop_assert_eq!(found, doc.pointer(&pointer).map(as_text));
    }

    /// Of a document that is cut anywhere it finds what was there, or nothing.
    #[test]
    fn a_cut_only_takes_away(doc in json(), parts in prop::collection::vec("[a-c~/0-1]{0,2}", 1..4), at in 0.0f64..1.0) {
        let text = doc.to_string();
        let mut at = (text.len() as f64 * at) as usize;
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        if let Some(found) = at_path(&text[..at], &parts) {
            prop_assert_eq!(Some(found), at_path(&text, &parts));
        }
    }

    /// Comparing two numbers is what comparing two numbers is.
    #[test]
    fn numbers_compare(a in any::<i64>(), b in any::<i64>()) {
        let body = format!("{{\"a\":{a}}}");
        let reply = Reply(200, &[], &body);
        prop_assert_eq!(holds(&format!("body.a < {b}"), &reply), a < b);
        prop_assert_eq!(holds(&format!("body.a == {b}"), &reply), a == b);
        prop_assert_eq!(holds(&format!("body.a >= {b}"), &reply), a >= b);
        let listed = format!("body.a in [{b}, {a}]");
        prop_assert!(holds(&listed, &reply));
    }
}
