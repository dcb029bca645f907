//! The sections about the node itself, shared budgets and secrets: tree to typed values.

use super::model::*;
use super::read::{self, Expected, Reader, Section};
use super::tree::{Data, Node};
use super::{reference, units};

/// Reads a whole tree. Keys that are wrong keep their defaults, and have their findings in `reader`.
pub(super) fn config(reader: &mut Reader, tree: &Node) -> Config {
    let mut config = Config::default();
    let mut root = reader.root(tree);
    for reserved in reference::RESERVED {
        if let Some(node) = root.take(reserved) {
            reader
                .report(
                    super::Severity::Error,
                    reserved,
                    &node.origin,
                    None,
                    "this section is not in this version",
                )
                .hint("take it out; the name is kept for a later version");
        }
    }
    node(reader, &mut root, &mut config.node);
    listen(reader, &mut root, &mut config.listen);
    log(reader, &mut root, &mut config.log);
    ledger(reader, &mut root, &mut config.ledger);
    actors(reader, &mut root, &mut config.actors);
    logging(reader, &mut root, &mut config.logging);
    secrets(reader, &mut root, &mut config);
    for (name, mut section) in reader.named(&mut root, "limits") {
        let limit = limit(reader, &mut section);
        reader.finish(&section);
        config.limits.insert(name, limit);
    }
    for (name, section) in reader.named(&mut root, "partners") {
        let partner = super::partner::partner(reader, section, &name);
        config.partners.insert(name, partner);
    }
    for (name, section) in reader.named(&mut root, "topics") {
        let topic = super::topic::topic(reader, section, &name);
        config.topics.insert(name, topic);
    }
    dedup(reader, &mut root, &mut config.dedup);
    reader.finish(&root);
    config
}

fn node(r: &mut Reader, root: &mut Section<'_>, into: &mut NodeConfig) {
    let mut s = r.table(root, "node");
    r.read(&mut s, "id", &mut into.id, read::filled);
    r.read(&mut s, "data", &mut into.data, read::path);
    r.read(&mut s, "memory", &mut into.memory, read::size_from(16 << 20));
    r.read(&mut s, "drain", &mut into.drain, read::duration);
    r.finish(&s);
}

fn listen(r: &mut Reader, root: &mut Section<'_>, into: &mut ListenConfig) {
    let mut s = r.table(root, "listen");
    r.read(&mut s, "admin", &mut into.admin, read::address);
    r.read_some(&mut s, "probes", &mut into.probes, read::address);
    into.token = r.maybe(&mut s, "token", secret);
    r.finish(&s);
}

fn log(r: &mut Reader, root: &mut Section<'_>, into: &mut LogConfig) {
    const NOT_YET: &str = "this version has the embedded log only";
    let mut s = r.table(root, "log");
    r.read(&mut s, "kind", &mut into.kind, |node| {
        match read::text(node)?.as_str() {
            "embedded" => Ok(LogKind::Embedded),
            "kafka" => Err(format!("{NOT_YET}, expected \"embedded\"")),
            _ => Err("expected \"embedded\"".into()),
        }
    });
    for key in ["kafka", "prefix", "lanes"] {
        if let Some(node) = s.take(key) {
            r.report(super::Severity::Error, &s.key(key), &node.origin, None, NOT_YET)
                .hint("take the key out");
        }
    }
    r.read(&mut s, "segment", &mut into.segment, read::size_from(1 << 20));
    r.read(&mut s, "commit_gap", &mut into.commit_gap, read::duration);
    r.read(&mut s, "retention", &mut into.retention, read::some_time);
    r.read_some(
        &mut s,
        "retention_bytes",
        &mut into.retention_bytes,
        read::size_from(1 << 20),
    );
    r.finish(&s);
}

fn ledger(r: &mut Reader, root: &mut Section<'_>, into: &mut LedgerConfig) {
    let mut s = r.table(root, "ledger");
    r.read(&mut s, "lease", &mut into.lease, read::some_time);
    r.read(
        &mut s,
        "payload_retention",
        &mut into.payload_retention,
        read::some_time,
    );
    r.read(
        &mut s,
        "payload_bytes",
        &mut into.payload_bytes,
        read::size_from(1 << 20),
    );
    r.read(&mut s, "readable_id", &mut into.readable_id, read::count(0));
    r.read(&mut s, "waiting_after", &mut into.waiting_after, read::some_time);
    r.read(
        &mut s,
        "position_every",
        &mut into.position_every,
        read::some_time,
    );
    r.read(
        &mut s,
        "checkpoint_entries",
        &mut into.checkpoint_entries,
        read::count(1),
    );
    r.read(
        &mut s,
        "checkpoint_every",
        &mut into.checkpoint_every,
        read::some_time,
    );
    r.finish(&s);
}

