//! The reject file: every line that could not be read, with its reason.
//!
//! One JSON object a line: `{"line":17,"reason":"...","text":"..."}`; a line that is no UTF-8 stands in `hex`
//! instead of `text`. It is written beside its final name, is whole and on the disk before the import commits, and
//! can be read by nobody but its owner: it holds what the input held.
//!
//! Two contents never share a file: where the name is taken, the content's hash is put into it. An import that has
//! nothing to reject leaves the rejects of others alone.

use serde::Serialize;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// A reject file that is only made when there is something to put into it.
pub(super) struct RejectFile {
    path: Option<PathBuf>,
    file: Option<BufWriter<tempfile::NamedTempFile>>,
}

#[derive(Serialize)]
struct Reject<'a> {
    line: u64,
    reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hex: Option<String>,
}

impl RejectFile {
    /// Will stand at this path; none: rejects are counted only.
    pub(super) fn new(path: Option<&Path>) -> Self {
        Self {
            path: path.map(Path::to_owned),
            file: None,
        }
    }

    /// Adds a line.
    pub(super) fn add(&mut self, line: u64, reason: &str, bytes: &[u8]) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let folder = path
                    .parent()
                    .filter(|p| !p.as_os_str().is_empty())
                    .unwrap_or(Path::new("."));
                none.insert(BufWriter::new(tempfile::NamedTempFile::new_in(folder)?))
            }
        };
        let text = std::str::from_utf8(bytes).ok();
        let hex = text
            .is_none()
            .then(|| bytes.iter().map(|b| format!("{b:02x}")).collect());
        serde_json::to_writer(
            &mut *file,
            &Reject {
                line,
                reason,
                text,
                hex,
            },
        )?;
        file.write_all(b"\n")
    }

    /// Puts it in its place, synced; answers where, if there is one. `hash` is the content's.
    pub(super) fn finish(self, hash: &str) -> io::Result<Option<PathBuf>> {
        let (Some(file), Some(path)) = (self.file, self.path) else {
            return Ok(None);
        };
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.as_file().sync_all()?;
        let path = match file.persist_noclobber(&path) {
            Ok(_) => path,
            Err(taken) if taken.error.kind() == io::ErrorKind::AlreadyExists => {
                let own = with_hash(&path, hash);
                // The same content read once more has the same rejects, or better ones.
                taken.file.persist(&own).map_err(|e| e.error)?;
                own
            }
            Err(failed) => return Err(failed.error),
        };
        let folder = path
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()?;
        Ok(Some(path))
    }
}

/// `a/day.jsonl.rejects` becomes `a/day.jsonl.1a2b3c4d5e6f.rejects`.
fn with_hash(path: &Path, hash: &str) -> PathBuf {
    let hash = &hash[..hash.len().min(12)];
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(match name.rsplit_once('.') {
        Some((stem, end)) if !stem.is_empty() => format!("{stem}.{hash}.{end}"),
        _ => format!("{name}.{hash}"),
    })
}
