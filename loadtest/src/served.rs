//! What a TLS server shows, and how long the handshake takes.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{WebPkiSupportedAlgorithms, aws_lc_rs::default_provider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::TlsConnector;

/// A handshake that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks at one server.
pub(crate) struct Viewer {
    connector: TlsConnector,
    address: SocketAddr,
    name: ServerName<'static>,
}

/// What one handshake showed.
pub(crate) struct View {
    /// The certificate of the server.
    pub(crate) leaf: CertificateDer<'static>,
    /// From connecting to the end of the handshake.
    pub(crate) took: Duration,
}

impl Viewer {
    /// A viewer of the server at `address`, asked for `name`.
    pub(crate) fn new(address: SocketAddr, name: &str) -> anyhow::Result<Self> {
        let provider = Arc::new(default_provider());
        let any = Arc::new(AnyCertificate(provider.signature_verification_algorithms));
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(any)
            .with_no_client_auth();
        // A resumed session would show, and cost, what an earlier one did.
        config.resumption = Resumption::disabled();
        Ok(Self {
            connector: TlsConnector::from(Arc::new(config)),
            address,
            name: ServerName::try_from(name.to_owned()).with_context(|| format!("{name} is no server name"))?,
        })
    }

    /// Connects and looks.
    pub(crate) async fn look(&self) -> anyhow::Result<View> {
        let started = Instant::now();
        let handshake = async {
            let stream = TcpStream::connect(self.address).await?;
            self.connector.connect(self.name.clone(), stream).await
        };
        let stream = timeout(PATIENCE, handshake)
            .await
            .with_context(|| format!("{} takes longer than {PATIENCE:?}", self.address))?
            .with_context(|| format!("no TLS with {}", self.address))?;
        let took = started.elapsed();
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let leaf = chain.first().context("the server showed no certificate")?;
        Ok(View {
            leaf: leaf.clone().into_owned(),
            took,
        })
    }
}

/// Accepts any certificate, since the question is which one is served; the server still proves that it has the key.
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
        verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
