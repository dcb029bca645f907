//! One HTTP/1.1 connection, driven by whoever uses it.
//!
//! It begins without hyper, and needs none while all is [plain](super::plain). From the first answer that is not, it
//! is hyper's.
//!
//! hyper splits a connection into a sender and a future that does the reading and writing. Usually the latter is a
//! task of its own; here both live in one value and the caller of [`Http1::exchange`] polls both. That is a little
//! cheaper, and more important, the first byte is written *inside* the first poll after the caller's gate said yes,
//! not whenever another task gets its turn (I2, I5, I7).
//!
//! Nobody polls a connection that waits in the pool. What happened to it meanwhile (closed by the partner, junk
//! sent) is found out by [`Http1::is_usable`], which costs no system call: the runtime has noted readiness already.
//!
//! The socket counts the bytes that the kernel took. An exchange that failed before the first of them is no doubt,
//! whatever the error was. It also notes whether an answer came before the partner's machine had acknowledged any of
//! them, for such an answer belongs to another request ([`crate::core::stray`]).

use super::plain::{self, Begun, Done, Replay, Wants, Whole};
use super::request::Form;
use super::unacked::unacknowledged;
use crate::core::stray::Behind;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::client::TlsStream;

/// What is known of a connection below HTTP and TLS. Shared with the socket, which hyper or h2 owns.
#[derive(Debug, Default)]
pub(super) struct Wire {
    /// Bytes that the kernel took.
    written: AtomicU64,
    /// The partner reads no more: a write failed, and what is written since is thrown away.
    broken: AtomicBool,
    /// The next read asks the kernel itself, whatever the runtime has noted.
    look: AtomicBool,
    /// An answer is awaited, and an answer to nothing is to be recognised.
    watching: AtomicBool,
    /// Bytes that the kernel had taken before the request that is answered.
    before: AtomicU64,
    /// None of the request's bytes was acknowledged when the answer was read.
    unacknowledged: AtomicBool,
}

impl Wire {
    /// Bytes that the kernel took so far, TLS handshake included.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Relaxed)
    }

    fn watch(&self) {
        self.before.store(self.written(), Relaxed);
        self.unacknowledged.store(false, Relaxed);
        self.watching.store(true, Relaxed);
    }
}

/// A TCP stream that counts what the kernel took.
///
/// A write that fails because the partner closed is not told to hyper, which would end the exchange by it: a
/// partner that refuses a request early (413, 431) and closes has often said so first, and that answer lies in the
/// socket. So the rest of the request is thrown away, and the read brings the answer, or the end.
#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    wire: Arc<Wire>,
}

