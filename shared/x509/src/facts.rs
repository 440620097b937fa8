//! What a certificate says.

use certctl_model::key::KeyFacts;
use certctl_model::name::San;
use certctl_model::serial::Serial;
use certctl_model::time::Time;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME;
use x509_parser::prelude::FromDer;

use crate::Der;
use crate::dn;
use crate::keys::{KeyPair, sha256_hex};
use crate::name::{directory_string, recorded_san, serial_of};
use crate::pem::{self, PemError};
use crate::public_key::{self, BadSignature};

/// The contents of one certificate (RFC 5280 §4), as far as we ask for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// The certificate itself.
    pub der: Der,
    /// Its serial number.
    pub serial: Serial,
    /// The first instant of its validity.
    pub not_before: Time,
    /// The last instant of its validity.
    pub not_after: Time,
    /// The subject as text (RFC 4514): `CN=a,O=b`.
    pub subject: String,
    /// DER of the subject.
    pub subject_der: Der,
    /// The issuer as text.
    pub issuer: String,
    /// DER of the issuer.
    pub issuer_der: Der,
    /// The first common name of the subject.
    pub common_name: Option<String>,
    /// The subject alternative names; those that cannot be certified here are [`San::Foreign`].
    pub sans: Vec<San>,
    /// Kind and size of its key.
    pub key: KeyFacts,
    /// DER of the SubjectPublicKeyInfo.
    pub spki_der: Der,
    /// SHA-256 of the SubjectPublicKeyInfo, lower-case hex.
    pub spki_sha256: String,
    /// SHA-256 of the certificate, lower-case hex.
    pub fingerprint: String,
    /// Whether basicConstraints says CA:TRUE.
    pub is_ca: bool,
    /// The keyUsage bits; absent when the extension is.
    pub key_usage: Option<KeyUsage>,
    /// The extended key usages as dotted object identifiers, sorted.
    pub ekus: Vec<String>,
    /// The subject key identifier.
    pub subject_key_id: Option<Vec<u8>>,
    /// The key identifier of the authority key identifier.
    pub authority_key_id: Option<Vec<u8>>,
    /// What keeps the certificate from being one that is accepted here as an issuer's, an endpoint's or our own. Empty
    /// unless it was read by [`CertificateFacts::inventory_der`].
    pub defects: Vec<FactsError>,
}

/// The keyUsage bits (RFC 5280 §4.2.1.3) that decide something here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyUsage {
    /// digitalSignature
    pub digital_signature: bool,
    /// keyEncipherment
    pub key_encipherment: bool,
    /// keyCertSign
    pub key_cert_sign: bool,
    /// cRLSign
    pub crl_sign: bool,
}

/// Why bytes are not a certificate we understand.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FactsError {
    /// It is longer than any certificate we read.
    #[error("the certificate has {0} bytes; at most {MAX_DER} are accepted")]
    TooLarge(usize),
    /// The armour is broken.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// The text holds no block `CERTIFICATE`.
    #[error("no certificate found; at least one block CERTIFICATE is needed")]
    Empty,
    /// The bytes are not DER of a certificate.
    #[error("the certificate cannot be read: {0}")]
    Malformed(&'static str),
    /// Its key is of a kind we do not know.
    #[error("the key of the certificate cannot be used: {0}")]
    UnsupportedKey(String),
}

/// id-kp-serverAuth (RFC 5280 §4.2.1.12).
const SERVER_AUTH: &str = "1.3.6.1.5.5.7.3.1";
const MAX_DER: usize = 64 * 1024;
const MAX_PEM: usize = 1024 * 1024;

impl CertificateFacts {
    /// Reads DER.
    pub fn parse_der(der: &[u8]) -> Result<Self, FactsError> {
        let mut facts = Self::inventory_der(der)?;
        match facts.defects.is_empty() {
            true => Ok(facts),
            false => Err(facts.defects.swap_remove(0)),
        }
    }

