//! Looks at the certificate a TLS server really serves.

use std::time::Duration;

use aws_lc_rs::digest;
use certctl_runtime::served;

/// What a TLS server at `address` (`host:port`) serves for `server_name`, as the SHA-256 of the leaf's DER in
/// lower-case hex. An empty `server_name` sends none.
///
/// # Errors
/// Nobody answers within two seconds, or not with TLS.
pub async fn fingerprint(address: &str, server_name: &str) -> Result<String, String> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let served = served::look(address, server_name, PATIENCE).await?;
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
    use certctl_runtime::tasks::Tasks;
    use certctl_x509::facts::CertificateFacts;
    use tokio::net::TcpListener;

    use super::testing::acceptor;
    use super::*;
    use crate::bundle::testing::{DEMO, issue, key};

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
            assert_eq!(fingerprint(&address, name).await, Ok(expected.clone()), "{name}");
        }
        assert!(fingerprint(&address, "not a name").await.is_err());
    }
}
