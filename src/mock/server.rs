//! Listeners, the partners behind them, and the handle that tests and the command hold.
//!
//! Everything runs on one thread with one runtime: counts need no contention, and what a benchmark measures beside
//! it has the other cores to itself.

use super::connection::{self, Transport};
use super::options::{Behaviour, ControlError, MockOptions, PartnerOptions};
use super::plan::{Nanos, OwnLimit, Script, nanos};
use super::spec::Fault;
use super::tally::{IdCount, PartnerReport, Report, Tally};
use parking_lot::Mutex;
use std::future::pending;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// Why a mock cannot start or be changed.
#[derive(Debug, thiserror::Error)]
pub enum MockError {
    /// The address cannot be listened on.
    #[error("cannot listen on {addr}")]
    Listen {
        /// Which.
        addr: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The certificate cannot be made.
    #[error("cannot make a certificate: {0}")]
    Certificate(String),
    /// The certificate cannot be written.
    #[error("cannot write the certificate to `{}`", path.display())]
    CertificateFile {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Threads or runtime cannot be had.
    #[error("cannot start the mock's thread")]
    Thread(#[source] std::io::Error),
    /// Two partners with the same name, or the same prefix on one listener; or none.
    #[error("{0}")]
    Partners(String),
    /// No partner of this name.
    #[error("no partner `{0}`")]
    NoPartner(String),
    /// A change that makes no sense.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// One partner behind a listener.
pub(crate) struct Partner {
    pub(crate) options: PartnerOptions,
    pub(crate) listener: usize,
    pub(crate) state: Mutex<State>,
    changed: Notify,
}

/// What of a partner changes.
pub(crate) struct State {
    pub(crate) behaviour: Behaviour,
    pub(crate) script: Script,
    pub(crate) limits: Vec<OwnLimit>,
    pub(crate) tally: Tally,
    pub(crate) rng: fastrand::Rng,
}

impl State {
    /// Whether every request meets this fault at present.
    pub(crate) fn certain(&mut self, now: Nanos, fault: Fault) -> bool {
        let phase = self.script.at(now);
        let faults = phase.map_or(&self.behaviour.faults, |p| &p.faults);
        faults.iter().any(|f| f.fault == fault && f.share >= 1.0)
    }
}

/// One listening address; `down` closes it.
struct Listening {
    addr: SocketAddr,
    down: watch::Sender<bool>,
    idle_timeout: Option<Duration>,
    requests_per_connection: Option<u64>,
}

/// What all connections share.
pub(crate) struct Shared {
    start: Instant,
    wall_at_start_us: u64,
    scheme: &'static str,
    pub(crate) partners: Vec<Partner>,
    listeners: Vec<Listening>,
}

impl Shared {
    /// Nanoseconds since the start.
    pub(crate) fn now(&self) -> Nanos {
        nanos(self.start.elapsed())
    }
    /// The partner whose prefix fits best, and the path behind the prefix.
    pub(crate) fn route<'p>(&self, listener: usize, path: &'p str) -> Option<(&Partner, &'p str)> {
        let on_listener = self.partners.iter().filter(|p| p.listener == listener);
        on_listener
            .filter_map(|p| {
                let prefix = p.options.prefix.trim_end_matches('/');
                let rest = path.strip_prefix(prefix)?;
                (rest.is_empty() || rest.starts_with(['/', '?'])).then_some((p, rest))
            })
            .min_by_key(|(_, rest)| rest.len())
    }
    /// The longest that a connection of this listener may be idle.
    pub(crate) fn idle_timeout(&self, listener: usize) -> Option<Duration> {
        self.listeners[listener].idle_timeout
    }
    /// Answers after which a connection of this listener is closed.
    pub(crate) fn requests_per_connection(&self, listener: usize) -> Option<u64> {
        self.listeners[listener].requests_per_connection
    }
    /// The partner of this name; with no name the only one.
    pub(crate) fn named(&self, name: Option<&str>) -> Result<&Partner, MockError> {
        match name {
            Some(name) => self.partners.iter().find(|p| p.options.name == name),
            None => self.partners.first().filter(|_| self.partners.len() == 1),
        }
        .ok_or_else(|| MockError::NoPartner(name.unwrap_or("(several: say which)").to_owned()))
    }
    /// Changes a partner's behaviour; a script that is named begins anew.
    pub(crate) fn control(&self, partner: &Partner, change: &serde_json::Value) -> Result<(), MockError> {
        let now = self.now();
        let mut state = partner.state.lock();
        let behaviour = state.behaviour.changed(change)?;
        if behaviour.limits != state.behaviour.limits {
            state.limits = behaviour.limits.iter().copied().map(OwnLimit::new).collect();
        }
        if ["script", "repeat", "from_first_request"]
            .iter()
            .any(|name| change.get(name).is_some())
        {
            state.script = Script::new(&behaviour, now);
        }
        state.behaviour = behaviour;
        drop(state);
        partner.changed();
        Ok(())
    }
    /// One partner's report.
    pub(crate) fn partner_report(&self, partner: &Partner) -> PartnerReport {
        self.report_of(partner, &partner.state.lock())
    }
    fn report_of(&self, partner: &Partner, state: &State) -> PartnerReport {
        let addr = self.listeners[partner.listener].addr;
        let url = format!("{}://{addr}{}", self.scheme, partner.options.prefix);
        state
            .tally
            .report(&partner.options.name, url, self.wall_at_start_us)
    }
    /// One snapshot of all partners: nothing is counted while it is made, so that its sums add up.
    pub(crate) fn report(&self) -> Report {
        let states: Vec<_> = self.partners.iter().map(|p| p.state.lock()).collect();
        let partners: Vec<_> = self
            .partners
            .iter()
            .zip(&states)
            .map(|(partner, state)| self.report_of(partner, state))
            .collect();
        drop(states);
        let requests = partners.iter().map(|p| p.requests).sum();
        let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let cpu_us = cpu.tv_sec as u64 * 1_000_000 + cpu.tv_nsec as u64 / 1_000;
        Report {
            uptime_ms: self.start.elapsed().as_millis() as u64,
            requests,
            cpu_us,
            cpu_us_per_request: if requests == 0 {
                0.0
            } else {
                cpu_us as f64 / requests as f64
            },
            limits_kept: partners
                .iter()
                .flat_map(|p| &p.limits)
                .map(|limit| limit.kept)
                .reduce(|all, kept| all && kept),
            partners,
        }
    }
    /// Opens or closes a listener after what its partners are at: it is closed when all of them are down.
    fn refresh(&self, listener: usize, now: Nanos) {
        let mut behind = self.partners.iter().filter(|p| p.listener == listener).peekable();
        let down = behind.peek().is_some() && behind.all(|p| p.state.lock().certain(now, Fault::Down));
        self.listeners[listener]
            .down
            .send_if_modified(|was| std::mem::replace(was, down) != down);
    }
}

impl Partner {
    /// Says that the phase may be another one now.
    pub(crate) fn changed(&self) {
        self.changed.notify_one();
    }
}

/// The stand-in partner.
pub struct Mock;

impl Mock {
    /// Starts it on a thread of its own; it runs until its handle is stopped or dropped.
    pub fn start(options: MockOptions) -> Result<MockHandle, MockError> {
        let tls = options
            .tls
            .then(|| Tls::make(options.tls_cert.as_ref()))
            .transpose()?;
        let ca = tls.as_ref().map(|t| t.pem.clone());
        let (started, is_started) = std::sync::mpsc::sync_channel(1);
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("mock".into()).spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(e) => {
                    let _ = started.send(Err(MockError::Thread(e)));
                    return;
                }
            };
            runtime.block_on(async move {
                match bind(&options, tls.is_some()) {
                    Err(e) => {
                        let _ = started.send(Err(e));
                    }
                    Ok((shared, sockets)) => {
                        let shared = Arc::new(shared);
                        let _ = started.send(Ok(shared.clone()));
                        run(shared, sockets, tls.map(|t| t.acceptor), stopped).await;
                    }
                }
            });
        });
        let thread = thread.map_err(MockError::Thread)?;
        let shared = is_started
            .recv()
            .map_err(|_| MockError::Thread(std::io::Error::other("the mock's thread ended at once")))??;
        Ok(MockHandle {
            shared,
            ca,
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

/// A certificate made at start.
struct Tls {
    acceptor: TlsAcceptor,
    pem: String,
}

impl Tls {
    fn make(file: Option<&PathBuf>) -> Result<Self, MockError> {
        let bad = |e: &dyn std::fmt::Display| MockError::Certificate(e.to_string());
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).map_err(|e| bad(&e))?;
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| bad(&e))?
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into())
            .map_err(|e| bad(&e))?;
        let pem = made.cert.pem();
        if let Some(path) = file {
            std::fs::write(path, &pem).map_err(|source| MockError::CertificateFile {
                path: path.clone(),
                source,
            })?;
        }
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            pem,
        })
    }
}

