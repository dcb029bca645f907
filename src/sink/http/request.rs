//! From a delivery to a request. Pure: no I/O.
//!
//! What does not depend on the record (URL, most headers) is rendered once; it is made anew when a secret has changed.
//! Where nothing but `idempotency-key`, `traceparent`, the length and the body differ from one request to the next,
//! the head is a text with three gaps ([`Shape`]), and a message is made of it only where somebody asks for one.
//! Else a request is a clone of the header map with what the record says. The record's value as the body is not copied.

use super::connection::Message;
use super::error::SinkError;
use super::origin::{Origin, Target, UrlError};
use crate::core::types::MessageId;
use crate::sink::secrets::Secrets;
use crate::sink::template::{Template, Templates};
use crate::sink::{Delivery, Moved, PrepareError};
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request as HttpRequest, Uri, Version};
use std::cell::{OnceCell, RefCell};
use std::rc::Rc;
use std::str::FromStr;

/// `idempotency-key`, as header names go over the wire.
pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// W3C Trace Context.
pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Headers that say how a message is framed or how its connection is used: the client's own business. A wrong one
/// would make two requests of one at the partner.
const NOT_YOURS: [&str; 9] = [
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "proxy-connection",
    "upgrade",
    "expect",
    "te",
    "trailer",
];

/// A request, ready to go over a connection.
#[derive(Debug)]
pub struct Request {
    pub(super) origin: Rc<Origin>,
    pub(super) form: Form,
    /// How it came here, where the partner sent it on.
    pub(super) moved: Option<Box<Moved>>,
}

impl Request {
    /// The method.
    pub fn method(&self) -> &Method {
        match &self.form {
            Form::Message(message) => message.method(),
            Form::Alike(alike) => &alike.shape.method,
        }
    }
    /// The headers.
    pub fn headers(&self) -> &HeaderMap {
        self.form.message().headers()
    }
    /// The body as it stands.
    pub(super) fn body(&self) -> Bytes {
        self.form.body().clone()
    }
    /// Whether its method asks for nothing to be done.
    pub(super) fn is_safe(&self) -> bool {
        matches!(*self.method(), Method::GET | Method::HEAD)
    }
    /// The URL as it stands, secrets included.
    pub(super) fn url(&self) -> String {
        let uri = match &self.form {
            Form::Message(message) => message.uri(),
            Form::Alike(alike) => &alike.shape.path,
        };
        format!("{}{uri}", self.origin.url())
    }
}

/// What a request is made of.
#[derive(Debug)]
pub(super) enum Form {
    /// Anything.
    Message(Box<Message>),
    /// Like the partner's other requests but for body, Idempotency-Key, trace and length.
    Alike(Box<Alike>),
}

impl Form {
    pub(super) fn message(&self) -> &Message {
        match self {
            Form::Message(message) => message,
            Form::Alike(alike) => alike.message.get_or_init(|| alike.to_message()),
        }
    }
    pub(super) fn message_mut(&mut self) -> &mut Message {
        if let Form::Alike(alike) = self {
            *self = Form::Message(alike.to_message());
        }
        match self {
            Form::Message(message) => message,
            Form::Alike(_) => unreachable!("it has just become a message"),
        }
    }
    pub(super) fn into_message(self) -> Box<Message> {
        match self {
            Form::Message(message) => message,
            Form::Alike(alike) => alike.to_message(),
        }
    }
    pub(super) fn body(&self) -> &Bytes {
        match self {
            Form::Message(message) => message.body(),
            Form::Alike(alike) => &alike.body,
        }
    }
}

/// See [`Form::Alike`].
#[derive(Debug)]
pub(super) struct Alike {
    shape: Rc<Shape>,
    id: MessageId,
    round: u32,
    attempt: u32,
    body: Bytes,
    message: OnceCell<Box<Message>>,
}

/// What requests that are alike have in common.
#[derive(Debug)]
struct Shape {
    method: Method,
    path: Uri,
    headers: HeaderMap,
    gaps: Gaps,
    /// The head up to the length.
    before: Vec<u8>,
    /// Where the Idempotency-Key stands in it.
    key_at: Option<usize>,
    /// Where the trace does.
    trace_at: Option<usize>,
    /// The head behind the length.
    after: Vec<u8>,
}

/// Headers that each attempt fills in.
#[derive(Clone, Copy, Debug)]
struct Gaps {
    idempotency_key: bool,
    traceparent: bool,
}

