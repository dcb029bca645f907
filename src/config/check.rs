//! Checks that need more than one key: references, policies that contradict each other, bounds of the machine.

use super::finding::{Finding, Severity, nearest};
use super::model::*;
use super::secrets;
use super::topic::whole_name;
use super::tree::{self, Origin, join, quoted};
use super::units::duration as show;
use super::{mask, template, units};
use crate::core::expr::{Expr, Vocabulary};
use crate::core::mask::Masker;
use crate::core::shown::shown_id;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// File descriptors that a node needs besides those of its requests: log segments, store, admin port.
const OTHER_FILES: u64 = 256;
/// A partner's share of memory holds so many reads, or `check` warns.
const SHARE_CHUNKS: u64 = 4;

/// What the machine allows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Machine {
    /// Most file descriptors that the process may ask for (the hard limit); `None` is no bound.
    pub open_files: Option<u64>,
}

impl Machine {
    /// This machine.
    pub fn here() -> Self {
        Self {
            open_files: rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum,
        }
    }
}

/// Raises the soft limit of open files to the hard one, which the checks count on. Returns the limit that then
/// holds; `None` is no bound. A refusal by the system leaves the limit as it is.
pub fn raise_open_files() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    )
    .is_err()
    {
        return getrlimit(Resource::Nofile).current;
    }
    maximum
}

/// A check under way.
pub(super) struct Check<'a> {
    pub(super) config: &'a Config,
    origins: &'a BTreeMap<String, Origin>,
    findings: Vec<Finding>,
}

/// Everything that is wrong or doubtful about a configuration whose single values are fine.
pub(super) fn check(config: &Config, origins: &BTreeMap<String, Origin>, machine: &Machine) -> Vec<Finding> {
    let mut check = Check {
        config,
        origins,
        findings: Vec::new(),
    };
    check.node();
    check.machine(machine);
    for name in config.secrets.keys() {
        check.secret(&join("secrets", name));
    }
    if config.listen.token.is_some() {
        check.secret("listen.token");
    }
    check.limits();
    for partner in config.partners.values() {
        check.partner(partner);
    }
    check.unused();
    for topic in config.topics.values() {
        check.topic(topic);
    }
    check.patterns();
    check.findings
}