fn listen(addr: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if addr.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    // Ten thousand connections at once must not meet a full backlog: that would be a fault nobody asked for.
    socket.listen(16_384)
}

fn bind(options: &MockOptions, tls: bool) -> Result<(Shared, Vec<TcpListener>), MockError> {
    if options.partners.is_empty() {
        return Err(MockError::Partners("a mock needs at least one partner".into()));
    }
    let mut listeners: Vec<Listening> = Vec::new();
    let mut sockets = Vec::new();
    let mut open = |addr: SocketAddr, first: Option<&PartnerOptions>| -> Result<usize, MockError> {
        let failed = |source| MockError::Listen { addr, source };
        let socket = listen(addr).map_err(failed)?;
        listeners.push(Listening {
            addr: socket.local_addr().map_err(failed)?,
            down: watch::channel(false).0,
            idle_timeout: first.and_then(|p| p.idle_timeout).map(|s| s.0),
            requests_per_connection: first.and_then(|p| p.requests_per_connection),
        });
        sockets.push(socket);
        Ok(listeners.len() - 1)
    };
    let shared_by = |p: &&PartnerOptions| p.listen.is_none();
    let main = match options.partners.iter().find(shared_by) {
        Some(first) => Some(open(options.listen, Some(first))?),
        None => None,
    };
    let mut partners: Vec<Partner> = Vec::new();
    for (i, p) in options.partners.iter().enumerate() {
        let listener = match (p.listen, main) {
            (None, Some(main)) => main,
            (own, _) => open(own.unwrap_or(options.listen), Some(p))?,
        };
        let mut p = p.clone();
        if !p.prefix.starts_with('/') {
            p.prefix.insert(0, '/');
        }
        if partners
            .iter()
            .any(|o| o.options.name == p.name || (o.listener == listener && o.options.prefix == p.prefix))
        {
            return Err(MockError::Partners(format!(
                "partner `{}` or its prefix is there twice",
                p.name
            )));
        }
        let state = State {
            script: Script::new(&p.behaviour, 0),
            limits: p.behaviour.limits.iter().copied().map(OwnLimit::new).collect(),
            tally: Tally::new(&p.windows, &p.most),
            rng: options
                .seed
                .map_or_else(fastrand::Rng::new, |s| fastrand::Rng::with_seed(s + i as u64)),
            behaviour: p.behaviour.clone(),
        };
        partners.push(Partner {
            options: p,
            listener,
            state: Mutex::new(state),
            changed: Notify::new(),
        });
    }
    if let Some(control) = options.control {
        open(control, None)?;
    }
    let scheme = if tls { "https" } else { "http" };
    let wall_at_start_us = crate::clock::Clock::wall().0;
    Ok((
        Shared {
            start: Instant::now(),
            wall_at_start_us,
            scheme,
            partners,
            listeners,
        },
        sockets,
    ))
}

