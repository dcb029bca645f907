//! Text forms of quantities: durations (`200ms`, `1h30m`), sizes (`512MiB`), rates (`500/s`, `10/250ms`,
//! `1000000/day@Europe/London`). A bare number is refused: it hides its unit. And of log filters.
//!
//! Every form reads back: what [`duration`] and its siblings print, their parsers take.

use super::model::{CalendarUnit, Rate};
use std::time::Duration;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Why a text is not a quantity: what was expected, as a half sentence for a finding.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnitError(pub String);

const DURATION_FORM: &str = "a duration with its unit: 200ms, 2s, 5m, 24h, 8d";
const SIZE_FORM: &str = "a size with its unit: 512MiB, 64KiB, 10KB, 100B";
const RATE_FORM: &str = "a rate: 500/s, 20000/min, 10/250ms, 1000000/day@Europe/London";

fn expected(form: &str) -> UnitError {
    UnitError(format!("expected {form}"))
}

/// Splits `"12.5ms rest"` into its number (as written) and what follows.
fn split_number(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_'))
        .unwrap_or(text.len());
    text.split_at(end)
}

/// `number × unit`, exactly, where the number may have a decimal fraction. `None`: not a number, or too large.
fn scaled(number: &str, unit: u64) -> Option<u64> {
    let number = number.replace('_', "");
    let (whole, fraction) = number.split_once('.').unwrap_or((&number, ""));
    let mut total = whole.parse::<u64>().ok()?.checked_mul(unit)?;
    if number.contains('.') {
        if fraction.is_empty() || fraction.len() > 9 {
            return None;
        }
        let part = u128::from(fraction.parse::<u64>().ok()?) * u128::from(unit);
        let scale = 10u128.pow(fraction.len() as u32);
        if part % scale != 0 {
            return None;
        }
        total = total.checked_add(u64::try_from(part / scale).ok()?)?;
    }
    Some(total)
}

/// Microseconds of one unit of time.
fn time_unit(unit: &str) -> Option<u64> {
    const SECOND: u64 = 1_000_000;
    Some(match unit {
        "us" | "µs" => 1,
        "ms" => 1_000,
        "s" | "sec" => SECOND,
        "m" | "min" => 60 * SECOND,
        "h" => 3_600 * SECOND,
        "d" => 86_400 * SECOND,
        "w" => 7 * 86_400 * SECOND,
        _ => return None,
    })
}

/// Reads a duration: one or several numbers, each with a unit of `us ms s m h d w` (`min` and `sec` too).
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let mut rest = text.trim();
    let mut total: u64 = 0;
    if rest.is_empty() {
        return Err(expected(DURATION_FORM));
    }
    while !rest.is_empty() {
        let (number, after) = split_number(rest);
        let after = after.trim_start();
        let end = after.find(|c: char| !c.is_alphabetic()).unwrap_or(after.len());
        let (unit, next) = after.split_at(end);
        let us = time_unit(unit)
            .and_then(|unit| scaled(number, unit))
            .ok_or_else(|| expected(DURATION_FORM))?;
        total = total.checked_add(us).ok_or_else(|| expected(DURATION_FORM))?;
        rest = next.trim_start();
    }
    Ok(Duration::from_micros(total))
}

/// Prints a duration in the largest unit that divides it.
pub fn duration(d: Duration) -> String {
    let us = d.as_micros();
    for (unit, name) in [
        (86_400_000_000, "d"),
        (3_600_000_000, "h"),
        (60_000_000, "m"),
        (1_000_000, "s"),
        (1_000, "ms"),
    ] {
        if us >= unit && us.is_multiple_of(unit) {
            return format!("{}{name}", us / unit);
        }
    }
    if us == 0 { "0s".into() } else { format!("{us}us") }
}

const SIZES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// Reads a size in bytes: a number with a unit of `B KB MB GB TB` (thousands) or `KiB MiB GiB TiB` (1,024s).
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let (number, unit) = split_number(text.trim());
    let unit = unit.trim();
    SIZES
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit))
        .and_then(|(_, bytes)| scaled(number, *bytes))
        .ok_or_else(|| expected(SIZE_FORM))
}

/// Prints a size in the largest unit that divides it.
pub fn size(bytes: u64) -> String {
    match SIZES
        .iter()
        .find(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit))
    {
        Some((name, unit)) => format!("{}{name}", bytes / unit),
        None => "0B".into(),
    }
}

/// Reads a log filter. A single word must be a level: it would else be taken for a module's name, and a mistyped level
/// would silence everything.
pub fn parse_log_filter(text: &str) -> Result<EnvFilter, String> {
    let word = |part: &str| part.chars().all(char::is_alphanumeric);
    let wrong = text
        .split(',')
        .map(str::trim)
        .find(|part| part.is_empty() || word(part) && part.parse::<LevelFilter>().is_err());
    match wrong {
        Some(part) => Err(format!(
            "`{part}` is none of off, error, warn, info, debug, trace"
        )),
        None => EnvFilter::builder().parse(text).map_err(|e| e.to_string()),
    }
}

