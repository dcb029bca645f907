//! `init`: a small actors.toml to start from.
//!
//! What it writes is loaded before it is written: `check` passes on it.

use super::{CliError, Exit, Global, Out};
use crate::config;
use crate::intake::hints::pointer;
use crate::intake::import::{Format, sample};
use crate::telemetry::text::counted;
use serde::Serialize;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Arguments of `init`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address that the partner takes requests at; not needed where --sample holds URLs
    #[arg(long = "http", value_name = "URL", required_unless_present = "sample")]
    pub url: Option<String>,
    /// File with some of the records to come (JSON lines, arrays, CSV, URLs; also gz and zst): id and key are proposed
    /// from it
    #[arg(long, value_name = "FILE")]
    pub sample: Option<PathBuf>,
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
    /// Where the message IDs come from, if that was proposed.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    /// Where the keys come from, if that was proposed.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
}

/// What a sample says of the records to come.
#[derive(Debug, Default)]
struct Proposal {
    /// Lines for the topic's section.
    topic: String,
    /// Lines for the partner's section.
    partner: String,
    id: Option<String>,
    key: Option<String>,
    /// The record is the address.
    urls: bool,
    /// What to say beside the file.
    notes: Vec<String>,
}

/// What is written where there is no sample.
const NO_SAMPLE: &str =
    "# id = \"json:/id\"           # what makes a record the same message again; default: each is its own
# key = \"json:/user\"        # the unit of order; default: the record's key
";

