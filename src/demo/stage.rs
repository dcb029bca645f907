//! The demonstration as it runs: child processes of this binary, kills, polls, and what both ends say at the end.

use super::generate::{RequestFile, generate};
use super::reconcile::{NodeCount, Row, Table};
use super::scenario::Scenario;
use super::watch::Watch;
use crate::admin::client::Client;
use crate::api::{ImportReport, Status};
use crate::mock::Report;
use serde::de::DeserializeOwned;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

/// How often partners and node are asked.
const POLL: Duration = Duration::from_millis(250);
/// How long the node stays dead after a kill, so that one can see it.
const DEAD_FOR: Duration = Duration::from_millis(500);
/// Bytes of the node's log that are shown when it fails.
const TAIL: usize = 2_000;

/// Why a demonstration did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A file or folder of its own.
    #[error("cannot {doing} `{}`", path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A child process could not be started, or not be waited for.
    #[error("cannot run `sluicegate {command}`")]
    Start {
        /// Its arguments.
        command: String,
        /// Why.
        source: io::Error,
    },
    /// A child process failed.
    #[error("`sluicegate {command}` ended with {status}: {detail}")]
    Child {
        /// Its arguments.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it said.
        detail: String,
    },
    /// A child process said something that cannot be read.
    #[error("cannot read what `{from}` said")]
    Answer {
        /// Who.
        from: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The stand-in partners do not answer.
    #[error("the stand-in partners at {addr} do not answer")]
    Partners {
        /// Where.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// It takes too long.
    #[error("not drained after {} s; the node's log is `{}`", after.as_secs(), log.display())]
    TimedOut {
        /// How long was waited.
        after: Duration,
        /// Where to look.
        log: PathBuf,
    },
}

/// A demonstration in a folder.
pub struct Stage {
    folder: PathBuf,
    exe: PathBuf,
    scenario: Scenario,
}

/// What came of it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Outcome {
    /// Both ends, row by row.
    #[serde(flatten)]
    pub table: Table,
    /// Lines of the request files that became records.
    pub imported: u64,
    /// Lines that could not be read.
    pub rejected: u64,
    /// Files that were recognised as imported before.
    pub known_files: u64,
    /// Times the node was killed.
    pub kills: u64,
    /// From the node's first start to the end.
    pub seconds: f64,
}

impl Stage {
    /// In this folder, which must be there and empty of earlier demonstrations.
    pub fn new(folder: &Path, exe: PathBuf, scenario: Scenario) -> Self {
        Self {
            folder: folder.to_owned(),
            exe,
            scenario,
        }
    }

    fn config(&self) -> PathBuf {
        self.folder.join("actors.toml")
    }
    fn node_log(&self) -> PathBuf {
        self.folder.join("node.log")
    }

    /// Runs it from start to end. Dropping the future ends all child processes.
    pub async fn run(&self) -> Result<Outcome, DemoError> {
        let mut watch = Watch::new(&self.scenario);
        let (mock, control) = self.start_partners().await?;
        let partners = mock_report(control).await?;
        let url = |name| partners.partner(name).map(|p| p.url.clone()).unwrap_or_default();
        let urls = self.scenario.parts().map(|p| url(p.name));
        let admin = free_port().map_err(|source| self.file("find a port for", &self.config(), source))?;
        let config = self.scenario.actors_toml(admin, [&urls[0], &urls[1], &urls[2]]);
        self.write("actors.toml", &config)?;

        watch.say(&format!(
            "making {} messages in {}",
            self.scenario.messages(),
            self.folder.display()
        ));
        let requests = self.folder.join("requests");
        std::fs::create_dir_all(&requests).map_err(|source| self.file("make", &requests, source))?;
        let files = generate(&self.scenario, &requests, &urls[0])
            .map_err(|source| self.file("write requests in", &requests, source))?;
        let imports = self.import(&files, &watch).await?;

        watch.say(&format!("starting the node; its page is http://{admin}/"));
        let begun = Instant::now();
        let kills = self.drain(admin, control, begun, &mut watch).await?;
        watch.end();
        let seconds = begun.elapsed().as_secs_f64();

        let seen = mock_report(control).await?;
        let rows = self.rows(&files, &seen).await?;
        let total = |of: fn(&ImportReport) -> u64| imports.iter().filter(|r| !r.known).map(of).sum();
        drop(mock);
        Ok(Outcome {
            table: Table::new(rows),
            imported: total(|r| r.accepted),
            rejected: total(|r| r.rejected),
            known_files: imports.iter().filter(|r| r.known).count() as u64,
            kills,
            seconds,
        })
    }

