//! How a file is imported: what the command or a request says.

use super::rows::Format;
use crate::api::ImportRequest;
use std::path::PathBuf;

/// Bytes of the longest record, unless the log's segments are smaller than usual: what the ledger may have to keep of
/// it must fit into one frame, too.
pub const LONGEST: usize = 15 << 20;

/// Room in a frame beside one record.
const FRAME_ROOM: u64 = 64 << 10;

/// How a file is imported.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// Name of the file, as `source` will say; folders are cut off.
    pub name: String,
    /// Its form; by name and content where not given.
    pub format: Option<Format>,
    /// Where the records' keys come from, if they are to have any.
    pub key: Option<KeyFrom>,
    /// Between the fields of CSV; by its content where not given.
    pub delimiter: Option<u8>,
    /// Import it even if the same content was imported before.
    pub again: bool,
    /// Where it begins with a content imported before: only what follows.
    pub rest: bool,
    /// The first bad line ends it, and nothing is imported.
    pub strict: bool,
    /// Where rejects are written; none: they are counted and the first ones are reported.
    pub rejects: Option<PathBuf>,
    /// Bytes of the longest line, CSV row or record. Default [`LONGEST`].
    pub longest: usize,
}

impl ImportOptions {
    /// Usual options for a file of this name.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            format: None,
            key: None,
            delimiter: None,
            again: false,
            rest: false,
            strict: false,
            rejects: None,
            longest: LONGEST,
        }
    }

    /// Takes no record longer than fits into a frame of a log with segments of this size.
    pub fn within(mut self, segment_bytes: u64) -> Self {
        let room = (segment_bytes / 4).saturating_sub(FRAME_ROOM).max(1 << 10);
        self.longest = self.longest.min(usize::try_from(room).unwrap_or(usize::MAX));
        self
    }

    /// As a request to a node says it. The reject file is named by the node.
    ///
    /// # Errors
    /// What is wrong with the request.
    pub fn of_request(request: &ImportRequest) -> Result<Self, String> {
        let mut options = Self::new(request.name.as_str());
        options.again = request.again;
        options.rest = request.rest;
        if options.again && options.rest {
            return Err("again imports all lines, rest only the new ones: say one of them".into());
        }
        options.delimiter = request.delimiter.as_deref().map(delimiter).transpose()?;
        options.strict = request.strict;
        options.key = request.key.as_deref().map(str::parse).transpose()?;
        options.format = match request.format.as_deref() {
            None | Some("auto") => None,
            Some(word) => Some(Format::of_word(word).ok_or_else(|| {
                format!("unknown format `{word}`, expected jsonl, json, csv, urls or auto")
            })?),
        };
        Ok(options)
    }

    pub(super) fn short_name(&self) -> &str {
        let short = self.name.rsplit('/').next().unwrap_or(&self.name);
        if short.is_empty() { "stdin" } else { short }
    }
}

/// Reads a delimiter: one character, or its name.
fn delimiter(text: &str) -> Result<u8, String> {
    match (text, text.as_bytes()) {
        ("tab" | "\\t", _) => Ok(b'\t'),
        (_, [byte]) if byte.is_ascii() && !matches!(byte, b'"' | b'\n' | b'\r') => Ok(*byte),
        _ => Err(format!(
            "the delimiter `{text}` cannot be used, expected one character, or tab"
        )),
    }
}

/// Where an imported record's key comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyFrom {
    /// `json:/POINTER` into the value.
    Json(String),
    /// A column of a CSV file.
    Column(String),
}

impl std::str::FromStr for KeyFrom {
    type Err = String;
    /// Reads `json:/POINTER` or the name of a column.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("json:") {
            Some(pointer) if pointer.starts_with('/') => Ok(KeyFrom::Json(pointer.to_owned())),
            Some(_) => Err("expected json:/POINTER or the name of a CSV column".into()),
            None => Ok(KeyFrom::Column(text.to_owned())),
        }
    }
}

/// How far an import is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Which pass: 1 hashes, 2 imports.
    pub pass: u8,
    /// Bytes of the file read in this pass (packed, where it is packed).
    pub bytes: u64,
    /// Bytes of the file.
    pub total: u64,
    /// Lines taken.
    pub lines: u64,
}

/// Where the command wants keys from, as it says it.
pub(super) fn key_asked(options: &ImportOptions) -> Option<String> {
    options.key.as_ref().map(|key| match key {
        KeyFrom::Json(pointer) => format!("json:{pointer}"),
        KeyFrom::Column(name) => format!("column {name}"),
    })
}
