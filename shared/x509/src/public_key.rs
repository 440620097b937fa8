//! Public keys of others: what kind they are, whether they can be used at all, and what they signed.

use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use certctl_model::key::{KeyAlgorithm, KeyFacts};
use x509_parser::asn1_rs::Any;
use x509_parser::der_parser::Oid;
use x509_parser::oid_registry as oid;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::RSAPublicKey;
use x509_parser::signature_algorithm::RsaSsaPssParams;
use x509_parser::x509::{AlgorithmIdentifier, SubjectPublicKeyInfo};

use crate::weak_keys;

/// Why a signature says nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BadSignature {
    /// We do not verify such signatures; the text says what would be accepted.
    Unsupported(String),
    /// The key did not sign this.
    Wrong,
}

/// Reads the kind of a key, refusing keys no verifier could use.
///
/// A key that is merely short is described, not refused: how short is too short is a matter of the profile.
pub(crate) fn key_facts(spki: &SubjectPublicKeyInfo<'_>) -> Result<KeyFacts, String> {
    let algorithm = &spki.algorithm.algorithm;
    if *algorithm == oid::OID_PKCS1_RSAENCRYPTION {
        let bits = rsa_bits(&spki.subject_public_key.data)?;
        return Ok(KeyFacts {
            algorithm: KeyAlgorithm::Rsa,
            bits,
        });
    }
    if *algorithm == oid::OID_SIG_ED25519 {
        return Ok(KeyFacts {
            algorithm: KeyAlgorithm::Ed25519,
            bits: 256,
        });
    }
    if *algorithm == oid::OID_KEY_TYPE_EC_PUBLIC_KEY {
        let bits = curve_bits(spki).ok_or("the curve is not one of P-256, P-384, P-521")?;
        return Ok(KeyFacts {
            algorithm: KeyAlgorithm::Ecdsa,
            bits,
        });
    }
    Err(format!(
        "the key algorithm {algorithm} is not one of RSA, ECDSA, Ed25519"
    ))
}

/// What kind of key a certificate from elsewhere has; keys that [`key_facts`] refuses are named as far as they can be.
pub(crate) fn recorded_key_facts(spki: &SubjectPublicKeyInfo<'_>) -> KeyFacts {
    if let Ok(facts) = key_facts(spki) {
        return facts;
    }
    let algorithm = &spki.algorithm.algorithm;
    let rsa_modulus = || {
        let (_, key) = RSAPublicKey::from_der(&spki.subject_public_key.data).ok()?;
        magnitude(key.modulus).map(bit_length)
    };
    // RFC 5480 §2.2: an uncompressed point has both coordinates.
    let curve = || match &*spki.subject_public_key.data {
        [4, point @ ..] => u32::try_from(point.len() * 4).ok(),
        _ => None,
    };
    // RFC 3279 §2.3.2: SEQUENCE of p, q and g; the size is that of p.
    let dsa = || {
        let (_, p) = Any::from_der(spki.algorithm.parameters.as_ref()?.data).ok()?;
        magnitude(p.data).map(bit_length)
    };
    let (algorithm, bits) = if *algorithm == oid::OID_PKCS1_RSAENCRYPTION {
        (KeyAlgorithm::Rsa, rsa_modulus())
    } else if *algorithm == oid::OID_PKCS1_RSASSAPSS {
        (KeyAlgorithm::RsaPss, rsa_modulus())
    } else if *algorithm == oid::OID_KEY_TYPE_DSA {
        (KeyAlgorithm::Dsa, dsa())
    } else if *algorithm == oid::OID_KEY_TYPE_EC_PUBLIC_KEY {
        (KeyAlgorithm::Other, curve())
    } else {
        (KeyAlgorithm::Other, None)
    };
    KeyFacts {
        algorithm,
        bits: bits.unwrap_or(0),
    }
}

/// Refuses keys whose private key can be computed. Facts do not: such a certificate can be found on a host.
pub(crate) fn must_not_be_weak(spki: &SubjectPublicKeyInfo<'_>) -> Result<(), String> {
    if spki.algorithm.algorithm != oid::OID_PKCS1_RSAENCRYPTION {
        return Ok(());
    }
    let key = RSAPublicKey::from_der(&spki.subject_public_key.data).map(|(_, key)| key);
    match key.ok().and_then(|key| weak_keys::weakness(key.modulus)) {
        Some(why) => Err(format!(
            "the RSA key is weak: {why}; make another one, with other software"
        )),
        None => Ok(()),
    }
}

