//! What all suites share: a folder with a configuration, lives of the node in it, and a partner that counts.

use serde_json::Value;
use sluicegate::mock::{Behaviour, Field, Mock, MockHandle, MockOptions, PartnerReport};
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long anything may take before it counts as hanging: no measure of speed.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The binary under test.
const BINARY: &str = env!("CARGO_BIN_EXE_sluicegate");

/// A port for the node's admin address. Below the range from which the system takes the ports of connections, so
/// that none of the many connections of these tests sits on it when the node binds it.
pub fn free_port() -> u16 {
    const FIRST: u16 = 10_000;
    const PORTS: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Processes side by side begin at different places.
    let start = (std::process::id() as u16).wrapping_mul(97);
    loop {
        let turn = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = FIRST + turn % PORTS;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A number from the environment, for the long variants.
pub fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")),
        Err(_) => default,
    }
}

/// A folder with a configuration, and everything the node said in it.
pub struct Rig {
    dir: tempfile::TempDir,
    lives: AtomicU64,
    env: Vec<(String, String)>,
}

impl Rig {
    /// A folder with this configuration; `[listen]`, and `[log]` if it is not there, are added.
    pub fn new(config: &str) -> Self {
        let rig = Self {
            dir: tempfile::tempdir().expect("a folder"),
            lives: AtomicU64::new(0),
            env: Vec::new(),
        };
        std::fs::create_dir(rig.path("said")).expect("a folder for what is said");
        rig.configure(config);
        rig
    }

    /// Writes another configuration.
    pub fn configure(&self, config: &str) {
        self.configure_with(&format!("\n{config}"));
    }

    /// The same, for one that begins within the section `[listen]`. Returns the admin address.
    pub fn configure_with(&self, config: &str) -> String {
        let admin = format!("127.0.0.1:{}", free_port());
        let mut text = format!("[listen]\nadmin = \"{admin}\"\n{config}");
        if !config.contains("[log]") {
            text.push_str("[log]\nsegment = \"8MiB\"\n");
        }
        std::fs::write(self.path("actors.toml"), text).expect("the configuration is written");
        admin
    }

    /// Sets a variable for the processes to come.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.env.push((name.to_owned(), value.to_owned()));
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs a command to its end.
    pub fn call(&self, args: &[&str]) -> Output {
        let (child, said) = self.spawn(args);
        let mut running = Node { child, said };
        let status = running.status();
        let read = |end: &str| std::fs::read(running.said.with_extension(end)).expect("what it said");
        Output {
            status,
            stdout: read("out"),
            stderr: read("err"),
        }
    }

    /// Starts a process; what it says goes into files, and is searched for secrets in the end.
    fn spawn(&self, args: &[&str]) -> (Child, PathBuf) {
        let number = self.lives.fetch_add(1, Ordering::Relaxed);
        let said = self.path(&format!("said/{number}.err"));
        let out = std::fs::File::create(said.with_extension("out")).expect("a file");
        let err = std::fs::File::create(&said).expect("a file");
        let mut command = Command::new(BINARY);
        command
            .current_dir(self.dir.path())
            .args(args)
            .stdin(Stdio::null());
        command.envs(self.env.iter().map(|(n, v)| (n, v)));
        let child = command.stdout(out).stderr(err).spawn().expect("a process");
        (child, said)
    }

    /// Runs a command that must succeed; what it printed.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.call(args);
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {}: {err}", output.status);
        String::from_utf8(output.stdout).expect("text")
    }

    /// The objects that a list prints.
    pub fn list(&self, args: &[&str]) -> Vec<Value> {
        let mut with_json = args.to_vec();
        with_json.push("--json");
        let text = self.ok(&with_json);
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in {line}")))
            .collect()
    }

    /// Imports these lines into a topic while no node runs.
    pub fn import(&self, topic: &str, lines: impl AsRef<[u8]>) {
        let name = format!("in-{}.jsonl", self.lives.load(Ordering::Relaxed));
        std::fs::write(self.path(&name), lines).expect("written");
        self.ok(&["import", &name, "--topic", topic]);
    }

    /// Starts a node.
    pub fn start(&self, args: &[&str]) -> Node {
        let (child, said) = self.spawn(&[&["run"], args].concat());
        Node { child, said }
    }

    /// Runs a node until nothing waits.
    pub fn drain(&self) -> Drained {
        self.start(&["--until-drained", "--timeout", "100s"]).drained()
    }

    /// All that was said so far, by file.
    pub fn all_said(&self) -> Vec<(PathBuf, Vec<u8>)> {
        files(&self.path("said"))
    }
}

/// All files below a folder.
pub fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let bytes = std::fs::read(&path).expect("a file");
            found.push((path, bytes));
        }
    }
    found
}

/// One life of the node, or another process. Killed when dropped.
pub struct Node {
    child: Child,
    said: PathBuf,
}

/// What a node that has drained came to.
#[derive(Debug)]
pub struct Drained {
    pub delivered: u64,
    pub dead: u64,
    pub parked: u64,
    pub code: Option<i32>,
    pub said: String,
}

impl Drained {
    /// Delivered, dead and parked.
    pub fn counts(&self) -> (u64, u64, u64) {
        (self.delivered, self.dead, self.parked)
    }
}

