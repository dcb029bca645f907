//! HTTP/2, redirects, proxies.

use super::server::{OK, Polite, raw, read_request, response, say, serve};
use super::tls::{certificates, server_config};
use super::*;
use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use std::io::{Read, Write};
use std::net::SocketAddr;

/// What becomes of a message whose redirects are followed, each in an attempt of its own; with the answers on the way.
async fn followed(sink: &HttpSink, d: &Delivery) -> (Sent, Vec<Answer>) {
    let mut request = sink.prepare(d).unwrap();
    let mut on_the_way = Vec::new();
    loop {
        let connection = match sink.connect(&request).await {
            Ok(connection) => connection,
            Err(answer) => return (Sent::NeverWritten(answer), on_the_way),
        };
        let mut asked = 0;
        let sent = sink
            .send(connection, request, &mut || {
                asked += 1;
                true
            })
            .await;
        assert_eq!(asked, 1, "each request has one start");
        match sent {
            Sent::Moved(answer, moved) => {
                on_the_way.push(answer);
                request = sink.prepare_moved(d, &moved).unwrap();
            }
            sent => return (settled(sent).await, on_the_way),
        }
    }
}

/// The same, where a request was written at the end.
async fn led_to(config: &PartnerConfig) -> (Answer, usize) {
    match followed(&sink(config), &delivery("x")).await {
        (Sent::Answered(answer) | Sent::NeverWritten(answer), way) => (answer, way.len()),
        other => panic!("{other:?}"),
    }
}

/// A partner whose `/hook` answers with a redirect of this status to `/new`.
fn redirecting(status: u16) -> Polite {
    Polite::start(move |heard| match heard.uri.as_str() {
        "/hook" => response(status, &[("location", "/new#part")], ""),
        _ => response(200, &[], "ok"),
    })
}

const GATEWAY: Verdict = Verdict::Unknown(DoubtCause::Gateway);

#[test]
fn a_redirect_is_followed_only_where_the_request_stays_what_it_is() {
    run(async {
        for (method, status, wanted) in [
            ("POST", 301, Verdict::Refused),
            ("POST", 302, Verdict::Refused),
            ("POST", 303, GATEWAY),
            ("POST", 307, Verdict::Delivered),
            ("POST", 308, Verdict::Delivered),
            ("PUT", 302, Verdict::Refused),
            ("DELETE", 301, Verdict::Refused),
            ("GET", 301, Verdict::Delivered),
            ("GET", 302, Verdict::Delivered),
            ("GET", 303, Verdict::Delivered),
            ("GET", 307, Verdict::Delivered),
        ] {
            let server = redirecting(status);
            let mut config = partner(&server.url());
            config.method = method.into();
            // By default none is followed.
            let (answer, _) = led_to(&config).await;
            assert_eq!(
                answer.verdict,
                if status == 303 { GATEWAY } else { Verdict::Refused }
            );
            assert_eq!(server.count(), 1);
            config.redirects = 3;
            let (answer, hops) = led_to(&config).await;
            assert_eq!(answer.verdict, wanted, "{method} {status}: {answer:?}");
            let heard = server.heard.lock();
            let last = heard.last().unwrap();
            if wanted == Verdict::Delivered {
                assert_eq!(
                    (hops, last.method.as_str(), last.uri.as_str()),
                    (1, method, "/new")
                );
                let body = if method == "GET" { "" } else { "x" };
                assert_eq!(&last.body[..], body.as_bytes());
                assert_eq!(last.header("idempotency-key"), heard[1].header("idempotency-key"));
            } else {
                assert_eq!((hops, heard.len()), (0, 2));
                assert!(reason(&answer).contains("/new"), "where it leads: {answer:?}");
            }
        }
    });
}

