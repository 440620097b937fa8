//! Certification requests (PKCS #10, RFC 2986): what one asks for, read only after its signature is verified.

use std::borrow::Cow;

use certctl_model::key::{KeyFacts, KeyFingerprint};
use certctl_model::name::San;
use rcgen::{CertificateParams, DistinguishedName, DnType, PublicKeyData, SanType, SignatureAlgorithm, SigningKey};
use x509_parser::asn1_rs::Any;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME;
use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Version;

use crate::Der;
use crate::keys::{self, KeyPair};
use crate::name::{directory_string, san_from_general_name};
use crate::pem::{self, PemError};
use crate::public_key::{self, BadSignature};

/// A certification request whose signature was made by the key it carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificationRequest {
    der: Der,
    spki_der: Der,
    key: KeyFacts,
    common_name: Option<String>,
    sans: Vec<San>,
}

/// Why a certification request is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// It is longer than any request we serve.
    #[error("the certification request has {0} bytes; at most {MAX_BYTES} are accepted")]
    TooLarge(usize),
    /// It is not armoured as it should be.
    #[error("the certification request is not PEM: {0}; exactly one block CERTIFICATE REQUEST is needed")]
    NotPem(String),
    /// The bytes are no request.
    #[error("the certification request is not a DER-encoded PKCS #10 request; send what `openssl req -new` makes")]
    NotDer,
    /// Its signature was not made by its key.
    #[error(
        "the signature of the certification request is wrong; sign the request with the private key of its public key"
    )]
    BadSignature,
    /// The key, or how it signed, cannot be used.
    #[error("the key of the certification request cannot be used: {0}")]
    UnsupportedKey(String),
    /// A name in it cannot be certified.
    #[error("the certification request asks for a name that cannot be certified: {0}")]
    BadName(String),
    /// A request of our own could not be made.
    #[error("the certification request could not be made: {0}")]
    NotMade(String),
}

/// Room for some hundred names and the largest keys.
const MAX_BYTES: usize = 64 * 1024;

impl CertificationRequest {
    /// Reads exactly one `CERTIFICATE REQUEST` (or `NEW CERTIFICATE REQUEST`) block.
    pub fn parse_pem(text: &str) -> Result<Self, CsrError> {
        let blocks = pem::decode_all(text, MAX_BYTES).map_err(|error| match error {
            PemError::TooLarge { found, .. } => CsrError::TooLarge(found),
            other => CsrError::NotPem(other.to_string()),
        })?;
        match blocks.as_slice() {
            [block] if matches!(block.label.as_str(), "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST") => {
                Self::parse_der(&block.der)
            }
            [block] => Err(CsrError::NotPem(format!(
                "the block is a \"{}\"",
                block.label.escape_debug()
            ))),
            blocks => Err(CsrError::NotPem(format!("{} blocks found", blocks.len()))),
        }
    }

    /// Reads DER.
    pub fn parse_der(der: &[u8]) -> Result<Self, CsrError> {
        if der.len() > MAX_BYTES {
            return Err(CsrError::TooLarge(der.len()));
        }
        let bytes = with_attributes(der);
        let csr = parsed(&bytes)?;
        let info = &csr.certification_request_info;
        // What was signed is what was sent.
        let signed = signed_part(der).ok_or(CsrError::NotDer)?;
        // RFC 2986 §4.1: there is no other version.
        if info.version != X509Version::V1 {
            return Err(CsrError::NotDer);
        }
        let key = public_key::key_facts(&info.subject_pki).map_err(CsrError::UnsupportedKey)?;
        public_key::verify(
            &info.subject_pki,
            &csr.signature_algorithm,
            signed,
            &csr.signature_value.data,
        )
        .map_err(|error| match error {
            BadSignature::Wrong => CsrError::BadSignature,
            BadSignature::Unsupported(why) => CsrError::UnsupportedKey(why),
        })?;
        public_key::must_not_be_weak(&info.subject_pki).map_err(CsrError::UnsupportedKey)?;
        Ok(Self {
            der: der.to_vec(),
            spki_der: info.subject_pki.raw.to_vec(),
            key,
            common_name: common_name(&csr)?,
            sans: sans(&csr)?,
        })
    }

