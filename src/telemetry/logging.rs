//! Log lines: for people on a terminal, one JSON object a line otherwise (`docs/logs.md` is its schema).
//!
//! Every line goes to stderr; stdout is for data. The filter comes from the configuration and can be changed while
//! the node runs ([`Logging::set_level`]).

use crate::config::{LogFormat, LoggingConfig, units};
use crate::core::in_full::in_full;
use std::fmt::{self, Write as _};
use std::io::IsTerminal;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, reload};

/// Fields of the JSON schema, in the order in which they are written; others follow behind them.
pub const SCHEMA: [&str; 11] = [
    "ts",
    "level",
    "event",
    "node",
    "topic",
    "partition",
    "offset",
    "partner",
    "message_id",
    "key",
    "attempt",
];
/// The last field of the schema: what an attempt meant.
pub const VERDICT: &str = "verdict";

/// A filter that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The text is no filter.
    #[error("`{text}` is no log filter, expected a level or `target=level` pairs: {cause}")]
    Filter {
        /// What was given.
        text: String,
        /// What is wrong with it.
        cause: String,
    },
    /// Another subscriber was there first.
    #[error("cannot set up logging: {0}")]
    Taken(String),
}

/// The running set-up: lets the filter be changed.
#[derive(Clone)]
pub struct Logging {
    change: std::sync::Arc<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>,
}

fn filter(text: &str) -> Result<EnvFilter, LoggingError> {
    units::parse_log_filter(text).map_err(|cause| LoggingError::Filter {
        text: text.to_owned(),
        cause,
    })
}

/// Whether lines are for people, and whether they may be coloured. `no_color`: the variable `NO_COLOR` is set.
fn form(format: LogFormat, terminal: bool, no_color: bool) -> (bool, bool) {
    let pretty = match format {
        LogFormat::Auto => terminal,
        LogFormat::Pretty => true,
        LogFormat::Json => false,
    };
    (pretty, pretty && terminal && !no_color)
}

/// Sets up logging for this process: once, at the start. `node` goes into every JSON line.
///
/// # Errors
/// If the filter cannot be read, or logging was set up before.
pub fn start(config: &LoggingConfig, node: &str) -> Result<Logging, LoggingError> {
    // no-color.org: any value but an empty one.
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    let (pretty, colour) = form(config.format, std::io::stderr().is_terminal(), no_color);
    let (subscriber, logging) = build(filter(&config.level)?, pretty, colour, node, std::io::stderr);
    subscriber
        .try_init()
        .map_err(|e| LoggingError::Taken(e.to_string()))?;
    Ok(logging)
}

fn build<W>(
    filter: EnvFilter,
    pretty: bool,
    colour: bool,
    node: &str,
    writer: W,
) -> (Box<dyn Subscriber + Send + Sync>, Logging)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(filter);
    let registry = tracing_subscriber::registry().with(filter);
    let logging = Logging {
        change: std::sync::Arc::new(move |new| handle.reload(new).map_err(|e| e.to_string())),
    };
    let subscriber: Box<dyn Subscriber + Send + Sync> = if pretty {
        let layer = tracing_subscriber::fmt::layer().with_writer(writer);
        Box::new(registry.with(layer.with_ansi(colour).with_target(false)))
    } else {
        let lines = JsonLines {
            node: node.to_owned(),
        };
        let layer = tracing_subscriber::fmt::layer().with_writer(writer);
        let layer = layer.with_ansi(false).event_format(lines);
        Box::new(registry.with(SpanFields).with(layer))
    };
    (subscriber, logging)
}

impl Logging {
    /// Replaces the filter while the node runs.
    ///
    /// # Errors
    /// If the text is no filter.
    pub fn set_level(&self, text: &str) -> Result<(), LoggingError> {
        (self.change)(filter(text)?).map_err(|cause| LoggingError::Filter {
            text: text.to_owned(),
            cause,
        })
    }
}

/// Keeps each span's fields with it, for the lines within.
struct SpanFields;

impl<S> Layer<S> for SpanFields
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut fields = Fields::default();
            attributes.record(&mut fields);
            span.extensions_mut().insert(fields);
        }
    }
}

/// One JSON object a line, fields of [`SCHEMA`] first and at top level.
struct JsonLines {
    node: String,
}

