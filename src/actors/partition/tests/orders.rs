//! Orders, one after the other, about a message in every place where it can be, before and after a kill: what becomes
//! of it follows from the ledger, as if the orders had come to a node that was just started.

use super::*;
use crate::config::DoubtPolicy;
use crate::config::model::DoubtConfig;
use crate::core::ledger::entry::Opened;

/// The message that the orders are about, one that stands before it on its key, one behind it, one of another key.
const IT: u64 = 1;
const BEFORE: u64 = 0;
const BEHIND_IT: u64 = 2;
const OTHER: u64 = 3;

/// Where the message is when the first order comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Behind a key that a doubt holds; nothing is copied before the end.
    Waits,
    /// The same; what waits is copied into the ledger between the orders.
    CopiedBetween,
    /// The same, and copied before.
    Copied,
    /// Outside memory, behind a key that a doubt holds.
    Left,
    /// Handed out, without a start slot.
    Gate,
    /// It will be tried again.
    Later,
    /// Its request has no answer yet.
    Wire,
    /// In doubt.
    Parked,
    Dead,
    Delivered,
}

const PLACES: [Place; 10] = [
    Place::Waits,
    Place::CopiedBetween,
    Place::Copied,
    Place::Left,
    Place::Gate,
    Place::Later,
    Place::Wire,
    Place::Parked,
    Place::Dead,
    Place::Delivered,
];

impl Place {
    /// Whether it stands behind a key that is held.
    fn behind(self) -> bool {
        matches!(
            self,
            Place::Waits | Place::CopiedBetween | Place::Copied | Place::Left
        )
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// `dedup mark`, `dedup import`, `doubt confirm delivered`.
    Mark,
    Skip,
    /// `dead replay`, `doubt resend`, `doubt confirm not-taken`.
    Open,
    Forget,
    Drop,
}

const ORDERS: [Order; 5] = [Order::Mark, Order::Skip, Order::Open, Order::Forget, Order::Drop];

impl Order {
    fn body(self, memory: &Memory) -> Body {
        let id = id_of(IT);
        match self {
            Order::Mark => command(mark(IT)),
            Order::Forget => command(forget(IT)),
            Order::Drop => command(Action::Drop { at: AT, id }),
            Order::Skip => command(Action::SkipAdd(SkipRule {
                rule: 1,
                topic: "t".into(),
                partner: None,
                matches: SkipMatch::Id(id.to_string().into_bytes().into()),
                reason: "flood".into(),
                made: Time(1),
                expires: None,
            })),
            Order::Open => {
                let state = memory.state.lock();
                let known = state.partitions.get(&AT).and_then(|p| p.messages.get(&id));
                let round = known.map_or(1, |m| m.round) + 1;
                Body::Opened(Opened {
                    at: AT,
                    id,
                    round,
                    when: Time(1),
                    idempotency_key: "again".into(),
                })
            }
        }
    }
}

const STEPS: usize = 5;

/// What is to become of the message: requests still to come, and its end.
type Due = (usize, FinishedState);

struct Case {
    world: World,
    place: Place,
    orders: [Order; 2],
    /// The step after which the node is killed.
    killed: Option<usize>,
    due: Option<(usize, Due)>,
}

impl Case {
    async fn run(mut self) -> Option<String> {
        let mut config = partner();
        config.on_doubt = OnDoubt::Hold;
        config.doubt = DoubtConfig::all(DoubtPolicy::Park);
        config.flood.dead_in_a_row = 0;
        config.retry.first = Duration::from_millis(800);
        config.retry.longest = Duration::from_millis(800);
        let key = || Some("k".to_owned());
        let records = [(key(), BEFORE), (key(), IT), (key(), BEHIND_IT), (None, OTHER)];
        let skipped = usize::from(!self.place.behind());
        self.world.append(records.into_iter().skip(skipped));
        let mut step = 0;
        while step < STEPS {
            let last = self.killed.filter(|k| *k >= step).map_or(STEPS, |k| k + 1);
            let (place, tried) = (self.place, self.world.partner.clone());
            let life = tokio::task::LocalSet::new();
            let run = life.run_until(async {
                let reply = move |number, _| {
                    let first = Living::seen(&tried, number) == 0;
                    match (number, place) {
                        (BEFORE, _) => Reply::Silence,
                        (IT, Place::Later) if first => Reply::TryLater,
                        (IT, Place::Wire) if first => Reply::Slowly,
                        (IT, Place::Parked) if first => Reply::Silence,
                        (IT, Place::Dead) if first => Reply::Refuse,
                        _ => Reply::Take,
                    }
                };
                let living = self.world.begin(config.clone(), reply);
                let skips = crate::core::resolve::Skips::of(
                    self.world.memory.state.lock().skips.values(),
                    "t",
                    "p",
                    &living.route.scope,
                );
                living.route.orders.set_skips(0, Arc::new(skips));
                for step in step..last {
                    self.step(step, &living).await;
                }
            });
            run.await;
            // Whatever still runs ends here.
            drop(life);
            step = last;
        }
        self.judge()
    }