impl Socket {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            wire: Arc::default(),
        }
    }

    fn wrote(&self, result: Poll<io::Result<usize>>, all: usize) -> Poll<io::Result<usize>> {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        match result {
            Poll::Ready(Ok(n)) => {
                self.wire.written.fetch_add(n as u64, Relaxed);
                Poll::Ready(Ok(n))
            }
            Poll::Ready(Err(e)) if matches!(e.kind(), BrokenPipe | ConnectionReset | ConnectionAborted) => {
                self.wire.broken.store(true, Relaxed);
                Poll::Ready(Ok(all))
            }
            other => other,
        }
    }

    /// Notes whether the request can have been read by whoever sent these bytes. One system call, unless they begin a
    /// plain success, as nearly all answers do.
    fn heard(&self, bytes: &[u8]) {
        if bytes.starts_with(b"HTTP/1.") && bytes.get(9) == Some(&b'2') {
            self.wire.watching.store(false, Relaxed);
            return;
        }
        let request = self.wire.written() - self.wire.before.load(Relaxed);
        let none = unacknowledged(&self.stream).is_some_and(|n| request > 0 && n >= request);
        // TLS sends more than answers, so the latest read before the whole head counts.
        self.wire.unacknowledged.store(none, Relaxed);
    }

    /// Reads what lies in the kernel now, without the runtime's knowledge and without waiting. As a rule that is
    /// nothing: one byte tells.
    fn read_now(&self, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        use rustix::net::RecvFlags;
        let flags = RecvFlags::DONTWAIT;
        match rustix::net::recv(&self.stream, &mut [0_u8; 1][..], flags | RecvFlags::PEEK) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Poll::Pending,
            // The kernel tells it once.
            Err(e) => Poll::Ready(Err(e.into())),
            Ok(_) => self.read_what_is_there(buf),
        }
    }

    #[cold]
    fn read_what_is_there(&self, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut found = [0; 1024];
        let room = buf.remaining().min(found.len());
        match rustix::net::recv(&self.stream, &mut found[..room], rustix::net::RecvFlags::DONTWAIT) {
            Ok((n, _)) => {
                buf.put_slice(&found[..n]);
                Poll::Ready(Ok(()))
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Poll::Pending,
            Err(e) => Poll::Ready(Err(e.into())),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.wire.look.load(Relaxed) {
            return self.read_now(buf);
        }
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if self.wire.watching.load(Relaxed) && buf.filled().len() > before {
            self.heard(&buf.filled()[before..]);
        }
        result
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.wire.broken.load(Relaxed) {
            return Poll::Ready(Ok(buf.len()));
        }
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(result, buf.len())
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all = || bufs.iter().map(|b| b.len()).sum();
        if self.wire.broken.load(Relaxed) {
            return Poll::Ready(Ok(all()));
        }
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(result, all())
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Plain, TLS, or TLS to a partner through a proxy that is itself spoken to over TLS.
pub(super) enum Io {
    /// `http://`
    Plain(Socket),
    /// `https://`, or `http://` through a proxy with TLS.
    Tls(Box<TlsStream<Socket>>),
    /// `https://` through a proxy with TLS.
    Nested(Box<TlsStream<Box<TlsStream<Socket>>>>),
}

impl Io {
    pub(super) fn wire(&self) -> Arc<Wire> {
        let socket = match self {
            Io::Plain(s) => s,
            Io::Tls(s) => s.get_ref().0,
            Io::Nested(s) => s.get_ref().0.get_ref().0,
        };
        Arc::clone(&socket.wire)
    }

    /// What TLS says of the partner's end, if it is there.
    pub(super) fn session(&self) -> Option<&rustls::ClientConnection> {
        match self {
            Io::Plain(_) => None,
            Io::Tls(s) => Some(s.get_ref().1),
            Io::Nested(s) => Some(s.get_ref().1),
        }
    }

    /// The address at the other end, that of the proxy where there is one.
    pub(super) fn peer(&self) -> io::Result<std::net::SocketAddr> {
        match self {
            Io::Plain(s) => s.stream.peer_addr(),
            Io::Tls(s) => s.get_ref().0.stream.peer_addr(),
            Io::Nested(s) => s.get_ref().0.get_ref().0.stream.peer_addr(),
        }
    }
}

macro_rules! either {
    ($self:ident, $method:ident ( $($arg:expr),* )) => {
        match $self.get_mut() {
            Io::Plain(s) => Pin::new(s).$method($($arg),*),
            Io::Tls(s) => Pin::new(s.as_mut()).$method($($arg),*),
            Io::Nested(s) => Pin::new(s.as_mut()).$method($($arg),*),
        }
    };
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self, poll_read(cx, buf))
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, poll_write(cx, buf))
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, poll_write_vectored(cx, bufs))
    }
    fn is_write_vectored(&self) -> bool {
        match self {
            Io::Plain(s) => s.is_write_vectored(),
            Io::Tls(s) => s.is_write_vectored(),
            Io::Nested(s) => s.is_write_vectored(),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, poll_flush(cx))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, poll_shutdown(cx))
    }
}

