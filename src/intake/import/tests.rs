//! Imports into a fake log: every form and packing, known contents, broken transactions, rejects.

use super::*;
use crate::config::{IdSource, KeySource};
use crate::core::record::Record;
use crate::intake::fake_log::{Break, FakeLog, counts, values};
use proptest::prelude::*;
use std::io::Write;

struct Case {
    folder: tempfile::TempDir,
    log: FakeLog,
    topic: TopicConfig,
}

fn case() -> Case {
    let mut topic = TopicConfig::new("t", "p");
    topic.id = vec![IdSource::Json("/id".into())];
    Case {
        folder: tempfile::tempdir().expect("folder"),
        log: FakeLog::default(),
        topic,
    }
}

impl Case {
    fn importer(&self) -> Importer {
        Importer::new(Arc::new(self.log.clone()), self.folder.path().join("spool"))
    }
    fn spec(&self) -> TopicSpec {
        TopicSpec {
            partitions: 4,
            retention: None,
            retention_bytes: None,
        }
    }
    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, bytes).expect("write");
        path
    }
    fn import(&self, name: &str, bytes: &[u8]) -> Result<ImportReport, ImportError> {
        self.import_with(name, bytes, |_| {})
    }
    fn import_with(
        &self,
        name: &str,
        bytes: &[u8],
        set: impl FnOnce(&mut ImportOptions),
    ) -> Result<ImportReport, ImportError> {
        let path = self.file(name, bytes);
        let mut options = ImportOptions::new(name);
        set(&mut options);
        self.importer()
            .import_file(&self.topic, &self.spec(), &path, &options, &mut |_| {})
    }
    fn records(&self) -> Vec<Record> {
        self.log.all("t").into_iter().flatten().collect()
    }
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).expect("gz");
    out.finish().expect("gz")
}

fn source(record: &Record) -> String {
    String::from_utf8_lossy(record.headers.get(SOURCE_HEADER).unwrap_or_default()).into_owned()
}

/// Sources of the records, sorted.
fn sources(case: &Case) -> Vec<String> {
    let mut sources: Vec<_> = case.records().iter().map(source).collect();
    sources.sort();
    sources
}

/// An error with its causes.
fn told(error: &ImportError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(e) = cause {
        text = format!("{text}: {e}");
        cause = e.source();
    }
    text
}

const LINES: &[u8] = b"{\"id\":1}\n\n{\"id\":2}\r\n{\"id\":3}";

#[test]
fn the_same_content_is_known_under_any_name_and_packing() {
    let case = case();
    let report = case.import("day.jsonl", LINES).expect("import");
    assert_eq!((report.accepted, report.rejected, report.known), (3, 0, false));
    let begun = case.log.begun();
    let zst = zstd::encode_all(LINES, 1).expect("zst");
    let halves = [gz(&LINES[..10]), gz(&LINES[10..])].concat();
    for (name, bytes) in [
        ("other.jsonl", LINES.to_vec()),
        ("day.jsonl.gz", gz(LINES)),
        ("d.jsonl.zst", zst),
        ("2.jsonl", halves),
    ] {
        let again = case.import(name, &bytes).expect(name);
        assert!(
            again.known && again.accepted == 3 && again.hash == report.hash,
            "{name}"
        );
    }
    assert_eq!(case.log.begun(), begun, "a known file costs no transaction");
    assert_eq!(values(&case.log, "t"), ["{\"id\":1}", "{\"id\":2}", "{\"id\":3}"]);
    assert!(
        !case
            .import_with("day.jsonl", LINES, |o| o.again = true)
            .expect("again")
            .known
    );
    assert_eq!(case.records().len(), 6);
    // Another topic of the same name has seen nothing yet.
    case.log.delete_topic("t").expect("delete");
    assert!(!case.import("day.jsonl", LINES).expect("import").known);
}

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

