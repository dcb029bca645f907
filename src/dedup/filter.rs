//! Filters that answer "certainly never recorded" from memory, and the file that keeps them.
//!
//! A filter is a Bloom filter in blocks of 32 bytes: one ID touches one block, so an answer costs one cache miss.
//! Eight bits of a block are set for each ID, two in each of its four words. With 12 bits an ID about one absent
//! ID in 150 is let through; whoever asks goes on to the blocks, which hold whole IDs: a false hit costs time and
//! never becomes a false answer.
//!
//! The file `filters` of a bucket is a row of frames. It is a convenience: what is missing in it or does not fit
//! its checksum is built again from the blocks. Never change the drawing; a new form takes a new magic.
//!
//! ```text
//! frame: magic u32 "SGF1" | first run u32 | last run u32 | ids u64 | blocks u32 | crc32c u32 of all before it and of the words
//!        words: blocks x 4 x u64, little endian like everything here
//! ```

use crate::core::types::MessageId;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// Bits of a filter for each ID it is made for.
pub(super) const BITS_PER_ID: u64 = 12;
const MAGIC: u32 = u32::from_le_bytes(*b"SGF1");
/// Blocks that are read or written at once.
const CHUNK: usize = 2_048;
const HEAD: usize = 4 + 4 + 4 + 8 + 4 + 4;

/// 256 bits that lie in one cache line.
#[derive(Default)]
#[repr(align(32))]
struct Block([AtomicU64; 4]);

/// A set of IDs that may say "perhaps" of one that is not in it, and never "no" of one that is. One thread may add
/// while others ask: an ID is there for whoever learns of it after it was added.
pub(super) struct Filter {
    blocks: Box<[Block]>,
}

