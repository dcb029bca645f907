//! The HTTP sink: one request a message.
//!
//! What counts as delivered is said by the partner's verdict rules, else by the status ([`answer`], decision 0003).
//! The way of an attempt: [`HttpSink::prepare`] makes the request (pure), [`HttpSink::connect`] gets a connection in
//! hand (a failure is no doubt), [`HttpSink::send`] asks the gate and writes, within one poll of one task. What was
//! never written is no doubt either, and hyper tells which that is.
//!
//! Behind it stands one [pool] of connections: HTTP/1.1, driven by whoever uses them (what is [plain] without hyper,
//! all else by it), and HTTP/2 where a partner wants it ([`http2`]); with proxies and TLS below them ([`dial`]). A connection is in hand, and has been
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
mod error;
mod exchange;
mod failure;
mod http2;
mod odd;
mod origin;
mod pace;
mod plain;
mod pool;
mod redirects;
mod reply;
mod request;
#[cfg(test)]
mod tests;
mod tls;
mod unacked;
mod unsettled;
mod verify;

pub use error::SinkError;
pub use request::Request;

use self::answer::{Oddity, Reading, unanswered};
use self::dial::{Dialer, Proxy, Resolver};
use self::failure::Failure;
use self::origin::Target;
use self::pace::Heed;
use self::pool::{Leased, Pool, PoolConfig};
use self::redirects::behind;
use self::reply::{Outcome, Reply};
use self::request::{PlanConfig, RequestPlan};
use self::unsettled::Unsettled;
use self::verify::LookUp;
use super::secrets::Secrets;
use super::{
    Answer, Concerns, Delivery, DoubtCause, Gate, Moved, PrepareError, Sent, Settling, SinkStats, Verdict,
};
use crate::clock::Clock;
use crate::config::model::{DoubtPolicy, PartnerConfig, VerifyConfig};
use crate::core::hosts::HostId;
use crate::core::in_full::in_full;
use crate::core::mask::{MASK, Masker, shows_literal};
use crate::core::reach::{self, Bounds};
use crate::core::stray::Patience;
use crate::core::verdict::Rules;
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use std::cell::RefCell;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

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

/// Where a request went: URL, origin, and whether its method asks for nothing to be done.
type SentFrom = Box<(String, Rc<origin::Origin>, bool)>;

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
                connect_timeout: partner.timeout.connect,
                life: partner.timeout.connection,
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
            request_timeout: partner.timeout.request,
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
    #[inline]
    pub fn send(
        &self,
        connection: Connection,
        mut request: Request,
        gate: Gate<'_>,
    ) -> impl Future<Output = Sent> {
        let moved = request.moved.take();
        // Only a redirect that may be followed needs to know where the request went.
        let from = (self.redirects > 0).then(|| {
            let origin = Rc::clone(&request.origin);
            Box::new((request.url(), origin, request.is_safe()))
        });
        // Not an `async fn`: its future would hold what it is called with twice.
        async move {
            let needs_body = |status| self.reading.needs_body(status);
            let exchange = self.exchange(connection, request, gate, self.request_timeout, needs_body);
            match exchange.await {
                Outcome::Heard(reply) => self.heard(reply, from, moved),
                Outcome::Unsettled(reply, unsettled) => self.unsettled(reply, unsettled, from, moved).await,
                Outcome::Stopped => Sent::Stopped,
                Outcome::NeverWritten(failure) => {
                    let answer = self.unanswered(failure.unwritten(), &failure);
                    Sent::NeverWritten(behind(moved.as_deref(), answer))
                }
                Outcome::Failed(failure) => {
                    let answer = self.unanswered(Verdict::Unknown(DoubtCause::Timeout), &failure);
                    Sent::Answered(behind(moved.as_deref(), answer))
                }
            }
        }
    }

    fn heard(&self, mut reply: Reply, from: Option<SentFrom>, moved: Option<Box<Moved>>) -> Sent {
        if let Some(from) = from
            && (300..400).contains(&reply.status)
        {
            let (url, origin, safe) = *from;
            match self.step(&reply, &url, &origin, safe, moved.as_deref()) {
                Ok(Some(to)) => return self.sent_on(&reply, to),
                Ok(None) => {}
                Err(why) => reply.odd = reply.odd.or(Some(Oddity::NotFollowed(why))),
            }
        }
        Sent::Answered(behind(moved.as_deref(), self.answer(&reply)))
    }

    fn answer(&self, reply: &Reply) -> Answer {
        (self.reading).answer(&reply.heard(), || self.clock.now(), &self.masker())
    }

    /// Boxed: few answers come here, and the future of every request must not be larger for them.
    fn unsettled(
        &self,
        mut reply: Reply,
        unsettled: Box<Unsettled>,
        from: Option<SentFrom>,
        moved: Option<Box<Moved>>,
    ) -> LocalBoxFuture<'_, Sent> {
        async move {
            if from.is_some() && (300..400).contains(&reply.status) {
                reply.odd = unsettled.settled().await.map(Oddity::Stray);
                return self.heard(reply, from, moved);
            }
            let answer = behind(moved.as_deref(), self.answer(&reply));
            self.settling(answer, reply, unsettled, moved).await
        }
        .boxed_local()
    }

    /// An answer of which it is known a little later whether it answers the request.
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
            .map_err(|e| masker.text(&format!("connect: {}", in_full(&e))))
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
    fn connect(&self, request: &Request) -> impl Future<Output = Result<Connection, Answer>> {
        HttpSink::connect(self, request)
    }
    fn send(&self, connection: Connection, request: Request, gate: Gate<'_>) -> impl Future<Output = Sent> {
        HttpSink::send(self, connection, request, gate)
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
