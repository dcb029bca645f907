//! `send`: one record into a topic.

use super::door::{self, Door};
use super::{CliError, Exit, Global, Out};
use crate::api::{SendReply, SendRequest};
use crate::intake::send::{SendError, send, with_id};
use crate::intake::topic_spec;
use std::io::Read;

/// Arguments of `send`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The record's value; - reads it from stdin, @FILE from a file
    #[arg(value_name = "VALUE")]
    pub value: String,
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
    let mut request = SendRequest {
        topic: args.topic.clone(),
        key: args.key,
        value: value(&args.value)?,
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
            let sent = send(&*log, &section, &topic_spec(&config, &section), &request);
            log.close()
                .map_err(|e| CliError::failed("cannot close the log").caused_by(e))?;
            sent.map_err(explained)?
        }
    };
    let SendReply {
        topic,
        partition,
        offset,
        ..
    } = &reply;
    let mut out = Out::new(global);
    out.either(
        &reply,
        format_args!("{topic} partition {partition} offset {offset}"),
    )?;
    out.finish()?;
    Ok(Exit::Done)
}

fn explained(error: SendError) -> CliError {
    match error {
        SendError::Log(e) => CliError::failed("the record was not taken").caused_by(e),
        other => CliError::usage("the record was not taken").caused_by(other),
    }
}

fn value(text: &str) -> Result<String, CliError> {
    let unreadable = |from: &str, e| CliError::failed("cannot read the value").at(from).caused_by(e);
    if text == "-" {
        let mut value = String::new();
        std::io::stdin()
            .lock()
            .read_to_string(&mut value)
            .map_err(|e: std::io::Error| unreadable("stdin", e))?;
        return Ok(value);
    }
    match text.strip_prefix('@') {
        Some(path) => std::fs::read_to_string(path).map_err(|e| unreadable(path, e)),
        None => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_stands_on_the_line_or_in_a_file() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("v");
        std::fs::write(&path, "from a file").expect("write");
        assert_eq!(value("{}").expect("plain"), "{}");
        assert_eq!(
            value(&format!("@{}", path.display())).expect("file"),
            "from a file"
        );
        assert!(
            value("@/nowhere")
                .expect_err("missing")
                .to_string()
                .contains("/nowhere")
        );
    }
}
