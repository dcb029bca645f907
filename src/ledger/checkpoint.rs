//! A lane's fold at one offset, in a file of its own: after a restart only the entries behind it are read.
//!
//! It holds the whole [`LaneState`] but for the finished IDs, which are the dedup store's. It is written after the
//! store's blocks are durable, to a temporary file that is synced and renamed, and the folder is synced: there is
//! always the old one or the new one. One that is damaged, or of another format, is told as such and thrown away:
//! the lane is folded from its start. Whether it fits the lane is for [`super::restore`] to say.
//!
//! ```text
//! file      magic "sluicckp" | format u32 (4) | crc32c u32 of all that follows |
//!           ledger u128 | lane u32 | next u64 | crc32c u32 of the entry before next (0: there is none) |
//!           count u64 of partitions, messages and rounds together | body, to the end
//! body      flag, genesis | flag, owner | tenure | first | lives | routes | partitions | skip rules |
//!           paused | stopped | used | commands | settings | horizons, wall clock ahead (from format 3)
//! sample    ledger offset, tenure (both from format 4) | time | end of the input
//! message   id 16 bytes | state u8, its fields | key u64 | offset, round, attempts, first try, since, status |
//!           payload: 0, or ledger offset + 1 and size | opened | flags: 1 carried, 2 payload given up
//! ```
//! Numbers of the head are little endian and fixed, those of the body are varints (hashes: 8 bytes); lists begin
//! with their count; text and bytes with their length. Another layout needs another format number: a checkpoint of
//! an older version may be refused, since it can be built anew.

use crate::core::ledger::codec::{self, CodecError};
use crate::core::ledger::entry::{BudgetDraw, Genesis, Owner, RouteInfo};
use crate::core::ledger::fold::*;
use crate::core::ledger::wire::*;
use crate::core::ranges::RangeSet;
use crate::core::types::*;
use bytes::Bytes;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Name of the file, in the folder of its lane.
pub const FILE: &str = "checkpoint";
const TEMPORARY: &str = "checkpoint.tmp";
const MAGIC: &[u8; 8] = b"sluicckp";
const FORMAT: u32 = 4;
/// From this format on samples have their ledger offset and tenure.
const SAMPLES_PLACED: u32 = 4;
/// The oldest format that is read: it has no horizons.
const OLDEST: u32 = 2;
/// Bytes before those that the checksum covers.
const UNCOVERED: usize = 16;
const HEAD: usize = UNCOVERED + 16 + 4 + 8 + 4 + 8;

/// A checkpoint as it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Identity of the ledger.
    pub ledger: u128,
    /// Which lane.
    pub lane: u32,
    /// Checksum of the entry before `state.next` ([`entry_crc`]); 0 if there is none.
    pub last_entry_crc: u32,
    /// The fold.
    pub state: LaneState,
}

/// Why there is no checkpoint to be had.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The system said no.
    #[error("cannot {what} the checkpoint `{}`", path.display())]
    Io {
        /// Read or write.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not what was written: build the fold anew.
    #[error("the checkpoint `{}` is damaged: {detail}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        detail: String,
    },
    /// The file is of another version: build the fold anew.
    #[error("the checkpoint `{}` has format {found}, this version reads {FORMAT}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: u32,
    },
}

/// Checksum by which a checkpoint names the entry before it: crc32c of its bytes.
pub fn entry_crc(entry: &[u8]) -> u32 {
    crc32c::crc32c(entry)
}