    /// The request itself.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// DER of the SubjectPublicKeyInfo.
    pub fn spki_der(&self) -> &[u8] {
        &self.spki_der
    }

    /// Which key it carries.
    pub fn key_fingerprint(&self) -> KeyFingerprint {
        keys::fingerprint(&self.spki_der)
    }

    /// Kind and size of the key. Sizes below a profile's are reported, not refused.
    pub fn key(&self) -> KeyFacts {
        self.key
    }

    /// The common name of the subject, as written: printable ASCII. Other attributes of the subject are not read.
    pub fn common_name(&self) -> Option<&str> {
        self.common_name.as_deref()
    }

    /// The subject alternative names in their order. What stands in a `dNSName` is typed by its text, since some
    /// clients write addresses and e-mails there.
    pub fn sans(&self) -> &[San] {
        &self.sans
    }
}

/// DER of the SubjectPublicKeyInfo of a request that was accepted before: its signature is not verified again.
///
/// # Errors
/// When the octets are no request.
pub fn spki_of_accepted(der: &[u8]) -> Result<Der, CsrError> {
    let bytes = with_attributes(der);
    let csr = parsed(&bytes)?;
    Ok(csr.certification_request_info.subject_pki.raw.to_vec())
}

fn parsed(der: &[u8]) -> Result<X509CertificationRequest<'_>, CsrError> {
    match X509CertificationRequest::from_der(der) {
        Ok(([], csr)) => Ok(csr),
        _ => Err(CsrError::NotDer),
    }
}

/// The CertificationRequestInfo (RFC 2986 §4.1) as it was signed.
fn signed_part(der: &[u8]) -> Option<&[u8]> {
    let (_, request) = Any::from_der(der).ok()?;
    let (after, _) = Any::from_der(request.data).ok()?;
    request.data.get(..request.data.len() - after.len())
}

/// The request with empty attributes when it has none. RFC 2986 §4.1 has the field always; some clients leave it out,
/// and OpenSSL reads their requests.
fn with_attributes(der: &[u8]) -> Cow<'_, [u8]> {
    let add = || {
        let (rest, request) = Any::from_der(der).ok()?;
        let (after, info) = Any::from_der(request.data).ok()?;
        let (mut fields, mut count) = (info.data, 0);
        while !fields.is_empty() && count < 4 {
            fields = Any::from_der(fields).ok()?.0;
            count += 1;
        }
        let is_without = rest.is_empty() && count == 3 && fields.is_empty();
        let info = || sequence(&[info.data, &[0xa0, 0]].concat());
        is_without.then(|| sequence(&[&info(), after].concat()))
    };
    add().map_or(Cow::Borrowed(der), Cow::Owned)
}

/// DER of a SEQUENCE of less than 16 MiB with this content.
fn sequence(content: &[u8]) -> Der {
    let octets = content.len().to_be_bytes();
    let length = match content.len() {
        n @ 0..0x80 => vec![n as u8],
        0x80..0x100 => vec![0x81, octets[octets.len() - 1]],
        0x100..0x1_0000 => [&[0x82], &octets[octets.len() - 2..]].concat(),
        _ => [&[0x83], &octets[octets.len() - 3..]].concat(),
    };
    [&[0x30], &*length, content].concat()
}

/// Whether every name a request asks for is among the `allowed` ones; if not, says which is foreign.
pub fn names_within(common_name: Option<&str>, sans: &[San], allowed: &[San]) -> Result<(), String> {
    let foreign = |name: &str| {
        let allowed: Vec<_> = allowed.iter().map(San::to_string).collect();
        Err(format!(
            "the request asks for \"{}\", but only {} may be asked for",
            name.escape_debug(),
            allowed.join(", ")
        ))
    };
    if let Some(name) = common_name
        && !name.parse::<San>().is_ok_and(|name| allowed.contains(&name))
    {
        return foreign(name);
    }
    match sans.iter().find(|san| !allowed.contains(san)) {
        Some(san) => foreign(&san.to_string()),
        None => Ok(()),
    }
}

