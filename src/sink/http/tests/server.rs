//! Servers to test against. Each runs on a thread of its own, so that a sink that blocks its own is found out.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A request as a well-behaved server heard it.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    pub(super) method: String,
    pub(super) uri: String,
    pub(super) headers: http::HeaderMap,
    pub(super) body: Bytes,
}

impl Heard {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|v| v.to_str().unwrap())
    }
}

/// Serves on a port and a thread of its own until the test's process ends.
pub(super) fn serve<F: Future<Output = ()>>(
    with: impl FnOnce(tokio::net::TcpListener) -> F + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            with(listener).await;
        });
    });
    address
}

/// A well-behaved server.
pub(super) struct Polite {
    pub(super) address: SocketAddr,
    pub(super) heard: Arc<Mutex<Vec<Heard>>>,
    pub(super) connections: Arc<AtomicUsize>,
}

impl Polite {
    pub(super) fn start(answer: impl Fn(&Heard) -> Response<Full<Bytes>> + Send + Sync + 'static) -> Self {
        let heard: Arc<Mutex<Vec<Heard>>> = Arc::default();
        let connections: Arc<AtomicUsize> = Arc::default();
        let (heard_there, connections_there) = (Arc::clone(&heard), Arc::clone(&connections));
        let answer = Arc::new(answer);
        let address = serve(move |listener| async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                connections_there.fetch_add(1, Ordering::SeqCst);
                let (heard, answer) = (Arc::clone(&heard_there), Arc::clone(&answer));
                let service = service_fn(move |request: Request<Incoming>| {
                    let (heard, answer) = (Arc::clone(&heard), Arc::clone(&answer));
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await?.to_bytes();
                        let one = Heard {
                            method: head.method.to_string(),
                            uri: head.uri.to_string(),
                            headers: head.headers,
                            body,
                        };
                        let response = answer(&one);
                        heard.lock().push(one);
                        Ok::<_, hyper::Error>(response)
                    }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self {
            address,
            heard,
            connections,
        }
    }

    pub(super) fn ok() -> Self {
        Self::start(|_| Response::new(Full::new(Bytes::from_static(b"ok"))))
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    pub(super) fn count(&self) -> usize {
        self.heard.lock().len()
    }
}

/// A response in one line.
pub(super) fn response(status: u16, headers: &[(&str, &str)], body: &str) -> Response<Full<Bytes>> {
    let mut builder = Response::builder().status(status);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder
        .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
        .unwrap()
}

/// A server that does to each connection what the test says; the number of the connection comes along.
pub(super) fn raw(act: impl Fn(TcpStream, usize) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let act = Arc::new(act);
    std::thread::spawn(move || {
        for (n, stream) in listener.incoming().enumerate() {
            let stream = stream.unwrap();
            stream.set_nodelay(true).unwrap();
            let act = Arc::clone(&act);
            std::thread::spawn(move || act(stream, n));
        }
    });
    address
}

/// Reads one request with a content length; false where the connection ended first.
pub(super) fn read_request(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut got = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let n = stream.read(&mut buffer).ok()?;
        if n == 0 {
            return None;
        }
        got.extend_from_slice(&buffer[..n]);
        let text = String::from_utf8_lossy(&got);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|l| {
                    l.to_ascii_lowercase()
                        .strip_prefix("content-length:")
                        .map(|v| v.trim().to_owned())
                })
                .and_then(|v| v.parse::<usize>().ok())
                .unwrap_or(0);
            if body.len() >= length {
                return Some(got);
            }
        }
    }
}

pub(super) fn say(stream: &mut TcpStream, text: &str) {
    // The other side may be gone, which is then what the test is about.
    let _gone = stream.write_all(text.as_bytes());
}

/// Closes with a reset instead of an orderly end.
pub(super) fn reset(stream: TcpStream) {
    let socket = tokio::net::TcpSocket::from_std_stream(stream);
    socket.set_zero_linger().unwrap();
    drop(socket);
}

pub(super) const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
