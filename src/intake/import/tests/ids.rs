//! The ID of a line: its own, that of its import, twice in one file, or unused.

use super::*;

#[test]
fn lines_say_where_they_came_from_and_go_by_id_or_key() {
    let mut case = case();
    case.import("dir/day.jsonl".rsplit('/').next().expect("name"), LINES)
        .expect("import");
    let mut sources: Vec<_> = case.records().iter().map(source).collect();
    sources.sort();
    assert_eq!(sources, ["day.jsonl:1", "day.jsonl:3", "day.jsonl:4"]);
    assert!(
        case.records()
            .iter()
            .all(|r| r.headers.get(IMPORT_ID_HEADER).is_none())
    );

    // The same ID in another file is in the same partition; records of one key stay together.
    let place = |case: &Case, text: &str| {
        case.log
            .all("t")
            .iter()
            .position(|p| p.iter().any(|r| r.value == text))
            .expect("there")
    };
    case.import("b.jsonl", b"{\"id\":1,\"b\":0}\n{\"id\":\"2\",\"b\":0}")
        .expect("import");
    assert_eq!(place(&case, "{\"id\":1}"), place(&case, "{\"id\":1,\"b\":0}"));
    assert_eq!(
        place(&case, "{\"id\":2}"),
        place(&case, "{\"id\":\"2\",\"b\":0}"),
        "2 and \"2\" are the same text"
    );
    case.topic.key = KeySource::Json("/user".into());
    let of_user: String = (10..60)
        .map(|i| format!("{{\"id\":{i},\"user\":\"u\"}}\n"))
        .collect();
    case.import("c.jsonl", of_user.as_bytes()).expect("import");
    let with = case
        .log
        .all("t")
        .iter()
        .filter(|p| p.iter().any(|r| source(r).starts_with("c.")))
        .count();
    assert_eq!(with, 1);
    case.import_with("d.jsonl", b"{\"id\":7,\"k\":\"x\"}", |o| {
        o.key = Some(KeyFrom::Json("/k".into()))
    })
    .expect("key");
    assert!(case.records().iter().any(|r| r.key.as_deref() == Some(b"x")));
}

#[test]
fn a_line_without_id_gets_the_files_hash_and_its_number() {
    let case = case();
    let report = case
        .import("a.jsonl", b"{\"id\":1}\n{\"x\":1}\n{\"x\":1}\n")
        .expect("import");
    let mut ids: Vec<String> = (case.records().iter())
        .filter_map(|r| r.headers.get(IMPORT_ID_HEADER))
        .map(|id| String::from_utf8_lossy(id).into_owned())
        .collect();
    ids.sort();
    assert_eq!(ids, [2, 3].map(|n| format!("{}:{n}", &report.hash[..32])));
}

/// An empty cell is no ID: the line gets one of its import, as one without the column would.
#[test]
fn a_line_with_an_empty_id_gets_that_of_its_import() {
    let case = case();
    let csv = case.import("a.csv", b"id,v\n1,a\n,b\n\" \",c\n").expect("import");
    let lines = b"{\"id\":\"\",\"v\":1}\n{\"id\":null,\"v\":2}\n{\"v\":3}\n{\"id\":7}\n";
    let json = case.import("b.jsonl", lines).expect("import");
    assert_eq!((csv.accepted, json.accepted), (3, 4));
    let given: Vec<_> = case
        .records()
        .iter()
        .map(|r| (source(r), r.headers.get(IMPORT_ID_HEADER).is_some()))
        .filter(|(_, given)| *given)
        .map(|(source, _)| source)
        .collect();
    let given: std::collections::BTreeSet<_> = given.iter().map(String::as_str).collect();
    let want = ["a.csv:3", "a.csv:4", "b.jsonl:1", "b.jsonl:2", "b.jsonl:3"];
    assert_eq!(given, want.into_iter().collect());
}

/// Which of two fields counts, the partner might see otherwise: the line is rejected, with its number.
#[test]
fn a_field_that_is_there_twice_rejects_its_line() {
    let mut case = case();
    case.topic.key = KeySource::Json("/k".into());
    case.topic.reads = vec!["/to".into()];
    let lines = b"{\"id\":1}\n{\"id\":\"A\",\"id\":\"B\"}\n{\"id\":2,\"k\":1,\"k\":1}\n{\"id\":3,\"to\":1,\"to\":2}\n{\"id\":4,\"x\":1,\"x\":2}\n";
    let report = case.import("day.jsonl", lines).expect("import");
    let told: Vec<_> = report
        .rejects
        .iter()
        .map(|r| (r.line, r.reason.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (2, "the field `/id` is there twice"),
            (3, "the field `/k` is there twice"),
            (4, "the field `/to` is there twice"),
        ]
    );
    assert_eq!(values(&case.log, "t").len(), 2);
    let strict = case.import_with("day.jsonl", lines, |o| (o.again, o.strict) = (true, true));
    assert!(matches!(strict, Err(ImportError::BadLine { line: 2, .. })));
}