impl Check<'_> {
    fn report(
        &mut self,
        severity: Severity,
        section: &str,
        key: &str,
        value: Option<String>,
        message: String,
        hint: &str,
    ) {
        let full = if key.is_empty() {
            section.to_owned()
        } else {
            format!("{section}.{key}")
        };
        // The key itself, or the nearest table around it.
        let around = std::iter::successors(Some(full.as_str()), |key| {
            key.rsplit_once('.').map(|(table, _)| table)
        });
        let origin = around.filter_map(|key| self.origins.get(key)).next();
        let text = if hint.is_empty() {
            message
        } else {
            format!("{message}\n{hint}")
        };
        let mut finding = Finding::at(severity, &full, origin).says(&text);
        finding.value = value.map(|value| mask::found(&full, &value));
        self.findings.push(finding);
    }

    pub(super) fn error(
        &mut self,
        section: &str,
        key: &str,
        value: Option<String>,
        message: impl Into<String>,
        hint: &str,
    ) {
        self.report(Severity::Error, section, key, value, message.into(), hint);
    }
    pub(super) fn warn(
        &mut self,
        section: &str,
        key: &str,
        value: Option<String>,
        message: impl Into<String>,
        hint: &str,
    ) {
        self.report(Severity::Warning, section, key, value, message.into(), hint);
    }
    pub(super) fn is_set(&self, section: &str, key: &str) -> bool {
        self.origins.contains_key(&format!("{section}.{key}"))
    }

    fn node(&mut self) {
        let c = self.config;
        if c.topics.is_empty() {
            let hint = "add [topics.NAME] with its partner; `sluicegate init` writes an example";
            let message = "no topic is defined: there is nothing to deliver";
            self.warn("topics", "", None, message, hint);
        }
        let admin = c.listen.admin;
        if !admin.ip().is_loopback() && c.listen.token.is_none() {
            let value = Some(quoted(&admin.to_string()));
            let message = "any address but loopback needs a token";
            let hint = "set listen.token = { env = \"NAME\" }, or listen on 127.0.0.1; listen.probes serves health and metrics alone";
            self.error("listen", "admin", value, message, hint);
        }
        if c.listen
            .probes
            .is_some_and(|probes| probes == admin && admin.port() != 0)
        {
            let value = Some(quoted(&admin.to_string()));
            let message = "is the admin address";
            let hint = "give probes a port of their own";
            self.error("listen", "probes", value, message, hint);
        }
        let restart = &c.actors.restart;
        self.ordered(
            "actors",
            "restart.first",
            restart.first,
            "restart.longest",
            restart.longest,
        );
        if c.dedup.bucket > c.dedup.retention {
            let value = Some(quoted(&show(c.dedup.bucket)));
            let message = format!("is longer than dedup.retention ({})", show(c.dedup.retention));
            let hint = "memory comes back bucket by bucket: take a retention of several buckets";
            self.error("dedup", "bucket", value, message, hint);
        }
        let buckets = c.dedup.retention.as_secs_f64() / c.dedup.bucket.as_secs_f64();
        if buckets > 400.0 {
            let value = Some(quoted(&show(c.dedup.bucket)));
            let message = format!("makes {buckets:.0} buckets, and a look-up may ask each");
            self.warn("dedup", "bucket", value, message, "take a longer bucket");
        }
        if c.actors.window < c.actors.busy_keys {
            let message = format!(
                "is below actors.busy_keys ({}): so many keys can never be busy",
                c.actors.busy_keys
            );
            let value = Some(c.actors.window.to_string());
            let hint = "raise it, or lower busy_keys";
            self.warn("actors", "window", value, message, hint);
        }
        self.share_of_memory();
        if c.log.segment > c.node.memory {
            let value = Some(quoted(&units::size(c.log.segment)));
            let message = "is larger than node.memory";
            let hint = "segments of 64MiB are large enough";
            self.warn("log", "segment", value, message, hint);
        }
        if c.log.retention < c.ledger.waiting_after {
            self.retention_too_short("log", "retention", c.log.retention);
        }
    }

    /// A partner's share of memory: with less than some reads it works, but reads a few records at a time.
    fn share_of_memory(&mut self) {
        let c = &self.config;
        let (partners, chunk) = (c.partners.len() as u64, c.actors.read_chunk as u64);
        let (share, least) = (c.node.memory / partners.max(1), SHARE_CHUNKS * chunk);
        if partners == 0 || share >= least {
            return;
        }
        let value = Some(quoted(&units::size(c.node.memory)));
        let message = format!(
            "leaves each of {partners} partners {} KiB, less than {SHARE_CHUNKS} times actors.read_chunk: they read a few records at a time",
            share >> 10
        );
        let wanted = units::size((partners * least).next_multiple_of(1 << 20));
        let hint = format!("raise it to {wanted}, or lower actors.read_chunk");
        self.warn("node", "memory", value, message, &hint);
    }

    fn retention_too_short(&mut self, section: &str, key: &str, retention: Duration) {
        let message = format!(
            "is shorter than ledger.waiting_after ({}): a record would be gone before it is copied into the ledger",
            show(self.config.ledger.waiting_after)
        );
        let value = Some(quoted(&show(retention)));
        let hint = "keep records longer, or lower ledger.waiting_after";
        self.error(section, key, value, message, hint);
    }

    pub(super) fn ordered(&mut self, section: &str, small: &str, low: Duration, large: &str, high: Duration) {
        if low > high {
            let message = format!("is longer than {large} ({})", show(high));
            let hint = "lower it, or raise the other";
            self.error(section, small, Some(quoted(&show(low))), message, hint);
        }
    }

    fn machine(&mut self, machine: &Machine) {
        let Some(files) = machine.open_files else { return };
        let requests = self.config.actors.requests as u64;
        let places = self.config.partners.values().map(|p| p.concurrency as u64);
        let wanted = places.sum::<u64>().min(requests);
        let (of, severity) = if wanted + OTHER_FILES > files {
            (wanted, Severity::Error)
        } else if requests + OTHER_FILES > files && self.is_set("actors", "requests") {
            (requests, Severity::Warning)
        } else {
            return;
        };
        let message = format!(
            "{of} requests in flight and {OTHER_FILES} other files exceed the limit of {files} open files"
        );
        let hint = "raise the limit (ulimit -Hn, LimitNOFILE= of systemd), or lower actors.requests";
        let value = Some(requests.to_string());
        self.report(severity, "actors", "requests", value, message, hint);
    }

    fn limits(&mut self) {
        for (name, limit) in &self.config.limits {
            self.limit(&join("limits", name), "", limit);
        }
    }

    pub(super) fn limit(&mut self, section: &str, prefix: &str, limit: &LimitConfig) {
        let sliding = limit.rates.iter().filter_map(|rate| match rate {
            Rate::Sliding { count, window } => Some((rate, *count, *window)),
            Rate::Calendar { .. } => None,
        });
        for (loose, count, window) in sliding.clone() {
            let tighter = sliding
                .clone()
                .find(|(rate, other, span)| *rate != loose && *other <= count && *span >= window);
            if let Some((tight, ..)) = tighter {
                let message = format!(
                    "{} never bites: {} is stricter",
                    units::rate(loose),
                    units::rate(tight)
                );
                let hint = "take it out, or check which one the partner means";
                self.warn(section, &format!("{prefix}rates"), None, message, hint);
            }
        }
    }

    /// `env` or `file`, and not both: as a secret of its own, or where one is asked for.
    fn secret(&mut self, at: &str) {
        let message = match (self.is_set(at, "env"), self.is_set(at, "file")) {
            (true, true) => "has both env and file",
            (false, false) => "needs env or file",
            _ => return,
        };
        let hint = "write { env = \"NAME\" } or { file = \"PATH\" }";
        self.error(at, "", None, message, hint);
    }

    fn unused(&mut self) {
        let c = self.config;
        let limits = c.partners.values().flat_map(|p| &p.limits);
        let named = limits.filter_map(|limit| match limit {
            LimitRef::Named(name) => Some(name.as_str()),
            LimitRef::Inline(_) => None,
        });
        let named: BTreeSet<&str> = named.collect();
        for name in c.limits.keys().filter(|name| !named.contains(name.as_str())) {
            let message = "no partner draws from it";
            let hint = "set limits at a partner, or take it out";
            self.warn(&join("limits", name), "", None, message, hint);
        }
        let used = used_secrets(c);
        for name in c.secrets.keys().filter(|name| !used.contains(*name)) {
            self.warn(&join("secrets", name), "", None, "no template uses it", "");
        }
        let routes = c.topics.values().flat_map(|t| &t.deliver);
        let mut fed = BTreeSet::new();
        for route in routes {
            match &route.partner {
                PartnerRef::Named(name) => fed.insert(name),
                PartnerRef::Field(_) => return,
            };
        }
        for name in c.partners.keys().filter(|name| !fed.contains(name)) {
            let message = "no topic feeds it";
            let hint = "add [topics.NAME] with partner = this one";
            self.warn(&join("partners", name), "", None, message, hint);
        }
    }

    fn topic(&mut self, t: &TopicConfig) {
        let section = join("topics", &t.name);
        let s = section.as_str();
        let (partner, deliver) = (self.is_set(s, "partner"), self.is_set(s, "deliver"));
        if partner && deliver {
            let hint = "partner is short for deliver with one partner: keep one of them";
            self.error(s, "partner", None, "stands beside `deliver`", hint);
        }
        if deliver && t.deliver.is_empty() && !self.is_set(s, "deliver[0]") {
            let message = "expected a list of partners, as [{ partner = \"NAME\", when = \"…\" }]";
            self.error(s, "deliver", Some("[]".into()), message, "");
        }
        if !partner && !deliver {
            let hint = "write partner = \"NAME\", or deliver = [{ partner = \"NAME\" }]";
            self.error(s, "", None, "names no partner", hint);
        }
        let key = |i: usize| match deliver {
            true => format!("deliver[{i}].partner"),
            false => "partner".to_owned(),
        };
        let mut seen = BTreeSet::new();
        for (i, route) in t.deliver.iter().enumerate() {
            let PartnerRef::Named(name) = &route.partner else {
                continue;
            };
            if !self.is_set("partners", &tree::key(name)) {
                let hint = or_nearest(
                    name,
                    &self.config.partners,
                    format!("add [partners.{name}] with its url"),
                );
                let message = format!("no partner `{name}` is defined");
                self.error(s, &key(i), Some(quoted(name)), message, &hint);
            }
            if !seen.insert(name) {
                let hint = "one topic feeds a partner over one route: join the filters with `or`";
                let message = "the topic feeds this partner twice";
                self.error(s, &key(i), Some(quoted(name)), message, hint);
            }
        }
        if let Some(retention) = t.retention
            && retention < self.config.ledger.waiting_after
        {
            self.retention_too_short(s, "retention", retention);
        }
        let hidden = self.config.partners.values().find(|p| {
            let fed = t
                .deliver
                .iter()
                .any(|d| d.partner == PartnerRef::Named(p.name.clone()));
            fed && shown_id(&t.id, b"x", &Masker::new(&p.mask, &[])).is_none()
        });
        if hidden.is_some() {
            let message = "comes from what is masked: lists and logs name such messages by their hash only";
            let hint = "take another field, or `hash`";
            self.warn(s, "id", None, message, hint);
        }
        let positions = t.id.contains(&IdSource::Position);
        if positions && t.id.len() > 1 {
            let hint = "take position out, or the others";
            let message = "with the position in it every record is a message of its own";
            self.warn(s, "id", None, message, hint);
        }
        if positions && self.is_set(s, "id_missing") {
            let message = "has no effect: a position is never missing";
            self.warn(s, "id_missing", None, message, "");
        }
    }

    /// A section of exactly the topic's name goes first, then patterns in alphabetical order: what is never reached
    /// that way, or only for some topics, is said.
    fn patterns(&mut self) {
        let c = self.config;
        let patterns = c.topics.values().filter_map(|t| {
            let regex = whole_name(t.pattern.as_ref()?).ok()?;
            Some((t, regex))
        });
        let patterns: Vec<_> = patterns.collect();
        for (i, (t, regex)) in patterns.iter().enumerate() {
            let s = join("topics", &t.name);
            let same = patterns[..i]
                .iter()
                .find(|(earlier, _)| earlier.pattern == t.pattern);
            if let Some((earlier, _)) = same {
                let message = format!("[topics.{}] has the same pattern and goes first", earlier.name);
                let hint = "join the two sections: deliver takes several partners";
                self.error(&s, "match", None, message, hint);
                continue;
            }
            let mut topics = c.topics.values();
            while let Some(named) = topics.find(|n| n.pattern.is_none() && regex.is_match(&n.name)) {
                let message = format!("also matches {}, whose own section goes first", named.name);
                let hint = "narrow the pattern, if that is not meant";
                self.warn(&s, "match", None, message, hint);
            }
        }
    }
}