/// Fields of a line, or of a span in which lines are written.
#[derive(Default)]
struct Fields(Vec<(&'static str, serde_json::Value)>);

impl Fields {
    fn put(&mut self, field: &Field, value: serde_json::Value) {
        self.0.push((field.name(), value));
    }
    fn take(&mut self, name: &str) -> Option<serde_json::Value> {
        let at = self.0.iter().position(|(n, _)| *n == name)?;
        Some(self.0.remove(at).1)
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, in_full(value).into());
    }
}

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        // Behind the line's own, the innermost span's first: of two with one name the first is written.
        for span in context.event_scope().into_iter().flatten() {
            if let Some(of_span) = span.extensions().get::<Fields>() {
                fields.0.extend(of_span.0.iter().cloned());
            }
        }
        let mut line: Vec<(&str, serde_json::Value)> = vec![
            ("ts", crate::clock::Clock::wall().to_string().into()),
            (
                "level",
                event.metadata().level().as_str().to_ascii_lowercase().into(),
            ),
            // A line without an event name of its own (from a library) is named after where it comes from.
            (
                "event",
                fields
                    .take("event")
                    .unwrap_or_else(|| event.metadata().target().into()),
            ),
            ("node", self.node.as_str().into()),
        ];
        for name in SCHEMA[4..].iter().chain([&VERDICT]) {
            if let Some(value) = fields.take(name) {
                line.push((name, value));
            }
        }
        for (name, value) in fields.0 {
            // Never lets a field of an event stand in for one of the schema, or come twice.
            if !line.iter().any(|(n, _)| *n == name) {
                line.push((name, value));
            }
        }
        let mut text = String::with_capacity(256);
        for (i, (name, value)) in line.iter().enumerate() {
            text.push(if i == 0 { '{' } else { ',' });
            write!(text, "{}:{value}", serde_json::Value::from(*name))?;
        }
        text.push('}');
        writeln!(writer, "{text}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(pretty: bool, level: &str, speak: impl FnOnce(&Logging)) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let (subscriber, logging) = build(filter(level).unwrap(), pretty, false, "n1", move || {
            writer.clone()
        });
        tracing::subscriber::with_default(subscriber, || speak(&logging));
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_json_line_holds_the_schema_in_order() {
        let text = logged(false, "info", |_| {
            tracing::info!(
                verdict = "refused",
                attempt = 3u32,
                event = "attempt",
                topic = "orders",
                partition = 1u32,
                offset = 17u64,
                partner = "acme",
                message_id = %"a-1",
                key = "k",
                extra = true,
                "not taken\n\"at all\""
            );
        });
        assert_eq!(text.lines().count(), 1);
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        for (name, value) in [
            ("level", serde_json::json!("info")),
            ("event", "attempt".into()),
            ("node", "n1".into()),
            ("topic", "orders".into()),
            ("partition", 1.into()),
            ("offset", 17.into()),
            ("partner", "acme".into()),
            ("message_id", "a-1".into()),
            ("key", "k".into()),
            ("attempt", 3.into()),
            ("verdict", "refused".into()),
            ("extra", true.into()),
            ("message", "not taken\n\"at all\"".into()),
        ] {
            assert_eq!(line[name], value, "{name}");
        }
        assert!(line["ts"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn fields_cannot_pose_as_schema() {
        let text = logged(false, "info", |_| tracing::info!(node = "forged", ts = "0", "x"));
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["node"], "n1");
        assert_ne!(line["ts"], "0");
    }

    #[test]
    fn the_filter_changes_while_running() {
        let text = logged(true, "warn", |logging| {
            tracing::info!("silent");
            logging.set_level("info").unwrap();
            tracing::info!("heard");
            assert!(logging.set_level("sluicegate=nonsense").is_err());
        });
        assert!(text.contains("heard") && !text.contains("silent"), "{text}");
    }

    #[test]
    fn colour_is_for_terminals_that_want_it() {
        assert_eq!(form(LogFormat::Auto, true, false), (true, true));
        assert_eq!(form(LogFormat::Auto, true, true), (true, false));
        assert_eq!(form(LogFormat::Auto, false, false), (false, false));
        assert_eq!(form(LogFormat::Pretty, false, false), (true, false));
        assert_eq!(form(LogFormat::Json, true, false), (false, false));
    }

    #[test]
    fn planted_secrets_do_not_appear() {
        use crate::config::secrets::Secret;
        let secret = Secret::new("pl4nted-t0ken");
        let masker = crate::core::mask::Masker::new(&[], &[secret.expose().into()]);
        for pretty in [true, false] {
            let text = logged(pretty, "info", |_| {
                tracing::info!(?secret, "as a field");
                let answer = masker.text("no such token: pl4nted-t0ken");
                tracing::info!(answer, error = %std::io::Error::other(masker.text("?key=pl4nted-t0ken")), "masked");
            });
            assert!(
                text.contains("no such token") && !text.contains("pl4nted"),
                "{text}"
            );
        }
    }

    #[test]
    fn lines_within_a_span_have_its_fields() {
        let speak = |_: &Logging| {
            let span = tracing::info_span!("message", topic = "orders", offset = 17u64, key = None::<&str>);
            span.in_scope(|| tracing::info!(event = "attempt", attempt = 1u32, offset = 18u64, "taken"));
            tracing::info!("outside");
        };
        let text = logged(false, "info", speak);
        let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(
            (&lines[0]["topic"], &lines[0]["attempt"]),
            (&"orders".into(), &1.into())
        );
        assert_eq!(
            lines[0]["offset"], 18,
            "the line's own field goes before the span's"
        );
        assert!(
            lines[0].get("key").is_none() && lines[1].get("topic").is_none(),
            "{text}"
        );
        let pretty = logged(true, "info", speak);
        assert!(
            pretty.contains("orders") && pretty.contains("attempt"),
            "{pretty}"
        );
    }
}
