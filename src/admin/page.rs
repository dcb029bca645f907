//! The page for people: what `status` says, as one HTML file without scripts or anything from elsewhere. It
//! refreshes itself; every text goes through [`escape`].

use crate::api::status::{BreakerState, PartnerStatus, Status, TopicStatus};
use crate::telemetry::text::{bytes, count, span};
use std::fmt::Write;
use std::time::Duration;

/// Rows of the topics' table; a node may have thousands of route partitions.
const MOST_ROWS: usize = 500;

const STYLE: &str = "body{font:14px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:76rem;padding:0 1rem;color:#1d2430;background:#fbfbfc}\
h1{font-size:1.25rem;margin:0}h2{font-size:1rem;margin:1.75rem 0 .4rem}table{border-collapse:collapse;width:100%;background:#fff}\
th,td{padding:.3rem .6rem;border-bottom:1px solid #e3e6eb;text-align:left;white-space:nowrap}\
th{font-weight:600;color:#5a6474;font-size:.85em}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}\
.bad{color:#b3261e;font-weight:600}.meta{color:#5a6474}.none{color:#9aa3b0}\
@media(prefers-color-scheme:dark){body{background:#14171c;color:#dfe3ea}table{background:#1a1e25}th,td{border-color:#2b313b}th,.meta{color:#98a2b3}.bad{color:#ff8a80}}";

/// Makes text harmless inside HTML, attributes included.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// The page.
pub(super) fn render(status: &Status, nonce: &str) -> String {
    let mut out = String::with_capacity(8 * 1024);
    let node = &status.node;
    // Writing to a string cannot fail.
    let _ = write!(
        out,
        "<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content=2>\
         <meta name=viewport content=\"width=device-width\"><title>{id} · sluicegate</title><style nonce=\"{nonce}\">{STYLE}</style>\
         <h1>{id} <span class=meta>{state} · {version} · up {up}</span></h1>\
         <p class=meta>memory {held} of {bound} · on the wire {in_flight} of {requests} · remembered {ids} IDs on {disk}",
        id = escape(&node.id),
        state = escape(&node.state),
        version = escape(&node.version),
        up = span(Duration::from_secs_f64(node.uptime_s.clamp(0.0, 1e12))),
        held = bytes(node.memory_held),
        bound = bytes(node.memory_bound),
        in_flight = count(node.in_flight),
        requests = count(node.requests),
        ids = count(status.store.ids),
        disk = bytes(status.store.disk_bytes),
    );
    for (kind, restarts) in &node.restarts {
        let _ = write!(out, " · {} restarts of {}", count(*restarts), escape(kind));
    }
    out.push_str("</p>");
    let problems = [&node.intake_paused, &status.log.refuses, &status.ledger.behind];
    for problem in problems.into_iter().flatten() {
        let _ = write!(out, "<p class=bad>{}</p>", escape(problem));
    }
    partners(&mut out, &status.partners);
    topics(&mut out, &status.topics);
    out.push_str("</html>\n");
    out
}

fn partners(out: &mut String, partners: &[PartnerStatus]) {
    out.push_str(
        "<h2>Partners</h2><table><tr><th>partner<th>state<th class=n>delivered<th class=n>waiting<th class=n>rate/s\
         <th>limit<th class=n>on the wire<th class=n>done in<th class=n>dead<th class=n>in doubt<th class=n>skipped",
    );
    for p in partners {
        let state = match (&p.paused, p.breaker) {
            (Some(why), _) => format!("<span class=bad>paused: {}</span>", escape(why)),
            (None, BreakerState::Closed) => "open for traffic".to_owned(),
            (None, breaker) => format!("<span class=bad>breaker {}</span>", breaker.word()),
        };
        let eta = match p.eta_s {
            Some(s) if p.waiting > 0 => span(Duration::from_secs_f64(s.clamp(0.0, 1e12))),
            Some(_) => "-".to_owned(),
            None => "unknown".to_owned(),
        };
        let _ = write!(
            out,
            "<tr><td>{}<td>{state}<td class=n>{}<td class=n>{}<td class=n>{:.1}<td>{}<td class=n>{} of {}<td class=n>{eta}{}{}<td class=n>{}",
            escape(&p.partner),
            count(p.delivered),
            count(p.waiting),
            p.rate,
            escape(&p.limits.join(", ")),
            count(p.in_flight),
            count(p.concurrency),
            alarm(p.dead),
            alarm(p.parked),
            count(p.skipped),
        );
    }
    if partners.is_empty() {
        out.push_str("<tr><td class=none colspan=11>no partner");
    }
    out.push_str("</table>");
}

