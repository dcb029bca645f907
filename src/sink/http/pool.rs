//! Connections that wait for their next request: one LIFO stack an origin, and beside it the HTTP/2 connections,
//! which requests share.
//!
//! The one used last is handed out first, so that as few as the load needs are warm and the rest grow old and go.
//! A sweep every few seconds closes what the partner closed, what is older than [`IDLE_FOR`] or than the partner
//! said it keeps it, and what the busiest moment of the last two sweeps would not have needed. No connection lives
//! longer than the partner's `timeout.connection`: a name that moves to another address is followed. The number of
//! origins is bounded: records may bring URLs of their own, and each origin holds memory and file descriptors (I6).

use super::connection::{Dialect, Http1, within};
use super::dial::{ConnectError, Dialer};
use super::http2::{Http2, Stream};
use super::origin::Origin;
use crate::core::in_full::in_full;
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Idle connections are closed after this. Servers and load balancers close theirs after 60 s or more as a rule
/// (some after 5 s: those the check before use finds).
const IDLE_FOR: Duration = Duration::from_secs(90);
/// A connection that worked this short a time ago is handed out unseen: it is looked at before it is written to.
const FRESH: Duration = Duration::from_millis(1);
/// How often idle connections are looked through.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// Origins at once.
const MAX_ORIGINS: usize = 256;
/// A partner that has given an answer that nobody asked for has a new connection for each request for so long.
const DISTRUST: Duration = Duration::from_secs(600);
/// Answers of one origin that wait, at once, for what follows them, without a place at the partner: each keeps its
/// connection.
const UNSETTLED: usize = 64;
/// Part of their life by which connections end before it is over, so that those made at once do not end at once.
const SPREAD: u32 = 5;

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

/// What a pool is made with.
pub(super) struct PoolConfig {
    pub(super) dialer: Dialer,
    pub(super) connect_timeout: Duration,
    /// Longest life of a connection.
    pub(super) life: Duration,
    pub(super) http2: bool,
    pub(super) title_case: bool,
    /// The partner's name, for the log.
    pub(super) partner: Arc<str>,
    /// Rules look at bodies, so heads of any number of fields are read by hyper itself.
    pub(super) many_fields: bool,
}

/// All connections of one sink.
pub(super) struct Pool {
    origins: RefCell<HashMap<Rc<Origin>, Rc<Stack>>>,
    /// The one asked for last: with a constant URL it is the same value each time, and needs no hashing.
    last: RefCell<Option<(Rc<Origin>, Rc<Stack>)>>,
    config: PoolConfig,
    /// The partner has sent more fields than hyper reads without allocating.
    many_fields: Cell<bool>,
    /// Why the latest connect failed, and when.
    failure: RefCell<Option<(Arc<str>, Instant)>>,
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
    shared: RefCell<Vec<Rc<Http2>>>,
    /// Why the latest connect failed, and when.
    failure: RefCell<Option<(Arc<str>, Instant)>>,
    /// Held by whoever makes a connection that others may share.
    making: tokio::sync::Semaphore,
    /// The partner chose HTTP/1.1: its connections are not shared.
    alone: Cell<bool>,
    /// Answers that wait for what follows them.
    unsettled: Cell<usize>,
    /// Until when no connection is used twice.
    distrusted_until: Cell<Option<Instant>>,
    partner: Arc<str>,
}

/// A connection in hand.
pub(super) enum Leased {
    /// Of its own. Dropped unused, or after a clean exchange, it goes back to the pool.
    Alone(Alone),
    /// A stream of one that is shared.
    Shared(Stream),
}

/// An HTTP/1.1 connection in hand.
pub(super) struct Alone {
    conn: Option<Box<Http1>>,
    stack: Rc<Stack>,
    /// Whether an exchange is under way: then it does not go back.
    busy: bool,
}

impl Alone {
    /// The connection, for one exchange. Until [`Alone::done`] says otherwise it will not be used again.
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
    /// The connection, behind the answer of its exchange.
    pub(super) fn conn(&mut self) -> &mut Http1 {
        self.conn.as_mut().expect("taken only by drop")
    }
    /// An answer came over it that nobody had asked for. Of a partner that does so no connection is used twice for a
    /// while: the first answer over a connection is the first request's.
    pub(super) fn distrust(&mut self) {
        let now = Instant::now();
        let told = self.stack.distrusted_until.replace(Some(now + DISTRUST));
        if told.is_none_or(|until| until < now) {
            tracing::warn!(
                event = "stray_answer", partner = %self.stack.partner, for_s = DISTRUST.as_secs(),
                "the partner gave an answer that nobody had asked for: for a while each request has a connection of its own"
            );
        }
        self.stack.close_idle();
    }
    /// Leave to wait for what follows an answer.
    pub(super) fn turn(&self) -> Option<Turn> {
        let unsettled = self.stack.unsettled.get();
        (unsettled < UNSETTLED).then(|| {
            self.stack.unsettled.set(unsettled + 1);
            Turn(Rc::clone(&self.stack))
        })
    }
    /// Whether it can still be written to: the kernel is asked, for what a partner sends unasked (an error page, an
    /// end) comes at any time, and would be read as the answer to what is written next.
    pub(super) fn is_usable(&mut self, now: Instant) -> bool {
        let of_age = |c: &Http1| c.served == 0 || now < c.good_until;
        self.conn.as_mut().is_some_and(|c| of_age(c) && c.is_quiet())
    }
}

