//! Lines, CSV, URLs, arrays; packed, in UTF-16, with odd line ends and delimiters.

use super::*;

#[test]
fn bad_lines_are_told_and_kept_and_the_rest_goes_on() {
    let case = case();
    let text = b"\xef\xbb\xbf{\"id\":1}\nnot json\n{\"id\":\"\xff\"}\n{\"id\":2}\n";
    let rejects = case.folder.path().join("rejects.jsonl");
    let report = case
        .import_with("a.jsonl", text, |o| o.rejects = Some(rejects.clone()))
        .expect("import");
    assert_eq!((report.accepted, report.rejected), (2, 2));
    assert_eq!(report.rejects.iter().map(|r| r.line).collect::<Vec<_>>(), [2, 3]);
    let kept: Vec<serde_json::Value> = std::fs::read_to_string(&rejects)
        .expect("rejects")
        .lines()
        .map(|l| serde_json::from_str(l).expect("json"))
        .collect();
    assert_eq!(
        (kept[0]["line"].as_u64(), kept[0]["text"].as_str()),
        (Some(2), Some("not json"))
    );
    assert_eq!(kept[1]["hex"], "7b226964223a22ff227d");
    assert!(kept[1]["reason"].as_str().is_some_and(|r| r.contains("UTF-8")));
    // Another content never takes their place, nor does one without rejects remove them.
    let other = case
        .import_with("a.jsonl", b"other\n{\"id\":8}", |o| {
            o.rejects = Some(rejects.clone())
        })
        .expect("import");
    let own = other.reject_file.expect("rejects of its own");
    assert_eq!(
        own,
        format!(
            "{}",
            case.folder
                .path()
                .join(format!("rejects.{}.jsonl", &other.hash[..12]))
                .display()
        )
    );
    assert!(
        std::fs::read_to_string(&own)
            .expect("rejects")
            .contains("\"other\"")
    );
    let clean = case.import_with("a.jsonl", b"{\"id\":9}", |o| o.rejects = Some(rejects.clone()));
    assert_eq!(clean.expect("import").reject_file, None);
    assert!(
        std::fs::read_to_string(&rejects)
            .expect("still there")
            .contains("not json")
    );
}

#[test]
fn strict_and_hopeless_files_leave_nothing() {
    let case = case();
    let error = case
        .import_with("a.jsonl", b"{\"id\":1}\nx\n", |o| o.strict = true)
        .expect_err("strict");
    assert!(matches!(error, ImportError::BadLine { line: 2, .. }), "{error}");
    let rejects = case.folder.path().join("r");
    let error = case
        .import_with("a.jsonl", b"a,b\n1,2\n", |o| o.rejects = Some(rejects.clone()))
        .expect_err("csv");
    assert!(
        matches!(error, ImportError::NothingValid { line: 1, .. }),
        "{error}"
    );
    assert!(matches!(
        case.import("a.txt", b"a,b\n").expect_err("form"),
        ImportError::Format { .. }
    ));
    assert!(matches!(
        case.import("a.jsonl", &gz(LINES)[..20]).expect_err("cut"),
        ImportError::Read { .. }
    ));
    assert!(case.records().is_empty() && !rejects.exists());
    // None of it is in the registry: mended it is imported.
    assert!(!case.import("a.jsonl", LINES).expect("good").known);
    assert_eq!(case.import("empty.jsonl", b"").expect("empty").accepted, 0);
}

