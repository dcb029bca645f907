//! What an answer says about pace: `Retry-After` and the family of rate limit headers. Pure.
//!
//! Every figure is bounded by the partner's `retry.longest_retry_after`: a slip of theirs (milliseconds for
//! seconds, a date in another century) must not stop a partner for a year.

use crate::core::types::Time;
use crate::sink::Pace;
use http::HeaderMap;
use http::header::{CONTENT_LENGTH, DATE, HeaderName, HeaderValue, RETRY_AFTER, TRANSFER_ENCODING};
use std::time::{Duration, UNIX_EPOCH};

/// How far a partner is believed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heed {
    /// No wait is longer.
    pub(super) longest: Duration,
    /// Whether the family of rate limit headers is looked at; `Retry-After` always is.
    pub(super) rate_limits: bool,
}

/// For how long an idle connection can be used after this answer: what `keep-alive: timeout=…` says, less a margin
/// for the way and the partner's own timer (a quarter, within 200 ms and 2 s). None where it says nothing.
pub(super) fn keep_alive(headers: &HeaderMap) -> Option<Duration> {
    const MARGIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
    static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
    // Most answers carry none: the first letters are cheaper to look at than a hash is to make.
    let may_be = |name: &HeaderName| name.as_str().as_bytes()[0] == b'k';
    if !headers.keys().any(may_be) {
        return None;
    }
    let value = text(headers.get(&KEEP_ALIVE)?)?;
    let number = |wanted: &str| {
        value.split([',', ';']).find_map(|part| {
            let (name, number) = part.split_once('=')?;
            name.trim()
                .eq_ignore_ascii_case(wanted)
                .then(|| first_number(number.trim().trim_matches('"')))?
        })
    };
    if number("max") == Some(0) {
        return Some(Duration::ZERO);
    }
    let told = Duration::from_secs(number("timeout")?);
    Some(told.saturating_sub((told / 4).clamp(MARGIN.0, MARGIN.1)))
}

/// Whether a field of this name may be one that is looked at here. By its first letter: nearly all answers have none.
pub(super) fn may_tell(name: &[u8]) -> bool {
    matches!(name.first().map(u8::to_ascii_lowercase), Some(b'k' | b'r' | b'x'))
}

/// Whether a body is announced.
pub(super) fn announces_body(headers: &HeaderMap) -> bool {
    headers.contains_key(TRANSFER_ENCODING)
        || headers
            .get(CONTENT_LENGTH)
            .is_some_and(|length| length.as_bytes() != b"0")
}

/// What the headers say; none, without any allocation, where they say nothing.
///
/// `now`: this node's time, used where the answer has no `Date` of its own.
pub(super) fn pace(
    headers: &HeaderMap,
    status: u16,
    now: impl FnOnce() -> Time,
    heed: Heed,
) -> Option<Box<Pace>> {
    let longest = heed.longest;
    // Most answers carry none of them: one look at the first letters is all they cost.
    if !headers
        .keys()
        .any(|name| matches!(name.as_str().as_bytes()[0], b'r' | b'x'))
    {
        return None;
    }
    // A partner's date is best read against the partner's own clock.
    let now = headers
        .get(DATE)
        .and_then(http_date)
        .unwrap_or_else(|| now().secs());
    // Also of a 2xx: a verdict rule may say that it means "later".
    let retry_after = headers
        .get(RETRY_AFTER)
        .and_then(|v| delay(v, now))
        .map(|d| d.min(longest));
    let (remaining, reset) = if heed.rate_limits {
        rate_limit(headers, now)
    } else {
        (None, None)
    };
    let reset = reset.map(|d| d.min(longest));
    if retry_after.is_none() && remaining.is_none() {
        return None;
    }
    let drained = if remaining == Some(0) { reset } else { None };
    let slowed = matches!(status, 429 | 503);
    let retry_after = retry_after.or(if status == 429 { drained } else { None });
    let pause = match (retry_after.filter(|_| slowed), drained) {
        (Some(a), Some(b)) => Some(a.max(b)),
        (a, b) => a.or(b),
    };
    Some(Box::new(Pace {
        retry_after,
        pause,
        remaining,
        reset,
    }))
}

fn text(value: &HeaderValue) -> Option<&str> {
    value.to_str().ok().map(str::trim)
}

