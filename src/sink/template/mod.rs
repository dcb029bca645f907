//! Templates: text made from a record. One syntax everywhere (`docs/templates.md` lists the variables).
//!
//! A template is compiled once. Unknown variables, filters, tests, functions and secrets are found then, not at the
//! first record; a variable that this record does not have is an error that names it, never an empty text. Templates without `{{`, and the
//! plain `{{ value }}`, never see the engine.
//!
//! What is printed is what JSON has: `true`, `null`, numbers with the digits of the record (`json.rs`, `filters.rs`,
//! `operators.rs`). In a URL what a value says stays in its place ([`crate::core::url_text`]).

mod filters;
mod json;
mod known;
mod operators;
#[cfg(test)]
mod tests;

use super::Delivery;
use super::secrets::Secrets;
use crate::core::record::{Headers, SOURCE_HEADER};
use crate::core::url_text::{Made, Part, assemble};
use minijinja::value::{Enumerator, Object};
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior, Value};
use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, OnceLock};

/// Every variable of a template. `secret('name')` is a function beside them.
pub const VARIABLES: [&str; 13] = [
    "value",
    "key",
    "headers",
    "topic",
    "partition",
    "offset",
    "time",
    "id",
    "message_id",
    "attempt",
    "partner",
    "source",
    "idempotency_key",
];

/// What URL templates are called.
pub const URL: &str = "url";

/// Stands before and behind each value in a URL, with how it was made between. No character: what a record says of
/// these three is replaced.
const MARKS: [char; 3] = ['\u{fdd0}', '\u{fdd1}', '\u{fdd2}'];

/// A template that cannot be compiled or rendered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// It is no template.
    #[error("{what}: {why}")]
    Syntax {
        /// Which template: `url`, `header x-user`, `body`.
        what: String,
        /// What is wrong, with the line.
        why: String,
    },
    /// It uses a variable that does not exist.
    #[error("{what}: unknown variable `{name}`{}; known are {}", hint(near), VARIABLES.join(", "))]
    Variable {
        /// Which template.
        what: String,
        /// The variable.
        name: String,
        /// A known one that looks like it.
        near: Option<&'static str>,
    },
    /// It uses a filter, test or method that does not exist.
    #[error("{what}: unknown {kind} `{name}`{place}{way_out}")]
    Unknown {
        /// Which template.
        what: String,
        /// `filter`, `test` or `method`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The line, unless it is the first.
        place: String,
        /// What to write instead.
        way_out: String,
    },
    /// It uses a secret that is not configured.
    #[error("{what}: no secret `{name}` in [secrets]")]
    Secret {
        /// Which template.
        what: String,
        /// The secret.
        name: String,
    },
    /// The record cannot fill it.
    #[error("{what}: {why}")]
    Render {
        /// Which template.
        what: String,
        /// What is missing.
        why: String,
    },
}

fn hint(near: &Option<&'static str>) -> String {
    near.map_or_else(String::new, |n| format!(" (did you mean `{n}`?)"))
}

/// The templates of one partner.
pub struct Templates {
    env: Environment<'static>,
    partner: Arc<str>,
    secrets: Secrets,
}

impl fmt::Debug for Templates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Templates")
            .field("partner", &self.partner)
            .finish_non_exhaustive()
    }
}

/// A compiled template, to be used with the [`Templates`] that made it.
#[derive(Clone, Debug)]
pub struct Template {
    what: String,
    kind: Kind,
    /// It names a secret.
    has_secrets: bool,
    /// It tells which attempt it is.
    tells_attempt: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    /// No template at all.
    Constant(String),
    /// `{{ value }}`
    Value,
    /// The same for every record: it uses nothing but secrets and the partner's name.
    Fixed,
    /// One text a record.
    Record { value: bool, key: bool },
}

/// A record that has every field, a text each.
#[derive(Debug)]
struct AnyField;

impl Object for AnyField {
    fn get_value(self: &Arc<Self>, _: &Value) -> Option<Value> {
        Some(Value::from("1"))
    }
}

