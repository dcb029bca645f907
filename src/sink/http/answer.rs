//! From an answer to a verdict: the whole rule in one place, pure.
//!
//! The partner's own rules come first, then the status ([`crate::core::verdict::by_status`], decision 0003). A plain
//! 2xx without rules and without pace headers allocates nothing, and its body need not be kept. Rules and reasons
//! read the body as [`super::body`] makes it; what it means where they cannot is decided in
//! [`crate::core::verdict`] (decision 0008).

use super::body::{self, Text};
use super::connection::BodyEnd;
use super::pace::{Heed, pace};
use crate::core::expr::{Legible, Root, Scope, Val};
use crate::core::mask::Masker;
use crate::core::stray::Why;
use crate::core::types::Time;
use crate::core::verdict::{Ruled, Rules, by_status, in_common, names_upstream_reset};
use crate::sink::{Answer, AnswerDetail, Concerns, DoubtCause, Pace, Verdict};
use http::HeaderMap;
use http::header::LOCATION;

/// Longest reason kept, bytes.
pub(super) const REASON: usize = 512;
/// Most of an answer kept, bytes.
const ANSWER: usize = 1024;
/// Most of an answer that goes into the reason.
const IN_REASON: usize = 200;

/// How answers of one partner are read.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) rules: Rules,
    pub(super) heed: Heed,
    /// Most bytes that an answer is unpacked to.
    pub(super) answer_limit: usize,
    /// Some doubt of this partner is settled by sending again, and the Idempotency-Key is sent.
    pub(super) resends: bool,
}

/// What came back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard<'a> {
    pub(super) status: u16,
    pub(super) headers: &'a HeaderMap,
    /// As far as it was read and kept.
    pub(super) body: &'a [u8],
    pub(super) end: BodyEnd,
    /// What was odd about it, where anything was.
    pub(super) odd: Option<&'a Oddity>,
}

/// What can be odd about an answer that was heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Oddity {
    /// Its head could be read only by force: in words, what of it.
    Head(String),
    /// It is not known whether it answers this request.
    Stray(Why),
    /// It is a redirect, and why it is not followed.
    NotFollowed(&'static str),
}

impl Scope for Heard<'_> {
    fn root(&self, root: Root) -> Val<'_> {
        match root {
            Root::Status => Val::Int(self.status.into()),
            _ => Val::Missing,
        }
    }
    fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.get(name).map(|v| v.as_bytes())
    }
    fn document(&self) -> &[u8] {
        self.body
    }
}

impl Reading {
    /// Whether the body of an answer with this status must be kept for [`Reading::answer`].
    pub(super) fn needs_body(&self, status: u16) -> bool {
        !(200..300).contains(&status) || self.rules.uses_document()
    }

    /// Whether what the status says depends on the body.
    pub(super) fn decides_by_body(&self, status: u16) -> bool {
        status == 503 || self.rules.uses_document()
    }

    /// Whether the rules have nothing to say of an answer, whatever its body is.
    pub(super) fn is_silent(&self, heard: &Heard<'_>) -> bool {
        self.rules.is_empty() || {
            let json = self.rules.uses_document();
            let read = body::read(heard.headers, heard.body, heard.end, self.answer_limit, json);
            let body = &read.bytes[..];
            self.rules.judge(&Heard { body, ..*heard }, read.legible) == Ruled::Silent
        }
    }

