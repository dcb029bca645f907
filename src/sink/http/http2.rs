//! One HTTP/2 connection, shared by the requests that are under way on it.
//!
//! A task of its own drives it, for each request may wait for the others' frames. What is asked of it all the same:
//! a stream is at hand before the gate is asked, so that the request's first byte goes out in the next turn of that
//! task, and never waits for another stream's end or for a connect (I5).
//!
//! HTTP/2 says for sure that a request was not looked at (RFC 9113, 8.7): the stream was refused, or it lies beyond
//! the last one that a GOAWAY names.

use super::connection::{BodyEnd, HEAD, Io, Message, Wire, within};
use super::failure::Failure;
use super::origin::Origin;
use super::reply::{Outcome, Reply};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use h2::client::SendRequest;
use http::header::HOST;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Uri, Version};
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// Streams at once until the partner has said how many, and at most.
const STREAMS: usize = 100;

/// A connection, and how much is under way on it.
pub(super) struct Http2 {
    sender: SendRequest<Bytes>,
    wire: Arc<Wire>,
    in_flight: Cell<usize>,
    /// It has ended, or nothing more is to be begun on it.
    over: Rc<Cell<bool>>,
    pub(super) used: Cell<Instant>,
    good_until: Instant,
    driver: AbortHandle,
}

impl Drop for Http2 {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A stream of a connection, taken.
pub(super) struct Stream(Rc<Http2>);

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get() - 1);
    }
}

impl Http2 {
    pub(super) async fn start(io: Io, good_until: Instant) -> Result<Rc<Self>, h2::Error> {
        let wire = io.wire();
        let (sender, connection) = h2::client::Builder::new()
            .enable_push(false)
            .initial_max_send_streams(STREAMS)
            .max_header_list_size(HEAD as u32)
            .handshake(io)
            .await?;
        let over = Rc::new(Cell::new(false));
        let there = Rc::clone(&over);
        let driver = tokio::task::spawn_local(async move {
            // What it ends with is told to the requests under way.
            let _ended = connection.await;
            there.set(true);
        });
        Ok(Rc::new(Self {
            sender,
            wire,
            in_flight: Cell::new(0),
            over,
            used: Cell::new(Instant::now()),
            good_until,
            driver: driver.abort_handle(),
        }))
    }

    /// Whether another request can be begun on it now.
    pub(super) fn has_room(&self, now: Instant) -> bool {
        self.is_open(now) && self.in_flight.get() < self.sender.current_max_send_streams().min(STREAMS)
    }

    /// Whether another request could be begun on it at some time.
    pub(super) fn is_open(&self, now: Instant) -> bool {
        !self.over.get() && now < self.good_until
    }

    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.get() == 0
    }

    pub(super) fn take(self: &Rc<Self>) -> Stream {
        self.in_flight.set(self.in_flight.get() + 1);
        self.used.set(Instant::now());
        Stream(Rc::clone(self))
    }
}

/// What came of an exchange, and whether another connection is to be had first.
pub(super) enum Tried {
    Over(Outcome),
    /// Nothing was written, and the gate was not asked: the connection has ended, or the partner allows fewer
    /// streams than it did.
    Elsewhere(Box<Message>),
}