    /// Reads DER of a certificate from elsewhere: an inventory has to hold what exists. Serial numbers, keys and
    /// extensions that break RFC 5280 are recorded, with what is wrong in [`defects`](Self::defects).
    pub fn inventory_der(der: &[u8]) -> Result<Self, FactsError> {
        let certificate = parsed(der)?;
        let spki = certificate.public_key();
        let common_name = certificate.subject().iter_common_name().next();
        let mut facts = Self {
            der: der.to_vec(),
            serial: Serial::recorded(certificate.raw_serial())
                .map_err(|_| FactsError::Malformed("its serial number is longer than 64 octets"))?,
            not_before: Time::from_unix(certificate.validity().not_before.timestamp()),
            not_after: Time::from_unix(certificate.validity().not_after.timestamp()),
            subject: dn::to_text(certificate.subject()),
            subject_der: certificate.subject().as_raw().to_vec(),
            issuer: dn::to_text(certificate.issuer()),
            issuer_der: certificate.issuer().as_raw().to_vec(),
            common_name: common_name.and_then(directory_string),
            sans: Vec::new(),
            key: public_key::recorded_key_facts(spki),
            spki_der: spki.raw.to_vec(),
            spki_sha256: sha256_hex(spki.raw),
            fingerprint: sha256_hex(der),
            is_ca: false,
            key_usage: None,
            ekus: Vec::new(),
            subject_key_id: None,
            authority_key_id: None,
            defects: Vec::new(),
        };
        if serial_of(certificate.raw_serial()).is_none() {
            let defect = FactsError::Malformed("its serial number is not positive, or too long");
            facts.defects.push(defect);
        }
        if let Err(why) = public_key::key_facts(spki) {
            facts.defects.push(FactsError::UnsupportedKey(why));
        }
        for extension in certificate.extensions() {
            facts.read(extension.parsed_extension());
            let is_broken = matches!(extension.parsed_extension(), ParsedExtension::ParseError { .. });
            if is_broken && extension.oid == OID_X509_EXT_SUBJECT_ALT_NAME {
                // The names are unknown, which is not the same as none.
                facts
                    .sans
                    .push(San::recorded("subject alternative names that cannot be read"));
            }
        }
        Ok(facts)
    }

    /// Reads every block `CERTIFICATE` of a PEM text, in its order; other blocks are passed over.
    ///
    /// # Errors
    /// When there is none, or one cannot be read.
    pub fn parse_pem_chain(text: &str) -> Result<Vec<Self>, FactsError> {
        let blocks = pem::decode_all(text, MAX_PEM)?;
        let certificates = blocks.iter().filter(|block| block.label == "CERTIFICATE");
        let chain = certificates
            .map(|block| Self::parse_der(&block.der))
            .collect::<Result<Vec<_>, _>>()?;
        if chain.is_empty() {
            Err(FactsError::Empty)
        } else {
            Ok(chain)
        }
    }

    /// The certificate as PEM.
    pub fn to_pem(&self) -> String {
        pem::encode("CERTIFICATE", &self.der)
    }

    /// Whether it is the certificate of a server although it is self-signed and may have CA:TRUE, as some tools mark every
    /// self-signed certificate. A root certificate has neither host names nor a purpose.
    pub fn is_self_signed_server(&self) -> bool {
        let is_host = |name: &San| matches!(name, San::Dns(_) | San::Ip(_));
        let signs = self.key_usage.is_some_and(|usage| usage.key_cert_sign);
        let common_name = self.common_name.as_deref().map(San::recorded);
        let named_as_host = common_name.is_some_and(|name| is_host(&name) && name.to_string().contains('.'));
        self.issuer_der == self.subject_der
            && (self.sans.iter().any(is_host)
                || self.ekus.iter().any(|eku| eku == SERVER_AUTH)
                || named_as_host && !signs)
    }

    /// Whether the certificate is for this key.
    pub fn pairs_with(&self, key: &KeyPair) -> bool {
        self.spki_der == key.spki_der()
    }

    /// Checks that `issuer` is named as the issuer and made the signature. Says nothing of dates or extensions.
    pub fn verify_issued_by(&self, issuer: &CertificateFacts) -> Result<(), String> {
        if self.issuer_der != issuer.subject_der {
            return Err(format!(
                "it was issued by \"{}\", not by \"{}\"",
                self.issuer, issuer.subject
            ));
        }
        let own = parsed(&self.der).map_err(|error| error.to_string())?;
        let above = parsed(&issuer.der).map_err(|error| error.to_string())?;
        let signed = own.tbs_certificate.as_ref();
        public_key::verify(
            above.public_key(),
            &own.signature_algorithm,
            signed,
            &own.signature_value.data,
        )
        .map_err(|error| match error {
            BadSignature::Wrong => format!("its signature was not made by the key of \"{}\"", issuer.subject),
            BadSignature::Unsupported(why) => why,
        })
    }

    /// Checks that its key signed `message`, as [`KeyPair::sign`] does: ECDSA with the digest of the curve's size, RSA
    /// PKCS #1 v1.5 with SHA-256, or Ed25519.
    pub fn verify_signed(&self, message: &[u8], signature: &[u8]) -> Result<(), String> {
        let own = parsed(&self.der).map_err(|error| error.to_string())?;
        match public_key::verify_plain(own.public_key(), message, signature) {
            Ok(()) => Ok(()),
            Err(BadSignature::Wrong) => Err("was not made by the key of the certificate over these octets".to_owned()),
            Err(BadSignature::Unsupported(why)) => Err(why),
        }
    }

