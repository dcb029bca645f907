//! Cuts a stream into pieces of whole records, so that another thread can read them while this one goes on.
//!
//! Lines end at `\n`, or at `\r` where the beginning of the file has no other line end. Rows of CSV end at `\n`,
//! `\r\n` or a lone `\r`, as the csv library ends them, and each counts as a line: no two rows have one number. A quoted
//! field may hold line ends, so the cut follows the quotes; a quote that is opened and never closed would swallow the
//! rest of the file: its line is given up, and reading goes on with the next one. A byte order mark before a row (files
//! that were put together) is cut out. Memory is bounded by the piece and the longest line allowed (I6).

use super::chunk::read_more;
use std::io::{self, Read};
use std::ops::Range;

/// Bytes of a piece, about.
pub(super) const PIECE: usize = 512 << 10;
/// Bytes kept of a line that is too long, to show in the reject file.
pub(super) const SAMPLE: usize = 1 << 10;
/// Bytes that decide which line end a file has.
const BEGINNING: usize = 64 << 10;

/// A part of the stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Whole records; the first begins at this line (from 1).
    Records { line: u64, bytes: Vec<u8> },
    /// Whole values of JSON that is not one value a line.
    Values { bytes: Vec<u8>, values: Vec<Value> },
    /// A line (or value) that cannot be a record.
    Bad {
        line: u64,
        sample: Vec<u8>,
        reason: &'static str,
    },
}

/// A value in a piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Value {
    /// Which value of the file, from 1.
    pub number: u64,
    /// The line that it begins in.
    pub line: u64,
    /// Where it is in the piece.
    pub bytes: Range<usize>,
}

/// Why a line was given up.
pub(super) const TOO_LONG: &str = "longer than a record may be";
/// Why a line was given up.
pub(super) const OPEN_QUOTE: &str = "a quote is opened and not closed";

/// Counts in which line each row of CSV begins. The library's own position includes the empty lines that it skipped
/// before the row, and the second half of a `\r\n`.
pub(super) struct RowLines<'a> {
    bytes: &'a [u8],
    counted: usize,
    line: u64,
}

impl<'a> RowLines<'a> {
    /// Rows of these bytes, which begin in this line.
    pub(super) fn new(bytes: &'a [u8], first: u64) -> Self {
        Self {
            bytes,
            counted: 0,
            line: first,
        }
    }

    /// Where the row that was read next begins: byte and line.
    pub(super) fn begin(&mut self, row: &csv::ByteRecord) -> (usize, u64) {
        let mut start = row.position().map_or(0, csv::Position::byte) as usize;
        while self.bytes.get(start).is_some_and(|b| matches!(b, b'\n' | b'\r')) {
            start += 1;
        }
        self.line += line_ends(&self.bytes[self.counted..start]);
        self.counted = start;
        (start, self.line)
    }
}

/// Line ends in whole rows: `\n`, `\r\n`, and `\r` alone.
fn line_ends(bytes: &[u8]) -> u64 {
    memchr::memchr2_iter(b'\n', b'\r', bytes)
        .filter(|at| bytes[*at] == b'\n' || bytes.get(at + 1) != Some(&b'\n'))
        .count() as u64
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    /// Before a row; a byte order mark may stand here, of which so many bytes were seen.
    RowStart(u8),
    FieldStart,
    Field,
    Quoted,
    /// After a quote inside a quoted field: its end, or the first half of an escaped quote.
    Quote,
    /// After a `\r`: a line end of its own, unless `\n` follows.
    Return,
}

#[derive(Debug)]
enum Form {
    /// Lines that end with this byte; not known before the beginning is there.
    Lines(Option<u8>),
    /// Rows: the delimiter, where the scan is, up to which byte, and the places of byte order marks before rows.
    Rows {
        delimiter: u8,
        at: At,
        from: usize,
        marks: Vec<usize>,
    },
}

/// Cuts a stream into [`Piece`]s.
pub(super) struct Splitter<R> {
    from: R,
    buf: Vec<u8>,
    /// Number of the line that `buf` begins with.
    line: u64,
    longest: usize,
    form: Form,
    /// End of the last whole record in `buf`.
    whole: usize,
    ended: bool,
}