#[test]
fn a_loop_of_redirects_is_not_taken() {
    run(async {
        let server = Polite::start(|_| response(307, &[("location", "/hook")], ""));
        let mut config = partner(&server.url());
        config.redirects = 3;
        let (answer, hops) = led_to(&config).await;
        assert_eq!((answer.verdict, answer.status, hops), (Verdict::Refused, 307, 3));
        assert_eq!(server.count(), 4);
        assert!(
            reason(&answer).contains("more redirects than `redirects` allows"),
            "{answer:?}"
        );
        let nowhere = Polite::start(|_| response(307, &[], ""));
        config.url = nowhere.url();
        assert_eq!(led_to(&config).await.0.verdict, Verdict::Refused);
        let odd = Polite::start(|_| response(308, &[("location", "ftp://x/")], ""));
        config.url = odd.url();
        assert_eq!(led_to(&config).await.0.verdict, Verdict::Refused);
        // A rule goes before.
        let server = redirecting(307);
        config.url = server.url();
        config.verdict = vec![VerdictRuleConfig {
            when: "status == 307".into(),
            is: RuleVerdict::Unknown,
            reason: None,
            after: None,
            scope: None,
        }];
        let (answer, hops) = led_to(&config).await;
        assert_eq!((answer.verdict, hops, server.count()), (GATEWAY, 0, 1));
    });
}

#[test]
fn what_comes_behind_a_redirect_is_not_the_word_of_the_first_address() {
    run(async {
        for (status, method) in [(307, "POST"), (302, "GET"), (303, "GET")] {
            for behind in [404, 503] {
                let server = Polite::start(move |heard| match heard.uri.as_str() {
                    "/hook" => response(status, &[("location", "/new")], ""),
                    _ => response(behind, &[], ""),
                });
                let mut config = partner(&server.url());
                config.method = method.into();
                config.redirects = 1;
                let (answer, _) = led_to(&config).await;
                // 307: certainly not taken by the first, so the second's word is the last.
                let wanted = match (status, behind) {
                    (307, 404) => Verdict::Refused,
                    (307, _) => Verdict::TryLater,
                    _ => GATEWAY,
                };
                assert_eq!(answer.verdict, wanted, "{status} {behind}: {answer:?}");
            }
            // Nobody there.
            let server =
                Polite::start(move |_| response(status, &[("location", "http://127.0.0.1:1/new")], ""));
            let mut config = partner(&server.url());
            config.method = method.into();
            config.redirects = 1;
            config.redirect_to = vec!["http://127.0.0.1:1".into()];
            let (answer, hops) = led_to(&config).await;
            let wanted = if status == 307 { Verdict::TryLater } else { GATEWAY };
            assert_eq!((answer.verdict, hops), (wanted, 1), "{status}: {answer:?}");
        }
    });
}

#[test]
fn nothing_that_tells_who_asks_goes_to_another_origin() {
    run(async {
        let other = Polite::ok();
        let to = format!("http://localhost:{}/x?a=1", other.address.port());
        let there = to.clone();
        let server = Polite::start(move |_| response(307, &[("location", &there)], ""));
        let mut config = partner(&format!("http://user:pass@{}/hook", server.address));
        config.redirects = 3;
        config.headers = vec![
            ("x-api-key".into(), "literal-key-0123".into()),
            ("authorization".into(), "Bearer t0ken".into()),
            ("cookie".into(), "s=1".into()),
        ];
        let (answer, _) = led_to(&config).await;
        assert_eq!((answer.verdict, other.count()), (Verdict::Refused, 0));
        assert!(reason(&answer).contains("another origin"), "{answer:?}");

        config.redirect_to = vec![format!("http://localhost:{}/", other.address.port())];
        let (answer, _) = led_to(&config).await;
        assert_eq!(answer.verdict, Verdict::Delivered, "{answer:?}");
        let heard = other.heard.lock();
        let names: Vec<_> = heard[0].headers.keys().map(|n| n.as_str().to_owned()).collect();
        for secret in ["x-api-key", "authorization", "cookie", "referer"] {
            assert!(!names.contains(&secret.to_owned()), "{names:?}");
        }
        let host = format!("localhost:{}", other.address.port());
        assert_eq!(
            (heard[0].header("host"), heard[0].uri.as_str()),
            (Some(&*host), "/x?a=1")
        );
        assert_eq!(&heard[0].body[..], b"x");
        assert!(heard[0].header("idempotency-key").is_some());
    });
}

