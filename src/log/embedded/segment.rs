//! A segment file: header and catalogue in front, frames, and a footer once it is full. Never change the form; a
//! new one gets a new magic.
//!
//! ```text
//! 0             8               24            32               36        40
//! ┌─────────────┬───────────────┬─────────────┬────────────────┬─────────┬───────────┬───────────┬─────┬────────┐
//! │ "SLGSEG01"  │ journal u128  │ number u64  │ catalogue u32  │ crc u32 │ catalogue │ frames …  │ …   │ footer │
//! └─────────────┴───────────────┴─────────────┴────────────────┴─────────┴───────────┴───────────┴─────┴────────┘
//!                                              bytes            of all but itself                  zeros, or frames
//!                                                                                                  of an earlier use
//! footer:  items of the index (see `index`), anywhere behind the frames
//! trailer: the last 40 bytes of the file:
//!          footer's place u64, its bytes u32, crc32c of the footer u32, segment number u64, "SLGEND01", crc32c of
//!          the 32 bytes before u32, zero u32
//! ```
//!
//! A file is a *slot* with a number of its own and is used again and again; a *segment* is one use of it. Segment
//! numbers only rise, so nothing of an earlier use can be taken for a part of this one.

use super::catalogue::Catalogue;
use super::disk::{after, read_at};
use super::index::{ITEM_LEN, SegmentItems};
use super::wire::{Wire, align8};
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"SLGSEG01";
const END: &[u8; 8] = b"SLGEND01";
const HEADER: usize = 40;
/// Bytes of the trailer.
const TRAILER: u64 = 40;

/// A segment that readers may use: one use of a slot's file.
#[derive(Debug)]
pub(super) struct Segment {
    pub number: u64,
    pub slot: u32,
    pub path: PathBuf,
    pub file: Arc<File>,
    /// Where its first frame stands.
    pub frames: u64,
    /// Number of its first frame.
    pub first_frame: u64,
    /// Bytes of its file.
    pub size: u64,
}

/// Header and catalogue of a new segment, ready to be written at 0.
pub(super) fn encode_head(journal: u128, number: u64, catalogue: &Catalogue) -> Vec<u8> {
    let mut out = Vec::with_capacity(4096);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&journal.to_le_bytes());
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&[0; 8]);
    catalogue.encode(&mut out);
    let bytes = (out.len() - HEADER) as u32;
    out[32..36].copy_from_slice(&bytes.to_le_bytes());
    let crc = head_crc(&out);
    out[36..40].copy_from_slice(&crc.to_le_bytes());
    out
}

fn head_crc(head: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&head[..36]), &head[HEADER..])
}

/// What the head of a slot's file says.
pub(super) enum Head {
    /// No segment: a spare, or one whose making was cut off.
    Free,
    /// A segment of another journal or version: somebody copied a file.
    Foreign,
    /// A segment.
    Live {
        number: u64,
        catalogue: Catalogue,
        frames: u64,
    },
}

/// Reads the head of a file.
pub(super) fn read_head(file: &File, size: u64, journal: u128) -> io::Result<Head> {
    let mut bytes = Vec::new();
    read_at(file, 0, HEADER, &mut bytes)?;
    let mut wire = Wire(&bytes);
    if wire.bytes(8) != Some(MAGIC) {
        return Ok(Head::Free);
    }
    let (Some(owner), Some(number), Some(len)) = (wire.u128(), wire.u64(), wire.u32()) else {
        return Ok(Head::Free);
    };
    let whole = HEADER + len as usize;
    if whole as u64 > size {
        return Ok(Head::Free);
    }
    read_at(file, 0, whole, &mut bytes)?;
    let crc = Wire(&bytes[36..]).u32();
    if bytes.len() != whole || crc != Some(head_crc(&bytes)) {
        return Ok(Head::Free);
    }
    if owner != journal {
        return Ok(Head::Foreign);
    }
    Ok(match Catalogue::decode(&bytes[HEADER..]) {
        Some(catalogue) => Head::Live {
            number,
            catalogue,
            frames: after(whole),
        },
        // Its checksum fits, so this was written on purpose, by a version that says more.
        None => Head::Foreign,
    })
}

/// Room that the footer and trailer of this many items need behind the frames.
pub(super) fn footer_room(items: usize) -> u64 {
    align8((4 + items * ITEM_LEN) as u64) + TRAILER
}

/// The footer to be written at `at`, and the trailer to be written at the end of the file.
pub(super) fn encode_footer(items: &SegmentItems, number: u64, at: u64) -> (Vec<u8>, Vec<u8>) {
    let mut footer = Vec::with_capacity(4 + items.len() * ITEM_LEN);
    items.encode(&mut footer);
    let mut trailer = Vec::with_capacity(TRAILER as usize);
    trailer.extend_from_slice(&at.to_le_bytes());
    trailer.extend_from_slice(&(footer.len() as u32).to_le_bytes());
    trailer.extend_from_slice(&crc32c::crc32c(&footer).to_le_bytes());
    trailer.extend_from_slice(&number.to_le_bytes());
    trailer.extend_from_slice(END);
    let crc = crc32c::crc32c(&trailer);
    trailer.extend_from_slice(&crc.to_le_bytes());
    trailer.extend_from_slice(&[0; 4]);
    (footer, trailer)
}

/// Where the trailer of a file of this size stands.
pub(super) const fn trailer_at(size: u64) -> u64 {
    size - TRAILER
}

/// The segment's footer; `None` if it has none, or a damaged one.
pub(super) fn read_footer(segment: &Segment) -> io::Result<Option<SegmentItems>> {
    let mut trailer = Vec::new();
    read_at(
        &segment.file,
        trailer_at(segment.size),
        TRAILER as usize,
        &mut trailer,
    )?;
    let mut wire = Wire(&trailer);
    let parsed = (|| {
        let place = (wire.u64()?, wire.u32()?, wire.u32()?);
        let fits = wire.u64()? == segment.number && wire.bytes(8)? == END;
        (fits && wire.u32()? == crc32c::crc32c(&trailer[..32])).then_some(place)
    })();
    let Some((at, len, crc)) =
        parsed.filter(|(at, len, _)| at.saturating_add(u64::from(*len)) <= segment.size)
    else {
        return Ok(None);
    };
    let mut footer = Vec::new();
    read_at(&segment.file, at, len as usize, &mut footer)?;
    Ok((crc32c::crc32c(&footer) == crc)
        .then(|| SegmentItems::decode(&footer, segment.number))
        .flatten())
}