/// The hash by which memory tables and filters find an ID. IDs are hashes already; this only folds both halves.
#[inline]
pub(super) fn mix(id: &MessageId) -> u64 {
    let h = (id.head() ^ id.tail().rotate_left(23)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    h ^ (h >> 29)
}

/// The place of a hash among so many: places of near hashes are near, whatever their number.
#[inline]
pub(super) fn index_in(hash: u64, len: usize) -> usize {
    ((u128::from(hash) * len as u128) >> 64) as usize
}

/// What a filter asks of an ID, worked out once for all filters.
#[derive(Clone, Copy)]
pub(super) struct Probe {
    /// [`mix`] of the ID.
    pub hash: u64,
    masks: [u64; 4],
    /// Which bits the first two masks have set, two each.
    pub spots: [u8; 4],
}

impl Probe {
    /// The probe of an ID.
    #[inline]
    pub(super) fn of(id: &MessageId) -> Self {
        let hash = mix(id);
        let h = (id.tail() ^ hash.rotate_left(32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        let bits = |at: u32| (1u64 << ((h >> at) & 63)) | (1u64 << ((h >> (at + 6)) & 63));
        Self {
            hash,
            masks: [bits(16), bits(28), bits(40), bits(52)],
            spots: [16, 22, 28, 34].map(|at| ((h >> at) & 63) as u8),
        }
    }
}

impl Filter {
    /// Bytes of one of its blocks.
    pub(super) const BLOCK: usize = size_of::<Block>();

    /// An empty filter for so many IDs.
    pub(super) fn for_ids(ids: u64) -> Self {
        Self::with_bits(ids, BITS_PER_ID)
    }

    /// An empty filter for so many IDs, with so many bits for each.
    pub(super) fn with_bits(ids: u64, bits: u64) -> Self {
        let blocks = (ids * bits).div_ceil(256).clamp(1, u64::from(u32::MAX));
        Self {
            blocks: (0..blocks).map(|_| Block::default()).collect(),
        }
    }

    /// Gives its bytes to `take`, piece by piece.
    pub(super) fn each_chunk(&self, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(CHUNK * Self::BLOCK);
        for blocks in self.blocks.chunks(CHUNK) {
            bytes.clear();
            for word in blocks.iter().flat_map(|b| &b.0) {
                bytes.extend_from_slice(&word.load(Relaxed).to_le_bytes());
            }
            take(&bytes)?;
        }
        Ok(())
    }

    /// A filter of so many blocks from its bytes, which `fill` gives piece by piece; and their checksum.
    pub(super) fn read(
        blocks: u32,
        mut fill: impl FnMut(&mut [u8]) -> io::Result<()>,
    ) -> io::Result<(Self, u32)> {
        let mut all = Vec::with_capacity(blocks as usize);
        let (mut bytes, mut sum) = (vec![0; CHUNK * Self::BLOCK], 0);
        while all.len() < blocks as usize {
            let piece = &mut bytes[..CHUNK.min(blocks as usize - all.len()) * Self::BLOCK];
            fill(piece)?;
            sum = crc32c::crc32c_append(sum, piece);
            all.extend(piece.chunks_exact(Self::BLOCK).map(|block| {
                let word = |at: usize| {
                    block[at * 8..]
                        .first_chunk()
                        .map_or(0, |b| u64::from_le_bytes(*b))
                };
                Block(std::array::from_fn(|at| AtomicU64::new(word(at))))
            }));
        }
        let blocks = all.into_boxed_slice();
        Ok((Self { blocks }, sum))
    }

    /// How many IDs it is made for.
    pub(super) fn room(&self) -> u64 {
        self.blocks.len() as u64 * 256 / BITS_PER_ID
    }

    /// Bytes it holds in memory.
    pub(super) fn bytes(&self) -> u64 {
        (self.blocks.len() * size_of::<Block>()) as u64
    }

    #[inline]
    fn index(&self, hash: u64) -> usize {
        index_in(hash, self.blocks.len())
    }

    /// How many blocks it has.
    pub(super) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// The first two words of a block.
    pub(super) fn words(&self, block: usize) -> [u64; 2] {
        let words = &self.blocks[block].0;
        [words[0].load(Relaxed), words[1].load(Relaxed)]
    }

    /// Adds an ID. Only one thread at a time may do that, or bits get lost.
    #[inline]
    pub(super) fn add(&self, probe: &Probe) {
        for (word, mask) in self.blocks[self.index(probe.hash)].0.iter().zip(probe.masks) {
            word.store(word.load(Relaxed) | mask, Relaxed);
        }
    }

    /// Adds IDs. What of the filter they need is fetched from memory before, many lines at once.
    pub(super) fn add_all(&self, probes: &[Probe]) {
        let look = |sum: u64, probe: &Probe| sum ^ self.blocks[self.index(probe.hash)].0[0].load(Relaxed);
        std::hint::black_box(probes.iter().fold(0, look));
        probes.iter().for_each(|probe| self.add(probe));
    }

    /// False: the ID was certainly never added.
    #[inline]
    pub(super) fn may_hold(&self, probe: &Probe) -> bool {
        let words = &self.blocks[self.index(probe.hash)].0;
        let missing = |i: usize| !words[i].load(Relaxed) & probe.masks[i];
        // Without early exits: look-ups of a batch overlap in the processor only while no branch is mispredicted.
        (missing(0) | missing(1) | missing(2) | missing(3)) == 0
    }
}

/// Which runs a filter is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// Number of the first run.
    pub first: u32,
    /// Number of the last run, the same one included.
    pub last: u32,
    /// IDs in all of them.
    pub ids: u64,
}

fn head(span: Span, blocks: u32) -> [u8; HEAD - 4] {
    let mut out = [0; HEAD - 4];
    out[..4].copy_from_slice(&MAGIC.to_le_bytes());
    out[4..8].copy_from_slice(&span.first.to_le_bytes());
    out[8..12].copy_from_slice(&span.last.to_le_bytes());
    out[12..20].copy_from_slice(&span.ids.to_le_bytes());
    out[20..24].copy_from_slice(&blocks.to_le_bytes());
    out
}

/// Appends a filter to the file of its bucket. Not synced: what is lost is built again.
pub(super) fn append(path: &Path, span: Span, filter: &Filter) -> io::Result<()> {
    crate::files::options()
        .create(true)
        .append(true)
        .open(path)?
        .write_all(&frame(span, filter))
}

/// Replaces the file by this one filter.
pub(super) fn replace(path: &Path, span: Span, filter: &Filter) -> io::Result<()> {
    crate::files::write(path, &frame(span, filter))
}

fn frame(span: Span, filter: &Filter) -> Vec<u8> {
    let head = head(span, filter.blocks.len() as u32);
    let mut frame = Vec::with_capacity(HEAD + filter.blocks.len() * 32);
    frame.extend_from_slice(&head);
    frame.extend_from_slice(&[0; 4]);
    // Memory takes all that it is given.
    let _ = filter.each_chunk(|bytes| frame.write_all(bytes));
    let crc = crc32c::crc32c_append(crc32c::crc32c(&head), &frame[HEAD..]);
    frame[HEAD - 4..HEAD].copy_from_slice(&crc.to_le_bytes());
    frame
}

/// Reads the filters that `wanted` asks for. Ends, without an error, at the first frame that cannot be one; leaves
/// out what does not fit its checksum.
pub(super) fn load(path: &Path, mut wanted: impl FnMut(Span) -> bool) -> Vec<(Span, Filter)> {
    let mut found = Vec::new();
    let Ok(file) = File::open(path) else { return found };
    let Ok(size) = file.metadata().map(|m| m.len()) else {
        return found;
    };
    let mut file = BufReader::with_capacity(1 << 16, file);
    let mut at = 0u64;
    let mut fixed = [0u8; HEAD];
    while file.read_exact(&mut fixed).is_ok() {
        let u32_at = |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
        let (magic, blocks, crc) = (u32_at(0), u32_at(20), u32_at(24));
        let ids = u64::from(u32_at(12)) | (u64::from(u32_at(16)) << 32);
        let span = Span {
            first: u32_at(4),
            last: u32_at(8),
            ids,
        };
        let len = u64::from(blocks) * 32;
        if magic != MAGIC || blocks == 0 || at + HEAD as u64 + len > size {
            break;
        }
        at += HEAD as u64 + len;
        if !wanted(span) {
            if file.seek(SeekFrom::Start(at)).is_err() {
                break;
            }
            continue;
        }
        let Ok((filter, sum)) = Filter::read(blocks, |bytes| file.read_exact(bytes)) else {
            break;
        };
        // The checksum of head and words together.
        if crc32c::crc32c_combine(crc32c::crc32c(&fixed[..HEAD - 4]), sum, len as usize) == crc {
            found.push((span, filter));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(n: u64) -> Probe {
        let mut out = [0; 16];
        let mut random = fastrand::Rng::with_seed(n);
        random.fill(&mut out);
        Probe::of(&MessageId(out))
    }

    #[test]
    fn holds_all_that_was_added_and_lets_few_others_through() {
        let filter = Filter::for_ids(50_000);
        (0..50_000).for_each(|n| filter.add(&probe(n)));
        assert!((0..50_000).all(|n| filter.may_hold(&probe(n))));
        let wrong = (1_000_000..1_100_000)
            .filter(|&n| filter.may_hold(&probe(n)))
            .count();
        assert!(wrong < 1_200, "{wrong} of 100000 absent IDs were let through");
    }

    #[test]
    fn comes_back_from_its_file_and_damage_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("filters");
        let filter = Filter::for_ids(100);
        filter.add(&probe(1));
        let spans = [
            Span {
                first: 1,
                last: 1,
                ids: 1,
            },
            Span {
                first: 2,
                last: 9,
                ids: 1,
            },
        ];
        for span in spans {
            append(&path, span, &filter).unwrap();
        }
        let read = |wanted: fn(Span) -> bool| -> Vec<Span> {
            let same = |f: &Filter| frame(spans[0], f) == frame(spans[0], &filter);
            load(&path, wanted)
                .into_iter()
                .filter(|(_, f)| same(f))
                .map(|(s, _)| s)
                .collect()
        };
        assert_eq!(read(|_| true), spans);
        assert_eq!(read(|s| s.first == 2), spans[1..]);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[HEAD + 1] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(read(|_| true), spans[1..]);
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert_eq!(read(|_| true), []);
        replace(&path, spans[1], &filter).unwrap();
        assert_eq!(read(|_| true), spans[1..]);
    }
}
