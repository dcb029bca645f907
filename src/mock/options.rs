//! What a stand-in partner is made with, and what `POST /control` changes while it runs.

use super::spec::{FaultShare, Field, Latency, Phase, Rate, Span, SpecError};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// One mock process: a listener and the partners behind it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MockOptions {
    /// Where it listens; port 0 takes a free one. Default 127.0.0.1:18181.
    pub listen: SocketAddr,
    /// A listener for reports and control alone, which stays up when partners are down.
    pub control: Option<SocketAddr>,
    /// Serve TLS with a certificate made at start for localhost and 127.0.0.1.
    pub tls: bool,
    /// Where that certificate is written (PEM), for `ca = ...` at the partner.
    pub tls_cert: Option<PathBuf>,
    /// Seed of every random draw. Default: another one each time.
    pub seed: Option<u64>,
    /// The partners. Default: one, for every path.
    pub partners: Vec<PartnerOptions>,
}

impl Default for MockOptions {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 18_181)),
            control: None,
            tls: false,
            tls_cert: None,
            seed: None,
            partners: vec![PartnerOptions::default()],
        }
    }
}

impl MockOptions {
    /// One partner for every path, on a free port: what most tests want.
    pub fn on_free_port(behaviour: Behaviour) -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            partners: vec![PartnerOptions {
                behaviour,
                ..PartnerOptions::default()
            }],
            ..Self::default()
        }
    }
}

/// One partner: where it is reached, what it counts, how it behaves at first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PartnerOptions {
    /// Its name in reports. Default `partner`.
    pub name: String,
    /// Requests whose path begins with it belong to this partner; the longest prefix wins. Default `/`.
    pub prefix: String,
    /// A listener of its own (needed for connections that are refused while other partners are up).
    pub listen: Option<SocketAddr>,
    /// Where the message ID is found. Default `header:Idempotency-Key`.
    pub id: Field,
    /// Where the key is found, if order per key is to be checked.
    pub key: Option<Field>,
    /// Where the sequence number (a whole number, rising within a key) is found.
    pub seq: Option<Field>,
    /// Windows whose highest count of arrivals is measured. Default one second.
    pub windows: Vec<Span>,
    /// Limits that it is meant to see kept: the report says whether it was, by arrival, in every sliding window. (Its own
    /// `limits` are what it enforces.)
    pub most: Vec<Rate>,
    /// Connections are closed, without a word, after so many answers.
    pub requests_per_connection: Option<u64>,
    /// Connections are closed, without a word, after so long without a request.
    pub idle_timeout: Option<Span>,
    /// How it behaves.
    #[serde(flatten)]
    pub behaviour: Behaviour,
}

impl Default for PartnerOptions {
    fn default() -> Self {
        Self {
            name: "partner".into(),
            prefix: "/".into(),
            listen: None,
            id: Field::Header("Idempotency-Key".into()),
            key: None,
            seq: None,
            windows: vec![Span(Duration::from_secs(1))],
            most: Vec::new(),
            requests_per_connection: None,
            idle_timeout: None,
            behaviour: Behaviour::default(),
        }
    }
}

