//! One HTTP/1.1 connection, driven by whoever uses it.
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
//! whatever the error was.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;

/// A TCP stream that counts what the kernel took.
#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    written: Rc<Cell<u64>>,
}

impl Socket {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            written: Rc::default(),
        }
    }

    fn count(&self, result: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(n)) = result {
            self.written.set(self.written.get() + *n as u64);
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.count(&result);
        result
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.count(&result);
        result
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

/// Plain or TLS.
pub(super) enum Io {
    /// `http://`
    Plain(Socket),
    /// `https://`
    Tls(Box<TlsStream<Socket>>),
}

impl Io {
    fn written(&self) -> Rc<Cell<u64>> {
        match self {
            Io::Plain(s) => Rc::clone(&s.written),
            Io::Tls(s) => Rc::clone(&s.get_ref().0.written),
        }
    }
}

macro_rules! either {
    ($self:ident, $method:ident ( $($arg:expr),* )) => {
        match $self.get_mut() {
            Io::Plain(s) => Pin::new(s).$method($($arg),*),
            Io::Tls(s) => Pin::new(s.as_mut()).$method($($arg),*),
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
        }
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, poll_flush(cx))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, poll_shutdown(cx))
    }
}

/// What goes over a connection.
pub(super) type Message = Request<Full<Bytes>>;

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
    /// The connection broke, or time ran out, in the middle.
    Cut,
}

/// An established connection and its state.
pub(super) struct Http1 {
    sender: http1::SendRequest<Full<Bytes>>,
    /// None once it has ended.
    conn: Option<http1::Connection<TokioIo<Io>, Full<Bytes>>>,
    written: Rc<Cell<u64>>,
    /// When it was made, or its latest exchange began.
    pub(super) used: Instant,
}

impl Http1 {
    /// HTTP/1.1 on a connection that stands.
    pub(super) async fn start(io: Io) -> hyper::Result<Self> {
        let written = io.written();
        let mut builder = http1::Builder::new();
        // The head of an answer: what does not fit is a bad answer, not a reason to grow (I6).
        builder.max_buf_size(64 * 1024);
        let (sender, conn) = builder.handshake(TokioIo::new(io)).await?;
        Ok(Self {
            sender,
            conn: Some(conn),
            written,
            used: Instant::now(),
        })
    }

    /// Bytes that the kernel took so far, TLS handshake included.
    pub(super) fn written(&self) -> u64 {
        self.written.get()
    }

    /// Lets the connection read and write what it can.
    fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(conn) = &mut self.conn
            && Pin::new(conn).poll(cx).is_ready()
        {
            // The error, if there was one, has been told to the exchange. Dropping hands back what was queued.
            self.conn = None;
        }
    }

    /// Whether nothing has ended it yet, without a look at the socket.
    pub(super) fn is_open(&self) -> bool {
        self.conn.is_some()
    }

    /// Whether another request can be written to it, as far as is known here.
    pub(super) fn is_usable(&mut self) -> bool {
        self.drive(&mut Context::from_waker(Waker::noop()));
        self.conn.is_some() && !self.sender.is_closed()
    }

    /// Whether the exchange before has ended cleanly, so that the next one can begin.
    pub(super) fn is_ready(&mut self) -> bool {
        self.conn.is_some() && (self.sender.is_ready() || (self.is_usable() && self.sender.is_ready()))
    }

    /// Writes a request and waits for the head of its answer. The write begins within the first poll.
    ///
    /// The part of hyper that answers is polled without a waker: it makes progress only through `drive`, in this
    /// very task, and a waker would only make the task wake itself once more.
    pub(super) async fn exchange(&mut self, message: Box<Message>) -> Result<Response<Incoming>, Failed> {
        let before = self.written.get();
        let mut answer = pin!(self.sender.try_send_request(*message));
        let result = poll_fn(|cx| {
            self.drive(cx);
            answer.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        })
        .await;
        result.map_err(|mut failed| match failed.take_message() {
            Some(message) => Failed::NotWritten(Box::new(message)),
            None if self.written.get() == before => Failed::NothingLeft(failed.into_error()),
            None => Failed::Broken(failed.into_error()),
        })
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
