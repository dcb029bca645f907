//! Heads of answers that the HTTP parser refuses: too long, too many fields, a version in small letters, a field
//! with a zero byte. Pure.
//!
//! The status line of such an answer says what it says, and where no rule looks at the body it decides. What frames
//! the body must be beyond doubt all the same: two lengths that differ may be two answers, and which of them is
//! this request's is not known. The body is never read, and the connection never used again.

use super::connection::{HEAD, MANY_FIELDS};
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};

/// A head, as far as it can be read.
#[derive(Debug, PartialEq)]
pub(super) struct Odd {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    /// What is odd about it.
    pub(super) why: String,
}

/// Reads the head that `bytes` begin with.
///
/// # Errors
/// In words, what cannot be read: there is no status then.
pub(super) fn read(mut bytes: &[u8]) -> Result<Odd, String> {
    let all = bytes.len();
    // Informational answers before it are passed over.
    for _ in 0..16 {
        let status = status(next_line(&mut bytes).ok_or("no status line")?)?;
        let (headers, why) = fields(&mut bytes, all)?;
        match status {
            101 | 200..=599 => return Ok(Odd { status, headers, why }),
            100..=199 => {}
            other => return Err(format!("{other} is no status")),
        }
    }
    Err("more than 16 informational answers".to_owned())
}

/// The next line, without its end; none where no end has come.
fn next_line<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = memchr::memchr(b'\n', bytes)?;
    let line = &bytes[..end];
    *bytes = &bytes[end + 1..];
    Some(line.strip_suffix(b"\r").unwrap_or(line))
}

fn status(line: &[u8]) -> Result<u16, String> {
    let text = line.get(..line.len().min(12)).unwrap_or_default();
    let version = text.get(..7).is_some_and(|v| v.eq_ignore_ascii_case(b"HTTP/1."));
    let digits = text.get(9..12).filter(|_| text.get(8) == Some(&b' '));
    let ends = !line.get(12).is_some_and(u8::is_ascii_alphanumeric);
    let number = digits.and_then(|d| std::str::from_utf8(d).ok()?.parse().ok());
    number
        .filter(|_| version && ends)
        .ok_or_else(|| "the status line cannot be read".to_owned())
}

fn fields(bytes: &mut &[u8], all: usize) -> Result<(HeaderMap, String), String> {
    let mut headers = HeaderMap::new();
    let mut why = None;
    let mut count = 0_usize;
    loop {
        let Some(line) = next_line(bytes) else {
            if all < HEAD {
                return Err(why.unwrap_or_else(|| "the head has no end".to_owned()));
            }
            why = Some(format!("its head is longer than {} KiB", HEAD / 1024));
            break;
        };
        if line.is_empty() {
            break;
        }
        count += 1;
        let name = line.split(|b| *b == b':').next().unwrap_or_default().trim_ascii();
        let value = line.get(name.len() + 1..).unwrap_or_default().trim_ascii();
        // A folded line belongs to the value before, which nobody needs.
        if line[0] == b' ' || line[0] == b'\t' || count > MANY_FIELDS {
            continue;
        }
        match (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            (Ok(name), Ok(value)) => {
                headers.append(name, value);
            }
            _ => {
                let shown = String::from_utf8_lossy(&name[..name.len().min(40)]);
                why.get_or_insert_with(|| format!("its field `{}` cannot be read", shown.escape_debug()));
            }
        }
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter().map(HeaderValue::as_bytes);
    if let Some(first) = lengths.next()
        && (!first.iter().all(u8::is_ascii_digit) || lengths.any(|other| other != first))
    {
        return Err("its field `content-length` is no one number".to_owned());
    }
    let many = || format!("its head has {count} fields");
    Ok((headers, why.unwrap_or_else(many)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_line_is_read_whatever_the_fields_are() {
        for (head, status, why) in [
            (
                "HTTP/1.1 200 OK\r\nx: a\0b\r\nok: 1\r\n\r\nrest",
                200,
                "its field `x` cannot be read",
            ),
            ("http/1.1 404 Not Found\r\n\r\n", 404, "its head has 0 fields"),
            (
                "HTTP/1.1 103 Hints\nlink: x\n\nHTTP/1.0 503\nX N\u{e4}me: v\n\n",
                503,
                "its field `X N\u{e4}me` cannot be read",
            ),
        ] {
            let odd = read(head.as_bytes()).unwrap();
            assert_eq!((odd.status, odd.why.as_str()), (status, why), "{head:?}");
        }
        let odd = read(b"HTTP/1.1 200 OK\r\nx: a\0b\r\nok: 1\r\n\r\n").unwrap();
        assert_eq!(odd.headers.get("ok").unwrap(), "1");
        let long = format!("HTTP/1.1 422 No\r\nx: {}", "y".repeat(HEAD));
        assert_eq!(
            read(long.as_bytes()).unwrap().why,
            "its head is longer than 256 KiB"
        );
        let many = format!("HTTP/1.1 422 No\r\n{}\r\n", "x: y\r\n".repeat(50_000));
        assert_eq!(read(many.as_bytes()).unwrap().headers.len(), MANY_FIELDS);
    }

    #[test]
    fn what_frames_the_body_must_be_one() {
        for head in [
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\n",
        ] {
            assert_eq!(
                read(head.as_bytes()).unwrap_err(),
                "its field `content-length` is no one number"
            );
        }
    }

    #[test]
    fn what_is_no_answer_has_no_status() {
        for head in [
            "",
            "SSH-2.0-OpenSSH\r\n\r\n",
            "HTTP/1.1 abc\r\n\r\n",
            "HTTP/1.1 2000 OK\r\n\r\n",
            "HTTP/1.1 700 Odd\r\n\r\n",
            "HTTP/2 200\r\n\r\n",
            "HTTP/1.1 200 OK\r\nx: \0",
            "HTTP/1.1 200 OK\r\nx: \0\r\n",
        ] {
            assert!(read(head.as_bytes()).is_err(), "{head:?}");
        }
    }
}