#[test]
fn what_cannot_be_read_twice_is_spooled_and_the_spool_is_cleaned() {
    let case = case();
    let importer = case.importer();
    let options = ImportOptions::new("stdin.jsonl");
    let mut bytes: &[u8] = &gz(LINES);
    let mut seen = Vec::new();
    let report = importer
        .import_reader(&case.topic, &case.spec(), &mut bytes, &options, &mut |p| {
            seen.push(p)
        })
        .expect("import");
    assert_eq!(report.accepted, 3);
    assert!(
        seen.iter()
            .any(|p| p.pass == 2 && p.bytes == p.total && p.lines == 3)
    );
    let spool = case.folder.path().join("spool");
    assert_eq!(std::fs::read_dir(&spool).expect("spool").count(), 0);
    std::fs::write(spool.join(format!("import-x{SPOOL_END}")), b"left behind").expect("write");
    std::fs::write(spool.join("not-ours"), b"stays").expect("write");
    let importer = Importer::new(Arc::new(case.log.clone()), spool.clone());
    std::fs::remove_file(spool.join("not-ours")).expect("it is still there");
    assert_eq!(std::fs::read_dir(&spool).expect("spool").count(), 0);
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::ConnectionAborted.into())
        }
    }
    let broken = importer.import_reader(&case.topic, &case.spec(), &mut Broken, &options, &mut |_| {});
    assert!(matches!(broken, Err(ImportError::Read { .. })));
}

