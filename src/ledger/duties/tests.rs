//! A lane over the real log, store and keeper, whose process is killed between any two writes.
//!
//! `SLUICEGATE_DUTY_RUNS` sets how many histories are tried, `SLUICEGATE_DUTY_SEED` where to begin (a failure names
//! its seed).

use super::*;
use crate::core::ledger::codec;
use crate::core::ledger::entry::*;
use crate::core::ledger::fold::{FinishedState, LaneState, Message, MessageState, StoreOp};
use crate::core::record::Headers;
use crate::core::types::*;
use crate::dedup::{DedupOptions, DedupStore};
use crate::ledger::restore::{Expected, restore};
use crate::log::embedded::{EmbeddedLog, EmbeddedOptions, Fault, Step};
use crate::log::{Batch, TopicSpec};
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::Path;

const LEDGER: u128 = 7;
const HOUR: Duration = Duration::from_secs(3_600);
const START: Time = Time(1_790_000_000_000_000);
const AT: [RoutePartition; 2] = [
    RoutePartition {
        route: RouteId(3),
        partition: 0,
    },
    RoutePartition {
        route: RouteId(4),
        partition: 0,
    },
];

fn rules() -> DutyRules {
    DutyRules {
        checkpoint_entries: 40,
        checkpoint_every: HOUR / 4,
        payload_retention: HOUR * 4,
        payload_bytes: 2_000,
        bucket: HOUR,
        retention: HOUR * 3,
        position_every: Duration::from_secs(1),
        look_every: Duration::ZERO,
        trim_least: 1,
    }
}

fn genesis() -> Body {
    Body::Genesis(Genesis {
        ledger: LEDGER,
        group: "embedded".into(),
        lanes: 1,
        lane: 0,
        recipe: 1,
    })
}

fn folder() -> tempfile::TempDir {
    crate::patience::watch();
    let memory = Path::new("/dev/shm");
    match memory.is_dir() {
        true => tempfile::tempdir_in(memory).unwrap(),
        false => tempfile::tempdir().unwrap(),
    }
}

/// A life of the process.
struct Life {
    log: Arc<dyn Log>,
    lane: PartitionId,
    inputs: Vec<PartitionId>,
    keeper: Arc<Keeper>,
    duties: RefCell<Duties>,
}

/// When, truly, and in which life; none: it is forgotten.
type Told = Option<(Time, u32)>;

/// The lane over all lives, and what an observer who never dies knows of it.
struct World {
    dir: tempfile::TempDir,
    rng: RefCell<fastrand::Rng>,
    life: Option<Life>,
    /// What the machine's clock shows, and what time it is.
    now: Cell<Time>,
    truth: Cell<Time>,
    /// Whether the clock may show another time at each start.
    clocks: bool,
    lives: Cell<u32>,
    tenure: Cell<Tenure>,
    entries: RefCell<Vec<Entry>>,
    whole: RefCell<LaneState>,
    /// What the store was told last of an ID.
    told: RefCell<BTreeMap<(RoutePartition, MessageId), Told>>,
    /// Writes until the process dies.
    fuse: Cell<u32>,
    next: Cell<u64>,
    starts: Cell<u64>,
}

impl World {
    fn new(seed: u64) -> World {
        World {
            dir: folder(),
            rng: RefCell::new(fastrand::Rng::with_seed(seed)),
            life: None,
            now: Cell::new(START),
            truth: Cell::new(START),
            clocks: false,
            lives: Cell::new(0),
            tenure: Cell::new(Tenure(0)),
            entries: RefCell::default(),
            whole: RefCell::default(),
            told: RefCell::default(),
            fuse: Cell::new(u32::MAX),
            next: Cell::new(0),
            starts: Cell::new(0),
        }
    }

    /// Time passes.
    fn pass(&self, us: u64) {
        self.now.set(Time(self.now.get().0 + us));
        self.truth.set(Time(self.truth.get().0 + us));
    }

    /// The machine boots: its clock may show anything.
    fn set_clock(&self) {
        let truth = self.truth.get().0;
        let rng = &mut *self.rng.borrow_mut();
        let hour = 3_600_000_000u64;
        self.now.set(Time(match rng.u8(0..8) {
            0 => truth + rng.u64(0..3 * hour),
            1 => truth - rng.u64(0..3 * hour),
            2 => truth + rng.u64(0..20_000 * hour),
            3 => truth - rng.u64(0..20_000 * hour),
            4 => hour,
            5 => self.now.get().0,
            _ => truth,
        }));
    }

