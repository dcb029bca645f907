//! `message ID`: what became of a message, everywhere.

use super::listing::{one_line, unexpected};
use super::node;
use super::{CliError, Exit, Global, Out};
use crate::api::messages::{Looked, RouteStory, Story};
use crate::api::{Filter, Query, Reply};
use crate::telemetry::text::{count, counted};

/// Arguments of `message`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Message ID: as in the record, or its 32 hexadecimal digits; or FILE:LINE of an imported file
    #[arg(value_name = "ID")]
    pub id: String,
    /// Only this topic
    #[arg(long, value_name = "NAME")]
    pub topic: Option<String>,
    /// Only this partner
    #[arg(long, value_name = "NAME")]
    pub partner: Option<String>,
    /// Only this partition
    #[arg(long, value_name = "NUMBER")]
    pub partition: Option<u32>,
}

/// Runs the command. Exit code 1 if nothing is known of the message.
pub fn run(args: Args, global: &Global) -> Result<Exit, CliError> {
    let filter = Filter {
        topic: args.topic,
        partner: args.partner,
        partition: args.partition,
        ..Filter::of_id(args.id)
    };
    let (reply, hints) = node::with(global, |node| {
        let reply = node.query(&Query::Story { filter })?;
        let unknown = matches!(&reply, Reply::Story(story) if story.routes.is_empty());
        // An older node has none; the answer stands without them.
        let hints = if unknown {
            node.hints().unwrap_or_default()
        } else {
            Vec::new()
        };
        Ok((reply, hints))
    })?;
    let Reply::Story(story) = reply else {
        return Err(unexpected());
    };
    let mut out = Out::new(global);
    if out.is_json() {
        out.object(&story)?;
    } else {
        lines(&story).into_iter().try_for_each(|line| out.line(line))?;
    }
    out.finish()?;
    for note in &story.notes {
        eprintln!("note: {}", one_line(note));
    }
    for hint in hints {
        eprintln!("note: {hint}");
    }
    Ok(if story.routes.is_empty() {
        Exit::Failed
    } else {
        Exit::Done
    })
}

fn lines(story: &Story) -> Vec<String> {
    if story.routes.is_empty() {
        return vec![unknown(story)];
    }
    let routes = story.routes.iter();
    let mut lines: Vec<String> = routes.flat_map(|route| route_lines(&story.id, route)).collect();
    if let Some(looked) = story.looked.filter(|looked| looked.left > 0) {
        lines.push(format!("({})", not_all(looked)));
    }
    lines
}

/// What is said of a message that is found nowhere.
fn unknown(story: &Story) -> String {
    let id = one_line(&story.id);
    match story.looked {
        // Of a file's line the notes say what is known.
        None if !story.notes.is_empty() => format!("no message of {id} is known"),
        None => format!("nothing is known of message {id}: not taken up yet, or no longer remembered"),
        Some(looked) if looked.left > 0 => format!(
            "nothing is known of message {id} so far: {}; --topic, --partner or --partition narrow it down",
            not_all(looked)
        ),
        Some(looked) => format!(
            "nothing is known of message {id}: none of the {} in topics has this ID, and neither ledger nor store knows it. It never came in, or is no longer remembered",
            match looked.records {
                1 => "1 record that waits".to_owned(),
                n => format!("{} records that wait", count(n)),
            }
        ),
    }
}

fn not_all(looked: Looked) -> String {
    format!(
        "{} that wait in topics were looked at, {} more were not",
        counted(looked.records, "record"),
        count(looked.left)
    )
}

/// At most ten lines.
fn route_lines(id: &str, route: &RouteStory) -> Vec<String> {
    let head = format!(
        "message {} to {}: {}, {} {}",
        one_line(id),
        route.partner,
        route.state.word(),
        route.attempts,
        if route.attempts == 1 {
            "attempt"
        } else {
            "attempts"
        }
    );
    let mut from = format!("  hash {}", route.hex);
    if let Some(source) = &route.source {
        from.push_str(&format!(", from {}", one_line(source)));
    }
    if let Some(key) = &route.key {
        from.push_str(&format!(", key {}", one_line(key)));
    }
    let mut out = vec![head, from];
    out.extend(
        route
            .lines
            .iter()
            .map(|l| format!("  {:<24}  {:<9}  {}", l.at, l.event, one_line(&l.detail))),
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::DedupState;
    use crate::api::messages::StoryLine;

    #[test]
    fn a_story_is_told_in_lines() {
        let route = RouteStory {
            topic: "orders".into(),
            partner: "acme".into(),
            state: DedupState::Delivered,
            hex: "00".into(),
            source: Some("day.jsonl:42".into()),
            attempts: 1,
            lines: vec![StoryLine {
                at: "now".into(),
                event: "delivered".into(),
                detail: "a\nb".into(),
            }],
            ..RouteStory::default()
        };
        let story = Story {
            id: "a-1".into(),
            routes: vec![route],
            ..Story::default()
        };
        let text = lines(&story);
        assert_eq!(text[0], "message a-1 to acme: delivered, 1 attempt");
        assert!(text[1].contains("day.jsonl:42"));
        assert!(text[2].ends_with("delivered  a b"));
    }

    #[test]
    fn what_is_unknown_is_said_with_how_far_was_looked() {
        let said = |looked, notes: &[&str]| {
            let story = Story {
                id: "x".into(),
                looked,
                notes: notes.iter().map(|n| (*n).to_owned()).collect(),
                ..Story::default()
            };
            lines(&story).concat()
        };
        let looked = |records, left| Some(Looked { records, left });
        assert!(said(None, &[]).contains("nothing is known"));
        assert!(said(looked(3, 0), &[]).contains("none of the 3 records that wait"));
        assert!(said(looked(1, 0), &[]).contains("none of the 1 record that waits"));
        let bounded = said(looked(1_000, 2_000), &[]);
        assert!(
            bounded.contains("so far") && bounded.contains("2,000 more were not"),
            "{bounded}"
        );
        assert_eq!(said(None, &["line 3 was rejected"]), "no message of x is known");
    }
}
