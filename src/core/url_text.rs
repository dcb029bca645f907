//! From the parts of a URL template to a URL: what a record says stays in the place that the template gives it. Pure.
//!
//! | where a value is | what it may be |
//! |---|---|
//! | the beginning: `{{ value }}`, `{{ value.base }}/x` | a URL, or the beginning of one: taken as it is |
//! | user name or password | anything; percent-encoded whole |
//! | (a part of) the host name, the port | the characters of a host name; digits |
//! | right after the host: `http://h{{ value.path }}` | nothing, or path and query: begins with `/`, `?` or `#` |
//! | in the path | one segment, or a part of one: `/`, `\`, `?` and `#` are percent-encoded; with `\| path` it keeps its slashes |
//! | in the query | anything; `#` is percent-encoded |
//!
//! A segment that a value makes `.` or `..`, in any spelling, is refused: there is no way to write it that servers do
//! not take for a step up. Texts from the configuration (literals, secrets) are the operator's own and free in the path.

use std::borrow::Cow;

/// A part of a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// Text of the template.
    Literal(&'a str),
    /// What the record, or a secret, says.
    Value(&'a str, Made),
}

/// How a value was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// As it stands in the record.
    Plain,
    /// By `| urlencode`.
    Encoded,
    /// By `| path`.
    Path,
    /// A secret as it stands.
    Secret,
}

/// Why parts make no URL. The texts show nothing of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A value would make another host than the template says.
    #[error("a value in the host name is empty or holds other characters than a host name has")]
    Host,
    /// A value in the place of the port.
    #[error("a value in the place of the port is not a number")]
    Port,
    /// A value right after the host.
    #[error("a value right after the host does not begin with `/`, `?` or `#`, so it would change the host")]
    AfterHost,
    /// A value in the scheme.
    #[error("a value in the scheme holds other characters than a scheme has")]
    Scheme,
    /// A segment of dots.
    #[error("a value makes a segment of the path `.` or `..`, which would lead to another path")]
    Dots,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Scheme,
    Authority,
    Path,
    Query,
    Fragment,
}

struct Assembly {
    out: String,
    at: At,
    /// Where the authority begins, without user name and password.
    host: usize,
    /// Where the last segment of the path begins, and whether a value is in it.
    segment: usize,
    by_value: bool,
}

