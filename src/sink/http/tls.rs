//! What is trusted: the system's certificates (those that come with the program where there are none), and the
//! partner's own CA beside them.

use super::SinkError;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// Reading the system's certificates takes milliseconds, so they are read once.
static SYSTEM: OnceLock<RootCertStore> = OnceLock::new();

fn system() -> &'static RootCertStore {
    SYSTEM.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        roots
    })
}

/// A client configuration: ring, TLS 1.2 and 1.3, sessions resumed.
///
/// # Errors
/// When `ca` cannot be read or holds no certificate.
pub(super) fn client_config(ca: Option<&Path>, http2: bool) -> Result<Arc<ClientConfig>, SinkError> {
    let mut roots = system().clone();
    if let Some(path) = ca {
        let failed = |why: String| SinkError::Ca {
            path: path.to_owned(),
            why,
        };
        let certs = CertificateDer::pem_file_iter(path).map_err(|e| failed(e.to_string()))?;
        let mut any = false;
        for cert in certs {
            roots
                .add(cert.map_err(|e| failed(e.to_string()))?)
                .map_err(|e| failed(e.to_string()))?;
            any = true;
        }
        if !any {
            return Err(failed("no certificate in it".to_owned()));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| SinkError::Client { why: e.to_string() })?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = if http2 {
        vec![b"h2".to_vec(), b"http/1.1".to_vec()]
    } else {
        vec![b"http/1.1".to_vec()]
    };
    Ok(Arc::new(config))
}
