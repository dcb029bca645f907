//! Does it add up? What was made, what the node says became of it, what the partner has seen. Pure.

use super::scenario::Part;
use crate::mock::PartnerReport;
use crate::telemetry::text::count;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// What the node says of one partner at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NodeCount {
    /// Delivered.
    pub delivered: u64,
    /// Dead, by reason.
    pub dead: BTreeMap<String, u64>,
    /// Parked in doubt.
    pub parked: u64,
    /// Not finished.
    pub waiting: u64,
}

impl NodeCount {
    /// All dead letters.
    pub fn dead_total(&self) -> u64 {
        self.dead.values().sum()
    }
}

/// One partner, both ends.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Row {
    /// Its name.
    pub partner: String,
    /// Different messages imported for it.
    pub sent: u64,
    /// Lines that repeated a message.
    pub repeats: u64,
    /// What the node says.
    pub node: NodeCount,
    /// Requests it has seen.
    pub requests: u64,
    /// Different messages it has applied.
    pub applied: u64,
    /// Messages it has applied more than once.
    pub applied_again: u64,
    /// Requests out of order within a key.
    pub order_violations: u64,
    /// Its limit: starts in any second.
    pub limit: u64,
    /// Most arrivals in any second.
    pub most: u64,
}

impl Row {
    /// Brings both ends together.
    pub fn new(part: &Part, repeats: u64, node: NodeCount, seen: &PartnerReport) -> Self {
        Self {
            partner: part.name.to_owned(),
            sent: part.messages,
            repeats,
            node,
            requests: seen.requests,
            applied: seen.ids_applied,
            applied_again: seen.ids_applied_again,
            order_violations: seen.order_violations,
            limit: part.limit,
            most: seen.windows.iter().map(|w| w.max).max().unwrap_or(0),
        }
    }

    /// What does not add up; nothing if all does.
    pub fn mistakes(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut unless = |good: bool, text: String| {
            if !good {
                found.push(format!("{}: {text}", self.partner));
            }
        };
        let (delivered, dead, parked) = (self.node.delivered, self.node.dead_total(), self.node.parked);
        let finished = delivered + dead + parked;
        unless(
            finished + self.node.waiting == self.sent,
            format!(
                "{delivered} delivered + {dead} dead + {parked} parked + {} waiting is not {} sent",
                self.node.waiting, self.sent
            ),
        );
        unless(
            self.node.waiting == 0,
            format!("{} messages are not finished", self.node.waiting),
        );
        unless(
            self.applied_again == 0,
            format!("{} messages were applied more than once", self.applied_again),
        );
        unless(
            self.applied >= delivered,
            format!(
                "{delivered} were told to be delivered, but the partner has only {}",
                self.applied
            ),
        );
        // What is parked may have been applied: that is what the doubt is about.
        unless(
            self.applied <= delivered + parked,
            format!(
                "the partner has {}, but only {delivered} delivered and {parked} parked are told",
                self.applied
            ),
        );
        unless(
            self.order_violations == 0,
            format!("{} requests out of order", self.order_violations),
        );
        unless(
            self.most <= self.limit,
            format!(
                "{} requests arrived in one second, its limit is {}",
                self.most, self.limit
            ),
        );
        found
    }
}

/// A line of the table: its name, and its figure of a row.
type Line = (&'static str, fn(&Row) -> u64);

/// The table at the end.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Table {
    /// One row a partner.
    pub rows: Vec<Row>,
    /// What does not add up.
    pub mistakes: Vec<String>,
}

impl Table {
    /// Of these rows.
    pub fn new(rows: Vec<Row>) -> Self {
        let mistakes = rows.iter().flat_map(Row::mistakes).collect();
        Self { rows, mistakes }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = |of: fn(&Row) -> u64| self.rows.iter().map(of).sum::<u64>();
        let lines: [Line; 9] = [
            ("messages sent", |r| r.sent),
            ("  lines that repeated one", |r| r.repeats),
            ("delivered", |r| r.node.delivered),
            ("dead", |r| r.node.dead_total()),
            ("parked in doubt", |r| r.node.parked),
            ("not finished", |r| r.node.waiting),
            ("partner: requests seen", |r| r.requests),
            ("partner: messages applied", |r| r.applied),
            ("partner: applied twice", |r| r.applied_again),
        ];
        write!(f, "{:<28}", "")?;
        for row in &self.rows {
            write!(f, "{:>12}", row.partner)?;
        }
        writeln!(f, "{:>12}", "all")?;
        for (name, of) in lines {
            write!(f, "{name:<28}")?;
            for row in &self.rows {
                write!(f, "{:>12}", count(of(row)))?;
            }
            writeln!(f, "{:>12}", count(total(of)))?;
        }
        write!(f, "{:<28}", "partner: most in a second")?;
        for row in &self.rows {
            write!(f, "{:>12}", count(row.most))?;
        }
        write!(f, "\n{:<28}", "  of its limit")?;
        for row in &self.rows {
            write!(f, "{:>12}", count(row.limit))?;
        }
        write!(f, "\n{:<28}", "  limit kept")?;
        for row in &self.rows {
            write!(f, "{:>12}", if row.most <= row.limit { "yes" } else { "NO" })?;
        }
        writeln!(f)?;
        for row in &self.rows {
            for (reason, n) in &row.node.dead {
                writeln!(f, "dead at {}: {} x {reason}", row.partner, count(*n))?;
            }
        }
        for mistake in &self.mistakes {
            writeln!(f, "does not add up: {mistake}")?;
        }
        if self.mistakes.is_empty() {
            writeln!(
                f,
                "It adds up: sent = delivered + dead + parked; nothing lost, nothing applied twice, every limit kept."
            )?;
        }
        Ok(())
    }
}