#[test]
fn two_imports_of_one_content_at_once_import_it_once() {
    let case = case();
    let importer = case.importer();
    let text: String = (0..2_000).map(|i| format!("{{\"id\":{i}}}\n")).collect();
    let path = case.file("a.jsonl", text.as_bytes());
    let known: Vec<bool> = std::thread::scope(|scope| {
        let one = || {
            importer.import_file(
                &case.topic,
                &case.spec(),
                &path,
                &ImportOptions::new("a.jsonl"),
                &mut |_| {},
            )
        };
        // The topic is made before they start: making it is not what is tested.
        importer.topic("t", &case.spec()).expect("topic");
        let both: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
        both.into_iter()
            .map(|t| t.join().expect("thread").expect("import").known)
            .collect()
    });
    assert_eq!(known.iter().filter(|k| !**k).count(), 1);
    assert_eq!(case.records().len(), 2_000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Wherever an import breaks, and however often, in the end each line is there once.
    #[test]
    fn broken_off_and_run_again_neither_loses_nor_doubles(
        lines in 1usize..120,
        breaks in proptest::collection::vec(
            prop_oneof![(0usize..6).prop_map(Break::Append), Just(Break::BeforeCommit), Just(Break::AfterCommit)], 0..5),
    ) {
        let case = case();
        // Long lines: several batches, so that a break can fall between them.
        let pad = "x".repeat(40_000);
        let text: String = (0..lines).map(|i| format!("{{\"id\":{i},\"pad\":\"{pad}\"}}\n")).collect();
        for at in breaks {
            case.log.breaks(at);
            let _ = case.import("a.jsonl", text.as_bytes());
        }
        case.log.breaks(Break::Never);
        case.import("a.jsonl", text.as_bytes()).expect("the last run");
        let counts = counts(&case.log, "t");
        prop_assert_eq!(counts.len(), lines);
        prop_assert!(counts.values().all(|n| *n == 1));
        prop_assert_eq!(values(&case.log, REGISTRY_TOPIC).len(), 1);
    }

    /// Any mix of good, bad and empty lines, line ends and packings comes to the same count.
    #[test]
    fn every_line_is_a_record_or_a_reject(
        lines in proptest::collection::vec((0u8..4, "[ -~]{0,20}"), 0..80),
        packing in 0u8..3, bom in any::<bool>(), last in any::<bool>(),
    ) {
        let case = case();
        let mut text = if bom { b"\xef\xbb\xbf".to_vec() } else { Vec::new() };
        let (mut good, mut bad) = (0, 0);
        for (i, (kind, noise)) in lines.iter().enumerate() {
            match kind {
                0 => { good += 1; text.extend(serde_json::json!({"id": i, "n": noise}).to_string().into_bytes()); }
                1 => { bad += 1; text.extend(format!("x{noise}").into_bytes()); }
                2 => { good += 1; text.extend(format!("  {{\"id\":{i}}}\t").into_bytes()); }
                _ => {}
            }
            if i + 1 < lines.len() || last {
                text.extend(if noise.len() % 2 == 0 { &b"\n"[..] } else { b"\r\n" });
            }
        }
        let packed = match packing {
            0 => text,
            1 => gz(&text),
            _ => zstd::encode_all(&text[..], 1).expect("zst"),
        };
        match case.import("a.jsonl", &packed) {
            Ok(report) => {
                prop_assert_eq!((report.accepted, report.rejected), (good, bad));
                prop_assert_eq!(case.records().len() as u64, good);
            }
            Err(ImportError::NothingValid { .. }) => prop_assert!(good == 0 && bad > 0),
            Err(other) => prop_assert!(false, "{}", other),
        }
    }
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

/// A file that has grown since it was imported: where its lines have no IDs the old ones are not sent again.
#[test]
fn a_file_that_begins_like_one_imported_before_is_recognised() {
    let mut case = case();
    case.topic.id = vec![IdSource::Position];
    case.import("other.jsonl", b"{\"x\":0}\n").expect("another file");
    case.import("day.jsonl", b"{\"n\":1}\n{\"n\":2}\n")
        .expect("import");
    let grown = b"{\"n\":1}\n{\"n\":2}\n{\"n\":3}\n";
    let error = case.import("day2.jsonl", grown).expect_err("grown");
    assert!(
        matches!(&error, ImportError::Grown { earlier, lines: 2, line: 1, .. } if earlier == "day.jsonl"),
        "{error}"
    );
    assert_eq!(case.records().len(), 3);
    let rest = case
        .import_with("day.jsonl", grown, |o| o.rest = true)
        .expect("the rest");
    assert_eq!((rest.accepted, rest.passed_over), (1, 2));
    assert!(sources(&case).contains(&"day.jsonl:3".to_owned()));
    // Once more it is known as a whole, and grows again from there.
    assert!(case.import("day.jsonl", grown).expect("known").known);
    let longer = [&grown[..], b"{\"n\":4}\n"].concat();
    let rest = case
        .import_with("day.jsonl", &gz(&longer), |o| o.rest = true)
        .expect("the rest");
    assert_eq!((rest.accepted, rest.passed_over), (1, 3));
    let all = case.import_with("day.jsonl", &[&longer[..], b"{\"n\":5}"].concat(), |o| {
        o.again = true
    });
    assert_eq!(all.expect("all").accepted, 5);
    // The last line had no end, and went on: it is a line of its own now.
    case.import("urls.txt", b"http://a/1\nhttp://a/2")
        .expect("import");
    let rest = case
        .import_with("urls.txt", b"http://a/1\nhttp://a/22\n", |o| o.rest = true)
        .expect("the rest");
    assert_eq!((rest.accepted, rest.passed_over), (1, 1));
    // With IDs nothing goes twice: it is only said.
    case.topic.id = vec![IdSource::Json("/id".into())];
    case.import("i.csv", b"id,v\n1,a\n").expect("import");
    let report = case.import("i.csv", b"id,v\n1,a\n2,b\n").expect("grown");
    assert_eq!(report.accepted, 2);
    assert!(
        report
            .notes
            .join("")
            .contains("its first 2 lines are those of `i.csv`"),
        "{:?}",
        report.notes
    );
}

#[test]
fn a_pipe_is_read_once_and_imported_whole() {
    let case = case();
    let path = case.folder.path().join("pipe");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).expect("a pipe");
    let bytes: Vec<u8> = (0..40_000)
        .flat_map(|i| format!("{{\"id\":{i}}}\n").into_bytes())
        .collect();
    let report = std::thread::scope(|scope| {
        let (path, bytes) = (&path, &bytes);
        scope.spawn(move || std::fs::write(path, bytes).expect("written into the pipe"));
        let options = ImportOptions::new("pipe.jsonl");
        case.importer()
            .import_file(&case.topic, &case.spec(), path, &options, &mut |_| {})
    });
    assert_eq!(report.expect("import").accepted, 40_000);
}

/// However many imports there were: memory is bounded, and each is known again.
#[test]
fn the_registry_knows_every_import_in_bounded_memory() {
    let case = case();
    let importer = case.importer();
    *importer.registry.lock() = Registry::with_bound(20);
    let spec = case.spec();
    let import = |i: usize| {
        let text = format!("{{\"id\":{i}}}");
        let mut bytes = text.as_bytes();
        let options = ImportOptions::new(format!("{i}.jsonl"));
        importer
            .import_reader(&case.topic, &spec, &mut bytes, &options, &mut |_| {})
            .expect("import")
    };
    for i in 0..200 {
        assert!(!import(i).known, "{i}");
    }
    let held = importer.registry.lock().held_bytes();
    assert!(held <= 20 * 160 + (1 << 20), "{held}");
    for i in 0..200 {
        let report = import(i);
        assert!(report.known && report.accepted == 1, "{i}");
    }
    assert_eq!(case.records().len(), 200);
    // Read anew from the topic it is the same.
    *importer.registry.lock() = Registry::with_bound(5);
    assert!((0..200).all(|i| import(i).known) && !import(200).known);
}

#[test]
fn an_import_that_has_to_end_commits_nothing() {
    let case = case();
    let importer = case.importer();
    importer.end();
    let path = case.file("a.jsonl", LINES);
    let ended = importer.import_file(
        &case.topic,
        &case.spec(),
        &path,
        &ImportOptions::new("a.jsonl"),
        &mut |_| {},
    );
    assert!(matches!(ended, Err(ImportError::Ending { .. })));
    assert!(case.records().is_empty());
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

/// Memory counts while files are read, and no more of them are read than fit.
#[test]
fn files_at_work_count_and_wait_for_each_other() {
    let case = case();
    let share = MemoryShare::divide(64 << 20, 1).remove(0);
    let importer = case.importer().counted_in(share.of_node());
    assert_eq!(importer.at_once(), 1);
    let at_work = importer.begin_work("a").expect("the first");
    assert_eq!((share.node_held(), share.held()), (HELD as u64, 0));
    let path = case.file("a.jsonl", LINES);
    let begun = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        let second = scope.spawn(|| {
            begun.wait();
            let options = ImportOptions::new("a.jsonl");
            importer.import_file(&case.topic, &case.spec(), &path, &options, &mut |_| {})
        });
        begun.wait();
        assert_eq!(case.log.begun(), 0, "the first has the only place");
        drop(at_work);
        assert_eq!(second.join().expect("thread").expect("import").accepted, 3);
    });
    assert!(
        share.node_held() < 1_000,
        "only the registry is left: {}",
        share.node_held()
    );
    // Who waits is told when imports have to end.
    let held = importer.begin_work("b").expect("free again");
    importer.end();
    assert!(matches!(
        importer.begin_work("c"),
        Err(ImportError::Ending { .. })
    ));
    drop(held);
    let large = MemoryShare::divide(1 << 30, 1).remove(0);
    assert_eq!(case.importer().counted_in(large).at_once(), AT_ONCE);
}

