use super::sources::Wanted;
use super::*;
use crate::api::messages::{DedupStats, MessageRow};
use crate::api::orders::{Confirmed, Expect};
use crate::api::{DedupRow, DedupState, OrderReport, OrderRequest, Page};
use crate::config::{IdSource, KeySource, PartnerConfig, TopicConfig};
use crate::core::ledger::codec;
use crate::core::ledger::entry::*;
use crate::core::ledger::fold::{Finished, MessageState, StoreOp};
use crate::core::message_id::IdScope;
use crate::core::record::{Headers, Record, SOURCE_HEADER};
use crate::core::types::*;
use bytes::Bytes;
use parking_lot::Mutex;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

const AT: RoutePartition = RoutePartition {
    route: RouteId(7),
    partition: 1,
};
const NOW: Time = Time::from_millis(1_700_000_000_000);

/// A lane in memory: entries as they would be written, their fold, and the store fed from it.
#[derive(Default)]
struct Lane {
    written: Mutex<Vec<Bytes>>,
    store: Mutex<BTreeMap<(RoutePartition, MessageId), Finished>>,
    topic: Mutex<Vec<Record>>,
}

impl Memory for Lane {
    fn get(&self, at: RoutePartition, id: MessageId) -> Result<Option<Finished>, ApiError> {
        Ok(self.store.lock().get(&(at, id)).cloned())
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
        (partition <= AT.partition).then_some((0, 100))
    }
}

struct World {
    lane: Arc<Lane>,
    state: LaneState,
    desk: Desk,
}

fn id(n: u8) -> MessageId {
    MessageId([n; 16])
}

fn filter(n: u8) -> Filter {
    Filter::of_id(id(n).to_string())
}

