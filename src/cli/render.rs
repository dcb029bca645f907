//! `render`: the request a record would become, not sent.
//!
//! Works on the configuration alone, so that it needs no node. The partition is the one that the record would come to.
//! Message ID, Idempotency-Key and traceparent are made with the identity of the topic: where a node of this configuration
//! runs, or its folder is at hand, they are those that are sent; else they are marked as examples. The offset is always an
//! example, and with it the ID of a record that goes by its position.

use super::{CliError, Exit, Global, Out, door};
use crate::admin::Client;
use crate::app::{self, route_rules};
use crate::clock::Clock;
use crate::config::{Config, Loaded, PartnerRef, TopicConfig};
use crate::core::in_full::in_full;
use crate::core::mask::Masker;
use crate::core::message_id::IdScope;
use crate::core::record::{Headers, Record};
use crate::core::resolve::{Known, Resolved, Resolver, Rules};
use crate::core::shown::shown_id;
use crate::core::types::TopicId;
use crate::intake::place::{Incoming, Placer};
use crate::sink::Delivery;
use crate::sink::http::HttpSink;
use crate::sink::secrets::Secrets;
use bytes::Bytes;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;

/// Arguments of `render`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The record's value; - reads it from stdin
    #[arg(value_name = "VALUE")]
    pub value: String,
    /// Topic section that the record is of
    #[arg(long, value_name = "NAME", required_unless_present = "partner")]
    pub topic: Option<String>,
    /// Partner to render for [default: every partner of the topic]
    #[arg(long, value_name = "NAME")]
    pub partner: Option<String>,
    /// The record's key
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// A header of the record; may be given several times
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = super::header_arg)]
    pub headers: Vec<(String, String)>,
}

/// What a record becomes for one partner.
#[derive(Debug, Serialize)]
struct Rendered {
    topic: String,
    partner: String,
    /// The readable message ID.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    /// The partition that it would come to; none: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    partition: Option<u32>,
    /// What of it stands as an example, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    examples: Vec<String>,
    #[serde(flatten)]
    result: Outcome,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase", tag = "result")]
enum Outcome {
    /// It would be sent so; everything secret masked.
    Request {
        method: String,
        url: String,
        headers: BTreeMap<String, String>,
        body: String,
    },
    /// Not for this partner: finished at once.
    Filtered,
    /// It could not be sent.
    Dead { reason: String },
}

impl fmt::Display for Rendered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.id.as_deref().map(|id| format!(", message {id}"));
        write!(
            f,
            "# {} to {}{}",
            self.topic,
            self.partner,
            id.unwrap_or_default()
        )?;
        if let Some(partition) = self.partition {
            write!(f, ", partition {partition}")?;
        }
        for example in &self.examples {
            write!(f, "\n# {example}")?;
        }
        match &self.result {
            Outcome::Filtered => f.write_str("\n# not for this partner: finished without a request"),
            Outcome::Dead { reason } => write!(f, "\n# a dead letter: {reason}"),
            Outcome::Request {
                method,
                url,
                headers,
                body,
            } => {
                write!(f, "\n{method} {url}")?;
                for (name, value) in headers {
                    write!(f, "\n{name}: {value}")?;
                }
                match body.is_empty() {
                    true => Ok(()),
                    false => write!(f, "\n\n{body}"),
                }
            }
        }
    }
}

