use super::*;
use crate::admin::{Client, ClientError, Lines};
use crate::api::*;
use crate::patience;
use parking_lot::Mutex;
use std::io::{Read, Write};
use std::time::Duration;

/// A node that says what it is told to.
#[derive(Default)]
struct Fake {
    orders: Mutex<Vec<OrderRequest>>,
    queries: Mutex<Vec<Query>>,
    level: Mutex<String>,
    imports: AtomicU64,
    draining: bool,
}

fn ready<T: Send + 'static>(result: Result<T, ApiError>) -> Answer<T> {
    Box::pin(std::future::ready(result))
}

impl NodeApi for Fake {
    fn status(&self) -> Answer<Status> {
        let partner = PartnerStatus {
            partner: "<b>acme".into(),
            delivered: 7,
            ..PartnerStatus::default()
        };
        let mut status = Status {
            partners: vec![partner],
            ..Status::default()
        };
        status.node.version = "0.1.0".into();
        ready(Ok(status))
    }
    fn query(&self, query: Query) -> Answer<Reply> {
        self.queries.lock().push(query.clone());
        ready(match query {
            Query::Dead { .. } => Ok(Reply::Messages(Page {
                rows: vec![MessageRow {
                    id: "a-1".into(),
                    ..MessageRow::default()
                }],
                more: true,
                next: None,
            })),
            Query::DedupStats => Err(ApiError::Internal("cannot read /secret/place".into())),
            Query::Story { filter } => Ok(Reply::Story(Story {
                id: filter.ids[0].clone(),
                ..Story::default()
            })),
            _ => Err(ApiError::NotFound("no such message".into())),
        })
    }
    fn order(&self, order: OrderRequest) -> Answer<OrderReport> {
        self.orders.lock().push(order);
        ready(Ok(OrderReport {
            touched: 3,
            ..OrderReport::default()
        }))
    }
    fn export(&self, filter: Filter) -> Answer<Lines> {
        let (tx, rx) = tokio::sync::mpsc::channel(4);
        tokio::spawn(async move {
            for i in 0..1_000 {
                let _ = tx.send(Ok(Exported::Line(format!("{{\"n\":{i}}}")))).await;
            }
            let end = match filter.topic.as_deref() {
                None => Ok(Exported::End),
                Some("fails") => Err(ApiError::Internal("the disk went away".into())),
                // The task that makes the lines is gone.
                Some(_) => return,
            };
            let _ = tx.send(end).await;
        });
        ready(Ok(rx))
    }
    fn import(&self, request: ImportRequest, file: Upload) -> Answer<ImportReport> {
        self.imports.fetch_add(1, Relaxed);
        Box::pin(async move {
            let read = tokio::task::spawn_blocking(move || {
                let mut bytes = Vec::new();
                file.into_reader()
                    .read_to_end(&mut bytes)
                    .map(|_| bytes.len() as u64)
            });
            match read.await {
                Ok(Ok(accepted)) => Ok(ImportReport {
                    name: request.name,
                    topic: request.topic,
                    accepted,
                    ..ImportReport::default()
                }),
                _ => Err(ApiError::Invalid("the file broke off".into())),
            }
        })
    }
    fn send(&self, record: SendRequest) -> Answer<SendReply> {
        ready(Ok(SendReply {
            topic: record.topic,
            partition: 1,
            offset: 2,
            id: None,
            notes: Vec::new(),
        }))
    }
    fn test_partner(&self, partner: String) -> Answer<PartnerTest> {
        ready(Ok(PartnerTest {
            partner,
            ok: true,
            ..PartnerTest::default()
        }))
    }
    fn metrics(&self) -> Answer<String> {
        ready(Ok("# EOF\n".into()))
    }
    fn set_log_level(&self, level: String) -> Result<(), ApiError> {
        *self.level.lock() = level;
        Ok(())
    }
    fn health(&self) -> Health {
        Health::good()
    }
    fn ready(&self) -> Health {
        Health::of(if self.draining {
            vec!["draining".into()]
        } else {
            Vec::new()
        })
    }
}

