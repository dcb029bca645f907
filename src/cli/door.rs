//! How commands that bring records in reach the log: through a running node, else by opening a stopped node's folder.

use super::{CliError, Global};
use crate::admin::client::{Client, ClientError};
use crate::app::{self, OpenError};
use crate::config::{Config, TopicConfig};
use crate::intake;
use crate::log::{Log, LogError};
use std::net::ToSocketAddrs;
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
                return Client::new(&address, token).map(Door::Node).map_err(refused);
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