/// Runs the command.
pub fn run(args: Args, global: &Global) -> Result<Exit, CliError> {
    let loaded = global.load()?;
    let sources = loaded.secret_sources().map_err(CliError::configuration)?;
    let secrets = Secrets::load(&sources).map_err(|errors| {
        let told: Vec<_> = errors.iter().map(ToString::to_string).collect();
        CliError::usage(told.join("; "))
    })?;
    let value = match args.value.as_str() {
        "-" => {
            let mut value = Vec::new();
            std::io::stdin()
                .lock()
                .read_to_end(&mut value)
                .map_err(|e| CliError::failed("cannot read the value").at("stdin").caused_by(e))?;
            // As `send` reads it.
            value.truncate(super::send::without_line_end(&value).len());
            value
        }
        given => given.as_bytes().to_vec(),
    };
    let config = &loaded.config;
    let topic = match (&args.topic, &args.partner) {
        (Some(topic), _) => door::section(config, topic)?,
        (None, partner) => only_topic_of(config, partner.as_deref().unwrap_or_default())?,
    };
    let clock = Clock::start();
    let record = Record {
        offset: 0,
        timestamp: clock.now(),
        key: args.key.map(Bytes::from),
        value: value.into(),
        headers: Headers::encode(args.headers.iter().map(|(n, v)| (n.as_str(), v.as_bytes()))),
    };
    let mut routes = route_rules(config, &topic);
    if let Some(wanted) = &args.partner {
        routes.retain(|(partner, _)| partner == wanted);
        if routes.is_empty() {
            return Err(CliError::usage(format!(
                "topic `{}` does not go to a partner `{wanted}`",
                topic.name
            )));
        }
    }
    let there = identity(global, &loaded, &topic.name);
    let partitions = there.map_or(topic.partitions, |(_, partitions)| partitions);
    // What has something twice that decides about it says so below.
    let partition = Placer::new(&topic, partitions).ok().and_then(|placer| {
        let incoming = Incoming {
            key: record.key.as_deref(),
            value: &record.value,
            headers: &args.headers,
        };
        placer.place(incoming).ok()?.partition
    });
    let place = Place {
        topic_id: there.map(|(id, _)| id),
        partition,
    };
    let mut out = Out::new(global);
    let mut dead = false;
    for (i, (partner, rules)) in routes.into_iter().enumerate() {
        let rendered = render(config, &topic, &partner, rules, place, &record, &secrets, clock)?;
        dead |= matches!(rendered.result, Outcome::Dead { .. });
        if out.is_json() {
            out.object(&rendered)?;
        } else {
            if i > 0 {
                out.line("")?;
            }
            out.line(&rendered)?;
        }
    }
    out.finish()?;
    Ok(if dead { Exit::Failed } else { Exit::Done })
}

/// Where the record would come to.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    /// Which incarnation of the topic; none: it is not known here.
    topic_id: Option<TopicId>,
    /// None: any.
    partition: Option<u32>,
}

/// Identity and partitions of a topic that is there: what the node says, or the folder of a stopped one.
fn identity(global: &Global, loaded: &Loaded, topic: &str) -> Option<(TopicId, u32)> {
    let config = &loaded.config;
    let address = global.admin_address().ok()?;
    let client = Client::new(&address, global.token().map(|t| t.expose().to_owned())).ok()?;
    let ask = async {
        if global.admin.is_none() {
            door::must_be_ours(&client, config, &global.files()).await.ok()?;
        }
        client.identity().await.ok()
    };
    if let Some(node) = door::runtime().ok()?.block_on(ask) {
        let there = node.topics.get(topic)?;
        return Some((
            TopicId(u128::from_str_radix(&there.id, 16).ok()?),
            there.partitions,
        ));
    }
    if global.admin.is_some() || !config.node.data.join("log").is_dir() {
        return None;
    }
    let log = app::open_log(config).ok()?;
    let there = log
        .topic(topic)
        .map(|meta| (meta.id, meta.partitions.len() as u32));
    // Nothing was written.
    let _ = log.close();
    there
}

