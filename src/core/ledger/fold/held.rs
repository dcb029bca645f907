//! The messages of a partition that are not simply finished, by ID.
//!
//! What is on the wire or waits for its next attempt comes and goes with every delivery: a plain hash map. What lies in
//! the ledger for long, parked, dead, skipped or waiting there with its payload, may be millions: compact rows of some
//! 50 bytes in blocks sorted by ID. Everything else about such a message (reason, readable ID, payload) is read from its
//! ledger entry when somebody asks.
//!
//! ```text
//! row    id 16 bytes | length u8 of what follows | flags u8 | key u64, unless it is the tail of the ID | offset varint |
//!        round, attempts varint | since varint | since → first try signed | status varint |
//!        payload: ledger offset, size varint | opened varint, if flagged | since → not before signed, if it waits
//! flags  bits 0-2: 1 waits, 2 parked, 3 dead, 4 skipped | 8 carried | 16 payload given up | 32 has opened | 64 own key
//! block  rows, rising by ID; split in two at 128
//! ```
//! The rows live in memory only; the checkpoint has a form of its own.
//!
//! Totals (how many of each state, bytes of payloads, bytes of memory) are kept as messages come and go: nobody walks
//! over millions to count them (I6, I8).

use super::super::wire::{Reader, put_delta, put_varint};
use super::{ById, Message, MessageState};
use crate::core::types::{KeyHash, MessageId, Time};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Rows of a block at most.
const BLOCK: usize = 128;
/// Bytes by which a block grows: some rows.
const GROW: usize = 256;
/// Bytes of bookkeeping for a block: its place in the tree, and what it consists of beside the rows.
const BLOCK_BYTES: usize = 112;

/// How many messages are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Attempts that are, or may be, on the wire.
    pub open: u64,
    /// Messages that wait for their next attempt.
    pub later: u64,
    /// Messages in doubt.
    pub parked: u64,
    /// Dead letters.
    pub dead: u64,
    /// Messages passed over by a rule.
    pub skipped: u64,
    /// Open and waiting ones whose payload is in the ledger.
    pub from_ledger: u64,
    /// Messages whose payload is in the ledger, given up or not.
    pub kept: u64,
    /// Bytes of those payloads that are there still.
    pub payload_bytes: u64,
}

impl Totals {
    /// Adds others.
    pub fn add(&mut self, other: &Totals) {
        self.open += other.open;
        self.later += other.later;
        self.parked += other.parked;
        self.dead += other.dead;
        self.skipped += other.skipped;
        self.from_ledger += other.from_ledger;
        self.kept += other.kept;
        self.payload_bytes += other.payload_bytes;
    }

    fn count(&mut self, m: &Message, by: impl Fn(&mut u64, u64)) {
        let n = match m.state {
            MessageState::Open { .. } => &mut self.open,
            MessageState::Later { .. } => &mut self.later,
            MessageState::Parked => &mut self.parked,
            MessageState::Dead => &mut self.dead,
            MessageState::Skipped => &mut self.skipped,
        };
        by(n, 1);
        if let Some((_, bytes)) = m.payload {
            by(&mut self.kept, 1);
            if !m.dropped {
                by(&mut self.payload_bytes, bytes.into());
            }
            if !m.closed() {
                by(&mut self.from_ledger, 1);
            }
        }
    }
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Messages {
    live: ById<Message>,
    /// By the first ID that a block may hold.
    rows: BTreeMap<MessageId, Arc<Block>>,
    /// Rows in all blocks.
    len: usize,
    /// Bytes allocated for blocks.
    bytes: usize,
    totals: Totals,
}

#[derive(Clone, Debug, Default)]
struct Block {
    bytes: Vec<u8>,
    rows: usize,
    /// None of its closed messages came into its state before this time.
    oldest: Time,
}

/// Whether a message goes into a row.
fn is_cold(m: &Message) -> bool {
    m.payload.is_some() && !matches!(m.state, MessageState::Open { .. })
}

impl Messages {
    /// The message of this ID.
    #[inline]
    pub fn get(&self, id: &MessageId) -> Option<Message> {
        if let Some(message) = self.live.get(id) {
            return Some(*message);
        }
        if self.len == 0 {
            return None;
        }
        let (_, block) = self.rows.range(..=*id).next_back()?;
        let (at, found) = block.find(id);
        found.then(|| decode(id, body(&block.bytes, at)))
    }

