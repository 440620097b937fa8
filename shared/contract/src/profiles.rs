//! Profiles: what may be issued.

use certctl_model::{
    approval::Approval,
    id::ProfileId,
    profile::{ExtendedKeyUsage, KeyRule},
    time::Time,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    endpoint::NoContent,
    list::{List, Page, blank},
    query::Id,
};

crate::resource! {
    profiles "/api/v1/profiles";

    /// List profiles.
    GET "" ListProfiles(query: List<ProfileFilter, ProfileSort>,) [Needs(View), Rows] -> 200 Page<Profile>;
    /// Create a profile.
    POST "" CreateProfile(body: NewProfile,) [Needs(Configure)] -> 201 Profile;
    /// Fetch one profile.
    GET "/{id}" GetProfile(path: Id<ProfileId>,) [Needs(View), Rows] -> 200 Profile;
    /// Change a profile. Keys that are absent keep their value.
    PUT "/{id}" UpdateProfile(path: Id<ProfileId>, body: ProfileChanges,) [Needs(Configure)] -> 200 Profile;
    /// Delete a profile. Refused while certificates or renewal policies refer to it: without it they would have no limits.
    DELETE "/{id}" DeleteProfile(path: Id<ProfileId>,) [Needs(Configure)] -> 204 NoContent;
}

crate::query! {
    /// Which profiles.
    pub struct ProfileFilter {
        /// Only profiles that are, or are not, enabled.
        enabled: bool,
    }
}

crate::sort_keys! {
    /// How profiles are sorted.
    pub enum ProfileSort { CreatedAt = "createdAt", Name = "name" }
}

/// A profile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Profile {
    /// Its id.
    pub id: ProfileId,
    /// Its name, unique.
    pub name: String,
    /// Free text.
    pub description: String,
    /// Keys it takes: one rule must fit.
    pub allowed_key_algorithms: Vec<KeyRule>,
    /// Longest lifetime in seconds; 0 for no limit of its own.
    pub max_ttl_seconds: i64,
    /// Extended key usages put into certificates.
    pub allowed_ekus: Vec<ExtendedKeyUsage>,
    /// Regular expressions; each must match the whole of at least one name.
    pub required_san_patterns: Vec<String>,
    /// Regular expression that each SPIFFE id must match; empty when none is needed.
    pub spiffe_uri_pattern: String,
    /// Whether lifetimes under an hour are meant, whose revocations are not published.
    pub allow_short_lived: bool,
    /// Whether it may be used.
    pub enabled: bool,
    /// When people have to agree before a request is signed.
    pub approval: Approval,
    /// How many.
    pub approvers: i32,
    /// When it was created.
    pub created_at: Time,
    /// When it was last changed.
    pub updated_at: Time,
}

/// A profile to be.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NewProfile {
    /// An id of your choice; one is made when absent.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub id: Option<ProfileId>,
    /// Its name, unique, 1 to 255 characters.
    #[schemars(length(min = 1, max = 255))]
    pub name: String,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Keys it takes; ECDSA 256 and RSA 2048 when absent on creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_key_algorithms: Option<Vec<KeyRule>>,
    /// Longest lifetime in seconds; 0 for no limit of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub max_ttl_seconds: Option<i64>,
    /// Extended key usages, by name or object identifier; `serverAuth` when absent on creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_ekus: Option<Vec<ExtendedKeyUsage>>,
    /// Regular expressions; each must match the whole of at least one name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub required_san_patterns: Option<Vec<String>>,
    /// Regular expression that each SPIFFE id must match; empty when none is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spiffe_uri_pattern: Option<String>,
    /// Whether lifetimes under an hour are meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_short_lived: Option<bool>,
    /// Whether it may be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// When people have to agree before a request is signed: `none`, `manual` or `always`; `none` when absent on creation. Where the renewal policy asks
    /// for more, that counts.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub approval: Option<String>,
    /// How many; 1 when absent on creation. Whoever asked for the certificate is none of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3))]
    pub approvers: Option<i32>,
}

/// What to set of a profile.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct ProfileChanges {
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub name: Option<String>,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Keys it takes; ECDSA 256 and RSA 2048 when absent on creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_key_algorithms: Option<Vec<KeyRule>>,
    /// Longest lifetime in seconds; 0 for no limit of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub max_ttl_seconds: Option<i64>,
    /// Extended key usages, by name or object identifier; `serverAuth` when absent on creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_ekus: Option<Vec<ExtendedKeyUsage>>,
    /// Regular expressions; each must match the whole of at least one name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub required_san_patterns: Option<Vec<String>>,
    /// Regular expression that each SPIFFE id must match; empty when none is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spiffe_uri_pattern: Option<String>,
    /// Whether lifetimes under an hour are meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_short_lived: Option<bool>,
    /// Whether it may be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// When people have to agree before a request is signed: `none`, `manual` or `always`; `none` when absent on creation. Where the renewal policy asks
    /// for more, that counts.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub approval: Option<String>,
    /// How many; 1 when absent on creation. Whoever asked for the certificate is none of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3))]
    pub approvers: Option<i32>,
}
