//! Named API keys with roles.

use certctl_model::{
    id::{AgentId, ApiKeyId},
    scope::Scope,
    time::Time,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    endpoint::{NoContent, Role},
    list::{Clearable, List, Page, blank},
    query::Id,
};

crate::resource! {
    api_keys "/api/v1/api-keys";

    /// List API keys. Their secrets are not kept, so they cannot be shown.
    GET "" ListApiKeys(query: List<ApiKeyFilter, ApiKeySort>,) [Needs(Administer)] -> 200 Page<ApiKey>;
    /// Create an API key. Its secret is in the answer, this once.
    POST "" CreateApiKey(body: NewApiKey,) [Needs(Administer)] -> 201 IssuedApiKey;
    /// Fetch one API key.
    GET "/{id}" GetApiKey(path: Id<ApiKeyId>,) [Needs(Administer)] -> 200 ApiKey;
    /// Change name, role, scope or end of an API key. Keys that are absent keep their value.
    PUT "/{id}" UpdateApiKey(path: Id<ApiKeyId>, body: ApiKeyChanges,) [Needs(Administer)] -> 200 ApiKey;
    /// Give an API key a new secret, which is in the answer, this once. The one before stays valid for a while.
    POST "/{id}/rotate" RotateApiKey(path: Id<ApiKeyId>, body: Rotation,) [Needs(Administer)] -> 200 IssuedApiKey;
    /// Revoke an API key, at once and for good. The sessions begun with it end too.
    DELETE "/{id}" RevokeApiKey(path: Id<ApiKeyId>,) [Needs(Administer)] -> 204 NoContent;
}

/// How long a secret stays valid after another took its place, when nobody says: a day.
pub const DEFAULT_OVERLAP_SECONDS: u32 = 24 * 3600;
/// The longest such time: 30 days.
pub const MAX_OVERLAP_SECONDS: u32 = 30 * 24 * 3600;

crate::query! {
    /// Which API keys.
    pub struct ApiKeyFilter {
        /// Only keys with this role.
        role: Role,
        /// Only keys of this agent.
        agent_id: AgentId,
    }
}

crate::sort_keys! {
    /// How API keys are sorted.
    pub enum ApiKeySort { CreatedAt = "createdAt", Name = "name", LastUsedAt = "lastUsedAt" }
}

/// An API key, without its secret.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "sqlx", derive(sqlx::FromRow))]
pub struct ApiKey {
    /// Its id.
    pub id: ApiKeyId,
    /// Its name, which the trail carries.
    pub name: String,
    /// What its holder may do.
    pub role: Role,
    /// The agent whose key it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    /// To which certificates it is limited; absent for no limit.
    #[serde(default, skip_serializing_if = "Scope::is_empty")]
    #[cfg_attr(feature = "sqlx", sqlx(json))]
    pub scope: Scope,
    /// The first characters of its secret.
    pub prefix: String,
    /// Who created it.
    pub created_by: String,
    /// When it was created.
    pub created_at: Time,
    /// When it was last changed.
    pub updated_at: Time,
    /// When it ends; absent for never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// When it was last used, to about a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<Time>,
    /// Until when secrets before the present one are valid; absent when none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_valid_until: Option<Time>,
}

/// An API key to be.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NewApiKey {
    /// Its name, unique, 1 to 255 characters.
    #[schemars(length(min = 1, max = 255))]
    pub name: String,
    /// What its holder may do.
    pub role: Role,
    /// The agent whose key it is: needed when `role` is `agent`, and only then.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    /// To which certificates it is limited; absent for no limit. For every role but `admin` and `agent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
    /// When it ends; never when absent.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// For the key of an agent: end every other key of that agent, the one of its registration included.
    #[serde(default)]
    pub replaces_others: bool,
}

/// What to change of an API key.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct ApiKeyChanges {
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub name: Option<String>,
    /// What its holder may do. An agent's key stays one, and no other becomes one.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// To which certificates it is limited, as a whole; the empty object for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
    /// When it ends; the empty text for never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Clearable<Time>>,
}

/// How a secret takes the place of another.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Rotation {
    /// Seconds for which the secret before stays valid: a day when absent, at most 30 days, 0 to end it at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = MAX_OVERLAP_SECONDS))]
    pub overlap_seconds: Option<u32>,
}

/// An API key with its new secret.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct IssuedApiKey {
    /// The key.
    #[serde(flatten)]
    pub key: ApiKey,
    /// Its secret: send it as bearer token. It is not shown again.
    pub api_key: String,
}