/// What the registry says of the import of a file.
fn registered(case: &Case, name: &str) -> serde_json::Value {
    let entries = case.log.all(REGISTRY_TOPIC).into_iter().flatten();
    let mut of_name = entries
        .map(|record| serde_json::from_slice::<serde_json::Value>(&record.value).expect("an entry"))
        .filter(|entry| entry["name"] == name);
    of_name.next_back().expect("it was imported")
}

/// A file grows, and its whole looks otherwise than its beginning did: nothing is lost and nothing goes twice, whatever
/// form it has.
#[test]
fn the_rest_of_a_grown_file_is_told_in_the_form_that_its_beginning_had() {
    let utf16 = |text: &str| -> Vec<u8> {
        let units = std::iter::once(0xfeff).chain(text.encode_utf16());
        units.flat_map(u16::to_le_bytes).collect()
    };
    let many = (0..40_000)
        .map(|n| format!("{{\"n\":{n}}}\n"))
        .collect::<String>();
    for (name, before, added, left_out, new) in [
        // An array on one line, and another one in the next: elements then and now.
        (
            "a.json",
            "[{\"n\":1},{\"n\":2}]\n",
            "[{\"n\":3},{\"n\":4}]\n",
            2,
            2,
        ),
        (
            "a.json",
            "[{\"n\":1},{\"n\":2}]",
            "\n[{\"n\":3},{\"n\":4}]\n5",
            2,
            3,
        ),
        ("a.json", "[{\"n\":1}]\n", "{\"n\":3}\n{\"n\":4}\n", 1, 2),
        ("a.json", "[\n{\"n\":1},\n{\"n\":2}\n]\n", "[{\"n\":3}]\n", 2, 1),
        ("a.json", "{\n\"n\":1\n}\n", "{\"n\":3}\n{\"n\":4}\n", 1, 2),
        ("a.jsonl", "{\"n\":1}\n\n{\"n\":2}", "\n{\"n\":3}", 2, 1),
        ("a.jsonl", "{\"n\":1}\n{\"n\":2}\n\n", "\n\n{\"n\":3}\n", 2, 1),
        // The last line had no end, and went on.
        ("a.txt", "http://a/1\nhttp://a/2", "2\nhttp://a/3\n", 1, 2),
        ("a.json", "1\n2\n[3]\n", "4\n", 3, 1),
        // Rejects of the beginning are the earlier import's.
        ("a.jsonl", "{\"n\":1}\nx\n{\"n\":2}\n", "{\"n\":3}\n", 2, 1),
        // Line ends within quotes, empty rows, the header once more, a delimiter that the new rows would not show.
        (
            "a.csv",
            "a,b\n1,\"x\ny\"\n\n2,z\n",
            "3,\"v\nw\"\na,b\n4,w\n",
            2,
            2,
        ),
        ("a.csv", "a;b\n1;2,5\n", "2,5;3\n4;1,1,1\n", 1, 2),
        ("a.csv", "sep=;\na;b\n1;2\n", "3;4\n", 1, 1),
        ("a.csv", "a\r\n1\r\n", "2\r\n", 1, 1),
        ("a.jsonl", "{\"n\":1}\r{\"n\":2}\r", "{\"n\":3}\r", 2, 1),
        ("a.jsonl", many.as_str(), "{\"n\":\"new\"}\n", 40_000, 1),
    ] {
        let whole = format!("{before}{added}");
        let packed = |text: &str, how: usize| match how {
            0 => text.as_bytes().to_vec(),
            1 => gz(text.as_bytes()),
            _ => utf16(text),
        };
        for (first, then) in [(0, 0), (1, 0), (0, 1), (2, 2), (2, 1)] {
            // What UTF-16 is is told from its first units.
            let mut case = case();
            case.topic.id = vec![IdSource::Position];
            let what = format!(
                "{name} {:?} + {added:?} {first}{then}",
                &before[..before.len().min(40)]
            );
            let old = case
                .import(name, &packed(before, first))
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            if old.accepted == left_out + 1 && left_out < 3 {
                // One that went on.
            } else {
                assert_eq!(old.accepted, left_out, "{what}");
            }
            let error = case.import(name, &packed(&whole, then)).expect_err(&what);
            assert!(matches!(error, ImportError::Grown { .. }), "{what}: {error}");
            let rest = case
                .import_with(name, &packed(&whole, then), |o| o.rest = true)
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(
                (rest.accepted, rest.passed_over, rest.rejected),
                (new, left_out, 0),
                "{what}"
            );
            assert_eq!(case.records().len() as u64, old.accepted + new, "{what}");
            // Grows once more from there.
            let line = if name.ends_with("csv") {
                "9,9\n"
            } else if name.ends_with("txt") {
                "http://a/9\n"
            } else {
                "9\n"
            };
            let line = if before.contains(';') { "9;9\n" } else { line };
            let line = if before == "a\r\n1\r\n" { "9\n" } else { line };
            let line = if before.contains('\r') && name == "a.jsonl" {
                "9\r"
            } else {
                line
            };
            let between = if whole.ends_with(['\n', '\r']) { "" } else { "\n" };
            let more = format!("{whole}{between}{line}");
            let rest = case
                .import_with(name, &packed(&more, first), |o| o.rest = true)
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!((rest.accepted, rest.passed_over), (1, left_out + new), "{what}");
        }
    }
}

