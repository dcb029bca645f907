//! Bytes of a file: what is packed is unpacked, and what was read is hashed.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How a file is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// Not at all.
    None,
    /// gzip, also several members one after the other.
    Gzip,
    /// Zstandard, also several frames one after the other.
    Zstd,
}

impl Packing {
    /// By the first bytes: no text that can be imported begins like a packed file.
    pub fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Packing::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Packing::Zstd,
            _ => Packing::None,
        }
    }
}

/// Counts what is read of the file as it lies on the disk: the measure of progress.
pub(super) struct Counted<R> {
    inner: R,
    read: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(to)?;
        self.read.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// Content of a file, unpacked and hashed on the way.
pub(super) struct Content {
    inner: Box<dyn Read + Send>,
    hasher: blake3::Hasher,
    size: u64,
}

impl Content {
    /// Opens a file. `read` counts the bytes taken from the disk.
    pub(super) fn open(path: &Path, read: Arc<AtomicU64>) -> io::Result<Self> {
        let counted = Counted {
            inner: File::open(path)?,
            read,
        };
        let mut file = BufReader::with_capacity(256 << 10, counted);
        let packing = Packing::of(peek(&mut file)?);
        let inner: Box<dyn Read + Send> = match packing {
            Packing::None => Box::new(file),
            Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
            Packing::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(file)?),
        };
        Ok(Self {
            inner,
            hasher: blake3::Hasher::new(),
            size: 0,
        })
    }

    /// Hash and length of what was read so far.
    pub(super) fn identity(&self) -> Identity {
        Identity {
            hash: self.hasher.finalize(),
            size: self.size,
        }
    }

    /// Reads to the end for the hash's sake. `each` is called now and then and may stop it.
    pub(super) fn hash_all(&mut self, mut each: impl FnMut()) -> io::Result<Identity> {
        let mut buf = vec![0; 256 << 10];
        loop {
            match self.read(&mut buf) {
                Ok(0) => return Ok(self.identity()),
                Ok(_) => each(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// The first bytes, left in the buffer. A pipe may give fewer at once; files give them all.
fn peek<R: Read>(file: &mut BufReader<R>) -> io::Result<&[u8]> {
    use std::io::BufRead;
    file.fill_buf()
}

impl Read for Content {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(to)?;
        self.hasher.update(&to[..n]);
        self.size += n as u64;
        Ok(n)
    }
}

/// What makes a file the same again: hash and length of its unpacked content. Its name and packing do not matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub hash: blake3::Hash,
    pub size: u64,
}