/// Reads a rate. With a zone (`@`) it is a calendar quota; the zone must be known to this machine's zone files.
pub fn parse_rate(text: &str) -> Result<Rate, UnitError> {
    let (count, span) = text.trim().split_once('/').ok_or_else(|| expected(RATE_FORM))?;
    let count: u64 = count
        .trim()
        .replace('_', "")
        .parse()
        .map_err(|_| expected(RATE_FORM))?;
    if count == 0 {
        return Err(UnitError(
            "expected at least 1 in a rate; to stop a partner, pause it".into(),
        ));
    }
    let span = span.trim();
    if let Some((unit, zone)) = span.split_once('@') {
        let unit = match unit.trim() {
            "h" | "hour" => CalendarUnit::Hour,
            "d" | "day" => CalendarUnit::Day,
            "w" | "week" => CalendarUnit::Week,
            "month" => CalendarUnit::Month,
            _ => {
                return Err(UnitError(
                    "expected hour, day, week or month before the zone".into(),
                ));
            }
        };
        let zone = zone.trim();
        jiff::tz::TimeZone::get(zone).map_err(|_| {
            UnitError(format!(
                "expected a zone of the IANA list, as Europe/London; unknown here: {zone}"
            ))
        })?;
        return Ok(Rate::Calendar {
            count,
            unit,
            zone: zone.to_owned(),
        });
    }
    let window = match span {
        "sec" | "second" => Duration::from_secs(1),
        "minute" => Duration::from_secs(60),
        "hour" => Duration::from_secs(3_600),
        "day" => Duration::from_secs(86_400),
        "week" => Duration::from_secs(7 * 86_400),
        "month" => {
            return Err(UnitError(
                "expected a zone for a month, as month@Europe/London: months differ in length".into(),
            ));
        }
        _ if span.starts_with(|c: char| c.is_ascii_digit()) => {
            parse_duration(span).map_err(|_| expected(RATE_FORM))?
        }
        unit => Duration::from_micros(time_unit(unit).ok_or_else(|| expected(RATE_FORM))?),
    };
    if window.is_zero() {
        return Err(expected(RATE_FORM));
    }
    Ok(Rate::Sliding { count, window })
}

/// Prints a rate as [`parse_rate`] takes it.
pub fn rate(rate: &Rate) -> String {
    match rate {
        Rate::Sliding { count, window } => {
            let span = duration(*window);
            match span.as_str() {
                "1s" => format!("{count}/s"),
                "1m" => format!("{count}/min"),
                "1h" => format!("{count}/h"),
                "1d" => format!("{count}/d"),
                _ => format!("{count}/{span}"),
            }
        }
        Rate::Calendar { count, unit, zone } => {
            let unit = match unit {
                CalendarUnit::Hour => "hour",
                CalendarUnit::Day => "day",
                CalendarUnit::Week => "week",
                CalendarUnit::Month => "month",
            };
            format!("{count}/{unit}@{zone}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_mistyped_level_is_no_filter() {
        for good in [
            "info",
            "WARN",
            "sluicegate=debug,warn",
            "off",
            "sluicegate::actors",
            "hyper=off,info",
        ] {
            assert!(parse_log_filter(good).is_ok(), "{good}");
        }
        for bad in ["infoo", "sluicegate=debug,wran", "sluicegate=loud", "", "info,"] {
            assert!(parse_log_filter(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn durations_have_units() {
        let ms = |text| parse_duration(text).map(|d| d.as_millis());
        assert_eq!(ms("200ms"), Ok(200));
        assert_eq!(ms("5m"), Ok(300_000));
        assert_eq!(ms("1h30m"), Ok(5_400_000));
        assert_eq!(ms("1.5s"), Ok(1_500));
        assert_eq!(ms("8d"), Ok(691_200_000));
        for bad in [
            "",
            "5",
            "5 parsecs",
            "s",
            "-1s",
            "1..5s",
            "99999999999999d",
            "1s,2s",
            "0.0000001s",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_know_thousands_from_1024s() {
        assert_eq!(parse_size("512MiB"), Ok(512 << 20));
        assert_eq!(parse_size("10KB"), Ok(10_000));
        assert_eq!(parse_size("0B"), Ok(0));
        for bad in ["", "512", "1.5B", "MiB", "-1B", "99999999TiB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rates_slide_or_follow_a_calendar() {
        let sliding = |count, ms| {
            Ok(Rate::Sliding {
                count,
                window: Duration::from_millis(ms),
            })
        };
        assert_eq!(parse_rate("500/s"), sliding(500, 1_000));
        assert_eq!(parse_rate("20_000/min"), sliding(20_000, 60_000));
        assert_eq!(parse_rate("10/250ms"), sliding(10, 250));
        assert_eq!(parse_rate("7/day"), sliding(7, 86_400_000));
        let day = Rate::Calendar {
            count: 1_000_000,
            unit: CalendarUnit::Day,
            zone: "Europe/London".into(),
        };
        assert_eq!(parse_rate("1000000/day@Europe/London"), Ok(day));
        for bad in [
            "500",
            "/s",
            "0/s",
            "5/0s",
            "5/fortnight",
            "5/month",
            "5/s@Europe/London",
            "5/day@Mars/Base",
            "5/1",
        ] {
            assert!(parse_rate(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(us in 0u64..u64::MAX / 2, bytes: u64, count in 1u64..) {
            let d = Duration::from_micros(us);
            prop_assert_eq!(parse_duration(&duration(d)), Ok(d));
            prop_assert_eq!(parse_size(&size(bytes)), Ok(bytes));
            if us > 0 {
                let r = Rate::Sliding { count, window: d };
                prop_assert_eq!(parse_rate(&rate(&r)), Ok(r));
            }
        }

        #[test]
        fn no_text_breaks_a_parser(text in ".{0,24}") {
            let _ = (parse_duration(&text), parse_size(&text), parse_rate(&text));
        }
    }
}
