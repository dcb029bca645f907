//! The partner that the node delivers to: a process of its own, as small as it can be, so that it is never what is
//! measured.
//!
//! It finds the end of each request, notes when it came and which message it was, waits if told to, and answers
//! `200` or `503`. Times are of the machine's monotonic clock, which the processes of a run share. The harness
//! tells it what to do over a port of its own: one line each way.

use crate::Failed;
use crate::places::{Pinned, Places};
use crate::records;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const LATER: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 5\r\n\r\nlater";
const REFUSED: &[u8] = b"HTTP/1.1 422 Unprocessable Content\r\ncontent-length: 7\r\n\r\nrefused";
const GATEWAY: &[u8] = b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 7\r\n\r\ngateway";
/// Largest request.
const BUFFER: usize = 16 << 10;

/// Nanoseconds of the machine's monotonic clock.
pub fn now_ns() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    t.tv_sec.unsigned_abs() * 1_000_000_000 + t.tv_nsec.unsigned_abs()
}

/// How the partner behaves from now on. The default answers at once.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Plan {
    /// Answers come after a time between these, evenly spread, in microseconds.
    pub delay_us: (u64, u64),
    /// Messages of this key are answered after so many milliseconds instead.
    pub stuck: Option<(u32, u64)>,
    /// Messages of this key are answered with 503.
    pub refuse: Option<u32>,
    /// Every message is refused for good (422), or its fate is unknown (502).
    pub all: Option<Fate>,
}

/// What becomes of every message, if it is not taken.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Fate {
    /// 422: a dead letter.
    Dead,
    /// 502: a doubt.
    Parked,
}

/// A request that came.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// When it was read to its end.
    pub at_ns: u64,
    /// Number of its message.
    pub id: u32,
}

#[derive(Default)]
struct State {
    plan: Plan,
    arrivals: Vec<Arrival>,
    /// The longest that the partner itself was late.
    stall_ns: u64,
}

type Shared = Rc<RefCell<State>>;

/// Serves until it is killed. The first line on stdout names the ports: plain, TLS, control.
pub fn serve(folder: &Path) -> Result<(), Failed> {
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
    let state = Shared::default();
    tokio::task::LocalSet::new().block_on(&runtime, async move {
        let plain = TcpListener::bind("127.0.0.1:0").await?;
        let tls = TcpListener::bind("127.0.0.1:0").await?;
        let control = TcpListener::bind("127.0.0.1:0").await?;
        let port = |of: &TcpListener| of.local_addr().map(|a| a.port());
        // The one who measures must not be the one who is late. Without the right to it the stall is told.
        let _unprivileged = rustix::process::setpriority_process(None, -10);
        tokio::task::spawn_local(watch(Rc::clone(&state)));
        println!("{} {} {}", port(&plain)?, port(&tls)?, port(&control)?);
        loop {
            let state = Rc::clone(&state);
            tokio::select! {
                tcp = plain.accept() => {
                    let (tcp, _) = tcp?;
                    tcp.set_nodelay(true)?;
                    tokio::task::spawn_local(answer_all(tcp, state));
                }
                tcp = tls.accept() => {
                    let (tcp, _) = tcp?;
                    tcp.set_nodelay(true)?;
                    let acceptor = acceptor.clone();
                    tokio::task::spawn_local(async move {
                        if let Ok(stream) = acceptor.accept(tcp).await {
                            answer_all(stream, state).await;
                        }
                    });
                }
                tcp = control.accept() => {
                    let (tcp, _) = tcp?;
                    tokio::task::spawn_local(async move {
                        if let Err(e) = obey(tcp, state).await {
                            eprintln!("partner: {e}");
                        }
                    });
                }
            }
        }
    })
}

/// Notes how late this process is for what it wants to do.
async fn watch(state: Shared) {
    const TICK: Duration = Duration::from_millis(2);
    loop {
        let before = now_ns();
        tokio::time::sleep(TICK).await;
        // A timer may be a millisecond late by itself.
        let late = (now_ns() - before).saturating_sub(TICK.as_nanos() as u64 + 1_000_000);
        let state = &mut *state.borrow_mut();
        state.stall_ns = state.stall_ns.max(late);
    }
}

/// Answers the requests of one connection, one after the other.
async fn answer_all(mut stream: impl AsyncRead + AsyncWrite + Unpin, state: Shared) {
    let mut buffer = vec![0; BUFFER];
    let mut have = 0;
    loop {
        match stream.read(&mut buffer[have..]).await {
            Ok(n @ 1..) => have += n,
            _ => return,
        }
        let Some(body) = body_of(&buffer[..have]) else {
            continue;
        };
        have = 0;
        let answer = match take(&state, body) {
            (None, answer) => answer,
            (Some(until), answer) => {
                wait_until(until).await;
                answer
            }
        };
        if stream.write_all(answer).await.is_err() || stream.flush().await.is_err() {
            return;
        }
    }
}

/// The body of a request that is there to its end. Clients here send nothing before they have the answer.
fn body_of(bytes: &[u8]) -> Option<&[u8]> {
    let head = memchr::memmem::find(bytes, b"\r\n\r\n")?;
    let field = b"content-length: ";
    let at = memchr::memmem::find(&bytes[..head + 2], field)? + field.len();
    let digits = bytes[at..].iter().take_while(|b| b.is_ascii_digit());
    let length = digits.fold(0, |n, d| n * 10 + usize::from(d - b'0'));
    bytes.get(head + 4..head + 4 + length)
}

