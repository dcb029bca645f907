//! Which process runs on which core, and what the system says of a process.

use crate::Failed;
use std::ffi::OsStr;
use std::process::{Command, Stdio};

/// Processes that get a core of their own where there are two and `taskset` is at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pinned {
    /// The partner, on core 0.
    Partner,
    /// What is measured (node, bare loops), on core 1.
    Measured,
    /// Wherever the system likes.
    Free,
}

/// What this machine lets us do.
pub struct Places {
    taskset: bool,
}

impl Places {
    /// Looks whether processes can be pinned.
    pub fn find() -> Self {
        let probe = Command::new("taskset")
            .args(["-c", "1", "true"])
            .stderr(Stdio::null())
            .status();
        Self {
            taskset: probe.is_ok_and(|s| s.success()),
        }
    }

    /// Whether processes get cores of their own.
    pub fn pins(&self) -> bool {
        self.taskset
    }

    /// A command that will run there.
    pub fn command(&self, place: Pinned, program: &impl AsRef<OsStr>) -> Command {
        let core = match place {
            Pinned::Partner => "0",
            Pinned::Measured => "1",
            Pinned::Free => return Command::new(program),
        };
        if !self.taskset {
            return Command::new(program);
        }
        let mut command = Command::new("taskset");
        command.args(["-c", core]).arg(program);
        command
    }
}

/// What a process has used so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Used {
    /// User and system time, in seconds; the system counts it in hundredths.
    pub cpu_s: f64,
    /// The most memory it had resident, in MiB.
    pub peak_mib: f64,
    /// Bytes it gave to the disk.
    pub written: u64,
    /// Whether it has ended and only its figures are left.
    pub ended: bool,
}

/// Reads it from `/proc`. Of a process that has ended, memory and bytes are those of `before`.
pub fn used(pid: u32, before: Used) -> Result<Used, Failed> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field, a name in brackets, may hold blanks.
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().collect())
        .ok_or("strange /proc/PID/stat")?;
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok());
    let (Some(user), Some(system)) = (ticks(11), ticks(12)) else {
        return Err("strange /proc/PID/stat".into());
    };
    let field = |file: &str, name: &str| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
        let line = text.lines().find_map(|l| l.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    Ok(Used {
        cpu_s: (user + system) / 100.0,
        peak_mib: field("status", "VmHWM:").map_or(before.peak_mib, |kib| kib as f64 / 1024.0),
        written: field("io", "write_bytes:")
            .unwrap_or(before.written)
            .max(before.written),
        ended: fields.first() == Some(&"Z"),
    })
}
