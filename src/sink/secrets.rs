//! Secrets: where they come from, and that they go nowhere else (I9).
//!
//! A value is read from an environment variable or a file when the node starts and when an operator asks for a
//! reload; it is handed to templates (`secret('name')`) and to the [masker](crate::core::mask) only. Neither
//! `Debug` nor any error shows one. A restart reads them anew.

use crate::config::SecretSource;
use crate::config::secrets::{self, Secret};
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// All secrets of a node. Cheap to clone; all clones see a reload.
#[derive(Clone)]
pub struct Secrets(Arc<Inner>);

struct Inner {
    sources: BTreeMap<String, SecretSource>,
    values: RwLock<BTreeMap<String, Secret>>,
    version: AtomicU64,
}

/// A secret that cannot be had.
#[derive(Debug)]
pub struct SecretError {
    /// Its name.
    pub name: String,
    /// Why.
    pub why: secrets::SecretError,
}

impl fmt::Display for SecretError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "secret `{}`: {}", self.name, self.why)
    }
}

impl std::error::Error for SecretError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // What it says itself stands in the text already.
        self.why.source()
    }
}

/// What a reload found.
#[derive(Debug, Default)]
pub struct Reloaded {
    /// Names of the secrets whose value is another one now.
    pub changed: Vec<String>,
    /// What could not be read; those keep their old value.
    pub errors: Vec<SecretError>,
}

impl Secrets {
    /// Reads every secret.
    ///
    /// # Errors
    /// All that cannot be had, together.
    pub fn load(sources: &BTreeMap<String, SecretSource>) -> Result<Self, Vec<SecretError>> {
        let mut values = BTreeMap::new();
        let mut errors = Vec::new();
        for (name, source) in sources {
            match read(name, source) {
                Ok(value) => {
                    values.insert(name.clone(), value);
                }
                Err(e) => errors.push(e),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Self(Arc::new(Inner {
            sources: sources.clone(),
            values: RwLock::new(values),
            version: AtomicU64::new(1),
        })))
    }

    /// No secrets at all.
    pub fn none() -> Self {
        Self(Arc::new(Inner {
            sources: BTreeMap::new(),
            values: RwLock::default(),
            version: AtomicU64::new(1),
        }))
    }

    /// Reads every secret again and tells which changed. What cannot be read keeps its value.
    pub fn reload(&self) -> Reloaded {
        let mut told = Reloaded::default();
        let mut fresh = Vec::new();
        for (name, source) in &self.0.sources {
            match read(name, source) {
                Ok(value) => fresh.push((name, value)),
                Err(e) => told.errors.push(e),
            }
        }
        let mut values = self.0.values.write();
        for (name, value) in fresh {
            if values.get(name) != Some(&value) {
                values.insert(name.clone(), value);
                told.changed.push(name.clone());
            }
        }
        if !told.changed.is_empty() {
            // Within the lock: who sees the new version reads the new values.
            self.0.version.fetch_add(1, Ordering::Release);
        }
        told
    }

    /// The value of one secret.
    pub fn get(&self, name: &str) -> Option<Arc<str>> {
        self.0.values.read().get(name).map(Secret::text)
    }

    /// All values, for the masker.
    pub fn values(&self) -> Vec<Arc<str>> {
        self.0.values.read().values().map(Secret::text).collect()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.sources.is_empty()
    }

    /// Rises with every reload that changed something: what was made from secrets is made anew then.
    pub fn version(&self) -> u64 {
        self.0.version.load(Ordering::Acquire)
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.sources.keys()).finish()
    }
}

fn read(name: &str, source: &SecretSource) -> Result<Secret, SecretError> {
    secrets::read(source, secrets::process_variable).map_err(|why| SecretError {
        name: name.to_owned(),
        why,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_file(path: &std::path::Path) -> BTreeMap<String, SecretSource> {
        BTreeMap::from([("acme".to_owned(), SecretSource::File(path.to_owned()))])
    }

    #[test]
    fn a_reload_tells_what_changed_and_keeps_what_it_cannot_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "first-value\r\n").unwrap();
        let secrets = Secrets::load(&from_file(&path)).unwrap();
        let other = secrets.clone();
        assert_eq!(secrets.get("acme").as_deref(), Some("first-value"));
        assert_eq!(secrets.reload().changed, Vec::<String>::new());
        let version = secrets.version();
        std::fs::write(&path, "second-value").unwrap();
        assert_eq!(secrets.reload().changed, ["acme"]);
        assert!(other.version() > version);
        assert_eq!(other.get("acme").as_deref(), Some("second-value"));
        std::fs::remove_file(&path).unwrap();
        let told = secrets.reload();
        assert_eq!((told.changed.len(), told.errors.len()), (0, 1));
        assert_eq!(secrets.get("acme").as_deref(), Some("second-value"));
        assert!(!format!("{secrets:?}{told:?}").contains("value"));
    }

    /// A rotation that went wrong must not make a dead letter of every message.
    #[test]
    fn a_broken_value_keeps_the_old_one_and_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "good").unwrap();
        let secrets = Secrets::load(&from_file(&path)).unwrap();
        let version = secrets.version();
        for broken in ["new\n\n", "new\r\n\n", "ne\nw", "ne\0w", "\u{feff}new\n", "\n"] {
            std::fs::write(&path, broken).unwrap();
            let found = secrets.reload();
            assert_eq!((found.changed.len(), found.errors.len()), (0, 1), "{broken:?}");
            let told = found.errors[0].to_string();
            assert!(
                told.starts_with("secret `acme`: ") && told.contains("token") && !told.contains("new"),
                "{told}"
            );
            assert_eq!(secrets.get("acme").as_deref(), Some("good"));
        }
        assert_eq!(secrets.version(), version);
        std::fs::write(&path, "new\n").unwrap();
        assert_eq!(secrets.reload().changed, ["acme"]);
    }

    #[test]
    fn all_that_is_missing_is_named_at_once() {
        let sources = BTreeMap::from([
            (
                "a".to_owned(),
                SecretSource::Env("SLUICEGATE_TEST_SURELY_UNSET".to_owned()),
            ),
            ("b".to_owned(), SecretSource::File("/nonexistent/secret".into())),
        ]);
        let errors = Secrets::load(&sources).unwrap_err();
        assert_eq!(
            errors.iter().map(|e| e.name.as_str()).collect::<Vec<_>>(),
            ["a", "b"]
        );
        assert_eq!(
            errors[0].to_string(),
            "secret `a`: environment variable SLUICEGATE_TEST_SURELY_UNSET is not set"
        );
    }
}
