//! The messages of a run: JSON of a chosen size, with the message's number and its key's at fixed places, so that
//! the partner reads them without parsing.

use crate::Failed;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Which messages to make.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// First number.
    pub first: u32,
    /// How many.
    pub count: u32,
    /// Keys among them, by turns.
    pub keys: u32,
    /// Bytes of a value.
    pub size: usize,
}

/// Number and key of the message in a request's body; zero where there is none.
pub fn read(body: &[u8]) -> (u32, u32) {
    let number = |at: usize| {
        let digits = body.get(at..at + 9).unwrap_or_default();
        digits
            .iter()
            .filter(|d| d.is_ascii_digit())
            .fold(0, |n, d| n * 10 + u32::from(d - b'0'))
    };
    (number(8), number(28))
}

/// One value of `size` bytes, or as few as it takes.
pub fn write(out: &mut Vec<u8>, id: u32, key: u32, size: usize) -> std::io::Result<()> {
    let start = out.len();
    if size < 60 {
        write!(out, "{{\"id\":\"m{id:09}\"")?;
        out.resize(start + size.max(19) - 1, b' ');
        out.push(b'}');
    } else {
        write!(out, "{{\"id\":\"m{id:09}\",\"user\":\"k{key:09}\",\"text\":\"")?;
        out.resize(start + size - 2, b'x');
        out.extend(b"\"}");
    }
    Ok(())
}

impl Shape {
    /// Key of a message.
    pub fn key(&self, id: u32) -> u32 {
        id % self.keys
    }

    /// Writes them as JSON lines; a name that ends in `.jsonl`.
    pub fn write_file(&self, path: &Path) -> Result<(), Failed> {
        let mut file = BufWriter::with_capacity(1 << 20, std::fs::File::create(path)?);
        let mut line = Vec::new();
        for id in self.first..self.first + self.count {
            line.clear();
            write(&mut line, id, self.key(id), self.size)?;
            line.push(b'\n');
            file.write_all(&line)?;
        }
        file.flush()?;
        Ok(())
    }
}
