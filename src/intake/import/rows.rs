//! From lines to values: JSON lines, CSV rows (each becomes an object of texts), plain URLs. Pure.

use super::split::RowLines;
use crate::core::pointer::NotJson;
use serde_json::Value;
use std::borrow::Cow;
use std::io;

/// Forms of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON value a line.
    JsonLines,
    /// JSON that is not one value a line: arrays, whose elements are the records, or values over several lines.
    Json,
    /// CSV with a header; each row becomes a JSON object whose values are texts.
    Csv,
    /// One URL (http or https) a line.
    Urls,
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::JsonLines => "JSON lines",
            Self::Json => "JSON",
            Self::Csv => "CSV",
            Self::Urls => "URLs",
        })
    }
}

impl Format {
    /// What its records are numbered by.
    pub(super) fn unit(self) -> &'static str {
        match self {
            Self::Json => "element",
            Self::JsonLines | Self::Csv | Self::Urls => "line",
        }
    }

    /// As `--format` and the registry name it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::JsonLines => "jsonl",
            Self::Json => "json",
            Self::Csv => "csv",
            Self::Urls => "urls",
        }
    }

    /// The form of this name.
    pub(super) fn of_word(word: &str) -> Option<Self> {
        [Self::JsonLines, Self::Json, Self::Csv, Self::Urls]
            .into_iter()
            .find(|format| format.word() == word)
    }

    /// By the name of a file, packing endings ignored.
    pub fn of_name(name: &str) -> Option<Self> {
        match extension(name)?.as_str() {
            // Whether a file of these names has arrays its beginning says.
            "jsonl" | "ndjson" | "json" | "jsonlines" => Some(Format::JsonLines),
            "csv" | "tsv" => Some(Format::Csv),
            "urls" | "url" => Some(Format::Urls),
            _ => None,
        }
    }

    /// Whether a name says that tabs are between the fields.
    pub(super) fn is_tsv(name: &str) -> bool {
        extension(name).is_some_and(|extension| extension == "tsv")
    }

    /// By how the content begins. CSV is not guessed: nearly any text could be CSV.
    pub fn of_start(start: &[u8]) -> Option<Self> {
        let start = start
            .strip_prefix(b"\xef\xbb\xbf")
            .unwrap_or(start)
            .trim_ascii_start();
        match start {
            [b'{' | b'[', ..] => Some(Format::JsonLines),
            _ if start.starts_with(b"http://") || start.starts_with(b"https://") => Some(Format::Urls),
            _ => None,
        }
    }
}

/// The end of a name without that of its packing, in lower case.
fn extension(name: &str) -> Option<String> {
    let lower = name.to_ascii_lowercase();
    let bare = [".gz", ".zst", ".zstd"]
        .iter()
        .find_map(|e| lower.strip_suffix(e))
        .unwrap_or(&lower);
    Some(bare.rsplit_once('.')?.1.to_owned())
}

/// The lines of a piece without what stands around them, numbered from `first` on.
pub(super) fn lines(bytes: &[u8], first: u64) -> impl Iterator<Item = (u64, &[u8])> {
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    (first..)
        .zip(bytes.split(|byte| *byte == b'\n'))
        .map(|(line, text)| {
            let text = text.trim_ascii();
            // Where files were put together a byte order mark may stand before any line.
            let text = text
                .strip_prefix(b"\xef\xbb\xbf")
                .map_or(text, <[u8]>::trim_ascii_start);
            (line, text)
        })
}

/// The rows of a piece of CSV, numbered by the lines that they begin in.
pub(super) struct Rows<'a> {
    bytes: &'a [u8],
    reader: csv::Reader<&'a [u8]>,
    row: csv::ByteRecord,
    lines: RowLines<'a>,
    /// Where the row begins.
    start: usize,
}