/// Puts the parts together.
///
/// # Errors
/// [`Fault`].
pub fn assemble(parts: &[Part<'_>]) -> Result<String, Fault> {
    let mut a = Assembly {
        out: String::new(),
        at: At::Scheme,
        host: 0,
        segment: 0,
        by_value: false,
    };
    for (i, part) in parts.iter().enumerate() {
        match *part {
            Part::Literal(text) => a.free(text, false)?,
            Part::Value(text, made) => a.value(text, made, &parts[i + 1..])?,
        }
    }
    if a.at == At::Path {
        a.end_segment()?;
    }
    Ok(a.out)
}

impl Assembly {
    /// Text that decides where it is by itself.
    fn free(&mut self, text: &str, by_value: bool) -> Result<(), Fault> {
        for c in text.chars() {
            match (self.at, c) {
                (At::Authority | At::Path, '?') => {
                    self.leave_path()?;
                    self.at = At::Query;
                }
                (At::Authority | At::Path | At::Query, '#') => {
                    self.leave_path()?;
                    self.at = At::Fragment;
                }
                (At::Authority, '@') => self.host = self.out.len() + 1,
                (At::Authority | At::Path, '/') => {
                    self.leave_path()?;
                    self.at = At::Path;
                    self.out.push('/');
                    (self.segment, self.by_value) = (self.out.len(), false);
                    continue;
                }
                (At::Path, _) => self.by_value |= by_value,
                _ => {}
            }
            self.out.push(c);
            if self.at == At::Scheme && self.out.ends_with("://") {
                self.at = At::Authority;
                self.host = self.out.len();
            }
        }
        Ok(())
    }

    fn leave_path(&mut self) -> Result<(), Fault> {
        match self.at {
            At::Path => self.end_segment(),
            _ => Ok(()),
        }
    }

    fn end_segment(&mut self) -> Result<(), Fault> {
        match self.by_value && is_dots(&self.out[self.segment..]) {
            true => Err(Fault::Dots),
            false => Ok(()),
        }
    }

    fn value(&mut self, text: &str, made: Made, rest: &[Part<'_>]) -> Result<(), Fault> {
        match self.at {
            At::Scheme if self.out.is_empty() => self.free(text, false),
            At::Scheme => {
                let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
                match text.chars().all(fits) {
                    true => self.free(text, false),
                    false => Err(Fault::Scheme),
                }
            }
            At::Authority => self.in_authority(text, made, rest),
            At::Path if made == Made::Secret => self.free(text, false),
            At::Path if made == Made::Path => {
                // Its slashes are segments; the filter has encoded all else.
                self.free(&text.replace(['?', '#', '\\'], "_"), true)
            }
            At::Path => {
                self.by_value |= !text.is_empty();
                for c in text.chars() {
                    match c {
                        '/' => self.out.push_str("%2F"),
                        '\\' => self.out.push_str("%5C"),
                        '?' => self.out.push_str("%3F"),
                        '#' => self.out.push_str("%23"),
                        c => self.out.push(c),
                    }
                }
                Ok(())
            }
            At::Query => {
                self.out.push_str(&text.replace('#', "%23"));
                Ok(())
            }
            At::Fragment => {
                self.out.push_str(text);
                Ok(())
            }
        }
    }

    fn in_authority(&mut self, text: &str, made: Made, rest: &[Part<'_>]) -> Result<(), Fault> {
        if user_info_follows(rest) {
            match made {
                Made::Encoded => self.out.push_str(text),
                _ => self.out.push_str(&percent_encoded(text)),
            }
            return Ok(());
        }
        // What comes after it: none where another value does, which may be anything.
        let next = match rest.iter().find(|p| !matches!(p, Part::Literal(""))) {
            None => Some('/'),
            Some(Part::Literal(text)) => text.chars().next(),
            Some(Part::Value(..)) => None,
        };
        let ends = matches!(next, Some('/' | '?' | '#'));
        let before = &self.out[self.host..];
        if before.ends_with(':') && !before.starts_with('[') || before.ends_with("]:") {
            if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
                return Err(Fault::Port);
            }
        } else if before.is_empty() || !ends {
            let fits = |c: char| {
                c.is_ascii_alphanumeric()
                    || matches!(c, '.' | '-' | '_')
                    || !c.is_ascii()
                    || (ends && matches!(c, ':' | '[' | ']'))
            };
            if (before.is_empty() && text.is_empty()) || !text.chars().all(fits) {
                return Err(Fault::Host);
            }
        } else if !text.is_empty() && !text.starts_with(['/', '?', '#']) {
            return Err(Fault::AfterHost);
        } else {
            return self.free(text, made != Made::Secret);
        }
        self.out.push_str(text);
        Ok(())
    }
}

/// Whether the authority has an `@` still to come.
fn user_info_follows(rest: &[Part<'_>]) -> bool {
    for part in rest {
        if let Part::Literal(text) = part {
            match text.find(['@', '/', '?', '#']) {
                Some(at) => return text[at..].starts_with('@'),
                None => continue,
            }
        }
    }
    false
}

/// Whether servers take a segment for "here" or "one up": dots, written or encoded, also with parameters behind them.
fn is_dots(segment: &str) -> bool {
    let plain = segment
        .to_ascii_lowercase()
        .replace("%2e", ".")
        .replace("%3b", ";");
    let name = plain.split(';').next().unwrap_or_default();
    name == "." || name == ".."
}

/// Every byte percent-encoded that is not unreserved (RFC 3986, 2.3): safe anywhere in a URL.
pub fn percent_encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, KEEP_UNRESERVED).to_string()
}

/// The same for a path: its slashes stay.
pub fn path_encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, KEEP_PATH).to_string()
}

const KEEP_UNRESERVED: &percent_encoding::AsciiSet = &percent_encoding::NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
const KEEP_PATH: &percent_encoding::AsciiSet = &KEEP_UNRESERVED.remove(b'/');

