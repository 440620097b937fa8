//! Algorithms and sizes of keys.

use std::fmt;

use schemars::JsonSchema;
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
            algorithm => write!(f, "{algorithm} {}", self.bits),
        }
    }
}