    async fn step(&mut self, step: usize, living: &Living) {
        // Time for whatever is to come of it.
        let pass = |ms| tokio::time::sleep(Duration::from_millis(ms));
        match step {
            0 => {
                if self.place.behind() || self.place == Place::Gate {
                    living.pause(true);
                    living.until(|l| l.route.partner.gate.waiting() > 0).await;
                    pass(20).await;
                }
                let id = id_of(IT);
                match self.place {
                    Place::Gate | Place::Waits | Place::CopiedBetween => {}
                    Place::Copied => {
                        living.pause(false);
                        living
                            .until(|l| l.memory.finished.lock().get(&id) == Some(&FinishedState::Waiting))
                            .await;
                    }
                    Place::Left => {
                        let memory = living.route.partner.memory.clone();
                        let most = memory.room() as usize;
                        memory.take(most);
                        living.pause(false);
                        let patience = Patience::begin();
                        while !living.look(|act| act.left.len() > 1).await {
                            patience.hold("what is left outside memory", || living.world());
                            pass(1).await;
                        }
                        memory.give_back(most);
                    }
                    Place::Wire => {
                        living
                            .until(|l| l.route.on_wire.borrow().contains(&id) && l.is_seen(IT))
                            .await;
                    }
                    Place::Later | Place::Parked | Place::Dead | Place::Delivered => {
                        let ended = |l: &Living| match self.place {
                            Place::Later => l.memory.state.lock().partitions.get(&AT).is_some_and(|p| {
                                let it = p.messages.get(&id);
                                it.is_some_and(|m| matches!(m.state, MessageState::Later { .. }))
                            }),
                            _ => l.memory.finished.lock().contains_key(&id),
                        };
                        living.until(ended).await;
                    }
                }
            }
            1 | 2 => {
                let order = self.orders[step - 1];
                living.order(order.body(&living.memory)).await;
                if step == 1 && matches!(self.place, Place::CopiedBetween | Place::Waits) {
                    living.pause(false);
                }
                pass(60).await;
            }
            3 => {
                self.due = Some(self.due());
                self.world.append([(Some("k".to_owned()), IT)]);
                pass(60).await;
            }
            _ => {
                living.pause(false);
                if self.place.behind() {
                    let settle = command(mark(BEFORE));
                    living.order(settle).await;
                }
                pass(5_000).await;
            }
        }
    }

    /// What the ledger says is to become of it from now on.
    fn due(&self) -> (usize, Due) {
        let id = id_of(IT);
        let memory = &self.world.memory;
        let state = memory.state.lock();
        let known = state.partitions.get(&AT).and_then(|p| p.messages.get(&id));
        let finished = memory.finished.lock().get(&id).copied();
        let sent = match state.skips.is_empty() {
            true => (1, FinishedState::Delivered),
            false => (0, FinishedState::Skipped),
        };
        let due = match (known.map(|m| m.state), finished) {
            // A kill leaves it in doubt.
            (Some(MessageState::Open { .. }), _) if self.killed.is_some() => (0, FinishedState::Parked),
            (Some(MessageState::Open { .. }), _) => (0, FinishedState::Delivered),
            (Some(MessageState::Later { .. }), _) => sent,
            (_, Some(end)) => (0, end),
            (_, None) => sent,
        };
        (Living::seen(&self.world.partner, IT), due)
    }

