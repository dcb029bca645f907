//! Finds what to mask in any text: pairs of name and value in every common form, and telling forms.
//! Spans are byte ranges; they may overlap.

use super::percent_decode;

type Spans = Vec<(usize, usize)>;

/// Longest name looked at.
const LONGEST_NAME: usize = 128;

/// What stands under a telling name.
pub(super) fn named(text: &str, hides: impl Fn(&str) -> bool, spans: &mut Spans) {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let (sep, len) = match bytes[at] {
            b':' | b'=' | b'>' => (bytes[at], 1),
            b'%' => match bytes.get(at + 1..at + 3) {
                Some(b"3D" | b"3d") => (b'=', 3),
                Some(b"3A" | b"3a") => (b':', 3),
                _ => {
                    at += 1;
                    continue;
                }
            },
            _ => {
                at += 1;
                continue;
            }
        };
        let next = at + len;
        if let Some(name) = name_before(text, at, sep)
            && hides(&name)
        {
            let (start, end) = value_after(bytes, next, sep, len == 3);
            if start < end {
                spans.push((start, end));
                // What lies within is masked already.
                at = end.max(next);
                continue;
            }
        }
        at = next;
    }
}

fn is_name_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'[' | b']' | b'%') || b >= 0x80
}

/// The name that ends right before a separator.
fn name_before(text: &str, at: usize, sep: u8) -> Option<String> {
    let bytes = text.as_bytes();
    let mut end = at;
    if sep == b'>' {
        // `<name>`
        let start = run_back(bytes, end);
        let opened = start.checked_sub(1).map(|i| bytes[i]) == Some(b'<');
        return (opened && start < end).then(|| text[start..end].to_owned());
    }
    while end > 0 && matches!(bytes[end - 1], b' ' | b'\t') {
        end -= 1;
    }
    if end >= 3 && bytes[end - 3..end].eq_ignore_ascii_case(b"%22") {
        // A percent-encoded quote.
        end -= 3;
    }
    if end > 0 && matches!(bytes[end - 1], b'"' | b'\'') {
        let quote = bytes[end - 1];
        end -= 1;
        while end > 0 && bytes[end - 1] == b'\\' {
            end -= 1;
        }
        let least = end.saturating_sub(LONGEST_NAME);
        // Where the quote that opens it was cut away, the text begins within the name.
        let start = (least..end)
            .rev()
            .find(|i| bytes[*i] == quote)
            .map_or(least, |i| i + 1);
        return (start < end && text.is_char_boundary(start)).then(|| text[start..end].to_owned());
    }
    let start = run_back(bytes, end);
    if start == end || !text.is_char_boundary(start) {
        return None;
    }
    let decoded = percent_decode(&text[start..end]);
    // `%3Ftoken`: what was encoded is no part of the name, brackets aside.
    let name = decoded
        .rsplit(|c: char| c.is_ascii() && !is_name_byte(c as u8))
        .next()
        .unwrap_or_default();
    (!name.is_empty()).then(|| name.to_owned())
}

fn run_back(bytes: &[u8], end: usize) -> usize {
    let least = end.saturating_sub(LONGEST_NAME);
    let mut start = end;
    while start > least && is_name_byte(bytes[start - 1]) {
        start -= 1;
    }
    while start < end && bytes[start] & 0xc0 == 0x80 {
        start += 1;
    }
    start
}

/// Where the value behind a separator begins and ends.
fn value_after(bytes: &[u8], mut at: usize, sep: u8, encoded: bool) -> (usize, usize) {
    let blank = |at: usize| matches!(bytes.get(at), Some(b' ' | b'\t' | b'\r' | b'\n'));
    if sep == b'>' {
        let end = bytes[at..]
            .iter()
            .position(|b| *b == b'<')
            .map_or(bytes.len(), |n| at + n);
        return (at, end);
    }
    while matches!(bytes.get(at), Some(b'=' | b'>')) || blank(at) {
        at += 1;
    }
    if encoded
        && bytes
            .get(at..at + 3)
            .is_some_and(|b| b.eq_ignore_ascii_case(b"%22"))
    {
        at += 3;
    }
    let start = at;
    let mut slashes = 0;
    while bytes.get(at) == Some(&b'\\') {
        slashes += 1;
        at += 1;
    }
    match bytes.get(at) {
        Some(quote @ (b'"' | b'\'')) => {
            let inside = at + 1;
            let end = closing_quote(bytes, inside, *quote, slashes);
            // Values of other schemes behind a quoted one (`k="a"b`) do not exist; the quotes stay for the eye.
            (inside, end)
        }
        Some(b'{' | b'[') => (start, closing_bracket(bytes, at)),
        _ => (start, plain_end(bytes, start, sep)),
    }
}

/// The quote that closes, on the same level of escaping: with n backslashes before the opening one, a closing one
/// has n of each 2(n+1).
fn closing_quote(bytes: &[u8], from: usize, quote: u8, level: usize) -> usize {
    let mut run = 0;
    for (i, b) in bytes.iter().enumerate().skip(from) {
        match *b {
            b'\\' => run += 1,
            b if b == quote && run % (2 * (level + 1)) == level => return i - level,
            _ => run = 0,
        }
    }
    bytes.len()
}

fn closing_bracket(bytes: &[u8], from: usize) -> usize {
    let mut depth = 0usize;
    let mut in_text = false;
    let mut escaped = false;
    for (i, b) in bytes.iter().enumerate().skip(from) {
        match *b {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => in_text = !in_text,
            b'{' | b'[' if !in_text => depth += 1,
            b'}' | b']' if !in_text => {
                depth -= 1;
                if depth == 0 {
                    return i + 1;
                }
            }
            _ => {}
        }
    }
    bytes.len()
}