fn local() -> Option<SocketAddr> {
    Some("127.0.0.1:0".parse().unwrap())
}

fn start(token: Option<&str>, fake: Fake) -> (AdminServer, Arc<Fake>, Client) {
    patience::watch();
    let fake = Arc::new(fake);
    let options = AdminOptions {
        admin: local(),
        probes: local(),
        token: token.map(str::to_owned),
    };
    let server = serve(options, fake.clone()).unwrap();
    let client = Client::new(&server.admin().unwrap().to_string(), token.map(str::to_owned)).unwrap();
    (server, fake, client)
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(patience::within(future))
}

/// A request by hand: what it gets back, head and body.
fn raw(address: SocketAddr, request: &str) -> String {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn get(address: SocketAddr, path: &str) -> String {
    raw(
        address,
        &format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"),
    )
}

#[test]
fn the_client_gets_what_the_node_says() {
    let (_server, fake, client) = start(Some("t0ken"), Fake::default());
    run(async {
        assert_eq!(client.status().await.unwrap().partners[0].delivered, 7);
        let filter = Filter {
            partner: Some("acme & co".into()),
            ..Filter::default()
        };
        let Reply::Messages(page) = client
            .query(&Query::Dead {
                filter: filter.clone(),
            })
            .await
            .unwrap()
        else {
            panic!()
        };
        assert!(page.more && page.rows[0].id == "a-1");
        assert_eq!(
            *fake.queries.lock(),
            [Query::Dead {
                filter: filter.clone()
            }]
        );
        let order = OrderRequest {
            order: Order::Replay {
                filter,
                skipped: false,
            },
            who: "kim".into(),
            why: "fixed".into(),
            dry_run: true,
            expect: None,
        };
        assert_eq!(client.order(&order).await.unwrap().touched, 3);
        assert_eq!(*fake.orders.lock(), [order]);
        assert_eq!(client.test_partner("a/b c+").await.unwrap().partner, "a/b c+");
        let record = SendRequest {
            topic: "orders".into(),
            ..SendRequest::default()
        };
        assert_eq!(client.send(&record).await.unwrap().offset, 2);
        client.set_log_level("debug").await.unwrap();
        assert_eq!(*fake.level.lock(), "debug");
    });
}

#[test]
fn a_file_is_streamed_and_one_that_breaks_off_is_no_file() {
    let (_server, _, client) = start(None, Fake::default());
    let request = ImportRequest {
        topic: "orders".into(),
        name: "a b&c.jsonl".into(),
        ..ImportRequest::default()
    };
    run(async {
        // Larger than the limit of every other body, and than all buffers on the way.
        let piece = Bytes::from(vec![b'x'; 1 << 20]);
        let whole = stream::iter((0..20).map(move |_| Ok(piece.clone())));
        let report = client.import(&request, whole).await.unwrap();
        assert_eq!((report.accepted, report.name.as_str()), (20 << 20, "a b&c.jsonl"));
        let broken = stream::iter([Ok(Bytes::from_static(b"abc")), Err(io::Error::other("disk gone"))]);
        assert!(client.import(&request, broken).await.is_err());
    });
}

#[test]
fn an_export_is_whole_or_an_error() {
    let (_server, _, client) = start(None, Fake::default());
    run(async {
        let mut text = Vec::new();
        client
            .export(&Filter::default(), |piece| text.write_all(piece))
            .await
            .unwrap();
        assert_eq!(text.split(|&b| b == b'\n').count(), 1_001);
        for topic in ["fails", "ends"] {
            let breaks = Filter {
                topic: Some(topic.into()),
                ..Filter::default()
            };
            assert!(client.export(&breaks, |_| Ok(())).await.is_err(), "{topic}");
        }
    });
}

#[test]
fn errors_are_problem_documents() {
    let (server, _, client) = start(None, Fake::default());
    let address = server.admin().unwrap();
    let answer = get(address, "/api/doubt?partner=acme");
    assert!(
        answer.starts_with("HTTP/1.1 404") && answer.contains("application/problem+json"),
        "{answer}"
    );
    assert!(answer.contains("urn:sluicegate:problem:not-found") && answer.contains("no such message"));
    let inside = get(address, "/api/dedup/stats");
    assert!(
        inside.starts_with("HTTP/1.1 500") && !inside.contains("/secret/place"),
        "{inside}"
    );
    for (path, status) in [
        ("/nowhere", "404"),
        ("/api/dead?partnr=acme", "400"),
        ("/api/dead?limit=many", "400"),
        ("/api/message", "400"),
        ("/api/order", "400"),
    ] {
        let answer = get(address, path);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{path}: {answer}"
        );
        assert!(answer.contains("application/problem+json"), "{path}: {answer}");
    }
    run(async {
        let missing = client.query(&Query::Skips).await;
        assert!(
            matches!(missing, Err(ClientError::Api(ApiError::NotFound(_)))),
            "{missing:?}"
        );
    });
}

