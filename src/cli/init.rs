//! `init`: a small actors.toml to start from.
//!
//! What it writes is loaded before it is written: `check` passes on it.

use super::{CliError, Exit, Global, Out};
use crate::config;
use serde::Serialize;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::Path;

/// Arguments of `init`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address that the partner takes requests at
    #[arg(long = "http", value_name = "URL")]
    pub url: String,
    /// What the partner allows, as 50/s; may be given several times: all hold at once
    #[arg(long = "limit", value_name = "RATE")]
    pub limits: Vec<String>,
    /// Name of the topic
    #[arg(long, value_name = "NAME", default_value = "requests")]
    pub topic: String,
    /// Name of the partner
    #[arg(long, value_name = "NAME", default_value = "partner")]
    pub partner: String,
    /// Write over a file that is there
    #[arg(long)]
    pub force: bool,
}

#[derive(Serialize)]
struct Written<'a> {
    file: String,
    topic: &'a str,
    partner: &'a str,
}

/// Writes the file: the first of `--config`, else `./actors.toml`.
pub fn run(args: Args, global: &Global) -> Result<Exit, CliError> {
    let file = global.files().swap_remove(0);
    let name = file.display().to_string();
    let text = text(&args);
    // The text is ours; what can be wrong in it came from the arguments.
    let loaded = config::load_text(&name, &text).map_err(|mut findings| {
        for finding in &mut findings {
            (finding.file, finding.line) = (None, None);
        }
        CliError::configuration(findings).mend("the arguments of init do not make a configuration")
    })?;
    write(&file, &text, args.force)?;
    for warning in &loaded.warnings {
        eprintln!("{warning}");
    }
    let mut out = Out::new(global);
    let next = format!(
        "wrote {name}: topic {topic} goes to {url}\n\nNext:\n  sluicegate check\n  sluicegate send --topic {topic} '{{\"id\": 1}}'\n  sluicegate run",
        topic = args.topic,
        url = args.url,
    );
    out.either(
        &Written {
            file: name,
            topic: &args.topic,
            partner: &args.partner,
        },
        next,
    )?;
    out.finish()?;
    Ok(Exit::Done)
}

fn write(file: &Path, text: &str, force: bool) -> Result<(), CliError> {
    let mut options = OpenOptions::new();
    options.write(true);
    // `create_new` decides and creates in one step: two at once cannot overwrite each other.
    if force {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    let written = options
        .open(file)
        .and_then(|mut to| to.write_all(text.as_bytes()).and_then(|()| to.sync_all()));
    written.map_err(|e| match e.kind() {
        ErrorKind::AlreadyExists => CliError::usage("the file is there already")
            .at(file.display())
            .mend("--force writes over it; --config FILE names another"),
        _ => CliError::failed("cannot write the file")
            .at(file.display())
            .caused_by(e),
    })
}

fn text(args: &Args) -> String {
    let quoted = |text: &str| toml_edit::Value::from(text).to_string();
    let key = |name: &str| toml_edit::Key::new(name).display_repr().into_owned();
    let limits: Vec<_> = args.limits.iter().map(|rate| quoted(rate)).collect();
    let limits = match &limits[..] {
        [] => "# limits = [\"50/s\"]         # what the partner allows; all rates hold at once".to_owned(),
        rates => format!("limits = [{}]", rates.join(", ")),
    };
    format!(
        "# Made by `sluicegate init`. Every key not named stands at its default: `sluicegate check --effective` shows all.

[node]
data = \"data\"               # log and dedup store; one process at a time

[partners.{partner_key}]
url = {url}
{limits}
# headers = {{ authorization = \"Bearer {{{{ secret('token') }}}}\" }}   # with [secrets] token = {{ env = \"NAME\" }}
# concurrency = 64          # requests in flight: at least rate x latency
# doubt = \"park\"            # an attempt with unknown outcome waits for an operator: at most once

[topics.{topic_key}]
partner = {partner}
# id = \"json:/id\"           # what makes a record the same message again; default: each is its own
# key = \"json:/user\"        # the unit of order; default: the record's key
",
        partner_key = key(&args.partner),
        topic_key = key(&args.topic),
        url = quoted(&args.url),
        partner = quoted(&args.partner),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(url: &str, limit: &str) -> Args {
        Args {
            url: url.into(),
            limits: vec![limit.into()],
            topic: "eu.orders".into(),
            partner: "partner".into(),
            force: false,
        }
    }

    #[test]
    fn what_it_writes_passes_check_and_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("actors.toml");
        let global = Global {
            config: vec![file.clone()],
            ..Global::default()
        };
        assert_eq!(
            run(args("http://127.0.0.1:1/hook", "50/s"), &global).unwrap(),
            Exit::Done
        );
        let loaded = config::load(std::slice::from_ref(&file), std::iter::empty()).unwrap();
        assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
        assert_eq!(loaded.config.topics["eu.orders"].deliver.len(), 1);

        let before = std::fs::read(&file).unwrap();
        let error = run(args("http://127.0.0.1:2/other", "5/s"), &global).unwrap_err();
        assert_eq!(
            (error.exit(), std::fs::read(&file).unwrap()),
            (Exit::Usage, before.clone())
        );
        let force = Args {
            force: true,
            ..args("http://127.0.0.1:2/other", "5/s")
        };
        run(force, &global).unwrap();
        assert_ne!(std::fs::read(&file).unwrap(), before);
    }

    #[test]
    fn wrong_arguments_write_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("actors.toml");
        let global = Global {
            config: vec![file.clone()],
            ..Global::default()
        };
        for (url, limit) in [
            ("ftp://x/", "50/s"),
            ("http://x/", "50"),
            ("http://x/\"\n[node]\nid = \"y", "5/s"),
        ] {
            let error = run(args(url, limit), &global).unwrap_err();
            assert_eq!(
                (error.exit(), file.exists()),
                (Exit::Usage, false),
                "{url} {limit}"
            );
        }
    }
}
