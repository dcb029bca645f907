//! The HTTP sink: one request a message.
//!
//! What counts as delivered is said by the partner's verdict rules, else by the status ([`answer`], decision 0003).
//! The way of an attempt: [`HttpSink::prepare`] makes the request (pure), [`HttpSink::connect`] gets a connection in
//! hand (a failure is no doubt), [`HttpSink::send`] asks the gate and writes, within one poll of one task. What was
//! never written is no doubt either, and hyper tells which that is.
//!
//! Behind it stands one [pool] of connections: HTTP/1.1 of hyper's, driven by whoever uses them, and HTTP/2 where a
//! partner wants it ([`http2`]); with proxies and TLS below them ([`dial`]). A connection is in hand, and has been
//! looked at, before the gate is asked. Redirects are answers that lead to the next attempt
//! ([`crate::core::redirect`]), never a request within this one.
//!
//! Not supported: request bodies that stream, `Expect: 100-continue`, protocol upgrades. Compressed answers are
//! asked for by nobody (`accept-encoding: identity` is sent) and unpacked where they come all the same.
//!
//! A sink lives on one thread, in an `Rc`; its futures are not `Send`. It keeps no state that a restart would miss.

mod answer;
mod body;
mod connection;
mod dial;
mod http2;
mod odd;
mod origin;
mod pace;
mod pool;
mod request;
#[cfg(test)]
mod tests;
mod tls;
mod unacked;
mod unsettled;
mod verify;

pub use request::Request;

use self::answer::{Heard, Oddity, Reading, unanswered};
use self::connection::{BodyEnd, Failed, within};
use self::dial::{ConnectError, Dialer, Proxy, Resolver};
use self::http2::Tried;
use self::origin::Target;
use self::pace::Heed;
use self::pool::{Leased, Pool, PoolConfig};
use self::request::{PlanConfig, RequestPlan};
use self::unsettled::Unsettled;
use self::verify::LookUp;
use super::secrets::Secrets;
use super::template::TemplateError;
use super::{
    Answer, Concerns, Delivery, DoubtCause, Gate, Moved, PrepareError, Sent, Settling, SinkStats, Verdict,
};
use crate::clock::Clock;
use crate::config::model::{DoubtPolicy, PartnerConfig, VerifyConfig};
use crate::core::expr::ExprError;
use crate::core::hosts::HostId;
use crate::core::mask::{MASK, Masker, shows_literal};
use crate::core::reach::{self, Bounds};
use crate::core::redirect::{self, Step};
use crate::core::stray::{Behind, Patience, Seen};
use crate::core::verdict::{RuleError, Rules};
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::body::Body as _;
use std::cell::RefCell;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long the rest of a body without a known length is waited for, where only a reason for people stands in it.
const UNFRAMED: Duration = Duration::from_secs(1);

/// A partner that cannot be called as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// A template of URL, header or body.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A request from what is the same for every record.
    #[error("{0}")]
    Request(String),
    /// The method.
    #[error("`{0}` is not a request method that can be used")]
    Method(String),
    /// A header.
    #[error("header `{name}`: {why}")]
    Header {
        /// Its name.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// A verdict rule.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// An expression of the look-up.
    #[error("verify.{part}: {source}")]
    Verify {
        /// `delivered` or `never_seen`.
        part: &'static str,
        /// What is wrong.
        source: ExprError,
    },
    /// The partner's CA file.
    #[error("cannot use the certificates in {}: {why}", path.display())]
    Ca {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The proxy's URL, which may hold a password and is not shown.
    #[error("the proxy's URL cannot be used, expected http://, https:// or socks5://")]
    Proxy,
    /// The HTTP client.
    #[error("cannot build the HTTP client: {why}")]
    Client {
        /// What is wrong.
        why: String,
    },
}

/// Sends to one partner over HTTP. See the module for the way of an attempt.
pub struct HttpSink {
    plan: RequestPlan,
    pool: Rc<Pool>,
    look_up: Option<LookUp>,
    reading: Rc<Reading>,
    secrets: Secrets,
    mask: Vec<String>,
    /// With the version of the secrets it was made from.
    masker: RefCell<(u64, Rc<Masker>)>,
    clock: Clock,
    request_timeout: Duration,
    answer_limit: usize,
    redirects: u32,
    /// For answers that may be nobody's.
    strays: Patience,
    /// Where all requests go, unless records say where.
    host: Option<Rc<origin::Origin>>,
    /// Origins that redirects may lead to besides their own.
    redirect_to: Vec<Rc<origin::Origin>>,
}

/// A connection in hand. Dropped unused it goes back to the pool.
pub struct Connection(Leased);

/// A request as it would be sent, with everything masked that must not be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderedMasked {
    /// The method.
    pub method: String,
    /// The URL.
    pub url: String,
    /// Names and values of the headers, in no particular order.
    pub headers: Vec<(String, String)>,
    /// The body, as text.
    pub body: String,
}