impl World {
    fn new() -> Self {
        let lane = Arc::new(Lane::default());
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
            lane,
            state: LaneState::default(),
            desk,
        };
        world.write(Body::Genesis(Genesis {
            ledger: 1,
            group: "embedded".into(),
            lanes: 1,
            lane: 0,
            recipe: 1,
        }));
        world.write(Body::Route(RouteInfo {
            route: AT.route,
            topic: "orders".into(),
            topic_id: TopicId(5),
            partner: "acme".into(),
        }));
        world.write(Body::Position(Position {
            at: AT,
            leader_epoch: 0,
            position: 0,
            finished: Vec::new(),
            high_water: 0,
        }));
        world
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
        self.state.apply(self.state.next, &entry, &mut ops).unwrap();
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
        let view = View::of(&self.state, &Desk::pick_for_order(&request.order, NOW)?)?;
        self.desk.prepare(&view, request, NOW)
    }

    /// Settles and writes all parts, as a lane would.
    fn carry_out(&mut self, prepared: &Prepared) -> (Vec<Effect>, OrderReport) {
        let mut report = prepared.report.clone();
        let mut effects = Vec::new();
        for part in prepared.parts() {
            let plan = prepared.settle(&self.state, NOW, part);
            plan.entries.into_iter().for_each(|body| self.write(body));
            effects.extend(plan.effects);
            report.add(&plan.report);
        }
        (effects, report)
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
fn a_list_says_all_that_scripts_rely_on() {
    let mut world = World::new();
    world.dead(3, "refused: 422 email", "k3");
    world.parked(4, "k4");
    let rows = world.messages(&Query::Dead {
        filter: Filter::default(),
    });
    assert_eq!(rows.len(), 1);
    let row = &rows[0];
    assert_eq!(
        (
            row.id.as_str(),
            row.partner.as_str(),
            row.topic.as_str(),
            row.partition,
            row.offset
        ),
        ("order-3", "acme", "orders", 1, 3)
    );
    assert_eq!(
        (
            row.key.as_deref(),
            row.reason.as_str(),
            row.attempts,
            row.last_status,
            row.source.as_deref()
        ),
        (
            Some("user-3"),
            "refused: 422 email",
            1,
            Some(422),
            Some("day.jsonl:3")
        )
    );
    assert_eq!(
        world.messages(&Query::Doubts {
            filter: Filter::default()
        })[0]
            .last_status,
        None
    );
}

#[test]
fn filters_hold_together() {
    let mut world = World::new();
    world.dead(1, "refused: 422 email", "k");
    world.dead(2, "refused: 404 user", "k");
    world.dead(3, "too-old: 24h", "k");
    let by = |change: fn(&mut Filter)| {
        let mut filter = Filter::default();
        change(&mut filter);
        filter
    };
    assert_eq!(
        world.dead_ids(by(|f| f.reason = Some("refused".into()))),
        ["order-1", "order-2"]
    );
    assert_eq!(
        world.dead_ids(by(|f| f.reason = Some("/4[0-9]4/".into()))),
        ["order-2"]
    );
    assert_eq!(
        world.dead_ids(by(|f| f.source = Some("day.jsonl:3".into()))),
        ["order-3"]
    );
    assert_eq!(world.dead_ids(by(|f| f.key = Some("user-1".into()))), ["order-1"]);
    assert_eq!(world.dead_ids(by(|f| f.partner = Some("other".into()))), [""; 0]);
    assert_eq!(world.dead_ids(by(|f| f.until = Some("1h".into()))), [""; 0]);
    assert_eq!(world.dead_ids(by(|f| f.since = Some("1h".into()))).len(), 3);
    assert_eq!(world.dead_ids(by(|f| f.limit = Some(2))).len(), 2);
    assert_eq!(
        world.dead_ids(by(|f| (f.limit, f.key) = (Some(1), Some("user-2".into())))),
        ["order-2"]
    );
}

#[test]
fn a_payload_is_hidden_unless_asked_for() {
    let mut world = World::new();
    world.dead(3, "refused: 422", "k3");
    let shown = |raw| match world
        .desk
        .ask(
            &world.state,
            &Query::Show {
                filter: filter(3),
                raw,
            },
            NOW,
        )
        .unwrap()
    {
        Reply::Detail(detail) => serde_json::to_string(&detail).unwrap(),
        other => panic!("{other:?}"),
    };
    assert!(!shown(false).contains("4111") && !shown(false).contains("s3cret"));
    assert!(shown(false).contains("day.jsonl:3"));
    assert!(shown(true).contains("4111") && shown(true).contains("s3cret"));
    let missing = world.desk.ask(
        &world.state,
        &Query::Show {
            filter: filter(9),
            raw: true,
        },
        NOW,
    );
    assert!(matches!(missing, Err(ApiError::NotFound(_))));
}

#[test]
fn a_replay_opens_the_next_round_once() {
    let mut world = World::new();
    world.dead(3, "refused: 422", &id(3).to_string());
    let (first, second) = (
        world.prepare(replay(filter(3))).unwrap(),
        world.prepare(replay(filter(3))).unwrap(),
    );
    let (effects, report) = world.carry_out(&first);
    assert_eq!((report.touched, report.stale), (1, 0));
    let Effect::Opened {
        round,
        idempotency_key,
        payload,
        ..
    } = &effects[0]
    else {
        panic!("{effects:?}")
    };
    assert_eq!(
        (*round, idempotency_key.as_str()),
        (2, format!("{}-2", id(3)).as_str()),
        "a refusal is settled"
    );
    assert!(payload.is_some());
    assert_eq!(world.state_of(3), DedupState::Waiting);
    let (effects, report) = world.carry_out(&second);
    assert_eq!((report.touched, report.stale, effects.len()), (0, 1, 0));
    assert_eq!(world.state.partitions[&AT].messages[&id(3)].round, 2);
}

#[test]
fn the_key_stays_while_an_attempt_may_be_unsettled() {
    let mut world = World::new();
    world.dead(1, "too-old: 24h", "first-key");
    world.parked(2, "doubt-key");
    world.parked(3, "other-key");
    let key = |effects: Vec<Effect>| match effects.into_iter().next() {
        Some(Effect::Opened { idempotency_key, .. }) => idempotency_key,
        other => panic!("{other:?}"),
    };
    assert_eq!(key(world.order(replay(filter(1))).0), "first-key");
    assert_eq!(
        key(world.order(Order::Resend { filter: filter(2) }).0),
        "doubt-key"
    );
    let not_taken = Order::Confirm {
        filter: filter(3),
        outcome: Confirmed::NotTaken,
    };
    assert_eq!(key(world.order(not_taken).0), format!("{}-2", id(3)));
}

#[test]
fn a_confirmed_delivery_is_remembered() {
    let mut world = World::new();
    world.parked(4, "k");
    let (effects, report) = world.order(Order::Confirm {
        filter: filter(4),
        outcome: Confirmed::Delivered,
    });
    assert_eq!(report.touched, 1);
    assert!(effects.contains(&Effect::Settled {
        at: AT,
        id: id(4),
        key: KeyHash(4)
    }));
    assert_eq!(world.state_of(4), DedupState::Delivered);
    assert!(
        world
            .messages(&Query::Doubts {
                filter: Filter::default()
            })
            .is_empty()
    );
    let Body::Command(c) = world.lane.entry(world.state.next - 1).unwrap().unwrap().body else {
        panic!()
    };
    assert_eq!(
        (c.who.as_str(), c.why.as_str(), c.offset),
        ("kim", "asked", 1),
        "who and why are in the ledger"
    );
}

#[test]
fn what_moves_is_left_alone() {
    let mut world = World::new();
    world.intent(1, 1, 1);
    world.parked(2, "k");
    world.delivered(3);
    let forget = |n| Order::Forget { filter: filter(n) };
    let busy = world.prepare(forget(1)).unwrap();
    assert_eq!((busy.items.len(), busy.report.refused), (0, 1));
    let doubt = world.prepare(forget(2)).unwrap();
    assert_eq!((doubt.items.len(), doubt.report.refused), (0, 1));
    assert!(matches!(world.prepare(forget(9)), Err(ApiError::NotFound(_))));
    assert_eq!(
        world
            .prepare(Order::Mark { filter: filter(1) })
            .unwrap()
            .report
            .refused,
        1
    );
    assert_eq!(
        world
            .prepare(Order::Mark { filter: filter(3) })
            .unwrap()
            .report
            .refused,
        1
    );
    // Forgotten between making up and settling: the verdict of a new attempt must not be lost.
    let prepared = world.prepare(forget(3)).unwrap();
    world.lane.store.lock().clear();
    world.intent(3, 1, 1);
    assert_eq!(world.carry_out(&prepared).1.stale, 1);
}

#[test]
fn forgotten_is_absent_and_marked_is_delivered() {
    let mut world = World::new();
    world.delivered(3);
    assert_eq!(world.order(Order::Forget { filter: filter(3) }).1.touched, 1);
    assert_eq!(world.state_of(3), DedupState::Absent);
    let (effects, _) = world.order(Order::Mark { filter: filter(3) });
    assert!(effects.contains(&Effect::Marked { at: AT, id: id(3) }));
    assert_eq!(
        effects.len(),
        2,
        "a text that looks like a hash is marked as both"
    );
    let row = world
        .desk
        .ask(&world.state, &Query::DedupGet { filter: filter(3) }, NOW)
        .unwrap();
    let Reply::Dedup(page) = row else { panic!() };
    assert!(
        page.rows
            .iter()
            .all(|r| r.state == DedupState::Delivered && r.marked)
    );
    assert!(matches!(
        world.prepare(Order::Forget {
            filter: Filter::default()
        }),
        Err(ApiError::Invalid(_))
    ));
}

#[test]
fn an_export_comes_back() {
    let mut world = World::new();
    (1..=5).for_each(|n| world.delivered(n));
    world.dead(6, "refused: 422", "k");
    let view = View::of(
        &world.state,
        &Desk::pick_for_query(&Query::DedupStats, NOW).unwrap(),
    )
    .unwrap();
    let mut rows: Vec<DedupRow> = Vec::new();
    let mut take = |line: String| {
        rows.push(serde_json::from_str(&line).unwrap());
        ControlFlow::Continue(())
    };
    world
        .desk
        .export(&view, &Filter::default(), NOW, &mut take)
        .unwrap();
    assert_eq!(rows.len(), 6);
    for row in &rows {
        // The test's hashes are not made from its texts: then the export names the hash.
        assert_eq!(row.id, *row.hex.as_ref().unwrap());
    }
    rows.push(DedupRow {
        topic: "gone".into(),
        ..rows[0].clone()
    });
    let mut other = World::new();
    other.delivered(1);
    let (_, report) = other.order(Order::DedupImport { rows });
    assert_eq!((report.touched, report.refused), (4, 3), "{:?}", report.notes);
    assert_eq!(other.state_of(5), DedupState::Delivered);
}

#[test]
fn a_dry_run_counts_by_partner_and_reason() {
    let mut world = World::new();
    world.dead(1, "refused: 422 a", "k");
    world.dead(2, "refused: 404 b", "k");
    world.dead(3, "too-old: 24h", "k");
    let mut request = OrderRequest {
        order: replay(Filter::default()),
        who: String::new(),
        why: String::new(),
        dry_run: true,
        expect: None,
    };
    let report = world.prepare_request(&request).unwrap().report;
    assert_eq!((report.touched, report.dry_run), (3, true));
    let groups: Vec<_> = report
        .groups
        .iter()
        .map(|g| (g.partner.as_str(), g.reason.as_str(), g.count))
        .collect();
    assert_eq!(groups, [("acme", "refused", 2), ("acme", "too-old", 1)]);
    request.expect = Some(Expect {
        round: Some(2),
        count: None,
    });
    assert_eq!(world.prepare_request(&request).unwrap().report.stale, 3);
    request.expect = Some(Expect {
        round: None,
        count: Some(2),
    });
    assert!(matches!(world.prepare_request(&request), Err(ApiError::Stale(_))));
}

#[test]
fn rules_and_pauses_are_set_and_undone() {
    let mut world = World::new();
    let add = Order::SkipAdd {
        topic: "orders".into(),
        partner: None,
        key: Some("user-1".into()),
        id: None,
        expires: Some("2h".into()),
    };
    assert_eq!(world.order(add.clone()).0, [Effect::SkipsChanged]);
    world.order(add);
    let rules: Vec<u64> = world.state.skips.keys().copied().collect();
    assert_eq!(rules.len(), 1, "the same rule again is the same rule");
    assert_eq!(
        world.state.skips[&rules[0]].expires,
        Some(NOW.plus(std::time::Duration::from_secs(7_200)))
    );
    let remove = world.prepare(Order::SkipRemove { rule: rules[0] }).unwrap();
    assert_eq!(world.carry_out(&remove).1.touched, 1);
    assert_eq!(
        world.carry_out(&remove).1.stale,
        1,
        "of two orders the first wins"
    );
    assert!(matches!(
        world.prepare(Order::SkipRemove { rule: 99 }),
        Err(ApiError::NotFound(_))
    ));
    world.order(Order::Pause {
        partner: "acme".into(),
    });
    assert_eq!(world.state.paused["acme"].reason, "asked");
    assert_eq!(
        world
            .order(Order::Resume {
                partner: "acme".into()
            })
            .1
            .touched,
        1
    );
    assert_eq!(
        world
            .order(Order::Resume {
                partner: "acme".into()
            })
            .1
            .stale,
        1
    );
    assert!(matches!(
        world.prepare(Order::Pause {
            partner: "acne".into()
        }),
        Err(ApiError::NotFound(_))
    ));
    let route = |partner: &str| Order::ResumeRoute {
        topic: "orders".into(),
        partner: partner.into(),
    };
    assert_eq!(world.order(route("acme")).1.stale, 1);
    assert!(world.prepare(route("other")).is_err());
}

#[test]
fn a_story_is_told_in_order_and_in_ten_lines() {
    let mut world = World::new();
    world.lane.topic.lock().push(Record {
        offset: 3,
        timestamp: NOW,
        key: Some("user-3".into()),
        headers: Headers::encode([(SOURCE_HEADER, &b"day.jsonl:42"[..])]),
        ..Record::default()
    });
    for attempt in 1..=20 {
        world.intent(3, 1, attempt);
        let later = OutcomeKind::Later {
            not_before: NOW,
            first_try: NOW,
            key: KeyHash(3),
            reason: "429 slow down".into(),
        };
        world.outcome(3, 1, attempt, later);
        world.delivered(100 + attempt as u8);
    }
    world.intent(3, 1, 21);
    world.outcome(
        3,
        1,
        21,
        OutcomeKind::Delivered {
            readable: Bytes::new(),
        },
    );
    let story = match world
        .desk
        .ask(&world.state, &Query::Story { filter: filter(3) }, NOW)
        .unwrap()
    {
        Reply::Story(story) => story,
        other => panic!("{other:?}"),
    };
    let [route] = story.routes.as_slice() else {
        panic!("{story:?}")
    };
    assert_eq!(
        (route.state, route.attempts, route.offset),
        (DedupState::Delivered, 21, Some(3))
    );
    assert_eq!(
        (route.source.as_deref(), route.key.as_deref()),
        (Some("day.jsonl:42"), Some("user-3"))
    );
    assert!(route.lines.len() <= 9, "{:?}", route.lines);
    assert_eq!(route.lines[0].event, "appended");
    assert_eq!(route.lines[1].event, "later");
    assert_eq!(route.lines.last().unwrap().event, "delivered");
    let nothing = world
        .desk
        .ask(&world.state, &Query::Story { filter: filter(99) }, NOW)
        .unwrap();
    assert!(matches!(nothing, Reply::Story(s) if s.routes.is_empty()));
}

#[test]
fn an_attempt_without_a_verdict_is_told() {
    let mut world = World::new();
    world.intent(3, 1, 1);
    let Reply::Story(story) = world
        .desk
        .ask(&world.state, &Query::Story { filter: filter(3) }, NOW)
        .unwrap()
    else {
        panic!()
    };
    assert_eq!(story.routes[0].state, DedupState::Intent);
    assert_eq!(story.routes[0].lines[0].event, "attempt");
}

#[derive(Clone, Debug)]
enum Step {
    Dead(u8),
    Parked(u8),
    Delivered(u8),
    Intent(u8),
    Prepare(usize, u8),
    Settle,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let n = 1u8..6;
    let step = prop_oneof![
        n.clone().prop_map(Step::Dead),
        n.clone().prop_map(Step::Parked),
        n.clone().prop_map(Step::Delivered),
        n.clone().prop_map(Step::Intent),
        (0usize..7, n).prop_map(|(verb, n)| Step::Prepare(verb, n)),
        Just(Step::Settle),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    /// Orders made up at any time and settled at any later time, between any verdicts: what is on the wire or
    /// waits is never touched, a round is opened only from the one before, and each effect is what the fold says
    /// once the entries are in it.
    #[test]
    fn orders_never_race_verdicts(steps in steps()) {
        let mut world = World::new();
        let mut made: Vec<Prepared> = Vec::new();
        for step in steps {
            match step {
                Step::Dead(n) => world.outcome(n, 1, 1, OutcomeKind::Dead(World::kept(n, "refused: 4", "k"))),
                Step::Parked(n) => world.outcome(n, 1, 1, OutcomeKind::Parked(World::kept(n, "timeout: x", "k"))),
                Step::Delivered(n) => world.outcome(n, 1, 1, OutcomeKind::Delivered { readable: Bytes::new() }),
                Step::Intent(n) => {
                    let round = world.state.partitions[&AT].messages.get(&id(n)).map_or(1, |m| m.round);
                    world.intent(n, round, 1);
                }
                Step::Prepare(verb, n) => {
                    let filter = filter(n);
                    let order = match verb {
                        0 => replay(filter),
                        1 => Order::Drop { filter },
                        2 => Order::Resend { filter },
                        3 => Order::Confirm { filter, outcome: Confirmed::Delivered },
                        4 => Order::Confirm { filter, outcome: Confirmed::NotTaken },
                        5 => Order::Forget { filter },
                        _ => Order::Mark { filter },
                    };
                    made.extend(world.prepare(order));
                }
                Step::Settle => {
                    let Some(prepared) = made.pop() else { continue };
                    let before = world.state.clone();
                    let (effects, report) = world.carry_out(&prepared);
                    prop_assert_eq!(report.touched + report.stale, prepared.items.len() as u64);
                    for item in &prepared.items {
                        let busy = before.partitions[&AT].messages.get(&item.id).is_some_and(|m| {
                            matches!(m.state, MessageState::Open { .. } | MessageState::Later { .. })
                        });
                        if busy {
                            prop_assert_eq!(&world.state.partitions[&AT].messages[&item.id], &before.partitions[&AT].messages[&item.id]);
                        }
                    }
                    for effect in effects {
                        let messages = &world.state.partitions[&AT].messages;
                        match effect {
                            Effect::Opened { id, round, .. } => {
                                prop_assert_eq!(before.partitions[&AT].messages[&id].round + 1, round);
                                prop_assert_eq!(messages[&id].round, round);
                            }
                            Effect::Marked { id, .. } => {
                                prop_assert!(!messages.contains_key(&id));
                                prop_assert!(world.lane.store.lock().contains_key(&(AT, id)));
                            }
                            Effect::Forgotten { id, .. } => {
                                prop_assert!(!messages.contains_key(&id));
                                prop_assert!(!world.lane.store.lock().contains_key(&(AT, id)));
                            }
                            Effect::Settled { id, .. } => prop_assert!(!messages.contains_key(&id)),
                            other => prop_assert!(false, "{:?}", other),
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn readable_ids_are_found_and_survive_another_incarnation() {
    let scope = |topic_id| IdScope::new("orders", TopicId(topic_id), AT.partition, "acme");
    let delivered = |world: &mut World, id, readable: &str| {
        world.write(Body::Outcome(Outcome {
            at: AT,
            id,
            offset: 1,
            round: 1,
            attempts: 1,
            when: NOW,
            life: LifeId(1),
            status: 200,
            kind: OutcomeKind::Delivered {
                readable: Bytes::from(readable.to_owned()),
            },
        }));
    };
    let state = |world: &World, text: &str| {
        let query = Query::DedupGet {
            filter: Filter::of_id(text),
        };
        match world.desk.ask(&world.state, &query, NOW).unwrap() {
            Reply::Dedup(page) => (page.rows[0].id.clone(), page.rows[0].state),
            other => panic!("{other:?}"),
        }
    };
    let mut old = World::new();
    delivered(&mut old, scope(5).id(&[b"a-1"]), "a-1");
    delivered(&mut old, scope(5).id(&[b"very long, kept in part"]), "very long");
    assert_eq!(state(&old, "a-1"), ("a-1".into(), DedupState::Delivered));
    assert_eq!(state(&old, "a-2"), ("a-2".into(), DedupState::Absent));
    let view = View::of(
        &old.state,
        &Desk::pick_for_query(&Query::DedupStats, NOW).unwrap(),
    )
    .unwrap();
    let mut rows: Vec<DedupRow> = Vec::new();
    let mut take = |line: String| {
        rows.push(serde_json::from_str(&line).unwrap());
        ControlFlow::Continue(())
    };
    old.desk
        .export(&view, &Filter::default(), NOW, &mut take)
        .unwrap();
    let mut new = World::new();
    new.write(Body::Route(RouteInfo {
        route: AT.route,
        topic: "orders".into(),
        topic_id: TopicId(6),
        partner: "acme".into(),
    }));
    let (effects, report) = new.order(Order::DedupImport { rows });
    assert_eq!(
        (report.touched, report.refused),
        (1, 1),
        "a cut ID is not taken for another message"
    );
    assert_eq!(
        effects,
        [Effect::Marked {
            at: AT,
            id: scope(6).id(&[b"a-1"])
        }]
    );
    assert_eq!(state(&new, "a-1").1, DedupState::Delivered);
}

#[test]
fn an_unknown_id_is_marked_wherever_it_may_turn_up() {
    let mut world = World::new();
    let other = RoutePartition { partition: 2, ..AT };
    world.write(Body::Position(Position {
        at: other,
        leader_epoch: 0,
        position: 0,
        finished: Vec::new(),
        high_water: 0,
    }));
    let (effects, report) = world.order(Order::Mark {
        filter: Filter::of_id("a|1"),
    });
    let marked = |at: RoutePartition| {
        let id = IdScope::new("orders", TopicId(5), at.partition, "acme").id(&[b"a|1"]);
        Effect::Marked { at, id }
    };
    assert_eq!(effects, [marked(AT), marked(other)]);
    assert!(report.notes[0].contains("all 2 partitions"), "{:?}", report.notes);
    let hash = world.prepare(Order::Mark { filter: filter(9) });
    let report = hash.unwrap().report;
    assert!(
        report.notes[0].contains("all 2 partitions"),
        "the topic's IDs are texts, also those that look like a hash"
    );
}

#[test]
fn keys_and_payloads_are_masked() {
    let mut world = World::new();
    let config = Config::for_test("data")
        .with_partner(PartnerConfig {
            mask: vec!["card".into()],
            ..PartnerConfig::new("acme", "http://127.0.0.1:1")
        })
        .with_topic(TopicConfig {
            key: KeySource::Json("/card".into()),
            ..TopicConfig::new("orders", "acme")
        });
    world.desk = Desk::new(world.lane.clone(), world.lane.clone(), Arc::new(config), &[]);
    world.dead(3, "refused: 422", "k3");
    let row = &world.messages(&Query::Dead {
        filter: Filter::default(),
    })[0];
    assert_eq!(row.key.as_deref(), Some("***"));
    let by_key = Filter {
        key: Some("4111".into()),
        ..Filter::default()
    };
    assert_eq!(world.dead_ids(by_key).len(), 1, "a filter sees what a list hides");
}

#[test]
fn a_standing_counts_what_is_not_finished() {
    let mut world = World::new();
    world.lane.topic.lock().push(Record {
        offset: 10,
        timestamp: NOW.minus(std::time::Duration::from_secs(5)),
        ..Record::default()
    });
    world.write(Body::Position(Position {
        at: AT,
        leader_epoch: 0,
        position: 10,
        finished: vec![(12, 20)],
        high_water: 20,
    }));
    world.delivered(21);
    world.dead(22, "refused: 422", "k");
    world.parked(23, "k");
    world.intent(24, 1, 1);
    world.order(replay(filter(22)));
    let status = world.desk.status(&Standing::of(&world.state), NOW);
    assert_eq!(
        status.topics.len(),
        AT.partition as usize + 1,
        "all partitions show"
    );
    let t = &status.topics[AT.partition as usize];
    // Of 100 records 10 lie below the position, 8 are in a range, 3 more were finished; one of those waits again.
    assert_eq!((t.position, t.end, t.lag), (10, 100, 100 - 10 - 8 - 3 + 1));
    assert_eq!((t.waiting, t.dead, t.parked, t.delivered), (1, 0, 1, 1));
    assert_eq!(t.oldest_age_ms, Some(5_000));
    let p = &status.partners[0];
    let lag = t.lag + 100 * u64::from(AT.partition);
    assert_eq!((p.partner.as_str(), p.waiting, p.delivered), ("acme", lag, 1));
    assert_eq!(p.eta_s, None, "nothing is known of its pace");
}
