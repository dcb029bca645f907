//! Opening: from files to an open log.
//!
//! 1. The folder is locked, the journal's identity read, every slot's head looked at.
//! 2. The newest segment is read whole and every byte of it checked. Its last frame may be torn: then nothing
//!    valid stands behind it, and the frame was acknowledged to nobody. A bad frame with a valid later one behind
//!    it is damage: there is never more than one frame that is not durable, so opening stops.
//! 3. The last frame is written again and synced before anybody acts on it: a process that was killed between
//!    write and sync left it in the page cache only, and after a failed sync the cache calls lost pages clean.
//! 4. Older segments give their footers (or, where one is missing, their frames). Parts of transactions without a
//!    commit are dropped here.
//! 5. All offsets from first to next must be there, else opening stops.

use super::EmbeddedOptions;
use super::catalogue::Catalogue;
use super::disk::{self, read_at, replace_file, slot_of, slot_path};
use super::frame::{Entry, FRAME_HEAD, Frame, Lengths, Origin, Place};
use super::index::SegmentItems;
use super::reader::{Window, damaged};
use super::segment::{Head, Segment, encode_head, read_footer, read_head, trailer_at};
use super::state::{Shared, Spare};
use super::wire::Wire;
use super::writer::{Active, write_footer};
use crate::log::LogError;
use std::collections::{BTreeMap, HashSet};
use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const IDENTITY: &[u8; 8] = b"SLGJRN01";
/// Of the very first segment only so much is zero-filled before the log opens: a node's first start must not wait
/// for 64 MiB of zeros.
const FIRST_ZEROED: u64 = 8 * 1024 * 1024;

fn cannot_open(path: &Path, e: &std::io::Error) -> LogError {
    LogError::Open {
        path: path.to_owned(),
        detail: e.to_string(),
    }
}

fn corrupt(path: &Path, detail: impl Into<String>) -> LogError {
    LogError::Corrupt {
        path: path.to_owned(),
        at: 0,
        detail: detail.into(),
    }
}

pub(super) fn cannot_write(dir: &Path, path: &Path, e: &std::io::Error) -> LogError {
    use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    match e.kind() {
        ReadOnlyFilesystem | PermissionDenied => LogError::ReadOnly {
            path: dir.to_owned(),
            detail: e.to_string(),
        },
        _ => cannot_open(path, e),
    }
}

/// Takes the folder for this process; the lock goes with the file handle, also after a kill.
pub(super) fn lock(dir: &Path) -> Result<File, LogError> {
    crate::files::folder(dir).map_err(|e| cannot_write(dir, dir, &e))?;
    let path = dir.join("lock");
    let file = crate::files::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|e| cannot_write(dir, &path, &e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(LogError::Locked { path: dir.to_owned() }),
        Err(TryLockError::Error(e)) => Err(cannot_open(&path, &e)),
    }
}

/// The journal's UUID, and whether its first segment was ever begun. `journal`: magic, UUID u128, begun u8,
/// crc32c of the 25 bytes before (LE).
struct Identity {
    journal: u128,
    begun: bool,
}

impl Identity {
    fn read(path: &Path) -> Result<Option<Identity>, LogError> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(cannot_open(path, &e)),
        };
        let mut wire = Wire(&bytes);
        let parsed = (|| {
            let magic = wire.bytes(8)? == IDENTITY;
            let identity = Identity {
                journal: wire.u128()?,
                begun: wire.u8()? == 1,
            };
            (magic && wire.u32()? == crc32c::crc32c(&bytes[..25])).then_some(identity)
        })();
        parsed
            .map(Some)
            .ok_or_else(|| corrupt(path, "this is not the identity of a journal, or it is damaged"))
    }

    fn write(&self, path: &Path) -> Result<(), LogError> {
        let mut bytes = IDENTITY.to_vec();
        bytes.extend_from_slice(&self.journal.to_le_bytes());
        bytes.push(u8::from(self.begun));
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        replace_file(path, &bytes).map_err(|e| cannot_open(path, &e))
    }
}

/// The UUID of the journal in this folder, read without taking the folder; none where it has none that can be read.
pub fn journal_of(dir: &Path) -> Option<u128> {
    Identity::read(&dir.join("journal"))
        .ok()?
        .map(|identity| identity.journal)
}

/// A slot's file and what its head says.
struct Slot {
    slot: u32,
    file: Arc<File>,
    size: u64,
    head: Head,
}

