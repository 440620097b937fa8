//! Private keys: made here, loaded from PEM of any usual kind, written plain or sealed, and put to work.

use aws_lc_rs::digest::{self, Digest};
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::{self, SystemRandom};
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    self, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _, RsaEncoding, RsaKeyPair,
};
use certctl_model::key::{KeyAlgorithm, KeyFacts, KeyFingerprint};
use certctl_model::secret::Secret;
use pkcs8::pkcs5::pbes2;
use pkcs8::{EncryptedPrivateKeyInfo, PrivateKeyInfo};
use rasn_pkix::AlgorithmIdentifier;
use zeroize::Zeroizing;

use crate::Der;
use crate::pem::{self, Block, PemError};
use crate::scheme::{RsaPadding, Scheme};

/// A private key with its public half.
///
/// Cannot be printed, copied or compared; the memory of the key is wiped when it is dropped.
pub struct KeyPair {
    inner: Inner,
    facts: KeyFacts,
    scheme: Scheme,
    spki_der: Der,
}

enum Inner {
    Ecdsa(EcdsaKeyPair),
    Rsa(RsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

/// Why a key cannot be made, loaded or used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Such keys are not made or not understood.
    #[error("{0}; ECDSA P-256, P-384, P-521, RSA of 2048 to 8192 bits and Ed25519 are understood")]
    Unsupported(String),
    /// The armour is broken.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// The text holds no private key, or several.
    #[error("exactly one private key in PEM is needed, {0} found")]
    Count(usize),
    /// The bytes in the armour are no key.
    #[error("the private key cannot be read: {0}")]
    Malformed(&'static str),
    /// The key is sealed.
    #[error("the private key is sealed; its passphrase is needed")]
    PassphraseNeeded,
    /// The key is sealed with another passphrase, or its encryption scheme is not known.
    #[error("the private key does not open; the passphrase is wrong, or it is not sealed by PBES2 with AES-CBC")]
    DoesNotOpen,
    /// The cryptographic library failed.
    #[error("{0} failed in the cryptographic library")]
    Failed(&'static str),
}

/// A key file is a few kilobytes; more is something else.
const MAX_PEM: usize = 64 * 1024;

impl KeyPair {
    /// Makes a new key: ECDSA 256 or 384, RSA 2048, 3072 or 4096, Ed25519.
    ///
    /// RSA takes up to seconds: call it off the async threads.
    pub fn generate(facts: KeyFacts) -> Result<Self, KeyError> {
        let failed = |_| KeyError::Failed("making a key");
        let inner = match (facts.algorithm, facts.bits) {
            (KeyAlgorithm::Ecdsa, 256) => Inner::Ecdsa(EcdsaKeyPair::generate(CURVES[0].1).map_err(failed)?),
            (KeyAlgorithm::Ecdsa, 384) => Inner::Ecdsa(EcdsaKeyPair::generate(CURVES[1].1).map_err(failed)?),
            (KeyAlgorithm::Rsa, 2048) => Inner::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).map_err(failed)?),
            (KeyAlgorithm::Rsa, 3072) => Inner::Rsa(RsaKeyPair::generate(KeySize::Rsa3072).map_err(failed)?),
            (KeyAlgorithm::Rsa, 4096) => Inner::Rsa(RsaKeyPair::generate(KeySize::Rsa4096).map_err(failed)?),
            (KeyAlgorithm::Ed25519, _) => Inner::Ed25519(Ed25519KeyPair::generate().map_err(failed)?),
            _ => return Err(KeyError::Unsupported(format!("a key of kind {facts} is not made here"))),
        };
        Self::new(inner)
    }

    /// Loads the one private key of a PEM text, whichever of the usual kinds it is: `RSA PRIVATE KEY` (PKCS #1),
    /// `EC PRIVATE KEY` (SEC 1), `PRIVATE KEY` (PKCS #8) or `ENCRYPTED PRIVATE KEY` (PKCS #8, opened by `passphrase`).
    /// Other blocks, such as certificates, are passed over.
    pub fn from_pem(text: &str, passphrase: Option<&Secret>) -> Result<Self, KeyError> {
        let blocks = pem::decode_all(text, MAX_PEM)?
            .into_iter()
            .map(|Block { label, der }| (label, Zeroizing::new(der)));
        let keys: Vec<_> = blocks.filter(|(label, _)| label.ends_with("PRIVATE KEY")).collect();
        let [(label, der)] = keys.as_slice() else {
            return Err(KeyError::Count(keys.len()));
        };
        let inner = match label.as_str() {
            "RSA PRIVATE KEY" => RsaKeyPair::from_der(der)
                .map(Inner::Rsa)
                .map_err(|_| KeyError::Malformed("no PKCS #1 key"))?,
            "EC PRIVATE KEY" => CURVES
                .iter()
                .find_map(|(_, curve)| EcdsaKeyPair::from_private_key_der(curve, der).ok())
                .map(Inner::Ecdsa)
                .ok_or(KeyError::Malformed("no SEC 1 key on P-256, P-384 or P-521"))?,
            "PRIVATE KEY" => from_pkcs8(der)?,
            "ENCRYPTED PRIVATE KEY" => {
                let passphrase = passphrase.ok_or(KeyError::PassphraseNeeded)?;
                let sealed = EncryptedPrivateKeyInfo::try_from(der.as_slice()).map_err(|_| KeyError::DoesNotOpen)?;
                let opened = sealed.decrypt(passphrase.expose()).map_err(|_| KeyError::DoesNotOpen)?;
                from_pkcs8(opened.as_bytes())?
            }
            other => return Err(KeyError::Unsupported(format!("a block \"{other}\" is not understood"))),
        };
        Self::new(inner)
    }

    /// The key as PKCS #8 PEM, in the clear.
    pub fn to_pkcs8_pem(&self) -> Result<Zeroizing<String>, KeyError> {
        Ok(Zeroizing::new(pem::encode("PRIVATE KEY", &self.to_pkcs8()?)))
    }

    /// The key as PKCS #8 PEM sealed by PBES2 (RFC 8018 §6.2): scrypt and AES-256-CBC. `openssl pkey` opens it.
    pub fn to_sealed_pem(&self, passphrase: &Secret) -> Result<String, KeyError> {
        let (mut salt, mut iv) = ([0; 16], [0; 16]);
        rand::fill(&mut salt)
            .and_then(|()| rand::fill(&mut iv))
            .map_err(|_| KeyError::Failed("drawing a salt"))?;
        let scheme = pbes2::Parameters {
            // N·r stays at 16 MiB because OpenSSL refuses scrypt above 32 MiB; p makes up for it.
            kdf: pbes2::ScryptParams {
                salt: &salt,
                cost_parameter: 1 << 14,
                block_size: 8,
                parallelization: 5,
                key_length: None,
            }
            .into(),
            encryption: pbes2::EncryptionScheme::Aes256Cbc { iv: &iv },
        };
        let der = self.to_pkcs8()?;
        let key = PrivateKeyInfo::try_from(der.as_slice()).map_err(|_| KeyError::Malformed("no PKCS #8 key"))?;
        let sealed = key
            .encrypt_with_params(scheme, passphrase.expose())
            .map_err(|_| KeyError::Failed("sealing a key"))?;
        Ok(pem::encode("ENCRYPTED PRIVATE KEY", sealed.as_bytes()))
    }

    /// Algorithm and size.
    pub fn facts(&self) -> KeyFacts {
        self.facts
    }

    /// DER of the SubjectPublicKeyInfo (RFC 5280 §4.1.2.7).
    pub fn spki_der(&self) -> &[u8] {
        &self.spki_der
    }

    /// SHA-256 of the SubjectPublicKeyInfo, lower-case hex.
    pub fn spki_sha256(&self) -> String {
        sha256_hex(&self.spki_der)
    }

    /// The same key, padding as told if it is an RSA key. Without this it signs by PKCS #1 v1.5.
    pub fn with_padding(self, padding: RsaPadding) -> Self {
        Self {
            scheme: Scheme::of(self.facts, padding).expect("keys of other kinds are not loaded"),
            ..self
        }
    }

    /// How it signs.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The identifier of what [`sign`](Self::sign) does (RFC 5280 §4.1.1.2).
    pub fn signature_algorithm(&self) -> AlgorithmIdentifier {
        self.scheme.identifier()
    }

    /// Signs `message`: ECDSA with the digest of the curve's size, RSA with SHA-256, or Ed25519.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let random = SystemRandom::new();
        let failed = |_| KeyError::Failed("signing");
        match &self.inner {
            Inner::Ecdsa(key) => Ok(key.sign(&random, message).map_err(failed)?.as_ref().to_vec()),
            Inner::Ed25519(key) => Ok(key.try_sign(message).map_err(failed)?.as_ref().to_vec()),
            Inner::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(self.rsa_encoding(), &random, message, &mut signature)
                    .map_err(failed)?;
                Ok(signature)
            }
        }
    }

    /// Signs the message with this digest, which is of the kind that the scheme has.
    ///
    /// # Errors
    /// A digest of another kind; an Ed25519 key, which signs messages only.
    pub fn sign_digest(&self, digest: &Digest) -> Result<Vec<u8>, KeyError> {
        let failed = |_| KeyError::Failed("signing");
        match &self.inner {
            Inner::Ecdsa(key) => Ok(key.sign_digest(digest).map_err(failed)?.as_ref().to_vec()),
            Inner::Ed25519(_) => Err(KeyError::Unsupported("Ed25519 signs no digests".to_owned())),
            Inner::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign_digest(self.rsa_encoding(), digest, &mut signature)
                    .map_err(failed)?;
                Ok(signature)
            }
        }
    }

    fn rsa_encoding(&self) -> &'static dyn RsaEncoding {
        match self.scheme {
            Scheme::RsaPssSha256 => &signature::RSA_PSS_SHA256,
            _ => &signature::RSA_PKCS1_SHA256,
        }
    }

    /// The public key alone, as it stands in the BIT STRING of a SubjectPublicKeyInfo.
    pub(crate) fn public_bits(&self) -> &[u8] {
        match &self.inner {
            Inner::Ecdsa(key) => key.public_key().as_ref(),
            Inner::Rsa(key) => key.public_key().as_ref(),
            Inner::Ed25519(key) => key.public_key().as_ref(),
        }
    }

    fn new(inner: Inner) -> Result<Self, KeyError> {
        let spki: Result<PublicKeyX509Der<'_>, _> = match &inner {
            Inner::Ecdsa(key) => key.public_key().as_der(),
            Inner::Rsa(key) => key.public_key().as_der(),
            Inner::Ed25519(key) => key.public_key().as_der(),
        };
        let spki_der = spki
            .map_err(|_| KeyError::Failed("writing a public key"))?
            .as_ref()
            .to_vec();
        let facts = match &inner {
            Inner::Ecdsa(key) => {
                let curve = CURVES.iter().find(|(_, curve)| *curve == key.algorithm());
                let (bits, _) = curve.expect("keys are made on the curves of the table only");
                KeyFacts {
                    algorithm: KeyAlgorithm::Ecdsa,
                    bits: *bits,
                }
            }
            Inner::Rsa(key) => {
                let octets = u32::try_from(key.public_modulus_len()).expect("the library stops at 8192 bits");
                KeyFacts {
                    algorithm: KeyAlgorithm::Rsa,
                    bits: octets * 8,
                }
            }
            Inner::Ed25519(_) => KeyFacts {
                algorithm: KeyAlgorithm::Ed25519,
                bits: 256,
            },
        };
        Ok(Self {
            inner,
            facts,
            scheme: Scheme::of(facts, RsaPadding::default()).expect("keys of other kinds are not loaded"),
            spki_der,
        })
    }

    /// PKCS #8 version 1: OpenSSL before 3.2 does not read version 2.
    fn to_pkcs8(&self) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let failed = |_| KeyError::Failed("writing a private key");
        Ok(Zeroizing::new(match &self.inner {
            Inner::Ecdsa(key) => key.to_pkcs8v1().map_err(failed)?.as_ref().to_vec(),
            Inner::Rsa(key) => AsDer::<Pkcs8V1Der<'_>>::as_der(key).map_err(failed)?.as_ref().to_vec(),
            Inner::Ed25519(key) => key.to_pkcs8v1().map_err(failed)?.as_ref().to_vec(),
        }))
    }
}