/// Waits for `future` until a deadline, and believes the timer only when the socket had its say.
///
/// A process that stood (stopped, its machine paused) finds timers over and answers in its sockets at the same
/// moment, and the runtime may tell of the timer first. So the runtime gets one turn to look at its sockets before
/// the deadline counts.
///
/// The future comes pinned: moved in it would be held twice, in the future of every request.
pub(super) async fn within<F: Future>(deadline: Instant, mut future: Pin<&mut F>) -> Option<F::Output> {
    if let Ok(output) = timeout_at(deadline, future.as_mut()).await {
        return Some(output);
    }
    tokio::task::yield_now().await;
    match poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

/// Whether an error says that the other end reset the connection.
fn is_reset(error: Option<&io::Error>) -> bool {
    error.is_some_and(|e| e.kind() == io::ErrorKind::ConnectionReset)
}

/// What goes over a connection.
pub(super) type Message = Request<Bytes>;

/// Why an exchange brought no head of an answer.
pub(super) enum Failed {
    /// hyper gave the request back: not one byte of it was written.
    NotWritten(Box<Message>),
    /// The request is lost, but the kernel never took a byte of it.
    NothingLeft(hyper::Error),
    /// Something was written: the outcome is unknown.
    Broken(hyper::Error),
}

/// How the body of an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyEnd {
    /// Read to its end.
    Whole,
    /// The bound was reached; the rest was not looked at.
    Limited,
    /// The connection broke, or time ran out, in the middle; or nobody waited for it.
    Cut,
}

/// How requests are written and answers are read, the same for all connections of a partner.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dialect {
    /// `Content-Type`, not `content-type`.
    pub(super) title_case: bool,
    /// Fields of a head. hyper keeps room for 100 on its stack; for more it allocates at each answer, so more are
    /// allowed only where a partner has sent more.
    pub(super) many_fields: bool,
}

/// Bytes of the head of an answer. What does not fit is judged by its status line (I6).
pub(super) const HEAD: usize = 256 * 1024;
/// Fields of a head, where a partner sends many.
pub(super) const MANY_FIELDS: usize = 4_096;

/// What an exchange brought.
pub(super) enum Got {
    /// A plain answer.
    Whole(Whole),
    /// The head of any other.
    Head(Box<Response<Incoming>>),
}

/// A connection that hyper has taken over.
struct ByHyper {
    sender: http1::SendRequest<Full<Bytes>>,
    /// None once it has ended.
    conn: Option<http1::Connection<TokioIo<Replay>, Full<Bytes>>>,
    /// Bytes of a request that were written before.
    left: Rc<Cell<usize>>,
}

/// An established connection and its state.
pub(super) struct Http1 {
    /// While all its answers were plain; none once hyper has it, or once it has ended.
    plain: Option<Io>,
    hyper: Option<Box<ByHyper>>,
    dialect: Dialect,
    wire: Arc<Wire>,
    /// The socket, and what hyper had read and could make nothing of, when the connection ended.
    rest: Option<Box<(Io, Bytes)>>,
    /// The partner said something that nobody asked for.
    stray: bool,
    /// The connection was reset.
    reset: bool,
    /// Exchanges begun.
    pub(super) served: u32,
    /// When the latest answer ended.
    pub(super) answered: Instant,
    /// The longest that an answer has taken.
    pub(super) slowest: Duration,
    /// When it was made, or its latest exchange began.
    pub(super) used: Instant,
    /// It is not used for a request from then on: its life is over, or the partner announced that it closes.
    pub(super) good_until: Instant,
}

impl Http1 {
    /// HTTP/1.1 on an established connection.
    pub(super) fn new(io: Io, dialect: Dialect, good_until: Instant) -> Self {
        Self {
            wire: io.wire(),
            plain: Some(io),
            hyper: None,
            dialect,
            rest: None,
            stray: false,
            reset: false,
            served: 0,
            answered: Instant::now(),
            slowest: Duration::ZERO,
            used: Instant::now(),
            good_until,
        }
    }

