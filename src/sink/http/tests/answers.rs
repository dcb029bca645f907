//! Answers as servers give them: sloppy, packed, late, early, twice; and connections that are used for longer than
//! they are good for.

use super::server::{OK, Polite, raw, read_request, reset, response, say};
use super::*;
use crate::sink::Verified;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};

const UNKNOWN: Verdict = Verdict::Unknown(DoubtCause::Timeout);

fn rule(when: &str, is: RuleVerdict) -> VerdictRuleConfig {
    VerdictRuleConfig {
        when: when.into(),
        is,
        reason: None,
        after: None,
        scope: None,
    }
}

/// The rule that the documentation shows for partners that answer 200 with an error inside.
fn by_code(config: &mut PartnerConfig) {
    config.verdict = vec![rule("status == 200 and body.code != 0", RuleVerdict::Refused)];
}

/// What each of two requests makes of a server that gives these bytes as an answer and keeps its connections.
fn of_bytes(answer: impl Into<Vec<u8>>, tweak: fn(&mut PartnerConfig)) -> (Answer, SinkStats) {
    let answer = answer.into();
    run(async move {
        let address = raw(move |mut stream, _| {
            while read_request(&mut stream).is_some() {
                let _gone = stream.write_all(&answer);
            }
        });
        let mut config = partner(&format!("http://{address}/"));
        config.timeout.request = Duration::from_secs(20);
        tweak(&mut config);
        let sink = sink(&config);
        let first = answered(&sink, &delivery("x")).await;
        let second = answered(&sink, &delivery("x")).await;
        assert_eq!(first.verdict, second.verdict, "{first:?} {second:?}");
        (first, sink.stats())
    })
}

fn wait(stream: &mut TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(1..) = stream.read(&mut buffer) {}
}

#[test]
fn many_fields_and_long_heads() {
    let fields = |n: usize| (0..n).map(|i| format!("x-h{i}: v\r\n")).collect::<String>();
    for (status, wanted) in [("200 OK", Verdict::Delivered), ("404 No", Verdict::Refused)] {
        for (n, connections) in [(99, 1), (100, 2), (120, 2), (4_000, 2), (5_000, 2)] {
            let text = format!("HTTP/1.1 {status}\r\n{}content-length: 2\r\n\r\nok", fields(n));
            let (answer, stats) = of_bytes(text, |_| {});
            assert_eq!(answer.verdict, wanted, "{n}: {answer:?}");
            // The first head of more than hyper has room for costs a connection; others of the kind do not.
            assert_eq!(stats.connected, connections, "{n}");
        }
        for length in [100_000, 240_000, 512_000] {
            let text = format!(
                "HTTP/1.1 {status}\r\nx: {}\r\ncontent-length: 0\r\n\r\n",
                "y".repeat(length)
            );
            let (answer, _) = of_bytes(text, |_| {});
            assert_eq!(answer.verdict, wanted, "{length}: {answer:?}");
        }
    }
    // A rule that looks at the body reads it behind many fields, and says why where it cannot.
    let text = format!(
        "HTTP/1.1 200 OK\r\n{}content-length: 10\r\n\r\n{{\"code\":7}}",
        fields(120)
    );
    let (answer, stats) = of_bytes(text, by_code);
    assert_eq!((answer.verdict, stats.connected), (Verdict::Refused, 1));
    let text = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(512_000));
    let (answer, _) = of_bytes(text, by_code);
    assert_eq!(answer.verdict, UNKNOWN);
    assert_eq!(
        reason(&answer),
        "bad answer: 200, its head is longer than 256 KiB, so that its body, which verdict rule 1 needs, was not read"
    );
}