    /// Whether there is a message of this ID.
    #[inline]
    pub fn contains_key(&self, id: &MessageId) -> bool {
        if self.live.contains_key(id) {
            return true;
        }
        let block = || self.rows.range(..=*id).next_back();
        self.len > 0 && block().is_some_and(|(_, block)| block.find(id).1)
    }

    /// Puts a message in the place of whatever was there.
    pub fn insert(&mut self, id: MessageId, message: Message) {
        if is_cold(&message) {
            self.remove(&id);
            self.put(id, &message);
        } else {
            let before = match self.live.insert(id, message) {
                None if self.len > 0 => self.take(&id),
                before => before,
            };
            if let Some(before) = before {
                self.totals.count(&before, |n, by| *n -= by);
            }
        }
        self.totals.count(&message, |n, by| *n += by);
    }

    /// Takes a message away.
    pub fn remove(&mut self, id: &MessageId) -> Option<Message> {
        let message = match self.live.remove(id) {
            Some(message) => message,
            None if self.len == 0 => return None,
            None => self.take(id)?,
        };
        self.totals.count(&message, |n, by| *n -= by);
        // A table that grew for a flood gives its memory back.
        if self.live.capacity() > 4_096 && self.live.len() < self.live.capacity() / 8 {
            self.live.shrink_to(2 * self.live.len());
        }
        Some(message)
    }

    /// Changes a message; false if there is none.
    pub fn change<R>(&mut self, id: &MessageId, change: impl FnOnce(&mut Message) -> R) -> Option<R> {
        let mut message = self.get(id)?;
        let result = change(&mut message);
        self.insert(*id, message);
        Some(result)
    }

    /// Room for so many messages that come soon.
    pub fn reserve(&mut self, live: usize) {
        self.live.reserve(live.min(1 << 16));
    }

    /// Number of messages.
    pub fn len(&self) -> usize {
        self.live.len() + self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many are in which state.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Bytes of memory.
    pub fn memory(&self) -> usize {
        let live = self.live.capacity() * 8 / 7 * (size_of::<(MessageId, Message)>() + 1);
        live + self.bytes + self.rows.len() * BLOCK_BYTES
    }

    /// All messages: first those that come and go, in no order, then the rows, rising by ID.
    pub fn iter(&self) -> impl Iterator<Item = (MessageId, Message)> + '_ {
        let live = self.live.iter().map(|(id, message)| (*id, *message));
        live.chain(self.rows.values().flat_map(|block| block.iter()))
    }

    /// All messages without their IDs.
    pub fn values(&self) -> impl Iterator<Item = Message> + '_ {
        self.iter().map(|(_, message)| message)
    }