fn http_date(value: &HeaderValue) -> Option<u64> {
    let at = httpdate::parse_http_date(text(value)?).ok()?;
    Some(at.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

/// `Retry-After`: seconds or a date. A date that has passed is no wait at all.
fn delay(value: &HeaderValue, now: u64) -> Option<Duration> {
    seconds(text(value)?).or_else(|| http_date(value).map(|at| Duration::from_secs(at.saturating_sub(now))))
}

/// Seconds, a fraction allowed (some send it); nothing negative.
fn seconds(text: &str) -> Option<Duration> {
    if !text.starts_with(|c: char| c.is_ascii_digit())
        || !text.bytes().all(|b| b.is_ascii_digit() || b == b'.')
    {
        return None;
    }
    let value: f64 = text.parse().ok()?;
    Some(Duration::try_from_secs_f64(value).unwrap_or(Duration::MAX))
}

/// Requests left and time until there are more, from whichever form the partner uses.
fn rate_limit(headers: &HeaderMap, now: u64) -> (Option<u64>, Option<Duration>) {
    const PAIRS: [(&str, &str); 3] = [
        ("ratelimit-remaining", "ratelimit-reset"),
        ("x-ratelimit-remaining", "x-ratelimit-reset"),
        ("x-rate-limit-remaining", "x-rate-limit-reset"),
    ];
    let mut tightest: Option<(u64, Option<Duration>)> = None;
    let mut offer = |remaining: u64, reset: Option<Duration>| {
        if tightest.is_none_or(|(r, t)| (remaining, std::cmp::Reverse(reset)) < (r, std::cmp::Reverse(t))) {
            tightest = Some((remaining, reset));
        }
    };
    for value in headers.get_all(HeaderName::from_static("ratelimit")) {
        if let Some(t) = text(value) {
            structured(t, now, &mut offer);
        }
    }
    for (remaining, reset) in PAIRS {
        let left = headers.get(remaining).and_then(text).and_then(first_number);
        if let Some(left) = left {
            offer(
                left,
                headers.get(reset).and_then(text).and_then(|t| until(t, now)),
            );
        }
    }
    tightest.map_or((None, None), |(remaining, reset)| (Some(remaining), reset))
}

fn first_number(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

/// A reset: seconds from now, or, as some send it, seconds or milliseconds since the epoch.
fn until(text: &str, now: u64) -> Option<Duration> {
    let wait = seconds(text.split([',', ';']).next()?.trim())?;
    Some(from_now(wait, now))
}

fn from_now(wait: Duration, now: u64) -> Duration {
    match wait.as_secs() {
        0..1_000_000_000 => wait,
        at @ 1_000_000_000..1_000_000_000_000 => Duration::from_secs(at.saturating_sub(now)),
        at => Duration::from_millis(at.saturating_sub(now.saturating_mul(1000))),
    }
}

/// `"policy";r=50;t=30, …` (the present draft) or `limit=100, remaining=50, reset=5` (the one before).
fn structured(text: &str, now: u64, offer: &mut impl FnMut(u64, Option<Duration>)) {
    let number = |part: &str, names: [&str; 2]| {
        let (name, value) = part.split_once('=')?;
        names.contains(&name.trim()).then(|| first_number(value.trim()))?
    };
    let (mut left, mut reset) = (None, None);
    for item in text.split(',') {
        let (mut r, mut t) = (None, None);
        for part in item.split(';') {
            r = r.or(number(part, ["r", "remaining"]));
            t = t.or(number(part, ["t", "reset"]));
        }
        if item.contains(';') {
            if let Some(r) = r {
                offer(r, t.map(|t| from_now(Duration::from_secs(t), now)));
            }
        } else {
            left = left.or(r);
            reset = reset.or(t);
        }
    }
    if let Some(left) = left {
        offer(left, reset.map(|t| from_now(Duration::from_secs(t), now)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const HEED: Heed = Heed {
        longest: HOUR,
        rate_limits: true,
    };
    // 2023-11-14T22:13:20Z
    const NOW: Time = Time::from_millis(1_700_000_000_000);

    fn read(status: u16, pairs: &[(&'static str, &str)]) -> Option<Pace> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        pace(&headers, status, || NOW, HEED).map(|p| *p)
    }

    #[test]
    fn retry_after_in_all_its_forms() {
        let wait = |value: &str| read(429, &[("retry-after", value)]).and_then(|p| p.retry_after);
        assert_eq!(wait("120"), Some(Duration::from_secs(120)));
        assert_eq!(wait(" 0 "), Some(Duration::ZERO));
        assert_eq!(wait("1.5"), Some(Duration::from_millis(1500)));
        assert_eq!(wait("99999999999999999999"), Some(HOUR));
        assert_eq!(
            wait("Tue, 14 Nov 2023 22:14:20 GMT"),
            Some(Duration::from_secs(60))
        );
        assert_eq!(
            wait("Tuesday, 14-Nov-23 22:14:20 GMT"),
            Some(Duration::from_secs(60))
        );
        assert_eq!(wait("Tue Nov 14 22:14:20 2023"), Some(Duration::from_secs(60)));
        assert_eq!(wait("Tue, 14 Nov 2023 22:00:00 GMT"), Some(Duration::ZERO));
        for bad in ["", "-5", "soon", "1e9", "0x10", "inf", "NaN"] {
            assert_eq!(wait(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_date_is_read_against_the_partners_clock() {
        let told = read(
            503,
            &[
                ("date", "Sat, 01 Jan 2000 00:00:00 GMT"),
                ("retry-after", "Sat, 01 Jan 2000 00:00:07 GMT"),
            ],
        );
        assert_eq!(told.unwrap().retry_after, Some(Duration::from_secs(7)));
    }

    #[test]
    fn only_429_and_503_pause_the_whole_partner() {
        let pause = |status| read(status, &[("retry-after", "9")]).and_then(|p| p.pause);
        assert_eq!(pause(429), Some(Duration::from_secs(9)));
        assert_eq!(pause(503), Some(Duration::from_secs(9)));
        assert_eq!((pause(425), pause(200)), (None, None));
    }

    #[test]
    fn rate_limit_headers_in_all_their_forms() {
        let both = |pairs: &[(&'static str, &str)]| {
            let told = read(200, pairs).unwrap();
            (
                told.remaining,
                told.reset.map(|d| d.as_secs()),
                told.pause.map(|d| d.as_secs()),
            )
        };
        assert_eq!(
            both(&[("ratelimit", "\"p\";r=50;t=30")]),
            (Some(50), Some(30), None)
        );
        assert_eq!(
            both(&[("ratelimit", "\"min\";r=50;t=30, \"day\";r=0;t=900")]),
            (Some(0), Some(900), Some(900))
        );
        assert_eq!(
            both(&[("ratelimit", "limit=100, remaining=0, reset=5")]),
            (Some(0), Some(5), Some(5))
        );
        assert_eq!(
            both(&[("ratelimit-remaining", "3"), ("ratelimit-reset", "7")]),
            (Some(3), Some(7), None)
        );
        assert_eq!(
            both(&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "7")]),
            (Some(0), Some(7), Some(7))
        );
        let epoch = [
            ("x-ratelimit-remaining", "0"),
            ("x-ratelimit-reset", "1700000060"),
        ];
        assert_eq!(both(&epoch), (Some(0), Some(60), Some(60)));
        let millis = [
            ("x-ratelimit-remaining", "0"),
            ("x-ratelimit-reset", "1700000060000"),
        ];
        assert_eq!(both(&millis), (Some(0), Some(60), Some(60)));
        for reset in ["1700000060", "1700000060000"] {
            let told = format!("\"min\";r=0;t={reset}");
            assert_eq!(
                both(&[("ratelimit", told.as_str())]),
                (Some(0), Some(60), Some(60))
            );
        }
        let far = [("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "99999")];
        assert_eq!(both(&far), (Some(0), Some(3600), Some(3600)));
        let spent = read(429, &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "7")]).unwrap();
        assert_eq!(spent.retry_after, Some(Duration::from_secs(7)));
        assert_eq!(
            read(200, &[("x-request-id", "abc"), ("x-ratelimit-remaining", "many")]),
            None
        );
    }

    #[test]
    fn rate_limit_headers_are_not_heeded_where_a_partner_is_not_to_be_believed() {
        let mut headers = HeaderMap::new();
        headers.insert("x-ratelimit-remaining", HeaderValue::from_static("0"));
        headers.insert("x-ratelimit-reset", HeaderValue::from_static("3600"));
        let deaf = Heed {
            rate_limits: false,
            ..HEED
        };
        assert_eq!(pace(&headers, 200, || NOW, deaf), None);
        headers.insert("retry-after", HeaderValue::from_static("7"));
        let told = pace(&headers, 429, || NOW, deaf).unwrap();
        assert_eq!(
            (told.retry_after, told.remaining),
            (Some(Duration::from_secs(7)), None)
        );
    }

    #[test]
    fn a_connection_is_used_a_little_shorter_than_the_partner_keeps_it() {
        for (value, wanted) in [
            ("timeout=1", Some(750)),
            ("timeout=5, max=1000", Some(3_750)),
            ("max=7;Timeout=60", Some(58_000)),
            ("timeout=\"4\"", Some(3_000)),
            ("timeout=0", Some(0)),
            ("timeout=5, max=0", Some(0)),
            ("max=100", None),
            ("yes", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("keep-alive", HeaderValue::from_static(value));
            assert_eq!(keep_alive(&headers), wanted.map(Duration::from_millis), "{value}");
        }
        assert_eq!(keep_alive(&HeaderMap::new()), None);
    }

    proptest! {
        #[test]
        fn whatever_comes_stays_within_the_bound(value in "\\PC{0,40}", status in 100u16..600) {
            let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) else { return Ok(()) };
            let mut headers = HeaderMap::new();
            for name in ["retry-after", "ratelimit", "x-ratelimit-reset", "ratelimit-reset"] {
                headers.insert(name, value.clone());
            }
            headers.insert("x-ratelimit-remaining", HeaderValue::from_static("0"));
            if let Some(told) = pace(&headers, status, || NOW, HEED) {
                for wait in [told.retry_after, told.pause, told.reset].into_iter().flatten() {
                    prop_assert!(wait <= HOUR);
                }
            }
        }

        #[test]
        fn seconds_come_back_as_they_were_sent(s in 0u64..3600) {
            let text = s.to_string();
            let told = read(429, &[("retry-after", text.as_str())]).unwrap();
            prop_assert_eq!(told.retry_after, Some(Duration::from_secs(s)));
            let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(NOW.secs() + s));
            let told = read(429, &[("retry-after", date.as_str())]).unwrap();
            prop_assert_eq!(told.retry_after, Some(Duration::from_secs(s)));
        }
    }
}