/// Where it cannot be shown which records the earlier import had, nothing is left out.
#[test]
fn a_rest_that_cannot_be_told_is_refused() {
    let fresh = || {
        let mut case = case();
        case.topic.id = vec![IdSource::Position];
        case
    };
    type Set = fn(&mut ImportOptions);
    let rest: Set = |o| o.rest = true;
    for (name, set_before, before, added, set, says) in [
        (
            "a.json",
            (|_| {}) as Set,
            "[{\"n\":1},{\"n\":2}]\n",
            "[{\"n\":3}]\n",
            (|o| {
                o.rest = true;
                o.format = Some(Format::JsonLines);
            }) as Set,
            "read as JSON, and this is to be read as JSON lines",
        ),
        (
            "a.csv",
            |_| {},
            "a;b\n1;2\n",
            "3;4\n",
            |o| {
                o.rest = true;
                o.delimiter = Some(b',');
            },
            "the delimiter was `;` then, and is to be `,` now",
        ),
        // A quote that was open closes now.
        (
            "a.csv",
            |_| {},
            "a,b\n1,2\n2,\"open\n3,c\n",
            "4,d\"\n5,e\n",
            rest,
            "what was added changes",
        ),
        // Lines that ended with a return alone.
        (
            "a.jsonl",
            |_| {},
            "{\"n\":1}\r{\"n\":2}\r",
            "{\"n\":3}\n",
            rest,
            "what was added changes",
        ),
        (
            "a.jsonl",
            |_| {},
            "{\"n\":1}\r",
            "{\"n\":3}\n",
            rest,
            "what was added changes",
        ),
    ] {
        let case = fresh();
        case.import_with(name, before.as_bytes(), set_before)
            .expect(before);
        let had = case.records().len();
        let whole = format!("{before}{added}");
        let error = case
            .import_with(name, whole.as_bytes(), set)
            .expect_err(before)
            .to_string();
        assert!(
            error.contains("what of it is new cannot be told") && error.contains(says),
            "{before:?}: {error}"
        );
        // Without --rest its records would go twice: it is refused, too; all of it can be asked for.
        let error = case
            .import_with(name, whole.as_bytes(), |o| {
                set(o);
                o.rest = false;
            })
            .expect_err(before);
        assert!(
            matches!(
                error,
                ImportError::Unsure { .. } | ImportError::NothingValid { .. }
            ),
            "{before:?}: {error}"
        );
        assert_eq!(case.records().len(), had);
        let all = case.import_with(name, whole.as_bytes(), |o| {
            set(o);
            (o.rest, o.again) = (false, true);
        });
        match all {
            Ok(all) => assert!(all.accepted > 0, "{before:?}"),
            // Read so it holds nothing.
            Err(e) => assert!(matches!(e, ImportError::NothingValid { .. }), "{before:?}: {e}"),
        }
    }
    // With IDs nothing goes twice, and it is only said.
    let mut case = fresh();
    case.topic.id = vec![IdSource::Json("/a".into())];
    case.import("a.csv", b"a,b\n1,2\n2,\"open\n3,c\n")
        .expect("import");
    let grown = case
        .import("a.csv", b"a,b\n1,2\n2,\"open\n3,c\n4,d\"\n5,e\n")
        .expect("grown");
    assert_eq!(grown.accepted, 3);
    assert!(
        grown.notes.join("").contains("it begins with all of `a.csv`"),
        "{:?}",
        grown.notes
    );
}

