//! TLS of a public address: one certificate, which may be replaced while connections are open.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::signal::unix::{self, SignalKind};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// The oldest version that is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TlsMin {
    /// TLS 1.2 and 1.3.
    #[value(name = "1.2")]
    Tls12,
    /// TLS 1.3 only.
    #[default]
    #[value(name = "1.3")]
    Tls13,
}

/// A certificate with its key, and how they are spoken with.
pub struct Tls {
    cert_path: PathBuf,
    key_path: PathBuf,
    current: Arc<Current>,
    config: Arc<ServerConfig>,
}

impl Tls {
    /// Reads a PEM chain, leaf first, and its PEM key.
    ///
    /// # Errors
    ///
    /// A file cannot be read, or the key is not the one of the leaf.
    pub fn load(cert_path: &Path, key_path: &Path, min: TlsMin) -> anyhow::Result<Self> {
        let pair = read(cert_path, key_path)?;
        let current = Arc::new(Current(RwLock::new(Arc::new(pair))));
        let versions = match min {
            TlsMin::Tls12 => &[&TLS13, &TLS12][..],
            TlsMin::Tls13 => &[&TLS13],
        };
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)?
            .with_no_client_auth()
            .with_cert_resolver(current.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self {
            cert_path: cert_path.to_owned(),
            key_path: key_path.to_owned(),
            current,
            config: Arc::new(config),
        })
    }

    /// How connections are accepted.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }

    /// The certificate that is shown now, as DER.
    pub fn leaf(&self) -> Vec<u8> {
        self.current.get().cert[0].to_vec()
    }

    /// Reads the files again. New connections get the new certificate; open ones keep the old one.
    ///
    /// # Errors
    ///
    /// As [`Tls::load`]; the old pair stays.
    pub fn reload(&self) -> anyhow::Result<()> {
        let pair = read(&self.cert_path, &self.key_path)?;
        *self.current.0.write().expect("nobody panics with the lock") = Arc::new(pair);
        Ok(())
    }

    /// Reloads when a file has changed or SIGHUP comes, and tells `loaded` each time. Ends with `stop`.
    ///
    /// A pair that cannot be used is logged and counted in `tls_reload_failures_total`, once for each change.
    pub async fn follow(self: Arc<Self>, stop: CancellationToken, loaded: impl Fn(&Self) + Send) {
        const PAUSE: Duration = Duration::from_secs(2);
        let mut hangup = unix::signal(SignalKind::hangup()).expect("the runtime listens to signals");
        let mut seen = self.stamps();
        loop {
            let asked = tokio::select! {
                () = stop.cancelled() => return,
                _ = hangup.recv() => true,
                () = sleep(PAUSE) => false,
            };
            // Looked at before the files are read: a change in between is seen the next time.
            let stamps = self.stamps();
            if !asked && stamps == seen {
                continue;
            }
            seen = stamps;
            match self.reload() {
                Ok(()) => {
                    info!("the TLS certificate was read again");
                    loaded(&self);
                }
                Err(error) => {
                    metrics::counter!("tls_reload_failures_total").increment(1);
                    warn!("the TLS certificate stays the old one: {error:#}");
                }
            }
        }
    }

    fn stamps(&self) -> [Option<Stamp>; 2] {
        [&self.cert_path, &self.key_path].map(|path| Some(stamp(&std::fs::metadata(path).ok()?)))
    }
}

/// What differs when a file was written or replaced: device, inode, length, seconds and nanoseconds of the change.
type Stamp = (u64, u64, u64, i64, i64);

fn stamp(file: &Metadata) -> Stamp {
    (file.dev(), file.ino(), file.len(), file.mtime(), file.mtime_nsec())
}

fn read(cert_path: &Path, key_path: &Path) -> anyhow::Result<CertifiedKey> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(cert_path).and_then(Iterator::collect);
    let chain = chain.with_context(|| format!("cannot read certificates from {}", cert_path.display()))?;
    ensure!(!chain.is_empty(), "there is no certificate in {}", cert_path.display());
    let key = PrivateKeyDer::from_pem_file(key_path)
        .with_context(|| format!("cannot read a private key from {}", key_path.display()))?;
    CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).with_context(|| {
        format!(
            "the key in {} does not fit the certificate in {}",
            key_path.display(),
            cert_path.display()
        )
    })
}

struct Current(RwLock<Arc<CertifiedKey>>);

impl Current {
    fn get(&self) -> Arc<CertifiedKey> {
        self.0.read().expect("nobody panics with the lock").clone()
    }
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Current")
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }
}
