//! What a file holds, told from its name and its beginning. Pure.

use super::rows::Format;
use serde_json::error::Category;

/// Bytes of the beginning that decide.
pub(super) const BEGINNING: u64 = 64 << 10;
/// Delimiters that a CSV file may have.
const DELIMITERS: [u8; 4] = [b',', b';', b'\t', b'|'];
/// Rows that a delimiter is tried on.
const ROWS: usize = 20;

/// How a file is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Its form.
    pub format: Format,
    /// Between the fields of CSV.
    pub delimiter: u8,
    /// The first line of the CSV file only names the delimiter (`sep=;`).
    pub sep_line: bool,
}

/// Why a beginning cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unclear {
    /// Nothing says what form it has.
    Format,
    /// JSON lines were asked for, and a value goes over several lines.
    OverLines,
}

/// Tells the shape of a file by its beginning (`whole`: that is all of it), its name, and what was asked for.
pub fn shape(
    start: &[u8],
    whole: bool,
    name: &str,
    asked: Option<Format>,
    delimiter: Option<u8>,
) -> Result<Shape, Unclear> {
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start);
    let format = asked
        .or_else(|| Format::of_name(name))
        .or_else(|| Format::of_start(start));
    let plain = |format| Shape {
        format,
        delimiter: b',',
        sep_line: false,
    };
    match format.ok_or(Unclear::Format)? {
        Format::JsonLines => match (over_lines(start, whole), asked) {
            (Json::Lines, _) => Ok(plain(Format::JsonLines)),
            // Whoever asks for lines gets the one line as one record.
            (Json::OneArray, Some(_)) => Ok(plain(Format::JsonLines)),
            (Json::OverLines, Some(_)) => Err(Unclear::OverLines),
            (Json::OneArray | Json::OverLines, None) => Ok(plain(Format::Json)),
        },
        Format::Csv => Ok(csv_shape(start, whole, name, delimiter)),
        other => Ok(plain(other)),
    }
}

/// The shape of a file whose beginning was read in this format, with this delimiter.
pub(super) fn as_before(start: &[u8], name: &str, format: Format, delimiter: Option<u8>) -> Shape {
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start);
    match format {
        Format::Csv => csv_shape(start, false, name, delimiter),
        format => Shape {
            format,
            delimiter: b',',
            sep_line: false,
        },
    }
}

enum Json {
    Lines,
    OneArray,
    OverLines,
}

/// Whether JSON has a value a line. The first line decides: it is a whole value, or its value goes on in the next line.
fn over_lines(start: &[u8], whole: bool) -> Json {
    let text = start.trim_ascii_start();
    let line_end = match memchr::memchr(b'\n', text) {
        None => memchr::memchr(b'\r', text),
        end => end,
    };
    let (line, rest, complete) = match line_end {
        Some(end) => (&text[..end], text[end..].trim_ascii(), true),
        None => (text, &b""[..], whole),
    };
    let is_array = line.first() == Some(&b'[');
    if !complete {
        // A first line this long is an array, or a record of its own.
        return if is_array { Json::OneArray } else { Json::Lines };
    }
    match serde_json::from_slice::<serde::de::IgnoredAny>(line) {
        Ok(_) if is_array && whole && rest.is_empty() => Json::OneArray,
        Err(e) if e.classify() == Category::Eof && matches!(line.first(), Some(b'[' | b'{')) => {
            // A single line that was cut off is a bad line, not the beginning of more.
            if rest.is_empty() && whole && !is_array {
                Json::Lines
            } else {
                Json::OverLines
            }
        }
        // `[1,2],` within an array that began in the line before would not be the first line.
        _ => Json::Lines,
    }
}

fn csv_shape(start: &[u8], whole: bool, name: &str, asked: Option<u8>) -> Shape {
    let line_end = memchr::memchr2(b'\n', b'\r', start).unwrap_or(start.len());
    let first = start[..line_end].trim_ascii();
    let bare = first
        .strip_prefix(b"\"")
        .and_then(|f| f.strip_suffix(b"\""))
        .unwrap_or(first);
    let named = match bare {
        [s, e, p, b'=', delimiter] if [*s, *e, *p].eq_ignore_ascii_case(b"sep") && delimiter.is_ascii() => {
            Some(*delimiter)
        }
        _ => None,
    };
    // A tab at the end was trimmed away above.
    let named = named.or_else(|| {
        (bare.eq_ignore_ascii_case(b"sep=") && start[..line_end].contains(&b'\t')).then_some(b'\t')
    });
    Shape {
        format: Format::Csv,
        delimiter: asked.or(named).unwrap_or_else(|| delimiter(start, whole, name)),
        sep_line: named.is_some(),
    }
}

