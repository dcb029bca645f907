//! Which record of which key goes next inside one partition.
//!
//! A *key* is in one of four states. Only a *busy* one holds a place (there are `busy_keys` of them); one that
//! *waits* for a retry holds none, so that it never blocks other keys, and its later records stay behind it:
//!
//! ```text
//!            push            next_ready (a place is free)
//!   idle ───────────► ready ─────────────────────────────► busy
//!    ▲                  ▲ ▲                                 │ │
//!    │ done, nothing    │ └── due ◄── waiting ◄─ wait_until ┘ │
//!    └── behind it      └───── done, others wait for a place ─┘
//! ```
//!
//! A record without key is a unit of its own: it takes a place like a key and waits alone.
//! A key that is *held* (a doubt of it is not settled, `on_doubt = "hold"`) stays idle whatever is behind it.
//!
//! Invariants: I4 (per key, in the order of `push`, the next item only after `done` or `wait_until` of the one
//! before), I6 (the owner counts what it pushes; what no free place could start can be taken out again,
//! [`KeyQueues::take_stuck`], and be left outside memory, [`left`]; what waits for long by itself can rest there,
//! [`KeyQueues::take_waiting`], [`resting`]), I8 (keys take turns: after [`TURN`] items a key
//! goes behind the others).
//! Neighbours: `PartitionActor` owns one, its `SubpartitionActor`s are the places. A restart begins with an empty
//! one: what waits is restored from the ledger by [`KeyQueues::wait_until`], the rest is read again.

pub mod left;
pub mod resting;
mod slab;
#[cfg(test)]
mod tests;

use super::types::{KeyHash, Time};
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use slab::{NIL, Slab};
use std::collections::BTreeMap;

/// Items that a key may have in a row while others wait for its place. More saves actors made and dropped
/// (about 0.5 us each), fewer lets key 1,001 of 1,000 come earlier.
pub const TURN: u8 = 8;

/// Keys that may rest with nothing behind them: a partner's word about a key outlives its message. Some 50 bytes each; of
/// further ones nothing is remembered.
pub const MOST_RESTING: usize = 65_536;

/// Marks a link to an item without key; plain numbers are keys.
const UNORDERED: u32 = 1 << 31;

/// What is queued.
pub trait Queued {
    /// Whether it goes before what is not, once it may go: an attempt of it is in doubt, and the sooner that is settled
    /// the fewer doubts there are.
    fn is_urgent(&self) -> bool {
        false
    }
}

/// What [`KeyQueues::visit_stuck`] goes on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visit {
    /// The next item.
    Next,
    /// Nothing more of this key.
    OtherKey,
    /// Nothing more.
    End,
}

/// Queues per key with a bounded number of busy keys.
#[derive(Debug)]
pub struct KeyQueues<T> {
    items: Slab<T>,
    keys: Slab<Key>,
    index: HashTable<u32>,
    /// Keys and items without key that wait for a place, first come first served.
    ready: List,
    /// The same, where the next item is urgent.
    urgent: List,
    /// What waits for a time: lists by the time, rounded up (see [`coalesced`]).
    timers: BTreeMap<Time, List>,
    busy: usize,
    busy_keys: usize,
    waiting: usize,
    /// Items of keys that wait or are held, and items without key that wait.
    stuck: usize,
    /// Keys that wait with nothing queued.
    resting: usize,
}

/// What a key adds to the counts of the queues.
#[derive(Clone, Copy, Debug, Default)]
struct Standing {
    /// So many of its items are stuck.
    stuck: u32,
    /// It waits with nothing queued.
    rests: bool,
}

#[derive(Debug)]
struct Key {
    hash: KeyHash,
    head: u32,
    tail: u32,
    len: u32,
    /// Doubts that hold the key; small, because a held key starts nothing new. Keeps the struct at 24 bytes.
    holds: u16,
    state: State,
    turn: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing to do, or held.
    Idle,
    /// In the list of those that wait for a place.
    Ready,
    /// Has a place; its item in hand is with the owner.
    Busy,
    /// In a timer's list.
    Waiting,
}