/// An answer as it was heard.
struct Reply {
    status: u16,
    headers: HeaderMap,
    /// Empty where nobody needs it.
    body: Vec<u8>,
    end: BodyEnd,
    odd: Option<Oddity>,
}

/// What came of an exchange.
enum Outcome {
    Heard(Reply),
    /// Heard; whether it answers this request is known a little later.
    Unsettled(Reply, Box<Unsettled>),
    Stopped,
    NeverWritten(Failure),
    Failed(Failure),
}

/// Why there is no answer. The first word is a stable code.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("connect: {0}")]
    Connect(String),
    /// The message's own failure.
    #[error("refused: address not allowed: {0}")]
    Forbidden(String),
    /// No connection, for this node lacks something: the partner has nothing to do with it.
    #[error("this node is short of descriptors, ports or memory: {0}")]
    Shortage(String),
    #[error("timeout: no answer within {0:?}")]
    Timeout(Duration),
    #[error("reset: {0}")]
    Reset(String),
    #[error("bad answer: {0}")]
    BadAnswer(String),
}

impl From<ConnectError> for Failure {
    fn from(e: ConnectError) -> Self {
        if let ConnectError::Forbidden { .. } = e {
            return Failure::Forbidden(e.to_string());
        }
        let short = match &e {
            // A machine without IPv6 says the same of every such address, and it will not pass.
            ConnectError::Tcp { address, source } if address.is_ipv6() => {
                source.kind() != std::io::ErrorKind::AddrNotAvailable && is_shortage(&e)
            }
            // The resolver needs descriptors too, and does not always say that it got none.
            ConnectError::Dns { .. } => {
                is_shortage(&e) || std::fs::File::open("/dev/null").is_err_and(|e| is_shortage(&e))
            }
            _ => is_shortage(&e),
        };
        match short {
            true => Failure::Shortage(e.to_string()),
            false => Failure::Connect(e.to_string()),
        }
    }
}

/// Whether somewhere in the chain of causes the system says that this node lacks something: descriptors, buffers,
/// memory, or ports of its own.
pub(super) fn is_shortage(error: &(dyn std::error::Error + 'static)) -> bool {
    // EMFILE, ENFILE, ENOBUFS, ENOMEM, EADDRNOTAVAIL.
    use rustix::io::Errno;
    let short = [
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOBUFS,
        Errno::NOMEM,
        Errno::ADDRNOTAVAIL,
    ]
    .map(Errno::raw_os_error);
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            if io.raw_os_error().is_some_and(|code| short.contains(&code)) {
                return true;
            }
            // What it was made of is its own source, which `source` passes over.
            if io.get_ref().is_some_and(|inner| is_shortage(inner)) {
                return true;
            }
        }
        cause = error.source();
    }
    false
}

impl Failure {
    /// What it means where nothing was written.
    fn unwritten(&self) -> Verdict {
        match self {
            Failure::Forbidden(_) => Verdict::Refused,
            _ => Verdict::TryLater,
        }
    }

    /// Of a request that was written.
    fn from_hyper(e: &hyper::Error) -> Self {
        if e.is_parse() || e.is_parse_too_large() || e.is_parse_status() {
            Failure::BadAnswer(e.to_string())
        } else if e.is_incomplete_message() {
            Failure::Reset("the connection was closed before the answer".to_owned())
        } else {
            let cause = std::error::Error::source(e).map_or_else(|| e.to_string(), ToString::to_string);
            Failure::Reset(cause)
        }
    }
}

