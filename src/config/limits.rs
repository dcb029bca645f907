//! `[limits.NAME]`: budgets of starts.

use super::kinds::{As, Count, List, Maybe, Pointer, Text, Time};
use super::units;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A budget of starts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitConfig {
    /// Rates that all hold at once, over any sliding window: `500/s`, `20000/min`, `10/250ms`. With a zone it is a
    /// calendar quota: `1000000/day@Europe/London` (hour, day, week, month).
    #[serde(with = "As::<List<Rate, 1>>")]
    #[schemars(extend("examples" = [["500/s", "20000/min", "1000000/day@Europe/London"]]))]
    pub rates: Vec<Rate>,
    /// One such budget for each value of this field of the record.
    #[serde(default, with = "As::<Maybe<Pointer>>")]
    #[schemars(extend("examples" = ["json:/app_id"]))]
    pub by: Option<String>,
    /// At most so many starts back to back before starts are spaced evenly. Unset: a window's whole count may start at
    /// once.
    #[serde(default, with = "As::<Maybe<Count<1>>>")]
    #[schemars(extend("examples" = [50]))]
    pub burst: Option<u32>,
    /// By how much the way to the partner may differ from one request to the next. Windows are longer by so much (at
    /// most a tenth of the window), calendar quotas begin so much later and end so much earlier: then the limit holds
    /// for what the partner counts on its clock. 10 ms of a second cost 1 % of the limit.
    #[serde(default = "margin", with = "As::<Time<true>>")]
    pub margin: Duration,
}

fn margin() -> Duration {
    LimitConfig::default().margin
}

impl Default for LimitConfig {
    fn default() -> Self {
        Self {
            rates: Vec::new(),
            by: None,
            burst: None,
            margin: Duration::from_millis(10),
        }
    }
}

/// One rate of a budget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rate {
    /// At most `count` starts in any window of this length: `500/s`, `20000/min`, `10/250ms`.
    Sliding {
        /// Starts.
        count: u64,
        /// Length of the window.
        window: Duration,
    },
    /// At most `count` starts in each calendar day (hour, week, month) of a zone: `1000000/day@Europe/London`.
    Calendar {
        /// Starts.
        count: u64,
        /// Which span.
        unit: CalendarUnit,
        /// IANA name of the zone.
        zone: String,
    },
}

impl Text for Rate {
    const TAKES: Option<&'static str> = Some("rate");
    const EXAMPLE: &'static str = "500/s";
    type Of = Self;
    fn parse(text: &str) -> Result<Self, String> {
        units::parse_rate(text).map_err(|e| e.to_string())
    }
    fn text(value: &Self) -> String {
        units::rate(value)
    }
}

/// Spans of calendar quotas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CalendarUnit {
    /// From full hour to full hour.
    Hour,
    /// From midnight to midnight: 23 or 25 hours where the clock changes.
    Day,
    /// From Monday.
    Week,
    /// From the first.
    Month,
}

/// Where a partner's limit is defined.
#[derive(Clone, Debug, PartialEq)]
pub enum LimitRef {
    /// In `[limits.NAME]`, perhaps shared with other partners.
    Named(String),
    /// At the partner itself; the budget is then called after the partner.
    Inline(LimitConfig),
}
