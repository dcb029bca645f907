//! The fold against an oracle: many random histories, legal and not, with restarts through a checkpoint anywhere.
//!
//! The oracle keeps naive sets of offsets and, for each message, the list of facts that counted; what a message is
//! follows from reading its list from the start. `SLUICEGATE_FOLD_HISTORIES` sets how many histories are tried,
//! `SLUICEGATE_FOLD_SEED` where to begin (a failure names its seed).

mod maker;
mod oracle;
mod trimmed;

use super::super::codec;
use super::*;
use crate::ledger::checkpoint;
use maker::Maker;
use oracle::Oracle;

/// Where `used` entries begin: a quarter hour before any slot.
const SPAN: Time = Time(1_789_999_200_000_000);

type Name = (RoutePartition, MessageId);
fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(default)
}

fn genesis() -> Entry {
    let genesis = Genesis {
        ledger: 7,
        group: "embedded".into(),
        lanes: 1,
        lane: 0,
        recipe: 1,
    };
    Entry {
        tenure: Tenure(0),
        body: Body::Genesis(genesis),
    }
}

/// One history: the fold agrees with the oracle, and a fold that was restarted from checkpoints at random places
/// agrees with the one that was not. `every`: at every offset, else now and then and at the end.
fn history(seed: u64, every: bool) {
    let mut maker = Maker::new(seed);
    let (mut straight, mut oracle) = (LaneState::default(), Oracle::default());
    let (mut restarted, mut ops) = (LaneState::default(), Vec::new());
    let mut store: BTreeMap<Name, (FinishedState, Offset)> = BTreeMap::new();
    let mut at = 0;
    let length = maker.rng.usize(1..30);
    for n in 0..length {
        let mut entry = if n == 0 { genesis() } else { maker.next(&oracle) };
        let mut repeated = Vec::new();
        if maker.rng.u8(0..8) == 0 {
            // As it comes back from the log.
            let mut bytes = Vec::new();
            codec::encode(&entry, &mut bytes);
            entry = codec::decode(&bytes.into()).unwrap();
        }
        straight.apply(at, &entry, &mut ops).unwrap();
        restarted.apply(at, &entry, &mut repeated).unwrap();
        assert_eq!(ops, repeated);
        for op in ops.drain(..) {
            match op {
                StoreOp::Finished(f) => {
                    assert_eq!(f.ledger, at);
                    store.insert((f.at, f.id), (f.state, f.ledger));
                }
                StoreOp::Forget { at, id } => {
                    store.remove(&(at, id));
                }
            }
        }
        oracle.step(at, &entry);
        if every || n + 1 == length || maker.rng.u8(0..16) == 0 {
            oracle.check(&straight);
            assert_eq!(store, oracle.store, "store");
        }
        if every || maker.rng.u8(0..16) == 0 {
            let bytes = checkpoint::encode(&restarted, 7, 1);
            restarted = checkpoint::decode(&bytes.into(), "memory".into()).unwrap().state;
            assert_eq!(restarted, straight, "from a checkpoint");
        }
        maker.past.push((at, entry));
        // The log may have gaps.
        at += 1 + u64::from(maker.rng.u8(0..10) == 0);
    }
    assert_eq!(restarted, straight, "at the end");
}

fn each(count: u64, what: impl Fn(u64)) {
    let first = from_env("SLUICEGATE_FOLD_SEED", 0);
    for seed in first..first + count {
        if let Err(cause) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| what(seed))) {
            eprintln!("history with SLUICEGATE_FOLD_SEED={seed}");
            std::panic::resume_unwind(cause);
        }
    }
}

#[test]
fn the_fold_agrees_with_the_oracle() {
    each(from_env("SLUICEGATE_FOLD_HISTORIES", 15_000), |seed| {
        history(seed, false)
    });
}

#[test]
fn the_fold_from_a_checkpoint_equals_the_fold_from_the_start_at_every_offset() {
    each(from_env("SLUICEGATE_FOLD_HISTORIES", 15_000) / 20, |seed| {
        history(seed ^ 0x5eed_0000, true)
    });
}