#[test]
fn within_its_origin_a_redirect_keeps_credentials() {
    run(async {
        let server = redirecting(308);
        let mut config = partner(&format!("http://user:pass@{}/hook", server.address));
        config.redirects = 1;
        config.headers = vec![("x-api-key".into(), "k".into())];
        assert_eq!(led_to(&config).await.0.verdict, Verdict::Delivered);
        let heard = server.heard.lock();
        let last = heard.last().unwrap();
        assert_eq!(last.header("x-api-key"), Some("k"));
        assert!(last.header("authorization").is_some());
    });
}

#[test]
fn a_redirect_never_settles_a_doubt() {
    run(async {
        let server = Polite::start(|heard| match heard.uri.as_str() {
            "/look" => response(302, &[("location", "/login")], ""),
            _ => response(200, &[], "please log in"),
        });
        let mut config = partner(&server.url());
        config.redirects = 3;
        config.verify = Some(VerifyConfig::new(
            format!("http://{}/look", server.address),
            "status == 200 or status == 302",
            "status == 404",
            Duration::from_secs(5),
        ));
        let verified = sink(&config).verify(&delivery("x")).await;
        assert!(
            matches!(verified, crate::sink::Verified::Unclear(_)),
            "{verified:?}"
        );
        assert_eq!(server.count(), 1);
    });
}

#[test]
fn a_gate_that_says_no_sends_nothing_over_http2() {
    run(async {
        let certs = certificates("localhost");
        let (address, served) = h2_server(&certs, None);
        let sink = sink(&h2_config(&certs, address));
        let request = sink.prepare(&delivery("x")).unwrap();
        let connection = sink.connect(&request).await.ok().unwrap();
        assert_eq!(sink.send(connection, request, &mut || false).await, Sent::Stopped);
        assert_eq!(answered(&sink, &delivery("x")).await.verdict, Verdict::Delivered);
        assert_eq!(*served.lock(), 1);
    });
}

#[test]
fn a_proxy_is_told_the_whole_url_and_who_asks() {
    run(async {
        let proxy = Polite::start(|heard| response(200, &[("x-saw", &heard.uri)], "ok"));
        let mut config = partner("http://partner.invalid/hook?n=1");
        config.proxy = Some(format!("http://u:p@{}", proxy.address));
        let sink = sink(&config);
        for _ in 0..3 {
            assert_eq!(answered(&sink, &delivery("x")).await.verdict, Verdict::Delivered);
        }
        assert_eq!(sink.stats().connected, 1);
        {
            let heard = proxy.heard.lock();
            assert_eq!(heard[0].uri, "http://partner.invalid/hook?n=1");
            assert_eq!(heard[0].header("host"), Some("partner.invalid"));
            assert_eq!(heard[0].header("proxy-authorization"), Some("Basic dTpw"));
        }
        let found = sink.test().await.unwrap();
        assert!(found.starts_with("connected to the proxy at "), "{found}");
    });
}

/// Copies both ways until one side ends.
fn pipe(mut a: std::net::TcpStream, mut b: std::net::TcpStream) {
    let (mut a2, mut b2) = (a.try_clone().unwrap(), b.try_clone().unwrap());
    std::thread::spawn(move || std::io::copy(&mut a, &mut b).map(|_| b.shutdown(std::net::Shutdown::Both)));
    let _ended = std::io::copy(&mut b2, &mut a2);
}

