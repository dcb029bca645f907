//! Lanes that are trimmed behind what was carried.

use super::super::*;
use super::maker::Maker;
use super::oracle::Oracle;
use super::{Name, SPAN, each, from_env, genesis};

/// A lane as its owner writes it.
struct Lane {
    maker: Maker,
    whole: LaneState,
    oracle: Oracle,
    entries: Vec<(Offset, Entry)>,
}

impl Lane {
    fn say(&mut self, entry: Entry) {
        let at = self.entries.len() as u64;
        self.whole.apply(at, &entry, &mut Vec::new()).unwrap();
        self.oracle.step(at, &entry);
        self.maker.past.push((at, entry.clone()));
        self.entries.push((at, entry));
    }

    fn say_body(&mut self, body: Body) {
        self.say(Entry {
            tenure: Tenure(1),
            body,
        });
    }

    /// What an owner would not say is not said: a fold that starts later cannot know that it is stale.
    fn would_say(&self, entry: &Entry) -> bool {
        match &entry.body {
            Body::Intent(_) | Body::Outcome(_) | Body::Opened(_) => {
                let (mut after, mut told) = (self.whole.clone(), Vec::new());
                after.apply(self.entries.len() as u64, entry, &mut told).unwrap();
                let known = |s: &LaneState| -> BTreeMap<Name, Message> {
                    s.messages().map(|(at, id, m)| ((at, id), m)).collect()
                };
                !told.is_empty() || known(&after) != known(&self.whole)
            }
            // Once the payload is in the ledger it is not copied again.
            Body::Waiting(w) => self
                .oracle
                .message((w.at, w.id))
                .is_none_or(|m| m.payload.is_none() && matches!(m.state, MessageState::Later { .. })),
            // It waits for the verdict.
            Body::Command(command) => match &command.action {
                Action::Forget { at, id } => self.oracle.message((*at, *id)).is_none_or(|m| m.closed()),
                _ => true,
            },
            Body::Carried { .. } => false,
            _ => true,
        }
    }

    /// Carries what lies from `first` to `trim` and must live on.
    fn carry(&mut self, first: u64, trim: u64) {
        let opened = self.whole.opened_behind(trim);
        let mut carry: Vec<_> = self.entries[first as usize..].to_vec();
        carry.retain(|(at, entry)| match *at < trim {
            true => self.whole.must_carry(*at, entry),
            false => opened.contains(at),
        });
        carry.sort_by_key(|(_, entry)| !entry.holds_payload());
        for (at, entry) in carry {
            self.say_body(entry.carry(at));
        }
        for (at, p) in self.whole.partitions.clone() {
            self.say_body(Body::Position(Position {
                at,
                leader_epoch: p.leader_epoch,
                position: p.position,
                finished: p.finished.iter().collect(),
                high_water: p.high_water,
            }));
        }
        let (mut after, mut used) = (None, Vec::new());
        loop {
            let (part, last) = self.whole.used.entries(after, 3, Time::ZERO);
            used.extend(part);
            match last {
                Some(last) => after = Some(last),
                None => break,
            }
        }
        used.into_iter().for_each(|used| self.say_body(Body::Used(used)));
    }

    /// Gives the payload of a closed message up, as retention does.
    fn drop_one(&mut self) {
        let held = self.whole.messages().find(|(_, _, m)| m.closed() && !m.dropped);
        let Some((_, _, m)) = held else { return };
        let at = m.payload.expect("a closed message is kept").0;
        let entry = self.entries[at as usize].1.clone();
        self.say_body(entry.without_payload(at).expect("it holds one"));
    }

    fn check_from(&self, trim: u64) {
        let whole = &self.whole;
        let mut trimmed = LaneState::default();
        for (at, entry) in &self.entries[trim as usize..] {
            trimmed.apply(*at, entry, &mut Vec::new()).unwrap();
        }
        assert_eq!(trimmed.genesis, whole.genesis);
        assert_eq!(trimmed.skips, whole.skips);
        assert_eq!(trimmed.paused, whole.paused);
        for (draw, used) in whole.used.iter() {
            let known = trimmed.used.get(draw).map_or(0, |used| used.since(SPAN));
            assert!(known >= used.since(SPAN));
        }
        for (at, p) in &whole.partitions {
            let t = &trimmed.partitions[at];
            assert_eq!(
                (t.position, &t.finished, t.high_water),
                (p.position, &p.finished, p.high_water)
            );
            assert_eq!(t.samples, p.samples);
            for (id, m) in p.messages.iter() {
                let got = t
                    .messages
                    .get(&id)
                    .unwrap_or_else(|| panic!("{id} of {m:?} is lost"));
                let what = |m: &Message| {
                    (
                        m.state, m.round, m.attempts, m.offset, m.key, m.payload, m.dropped, m.opened,
                    )
                };
                assert_eq!(what(&got), what(&m), "{id}");
            }
            for (id, got) in t.messages.iter() {
                assert!(p.messages.contains_key(&id), "{id} has come back: {got:?}");
            }
        }
    }
}

/// A lane that was trimmed, behind what had to be carried, folds to the same: three times over.
#[test]
fn a_trimmed_lane_folds_to_the_same() {
    each(from_env("SLUICEGATE_FOLD_HISTORIES", 15_000) / 20, |seed| {
        let mut maker = Maker::new(seed);
        maker.lawful = true;
        let mut lane = Lane {
            maker,
            whole: LaneState::default(),
            oracle: Oracle::default(),
            entries: Vec::new(),
        };
        lane.say(genesis());
        let mut trim = 0;
        for _ in 0..3 {
            for _ in 0..lane.maker.rng.usize(1..25) {
                let entry = lane.maker.next(&lane.oracle);
                if lane.would_say(&entry) {
                    lane.say(entry);
                }
                if lane.maker.rng.u8(0..12) == 0 {
                    lane.drop_one();
                }
            }
            let first = trim;
            trim = lane.maker.rng.u64(first.max(1)..=lane.entries.len() as u64);
            lane.carry(first, trim);
            lane.check_from(trim);
        }
    });
}
