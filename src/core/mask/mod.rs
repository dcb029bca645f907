//! What must not be shown (I9): one place that makes text fit for logs, dead letters, pages and reports.
//!
//! Three things are masked, each replaced by `***`:
//!
//! 1. the **known secrets** of the configuration, wherever they occur: as they stand, percent-encoded or escaped as in
//!    JSON or HTML, up to four times over and mixed, in base64 (also as a part: `Basic base64(user:secret)`), and in
//!    base64 of base64; also the piece that is left where a text was cut in the middle of one. Words that are escaped
//!    deeper are masked whole, for looking deeper would cost work without a bound. A secret packed in base64 three times
//!    is not found;
//! 2. what stands under a **telling name** ([`is_telling`], plus the partner's `mask`): query parameters, form
//!    fields, JSON fields (also JSON inside a JSON string), headers, XML elements;
//! 3. what **looks like it** by its form, whatever its name: credentials in a URL, `Bearer` and `Basic` tokens, JSON
//!    web tokens, e-mail addresses, phone numbers with a `+`.
//!
//! It works on text, not on parsed documents: answers come cut, broken and mixed. When in doubt it masks. What it
//! cannot know is personal data under an innocent name: that is what the partner's `mask` is for.

mod encoded;
mod names;
mod scan;
#[cfg(test)]
mod tests;

pub use names::{is_telling, shows_literal};

use memchr::memmem;
use serde_json::Value as Json;
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// What stands for what is masked.
pub const MASK: &str = "***";

/// Shorter secrets are not looked for: they would turn every text into stars.
const SHORTEST_SECRET: usize = 4;
/// A piece of a secret at a cut is masked from this length on.
const SHORTEST_PIECE: usize = 4;

/// Masks text. Cheap to build, to be kept: one for each partner.
#[derive(Clone, Default)]
pub struct Masker {
    names: Vec<String>,
    /// Every form of every secret, the longest first.
    secrets: Vec<Box<[u8]>>,
    /// The part of a secret's base64 that what stands around it does not change.
    cores: Vec<Box<[u8]>>,
}

impl fmt::Debug for Masker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Masker")
            .field("names", &self.names)
            .field("secrets", &self.secrets.len())
            .finish()
    }
}

impl Masker {
    /// Masks these names beside the telling ones (letter case and separators do not matter), and these values.
    pub fn new(names: &[String], secrets: &[Arc<str>]) -> Self {
        let mut forms: Vec<Box<[u8]>> = Vec::new();
        let mut cores: Vec<Box<[u8]>> = Vec::new();
        for secret in secrets {
            let lines = secret
                .lines()
                .map(str::trim)
                .filter(|line| line.len() < secret.len());
            for text in std::iter::once(&**secret)
                .chain(lines)
                .filter(|t| t.len() >= SHORTEST_SECRET)
            {
                let escaped = Json::from(text).to_string();
                let percent: String = url::form_urlencoded::byte_serialize(text.as_bytes()).collect();
                for form in [
                    text.to_owned(),
                    escaped[1..escaped.len() - 1].to_owned(),
                    escaped[1..escaped.len() - 1].replace('/', "\\/"),
                    percent.to_lowercase(),
                    percent.replace('+', "%20"),
                    percent,
                    base64(text.as_bytes()),
                ] {
                    // Also what was escaped before it was packed.
                    let twice = encoded::base64_cores_twice(form.as_bytes());
                    for core in encoded::base64_cores(form.as_bytes()).into_iter().chain(twice) {
                        if !cores.contains(&core) {
                            cores.push(core);
                        }
                    }
                    if !forms.iter().any(|f| **f == *form.as_bytes()) {
                        forms.push(form.into_bytes().into());
                    }
                }
            }
        }
        forms.sort_by_key(|f| std::cmp::Reverse(f.len()));
        let names = names
            .iter()
            .map(|n| names::squeezed(n))
            .filter(|n| !n.is_empty())
            .collect();
        Self {
            names,
            secrets: forms,
            cores,
        }
    }