/// Path and query as they go over the wire, from all that stands after the authority. What RFC 3986 allows goes byte
/// for byte: a URL that was signed keeps its signature. The fragment stays here. The rest (beyond ASCII, and
/// `"<>\^`{|}`) is percent-encoded.
pub fn path_and_query(after_host: &str) -> Cow<'_, str> {
    let end = after_host.find('#').unwrap_or(after_host.len());
    let text = &after_host[..end];
    let legal = |b: u8| {
        b.is_ascii_alphanumeric()
            || matches!(
                b,
                b'-' | b'.'
                    | b'_'
                    | b'~'
                    | b'!'
                    | b'$'
                    | b'&'
                    | b'\''
                    | b'('
                    | b')'
                    | b'*'
                    | b'+'
                    | b','
                    | b';'
                    | b'='
                    | b':'
                    | b'@'
                    | b'/'
                    | b'?'
                    | b'%'
                    | b'['
                    | b']'
            )
    };
    if text.starts_with('/') && text.bytes().all(legal) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    if !text.starts_with('/') {
        out.push('/');
    }
    for b in text.bytes() {
        if legal(b) {
            out.push(b as char);
        } else {
            out.push_str(percent_encoding::percent_encode_byte(b));
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Part::{Literal, Value};
    use proptest::prelude::*;

    fn made(before: &str, value: &str, made: Made, after: &str) -> Result<String, Fault> {
        let text = match made {
            Made::Encoded => percent_encoded(value),
            Made::Path => path_encoded(value),
            _ => value.to_owned(),
        };
        assemble(&[Literal(before), Value(&text, made), Literal(after)])
    }

    /// The inputs that left their segment, their path and their host.
    #[test]
    fn a_value_stays_in_its_segment() {
        let users = "http://h/v1/users/";
        for (value, encoded, plain) in [
            (
                "../../admin/delete?",
                Ok("..%2F..%2Fadmin%2Fdelete%3F"),
                Ok("..%2F..%2Fadmin%2Fdelete%3F"),
            ),
            ("..", Err(Fault::Dots), Err(Fault::Dots)),
            (".", Err(Fault::Dots), Err(Fault::Dots)),
            ("a/b", Ok("a%2Fb"), Ok("a%2Fb")),
            ("..;/admin", Err(Fault::Dots), Err(Fault::Dots)),
            (
                "//evil.example/x",
                Ok("%2F%2Fevil.example%2Fx"),
                Ok("%2F%2Fevil.example%2Fx"),
            ),
            ("%2e%2E", Ok("%252e%252E"), Err(Fault::Dots)),
            ("..\\admin", Ok("..%5Cadmin"), Ok("..%5Cadmin")),
            ("a#b?c=d&e", Ok("a%23b%3Fc%3Dd%26e"), Ok("a%23b%3Fc=d&e")),
            ("...", Ok("..."), Ok("...")),
            ("a..b", Ok("a..b"), Ok("a..b")),
            ("", Ok(""), Ok("")),
        ] {
            for (how, want) in [(Made::Encoded, encoded), (Made::Plain, plain)] {
                let all = |tail: &str| want.map(|w| format!("{users}{w}{tail}"));
                assert_eq!(
                    made(users, value, how, "/events"),
                    all("/events"),
                    "{value} {how:?}"
                );
                assert_eq!(made(users, value, how, ""), all(""), "{value} at the end");
                assert_eq!(
                    made(users, value, how, "?v=1"),
                    all("?v=1"),
                    "{value} before a query"
                );
            }
        }
        // Put together from halves, or with a literal.
        assert_eq!(
            assemble(&[
                Literal("http://h/"),
                Value(".", Made::Plain),
                Value(".", Made::Encoded),
                Literal("/x")
            ]),
            Err(Fault::Dots)
        );
        assert_eq!(made("http://h/.", ".", Made::Plain, "/x"), Err(Fault::Dots));
        // The operator's own dots are theirs.
        assert_eq!(
            made("http://h/a/../", "x", Made::Plain, "").as_deref(),
            Ok("http://h/a/../x")
        );
    }

    #[test]
    fn a_path_keeps_its_slashes_and_no_steps_up() {
        let path = |value| made("http://h/files/", value, Made::Path, "?v=1");
        assert_eq!(path("a b/c?d").as_deref(), Ok("http://h/files/a%20b/c%3Fd?v=1"));
        assert_eq!(path("a/../../b"), Err(Fault::Dots));
        assert_eq!(path(".."), Err(Fault::Dots));
        // An operator's secret may hold a path: a web hook's address is one.
        assert_eq!(
            made("http://h/", "T0/B0/xyz", Made::Secret, "").as_deref(),
            Ok("http://h/T0/B0/xyz")
        );
    }

    #[test]
    fn a_value_never_changes_the_host() {
        let after = |value| made("http://127.0.0.1:80", value, Made::Plain, "");
        assert_eq!(after("@127.0.0.1:28572/x"), Err(Fault::AfterHost));
        assert_eq!(after(".evil.example/"), Err(Fault::AfterHost));
        assert_eq!(after("0"), Err(Fault::AfterHost));
        assert_eq!(after("/a/b?x=1").as_deref(), Ok("http://127.0.0.1:80/a/b?x=1"));
        assert_eq!(after("").as_deref(), Ok("http://127.0.0.1:80"));
        assert_eq!(after("/../x"), Err(Fault::Dots));
        let host = |value| made("http://", value, Made::Plain, ".example/x");
        assert_eq!(host("eu-1").as_deref(), Ok("http://eu-1.example/x"));
        for evil in ["evil.net/", "evil.net#", "a@evil.net:80", "evil.net?", "a\\b", ""] {
            assert_eq!(host(evil), Err(Fault::Host), "{evil}");
        }
        let whole = |value| made("http://", value, Made::Plain, "/x");
        assert_eq!(whole("[::1]:80").as_deref(), Ok("http://[::1]:80/x"));
        assert_eq!(whole("h:81").as_deref(), Ok("http://h:81/x"));
        assert_eq!(whole(""), Err(Fault::Host), "the path would become the host");
        let shard = |value| made("http://api", value, Made::Plain, ".example/x");
        assert_eq!(shard("7").as_deref(), Ok("http://api7.example/x"));
        assert_eq!(shard("/x"), Err(Fault::Host));
        let port = |value| made("http://h:", value, Made::Plain, "/x");
        assert_eq!(port("80").as_deref(), Ok("http://h:80/x"));
        assert_eq!(port("80@evil"), Err(Fault::Port));
        assert_eq!(
            assemble(&[Value("ht/tp", Made::Plain), Literal("s://h/")]).as_deref(),
            Ok("ht/tps://h/")
        );
    }

    #[test]
    fn user_names_and_passwords_are_encoded_whole() {
        for how in [Made::Secret, Made::Encoded, Made::Plain] {
            assert_eq!(
                made("http://user:", "p/a@s:s%41?#", how, "@h/x").as_deref(),
                Ok("http://user:p%2Fa%40s%3As%2541%3F%23@h/x"),
                "{how:?}"
            );
        }
        assert_eq!(
            assemble(&[
                Literal("http://"),
                Value("u:", Made::Plain),
                Literal(":"),
                Value("p", Made::Secret),
                Literal("@h/")
            ])
            .as_deref(),
            Ok("http://u%3A:p@h/")
        );
    }

    #[test]
    fn a_url_of_the_record_is_taken_as_it_is() {
        let url = "https://h/a/../b?x='{}'&s=%2e%2e#f";
        assert_eq!(assemble(&[Value(url, Made::Plain)]).as_deref(), Ok(url));
        assert_eq!(
            assemble(&[
                Value("http://h", Made::Plain),
                Literal("/v1/"),
                Value("a/b", Made::Plain)
            ])
            .as_deref(),
            Ok("http://h/v1/a%2Fb")
        );
        let query = |v| made("http://h/x?u=", v, Made::Plain, "&k=1");
        assert_eq!(query("../a#b&c").as_deref(), Ok("http://h/x?u=../a%23b&c&k=1"));
    }

    /// Presigned URLs: what is legal is not touched.
    #[test]
    fn legal_paths_go_byte_for_byte() {
        for same in [
            "/b/key?X-Amz-Signature=ab%2Fcd&x='a'&y=(1)*!,;:@$",
            "/a/%2e%2e/../b//c/./d",
            "/%zz%",
            "/a?b?c/d",
            "/%e4%E4",
            "/a[0]?x[]=1",
        ] {
            assert_eq!(path_and_query(same), same);
        }
        for (text, want) in [
            ("", "/"),
            ("?a=1", "/?a=1"),
            ("/a#frag?x", "/a"),
            ("#f", "/"),
            ("/{a}|b\\c^`\"<>", "/%7Ba%7D%7Cb%5Cc%5E%60%22%3C%3E"),
            ("/ä", "/%C3%A4"),
        ] {
            assert_eq!(path_and_query(text), want, "{text}");
        }
    }

    proptest! {
        /// Whatever a record says: host and number of segments are those of the template.
        #[test]
        fn values_stay_where_they_are(u in "\\PC{0,12}", q in "\\PC{0,12}", how in 0u8..2) {
            let how = if how == 0 { Made::Plain } else { Made::Encoded };
            let (ut, qt) = match how {
                Made::Encoded => (percent_encoded(&u), percent_encoded(&q)),
                _ => (u.clone(), q.clone()),
            };
            let parts = [
                Literal("http://h.example:81/v1/"), Value(&ut, how), Literal("/events?q="), Value(&qt, how),
            ];
            if let Ok(text) = assemble(&parts) {
                prop_assume!(!text.contains(char::is_whitespace));
                let url = url::Url::parse(&text).unwrap();
                prop_assert_eq!(url.host_str(), Some("h.example"));
                prop_assert_eq!(url.port(), Some(81));
                let segments: Vec<_> = url.path_segments().unwrap().collect();
                prop_assert_eq!((segments[0], segments.len(), segments[2]), ("v1", 3, "events"));
                prop_assert!(url.query().unwrap().starts_with("q=") && url.fragment().is_none());
            } else {
                prop_assert!(is_dots(&ut));
            }
        }
    }
}
