//! UTF-16 to UTF-8, as spreadsheets and Windows tools write files. Recognised by its byte order mark, or by the zeros
//! that no text in UTF-8 has. The mark itself is not passed on.

use super::chunk::read_more;
use std::io::{self, Read};

/// Order of the two bytes of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Little,
    Big,
}

/// Whether content that begins so is UTF-16; none: it is not.
///
/// # Errors
/// It is in an encoding that cannot be read here, named.
pub(super) fn of(start: &[u8]) -> io::Result<Option<Order>> {
    let found = match start {
        [0xff, 0xfe, 0, 0, ..] => return Err(utf32("LE")),
        [0, 0, 0xfe, 0xff, ..] => return Err(utf32("BE")),
        [0xff, 0xfe, ..] => Some(Order::Little),
        [0xfe, 0xff, ..] => Some(Order::Big),
        [0, 0, 0, a, ..] if *a != 0 => return Err(utf32("BE")),
        [a, 0, 0, 0, ..] if *a != 0 => return Err(utf32("LE")),
        [a, 0, b, 0, ..] if *a != 0 && *b != 0 => Some(Order::Little),
        [0, a, 0, b, ..] if *a != 0 && *b != 0 => Some(Order::Big),
        _ => None,
    };
    Ok(found)
}

fn utf32(order: &str) -> io::Error {
    invalid(format!(
        "it is in UTF-32{order}: convert it first, as with `iconv -f UTF-32{order} -t UTF-8 FILE | sluicegate import - --name FILE`"
    ))
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Reads UTF-16 as UTF-8. Half a character is an error with its place, never a replacement.
pub(super) struct Utf16<R> {
    from: R,
    order: Order,
    /// Bytes of the file before `raw`.
    before: u64,
    raw: Vec<u8>,
    text: Vec<u8>,
    given: usize,
    ended: bool,
    begun: bool,
}

impl<R: Read> Utf16<R> {
    pub(super) fn new(from: R, order: Order) -> Self {
        Self {
            from,
            order,
            before: 0,
            raw: Vec::new(),
            text: Vec::new(),
            given: 0,
            ended: false,
            begun: false,
        }
    }

    fn unit(&self, at: usize) -> Option<u16> {
        let pair = [*self.raw.get(at)?, *self.raw.get(at + 1)?];
        Some(match self.order {
            Order::Little => u16::from_le_bytes(pair),
            Order::Big => u16::from_be_bytes(pair),
        })
    }

    /// Reads on and decodes what is whole.
    fn fill(&mut self) -> io::Result<()> {
        self.ended = !read_more(&mut self.from, &mut self.raw)?;
        self.text.clear();
        self.given = 0;
        let mut at = 0;
        let mut buf = [0; 4];
        while let Some(unit) = self.unit(at) {
            let first = [unit];
            let (c, len) = match char::decode_utf16(first).next() {
                Some(Ok(c)) => (c, 2),
                _ => match self.unit(at + 2) {
                    Some(next) => match char::decode_utf16([unit, next]).next() {
                        Some(Ok(c)) => (c, 4),
                        _ => return Err(self.half(at)),
                    },
                    None if self.ended => return Err(self.half(at)),
                    None => break,
                },
            };
            if self.begun || c != '\u{feff}' {
                self.text.extend_from_slice(c.encode_utf8(&mut buf).as_bytes());
            }
            self.begun = true;
            at += len;
        }
        if self.ended && at < self.raw.len() {
            return Err(self.half(at));
        }
        self.raw.drain(..at);
        self.before += at as u64;
        Ok(())
    }

    fn half(&self, at: usize) -> io::Error {
        invalid(format!(
            "it is in UTF-16, and there is half a character at byte {}: convert it with a tool that mends such places, as `iconv -c -f UTF-16 -t UTF-8`",
            self.before + at as u64 + 1
        ))
    }
}

impl<R: Read> Read for Utf16<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.given == self.text.len() {
            if self.ended || to.is_empty() {
                return Ok(0);
            }
            self.fill()?;
        }
        let n = to.len().min(self.text.len() - self.given);
        to[..n].copy_from_slice(&self.text[self.given..self.given + n]);
        self.given += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::super::chunk::Slow;
    use super::*;
    use proptest::prelude::*;

    fn bytes(text: &str, order: Order) -> Vec<u8> {
        let one = |unit: u16| match order {
            Order::Little => unit.to_le_bytes(),
            Order::Big => unit.to_be_bytes(),
        };
        text.encode_utf16().flat_map(one).collect()
    }

    #[test]
    fn it_is_told_by_its_mark_or_its_zeros() {
        assert_eq!(of(b"{\"a\":1}").unwrap(), None);
        assert_eq!(of(b"\xef\xbb\xbf{").unwrap(), None);
        assert_eq!(of(b"").unwrap(), None);
        for order in [Order::Little, Order::Big] {
            assert_eq!(of(&bytes("{\"a\"", order)).unwrap(), Some(order));
            assert_eq!(of(&bytes("\u{feff}{", order)).unwrap(), Some(order));
        }
        for utf32 in [&b"{\0\0\0\"\0\0\0"[..], b"\0\0\xfe\xff\0\0\0{", b"\xff\xfe\0\0"] {
            assert!(of(utf32).unwrap_err().to_string().contains("UTF-32"));
        }
    }

    #[test]
    fn half_a_character_is_an_error_with_its_place() {
        let mut cut = bytes("ab\u{1f600}", Order::Little);
        cut.truncate(6);
        let mut lone = bytes("ab", Order::Little);
        lone.extend(0xdc00_u16.to_le_bytes());
        lone.extend(bytes("c", Order::Little));
        for bad in [&cut, &lone, &cut[..5].to_vec()] {
            let read = Utf16::new(Slow(bad, 3), Order::Little).read_to_end(&mut Vec::new());
            assert!(read.unwrap_err().to_string().contains("at byte 5"));
        }
    }

    proptest! {
        #[test]
        fn any_text_comes_through(text in "\\PC{0,60}", step in 1usize..9, little in any::<bool>(), mark in any::<bool>()) {
            let order = if little { Order::Little } else { Order::Big };
            let marked = if mark { format!("\u{feff}{text}") } else { text.clone() };
            prop_assume!(mark || !text.starts_with('\u{feff}'));
            let raw = bytes(&marked, order);
            let mut out = String::new();
            Utf16::new(Slow(&raw, step), order).read_to_string(&mut out).unwrap();
            prop_assert_eq!(out, text);
        }
    }
}