static CURVES: [(u32, &EcdsaSigningAlgorithm); 3] = [
    (256, &signature::ECDSA_P256_SHA256_ASN1_SIGNING),
    (384, &signature::ECDSA_P384_SHA384_ASN1_SIGNING),
    (521, &signature::ECDSA_P521_SHA512_ASN1_SIGNING),
];

fn from_pkcs8(der: &[u8]) -> Result<Inner, KeyError> {
    let ecdsa = || {
        CURVES
            .iter()
            .find_map(|(_, curve)| EcdsaKeyPair::from_pkcs8(curve, der).ok())
            .map(Inner::Ecdsa)
    };
    let rsa = || RsaKeyPair::from_pkcs8(der).ok().map(Inner::Rsa);
    let ed25519 = || Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).ok().map(Inner::Ed25519);
    ecdsa()
        .or_else(rsa)
        .or_else(ed25519)
        .ok_or(KeyError::Malformed("no PKCS #8 key of a kind that is understood"))
}

/// Which key a SubjectPublicKeyInfo (DER) is.
pub fn fingerprint(spki_der: &[u8]) -> KeyFingerprint {
    let digest = digest::digest(&digest::SHA256, spki_der);
    KeyFingerprint::from_digest(digest.as_ref().try_into().expect("SHA-256 has 32 octets"))
}

