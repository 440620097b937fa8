//! How keys sign (RFC 5280 §4.1.1.2): key, digest and padding as one word, with its identifier and its verification.

use aws_lc_rs::digest::{self, Digest};
use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use certctl_model::key::{KeyAlgorithm, KeyFacts};
use rasn::types::{Any, ObjectIdentifier};
use rasn_pkix::AlgorithmIdentifier;

/// How an RSA key pads what it signs (RFC 8017 §8).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RsaPadding {
    /// RSASSA-PKCS1-v1_5: what everything verifies.
    #[default]
    Pkcs1,
    /// RSASSA-PSS with SHA-256, MGF1 of SHA-256 and a salt of 32 octets.
    Pss,
}

/// How a key signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// ECDSA on P-256 with SHA-256 (RFC 5758 §3.2).
    EcdsaP256Sha256,
    /// ECDSA on P-384 with SHA-384.
    EcdsaP384Sha384,
    /// ECDSA on P-521 with SHA-512.
    EcdsaP521Sha512,
    /// RSA PKCS #1 v1.5 with SHA-256 (RFC 4055 §5).
    RsaPkcs1Sha256,
    /// RSA PSS with SHA-256 (RFC 4055 §3).
    RsaPssSha256,
    /// Ed25519 (RFC 8410 §3).
    Ed25519,
}

impl Scheme {
    /// The scheme of keys of a kind; none of a kind that nothing is signed with here.
    pub fn of(key: KeyFacts, padding: RsaPadding) -> Option<Self> {
        Some(match (key.algorithm, key.bits, padding) {
            (KeyAlgorithm::Ecdsa, 256, _) => Self::EcdsaP256Sha256,
            (KeyAlgorithm::Ecdsa, 384, _) => Self::EcdsaP384Sha384,
            (KeyAlgorithm::Ecdsa, ..) => Self::EcdsaP521Sha512,
            (KeyAlgorithm::Rsa, _, RsaPadding::Pkcs1) => Self::RsaPkcs1Sha256,
            (KeyAlgorithm::Rsa, _, RsaPadding::Pss) => Self::RsaPssSha256,
            (KeyAlgorithm::Ed25519, ..) => Self::Ed25519,
            (KeyAlgorithm::RsaPss | KeyAlgorithm::Dsa | KeyAlgorithm::Other, ..) => return None,
        })
    }

    /// Its identifier, which stands beside a signature and inside what is signed.
    pub fn identifier(self) -> AlgorithmIdentifier {
        let (arcs, parameters): (&'static [u32], Option<&[u8]>) = match self {
            Self::EcdsaP256Sha256 => (&[1, 2, 840, 10045, 4, 3, 2], None),
            Self::EcdsaP384Sha384 => (&[1, 2, 840, 10045, 4, 3, 3], None),
            Self::EcdsaP521Sha512 => (&[1, 2, 840, 10045, 4, 3, 4], None),
            // RFC 4055 §5: the parameters are NULL, not absent.
            Self::RsaPkcs1Sha256 => (&[1, 2, 840, 113549, 1, 1, 11], Some(&[5, 0])),
            Self::RsaPssSha256 => (&[1, 2, 840, 113549, 1, 1, 10], Some(PSS_SHA256)),
            Self::Ed25519 => (&[1, 3, 101, 112], None),
        };
        AlgorithmIdentifier {
            algorithm: ObjectIdentifier::new_unchecked(arcs.into()),
            parameters: parameters.map(|der| Any::new(der.to_vec())),
        }
    }