/// The topic that feeds a partner, if there is only one.
fn only_topic_of(config: &Config, partner: &str) -> Result<TopicConfig, CliError> {
    if !config.partners.contains_key(partner) {
        let known: Vec<_> = config.partners.keys().map(String::as_str).collect();
        return Err(CliError::usage(format!("there is no partner `{partner}`"))
            .mend(format!("partners: {}", known.join(", "))));
    }
    let feeds = |topic: &&TopicConfig| {
        topic.deliver.iter().any(|d| match &d.partner {
            PartnerRef::Named(name) => name == partner,
            PartnerRef::Field(_) => true,
        })
    };
    let topics: Vec<_> = config.topics.values().filter(feeds).collect();
    match topics[..] {
        [topic] => Ok(topic.clone()),
        [] => Err(CliError::usage(format!("no topic goes to `{partner}`"))),
        ref several => {
            let names: Vec<_> = several.iter().map(|t| t.name.as_str()).collect();
            Err(CliError::usage(format!("several topics go to `{partner}`"))
                .mend(format!("--topic names one: {}", names.join(", "))))
        }
    }
}

#[allow(clippy::too_many_arguments)]
fn render(
    config: &Config,
    topic: &TopicConfig,
    partner: &str,
    rules: Rules,
    place: Place,
    record: &Record,
    secrets: &Secrets,
    clock: Clock,
) -> Result<Rendered, CliError> {
    let failed = |e: String| CliError::failed(format!("cannot render for `{partner}`")).at(e);
    let settings = config
        .partners
        .get(partner)
        .ok_or_else(|| failed("it is not in the configuration".into()))?;
    let (topic_id, partition) = (place.topic_id.unwrap_or(TopicId(0)), place.partition.unwrap_or(0));
    let scope = IdScope::new(&topic.name, topic_id, partition, partner);
    let by_place = scope.position(record.offset);
    let resolver =
        Resolver::try_new(scope, &topic.name, partition, rules).map_err(|e| failed(e.to_string()))?;
    let masker = Masker::new(&settings.mask, &secrets.values());
    let rendered = |known: Option<&Known>, result| Rendered {
        topic: topic.name.clone(),
        partner: partner.to_owned(),
        // As lists show it: by its hash where a part of it is masked.
        id: known.map(|k| shown_id(&topic.id, &k.readable, &masker).unwrap_or_else(|| k.id.to_string())),
        partition: place.partition,
        examples: match known {
            Some(known) => examples(place, known.id == by_place),
            None => Vec::new(),
        },
        result,
    };
    let known = match resolver.resolve(record) {
        Resolved::Filtered => return Ok(rendered(None, Outcome::Filtered)),
        Resolved::Invalid(known, reason) => return Ok(rendered(Some(&known), Outcome::Dead { reason })),
        Resolved::Message(known) => known,
    };
    let sink = HttpSink::try_new(settings, secrets, clock).map_err(|e| failed(in_full(&e)))?;
    let delivery = Delivery {
        topic: topic.name.as_str().into(),
        partition,
        record: record.clone(),
        id: known.id,
        readable: known.readable.clone(),
        round: 1,
        attempt: 1,
        idempotency_key: None,
    };
    let result = match sink.render(&delivery) {
        Ok(request) => Outcome::Request {
            method: request.method,
            url: request.url,
            headers: request.headers.into_iter().collect(),
            body: request.body,
        },
        Err(e) => Outcome::Dead {
            reason: e.to_string(),
        },
    };
    Ok(rendered(Some(&known), result))
}