    /// Gives the connection to hyper, in the middle of an exchange.
    async fn hand_over(&mut self, io: Io, begun: Begun) -> hyper::Result<()> {
        let mut builder = http1::Builder::new();
        // The head of an answer: what does not fit is no reason to grow (I6). Servers send what no standard allows
        // and mean well: the status line decides, not a cookie with a space in the wrong place.
        builder
            .max_buf_size(HEAD)
            .allow_spaces_after_header_name_in_responses(true)
            .allow_obsolete_multiline_headers_in_responses(true)
            .ignore_invalid_headers_in_responses(true)
            .title_case_headers(self.dialect.title_case);
        if self.dialect.many_fields {
            builder.max_headers(MANY_FIELDS);
        }
        let left = Rc::default();
        let replay = Replay::new(io, begun, Rc::clone(&left));
        let (sender, conn) = builder.handshake(TokioIo::new(replay)).await?;
        let conn = Some(conn);
        self.hyper = Some(Box::new(ByHyper { sender, conn, left }));
        Ok(())
    }

    /// Bytes that the kernel took so far, TLS handshake included.
    pub(super) fn written(&self) -> u64 {
        self.wire.written()
    }

    /// Lets hyper read and write what it can.
    fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(hyper) = &mut self.hyper
            && let Some(conn) = &mut hyper.conn
            && let Poll::Ready(end) = Pin::new(conn).poll(cx)
        {
            // An error has been told to the exchange, if there was one; else bytes came that nobody asked for, which
            // alone has no cause. Dropping hands back what was queued.
            if let Err(e) = &end {
                match std::error::Error::source(e) {
                    None => self.stray = true,
                    Some(cause) => self.reset |= is_reset(cause.downcast_ref()),
                }
            }
            self.rest = hyper.conn.take().map(|conn| {
                let parts = conn.into_parts();
                let (io, unread) = parts.io.into_inner().into_parts();
                let read = match unread.is_empty() {
                    true => parts.read_buf,
                    false => [&parts.read_buf[..], &unread[..]].concat().into(),
                };
                Box::new((io, read))
            });
        }
    }

    /// Whether hyper still has the connection.
    fn is_driven(&self) -> bool {
        self.hyper.as_ref().is_some_and(|hyper| hyper.conn.is_some())
    }

    /// Whether nothing has ended it yet, without a look at the socket.
    pub(super) fn is_open(&self) -> bool {
        (self.plain.is_some() || self.is_driven()) && !self.wire.broken.load(Relaxed)
    }

    /// Whether another request can be written to it, as far as the runtime knows.
    pub(super) fn is_usable(&mut self) -> bool {
        if let Some(io) = &mut self.plain {
            if !plain::is_quiet(io) {
                self.plain = None;
            }
            return self.is_open();
        }
        self.drive(&mut Context::from_waker(Waker::noop()));
        self.is_open() && self.hyper.as_ref().is_some_and(|hyper| !hyper.sender.is_closed())
    }

    /// Whether another request can be written to it now: the kernel itself is asked. Bytes that nobody asked for,
    /// and an end, close it. One system call.
    pub(super) fn is_quiet(&mut self) -> bool {
        self.wire.look.store(true, Relaxed);
        let usable = self.is_usable();
        self.wire.look.store(false, Relaxed);
        usable
    }

    /// Whether the exchange before has ended cleanly, so that the next one can begin.
    pub(super) fn is_ready(&mut self) -> bool {
        let is_ready = |c: &Self| c.hyper.as_ref().is_none_or(|hyper| hyper.sender.is_ready());
        self.is_open() && (is_ready(self) || (self.is_usable() && is_ready(self)))
    }

    /// Whether the answer that has just been heard came before any byte of its request was acknowledged.
    pub(super) fn came_unasked(&self) -> bool {
        self.wire.unacknowledged.load(Relaxed)
    }

    /// What follows a whole answer: pending as long as nothing does.
    fn poll_behind(&mut self, cx: &mut Context<'_>) -> Poll<Behind> {
        self.drive(cx);
        if self.stray {
            return Poll::Ready(Behind::More);
        }
        if self.reset {
            return Poll::Ready(Behind::Reset);
        }
        if self.is_driven() {
            return Poll::Pending;
        }
        // The answer ended the connection for HTTP. How it ends below is read from the socket.
        let Some(rest) = &mut self.rest else {
            return Poll::Ready(Behind::End);
        };
        let (io, read) = &mut **rest;
        if !read.is_empty() {
            return Poll::Ready(Behind::More);
        }
        let mut found = [0; 256];
        let mut buf = ReadBuf::new(&mut found);
        match Pin::new(io).poll_read(cx, &mut buf) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(e)) if is_reset(Some(&e)) => Poll::Ready(Behind::Reset),
            Poll::Ready(Ok(())) if !buf.filled().is_empty() => Poll::Ready(Behind::More),
            Poll::Ready(_) => Poll::Ready(Behind::End),
        }
    }

    /// What follows a whole answer, as far as the kernel knows now.
    pub(super) fn behind(&mut self) -> Behind {
        self.wire.look.store(true, Relaxed);
        let behind = self.poll_behind(&mut Context::from_waker(Waker::noop()));
        self.wire.look.store(false, Relaxed);
        match behind {
            Poll::Ready(behind) => behind,
            Poll::Pending => Behind::Nothing,
        }
    }

    /// Waits for what follows a whole answer.
    pub(super) fn behind_within(&mut self, patience: Duration) -> LocalBoxFuture<'_, Behind> {
        async move {
            let behind = poll_fn(|cx| self.poll_behind(cx));
            let behind = within(Instant::now() + patience, pin!(behind)).await;
            behind.unwrap_or(Behind::Nothing)
        }
        .boxed_local()
    }

    /// An answer to a request of then was heard to its end; how long the answer before it is ago.
    pub(super) fn note_answer(&mut self, begun: Instant) -> Duration {
        let now = Instant::now();
        self.slowest = self.slowest.max(now.duration_since(begun));
        now.duration_since(std::mem::replace(&mut self.answered, now))
    }

    /// Takes note of how long the partner keeps an idle connection, and of an answer after which it cannot be used.
    pub(super) fn heed(&mut self, status: u16, headers: &HeaderMap, now: Instant) {
        if let Some(keeps) = super::pace::keep_alive(headers) {
            self.good_until = self.good_until.min(now + keeps);
        }
        if status == 204 && super::pace::announces_body(headers) {
            // It has none (RFC 9112, 6.3), so what is announced would be read as the next answer.
            self.good_until = now;
        }
    }

    /// Writes a request and waits for its answer: for the whole of a plain one, else for its head. The write begins
    /// within the first poll.
    pub(super) fn exchange<'a>(
        &'a mut self,
        request: Form,
        wants: Wants<'a>,
    ) -> impl Future<Output = Result<Got, Failed>> + 'a {
        let before = self.written();
        self.served = self.served.saturating_add(1);
        if self.served > 1 {
            self.wire.watch();
        }
        let mut exchange = plain::Exchange::default();
        // Not an `async fn`: its future would hold what it is called with twice.
        async move {
            let done = poll_fn(|cx| match &mut self.plain {
                Some(io) if !self.dialect.title_case => {
                    exchange.poll(cx, io, &request, &wants, || self.wire.broken.load(Relaxed))
                }
                _ => Poll::Ready(Done::Begun(Begun::default())),
            });
            let head = match done.await {
                Done::Whole(whole) => {
                    self.wire.watching.store(false, Relaxed);
                    return Ok(Got::Whole(whole));
                }
                Done::Begun(begun) => self.by_hyper(request.into_message(), begun, before),
            };
            let head = head.await;
            self.wire.watching.store(false, Relaxed);
            head.map(Got::Head)
        }
    }

    /// The same by hyper, from what has begun.
    ///
    /// The part of hyper that answers is polled without a waker: it makes progress only through `drive`, in this
    /// very task, and a waker would only make the task wake itself once more.
    ///
    /// Boxed: the future of every request must not be larger for those that are not plain.
    fn by_hyper(
        &mut self,
        message: Box<Message>,
        begun: Begun,
        before: u64,
    ) -> LocalBoxFuture<'_, Result<Box<Response<Incoming>>, Failed>> {
        async move {
            let lost = |conn: &Self, e| match conn.wire.written() == before {
                true => Failed::NothingLeft(e),
                false => Failed::Broken(e),
            };
            if let Some(io) = self.plain.take()
                && let Err(e) = self.hand_over(io, begun).await
            {
                return Err(lost(self, e));
            }
            let Some(hyper) = &mut self.hyper else {
                // It has ended.
                return Err(Failed::NotWritten(message));
            };
            let left = Rc::clone(&hyper.left);
            let mut answer = pin!(hyper.sender.try_send_request(message.map(Full::new)));
            let result = poll_fn(|cx| {
                self.drive(cx);
                answer.as_mut().poll(&mut Context::from_waker(Waker::noop()))
            })
            .await;
            if left.get() > 0 {
                // What was written before is not what hyper wrote: the next request must not go this way.
                self.good_until = self.used;
            }
            match result {
                Ok(response) => Ok(Box::new(response)),
                Err(mut failed) => Err(match failed.take_message() {
                    Some(message) if self.wire.written() == before => {
                        let body = |body: Full<Bytes>| body.collect().now_or_never();
                        let message = message.map(|b| body(b).map(|Ok(b)| b.to_bytes()).unwrap_or_default());
                        Failed::NotWritten(Box::new(message))
                    }
                    _ => lost(self, failed.into_error()),
                }),
            }
        }
        .boxed_local()
    }

    /// The head of an answer that hyper gave up reading, to its end or to the bound.
    pub(super) fn rest_of_head(&mut self, deadline: Instant) -> LocalBoxFuture<'static, Vec<u8>> {
        let rest = self.rest.take();
        let has_end = |head: &[u8]| {
            let end = |blank| memchr::memmem::find(head, blank).is_some();
            end(b"\n\r\n") || end(b"\n\n")
        };
        async move {
            let Some(rest) = rest else { return Vec::new() };
            let (mut io, begun) = *rest;
            let mut head = begun.to_vec();
            while head.len() < HEAD && !has_end(&head) {
                let mut more = vec![0; 8 * 1024];
                let read = within(deadline, pin!(io.read(&mut more))).await;
                match read {
                    Some(Ok(n @ 1..)) => head.extend_from_slice(&more[..n]),
                    _ => break,
                }
            }
            head
        }
        .boxed_local()
    }

    /// Reads a body to its end or to `limit` bytes; `keep` gets what was read, if it is wanted.
    pub(super) async fn read_body(
        &mut self,
        body: &mut Incoming,
        limit: usize,
        mut keep: Option<&mut Vec<u8>>,
    ) -> BodyEnd {
        let mut left = limit;
        loop {
            let frame = poll_fn(|cx| {
                let noop = &mut Context::from_waker(Waker::noop());
                if let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(noop) {
                    return Poll::Ready(frame);
                }
                self.drive(cx);
                Pin::new(&mut *body).poll_frame(noop)
            })
            .await;
            match frame {
                None => return BodyEnd::Whole,
                Some(Err(_)) => return BodyEnd::Cut,
                Some(Ok(frame)) => {
                    let Ok(data) = frame.into_data() else { continue };
                    let taken = &data[..data.len().min(left)];
                    if let Some(kept) = keep.as_deref_mut() {
                        kept.extend_from_slice(taken);
                    }
                    if data.len() > left {
                        return BodyEnd::Limited;
                    }
                    left -= data.len();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    /// What the kernel had taken in before the reset is read, although a write has failed by then.
    #[test]
    fn a_write_that_fails_leaves_what_there_is_to_read() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (mut server, _) = listener.accept().await.unwrap();
            server.write_all(b"413").await.unwrap();
            server.set_zero_linger().unwrap();
            drop(server);
            let mut socket = Socket::new(client);
            let wire = Arc::clone(&socket.wire);
            // The first write may still be taken, or tell of the reset.
            socket.write_all(&[0; 100]).await.unwrap();
            socket.write_all(&[0; 100]).await.unwrap();
            assert!(wire.broken.load(Relaxed) && wire.written() <= 100);
            let mut got = [0; 3];
            socket.read_exact(&mut got).await.unwrap();
            assert_eq!(&got, b"413");
            // And then nothing more comes.
            assert!(!matches!(socket.read(&mut got).await, Ok(1..)));
        });
    }
}
