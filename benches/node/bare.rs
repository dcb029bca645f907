//! What the same requests cost without any promise: a bare reqwest loop and bare hyper connections, each in a
//! process of its own that tells its CPU per request.

use crate::Failed;
use crate::partner::Partner;
use crate::places::{Pinned, Places};
use crate::records;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use std::cell::Cell;
use std::future::Future;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncWrite};

/// The two loops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Bare {
    /// As most people would write it.
    Reqwest,
    /// One connection a task, nothing between the loop and HTTP.
    Hyper,
}

/// What a loop used.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// CPU microseconds a request.
    pub us: f64,
    /// Requests a second.
    pub rate: f64,
}

/// Runs a loop in a process of its own.
pub fn measure(
    partner: &Partner,
    places: &Places,
    which: Bare,
    tls: bool,
    requests: u32,
    in_flight: u32,
) -> Result<Cost, Failed> {
    let mut command = places.command(Pinned::Measured, &std::env::current_exe()?);
    command.arg("--bare").arg(match which {
        Bare::Reqwest => "reqwest",
        Bare::Hyper => "hyper",
    });
    let port = if tls { partner.tls } else { partner.plain };
    command.args(["--port", &port.to_string(), "--requests", &requests.to_string()]);
    command.args(["--in-flight", &in_flight.to_string()]);
    if tls {
        command.arg("--ca").arg(partner.ca());
    }
    let output = command.output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    let text = String::from_utf8(output.stdout)?;
    let (us, rate) = text.trim().split_once(' ').ok_or("no figures of a bare loop")?;
    Ok(Cost {
        us: us.parse()?,
        rate: rate.parse()?,
    })
}

/// The loop itself, in its own process; prints CPU microseconds a request and requests a second.
pub fn run(which: Bare, port: u16, ca: Option<&Path>, requests: u32, in_flight: u32) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let cpu = || {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        t.tv_sec as f64 * 1e6 + t.tv_nsec as f64 / 1e3
    };
    let mut body = Vec::new();
    records::write(&mut body, 0, 0, 200)?;
    let work = async {
        match which {
            Bare::Reqwest => reqwest_loop(port, ca, body.into(), requests, in_flight).await,
            Bare::Hyper => hyper_loops(port, ca, body.into(), requests, in_flight).await,
        }
    };
    let (before, wall) = (cpu(), Instant::now());
    tokio::task::LocalSet::new().block_on(&runtime, work)?;
    let n = f64::from(requests);
    println!("{} {}", (cpu() - before) / n, n / wall.elapsed().as_secs_f64());
    Ok(())
}

/// Runs `in_flight` workers until all requests are taken.
async fn workers<W, F>(in_flight: u32, requests: u32, worker: W) -> Result<(), Failed>
where
    W: Fn(Rc<Cell<u32>>) -> F,
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
fn take(left: &Cell<u32>) -> bool {
    let n = left.get();
    left.set(n.saturating_sub(1));
    n > 0
}

fn trusting(ca: &Path) -> Result<rustls::ClientConfig, Failed> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca)?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

async fn reqwest_loop(
    port: u16,
    ca: Option<&Path>,
    body: Bytes,
    requests: u32,
    in_flight: u32,
) -> Result<(), Failed> {
    let builder = reqwest::Client::builder();
    let (client, url) = match ca {
        None => {
            let empty = rustls::ClientConfig::builder_with_provider(Arc::new(
                rustls::crypto::ring::default_provider(),
            ))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
            let client = builder.tls_backend_preconfigured(empty).build()?;
            (client, format!("http://127.0.0.1:{port}/hook"))
        }
        Some(ca) => {
            let client = builder.tls_backend_preconfigured(trusting(ca)?).build()?;
            (client, format!("https://localhost:{port}/hook"))
        }
    };
    workers(in_flight, requests, |left| {
        let (client, url, body) = (client.clone(), url.clone(), body.clone());
        async move {
            while take(&left) {
                let request = client
                    .post(&url)
                    .header("idempotency-key", "0123456789abcdef0123456789abcdef")
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

async fn hyper_loops(
    port: u16,
    ca: Option<&Path>,
    body: Bytes,
    requests: u32,
    in_flight: u32,
) -> Result<(), Failed> {
    let tls = ca.map(trusting).transpose()?.map(Arc::new);
    workers(in_flight, requests, |left| {
        let (tls, body) = (tls.clone(), body.clone());
        async move {
            let tcp = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
            tcp.set_nodelay(true)?;
            match tls {
                None => hyper_loop(tcp, left, body).await,
                Some(config) => {
                    let name = ServerName::try_from("localhost")?;
                    let connector = tokio_rustls::TlsConnector::from(config);
                    hyper_loop(connector.connect(name, tcp).await?, left, body).await
                }
            }
        }
    })
    .await
}

async fn hyper_loop<S>(stream: S, left: Rc<Cell<u32>>, body: Bytes) -> Result<(), Failed>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::task::spawn_local(connection);
    while take(&left) {
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
