//! The effective configuration as text: every key, its value, and where that comes from, credentials masked (I9).
//!
//! It is valid `actors.toml` itself (keys without a value stand as comments), and read again it gives the same
//! configuration, as far as nothing is masked.

use super::mask;
use super::model::*;
use super::tree::{Origin, join, key, quoted};
use super::units;
use std::collections::BTreeMap;
use std::time::Duration;

/// One key of the effective configuration.
pub(super) struct Entry {
    /// The section it stands in: `node`, `partners.acme`.
    pub(super) section: String,
    /// The key within it: `timeout.connect`.
    pub(super) key: String,
    /// The value as TOML; `None` where it has none.
    pub(super) value: Option<String>,
}

/// Whether credentials are masked. Unmasked is for telling whether two configurations are the same.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Show {
    Masked,
    #[cfg(test)]
    Plain,
}

struct Writer {
    entries: Vec<Entry>,
    section: String,
    show: Show,
}

/// Every key of a configuration, in the order of the manual.
pub(super) fn entries(config: &Config, show: Show) -> Vec<Entry> {
    let mut w = Writer {
        entries: Vec::new(),
        section: String::new(),
        show,
    };
    w.node(config);
    for (name, source) in &config.secrets {
        w.section = join("secrets", name);
        let (key, from) = secret(source);
        w.put(key, Some(quoted(&from)));
    }
    for (name, limit) in &config.limits {
        w.section = join("limits", name);
        w.limit("", limit);
    }
    for partner in config.partners.values() {
        w.section = join("partners", &partner.name);
        w.partner(partner);
    }
    for topic in config.topics.values() {
        w.section = join("topics", &topic.name);
        w.topic(topic);
    }
    w.section = "dedup".into();
    w.time("retention", config.dedup.retention);
    w.time("bucket", config.dedup.bucket);
    w.size("cache", config.dedup.cache);
    w.entries
}

fn secret(source: &SecretSource) -> (&'static str, String) {
    match source {
        SecretSource::Env(name) => ("env", name.clone()),
        SecretSource::File(path) => ("file", path.display().to_string()),
    }
}

fn list(items: impl IntoIterator<Item = String>) -> String {
    format!("[{}]", items.into_iter().collect::<Vec<_>>().join(", "))
}

fn table(pairs: impl IntoIterator<Item = (String, String)>) -> String {
    let pairs: Vec<_> = pairs
        .into_iter()
        .map(|(k, v)| format!("{} = {v}", key(&k)))
        .collect();
    if pairs.is_empty() {
        "{}".into()
    } else {
        format!("{{ {} }}", pairs.join(", "))
    }
}

fn policy(policy: DoubtPolicy) -> &'static str {
    match policy {
        DoubtPolicy::Park => "park",
        DoubtPolicy::Resend => "resend",
        DoubtPolicy::Verify => "verify",
    }
}

impl Writer {
    fn put(&mut self, key: &str, value: Option<String>) {
        self.entries.push(Entry {
            section: self.section.clone(),
            key: key.to_owned(),
            value,
        });
    }
    fn text(&mut self, key: &str, text: &str) {
        self.put(key, Some(quoted(text)));
    }
    fn time(&mut self, key: &str, d: Duration) {
        self.put(key, Some(quoted(&units::duration(d))));
    }
    fn size(&mut self, key: &str, bytes: u64) {
        self.put(key, Some(quoted(&units::size(bytes))));
    }
    fn plain(&mut self, key: &str, value: impl ToString) {
        self.put(key, Some(value.to_string()));
    }
    fn maybe<T>(&mut self, key: &str, value: Option<T>, print: impl FnOnce(T) -> String) {
        self.put(key, value.map(print));
    }
    /// A text that may hold a credential.
    fn guarded(&self, text: &str, masked: impl FnOnce(&str) -> String) -> String {
        match self.show {
            Show::Masked => quoted(&masked(text)),
            #[cfg(test)]
            Show::Plain => quoted(text),
        }
    }

