//! What templates print, and what they refuse.

use super::*;
use crate::core::record::Record;
use crate::core::types::MessageId;

fn delivery(value: &str) -> Delivery {
    Delivery {
        topic: "t".into(),
        partition: 0,
        record: Record {
            key: Some("../../b".into()),
            value: bytes::Bytes::from(value.to_owned()),
            ..Record::default()
        },
        id: MessageId([0xab; 16]),
        readable: "../a".into(),
        round: 1,
        attempt: 1,
        idempotency_key: None,
    }
}

fn filled(what: &str, template: &str, value: &str) -> Result<String, String> {
    let mut templates = Templates::new("p", &Secrets::none());
    let compiled = templates.compile(what, template).map_err(|e| e.to_string())?;
    let delivery = delivery(value);
    let filled = templates.render(&compiled, &delivery);
    filled.map(Cow::into_owned).map_err(|e| e.to_string())
}

fn body(template: &str, value: &str) -> String {
    filled("body", template, value).unwrap_or_else(|e| panic!("{template}: {e}"))
}

const RECORD: &str =
    r#"{"id":1,"t":true,"f":false,"n":null,"l":[true,null,"it's",1.50],"o":{"b":1,"a":[1e2, null]},"s":"x"}"#;

/// `true`, `false` and `null` are JSON's wherever they are printed.
#[test]
fn literals_are_those_of_json() {
    for (template, want) in [
        (
            r#"{"a": {{ value.t }}, "n": {{ value.n }}}"#,
            r#"{"a": true, "n": null}"#,
        ),
        (
            "{{ value.f | urlencode }} {{ value.n | urlencode }}",
            "false null",
        ),
        (
            "{{ value.t ~ '-' ~ value.n ~ '-' ~ value.l ~ (1 > 0) }}",
            r#"true-null-[true,null,"it's",1.50]true"#,
        ),
        ("{{ value.l | join(',') }}", "true,null,it's,1.50"),
        (
            "{{ '%s %s %s' | format(value.t, value.n, value.l[3]) }}",
            "true null 1.50",
        ),
        ("{{ value.t | string }}{{ value.n | string | upper }}", "trueNULL"),
        (
            "{{ value.t | upper }} {{ value.f | replace('a', 'o') }}",
            "TRUE folse",
        ),
        (
            "{{ 1 > 0 }} {{ value.s == 'x' }} {{ not value.t }}",
            "true true false",
        ),
        (
            "{{ [true, none, 1.5, 'x', value.l] }}",
            r#"[true,null,1.5,"x",[true,null,"it's",1.50]]"#,
        ),
        (
            "{{ {'a': value.n, 'b': value.o} }}",
            r#"{"a":null,"b":{"b":1,"a":[1e2,null]}}"#,
        ),
        (
            "{{ value.n | default('d') }} {{ value.n | default('d', true) }} {{ value.gone | default('d') }}",
            "null d d",
        ),
        (
            "{{ value.t | tojson }} {{ value.n | tojson }} {{ value.l | tojson }}",
            r#"true null [true,null,"it\u0027s",1.50]"#,
        ),
        (
            "{% if value.t and not value.n and not value.f %}yes{% endif %}",
            "yes",
        ),
        (
            "{% if value.n is none and value.t is true and value.t == true %}yes{% endif %}",
            "yes",
        ),
        (
            "{% for x in value.l %}{{ x }};{% endfor %}",
            "true;null;it's;1.50;",
        ),
        (
            "{% for k, v in value.o | items %}{{ k }}={{ v }};{% endfor %}",
            "b=1;a=[1e2,null];",
        ),
        (
            "{{ value.o | length }}{{ value.l | length }}{{ value.l | first }}",
            "24true",
        ),
        (
            "{{ value.o | tojson(indent=2) }}",
            "{\n  \"b\": 1,\n  \"a\": [\n    1e2,\n    null\n  ]\n}",
        ),
    ] {
        assert_eq!(body(template, RECORD), want, "{template}");
    }
}

