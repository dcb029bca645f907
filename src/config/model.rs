//! The typed configuration. What is in a value of these types has been checked: every reference resolves, every
//! count that must not be zero is not, every template, pattern and pointer has been parsed once.
//!
//! A key is written once, as a field of its section: the doc comment is its text in the manual, the type (or the
//! [kind](super::kinds) that it names) says what it takes, `Default` its default. Reading, printing, manual, sample and
//! schema follow from that.

pub use super::limits::{CalendarUnit, LimitConfig, LimitRef, Rate};
pub use super::node::*;
pub use super::partner::*;
pub use super::secrets::SecretSource;
pub use super::topic::*;

use super::kinds::named;
use super::tree::{Origin, join};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// Everything `actors.toml` and its overlays say, with defaults filled in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The node itself.
    pub node: NodeConfig,
    /// Where the node listens.
    pub listen: ListenConfig,
    /// The log that holds topics and ledger.
    pub log: LogConfig,
    /// What is kept of each message, and for how long.
    pub ledger: LedgerConfig,
    /// Concurrency of the actor tree.
    pub actors: ActorsConfig,
    /// Log lines.
    pub logging: LoggingConfig,
    /// Where secrets come from. A literal is refused.
    #[serde(deserialize_with = "named")]
    pub secrets: BTreeMap<String, SecretSource>,
    /// Budgets that several partners may share. All rates hold at once.
    #[serde(deserialize_with = "named")]
    pub limits: BTreeMap<String, LimitConfig>,
    /// The partners.
    #[serde(deserialize_with = "named")]
    pub partners: BTreeMap<String, PartnerConfig>,
    /// The topics, and which partners they feed.
    #[serde(deserialize_with = "named")]
    pub topics: BTreeMap<String, TopicConfig>,
    /// Memory of the IDs of finished messages.
    pub dedup: DedupConfig,
}

impl Config {
    /// Fills in names, and what depends on other keys. `origins` has the keys that are set.
    pub(super) fn complete(&mut self, origins: &BTreeMap<String, Origin>) {
        for (name, partner) in &mut self.partners {
            let section = join("partners", name);
            partner.name.clone_from(name);
            partner.complete(|key| origins.contains_key(&format!("{section}.{key}")));
        }
        for (name, topic) in &mut self.topics {
            topic.name.clone_from(name);
            topic.complete();
        }
    }

    /// Defaults for a test or a tool: everything below `data`, a fixed node ID, and an admin port that the system
    /// picks. Add partners and topics with [`Config::with_partner`] and [`Config::with_topic`].
    pub fn for_test(data: impl Into<PathBuf>) -> Self {
        let mut config = Self::default();
        config.node.id = "test-node".into();
        config.node.data = data.into();
        config.listen.admin = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        config
    }

    /// Adds (or replaces) a partner under its own name.
    pub fn with_partner(mut self, partner: PartnerConfig) -> Self {
        self.partners.insert(partner.name.clone(), partner);
        self
    }

    /// Adds (or replaces) a topic section under its own name.
    pub fn with_topic(mut self, topic: TopicConfig) -> Self {
        self.topics.insert(topic.name.clone(), topic);
        self
    }

    /// Adds (or replaces) a shared budget.
    pub fn with_limit(mut self, name: impl Into<String>, limit: LimitConfig) -> Self {
        self.limits.insert(name.into(), limit);
        self
    }
}
