//! `[partners.NAME]`.

use super::kinds::{
    Any, As, Count, File, Headers, KIB, Limits, List, Maybe, Method, OverAnswer, Proxy, Reason, Short, Size,
    Template, Time, Url, WebOrigin, or_short, word,
};
use super::limits::LimitRef;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

const MINUTE: Duration = Duration::from_mins(1);
const DAY: Duration = Duration::from_hours(24);

/// `[partners.NAME]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PartnerConfig {
    /// Name of the section.
    #[serde(skip)]
    pub name: String,
    /// What takes the messages.
    pub sink: SinkKind,
    /// Address of each request. `{{ value }}` alone: the record is the URL, and the method is GET.
    #[serde(with = "As::<Url>")]
    #[schemars(extend("x-default" = "required", "examples" = ["http://127.0.0.1:18181/hook"]))]
    pub url: String,
    /// Request method; GET where the URL is the record's value.
    #[serde(with = "As::<Method>")]
    pub method: String,
    /// Headers, by name, each a template: `{ authorization = "Bearer {{ secret('acme') }}" }`.
    #[serde(with = "Headers")]
    #[schemars(extend("examples" = [{ "authorization": "Bearer {{ secret('acme') }}" }]))]
    pub headers: Vec<(String, String)>,
    /// Body of the request. Unset: the record's value as it stands; nothing for GET and HEAD.
    #[serde(with = "As::<Maybe<Template>>")]
    #[schemars(extend("examples" = ["{\"event\": {{ value | tojson }}}"]))]
    pub body: Option<String>,
    /// Requests in flight to this partner. Needed: rate x latency (1,000/s at 100 ms need 100).
    #[serde(with = "As::<Count<1>>")]
    pub concurrency: usize,
    /// Budgets that every start draws from: the name of a `[limits.NAME]` that several partners may share, or rates of
    /// its own, or a table with the keys of `[limits.NAME]`.
    #[serde(with = "Limits")]
    #[schemars(extend("examples" = [["50/s"]]))]
    pub limits: Vec<LimitRef>,
    /// Times after which a step of a request is given up.
    pub timeout: TimeoutConfig,
    /// Backoff.
    pub retry: RetryConfig,
    /// What to do with an attempt whose outcome is unknown. `park`: hold it for an operator (at most once). `resend`:
    /// send again with the same Idempotency-Key, within `idempotency_window`. `verify`: ask the partner's look-up URL.
    #[schemars(extend("x-takes" = "park, resend, verify, or a table by cause", "examples" = ["park"]))]
    pub doubt: DoubtConfig,
    /// Whether the key of a message in doubt goes on or waits until the doubt is settled (strict order).
    pub on_doubt: OnDoubt,
    /// How long the partner remembers an Idempotency-Key: the bound of `resend`. Ask the partner; too long a value
    /// risks a second effect.
    #[serde(with = "As::<Time>")]
    pub idempotency_window: Duration,
    /// Whether `Idempotency-Key` is sent.
    pub idempotency_key: bool,
    /// Whether `traceparent` is sent.
    pub traceparent: bool,
    /// The look-up for `verify`.
    #[schemars(extend("examples" = [{
        "url": "http://127.0.0.1:18181/look-up/{{ id }}", "delivered": "status == 200", "never_seen": "status == 404",
    }]))]
    pub verify: Option<VerifyConfig>,
    /// Rules before the defaults; the first match wins.
    #[schemars(extend("examples" = [[
        { "when": "status == 200 and (not body.code exists or body.code != 0)", "is": "refused", "reason": "body.message" },
        { "when": "status == 429", "is": "later", "scope": "key" },
    ]]))]
    pub verdict: Vec<VerdictRuleConfig>,
    /// HTTP/2, where the partner agrees to it (over `http://` at once): requests share connections.
    pub http2: bool,
    /// URL of a proxy: `http`, `https`, `socks5` (names are resolved here), `socks5h` (by the proxy). May hold user and
    /// password.
    #[serde(with = "As::<Maybe<Proxy>>")]
    #[schemars(extend("examples" = ["http://127.0.0.1:3128"]))]
    pub proxy: Option<String>,
    /// Redirects that one message may follow: 307 and 308, and any for GET and HEAD, to the same scheme, host and port.
    /// Each is an attempt of its own, with a start slot. What is not followed is an answer as any other: 301, 302, 307
    /// and 308 are refused, 303 is in doubt.
    #[serde(with = "As::<Count>")]
    pub redirects: u32,
    /// Other origins that redirects may lead to, as `https://eu.api.example`. The body goes there too; `headers` and
    /// the user of the URL do not.
    #[serde(with = "As::<List<WebOrigin>>")]
    #[schemars(extend("examples" = [["https://eu.api.example"]]))]
    pub redirect_to: Vec<String>,
    /// How far URLs reach whose host comes from a record. `usual`: anywhere but link-local and reserved addresses, at
    /// which clouds give out credentials. `public`: no loopback and no private network either. `any`: anywhere. No
    /// request goes to a port of the node itself, whatever is set.
    pub url_reach: Reach,
    /// Header names `Like-This` and not `like-this`, for servers that know only that spelling (HTTP/1.1).
    pub title_case_headers: bool,
    /// Whether `RateLimit`, `RateLimit-Remaining` and their relatives hold back starts. `Retry-After` always does.
    pub rate_limit_headers: bool,
    /// Bytes of an answer read at most; what lies behind is not looked at.
    #[serde(with = "As::<Size>")]
    pub answer_limit: usize,
    /// Extra CA certificates (PEM).
    #[serde(with = "As::<Maybe<File>>")]
    #[schemars(extend("examples" = ["partner-ca.pem"]))]
    pub ca: Option<PathBuf>,
    /// Circuit breaker.
    pub breaker: BreakerConfig,
    /// Flood guards.
    pub flood: FloodConfig,
    /// How long delivered IDs are remembered for this partner.
    #[serde(with = "As::<Maybe<Time>>")]
    #[schemars(extend("x-default" = "dedup.retention", "examples" = ["8d"]))]
    pub retention: Option<Duration>,
    /// Names of query parameters and JSON fields to mask, besides the built-in ones.
    #[serde(with = "As::<List<Any>>")]
    #[schemars(extend("examples" = [["email"]]))]
    pub mask: Vec<String>,
}