/// A list through the links of keys and items; an entry is in one list at most.
#[derive(Clone, Copy, Debug)]
struct List {
    head: u32,
    tail: u32,
    len: u32,
}

impl List {
    const EMPTY: List = List {
        head: NIL,
        tail: NIL,
        len: 0,
    };
}

/// Rounds a waiting time up, so that what is due at about the same time shares one timer: by at most 1 ms or
/// 1/512 of the wait, whichever is more. This bounds the number of timers to some thousands however many wait.
fn coalesced(until: Time, now: Time) -> Time {
    let wait_us = until.since(now).as_micros() as u64;
    let step = (wait_us / 1_024).next_power_of_two().max(1_000);
    match until.0.checked_next_multiple_of(step) {
        Some(t) => Time(t),
        None => Time::NEVER,
    }
}

fn mixed(key: KeyHash) -> u64 {
    // Key hashes are well mixed already; this only guards against ones that are small numbers.
    key.0.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(32)
}

impl<T: Queued> KeyQueues<T> {
    /// Queues with `busy_keys` places (at least one).
    pub fn new(busy_keys: usize) -> Self {
        Self {
            items: Slab::new(),
            keys: Slab::new(),
            index: HashTable::new(),
            ready: List::EMPTY,
            urgent: List::EMPTY,
            timers: BTreeMap::new(),
            busy: 0,
            busy_keys: busy_keys.max(1),
            waiting: 0,
            stuck: 0,
            resting: 0,
        }
    }

    /// Changes the number of places; places in use beyond it are not taken away.
    pub fn set_busy_keys(&mut self, busy_keys: usize) {
        self.busy_keys = busy_keys.max(1);
    }

    /// Queues an item behind all others of its key; without key it is a unit of its own.
    pub fn push(&mut self, key: Option<KeyHash>, item: T) {
        let urgent = item.is_urgent();
        let Some(hash) = key else {
            let node = self.store(item);
            self.ready_push(node | UNORDERED, urgent);
            return;
        };
        let id = self.key_entry(hash);
        let node = self.store(item);
        let before = self.standing_of(id);
        let key = self.keys.get_mut(id);
        let tail = key.tail;
        key.tail = node;
        key.len += 1;
        if tail == NIL {
            key.head = node;
        }
        let starts = key.state == State::Idle && key.holds == 0;
        if starts {
            key.state = State::Ready;
        }
        if tail != NIL {
            self.items.set_next(tail, node);
        }
        if starts {
            self.ready_push(id, urgent);
        }
        self.note(id, before);
    }

    /// Gives a free place to the key (or item without key) that has waited longest for one, with its next item.
    /// None: no place is free, or nothing is ready. The place is freed by [`KeyQueues::done`] or
    /// [`KeyQueues::wait_until`] under the same key.
    pub fn next_ready(&mut self) -> Option<(Option<KeyHash>, T)> {
        if self.busy >= self.busy_keys {
            return None;
        }
        loop {
            let first = self.ready_pop(false)?;
            if let Some(next) = self.start(first) {
                return Some(next);
            }
        }
    }

    /// The same for what is urgent. It has as many places of its own as there are for all else, so that it does not
    /// wait for those.
    pub fn next_urgent(&mut self) -> Option<(Option<KeyHash>, T)> {
        if self.busy >= 2 * self.busy_keys {
            return None;
        }
        loop {
            let first = self.ready_pop(true)?;
            if let Some(next) = self.start(first) {
                return Some(next);
            }
        }
    }

    /// Gives a place to what was taken out of a list of those that wait for one, if it still has work.
    fn start(&mut self, first: u32) -> Option<(Option<KeyHash>, T)> {
        if first & UNORDERED != 0 {
            self.busy += 1;
            return Some((None, self.unstore(first & !UNORDERED)));
        }
        let before = self.standing_of(first);
        let key = self.keys.get_mut(first);
        if key.holds > 0 {
            key.state = State::Idle;
            self.note(first, before);
            self.forget_if_empty(first);
            return None;
        }
        key.state = State::Busy;
        key.turn = 1;
        let hash = key.hash;
        match self.pop_item(first) {
            Some(item) => {
                self.busy += 1;
                Some((Some(hash), item))
            }
            // Its items were taken away while it waited for a place.
            None => {
                self.keys.get_mut(first).state = State::Idle;
                self.forget_if_empty(first);
                None
            }
        }
    }

