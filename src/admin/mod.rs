//! The control side of a node: health, metrics, the admin API and a page for people ([`server`]), and the client that
//! commands use ([`client`]).
//!
//! The server lives on a thread and a small runtime of its own: it answers while the actors are busy, and no scrape
//! takes a turn from a delivery (I8). What the node does is behind [`NodeApi`]; this folder knows HTTP and who may
//! ask. It listens on loopback unless a token is set, and never shows a payload that was not masked, unless an
//! operator asks for one message as it stands (I9).
//!
//! A restart of the node loses nothing here: there is no state.

mod ask;
pub mod client;
mod guard;
mod listener;
mod page;
pub mod server;
pub mod upload;

pub use client::{Client, ClientError};
pub use server::{AdminError, AdminOptions, AdminServer, serve};
pub use upload::{Upload, UploadReader};

use crate::api::{
    ApiError, Filter, Health, ImportReport, ImportRequest, NodeIdentity, OrderReport, OrderRequest,
    PartnerTest, Query, Reply, SendReply, SendRequest, Status,
};
use std::future::Future;
use std::pin::Pin;

/// What a method of [`NodeApi`] gives back: an answer in the making.
pub type Answer<T> = Pin<Box<dyn Future<Output = Result<T, ApiError>> + Send>>;

/// Lines of an export on their way. The bound holds the reader back. A channel that closes without
/// [`Exported::End`] is an export that was cut off.
pub type Lines = tokio::sync::mpsc::Receiver<Result<Exported, ApiError>>;

/// A part of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exported {
    /// One JSON object, without its line end.
    Line(String),
    /// There are no more.
    End,
}

/// What a running node answers. The actors behind it live on other threads: every method only sends and waits.
pub trait NodeApi: Send + Sync + 'static {
    /// Which node it is.
    fn identity(&self) -> Answer<NodeIdentity> {
        Box::pin(std::future::ready(Ok(NodeIdentity::default())))
    }
    /// What stands out in the records of topics.
    fn hints(&self) -> Answer<Vec<String>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }
    /// The node as it stands.
    fn status(&self) -> Answer<Status>;
    /// A question about messages, IDs or rules.
    fn query(&self, query: Query) -> Answer<Reply>;
    /// An operator's order; answered when it is durable, or with what it would touch.
    fn order(&self, order: OrderRequest) -> Answer<OrderReport>;
    /// Remembered IDs, one [`crate::api::DedupRow`] a line.
    fn export(&self, filter: Filter) -> Answer<Lines>;
    /// A file into a topic, in one transaction.
    fn import(&self, request: ImportRequest, file: Upload) -> Answer<ImportReport>;
    /// One record into a topic; answered when it is durable.
    fn send(&self, record: SendRequest) -> Answer<SendReply>;
    /// A trial connection to a partner.
    fn test_partner(&self, partner: String) -> Answer<PartnerTest>;
    /// The metrics, as OpenMetrics text.
    fn metrics(&self) -> Answer<String>;
    /// Another log filter while the node runs.
    fn set_log_level(&self, level: String) -> Result<(), ApiError>;
    /// Alive: false only where a restart would help.
    fn health(&self) -> Health;
    /// Ready: lanes owned, store in step, not draining.
    fn ready(&self) -> Health;
}