#[test]
fn https_goes_through_a_tunnel_and_a_test_of_the_connection_too() {
    run(async {
        let certs = certificates("localhost");
        let (address, served) = h2_server(&certs, None);
        let heads = shared(Vec::new());
        let there = Arc::clone(&heads);
        let proxy = raw(move |mut stream, _| {
            let head = read_request(&mut stream).unwrap();
            there.lock().push(String::from_utf8(head).unwrap());
            say(&mut stream, "HTTP/1.1 200 Connection established\r\n\r\n");
            pipe(stream, std::net::TcpStream::connect(address).unwrap());
        });
        let mut config = h2_config(&certs, address);
        config.proxy = Some(format!("http://u:p@{proxy}"));
        let sink = sink(&config);
        assert_eq!(answered(&sink, &delivery("x")).await.verdict, Verdict::Delivered);
        assert_eq!(*served.lock(), 1);
        let head = heads.lock()[0].clone();
        assert!(
            head.starts_with(&format!("CONNECT localhost:{} HTTP/1.1\r\n", address.port()))
                && head
                    .to_ascii_lowercase()
                    .contains("proxy-authorization: basic dtpw"),
            "{head}"
        );
        let found = sink.test().await.unwrap();
        assert!(
            found.starts_with("connected to the partner through the proxy at "),
            "{found}"
        );

        // The partner behind it is what is tested, not the proxy.
        let mut wrong = config.clone();
        wrong.ca = None;
        let why = super::sink(&wrong).test().await.unwrap_err();
        assert!(why.contains("UnknownIssuer"), "{why}");
        let refusing = raw(|mut stream, _| {
            read_request(&mut stream);
            say(
                &mut stream,
                "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n",
            );
        });
        config.proxy = Some(format!("http://{refusing}"));
        let why = super::sink(&config).test().await.unwrap_err();
        assert!(why.starts_with("connect: the proxy made no connection"), "{why}");
    });
}

#[test]
fn socks_proxies() {
    run(async {
        let server = Polite::ok();
        let address = server.address;
        let asked = shared(Vec::new());
        let there = Arc::clone(&asked);
        let proxy = raw(move |mut stream, _| {
            let mut head = [0; 3];
            stream.read_exact(&mut head).unwrap();
            stream.write_all(&[5, 0]).unwrap();
            let mut request = [0; 5];
            stream.read_exact(&mut request).unwrap();
            let rest = if request[3] == 1 {
                5
            } else {
                usize::from(request[4]) + 2
            };
            let mut more = vec![0; rest];
            stream.read_exact(&mut more).unwrap();
            there.lock().push(request[3]);
            stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).unwrap();
            pipe(stream, std::net::TcpStream::connect(address).unwrap());
        });
        let mut config = partner(&format!("http://localhost:{}/hook", address.port()));
        // The proxy hears an address where names are resolved here, else the name.
        for (scheme, kind) in [("socks5", 1), ("socks5h", 3)] {
            config.proxy = Some(format!("{scheme}://{proxy}"));
            let answer = answered(&sink(&config), &delivery("x")).await;
            assert_eq!(answer.verdict, Verdict::Delivered, "{answer:?}");
            let told = asked.lock().pop().unwrap();
            // localhost may be an IPv6 address first.
            assert!(told == kind || (kind == 1 && told == 4), "{scheme}: {told}");
        }
        let heard = server.heard.lock();
        assert_eq!(heard[0].uri, "/hook");
    });
}

