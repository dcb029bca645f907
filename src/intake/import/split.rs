//! Cuts a stream into pieces of whole records, so that another thread can read them while this one goes on.
//!
//! Lines end at `\n`. In CSV a quoted field may hold line ends, so the cut follows the quotes; a quote that is opened
//! and never closed would swallow the rest of the file: its line is given up, and reading goes on with the next one.
//! Memory is bounded by the piece and the longest line allowed (I6).

use std::io::{self, Read};

/// Bytes of a piece, about.
const PIECE: usize = 512 << 10;
/// Bytes kept of a line that is too long, to show in the reject file.
const SAMPLE: usize = 1 << 10;

/// A part of the stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Whole records; the first begins at this line (from 1).
    Records { line: u64, bytes: Vec<u8> },
    /// A line that cannot be a record.
    Bad {
        line: u64,
        sample: Vec<u8>,
        reason: &'static str,
    },
}

/// Why a line was given up.
pub(super) const TOO_LONG: &str = "longer than a record may be";
/// Why a line was given up.
pub(super) const OPEN_QUOTE: &str = "a quote is opened and not closed";

#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    FieldStart,
    Field,
    Quoted,
    /// After a quote inside a quoted field: its end, or the first half of an escaped quote.
    Quote,
}

/// Cuts a stream into [`Piece`]s.
pub(super) struct Splitter<R> {
    from: R,
    buf: Vec<u8>,
    /// Number of the line that `buf` begins with.
    line: u64,
    longest: usize,
    /// For CSV: where the scan is, and the end of the last whole record before it.
    csv: Option<(At, usize)>,
    whole: usize,
    ended: bool,
    begun: bool,
}

impl<R: Read> Splitter<R> {
    /// A splitter of lines, or of CSV rows; no line (row) may be longer than `longest` bytes.
    pub(super) fn new(from: R, csv: bool, longest: usize) -> Self {
        let csv = csv.then_some((At::FieldStart, 0));
        Self {
            from,
            buf: Vec::new(),
            line: 1,
            longest,
            csv,
            whole: 0,
            ended: false,
            begun: false,
        }
    }

    /// What was read from.
    pub(super) fn into_inner(self) -> R {
        self.from
    }

    /// The next piece; none at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<Piece>> {
        loop {
            self.scan();
            if self.whole > 0 && (self.whole >= PIECE || self.ended) {
                return Ok(Some(self.cut()));
            }
            if self.ended {
                if self.buf.is_empty() {
                    return Ok(None);
                }
                if !matches!(self.csv, Some((At::Quoted, _))) {
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
        let Some((mut at, from)) = self.csv else {
            if let Some(end) = memchr::memrchr(b'\n', &self.buf[self.whole..]) {
                self.whole += end + 1;
            }
            return;
        };
        for (i, byte) in self.buf[from..].iter().enumerate() {
            at = match (at, *byte) {
                (At::Quoted, b'"') => At::Quote,
                (At::Quoted, _) | (At::Quote, b'"') => At::Quoted,
                (_, b'\n') => {
                    self.whole = from + i + 1;
                    At::FieldStart
                }
                (_, b',' | b'\r') => At::FieldStart,
                (At::FieldStart, b'"') => At::Quoted,
                _ => At::Field,
            };
        }
        self.csv = Some((at, self.buf.len()));
    }

    fn cut(&mut self) -> Piece {
        let rest = self.buf.split_off(self.whole);
        let bytes = std::mem::replace(&mut self.buf, rest);
        let line = self.line;
        self.line += memchr::memchr_iter(b'\n', &bytes).count() as u64;
        if let Some((_, at)) = &mut self.csv {
            *at -= self.whole;
        }
        self.whole = 0;
        Piece::Records { line, bytes }
    }

    /// Drops the first line of the buffer, reading on to its end if need be.
    fn give_up(&mut self, reason: &'static str) -> io::Result<Piece> {
        let sample = |buf: &[u8]| {
            let end = memchr::memchr(b'\n', buf).unwrap_or(buf.len());
            buf[..end.min(SAMPLE)].to_vec()
        };
        let sample = sample(&self.buf);
        let line = self.line;
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.buf) {
                self.buf.drain(..=end);
                self.line += 1;
                break;
            }
            self.buf.clear();
            if self.ended {
                break;
            }
            self.fill()?;
        }
        self.whole = 0;
        if self.csv.is_some() {
            self.csv = Some((At::FieldStart, 0));
        }
        Ok(Piece::Bad { line, sample, reason })
    }

    fn fill(&mut self) -> io::Result<()> {
        let before = self.buf.len();
        self.buf.resize(before + (128 << 10), 0);
        let n = loop {
            match self.from.read(&mut self.buf[before..]) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.buf.truncate(before + *n.as_ref().unwrap_or(&0));
        self.ended = n? == 0;
        // A byte order mark says nothing in UTF-8 and is no part of the first line.
        if !self.begun && (self.buf.len() >= 3 || self.ended) {
            self.begun = true;
            if self.buf.starts_with(b"\xef\xbb\xbf") {
                self.buf.drain(..3);
                self.csv = self.csv.map(|_| (At::FieldStart, 0));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Gives a few bytes at a time.
    struct Slow<'a>(&'a [u8], usize);
    impl Read for Slow<'_> {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            let n = self.1.min(self.0.len()).min(to.len());
            to[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    fn pieces(bytes: &[u8], step: usize, csv: bool, longest: usize) -> Vec<Piece> {
        let mut splitter = Splitter::new(Slow(bytes, step), csv, longest);
        std::iter::from_fn(|| splitter.next().expect("read")).collect()
    }

    #[test]
    fn a_line_that_is_too_long_is_given_up_alone() {
        let text = format!("a\n{}\nb\n", "x".repeat(5_000));
        let found = pieces(text.as_bytes(), 100, false, 1_000);
        let bad = found.iter().find_map(|p| match p {
            Piece::Bad { line, sample, reason } => Some((*line, sample.len(), *reason)),
            Piece::Records { .. } => None,
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

    proptest! {
        /// Whatever the steps, the pieces together are the stream, cut at line ends, with the right line numbers.
        #[test]
        fn nothing_is_lost_between_pieces(
            lines in proptest::collection::vec("[a-z\"\r ]{0,40}", 0..60), step in 1usize..200, end in any::<bool>(),
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
            rows in proptest::collection::vec(proptest::collection::vec("[a-z\",\n ]{0,9}", 2..4), 1..40), step in 1usize..50,
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
