//! Settings of the signer.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use certctl_model::{
    key::{KeyAlgorithm, KeyFacts},
    secret::Secret,
};
use certctl_runtime::{
    config::{Settings, duration, group, secret_from, user},
    hardening::Hardening,
};
use certctl_x509::scheme::RsaPadding;
use clap::{Parser, ValueEnum};
use url::Url;

use crate::{keeping::BroughtKey, token};

/// Holds the keys of the local authorities and signs certificates, CRLs and OCSP answers.
///
/// Listens on a Unix socket that its own user and those it is told of can open, and makes no connection but to Postgres.
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

    /// Group that may open the socket, by name or number, so that the services that call it run as another user than the
    /// signer; the signer's user is a member of it. Without one, only the signer's own user may.
    #[arg(long, env = "CERTCTL_SIGNER_SOCKET_GROUP", value_parser = group)]
    pub signer_socket_group: Option<u32>,

    /// Users that are answered, by name or number, with commas between; the signer's own and root are. Without any, those
    /// whose primary group is that of the socket.
    #[arg(long, env = "CERTCTL_SIGNER_CLIENTS", value_delimiter = ',', value_parser = user)]
    pub signer_clients: Vec<u32>,

    /// Directory of the authorities' keys and certificates, one directory of mode 0700 for each issuer.
    #[arg(long, env = "CERTCTL_CA_DIR", default_value = "/var/lib/certctl/ca")]
    pub ca_dir: PathBuf,

    /// Common name of a root made here, for issuers whose configuration has none.
    #[arg(long, env = "CERTCTL_CA_COMMON_NAME", default_value = "CertCtl Local CA")]
    pub ca_common_name: String,

    /// Kind of the key of a root made here.
    #[arg(long, env = "CERTCTL_CA_KEY_ALGORITHM", value_enum, default_value = "ecdsa-p256")]
    pub ca_key_algorithm: CaKeyAlgorithm,

    /// How authorities with RSA keys sign: `pkcs1` (PKCS #1 v1.5) or `pss`, both with SHA-256.
    #[arg(long, env = "CERTCTL_CA_RSA_PADDING", value_enum, default_value = "pkcs1")]
    pub ca_rsa_padding: CaRsaPadding,

    /// Passphrase that seals the authorities' key files.
    #[arg(long, env = "CERTCTL_CA_KEY_PASSPHRASE", hide_env_values = true)]
    pub ca_key_passphrase: Option<Secret>,

    /// File that holds the passphrase.
    #[arg(long, env = "CERTCTL_CA_KEY_PASSPHRASE_FILE")]
    pub ca_key_passphrase_file: Option<PathBuf>,

    /// Certificate of an authority made elsewhere, for `iss-local`: PEM, followed by those above it.
    #[arg(long, env = "CERTCTL_CA_CERT_PATH")]
    pub ca_cert_path: Option<PathBuf>,

    /// Its private key: PEM of PKCS #1, SEC 1 or PKCS #8, sealed or not.
    #[arg(long, env = "CERTCTL_CA_KEY_PATH", requires = "ca_cert_path")]
    pub ca_key_path: Option<PathBuf>,

    /// PKCS #11 module of the token that has its private key, instead of a file: the vendor's library, which runs within
    /// the signer.
    #[arg(long, env = "CERTCTL_PKCS11_MODULE", requires_all = ["ca_cert_path", "pkcs11_token", "pkcs11_pin_file"], conflicts_with = "ca_key_path")]
    pub pkcs11_module: Option<PathBuf>,

    /// Label of the token.
    #[arg(long, env = "CERTCTL_PKCS11_TOKEN", requires = "pkcs11_module")]
    pub pkcs11_token: Option<String>,

    /// Label of the private key in the token. Label or id may be left out; what is told must name one key.
    #[arg(long, env = "CERTCTL_PKCS11_KEY_LABEL", requires = "pkcs11_module")]
    pub pkcs11_key_label: Option<String>,

    /// Id of the private key in the token, in hexadecimal.
    #[arg(long, env = "CERTCTL_PKCS11_KEY_ID", requires = "pkcs11_module")]
    pub pkcs11_key_id: Option<String>,

    /// File that holds the PIN of the token's user.
    #[arg(long, env = "CERTCTL_PKCS11_PIN_FILE", requires = "pkcs11_module")]
    pub pkcs11_pin_file: Option<PathBuf>,

    /// Directories that the module reads and writes besides those of the system, with commas between: where a software
    /// token keeps its objects.
    #[arg(
        long,
        env = "CERTCTL_PKCS11_PATHS",
        value_delimiter = ',',
        requires = "pkcs11_module"
    )]
    pub pkcs11_paths: Vec<PathBuf>,

    /// TCP ports that the module connects to, with commas between: of a module in the network.
    #[arg(
        long,
        env = "CERTCTL_PKCS11_PORTS",
        value_delimiter = ',',
        requires = "pkcs11_module"
    )]
    pub pkcs11_ports: Vec<u16>,

    /// What the process gives up at its start: `on` takes each measure that the kernel has, `required` refuses to start
    /// without one of them, `off` is for finding out why something does not work.
    #[arg(
        long = "signer-hardening",
        env = "CERTCTL_SIGNER_HARDENING",
        value_enum,
        default_value = "on"
    )]
    pub hardening: Hardening,

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

