//! `[partners.NAME]`: tree to typed value.

use super::defaults::url_is_the_value;
use super::model::*;
use super::read::{self, Expected, Reader, Section};
use super::sections::{bytes_in_memory, limit};
use super::tree::{Data, Node, join};
use super::{template, units};
use crate::core::expr::Vocabulary;
use std::time::Duration;

/// Reads one partner.
pub(super) fn partner(r: &mut Reader, mut s: Section<'_>, name: &str) -> PartnerConfig {
    let s = &mut s;
    r.read(s, "sink", &mut SinkKind::Http, |node| {
        match read::text(node)?.as_str() {
            "http" => Ok(SinkKind::Http),
            "postgres" | "object_store" => {
                Err("this version has the http sink only, expected \"http\"".into())
            }
            _ => Err("expected \"http\"".into()),
        }
    });
    let url = r.required(s, "url", url_template).unwrap_or_default();
    let mut p = PartnerConfig::new(name, url);
    if url_is_the_value(&p.url) && !r.origins.contains_key(&s.key("method")) {
        p.method = "GET".into();
    }
    r.read(s, "method", &mut p.method, method);
    p.headers = headers(r, s, "headers");
    p.body = r.maybe(s, "body", checked_template);
    r.read(s, "concurrency", &mut p.concurrency, read::count(1));
    p.limits = limits(r, s);

    let mut timeout = r.table(s, "timeout");
    r.read(&mut timeout, "connect", &mut p.timeout.connect, read::some_time);
    r.read(&mut timeout, "request", &mut p.timeout.request, read::some_time);
    r.read(
        &mut timeout,
        "connection",
        &mut p.timeout.connection,
        read::some_time,
    );
    r.finish(&timeout);

    let mut retry = r.table(s, "retry");
    r.read(&mut retry, "first", &mut p.retry.first, read::some_time);
    r.read(&mut retry, "longest", &mut p.retry.longest, read::some_time);
    r.read(
        &mut retry,
        "give_up_after",
        &mut p.retry.give_up_after,
        read::some_time,
    );
    r.read_some(&mut retry, "attempts", &mut p.retry.attempts, read::count(1));
    r.read(
        &mut retry,
        "longest_retry_after",
        &mut p.retry.longest_retry_after,
        read::some_time,
    );
    r.finish(&retry);

    p.doubt = doubt(r, s);
    let on_doubt = [("continue", OnDoubt::Continue), ("hold", OnDoubt::Hold)];
    r.read(s, "on_doubt", &mut p.on_doubt, read::choice(&on_doubt));
    r.read(
        s,
        "idempotency_window",
        &mut p.idempotency_window,
        read::some_time,
    );
    r.read(s, "idempotency_key", &mut p.idempotency_key, read::flag);
    r.read(s, "traceparent", &mut p.traceparent, read::flag);
    p.verify = verify(r, s, p.timeout.request);
    p.verdict = verdicts(r, s);

    r.read(s, "http2", &mut p.http2, read::flag);
    p.proxy = r.maybe(s, "proxy", proxy);
    r.read(s, "redirects", &mut p.redirects, read::count(0));
    redirect_to(r, s, &mut p);
    let reaches = [
        ("usual", Reach::Usual),
        ("public", Reach::Public),
        ("any", Reach::Any),
    ];
    r.read(s, "url_reach", &mut p.url_reach, read::choice(&reaches));
    r.read(s, "title_case_headers", &mut p.title_case_headers, read::flag);
    r.read(s, "rate_limit_headers", &mut p.rate_limit_headers, read::flag);
    r.read(s, "answer_limit", &mut p.answer_limit, bytes_in_memory(0));
    p.ca = r.maybe(s, "ca", read::path);

    let mut breaker = r.table(s, "breaker");
    r.read(&mut breaker, "failures", &mut p.breaker.failures, read::count(0));
    r.read(&mut breaker, "open", &mut p.breaker.open, read::some_time);
    r.read(&mut breaker, "longest", &mut p.breaker.longest, read::some_time);
    r.read(&mut breaker, "probes", &mut p.breaker.probes, read::count(1));
    r.finish(&breaker);

    p.flood = FloodConfig::for_concurrency(p.concurrency);
    let mut flood = r.table(s, "flood");
    r.read(
        &mut flood,
        "dead_in_a_row",
        &mut p.flood.dead_in_a_row,
        read::count(0),
    );
    r.read(
        &mut flood,
        "doubts_in_a_row",
        &mut p.flood.doubts_in_a_row,
        read::count(1),
    );
    r.read(&mut flood, "probe", &mut p.flood.probe, read::some_time);
    r.finish(&flood);

    p.retention = r.maybe(s, "retention", read::some_time);
    r.read(s, "mask", &mut p.mask, read::texts);
    r.finish(s);
    p
}

fn checked_template(node: &Node) -> Result<String, Expected> {
    let text = read::text(node)?;
    template::check(&text).map(|()| text)
}

