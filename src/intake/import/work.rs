//! The second pass's work: from pieces to records in the transaction, rejects, and what is counted on the way.

use super::error::{ImportError, unreadable};
use super::grown::Begins;
use super::options::{ImportOptions, KeyFrom};
use super::reject::RejectFile;
use super::repeats::Repeats;
use super::rows::{self, Format, Header};
use super::sniff::Shape;
use super::source::Identity;
use super::split::{self, Piece};
use crate::api::RejectedLine;
use crate::config::TopicConfig;
use crate::core::record::{Headers, IMPORT_ID_HEADER, SOURCE_HEADER};
use crate::core::types::Time;
use crate::intake::hints::Fields;
use crate::intake::place::{Incoming, Place, Placer};
use crate::log::{Batch, LogError, LogTransaction, TopicMeta};

/// Rejects named in a report.
const NAMED: usize = 20;

/// A batch is written when it has so many bytes.
const BATCH: usize = 1 << 20;

/// What the second pass carries along.
pub(super) struct Work<'a> {
    pub(super) name: &'a str,
    pub(super) options: &'a ImportOptions,
    pub(super) shape: Shape,
    pub(super) identity: Identity,
    pub(super) placer: Placer,
    pub(super) topic: &'a TopicConfig,
    pub(super) meta: &'a TopicMeta,
    pub(super) at: Time,
    pub(super) batch: Batch,
    pub(super) transaction: Box<dyn LogTransaction>,
    pub(super) rejects: RejectFile,
    pub(super) reports: Vec<RejectedLine>,
    pub(super) accepted: u64,
    pub(super) rejected: u64,
    pub(super) last_line: u64,
    pub(super) header: Option<Header>,
    pub(super) key_column: Option<usize>,
    pub(super) begins: Option<Begins>,
    /// The last line has no line end.
    pub(super) ends_in_line: bool,
    /// Lines left out because an earlier import has them.
    pub(super) passed_over: u64,
    /// Records whose content gives them no message ID, where the topic looks for one in it.
    pub(super) without_id: u64,
    /// Whether records are to have a key, and those that have none.
    pub(super) wants_key: bool,
    pub(super) without_key: u64,
    pub(super) repeated_headers: u64,
    pub(super) repeats: Repeats,
    /// A repeated ID looks like a number that a spreadsheet has rounded.
    pub(super) shortened: bool,
    /// What records hold, where the topic uses no ID of theirs.
    pub(super) fields: Fields,
}