/// A hint at the name that was probably meant, or else this one.
pub(super) fn or_nearest<T>(wanted: &str, known: &BTreeMap<String, T>, hint: String) -> String {
    let near = nearest(wanted, known.keys().map(String::as_str));
    near.map_or(hint, |near| format!("did you mean `{near}`?"))
}

/// Every template of a partner with its key.
pub(super) fn templates<'p>(p: &'p PartnerConfig) -> Vec<(String, &'p str)> {
    let headers = |at: &'static str, headers: &'p [(String, String)]| {
        headers
            .iter()
            .map(move |(name, value)| (join(at, name), value.as_str()))
    };
    let mut all = vec![("url".to_owned(), p.url.as_str())];
    all.extend(headers("headers", &p.headers));
    all.extend(p.body.iter().map(|body| ("body".to_owned(), body.as_str())));
    if let Some(verify) = &p.verify {
        all.push(("verify.url".to_owned(), &verify.url));
        all.extend(headers("verify.headers", &verify.headers));
    }
    all
}

/// The names of the secrets that any template uses.
pub(super) fn used_secrets(config: &Config) -> BTreeSet<String> {
    config
        .partners
        .values()
        .flat_map(templates)
        .flat_map(|(_, text)| template::secrets(text))
        .collect()
}

/// JSON pointers of the fields that a topic's conditions, routes, budgets and templates look at.
pub(super) fn fields_read(config: &Config, topic: &TopicConfig) -> Vec<String> {
    let mut read = BTreeSet::new();
    let mut partners: Vec<&PartnerConfig> = Vec::new();
    for route in &topic.deliver {
        if let Some(when) = &route.when
            && let Ok(when) = Expr::compile(when, Vocabulary::Record)
        {
            read.extend(when.pointers());
        }
        match &route.partner {
            PartnerRef::Named(name) => partners.extend(config.partners.get(name)),
            PartnerRef::Field(pointer) => {
                read.insert(pointer.clone());
                partners.extend(config.partners.values());
            }
        }
    }
    for partner in partners {
        for (_, text) in templates(partner) {
            read.extend(template::fields(text));
        }
        let budgets = partner.limits.iter().filter_map(|limit| match limit {
            LimitRef::Named(name) => config.limits.get(name),
            LimitRef::Inline(limit) => Some(limit),
        });
        read.extend(budgets.filter_map(|limit| limit.by.clone()));
    }
    // The whole value is whatever it is.
    read.remove("");
    read.into_iter().collect()
}

