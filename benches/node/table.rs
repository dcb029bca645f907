//! What a run prints: each figure beside the limit or peer it is held against.

use std::time::Duration;

/// How a figure stands to its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Within it.
    Pass,
    /// Not.
    Short,
    /// The measuring was not exact enough to say.
    Unclear,
    /// There is none: the figure stands beside another one.
    Beside,
}

impl From<bool> for Verdict {
    fn from(pass: bool) -> Self {
        if pass { Self::Pass } else { Self::Short }
    }
}

/// One line.
#[derive(Debug)]
pub struct Row {
    what: String,
    figure: String,
    against: String,
    verdict: Verdict,
}

impl Row {
    /// A figure that has a limit.
    pub fn held(
        what: impl Into<String>,
        figure: impl Into<String>,
        limit: impl Into<String>,
        pass: bool,
    ) -> Self {
        Self {
            what: what.into(),
            figure: figure.into(),
            against: limit.into(),
            verdict: pass.into(),
        }
    }

    /// The same figure, where the run was too noisy to hold it against anything.
    pub fn unclear(self) -> Self {
        Self {
            verdict: Verdict::Unclear,
            ..self
        }
    }

    /// A figure to look at, with what a peer has or what it rests on.
    pub fn beside(what: impl Into<String>, figure: impl Into<String>, note: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            figure: figure.into(),
            against: note.into(),
            verdict: Verdict::Beside,
        }
    }

    /// A scenario that did not come to its end.
    pub fn failed(what: &str, why: &str) -> Self {
        Self {
            what: what.into(),
            figure: "failed".into(),
            against: why.into(),
            verdict: Verdict::Short,
        }
    }

    /// Whether the figure falls short.
    pub fn is_short(&self) -> bool {
        self.verdict == Verdict::Short
    }

    /// As a line of a table.
    pub fn print(&self, json: bool) {
        let Self {
            what,
            figure,
            against,
            verdict,
        } = self;
        let verdict = match verdict {
            Verdict::Pass => "pass",
            Verdict::Short => "SHORT",
            Verdict::Unclear => "unclear",
            Verdict::Beside => "",
        };
        if json {
            let line = serde_json::json!({
                "what": what, "figure": figure, "against": against, "verdict": verdict.to_lowercase(),
            });
            println!("{line}");
        } else {
            println!("| {what} | {figure} | {against} | {verdict} |");
        }
    }
}

/// Begins the table.
pub fn head(json: bool) {
    if !json {
        println!("| what | figure | limit, or what stands beside it | |");
        println!("|---|---|---|---|");
    }
}

/// Seconds with as many digits as they deserve.
pub fn seconds(of: Duration) -> String {
    let s = of.as_secs_f64();
    if s < 1.0 {
        format!("{:.0} ms", s * 1e3)
    } else {
        format!("{s:.2} s")
    }
}

/// A count with its thousands apart.
pub fn count(n: f64) -> String {
    let digits = format!("{n:.0}");
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            out.push(',');
        }
        out.push(c);
    }
    out
}
