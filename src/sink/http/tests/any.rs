//! The other client: HTTP/2, redirects, proxies.

use super::server::{Polite, raw, read_request, reset, response, say};
use super::tls::{certificates, server_config};
use super::*;
use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;

fn reqwest(url: &str) -> PartnerConfig {
    let mut config = partner(url);
    config.client = ClientKind::Reqwest;
    config
}

#[test]
fn it_sends_what_the_pool_sends() {
    run(async {
        let server = Polite::ok();
        for config in [partner(&server.url()), reqwest(&server.url())] {
            let answer = answered(&sink(&config), &delivery(r#"{"a":1}"#)).await;
            assert_eq!(answer.verdict, Verdict::Delivered);
        }
        let heard = server.heard.lock();
        let told = |i: usize| {
            let one = &heard[i];
            // reqwest always says that it takes everything.
            let named = one.headers.iter().filter(|(n, _)| *n != http::header::ACCEPT);
            let mut headers: Vec<_> = named.map(|(n, v)| (n.to_string(), v.clone())).collect();
            headers.sort_by(|a, b| a.0.cmp(&b.0));
            (one.method.clone(), one.uri.clone(), one.body.clone(), headers)
        };
        assert_eq!(told(0), told(1));
    });
}

#[test]
fn a_gate_that_says_no_sends_nothing() {
    run(async {
        let server = Polite::ok();
        let sink = sink(&reqwest(&server.url()));
        let request = sink.prepare(&delivery("x")).unwrap();
        let connection = sink.connect(&request).await.ok().unwrap();
        assert_eq!(sink.send(connection, request, &mut || false).await, Sent::Stopped);
        assert_eq!(server.count(), 0);
    });
}

#[test]
fn what_is_doubt_and_what_is_not() {
    run(async {
        let (sent, _) = attempt(
            &sink(&reqwest("http://127.0.0.1:1/?token=abcdef")),
            &delivery("x"),
        )
        .await;
        let Sent::NeverWritten(answer) = sent else {
            panic!("{sent:?}")
        };
        assert_eq!(answer.verdict, Verdict::TryLater);
        assert!(
            reason(&answer).starts_with("connect: ") && !reason(&answer).contains("abcdef"),
            "{answer:?}"
        );

        let unknown = Verdict::Unknown(DoubtCause::Timeout);
        let reset_there = raw(|mut stream, _| {
            read_request(&mut stream);
            reset(stream);
        });
        let answer = answered(&sink(&reqwest(&format!("http://{reset_there}/"))), &delivery("x")).await;
        assert_eq!(answer.verdict, unknown);
        assert!(reason(&answer).starts_with("reset: "), "{answer:?}");

        let garbage = raw(|mut stream, _| {
            read_request(&mut stream);
            say(&mut stream, "SSH-2.0-OpenSSH_9.6\r\n\r\n");
        });
        let answer = answered(&sink(&reqwest(&format!("http://{garbage}/"))), &delivery("x")).await;
        assert_eq!(answer.verdict, unknown);
        assert!(reason(&answer).starts_with("bad answer: "), "{answer:?}");

        let hanging = raw(|mut stream, _| while read_request(&mut stream).is_some() {});
        let mut config = reqwest(&format!("http://{hanging}/"));
        config.connect_timeout = Duration::from_millis(50);
        config.request_timeout = Duration::from_millis(50);
        let answer = answered(&sink(&config), &delivery("x")).await;
        assert_eq!(
            (answer.verdict, reason(&answer)),
            (unknown, "timeout: no answer within 50ms")
        );
    });
}

#[test]
fn redirects_are_followed_only_where_asked() {
    run(async {
        let server = Polite::start(|heard| match heard.uri.as_str() {
            "/hook" => response(307, &[("location", "/there")], ""),
            "/there" => response(200, &[], "ok"),
            _ => response(307, &[("location", "/loop")], ""),
        });
        let mut config = partner(&server.url());
        assert_eq!(
            answered(&sink(&config), &delivery("x")).await.verdict,
            Verdict::Refused
        );
        config.redirects = 2;
        assert_eq!(
            answered(&sink(&config), &delivery("x")).await.verdict,
            Verdict::Delivered
        );
        {
            let heard = server.heard.lock();
            let last = heard.last().unwrap();
            assert_eq!(
                (last.method.as_str(), last.uri.as_str(), &last.body[..]),
                ("POST", "/there", &b"x"[..])
            );
        }
        config.url = format!("http://{}/loop", server.address);
        let answer = answered(&sink(&config), &delivery("x")).await;
        assert_eq!(answer.verdict, Verdict::Unknown(DoubtCause::Timeout));
        assert_eq!(reason(&answer), "bad answer: more redirects than are followed");
    });
}

#[test]
fn a_proxy_is_used() {
    run(async {
        let proxy = Polite::start(|heard| response(200, &[("x-saw", &heard.uri)], "ok"));
        let mut config = partner("http://partner.invalid/hook?n=1");
        config.proxy = Some(format!("http://{}", proxy.address));
        let sink = sink(&config);
        assert_eq!(answered(&sink, &delivery("x")).await.verdict, Verdict::Delivered);
        assert_eq!(proxy.heard.lock()[0].uri, "http://partner.invalid/hook?n=1");
        let found = sink.test().await.unwrap();
        assert!(found.starts_with("proxy: connected to "), "{found}");
    });
}

/// An HTTP/2 server over TLS: answers, refuses the first stream, or goes away before looking at it.
fn h2_server(
    certs: &super::tls::Certificates,
    refuse: Option<h2::Reason>,
) -> (SocketAddr, Arc<parking_lot::Mutex<u32>>) {
    let acceptor = tokio_rustls::TlsAcceptor::from(server_config(certs, &[b"h2"]));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let served = shared(0);
    let there = Arc::clone(&served);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let stream = acceptor.accept(tcp).await.unwrap();
                let mut connection = h2::server::handshake(stream).await.unwrap();
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
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
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
        });
        let mut config = partner(&format!("http://{address}/"));
        config.http2 = true;
        let answer = answered(&sink(&config), &delivery("x")).await;
        assert_eq!(answer.verdict, Verdict::Delivered, "{answer:?}");
    });
}
