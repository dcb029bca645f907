//! Connections: kept, checked, replaced; and when the gate is asked.

use super::server::{OK, Polite, raw, read_request, response, say};
use super::*;
use std::future::Future;
use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};

#[test]
fn one_connection_serves_one_request_after_the_other() {
    run(async {
        let server = Polite::ok();
        let sink = sink(&partner(&server.url()));
        for i in 0..20 {
            let answer = answered(&sink, &delivery(&format!("{{\"n\":{i}}}"))).await;
            assert_eq!(
                (answer.verdict, answer.status, answer.detail, answer.pace),
                (Verdict::Delivered, 200, None, None)
            );
        }
        assert_eq!(server.count(), 20);
        assert_eq!(server.connections.load(Ordering::SeqCst), 1);
        assert_eq!(
            sink.stats(),
            SinkStats {
                connections: 1,
                connected: 1,
                connect_failures: 0,
                stale: 0
            }
        );
    });
}

#[test]
fn requests_at_the_same_time_have_a_connection_each() {
    run(async {
        let server = Polite::ok();
        let sink = Rc::new(sink(&partner(&server.url())));
        for _round in 0..3 {
            let tasks: Vec<_> = (0..8)
                .map(|_| {
                    let sink = Rc::clone(&sink);
                    tokio::task::spawn_local(async move { answered(&sink, &delivery("x")).await.verdict })
                })
                .collect();
            for task in tasks {
                assert_eq!(task.await.unwrap(), Verdict::Delivered);
            }
        }
        assert_eq!(server.count(), 24);
        assert!(sink.stats().connected <= 8, "{:?}", sink.stats());
    });
}

#[test]
fn a_gate_that_says_no_writes_nothing_and_keeps_the_connection() {
    run(async {
        let (told, got) = std::sync::mpsc::channel();
        let address = raw(move |mut stream, _| {
            let mut bytes = Vec::new();
            let mut buffer = [0; 1024];
            while let Ok(n @ 1..) = stream.read(&mut buffer) {
                bytes.extend_from_slice(&buffer[..n]);
            }
            told.send(bytes).unwrap();
        });
        let sink = sink(&partner(&format!("http://{address}/")));
        let request = sink.prepare(&delivery("x")).unwrap();
        let connection = sink.connect(&request).await.ok().unwrap();
        let sent = sink.send(connection, request, &mut || false).await;
        assert_eq!(sent, Sent::Stopped);
        assert_eq!(sink.stats().connections, 1);
        // The next one gets the same connection.
        let request = sink.prepare(&delivery("x")).unwrap();
        let connection = sink.connect(&request).await.ok().unwrap();
        assert_eq!(sink.stats().connected, 1);
        drop((connection, sink));
        assert_eq!(patience::hear(&got).unwrap(), b"");
    });
}

#[test]
fn the_gate_is_asked_right_before_the_first_byte() {
    run(async {
        let seen = Arc::new(AtomicUsize::new(0));
        let there = Arc::clone(&seen);
        let address = raw(move |mut stream, _| {
            let mut buffer = [0; 1024];
            while let Ok(n @ 1..) = stream.read(&mut buffer) {
                there.fetch_add(n, Ordering::SeqCst);
                say(&mut stream, OK);
            }
        });
        let sink = sink(&partner(&format!("http://{address}/")));
        for _round in 1..=3 {
            let request = sink.prepare(&delivery("x")).unwrap();
            let connection = sink.connect(&request).await.ok().unwrap();
            let before = seen.load(Ordering::SeqCst);
            let asked = std::cell::Cell::new(0);
            let mut gate = || {
                asked.set(asked.get() + 1);
                // Long enough for anything written before to arrive.
                std::thread::sleep(Duration::from_millis(20));
                assert_eq!(seen.load(Ordering::SeqCst), before);
                true
            };
            let mut sending = Box::pin(sink.send(connection, request, &mut gate));
            // One poll is enough to have it written: nobody else runs between gate and write.
            let first = std::future::poll_fn(|cx| std::task::Poll::Ready(sending.as_mut().poll(cx))).await;
            patience::until("a request in each round", || {
                seen.load(Ordering::SeqCst) != before
            });
            let sent = match first {
                std::task::Poll::Ready(sent) => sent,
                std::task::Poll::Pending => sending.await,
            };
            assert!(
                matches!(
                    sent,
                    Sent::Answered(Answer {
                        verdict: Verdict::Delivered,
                        ..
                    })
                ),
                "{sent:?}"
            );
            assert_eq!(asked.get(), 1);
        }
    });
}