/// Entries of earlier versions do not say how a file was read: its beginning is read as it would have been by itself.
#[test]
fn an_entry_that_names_no_form_is_believed_where_its_number_fits() {
    let mut case = case();
    case.topic.id = vec![IdSource::Position];
    let before = b"[{\"n\":1},{\"n\":2}]\n";
    case.import("d.json", before).expect("import");
    let entry = registered(&case, "d.json");
    assert_eq!(
        (entry["format"].as_str(), entry["lines"].as_u64()),
        (Some("json"), Some(2))
    );
    let older = |case: &Case, lines: u64| {
        let mut entry = registered(case, "d.json");
        entry.as_object_mut().expect("an object").remove("format");
        entry["lines"] = lines.into();
        let mut batch = Batch::new();
        let partition = case.log.topic(REGISTRY_TOPIC).expect("registry").partitions[0];
        batch.push(
            partition,
            Clock::wall(),
            None,
            &serde_json::to_vec(&entry).expect("json"),
            &[],
        );
        let transaction = case.log.begin().expect("begin");
        transaction.commit(batch).expect("commit");
    };
    let whole = [&before[..], b"[{\"n\":3}]\n"].concat();
    older(&case, 1);
    let error = case
        .import_with("d.json", &whole, |o| o.rest = true)
        .expect_err("another number");
    assert!(matches!(error, ImportError::Unsure { .. }), "{error}");
    older(&case, 2);
    let rest = case
        .import_with("d.json", &whole, |o| o.rest = true)
        .expect("the rest");
    assert_eq!((rest.accepted, rest.passed_over), (1, 2));
}

