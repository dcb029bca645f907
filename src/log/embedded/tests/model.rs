//! The log against a simple model: any sequence of batches, transactions, trims, deletions, retention and
//! reopening, the latter also on a copy of the files as a kill leaves them.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
enum Op {
    /// Records (partition, size) in one batch.
    Append(Vec<(usize, u16)>),
    /// Parts of a transaction, and whether it is committed.
    Transaction(Vec<Vec<(usize, u16)>>, bool),
    /// Trims a partition to a share of what is in it.
    Trim(usize, u8),
    Retention,
    Delete(usize),
    Reopen {
        killed: bool,
    },
}

/// Partitions in all: three topics of two.
const PARTITIONS: usize = 6;

fn op() -> impl Strategy<Value = Op> {
    let records = || prop::collection::vec((0..PARTITIONS, 0u16..1200), 1..4);
    prop_oneof![
        8 => records().prop_map(Op::Append),
        2 => (prop::collection::vec(records(), 1..5), any::<bool>()).prop_map(|(p, c)| Op::Transaction(p, c)),
        3 => (0..PARTITIONS, any::<u8>()).prop_map(|(p, share)| Op::Trim(p, share)),
        2 => Just(Op::Retention),
        1 => (0..PARTITIONS / 2).prop_map(Op::Delete),
        2 => any::<bool>().prop_map(|killed| Op::Reopen { killed }),
    ]
}

/// Records of one partition, as they must be: first offset, and numbers from there on.
#[derive(Clone, Debug, Default, PartialEq)]
struct Expected {
    first: u64,
    records: Vec<u64>,
}

struct Bench {
    dir: tempfile::TempDir,
    log: EmbeddedLog,
    expected: BTreeMap<usize, Expected>,
    next: u64,
}

impl Bench {
    fn new() -> Self {
        let dir = folder();
        let log = open(dir.path(), &tiny()).expect("opens");
        let mut bench = Self {
            dir,
            log,
            expected: BTreeMap::new(),
            next: 0,
        };
        (0..PARTITIONS / 2).for_each(|t| bench.make(t));
        bench
    }

    fn make(&mut self, topic: usize) {
        self.log
            .create_topic(&format!("t{topic}"), &spec(2))
            .expect("made");
        for p in 0..2 {
            self.expected.insert(topic * 2 + p, Expected::default());
        }
    }

    fn partition(&self, p: usize) -> PartitionId {
        self.log.topic(&format!("t{}", p / 2)).expect("there").partitions[p % 2]
    }

    /// A batch, and what it adds to each partition.
    fn batch(&mut self, records: &[(usize, u16)]) -> (Batch, Vec<(usize, u64)>) {
        let (mut batch, mut added) = (Batch::new(), Vec::new());
        for (p, size) in records {
            batch.push(
                self.partition(*p),
                Time(self.next),
                None,
                &value(self.next, usize::from(*size)),
                b"",
            );
            added.push((*p, self.next));
            self.next += 1;
        }
        (batch, added)
    }

    fn take(&mut self, added: Vec<(usize, u64)>) {
        for (p, n) in added {
            self.expected.get_mut(&p).expect("there").records.push(n);
        }
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Append(records) => {
                let (mut batch, added) = self.batch(records);
                batch.commit_offset("g", self.partition(0), self.next);
                append(&self.log, batch).expect("taken");
                self.take(added);
            }
            Op::Transaction(parts, commit) => {
                let mut tx = self.log.begin().expect("begun");
                let mut all = Vec::new();
                for part in parts {
                    let (batch, added) = self.batch(part);
                    tx.append(batch).expect("taken");
                    all.extend(added);
                    // Something else in between.
                    let (batch, added) = self.batch(&part[..1]);
                    append(&self.log, batch).expect("taken");
                    self.take(added);
                }
                if *commit {
                    tx.commit(Batch::new()).expect("committed");
                    self.take(all);
                }
            }
            Op::Trim(p, share) => {
                let held = self.expected.get_mut(p).expect("there");
                let n = held.records.len() * usize::from(*share) / 255;
                held.records.drain(..n);
                held.first += n as u64;
                let first = held.first;
                self.log.trim(self.partition(*p), first).expect("trimmed");
            }
            Op::Retention => (0..3).for_each(|_| self.log.run_retention().expect("works")),
            Op::Delete(topic) => {
                self.log.delete_topic(&format!("t{topic}")).expect("deleted");
                self.make(*topic);
            }
            Op::Reopen { killed } => {
                let dir = match killed {
                    true => Some(super::killed(&self.log)),
                    false => None,
                };
                self.log.close().expect("closed");
                if let Some(dir) = dir {
                    self.dir = dir;
                }
                self.log = open(self.dir.path(), &tiny()).expect("opens");
            }
        }
    }

    fn check(&self) {
        for (p, expected) in &self.expected {
            let id = self.partition(*p);
            let bounds = self.log.bounds(id).expect("there");
            let found = Expected {
                first: bounds.first,
                records: numbers(&self.log, id, bounds.first),
            };
            assert_eq!(&found, expected, "partition {p}");
            assert_eq!(bounds.next, expected.first + expected.records.len() as u64);
        }
    }
}

/// Cases; the long run sets SLUICEGATE_LOG_CASES.
fn cases() -> u32 {
    let given = std::env::var("SLUICEGATE_LOG_CASES")
        .ok()
        .and_then(|n| n.parse().ok());
    given.unwrap_or(48)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 2000, ..ProptestConfig::default() })]
    #[test]
    fn agrees_with_the_model(ops in prop::collection::vec(op(), 1..60)) {
        let mut bench = Bench::new();
        for op in &ops {
            bench.apply(op);
            if !matches!(op, Op::Append(_)) {
                bench.check();
            }
        }
        bench.apply(&Op::Reopen { killed: false });
        bench.check();
    }
}
