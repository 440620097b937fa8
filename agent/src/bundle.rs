//! A certificate with its chain and its key: checked together before anything is written.

use std::time::Duration;

use certctl_model::key::KeyAlgorithm;
use certctl_model::name::San;
use certctl_model::time::Time;
use certctl_x509::facts::CertificateFacts;
use certctl_x509::keys::KeyPair;
use zeroize::Zeroizing;

/// A certificate and the chain above it, as the server hands them out.
#[derive(Debug)]
pub struct Issued {
    leaf: CertificateFacts,
    chain: Vec<CertificateFacts>,
}

impl Issued {
    /// Reads PEM, leaf first, and checks that the leaf is in date and was issued by what follows it.
    ///
    /// # Errors
    /// Says why the certificate must not be deployed.
    pub fn read(pem: &str, now: Time) -> Result<Self, String> {
        /// The clocks of two hosts differ.
        const SKEW: Duration = Duration::from_secs(300);
        /// A leaf with 2,000 names and its chain.
        const MAX_BYTES: usize = 512 * 1024;
        /// RFC 5246 and RFC 8446 set no limit; clients stop at about ten.
        const MAX_CERTIFICATES: usize = 16;
        if pem.len() > MAX_BYTES {
            return Err(format!(
                "the certificate and its chain are larger than {MAX_BYTES} bytes"
            ));
        }
        let blocks = pem.matches("-----BEGIN ").count();
        if blocks > MAX_CERTIFICATES {
            return Err(format!(
                "the chain has {blocks} certificates; at most {MAX_CERTIFICATES} are deployed"
            ));
        }
        let mut chain = CertificateFacts::parse_pem_chain(pem).map_err(|error| error.to_string())?;
        let leaf = chain.remove(0);
        if leaf.not_after <= now {
            return Err(format!("the certificate expired at {}", leaf.not_after));
        }
        if leaf.not_before > now + SKEW {
            return Err(format!(
                "the certificate is valid only from {}; is this host's clock right?",
                leaf.not_before
            ));
        }
        if let Some(issuer) = chain.first() {
            leaf.verify_issued_by(issuer)
                .map_err(|error| format!("the certificate does not fit its chain: {error}"))?;
        }
        Ok(Self { leaf, chain })
    }

    /// SHA-256 of the leaf's public key.
    pub fn spki_sha256(&self) -> &str {
        &self.leaf.spki_sha256
    }

    /// Joins the certificate with its key.
    ///
    /// # Errors
    /// It is another certificate's key.
    pub fn with_key(self, key: &KeyPair) -> Result<Bundle, String> {
        if !self.leaf.pairs_with(key) {
            return Err("the key does not belong to the certificate".to_owned());
        }
        let key_pem = key.to_pkcs8_pem().map_err(|error| error.to_string())?;
        Ok(Bundle { issued: self, key_pem })
    }
}

/// What goes to a target.
pub struct Bundle {
    issued: Issued,
    key_pem: Zeroizing<String>,
}

impl Bundle {
    /// What a server sends: the leaf and its intermediates. The root is left out, since whoever trusts it has it.
    pub fn served_pem(&self) -> String {
        let Issued { leaf, chain } = &self.issued;
        let intermediates = chain.iter().filter(|above| above.subject_der != above.issuer_der);
        std::iter::once(leaf)
            .chain(intermediates)
            .map(CertificateFacts::to_pem)
            .collect()
    }

    /// Everything above the leaf.
    pub fn chain_pem(&self) -> String {
        self.issued.chain.iter().map(CertificateFacts::to_pem).collect()
    }

    /// The private key, PKCS #8.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// SHA-256 of the leaf.
    pub fn fingerprint(&self) -> &str {
        &self.issued.leaf.fingerprint
    }

    /// The kind of the leaf's key.
    pub fn key_algorithm(&self) -> KeyAlgorithm {
        self.issued.leaf.key.algorithm
    }