/// Makes a request signed by `key`: the subject holds the common name alone (nothing when it is empty), the
/// alternative names have their types.
pub fn generate(key: &KeyPair, common_name: &str, sans: &[San]) -> Result<Der, CsrError> {
    let not_made = |error: rcgen::Error| CsrError::NotMade(error.to_string());
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if !common_name.is_empty() {
        params.distinguished_name.push(DnType::CommonName, common_name);
    }
    for san in sans {
        params.subject_alt_names.push(match san {
            San::Dns(name) => SanType::DnsName(name.as_str().try_into().map_err(not_made)?),
            San::Email(text) => SanType::Rfc822Name(text.as_str().try_into().map_err(not_made)?),
            San::Uri(text) => SanType::URI(text.as_str().try_into().map_err(not_made)?),
            San::Ip(ip) => SanType::IpAddress(*ip),
            San::Foreign(text) => {
                return Err(CsrError::BadName(format!(
                    "\"{text}\" is not a name that can be certified"
                )));
            }
        });
    }
    let csr = params.serialize_request(&Requester(key)).map_err(not_made)?;
    Ok(csr.der().as_ref().to_vec())
}

fn common_name(csr: &X509CertificationRequest<'_>) -> Result<Option<String>, CsrError> {
    let mut names = csr.certification_request_info.subject.iter_common_name();
    let Some(name) = names.next() else { return Ok(None) };
    if names.next().is_some() {
        return Err(CsrError::BadName(
            "the subject has several common names; one is enough".to_owned(),
        ));
    }
    let text = directory_string(name).unwrap_or_default();
    if text.trim().is_empty() || !text.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
        let shown = String::from_utf8_lossy(name.as_slice());
        return Err(CsrError::BadName(format!(
            "the common name \"{}\" is not printable ASCII",
            shown.escape_debug()
        )));
    }
    Ok(Some(text))
}

fn sans(csr: &X509CertificationRequest<'_>) -> Result<Vec<San>, CsrError> {
    let requested = csr
        .certification_request_info
        .iter_attributes()
        .filter_map(|attribute| match attribute.parsed_attribute() {
            ParsedCriAttribute::ExtensionRequest(requested) => Some(&requested.extensions),
            _ => None,
        });
    let (mut found, mut seen) = (None, Vec::new());
    for extension in requested.flatten() {
        // RFC 5280 §4.2: no certificate has an extension twice, so nobody can mean that.
        if seen.contains(&&extension.oid) {
            return Err(CsrError::BadName(format!(
                "the extension {} stands twice; once is enough",
                extension.oid
            )));
        }
        seen.push(&extension.oid);
        if extension.oid == OID_X509_EXT_SUBJECT_ALT_NAME {
            found = Some(extension);
        }
    }
    let Some(extension) = found else {
        return Ok(Vec::new());
    };
    let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else {
        return Err(CsrError::BadName(
            "the subject alternative names cannot be read".to_owned(),
        ));
    };
    // RFC 5280 §4.2.1.6: at least one.
    if names.general_names.is_empty() {
        return Err(CsrError::BadName(
            "the subject alternative names are none; leave the extension out".to_owned(),
        ));
    }
    names
        .general_names
        .iter()
        .map(|name| san_as_meant(name).map_err(CsrError::BadName))
        .collect()
}

fn san_as_meant(name: &GeneralName<'_>) -> Result<San, String> {
    match name {
        GeneralName::DNSName(text) => text.parse().map_err(|error| format!("{error}")),
        other => san_from_general_name(other),
    }
}

/// Lends a key to the writer of requests.
struct Requester<'a>(&'a KeyPair);

impl PublicKeyData for Requester<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_bits()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        use certctl_model::key::KeyAlgorithm::{Ecdsa, Ed25519, Rsa};
        match (self.0.facts().algorithm, self.0.facts().bits) {
            (Ecdsa, 256) => &rcgen::PKCS_ECDSA_P256_SHA256,
            (Ecdsa, 384) => &rcgen::PKCS_ECDSA_P384_SHA384,
            (Ecdsa, _) => &rcgen::PKCS_ECDSA_P521_SHA512,
            (Rsa, _) => &rcgen::PKCS_RSA_SHA256,
            (Ed25519, _) => &rcgen::PKCS_ED25519,
            (other, _) => unreachable!("no {other} key is loaded"),
        }
    }
}

