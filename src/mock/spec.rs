//! Text forms: how latencies, faults, rates, fields and phases are written on the command line, in an options file
//! and in `POST /control`. Each parses with [`std::str::FromStr`] and prints back as it was written.

use crate::config::{self, units};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A text that does not say what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct SpecError {
    text: String,
    expected: &'static str,
}

impl SpecError {
    /// The text found, and what was expected instead.
    pub(crate) fn new(text: &str, expected: &'static str) -> Self {
        Self {
            text: text.to_owned(),
            expected,
        }
    }
}

fn wrong(text: &str, expected: &'static str) -> SpecError {
    SpecError::new(text, expected)
}

/// Serde by way of the text form.
macro_rules! by_text {
    ($t:ty) => {
        impl TryFrom<String> for $t {
            type Error = SpecError;
            fn try_from(text: String) -> Result<Self, SpecError> {
                text.parse()
            }
        }
        impl From<$t> for String {
            fn from(value: $t) -> String {
                value.to_string()
            }
        }
    };
}

/// A span of time, as in the configuration: `250us`, `20ms`, `1.5s`, `2m`, `1h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = SpecError;
    fn from_str(text: &str) -> Result<Self, SpecError> {
        units::parse_duration(text)
            .map(Span)
            .map_err(|_| wrong(text, "a span of time such as 20ms, 1.5s or 2m"))
    }
}
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&units::duration(self.0))
    }
}
by_text!(Span);

/// How long an answer takes: `20ms`, `0ms..5ms` (even), `exp:20ms` (exponential with this mean, cut at 20 times it).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Latency {
    /// Always the same.
    Fixed(Duration),
    /// Even between the two.
    Even(Duration, Duration),
    /// Exponential with this mean.
    Exponential(Duration),
}

impl Default for Latency {
    fn default() -> Self {
        Latency::Fixed(Duration::ZERO)
    }
}

impl Latency {
    /// One draw.
    pub fn draw(&self, rng: &mut fastrand::Rng) -> Duration {
        match *self {
            Latency::Fixed(d) => d,
            Latency::Even(low, high) => low + (high - low).mul_f64(rng.f64()),
            Latency::Exponential(mean) => mean.mul_f64((-(1.0 - rng.f64()).ln()).min(20.0)),
        }
    }
}
impl FromStr for Latency {
    type Err = SpecError;
    fn from_str(text: &str) -> Result<Self, SpecError> {
        const EXPECTED: &str = "a latency such as 20ms, 0ms..5ms or exp:20ms";
        if let Some(mean) = text.strip_prefix("exp:") {
            return Ok(Latency::Exponential(
                mean.parse::<Span>().map_err(|_| wrong(text, EXPECTED))?.0,
            ));
        }
        let one = |part: &str| {
            part.parse::<Span>()
                .map(|s| s.0)
                .map_err(|_| wrong(text, EXPECTED))
        };
        match text.split_once("..") {
            None => Ok(Latency::Fixed(one(text)?)),
            Some((low, high)) => {
                let (low, high) = (one(low)?, one(high)?);
                if low > high {
                    return Err(wrong(text, EXPECTED));
                }
                Ok(Latency::Even(low, high))
            }
        }
    }
}
impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Latency::Fixed(d) => Span(d).fmt(f),
            Latency::Even(low, high) => write!(f, "{}..{}", Span(low), Span(high)),
            Latency::Exponential(mean) => write!(f, "exp:{}", Span(mean)),
        }
    }
}
by_text!(Latency);

/// A rate: `500/s`, `20000/min`, `10/250ms`, `3/5s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rate {
    /// Requests.
    pub count: usize,
    /// In any window of this length.
    pub window: Duration,
}

impl FromStr for Rate {
    type Err = SpecError;
    fn from_str(text: &str) -> Result<Self, SpecError> {
        match units::parse_rate(text) {
            Ok(config::Rate::Sliding { count, window }) if count > 0 && !window.is_zero() => {
                let count = usize::try_from(count).unwrap_or(usize::MAX);
                Ok(Rate { count, window })
            }
            _ => Err(wrong(text, "a rate such as 500/s, 20000/min or 10/250ms")),
        }
    }
}
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.count, Span(self.window))
    }
}
by_text!(Rate);

/// Where in a request a text is found: `header:NAME`, `json:/POINTER` (of the body), `query:NAME`, or `path` (the whole
/// path without the query).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Field {
    /// A header, any case.
    Header(String),
    /// A JSON pointer into the body.
    Json(String),
    /// A parameter of the URL.
    Query(String),
    /// The path.
    Path,
}

impl FromStr for Field {
    type Err = SpecError;
    fn from_str(text: &str) -> Result<Self, SpecError> {
        const EXPECTED: &str = "one of header:NAME, json:/POINTER, query:NAME, path";
        match text.split_once(':') {
            Some(("header", name)) if !name.is_empty() => Ok(Field::Header(name.to_owned())),
            Some(("json", pointer)) if pointer.starts_with('/') => Ok(Field::Json(pointer.to_owned())),
            Some(("query", name)) if !name.is_empty() => Ok(Field::Query(name.to_owned())),
            None if text == "path" => Ok(Field::Path),
            _ => Err(wrong(text, EXPECTED)),
        }
    }
}
impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Field::Header(name) => write!(f, "header:{name}"),
            Field::Json(pointer) => write!(f, "json:{pointer}"),
            Field::Query(name) => write!(f, "query:{name}"),
            Field::Path => f.write_str("path"),
        }
    }
}
by_text!(Field);

