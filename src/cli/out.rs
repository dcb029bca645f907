//! Data on stdout: text lines, or JSON objects one a line. Never `println!`, which panics when the reader leaves.

use super::{CliError, Global};
use crate::telemetry::terminal::stdout_width;
use serde::Serialize;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

/// A buffered stdout. Call [`Out::finish`] at the end: it reports what could not be written.
pub struct Out {
    to: io::BufWriter<Box<dyn Write>>,
    json: bool,
    terminal: bool,
    width: Option<usize>,
}

impl Out {
    /// Stdout, in the form that `--json` asks for.
    pub fn new(global: &Global) -> Self {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal();
        Self {
            to: io::BufWriter::new(Box::new(stdout)),
            json: global.json,
            terminal,
            width: stdout_width(),
        }
    }

    /// Somewhere else than stdout, as if a script read it.
    pub fn to(writer: Box<dyn Write>, json: bool) -> Self {
        Self {
            to: io::BufWriter::new(writer),
            json,
            terminal: false,
            width: None,
        }
    }

    /// Whether data goes out as JSON.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Whether a person looks at it.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Columns of the terminal that a person looks at, if one does.
    pub fn width(&self) -> Option<usize> {
        self.width
    }

    /// One line of text.
    pub fn line(&mut self, text: impl Display) -> Result<(), CliError> {
        writeln!(self.to, "{text}")?;
        Ok(())
    }

    /// One JSON object on a line of its own.
    pub fn object(&mut self, object: &impl Serialize) -> Result<(), CliError> {
        serde_json::to_writer(&mut self.to, object).map_err(io::Error::from)?;
        self.to.write_all(b"\n")?;
        Ok(())
    }

    /// Either the object (`--json`) or the text.
    pub fn either(&mut self, object: &impl Serialize, text: impl Display) -> Result<(), CliError> {
        if self.json {
            self.object(object)
        } else {
            self.line(text)
        }
    }

    /// Bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        self.to.write_all(bytes)?;
        Ok(())
    }

    /// Hands what is buffered to the reader now.
    pub fn flush(&mut self) -> Result<(), CliError> {
        self.to.flush()?;
        Ok(())
    }

    /// Hands over the rest.
    pub fn finish(mut self) -> Result<(), CliError> {
        self.flush()
    }
}