/// Writes the checkpoint of a lane into its folder, durably. It goes out in parts: a fold of millions of messages takes
/// no second copy in memory.
///
/// # Errors
/// [`CheckpointError::Io`]; the checkpoint before it is then still there.
pub fn write(
    dir: &Path,
    state: &LaneState,
    ledger: u128,
    last_entry_crc: u32,
) -> Result<(), CheckpointError> {
    let (temporary, path) = (dir.join(TEMPORARY), dir.join(FILE));
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| CheckpointError::Io {
            what: "write",
            path,
            source,
        }
    };
    crate::files::folder(dir).map_err(failed(dir))?;
    let written = (|| {
        let mut file = crate::files::create(&temporary)?;
        let mut out = Out::to(&mut file);
        put_all(&mut out, state, ledger, last_entry_crc);
        let crc = out.end()?;
        // The checksum stands before what it covers.
        file.seek(SeekFrom::Start(UNCOVERED as u64 - 4))?;
        file.write_all(&crc.to_le_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    })();
    if written.is_err() {
        // On a full disk a half-written one takes room that others need; the error at hand is the one to tell.
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(failed(&path))?;
    File::open(dir).and_then(|d| d.sync_all()).map_err(failed(dir))
}

/// The bytes of a checkpoint, where they are wanted in memory: some 50 a message.
#[cfg(test)]
pub fn encode(state: &LaneState, ledger: u128, last_entry_crc: u32) -> Vec<u8> {
    let mut bytes = io::Cursor::new(Vec::new());
    let mut out = Out::to(&mut bytes);
    put_all(&mut out, state, ledger, last_entry_crc);
    let crc = out.end().expect("memory takes everything");
    let mut bytes = bytes.into_inner();
    bytes[UNCOVERED - 4..UNCOVERED].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Bytes gathered before they are written.
const PART: usize = 1 << 16;

/// What is written, in parts, with the checksum of everything behind the first [`UNCOVERED`] bytes.
struct Out<'w> {
    part: Vec<u8>,
    to: &'w mut dyn Write,
    crc: u32,
    written: usize,
    failed: Option<io::Error>,
}

impl<'w> Out<'w> {
    fn to(to: &'w mut dyn Write) -> Self {
        Self {
            part: Vec::with_capacity(PART + 4_096),
            to,
            crc: 0,
            written: 0,
            failed: None,
        }
    }

    /// Writes what was gathered, if that is enough for a part.
    fn turn(&mut self) {
        if self.part.len() >= PART {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let uncovered = UNCOVERED.saturating_sub(self.written).min(self.part.len());
        self.crc = crc32c::crc32c_append(self.crc, &self.part[uncovered..]);
        if self.failed.is_none() {
            self.failed = self.to.write_all(&self.part).err();
        }
        self.written += self.part.len();
        self.part.clear();
    }

    /// The checksum, or why not all was written.
    fn end(mut self) -> io::Result<u32> {
        self.flush();
        match self.failed {
            Some(error) => Err(error),
            None => Ok(self.crc),
        }
    }
}

impl Deref for Out<'_> {
    type Target = Vec<u8>;
    fn deref(&self) -> &Vec<u8> {
        &self.part
    }
}

impl DerefMut for Out<'_> {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.part
    }
}

fn put_all(out: &mut Out<'_>, state: &LaneState, ledger: u128, last_entry_crc: u32) {
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&FORMAT.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    put_u128(out, ledger);
    let lane = state.genesis.as_ref().map_or(0, |g| g.lane);
    out.extend_from_slice(&lane.to_le_bytes());
    put_u64(out, state.next);
    out.extend_from_slice(&last_entry_crc.to_le_bytes());
    put_u64(out, count(state));
    put_state(out, state);
}

/// Reads the folder's checkpoint; none if there is none.
///
/// # Errors
/// [`CheckpointError`]: all but `Io` mean that it must be built anew.
pub fn read(dir: &Path) -> Result<Option<Checkpoint>, CheckpointError> {
    let path = dir.join(FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => Bytes::from(bytes),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(CheckpointError::Io {
                what: "read",
                path,
                source,
            });
        }
    };
    decode(&bytes, path).map(Some)
}

/// The other end of [`encode`]; the path is for what is told.
pub(crate) fn decode(bytes: &Bytes, path: PathBuf) -> Result<Checkpoint, CheckpointError> {
    let damaged = |detail: String, path| Err(CheckpointError::Damaged { path, detail });
    if bytes.len() < HEAD || !bytes.starts_with(MAGIC) {
        return damaged("it does not begin as one".into(), path);
    }
    let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    if !(OLDEST..=FORMAT).contains(&number(8)) {
        return Err(CheckpointError::Format {
            path,
            found: number(8),
        });
    }
    if number(12) != crc32c::crc32c(&bytes[UNCOVERED..]) {
        return damaged("the checksum does not fit".into(), path);
    }
    match parse(bytes, number(8)) {
        Ok(checkpoint) => Ok(checkpoint),
        Err(e) => damaged(e.to_string(), path),
    }
}

fn parse(bytes: &Bytes, format: u32) -> Result<Checkpoint, CodecError> {
    let mut r = Reader::new(&bytes[UNCOVERED..]);
    let ledger = r.u128()?;
    let lane = u32::from_le_bytes(r.array()?);
    let next = r.u64()?;
    let last_entry_crc = u32::from_le_bytes(r.array()?);
    let said = r.u64()?;
    let mut state = get_state(bytes, &mut r, format)?;
    state.next = next;
    r.end()?;
    if count(&state) != said {
        return Err(CodecError::Malformed("the count of things"));
    }
    Ok(Checkpoint {
        ledger,
        lane,
        last_entry_crc,
        state,
    })
}

