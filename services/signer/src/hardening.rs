//! The files and ports that the signer keeps, before it holds a key.

use anyhow::{Context, Result};
use certctl_runtime::hardening::{self, Needs, directory_of};

use crate::config::Config;

/// Hardens the process as its settings say.
///
/// # Errors
/// A measure that is required and cannot be taken.
pub fn harden(config: &Config) -> Result<()> {
    hardening::harden("CERTCTL_SIGNER_HARDENING", config.hardening, &needs(config)?)
}

fn needs(config: &Config) -> Result<Needs> {
    let mut needs = Needs::of_every_service();
    let told = [
        &config.ca_cert_path,
        &config.ca_key_path,
        &config.ca_key_passphrase_file,
        &config.pkcs11_pin_file,
        &config.pkcs11_module,
    ];
    let (ports, certificates) = certctl_store::reaches(config.database_url.expose()).context("CERTCTL_DATABASE_URL")?;
    needs.read_files(told.into_iter().flatten().cloned().chain(certificates));
    needs.write_below(&config.ca_dir)?;
    needs.writes.push(directory_of(&config.signer_socket));
    needs.writes.extend(config.settings.failpoints.clone());
    needs.writes.extend(config.pkcs11_paths.iter().cloned());
    needs.connects = Some([config.pkcs11_ports.as_slice(), &ports].concat());
    needs.listens = vec![config.ops_listen.port()];
    needs.locks_memory = true;
    Ok(needs)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn what_it_needs_is_what_its_settings_name() {
        let directory = tempfile::tempdir().unwrap();
        let ca = directory.path().join("ca");
        let config = Config::parse_from([
            "certctl-signer",
            "--database-url",
            "postgres://signer@db:6543/certctl?sslrootcert=/srv/pki/root.pem",
            "--ca-dir",
            ca.to_str().unwrap(),
            "--signer-socket",
            "/run/certctl/signer.sock",
            "--ops-listen",
            "127.0.0.1:9081",
            "--ca-cert-path",
            "/srv/ca/ca.pem",
            "--ca-key-path",
            "/ca.key",
        ]);
        let needs = needs(&config).unwrap();
        assert_eq!((needs.connects, needs.listens), (Some(vec![6543]), vec![9081]));
        assert_eq!(needs.writes, [ca.clone(), "/run/certctl".into()]);
        for path in ["/srv/pki", "/srv/ca", "/ca.key", "/etc"] {
            assert!(needs.reads.contains(&path.into()), "{path}");
        }
        assert!(!needs.reads.contains(&"/".into()));
        assert!(ca.is_dir(), "the rule is for a directory that exists");
    }
}
