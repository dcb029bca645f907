//! The HTTP sink: one request a message.
//!
//! What counts as delivered is said by the partner's verdict rules, else by the status ([`answer`], decision 0003).
//! The way of an attempt: [`HttpSink::prepare`] makes the request (pure), [`HttpSink::connect`] gets a connection in
//! hand (a failure is no doubt), [`HttpSink::send`] asks the gate and writes, within one poll of one task. What was
//! never written is no doubt either, and hyper tells which that is.
//!
//! Two clients stand behind one interface: a [pool] of hyper HTTP/1.1 connections of our own for the hot path
//! (half the CPU of reqwest, and the only way to ask the gate with the connection in hand), and [reqwest](any) for
//! HTTP/2, proxies and redirects.
//!
//! Not supported: request bodies that stream, `Expect: 100-continue`, protocol upgrades, compressed answers (they
//! are asked for by nobody: no `accept-encoding` is sent).
//!
//! A sink lives on one thread, in an `Rc`; its futures are not `Send`. It keeps no state that a restart would miss.

mod answer;
mod any;
mod connection;
mod origin;
mod pace;
mod pool;
mod request;
#[cfg(test)]
mod tests;
mod tls;
mod verify;

pub use request::Request;

use self::answer::{Heard, Reading, unanswered};
use self::any::Any;
use self::connection::{BodyEnd, Failed};
use self::origin::{Origin, Target};
use self::pool::{ConnectError, Leased, Pool};
use self::request::{PlanConfig, RequestPlan};
use self::verify::LookUp;
use super::secrets::Secrets;
use super::template::TemplateError;
use super::{Answer, Delivery, DoubtCause, Gate, PrepareError, Sent, SinkStats, Verdict};
use crate::clock::Clock;
use crate::config::model::{ClientKind, DoubtPolicy, PartnerConfig};
use crate::core::expr::ExprError;
use crate::core::mask::Masker;
use crate::core::verdict::{RuleError, Rules};
use http::HeaderMap;
use hyper::body::Body as _;
use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

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
    #[error("header {name}: {why}")]
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
    any: Option<Any>,
    look_up: Option<LookUp>,
    reading: Reading,
    secrets: Secrets,
    mask: Vec<String>,
    /// With the version of the secrets it was made from.
    masker: RefCell<(u64, Rc<Masker>)>,
    clock: Clock,
    request_timeout: Duration,
    answer_limit: usize,
    proxy: Option<String>,
}

/// A connection in hand. Dropped unused it goes back to the pool.
pub struct Connection(Held);

enum Held {
    Pool(Leased),
    /// reqwest finds one by itself.
    Any,
}

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
pub(super) struct Reply {
    status: u16,
    headers: HeaderMap,
    /// Empty where nobody needs it.
    body: Vec<u8>,
    end: BodyEnd,
}

/// What came of an exchange.
pub(super) enum Outcome {
    Heard(Reply),
    Stopped,
    NeverWritten(Failure),
    Failed(Failure),
}

/// Why there is no answer. The first word is a stable code.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("connect: {0}")]
    Connect(String),
    #[error("timeout: no answer within {0:?}")]
    Timeout(Duration),
    #[error("reset: {0}")]
    Reset(String),
    #[error("bad answer: {0}")]
    BadAnswer(String),
    #[error("bad answer: more redirects than are followed")]
    Redirects,
}

impl From<ConnectError> for Failure {
    fn from(e: ConnectError) -> Self {
        Failure::Connect(e.to_string())
    }
}

