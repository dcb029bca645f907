//! The desk over a lane in memory: here the lane and its world, beside it the tests by what they are about.

mod listing;
mod names;
mod orders;
mod standing;
mod story;
mod unread;

use super::sources::Wanted;
use super::*;
use crate::api::messages::{DedupStats, MessageRow};
use crate::api::orders::{Confirmed, Expect};
use crate::api::{DedupRow, DedupState, OrderReport, OrderRequest, Page};
use crate::config::{IdSource, KeySource, PartnerConfig, TopicConfig};
use crate::core::ledger::codec;
use crate::core::ledger::entry::*;
use crate::core::ledger::fold::{Effect, Finished, LaneState, MessageState, StoreOp};
use crate::core::message_id::IdScope;
use crate::core::record::{Headers, Record, SOURCE_HEADER};
use crate::core::types::*;
use bytes::Bytes;
use parking_lot::Mutex;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

const AT: RoutePartition = RoutePartition {
    // The hash of `orders`, incarnation 5, to `acme`.
    route: RouteId(0x072a_8ea9_88a2_4e56),
    partition: 0,
};
const NOW: Time = Time::from_millis(1_700_000_000_000);

/// A lane in memory: entries as they would be written, their fold, and the store fed from it.
#[derive(Default)]
struct Lane {
    written: Mutex<Vec<Bytes>>,
    store: Mutex<BTreeMap<(RoutePartition, MessageId), Finished>>,
    topic: Mutex<Vec<Record>>,
    imports: Mutex<Vec<crate::intake::import::Entry>>,
    /// Partitions of the topic.
    partitions: Mutex<u32>,
    /// What the topic's retention has left of each partition begins here.
    begins: Mutex<Offset>,
}

impl Memory for Lane {
    fn get(&self, at: RoutePartition, id: MessageId) -> Result<Option<Finished>, ApiError> {
        Ok(self.store.lock().get(&(at, id)).cloned())
    }
    fn holder(&self, id: MessageId) -> Result<Option<RoutePartition>, ApiError> {
        let store = self.store.lock();
        Ok(store.keys().find(|(_, known)| *known == id).map(|(at, _)| *at))
    }
    fn each(
        &self,
        wanted: &Wanted,
        visit: &mut dyn FnMut(Finished) -> ControlFlow<()>,
    ) -> Result<(), ApiError> {
        for found in self
            .store
            .lock()
            .values()
            .filter(|f| wanted.places.contains(&f.at))
        {
            if visit(found.clone()).is_break() {
                break;
            }
        }
        Ok(())
    }
    fn stats(&self) -> DedupStats {
        DedupStats {
            ids: self.store.lock().len() as u64,
            ..DedupStats::default()
        }
    }
}

impl Entries for Lane {
    fn bounds(&self) -> Result<(Offset, Offset), ApiError> {
        Ok((0, self.written.lock().len() as u64))
    }
    fn read(&self, from: Offset, out: &mut Vec<(Offset, Bytes)>) -> Result<Option<Offset>, ApiError> {
        // Small chunks, so that every scan crosses their edges.
        let written = self.written.lock();
        let to = (from as usize + 3).min(written.len());
        out.extend((from as usize..to).map(|i| (i as u64, written[i].clone())));
        Ok(((to as u64) > from).then_some(to as u64))
    }
    fn entry(&self, at: Offset) -> Result<Option<Entry>, ApiError> {
        Ok(self
            .written
            .lock()
            .get(at as usize)
            .map(|b| codec::decode(b).unwrap()))
    }
    fn record(&self, topic: &str, partition: u32, offset: Offset) -> Option<Record> {
        let topic_matches = topic == "orders" && partition == AT.partition;
        self.topic
            .lock()
            .iter()
            .find(|r| topic_matches && r.offset == offset)
            .cloned()
    }
    fn input_bounds(&self, _: &str, partition: u32) -> Option<(Offset, Offset)> {
        (partition < *self.partitions.lock()).then(|| (*self.begins.lock(), 100))
    }
    fn topics(&self) -> Vec<String> {
        vec!["orders".into()]
    }
    fn topic(&self, name: &str) -> Option<(TopicId, u32)> {
        (name == "orders").then_some((TopicId(5), *self.partitions.lock()))
    }
    fn records(
        &self,
        topic: &str,
        partition: u32,
        from: Offset,
        _: usize,
        out: &mut Vec<Record>,
    ) -> Result<Option<Offset>, ApiError> {
        // One at a time: whoever looks must go on by itself.
        let records = self.topic.lock();
        let of_topic = topic == "orders" && partition == AT.partition;
        let next = records.iter().find(|r| of_topic && r.offset >= from);
        out.extend(next.cloned());
        Ok(next.map(|r| r.offset + 1))
    }
    fn offset_at(&self, _: &str, _: u32, _: Time) -> Option<Offset> {
        Some(0)
    }
    fn imports(&self, name: &str) -> Result<Vec<crate::intake::import::Entry>, ApiError> {
        let imports = self.imports.lock();
        Ok(imports.iter().filter(|i| i.name == name).cloned().collect())
    }
}