/// The sinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SinkKind {
    /// HTTP request per message.
    Http,
}

/// How far URLs reach whose host a record names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// Anywhere but link-local and reserved addresses, where clouds keep the credentials of their machines.
    Usual,
    /// Public addresses only.
    Public,
    /// Anywhere.
    Any,
}

impl Default for PartnerConfig {
    fn default() -> Self {
        Self::new("", "")
    }
}

impl PartnerConfig {
    /// An HTTP partner at `url` with every default. The method is POST, or GET where the URL is the record's value.
    pub fn new(name: impl Into<String>, url: impl Into<String>) -> Self {
        let url = url.into();
        Self {
            name: name.into(),
            sink: SinkKind::Http,
            method: usual_method(&url).into(),
            url,
            headers: Vec::new(),
            body: None,
            concurrency: 64,
            limits: Vec::new(),
            timeout: TimeoutConfig::default(),
            retry: RetryConfig::default(),
            doubt: DoubtConfig::default(),
            on_doubt: OnDoubt::Continue,
            idempotency_window: DAY,
            verify: None,
            verdict: Vec::new(),
            http2: false,
            proxy: None,
            redirects: 0,
            redirect_to: Vec::new(),
            url_reach: Reach::Usual,
            title_case_headers: false,
            rate_limit_headers: true,
            answer_limit: 64 * KIB as usize,
            ca: None,
            idempotency_key: true,
            traceparent: true,
            breaker: BreakerConfig::default(),
            flood: FloodConfig::default(),
            retention: None,
            mask: Vec::new(),
        }
    }

    /// Fills in what depends on other keys, where it is not set itself.
    pub(super) fn complete(&mut self, is_set: impl Fn(&str) -> bool) {
        if !is_set("method") {
            self.method = usual_method(&self.url).into();
        }
        if !is_set("flood.doubts_in_a_row") {
            self.flood.doubts_in_a_row = FloodConfig::for_concurrency(self.concurrency).doubts_in_a_row;
        }
        if let Some(verify) = &mut self.verify
            && !is_set("verify.timeout")
        {
            verify.timeout = self.timeout.request;
        }
    }
}

/// GET where the URL is the record's value and nothing else (a record that is just a URL), else POST.
fn usual_method(url: &str) -> &'static str {
    let inner = url
        .trim()
        .strip_prefix("{{")
        .and_then(|rest| rest.strip_suffix("}}"));
    match inner.map(|name| name.trim().trim_matches('-').trim()) {
        Some("value") => "GET",
        _ => "POST",
    }
}