/// Anything but a plain 200.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Fault {
    /// This status (`503`); a 429 and a 503 carry the partner's Retry-After, if one is set.
    Status(u16),
    /// Connections are refused (`down`): the listener closes and open connections are reset. A partner that shares its
    /// listener with others resets the connection instead. As a rare fault (below 1) it resets.
    Down,
    /// No answer (`hang`), or a late one (`hang:30s`).
    Hang(Option<Duration>),
    /// Reset when the head has come in; never applied (`reset-before-read`).
    ResetBeforeRead,
    /// Reset when all of the request has been read (`reset-after-read`).
    ResetAfterRead,
    /// Orderly close in place of an answer (`close`).
    Close,
    /// Half of an answer, then an orderly close (`half`).
    Half,
    /// One byte of the answer at a time with this pause between (`drip`, `drip:100ms`).
    Drip(Duration),
    /// Bytes that are no HTTP (`garbage`).
    Garbage,
    /// An answer with so many bytes of body (`huge`, `huge:10000000`).
    Huge(u64),
    /// 200 with an error in the body (`error-body`); never applied.
    ErrorBody,
}

/// Default pause of a slow drip.
const DRIP: Duration = Duration::from_millis(100);
/// Default body of a huge answer: far above any sane bound on answers.
const HUGE: u64 = 64 << 20;

impl Fault {
    /// The name under which it is counted.
    pub fn name(&self) -> &'static str {
        match self {
            Fault::Status(_) => "status",
            Fault::Down => "down",
            Fault::Hang(_) => "hang",
            Fault::ResetBeforeRead => "reset-before-read",
            Fault::ResetAfterRead => "reset-after-read",
            Fault::Close => "close",
            Fault::Half => "half",
            Fault::Drip(_) => "drip",
            Fault::Garbage => "garbage",
            Fault::Huge(_) => "huge",
            Fault::ErrorBody => "error-body",
        }
    }
}
impl FromStr for Fault {
    type Err = SpecError;
    fn from_str(text: &str) -> Result<Self, SpecError> {
        const EXPECTED: &str = "a status, or one of down, hang[:SPAN], reset-before-read, reset-after-read, close, \
                                half, drip[:SPAN], garbage, huge[:BYTES], error-body";
        let (name, argument) = text.split_once(':').map_or((text, None), |(n, a)| (n, Some(a)));
        let span = |a: &str| a.parse::<Span>().map(|s| s.0).map_err(|_| wrong(text, EXPECTED));
        Ok(match (name, argument) {
            ("down", None) => Fault::Down,
            ("hang", None) => Fault::Hang(None),
            ("hang", Some(a)) => Fault::Hang(Some(span(a)?)),
            ("reset-before-read", None) => Fault::ResetBeforeRead,
            ("reset-after-read", None) => Fault::ResetAfterRead,
            ("close", None) => Fault::Close,
            ("half", None) => Fault::Half,
            ("drip", None) => Fault::Drip(DRIP),
            ("drip", Some(a)) => Fault::Drip(span(a)?),
            ("garbage", None) => Fault::Garbage,
            ("huge", None) => Fault::Huge(HUGE),
            ("huge", Some(a)) => Fault::Huge(a.parse().map_err(|_| wrong(text, EXPECTED))?),
            ("error-body", None) => Fault::ErrorBody,
            (status, None) => match status.parse() {
                Ok(status @ 200..=599) => Fault::Status(status),
                _ => return Err(wrong(text, EXPECTED)),
            },
            _ => return Err(wrong(text, EXPECTED)),
        })
    }
}
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Status(status) => write!(f, "{status}"),
            Fault::Hang(Some(d)) => write!(f, "hang:{}", Span(*d)),
            Fault::Drip(d) => write!(f, "drip:{}", Span(*d)),
            Fault::Huge(bytes) => write!(f, "huge:{bytes}"),
            other => f.write_str(other.name()),
        }
    }
}
by_text!(Fault);

/// A fault and how likely it is: `500=0.01`; without a share it is certain.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FaultShare {
    /// Which fault.
    pub fault: Fault,
    /// Share of requests, 0 to 1.
    pub share: f64,
}

impl FromStr for FaultShare {
    type Err = SpecError;
    fn from_str(text: &str) -> Result<Self, SpecError> {
        let (fault, share) = text.split_once('=').unwrap_or((text, "1"));
        let share: f64 = share
            .parse()
            .map_err(|_| wrong(text, "a fault with a share, such as 500=0.01"))?;
        if !(0.0..=1.0).contains(&share) {
            return Err(wrong(text, "a fault with a share between 0 and 1"));
        }
        Ok(FaultShare {
            fault: fault.parse()?,
            share,
        })
    }
}
impl fmt::Display for FaultShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.share == 1.0 {
            self.fault.fmt(f)
        } else {
            write!(f, "{}={}", self.fault, self.share)
        }
    }
}
by_text!(FaultShare);