    /// Starts the stand-in partners; answers the process and where its report is.
    async fn start_partners(&self) -> Result<(Child, SocketAddr), DemoError> {
        let options = self.write("mock.toml", &self.scenario.mock_toml())?;
        let arguments = ["mock", "--json", "--control", "127.0.0.1:0"];
        let mut command = self.command(&arguments);
        command
            .arg("--from")
            .arg(&options)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let named = "mock --from mock.toml".to_owned();
        let started = |source| DemoError::Start {
            command: named.clone(),
            source,
        };
        let mut child = command.spawn().map_err(started)?;
        let mut line = String::new();
        if let Some(out) = child.stdout.as_mut() {
            BufReader::new(out).read_line(&mut line).await.map_err(started)?;
        }
        #[derive(serde::Deserialize)]
        struct Started {
            control: SocketAddr,
        }
        let said: Started = parse("mock", line.as_bytes())?;
        Ok((child, said.control))
    }

    /// Imports every file, one command each, as a user would.
    async fn import(&self, files: &[RequestFile], watch: &Watch) -> Result<Vec<ImportReport>, DemoError> {
        let mut reports = Vec::new();
        for file in files {
            let path = file.path.display().to_string();
            let out = self
                .output(&["import", "--quiet", "--json", "--topic", file.topic, &path])
                .await?;
            let report: ImportReport =
                parse("import", out.split(|b| *b == b'\n').next().unwrap_or_default())?;
            let what = match &report {
                r if r.known => "known, nothing to do".to_owned(),
                r => format!("{} records, {} rejected", r.accepted, r.rejected),
            };
            watch.say(&format!("  {} into {}: {what}", report.name, file.topic));
            reports.push(report);
        }
        Ok(reports)
    }

