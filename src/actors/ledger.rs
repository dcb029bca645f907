//! `LedgerActor`: one for each lane. Folds what became durable, and does the lane's duties.
//!
//! Parent: `Supervisor`. Children: none. Group commit itself is the log's; entries reach it through the ports of the
//! arbiters ([`crate::ledger::lane`]), and come here once they are durable. The duties ([`crate::ledger::duties`])
//! read and sync on a thread that may block; what they write comes back here, where the lane is held for as long as
//! it takes: folding goes on in between. If the actor fails, a new one goes on with the same keeper and the same
//! feed: what it had in hand is there still. One that fell inside an entry ends the node: only a restore mends the fold.
//!
//! Where the store or a checkpoint cannot be written (a full disk), nothing fails: it is told, and tried again. While
//! the store takes nothing more, nothing is folded, and the lane refuses intents: outcomes still go into the log.

use super::context::RouteFigures;
use super::effects::Outlet;
use super::fault;
use super::lifeline::Lifeline;
use crate::clock::Clock;
use crate::core::in_full::in_full;
use crate::core::types::RoutePartition;
use crate::ledger::duties::{Duties, DutyError, DutyRules, Input, Make, Writer};
use crate::ledger::keeper::{Keeper, KeeperError};
use crate::ledger::lane::{Committed, Lane};
use crate::log::PartitionId;
use crate::telemetry::every::Every;
use crate::telemetry::metrics::Metrics;
use actix::prelude::*;
use parking_lot::Mutex as Lock;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{Mutex, mpsc, oneshot};

/// Batches folded in one turn.
const TURN: usize = 64;
/// Rest after folding: what is committed meanwhile is folded in one go. Without it the arbiter wakes for each commit.
const PACE: Duration = Duration::from_millis(2);
/// How often the duties are looked at.
const DUTIES_EVERY: Duration = Duration::from_millis(250);
/// A store that takes nothing more is asked again after this time.
const STORE_AGAIN: Duration = Duration::from_millis(250);

/// What became durable, and is to be folded. Outlives the actor, with what that had in hand.
#[derive(Clone)]
pub struct Feed(Arc<Mutex<InHand>>);

struct InHand {
    receiver: UnboundedReceiver<Committed>,
    batches: VecDeque<Committed>,
}

impl Feed {
    /// Of this receiver.
    pub fn new(receiver: UnboundedReceiver<Committed>) -> Self {
        let batches = VecDeque::new();
        Self(Arc::new(Mutex::new(InHand { receiver, batches })))
    }
}

impl InHand {
    /// Waits until there is something to be folded; false: there is nothing more.
    async fn wait(&mut self) -> bool {
        if self.batches.is_empty() {
            let mut batches = Vec::with_capacity(TURN);
            self.receiver.recv_many(&mut batches, TURN).await;
            self.batches.extend(batches);
        }
        !self.batches.is_empty()
    }

    /// Folds it. A batch goes only when it is folded.
    fn fold(&mut self, keeper: &Keeper, lane: &Lane, metrics: &Metrics) -> Result<(), KeeperError> {
        while let Some(batch) = self.batches.front() {
            fault::point("ledger", keeper.name());
            keeper.catch_up()?;
            keeper.fold_entries(batch.base, &batch.entries)?;
            if let Some(batch) = self.batches.pop_front() {
                if !batch.entries.is_empty() {
                    metrics.ledger_commits.inc();
                    metrics.ledger_entries.inc_by(batch.entries.len() as u64);
                    metrics.ledger_commit_time.record(batch.took);
                }
                batch.folded(lane);
            }
        }
        Ok(())
    }
}

/// A route's partition, as the duties need it.
#[derive(Clone, Debug)]
pub struct InputFigures {
    /// Which.
    pub at: RoutePartition,
    /// The topic's partition.
    pub input: PartitionId,
    /// How long its IDs are remembered.
    pub retention: Duration,
    /// Where its actor tells how far it has read.
    pub figures: Arc<RouteFigures>,
}

/// The inputs of all routes. Filled once they are planned, and again when topics come; outlives the actor.
pub type Inputs = Arc<Lock<Vec<InputFigures>>>;

