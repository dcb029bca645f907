//! What one request costs the client: CPU per request of a bare reqwest loop, of bare hyper connections and of the
//! HTTP sink, in one run, against a minimal server in a process of its own on the other core.
//!
//! ```text
//! cargo run --profile quick --example bench_http -- [--requests 100000] [--rounds 3] [--only plain-64] [--client sink] [--json]
//! ```
//!
//! For profilers that cannot follow a child: `--server FOLDER` alone serves (certificate and key in FOLDER), and
//! `--at PLAIN,TLS,FOLDER` measures against it.
//!
//! POST of 200 bytes, two headers (the sink sends `idempotency-key` and `traceparent`, made anew for each request),
//! keep-alive, an answer of 2 bytes; 64 and 256 in flight, plain and TLS. Figures are user and system time of the
//! client process; the best of the rounds, and the ratio to reqwest as the median over the rounds. Modes take
//! turns within a round, so that what else the machine does hits all of them.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use sluicegate::clock::Clock;
use sluicegate::config::PartnerConfig;
use sluicegate::core::record::Record;
use sluicegate::core::types::{MessageId, Time};
use sluicegate::sink::http::HttpSink;
use sluicegate::sink::secrets::Secrets;
use sluicegate::sink::{Answer, Delivery, Sent, Verdict};
use std::cell::Cell;
use std::error::Error;
use std::future::Future;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

type Failed = Box<dyn Error + Send + Sync>;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const BODY: usize = 200;

fn main() -> Result<(), Failed> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1));
    if let Some(folder) = value("--server") {
        return serve(Path::new(folder));
    }
    let requests = value("--requests").map_or(Ok(100_000), |v| v.parse())?;
    let rounds = value("--rounds").map_or(Ok(3), |v| v.parse())?;
    let json = args.iter().any(|a| a == "--json");
    if !args.iter().any(|a| a == "--pinned") && has_taskset() {
        let mut again = Command::new("taskset");
        again
            .args(["-c", "1"])
            .arg(std::env::current_exe()?)
            .args(&args)
            .arg("--pinned");
        let status = again.status()?;
        std::process::exit(status.code().unwrap_or(1));
    }
    let folder = tempfile::tempdir()?;
    let server = match value("--at") {
        Some(at) => Server::running(at)?,
        None => Server::start(folder.path())?,
    };
    let mut lines = Vec::new();
    for tls in [false, true] {
        for in_flight in [64, 256] {
            let name = format!("{}-{in_flight}", if tls { "tls" } else { "plain" });
            if value("--only").is_some_and(|only| *only != name) {
                continue;
            }
            lines.extend(measure(
                &server,
                tls,
                in_flight,
                requests,
                rounds,
                value("--client"),
            )?);
        }
    }
    if json {
        for line in &lines {
            println!("{}", line.json());
        }
        return Ok(());
    }
    println!("CPU per request, microseconds ({requests} requests a run, best of {rounds})\n");
    println!(
        "{:6} {:>9}  {:10} {:>8} {:>10} {:>12}",
        "", "in flight", "client", "us", "x reqwest", "requests/s"
    );
    for line in &lines {
        println!(
            "{:6} {:>9}  {:10} {:>8.2} {:>10.2} {:>12.0}",
            if line.tls { "tls" } else { "plain" },
            line.in_flight,
            line.client,
            line.us,
            line.ratio,
            line.rate
        );
    }
    Ok(())
}

fn has_taskset() -> bool {
    let probe = Command::new("taskset")
        .args(["-c", "1", "true"])
        .stderr(Stdio::null())
        .status();
    probe.is_ok_and(|s| s.success())
}

struct Line {
    tls: bool,
    in_flight: usize,
    client: &'static str,
    us: f64,
    ratio: f64,
    rate: f64,
}

impl Line {
    fn json(&self) -> String {
        serde_json::json!({
            "tls": self.tls, "in_flight": self.in_flight, "client": self.client,
            "us_per_request": self.us, "ratio_to_reqwest": self.ratio, "requests_per_s": self.rate,
        })
        .to_string()
    }
}

/// One run's CPU microseconds and wall requests/s.
type Run = (f64, f64);

