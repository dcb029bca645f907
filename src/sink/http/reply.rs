//! What comes of a request: an answer as it was heard, or none.

use super::answer::{Heard, Oddity};
use super::connection::BodyEnd;
use super::failure::Failure;
use super::unsettled::Unsettled;
use http::HeaderMap;

/// An answer as it was heard.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    /// Empty where nobody needs it.
    pub(super) body: Vec<u8>,
    pub(super) end: BodyEnd,
    pub(super) odd: Option<Oddity>,
}

/// What came of an exchange.
pub(super) enum Outcome {
    Heard(Reply),
    /// Heard; whether it answers this request is known a little later.
    Unsettled(Reply, Box<Unsettled>),
    Stopped,
    NeverWritten(Failure),
    Failed(Failure),
}

impl Reply {
    pub(super) fn heard(&self) -> Heard<'_> {
        Heard {
            status: self.status,
            headers: &self.headers,
            body: &self.body,
            end: self.end,
            odd: self.odd.as_ref(),
        }
    }
}
