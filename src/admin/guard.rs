//! Who may ask. Pure: headers in, yes or a reason out.
//!
//! Three dangers. A stranger on the network: a token is required on every address but loopback. A page in the
//! operator's browser that has its own name resolve to 127.0.0.1 (DNS rebinding): without a token the `Host` must
//! be one of ours. A page that posts a form to 127.0.0.1 (cross-site request): an `Origin` must be our own, and
//! writes must carry a content type that no form can send.

use crate::api::ApiError;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, ORIGIN};
use http::{HeaderMap, Method, Uri};
use std::net::{IpAddr, SocketAddr};

/// What a port asks of its callers.
#[derive(Clone)]
pub(super) struct Guard {
    listen: SocketAddr,
    token: Option<String>,
}

/// Whether it is clear for which host a request is (RFC 9112 3.2): one `Host` at most, and none other than that of an
/// absolute target.
pub(super) fn one_host(target: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(ApiError::Invalid(
            "the request has more than one Host header".into(),
        ));
    }
    let same = |authority: &http::uri::Authority| {
        host.is_some_and(|host| {
            host.as_bytes()
                .eq_ignore_ascii_case(authority.as_str().as_bytes())
        })
    };
    match target.authority() {
        Some(authority) if !same(authority) => Err(ApiError::Invalid(
            "the request's target names another host than its Host header".into(),
        )),
        _ => Ok(()),
    }
}

/// How a caller may show the token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Credentials {
    /// `Authorization: Bearer` only.
    Bearer,
    /// Also as the password of Basic: what a browser can ask its user for. Only for reading, as browsers send it by
    /// themselves.
    BearerOrBasic,
}

impl Guard {
    pub(super) fn new(listen: SocketAddr, token: Option<String>) -> Self {
        Self { listen, token }
    }

    /// Whether this request may pass.
    pub(super) fn check(
        &self,
        method: &Method,
        target: &Uri,
        headers: &HeaderMap,
        credentials: Credentials,
    ) -> Result<(), ApiError> {
        one_host(target, headers)?;
        let text = |name| {
            headers
                .get(name)
                .and_then(|v: &http::HeaderValue| v.to_str().ok())
        };
        let host = text(HOST);
        match &self.token {
            Some(token) => {
                let shown = text(AUTHORIZATION).and_then(|value| shown(value, credentials));
                if !shown.is_some_and(|shown| same(shown.as_bytes(), token.as_bytes())) {
                    return Err(ApiError::Unauthorized);
                }
            }
            None => {
                if !host.is_some_and(|host| self.is_ours(host)) {
                    return Err(ApiError::Forbidden(
                        "the Host header names another machine; ask by address, or set listen.token".into(),
                    ));
                }
            }
        }
        if let Some(origin) = text(ORIGIN) {
            let own = origin.split_once("://").map(|(_, authority)| authority);
            if own.is_none() || own != host {
                return Err(ApiError::Forbidden(
                    "requests from pages of another origin are refused".into(),
                ));
            }
        }
        if !matches!(*method, Method::GET | Method::HEAD) {
            let kind = text(CONTENT_TYPE).map_or("", |t| t.split(';').next().unwrap_or(t).trim());
            if !["application/json", "application/octet-stream"].contains(&kind) {
                return Err(ApiError::Invalid(
                    "the content type must be application/json, or application/octet-stream for files".into(),
                ));
            }
        }
        Ok(())
    }

    fn is_ours(&self, host: &str) -> bool {
        let name = match host.rsplit_once(':') {
            // The last colon of a bare IPv6 address is not one before a port.
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => name,
            _ => host,
        };
        let name = name.trim_start_matches('[').trim_end_matches(']');
        name.eq_ignore_ascii_case("localhost")
            || name
                .parse::<IpAddr>()
                .is_ok_and(|ip| ip.is_loopback() || ip == self.listen.ip())
    }
}

fn shown(value: &str, credentials: Credentials) -> Option<String> {
    let (scheme, rest) = value.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().to_owned());
    }
    if scheme.eq_ignore_ascii_case("basic") && credentials == Credentials::BearerOrBasic {
        let pair = String::from_utf8(base64(rest.trim())?).ok()?;
        return pair.split_once(':').map(|(_, password)| password.to_owned());
    }
    None
}

/// Compares in a time that depends on the lengths alone, so that a token cannot be guessed byte by byte.
fn same(a: &[u8], b: &[u8]) -> bool {
    // Hashes of both are of one length: nothing is told about the token's own.
    let (a, b) = (blake3::hash(a), blake3::hash(b));
    a.as_bytes()
        .iter()
        .zip(b.as_bytes())
        .fold(0u8, |different, (x, y)| different | (x ^ y))
        == 0
}