impl Gaps {
    /// One that the partner's own `headers` sets is no gap.
    fn is_key(self, name: &HeaderName, value: &HeaderValue) -> bool {
        self.idempotency_key && value.is_empty() && *name == IDEMPOTENCY_KEY
    }
    fn is_trace(self, name: &HeaderName, value: &HeaderValue) -> bool {
        self.traceparent && value.is_empty() && *name == TRACEPARENT
    }
}

impl Shape {
    /// None where the headers have no length to fill in.
    fn new(method: &Method, path: &Uri, headers: &HeaderMap, gaps: Gaps) -> Option<Self> {
        let mut message = HttpRequest::new(Bytes::new());
        *message.method_mut() = method.clone();
        *message.uri_mut() = path.clone();
        let mut text = super::plain::first_line(&message);
        let (mut key_at, mut trace_at, mut length_at) = (None, None, None);
        for (name, value) in headers {
            text.extend_from_slice(name.as_str().as_bytes());
            text.extend_from_slice(b": ");
            let at = text.len();
            if gaps.is_key(name, value) {
                key_at = Some(at);
                text.extend_from_slice(&[b'0'; KEY]);
            } else if gaps.is_trace(name, value) {
                trace_at = Some(at);
                text.extend_from_slice(&[b'0'; TRACE]);
            } else if *name == header::CONTENT_LENGTH {
                length_at = Some(at);
            } else {
                text.extend_from_slice(value.as_bytes());
            }
            text.extend_from_slice(b"\r\n");
        }
        text.extend_from_slice(b"\r\n");
        let length_at = length_at.filter(|at| key_at.max(trace_at).is_none_or(|gap| gap < *at))?;
        let after = text.split_off(length_at);
        Some(Self {
            method: method.clone(),
            path: path.clone(),
            headers: headers.clone(),
            gaps,
            before: text,
            key_at,
            trace_at,
            after,
        })
    }
}

impl Alike {
    /// The head, with room for so many bytes behind it.
    pub(super) fn head(&self, room: usize) -> Vec<u8> {
        let shape = &*self.shape;
        let mut out = Vec::with_capacity(shape.before.len() + DIGITS + shape.after.len() + room);
        out.extend_from_slice(&shape.before);
        if let Some(at) = shape.key_at {
            hex(&self.id.0, &mut out[at..at + KEY]);
        }
        if let Some(at) = shape.trace_at {
            out[at..at + TRACE].copy_from_slice(&trace(self.id, self.round, self.attempt));
        }
        put_decimal(self.body.len(), &mut out);
        out.extend_from_slice(&shape.after);
        out
    }

    fn to_message(&self) -> Box<Message> {
        let shape = &*self.shape;
        let mut headers = shape.headers.clone();
        for (name, value) in &mut headers {
            if shape.gaps.is_key(name, value) {
                let mut text = [0; KEY];
                hex(&self.id.0, &mut text);
                *value = HeaderValue::from_bytes(&text).expect("digits");
            } else if shape.gaps.is_trace(name, value) {
                *value = traceparent(self.id, self.round, self.attempt);
            } else if *name == header::CONTENT_LENGTH {
                *value = HeaderValue::from(self.body.len() as u64);
            }
        }
        message(&shape.method, shape.path.clone(), headers, self.body.clone())
    }
}

/// Characters of the Idempotency-Key of a first round, of a trace, and at most of a length.
const KEY: usize = 32;
const TRACE: usize = 55;
const DIGITS: usize = 20;

fn put_decimal(mut n: usize, out: &mut Vec<u8>) {
    let mut digits = [0; DIGITS];
    let mut at = DIGITS;
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            return out.extend_from_slice(&digits[at..]);
        }
    }
}

fn message(method: &Method, path: Uri, headers: HeaderMap, body: Bytes) -> Box<Message> {
    let mut message = HttpRequest::new(body);
    *message.method_mut() = method.clone();
    *message.uri_mut() = path;
    *message.version_mut() = Version::HTTP_11;
    *message.headers_mut() = headers;
    // Boxed: it passes through several futures on its way to the connection.
    Box::new(message)
}

/// How requests of one partner are made.
pub(super) struct RequestPlan {
    templates: Templates,
    secrets: Secrets,
    method: Method,
    url: Template,
    headers: Vec<(HeaderName, Template)>,
    body: Option<Template>,
    same_body: bool,
    idempotency_key: bool,
    traceparent: bool,
    fixed: RefCell<Fixed>,
}