/// Notes an arrival; says until when it waits, and the answer.
fn take(state: &Shared, body: &[u8]) -> (Option<u64>, &'static [u8]) {
    let state = &mut *state.borrow_mut();
    let at_ns = now_ns();
    let (id, key) = records::read(body);
    state.arrivals.push(Arrival { at_ns, id });
    let plan = &state.plan;
    match plan.all {
        Some(Fate::Dead) => return (None, REFUSED),
        Some(Fate::Parked) => return (None, GATEWAY),
        None => {}
    }
    if plan.refuse.is_some_and(|k| k == key) {
        return (None, LATER);
    }
    match (plan.stuck, plan.delay_us) {
        (Some((stuck, ms)), _) if stuck == key => (Some(at_ns + ms * 1_000_000), OK),
        (_, (_, 0)) => (None, OK),
        (_, (low, high)) => (Some(at_ns + fastrand::u64(low..=high) * 1_000), OK),
    }
}

/// Waits to some ten microseconds exactly: timers here tick in milliseconds, so the last two are waited awake.
async fn wait_until(until_ns: u64) {
    let left = Duration::from_nanos(until_ns.saturating_sub(now_ns()));
    if let Some(asleep) = left.checked_sub(Duration::from_millis(2)) {
        tokio::time::sleep(asleep).await;
    }
    while now_ns() < until_ns {
        tokio::task::yield_now().await;
    }
}

/// Takes orders of the harness.
async fn obey(stream: tokio::net::TcpStream, state: Shared) -> Result<(), Failed> {
    let (read, mut write) = stream.into_split();
    let mut lines = tokio::io::BufReader::new(read).lines();
    while let Some(line) = lines.next_line().await? {
        let (verb, rest) = line.split_once(' ').unwrap_or((&line, ""));
        let answer = match verb {
            "plan" => {
                state.borrow_mut().plan = serde_json::from_str(rest)?;
                "ok".to_owned()
            }
            "stall" => std::mem::take(&mut state.borrow_mut().stall_ns).to_string(),
            "count" => state.borrow().arrivals.len().to_string(),
            "take" => {
                let arrivals = std::mem::take(&mut state.borrow_mut().arrivals);
                let mut out = Vec::with_capacity(arrivals.len() * 12);
                for a in arrivals {
                    out.extend(a.at_ns.to_le_bytes());
                    out.extend(a.id.to_le_bytes());
                }
                std::fs::write(rest, out)?;
                "ok".to_owned()
            }
            other => return Err(format!("unknown order {other}").into()),
        };
        write.write_all(format!("{answer}\n").as_bytes()).await?;
    }
    Ok(())
}

/// The partner's process, seen from the harness.
pub struct Partner {
    child: Child,
    control: BufReader<TcpStream>,
    folder: PathBuf,
    /// Port without TLS.
    pub plain: u16,
    /// Port with TLS; the name is `localhost`.
    pub tls: u16,
}

impl Drop for Partner {
    fn drop(&mut self) {
        // It may have ended already, which is what is wanted.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Partner {
    /// Starts one with a new certificate. `folder` must live as long as it.
    pub fn start(folder: &Path, places: &Places) -> Result<Self, Failed> {
        let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
        std::fs::write(folder.join("cert.pem"), own.cert.pem())?;
        std::fs::write(folder.join("key.pem"), own.signing_key.serialize_pem())?;
        let mut command = places.command(Pinned::Partner, &std::env::current_exe()?);
        let mut child = command
            .arg("--serve")
            .arg(folder)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut told = String::new();
        BufReader::new(child.stdout.take().ok_or("no output of the partner")?).read_line(&mut told)?;
        let ports: Vec<u16> = told.split_whitespace().map_while(|p| p.parse().ok()).collect();
        let [plain, tls, control] = ports[..] else {
            return Err("the partner did not start".into());
        };
        let control = TcpStream::connect(("127.0.0.1", control))?;
        control.set_nodelay(true)?;
        Ok(Self {
            child,
            control: BufReader::new(control),
            folder: folder.to_owned(),
            plain,
            tls,
        })
    }

    /// Its certificate, which clients must trust.
    pub fn ca(&self) -> PathBuf {
        self.folder.join("cert.pem")
    }

    /// Process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn ask(&mut self, line: &str) -> Result<String, Failed> {
        writeln!(self.control.get_mut(), "{line}")?;
        let mut answer = String::new();
        self.control.read_line(&mut answer)?;
        match answer.trim_end() {
            "" => Err("the partner is gone".into()),
            answer => Ok(answer.to_owned()),
        }
    }

    /// Behaves so from now on, and forgets what came.
    pub fn plan(&mut self, plan: &Plan) -> Result<(), Failed> {
        self.ask(&format!("plan {}", serde_json::to_string(plan)?))?;
        self.take().map(|_| ())
    }

    /// Requests that came since the last [`Partner::take`].
    pub fn count(&mut self) -> Result<u64, Failed> {
        Ok(self.ask("count")?.parse()?)
    }

    /// The longest that the partner itself was late since the last time it was asked: what it saw is only as exact.
    pub fn stall(&mut self) -> Result<Duration, Failed> {
        Ok(Duration::from_nanos(self.ask("stall")?.parse()?))
    }

    /// All that came since the last time, in the order of their coming.
    pub fn take(&mut self) -> Result<Vec<Arrival>, Failed> {
        let file = self.folder.join("arrivals");
        self.ask(&format!("take {}", file.display()))?;
        let bytes = std::fs::read(&file)?;
        std::fs::remove_file(&file)?;
        let arrivals = bytes.chunks_exact(12).map(|c| {
            let (at, id) = c.split_at(8);
            Some(Arrival {
                at_ns: u64::from_le_bytes(at.try_into().ok()?),
                id: u32::from_le_bytes(id.try_into().ok()?),
            })
        });
        arrivals
            .collect::<Option<_>>()
            .ok_or_else(|| "half an arrival".into())
    }
}