#[test]
fn without_the_token_nothing_is_told() {
    let (server, fake, _) = start(Some("t0ken"), Fake::default());
    let address = server.admin().unwrap();
    for path in ["/", "/api/status", "/api/dead", "/metrics", "/api/dedup/export"] {
        let answer = get(address, path);
        assert!(
            answer.starts_with("HTTP/1.1 401") && !answer.contains("acme"),
            "{path}: {answer}"
        );
    }
    assert!(get(address, "/healthz").starts_with("HTTP/1.1 200"));
    let stranger = Client::new(&address.to_string(), Some("wrong".into())).unwrap();
    let refused = run(stranger.query(&Query::DedupStats));
    assert!(matches!(refused, Err(ClientError::Api(ApiError::Unauthorized))));
    assert!(fake.queries.lock().is_empty());
    let page = raw(
        address,
        &format!(
            "GET / HTTP/1.1\r\nhost: {address}\r\nauthorization: Basic YW55OnQwa2Vu\r\nconnection: close\r\n\r\n"
        ),
    );
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
}

#[test]
fn a_foreign_name_or_page_is_refused() {
    let (server, fake, _) = start(None, Fake::default());
    let address = server.admin().unwrap();
    let rebound = raw(
        address,
        "GET /api/status HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n",
    );
    assert!(rebound.starts_with("HTTP/1.1 403"), "{rebound}");
    let body = r#"{"order":{"verb":"pause","partner":"acme"}}"#;
    let form = format!(
        "POST /api/order HTTP/1.1\r\nhost: {address}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    assert!(raw(address, &form).starts_with("HTTP/1.1 400"));
    assert!(fake.orders.lock().is_empty());
    let json = form.replace("text/plain", "application/json");
    assert!(raw(address, &json).starts_with("HTTP/1.1 200"));
    assert_eq!(fake.orders.lock().len(), 1);
}

#[test]
fn a_body_beyond_the_bound_is_refused() {
    let (server, _, _) = start(None, Fake::default());
    let address = server.admin().unwrap();
    let head = format!(
        "POST /api/query HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        BODY_LIMIT + 1
    );
    let answer = raw(address, &head);
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[test]
fn the_page_is_escaped_and_closed() {
    let (server, _, _) = start(None, Fake::default());
    let page = get(server.admin().unwrap(), "/");
    assert!(
        page.contains("&lt;b&gt;acme") && !page.contains("<b>acme"),
        "{page}"
    );
    assert!(
        page.contains("default-src 'none'") && page.contains("x-frame-options: DENY"),
        "{page}"
    );
}

#[test]
fn the_probes_port_tells_no_more_than_it_must() {
    let (server, _, _) = start(
        Some("t0ken"),
        Fake {
            draining: true,
            ..Fake::default()
        },
    );
    let probes = server.probes().unwrap();
    assert!(get(probes, "/healthz").starts_with("HTTP/1.1 200"));
    let not_ready = get(probes, "/readyz");
    assert!(
        not_ready.starts_with("HTTP/1.1 503") && not_ready.contains("draining"),
        "{not_ready}"
    );
    assert!(get(probes, "/metrics").contains("# EOF"));
    for path in ["/", "/api/status", "/api/dead"] {
        assert!(get(probes, path).starts_with("HTTP/1.1 404"), "{path}");
    }
}

#[test]
fn an_open_port_without_a_token_is_refused() {
    let options = AdminOptions {
        admin: Some("0.0.0.0:0".parse().unwrap()),
        ..AdminOptions::default()
    };
    assert!(matches!(
        serve(options, Arc::new(Fake::default())),
        Err(AdminError::NeedsToken(_))
    ));
}

#[test]
fn a_taken_port_and_an_absent_node_are_told() {
    let (server, fake, _) = start(None, Fake::default());
    let options = AdminOptions {
        admin: server.admin(),
        ..AdminOptions::default()
    };
    assert!(matches!(
        serve(options, fake),
        Err(AdminError::Bind {
            key: "listen.admin",
            ..
        })
    ));
    let address = server.admin().unwrap();
    server.stop();
    let client = Client::new(&address.to_string(), None).unwrap();
    assert!(matches!(
        run(client.status()),
        Err(ClientError::NotRunning { .. })
    ));
    for wrong in ["", "localhost", "http://", "https://h:1", "user@host:70"] {
        assert!(Client::new(wrong, None).is_err(), "{wrong}");
    }
}

/// Connections that say this and then nothing more.
fn silent(address: SocketAddr, count: usize, say: &str) -> Vec<std::net::TcpStream> {
    let connect = |_| {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(say.as_bytes()).unwrap();
        stream
    };
    (0..count).map(connect).collect()
}

#[test]
fn callers_that_say_nothing_lock_nobody_out() {
    let (server, _, client) = start(None, Fake::default());
    let (admin, probes) = (server.admin().unwrap(), server.probes().unwrap());
    let half = "GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\nx-more";
    let kept = "GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n";
    for say in ["", half, kept] {
        let mut held = silent(admin, 100, say);
        held.extend(silent(probes, 100, say));
        for port in [admin, probes] {
            assert!(get(port, "/healthz").starts_with("HTTP/1.1 200"), "{say}");
            assert!(get(port, "/metrics").contains("# EOF"), "{say}");
        }
        assert_eq!(run(client.status()).unwrap().partners.len(), 1, "{say}");
    }
}

#[test]
fn while_uploads_take_their_time_probes_and_commands_are_answered() {
    let (server, fake, client) = start(None, Fake::default());
    let admin = server.admin().unwrap();
    let head = |what: &str| {
        format!(
            "POST /api/{what} HTTP/1.1\r\nhost: {admin}\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n"
        )
    };
    let uploads = silent(admin, UPLOADS, &head("import?topic=t&name=x"));
    patience::until("all uploads begin", || {
        fake.imports.load(Relaxed) >= UPLOADS as u64
    });
    let request = ImportRequest {
        topic: "t".into(),
        name: "x".into(),
        ..ImportRequest::default()
    };
    let more = run(client.import(&request, stream::iter([Ok(Bytes::from_static(b"x"))])));
    let Err(ClientError::Api(ApiError::Unavailable(why))) = more else {
        panic!("{more:?}");
    };
    assert!(why.contains("32 uploads"), "{why}");
    assert_eq!(run(client.status()).unwrap().partners.len(), 1);
    // All other places busy too: probes are still answered, everything else is refused with a reason.
    // A connection whose head was not read yet may have given way to the one that asks: then one more is needed.
    let mut orders = silent(admin, 64 - UPLOADS, &head("query"));
    let patience = patience::Patience::begin();
    let answer = loop {
        let answer = get(admin, "/api/status");
        if answer.starts_with("HTTP/1.1 503") {
            break answer;
        }
        orders.extend(silent(admin, 1, &head("query")));
        patience.hold("a port without a place", || answer);
    };
    assert!(answer.contains("busy"), "{answer}");
    assert!(get(admin, "/healthz").starts_with("HTTP/1.1 200"));
    assert!(get(admin, "/metrics").contains("# EOF"));
    drop((uploads, orders));
}

#[test]
fn the_end_of_the_server_is_not_the_end_of_a_file() {
    use std::sync::mpsc;
    /// Tells what became of each upload.
    struct Reading(mpsc::Sender<io::Result<usize>>, Fake);
    impl NodeApi for Reading {
        fn import(&self, _: ImportRequest, file: Upload) -> Answer<ImportReport> {
            let told = self.0.clone();
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                let read = file.into_reader().read_to_end(&mut bytes);
                told.send(read).unwrap();
            });
            Box::pin(std::future::pending())
        }
        fn status(&self) -> Answer<Status> {
            self.1.status()
        }
        fn query(&self, query: Query) -> Answer<Reply> {
            self.1.query(query)
        }
        fn order(&self, order: OrderRequest) -> Answer<OrderReport> {
            self.1.order(order)
        }
        fn export(&self, filter: Filter) -> Answer<Lines> {
            self.1.export(filter)
        }
        fn send(&self, record: SendRequest) -> Answer<SendReply> {
            self.1.send(record)
        }
        fn test_partner(&self, partner: String) -> Answer<PartnerTest> {
            self.1.test_partner(partner)
        }
        fn metrics(&self) -> Answer<String> {
            self.1.metrics()
        }
        fn set_log_level(&self, level: String) -> Result<(), ApiError> {
            self.1.set_log_level(level)
        }
        fn health(&self) -> Health {
            self.1.health()
        }
        fn ready(&self) -> Health {
            self.1.ready()
        }
    }
    for (length, body) in [
        ("content-length: 100", "{\"id\":1}\n"),
        ("transfer-encoding: chunked", "9\r\n{\"id\":1}\n\r\n"),
    ] {
        let (told, hears) = mpsc::channel();
        let options = AdminOptions {
            admin: local(),
            ..AdminOptions::default()
        };
        let server = serve(options, Arc::new(Reading(told, Fake::default()))).unwrap();
        let admin = server.admin().unwrap();
        let head = format!(
            "POST /api/import?topic=t&name=x HTTP/1.1\r\nhost: {admin}\r\ncontent-type: application/octet-stream\r\n{length}\r\n\r\n{body}"
        );
        let upload = silent(admin, 1, &head);
        assert!(hears.try_recv().is_err());
        server.stop();
        // The server may have ended before it took the upload up: then nobody reads anything.
        if let Ok(read) = patience::hear(&hears) {
            assert!(read.is_err(), "{length}: {read:?}");
        }
        drop(upload);
    }
}