/// What is the same for every record.
struct Fixed {
    version: u64,
    /// None: the URL depends on the record.
    target: Option<Target>,
    /// With placeholders for the headers of each attempt, so that the clone needs no growth.
    headers: HeaderMap,
    /// The same, with the content type of a JSON body.
    headers_json: HeaderMap,
    /// Where all requests are alike: without that content type, and with it.
    shapes: Option<[Rc<Shape>; 2]>,
}

/// What a plan is made of.
pub(super) struct PlanConfig<'a> {
    pub(super) partner: &'a str,
    pub(super) url: &'a str,
    pub(super) method: &'a str,
    pub(super) headers: &'a [(String, String)],
    pub(super) body: Option<&'a str>,
    pub(super) value_is_body: bool,
    /// Every attempt under one Idempotency-Key carries the same body.
    pub(super) same_body: bool,
    pub(super) idempotency_key: bool,
    pub(super) traceparent: bool,
}

impl RequestPlan {
    pub(super) fn try_new(config: &PlanConfig<'_>, secrets: &Secrets) -> Result<Self, SinkError> {
        let mut templates = Templates::new(config.partner, secrets);
        let url = templates.compile("url", config.url)?;
        let method = Method::from_str(config.method)
            .ok()
            .filter(|m| *m != Method::CONNECT)
            .ok_or_else(|| SinkError::Method(config.method.to_owned()))?;
        let mut headers = Vec::with_capacity(config.headers.len());
        for (name, value) in config.headers {
            let parsed = HeaderName::from_str(name).map_err(|_| SinkError::Header {
                name: name.clone(),
                why: "not a header name".to_owned(),
            })?;
            if NOT_YOURS.contains(&parsed.as_str()) {
                let why = "this header is set by the client itself".to_owned();
                return Err(SinkError::Header {
                    name: name.clone(),
                    why,
                });
            }
            headers.push((parsed, templates.compile(&format!("header `{name}`"), value)?));
        }
        let bodyless = !config.value_is_body || method == Method::GET || method == Method::HEAD;
        let body = match config.body {
            Some(text) => Some(templates.compile("body", text)?),
            None if bodyless => Some(templates.compile("body", "")?),
            None => None,
        };
        let plan = Self {
            fixed: RefCell::new(Fixed {
                version: 0,
                target: None,
                headers: HeaderMap::new(),
                headers_json: HeaderMap::new(),
                shapes: None,
            }),
            templates,
            secrets: secrets.clone(),
            method,
            url,
            headers,
            body: body.filter(|b| !b.is_value()),
            same_body: config.same_body,
            idempotency_key: config.idempotency_key,
            traceparent: config.traceparent,
        };
        plan.renew(secrets.version())
            .map_err(|e| SinkError::Request(e.0))?;
        Ok(plan)
    }

    /// Whether a header is written out in the configuration.
    pub(super) fn is_literal(&self, name: &HeaderName) -> bool {
        self.headers.iter().any(|(n, t)| n == name && t.is_constant())
    }

    /// The origin, if it is the same for every record.
    pub(super) fn fixed_origin(&self) -> Option<Rc<Origin>> {
        self.fixed.borrow().target.as_ref().map(|t| Rc::clone(&t.origin))
    }

    /// The origin of this delivery's request, where its URL can be read.
    pub(super) fn origin_of(&self, d: &Delivery) -> Option<Rc<Origin>> {
        let text = self.templates.render(&self.url, d).ok()?;
        Some(Target::parse(&text).ok()?.origin)
    }