fn url_template(node: &Node) -> Result<String, Expected> {
    let text = checked_template(node)?;
    let start = text.trim_start();
    let expected = "expected an address that begins with http:// or https://";
    if super::mask::is_template(start) {
        let head = start.split("{{").next().unwrap_or_default();
        let good = head.is_empty()
            || head.contains("{%")
            || head.starts_with("http://")
            || head.starts_with("https://");
        return if good { Ok(text) } else { Err(expected.into()) };
    }
    // The parser would drop line ends and encode spaces in silence.
    if text.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Err("expected an address without spaces and line ends".into());
    }
    match url::Url::parse(start) {
        Ok(url) if ["http", "https"].contains(&url.scheme()) && url.has_host() => Ok(text),
        _ => Err(expected.into()),
    }
}

fn method(node: &Node) -> Result<String, Expected> {
    let text = read::filled(node)?;
    let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    if http::Method::from_bytes(text.as_bytes()).is_err() {
        return Err("expected a request method, as POST".into());
    }
    // Methods are case-sensitive on the wire: `post` would be another one.
    match known.iter().find(|method| method.eq_ignore_ascii_case(&text)) {
        Some(method) if *method != text => Err(format!("expected \"{method}\": methods are case-sensitive")),
        _ => Ok(text),
    }
}

fn headers(r: &mut Reader, s: &mut Section<'_>, key: &'static str) -> Vec<(String, String)> {
    let path = s.key(key);
    let Some(table) = r.maybe(s, key, |node| match &node.data {
        Data::Table(table) => Ok(table.clone()),
        _ => Err("expected a table, as { x-api-version = \"3\" }".into()),
    }) else {
        return Vec::new();
    };
    let mut headers: Vec<(String, String)> = Vec::new();
    for (name, node) in &table {
        let path = join(&path, name);
        r.origins.insert(path.clone(), node.origin.clone());
        if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
            r.wrong(&path, node, "not a header name");
            continue;
        }
        if headers.iter().any(|(other, _)| other.eq_ignore_ascii_case(name)) {
            r.wrong(
                &path,
                node,
                "the same header stands here twice, in different case",
            );
            continue;
        }
        let lower = name.to_ascii_lowercase();
        if ["content-length", "transfer-encoding", "connection", "host"].contains(&lower.as_str()) {
            r.wrong(&path, node, "this header is set by the client itself")
                .hint("take it out");
            continue;
        }
        match checked_template(node) {
            Ok(value) if super::mask::is_template(&value) || http::HeaderValue::from_str(&value).is_ok() => {
                headers.push((name.clone(), value));
            }
            Ok(_) => r
                .wrong(&path, node, "not a header value: it holds a control character")
                .hint("take it out"),
            Err(expected) => {
                r.wrong(&path, node, expected);
            }
        }
    }
    headers
}

/// Name, list of names and rates, or table.
fn limits(r: &mut Reader, s: &mut Section<'_>) -> Vec<LimitRef> {
    let path = s.key("limits");
    let Some(node) = r.maybe(s, "limits", |node| Ok(node.clone())) else {
        return Vec::new();
    };
    if let Data::Table(_) = &node.data {
        let mut inline = r.table_of(&node, path, "limits.NAME".into());
        let limit = limit(r, &mut inline);
        r.finish(&inline);
        return vec![LimitRef::Inline(limit)];
    }
    let texts = match read::texts(&node) {
        Ok(texts) => texts,
        Err(_) => {
            r.wrong(&path, &node, "expected the name of a [limits.NAME], a list of names or rates, or a table")
                .hint("as limits = \"acme-account\", limits = [\"500/s\", \"20000/min\"] or limits = { rates = [\"500/s\"] }");
            return Vec::new();
        }
    };
    let mut limits = Vec::new();
    let mut own = LimitConfig::default();
    for text in texts {
        // No name can hold a slash, and every rate does.
        if !text.contains('/') {
            limits.push(LimitRef::Named(text));
            continue;
        }
        match units::parse_rate(&text) {
            Ok(rate) => own.rates.push(rate),
            Err(e) => {
                r.wrong(&path, &node, format!("`{text}`: {e}"));
            }
        }
    }
    if !own.rates.is_empty() {
        limits.push(LimitRef::Inline(own));
    }
    limits
}

fn doubt(r: &mut Reader, s: &mut Section<'_>) -> DoubtConfig {
    const POLICIES: [(&str, DoubtPolicy); 3] = [
        ("park", DoubtPolicy::Park),
        ("resend", DoubtPolicy::Resend),
        ("verify", DoubtPolicy::Verify),
    ];
    let path = s.key("doubt");
    let mut doubt = DoubtConfig::default();
    let Some(node) = r.maybe(s, "doubt", |node| Ok(node.clone())) else {
        return doubt;
    };
    match &node.data {
        Data::Table(_) => {
            let mut causes = r.table_of(&node, path, "partners.NAME.doubt".into());
            r.read(&mut causes, "crash", &mut doubt.crash, read::choice(&POLICIES));
            r.read(
                &mut causes,
                "timeout",
                &mut doubt.timeout,
                read::choice(&POLICIES),
            );
            r.read(
                &mut causes,
                "gateway",
                &mut doubt.gateway,
                read::choice(&POLICIES),
            );
            r.finish(&causes);
        }
        _ => match read::choice(&POLICIES)(&node) {
            Ok(policy) => doubt = DoubtConfig::all(policy),
            Err(expected) => {
                let hint = "or one a cause: { crash = \"park\", timeout = \"park\", gateway = \"park\" }";
                r.wrong(&path, &node, expected).hint(hint);
            }
        },
    }
    doubt
}