/// Verifies that the key signed `message`. SHA-1 and older digests are not accepted.
pub(crate) fn verify(
    spki: &SubjectPublicKeyInfo<'_>,
    algorithm: &AlgorithmIdentifier<'_>,
    message: &[u8],
    signature: &[u8],
) -> Result<(), BadSignature> {
    let facts = key_facts(spki).map_err(BadSignature::Unsupported)?;
    let how = verification(facts, algorithm).ok_or_else(|| {
        BadSignature::Unsupported(format!(
            "the signature algorithm {} does not go with a key of kind {facts}; sign with SHA-256 or longer digests",
            algorithm.algorithm
        ))
    })?;
    UnparsedPublicKey::new(how, &spki.subject_public_key.data)
        .verify(message, signature)
        .map_err(|_| BadSignature::Wrong)
}

/// Verifies that the key signed `message` in the one way we sign with keys of its kind ourselves.
pub(crate) fn verify_plain(
    spki: &SubjectPublicKeyInfo<'_>,
    message: &[u8],
    signature: &[u8],
) -> Result<(), BadSignature> {
    use KeyAlgorithm::{Ecdsa, Ed25519, Rsa};
    let facts = key_facts(spki).map_err(BadSignature::Unsupported)?;
    let how: &dyn VerificationAlgorithm = match (facts.algorithm, facts.bits) {
        (Rsa, _) => &signature::RSA_PKCS1_1024_8192_SHA256_FOR_LEGACY_USE_ONLY,
        (Ecdsa, 256) => &signature::ECDSA_P256_SHA256_ASN1,
        (Ecdsa, 384) => &signature::ECDSA_P384_SHA384_ASN1,
        (Ecdsa, _) => &signature::ECDSA_P521_SHA512_ASN1,
        (Ed25519, _) => &signature::ED25519,
        (other, _) => return Err(BadSignature::Unsupported(format!("{other} keys sign nothing here"))),
    };
    UnparsedPublicKey::new(how, &spki.subject_public_key.data)
        .verify(message, signature)
        .map_err(|_| BadSignature::Wrong)
}

