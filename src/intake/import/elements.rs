//! Cuts JSON that is not one value a line: arrays, whose elements are the records, and values over several lines one
//! after the other, as `jq .` prints them. Elements and values are numbered from 1 through the file.
//!
//! An element that is not valid JSON within its brackets is the caller's to reject. What breaks the structure around
//! the elements (a missing comma, an array that is not closed) is an error of the whole file: behind it nothing could
//! be told apart. Memory is bounded by the piece and the longest element allowed (I6).

use super::chunk::read_more;
use super::split::{PIECE, Piece, SAMPLE, TOO_LONG, Value};
use std::io::{self, Read};

/// What may come next outside of a value.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Next {
    /// A value or an array: outside of every array.
    Top,
    /// An element, or the end of the array: it has just begun.
    FirstOrEnd,
    /// An element: behind a comma.
    Element,
    /// A comma or the end of the array: behind an element.
    CommaOrEnd,
}

/// Where in a value the scan is.
#[derive(Clone, Copy, Debug)]
struct Inside {
    start: usize,
    line: u64,
    depth: u32,
    string: bool,
    escaped: bool,
    /// A number or word: it ends where something else begins.
    bare: bool,
    in_array: bool,
}

/// Cuts a stream into [`Piece`]s of values.
pub(super) struct Elements<R> {
    from: R,
    buf: Vec<u8>,
    scanned: usize,
    next: Next,
    inside: Option<Inside>,
    values: Vec<Value>,
    /// The beginning of a value that is too long, which is passed over.
    skipped: Option<Vec<u8>>,
    bad: Option<Piece>,
    number: u64,
    line: u64,
    longest: usize,
    ended: bool,
}

impl<R: Read> Elements<R> {
    pub(super) fn new(from: R, longest: usize) -> Self {
        Self {
            from,
            buf: Vec::new(),
            scanned: 0,
            next: Next::Top,
            inside: None,
            values: Vec::new(),
            skipped: None,
            bad: None,
            number: 0,
            line: 1,
            longest,
            ended: false,
        }
    }

    pub(super) fn into_inner(self) -> R {
        self.from
    }