/// Leave to wait for what follows an answer; given back when dropped.
pub(super) struct Turn(Rc<Stack>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.unsettled.set(self.0.unsettled.get() - 1);
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        self.stack.in_use.set(self.stack.in_use.get() - 1);
        if let Some(mut conn) = self.conn.take() {
            let used_up = conn.served > 0 && self.stack.is_distrusted(conn.used);
            if !self.busy && !used_up && conn.good_until > conn.used && conn.is_ready() {
                self.stack.idle.borrow_mut().push(conn);
            } else {
                self.stack.counters.open.set(self.stack.counters.open.get() - 1);
            }
        }
    }
}

impl Pool {
    pub(super) fn new(config: PoolConfig) -> Rc<Self> {
        Rc::new(Self {
            origins: RefCell::default(),
            last: RefCell::default(),
            many_fields: Cell::new(config.many_fields),
            config,
            failure: RefCell::default(),
            counters: Rc::default(),
            sweeping: Cell::new(false),
        })
    }

    /// The dialer, for what it knows of proxies.
    pub(super) fn dialer(&self) -> &Dialer {
        &self.config.dialer
    }

    /// Names are looked up as a test says, from now on.
    #[cfg(test)]
    pub(super) fn resolve_by(self: &mut Rc<Self>, look_up: impl Fn(&str) -> Vec<std::net::IpAddr> + 'static) {
        let pool = Rc::get_mut(self).expect("nothing has used it");
        pool.config.dialer.resolver = super::dial::Resolver::Given(Rc::new(look_up));
    }

    /// The partner sends more fields than connections are made for.
    pub(super) fn allow_many_fields(&self) {
        self.many_fields.set(true);
    }

    /// Why the latest connect failed, and how long ago.
    pub(super) fn failure(&self) -> Option<(Arc<str>, Duration)> {
        let failure = self.failure.borrow();
        failure.as_ref().map(|(why, at)| (Arc::clone(why), at.elapsed()))
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
                .ok_or(ConnectError::Origins(MAX_ORIGINS))?;
            origins.remove(&oldest);
        }
        let stack = Rc::new(Stack {
            idle: RefCell::default(),
            in_use: Cell::new(0),
            peak: Cell::new(0),
            peak_before: Cell::new(0),
            last_used: Cell::new(Instant::now()),
            counters: Rc::clone(&self.counters),
            shared: RefCell::default(),
            failure: RefCell::default(),
            making: tokio::sync::Semaphore::new(1),
            alone: Cell::new(!self.config.http2),
            unsettled: Cell::new(0),
            distrusted_until: Cell::new(None),
            partner: Arc::clone(&self.config.partner),
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
            let good = now < conn.good_until;
            // It is looked at again right before the request is written.
            if good && (idle < FRESH || (idle < IDLE_FOR && conn.is_usable())) {
                return Ok(Leased::Alone(stack.lease(conn, now)));
            }
            if good {
                self.count_stale();
            }
            self.counters.open.set(self.counters.open.get() - 1);
        }
        self.opened(origin, stack).await
    }