fn measure(
    server: &Server,
    tls: bool,
    in_flight: usize,
    requests: usize,
    rounds: usize,
    client: Option<&String>,
) -> Result<Vec<Line>, Failed> {
    let names = ["reqwest", "hyper", "sink"];
    let mut runs: [Vec<Run>; 3] = Default::default();
    let wanted = |name: &str| client.is_none_or(|c| c == name);
    for _ in 0..rounds {
        if wanted("reqwest") {
            runs[0].push(timed(requests, bare_reqwest(server, tls, in_flight, requests))?);
        }
        if wanted("hyper") {
            runs[1].push(timed(requests, bare_hyper(server, tls, in_flight, requests))?);
        }
        if wanted("sink") {
            runs[2].push(timed(requests, the_sink(server, tls, in_flight, requests))?);
        }
    }
    let best = |of: &[Run]| {
        of.iter()
            .copied()
            .fold((f64::MAX, 0.0), |b, r| (b.0.min(r.0), f64::max(b.1, r.1)))
    };
    Ok(names
        .into_iter()
        .zip(&runs)
        .filter(|(client, _)| wanted(client))
        .map(|(client, mine)| {
            let mut ratios: Vec<f64> = mine.iter().zip(&runs[0]).map(|(m, r)| m.0 / r.0).collect();
            ratios.sort_by(f64::total_cmp);
            let (us, rate) = best(mine);
            Line {
                tls,
                in_flight,
                client,
                us,
                ratio: ratios.get(ratios.len() / 2).copied().unwrap_or(f64::NAN),
                rate,
            }
        })
        .collect())
}

fn timed(requests: usize, work: impl Future<Output = Result<(), Failed>>) -> Result<Run, Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let cpu = || {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        t.tv_sec as f64 * 1e6 + t.tv_nsec as f64 / 1e3
    };
    let (cpu_before, wall) = (cpu(), Instant::now());
    tokio::task::LocalSet::new().block_on(&runtime, work)?;
    let n = requests as f64;
    Ok(((cpu() - cpu_before) / n, n / wall.elapsed().as_secs_f64()))
}

/// Runs `in_flight` workers until all requests are taken.
async fn workers<W, F>(in_flight: usize, requests: usize, worker: W) -> Result<(), Failed>
where
    W: Fn(Rc<Cell<usize>>) -> F,
    F: Future<Output = Result<(), Failed>> + 'static,
{
    let left = Rc::new(Cell::new(requests));
    let tasks: Vec<_> = (0..in_flight)
        .map(|_| tokio::task::spawn_local(worker(Rc::clone(&left))))
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(())
}

/// Takes one request off the pile.
fn take(left: &Cell<usize>) -> Option<usize> {
    let n = left.get().checked_sub(1)?;
    left.set(n);
    Some(n)
}

async fn bare_reqwest(server: &Server, tls: bool, in_flight: usize, requests: usize) -> Result<(), Failed> {
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(server.client_config()?)
        .build()?;
    let (url, body) = (server.url(tls), Bytes::from(vec![b'x'; BODY]));
    workers(in_flight, requests, |left| {
        let (client, url, body) = (client.clone(), url.clone(), body.clone());
        async move {
            while take(&left).is_some() {
                let request = client
                    .post(&url)
                    .header("idempotency-key", "0123456789abcdef0123456789abcdef");
                let request = request
                    .header("content-type", "application/json")
                    .body(body.clone());
                let response = request.send().await?;
                assert_eq!(response.status(), 200);
                response.bytes().await?;
            }
            Ok(())
        }
    })
    .await
}

async fn bare_hyper(server: &Server, tls: bool, in_flight: usize, requests: usize) -> Result<(), Failed> {
    let port = if tls { server.tls } else { server.plain };
    let config = Arc::new(server.client_config()?);
    let body = Bytes::from(vec![b'x'; BODY]);
    workers(in_flight, requests, |left| {
        let (config, body) = (Arc::clone(&config), body.clone());
        async move {
            let tcp = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
            tcp.set_nodelay(true)?;
            if tls {
                let name = ServerName::try_from("localhost")?;
                let stream = tokio_rustls::TlsConnector::from(config)
                    .connect(name, tcp)
                    .await?;
                hyper_loop(stream, left, body).await
            } else {
                hyper_loop(tcp, left, body).await
            }
        }
    })
    .await
}

async fn hyper_loop<S>(stream: S, left: Rc<Cell<usize>>, body: Bytes) -> Result<(), Failed>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::task::spawn_local(connection);
    while take(&left).is_some() {
        let request = http::Request::post("/hook")
            .header("host", "localhost")
            .header("idempotency-key", "0123456789abcdef0123456789abcdef")
            .header("content-type", "application/json")
            .body(Full::new(body.clone()))?;
        sender.ready().await?;
        let response = sender.send_request(request).await?;
        assert_eq!(response.status(), 200);
        response.into_body().collect().await?;
    }
    Ok(())
}