/// Writes the file: the first of `--config`, else `./actors.toml`.
pub fn run(args: Args, global: &Global) -> Result<Exit, CliError> {
    let file = global.files().swap_remove(0);
    let name = file.display().to_string();
    let proposal = match &args.sample {
        Some(path) => propose(path)?,
        None => Proposal {
            topic: NO_SAMPLE.to_owned(),
            ..Proposal::default()
        },
    };
    let url = match &args.url {
        Some(url) => url.clone(),
        None if proposal.urls => "{{ value }}".to_owned(),
        None => {
            return Err(
                CliError::usage("the sample holds no URLs, so the partner's address is missing")
                    .mend("give it with --http URL"),
            );
        }
    };
    let text = text(&args, &url, &proposal);
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
        "wrote {name}: topic {topic} goes to {to}\n\nNext:\n  sluicegate check\n  {next}\n  sluicegate run",
        topic = args.topic,
        to = if proposal.urls && args.url.is_none() {
            "the URL that each record is"
        } else {
            &url
        },
        next = match &args.sample {
            Some(path) => format!("sluicegate import {} --topic {}", path.display(), args.topic),
            None => format!("sluicegate send --topic {} '{{\"id\": 1}}'", args.topic),
        },
    );
    for note in &proposal.notes {
        eprintln!("note: {note}");
    }
    out.either(
        &Written {
            file: name,
            topic: &args.topic,
            partner: &args.partner,
            id: proposal.id.as_deref(),
            key: proposal.key.as_deref(),
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

/// Reads a sample and says what it would make of such records, and why.
fn propose(path: &Path) -> Result<Proposal, CliError> {
    let name = path.file_name().map_or_else(
        || path.display().to_string(),
        |n| n.to_string_lossy().into_owned(),
    );
    let sample = sample(path, &name, None).map_err(|e| {
        CliError::usage("the sample cannot be used")
            .at(path.display())
            .caused_by(e)
            .mend("name it .jsonl, .json, .csv or .urls, for what it holds; or leave --sample out")
    })?;
    let records = sample.fields.records();
    if records == 0 {
        let error = CliError::usage(format!(
            "the sample has no record that can be read as {}",
            sample.format
        ))
        .at(path.display());
        return Err(match sample.rejected {
            Some((line, reason)) => error.mend(format!("line {line}: {reason}")),
            None => error.mend("give a file with some of the records to come"),
        });
    }
    let urls = sample.format == Format::Urls;
    let source = |field: &str| match urls {
        true => format!("query:{field}"),
        false => pointer(field),
    };
    let thing = if urls { "parameter" } else { "field" };
    let mut proposal = Proposal {
        urls,
        ..Proposal::default()
    };
    let from = format!("{} of {}", counted(records as u64, "record"), comment(&name));
    proposal.partner = match (sample.format, sample.delimiter) {
        (Format::Urls, _) => {
            format!("# Each record is a URL ({from}): it is the address, and the method is GET.\n")
        }
        (Format::Csv, delimiter) => {
            let by = match delimiter {
                b'\t' => "tabs".to_owned(),
                other => format!("`{}`", char::from(other)),
            };
            format!(
                "# Body: each row of CSV (fields between {by}) as a JSON object of texts. For numbers, or other names:\n# body = '{{\"amount\": {{{{ value.amount }}}}}}'\n"
            )
        }
        (form, _) => format!(
            "# Body: each record as it is ({form}). For another one: body = '{{\"name\": {{{{ value.name | tojson }}}}}}'\n"
        ),
    };
    match (sample.fields.id(), sample.fields.repeated_id()) {
        (Some(id), _) => {
            let source = source(id);
            let has = match sample.fields.with(id) {
                some if some < records => format!("{some} have"),
                _ => "each has".to_owned(),
            };
            proposal.topic = format!(
                "# What makes a record the same message again. {from}: {has} the {thing} `{}`, and no two the same value.\nid = {}\n",
                comment(id),
                toml_edit::Value::from(source.as_str())
            );
            proposal.id = Some(source);
        }
        (None, Some((id, values))) => {
            proposal.topic = format!(
                "# No ID is proposed: each of {from} has the {thing} `{}`, but there are only {values} values of it. Without `id` each\n# record is a message of its own, and goes out again if it comes in another file.\n# id = {}\n",
                comment(id),
                toml_edit::Value::from(source(id).as_str())
            );
            proposal.notes.push(format!("no ID was found in {name}: `{}` is in each record, but has only {values} values in {records}", comment(id)));
        }
        (None, None) => {
            proposal.topic = format!(
                "# No ID is proposed: no {thing} of {from} is one by its name. Without `id` each record is a message of its own, and\n# goes out again if it comes in another file. `hash` makes equal records one message.\n# id = \"hash\"\n"
            );
            proposal.notes.push(format!(
                "no ID was found in {name}: each record is a message of its own"
            ));
        }
    }
    match sample.fields.key().filter(|_| !urls) {
        Some(key) => {
            let source = source(key);
            proposal.topic.push_str(&format!(
                "# The unit of order: records with the same `{}` go out one after the other, others side by side. Leave it out where\n# order does not matter: then each ID goes for itself.\nkey = {}\n",
                comment(key),
                toml_edit::Value::from(source.as_str())
            ));
            proposal.key = Some(source);
        }
        None => proposal
            .topic
            .push_str("# key = \"json:/user\"        # the unit of order; default: the record's key\n"),
    }
    if let Some((line, reason)) = sample.rejected {
        proposal.notes.push(format!("{name}:{line}: {reason}"));
    }
    Ok(proposal)
}

/// A name from outside, on the line of a comment.
fn comment(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(80)
        .collect()
}

fn text(args: &Args, url: &str, proposal: &Proposal) -> String {
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
{of_partner}
[topics.{topic_key}]
partner = {partner}
{of_topic}",
        partner_key = key(&args.partner),
        topic_key = key(&args.topic),
        url = quoted(url),
        of_partner = proposal.partner,
        of_topic = proposal.topic,
        partner = quoted(&args.partner),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{IdSource, KeySource};

    fn args(url: &str, limit: &str) -> Args {
        Args {
            url: Some(url.into()),
            sample: None,
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

    #[test]
    fn a_sample_proposes_id_and_key_and_what_it_writes_passes_check() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("actors.toml");
        let global = Global {
            config: vec![file.clone()],
            ..Global::default()
        };
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let make = |sample: PathBuf, url: Option<&str>| {
            let args = Args {
                url: url.map(str::to_owned),
                sample: Some(sample),
                force: true,
                ..args("", "5/s")
            };
            run(args, &global)
        };
        let topic = || {
            let loaded = config::load(std::slice::from_ref(&file), std::iter::empty()).unwrap();
            let topic = loaded.config.topics["eu.orders"].clone();
            (topic.id, topic.key, loaded.config.partners["partner"].url.clone())
        };
        let json = |pointer: &str| IdSource::Json(pointer.into());
        let lines = write(
            "a.jsonl",
            "{\"n\":1,\"event~id\":\"x\",\"user_id\":7}\n{\"n\":1,\"event~id\":\"y\",\"user_id\":7}\n",
        );
        make(lines, Some("http://127.0.0.1:1/")).unwrap();
        let (id, key, _) = topic();
        assert_eq!(
            (id, key),
            (vec![json("/event~0id")], KeySource::Json("/user_id".into()))
        );
        make(write("b.csv", "id;name\n1;a\n2;b\n"), Some("http://127.0.0.1:1/")).unwrap();
        assert_eq!(topic().0, [json("/id")]);
        assert!(
            std::fs::read_to_string(&file)
                .unwrap()
                .contains("fields between `;`")
        );
        make(
            write("c.json", "[\n{\"uuid\": \"a\"},\n{\"uuid\": \"b\"}\n]"),
            Some("http://127.0.0.1:1/"),
        )
        .unwrap();
        assert_eq!(topic().0, [json("/uuid")]);
        // Values that repeat are no IDs; nothing that stands out is no ID either.
        for text in ["{\"id\":1}\n{\"id\":1}\n", "{\"n\":1}\n"] {
            make(write("d.jsonl", text), Some("http://127.0.0.1:1/")).unwrap();
            assert_eq!(topic().0, config::TopicConfig::new("t", "p").id);
        }
        make(
            write(
                "e.txt",
                "https://x.example/?click_id=1\nhttps://x.example/?click_id=2\n",
            ),
            None,
        )
        .unwrap();
        let (id, _, url) = topic();
        assert_eq!(
            (id, url.as_str()),
            (vec![IdSource::Query("click_id".into())], "{{ value }}")
        );
        // No address, and no records.
        let before = std::fs::read(&file).unwrap();
        assert_eq!(
            make(write("f.jsonl", "{\"id\":1}\n"), None).unwrap_err().exit(),
            Exit::Usage
        );
        assert_eq!(
            make(write("g.jsonl", "x\n"), Some("http://x/"))
                .unwrap_err()
                .exit(),
            Exit::Usage
        );
        assert_eq!(std::fs::read(&file).unwrap(), before);
    }
}
