//! Names that a template uses and nobody has: filters, tests, methods. The engine finds them only when it renders, that
//! is, once every record becomes a dead letter; they are looked for when the template is compiled.
//!
//! Whether a name exists the environment itself says, so that the engine's own and ours are known alike. The lists
//! below only serve to name the one that was meant.

use super::operators::{Kind, Token, for_each_block};
use minijinja::{Environment, ErrorKind};

/// Filters that are proposed for an unknown one.
const FILTERS: [&str; 48] = [
    "abs",
    "attr",
    "batch",
    "bool",
    "capitalize",
    "chain",
    "count",
    "default",
    "dictsort",
    "escape",
    "first",
    "float",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "lines",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "path",
    "pprint",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "split",
    "string",
    "sum",
    "title",
    "tojson",
    "trim",
    "unique",
    "upper",
    "urlencode",
    "zip",
];
/// Tests that are proposed for an unknown one.
const TESTS: [&str; 27] = [
    "boolean",
    "defined",
    "divisibleby",
    "endingwith",
    "eq",
    "even",
    "false",
    "filter",
    "float",
    "ge",
    "gt",
    "in",
    "integer",
    "iterable",
    "le",
    "lower",
    "lt",
    "mapping",
    "ne",
    "none",
    "number",
    "odd",
    "sequence",
    "startingwith",
    "string",
    "true",
    "undefined",
];

/// A name that nobody has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unknown {
    /// `filter`, `test` or `method`.
    pub(super) kind: &'static str,
    pub(super) name: String,
    /// One that exists and looks like it.
    pub(super) near: Option<&'static str>,
    /// The line of the template, from 1.
    pub(super) line: usize,
}

/// The first name in a template that nobody has. `variables` hold data, which has no methods.
pub(super) fn unknown(env: &Environment<'_>, source: &str, variables: &[&str]) -> Option<Unknown> {
    let mut found = None;
    for_each_block(source, |tokens| {
        if found.is_none() {
            found = in_block(env, source, tokens, variables);
        }
    });
    found
}

fn in_block(env: &Environment<'_>, source: &str, tokens: &[Token], variables: &[&str]) -> Option<Unknown> {
    let text = |i: usize| tokens.get(i).map_or("", |t| &source[t.start..t.end]);
    let kind = |i: usize| tokens.get(i).map(|t| t.kind);
    let line = |i: usize| {
        1 + tokens
            .get(i)
            .map_or(0, |t| source[..t.start].matches('\n').count())
    };
    let filter = |i: usize, name: &str| {
        (!has_filter(env, name)).then(|| Unknown {
            kind: "filter",
            name: name.to_owned(),
            near: near(name, &FILTERS, |name| has_filter(env, name)),
            line: line(i),
        })
    };
    let test = |i: usize, name: &str| {
        (!has_test(env, name)).then(|| Unknown {
            kind: "test",
            name: name.to_owned(),
            near: near(name, &TESTS, |name| has_test(env, name)),
            line: line(i),
        })
    };
    for i in 0..tokens.len() {
        let attribute = i > 0 && text(i - 1) == ".";
        let is_filter = (text(i) == "|" && kind(i) == Some(Kind::Other)) || (i == 0 && text(0) == "filter");
        let unknown = if is_filter && kind(i + 1) == Some(Kind::Name) {
            let mut name = text(i + 1).to_owned();
            let mut end = i + 2;
            while text(end) == "." && kind(end + 1) == Some(Kind::Name) {
                name = format!("{name}.{}", text(end + 1));
                end += 2;
            }
            // Some take the name of another one as an argument.
            let argument = |n: usize| {
                let at = end + 1 + 2 * n;
                let alone = text(end) == "("
                    && kind(at) == Some(Kind::Text)
                    && matches!(text(at + 1), "," | ")")
                    && (0..n).all(|n| text(end + 2 + 2 * n) == ",");
                let literal = text(at).get(1..text(at).len().max(2) - 1)?;
                (alone && !literal.contains('\\')).then_some((at, literal))
            };
            filter(i + 1, &name).or_else(|| match name.as_str() {
                "map" => argument(0).and_then(|(at, name)| filter(at, name)),
                "select" | "reject" => argument(0).and_then(|(at, name)| test(at, name)),
                "selectattr" | "rejectattr" => argument(1).and_then(|(at, name)| test(at, name)),
                _ => None,
            })
        } else if text(i) == "is" && kind(i) == Some(Kind::Name) && !attribute {
            let at = if text(i + 1) == "not" { i + 2 } else { i + 1 };
            match kind(at) {
                Some(Kind::Name) => test(at, text(at)),
                _ => None,
            }
        } else if attribute && kind(i) == Some(Kind::Name) && text(i + 1) == "(" && i > 1 {
            // `value.a.b(`: back to where it begins.
            let mut base = i - 2;
            while base > 1 && kind(base) == Some(Kind::Name) && text(base - 1) == "." {
                base -= 2;
            }
            let is_data = match kind(base) {
                Some(Kind::Name) => variables.contains(&text(base)),
                Some(Kind::Text) => true,
                _ => false,
            };
            is_data.then(|| Unknown {
                kind: "method",
                name: text(i).to_owned(),
                near: near(text(i), &FILTERS, |name| has_filter(env, name)),
                line: line(i),
            })
        } else {
            None
        };
        if unknown.is_some() {
            return unknown;
        }
    }
    None
}