impl<'a> Rows<'a> {
    pub(super) fn new(bytes: &'a [u8], first: u64, delimiter: u8) -> Self {
        let reader = csv::ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .delimiter(delimiter)
            .from_reader(bytes);
        Self {
            bytes,
            reader,
            row: csv::ByteRecord::new(),
            lines: RowLines::new(bytes, first),
            start: 0,
        }
    }

    /// Reads the next row; its number.
    pub(super) fn next(&mut self) -> io::Result<Option<u64>> {
        if !self.reader.read_byte_record(&mut self.row)? {
            return Ok(None);
        }
        let (start, line) = self.lines.begin(&self.row);
        self.start = start;
        Ok(Some(line))
    }

    /// Its fields.
    pub(super) fn row(&self) -> &csv::ByteRecord {
        &self.row
    }

    /// Its text.
    pub(super) fn raw(&self) -> &'a [u8] {
        let end = self.reader.position().byte() as usize;
        self.bytes[self.start..end.clamp(self.start, self.bytes.len())].trim_ascii_end()
    }
}

/// Checks one JSON line. With `form_only` the caller reads it as JSON anyway, and only its bytes are checked here.
pub(super) fn json_line(line: &[u8], form_only: bool) -> Result<Cow<'_, [u8]>, String> {
    let text = std::str::from_utf8(line).map_err(not_utf8)?;
    if !form_only {
        serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|e| not_json(&e))?;
    }
    Ok(Cow::Borrowed(line))
}

/// Checks one URL.
pub(super) fn url_line(line: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    let text = std::str::from_utf8(line).map_err(not_utf8)?;
    if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err("not a URL: white space inside".into());
    }
    match url::Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(Cow::Borrowed(line)),
        Ok(url) => Err(format!("not an http or https URL but `{}`", url.scheme())),
        Err(e) => Err(format!("not a URL: {e}")),
    }
}

/// The header of a CSV file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Header {
    /// Names, each already as JSON text with its colon.
    keys: Vec<String>,
    names: Vec<String>,
}

impl Header {
    /// Reads it; a name that is empty or there twice is refused.
    pub(super) fn new(row: &csv::ByteRecord) -> Result<Self, String> {
        let mut names: Vec<String> = Vec::new();
        for field in row {
            let name = std::str::from_utf8(field).map_err(not_utf8)?.trim();
            if name.is_empty() {
                return Err(format!("column {} has no name", names.len() + 1));
            }
            if names.iter().any(|n| n == name) {
                return Err(format!("column `{name}` is there twice"));
            }
            names.push(name.to_owned());
        }
        let keys = names
            .iter()
            .map(|n| format!("{}:", Value::from(n.as_str())))
            .collect();
        Ok(Self { keys, names })
    }

    /// Whether a row is this header once more, as in files that were put together.
    pub(super) fn is_repeated(&self, row: &csv::ByteRecord) -> bool {
        row.len() == self.names.len()
            && row
                .iter()
                .zip(&self.names)
                .all(|(f, n)| f.trim_ascii() == n.as_bytes())
    }

    /// Whether a row is a header with the same columns in another order: its rows would be read wrongly.
    pub(super) fn is_shuffled(&self, row: &csv::ByteRecord) -> bool {
        let names = |field: &[u8]| self.names.iter().any(|n| n.as_bytes() == field.trim_ascii());
        // One column is not an order, and a row may well hold the name of a column.
        row.len() == self.names.len() && row.len() > 1 && row.iter().all(names) && {
            let mut fields: Vec<_> = row.iter().map(<[u8]>::trim_ascii).collect();
            fields.sort_unstable();
            fields.windows(2).all(|pair| pair[0] != pair[1])
        }
    }

