//! One connection: reads requests, has them judged and counted, answers or misbehaves.

use super::endpoints;
use super::options::RetryAfter;
use super::plan::{Plan, Seen, decide};
use super::server::{Partner, Shared, State};
use super::spec::{Fault, Field};
use super::tally::{Arrival, Open};
use bytes::{Buf, BytesMut};
use std::borrow::Cow;
use std::io::Write as _;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A stream that can be cut off with a reset.
pub(crate) trait Transport: AsyncRead + AsyncWrite + Unpin + Send {
    /// From now on closing is a reset, not an orderly end.
    fn reset(&self);
}

const HEAD_LIMIT: usize = 1 << 20;
const BODY_LIMIT: usize = 256 << 20;
const HEADERS: usize = 128;
/// While an answer is being delayed, so many bytes of what the client sends next are kept.
const AHEAD_LIMIT: usize = 64 << 10;

/// What is needed of a head before the body is there.
struct Head {
    len: usize,
    body: Body,
    keep_alive: bool,
    expects_continue: bool,
}

enum Body {
    Length(usize),
    Chunked,
}

/// Not a request.
struct Bad;

fn parse_head(buf: &[u8]) -> Result<Option<Head>, Bad> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let len = match request.parse(buf) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if buf.len() < HEAD_LIMIT => return Ok(None),
        _ => return Err(Bad),
    };
    let mut head = Head {
        len,
        body: Body::Length(0),
        keep_alive: request.version == Some(1),
        expects_continue: false,
    };
    for header in request.headers.iter() {
        let name = header.name;
        if name.eq_ignore_ascii_case("content-length") {
            let text = std::str::from_utf8(header.value).map_err(|_| Bad)?;
            let length = text.trim().parse().ok().filter(|n| *n <= BODY_LIMIT).ok_or(Bad)?;
            head.body = Body::Length(length);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            head.body = Body::Chunked;
        } else if name.eq_ignore_ascii_case("connection") {
            if header.value.eq_ignore_ascii_case(b"close") {
                head.keep_alive = false;
            } else if header.value.eq_ignore_ascii_case(b"keep-alive") {
                head.keep_alive = true;
            }
        } else if name.eq_ignore_ascii_case("expect") {
            head.expects_continue = true;
        }
    }
    Ok(Some(head))
}

/// Takes chunks from `buf[*at..]` into `body` as far as they are there; true when the last one was taken.
fn take_chunks(buf: &[u8], at: &mut usize, body: &mut Vec<u8>) -> Result<bool, Bad> {
    loop {
        match httparse::parse_chunk_size(&buf[*at..]) {
            Ok(httparse::Status::Complete((line, size))) => {
                let size = usize::try_from(size).map_err(|_| Bad)?;
                if body.len().saturating_add(size) > BODY_LIMIT {
                    return Err(Bad);
                }
                let data = *at + line;
                // Two bytes of line end follow the data. Trailers are not expected of our clients.
                let Some(chunk) = buf.get(data..data + size + 2) else {
                    return Ok(false);
                };
                body.extend_from_slice(&chunk[..size]);
                *at = data + size + 2;
                if size == 0 {
                    return Ok(true);
                }
            }
            Ok(httparse::Status::Partial) => return Ok(false),
            Err(_) => return Err(Bad),
        }
    }
}

/// A complete request, borrowed from the buffer.
pub(crate) struct Request<'a> {
    pub(crate) method: &'a str,
    /// Path with query.
    pub(crate) target: &'a str,
    headers: &'a [httparse::Header<'a>],
    pub(crate) body: &'a [u8],
}