#[test]
fn a_request_with_two_hosts_is_refused_everywhere() {
    let (server, _, _) = start(None, Fake::default());
    for address in [server.admin().unwrap(), server.probes().unwrap()] {
        for (target, host) in [
            ("/healthz", format!("host: {address}\r\nhost: evil.example")),
            ("http://evil.example/healthz", format!("host: {address}")),
        ] {
            let text = format!("GET {target} HTTP/1.1\r\n{host}\r\nconnection: close\r\n\r\n");
            let answer = raw(address, &text);
            assert!(answer.starts_with("HTTP/1.1 400"), "{target}: {answer}");
        }
    }
}

/// Thirty-two callers that sent a head and fell silent locked every import out for ever.
#[test]
fn an_upload_whose_caller_falls_silent_is_broken_off() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let (sender, upload) = Upload::channel();
    let began = runtime.block_on(async {
        let began = tokio::time::Instant::now();
        let piece = stream::iter([Ok(Bytes::from_static(b"abc"))]);
        feed(Box::pin(piece.chain(stream::pending())), sender, Some(1_000)).await;
        began.elapsed()
    });
    assert_eq!(began, UPLOAD_SILENCE);
    let read = std::io::read_to_string(upload.into_reader());
    let error = read.expect_err("cut off");
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    assert!(error.to_string().contains("after 3 bytes"), "{error}");
}