    /// The item in hand of this key is finished. Returns the key's next one, for the same place; or none, then
    /// the place is free and the caller asks [`KeyQueues::next_ready`].
    pub fn done(&mut self, key: Option<KeyHash>) -> Option<T> {
        let Some(hash) = key else {
            self.free_place();
            return None;
        };
        let id = self.find(hash)?;
        let others = self.ready.len > 0 && self.busy >= self.busy_keys;
        let key = self.keys.get_mut(id);
        if key.state != State::Busy {
            debug_assert!(false, "done for a key that is not busy");
            return None;
        }
        if key.len > 0 && key.holds == 0 {
            if !others || key.turn < TURN {
                key.turn = key.turn.saturating_add(1);
                return self.pop_item(id);
            }
            key.state = State::Ready;
            self.ready_push(id, false);
        } else {
            key.state = State::Idle;
            self.note(id, Standing::default());
            self.forget_if_empty(id);
        }
        self.free_place();
        None
    }

    /// The item in hand of this key is finished, and the key's next ones wait until then, also those that are pushed
    /// later; the place is free. `more`: next ones are left outside ([`left`]).
    pub fn rest(&mut self, key: Option<KeyHash>, until: Time, now: Time, more: bool) {
        let id = key.and_then(|hash| self.find(hash));
        let may_rest = self.resting < MOST_RESTING;
        let waits = id.filter(|id| {
            let key = self.keys.get_mut(*id);
            key.state == State::Busy && (key.len > 0 || more || may_rest) && key.holds == 0
        });
        let Some(id) = waits else {
            let next = self.done(key);
            debug_assert!(next.is_none(), "nothing is left that could go on");
            return;
        };
        let before = self.standing_of(id);
        self.keys.get_mut(id).state = State::Waiting;
        self.timer_push(coalesced(until, now), id);
        self.note(id, before);
        self.free_place();
    }

    /// The item in hand goes back to the front of its key and waits, the key's later items behind it; the place
    /// is free. Without key the item waits alone.
    ///
    /// Also restores what waited in an earlier life: then the key is not busy, and must not have been pushed to
    /// yet. (If it was, the item still goes to the front, but at the key's own time.)
    pub fn wait_until(&mut self, key: Option<KeyHash>, item: T, until: Time, now: Time) {
        let at = coalesced(until, now);
        let Some(hash) = key else {
            self.free_place();
            self.restore_unordered(item, until, now);
            return;
        };
        let id = self.key_entry(hash);
        let node = self.store(item);
        let before = self.standing_of(id);
        let key = self.keys.get_mut(id);
        let head = key.head;
        key.head = node;
        key.len += 1;
        if head == NIL {
            key.tail = node;
        }
        let was = key.state;
        let waits = was == State::Busy || (was == State::Idle && key.len == 1);
        if waits {
            key.state = State::Waiting;
        }
        self.items.set_next(node, head);
        if waits {
            self.timer_push(at, id);
        }
        self.note(id, before);
        if was == State::Busy {
            self.free_place();
        }
    }

    /// Restores an item without key that waited in an earlier life: like [`KeyQueues::wait_until`], but no place
    /// is given back.
    pub fn restore_unordered(&mut self, item: T, until: Time, now: Time) {
        let node = self.store(item);
        self.stuck += 1;
        self.timer_push(coalesced(until, now), node | UNORDERED);
    }

