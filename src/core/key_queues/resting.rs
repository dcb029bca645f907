//! Messages that wait for long, outside the queues: those without key, and the first of a key.
//!
//! A rule that says "again in an hour" may meet a million messages, each without key or with a key of its own. A queued
//! item costs half a kilobyte. Where such a message's payload is in the ledger the fold knows all of it, and here stands
//! only which message to wake when: 20 bytes without key; with key 28, and 9 to 18 for the key.
//!
//! Invariants: I4 (at most one message of a key rests here, and it stands before all others of its key; the owner asks
//! [`Resting::has`]), I6 ([`Resting::bytes`] counts all of it).
//!
//! ```text
//! alone   ID 16 bytes | outage clock at its first attempt, seconds; highest bit: waits for a limit (u32)
//! keyed   the same | key u64
//! ```
//! The rows live in memory only.

use super::coalesced;
use crate::core::types::{KeyHash, MessageId, Time};
use hashbrown::HashSet;
use std::collections::BTreeMap;
use std::time::Duration;

const ALONE: usize = 20;
const KEYED: usize = 28;
/// Bytes of bookkeeping for a time: its place in the tree and two vectors.
const TIME_BYTES: usize = 80;

/// See the module.
#[derive(Debug, Default)]
pub struct Resting {
    times: BTreeMap<Time, Rows>,
    keys: HashSet<KeyHash>,
    len: usize,
    /// Bytes allocated for rows.
    rows: usize,
}

#[derive(Debug, Default)]
struct Rows {
    alone: Vec<[u8; ALONE]>,
    keyed: Vec<[u8; KEYED]>,
}

/// A message that rests, or is woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rested {
    /// Which.
    pub id: MessageId,
    /// Its key, if it has one.
    pub key: Option<KeyHash>,
    /// The partner's outage clock when it was first tried, in whole seconds.
    pub outage: Duration,
    /// Only its limit keeps it back.
    pub deferred: bool,
}

/// Of the seconds in a row.
const DEFERRED: u32 = 1 << 31;

fn is_deferred(row: &[u8]) -> bool {
    row[19] & 0x80 != 0
}

impl Resting {
    /// Messages that rest.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none rests.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the first message of this key rests.
    #[inline]
    pub fn has(&self, key: KeyHash) -> bool {
        !self.keys.is_empty() && self.keys.contains(&key)
    }

    /// Bytes of memory for all of it.
    pub fn bytes(&self) -> usize {
        let keys = self.keys.capacity() * 8 / 7 * (size_of::<KeyHash>() + 1);
        self.rows + self.times.len() * TIME_BYTES + keys
    }

    /// Lays a message to rest until then; false, and nothing done, where another one of its key rests.
    pub fn push(&mut self, message: Rested, until: Time, now: Time) -> bool {
        let Rested {
            id,
            key,
            outage,
            deferred,
        } = message;
        if key.is_some_and(|key| !self.keys.insert(key)) {
            return false;
        }
        let seconds = u32::try_from(outage.as_secs())
            .unwrap_or(u32::MAX)
            .min(DEFERRED - 1);
        let seconds = if deferred { seconds | DEFERRED } else { seconds };
        let rows = self.times.entry(coalesced(until, now)).or_default();
        let before = rows.bytes();
        match key {
            None => {
                let mut row = [0; ALONE];
                row[..16].copy_from_slice(&id.0);
                row[16..].copy_from_slice(&seconds.to_le_bytes());
                push(&mut rows.alone, row);
            }
            Some(key) => {
                let mut row = [0; KEYED];
                row[..16].copy_from_slice(&id.0);
                row[16..20].copy_from_slice(&seconds.to_le_bytes());
                row[20..].copy_from_slice(&key.0.to_le_bytes());
                push(&mut rows.keyed, row);
            }
        }
        self.rows = self.rows + rows.bytes() - before;
        self.len += 1;
        true
    }

    /// When the next message is to be woken; [`Time::NEVER`] if none rests.
    pub fn next_due(&self) -> Time {
        self.times.keys().next().copied().unwrap_or(Time::NEVER)
    }

    /// Has all that only a limit keeps back be due now.
    pub fn hasten(&mut self, now: Time) {
        let mut soon = self.times.remove(&now).unwrap_or_default();
        self.rows -= soon.bytes();
        for (due, mut rows) in std::mem::take(&mut self.times) {
            self.rows -= rows.bytes();
            soon.alone
                .extend(rows.alone.extract_if(.., |row| is_deferred(row)));
            soon.keyed
                .extend(rows.keyed.extract_if(.., |row| is_deferred(row)));
            if !rows.is_empty() {
                rows.alone.shrink_to_fit();
                rows.keyed.shrink_to_fit();
                self.rows += rows.bytes();
                self.times.insert(due, rows);
            }
        }
        if !soon.is_empty() {
            self.rows += soon.bytes();
            self.times.insert(now, soon);
        }
    }