#[test]
fn requests_that_waited_for_one_slow_connect_each_ask_their_gate() {
    run(async {
        let certs = certificates("localhost");
        let (address, served) = h2_server(&certs, None);
        // The way there takes long, once.
        let slow = raw(move |stream, _| {
            std::thread::sleep(Duration::from_millis(300));
            pipe(stream, std::net::TcpStream::connect(address).unwrap());
        });
        let mut config = h2_config(&certs, slow);
        config.timeout.connect = Duration::from_secs(5);
        let sink = Rc::new(sink(&config));
        let begun = Instant::now();
        let tasks: Vec<_> = (0..20)
            .map(|i| {
                let sink = Rc::clone(&sink);
                tokio::task::spawn_local(async move {
                    let request = sink.prepare(&delivery("x")).unwrap();
                    let connection = sink.connect(&request).await.ok().unwrap();
                    // As the limiter does: a slot of a certain time, given when the connection is there; half are over.
                    let mut asked_at = None;
                    let sent = sink
                        .send(connection, request, &mut || {
                            asked_at = Some(begun.elapsed());
                            i % 2 == 0
                        })
                        .await;
                    (sent, asked_at.unwrap())
                })
            })
            .collect();
        let mut delivered = 0;
        for task in tasks {
            let (sent, asked_at) = task.await.unwrap();
            assert!(
                asked_at >= Duration::from_millis(300),
                "the connection was in hand first"
            );
            match sent {
                Sent::Answered(answer) if answer.verdict == Verdict::Delivered => delivered += 1,
                Sent::Stopped => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((delivered, *served.lock()), (10, 10));
        assert_eq!(sink.stats().connected, 1, "they share it");
    });
}

#[test]
fn where_an_http2_partner_is_down_those_who_wait_are_told_together() {
    run(async {
        let mut config = partner("https://localhost:1/");
        config.http2 = true;
        // Accepts and says nothing.
        let silent = raw(|mut stream, _| {
            drop(
                stream
                    .read(&mut [0; 64])
                    .map(|_| std::thread::sleep(Duration::from_secs(9))),
            )
        });
        config.url = format!("https://127.0.0.1:{}/", silent.port());
        config.timeout.connect = Duration::from_millis(200);
        let sink = Rc::new(sink(&config));
        let begun = Instant::now();
        let tasks: Vec<_> = (0..20)
            .map(|_| {
                let sink = Rc::clone(&sink);
                tokio::task::spawn_local(async move { attempt(&sink, &delivery("x")).await.0 })
            })
            .collect();
        for task in tasks {
            let sent = task.await.unwrap();
            assert!(
                matches!(&sent, Sent::NeverWritten(a) if a.verdict == Verdict::TryLater),
                "{sent:?}"
            );
        }
        assert!(
            begun.elapsed() < Duration::from_millis(1_900),
            "not one after the other"
        );
    });
}

#[test]
fn a_partner_that_does_not_speak_http2_is_spoken_to_as_it_can() {
    run(async {
        let certs = certificates("localhost");
        let tls = server_config(&certs, &[b"http/1.1"]);
        let address = raw(move |mut tcp, _| {
            let mut session = rustls::ServerConnection::new(Arc::clone(&tls)).unwrap();
            let mut buffer = [0; 4096];
            loop {
                let mut stream = rustls::Stream::new(&mut session, &mut tcp);
                match stream.read(&mut buffer) {
                    Ok(n @ 1..) if buffer[..n].ends_with(b"x") => stream.write_all(OK.as_bytes()).unwrap(),
                    Ok(1..) => {}
                    _ => return,
                }
            }
        });
        let sink = sink(&h2_config(&certs, address));
        for _ in 0..3 {
            assert_eq!(answered(&sink, &delivery("x")).await.verdict, Verdict::Delivered);
        }
        assert_eq!(sink.stats().connected, 1);
    });
}

/// An HTTP/2 server over TLS: answers, refuses the first stream, or goes away before looking at it.
fn h2_server(
    certs: &super::tls::Certificates,
    refuse: Option<h2::Reason>,
) -> (SocketAddr, Arc<parking_lot::Mutex<u32>>) {
    let acceptor = tokio_rustls::TlsAcceptor::from(server_config(certs, &[b"h2"]));
    let served = shared(0);
    let there = Arc::clone(&served);
    let address = serve(move |listener| async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            // A test of the connection ends here.
            let Ok(stream) = acceptor.accept(tcp).await else {
                continue;
            };
            let Ok(mut connection) = h2::server::handshake(stream).await else {
                continue;
            };
            let served = Arc::clone(&there);
            tokio::spawn(async move {
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    assert_eq!(request.version(), http::Version::HTTP_2);
                    if let Some(reason) = refuse {
                        respond.send_reset(reason);
                        continue;
                    }
                    *served.lock() += 1;
                    let response = Response::builder().status(200).body(()).unwrap();
                    let mut stream = respond.send_response(response, false).unwrap();
                    stream.send_data(Bytes::from_static(b"ok"), true).unwrap();
                }
            });
        }
    });
    (address, served)
}

