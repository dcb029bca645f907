//! How commands that bring records in reach the log: through a running node, else by opening a stopped node's folder.

use super::{CliError, Global};
use crate::admin::client::{Client, ClientError};
use crate::api::NodeIdentity;
use crate::app::{self, OpenError};
use crate::config::{Config, TopicConfig};
use crate::intake;
use crate::log::{Log, LogError};
use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where records go in.
pub enum Door {
    /// A node that runs.
    Node(Client),
    /// The log of one that does not.
    Folder(Arc<dyn Log>),
}

impl Door {
    /// The node at the admin address; where none answers and none was named, the folder of the stopped one.
    pub fn open(global: &Global) -> Result<Self, CliError> {
        let address = global.admin_address()?;
        let patience = Patience::begin();
        loop {
            if listens(&address) {
                let token = global.token().map(|t| t.expose().to_owned());
                let client = Client::new(&address, token).map_err(refused)?;
                if global.admin.is_none() {
                    runtime()?.block_on(must_be_ours(&client, &global.load()?.config, &global.files()))?;
                }
                return Ok(Door::Node(client));
            }
            if global.admin.is_some() {
                return Err(CliError::failed(format!("no node answers at {address}")).mend(
                    "start it with `sluicegate run`, or leave --admin out to use the folder of a stopped one",
                ));
            }
            let error = match app::open_log(&global.load()?.config) {
                Ok(log) => return Ok(Door::Folder(log)),
                Err(error) => error,
            };
            match &error {
                OpenError::Log(LogError::Locked { .. }) if patience.wait() => {}
                OpenError::Log(LogError::Locked { .. }) => {
                    return Err(CliError::failed(
                        "a node has the folder open, but its admin port does not answer",
                    )
                    .at(address)
                    .caused_by(error));
                }
                _ => return Err(CliError::failed("cannot open the node's folder").caused_by(error)),
            }
        }
    }
}

/// Refuses a node that is not the one of the configuration at hand. Its address is the default, or was copied along with
/// the file: another node may well have it, and would take records and orders that are not for it.
pub async fn must_be_ours(client: &Client, config: &Config, files: &[PathBuf]) -> Result<(), CliError> {
    // What cannot be asked (an older node, a token that is missing) is the business of the request itself.
    let Ok(there) = client.identity().await else {
        return Ok(());
    };
    let here = Here::of(config, files);
    if here.is(&there) {
        return Ok(());
    }
    let address = client.address();
    Err(CliError::usage(format!("the node that answers at {address} is another one"))
        .at(format!("it is `{}` with the folder {}, not with {}", there.id, there.data, here.data))
        .mend(format!(
            "give the node of this configuration a listen.admin of its own, or say --admin {address} to mean the other one"
        )))
}

/// What a command knows of its own node.
#[derive(Debug, Default)]
struct Here {
    data: String,
    journal: Option<String>,
    files: Vec<String>,
}

impl Here {
    fn of(config: &Config, files: &[PathBuf]) -> Self {
        let absolute = |path: &Path| path.canonicalize().or_else(|_| std::path::absolute(path));
        let text = |path: &Path| {
            absolute(path)
                .unwrap_or_else(|_| path.to_owned())
                .display()
                .to_string()
        };
        Self {
            data: text(&config.node.data),
            journal: crate::log::embedded::journal_of(&config.node.data.join("log"))
                .map(|uuid| format!("{uuid:032x}")),
            files: files.iter().map(|file| text(file)).collect(),
        }
    }

    /// Whether that is the own node. The folders' journals decide where both are known; else the same folder or the same
    /// file says that it is. A node that says nothing of itself is believed.
    fn is(&self, there: &NodeIdentity) -> bool {
        if there.data.is_empty() {
            return true;
        }
        match &self.journal {
            Some(journal) if !there.journal.is_empty() => *journal == there.journal,
            _ => self.data == there.data || self.files.iter().any(|file| there.files.contains(file)),
        }
    }
}

/// A command's patience with a folder that is in use while no admin port answers: a node is just starting or
/// stopping, or another command is at work for a moment.
pub struct Patience(Instant);

impl Patience {
    const LONGEST: Duration = Duration::from_secs(3);
    const STEP: Duration = Duration::from_millis(50);

    /// It begins now.
    pub fn begin() -> Self {
        Self(Instant::now())
    }

    /// Waits a moment before the next try; false once it is at its end.
    pub fn wait(&self) -> bool {
        let left = self.0.elapsed() < Self::LONGEST;
        if left {
            std::thread::sleep(Self::STEP);
        }
        left
    }
}

/// Whether anybody listens there.
fn listens(address: &str) -> bool {
    let connects = |a| std::net::TcpStream::connect_timeout(&a, Duration::from_secs(2)).is_ok();
    address.to_socket_addrs().is_ok_and(|mut all| all.any(connects))
}

/// What a node that was asked did not do.
pub fn refused(error: ClientError) -> CliError {
    CliError::failed("the node did not do it").caused_by(error)
}

/// The section of a topic, or an error that names the topics there are.
pub fn section(config: &Config, topic: &str) -> Result<TopicConfig, CliError> {
    intake::section_of(config, topic).ok_or_else(|| {
        let known = config
            .topics
            .keys()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(", ");
        CliError::usage(format!("no section of the configuration is for topic `{topic}`"))
            .mend(format!("topics there are: {known}"))
    })
}

/// A runtime for a command that waits for a node.
pub fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(|e| CliError::failed("cannot start a runtime").caused_by(e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_the_own_one_by_its_journal_else_by_folder_or_file() {
        let there = NodeIdentity {
            id: "n".into(),
            data: "/a/data".into(),
            journal: "j1".into(),
            files: vec!["/a/actors.toml".into()],
            ..NodeIdentity::default()
        };
        let here = |data: &str, journal: Option<&str>, file: &str| Here {
            data: data.into(),
            journal: journal.map(str::to_owned),
            files: vec![file.into()],
        };
        // Started from another place, or in a container: the same folder under another name.
        assert!(here("/b/data", Some("j1"), "/b/actors.toml").is(&there));
        // Two projects, the second never started.
        assert!(!here("/b/data", None, "/b/actors.toml").is(&there));
        assert!(!here("/b/data", Some("j2"), "/a/actors.toml").is(&there));
        // A relative folder, seen from elsewhere; a folder that this user may not read.
        assert!(here("/c/data", None, "/a/actors.toml").is(&there));
        assert!(here("/a/data", None, "/b/actors.toml").is(&there));
        assert!(here("/b/data", None, "/b/actors.toml").is(&NodeIdentity::default()));
    }
}
