//! Why a file was not imported.

use super::registry::Entry;
use super::rows::Format;
use super::sniff::Unclear;
use crate::core::pointer::PointerError;
use crate::log::LogError;
use crate::telemetry::text::counted;
use std::io;
use std::path::PathBuf;

/// Why a file was not imported. Nothing of it is in the topic then.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file cannot be read, or unpacking it failed.
    #[error("cannot read `{name}`")]
    Read {
        /// Its name.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// A file of the import's own (spool, rejects) cannot be written.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nothing says what form it has.
    #[error("cannot tell whether `{name}` holds JSON lines, CSV or URLs")]
    Format {
        /// Its name.
        name: String,
    },
    /// The header of a CSV file is not usable, or a column that was asked for is not there.
    #[error("the CSV header of `{name}` cannot be used: {reason}")]
    Header {
        /// Its name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A bad line, and every line had to be good.
    #[error("line {line} of `{name}` cannot be read: {reason}")]
    BadLine {
        /// Its name.
        name: String,
        /// The line.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// Not one line could be read: most likely it has another form.
    #[error(
        "none of the {lines} lines of `{name}` can be read as {format}; the first, line {line}: {reason}"
    )]
    NothingValid {
        /// Its name.
        name: String,
        /// How it was read.
        format: Format,
        /// Lines seen.
        lines: u64,
        /// The first bad one.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// JSON lines were asked for, and its values go over several lines.
    #[error("`{name}` is not one JSON value a line: its first value goes over several lines")]
    OverLines {
        /// Its name.
        name: String,
    },
    /// It begins with a content that was imported before, and its lines have no message IDs.
    #[error(
        "`{name}` begins with all of `{earlier}`, imported at {at}: its first {} would be sent again, as {unit} {line} has no message ID",
        first(*lines, unit)
    )]
    Grown {
        /// Its name.
        name: String,
        /// The name of the earlier file.
        earlier: String,
        /// When that was imported.
        at: String,
        /// How many lines (or elements) they share.
        lines: u64,
        /// The first of them without an ID.
        line: u64,
        /// `line` or `element`.
        unit: &'static str,
    },
    /// It begins with a content that was imported before, and which of its records that had cannot be told.
    #[error(
        "`{name}` begins with all of `{earlier}`, imported at {at}, but what of it is new cannot be told: {why}. Import what is new as a file of its own, or all of it again"
    )]
    Unsure {
        /// Its name.
        name: String,
        /// The name of the earlier file.
        earlier: String,
        /// When that was imported.
        at: String,
        /// Why not.
        why: String,
    },
    /// It was written to between the two passes.
    #[error("`{name}` changed while it was imported")]
    Changed {
        /// Its name.
        name: String,
    },
    /// The node stops.
    #[error("the node is stopping; nothing of `{name}` was imported: import it again once the node runs")]
    Ending {
        /// Its name.
        name: String,
    },
    /// A pointer (to the key, or of the topic's section) that is none.
    #[error(transparent)]
    Pointer(#[from] PointerError),
    /// The log refused.
    #[error(transparent)]
    Log(#[from] LogError),
}

impl ImportError {
    pub(super) fn unsure(name: &str, entry: &Entry, why: String) -> Self {
        Self::Unsure {
            name: name.to_owned(),
            earlier: entry.name.clone(),
            at: entry.at.clone(),
            why,
        }
    }

    pub(super) fn unclear(unclear: Unclear, name: &str) -> Self {
        let name = name.to_owned();
        match unclear {
            Unclear::Format => Self::Format { name },
            Unclear::OverLines => Self::OverLines { name },
        }
    }
}

/// So many of a file's first lines.
fn first(n: u64, unit: &str) -> String {
    if n == 1 { unit.to_owned() } else { counted(n, unit) }
}

pub(super) fn unreadable(name: &str, source: io::Error) -> ImportError {
    ImportError::Read {
        name: name.to_owned(),
        source,
    }
}