    fn node(&mut self, config: &Config) {
        self.section = "node".into();
        self.text("id", &config.node.id);
        self.text("data", &config.node.data.display().to_string());
        self.size("memory", config.node.memory);
        self.time("drain", config.node.drain);

        self.section = "listen".into();
        self.text("admin", &config.listen.admin.to_string());
        self.maybe("probes", config.listen.probes, |at| quoted(&at.to_string()));
        self.maybe("token", config.listen.token.as_ref(), |source| {
            let (key, from) = secret(source);
            table([(key.to_owned(), quoted(&from))])
        });

        self.section = "log".into();
        match config.log.kind {
            LogKind::Embedded => self.text("kind", "embedded"),
        }
        self.size("segment", config.log.segment);
        self.time("commit_gap", config.log.commit_gap);
        self.time("retention", config.log.retention);
        self.maybe("retention_bytes", config.log.retention_bytes, |b| {
            quoted(&units::size(b))
        });

        self.section = "ledger".into();
        let ledger = &config.ledger;
        self.time("lease", ledger.lease);
        self.time("payload_retention", ledger.payload_retention);
        self.size("payload_bytes", ledger.payload_bytes);
        self.plain("readable_id", ledger.readable_id);
        self.time("waiting_after", ledger.waiting_after);
        self.time("position_every", ledger.position_every);
        self.plain("checkpoint_entries", ledger.checkpoint_entries);
        self.time("checkpoint_every", ledger.checkpoint_every);

        self.section = "actors".into();
        let actors = &config.actors;
        self.plain("threads", actors.threads);
        self.plain("busy_keys", actors.busy_keys);
        self.plain("requests", actors.requests);
        self.size("read_chunk", actors.read_chunk as u64);
        self.plain("window", actors.window);
        self.plain("ranges", actors.ranges);
        self.plain("mailbox", actors.mailbox);
        self.plain("permits", actors.permits);
        self.time("restart.first", actors.restart.first);
        self.time("restart.longest", actors.restart.longest);
        self.plain("restart.escalate_after", actors.restart.escalate_after);
        self.time("restart.within", actors.restart.within);

        self.section = "logging".into();
        self.text("level", &config.logging.level);
        let format = match config.logging.format {
            LogFormat::Auto => "auto",
            LogFormat::Pretty => "pretty",
            LogFormat::Json => "json",
        };
        self.text("format", format);
        self.plain("sample", config.logging.sample);
    }

    fn limit(&mut self, prefix: &str, limit: &LimitConfig) {
        let rates = list(limit.rates.iter().map(|rate| quoted(&units::rate(rate))));
        self.put(&format!("{prefix}rates"), Some(rates));
        self.maybe(&format!("{prefix}by"), limit.by.as_ref(), |by| {
            quoted(&format!("json:{by}"))
        });
        self.maybe(&format!("{prefix}burst"), limit.burst, |burst| burst.to_string());
        self.put(
            &format!("{prefix}margin"),
            Some(quoted(&units::duration(limit.margin))),
        );
    }

    fn headers(&mut self, prefix: &str, headers: &[(String, String)]) {
        for (name, value) in headers {
            let shown = self.guarded(value, |value| mask::header(name, value));
            self.put(&format!("{prefix}.{}", key(name)), Some(shown));
        }
        if headers.is_empty() {
            self.put(prefix, None);
        }
    }

    fn limits(&mut self, limits: &[LimitRef]) {
        match limits {
            [] => self.put("limits", None),
            [LimitRef::Named(name)] => self.text("limits", name),
            [LimitRef::Inline(limit)] => self.limit("limits.", limit),
            many => {
                // A list cannot hold a table, and the loader never makes a mixed list of one.
                let items = many.iter().flat_map(|limit| match limit {
                    LimitRef::Named(name) => vec![quoted(name)],
                    LimitRef::Inline(own) => {
                        own.rates.iter().map(|rate| quoted(&units::rate(rate))).collect()
                    }
                });
                let items = list(items);
                self.put("limits", Some(items));
            }
        }
    }