impl Templates {
    /// An empty set for this partner.
    pub fn new(partner: &str, secrets: &Secrets) -> Self {
        let mut env = Environment::new();
        env.set_undefined_behavior(UndefinedBehavior::Strict);
        // Undefined values know the expression they come from: errors name the variable.
        env.set_debug(true);
        env.set_auto_escape_callback(|_| AutoEscape::None);
        filters::install(&mut env);
        env.set_formatter(|out, state, value| {
            let text = json::shown(value)?;
            if state.name() != URL {
                return out.write_str(&text).map_err(Into::into);
            }
            let made = value
                .downcast_object_ref::<filters::InUrl>()
                .map(filters::InUrl::made);
            let made = match made {
                Some(Made::Encoded) => 'e',
                Some(Made::Path) => 'p',
                _ => 'v',
            };
            let [open, between, close] = MARKS;
            write!(
                out,
                "{open}{made}{between}{}{close}",
                text.replace(MARKS, "\u{fffd}")
            )
            .map_err(Into::into)
        });
        let known = secrets.clone();
        env.add_function("secret", move |name: &str| -> Result<String, minijinja::Error> {
            known.get(name).map(|v| v.to_string()).ok_or_else(|| {
                minijinja::Error::new(
                    ErrorKind::InvalidOperation,
                    format!("no secret `{name}` in [secrets]"),
                )
            })
        });
        Self {
            env,
            partner: partner.into(),
            secrets: secrets.clone(),
        }
    }

    /// Compiles one template; `what` names it in errors.
    ///
    /// # Errors
    /// Syntax, an unknown variable, filter, test, function or secret.
    pub fn compile(&mut self, what: &str, source: &str) -> Result<Template, TemplateError> {
        let what = what.to_owned();
        let mut tells_attempt = false;
        let kind = if !["{{", "{%", "{#"].iter().any(|open| source.contains(open)) {
            Kind::Constant(source.to_owned())
        } else if source
            .strip_prefix("{{")
            .and_then(|s| s.strip_suffix("}}"))
            .is_some_and(|s| s.trim() == "value")
        {
            Kind::Value
        } else {
            self.env
                .add_template_owned(what.clone(), operators::rewrite(source).into_owned())
                .map_err(|e| TemplateError::Syntax {
                    what: what.clone(),
                    why: plain(&e),
                })?;
            let template = self.env.get_template(&what).map_err(|e| TemplateError::Syntax {
                what: what.clone(),
                why: plain(&e),
            })?;
            let used = template.undeclared_variables(false);
            tells_attempt = used.contains("attempt");
            let globals: Vec<&str> = self.env.globals().map(|(name, _)| name).collect();
            let mut unknown: Vec<&String> = used
                .iter()
                .filter(|u| !VARIABLES.contains(&u.as_str()) && !globals.contains(&u.as_str()))
                .collect();
            unknown.sort();
            if let Some(name) = unknown.first() {
                let near = VARIABLES
                    .into_iter()
                    .find(|v| strsim::damerau_levenshtein(v, name) <= 2);
                return Err(TemplateError::Variable {
                    what,
                    name: (*name).clone(),
                    near,
                });
            }
            if let Some(unknown) = known::unknown(&self.env, source, &VARIABLES) {
                let place = match unknown.line {
                    1 => String::new(),
                    line => format!(" (line {line})"),
                };
                let way_out = match (unknown.kind, unknown.near) {
                    ("method", Some(near)) => format!(": write `… | {near}`"),
                    ("method", None) => ": what a record holds has no methods".to_owned(),
                    (_, near @ Some(_)) => hint(&near),
                    (kind, None) => format!("; the {kind}s are those of MiniJinja, and `path`"),
                };
                return Err(TemplateError::Unknown {
                    what,
                    kind: unknown.kind,
                    name: unknown.name,
                    place,
                    way_out,
                });
            }
            for name in secrets_named(source) {
                if self.secrets.get(name).is_none() {
                    return Err(TemplateError::Secret {
                        what,
                        name: name.to_owned(),
                    });
                }
            }
            if let Some(error) = self.wrong_arguments(&what) {
                return Err(TemplateError::Syntax {
                    what,
                    why: format!(
                        "a filter or function gets other arguments than it takes: {}",
                        plain(&error)
                    ),
                });
            }
            if used
                .iter()
                .all(|u| u == "partner" || globals.contains(&u.as_str()))
            {
                Kind::Fixed
            } else {
                Kind::Record {
                    value: used.contains("value"),
                    key: used.contains("key"),
                }
            }
        };
        Ok(Template {
            what,
            kind,
            has_secrets: !secrets_named(source).is_empty(),
            tells_attempt,
        })
    }