    fn open(&mut self) {
        if self.clocks {
            self.set_clock();
        }
        let now = Arc::new(self.now.get());
        let options = EmbeddedOptions {
            segment_bytes: 64 * 1024,
            commit_gap: Duration::ZERO,
            zero_rate: 0,
            care_every: HOUR,
            now: Arc::new(move || *now),
            // Killed is the process, not the machine: what it wrote is there.
            fault: Some(Arc::new(|step, _| {
                (step == Step::Sync).then_some(Fault::Unsynced)
            })),
            ..EmbeddedOptions::default()
        };
        let log: Arc<dyn Log> = Arc::new(EmbeddedLog::open(&self.dir.path().join("log"), options).unwrap());
        let spec = TopicSpec {
            partitions: 1,
            retention: None,
            retention_bytes: None,
        };
        let lane = log.create_topic("__ledger", &spec).unwrap().partitions[0];
        let inputs = ["a", "b"].map(|name| log.create_topic(name, &spec).unwrap().partitions[0]);
        if log.bounds(lane).unwrap().next == 0 {
            let entry = Entry {
                tenure: Tenure(0),
                body: genesis(),
            };
            append(log.as_ref(), lane, START, std::slice::from_ref(&entry));
            self.observe(entry);
        }
        let options = DedupOptions {
            bucket: HOUR,
            memtable: 16,
            cache: 1 << 20,
            ..DedupOptions::new(LEDGER)
        };
        let (store, _) = DedupStore::open(&self.dir.path().join("dedup"), options).unwrap();
        let expected = Expected {
            ledger: Some(LEDGER),
            group: "embedded".into(),
            lanes: 1,
            lane: 0,
            recipe: 1,
        };
        let dir = self.dir.path().join("ledger");
        let restored = restore(log.as_ref(), lane, &dir, &expected, &mut &store).unwrap();
        let keeper = Keeper::new(restored.state, restored.last_entry_crc, store, dir, LEDGER);
        let keeper = Arc::new(keeper);
        let duties = Duties::new(keeper.clone(), log.clone(), lane, rules());
        self.life = Some(Life {
            log,
            lane,
            inputs: inputs.to_vec(),
            keeper,
            duties: RefCell::new(duties),
        });
        self.lives.set(self.lives.get() + 1);
        self.tenure.set(Tenure(self.entries.borrow().len() as u64));
        let owner = Owner {
            node: "n".into(),
            life: LifeId(self.lives.get().into()),
            lease_ms: 1,
            timeout_ms: 1,
            at: self.now.get(),
        };
        assert!(self.say(vec![Body::Owner(owner)]));
    }

    fn life(&self) -> &Life {
        self.life.as_ref().expect("alive")
    }

    fn observe(&self, entry: Entry) {
        let mut entries = self.entries.borrow_mut();
        let mut ops = Vec::new();
        self.starts
            .set(self.starts.get() + u64::from(matches!(entry.body, Body::Intent(_))));
        self.whole
            .borrow_mut()
            .apply(entries.len() as u64, &entry, &mut ops)
            .unwrap();
        let again = matches!(entry.body, Body::Carried { .. });
        let now = Some((self.truth.get(), self.lives.get()));
        let mut told = self.told.borrow_mut();
        for op in ops {
            match op {
                // What is carried was told before.
                StoreOp::Finished(f) if again => {
                    let known = told.entry((f.at, f.id)).or_insert(now);
                    *known = known.or(now);
                }
                StoreOp::Finished(f) => _ = told.insert((f.at, f.id), now),
                StoreOp::Forget { at, id } => _ = told.insert((at, id), None),
            };
        }
        drop(told);
        entries.push(entry);
    }

    /// Appends and folds; false: the process died, before or after.
    fn say(&self, bodies: Vec<Body>) -> bool {
        let life = self.life();
        for body in bodies {
            if self.fuse.get() == 0 {
                return false;
            }
            self.fuse.set(self.fuse.get() - 1);
            let entry = Entry {
                tenure: self.tenure.get(),
                body,
            };
            let at = append(
                life.log.as_ref(),
                life.lane,
                self.now.get(),
                std::slice::from_ref(&entry),
            );
            self.observe(entry.clone());
            if self.fuse.get() == 0 && self.rng.borrow_mut().bool() {
                return false;
            }
            life.keeper.fold_entries(at, &[entry]).unwrap();
        }
        true
    }

    fn inputs(&self) -> Vec<Input> {
        let life = self.life();
        let input = |(at, input): (&RoutePartition, &PartitionId)| Input {
            at: *at,
            input: *input,
            retention: HOUR * 3,
            looked_up: life.log.bounds(*input).unwrap().next,
        };
        AT.iter().zip(&life.inputs).map(input).collect()
    }

