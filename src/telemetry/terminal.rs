//! How wide the terminal is that a person looks at. What a script reads has no width.

use crate::config::process_env;
use std::io::{self, IsTerminal};

/// Columns of the terminal behind stdout; none where it is no terminal. COLUMNS says otherwise.
pub fn stdout_width() -> Option<usize> {
    let stdout = io::stdout();
    width(stdout.is_terminal(), || terminal_size::terminal_size_of(stdout))
}

/// Columns of the terminal behind stderr.
pub fn stderr_width() -> Option<usize> {
    let stderr = io::stderr();
    width(stderr.is_terminal(), || terminal_size::terminal_size_of(stderr))
}

type Size = Option<(terminal_size::Width, terminal_size::Height)>;

fn width(is_terminal: bool, size: impl FnOnce() -> Size) -> Option<usize> {
    if !is_terminal {
        return None;
    }
    let given = process_env().find(|(name, _)| name == "COLUMNS");
    let given = given.and_then(|(_, columns)| columns.trim().parse().ok());
    let asked = || size().map(|(width, _)| usize::from(width.0));
    given.or_else(asked).filter(|columns| *columns > 0)
}