    fn read(&mut self, extension: &ParsedExtension<'_>) {
        match extension {
            ParsedExtension::SubjectAlternativeName(names) => {
                self.sans = names.general_names.iter().map(recorded_san).collect();
            }
            ParsedExtension::BasicConstraints(constraints) => self.is_ca = constraints.ca,
            ParsedExtension::KeyUsage(usage) => {
                self.key_usage = Some(KeyUsage {
                    digital_signature: usage.digital_signature(),
                    key_encipherment: usage.key_encipherment(),
                    key_cert_sign: usage.key_cert_sign(),
                    crl_sign: usage.crl_sign(),
                });
            }
            ParsedExtension::ExtendedKeyUsage(usage) => {
                let known = [
                    (usage.any, "2.5.29.37.0"),
                    (usage.server_auth, "1.3.6.1.5.5.7.3.1"),
                    (usage.client_auth, "1.3.6.1.5.5.7.3.2"),
                    (usage.code_signing, "1.3.6.1.5.5.7.3.3"),
                    (usage.email_protection, "1.3.6.1.5.5.7.3.4"),
                    (usage.time_stamping, "1.3.6.1.5.5.7.3.8"),
                    (usage.ocsp_signing, "1.3.6.1.5.5.7.3.9"),
                ];
                self.ekus = known
                    .iter()
                    .filter(|(set, _)| *set)
                    .map(|(_, oid)| (*oid).to_owned())
                    .collect();
                self.ekus.extend(usage.other.iter().map(ToString::to_string));
                self.ekus.sort();
            }
            ParsedExtension::SubjectKeyIdentifier(id) => self.subject_key_id = Some(id.0.to_vec()),
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                self.authority_key_id = id.key_identifier.as_ref().map(|id| id.0.to_vec());
            }
            ParsedExtension::ParseError { .. } => {
                self.defects
                    .push(FactsError::Malformed("one of its extensions is broken"));
            }
            _ => {}
        }
    }
}