    fn turn(&self) -> bool {
        let life = self.life();
        let result = life
            .duties
            .borrow_mut()
            .turn(self.now.get(), &self.inputs(), self);
        match result {
            Ok(()) => true,
            Err(DutyError::Ending) => false,
            Err(other) => panic!("{other:?}"),
        }
    }

    /// Something that happens to a message, or to the lane.
    fn step(&self) -> bool {
        let known: Vec<(RoutePartition, MessageId, Message)> = {
            let whole = self.whole.borrow();
            whole.messages().collect()
        };
        let body = {
            let rng = &mut *self.rng.borrow_mut();
            match rng.u8(0..12) {
                0..6 => self.fresh(rng),
                6..11 if !known.is_empty() => {
                    let (at, id, m) = &known[rng.usize(0..known.len())];
                    self.follow(rng, *at, *id, m)
                }
                _ => self.order(rng),
            }
        };
        self.say(vec![body])
    }

    fn command(&self, action: Action) -> Body {
        Body::from(Command {
            offset: self.next.get(),
            when: self.now.get(),
            who: "op".into(),
            why: String::new(),
            action,
        })
    }

    /// A record that is taken up.
    fn fresh(&self, rng: &mut fastrand::Rng) -> Body {
        let life = self.life();
        let route = rng.usize(0..2);
        let mut batch = Batch::new();
        batch.push(life.inputs[route], self.now.get(), None, b"record", b"");
        let offset = appended(life.log.as_ref(), batch);
        self.next.set(self.next.get() + 1);
        let mut id = [route as u8; 16];
        id[..8].copy_from_slice(&(self.next.get().wrapping_mul(0x9E37_79B9_7F4A_7C15)).to_be_bytes());
        let id = MessageId(id);
        match rng.u8(0..10) {
            0 => self.outcome(AT[route], id, offset, 1, 0, OutcomeKind::Skipped(kept(id))),
            _ => self.intent(AT[route], id, offset, 1, 1),
        }
    }

    fn intent(&self, at: RoutePartition, id: MessageId, offset: Offset, round: u32, attempt: u32) -> Body {
        let draw = BudgetDraw { budget: 5, by: 0 };
        Body::Intent(Intent {
            at,
            id,
            key: KeyHash(id.tail()),
            offset,
            round,
            attempt,
            first_try: self.now.get(),
            slot: self.now.get(),
            budgets: [draw].into_iter().collect(),
            life: LifeId(1),
            lease_ms: 1,
            timeout_ms: 1,
        })
    }

    fn outcome(
        &self,
        at: RoutePartition,
        id: MessageId,
        offset: Offset,
        round: u32,
        attempts: u32,
        kind: OutcomeKind,
    ) -> Body {
        Body::Outcome(Outcome {
            at,
            id,
            offset,
            round,
            attempts,
            when: self.now.get(),
            life: LifeId(1),
            status: 200,
            kind,
        })
    }

    fn follow(&self, rng: &mut fastrand::Rng, at: RoutePartition, id: MessageId, m: &Message) -> Body {
        let outcome = |kind| self.outcome(at, id, m.offset, m.round, m.attempts, kind);
        match &m.state {
            MessageState::Open { .. } => match rng.u8(0..8) {
                0..4 => outcome(OutcomeKind::Delivered {
                    readable: Bytes::from_static(b"name"),
                }),
                4 => outcome(OutcomeKind::Dead(kept(id))),
                5 => outcome(OutcomeKind::Parked(kept(id))),
                6 => outcome(OutcomeKind::Later {
                    not_before: self.now.get(),
                    first_try: m.first_try,
                    key: m.key,
                    reason: String::new(),
                    counted: rng.bool(),
                }),
                _ => self.intent(at, id, m.offset, m.round, m.attempts),
            },
            MessageState::Later { not_before } => match rng.bool() && m.payload.is_none() {
                true => Body::Waiting(Waiting {
                    at,
                    id,
                    offset: m.offset,
                    round: m.round,
                    attempts: m.attempts,
                    when: self.now.get(),
                    not_before: *not_before,
                    kept: kept(id),
                }),
                false => self.intent(at, id, m.offset, m.round, m.attempts + 1),
            },
            _ => match rng.u8(0..5) {
                0 => self.command(Action::Drop { at, id }),
                1 => self.command(Action::Forget { at, id }),
                2 => self.command(Action::Mark {
                    at,
                    id,
                    offset: m.offset,
                }),
                _ => Body::Opened(Opened {
                    at,
                    id,
                    round: m.round + 1,
                    when: self.now.get(),
                    idempotency_key: format!("{id}-{}", m.round + 1),
                }),
            },
        }
    }

