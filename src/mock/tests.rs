//! Every behaviour of the mock, seen by a raw client.

use super::*;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

fn behaviour(fields: serde_json::Value) -> Behaviour {
    Behaviour::default().changed(&fields).expect("behaviour")
}

fn mock(fields: serde_json::Value) -> MockHandle {
    crate::patience::watch();
    Mock::start(MockOptions::on_free_port(behaviour(fields))).expect("mock")
}

/// A keep-alive client on a blocking socket.
struct Client {
    stream: TcpStream,
    rest: Vec<u8>,
}

impl Client {
    fn to(mock: &MockHandle) -> Self {
        let stream = TcpStream::connect(mock.addr()).expect("connect");
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("timeout");
        Self {
            stream,
            rest: Vec::new(),
        }
    }
    fn send(&mut self, text: &str) -> &mut Self {
        self.stream.write_all(text.as_bytes()).expect("write");
        self
    }
    /// Reads one answer: status, head, body.
    fn answer(&mut self) -> std::io::Result<(u16, String, Vec<u8>)> {
        let end = |rest: &[u8]| rest.windows(4).position(|w| w == b"\r\n\r\n");
        while end(&self.rest).is_none() {
            self.more()?;
        }
        let head_end = end(&self.rest).expect("found") + 4;
        let head = String::from_utf8(self.rest[..head_end].to_vec()).expect("head");
        let length = head
            .lines()
            .find_map(|l| l.strip_prefix("content-length: "))
            .map_or(0, |n| n.parse::<usize>().expect("length"));
        while self.rest.len() < head_end + length {
            self.more()?;
        }
        let body = self.rest[head_end..head_end + length].to_vec();
        self.rest.drain(..head_end + length);
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|s| s.parse().ok())
            .expect("status");
        Ok((status, head, body))
    }
    fn more(&mut self) -> std::io::Result<()> {
        let mut part = [0; 65_536];
        match self.stream.read(&mut part)? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => {
                self.rest.extend_from_slice(&part[..n]);
                Ok(())
            }
        }
    }
    fn post(&mut self, path: &str, id: &str, body: &str) -> std::io::Result<(u16, String, Vec<u8>)> {
        let length = body.len();
        self.send(&format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nIdempotency-Key: {id}\r\ncontent-length: {length}\r\n\r\n{body}"
        ));
        self.answer()
    }
    fn get_json(&mut self, path: &str) -> serde_json::Value {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n"));
        let (status, _, body) = self.answer().expect("answer");
        assert_eq!(status, 200);
        serde_json::from_slice(&body).expect("json")
    }
}

#[test]
fn counts_each_id_and_answers_the_look_up() {
    let mock = mock(serde_json::json!({}));
    let mut client = Client::to(&mock);
    for id in ["a", "b", "a"] {
        assert_eq!(client.post("/hook", id, "{}").expect("answer").0, 200);
    }
    assert_eq!(
        client.get_json("/lookup/a"),
        serde_json::json!({"known": true, "requests": 2, "applied": 2})
    );
    assert_eq!(client.get_json("/lookup/%62")["known"], true);
    assert_eq!(client.get_json("/lookup/c")["known"], false);
    assert_eq!(client.get_json("/report")["requests"], 3);
    let report = mock.partner("partner").expect("report");
    assert_eq!(
        (
            report.requests,
            report.ids,
            report.applied,
            report.ids_applied_again
        ),
        (3, 2, 3, 1)
    );
    assert_eq!(report.requested_again[0].id, "a");
    assert_eq!(
        (report.lookups, report.connections, report.statuses[&200]),
        (3, 1, 3)
    );
    assert_eq!(report.windows[0].max, 3);
}

#[test]
fn an_idempotent_partner_answers_a_repeat_and_applies_it_once() {
    let mock = mock(serde_json::json!({"idempotent": true}));
    let mut client = Client::to(&mock);
    for _ in 0..3 {
        assert_eq!(client.post("/", "a", "").expect("answer").0, 200);
    }
    let report = mock.partner("partner").expect("report");
    assert_eq!(
        (
            report.applied,
            report.requests_after_applied,
            report.ids_applied_again
        ),
        (1, 2, 0)
    );
}