#[test]
fn sloppy_heads_are_read() {
    for fields in [
        "x-policy: a;\r\n b;\r\n\tc",
        " x-first: folded",
        "Set-Cookie : a=b",
        ": nothing",
        "Set-Cookie: a=\u{1}b",
        "X Name: v",
        "no colon here",
        "X-N\u{e4}me: v",
        "x: a\0b",
        "x-policy:\r\n",
    ] {
        let text = format!("HTTP/1.1 200 OK\r\n{fields}\r\ncontent-length: 2\r\n\r\nok");
        let (answer, _) = of_bytes(text, |_| {});
        assert_eq!(answer.verdict, Verdict::Delivered, "{fields:?}: {answer:?}");
        let text = format!("HTTP/1.1 422 No\r\ncontent-length: 2\r\nx: 1\r\n{fields}\r\n\r\nno");
        let (answer, _) = of_bytes(text, |_| {});
        assert_eq!(answer.verdict, Verdict::Refused, "{fields:?}: {answer:?}");
    }
    for line in ["HTTP/1.1 200", "HTTP/1.0 200 OK", "http/1.1 200 OK"] {
        let (answer, _) = of_bytes(format!("{line}\r\ncontent-length: 0\r\n\r\n"), |_| {});
        assert_eq!(answer.verdict, Verdict::Delivered, "{line}: {answer:?}");
    }
    let mut latin = b"HTTP/1.1 200 OK\r\nX-Name: M\xfcller\r\ncontent-length: 2\r\n\r\nok".to_vec();
    assert_eq!(of_bytes(latin.clone(), |_| {}).0.verdict, Verdict::Delivered);
    // What frames the body is not guessed.
    latin = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok?".to_vec();
    let (answer, _) = of_bytes(latin, |_| {});
    assert_eq!(answer.verdict, UNKNOWN);
    assert!(reason(&answer).contains("content-length"), "{answer:?}");
}

fn gzip(plain: &str) -> Vec<u8> {
    let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    to.write_all(plain.as_bytes()).unwrap();
    to.finish().unwrap()
}

fn with_body(head: &str, body: &[u8]) -> Vec<u8> {
    let mut answer = format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\n\r\n", body.len()).into_bytes();
    answer.extend_from_slice(body);
    answer
}

#[test]
fn packed_answers_are_read_and_damaged_ones_are_in_doubt() {
    let refused = r#"{"code":7,"message":"no such user"}"#;
    let gz = "content-encoding: gzip";
    let (answer, _) = of_bytes(with_body(&format!("200 OK\r\n{gz}"), &gzip(refused)), |config| {
        by_code(config);
        config.verdict[0].reason = Some("body.message".into());
    });
    assert_eq!(
        (answer.verdict, reason(&answer)),
        (Verdict::Refused, "refused: 200 (verdict rule 1) no such user")
    );
    let (answer, _) = of_bytes(
        with_body(&format!("200 OK\r\n{gz}"), &gzip("{\"code\":0}")),
        by_code,
    );
    assert_eq!(answer.verdict, Verdict::Delivered);
    let (answer, _) = of_bytes(
        with_body(&format!("200 OK\r\n{gz}"), &gzip("an error")),
        |config| {
            config.verdict = vec![rule("body contains 'error'", RuleVerdict::Refused)];
        },
    );
    assert_eq!(answer.verdict, Verdict::Refused);
    for head in [
        "200 OK\r\ncontent-encoding: gzip",
        "200 OK\r\ncontent-encoding: br",
        "200 OK\r\ncontent-encoding: lz4",
    ] {
        let (answer, _) = of_bytes(with_body(head, refused.as_bytes()), by_code);
        assert_eq!(answer.verdict, UNKNOWN, "{head}: {answer:?}");
    }
    // No rule looks at it: the status line decides.
    let (answer, _) = of_bytes(with_body(&format!("200 OK\r\n{gz}"), b"damaged"), |_| {});
    assert_eq!(answer.verdict, Verdict::Delivered);
    // Its reason is read.
    let (answer, _) = of_bytes(
        with_body(&format!("422 No\r\n{gz}"), &gzip("no such user")),
        |_| {},
    );
    assert_eq!(reason(&answer), "refused: 422 no such user");
}

#[test]
fn nobody_asks_for_packed_answers() {
    run(async {
        let server = Polite::ok();
        answered(&sink(&partner(&server.url())), &delivery("x")).await;
        let mut asks = partner(&server.url());
        asks.headers = vec![("accept-encoding".into(), "gzip".into())];
        answered(&sink(&asks), &delivery("x")).await;
        let heard = server.heard.lock();
        assert_eq!(heard[0].header("accept-encoding"), Some("identity"));
        assert_eq!(heard[1].header("accept-encoding"), Some("gzip"));
    });
}