/// How a partner behaves. All of it can be changed while it runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Behaviour {
    /// How long an answer takes. Default not at all.
    pub latency: Latency,
    /// Faults and how often they come.
    pub faults: Vec<FaultShare>,
    /// Its own rate limit: what is above it is answered 429. Refused requests do not count against it.
    pub limits: Vec<Rate>,
    /// Retry-After of its 429 and 503 answers: `2s`, `date:2s`, `auto` (whole seconds until there is room, for
    /// 429s of its own limit), `none`. Default `auto`.
    pub retry_after: RetryAfter,
    /// Whether answers carry RateLimit-Limit, RateLimit-Remaining and RateLimit-Reset of its first limit.
    pub ratelimit_headers: bool,
    /// Whether a message ID that was applied is answered 200 again and not applied twice.
    pub idempotent: bool,
    /// How many of the requests that leave the sender in doubt (hang, reset after read, close, half, garbage, drip,
    /// huge, 502, 504) are applied, 0 to 1. Default 1: the worst case for a sender that sends twice.
    pub applied_in_doubt: f64,
    /// Body of a 200. Default `{"code":0,"message":"ok"}`.
    pub answer: String,
    /// Body of every other answer, and of `error-body`. Default `{"code":17,"message":"not taken"}`.
    pub error_answer: String,
    /// More headers of every answer.
    pub headers: Vec<(String, String)>,
    /// Exceptions by key, ID or path; the first that matches wins over faults and latency.
    pub rules: Vec<Rule>,
    /// Phases one after the other; after the last one the partner's own behaviour holds.
    pub script: Vec<Phase>,
    /// Whether the script begins anew after its last phase.
    pub repeat: bool,
    /// Whether the script's time begins with the first request, not with the start.
    pub from_first_request: bool,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            latency: Latency::default(),
            faults: Vec::new(),
            limits: Vec::new(),
            retry_after: RetryAfter::Auto,
            ratelimit_headers: false,
            idempotent: false,
            applied_in_doubt: 1.0,
            answer: r#"{"code":0,"message":"ok"}"#.into(),
            error_answer: r#"{"code":17,"message":"not taken"}"#.into(),
            headers: Vec::new(),
            rules: Vec::new(),
            script: Vec::new(),
            repeat: false,
            from_first_request: false,
        }
    }
}

impl Behaviour {
    /// This behaviour with some of its fields changed: what `POST /control` does. Fields not named stay; a name
    /// that does not exist is refused.
    pub fn changed(&self, change: &serde_json::Value) -> Result<Self, ControlError> {
        let mut whole = serde_json::to_value(self).map_err(ControlError)?;
        let (Some(fields), Some(change)) = (whole.as_object_mut(), change.as_object()) else {
            return Err(ControlError(serde::de::Error::custom(
                "the change must be a JSON object",
            )));
        };
        for (name, value) in change {
            match fields.get_mut(name) {
                Some(field) => *field = value.clone(),
                None => {
                    let known = fields.keys().cloned().collect::<Vec<_>>().join(", ");
                    let error = format!("unknown field `{name}`, expected one of {known}");
                    return Err(ControlError(serde::de::Error::custom(error)));
                }
            }
        }
        serde_json::from_value(whole).map_err(ControlError)
    }
}

/// A change that cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot change the partner's behaviour: {0}")]
pub struct ControlError(pub(crate) serde_json::Error);

/// What a 429 says about when to come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RetryAfter {
    /// Nothing.
    None,
    /// Whole seconds until its own limit has room again, at least 1; 1 where no limit is the cause.
    Auto,
    /// So many seconds (rounded up).
    Seconds(Duration),
    /// A date so far ahead (rounded up to whole seconds).
    Date(Duration),
}

impl FromStr for RetryAfter {
    type Err = SpecError;
    fn from_str(text: &str) -> Result<Self, SpecError> {
        Ok(match text {
            "none" => RetryAfter::None,
            "auto" => RetryAfter::Auto,
            _ => match text.strip_prefix("date:") {
                Some(span) => RetryAfter::Date(span.parse::<Span>()?.0),
                None => RetryAfter::Seconds(text.parse::<Span>()?.0),
            },
        })
    }
}
impl fmt::Display for RetryAfter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RetryAfter::None => f.write_str("none"),
            RetryAfter::Auto => f.write_str("auto"),
            RetryAfter::Seconds(d) => Span(*d).fmt(f),
            RetryAfter::Date(d) => write!(f, "date:{}", Span(*d)),
        }
    }
}
impl TryFrom<String> for RetryAfter {
    type Error = SpecError;
    fn try_from(text: String) -> Result<Self, SpecError> {
        text.parse()
    }
}
impl From<RetryAfter> for String {
    fn from(value: RetryAfter) -> String {
        value.to_string()
    }
}