fn has_filter(env: &Environment<'_>, name: &str) -> bool {
    let tried = env.empty_state().apply_filter(name, &[]);
    !tried.is_err_and(|e| e.kind() == ErrorKind::UnknownFilter)
}

fn has_test(env: &Environment<'_>, name: &str) -> bool {
    let tried = env.empty_state().perform_test(name, &[]);
    !tried.is_err_and(|e| e.kind() == ErrorKind::UnknownTest)
}

/// The name that was meant: one within two slips, or one that the name is a part of.
fn near(name: &str, known: &[&'static str], exists: impl Fn(&str) -> bool) -> Option<&'static str> {
    let squeezed: String = name
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric())
        .collect();
    let distance = |known: &str| strsim::damerau_levenshtein(known, &squeezed);
    let best = known
        .iter()
        .filter(|known| exists(known))
        .min_by_key(|known| (distance(known), known.len()))?;
    let part = |known: &&&str| {
        let long = |text: &str| text.len() > 2;
        long(&squeezed) && long(known) && (known.contains(&*squeezed) || squeezed.contains(**known))
    };
    match distance(best) {
        0 | 1 => Some(*best),
        far => {
            let longer = known.iter().filter(part).find(|known| exists(known));
            longer
                .or((far == 2 && squeezed.len() > 3).then_some(best))
                .copied()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::secrets::Secrets;
    use crate::sink::template::{TemplateError, Templates};

    fn compiled(source: &str) -> Result<(), TemplateError> {
        Templates::new("acme", &Secrets::none())
            .compile("body", source)
            .map(drop)
    }

    #[test]
    fn unknown_filters_tests_and_functions_are_found_when_the_template_is_compiled() {
        for (source, says) in [
            (
                "{{ value.a | json }}",
                "body: unknown filter `json` (did you mean `tojson`?)",
            ),
            (
                "{{ value.a|to_json }}",
                "unknown filter `to_json` (did you mean `tojson`?)",
            ),
            (
                "{{ value.a | lower | uper }}",
                "unknown filter `uper` (did you mean `upper`?)",
            ),
            ("{{ value.a | url_encode }}", "(did you mean `urlencode`?)"),
            (
                "{{ value.a * (value.b | rund(2)) }}",
                "unknown filter `rund` (did you mean `round`?)",
            ),
            ("{{ value.a | xyzzy }}", "unknown filter `xyzzy`; "),
            (
                "{% filter uper %}a{{ value }}{% endfilter %}",
                "unknown filter `uper`",
            ),
            ("{% set x = value.a | jsn %}{{ x }}", "unknown filter `jsn`"),
            (
                "x\n{{ value.l\n | map('uppr') | join }}",
                "unknown filter `uppr` (line 3) (did you mean `upper`?)",
            ),
            (
                "{{ value.l | select('od') | list }}",
                "unknown test `od` (did you mean `odd`?)",
            ),
            (
                "{{ value.l | selectattr('a', 'equal', 1) | list }}",
                "unknown test `equal`",
            ),
            (
                "{% if value.a is defind %}{{ value.a }}{% endif %}",
                "unknown test `defind` (did you mean `defined`?)",
            ),
            (
                "{% if value.a is not nonne %}{{ value.a }}{% endif %}",
                "unknown test `nonne` (did you mean `none`?)",
            ),
            (
                "{{ value.name.upper() }}",
                "unknown method `upper`: write `… | upper`",
            ),
            ("{{ nw(value) }}", "unknown variable `nw`"),
        ] {
            let error = compiled(source).expect_err(source).to_string();
            assert!(error.contains(says), "{source}: {error}");
        }
    }

    #[test]
    fn what_exists_is_let_pass() {
        for good in [
            "{{ value.a | tojson }}{{ value.b | urlencode | upper }}",
            "{{ value.filter | default('x') }}{{ value.is }}{{ value['is nothing | none'] }}",
            "{{ 'a | b is c' ~ value.x }}{# a | json #}{% raw %}{{ a | json }}{% endraw %}{{ value.a }}",
            "{% if value.a is defined and value.b is not none and value.c is divisibleby(3) %}{{ value.a }}{% endif %}",
            "{% if value.a is in [1, 2] or value.a is not in [3] or value.b is eq 3 %}{{ value.a }}{% endif %}",
            "{{ value.l | map('upper') | map(attribute='x') | select('odd') | selectattr('a', 'eq', 1) | list }}",
            "{{ value.l | selectattr('json') | list }}{{ value.l | select | list }}",
            "{% for x in value.l %}{{ loop.cycle('a', 'b') }}{{ x | path }}{% endfor %}",
            "{% macro m(x) %}{{ x | trim }}{% endmacro %}{{ m(value.a) }}",
            "{{ secret('x') | lower }}",
        ] {
            match compiled(good) {
                Ok(()) | Err(TemplateError::Secret { .. }) => {}
                Err(e) => panic!("{good}: {e}"),
            }
        }
    }

    #[test]
    fn what_is_proposed_exists() {
        let templates = Templates::new("acme", &Secrets::none());
        let missing: Vec<_> = FILTERS
            .iter()
            .filter(|f| !has_filter(&templates.env, f))
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
        let missing: Vec<_> = TESTS.iter().filter(|t| !has_test(&templates.env, t)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
