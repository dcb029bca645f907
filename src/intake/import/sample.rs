//! The first records of a file, read as an import would read them: what `init --sample` makes its proposal of.

use super::cutter::Cutter;
use super::error::{ImportError, unreadable};
use super::options::LONGEST;
use super::rows::{self, Format, Header};
use super::sniff;
use super::source::Content;
use super::split::{Piece, RowLines};
use crate::intake::hints::Fields;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

/// Bytes of a pipe that are looked at.
const OF_PIPE: u64 = 4 << 20;

/// What the first records of a file show.
#[derive(Debug)]
pub struct Sample {
    /// Its form.
    pub format: Format,
    /// Between the fields of CSV.
    pub delimiter: u8,
    /// The fields of its records; of URLs their parameters.
    pub fields: Fields,
    /// The first line (or element) that cannot be read, and why.
    pub rejected: Option<(u64, String)>,
}

/// Reads the first records of a file, or of what comes out of a pipe.
///
/// # Errors
/// It cannot be read, or nothing says what form it has.
pub fn sample(path: &Path, name: &str, asked: Option<Format>) -> Result<Sample, ImportError> {
    if path.metadata().map_err(|e| unreadable(name, e))?.is_file() {
        return of_file(path, name, asked);
    }
    let mut copy = tempfile::NamedTempFile::new().map_err(|e| unreadable(name, e))?;
    let mut pipe = File::open(path).map_err(|e| unreadable(name, e))?.take(OF_PIPE);
    std::io::copy(&mut pipe, &mut copy).map_err(|e| unreadable(name, e))?;
    of_file(copy.path(), name, asked)
}

fn of_file(path: &Path, name: &str, asked: Option<Format>) -> Result<Sample, ImportError> {
    let open = || Content::open(path, Arc::default()).map_err(|e| unreadable(name, e));
    let mut start = Vec::new();
    open()?
        .take(sniff::BEGINNING)
        .read_to_end(&mut start)
        .map_err(|e| unreadable(name, e))?;
    let whole = (start.len() as u64) < sniff::BEGINNING;
    let shape = sniff::shape(&start, whole, name, asked, None)
        .map_err(|unclear| ImportError::unclear(unclear, name))?;
    let mut sample = Sample {
        format: shape.format,
        delimiter: shape.delimiter,
        fields: Fields::default(),
        rejected: None,
    };
    let mut cutter = Cutter::new(open()?, shape, LONGEST);
    let mut header = None;
    let mut skip_line = shape.sep_line;
    while sample.fields.wants_more() {
        let piece = match cutter.next() {
            Ok(Some(piece)) => piece,
            Ok(None) => break,
            // A file or pipe that is broken further on has shown what it holds.
            Err(_) if sample.fields.records() > 0 => break,
            Err(e) => return Err(unreadable(name, e)),
        };
        match piece {
            Piece::Bad { line, reason, .. } => sample.reject(line, reason.to_owned()),
            Piece::Values { bytes, values } => {
                for value in values {
                    sample.note(
                        value.number,
                        rows::json_line(&bytes[value.bytes], false).map(|json| json.into_owned()),
                    );
                }
            }
            Piece::Records { line, bytes } if shape.format == Format::Csv => {
                sample.rows(line, &bytes, &mut header, &mut skip_line, name)?;
            }
            Piece::Records { line, bytes } => sample.lines(line, &bytes),
        }
    }
    Ok(sample)
}

impl Sample {
    fn reject(&mut self, line: u64, reason: String) {
        self.rejected.get_or_insert((line, reason));
    }

    fn note(&mut self, line: u64, value: Result<Vec<u8>, String>) {
        match value {
            Ok(value) => self.fields.note(&value),
            Err(reason) => self.reject(line, reason),
        }
    }