fn count(state: &LaneState) -> u64 {
    let inside = state
        .partitions
        .values()
        .map(|p| p.messages.len() + p.rounds.len());
    (state.partitions.len() + inside.sum::<usize>()) as u64
}

fn put_state(out: &mut Out<'_>, s: &LaneState) {
    match &s.genesis {
        Some(g) => {
            out.push(1);
            put_u128(out, g.ledger);
            put_bytes(out, g.group.as_bytes());
            for n in [g.lanes, g.lane, g.recipe] {
                put_varint(out, n.into());
            }
        }
        None => out.push(0),
    }
    match &s.owner {
        Some(o) => {
            out.push(1);
            put_bytes(out, o.node.as_bytes());
            put_u64(out, o.life.0);
            put_varint(out, o.lease_ms.into());
            put_varint(out, o.timeout_ms.into());
            put_varint(out, o.at.0);
        }
        None => out.push(0),
    }
    put_varint(out, s.tenure.0);
    put_varint(out, s.first);
    put_list(out, &s.released, |out, life| put_u64(out, life.0));
    put_list(out, s.routes.values(), |out, r| {
        put_u64(out, r.route.0);
        put_u128(out, r.topic_id.0);
        put_bytes(out, r.topic.as_bytes());
        put_bytes(out, r.partner.as_bytes());
    });
    put_list(out, &s.partitions, |out, (at, p)| {
        put_u64(out, at.route.0);
        put_varint(out, at.partition.into());
        put_partition(out, p);
    });
    put_list(out, s.skips.values(), |out, rule| {
        codec::write_skip_rule(out, rule)
    });
    put_list(out, &s.paused, |out, (partner, pause)| {
        put_bytes(out, partner.as_bytes());
        put_pause(out, pause);
    });
    put_list(out, &s.stopped, |out, (route, pause)| {
        put_u64(out, route.0);
        put_pause(out, pause);
    });
    put_list(out, s.used.iter(), |out, (draw, used)| {
        put_u64(out, draw.budget);
        put_u64(out, draw.by);
        put_list(out, &used.recent, |out, (slot, n)| {
            put_varint(out, slot.0);
            put_varint(out, (*n).into());
        });
        put_list(out, &used.quarters, |out, (quarter, n)| {
            put_varint(out, quarter.0);
            put_varint(out, *n);
        });
    });
    put_varint(out, s.commands);
    put_varint(out, s.settings);
    put_list(out, s.used.horizons(), |out, (budget, horizon)| {
        put_u64(out, *budget);
        put_varint(out, horizon.as_secs());
    });
    put_u64(out, s.used.wall_ahead().cast_unsigned());
}