/// The environment variables that secrets come from.
pub(super) fn secret_variables(config: &Config) -> BTreeSet<String> {
    let sources = config.secrets.values().chain(&config.listen.token);
    let variable = |source: &SecretSource| match source {
        SecretSource::Env(name) => Some(name.clone()),
        SecretSource::File(_) => None,
    };
    sources.filter_map(variable).collect()
}

/// One finding for each secret that is used and cannot be had now, of those errors that are `wanted`.
pub(super) fn missing_secrets(
    config: &Config,
    origins: &BTreeMap<String, Origin>,
    env: &BTreeMap<String, String>,
    severity: Severity,
    wanted: impl Fn(&secrets::SecretError) -> bool,
) -> Vec<Finding> {
    let mut check = Check {
        config,
        origins,
        findings: Vec::new(),
    };
    let used = used_secrets(config);
    let named = config.secrets.iter().filter(|(name, _)| used.contains(*name));
    let mut sources: Vec<_> = named
        .map(|(name, source)| (join("secrets", name), "", source))
        .collect();
    sources.extend(
        config
            .listen
            .token
            .iter()
            .map(|source| ("listen".to_owned(), "token", source)),
    );
    // One without a name has a finding already.
    sources.retain(|(.., source)| !matches!(source, SecretSource::Env(name) if name.is_empty()));
    for (section, key, source) in sources {
        let read = secrets::read(source, |name| env.get(name).map(Into::into));
        if let Some(e) = read.err().filter(&wanted) {
            let hint = match &e {
                secrets::SecretError::NotSet(name) => {
                    format!("export {name}, or let the secret come from a file; `run` needs it")
                }
                secrets::SecretError::Empty(_) => "put the secret in; `run` needs it".to_owned(),
                secrets::SecretError::NotText(_) => {
                    "a secret is text; encode what is not, as base64 for example".to_owned()
                }
                secrets::SecretError::Unusable { .. } => {
                    "write it again, without what does not belong to it (printf %s, no editor's marks)"
                        .to_owned()
                }
                secrets::SecretError::Unreadable { cause, .. } => format!("{cause}; `run` needs it"),
            };
            check.report(severity, &section, key, None, e.to_string(), &hint);
        }
    }
    check.findings
}