/// Parses one certificate and nothing behind it.
pub(crate) fn parsed(der: &[u8]) -> Result<X509Certificate<'_>, FactsError> {
    if der.len() > MAX_DER {
        return Err(FactsError::TooLarge(der.len()));
    }
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(FactsError::Malformed("bytes follow it")),
        Err(_) => Err(FactsError::Malformed("it is not DER of an X.509 certificate")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    /// A root and a leaf of it, with the leaf's key.
    fn chain(scratch: &Scratch) -> (CertificateFacts, CertificateFacts, KeyPair) {
        scratch.write(
            "leaf.cnf",
            b"basicConstraints=CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth,1.2.3.4\n\
              subjectAltName=DNS:a.example.com,IP:10.0.0.1,email:ops@example.com,URI:spiffe://example.org/a\n\
              authorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n",
        );
        let ec = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let usage = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"];
        scratch.openssl(
            &[
                &[
                    "req",
                    "-x509",
                    "-keyout",
                    "ca.key",
                    "-out",
                    "ca.pem",
                    "-subj",
                    "/O=Acme/CN=Root",
                    "-days",
                    "30",
                ][..],
                &ec,
                &usage,
            ]
            .concat(),
        );
        scratch.openssl(
            &[
                &[
                    "req",
                    "-new",
                    "-keyout",
                    "leaf.key",
                    "-out",
                    "leaf.csr",
                    "-subj",
                    "/CN=a.example.com",
                ][..],
                &ec,
            ]
            .concat(),
        );
        let leaf = scratch.openssl(&[
            "x509",
            "-req",
            "-in",
            "leaf.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-set_serial",
            "0x00F0ba",
            "-days",
            "10",
            "-extfile",
            "leaf.cnf",
        ]);
        let read = |name: &str| std::fs::read_to_string(scratch.path(name)).unwrap();
        let mut both =
            CertificateFacts::parse_pem_chain(&(String::from_utf8(leaf).unwrap() + &read("ca.pem"))).unwrap();
        let key = KeyPair::from_pem(&read("leaf.key"), None).unwrap();
        let root = both.pop().unwrap();
        (root, both.pop().unwrap(), key)
    }

    #[test]
    fn a_certificate_says_what_openssl_put_into_it() {
        let scratch = Scratch::new();
        let (root, leaf, key) = chain(&scratch);
        assert_eq!(leaf.serial.as_str(), "f0ba");
        assert_eq!(
            (leaf.subject.as_str(), leaf.issuer.as_str()),
            ("CN=a.example.com", "CN=Root,O=Acme")
        );
        assert_eq!(leaf.common_name.as_deref(), Some("a.example.com"));
        let sans: Vec<_> = leaf.sans.iter().map(San::to_string).collect();
        assert_eq!(
            sans,
            ["a.example.com", "10.0.0.1", "ops@example.com", "spiffe://example.org/a"]
        );
        assert_eq!(leaf.not_after.seconds_since(leaf.not_before), 10 * 86_400);
        assert_eq!(leaf.key, KeyFacts::P256);
        assert_eq!(leaf.ekus, ["1.2.3.4", "1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2"]);
        assert_eq!(leaf.authority_key_id, root.subject_key_id);
        assert!(leaf.subject_key_id.is_some() && root.is_ca && !leaf.is_ca);
        let usage = |facts: &CertificateFacts| {
            facts
                .key_usage
                .map(|usage| (usage.digital_signature, usage.key_cert_sign, usage.crl_sign))
        };
        assert_eq!(
            (usage(&leaf), usage(&root)),
            (Some((true, false, false)), Some((false, true, true)))
        );
        let file = scratch.write("leaf.pem", leaf.to_pem().as_bytes());
        let printed =
            String::from_utf8(scratch.openssl(&["x509", "-in", &file, "-noout", "-fingerprint", "-sha256"])).unwrap();
        let printed = printed
            .trim()
            .split_once('=')
            .unwrap()
            .1
            .replace(':', "")
            .to_lowercase();
        assert_eq!(leaf.fingerprint, printed);
        assert!(leaf.pairs_with(&key) && !root.pairs_with(&key));
        assert_eq!(leaf.spki_sha256, key.spki_sha256());
    }

    #[test]
    fn who_issued_what_is_a_matter_of_names_and_signatures() {
        let (root, leaf, _) = chain(&Scratch::new());
        let (namesake, ..) = chain(&Scratch::new());
        assert_eq!(leaf.verify_issued_by(&root), Ok(()));
        assert_eq!(root.verify_issued_by(&root), Ok(()));
        assert!(leaf.verify_issued_by(&namesake).unwrap_err().contains("signature"));
        assert!(root.verify_issued_by(&leaf).unwrap_err().contains("not by"));
    }

    #[test]
    fn an_inventory_holds_certificates_that_break_the_standard() {
        let scratch = Scratch::new();
        let made = |args: &[&str]| {
            let base = [
                "req", "-x509", "-nodes", "-keyout", "k.pem", "-days", "9", "-outform", "DER",
            ];
            CertificateFacts::inventory_der(&scratch.openssl(&[&base[..], args].concat())).unwrap()
        };
        let p256 = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
        let negative = made(&[&p256[..], &["-subj", "/CN=a.example.com", "-set_serial", "-5"]].concat());
        assert_eq!((negative.serial.as_str(), negative.defects.len()), ("-5", 1));
        assert!(CertificateFacts::parse_der(&negative.der).is_err());
        let brainpool = made(&[
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:brainpoolP256r1",
            "-subj",
            "/CN=b.example.com",
        ]);
        assert_eq!(brainpool.key.to_string(), "Other 256");
        let names = "subjectAltName=DNS:c.example.com,DNS:c.example.com.,DNS:f*.example.com,RID:1.2.3";
        let named = made(&[&p256[..], &["-subj", "/CN=c.example.com", "-addext", names]].concat());
        let sans: Vec<_> = named.sans.iter().map(San::to_string).collect();
        assert_eq!(
            sans,
            [
                "c.example.com",
                "c.example.com.",
                "f*.example.com",
                "registeredID 1.2.3"
            ]
        );
        assert!(named.is_ca && named.is_self_signed_server() && named.defects.is_empty());
        let root = made(&[&p256[..], &["-subj", "/O=Acme/CN=Acme Root"]].concat());
        assert!(root.is_ca && !root.is_self_signed_server());
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        let (root, ..) = chain(&Scratch::new());
        let check = |der: &[u8]| CertificateFacts::parse_der(der).unwrap_err();
        assert!(matches!(check(&[]), FactsError::Malformed(_)));
        assert!(matches!(check(&root.der[..100]), FactsError::Malformed(_)));
        assert!(matches!(
            check(&[root.der.as_slice(), &[0]].concat()),
            FactsError::Malformed(_)
        ));
        assert_eq!(check(&vec![0; MAX_DER + 1]), FactsError::TooLarge(MAX_DER + 1));
        assert_eq!(CertificateFacts::parse_pem_chain(""), Err(FactsError::Empty));
    }
}
