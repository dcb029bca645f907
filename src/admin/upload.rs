//! A file on its way into a node: pieces of a request's body, handed over with a bound, read as a plain [`Read`] by
//! the import on its own thread.

use bytes::{Buf, Bytes};
use std::io::{self, Read};
use tokio::sync::mpsc;

/// Pieces of a body that may wait at once; hyper gives pieces of up to some hundred KiB (I6).
const PIECES: usize = 16;

/// The receiving side of a body.
#[derive(Debug)]
pub struct Upload {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
}

/// The sending side.
#[derive(Clone, Debug)]
pub struct UploadSender(mpsc::Sender<io::Result<Bytes>>);

impl Upload {
    /// Both sides.
    pub fn channel() -> (UploadSender, Upload) {
        let (tx, rx) = mpsc::channel(PIECES);
        (UploadSender(tx), Upload { pieces: rx })
    }

    /// As a reader, for a thread that may block (never a runtime's own).
    pub fn into_reader(self) -> UploadReader {
        UploadReader {
            pieces: self.pieces,
            piece: Bytes::new(),
            broken: false,
        }
    }
}

impl UploadSender {
    /// Hands over a piece, or why there is none; false once the reader is gone. A body that breaks off must say so
    /// here: the end of the pieces alone means a whole file.
    pub async fn send(&self, piece: io::Result<Bytes>) -> bool {
        self.0.send(piece).await.is_ok()
    }
}

/// Reads an [`Upload`]. A body that broke off is an error, never an early end.
#[derive(Debug)]
pub struct UploadReader {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
    broken: bool,
}

impl Read for UploadReader {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            if self.broken {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            match self.pieces.blocking_recv() {
                Some(Ok(piece)) => self.piece = piece,
                Some(Err(e)) => {
                    self.broken = true;
                    return Err(e);
                }
                None => return Ok(0),
            }
        }
        let n = to.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut to[..n]);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_one_file_and_a_break_is_an_error() {
        let (tx, upload) = Upload::channel();
        let sender = std::thread::spawn(move || {
            let rt = tokio::runtime::Builder::new_current_thread().build().unwrap();
            rt.block_on(async {
                for piece in ["ab", "", "cde"] {
                    assert!(tx.send(Ok(Bytes::from_static(piece.as_bytes()))).await);
                }
                tx.send(Err(io::ErrorKind::UnexpectedEof.into())).await;
            });
        });
        let mut reader = upload.into_reader();
        let mut start = [0; 5];
        reader.read_exact(&mut start).unwrap();
        assert_eq!(&start, b"abcde");
        assert!(reader.read(&mut start).is_err());
        assert!(reader.read(&mut start).is_err(), "a broken body never ends well");
        sender.join().unwrap();
    }
}
