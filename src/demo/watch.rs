//! Progress while it runs: a bar a partner on a terminal, a line every few seconds elsewhere. All on stderr.

use super::scenario::Scenario;
use crate::api::Status;
use crate::mock::Report;
use crate::telemetry::terminal::stderr_width;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Shows how far the demonstration is.
pub struct Watch {
    bars: Option<(MultiProgress, Vec<ProgressBar>)>,
    last_line: Option<Instant>,
}

impl Watch {
    /// Bars on a terminal, lines elsewhere.
    pub fn new(scenario: &Scenario) -> Self {
        let bars = std::io::stderr().is_terminal().then(|| {
            let all = MultiProgress::new();
            let bar = match stderr_width() {
                Some(..100) => "{prefix:<8} [{wide_bar}] {percent:>3}%",
                _ => "{prefix:<8} [{bar:30}] {human_pos:>8}/{human_len} {msg}",
            };
            let style = ProgressStyle::with_template(bar).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bars = scenario
                .parts()
                .map(|part| {
                    let bar = ProgressBar::new(part.messages)
                        .with_style(style.clone())
                        .with_prefix(part.name);
                    all.add(bar)
                })
                .to_vec();
            (all, bars)
        });
        Self {
            bars,
            last_line: None,
        }
    }

    /// A sentence about what happens.
    pub fn say(&self, text: &str) {
        match &self.bars {
            // If the terminal is gone nobody misses the sentence.
            Some((all, _)) => drop(all.println(text)),
            None => eprintln!("{text}"),
        }
    }

    /// Shows what the partners have, and what the node says where it answers.
    pub fn show(&mut self, scenario: &Scenario, seen: &Report, node: Option<&Status>) {
        let note = |name: &str| {
            let Some(status) = node else {
                return "node not up".to_owned();
            };
            match status.partners.iter().find(|p| p.partner == name) {
                Some(p) => format!(
                    "{:.0}/s, {} in flight, breaker {}, {} dead, {} parked",
                    p.rate,
                    p.in_flight,
                    p.breaker.word(),
                    p.dead,
                    p.parked
                ),
                None => String::new(),
            }
        };
        if let Some((_, bars)) = &self.bars {
            for (bar, part) in bars.iter().zip(scenario.parts()) {
                bar.set_position(seen.partner(part.name).map_or(0, |p| p.ids_applied));
                bar.set_message(note(part.name));
            }
            return;
        }
        if self.last_line.is_some_and(|at| at.elapsed() < LINE_EVERY) {
            return;
        }
        self.last_line = Some(Instant::now());
        let parts = scenario.parts().map(|part| {
            let applied = seen.partner(part.name).map_or(0, |p| p.ids_applied);
            format!("{} {applied}/{} ({})", part.name, part.messages, note(part.name))
        });
        eprintln!("{}", parts.join("; "));
    }

    /// Ends the bars where they stand.
    pub fn end(&self) {
        if let Some((_, bars)) = &self.bars {
            bars.iter().for_each(ProgressBar::abandon);
        }
    }
}
