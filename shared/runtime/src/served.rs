//! What a TLS server really serves.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{self, WebPkiSupportedAlgorithms},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{
    net::{TcpStream, ToSocketAddrs},
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// What a server sent in its handshake.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// The DER of the certificates in the order they came: at least one, the server's own first.
    pub chain: Vec<Vec<u8>>,
    /// The stapled OCSP response (RFC 6066 §8); empty when there was none.
    pub ocsp: Vec<u8>,
}

/// Connects to `address` and reads what it serves for `server_name`; an empty one is not sent. The certificate may be
/// any; that the server holds its key is checked.
///
/// # Errors
/// Nobody answers within `patience`, or not with TLS.
pub async fn look<A: ToSocketAddrs + fmt::Display>(
    address: A,
    server_name: &str,
    patience: Duration,
) -> Result<Served, String> {
    let shown = address.to_string();
    match timeout(patience, shake_hands(address, server_name)).await {
        Ok(Ok(served)) => Ok(served),
        Ok(Err(error)) => Err(format!("no certificate could be read from {shown}: {error}")),
        Err(_) => Err(format!("{shown} does not answer within {patience:?}")),
    }
}

async fn shake_hands(address: impl ToSocketAddrs, server_name: &str) -> Result<Served, String> {
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
    let provider = Arc::new(crypto::aws_lc_rs::default_provider());
    let witness = Arc::new(Witness {
        algorithms: provider.signature_verification_algorithms,
        seen: Mutex::default(),
    });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| text(&error))?
        .dangerous()
        .with_custom_certificate_verifier(witness.clone())
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(name, stream).await.map_err(|error| text(&error))?;
    let seen = std::mem::take(&mut *witness.seen.lock().expect("nobody panics with it"));
    match seen.chain.is_empty() {
        true => Err("it sent none".to_owned()),
        false => Ok(seen),
    }
}

/// Accepts every certificate, because the question is which one is served; nothing is sent to the server.
#[derive(Debug)]
struct Witness {
    algorithms: WebPkiSupportedAlgorithms,
    seen: Mutex<Served>,
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = [leaf].into_iter().chain(others);
        *self.seen.lock().expect("nobody panics with it") = Served {
            chain: chain.map(|der| der.to_vec()).collect(),
            ocsp: ocsp.to_vec(),
        };
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
