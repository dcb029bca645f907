//! The other client: reqwest, for HTTP/2, proxies and redirects, and where a partner asks for it.
//!
//! Its pool hides the connection, so the gate is asked before a connection may be there: a connect can lie between
//! it and the first byte (bounded by the connect timeout), which is why this is not the client of the hot path.
//! Retries of its own are off: they would escape limiter and ledger. What it says for sure of a failed request is
//! read from error types: no connection, an HTTP/2 stream that was refused or lies beyond a GOAWAY.

use super::connection::BodyEnd;
use super::{Failure, Outcome, Reply, Request, SinkError};
use crate::config::model::PartnerConfig;
use http::header::{CONTENT_LENGTH, HOST};
use http_body_util::BodyExt;
use reqwest::redirect::Policy;
use rustls::ClientConfig;
use std::error::Error as _;
use std::time::Duration;
use tokio::time::Instant;

/// A reqwest client with what a partner asks for.
pub(super) struct Any {
    client: reqwest::Client,
    connect_timeout: Duration,
    http2: bool,
}

impl Any {
    pub(super) fn try_new(partner: &PartnerConfig, tls: &ClientConfig) -> Result<Self, SinkError> {
        let failed = |e: reqwest::Error| SinkError::Client { why: chain(&e) };
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls.clone())
            .connect_timeout(partner.connect_timeout)
            .retry(reqwest::retry::never())
            .referer(false)
            .redirect(match partner.redirects {
                0 => Policy::none(),
                n => Policy::limited(n as usize),
            });
        builder = match &partner.proxy {
            Some(proxy) => builder.proxy(reqwest::Proxy::all(proxy).map_err(|_| SinkError::Proxy)?),
            // The environment's proxies are not ours: what is not in the configuration does not happen.
            None => builder.no_proxy(),
        };
        if !partner.http2 {
            builder = builder.http1_only();
        } else if partner.url.trim_start().starts_with("http:") {
            // Without TLS there is nothing to negotiate by.
            builder = builder.http2_prior_knowledge();
        }
        let client = builder.build().map_err(failed)?;
        Ok(Self {
            client,
            connect_timeout: partner.connect_timeout,
            http2: partner.http2,
        })
    }

    /// Sends a request for which the gate has said yes.
    pub(super) async fn exchange(&self, request: Request, timeout: Duration, limit: usize) -> Outcome {
        let url = match request.url().parse() {
            Ok(url) => url,
            Err(_) => return Outcome::NeverWritten(Failure::Connect("the URL cannot be read".to_owned())),
        };
        let (mut head, body) = request.message.into_parts();
        let body = match body.collect().await {
            Ok(body) => body.to_bytes(),
            Err(never) => match never {},
        };
        if self.http2 {
            head.headers.remove(HOST);
        }
        head.headers.remove(CONTENT_LENGTH);
        let mut message = reqwest::Request::new(head.method, url);
        *message.headers_mut() = head.headers;
        if !body.is_empty() || !matches!(message.method().as_str(), "GET" | "HEAD") {
            *message.body_mut() = Some(body.into());
        }
        // A connect may be part of it; its own timeout ends that with an error that says so.
        let deadline = Instant::now() + self.connect_timeout + timeout;
        let mut response = match tokio::time::timeout_at(deadline, self.client.execute(message)).await {
            Err(_elapsed) => return Outcome::Failed(Failure::Timeout(timeout)),
            Ok(Err(e)) if e.is_connect() => return Outcome::NeverWritten(Failure::Connect(chain(&e))),
            Ok(Err(e)) if refused_unseen(&e) => return Outcome::NeverWritten(Failure::Connect(chain(&e))),
            Ok(Err(e)) if e.is_redirect() => return Outcome::Failed(Failure::Redirects),
            Ok(Err(e)) => return Outcome::Failed(failure(&e)),
            Ok(Ok(response)) => response,
        };
        let mut kept = Vec::new();
        let end = loop {
            match tokio::time::timeout_at(deadline, response.chunk()).await {
                Err(_) | Ok(Err(_)) => break BodyEnd::Cut,
                Ok(Ok(None)) => break BodyEnd::Whole,
                Ok(Ok(Some(data))) => {
                    let left = limit - kept.len();
                    kept.extend_from_slice(&data[..data.len().min(left)]);
                    if data.len() > left {
                        break BodyEnd::Limited;
                    }
                }
            }
        };
        let headers = std::mem::take(response.headers_mut());
        Outcome::Heard(Reply {
            status: response.status().as_u16(),
            headers,
            body: kept,
            end,
        })
    }
}

/// Whether HTTP/2 says for sure that the request was not looked at (RFC 9113, 8.7): the stream was refused, or it
/// lies beyond the last one that a GOAWAY names. A stream up to that last one fails with another error.
fn refused_unseen(e: &reqwest::Error) -> bool {
    let mut source = e.source();
    while let Some(inner) = source {
        if let Some(h2) = inner.downcast_ref::<h2::Error>() {
            return h2.is_remote() && (h2.reason() == Some(h2::Reason::REFUSED_STREAM) || h2.is_go_away());
        }
        source = inner.source();
    }
    false
}

fn failure(e: &reqwest::Error) -> Failure {
    let mut source = e.source();
    while let Some(inner) = source {
        if let Some(hyper) = inner.downcast_ref::<hyper::Error>() {
            return Failure::from_hyper(hyper);
        }
        source = inner.source();
    }
    Failure::Reset(chain(e))
}

/// An error with its causes; the URL is left out.
fn chain(e: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut source = e.source();
    while let Some(inner) = source {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    if text.is_empty() {
        "the request failed".to_owned()
    } else {
        text
    }
}
