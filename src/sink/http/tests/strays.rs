//! Answers that nobody asked for: whatever a partner does with them, none makes a dead letter of a message that it may
//! take.

use super::server::{OK, raw, read_request, say};
use super::*;
use std::net::{SocketAddr, TcpStream};

const UNKNOWN: Verdict = Verdict::Unknown(DoubtCause::Timeout);
const STRAYS: [&str; 5] = [
    "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n",
    "HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n",
    "HTTP/1.1 429 Too Many\r\nretry-after: 0\r\ncontent-length: 0\r\n",
    "HTTP/1.1 401 No\r\ncontent-length: 0\r\n",
    "HTTP/1.1 307 There\r\nlocation: /new\r\ncontent-length: 0\r\n",
];

fn stray(head: &str, close: bool) -> String {
    let body = if head.contains("length: 2") { "no" } else { "" };
    let close = if close { "connection: close\r\n" } else { "" };
    format!("{head}{close}\r\n{body}")
}

/// A sink that waits as long as it takes for what follows an answer: no test hangs on a clock.
fn patient(address: SocketAddr) -> HttpSink {
    let mut config = partner(&format!("http://{address}/"));
    config.redirects = 1;
    let mut sink = sink(&config);
    let hour = Duration::from_secs(3_600);
    sink.strays = Patience {
        twice_within: hour,
        least: hour,
        most: hour,
    };
    sink
}

/// The same, with a connection on which a message was delivered.
async fn used(address: SocketAddr) -> HttpSink {
    let sink = patient(address);
    assert_eq!(answered(&sink, &delivery("x")).await.verdict, Verdict::Delivered);
    sink
}

/// Waits until a request lies in the kernel, unread.
fn wait_for_request(stream: &TcpStream) -> bool {
    matches!(stream.peek(&mut [0]), Ok(1..))
}

/// After a stray each request has a connection of its own, and what the partner says on it is believed.
async fn assert_careful(sink: &HttpSink) {
    let before = sink.stats().connected;
    for n in 1..=5 {
        assert_eq!(answered(sink, &delivery("x")).await.verdict, Verdict::Delivered);
        assert_eq!(sink.stats().connected, before + n);
    }
    assert_eq!(sink.stats().connections, 0);
}

/// The stray leaves before the request arrives, and is read after the request was written.
#[test]
fn an_answer_that_crosses_the_request_is_not_its_answer() {
    for head in STRAYS {
        for close in [true, false] {
            run(async {
                let (go, may_go) = std::sync::mpsc::channel::<()>();
                let (told, done) = std::sync::mpsc::channel();
                let may_go = shared(may_go);
                let address = raw(move |mut stream, n| {
                    while read_request(&mut stream).is_some() {
                        say(&mut stream, OK);
                        if n > 0 {
                            continue;
                        }
                        may_go.lock().recv().unwrap();
                        say(&mut stream, &stray(head, close));
                        if close {
                            drop(stream);
                            told.send(()).unwrap();
                            return;
                        }
                        told.send(()).unwrap();
                        // The request is answered all the same. A busy machine may have acknowledged it by the time
                        // that the stray is read: then this tells.
                    }
                });
                let sink = used(address).await;
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
                let Sent::Answered(answer) = settled(sent).await else {
                    panic!("{head} {close}: it was answered")
                };
                assert_eq!(answer.verdict, UNKNOWN, "{head} {close}: {answer:?}");
                let crossed = reason(&answer).contains("sent before this request had arrived");
                assert!(
                    crossed || !close && reason(&answer).contains("another answer followed"),
                    "{answer:?}"
                );
                assert_careful(&sink).await;
            });
        }
    }
}

/// The server says a stray and closes while the request lies in its kernel, unread.
#[test]
fn an_answer_of_a_server_that_closes_with_the_request_unread_is_not_its_answer() {
    for head in STRAYS {
        for close in [true, false] {
            run(async {
                let address = raw(move |mut stream, n| {
                    while read_request(&mut stream).is_some() {
                        say(&mut stream, OK);
                        if n == 0 {
                            assert!(wait_for_request(&stream));
                            say(&mut stream, &stray(head, close));
                            return;
                        }
                    }
                });
                let sink = used(address).await;
                let answer = answered(&sink, &delivery("x")).await;
                assert_eq!(answer.verdict, UNKNOWN, "{head} {close}: {answer:?}");
                assert!(reason(&answer).contains("with this request unread"), "{answer:?}");
                assert_careful(&sink).await;
            });
        }
    }
}

/// The server answers twice to the first request, and then the second one, which had arrived before.
#[test]
fn one_of_two_answers_is_not_its_answer() {
    for head in STRAYS {
        run(async {
            let address = raw(move |mut stream, n| {
                while read_request(&mut stream).is_some() {
                    say(&mut stream, OK);
                    if n == 0 {
                        assert!(wait_for_request(&stream));
                        say(&mut stream, &stray(head, false));
                    }
                }
            });
            let sink = used(address).await;
            let answer = answered(&sink, &delivery("x")).await;
            assert_eq!(answer.verdict, UNKNOWN, "{head}: {answer:?}");
            assert!(reason(&answer).contains("another answer followed"), "{answer:?}");
            assert_careful(&sink).await;
        });
    }
}