impl HttpSink {
    /// Compiles everything that a partner's configuration says.
    ///
    /// # Errors
    /// Templates, rules, expressions, headers, certificates that cannot be used.
    pub fn try_new(partner: &PartnerConfig, secrets: &Secrets, clock: Clock) -> Result<Self, SinkError> {
        Self::try_new_beside(partner, secrets, clock, &[])
    }

    /// The same in a node that listens on ports of its `own`, to which no request goes.
    ///
    /// # Errors
    /// As [`HttpSink::try_new`].
    pub fn try_new_beside(
        partner: &PartnerConfig,
        secrets: &Secrets,
        clock: Clock,
        own: &[SocketAddr],
    ) -> Result<Self, SinkError> {
        let plan = PlanConfig {
            partner: &partner.name,
            url: &partner.url,
            method: &partner.method,
            headers: &partner.headers,
            body: partner.body.as_deref(),
            value_is_body: true,
            same_body: partner.idempotency_key && partner.doubt.uses(DoubtPolicy::Resend),
            idempotency_key: partner.idempotency_key,
            traceparent: partner.traceparent,
        };
        let tls = tls::client_config(partner.ca.as_deref(), partner.http2)?;
        let tls_to_proxy = {
            let mut tls = (*tls).clone();
            tls.alpn_protocols.clear();
            Arc::new(tls)
        };
        let plan = RequestPlan::try_new(&plan, secrets)?;
        let verify = partner.verify.as_ref();
        let look_up = verify.map(|v| LookUp::try_new(partner, v, secrets)).transpose()?;
        // A secret in the authority is the operator's word, too.
        let host = match plan.fixed_origin() {
            Some(origin) => Some(origin),
            None => reach::host_of_template(&partner.url)
                .and_then(|host| Target::parse(host).ok())
                .map(|target| target.origin),
        };
        let looks_anywhere = |v: &VerifyConfig| reach::host_of_template(&v.url).is_none();
        let by_record = host.is_none() || verify.is_some_and(looks_anywhere);
        let dialer = Dialer {
            resolver: Resolver::System,
            tls,
            tls_to_proxy,
            proxy: partner.proxy.as_deref().map(Proxy::parse).transpose()?,
            bounds: Bounds {
                own: own.to_vec(),
                from_record: by_record.then_some(partner.url_reach),
            },
        };
        let rules = Rules::try_new(&partner.verdict)?;
        let origins = partner.redirect_to.iter().map(|url| {
            let target = Target::parse(url).map_err(|e| SinkError::Request(format!("redirect_to: {e}")))?;
            Ok(target.origin)
        });
        let doubt = &partner.doubt;
        let resends = [doubt.crash, doubt.timeout, doubt.gateway].contains(&DoubtPolicy::Resend);
        Ok(Self {
            plan,
            host,
            pool: Pool::new(PoolConfig {
                dialer,
                connect_timeout: partner.connect_timeout,
                life: partner.connection_life,
                http2: partner.http2,
                title_case: partner.title_case_headers,
                partner: partner.name.as_str().into(),
                many_fields: rules.uses_document(),
            }),
            look_up,
            reading: Rc::new(Reading {
                rules,
                heed: Heed {
                    longest: partner.retry.longest_retry_after,
                    rate_limits: partner.rate_limit_headers,
                },
                answer_limit: partner.answer_limit,
                resends: resends && partner.idempotency_key,
            }),
            masker: RefCell::new((
                secrets.version(),
                Rc::new(Masker::new(&partner.mask, &secrets.values())),
            )),
            mask: partner.mask.clone(),
            secrets: secrets.clone(),
            clock,
            request_timeout: partner.request_timeout,
            answer_limit: partner.answer_limit,
            redirects: partner.redirects,
            strays: Patience::default(),
            redirect_to: origins.collect::<Result<_, SinkError>>()?,
        })
    }

