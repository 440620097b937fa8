//! A self-signed pair for a target that has no certificate yet: a server that needs the files to start can be started.

use std::time::Duration;

use certctl_model::connector::TargetConfig;
use certctl_model::time::Time;
use certctl_x509::facts::CertificateFacts;
use rcgen::{CertificateParams, DnType, KeyPair};
use zeroize::Zeroizing;

use crate::deploy::{Plan, Write};

/// The common name by which a placeholder is known.
const COMMON_NAME: &str = "certctl placeholder";
/// Long enough for the clocks of clients that look at it; no client trusts it anyway.
const LIFE: Duration = Duration::from_secs(86_400);

/// Files for a target, without any command. An error says why there are none.
pub(crate) fn plan(config: &TargetConfig, now: Time) -> Result<Plan, String> {
    let TargetConfig::Nginx(nginx) = config;
    let text = |error: rcgen::Error| format!("cannot make a placeholder: {error}");
    let name = match nginx.verify_server_name.as_str() {
        "" => "placeholder.invalid",
        name => name,
    };
    let mut params = CertificateParams::new([name.to_owned()]).map_err(text)?;
    params.distinguished_name.push(DnType::CommonName, COMMON_NAME);
    params.not_before = now.date_time();
    params.not_after = (now + LIFE).date_time();
    let key = KeyPair::generate().map_err(text)?;
    let certificate = params.self_signed(&key).map_err(text)?.pem();
    let write = |path: &str, bytes: &str, mode| Write {
        path: path.into(),
        bytes: Zeroizing::new(bytes.as_bytes().to_vec()),
        mode,
    };
    let key = Zeroizing::new(key.serialize_pem());
    Ok(Plan {
        writes: vec![
            write(&nginx.cert_path, &certificate, 0o644),
            write(&nginx.chain_path, &certificate, 0o644),
            write(&nginx.key_path, &key, 0o600),
        ],
        ..Plan::default()
    })
}

/// Whether the content of a file is a placeholder.
pub(crate) fn is_one(content: &[u8]) -> bool {
    let chain = CertificateFacts::parse_pem_chain(&String::from_utf8_lossy(content));
    chain.is_ok_and(|chain| {
        chain.len() == 1
            && chain[0].subject_der == chain[0].issuer_der
            && chain[0].common_name.as_deref() == Some(COMMON_NAME)
    })
}

#[cfg(test)]
mod tests {
    use certctl_model::connector::TargetType;
    use serde_json::json;

    use super::*;
    use crate::bundle::testing::at;

    #[test]
    fn a_placeholder_is_a_pair_of_a_day_that_is_known_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.pem");
        let config = json!({ "cert_path": path, "verify_server_name": "a.example", "placeholder": true });
        let config = TargetConfig::read(TargetType::Nginx, &config).unwrap();
        let plan = plan(&config, at("2026-06-01T00:00:00Z")).unwrap();
        let modes: Vec<_> = plan.writes.iter().map(|write| write.mode).collect();
        assert_eq!(modes, [0o644, 0o644, 0o600]);
        let text = String::from_utf8(plan.writes[0].bytes.to_vec()).unwrap();
        let leaf = CertificateFacts::parse_pem_chain(&text).unwrap().remove(0);
        let key = String::from_utf8(plan.writes[2].bytes.to_vec()).unwrap();
        assert!(leaf.pairs_with(&certctl_x509::keys::KeyPair::from_pem(&key, None).unwrap()));
        assert_eq!(leaf.not_after, at("2026-06-02T00:00:00Z"));
        assert!(is_one(text.as_bytes()));
        assert!(!is_one(text.repeat(2).as_bytes()) && !is_one(key.as_bytes()));
    }
}
