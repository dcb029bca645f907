//! A bucket that is over: every ID once, sorted, in one plain file that is read by place.
//!
//! sled keeps what is being written; what will only be asked is better off without it (`docs/decisions/0005`): an
//! absent ID costs one look at one filter, a present one a single read of some 4 KiB, and nothing has to be opened.
//! The file is written under another name, synced, renamed and named by the manifest; only then the sled folder
//! goes. A file that the manifest does not name does not count.
//!
//! ```text
//! head    magic u32 "SGB1" | format u32 = 1 | bucket u32 | crc32c u32 of all before
//! blocks  one after the other, by rising ID (block.rs); IDs with the same first eight bytes never part
//! filter  its words, 4 x u64 for each block of the filter (filter.rs)
//! index   for each block: first eight bytes of its first ID, u64 | bytes u32 | crc32c u32 of the block
//! foot    ids u64 | blocks u32 | blocks of the filter u32 | newest run u32 | bucket u32 | crc32c u32 of the filter |
//!         crc32c u32 of the index | magic u32 "SGE1" | crc32c u32 of all before in the foot
//! ```
//!
//! Little endian. Never change the drawing; a new form takes the next format number. Every byte is under a checksum:
//! the index's covers those of the blocks. A block that does not fit its own is damage ([`DedupError::Damaged`]): the
//! store must be built again. A filter that does not fit is built again from the blocks.

use super::DedupError;
use super::block::{Block, Row, encode};
use super::filter::{Filter, Probe};
use super::manifest::{BucketMeta, sync_dir};
use crate::core::types::{MessageId, Time};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const MAGIC: u32 = u32::from_le_bytes(*b"SGB1");
const END: u32 = u32::from_le_bytes(*b"SGE1");
const FORMAT: u32 = 1;
const HEAD: usize = 16;
const ENTRY: usize = 16;
const FOOT: usize = 40;
/// Bits of the filter for each ID: one absent ID in about 800 costs a read.
const BITS_PER_ID: u64 = 16;
/// What is written is synced in pieces of this many bytes: one sync of the whole would hold up those of the ledger.
const SYNC: u64 = 8 << 20;

/// Where the file of a bucket lies.
pub(super) fn path(dir: &Path, bucket: u32) -> PathBuf {
    dir.join(format!("sealed-{bucket}"))
}

fn beside(dir: &Path, bucket: u32) -> PathBuf {
    dir.join(format!("sealed-{bucket}.new"))
}

/// The bucket of a file of this name, finished or not.
pub(super) fn bucket_of(name: &str) -> Option<u32> {
    let rest = name.strip_prefix("sealed-")?;
    rest.strip_suffix(".new").unwrap_or(rest).parse().ok()
}

/// Where blocks lie, and what they must be.
#[derive(Default)]
struct Index {
    /// First eight bytes of the first ID of each block, as a number.
    heads: Vec<u64>,
    /// Where each block begins, and where the last one ends.
    places: Vec<u64>,
    sums: Vec<u32>,
}

impl Index {
    /// The only block in which an ID with these first eight bytes can stand.
    #[inline]
    fn block_of(&self, head: u64) -> Option<usize> {
        self.heads.partition_point(|&h| h <= head).checked_sub(1)
    }

    fn end(&self) -> u64 {
        self.places.last().copied().unwrap_or(HEAD as u64)
    }
}

/// A sealed bucket, open for look-ups.
pub(super) struct Sealed {
    pub id: u32,
    pub from: Time,
    pub to: Time,
    /// Its records are as new as this run: the newest that went into it.
    pub run: u32,
    path: PathBuf,
    file: File,
    filter: Filter,
    index: Index,
    ids: u64,
}

/// Numbers at places of a piece that was read.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&self, at: usize) -> u32 {
        self.0[at..].first_chunk().map_or(0, |b| u32::from_le_bytes(*b))
    }
    fn u64(&self, at: usize) -> u64 {
        self.0[at..].first_chunk().map_or(0, |b| u64::from_le_bytes(*b))
    }
}

