//! Against real servers on port 0: hyper for those that behave, raw TCP for those that do not.

mod answers;
mod misbehaviour;
mod plain;
mod pool;
mod requests;
mod server;
mod strays;
mod tls;
mod verdicts;
mod ways;

use super::connection::within;
use super::failure::is_shortage;
use super::*;
use crate::config::model::*;
use crate::core::record::{Headers, Record};
use crate::core::types::{MessageId, Time};
use crate::patience;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::time::Instant;

/// A partner with the defaults.
fn partner(url: &str) -> PartnerConfig {
    PartnerConfig {
        method: "POST".into(),
        ..PartnerConfig::new("acme", url)
    }
}

fn delivery(value: &str) -> Delivery {
    Delivery {
        topic: "orders".into(),
        partition: 3,
        record: Record {
            offset: 42,
            timestamp: Time::from_millis(1_700_000_000_123),
            key: Some(bytes::Bytes::from_static(b"user-7")),
            value: bytes::Bytes::copy_from_slice(value.as_bytes()),
            headers: Headers::encode([("X-Kind", &b"test"[..]), ("sluicegate-source", b"day.jsonl:17")]),
        },
        id: MessageId([0xab; 16]),
        readable: bytes::Bytes::from_static(b"order-1"),
        round: 1,
        attempt: 1,
        idempotency_key: None,
    }
}

fn sink(partner: &PartnerConfig) -> HttpSink {
    HttpSink::try_new(partner, &Secrets::none(), Clock::start()).unwrap()
}

/// Runs on a current-thread runtime with a local set, as an arbiter does.
fn run<F: std::future::Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    patience::watch();
    tokio::task::LocalSet::new().block_on(&runtime, patience::within(test))
}

/// One attempt from end to end; also says how often the gate was asked.
async fn attempt(sink: &HttpSink, d: &Delivery) -> (Sent, u32) {
    let request = sink.prepare(d).unwrap();
    let mut asked = 0;
    let connection = match sink.connect(&request).await {
        Ok(connection) => connection,
        Err(answer) => return (Sent::NeverWritten(answer), 0),
    };
    let sent = sink
        .send(connection, request, &mut || {
            asked += 1;
            true
        })
        .await;
    (settled(sent).await, asked)
}

async fn settled(sent: Sent) -> Sent {
    match sent {
        Sent::Settling(_, settling) => Sent::Answered(settling.answer().await),
        sent => sent,
    }
}

async fn answered(sink: &HttpSink, d: &Delivery) -> Answer {
    match attempt(sink, d).await {
        (Sent::Answered(answer), 1) => answer,
        other => panic!("{other:?}"),
    }
}

fn reason(answer: &Answer) -> &str {
    answer.detail.as_ref().map_or("", |d| &d.reason)
}

/// Secrets from files in a folder of their own.
fn secrets(pairs: &[(&str, &str)]) -> (tempfile::TempDir, Secrets) {
    let dir = tempfile::tempdir().unwrap();
    let mut sources = BTreeMap::new();
    for (name, value) in pairs {
        let path = dir.path().join(name);
        std::fs::write(&path, value).unwrap();
        sources.insert((*name).to_owned(), SecretSource::File(path));
    }
    let secrets = Secrets::load(&sources).unwrap();
    (dir, secrets)
}

fn shared<T>(value: T) -> Arc<parking_lot::Mutex<T>> {
    Arc::new(parking_lot::Mutex::new(value))
}