/// Everything the actor is built from; its parent keeps it to build it again.
#[derive(Clone)]
pub struct LedgerParts {
    /// The fold.
    pub keeper: Arc<Keeper>,
    /// The lane.
    pub lane: Lane,
    /// What is to be folded.
    pub feed: Feed,
    /// The inputs of all routes.
    pub inputs: Inputs,
    /// Bounds and rhythm of the duties.
    pub rules: DutyRules,
    /// The time.
    pub clock: Clock,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Where the effects of orders go.
    pub effects: Outlet,
}

/// See the module.
pub struct LedgerActor {
    parts: LedgerParts,
    lifeline: Lifeline,
}

impl LedgerActor {
    /// An actor of these parts.
    pub fn new(parts: LedgerParts, lifeline: Lifeline) -> Self {
        Self { parts, lifeline }
    }
}

/// Something the duties write.
struct Step {
    make: Make,
    done: oneshot::Sender<Result<(), DutyError>>,
}

/// The way of the duties' thread to the actor.
struct Steps(mpsc::Sender<Step>);

impl Writer for Steps {
    fn write(&self, make: Make) -> Result<(), DutyError> {
        let (done, result) = oneshot::channel();
        let ending = |_| DutyError::Ending;
        self.0
            .blocking_send(Step { make, done })
            .map_err(|_| DutyError::Ending)?;
        result.blocking_recv().map_err(ending)?
    }
}

impl LedgerParts {
    /// Folds until the feed ends, and carries out what the duties write in between.
    async fn fold(&self, mut steps: mpsc::Receiver<Step>) -> Result<(), KeeperError> {
        let mut feed = self.feed.0.lock().await;
        // The one before may have fallen between folding and handing on.
        self.effects.hand_on(&self.keeper);
        loop {
            tokio::select! {
                more = feed.wait() => match more {
                    false => return Ok(()),
                    true => {
                        let pause = match feed.fold(&self.keeper, &self.lane, &self.metrics) {
                            Ok(()) => PACE,
                            Err(error) if error.passes() => STORE_AGAIN,
                            Err(error) => return Err(error),
                        };
                        self.after_fold();
                        tokio::time::sleep(pause).await;
                    }
                },
                Some(step) = steps.recv() => {
                    let result = self.step(step.make, &mut feed).await;
                    self.after_fold();
                    match result {
                        Err(DutyError::Keeper(error)) if !error.passes() => return Err(error),
                        _ => {}
                    }
                    // The duties may have ended meanwhile.
                    let _ = step.done.send(result);
                }
            }
        }
    }

    /// Hands on what follows from what was folded, once look-ups know it. No attempt may start while the store takes
    /// nothing more: what comes of it could not be looked up.
    fn after_fold(&self) {
        let why = self.keeper.refuses();
        if why.is_none() {
            self.effects.hand_on(&self.keeper);
        }
        if why.is_none() && !self.lane.is_refused() {
            return;
        }
        if let Some(why) = &why
            && let Some(suppressed) = REFUSED.speak("")
        {
            tracing::error!(
                event = "dedup_refuses",
                why,
                suppressed,
                "the store of delivered IDs takes nothing more: no attempt starts until it does"
            );
        }
        if why.is_none() {
            tracing::info!(
                event = "dedup_takes_again",
                "the store of delivered IDs takes records again; attempts go on"
            );
        }
        self.lane.refuse(why);
    }

    /// Holds the lane, folds what is still on its way, and writes what is then made.
    async fn step(&self, make: Make, feed: &mut InHand) -> Result<(), DutyError> {
        // A store that takes nothing is owed no more than it is: the duty comes again.
        self.keeper.catch_up()?;
        let hold = self.lane.hold();
        while self.lane.in_log() > 0 {
            // Every batch that was handed to the log is answered, or the log has failed and the process ends.
            if !feed.wait().await {
                return Err(DutyError::Ending);
            }
            feed.fold(&self.keeper, &self.lane, &self.metrics)?;
        }
        let folded = self.keeper.with_state(|state| state.next);
        let end = self.lane.log().bounds(self.lane.partition())?.next;
        if folded != end {
            return Err(DutyError::Gap { end, folded });
        }
        let bodies = make(&self.keeper)?;
        let mut written = Vec::new();
        let result = hold.write(bodies, &mut written).await;
        for (base, entries) in written {
            match self.keeper.fold_entries(base, &entries) {
                // They are folded, and the store is owed what they say.
                Err(error) if error.passes() => {}
                done => done?,
            }
        }
        drop(hold);
        Ok(result?)
    }