/// When a phase ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// After this time.
    Elapsed(Duration),
    /// After so many requests.
    Requests(u64),
    /// Never.
    Always,
}

/// Behaviour for a time: `up 5s`, `down 3s`, `hang 100x`, `500=0.5 latency=50ms 10s`, `up`.
///
/// The words are `up`, faults with shares, `latency=...`, and an end (a span or a number of requests with an `x`). A
/// phase without a fault has none, whatever the partner's own are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Phase {
    /// Its faults.
    pub faults: Vec<FaultShare>,
    /// Its latency, if not the partner's own.
    pub latency: Option<Latency>,
    /// When it ends.
    pub until: Until,
}

impl FromStr for Phase {
    type Err = SpecError;
    fn from_str(text: &str) -> Result<Self, SpecError> {
        let mut phase = Phase {
            faults: Vec::new(),
            latency: None,
            until: Until::Always,
        };
        for word in text.split_whitespace() {
            if word == "up" {
            } else if let Some(latency) = word.strip_prefix("latency=") {
                phase.latency = Some(latency.parse()?);
            } else if let Some(count) = word.strip_suffix('x').and_then(|n| n.parse().ok()) {
                phase.until = Until::Requests(count);
            } else if let Ok(fault) = word.parse() {
                phase.faults.push(fault);
            } else if let Ok(Span(span)) = word.parse() {
                phase.until = Until::Elapsed(span);
            } else {
                return Err(wrong(
                    word,
                    "part of a phase such as `up 5s`, `down 3s`, `hang 100x`, `500=0.5 latency=50ms 10s`",
                ));
            }
        }
        Ok(phase)
    }
}
impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.faults.is_empty() {
            f.write_str("up")?;
        }
        for (i, fault) in self.faults.iter().enumerate() {
            write!(f, "{}{fault}", if i == 0 { "" } else { " " })?;
        }
        if let Some(latency) = self.latency {
            write!(f, " latency={latency}")?;
        }
        match self.until {
            Until::Always => Ok(()),
            Until::Elapsed(d) => write!(f, " {}", Span(d)),
            Until::Requests(n) => write!(f, " {n}x"),
        }
    }
}
by_text!(Phase);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_back_as_they_were_written() {
        for text in ["250us", "20ms", "2s", "2m", "1h", "0s"] {
            assert_eq!(text.parse::<Span>().expect(text).to_string(), text);
        }
        for text in ["20ms", "0s..5ms", "exp:20ms"] {
            assert_eq!(text.parse::<Latency>().expect(text).to_string(), text);
        }
        for text in ["500/1s", "20000/1m", "10/250ms"] {
            assert_eq!(text.parse::<Rate>().expect(text).to_string(), text);
        }
        for text in [
            "up 5s",
            "down 3s",
            "hang 100x",
            "500=0.5 429 latency=50ms 10s",
            "up",
            "hang:3s",
            "huge:10",
            "drip:5ms 1x",
        ] {
            assert_eq!(text.parse::<Phase>().expect(text).to_string(), text);
        }
        for text in ["header:X-Id", "json:/a/b", "query:q", "path"] {
            assert_eq!(text.parse::<Field>().expect(text).to_string(), text);
        }
        assert_eq!("1.5s".parse::<Span>(), Ok(Span(Duration::from_millis(1_500))));
        assert_eq!(
            "20000/min".parse::<Rate>().map(|r| r.window),
            Ok(Duration::from_secs(60))
        );
    }

    #[test]
    fn nonsense_is_refused_with_what_was_expected() {
        assert!("5".parse::<Span>().is_err());
        assert!("-5s".parse::<Span>().is_err());
        assert!("5ms..1ms".parse::<Latency>().is_err());
        assert!("0/s".parse::<Rate>().is_err());
        assert!("700".parse::<Fault>().is_err());
        assert!("500=1.5".parse::<FaultShare>().is_err());
        assert!("json:id".parse::<Field>().is_err());
        let error = "up 5q".parse::<Phase>().expect_err("not a phase");
        assert!(error.to_string().contains("`5q`"), "{error}");
    }

    #[test]
    fn draws_stay_where_they_should() {
        let mut rng = fastrand::Rng::with_seed(7);
        let even: Latency = "2ms..4ms".parse().expect("even");
        let exponential: Latency = "exp:10ms".parse().expect("exponential");
        let mut sum = Duration::ZERO;
        for _ in 0..20_000 {
            let d = even.draw(&mut rng);
            assert!(d >= Duration::from_millis(2) && d <= Duration::from_millis(4));
            let e = exponential.draw(&mut rng);
            assert!(e <= Duration::from_millis(200));
            sum += e;
        }
        let mean = sum / 20_000;
        assert!(mean.as_micros().abs_diff(10_000) < 500, "{mean:?}");
    }
}