/// A row that was read while it was being written: the part is taken as whole, and the whole row is told of later.
#[test]
fn a_row_without_its_end_is_named_and_so_is_the_one_that_went_on() {
    let case = case();
    let cut = case.import("b.csv", b"id;n\nb1;100\nb2;2").expect("import");
    assert_eq!(cut.accepted, 2);
    let notes = cut.notes.join("\n");
    assert!(notes.contains("its last line, 3, has no line end"), "{notes}");
    let grown = case
        .import("b.csv", b"id;n\nb1;100\nb2;205\nb3;7\n")
        .expect("grown");
    let notes = grown.notes.join("\n");
    assert_eq!((grown.accepted, grown.went_on), (3, Some(3)));
    assert!(
        notes.contains("line 3 had no end when `b.csv` was imported") && notes.contains("b.csv:3"),
        "{notes}"
    );
    assert!(!notes.contains("no line end"), "{notes}");
    // URLs can be cut off, too; and only the rest of a file is asked for.
    let urls = case.import("u.txt", b"http://a/1\nhttp://a/2").expect("import");
    assert!(urls.notes.join("").contains("its last line, 2, has no line end"));
    let rest = case
        .import_with("u.txt", b"http://a/1\nhttp://a/22\n", |o| o.rest = true)
        .expect("rest");
    assert_eq!((rest.accepted, rest.went_on), (1, Some(2)));
    // Half a JSON value is no value: the line is rejected, and its end comes with the next import.
    let lines = case
        .import("l.jsonl", b"{\"id\":1}\n{\"id\":2,\"n\":")
        .expect("import");
    assert_eq!((lines.accepted, lines.rejected), (1, 1));
    assert!(!lines.notes.join("").contains("no line end"));
    let whole = case
        .import("l.jsonl", b"{\"id\":1}\n{\"id\":2,\"n\":3}\n")
        .expect("grown");
    assert_eq!((whole.rejected, whole.went_on), (0, Some(2)));
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

/// Whoever asks for a line that is no record is told why: the registry keeps the first rejects.
#[test]
fn the_registry_keeps_what_was_rejected() {
    let case = case();
    let report = case
        .import_with("r.jsonl", b"{\"id\":1}\nbroken\n", |o| {
            o.rejects = Some(case.folder.path().join("r.rejects"));
        })
        .expect("import");
    case.import("other.jsonl", b"{\"id\":2}\n").expect("import");
    let found = imports_named(&case.log, "r.jsonl").expect("registry");
    let [entry] = found.as_slice() else {
        panic!("{found:?}")
    };
    assert_eq!((entry.rejects[0].line, entry.lines), (2, 2));
    assert_eq!(entry.reject_file, report.reject_file);
    assert_eq!(imports_named(&case.log, "no.jsonl").expect("registry"), []);
}