#[test]
fn its_own_limit_says_when_to_come_back() {
    let mock = mock(serde_json::json!({"limits": ["2/10s"], "ratelimit_headers": true}));
    let mut client = Client::to(&mock);
    let (_, head, _) = client.post("/", "a", "").expect("answer");
    assert!(
        head.contains("ratelimit-limit: 2\r\nratelimit-remaining: 1\r\n"),
        "{head}"
    );
    client.post("/", "b", "").expect("answer");
    let (status, head, _) = client.post("/", "c", "").expect("answer");
    assert_eq!(status, 429);
    assert!(
        head.contains("retry-after: 10\r\n") || head.contains("retry-after: 9\r\n"),
        "{head}"
    );
    mock.control("partner", &serde_json::json!({"retry_after": "date:5s"}))
        .expect("control");
    let (_, head, _) = client.post("/", "c", "").expect("answer");
    let date = head
        .lines()
        .find_map(|l| l.strip_prefix("retry-after: "))
        .expect("date");
    assert!(httpdate::parse_http_date(date).is_ok(), "{date}");
    assert_eq!(mock.id("partner", "c").expect("count").applied, 0);
    assert_eq!(mock.partner("partner").expect("report").limited, 2);
}

#[test]
fn resets_leave_the_sender_with_an_error_and_are_applied_as_set() {
    for (fault, doubt, applied) in [
        ("reset-after-read", 1.0, 1),
        ("reset-after-read", 0.0, 0),
        ("reset-before-read", 1.0, 0),
    ] {
        let mock = mock(serde_json::json!({"faults": [fault], "applied_in_doubt": doubt}));
        let error = Client::to(&mock).post("/", "a", "{}").expect_err("no answer");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{fault}");
        let count = mock.id("partner", "a").expect("count");
        assert_eq!((count.requests, count.applied), (1, applied), "{fault} {doubt}");
        let report = mock.partner("partner").expect("report");
        assert_eq!(
            (report.faults[fault], report.unanswered, report.in_flight),
            (1, 1, 0)
        );
    }
}

#[test]
fn a_large_body_is_reset_before_it_was_read() {
    let mock = mock(serde_json::json!({"faults": ["reset-before-read"]}));
    let mut client = Client::to(&mock);
    client.send("POST / HTTP/1.1\r\nIdempotency-Key: a\r\ncontent-length: 100000000\r\n\r\nfirst bytes");
    assert_eq!(
        client.answer().expect_err("reset").kind(),
        std::io::ErrorKind::ConnectionReset
    );
    assert_eq!(mock.id("partner", "a").expect("count").requests, 1);
}

#[test]
fn a_hang_lasts_until_the_client_goes() {
    let mock = mock(serde_json::json!({"faults": ["hang"]}));
    let mut client = Client::to(&mock);
    client
        .stream
        .set_read_timeout(Some(Duration::from_millis(50)))
        .expect("timeout");
    let error = client.post("/", "a", "{}").expect_err("no answer");
    assert!(matches!(
        error.kind(),
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
    ));
    assert_eq!(mock.partner("partner").expect("report").in_flight, 1);
    drop(client);
    let begun = Instant::now();
    while mock.partner("partner").expect("report").in_flight > 0 {
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "the hanging request never ended"
        );
        std::thread::yield_now();
    }
    mock.control("partner", &serde_json::json!({"faults": ["hang:60ms"]}))
        .expect("control");
    let begun = Instant::now();
    assert_eq!(Client::to(&mock).post("/", "b", "").expect("late").0, 200);
    assert!(begun.elapsed() >= Duration::from_millis(60));
}