/// Decodes standard base64, padded or not.
fn base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut have) = (0u32, 0u32);
    for byte in text.trim_end_matches('=').bytes() {
        let six = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(six);
        have += 6;
        if have >= 8 {
            have -= 8;
            out.push((bits >> have) as u8);
            bits &= (1 << have) - 1;
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(http::HeaderName, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(n, v)| (n.clone(), v.parse().unwrap()))
            .collect()
    }
    fn guard(token: Option<&str>) -> Guard {
        Guard::new("127.0.0.1:7070".parse().unwrap(), token.map(str::to_owned))
    }
    fn get(guard: &Guard, pairs: &[(http::HeaderName, &str)]) -> Result<(), ApiError> {
        let target = Uri::from_static("/api/status");
        guard.check(&Method::GET, &target, &headers(pairs), Credentials::BearerOrBasic)
    }

    #[test]
    fn without_a_token_only_our_own_names_pass() {
        let open = guard(None);
        for host in [
            "127.0.0.1:7070",
            "localhost:7070",
            "LOCALHOST",
            "[::1]:7070",
            "127.0.0.1",
        ] {
            assert_eq!(get(&open, &[(HOST, host)]), Ok(()), "{host}");
        }
        for host in ["evil.example:7070", "127.0.0.1.evil.example", "10.0.0.7:7070", ""] {
            assert!(get(&open, &[(HOST, host)]).is_err(), "{host}");
        }
        assert!(get(&open, &[]).is_err());
    }

    #[test]
    fn a_request_is_for_one_host() {
        let one = headers(&[(HOST, "127.0.0.1:7070")]);
        let mut two = one.clone();
        two.append(HOST, "evil.example".parse().unwrap());
        assert_eq!(one_host(&Uri::from_static("/api/status"), &one), Ok(()));
        assert!(one_host(&Uri::from_static("/api/status"), &two).is_err());
        let absolute = |text: &'static str| one_host(&Uri::from_static(text), &one);
        assert_eq!(absolute("http://127.0.0.1:7070/api/status"), Ok(()));
        assert!(absolute("http://evil.example/api/status").is_err());
        assert!(one_host(&Uri::from_static("http://127.0.0.1:7070/"), &HeaderMap::new()).is_err());
    }

    #[test]
    fn a_token_is_asked_for_and_compared_whole() {
        let closed = guard(Some("s3cret"));
        let with = |value| get(&closed, &[(HOST, "node.cluster:7070"), (AUTHORIZATION, value)]);
        assert_eq!(with("Bearer s3cret"), Ok(()));
        assert_eq!(with("bearer  s3cret"), Ok(()));
        assert_eq!(with("Basic YW55OnMzY3JldA=="), Ok(()));
        for wrong in [
            "Bearer s3cre",
            "Bearer s3crett",
            "Bearer ",
            "s3cret",
            "Basic s3cret",
            "Basic YW55OnM=",
        ] {
            assert_eq!(with(wrong), Err(ApiError::Unauthorized), "{wrong}");
        }
        let write = headers(&[(AUTHORIZATION, "Basic YW55OnMzY3JldA==")]);
        assert_eq!(
            closed.check(&Method::POST, &Uri::from_static("/"), &write, Credentials::Bearer),
            Err(ApiError::Unauthorized)
        );
    }

    #[test]
    fn a_foreign_page_cannot_write() {
        let open = guard(None);
        let host = (HOST, "127.0.0.1:7070");
        let json = (CONTENT_TYPE, "application/json; charset=utf-8");
        let target = Uri::from_static("/api/order");
        let post = |pairs: &[_]| open.check(&Method::POST, &target, &headers(pairs), Credentials::Bearer);
        assert_eq!(post(&[host.clone(), json.clone()]), Ok(()));
        assert_eq!(
            post(&[host.clone(), json.clone(), (ORIGIN, "http://127.0.0.1:7070")]),
            Ok(())
        );
        assert!(post(&[host.clone(), json, (ORIGIN, "http://evil.example")]).is_err());
        assert!(post(&[host.clone(), (ORIGIN, "null"), (CONTENT_TYPE, "application/json")]).is_err());
        for form in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data",
        ] {
            assert!(post(&[host.clone(), (CONTENT_TYPE, form)]).is_err(), "{form}");
        }
        assert!(post(&[host]).is_err());
    }
}
