//! What is trusted: the system's certificates (those that come with the program where there are none), and the
//! partner's own CA beside them.
//!
//! A partner that signed its certificate itself is named by that very certificate in `ca`, as with other tools
//! (`curl --cacert`). Most such certificates say that they are a CA, which rustls refuses at a server's end; here it
//! is taken, byte for byte, for the names it holds and while it is valid.

use super::error::SinkError;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme,
};
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
    let mut own = Vec::new();
    if let Some(path) = ca {
        let failed = |why: String| SinkError::Ca {
            path: path.to_owned(),
            why,
        };
        let certs = CertificateDer::pem_file_iter(path).map_err(|e| failed(e.to_string()))?;
        let mut any = false;
        for cert in certs {
            let cert = cert.map_err(|e| failed(e.to_string()))?;
            own.push(cert.clone());
            roots.add(cert).map_err(|e| failed(e.to_string()))?;
            any = true;
        }
        if !any {
            return Err(failed("no certificate in it".to_owned()));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let failed = |why: String| SinkError::Client { why };
    let usual = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|e| failed(e.to_string()))?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| failed(e.to_string()))?;
    let mut config = if own.is_empty() {
        builder.with_webpki_verifier(usual).with_no_client_auth()
    } else {
        let verifier = Arc::new(OrNamed { usual, own });
        builder
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth()
    };
    config.alpn_protocols = if http2 {
        vec![b"h2".to_vec(), b"http/1.1".to_vec()]
    } else {
        vec![b"http/1.1".to_vec()]
    };
    Ok(Arc::new(config))
}

/// As usual, or the very certificate that the configuration names.
#[derive(Debug)]
struct OrNamed {
    usual: Arc<WebPkiServerVerifier>,
    own: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for OrNamed {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified =
            self.usual
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            // Its time has been looked at by then: what is over is `Expired`.
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(why))))
                if why.downcast_ref() == Some(&webpki::Error::CaUsedAsEndEntity)
                    && self.own.iter().any(|own| own == end_entity) =>
            {
                let parsed = ParsedCertificate::try_from(end_entity)?;
                rustls::client::verify_server_name(&parsed, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}