fn verify(r: &mut Reader, s: &mut Section<'_>, request_timeout: Duration) -> Option<VerifyConfig> {
    let path = s.key("verify");
    let node = r.maybe(s, "verify", |node| Ok(node.clone()))?;
    let mut v = r.table_of(&node, path, "partners.NAME.verify".into());
    let url = r.required(&mut v, "url", url_template).unwrap_or_default();
    let delivered = r
        .required(&mut v, "delivered", read::condition(Vocabulary::Answer))
        .unwrap_or_default();
    let never_seen = r
        .required(&mut v, "never_seen", read::condition(Vocabulary::Answer))
        .unwrap_or_default();
    let mut verify = VerifyConfig::new(url, delivered, never_seen, request_timeout);
    r.read(&mut v, "method", &mut verify.method, method);
    verify.headers = headers(r, &mut v, "headers");
    r.read(&mut v, "settle", &mut verify.settle, read::duration);
    r.read(&mut v, "timeout", &mut verify.timeout, read::some_time);
    r.finish(&v);
    Some(verify)
}

fn verdicts(r: &mut Reader, s: &mut Section<'_>) -> Vec<VerdictRuleConfig> {
    const VERDICTS: [(&str, RuleVerdict); 5] = [
        ("delivered", RuleVerdict::Delivered),
        ("later", RuleVerdict::Later),
        ("refused", RuleVerdict::Refused),
        ("unknown", RuleVerdict::Unknown),
        ("pause", RuleVerdict::Pause),
    ];
    const SCOPES: [(&str, RuleScope); 3] = [
        ("message", RuleScope::Message),
        ("key", RuleScope::Key),
        ("partner", RuleScope::Partner),
    ];
    let path = s.key("verdict");
    let rules = r.maybe(s, "verdict", |node| match &node.data {
        Data::List(rules) => Ok(rules.clone()),
        _ => Err("expected a list of rules, as [{ when = \"status == 409\", is = \"delivered\" }]".into()),
    });
    let mut verdicts = Vec::new();
    for (i, node) in rules.unwrap_or_default().iter().enumerate() {
        let mut rule = r.table_of(node, format!("{path}[{i}]"), "partners.NAME.verdict[]".into());
        let when = r.required(&mut rule, "when", read::condition(Vocabulary::Answer));
        let is = r.required(&mut rule, "is", read::choice(&VERDICTS));
        let reason = r.maybe(&mut rule, "reason", read::reason);
        let after = r.maybe(&mut rule, "after", read::duration);
        let scope = r.maybe(&mut rule, "scope", read::choice(&SCOPES));
        r.finish(&rule);
        if let (Some(when), Some(is)) = (when, is) {
            if after.is_some() && is != RuleVerdict::Later {
                let key = rule.key("after");
                r.wrong(&key, node, "only a rule with is = \"later\" can wait");
            }
            let spares = matches!(scope, Some(RuleScope::Message | RuleScope::Key));
            if spares && matches!(is, RuleVerdict::Unknown | RuleVerdict::Pause) {
                let key = rule.key("scope");
                r.wrong(
                    &key,
                    node,
                    "a rule with is = \"pause\" or \"unknown\" always concerns the partner",
                )
                .hint("take `scope` out, or let the rule say later or refused");
            }
            verdicts.push(VerdictRuleConfig {
                when,
                is,
                reason,
                after,
                scope,
            });
        }
    }
    verdicts
}

fn redirect_to(r: &mut Reader, s: &mut Section<'_>, p: &mut PartnerConfig) {
    let path = s.key("redirect_to");
    let Some(node) = r.maybe(s, "redirect_to", |node| Ok(node.clone())) else {
        return;
    };
    let is_origin = |text: &String| {
        url::Url::parse(text).is_ok_and(|url| {
            ["http", "https"].contains(&url.scheme())
                && url.has_host()
                && url.path() == "/"
                && url.query().is_none()
                && url.username().is_empty()
        })
    };
    match read::texts(&node) {
        Ok(origins) if origins.iter().all(is_origin) => p.redirect_to = origins,
        _ => {
            r.wrong(
                &path,
                &node,
                "expected a list of origins: scheme, host and port, without a path",
            )
            .hint("as [\"https://eu.api.example\"]");
        }
    }
}

fn proxy(node: &Node) -> Result<String, Expected> {
    let text = read::filled(node)?;
    match url::Url::parse(&text) {
        Ok(url) if ["http", "https", "socks5", "socks5h"].contains(&url.scheme()) => Ok(text),
        _ => {
            Err("expected the address of a proxy, as http://127.0.0.1:3128 or socks5://127.0.0.1:1080".into())
        }
    }
}
