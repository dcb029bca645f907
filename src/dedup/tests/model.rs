//! The store against a map, whatever the order of steps, kills and reopenings.

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Record(Vec<(u64, u8)>),
    Forget(Vec<u64>),
    Pass(u64),
    Advance(u64),
    Expire,
    CarryAndExpire(u32),
    Sync,
    /// Waits until every bucket that is over is sealed.
    Seal,
    Reopen,
    /// Without a sync: what is after the watermark is fed again.
    Crash,
    Reset,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => proptest::collection::vec((0u64..400, 1u8..7), 1..90).prop_map(Step::Record),
        3 => proptest::collection::vec(0u64..400, 1..20).prop_map(Step::Forget),
        2 => (0u64..2 * HOUR).prop_map(Step::Pass),
        1 => (0u64..2 * HOUR).prop_map(Step::Advance),
        1 => Just(Step::Expire),
        1 => (0u32..3).prop_map(Step::CarryAndExpire),
        2 => Just(Step::Sync),
        2 => Just(Step::Seal),
        1 => Just(Step::Reopen),
        2 => Just(Step::Crash),
        1 => Just(Step::Reset),
    ];
    proptest::collection::vec(step, 1..40)
}

fn state(n: u8) -> FinishedState {
    use FinishedState::*;
    [Delivered, Dead, Skipped, Parked, Marked, Waiting][usize::from(n - 1)]
}

/// What the store must answer: the newest word on each ID, the bucket it stands in, and the ledger behind it all.
#[derive(Default)]
struct Model {
    now: u64,
    span: (u64, u64),
    /// Newest word on each ID with the start of its bucket; none: forgotten.
    words: HashMap<u64, (u64, Option<Finished>)>,
    ledger: Vec<(StoreOp, u64)>,
    /// Next ledger offset.
    next: u64,
}

impl Model {
    fn put(&mut self, n: u64, word: Option<Finished>) {
        if let Some(f) = &word
            && (self.span.1 == 0 || f.when.0 >= self.span.1)
        {
            self.span = (
                (f.when.0 / HOUR * HOUR).max(self.span.1),
                f.when.0 / HOUR * HOUR + HOUR,
            );
        }
        if word.is_some() || self.span.1 != 0 {
            self.words.insert(n, (self.span.0, word));
        }
    }
}

fn run(steps: &[Step]) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Some(open(dir.path()));
    let mut model = Model {
        now: 100 * HOUR,
        ..Model::default()
    };
    for step in steps {
        let s = store.as_ref().unwrap();
        match step {
            Step::Record(items) => {
                let mut ops = Vec::new();
                for &(n, st) in items {
                    let f = finished(n, state(st), model.now, model.next);
                    model.ledger.push((StoreOp::Finished(f.clone()), n));
                    ops.push(StoreOp::Finished(f.clone()));
                    model.put(n, Some(f));
                    model.next += 1;
                }
                s.record(&ops, model.next).unwrap();
            }
            Step::Forget(items) => {
                let mut ops = Vec::new();
                for &n in items {
                    let op = StoreOp::Forget {
                        at: at((n % 3) as u32),
                        id: id(n),
                    };
                    model.ledger.push((op.clone(), n));
                    ops.push(op);
                    model.put(n, None);
                    model.next += 1;
                }
                s.record(&ops, model.next).unwrap();
            }
            Step::Pass(us) => model.now += us,
            Step::Advance(us) => {
                model.now += us;
                s.advance(Time(model.now)).unwrap();
                if model.span.1 != 0 && model.now >= model.span.1 {
                    model.span = (
                        (model.now / HOUR * HOUR).max(model.span.1),
                        model.now / HOUR * HOUR + HOUR,
                    );
                }
            }
            Step::Expire | Step::CarryAndExpire(_) => {
                s.sync().unwrap();
                let Some(oldest) = s.buckets().first().cloned() else {
                    continue;
                };
                let from = oldest.from.0;
                if oldest.present {
                    prop_assert!(matches!(s.expire(oldest.id), Err(DedupError::Present(_))));
                    continue;
                }
                if let Step::CarryAndExpire(partition) = step {
                    s.carry(oldest.id, &[at(*partition)]).unwrap();
                    let present = model.span.0;
                    for (n, (bucket, word)) in &mut model.words {
                        if *bucket == from && word.is_some() && n % 3 == u64::from(*partition) {
                            *bucket = present;
                        }
                    }
                }
                s.expire(oldest.id).unwrap();
                model.words.retain(|_, (bucket, _)| *bucket != from);
            }
            Step::Sync => {
                s.sync().unwrap();
                prop_assert_eq!(s.watermark(), model.next);
            }
            Step::Seal => settle(s),
            Step::Reopen | Step::Crash => {
                if matches!(step, Step::Reopen) {
                    s.sync().unwrap();
                }
                let least = s.watermark();
                drop(store.take());
                let s = store.insert(open(dir.path()));
                let from = s.watermark();
                prop_assert!(
                    from >= least,
                    "durable up to {} was told, {} is there",
                    least,
                    from
                );
                // A bucket that only an advance had begun is not kept: what is fed again may stand in another.
                model.span = s.present_span().map_or((0, 0), |(from, to)| (from.0, to.0));
                let rest: Vec<_> = model.ledger[from as usize..].to_vec();
                for (i, (op, n)) in rest.iter().enumerate() {
                    s.record(std::slice::from_ref(op), from + i as u64 + 1).unwrap();
                    model.put(
                        *n,
                        match op {
                            StoreOp::Finished(f) => Some(f.clone()),
                            StoreOp::Forget { .. } => None,
                        },
                    );
                }
            }
            Step::Reset => {
                s.reset().unwrap();
                prop_assert_eq!(s.watermark(), 0);
                model.words.clear();
                model.ledger.clear();
                model.next = 0;
                model.span = (0, 0);
            }
        }
        let s = store.as_ref().unwrap();
        for partition in 0..3 {
            let numbers: Vec<u64> = (0..400).filter(|n| n % 3 == u64::from(partition)).collect();
            let ids: Vec<_> = numbers.iter().map(|&n| id(n)).collect();
            let mut out = Vec::new();
            s.lookup(at(partition), &ids, &mut out).unwrap();
            for (n, answer) in numbers.iter().zip(out) {
                let expected = model.words.get(n).and_then(|(_, word)| word.clone());
                prop_assert_eq!(&answer, &expected, "ID {} after {:?}", n, step);
            }
        }
        let mut listed = BTreeMap::new();
        s.iterate(&IdFilter::default(), &mut |f| {
            assert!(listed.insert(f.id, f).is_none(), "listed twice");
            ControlFlow::Continue(())
        })
        .unwrap();
        let expected: BTreeMap<_, _> = model
            .words
            .values()
            .filter_map(|(_, word)| word.clone())
            .map(|f| (f.id, f))
            .collect();
        prop_assert_eq!(listed, expected);
    }
    Ok(())
}

#[test]
fn answers_like_a_map() {
    let cases = std::env::var("SLUICEGATE_DEDUP_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(12);
    let config = ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(steps in steps())| run(&steps)?);
}