    /// What an answer means.
    pub(super) fn answer(&self, heard: &Heard<'_>, now: impl FnOnce() -> Time, masker: &Masker) -> Answer {
        let status = heard.status;
        let told = pace(heard.headers, status, now, self.heed);
        let unknown = |heard: &Heard<'_>, why: &str, told| {
            let verdict = Verdict::Unknown(DoubtCause::Timeout);
            self.told(
                heard,
                verdict,
                &format!("bad answer: {status}, {why}"),
                told,
                masker,
            )
        };
        if let Some(Oddity::Stray(why)) = heard.odd {
            return unknown(heard, why.words(), told);
        }
        let read;
        let (heard, text) = if self.needs_body(status) {
            read = body::read(
                heard.headers,
                heard.body,
                heard.end,
                self.answer_limit,
                self.rules.uses_document(),
            );
            let body = &read.bytes[..];
            (&Heard { body, ..*heard }, Some(&read))
        } else {
            (heard, None)
        };
        let mut after = None;
        let mut said = None;
        let mut rule = None;
        let mut concerns = None;
        let cut = heard.end == BodyEnd::Cut;
        let by_status = |cut: bool| {
            // Whether a 503 names a reset may stand in what is missing.
            let names_reset = || cut || tells_of_reset(heard);
            by_status(status, self.resends, names_reset)
        };
        let verdict = match self.rules.judge(heard, text.map_or(Legible::Text, |t| t.legible)) {
            Ruled::By(ruling) => {
                after = ruling.after.filter(|_| ruling.verdict == Verdict::TryLater);
                said = ruling.reason;
                rule = Some(ruling.number);
                concerns = ruling.concerns;
                ruling.verdict
            }
            Ruled::Undecided { number, maybe, then } => {
                let why = why_unread(heard, text, number);
                let otherwise = then.map_or_else(|| by_status(cut), |ruling| ruling.verdict);
                match in_common(&maybe, otherwise) {
                    Verdict::Unknown(_) => return unknown(heard, &why, told),
                    verdict => {
                        said = Some(why);
                        verdict
                    }
                }
            }
            Ruled::Silent if cut && status == 503 => {
                return unknown(heard, "cut off before its end", told);
            }
            Ruled::Silent => by_status(false),
        };
        if verdict == Verdict::Delivered {
            return Answer {
                verdict,
                status,
                detail: None,
                pace: told.and_then(|pace| without_retry(pace, status)),
                concerns,
            };
        }
        let told = match (told, after) {
            (told, None) => told,
            (told, Some(after)) => {
                let mut pace = told.unwrap_or_default();
                pace.retry_after = Some(pace.retry_after.unwrap_or_default().max(after));
                Some(pace)
            }
        };
        let told = told.map(|mut pace| {
            // The rule says whom the wait concerns, whether it is the rule's or the answer's own.
            if verdict == Verdict::TryLater && concerns == Some(Concerns::Partner) {
                pace.pause = pace.pause.max(pace.retry_after);
            }
            pace
        });
        let code = match verdict {
            Verdict::Pause => "paused",
            other => other.word(),
        };
        let detail = match said {
            Some(said) => said,
            None if (300..400).contains(&status) => {
                let to = heard
                    .headers
                    .get(LOCATION)
                    .map(|v| String::from_utf8_lossy(v.as_bytes()));
                let why = match heard.odd {
                    Some(Oddity::NotFollowed(why)) => format!(": {why}"),
                    _ => String::new(),
                };
                match to {
                    Some(to) => format!("a redirect to {to} that is not followed{why}"),
                    None => format!("a redirect that is not followed{why}"),
                }
            }
            None => first_words(heard.body),
        };
        let by = rule.map_or_else(String::new, |n| format!(" (verdict rule {n})"));
        let why = if detail.is_empty() {
            format!("{code}: {status}{by}")
        } else {
            // The rule's number first: the detail may be cut.
            format!("{code}: {status}{by} {detail}")
        };
        let mut answer = self.told(heard, verdict, &why, told, masker);
        answer.concerns = concerns;
        answer
    }

    fn told(
        &self,
        heard: &Heard<'_>,
        verdict: Verdict,
        why: &str,
        pace: Option<Box<Pace>>,
        masker: &Masker,
    ) -> Answer {
        let mut answer = unanswered(verdict, why, masker);
        answer.status = heard.status;
        answer.pace = pace;
        if let Some(detail) = &mut answer.detail {
            // Masked with some room behind the cut, so that what the cut splits is recognised.
            let room = &heard.body[..heard.body.len().min(4 * ANSWER)];
            detail.answer = cut_to(masker.bytes(room), ANSWER);
        }
        answer
    }
}

/// Why a rule over the body could not be applied.
/// What a taken message's answer says about pace: a 2xx with `Retry-After` asks for nothing to be sent again.
fn without_retry(mut pace: Box<Pace>, status: u16) -> Option<Box<Pace>> {
    if (200..300).contains(&status) {
        pace.retry_after = None;
    }
    (*pace != Pace::default()).then_some(pace)
}

fn why_unread(heard: &Heard<'_>, text: Option<&Text<'_>>, rule: usize) -> String {
    let body = text.map_or("not read", |t| &*t.why);
    match heard.odd {
        Some(Oddity::Head(why)) => {
            format!("{why}, so that its body, which verdict rule {rule} needs, was not read")
        }
        _ if heard.end == BodyEnd::Cut => format!("cut off before the end that verdict rule {rule} needs"),
        _ => format!("its body is {body}: verdict rule {rule} cannot be applied"),
    }
}

/// An answer where there was none: `code: detail`, masked and cut.
pub(super) fn unanswered(verdict: Verdict, why: &str, masker: &Masker) -> Answer {
    let reason = cut_to(masker.text(why), REASON);
    Answer {
        verdict,
        status: 0,
        detail: Some(Box::new(AnswerDetail::of(reason))),
        pace: None,
        concerns: None,
    }
}

/// Whether headers or text of a 503 tell of an upstream connection that broke.
fn tells_of_reset(heard: &Heard<'_>) -> bool {
    // Envoy's flags, where it is set to send them: UC upstream connection termination, UR upstream remote reset.
    let flags = heard.headers.iter().any(|(name, value)| {
        name.as_str().starts_with("x-envoy-")
            && (names_upstream_reset(value.as_bytes())
                || value
                    .as_bytes()
                    .split(|b| !b.is_ascii_alphanumeric())
                    .any(|f| f == b"UC" || f == b"UR"))
    });
    flags || names_upstream_reset(heard.body)
}

/// The beginning of a body in one line.
pub(super) fn first_words(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(4 * IN_REASON)]);
    let mut out = String::new();
    for word in text
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|w| !w.is_empty())
    {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
        if out.len() > 2 * IN_REASON {
            break;
        }
    }
    out
}

/// Cuts at a character's beginning, and says so.
pub(super) fn cut_to(mut text: String, most: usize) -> String {
    if text.len() > most {
        let mut end = most - '…'.len_utf8();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}