fn put_list<T>(
    out: &mut Out<'_>,
    list: impl IntoIterator<Item = T, IntoIter: ExactSizeIterator>,
    put: impl Fn(&mut Out<'_>, T),
) {
    let list = list.into_iter();
    put_varint(out, list.len() as u64);
    list.for_each(|item| {
        put(out, item);
        out.turn();
    });
}

fn put_pause(out: &mut Vec<u8>, p: &Pause) {
    put_bytes(out, p.reason.as_bytes());
    put_varint(out, p.since.0);
    put_bytes(out, p.who.as_bytes());
}

fn put_partition(out: &mut Out<'_>, p: &PartitionState) {
    put_varint(out, p.position);
    put_varint(out, p.high_water);
    put_varint(out, p.leader_epoch.into());
    put_varint(out, p.finished.len() as u64);
    let mut before = p.position;
    for (start, end) in p.finished.iter() {
        put_delta(out, before, start);
        put_delta(out, start, end);
        before = end;
        out.turn();
    }
    put_varint(out, p.messages.len() as u64);
    for (id, m) in p.messages.iter() {
        out.extend_from_slice(&id.0);
        put_message(out, &m);
        out.turn();
    }
    put_list(out, &p.rounds, |out, (id, (round, ended))| {
        out.extend_from_slice(&id.0);
        put_varint(out, (*round).into());
        put_varint(out, *ended);
    });
    put_list(out, &p.samples, |out, s| {
        put_varint(out, s.ledger);
        put_varint(out, s.tenure.0);
        put_varint(out, s.when.0);
        put_varint(out, s.end);
    });
    let c = &p.counts;
    for n in [c.delivered, c.dead, c.parked, c.skipped, c.marked] {
        put_varint(out, n);
    }
}

const OPEN: u8 = 1;
const LATER: u8 = 2;
const PARKED: u8 = 3;
const DEAD: u8 = 4;
const SKIPPED: u8 = 5;

fn put_message(out: &mut Vec<u8>, m: &Message) {
    match &m.state {
        MessageState::Open {
            slot,
            life,
            lease_ms,
            timeout_ms,
        } => {
            out.push(OPEN);
            put_varint(out, slot.0);
            put_u64(out, life.0);
            put_varint(out, (*lease_ms).into());
            put_varint(out, (*timeout_ms).into());
        }
        MessageState::Later { not_before } => {
            out.push(LATER);
            put_varint(out, not_before.0);
        }
        MessageState::Parked => out.push(PARKED),
        MessageState::Dead => out.push(DEAD),
        MessageState::Skipped => out.push(SKIPPED),
    }
    put_u64(out, m.key.0);
    put_varint(out, m.offset);
    put_varint(out, m.round.into());
    put_varint(out, m.attempts.into());
    put_varint(out, m.first_try.0);
    put_varint(out, m.since.0);
    put_varint(out, m.status.into());
    match m.payload {
        Some((ledger, size)) => {
            put_varint(out, ledger.saturating_add(1));
            put_varint(out, size.into());
        }
        None => out.push(0),
    }
    put_varint(out, m.opened);
    out.push(u8::from(m.carried) | u8::from(m.dropped) << 1);
}

fn flag(r: &mut Reader<'_>) -> Result<bool, CodecError> {
    Ok(r.u8()? != 0)
}

fn get_list<T>(
    r: &mut Reader<'_>,
    least: usize,
    mut get: impl FnMut(&mut Reader<'_>) -> Result<T, CodecError>,
    mut take: impl FnMut(T),
) -> Result<(), CodecError> {
    for _ in 0..r.count(least)? {
        take(get(r)?);
    }
    Ok(())
}

fn get_state(src: &Bytes, r: &mut Reader<'_>, format: u32) -> Result<LaneState, CodecError> {
    let mut s = LaneState::default();
    if flag(r)? {
        s.genesis = Some(Genesis {
            ledger: r.u128()?,
            group: r.text()?,
            lanes: r.varint32()?,
            lane: r.varint32()?,
            recipe: r.varint32()?,
        });
    }
    if flag(r)? {
        s.owner = Some(Owner {
            node: r.text()?,
            life: LifeId(r.u64()?),
            lease_ms: r.varint32()?,
            timeout_ms: r.varint32()?,
            at: Time(r.varint()?),
        });
    }
    s.tenure = Tenure(r.varint()?);
    s.first = r.varint()?;
    get_list(r, 8, |r| Ok(LifeId(r.u64()?)), |life| s.released.push(life))?;
    let route = |r: &mut Reader<'_>| {
        Ok(RouteInfo {
            route: RouteId(r.u64()?),
            topic_id: TopicId(r.u128()?),
            topic: r.text()?,
            partner: r.text()?,
        })
    };
    get_list(r, 26, route, |route| {
        s.routes.insert(route.route, route);
    })?;
    let partition = |r: &mut Reader<'_>| {
        let at = RoutePartition {
            route: RouteId(r.u64()?),
            partition: r.varint32()?,
        };
        Ok((at, get_partition(r, format)?))
    };
    get_list(r, 20, partition, |(at, p)| {
        s.partitions.insert(at, p);
    })?;
    get_list(
        r,
        13,
        |r| codec::read_skip_rule(src, r),
        |rule| {
            // A copy of what it matches: the bytes read would otherwise stay in memory as a whole.
            s.skips.insert(rule.rule, cut_rule(&rule));
        },
    )?;
    let paused = |r: &mut Reader<'_>| Ok((r.text()?, get_pause(r)?));
    get_list(r, 4, paused, |(partner, pause)| {
        s.paused.insert(partner, pause);
    })?;
    let stopped = |r: &mut Reader<'_>| Ok((RouteId(r.u64()?), get_pause(r)?));
    get_list(r, 11, stopped, |(route, pause)| {
        s.stopped.insert(route, pause);
    })?;
    get_list(r, 18, get_used, |(draw, used)| {
        s.used.insert(draw, used);
    })?;
    s.commands = r.varint()?;
    s.settings = r.varint()?;
    if format > 2 {
        let horizon = |r: &mut Reader<'_>| Ok((r.u64()?, Duration::from_secs(r.varint()?)));
        get_list(r, 9, horizon, |(budget, horizon)| {
            s.used.set_horizon(budget, horizon)
        })?;
        s.used.set_wall_ahead(r.u64()?.cast_signed());
    }
    Ok(s)
}