/// Numbers keep the digits that the record gives them.
#[test]
fn numbers_keep_their_digits() {
    let record = r#"{"n":123456789012345678901234567890,"price":19.90,"e":1e2,"z":-0,"m":-9223372036854775809,
        "x":100000000000000000000.5,"huge":1e400,"u":18446744073709551616,"small":7,"f":19.99}"#;
    for name in ["n", "price", "e", "z", "m", "x", "huge", "u", "small", "f"] {
        let digits = record
            .split_once(&format!("\"{name}\":"))
            .and_then(|(_, rest)| rest.split([',', '}']).next())
            .unwrap();
        for template in [
            "{{ value.NAME }}",
            "{{ value.NAME | tojson }}",
            "{{ value.NAME | string }}",
            "{{ '' ~ value.NAME }}",
            "{{ [value.NAME] | join }}",
            "{{ '%s' | format(value.NAME) }}",
            "{% set x = value.NAME %}{{ x }}",
            "{{ value.NAME | default(0) }}",
            "{% if value.NAME > -1e300 %}{{ value.NAME }}{% endif %}",
        ] {
            let template = template.replace("NAME", name);
            assert_eq!(body(&template, record), digits, "{template}");
        }
    }
    assert_eq!(body("{{ value }}", record), record);
    let compact: String = record.split_whitespace().collect();
    assert_eq!(body("{{ value | tojson }}", record), compact);
    assert_eq!(
        filled("url", "http://h/users/{{ value.n }}", record).as_deref(),
        Ok("http://h/users/123456789012345678901234567890")
    );
}

/// Operators, tests and numeric filters see the number, however it is written.
#[test]
fn numbers_count() {
    let record = r#"{"price":19.90,"e":1e2,"n":3,"z":0.00,"l":[1.50,2.50,0.5],"big":1.0e1}"#;
    for (template, want) in [
        ("{{ value.price * 100 }}", "1989.9999999999998"),
        ("{{ (value.price * 100) | round | int }}", "1990"),
        ("{{ value.e + value.n }}", "103.0"),
        ("{{ -value.e }} {{ 1 - value.e }}", "-100.0 -99.0"),
        ("{{ value.price > 19.8 and value.price < 20 }}", "true"),
        ("{{ value.price == 19.9 and 19.9 == value.price }}", "true"),
        ("{{ value.e in [100, 7] }}", "true"),
        ("{{ 100 in [value.e] }}", "true"),
        (
            "{{ value.price is number }} {{ value.e is gt(99) }} {{ value.n is odd }}",
            "true true true",
        ),
        (
            "{{ value.l | sum }} {{ value.l | max }} {{ value.l | sort | first }}",
            "4.5 2.5 0.5",
        ),
        (
            "{{ value.price | int }} {{ value.e | float }} {{ value.price | round(1) }}",
            "19 100.0 19.9",
        ),
        ("{% if value.z %}not zero{% else %}zero{% endif %}", "zero"),
        ("{{ '%d %.1f' | format(value.n, value.price) }}", "3 19.9"),
        ("{{ value.n // 2 ~ '-' ~ value.price }}", "1-19.90"),
        ("{{ value.price if value.n >= 3 else 0 }}", "19.90"),
    ] {
        assert_eq!(body(template, record), want, "{template}");
    }
}