    /// Those on the wire, and others that come and go with deliveries.
    pub fn live(&self) -> impl Iterator<Item = (MessageId, Message)> + '_ {
        self.live.iter().map(|(id, message)| (*id, *message))
    }

    /// All that are not closed. Passes over the rows of closed ones without reading them.
    pub fn unsettled(&self) -> impl Iterator<Item = (MessageId, Message)> + '_ {
        let waiting = self
            .rows
            .values()
            .flat_map(|block| block.of(|flags| flags & STATE == LATER));
        self.live().filter(|(_, m)| !m.closed()).chain(waiting)
    }

    /// All that are parked.
    pub fn parked(&self) -> impl Iterator<Item = (MessageId, Message)> + '_ {
        let parked = self
            .rows
            .values()
            .flat_map(|block| block.of(|flags| flags & STATE == PARKED));
        self.live()
            .filter(|(_, m)| m.state == MessageState::Parked)
            .chain(parked)
    }

    /// Whether a message that is parked, dead or skipped may have come into that state at or before this time: never a
    /// wrong no. Looks at each block once.
    pub fn may_be_older(&self, than: Time) -> bool {
        self.rows.values().any(|block| block.oldest <= than)
    }

    fn put(&mut self, id: MessageId, message: &Message) {
        let first = match self.rows.range(..=id).next_back() {
            Some((first, _)) => *first,
            None => {
                // The first block begins at the least ID there can be.
                let block = Block {
                    oldest: Time::NEVER,
                    ..Block::default()
                };
                self.rows.insert(MessageId([0; 16]), Arc::new(block));
                MessageId([0; 16])
            }
        };
        let Some(block) = self.rows.get_mut(&first).map(Arc::make_mut) else {
            return;
        };
        let before = block.bytes.capacity();
        block.put(id, message);
        self.bytes = self.bytes + block.bytes.capacity() - before;
        self.len += 1;
        if block.rows >= BLOCK {
            let before = block.bytes.capacity();
            let (at, upper) = block.split();
            self.bytes = self.bytes + block.bytes.capacity() + upper.bytes.capacity() - before;
            self.rows.insert(at, Arc::new(upper));
        }
    }

    fn take(&mut self, id: &MessageId) -> Option<Message> {
        let (first, block) = self.rows.range_mut(..=*id).next_back()?;
        let (at, found) = block.find(id);
        if !found {
            return None;
        }
        let first = *first;
        let block = Arc::make_mut(block);
        let message = decode(id, body(&block.bytes, at));
        let before = block.bytes.capacity();
        let end = next(&block.bytes, at);
        block.bytes.drain(at..end);
        block.rows -= 1;
        self.len -= 1;
        if block.rows == 0 && first != MessageId([0; 16]) {
            self.bytes -= before;
            self.rows.remove(&first);
        } else {
            if block.rows == 0 {
                block.oldest = Time::NEVER;
            }
            if block.bytes.capacity() > 4 * GROW && block.bytes.len() < block.bytes.capacity() / 2 {
                block.bytes.shrink_to(block.bytes.len() + GROW);
            }
            self.bytes = self.bytes + block.bytes.capacity() - before;
        }
        Some(message)
    }
}

impl PartialEq for Messages {
    /// Whatever the blocks look like.
    fn eq(&self, other: &Self) -> bool {
        self.totals == other.totals
            && self.len == other.len
            && self.live == other.live
            && self
                .rows
                .values()
                .flat_map(|block| block.iter())
                .eq(other.rows.values().flat_map(|block| block.iter()))
    }
}

impl FromIterator<(MessageId, Message)> for Messages {
    fn from_iter<I: IntoIterator<Item = (MessageId, Message)>>(all: I) -> Self {
        let mut messages = Messages::default();
        all.into_iter()
            .for_each(|(id, message)| messages.insert(id, message));
        messages
    }
}

const ID: usize = 16;

/// Where the row behind the one at this place begins.
#[inline]
fn next(bytes: &[u8], at: usize) -> usize {
    at + ID + 1 + usize::from(bytes[at + ID])
}

/// What stands behind the ID of the row at this place.
fn body(bytes: &[u8], at: usize) -> &[u8] {
    &bytes[at + ID + 1..next(bytes, at)]
}

impl Block {
    /// Where the row of this ID begins, or would, and whether it is there.
    fn find(&self, id: &MessageId) -> (usize, bool) {
        let mut at = 0;
        while at < self.bytes.len() {
            match self.bytes[at..at + ID].cmp(&id.0) {
                std::cmp::Ordering::Less => at = next(&self.bytes, at),
                order => return (at, order.is_eq()),
            }
        }
        (at, false)
    }

    /// The ID must not be there.
    fn put(&mut self, id: MessageId, message: &Message) {
        let mut row = Vec::with_capacity(96);
        row.extend_from_slice(&id.0);
        row.push(0);
        encode(&mut row, &id, message);
        row[ID] = (row.len() - ID - 1) as u8;
        let (at, _) = self.find(&id);
        let room = self.bytes.capacity() - self.bytes.len();
        if room < row.len() {
            self.bytes.reserve_exact(GROW.max(row.len()));
        }
        self.bytes.splice(at..at, row);
        self.rows += 1;
        if message.closed() {
            self.oldest = self.oldest.min(message.since);
        }
    }

    /// Gives the upper half away.
    fn split(&mut self) -> (MessageId, Block) {
        let mut at = 0;
        for _ in 0..self.rows / 2 {
            at = next(&self.bytes, at);
        }
        let mut id = [0; ID];
        id.copy_from_slice(&self.bytes[at..at + ID]);
        let upper = Block {
            bytes: self.bytes[at..].to_vec(),
            rows: self.rows - self.rows / 2,
            oldest: self.oldest,
        };
        self.bytes.truncate(at);
        self.bytes.shrink_to_fit();
        self.rows /= 2;
        (MessageId(id), upper)
    }

