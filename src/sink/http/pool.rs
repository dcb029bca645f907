//! Connections that wait for their next request: one LIFO stack an origin.
//!
//! The one used last is handed out first, so that as few as the load needs are warm and the rest grow old and go.
//! A sweep every few seconds closes what the partner closed, what is older than [`IDLE_FOR`], and what the busiest
//! moment of the last two sweeps would not have needed. The number of origins is bounded: records may bring URLs
//! of their own, and each origin holds memory and file descriptors (I6).

use super::connection::{Http1, Io, Socket};
use super::origin::Origin;
use futures_util::stream::{FuturesUnordered, StreamExt};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

/// Idle connections are closed after this. Servers and load balancers close theirs after 60 s or more as a rule
/// (some after 5 s: those the check before use finds).
const IDLE_FOR: Duration = Duration::from_secs(90);
/// A connection that worked this short a time ago is not looked at again: a look costs some hundred nanoseconds.
const FRESH: Duration = Duration::from_millis(1);
/// How often idle connections are looked through.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// Origins at once.
const MAX_ORIGINS: usize = 256;
/// How long one address is given before the next one is tried beside it (RFC 8305 recommends 250 ms).
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);

/// Why there is no connection. Nothing was written, so it is never a doubt.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("no address for {host}: {source}")]
    Dns { host: String, source: std::io::Error },
    #[error("{host} has no address")]
    NoAddress { host: String },
    #[error("{address}: {source}")]
    Tcp {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("tls: {0}")]
    Tls(std::io::Error),
    #[error("tls: {0} is not a name a certificate can be checked against")]
    Name(String),
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    #[error("{0}")]
    Handshake(hyper::Error),
    #[error("more than {MAX_ORIGINS} hosts at once")]
    Origins,
}

/// Counters of all origins.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) open: Cell<u64>,
    pub(super) connected: Cell<u64>,
    pub(super) failed: Cell<u64>,
    pub(super) stale: Cell<u64>,
}

