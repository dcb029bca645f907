//! Filters and tests that differ from the engine's: they see and give what JSON has (`true`, `null`, `19.90`).

use super::json::{engine, engine_list, pretty, shown, write};
use super::operators;
use crate::core::url_text::{Made, path_encoded, percent_encoded};
use minijinja::value::{Kwargs, Object, ObjectRepr, Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, State, Value, filters};
use std::fmt;
use std::sync::Arc;

/// A text that is made for a place in a URL.
#[derive(Debug)]
pub(super) struct InUrl {
    text: String,
    made: Made,
}

impl InUrl {
    pub(super) fn made(&self) -> Made {
        self.made
    }
}

impl Object for InUrl {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }
    fn is_true(self: &Arc<Self>) -> bool {
        !self.text.is_empty()
    }
    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Puts them into an environment.
pub(super) fn install(env: &mut Environment<'static>) {
    env.add_filter(operators::NUMBER, |value: &Value| engine_list(value));
    env.add_filter(operators::TEXT, |value: &Value| -> Result<Value, Error> {
        if value.is_undefined() || value.kind() == ValueKind::Number || value.as_str().is_some() {
            return Ok(value.clone());
        }
        Ok(Value::from(&*shown(value)?))
    });
    // Filters of the engine by what their first argument is: a text, a number, a list to compare or add.
    for (name, original) in [
        ("lower", Value::from_function(filters::lower)),
        ("upper", Value::from_function(filters::upper)),
        ("title", Value::from_function(filters::title)),
        ("capitalize", Value::from_function(filters::capitalize)),
        ("replace", Value::from_function(filters::replace)),
        ("trim", Value::from_function(filters::trim)),
        ("split", Value::from_function(filters::split)),
        ("lines", Value::from_function(filters::lines)),
        ("indent", Value::from_function(filters::indent)),
    ] {
        wrap(env, name, original, |value| Ok(Value::from(&*shown(value)?)));
    }
    for (name, original) in [
        ("abs", Value::from_function(filters::abs)),
        ("int", Value::from_function(filters::int)),
        ("float", Value::from_function(filters::float)),
        ("round", Value::from_function(filters::round)),
    ] {
        wrap(env, name, original, |value| Ok(engine(value)));
    }
    for (name, original) in [
        ("sum", Value::from_function(filters::sum)),
        ("min", Value::from_function(filters::min)),
        ("max", Value::from_function(filters::max)),
        ("sort", Value::from_function(filters::sort)),
        ("unique", Value::from_function(filters::unique)),
    ] {
        wrap(env, name, original, |value| Ok(engine_list(value)));
    }
    let engine_format = Value::from_function(filters::format);
    env.add_filter(
        "format",
        move |state: &mut State<'_, '_>, text: &Value, args: Rest<ValueOrKwargs>| {
            format(state, &engine_format, text, args.into_values())
        },
    );
    env.add_filter(
        "string",
        |state: &State<'_, '_>, value: &Value| -> Result<Value, Error> {
            defined(state, value)?;
            Ok(Value::from(&*shown(value)?))
        },
    );
    env.add_filter("join", join);
    env.add_filter("tojson", to_json);
    env.add_filter("urlencode", url_encode);
    env.add_filter(
        "path",
        |state: &State<'_, '_>, value: &Value| -> Result<Value, Error> {
            defined(state, value)?;
            in_url(state, path_encoded(&shown(value)?), Made::Path)
        },
    );
    for (names, holds) in [
        (
            &["eq", "equalto", "=="][..],
            (|a, b| a == b) as fn(&Value, &Value) -> bool,
        ),
        (&["ne", "!="], |a, b| a != b),
        (&["lt", "lessthan", "<"], |a, b| a < b),
        (&["le", "<="], |a, b| a <= b),
        (&["gt", "greaterthan", ">"], |a, b| a > b),
        (&["ge", ">="], |a, b| a >= b),
    ] {
        for name in names {
            env.add_test(*name, move |a: &Value, b: &Value| holds(&engine(a), &engine(b)));
        }
    }
}

/// Lets a filter of the engine see its first argument prepared.
fn wrap(
    env: &mut Environment<'static>,
    name: &'static str,
    original: Value,
    prepare: fn(&Value) -> Result<Value, Error>,
) {
    env.add_filter(
        name,
        move |state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>| -> Result<Value, Error> {
            let mut args = args.into_values();
            if let Some(first) = args.first_mut() {
                // What is undefined is the original's to complain of.
                if !first.is_undefined() {
                    *first = prepare(first)?;
                }
            }
            original.call(state, &args)
        },
    );
}

