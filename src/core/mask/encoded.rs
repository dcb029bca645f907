//! Known secrets in encodings: a partner echoes them as its own software writes them.

use super::base64;
use memchr::memmem;

/// Escapes are taken back so many times: a gateway wraps what another one has wrapped, seldom deeper.
const DEPTH: usize = 4;
/// Views of one text, at most: who mixes escapes on purpose buys no more work than this.
const VIEWS: usize = 24;
/// Shorter pieces of base64 are not looked for.
const SHORTEST_CORE: usize = 4;

/// A text decoded, with the way back to where each byte came from.
pub(super) struct View {
    pub(super) bytes: Vec<u8>,
    /// Where each byte begins in the original, and at last where that ends.
    at: Vec<usize>,
}

impl View {
    /// The place in the original.
    pub(super) fn back(&self, (start, end): (usize, usize)) -> (usize, usize) {
        (self.at[start], self.at[end])
    }
}

/// The text with escapes taken back: one kind at a time in each order, and what that gives in turn. So a secret is found
/// in JSON inside JSON, and where two encodings are mixed; one that holds an escape of its own is found, too.
///
/// What is escaped deeper, or in more ways, is not followed. Nobody can say what stands there, so the words that hold
/// such escapes come back as well, as places in the text.
pub(super) fn views(text: &[u8]) -> (Vec<View>, Vec<(usize, usize)>) {
    let mut found: Vec<View> = Vec::new();
    // Where the views that the last round made begin.
    let mut last = 0;
    'rounds: for depth in 0..DEPTH {
        let end = found.len();
        let from: Vec<Option<usize>> = match depth {
            0 => vec![None],
            _ => (last..end).map(Some).collect(),
        };
        for index in from {
            for (sign, decode) in KINDS {
                let base = index.map(|i| &found[i]);
                let Some(view) = view(base.map_or(text, |b| &b.bytes), sign, decode) else {
                    continue;
                };
                let view = match base {
                    Some(base) => View {
                        at: view.at.iter().map(|at| base.at[*at]).collect(),
                        bytes: view.bytes,
                    },
                    None => view,
                };
                if found.iter().all(|other| other.bytes != view.bytes) {
                    found.push(view);
                }
                if found.len() >= VIEWS {
                    break 'rounds;
                }
            }
        }
        if found.len() == end {
            return (found, Vec::new());
        }
        last = end;
    }
    let mut words = Vec::new();
    for view in &found[last..] {
        escaped_words(text, view, &mut words);
    }
    (found, words)
}

/// Words of the text that still hold escapes in this view of it.
fn escaped_words(text: &[u8], view: &View, words: &mut Vec<(usize, usize)>) {
    let mut known = 0;
    for at in memchr::memchr3_iter(b'%', b'\\', b'&', &view.bytes) {
        let rest = &view.bytes[at..];
        let place = view.at[at];
        if place < known
            || !KINDS
                .iter()
                .any(|(sign, decode)| *sign == rest[0] && decode(rest).is_some())
        {
            continue;
        }
        let start = text[..place].iter().rposition(u8::is_ascii_whitespace);
        let end = text[place..].iter().position(u8::is_ascii_whitespace);
        known = end.map_or(text.len(), |n| place + n);
        words.push((start.map_or(0, |i| i + 1), known));
    }
}

/// The signs that escapes begin with.
const KINDS: [(u8, Decode); 3] = [(b'%', percent), (b'\\', backslash), (b'&', entity)];

/// What an escape stands for, in UTF-8.
type Escaped = ([u8; 4], usize);

/// Takes back the escape that a text begins with; how long it is.
type Decode = fn(&[u8]) -> Option<(Escaped, usize)>;

