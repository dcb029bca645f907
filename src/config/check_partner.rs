//! Checks of one partner: policies that contradict each other, references, credentials written out.

use super::check::{Check, or_nearest, templates};
use super::model::*;
use super::tree::{self, join, quoted};
use super::units::duration as show;
use super::{mask, template, units};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::time::Duration;

/// Looks through a file of certificates.
///
/// # Errors
/// What is wrong with it, and a hint.
fn certificates(path: &std::path::Path) -> Result<(), (String, &'static str)> {
    let hint =
        "PEM begins with -----BEGIN CERTIFICATE-----; openssl x509 -inform der -in FILE makes it of DER";
    let file = std::fs::File::open(path).map_err(|e| (format!("cannot read it: {e}"), ""))?;
    let mut found = 0;
    for certificate in CertificateDer::pem_reader_iter(std::io::BufReader::new(file)) {
        let unread = |e: &dyn std::fmt::Display| {
            (
                format!("holds something that is no certificate in PEM: {e}"),
                hint,
            )
        };
        let certificate = certificate.map_err(|e| unread(&e))?;
        RootCertStore::empty().add(certificate).map_err(|e| unread(&e))?;
        found += 1;
    }
    match found {
        0 => Err(("holds no certificate in PEM".to_owned(), hint)),
        _ => Ok(()),
    }
}