    fn order(&self, rng: &mut fastrand::Rng) -> Body {
        let rule = rng.u64(0..3);
        let partner = format!("p{rule}");
        self.command(match rng.u8(0..4) {
            0 => Action::SkipAdd(SkipRule {
                rule,
                topic: "a".into(),
                partner: None,
                matches: SkipMatch::Id(Bytes::from_static(b"x")),
                reason: String::new(),
                made: self.now.get(),
                expires: None,
            }),
            1 => Action::SkipRemove { rule },
            2 => Action::Pause {
                partner,
                route: None,
                reason: "so".into(),
            },
            _ => Action::Resume { partner, route: None },
        })
    }

    /// What the living process knows is what there is to know; `views`: its checkpoint was there.
    fn check(&self, seed: u64) {
        let life = self.life();
        let whole = self.whole.borrow();
        life.keeper.with_state(|state| {
            same(state, &whole, seed);
            // A fold that was made anew may put starts later than they were, never fewer.
            let used = state
                .used
                .iter()
                .map(|(_, used)| used.since(Time::ZERO))
                .sum::<u64>();
            // How starts fare when clocks are set is the limiter's to test.
            assert!(
                self.clocks || used >= self.starts.get(),
                "seed {seed}: {used} starts"
            );
        });
        let mut messages: Vec<_> = whole.messages().collect();
        messages.sort_by_key(|(at, id, _)| (*at, *id));
        for (at, id, m) in messages {
            let read = life.keeper.kept(life.log.as_ref(), life.lane, at, id);
            match (m.payload, m.dropped) {
                (None, _) => assert!(matches!(read, Ok(None)), "seed {seed}: {id} {read:?}"),
                (_, true) => assert!(read.is_err(), "seed {seed}: {id} has no payload any more"),
                _ => {
                    let message = read.unwrap().unwrap();
                    assert_eq!(message.kept.value, kept(id).value, "seed {seed}: {id}");
                    if m.round > 1 && m.opened > 0 {
                        let key = format!("{id}-{}", m.round);
                        assert_eq!(message.kept.idempotency_key, key, "seed {seed}: {id}");
                    }
                }
            }
        }
        for ((at, id), when) in self.told.borrow().iter() {
            let found = life.keeper.store().get(*at, *id).unwrap();
            match when {
                // Whatever the buckets are, and whatever clocks say: within its retention an ID is remembered. A restart
                // may add two intervals.
                Some((when, life)) => {
                    let restarts = self.lives.get() - life;
                    let added = rules().sample_interval() * 2 * restarts;
                    let passed =
                        self.truth.get().since(*when) + if self.clocks { added } else { Duration::ZERO };
                    assert!(
                        found.is_some() || passed >= HOUR * 3,
                        "seed {seed}: {id} was forgotten after {passed:?}"
                    );
                }
                None => assert!(found.is_none(), "seed {seed}: {id} has come back"),
            }
        }
    }
}

impl Writer for World {
    fn write(&self, make: Make) -> Result<(), DutyError> {
        let bodies = make(&self.life().keeper)?;
        match self.say(bodies) {
            true => Ok(()),
            false => Err(DutyError::Ending),
        }
    }
}

fn append(log: &dyn Log, lane: PartitionId, now: Time, entries: &[Entry]) -> Offset {
    let mut batch = Batch::new();
    for entry in entries {
        let mut bytes = Vec::new();
        codec::encode(entry, &mut bytes);
        batch.push(lane, now, None, &bytes, b"");
    }
    appended(log, batch)
}

fn appended(log: &dyn Log, batch: Batch) -> Offset {
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    log.append(batch, Box::new(move |r| tell.send(r).unwrap()));
    crate::patience::hear(&told).unwrap().unwrap().bases[0].1
}

fn kept(id: MessageId) -> Box<Kept> {
    Box::new(Kept {
        key: KeyHash(id.tail()),
        value: Bytes::from(format!("payload of {id}")),
        headers: Headers::encode([("a", &b"1"[..])]),
        readable: "name".into(),
        idempotency_key: id.to_string(),
        reason: "refused: so".into(),
        ..Kept::default()
    })
}