async fn run(
    shared: Arc<Shared>,
    sockets: Vec<TcpListener>,
    tls: Option<TlsAcceptor>,
    stopped: oneshot::Receiver<()>,
) {
    let mut tasks = JoinSet::new();
    for (listener, socket) in sockets.into_iter().enumerate() {
        tasks.spawn(accept(shared.clone(), listener, socket, tls.clone()));
    }
    for partner in 0..shared.partners.len() {
        tasks.spawn(conduct(shared.clone(), partner));
    }
    let _ = stopped.await;
    tasks.shutdown().await;
}

/// Follows one partner's script, so that its listener opens and closes on time without a request.
async fn conduct(shared: Arc<Shared>, index: usize) {
    let partner = &shared.partners[index];
    loop {
        let now = shared.now();
        let deadline = {
            let mut state = partner.state.lock();
            state.script.at(now);
            state.script.deadline()
        };
        shared.refresh(partner.listener, now);
        let phase_ends = async {
            match deadline {
                Some(at) => tokio::time::sleep_until((shared.start + Duration::from_nanos(at)).into()).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = phase_ends => {}
            () = partner.changed.notified() => {}
        }
    }
}

async fn accept(shared: Arc<Shared>, listener: usize, socket: TcpListener, tls: Option<TlsAcceptor>) {
    let mut down = shared.listeners[listener].down.subscribe();
    let mut connections = JoinSet::new();
    let mut socket = Some(socket);
    loop {
        if *down.borrow_and_update() {
            socket = None;
            connections.shutdown().await;
            if down.changed().await.is_err() {
                return;
            }
            continue;
        }
        let Some(open) = &socket else {
            match listen(shared.listeners[listener].addr) {
                Ok(again) => socket = Some(again),
                // Somebody else has the port for the moment: a partner that is slow to come up.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
            continue;
        };
        tokio::select! {
            _ = down.changed() => {}
            accepted = open.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connected(shared.clone(), listener, stream, tls.clone()));
                }
                // Out of file descriptors, most likely: connections that end make room.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn connected(shared: Arc<Shared>, listener: usize, stream: TcpStream, tls: Option<TlsAcceptor>) {
    // Without it small answers would wait for the other side's delayed acknowledgement.
    let _ = stream.set_nodelay(true);
    if let Some(partner) = shared.partners.iter().find(|p| p.listener == listener) {
        partner.state.lock().tally.connected();
    }
    match tls {
        None => connection::serve(&shared, listener, stream).await,
        Some(acceptor) => {
            if let Ok(stream) = acceptor.accept(stream).await {
                connection::serve(&shared, listener, stream).await;
            }
        }
    }
}

impl Transport for TcpStream {
    fn reset(&self) {
        let _ = self.set_zero_linger();
    }
}
impl Transport for tokio_rustls::server::TlsStream<TcpStream> {
    fn reset(&self) {
        self.get_ref().0.reset();
    }
}

/// A running mock. Stops when dropped.
pub struct MockHandle {
    shared: Arc<Shared>,
    ca: Option<String>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl MockHandle {
    /// Where the first listener listens.
    pub fn addr(&self) -> SocketAddr {
        self.shared.listeners[0].addr
    }
    /// Where the control listener listens, if one was asked for; else the first listener.
    pub fn control_addr(&self) -> SocketAddr {
        let behind = |i: usize| self.shared.partners.iter().any(|p| p.listener == i);
        let alone = (0..self.shared.listeners.len()).find(|i| !behind(*i));
        self.shared.listeners[alone.unwrap_or(0)].addr
    }
    /// Where a partner is reached, scheme and prefix included, without a slash at the end.
    pub fn url(&self, partner: &str) -> Result<String, MockError> {
        let partner = self.shared.named(Some(partner))?;
        let addr = self.shared.listeners[partner.listener].addr;
        Ok(format!(
            "{}://{addr}{}",
            self.shared.scheme,
            partner.options.prefix.trim_end_matches('/')
        ))
    }
    /// The certificate to trust (PEM), if it serves TLS.
    pub fn ca_pem(&self) -> Option<&str> {
        self.ca.as_deref()
    }
    /// The counts as they stand.
    pub fn report(&self) -> Report {
        self.shared.report()
    }
    /// One partner's counts; its name is `partner` unless it was given another one.
    pub fn partner(&self, name: &str) -> Result<PartnerReport, MockError> {
        Ok(self.shared.partner_report(self.shared.named(Some(name))?))
    }
    /// What a partner has counted for a message ID (as text, the way it was sent).
    pub fn id(&self, partner: &str, id: &str) -> Result<IdCount, MockError> {
        Ok(self
            .shared
            .named(Some(partner))?
            .state
            .lock()
            .tally
            .id(id.as_bytes()))
    }
    /// Changes a partner's behaviour: an object with fields of [`Behaviour`], as `POST /control` takes.
    pub fn control(&self, partner: &str, change: &serde_json::Value) -> Result<(), MockError> {
        self.shared.control(self.shared.named(Some(partner))?, change)
    }
    /// Stops it and answers the last report.
    pub fn stop(mut self) -> Report {
        self.end();
        self.shared.report()
    }
    fn end(&mut self) {
        // Dropped or sent, the mock stops: the receiver ends on both.
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for MockHandle {
    fn drop(&mut self) {
        self.end();
    }
}
