//! Answers and addresses from end to end: what lies in a socket when a process wakes up, redirects as attempts of
//! their own, records that name addresses which no record may reach.

use super::common::*;
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a server was asked, by path: how often, and with which Idempotency-Keys.
type Asked = Arc<Mutex<BTreeMap<String, Vec<String>>>>;

/// A server that answers by path.
fn server(answer: impl Fn(&str) -> &'static str + Send + Sync + 'static) -> (SocketAddr, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let asked = Asked::default();
    let (there, answer) = (asked.clone(), Arc::new(answer));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (asked, answer) = (there.clone(), answer.clone());
            std::thread::spawn(move || serve(stream, &asked, &*answer));
        }
    });
    (address, asked)
}

fn serve(mut stream: TcpStream, asked: &Asked, answer: &dyn Fn(&str) -> &'static str) {
    let mut got = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        got.extend_from_slice(&buffer[..n]);
        if got[0] == 0x16 {
            // Somebody begins to speak TLS.
            let _gone = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
            return;
        }
        let text = String::from_utf8_lossy(&got).to_ascii_lowercase();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let field = |name: &str| {
            head.lines()
                .find_map(|l| l.strip_prefix(name).map(|v| v.trim().to_owned()))
        };
        let length = field("content-length:").map_or(0, |l| l.parse().expect("a length"));
        if body.len() < length {
            continue;
        }
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let key = field("idempotency-key:").unwrap_or_default();
        let reply = answer(&path);
        asked
            .lock()
            .expect("held by no panic")
            .entry(path)
            .or_default()
            .push(key);
        got.clear();
        if stream.write_all(reply.as_bytes()).is_err() {
            return;
        }
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// The process stands for longer than its requests may take, and the answers come meanwhile.
#[test]
fn answers_that_came_while_the_process_stood_are_read_before_its_timers_are_believed() {
    let (address, asked) = server(|_| {
        std::thread::sleep(Duration::from_millis(400));
        OK
    });
    let rig = Rig::new(&format!(
        "[partners.p]\nurl = \"http://{address}/hook\"\nconcurrency = 8\n\
         timeout = {{ connect = \"10s\", request = \"1500ms\" }}\n\
         [topics.t]\npartner = \"p\"\npartitions = 1\nid = \"json:/id\"\nkey = \"json:/user\"\n"
    ));
    rig.import("t", lines(0..40, 40));
    let mut node = rig.start(&["--until-drained", "--timeout", "100s"]);
    let seen = || {
        asked
            .lock()
            .expect("held by no panic")
            .values()
            .map(Vec::len)
            .sum::<usize>()
    };
    // All places are taken, and more than once: eight requests are out.
    node.until("requests", || seen() >= 8);
    for _ in 0..3 {
        node.signal(Signal::STOP);
        std::thread::sleep(Duration::from_millis(1_800));
        node.signal(Signal::CONT);
        std::thread::sleep(Duration::from_millis(200));
    }
    let drained = node.drained();
    assert_eq!(drained.counts(), (40, 0, 0), "{}", drained.said);
    assert_eq!(seen(), 40);
}

#[test]
fn each_redirect_is_an_attempt_of_its_own() {
    let (address, asked) = server(|path| match path {
        "/hook" => "HTTP/1.1 307 Temporary Redirect\r\nlocation: /new\r\ncontent-length: 0\r\n\r\n",
        _ => OK,
    });
    let rig = Rig::new(&format!(
        "[partners.p]\nurl = \"http://{address}/hook\"\nredirects = 1\n\
         [topics.t]\npartner = \"p\"\npartitions = 1\nid = \"json:/id\"\n"
    ));
    rig.import("t", lines(0..5, 5));
    let drained = rig.drain();
    assert_eq!(drained.counts(), (5, 0, 0), "{}", drained.said);
    let asked = asked.lock().expect("held by no panic");
    let keys = |path: &str| {
        let mut keys = asked[path].clone();
        keys.sort();
        keys
    };
    assert_eq!(
        (keys("/hook").len(), keys("/hook")),
        (5, keys("/new")),
        "the same messages at both"
    );
    let told = rig.ok(&["message", "m0"]);
    assert!(told.contains("attempt 2"), "the second attempt was taken: {told}");
}

/// A server that takes connections and speaks no TLS: neither a test of the partner nor its status calls that well.
#[test]
fn a_partner_whose_handshake_fails_is_not_called_well() {
    let (address, _) = server(|_| OK);
    let rig = Rig::new(&format!(
        "[partners.p]\nurl = \"https://{address}/hook\"\ntimeout = {{ connect = \"5s\" }}\n\
         [topics.t]\npartner = \"p\"\npartitions = 1\nid = \"json:/id\"\n"
    ));
    rig.import("t", lines(0..1, 1));
    let mut node = rig.start(&[]);
    node.wait_for_admin();
    let tested = rig.call(&["partners", "test", "p"]);
    let said = String::from_utf8_lossy(&tested.stdout).into_owned();
    assert_eq!(tested.status.code(), Some(1), "{said}");
    assert!(
        said.contains("takes no connection") && said.contains("tls: "),
        "{said}"
    );
    node.until("a failed attempt", || {
        rig.ok(&["partners", "show", "p"])
            .lines()
            .any(|l| l.starts_with("last failed") && l.contains("tls: "))
    });
    let status = rig.list(&["partners", "list"]);
    assert!(
        status[0]["connect_failure"]
            .as_str()
            .is_some_and(|why| why.contains("tls: ")),
        "{status:?}"
    );
}

#[test]
fn a_record_that_names_the_nodes_own_port_is_its_own_failure() {
    let (address, asked) = server(|_| OK);
    let rig = Rig::new("");
    let admin = rig.configure_with(
        "\n[partners.p]\nurl = \"{{ value }}\"\nmethod = \"POST\"\n[partners.q]\nurl = \"http://127.0.0.1:1/\"\n\
         [topics.t]\npartner = \"p\"\npartitions = 1\nid = \"hash\"\n",
    );
    let port = admin.rsplit(':').next().expect("a port");
    let mut urls = String::new();
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0"] {
        urls += &format!("http://{host}:{port}/api/partners/q/pause\n");
    }
    urls += "http://169.254.169.254/latest/meta-data/\n";
    for n in 0..20 {
        urls += &format!("http://{address}/hook/{n}\n");
    }
    std::fs::write(rig.path("urls"), urls).expect("written");
    rig.ok(&["import", "urls", "--topic", "t", "--format", "urls"]);
    let drained = rig.drain();
    assert_eq!(drained.counts(), (20, 5, 0), "{}", drained.said);
    assert_eq!(asked.lock().expect("held by no panic").len(), 20);
    let dead = rig.list(&["dead", "list"]);
    for letter in &dead {
        let reason = letter["reason"].as_str().unwrap_or_default();
        assert!(reason.starts_with("refused: address not allowed: "), "{reason}");
    }
    let status: serde_json::Value = serde_json::from_str(&rig.ok(&["status", "--json"])).expect("an object");
    assert_eq!(status["partners"][1]["paused"], serde_json::Value::Null);
}

