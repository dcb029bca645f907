//! What is read and written without hyper is what hyper reads and writes. A partner with `title_case_headers` is
//! hyper's from the first byte on, any other one only from the first answer that is not plain.

use super::server::{raw, read_request, say};
use super::*;
use parking_lot::Mutex;
use std::io::Read;

/// Two messages, one after the other, to a partner that gives this answer to each in two pieces; and how many
/// connections that took.
fn two(answer: &str, cut: usize, closes: bool, by_hyper: bool, rules: bool) -> ([(Sent, u32); 2], u64) {
    let (first, second) = answer.split_at(cut);
    let (first, second) = (first.to_owned(), second.to_owned());
    let (ended, has_ended) = std::sync::mpsc::channel();
    let address = raw(move |mut stream, _| {
        while read_request(&mut stream).is_some() {
            say(&mut stream, &first);
            say(&mut stream, &second);
            if closes {
                drop(stream);
                // Nobody waits for the second one's.
                let _gone = ended.send(());
                return;
            }
        }
    });
    let mut config = partner(&format!("http://{address}/"));
    config.title_case_headers = by_hyper;
    if rules {
        config.verdict = vec![VerdictRuleConfig {
            when: r#"header["x-a"] == "1" and body.a == 1"#.into(),
            is: RuleVerdict::Refused,
            reason: Some("body.a".into()),
            after: None,
            scope: None,
        }];
    }
    run(async {
        let sink = sink(&config);
        let one = attempt(&sink, &delivery("{\"id\":1}")).await;
        if closes {
            has_ended.recv().unwrap();
        }
        let two = attempt(&sink, &delivery("{\"id\":1}")).await;
        ([one, two], sink.stats().connected)
    })
}

#[test]
fn an_answer_means_the_same_with_hyper_and_without() {
    let long = "x".repeat(5_000);
    let long = format!("HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n{long}");
    let fields: String = (0..40).map(|n| format!("x-{n}: {n}\r\n")).collect();
    let fields = format!("HTTP/1.1 200 OK\r\n{fields}content-length: 2\r\n\r\nok");
    for (answer, closes) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", false),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", true),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nKeep-Alive: max=0\r\n\r\n",
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nretry-after: 7\r\nratelimit-remaining: 0\r\nratelimit-reset: 9\r\n\r\nok",
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 8\r\nx-a: 1\r\n\r\n{\"a\": 1}",
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 8\r\nx-a: 2\r\n\r\n{\"a\": 1}",
            false,
        ),
        ("HTTP/1.1 204 No Content\r\n\r\n", false),
        ("HTTP/1.1 204 No Content\r\ncontent-length: 2\r\n\r\n", false),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok",
            true,
        ),
        ("HTTP/1.1 200 OK\r\n\r\nuntil the end", true),
        ("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", true),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
            true,
        ),
        ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok", true),
        ("HTTP/1.1 200 OK\r\ncontent-le", true),
        (
            "HTTP/1.1 200 OK\r\nbad name: 1\r\ncontent-length: 2\r\n\r\nok",
            true,
        ),
        ("HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\ngone", false),
        (
            "HTTP/1.1 503 Busy\r\ncontent-length: 4\r\nretry-after: 3\r\n\r\nbusy",
            false,
        ),
        ("nonsense\r\n\r\n", true),
        ("", true),
        (&long, false),
        (&fields, false),
    ] {
        for cut in [0, answer.len() / 2, answer.len().saturating_sub(1), answer.len()] {
            for rules in [false, true] {
                let by_hyper = two(answer, cut, closes, true, rules);
                let without = two(answer, cut, closes, false, rules);
                assert_eq!(without, by_hyper, "{answer:?} cut at {cut}, rules: {rules}");
            }
        }
    }
}

/// What a partner hears of this message, twice over the same connection.
fn heard(config: &PartnerConfig, by_hyper: bool, value: &str) -> Vec<u8> {
    let heard: Arc<Mutex<Vec<Vec<u8>>>> = shared(Vec::new());
    let there = Arc::clone(&heard);
    let address = raw(move |mut stream, n| {
        assert_eq!(n, 0);
        while let Some(request) = read_request(&mut stream) {
            let is_head = request.starts_with(b"HEAD");
            there.lock().push(request);
            let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n";
            say(&mut stream, answer);
            if !is_head {
                say(&mut stream, "ok");
            }
        }
    });
    let mut config = config.clone();
    config.url = config.url.replace("PARTNER", &address.to_string());
    config.proxy = config
        .proxy
        .map(|url| url.replace("PARTNER", &address.to_string()));
    config.title_case_headers = by_hyper;
    run(async {
        let sink = sink(&config);
        for _ in 0..2 {
            let answer = answered(&sink, &delivery(value)).await;
            assert_eq!(answer.verdict, Verdict::Delivered);
        }
    });
    let heard = heard.lock();
    assert_eq!(heard.len(), 2);
    assert_eq!(heard[0], heard[1]);
    let text = String::from_utf8_lossy(&heard[0]);
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let head = head.replace(&address.to_string(), "PARTNER").to_lowercase();
    format!("{head}\r\n\r\n{body}").into_bytes()
}

#[test]
fn a_request_is_written_the_same_with_hyper_and_without() {
    let long = "x".repeat(100_000);
    let urls = [
        "http://PARTNER/hook",
        "http://PARTNER?a=b",
        "http://u:p@PARTNER/a%20b/?c=d&e",
    ];
    for url in urls {
        for method in ["POST", "GET", "HEAD", "DELETE", "PUT"] {
            for value in ["{\"id\":1}", "", "text", &long] {
                for (name, text) in [("x-b", "b"), ("x-id", "{{ offset }}"), ("idempotency-key", "own")] {
                    let mut config = partner(url);
                    config.method = method.into();
                    config.headers = vec![(name.into(), text.into())];
                    config.traceparent = name != "x-id";
                    let without = heard(&config, false, value);
                    let by_hyper = heard(&config, true, value);
                    let shown = String::from_utf8_lossy(&without);
                    assert!(without == by_hyper, "{method} {url} {name}: {shown}");
                }
            }
        }
    }
    let mut config = partner("http://partner.example/hook?x=y");
    config.proxy = Some("http://u:p@PARTNER".into());
    let without = heard(&config, false, "{}");
    assert!(without.starts_with(b"post http://partner.example/hook?x=y http/1.1\r\n"));
    assert_eq!(without, heard(&config, true, "{}"));
}

/// A request that the kernel does not take in one piece goes on where it stopped, and a connection whose answers were
/// not plain goes on with hyper.
#[test]
fn what_hyper_takes_over_goes_on_where_it_stopped() {
    const LENGTHS: [usize; 4] = [8 << 20, 10, 20, 30];
    let address = raw(move |mut stream, n| {
        assert_eq!(n, 0);
        for (request, length) in LENGTHS.into_iter().enumerate() {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.extend(byte);
            }
            let head = String::from_utf8(head).unwrap().to_lowercase();
            assert!(head.contains(&format!("content-length: {length}\r\n")), "{head}");
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            assert!(body.iter().all(|b| *b == b'x'));
            let answer = match request {
                1 => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
                _ => "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            };
            say(&mut stream, answer);
        }
    });
    run(async {
        let sink = sink(&partner(&format!("http://{address}/")));
        for length in LENGTHS {
            let answer = answered(&sink, &delivery(&"x".repeat(length))).await;
            assert_eq!(answer.verdict, Verdict::Delivered);
        }
        assert_eq!(sink.stats().connected, 1);
    });
}
