//! URLs, taken apart and checked once.

use crate::core::mask::{base64, percent_decode};
use crate::core::url_text::path_and_query;
use http::HeaderValue;
use http::uri::{PathAndQuery, Uri};
use std::net::IpAddr;
use std::rc::Rc;
use url::{Host, Url};

/// Scheme, host and port: what connections are shared by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Origin {
    /// TLS or not.
    pub(super) https: bool,
    /// Name or address, without brackets.
    pub(super) host: String,
    /// Set where the host is an address.
    pub(super) address: Option<IpAddr>,
    /// The port, the scheme's own included.
    pub(super) port: u16,
}

/// A URL as requests need it.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) origin: Rc<Origin>,
    /// Path and query.
    pub(super) path: Uri,
    /// Value of the `host` header.
    pub(super) host: HeaderValue,
    /// `authorization`, where the URL carries a user name.
    pub(super) basic: Option<HeaderValue>,
}

/// Why a text is no URL that can be requested. The text itself is not in it: it may hold secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum UrlError {
    #[error("the URL is empty")]
    Empty,
    #[error("the URL holds a control character or a space at byte {0}")]
    Character(usize),
    #[error("the URL cannot be read: {0}")]
    Parse(String),
    #[error("the URL begins with {0}:, expected http: or https:")]
    Scheme(String),
    #[error("the URL names no host")]
    Host,
    #[error("the URL does not go on with `//` behind its scheme, or has a backslash in its host")]
    Form,
    #[error("the URL is longer than {} bytes", MAX_URL)]
    Long,
}

/// No server is known to take longer ones.
const MAX_URL: usize = 60_000;

impl Target {
    /// Takes a URL apart. Spaces around it are dropped; control characters within are refused, since parsers that
    /// drop them silently (tabs, line ends) make another request of it than was written.
    pub(super) fn parse(text: &str) -> Result<Self, UrlError> {
        let text = text.trim_matches([' ', '\t', '\r', '\n']);
        if text.is_empty() {
            return Err(UrlError::Empty);
        }
        if text.len() > MAX_URL {
            return Err(UrlError::Long);
        }
        if let Some(at) = text.bytes().position(|b| b <= b' ' || b == 0x7f) {
            return Err(UrlError::Character(at));
        }
        // The parser gets scheme and authority only: path and query go as they are written, where that is legal.
        let host_at = text.find("://").map_or(0, |at| at + 3);
        let path_at = text[host_at..]
            .find(['/', '?', '#', '\\'])
            .filter(|_| host_at > 0)
            .map_or(text.len(), |at| host_at + at);
        let url = Url::parse(&text[..path_at]).map_err(|e| UrlError::Parse(e.to_string()))?;
        let https = match url.scheme() {
            "https" => true,
            "http" => false,
            other => return Err(UrlError::Scheme(other.chars().take(20).collect())),
        };
        let (host, address) = match url.host() {
            Some(Host::Domain(name)) => (name.to_owned(), None),
            Some(Host::Ipv4(ip)) => (ip.to_string(), Some(IpAddr::V4(ip))),
            Some(Host::Ipv6(ip)) => (ip.to_string(), Some(IpAddr::V6(ip))),
            None => return Err(UrlError::Host),
        };
        if host.is_empty() {
            return Err(UrlError::Host);
        }
        if host_at == 0 || text[path_at..].starts_with('\\') {
            return Err(UrlError::Form);
        }
        let port = url.port_or_known_default().ok_or(UrlError::Host)?;
        let path = path_and_query(&text[path_at..]).into_owned();
        let path = PathAndQuery::from_maybe_shared(bytes::Bytes::from(path))
            .map_err(|e| UrlError::Parse(e.to_string()))?;
        let shown = url.host_str().unwrap_or_default();
        let host_header = match url.port() {
            Some(port) => HeaderValue::try_from(format!("{shown}:{port}")),
            None => HeaderValue::from_str(shown),
        };
        let basic = (!url.username().is_empty() || url.password().is_some()).then(|| {
            let password = percent_decode(url.password().unwrap_or_default());
            let pair = format!("{}:{password}", percent_decode(url.username()));
            let mut value = HeaderValue::try_from(format!("Basic {}", base64(pair.as_bytes())))
                .expect("base64 is made of visible characters");
            value.set_sensitive(true);
            value
        });
        Ok(Self {
            origin: Rc::new(Origin {
                https,
                host,
                address,
                port,
            }),
            path: Uri::from(path),
            host: host_header.map_err(|_| UrlError::Host)?,
            basic,
        })
    }
}

impl Origin {
    /// `https://host:port`
    pub(super) fn url(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        match self.address {
            Some(IpAddr::V6(ip)) => format!("{scheme}://[{ip}]:{}", self.port),
            _ => format!("{scheme}://{}:{}", self.host, self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart() {
        let t = Target::parse(" https://user:p%40ss@Example.com/a/b?x=1#frag\n").unwrap();
        assert_eq!(
            (t.origin.https, t.origin.host.as_str(), t.origin.port),
            (true, "example.com", 443)
        );
        assert_eq!(t.path.to_string(), "/a/b?x=1");
        assert_eq!(t.host, "example.com");
        assert_eq!(t.basic.unwrap(), "Basic dXNlcjpwQHNz");
        let t = Target::parse("http://[::1]:8080").unwrap();
        assert_eq!(
            (t.origin.host.as_str(), t.host.to_str().unwrap()),
            ("::1", "[::1]:8080")
        );
        assert_eq!(t.origin.url(), "http://[::1]:8080");
        assert_eq!(t.path.to_string(), "/");
    }

    /// A signature covers path and query as they are written.
    #[test]
    fn what_is_legal_goes_byte_for_byte() {
        for (text, path) in [
            (
                "http://h/a/%2e%2e/../b?sig='(x)'&k={1}#f",
                "/a/%2e%2e/../b?sig='(x)'&k=%7B1%7D",
            ),
            ("http://h?x=1", "/?x=1"),
            ("http://h", "/"),
            ("http://h#f", "/"),
            ("http://h//a//b\\c", "//a//b%5Cc"),
        ] {
            assert_eq!(Target::parse(text).unwrap().path.to_string(), path, "{text}");
        }
        for text in ["http://h\\x", "http:h/x", "http:/h"] {
            assert_eq!(Target::parse(text).unwrap_err(), UrlError::Form, "{text}");
        }
    }

    #[test]
    fn what_is_no_url_is_refused_without_being_shown() {
        for (text, want) in [
            ("", UrlError::Empty),
            ("http://a/b c", UrlError::Character(10)),
            ("http://a/\r\nhost: evil", UrlError::Character(9)),
            ("ftp://a/", UrlError::Scheme("ftp".into())),
            ("javascript:alert(1)", UrlError::Scheme("javascript".into())),
        ] {
            assert_eq!(Target::parse(text).unwrap_err(), want, "{text:?}");
        }
        assert!(matches!(Target::parse("http://"), Err(UrlError::Parse(_))));
        assert!(matches!(
            Target::parse("not a url".replace(' ', "").as_str()),
            Err(UrlError::Parse(_))
        ));
    }

    #[test]
    fn base64_matches_the_standard() {
        for (plain, want) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), want);
        }
    }
}
