//! `message ID`: what became of a message, everywhere.

use super::listing::{one_line, unexpected};
use super::node;
use super::{CliError, Exit, Global, Out};
use crate::api::messages::{RouteStory, Story};
use crate::api::{Filter, Query, Reply};

/// Arguments of `message`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Message ID: as in the record, or its 32 hexadecimal digits
    #[arg(value_name = "ID")]
    pub id: String,
    /// Only this topic
    #[arg(long, value_name = "NAME")]
    pub topic: Option<String>,
    /// Only this partner
    #[arg(long, value_name = "NAME")]
    pub partner: Option<String>,
}

/// Runs the command. Exit code 1 if nothing is known of the message.
pub fn run(args: Args, global: &Global) -> Result<Exit, CliError> {
    let filter = Filter {
        topic: args.topic,
        partner: args.partner,
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
        return vec![format!(
            "nothing is known of message {}: not taken up yet (`sluicegate status` shows what a topic still holds), or no longer remembered",
            one_line(&story.id)
        )];
    }
    story
        .routes
        .iter()
        .flat_map(|route| route_lines(&story.id, route))
        .collect()
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
            told_from: 0,
        };
        let text = lines(&story);
        assert_eq!(text[0], "message a-1 to acme: delivered, 1 attempt");
        assert!(text[1].contains("day.jsonl:42"));
        assert!(text[2].ends_with("delivered  a b"));
        assert!(lines(&Story::default())[0].contains("nothing is known"));
    }
}
