//! The keys of authorities, wherever they are kept.

use anyhow::{Result, ensure};
use aws_lc_rs::digest::{self, Digest};
use certctl_model::key::KeyFacts;
use certctl_x509::{
    keys::{KeyError, KeyPair},
    scheme::Scheme,
};

use crate::der;

/// A private key that signs, and what everyone may know of it.
///
/// Has no way to give the key away.
pub(crate) trait SigningKey: Send + Sync {
    /// Algorithm and size.
    fn facts(&self) -> KeyFacts;
    /// How it signs.
    fn scheme(&self) -> Scheme;
    /// DER of the SubjectPublicKeyInfo.
    fn spki_der(&self) -> &[u8];
    /// Signs a message.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>>;
    /// Signs the message with this digest, of the kind that the scheme has. A key whose scheme has none refuses.
    fn sign_digest(&self, digest: &Digest) -> Result<Vec<u8>>;
}

/// A key from a file, which lives in the memory of this process.
impl SigningKey for KeyPair {
    fn facts(&self) -> KeyFacts {
        KeyPair::facts(self)
    }

    fn scheme(&self) -> Scheme {
        KeyPair::scheme(self)
    }

    fn spki_der(&self) -> &[u8] {
        KeyPair::spki_der(self)
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        KeyPair::sign(self, message).map_err(KeyError::into)
    }

    fn sign_digest(&self, digest: &Digest) -> Result<Vec<u8>> {
        KeyPair::sign_digest(self, digest).map_err(KeyError::into)
    }
}

/// A message that is written piece by piece and then signed.
///
/// Takes as much memory as a digest does; for Ed25519 as much as the message, which that signs and no digest of it.
pub(crate) enum Message {
    /// What the scheme digests.
    Digested(digest::Context),
    /// What it does not.
    Whole(Vec<u8>),
}

impl Message {
    /// A message with nothing in it.
    pub(crate) fn new(scheme: Scheme) -> Self {
        match scheme.digest() {
            Some(algorithm) => Self::Digested(digest::Context::new(algorithm)),
            None => Self::Whole(Vec::new()),
        }
    }

    /// Adds octets at its end.
    pub(crate) fn update(&mut self, octets: &[u8]) {
        match self {
            Self::Digested(context) => context.update(octets),
            Self::Whole(message) => message.extend_from_slice(octets),
        }
    }

    /// Signs it. The signature verifies: a fault in the computation must not leave.
    pub(crate) fn sign(self, key: &dyn SigningKey) -> Result<Vec<u8>> {
        match self {
            Self::Whole(message) => sign(key, &message),
            Self::Digested(context) => {
                let digest = context.finish();
                let signature = key.sign_digest(&digest)?;
                let verifies = |bits: Vec<u8>| key.scheme().verifies_digest(&bits, &digest, &signature);
                ensure!(verified(key, verifies), NOT_VERIFIED);
                Ok(signature)
            }
        }
    }
}

/// Signs a message. The signature verifies.
pub(crate) fn sign(key: &dyn SigningKey, message: &[u8]) -> Result<Vec<u8>> {
    let signature = key.sign(message)?;
    let verifies = |bits: Vec<u8>| key.scheme().verifies(&bits, message, &signature);
    ensure!(verified(key, verifies), NOT_VERIFIED);
    Ok(signature)
}

const NOT_VERIFIED: &str = "a signature of our own does not verify";

fn verified(key: &dyn SigningKey, verifies: impl FnOnce(Vec<u8>) -> bool) -> bool {
    der::key_bits(key.spki_der()).is_some_and(verifies)
}
