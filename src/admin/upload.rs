//! A file on its way into a node: pieces of a request's body, handed over with a bound, read as a plain [`Read`] by
//! the import on its own thread.
//!
//! The end of a file is an explicit mark ([`UploadSender::finish`]). A channel that closes without it is a file that
//! was cut off: a task that was dropped, a runtime that was shut down and a connection that broke all look like that,
//! and none of them may pass for the end of the file.

use bytes::{Buf, Bytes};
use std::io::{self, Read};
use tokio::sync::mpsc;

/// Pieces of a body that may wait at once; hyper gives pieces of up to some hundred KiB (I6).
const PIECES: usize = 16;

/// What comes through the channel.
#[derive(Debug)]
enum Piece {
    Bytes(Bytes),
    /// The file is whole.
    End,
    Broken(io::Error),
}

/// The receiving side of a body.
#[derive(Debug)]
pub struct Upload {
    pieces: mpsc::Receiver<Piece>,
    interrupter: Interrupter,
}

/// The sending side. Dropped without [`UploadSender::finish`], the file counts as cut off.
#[derive(Debug)]
pub struct UploadSender(mpsc::Sender<Piece>);

/// Ends an upload from outside. It does not keep the channel open.
#[derive(Clone, Debug)]
pub struct Interrupter(mpsc::WeakSender<Piece>);

impl Upload {
    /// Both sides.
    pub fn channel() -> (UploadSender, Upload) {
        let (tx, pieces) = mpsc::channel(PIECES);
        let interrupter = Interrupter(tx.downgrade());
        (UploadSender(tx), Upload { pieces, interrupter })
    }

    /// Something that ends it early.
    pub fn interrupter(&self) -> Interrupter {
        self.interrupter.clone()
    }

    /// As a reader, for a thread that may block (never a runtime's own).
    pub fn into_reader(self) -> UploadReader {
        UploadReader {
            pieces: self.pieces,
            piece: Bytes::new(),
            state: State::Open,
        }
    }
}

impl UploadSender {
    /// Hands over a piece; false once the reader is gone.
    pub async fn send(&self, piece: Bytes) -> bool {
        self.0.send(Piece::Bytes(piece)).await.is_ok()
    }

    /// Says that the file is whole.
    pub async fn finish(self) {
        // A reader that is gone does not need to know.
        let _ = self.0.send(Piece::End).await;
    }

    /// Says why the file breaks off.
    pub async fn fail(self, error: io::Error) {
        let _ = self.0.send(Piece::Broken(error)).await;
    }
}

impl Interrupter {
    /// Makes the next read behind the pieces that wait an error. Does nothing once the sending side is gone: the
    /// reader has its end, or an error, already.
    pub async fn interrupt(&self, error: io::Error) {
        if let Some(sender) = self.0.upgrade() {
            let _ = sender.send(Piece::Broken(error)).await;
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Open,
    Whole,
    Broken,
}

/// Reads an [`Upload`]. A body that broke off is an error, never an early end.
#[derive(Debug)]
pub struct UploadReader {
    pieces: mpsc::Receiver<Piece>,
    piece: Bytes,
    state: State,
}

impl Read for UploadReader {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let cut_off = || {
            io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the upload was cut off before its end",
            )
        };
        while self.piece.is_empty() {
            match self.state {
                State::Open => {}
                State::Whole => return Ok(0),
                State::Broken => return Err(cut_off()),
            }
            match self.pieces.blocking_recv() {
                Some(Piece::Bytes(piece)) => self.piece = piece,
                Some(Piece::End) => self.state = State::Whole,
                Some(Piece::Broken(error)) => {
                    self.state = State::Broken;
                    return Err(error);
                }
                None => self.state = State::Broken,
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

    /// Sends pieces, then does the last thing; what the reader made of it.
    fn read_all(last: impl AsyncFnOnce(UploadSender, Interrupter) + Send + 'static) -> io::Result<Vec<u8>> {
        let (sender, upload) = Upload::channel();
        let interrupter = upload.interrupter();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                for piece in ["ab", "", "cde"] {
                    assert!(sender.send(Bytes::from_static(piece.as_bytes())).await);
                }
                last(sender, interrupter).await;
            });
        });
        let mut reader = upload.into_reader();
        let mut start = [0; 5];
        reader.read_exact(&mut start).unwrap();
        assert_eq!(&start, b"abcde");
        let mut rest = Vec::new();
        let read = reader.read_to_end(&mut rest);
        if read.is_err() {
            assert!(reader.read(&mut start).is_err(), "a broken body never ends well");
        }
        thread.join().unwrap();
        read.map(|_| rest)
    }

    #[test]
    fn only_the_mark_is_the_end_of_a_file() {
        assert_eq!(read_all(async |sender, _| sender.finish().await).unwrap(), b"");
        let failed = read_all(async |sender, _| sender.fail(io::ErrorKind::UnexpectedEof.into()).await);
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        // A task that is dropped says nothing: that is no end.
        let dropped = read_all(async |sender, _| drop(sender)).unwrap_err();
        assert_eq!(dropped.kind(), io::ErrorKind::ConnectionAborted);
        let interrupted = read_all(async |sender, interrupter: Interrupter| {
            interrupter.interrupt(io::ErrorKind::BrokenPipe.into()).await;
            sender.finish().await;
        });
        assert_eq!(interrupted.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