fn h2_config(certs: &super::tls::Certificates, address: SocketAddr) -> PartnerConfig {
    let mut config = partner(&format!("https://localhost:{}/hook", address.port()));
    config.http2 = true;
    config.ca = Some(certs.ca.path().to_owned());
    config
}

#[test]
fn http2_over_tls() {
    run(async {
        let certs = certificates("localhost");
        let (address, served) = h2_server(&certs, None);
        let sink = sink(&h2_config(&certs, address));
        for _ in 0..3 {
            let answer = answered(&sink, &delivery("x")).await;
            assert_eq!(answer.verdict, Verdict::Delivered, "{answer:?}");
        }
        assert_eq!(*served.lock(), 3);
        let found = sink.test().await.unwrap();
        assert!(found.ends_with("protocol h2"), "{found}");
    });
}

#[test]
fn a_refused_stream_is_no_doubt_and_a_reset_one_is() {
    run(async {
        let certs = certificates("localhost");
        let (address, _) = h2_server(&certs, Some(h2::Reason::REFUSED_STREAM));
        let (sent, _) = attempt(&sink(&h2_config(&certs, address)), &delivery("x")).await;
        let Sent::NeverWritten(answer) = sent else {
            panic!("{sent:?}")
        };
        assert_eq!(answer.verdict, Verdict::TryLater, "{answer:?}");

        let (address, _) = h2_server(&certs, Some(h2::Reason::INTERNAL_ERROR));
        let answer = answered(&sink(&h2_config(&certs, address)), &delivery("x")).await;
        assert_eq!(
            answer.verdict,
            Verdict::Unknown(DoubtCause::Timeout),
            "{answer:?}"
        );
    });
}

#[test]
fn http2_without_tls_is_spoken_at_once() {
    run(async {
        let address = serve(move |listener| async move {
            let (tcp, _) = listener.accept().await.unwrap();
            let service =
                hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                    assert_eq!(request.version(), http::Version::HTTP_2);
                    Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from_static(b"ok"))))
                });
            let executor = hyper_util::rt::TokioExecutor::new();
            let served = hyper::server::conn::http2::Builder::new(executor)
                .serve_connection(TokioIo::new(tcp), service)
                .await;
            served.unwrap_or_default();
        });
        let mut config = partner(&format!("http://{address}/"));
        config.http2 = true;
        let answer = answered(&sink(&config), &delivery("x")).await;
        assert_eq!(answer.verdict, Verdict::Delivered, "{answer:?}");
    });
}

/// A partner that closes its connection (GOAWAY) after each answer, as before a deployment.
#[test]
fn a_connection_that_goes_away_is_no_doubt_and_is_replaced() {
    run(async {
        let certs = certificates("localhost");
        let acceptor = tokio_rustls::TlsAcceptor::from(server_config(&certs, &[b"h2"]));
        let address = serve(move |listener| async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let stream = acceptor.accept(tcp).await.unwrap();
                let mut connection = h2::server::handshake(stream).await.unwrap();
                tokio::spawn(async move {
                    while let Some(Ok((_, mut respond))) = connection.accept().await {
                        let response = Response::builder().status(200).body(()).unwrap();
                        respond.send_response(response, true).unwrap();
                        connection.graceful_shutdown();
                    }
                });
            }
        });
        let sink = sink(&h2_config(&certs, address));
        for _ in 0..5 {
            let (sent, _) = attempt(&sink, &delivery("x")).await;
            assert!(
                matches!(&sent, Sent::Answered(a) if a.verdict == Verdict::Delivered)
                    || matches!(&sent, Sent::NeverWritten(a) if a.verdict == Verdict::TryLater),
                "{sent:?}"
            );
        }
        assert!(sink.stats().connected >= 2, "{:?}", sink.stats());
    });
}