    fn iter(&self) -> impl Iterator<Item = (MessageId, Message)> + '_ {
        self.of(|_| true)
    }

    /// Rows whose flags are as wanted.
    fn of<'b>(&'b self, wanted: impl Fn(u8) -> bool + 'b) -> impl Iterator<Item = (MessageId, Message)> + 'b {
        let mut at = 0;
        std::iter::from_fn(move || {
            while at < self.bytes.len() {
                let row = at;
                at = next(&self.bytes, at);
                if wanted(self.bytes[row + ID + 1]) {
                    let mut id = [0; ID];
                    id.copy_from_slice(&self.bytes[row..row + ID]);
                    let id = MessageId(id);
                    return Some((id, decode(&id, body(&self.bytes, row))));
                }
            }
            None
        })
    }
}

const STATE: u8 = 7;
const LATER: u8 = 1;
const PARKED: u8 = 2;
const DEAD: u8 = 3;
const SKIPPED: u8 = 4;
const CARRIED: u8 = 8;
const DROPPED: u8 = 16;
const OPENED: u8 = 32;
const OWN_KEY: u8 = 64;

fn encode(row: &mut Vec<u8>, id: &MessageId, m: &Message) {
    let (state, not_before) = match m.state {
        MessageState::Later { not_before } => (LATER, Some(not_before)),
        MessageState::Parked => (PARKED, None),
        MessageState::Dead => (DEAD, None),
        // Open ones are never rows.
        MessageState::Skipped | MessageState::Open { .. } => (SKIPPED, None),
    };
    let own_key = m.key.0 != id.tail();
    let flag = |is: bool, bit: u8| if is { bit } else { 0 };
    row.push(
        state
            | flag(m.carried, CARRIED)
            | flag(m.dropped, DROPPED)
            | flag(m.opened != 0, OPENED)
            | flag(own_key, OWN_KEY),
    );
    if own_key {
        row.extend_from_slice(&m.key.0.to_le_bytes());
    }
    put_varint(row, m.offset);
    put_varint(row, m.round.into());
    put_varint(row, m.attempts.into());
    put_varint(row, m.since.0);
    put_delta(row, m.since.0, m.first_try.0);
    put_varint(row, m.status.into());
    let (ledger, size) = m.payload.unwrap_or_default();
    put_varint(row, ledger);
    put_varint(row, size.into());
    if m.opened != 0 {
        put_varint(row, m.opened);
    }
    if let Some(not_before) = not_before {
        put_delta(row, m.since.0, not_before.0);
    }
}

fn decode(id: &MessageId, bytes: &[u8]) -> Message {
    read(id, bytes).expect("a row is read as it was written")
}

