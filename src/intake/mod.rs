//! Taking records in: files ([`import`]) and single records ([`send`]), into the partition they belong to ([`place`]).
//!
//! What records hold that their topic does not use says [`hints`].
//!
//! The same message ID must come to the same partition, or the ledger could not know it again: so a record goes by its
//! key where it has one, else by its message ID, wherever it comes in.

pub mod hints;
pub mod import;
pub mod lacks;
pub mod place;
pub mod send;
pub mod serve;

#[cfg(test)]
pub(crate) mod fake_log;
#[cfg(test)]
mod tests;

use crate::api::TopicIdentity;
use crate::config::{Config, TopicConfig};
use crate::log::{Log, TopicMeta, TopicSpec};
use std::collections::BTreeMap;

/// What the topic of this section is made with.
pub fn topic_spec(config: &Config, topic: &TopicConfig) -> TopicSpec {
    TopicSpec {
        partitions: topic.partitions,
        retention: Some(topic.retention.unwrap_or(config.log.retention)),
        retention_bytes: topic.retention_bytes.or(config.log.retention_bytes),
    }
}

/// Which incarnation each topic is.
pub fn topic_identities(log: &dyn Log) -> BTreeMap<String, TopicIdentity> {
    let topics = log.topics().into_iter();
    let inputs = topics.filter(|topic| !topic.name.starts_with("__"));
    let identity = |topic: TopicMeta| {
        let identity = TopicIdentity {
            id: format!("{:032x}", topic.id.0),
            partitions: topic.partitions.len() as u32,
        };
        (topic.name, identity)
    };
    inputs.map(identity).collect()
}

/// The section that decides about a topic, under the topic's own name (a section with a pattern has another one).
pub fn section_of(config: &Config, topic: &str) -> Option<TopicConfig> {
    let section = config.section_of(topic)?;
    Some(TopicConfig {
        name: topic.to_owned(),
        ..section.clone()
    })
}