fn verification(key: KeyFacts, algorithm: &AlgorithmIdentifier<'_>) -> Option<&'static dyn VerificationAlgorithm> {
    use KeyAlgorithm::{Ecdsa, Ed25519, Rsa};
    let is = |other: &Oid<'_>| algorithm.algorithm == *other;
    Some(match (key.algorithm, key.bits) {
        // Keys too short for any profile are verified all the same, so that their size can be what is wrong with them.
        (Rsa, 1024..) if is(&oid::OID_PKCS1_SHA256WITHRSA) => {
            &signature::RSA_PKCS1_1024_8192_SHA256_FOR_LEGACY_USE_ONLY
        }
        (Rsa, 1024..) if is(&oid::OID_PKCS1_SHA512WITHRSA) => {
            &signature::RSA_PKCS1_1024_8192_SHA512_FOR_LEGACY_USE_ONLY
        }
        (Rsa, 2048..) if is(&oid::OID_PKCS1_SHA384WITHRSA) => &signature::RSA_PKCS1_2048_8192_SHA384,
        (Rsa, 2048..) if is(&oid::OID_PKCS1_RSASSAPSS) => return pss(algorithm),
        (Ecdsa, 256) if is(&oid::OID_SIG_ECDSA_WITH_SHA256) => &signature::ECDSA_P256_SHA256_ASN1,
        (Ecdsa, 256) if is(&oid::OID_SIG_ECDSA_WITH_SHA384) => &signature::ECDSA_P256_SHA384_ASN1,
        (Ecdsa, 256) if is(&oid::OID_SIG_ECDSA_WITH_SHA512) => &signature::ECDSA_P256_SHA512_ASN1,
        (Ecdsa, 384) if is(&oid::OID_SIG_ECDSA_WITH_SHA256) => &signature::ECDSA_P384_SHA256_ASN1,
        (Ecdsa, 384) if is(&oid::OID_SIG_ECDSA_WITH_SHA384) => &signature::ECDSA_P384_SHA384_ASN1,
        (Ecdsa, 384) if is(&oid::OID_SIG_ECDSA_WITH_SHA512) => &signature::ECDSA_P384_SHA512_ASN1,
        (Ecdsa, 521) if is(&oid::OID_SIG_ECDSA_WITH_SHA256) => &signature::ECDSA_P521_SHA256_ASN1,
        (Ecdsa, 521) if is(&oid::OID_SIG_ECDSA_WITH_SHA384) => &signature::ECDSA_P521_SHA384_ASN1,
        (Ecdsa, 521) if is(&oid::OID_SIG_ECDSA_WITH_SHA512) => &signature::ECDSA_P521_SHA512_ASN1,
        (Ed25519, _) if is(&oid::OID_SIG_ED25519) => &signature::ED25519,
        _ => return None,
    })
}

fn pss(algorithm: &AlgorithmIdentifier<'_>) -> Option<&'static dyn VerificationAlgorithm> {
    let params = RsaSsaPssParams::try_from(algorithm.parameters.as_ref()?).ok()?;
    let hash = params.hash_algorithm_oid();
    Some(match () {
        () if *hash == oid::OID_NIST_HASH_SHA256 => &signature::RSA_PSS_2048_8192_SHA256,
        () if *hash == oid::OID_NIST_HASH_SHA384 => &signature::RSA_PSS_2048_8192_SHA384,
        () if *hash == oid::OID_NIST_HASH_SHA512 => &signature::RSA_PSS_2048_8192_SHA512,
        () => return None,
    })
}

fn curve_bits(spki: &SubjectPublicKeyInfo<'_>) -> Option<u32> {
    let curve = spki.algorithm.parameters.as_ref()?.as_oid().ok()?;
    [
        (oid::OID_EC_P256, 256),
        (oid::OID_NIST_EC_P384, 384),
        (oid::OID_NIST_EC_P521, 521),
    ]
    .into_iter()
    .find_map(|(known, bits)| (curve == known).then_some(bits))
}

/// The size of the modulus, after the checks that need no factoring.
fn rsa_bits(key: &[u8]) -> Result<u32, String> {
    let (rest, key) = RSAPublicKey::from_der(key).map_err(|_| "the RSA public key cannot be read")?;
    let (Some(modulus), Some(exponent)) = (magnitude(key.modulus), magnitude(key.exponent)) else {
        return Err("the RSA modulus and exponent are positive numbers".to_owned());
    };
    let bits = bit_length(modulus);
    if !rest.is_empty() || modulus.last().is_none_or(|low| low % 2 == 0) {
        return Err("the RSA modulus is an odd number".to_owned());
    }
    if bits > 8192 {
        return Err(format!("the RSA modulus has {bits} bits; at most 8192 are accepted"));
    }
    // Verifiers commonly stop at 33 bits; 65537 has 17.
    if exponent.last().is_none_or(|low| low % 2 == 0) || *exponent == [1] || bit_length(exponent) > 33 {
        return Err("the RSA exponent is an odd number from 3 to 2^33; 65537 is usual".to_owned());
    }
    Ok(bits)
}

/// The octets of a non-negative INTEGER without leading zeros.
fn magnitude(integer: &[u8]) -> Option<&[u8]> {
    if integer.first().is_none_or(|high| high & 0x80 != 0) {
        return None;
    }
    Some(&integer[integer.iter().take_while(|octet| **octet == 0).count()..])
}

fn bit_length(octets: &[u8]) -> u32 {
    let leading = octets.first().map_or(0, |high| high.leading_zeros());
    u32::try_from(octets.len() * 8).unwrap_or(u32::MAX) - leading
}

#[cfg(test)]
mod tests {
    use super::*;

    /// DER of an RSAPublicKey of two short integers.
    fn key(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
        let integer = |octets: &[u8]| {
            let length = octets.len();
            let header = if length < 128 {
                vec![2, length as u8]
            } else {
                vec![2, 0x82, (length >> 8) as u8, length as u8]
            };
            [header.as_slice(), octets].concat()
        };
        let body = [integer(modulus), integer(exponent)].concat();
        [
            &[0x30, 0x82, (body.len() >> 8) as u8, body.len() as u8],
            body.as_slice(),
        ]
        .concat()
    }

    #[test]
    fn only_rsa_keys_that_can_work_are_measured() {
        let modulus = |octets: usize, low: u8| [&[0, 0x80][..], &vec![1; octets - 2], &[low]].concat();
        let usual = [1, 0, 1];
        type Case<'a> = (&'a str, Vec<u8>, &'a [u8], Option<u32>);
        let cases: [Case<'_>; 10] = [
            ("2048 bits", modulus(256, 1), &usual, Some(2048)),
            ("2047 bits", [&[0x40][..], &[1; 255]].concat(), &usual, Some(2047)),
            ("1024 bits", modulus(128, 1), &[3], Some(1024)),
            ("8192 bits", modulus(1024, 1), &usual, Some(8192)),
            ("8200 bits", modulus(1025, 1), &usual, None),
            ("an even modulus", modulus(256, 2), &usual, None),
            ("a zero modulus", vec![0], &usual, None),
            ("a negative modulus", vec![0x81; 256], &usual, None),
            ("exponent one", modulus(256, 1), &[1], None),
            ("an even exponent", modulus(256, 1), &[1, 0, 0], None),
        ];
        for (what, modulus, exponent, bits) in cases {
            assert_eq!(rsa_bits(&key(&modulus, exponent)).ok(), bits, "{what}");
        }
    }
}
