//! A node's folder without a node: what is written for messages that were delivered.

use sluicegate::app::Opened;
use sluicegate::clock::Clock;
use sluicegate::config::{self, Config};
use sluicegate::core::ledger::codec;
use sluicegate::core::ledger::entry::{Body, Entry, Intent, Outcome, OutcomeKind};
use sluicegate::core::types::{KeyHash, MessageId, Offset, RouteId, RoutePartition};
use sluicegate::log::{Appended, Batch, LogError};
use std::error::Error;
use std::ops::Range;
use std::path::Path;
use std::sync::mpsc;

/// Whatever goes wrong in a measurement.
pub type Failure = Box<dyn Error>;

/// The configuration of a node in this folder, with one partner and one topic.
pub fn configuration(data: &Path) -> Result<Config, Failure> {
    let file = data.with_extension("toml");
    let text = format!(
        "[node]\ndata = {data:?}\n[partners.p]\nurl = \"http://127.0.0.1:1/\"\n[topics.t]\npartner = \"p\"\n"
    );
    std::fs::write(&file, text)?;
    match config::load(&[file], std::iter::empty()) {
        Ok(loaded) => Ok(loaded.config),
        Err(findings) => Err(format!("{findings:?}").into()),
    }
}

/// Intent and outcome of a message, as a node writes them.
fn entries(n: u64, clock: Clock) -> [Body; 2] {
    let at = RoutePartition {
        route: RouteId(7),
        partition: (n % 4) as u32,
    };
    let mut id = [0; 16];
    fastrand::Rng::with_seed(n).fill(&mut id);
    let (id, now) = (MessageId(id), clock.now());
    let intent = Intent {
        at,
        id,
        key: KeyHash(n % 10_000),
        offset: n / 4,
        round: 1,
        attempt: 1,
        first_try: now,
        slot: now,
        budgets: Default::default(),
        life: Default::default(),
        lease_ms: 10_000,
        timeout_ms: 10_000,
    };
    let outcome = Outcome {
        at,
        id,
        offset: n / 4,
        round: 1,
        attempts: 1,
        when: now,
        life: Default::default(),
        status: 200,
        kind: OutcomeKind::Delivered {
            readable: format!("message-{n}").into_bytes().into(),
        },
    };
    [Body::Intent(intent), Body::Outcome(outcome)]
}

/// Writes what a node writes of messages that were delivered at the first attempt.
pub struct Feeder<'a> {
    opened: &'a Opened,
    clock: Clock,
}

impl<'a> Feeder<'a> {
    /// Writes into this folder.
    pub fn new(opened: &'a Opened, clock: Clock) -> Self {
        Self { opened, clock }
    }

    /// Appends intent and outcome of these messages in one batch, and waits until it is durable. Returns the offset
    /// of the first entry, and the entries: to be folded.
    pub fn append(&self, messages: Range<u64>) -> Result<(Offset, Vec<Entry>), Failure> {
        let (mut batch, mut held, mut bytes) = (Batch::new(), Vec::new(), Vec::new());
        for body in messages.flat_map(|n| entries(n, self.clock)) {
            let entry = Entry {
                tenure: self.opened.tenure,
                body,
            };
            bytes.clear();
            codec::encode(&entry, &mut bytes);
            batch.push(self.opened.lane, self.clock.now(), None, &bytes, &[]);
            held.push(entry);
        }
        let (tell, told) = mpsc::sync_channel(1);
        let done = move |result: Result<Appended, LogError>| {
            // The receiver waits below.
            let _ = tell.send(result.map(|a| a.bases.first().map_or(0, |b| b.1)));
        };
        self.opened.log.append(batch, Box::new(done));
        Ok((told.recv()??, held))
    }
}