    fn inputs(&self) -> Vec<Input> {
        let inputs = self.inputs.lock();
        let input = |i: &InputFigures| Input {
            at: i.at,
            input: i.input,
            retention: i.retention,
            looked_up: i.figures.read.load(Ordering::Relaxed),
        };
        inputs.iter().map(input).collect()
    }
}

static TOLD: Every = Every::new(Duration::from_secs(30));
static REFUSED: Every = Every::new(Duration::from_secs(30));

/// Does what is due, again and again, until the actor ends.
async fn on_duty(parts: LedgerParts, steps: mpsc::Sender<Step>) -> Result<(), KeeperError> {
    let (keeper, lane) = (parts.keeper.clone(), &parts.lane);
    let mut duties = Duties::new(keeper, lane.log().clone(), lane.partition(), parts.rules.clone());
    loop {
        tokio::time::sleep(DUTIES_EVERY).await;
        let (inputs, now, writer) = (parts.inputs(), parts.clock.now(), Steps(steps.clone()));
        let turn = tokio::task::spawn_blocking(move || {
            let result = duties.turn(now, &inputs, &writer);
            (duties, result)
        });
        // A panic of a duty ends this actor: it is built again, with new duties.
        let Ok((same, result)) = turn.await else {
            return Err(KeeperError::Duties);
        };
        duties = same;
        match result {
            Ok(()) => {}
            Err(DutyError::Ending) => return Ok(()),
            Err(DutyError::Keeper(error)) if !error.passes() => return Err(error),
            Err(error) => {
                parts.metrics.duty_failures.inc();
                if let Some(suppressed) = TOLD.speak("") {
                    let cause = match &error {
                        DutyError::Keeper(error) => Some(error.why()),
                        error => std::error::Error::source(error).map(ToString::to_string),
                    };
                    tracing::warn!(event = "duty_failed", %error, cause, suppressed, "a duty of the ledger is tried again");
                }
            }
        }
    }
}

impl Actor for LedgerActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        let (steps, receiver) = mpsc::channel(1);
        let parts = self.parts.clone();
        let work = async move {
            tokio::select! {
                folded = parts.fold(receiver) => folded,
                Err(error) = on_duty(parts.clone(), steps) => Err(error),
            }
        };
        let ended = work
            .into_actor(self)
            .map(|result: Result<(), KeeperError>, act, ctx| {
                match result {
                    Ok(()) => act.lifeline.orderly(),
                    Err(error) => act.lifeline.failed(in_full(&error)),
                }
                ctx.stop();
            });
        ctx.spawn(ended);
    }
}

#[cfg(test)]
mod tests {
    use super::super::lifeline::End;
    use super::*;
    use crate::config::Config;
    use crate::core::ledger::entry::{Body, Genesis, Intent, Outcome, OutcomeKind};
    use crate::core::ledger::fold::LaneState;
    use crate::core::types::{KeyHash, LifeId, MessageId, RouteId, Tenure, Time};
    use crate::dedup::{DedupOptions, DedupStore};
    use crate::ledger::lane::LanePort;
    use crate::log::embedded::{EmbeddedLog, EmbeddedOptions};
    use crate::log::{Log, TopicSpec};

    const AT: RoutePartition = RoutePartition {
        route: RouteId(5),
        partition: 0,
    };

    fn id(n: u64) -> MessageId {
        let mut id = [7; 16];
        id[..8].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        MessageId(id)
    }

    fn intent(n: u64) -> Body {
        Body::Intent(Intent {
            at: AT,
            id: id(n),
            key: KeyHash(n),
            offset: n,
            round: 1,
            attempt: 1,
            first_try: Time(1_790_000_000_000_000),
            slot: Time(1_790_000_000_000_000),
            budgets: Default::default(),
            life: LifeId(1),
            lease_ms: 1_000,
            timeout_ms: 1_000,
        })
    }

