use super::*;
use proptest::prelude::*;
use std::collections::{HashMap, VecDeque};

#[derive(Debug, PartialEq)]
struct Item {
    seq: u32,
}

/// Message 1,000,000 and those behind it are urgent.
impl Queued for Item {
    fn is_urgent(&self) -> bool {
        self.seq >= 1_000_000
    }
}

fn item(seq: u32) -> Item {
    Item { seq }
}

#[derive(Clone, Debug)]
enum Step {
    Push(Option<u8>),
    Next,
    Done(usize),
    Wait(usize, u16),
    Rest(usize, u16),
    Tick(u16),
    Hold(u8),
    Unhold(u8),
    Take(u8),
    TakeStuck(u32),
    TakeWaiting(u32),
    Hasten(u32),
    Places(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => prop::option::weighted(0.9, 0u8..6).prop_map(Step::Push),
        6 => Just(Step::Next),
        5 => any::<usize>().prop_map(Step::Done),
        2 => (any::<usize>(), 0u16..5_000).prop_map(|(i, ms)| Step::Wait(i, ms)),
        1 => (any::<usize>(), 0u16..5_000).prop_map(|(i, ms)| Step::Rest(i, ms)),
        2 => (0u16..3_000).prop_map(Step::Tick),
        1 => (0u8..6).prop_map(Step::Hold),
        1 => (0u8..6).prop_map(Step::Unhold),
        1 => (0u8..6).prop_map(Step::Take),
        1 => (1u32..5).prop_map(Step::TakeStuck),
        1 => (1u32..5).prop_map(Step::TakeWaiting),
        1 => (1u32..4).prop_map(Step::Hasten),
        1 => (1usize..4).prop_map(Step::Places),
    ];
    prop::collection::vec(step, 0..200)
}

/// What the queues must agree with: per key a plain list, a set of busy ones, times of those that wait.
#[derive(Default)]
struct Model {
    queued: HashMap<u8, VecDeque<u32>>,
    loose: Vec<u32>,
    loose_waiting: Vec<(u32, Time)>,
    busy: Vec<(Option<u8>, u32)>,
    waiting: HashMap<u8, Time>,
    holds: HashMap<u8, u32>,
    places: usize,
}

impl Model {
    fn is_busy(&self, key: u8) -> bool {
        self.busy.iter().any(|&(k, _)| k == Some(key))
    }
    fn may_start(&self, key: u8, now: Time) -> bool {
        !self.is_busy(key)
            && self.holds.get(&key).is_none_or(|&n| n == 0)
            && self.waiting.get(&key).is_none_or(|&t| t <= now)
            && self.queued.get(&key).is_some_and(|q| !q.is_empty())
    }
    fn anything_to_start(&self, now: Time) -> bool {
        self.busy.len() < self.places && (!self.loose.is_empty() || (0..6).any(|k| self.may_start(k, now)))
    }
    fn len(&self) -> usize {
        self.queued.values().map(VecDeque::len).sum::<usize>() + self.loose.len() + self.loose_waiting.len()
    }
}

/// Keys of the test as hashes, small on purpose: the table must stand that too.
fn hash(key: u8) -> KeyHash {
    KeyHash(u64::from(key))
}

/// Stuck items, counted one by one.
fn recounted(queues: &KeyQueues<Item>) -> usize {
    let of_keys: u32 = queues
        .keys
        .iter()
        .map(|(id, _)| queues.standing_of(id).stuck)
        .sum();
    let mut loose = 0;
    for list in queues.timers.values() {
        let mut at = list.head;
        while at != NIL {
            loose += usize::from(at & UNORDERED != 0);
            at = queues.link(at);
        }
    }
    of_keys as usize + loose
}