fn read(id: &MessageId, bytes: &[u8]) -> Result<Message, super::super::codec::CodecError> {
    let mut r = Reader::new(bytes);
    let flags = r.u8()?;
    let key = match flags & OWN_KEY {
        0 => id.tail(),
        _ => r.u64()?,
    };
    let offset = r.varint()?;
    let (round, attempts) = (r.varint32()?, r.varint32()?);
    let since = r.varint()?;
    let first_try = Time(r.delta(since)?);
    let status = r.varint()? as u16;
    let payload = Some((r.varint()?, r.varint32()?));
    let opened = if flags & OPENED == 0 { 0 } else { r.varint()? };
    let state = match flags & STATE {
        LATER => MessageState::Later {
            not_before: Time(r.delta(since)?),
        },
        PARKED => MessageState::Parked,
        DEAD => MessageState::Dead,
        _ => MessageState::Skipped,
    };
    Ok(Message {
        state,
        key: KeyHash(key),
        offset,
        round,
        attempts,
        first_try,
        since: Time(since),
        status,
        payload,
        dropped: flags & DROPPED != 0,
        opened,
        carried: flags & CARRIED != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn message() -> impl Strategy<Value = Message> {
        let time = prop_oneof![
            Just(0u64),
            Just(u64::MAX),
            1_700_000_000_000_000u64..1_800_000_000_000_000
        ]
        .prop_map(Time);
        let state = prop_oneof![
            time.clone()
                .prop_map(|not_before| MessageState::Later { not_before }),
            Just(MessageState::Parked),
            Just(MessageState::Dead),
            Just(MessageState::Skipped),
            any::<u64>().prop_map(|life| MessageState::Open {
                slot: Time(5),
                life: crate::core::types::LifeId(life),
                lease_ms: 1,
                timeout_ms: 2
            }),
        ];
        let numbers = (
            any::<u64>(),
            prop_oneof![0u64..9, any::<u64>()],
            any::<u32>(),
            any::<u32>(),
        );
        let rest = (
            time.clone(),
            time,
            any::<u16>(),
            prop::option::weighted(0.8, any::<(u64, u32)>()),
        );
        (state, numbers, rest, any::<bool>(), any::<bool>(), 0u64..3).prop_map(
            |(
                state,
                (key, offset, round, attempts),
                (first_try, since, status, payload),
                dropped,
                carried,
                opened,
            )| Message {
                state,
                key: KeyHash(key),
                offset,
                round,
                attempts,
                first_try,
                since,
                status,
                payload,
                dropped,
                opened,
                carried,
            },
        )
    }

    fn id(n: u16) -> MessageId {
        let mut id = [0; 16];
        id[..2].copy_from_slice(&n.wrapping_mul(0x9e37).to_be_bytes());
        id[14..].copy_from_slice(&n.to_be_bytes());
        MessageId(id)
    }

    proptest! {
        #[test]
        fn does_what_a_plain_map_does(steps in prop::collection::vec((0u16..400, prop::option::weighted(0.7, message())), 0..1_200)) {
            let (mut held, mut plain) = (Messages::default(), BTreeMap::new());
            for (n, message) in steps {
                match message {
                    Some(message) => {
                        held.insert(id(n), message);
                        plain.insert(id(n), message);
                    }
                    None => prop_assert_eq!(held.remove(&id(n)), plain.remove(&id(n))),
                }
                prop_assert_eq!(held.get(&id(n)), plain.get(&id(n)).copied());
                prop_assert_eq!(held.contains_key(&id(n)), plain.contains_key(&id(n)));
                prop_assert_eq!(held.len(), plain.len());
            }
            let mut totals = Totals::default();
            plain.values().for_each(|m| totals.count(m, |n, by| *n += by));
            prop_assert_eq!(held.totals(), totals);
            let mut all: Vec<_> = held.iter().collect();
            all.sort_by_key(|(id, _)| *id);
            prop_assert_eq!(&all, &plain.iter().map(|(id, m)| (*id, *m)).collect::<Vec<_>>());
            let bytes: usize = held.rows.values().map(|b| b.bytes.capacity()).sum();
            prop_assert_eq!(held.bytes, bytes);
            let closed = plain.values().filter(|m| is_cold(m) && m.closed()).map(|m| m.since);
            if let Some(oldest) = closed.min() {
                prop_assert!(held.may_be_older(oldest));
            }
            prop_assert!(held == all.into_iter().collect::<Messages>());
        }
    }

    #[test]
    fn a_kept_message_costs_some_fifty_bytes() {
        for own_key in [true, false] {
            let mut held = Messages::default();
            let n = 100_000u64;
            for i in 0..n {
                let mut id = [0; 16];
                id[..8].copy_from_slice(&i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
                let message = Message {
                    state: MessageState::Dead,
                    key: KeyHash(if own_key { i | 1 << 40 } else { 0 }),
                    offset: i,
                    round: 1,
                    attempts: 3,
                    first_try: Time(1_790_000_000_000_000 + i),
                    since: Time(1_790_000_001_000_000 + i),
                    status: 422,
                    payload: Some((3 * i, 250)),
                    dropped: false,
                    opened: 0,
                    carried: false,
                };
                held.insert(MessageId(id), message);
            }
            let each = held.memory() as f64 / n as f64;
            assert!(each < 66.0, "{each} bytes a message, own key: {own_key}");
            for i in 0..n {
                let mut id = [0; 16];
                id[..8].copy_from_slice(&i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
                assert!(held.remove(&MessageId(id)).is_some());
            }
            assert!(held.memory() < 2_000, "{} bytes stay", held.memory());
        }
    }
}
