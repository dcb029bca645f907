//! Ways in: the right node, pipes, and what is said of the records.

use super::common::*;
use sluicegate::mock::Behaviour;
use std::process::{Command, Stdio};

fn error(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Two projects on one machine, the second with the address of the first: its commands must not reach the first's node.
#[test]
fn a_command_does_not_reach_the_node_of_another_folder() {
    let mock = partner(Behaviour::default());
    let text = config(&mock, "", "");
    let first = Rig::new("");
    let admin = first.configure_with(&format!("\n{text}"));
    let mut node = first.start(&[]);
    node.wait_for_admin();

    let second = Rig::new("");
    let other = second.configure_with(&format!("\n{text}"));
    let file = second.path("actors.toml");
    let taken = std::fs::read_to_string(&file)
        .expect("read")
        .replace(&other, &admin);
    std::fs::write(&file, taken).expect("written");
    std::fs::write(second.path("in.jsonl"), lines(0..10, 2)).expect("written");
    let wrong: [&[&str]; 4] = [
        &["import", "in.jsonl", "--topic", "t"],
        &["send", "{\"id\":1}", "--topic", "t"],
        &["partners", "pause", "p"],
        &["status"],
    ];
    for args in wrong {
        let output = second.call(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", error(&output));
        assert!(
            error(&output).contains("is another one") && error(&output).contains(&format!("--admin {admin}")),
            "{args:?}: {}",
            error(&output)
        );
    }
    assert_eq!(counts(&mock).requests, 0);
    // Named by hand it is meant; and its own commands reach it, also from another folder by the file's path.
    second.ok(&["import", "in.jsonl", "--topic", "t", "--admin", &admin]);
    let own = first.path("actors.toml").display().to_string();
    second.ok(&["--config", &own, "status"]);
    first.ok(&["status"]);
    node.until("all ten", || counts(&mock).ids == 10);
}

/// What a shell hands over for `<(…)`, with the node stopped and running.
#[test]
fn what_a_shell_makes_of_a_process_is_a_file() {
    let mock = partner(Behaviour::default());
    let rig = Rig::new(&config(&mock, "", ""));
    let import = |name: &str, range: std::ops::Range<u64>| {
        let file = format!("{name}.txt");
        std::fs::write(rig.path(&file), lines(range, 3)).expect("written");
        let script = format!("exec \"$0\" import <(cat {file}) --topic t --name {name}.jsonl && exec true");
        let output = Command::new("bash")
            .args(["-c", &script, env!("CARGO_BIN_EXE_sluicegate")])
            .current_dir(rig.path("."))
            .stdin(Stdio::null())
            .output()
            .expect("bash");
        assert!(output.status.success(), "{}", error(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let said = import("stopped", 0..100);
    assert!(said.contains("stopped.jsonl: 100 records into t"), "{said}");
    let mut node = rig.start(&[]);
    node.wait_for_admin();
    let said = import("running", 100..200);
    assert!(said.contains("running.jsonl: 100 records into t"), "{said}");
    node.until("all", || counts(&mock).ids == 200);
}

/// The first hour: records with an ID that the topic does not use.
#[test]
fn an_id_that_is_not_used_is_named_where_somebody_looks() {
    let mock = partner(Behaviour::default());
    let text = format!(
        "[partners.p]\nurl = \"http://{}/\"\n[topics.t]\npartner = \"p\"\n",
        mock.addr()
    );
    let rig = Rig::new(&text);
    std::fs::write(rig.path("in.jsonl"), lines(0..20, 2)).expect("written");
    let hint = "id = \"json:/id\" in [topics.t]";
    let imported = rig.call(&["import", "in.jsonl", "--topic", "t"]);
    assert!(
        imported.status.success() && error(&imported).contains(hint),
        "{}",
        error(&imported)
    );
    let looks = |rig: &Rig| {
        let asked = rig.call(&["message", "m7"]);
        assert_eq!(asked.status.code(), Some(1));
        assert!(error(&asked).contains(hint), "{}", error(&asked));
        let checked = rig.call(&["check"]);
        assert!(
            checked.status.success() && error(&checked).contains(hint),
            "{}",
            error(&checked)
        );
    };
    looks(&rig);
    let mut node = rig.start(&[]);
    node.wait_for_admin();
    looks(&rig);
    node.until("all", || counts(&mock).requests == 20);
    // Told by a sample, they are used from the start.
    let made = Rig::new("");
    std::fs::remove_file(made.path("actors.toml")).expect("removed");
    std::fs::write(made.path("in.jsonl"), lines(0..20, 2)).expect("written");
    let url = format!("http://{}/", mock.addr());
    made.ok(&["init", "--http", &url, "--topic", "t", "--sample", "in.jsonl"]);
    let written = std::fs::read_to_string(made.path("actors.toml")).expect("written");
    assert!(
        written.contains("\nid = \"json:/id\"\n") && written.contains("\nkey = \"json:/user\"\n"),
        "{written}"
    );
}

/// An array on one line to which another one is appended: as `--rest` is proposed for it, it must bring what is new.
#[test]
fn the_rest_of_an_array_that_got_another_line_is_its_new_elements() {
    let mock = partner(Behaviour::default());
    let rig = Rig::new(&config(&mock, "", "").replace("id = \"json:/id\"", "id = \"position\""));
    let file = rig.path("d.json");
    let import = |more: &[&str]| rig.call(&[&["import", "d.json", "--topic", "t"], more].concat());
    std::fs::write(&file, "[{\"id\":1},{\"id\":2}]\n").expect("written");
    assert!(import(&[]).status.success());
    std::fs::write(&file, "[{\"id\":1},{\"id\":2}]\n[{\"id\":3},{\"id\":4}]\n").expect("written");
    let refused = import(&[]);
    let said = error(&refused);
    assert!(!refused.status.success());
    assert!(
        said.contains("its first 2 elements would be sent again") && said.contains("--rest"),
        "{said}"
    );
    // Read otherwise than then: nothing is left out, and it is said why.
    let refused = import(&["--rest", "--format", "jsonl"]);
    let said = error(&refused);
    assert!(
        !refused.status.success() && said.contains("what of it is new cannot be told"),
        "{said}"
    );
    let rest = import(&["--rest"]);
    let said = String::from_utf8_lossy(&rest.stdout).into_owned();
    assert!(
        said.contains("2 records into t, 2 records left out"),
        "{said} {}",
        error(&rest)
    );
    rig.drain();
    assert_eq!(counts(&mock).requests, 4);
}

/// What `init` writes for each kind of sample passes `check` and delivers, and so does the body that it proposes.
#[test]
fn what_init_writes_for_a_sample_delivers() {
    let urls = |mock: &str| -> String {
        let one = |n: u32| format!("http://{mock}/partner?click_id={n}&name=x\n");
        (0..3).map(one).collect()
    };
    type Text = Box<dyn Fn(&str) -> String>;
    let fixed = |text: &'static str| -> Text { Box::new(move |_| text.to_owned()) };
    let samples: [(&str, Text, bool); 8] = [
        (
            "a.jsonl",
            fixed("{\"id\":1,\"name\":\"x\"}\n{\"id\":2,\"name\":\"y\"}\n{\"id\":3,\"name\":\"z\"}\n"),
            true,
        ),
        (
            "b.json",
            fixed("[{\"id\":1,\"name\":\"x\"},{\"id\":2,\"name\":\"y\"},{\"id\":3,\"name\":\"z\"}]"),
            true,
        ),
        (
            "c.json",
            fixed("{\n\"id\":1,\n\"name\":\"x\"\n}\n{\"id\":2,\"name\":\"y\"}\n{\"id\":3,\"name\":\"z\"}\n"),
            true,
        ),
        ("d.csv", fixed("id;name;amount\n1;x;2\n2;y;3\n3;z;4\n"), true),
        (
            "e.tsv",
            fixed("id\tname\tamount\n1\tx\t2\n2\ty\t3\n3\tz\t4\n"),
            true,
        ),
        // No ID, and one that repeats.
        (
            "f.jsonl",
            fixed("{\"name\":\"x\"}\n{\"name\":\"y\"}\n{\"name\":\"z\"}\n"),
            true,
        ),
        (
            "g.jsonl",
            fixed("{\"id\":1,\"name\":\"x\"}\n{\"id\":1,\"name\":\"y\"}\n{\"id\":2,\"name\":\"z\"}\n"),
            true,
        ),
        ("h.txt", Box::new(urls), false),
    ];
    for (name, text, has_body) in samples {
        for with_body in [false, true] {
            if with_body && !has_body {
                continue;
            }
            let mock = partner(Behaviour::default());
            let rig = Rig::new("");
            std::fs::remove_file(rig.path("actors.toml")).expect("removed");
            std::fs::write(rig.path(name), text(&mock.addr().to_string())).expect("written");
            let url = format!("http://{}/", mock.addr());
            let init = ["init", "--topic", "t", "--sample", name];
            match has_body {
                true => rig.ok(&[&init[..], &["--http", &url]].concat()),
                false => rig.ok(&init),
            };
            let mut written = std::fs::read_to_string(rig.path("actors.toml")).expect("written");
            if with_body {
                // The proposal, uncommented.
                let (_, proposed) = written.split_once("body = ").expect("a body is proposed");
                let line = format!("body = {}\n", proposed.lines().next().unwrap_or_default());
                written = written.replacen("\n[topics.", &format!("\n{line}\n[topics."), 1);
            }
            std::fs::remove_file(rig.path("actors.toml")).expect("removed");
            rig.configure_with(&format!("\n{written}"));
            let checked = rig.call(&["check"]);
            assert!(checked.status.success(), "{name} {written}: {}", error(&checked));
            rig.ok(&["import", name, "--topic", "t"]);
            let drained = rig.drain();
            assert_eq!(drained.counts(), (3, 0, 0), "{name} {written}");
        }
    }
}
