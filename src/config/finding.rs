//! What a check of the configuration found, told so that it can be mended without asking anybody.

use super::tree::Origin;
use serde::Serialize;
use std::fmt;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The node starts, but probably not as meant.
    Warning,
    /// The node does not start.
    Error,
}

/// One mistake or doubtful setting. Prints as one line, and a second one with the hint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Dotted key, as `partners.acme.timeout.request`. Empty where the whole file is meant.
    pub key: String,
    /// The value found, as written; absent where there is none, or where it may be a secret.
    pub value: Option<String>,
    /// The file, or `environment NAME`; absent for a default.
    pub file: Option<String>,
    /// Line in the file, from 1.
    pub line: Option<usize>,
    /// What is wrong and what is expected: lower case, no final stop.
    pub message: String,
    /// How to mend it.
    pub hint: Option<String>,
}

impl Finding {
    /// A finding at a key, written there; what it says is still to come.
    pub(super) fn at(severity: Severity, key: &str, origin: Option<&Origin>) -> Self {
        Self {
            severity,
            key: key.to_owned(),
            value: None,
            file: origin.and_then(Origin::file),
            line: origin.map(|origin| origin.line).filter(|line| *line > 0),
            message: String::new(),
            hint: None,
        }
    }

    /// Takes a message, and a hint on its second line.
    pub(super) fn says(mut self, text: &str) -> Self {
        let (message, hint) = text.split_once('\n').map_or((text, None), |(m, h)| (m, Some(h)));
        self.message = message.to_owned();
        self.hint = hint.map(str::to_owned);
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.severity {
            Severity::Warning => "warning: ",
            Severity::Error => "error: ",
        })?;
        if let Some(file) = &self.file {
            f.write_str(file)?;
            if let Some(line) = self.line {
                write!(f, ":{line}")?;
            }
            f.write_str(": ")?;
        }
        match (&self.key[..], &self.value) {
            ("", _) => {}
            (key, Some(value)) => write!(f, "{key} = {value}: ")?,
            (key, None) => write!(f, "{key}: ")?,
        }
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n  {hint}"),
            None => Ok(()),
        }
    }
}

/// The name among `known` that `wanted` was probably meant to be, if any is near enough.
pub fn nearest<'a>(wanted: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let folded = fold(wanted);
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&folded, &fold(name)), name))
        .filter(|(distance, name)| *distance <= 1 + name.chars().count().min(folded.chars().count()) / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

fn fold(name: &str) -> String {
    name.to_lowercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_or_two_lines() {
        let finding = Finding {
            severity: Severity::Error,
            key: "node.memory".into(),
            value: Some("\"512\"".into()),
            file: Some("actors.toml".into()),
            line: Some(3),
            message: "expected a size".into(),
            hint: Some("write 512MiB".into()),
        };
        assert_eq!(
            finding.to_string(),
            "error: actors.toml:3: node.memory = \"512\": expected a size\n  write 512MiB"
        );
    }

    #[test]
    fn the_nearest_name_is_near() {
        assert_eq!(
            nearest("concurency", ["concurrency", "limits"]),
            Some("concurrency")
        );
        assert_eq!(nearest("busy-keys", ["busy_keys"]), Some("busy_keys"));
        assert_eq!(nearest("shoe", ["concurrency", "limits"]), None);
    }
}
