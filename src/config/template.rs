//! What can be said of a template before there is a record: whether it compiles, which names and secrets it uses.

use super::finding::nearest;
use crate::sink::template::VARIABLES;
use minijinja::Environment;
use regex::Regex;
use std::collections::BTreeSet;
use std::sync::LazyLock;

/// Functions: `secret('name')`, and those of the template language.
const BUILT_IN: [&str; 5] = ["secret", "range", "dict", "namespace", "debug"];

/// Checks a template; the error is what is wrong with it.
pub(super) fn check(text: &str) -> Result<(), String> {
    let env = Environment::new();
    let template = env.template_from_str(text).map_err(|e| {
        // Kind and detail only: the full form quotes the text.
        format!(
            "not a template: {}",
            e.detail().map_or_else(|| e.kind().to_string(), str::to_owned)
        )
    })?;
    let mut unknown: Vec<String> = template.undeclared_variables(false).into_iter().collect();
    unknown.retain(|name| !VARIABLES.contains(&name.as_str()) && !BUILT_IN.contains(&name.as_str()));
    unknown.sort_unstable();
    match unknown.first() {
        None => Ok(()),
        Some(name) => Err(match nearest(name, VARIABLES) {
            Some(near) => format!("unknown name `{name}` in the template; did you mean `{near}`?"),
            None => format!(
                "unknown name `{name}` in the template, known are {}",
                VARIABLES.join(", ")
            ),
        }),
    }
}

/// Whether a template uses a variable.
pub(super) fn uses(text: &str, variable: &str) -> bool {
    let env = Environment::new();
    env.template_from_str(text)
        .is_ok_and(|template| template.undeclared_variables(false).contains(variable))
}

/// Whether a URL has a template right after its host: its values could make another host of it.
pub(super) fn begins_after_host(url: &str) -> bool {
    let Some((_, rest)) = url.split_once("://") else {
        return false;
    };
    let Some((host, behind)) = rest.split_once("{{") else {
        return false;
    };
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let Some((_, after)) = behind.split_once("}}") else {
        return false;
    };
    let user_info = after
        .split(['/', '?', '#'])
        .next()
        .is_some_and(|a| a.contains('@'));
    let is_port = host.ends_with(':') && !host.ends_with("]:") && after.starts_with(['/', '?', '#']);
    if host.is_empty() || host.contains(['/', '?', '#', '{']) || is_port || user_info {
        return false;
    }
    after.is_empty() || after.starts_with(['/', '?', '#', '{'])
}

/// JSON pointers of the fields of the value that a template names (`value.user.id`). Those that it reaches in loops
/// or by computed names are seen only when a record fills it.
pub(super) fn fields(text: &str) -> BTreeSet<String> {
    let env = Environment::new();
    let Ok(template) = env.template_from_str(text) else {
        return BTreeSet::new();
    };
    let nested = template.undeclared_variables(true);
    nested
        .iter()
        .filter_map(|name| name.strip_prefix("value."))
        .map(|path| format!("/{}", path.replace('.', "/")))
        .collect()
}

/// The names of the secrets that a template uses.
pub(super) fn secrets(text: &str) -> BTreeSet<String> {
    static CALL: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r#"secret\s*\(\s*(?:'([^']*)'|"([^"]*)")"#).expect("the pattern is a constant and tested")
    });
    CALL.captures_iter(text)
        .filter_map(|c| c.get(1).or(c.get(2)))
        .map(|m| m.as_str().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_compiles_and_knows_its_names() {
        assert_eq!(
            check("Bearer {{ secret('acme') }} {{ value.a[0] }} {% for x in range(3) %}{{ x }}{% endfor %}"),
            Ok(())
        );
        assert!(check("{{ value").unwrap_err().starts_with("not a template"));
        assert!(
            check("{{ valeu.x }}")
                .unwrap_err()
                .ends_with("did you mean `value`?")
        );
        assert!(check("{{ shoe }}").unwrap_err().contains("known are"));
    }

    #[test]
    fn a_template_after_the_host_is_found() {
        for (url, found) in [
            ("http://127.0.0.1:28571{{ value.u }}", true),
            ("http://h{{ value.a }}/x", true),
            ("http://u:p@h{{ value.a }}?x", true),
            ("http://h/{{ value.u }}", false),
            ("http://{{ value.h }}/x", false),
            ("http://api{{ value.n }}.example/", false),
            ("http://h:{{ value.port }}/", false),
            ("http://user:{{ secret('k') }}@h/", false),
            ("{{ value }}", false),
        ] {
            assert_eq!(begins_after_host(url), found, "{url}");
        }
        assert!(uses("{{ attempt }}", "attempt") && !uses("attempt {{ id }}", "attempt"));
    }

    #[test]
    fn fields_are_named() {
        let text = "{{ value.user.id | urlencode }}{% if value.a is defined %}{{ value.b[0].c }}{% endif %}{{ value }}{{ key }}";
        let fields = fields(text);
        assert!(
            ["/user/id", "/a"].iter().all(|f| fields.contains(*f)),
            "{fields:?}"
        );
        assert!(fields.iter().all(|f| f.starts_with('/') && f.len() > 1));
    }

    #[test]
    fn secrets_are_named() {
        let names = secrets("{{ secret('a') }}{{ secret( \"b-c\" ) }}{{ secret('a') }}");
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["a", "b-c"]);
    }
}
