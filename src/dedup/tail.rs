//! The tail file: what a sync must make durable of a memory table that is not full yet.
//!
//! Without it every checkpoint would leave a small run behind, and thousands of small runs a day make look-ups
//! slow. Each sync appends one frame with the records that came since the last one; once the table is spilled, the
//! file goes. A frame that was not written to its end is cut off at opening: its sync was never answered.
//!
//! ```text
//! file:  magic u32 "SGT2" | run u32 | bucket u32 | from u64 | to u64 | crc32c u32 of all before
//! frame: length u32 | crc32c u32 of the body | body
//! body:  upto u64 | entry u32: crc32c of the ledger entry before upto, 0 if it is not known | records
//! record: id 16 | route u64 | partition u32 | when u32 | offset u64 | ledger u64 | attempts u32 | status u16 |
//!         state u8 | readable length u16 | readable
//! ```
//!
//! "SGT1" has no `entry` in its bodies; such a file is read, and goes on as it began.

use super::Mark;
use super::block::Row;
use super::manifest::sync_dir;
use crate::core::types::{MessageId, RouteId, RoutePartition, Time};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const MAGIC: u32 = u32::from_le_bytes(*b"SGT2");
const MAGIC_1: u32 = u32::from_le_bytes(*b"SGT1");
const HEAD: usize = 32;
/// A sync of more writes several frames of about this size: only one of them is in memory.
const FRAME: usize = 1 << 20;

/// Which memory table a tail file belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TailOf {
    /// Number of the run that the table becomes.
    pub run: u32,
    /// Its bucket's number.
    pub bucket: u32,
    /// Start of the bucket's span.
    pub from: Time,
    /// End of the bucket's span.
    pub to: Time,
}

fn path(dir: &Path, run: u32) -> PathBuf {
    dir.join(format!("tail-{run}"))
}

/// The run numbers of all tail files in the folder.
pub(super) fn list(dir: &Path) -> io::Result<Vec<u32>> {
    let mut runs = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        runs.extend(
            name.to_str()
                .and_then(|n| n.strip_prefix("tail-"))
                .and_then(|n| n.parse::<u32>().ok()),
        );
    }
    Ok(runs)
}