/// `timeout = { … }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TimeoutConfig {
    /// Time for a connection to stand. A connection that never stood is no doubt: it is tried again.
    #[serde(with = "As::<Time>")]
    pub connect: Duration,
    /// Time from the first byte written to the last byte of the answer. Past it the attempt is in doubt.
    #[serde(with = "As::<Time>")]
    pub request: Duration,
    /// Longest life of a connection, however busy: a new one resolves the partner's name anew.
    #[serde(with = "As::<Time>")]
    pub connection: Duration,
}

impl Default for TimeoutConfig {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            request: Duration::from_secs(10),
            connection: 5 * MINUTE,
        }
    }
}

/// `retry = { … }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RetryConfig {
    /// First backoff; doubles from there, with full jitter.
    #[serde(with = "As::<Time>")]
    pub first: Duration,
    /// Longest backoff.
    #[serde(with = "As::<Time>")]
    pub longest: Duration,
    /// Age, counted from the first try, after which a message becomes a dead letter.
    #[serde(with = "As::<Time>")]
    pub give_up_after: Duration,
    /// Attempts after which a message becomes a dead letter. Unset: no bound but the age.
    #[serde(with = "As::<Maybe<Count<1>>>")]
    #[schemars(extend("examples" = [100]))]
    pub attempts: Option<u32>,
    /// Bound on what the partner's own Retry-After may ask for.
    #[serde(with = "As::<Time>")]
    pub longest_retry_after: Duration,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(200),
            longest: 5 * MINUTE,
            give_up_after: DAY,
            attempts: None,
            longest_retry_after: 60 * MINUTE,
        }
    }
}

/// What to do with an attempt whose outcome is unknown (I3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DoubtPolicy {
    /// Hold it for an operator: at most once.
    Park,
    /// Send it again with the same Idempotency-Key, within the partner's window.
    Resend,
    /// Ask the partner's look-up URL.
    Verify,
}

/// One policy a cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(remote = "Self", default, deny_unknown_fields)]
#[schemars(transform = or_policy)]
pub struct DoubtConfig {
    /// Policy where the process ended between intent and outcome.
    pub crash: DoubtPolicy,
    /// Policy after a timeout or reset once the request was written, a 408, or an answer that cannot be read.
    pub timeout: DoubtPolicy,
    /// Policy for answers that leave open whether the partner took it: 303, all 5xx but 501, 503 and 505, and a 503
    /// that a proxy gives for a broken upstream connection.
    pub gateway: DoubtPolicy,
}

impl Default for DoubtConfig {
    fn default() -> Self {
        Self::all(DoubtPolicy::Park)
    }
}

impl DoubtConfig {
    /// The same policy whatever the cause.
    pub const fn all(policy: DoubtPolicy) -> Self {
        Self {
            crash: policy,
            timeout: policy,
            gateway: policy,
        }
    }

    /// Whether any cause goes by this policy.
    pub fn uses(&self, policy: DoubtPolicy) -> bool {
        [self.crash, self.timeout, self.gateway].contains(&policy)
    }
}

fn or_policy(schema: &mut Schema) {
    or_short(schema, DoubtPolicy::json_schema(&mut SchemaGenerator::default()));
}

impl Short for DoubtConfig {
    const FORMS: &'static str = "park, resend or verify\nor one a cause: { crash = \"park\", timeout = \"park\", gateway = \"park\" }";
    fn short(text: &str) -> Result<Self, String> {
        let (_, hint) = Self::FORMS.split_once('\n').unwrap_or_default();
        word(text).map(Self::all).map_err(|why| format!("{why}\n{hint}"))
    }
}

/// Whether a doubt holds its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnDoubt {
    /// The key goes on.
    Continue,
    /// The key waits until the doubt is settled.
    Hold,
}

/// `verify = { … }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyConfig {
    /// Look-up for `verify`: asks whether the partner has the message.
    #[serde(with = "As::<Url>")]
    pub url: String,
    /// Its method.
    #[serde(default = "verify_method", with = "As::<Method>")]
    pub method: String,
    /// Its headers.
    #[serde(default, with = "Headers")]
    pub headers: Vec<(String, String)>,
    /// Holds for an answer that says: the partner has it.
    #[serde(with = "As::<OverAnswer>")]
    pub delivered: String,
    /// Holds for an answer that says: the partner has never seen it. Believed the second time, `settle` later; then the
    /// message is sent again. Any other answer parks.
    #[serde(with = "As::<OverAnswer>")]
    pub never_seen: String,
    /// Wait before asking, counted from when the request cannot be on its way any more: from its timeout, after a crash
    /// from `timeout.request` after the start.
    #[serde(default = "verify_settle", with = "As::<Time<true>>")]
    pub settle: Duration,
    /// Time for one look-up.
    #[serde(default, with = "As::<Time>")]
    #[schemars(extend("x-default" = "timeout.request"))]
    pub timeout: Duration,
}

