//! One request and its answer on a connection in hand: the gate is asked, the request written, the answer read.

use super::answer::Oddity;
use super::connection::{self, BodyEnd, Failed, Got, Http1, within};
use super::dial::Proxy;
use super::failure::Failure;
use super::http2::Tried;
use super::plain::Wants;
use super::pool::{Alone, Leased};
use super::reply::{Outcome, Reply};
use super::request::{Form, Request};
use super::unsettled::Unsettled;
use super::{Connection, HttpSink, odd};
use crate::core::stray::{Behind, Seen};
use crate::sink::Gate;
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use http::Response;
use http::header::{self, HeaderValue};
use hyper::body::{Body as _, Incoming};
use std::pin::pin;
use std::time::Duration;
use tokio::time::Instant;

/// How long the rest of a body without a known length is waited for, where only a reason for people stands in it.
const UNFRAMED: Duration = Duration::from_secs(1);

/// When a request was begun, until when its answer counts, and what had been written before it.
struct Begun {
    begun: Instant,
    deadline: Instant,
    before: u64,
}

impl HttpSink {
    pub(super) fn exchange(
        &self,
        connection: Connection,
        request: Request,
        gate: Gate<'_>,
        timeout: Duration,
        needs_body: impl Fn(u16) -> bool,
    ) -> impl Future<Output = Outcome> {
        let Request { origin, mut form, .. } = request;
        if let Some(proxy) = self.pool.dialer().told_to(&origin) {
            tell_proxy(proxy, form.message_mut());
        }
        let mut leased = connection.0;
        // Not an `async fn`: its future would hold what it is called with twice.
        async move {
            let (mut renewed, mut gave_back) = (false, false);
            loop {
                let now = Instant::now();
                let usable = match &mut leased {
                    Leased::Alone(alone) => !gave_back && alone.is_usable(now),
                    Leased::Shared(stream) => {
                        match stream
                            .exchange(
                                &origin,
                                form.into_message(),
                                &mut *gate,
                                timeout,
                                self.answer_limit,
                            )
                            .await
                        {
                            Tried::Over(outcome) => return outcome,
                            Tried::Elsewhere(back) => form = Form::Message(back),
                        }
                        false
                    }
                };
                if !usable {
                    self.pool.count_stale();
                    if renewed {
                        let why = "the partner closes new connections at once";
                        return Outcome::NeverWritten(Failure::Connect(why.to_owned()));
                    }
                    (renewed, gave_back) = (true, false);
                    leased = match self.pool.get_new(&origin).await {
                        Ok(leased) => leased,
                        Err(e) => return Outcome::NeverWritten(e.into()),
                    };
                    continue;
                }
                let Leased::Alone(mut alone) = leased else {
                    continue;
                };
                if !gate() {
                    return Outcome::Stopped;
                }
                let deadline = now + timeout;
                let http1 = alone.begin(now);
                let before = http1.written();
                let wants = Wants {
                    body: &needs_body,
                    fields: !self.reading.rules.is_empty(),
                    limit: self.answer_limit,
                };
                let answered = within(deadline, pin!(http1.exchange(form, wants))).await;
                let nothing_written = http1.written() == before;
                let response = match answered {
                    Some(Ok(Got::Whole(whole))) => {
                        http1.heed(whole.status, &whole.headers, now);
                        http1.note_answer(now);
                        alone.done();
                        return Outcome::Heard(Reply {
                            status: whole.status,
                            headers: whole.headers,
                            body: whole.body,
                            end: BodyEnd::Whole,
                            odd: None,
                        });
                    }
                    // It is not this request's: that lies in hyper still, or was thrown away behind a failed write.
                    Some(Ok(Got::Head(_))) if nothing_written => {
                        let why = "an answer came before anything was written";
                        return Outcome::NeverWritten(Failure::Connect(why.to_owned()));
                    }
                    Some(Ok(Got::Head(response))) => response,
                    Some(Err(Failed::NotWritten(back))) => {
                        // It is closed; the next turn replaces it.
                        form = Form::Message(back);
                        leased = Leased::Alone(alone);
                        gave_back = true;
                        continue;
                    }
                    Some(Err(Failed::NothingLeft(e))) => {
                        return Outcome::NeverWritten(Failure::Connect(format!("nothing was written: {e}")));
                    }
                    Some(Err(Failed::Broken(e))) => return self.broken(http1, &e, deadline).await,
                    None if nothing_written => {
                        let why = format!("nothing could be written within {timeout:?}");
                        return Outcome::NeverWritten(Failure::Connect(why));
                    }
                    None => return Outcome::Failed(Failure::Timeout(timeout)),
                };
                let exchange = Begun {
                    begun: now,
                    deadline,
                    before,
                };
                return self.rest(alone, response, exchange, &needs_body).await;
            }
        }
    }