fn bump(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

/// All connections of one sink.
pub(super) struct Pool {
    origins: RefCell<HashMap<Rc<Origin>, Rc<Stack>>>,
    /// The one asked for last: with a constant URL it is the same value each time, and needs no hashing.
    last: RefCell<Option<(Rc<Origin>, Rc<Stack>)>>,
    tls: Arc<ClientConfig>,
    connect_timeout: Duration,
    pub(super) counters: Rc<Counters>,
    sweeping: Cell<bool>,
}

/// The connections of one origin.
struct Stack {
    /// Boxed: a connection is some hundred bytes, and moves in and out with every request.
    #[allow(clippy::vec_box)]
    idle: RefCell<Vec<Box<Http1>>>,
    in_use: Cell<usize>,
    /// Most in use at once since the last sweep, and between the two before.
    peak: Cell<usize>,
    peak_before: Cell<usize>,
    last_used: Cell<Instant>,
    counters: Rc<Counters>,
}

/// A connection in hand. Dropped unused, or after a clean exchange, it goes back to the pool.
pub(super) struct Leased {
    conn: Option<Box<Http1>>,
    stack: Rc<Stack>,
    /// When it was last known to work.
    checked: Instant,
    /// Whether an exchange is under way: then it does not go back.
    busy: bool,
}

impl Leased {
    /// The connection, for one exchange. Until [`Leased::done`] says otherwise it will not be used again.
    pub(super) fn begin(&mut self, now: Instant) -> &mut Http1 {
        self.busy = true;
        let conn = self.conn.as_mut().expect("taken only by drop");
        conn.used = now;
        conn
    }
    /// The exchange ended with a whole answer.
    pub(super) fn done(&mut self) {
        self.busy = false;
    }
    /// Whether it can still be written to, as far as is known here.
    pub(super) fn is_usable(&mut self, now: Instant) -> bool {
        let fresh = now.duration_since(self.checked) < FRESH;
        self.conn
            .as_mut()
            .is_some_and(|c| if fresh { c.is_open() } else { c.is_usable() })
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        self.stack.in_use.set(self.stack.in_use.get() - 1);
        if let Some(mut conn) = self.conn.take() {
            if !self.busy && conn.is_ready() {
                self.stack.idle.borrow_mut().push(conn);
            } else {
                self.stack.counters.open.set(self.stack.counters.open.get() - 1);
            }
        }
    }
}

impl Pool {
    pub(super) fn new(tls: Arc<ClientConfig>, connect_timeout: Duration) -> Rc<Self> {
        Rc::new(Self {
            origins: RefCell::default(),
            last: RefCell::default(),
            tls,
            connect_timeout,
            counters: Rc::default(),
            sweeping: Cell::new(false),
        })
    }

    /// A connection was found closed when it was needed.
    pub(super) fn count_stale(&self) {
        bump(&self.counters.stale);
    }

    fn stack(&self, origin: &Rc<Origin>) -> Result<Rc<Stack>, ConnectError> {
        if let Some((last, stack)) = &*self.last.borrow()
            && Rc::ptr_eq(last, origin)
        {
            return Ok(Rc::clone(stack));
        }
        let stack = self.find_or_make(origin)?;
        *self.last.borrow_mut() = Some((Rc::clone(origin), Rc::clone(&stack)));
        Ok(stack)
    }

    fn find_or_make(&self, origin: &Rc<Origin>) -> Result<Rc<Stack>, ConnectError> {
        let mut origins = self.origins.borrow_mut();
        if let Some(stack) = origins.get(origin) {
            return Ok(Rc::clone(stack));
        }
        if origins.len() >= MAX_ORIGINS {
            let oldest = origins
                .iter()
                .filter(|(_, s)| s.in_use.get() == 0)
                .min_by_key(|(_, s)| s.last_used.get())
                .map(|(o, _)| Rc::clone(o))
                .ok_or(ConnectError::Origins)?;
            origins.remove(&oldest);
        }
        let stack = Rc::new(Stack {
            idle: RefCell::default(),
            in_use: Cell::new(0),
            peak: Cell::new(0),
            peak_before: Cell::new(0),
            last_used: Cell::new(Instant::now()),
            counters: Rc::clone(&self.counters),
        });
        origins.insert(Rc::clone(origin), Rc::clone(&stack));
        Ok(stack)
    }

    /// An idle connection that is usable, else a new one.
    pub(super) async fn get(self: &Rc<Self>, origin: &Rc<Origin>) -> Result<Leased, ConnectError> {
        let stack = self.stack(origin)?;
        let now = Instant::now();
        loop {
            let Some(mut conn) = stack.idle.borrow_mut().pop() else {
                break;
            };
            let idle = now.duration_since(conn.used);
            if idle < FRESH || (idle < IDLE_FOR && conn.is_usable()) {
                return Ok(stack.lease(conn, now));
            }
            self.count_stale();
            self.counters.open.set(self.counters.open.get() - 1);
        }
        // Boxed: what happens once a connection must not make the future of every request larger.
        Box::pin(self.open(origin, stack)).await
    }

    /// A new connection, whatever waits in the pool.
    pub(super) async fn get_new(self: &Rc<Self>, origin: &Rc<Origin>) -> Result<Leased, ConnectError> {
        let stack = self.stack(origin)?;
        Box::pin(self.open(origin, stack)).await
    }

    async fn open(self: &Rc<Self>, origin: &Rc<Origin>, stack: Rc<Stack>) -> Result<Leased, ConnectError> {
        self.start_sweeping();
        let made = tokio::time::timeout(self.connect_timeout, self.connect(origin)).await;
        match made.unwrap_or(Err(ConnectError::Timeout(self.connect_timeout))) {
            Ok(conn) => {
                bump(&self.counters.connected);
                bump(&self.counters.open);
                Ok(stack.lease(Box::new(conn), Instant::now()))
            }
            Err(e) => {
                bump(&self.counters.failed);
                Err(e)
            }
        }
    }

    async fn connect(&self, origin: &Origin) -> Result<Http1, ConnectError> {
        let socket = Socket::new(dial(origin).await?);
        let io = if origin.https {
            let name = ServerName::try_from(origin.host.clone())
                .map_err(|_| ConnectError::Name(origin.host.clone()))?;
            let tls = TlsConnector::from(Arc::clone(&self.tls))
                .connect(name, socket)
                .await;
            Io::Tls(Box::new(tls.map_err(ConnectError::Tls)?))
        } else {
            Io::Plain(socket)
        };
        Http1::start(io).await.map_err(ConnectError::Handshake)
    }

    /// Opens a connection, TLS included, and says what was found.
    pub(super) async fn try_out(&self, origin: &Origin) -> Result<String, ConnectError> {
        let attempt = async {
            let stream = dial(origin).await?;
            let peer = stream
                .peer_addr()
                .map_or_else(|e| e.to_string(), |a| a.to_string());
            if !origin.https {
                return Ok(format!("connected to {peer}, without TLS"));
            }
            let name = ServerName::try_from(origin.host.clone())
                .map_err(|_| ConnectError::Name(origin.host.clone()))?;
            let tls = TlsConnector::from(Arc::clone(&self.tls))
                .connect(name, Socket::new(stream))
                .await
                .map_err(ConnectError::Tls)?;
            let session = tls.get_ref().1;
            let version = session
                .protocol_version()
                .and_then(|v| v.as_str())
                .unwrap_or("TLS");
            let alpn = session
                .alpn_protocol()
                .map(|p| String::from_utf8_lossy(p).into_owned());
            Ok(format!(
                "connected to {peer}, {version}, certificate valid for {}, protocol {}",
                origin.host,
                alpn.as_deref().unwrap_or("http/1.1 (none negotiated)"),
            ))
        };
        tokio::time::timeout(self.connect_timeout, attempt)
            .await
            .unwrap_or(Err(ConnectError::Timeout(self.connect_timeout)))
    }

    fn start_sweeping(self: &Rc<Self>) {
        if !self.sweeping.replace(true) {
            tokio::task::spawn_local(sweep(Rc::downgrade(self)));
        }
    }

    /// One look through what is idle.
    pub(super) fn sweep_once(&self, now: Instant) {
        for stack in self.origins.borrow().values() {
            let needed = stack
                .peak
                .get()
                .max(stack.peak_before.get())
                .saturating_sub(stack.in_use.get());
            stack.peak_before.set(stack.peak.replace(stack.in_use.get()));
            let mut idle = stack.idle.borrow_mut();
            let before = idle.len();
            // The oldest are at the bottom.
            let surplus = before.saturating_sub(needed);
            idle.drain(..surplus);
            idle.retain_mut(|c| now.duration_since(c.used) < IDLE_FOR && c.is_usable());
            let closed = (before - idle.len()) as u64;
            self.counters.open.set(self.counters.open.get() - closed);
        }
        // An origin that nobody asks for any more costs nothing any more.
        *self.last.borrow_mut() = None;
        self.origins.borrow_mut().retain(|_, s| {
            s.in_use.get() > 0
                || !s.idle.borrow().is_empty()
                || now.duration_since(s.last_used.get()) < IDLE_FOR
        });
    }
}

/// Looks through the pool until it is gone.
async fn sweep(pool: Weak<Pool>) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        let Some(pool) = pool.upgrade() else { return };
        pool.sweep_once(Instant::now());
    }
}

