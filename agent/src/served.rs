//! Looks at the certificate a TLS server really serves.

use std::time::Duration;

use aws_lc_rs::digest;
use certctl_model::key::KeyAlgorithm;
use certctl_runtime::served::{self, KeyKind};

/// What a TLS server at `address` (`host:port`) serves for `server_name`, as the SHA-256 of the leaf's DER in
/// lower-case hex. An empty `server_name` sends none. A server that has several certificates shows the one with a `key` of
/// this kind.
///
/// # Errors
/// Nobody answers within two seconds, or not with TLS.
pub async fn fingerprint(address: &str, server_name: &str, key: KeyAlgorithm) -> Result<String, String> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let kind = match key {
        KeyAlgorithm::Rsa => Some(KeyKind::Rsa),
        KeyAlgorithm::Ecdsa => Some(KeyKind::Ecdsa),
        KeyAlgorithm::Ed25519 => Some(KeyKind::Ed25519),
        _ => None,
    };
    let served = served::look(address, server_name, kind, PATIENCE).await?;
    Ok(hex::encode(digest::digest(&digest::SHA256, &served.chain[0])))
}

#[cfg(test)]
pub(crate) mod testing {
    use std::sync::Arc;

    use certctl_x509::keys::KeyPair;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::{ServerConfig, crypto};
    use tokio_rustls::TlsAcceptor;

    /// The server's side of a connection, with a certificate chain in PEM.
    pub(crate) fn acceptor(key: &KeyPair, pem: &str) -> TlsAcceptor {
        let chain = CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .unwrap();
        let private = PrivateKeyDer::from_pem_slice(key.to_pkcs8_pem().unwrap().as_bytes()).unwrap();
        let provider = Arc::new(crypto::aws_lc_rs::default_provider());
        let server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap();
        TlsAcceptor::from(Arc::new(
            server.with_no_client_auth().with_single_cert(chain, private).unwrap(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use certctl_runtime::tasks::Tasks;
    use certctl_x509::facts::CertificateFacts;
    use certctl_x509::keys::KeyPair;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::server::WebPkiClientVerifier;
    use rustls::{RootCertStore, ServerConfig, crypto};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::testing::acceptor;
    use super::*;
    use crate::bundle::testing::{DEMO, issue, key};

    /// A server that ends the handshake after it showed its certificate.
    fn strict_acceptor(key: &KeyPair, pem: &str, root: &str) -> TlsAcceptor {
        let provider = Arc::new(crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(root.as_bytes()).unwrap())
            .unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .unwrap();
        let chain = CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .unwrap();
        let private = PrivateKeyDer::from_pem_slice(key.to_pkcs8_pem().unwrap().as_bytes()).unwrap();
        let server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, private)
            .unwrap();
        TlsAcceptor::from(Arc::new(server))
    }

    #[tokio::test]
    async fn a_certificate_counts_though_the_server_wants_one_of_its_clients() {
        let key = key();
        let pem = issue(&key, DEMO);
        let root = pem
            .rsplit_once("-----BEGIN")
            .map(|(_, end)| format!("-----BEGIN{end}"))
            .unwrap();
        let acceptor = strict_acceptor(&key, &pem, &root);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        Tasks::new().spawn("server", async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                assert!(acceptor.accept(stream).await.is_err());
            }
        });
        let expected = CertificateFacts::parse_pem_chain(&pem).unwrap().remove(0).fingerprint;
        // A server that has no key of the kind that is expected shows what it has.
        for kind in [KeyAlgorithm::Ecdsa, KeyAlgorithm::Rsa] {
            assert_eq!(fingerprint(&address, DEMO, kind).await, Ok(expected.clone()), "{kind}");
        }
    }

    #[tokio::test]
    async fn the_leaf_is_seen_whoever_signed_it_and_a_silent_port_is_an_error() {
        let key = key();
        let pem = issue(&key, DEMO);
        let acceptor = acceptor(&key, &pem);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        Tasks::new().spawn("server", async move {
            for _ in 0..2 {
                let (stream, _) = listener.accept().await.unwrap();
                let _ = acceptor.accept(stream).await;
            }
        });
        let expected = CertificateFacts::parse_pem_chain(&pem).unwrap().remove(0).fingerprint;
        for name in [DEMO, ""] {
            assert_eq!(
                fingerprint(&address, name, KeyAlgorithm::Ecdsa).await,
                Ok(expected.clone()),
                "{name}"
            );
        }
        assert!(fingerprint(&address, "not a name", KeyAlgorithm::Ecdsa).await.is_err());
    }
}