/// Bodies that the rule of the documentation, and the safe form of it, read; the verdicts of both, and of the same
/// body behind a 404.
#[test]
fn a_body_that_a_rule_cannot_read_is_never_delivered() {
    use Verdict::{Delivered, Refused};
    fn safe(config: &mut PartnerConfig) {
        config.verdict = vec![rule(
            "status == 200 and (not body.code exists or body.code != 0)",
            RuleVerdict::Refused,
        )];
    }
    let long = format!("{{\"more\":\"{}\",\"code\":7}}", "x".repeat(70 * 1024));
    let long_behind = format!("{{\"code\":0,\"more\":\"{}\"}}", "x".repeat(70 * 1024));
    let utf16: Vec<u8> = "{\"code\":7}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (head, body, by_code_is, safe_is) in [
        ("", &b"{\"code\":0}"[..], Delivered, Delivered),
        ("", b"{\"code\":7}", Refused, Refused),
        ("", b"\n\n{\"code\":7}", Refused, Refused),
        ("", b"\xef\xbb\xbf{\"code\":7}", Refused, Refused),
        (
            "\r\ncontent-type: application/json; charset=utf-16le",
            &utf16,
            Refused,
            Refused,
        ),
        ("", &utf16, UNKNOWN, UNKNOWN),
        ("", b")]}',\n{\"code\":7}", UNKNOWN, UNKNOWN),
        ("", b"callback({\"code\":7})", UNKNOWN, UNKNOWN),
        ("", b"[{\"code\":7}]", UNKNOWN, UNKNOWN),
        ("", b"<html>maintenance</html>", UNKNOWN, UNKNOWN),
        ("", b"{\"x\": NaN, \"code\": 7}", UNKNOWN, UNKNOWN),
        ("", b"{\"code\":", UNKNOWN, UNKNOWN),
        ("", b"{\"code\":7", UNKNOWN, UNKNOWN),
        ("", b"{'code':7}", UNKNOWN, UNKNOWN),
        ("", b"", UNKNOWN, UNKNOWN),
        ("", b"{\"code\":0,\"code\":7}", UNKNOWN, UNKNOWN),
        ("", b"{\"code\":7,\"code\":0}", UNKNOWN, UNKNOWN),
        ("", long.as_bytes(), UNKNOWN, UNKNOWN),
        ("", long_behind.as_bytes(), Delivered, Delivered),
        // Readable, and the field is not there: what the safe form is for.
        ("", b"{\"result\":{\"code\":7}}", Delivered, Refused),
        (
            "\r\ncontent-type: text/html; charset=iso-8859-1",
            b"{\"code\":7,\"m\":\"M\xfcller\"}",
            Refused,
            Refused,
        ),
        ("", b"{\"code\":0,\"m\":\"M\xfcller\"}", UNKNOWN, UNKNOWN),
    ] {
        let shown = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
        let answer = with_body(&format!("200 OK{head}"), body);
        assert_eq!(of_bytes(answer.clone(), by_code).0.verdict, by_code_is, "{shown}");
        assert_eq!(
            of_bytes(answer.clone(), safe).0.verdict,
            safe_is,
            "{shown}, safe form"
        );
        assert_eq!(of_bytes(answer, |_| {}).0.verdict, Delivered, "{shown}, no rule");
        // The rule is about 200: whatever a 404 says, it was not taken.
        let answer = with_body(&format!("404 No{head}"), body);
        assert_eq!(of_bytes(answer, by_code).0.verdict, Refused, "{shown}, 404");
    }
    let (answer, _) = of_bytes(with_body("200 OK", b"<html>maintenance</html>"), by_code);
    assert_eq!(
        reason(&answer),
        "bad answer: 200, its body is no JSON: verdict rule 1 cannot be applied"
    );
    // A rule that may turn a 4xx into a delivery: in doubt. One that may only change how it was not taken: again.
    for (is, wanted) in [
        (RuleVerdict::Delivered, UNKNOWN),
        (RuleVerdict::Unknown, UNKNOWN),
        (RuleVerdict::Later, Verdict::TryLater),
        (RuleVerdict::Refused, Refused),
    ] {
        let address = raw(move |mut stream, _| {
            while read_request(&mut stream).is_some() {
                say(
                    &mut stream,
                    "HTTP/1.1 409 Conflict\r\ncontent-length: 6\r\n\r\n<html>",
                );
            }
        });
        let mut config = partner(&format!("http://{address}/"));
        config.verdict = vec![rule("status == 409 and body.error == 'known'", is)];
        let answer = run(async { answered(&sink(&config), &delivery("x")).await });
        assert_eq!(answer.verdict, wanted, "{is:?}: {answer:?}");
    }
}