    /// The next piece; none at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<Piece>> {
        loop {
            self.scan()?;
            if self.bad.is_some() && !self.values.is_empty() {
                return Ok(Some(self.cut()));
            }
            if let Some(bad) = self.bad.take() {
                return Ok(Some(bad));
            }
            if !self.values.is_empty() && (self.scanned >= PIECE || self.ended) {
                return Ok(Some(self.cut()));
            }
            if self.ended {
                return self.end().map(|()| None);
            }
            self.make_room();
            self.fill()?;
        }
    }

    /// Gives up what is behind the scan and belongs to no value.
    fn make_room(&mut self) {
        match &mut self.inside {
            None if self.values.is_empty() => {
                self.buf.drain(..self.scanned);
                self.scanned = 0;
            }
            Some(inside) if self.values.is_empty() => {
                let length = self.scanned - inside.start;
                if length > self.longest && self.skipped.is_none() {
                    let end = self.scanned.min(inside.start + SAMPLE);
                    self.skipped = Some(self.buf[inside.start..end].to_vec());
                }
                let gone = if self.skipped.is_some() {
                    self.scanned
                } else {
                    inside.start
                };
                self.buf.drain(..gone);
                self.scanned -= gone;
                inside.start = inside.start.saturating_sub(gone);
            }
            _ => {}
        }
    }

    fn scan(&mut self) -> io::Result<()> {
        while self.scanned < self.buf.len() && self.bad.is_none() {
            // A piece that is full goes first.
            if self.scanned >= PIECE && !self.values.is_empty() && self.inside.is_none() {
                return Ok(());
            }
            let byte = self.buf[self.scanned];
            match self.inside {
                Some(inside) => self.step(inside, byte),
                None => self.between(byte)?,
            }
        }
        if self.scanned == self.buf.len()
            && self.ended
            && let Some(inside) = self.inside
            && inside.bare
            && !inside.in_array
        {
            self.close(inside, self.scanned);
        }
        Ok(())
    }

    /// One byte of a value.
    fn step(&mut self, mut inside: Inside, byte: u8) {
        if byte == b'\n' {
            self.line += 1;
        }
        let at = self.scanned;
        if inside.string {
            match byte {
                _ if inside.escaped => inside.escaped = false,
                b'\\' => inside.escaped = true,
                b'"' => inside.string = false,
                _ => {}
            }
            self.scanned += 1;
            if !inside.string && inside.depth == 0 {
                return self.close(inside, at + 1);
            }
        } else if inside.bare {
            if byte.is_ascii_whitespace() || matches!(byte, b',' | b']' | b'}' | b'[' | b'{' | b'"') {
                if byte == b'\n' {
                    // It is looked at once more.
                    self.line -= 1;
                }
                return self.close(inside, at);
            }
            self.scanned += 1;
        } else {
            match byte {
                b'"' => inside.string = true,
                b'{' | b'[' => inside.depth += 1,
                b'}' | b']' => inside.depth -= 1,
                _ => {}
            }
            self.scanned += 1;
            if inside.depth == 0 {
                return self.close(inside, at + 1);
            }
        }
        self.inside = Some(inside);
    }

    fn close(&mut self, inside: Inside, end: usize) {
        self.inside = None;
        self.next = if inside.in_array {
            Next::CommaOrEnd
        } else {
            Next::Top
        };
        self.number += 1;
        let long = || self.buf[inside.start..end.min(inside.start + SAMPLE)].to_vec();
        let sample = match self.skipped.take() {
            None if end - inside.start > self.longest => Some(long()),
            other => other,
        };
        if let Some(sample) = sample {
            self.bad = Some(Piece::Bad {
                line: self.number,
                sample,
                reason: TOO_LONG,
            });
            return;
        }
        self.values.push(Value {
            number: self.number,
            line: inside.line,
            bytes: inside.start..end,
        });
    }

    /// One byte outside of values.
    fn between(&mut self, byte: u8) -> io::Result<()> {
        let at = self.scanned;
        self.scanned += 1;
        match (self.next, byte) {
            (_, b'\n') => self.line += 1,
            (_, b' ' | b'\t' | b'\r') => {}
            // A byte order mark, where files were put together.
            (Next::Top, 0xef | 0xbb | 0xbf) => {}
            (Next::Top, b'[') => self.next = Next::FirstOrEnd,
            (Next::FirstOrEnd | Next::CommaOrEnd, b']') => self.next = Next::Top,
            (Next::CommaOrEnd, b',') => self.next = Next::Element,
            (Next::CommaOrEnd, _) => return Err(self.broken("a comma is missing between two elements")),
            (_, b',' | b']' | b'}') => return Err(self.broken("a value is missing")),
            (next, _) => {
                self.inside = Some(Inside {
                    start: at,
                    line: self.line,
                    depth: u32::from(matches!(byte, b'{' | b'[')),
                    string: byte == b'"',
                    escaped: false,
                    bare: !matches!(byte, b'{' | b'[' | b'"'),
                    in_array: next != Next::Top,
                });
            }
        }
        Ok(())
    }

    /// The end of the file: in an array, or in a value, it is one that was cut off.
    fn end(&self) -> io::Result<()> {
        match (self.inside, self.next) {
            (None, Next::Top) => Ok(()),
            _ => {
                let text = format!(
                    "the file ends in the middle, behind element {}: it was cut off, or is still being written",
                    self.number
                );
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, text))
            }
        }
    }

    fn broken(&self, what: &str) -> io::Error {
        let text = format!(
            "the JSON is broken in line {}, behind element {}: {what}",
            self.line, self.number
        );
        io::Error::new(io::ErrorKind::InvalidData, text)
    }

    /// Everything before the value under way.
    fn cut(&mut self) -> Piece {
        let end = self.inside.map_or(self.scanned, |inside| inside.start);
        let rest = self.buf.split_off(end);
        let bytes = std::mem::replace(&mut self.buf, rest);
        self.scanned -= end;
        if let Some(inside) = &mut self.inside {
            inside.start = 0;
        }
        Piece::Values {
            bytes,
            values: std::mem::take(&mut self.values),
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        self.ended = !read_more(&mut self.from, &mut self.buf)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::chunk::Slow;
    use super::*;
    use proptest::prelude::*;

    /// Number, line and text of each value; those that are too long with the beginning of it.
    fn values(text: &str, step: usize, longest: usize) -> io::Result<Vec<(u64, u64, String)>> {
        let mut elements = Elements::new(Slow(text.as_bytes(), step), longest);
        let mut found = Vec::new();
        while let Some(piece) = elements.next()? {
            match piece {
                Piece::Values { bytes, values } => found.extend(values.into_iter().map(|v| {
                    let text = String::from_utf8_lossy(&bytes[v.bytes]).into_owned();
                    (v.number, v.line, text)
                })),
                Piece::Bad { line, .. } => found.push((line, 0, "too long".into())),
                Piece::Records { .. } => panic!("no lines here"),
            }
        }
        Ok(found)
    }

    #[test]
    fn elements_of_arrays_and_values_over_lines_are_told_apart() {
        let text =
            "\u{feff}[\n {\"a\": \"]\\\"\"},\n [1, [2]], 7,\n\"x\"\n]\n\u{feff}[]\n{\n\"b\": {}\n}\ntrue";
        for step in 1..20 {
            let found = values(text, step, 1_000).unwrap();
            let found: Vec<_> = found.iter().map(|(n, l, t)| (*n, *l, t.as_str())).collect();
            assert_eq!(
                found,
                [
                    (1, 2, "{\"a\": \"]\\\"\"}"),
                    (2, 3, "[1, [2]]"),
                    (3, 3, "7"),
                    (4, 4, "\"x\""),
                    (5, 7, "{\n\"b\": {}\n}"),
                    (6, 10, "true")
                ]
            );
        }
    }

    #[test]
    fn broken_structure_is_an_error_and_a_long_element_is_given_up_alone() {
        for (bad, says) in [
            ("[1 2]", "comma"),
            ("[1,]", "a value is missing"),
            ("[,1]", "a value is missing"),
            ("[1,\n{\"a\":1}", "behind element 2"),
            ("[{\"a\":", "cut off"),
            ("]", "a value is missing"),
        ] {
            let error = values(bad, 3, 1_000).unwrap_err().to_string();
            assert!(error.contains(says), "{bad}: {error}");
        }
        let text = format!("[1,\"{}\",{{\"a\":2}}]", "x".repeat(400_000));
        let found = values(&text, 1_000, 1_000).unwrap();
        assert_eq!(
            found.iter().map(|(n, _, t)| (*n, t.as_str())).collect::<Vec<_>>(),
            [(1, "1"), (2, "too long"), (3, "{\"a\":2}")]
        );
    }

    proptest! {
        /// Whatever the values, their spacing and the steps: as many come out as went in, each as it was.
        #[test]
        fn every_value_comes_out_as_it_went_in(
            values_in in proptest::collection::vec("[a-z\\[\\]{},\"\\\\ ]{0,9}", 0..40), step in 1usize..300, pretty in any::<bool>(),
        ) {
            let all: Vec<serde_json::Value> = values_in
                .iter()
                .enumerate()
                .map(|(i, text)| match i % 3 {
                    0 => serde_json::json!({"t": text, "n": [i]}),
                    1 => serde_json::json!(text),
                    _ => serde_json::json!([text, {"x": null}]),
                })
                .collect();
            let text = if pretty { serde_json::to_string_pretty(&all) } else { serde_json::to_string(&all) }.unwrap();
            let found = values(&text, step, 1 << 20).unwrap();
            let read: Vec<serde_json::Value> = found.iter().map(|(_, _, t)| serde_json::from_str(t).unwrap()).collect();
            prop_assert_eq!(read, all);
        }
    }
}