/// Opens the journal of a locked folder.
pub(super) fn open(dir: &Path, options: EmbeddedOptions) -> Result<(Arc<Shared>, Active), LogError> {
    let identity_path = dir.join("journal");
    let names = slots_of(dir)?;
    let mut identity = match Identity::read(&identity_path)? {
        Some(identity) => identity,
        None if names.is_empty() => {
            let identity = Identity {
                journal: uuid::Uuid::new_v4().as_u128(),
                begun: false,
            };
            identity.write(&identity_path)?;
            identity
        }
        None => return Err(corrupt(&identity_path, "it is missing, but segments are there")),
    };
    let shared = Shared::new(dir, options, identity.journal);
    let mut slots = Vec::new();
    for slot in names {
        let path = slot_path(dir, slot);
        let failed = |e| cannot_open(&path, &e);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        let head = read_head(&file, size, identity.journal).map_err(failed)?;
        if matches!(head, Head::Foreign) {
            return Err(corrupt(
                &path,
                "it belongs to another journal, or to another version",
            ));
        }
        slots.push(Slot {
            slot,
            file: Arc::new(file),
            size,
            head,
        });
    }
    shared.spares.lock().next_slot = slots.iter().map(|s| s.slot + 1).max().unwrap_or(0);
    let any = slots.iter().any(|s| matches!(s.head, Head::Live { .. }));
    let active = match (any, identity.begun) {
        (true, _) => restore(&shared, slots)?,
        (false, true) => return Err(corrupt(dir, "no segment is readable, but there was one")),
        (false, false) => {
            for slot in slots {
                keep_spare(&shared, slot);
            }
            begin(&shared)?
        }
    };
    if !identity.begun {
        identity.begun = true;
        identity.write(&identity_path)?;
    }
    for partition in shared.all_partitions() {
        let next = partition.index.read().next;
        partition.watch.send_replace(next);
    }
    Ok((Arc::new(shared), active))
}

/// Slots in the folder; files whose making was cut off are removed.
fn slots_of(dir: &Path) -> Result<Vec<u32>, LogError> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| cannot_open(dir, &e))? {
        let entry = entry.map_err(|e| cannot_open(dir, &e))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.ends_with(".new") {
            std::fs::remove_file(entry.path()).map_err(|e| cannot_open(&entry.path(), &e))?;
        }
        out.extend(slot_of(name));
    }
    out.sort_unstable();
    Ok(out)
}

fn keep_spare(shared: &Shared, slot: Slot) {
    let path = slot_path(&shared.dir, slot.slot);
    if slot.size == shared.options.segment_bytes {
        shared.spares.lock().ready.push_back(Spare {
            slot: slot.slot,
            file: slot.file,
        });
    } else if let Err(error) = std::fs::remove_file(&path) {
        tracing::warn!(event = "log_file_left", path = %path.display(), %error, "cannot remove a file that holds nothing");
    }
}

/// Makes the first segment of a new journal.
fn begin(shared: &Shared) -> Result<Active, LogError> {
    let spare = shared.spares.lock().ready.pop_front();
    let size = shared.options.segment_bytes;
    let spare = match spare {
        Some(spare) => spare,
        None => {
            let mut spares = shared.spares.lock();
            let slot = spares.next_slot;
            spares.next_slot += 1;
            drop(spares);
            let made = shared
                .disk
                .allocate(&slot_path(&shared.dir, slot), size, FIRST_ZEROED, |_| true);
            match made {
                Ok(Some(file)) => Spare {
                    slot,
                    file: Arc::new(file),
                },
                Ok(None) => return Err(shared.no_room("making a segment was given up".into())),
                Err(e) => return Err(shared.no_room(e.to_string())),
            }
        }
    };
    let catalogue = Catalogue {
        next_frame: 1,
        next_tx: 1,
        ..Catalogue::default()
    };
    let head = encode_head(shared.journal, 1, &catalogue);
    let path = slot_path(&shared.dir, spare.slot);
    let made = shared.disk.write(&spare.file, &head, 0);
    made.and_then(|()| shared.disk.sync(&spare.file))
        .map_err(|e| shared.poison(&path, &e))?;
    let segment = Arc::new(Segment {
        number: 1,
        slot: spare.slot,
        path,
        file: spare.file,
        frames: disk::after(head.len()),
        first_frame: 1,
        size,
    });
    shared.segments.write().insert(1, Arc::clone(&segment));
    Ok(Active {
        at: segment.frames,
        segment,
        items: SegmentItems::default(),
        next_frame: 1,
    })
}

/// A frame that fits, and where it stands.
struct Found {
    at: u64,
    until: u64,
    frame: Frame,
}

