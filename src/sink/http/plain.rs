//! The plain case of HTTP/1.1, which nearly every delivery is: the request goes out in one write, and a whole success
//! with a known length comes back, alone in the socket.
//!
//! hyper needs 14,000 instructions for it, a third of a whole delivery: it is built for streams of bodies in tasks of
//! their own, and each exchange passes through four channels. So the plain case is written and read here, and
//! **everything else is hyper's**: as soon as anything is not as described above, the connection is handed to hyper
//! with what was written and read so far ([`Replay`]), and stays hyper's until it ends. What an answer means is
//! decided in one place for both.
//!
//! | the answer | whose |
//! |---|---|
//! | HTTP/1.1, 2xx, one `content-length` (or a 204 without), to its end within [`PLAIN`] bytes, nothing behind it | read here |
//! | any other status or version, chunked, until close, `connection` but keep-alive, an upgrade, a `trailer` | hyper's |
//! | more than [`FIELDS`] fields, anything that the parser refuses | hyper's |
//! | an end or an error before it is whole, more behind it, in too many pieces | hyper's |
//! | its head is there, and the rest is not in the socket: its status counts from then on | hyper's |
//! | the request was not written in one go, or its write failed | hyper's |

use super::connection::{Io, Message};
use super::pace;
use super::request::Form;
use bytes::{Buf, Bytes};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Version};
use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of an answer, head and body, that are gathered here. On the stack, for one read.
const PLAIN: usize = 4 * 1024;
/// Fields of its head.
const FIELDS: usize = 32;
/// Pieces in which it may come. The head is read anew with each.
const PIECES: u8 = 4;
/// A body up to this size is copied behind its head, so that one plain write sends both.
const COPIED: usize = 16 * 1024;

/// What is wanted of an answer.
pub(super) struct Wants<'a> {
    /// Whether the body of an answer with this status is kept.
    pub(super) body: &'a dyn Fn(u16) -> bool,
    /// Whether all fields of its head are, or only those that say something about pace.
    pub(super) fields: bool,
    /// Most bytes of a body.
    pub(super) limit: usize,
}

/// A plain answer.
#[derive(Debug, PartialEq)]
pub(super) struct Whole {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

/// What the bytes of an answer are so far.
#[derive(Debug, PartialEq)]
enum Piece {
    Whole(Whole),
    /// The beginning of an answer that may be plain.
    Begun,
    /// A plain head, and a part of its body.
    Head,
    /// Not plain.
    Other,
}

/// What was written and read of an exchange that is not plain.
#[derive(Debug, Default)]
pub(super) struct Begun {
    /// Bytes of the request that were written.
    written: usize,
    write_error: Option<io::Error>,
    /// Bytes of the answer that were read.
    read: Bytes,
    read_error: Option<io::Error>,
    /// Behind them comes the end.
    ended: bool,
}

/// What came of an exchange.
pub(super) enum Done {
    Whole(Whole),
    /// hyper goes on.
    Begun(Begun),
}

/// One exchange, between polls.
#[derive(Default)]
pub(super) struct Exchange {
    written: usize,
    read: Vec<u8>,
    pieces: u8,
    has_head: bool,
}

impl Exchange {
    /// Writes the request within the first poll, then waits for the answer. `is_broken`: whether a write has failed.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut Io,
        request: &Form,
        wants: &Wants<'_>,
        is_broken: impl Fn() -> bool,
    ) -> Poll<Done> {
        if self.written == 0 {
            let Some(head) = head(request) else {
                return Poll::Ready(Done::Begun(Begun::default()));
            };
            if let Err(begun) = self.write(cx, io, head, request.body(), is_broken) {
                return Poll::Ready(Done::Begun(begun));
            }
        }
        loop {
            let mut room = [MaybeUninit::<u8>::uninit(); PLAIN];
            let mut buf = ReadBuf::uninit(&mut room);
            let read = match Pin::new(&mut *io).poll_read(cx, &mut buf) {
                Poll::Ready(read) => read,
                Poll::Pending if self.has_head => return Poll::Ready(self.begun(None, false)),
                Poll::Pending => return Poll::Pending,
            };
            let found = buf.filled();
            if read.is_err() || found.is_empty() {
                let ended = read.is_ok();
                return Poll::Ready(self.begun(read.err(), ended));
            }
            self.pieces += 1;
            // Nearly always the first piece is all, and is not copied.
            let piece = if self.pieces == 1 {
                answer(found, wants)
            } else {
                self.read.extend_from_slice(found);
                answer(&self.read, wants)
            };
            if let Piece::Whole(whole) = piece {
                return Poll::Ready(Done::Whole(whole));
            }
            if self.pieces == 1 {
                self.read.extend_from_slice(found);
            }
            if piece == Piece::Other || self.pieces >= PIECES {
                return Poll::Ready(self.begun(None, false));
            }
            self.has_head = piece == Piece::Head;
        }
    }