/// The same at any moment: whichever of them shows it, no message is dead, and one at most is in doubt.
#[test]
fn an_answer_that_nobody_asked_for_makes_no_dead_letter() {
    run(async {
        for close in [true, false] {
            for pause in [0, 100, 300, 1_000, 3_000, 10_000] {
                let address = raw(move |mut stream, _| {
                    while read_request(&mut stream).is_some() {
                        say(&mut stream, OK);
                        std::thread::sleep(Duration::from_micros(pause));
                        say(&mut stream, &stray(STRAYS[0], close));
                        if close {
                            return;
                        }
                    }
                });
                let sink = patient(address);
                let mut doubts = 0;
                for i in 0..20 {
                    let answer = answered(&sink, &delivery("x")).await;
                    match answer.verdict {
                        Verdict::Delivered => {}
                        UNKNOWN => doubts += 1,
                        _ => panic!("{close}, {pause} µs, {i}: {answer:?}"),
                    }
                }
                assert!(doubts <= 1, "{close}, {pause} µs: {doubts}");
            }
        }
    });
}

#[test]
fn a_refusal_on_a_used_connection_stands() {
    run(async {
        // The connection is kept; closed at once; left to the client to close; reset for a request that is too large.
        for (close, size) in [("", 1), ("at once", 1), ("later", 1), ("too large", 3 << 20)] {
            let address = raw(move |mut stream, _| {
                let _unread = read_request(&mut stream);
                say(&mut stream, OK);
                loop {
                    match close {
                        "too large" if wait_for_request(&stream) => {}
                        "too large" => return,
                        _ if read_request(&mut stream).is_none() => return,
                        _ => {}
                    }
                    match close {
                        "" => say(&mut stream, &stray(STRAYS[1], false)),
                        "at once" => return say(&mut stream, &stray(STRAYS[0], true)),
                        "later" => {
                            say(&mut stream, &stray(STRAYS[0], true));
                            while read_request(&mut stream).is_some() {}
                            return;
                        }
                        _ => {
                            return say(
                                &mut stream,
                                &stray("HTTP/1.1 413 Large\r\ncontent-length: 0\r\n", true),
                            );
                        }
                    }
                }
            });
            let mut sink = sink(&partner(&format!("http://{address}/")));
            if !close.is_empty() {
                sink.strays = patient(address).strays;
            }
            assert_eq!(answered(&sink, &delivery("x")).await.verdict, Verdict::Delivered);
            let answer = answered(&sink, &delivery(&"z".repeat(size))).await;
            assert_eq!(answer.verdict, Verdict::Refused, "{close}: {answer:?}");
            if close.is_empty() {
                for _ in 0..5 {
                    assert_eq!(answered(&sink, &delivery("x")).await.verdict, Verdict::Refused);
                }
                assert_eq!(sink.stats().connected, 1);
            }
        }
    });
}

/// What may follow an answer is waited for without a place at the partner, by so many answers at once.
#[test]
fn the_wait_for_what_follows_an_answer_holds_nobody_up() {
    run(async {
        let address = raw(move |mut stream, _| {
            read_request(&mut stream);
            say(&mut stream, OK);
            while read_request(&mut stream).is_some() {
                say(&mut stream, &stray(STRAYS[1], false));
            }
        });
        let mut sink = patient(address);
        // Connections that have been used.
        let mut used = Vec::new();
        for _ in 0..65 {
            let request = sink.prepare(&delivery("x")).unwrap();
            used.push((sink.connect(&request).await.ok().unwrap(), request));
        }
        for (connection, request) in used {
            sink.send(connection, request, &mut || true).await;
        }
        let mut waiting = Vec::new();
        for _ in 0..64 {
            let request = sink.prepare(&delivery("x")).unwrap();
            let connection = sink.connect(&request).await.ok().unwrap();
            match sink.send(connection, request, &mut || true).await {
                Sent::Settling(answer, settling) => {
                    assert_eq!(answer.verdict, Verdict::Refused);
                    waiting.push(settling);
                }
                sent => panic!("{sent:?}"),
            }
        }
        assert_eq!(sink.stats().connected, 65);
        // One more waits with its place: so few connections are kept from others.
        sink.strays = Patience {
            least: Duration::ZERO,
            most: Duration::ZERO,
            ..sink.strays
        };
        let request = sink.prepare(&delivery("x")).unwrap();
        let connection = sink.connect(&request).await.ok().unwrap();
        let sent = sink.send(connection, request, &mut || true).await;
        assert!(
            matches!(&sent, Sent::Answered(a) if a.verdict == Verdict::Refused),
            "{sent:?}"
        );
        drop(waiting);
        assert_eq!(sink.stats().connections, 1);
    });
}

/// A look-up whose answer may be nobody's settles no doubt.
#[test]
fn a_look_up_is_not_answered_by_a_stray() {
    run(async {
        let address = raw(move |mut stream, n| {
            while read_request(&mut stream).is_some() {
                say(&mut stream, OK);
                if n == 0 {
                    assert!(wait_for_request(&stream));
                    say(&mut stream, &stray(STRAYS[1], true));
                    return;
                }
            }
        });
        let mut config = partner(&format!("http://{address}/"));
        config.verify = Some(VerifyConfig::new(
            format!("http://{address}/"),
            "status == 200",
            "status == 404",
            Duration::from_secs(5),
        ));
        let mut sink = sink(&config);
        sink.strays = patient(address).strays;
        assert_eq!(answered(&sink, &delivery("x")).await.verdict, Verdict::Delivered);
        let verified = sink.verify(&delivery("x")).await;
        assert!(
            matches!(verified, crate::sink::Verified::AskAgain(_)),
            "{verified:?}"
        );
    });
}
