//! TLS: trusted, not trusted, and what a test of the connection says.

use super::server::{OK, raw, read_request};
use super::*;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::net::SocketAddr;

pub(super) struct Certificates {
    pub(super) ca: tempfile::NamedTempFile,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

/// A certificate for this name, and the CA that made it.
pub(super) fn certificates(name: &str) -> Certificates {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(params, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let cert = rcgen::CertificateParams::new(vec![name.to_owned()])
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), ca.pem()).unwrap();
    Certificates {
        ca: file,
        chain: vec![cert.der().clone()],
        key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
    }
}

pub(super) fn server_config(certs: &Certificates, alpn: &[&[u8]]) -> Arc<rustls::ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certs.chain.clone(), certs.key.clone_key())
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Arc::new(config)
}

fn start(certs: &Certificates) -> SocketAddr {
    let config = server_config(certs, &[]);
    raw(move |mut tcp, _| {
        let mut session = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
        // A client that does not trust us ends the handshake.
        while session.is_handshaking() {
            if session.complete_io(&mut tcp).is_err() {
                return;
            }
        }
        let mut got = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let mut stream = rustls::Stream::new(&mut session, &mut tcp);
            match std::io::Read::read(&mut stream, &mut buffer) {
                Ok(n @ 1..) => got.extend_from_slice(&buffer[..n]),
                _ => return,
            }
            // One short request with its body in one piece.
            if got.ends_with(b"end") {
                got.clear();
                std::io::Write::write_all(&mut stream, OK.as_bytes()).unwrap();
            }
        }
    })
}

#[test]
fn a_ca_of_the_partners_own_is_trusted() {
    run(async {
        let certs = certificates("localhost");
        let address = start(&certs);
        let mut config = partner(&format!("https://localhost:{}/", address.port()));
        config.ca = Some(certs.ca.path().to_owned());
        let sink = sink(&config);
        for _ in 0..3 {
            let answer = answered(&sink, &delivery("the end")).await;
            assert_eq!(answer.verdict, Verdict::Delivered, "{answer:?}");
        }
        assert_eq!(sink.stats().connected, 1);
        let found = sink.test().await.unwrap();
        assert!(
            found.contains("TLSv1_3") && found.contains("certificate valid for localhost"),
            "{found}"
        );
    });
}

#[test]
fn a_certificate_that_is_not_trusted_is_no_doubt() {
    run(async {
        let certs = certificates("localhost");
        let address = start(&certs);
        let url = format!("https://localhost:{}/", address.port());
        let stranger = sink(&partner(&url));
        let request = stranger.prepare(&delivery("the end")).unwrap();
        let answer = stranger.connect(&request).await.err().unwrap();
        assert_eq!(answer.verdict, Verdict::TryLater);
        assert!(
            reason(&answer).starts_with("connect: tls: ") && reason(&answer).contains("UnknownIssuer"),
            "{answer:?}"
        );

        // The right CA, another name.
        let certs = certificates("other.example");
        let address = start(&certs);
        let mut config = partner(&format!("https://localhost:{}/", address.port()));
        config.ca = Some(certs.ca.path().to_owned());
        let misnamed = sink(&config);
        let request = misnamed.prepare(&delivery("the end")).unwrap();
        let answer = misnamed.connect(&request).await.err().unwrap();
        assert!(reason(&answer).contains("not valid for name"), "{answer:?}");
        assert!(misnamed.test().await.is_err());
    });
}

#[test]
fn plain_http_behind_an_https_url_is_no_doubt() {
    run(async {
        let address = raw(|mut stream, _| {
            read_request(&mut stream);
            super::server::say(&mut stream, "HTTP/1.1 400 Bad Request\r\n\r\n");
        });
        let sink = sink(&partner(&format!("https://127.0.0.1:{}/", address.port())));
        let request = sink.prepare(&delivery("x")).unwrap();
        let connecting = tokio::time::timeout(Duration::from_secs(3), sink.connect(&request));
        let answer = connecting.await.unwrap().err().unwrap();
        assert_eq!(answer.verdict, Verdict::TryLater);
        assert!(reason(&answer).starts_with("connect: "), "{answer:?}");
    });
}

#[test]
fn a_ca_file_that_is_none_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "not a certificate").unwrap();
    for path in [file.path().to_owned(), "/nonexistent/ca.pem".into()] {
        let mut config = partner("https://localhost/");
        config.ca = Some(path.clone());
        let Err(e) = HttpSink::try_new(&config, &Secrets::none(), Clock::start()) else {
            panic!("it was taken")
        };
        assert!(
            e.to_string()
                .starts_with(&format!("cannot use the certificates in {}", path.display())),
            "{e}"
        );
    }
}

#[test]
fn a_test_of_the_connection_sends_nothing() {
    run(async {
        let (told, got) = std::sync::mpsc::channel();
        let address = raw(move |mut stream, _| told.send(read_request(&mut stream)).unwrap());
        let plain = sink(&partner(&format!("http://{address}/")));
        assert_eq!(
            plain.test().await,
            Ok(format!("connected to {address}, without TLS"))
        );
        assert_eq!(patience::hear(&got).unwrap(), None);
        // The path depends on the record, the host does not.
        let path = sink(&partner(&format!("http://{address}/{{{{ value }}}}")));
        assert_eq!(
            path.test().await,
            Ok(format!("connected to {address}, without TLS"))
        );
        assert_eq!(patience::hear(&got).unwrap(), None);
        let nobody = sink(&partner("http://127.0.0.1:1/{{ value }}"));
        assert!(nobody.test().await.is_err());
        let per_record = sink(&partner("{{ value }}"));
        assert_eq!(
            per_record.test().await,
            Ok("the URL depends on the record: nothing to connect to".into())
        );
    });
}

/// A certificate that signed itself and says that it is a CA, as openssl makes them.
fn signed_by_itself(name: &str) -> Certificates {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let cert = params.self_signed(&key).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), cert.pem()).unwrap();
    Certificates {
        ca: file,
        chain: vec![cert.der().clone()],
        key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
    }
}

#[test]
fn a_certificate_that_signed_itself_is_trusted_where_it_is_named() {
    run(async {
        let certs = signed_by_itself("localhost");
        let address = start(&certs);
        let mut config = partner(&format!("https://localhost:{}/", address.port()));
        config.ca = Some(certs.ca.path().to_owned());
        let answer = answered(&sink(&config), &delivery("the end")).await;
        assert_eq!(answer.verdict, Verdict::Delivered, "{answer:?}");
        assert!(sink(&config).test().await.is_ok());

        // Another of the same name is not it, nor is it good for another name.
        let another = signed_by_itself("localhost");
        config.ca = Some(another.ca.path().to_owned());
        let why = sink(&config).test().await.unwrap_err();
        assert!(why.contains("invalid peer certificate"), "{why}");
        config.ca = Some(certs.ca.path().to_owned());
        config.url = format!("https://127.0.0.1:{}/", address.port());
        let why = sink(&config).test().await.unwrap_err();
        assert!(why.contains("not valid for name"), "{why}");
    });
}

#[test]
fn why_the_latest_connect_failed_is_told() {
    run(async {
        let certs = certificates("localhost");
        let address = start(&certs);
        let sink = sink(&partner(&format!("https://localhost:{}/", address.port())));
        assert_eq!(sink.connect_failure(), None);
        let request = sink.prepare(&delivery("the end")).unwrap();
        assert!(sink.connect(&request).await.is_err());
        let (why, _) = sink.connect_failure().unwrap();
        assert!(why.contains("UnknownIssuer"), "{why}");
    });
}
