//! What form a file has, and what cuts it into pieces accordingly.

use super::elements::Elements;
use super::error::{ImportError, unreadable};
use super::options::ImportOptions;
use super::rows::Format;
use super::sniff::{self, Shape};
use super::source::Content;
use super::split::{Piece, Splitter};
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

/// What the file holds: asked for, or by its name and how the content begins.
pub(super) fn shape(path: &Path, options: &ImportOptions) -> Result<Shape, ImportError> {
    let name = options.short_name();
    let content = Content::open(path, Arc::default()).map_err(|e| unreadable(name, e))?;
    let mut start = Vec::new();
    content
        .take(sniff::BEGINNING)
        .read_to_end(&mut start)
        .map_err(|e| unreadable(name, e))?;
    let whole = (start.len() as u64) < sniff::BEGINNING;
    sniff::shape(&start, whole, name, options.format, options.delimiter)
        .map_err(|unclear| ImportError::unclear(unclear, name))
}

/// What cuts the content into pieces.
pub(super) enum Cutter<R> {
    Records(Splitter<R>),
    Values(Elements<R>),
}

impl<R: Read> Cutter<R> {
    pub(super) fn new(content: R, shape: Shape, longest: usize) -> Self {
        match shape.format {
            Format::Csv => Self::Records(Splitter::rows(content, shape.delimiter, longest)),
            Format::Json => Self::Values(Elements::new(content, longest)),
            Format::JsonLines | Format::Urls => Self::Records(Splitter::lines(content, longest)),
        }
    }

    pub(super) fn next(&mut self) -> io::Result<Option<Piece>> {
        match self {
            Self::Records(splitter) => splitter.next(),
            Self::Values(elements) => elements.next(),
        }
    }

    pub(super) fn into_inner(self) -> R {
        match self {
            Self::Records(splitter) => splitter.into_inner(),
            Self::Values(elements) => elements.into_inner(),
        }
    }
}