    /// Runs the node until it has drained, killing it on the way. Answers the number of kills.
    async fn drain(
        &self,
        admin: SocketAddr,
        control: SocketAddr,
        begun: Instant,
        watch: &mut Watch,
    ) -> Result<u64, DemoError> {
        let client = Client::new(&admin.to_string(), None).map_err(|e| DemoError::Answer {
            from: "admin".into(),
            source: e.into(),
        })?;
        let mut node = self.start_node()?;
        let mut done = 0;
        loop {
            if let Some(status) = node.try_wait().map_err(|source| start_failed("run", source))? {
                // 3: drained with dead or parked, which the demonstration means to have.
                if matches!(status.code(), Some(0 | 3)) {
                    return Ok(done as u64);
                }
                let detail = self.tail();
                return Err(DemoError::Child {
                    command: "run --until-drained".into(),
                    status,
                    detail,
                });
            }
            if begun.elapsed() > self.scenario.patience() {
                return Err(DemoError::TimedOut {
                    after: begun.elapsed(),
                    log: self.node_log(),
                });
            }
            let seen = mock_report(control).await?;
            // A node that is not up yet, or too busy to answer at once, is no reason to stop.
            let status: Option<Status> = tokio::time::timeout(POLL, client.status())
                .await
                .ok()
                .and_then(Result::ok);
            watch.show(&self.scenario, &seen, status.as_ref());
            let applied: u64 = seen.partners.iter().map(|p| p.ids_applied).sum();
            if self.scenario.kills().get(done).is_some_and(|at| applied >= *at) {
                done += 1;
                // SIGKILL: no handler, no flush, no goodbye.
                node.kill().await.map_err(|source| start_failed("run", source))?;
                let again = format!(
                    "kill -9 of the node after {applied} messages (number {done}); starting it again"
                );
                watch.say(&again);
                tokio::time::sleep(DEAD_FOR).await;
                node = self.start_node()?;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn start_node(&self) -> Result<Child, DemoError> {
        let path = self.node_log();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&path);
        let log = log.map_err(|source| self.file("write", &path, source))?;
        let out = log
            .try_clone()
            .map_err(|source| self.file("write", &path, source))?;
        let mut command = self.command(&["run", "--until-drained"]);
        command.stdout(out).stderr(log);
        command
            .spawn()
            .map_err(|source| start_failed("run --until-drained", source))
    }

    /// What the node says at the end, from its folder: it is stopped by now.
    async fn rows(&self, files: &[RequestFile], seen: &Report) -> Result<Vec<Row>, DemoError> {
        let status: Status = parse("status", &self.output(&["status", "--json"]).await?)?;
        let dead = self.output(&["dead", "list", "--json"]).await?;
        #[derive(serde::Deserialize)]
        struct Letter {
            partner: String,
            reason: String,
        }
        let mut letters: Vec<Letter> = Vec::new();
        for line in dead.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
            letters.push(parse("dead list", line)?);
        }
        let rows = self.scenario.parts().map(|part| {
            let said = status.partners.iter().find(|p| p.partner == part.name);
            let mut node = NodeCount::default();
            if let Some(said) = said {
                (node.delivered, node.parked, node.waiting) = (said.delivered, said.parked, said.waiting);
                for letter in letters.iter().filter(|l| l.partner == part.name) {
                    *node.dead.entry(letter.reason.clone()).or_default() += 1;
                }
                // A list may be shorter than the count; what it leaves out is dead all the same.
                let unlisted = said.dead.saturating_sub(node.dead_total());
                if unlisted > 0 {
                    node.dead.insert("not listed".into(), unlisted);
                }
            }
            let repeats = files
                .iter()
                .filter(|f| f.topic == part.topic && !f.copy)
                .map(|f| f.repeats)
                .sum();
            Row::new(
                part,
                repeats,
                node,
                seen.partner(part.name).unwrap_or(&Default::default()),
            )
        });
        Ok(rows.into())
    }

    /// A command of this binary in the demonstration's folder. Its process ends with the demonstration.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.exe);
        command
            .args(arguments)
            .arg("--config")
            .arg(self.config())
            .current_dir(&self.folder)
            // The demonstration's own node is meant, not one of the caller's.
            .env_remove("SLUICEGATE_ADMIN")
            .env_remove("SLUICEGATE_TOKEN")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// What a command prints, if it succeeds.
    async fn output(&self, arguments: &[&str]) -> Result<Vec<u8>, DemoError> {
        let command = arguments.join(" ");
        let done = self
            .command(arguments)
            .output()
            .await
            .map_err(|source| DemoError::Start {
                command: command.clone(),
                source,
            })?;
        if done.status.success() {
            return Ok(done.stdout);
        }
        let detail = String::from_utf8_lossy(&done.stderr).trim().to_owned();
        Err(DemoError::Child {
            command,
            status: done.status,
            detail,
        })
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf, DemoError> {
        let path = self.folder.join(name);
        std::fs::write(&path, text).map_err(|source| self.file("write", &path, source))?;
        Ok(path)
    }

    fn file(&self, doing: &'static str, path: &Path, source: io::Error) -> DemoError {
        DemoError::File {
            doing,
            path: path.to_owned(),
            source,
        }
    }

    /// The end of the node's log.
    fn tail(&self) -> String {
        let text = std::fs::read(self.node_log()).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(TAIL)..])
            .trim()
            .to_owned()
    }
}

fn start_failed(command: &str, source: io::Error) -> DemoError {
    DemoError::Start {
        command: command.to_owned(),
        source,
    }
}

fn parse<T: DeserializeOwned>(from: &str, bytes: &[u8]) -> Result<T, DemoError> {
    serde_json::from_slice(bytes).map_err(|e| DemoError::Answer {
        from: from.to_owned(),
        source: e.into(),
    })
}

/// A port that nobody has at the moment.
fn free_port() -> io::Result<SocketAddr> {
    std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()
}

/// Asks the stand-in partners for their report.
async fn mock_report(addr: SocketAddr) -> Result<Report, DemoError> {
    let asked = async {
        let mut stream = tokio::net::TcpStream::connect(addr).await?;
        stream
            .write_all(b"GET /report HTTP/1.1\r\nhost: mock\r\nconnection: close\r\n\r\n")
            .await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        io::Result::Ok(answer)
    };
    let answer = asked
        .await
        .map_err(|source| DemoError::Partners { addr, source })?;
    let body = answer
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .map_or(answer.len(), |at| at + 4);
    parse("mock", &answer[body..])
}
