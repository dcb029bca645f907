//! The look-up for `doubt = "verify"`: asks the partner whether it has a message, and reads the answer.

use super::answer::{Heard, Oddity};
use super::body;
use super::connection::BodyEnd;
use super::error::SinkError;
use super::failure::Failure;
use super::pace::pace;
use super::reply::{Outcome, Reply};
use super::request::{PlanConfig, RequestPlan};
use super::{Connection, HttpSink, Request};
use crate::config::model::{PartnerConfig, VerifyConfig};
use crate::core::expr::{Expr, Vocabulary};
use crate::sink::secrets::Secrets;
use crate::sink::{Asked, Delivery, Gate, Verified};
use std::time::Duration;

/// A look-up, compiled.
pub(super) struct LookUp {
    plan: RequestPlan,
    delivered: Expr,
    never_seen: Expr,
    timeout: Duration,
}

impl LookUp {
    pub(super) fn try_new(
        partner: &PartnerConfig,
        config: &VerifyConfig,
        secrets: &Secrets,
    ) -> Result<Self, SinkError> {
        let plan = PlanConfig {
            partner: &partner.name,
            url: &config.url,
            method: &config.method,
            headers: &config.headers,
            body: None,
            value_is_body: false,
            same_body: false,
            idempotency_key: false,
            traceparent: partner.traceparent,
        };
        let expr = |part, text: &str| {
            Expr::compile(text, Vocabulary::Answer).map_err(|source| SinkError::Verify { part, source })
        };
        Ok(Self {
            plan: RequestPlan::try_new(&plan, secrets)?,
            delivered: expr("delivered", &config.delivered)?,
            never_seen: expr("never_seen", &config.never_seen)?,
            timeout: config.timeout,
        })
    }
}

impl HttpSink {
    /// The request that asks where a message in doubt stands.
    ///
    /// # Errors
    /// There is none: what that means for the message.
    pub fn look_up(&self, d: &Delivery) -> Result<Request, Verified> {
        let Some(look_up) = &self.look_up else {
            return Err(Verified::Unclear("verify: no look-up is configured".to_owned()));
        };
        let unclear = |e| Verified::Unclear(self.masker().text(&format!("verify: {e}")));
        look_up.plan.prepare(d).map_err(unclear)
    }

    /// Asks the partner where a message in doubt stands. Any answer but the two that are configured, and those that
    /// mean "not now", parks.
    pub async fn ask(&self, connection: Connection, request: Request, gate: Gate<'_>) -> Asked {
        let Some(look_up) = &self.look_up else {
            return Asked::Stopped;
        };
        let unreached = |failure: Failure| Asked::Answered {
            verified: Verified::AskAgain(self.masker().text(&format!("verify: {failure}"))),
            reached: false,
            pace: None,
        };
        let exchange = self.exchange(connection, request, gate, look_up.timeout, |_| true);
        let reply = match exchange.await {
            Outcome::Heard(reply) => reply,
            Outcome::Unsettled(mut reply, unsettled) => {
                reply.odd = unsettled.settled().await.map(Oddity::Stray);
                reply
            }
            Outcome::Stopped => return Asked::Stopped,
            Outcome::NeverWritten(failure) | Outcome::Failed(failure) => return unreached(failure),
        };
        Asked::Answered {
            reached: reply.status < 500,
            pace: pace(
                &reply.headers,
                reply.status,
                || self.clock.now(),
                self.reading.heed,
            ),
            verified: self.verified(look_up, &reply),
        }
    }

    /// One look-up from its request to what it says, at once.
    #[cfg(test)]
    pub(super) async fn verify(&self, d: &Delivery) -> Verified {
        let request = match self.look_up(d) {
            Ok(request) => request,
            Err(verified) => return verified,
        };
        let connection = match self.connect(&request).await {
            Ok(connection) => connection,
            Err(answer) => return Verified::AskAgain(answer.detail.unwrap_or_default().reason),
        };
        match self.ask(connection, request, &mut || true).await {
            Asked::Answered { verified, .. } => verified,
            Asked::Stopped => Verified::Unclear("stopped".to_owned()),
        }
    }

    fn verified(&self, look_up: &LookUp, reply: &Reply) -> Verified {
        let masker = self.masker();
        let again = |why: String| Verified::AskAgain(masker.text(&format!("verify: {why}")));
        if let Some(Oddity::Stray(why)) = &reply.odd {
            return again(format!("{}, {}", reply.status, why.words()));
        }
        if (300..400).contains(&reply.status) {
            // Where it leads is not the partner's word on this message: a page to log in answers 200 as well.
            let why = format!(
                "verify: {}, a redirect, which never settles a doubt",
                reply.status
            );
            return Verified::Unclear(masker.text(&why));
        }
        let text = body::read(
            &reply.headers,
            &reply.body,
            reply.end,
            self.reading.answer_limit,
            true,
        );
        let heard = Heard {
            status: reply.status,
            headers: &reply.headers,
            body: &text.bytes,
            end: reply.end,
            odd: reply.odd.as_ref(),
        };
        let delivered = look_up.delivered.decide(&heard, text.legible);
        let never_seen = look_up.never_seen.decide(&heard, text.legible);
        match (delivered, never_seen) {
            (Some(true), Some(false)) => Verified::Delivered,
            (Some(false), Some(true)) => Verified::NeverSeen,
            (Some(true), Some(true)) => Verified::Unclear(format!(
                "verify: {} matches both `delivered` and `never_seen`",
                reply.status
            )),
            (Some(false), Some(false)) if not_now(reply.status) => {
                again(format!("the look-up answered {}", reply.status))
            }
            (Some(false), Some(false)) => Verified::Unclear(masker.text(&format!(
                "verify: {} matches neither `delivered` nor `never_seen`: {}",
                reply.status,
                super::answer::first_words(&text.bytes)
            ))),
            _ if reply.end == BodyEnd::Cut => again(format!("{}, cut off before its end", reply.status)),
            _ if not_now(reply.status) => again(format!("the look-up answered {}", reply.status)),
            _ => Verified::Unclear(masker.text(&format!(
                "verify: {}, and its body, which the look-up needs, is {}: {}",
                reply.status,
                text.why,
                super::answer::first_words(&text.bytes)
            ))),
        }
    }
}

/// Whether an answer says that another time may bring another one.
fn not_now(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500..=599)
}