/// What of a request stands as an example.
fn examples(place: Place, by_position: bool) -> Vec<String> {
    let names = "idempotency-key, traceparent and message_id";
    let mut examples = Vec::new();
    if by_position {
        examples.push(format!(
            "for example as offset 0: the record goes by its position, so another {names} are sent"
        ));
    } else if place.topic_id.is_none() {
        examples.push(format!(
            "for example: another {names} are sent, as the topic is not there yet, or not at hand"
        ));
    } else if place.partition.is_none() {
        examples.push(format!(
            "for example in partition 0: any may get it, and another {names} go with that"
        ));
    }
    examples
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "
[secrets]
acme = { file = 'FILE' }
[partners.acme]
url = \"http://127.0.0.1:1/v1/{{ value.user }}\"
headers = { authorization = \"Bearer {{ secret('acme') }}\" }
[partners.other]
url = 'http://127.0.0.1:1/{{ value.missing }}'
[topics.t]
id = 'json:/id'
deliver = [{ partner = 'acme', when = \"value.kind == 'a'\" }, { partner = 'other' }]
";

    fn rendered(partner: &str, value: &'static str) -> Rendered {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        std::fs::write(&file, "planted-secret").unwrap();
        let text = CONFIG.replace("FILE", &file.display().to_string());
        let loaded = crate::config::load_text("actors.toml", &text).unwrap();
        let secrets = Secrets::load(&loaded.secret_sources().unwrap()).unwrap();
        let topic = door::section(&loaded.config, "t").unwrap();
        let (name, rules) = route_rules(&loaded.config, &topic)
            .into_iter()
            .find(|(name, _)| name == partner)
            .unwrap();
        let record = Record {
            value: Bytes::from_static(value.as_bytes()),
            ..Record::default()
        };
        render(
            &loaded.config,
            &topic,
            &name,
            rules,
            Place::default(),
            &record,
            &secrets,
            Clock::start(),
        )
        .unwrap()
    }

    #[test]
    fn a_request_is_shown_as_it_would_be_sent_and_masked() {
        let shown = rendered("acme", r#"{"id":"m1","user":"u7","kind":"a"}"#);
        assert_eq!(shown.id.as_deref(), Some("m1"));
        let text = shown.to_string();
        assert!(text.contains("POST http://127.0.0.1:1/v1/u7\n"), "{text}");
        assert!(
            text.ends_with("\n\n{\"id\":\"m1\",\"user\":\"u7\",\"kind\":\"a\"}"),
            "{text}"
        );
        assert!(text.contains("\nauthorization: "), "{text}");
        let json = serde_json::to_string(&shown).unwrap();
        assert!(json.contains("\"result\":\"request\""), "{json}");
        for all in [text, json] {
            assert!(!all.contains("planted-secret"), "{all}");
        }
    }

    #[test]
    fn an_id_that_lists_hide_is_hidden_here_too() {
        let shown = rendered("acme", r#"{"id":"jane.doe@example.org","user":"u7","kind":"a"}"#);
        assert_eq!(shown.id.as_ref().map(String::len), Some(32));
        assert!(
            !shown
                .to_string()
                .split("\n\n")
                .next()
                .unwrap()
                .contains("jane.doe")
        );
    }

    #[test]
    fn what_would_not_be_sent_says_why() {
        let filtered = rendered("acme", r#"{"id":"m1","user":"u7","kind":"b"}"#);
        assert!(matches!(filtered.result, Outcome::Filtered));
        let broken = rendered("other", r#"{"id":"m1"}"#).to_string();
        assert!(
            broken.contains("dead letter") && broken.contains("missing"),
            "{broken}"
        );
        let nameless = rendered("other", r#"{"user":"u7"}"#).to_string();
        assert!(nameless.contains("no_id"), "{nameless}");
    }

    #[test]
    fn what_is_an_example_is_marked() {
        let there = Place {
            topic_id: Some(TopicId(7)),
            partition: Some(3),
        };
        assert_eq!(examples(there, false), Vec::<String>::new());
        assert!(examples(there, true)[0].contains("goes by its position"));
        assert!(examples(Place::default(), false)[0].contains("not there yet"));
        let shown = rendered("acme", r#"{"id":"m1","user":"u7","kind":"a"}"#).to_string();
        assert!(
            shown.contains("\n# for example: another idempotency-key"),
            "{shown}"
        );
    }

    #[test]
    fn a_partner_alone_is_enough_where_one_topic_feeds_it() {
        let text = CONFIG.replace("FILE", "/nowhere");
        let loaded = crate::config::load_text("actors.toml", &text).unwrap();
        assert_eq!(only_topic_of(&loaded.config, "acme").unwrap().name, "t");
        assert_eq!(
            only_topic_of(&loaded.config, "nobody").unwrap_err().exit(),
            Exit::Usage
        );
    }
}