impl Node {
    /// kill -9.
    pub fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("its end");
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("signalled");
    }

    /// Leaves it room for so many more open files than it has now.
    pub fn limit_files(&self, more: u64) {
        use rustix::process::{Resource, Rlimit, prlimit};
        let folder = format!("/proc/{}/fd", self.child.id());
        let open = std::fs::read_dir(folder).expect("its open files").count() as u64;
        let limit = Rlimit {
            current: Some(open + more),
            maximum: Some(open + more),
        };
        let pid = rustix::process::Pid::from_child(&self.child);
        prlimit(Some(pid), Resource::Nofile, limit).expect("limited");
    }

    /// What it said so far.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.said).expect("its messages")).into_owned()
    }

    /// Whether it still runs; panics with what it said if it ended with an error.
    pub fn is_running(&mut self) -> bool {
        match self.child.try_wait().expect("its state") {
            None => true,
            Some(status) if status.success() => false,
            Some(status) => panic!("the node ended by itself, {status}: {}", self.said()),
        }
    }

    /// Waits until it can be asked: before, a command would open the folder itself.
    pub fn wait_for_admin(&mut self) {
        let said = self.said.clone();
        self.until("the admin port", || {
            std::fs::read_to_string(&said).is_ok_and(|said| said.contains("admin_port"))
        });
    }

    /// Waits until the condition holds, as long as the node runs.
    pub fn until(&mut self, what: &str, mut holds: impl FnMut() -> bool) {
        let patience = Instant::now() + PATIENCE;
        while !holds() {
            assert!(
                Instant::now() < patience,
                "waited too long: {what}; the node said: {}",
                self.said()
            );
            assert!(
                self.is_running(),
                "the node ended before: {what}: {}",
                self.said()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until it has said this.
    pub fn until_said(&mut self, what: &str) {
        let said = self.said.clone();
        self.until(what, || {
            std::fs::read_to_string(&said).is_ok_and(|said| said.contains(what))
        });
    }

    /// Waits for its end: the exit code, none after a signal.
    pub fn end(&mut self) -> Option<i32> {
        self.status().code()
    }

    fn status(&mut self) -> ExitStatus {
        let patience = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("its state") {
                return status;
            }
            assert!(Instant::now() < patience, "it does not end: {}", self.said());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits for the end of a run with `--until-drained`.
    pub fn drained(mut self) -> Drained {
        let code = self.end();
        let summary = std::fs::read(self.said.with_extension("out")).expect("its summary");
        let said = format!("{}\n{}", self.said(), String::from_utf8_lossy(&summary));
        let summary = said
            .lines()
            .rev()
            .find(|line| {
                ["drained: ", "timed out: ", "stopped "]
                    .iter()
                    .any(|word| line.starts_with(word))
            })
            .unwrap_or_else(|| panic!("no summary, exit code {code:?}: {said}"));
        let numbers: Vec<u64> = summary
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|n| n.parse().ok())
            .collect();
        let [delivered, dead, parked] = numbers[..] else {
            panic!("no summary: {said}")
        };
        Drained {
            delivered,
            dead,
            parked,
            code,
            said,
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // One that has ended is left alone.
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A stand-in partner that reads key and number from the record that [`lines`] makes.
pub fn partner(behaviour: Behaviour) -> MockHandle {
    partner_with(behaviour, |_| {})
}

/// The same with more options.
pub fn partner_with(behaviour: Behaviour, change: impl FnOnce(&mut MockOptions)) -> MockHandle {
    let mut options = MockOptions::on_free_port(behaviour);
    options.partners[0].id = field("json:/id");
    options.partners[0].key = Some(field("json:/user"));
    options.partners[0].seq = Some(field("json:/seq"));
    change(&mut options);
    Mock::start(options).expect("a partner")
}

/// Reads a field's place.
pub fn field(text: &str) -> Field {
    text.parse().expect("a field")
}

/// Counts of the only partner of a mock.
pub fn counts(mock: &MockHandle) -> PartnerReport {
    mock.partner("partner").expect("its counts")
}

/// Messages `first..last` over so many keys, one JSON object a line, numbered within their key.
pub fn lines(range: std::ops::Range<u64>, keys: u64) -> String {
    let mut lines = String::new();
    for i in range {
        writeln!(
            lines,
            "{{\"id\":\"m{i}\",\"user\":\"u{}\",\"seq\":{i}}}",
            i % keys
        )
        .expect("a line");
    }
    lines
}

/// A configuration with one partner `p` and one topic `t` that is made of [`lines`]. `partner` holds more keys of
/// the partner's section, `rest` whole sections.
pub fn config(mock: &MockHandle, partner: &str, rest: &str) -> String {
    format!(
        "[partners.p]\nurl = \"http://{}/\"\n{partner}\n[topics.t]\npartner = \"p\"\nid = \"json:/id\"\nkey = \"json:/user\"\n{rest}\n",
        mock.addr()
    )
}

/// A GET from the admin port, as text.
pub fn get(address: &str, token: &str, path: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).expect("the admin port");
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
    )
    .expect("asked");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("answered");
    assert!(
        answer.starts_with(b"HTTP/1.1 200"),
        "{path}: {}",
        String::from_utf8_lossy(&answer)
    );
    answer
}
