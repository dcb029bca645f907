//! How a command reaches a node: its admin port, or its folder where it is stopped.
//!
//! The port is found by `--admin`, else SLUICEGATE_ADMIN (clap reads both), else `listen.admin` of the
//! configuration; the token by SLUICEGATE_TOKEN, else `listen.token`. A folder is opened only where the address came
//! from the configuration too: an address given by hand may belong to another machine's node.

use super::{CliError, Global, door};
use crate::admin::{Client, ClientError};
use crate::api::{ApiError, Filter, Health, OrderReport, OrderRequest, PartnerTest, Query, Reply, Status};
use crate::app::{Offline, OfflineError};
use crate::config::{self, Loaded};
use std::cell::{Cell, OnceCell, RefCell};
use std::future::Future;
use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

/// A node, or what a stopped one left.
pub struct Node {
    runtime: Runtime,
    client: Client,
    /// Set where the folder may be opened if nobody answers.
    loaded: Option<Box<Loaded>>,
    /// The configuration files, and whether the node was asked if it is theirs.
    files: Vec<PathBuf>,
    is_ours: Cell<bool>,
    /// The folder, once it is open.
    folder: OnceCell<Offline>,
}

/// Finds the node, has `work` done with it, and closes what was opened, also where the work failed.
///
/// # Errors
/// As [`Node::find`], `work`, and [`Node::close`].
pub fn with<T>(global: &Global, work: impl FnOnce(&Node) -> Result<T, CliError>) -> Result<T, CliError> {
    let node = Node::find(global)?;
    let done = work(&node);
    let closed = node.close();
    let done = done?;
    closed?;
    Ok(done)
}

/// Probes are given some seconds by whoever asks them.
const PROBE: Duration = Duration::from_secs(2);

/// Asks a living node whether it is alive, or ready; says where it was asked.
///
/// # Errors
/// If nobody answers, or something that is no node.
pub fn is_well(global: &Global, ready: bool) -> Result<(String, Health), CliError> {
    let address = global.admin_address()?;
    let client = Client::new(&address, None).map_err(|e| CliError::usage(e.to_string()))?;
    let asked = async { tokio::time::timeout(PROBE, client.health(ready)).await };
    let answer = door::runtime()?.block_on(asked);
    let late = |_| CliError::failed(format!("no answer within {PROBE:?}")).at(&address);
    match answer.map_err(late)? {
        Ok(health) => Ok((address, health)),
        Err(error) => Err(CliError::failed("not alive").at(&address).caused_by(error)),
    }
}

impl Node {
    /// Finds out where to ask; asks nothing yet.
    ///
    /// # Errors
    /// If neither an address nor a configuration is at hand, or they cannot be read.
    pub fn find(global: &Global) -> Result<Self, CliError> {
        let address = global.admin_address()?;
        let token = global.token().map(|secret| secret.expose().to_owned());
        let loaded = match &global.admin {
            Some(_) => None,
            None => Some(Box::new(global.load()?)),
        };
        let client = Client::new(&address, token).map_err(|e| CliError::usage(e.to_string()))?;
        let runtime = door::runtime()?;
        Ok(Self {
            runtime,
            client,
            loaded,
            files: global.files(),
            is_ours: Cell::new(false),
            folder: OnceCell::new(),
        })
    }

