//! `man`: the manual pages, made from the same declarations as the help texts.

use super::{CliError, Exit, Global, Out};
use std::io::Write;
use std::path::PathBuf;

/// Arguments of `man`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Command whose page to print [default: sluicegate itself]
    #[arg(value_name = "COMMAND", conflicts_with = "dir")]
    pub command: Option<String>,
    /// Write the pages of all commands into this folder, as sluicegate-run.1
    #[arg(long, value_name = "FOLDER")]
    pub dir: Option<PathBuf>,
}

/// Prints or writes the pages.
pub fn run(args: Args, global: &Global) -> Result<Exit, CliError> {
    // The grouped help template is for terminals; the page has sections of its own.
    let mut root = <super::Cli as clap::CommandFactory>::command();
    root.build();
    if let Some(dir) = args.dir {
        let failed = |e| {
            CliError::failed("cannot write manual pages")
                .at(dir.display())
                .caused_by(e)
        };
        std::fs::create_dir_all(&dir).map_err(failed)?;
        for command in std::iter::once(&root).chain(root.get_subcommands()) {
            let name = command
                .get_display_name()
                .unwrap_or_else(|| command.get_name())
                .to_owned();
            std::fs::write(dir.join(format!("{name}.1")), page(command)?).map_err(failed)?;
        }
        return Ok(Exit::Done);
    }
    let command = match &args.command {
        None => &root,
        Some(name) => root.find_subcommand(name).ok_or_else(|| {
            CliError::usage(format!("no command `{name}`")).mend("sluicegate --help lists the commands")
        })?,
    };
    let mut out = Out::new(global);
    out.bytes(&page(command)?)?;
    out.finish()?;
    Ok(Exit::Done)
}

fn page(command: &clap::Command) -> Result<Vec<u8>, CliError> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    if !command.has_subcommands() || command.get_name() != "sluicegate" {
        return Ok(page);
    }
    page.write_all(b".SH \"EXIT STATUS\"\n0 done, 1 failed at run time, 2 wrong usage or configuration, 3 drained with dead or parked messages, 4 timed out\n.SH ENVIRONMENT\nSLUICEGATE_ADMIN: admin address of the node to talk to. SLUICEGATE_TOKEN: its token. SLUICEGATE__SECTION__KEY: a key of the configuration.\n")?;
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_gets_a_page() {
        let dir = tempfile::tempdir().unwrap();
        let args = Args {
            command: None,
            dir: Some(dir.path().to_owned()),
        };
        assert_eq!(run(args, &Global::default()).unwrap(), Exit::Done);
        let pages = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(pages, 1 + super::super::command().get_subcommands().count());
        let main = std::fs::read_to_string(dir.path().join("sluicegate.1")).unwrap();
        assert!(main.contains("EXIT STATUS") && main.contains("SLUICEGATE_TOKEN"));
        let run_page = std::fs::read_to_string(dir.path().join("sluicegate-run.1")).unwrap();
        assert!(run_page.contains("drained"));
    }
}
