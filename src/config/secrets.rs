//! Secrets: where they come from, and a type that does not show them (I9).

use super::model::SecretSource;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

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
    /// The file cannot be read as text.
    #[error("cannot read {file}")]
    Unreadable {
        /// The file as configured.
        file: String,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
}

/// Reads one secret now: variables from `env`, files from disk (so a file changed meanwhile gives its new content).
pub fn read(source: &SecretSource, env: &BTreeMap<String, String>) -> Result<Secret, SecretError> {
    let (text, from) = match source {
        SecretSource::Env(name) => {
            let text = env.get(name).ok_or_else(|| SecretError::NotSet(name.clone()))?;
            (text.clone(), format!("environment variable {name}"))
        }
        SecretSource::File(path) => {
            let file = path.display().to_string();
            let text = std::fs::read_to_string(path).map_err(|cause| SecretError::Unreadable {
                file: file.clone(),
                cause,
            })?;
            (text, file)
        }
    };
    let text = text
        .strip_suffix('\n')
        .map_or(text.as_str(), |t| t.strip_suffix('\r').unwrap_or(t));
    if text.is_empty() {
        Err(SecretError::Empty(from))
    } else {
        Ok(Secret::new(text))
    }
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

    #[test]
    fn a_secret_comes_from_environment_or_file_and_is_not_shown() {
        let env = BTreeMap::from([
            ("TOKEN".to_owned(), "s3cret".to_owned()),
            ("NIL".to_owned(), String::new()),
        ]);
        let secret = read(&SecretSource::Env("TOKEN".into()), &env).unwrap();
        assert_eq!(
            (secret.expose(), format!("{secret:?}").as_str()),
            ("s3cret", "***")
        );
        assert!(matches!(
            read(&SecretSource::Env("OTHER".into()), &env),
            Err(SecretError::NotSet(_))
        ));
        assert!(matches!(
            read(&SecretSource::Env("NIL".into()), &env),
            Err(SecretError::Empty(_))
        ));

        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"from file\r\n").unwrap();
        let secret = read(&SecretSource::File(file.path().into()), &env).unwrap();
        assert_eq!(secret.expose(), "from file");
        let gone = SecretSource::File("/nonexistent/secret".into());
        assert!(matches!(read(&gone, &env), Err(SecretError::Unreadable { .. })));
    }
}
