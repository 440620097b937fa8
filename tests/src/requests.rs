//! Certification requests (RFC 2986), good, bad and crafted octet by octet.

use std::process::Command;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
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

/// A request as its maker pleases, signed over whatever it says.
pub struct Crafted {
    /// DER of the subject.
    pub subject: Vec<u8>,
    /// DER of the SubjectPublicKeyInfo, when it is not that of the key that signs.
    pub spki: Option<Vec<u8>>,
    /// Extensions that are asked for, each of them DER.
    pub extensions: Vec<Vec<u8>>,
    /// The version; requests have 0.
    pub version: u8,
    /// Whether the field of attributes is there, which RFC 2986 §4.1 demands.
    pub attributes: bool,
}

impl Crafted {
    /// A request with this common name that asks for these extensions.
    pub fn new(common_name: &str, extensions: Vec<Vec<u8>>) -> Self {
        let name = der(0x30, &[&[6, 3, 0x55, 4, 3], &*der(0x0c, &[common_name.as_bytes()])]);
        Self {
            subject: der(0x30, &[&der(0x31, &[&name])]),
            spki: None,
            extensions,
            version: 0,
            attributes: true,
        }
    }

    /// As PEM, signed with a new P-256 key.
    pub fn pem(&self) -> String {
        self.signed(
            |key, message| {
                let random = aws_lc_rs::rand::SystemRandom::new();
                key.sign(&random, message).unwrap().as_ref().to_vec()
            },
            &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2],
        )
    }

    /// As PEM, signed in any way; `algorithm` is the content of its identifier.
    pub fn signed(&self, sign: impl FnOnce(&EcdsaKeyPair, &[u8]) -> Vec<u8>, algorithm: &[u8]) -> String {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        let own = p256(key.public_key().as_ref());
        // extensionRequest (RFC 2985 §5.4.2).
        let wanted = der(0x30, &[&self.extensions.concat()]);
        let attribute = [
            &[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 14][..],
            &der(0x31, &[&wanted]),
        ];
        let attributes = match self.extensions.is_empty() {
            true if !self.attributes => vec![],
            true => der(0xa0, &[]),
            false => der(0xa0, &[&der(0x30, &attribute)]),
        };
        let info = der(
            0x30,
            &[
                &[2, 1, self.version],
                &*self.subject,
                self.spki.as_deref().unwrap_or(&own),
                &attributes,
            ],
        );
        let signature = [vec![0], sign(&key, &info)].concat();
        let request = der(0x30, &[&info, &der(0x30, &[algorithm]), &der(3, &[&signature])]);
        pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", request))
    }
}

/// An extension that asks for names: the tag of each (RFC 5280 §4.2.1.6) and its content.
pub fn alternative_names(names: &[(u8, &[u8])]) -> Vec<u8> {
    let names: Vec<_> = names.iter().map(|(tag, name)| der(0x80 | tag, &[name])).collect();
    extension(&[0x55, 0x1d, 0x11], &der(0x30, &[&names.concat()]))
}

/// An extension, not critical.
pub fn extension(oid: &[u8], value: &[u8]) -> Vec<u8> {
    der(0x30, &[&der(6, &[oid]), &der(4, &[value])])
}

/// A SubjectPublicKeyInfo that says it is on P-256.
pub fn p256(point: &[u8]) -> Vec<u8> {
    let algorithm = der(
        0x30,
        &[
            &[6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1],
            &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7],
        ],
    );
    der(0x30, &[&algorithm, &der(3, &[&[0], point])])
}

/// A SubjectPublicKeyInfo of an RSA key with these contents of its two INTEGERs.
pub fn rsa_key(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    let key = der(0x30, &[&der(2, &[modulus]), &der(2, &[exponent])]);
    let algorithm = der(0x30, &[RSA_ENCRYPTION, &[5, 0]]);
    der(0x30, &[&algorithm, &der(3, &[&[0], &key])])
}

const RSA_ENCRYPTION: &[u8] = &[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];

/// A tag, a definite length and contents (X.690 §8.1).
pub fn der(tag: u8, contents: &[&[u8]]) -> Vec<u8> {
    let contents = contents.concat();
    let length = contents.len().to_be_bytes();
    let significant = &length[length.iter().take_while(|octet| **octet == 0).count()..];
    let mut out = vec![tag];
    match contents.len() {
        short @ 0..128 => out.push(u8::try_from(short).expect("below 128")),
        _ => {
            out.push(0x80 | u8::try_from(significant.len()).expect("at most 8"));
            out.extend(significant);
        }
    }
    out.extend(contents);
    out
}
