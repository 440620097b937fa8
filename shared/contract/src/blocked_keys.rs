//! Keys for which nothing is issued any more.

use certctl_model::{
    id::{AgentId, BulkId, CertificateId},
    key::KeyFingerprint,
    time::Time,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    endpoint::NoContent,
    list::{List, Page},
    query::Id,
};

crate::resource! {
    blocked_keys "/api/v1/blocked-keys";

    /// List blocked keys, newest first unless sorted.
    GET "" ListBlockedKeys(query: List<BlockedKeyFilter, BlockedKeySort>,) [Needs(View)] -> 200 Page<BlockedKey>;
    /// Block a key: no request with it is accepted any more, and every certificate that has it is revoked with
    /// `keyCompromise`.
    ///
    /// The revocations are a bulk operation, whose progress can be read. Blocking a key that is blocked already begins
    /// another one, for what was issued in between. The answer counts the certificates that cannot be revoked here, and
    /// lists the hosts on which the key is in use: imported and discovered certificates are marked with `key_blocked_at`.
    POST "" BlockKey(body: NewBlockedKey,) [Needs(Revoke)] -> 201 BlockedKey;
    /// Fetch one blocked key, and where it is still in use.
    GET "/{id}" GetBlockedKey(path: Id<KeyFingerprint>,) [Needs(View)] -> 200 BlockedKey;
    /// Unblock a key. What was revoked stays so.
    DELETE "/{id}" UnblockKey(path: Id<KeyFingerprint>,) [Needs(Configure)] -> 204 NoContent;
}

crate::query! {
    /// Which blocked keys.
    pub struct BlockedKeyFilter {
        /// Only keys blocked by this party.
        blocked_by: String,
    }
}

crate::sort_keys! {
    /// How blocked keys are sorted.
    pub enum BlockedKeySort { BlockedAt = "blockedAt" }
}

/// A blocked key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "sqlx", derive(sqlx::FromRow))]
pub struct BlockedKey {
    /// SHA-256 of its SubjectPublicKeyInfo (RFC 5280 §4.1.2.7).
    pub spki_sha256: KeyFingerprint,
    /// Why, in words.
    pub reason: String,
    /// By whom.
    pub blocked_by: String,
    /// The operation that revokes what has the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bulk_id: Option<BulkId>,
    /// When.
    pub blocked_at: Time,
    /// Where the key is in use; absent in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "sqlx", sqlx(skip))]
    pub usage: Option<KeyUsage>,
}

/// Where a blocked key is in use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct KeyUsage {
    /// Certificates of ours that have the key, have not expired and are not revoked yet: the operation revokes them.
    pub revocable_here: i64,
    /// Certificates of other authorities that have the key and have not expired. Only their issuers can revoke them.
    pub revocable_elsewhere: i64,
    /// Where certificates with the key are deployed, served or were found: the first 1000.
    pub hosts: Vec<KeyHost>,
}

certctl_model::words! {
    /// How it is known that a host has a key.
    pub enum KeyEvidence {
        /// A certificate with the key was deployed to a target of the host last.
        Deployed = "deployed",
        /// An endpoint of a target served a certificate with the key when it was last looked at.
        Served = "served",
        /// A scan of the host found a certificate with the key in a file.
        Found = "found",
    }
}

/// A host on which a key is in use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "sqlx", derive(sqlx::FromRow))]
pub struct KeyHost {
    /// Its name.
    pub hostname: String,
    /// The agent on it.
    pub agent_id: AgentId,
    /// How it is known.
    pub evidence: KeyEvidence,
    /// Where: the name of the target, the endpoint, or the file.
    pub location: String,
    /// The managed certificate, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_id: Option<CertificateId>,
    /// SHA-256 of the certificate, lower-case hexadecimal.
    pub fingerprint: String,
}

/// A key to be blocked.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NewBlockedKey {
    /// SHA-256 of its SubjectPublicKeyInfo, as versions of certificates show it.
    pub spki_sha256: KeyFingerprint,
    /// Why, in words: at most 1000 characters.
    #[schemars(length(min = 1, max = 1000))]
    pub reason: String,
}
