//! Partners that hang, reset, drip, flood and talk nonsense. All of it comes after the request was written, so all
//! of it is unknown, unless a status was heard.

use super::server::{OK, raw, read_request, reset, say};
use super::*;

const UNKNOWN: Verdict = Verdict::Unknown(DoubtCause::Timeout);

/// What one attempt makes of a server that reads a request and then does this.
fn after_reading(
    act: impl Fn(std::net::TcpStream) + Send + Sync + 'static,
    tweak: fn(&mut PartnerConfig),
) -> Answer {
    run(async {
        let address = raw(move |mut stream, _| {
            if read_request(&mut stream).is_some() {
                act(stream);
            }
        });
        let mut config = partner(&format!("http://{address}/"));
        tweak(&mut config);
        answered(&sink(&config), &delivery("x")).await
    })
}

fn short(config: &mut PartnerConfig) {
    config.timeout.request = Duration::from_millis(100);
}

fn wait(mut stream: std::net::TcpStream) {
    let mut buffer = [0; 64];
    while let Ok(1..) = std::io::Read::read(&mut stream, &mut buffer) {}
}

#[test]
fn a_reset_after_reading() {
    let answer = after_reading(reset, |_| {});
    assert_eq!((answer.verdict, answer.status), (UNKNOWN, 0));
    assert!(reason(&answer).starts_with("reset: "), "{answer:?}");
}

#[test]
fn an_orderly_end_without_an_answer() {
    let answer = after_reading(drop, |_| {});
    assert_eq!(answer.verdict, UNKNOWN);
    assert_eq!(
        reason(&answer),
        "reset: the connection was closed before the answer"
    );
}

#[test]
fn a_reset_before_reading_is_doubt_once_something_was_written() {
    run(async {
        let address = raw(|stream, _| {
            // Until the request is there, and then without having read it.
            let mut peeked = [0; 1];
            while !matches!(stream.peek(&mut peeked), Ok(1) | Err(_)) {}
            reset(stream);
        });
        let answer = answered(&sink(&partner(&format!("http://{address}/"))), &delivery("x")).await;
        assert_eq!(answer.verdict, UNKNOWN);
    });
}

#[test]
fn a_partner_that_hangs() {
    let answer = after_reading(wait, short);
    assert_eq!((answer.verdict, answer.status), (UNKNOWN, 0));
    assert_eq!(reason(&answer), "timeout: no answer within 100ms");
}

#[test]
fn a_head_that_drips() {
    let answer = after_reading(
        |mut stream| {
            for b in OK.chars().cycle().take(1000) {
                say(&mut stream, &b.to_string());
                std::thread::sleep(Duration::from_millis(5));
            }
        },
        |config| config.timeout.request = Duration::from_millis(60),
    );
    assert_eq!(answer.verdict, UNKNOWN);
}

