//! Reading and writing X.509: what others made is parsed into facts, what we make is built from words of the model.
//!
//! | module | holds |
//! |---|---|
//! | [`pem`] | the armour around everything below |
//! | [`keys`] | private keys: made, loaded, sealed, signing |
//! | [`scheme`] | how keys sign: identifiers, digests, verification |
//! | [`csr`] | certification requests (PKCS #10): read with their signature verified, and made |
//! | [`crl`] | what a CRL lists |
//! | [`facts`] | what a certificate says |
//! | [`name`] | names as the ASN.1 types of RFC 5280 |
//! | [`pkcs12`] | PKCS #12 without empty parts |
//! | [`path`] | what a chain of authorities allows a leaf to be (RFC 5280 §6.1) |
//! | [`ocsp`] | OCSP requests and unsigned answers (RFC 6960) |
//!
//! Everything is a function of its arguments; every parser of foreign bytes compares their length with a limit first.
//!
//! Not here: issuing, signed CRLs and signed OCSP answers (the signer's), files, sockets, the time of day.
#![warn(missing_docs)]

pub mod crl;
pub mod csr;
mod dn;
pub mod facts;
pub mod keys;
pub mod name;
pub mod ocsp;
pub mod path;
pub mod pem;
pub mod pkcs12;
mod public_key;
pub mod scheme;
#[cfg(test)]
mod testing;
mod weak_keys;

/// Bytes in DER.
pub type Der = Vec<u8>;