    /// Names of the columns.
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    /// Index of a column.
    pub(super) fn column(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|n| n == name)
    }

    /// A row as a JSON object, fields in the order of the columns.
    pub(super) fn object(&self, row: &csv::ByteRecord) -> Result<Cow<'static, [u8]>, String> {
        if row.len() != self.keys.len() {
            return Err(format!(
                "{} fields where the header has {}",
                row.len(),
                self.keys.len()
            ));
        }
        let mut out = Vec::with_capacity(row.as_slice().len() + 8 * self.keys.len() + 64);
        for (key, field) in self.keys.iter().zip(row) {
            let text = std::str::from_utf8(field).map_err(not_utf8)?;
            out.push(if out.is_empty() { b'{' } else { b',' });
            out.extend_from_slice(key.as_bytes());
            serde_json::to_writer(&mut out, text).map_err(|e| e.to_string())?;
        }
        out.push(b'}');
        Ok(Cow::Owned(out))
    }
}

fn not_utf8(error: std::str::Utf8Error) -> String {
    format!(
        "not UTF-8 at byte {} (an older encoding? iconv -f WINDOWS-1252 -t UTF-8 converts it)",
        error.valid_up_to() + 1
    )
}

/// What the parser says, without `line 1`, which would be mistaken for the file's.
fn not_json(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or(&text);
    format!("not JSON: {what} at column {}", error.column())
}

/// A value that could not be placed because it is no JSON.
pub(super) fn placing_failed(error: &NotJson) -> String {
    match std::error::Error::source(error).and_then(|e| e.downcast_ref::<serde_json::Error>()) {
        Some(e) => not_json(e),
        None => format!("not JSON at column {}", error.column),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_told_by_name_then_by_content() {
        assert_eq!(Format::of_name("a/b/day.JSONL.gz"), Some(Format::JsonLines));
        assert_eq!(Format::of_name("x.csv.zst"), Some(Format::Csv));
        assert_eq!(Format::of_name("x.txt"), None);
        assert_eq!(
            Format::of_start(b"\xef\xbb\xbf\n {\"a\""),
            Some(Format::JsonLines)
        );
        assert_eq!(Format::of_start(b"https://x"), Some(Format::Urls));
        assert_eq!(Format::of_start(b"a,b"), None);
    }

    #[test]
    fn reasons_say_where_and_never_what() {
        let reason = json_line(br#"{"card":"4111111111111111",}"#, false).expect_err("comma");
        assert!(
            reason.starts_with("not JSON") && reason.contains("column") && !reason.contains("4111"),
            "{reason}"
        );
        assert!(
            json_line(b"{\"a\":\"\xff\"}", false)
                .expect_err("bytes")
                .contains("byte 7")
        );
        assert!(json_line(b"{} {}", false).is_err());
        assert!(json_line(b"[1,2]", false).is_ok());
        assert!(
            url_line(b"ftp://x/y").is_err()
                && url_line(b"nonsense").is_err()
                && url_line(b"http://x/a b").is_err()
        );
        assert!(url_line(b"https://x.example/a?b=c").is_ok());
    }

    #[test]
    fn a_row_becomes_an_object_of_texts() {
        let header = Header::new(&csv::ByteRecord::from(vec!["id", " na\"me "])).expect("header");
        let row = header
            .object(&csv::ByteRecord::from(vec!["7", "a\"b\n"]))
            .expect("row");
        let value: Value = serde_json::from_slice(&row).expect("json");
        assert_eq!(value, serde_json::json!({"id": "7", "na\"me": "a\"b\n"}));
        assert!(header.object(&csv::ByteRecord::from(vec!["7"])).is_err());
        assert!(
            header
                .object(&csv::ByteRecord::from(vec![&b"7"[..], b"\xff"]))
                .is_err()
        );
        assert!(Header::new(&csv::ByteRecord::from(vec!["a", "a"])).is_err());
        let row = |fields: &[&str]| csv::ByteRecord::from(fields.to_vec());
        assert!(header.is_repeated(&row(&["id", " na\"me"])) && !header.is_repeated(&row(&["id", "x"])));
        assert!(header.is_shuffled(&row(&["na\"me", "id"])));
        assert!(!header.is_shuffled(&row(&["id", "id"])) && !header.is_shuffled(&row(&["id", "7"])));
    }
}