    fn begun(&mut self, read_error: Option<io::Error>, ended: bool) -> Done {
        Done::Begun(Begun {
            written: self.written,
            write_error: None,
            read: std::mem::take(&mut self.read).into(),
            read_error,
            ended,
        })
    }

    /// One write, which takes the whole request as a rule.
    fn write(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut Io,
        mut head: Vec<u8>,
        body: &Bytes,
        is_broken: impl Fn() -> bool,
    ) -> Result<(), Begun> {
        let all = head.len() + body.len();
        let mut io = Pin::new(io);
        let wrote = if body.len() <= COPIED {
            head.extend_from_slice(body);
            io.as_mut().poll_write(cx, &head)
        } else {
            let both = [io::IoSlice::new(&head), io::IoSlice::new(body)];
            io.as_mut().poll_write_vectored(cx, &both)
        };
        let begun = |written, write_error| {
            Err(Begun {
                written,
                write_error,
                ..Begun::default()
            })
        };
        match wrote {
            Poll::Ready(Ok(n)) if n == all && !is_broken() => self.written = n,
            Poll::Ready(Ok(n)) => return begun(n, None),
            Poll::Ready(Err(e)) => return begun(0, Some(e)),
            Poll::Pending => return begun(0, None),
        }
        match io.poll_flush(cx) {
            Poll::Ready(Ok(())) if is_broken() => begun(all, None),
            Poll::Ready(Ok(())) => Ok(()),
            Poll::Ready(Err(e)) => begun(all, Some(e)),
            Poll::Pending => begun(all, None),
        }
    }
}

/// The head of a request as hyper writes it, byte for byte, with room for a short body. None: hyper adds to it, or reads
/// its answer otherwise.
fn head(request: &Form) -> Option<Vec<u8>> {
    let body = request.body();
    let room = if body.len() <= COPIED { body.len() } else { 0 };
    let message = match request {
        Form::Alike(alike) => return Some(alike.head(room)),
        Form::Message(message) => message,
    };
    if *message.method() == Method::HEAD || message.version() != Version::HTTP_11 {
        return None;
    }
    let mut out = first_line(message);
    out.reserve(512 + room);
    let mut has_length = false;
    for (name, value) in message.headers() {
        has_length |= *name == header::CONTENT_LENGTH;
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    (has_length || (body.is_empty() && *message.method() == Method::GET)).then_some(out)
}

/// The line of a request that says what is asked of what.
pub(super) fn first_line(message: &Message) -> Vec<u8> {
    let uri = message.uri();
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(message.method().as_str().as_bytes());
    out.push(b' ');
    if let Some(scheme) = uri.scheme_str() {
        out.extend_from_slice(scheme.as_bytes());
        out.extend_from_slice(b"://");
    }
    if let Some(authority) = uri.authority() {
        out.extend_from_slice(authority.as_str().as_bytes());
    }
    out.extend_from_slice(uri.path().as_bytes());
    if let Some(query) = uri.query() {
        out.push(b'?');
        out.extend_from_slice(query.as_bytes());
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    out
}

/// Reads what there is of an answer.
fn answer(bytes: &[u8], wants: &Wants<'_>) -> Piece {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS];
    let mut head = httparse::Response::new(&mut []);
    let read =
        httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut head, bytes, &mut fields);
    let end = match read {
        Ok(httparse::Status::Complete(end)) => end,
        Ok(httparse::Status::Partial) if bytes.len() < PLAIN => return Piece::Begun,
        _ => return Piece::Other,
    };
    let (Some(1), Some(status @ 200..300)) = (head.version, head.code) else {
        return Piece::Other;
    };
    let mut length = None;
    let mut tells = wants.fields || (wants.body)(status);
    for field in head.headers.iter() {
        let name = field.name.as_bytes();
        match name.len() {
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                match (length, decimal(field.value)) {
                    (None, Some(n)) => length = Some(n),
                    _ => return Piece::Other,
                };
            }
            10 if name.eq_ignore_ascii_case(b"connection")
                && !field.value.eq_ignore_ascii_case(b"keep-alive") =>
            {
                return Piece::Other;
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") || name.eq_ignore_ascii_case(b"trailer") => {
                return Piece::Other;
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => return Piece::Other,
            _ => tells |= pace::may_tell(name),
        }
    }
    let length = match (status, length) {
        // It has no body, whatever is announced.
        (204, None) => 0,
        (204, Some(_)) | (_, None) => return Piece::Other,
        (_, Some(length)) => length,
    };
    if length > wants.limit || end + length > PLAIN {
        return Piece::Other;
    }
    let body = &bytes[end..];
    if body.len() < length {
        return Piece::Head;
    }
    if body.len() > length {
        return Piece::Other;
    }
    let mut headers = HeaderMap::new();
    if tells {
        headers.reserve(head.headers.len());
        for field in head.headers.iter() {
            let name = HeaderName::from_bytes(field.name.as_bytes());
            let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(field.value)) else {
                return Piece::Other;
            };
            headers.append(name, value);
        }
    }
    let body = match (wants.body)(status) {
        true => body.to_vec(),
        false => Vec::new(),
    };
    Piece::Whole(Whole {
        status,
        headers,
        body,
    })
}