async fn the_sink(server: &Server, tls: bool, in_flight: usize, requests: usize) -> Result<(), Failed> {
    let partner = partner(server, tls, in_flight);
    let sink = Rc::new(HttpSink::try_new(&partner, &Secrets::none(), Clock::start())?);
    let (topic, body): (Arc<str>, _) = ("bench".into(), Bytes::from(vec![b'x'; BODY]));
    workers(in_flight, requests, |left| {
        let (sink, topic, body) = (Rc::clone(&sink), Arc::clone(&topic), body.clone());
        async move {
            while let Some(n) = take(&left) {
                let mut id = [7; 16];
                id[..8].copy_from_slice(&(n as u64).to_be_bytes());
                let delivery = Delivery {
                    topic: Arc::clone(&topic),
                    partition: 0,
                    record: Record {
                        offset: n as u64,
                        timestamp: Time::ZERO,
                        value: body.clone(),
                        ..Record::default()
                    },
                    id: MessageId(id),
                    readable: Bytes::new(),
                    round: 1,
                    attempt: 1,
                    idempotency_key: None,
                };
                let request = sink.prepare(&delivery)?;
                let connection = sink.connect(&request).await.map_err(|a| format!("{a:?}"))?;
                match sink.send(connection, request, &mut || true).await {
                    Sent::Answered(Answer {
                        verdict: Verdict::Delivered,
                        ..
                    }) => {}
                    other => return Err(format!("{other:?}").into()),
                }
            }
            Ok(())
        }
    })
    .await
}

fn partner(server: &Server, tls: bool, in_flight: usize) -> PartnerConfig {
    PartnerConfig {
        concurrency: in_flight,
        ca: Some(server.ca.clone()),
        ..PartnerConfig::new("bench", server.url(tls))
    }
}

/// The server's process.
struct Server {
    child: Option<Child>,
    plain: u16,
    tls: u16,
    ca: std::path::PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended already, which is what is wanted.
            let _ended = child.kill();
            let _reaped = child.wait();
        }
    }
}

impl Server {
    fn start(folder: &Path) -> Result<Self, Failed> {
        let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
        let ca = folder.join("cert.pem");
        std::fs::write(&ca, own.cert.pem())?;
        std::fs::write(folder.join("key.pem"), own.signing_key.serialize_pem())?;
        let exe = std::env::current_exe()?;
        let mut command = if has_taskset() {
            let mut command = Command::new("taskset");
            command.args(["-c", "0"]).arg(exe);
            command
        } else {
            Command::new(exe)
        };
        let mut child = command
            .arg("--server")
            .arg(folder)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut told = String::new();
        BufReader::new(child.stdout.take().ok_or("no output of the server")?).read_line(&mut told)?;
        let (plain, tls) = told.trim().split_once(' ').ok_or("the server did not start")?;
        Ok(Self {
            plain: plain.parse()?,
            tls: tls.parse()?,
            child: Some(child),
            ca,
        })
    }

    fn running(at: &str) -> Result<Self, Failed> {
        let parts: Vec<&str> = at.splitn(3, ',').collect();
        let [plain, tls, folder] = parts[..] else {
            return Err("expected PLAIN,TLS,FOLDER".into());
        };
        let ca = Path::new(folder).join("cert.pem");
        Ok(Self {
            child: None,
            plain: plain.parse()?,
            tls: tls.parse()?,
            ca,
        })
    }

    fn url(&self, tls: bool) -> String {
        if tls {
            format!("https://localhost:{}/hook", self.tls)
        } else {
            format!("http://127.0.0.1:{}/hook", self.plain)
        }
    }

    fn client_config(&self) -> Result<rustls::ClientConfig, Failed> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&self.ca)?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        Ok(builder.with_root_certificates(roots).with_no_client_auth())
    }
}

/// The least a server can do: finds the end of each request and answers.
fn serve(folder: &Path) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_file(folder.join("cert.pem"))?],
            PrivateKeyDer::from_pem_file(folder.join("key.pem"))?,
        )?;
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    runtime.block_on(async move {
        let plain = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let tls = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("{} {}", plain.local_addr()?.port(), tls.local_addr()?.port());
        loop {
            tokio::select! {
                tcp = plain.accept() => {
                    let (tcp, _) = tcp?;
                    tcp.set_nodelay(true)?;
                    tokio::spawn(answer_all(tcp));
                }
                tcp = tls.accept() => {
                    let (tcp, _) = tcp?;
                    tcp.set_nodelay(true)?;
                    let acceptor = acceptor.clone();
                    tokio::spawn(async move {
                        if let Ok(stream) = acceptor.accept(tcp).await {
                            answer_all(stream).await;
                        }
                    });
                }
            }
        }
    })
}

async fn answer_all(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut buffer = [0; 4096];
    let mut have = 0;
    loop {
        match stream.read(&mut buffer[have..]).await {
            Ok(n @ 1..) => have += n,
            _ => return,
        }
        let Some(head) = memchr::memmem::find(&buffer[..have], b"\r\n\r\n") else {
            continue;
        };
        if have >= head + 4 + BODY {
            have = 0;
            if stream.write_all(ANSWER).await.is_err() || stream.flush().await.is_err() {
                return;
            }
        }
    }
}