/// The delimiter under which header and first rows agree. A comma where the header has one and nothing speaks for
/// another; never a comma where the header then has one column that holds another delimiter.
fn delimiter(start: &[u8], whole: bool, name: &str) -> u8 {
    let tried = DELIMITERS.map(|delimiter| (delimiter, Tried::with(start, whole, delimiter)));
    let comma = &tried[0].1;
    if comma.columns > 1 && comma.agree {
        return b',';
    }
    let is_tsv = Format::is_tsv(name);
    let best = tried
        .iter()
        .filter(|(_, t)| t.columns > 1)
        .max_by_key(|(delimiter, t)| {
            (
                t.agree,
                is_tsv && *delimiter == b'\t',
                t.columns,
                std::cmp::Reverse(DELIMITERS.iter().position(|d| d == delimiter)),
            )
        });
    match best {
        Some((delimiter, best)) if best.agree || comma.columns <= 1 => *delimiter,
        _ => b',',
    }
}

struct Tried {
    columns: usize,
    /// All rows looked at have as many fields as the header.
    agree: bool,
}

impl Tried {
    fn with(start: &[u8], whole: bool, delimiter: u8) -> Self {
        let mut reader = csv::ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .delimiter(delimiter)
            .from_reader(start);
        let mut counts: Vec<usize> = Vec::new();
        let mut row = csv::ByteRecord::new();
        while counts.len() <= ROWS && matches!(reader.read_byte_record(&mut row), Ok(true)) {
            counts.push(row.len());
        }
        // The last row may be cut off by the end of what was read.
        if !whole && counts.len() <= ROWS {
            counts.pop();
        }
        let columns = counts.first().copied().unwrap_or(0);
        Self {
            columns,
            agree: counts.iter().all(|n| *n == columns),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str, name: &str) -> Result<Shape, Unclear> {
        shape(text.as_bytes(), true, name, None, None)
    }

    #[test]
    fn arrays_and_values_over_lines_are_no_json_lines() {
        let format = |text: &str| told(text, "x.json").map(|s| s.format);
        for lines in [
            "{\"a\":1}\n{\"a\":2}",
            "[1]\n[2]\n",
            "{\"a\":1}",
            "",
            "x\n",
            "{\"a\":",
            "7\n",
        ] {
            assert_eq!(format(lines), Ok(Format::JsonLines), "{lines}");
        }
        for values in [
            "[{\"a\":1},{\"a\":2}]",
            "[\n{\"a\":1}\n]",
            " \n[\r\n1]",
            "{\n\"a\":1\n}\n{\n}",
            "[{\"a\":1},\n{\"a\":2}]",
            "[",
            "[\r1\r]",
        ] {
            assert_eq!(format(values), Ok(Format::Json), "{values}");
        }
        let long = format!("[{}", "1,".repeat(9));
        assert_eq!(
            shape(long.as_bytes(), false, "x.jsonl", None, None).map(|s| s.format),
            Ok(Format::Json)
        );
        let asked =
            |text: &str| shape(text.as_bytes(), true, "x", Some(Format::JsonLines), None).map(|s| s.format);
        assert_eq!(asked("[1,2]"), Ok(Format::JsonLines));
        assert_eq!(asked("[\n1\n]"), Err(Unclear::OverLines));
        assert_eq!(told("a,b", "x.txt"), Err(Unclear::Format));
    }

    #[test]
    fn a_delimiter_is_found_where_header_and_rows_agree() {
        let found = |text: &str| {
            told(text, "x.csv")
                .map(|s| (s.delimiter, s.sep_line))
                .expect("csv")
        };
        for (text, delimiter) in [
            ("id,v\n1,a\n", b','),
            ("id;v\n1;a\n", b';'),
            ("id\tv\n1\ta\n", b'\t'),
            ("id|v\r1|a\r", b'|'),
            // Commas of decimals, and a note with semicolons.
            ("id;price\n1;2,50\n2;3,10\n", b';'),
            ("id,note\n1,a;b\n2,\"c;d,e\"\n", b','),
            ("id;a,b\n1;x\n2;y\n", b';'),
            // Rows that do not agree with anything: still no column `id;v`.
            ("id;v\n1;a;x\n", b';'),
            ("id\n1\n2\n", b','),
            ("", b','),
        ] {
            assert_eq!(found(text), (delimiter, false), "{text}");
        }
        assert_eq!(found("sep=;\nid;v\n1;a\n"), (b';', true));
        assert_eq!(found("\u{feff}SEP=\t\r\nid\tv\n"), (b'\t', true));
        let asked = shape(b"id;v\n1;a\n", true, "x.csv", None, Some(b',')).expect("csv");
        assert_eq!(asked.delimiter, b',');
        assert_eq!(told("id\tv", "x.tsv").expect("tsv").delimiter, b'\t');
    }
}
