//! Reading: by pread from the page cache, a section at a time, each checked before a byte of it is believed.
//!
//! Readers share nothing with the writer but a short look at the index. Records are copied out one by one: one
//! record that waits for days then keeps its own bytes in memory and not a chunk of 64 KiB (I6).

use super::disk::read_into;
use super::frame::{Entry, FRAME_HEAD, Frame, Lengths, Origin, Place, SectionHead};
use super::index::Item;
use super::segment::Segment;
use super::state::{Hint, Partition, Shared};
use super::wire::Wire;
use crate::core::record::{Headers, Record};
use crate::core::types::{Offset, Time};
use crate::log::batch::{NO_KEY, RECORD_HEAD};
use crate::log::{Bounds, LogError};
use bytes::Bytes;
use std::cell::RefCell;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bytes fetched at once: many small frames. What is at least half of it is fetched alone, because behind it in a
/// large frame stand other partitions' records.
const WINDOW: usize = 32 * 1024;

thread_local! {
    /// The window's buffer, kept between reads.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Gets the sections of an item one by one: where their frame begins, the head (its base an offset), the records.
pub(super) type Take<'a> = dyn FnMut(u64, SectionHead, &[u8]) -> Result<ControlFlow<()>, LogError> + 'a;

/// A moving view of a segment's file.
pub(super) struct Window<'a> {
    segment: &'a Segment,
    start: u64,
    /// Its first `held` bytes are the file's; the rest is left of earlier windows, so that nothing is zeroed anew.
    bytes: Vec<u8>,
    held: usize,
    /// Nothing behind this is fetched.
    limit: u64,
    size: usize,
}

impl<'a> Window<'a> {
    pub(super) fn new(segment: &'a Segment, limit: u64, size: usize, bytes: Vec<u8>) -> Self {
        Self {
            segment,
            start: 0,
            bytes,
            held: 0,
            limit,
            size,
        }
    }

    /// `n` bytes at a place; fewer where the limit or the file ends.
    pub(super) fn get(&mut self, at: u64, n: usize) -> Result<&[u8], LogError> {
        let n = n.min(self.limit.saturating_sub(at) as usize);
        let held = at >= self.start && at + n as u64 <= self.start + self.held as u64;
        if !held {
            let most = self.limit.saturating_sub(at) as usize;
            let wanted = n.max(self.size.min(most));
            if self.bytes.len() < wanted {
                self.bytes.resize(wanted, 0);
            }
            // Nothing is held if the read fails.
            self.held = 0;
            self.held = read_into(&self.segment.file, at, &mut self.bytes[..wanted])
                .map_err(|e| unreadable(self.segment, &e))?;
            self.start = at;
        }
        let from = (at - self.start) as usize;
        Ok(&self.bytes[from..(from + n).min(self.held)])
    }
}

fn unreadable(segment: &Segment, e: &std::io::Error) -> LogError {
    LogError::Open {
        path: segment.path.clone(),
        detail: e.to_string(),
    }
}

pub(super) fn damaged(segment: &Segment, at: u64, detail: &str) -> LogError {
    LogError::Corrupt {
        path: segment.path.clone(),
        at,
        detail: detail.to_owned(),
    }
}

/// Walks the frames of an item from `from` on and hands out its sections.
pub(super) fn sections(
    journal: u128,
    segment: &Segment,
    partition: u32,
    item: &Item,
    from: u64,
    take: &mut Take<'_>,
) -> Result<(), LogError> {
    let buffer = BUFFER.with(|b| std::mem::take(&mut *b.borrow_mut()));
    let mut window = Window::new(segment, u64::from(item.until), WINDOW, buffer);
    let result = walk(journal, &mut window, partition, item, from, take);
    let mut buffer = window.bytes;
    if buffer.capacity() > 16 * WINDOW {
        buffer = Vec::new();
    }
    BUFFER.with(|b| *b.borrow_mut() = buffer);
    result
}