impl Check<'_> {
    pub(super) fn partner(&mut self, p: &PartnerConfig) {
        let section = join("partners", &p.name);
        let s = section.as_str();
        if p.url.is_empty() && !self.is_set(s, "url") {
            self.error(s, "url", None, "is missing and has no default", "");
        }
        for limit in &p.limits {
            match limit {
                LimitRef::Named(name) if !self.is_set("limits", &tree::key(name)) => {
                    let message = format!("no limit `{name}` is defined");
                    let hint =
                        format!("add [limits.{name}] with rates = [\"50/s\"], or write the rates here");
                    let hint = or_nearest(name, &self.config.limits, hint);
                    self.error(s, "limits", Some(quoted(name)), message, &hint);
                }
                LimitRef::Named(_) => {}
                LimitRef::Inline(limit) => self.limit(s, "limits.", limit),
            }
        }
        if p.body.is_some() && ["GET", "HEAD"].contains(&p.method.as_str()) {
            let hint = "set method = \"POST\", or take the body out";
            let message = format!("a {} request has no body", p.method);
            self.error(s, "body", None, message, hint);
        }
        self.in_templates(s, p);
        self.redirects(s, p);
        self.retry(s, p);
        self.doubt(s, p);
        self.ordered(
            s,
            "breaker.open",
            p.breaker.open,
            "breaker.longest",
            p.breaker.longest,
        );
        if let Some(ca) = &p.ca
            && let Err((message, hint)) = certificates(ca)
        {
            self.error(s, "ca", Some(quoted(&ca.display().to_string())), message, hint);
        }
        let memory = p.retention.unwrap_or(self.config.dedup.retention);
        if memory < p.retry.give_up_after {
            let key = if p.retention.is_some() {
                "retention"
            } else {
                "retry.give_up_after"
            };
            let message = format!(
                "IDs are remembered for {} only, and a message may be tried for {}",
                show(memory),
                show(p.retry.give_up_after)
            );
            let hint = "remember longer (dedup.retention, or the partner's retention) or give up earlier";
            self.error(s, key, None, message, hint);
        }
        if p.timeout.request > self.config.node.drain && self.is_set(s, "timeout.request") {
            let message = format!(
                "is longer than node.drain ({}): an orderly stop may leave doubts",
                show(self.config.node.drain)
            );
            let value = Some(quoted(&show(p.timeout.request)));
            self.warn(s, "timeout.request", value, message, "raise node.drain above it");
        }
        let held = (p.answer_limit as u64).saturating_mul(p.concurrency as u64);
        if held > self.config.node.memory {
            let value = Some(quoted(&units::size(p.answer_limit as u64)));
            let message = format!("times concurrency ({}) exceeds node.memory", p.concurrency);
            let hint = "answers are read up to this bound only: lower it";
            self.warn(s, "answer_limit", value, message, hint);
        }
        self.verdicts(s, p);
        self.literals(s, p);
        self.secrets_defined(s, p);
    }

    fn verdicts(&mut self, s: &str, p: &PartnerConfig) {
        for (i, rule) in p.verdict.iter().enumerate() {
            if rule.after.is_some() && rule.is != RuleVerdict::Later {
                let message = "only a rule with is = \"later\" can wait";
                self.error(s, &format!("verdict[{i}].after"), None, message, "");
            }
            let spares = matches!(rule.scope, Some(RuleScope::Message | RuleScope::Key));
            if spares && matches!(rule.is, RuleVerdict::Unknown | RuleVerdict::Pause) {
                let message = "a rule with is = \"pause\" or \"unknown\" always concerns the partner";
                let hint = "take `scope` out, or let the rule say later or refused";
                self.error(s, &format!("verdict[{i}].scope"), None, message, hint);
            }
        }
    }

    /// What a template may do that its author is unlikely to mean.
    fn in_templates(&mut self, s: &str, p: &PartnerConfig) {
        if p.doubt.uses(DoubtPolicy::Resend)
            && p.idempotency_key
            && p.body
                .as_deref()
                .is_some_and(|body| template::uses(body, "attempt"))
        {
            let message = "uses `attempt`, and doubts are settled by sending again under the same Idempotency-Key, \
                           which means the same body: there `attempt` is always 1";
            self.warn(s, "body", None, message, "put it in a header, or take it out");
        }
        let urls = std::iter::once(("url", &p.url)).chain(p.verify.iter().map(|v| ("verify.url", &v.url)));
        for (key, _) in urls.filter(|(_, url)| template::begins_after_host(url)) {
            let message = "has a template right after the host: a value there that does not begin with `/`, `?` or `#` \
                           would change the host, and makes its message a dead letter";
            let hint = "write the slash: http://host/{{ … | path }}";
            self.warn(s, key, None, message, hint);
        }
    }

    fn redirects(&mut self, s: &str, p: &PartnerConfig) {
        if !p.redirect_to.is_empty() && p.redirects == 0 {
            let hint = "set redirects = 1, or take it out";
            let message = "no redirect is followed: redirects is 0";
            self.warn(s, "redirect_to", None, message, hint);
        }
    }

    fn retry(&mut self, s: &str, p: &PartnerConfig) {
        let retry = &p.retry;
        self.ordered(s, "retry.first", retry.first, "retry.longest", retry.longest);
        if retry.first > retry.give_up_after {
            let value = Some(quoted(&show(retry.give_up_after)));
            let message = "ends before the first retry may start";
            let hint = "raise it, or lower retry.first";
            self.warn(s, "retry.give_up_after", value, message, hint);
        }
        let Some(attempts) = retry.attempts else { return };
        let most = longest_run(retry, attempts, p.timeout.request);
        let usual = longest_run(retry, attempts, Duration::ZERO) / 2;
        let give_up_after = show(retry.give_up_after);
        let message = if most < retry.give_up_after && self.is_set(s, "retry.give_up_after") {
            let most = show_rounded(most);
            format!(
                "{attempts} attempts are over after at most {most}, so retry.give_up_after ({give_up_after}) is never reached"
            )
        } else if usual > retry.give_up_after {
            let usual = show_rounded(usual);
            format!(
                "{attempts} attempts take about {usual}, so retry.give_up_after ({give_up_after}) comes first"
            )
        } else {
            return;
        };
        let hint = "take one of them out; without attempts the age alone decides";
        self.warn(s, "retry.attempts", Some(attempts.to_string()), message, hint);
    }

    fn doubt(&mut self, s: &str, p: &PartnerConfig) {
        let lease = self.config.ledger.lease;
        if p.doubt.uses(DoubtPolicy::Resend) {
            if !p.idempotency_key {
                let hint =
                    "without it the partner cannot tell a repeat: let it be sent, or use doubt = \"park\"";
                let message = "resend needs the Idempotency-Key";
                self.error(s, "idempotency_key", Some("false".into()), message, hint);
            }
            if !self.is_set(s, "idempotency_window") {
                let message = format!(
                    "resend rests on it, and it is not set: {} is assumed",
                    show(p.idempotency_window)
                );
                let hint = "ask the partner how long it remembers an Idempotency-Key, and write that";
                self.warn(s, "idempotency_window", None, message, hint);
            }
            let least = lease + p.timeout.request;
            if p.idempotency_window <= least {
                let message = format!(
                    "is over before a doubt may be resent (ledger.lease + timeout.request = {}): all would park",
                    show(least)
                );
                let value = Some(quoted(&show(p.idempotency_window)));
                let hint = "shorten timeout.request, or use doubt = \"park\" or \"verify\"";
                self.error(s, "idempotency_window", value, message, hint);
            } else if p.idempotency_window < p.retry.longest {
                let message = format!(
                    "is shorter than retry.longest ({}): a doubt after a long wait parks",
                    show(p.retry.longest)
                );
                let value = Some(quoted(&show(p.idempotency_window)));
                self.warn(s, "idempotency_window", value, message, "");
            }
        } else if self.is_set(s, "idempotency_window") {
            let message = "has no effect: no doubt is resent";
            let hint = "set doubt = \"resend\", or take it out";
            self.warn(s, "idempotency_window", None, message, hint);
        }
        match (&p.verify, p.doubt.uses(DoubtPolicy::Verify)) {
            (None, true) => {
                let hint = "add verify = { url = \"https://…/{{ id }}\", delivered = \"status == 200\", never_seen = \"status == 404\" }";
                let message = "there is no look-up to verify with";
                self.error(s, "doubt", Some(quoted("verify")), message, hint);
            }
            (Some(_), false) => {
                let message = "has no effect: no doubt is verified";
                let hint = "set doubt = \"verify\", or take it out";
                self.warn(s, "verify", None, message, hint);
            }
            _ => {}
        }
    }

    /// Texts that look like credentials written out.
    fn literals(&mut self, s: &str, p: &PartnerConfig) {
        let hint = "put it into [secrets] and write {{ secret('NAME') }}";
        let mut found = Vec::new();
        for (name, value) in &p.headers {
            if mask::header(name, value) != *value {
                found.push(join("headers", name));
            }
        }
        for (name, value) in p.verify.iter().flat_map(|v| &v.headers) {
            if mask::header(name, value) != *value {
                found.push(join("verify.headers", name));
            }
        }
        let urls = [
            ("url", Some(&p.url)),
            ("proxy", p.proxy.as_ref()),
            ("verify.url", p.verify.as_ref().map(|v| &v.url)),
        ];
        for (key, url) in urls {
            if url.is_some_and(|url| mask::url(url) != *url) {
                found.push(key.into());
            }
        }
        if p.body.as_ref().is_some_and(|body| mask::body(body) != *body) {
            found.push("body".into());
        }
        for key in found {
            let message = "looks like a secret or personal data written out";
            self.warn(s, &key, None, message, hint);
        }
    }

    fn secrets_defined(&mut self, s: &str, p: &PartnerConfig) {
        for (key, text) in templates(p) {
            for name in template::secrets(text) {
                if self.is_set("secrets", &tree::key(&name)) {
                    continue;
                }
                let hint = format!("add to [secrets]: {} = {{ env = \"NAME\" }}", tree::key(&name));
                let hint = or_nearest(&name, &self.config.secrets, hint);
                self.error(s, &key, None, format!("no secret `{name}` is defined"), &hint);
            }
        }
    }
}

/// How long `attempts` attempts last at most: every backoff at its longest, every request at `request`.
fn longest_run(retry: &RetryConfig, attempts: u32, request: Duration) -> Duration {
    let mut total = request.saturating_mul(attempts);
    let mut wait = retry.first;
    for n in 1..attempts {
        if wait >= retry.longest {
            return total.saturating_add(retry.longest.saturating_mul(attempts - n));
        }
        total = total.saturating_add(wait);
        wait = wait.saturating_mul(2);
    }
    total
}

fn show_rounded(d: Duration) -> String {
    show(Duration::from_secs(d.as_secs().max(1)))
}
