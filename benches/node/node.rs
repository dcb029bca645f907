//! A folder with a configuration, and the real binary working on it.

use crate::Failed;
use crate::partner::{Partner, now_ns};
use crate::places::{Pinned, Places, Used, used};
use crate::records::Shape;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest that any one step of a scenario may take.
const PATIENCE: Duration = Duration::from_secs(900);

/// What the scenarios vary.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Partitions of the topic.
    pub partitions: u32,
    /// Requests in flight.
    pub concurrency: u32,
    /// More keys of the partner's section.
    pub partner: String,
    /// More keys of `[node]`.
    pub node: String,
    /// More sections.
    pub more: String,
    /// Whether the partner is spoken to over TLS.
    pub tls: bool,
    /// Another address than the partner's.
    pub url: Option<String>,
    /// Where the node runs.
    pub place: Pinned,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            partitions: 4,
            concurrency: 64,
            partner: String::new(),
            node: String::new(),
            more: String::new(),
            tls: false,
            url: None,
            place: Pinned::Measured,
        }
    }
}

/// A node's folder; gone at the end.
pub struct Folder<'a> {
    dir: tempfile::TempDir,
    places: &'a Places,
    place: Pinned,
    /// Port of the admin API.
    pub admin: u16,
}

impl<'a> Folder<'a> {
    /// Writes the configuration: topic `t`, partner `p`.
    pub fn new(setup: &Setup, partner: &Partner, places: &'a Places) -> Result<Self, Failed> {
        let dir = tempfile::Builder::new().prefix("sluicegate-bench").tempdir()?;
        let admin = free_port()?;
        let (url, ca) = if setup.tls {
            (
                format!("https://localhost:{}/hook", partner.tls),
                format!("ca = \"{}\"\n", partner.ca().display()),
            )
        } else {
            (format!("http://127.0.0.1:{}/hook", partner.plain), String::new())
        };
        let url = setup.url.clone().unwrap_or(url);
        let Setup {
            partitions,
            concurrency,
            partner,
            node,
            more,
            ..
        } = setup;
        let config = format!(
            "[node]\nid = \"bench\"\ndata = \"data\"\n{node}\n[listen]\nadmin = \"127.0.0.1:{admin}\"\n\
             [logging]\nlevel = \"warn\"\n\
             [partners.p]\nurl = \"{url}\"\nconcurrency = {concurrency}\ndoubt = \"park\"\n{ca}{partner}\n\
             [topics.t]\npartner = \"p\"\npartitions = {partitions}\nid = \"json:/id\"\nkey = \"json:/user\"\n{more}\n"
        );
        std::fs::write(dir.path().join("actors.toml"), config)?;
        Ok(Self {
            dir,
            places,
            place: setup.place,
            admin,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    fn command(&self, args: &[&str], place: Pinned) -> Command {
        let mut command = self.places.command(place, &binary());
        command.current_dir(self.path()).args(args).stdin(Stdio::null());
        command
    }

    /// Makes messages and imports them into the folder (or its running node); lines a second of the import alone.
    pub fn import(&self, shape: Shape) -> Result<f64, Failed> {
        let file = self.path().join(format!("in-{}.jsonl", shape.first));
        shape.write_file(&file)?;
        let name = file.to_str().ok_or("a strange folder")?;
        let start = Instant::now();
        let output = self
            .command(&["import", name, "--topic", "t", "--quiet"], Pinned::Free)
            .output()?;
        let took = start.elapsed().as_secs_f64();
        std::fs::remove_file(&file)?;
        if !output.status.success() {
            return Err(format!("import: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        Ok(f64::from(shape.count) / took)
    }

    /// Starts the node.
    pub fn run(&self, args: &[&str]) -> Result<Node, Failed> {
        let mut all = vec!["run"];
        all.extend(args);
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path().join("log"))?;
        let started_ns = now_ns();
        let child = self
            .command(&all, self.place)
            .stderr(log.try_clone()?)
            .stdout(log)
            .spawn()?;
        Ok(Node {
            child,
            used: Used::default(),
            started_ns,
            log: self.path().join("log"),
        })
    }

    /// Runs a command and returns what it prints.
    pub fn tell(&self, args: &[&str]) -> Result<String, Failed> {
        let output = self.command(args, Pinned::Free).output()?;
        if !output.status.success() {
            return Err(format!("{args:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A node that ends once all is delivered.
    pub fn drain(&self) -> Result<Node, Failed> {
        self.run(&["--until-drained"])
    }
}

/// The binary that is measured: built with the benchmark, in the same profile.
fn binary() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_sluicegate"))
}

fn free_port() -> Result<u16, Failed> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A running node. Killed when it goes out of sight.
pub struct Node {
    child: Child,
    used: Used,
    log: PathBuf,
    /// When it was started, on the monotonic clock.
    pub started_ns: u64,
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already, which is what is wanted.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Node {
    /// What it has used so far.
    pub fn used(&mut self) -> Result<Used, Failed> {
        self.used = used(self.child.id(), self.used)?;
        Ok(self.used)
    }

    /// What it has resident now, in MiB.
    pub fn resident_mib(&self) -> Result<f64, Failed> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|l| l.split_whitespace().next()).ok_or("no VmRSS")?;
        Ok(kib.parse::<f64>()? / 1_024.0)
    }

    /// What its log says, for an error.
    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().rev().take(5).collect::<Vec<_>>().join(" | ")
    }

    /// Waits until the partner has had so many requests; looks every few milliseconds.
    pub fn until(&mut self, partner: &mut Partner, requests: u64) -> Result<Used, Failed> {
        let start = Instant::now();
        loop {
            let count = partner.count()?;
            let used = self.used()?;
            if count >= requests {
                return Ok(used);
            }
            if used.ended {
                return Err(format!("the node ended after {count} requests: {}", self.last_words()).into());
            }
            if start.elapsed() > PATIENCE {
                return Err(format!("{count} of {requests} requests, no more: {}", self.last_words()).into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for its end; what it used in its life.
    pub fn end(mut self) -> Result<Used, Failed> {
        let start = Instant::now();
        loop {
            let used = self.used()?;
            if used.ended {
                let status = self.child.wait()?;
                return match status.success() {
                    true => Ok(used),
                    false => Err(format!("the node: {status}: {}", self.last_words()).into()),
                };
            }
            if start.elapsed() > PATIENCE {
                return Err(format!("the node does not end: {}", self.last_words()).into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// SIGKILL.
    pub fn kill(mut self) -> Result<(), Failed> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}
