//! From an answer to a verdict: the whole rule in one place, pure.
//!
//! The partner's own rules come first, then the status ([`crate::core::verdict::by_status`], decision 0003). A plain
//! 2xx without rules and without pace headers allocates nothing, and its body need not be kept.

use super::connection::BodyEnd;
use super::pace::pace;
use crate::core::expr::{Root, Scope, Val};
use crate::core::mask::Masker;
use crate::core::types::Time;
use crate::core::verdict::{Ruled, Rules, by_status, names_upstream_reset};
use crate::sink::{Answer, AnswerDetail, DoubtCause, Pace, Verdict};
use http::HeaderMap;
use http::header::LOCATION;
use std::time::Duration;

/// Longest reason kept, bytes.
const REASON: usize = 512;
/// Most of an answer kept, bytes.
const ANSWER: usize = 1024;
/// Most of an answer that goes into the reason.
const IN_REASON: usize = 200;

/// How answers of one partner are read.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) rules: Rules,
    pub(super) longest_retry_after: Duration,
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

    /// What an answer means.
    pub(super) fn answer(&self, heard: &Heard<'_>, now: impl FnOnce() -> Time, masker: &Masker) -> Answer {
        let status = heard.status;
        let told = pace(heard.headers, status, now, self.longest_retry_after);
        let cut = heard.end == BodyEnd::Cut;
        let mut after = None;
        let mut said = None;
        let mut rule = None;
        let verdict = match self.rules.judge(heard, cut) {
            Ruled::By(ruling) => {
                after = ruling.after.filter(|_| ruling.verdict == Verdict::TryLater);
                said = ruling.reason;
                rule = Some(ruling.number);
                ruling.verdict
            }
            Ruled::NeedsBody => {
                let why = format!("bad answer: {status}, cut off before the end that a verdict rule needs");
                return self.told(heard, Verdict::Unknown(DoubtCause::Timeout), &why, told, masker);
            }
            // Whether it names a reset may stand in what is missing.
            Ruled::Silent if cut && status == 503 => {
                let why = "bad answer: 503, cut off before its end";
                return self.told(heard, Verdict::Unknown(DoubtCause::Timeout), why, told, masker);
            }
            Ruled::Silent => by_status(status, self.resends, || tells_of_reset(heard)),
        };
        if verdict == Verdict::Delivered {
            return Answer {
                verdict,
                status,
                detail: None,
                pace: told,
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
                match to {
                    Some(to) => format!("a redirect to {to} that is not followed"),
                    None => "a redirect that is not followed".to_owned(),
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
        self.told(heard, verdict, &why, told, masker)
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

/// An answer where there was none: `code: detail`, masked and cut.
pub(super) fn unanswered(verdict: Verdict, why: &str, masker: &Masker) -> Answer {
    let reason = cut_to(masker.text(why), REASON);
    Answer {
        verdict,
        status: 0,
        detail: Some(Box::new(AnswerDetail {
            reason,
            answer: String::new(),
        })),
        pace: None,
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