    /// Asks the node; where none answers and the folder is at hand, `stopped` asks that.
    fn ask<T, F, A>(
        &self,
        live: F,
        stopped: impl FnOnce(&Offline) -> Result<T, CliError>,
    ) -> Result<T, CliError>
    where
        F: Fn(Client) -> A,
        A: Future<Output = Result<T, ClientError>>,
    {
        if let Some(folder) = self.folder.get() {
            return stopped(folder);
        }
        if let Some(loaded) = &self.loaded
            && !self.is_ours.get()
        {
            self.runtime
                .block_on(door::must_be_ours(&self.client, &loaded.config, &self.files))?;
            self.is_ours.set(true);
        }
        let patience = door::Patience::begin();
        loop {
            let error = match self.runtime.block_on(live(self.client.clone())) {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let (ClientError::NotRunning { address, .. }, Some(loaded)) = (&error, &self.loaded) else {
                return Err(failed(error, self.loaded.is_some()));
            };
            match open(loaded) {
                Ok(folder) => return stopped(self.folder.get_or_init(|| folder)),
                Err(OfflineError::InUse(_)) if patience.wait() => {}
                Err(error) => return Err(unopened(error, loaded, address)),
            }
        }
    }

    /// The node as it stands.
    ///
    /// # Errors
    /// As for every method here: nobody answers and the folder cannot be opened, or what was asked is refused.
    pub fn status(&self) -> Result<Status, CliError> {
        self.ask(
            |client| async move { client.status().await },
            |folder| Ok(folder.status()),
        )
    }

    /// What stands out in the records of its topics.
    pub fn hints(&self) -> Result<Vec<String>, CliError> {
        self.ask(
            |client| async move { client.hints().await },
            |folder| {
                Ok(self
                    .loaded
                    .as_ref()
                    .map_or_else(Vec::new, |loaded| folder.hints(&loaded.config)))
            },
        )
    }

    /// Asks a question.
    pub fn query(&self, query: &Query) -> Result<Reply, CliError> {
        self.ask(
            |client| {
                let query = query.clone();
                async move { client.query(&query).await }
            },
            |folder| folder.query(query).map_err(refused),
        )
    }

    /// Gives an order.
    pub fn order(&self, order: &OrderRequest) -> Result<OrderReport, CliError> {
        self.ask(
            |client| {
                let order = order.clone();
                async move { client.order(&order).await }
            },
            |folder| folder.order(order).map_err(refused),
        )
    }

    /// Remembered IDs as lines of JSON, in pieces as they come.
    pub fn export(
        &self,
        filter: &Filter,
        take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), CliError> {
        // Both ways need it, one after the other at most.
        let take = RefCell::new(take);
        self.ask(
            |client| {
                let filter = filter.clone();
                let take = &take;
                async move { client.export(&filter, |piece| (take.borrow_mut())(piece)).await }
            },
            |folder| {
                let mut wrong = None;
                let each = &mut |mut line: String| {
                    line.push('\n');
                    match (take.borrow_mut())(line.as_bytes()) {
                        Ok(()) => ControlFlow::Continue(()),
                        Err(e) => {
                            wrong = Some(e);
                            ControlFlow::Break(())
                        }
                    }
                };
                folder.export(filter, each).map_err(refused)?;
                wrong.map_or(Ok(()), |e| Err(e.into()))
            },
        )
    }

    /// A trial connection from the node to a partner.
    pub fn test_partner(&self, partner: &str) -> Result<PartnerTest, CliError> {
        let partner = partner.to_owned();
        self.runtime
            .block_on(self.client.test_partner(&partner))
            .map_err(|e| match e {
                ClientError::NotRunning { address, source } => {
                    CliError::failed(format!("no node answers at {address}"))
                        .mend("`check --connect` tries it from here")
                        .caused_by(source)
                }
                other => failed(other, false),
            })
    }

    /// Ends in order: a folder that was opened gets its checkpoint.
    ///
    /// # Errors
    /// If the folder cannot be closed; what was reported durable is durable all the same.
    pub fn close(self) -> Result<(), CliError> {
        match self.folder.into_inner() {
            Some(folder) => folder
                .close()
                .map_err(|e| CliError::failed("the folder was not closed in order").caused_by(e)),
            None => Ok(()),
        }
    }
}

fn open(loaded: &Loaded) -> Result<Offline, OfflineError> {
    // Secrets that cannot be had mask nothing, and nothing here uses them.
    let values = loaded
        .config
        .secrets
        .values()
        .filter_map(|source| config::secrets::read(source, config::secrets::process_variable).ok());
    let secrets: Vec<Arc<str>> = values.map(|secret| secret.expose().into()).collect();
    Offline::open(Arc::new(loaded.config.clone()), &secrets)
}

fn unopened(error: OfflineError, loaded: &Loaded, address: &str) -> CliError {
    match error {
        OfflineError::Nothing(data) => CliError::failed(format!(
            "no node answers at {address}, and there is no data of one"
        ))
        .at(data.display())
        .mend("start a node (`run`), import something, or say where a node is: --admin HOST:PORT"),
        OfflineError::InUse(data) => CliError::failed(format!(
            "a node has this folder open, but its admin port {address} does not answer"
        ))
        .at(data.display())
        .mend("it may be starting or stopping; try again, or check listen.admin and --admin"),
        other => CliError::failed("cannot open the stopped node's folder")
            .at(loaded.config.node.data.display())
            .caused_by(other),
    }
}

/// The error of a command for what the node, or its desk, said.
pub fn refused(error: ApiError) -> CliError {
    match error {
        ApiError::Invalid(what) | ApiError::UnknownName(what) => CliError::usage(what),
        other => CliError::failed(other.to_string()),
    }
}

fn failed(error: ClientError, configured: bool) -> CliError {
    match error {
        ClientError::Api(e) => refused(e),
        ClientError::NotRunning { address, source } => {
            let hint = if configured {
                "start the node, or say where it is: --admin HOST:PORT"
            } else {
                "check the address (--admin, SLUICEGATE_ADMIN)"
            };
            CliError::failed(format!("no node answers at {address}"))
                .mend(hint)
                .caused_by(source)
        }
        other => CliError::failed(other.to_string()),
    }
}

/// Who gives an order, as far as that is known: for the audit.
pub fn who() -> String {
    let env: Vec<(String, String)> = config::process_env().collect();
    let of = |name: &str| {
        env.iter()
            .find(|(n, v)| n == name && !v.is_empty())
            .map(|(_, v)| v.clone())
    };
    let user = of("SUDO_USER").or_else(|| of("USER")).or_else(|| of("LOGNAME"));
    let uid = rustix::process::getuid().as_raw();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{}@{host}", user.unwrap_or_else(|| format!("uid {uid}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Exit;

    #[test]
    fn wrong_usage_and_refusals_have_their_own_codes() {
        assert_eq!(refused(ApiError::Invalid("x".into())).exit(), Exit::Usage);
        assert_eq!(refused(ApiError::UnknownName("x".into())).exit(), Exit::Usage);
        assert_eq!(refused(ApiError::Stale("x".into())).exit(), Exit::Failed);
        let global = Global {
            admin: Some("nowhere".into()),
            ..Global::default()
        };
        assert_eq!(Node::find(&global).err().map(|e| e.exit()), Some(Exit::Usage));
        let global = Global {
            admin: Some("127.0.0.1:1".into()),
            ..Global::default()
        };
        let error = Node::find(&global).unwrap().status().unwrap_err();
        assert!(
            error.to_string().contains("no node answers at 127.0.0.1:1"),
            "{error}"
        );
    }
}