    /// What is not as it should be.
    fn judge(&self) -> Option<String> {
        let world = &self.world;
        let (before, (more, end)) = self.due.expect("it was looked at");
        let finished = |n| world.memory.finished.lock().get(&id_of(n)).copied();
        let seen = |n| Living::seen(&world.partner, n);
        // One that was dropped holds its key no longer, and is remembered as what it was.
        let parked = {
            let state = world.memory.state.lock();
            let known = state.partitions[&AT].messages.get(&id_of(IT));
            known.is_some_and(|m| matches!(m.state, MessageState::Parked))
        };
        let is = (
            (seen(IT) - before, finished(IT)),
            // Its key goes on, unless it is in doubt itself; others never waited.
            (seen(BEHIND_IT), seen(OTHER)),
            (!parked).then(|| world.position()),
        );
        let records = if self.place.behind() { 5 } else { 4 };
        let should = (
            (more, Some(end)),
            (usize::from(!parked), 1),
            (!parked).then_some(records),
        );
        (is != should).then(|| {
            let Self {
                place,
                orders,
                killed,
                ..
            } = self;
            format!("{place:?} {orders:?}, killed after {killed:?}: {is:?} instead of {should:?}")
        })
    }
}

impl Living {
    fn is_seen(&self, number: u64) -> bool {
        Self::seen(&self.route.partner.sink.partner, number) > 0
    }
}

/// Two orders, whatever they are, wherever the message is, with and without a kill between any two of: the first
/// order, the second one, a record that comes with the same ID, the key that goes on. Nothing that is finished for the
/// ledger is sent; all that is not is sent once; what was forgotten is sent again.
#[test]
fn what_two_orders_come_to_follows_from_the_ledger() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let (mut cases, mut wrong) = (0, Vec::new());
    for place in PLACES {
        for first in ORDERS {
            for second in ORDERS {
                for killed in [None, Some(0), Some(1), Some(2), Some(3)] {
                    fastrand::seed(cases);
                    cases += 1;
                    wrong.extend(runtime.block_on(async {
                        let _time = crate::clock::simulated::begin(Time(1_790_000_000_000_000));
                        let mut world = World::new();
                        world.waiting_after = match place {
                            Place::Waits => Duration::from_secs(3_600),
                            _ => Duration::from_millis(10),
                        };
                        world.copy_every = match place {
                            Place::Waits => Duration::from_secs(1),
                            _ => Duration::from_millis(20),
                        };
                        let case = Case {
                            world,
                            place,
                            orders: [first, second],
                            killed,
                            due: None,
                        };
                        case.run().await
                    }));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(cases, 1_250);
}

fn forget(n: u64) -> Action {
    Action::Forget { at: AT, id: id_of(n) }
}

/// Called delivered while it stood behind a key that waits; its record is counted as finished; forgotten; and its ID
/// comes again. Killed now, the new record must not be lost: it is no duplicate of the one that ended.
#[actix_rt::test]
async fn a_record_that_a_mark_ended_takes_no_later_one_with_it() {
    let mut world = World::new();
    world.waiting_after = Duration::from_millis(10);
    let key = || Some("k".to_owned());
    world.append([(key(), 0), (key(), 1)]);
    let patient = patient();
    let living = world.begin(patient, |n, _| if n == 0 { Reply::TryLater } else { Reply::Take });
    living.pause(true);
    living.until(|l| l.route.partner.gate.waiting() == 1).await;
    assert!(living.command(mark(1)).await);
    living.pause(false);
    let passed = |upto| {
        move |l: &Living| {
            l.memory
                .state
                .lock()
                .partitions
                .get(&AT)
                .is_some_and(|p| p.position == upto)
        }
    };
    living.until(passed(2)).await;
    assert!(living.command(forget(1)).await);
    world.append([(key(), 1)]);
    living.until(passed(3)).await;
    // Whatever the first life knew beside the ledger is gone.
    living.stop().await;
    world.make_due(crate::core::message_id::key_hash(b"k"));
    world.live(partner(), |_, _| Reply::Take).await;
    assert_eq!(Living::seen(&world.partner, 1), 1, "the record that came last");
    assert_eq!(world.position(), 3);
}

/// The same message, where memory is tight once its record was counted as finished: it is not read back and sent.
#[actix_rt::test]
async fn what_a_mark_ended_is_not_left_in_the_ledger() {
    let mut world = World::new();
    let key = || Some("k".to_owned());
    world.append([(key(), 0), (key(), 1), (key(), 2)]);
    let mut config = partner();
    config.on_doubt = OnDoubt::Hold;
    config.doubt = DoubtConfig::all(DoubtPolicy::Park);
    let living = world.begin(config, |n, _| if n == 0 { Reply::Silence } else { Reply::Take });
    living.pause(true);
    living.until(|l| l.route.partner.gate.waiting() == 1).await;
    assert!(living.command(mark(1)).await);
    living.pause(false);
    living
        .until(|l| {
            l.memory
                .state
                .lock()
                .partitions
                .get(&AT)
                .is_some_and(|p| p.position == 3)
        })
        .await;
    let memory = living.route.partner.memory.clone();
    let most = memory.room() as usize;
    memory.take(most);
    let patience = Patience::begin();
    while living.look(|act| act.left.is_empty()).await {
        patience.hold("what is left outside memory", || living.world());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    memory.give_back(most);
    // What is read now drops the marks of which nothing is in flight.
    world.append([(None, 3)]);
    living.until(|l| l.is_seen(3)).await;
    assert!(living.command(mark(0)).await);
    living.idle().await;
    living.stop().await;
    let sent: Vec<_> = world.partner.lock().seen.iter().map(|s| s.1).collect();
    assert_eq!(sent, [0, 3, 2]);
}

/// An order about a message that is called delivered, and that the fold refuses, leaves it called delivered.
#[actix_rt::test]
async fn a_refused_order_takes_no_mark_back() {
    let opened = Body::Opened(Opened {
        at: AT,
        id: id_of(0),
        round: 2,
        when: Time(1),
        idempotency_key: "again".into(),
    });
    for refused in [command(Action::Drop { at: AT, id: id_of(0) }), opened] {
        let mut world = World::new();
        world.append([(None, 0)]);
        let living = world.begin(partner(), |_, _| Reply::Take);
        living.pause(true);
        living.until(|l| l.route.partner.gate.waiting() == 1).await;
        assert!(living.command(mark(0)).await);
        living.order(refused).await;
        living.pause(false);
        living.idle().await;
        living.stop().await;
        assert_eq!(world.partner.lock().seen, []);
        assert_eq!(world.position(), 1);
    }
}

/// What was forgotten is no duplicate of itself, although its end stands behind another one that is not folded yet.
#[actix_rt::test]
async fn a_forgotten_message_is_not_in_flight() {
    for marked in [true, false] {
        let mut world = World::new();
        world.append([(None, 0)]);
        let living = world.begin(partner(), |_, _| Reply::Take);
        living.pause(true);
        living.until(|l| l.route.partner.gate.waiting() == 1).await;
        if marked {
            assert!(living.command(mark(0)).await);
        }
        // The end of another message, whose entry is on its way to the disk.
        living
            .look(|act| act.unfolded.push_back((u64::MAX, id_of(99))))
            .await;
        living.pause(false);
        living.idle().await;
        living
            .until(|l| l.memory.finished.lock().contains_key(&id_of(0)))
            .await;
        let sent = world.partner.lock().seen.len();
        assert!(living.command(forget(0)).await);
        world.append([(None, 0)]);
        living
            .until(|l| l.route.figures.read.load(Ordering::Relaxed) == 2)
            .await;
        living.idle().await;
        living.stop().await;
        assert_eq!(world.partner.lock().seen.len(), sent + 1, "marked: {marked}");
        assert_eq!(world.position(), 2);
    }
}

/// A record that comes by between the moment when the ledger forgot its message and the moment when the partition hears of
/// it: it begins a later round, for the one before is over, and the partner may know its Idempotency-Key.
#[actix_rt::test]
async fn a_record_that_is_faster_than_the_forgetting_begins_a_later_round() {
    let mut world = World::new();
    world.append([(None, 0)]);
    let living = world.begin(partner(), |_, _| Reply::Take);
    let delivered = |n| {
        move |l: &Living| {
            let state = l.memory.state.lock();
            state.partitions.get(&AT).is_some_and(|p| p.counts.delivered == n)
        }
    };
    living.until(delivered(1)).await;
    living.idle().await;
    *world.late.borrow_mut() = Some(Vec::new());
    assert!(living.command(forget(0)).await);
    world.append([(None, 0)]);
    living.until(delivered(2)).await;
    living.stop().await;
    assert_eq!(world.memory.state.lock().partitions[&AT].next_round(&id_of(0)), 3);
}

/// A mark that is decided while the partition's actor is gone: what that one had handed out is not sent.
#[actix_rt::test]
async fn a_mark_reaches_what_an_actor_that_is_gone_had_handed_out() {
    let mut world = World::new();
    world.append([(None, 0)]);
    let living = world.begin(partner(), |_, _| Reply::Take);
    living.pause(true);
    living.until(|l| l.route.partner.gate.waiting() == 1).await;
    living.actor.send(Stop).await.expect("a living actor");
    living.until(|l| !l.actor.connected()).await;
    assert!(living.command(mark(0)).await);
    living.pause(false);
    living.until(|l| l.route.partner.gate.waiting() == 0).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(world.partner.lock().seen, []);
}

/// A partition that is built again begins from a fold that holds the intents of the one before, also of an attempt that
/// was given up without an outcome: or the next attempt would have its number, and no intent of its own.
#[actix_rt::test]
async fn what_is_built_again_knows_all_intents_of_the_one_before() {
    let mut world = World::new();
    world.append([(None, 0)]);
    world.live(partner(), |_, _| Reply::Take).await;
    let before = world.memory.state.lock().partitions[&AT].clone();
    let living = world.begin(partner(), |_, _| Reply::Take);
    let port = living.route.partner.port.clone();
    port.intent(Body::Intent(Intent {
        attempt: 6,
        life: LifeId(2),
        ..intent(1, KeyHash(1))
    }));
    let number = port.outcome(nothing_new(&world.memory.state.lock(), AT));
    port.flush();
    living.until(|l| l.route.partner.port.folded() >= number).await;
    {
        let state = world.memory.state.lock();
        let now = &state.partitions[&AT];
        assert_eq!(now.messages.get(&id_of(1)).map(|m| m.attempts), Some(6));
        assert_eq!((now.position, &now.finished), (before.position, &before.finished));
    }
    living.stop().await;
}

/// A mark that is decided while its message waits for a connection, which then fails: that writes no outcome behind the
/// mark, by which the message would wait once more.
#[actix_rt::test]
async fn a_connect_that_fails_undoes_no_mark() {
    let mut world = World::new();
    world.silent_until = 1;
    world.append([(Some("dead".to_owned()), 0)]);
    let living = world.begin(partner(), |_, _| Reply::Take);
    living.until(|l| l.route.partner.gate.in_use() == 1).await;
    assert!(living.command(mark(0)).await);
    world.append([(None, 1)]);
    living.idle().await;
    living.stop().await;
    assert_eq!(Living::seen(&world.partner, 0), 0);
    let state = world.memory.state.lock();
    assert!(state.partitions[&AT].messages.get(&id_of(0)).is_none());
    assert_eq!(state.partitions[&AT].position, 2);
}

/// A node that stops waits for attempts with an intent. One that was waiting for its connection gets none any more: it
/// would be in doubt after the stop.
#[actix_rt::test]
async fn who_connects_while_the_node_stops_gets_no_intent() {
    let mut world = World::new();
    world.silent_until = 1;
    world.append([(Some("slow to connect".to_owned()), 0)]);
    let living = world.begin(partner(), |_, _| Reply::Take);
    living.until(|l| l.route.partner.gate.in_use() == 1).await;
    let drained = living.actor.send(Drain).await.expect("a living actor");
    assert_eq!(drained.in_hand, 0);
    world.partner.lock().seen.push((String::new(), 99, Reply::Take));
    living.until(|l| l.route.partner.gate.in_use() == 0).await;
    living.stop().await;
    let state = world.memory.state.lock();
    let known = state.partitions.get(&AT).and_then(|p| p.messages.get(&id_of(0)));
    assert!(known.is_none(), "{known:?}");
}
