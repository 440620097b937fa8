//! Keys for which nothing is issued any more.

use certctl_model::{id::BulkId, key::KeyFingerprint, time::Time};
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
    /// another one, for what was issued in between.
    POST "" BlockKey(body: NewBlockedKey,) [Needs(Revoke)] -> 201 BlockedKey;
    /// Fetch one blocked key.
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
