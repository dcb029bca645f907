//! A file that has grown since it was imported: which of its records that import had.
//!
//! A number alone does not say it: whether a file is lines or elements is told from its beginning, and the beginning of a
//! grown file may look otherwise (an array on one line that got a second line). So the file is read as its beginning was
//! read (the registry's entry says how), and the first records of the whole are compared with those of the beginning
//! read for itself, byte by byte. Only what is the same in both counts as imported; where that cannot be shown, nothing
//! is left out, and [`ImportError::Unsure`] says why. It costs one more reading of the beginning, twice.

use super::cutter::{Cutter, shape};
use super::error::{ImportError, unreadable};
use super::options::ImportOptions;
use super::registry::Entry;
use super::rows::{self, Format};
use super::sniff::{self, Shape};
use super::source::{Beginning, Content};
use super::split::Piece;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

/// An import whose content is the beginning of this one.
pub(super) struct Begins {
    pub(super) entry: Entry,
    /// The last number of what both have: lines, or elements. As large as can be where that is not sure.
    pub(super) last: u64,
    /// Why it is not sure.
    pub(super) unsure: Option<String>,
    /// The line that had no end then, and has gone on since: that import read a part of it.
    pub(super) went_on: Option<u64>,
}

/// What beginning and whole have in common.
struct Shared {
    /// The last number of it.
    last: u64,
    /// The next one is the beginning's last line, which has gone on.
    went_on: bool,
}

impl Begins {
    /// Whether a record of this number may have been imported.
    pub(super) fn has(&self, number: u64) -> bool {
        number <= self.last
    }
}

/// How a file that begins with an import is to be read, and what it shares with it.
///
/// # Errors
/// It cannot be read; or only the rest is asked for, and what that is cannot be told.
pub(super) fn compare(
    path: &Path,
    options: &ImportOptions,
    entry: Entry,
    beginning: &Beginning,
    goes_on: &dyn Fn() -> Result<(), ImportError>,
) -> Result<(Shape, Begins), ImportError> {
    let (shape, last) = match reading(path, options, &entry, beginning)? {
        Err(why) => (None, Err(why)),
        Ok(shape) => {
            let last = shared(path, options, shape, &entry, beginning, goes_on)?;
            (Some(shape), last)
        }
    };
    let (last, unsure, went_on) = match last {
        Ok(shared) => (shared.last, None, shared.went_on.then_some(shared.last + 1)),
        Err(why) if options.rest => {
            return Err(ImportError::unsure(options.short_name(), &entry, why));
        }
        Err(why) => (u64::MAX, Some(why), None),
    };
    let shape = match shape {
        Some(shape) => shape,
        None => super::cutter::shape(path, options)?,
    };
    let begins = Begins {
        entry,
        last,
        unsure,
        went_on,
    };
    Ok((shape, begins))
}

/// How the beginning was read; or why the file is not to be read so.
fn reading(
    path: &Path,
    options: &ImportOptions,
    entry: &Entry,
    beginning: &Beginning,
) -> Result<Result<Shape, String>, ImportError> {
    let name = options.short_name();
    let size = beginning.identity.size.min(sniff::BEGINNING);
    let mut start = Vec::new();
    Content::open(path, Arc::default())
        .and_then(|content| content.take(size).read_to_end(&mut start))
        .map_err(|e| unreadable(name, e))?;
    let Some(noted) = &entry.format else {
        // An entry of an earlier version: as such a file would have been read by itself.
        let whole = beginning.identity.size < sniff::BEGINNING;
        return match sniff::shape(&start, whole, name, options.format, options.delimiter) {
            Ok(shape) => Ok(Ok(shape)),
            Err(_) => shape(path, options).map(Ok),
        };
    };
    let Some(format) = Format::of_word(noted) else {
        return Ok(Err(format!(
            "that was read as `{noted}`, which this version does not know"
        )));
    };
    if let Some(asked) = options.format.filter(|asked| *asked != format) {
        return Ok(Err(format!(
            "that was read as {format}, and this is to be read as {asked}"
        )));
    }
    let then = entry.delimiter.and_then(|c| u8::try_from(c).ok());
    if let (Format::Csv, Some(then), Some(asked)) = (format, then, options.delimiter)
        && then != asked
    {
        return Ok(Err(format!(
            "the delimiter was `{}` then, and is to be `{}` now",
            char::from(then).escape_default(),
            char::from(asked).escape_default()
        )));
    }
    Ok(Ok(sniff::as_before(&start, name, format, then)))
}