    /// A name that a client might ask for, so that the server chooses this certificate; empty when there is none.
    pub fn server_name(&self) -> String {
        let leaf = &self.issued.leaf;
        let common_name = leaf.common_name.as_ref().and_then(|name| name.parse().ok());
        let names = common_name.iter().chain(&leaf.sans);
        let dns = names.filter_map(|name| match name {
            San::Dns(name) => Some(name.as_str()),
            _ => None,
        });
        // Any name below a wildcard will do.
        dns.map(|name| name.replacen('*', "certctl", 1))
            .next()
            .unwrap_or_default()
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use certctl_x509::csr;
    use rcgen::{BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, IsCa, Issuer};

    use super::*;

    pub(crate) const DEMO: &str = "demo.certctl.localhost";

    /// A leaf for `key` under a root that is made for it, valid from 2026 to 2027.
    pub(crate) fn issue(key: &KeyPair, name: &str) -> String {
        let mut root = CertificateParams::default();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.distinguished_name.push(DnType::CommonName, "root");
        let root_key = rcgen::KeyPair::generate().unwrap();
        let root_pem = root.self_signed(&root_key).unwrap().pem();
        let der = csr::generate(key, name, &[name.parse().unwrap()]).unwrap();
        let mut leaf = CertificateSigningRequestParams::from_der(&der.into()).unwrap();
        leaf.params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        leaf.params.not_after = rcgen::date_time_ymd(2027, 1, 1);
        leaf.signed_by(&Issuer::new(root, root_key)).unwrap().pem() + &root_pem
    }

    pub(crate) fn at(text: &str) -> Time {
        text.parse().unwrap()
    }

    pub(crate) fn key() -> KeyPair {
        KeyPair::generate(certctl_model::key::KeyFacts::P256).unwrap()
    }

    pub(crate) fn bundle() -> Bundle {
        let key = key();
        let issued = Issued::read(&issue(&key, DEMO), at("2026-06-01T00:00:00Z")).unwrap();
        issued.with_key(&key).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{DEMO, at, issue, key};
    use super::*;

    #[test]
    fn only_a_certificate_in_date_with_its_own_chain_and_key_is_deployed() {
        let own = key();
        let pem = issue(&own, DEMO);
        let summer = "2026-06-01T00:00:00Z";
        let leaf = pem.split_inclusive("-----END CERTIFICATE-----\n").next().unwrap();
        let foreign_chain = format!(
            "{leaf}{}",
            issue(&own, DEMO)
                .rsplit_once("-----BEGIN")
                .map(|(_, b)| format!("-----BEGIN{b}"))
                .unwrap()
        );
        for (pem, now, said) in [
            (pem.as_str(), "2025-12-31T23:00:00Z", "is this host's clock right?"),
            (&pem, "2027-01-01T00:00:00Z", "expired at 2027-01-01"),
            (&foreign_chain, summer, "does not fit its chain"),
            ("", summer, "no certificate found"),
            (&leaf.repeat(17), summer, "the chain has 17 certificates"),
            (&"x".repeat(600_000), summer, "larger than"),
            (&pem[..200], summer, "no matching END line"),
        ] {
            let error = Issued::read(pem, at(now)).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
        assert!(Issued::read(&pem, at("2025-12-31T23:59:00Z")).is_ok());
        assert!(Issued::read(leaf, at(summer)).is_ok());
        let error = Issued::read(&pem, at(summer)).unwrap().with_key(&key()).err().unwrap();
        assert_eq!(error, "the key does not belong to the certificate");
    }

    #[test]
    fn a_server_is_asked_for_a_name_that_chooses_the_certificate() {
        for (name, asked) in [(DEMO, DEMO), ("*.example.com", "certctl.example.com"), ("10.0.0.1", "")] {
            let key = key();
            let issued = Issued::read(&issue(&key, name), at("2026-06-01T00:00:00Z")).unwrap();
            assert_eq!(issued.with_key(&key).unwrap().server_name(), asked);
        }
    }
}
