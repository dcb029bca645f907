use super::*;
use crate::admin::{Client, ClientError, Lines};
use crate::api::*;
use parking_lot::Mutex;
use std::io::{Read, Write};
use std::time::Duration;

/// A node that says what it is told to.
#[derive(Default)]
struct Fake {
    orders: Mutex<Vec<OrderRequest>>,
    queries: Mutex<Vec<Query>>,
    level: Mutex<String>,
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
        ready(Ok(Status {
            partners: vec![partner],
            ..Status::default()
        }))
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
                let _ = tx.send(Ok(format!("{{\"n\":{i}}}"))).await;
            }
            if filter.topic.is_some() {
                let _ = tx
                    .send(Err(ApiError::Internal("the disk went away".into())))
                    .await;
            }
        });
        ready(Ok(rx))
    }
    fn import(&self, request: ImportRequest, file: Upload) -> Answer<ImportReport> {
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
        .block_on(future)
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
        let breaks = Filter {
            topic: Some("orders".into()),
            ..Filter::default()
        };
        assert!(client.export(&breaks, |_| Ok(())).await.is_err());
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
