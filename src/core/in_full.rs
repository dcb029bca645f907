//! An error in words, with what caused it: the one rule of the house.
//!
//! **An error's own text says what failed and on what. What caused it is its `source`, and never stands in its text.** Whoever
//! shows an error to people writes it [`in_full`]. So every cause is said, and said once. (An error that has no `source`
//! may hold another one's words as a text.)
//!
//! Errors of libraries do not all keep to it; a cause that the text before it ends with is not said again.

use std::error::Error;
use std::iter;

/// An error with its causes, the nearest first.
pub fn in_full(error: &dyn Error) -> String {
    let mut text = error.to_string();
    for cause in causes(error) {
        let cause = cause.to_string();
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// What caused an error, the nearest first.
pub fn causes(error: &dyn Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    let mut next = error.source();
    iter::from_fn(move || {
        let cause = next?;
        next = cause.source();
        Some(cause)
    })
}

/// Fails where an error's own text holds one of its causes'.
#[cfg(test)]
pub fn assert_said_once(error: &dyn Error) {
    let mut own = Some(error);
    while let Some(error) = own {
        let text = error.to_string();
        for cause in causes(error) {
            assert!(
                !text.contains(&cause.to_string()),
                "`{text}` says `{cause}`, its cause"
            );
        }
        own = error.source().map(|cause| cause as &dyn Error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[derive(Debug, thiserror::Error)]
    enum Sample {
        #[error("cannot open `x`")]
        Plain(#[source] std::io::Error),
        #[error("bad filter: {0}")]
        Foreign(#[source] std::io::Error),
        #[error("cannot start")]
        Over(#[source] Box<Sample>),
    }

    #[test]
    fn every_cause_is_said_once() {
        let gone = || std::io::Error::other("gone");
        assert_eq!(in_full(&Sample::Plain(gone())), "cannot open `x`: gone");
        assert_eq!(in_full(&Sample::Foreign(gone())), "bad filter: gone");
        let over = Sample::Over(Box::new(Sample::Foreign(gone())));
        assert_eq!(in_full(&over), "cannot start: bad filter: gone");
        assert_said_once(&Sample::Plain(gone()));
        assert!(std::panic::catch_unwind(|| assert_said_once(&Sample::Foreign(gone()))).is_err());
    }

    /// One `#[error(…)]` of the sources: its text, and the variant or type behind it.
    struct Declared<'a> {
        text: &'a str,
        about: String,
    }

    /// What a bracket that begins at `from` holds, and what follows it.
    fn bracket(text: &str, from: usize) -> Option<(&str, &str)> {
        let (mut depth, mut in_text, mut escaped) = (0, false, false);
        for (i, c) in text[from..].char_indices() {
            match c {
                _ if escaped => escaped = false,
                '\\' if in_text => escaped = true,
                '"' => in_text = !in_text,
                '(' | '{' if !in_text => depth += 1,
                ')' | '}' if !in_text => {
                    depth -= 1;
                    if depth == 0 {
                        return Some((&text[from + 1..from + i], &text[from + i + 1..]));
                    }
                }
                _ => {}
            }
        }
        None
    }

    fn declared(source: &str) -> Vec<Declared<'_>> {
        let mut all = Vec::new();
        for (at, found) in source.match_indices("#[error(") {
            let Some((text, rest)) = bracket(source, at + found.len() - 1) else {
                continue;
            };
            // The fields, up to the end of the variant; documentation in between is no field.
            let lines = rest.trim_start_matches(']').lines();
            let code = lines.filter(|line| !line.trim_start().starts_with("//"));
            let code = code.collect::<Vec<_>>().join("\n");
            let end = code.find([',', '(', '{', '}']).unwrap_or(code.len());
            let about = match code[end..].chars().next() {
                Some('(' | '{') => bracket(&code, end).map_or("", |(fields, _)| fields),
                _ => "",
            };
            all.push(Declared {
                text,
                about: about.to_owned(),
            });
        }
        all
    }

    fn repeats(declared: &Declared<'_>) -> bool {
        let Declared { text, about } = declared;
        let has_source = ["#[source]", "#[from]", "source:"]
            .iter()
            .any(|s| about.contains(s));
        let is_named = text.contains("{source") || text.contains("= source");
        // The one field of a variant without names.
        let is_first = about.trim_start().starts_with("#[") && (text.contains("{0}") || text.contains("{0:"));
        has_source && (is_named || is_first)
    }

    fn files(dir: &Path, take: &mut dyn FnMut(&Path, &str)) {
        for entry in std::fs::read_dir(dir).expect("the sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                files(&path, take);
            } else if path.extension().is_some_and(|e| e == "rs") {
                take(&path, &std::fs::read_to_string(&path).expect("a source"));
            }
        }
    }

    /// Every error of the house keeps to the rule; read from the sources, as no list of samples would stay whole.
    #[test]
    fn no_error_says_its_cause_itself() {
        for (wrong, source) in [
            (
                true,
                "#[error(\"no {host}: {source}\")]\n Dns { host: String, source: io::Error },",
            ),
            (
                true,
                "#[error(\"rule {n}: {source}\")]\n/// A rule.\npub struct E { n: u8, pub source: X }",
            ),
            (true, "#[error(\"tls (of: {0})\")]\n Tls(#[source] io::Error),"),
            (
                false,
                "#[error(\"tls: {0}\")]\n Tls(io::Error),\n #[error(\"x\")]\n X(#[source] io::Error),",
            ),
            (
                false,
                "#[error(\"no {host}\")]\n Dns { host: String, source: io::Error },",
            ),
        ] {
            assert_eq!(declared(source).iter().any(repeats), wrong, "{source}");
        }
        let (mut seen, mut wrong) = (0, Vec::new());
        files(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
            &mut |path, source| {
                if path.ends_with("in_full.rs") {
                    return;
                }
                let all = declared(source);
                seen += all.len();
                let of_file = all.iter().filter(|d| repeats(d));
                wrong.extend(of_file.map(|d| format!("{}: {}", path.display(), d.text)));
            },
        );
        assert!(seen > 100, "{seen}");
        assert_eq!(wrong, Vec::<String>::new());
    }
}