/// A partner that says "at once" for ever is asked as often as its retries' own backoff allows, not as often as it can
/// answer.
#[test]
fn a_retry_after_of_zero_does_not_switch_the_backoff_off() {
    use sluicegate::mock::Behaviour;
    for retry_after in ["0s", "date:0s"] {
        let always = serde_json::json!({"rules": ["id=* 429"], "retry_after": retry_after});
        let mock = partner(Behaviour::default().changed(&always).expect("a behaviour"));
        let rig = Rig::new(&config(&mock, "", ""));
        rig.import("t", lines(0..200, 200));
        let drained = rig.start(&["--until-drained", "--timeout", "10s"]).drained();
        assert_eq!(
            (drained.code, drained.counts()),
            (Some(4), (0, 0, 0)),
            "{}",
            drained.said
        );
        let seen = counts(&mock);
        println!(
            "retry-after {retry_after}: {} requests for 200 messages, {} for one",
            seen.requests, seen.most_requests_of_an_id
        );
        assert_eq!(seen.ids, 200);
        assert!(seen.most_requests_of_an_id <= 12, "{seen:?}");
    }
}

/// The reason of a message in doubt says that there was an answer, and which.
#[test]
fn a_doubt_says_what_the_answer_was() {
    let (address, _) = server(|path| match path {
        "/m0" => "HTTP/1.1 408 Request Timeout\r\ncontent-length: 4\r\n\r\nslow",
        "/m1" => "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 4\r\n\r\noops",
        "/m2" => "HTTP/1.1 200 OK\r\nconte",
        _ => OK,
    });
    let rig = Rig::new(&format!(
        "[partners.p]\nurl = \"http://{address}/{{{{ value.id }}}}\"\ntimeout = {{ request = \"2s\" }}\n\
         [topics.t]\npartner = \"p\"\npartitions = 1\nid = \"json:/id\"\nkey = \"json:/user\"\n"
    ));
    rig.import("t", lines(0..4, 4));
    let drained = rig.drain();
    assert_eq!(drained.counts(), (1, 0, 3), "{}", drained.said);
    let reasons: BTreeMap<String, String> = rig
        .list(&["doubt", "list"])
        .iter()
        .map(|row| {
            let field = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
            (field("id"), field("reason"))
        })
        .collect();
    for (id, wanted) in [
        (
            "m0",
            "doubt_timeout: the request was written, and no answer says what became of it; unknown: 408 slow",
        ),
        (
            "m1",
            "doubt_gateway: the answer leaves open whether the partner took it; unknown: 502 oops",
        ),
        (
            "m2",
            "doubt_timeout: the request was written, and no answer says what became of it; timeout: no answer within 2s",
        ),
    ] {
        assert_eq!(reasons[id], wanted, "{reasons:?}");
    }
}