impl Request<'_> {
    fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers
            .iter()
            .find(|h| h.name.eq_ignore_ascii_case(name))
            .map(|h| h.value)
    }
    fn field(&self, field: &Field, json: &mut Option<serde_json::Value>) -> Option<Cow<'_, [u8]>> {
        match field {
            Field::Header(name) => self.header(name).map(Cow::Borrowed),
            Field::Path => Some(Cow::Borrowed(
                self.target.split('?').next().unwrap_or_default().as_bytes(),
            )),
            Field::Query(name) => {
                let (_, query) = self.target.split_once('?')?;
                let mut pairs = url::form_urlencoded::parse(query.as_bytes());
                pairs
                    .find(|(n, _)| n == name)
                    .map(|(_, v)| Cow::Owned(v.into_owned().into_bytes()))
            }
            Field::Json(pointer) => {
                let whole = json.get_or_insert_with(|| serde_json::from_slice(self.body).unwrap_or_default());
                match whole.pointer(pointer)? {
                    serde_json::Value::Null => None,
                    serde_json::Value::String(s) => Some(Cow::Owned(s.clone().into_bytes())),
                    other => Some(Cow::Owned(other.to_string().into_bytes())),
                }
            }
        }
    }
}

/// A request in flight: ends in the counts even if the connection's task is thrown away.
struct InFlight<'a> {
    partner: &'a Partner,
    open: Open,
    /// What was answered, once it was.
    answered: Option<(u16, usize)>,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let (status, bytes) = self.answered.map_or((None, 0), |(s, b)| (Some(s), b));
        self.partner.state.lock().tally.finish(self.open, status, bytes);
    }
}

/// Serves one connection until either side ends it.
pub(crate) async fn serve<S: Transport>(shared: &Shared, listener: usize, mut stream: S) {
    let mut buf = BytesMut::with_capacity(16 << 10);
    let mut out: Vec<u8> = Vec::with_capacity(512);
    let mut left = shared.requests_per_connection(listener).unwrap_or(u64::MAX);
    while left > 0 {
        match one(shared, listener, &mut stream, &mut buf, &mut out).await {
            Some(true) => left -= 1,
            Some(false) | None => return,
        }
    }
}

/// One request. None: the connection has ended; else whether it may go on.
async fn one<S: Transport>(
    shared: &Shared,
    listener: usize,
    stream: &mut S,
    buf: &mut BytesMut,
    out: &mut Vec<u8>,
) -> Option<bool> {
    let head = loop {
        if !buf.is_empty() {
            match parse_head(buf) {
                Ok(Some(head)) => break head,
                Ok(None) => {}
                Err(Bad) => return bad(shared, listener, stream).await,
            }
        }
        let read = stream.read_buf(buf);
        let read = match shared.idle_timeout(listener) {
            None => read.await,
            Some(idle) => tokio::time::timeout(idle, read).await.ok()?,
        };
        if read.ok()? == 0 {
            return None;
        }
    };
    // As early as can be: what the limits of the sender are judged by.
    let at = shared.now();
    let mut chunked = Vec::new();
    let mut total = head.len;
    match head.body {
        Body::Length(length) => {
            total += length;
            let mut first = true;
            while buf.len() < total {
                if std::mem::take(&mut first) {
                    if resets_before_read(shared, listener, buf) {
                        break;
                    }
                    invite(stream, &head).await?;
                    buf.reserve(total - buf.len());
                }
                if stream.read_buf(buf).await.ok()? == 0 {
                    return None;
                }
            }
            total = total.min(buf.len());
        }
        Body::Chunked => {
            invite(stream, &head).await?;
            loop {
                match take_chunks(buf, &mut total, &mut chunked) {
                    Ok(true) => break,
                    Ok(false) => {}
                    Err(Bad) => return bad(shared, listener, stream).await,
                }
                if stream.read_buf(buf).await.ok()? == 0 {
                    return None;
                }
            }
        }
    }
    out.clear();
    let (judged, only_head) = {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS];
        let mut parsed = httparse::Request::new(&mut headers);
        // It parsed before; the same bytes parse again.
        parsed.parse(buf).ok()?;
        let request = Request {
            method: parsed.method.unwrap_or_default(),
            target: parsed.path.unwrap_or_default(),
            headers: parsed.headers,
            body: if chunked.is_empty() {
                &buf[head.len..total]
            } else {
                &chunked
            },
        };
        let judged = match endpoints::answer(shared, listener, &request, out) {
            endpoints::Answered::Here => None,
            endpoints::Answered::ByPartner(partner) => Some(judge(shared, partner, &request, at, total, out)),
        };
        (judged, request.method == "HEAD")
    };
    buf.advance(total);
    let Some((plan, mut in_flight, head_bytes)) = judged else {
        stream.write_all(out).await.ok()?;
        stream.flush().await.ok()?;
        return Some(head.keep_alive);
    };
    if only_head {
        out.truncate(head_bytes);
    }
    if !plan.delay.is_zero() && !wait(stream, buf, Some(plan.delay)).await {
        return None;
    }
    let status = match plan.fault {
        Some(Fault::Status(status)) => status,
        _ => 200,
    };
    match plan.fault {
        None | Some(Fault::Status(_) | Fault::ErrorBody) => {
            stream.write_all(out).await.ok()?;
            stream.flush().await.ok()?;
        }
        Some(Fault::Down | Fault::ResetBeforeRead | Fault::ResetAfterRead) => {
            stream.reset();
            return None;
        }
        Some(Fault::Hang(_)) => {
            wait(stream, buf, None).await;
            return None;
        }
        Some(Fault::Close) => {
            let _ = stream.shutdown().await;
            return None;
        }
        Some(Fault::Half) => {
            stream.write_all(&out[..out.len() / 2]).await.ok()?;
            let _ = stream.shutdown().await;
            return None;
        }
        Some(Fault::Garbage) => {
            stream
                .write_all(b"\x16\x03\x01 this is not HTTP \xff\xfe\r\n\r\n{{{\r\n")
                .await
                .ok()?;
            let _ = stream.shutdown().await;
            return None;
        }
        Some(Fault::Drip(pause)) => {
            for byte in out.iter() {
                stream.write_all(std::slice::from_ref(byte)).await.ok()?;
                stream.flush().await.ok()?;
                if !wait(stream, buf, Some(pause)).await {
                    return None;
                }
            }
        }
        Some(Fault::Huge(bytes)) => {
            stream.write_all(&out[..head_bytes]).await.ok()?;
            let filler = vec![b'x'; 64 << 10];
            let mut more = bytes;
            while more > 0 {
                let part = filler.len().min(usize::try_from(more).unwrap_or(usize::MAX));
                stream.write_all(&filler[..part]).await.ok()?;
                more -= part as u64;
            }
            stream.flush().await.ok()?;
        }
    }
    in_flight.answered = Some((status, out.len()));
    Some(head.keep_alive)
}