/// The text with escapes of one kind taken back; none where it has none.
fn view(text: &[u8], sign: u8, decode: Decode) -> Option<View> {
    memchr::memchr(sign, text)?;
    let mut changed = false;
    let mut bytes = Vec::with_capacity(text.len());
    let mut at = Vec::with_capacity(text.len() + 1);
    let mut from = 0;
    while from < text.len() {
        let found = (text[from] == sign).then(|| decode(&text[from..])).flatten();
        match found {
            Some(((utf8, n), len)) => {
                changed = true;
                bytes.extend_from_slice(&utf8[..n]);
                at.extend(std::iter::repeat_n(from, n));
                from += len;
            }
            None => {
                bytes.push(text[from]);
                at.push(from);
                from += 1;
            }
        }
    }
    at.push(text.len());
    changed.then_some(View { bytes, at })
}

fn utf8(c: char) -> Escaped {
    let mut out = [0; 4];
    let n = c.encode_utf8(&mut out).len();
    (out, n)
}

fn hex(digits: &[u8]) -> Option<u32> {
    u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

fn percent(text: &[u8]) -> Option<(Escaped, usize)> {
    let byte = hex(text.get(1..3)?)?;
    Some((([byte as u8, 0, 0, 0], 1), 3))
}

/// Escapes of JSON and its kin.
fn backslash(text: &[u8]) -> Option<(Escaped, usize)> {
    let c = match text.get(1)? {
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'u' => return Some((utf8(char::from_u32(hex(text.get(2..6)?)?)?), 6)),
        b'x' => return Some((utf8(char::from_u32(hex(text.get(2..4)?)?)?), 4)),
        c if c.is_ascii_punctuation() => char::from(*c),
        _ => return None,
    };
    Some((utf8(c), 2))
}

/// Character references of HTML and XML.
fn entity(text: &[u8]) -> Option<(Escaped, usize)> {
    let end = memchr::memchr(b';', &text[..text.len().min(12)])?;
    let c = match &text[1..end] {
        b"amp" => '&',
        b"lt" => '<',
        b"gt" => '>',
        b"quot" => '"',
        b"apos" => '\'',
        [b'#', b'x' | b'X', digits @ ..] => char::from_u32(hex(digits)?)?,
        [b'#', digits @ ..] => char::from_u32(std::str::from_utf8(digits).ok()?.parse().ok()?)?,
        _ => return None,
    };
    Some((utf8(c), end + 1))
}

/// The letters of base64 that stand for a text alone, at each of the three places where it may begin in a group of
/// three bytes; in both alphabets.
pub(super) fn base64_cores(text: &[u8]) -> Vec<Box<[u8]>> {
    let mut cores = Vec::new();
    for before in 0..3 {
        let mut padded = vec![0; before];
        padded.extend_from_slice(text);
        let letters = base64(&padded);
        // A letter is six bits: those that hold a bit of what stands before or behind are left out.
        let first = (before * 8).div_ceil(6);
        let end = padded.len() * 8 / 6;
        let Some(core) = letters.get(first..end).filter(|core| core.len() >= SHORTEST_CORE) else {
            continue;
        };
        cores.push(core.as_bytes().into());
        if core.contains(['+', '/']) {
            cores.push(core.replace('+', "-").replace('/', "_").into_bytes().into());
        }
    }
    cores
}

/// The same for a text that was packed twice: whatever stood beside it both times.
pub(super) fn base64_cores_twice(text: &[u8]) -> Vec<Box<[u8]>> {
    let once = base64_cores(text);
    once.iter().flat_map(|core| base64_cores(core)).collect()
}

/// Whole runs of base64 that hold one of the cores.
pub(super) fn base64_runs(text: &[u8], cores: &[Box<[u8]>], spans: &mut Vec<(usize, usize)>) {
    let belongs = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'-' | b'_' | b'=');
    for core in cores {
        for at in memmem::find_iter(text, &**core) {
            let start = text[..at].iter().rposition(|b| !belongs(b)).map_or(0, |i| i + 1);
            let end = text[at..]
                .iter()
                .position(|b| !belongs(b))
                .map_or(text.len(), |n| at + n);
            spans.push((start, end));
        }
    }
}
