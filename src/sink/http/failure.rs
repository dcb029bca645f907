//! Why an attempt has no answer, and whether the partner has anything to do with it.

use super::dial::ConnectError;
use crate::core::in_full::in_full;
use crate::sink::Verdict;
use std::time::Duration;

/// Why there is no answer. The first word is a stable code.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("connect: {0}")]
    Connect(String),
    /// The message's own failure.
    #[error("refused: address not allowed: {0}")]
    Forbidden(String),
    /// No connection, for this node lacks something: the partner has nothing to do with it.
    #[error("this node is short of descriptors, ports or memory: {0}")]
    Shortage(String),
    #[error("timeout: no answer within {0:?}")]
    Timeout(Duration),
    #[error("reset: {0}")]
    Reset(String),
    #[error("bad answer: {0}")]
    BadAnswer(String),
}

impl From<ConnectError> for Failure {
    fn from(e: ConnectError) -> Self {
        if let ConnectError::Forbidden { .. } = e {
            return Failure::Forbidden(in_full(&e));
        }
        let short = match &e {
            // A machine without IPv6 says the same of every such address, and it will not pass.
            ConnectError::Tcp { address, source } if address.is_ipv6() => {
                source.kind() != std::io::ErrorKind::AddrNotAvailable && is_shortage(&e)
            }
            // The resolver needs descriptors too, and does not always say that it got none.
            ConnectError::Dns { .. } => {
                is_shortage(&e) || std::fs::File::open("/dev/null").is_err_and(|e| is_shortage(&e))
            }
            _ => is_shortage(&e),
        };
        match short {
            true => Failure::Shortage(in_full(&e)),
            false => Failure::Connect(in_full(&e)),
        }
    }
}

/// Whether somewhere in the chain of causes the system says that this node lacks something: descriptors, buffers,
/// memory, or ports of its own.
pub(super) fn is_shortage(error: &(dyn std::error::Error + 'static)) -> bool {
    // EMFILE, ENFILE, ENOBUFS, ENOMEM, EADDRNOTAVAIL.
    use rustix::io::Errno;
    let short = [
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOBUFS,
        Errno::NOMEM,
        Errno::ADDRNOTAVAIL,
    ]
    .map(Errno::raw_os_error);
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            if io.raw_os_error().is_some_and(|code| short.contains(&code)) {
                return true;
            }
            // What it was made of is its own source, which `source` passes over.
            if io.get_ref().is_some_and(|inner| is_shortage(inner)) {
                return true;
            }
        }
        cause = error.source();
    }
    false
}

impl Failure {
    /// What it means where nothing was written.
    pub(super) fn unwritten(&self) -> Verdict {
        match self {
            Failure::Forbidden(_) => Verdict::Refused,
            _ => Verdict::TryLater,
        }
    }

    /// Of a request that was written.
    pub(super) fn from_hyper(e: &hyper::Error) -> Self {
        if e.is_parse() || e.is_parse_too_large() || e.is_parse_status() {
            Failure::BadAnswer(e.to_string())
        } else if e.is_incomplete_message() {
            Failure::Reset("the connection was closed before the answer".to_owned())
        } else {
            let cause = std::error::Error::source(e).map_or_else(|| e.to_string(), ToString::to_string);
            Failure::Reset(cause)
        }
    }
}