fn walk(
    journal: u128,
    window: &mut Window<'_>,
    partition: u32,
    item: &Item,
    from: u64,
    take: &mut Take<'_>,
) -> Result<(), LogError> {
    let segment = window.segment;
    let mut at = from;
    while at < u64::from(item.until) {
        let bad = |detail| damaged(segment, at, detail);
        let lengths = Lengths::peek(window.get(at, FRAME_HEAD)?).ok_or_else(|| bad("no frame"))?;
        let place = Place {
            journal,
            segment: segment.number,
            at,
        };
        let head = window.get(at, lengths.to_body())?;
        let frame = Frame::decode(head, place).ok_or_else(|| bad("a frame's checksum does not fit"))?;
        let mut body = at + lengths.to_body() as u64;
        for entry in &frame.entries {
            let Entry::Section(s) = entry else { continue };
            let (len, mine) = (s.len as usize, belongs(s, partition, item));
            if let Some(head) = mine {
                let bytes = window.get(body, len)?;
                if bytes.len() != len || crc32c::crc32c(bytes) != s.crc {
                    return Err(bad("a section's checksum does not fit"));
                }
                if take(at, head, bytes)?.is_break() {
                    return Ok(());
                }
            }
            body += len as u64;
        }
        at += lengths.total();
    }
    Ok(())
}

/// The section with offsets of the partition, if the item covers any of it.
fn belongs(s: &SectionHead, partition: u32, item: &Item) -> Option<SectionHead> {
    let same = match s.origin {
        Origin::Part(tx) => item.tx == tx,
        Origin::Batch | Origin::Carried => item.tx == 0,
    };
    let head = SectionHead {
        base: s.base + item.shift,
        ..*s
    };
    let covered = head.base < item.end && head.end() > item.base;
    (same && s.partition == partition && covered).then_some(head)
}

/// One encoded record of a section.
pub(super) struct Raw<'a> {
    pub offset: Offset,
    pub time: Time,
    key: Option<&'a [u8]>,
    value: &'a [u8],
    headers: &'a [u8],
    /// Where it ends in the section.
    pub end: usize,
}

/// The records of a section, in order; ends early where the lengths do not fit.
pub(super) fn records<'a>(head: &SectionHead, bytes: &'a [u8]) -> impl Iterator<Item = Raw<'a>> {
    let mut wire = Wire(bytes);
    let (base, all) = (head.base, bytes.len());
    (0..u64::from(head.count)).map_while(move |n| {
        let time = Time(wire.u64()?);
        let (key, value, headers) = (wire.u32()?, wire.u32()?, wire.u32()?);
        let key = match key {
            NO_KEY => None,
            len => Some(wire.bytes(len as usize)?),
        };
        Some(Raw {
            offset: base + n,
            time,
            key,
            value: wire.bytes(value as usize)?,
            headers: wire.bytes(headers as usize)?,
            end: all - wire.0.len(),
        })
    })
}

impl Raw<'_> {
    fn size(&self) -> usize {
        RECORD_HEAD + self.key.map_or(0, <[u8]>::len) + self.value.len() + self.headers.len()
    }

    fn copy(&self) -> Record {
        Record {
            offset: self.offset,
            timestamp: self.time,
            key: self.key.map(Bytes::copy_from_slice),
            value: Bytes::copy_from_slice(self.value),
            headers: Headers(Bytes::copy_from_slice(self.headers)),
        }
    }
}

impl Partition {
    pub(super) fn bounds(&self) -> Bounds {
        let index = self.index.read();
        Bounds {
            first: index.first,
            next: index.next,
        }
    }

    fn hint(&self, offset: Offset, item: &Item) -> Option<u64> {
        let hints = self.hints.lock();
        hints
            .iter()
            .find(|h| h.offset == offset && h.segment == item.segment && h.base == item.base)
            .map(|h| h.at)
            .filter(|at| *at >= u64::from(item.at) && *at < u64::from(item.until))
    }