impl Sealed {
    /// Opens the file of a bucket that the manifest calls sealed. True: its filter was built again.
    pub(super) fn open(dir: &Path, meta: &BucketMeta) -> Result<(Self, bool), DedupError> {
        let path = path(dir, meta.id);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(damaged(&path, "it is missing"));
            }
            Err(e) => return Err(io_error("open", &path, e)),
        };
        let mut sealed = Self {
            id: meta.id,
            from: meta.from(),
            to: meta.to(),
            run: 0,
            path,
            file,
            filter: Filter::for_ids(0),
            index: Index::default(),
            ids: 0,
        };
        let (filter_blocks, filter_sum) = sealed.read_index()?;
        let runs = (meta.runs.last()).map(|r| (r.seq, r.blocks as usize, u64::from(r.ids)));
        if runs != Some((sealed.run, sealed.blocks(), sealed.ids)) {
            return Err(sealed.damaged("it is not the file that the manifest names"));
        }
        let mut at = sealed.index.end();
        let read = Filter::read(filter_blocks, |bytes| {
            let done = sealed.file.read_exact_at(bytes, at);
            at += bytes.len() as u64;
            done
        });
        let (filter, sum) = read.map_err(|e| sealed.unreadable(e))?;
        let fits = sum == filter_sum;
        sealed.filter = if fits { filter } else { sealed.build_filter()? };
        Ok((sealed, !fits))
    }

    /// Reads head, index and foot; returns size and checksum of the filter.
    fn read_index(&mut self) -> Result<(u32, u32), DedupError> {
        let read = |bytes: &mut [u8], at| self.file.read_exact_at(bytes, at).map_err(|e| self.unreadable(e));
        let size = self.file.metadata().map_err(|e| self.unreadable(e))?.len();
        let foot_at = size
            .checked_sub(FOOT as u64)
            .filter(|at| *at >= HEAD as u64)
            .ok_or_else(|| self.damaged("it is too short"))?;
        let (mut head, mut foot) = ([0; HEAD], [0; FOOT]);
        read(&mut head, 0)?;
        read(&mut foot, foot_at)?;
        let (h, f) = (Fields(&head), Fields(&foot));
        let same = h.u32(0) == MAGIC && h.u32(12) == crc32c::crc32c(&head[..HEAD - 4]);
        if !same || f.u32(32) != END || f.u32(FOOT - 4) != crc32c::crc32c(&foot[..FOOT - 4]) {
            return Err(self.damaged("its head or foot does not fit its checksum"));
        }
        if h.u32(4) != FORMAT {
            return Err(self.damaged(&format!("it has format {}, not {FORMAT}", h.u32(4))));
        }
        if (h.u32(8), f.u32(20)) != (self.id, self.id) {
            return Err(self.damaged("it is another bucket's"));
        }
        let (blocks, filter_blocks) = (f.u32(8) as usize, f.u32(12));
        let index_at = foot_at
            .checked_sub((blocks * ENTRY) as u64)
            .ok_or_else(|| self.damaged("it is too short"))?;
        let mut bytes = vec![0; blocks * ENTRY];
        read(&mut bytes, index_at)?;
        if crc32c::crc32c(&bytes) != f.u32(28) {
            return Err(self.damaged("its index does not fit its checksum"));
        }
        let mut index = Index::default();
        let mut at = HEAD as u64;
        index.places.push(at);
        for entry in bytes.chunks_exact(ENTRY).map(Fields) {
            index.heads.push(entry.u64(0));
            at += u64::from(entry.u32(8));
            index.places.push(at);
            index.sums.push(entry.u32(12));
        }
        if at + u64::from(filter_blocks) * Filter::BLOCK as u64 != index_at {
            return Err(self.damaged("its parts do not make up its length"));
        }
        let (ids, run, sum) = (f.u64(0), f.u32(16), f.u32(24));
        (self.index, self.ids, self.run) = (index, ids, run);
        Ok((filter_blocks, sum))
    }

    fn build_filter(&self) -> Result<Filter, DedupError> {
        let filter = Filter::with_bits(self.ids, BITS_PER_ID);
        for block in 0..self.blocks() {
            let bytes = self.block(block)?;
            let block = self.parse(&bytes)?;
            (0..block.len()).for_each(|i| filter.add(&Probe::of(&block.id(i))));
        }
        Ok(filter)
    }

    fn damaged(&self, why: &str) -> DedupError {
        damaged(&self.path, why)
    }

    /// A file that is shorter than it was is damage; what the system refuses may be tried again.
    fn unreadable(&self, error: io::Error) -> DedupError {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => self.damaged("it is cut off"),
            _ => io_error("read", &self.path, error),
        }
    }

    /// Its filter, to make a directory of.
    pub(super) fn filter(&self) -> &Filter {
        &self.filter
    }

    /// False: the ID is certainly not in it.
    #[inline]
    pub(super) fn may_hold(&self, probe: &Probe) -> bool {
        self.filter.may_hold(probe)
    }

    /// Gives the record of an ID to `take`; false if there is none.
    pub(super) fn find(&self, id: &MessageId, take: impl FnOnce(&Row<'_>)) -> Result<bool, DedupError> {
        let Some(block) = self.index.block_of(id.head()) else {
            return Ok(false);
        };
        let bytes = self.block(block)?;
        let block = self.parse(&bytes)?;
        let Some(i) = block.find(id) else {
            return Ok(false);
        };
        take(&block.row(i).map_err(|e| self.damaged(e.0))?);
        Ok(true)
    }

    /// How many blocks it has.
    pub(super) fn blocks(&self) -> usize {
        self.index.heads.len()
    }

    /// A block's bytes, as they were written.
    pub(super) fn block(&self, block: usize) -> Result<Vec<u8>, DedupError> {
        let (from, to) = (self.index.places[block], self.index.places[block + 1]);
        let mut bytes = vec![0; (to - from) as usize];
        self.file
            .read_exact_at(&mut bytes, from)
            .map_err(|e| self.unreadable(e))?;
        if crc32c::crc32c(&bytes) != self.index.sums[block] {
            return Err(self.damaged("a block does not fit its checksum"));
        }
        Ok(bytes)
    }

    /// The block in such bytes.
    pub(super) fn parse<'a>(&self, bytes: &'a [u8]) -> Result<Block<'a>, DedupError> {
        Block::parse(bytes).map_err(|e| self.damaged(e.0))
    }

    /// Gives all records to `visit`, by rising ID.
    pub(super) fn each_row(
        &self,
        visit: &mut dyn FnMut(&Row<'_>) -> Result<std::ops::ControlFlow<()>, DedupError>,
    ) -> Result<std::ops::ControlFlow<()>, DedupError> {
        for block in 0..self.blocks() {
            let bytes = self.block(block)?;
            let block = self.parse(&bytes)?;
            for i in 0..block.len() {
                if visit(&block.row(i).map_err(|e| self.damaged(e.0))?)?.is_break() {
                    return Ok(std::ops::ControlFlow::Break(()));
                }
            }
        }
        Ok(std::ops::ControlFlow::Continue(()))
    }

    /// Removes the file. Look-ups under way go on with it until they end.
    pub(super) fn remove(&self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }

    /// Where it lies.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes on disk.
    pub(super) fn disk_bytes(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        self.file.metadata().map_or(0, |m| m.blocks() * 512)
    }

    /// Bytes of filter and index in memory.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.filter.bytes() + self.blocks() as u64 * (8 + 8 + 4)
    }
}