/// Kinds of keys that roots are made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CaKeyAlgorithm {
    /// ECDSA on P-256.
    EcdsaP256,
    /// ECDSA on P-384.
    EcdsaP384,
    /// RSA of 2048 bits.
    #[value(name = "rsa-2048")]
    Rsa2048,
    /// RSA of 3072 bits.
    #[value(name = "rsa-3072")]
    Rsa3072,
    /// RSA of 4096 bits.
    #[value(name = "rsa-4096")]
    Rsa4096,
    /// Ed25519; few clients know it.
    Ed25519,
}

impl From<CaKeyAlgorithm> for KeyFacts {
    fn from(kind: CaKeyAlgorithm) -> Self {
        let (algorithm, bits) = match kind {
            CaKeyAlgorithm::EcdsaP256 => (KeyAlgorithm::Ecdsa, 256),
            CaKeyAlgorithm::EcdsaP384 => (KeyAlgorithm::Ecdsa, 384),
            CaKeyAlgorithm::Rsa2048 => (KeyAlgorithm::Rsa, 2048),
            CaKeyAlgorithm::Rsa3072 => (KeyAlgorithm::Rsa, 3072),
            CaKeyAlgorithm::Rsa4096 => (KeyAlgorithm::Rsa, 4096),
            CaKeyAlgorithm::Ed25519 => (KeyAlgorithm::Ed25519, 256),
        };
        Self { algorithm, bits }
    }
}

/// How RSA keys pad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CaRsaPadding {
    /// RSASSA-PKCS1-v1_5
    Pkcs1,
    /// RSASSA-PSS
    Pss,
}

impl From<CaRsaPadding> for RsaPadding {
    fn from(padding: CaRsaPadding) -> Self {
        match padding {
            CaRsaPadding::Pkcs1 => Self::Pkcs1,
            CaRsaPadding::Pss => Self::Pss,
        }
    }
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

    /// Where the key of the brought authority is.
    pub(crate) fn brought_key(&self) -> Result<BroughtKey> {
        let Some(module) = &self.pkcs11_module else {
            let path = self.ca_key_path.clone();
            return path
                .map(BroughtKey::File)
                .context("CERTCTL_CA_CERT_PATH needs CERTCTL_CA_KEY_PATH or CERTCTL_PKCS11_MODULE beside it");
        };
        let id = self.pkcs11_key_id.as_ref().map(|id| hex::decode(id.replace(':', "")));
        ensure!(
            self.pkcs11_key_label.is_some() || id.is_some(),
            "CERTCTL_PKCS11_MODULE needs CERTCTL_PKCS11_KEY_LABEL or CERTCTL_PKCS11_KEY_ID"
        );
        let pin = secret_from(None, self.pkcs11_pin_file.clone())?;
        Ok(BroughtKey::Token(token::Place {
            module: module.clone(),
            token: self.pkcs11_token.clone().unwrap_or_default(),
            label: self.pkcs11_key_label.clone(),
            id: id.transpose().context("CERTCTL_PKCS11_KEY_ID is hexadecimal")?,
            pin: Secret::new(pin.context("CERTCTL_PKCS11_PIN_FILE is needed")?),
        }))
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
        config.ca_cert_path.as_ref().map(|_| config.brought_key()).transpose()?;
        Ok(config)
    }

    #[test]
    fn settings_are_read_or_refused() {
        let config = parsed(&["--ca-key-passphrase", "s3cret"]).unwrap();
        assert_eq!(config.leaf_validity, Duration::from_secs(90 * 86_400));
        assert!(!format!("{config:?}").contains("s3cret"));
        assert_eq!(KeyFacts::from(config.ca_key_algorithm), KeyFacts::P256);
        let config = parsed(&["--ca-key-algorithm", "rsa-3072", "--ca-rsa-padding", "pss"]).unwrap();
        assert_eq!(KeyFacts::from(config.ca_key_algorithm).to_string(), "RSA 3072");
        assert_eq!(RsaPadding::from(config.ca_rsa_padding), RsaPadding::Pss);
        for bad in [
            &["--ops-listen", "0.0.0.0:9081"][..],
            &["--public-url", "ftp://example.com"],
            &["--ca-key-path", "/ca.key"],
            &["--ca-cert-path", "/ca.pem"],
            &[
                "--ca-cert-path",
                "/ca.pem",
                "--pkcs11-module",
                "/m.so",
                "--pkcs11-token",
                "t",
            ],
            &[
                "--pkcs11-module",
                "/m.so",
                "--pkcs11-token",
                "t",
                "--pkcs11-pin-file",
                "/pin",
            ],
            &["--pkcs11-key-label", "ca"],
            &["--ca-key-algorithm", "rsa-1024"],
            &["--ca-rsa-padding", "none"],
            &["--ca-common-name", " "],
            &["--crl-lifetime", "0s"],
            &["--database-max-conns", "0"],
        ] {
            assert!(parsed(bad).is_err(), "{bad:?}");
        }
    }
}