fn verify_method() -> String {
    "GET".into()
}

fn verify_settle() -> Duration {
    Duration::from_secs(1)
}

impl VerifyConfig {
    /// A look-up at `url` with every default; `request_timeout` is the partner's.
    pub fn new(
        url: impl Into<String>,
        delivered: impl Into<String>,
        never_seen: impl Into<String>,
        request_timeout: Duration,
    ) -> Self {
        Self {
            url: url.into(),
            method: verify_method(),
            headers: Vec::new(),
            delivered: delivered.into(),
            never_seen: never_seen.into(),
            settle: verify_settle(),
            timeout: request_timeout,
        }
    }
}

/// One verdict rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VerdictRuleConfig {
    /// Rule over `status`, `header`, `body`; first match wins, then the defaults. For partners that answer 200 with an
    /// error inside: `status == 200 and (not body.code exists or body.code != 0)`. Where the body cannot be read, an
    /// answer that a rule may be about is never delivered.
    #[serde(with = "As::<OverAnswer>")]
    pub when: String,
    /// What a match means. `pause`: pause the partner and try the message later (credentials).
    pub is: RuleVerdict,
    /// Path of the reason in the answer (`body.message`), or a text in quotes.
    #[serde(default, with = "As::<Maybe<Reason>>")]
    pub reason: Option<String>,
    /// With `later`: wait at least so long.
    #[serde(default, with = "As::<Maybe<Time<true>>>")]
    pub after: Option<Duration>,
    /// Whom the answer's waits and rate hints concern. `message`: only the message waits, for `Retry-After` or `after`;
    /// the partner goes on. `key`: the same, and where the message ends meanwhile the next one of its key waits too.
    /// `partner`: the partner as a whole, also for `after`. Unset: the partner's own headers (`Retry-After` with 429
    /// and 503, RateLimit with nothing left) hold the partner, `after` holds the message. `pause` and `unknown` always
    /// concern the partner.
    pub scope: Option<RuleScope>,
}

/// Whom a verdict rule's answer concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RuleScope {
    /// This message alone.
    Message,
    /// The messages of its key.
    Key,
    /// The partner as a whole.
    Partner,
}

/// Verdicts that a rule can give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RuleVerdict {
    /// The partner took it.
    Delivered,
    /// Certainly not taken, try later.
    Later,
    /// Refused for good.
    Refused,
    /// May or may not have been taken.
    Unknown,
    /// The partner must be paused (credentials), the message is tried later.
    Pause,
}

/// Circuit breaker of a partner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BreakerConfig {
    /// Failures in a row that open the circuit breaker; 0 is no breaker.
    #[serde(with = "As::<Count>")]
    pub failures: u32,
    /// How long it stays open first; doubles.
    #[serde(with = "As::<Time>")]
    pub open: Duration,
    /// Longest time open.
    #[serde(with = "As::<Time>")]
    pub longest: Duration,
    /// Probes at once when half open.
    #[serde(with = "As::<Count<1>>")]
    pub probes: u32,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            failures: 20,
            open: Duration::from_secs(1),
            longest: MINUTE,
            probes: 1,
        }
    }
}

/// Flood guards of a partner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FloodConfig {
    /// Dead messages in a row of one topic that stop its route; 0 is never.
    #[serde(with = "As::<Count>")]
    pub dead_in_a_row: u32,
    /// Doubts in a row that open the breaker, so that a hanging partner does not park batch after batch.
    #[serde(with = "As::<Count<1>>")]
    #[schemars(extend("x-default" = "concurrency, at least 3", "examples" = [64]))]
    pub doubts_in_a_row: u32,
    /// Once twice as many doubts as the `concurrency` (at least 4) have come in a row, the next probe waits so long,
    /// and each further one twice as long as the one before, up to ten times this. Each may park a message.
    #[serde(with = "As::<Time>")]
    pub probe: Duration,
}

impl Default for FloodConfig {
    fn default() -> Self {
        Self::for_concurrency(64)
    }
}

impl FloodConfig {
    /// The guards of a partner with this many requests in flight.
    pub fn for_concurrency(concurrency: usize) -> Self {
        Self {
            dead_in_a_row: 1_000,
            // One gateway error, or two, say little, however few requests are in flight.
            doubts_in_a_row: u32::try_from(concurrency).unwrap_or(u32::MAX).max(3),
            probe: MINUTE,
        }
    }
}