fn actors(r: &mut Reader, root: &mut Section<'_>, into: &mut ActorsConfig) {
    let mut s = r.table(root, "actors");
    r.read(&mut s, "threads", &mut into.threads, read::count(0));
    r.read(&mut s, "busy_keys", &mut into.busy_keys, read::count(1));
    r.read(&mut s, "requests", &mut into.requests, read::count(1));
    r.read(
        &mut s,
        "read_chunk",
        &mut into.read_chunk,
        bytes_in_memory(4 << 10),
    );
    r.read(&mut s, "window", &mut into.window, read::count(1));
    r.read(&mut s, "ranges", &mut into.ranges, read::count(1));
    r.read(&mut s, "mailbox", &mut into.mailbox, read::count(1));
    r.read(&mut s, "permits", &mut into.permits, read::count(1));
    let mut restart = r.table(&mut s, "restart");
    r.read(&mut restart, "first", &mut into.restart.first, read::some_time);
    r.read(
        &mut restart,
        "longest",
        &mut into.restart.longest,
        read::some_time,
    );
    r.read(
        &mut restart,
        "escalate_after",
        &mut into.restart.escalate_after,
        read::count(1),
    );
    r.read(&mut restart, "within", &mut into.restart.within, read::some_time);
    r.finish(&restart);
    r.finish(&s);
}

/// A size that must fit the address space.
pub(super) fn bytes_in_memory(least: u64) -> impl Fn(&Node) -> Result<usize, Expected> {
    move |node| {
        let bytes = read::size_from(least)(node)?;
        usize::try_from(bytes).map_err(|_| "expected a smaller size".into())
    }
}

fn logging(r: &mut Reader, root: &mut Section<'_>, into: &mut LoggingConfig) {
    let mut s = r.table(root, "logging");
    r.read(&mut s, "level", &mut into.level, |node| {
        let level = read::filled(node)?;
        match units::parse_log_filter(&level) {
            Ok(_) => Ok(level),
            Err(why) => Err(format!(
                "expected a log filter, as info or sluicegate=debug,warn: {why}"
            )),
        }
    });
    let formats = [
        ("auto", LogFormat::Auto),
        ("pretty", LogFormat::Pretty),
        ("json", LogFormat::Json),
    ];
    r.read(&mut s, "format", &mut into.format, read::choice(&formats));
    r.read(&mut s, "sample", &mut into.sample, read::count(0));
    r.finish(&s);
}

fn secrets(r: &mut Reader, root: &mut Section<'_>, config: &mut Config) {
    for (name, mut s) in r.named(root, "secrets") {
        let env = r.maybe(&mut s, "env", read::filled);
        let file = r.maybe(&mut s, "file", read::path);
        r.finish(&s);
        let layer = |key: &str| r.origins.get(&s.key(key)).map_or(0, |origin| origin.layer);
        // An overlay cannot take the other key away, so the later layer wins; in one layer it is a mistake.
        let source = match (env, file) {
            (Some(env), Some(file)) if layer("env") != layer("file") => {
                if layer("env") > layer("file") {
                    SecretSource::Env(env)
                } else {
                    SecretSource::File(file)
                }
            }
            (Some(env), None) => SecretSource::Env(env),
            (None, Some(file)) => SecretSource::File(file),
            (found, _) => {
                let message = if found.is_some() {
                    "has both env and file"
                } else {
                    "needs env or file"
                };
                let origin = s.origin.clone();
                r.report(super::Severity::Error, &s.path, &origin, None, message)
                    .hint(SECRET_FORM);
                continue;
            }
        };
        config.secrets.insert(name, source);
    }
}

const SECRET_FORM: &str = "write { env = \"NAME\" } or { file = \"PATH\" }; a secret itself does not belong into a file of settings";

/// `{ env = … }` or `{ file = … }` as one value.
fn secret(node: &Node) -> Result<SecretSource, Expected> {
    let form = || format!("expected {SECRET_FORM}");
    let Data::Table(table) = &node.data else {
        return Err(form());
    };
    match (table.len(), table.get("env"), table.get("file")) {
        (1, Some(env), _) => read::filled(env).map(SecretSource::Env),
        (1, _, Some(file)) => read::path(file).map(SecretSource::File),
        _ => Err(form()),
    }
}

/// The keys of a budget.
pub(super) fn limit(r: &mut Reader, s: &mut Section<'_>) -> LimitConfig {
    LimitConfig {
        rates: r.required(s, "rates", rates).unwrap_or_default(),
        by: r.maybe(s, "by", |node| read::json_pointer(&read::text(node)?)),
        burst: r.maybe(s, "burst", read::count(1)),
        margin: r
            .maybe(s, "margin", read::duration)
            .unwrap_or(LimitConfig::default().margin),
    }
}

fn rates(node: &Node) -> Result<Vec<Rate>, Expected> {
    read::texts(node).map_err(|_| "expected a list of rates, as [\"500/s\", \"20000/min\"]")?;
    let rates = read::each(node, |text| units::parse_rate(text).map_err(|e| e.to_string()))?;
    if rates.is_empty() {
        return Err("expected at least one rate, as [\"500/s\"]".into());
    }
    Ok(rates)
}

fn dedup(r: &mut Reader, root: &mut Section<'_>, into: &mut DedupConfig) {
    let mut s = r.table(root, "dedup");
    r.read(&mut s, "retention", &mut into.retention, read::some_time);
    r.read(&mut s, "bucket", &mut into.bucket, read::some_time);
    r.read(&mut s, "cache", &mut into.cache, read::size_from(1 << 20));
    r.finish(&s);
}