    /// Makes ready whatever has waited long enough; returns how many keys and items without key that were.
    pub fn due(&mut self, now: Time) -> usize {
        let mut woken = 0;
        while let Some(entry) = self.timers.first_entry() {
            if *entry.key() > now {
                break;
            }
            let list = entry.remove();
            let mut at = list.head;
            while at != NIL {
                let next = self.link(at);
                if at & UNORDERED != 0 {
                    self.stuck -= 1;
                    let urgent = self.items.get(at & !UNORDERED).is_urgent();
                    self.ready_push(at, urgent);
                } else {
                    let before = self.standing_of(at);
                    let key = self.keys.get_mut(at);
                    if key.holds > 0 {
                        key.state = State::Idle;
                        self.note(at, before);
                        self.forget_if_empty(at);
                    } else {
                        key.state = State::Ready;
                        let head = key.head;
                        self.note(at, before);
                        let urgent = head != NIL && self.items.get(head).is_urgent();
                        self.ready_push(at, urgent);
                    }
                }
                woken += 1;
                at = next;
            }
            self.waiting -= list.len as usize;
        }
        woken
    }

    /// Has what waits for a time, and for which this is so, wait no longer: the next [`KeyQueues::due`] makes it ready.
    pub fn hasten(&mut self, mut may: impl FnMut(&mut T) -> bool, now: Time) {
        let mut soon = self.timers.remove(&now).unwrap_or(List::EMPTY);
        for (due, list) in std::mem::take(&mut self.timers) {
            let (mut stay, mut at) = (List::EMPTY, list.head);
            while at != NIL {
                let next = self.link(at);
                let head = match at & UNORDERED {
                    0 => self.keys.get(at).head,
                    _ => at & !UNORDERED,
                };
                let goes = head != NIL && may(self.items.get_mut(head));
                self.append(if goes { &mut soon } else { &mut stay }, at);
                at = next;
            }
            if stay.len > 0 {
                self.timers.insert(due, stay);
            }
        }
        if soon.len > 0 {
            self.timers.insert(now, soon);
        }
    }

    /// When [`KeyQueues::due`] has something to do; [`Time::NEVER`] if nothing waits for a time.
    pub fn next_due(&self) -> Time {
        self.timers.keys().next().copied().unwrap_or(Time::NEVER)
    }

    /// Keeps a key from starting anything until as many [`KeyQueues::unhold`] came. Its item in hand is not
    /// touched.
    pub fn hold(&mut self, key: KeyHash) {
        let id = self.key_entry(key);
        let before = self.standing_of(id);
        let key = self.keys.get_mut(id);
        key.holds = key.holds.saturating_add(1);
        self.note(id, before);
    }

    /// Ends one hold of a key.
    pub fn unhold(&mut self, key: KeyHash) {
        let Some(id) = self.find(key) else { return };
        let before = self.standing_of(id);
        let key = self.keys.get_mut(id);
        key.holds = key.holds.saturating_sub(1);
        if key.holds > 0 || key.state != State::Idle {
            return;
        }
        if key.len > 0 {
            key.state = State::Ready;
            let head = key.head;
            self.note(id, before);
            let urgent = self.items.get(head).is_urgent();
            self.ready_push(id, urgent);
        } else {
            self.forget_if_empty(id);
        }
    }

    /// Whether a key is held.
    pub fn is_held(&self, key: KeyHash) -> bool {
        self.find(key).is_some_and(|id| self.keys.get(id).holds > 0)
    }

    /// Takes away everything queued of a key, in order (a rule skips it). Its item in hand is not touched.
    pub fn take_queued(&mut self, key: KeyHash) -> Vec<T> {
        let Some(id) = self.find(key) else {
            return Vec::new();
        };
        let mut out = Vec::with_capacity(self.keys.get(id).len as usize);
        while let Some(item) = self.pop_item(id) {
            out.push(item);
        }
        // One that is ready or waits is in a list still, and is forgotten when that list comes to it.
        self.forget_if_empty(id);
        out
    }