#[test]
fn a_connection_that_the_partner_closed_while_idle_is_no_doubt() {
    run(async {
        // Each connection serves one request and is closed then, without saying so before.
        let (closed, was_closed) = std::sync::mpsc::channel();
        let (close, may_close) = std::sync::mpsc::channel();
        let may_close = shared(may_close);
        let served = shared(0);
        let there = Arc::clone(&served);
        let address = raw(move |mut stream, _| {
            if read_request(&mut stream).is_some() {
                *there.lock() += 1;
                say(&mut stream, OK);
            }
            may_close.lock().recv().unwrap();
            drop(stream);
            closed.send(()).unwrap();
        });
        let sink = sink(&partner(&format!("http://{address}/")));
        for i in 1..=5 {
            let answer = answered(&sink, &delivery("x")).await;
            assert_eq!(answer.verdict, Verdict::Delivered, "{answer:?}");
            close.send(()).unwrap();
            patience::hear(&was_closed).unwrap();
            // The runtime looks at its sockets when it has nothing else to do.
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert_eq!(*served.lock(), i);
        }
        assert_eq!(sink.stats().connected, 5);
        assert_eq!(sink.stats().stale, 4);
    });
}

#[test]
fn a_connection_that_closes_between_connect_and_send_is_replaced_before_the_gate() {
    run(async {
        let (closed, was_closed) = std::sync::mpsc::channel();
        let address = raw(move |mut stream, n| {
            if n == 0 {
                drop(stream);
                closed.send(()).unwrap();
                return;
            }
            while read_request(&mut stream).is_some() {
                say(&mut stream, OK);
            }
        });
        let sink = sink(&partner(&format!("http://{address}/")));
        let request = sink.prepare(&delivery("x")).unwrap();
        let connection = sink.connect(&request).await.ok().unwrap();
        patience::hear(&was_closed).unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        let mut asked = 0;
        let sent = sink
            .send(connection, request, &mut || {
                asked += 1;
                true
            })
            .await;
        assert!(
            matches!(
                sent,
                Sent::Answered(Answer {
                    verdict: Verdict::Delivered,
                    ..
                })
            ),
            "{sent:?}"
        );
        assert_eq!((asked, sink.stats().connected), (1, 2));
    });
}

#[test]
fn a_partner_that_closes_every_connection_is_never_in_doubt() {
    run(async {
        let address = raw(|stream, _| drop(stream));
        let sink = sink(&partner(&format!("http://{address}/")));
        let request = sink.prepare(&delivery("x")).unwrap();
        let connection = sink.connect(&request).await.ok().unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        let mut asked = 0;
        let sent = sink
            .send(connection, request, &mut || {
                asked += 1;
                true
            })
            .await;
        // The second connection may be seen to be closed before the gate (never written) or only after the
        // request was on its way.
        match sent {
            Sent::NeverWritten(answer) => {
                assert_eq!(answer.verdict, Verdict::TryLater);
                assert!(reason(&answer).starts_with("connect: "), "{answer:?}");
            }
            Sent::Answered(answer) => {
                assert_eq!(
                    (answer.verdict, asked),
                    (Verdict::Unknown(DoubtCause::Timeout), 1)
                );
            }
            Sent::Stopped | Sent::Moved(..) | Sent::Settling(..) => panic!("the gate said yes"),
        }
        assert!(asked <= 1);
    });
}

#[test]
fn connection_close_is_obeyed() {
    run(async {
        let server = Polite::start(|_| response(200, &[("connection", "close")], "ok"));
        let sink = sink(&partner(&server.url()));
        for _ in 0..3 {
            assert_eq!(answered(&sink, &delivery("x")).await.verdict, Verdict::Delivered);
        }
        assert_eq!(
            sink.stats(),
            SinkStats {
                connections: 0,
                connected: 3,
                connect_failures: 0,
                stale: 0
            }
        );
    });
}