    /// Wakes what is due, at most so many.
    pub fn wake(&mut self, now: Time, most: usize) -> Vec<Rested> {
        let mut woken = Vec::new();
        while woken.len() < most
            && let Some(mut entry) = self.times.first_entry()
            && *entry.key() <= now
        {
            let rows = entry.get_mut();
            let before = rows.bytes();
            while woken.len() < most
                && let Some(next) = rows.pop()
            {
                woken.push(next);
            }
            self.rows = self.rows + rows.bytes() - before;
            if rows.is_empty() {
                self.rows -= rows.bytes();
                entry.remove();
            }
        }
        for key in woken.iter().filter_map(|rested| rested.key) {
            self.keys.remove(&key);
        }
        if self.keys.capacity() > 64 && self.keys.len() < self.keys.capacity() / 8 {
            self.keys.shrink_to(2 * self.keys.len());
        }
        self.len -= woken.len();
        woken
    }
}

impl Rows {
    fn bytes(&self) -> usize {
        self.alone.capacity() * ALONE + self.keyed.capacity() * KEYED
    }

    fn is_empty(&self) -> bool {
        self.alone.is_empty() && self.keyed.is_empty()
    }

    fn pop(&mut self) -> Option<Rested> {
        let read = |row: &[u8]| {
            let (id, rest) = row.split_first_chunk::<16>()?;
            let (seconds, rest) = rest.split_first_chunk::<4>()?;
            Some(Rested {
                id: MessageId(*id),
                key: rest
                    .first_chunk::<8>()
                    .map(|key| KeyHash(u64::from_le_bytes(*key))),
                outage: Duration::from_secs((u32::from_le_bytes(*seconds) & !DEFERRED).into()),
                deferred: u32::from_le_bytes(*seconds) & DEFERRED != 0,
            })
        };
        match pop(&mut self.alone) {
            Some(row) => read(&row),
            None => read(&pop(&mut self.keyed)?),
        }
    }
}

/// Grows by an eighth: twice the rows would be up to twice the memory.
fn push<const N: usize>(rows: &mut Vec<[u8; N]>, row: [u8; N]) {
    if rows.len() == rows.capacity() {
        rows.reserve_exact((rows.len() / 8).max(4));
    }
    rows.push(row);
}

fn pop<const N: usize>(rows: &mut Vec<[u8; N]>) -> Option<[u8; N]> {
    let row = rows.pop()?;
    if rows.capacity() > 64 && rows.len() < rows.capacity() / 2 {
        rows.shrink_to(rows.len() + rows.len() / 8);
    }
    Some(row)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn rested(n: u64, key: Option<u64>) -> Rested {
        let mut id = [7; 16];
        id[..8].copy_from_slice(&n.to_le_bytes());
        Rested {
            id: MessageId(id),
            key: key.map(KeyHash),
            outage: Duration::from_secs(n % 1_000),
            deferred: n.is_multiple_of(3),
        }
    }

    proptest! {
        #[test]
        fn each_message_is_woken_once_when_it_is_due(
            steps in prop::collection::vec((any::<bool>(), prop::option::of(0u64..20), 0u64..50_000, 1usize..40), 0..200)
        ) {
            let (mut resting, mut model) = (Resting::default(), BTreeSet::new());
            let mut now = Time(1_000_000);
            for (n, (push, key, ms, most)) in steps.into_iter().enumerate() {
                if push {
                    let message = rested(n as u64, key);
                    let until = now.plus(Duration::from_millis(ms));
                    let known = key.is_some() && model.iter().any(|(_, m): &(Time, Rested)| m.key == message.key);
                    prop_assert_eq!(resting.push(message, until, now), !known);
                    if !known {
                        model.insert((coalesced(until, now), message));
                    }
                } else if most == 39 {
                    resting.hasten(now);
                    let due = |(at, m): (Time, Rested)| (if m.deferred { now } else { at }, m);
                    model = model.into_iter().map(due).collect();
                } else {
                    now = now.plus(Duration::from_millis(ms));
                    let due = model.iter().filter(|(at, _)| *at <= now).count();
                    let woken = resting.wake(now, most);
                    prop_assert_eq!(woken.len(), due.min(most));
                    for message in woken {
                        let at = model.iter().find(|(_, m)| *m == message).map(|(at, _)| *at);
                        prop_assert!(at.is_some_and(|at| at <= now && model.remove(&(at, message))));
                    }
                }
                prop_assert_eq!(resting.len(), model.len());
                prop_assert_eq!(resting.next_due(), model.first().map_or(Time::NEVER, |(at, _)| *at));
                for key in 0..20 {
                    let known = model.iter().any(|(_, m)| m.key == Some(KeyHash(key)));
                    prop_assert_eq!(resting.has(KeyHash(key)), known);
                }
            }
        }
    }

    #[test]
    fn a_million_messages_cost_some_tens_of_bytes_each_and_nothing_once_they_are_woken() {
        for (keyed, most) in [(false, 23), (true, 52)] {
            let mut resting = Resting::default();
            let hour = Duration::from_secs(3_600);
            for n in 0..1_000_000 {
                // They come over ten minutes.
                let now = Time(1_000_000 + 600 * n);
                let key = keyed.then_some(n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
                assert!(resting.push(rested(n, key), now.plus(hour), now));
            }
            assert_eq!(resting.len(), 1_000_000);
            assert!(resting.bytes() < most * 1_000_000, "{} bytes", resting.bytes());
            let mut woken = 0;
            while !resting.is_empty() {
                woken += resting.wake(Time::NEVER, 1_000).len();
            }
            assert_eq!(woken, 1_000_000);
            assert!(resting.bytes() < 4_096, "{} bytes", resting.bytes());
        }
    }
}