#[test]
fn csv_rows_become_objects_with_line_numbers_that_hold() {
    let mut case = case();
    case.topic.key = KeySource::Record;
    let text = b"id,user,note\n\n1,ann,\"two\nlines\"\n2,bob\n3,\xff,x\n\r\n4,cid,\"say \"\"hi\"\"\"\n5,dot,\"open\n6,eve,z";
    let report = case
        .import_with("a.csv", text, |o| o.key = Some(KeyFrom::Column("user".into())))
        .expect("import");
    assert_eq!((report.accepted, report.rejected), (3, 3));
    assert_eq!(
        report.rejects.iter().map(|r| r.line).collect::<Vec<_>>(),
        [5, 6, 9]
    );
    assert_eq!(report.rejects[2].reason, split::OPEN_QUOTE);
    let mut found: Vec<(String, String, Option<String>)> = (case.records().iter())
        .map(|r| {
            let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
            (source(r), text(&r.value), r.key.as_deref().map(text))
        })
        .collect();
    found.sort();
    assert_eq!(found[0].0, "a.csv:10");
    assert_eq!(
        found[1],
        (
            "a.csv:3".into(),
            r#"{"id":"1","user":"ann","note":"two\nlines"}"#.into(),
            Some("ann".into())
        )
    );
    assert_eq!(found[2].1, r#"{"id":"4","user":"cid","note":"say \"hi\""}"#);
    let error = case.import_with("b.csv", b"a,b\n1,2", |o| {
        o.key = Some(KeyFrom::Column("c".into()))
    });
    assert!(matches!(error.expect_err("column"), ImportError::Header { .. }));
    let error = case.import("c.csv", b"a,\"b\n1,2\n3,4\n");
    assert!(matches!(
        error.expect_err("open quote"),
        ImportError::Header { .. }
    ));
}

#[test]
fn urls_are_checked_and_placed_by_a_parameter() {
    let mut case = case();
    case.topic.id = vec![IdSource::Query("click".into())];
    let text =
        "https://a.example/p?click=1&x=2\nnonsense\nhttps://b.example/?x=1&click=1#f\nhttps://c.example/\n";
    let report = case.import("a.txt", text.as_bytes()).expect("import");
    assert_eq!((report.accepted, report.rejected), (3, 1));
    let all = case.log.all("t");
    let same = all
        .iter()
        .find(|p| p.iter().any(|r| r.value.starts_with(b"https://a.")))
        .expect("there");
    assert!(same.iter().any(|r| r.value.starts_with(b"https://b.")));
    let without: Vec<_> = (all.iter().flatten())
        .filter(|r| r.headers.get(IMPORT_ID_HEADER).is_some())
        .collect();
    assert!(without.len() == 1 && without[0].value.starts_with(b"https://c."));
}

#[test]
fn a_ten_megabyte_line_is_taken_and_a_longer_one_is_not() {
    let case = case();
    let big = format!("{{\"id\":1,\"x\":\"{}\"}}", "y".repeat(10 << 20));
    let text = format!(
        "{{\"id\":0}}\n{big}\n{{\"id\":2,\"x\":\"{}\"}}\n{{\"id\":3}}\n",
        "z".repeat(17 << 20)
    );
    let report = case.import("a.jsonl", text.as_bytes()).expect("import");
    assert_eq!(
        (report.accepted, report.rejected, report.rejects[0].line),
        (3, 1, 3)
    );
    assert!(case.records().iter().any(|r| r.value.len() == big.len()));
    // A bound below a piece's size counts, too.
    let text = format!("{{\"id\":\"{}\"}}\n{{\"id\":1}}\n", "z".repeat(300));
    let report = case.import_with("b.jsonl", text.as_bytes(), |o| o.longest = 200);
    assert_eq!(report.expect("import").rejected, 1);
}

/// Files whose lines end with a return alone: every row is a line of its own, so none has the ID of another.
#[test]
fn lines_that_end_with_a_return_are_lines() {
    let mut case = case();
    case.topic.id = vec![IdSource::Position];
    let report = case
        .import("f.csv", b"name,amount\rAnn,1\rBob,2\rCid,3\r")
        .expect("csv");
    assert_eq!((report.accepted, report.rejected), (3, 0));
    assert_eq!(sources(&case), ["f.csv:2", "f.csv:3", "f.csv:4"]);
    case.topic.id = vec![IdSource::Json("/id".into())];
    let report = case.import("g.csv", b"name,amount\rAnn,4\rBob,5\r").expect("csv");
    let ids: std::collections::BTreeSet<_> = (case.records().iter())
        .filter_map(|r| Some(String::from_utf8_lossy(r.headers.get(IMPORT_ID_HEADER)?).into_owned()))
        .collect();
    assert_eq!(ids, [2, 3].map(|n| format!("{}:{n}", &report.hash[..32])).into());
    assert_eq!(
        case.import("a.jsonl", b"{\"id\":1}\r{\"id\":2}\r")
            .expect("json")
            .accepted,
        2
    );
    assert_eq!(
        case.import("a.urls", b"http://a/\rhttp://b/")
            .expect("urls")
            .accepted,
        2
    );
    // Larger than any piece.
    let mut large = String::from("id,v\r");
    for i in 0..60_000 {
        large.push_str(&format!("{i},some text to fill the row\r"));
    }
    let report = case.import("l.csv", large.as_bytes()).expect("csv");
    assert_eq!((report.accepted, report.duplicates), (60_000, 0));
    assert!(sources(&case).contains(&"l.csv:60001".to_owned()));
}

#[test]
fn packed_files_are_read_as_their_own_tools_read_them() {
    let case = case();
    let zst = |text: &[u8]| zstd::encode_all(text, 1).expect("zst");
    let skippable = |last: u8| [&[0x50 | last, 0x2a, 0x4d, 0x18, 4, 0, 0, 0][..], b"abcd"].concat();
    let good: [(&str, Vec<u8>); 6] = [
        ("first", [skippable(0), zst(b"{\"id\":1}\n")].concat()),
        (
            "pzstd",
            [
                skippable(5),
                zst(b"{\"id\":2}\n"),
                skippable(5),
                zst(b"{\"id\":3}\n"),
            ]
            .concat(),
        ),
        ("one zero", [gz(b"{\"id\":4}\n"), vec![0]].concat()),
        ("many zeros", [gz(b"{\"id\":5}\n"), vec![0; 300_000]].concat()),
        (
            "members",
            [gz(b""), gz(b"{\"id\":6}\n"), gz(b"{\"id\":7}\n"), vec![0; 512]].concat(),
        ),
        ("none", [skippable(1), skippable(2)].concat()),
    ];
    for (name, bytes) in &good {
        case.import(&format!("{name}.jsonl"), bytes)
            .unwrap_or_else(|e| panic!("{name}: {}", told(&e)));
    }
    assert_eq!(case.records().len(), 7);
    let member = gz(b"{\"id\":8}\n");
    let end = format!("ends at byte {}", member.len());
    // A frame whose header asks for a window of 256 MiB.
    let window = [0x28, 0xb5, 0x2f, 0xfd, 0, 18 << 3, 1, 0, 0];
    let mut flipped = zst(LINES);
    let at = flipped.len() - 1;
    flipped[at] ^= 1;
    let bad: [(&str, Vec<u8>, &str); 9] = [
        ("garbage", [&member[..], b"abcde"].concat(), &end),
        ("zeros, then garbage", [&member[..], b"\0\0abcde"].concat(), &end),
        (
            "zeros, then a member",
            [&member[..], b"\0\0", &member[..]].concat(),
            &end,
        ),
        ("cut gzip", member[..member.len() - 3].to_vec(), "cut off"),
        ("cut zstd", zst(LINES)[..12].to_vec(), "cut off"),
        (
            "zstd and garbage",
            [&zst(LINES)[..], b"abcdefgh"].concat(),
            "something else follows",
        ),
        ("window", window.to_vec(), "--long=31"),
        ("xz", b"\xfd7zXZ\0abc".to_vec(), "xz -dc"),
        ("zip", b"PK\x03\x04abc".to_vec(), "unzip"),
    ];
    for (name, bytes, says) in &bad {
        let error = told(&case.import(&format!("{name}.jsonl"), bytes).expect_err(name));
        assert!(error.contains(says), "{name}: {error}");
    }
    assert_eq!(case.records().len(), 7, "nothing of a bad file is there");
}

#[test]
fn files_in_utf_16_are_read_and_are_the_same_as_in_utf_8() {
    let case = case();
    let text = "{\"id\":1,\"n\":\"J\u{fc}rgen \u{1f600}\"}\r\n{\"id\":2}\r\n";
    let little = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>();
    let big = |text: &str| text.encode_utf16().flat_map(u16::to_be_bytes).collect::<Vec<_>>();
    let report = case
        .import("a.jsonl", &little(&format!("\u{feff}{text}")))
        .expect("utf-16");
    assert_eq!((report.accepted, report.rejected), (2, 0));
    assert!(values(&case.log, "t")[0].contains("J\u{fc}rgen \u{1f600}"));
    for (name, bytes) in [
        ("b.jsonl", big(text)),
        ("c.jsonl.gz", gz(&little(text))),
        ("d.jsonl", text.as_bytes().to_vec()),
    ] {
        assert!(case.import(name, &bytes).expect(name).known, "{name}");
    }
    let csv = case
        .import("a.csv", &big("\u{feff}id;v\r\n7;x\r\n"))
        .expect("csv");
    assert_eq!(csv.accepted, 1);
    assert!(values(&case.log, "t").contains(&r#"{"id":"7","v":"x"}"#.to_owned()));
}

/// Arrays are not lines: all elements are imported, or nothing.
#[test]
fn elements_of_an_array_are_the_records() {
    let mut case = case();
    let pretty = "[\n  {\n    \"id\": 1\n  },\n  {\n    \"id\": 2\n  }\n]\n";
    let report = case.import("a.json", pretty.as_bytes()).expect("pretty");
    assert_eq!((report.accepted, report.rejected), (2, 0));
    assert_eq!(sources(&case), ["a.json:1", "a.json:2"]);
    assert_eq!(
        case.import("b.jsonl", b"[{\"id\":3},{\"id\":4},{\"id\":5}]")
            .expect("one line")
            .accepted,
        3
    );
    assert_eq!(
        case.import("c.txt", b"{\n\"id\":6\n}\n{\n\"id\":7\n}\n")
            .expect("over lines")
            .accepted,
        2
    );
    // Lines that are arrays are records, as they were.
    assert_eq!(case.import("d.jsonl", b"[8]\n[9]\n").expect("lines").accepted, 2);
    let before = case.records().len();
    // An element that is not JSON is rejected alone.
    let report = case
        .import("e.json", b"[\n{\"id\":10},\n{\"id\":},\n{\"id\":11}]")
        .expect("one bad");
    assert_eq!((report.accepted, report.rejects.len()), (2, 1));
    assert!(
        report.rejects[0].line == 2 && report.rejects[0].reason.contains("from line 3 on"),
        "{report:?}"
    );
    for cut in [
        &b"[{\"id\":12},\n{\"id\":13}"[..],
        b"[\n{\"id\":12}\n{\"id\":13}]",
        b"[{\"id\":12},",
    ] {
        assert!(
            matches!(case.import("f.json", cut), Err(ImportError::Read { .. })),
            "{cut:?}"
        );
    }
    let other = pretty.replace("2", "22");
    let asked = case.import_with("g.json", other.as_bytes(), |o| o.format = Some(Format::JsonLines));
    assert!(matches!(asked, Err(ImportError::OverLines { .. })));
    assert_eq!(case.records().len(), before + 2);
    // No two elements share an ID, though they share a line.
    case.topic.id = vec![IdSource::Json("/nowhere".into())];
    let report = case.import("h.json", b"[{\"a\":1},{\"a\":1}]").expect("no IDs");
    let ids: std::collections::BTreeSet<_> = (case.records().iter())
        .filter_map(|r| Some(String::from_utf8_lossy(r.headers.get(IMPORT_ID_HEADER)?).into_owned()))
        .filter(|id| id.starts_with(&report.hash[..32]))
        .collect();
    assert_eq!(ids, [1, 2].map(|n| format!("{}:{n}", &report.hash[..32])).into());
}

/// Exports that were put together: the second header is not a row, and its byte order mark no part of a field.
#[test]
fn a_repeated_header_is_left_out() {
    let case = case();
    let text = "\u{feff}id,v\n1,a\n\u{feff}id,v\n2,b\n\u{feff}\"3\",\"c\nd\"\n";
    let report = case.import("a.csv", text.as_bytes()).expect("import");
    assert_eq!((report.accepted, report.rejected), (3, 0));
    assert!(
        report.notes.iter().any(|n| n.contains("1 repeated header")),
        "{:?}",
        report.notes
    );
    assert_eq!(
        values(&case.log, "t"),
        [
            r#"{"id":"1","v":"a"}"#,
            r#"{"id":"2","v":"b"}"#,
            r#"{"id":"3","v":"c\nd"}"#
        ]
    );
    assert_eq!(sources(&case), ["a.csv:2", "a.csv:4", "a.csv:5"]);
    let shuffled = case
        .import("b.csv", b"id,v\n4,a\nv,id\nb,5\n")
        .expect_err("another order");
    assert!(told(&shuffled).contains("line 3"), "{shuffled}");
    let lines = case
        .import("c.jsonl", "{\"id\":6}\n\u{feff}{\"id\":7}\n".as_bytes())
        .expect("lines");
    assert_eq!((lines.accepted, lines.rejected), (2, 0));
}