/// What beginning and whole have in common; or why that is not sure.
fn shared(
    path: &Path,
    options: &ImportOptions,
    shape: Shape,
    entry: &Entry,
    beginning: &Beginning,
    goes_on: &dyn Fn() -> Result<(), ImportError>,
) -> Result<Result<Shared, String>, ImportError> {
    let name = options.short_name();
    let open = || Content::open(path, Arc::default()).map_err(|e| unreadable(name, e));
    let unit = shape.format.unit();
    let alone = Cutter::new(open()?.take(beginning.identity.size), shape, options.longest);
    let alone = match first(alone, shape, u64::MAX, goes_on)? {
        Ok(alone) => alone,
        Err(e) => {
            return Ok(Err(format!(
                "read as {}, that beginning is broken: {e}",
                shape.format
            )));
        }
    };
    if alone.last != entry.lines {
        return Ok(Err(format!(
            "read as {}, that beginning ends with {unit} {}, and the import of it ended with number {}",
            shape.format, alone.last, entry.lines
        )));
    }
    let both = first(
        Cutter::new(open()?, shape, options.longest),
        shape,
        alone.last,
        goes_on,
    )?;
    let both = both.map_err(|e| unreadable(name, e))?;
    if both.before != alone.before || both.last != alone.last {
        return Ok(Err(format!(
            "what was added changes how its first {} are read (as by a quote that was open, or other line ends)",
            crate::telemetry::text::counted(alone.last, unit)
        )));
    }
    Ok(match both.final_one == alone.final_one {
        true => Ok(Shared {
            last: alone.last,
            went_on: false,
        }),
        // The last one had no end, and went on: it is another one now.
        false if !beginning.whole_lines => Ok(Shared {
            last: alone.last.saturating_sub(1),
            went_on: true,
        }),
        false => Err(format!(
            "what was added changes how {unit} {} is read (as by a quote that was open, or other line ends)",
            alone.last
        )),
    })
}

/// What the first records of a content are.
struct First {
    /// The hash of all but the last, with their numbers.
    before: blake3::Hash,
    /// The number of the last one, and the hash of what it is.
    last: u64,
    final_one: blake3::Hash,
}

/// Reads the records up to this number. What goes wrong with the content is the inner error.
fn first<R: Read>(
    mut cutter: Cutter<R>,
    shape: Shape,
    until: u64,
    goes_on: &dyn Fn() -> Result<(), ImportError>,
) -> Result<io::Result<First>, ImportError> {
    let mut before = blake3::Hasher::new();
    let mut last: Option<(u64, blake3::Hash)> = None;
    let mut is_over = false;
    while !is_over {
        goes_on()?;
        let piece = match cutter.next() {
            Ok(Some(piece)) => piece,
            Ok(None) => break,
            Err(e) => return Ok(Err(e)),
        };
        let read = each(&piece, shape, &mut |number, text, is_bad| {
            is_over |= number > until;
            if is_over {
                return;
            }
            if let Some((number, hash)) = &last {
                before.update(&number.to_le_bytes());
                before.update(hash.as_bytes());
            }
            let mut hasher = blake3::Hasher::new();
            hasher.update(&[u8::from(is_bad)]);
            hasher.update(text);
            last = Some((number, hasher.finalize()));
        });
        if let Err(e) = read {
            return Ok(Err(e));
        }
    }
    let (last, final_one) = last.unwrap_or((0, blake3::hash(b"")));
    Ok(Ok(First {
        before: before.finalize(),
        last,
        final_one,
    }))
}

/// The numbered texts of a piece, and whether one is too bad to be read.
fn each(piece: &Piece, shape: Shape, take: &mut dyn FnMut(u64, &[u8], bool)) -> io::Result<()> {
    match piece {
        Piece::Bad { line, sample, .. } => take(*line, sample, true),
        Piece::Values { bytes, values } => {
            for value in values {
                take(value.number, &bytes[value.bytes.clone()], false);
            }
        }
        Piece::Records { line, bytes } if shape.format == Format::Csv => {
            let mut rows = rows::Rows::new(bytes, *line, shape.delimiter);
            while let Some(line) = rows.next()? {
                take(line, rows.raw(), false);
            }
        }
        Piece::Records { line, bytes } => {
            for (line, text) in rows::lines(bytes, *line) {
                take(line, text, false);
            }
        }
    }
    Ok(())
}