    /// Takes items out of keys that wait for a time or are held: of each, those at its end that `may_go` lets go, in a
    /// row. They come in the order of their key. A key that waits goes on waiting, also with nothing left.
    pub fn take_stuck(&mut self, may_go: impl Fn(&T) -> bool, mut taken: impl FnMut(KeyHash, Vec<T>)) {
        for id in self
            .stuck_keys()
            .filter(|at| at & UNORDERED == 0)
            .collect::<Vec<_>>()
        {
            // The last one that stays.
            let (mut stays, mut kept, mut n) = (NIL, 0, 0);
            let mut node = self.keys.get(id).head;
            while node != NIL {
                n += 1;
                if !may_go(self.items.get(node)) {
                    (stays, kept) = (node, n);
                }
                node = self.items.next(node);
            }
            if kept == n {
                continue;
            }
            let before = self.standing_of(id);
            let mut going = match stays {
                NIL => std::mem::replace(&mut self.keys.get_mut(id).head, NIL),
                stays => {
                    let next = self.items.next(stays);
                    self.items.set_next(stays, NIL);
                    next
                }
            };
            let key = self.keys.get_mut(id);
            (key.tail, key.len) = (stays, kept);
            let hash = key.hash;
            self.note(id, before);
            let mut out = Vec::with_capacity((n - kept) as usize);
            while going != NIL {
                let next = self.items.next(going);
                out.push(self.unstore(going));
                going = next;
            }
            taken(hash, out);
        }
    }

    /// Takes out what waits for a time by itself: items without key, and the only item of a key that nothing holds.
    /// Such a key is forgotten. `taken` is told the key, the item, and when that would have been due.
    pub fn take_waiting(
        &mut self,
        may_go: impl Fn(Option<KeyHash>, &T) -> bool,
        mut taken: impl FnMut(Option<KeyHash>, T, Time),
    ) {
        for (due, list) in std::mem::take(&mut self.timers) {
            let (mut stay, mut at) = (List::EMPTY, list.head);
            while at != NIL {
                let next = self.link(at);
                let going = if at & UNORDERED != 0 {
                    let goes = may_go(None, self.items.get(at & !UNORDERED));
                    goes.then(|| (None, self.unstore(at & !UNORDERED)))
                } else {
                    let key = self.keys.get(at);
                    let (hash, head) = (key.hash, key.head);
                    let single = key.len == 1 && key.holds == 0;
                    let goes = single && may_go(Some(hash), self.items.get(head));
                    goes.then(|| {
                        let key = self.keys.get_mut(at);
                        (key.head, key.tail, key.len) = (NIL, NIL, 0);
                        key.state = State::Idle;
                        self.forget_if_empty(at);
                        (Some(hash), self.unstore(head))
                    })
                };
                match going {
                    Some((hash, item)) => {
                        self.stuck -= 1;
                        self.waiting -= 1;
                        taken(hash, item, due);
                    }
                    None => self.append(&mut stay, at),
                }
                at = next;
            }
            if stay.len > 0 {
                self.timers.insert(due, stay);
            }
        }
    }