    /// Renders anew what does not depend on the record.
    fn renew(&self, version: u64) -> Result<(), PrepareError> {
        let target = if self.url.is_fixed() {
            Some(target(
                &self
                    .templates
                    .render_fixed(&self.url)
                    .map_err(|e| PrepareError(e.to_string()))?,
            )?)
        } else {
            None
        };
        let mut headers = HeaderMap::with_capacity(self.headers.len() + 8);
        headers.insert(header::HOST, HeaderValue::from_static(""));
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static(concat!("sluicegate/", env!("CARGO_PKG_VERSION"))),
        );
        // Nobody need pack an answer of some hundred bytes; a partner's own header may ask for it.
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(target) = &target {
            put_target(&mut headers, target);
        }
        for (name, template) in self.headers.iter().filter(|(_, t)| t.is_fixed()) {
            let text = self
                .templates
                .render_fixed(template)
                .map_err(|e| PrepareError(e.to_string()))?;
            headers.insert(name, header_value(name, &text)?);
        }
        for (name, wanted) in [
            (&IDEMPOTENCY_KEY, self.idempotency_key),
            (&TRACEPARENT, self.traceparent),
        ] {
            if wanted && !headers.contains_key(name) {
                headers.insert(name, HeaderValue::from_static(""));
            }
        }
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static(""));
        let mut headers_json = headers.clone();
        if !self.headers.iter().any(|(n, _)| n == header::CONTENT_TYPE) {
            headers_json.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        let are_alike = self.body.is_none() && self.headers.iter().all(|(_, t)| t.is_fixed());
        let shapes = target.as_ref().filter(|_| are_alike).and_then(|target| {
            let shape = |headers| Shape::new(&self.method, &target.path, headers, self.gaps());
            Some([Rc::new(shape(&headers)?), Rc::new(shape(&headers_json)?)])
        });
        *self.fixed.borrow_mut() = Fixed {
            version,
            target,
            headers,
            headers_json,
            shapes,
        };
        Ok(())
    }

    fn gaps(&self) -> Gaps {
        Gaps {
            idempotency_key: self.idempotency_key,
            traceparent: self.traceparent,
        }
    }

    /// Makes the request of one attempt.
    pub(super) fn prepare(&self, d: &Delivery) -> Result<Request, PrepareError> {
        let version = self.secrets.version();
        if self.fixed.borrow().version != version {
            self.renew(version)?;
        }
        let fixed = self.fixed.borrow();
        if let (Some(shapes), Some(target)) = (&fixed.shapes, &fixed.target)
            && d.idempotency_key.is_none()
            && d.round <= 1
        {
            let body = d.record.value.clone();
            let shape = Rc::clone(&shapes[usize::from(is_json(&body))]);
            return Ok(Request {
                origin: Rc::clone(&target.origin),
                form: Form::Alike(Box::new(Alike {
                    shape,
                    id: d.id,
                    round: d.round,
                    attempt: d.attempt,
                    body,
                    message: OnceCell::new(),
                })),
                moved: None,
            });
        }
        let body = match &self.body {
            None => d.record.value.clone(),
            Some(template) => {
                // A partner that knows the key compares the body: another one is an error, or another request.
                let first;
                let d = if self.same_body && d.attempt > 1 && template.tells_attempt() {
                    first = Delivery {
                        attempt: 1,
                        ..d.clone()
                    };
                    &first
                } else {
                    d
                };
                let text = self
                    .templates
                    .render(template, d)
                    .map_err(|e| PrepareError(e.to_string()))?;
                Bytes::from(text.into_owned())
            }
        };
        let mut headers = if is_json(&body) {
            fixed.headers_json.clone()
        } else {
            fixed.headers.clone()
        };
        let (origin, path) = match &fixed.target {
            Some(target) => (Rc::clone(&target.origin), target.path.clone()),
            None => {
                let text = self
                    .templates
                    .render(&self.url, d)
                    .map_err(|e| PrepareError(e.to_string()))?;
                let target = target(&text)?;
                put_target(&mut headers, &target);
                (target.origin, target.path)
            }
        };
        for (name, template) in self.headers.iter().filter(|(_, t)| !t.is_fixed()) {
            let text = self
                .templates
                .render(template, d)
                .map_err(|e| PrepareError(e.to_string()))?;
            headers.insert(name, header_value(name, &text)?);
        }
        if self.body.as_ref().is_some_and(|b| !b.is_constant())
            && headers.get(header::CONTENT_TYPE).is_some_and(claims_json)
        {
            check_json(&body)?;
        }
        // One that the partner's own `headers` sets is left alone.
        if self.idempotency_key
            && let Some(value) = headers.get_mut(&IDEMPOTENCY_KEY).filter(|v| v.is_empty())
        {
            *value = idempotency_value(d)?;
        }
        if self.traceparent
            && let Some(value) = headers.get_mut(&TRACEPARENT).filter(|v| v.is_empty())
        {
            *value = traceparent(d.id, d.round, d.attempt);
        }
        if body.is_empty() && matches!(self.method, Method::GET | Method::HEAD) {
            headers.remove(header::CONTENT_LENGTH);
        } else {
            // hyper sends no length without a body, and some servers then answer 411.
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len() as u64));
        }
        Ok(Request {
            origin,
            form: Form::Message(message(&self.method, path, headers, body)),
            moved: None,
        })
    }
}

