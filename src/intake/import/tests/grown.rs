//! Files that begin with all of one imported before.

use super::*;

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