    /// Keys that wait for a time or are held, and items without key that wait.
    fn stuck_keys(&self) -> impl Iterator<Item = u32> + '_ {
        let waiting = self.timers.values().flat_map(|list| {
            let first = Some(list.head).filter(|at| *at != NIL);
            std::iter::successors(first, |at| Some(self.link(*at)).filter(|at| *at != NIL))
        });
        let held = |key: &Key| key.holds > 0 && key.state == State::Idle && key.head != NIL;
        let held = self
            .keys
            .iter()
            .filter(move |(_, key)| held(key))
            .map(|(id, _)| id);
        waiting.chain(held)
    }

    /// Goes over what cannot start now, whatever places are free: items without key that wait for a time, and of keys
    /// that wait for one, or are held, the queued items in order. `visit` is told whether an item stands behind
    /// another one, or a hold, and says what comes next.
    pub fn visit_stuck(&mut self, mut visit: impl FnMut(&mut T, bool) -> Visit) {
        let stuck: Vec<u32> = self.stuck_keys().collect();
        for at in stuck {
            if at & UNORDERED != 0 {
                if visit(self.items.get_mut(at & !UNORDERED), false) == Visit::End {
                    return;
                }
                continue;
            }
            let key = self.keys.get(at);
            let (mut node, mut behind) = (key.head, key.holds > 0);
            while node != NIL {
                match visit(self.items.get_mut(node), behind) {
                    Visit::Next => node = self.items.next(node),
                    Visit::OtherKey => break,
                    Visit::End => return,
                }
                behind = true;
            }
        }
    }

    /// Items queued, those in hand not counted.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.items.len() == 0
    }

    /// Places in use.
    pub fn busy(&self) -> usize {
        self.busy
    }

    /// Keys and items without key that wait for a place.
    pub fn ready(&self) -> usize {
        self.ready.len as usize
    }

    /// Keys and items without key that wait for a time; not those that rest with nothing behind them.
    pub fn waiting(&self) -> usize {
        self.waiting - self.resting
    }

    /// Items that no free place could start: of keys that wait for a time or are held, with all that stands behind
    /// them, and items without key that wait. They are no work in stock.
    pub fn stuck(&self) -> usize {
        self.stuck
    }

    /// Keys known: with items, busy or held.
    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    /// What is queued of a key, in order.
    pub fn queued(&self, key: KeyHash) -> impl Iterator<Item = &T> + '_ {
        let first = self
            .find(key)
            .map(|id| self.keys.get(id).head)
            .filter(|node| *node != NIL);
        std::iter::successors(first, |node| {
            Some(self.items.next(*node)).filter(|node| *node != NIL)
        })
        .map(|node| self.items.get(node))
    }

    /// Whether nothing is queued, in hand or held of a key: then an item of it may wait for a time of its own.
    pub fn is_idle(&self, key: KeyHash) -> bool {
        self.find(key).is_none()
    }

    /// How many items of a key are queued, and whether it waits for a time or is held: then no free place starts it.
    pub fn standing(&self, key: KeyHash) -> (usize, bool) {
        match self.find(key) {
            Some(id) => {
                let key = self.keys.get(id);
                (key.len as usize, key.holds > 0 || key.state == State::Waiting)
            }
            None => (0, false),
        }
    }

    /// Bytes of bookkeeping: the items themselves, keys, index. Payloads are not in it.
    pub fn memory(&self) -> usize {
        self.items.memory()
            + self.keys.memory()
            + self.index.capacity() * 8 / 7 * (size_of::<u32>() + 1)
            + self.timers.len() * (size_of::<Time>() + size_of::<List>() + 8)
    }

    /// First queued item of every key, with the key and how many are queued of it. Looks at every key: for
    /// status, not for the hot path. The oldest item of all with a key is among them.
    pub fn heads(&self) -> impl Iterator<Item = (KeyHash, &T, usize)> + '_ {
        self.keys
            .iter()
            .filter(|(_, key)| key.head != NIL)
            .map(|(_, key)| (key.hash, self.items.get(key.head), key.len as usize))
    }

    /// The keys with most items queued, longest first. Looks at every key: for status.
    pub fn longest(&self, n: usize) -> Vec<(KeyHash, usize)> {
        let mut all: Vec<(KeyHash, usize)> = self
            .keys
            .iter()
            .map(|(_, k)| (k.hash, k.len as usize))
            .filter(|&(_, len)| len > 0)
            .collect();
        all.sort_unstable_by_key(|&(hash, len)| (std::cmp::Reverse(len), hash));
        all.truncate(n);
        all
    }

    fn find(&self, hash: KeyHash) -> Option<u32> {
        self.index
            .find(mixed(hash), |&id| self.keys.get(id).hash == hash)
            .copied()
    }

    fn key_entry(&mut self, hash: KeyHash) -> u32 {
        let keys = &mut self.keys;
        let entry = self.index.entry(
            mixed(hash),
            |&id| keys.get(id).hash == hash,
            |&id| mixed(keys.get(id).hash),
        );
        match entry {
            Entry::Occupied(at) => *at.get(),
            Entry::Vacant(at) => {
                let id = self.keys.insert(Key {
                    hash,
                    head: NIL,
                    tail: NIL,
                    len: 0,
                    holds: 0,
                    state: State::Idle,
                    turn: 0,
                });
                assert!(id < UNORDERED - 1, "fewer than 2^31 keys fit into memory");
                at.insert(id);
                id
            }
        }
    }

    fn forget_if_empty(&mut self, id: u32) {
        let key = self.keys.get(id);
        if key.len > 0 || key.holds > 0 || key.state != State::Idle {
            return;
        }
        let hash = key.hash;
        if let Ok(entry) = self.index.find_entry(mixed(hash), |&other| other == id) {
            entry.remove();
        }
        self.keys.remove(id);
        // A table that grew for a flood of keys gives its memory back when they are gone.
        if self.index.capacity() > 4_096 && self.index.len() < self.index.capacity() / 8 {
            let keys = &self.keys;
            self.index
                .shrink_to(2 * self.index.len(), |&id| mixed(keys.get(id).hash));
        }
    }

    fn store(&mut self, item: T) -> u32 {
        let node = self.items.insert(item);
        assert!(node < UNORDERED - 1, "fewer than 2^31 items fit into memory");
        node
    }

    fn unstore(&mut self, node: u32) -> T {
        self.items.remove(node).expect("a linked item is there")
    }

    fn pop_item(&mut self, id: u32) -> Option<T> {
        let head = self.keys.get(id).head;
        if head == NIL {
            return None;
        }
        let next = self.items.next(head);
        let before = self.standing_of(id);
        let key = self.keys.get_mut(id);
        key.head = next;
        key.len -= 1;
        if next == NIL {
            key.tail = NIL;
        }
        self.note(id, before);
        Some(self.unstore(head))
    }

    /// What a key adds to the counts now.
    fn standing_of(&self, id: u32) -> Standing {
        let key = self.keys.get(id);
        let stands = match key.state {
            State::Waiting => true,
            State::Idle => key.holds > 0,
            _ => false,
        };
        Standing {
            stuck: if stands { key.len } else { 0 },
            rests: key.state == State::Waiting && key.len == 0,
        }
    }

    /// Something of a key has changed: this is what it added before.
    fn note(&mut self, id: u32, before: Standing) {
        let now = self.standing_of(id);
        self.stuck = self.stuck + now.stuck as usize - before.stuck as usize;
        self.resting = self.resting + usize::from(now.rests) - usize::from(before.rests);
    }

    fn free_place(&mut self) {
        debug_assert!(self.busy > 0, "a place is freed once");
        self.busy = self.busy.saturating_sub(1);
    }

    fn link(&self, at: u32) -> u32 {
        if at & UNORDERED != 0 {
            self.items.next(at & !UNORDERED)
        } else {
            self.keys.next(at)
        }
    }

    fn set_link(&mut self, at: u32, next: u32) {
        if at & UNORDERED != 0 {
            self.items.set_next(at & !UNORDERED, next);
        } else {
            self.keys.set_next(at, next);
        }
    }

    fn ready_push(&mut self, at: u32, urgent: bool) {
        let mut list = if urgent { self.urgent } else { self.ready };
        self.append(&mut list, at);
        *self.list(urgent) = list;
    }

    fn ready_pop(&mut self, urgent: bool) -> Option<u32> {
        let mut list = *self.list(urgent);
        let first = list.head;
        if first == NIL {
            return None;
        }
        list.head = self.link(first);
        list.len -= 1;
        if list.head == NIL {
            list.tail = NIL;
        }
        *self.list(urgent) = list;
        Some(first)
    }

    fn list(&mut self, urgent: bool) -> &mut List {
        match urgent {
            true => &mut self.urgent,
            false => &mut self.ready,
        }
    }

    fn timer_push(&mut self, until: Time, at: u32) {
        let mut list = self.timers.get(&until).copied().unwrap_or(List::EMPTY);
        self.append(&mut list, at);
        self.timers.insert(until, list);
        self.waiting += 1;
    }

    fn append(&mut self, list: &mut List, at: u32) {
        self.set_link(at, NIL);
        if list.tail == NIL {
            list.head = at;
        } else {
            self.set_link(list.tail, at);
        }
        list.tail = at;
        list.len += 1;
    }
}