#[test]
fn a_look_up_that_cannot_be_read_settles_nothing() {
    for (head, body, wanted) in [
        (
            "200 OK\r\ncontent-encoding: gzip",
            gzip("{\"state\":\"done\"}"),
            Some(Verified::Delivered),
        ),
        ("200 OK\r\ncontent-encoding: gzip", b"damaged".to_vec(), None),
        ("200 OK", b"<html>".to_vec(), None),
        (
            "200 OK",
            b"{\"state\":\"done\",\"state\":\"none\"}".to_vec(),
            None,
        ),
        (
            "200 OK",
            b"{\"state\":\"none\"}".to_vec(),
            Some(Verified::NeverSeen),
        ),
        ("404 No", b"<html>".to_vec(), Some(Verified::NeverSeen)),
    ] {
        let answer = with_body(head, &body);
        let address = raw(move |mut stream, _| {
            read_request(&mut stream);
            let _gone = stream.write_all(&answer);
        });
        let mut config = partner("http://127.0.0.1:1/");
        config.verify = Some(VerifyConfig::new(
            format!("http://{address}/"),
            "status == 200 and body.state == 'done'",
            "status == 404 or status == 200 and body.state == 'none'",
            Duration::from_secs(5),
        ));
        let verified = run(async { sink(&config).verify(&delivery("x")).await });
        match wanted {
            Some(wanted) => assert_eq!(verified, wanted),
            None => assert!(matches!(verified, Verified::Unclear(_)), "{verified:?}"),
        }
    }
}

#[test]
fn an_answer_without_a_length_is_not_waited_for() {
    run(async {
        let address = raw(|mut stream, _| {
            read_request(&mut stream);
            say(&mut stream, "HTTP/1.1 200 OK\r\n\r\nthe beginning");
            wait(&mut stream);
        });
        let mut config = partner(&format!("http://{address}/"));
        // No clock decides: the test would hang for an hour.
        config.timeout.request = Duration::from_secs(3600);
        let sink = sink(&config);
        assert_eq!(answered(&sink, &delivery("x")).await.verdict, Verdict::Delivered);
        assert_eq!(sink.stats().connections, 0, "it cannot be used again");
        assert_eq!(answered(&sink, &delivery("x")).await.verdict, Verdict::Delivered);
    });
}

#[test]
fn a_204_with_a_body_is_no_answer_to_the_next_request() {
    run(async {
        let served = shared(0);
        let there = Arc::clone(&served);
        let address = raw(move |mut stream, _| {
            while read_request(&mut stream).is_some() {
                *there.lock() += 1;
                say(
                    &mut stream,
                    "HTTP/1.1 204 No Content\r\ncontent-length: 2\r\n\r\n",
                );
                std::thread::sleep(Duration::from_millis(1));
                say(&mut stream, "ok");
            }
        });
        let sink = sink(&partner(&format!("http://{address}/")));
        for _ in 0..20 {
            assert_eq!(answered(&sink, &delivery("x")).await.verdict, Verdict::Delivered);
        }
        assert_eq!((sink.stats().connected, *served.lock()), (20, 20));
    });
}

