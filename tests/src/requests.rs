//! Certification requests (RFC 2986), good and bad.

use std::process::Command;

use rcgen::{CertificateParams, DnType, KeyPair, SanType, string::Ia5String};

/// A request for a common name and DNS names, which are taken as they are.
pub fn request(common_name: &str, names: &[&str]) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let dns = |name: &&str| SanType::DnsName(Ia5String::try_from(*name).unwrap());
    params.subject_alt_names = names.iter().map(dns).collect();
    let key = KeyPair::generate().unwrap();
    params.serialize_request(&key).unwrap().pem().unwrap()
}

/// A request for one name with a new P-256 key.
pub fn good(name: &str) -> String {
    request(name, &[name])
}

/// The same, but the last octet of the signature is another.
pub fn with_bad_signature(name: &str) -> String {
    let block = pem::parse(good(name)).unwrap();
    let mut der = block.contents().to_vec();
    *der.last_mut().unwrap() ^= 1;
    pem::encode(&pem::Pem::new(block.tag(), der))
}

/// A request with an RSA key of any size, made by openssl.
pub fn rsa(bits: u32, name: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new("openssl")
        .args(["req", "-new", "-nodes", "-newkey", &format!("rsa:{bits}"), "-keyout"])
        .arg(dir.path().join("key"))
        .args([
            "-subj",
            &format!("/CN={name}"),
            "-addext",
            &format!("subjectAltName=DNS:{name}"),
        ])
        .output()
        .expect("openssl runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
