//! NGINX: a certificate file, a chain file and a key file, a check and a reload.

use certctl_model::connector::NginxConfig;
use zeroize::Zeroizing;

use super::Target;
use crate::bundle::Bundle;
use crate::deploy::{Plan, Verify, Write};
use crate::program::Argv;

pub(super) struct Nginx(pub(super) NginxConfig);

impl Target for Nginx {
    fn plan(&self, bundle: &Bundle) -> Plan {
        let Self(config) = self;
        let write = |path: &str, bytes: &str, mode| Write {
            path: path.into(),
            bytes: Zeroizing::new(bytes.as_bytes().to_vec()),
            mode,
        };
        let server_name = match config.verify_server_name.as_str() {
            "" => bundle.server_name(),
            name => name.to_owned(),
        };
        let verify = Verify {
            address: config.verify_address.clone(),
            server_name,
            fingerprint: bundle.fingerprint().to_owned(),
            key: bundle.key_algorithm(),
        };
        Plan {
            writes: vec![
                write(&config.cert_path, &bundle.served_pem(), 0o644),
                write(&config.chain_path, &bundle.chain_pem(), 0o644),
                write(&config.key_path, bundle.key_pem(), 0o600),
            ],
            validate: Argv::split(&config.validate_command),
            reload: Argv::split(&config.reload_command),
            verify: (!config.verify_address.is_empty()).then_some(verify),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::testing::{DEMO, bundle};

    fn config() -> NginxConfig {
        NginxConfig {
            cert_path: "/etc/tls/a.pem".into(),
            chain_path: "/etc/tls/a-chain.pem".into(),
            key_path: "/etc/tls/a.key".into(),
            validate_command: "nginx -t".into(),
            reload_command: "nginx -s reload".into(),
            verify_address: String::new(),
            verify_server_name: String::new(),
            endpoints: vec![],
            placeholder: false,
        }
    }

    #[test]
    fn the_plan_has_the_leaf_with_its_intermediates_the_whole_chain_and_the_key() {
        let bundle = bundle();
        let plan = Nginx(config()).plan(&bundle);
        let text = |write: &Write| String::from_utf8(write.bytes.to_vec()).unwrap();
        let paths: Vec<_> = plan
            .writes
            .iter()
            .map(|write| (write.path.to_str().unwrap(), write.mode))
            .collect();
        assert_eq!(
            paths,
            [
                ("/etc/tls/a.pem", 0o644),
                ("/etc/tls/a-chain.pem", 0o644),
                ("/etc/tls/a.key", 0o600)
            ]
        );
        // The chain is the root alone, which servers do not send.
        assert_eq!(text(&plan.writes[0]).matches("BEGIN CERTIFICATE").count(), 1);
        assert_eq!(text(&plan.writes[1]), bundle.chain_pem());
        assert!(text(&plan.writes[2]).starts_with("-----BEGIN PRIVATE KEY-----"));
        assert_eq!(
            (plan.validate, plan.reload),
            (Argv::split("nginx -t"), Argv::split("nginx -s reload"))
        );
        assert_eq!(plan.verify, None);
    }

    #[test]
    fn the_served_certificate_is_looked_at_where_the_target_says() {
        let bundle = bundle();
        for (name, sent) in [("", DEMO), ("other.example", "other.example")] {
            let config = NginxConfig {
                verify_address: "127.0.0.1:443".into(),
                verify_server_name: name.into(),
                ..config()
            };
            let verify = Nginx(config).plan(&bundle).verify.unwrap();
            assert_eq!(verify.server_name, sent);
            assert_eq!(
                (verify.address.as_str(), verify.fingerprint.as_str()),
                ("127.0.0.1:443", bundle.fingerprint())
            );
        }
    }
}
