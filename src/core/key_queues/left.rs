//! Messages that stay behind a key outside memory: only where each one is read again is kept, in the order of the key.
//!
//! A key that waits for a retry, or is held, may have a million records behind it. Each of them costs one or two bytes
//! here while its record is in the topic, 17 or 18 once its payload is in the ledger, instead of a queued item with its
//! payload. The owner takes places from the front when the key goes on, and reads what lies there.
//!
//! Invariants: I4 (places come back in the order in which they were pushed), I6 ([`Left::bytes`] counts all of it).
//!
//! ```text
//! of a key   front: place | for each later one: signed varint of the offset's difference to the one before, shifted
//!            by one bit: 0 in the topic, 1 in the ledger, then its ID (16 bytes)
//! ```

use crate::core::types::{KeyHash, MessageId, Offset};
use hashbrown::HashMap;
use std::collections::VecDeque;

/// Where a message that was left is read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Its record is in the topic, and not finished for the position.
    Topic(Offset),
    /// Its payload is in the ledger; its record counts as finished for the position.
    Ledger(MessageId, Offset),
}

impl Place {
    /// Offset of its record.
    pub fn offset(&self) -> Offset {
        match self {
            Place::Topic(offset) | Place::Ledger(_, offset) => *offset,
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Left {
    keys: HashMap<KeyHash, Row>,
    /// Every key once, for taking turns, with the number of its row; one whose row has gone, or is another one now, has no
    /// turn any more.
    turns: VecDeque<(KeyHash, u32)>,
    rows: u32,
    len: usize,
    /// Bytes of the rows' places.
    places: usize,
}

#[derive(Debug)]
struct Row {
    front: Place,
    last: Offset,
    len: usize,
    rest: VecDeque<u8>,
    /// What lies at its front is being read: nothing may be pushed before that.
    reading: bool,
    number: u32,
}

/// Bytes of a key here beside its places: the row, its share of the table, its place in the turns, and what the queues
/// know of a key that waits with nothing queued.
const KEY_BYTES: usize = size_of::<(KeyHash, Row)>() * 8 / 7 + size_of::<(KeyHash, u32)>() + 40;

impl Left {
    /// Messages left.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keys that have left something.
    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    /// Whether this key has left something.
    pub fn has(&self, key: KeyHash) -> bool {
        !self.keys.is_empty() && self.keys.contains_key(&key)
    }

    /// Bytes of memory for all of it.
    pub fn bytes(&self) -> usize {
        self.places + self.keys.len() * KEY_BYTES
    }

    /// Leaves one more message, behind all others of its key.
    pub fn push(&mut self, key: KeyHash, place: Place) {
        self.len += 1;
        match self.keys.get_mut(&key) {
            Some(row) => {
                let before = row.rest.capacity();
                append(&mut row.rest, row.last, place);
                row.last = place.offset();
                row.len += 1;
                self.places += row.rest.capacity() - before;
            }
            None => self.insert(key, place),
        }
    }

    /// Leaves one more message, before all others of its key; false, and nothing done, while what lies there is read.
    pub fn push_front(&mut self, key: KeyHash, place: Place) -> bool {
        match self.keys.get_mut(&key) {
            Some(row) if row.reading => return false,
            Some(row) => {
                let before = row.rest.capacity();
                let mut first = VecDeque::with_capacity(32);
                append(&mut first, place.offset(), row.front);
                for byte in first.into_iter().rev() {
                    row.rest.push_front(byte);
                }
                row.front = place;
                row.len += 1;
                self.places += row.rest.capacity() - before;
            }
            None => self.insert(key, place),
        }
        self.len += 1;
        true
    }

    fn insert(&mut self, key: KeyHash, place: Place) {
        self.rows = self.rows.wrapping_add(1);
        let row = Row {
            number: self.rows,
            front: place,
            last: place.offset(),
            len: 1,
            rest: VecDeque::new(),
            reading: false,
        };
        self.keys.insert(key, row);
        self.turns.push_back((key, self.rows));
    }

    /// Whether places may be pushed before those of this key.
    pub fn takes_front(&self, key: KeyHash) -> bool {
        self.keys.get(&key).is_none_or(|row| !row.reading)
    }

    /// The first places of a key, at most so many.
    pub fn first(&self, key: KeyHash, most: usize) -> Vec<Place> {
        self.places_of(key).take(most).collect()
    }

    /// Takes the first place of a key away.
    pub fn pop(&mut self, key: KeyHash) -> Option<Place> {
        let row = self.keys.get_mut(&key)?;
        let place = row.front;
        self.len -= 1;
        let before = row.rest.capacity();
        match read(&mut row.rest.iter().copied(), place.offset()) {
            Some((next, bytes)) => {
                row.rest.drain(..bytes);
                row.front = next;
                row.len -= 1;
                if row.rest.capacity() > 64 && row.rest.len() < row.rest.capacity() / 4 {
                    row.rest.shrink_to(2 * row.rest.len());
                }
                self.places = self.places + row.rest.capacity() - before;
            }
            None => {
                self.places -= before;
                self.keys.remove(&key);
                if self.keys.is_empty() {
                    self.keys = HashMap::new();
                    self.turns = VecDeque::new();
                }
            }
        }
        Some(place)
    }

    /// The first offsets of a key whose records are in the topic only, at most so many.
    pub fn first_in_topic(&self, key: KeyHash, most: usize) -> Vec<Offset> {
        let places = self
            .places_of(key)
            .filter(|place| matches!(place, Place::Topic(_)));
        places.take(most).map(|place| place.offset()).collect()
    }

    /// The first places of a key in the topic are in the ledger now, under these IDs, or finished (none).
    pub fn copied(&mut self, key: KeyHash, now: &[Option<MessageId>]) {
        let mut now = now.iter();
        let places: Vec<Place> = self.places_of(key).collect();
        let Some(row) = self.keys.get_mut(&key) else {
            return;
        };
        let before = row.rest.capacity();
        row.rest.clear();
        let mut kept = 0;
        for place in places {
            let place = match place {
                Place::Topic(offset) => match now.next() {
                    Some(Some(id)) => Place::Ledger(*id, offset),
                    Some(None) => continue,
                    None => place,
                },
                ledger => ledger,
            };
            match kept {
                0 => row.front = place,
                _ => append(&mut row.rest, row.last, place),
            }
            row.last = place.offset();
            kept += 1;
        }
        self.len = self.len + kept - row.len;
        row.len = kept;
        self.places = self.places + row.rest.capacity() - before;
        if kept == 0 {
            self.places -= row.rest.capacity();
            self.keys.remove(&key);
        }
    }

    fn places_of(&self, key: KeyHash) -> impl Iterator<Item = Place> + '_ {
        let row = self.keys.get(&key);
        let mut next = row.map(|row| row.front);
        let mut bytes = row.into_iter().flat_map(|row| row.rest.iter().copied());
        std::iter::from_fn(move || {
            let place = next?;
            next = read(&mut bytes, place.offset()).map(|(place, _)| place);
            Some(place)
        })
    }

    /// Says whether what lies at the front of a key is being read.
    pub fn reading(&mut self, key: KeyHash, reading: bool) {
        if let Some(row) = self.keys.get_mut(&key) {
            row.reading = reading;
        }
    }

    /// Looks at so many keys, in turns, and returns those that `wanted` picks, at most `most` of them.
    pub fn turn(
        &mut self,
        look: usize,
        most: usize,
        mut wanted: impl FnMut(KeyHash) -> bool,
    ) -> Vec<KeyHash> {
        let mut picked = Vec::new();
        for _ in 0..look.min(self.turns.len()) {
            let Some((key, number)) = self.turns.pop_front() else {
                break;
            };
            let Some(row) = self.keys.get(&key).filter(|row| row.number == number) else {
                // It has nothing left; or it has left something again since, and came anew.
                continue;
            };
            self.turns.push_back((key, number));
            if !row.reading && wanted(key) {
                picked.push(key);
                if picked.len() == most {
                    break;
                }
            }
        }
        picked
    }
}

fn append(bytes: &mut VecDeque<u8>, before: Offset, place: Place) {
    let difference = place.offset().wrapping_sub(before) as i64;
    let mut number = u128::from(((difference << 1) ^ (difference >> 63)) as u64) << 1;
    number |= u128::from(matches!(place, Place::Ledger(..)));
    while number >= 0x80 {
        bytes.push_back(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push_back(number as u8);
    if let Place::Ledger(id, _) = place {
        bytes.extend(id.0);
    }
}

/// The place behind one at this offset, and how many bytes it has.
fn read(bytes: &mut impl Iterator<Item = u8>, before: Offset) -> Option<(Place, usize)> {
    let (mut number, mut shift, mut count) = (0u128, 0, 0);
    loop {
        let byte = bytes.next()?;
        count += 1;
        number |= u128::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let zigzag = (number >> 1) as u64;
    let difference = (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
    let offset = before.wrapping_add(difference as u64);
    if number & 1 == 0 {
        return Some((Place::Topic(offset), count));
    }
    let mut id = [0; 16];
    for byte in &mut id {
        *byte = bytes.next()?;
    }
    Some((Place::Ledger(MessageId(id), offset), count + 16))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, VecDeque};

    #[derive(Clone, Debug)]
    enum Step {
        Push(u8, Place),
        Front(u8, Place),
        Pop(u8),
        Reading(u8, bool),
        Copied(u8, Vec<Option<MessageId>>),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let offset = prop_oneof![6 => 0u64..200, 1 => any::<u64>(), 1 => Just(u64::MAX)];
        let place = (any::<[u8; 16]>(), offset, any::<bool>()).prop_map(|(id, offset, topic)| match topic {
            true => Place::Topic(offset),
            false => Place::Ledger(MessageId(id), offset),
        });
        let step = prop_oneof![
            4 => (0u8..4, place.clone()).prop_map(|(k, p)| Step::Push(k, p)),
            2 => (0u8..4, place).prop_map(|(k, p)| Step::Front(k, p)),
            4 => (0u8..4).prop_map(Step::Pop),
            1 => (0u8..4, any::<bool>()).prop_map(|(k, r)| Step::Reading(k, r)),
            1 => (0u8..4, prop::collection::vec(prop::option::of(any::<[u8; 16]>().prop_map(MessageId)), 0..4))
                .prop_map(|(k, ids)| Step::Copied(k, ids)),
        ];
        prop::collection::vec(step, 0..120)
    }

    proptest! {
        #[test]
        fn does_what_plain_lists_do(steps in steps()) {
            let (mut left, mut model) = (Left::default(), BTreeMap::<u8, (VecDeque<Place>, bool)>::new());
            let key = |k: u8| KeyHash(u64::from(k));
            for step in steps {
                match step {
                    Step::Push(k, place) => {
                        left.push(key(k), place);
                        model.entry(k).or_default().0.push_back(place);
                    }
                    Step::Front(k, place) => {
                        let row = model.entry(k).or_default();
                        prop_assert_eq!(left.push_front(key(k), place), !row.1);
                        if !row.1 {
                            row.0.push_front(place);
                        }
                    }
                    Step::Pop(k) => {
                        let expected = model.get_mut(&k).and_then(|row| row.0.pop_front());
                        prop_assert_eq!(left.pop(key(k)), expected);
                    }
                    Step::Copied(k, ids) => {
                        let offsets = left.first_in_topic(key(k), ids.len());
                        left.copied(key(k), &ids);
                        let Some(row) = model.get_mut(&k) else { continue };
                        let in_topic = row.0.iter().filter(|p| matches!(p, Place::Topic(_)));
                        prop_assert_eq!(offsets, in_topic.take(ids.len()).map(Place::offset).collect::<Vec<_>>());
                        let mut ids = ids.into_iter();
                        let places = std::mem::take(&mut row.0).into_iter().filter_map(|place| match place {
                            Place::Topic(offset) => match ids.next() {
                                Some(id) => id.map(|id| Place::Ledger(id, offset)),
                                None => Some(place),
                            },
                            ledger => Some(ledger),
                        });
                        row.0 = places.collect();
                    }
                    Step::Reading(k, reading) => {
                        left.reading(key(k), reading);
                        if let Some(row) = model.get_mut(&k) {
                            row.1 = reading;
                        }
                    }
                }
                model.retain(|_, row| !row.0.is_empty());
                prop_assert_eq!(left.len(), model.values().map(|row| row.0.len()).sum::<usize>());
                prop_assert_eq!(left.keys(), model.len());
                for (k, row) in &model {
                    prop_assert!(left.has(key(*k)));
                    prop_assert_eq!(left.first(key(*k), usize::MAX), row.0.iter().copied().collect::<Vec<_>>());
                }
                let rest: usize = left.keys.values().map(|row| row.rest.capacity()).sum();
                prop_assert_eq!(left.places, rest);
                let mut all = left.turn(usize::MAX, usize::MAX, |_| true);
                all.sort_unstable();
                let expected: Vec<_> = model.iter().filter(|(_, r)| !r.1).map(|(k, _)| key(*k)).collect();
                all.dedup();
                prop_assert_eq!(all, expected);
            }
        }
    }

    /// A key that had left nothing for a while has one turn like the others: two would have what lies at its front read,
    /// and copied, twice.
    #[test]
    fn a_key_that_comes_anew_has_one_turn() {
        let mut left = Left::default();
        left.push(KeyHash(2), Place::Topic(1));
        for offset in 2..50 {
            left.push(KeyHash(1), Place::Topic(offset));
            if offset % 3 != 0 {
                left.pop(KeyHash(1));
            }
        }
        assert_eq!(
            left.turn(usize::MAX, usize::MAX, |_| true),
            [KeyHash(2), KeyHash(1)]
        );
        assert_eq!(left.turn(usize::MAX, usize::MAX, |_| true).len(), 2);
        assert_eq!(left.turns.len(), 2);
    }

    #[test]
    fn a_million_records_behind_one_key_cost_some_bytes_each() {
        let mut left = Left::default();
        for i in 0..1_000_000u64 {
            left.push(KeyHash(1), Place::Topic(7 + 3 * i));
        }
        assert!(left.bytes() < 2_500_000, "{} bytes", left.bytes());
        for i in 0..1_000_000u64 {
            assert_eq!(left.pop(KeyHash(1)), Some(Place::Topic(7 + 3 * i)));
        }
        assert_eq!((left.bytes(), left.len()), (0, 0));
    }
}