    fn delivered(n: u64) -> Body {
        Body::Outcome(Outcome {
            at: AT,
            id: id(n),
            offset: n,
            round: 1,
            attempts: 1,
            when: Time(1_790_000_000_000_000),
            life: LifeId(1),
            status: 200,
            kind: OutcomeKind::Delivered {
                readable: bytes::Bytes::new(),
            },
        })
    }

    /// The store of delivered IDs cannot write: intents are refused, outcomes become durable, the actor lives. Once it
    /// can write again all that was held back is folded, and attempts go on.
    #[test]
    fn a_store_that_takes_nothing_stops_attempts_and_nothing_else() {
        let scene = async {
            let dir = tempfile::tempdir().expect("a folder");
            let log = EmbeddedLog::open(&dir.path().join("log"), EmbeddedOptions::small()).expect("opens");
            let log: Arc<dyn Log> = Arc::new(log);
            let spec = TopicSpec {
                partitions: 1,
                retention: None,
                retention_bytes: None,
            };
            let partition = log.create_topic("__ledger", &spec).expect("made").partitions[0];
            let options = DedupOptions {
                memtable: 16,
                cache: 1 << 20,
                ..DedupOptions::new(7)
            };
            let (store, _) = DedupStore::open(&dir.path().join("dedup"), options).expect("opens");
            // Where a file stands no folder of a bucket can be made.
            let blocked = dir.path().join("dedup/bucket-0");
            std::fs::write(&blocked, b"").expect("written");
            let ledger = dir.path().join("ledger");
            let keeper = Arc::new(Keeper::new(LaneState::default(), 0, store, ledger, 7));
            let fatal = Box::new(|error| panic!("the log failed: {error}"));
            let clock = Clock::start();
            let (lane, feed) = Lane::new(log, partition, Tenure(0), LifeId(1), clock, fatal);
            let (effects, _inlet) = super::super::effects::channel();
            let parts = LedgerParts {
                keeper: keeper.clone(),
                lane: lane.clone(),
                feed: Feed::new(feed),
                inputs: Inputs::default(),
                rules: DutyRules::of(&Config::for_test("data")),
                clock,
                metrics: Arc::new(Metrics::new()),
                effects,
            };
            let ended: Arc<Lock<Option<End>>> = Arc::default();
            let end = ended.clone();
            LedgerActor::new(parts, Lifeline::new(move |e| *end.lock() = Some(e))).start();
            let port = LanePort::open(lane.clone());
            let again = || tokio::time::sleep(Duration::from_millis(1));
            port.outcome(Body::Genesis(Genesis {
                ledger: 7,
                group: "g".into(),
                lanes: 1,
                lane: 0,
                recipe: 1,
            }));
            // These are on the wire when the store fills up.
            for n in 0..5 {
                let number = port.intent(intent(n));
                port.durable(number).await.expect("taken");
            }
            let mut sent = 5;
            loop {
                let number = port.intent(intent(sent));
                if let Err(why) = port.durable(number).await {
                    assert!(why.to_string().contains("dedup store"), "{why}");
                    break;
                }
                port.outcome(delivered(sent));
                sent += 1;
                again().await;
            }
            // More fit in, unless a duty asks the store for a sync before.
            assert!(sent > 5 + 16, "one table at least took {sent}");
            assert!(lane.is_refused() && keeper.refuses().is_some());
            (0..5).for_each(|n| _ = port.outcome(delivered(n)));
            while port.outcomes_durable() < port.last_outcome() {
                again().await;
            }
            assert!(lane.backlog() > 0, "they wait to be folded");
            assert_eq!(*ended.lock(), None);
            std::fs::remove_file(&blocked).expect("removed");
            while lane.backlog() > 0 || lane.is_refused() {
                again().await;
            }
            assert_eq!(keeper.refuses(), None);
            let number = port.intent(intent(sent + 1));
            port.durable(number).await.expect("attempts go on");
            let ids: Vec<MessageId> = (0..sent).map(id).collect();
            let mut found = Vec::new();
            keeper.look_up(AT, &ids, &mut found).expect("answers");
            assert!(found.iter().all(Option::is_some));
            assert_eq!(*ended.lock(), None);
        };
        actix_rt::System::new().block_on(async {
            let scene = tokio::time::timeout(Duration::from_secs(120), scene);
            scene.await.expect("it ends");
        });
    }
}