fn check(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut queues = KeyQueues::new(2);
    let mut model = Model {
        places: 2,
        ..Model::default()
    };
    let mut now = Time::from_millis(1_000);
    let mut seq = 0;
    for step in steps {
        match step {
            Step::Push(key) => {
                seq += 1;
                queues.push(key.map(hash), item(seq));
                match key {
                    Some(k) => model.queued.entry(k).or_default().push_back(seq),
                    None => model.loose.push(seq),
                }
            }
            Step::Next => {
                let can = model.anything_to_start(now);
                match queues.next_ready() {
                    None => prop_assert!(!can, "something could start and was forgotten"),
                    Some((None, got)) => {
                        prop_assert!(model.busy.len() < model.places);
                        let at = model.loose.iter().position(|&s| s == got.seq);
                        prop_assert!(at.is_some());
                        model.loose.retain(|&s| s != got.seq);
                        model.busy.push((None, got.seq));
                    }
                    Some((Some(k), got)) => {
                        let k = k.0 as u8;
                        prop_assert!(model.busy.len() < model.places);
                        prop_assert!(model.may_start(k, now));
                        prop_assert_eq!(
                            model.queued.get_mut(&k).and_then(VecDeque::pop_front),
                            Some(got.seq)
                        );
                        model.waiting.remove(&k);
                        model.busy.push((Some(k), got.seq));
                    }
                }
            }
            Step::Done(i) if !model.busy.is_empty() => {
                let (key, _) = model.busy.remove(i % model.busy.len());
                match (key, queues.done(key.map(hash))) {
                    (_, None) => {}
                    (None, Some(_)) => prop_assert!(false, "an item without key has no next one"),
                    (Some(k), Some(got)) => {
                        prop_assert!(model.may_start(k, now));
                        prop_assert_eq!(
                            model.queued.get_mut(&k).and_then(VecDeque::pop_front),
                            Some(got.seq)
                        );
                        model.busy.push((Some(k), got.seq));
                    }
                }
            }
            Step::Wait(i, ms) if !model.busy.is_empty() => {
                let (key, seq) = model.busy.remove(i % model.busy.len());
                let until = now.plus(std::time::Duration::from_millis(u64::from(ms)));
                queues.wait_until(key.map(hash), item(seq), until, now);
                let until = coalesced(until, now);
                match key {
                    Some(k) => {
                        model.queued.entry(k).or_default().push_front(seq);
                        model.waiting.insert(k, until);
                    }
                    None => model.loose_waiting.push((seq, until)),
                }
                queues.due(now);
            }
            Step::Rest(i, ms) if !model.busy.is_empty() => {
                let (key, _) = model.busy.remove(i % model.busy.len());
                let until = now.plus(std::time::Duration::from_millis(u64::from(ms)));
                queues.rest(key.map(hash), until, now, false);
                if let Some(k) = key.filter(|k| model.holds.get(k).is_none_or(|&n| n == 0)) {
                    model.waiting.insert(k, coalesced(until, now));
                }
                queues.due(now);
            }
            Step::Tick(ms) => {
                now = now.plus(std::time::Duration::from_millis(u64::from(ms)));
                queues.due(now);
                prop_assert!(queues.next_due() > now);
            }
            Step::Hold(k) => {
                queues.hold(hash(k));
                *model.holds.entry(k).or_default() += 1;
            }
            Step::Unhold(k) => {
                queues.unhold(hash(k));
                let holds = model.holds.entry(k).or_default();
                *holds = holds.saturating_sub(1);
            }
            Step::Take(k) => {
                let got: Vec<u32> = queues.take_queued(hash(k)).into_iter().map(|i| i.seq).collect();
                let want: Vec<u32> = model.queued.entry(k).or_default().drain(..).collect();
                prop_assert_eq!(got, want);
            }
            Step::TakeStuck(n) => {
                let mut taken = Vec::new();
                queues.take_stuck(|item| item.seq % n == 0, |key, items| taken.push((key, items)));
                for (key, items) in taken {
                    let k = key.0 as u8;
                    prop_assert!(!items.is_empty() && !model.may_start(k, now));
                    let queued = model.queued.entry(k).or_default();
                    let from = queued.len() - items.len();
                    let end: Vec<u32> = queued.drain(from..).collect();
                    prop_assert_eq!(&end, &items.iter().map(|i| i.seq).collect::<Vec<_>>());
                    prop_assert!(end.iter().all(|seq| seq % n == 0));
                    prop_assert!(queued.back().is_none_or(|seq| seq % n != 0), "as many as may go");
                }
            }
            Step::TakeWaiting(n) => {
                let mut taken = Vec::new();
                queues.take_waiting(
                    |_, item| item.seq % n == 0,
                    |key, item, due| taken.push((key, item.seq, due)),
                );
                for (key, seq, due) in taken {
                    prop_assert!(seq % n == 0 && due > now);
                    let Some(k) = key.map(|key| key.0 as u8) else {
                        let at = model.loose_waiting.iter().position(|w| *w == (seq, due));
                        prop_assert!(at.map(|at| model.loose_waiting.remove(at)).is_some());
                        continue;
                    };
                    prop_assert!(!queues.is_held(hash(k)) && !queues.standing(hash(k)).1);
                    prop_assert_eq!(model.waiting.remove(&k), Some(due));
                    let queued = model.queued.entry(k).or_default();
                    prop_assert_eq!(queued.drain(..).collect::<Vec<_>>(), vec![seq]);
                }
                // As many as may go.
                prop_assert!(model.loose_waiting.iter().all(|w| w.1 <= now || w.0 % n != 0));
            }
            Step::Hasten(n) => {
                queues.hasten(|item| item.seq % n == 0, now);
                queues.due(now);
                let goes = |queue: Option<&VecDeque<u32>>| {
                    queue.and_then(VecDeque::front).is_some_and(|seq| seq % n == 0)
                };
                for (k, until) in &mut model.waiting {
                    if goes(model.queued.get(k)) {
                        *until = now.min(*until);
                    }
                }
                for (seq, until) in &mut model.loose_waiting {
                    if *seq % n == 0 {
                        *until = now.min(*until);
                    }
                }
            }
            Step::Places(n) => {
                queues.set_busy_keys(n);
                model.places = n;
            }
            Step::Done(_) | Step::Wait(..) | Step::Rest(..) => {}
        }
        let due: Vec<u32> = model
            .loose_waiting
            .iter()
            .filter(|w| w.1 <= now)
            .map(|w| w.0)
            .collect();
        model.loose_waiting.retain(|w| w.1 > now);
        model.loose.extend(due);
        prop_assert_eq!(queues.stuck(), recounted(&queues));
        let rests = |id: u32| queues.standing_of(id).rests;
        prop_assert_eq!(
            queues.resting,
            queues.keys.iter().filter(|(id, _)| rests(*id)).count()
        );
        prop_assert_eq!(queues.len(), model.len());
        prop_assert_eq!(queues.busy(), model.busy.len());
    }
    // Whatever happened, all of it comes out in the end.
    now = now.plus(std::time::Duration::from_secs(3_600));
    queues.due(now);
    for k in 0..6 {
        while queues.is_held(hash(k)) {
            queues.unhold(hash(k));
        }
    }
    for (key, _) in model.busy.drain(..) {
        let mut next = queues.done(key.map(hash));
        while next.is_some() {
            next = queues.done(key.map(hash));
        }
    }
    while let Some((key, _)) = queues.next_ready() {
        let mut next = queues.done(key);
        while next.is_some() {
            next = queues.done(key);
        }
    }
    prop_assert_eq!(queues.len(), 0);
    prop_assert_eq!(queues.keys(), 0);
    prop_assert_eq!(queues.waiting(), 0);
    Ok(())
}

