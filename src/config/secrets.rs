//! Secrets: where they come from, and a type that does not show them (I9).

use super::kinds::{As, File, Filled, Maybe};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// Where a secret comes from; a literal is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "SecretForm", into = "SecretForm")]
pub enum SecretSource {
    /// An environment variable. Without a name, neither is given: the check refuses it.
    Env(String),
    /// A file; a trailing line end is cut off.
    File(PathBuf),
}

/// [`SecretSource`] as it is written.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[serde(
    expecting = "{ env = \"NAME\" } or { file = \"PATH\" }; a secret itself does not belong into a file of settings"
)]
struct SecretForm {
    /// The secret is the value of this environment variable. Used in templates as `{{ secret('NAME') }}`.
    #[serde(with = "As::<Maybe<Filled>>", skip_serializing_if = "Option::is_none")]
    #[schemars(extend("examples" = ["ACME_TOKEN"]))]
    env: Option<String>,
    /// The secret is this file's content; a line end at its end is cut off. Give either `env` or `file`; a literal is
    /// refused.
    #[serde(with = "As::<Maybe<File>>", skip_serializing_if = "Option::is_none")]
    #[schemars(extend("examples" = ["/run/secrets/acme"]))]
    file: Option<PathBuf>,
}

impl From<SecretForm> for SecretSource {
    fn from(form: SecretForm) -> Self {
        match form.file {
            Some(file) if form.env.is_none() => Self::File(file),
            _ => Self::Env(form.env.unwrap_or_default()),
        }
    }
}

impl From<SecretSource> for SecretForm {
    fn from(source: SecretSource) -> Self {
        let (env, file) = match source {
            SecretSource::Env(name) => (Some(name), None),
            SecretSource::File(path) => (None, Some(path)),
        };
        Self { env, file }
    }
}

/// A secret's text. Neither `Debug` nor `Display` shows it; [`Secret::expose`] is the only way to it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The text itself: for the bytes of a request, never for a log, an error or a page.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The same, to be kept.
    pub fn text(&self) -> Arc<str> {
        self.0.clone()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Why a secret is not at hand.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The environment variable is not set.
    #[error("environment variable {0} is not set")]
    NotSet(String),
    /// It is set, but to nothing.
    #[error("{0} is empty")]
    Empty(String),
    /// It is there, but no text.
    #[error("{0} is not UTF-8 text")]
    NotText(String),
    /// It is text that no header and no URL can carry: the sign of a file that was written wrongly.
    #[error("{from} holds {what}")]
    Unusable {
        /// The file or variable.
        from: String,
        /// What is wrong with it, without a word of it.
        what: &'static str,
    },
    /// The file cannot be read.
    #[error("cannot read {file}")]
    Unreadable {
        /// The file as configured.
        file: String,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
}

impl SecretError {
    /// Whether a secret is there that no request can carry. Else it is not there, as where a configuration is checked
    /// on another machine.
    pub fn is_unusable(&self) -> bool {
        matches!(self, SecretError::NotText(_) | SecretError::Unusable { .. })
    }
}

/// Reads one secret now: variables from `env`, files from disk (so a file changed meanwhile gives its new content). A
/// line end at its end is not part of it.
///
/// A value with a line break, another control character or a byte order mark is refused: every request with it would
/// fail, or carry a wrong credential. A key in PEM form keeps its lines.
///
/// # Errors
/// [`SecretError`]; none of them shows anything of the secret.
pub fn read(source: &SecretSource, env: impl Fn(&str) -> Option<OsString>) -> Result<Secret, SecretError> {
    let (bytes, from) = match source {
        SecretSource::Env(name) => {
            let text = env(name).ok_or_else(|| SecretError::NotSet(name.clone()))?;
            (text.into_encoded_bytes(), format!("environment variable {name}"))
        }
        SecretSource::File(path) => {
            let file = path.display().to_string();
            let bytes = std::fs::read(path).map_err(|cause| SecretError::Unreadable {
                file: file.clone(),
                cause,
            })?;
            (bytes, file)
        }
    };
    let Ok(text) = String::from_utf8(bytes) else {
        return Err(SecretError::NotText(from));
    };
    let text = text
        .strip_suffix('\n')
        .map_or(text.as_str(), |t| t.strip_suffix('\r').unwrap_or(t));
    if text.is_empty() {
        return Err(SecretError::Empty(from));
    }
    match unusable(text) {
        Some(what) => Err(SecretError::Unusable { from, what }),
        None => Ok(Secret::new(text)),
    }
}

/// What a secret holds that keeps it from being used.
fn unusable(text: &str) -> Option<&'static str> {
    let is_pem = text.starts_with("-----BEGIN ");
    for c in text.chars() {
        return Some(match c {
            '\n' | '\r' if is_pem => continue,
            '\t' => continue,
            '\n' | '\r' => "a line break within the secret, or more than one at its end",
            '\0' => "a NUL character",
            '\u{feff}' => "a byte order mark",
            c if c.is_control() => "a control character",
            _ => continue,
        });
    }
    None
}