/// Whether a body looks like JSON.
fn is_json(body: &[u8]) -> bool {
    matches!(body.trim_ascii_start().first(), Some(b'{' | b'['))
}

/// Whether a content type says that the body is one JSON text.
fn claims_json(content_type: &HeaderValue) -> bool {
    let text = content_type.to_str().unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim();
    let is = |name: &str| essence.eq_ignore_ascii_case(name);
    let suffix = essence.len().checked_sub(5).and_then(|at| essence.get(at..));
    is("application/json") || is("text/json") || suffix.is_some_and(|s| s.eq_ignore_ascii_case("+json"))
}

/// A body that a template made must be what its content type says. One that is the record's own bytes is the record's
/// own affair.
fn check_json(body: &[u8]) -> Result<(), PrepareError> {
    serde_json::from_slice::<serde::de::IgnoredAny>(body).map_err(|e| {
        PrepareError(format!(
            "body: not JSON at line {}, column {}, though its content type says so; write values with `| tojson`, or \
             set content-type in `headers`",
            e.line(),
            e.column()
        ))
    })?;
    Ok(())
}

fn target(text: &str) -> Result<Target, PrepareError> {
    Target::parse(text).map_err(|e: UrlError| PrepareError(format!("url: {e}")))
}

/// Headers that the URL brings; those that the partner's `headers` set stay.
fn put_target(headers: &mut HeaderMap, target: &Target) {
    if headers.get(header::HOST).is_none_or(HeaderValue::is_empty) {
        headers.insert(header::HOST, target.host.clone());
    }
    if let Some(basic) = &target.basic
        && !headers.contains_key(header::AUTHORIZATION)
    {
        headers.insert(header::AUTHORIZATION, basic.clone());
    }
}

fn header_value(name: &HeaderName, text: &str) -> Result<HeaderValue, PrepareError> {
    HeaderValue::from_bytes(text.as_bytes()).map_err(|_| {
        PrepareError(format!(
            "the value of header `{name}` holds a control character (a line end?)"
        ))
    })
}

/// Each byte as two digits.
static HEX: [[u8; 2]; 256] = {
    let digits = b"0123456789abcdef";
    let mut all = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        all[byte] = [digits[byte >> 4], digits[byte & 15]];
        byte += 1;
    }
    all
};

fn hex<const N: usize>(bytes: &[u8; N], out: &mut [u8]) {
    let (pairs, _) = out.as_chunks_mut::<2>();
    for (pair, byte) in pairs.iter_mut().zip(bytes) {
        *pair = HEX[usize::from(*byte)];
    }
}

/// [`crate::sink::idempotency_key`] of the delivery, or the one it carries.
fn idempotency_value(d: &Delivery) -> Result<HeaderValue, PrepareError> {
    let text = match &d.idempotency_key {
        Some(key) => HeaderValue::from_str(key),
        None if d.round <= 1 => {
            let mut text = [0; KEY];
            hex(&d.id.0, &mut text);
            HeaderValue::from_bytes(&text)
        }
        None => HeaderValue::try_from(crate::sink::idempotency_key(d.id, d.round)),
    };
    text.map_err(|_| PrepareError("the Idempotency-Key holds a control character".to_owned()))
}

/// W3C trace context, version 00: the trace is the message (its ID in hex, so that a partner's traces are found by
/// it), the span is the attempt. Not sampled: whether a trace is recorded is the partner's choice.
fn traceparent(id: MessageId, round: u32, attempt: u32) -> HeaderValue {
    HeaderValue::from_bytes(&trace(id, round, attempt)).expect("digits and dashes")
}

fn trace(id: MessageId, round: u32, attempt: u32) -> [u8; TRACE] {
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    // A trace ID of zeros is invalid; no hash comes out so, but an ID need not come from one.
    let trace = if id.0 == [0; 16] { [1; 16] } else { id.0 };
    hex(&trace, &mut text[3..35]);
    let span = mix(id.head() ^ mix((u64::from(round) << 32) | u64::from(attempt))).max(1);
    hex(&span.to_be_bytes(), &mut text[36..52]);
    text
}

/// The finaliser of SplitMix64: spreads every bit over the word.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