    /// Makes the request of one attempt. Pure.
    ///
    /// # Errors
    /// When no request can be made of this record; the text is masked.
    pub fn prepare(&self, d: &Delivery) -> Result<Request, PrepareError> {
        self.plan
            .prepare(d)
            .map_err(|e| PrepareError(self.masker().text(&e.0)))
    }

    /// Makes the request of an attempt that the partner sent on to another address.
    ///
    /// To another origin than the configuration names nothing goes along that tells who is asking: no header of the
    /// configuration, no user of the URL.
    ///
    /// # Errors
    /// As [`HttpSink::prepare`].
    pub fn prepare_moved(&self, d: &Delivery, moved: &Moved) -> Result<Request, PrepareError> {
        static EVERYWHERE: [HeaderName; 6] = [
            header::CONTENT_TYPE,
            header::CONTENT_LENGTH,
            header::USER_AGENT,
            header::ACCEPT_ENCODING,
            request::IDEMPOTENCY_KEY,
            request::TRACEPARENT,
        ];
        let mut request = self.prepare(d)?;
        let target = Target::parse(&moved.to)
            .map_err(|e| PrepareError(self.masker().text(&format!("redirect: {e}"))))?;
        if target.origin != request.origin {
            let all = std::mem::take(request.message.headers_mut());
            let kept = EVERYWHERE
                .iter()
                .filter_map(|name| Some((name.clone(), all.get(name)?.clone())));
            request.message.headers_mut().extend(kept.collect::<Vec<_>>());
            request.message.headers_mut().insert(header::HOST, target.host);
            request.origin = target.origin;
        }
        *request.message.uri_mut() = target.path;
        request.moved = Some(Box::new(moved.clone()));
        Ok(request)
    }

    /// Gets a connection for a request: one that waits, else a new one.
    ///
    /// # Errors
    /// An answer that says `TryLater`: nothing was written. Or `Refused`: nothing may go to this address.
    pub async fn connect(&self, request: &Request) -> Result<Connection, Answer> {
        self.lease(request).await.map_err(|failure| {
            behind(
                request.moved.as_deref(),
                self.unanswered(failure.unwritten(), &failure),
            )
        })
    }

    async fn lease(&self, request: &Request) -> Result<Connection, Failure> {
        Ok(Connection(self.pool.get(&request.origin).await?))
    }

    /// Asks the gate, writes the request, reads the answer.
    ///
    /// The gate is asked right before the first byte. A connection that turns out closed is replaced once, before
    /// the gate is asked where that is known by then, else the gate is asked again.
    pub async fn send(&self, connection: Connection, mut request: Request, gate: Gate<'_>) -> Sent {
        let needs_body = |status| self.reading.needs_body(status);
        let moved = request.moved.take();
        // Only a redirect that may be followed needs to know where the request went.
        let from = (self.redirects > 0).then(|| {
            let origin = Rc::clone(&request.origin);
            Box::new((request.url(), origin, request.is_safe()))
        });
        let exchange = self.exchange(connection, request, gate, self.request_timeout, needs_body);
        let (mut reply, mut unsettled) = match exchange.await {
            Outcome::Heard(reply) => (reply, None),
            Outcome::Unsettled(reply, unsettled) => (reply, Some(unsettled)),
            Outcome::Stopped => return Sent::Stopped,
            Outcome::NeverWritten(failure) => {
                let answer = self.unanswered(failure.unwritten(), &failure);
                return Sent::NeverWritten(behind(moved.as_deref(), answer));
            }
            Outcome::Failed(failure) => {
                let answer = self.unanswered(Verdict::Unknown(DoubtCause::Timeout), &failure);
                return Sent::Answered(behind(moved.as_deref(), answer));
            }
        };
        if let Some(from) = from
            && (300..400).contains(&reply.status)
        {
            if let Some(unsettled) = unsettled.take() {
                reply.odd = unsettled.settled().await.map(Oddity::Stray);
            }
            let (url, origin, safe) = *from;
            match self.step(&reply, &url, &origin, safe, moved.as_deref()) {
                Ok(Some(to)) => return self.sent_on(&reply, to),
                Ok(None) => {}
                Err(why) => reply.odd = reply.odd.or(Some(Oddity::NotFollowed(why))),
            }
        }
        let answer = self
            .reading
            .answer(&reply.heard(), || self.clock.now(), &self.masker());
        let answer = behind(moved.as_deref(), answer);
        match unsettled {
            None => Sent::Answered(answer),
            Some(unsettled) => self.settling(answer, reply, unsettled, moved).await,
        }
    }