/// What the kernel has and the runtime does not know yet is seen before a request is written.
#[test]
fn the_socket_is_looked_at_right_before_a_request_is_written() {
    run(async {
        let (told, heard) = std::sync::mpsc::channel();
        let (close, may_close) = std::sync::mpsc::channel::<()>();
        let may_close = shared(may_close);
        let read = Arc::new(AtomicUsize::new(0));
        let there = Arc::clone(&read);
        let address = raw(move |mut stream, n| {
            while read_request(&mut stream).is_some() {
                there.fetch_add(1, Ordering::SeqCst);
                say(&mut stream, OK);
                if n == 0 {
                    may_close.lock().recv().unwrap();
                    drop(stream);
                    told.send(()).unwrap();
                    return;
                }
            }
        });
        let sink = sink(&partner(&format!("http://{address}/")));
        assert_eq!(answered(&sink, &delivery("x")).await.verdict, Verdict::Delivered);
        // No turn of the runtime between the end of the connection and the next request.
        let request = sink.prepare(&delivery("x")).unwrap();
        let connection = sink.connect(&request).await.ok().unwrap();
        close.send(()).unwrap();
        patience::hear(&heard).unwrap();
        let sent = sink.send(connection, request, &mut || true).await;
        assert!(
            matches!(&sent, Sent::Answered(a) if a.verdict == Verdict::Delivered),
            "{sent:?}"
        );
        assert_eq!((sink.stats().connected, read.load(Ordering::SeqCst)), (2, 2));
    });
}

#[test]
fn what_a_partner_says_of_its_patience_is_heeded() {
    run(async {
        let address = raw(move |mut stream, _| {
            while read_request(&mut stream).is_some() {
                say(
                    &mut stream,
                    "HTTP/1.1 200 OK\r\nkeep-alive: timeout=0\r\ncontent-length: 0\r\n\r\n",
                );
            }
        });
        let sink = sink(&partner(&format!("http://{address}/")));
        for _ in 0..3 {
            assert_eq!(answered(&sink, &delivery("x")).await.verdict, Verdict::Delivered);
        }
        assert_eq!((sink.stats().connected, sink.stats().stale), (3, 0));
    });
}

#[test]
fn no_connection_lives_for_ever() {
    run(async {
        let server = Polite::ok();
        let mut config = partner(&server.url());
        config.timeout.connection = Duration::from_nanos(1);
        let mortal = sink(&config);
        for _ in 0..3 {
            assert_eq!(
                answered(&mortal, &delivery("x")).await.verdict,
                Verdict::Delivered
            );
        }
        assert_eq!(mortal.stats().connected, 3, "each request has one of its own");
        config.timeout.connection = Duration::from_secs(300);
        let lasting = sink(&config);
        for _ in 0..3 {
            assert_eq!(
                answered(&lasting, &delivery("x")).await.verdict,
                Verdict::Delivered
            );
        }
        assert_eq!(lasting.stats().connected, 1);
    });
}

/// A name that moves to another address is followed once the connections to the old one are over, busy as they are.
#[test]
fn a_name_that_moves_is_followed() {
    run(async {
        let old = Polite::ok();
        let port = old.address.port();
        // The same port at another address of this machine.
        let listener = std::net::TcpListener::bind(("127.0.0.2", port)).unwrap();
        let heard_there = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&heard_there);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                while read_request(&mut stream).is_some() {
                    count.fetch_add(1, Ordering::SeqCst);
                    say(&mut stream, OK);
                }
            }
        });
        let place = Rc::new(std::cell::Cell::new("127.0.0.1"));
        let mut config = partner(&format!("http://partner.example:{port}/"));
        let mut by_place = |life| {
            config.timeout.connection = life;
            let mut sink = sink(&config);
            let (place, asked) = (Rc::clone(&place), Rc::new(std::cell::Cell::new(0)));
            let counter = Rc::clone(&asked);
            sink.pool.resolve_by(move |name| {
                assert_eq!(name, "partner.example");
                counter.set(counter.get() + 1);
                vec![place.get().parse().unwrap()]
            });
            (sink, asked)
        };
        let (lasting, asked) = by_place(Duration::from_secs(3_600));
        let (mortal, asked_each_time) = by_place(Duration::from_nanos(1));
        for sink in [&lasting, &mortal] {
            for _ in 0..2 {
                assert_eq!(answered(sink, &delivery("x")).await.verdict, Verdict::Delivered);
            }
        }
        assert_eq!((old.count(), asked.get(), asked_each_time.get()), (4, 1, 2));
        place.set("127.0.0.2");
        for sink in [&lasting, &mortal] {
            for _ in 0..2 {
                assert_eq!(answered(sink, &delivery("x")).await.verdict, Verdict::Delivered);
            }
        }
        assert_eq!((old.count(), heard_there.load(Ordering::SeqCst)), (6, 2));
        assert_eq!(asked.get(), 1, "its connection is not over");
        // Nobody listens there.
        place.set("127.0.0.3");
        let request = mortal.prepare(&delivery("x")).unwrap();
        let answer = mortal.connect(&request).await.err().unwrap();
        assert_eq!(answer.verdict, Verdict::TryLater, "{answer:?}");
    });
}