    /// Whether what stands under this name must not be shown.
    pub fn hides(&self, name: &str) -> bool {
        is_telling(name) || self.names.contains(&names::squeezed(name))
    }

    /// Masks a text.
    pub fn text(&self, text: &str) -> String {
        let mut spans = Vec::new();
        self.known(text.as_bytes(), &mut spans);
        if !self.secrets.is_empty() {
            encoded::base64_runs(text.as_bytes(), &self.cores, &mut spans);
            let (views, words) = encoded::views(text.as_bytes());
            spans.extend(words);
            for view in views {
                let mut inside = Vec::new();
                self.known(&view.bytes, &mut inside);
                encoded::base64_runs(&view.bytes, &self.cores, &mut inside);
                spans.extend(inside.into_iter().map(|span| view.back(span)));
            }
        }
        scan::named(text, |name| self.hides(name), &mut spans);
        scan::formed(text, &mut spans);
        if spans.is_empty() {
            return text.to_owned();
        }
        spans.sort_unstable();
        let mut out = String::with_capacity(text.len());
        let mut at = 0;
        for (start, end) in spans {
            // Spans are found bytewise; a character that one touches goes as a whole.
            let start = floor(text, start.max(at));
            let end = ceil(text, end);
            if end <= at {
                continue;
            }
            out.push_str(&text[at..start]);
            // Two that touch are one.
            if !(start == at && out.ends_with(MASK)) {
                out.push_str(MASK);
            }
            at = end;
        }
        out.push_str(&text[at..]);
        out
    }

    /// Masks bytes that are text as far as anybody can tell.
    pub fn bytes(&self, bytes: &[u8]) -> String {
        self.text(&String::from_utf8_lossy(bytes))
    }

    /// Masks a URL: credentials, telling parameters, secrets in the path.
    pub fn url(&self, url: &str) -> String {
        self.text(url)
    }

    /// The value of a header, masked.
    pub fn header(&self, name: &str, value: &str) -> String {
        // Made of a message's hash: it says nothing, and is what a partner's support asks for.
        if name.eq_ignore_ascii_case("idempotency-key") {
            return self.text(value);
        }
        if self.hides(name) && !value.is_empty() {
            MASK.to_owned()
        } else {
            self.text(value)
        }
    }

    /// Known secrets, whole or, where the text was cut, in part.
    fn known(&self, text: &[u8], spans: &mut Vec<(usize, usize)>) {
        // What this program's own cuts leave behind.
        let end = text.strip_suffix("…".as_bytes()).unwrap_or(text);
        let end = end.strip_suffix("\u{fffd}".as_bytes()).unwrap_or(end);
        for secret in &self.secrets {
            for at in memmem::find_iter(text, &**secret) {
                spans.push((at, at + secret.len()));
            }
            let most = (secret.len() - 1).min(end.len());
            if let Some(n) = (SHORTEST_PIECE..=most)
                .rev()
                .find(|n| end.ends_with(&secret[..*n]))
            {
                spans.push((end.len() - n, end.len()));
            }
            let most = (secret.len() - 1).min(text.len());
            if let Some(n) = (SHORTEST_PIECE..=most)
                .rev()
                .find(|n| text.starts_with(&secret[secret.len() - n..]))
            {
                spans.push((0, n));
            }
        }
    }
}

fn floor(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

fn ceil(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at += 1;
    }
    at
}

/// Base64 with padding (RFC 4648): ten lines are less than a dependency.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0u32, |w, b| w << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            out.push(if i <= chunk.len() {
                ALPHABET[(word >> (18 - 6 * i) & 63) as usize] as char
            } else {
                '='
            });
        }
    }
    out
}

/// `%XX` taken back, as text.
pub(crate) fn percent_decode(text: &str) -> Cow<'_, str> {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy()
}
