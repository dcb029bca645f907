//! `send`: one record into a topic.

use super::door::{self, Door};
use super::listing::one_line;
use super::{CliError, Exit, Global, Out};
use crate::api::{SendReply, SendRequest};
use crate::intake::send::{SendError, maskers, send, with_id};
use crate::intake::topic_spec;
use std::path::{Path, PathBuf};

/// Arguments of `send`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The record's value; - reads it from stdin, @FILE from a file
    #[arg(value_name = "VALUE", required_unless_present_any = ["file", "literal"])]
    pub value: Option<String>,
    /// File that holds the value; - is stdin
    #[arg(long, value_name = "FILE", conflicts_with = "value")]
    pub file: Option<PathBuf>,
    /// The value as it stands behind --, also where it begins with @ or is -
    #[arg(last = true, value_name = "TEXT", conflicts_with_all = ["value", "file"])]
    pub literal: Option<String>,
    /// Topic to write to
    #[arg(long, value_name = "NAME")]
    pub topic: String,
    /// The record's key
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// A header of the record; may be given several times
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = super::header_arg)]
    pub headers: Vec<(String, String)>,
    /// The message ID, for topics that take it from a header or the key
    #[arg(long, value_name = "ID")]
    pub id: Option<String>,
}

/// Runs the command.
pub fn run(args: Args, global: &Global) -> Result<Exit, CliError> {
    let value = value(&args)?;
    let mut request = SendRequest {
        topic: args.topic.clone(),
        key: args.key,
        value,
        headers: args.headers,
        partition: None,
    };
    if let Some(id) = &args.id {
        let section = door::section(&global.load()?.config, &args.topic)?;
        request = with_id(request, &section, id).map_err(explained)?;
    }
    let reply = match Door::open(global)? {
        Door::Node(client) => door::runtime()?
            .block_on(client.send(&request))
            .map_err(door::refused)?,
        Door::Folder(log) => {
            let config = global.load()?.config;
            let section = door::section(&config, &args.topic)?;
            let maskers = maskers(&config, &section);
            let sent = send(
                &*log,
                &section,
                &topic_spec(&config, &section),
                &maskers,
                &request,
            );
            log.close()
                .map_err(|e| CliError::failed("cannot close the log").caused_by(e))?;
            sent.map_err(explained)?
        }
    };
    let SendReply {
        topic,
        partition,
        offset,
        id,
        notes,
    } = &reply;
    let mut out = Out::new(global);
    let message = id.as_ref().map(|id| format!(": message {}", one_line(id)));
    out.either(
        &reply,
        format_args!(
            "{topic} partition {partition} offset {offset}{}",
            message.unwrap_or_default()
        ),
    )?;
    out.finish()?;
    for note in notes {
        eprintln!("note: {note}");
    }
    Ok(Exit::Done)
}

fn explained(error: SendError) -> CliError {
    match error {
        SendError::Log(e) => CliError::failed("the record was not taken").caused_by(e),
        full @ SendError::NoRoom(_) => CliError::failed("the record was not taken")
            .caused_by(full)
            .mend("make room on the disk of node.data: it goes on by itself"),
        other => CliError::usage("the record was not taken").caused_by(other),
    }
}

/// The value, wherever it is.
fn value(args: &Args) -> Result<String, CliError> {
    let path = match (&args.literal, &args.file, &args.value) {
        (Some(text), ..) => return Ok(text.clone()),
        (_, Some(file), _) => file.as_path(),
        (.., Some(text)) => match text.strip_prefix('@') {
            Some(path) => Path::new(path),
            None if text == "-" => Path::new("-"),
            None => return Ok(text.clone()),
        },
        (None, None, None) => return Err(CliError::usage("there is no value")),
    };
    let read = if path == Path::new("-") {
        std::io::read_to_string(std::io::stdin().lock())
    } else {
        std::fs::read_to_string(path)
    };
    let mut value = read.map_err(|e| {
        CliError::failed("cannot read the value")
            .at(path.display())
            .caused_by(e)
            .mend("a value that itself begins with @, or is -, goes behind --")
    })?;
    value.truncate(without_line_end(value.as_bytes()).len());
    Ok(value)
}

/// What a file holds without the one line end at its end, which is no part of the record: an import of the line gives
/// the same value.
pub(super) fn without_line_end(text: &[u8]) -> &[u8] {
    match text.strip_suffix(b"\n") {
        Some(line) => line.strip_suffix(b"\r").unwrap_or(line),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn read(line: &[&str]) -> Result<String, String> {
        let parsed = Line::try_parse_from([&["send", "--topic", "t"], line].concat());
        value(&parsed.map_err(|e| e.to_string())?.args).map_err(|e| e.to_string())
    }

    #[test]
    fn a_value_stands_on_the_line_or_in_a_file() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("v").display().to_string();
        std::fs::write(&path, "from a file\r\n").expect("write");
        assert_eq!(read(&["{}"]).as_deref(), Ok("{}"));
        assert_eq!(read(&[&format!("@{path}")]).as_deref(), Ok("from a file"));
        assert_eq!(read(&["--file", &path]).as_deref(), Ok("from a file"));
        std::fs::write(&path, "two\n\n").expect("write");
        assert_eq!(
            read(&["--file", &path]).as_deref(),
            Ok("two\n"),
            "one line end only"
        );
        // Any text can be sent.
        for text in ["@alice", "@/etc/hostname", "-", "--topic"] {
            assert_eq!(read(&["--", text]).as_deref(), Ok(text));
        }
        assert!(read(&["@/nowhere"]).expect_err("missing").contains("/nowhere"));
        assert!(read(&[]).is_err() && read(&["x", "--file", &path]).is_err());
    }
}
