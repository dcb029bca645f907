//! The same content is known again, and imported whole or not at all: kills, two at once, pipes, a node that stops.

use super::*;

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
