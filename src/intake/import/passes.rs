//! The two passes over a file: the first hashes it, the second cuts it into pieces and takes them.

use super::cutter::Cutter;
use super::error::{ImportError, unreadable};
use super::options::Progress;
use super::source::{Content, Identity, Whole};
use super::split::Piece;
use super::work::Work;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

/// Pieces between the two threads.
const AHEAD: usize = 4;

pub(super) fn first_pass(
    path: &Path,
    name: &str,
    total: u64,
    sizes: &[u64],
    is_known: &dyn Fn(&Identity) -> bool,
    progress: &mut dyn FnMut(Progress),
) -> Result<Whole, ImportError> {
    let read = Arc::new(AtomicU64::new(0));
    let mut content = Content::open(path, read.clone()).map_err(|e| unreadable(name, e))?;
    let each = || {
        progress(Progress {
            pass: 1,
            bytes: read.load(Ordering::Relaxed),
            total,
            lines: 0,
        });
    };
    content
        .hash_all(sizes, is_known, each)
        .map_err(|e| unreadable(name, e))
}

pub(super) fn second_pass(
    path: &Path,
    name: &str,
    total: u64,
    work: &mut Work<'_>,
    progress: &mut dyn FnMut(Progress),
    goes_on: &dyn Fn() -> Result<(), ImportError>,
) -> Result<(), ImportError> {
    let read = Arc::new(AtomicU64::new(0));
    let content = Content::open(path, read.clone()).map_err(|e| unreadable(name, e))?;
    let mut cutter = Cutter::new(content, work.shape, work.options.longest);
    std::thread::scope(|scope| {
        let (pieces, taken) = mpsc::sync_channel::<Piece>(AHEAD);
        let reader = std::thread::Builder::new()
            .name("import-read".into())
            .spawn_scoped(scope, move || {
                while let Some(piece) = cutter.next()? {
                    if pieces.send(piece).is_err() {
                        // The other side has given up, and says why.
                        break;
                    }
                }
                Ok::<_, io::Error>(cutter.into_inner().identity())
            });
        let reader = reader.map_err(|e| unreadable(name, e))?;
        let mut failed = None;
        for piece in taken {
            if let Err(e) = goes_on().and_then(|()| work.take(piece)) {
                failed = Some(e);
                break;
            }
            progress(Progress {
                pass: 2,
                bytes: read.load(Ordering::Relaxed),
                total,
                lines: work.accepted + work.rejected,
            });
        }
        let identity = reader
            .join()
            .map_err(|_| unreadable(name, io::Error::other("the reading thread failed")))?;
        match (failed, identity) {
            (Some(error), _) => Err(error),
            (None, Err(e)) => Err(unreadable(name, e)),
            (None, Ok(identity)) if identity != work.identity => Err(ImportError::Changed {
                name: name.to_owned(),
            }),
            (None, Ok(_)) => work.check(),
        }
    })
}