    /// The digest of a message that is signed in its place; none for Ed25519, which reads the message twice
    /// (RFC 8032 §5.1.6).
    pub fn digest(self) -> Option<&'static digest::Algorithm> {
        match self {
            Self::EcdsaP256Sha256 | Self::RsaPkcs1Sha256 | Self::RsaPssSha256 => Some(&digest::SHA256),
            Self::EcdsaP384Sha384 => Some(&digest::SHA384),
            Self::EcdsaP521Sha512 => Some(&digest::SHA512),
            Self::Ed25519 => None,
        }
    }

    /// Whether the key with these bits (the content of the BIT STRING of its SubjectPublicKeyInfo) signed the message.
    pub fn verifies(self, key_bits: &[u8], message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(self.verification(), key_bits)
            .verify(message, signature)
            .is_ok()
    }

    /// The same for the digest of a message; `false` for a digest of another kind.
    pub fn verifies_digest(self, key_bits: &[u8], digest: &Digest, signature: &[u8]) -> bool {
        self.digest() == Some(digest.algorithm())
            && UnparsedPublicKey::new(self.verification(), key_bits)
                .verify_digest(digest, signature)
                .is_ok()
    }

    fn verification(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::EcdsaP256Sha256 => &signature::ECDSA_P256_SHA256_ASN1,
            Self::EcdsaP384Sha384 => &signature::ECDSA_P384_SHA384_ASN1,
            Self::EcdsaP521Sha512 => &signature::ECDSA_P521_SHA512_ASN1,
            Self::RsaPkcs1Sha256 => &signature::RSA_PKCS1_2048_8192_SHA256,
            Self::RsaPssSha256 => &signature::RSA_PSS_2048_8192_SHA256,
            Self::Ed25519 => &signature::ED25519,
        }
    }
}

/// RSASSA-PSS-params of SHA-256 throughout (RFC 4055 §3.1): the digest and that of MGF1 with NULL parameters, a salt of
/// 32 octets, and the trailer field left at its default.
const PSS_SHA256: &[u8] = &[
    0x30, 0x34, 0xa0, 0x0f, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00,
    0xa1, 0x1c, 0x30, 0x1a, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08, 0x30, 0x0d, 0x06, 0x09,
    0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0xa2, 0x03, 0x02, 0x01, 0x20,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::KeyPair;
    use crate::public_key;
    use x509_parser::prelude::FromDer;
    use x509_parser::x509;

    #[test]
    fn a_message_and_its_digest_are_signed_alike_and_whoever_reads_certificates_verifies_it() {
        let message = b"a message of some length";
        for (algorithm, bits, padding) in [
            (KeyAlgorithm::Ecdsa, 256, RsaPadding::Pkcs1),
            (KeyAlgorithm::Ecdsa, 384, RsaPadding::Pkcs1),
            (KeyAlgorithm::Rsa, 2048, RsaPadding::Pkcs1),
            (KeyAlgorithm::Rsa, 2048, RsaPadding::Pss),
            (KeyAlgorithm::Ed25519, 256, RsaPadding::Pkcs1),
        ] {
            let key = KeyPair::generate(KeyFacts { algorithm, bits })
                .unwrap()
                .with_padding(padding);
            let scheme = key.scheme();
            let (_, spki) = x509::SubjectPublicKeyInfo::from_der(key.spki_der()).unwrap();
            let identifier = rasn::der::encode(&scheme.identifier()).unwrap();
            let (_, identifier) = x509::AlgorithmIdentifier::from_der(&identifier).unwrap();
            let bits = &spki.subject_public_key.data;
            let mut signatures = vec![key.sign(message).unwrap()];
            match scheme.digest() {
                Some(digest) => signatures.push(key.sign_digest(&digest::digest(digest, message)).unwrap()),
                None => assert!(key.sign_digest(&digest::digest(&digest::SHA512, message)).is_err()),
            }
            for signature in signatures {
                assert!(scheme.verifies(bits, message, &signature), "{scheme:?}");
                assert!(!scheme.verifies(bits, b"another", &signature), "{scheme:?}");
                assert_eq!(
                    public_key::verify(&spki, &identifier, message, &signature),
                    Ok(()),
                    "{scheme:?}"
                );
                if let Some(digest) = scheme.digest() {
                    assert!(scheme.verifies_digest(bits, &digest::digest(digest, message), &signature));
                    assert!(!scheme.verifies_digest(bits, &digest::digest(digest, b"another"), &signature));
                }
            }
            assert!(!scheme.verifies_digest(bits, &digest::digest(&digest::SHA512_256, message), &[]));
        }
    }
}
