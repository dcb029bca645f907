//! Why a partner cannot be called as it is configured.

use crate::core::expr::ExprError;
use crate::core::verdict::RuleError;
use crate::sink::template::TemplateError;
use std::path::PathBuf;

/// A partner that cannot be called as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// A template of URL, header or body.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A request from what is the same for every record.
    #[error("{0}")]
    Request(String),
    /// The method.
    #[error("`{0}` is not a request method that can be used")]
    Method(String),
    /// A header.
    #[error("header `{name}`: {why}")]
    Header {
        /// Its name.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// A verdict rule.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// An expression of the look-up.
    #[error("verify.{part}")]
    Verify {
        /// `delivered` or `never_seen`.
        part: &'static str,
        /// What is wrong.
        source: ExprError,
    },
    /// The partner's CA file.
    #[error("cannot use the certificates in {}: {why}", path.display())]
    Ca {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The proxy's URL, which may hold a password and is not shown.
    #[error("the proxy's URL cannot be used, expected http://, https:// or socks5://")]
    Proxy,
    /// The HTTP client.
    #[error("cannot build the HTTP client: {why}")]
    Client {
        /// What is wrong.
        why: String,
    },
}