impl Stream {
    /// Boxed: the future of every request must not be larger for those over HTTP/2.
    pub(super) fn exchange<'a>(
        &'a self,
        origin: &'a Origin,
        message: Box<Message>,
        gate: &'a mut dyn FnMut() -> bool,
        timeout: Duration,
        limit: usize,
    ) -> LocalBoxFuture<'a, Tried> {
        self.exchanged(origin, message, gate, timeout, limit)
            .boxed_local()
    }

    async fn exchanged(
        &self,
        origin: &Origin,
        message: Box<Message>,
        gate: &mut dyn FnMut() -> bool,
        timeout: Duration,
        limit: usize,
    ) -> Tried {
        let connection = &self.0;
        let Some(Ok(mut sender)) = connection.sender.clone().ready().now_or_never() else {
            connection.over.set(true);
            return Tried::Elsewhere(message);
        };
        let (request, body) = match request(origin, *message) {
            Ok(whole) => whole,
            Err(why) => return Tried::Over(Outcome::NeverWritten(Failure::Connect(why))),
        };
        if !gate() {
            return Tried::Over(Outcome::Stopped);
        }
        let before = connection.wire.written();
        let deadline = Instant::now() + timeout;
        let (response, mut stream) = match sender.send_request(request, body.is_empty()) {
            Ok(begun) => begun,
            Err(e) => {
                connection.over.set(true);
                return Tried::Over(Outcome::NeverWritten(Failure::Connect(format!("http2: {e}"))));
            }
        };
        let failed = |e: &h2::Error| {
            // What ends one stream says nothing of the others; anything else ends the connection for new ones.
            if !e.is_reset() {
                connection.over.set(true);
            }
            if refused_unseen(e) || connection.wire.written() == before {
                return Outcome::NeverWritten(Failure::Connect(format!("http2: {e}")));
            }
            Outcome::Failed(Failure::Reset(format!("http2: {e}")))
        };
        let head = {
            let mut response = pin!(response);
            let mut sending = pin!(send(&mut stream, body));
            let mut sent = false;
            // An answer may come while the body is still on its way.
            let both = poll_fn(|cx| {
                if let Poll::Ready(head) = response.as_mut().poll(cx) {
                    return Poll::Ready(head);
                }
                // That it could not be sent is told by the answer's side as well.
                sent = sent || sending.as_mut().poll(cx).is_ready();
                response.as_mut().poll(cx)
            });
            within(deadline, pin!(both)).await
        };
        let (head, mut body) = match head {
            Some(Ok(response)) => response.into_parts(),
            Some(Err(e)) => return Tried::Over(failed(&e)),
            None => {
                // It may be dead and nobody has told: the next request shall not find out.
                connection.over.set(true);
                return Tried::Over(if connection.wire.written() == before {
                    let why = format!("nothing could be written within {timeout:?}");
                    Outcome::NeverWritten(Failure::Connect(why))
                } else {
                    Outcome::Failed(Failure::Timeout(timeout))
                });
            }
        };
        let mut kept = Vec::new();
        let end = loop {
            let frame = within(deadline, pin!(body.data())).await;
            match frame {
                None | Some(Some(Err(_))) => break BodyEnd::Cut,
                Some(None) => break BodyEnd::Whole,
                Some(Some(Ok(data))) => {
                    let left = limit - kept.len();
                    kept.extend_from_slice(&data[..data.len().min(left)]);
                    if data.len() > left {
                        break BodyEnd::Limited;
                    }
                    // What was read makes room for more. It fails only where the stream has ended.
                    let _ended = body.flow_control().release_capacity(data.len());
                }
            }
        };
        Tried::Over(Outcome::Heard(Reply {
            status: head.status.as_u16(),
            headers: head.headers,
            body: kept,
            end,
            odd: None,
        }))
    }
}

/// The message as HTTP/2 has it: its URL whole, and no `host`.
fn request(origin: &Origin, message: Message) -> Result<(Request<()>, Bytes), String> {
    let (mut head, body) = message.into_parts();
    let host = head.headers.remove(HOST);
    let authority = host
        .and_then(|host| Authority::from_maybe_shared(Bytes::copy_from_slice(host.as_bytes())).ok())
        .ok_or("the host cannot be named in HTTP/2")?;
    let path = head
        .uri
        .path_and_query()
        .cloned()
        .unwrap_or_else(|| PathAndQuery::from_static("/"));
    let scheme = if origin.https { Scheme::HTTPS } else { Scheme::HTTP };
    head.uri = Uri::builder()
        .scheme(scheme)
        .authority(authority)
        .path_and_query(path)
        .build()
        .map_err(|e| e.to_string())?;
    head.version = Version::HTTP_2;
    Ok((Request::from_parts(head, ()), body))
}

async fn send(stream: &mut h2::SendStream<Bytes>, mut body: Bytes) -> Result<(), h2::Error> {
    while !body.is_empty() {
        stream.reserve_capacity(body.len());
        let Some(room) = poll_fn(|cx| stream.poll_capacity(cx)).await else {
            return Ok(());
        };
        let room = room?.min(body.len());
        if room == 0 {
            continue;
        }
        let piece = body.split_to(room);
        stream.send_data(piece, body.is_empty())?;
    }
    Ok(())
}

fn refused_unseen(e: &h2::Error) -> bool {
    e.is_remote() && (e.reason() == Some(h2::Reason::REFUSED_STREAM) || e.is_go_away())
}