/// Cases of the property tests; more with `SLUICEGATE_CASES`.
fn cases() -> ProptestConfig {
    let cases = std::env::var("SLUICEGATE_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(400);
    ProptestConfig::with_cases(cases)
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn agrees_with_a_plain_model(steps in steps()) {
        check(steps)?;
    }
}

#[test]
fn key_1001_of_1000_waits_its_turn_and_gets_it() {
    let mut queues = KeyQueues::new(1_000);
    for key in 0..1_001 {
        for _ in 0..100 {
            queues.push(Some(KeyHash(key)), item(key as u32));
        }
    }
    let mut busy = Vec::new();
    while let Some((key, _)) = queues.next_ready() {
        busy.push(key);
    }
    assert_eq!(busy.len(), 1_000);
    assert!(!busy.contains(&Some(KeyHash(1_000))));
    // The first key goes on for the rest of its turn, then makes room for the one that waits.
    let first = busy[0];
    for _ in 1..TURN {
        assert!(queues.done(first).is_some());
    }
    assert!(queues.done(first).is_none());
    assert_eq!(
        queues.next_ready().map(|(key, _)| key),
        Some(Some(KeyHash(1_000)))
    );
    assert!(queues.next_ready().is_none());
}

#[test]
fn a_key_that_waits_takes_no_place_and_keeps_its_order() {
    let mut queues = KeyQueues::new(1);
    let (slow, other) = (Some(KeyHash(1)), Some(KeyHash(2)));
    queues.push(slow, item(1));
    queues.push(slow, item(2));
    queues.push(other, item(3));
    let now = Time::from_millis(5);
    let (key, first) = queues.next_ready().unwrap();
    queues.wait_until(key, first, Time::from_millis(100), now);
    assert_eq!(queues.next_ready().map(|(k, i)| (k, i.seq)), Some((other, 3)));
    assert!(queues.done(other).is_none());
    assert!(queues.next_ready().is_none());
    assert_eq!(queues.due(Time::from_millis(99)), 0);
    assert_eq!(queues.due(Time::from_millis(100)), 1);
    assert_eq!(queues.next_ready().map(|(k, i)| (k, i.seq)), Some((slow, 1)));
    assert_eq!(queues.done(slow).map(|i| i.seq), Some(2));
}

/// What is read while a key rests waits with it, although nothing was behind the message that brought the rest. The
/// number of such keys is bounded.
#[test]
fn a_key_rests_for_what_is_pushed_later() {
    let mut queues = KeyQueues::new(1);
    let (now, until) = (Time::from_millis(5), Time::from_millis(100));
    let key = Some(KeyHash(1));
    queues.push(key, item(1));
    assert!(queues.next_ready().is_some());
    queues.rest(key, until, now, false);
    assert_eq!((queues.busy(), queues.waiting(), queues.len()), (0, 0, 0));
    queues.push(key, item(2));
    assert!(queues.next_ready().is_none(), "it rests");
    assert_eq!((queues.waiting(), queues.stuck()), (1, 1));
    queues.due(until);
    assert_eq!(queues.next_ready().map(|(_, i)| i.seq), Some(2));
    assert!(queues.done(key).is_none());
    for n in 0..MOST_RESTING as u64 + 1_000 {
        let key = Some(KeyHash(n));
        queues.push(key, item(1));
        assert!(queues.next_ready().is_some());
        queues.rest(key, until, now, false);
    }
    assert_eq!((queues.keys(), queues.waiting()), (MOST_RESTING, 0));
    assert!(queues.memory() < 64 * MOST_RESTING, "{} bytes", queues.memory());
    queues.due(until);
    assert!(queues.next_ready().is_none());
    assert_eq!((queues.keys(), queues.resting), (0, 0));
}

#[test]
fn waiting_times_are_never_cut_short_and_share_timers() {
    let now = Time::from_millis(1_700_000_000_000);
    let mut timers = std::collections::HashSet::new();
    for us in (0..3_600_000_000u64).step_by(1_237) {
        let until = Time(now.0 + us);
        let at = coalesced(until, now);
        assert!(at >= until && at.0 - until.0 <= 1_000.max(us / 512));
        timers.insert(at);
    }
    assert!(timers.len() < 20_000, "{} timers", timers.len());
    assert_eq!(coalesced(Time::NEVER, now), Time::NEVER);
}

#[test]
fn bookkeeping_stays_below_64_bytes_an_item() {
    for one_key in [true, false] {
        let mut queues = KeyQueues::new(1_000);
        let n = 200_000u64;
        for i in 0..n {
            let key = if one_key {
                1
            } else {
                i.wrapping_mul(0x2545_F491_4F6C_DD1D)
            };
            queues.push(Some(KeyHash(key)), Slim(0));
        }
        let each = queues.memory() as f64 / n as f64;
        assert!(each <= 64.0, "{each} bytes an item, one key: {one_key}");
        while let Some((key, _)) = queues.next_ready() {
            while queues.done(key).is_some() {}
        }
        assert!(queues.memory() < 200_000, "{} bytes stay", queues.memory());
    }
}

struct Slim(#[expect(dead_code, reason = "as large as a pointer")] u64);

impl Queued for Slim {}

#[test]
fn what_stands_behind_a_stuck_key_can_be_taken_out_and_its_head_too() {
    let mut queues = KeyQueues::new(4);
    let now = Time::from_millis(1_000);
    (0..10).for_each(|seq| queues.push(Some(hash(1)), item(seq)));
    (10..15).for_each(|seq| queues.push(Some(hash(2)), item(seq)));
    queues.push(Some(hash(3)), item(15));
    let (key, first) = queues.next_ready().expect("a free place");
    queues.wait_until(key, first, now.plus(std::time::Duration::from_secs(60)), now);
    queues.hold(hash(2));
    assert_eq!(queues.next_ready().map(|(_, i)| i.seq), Some(15));
    let mut taken = Vec::new();
    queues.take_stuck(
        |i| i.seq > 0,
        |key, items| taken.push((key, items.len(), items[0].seq)),
    );
    taken.sort_unstable();
    assert_eq!(taken, [(hash(1), 9, 1), (hash(2), 5, 10)]);
    assert_eq!((queues.len(), queues.stuck()), (1, 1));
    assert_eq!(queues.standing(hash(1)), (1, true));
    assert_eq!(queues.standing(hash(2)), (0, true));
    queues.take_stuck(|_| true, |_, items| assert_eq!(items[0].seq, 0));
    assert_eq!((queues.standing(hash(1)), queues.is_empty()), ((0, true), true));
    // With nothing left it still waits for its time, and is free then.
    queues.due(now.plus(std::time::Duration::from_secs(90)));
    assert!(queues.next_ready().is_none());
    assert_eq!(queues.standing(hash(1)), (0, false));
}

#[test]
fn what_is_stuck_is_visited_key_by_key_in_order() {
    let mut queues = KeyQueues::new(8);
    let now = Time::from_millis(1_000);
    for seq in 1..=3 {
        queues.push(Some(hash(1)), item(seq));
    }
    queues.push(Some(hash(2)), item(4));
    queues.push(None, item(5));
    let mut in_hand = Vec::new();
    while let Some(one) = queues.next_ready() {
        in_hand.push(one);
    }
    queues.push(Some(hash(3)), item(6));
    queues.hold(hash(3));
    for (key, item) in in_hand {
        // Key 2 goes on: only what waits, or stands behind it, is stuck.
        match key {
            Some(KeyHash(2)) => assert!(queues.done(key).is_none()),
            key => queues.wait_until(key, item, Time::NEVER, now),
        }
    }
    // A hold counts once the key's turn has come and gone.
    assert!(queues.next_ready().is_none());
    let mut seen = Vec::new();
    queues.visit_stuck(|item, behind| {
        seen.push((item.seq, behind));
        if item.seq == 2 {
            Visit::OtherKey
        } else {
            Visit::Next
        }
    });
    seen.sort_unstable();
    assert_eq!(seen, [(1, false), (2, true), (5, false), (6, true)]);
    let mut visited = 0;
    queues.visit_stuck(|_, _| {
        visited += 1;
        if visited == 2 { Visit::End } else { Visit::Next }
    });
    assert_eq!(visited, 2);
}

/// What waits by itself is taken out with the time it waits for; a key with more behind it, or held, stays.
#[test]
fn what_waits_by_itself_is_taken_out_and_its_key_forgotten() {
    let mut queues = KeyQueues::new(8);
    let now = Time::from_millis(1_000);
    let later = now.plus(std::time::Duration::from_secs(60));
    queues.push(None, item(0));
    (1..5).for_each(|n| queues.push(Some(hash(n)), item(u32::from(n))));
    queues.push(Some(hash(2)), item(20));
    while let Some((key, item)) = queues.next_ready() {
        queues.wait_until(key, item, later, now);
    }
    queues.hold(hash(3));
    let mut taken = Vec::new();
    queues.take_waiting(
        |_, item| item.seq != 4,
        |key, item, due| taken.push((key, item.seq, due)),
    );
    taken.sort_unstable();
    let due = coalesced(later, now);
    assert_eq!(taken, [(None, 0, due), (Some(hash(1)), 1, due)]);
    assert!(queues.is_idle(hash(1)));
    assert_eq!((queues.len(), queues.stuck(), queues.waiting()), (4, 4, 3));
    queues.unhold(hash(3));
    queues.due(later.plus(std::time::Duration::from_secs(1)));
    let next = std::iter::from_fn(|| queues.next_ready().map(|(_, item)| item.seq));
    assert_eq!(next.collect::<Vec<_>>(), [2, 3, 4]);
}

#[test]
fn what_stands_behind_a_waiting_or_held_key_is_stuck_with_it() {
    let mut queues = KeyQueues::new(4);
    let now = Time::from_millis(1_000);
    (0..10).for_each(|seq| queues.push(Some(hash(1)), item(seq)));
    (10..13).for_each(|seq| queues.push(None, item(seq)));
    assert_eq!(queues.stuck(), 0, "all of it can start");
    let (key, first) = queues.next_ready().expect("a free place");
    queues.wait_until(key, first, now.plus(std::time::Duration::from_secs(60)), now);
    queues.push(Some(hash(1)), item(13));
    assert_eq!((queues.stuck(), queues.len()), (11, 14));
    let (key, loose) = queues.next_ready().expect("a free place");
    queues.wait_until(key, loose, now.plus(std::time::Duration::from_secs(60)), now);
    assert_eq!(queues.stuck(), 12);
    queues.due(now.plus(std::time::Duration::from_secs(90)));
    assert_eq!(queues.stuck(), 0);
    queues.hold(hash(2));
    queues.push(Some(hash(2)), item(14));
    assert_eq!(queues.stuck(), 1);
    queues.unhold(hash(2));
    assert_eq!(queues.stuck(), 0);
}

/// What is urgent does not wait behind what was ready before it, nor for its places.
#[test]
fn what_is_urgent_goes_first_and_has_places_of_its_own() {
    let now = Time::from_millis(1_000);
    let mut queues = KeyQueues::new(2);
    (0..10).for_each(|n| queues.push(Some(hash(n)), item(u32::from(n))));
    for _ in 0..2 {
        assert!(queues.next_ready().is_some());
    }
    assert!(queues.next_ready().is_none() && queues.next_urgent().is_none());
    // The second one's request came to nothing known, and is to be looked up.
    queues.wait_until(Some(hash(1)), item(1_000_001), now, now);
    assert!(queues.next_ready().is_some(), "its place is free");
    queues.due(now.plus(std::time::Duration::from_millis(2)));
    assert_eq!(queues.next_urgent(), Some((Some(hash(1)), item(1_000_001))));
    assert_eq!((queues.busy(), queues.next_urgent()), (3, None));
    assert_eq!(queues.done(Some(hash(1))), None);
    assert_eq!(queues.busy(), 2);
}
