//! What a TLS server really serves.

mod hello;

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
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

/// The kind of key a certificate is expected to have. A server with several certificates shows the one that the client
/// offers signature schemes for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// RSA.
    Rsa,
    /// ECDSA.
    Ecdsa,
    /// Ed25519.
    Ed25519,
}

impl KeyKind {
    fn signs(self, scheme: SignatureScheme) -> bool {
        use SignatureScheme as S;
        let kind = match scheme {
            S::ED25519 => Self::Ed25519,
            S::ECDSA_NISTP256_SHA256 | S::ECDSA_NISTP384_SHA384 | S::ECDSA_NISTP521_SHA512 | S::ECDSA_SHA1_Legacy => {
                Self::Ecdsa
            }
            _ => Self::Rsa,
        };
        kind == self
    }
}

/// Connects to `address` and reads what it serves for `server_name`; an empty one is not sent. Where `key` is given, the
/// certificate with a key of this kind is asked for, and any other only when the server has none. The certificate may be
/// any. A signature that does not fit it is an error; a handshake that fails later, because the server wants a
/// certificate of its clients, for example, is none.
///
/// # Errors
/// Nobody answers within `patience`, or not with TLS.
pub async fn look<A: ToSocketAddrs + fmt::Display>(
    address: A,
    server_name: &str,
    key: Option<KeyKind>,
    patience: Duration,
) -> Result<Served, String> {
    let shown = address.to_string();
    match timeout(patience, ask(address, server_name, key)).await {
        Ok(Ok(served)) => Ok(served),
        Ok(Err(Unseen::Final(error) | Unseen::NotShown(error))) => {
            Err(format!("no certificate could be read from {shown}: {error}"))
        }
        Err(_) => Err(format!("{shown} does not answer within {patience:?}")),
    }
}

/// Why no certificate was seen.
enum Unseen {
    /// Asking in another way would not help.
    Final(String),
    /// The server ended the handshake before it showed one.
    NotShown(String),
}

async fn ask(address: impl ToSocketAddrs, server_name: &str, key: Option<KeyKind>) -> Result<Served, Unseen> {
    let away = |error: std::io::Error| Unseen::Final(error.to_string());
    let stream = TcpStream::connect(address).await.map_err(away)?;
    let peer = stream.peer_addr().map_err(away)?;
    let first = match shake_hands(stream, server_name, key).await {
        Err(Unseen::NotShown(first)) => first,
        seen => return seen,
    };
    // The server has no certificate with a key of this kind.
    if key.is_some() {
        let stream = TcpStream::connect(peer).await.map_err(away)?;
        match shake_hands(stream, server_name, None).await {
            Err(Unseen::NotShown(_)) => {}
            seen => return seen,
        }
    }
    let provider = crypto::aws_lc_rs::default_provider();
    let schemes = provider.signature_verification_algorithms.supported_schemes();
    let mut random = [0; 32];
    let filled = provider.secure_random.fill(&mut random);
    filled.map_err(|_| Unseen::Final("the random generator failed".to_owned()))?;
    let stream = TcpStream::connect(peer).await.map_err(away)?;
    let name = (!server_name.is_empty()).then_some(server_name);
    let seen = hello::ask(stream, name, &schemes, random).await;
    seen.map_err(|_| Unseen::NotShown(first))
}

async fn shake_hands(stream: TcpStream, server_name: &str, key: Option<KeyKind>) -> Result<Served, Unseen> {
    let fatal = |error: &dyn fmt::Display| Unseen::Final(error.to_string());
    let name = match server_name {
        // An address in place of a name means that no name is sent (RFC 6066 §3).
        "" => stream
            .peer_addr()
            .map(|peer: SocketAddr| ServerName::from(peer.ip()))
            .map_err(|error| fatal(&error))?,
        name => ServerName::try_from(name.to_owned()).map_err(|error| fatal(&format!("\"{name}\": {error}")))?,
    };
    let provider = Arc::new(crypto::aws_lc_rs::default_provider());
    let witness = Arc::new(Witness {
        algorithms: provider.signature_verification_algorithms,
        key,
        seen: Mutex::default(),
        is_forged: AtomicBool::new(false),
    });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| fatal(&error))?
        .dangerous()
        .with_custom_certificate_verifier(witness.clone())
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let connected = connector.connect(name, stream).await;
    let seen = std::mem::take(&mut *witness.seen.lock().expect("nobody panics with it"));
    match connected {
        Err(error) if witness.is_forged.load(Ordering::Relaxed) => Err(fatal(&error)),
        _ if !seen.chain.is_empty() => Ok(seen),
        Ok(_) => Err(Unseen::NotShown("it sent none".to_owned())),
        Err(error) => Err(Unseen::NotShown(error.to_string())),
    }
}

/// Accepts every certificate, because the question is which one is served; nothing is sent to the server.
#[derive(Debug)]
struct Witness {
    algorithms: WebPkiSupportedAlgorithms,
    key: Option<KeyKind>,
    seen: Mutex<Served>,
    /// Whether a signature did not fit the certificate.
    is_forged: AtomicBool,
}

impl Witness {
    fn noted<T>(&self, verified: Result<T, rustls::Error>) -> Result<T, rustls::Error> {
        self.is_forged.fetch_or(verified.is_err(), Ordering::Relaxed);
        verified
    }
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
        self.noted(crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.algorithms,
        ))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.noted(crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.algorithms,
        ))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let mut schemes = self.algorithms.supported_schemes();
        schemes.retain(|scheme| self.key.is_none_or(|key| key.signs(*scheme)));
        schemes
    }
}
