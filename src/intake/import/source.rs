//! Bytes of a file: what is packed is unpacked, what is UTF-16 becomes UTF-8, and what was read is hashed.
//!
//! The content is what comes out: its hash does not depend on packing or encoding.

use super::utf16::{self, Utf16};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
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
    /// Zstandard, also several frames one after the other, with skippable ones between, as pzstd writes them.
    Zstd,
    /// Something that is not unpacked here: its name, and a command that does.
    Other(&'static str, &'static str),
}

impl Packing {
    /// By the first bytes: no text that can be imported begins like a packed file.
    pub fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Packing::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Packing::Zstd,
            // A skippable frame; the last digit of its magic is free.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Packing::Zstd,
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, ..] => Packing::Other("bzip2", "bzip2 -dc"),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Packing::Other("xz", "xz -dc"),
            [0x04, 0x22, 0x4d, 0x18, ..] => Packing::Other("lz4", "lz4 -dc"),
            [b'P', b'K', 3, 4, ..] => Packing::Other("zip (or an Excel file)", "unzip -p"),
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

type Packed = BufReader<Counted<File>>;

/// Content of a file, unpacked, decoded and hashed on the way.
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
            read: read.clone(),
        };
        let mut file = BufReader::with_capacity(256 << 10, counted);
        let unpacked: Box<dyn Read + Send> = match Packing::of(peek(&mut file)?) {
            Packing::None => Box::new(file),
            Packing::Gzip => Box::new(Gunzip {
                member: Some(flate2::bufread::GzDecoder::new(file)),
                read,
            }),
            Packing::Zstd => Box::new(Unzstd(zstd::stream::read::Decoder::with_buffer(file)?)),
            Packing::Other(name, with) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!(
                        "it is packed with {name}: unpack it first, as with `{with} FILE | sluicegate import - --name FILE`"
                    ),
                ));
            }
        };
        let mut text = BufReader::with_capacity(64 << 10, unpacked);
        let inner: Box<dyn Read + Send> = match utf16::of(peek(&mut text)?)? {
            None => Box::new(text),
            Some(order) => Box::new(Utf16::new(text, order)),
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

    /// Reads to the end for the hash's sake. At each of these sizes, which rise, `is_known` is asked about what was
    /// read until there; answers what the whole is. `each` is called now and then.
    pub(super) fn hash_all(
        &mut self,
        sizes: &[u64],
        is_known: impl Fn(&Identity) -> bool,
        mut each: impl FnMut(),
    ) -> io::Result<Whole> {
        let mut buf = vec![0; 256 << 10];
        let mut sizes = sizes.iter().peekable();
        let mut longest: Option<Beginning> = None;
        let mut last = 0;
        loop {
            let mut candidate = None;
            while sizes.next_if(|size| **size <= self.size).is_some() {
                candidate = Some(self.identity()).filter(|i| is_known(i));
            }
            let until = sizes.peek().map_or(u64::MAX, |size| **size - self.size);
            let room = buf.len().min(usize::try_from(until).unwrap_or(usize::MAX));
            let n = loop {
                match self.read(&mut buf[..room]) {
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    other => break other?,
                }
            };
            let is_end = |byte: u8| matches!(byte, b'\n' | b'\r');
            if n == 0 {
                return Ok(Whole {
                    identity: self.identity(),
                    beginning: longest,
                    ends_in_line: self.size > 0 && !is_end(last),
                });
            }
            if let Some(identity) = candidate {
                longest = Some(Beginning {
                    identity,
                    whole_lines: is_end(last) || is_end(buf[0]),
                });
            }
            last = buf[n - 1];
            each();
        }
    }
}

/// What reading a content once shows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Whole {
    pub identity: Identity,
    /// The longest beginning that is known.
    pub beginning: Option<Beginning>,
    /// Its last line has no line end.
    pub ends_in_line: bool,
}

/// The beginning of a content.
#[derive(Clone, Copy, Debug)]
pub(super) struct Beginning {
    pub identity: Identity,
    /// It ends where a line does.
    pub whole_lines: bool,
}

/// The first bytes, left in the buffer. A pipe may give fewer at once; files give them all.
fn peek<R: Read>(file: &mut BufReader<R>) -> io::Result<&[u8]> {
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

/// Members one after the other, as gzip(1) reads them: zeros behind the last one are padding; anything else there is an
/// error with its place.
struct Gunzip {
    member: Option<flate2::bufread::GzDecoder<Packed>>,
    read: Arc<AtomicU64>,
}

impl Gunzip {
    /// Where in the packed file the next byte is.
    fn at(&self, file: &Packed) -> u64 {
        self.read.load(Ordering::Relaxed) - file.buffer().len() as u64
    }

    /// The next member; none at the end.
    fn next(&mut self, mut file: Packed) -> io::Result<()> {
        let mut zeros = 0;
        loop {
            let rest = file.fill_buf()?;
            let Some(at) = rest.iter().position(|byte| *byte != 0) else {
                let n = rest.len();
                if n == 0 {
                    // The end, perhaps behind padding.
                    return Ok(());
                }
                zeros += n;
                file.consume(n);
                continue;
            };
            // A member begins with 1f 8b; only the first of the two is sure to be in the buffer.
            if at == 0 && zeros == 0 && rest[0] == 0x1f && rest.get(1).is_none_or(|second| *second == 0x8b) {
                self.member = Some(flate2::bufread::GzDecoder::new(file));
                return Ok(());
            }
            let end = self.at(&file) - zeros as u64;
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "the gzip data ends at byte {end}, and something else follows: cut it off, or pack the file anew"
                ),
            ));
        }
    }
}

impl Read for Gunzip {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if to.is_empty() {
            return Ok(0);
        }
        while let Some(mut member) = self.member.take() {
            let n = member.read(to).map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the gzip data ends in the middle: the file was cut off, or is still being written",
                ),
                _ => io::Error::new(
                    e.kind(),
                    format!(
                        "the gzip data is damaged before byte {}: {e}",
                        self.at(member.get_ref()) + 1
                    ),
                ),
            })?;
            if n > 0 {
                self.member = Some(member);
                return Ok(n);
            }
            self.next(member.into_inner())?;
        }
        Ok(0)
    }
}

/// Frames one after the other; errors say what to do.
struct Unzstd(zstd::stream::read::Decoder<'static, Packed>);

impl Read for Unzstd {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.0.read(to).map_err(|e| {
            // The library tells its errors apart by their texts alone.
            let text = e.to_string();
            let says = if text.contains("too much memory") {
                "the zstd data needs more than 128 MiB to unpack (it was made with --long or --ultra): unpack it first, as with `zstd -dc --long=31 FILE | sluicegate import - --name FILE`".to_owned()
            } else if e.kind() == io::ErrorKind::UnexpectedEof || text.contains("incomplete frame") {
                "the zstd data ends in the middle: the file was cut off, or is still being written".to_owned()
            } else {
                format!("the zstd data is damaged, or something else follows it: {text}")
            };
            io::Error::new(e.kind(), says)
        })
    }
}

/// What makes a file the same again: hash and length of its content. Its name, packing and encoding do not matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub hash: blake3::Hash,
    pub size: u64,
}