/// The fold of the trimmed, carried, restarted lane against that of everything ever written.
fn same(state: &LaneState, whole: &LaneState, seed: u64) {
    assert_eq!(state.genesis, whole.genesis, "seed {seed}");
    assert_eq!(state.skips, whole.skips, "seed {seed}");
    assert_eq!(state.paused, whole.paused, "seed {seed}");
    for (at, p) in &whole.partitions {
        let s = &state.partitions[at];
        assert_eq!(
            (s.position, &s.finished, s.high_water),
            (p.position, &p.finished, p.high_water),
            "seed {seed}"
        );
        // Old ones are not carried; a hole between some lengthens the memory.
        assert!(
            s.samples.iter().all(|sample| p.samples.contains(sample)),
            "seed {seed}"
        );
        assert_eq!(s.samples.last(), p.samples.last(), "seed {seed}");
        let what = |m: &Message| {
            let place = (m.offset, m.key, m.payload, m.dropped, m.opened);
            (m.state, m.round, m.attempts, place)
        };
        let of = |messages: &crate::core::ledger::fold::Messages| {
            messages
                .iter()
                .map(|(id, m)| (id, what(&m)))
                .collect::<BTreeMap<_, _>>()
        };
        pretty(&of(&s.messages), &of(&p.messages), seed);
    }
}

fn pretty<V: PartialEq + std::fmt::Debug>(
    is: &BTreeMap<MessageId, V>,
    should: &BTreeMap<MessageId, V>,
    seed: u64,
) {
    for (id, v) in should {
        assert_eq!(is.get(id), Some(v), "seed {seed}: {id}");
    }
    for id in is.keys() {
        assert!(
            should.contains_key(id),
            "seed {seed}: {id} has come back: {:?}",
            is[id]
        );
    }
}

/// Returns what was seen: where the lane begins, and the oldest bucket.
fn history(seed: u64, clocks: bool) -> (Offset, Time) {
    let mut world = World::new(seed);
    world.clocks = clocks;
    let mut seen = (0, START);
    for life in 0..6 {
        world.fuse.set(u32::MAX);
        world.open();
        world.check(seed);
        let quiet = world.rng.borrow_mut().u32(20..120);
        for n in 0..=quiet {
            if n == quiet {
                let fuse = world.rng.borrow_mut().u32(0..30);
                world.fuse.set(fuse);
            }
            let (pass, turn) = {
                let mut rng = world.rng.borrow_mut();
                (rng.u64(0..240_000_000), rng.u8(0..3) == 0)
            };
            world.pass(pass);
            if !world.step() || (turn && !world.turn()) {
                break;
            }
        }
        // The last turn of this life, which dies somewhere in it.
        let _ = world.fuse.get() == 0 || world.turn();
        let clean = world.fuse.get() > 0 && life % 2 == 0;
        if clean {
            world.check(seed);
        }
        let bounds = world.life().log.bounds(world.life().lane).unwrap();
        seen.0 = bounds.first;
        seen.1 = seen
            .1
            .max(world.life().keeper.store().remembers_from().unwrap_or(START));
        world.life = None;
        let lost = world.rng.borrow_mut().u8(0..6);
        if lost == 0 || lost == 1 {
            let _ = std::fs::remove_file(world.dir.path().join("ledger/checkpoint"));
        }
        if lost == 1 || lost == 2 {
            let _ = std::fs::remove_dir_all(world.dir.path().join("dedup"));
        }
    }
    if clocks {
        forgets_at_last(&mut world, seed);
    }
    seen
}

/// A life that goes on for longer than a retention: no bucket is left that began before it.
fn forgets_at_last(world: &mut World, seed: u64) {
    world.fuse.set(u32::MAX);
    world.open();
    world.check(seed);
    let began = world.tenure.get().0;
    for n in 0..240 {
        world.pass(150_000_000);
        assert!(world.step() && world.turn());
        if n % 40 == 0 {
            world.check(seed);
        }
    }
    world.check(seed);
    let store = world.life().keeper.store();
    let oldest = store.remembers_from_offset().expect("a bucket");
    assert!(
        oldest >= began,
        "seed {seed}: a bucket that began at {oldest} is left of before {began}: {:?}",
        store.buckets()
    );
    let buckets = store.buckets().len();
    assert!(buckets <= 7, "seed {seed}: {buckets} buckets");
}