impl Work<'_> {
    pub(super) fn take(&mut self, piece: Piece) -> Result<(), ImportError> {
        match piece {
            // Without its header the rows mean nothing; the next row must not be taken for it.
            Piece::Bad { reason, .. } if self.shape.format == Format::Csv && self.header.is_none() => {
                Err(ImportError::Header {
                    name: self.name.to_owned(),
                    reason: reason.to_owned(),
                })
            }
            Piece::Bad { line, sample, reason } => self.reject(line, reason.into(), &sample),
            Piece::Records { line, bytes } if self.shape.format == Format::Csv => self.rows(line, &bytes),
            Piece::Records { line, bytes } => self.lines(line, &bytes),
            Piece::Values { bytes, values } => self.values(&bytes, &values),
        }
    }

    /// Only CSV has columns.
    fn no_columns(&self) -> Result<(), ImportError> {
        match &self.options.key {
            Some(KeyFrom::Column(_)) => Err(ImportError::Header {
                name: self.name.to_owned(),
                reason: "it has no columns; give the key as json:/POINTER".to_owned(),
            }),
            _ => Ok(()),
        }
    }

    fn values(&mut self, bytes: &[u8], values: &[split::Value]) -> Result<(), ImportError> {
        self.no_columns()?;
        for value in values {
            let text = &bytes[value.bytes.clone()];
            // Checked here even if the placer reads it, too: the reason says where the element begins.
            match rows::json_line(text, false) {
                Ok(json) => self.record(value.number, &json, None, text)?,
                Err(reason) => {
                    let reason = format!("element {}, from line {} on: {reason}", value.number, value.line);
                    self.reject(value.number, reason, text)?;
                }
            }
            self.last_line = value.number;
        }
        Ok(())
    }

    fn lines(&mut self, first: u64, bytes: &[u8]) -> Result<(), ImportError> {
        self.no_columns()?;
        let placer_parses = self.placer.reads_json();
        for (line, text) in rows::lines(bytes, first) {
            if !text.is_empty() {
                let row = match self.shape.format {
                    _ if text.len() > self.options.longest => Err(split::TOO_LONG.to_owned()),
                    Format::Urls => rows::url_line(text),
                    _ => rows::json_line(text, placer_parses),
                };
                match row {
                    Ok(value) => self.record(line, &value, None, text)?,
                    Err(reason) => self.reject(line, reason, text)?,
                }
            }
            self.last_line = line;
        }
        Ok(())
    }

    fn rows(&mut self, first: u64, bytes: &[u8]) -> Result<(), ImportError> {
        let mut rows = rows::Rows::new(bytes, first, self.shape.delimiter);
        while let Some(line) = rows.next().map_err(|e| unreadable(self.name, e))? {
            self.last_line = line;
            let (row, raw) = (rows.row(), rows.raw());
            if std::mem::take(&mut self.shape.sep_line) {
                continue;
            }
            let unusable_at = |reason| ImportError::Header {
                name: self.name.to_owned(),
                reason,
            };
            let Some(header) = &self.header else {
                let unusable = |reason| ImportError::Header {
                    name: self.name.to_owned(),
                    reason,
                };
                let header = Header::new(row).map_err(unusable)?;
                if let Some(KeyFrom::Column(name)) = &self.options.key {
                    let missing = || unusable(format!("it has no column `{name}`"));
                    self.key_column = Some(header.column(name).ok_or_else(missing)?);
                }
                self.header = Some(header);
                continue;
            };
            if header.is_repeated(row) {
                self.repeated_headers += 1;
                continue;
            }
            if header.is_shuffled(row) {
                let reason = format!(
                    "line {line} is another header, with the columns in another order; import the files that were put together one by one"
                );
                return Err(unusable_at(reason));
            }
            let read = match header.object(row) {
                _ if raw.len() > self.options.longest => Err(split::TOO_LONG.to_owned()),
                other => other,
            };
            match read {
                Ok(value) => {
                    let key = self
                        .key_column
                        .and_then(|column| row.get(column))
                        .filter(|k| !k.is_empty());
                    self.record(line, &value, key, raw)?;
                }
                Err(reason) => self.reject(line, reason, raw)?,
            }
        }
        Ok(())
    }

    /// Takes a record. `raw` is its line, should it be rejected after all.
    fn record(&mut self, line: u64, value: &[u8], key: Option<&[u8]>, raw: &[u8]) -> Result<(), ImportError> {
        use std::fmt::Write;
        let incoming = Incoming {
            key,
            value,
            headers: &[],
        };
        let place = match self.placer.place(incoming) {
            // Only what claims to be JSON is refused for not being it; a URL has no fields, and perhaps no ID.
            Ok(Place {
                not_json: Some(e), ..
            }) if self.shape.format != Format::Urls => {
                return self.reject(line, rows::placing_failed(&e), raw);
            }
            Ok(place) => place,
            Err(twice) => return self.reject(line, twice.to_string(), raw),
        };
        if let Some(begins) = self.begins.as_ref().filter(|begins| begins.has(line)) {
            if self.options.rest {
                self.passed_over += 1;
                return Ok(());
            }
            match &begins.unsure {
                _ if place.has_id => {}
                Some(why) => return Err(ImportError::unsure(self.name, &begins.entry, why.clone())),
                None => {
                    return Err(ImportError::Grown {
                        name: self.name.to_owned(),
                        earlier: begins.entry.name.clone(),
                        at: begins.entry.at.clone(),
                        lines: begins.last,
                        line,
                        unit: self.shape.format.unit(),
                    });
                }
            }
        }
        if place.has_id {
            if self.repeats.note(place.id_hash, line) && !self.shortened {
                self.shortened = place.looks_rounded;
            }
        } else {
            self.without_id += 1;
        }
        let lacks_key = self.wants_key && !place.has_key;
        self.without_key += u64::from(lacks_key);
        if (!place.has_id || lacks_key) && self.fields.wants_more() {
            self.fields.note(value);
        }
        let count = self.meta.partitions.len().max(1);
        let index = place.partition.map_or(line as usize % count, |p| p as usize);
        let missing = || LogError::NoTopic(self.meta.name.clone());
        let partition = *self.meta.partitions.get(index).ok_or_else(missing)?;
        // Writing into a string cannot fail.
        let mut source = String::with_capacity(self.name.len() + 8);
        let _ = write!(source, "{}:{line}", self.name);
        let needs_id = !place.has_id && !self.placer.goes_by_position();
        let id = needs_id.then(|| format!("{}:{line}", &self.identity.hash.to_hex()[..32]));
        let pairs = std::iter::once((SOURCE_HEADER, source.as_bytes()))
            .chain(id.iter().map(|id| (IMPORT_ID_HEADER, id.as_bytes())));
        let headers = Headers::encode(pairs);
        let key = place.picked.as_deref().or(key);
        let size = value.len() + key.map_or(0, <[u8]>::len) + headers.0.len();
        if size > self.options.longest {
            return self.reject(line, split::TOO_LONG.to_owned(), raw);
        }
        // Neither a batch of small records nor one with a single large one is above the log's bound.
        if !self.batch.is_empty() && self.batch.bytes() + size > BATCH.min(self.options.longest) {
            self.transaction.append(std::mem::take(&mut self.batch))?;
        }
        self.batch.push(partition, self.at, key, value, &headers.0);
        self.accepted += 1;
        Ok(())
    }

    fn reject(&mut self, line: u64, reason: String, bytes: &[u8]) -> Result<(), ImportError> {
        if self.options.rest && self.begins.as_ref().is_some_and(|begins| begins.has(line)) {
            // The earlier import has said so.
            self.last_line = line;
            return Ok(());
        }
        if self.options.strict {
            return Err(ImportError::BadLine {
                name: self.name.to_owned(),
                line,
                reason,
            });
        }
        self.rejects
            .add(line, &reason, bytes)
            .map_err(|source| ImportError::Write {
                path: self.options.rejects.clone().unwrap_or_default(),
                source,
            })?;
        self.rejected += 1;
        self.last_line = line;
        if self.reports.len() < NAMED {
            self.reports.push(RejectedLine { line, reason });
        }
        Ok(())
    }

    /// A file of which no line is good was meant to be read otherwise.
    pub(super) fn check(&self) -> Result<(), ImportError> {
        match self.reports.first() {
            Some(first) if self.accepted == 0 => Err(ImportError::NothingValid {
                name: self.name.to_owned(),
                format: self.shape.format,
                lines: self.rejected,
                line: first.line,
                reason: first.reason.clone(),
            }),
            _ => Ok(()),
        }
    }
}