/// Digits and nothing else, few enough to be a length that is looked at here.
fn decimal(text: &[u8]) -> Option<usize> {
    if text.is_empty() || text.len() > 7 {
        return None;
    }
    text.iter().try_fold(0, |n, b| {
        b.is_ascii_digit().then(|| n * 10 + usize::from(b - b'0'))
    })
}

/// A connection as hyper finds it that takes over in the middle of an exchange: what was written of the request is
/// taken and thrown away, what was read of the answer is read again.
pub(super) struct Replay {
    io: Io,
    begun: Begun,
    /// Bytes that hyper has yet to write before its own begin.
    left: Rc<Cell<usize>>,
    /// Who reads before they are written: an answer to nothing would end the connection.
    waits: Option<Waker>,
}

impl Replay {
    pub(super) fn new(io: Io, begun: Begun, left: Rc<Cell<usize>>) -> Self {
        left.set(begun.written);
        Self {
            io,
            begun,
            left,
            waits: None,
        }
    }

    /// The connection, and what was read of it that hyper has not read.
    pub(super) fn into_parts(self) -> (Io, Bytes) {
        (self.io, self.begun.read)
    }

    fn skip(&mut self, all: usize) -> Option<usize> {
        let skipped = self.left.get().min(all);
        if skipped == 0 {
            return None;
        }
        self.left.set(self.left.get() - skipped);
        if self.left.get() == 0
            && let Some(waker) = self.waits.take()
        {
            waker.wake();
        }
        Some(skipped)
    }

    fn has_read(&self) -> bool {
        !self.begun.read.is_empty() || self.begun.ended || self.begun.read_error.is_some()
    }
}

