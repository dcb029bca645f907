//! Redirects: where an answer sends a message on to, what goes along, and what an answer behind one means
//! ([`crate::core::redirect`] decides, decision 0008).

use super::HttpSink;
use super::answer::{self, unanswered};
use super::origin::{Origin, Target};
use super::reply::Reply;
use super::request::{self, Request};
use crate::core::redirect::{self, Step};
use crate::sink::{Answer, Delivery, DoubtCause, Moved, PrepareError, Sent, Verdict};
use http::header::{self, HeaderName};

impl HttpSink {
    /// Makes the request of an attempt that the partner sent on to another address.
    ///
    /// To another origin than the configuration names nothing goes along that tells who is asking: no header of the
    /// configuration, no user of the URL.
    ///
    /// # Errors
    /// As [`HttpSink::prepare`].
    pub fn prepare_moved(&self, d: &Delivery, moved: &Moved) -> Result<Request, PrepareError> {
        static EVERYWHERE: [HeaderName; 6] = [
            header::CONTENT_TYPE,
            header::CONTENT_LENGTH,
            header::USER_AGENT,
            header::ACCEPT_ENCODING,
            request::IDEMPOTENCY_KEY,
            request::TRACEPARENT,
        ];
        let mut request = self.prepare(d)?;
        let target = Target::parse(&moved.to)
            .map_err(|e| PrepareError(self.masker().text(&format!("redirect: {e}"))))?;
        if target.origin != request.origin {
            let all = std::mem::take(request.form.message_mut().headers_mut());
            let kept = EVERYWHERE
                .iter()
                .filter_map(|name| Some((name.clone(), all.get(name)?.clone())));
            request
                .form
                .message_mut()
                .headers_mut()
                .extend(kept.collect::<Vec<_>>());
            request
                .form
                .message_mut()
                .headers_mut()
                .insert(header::HOST, target.host);
            request.origin = target.origin;
        }
        *request.form.message_mut().uri_mut() = target.path;
        request.moved = Some(Box::new(moved.clone()));
        Ok(request)
    }

    /// Where a redirect leads, if it is to be followed; none where a verdict rule says what it means.
    ///
    /// # Errors
    /// Why it is not followed.
    pub(super) fn step(
        &self,
        reply: &Reply,
        from: &str,
        origin: &Origin,
        safe: bool,
        moved: Option<&Moved>,
    ) -> Result<Option<Moved>, &'static str> {
        if reply.odd.is_some() || !self.reading.is_silent(&reply.heard()) {
            return Ok(None);
        }
        let location = reply
            .headers
            .get(header::LOCATION)
            .and_then(|l| std::str::from_utf8(l.as_bytes()).ok());
        let to = location.and_then(|l| url::Url::parse(from).ok()?.join(l.trim()).ok());
        let target = to.as_ref().and_then(|to| Target::parse(to.as_str()).ok());
        let (Some(mut to), Some(target)) = (to, target) else {
            return Err("its location is no URL that can be requested");
        };
        let may_go = *target.origin == *origin || self.redirect_to.contains(&target.origin);
        let followed = moved.map_or(0, |m| m.followed);
        let unsure = match redirect::step(reply.status, safe, followed, self.redirects, may_go) {
            Step::Follow => moved.and_then(|m| m.unsure),
            Step::FollowUnsure => moved.and_then(|m| m.unsure).or(Some(reply.status)),
            Step::Stay(why) => return Err(why),
        };
        // A user that the answer names is not ours.
        if to.set_username("").is_err() || to.set_password(None).is_err() {
            return Err("its location is no URL that can be requested");
        }
        to.set_fragment(None);
        Ok(Some(Moved {
            to: to.into(),
            followed: followed + 1,
            unsure,
        }))
    }

    pub(super) fn sent_on(&self, reply: &Reply, moved: Moved) -> Sent {
        let mut answer = self
            .reading
            .answer(&reply.heard(), || self.clock.now(), &self.masker());
        let (verdict, word) = match moved.unsure {
            Some(_) => (Verdict::Unknown(DoubtCause::Gateway), "unknown"),
            None => (Verdict::TryLater, "later"),
        };
        answer.verdict = verdict;
        if let Some(detail) = &mut answer.detail {
            let why = format!("{word}: {} sent on to {}", reply.status, moved.to);
            detail.reason = unanswered(verdict, &why, &self.masker())
                .detail
                .unwrap_or_default()
                .reason;
        }
        Sent::Moved(answer, Box::new(moved))
    }
}

/// What an answer means that came behind a redirect: where the first address may have taken the request, only a
/// success says what became of it.
pub(super) fn behind(moved: Option<&Moved>, mut answer: Answer) -> Answer {
    let Some(moved) = moved else { return answer };
    if answer.verdict == Verdict::Delivered {
        return answer;
    }
    if let Some(status) = moved.unsure {
        answer.verdict = Verdict::Unknown(DoubtCause::Gateway);
        if let Some(detail) = &mut answer.detail {
            let why = format!(
                "unknown: behind a {status}, which does not say that it was not taken: {}",
                detail.reason
            );
            detail.reason = answer::cut_to(why, answer::REASON);
        }
    } else if let Some(detail) = &mut answer.detail {
        let why = format!("{} (behind {} redirects)", detail.reason, moved.followed);
        detail.reason = answer::cut_to(why, answer::REASON);
    }
    answer
}