/// SHA-256 in lower-case hex: how certificates and keys are named.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    fn kind(algorithm: KeyAlgorithm, bits: u32) -> KeyFacts {
        KeyFacts { algorithm, bits }
    }

    fn refused(text: &str, passphrase: Option<&Secret>) -> KeyError {
        KeyPair::from_pem(text, passphrase).err().expect("refused")
    }

    #[test]
    fn every_kind_of_key_survives_being_written_and_openssl_reads_it() {
        let scratch = Scratch::new();
        let secret = Secret::new("correct horse");
        for facts in [
            kind(KeyAlgorithm::Ecdsa, 256),
            kind(KeyAlgorithm::Ecdsa, 384),
            kind(KeyAlgorithm::Rsa, 2048),
            kind(KeyAlgorithm::Ed25519, 256),
        ] {
            let key = KeyPair::generate(facts).unwrap();
            assert_eq!(key.facts(), facts);
            let plain = key.to_pkcs8_pem().unwrap();
            let sealed = key.to_sealed_pem(&secret).unwrap();
            for (text, passphrase) in [(plain.as_str(), None), (sealed.as_str(), Some(&secret))] {
                assert_eq!(
                    KeyPair::from_pem(text, passphrase).unwrap().spki_der(),
                    key.spki_der(),
                    "{facts}"
                );
                let file = scratch.write("key.pem", text.as_bytes());
                let spki = scratch.openssl(&[
                    "pkey",
                    "-in",
                    &file,
                    "-passin",
                    "pass:correct horse",
                    "-pubout",
                    "-outform",
                    "DER",
                ]);
                assert_eq!(spki, key.spki_der(), "{facts}");
            }
            assert_eq!(refused(&sealed, None), KeyError::PassphraseNeeded);
            assert_eq!(refused(&sealed, Some(&Secret::new("wrong"))), KeyError::DoesNotOpen);
        }
    }

    #[test]
    fn keys_openssl_made_are_loaded_whatever_their_armour() {
        let scratch = Scratch::new();
        let file = scratch.path("key.pem");
        let curve = |name| format!("ec_paramgen_curve:{name}");
        let (p256, p384, p521) = (curve("P-256"), curve("P-384"), curve("P-521"));
        let made: [(&[&str], _); 5] = [
            (
                &["genpkey", "-algorithm", "EC", "-pkeyopt", &p256],
                kind(KeyAlgorithm::Ecdsa, 256),
            ),
            (
                &["genpkey", "-algorithm", "EC", "-pkeyopt", &p384],
                kind(KeyAlgorithm::Ecdsa, 384),
            ),
            (
                &["genpkey", "-algorithm", "EC", "-pkeyopt", &p521],
                kind(KeyAlgorithm::Ecdsa, 521),
            ),
            (
                &["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"],
                kind(KeyAlgorithm::Rsa, 3072),
            ),
            (&["genpkey", "-algorithm", "ED25519"], kind(KeyAlgorithm::Ed25519, 256)),
        ];
        for (arguments, facts) in made {
            let plain = String::from_utf8(scratch.openssl(arguments)).unwrap();
            scratch.write("key.pem", plain.as_bytes());
            let traditional = match facts.algorithm {
                KeyAlgorithm::Ed25519 => plain.clone().into_bytes(),
                _ => scratch.openssl(&["pkey", "-in", &file, "-traditional"]),
            };
            let sealed = scratch.openssl(&["pkcs8", "-topk8", "-in", &file, "-passout", "pass:x"]);
            let spki = scratch.openssl(&["pkey", "-in", &file, "-pubout", "-outform", "DER"]);
            for text in [plain.into_bytes(), traditional, sealed] {
                let key = KeyPair::from_pem(std::str::from_utf8(&text).unwrap(), Some(&Secret::new("x"))).unwrap();
                assert_eq!((key.facts(), key.spki_der()), (facts, spki.as_slice()));
            }
        }
    }

    #[test]
    fn what_is_no_key_is_refused_with_a_reason() {
        let key = KeyPair::generate(KeyFacts::P256).unwrap().to_pkcs8_pem().unwrap();
        assert_eq!(refused("", None), KeyError::Count(0));
        assert_eq!(refused(&format!("{}{}", *key, *key), None), KeyError::Count(2));
        assert!(matches!(
            refused(&pem::encode("PRIVATE KEY", &[1, 2]), None),
            KeyError::Malformed(_)
        ));
        assert!(matches!(
            refused(&pem::encode("DSA PRIVATE KEY", &[1, 2]), None),
            KeyError::Unsupported(_)
        ));
        assert!(matches!(
            KeyPair::generate(kind(KeyAlgorithm::Rsa, 1024)),
            Err(KeyError::Unsupported(_))
        ));
    }
}
