//! Certificates of an authority that certctl knows nothing of.

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use time::{Duration, OffsetDateTime};

use crate::world::BEGIN;

/// Somebody else's authority, with one intermediate below its root.
pub struct Authority {
    /// The root, PEM.
    pub root: String,
    /// The intermediate, PEM.
    pub intermediate: String,
    issuer: Issuer<'static, KeyPair>,
    key: KeyPair,
}

impl Authority {
    /// Makes one of this name.
    ///
    /// # Panics
    /// Keys cannot be made.
    pub fn new(name: &str) -> Self {
        let params = |name: String| {
            let mut params = dated(vec![], &name, 0, 3650);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            params
        };
        let (root_key, below_key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let root = params(format!("{name} Root"));
        let below = params(format!("{name} CA"));
        let root_pem = root.self_signed(&root_key).unwrap().pem();
        let root = Issuer::new(root, root_key);
        let intermediate = below.signed_by(&below_key, &root).unwrap().pem();
        Self {
            root: root_pem,
            intermediate,
            issuer: Issuer::new(below, below_key),
            // One key for all leaves: making keys is what takes time.
            key: KeyPair::generate().unwrap(),
        }
    }

    /// A certificate for these names, the first of which is its common name. It begins and ends so many days after the
    /// world begins.
    ///
    /// # Panics
    /// A name is none.
    pub fn leaf(&self, names: &[&str], from: i64, to: i64) -> String {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let common = names.first().cloned().unwrap_or_default();
        let leaf = dated(names, &common, from, to);
        leaf.signed_by(&self.key, &self.issuer).unwrap().pem()
    }

    /// The private key of the leaves, PEM.
    pub fn leaf_key(&self) -> String {
        self.key.serialize_pem()
    }
}

fn dated(names: Vec<String>, common: &str, from: i64, to: i64) -> CertificateParams {
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common);
    let begin = OffsetDateTime::from_unix_timestamp(BEGIN).unwrap();
    params.not_before = begin + Duration::days(from);
    params.not_after = begin + Duration::days(to);
    params
}