#[test]
fn nobody_there_is_no_doubt() {
    run(async {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let sink_there = sink(&partner(&format!("http://{address}/?token=abcdef")));
        let request = sink_there.prepare(&delivery("x")).unwrap();
        let answer = sink_there.connect(&request).await.err().unwrap();
        assert_eq!((answer.verdict, answer.status), (Verdict::TryLater, 0));
        assert!(
            reason(&answer).starts_with(&format!("connect: {address}: ")),
            "{answer:?}"
        );
        assert_eq!(sink_there.stats().connect_failures, 1);

        let nowhere = sink(&partner("http://no-such-host.invalid/"));
        let request = nowhere.prepare(&delivery("x")).unwrap();
        let answer = nowhere.connect(&request).await.err().unwrap();
        assert_eq!(answer.verdict, Verdict::TryLater);
        assert!(
            reason(&answer).starts_with("connect: no address for no-such-host.invalid"),
            "{answer:?}"
        );
    });
}

#[test]
fn a_connect_that_takes_too_long_is_no_doubt() {
    run(async {
        // A server that never answers the TLS handshake.
        let address = raw(|mut stream, _| {
            let mut buffer = [0; 1024];
            while let Ok(1..) = stream.read(&mut buffer) {}
        });
        let mut config = partner(&format!("https://{address}/"));
        config.timeout.connect = Duration::from_millis(50);
        let sink = sink(&config);
        let request = sink.prepare(&delivery("x")).unwrap();
        let answer = sink.connect(&request).await.err().unwrap();
        assert_eq!(answer.verdict, Verdict::TryLater);
        assert_eq!(reason(&answer), "connect: no connection within 50ms");
    });
}

#[test]
fn what_is_not_needed_is_closed() {
    run(async {
        let server = Polite::ok();
        let sink = sink(&partner(&server.url()));
        let request = sink.prepare(&delivery("x")).unwrap();
        let mut held = Vec::new();
        for _ in 0..5 {
            held.push(sink.connect(&request).await.ok().unwrap());
        }
        drop(held);
        assert_eq!(sink.stats().connections, 5);
        let now = tokio::time::Instant::now();
        // The busiest moment since the last sweep needed all of them, and for one more sweep that counts.
        let one = sink.connect(&request).await.ok().unwrap();
        sink.pool.sweep_once(now);
        assert_eq!(sink.stats().connections, 5);
        sink.pool.sweep_once(now);
        assert_eq!(sink.stats().connections, 5);
        sink.pool.sweep_once(now);
        assert_eq!(sink.stats().connections, 1);
        drop(one);
        sink.pool.sweep_once(now);
        assert_eq!(sink.stats().connections, 1);
        sink.pool.sweep_once(now + Duration::from_secs(100));
        assert_eq!(sink.stats().connections, 0);
    });
}

#[test]
fn a_url_from_the_record_has_a_pool_for_each_host() {
    run(async {
        let (a, b) = (Polite::ok(), Polite::ok());
        let mut config = partner("{{ value }}");
        config.method = "GET".into();
        let sink = sink(&config);
        for _ in 0..3 {
            for server in [&a, &b] {
                let d = delivery(&format!("{}?click=1", server.url()));
                assert_eq!(answered(&sink, &d).await.verdict, Verdict::Delivered);
            }
        }
        for server in [&a, &b] {
            assert_eq!(server.connections.load(Ordering::SeqCst), 1);
            let heard = server.heard.lock();
            assert_eq!(heard.len(), 3);
            assert_eq!(
                (heard[0].method.as_str(), heard[0].uri.as_str()),
                ("GET", "/hook?click=1")
            );
            assert_eq!(heard[0].header("host"), Some(server.address.to_string().as_str()));
            assert!(heard[0].body.is_empty());
        }
    });
}

#[test]
fn a_dropped_send_closes_its_connection() {
    run(async {
        let address = raw(|mut stream, n| {
            while read_request(&mut stream).is_some() {
                if n > 0 {
                    say(&mut stream, OK);
                }
            }
        });
        let sink = sink(&partner(&format!("http://{address}/")));
        let d = delivery("x");
        let dropped = tokio::time::timeout(Duration::from_millis(20), attempt(&sink, &d)).await;
        assert!(dropped.is_err());
        assert_eq!(sink.stats().connections, 0);
        assert_eq!(answered(&sink, &d).await.verdict, Verdict::Delivered);
        assert_eq!(sink.stats().connected, 2);
    });
}