fn get_used(r: &mut Reader<'_>) -> Result<(BudgetDraw, UsedSlots), CodecError> {
    let draw = BudgetDraw {
        budget: r.u64()?,
        by: r.u64()?,
    };
    let mut used = UsedSlots::default();
    let recent = |r: &mut Reader<'_>| Ok((Time(r.varint()?), r.varint32()?));
    get_list(r, 2, recent, |item| used.recent.push_back(item))?;
    let quarter = |r: &mut Reader<'_>| Ok((Time(r.varint()?), r.varint()?));
    get_list(r, 2, quarter, |(q, n)| {
        used.quarters.insert(q, n);
    })?;
    Ok((draw, used))
}

fn get_pause(r: &mut Reader<'_>) -> Result<Pause, CodecError> {
    Ok(Pause {
        reason: r.text()?,
        since: Time(r.varint()?),
        who: r.text()?,
    })
}

fn get_partition(r: &mut Reader<'_>, format: u32) -> Result<PartitionState, CodecError> {
    let mut p = PartitionState {
        position: r.varint()?,
        high_water: r.varint()?,
        leader_epoch: r.varint32()?,
        ..PartitionState::default()
    };
    let count = r.count(2)?;
    let mut ranges = Vec::with_capacity(count);
    let mut before = p.position;
    for _ in 0..count {
        let start = r.delta(before)?;
        before = r.delta(start)?;
        ranges.push((start, before));
    }
    p.finished = RangeSet::from_rising(ranges).ok_or(CodecError::Malformed("the finished ranges"))?;
    let count = r.count(16)?;
    for _ in 0..count {
        p.messages.insert(MessageId(r.array()?), get_message(r)?);
    }
    let rounds = |r: &mut Reader<'_>| Ok((MessageId(r.array()?), (r.varint32()?, r.varint()?)));
    get_list(r, 18, rounds, |(id, round)| {
        p.rounds.insert(id, round);
    })?;
    let sample = |r: &mut Reader<'_>| {
        let (mut ledger, mut tenure) = (0, Tenure(0));
        if format >= SAMPLES_PLACED {
            (ledger, tenure) = (r.varint()?, Tenure(r.varint()?));
        }
        Ok(Sampled {
            ledger,
            tenure,
            when: Time(r.varint()?),
            end: r.varint()?,
        })
    };
    get_list(r, 2, sample, |s| p.samples.push(s))?;
    let c = &mut p.counts;
    for n in [
        &mut c.delivered,
        &mut c.dead,
        &mut c.parked,
        &mut c.skipped,
        &mut c.marked,
    ] {
        *n = r.varint()?;
    }
    Ok(p)
}