impl Stack {
    fn lease(self: Rc<Self>, conn: Box<Http1>, now: Instant) -> Leased {
        let in_use = self.in_use.get() + 1;
        self.in_use.set(in_use);
        self.peak.set(self.peak.get().max(in_use));
        self.last_used.set(now);
        Leased {
            conn: Some(conn),
            stack: self,
            checked: now,
            busy: false,
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let idle = self.idle.get_mut().len() as u64;
        self.counters.open.set(self.counters.open.get() - idle);
    }
}

/// A TCP connection to the first address that answers; the next address is tried when one fails or is slow.
async fn dial(origin: &Origin) -> Result<TcpStream, ConnectError> {
    let addresses: Vec<SocketAddr> = match origin.address {
        Some(ip) => vec![SocketAddr::new(ip, origin.port)],
        None => tokio::net::lookup_host((origin.host.as_str(), origin.port))
            .await
            .map_err(|source| ConnectError::Dns {
                host: origin.host.clone(),
                source,
            })?
            .collect(),
    };
    let mut waiting = in_turns(addresses).into_iter();
    let one = |address: SocketAddr| async move {
        let stream = TcpStream::connect(address).await;
        stream
            .and_then(|s| s.set_nodelay(true).map(|()| s))
            .map_err(|source| ConnectError::Tcp { address, source })
    };
    let Some(first) = waiting.next() else {
        return Err(ConnectError::NoAddress {
            host: origin.host.clone(),
        });
    };
    let mut trying = FuturesUnordered::new();
    trying.push(one(first));
    loop {
        let result = if waiting.len() == 0 {
            trying.next().await
        } else {
            match tokio::time::timeout(NEXT_ADDRESS_AFTER, trying.next()).await {
                Ok(result) => result,
                Err(_slow) => {
                    trying.extend(waiting.next().map(one));
                    continue;
                }
            }
        };
        match result {
            Some(Ok(stream)) => return Ok(stream),
            Some(Err(e)) => match waiting.next() {
                Some(next) => trying.push(one(next)),
                None if trying.is_empty() => return Err(e),
                None => {}
            },
            None => {
                return Err(ConnectError::NoAddress {
                    host: origin.host.clone(),
                });
            }
        }
    }
}

/// IPv6 and IPv4 by turns, the resolver's order kept within each.
fn in_turns(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (a, b): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|x| x.is_ipv6() == first_is_v6);
    let (mut a, mut b) = (a.into_iter(), b.into_iter());
    let mut out = Vec::with_capacity(a.len() + b.len());
    while a.len() + b.len() > 0 {
        out.extend(a.next());
        out.extend(b.next());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_take_turns() {
        let parse = |s: &str| s.parse::<SocketAddr>().unwrap();
        let v = ["[::1]:1", "[::2]:1", "1.1.1.1:1", "2.2.2.2:1", "3.3.3.3:1"]
            .map(parse)
            .to_vec();
        let want = ["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "3.3.3.3:1"]
            .map(parse)
            .to_vec();
        assert_eq!(in_turns(v), want);
    }
}
