//! Settings of the signer.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Result, ensure};
use certctl_model::secret::Secret;
use certctl_runtime::config::{Settings, duration, secret_from};
use clap::Parser;
use url::Url;

/// Holds the keys of the local authorities and signs certificates, CRLs and OCSP answers.
///
/// Listens on a Unix socket that only its own user can open, and makes no connection but to Postgres.
#[derive(Clone, Debug, Parser)]
#[command(name = "certctl-signer", version)]
pub struct Config {
    /// What every service has.
    #[command(flatten)]
    pub settings: Settings,

    /// Where Postgres is. The login must be the role `certctl_signer` or a member of it.
    #[arg(
        long,
        env = "CERTCTL_DATABASE_URL",
        default_value = "postgres://localhost/certctl",
        hide_env_values = true
    )]
    pub database_url: Secret,

    /// Connections to Postgres at most.
    #[arg(long, env = "CERTCTL_DATABASE_MAX_CONNS", default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..))]
    pub database_max_conns: u32,

    /// Loopback address for /health, /ready and /metrics.
    #[arg(long, env = "CERTCTL_OPS_LISTEN", default_value = "127.0.0.1:9081")]
    pub ops_listen: SocketAddr,

    /// Unix socket to serve on.
    #[arg(long, env = "CERTCTL_SIGNER_SOCKET", default_value = "/run/certctl/signer.sock")]
    pub signer_socket: PathBuf,

    /// Directory of the authorities' keys and certificates, one directory of mode 0700 for each issuer.
    #[arg(long, env = "CERTCTL_CA_DIR", default_value = "/var/lib/certctl/ca")]
    pub ca_dir: PathBuf,

    /// Common name of a root made here, for issuers whose configuration has none.
    #[arg(long, env = "CERTCTL_CA_COMMON_NAME", default_value = "CertCtl Local CA")]
    pub ca_common_name: String,

    /// Passphrase that seals the authorities' key files.
    #[arg(long, env = "CERTCTL_CA_KEY_PASSPHRASE", hide_env_values = true)]
    pub ca_key_passphrase: Option<Secret>,

    /// File that holds the passphrase.
    #[arg(long, env = "CERTCTL_CA_KEY_PASSPHRASE_FILE")]
    pub ca_key_passphrase_file: Option<PathBuf>,

    /// Certificate of an authority made elsewhere, for `iss-local`: PEM, followed by those above it.
    #[arg(long, env = "CERTCTL_CA_CERT_PATH", requires = "ca_key_path")]
    pub ca_cert_path: Option<PathBuf>,

    /// Its private key: PEM of PKCS #1, SEC 1 or PKCS #8, sealed or not.
    #[arg(long, env = "CERTCTL_CA_KEY_PATH", requires = "ca_cert_path")]
    pub ca_key_path: Option<PathBuf>,

    /// Base URL under which relying parties reach `/crl`, `/ocsp` and `/ca`; put into every certificate. Without it
    /// certificates say nowhere how to learn of their revocation.
    #[arg(long, env = "CERTCTL_PUBLIC_URL")]
    pub public_url: Option<Url>,

    /// Lifetime of certificates, unless the profile asks for a shorter one.
    #[arg(long, env = "CERTCTL_LEAF_VALIDITY", default_value = "90d", value_parser = positive)]
    pub leaf_validity: Duration,

    /// How far before the signature a certificate begins, for clocks that are late.
    #[arg(long, env = "CERTCTL_BACKDATE", default_value = "5m", value_parser = duration)]
    pub backdate: Duration,

    /// Time from one CRL to the instant by which the next is due.
    #[arg(long, env = "CERTCTL_CRL_LIFETIME", default_value = "24h", value_parser = positive)]
    pub crl_lifetime: Duration,

    /// How long an OCSP answer holds.
    #[arg(long, env = "CERTCTL_OCSP_LIFETIME", default_value = "1h", value_parser = positive)]
    pub ocsp_lifetime: Duration,
}

impl Config {
    /// What no single setting can check.
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(
            self.ops_listen.ip().is_loopback(),
            "CERTCTL_OPS_LISTEN is {}, but the signer listens on loopback addresses only",
            self.ops_listen
        );
        if let Some(url) = &self.public_url {
            ensure!(
                matches!(url.scheme(), "http" | "https") && url.query().is_none() && url.fragment().is_none(),
                "CERTCTL_PUBLIC_URL is an http or https URL without query and fragment, not {url}"
            );
        }
        ensure!(
            !self.ca_common_name.trim().is_empty() && self.ca_common_name.chars().count() <= 64,
            "CERTCTL_CA_COMMON_NAME has 1 to 64 characters (RFC 5280 appendix A.1)"
        );
        Ok(())
    }

    /// What seals key files.
    pub(crate) fn passphrase(&self) -> Result<Option<Secret>> {
        let given = self.ca_key_passphrase.as_ref().map(|secret| secret.expose().to_owned());
        Ok(secret_from(given, self.ca_key_passphrase_file.clone())?.map(Secret::new))
    }
}

fn positive(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        short if short < Duration::from_secs(1) => Err("at least 1s is needed".to_owned()),
        long if long > Duration::from_secs(100 * 366 * 86_400) => Err("at most 100 years are possible".to_owned()),
        fits => Ok(fits),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Config> {
        let config = Config::try_parse_from([&["certctl-signer"], args].concat())?;
        config.check()?;
        Ok(config)
    }

    #[test]
    fn settings_are_read_or_refused() {
        let config = parsed(&["--ca-key-passphrase", "s3cret"]).unwrap();
        assert_eq!(config.leaf_validity, Duration::from_secs(90 * 86_400));
        assert!(!format!("{config:?}").contains("s3cret"));
        for bad in [
            &["--ops-listen", "0.0.0.0:9081"][..],
            &["--public-url", "ftp://example.com"],
            &["--ca-cert-path", "/ca.pem"],
            &["--ca-common-name", " "],
            &["--crl-lifetime", "0s"],
            &["--database-max-conns", "0"],
        ] {
            assert!(parsed(bad).is_err(), "{bad:?}");
        }
    }
}