    /// Fills a template once with fields that are all there, to see whether its filters and functions get as many
    /// arguments as they take: else the first record would tell, and each would be a dead letter. What depends on the data
    /// does not count; branches that are not taken are not seen.
    fn wrong_arguments(&self, what: &str) -> Option<minijinja::Error> {
        let mut trial = self.env.clone();
        trial.set_undefined_behavior(UndefinedBehavior::Chainable);
        // What it prints does not matter, nor whether it can be printed.
        trial.set_formatter(|_, _, _| Ok(()));
        let record: Vec<(&str, Value)> = VARIABLES
            .iter()
            .map(|name| match *name {
                "value" | "headers" => (*name, Value::from_object(AnyField)),
                _ => (*name, Value::from("1")),
            })
            .collect();
        let record: Value = record.into_iter().collect();
        let error = trial.get_template(what).ok()?.render(record).err()?;
        matches!(
            error.kind(),
            ErrorKind::MissingArgument | ErrorKind::TooManyArguments
        )
        .then_some(error)
    }

    /// The text of a template that is the same for every record.
    ///
    /// # Errors
    /// When the template fails.
    pub fn render_fixed(&self, template: &Template) -> Result<String, TemplateError> {
        match &template.kind {
            Kind::Constant(text) => Ok(text.clone()),
            _ => {
                let text = self.run(template, minijinja::context! { partner => &*self.partner })?;
                self.placed(template, text)
            }
        }
    }

    /// The text of a URL template with each value kept in its place; that of any other as it is.
    fn placed(&self, template: &Template, text: String) -> Result<String, TemplateError> {
        if template.what != URL {
            return Ok(text);
        }
        let [open, between, close] = MARKS;
        // A secret is the operator's own text, as a literal is.
        let secrets = if template.has_secrets {
            self.secrets.values()
        } else {
            Vec::new()
        };
        let mut parts = Vec::new();
        let mut rest = text.as_str();
        while let Some((literal, marked)) = rest.split_once(open) {
            parts.push(Part::Literal(literal));
            let (value, behind) = marked.split_once(close).unwrap_or((marked, ""));
            let (made, value) = value.split_once(between).unwrap_or(("v", value));
            let made = match made {
                "e" => Made::Encoded,
                "p" => Made::Path,
                _ if secrets.iter().any(|s| **s == *value) => Made::Secret,
                _ => Made::Plain,
            };
            parts.push(Part::Value(value, made));
            rest = behind;
        }
        parts.push(Part::Literal(rest));
        assemble(&parts).map_err(|fault| TemplateError::Render {
            what: template.what.clone(),
            why: fault.to_string(),
        })
    }

    /// The text for one record.
    ///
    /// # Errors
    /// When the record lacks what the template uses, or is not text where text is needed.
    pub fn render<'a>(&self, template: &'a Template, d: &'a Delivery) -> Result<Cow<'a, str>, TemplateError> {
        let fail = |why: &str| TemplateError::Render {
            what: template.what.clone(),
            why: why.to_owned(),
        };
        match &template.kind {
            Kind::Constant(text) => Ok(Cow::Borrowed(text)),
            Kind::Value => {
                let text =
                    std::str::from_utf8(&d.record.value).map_err(|_| fail("`value` is not UTF-8 text"))?;
                // A JSON string stands for its text.
                match text.trim_ascii_start().starts_with('"') {
                    true => Ok(serde_json::from_str(text).map_or(Cow::Borrowed(text), Cow::Owned)),
                    false => Ok(Cow::Borrowed(text)),
                }
            }
            Kind::Fixed => self.render_fixed(template).map(Cow::Owned),
            Kind::Record { value, key } => {
                if *value && std::str::from_utf8(&d.record.value).is_err() {
                    return Err(fail("`value` is not UTF-8 text"));
                }
                if *key
                    && d.record
                        .key
                        .as_ref()
                        .is_some_and(|k| std::str::from_utf8(k).is_err())
                {
                    return Err(fail("`key` is not UTF-8 text"));
                }
                let context = RecordContext {
                    delivery: d.clone(),
                    partner: Arc::clone(&self.partner),
                    value: OnceLock::new(),
                };
                let text = self.run(template, Value::from_object(context))?;
                self.placed(template, text).map(Cow::Owned)
            }
        }
    }