/// The end of a value without quotes. Behind `=` a space ends it; behind `:` it may be a header's, up to the line's
/// end. What says nothing (`null`, `true`) is left to be seen.
fn plain_end(bytes: &[u8], start: usize, sep: u8) -> usize {
    let ends = |b: u8| match b {
        b'&' | b'"' | b'\'' | b'<' | b'}' | b']' | b'\n' | b'\r' | b'\\' => true,
        b',' | b';' | b'#' | b')' => true,
        b' ' | b'\t' => sep == b'=',
        _ => false,
    };
    let mut end = start;
    while end < bytes.len() && !ends(bytes[end]) {
        if bytes[end..].len() >= 3 && bytes[end..end + 3].eq_ignore_ascii_case(b"%26") {
            break;
        }
        end += 1;
    }
    // Credentials have a scheme, and their value may hold what ends others: a space, a comma, an equals sign.
    let value = &bytes[start..end];
    if matches!(value, b"null" | b"true" | b"false" | b"NULL" | b"None") {
        return start;
    }
    if sep == b'=' {
        for scheme in [&b"bearer"[..], b"basic", b"digest", b"token"] {
            if value.eq_ignore_ascii_case(scheme) && bytes.get(end) == Some(&b' ') {
                return plain_end(bytes, end + 1, sep).max(end);
            }
        }
    }
    end
}

/// What gives itself away by its form.
pub(super) fn formed(text: &str, spans: &mut Spans) {
    let bytes = text.as_bytes();
    for (at, _) in text.match_indices("://") {
        userinfo(bytes, at + 3, spans);
    }
    for scheme in ["bearer", "basic"] {
        scheme_token(bytes, scheme.as_bytes(), spans);
    }
    for (at, _) in text.match_indices("eyJ") {
        let end = run(bytes, at, |b| {
            b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'=')
        });
        if end - at >= 16 {
            spans.push((at, end));
        }
    }
    for at in memchr::memchr_iter(b'@', bytes) {
        email(bytes, at, at + 1, spans);
    }
    for (at, sign) in text.match_indices("%40") {
        email(bytes, at, at + sign.len(), spans);
    }
    for at in memchr::memchr_iter(b'+', bytes) {
        let end = run(bytes, at + 1, |b| {
            b.is_ascii_digit() || matches!(b, b' ' | b'-' | b'(' | b')')
        });
        let digits = bytes[at + 1..end].iter().filter(|b| b.is_ascii_digit()).count();
        let alone = at == 0 || !bytes[at - 1].is_ascii_alphanumeric();
        if alone && (8..=15).contains(&digits) && bytes.get(at + 1).is_some_and(u8::is_ascii_digit) {
            let last = bytes[..end]
                .iter()
                .rposition(u8::is_ascii_digit)
                .map_or(end, |i| i + 1);
            spans.push((at, last));
        }
    }
}

fn run(bytes: &[u8], from: usize, belongs: impl Fn(u8) -> bool) -> usize {
    bytes[from..]
        .iter()
        .position(|b| !belongs(*b))
        .map_or(bytes.len(), |n| from + n)
}

fn userinfo(bytes: &[u8], from: usize, spans: &mut Spans) {
    let end = run(bytes, from, |b| {
        !matches!(b, b'/' | b'?' | b'#' | b'"' | b'\'' | b'<' | b'>') && b > b' '
    });
    match memchr::memrchr(b'@', &bytes[from..end]) {
        Some(n) => spans.push((from, from + n)),
        // `user:secr` at a cut: a port is made of digits.
        None if end == bytes.len() => {
            if let Some(colon) = memchr::memchr(b':', &bytes[from..end])
                && bytes[from] != b'['
                && !bytes[from + colon + 1..end]
                    .iter()
                    .all(|b| b.is_ascii_digit() || *b >= 0x80)
            {
                spans.push((from, end));
            }
        }
        None => {}
    }
}

/// The token behind `Bearer` or `Basic`, unless it is an ordinary word (`Bearer authentication failed`).
fn scheme_token(bytes: &[u8], scheme: &[u8], spans: &mut Spans) {
    let mut from = 0;
    while let Some(n) = bytes[from..]
        .windows(scheme.len())
        .position(|w| w.eq_ignore_ascii_case(scheme))
    {
        let at = from + n + scheme.len();
        from = at;
        let mut start = at;
        if bytes.get(at) == Some(&b' ') {
            start = run(bytes, at, |b| b == b' ');
        } else if bytes.get(at..at + 3).is_some_and(|b| b == b"%20") {
            start += 3;
        }
        if start == at {
            continue;
        }
        let end = run(bytes, start, |b| {
            b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'~' | b'+' | b'/' | b'=' | b'%')
        });
        let token = &bytes[start..end];
        let is_word = token.len() < 20 && token.iter().all(|b| b.is_ascii_lowercase() || *b == b'.');
        if token.len() >= 6 && !is_word {
            spans.push((start, end));
        }
    }
}

fn email(bytes: &[u8], at: usize, after: usize, spans: &mut Spans) {
    let local = |b: u8| {
        b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'+' | b'\'' | b'~') || b >= 0x80
    };
    let mut start = at;
    while start > 0 && local(bytes[start - 1]) {
        start -= 1;
    }
    let end = run(bytes, after, |b| {
        b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-') || b >= 0x80
    });
    // A domain has a dot, unless the text ends within it.
    let domain = &bytes[after..end];
    if start < at && !domain.is_empty() && (domain.contains(&b'.') || end == bytes.len()) {
        spans.push((start, end));
    }
}