impl Failure {
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
        let wants_any = partner.client == ClientKind::Reqwest
            || partner.http2
            || partner.proxy.is_some()
            || partner.redirects > 0;
        let doubt = &partner.doubt;
        let resends = [doubt.crash, doubt.timeout, doubt.gateway].contains(&DoubtPolicy::Resend);
        Ok(Self {
            plan: RequestPlan::try_new(&plan, secrets)?,
            any: wants_any.then(|| Any::try_new(partner, &tls)).transpose()?,
            pool: Pool::new(tls, partner.connect_timeout),
            look_up: partner
                .verify
                .as_ref()
                .map(|v| LookUp::try_new(partner, v, secrets))
                .transpose()?,
            reading: Reading {
                rules: Rules::try_new(&partner.verdict)?,
                longest_retry_after: partner.retry.longest_retry_after,
                resends: resends && partner.idempotency_key,
            },
            masker: RefCell::new((
                secrets.version(),
                Rc::new(Masker::new(&partner.mask, &secrets.values())),
            )),
            mask: partner.mask.clone(),
            secrets: secrets.clone(),
            clock,
            request_timeout: partner.request_timeout,
            answer_limit: partner.answer_limit,
            proxy: partner.proxy.clone(),
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

    /// Gets a connection for a request: one that waits, else a new one.
    ///
    /// # Errors
    /// An answer that says `TryLater`: nothing was written.
    pub async fn connect(&self, request: &Request) -> Result<Connection, Answer> {
        self.lease(request)
            .await
            .map_err(|failure| self.unanswered(Verdict::TryLater, &failure))
    }

    async fn lease(&self, request: &Request) -> Result<Connection, Failure> {
        if self.any.is_some() {
            return Ok(Connection(Held::Any));
        }
        Ok(Connection(Held::Pool(self.pool.get(&request.origin).await?)))
    }

    /// Asks the gate, writes the request, reads the answer.
    ///
    /// The gate is asked right before the first byte. A connection that turns out closed is replaced once, before
    /// the gate is asked where that is known by then, else the gate is asked again.
    pub async fn send(&self, connection: Connection, request: Request, gate: Gate<'_>) -> Sent {
        let needs_body = |status| self.reading.needs_body(status);
        match self
            .exchange(connection, request, gate, self.request_timeout, needs_body)
            .await
        {
            Outcome::Heard(reply) => {
                let heard = Heard {
                    status: reply.status,
                    headers: &reply.headers,
                    body: &reply.body,
                    end: reply.end,
                };
                Sent::Answered(self.reading.answer(&heard, || self.clock.now(), &self.masker()))
            }
            Outcome::Stopped => Sent::Stopped,
            Outcome::NeverWritten(failure) => {
                Sent::NeverWritten(self.unanswered(Verdict::TryLater, &failure))
            }
            Outcome::Failed(failure) => {
                Sent::Answered(self.unanswered(Verdict::Unknown(DoubtCause::Timeout), &failure))
            }
        }
    }

    async fn exchange(
        &self,
        connection: Connection,
        request: Request,
        gate: Gate<'_>,
        timeout: Duration,
        needs_body: impl Fn(u16) -> bool,
    ) -> Outcome {
        let mut leased = match (connection.0, &self.any) {
            (Held::Pool(leased), _) => leased,
            (Held::Any, Some(any)) => {
                if !gate() {
                    return Outcome::Stopped;
                }
                return Box::pin(any.exchange(request, timeout, self.answer_limit)).await;
            }
            (Held::Any, None) => {
                return Outcome::NeverWritten(Failure::Connect(
                    "the connection is another sink's".to_owned(),
                ));
            }
        };
        let Request { origin, mut message } = request;
        let (mut renewed, mut gave_back) = (false, false);
        loop {
            let now = Instant::now();
            if gave_back || !leased.is_usable(now) {
                self.pool.count_stale();
                if renewed {
                    let why = "the partner closes new connections at once";
                    return Outcome::NeverWritten(Failure::Connect(why.to_owned()));
                }
                (renewed, gave_back) = (true, false);
                leased = match Box::pin(self.pool.get_new(&origin)).await {
                    Ok(leased) => leased,
                    Err(e) => return Outcome::NeverWritten(e.into()),
                };
                continue;
            }
            if !gate() {
                return Outcome::Stopped;
            }
            let deadline = now + timeout;
            let http1 = leased.begin(now);
            let before = http1.written();
            let response = match timeout_at(deadline, http1.exchange(message)).await {
                Ok(Ok(response)) => response,
                Ok(Err(Failed::NotWritten(back))) => {
                    // It is closed; the next turn replaces it.
                    message = back;
                    gave_back = true;
                    continue;
                }
                Ok(Err(Failed::NothingLeft(e))) => {
                    return Outcome::NeverWritten(Failure::Connect(format!("nothing was written: {e}")));
                }
                Ok(Err(Failed::Broken(e))) => return Outcome::Failed(Failure::from_hyper(&e)),
                Err(_elapsed) if http1.written() == before => {
                    let why = format!("nothing could be written within {timeout:?}");
                    return Outcome::NeverWritten(Failure::Connect(why));
                }
                Err(_elapsed) => return Outcome::Failed(Failure::Timeout(timeout)),
            };
            let (head, mut body) = response.into_parts();
            let status = head.status.as_u16();
            let mut kept = Vec::new();
            let end = if body.is_end_stream() {
                BodyEnd::Whole
            } else {
                let keep = needs_body(status).then_some(&mut kept);
                let read = timeout_at(deadline, http1.read_body(&mut body, self.answer_limit, keep)).await;
                read.unwrap_or(BodyEnd::Cut)
            };
            if end == BodyEnd::Whole {
                leased.done();
            }
            return Outcome::Heard(Reply {
                status,
                headers: head.headers,
                body: kept,
                end,
            });
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
                    (
                        name.to_string(),
                        masker.header(name.as_str(), &text(value.as_bytes())),
                    )
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
        if let Some(proxy) = &self.proxy {
            let origin = proxy_origin(proxy).ok_or_else(|| SinkError::Proxy.to_string())?;
            let found = self.pool.try_out(&origin).await;
            return found
                .map(|found| masker.text(&format!("proxy: {found}; what lies behind it was not tried")))
                .map_err(|e| masker.text(&format!("proxy: {e}")));
        }
        let Some(origin) = self.plan.fixed_origin() else {
            return Ok("the URL depends on the record: nothing to connect to".to_owned());
        };
        let found = self.pool.try_out(&origin).await;
        found
            .map(|f| masker.text(&f))
            .map_err(|e| masker.text(&format!("connect: {e}")))
    }

    /// Figures of the pool. reqwest keeps its own to itself: zeros.
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
        unanswered(verdict, &failure.to_string(), &self.masker())
    }
}

/// Where a proxy is to be reached.
fn proxy_origin(proxy: &str) -> Option<Origin> {
    if let Ok(target) = Target::parse(proxy) {
        return Some((*target.origin).clone());
    }
    let url = url::Url::parse(proxy).ok()?;
    let host = url.host_str()?.trim_matches(['[', ']']).to_owned();
    Some(Origin {
        https: false,
        address: host.parse().ok(),
        port: url.port().unwrap_or(1080),
        host,
    })
}

impl super::Sink for HttpSink {
    type Request = Request;
    type Connection = Connection;

    fn prepare(&self, delivery: &Delivery) -> Result<Request, PrepareError> {
        HttpSink::prepare(self, delivery)
    }
    async fn connect(&self, request: &Request) -> Result<Connection, Answer> {
        HttpSink::connect(self, request).await
    }
    async fn send(&self, connection: Connection, request: Request, gate: Gate<'_>) -> Sent {
        HttpSink::send(self, connection, request, gate).await
    }
    async fn verify(&self, delivery: &Delivery) -> super::Verified {
        HttpSink::verify(self, delivery).await
    }
    fn masker(&self) -> Rc<Masker> {
        HttpSink::masker(self)
    }
}