#[test]
fn header_names_in_the_spelling_that_old_servers_know() {
    run(async {
        let (told, heard) = std::sync::mpsc::channel();
        let address = raw(move |mut stream, _| {
            let request = read_request(&mut stream).unwrap();
            told.send(String::from_utf8(request).unwrap()).unwrap();
            say(&mut stream, OK);
        });
        let mut config = partner(&format!("http://{address}/"));
        config.headers = vec![("authorization".into(), "x".into())];
        answered(&sink(&config), &delivery("x")).await;
        assert!(
            patience::hear(&heard)
                .unwrap()
                .contains("\r\nauthorization: x\r\n")
        );
        config.title_case_headers = true;
        answered(&sink(&config), &delivery("x")).await;
        let head = patience::hear(&heard).unwrap();
        assert!(
            head.contains("\r\nAuthorization: x\r\n") && head.contains("\r\nIdempotency-Key: "),
            "{head}"
        );
    });
}

/// The partner refuses at the sight of the head and closes with the body unread, which resets the connection: the
/// answer lies in front of the reset.
#[test]
fn an_early_refusal_is_heard_before_the_reset_behind_it() {
    run(async {
        for (status, pause) in [("413 Too Large", 0), ("431 Too Large", 1), ("413 Too Large", 20)] {
            let address = raw(move |mut stream, _| {
                let mut buffer = [0; 512];
                stream.read_exact(&mut buffer).unwrap();
                say(
                    &mut stream,
                    &format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"),
                );
                std::thread::sleep(Duration::from_millis(pause));
            });
            let sink = sink(&partner(&format!("http://{address}/")));
            let body = "z".repeat(3 << 20);
            for _ in 0..20 {
                let answer = answered(&sink, &delivery(&body)).await;
                assert_eq!(answer.verdict, Verdict::Refused, "{status}: {answer:?}");
            }
        }
    });
}

/// What was said before a byte of the request was written is another's answer, even if the write that fails then
/// is not told.
#[test]
fn an_answer_to_nothing_is_nobodys() {
    run(async {
        let (go, may_go) = std::sync::mpsc::channel::<()>();
        let (told, done) = std::sync::mpsc::channel();
        let may_go = shared(may_go);
        let address = raw(move |mut stream, _| {
            may_go.lock().recv().unwrap();
            say(&mut stream, "HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n");
            reset(stream);
            told.send(()).unwrap();
        });
        let sink = sink(&partner(&format!("http://{address}/")));
        let request = sink.prepare(&delivery("x")).unwrap();
        let connection = sink.connect(&request).await.ok().unwrap();
        // Between the last look at the socket and the first byte.
        let sent = sink
            .send(connection, request, &mut || {
                go.send(()).unwrap();
                patience::hear(&done).unwrap();
                true
            })
            .await;
        let Sent::NeverWritten(answer) = sent else {
            panic!("{sent:?}")
        };
        assert_eq!(answer.verdict, Verdict::TryLater, "{answer:?}");
    });
}

/// A write that fails is no answer: where none lies in the socket the outcome stays unknown.
#[test]
fn a_reset_while_the_body_is_written_is_doubt() {
    run(async {
        let address = raw(move |mut stream, _| {
            let mut buffer = [0; 512];
            stream.read_exact(&mut buffer).unwrap();
            reset(stream);
        });
        let sink = sink(&partner(&format!("http://{address}/")));
        let body = "z".repeat(3 << 20);
        for _ in 0..5 {
            let answer = answered(&sink, &delivery(&body)).await;
            assert_eq!((answer.verdict, answer.status), (UNKNOWN, 0), "{answer:?}");
            assert!(reason(&answer).starts_with("reset: "), "{answer:?}");
        }
        assert_eq!(sink.stats().connections, 0);
    });
}