fn topics(out: &mut String, topics: &[TopicStatus]) {
    out.push_str(
        "<h2>Topics</h2><table><tr><th>topic<th>partner<th class=n>partition<th class=n>lag<th class=n>oldest\
         <th class=n>position<th class=n>end<th class=n>waiting<th class=n>dead<th class=n>in doubt<th>owner",
    );
    for t in topics.iter().take(MOST_ROWS) {
        let _ = write!(
            out,
            "<tr><td>{}{}<td>{}<td class=n>{}<td class=n>{}<td class=n>{}<td class=n>{}<td class=n>{}<td class=n>{}{}{}<td>{}",
            escape(&t.topic),
            t.stopped.as_ref().map_or(String::new(), |why| format!(
                " <span class=bad>stopped: {}</span>",
                escape(why)
            )),
            escape(&t.partner),
            t.partition,
            count(t.lag),
            t.oldest_age_ms
                .map_or("-".to_owned(), |ms| span(Duration::from_millis(ms))),
            count(t.position),
            count(t.end),
            count(t.waiting),
            alarm(t.dead),
            alarm(t.parked),
            escape(&t.owner),
        );
    }
    if topics.is_empty() {
        out.push_str("<tr><td class=none colspan=11>no topic");
    }
    out.push_str("</table>");
    if let Some(rest) = topics.len().checked_sub(MOST_ROWS).filter(|&n| n > 0) {
        let _ = write!(out, "<p class=meta>and {rest} more: see /api/status</p>");
    }
}

fn alarm(number: u64) -> String {
    if number == 0 {
        "<td class=n>0".to_owned()
    } else {
        format!("<td class=\"n bad\">{}", count(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The page with its own tags taken out: nothing that a name brings along may be left.
    fn hostile(text: &str) -> Status {
        let mut status = Status::default();
        status.node.id = text.into();
        status.node.state = text.into();
        status.node.version = text.into();
        status.node.restarts.insert(text.into(), 1);
        status.node.intake_paused = Some(text.into());
        status.partners = vec![PartnerStatus {
            partner: text.into(),
            paused: Some(text.into()),
            limits: vec![text.into()],
            ..PartnerStatus::default()
        }];
        status.topics = vec![TopicStatus {
            topic: text.into(),
            partner: text.into(),
            owner: text.into(),
            stopped: Some(text.into()),
            ..TopicStatus::default()
        }];
        status
    }

    #[test]
    fn names_cannot_bring_tags_along() {
        let page = render(&hostile("<script>alert('x')</script>\"&"), "n");
        assert!(!page.contains("<script"));
        assert_eq!(
            page.matches("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&quot;&amp;")
                .count(),
            13
        );
    }

    #[test]
    fn it_loads_nothing_from_elsewhere() {
        let page = render(&Status::default(), "n");
        for sign in ["http://", "https://", "src=", "href=", "url(", "@import"] {
            assert!(!page.contains(sign), "{sign}");
        }
    }

    proptest! {
        #[test]
        fn escaped_text_has_no_meaning_left(text in "\\PC*|[<>&'\"]{0,20}") {
            let safe = escape(&text);
            prop_assert!(!safe.contains(['<', '>', '"', '\'']));
            let tags = |text: &str| render(&hostile(text), "n").matches('<').count();
            prop_assert_eq!(tags(&text), tags("plain"));
        }
    }
}