impl SigningKey for Requester<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message).map_err(|_| rcgen::Error::RingUnspecified)
    }
}

#[cfg(test)]
mod tests {
    use certctl_model::key::KeyAlgorithm;

    use super::*;
    use crate::testing::Scratch;

    fn sans(names: &[&str]) -> Vec<San> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    /// A request with names as its maker pleases.
    fn made(common_names: &str, names: Vec<SanType>) -> Der {
        let key = KeyPair::generate(KeyFacts::P256).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_names);
        params.subject_alt_names = names;
        params.serialize_request(&Requester(&key)).unwrap().der().to_vec()
    }

    #[test]
    fn a_request_of_every_kind_of_key_is_read_back_and_openssl_verifies_it() {
        let scratch = Scratch::new();
        let names = sans(&[
            "api.example.com",
            "10.0.0.1",
            "2001:db8::1",
            "ops@example.com",
            "spiffe://example.org/a",
        ]);
        for (algorithm, bits) in [
            (KeyAlgorithm::Ecdsa, 256),
            (KeyAlgorithm::Ecdsa, 384),
            (KeyAlgorithm::Rsa, 2048),
            (KeyAlgorithm::Ed25519, 256),
        ] {
            let key = KeyPair::generate(KeyFacts { algorithm, bits }).unwrap();
            let der = generate(&key, "api.example.com", &names).unwrap();
            let csr = CertificationRequest::parse_pem(&pem::encode("CERTIFICATE REQUEST", &der)).unwrap();
            assert_eq!(
                (csr.der(), csr.spki_der(), csr.key()),
                (der.as_slice(), key.spki_der(), key.facts())
            );
            assert_eq!(
                (csr.common_name(), csr.sans()),
                (Some("api.example.com"), names.as_slice())
            );
            let file = scratch.write("csr.der", &der);
            scratch.openssl(&["req", "-in", &file, "-inform", "DER", "-verify", "-noout"]);
        }
    }

    #[test]
    fn requests_openssl_made_are_read_whatever_their_signature() {
        let scratch = Scratch::new();
        let (rsa, ecdsa) = (KeyAlgorithm::Rsa, KeyAlgorithm::Ecdsa);
        let kinds: [(&str, &[&str], _, _); 7] = [
            ("rsa:1024", &["-sha256"], rsa, 1024),
            ("rsa:2048", &["-sha384"], rsa, 2048),
            (
                "rsa:2048",
                &[
                    "-sha256",
                    "-sigopt",
                    "rsa_padding_mode:pss",
                    "-sigopt",
                    "rsa_pss_saltlen:32",
                ],
                rsa,
                2048,
            ),
            ("ec:P-256", &["-sha256"], ecdsa, 256),
            ("ec:P-384", &["-sha384"], ecdsa, 384),
            ("ec:P-521", &["-sha512"], ecdsa, 521),
            ("ed25519", &[], KeyAlgorithm::Ed25519, 256),
        ];
        for (key, options, algorithm, bits) in kinds {
            let mut arguments = vec![
                "req",
                "-new",
                "-nodes",
                "-keyout",
                "key.pem",
                "-subj",
                "/O=Acme/CN=A.example.com",
            ];
            arguments.extend([
                "-addext",
                "subjectAltName=DNS:A.example.com,DNS:10.0.0.1,DNS:ops@example.com",
            ]);
            let curve = key
                .strip_prefix("ec:")
                .map(|curve| format!("ec_paramgen_curve:{curve}"));
            match &curve {
                Some(curve) => arguments.extend(["-newkey", "ec", "-pkeyopt", curve]),
                None => arguments.extend(["-newkey", key]),
            }
            arguments.extend(options);
            let text = String::from_utf8(scratch.openssl(&arguments)).unwrap();
            let csr =
                CertificationRequest::parse_pem(&text).unwrap_or_else(|error| panic!("{key} {options:?}: {error}"));
            assert_eq!(csr.key(), KeyFacts { algorithm, bits }, "{key}");
            assert_eq!(csr.common_name(), Some("A.example.com"));
            assert_eq!(csr.sans(), sans(&["a.example.com", "10.0.0.1", "ops@example.com"]));
        }
    }

    #[test]
    fn bad_requests_are_refused_by_name() {
        let good = made("a.example.com", vec![]);
        let flipped = |at: usize| {
            let mut der = good.clone();
            der[at] ^= 1;
            der
        };
        let common_name = good.windows(13).position(|window| window == b"a.example.com").unwrap();
        let dns = |text: &str| vec![SanType::DnsName(text.try_into().unwrap())];
        let not_der = |error: &CsrError| *error == CsrError::NotDer;
        let bad_signature = |error: &CsrError| *error == CsrError::BadSignature;
        let bad_name = |error: &CsrError| matches!(error, CsrError::BadName(_));
        type Case<'a> = (&'a str, Der, &'a dyn Fn(&CsrError) -> bool);
        let cases: [Case<'_>; 13] = [
            ("nothing", vec![], &not_der),
            ("half of it", good[..good.len() / 2].to_vec(), &not_der),
            ("trailing bytes", [good.as_slice(), &[0]].concat(), &not_der),
            ("noise", vec![0x30; 300], &not_der),
            ("huge", vec![0x30; MAX_BYTES + 1], &|error| {
                *error == CsrError::TooLarge(MAX_BYTES + 1)
            }),
            ("another name than signed", flipped(common_name), &bad_signature),
            ("another signature", flipped(good.len() - 1), &bad_signature),
            (
                "NUL in a SAN",
                made("a.example.com", dns("a.example.com\0.evil.com")),
                &bad_name,
            ),
            ("empty SAN", made("a.example.com", dns("")), &bad_name),
            ("space in a SAN", made("a.example.com", dns("a b")), &bad_name),
            ("NUL in the common name", made("a\0b", vec![]), &bad_name),
            ("common name beyond ASCII", made("bücher.example", vec![]), &bad_name),
            ("empty common name", made("", vec![]), &bad_name),
        ];
        for (what, der, is_right) in cases {
            let error = CertificationRequest::parse_der(&der).expect_err(what);
            assert!(is_right(&error), "{what}: {error}");
        }
    }

    #[test]
    fn requests_with_sha1_or_an_exotic_curve_say_what_would_be_right() {
        let scratch = Scratch::new();
        let request = [
            "req",
            "-new",
            "-nodes",
            "-keyout",
            "key.pem",
            "-subj",
            "/CN=a.example.com",
        ];
        for kind in [
            &["-newkey", "rsa:2048", "-sha1"][..],
            &["-newkey", "rsa:512", "-sha256"],
            &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp256k1"],
        ] {
            let text = String::from_utf8(scratch.openssl(&[&request, kind].concat())).unwrap();
            let error = CertificationRequest::parse_pem(&text).unwrap_err();
            assert!(matches!(error, CsrError::UnsupportedKey(_)), "{kind:?}: {error}");
        }
    }

    #[test]
    fn exactly_one_block_of_the_right_kind_is_needed() {
        let csr = pem::encode("NEW CERTIFICATE REQUEST", &made("a.example.com", vec![]));
        assert!(CertificationRequest::parse_pem(&csr).is_ok());
        for text in ["", "hello", &format!("{csr}{csr}"), &pem::encode("CERTIFICATE", &[1])] {
            assert!(
                matches!(CertificationRequest::parse_pem(text), Err(CsrError::NotPem(_))),
                "{text}"
            );
        }
        assert_eq!(
            CertificationRequest::parse_pem(&"x".repeat(5_000_000)),
            Err(CsrError::TooLarge(5_000_000))
        );
    }

    #[test]
    fn only_allowed_names_may_be_asked_for() {
        let allowed = sans(&["a.example.com", "10.0.0.1"]);
        let check = |common_name, names: &[&str]| names_within(common_name, &sans(names), &allowed);
        assert_eq!(check(Some("A.Example.com"), &["A.EXAMPLE.COM", "10.0.0.1"]), Ok(()));
        assert_eq!(check(None, &[]), Ok(()));
        assert!(
            check(Some("b.example.com"), &[])
                .unwrap_err()
                .contains("\"b.example.com\"")
        );
        assert!(
            check(Some("a.example.com"), &["evil.com"])
                .unwrap_err()
                .contains("\"evil.com\"")
        );
        assert!(check(Some("no name"), &[]).is_err());
    }
}