    /// An answer of which it is known a little later whether it answers the request.
    ///
    /// Boxed: few answers come here, and the future of every request must not be larger for them.
    fn settling(
        &self,
        answer: Answer,
        mut reply: Reply,
        unsettled: Box<Unsettled>,
        moved: Option<Box<Moved>>,
    ) -> LocalBoxFuture<'static, Sent> {
        if let Verdict::Unknown(_) = answer.verdict {
            // Whosever it is, it says no more than that.
            unsettled.believe();
            return std::future::ready(Sent::Answered(answer)).boxed_local();
        }
        let (reading, clock, masker) = (Rc::clone(&self.reading), self.clock, self.masker());
        let turn = unsettled.turn();
        let early = turn.is_some().then(|| answer.clone());
        let settled = async move {
            let _turn = turn;
            let Some(why) = unsettled.settled().await else {
                return answer;
            };
            reply.odd = Some(Oddity::Stray(why));
            let answer = reading.answer(&reply.heard(), || clock.now(), &masker);
            behind(moved.as_deref(), answer)
        };
        match early {
            Some(answer) => {
                let sent = Sent::Settling(answer, Settling::new(settled));
                std::future::ready(sent).boxed_local()
            }
            None => settled.map(Sent::Answered).boxed_local(),
        }
    }

    /// Where a redirect leads, if it is to be followed; none where a verdict rule says what it means.
    ///
    /// # Errors
    /// Why it is not followed.
    fn step(
        &self,
        reply: &Reply,
        from: &str,
        origin: &origin::Origin,
        safe: bool,
        moved: Option<&Moved>,
    ) -> Result<Option<Moved>, &'static str> {
        if reply.odd.is_some() || !self.reading.is_silent(&reply.heard()) {
            return Ok(None);
        }
        let location = reply
            .headers
            .get(header::LOCATION)
            .and_then(|l| std::str::from_utf8(l.as_bytes()).ok());
        let to = location.and_then(|l| url::Url::parse(from).ok()?.join(l.trim()).ok());
        let target = to.as_ref().and_then(|to| Target::parse(to.as_str()).ok());
        let (Some(mut to), Some(target)) = (to, target) else {
            return Err("its location is no URL that can be requested");
        };
        let may_go = *target.origin == *origin || self.redirect_to.contains(&target.origin);
        let followed = moved.map_or(0, |m| m.followed);
        let unsure = match redirect::step(reply.status, safe, followed, self.redirects, may_go) {
            Step::Follow => moved.and_then(|m| m.unsure),
            Step::FollowUnsure => moved.and_then(|m| m.unsure).or(Some(reply.status)),
            Step::Stay(why) => return Err(why),
        };
        // A user that the answer names is not ours.
        if to.set_username("").is_err() || to.set_password(None).is_err() {
            return Err("its location is no URL that can be requested");
        }
        to.set_fragment(None);
        Ok(Some(Moved {
            to: to.into(),
            followed: followed + 1,
            unsure,
        }))
    }

    fn sent_on(&self, reply: &Reply, moved: Moved) -> Sent {
        let mut answer = self
            .reading
            .answer(&reply.heard(), || self.clock.now(), &self.masker());
        let (verdict, word) = match moved.unsure {
            Some(_) => (Verdict::Unknown(DoubtCause::Gateway), "unknown"),
            None => (Verdict::TryLater, "later"),
        };
        answer.verdict = verdict;
        if let Some(detail) = &mut answer.detail {
            let why = format!("{word}: {} sent on to {}", reply.status, moved.to);
            detail.reason = unanswered(verdict, &why, &self.masker())
                .detail
                .unwrap_or_default()
                .reason;
        }
        Sent::Moved(answer, Box::new(moved))
    }

    async fn exchange(
        &self,
        connection: Connection,
        request: Request,
        gate: Gate<'_>,
        timeout: Duration,
        needs_body: impl Fn(u16) -> bool,
    ) -> Outcome {
        let Request {
            origin, mut message, ..
        } = request;
        if let Some(proxy) = self.pool.dialer().told_to(&origin) {
            tell_proxy(proxy, &mut message);
        }
        let mut leased = connection.0;
        let (mut renewed, mut gave_back) = (false, false);
        loop {
            let now = Instant::now();
            let usable = match &mut leased {
                Leased::Alone(alone) => !gave_back && alone.is_usable(now),
                Leased::Shared(stream) => {
                    match stream
                        .exchange(&origin, message, &mut *gate, timeout, self.answer_limit)
                        .await
                    {
                        Tried::Over(outcome) => return outcome,
                        Tried::Elsewhere(back) => message = back,
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
            let Leased::Alone(alone) = &mut leased else {
                continue;
            };
            if !gate() {
                return Outcome::Stopped;
            }
            let deadline = now + timeout;
            let http1 = alone.begin(now);
            let before = http1.written();
            let answered = within(deadline, pin!(http1.exchange(message))).await;
            let nothing_written = http1.written() == before;
            let response = match answered {
                // It is not this request's: that lies in hyper still, or was thrown away behind a failed write.
                Some(Ok(_)) if nothing_written => {
                    let why = "an answer came before anything was written";
                    return Outcome::NeverWritten(Failure::Connect(why.to_owned()));
                }
                Some(Ok(response)) => response,
                Some(Err(Failed::NotWritten(back))) => {
                    // It is closed; the next turn replaces it.
                    message = back;
                    gave_back = true;
                    continue;
                }
                Some(Err(Failed::NothingLeft(e))) => {
                    return Outcome::NeverWritten(Failure::Connect(format!("nothing was written: {e}")));
                }
                Some(Err(Failed::Broken(e))) => {
                    let read = match e.is_parse() || e.is_parse_too_large() {
                        // The rest of a head may be on its way still.
                        true => http1.rest_of_head(deadline).await,
                        false => Vec::new(),
                    };
                    return self.broken(&e, &read);
                }
                None if nothing_written => {
                    let why = format!("nothing could be written within {timeout:?}");
                    return Outcome::NeverWritten(Failure::Connect(why));
                }
                None => return Outcome::Failed(Failure::Timeout(timeout)),
            };
            let (head, mut body) = response.into_parts();
            let status = head.status.as_u16();
            http1.heed(status, &head.headers, now);
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
            let ended = Instant::now();
            let since_last = ended.duration_since(http1.answered);
            http1.answered = ended;
            http1.slowest = http1.slowest.max(ended.duration_since(now));
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
            let Leased::Alone(alone) = leased else {
                return Outcome::Heard(reply);
            };
            return match Unsettled::begin(alone, seen, end == BodyEnd::Whole, self.strays) {
                Ok(why) => {
                    reply.odd = why.map(Oddity::Stray);
                    Outcome::Heard(reply)
                }
                Err(unsettled) => Outcome::Unsettled(reply, unsettled),
            };
        }
    }

    /// What is made of a request that was written, and of an answer that hyper could not read, if there was one.
    fn broken(&self, e: &hyper::Error, read: &[u8]) -> Outcome {
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

    /// The request of a delivery as it would be sent, masked.
    ///
    /// # Errors
    /// As [`HttpSink::prepare`].
    pub fn render(&self, d: &Delivery) -> Result<RenderedMasked, PrepareError> {
        let request = self.prepare(d)?;
        let masker = self.masker();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(RenderedMasked {
            method: request.method().to_string(),
            url: masker.url(&request.url()),
            headers: request
                .headers()
                .iter()
                .map(|(name, value)| {
                    let value = text(value.as_bytes());
                    let shown = match self.plan.is_literal(name) && !shows_literal(name.as_str(), &value) {
                        true => MASK.to_owned(),
                        false => masker.header(name.as_str(), &value),
                    };
                    (name.to_string(), shown)
                })
                .collect(),
            body: masker.bytes(&request.body()),
        })
    }

    /// Connects, TLS included, and says in words what was found. No request is sent.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub async fn test(&self) -> Result<String, String> {
        let masker = self.masker();
        let Some(origin) = &self.host else {
            return Ok("the URL depends on the record: nothing to connect to".to_owned());
        };
        let found = self.pool.try_out(origin).await;
        found
            .map(|f| masker.text(&f))
            .map_err(|e| masker.text(&format!("connect: {e}")))
    }

    /// Why the latest connect failed, fit to be shown, and how long ago.
    pub fn connect_failure(&self) -> Option<(String, Duration)> {
        let (why, ago) = self.pool.failure()?;
        Some((self.masker().text(&why), ago))
    }

    /// Figures of the pool.
    pub fn stats(&self) -> SinkStats {
        let counters = &self.pool.counters;
        SinkStats {
            connections: counters.open.get(),
            connected: counters.connected.get(),
            connect_failures: counters.failed.get(),
            stale: counters.stale.get(),
        }
    }

    /// The masker of this partner, with the secrets as they are now.
    pub fn masker(&self) -> Rc<Masker> {
        let version = self.secrets.version();
        let mut kept = self.masker.borrow_mut();
        if kept.0 != version {
            *kept = (version, Rc::new(Masker::new(&self.mask, &self.secrets.values())));
        }
        Rc::clone(&kept.1)
    }

    fn unanswered(&self, verdict: Verdict, failure: &Failure) -> Answer {
        let mut answer = unanswered(verdict, &failure.to_string(), &self.masker());
        if let Failure::Shortage(_) = failure {
            answer.concerns = Some(Concerns::Node);
        }
        answer
    }
}

impl Reply {
    fn heard(&self) -> Heard<'_> {
        Heard {
            status: self.status,
            headers: &self.headers,
            body: &self.body,
            end: self.end,
            odd: self.odd.as_ref(),
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

/// What an answer means that came behind a redirect: where the first address may have taken the request, only a
/// success says what became of it.
fn behind(moved: Option<&Moved>, mut answer: Answer) -> Answer {
    let Some(moved) = moved else { return answer };
    if answer.verdict == Verdict::Delivered {
        return answer;
    }
    if let Some(status) = moved.unsure {
        answer.verdict = Verdict::Unknown(DoubtCause::Gateway);
        if let Some(detail) = &mut answer.detail {
            let why = format!(
                "unknown: behind a {status}, which does not say that it was not taken: {}",
                detail.reason
            );
            detail.reason = answer::cut_to(why, answer::REASON);
        }
    } else if let Some(detail) = &mut answer.detail {
        let why = format!("{} (behind {} redirects)", detail.reason, moved.followed);
        detail.reason = answer::cut_to(why, answer::REASON);
    }
    answer
}

impl super::Sink for HttpSink {
    type Request = Request;
    type Connection = Connection;

    fn prepare(&self, delivery: &Delivery) -> Result<Request, PrepareError> {
        HttpSink::prepare(self, delivery)
    }
    fn host(&self, delivery: &Delivery) -> Option<HostId> {
        if self.host.is_some() {
            return None;
        }
        // One that cannot be read is the record's own fault, as `prepare` will say.
        let origin = self.plan.origin_of(delivery)?;
        let mut hasher = std::hash::DefaultHasher::new();
        origin.hash(&mut hasher);
        Some(HostId(hasher.finish()))
    }
    fn prepare_moved(&self, delivery: &Delivery, moved: &Moved) -> Result<Request, PrepareError> {
        HttpSink::prepare_moved(self, delivery, moved)
    }
    async fn connect(&self, request: &Request) -> Result<Connection, Answer> {
        HttpSink::connect(self, request).await
    }
    async fn send(&self, connection: Connection, request: Request, gate: Gate<'_>) -> Sent {
        HttpSink::send(self, connection, request, gate).await
    }
    fn look_up(&self, delivery: &Delivery) -> Result<Request, super::Verified> {
        HttpSink::look_up(self, delivery)
    }
    async fn ask(&self, connection: Connection, request: Request, gate: Gate<'_>) -> super::Asked {
        HttpSink::ask(self, connection, request, gate).await
    }
    fn masker(&self) -> Rc<Masker> {
        HttpSink::masker(self)
    }
}
