//! `demo`: the whole system on this machine in one go.

use super::{CliError, Exit, Global, Out};
use crate::demo::scenario::Scenario;
use crate::demo::stage::{DemoError, Outcome, Stage};
use std::path::{Path, PathBuf};

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Keep the data folder and print what to try on it
    #[arg(long)]
    pub keep: bool,
    /// Folder to work in, empty or not there yet [default: a temporary one]
    #[arg(long, value_name = "FOLDER")]
    pub dir: Option<PathBuf>,
    /// How many messages to make and deliver
    #[arg(long, value_name = "COUNT", default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(100..=10_000_000))]
    pub messages: u64,
    /// Seed of everything random in it
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub seed: u64,
}

/// Runs the command. Exit code 1 if the reconciliation does not add up.
pub fn run(args: Args, global: &Global) -> Result<Exit, CliError> {
    let folder = Folder::make(&args)?;
    let exe =
        std::env::current_exe().map_err(|e| CliError::failed("cannot find this program").caused_by(e))?;
    let stage = Stage::new(folder.path(), exe, Scenario::new(args.messages, args.seed));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| CliError::failed("cannot start the demonstration").caused_by(e))?;
    let outcome = runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let failed = |e| CliError::failed("cannot wait for signals").caused_by(e);
        let mut term = signal(SignalKind::terminate()).map_err(failed)?;
        let mut int = signal(SignalKind::interrupt()).map_err(failed)?;
        // Left early, the child processes end with the future that holds them.
        tokio::select! {
            outcome = stage.run() => outcome.map_err(|e| explained(e, &folder)),
            _ = term.recv() => Err(CliError::failed("stopped")),
            _ = int.recv() => Err(CliError::failed("stopped")),
        }
    })?;
    let mut out = Out::new(global);
    tell(&mut out, &args, &folder, &outcome)?;
    out.finish()?;
    let good = outcome.table.mistakes.is_empty();
    if !good || args.keep {
        folder.keep();
    }
    Ok(if good { Exit::Done } else { Exit::Failed })
}

fn explained(error: DemoError, folder: &Folder) -> CliError {
    let timed_out = matches!(error, DemoError::TimedOut { .. });
    let place = folder.path().display().to_string();
    let failed = if timed_out {
        CliError::timed_out("the demonstration did not come to its end")
    } else {
        CliError::failed("the demonstration failed")
    };
    // What is in the folder explains the failure.
    folder.keep_for_looking();
    failed.at(place).caused_by(error)
}

fn tell(out: &mut Out, args: &Args, folder: &Folder, outcome: &Outcome) -> Result<(), CliError> {
    if out.is_json() {
        return out.object(outcome);
    }
    out.line(format_args!(
        "\n{} records imported, {} lines rejected, {} file(s) known already; node killed {} times; {:.0} s\n",
        outcome.imported, outcome.rejected, outcome.known_files, outcome.kills, outcome.seconds
    ))?;
    out.line(&outcome.table)?;
    if args.keep {
        let config = folder.path().join("actors.toml").display().to_string();
        out.line("Try on its data:")?;
        for command in [
            "status",
            "doubt list",
            "dead list",
            "message e0000007",
            "dedup stats",
        ] {
            out.line(format_args!("  sluicegate {command} --config {config}"))?;
        }
    } else {
        out.line("With --keep its data stays, and commands to try on it are shown.")?;
    }
    Ok(())
}

/// Where it works.
struct Folder {
    path: PathBuf,
    temporary: std::cell::RefCell<Option<tempfile::TempDir>>,
}

impl Folder {
    fn make(args: &Args) -> Result<Self, CliError> {
        let failed = |path: &Path| {
            let path = path.display().to_string();
            move |e: std::io::Error| CliError::failed("cannot make the folder").at(path).caused_by(e)
        };
        let Some(path) = &args.dir else {
            let base = std::env::temp_dir();
            let made = tempfile::Builder::new()
                .prefix("sluicegate-demo-")
                .tempdir_in(&base);
            let temporary = made.map_err(failed(&base))?;
            let path = temporary.path().to_owned();
            return Ok(Self {
                path,
                temporary: Some(temporary).into(),
            });
        };
        std::fs::create_dir_all(path).map_err(failed(path))?;
        // Of an absolute path its children may change their folder.
        let path = path.canonicalize().map_err(failed(path))?;
        let mut entries = std::fs::read_dir(&path).map_err(failed(&path))?;
        if entries.next().is_some() {
            return Err(CliError::usage("the folder is not empty")
                .at(path.display())
                .mend("name another one: what is in it could be taken for the demonstration's own"));
        }
        Ok(Self {
            path,
            temporary: None.into(),
        })
    }
    fn path(&self) -> &Path {
        &self.path
    }
    fn keep_for_looking(&self) {
        if let Some(temporary) = self.temporary.take() {
            let _ = temporary.keep();
        }
    }
    fn keep(self) {
        self.keep_for_looking();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(dir: Option<PathBuf>) -> Args {
        Args {
            keep: false,
            dir,
            messages: 100,
            seed: 1,
        }
    }

    #[test]
    fn a_folder_of_ones_own_must_be_empty_and_a_temporary_one_goes() {
        let base = tempfile::tempdir().expect("folder");
        let own = Folder::make(&args(Some(base.path().join("new")))).expect("made");
        std::fs::write(own.path().join("x"), "").expect("write");
        let error = Folder::make(&args(Some(base.path().join("new"))))
            .err()
            .expect("not empty");
        assert_eq!(error.exit(), Exit::Usage);
        let temporary = Folder::make(&args(None)).expect("made");
        let path = temporary.path().to_owned();
        drop(temporary);
        assert!(!path.exists());
    }
}