    /// A new connection, whatever waits in the pool.
    pub(super) fn get_new<'a>(
        self: &'a Rc<Self>,
        origin: &'a Rc<Origin>,
    ) -> LocalBoxFuture<'a, Result<Leased, ConnectError>> {
        async move { self.open(origin, self.stack(origin)?).await }.boxed_local()
    }

    /// Boxed: what happens once a connection must not make the future of every request larger.
    fn opened<'a>(
        self: &'a Rc<Self>,
        origin: &'a Rc<Origin>,
        stack: Rc<Stack>,
    ) -> LocalBoxFuture<'a, Result<Leased, ConnectError>> {
        self.open(origin, stack).boxed_local()
    }

    async fn open(self: &Rc<Self>, origin: &Rc<Origin>, stack: Rc<Stack>) -> Result<Leased, ConnectError> {
        self.start_sweeping();
        if stack.alone.get() {
            return self.connect(origin, &stack).await;
        }
        let now = Instant::now();
        let shared = stack.shared.borrow().iter().find(|c| c.has_room(now)).cloned();
        if let Some(shared) = shared {
            stack.last_used.set(now);
            return Ok(Leased::Shared(shared.take()));
        }
        // One at a time: what it makes may have room for all who wait, and where it fails, so do they.
        let waiting_since = now;
        let turn = stack.making.acquire().await;
        if stack.alone.get() {
            drop(turn);
            return self.connect(origin, &stack).await;
        }
        if let Some((why, at)) = &*stack.failure.borrow()
            && *at > waiting_since
        {
            return Err(ConnectError::Beside(Arc::clone(why)));
        }
        let now = Instant::now();
        let shared = stack.shared.borrow().iter().find(|c| c.has_room(now)).cloned();
        match shared {
            Some(shared) => {
                stack.last_used.set(now);
                Ok(Leased::Shared(shared.take()))
            }
            None => self.connect(origin, &stack).await,
        }
    }

    async fn connect(&self, origin: &Origin, stack: &Rc<Stack>) -> Result<Leased, ConnectError> {
        let deadline = Instant::now() + self.config.connect_timeout;
        let made = within(deadline, pin!(self.established(origin, stack))).await;
        let made = made.unwrap_or(Err(ConnectError::Timeout(self.config.connect_timeout)));
        match &made {
            Ok(_) => {
                bump(&self.counters.connected);
                bump(&self.counters.open);
            }
            // Nothing was tried.
            Err(ConnectError::Forbidden { .. }) => {}
            Err(e) => {
                bump(&self.counters.failed);
                let why: Arc<str> = in_full(&e).into();
                *stack.failure.borrow_mut() = Some((Arc::clone(&why), Instant::now()));
                *self.failure.borrow_mut() = Some((why, Instant::now()));
            }
        }
        made
    }

    async fn established(&self, origin: &Origin, stack: &Rc<Stack>) -> Result<Leased, ConnectError> {
        let io = self.config.dialer.dial(origin).await?;
        let now = Instant::now();
        let life = self.config.life;
        let good_until = now + life - (life / SPREAD).mul_f64(fastrand::f64());
        let negotiated = io.session().and_then(|s| s.alpn_protocol());
        // Without TLS there is nothing to negotiate by.
        let http2 = self.config.http2 && (!origin.https || negotiated == Some(b"h2"));
        if http2 {
            let shared = Http2::start(io, good_until).await.map_err(ConnectError::Http2)?;
            stack.shared.borrow_mut().push(Rc::clone(&shared));
            stack.last_used.set(now);
            return Ok(Leased::Shared(shared.take()));
        }
        stack.alone.set(true);
        let dialect = Dialect {
            title_case: self.config.title_case,
            many_fields: self.many_fields.get(),
        };
        let conn = Http1::new(io, dialect, good_until);
        Ok(Leased::Alone(
            Rc::clone(stack).lease(Box::new(conn), Instant::now()),
        ))
    }

    /// Opens a connection, through the proxy and TLS included, and says what was found.
    pub(super) async fn try_out(&self, origin: &Origin) -> Result<String, ConnectError> {
        let deadline = Instant::now() + self.config.connect_timeout;
        let dialed = within(deadline, pin!(self.config.dialer.dial(origin))).await;
        let io = dialed.unwrap_or(Err(ConnectError::Timeout(self.config.connect_timeout)))?;
        let peer = io.peer().map_or_else(|e| e.to_string(), |a| a.to_string());
        let by = match (&self.config.dialer.proxy, self.config.dialer.told_to(origin)) {
            (_, Some(_)) => "the proxy at ",
            (Some(_), None) => "the partner through the proxy at ",
            (None, None) => "",
        };
        if !origin.https {
            return Ok(format!("connected to {by}{peer}, without TLS"));
        }
        let session = io.session();
        let version = session
            .and_then(|s| s.protocol_version())
            .and_then(|v| v.as_str());
        let alpn = session
            .and_then(|s| s.alpn_protocol())
            .map(|p| String::from_utf8_lossy(p).into_owned());
        Ok(format!(
            "connected to {by}{peer}, {}, certificate valid for {}, protocol {}",
            version.unwrap_or("TLS"),
            origin.host,
            alpn.as_deref().unwrap_or("http/1.1 (none negotiated)"),
        ))
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
            idle.retain_mut(|c| now.duration_since(c.used) < IDLE_FOR && now < c.good_until && c.is_usable());
            let mut shared = stack.shared.borrow_mut();
            let open = shared.len();
            shared
                .retain(|c| c.is_open(now) && (!c.is_idle() || now.duration_since(c.used.get()) < IDLE_FOR));
            let closed = (before - idle.len() + open - shared.len()) as u64;
            self.counters.open.set(self.counters.open.get() - closed);
        }
        // An origin that nobody asks for any more costs nothing any more.
        *self.last.borrow_mut() = None;
        self.origins.borrow_mut().retain(|_, s| {
            s.in_use.get() > 0
                || !s.idle.borrow().is_empty()
                || !s.shared.borrow().is_empty()
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
    fn is_distrusted(&self, now: Instant) -> bool {
        self.distrusted_until.get().is_some_and(|until| now < until)
    }

    fn close_idle(&self) {
        let closed = std::mem::take(&mut *self.idle.borrow_mut());
        self.counters
            .open
            .set(self.counters.open.get() - closed.len() as u64);
    }

    fn lease(self: Rc<Self>, conn: Box<Http1>, now: Instant) -> Alone {
        let in_use = self.in_use.get() + 1;
        self.in_use.set(in_use);
        self.peak.set(self.peak.get().max(in_use));
        self.last_used.set(now);
        Alone {
            conn: Some(conn),
            stack: self,
            busy: false,
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let idle = self.idle.get_mut().len() + self.shared.get_mut().len();
        self.counters.open.set(self.counters.open.get() - idle as u64);
    }
}