fn damaged(path: &Path, why: &str) -> DedupError {
    DedupError::Damaged {
        path: path.to_path_buf(),
        why: why.to_owned(),
    }
}

fn io_error(doing: &'static str, path: &Path, source: io::Error) -> DedupError {
    let path = path.to_path_buf();
    DedupError::Io { doing, path, source }
}

/// Writes the file of a bucket.
pub(super) struct SealWriter {
    dir: PathBuf,
    bucket: u32,
    out: BufWriter<File>,
    filter: Filter,
    index: Index,
    ids: u64,
    synced: u64,
}

impl SealWriter {
    /// Begins the file of a bucket with at most so many IDs, in place of one that was not finished.
    pub(super) fn begin(dir: &Path, bucket: u32, ids: u64) -> io::Result<Self> {
        let file = crate::files::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(beside(dir, bucket))?;
        let mut out = BufWriter::with_capacity(1 << 18, file);
        let mut head = Vec::with_capacity(HEAD);
        [MAGIC, FORMAT, bucket]
            .iter()
            .for_each(|n| head.extend_from_slice(&n.to_le_bytes()));
        head.extend_from_slice(&crc32c::crc32c(&head).to_le_bytes());
        out.write_all(&head)?;
        Ok(Self {
            dir: dir.to_path_buf(),
            bucket,
            out,
            filter: Filter::with_bits(ids, BITS_PER_ID),
            index: Index {
                places: vec![HEAD as u64],
                ..Index::default()
            },
            ids: 0,
            synced: 0,
        })
    }