    fn partner(&mut self, p: &PartnerConfig) {
        match p.sink {
            SinkKind::Http => self.text("sink", "http"),
        }
        let url = self.guarded(&p.url, mask::url);
        self.put("url", Some(url));
        self.text("method", &p.method);
        self.headers("headers", &p.headers);
        let body = p.body.as_ref().map(|body| self.guarded(body, mask::body));
        self.put("body", body);
        self.plain("concurrency", p.concurrency);
        self.limits(&p.limits);
        self.time("timeout.connect", p.timeout.connect);
        self.time("timeout.request", p.timeout.request);
        self.time("timeout.connection", p.timeout.connection);
        self.time("retry.first", p.retry.first);
        self.time("retry.longest", p.retry.longest);
        self.time("retry.give_up_after", p.retry.give_up_after);
        self.maybe("retry.attempts", p.retry.attempts, |n| n.to_string());
        self.time("retry.longest_retry_after", p.retry.longest_retry_after);
        self.text("doubt.crash", policy(p.doubt.crash));
        self.text("doubt.timeout", policy(p.doubt.timeout));
        self.text("doubt.gateway", policy(p.doubt.gateway));
        self.text(
            "on_doubt",
            if p.on_doubt == OnDoubt::Hold {
                "hold"
            } else {
                "continue"
            },
        );
        self.time("idempotency_window", p.idempotency_window);
        self.plain("idempotency_key", p.idempotency_key);
        self.plain("traceparent", p.traceparent);
        match &p.verify {
            None => self.put("verify", None),
            Some(v) => {
                let url = self.guarded(&v.url, mask::url);
                self.put("verify.url", Some(url));
                self.text("verify.method", &v.method);
                self.headers("verify.headers", &v.headers);
                self.text("verify.delivered", &v.delivered);
                self.text("verify.never_seen", &v.never_seen);
                self.time("verify.settle", v.settle);
                self.time("verify.timeout", v.timeout);
            }
        }
        let rules = p.verdict.iter().map(verdict);
        self.maybe("verdict", (!p.verdict.is_empty()).then_some(rules), list);
        self.plain("http2", p.http2);
        let proxy = p.proxy.as_ref().map(|proxy| self.guarded(proxy, mask::url));
        self.put("proxy", proxy);
        self.plain("redirects", p.redirects);
        let origins = (!p.redirect_to.is_empty()).then(|| list(p.redirect_to.iter().map(|o| quoted(o))));
        self.put("redirect_to", origins);
        self.text(
            "url_reach",
            match p.url_reach {
                Reach::Usual => "usual",
                Reach::Public => "public",
                Reach::Any => "any",
            },
        );
        self.plain("title_case_headers", p.title_case_headers);
        self.plain("rate_limit_headers", p.rate_limit_headers);
        self.size("answer_limit", p.answer_limit as u64);
        self.maybe("ca", p.ca.as_ref(), |path| quoted(&path.display().to_string()));
        self.plain("breaker.failures", p.breaker.failures);
        self.time("breaker.open", p.breaker.open);
        self.time("breaker.longest", p.breaker.longest);
        self.plain("breaker.probes", p.breaker.probes);
        self.plain("flood.dead_in_a_row", p.flood.dead_in_a_row);
        self.plain("flood.doubts_in_a_row", p.flood.doubts_in_a_row);
        self.time("flood.probe", p.flood.probe);
        self.maybe("retention", p.retention, |d| quoted(&units::duration(d)));
        let mask = (!p.mask.is_empty()).then(|| list(p.mask.iter().map(|name| quoted(name))));
        self.put("mask", mask);
    }