    fn leave_hint(&self, was: Offset, hint: Hint) {
        let mut hints = self.hints.lock();
        // Each reader replaces its own; a new one takes the place of the one furthest behind.
        let mine = hints.iter().position(|h| h.offset == was);
        let last = (0..hints.len()).min_by_key(|n| hints[*n].offset).unwrap_or(0);
        hints[mine.unwrap_or(last)] = hint;
    }
}

impl Shared {
    /// The item that holds an offset, and its segment: both under one look at the index, so that the segment
    /// cannot be dropped in between.
    fn locate(&self, p: &Partition, at: Offset) -> Result<Option<(Item, Arc<Segment>)>, LogError> {
        let index = p.index.read();
        let Some(item) = index.find(at).filter(|_| at < index.next) else {
            return Ok(None);
        };
        let segment = self.segments.read().get(&item.segment).cloned();
        match segment {
            Some(segment) => Ok(Some((item, segment))),
            None => Err(LogError::Corrupt {
                path: self.dir.clone(),
                at: 0,
                detail: format!("segment {} is missing", item.segment),
            }),
        }
    }

    /// See [`crate::log::Log::read`].
    pub(super) fn read(
        &self,
        p: &Partition,
        from: Offset,
        max_bytes: usize,
        out: &mut Vec<Record>,
    ) -> Result<Offset, LogError> {
        let Bounds { first, next } = p.bounds();
        if p.gone.load(Ordering::Acquire) {
            return Err(LogError::NoTopic(p.topic.clone()));
        }
        if from < first || from > next {
            return Err(LogError::OutOfRange {
                wanted: from,
                first,
                next,
            });
        }
        let (mut at, mut got) = (from, 0usize);
        while let Some((item, segment)) = self.locate(p, at)? {
            if item.base > at {
                // Trimmed since the bounds were read: what came before it is what the caller gets.
                if got > 0 || at == from && p.bounds().first <= from {
                    break;
                }
                at = item.base;
            }
            let mut hint = Hint {
                segment: item.segment,
                base: item.base,
                ..Hint::default()
            };
            let start = self.hinted(p, at, &item);
            let before = at;
            sections(
                self.journal,
                &segment,
                p.number,
                &item,
                start,
                &mut |frame, head, bytes| {
                    hint.at = frame;
                    let mut whole = 0;
                    for raw in records(&head, bytes) {
                        whole += 1;
                        if raw.offset < at || raw.offset >= item.end {
                            continue;
                        }
                        if raw.offset > at {
                            // Never pass over a record (I1): the index is wrong, or a frame is not what it was.
                            return Err(damaged(&segment, frame, "records before this frame are missing"));
                        }
                        out.push(raw.copy());
                        got += raw.size();
                        at = raw.offset + 1;
                        if got >= max_bytes {
                            return Ok(ControlFlow::Break(()));
                        }
                    }
                    if whole != head.count {
                        return Err(damaged(
                            &segment,
                            frame,
                            "a record's lengths do not fit its section",
                        ));
                    }
                    Ok(ControlFlow::Continue(()))
                },
            )?;
            if at == before {
                return Err(damaged(
                    &segment,
                    u64::from(item.at),
                    "records of the index are not there",
                ));
            }
            hint.offset = at;
            p.leave_hint(before, hint);
            if got >= max_bytes {
                break;
            }
        }
        Ok(at)
    }

    fn hinted(&self, p: &Partition, at: Offset, item: &Item) -> u64 {
        p.hint(at, item).unwrap_or(u64::from(item.at))
    }

    /// See [`crate::log::Log::offset_at`].
    pub(super) fn offset_at(&self, p: &Partition, time: Time) -> Result<Offset, LogError> {
        let (item, next) = {
            let index = p.index.read();
            (index.find_time(time), index.next)
        };
        let Some(mut at) = item.map(|i| i.base) else {
            return Ok(next);
        };
        let mut found = Vec::new();
        while at < next {
            found.clear();
            at = self.read(p, at, WINDOW, &mut found)?;
            if let Some(record) = found.iter().find(|r| r.timestamp >= time) {
                return Ok(record.offset);
            }
            if found.is_empty() {
                break;
            }
        }
        Ok(next)
    }
}