/// Answers 400 to what is no request and ends the connection.
async fn bad<S: Transport>(shared: &Shared, listener: usize, stream: &mut S) -> Option<bool> {
    if let Some(partner) = shared.partners.iter().find(|p| p.listener == listener) {
        partner.state.lock().tally.bad_request();
    }
    stream
        .write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        .await
        .ok()?;
    stream.shutdown().await.ok()?;
    Some(false)
}

/// Says `100 Continue` to a client that waits for it.
async fn invite<S: Transport>(stream: &mut S, head: &Head) -> Option<()> {
    if head.expects_continue {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.ok()?;
        stream.flush().await.ok()?;
    }
    Some(())
}

/// Whether the request whose head is in `buf` will be reset in any case, so that its body need not be read.
fn resets_before_read(shared: &Shared, listener: usize, buf: &[u8]) -> bool {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let Ok(httparse::Status::Complete(_)) = parsed.parse(buf) else {
        return false;
    };
    let Some((partner, _)) = shared.route(listener, parsed.path.unwrap_or_default()) else {
        return false;
    };
    partner.state.lock().certain(shared.now(), Fault::ResetBeforeRead)
}

/// Waits, for ever without a time, while looking whether the client has gone. False if it has.
async fn wait<S: Transport>(stream: &mut S, buf: &mut BytesMut, time: Option<Duration>) -> bool {
    let sleep = async {
        match time {
            Some(time) => tokio::time::sleep(time).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(sleep);
    loop {
        tokio::select! {
            biased;
            () = &mut sleep => return true,
            read = stream.read_buf(buf), if buf.len() < AHEAD_LIMIT => match read {
                Ok(n) if n > 0 => {}
                _ => return false,
            },
        }
    }
}

/// Judges and counts a request; writes the answer it would get into `out`. Answers the plan, the open request, and where the answer's
/// head ends.
fn judge<'s>(
    shared: &Shared,
    partner: &'s Partner,
    request: &Request<'_>,
    at: u64,
    bytes: usize,
    out: &mut Vec<u8>,
) -> (Plan, InFlight<'s>, usize) {
    let options = &partner.options;
    let mut json = None;
    let id = request.field(&options.id, &mut json).unwrap_or_default();
    let key = options
        .key
        .as_ref()
        .and_then(|f| request.field(f, &mut json))
        .unwrap_or_default();
    let seq = options.seq.as_ref().and_then(|f| request.field(f, &mut json));
    let seq = seq.and_then(|s| std::str::from_utf8(&s).ok()?.parse().ok());
    let mut state = partner.state.lock();
    let State {
        behaviour,
        script,
        limits,
        tally,
        rng,
    } = &mut *state;
    let (open, applied_before) = tally.arrive(Arrival {
        at,
        id: &id,
        key: &key,
        seq,
        bytes,
    });
    let now = shared.now();
    let seen = Seen {
        key: &key,
        id: &id,
        path: request.target.as_bytes(),
        applied_before,
    };
    let plan = decide(behaviour, script.at(now), seen, limits, now, rng);
    if script.count(now) {
        partner.changed();
    }
    tally.judge(&id, applied_before, &plan);
    let head_bytes = render(&state, &plan, now, out);
    (
        plan,
        InFlight {
            partner,
            open,
            answered: None,
        },
        head_bytes,
    )
}

/// Writes the answer that a plan comes to; answers the length of its head.
fn render(state: &State, plan: &Plan, now: u64, out: &mut Vec<u8>) -> usize {
    let behaviour = &state.behaviour;
    let status = match plan.fault {
        Some(Fault::Status(status)) => status,
        _ => 200,
    };
    let body = match plan.fault {
        Some(Fault::ErrorBody) => &behaviour.error_answer,
        _ if (200..300).contains(&status) => &behaviour.answer,
        _ => &behaviour.error_answer,
    };
    let body: &[u8] = if matches!(status, 204 | 304) {
        b""
    } else {
        body.as_bytes()
    };
    let length = match plan.fault {
        Some(Fault::Huge(bytes)) => bytes,
        _ => body.len() as u64,
    };
    let reason = http::StatusCode::from_u16(status)
        .ok()
        .and_then(|s| s.canonical_reason())
        .unwrap_or("Other");
    // Writing into a vector cannot fail.
    let _ = write!(
        out,
        "HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\n"
    );
    if matches!(status, 429 | 503) {
        let seconds = |d: Duration| d.as_secs() + u64::from(d.subsec_nanos() > 0);
        let _ = match behaviour.retry_after {
            RetryAfter::None => Ok(()),
            RetryAfter::Auto if status == 503 => Ok(()),
            RetryAfter::Auto => {
                write!(
                    out,
                    "retry-after: {}\r\n",
                    seconds(plan.limited.unwrap_or_default()).max(1)
                )
            }
            RetryAfter::Seconds(d) => write!(out, "retry-after: {}\r\n", seconds(d)),
            RetryAfter::Date(d) => {
                let then = std::time::SystemTime::now() + Duration::from_secs(seconds(d));
                write!(out, "retry-after: {}\r\n", httpdate::fmt_http_date(then))
            }
        };
    }
    if behaviour.ratelimit_headers
        && let Some((limit, left, reset)) = state.limits.first().map(|l| l.state(now))
    {
        let reset = reset.as_secs() + u64::from(reset.subsec_nanos() > 0);
        let _ = write!(
            out,
            "ratelimit-limit: {limit}\r\nratelimit-remaining: {left}\r\nratelimit-reset: {reset}\r\n"
        );
    }
    for (name, value) in &behaviour.headers {
        let _ = write!(out, "{name}: {value}\r\n");
    }
    if !matches!(status, 204 | 304) {
        let _ = write!(out, "content-length: {length}\r\n");
    }
    out.extend_from_slice(b"\r\n");
    let head_bytes = out.len();
    out.extend_from_slice(body);
    head_bytes
}