#[test]
fn broken_answers_are_broken_as_named() {
    let mock = mock(serde_json::json!({"faults": ["garbage"]}));
    let mut all = Vec::new();
    let mut client = Client::to(&mock);
    client.send("POST / HTTP/1.1\r\nIdempotency-Key: a\r\ncontent-length: 0\r\n\r\n");
    client
        .stream
        .read_to_end(&mut all)
        .expect("garbage, then the end");
    assert!(!all.is_empty() && !all.starts_with(b"HTTP"));

    let set = |fault: &str| {
        mock.control("partner", &serde_json::json!({"faults": [fault]}))
            .expect("control");
    };
    for fault in ["half", "close"] {
        set(fault);
        let error = Client::to(&mock).post("/", "b", "").expect_err(fault);
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof, "{fault}");
    }
    set("huge:3000000");
    let mut client = Client::to(&mock);
    assert_eq!(client.post("/", "c", "").expect("huge").2.len(), 3_000_000);
    set("drip:1ms");
    let begun = Instant::now();
    let (status, head, body) = client.post("/", "d", "").expect("drip");
    assert!(begun.elapsed() >= Duration::from_millis((head.len() + body.len()) as u64));
    assert_eq!(status, 200);
    set("error-body");
    let (status, _, body) = client.post("/", "e", "").expect("error");
    let body: serde_json::Value = serde_json::from_slice(&body).expect("json");
    assert!(status == 200 && body["code"] == 17);
    assert_eq!(mock.id("partner", "e").expect("count").applied, 0);
}