fn from_env(name: &str, default: u64) -> u64 {
    let set = std::env::var(name).ok();
    set.and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// The same with a clock that may show anything after a start: no ID goes too early, and everything goes at last.
#[test]
fn whatever_clocks_show_ids_are_remembered_and_forgotten_at_last() {
    let first = from_env("SLUICEGATE_DUTY_SEED", 0);
    for seed in first..first + from_env("SLUICEGATE_DUTY_RUNS", 8) {
        if let Err(cause) = std::panic::catch_unwind(|| history(seed, true)) {
            eprintln!("history with SLUICEGATE_DUTY_SEED={seed}");
            std::panic::resume_unwind(cause);
        }
    }
}

#[test]
fn a_lane_killed_between_any_two_writes_is_what_it_was() {
    let first = from_env("SLUICEGATE_DUTY_SEED", 0);
    let runs = from_env("SLUICEGATE_DUTY_RUNS", 8);
    let (mut trimmed, mut expired) = (0, 0);
    for seed in first..first + runs {
        match std::panic::catch_unwind(|| history(seed, false)) {
            Ok((start, oldest)) => {
                trimmed += u64::from(start > 0);
                expired += u64::from(oldest > START.plus(HOUR * 2));
            }
            Err(cause) => {
                eprintln!("history with SLUICEGATE_DUTY_SEED={seed}");
                std::panic::resume_unwind(cause);
            }
        }
    }
    // It tests nothing where nothing is done.
    assert!(trimmed * 2 > runs, "{trimmed} of {runs} lanes were trimmed");
    assert!(expired * 2 > runs, "buckets of {expired} of {runs} went");
}

/// A lane that goes on for days, with one dead letter kept: what it and the store hold stays within bounds.
#[test]
fn a_lane_that_goes_on_does_not_grow() {
    let mut world = World::new(1);
    world.open();
    let life = world.life();
    let deliver = |n: u64| {
        let mut batch = Batch::new();
        batch.push(life.inputs[0], world.now.get(), None, b"record", b"");
        let offset = appended(life.log.as_ref(), batch);
        let id = MessageId((u128::from(n) << 64 | u128::from(n)).to_be_bytes());
        let kind = match n {
            7 => OutcomeKind::Dead(kept(id)),
            _ => OutcomeKind::Delivered {
                readable: Bytes::new(),
            },
        };
        let intent = world.intent(AT[0], id, offset, 1, 1);
        assert!(world.say(vec![intent, world.outcome(AT[0], id, offset, 1, 1, kind)]));
        id
    };
    let (mut held, mut ids) = (Vec::new(), Vec::new());
    for n in 0..1_200u64 {
        world.pass(60_000_000);
        ids.push(deliver(n));
        if n == 100 {
            assert!(life.keeper.store().get(AT[0], ids[0]).unwrap().is_some());
        }
        assert!(world.turn());
        let bounds = life.log.bounds(life.lane).unwrap();
        held.push((bounds.next - bounds.first, life.keeper.store().buckets().len()));
    }
    // Four to five hours of two entries a minute, and what is carried.
    let (entries, buckets) = held[600..]
        .iter()
        .fold((0, 0), |m, h| (m.0.max(h.0), m.1.max(h.1)));
    assert!(entries < 1_200, "{entries} entries");
    assert!(buckets <= 7, "{buckets} buckets");
    assert!(
        life.keeper.store().get(AT[0], ids[0]).unwrap().is_none(),
        "as old as that is forgotten"
    );
    assert!(life.keeper.store().get(AT[0], ids[1_100]).unwrap().is_some());
    // Retention ended the dead letter; while it lasted it was carried.
    life.keeper
        .with_state(|s| assert!(s.partitions[&AT[0]].messages.is_empty()));
    assert_eq!(life.keeper.dropped(), 1);
}

/// The cap takes the oldest payloads; their messages stay listed, and the others can be read.
#[test]
fn at_the_size_cap_the_oldest_payloads_go_and_their_messages_stay() {
    let mut world = World::new(2);
    world.open();
    let life = world.life();
    let mut ids = Vec::new();
    for n in 0..60u64 {
        world.pass(1_000_000);
        let id = MessageId((u128::from(n) << 64 | u128::from(n)).to_be_bytes());
        let kind = match n {
            0 => OutcomeKind::Parked(kept(id)),
            _ => OutcomeKind::Dead(kept(id)),
        };
        assert!(world.say(vec![world.outcome(AT[0], id, n, 1, 1, kind)]));
        ids.push(id);
    }
    assert!(world.turn());
    let readable = |id| life.keeper.kept(life.log.as_ref(), life.lane, AT[0], id).is_ok();
    life.keeper
        .with_state(|s| assert_eq!(s.partitions[&AT[0]].messages.len(), 60, "all are listed"));
    assert!(readable(ids[0]), "parked ones are not for the cap");
    assert!(!readable(ids[1]));
    assert!(readable(ids[59]));
    let kept = ids.iter().filter(|id| readable(**id)).count() as u64;
    assert_eq!(life.keeper.dropped(), 60 - kept);
    assert!(life.keeper.with_state(|s| s.payload_bytes()) <= 2_000);
    // What was given up cannot be opened again, and stays what it is over a restart from nothing.
    let opened = |n: usize| {
        Body::Opened(Opened {
            at: AT[0],
            id: ids[n],
            round: 2,
            when: world.now.get(),
            idempotency_key: format!("{}-2", ids[n]),
        })
    };
    assert!(world.say(vec![opened(1), opened(59)]));
    let state = |n: usize| {
        life.keeper
            .with_state(|s| s.partitions[&AT[0]].messages.get(&ids[n]).unwrap().state)
    };
    assert_eq!(state(1), MessageState::Dead);
    assert!(matches!(state(59), MessageState::Later { .. }));
    std::fs::remove_file(world.dir.path().join("ledger/checkpoint")).unwrap();
    world.life = None;
    world.open();
    world.check(2);
}

/// A message that is listed longer than its ID is remembered: a second record of it is no new message, or what comes of
/// that would change nothing in the fold, the position would stand, and every restart would send it again.
#[test]
fn what_is_listed_is_known_when_its_id_is_older_than_the_memory() {
    let mut world = World::new(8);
    world.open();
    let id = |n: u64| MessageId((u128::from(n) << 64 | u128::from(n)).to_be_bytes());
    let waiting = Waiting {
        at: AT[0],
        id: id(3),
        offset: 3,
        round: 1,
        attempts: 0,
        when: START,
        not_before: START,
        kept: kept(id(3)),
    };
    let kinds = [
        OutcomeKind::Delivered {
            readable: Bytes::new(),
        },
        OutcomeKind::Dead(kept(id(1))),
        OutcomeKind::Parked(kept(id(2))),
    ];
    for (n, kind) in (0u64..).zip(kinds) {
        assert!(world.say(vec![world.outcome(AT[0], id(n), n, 1, 1, kind)]));
    }
    assert!(world.say(vec![Body::Waiting(waiting)]));
    let keeper = world.life().keeper.clone();
    let known = || {
        let mut out = Vec::new();
        let ids: Vec<_> = (0..5).map(id).collect();
        keeper.look_up(AT[0], &ids, &mut out).unwrap();
        out
    };
    let [dead, parked, waiting] =
        [FinishedState::Dead, FinishedState::Parked, FinishedState::Waiting].map(Some);
    assert_eq!(
        known(),
        [Some(FinishedState::Delivered), dead, parked, waiting, None]
    );
    keeper.store().advance(START.plus(HOUR * 2)).unwrap();
    keeper.store().sync().unwrap();
    let bucket = keeper.store().buckets()[0].id;
    keeper.store().expire(bucket).unwrap();
    assert_eq!(known(), [None, dead, parked, waiting, None]);
    // Once it has left the list, too, the ID is free.
    let drop = world.command(Action::Drop { at: AT[0], id: id(1) });
    assert!(world.say(vec![drop]));
    assert_eq!(known(), [None, None, parked, waiting, None]);
}

/// A checkpoint that cannot be written is told and tried again, and keeps no other duty from being done.
#[test]
fn a_checkpoint_that_cannot_be_written_is_put_off() {
    let mut world = World::new(3);
    world.open();
    for _ in 0..60 {
        assert!(world.step());
    }
    // Where a folder stands no file can be made.
    let blocked = world.dir.path().join("ledger/checkpoint.tmp");
    std::fs::create_dir_all(blocked.join("full")).unwrap();
    let turn = || {
        let life = world.life();
        life.duties
            .borrow_mut()
            .turn(world.now.get(), &world.inputs(), &world)
    };
    let keeper = world.life().keeper.clone();
    let told = turn().unwrap_err();
    assert!(told.passes(), "{told}");
    assert!(keeper.behind().is_some_and(|why| why.contains("checkpoint")));
    let sampled =
        |keeper: &Keeper| keeper.with_state(|s| s.partitions.values().any(|p| !p.samples.is_empty()));
    assert!(sampled(&keeper), "the other duties are done");
    let since = keeper.since_checkpoint();
    assert!(since >= 60, "{since} entries wait for a checkpoint still");
    // Not again at once, and then again.
    assert!(turn().is_ok());
    world.pass(3_000_000);
    assert!(turn().is_err());
    std::fs::remove_dir_all(&blocked).unwrap();
    world.pass(3_000_000);
    turn().unwrap();
    assert_eq!((keeper.behind(), keeper.refuses()), (None, None));
    assert!(keeper.checkpointed() > 60);
}

/// The clock is set back over a restart: one sample an interval, not one at every turn.
#[test]
fn a_clock_set_back_costs_no_more_samples() {
    let mut world = World::new(5);
    world.open();
    let samples = |world: &World| {
        let entries = world.entries.borrow();
        entries
            .iter()
            .filter(|e| matches!(e.body, Body::Sample(_)))
            .count()
    };
    world.now.set(START.plus(HOUR * 24 * 30));
    assert!(world.turn());
    assert_eq!(samples(&world), 2);
    world.life = None;
    world.now.set(START);
    world.open();
    for _ in 0..50 {
        world.now.set(world.now.get().plus(Duration::from_millis(250)));
        assert!(world.turn());
    }
    assert_eq!(samples(&world), 4, "one for each input");
    world.now.set(world.now.get().plus(rules().sample_interval()));
    assert!(world.turn());
    assert_eq!(samples(&world), 6);
}

/// Records that a route has not finished are kept while no configuration has the route, until an operator forgets it.
#[test]
fn a_route_that_is_not_served_holds_its_records() {
    let mut world = World::new(1);
    world.open();
    let life = world.life();
    let (at, topic) = (
        RoutePartition {
            route: RouteId(9),
            partition: 0,
        },
        life.log.topic("a").unwrap(),
    );
    let route = RouteInfo {
        route: at.route,
        topic: "a".into(),
        topic_id: topic.id,
        partner: "gone".into(),
    };
    let position = Position {
        at,
        leader_epoch: 0,
        position: 3,
        finished: Vec::new(),
        high_water: 3,
    };
    assert!(world.say(vec![Body::Route(route), Body::Position(position)]));
    let unserved = || life.duties.borrow().unserved(&world.inputs());
    assert_eq!(unserved(), [(life.inputs[0], 3)]);
    let forget = Command {
        offset: 1,
        when: START,
        who: "kim".into(),
        why: "gone".into(),
        action: Action::ForgetRoute { route: at.route },
    };
    assert!(world.say(vec![Body::from(forget)]));
    assert_eq!(unserved(), []);
    let state = life
        .keeper
        .with_state(|s| (s.routes.len(), s.partitions.contains_key(&at)));
    assert_eq!(state, (0, false));
}

/// IDs of a route that was forgotten stay as long as others, and not for ever: or no bucket would go any more.
#[test]
fn ids_of_a_forgotten_route_end_with_their_time() {
    let mut world = World::new(4);
    world.open();
    let at = RoutePartition {
        route: RouteId(9),
        partition: 0,
    };
    let id = MessageId([7; 16]);
    let delivered = OutcomeKind::Delivered {
        readable: Bytes::new(),
    };
    assert!(world.say(vec![world.outcome(at, id, 0, 1, 1, delivered)]));
    let forget = world.command(Action::ForgetRoute { route: at.route });
    assert!(world.say(vec![forget]));
    let keeper = world.life().keeper.clone();
    let mut gone = None;
    for step in 1..300 {
        world.now.set(world.now.get().plus(HOUR / 24));
        assert!(world.turn());
        if keeper.store().get(at, id).unwrap().is_none() {
            gone = Some(step);
            break;
        }
    }
    // Three hours of retention, behind an hour of a bucket.
    let in_time = |step: u64| (72..120).contains(&step);
    assert!(gone.is_some_and(in_time), "{gone:?}");
}

/// A route that stands keeps its IDs: not the buckets of all others, also where most of one is its own.
#[test]
fn a_route_that_stands_keeps_its_ids_and_not_the_buckets_of_others() {
    let mut world = World::new(4);
    world.open();
    let at = RoutePartition {
        route: RouteId(9),
        partition: 0,
    };
    let id = |n: u64| MessageId((u128::from(n) << 64 | u128::from(n)).to_be_bytes());
    let deliver = |at, n: u64| {
        let delivered = OutcomeKind::Delivered {
            readable: Bytes::new(),
        };
        assert!(world.say(vec![world.outcome(at, id(n), n, 1, 1, delivered)]));
    };
    // Nobody samples its input: it is not configured, and not forgotten.
    (0..3).for_each(|n| deliver(at, n));
    deliver(AT[0], 3);
    let keeper = world.life().keeper.clone();
    let knows = |at, n: u64| keeper.store().get(at, id(n)).unwrap().is_some();
    for hour in 1..20 {
        for _ in 0..24 {
            world.pass(3_600_000_000 / 24);
            assert!(world.turn());
        }
        deliver(AT[0], 3 + hour);
        assert!((0..3).all(|n| knows(at, n)), "hour {hour}");
        let buckets = keeper.store().buckets().len();
        assert!(buckets <= 9, "{buckets} buckets in hour {hour}");
    }
    assert!(!knows(AT[0], 3) && knows(AT[0], 22));
}