impl<R: Read> Splitter<R> {
    /// A splitter of lines; none may be longer than `longest` bytes.
    pub(super) fn lines(from: R, longest: usize) -> Self {
        Self::new(from, Form::Lines(None), longest)
    }

    /// A splitter of CSV rows; none may be longer than `longest` bytes.
    pub(super) fn rows(from: R, delimiter: u8, longest: usize) -> Self {
        let form = Form::Rows {
            delimiter,
            at: At::RowStart(0),
            from: 0,
            marks: Vec::new(),
        };
        Self::new(from, form, longest)
    }

    fn new(from: R, form: Form, longest: usize) -> Self {
        Self {
            from,
            buf: Vec::new(),
            line: 1,
            longest,
            form,
            whole: 0,
            ended: false,
        }
    }

    /// What was read from.
    pub(super) fn into_inner(self) -> R {
        self.from
    }

    /// The next piece; none at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<Piece>> {
        if let Form::Lines(None) = self.form {
            while self.buf.len() < BEGINNING && !self.ended {
                self.fill()?;
            }
            let returns = memchr::memchr(b'\r', &self.buf).is_some();
            let only_returns = returns && memchr::memchr(b'\n', &self.buf).is_none();
            self.form = Form::Lines(Some(if only_returns { b'\r' } else { b'\n' }));
        }
        loop {
            self.scan();
            if self.whole > 0 && (self.whole >= PIECE || self.ended) {
                return Ok(Some(self.cut()));
            }
            if self.ended {
                if self.buf.is_empty() {
                    return Ok(None);
                }
                if !matches!(self.form, Form::Rows { at: At::Quoted, .. }) {
                    // The last line, without a line end.
                    self.whole = self.buf.len();
                    return Ok(Some(self.cut()));
                }
                return self.give_up(OPEN_QUOTE).map(Some);
            }
            if self.buf.len() - self.whole > self.longest {
                if self.whole > 0 {
                    return Ok(Some(self.cut()));
                }
                return self.give_up(TOO_LONG).map(Some);
            }
            self.fill()?;
        }
    }

    /// Moves `whole` to the end of the last whole record in the buffer.
    fn scan(&mut self) {
        let (delimiter, at, from, marks) = match &mut self.form {
            Form::Lines(end) => {
                let end = end.unwrap_or(b'\n');
                if let Some(end) = memchr::memrchr(end, &self.buf[self.whole..]) {
                    self.whole += end + 1;
                }
                return;
            }
            Form::Rows {
                delimiter,
                at,
                from,
                marks,
            } => (*delimiter, at, from, marks),
        };
        for (i, byte) in self.buf.iter().enumerate().skip(*from) {
            if *at == At::Return && *byte != b'\n' {
                self.whole = i;
                *at = At::RowStart(0);
            }
            *at = match (*at, *byte) {
                (At::Quoted, b'"') => At::Quote,
                (At::Quoted, _) | (At::Quote, b'"') => At::Quoted,
                (_, b'\n') => {
                    self.whole = i + 1;
                    At::RowStart(0)
                }
                (_, b'\r') => At::Return,
                (_, byte) if byte == delimiter => At::FieldStart,
                (At::RowStart(0) | At::FieldStart, b'"') => At::Quoted,
                (At::RowStart(0), 0xef) => At::RowStart(1),
                (At::RowStart(1), 0xbb) => At::RowStart(2),
                (At::RowStart(2), 0xbf) => {
                    marks.push(i - 2);
                    At::RowStart(0)
                }
                _ => At::Field,
            };
        }
        *from = self.buf.len();
    }

    fn cut(&mut self) -> Piece {
        let rest = self.buf.split_off(self.whole);
        let mut bytes = std::mem::replace(&mut self.buf, rest);
        let line = self.line;
        match &mut self.form {
            Form::Lines(Some(b'\r')) => {
                // What follows knows one line end.
                for byte in &mut bytes {
                    if *byte == b'\r' {
                        *byte = b'\n';
                    }
                }
                self.line += memchr::memchr_iter(b'\n', &bytes).count() as u64;
            }
            Form::Lines(_) => self.line += memchr::memchr_iter(b'\n', &bytes).count() as u64,
            Form::Rows { from, marks, .. } => {
                self.line += line_ends(&bytes);
                *from -= self.whole;
                let later = marks.split_off(marks.partition_point(|mark| *mark < self.whole));
                for mark in marks.drain(..).rev() {
                    bytes.drain(mark..mark + 3);
                }
                *marks = later.into_iter().map(|mark| mark - self.whole).collect();
            }
        }
        self.whole = 0;
        Piece::Records { line, bytes }
    }

    /// Drops the first line of the buffer, reading on to its end if need be.
    fn give_up(&mut self, reason: &'static str) -> io::Result<Piece> {
        let rows = matches!(self.form, Form::Rows { .. });
        // Where the next line begins, once that is sure.
        let next = |buf: &[u8], ended: bool, form: &Form| match form {
            Form::Lines(end) => memchr::memchr(end.unwrap_or(b'\n'), buf).map(|at| at + 1),
            Form::Rows { .. } => {
                let at = memchr::memchr2(b'\n', b'\r', buf)?;
                match (buf[at], buf.get(at + 1)) {
                    (b'\r', Some(b'\n')) => Some(at + 2),
                    (b'\r', None) if !ended => None,
                    _ => Some(at + 1),
                }
            }
        };
        let end = next(&self.buf, true, &self.form).unwrap_or(self.buf.len());
        let sample = self.buf[..end.min(SAMPLE)].trim_ascii_end().to_vec();
        let line = self.line;
        loop {
            if let Some(next) = next(&self.buf, self.ended, &self.form) {
                self.buf.drain(..next);
                self.line += 1;
                break;
            }
            // A return at the very end may be the first half of a line end.
            let keep = usize::from(rows && !self.ended && self.buf.last() == Some(&b'\r'));
            self.buf.drain(..self.buf.len() - keep);
            if self.ended {
                break;
            }
            self.fill()?;
        }
        self.whole = 0;
        if let Form::Rows { at, from, marks, .. } = &mut self.form {
            (*at, *from) = (At::RowStart(0), 0);
            marks.clear();
        }
        Ok(Piece::Bad { line, sample, reason })
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

    fn pieces(bytes: &[u8], step: usize, csv: bool, longest: usize) -> Vec<Piece> {
        let from = Slow(bytes, step);
        let mut splitter = match csv {
            true => Splitter::rows(from, b',', longest),
            false => Splitter::lines(from, longest),
        };
        std::iter::from_fn(|| splitter.next().expect("read")).collect()
    }

    #[test]
    fn a_line_that_is_too_long_is_given_up_alone() {
        let text = format!("a\n{}\nb\n", "x".repeat(200_000));
        let found = pieces(text.as_bytes(), 1_000, false, 70_000);
        let bad = found.iter().find_map(|p| match p {
            Piece::Bad { line, sample, reason } => Some((*line, sample.len(), *reason)),
            _ => None,
        });
        assert_eq!(bad, Some((2, SAMPLE, TOO_LONG)));
        assert_eq!(
            found.last(),
            Some(&Piece::Records {
                line: 3,
                bytes: b"b\n".to_vec()
            })
        );
    }

    #[test]
    fn an_open_quote_costs_its_own_line_only() {
        let found = pieces(b"a,b\n1,\"two\nlines\"\n2,\"open\n3,c\n4,d", 3, true, 1_000);
        assert_eq!(
            found,
            [
                Piece::Records {
                    line: 1,
                    bytes: b"a,b\n1,\"two\nlines\"\n".to_vec()
                },
                Piece::Bad {
                    line: 4,
                    sample: b"2,\"open".to_vec(),
                    reason: OPEN_QUOTE
                },
                Piece::Records {
                    line: 5,
                    bytes: b"3,c\n".to_vec()
                },
                Piece::Records {
                    line: 6,
                    bytes: b"4,d".to_vec()
                },
            ]
        );
    }

    #[test]
    fn returns_alone_end_lines_and_rows_and_each_has_a_number_of_its_own() {
        let text = b"a,b\r1,\"x\ry\"\r2,z\r";
        for step in 1..9 {
            let found = pieces(text, step, true, 1_000);
            let all: Vec<u8> = found
                .iter()
                .flat_map(|p| match p {
                    Piece::Records { bytes, .. } => bytes.clone(),
                    _ => panic!("no row is bad"),
                })
                .collect();
            assert_eq!(all, text);
        }
        assert_eq!(line_ends(text), 4);
        assert_eq!(line_ends(b"a\r\nb\nc\r"), 3);
        // A row that is too long for one buffer of returns only.
        let long = format!("a\r{}\rb\r", "x".repeat(5_000));
        let found = pieces(long.as_bytes(), 100, true, 1_000);
        assert!(
            found.iter().any(|p| matches!(p, Piece::Bad { line: 2, .. })),
            "{found:?}"
        );
        assert!(matches!(found.last(), Some(Piece::Records { line: 3, bytes }) if bytes == b"b\r"));
        assert_eq!(
            pieces(b"{}\r{}\r", 1, false, 100),
            [Piece::Records {
                line: 1,
                bytes: b"{}\n{}\n".to_vec()
            }]
        );
    }

    #[test]
    fn byte_order_marks_before_rows_are_cut_out_and_nowhere_else() {
        let text = "\u{feff}a,b\n\u{feff}\"1\nx\",2\n3,\u{feff}\"\u{feff}\n4,\"\n\u{feff}\"\n";
        for step in 1..9 {
            let found = pieces(text.as_bytes(), step, true, 1_000);
            let all: Vec<u8> = found
                .iter()
                .flat_map(|p| match p {
                    Piece::Records { bytes, .. } => bytes.clone(),
                    _ => panic!("no row is bad: {p:?}"),
                })
                .collect();
            let want = "a,b\n\"1\nx\",2\n3,\u{feff}\"\u{feff}\n4,\"\n\u{feff}\"\n";
            assert_eq!(String::from_utf8(all).unwrap(), want);
        }
    }

    proptest! {
        /// Whatever the steps, the pieces together are the stream, cut at line ends, with the right line numbers.
        #[test]
        fn nothing_is_lost_between_pieces(
            lines in proptest::collection::vec("[a-z\" ]{0,40}", 0..60), step in 1usize..200, end in any::<bool>(),
        ) {
            let mut text = lines.join("\n");
            if end { text.push('\n'); }
            let (mut all, mut line) = (Vec::new(), 1);
            for piece in pieces(text.as_bytes(), step, false, 1_000) {
                let Piece::Records { line: first, bytes } = piece else { panic!("no line is bad") };
                prop_assert_eq!(first, line);
                line += bytes.iter().filter(|b| **b == b'\n').count() as u64;
                all.extend(bytes);
            }
            prop_assert_eq!(all, text.into_bytes());
        }

        /// Rows with line ends inside quotes stay whole: the cut agrees with the csv library.
        #[test]
        fn rows_are_cut_where_the_csv_library_ends_them(
            rows in proptest::collection::vec(proptest::collection::vec("[a-z\",\n\r ]{0,9}", 2..4), 1..40), step in 1usize..50,
        ) {
            let mut writer = csv::WriterBuilder::new().flexible(true).from_writer(Vec::new());
            for row in &rows { writer.write_record(row).expect("write"); }
            let text = writer.into_inner().expect("text");
            let mut found = Vec::new();
            for piece in pieces(&text, step, true, 10_000) {
                let Piece::Records { bytes, .. } = piece else { panic!("no row is bad") };
                let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(&bytes[..]);
                for row in reader.records() {
                    found.push(row.expect("row").iter().map(str::to_owned).collect::<Vec<_>>());
                }
            }
            prop_assert_eq!(found, rows);
        }
    }
}