fn get_message(r: &mut Reader<'_>) -> Result<Message, CodecError> {
    let state = match r.u8()? {
        OPEN => MessageState::Open {
            slot: Time(r.varint()?),
            life: LifeId(r.u64()?),
            lease_ms: r.varint32()?,
            timeout_ms: r.varint32()?,
        },
        LATER => MessageState::Later {
            not_before: Time(r.varint()?),
        },
        PARKED => MessageState::Parked,
        DEAD => MessageState::Dead,
        SKIPPED => MessageState::Skipped,
        _ => return Err(CodecError::Malformed("the state of a message")),
    };
    let mut message = Message {
        state,
        key: KeyHash(r.u64()?),
        offset: r.varint()?,
        round: r.varint32()?,
        attempts: r.varint32()?,
        first_try: Time(r.varint()?),
        since: Time(r.varint()?),
        status: u16::try_from(r.varint()?).map_err(|_| CodecError::Malformed("a status"))?,
        payload: match r.varint()?.checked_sub(1) {
            Some(ledger) => Some((ledger, r.varint32()?)),
            None => None,
        },
        opened: r.varint()?,
        carried: false,
        dropped: false,
    };
    let flags = r.u8()?;
    message.carried = flags & 1 != 0;
    message.dropped = flags & 2 != 0;
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn state(messages: u64, ranges: u64) -> LaneState {
        let mut state = LaneState {
            genesis: Some(Genesis {
                ledger: 7,
                group: "embedded".into(),
                lanes: 1,
                lane: 0,
                recipe: 1,
            }),
            next: 5_000_000,
            ..LaneState::default()
        };
        let p = state.partitions.entry(RoutePartition::default()).or_default();
        for i in 0..messages {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
            let message = Message {
                state: MessageState::Dead,
                key: KeyHash(i),
                offset: i,
                round: 1,
                attempts: 3,
                first_try: Time(1_790_000_000_000_000 + i),
                since: Time(1_790_000_001_000_000 + i),
                status: 422,
                payload: Some((i, 200)),
                opened: 0,
                carried: false,
                dropped: false,
            };
            p.messages.insert(MessageId(id), message);
        }
        for i in 0..ranges {
            p.finished.insert(2 * i + 1);
        }
        state
    }

    #[test]
    fn what_was_written_is_read_and_the_folder_left_tidy() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
        for n in [10, 20] {
            let state = state(n, n);
            write(dir.path(), &state, 7, 99).unwrap();
            let back = read(dir.path()).unwrap().unwrap();
            assert_eq!((back.ledger, back.lane, back.last_entry_crc), (7, 0, 99));
            assert_eq!(back.state, state);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn any_changed_or_missing_byte_is_told_as_damage() {
        let whole = encode(&state(3, 3), 7, 99);
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0x40;
            let told = decode(&changed.into(), PathBuf::new());
            match at {
                8..12 => assert!(matches!(told, Err(CheckpointError::Format { .. })), "{at}"),
                _ => assert!(matches!(told, Err(CheckpointError::Damaged { .. })), "{at}"),
            }
            let cut = decode(&Bytes::copy_from_slice(&whole[..at]), PathBuf::new());
            assert!(matches!(cut, Err(CheckpointError::Damaged { .. })), "{at}");
        }
    }

    #[test]
    fn bytes_with_a_fitting_checksum_never_panic() {
        let whole = encode(&state(3, 3), 7, 99);
        for at in UNCOVERED..whole.len() {
            for to in [0, 1, 0x7f, 0x80, 0xff] {
                let mut changed = whole.clone();
                changed[at] = to;
                let crc = crc32c::crc32c(&changed[UNCOVERED..]);
                changed[12..16].copy_from_slice(&crc.to_le_bytes());
                let _ = decode(&changed.into(), PathBuf::new());
            }
        }
    }

    /// Format 3 had samples without their place in the ledger; they come before all that have one.
    #[test]
    fn a_checkpoint_of_format_3_is_read() {
        let mut written = state(3, 3);
        let sample = Sampled {
            ledger: 0,
            tenure: Tenure(0),
            when: Time(1_790_000_000_000_000),
            end: 77,
        };
        let mut partitions = written.partitions.values_mut();
        partitions.next().unwrap().samples.push(sample);
        let mut bytes = encode(&written, 7, 99);
        let mut told = vec![0, 0];
        put_varint(&mut told, sample.when.0);
        put_varint(&mut told, sample.end);
        let at = bytes.windows(told.len()).position(|part| part == told).unwrap();
        bytes.drain(at..at + 2);
        bytes[8..12].copy_from_slice(&3u32.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[UNCOVERED..]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(decode(&bytes.into(), PathBuf::new()).unwrap().state, written);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_an_error_with_its_cause() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let told = write(&file.join("lane"), &state(1, 1), 7, 0).unwrap_err();
        assert!(
            matches!(told, CheckpointError::Io { what: "write", .. }),
            "{told}"
        );
        assert!(std::error::Error::source(&told).is_some());
    }

    /// Printed by `cargo test --profile quick checkpoint::tests::speed -- --ignored --nocapture`.
    #[test]
    #[ignore = "a measurement"]
    fn speed() {
        for (messages, ranges) in [(0, 1_000_000), (1_000_000, 0)] {
            let dir = tempfile::tempdir().unwrap();
            let state = state(messages, ranges);
            let began = Instant::now();
            let bytes = encode(&state, 7, 0);
            let encoded = began.elapsed();
            write(dir.path(), &state, 7, 0).unwrap();
            let written = began.elapsed();
            let began = Instant::now();
            let back = read(dir.path()).unwrap().unwrap();
            let took = began.elapsed();
            assert_eq!(back.state, state);
            println!(
                "{messages} messages, {ranges} ranges: {} bytes, encoded in {encoded:?}, written {written:?}, read {took:?}",
                bytes.len()
            );
        }
    }
}
