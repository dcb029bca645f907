//! What an answer means: the partner's rules first, then what its status says (decision 0003).
//!
//! The question is never "did it work" but "may the partner have taken it" (I3). A status that a partner can only
//! give when it has not taken the request is `TryLater` or `Refused`; where it may have been taken, `Unknown`.
//!
//! Where no rule looks at the body, the status line decides. Where a rule looks at it and it cannot be read
//! (compressed, cut, in another charset, no JSON, a name twice), that rule may or may not match, and the answer means
//! what all that is possible has in common: nothing but "not taken" stays "not taken", anything else is `Unknown`,
//! and never `Delivered` ([`in_common`], decision 0008).

use super::expr::{Expr, ExprError, Legible, PathExpr, Scope, Vocabulary};
use crate::config::model::{RuleScope, RuleVerdict, VerdictRuleConfig};
use crate::sink::{Concerns, DoubtCause, Verdict};
use std::time::Duration;

/// A partner's verdict rules, compiled. The first that matches decides.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    rules: Vec<Rule>,
    uses_document: bool,
}

#[derive(Clone, Debug)]
struct Rule {
    when: Expr,
    is: Verdict,
    reason: Option<PathExpr>,
    after: Option<Duration>,
    concerns: Option<Concerns>,
}

/// A rule that cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("verdict rule {number}, {part}")]
pub struct RuleError {
    /// Which rule, from 1.
    pub number: usize,
    /// `when` or `reason`.
    pub part: &'static str,
    /// What is wrong.
    pub source: ExprError,
}

/// What a rule said.
#[derive(Clone, Debug, PartialEq)]
pub struct Ruling {
    /// The verdict.
    pub verdict: Verdict,
    /// What stands where the rule's `reason` points.
    pub reason: Option<String>,
    /// For `later`: wait at least so long.
    pub after: Option<Duration>,
    /// Whom it concerns; none: the rule does not say.
    pub concerns: Option<Concerns>,
    /// Which rule, from 1.
    pub number: usize,
}

/// What the rules say of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Ruled {
    /// No rule matches.
    Silent,
    /// This one does.
    By(Ruling),
    /// Rules look at a body that cannot be read: this is what they may have said, before `then`, which holds where
    /// none of them matches (no rule: the status).
    Undecided {
        /// The first of them, from 1.
        number: usize,
        /// What they may have said.
        maybe: Vec<Verdict>,
        /// The first rule that certainly matches.
        then: Option<Ruling>,
    },
}