/// Reads the frames of a segment, every byte checked, up to the first place where none stands.
fn scan(shared: &Shared, segment: &Segment) -> Result<Vec<Found>, LogError> {
    let limit = trailer_at(segment.size);
    let mut window = Window::new(segment, limit, 1024 * 1024, Vec::new());
    let mut out: Vec<Found> = Vec::new();
    let (mut at, mut number) = (segment.frames, segment.first_frame);
    while at + FRAME_HEAD as u64 <= limit {
        let Some((frame, until)) = valid_at(shared, segment, &mut window, at)? else {
            break;
        };
        if frame.number != number {
            let detail = format!("frame {} stands where {number} belongs", frame.number);
            return Err(damaged(segment, at, &detail));
        }
        out.push(Found { at, until, frame });
        (at, number) = (until, number + 1);
    }
    nothing_behind(shared, segment, &mut window, at, number)?;
    Ok(out)
}

fn valid_at(
    shared: &Shared,
    segment: &Segment,
    window: &mut Window<'_>,
    at: u64,
) -> Result<Option<(Frame, u64)>, LogError> {
    let Some(lengths) = Lengths::peek(window.get(at, FRAME_HEAD)?) else {
        return Ok(None);
    };
    let whole = lengths.to_body() + lengths.body;
    if at + lengths.total() > segment.size {
        return Ok(None);
    }
    let place = Place {
        journal: shared.journal,
        segment: segment.number,
        at,
    };
    let bytes = window.get(at, whole)?;
    let frame = Frame::decode(bytes, place)
        .filter(|f| bytes.len() == whole && f.body_fits(&bytes[lengths.to_body()..]));
    Ok(frame.map(|f| (f, at + lengths.total())))
}

/// A frame is missing at `at`: nothing of a later one may stand behind it.
fn nothing_behind(
    shared: &Shared,
    segment: &Segment,
    window: &mut Window<'_>,
    at: u64,
    number: u64,
) -> Result<(), LogError> {
    const LOOK: usize = 64 * 1024;
    let limit = trailer_at(segment.size);
    let most = number + segment.size / FRAME_HEAD as u64;
    // Frames begin at multiples of eight, with their number 16 bytes in: that alone rules out nearly every place.
    let mut look = at + 8 + 16;
    while look < limit {
        let words = window.get(look, LOOK)?.chunks_exact(8);
        let candidates: Vec<u64> = (words.enumerate())
            .filter_map(|(n, word)| {
                let held = u64::from_le_bytes(word.try_into().ok()?);
                (number..=most)
                    .contains(&held)
                    .then_some(look + 8 * n as u64 - 16)
            })
            .collect();
        for candidate in candidates {
            if let Some(frame) = valid_head(shared, segment, candidate)? {
                let detail = format!(
                    "frame {number} is damaged, and frame {} stands behind it",
                    frame.number
                );
                return Err(damaged(segment, at, &detail));
            }
        }
        look += LOOK as u64;
    }
    Ok(())
}

/// A frame's head and table alone: one whose body is damaged too still proves that it was written later.
fn valid_head(shared: &Shared, segment: &Segment, at: u64) -> Result<Option<Frame>, LogError> {
    let mut window = Window::new(segment, segment.size, 0, Vec::new());
    let Some(lengths) = Lengths::peek(window.get(at, FRAME_HEAD)?) else {
        return Ok(None);
    };
    let place = Place {
        journal: shared.journal,
        segment: segment.number,
        at,
    };
    Ok(Frame::decode(window.get(at, lengths.to_body())?, place))
}