    fn topic(&mut self, t: &TopicConfig) {
        let deliver = t.deliver.iter().map(|route| {
            let partner = match &route.partner {
                PartnerRef::Named(name) => name.clone(),
                PartnerRef::Field(pointer) => format!("json:{pointer}"),
            };
            let when = route.when.iter().map(|when| ("when".to_owned(), quoted(when)));
            table(std::iter::once(("partner".to_owned(), quoted(&partner))).chain(when))
        });
        self.put("deliver", Some(list(deliver)));
        self.maybe("match", t.pattern.as_ref(), |pattern| quoted(pattern));
        self.plain("partitions", t.partitions);
        let sources: Vec<_> = t.id.iter().map(|source| quoted(&id_source(source))).collect();
        let id = if let [one] = &sources[..] {
            one.clone()
        } else {
            list(sources)
        };
        self.put("id", Some(id));
        self.text(
            "id_missing",
            if t.id_missing == IdMissing::Dead {
                "dead"
            } else {
                "position"
            },
        );
        match &t.key {
            KeySource::Record => self.text("key", "record"),
            KeySource::Json(pointer) => self.text("key", &format!("json:{pointer}")),
        }
        let key_missing = match t.key_missing {
            KeyMissing::Unordered => "unordered",
            KeyMissing::Together => "together",
            KeyMissing::Dead => "dead",
        };
        self.text("key_missing", key_missing);
        self.maybe("retention", t.retention, |d| quoted(&units::duration(d)));
        self.maybe("retention_bytes", t.retention_bytes, |b| quoted(&units::size(b)));
        self.maybe("busy_keys", t.busy_keys, |n| n.to_string());
    }
}

fn id_source(source: &IdSource) -> String {
    match source {
        IdSource::Header(name) => format!("header:{name}"),
        IdSource::Json(pointer) => format!("json:{pointer}"),
        IdSource::Key => "key".into(),
        IdSource::Hash => "hash".into(),
        IdSource::Query(name) => format!("query:{name}"),
        IdSource::Position => "position".into(),
    }
}

fn verdict(rule: &VerdictRuleConfig) -> String {
    let is = match rule.is {
        RuleVerdict::Delivered => "delivered",
        RuleVerdict::Later => "later",
        RuleVerdict::Refused => "refused",
        RuleVerdict::Unknown => "unknown",
        RuleVerdict::Pause => "pause",
    };
    let mut pairs = vec![
        ("when".to_owned(), quoted(&rule.when)),
        ("is".to_owned(), quoted(is)),
    ];
    pairs.extend(
        rule.reason
            .iter()
            .map(|reason| ("reason".to_owned(), quoted(reason))),
    );
    pairs.extend(
        rule.after
            .iter()
            .map(|after| ("after".to_owned(), quoted(&units::duration(*after)))),
    );
    pairs.extend(rule.scope.iter().map(|scope| {
        let word = match scope {
            RuleScope::Message => "message",
            RuleScope::Key => "key",
            RuleScope::Partner => "partner",
        };
        ("scope".to_owned(), quoted(word))
    }));
    table(pairs)
}

/// Where a key was written: itself, or the nearest table around it that was written as one value.
pub(super) fn origin_of<'a>(
    origins: &'a BTreeMap<String, Origin>,
    section: &str,
    key: &str,
) -> Option<&'a Origin> {
    let full = format!("{section}.{key}");
    if let Some(origin) = origins.get(&full) {
        return Some(origin);
    }
    match key {
        // The short form of a route.
        "deliver" => origins.get(&format!("{section}.partner")),
        // `doubt = "park"` sets each cause, `limits = ["5/s"]` the rates.
        _ if key.starts_with("doubt.") || key == "limits.rates" => origins.get(&format!(
            "{section}.{}",
            key.split('.').next().unwrap_or_default()
        )),
        _ => None,
    }
}

/// Which keys are printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// Every key, defaults too.
    All,
    /// What files or environment say.
    Set,
}

/// The effective configuration as text.
pub(super) fn print(config: &Config, origins: &BTreeMap<String, Origin>, show: Show, which: Which) -> String {
    let mut text = String::new();
    let mut section = String::new();
    for entry in entries(config, show) {
        let origin = origin_of(origins, &entry.section, &entry.key);
        if which == Which::Set && origin.is_none() {
            continue;
        }
        if entry.section != section {
            if !section.is_empty() {
                text.push('\n');
            }
            text.push_str(&format!("[{}]\n", entry.section));
            section = entry.section.clone();
        }
        match entry.value {
            Some(value) => {
                let origin = origin.map_or_else(|| "default".to_owned(), ToString::to_string);
                text.push_str(&format!(
                    "{} = {value}  # {}\n",
                    entry.key,
                    origin.replace(['\n', '\r'], " ")
                ));
            }
            None => text.push_str(&format!("# {} is not set\n", entry.key)),
        }
    }
    text
}