    fn lines(&mut self, first: u64, bytes: &[u8]) {
        for (line, text) in (first..).zip(bytes.split(|byte| *byte == b'\n')) {
            let text = text.trim_ascii();
            let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
            if text.is_empty() {
                continue;
            }
            let value = match self.format {
                Format::Urls => rows::url_line(text).map(|url| parameters(&url)),
                _ => rows::json_line(text, false).map(|json| json.into_owned()),
            };
            self.note(line, value);
        }
    }

    fn rows(
        &mut self,
        first: u64,
        bytes: &[u8],
        header: &mut Option<Header>,
        skip_line: &mut bool,
        name: &str,
    ) -> Result<(), ImportError> {
        let mut reader = csv::ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .delimiter(self.delimiter)
            .from_reader(bytes);
        let mut row = csv::ByteRecord::new();
        let mut lines = RowLines::new(bytes, first);
        while reader
            .read_byte_record(&mut row)
            .map_err(|e| unreadable(name, e.into()))?
        {
            let (_, line) = lines.begin(&row);
            if std::mem::take(skip_line) {
                continue;
            }
            match header {
                None => {
                    let read = Header::new(&row).map_err(|reason| ImportError::Header {
                        name: name.to_owned(),
                        reason,
                    })?;
                    *header = Some(read);
                }
                Some(header) if header.is_repeated(&row) => {}
                Some(header) => {
                    self.note(line, header.object(&row).map(|json| json.into_owned()));
                }
            }
        }
        Ok(())
    }
}

/// The parameters of a URL as a JSON object; a name that is there twice is left out, as it cannot be an ID.
fn parameters(url: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(url);
    let mut object = serde_json::Map::new();
    let mut twice = Vec::new();
    if let Ok(url) = url::Url::parse(&text) {
        for (name, value) in url.query_pairs() {
            if object
                .insert(name.to_string(), value.into_owned().into())
                .is_some()
            {
                twice.push(name.into_owned());
            }
        }
    }
    for name in twice {
        object.remove(&name);
    }
    serde_json::Value::Object(object).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, bytes: &[u8]) -> Sample {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("written");
        sample(&path, name, None).expect("a sample")
    }

    #[test]
    fn each_form_shows_its_fields() {
        let gz = {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            std::io::Write::write_all(&mut out, b"{\"id\":1}\n{\"id\":2}\n").expect("gz");
            out.finish().expect("gz")
        };
        let cases: [(&str, &[u8], Format, &str); 6] = [
            (
                "a.jsonl",
                b"{\"id\":1,\"user\":\"u\"}\n{\"id\":2,\"user\":\"u\"}\n",
                Format::JsonLines,
                "id",
            ),
            ("b.jsonl.gz", &gz, Format::JsonLines, "id"),
            ("c.csv", b"sep=;\nevent_id;v\n1;a\n2;b\n", Format::Csv, "event_id"),
            (
                "d.json",
                b"[{\"uuid\":\"a\"},\n{\"uuid\":\"b\"}]",
                Format::Json,
                "uuid",
            ),
            (
                "e.txt",
                b"https://x/?click_id=1&a=1\nhttps://x/?a=1&click_id=2\n",
                Format::Urls,
                "click_id",
            ),
            ("f.jsonl", b"bad\n{\"id\":1}\n", Format::JsonLines, "id"),
        ];
        for (name, bytes, format, id) in cases {
            let sample = of(name, bytes);
            assert_eq!((sample.format, sample.fields.id()), (format, Some(id)), "{name}");
        }
        assert_eq!(
            of(
                "a.jsonl",
                b"{\"id\":1,\"user\":\"u\"}\n{\"id\":2,\"user\":\"u\"}\n"
            )
            .fields
            .key(),
            Some("user")
        );
        assert_eq!(
            of("f.jsonl", b"{\"id\":1}\nbad\n").rejected.map(|(line, _)| line),
            Some(2)
        );
        assert_eq!(of("c.csv", b"a;b\n1;2\n").delimiter, b';');
        assert_eq!(of("g.urls", b"https://x/?id=1&id=2\n").fields.id(), None);
    }
}
