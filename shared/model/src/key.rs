//! Algorithms and sizes of keys.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

crate::words! {
    /// A public key algorithm.
    pub enum KeyAlgorithm {
        /// RSA (RFC 8017).
        Rsa = "RSA",
        /// Elliptic curves P-256, P-384 and P-521.
        Ecdsa = "ECDSA",
        /// Ed25519 (RFC 8032).
        Ed25519 = "Ed25519",
        /// RSA restricted to RSASSA-PSS (RFC 4055 §1.2). Inventory only.
        RsaPss = "RSASSA-PSS",
        /// DSA (RFC 3279 §2.3.2). Inventory only.
        Dsa = "DSA",
        /// Other curves and algorithms. Inventory only.
        Other = "Other",
    }
}

/// What kind of key a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct KeyFacts {
    /// The algorithm.
    pub algorithm: KeyAlgorithm,
    /// Modulus or curve size in bits; 256 for Ed25519.
    pub bits: u32,
}

impl KeyAlgorithm {
    /// Whether certificates are issued for keys of this kind. The others occur in certificates from elsewhere.
    pub fn is_issued(self) -> bool {
        matches!(self, Self::Rsa | Self::Ecdsa | Self::Ed25519)
    }
}

impl KeyFacts {
    /// What an agent makes when nobody asks for anything else.
    pub const P256: KeyFacts = KeyFacts {
        algorithm: KeyAlgorithm::Ecdsa,
        bits: 256,
    };
}

impl fmt::Display for KeyFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.algorithm {
            KeyAlgorithm::Ed25519 => f.write_str("Ed25519"),
            algorithm if self.bits == 0 => write!(f, "{algorithm}"),
            algorithm => write!(f, "{algorithm} {}", self.bits),
        }
    }
}

/// Which key a key is: SHA-256 of its SubjectPublicKeyInfo in DER (RFC 5280 §4.1.2.7), lower-case hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct KeyFingerprint(String);

/// What is wrong with the fingerprint of a key.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a key's fingerprint is the SHA-256 of its SubjectPublicKeyInfo: 64 hexadecimal digits (colons allowed)")]
pub struct BadKeyFingerprint;

impl KeyFingerprint {
    /// From the 32 octets of the digest.
    pub fn from_digest(digest: &[u8; 32]) -> Self {
        Self(hex::encode(digest))
    }

    /// Lower-case hexadecimal.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyFingerprint {
    type Err = BadKeyFingerprint;

    fn from_str(text: &str) -> Result<Self, BadKeyFingerprint> {
        /// 32 octets with a colon between each two.
        const LONGEST: usize = 95;
        if text.len() > LONGEST {
            return Err(BadKeyFingerprint);
        }
        let digits: String = text.chars().filter(|c| *c != ':').collect();
        match digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            true => Ok(Self(digits.to_ascii_lowercase())),
            false => Err(BadKeyFingerprint),
        }
    }
}

impl TryFrom<String> for KeyFingerprint {
    type Error = BadKeyFingerprint;

    fn try_from(text: String) -> Result<Self, BadKeyFingerprint> {
        text.parse()
    }
}

impl From<KeyFingerprint> for String {
    fn from(fingerprint: KeyFingerprint) -> String {
        fingerprint.0
    }
}

impl fmt::Display for KeyFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl JsonSchema for KeyFingerprint {
    fn schema_name() -> Cow<'static, str> {
        "KeyFingerprint".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string", "pattern": "^([0-9A-Fa-f]{2}:?){31}[0-9A-Fa-f]{2}$",
            "examples": ["e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"],
        })
    }
}

#[cfg(feature = "sqlx")]
crate::as_text!(KeyFingerprint);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_fingerprint_is_the_same_and_what_is_none_is_refused() {
        let plain = "0f".repeat(32);
        let colons = vec!["0F"; 32].join(":");
        for text in [&plain, &plain.to_uppercase(), &colons] {
            assert_eq!(text.parse::<KeyFingerprint>().unwrap().as_str(), plain, "{text}");
        }
        for text in [
            "",
            &plain[1..],
            &format!("{plain}0f"),
            &"0g".repeat(32),
            &":".repeat(95),
        ] {
            assert_eq!(text.parse::<KeyFingerprint>(), Err(BadKeyFingerprint), "{text}");
        }
    }
}