/// The reason names the field that is at fault, and only if the template asks for it.
#[test]
fn the_reason_names_the_field_and_the_cause() {
    let odd = format!(
        r#"{{"id":1,"u":"x","nick":"\ud83d","n":1e400,"deep":{}1{}}}"#,
        "[".repeat(300),
        "]".repeat(300)
    );
    assert_eq!(body("{{ value.u }} {{ value.n }}", &odd), "x 1e400");
    let why = |template: &str, value: &str| filled("body", template, value).unwrap_err();
    assert_eq!(
        why("{{ value.nick }}", &odd),
        "body: `value.nick` holds half of a surrogate pair"
    );
    assert_eq!(
        why("{{ value.a.b }}", r#"{"a":{"b":"\ud83d"}}"#),
        "body: `value.a.b` holds half of a surrogate pair"
    );
    assert_eq!(
        why("{{ value.u }}", r#"{"u":"x","v":}"#),
        "body: `value` is not JSON at line 1, column 14"
    );
    assert_eq!(why("{{ value.gone }}", "{}"), "body: `value.gone` is undefined");
    assert_eq!(why("{{ value.gone.x }}", "{}"), "body: `value.gone` is undefined");
    for template in [
        "{{ value.gone | urlencode }}",
        "{{ value.gone | tojson }}",
        "{{ value.gone * 2 }}",
        "{{ value.gone ~ 'x' }}",
        "{{ value.gone | upper }}",
    ] {
        assert!(
            why(template, "{}").contains("`value.gone` is undefined"),
            "{template}: {}",
            why(template, "{}")
        );
    }
    assert_eq!(body("{{ value }}", "{hello}"), "{hello}");
    assert_eq!(body("{{ value | upper }}!", "{hello}"), "{HELLO}!");
}

/// Which of two fields counts, the partner's parser might see otherwise.
#[test]
fn a_field_that_is_there_twice_is_an_error_where_it_is_used() {
    let twice = r#"{"id":"A","id":"B","v":1,"o":{"x":1,"x":2}}"#;
    assert_eq!(
        filled("url", "http://h/hook/{{ value.id }}", twice).unwrap_err(),
        "url: `value.id` is there twice"
    );
    assert_eq!(
        filled("body", "{{ value.o.x }}", twice).unwrap_err(),
        "body: `value.o.x` is there twice"
    );
    assert!(filled("body", "{% for k in value %}{{ value[k] }}{% endfor %}", twice).is_err());
    assert_eq!(body("{{ value.v }}", twice), "1");
    // Passed on as a whole it is what the record says.
    assert_eq!(body("{{ value }}!", twice), format!("{twice}!"));
}

#[test]
fn values_stay_in_their_place_of_a_url() {
    let url = |template: &str, u: &str| filled("url", template, &serde_json::json!({ "u": u }).to_string());
    let users = "http://127.0.0.1:28571/v1/users/{{ value.u | urlencode }}/events";
    for (u, want) in [
        ("../../admin/delete?", Ok("..%2F..%2Fadmin%2Fdelete%3F")),
        ("a/b", Ok("a%2Fb")),
        ("//evil.example/x", Ok("%2F%2Fevil.example%2Fx")),
        ("%2e%2e", Ok("%252e%252e")),
        ("a#b?c=d&e", Ok("a%23b%3Fc%3Dd%26e")),
        (
            "\u{fdd0}e\u{fdd1}../x\u{fdd2}",
            Ok("%EF%B7%90e%EF%B7%91..%2Fx%EF%B7%92"),
        ),
        ("..", Err(())),
    ] {
        let want = want
            .map(|w| format!("http://127.0.0.1:28571/v1/users/{w}/events"))
            .map_err(|()| {
                "url: a value makes a segment of the path `.` or `..`, which would lead to another path"
                    .to_owned()
            });
        assert_eq!(url(users, u), want, "{u}");
    }
    let plain = "http://h/v1/users/{{ value.u }}/events";
    let marked = url(plain, "\u{fdd0}p\u{fdd1}../x\u{fdd2}").unwrap();
    assert!(marked.ends_with("..%2Fx\u{fffd}/events"), "{marked}");
    // ID and key are the record's words too.
    for name in ["id", "key"] {
        let made = filled("url", &format!("http://h/v1/{{{{ {name} | urlencode }}}}"), "{}").unwrap();
        assert!(made.starts_with("http://h/v1/..%2F"), "{made}");
    }
    assert_eq!(
        url("http://h/{{ value.u | path }}", "a b/c").as_deref(),
        Ok("http://h/a%20b/c")
    );
    assert_eq!(
        url("http://h/{{ value.u }}", "a/c").as_deref(),
        Ok("http://h/a%2Fc")
    );
    assert!(
        url("http://127.0.0.1:1{{ value.u }}", "@127.0.0.1:2/x")
            .unwrap_err()
            .contains("right after the host")
    );
    assert_eq!(
        url("{{ value.u }}", "https://h/a?b='c'").as_deref(),
        Ok("https://h/a?b='c'")
    );
    // Outside of URLs the same filters just make text.
    assert_eq!(
        body("{{ 'a/b c' | urlencode }} {{ 'a/b c' | path }}", "{}"),
        "a%2Fb%20c a/b%20c"
    );
    assert_eq!(
        body("{{ {'a': 1.0, 'b c': none} | urlencode }}", "{}"),
        "a=1.0&b%20c=null"
    );
}

/// A filter that gets too few arguments, or too many, would make a dead letter of every record.
#[test]
fn wrong_arguments_are_found_when_the_template_is_compiled() {
    let compile = |source: &str| {
        let mut templates = Templates::new("p", &Secrets::none());
        templates
            .compile("body", source)
            .map(drop)
            .map_err(|e| e.to_string())
    };
    for wrong in [
        "{{ value.a | replace }}",
        "{{ value.a | replace('x') }}",
        "{{ value.a | upper(1, 2) }}",
        "{{ value.a | default('x') | replace('y') }}",
    ] {
        let told = compile(wrong).expect_err(wrong);
        assert!(
            told.starts_with("body: ") && told.contains("argument"),
            "{wrong}: {told}"
        );
    }
    // What depends on the record is the record's business.
    for right in [
        "{{ value.a | replace('x', 'y') }}",
        "{{ value.a.b.c | upper }}",
        "{{ value.n | int + 1 }} {{ value.items | length }} {{ headers['x'] }} {{ key }} {{ 1 // value.z }}",
        "{% for x in value.list %}{{ x.name | tojson }}{% endfor %}",
        "{% if value.kind == 'a' %}{{ value.rows[3].x | round(2) }}{% endif %}",
        "{{ value | tojson }} {{ value.at | urlencode }} {{ '%s' | format(value.l[3]) }}",
    ] {
        assert_eq!(compile(right), Ok(()), "{right}");
    }
}
