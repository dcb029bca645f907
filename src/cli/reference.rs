//! The command line as a page: `docs/cli.md` is printed from the same declarations as the help texts, and a test
//! holds it to them.

use super::GROUPS;
use clap::{Arg, Command};
use std::fmt::Write as _;

const HEAD: &str = "# The command line

One binary, `sluicegate`. Data goes to stdout, messages to stderr; a reader that goes away (`| head`) is no error. This page is
printed from the program's own declarations: `sluicegate COMMAND --help` says the same, `sluicegate man --dir FOLDER` writes
manual pages, `sluicegate completions bash` prints completions.

Commands that read or change state find their node by `--admin`, else `SLUICEGATE_ADMIN`, else `listen.admin` of the
configuration. If no node answers there, those that can work on the folder of a stopped node. Write verbs say what they will
touch; bulk verbs take `--dry-run`.

| exit code | means |
|---|---|
| 0 | done; `run --until-drained`: all delivered |
| 1 | failed at run time |
| 2 | wrong usage or configuration |
| 3 | drained, with dead or parked messages; or stopped, with requests in doubt |
| 4 | timed out |
| 130 | `run`: told to stop a second time, and ended at once |

| environment | means |
|---|---|
| `SLUICEGATE_ADMIN` | admin address of the node to talk to |
| `SLUICEGATE_TOKEN` | its token |
| `SLUICEGATE__SECTION__KEY` | a key of the configuration, over all files |
";

/// The whole page.
pub fn markdown() -> String {
    let mut root = super::command();
    root.build();
    let mut page = String::from(HEAD);
    page.push_str("\n## Options of every command\n");
    options(
        &mut page,
        root.get_arguments()
            .filter(|a| a.is_global_set() && !is_built_in(a)),
    );
    for (group, names) in GROUPS {
        let _ = write!(page, "\n## {group}\n");
        for name in names {
            if let Some(command) = root.find_subcommand(name) {
                section(&mut page, command, &format!("sluicegate {name}"), 3);
            }
        }
    }
    page
}

/// One command, and the commands below it.
fn section(page: &mut String, command: &Command, path: &str, depth: usize) {
    let _ = write!(page, "\n{} `{path}`\n\n", "#".repeat(depth));
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let _ = writeln!(page, "{}.", about.trim_end_matches('.'));
    let own = |a: &&Arg| !a.is_global_set() && !is_built_in(a) && !a.is_hide_set();
    if !command.has_subcommands() {
        let mut usage = String::from(path);
        if command.get_arguments().any(|a| own(&a) && !a.is_positional()) {
            usage.push_str(" [OPTIONS]");
        }
        for arg in command.get_positionals() {
            let _ = write!(usage, " {}", positional(arg));
        }
        let _ = write!(page, "\n```sh\n{usage}\n```\n");
        options(page, command.get_arguments().filter(own));
    }
    for below in command.get_subcommands().filter(|c| c.get_name() != "help") {
        section(page, below, &format!("{path} {}", below.get_name()), depth + 1);
    }
}

fn is_built_in(arg: &Arg) -> bool {
    matches!(arg.get_id().as_str(), "help" | "version")
}

/// As it stands in a usage line.
fn positional(arg: &Arg) -> String {
    let name = value_names(arg);
    let many = arg.get_num_args().is_some_and(|n| n.max_values() > 1)
        || matches!(arg.get_action(), clap::ArgAction::Append);
    let dots = if many { "…" } else { "" };
    if arg.is_required_set() {
        format!("<{name}>{dots}")
    } else {
        format!("[{name}]{dots}")
    }
}

fn value_names(arg: &Arg) -> String {
    match arg.get_value_names() {
        Some([name, ..]) => name.to_string(),
        _ => arg.get_id().as_str().to_uppercase(),
    }
}

/// A table of arguments and options.
fn options<'a>(page: &mut String, args: impl Iterator<Item = &'a Arg>) {
    let mut rows = args.peekable();
    if rows.peek().is_none() {
        return;
    }
    page.push_str("\n| option | does |\n|---|---|\n");
    for arg in rows {
        let mut name = match (arg.get_long(), arg.get_short()) {
            (Some(long), _) => format!("--{long}"),
            (None, Some(short)) => format!("-{short}"),
            (None, None) => positional(arg),
        };
        if !arg.is_positional() && arg.get_action().takes_values() {
            let _ = write!(name, " {}", value_names(arg));
        }
        if !arg.is_positional() && arg.is_required_set() {
            name.push_str(" (required)");
        }
        let mut does = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let words: Vec<_> = arg
            .get_possible_values()
            .iter()
            .map(|v| format!("`{}`", v.get_name()))
            .collect();
        if !words.is_empty() && arg.get_action().takes_values() {
            let _ = write!(does, ": {}", words.join(", "));
        }
        let defaults: Vec<_> = arg
            .get_default_values()
            .iter()
            .map(|v| v.to_string_lossy())
            .collect();
        if !defaults.is_empty() && arg.get_action().takes_values() {
            let _ = write!(does, " [default: {}]", defaults.join(" "));
        }
        let _ = writeln!(page, "| `{}` | {} |", cell(&name), cell(&does));
    }
}

/// Text that does not end a table's cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn the_page_is_up_to_date() {
        let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/cli.md");
        let page = markdown();
        if std::env::var_os("SLUICEGATE_WRITE_DOCS").is_some() {
            std::fs::write(&file, &page).unwrap();
        }
        let stored = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(
            stored == page,
            "docs/cli.md is old: SLUICEGATE_WRITE_DOCS=1 cargo test --lib cli::reference writes it"
        );
    }

    #[test]
    fn every_command_and_every_option_is_on_it() {
        fn walk(page: &str, command: &Command, path: &str) {
            assert!(page.contains(&format!("`{path}`\n")), "{path}");
            let section = page
                .split_once(&format!("`{path}`\n"))
                .map(|(_, rest)| rest)
                .unwrap();
            let section = section.split("\n#").next().unwrap();
            for long in command
                .get_arguments()
                .filter(|a| !a.is_global_set() && !a.is_hide_set())
                .filter_map(Arg::get_long)
            {
                assert!(
                    long == "help" || section.contains(&format!("`--{long}")),
                    "{path} --{long}"
                );
            }
            for below in command.get_subcommands().filter(|c| c.get_name() != "help") {
                walk(page, below, &format!("{path} {}", below.get_name()));
            }
        }
        let page = markdown();
        let mut root = super::super::command();
        root.build();
        for command in root.get_subcommands().filter(|c| c.get_name() != "help") {
            walk(&page, command, &format!("sluicegate {}", command.get_name()));
        }
    }
}