/// A future that is done once the runtime has looked at its sockets, and whose timer is over before that.
#[test]
fn a_timer_is_believed_only_after_the_socket_had_its_say() {
    run(async {
        let over = Instant::now() - Duration::from_secs(1);
        let mut polls = 0;
        let late = std::future::poll_fn(|_| {
            polls += 1;
            if polls < 2 {
                std::task::Poll::Pending
            } else {
                std::task::Poll::Ready(7)
            }
        });
        assert_eq!(within(over, pin!(late)).await, Some(7));
        assert_eq!(within(over, pin!(std::future::pending::<u8>())).await, None);
    });
}

#[test]
fn no_request_reaches_the_nodes_own_ports() {
    run(async {
        let node = Polite::ok();
        let port = node.address.port();
        let clock = Clock::start();
        for url in [
            format!("http://127.0.0.1:{port}/api/partners/q/pause"),
            format!("http://[::ffff:127.0.0.1]:{port}/"),
            format!("http://0.0.0.0:{port}/"),
            format!("http://localhost:{port}/"),
            format!("http://2130706433:{port}/"),
            format!("http://127.0.0.2:{port}/"),
        ] {
            // From a record, and from the configuration.
            for template in ["{{ value }}", url.as_str()] {
                let mut config = partner(template);
                config.method = "POST".into();
                let sink =
                    HttpSink::try_new_beside(&config, &Secrets::none(), clock, &[node.address]).unwrap();
                let request = sink.prepare(&delivery(&url)).unwrap();
                let answer = sink.connect(&request).await.err().unwrap();
                assert_eq!(answer.verdict, Verdict::Refused, "{url}: {answer:?}");
                assert!(
                    reason(&answer).starts_with("refused: address not allowed: ")
                        && reason(&answer).contains("a port of this node"),
                    "{answer:?}"
                );
                assert_eq!(
                    sink.stats().connect_failures,
                    0,
                    "it is not the partner's failure"
                );
            }
        }
        // A redirect to it.
        let to = format!("http://localhost:{port}/");
        let other = Polite::start(move |_| response(307, &[("location", &to)], ""));
        let mut config = partner(&other.url());
        config.redirects = 1;
        config.redirect_to = vec![format!("http://localhost:{port}")];
        let sink = HttpSink::try_new_beside(&config, &Secrets::none(), clock, &[node.address]).unwrap();
        let request = sink.prepare(&delivery("x")).unwrap();
        let connection = sink.connect(&request).await.ok().unwrap();
        let Sent::Moved(_, moved) = sink.send(connection, request, &mut || true).await else {
            panic!("it is to be followed")
        };
        let request = sink.prepare_moved(&delivery("x"), &moved).unwrap();
        assert_eq!(
            sink.connect(&request).await.err().unwrap().verdict,
            Verdict::Refused
        );
        assert_eq!(node.count(), 0);
        // Its neighbours are reached.
        let ok = Polite::ok();
        let sink =
            HttpSink::try_new_beside(&partner(&ok.url()), &Secrets::none(), clock, &[node.address]).unwrap();
        assert_eq!(answered(&sink, &delivery("x")).await.verdict, Verdict::Delivered);
    });
}

#[test]
fn records_reach_what_the_partner_may() {
    run(async {
        let server = Polite::ok();
        let refused = async |reach, template: &str, value: String| {
            let mut config = partner(template);
            config.url_reach = reach;
            config.timeout.connect = Duration::from_millis(50);
            let sink = sink(&config);
            let request = sink.prepare(&delivery(&value)).unwrap();
            match sink.connect(&request).await {
                Ok(_) => false,
                Err(answer) => answer.verdict == Verdict::Refused,
            }
        };
        let local = server.url();
        let metadata = "http://169.254.169.254/latest/meta-data/".to_owned();
        let spelled = "http://[::ffff:a9fe:a9fe]/".to_owned();
        assert!(refused(Reach::Usual, "{{ value }}", metadata.clone()).await);
        assert!(refused(Reach::Usual, "{{ value }}", spelled).await);
        assert!(!refused(Reach::Any, "{{ value }}", metadata.clone()).await);
        assert!(!refused(Reach::Usual, "{{ value }}", local.clone()).await);
        assert!(refused(Reach::Public, "{{ value }}", local.clone()).await);
        // The configuration is the operator's word.
        assert!(!refused(Reach::Public, &local, "x".into()).await);
        assert!(!refused(Reach::Usual, &metadata, "x".into()).await);
    });
}