/// Removes the tail file of this run, if there is one.
pub(super) fn remove(dir: &Path, run: u32) -> io::Result<()> {
    match fs::remove_file(path(dir, run)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Appends frames to one tail file.
pub(super) struct TailWriter {
    file: File,
    /// Bytes that hold whole frames: a failed write is cut off to here.
    len: u64,
    /// Its bodies name the entry before their position.
    entries: bool,
}

impl TailWriter {
    /// Goes on with the file that was read, behind its last whole frame.
    pub(super) fn again(dir: &Path, tail: &Tail) -> io::Result<Self> {
        let file = File::options().write(true).open(path(dir, tail.of.run))?;
        file.set_len(tail.valid)?;
        Ok(Self {
            file,
            len: tail.valid,
            entries: tail.entries,
        })
    }

    /// Makes the file of this table.
    pub(super) fn make(dir: &Path, of: TailOf) -> io::Result<Self> {
        let path = path(dir, of.run);
        let mut head = Vec::with_capacity(HEAD);
        head.extend_from_slice(&MAGIC.to_le_bytes());
        head.extend_from_slice(&of.run.to_le_bytes());
        head.extend_from_slice(&of.bucket.to_le_bytes());
        head.extend_from_slice(&of.from.0.to_le_bytes());
        head.extend_from_slice(&of.to.0.to_le_bytes());
        head.extend_from_slice(&crc32c::crc32c(&head).to_le_bytes());
        let mut file = crate::files::create(&path)?;
        file.write_all(&head)?;
        sync_dir(dir)?;
        Ok(Self {
            file,
            len: head.len() as u64,
            entries: true,
        })
    }

    /// Bytes of whole, durable frames, with the head.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Appends records and where the ledger is taken up to, and makes them durable. On an error nothing counts.
    pub(super) fn append<'a>(
        &mut self,
        upto: Mark,
        rows: impl Iterator<Item = (RoutePartition, Row<'a>)>,
    ) -> io::Result<()> {
        let mut frames = Frames {
            out: Vec::new(),
            entries: self.entries,
        };
        let written = self.write(&mut frames, upto, rows);
        match written {
            Ok(end) => self.len = end,
            // What was half written must not stand before a later frame: that one is written over it. A file that
            // cannot even be cut says so by the error at hand.
            Err(_) => _ = self.file.set_len(self.len),
        }
        written.map(|_| ())
    }

    /// Answers where the file's last frame ends then.
    fn write<'a>(
        &self,
        frames: &mut Frames,
        upto: Mark,
        rows: impl Iterator<Item = (RoutePartition, Row<'a>)>,
    ) -> io::Result<u64> {
        use std::os::unix::fs::FileExt;
        let mut end = self.len;
        frames.begin();
        for (at, row) in rows {
            frames.record(at, &row);
            if frames.out.len() >= FRAME {
                // Not yet the whole of it: a frame without progress (its position is that of nothing).
                frames.end(Mark::default());
                self.file.write_all_at(&frames.out, end)?;
                end += frames.out.len() as u64;
                frames.begin();
            }
        }
        frames.end(upto);
        self.file.write_all_at(&frames.out, end)?;
        self.file.sync_data()?;
        Ok(end + frames.out.len() as u64)
    }
}

struct Frames {
    out: Vec<u8>,
    entries: bool,
}

impl Frames {
    fn begin(&mut self) {
        self.out.clear();
        self.out
            .extend_from_slice(if self.entries { &[0; 20] } else { &[0; 16] });
    }

    fn record(&mut self, at: RoutePartition, row: &Row<'_>) {
        let out = &mut self.out;
        out.extend_from_slice(&row.id.0);
        out.extend_from_slice(&at.route.0.to_le_bytes());
        out.extend_from_slice(&at.partition.to_le_bytes());
        out.extend_from_slice(&row.when.to_le_bytes());
        out.extend_from_slice(&row.offset.to_le_bytes());
        out.extend_from_slice(&row.ledger.to_le_bytes());
        out.extend_from_slice(&row.attempts.to_le_bytes());
        out.extend_from_slice(&row.status.to_le_bytes());
        out.push(row.state);
        out.extend_from_slice(&(row.readable.len() as u16).to_le_bytes());
        out.extend_from_slice(row.readable);
    }

    fn end(&mut self, upto: Mark) {
        let frame = &mut self.out[..];
        frame[8..16].copy_from_slice(&upto.next.to_le_bytes());
        if self.entries {
            frame[16..20].copy_from_slice(&upto.entry.to_le_bytes());
        }
        let len = (frame.len() - 8) as u32;
        let crc = crc32c::crc32c(&frame[8..]);
        frame[..4].copy_from_slice(&len.to_le_bytes());
        frame[4..8].copy_from_slice(&crc.to_le_bytes());
    }
}

/// A tail file that was read.
pub(super) struct Tail {
    pub of: TailOf,
    /// The position of the last whole frame.
    pub upto: Mark,
    /// Whole frames.
    pub frames: u64,
    /// Bytes up to the end of the last one.
    pub valid: u64,
    /// Bytes behind it: a frame that was not written to its end, or damage.
    pub cut: u64,
    entries: bool,
}

/// What there is of a tail file.
pub(super) enum Found {
    Nothing,
    /// It is there, and its head is not one: its making was cut off, or it is damaged.
    Headless,
    Tail(Tail),
}

/// Reads the tail file of this run, giving each record to `take`.
pub(super) fn read(dir: &Path, run: u32, mut take: impl FnMut(RoutePartition, Row<'_>)) -> io::Result<Found> {
    let bytes = match fs::read(path(dir, run)) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(e) => return Err(e),
    };
    let mut rest = Reader(&bytes);
    let head = (|| {
        let (magic, run) = (rest.u32()?, rest.u32()?);
        let of = TailOf {
            run,
            bucket: rest.u32()?,
            from: Time(rest.u64()?),
            to: Time(rest.u64()?),
        };
        let crc = rest.u32()?;
        let fits = crc == crc32c::crc32c(&bytes[..HEAD - 4]);
        (fits && [MAGIC, MAGIC_1].contains(&magic)).then_some((of, magic == MAGIC))
    })();
    let Some((of, entries)) = head.filter(|(of, _)| of.run == run) else {
        return Ok(Found::Headless);
    };
    let mut tail = Tail {
        of,
        upto: Mark::default(),
        frames: 0,
        valid: HEAD as u64,
        cut: 0,
        entries,
    };
    while let (Some(len), Some(crc)) = (rest.u32(), rest.u32()) {
        let Some(body) = rest.take(len as usize).filter(|b| crc32c::crc32c(b) == crc) else {
            break;
        };
        let mut body = Reader(body);
        let Some(next) = body.u64() else { break };
        let entry = match entries {
            true => body.u32(),
            false => Some(0),
        };
        let Some(entry) = entry else { break };
        while let Some((at, row)) = body.record() {
            take(at, row);
        }
        tail.upto = tail.upto.max(Mark { next, entry });
        tail.frames += 1;
        tail.valid += 8 + u64::from(len);
    }
    tail.cut = bytes.len() as u64 - tail.valid;
    Ok(Found::Tail(tail))
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (part, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(part)
    }
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }
    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }
    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
    fn record(&mut self) -> Option<(RoutePartition, Row<'a>)> {
        let id = MessageId(self.array()?);
        let at = RoutePartition {
            route: RouteId(self.u64()?),
            partition: self.u32()?,
        };
        let mut row = Row {
            id,
            route: 0,
            when: self.u32()?,
            offset: self.u64()?,
            ledger: self.u64()?,
            attempts: self.u32()?,
            status: self.u16()?,
            state: self.array::<1>()?[0],
            readable: &[],
        };
        let len = self.u16()?;
        row.readable = self.take(usize::from(len))?;
        Some((at, row))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(n: u8) -> (RoutePartition, Row<'static>) {
        let at = RoutePartition {
            route: RouteId(7),
            partition: u32::from(n),
        };
        let row = Row {
            id: MessageId([n; 16]),
            route: 0,
            state: 1,
            status: 200,
            attempts: 2,
            when: 9,
            offset: 10,
            ledger: 11,
            readable: b"order-1",
        };
        (at, row)
    }

    /// A sync of very many records is written in parts; one that breaks off in between says nothing of progress.
    #[test]
    fn many_records_are_written_in_parts_and_count_together() {
        let dir = tempfile::tempdir().unwrap();
        let of = TailOf {
            run: 4,
            bucket: 2,
            from: Time(1),
            to: Time(2),
        };
        let mark = |next| Mark { next, entry: 1 };
        let mut tail = TailWriter::make(dir.path(), of).unwrap();
        tail.append(mark(100), [row(1)].into_iter()).unwrap();
        let many = (0..50_000).map(|n| row((n % 251) as u8));
        tail.append(mark(200), many).unwrap();
        let file = dir.path().join("tail-4");
        let read_all = || {
            let mut seen = 0;
            match read(dir.path(), 4, |_, _| seen += 1).unwrap() {
                Found::Tail(tail) => (seen, tail.upto, tail.frames, tail.valid),
                _ => panic!("no tail"),
            }
        };
        let (seen, upto, frames, valid) = read_all();
        assert_eq!((seen, upto, valid), (50_001, mark(200), tail.len()));
        assert!(frames > 3, "{frames} frames");
        let whole = fs::read(&file).unwrap();
        fs::write(&file, &whole[..whole.len() - 1]).unwrap();
        let (seen, upto, cut, _) = read_all();
        assert!(seen > 1 && seen < 50_001 && cut == frames - 1);
        assert_eq!(upto, mark(100));
    }

    #[test]
    fn whole_frames_come_back_and_a_torn_one_is_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let of = TailOf {
            run: 4,
            bucket: 2,
            from: Time(1),
            to: Time(2),
        };
        let mut tail = TailWriter::make(dir.path(), of).unwrap();
        let mark = |next: u64| Mark {
            next,
            entry: next as u32 + 1,
        };
        tail.append(mark(100), [row(1), row(2)].into_iter()).unwrap();
        tail.append(mark(200), [row(3)].into_iter()).unwrap();
        // Progress alone.
        tail.append(mark(250), std::iter::empty()).unwrap();
        let file = dir.path().join("tail-4");
        let good = fs::read(&file).unwrap();
        let read_all = || {
            let mut seen = Vec::new();
            let found = read(dir.path(), 4, |at, row| seen.push((at, row.to_owned_row()))).unwrap();
            let Found::Tail(tail) = found else {
                panic!("no tail")
            };
            assert_eq!(tail.of, of);
            (seen.len(), tail)
        };
        let (seen, whole) = read_all();
        assert_eq!((seen, whole.upto, whole.valid), (3, mark(250), good.len() as u64));
        let whole_ones = |cut: usize| match cut {
            _ if cut == good.len() => (3, mark(250)),
            _ if cut >= good.len() - 20 => (3, mark(200)),
            _ => (2, mark(100)),
        };
        for cut in HEAD..good.len() {
            fs::write(&file, &good[..cut]).unwrap();
            let (seen, tail) = read_all();
            let expected = if tail.frames == 0 {
                (0, Mark::default())
            } else {
                whole_ones(cut)
            };
            assert_eq!((seen, tail.upto), expected, "cut at {cut}");
            assert_eq!(tail.valid + tail.cut, cut as u64);
        }
        for cut in 0..HEAD {
            fs::write(&file, &good[..cut]).unwrap();
            assert!(matches!(read(dir.path(), 4, |_, _| ()).unwrap(), Found::Headless));
        }
        // A changed byte ends what is believed, wherever it stands.
        for at in HEAD..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&file, &bad).unwrap();
            assert!(read_all().1.cut > 0, "byte {at}");
        }
        fs::write(&file, &good[..good.len() - 30]).unwrap();
        let (_, torn) = read_all();
        let mut tail = TailWriter::again(dir.path(), &torn).unwrap();
        tail.append(mark(300), [row(5)].into_iter()).unwrap();
        let (seen, tail) = read_all();
        assert_eq!((seen, tail.upto, tail.cut), (3, mark(300), 0));
        assert_eq!(list(dir.path()).unwrap(), vec![4]);
        remove(dir.path(), 4).unwrap();
        assert!(matches!(read(dir.path(), 4, |_, _| ()).unwrap(), Found::Nothing));
    }
}