#[test]
fn a_partner_that_is_down_refuses_connections_and_comes_back() {
    let options = MockOptions {
        control: Some(([127, 0, 0, 1], 0).into()),
        ..MockOptions::on_free_port(behaviour(serde_json::json!({})))
    };
    let mock = Mock::start(options).expect("mock");
    let mut before = Client::to(&mock);
    assert_eq!(before.post("/", "a", "").expect("up").0, 200);
    let mut control = Client {
        stream: TcpStream::connect(mock.control_addr()).expect("control"),
        rest: Vec::new(),
    };
    let (status, _, _) = control
        .post("/control", "", r#"{"faults": ["down"]}"#)
        .expect("answer");
    assert_eq!(status, 200);
    let begun = Instant::now();
    // One that is just being made while the listener closes is reset.
    let is_refused = |e: std::io::Error| e.kind() == std::io::ErrorKind::ConnectionRefused;
    while !TcpStream::connect(mock.addr()).is_err_and(is_refused) {
        assert!(begun.elapsed() < Duration::from_secs(5), "still up");
    }
    assert!(before.post("/", "b", "").is_err(), "open connections end too");
    assert_eq!(
        control
            .post("/control", "", r#"{"faults": []}"#)
            .expect("answer")
            .0,
        200
    );
    let begun = Instant::now();
    while TcpStream::connect(mock.addr()).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(5), "still down");
    }
    assert_eq!(Client::to(&mock).post("/", "b", "").expect("up again").0, 200);
    let (status, _, body) = control
        .post("/control", "", r#"{"latenzy": "1s"}"#)
        .expect("answer");
    assert!(status == 400 && String::from_utf8_lossy(&body).contains("latenzy"));
}

#[test]
fn a_script_changes_answers_midway_by_count() {
    let mock = mock(serde_json::json!({"script": ["up 2x", "503 3x", "429 1x", "up"], "retry_after": "2s"}));
    let mut client = Client::to(&mock);
    let statuses: Vec<u16> = (0..8)
        .map(|i| client.post("/", &i.to_string(), "").expect("answer").0)
        .collect();
    assert_eq!(statuses, [200, 200, 503, 503, 503, 429, 200, 200]);
}

#[test]
fn rules_pick_out_a_key_and_order_is_watched() {
    let mut options = MockOptions::on_free_port(behaviour(serde_json::json!({"rules": ["key=slow* 503"]})));
    options.partners[0].key = Some("json:/user".parse().expect("field"));
    options.partners[0].seq = Some("json:/n".parse().expect("field"));
    let mock = Mock::start(options).expect("mock");
    let mut client = Client::to(&mock);
    let mut post = |user: &str, n: u32| {
        client
            .post(
                "/",
                &format!("{user}{n}"),
                &format!(r#"{{"user":"{user}","n":{n}}}"#),
            )
            .expect("answer")
            .0
    };
    assert_eq!(
        (post("slow-1", 1), post("fast", 1), post("fast", 2)),
        (503, 200, 200)
    );
    assert_eq!(mock.partner("partner").expect("report").order_violations, 0);
    post("fast", 1);
    let report = mock.partner("partner").expect("report");
    assert_eq!((report.order_violations, report.overlaps, report.keys), (1, 0, 2));
}

#[test]
fn partners_of_one_process_keep_counts_of_their_own() {
    let mut options = MockOptions::on_free_port(behaviour(serde_json::json!({})));
    options.partners = vec![
        PartnerOptions {
            name: "a".into(),
            prefix: "/a".into(),
            ..PartnerOptions::default()
        },
        PartnerOptions {
            name: "b".into(),
            prefix: "/b".into(),
            behaviour: behaviour(serde_json::json!({"faults": ["500"]})),
            ..PartnerOptions::default()
        },
    ];
    let mock = Mock::start(options).expect("mock");
    let mut client = Client::to(&mock);
    assert_eq!(client.post("/a/hook?x=1", "1", "").expect("a").0, 200);
    assert_eq!(client.post("/b", "1", "").expect("b").0, 500);
    assert_eq!(client.post("/abc", "1", "").expect("none").0, 404);
    assert_eq!(client.get_json("/b/report")["statuses"]["500"], 1);
    assert_eq!(client.get_json("/report")["requests"], 2);
    assert_eq!(client.get_json("/a/lookup/1")["known"], true);
    assert_eq!(client.get_json("/b/lookup/1")["known"], false);
    client
        .post("/b/control", "", r#"{"faults":[]}"#)
        .expect("control");
    assert_eq!(client.post("/b", "2", "").expect("b").0, 200);
    assert_eq!(mock.stop().partner("b").map(|p| p.requests), Some(2));
}

#[test]
fn every_form_of_a_request_is_understood() {
    let mut options = MockOptions::on_free_port(behaviour(serde_json::json!({})));
    options.partners[0].id = "json:/id".parse().expect("field");
    let mock = Mock::start(options).expect("mock");
    let mut client = Client::to(&mock);
    // Chunked, in pieces, with an invitation to go on.
    client.send("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\nexpect: 100-continue\r\n\r\n");
    assert_eq!(client.answer().expect("invited").0, 100);
    client.send("4\r\n{\"id\r\n3;x=y\r\n\":7\r\n1");
    client.send("\r\n}\r\n0\r\n\r\n");
    assert_eq!(client.answer().expect("answer").0, 200);
    assert_eq!(mock.id("partner", "7").expect("count").requests, 1);
    // Two requests in one write, and a HEAD, whose answer has no body.
    client.send("GET / HTTP/1.1\r\n\r\nHEAD / HTTP/1.1\r\n\r\n");
    assert_eq!(client.answer().expect("first").0, 200);
    while !client.rest.ends_with(b"\r\n\r\n") {
        client.more().expect("head");
    }
    client.rest.clear();
    // HTTP/1.0 ends the connection.
    client.send("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(client.answer().expect("answer").0, 200);
    assert_eq!(
        client.more().expect_err("closed").kind(),
        std::io::ErrorKind::UnexpectedEof
    );
    let mut client = Client::to(&mock);
    client.send("what is this\r\n\r\n");
    assert_eq!(client.answer().expect("answer").0, 400);
    let report = mock.partner("partner").expect("report");
    assert_eq!(
        (report.bad_requests, report.requests, report.without_id),
        (1, 4, 3)
    );
}

#[test]
fn connections_close_without_a_word_where_asked() {
    let mut options = MockOptions::on_free_port(behaviour(serde_json::json!({})));
    options.partners[0].requests_per_connection = Some(2);
    options.partners[0].idle_timeout = Some("50ms".parse().expect("span"));
    let mock = Mock::start(options).expect("mock");
    let mut client = Client::to(&mock);
    for id in ["a", "b"] {
        assert_eq!(client.post("/", id, "").expect("answer").0, 200);
    }
    assert_eq!(
        client.more().expect_err("closed").kind(),
        std::io::ErrorKind::UnexpectedEof
    );
    let mut idle = Client::to(&mock);
    idle.post("/", "c", "").expect("answer");
    assert_eq!(
        idle.more().expect_err("closed").kind(),
        std::io::ErrorKind::UnexpectedEof
    );
}

#[test]
fn tls_is_trusted_through_the_certificate_it_made() {
    let options = MockOptions {
        tls: true,
        ..MockOptions::on_free_port(behaviour(serde_json::json!({})))
    };
    let mock = Mock::start(options).expect("mock");
    let pem = mock.ca_pem().expect("certificate");
    let mut roots = rustls::RootCertStore::empty();
    for cert in <rustls::pki_types::CertificateDer as rustls::pki_types::pem::PemObject>::pem_slice_iter(
        pem.as_bytes(),
    ) {
        roots.add(cert.expect("pem")).expect("root");
    }
    let config = rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "127.0.0.1".try_into().expect("name");
    let connection = rustls::ClientConnection::new(std::sync::Arc::new(config), name).expect("client");
    let mut stream = rustls::StreamOwned::new(connection, TcpStream::connect(mock.addr()).expect("connect"));
    stream
        .write_all(b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n")
        .expect("write");
    let mut answer = Vec::new();
    // The end may come without a close notification.
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.starts_with(b"HTTP/1.1 200 OK"));
    assert!(
        mock.url("partner")
            .expect("url")
            .starts_with("https://127.0.0.1:")
    );
}

#[test]
fn a_taken_port_is_an_error_that_names_it() {
    let mock = mock(serde_json::json!({}));
    let options = MockOptions {
        listen: mock.addr(),
        ..MockOptions::default()
    };
    // SO_REUSEADDR lets two sockets bind one port, but not two listen on it.
    let error = Mock::start(options).err().expect("taken");
    assert!(error.to_string().contains(&mock.addr().to_string()), "{error}");
}

#[test]
fn waits_and_counts_many_at_once() {
    let mock = mock(serde_json::json!({"latency": "50ms"}));
    let mut clients: Vec<Client> = (0..200).map(|_| Client::to(&mock)).collect();
    let begun = Instant::now();
    for (i, client) in clients.iter_mut().enumerate() {
        client.send(&format!("GET / HTTP/1.1\r\nIdempotency-Key: {i}\r\n\r\n"));
    }
    for client in &mut clients {
        assert_eq!(client.answer().expect("answer").0, 200);
    }
    assert!(begun.elapsed() >= Duration::from_millis(50));
    let report = mock.stop().partners.remove(0);
    assert_eq!((report.ids, report.connections, report.in_flight), (200, 200, 0));
    assert!(report.in_flight_peak > 1 && report.in_flight_peak <= 200);
}

/// The report is the measure of everything else: whenever it is asked for, it is one snapshot whose sums add up.
#[test]
fn a_report_adds_up_at_any_moment() {
    let mock =
        mock(serde_json::json!({"faults": ["429=0.2", "close=0.1", "502=0.1"], "latency": "0ms..1ms"}));
    let stop = std::sync::atomic::AtomicBool::new(false);
    let mut looks = 0u32;
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (mock, stop) = (&mock, &stop);
            scope.spawn(move || {
                let mut client = Client::to(mock);
                for n in 0..400 {
                    let id = format!("{thread}-{}", n / 3);
                    client.send(&format!(
                        "POST /hook HTTP/1.1\r\nhost: m\r\nidempotency-key: {id}\r\ncontent-length: 2\r\n\r\nok"
                    ));
                    if client.answer().is_err() {
                        client = Client::to(mock);
                    }
                }
                stop.store(true, std::sync::atomic::Ordering::Relaxed);
            });
        }
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            let report = mock.report();
            assert_eq!(report.partners[0].mistakes(), Vec::<String>::new(), "{report:?}");
            let sum: u64 = report.partners.iter().map(|p| p.requests).sum();
            assert_eq!(report.requests, sum);
            looks += 1;
        }
    });
    assert!(looks > 10, "{looks}");
    let partner = mock.partner("partner").expect("the partner");
    assert_eq!((partner.requests, partner.mistakes()), (1_600, Vec::new()));
}