#[test]
fn another_delimiter_is_found_and_a_missing_id_is_told() {
    let case = case();
    let report = case.import("a.csv", b"id;v\n1;a\n").expect("semicolons");
    assert_eq!(values(&case.log, "t"), [r#"{"id":"1","v":"a"}"#]);
    assert!(
        report.notes.iter().any(|n| n.contains("separated by `;`")),
        "{:?}",
        report.notes
    );
    case.import("b.csv", b"sep=;\r\nid;v\r\n2;a,b\r\n")
        .expect("named");
    case.import("c.tsv", b"id\tv\n3\tx\n").expect("tabs");
    case.import_with("d.csv", b"id:v\n4:x\n", |o| o.delimiter = Some(b':'))
        .expect("asked for");
    let want = [
        r#"{"id":"1","v":"a"}"#,
        r#"{"id":"2","v":"a,b"}"#,
        r#"{"id":"3","v":"x"}"#,
        r#"{"id":"4","v":"x"}"#,
    ];
    assert_eq!(values(&case.log, "t"), want);
    assert_eq!(sources(&case)[1], "b.csv:3");
    let report = case.import("e.csv", b"nr,v\n1,a\n").expect("no column `id`");
    let note = report.notes.join("; ");
    assert!(
        note.contains("json:/id") && note.contains("nr, v") && note.contains("none of its records"),
        "{note}"
    );
}

#[test]
fn lines_with_one_id_are_counted_and_named() {
    let case = case();
    let rows = b"id,v\n1.23457E+17,a\n1.23457E+17,b\n1.23457E+17,c\n5,d\n";
    let report = case.import("a.csv", rows).expect("import");
    assert_eq!((report.accepted, report.duplicates), (4, 2));
    let repeated: Vec<_> = report.repeated.iter().map(|r| (r.line, r.first)).collect();
    assert_eq!(repeated, [(3, 2), (4, 2)]);
    let notes = report.notes.join("; ");
    assert!(
        notes.contains("2 lines repeat")
            && notes.contains("line 3 that of line 2")
            && notes.contains("spreadsheet"),
        "{notes}"
    );
    assert!(!notes.contains("1.23457"), "IDs are not shown: {notes}");
    let clean = case.import("b.csv", b"id,v\n7,a\n8,a\n").expect("import");
    assert_eq!((clean.duplicates, clean.notes), (0, Vec::new()));
}

#[test]
fn an_unused_id_is_told() {
    let mut case = case();
    case.topic.id = vec![IdSource::Position];
    let report = case
        .import("a.jsonl", b"{\"uuid\":\"a\"}\n{\"uuid\":\"b\"}\n")
        .expect("import");
    assert!(
        report
            .notes
            .join("")
            .contains("id = \"json:/uuid\" in [topics.t]"),
        "{:?}",
        report.notes
    );
    let report = case.import("b.jsonl", b"{\"n\":1}\n{\"n\":2}\n").expect("import");
    assert_eq!(report.notes, Vec::<String>::new());
}

#[test]
fn a_key_that_no_record_has_is_told_with_the_field_that_is_there() {
    let mut case = case();
    case.topic.key = KeySource::Json("/custmer".into());
    let none = case
        .import("k.csv", b"id,customer\n1,kim\n2,lee\n")
        .expect("import");
    let notes = none.notes.join("\n");
    assert!(
        notes.contains("none of 2 records has a key where topic t looks for it (json:/custmer)")
            && notes.contains("json:/customer")
            && !notes.contains("kim"),
        "{notes}"
    );
    let some = case
        .import(
            "s.jsonl",
            b"{\"id\":3,\"custmer\":\"kim\"}\n{\"id\":4}\n{\"id\":5,\"custmer\":\" \"}\n",
        )
        .expect("import");
    assert!(
        some.notes.join("").contains("2 of 3 records have no key"),
        "{:?}",
        some.notes
    );
    let asked = case.import_with("a.csv", b"id,custmer,x\n6,a,\n7,b,\n", |o| {
        o.key = Some(KeyFrom::Column("x".into()));
    });
    assert!(
        !asked.expect("import").notes.join("").contains("key"),
        "the topic's field is there"
    );
    case.topic.key = KeySource::Record;
    let asked = case.import_with("b.csv", b"id,custmer,x\n8,a,\n9,b,\n", |o| {
        o.key = Some(KeyFrom::Column("x".into()));
    });
    let notes = asked.expect("import").notes.join("");
    assert!(notes.contains("looks for it (column x)"), "{notes}");
    let without = case.import("c.jsonl", b"{\"id\":10}\n").expect("import");
    assert!(!without.notes.join("").contains("key"), "no key was asked for");
}

#[test]
fn one_is_one_in_every_sentence() {
    let mut case = case();
    let one = case
        .import("o.jsonl", b"{\"id\":1}\n{\"n\":2}\n")
        .expect("import");
    assert!(
        one.notes.join("").contains("1 record has no message ID"),
        "{:?}",
        one.notes
    );
    let grown = case
        .import("o2.jsonl", b"{\"id\":9}\n")
        .and_then(|_| case.import("o2.jsonl", b"{\"id\":9}\n{\"id\":10}\n"))
        .expect("grown");
    assert!(
        grown
            .notes
            .join("")
            .contains("its first line is that of `o2.jsonl`"),
        "{:?}",
        grown.notes
    );
    case.topic.id = vec![IdSource::Position];
    case.import("p.jsonl", b"{\"n\":1}\n").expect("import");
    let refused = case
        .import("p.jsonl", b"{\"n\":1}\n{\"n\":2}\n")
        .expect_err("grown");
    assert!(
        refused.to_string().contains("its first line would be sent again"),
        "{refused}"
    );
}