    /// Appends a block: rows by rising ID, behind all before, at least one. IDs with the same first eight bytes must
    /// come in one call.
    pub(super) fn block(&mut self, rows: &[Row<'_>]) -> io::Result<()> {
        let Some(first) = rows.first() else { return Ok(()) };
        let bytes = encode(rows);
        self.out.write_all(&bytes)?;
        let end = self.index.end() + bytes.len() as u64;
        self.index.heads.push(first.id.head());
        self.index.places.push(end);
        self.index.sums.push(crc32c::crc32c(&bytes));
        rows.iter().for_each(|row| self.filter.add(&Probe::of(&row.id)));
        self.ids += rows.len() as u64;
        if end - self.synced >= SYNC {
            self.out.flush()?;
            self.out.get_ref().sync_data()?;
            self.synced = end;
        }
        Ok(())
    }

    /// Writes filter, index and foot, and makes the file durable under its first name. `run`: the newest run in it.
    pub(super) fn end(mut self, run: u32, from: Time, to: Time) -> io::Result<Unnamed> {
        let out = &mut self.out;
        let mut sum = 0;
        self.filter.each_chunk(|bytes| {
            sum = crc32c::crc32c_append(sum, bytes);
            out.write_all(bytes)
        })?;
        let (filter_sum, mut index_sum) = (sum, 0);
        let entries = self.index.heads.iter().zip(&self.index.sums);
        for ((head, sum), places) in entries.zip(self.index.places.windows(2)) {
            let mut entry = [0; ENTRY];
            entry[..8].copy_from_slice(&head.to_le_bytes());
            entry[8..12].copy_from_slice(&((places[1] - places[0]) as u32).to_le_bytes());
            entry[12..].copy_from_slice(&sum.to_le_bytes());
            index_sum = crc32c::crc32c_append(index_sum, &entry);
            out.write_all(&entry)?;
        }
        let mut foot = Vec::with_capacity(FOOT);
        foot.extend_from_slice(&self.ids.to_le_bytes());
        let filter_blocks = (self.filter.bytes() / Filter::BLOCK as u64) as u32;
        let numbers = [
            self.index.heads.len() as u32,
            filter_blocks,
            run,
            self.bucket,
            filter_sum,
            index_sum,
            END,
        ];
        numbers
            .iter()
            .for_each(|n| foot.extend_from_slice(&n.to_le_bytes()));
        foot.extend_from_slice(&crc32c::crc32c(&foot).to_le_bytes());
        out.write_all(&foot)?;
        let file = self.out.into_inner().map_err(|e| e.into_error())?;
        file.sync_all()?;
        Ok(Unnamed(Sealed {
            id: self.bucket,
            from,
            to,
            run,
            path: path(&self.dir, self.bucket),
            file,
            filter: self.filter,
            index: self.index,
            ids: self.ids,
        }))
    }
}

/// A finished file that has not got its name yet.
pub(super) struct Unnamed(Sealed);

impl Unnamed {
    /// How many records are in it, and blocks.
    pub(super) fn size(&self) -> (u64, usize) {
        (self.0.ids, self.0.blocks())
    }

    /// Gives the file its name, durably. It counts once the manifest calls the bucket sealed.
    pub(super) fn name(self, dir: &Path) -> io::Result<Sealed> {
        fs::rename(beside(dir, self.0.id), &self.0.path)?;
        sync_dir(dir)?;
        Ok(self.0)
    }
}

/// Removes what is left of a file that was not finished.
pub(super) fn discard(dir: &Path, bucket: u32) -> io::Result<()> {
    match fs::remove_file(beside(dir, bucket)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
