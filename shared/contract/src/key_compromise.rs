//! Revocation by whoever can show that a key is known to others: with a signature by that very key.

use certctl_model::{
    id::{BulkId, IssuerId},
    key::KeyFingerprint,
    serial::Serial,
    time::Time,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::list::blank;

crate::resource! {
    key_compromise "/api/v1/key-compromise";

    /// Get a challenge, which a proof of possession of a key has to sign within some minutes.
    GET "/challenge" GetKeyChallenge() [Open] -> 200 KeyChallenge;
    /// Show that the private key of a certificate is known: the certificate is revoked with `keyCompromise`, and the key
    /// blocked, so that everything else that has it is revoked too.
    ///
    /// The signature is over these octets: `certctl key compromise v1`, a line feed, the challenge as it was given, a line
    /// feed, the SHA-256 of the SubjectPublicKeyInfo in 64 lower-case hexadecimal digits, a line feed. It is made
    /// with RSASSA-PKCS1-v1_5 and SHA-256 by an RSA key, with ECDSA in DER and SHA-256 (P-256),
    /// SHA-384 (P-384) or SHA-512 (P-521) by an ECDSA key, and with Ed25519 by an Ed25519 key.
    POST "" ReportKeyCompromise(body: KeyProof,) [Open] -> 202 KeyCompromise;
}

/// What begins the octets that are signed: no other protocol signs such.
pub const DOMAIN: &str = "certctl key compromise v1";

/// The octets that a proof signs.
pub fn signed_octets(challenge: &str, key: &KeyFingerprint) -> Vec<u8> {
    format!("{DOMAIN}\n{challenge}\n{key}\n").into_bytes()
}

/// A challenge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct KeyChallenge {
    /// To be signed as it is.
    pub challenge: String,
    /// From when it is not accepted any more.
    pub expires_at: Time,
}

/// A proof that a key is known. The certificate is given itself, or by its issuer and serial number.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct KeyProof {
    /// The certificate, PEM.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65_536))]
    pub certificate_pem: Option<String>,
    /// Its issuer.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub issuer_id: Option<IssuerId>,
    /// Its serial number, in any spelling.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub serial_number: Option<Serial>,
    /// The challenge, as it was given.
    #[schemars(length(max = 256))]
    pub challenge: String,
    /// The signature, base64.
    #[schemars(length(max = 4_096))]
    pub signature: String,
}

/// What follows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct KeyCompromise {
    /// The key, blocked from now on.
    pub spki_sha256: KeyFingerprint,
    /// The operation that revokes everything that has the key.
    pub bulk_id: BulkId,
}
