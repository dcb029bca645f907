//! `[topics.NAME]`: tree to typed value.

use super::model::*;
use super::read::{self, Expected, Reader, Section};
use super::tree::{Data, Node};
use crate::core::expr::Vocabulary;
use regex::Regex;

/// Reads one topic section.
pub(super) fn topic(r: &mut Reader, mut s: Section<'_>, name: &str) -> TopicConfig {
    let s = &mut s;
    let mut t = TopicConfig::new(name, "");
    t.deliver = deliver(r, s);
    t.pattern = r.maybe(s, "match", |node| {
        let pattern = read::filled(node)?;
        whole_name(&pattern)
            .map(|_| pattern)
            .map_err(|_| "expected a regular expression, as eu\\\\..*".into())
    });
    r.read(s, "partitions", &mut t.partitions, |node| {
        let partitions = read::count(1)(node)?;
        // 23 p mod L spreads partitions over lanes; more than this is a typing mistake, not a topic.
        if partitions > 10_000 {
            Err("expected at most 10000 partitions".into())
        } else {
            Ok(partitions)
        }
    });
    r.read(s, "id", &mut t.id, |node| {
        let sources = read::each(node, id_source)?;
        if sources.is_empty() {
            return Err("expected at least one source of the ID".into());
        }
        Ok(sources)
    });
    r.read(s, "key", &mut t.key, |node| match read::text(node)?.as_str() {
        "record" => Ok(KeySource::Record),
        json if json.starts_with("json:") => read::json_pointer(json).map(KeySource::Json),
        _ => Err("expected \"record\" or \"json:/POINTER\"".into()),
    });
    let key_missing = [
        ("unordered", KeyMissing::Unordered),
        ("together", KeyMissing::Together),
        ("dead", KeyMissing::Dead),
    ];
    r.read(s, "key_missing", &mut t.key_missing, read::choice(&key_missing));
    let id_missing = [("dead", IdMissing::Dead), ("position", IdMissing::Position)];
    r.read(s, "id_missing", &mut t.id_missing, read::choice(&id_missing));
    t.retention = r.maybe(s, "retention", read::some_time);
    t.retention_bytes = r.maybe(s, "retention_bytes", read::size_from(1 << 20));
    t.busy_keys = r.maybe(s, "busy_keys", read::count(1));
    r.finish(s);
    t
}

/// A pattern over whole topic names.
pub(super) fn whole_name(pattern: &str) -> Result<Regex, regex::Error> {
    Regex::new(&format!("^(?:{pattern})$"))
}

fn id_source(text: &str) -> Result<IdSource, Expected> {
    let form = "expected header:NAME, json:/POINTER, key, hash, query:NAME or position";
    match text.split_once(':') {
        None => match text {
            "key" => Ok(IdSource::Key),
            "hash" => Ok(IdSource::Hash),
            "position" => Ok(IdSource::Position),
            _ => Err(form.into()),
        },
        Some(("header", name)) if !name.is_empty() => Ok(IdSource::Header(name.to_owned())),
        Some(("query", name)) if !name.is_empty() => Ok(IdSource::Query(name.to_owned())),
        Some(("json", _)) => read::json_pointer(text).map(IdSource::Json),
        Some(_) => Err(form.into()),
    }
}

fn partner_ref(node: &Node) -> Result<PartnerRef, Expected> {
    let text = read::filled(node)?;
    if text.starts_with("json:") {
        return read::json_pointer(&text).map(PartnerRef::Field);
    }
    Ok(PartnerRef::Named(text))
}

fn deliver(r: &mut Reader, s: &mut Section<'_>) -> Vec<DeliverConfig> {
    let partner = r.maybe(s, "partner", partner_ref);
    let (partner_key, path) = (s.key("partner"), s.key("deliver"));
    let list = r.maybe(s, "deliver", |node| match &node.data {
        Data::List(items) if !items.is_empty() => Ok(items.clone()),
        _ => Err("expected a list of partners, as [{ partner = \"acme\", when = \"…\" }]".into()),
    });
    let layer = |r: &Reader, key: &str| r.origins.get(key).map_or(0, |origin| origin.layer);
    match (partner, list) {
        (Some(partner), None) => vec![DeliverConfig { partner, when: None }],
        // An overlay cannot take the other key away, so the later layer wins; in one layer it is a mistake.
        (Some(partner), Some(_)) if layer(r, &partner_key) > layer(r, &path) => {
            vec![DeliverConfig { partner, when: None }]
        }
        (partner, Some(items)) => {
            if partner.is_some() && layer(r, &partner_key) == layer(r, &path) {
                let origin = r.origins.get(&partner_key).cloned().unwrap_or_default();
                r.report(
                    super::Severity::Error,
                    &partner_key,
                    &origin,
                    None,
                    "stands beside `deliver`",
                )
                .hint("partner is short for deliver with one partner: keep one of them");
            }
            items
                .iter()
                .enumerate()
                .filter_map(|(i, node)| one(r, node, &format!("{path}[{i}]")))
                .collect()
        }
        (None, None) => {
            // A wrong value has its own finding already.
            if !r.origins.contains_key(&partner_key) && !r.origins.contains_key(&path) {
                let origin = s.origin.clone();
                r.report(super::Severity::Error, &s.path, &origin, None, "names no partner")
                    .hint("write partner = \"NAME\", or deliver = [{ partner = \"NAME\" }]");
            }
            Vec::new()
        }
    }
}

fn one(r: &mut Reader, node: &Node, path: &str) -> Option<DeliverConfig> {
    if let Data::Text(_) = &node.data {
        r.origins.insert(format!("{path}.partner"), node.origin.clone());
        return match partner_ref(node) {
            Ok(partner) => Some(DeliverConfig { partner, when: None }),
            Err(expected) => {
                r.wrong(path, node, expected);
                None
            }
        };
    }
    let mut s = r.table_of(node, path.to_owned(), "topics.NAME.deliver[]".into());
    let partner = r.required(&mut s, "partner", partner_ref);
    let when = r.maybe(&mut s, "when", read::condition(Vocabulary::Record));
    r.finish(&s);
    partner.map(|partner| DeliverConfig { partner, when })
}
