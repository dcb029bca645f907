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
    // Mended and imported anew the old rejects go.
    case.import_with("a.jsonl", b"{\"id\":9}", |o| o.rejects = Some(rejects.clone()))
        .expect("import");
    assert!(!rejects.exists());
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
