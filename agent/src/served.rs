//! Looks at the certificate a TLS server really serves.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{self, CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// What a TLS server at `address` (`host:port`) serves for `server_name`, as the SHA-256 of the leaf's DER in
/// lower-case hex. An empty `server_name` sends none.
///
/// # Errors
/// Nobody answers within two seconds, or not with TLS.
pub async fn fingerprint(address: &str, server_name: &str) -> Result<String, String> {
    const PATIENCE: Duration = Duration::from_secs(2);
    match timeout(PATIENCE, leaf(address, server_name)).await {
        Ok(Ok(der)) => Ok(hex::encode(digest::digest(&digest::SHA256, &der))),
        Ok(Err(error)) => Err(format!("no certificate could be read from {address}: {error}")),
        Err(_) => Err(format!("{address} does not answer within {PATIENCE:?}")),
    }
}

async fn leaf(address: &str, server_name: &str) -> Result<Vec<u8>, String> {
    let text = |error: &dyn fmt::Display| error.to_string();
    let stream = TcpStream::connect(address).await.map_err(|error| text(&error))?;
    let name = match server_name {
        // An address in place of a name means that no name is sent (RFC 6066 §3).
        "" => stream
            .peer_addr()
            .map(|peer: SocketAddr| ServerName::from(peer.ip()))
            .map_err(|error| text(&error))?,
        name => ServerName::try_from(name.to_owned()).map_err(|error| format!("\"{name}\": {error}"))?,
    };
    let connector = TlsConnector::from(config()?);
    let stream = connector.connect(name, stream).await.map_err(|error| text(&error))?;
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    certificates
        .first()
        .map(|leaf| leaf.to_vec())
        .ok_or_else(|| "it sent none".to_owned())
}

fn config() -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(crypto::aws_lc_rs::default_provider());
    let verifier = Arc::new(AnyCertificate(provider.signature_verification_algorithms));
    let config = with(provider)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn with(provider: Arc<CryptoProvider>) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, String> {
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    builder.map_err(|error| error.to_string())
}

/// Accepts every certificate, because the question is which one is served; nothing is sent to the server. That the
/// server holds its key is still checked.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        crypto::verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        crypto::verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use certctl_x509::keys::KeyPair;
    use rustls::ServerConfig;
    use rustls::pki_types::PrivateKeyDer;
    use rustls::pki_types::pem::PemObject;
    use tokio_rustls::TlsAcceptor;

    use super::*;

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