/// Restores the state from the segments that are there.
fn restore(shared: &Shared, slots: Vec<Slot>) -> Result<Active, LogError> {
    let mut found: BTreeMap<u64, (Arc<Segment>, Catalogue)> = BTreeMap::new();
    for slot in slots {
        let Head::Live {
            number,
            catalogue,
            frames,
        } = slot.head
        else {
            keep_spare(shared, slot);
            continue;
        };
        let path = slot_path(&shared.dir, slot.slot);
        let segment = Segment {
            number,
            slot: slot.slot,
            file: slot.file,
            frames,
            first_frame: catalogue.next_frame,
            size: slot.size,
            path: path.clone(),
        };
        if found.insert(number, (Arc::new(segment), catalogue)).is_some() {
            return Err(corrupt(&path, format!("segment {number} is there twice")));
        }
    }
    let Some((_, (newest, catalogue))) = found.pop_last() else {
        return Err(corrupt(&shared.dir, "no segment is readable"));
    };
    if read_footer(&newest)
        .map_err(|e| cannot_open(&newest.path, &e))?
        .is_some()
    {
        return Err(corrupt(&newest.path, "the segment that follows it is missing"));
    }
    let frames = scan(shared, &newest)?;
    make_durable(shared, &newest, frames.last())?;

    shared.load(&catalogue);
    let entries = || frames.iter().flat_map(|f| &f.frame.entries);
    let dropped: HashSet<u64> = entries()
        .filter_map(|e| match e {
            Entry::Dropped { segment } => Some(*segment),
            _ => None,
        })
        .collect();
    for (number, slot) in &catalogue.segments {
        if dropped.contains(number) {
            continue;
        }
        let Some((segment, its)) = found.remove(number).filter(|(s, _)| s.slot == *slot) else {
            let path = slot_path(&shared.dir, *slot);
            return Err(corrupt(&path, format!("segment {number} is missing")));
        };
        // The one that follows it may be dropped already; its head is then still there, or it is long gone.
        let follower = match number + 1 == newest.number {
            true => Some(&catalogue),
            false => found.get(&(number + 1)).map(|(_, c)| c),
        };
        take_sealed(shared, &segment, its.next_frame, follower.map(|c| c.next_frame))?;
        shared.segments.write().insert(*number, segment);
    }
    for (segment, _) in found.into_values() {
        keep_spare(
            shared,
            Slot {
                slot: segment.slot,
                file: Arc::clone(&segment.file),
                size: segment.size,
                head: Head::Free,
            },
        );
    }
    let mut items = SegmentItems::default();
    let (mut at, mut next_frame) = (newest.frames, newest.first_frame);
    for found in &frames {
        shared.apply(
            &found.frame.entries,
            newest.number,
            (found.at, found.until),
            &mut items,
        );
        (at, next_frame) = (found.until, found.frame.number + 1);
    }
    let last_tx = entries().filter_map(|e| match e {
        Entry::Section(s) => match s.origin {
            Origin::Part(tx) => Some(tx),
            Origin::Batch | Origin::Carried => None,
        },
        Entry::Commit { tx, .. } => Some(*tx),
        _ => None,
    });
    let next_tx = last_tx.max().map_or(0, |tx| tx + 1);
    shared.next_tx.fetch_max(next_tx, Ordering::AcqRel);
    shared.open.lock().clear();
    shared.segments.write().insert(newest.number, Arc::clone(&newest));
    for partition in shared.all_partitions() {
        if let Some(offset) = partition.index.read().hole() {
            let detail = format!(
                "offset {offset} of partition #{} of `{}` is in no segment",
                partition.number, partition.topic
            );
            return Err(corrupt(&shared.dir, detail));
        }
    }
    Ok(Active {
        segment: newest,
        at,
        items,
        next_frame,
    })
}

/// Writes the last frame (or, without one, the head) again and syncs it.
fn make_durable(shared: &Shared, segment: &Segment, last: Option<&Found>) -> Result<(), LogError> {
    let (at, until) = last.map_or((0, segment.frames), |f| (f.at, f.until));
    let mut bytes = Vec::new();
    read_at(&segment.file, at, (until - at) as usize, &mut bytes)
        .map_err(|e| cannot_open(&segment.path, &e))?;
    let written = shared.disk.write(&segment.file, &bytes, at);
    written
        .and_then(|()| shared.disk.sync(&segment.file))
        .map_err(|e| shared.poison(&segment.path, &e))
}

/// Takes in the index of a segment that is full: from its footer, or from its frames where that is missing.
fn take_sealed(
    shared: &Shared,
    segment: &Segment,
    first_frame: u64,
    follower: Option<u64>,
) -> Result<(), LogError> {
    let footer = read_footer(segment).map_err(|e| cannot_open(&segment.path, &e))?;
    let items = match footer {
        Some(items) => items,
        None => {
            let frames = scan(shared, segment)?;
            let next = first_frame + frames.len() as u64;
            if follower.is_some_and(|f| f != next) {
                return Err(corrupt(
                    &segment.path,
                    format!("its frames from {next} on are missing"),
                ));
            }
            let mut items = SegmentItems::default();
            for f in &frames {
                for s in f.frame.sections() {
                    items.add(s, segment.number, f.at as u32, f.until as u32);
                }
            }
            let end = frames.last().map_or(segment.frames, |f| f.until);
            write_footer(shared, segment, &items, end)?;
            items
        }
    };
    for (partition, origin, item) in items.iter() {
        shared.place(*partition, *origin, *item);
    }
    Ok(())
}