impl Rules {
    /// Compiles them.
    ///
    /// # Errors
    /// The first rule that cannot be compiled.
    pub fn try_new(config: &[VerdictRuleConfig]) -> Result<Self, RuleError> {
        let mut rules = Vec::with_capacity(config.len());
        for (i, rule) in config.iter().enumerate() {
            let failed = |part| {
                move |source| RuleError {
                    number: i + 1,
                    part,
                    source,
                }
            };
            let reason = rule
                .reason
                .as_ref()
                .map(|text| PathExpr::compile(text, Vocabulary::Answer));
            rules.push(Rule {
                when: Expr::compile(&rule.when, Vocabulary::Answer).map_err(failed("when"))?,
                is: match rule.is {
                    RuleVerdict::Delivered => Verdict::Delivered,
                    RuleVerdict::Later => Verdict::TryLater,
                    RuleVerdict::Refused => Verdict::Refused,
                    RuleVerdict::Unknown => Verdict::Unknown(DoubtCause::Gateway),
                    RuleVerdict::Pause => Verdict::Pause,
                },
                reason: reason.transpose().map_err(failed("reason"))?,
                after: rule.after,
                concerns: match (rule.scope, rule.is) {
                    (Some(RuleScope::Message), _) => Some(Concerns::Message),
                    (Some(RuleScope::Key), _) => Some(Concerns::Key),
                    (Some(RuleScope::Partner), _) | (None, RuleVerdict::Pause) => Some(Concerns::Partner),
                    (None, _) => None,
                },
            });
        }
        let uses_document = rules
            .iter()
            .any(|r| r.when.uses_document() || r.reason.as_ref().is_some_and(PathExpr::uses_document));
        Ok(Self { rules, uses_document })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether any looks at the body.
    pub fn uses_document(&self) -> bool {
        self.uses_document
    }

    /// What they say of an answer whose body is `legible`.
    pub fn judge(&self, scope: &impl Scope, legible: Legible) -> Ruled {
        let (mut first, mut maybe) = (0, Vec::new());
        let mut then = None;
        for (i, rule) in self.rules.iter().enumerate() {
            match rule.when.decide(scope, legible) {
                Some(false) => {}
                Some(true) => {
                    then = Some(Ruling {
                        verdict: rule.is,
                        reason: rule.reason.as_ref().and_then(|r| r.text(scope)),
                        after: rule.after,
                        concerns: rule.concerns,
                        number: i + 1,
                    });
                    break;
                }
                None => {
                    if maybe.is_empty() {
                        first = i + 1;
                    }
                    maybe.push(rule.is);
                }
            }
        }
        match (maybe.is_empty(), then) {
            (false, then) => Ruled::Undecided {
                number: first,
                maybe,
                then,
            },
            (true, Some(ruling)) => Ruled::By(ruling),
            (true, None) => Ruled::Silent,
        }
    }
}

/// What an answer means of which only this is known: it means one of `maybe`, or `otherwise`. Never `Delivered`: a
/// rule looks at the body because the status is not to be believed.
pub fn in_common(maybe: &[Verdict], otherwise: Verdict) -> Verdict {
    let all = || maybe.iter().copied().chain([otherwise]);
    let not_taken = |v| matches!(v, Verdict::TryLater | Verdict::Pause | Verdict::Refused);
    if !all().all(not_taken) {
        return Verdict::Unknown(DoubtCause::Timeout);
    }
    if all().all(|v| v == otherwise) {
        return otherwise;
    }
    // It was not taken, whichever it is: to try it again loses nothing, a dead letter or a pause may be wrong.
    Verdict::TryLater
}

/// What a status means by itself.
///
/// `names_reset`: whether a 503 tells of an upstream connection that broke; asked only for that status.
/// `resends`: the partner gets requests again under the same Idempotency-Key, so its 409 may mean that the first is
/// still being worked on.
pub fn by_status(status: u16, resends: bool, names_reset: impl FnOnce() -> bool) -> Verdict {
    match status {
        200..=299 => Verdict::Delivered,
        401 | 403 | 407 => Verdict::Pause,
        408 => Verdict::Unknown(DoubtCause::Timeout),
        409 if resends => Verdict::TryLater,
        425 | 429 => Verdict::TryLater,
        503 if !names_reset() => Verdict::TryLater,
        // See Other: what was asked for has been dealt with, and how is told elsewhere (RFC 9110, 15.4.4). Whether
        // it was taken is not told.
        303 => Verdict::Unknown(DoubtCause::Gateway),
        // The method or the protocol version is not supported at all: nothing was begun.
        501 | 505 => Verdict::Refused,
        300..=499 => Verdict::Refused,
        500..=599 => Verdict::Unknown(DoubtCause::Gateway),
        // No HTTP status of any known meaning.
        _ => Verdict::Unknown(DoubtCause::Timeout),
    }
}

/// Whether the text of a 503 tells of a connection to the upstream that broke with the request on it.
///
/// Envoy and meshes built on it say `upstream connect error or disconnect/reset before headers. reset reason: …`
/// for both a connection that never stood and one that broke; the reset reason tells them apart.
pub fn names_upstream_reset(text: &[u8]) -> bool {
    let text = text[..text.len().min(4096)].to_ascii_lowercase();
    let has = |needle: &str| memchr::memmem::find(&text, needle.as_bytes()).is_some();
    // Never left the proxy: no connection could be made, or its own bound was reached.
    let not_sent = [
        "reset reason: connection failure",
        "reset reason: remote connection failure",
        "reset reason: local connection failure",
        "reset reason: overflow",
        "no healthy upstream",
    ];
    if not_sent.iter().any(|n| has(n)) {
        return false;
    }
    [
        "disconnect/reset before headers",
        "connection termination",
        "remote reset",
        "local reset",
        "upstream prematurely closed",
        "upstream reset",
        "upstream disconnect",
        "connection reset by peer",
    ]
    .iter()
    .any(|n| has(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_one_meaning() {
        let gateway = Verdict::Unknown(DoubtCause::Gateway);
        let timeout = Verdict::Unknown(DoubtCause::Timeout);
        for (status, want) in [
            (200, Verdict::Delivered),
            (204, Verdict::Delivered),
            (299, Verdict::Delivered),
            (301, Verdict::Refused),
            (302, Verdict::Refused),
            (303, gateway),
            (307, Verdict::Refused),
            (308, Verdict::Refused),
            (304, Verdict::Refused),
            (400, Verdict::Refused),
            (401, Verdict::Pause),
            (403, Verdict::Pause),
            (404, Verdict::Refused),
            (407, Verdict::Pause),
            (408, timeout),
            (409, Verdict::Refused),
            (410, Verdict::Refused),
            (422, Verdict::Refused),
            (425, Verdict::TryLater),
            (429, Verdict::TryLater),
            (500, gateway),
            (501, Verdict::Refused),
            (502, gateway),
            (503, Verdict::TryLater),
            (504, gateway),
            (505, Verdict::Refused),
            (520, gateway),
            (101, timeout),
            (799, timeout),
        ] {
            assert_eq!(by_status(status, false, || false), want, "{status}");
        }
        assert_eq!(by_status(409, true, || false), Verdict::TryLater);
        assert_eq!(by_status(503, false, || true), gateway);
    }

    #[test]
    fn what_is_possible_has_something_in_common_or_is_unknown() {
        use Verdict::{Delivered, Pause, Refused, TryLater};
        let unknown = Verdict::Unknown(DoubtCause::Timeout);
        for (maybe, otherwise, wanted) in [
            (&[Refused][..], Delivered, unknown),
            (&[Delivered], Delivered, unknown),
            (&[Delivered], Refused, unknown),
            (&[Refused], Refused, Refused),
            (&[Refused, Refused], Refused, Refused),
            (&[TryLater], Refused, TryLater),
            (&[Refused], TryLater, TryLater),
            (&[Refused], Pause, TryLater),
            (&[Pause], Pause, Pause),
            (&[Refused], unknown, unknown),
            (&[unknown], Refused, unknown),
        ] {
            assert_eq!(in_common(maybe, otherwise), wanted, "{maybe:?} or {otherwise:?}");
        }
    }

    #[test]
    fn a_proxy_tells_a_broken_connection_from_one_that_never_stood() {
        let envoy = "upstream connect error or disconnect/reset before headers. reset reason: ";
        for (tail, want) in [
            ("connection termination", true),
            ("remote reset", true),
            ("connection failure, transport failure reason: refused", false),
            ("remote connection failure", false),
            ("overflow", false),
        ] {
            assert_eq!(
                names_upstream_reset(format!("{envoy}{tail}").as_bytes()),
                want,
                "{tail}"
            );
        }
        assert!(names_upstream_reset(
            b"upstream connect error or disconnect/reset before headers"
        ));
        assert!(!names_upstream_reset(b"service unavailable, maintenance"));
        assert!(!names_upstream_reset(b"no healthy upstream"));
    }
}
