//! How a command ends: exit codes, and errors in their one form.

use crate::config::Finding;
use crate::core::in_full::in_full;
use std::fmt;
use std::io;

/// How a command ended, as the process tells its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done; `run --until-drained`: all delivered.
    Done = 0,
    /// Failed at run time.
    Failed = 1,
    /// Wrong usage or configuration.
    Usage = 2,
    /// Drained, with dead or parked messages.
    Incomplete = 3,
    /// Timed out.
    TimedOut = 4,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command failed: what, where, and how to mend it.
#[derive(Debug, thiserror::Error)]
pub struct CliError {
    what: String,
    place: Option<String>,
    mend: Option<String>,
    exit: Exit,
    /// Printed as they stand, before the error itself.
    findings: Vec<Finding>,
    /// Nobody is left to tell it to: the reader of stdout went away.
    quiet: bool,
    /// Its text holds it, with its whole chain: so it is not told as a `source` again.
    cause: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl CliError {
    fn new(what: impl Into<String>, exit: Exit) -> Self {
        Self {
            what: what.into(),
            place: None,
            mend: None,
            exit,
            findings: Vec::new(),
            quiet: false,
            cause: None,
        }
    }

    /// Something failed at run time (exit code 1). Lower case, no final stop.
    pub fn failed(what: impl Into<String>) -> Self {
        Self::new(what, Exit::Failed)
    }

    /// The arguments or the configuration are wrong (exit code 2).
    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(what, Exit::Usage)
    }

    /// Time ran out (exit code 4).
    pub fn timed_out(what: impl Into<String>) -> Self {
        Self::new(what, Exit::TimedOut)
    }

    /// The configuration has mistakes (exit code 2); each is printed.
    pub fn configuration(findings: Vec<Finding>) -> Self {
        let mut error = Self::new("the configuration has mistakes", Exit::Usage);
        error.findings = findings;
        error
    }

    /// Says where: a file, an address, a key.
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.place = Some(place.to_string());
        self
    }

    /// Says how to mend it.
    pub fn mend(mut self, how: impl Into<String>) -> Self {
        self.mend = Some(how.into());
        self
    }

    /// Keeps the cause; its whole chain is printed behind the error.
    pub fn caused_by(mut self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// The exit code it leads to.
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// All of it in one text, for a log line: each finding, then the error.
    pub fn in_full(&self) -> String {
        let findings = self.findings.iter().map(|finding| format!("{finding}\n"));
        findings.chain([self.to_string()]).collect()
    }

    /// Prints it to stderr, unless there is nobody to tell.
    pub fn print(&self) {
        if self.quiet {
            return;
        }
        for finding in &self.findings {
            eprintln!("{finding}");
        }
        eprintln!("error: {self}");
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if let Some(cause) = &self.cause {
            write!(f, ": {}", in_full(cause.as_ref()))?;
        }
        for line in [&self.place, &self.mend].into_iter().flatten() {
            write!(f, "\n  {line}")?;
        }
        Ok(())
    }
}

impl From<io::Error> for CliError {
    /// A write to stdout that failed. A reader that went away is a quiet end, not a failure.
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            let mut quiet = Self::new("the reader went away", Exit::Done);
            quiet.quiet = true;
            return quiet;
        }
        Self::failed("cannot write to stdout").caused_by(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_where_and_how_to_mend_it() {
        let error = CliError::failed("cannot read topic")
            .at("data/log")
            .mend("start the node first")
            .caused_by(io::Error::other("disk gone"));
        assert_eq!(
            error.to_string(),
            "cannot read topic: disk gone\n  data/log\n  start the node first"
        );
        assert_eq!(error.exit(), Exit::Failed);
    }

    #[test]
    fn a_broken_pipe_is_quiet() {
        let error = CliError::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(error.quiet && error.exit() == Exit::Done);
        assert_eq!(CliError::from(io::Error::other("x")).exit(), Exit::Failed);
    }
}