/// The engine's own error for what is undefined; it names the variable.
fn defined(state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    match value.is_undefined() {
        true => filters::string(state, value).map(drop),
        false => Ok(()),
    }
}

/// `join(sep, attribute)`: the elements as they would be printed.
fn join(
    state: &State<'_, '_>,
    value: &Value,
    separator: Option<&str>,
    attribute: Option<&str>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    defined(state, value)?;
    let attribute = match attribute {
        Some(given) => Some(given.to_owned()),
        None => kwargs.get::<Option<String>>("attribute")?,
    };
    kwargs.assert_all_used()?;
    let mut out = String::new();
    let each: Vec<Value> = match value.as_str() {
        Some(text) => text.chars().map(|c| Value::from(c.to_string())).collect(),
        None => value.try_iter()?.checked().collect::<Result<_, _>>()?,
    };
    for (i, element) in each.into_iter().enumerate() {
        if i > 0 {
            out.push_str(separator.unwrap_or_default());
        }
        let element = match &attribute {
            Some(name) => element.get_attr(name)?,
            None => element,
        };
        defined(state, &element)?;
        out.push_str(&shown(&element)?);
    }
    Ok(Value::from(out))
}

/// `'%s of %d' | format(a, b)`: for `%s` and `%r` what would be printed, for the others the engine's own numbers.
fn format(
    state: &mut State<'_, '_>,
    original: &Value,
    text: &Value,
    args: Vec<Value>,
) -> Result<Value, Error> {
    let conversions = conversions(text.as_str().unwrap_or_default());
    let mut all = vec![text.clone()];
    for (i, arg) in args.into_iter().enumerate() {
        let as_text = matches!(conversions.get(i), Some('s' | 'r'));
        all.push(match arg {
            arg if arg.is_undefined() || arg.is_kwargs() => arg,
            arg if as_text => Value::from(&*shown(&arg)?),
            arg => engine(&arg),
        });
    }
    original.call(state, &all)
}

fn conversions(text: &str) -> Vec<char> {
    let mut out = Vec::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            continue;
        }
        match chars.by_ref().find(|c| c.is_ascii_alphabetic() || *c == '%') {
            Some('%') | None => {}
            Some(conversion) => out.push(conversion),
        }
    }
    out
}

fn to_json(
    state: &State<'_, '_>,
    value: &Value,
    indent: Option<Value>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    defined(state, value)?;
    let indent = match indent {
        Some(indent) => Some(indent),
        None => kwargs.get::<Option<Value>>("indent")?,
    };
    kwargs.assert_all_used()?;
    let mut text = String::new();
    write(value, &mut text)?;
    let indent = match indent {
        None => None,
        Some(indent) if indent.kind() == ValueKind::Bool => indent.is_true().then_some(2),
        Some(indent) => Some(usize::try_from(engine(&indent))?.min(32)),
    };
    if let Some(indent) = indent {
        text = pretty(&text, indent);
    }
    // As the engine's own: safe inside HTML too, and the same JSON. None of them is outside a text.
    if text.contains(['<', '>', '&', '\'']) {
        text = text
            .replace('<', "\\u003c")
            .replace('>', "\\u003e")
            .replace('&', "\\u0026")
            .replace('\'', "\\u0027");
    }
    Ok(Value::from_safe_string(text))
}

/// Percent-encodes everything but letters, digits and `-._~`; of an object its fields, as a query.
fn url_encode(state: &State<'_, '_>, value: &Value) -> Result<Value, Error> {
    defined(state, value)?;
    let text = if value.kind() == ValueKind::Map {
        let mut query = String::new();
        for name in value.try_iter()?.checked() {
            let name = name?;
            if !query.is_empty() {
                query.push('&');
            }
            query.push_str(&percent_encoded(&shown(&name)?));
            query.push('=');
            query.push_str(&percent_encoded(&shown(&value.get_item(&name)?)?));
        }
        query
    } else {
        percent_encoded(&shown(value)?)
    };
    in_url(state, text, Made::Encoded)
}

/// In a URL it matters how a text was made; elsewhere it is just a text.
fn in_url(state: &State<'_, '_>, text: String, made: Made) -> Result<Value, Error> {
    Ok(match state.name() == super::URL {
        true => Value::from_object(InUrl { text, made }),
        false => Value::from(text),
    })
}