#[test]
fn a_body_that_drips_is_bounded_and_the_status_stands() {
    let drip = |status: &'static str| {
        move |mut stream: std::net::TcpStream| {
            say(
                &mut stream,
                &format!("HTTP/1.1 {status}\r\ncontent-length: 100000\r\n\r\n"),
            );
            for _ in 0..1000 {
                say(&mut stream, "x");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    };
    let begun = std::time::Instant::now();
    assert_eq!(after_reading(drip("200 OK"), short).verdict, Verdict::Delivered);
    assert_eq!(after_reading(drip("422 No"), short).verdict, Verdict::Refused);
    // Whether it names a broken upstream may stand in what never came.
    assert_eq!(after_reading(drip("503 No"), short).verdict, UNKNOWN);
    // A rule looks at the body, and its end never came.
    let answer = after_reading(drip("200 OK"), |config| {
        short(config);
        config.verdict = vec![rule("status == 200 and body.code != 0", RuleVerdict::Refused)];
    });
    assert_eq!((answer.verdict, answer.status), (UNKNOWN, 200));
    assert!(
        reason(&answer).starts_with("bad answer: 200, cut off"),
        "{answer:?}"
    );
    assert!(begun.elapsed() < Duration::from_secs(3));
}

fn rule(when: &str, is: RuleVerdict) -> VerdictRuleConfig {
    VerdictRuleConfig {
        when: when.into(),
        is,
        reason: None,
        after: None,
        scope: None,
    }
}

#[test]
fn a_huge_answer_is_read_to_the_bound() {
    run(async {
        let address = raw(|mut stream, n| {
            while read_request(&mut stream).is_some() {
                let status = if n == 0 { "200 OK" } else { "422 No" };
                say(
                    &mut stream,
                    &format!("HTTP/1.1 {status}\r\ncontent-length: 1000000000\r\n\r\n"),
                );
                let block = "y".repeat(64 * 1024);
                while std::io::Write::write_all(&mut stream, block.as_bytes()).is_ok() {}
            }
        });
        let mut config = partner(&format!("http://{address}/"));
        config.answer_limit = 2000;
        let sink = sink(&config);
        let answer = answered(&sink, &delivery("x")).await;
        assert_eq!((answer.verdict, answer.status), (Verdict::Delivered, 200));
        assert_eq!(
            sink.stats().connections,
            0,
            "a connection with a rest to read is not kept"
        );
        let answer = answered(&sink, &delivery("x")).await;
        assert_eq!((answer.verdict, answer.status), (Verdict::Refused, 422));
        let detail = answer.detail.unwrap();
        assert!(
            detail.answer.len() <= 1024 && detail.answer.starts_with("yyy"),
            "{}",
            detail.answer.len()
        );
        assert!(detail.reason.len() <= 512, "{}", detail.reason.len());
    });
}

#[test]
fn garbage() {
    for text in [
        "SSH-2.0-OpenSSH_9.6\r\n",
        "HTTP/1.1 abc\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        "\0\0\0\0\u{1}\u{2}\u{3}\u{4}\0\0\0\0\0\0\0\0",
    ] {
        let answer = after_reading(
            move |mut stream| {
                say(&mut stream, text);
                wait(stream);
            },
            |config| config.timeout.request = Duration::from_secs(5),
        );
        assert_eq!(answer.verdict, UNKNOWN, "{text:?}");
        assert!(
            reason(&answer).starts_with("bad answer: "),
            "{text:?}: {answer:?}"
        );
    }
}

#[test]
fn a_head_without_end_does_not_grow_for_ever_and_its_status_stands() {
    let answer = after_reading(
        |mut stream| {
            say(&mut stream, "HTTP/1.1 200 OK\r\n");
            let line = format!("x-a: {}\r\n", "z".repeat(1000));
            for _ in 0..10_000 {
                say(&mut stream, &line);
            }
        },
        |_| {},
    );
    assert_eq!((answer.verdict, answer.status), (Verdict::Delivered, 200));
}

#[test]
fn a_chunked_body_that_breaks_off() {
    let answer = after_reading(
        |mut stream| {
            say(
                &mut stream,
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel",
            );
            drop(stream);
        },
        |_| {},
    );
    assert_eq!((answer.verdict, answer.status), (Verdict::Delivered, 200));
}

#[test]
fn early_hints_are_passed_over() {
    let answer = after_reading(
        |mut stream| {
            say(
                &mut stream,
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n",
            );
            say(&mut stream, "HTTP/1.1 204 No Content\r\n\r\n");
            wait(stream);
        },
        |_| {},
    );
    assert_eq!((answer.verdict, answer.status), (Verdict::Delivered, 204));
}

#[test]
fn a_protocol_switch_that_nobody_asked_for_is_no_delivery() {
    let answer = after_reading(
        |mut stream| {
            say(
                &mut stream,
                "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
            );
            wait(stream);
        },
        |_| {},
    );
    assert_eq!(answer.verdict, UNKNOWN);
}

#[test]
fn an_answer_before_the_request_was_read_counts_and_the_connection_is_not_used_again() {
    run(async {
        let address = raw(|mut stream, n| {
            if n == 0 {
                // Answers at the sight of the first bytes of a request that does not fit the buffers.
                let mut buffer = [0; 16];
                std::io::Read::read_exact(&mut stream, &mut buffer).unwrap();
                say(&mut stream, "HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n");
                std::thread::sleep(Duration::from_millis(200));
                return;
            }
            while read_request(&mut stream).is_some() {
                say(&mut stream, OK);
            }
        });
        let sink = sink(&partner(&format!("http://{address}/")));
        let answer = answered(&sink, &delivery(&"z".repeat(32 << 20))).await;
        assert_eq!(
            (answer.verdict, answer.status),
            (Verdict::Refused, 413),
            "{answer:?}"
        );
        assert_eq!(answered(&sink, &delivery("x")).await.verdict, Verdict::Delivered);
        assert_eq!(sink.stats().connected, 2);
    });
}

#[test]
fn junk_on_an_idle_connection_is_not_the_answer_to_the_next_request() {
    run(async {
        let (told, heard) = std::sync::mpsc::channel();
        let address = raw(move |mut stream, n| {
            while read_request(&mut stream).is_some() {
                say(&mut stream, OK);
                if n == 0 {
                    say(
                        &mut stream,
                        "HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
                    );
                    told.send(()).unwrap();
                }
            }
        });
        let sink = sink(&partner(&format!("http://{address}/")));
        assert_eq!(answered(&sink, &delivery("x")).await.verdict, Verdict::Delivered);
        patience::hear(&heard).unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(answered(&sink, &delivery("x")).await.verdict, Verdict::Delivered);
        assert_eq!(sink.stats().connected, 2);
    });
}
