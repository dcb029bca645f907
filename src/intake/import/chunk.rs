//! Reading on, piece by piece: the one way in which everything that scans a content gets more of it.

use std::io::{self, Read};

/// Bytes that are read at once.
const CHUNK: usize = 128 << 10;

/// Appends what can be read at once. False: the reader has come to its end.
pub(super) fn read_more(from: &mut impl Read, buf: &mut Vec<u8>) -> io::Result<bool> {
    let before = buf.len();
    buf.resize(before + CHUNK, 0);
    let read = loop {
        match from.read(&mut buf[before..]) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => break other,
        }
    };
    buf.truncate(before + *read.as_ref().unwrap_or(&0));
    Ok(read? > 0)
}

/// Gives a few bytes at a time.
#[cfg(test)]
pub(super) struct Slow<'a>(pub(super) &'a [u8], pub(super) usize);

#[cfg(test)]
impl Read for Slow<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let n = self.1.min(self.0.len()).min(to.len());
        to[..n].copy_from_slice(&self.0[..n]);
        self.0 = &self.0[n..];
        Ok(n)
    }
}