    /// The rest of an answer that hyper reads.
    ///
    /// Boxed: nearly all answers are plain, and the future of every request must not be larger for the others.
    fn rest<'a>(
        &'a self,
        mut alone: Alone,
        response: Box<Response<Incoming>>,
        exchange: Begun,
        needs_body: &'a dyn Fn(u16) -> bool,
    ) -> LocalBoxFuture<'a, Outcome> {
        let Begun {
            begun,
            deadline,
            before,
        } = exchange;
        async move {
            let http1 = alone.conn();
            let (head, mut body) = response.into_parts();
            let status = head.status.as_u16();
            http1.heed(status, &head.headers, begun);
            let mut kept = Vec::new();
            let needed = needs_body(status);
            let unframed = !body.is_end_stream()
                && body.size_hint().exact().is_none()
                && !head.headers.contains_key(header::TRANSFER_ENCODING);
            let end = if body.is_end_stream() {
                BodyEnd::Whole
            } else if unframed && !needed {
                // It lasts until the partner closes, the connection cannot be used again, and the status has said all.
                BodyEnd::Cut
            } else {
                let only_told = unframed && !self.reading.decides_by_body(status);
                let until = if only_told {
                    deadline.min(Instant::now() + UNFRAMED)
                } else {
                    deadline
                };
                let keep = needed.then_some(&mut kept);
                let read = within(until, pin!(http1.read_body(&mut body, self.answer_limit, keep))).await;
                read.unwrap_or(BodyEnd::Cut)
            };
            let written = http1.written() - before;
            let since_last = http1.note_answer(begun);
            let mut reply = Reply {
                status,
                headers: head.headers,
                body: kept,
                end,
                odd: None,
            };
            if (200..300).contains(&status) || http1.served == 1 {
                if end == BodyEnd::Whole {
                    alone.done();
                }
                return Outcome::Heard(reply);
            }
            let seen = Seen {
                status,
                unacknowledged: http1.came_unasked(),
                behind: Behind::End,
                closes: false,
                written,
                since_last,
                slowest: http1.slowest,
            };
            match Unsettled::begin(alone, seen, end == BodyEnd::Whole, self.strays) {
                Ok(why) => {
                    reply.odd = why.map(Oddity::Stray);
                    Outcome::Heard(reply)
                }
                Err(unsettled) => Outcome::Unsettled(reply, unsettled),
            }
        }
        .boxed_local()
    }

    /// What is made of a request that was written, and of an answer that hyper could not read, if there was one.
    fn broken<'a>(
        &'a self,
        http1: &'a mut Http1,
        e: &'a hyper::Error,
        deadline: Instant,
    ) -> LocalBoxFuture<'a, Outcome> {
        async move {
            let read = match e.is_parse() || e.is_parse_too_large() {
                // The rest of a head may be on its way still.
                true => http1.rest_of_head(deadline).await,
                false => Vec::new(),
            };
            self.made_of(e, &read)
        }
        .boxed_local()
    }

    fn made_of(&self, e: &hyper::Error, read: &[u8]) -> Outcome {
        if !e.is_parse() && !e.is_parse_too_large() {
            return Outcome::Failed(Failure::from_hyper(e));
        }
        if e.is_parse_too_large() {
            self.pool.allow_many_fields();
        }
        match odd::read(read) {
            // A protocol that nobody asked to switch to.
            Ok(odd) if odd.status == 101 => Outcome::Failed(Failure::BadAnswer(odd.why)),
            Ok(odd) => Outcome::Heard(Reply {
                status: odd.status,
                headers: odd.headers,
                body: Vec::new(),
                end: BodyEnd::Cut,
                odd: Some(Oddity::Head(odd.why)),
            }),
            Err(_) if read.is_empty() => Outcome::Failed(Failure::BadAnswer(e.to_string())),
            Err(why) => Outcome::Failed(Failure::BadAnswer(format!("{e}: {why}"))),
        }
    }
}

/// A request to a proxy names the whole URL, and who asks the proxy.
fn tell_proxy(proxy: &Proxy, message: &mut connection::Message) {
    let host = message.headers().get(header::HOST).cloned();
    let authority = host.as_ref().and_then(|h| h.to_str().ok()).unwrap_or_default();
    let path = message.uri().path_and_query().map_or("/", |p| p.as_str());
    if let Ok(uri) = format!("http://{authority}{path}").parse() {
        *message.uri_mut() = uri;
    }
    if let Some(auth) = &proxy.auth {
        let auth: HeaderValue = auth.clone();
        message.headers_mut().insert(header::PROXY_AUTHORIZATION, auth);
    }
}
