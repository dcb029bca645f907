//! Loading: files and environment in, one checked [`Config`] out, or every mistake at once.

use super::check::{self, Machine};
use super::effective::{self, Show, Which};
use super::finding::{Finding, Severity};
use super::model::{Config, SecretSource};
use super::read;
use super::secrets::{self, Secret};
use super::tree::{self, ENV_PREFIX, Origin};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// A configuration without mistakes.
#[derive(Clone)]
pub struct Loaded {
    /// The typed values.
    pub config: Config,
    /// What is doubtful, but does not keep a node from running.
    pub warnings: Vec<Finding>,
    /// Where each key that is set was written, by dotted key.
    pub sources: BTreeMap<String, Origin>,
    /// Variables that secrets come from. Never shown.
    env: BTreeMap<String, String>,
}

impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded")
            .field("config", &self.effective())
            .field("warnings", &self.warnings)
            .finish()
    }
}

impl Loaded {
    /// The effective configuration as TOML: every key, its value, where that comes from; credentials masked.
    pub fn effective(&self) -> String {
        effective::print(&self.config, &self.sources, Show::Masked, Which::All)
    }

    /// The part of [`Loaded::effective`] that files and environment say; all other keys stand at their defaults.
    pub fn effective_set(&self) -> String {
        effective::print(&self.config, &self.sources, Show::Masked, Which::Set)
    }

    /// The same as one object: dotted key to `{ value, source }`.
    pub fn effective_json(&self) -> serde_json::Value {
        let entries = effective::entries(&self.config, Show::Masked).into_iter();
        let entries = entries.map(|entry| {
            let origin = effective::origin_of(&self.sources, &entry.section, &entry.key);
            let source = origin.map_or_else(|| "default".to_owned(), ToString::to_string);
            let name = format!("{}.{}", entry.section, entry.key);
            (
                name,
                serde_json::json!({ "value": entry.value, "source": source }),
            )
        });
        serde_json::Value::Object(entries.collect())
    }

    /// Where the secrets come from that templates use; others are not read, and need not be there.
    ///
    /// # Errors
    /// One finding for each that is not set, empty or unreadable now: what keeps `run` from starting.
    pub fn secret_sources(&self) -> Result<BTreeMap<String, SecretSource>, Vec<Finding>> {
        let missing =
            check::missing_secrets(&self.config, &self.sources, &self.env, Severity::Error, |_| true);
        if !missing.is_empty() {
            return Err(missing);
        }
        let used = check::used_secrets(&self.config);
        let sources = self
            .config
            .secrets
            .iter()
            .filter(|(name, _)| used.contains(*name));
        Ok(sources
            .map(|(name, source)| (name.clone(), source.clone()))
            .collect())
    }

    /// One finding for each secret that is used, and is there, but cannot be used.
    pub fn unusable_secrets(&self) -> Vec<Finding> {
        let wanted = secrets::SecretError::is_unusable;
        check::missing_secrets(&self.config, &self.sources, &self.env, Severity::Error, wanted)
    }

    /// The token of the control API, if one is configured.
    pub fn token(&self) -> Result<Option<Secret>, secrets::SecretError> {
        self.config
            .listen
            .token
            .as_ref()
            .map(|source| secrets::read(source, |name| self.env.get(name).map(Into::into)))
            .transpose()
    }
}

/// Loads `files` (later ones win, key by key) and the overrides in `env` (which win over files), fills in defaults
/// and checks everything. The secrets' own variables are taken from `env` too.
///
/// # Errors
/// Every mistake and every warning, in the order of files and lines. A secret that is not set is a warning here: a
/// configuration may be checked where its secrets are not; [`Loaded::secret_sources`] refuses it.
pub fn load(files: &[PathBuf], env: impl Iterator<Item = (String, String)>) -> Result<Loaded, Vec<Finding>> {
    load_on(files, env.collect(), &Machine::here())
}

/// [`load`], with what is known of the machine as an argument.
pub(super) fn load_on(
    files: &[PathBuf],
    env: BTreeMap<String, String>,
    machine: &Machine,
) -> Result<Loaded, Vec<Finding>> {
    let mut findings = Vec::new();
    let mut layers = Vec::new();
    for (i, file) in files.iter().enumerate() {
        match layer(i + 1, file) {
            Ok(layer) => layers.push(layer),
            Err(finding) => findings.push(*finding),
        }
    }
    // Findings about what a file does not say would mislead where one could not be read.
    if !findings.is_empty() {
        return Err(findings);
    }
    parse(layers, files.len() + 1, env, machine)
}

/// Loads one text, as a file of this name without any environment.
pub fn load_text(name: &str, text: &str) -> Result<Loaded, Vec<Finding>> {
    let layer = tree::file_layer(1, name, text).map_err(|finding| vec![*finding])?;
    parse(vec![layer], 2, BTreeMap::new(), &Machine::here())
}

fn layer(number: usize, file: &Path) -> Result<tree::Layer, Box<Finding>> {
    let name = file.display().to_string();
    let unreadable = |text: &str| {
        let mut finding = Finding::at(Severity::Error, "", None).says(text);
        finding.file = Some(name.clone());
        Box::new(finding)
    };
    let text = std::fs::read_to_string(file).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => unreadable(
            "no such file\nsluicegate init --http URL --limit 50/s writes one to start from; --config FILE names another",
        ),
        std::io::ErrorKind::InvalidData => unreadable("not UTF-8 text\nsave it as UTF-8"),
        _ => unreadable(&format!("cannot read it: {e}\ncheck that it is a file you may read")),
    })?;
    tree::file_layer(number, &name, &text)
}

fn parse(
    mut layers: Vec<tree::Layer>,
    env_layer: usize,
    env: BTreeMap<String, String>,
    machine: &Machine,
) -> Result<Loaded, Vec<Finding>> {
    let failed = |e: config::ConfigError| {
        vec![Finding::at(Severity::Error, "", None).says(&format!("cannot merge the files: {e}"))]
    };
    let mut findings = Vec::new();
    let mut root = tree::merge(&layers).map_err(failed)?;
    if env.keys().any(|name| name.starts_with(ENV_PREFIX)) {
        layers.push(tree::env_layer(env_layer, &root, &env, &mut findings));
        root = tree::merge(&layers).map_err(failed)?;
    }
    let origins = root.origins();
    let mut config = read::config(&root, &mut findings);
    config.complete(&origins);
    let known_bad: Vec<String> = findings.iter().map(|f| f.key.clone()).collect();
    let mut crossed = check::check(&config, &origins, machine);
    // A value that is wrong stands at its default; what follows from that is not the user's mistake.
    crossed.retain(|finding| !known_bad.contains(&finding.key));
    findings.extend(crossed);
    findings.extend(check::missing_secrets(
        &config,
        &origins,
        &env,
        Severity::Warning,
        |_| true,
    ));
    findings.sort_by(|a, b| (&a.file, a.line, &a.key).cmp(&(&b.file, b.line, &b.key)));
    if findings.iter().any(|finding| finding.severity == Severity::Error) {
        return Err(findings);
    }
    let reads: Vec<_> = config
        .topics
        .values()
        .map(|topic| check::fields_read(&config, topic))
        .collect();
    for (topic, reads) in config.topics.values_mut().zip(reads) {
        topic.reads = reads;
    }
    let wanted = check::secret_variables(&config);
    let env = env
        .into_iter()
        .filter(|(name, _)| wanted.contains(name))
        .collect();
    Ok(Loaded {
        config,
        warnings: findings,
        sources: origins,
        env,
    })
}