impl AsyncRead for Replay {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Also where nothing was read before: an early refusal may lie in the socket by now.
        if self.left.get() > 0 {
            self.waits = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if self.has_read() {
            if !self.begun.read.is_empty() {
                let n = self.begun.read.len().min(buf.remaining());
                buf.put_slice(&self.begun.read[..n]);
                self.begun.read.advance(n);
                return Poll::Ready(Ok(()));
            }
            if let Some(error) = self.begun.read_error.take() {
                return Poll::Ready(Err(error));
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Replay {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(skipped) = self.skip(buf.len()) {
            return Poll::Ready(Ok(skipped));
        }
        if let Some(error) = self.begun.write_error.take() {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.left.get() > 0
            && let Some(skipped) = self.skip(bufs.iter().map(|b| b.len()).sum())
        {
            return Poll::Ready(Ok(skipped));
        }
        if let Some(error) = self.begun.write_error.take() {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.left.get() == 0
            && let Some(error) = self.begun.write_error.take()
        {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Whether nothing lies in a connection that waits: neither bytes that nobody asked for nor an end.
pub(super) fn is_quiet(io: &mut Io) -> bool {
    let mut room = [MaybeUninit::<u8>::uninit(); 64];
    let mut buf = ReadBuf::uninit(&mut room);
    Pin::new(io)
        .poll_read(&mut Context::from_waker(Waker::noop()), &mut buf)
        .is_pending()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wants(fields: bool, body: bool) -> impl Fn(&[u8]) -> Piece {
        move |bytes| {
            answer(
                bytes,
                &Wants {
                    body: &|_| body,
                    fields,
                    limit: 1_000,
                },
            )
        }
    }

    #[test]
    fn what_is_plain() {
        let read = wants(false, false);
        let whole = |status| {
            Piece::Whole(Whole {
                status,
                headers: HeaderMap::new(),
                body: Vec::new(),
            })
        };
        for (text, expected) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", whole(200)),
            (
                "HTTP/1.1 202 \r\nContent-Length: 0\r\nConnection: Keep-Alive\r\n\r\n",
                whole(202),
            ),
            ("HTTP/1.1 204 No Content\r\nserver: x\r\n\r\n", whole(204)),
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no", Piece::Head),
            ("HTTP/1.1 200 OK\r\ncontent-le", Piece::Begun),
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok!", Piece::Other),
            (
                "HTTP/1.1 204 No Content\r\ncontent-length: 2\r\n\r\n",
                Piece::Other,
            ),
            ("HTTP/1.1 200 OK\r\n\r\n", Piece::Other),
            ("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", Piece::Other),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok",
                Piece::Other,
            ),
            ("HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\n\r\nok", Piece::Other),
            ("HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nok", Piece::Other),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok",
                Piece::Other,
            ),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\nok",
                Piece::Other,
            ),
            ("HTTP/1.1 200 OK\r\ncontent-length: 2000\r\n\r\nok", Piece::Other),
            ("HTTP/1.1 100 Continue\r\n\r\n", Piece::Other),
            (
                "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
                Piece::Other,
            ),
            ("HTTP/1.1 200 OK\r\ncontent-length : 2\r\n\r\nok", Piece::Other),
            ("junk", Piece::Other),
        ] {
            assert_eq!(read(text.as_bytes()), expected, "{text}");
        }
    }

    /// Fields are kept where somebody reads them, and the body where it is asked for.
    #[test]
    fn what_is_kept() {
        let kept = |piece| match piece {
            Piece::Whole(whole) => (whole.headers.len(), whole.body),
            other => panic!("{other:?}"),
        };
        let text = b"HTTP/1.1 200 OK\r\ndate: x\r\ncontent-length: 2\r\n\r\nok";
        assert_eq!(kept(wants(false, false)(text)), (0, Vec::new()));
        assert_eq!(kept(wants(true, false)(text)), (2, Vec::new()));
        assert_eq!(kept(wants(false, true)(text)), (2, b"ok".to_vec()));
        for name in ["Retry-After", "ratelimit", "X-RateLimit-Remaining", "Keep-Alive"] {
            let text = format!("HTTP/1.1 200 OK\r\n{name}: 1\r\ndate: x\r\ncontent-length: 0\r\n\r\n");
            assert_eq!(
                kept(wants(false, false)(text.as_bytes())),
                (3, Vec::new()),
                "{name}"
            );
        }
    }

    proptest! {
        /// What is whole is so only to its last byte, however it is cut.
        #[test]
        fn a_part_is_never_whole(body in "[ -~]{0,40}", cut in 0..200_usize) {
            let text = format!("HTTP/1.1 200 OK\r\nserver: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            let cut = cut.min(text.len());
            let piece = wants(false, true)(&text.as_bytes()[..cut]);
            match piece {
                Piece::Whole(whole) => prop_assert!(cut == text.len() && whole.body == body.as_bytes()),
                piece => prop_assert!(matches!(piece, Piece::Begun | Piece::Head) && cut < text.len()),
            }
        }

        #[test]
        fn whatever_comes_is_read(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            wants(true, true)(&bytes);
        }
    }
}