    fn run(&self, template: &Template, context: Value) -> Result<String, TemplateError> {
        let fail = |e: minijinja::Error| TemplateError::Render {
            what: template.what.clone(),
            why: plain(&e),
        };
        self.env
            .get_template(&template.what)
            .and_then(|t| t.render(context))
            .map_err(fail)
    }
}

impl Template {
    /// Whether every record gives the same text.
    pub fn is_fixed(&self) -> bool {
        matches!(self.kind, Kind::Constant(_) | Kind::Fixed)
    }
    /// Whether it is no template at all.
    pub fn is_constant(&self) -> bool {
        matches!(self.kind, Kind::Constant(_))
    }
    /// Whether it tells which attempt it is.
    pub fn tells_attempt(&self) -> bool {
        self.tells_attempt
    }
    /// Whether the text is the record's value as it stands.
    pub fn is_value(&self) -> bool {
        self.kind == Kind::Value
    }
}

/// An engine error in one line: what, and where if the template has several lines. Never the record's content.
fn plain(e: &minijinja::Error) -> String {
    let mut text = e.detail().map_or_else(|| e.kind().to_string(), str::to_owned);
    if let Some(line) = e.line().filter(|l| *l > 1) {
        text.push_str(&format!(" (line {line})"));
    }
    text
}

/// Names in `secret('name')` calls with a literal name.
fn secrets_named(source: &str) -> Vec<&str> {
    let mut out = Vec::new();
    for (at, word) in source.match_indices("secret") {
        let rest = source[at + word.len()..].trim_start();
        let Some(rest) = rest.strip_prefix('(').map(str::trim_start) else {
            continue;
        };
        for quote in ['\'', '"'] {
            if let Some((name, _)) = rest.strip_prefix(quote).and_then(|r| r.split_once(quote)) {
                out.push(name);
            }
        }
    }
    out
}

/// A record's headers inside a template.
#[derive(Debug)]
struct HeaderMap(Headers);

impl Object for HeaderMap {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let text = std::str::from_utf8(self.0.get(key.as_str()?)?).ok()?;
        Some(Value::from(text))
    }
    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(
            self.0
                .iter()
                .map(|(n, _)| Value::from(String::from_utf8_lossy(n).into_owned()))
                .collect(),
        )
    }
}

/// The variables of one attempt; the value is parsed only if the template asks for it.
#[derive(Debug)]
struct RecordContext {
    delivery: Delivery,
    partner: Arc<str>,
    value: OnceLock<Option<Value>>,
}

impl Object for RecordContext {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let d = &self.delivery;
        Some(match key.as_str()? {
            "value" => {
                return self
                    .value
                    .get_or_init(|| json::record_value(&d.record.value))
                    .clone();
            }
            "key" => Value::from(std::str::from_utf8(d.record.key.as_ref()?).ok()?),
            "headers" => Value::from_object(HeaderMap(d.record.headers.clone())),
            "topic" => Value::from(&*d.topic),
            "partition" => Value::from(d.partition),
            "offset" => Value::from(d.record.offset),
            "time" => Value::from(d.record.timestamp.to_string()),
            "id" => Value::from(String::from_utf8_lossy(&d.readable).into_owned()),
            "message_id" => Value::from(d.id.to_string()),
            "attempt" => Value::from(d.attempt),
            "partner" => Value::from(&*self.partner),
            "source" => Value::from(std::str::from_utf8(d.record.headers.get(SOURCE_HEADER)?).ok()?),
            "idempotency_key" => match &d.idempotency_key {
                Some(key) => Value::from(&**key),
                None => Value::from(super::idempotency_key(d.id, d.round)),
            },
            _ => return None,
        })
    }
}