struct World {
    lane: Arc<Lane>,
    state: LaneState,
    /// What follows from what was written since this was taken last.
    effects: Vec<Effect>,
    desk: Desk,
}

fn id(n: u8) -> MessageId {
    MessageId([n; 16])
}

fn filter(n: u8) -> Filter {
    Filter::of_id(id(n).to_string())
}

impl Desk {
    /// Both steps of a question at once, where the fold is at hand.
    fn ask(&self, state: &LaneState, query: &Query, now: Time) -> Result<Reply, ApiError> {
        let served = self.served();
        self.answer(&|pick| View::of(state, pick, &served), query, now)
    }
}

impl World {
    /// All lines of an export.
    fn export(&self) -> Vec<String> {
        let pick = Desk::pick_for_query(&Query::DedupStats, NOW).unwrap();
        let view = View::of(&self.state, &pick, &self.desk.served()).unwrap();
        let mut lines = Vec::new();
        let mut take = |line: String| {
            lines.push(line);
            ControlFlow::Continue(())
        };
        (self.desk)
            .export(&view, &Filter::default(), NOW, &mut take)
            .unwrap();
        lines
    }

    /// The same as rows.
    fn exported_rows(&self) -> Vec<DedupRow> {
        let lines = self.export();
        lines
            .iter()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// A folder that no node has run on, but for the topic, of which the first 40 records have left.
    fn fresh() -> Self {
        let mut world = Self::new();
        world.state = LaneState::default();
        world.lane.written.lock().clear();
        world.begin();
        *world.lane.begins.lock() = 40;
        *world.lane.partitions.lock() = 2;
        world
    }

    fn new() -> Self {
        let lane = Arc::new(Lane::default());
        *lane.partitions.lock() = 1;
        let config = Config::for_test("data")
            .with_partner(PartnerConfig {
                mask: vec!["card".into()],
                ..PartnerConfig::new("acme", "http://127.0.0.1:1")
            })
            .with_topic(TopicConfig {
                id: vec![IdSource::Json("/id".into())],
                ..TopicConfig::new("orders", "acme")
            });
        let desk = Desk::new(lane.clone(), lane.clone(), Arc::new(config), &["s3cret".into()]);
        let mut world = Self {
            effects: Vec::new(),
            lane,
            state: LaneState::default(),
            desk,
        };
        world.begin();
        world.write(Body::Route(RouteInfo {
            route: AT.route,
            topic: "orders".into(),
            topic_id: TopicId(5),
            partner: "acme".into(),
        }));
        world.meet(AT.partition);
        world
    }

    /// The ledger knows this partition of the route.
    fn meet(&mut self, partition: u32) -> RoutePartition {
        let at = RoutePartition { partition, ..AT };
        self.write(Body::Position(Position {
            at,
            leader_epoch: 0,
            position: 0,
            finished: Vec::new(),
            high_water: 0,
        }));
        at
    }

    fn begin(&mut self) {
        self.write(Body::Genesis(Genesis {
            ledger: 1,
            group: "embedded".into(),
            lanes: 1,
            lane: 0,
            recipe: 1,
        }));
    }

    fn write(&mut self, body: Body) {
        let entry = Entry {
            tenure: Tenure(0),
            body,
        };
        let mut bytes = Vec::new();
        codec::encode(&entry, &mut bytes);
        let entry = codec::decode(&Bytes::from(bytes.clone())).unwrap();
        let mut ops = Vec::new();
        let mut effects = Vec::new();
        self.state
            .apply_live(self.state.next, &entry, &mut ops, &mut effects)
            .unwrap();
        self.effects.extend(effects.into_iter().map(|(_, effect)| effect));
        self.lane.written.lock().push(bytes.into());
        for op in ops {
            match op {
                StoreOp::Finished(f) => {
                    self.lane.store.lock().insert((f.at, f.id), f);
                }
                StoreOp::Forget { at, id } => {
                    self.lane.store.lock().remove(&(at, id));
                }
            }
        }
    }

    fn intent(&mut self, n: u8, round: u32, attempt: u32) {
        self.write(Body::Intent(Intent {
            at: AT,
            id: id(n),
            key: KeyHash(n.into()),
            offset: n.into(),
            round,
            attempt,
            first_try: NOW,
            slot: NOW,
            budgets: Default::default(),
            life: LifeId(1),
            lease_ms: 10_000,
            timeout_ms: 10_000,
        }));
    }

    fn outcome(&mut self, n: u8, round: u32, attempts: u32, kind: OutcomeKind) {
        let status = match kind {
            OutcomeKind::Delivered { .. } => 200,
            OutcomeKind::Dead(_) => 422,
            _ => 0,
        };
        self.write(Body::Outcome(Outcome {
            at: AT,
            id: id(n),
            offset: n.into(),
            round,
            attempts,
            when: NOW,
            life: LifeId(1),
            status,
            kind,
        }));
    }

    fn kept(n: u8, reason: &str, key: &str) -> Box<Kept> {
        Box::new(Kept {
            key: KeyHash(n.into()),
            record_key: Some(Bytes::from(format!("user-{n}"))),
            timestamp: NOW,
            value: Bytes::from_static(b"{\"card\":\"4111\"}"),
            headers: Headers::encode([
                (SOURCE_HEADER, format!("day.jsonl:{n}").as_bytes()),
                ("auth", b"s3cret"),
            ]),
            readable: format!("order-{n}"),
            idempotency_key: key.into(),
            reason: reason.into(),
            answer: "no".into(),
            first_try: NOW,
            dropped: false,
        })
    }

    fn dead(&mut self, n: u8, reason: &str, key: &str) {
        self.intent(n, 1, 1);
        self.outcome(n, 1, 1, OutcomeKind::Dead(Self::kept(n, reason, key)));
    }

    fn parked(&mut self, n: u8, key: &str) {
        self.intent(n, 1, 1);
        self.outcome(
            n,
            1,
            1,
            OutcomeKind::Parked(Self::kept(n, "timeout: no answer", key)),
        );
    }

    fn delivered(&mut self, n: u8) {
        self.intent(n, 1, 1);
        self.outcome(
            n,
            1,
            1,
            OutcomeKind::Delivered {
                readable: Bytes::from(format!("order-{n}")),
            },
        );
    }

    fn messages(&self, query: &Query) -> Vec<MessageRow> {
        match self.desk.ask(&self.state, query, NOW).unwrap() {
            Reply::Messages(page) => page.rows,
            other => panic!("{other:?}"),
        }
    }

    fn dead_ids(&self, filter: Filter) -> Vec<String> {
        self.messages(&Query::Dead { filter })
            .into_iter()
            .map(|r| r.id)
            .collect()
    }

    fn state_of(&self, n: u8) -> DedupState {
        match self
            .desk
            .ask(&self.state, &Query::DedupGet { filter: filter(n) }, NOW)
            .unwrap()
        {
            Reply::Dedup(Page { rows, .. }) => rows[0].state,
            other => panic!("{other:?}"),
        }
    }

    fn prepare(&self, order: Order) -> Result<Prepared, ApiError> {
        let request = OrderRequest {
            order,
            who: "kim".into(),
            why: "asked".into(),
            dry_run: false,
            expect: None,
        };
        self.prepare_request(&request)
    }

    fn prepare_request(&self, request: &OrderRequest) -> Result<Prepared, ApiError> {
        let view = View::of(
            &self.state,
            &Desk::pick_for_order(&request.order, NOW)?,
            &self.desk.served(),
        )?;
        self.desk.prepare(&view, request, NOW)
    }

    /// Settles and writes all parts, as a lane would.
    fn carry_out(&mut self, prepared: &Prepared) -> (Vec<Effect>, OrderReport) {
        let mut report = prepared.report.clone();
        self.effects.clear();
        let met = prepared.introductions(&self.state);
        met.into_iter().for_each(|body| self.write(body));
        for part in prepared.parts() {
            let plan = prepared.settle(&self.state, NOW, part);
            report.add(&plan.report(&[]));
            plan.entries.into_iter().for_each(|body| self.write(body));
        }
        (std::mem::take(&mut self.effects), report)
    }

    fn order(&mut self, order: Order) -> (Vec<Effect>, OrderReport) {
        let prepared = self.prepare(order).unwrap();
        self.carry_out(&prepared)
    }
}

fn replay(filter: Filter) -> Order {
    Order::Replay {
        filter,
        skipped: false,
    }
}

#[test]
fn the_route_of_these_tests_is_the_one_that_is_served() {
    let route = crate::core::message_id::route_id("orders", TopicId(5), "acme");
    assert_eq!(AT.route, route, "{:#x}", route.0);
}