/// One variable of the process environment, for [`read`].
pub fn process_variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// The process environment; variables that are not UTF-8 are left out.
pub fn process_env() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A rotation that went wrong: what cannot be sent is no new value.
    #[test]
    fn what_no_header_can_carry_is_refused() {
        let read_text = |text: &str| {
            let env = |_: &str| Some(OsString::from(text));
            read(&SecretSource::Env("K".into()), env)
        };
        for (text, what) in [
            ("good\n\n", "a line break"),
            ("good\r\n\n", "a line break"),
            ("go\nod", "a line break"),
            ("\ngood", "a line break"),
            ("go\0od", "a NUL character"),
            ("\u{feff}good\n", "a byte order mark"),
            ("go\u{7f}od", "a control character"),
            ("go\u{1b}[0m", "a control character"),
        ] {
            let told = read_text(text).unwrap_err();
            assert!(matches!(told, SecretError::Unusable { .. }));
            let told = told.to_string();
            assert!(
                told.starts_with("environment variable K holds ") && told.contains(what),
                "{told}"
            );
            assert!(!told.contains("good") && !told.contains("od"), "{told}");
        }
        for text in ["good", "good\n", "good\r\n", "good ", "a\tb", "gööd"] {
            assert_eq!(
                read_text(text).unwrap().expose(),
                text.trim_end_matches(['\r', '\n'])
            );
        }
        let pem = "-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----";
        assert_eq!(read_text(pem).unwrap().expose(), pem);
    }

    #[test]
    fn a_secret_comes_from_environment_or_file_and_is_not_shown() {
        let env = |name: &str| match name {
            "TOKEN" => Some(OsString::from("s3cret")),
            "NIL" => Some(OsString::new()),
            _ => None,
        };
        let secret = read(&SecretSource::Env("TOKEN".into()), env).unwrap();
        assert_eq!(
            (secret.expose(), format!("{secret:?}").as_str()),
            ("s3cret", "***")
        );
        assert!(matches!(
            read(&SecretSource::Env("OTHER".into()), env),
            Err(SecretError::NotSet(_))
        ));
        assert!(matches!(
            read(&SecretSource::Env("NIL".into()), env),
            Err(SecretError::Empty(_))
        ));

        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"from file\r\n").unwrap();
        let secret = read(&SecretSource::File(file.path().into()), env).unwrap();
        assert_eq!(secret.expose(), "from file");
        std::fs::write(file.path(), b"\xff\xfe").unwrap();
        let binary = read(&SecretSource::File(file.path().into()), env);
        assert!(matches!(binary, Err(SecretError::NotText(_))));
        let gone = SecretSource::File("/nonexistent/secret".into());
        assert!(matches!(read(&gone, env), Err(SecretError::Unreadable { .. })));
    }
}