/// What a rule looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleOn {
    /// The key.
    Key,
    /// The message ID.
    Id,
    /// The path with its query.
    Path,
}

/// An exception: `key=user-7* latency=30s`, `id=*9 500`, `path=/hook/bad reset-after-read=0.5`.
/// The pattern is a text with at most one `*`; what follows it is a phase ([`Phase`]) without an end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rule {
    /// What it looks at.
    pub on: RuleOn,
    /// What that must look like.
    pub like: String,
    /// What happens then.
    pub then: Phase,
}

impl Rule {
    /// Whether the text looks as the pattern says.
    pub fn matches(&self, text: &[u8]) -> bool {
        match self.like.split_once('*') {
            None => text == self.like.as_bytes(),
            Some((head, tail)) => {
                text.len() >= head.len() + tail.len()
                    && text.starts_with(head.as_bytes())
                    && text.ends_with(tail.as_bytes())
            }
        }
    }
}
impl FromStr for Rule {
    type Err = SpecError;
    fn from_str(text: &str) -> Result<Self, SpecError> {
        let (pattern, then) = text
            .trim()
            .split_once(char::is_whitespace)
            .unwrap_or((text.trim(), "up"));
        let (on, like) = match pattern.split_once('=') {
            Some(("key", like)) => (RuleOn::Key, like),
            Some(("id", like)) => (RuleOn::Id, like),
            Some(("path", like)) => (RuleOn::Path, like),
            _ => return Err(SpecError::new(text, "a rule such as `key=user-7* latency=30s`")),
        };
        Ok(Rule {
            on,
            like: like.to_owned(),
            then: then.parse()?,
        })
    }
}
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on = match self.on {
            RuleOn::Key => "key",
            RuleOn::Id => "id",
            RuleOn::Path => "path",
        };
        write!(f, "{on}={} {}", self.like, self.then)
    }
}
impl TryFrom<String> for Rule {
    type Error = SpecError;
    fn try_from(text: String) -> Result<Self, SpecError> {
        text.parse()
    }
}
impl From<Rule> for String {
    fn from(value: Rule) -> String {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_load_from_toml_and_come_back() {
        let text = r#"
            listen = "127.0.0.1:0"
            [[partners]]
            name = "acme"
            prefix = "/a"
            key = "json:/user"
            seq = "json:/seq"
            windows = ["1s", "1m"]
            latency = "exp:5ms"
            faults = ["500=0.01", "hang:2s=0.001"]
            limits = ["500/s"]
            rules = ["key=user-7* latency=30s"]
            script = ["up 5s", "down 3s", "429 100x"]
        "#;
        let options: MockOptions = toml::from_str(text).expect("options");
        assert_eq!(options.partners[0].behaviour.script.len(), 3);
        let again: MockOptions =
            serde_json::from_value(serde_json::to_value(&options).expect("out")).expect("in");
        assert_eq!(options, again);
    }

    #[test]
    fn a_change_touches_what_it_names_and_nothing_else() {
        let before = Behaviour {
            idempotent: true,
            ..Behaviour::default()
        };
        let after = before
            .changed(&serde_json::json!({"latency": "5ms", "faults": ["503"]}))
            .expect("change");
        assert!(after.idempotent && after.faults.len() == 1);
        assert_eq!(after.latency, Latency::Fixed(Duration::from_millis(5)));
        let error = before
            .changed(&serde_json::json!({"latenzy": "5ms"}))
            .expect_err("unknown");
        assert!(error.to_string().contains("`latenzy`"), "{error}");
        assert!(before.changed(&serde_json::json!({"latency": "soon"})).is_err());
    }

    #[test]
    fn a_pattern_has_at_most_one_star() {
        let rule: Rule = "key=user-*-x hang".parse().expect("rule");
        assert!(rule.matches(b"user-7-x") && rule.matches(b"user--x"));
        assert!(!rule.matches(b"user-x") && !rule.matches(b"other"));
        assert!("key".parse::<Rule>().is_err());
    }
}
