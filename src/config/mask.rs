//! Keeps credentials out of findings and of the effective configuration (I9). A template that names a secret is
//! shown, because it holds only the name; a literal in a place where credentials or personal data stand is not.
//! Names and forms are those of [`crate::core::mask`], which does not know templates.

use crate::core::mask::{MASK, Masker, is_telling, shows_literal};

/// Whether a text has parts that the record or a secret fills in.
pub(super) fn is_template(text: &str) -> bool {
    text.contains("{{") || text.contains("{%")
}

/// A header's value as it may be shown.
pub(super) fn header(name: &str, value: &str) -> String {
    if !is_template(value) && !shows_literal(name, value) {
        MASK.into()
    } else {
        url(value)
    }
}

/// A URL (or a template of one) with password and credential parameters masked. Other text comes back as it is.
pub(super) fn url(text: &str) -> String {
    let (address, query) = text.split_once('?').map_or((text, None), |(a, q)| (a, Some(q)));
    let mut shown = match address.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            match host.rsplit_once('@') {
                Some((user, host)) if !is_template(user) => format!("{scheme}://{MASK}@{host}{path}"),
                _ => address.to_owned(),
            }
        }
        None => address.to_owned(),
    };
    if let Some(query) = query {
        let pairs: Vec<_> = query
            .split('&')
            .map(|pair| match pair.split_once('=') {
                Some((name, value)) if is_telling(name) && !is_template(value) => format!("{name}={MASK}"),
                _ => pair.to_owned(),
            })
            .collect();
        shown = format!("{shown}?{}", pairs.join("&"));
    }
    shown
}

/// A body template with the literal values of JSON fields masked whose names carry credentials.
pub(super) fn body(text: &str) -> String {
    if !is_template(text) {
        return Masker::default().text(text);
    }
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    // Quoted name, colon, quoted literal: what lies between is copied as it is.
    while let Some(at) = rest.find('"') {
        let (before, from) = rest.split_at(at);
        shown.push_str(before);
        let Some(end) = from[1..].find('"') else { break };
        let name = &from[1..=end];
        let after = &from[end + 2..];
        let value = after
            .trim_start()
            .strip_prefix(':')
            .map(str::trim_start)
            .and_then(|v| v.strip_prefix('"'));
        match value.and_then(|v| v.find('"').map(|end| (&v[..end], &v[end + 1..]))) {
            Some((literal, next)) if is_telling(name) && !is_template(literal) => {
                shown.push_str(&format!("\"{name}\": \"{MASK}\""));
                rest = next;
            }
            _ => {
                shown.push_str(&from[..end + 2]);
                rest = after;
            }
        }
    }
    shown.push_str(rest);
    shown
}

/// A value found at a key, for a finding: nothing of what may be a credential, and cut to a line.
pub(super) fn found(key: &str, written: &str) -> String {
    let sensitive = key.starts_with("secrets.") || key == "listen.token" || key.contains(".headers");
    let shown = if sensitive {
        MASK.to_owned()
    } else {
        body(&url(written))
    };
    let shown = shown.replace(['\n', '\r'], " ");
    match shown.char_indices().nth(80) {
        Some((at, _)) => format!("{}…", &shown[..at]),
        None => shown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_are_masked_and_templates_shown() {
        assert_eq!(header("Authorization", "Bearer abc"), "***");
        assert_eq!(
            header("authorization", "Bearer {{ secret('a') }}"),
            "Bearer {{ secret('a') }}"
        );
        assert_eq!(header("x-version", "3"), "3");
        assert_eq!(header("x-lit", "planted-literal-17"), "***");
        assert_eq!(header("accept", "application/json"), "application/json");
        assert_eq!(
            url("https://u:pw@h/p?a=1&token=xyz"),
            "https://***@h/p?a=1&token=***"
        );
        assert_eq!(
            url("https://h/{{ key }}?token={{ secret('t') }}"),
            "https://h/{{ key }}?token={{ secret('t') }}"
        );
        assert_eq!(
            body(r#"{"id": "x", "api_key": "abc"}"#),
            r#"{"id": "x", "api_key": "***"}"#
        );
        let template = r#"{"id": "{{ id }}", "api_key" : "abc", "token": "{{ secret('t') }}", "n": 1}"#;
        let shown = r#"{"id": "{{ id }}", "api_key": "***", "token": "{{ secret('t') }}", "n": 1}"#;
        assert_eq!(body(template), shown);
        assert_eq!(body("{{ value }}"), "{{ value }}");
        assert_eq!(found("secrets.acme", "\"abc\""), "***");
        assert_eq!(found("a", &"x".repeat(99)).chars().count(), 81);
    }
}
