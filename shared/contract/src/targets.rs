//! Targets: where certificates are put.

use certctl_model::{
    connector::TargetType,
    id::{AgentId, TargetId},
    time::Time,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    endpoint::NoContent,
    list::{List, Page, blank},
    query::Id,
};

crate::resource! {
    targets "/api/v1/targets";

    /// List targets.
    GET "" ListTargets(query: List<TargetFilter, TargetSort>,) [Needs(View)] -> 200 Page<Target>;
    /// Create a target.
    POST "" CreateTarget(body: NewTarget,) [Needs(Configure)] -> 201 Target;
    /// Fetch one target.
    GET "/{id}" GetTarget(path: Id<TargetId>,) [Needs(View)] -> 200 Target;
    /// Change a target. Keys that are absent keep their value.
    PUT "/{id}" UpdateTarget(path: Id<TargetId>, body: TargetChanges,) [Needs(Configure)] -> 200 Target;
    /// Delete a target. Certificates are no longer put there; files on its host stay.
    DELETE "/{id}" DeleteTarget(path: Id<TargetId>,) [Needs(Configure)] -> 204 NoContent;
}

crate::query! {
    /// Which targets.
    pub struct TargetFilter {
        /// Only targets of this agent.
        agent_id: AgentId,
        /// Only targets of this name.
        name: String,
        /// Only targets that are, or are not, enabled.
        enabled: bool,
    }
}

crate::sort_keys! {
    /// How targets are sorted.
    pub enum TargetSort { CreatedAt = "createdAt", Name = "name" }
}

/// A target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "sqlx", derive(sqlx::FromRow))]
pub struct Target {
    /// Its id.
    pub id: TargetId,
    /// Its name, unique for its agent.
    pub name: String,
    /// What is served there.
    #[serde(rename = "type")]
    #[cfg_attr(feature = "sqlx", sqlx(rename = "type"))]
    pub kind: TargetType,
    /// The agent on its host.
    pub agent_id: AgentId,
    /// The host name of the agent.
    pub hostname: String,
    /// Settings of its type.
    pub config: Value,
    /// Keys of the configuration that was sent which mean nothing for its type; in answers to changes only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "sqlx", sqlx(skip))]
    pub ignored: Vec<String>,
    /// Whether certificates are put there.
    pub enabled: bool,
    /// `active` or `disabled`.
    pub status: String,
    /// When it was created.
    pub created_at: Time,
    /// When it was last changed.
    pub updated_at: Time,
}

/// A target to be.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NewTarget {
    /// An id of your choice; one is made when absent.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub id: Option<TargetId>,
    /// Its name, unique for its agent, 1 to 255 characters.
    #[schemars(length(min = 1, max = 255))]
    pub name: String,
    /// What is served there: `NGINX`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The agent on its host.
    pub agent_id: AgentId,
    /// Settings of its type; for `NGINX`: `cert_path` (needed), `chain_path`, `key_path`, `validate_command`,
    /// `reload_command`, `verify_address`, `verify_server_name`, `endpoints`: where clients connect to, as a list of
    /// `host:port`, and `placeholder`: true to have a self-signed pair written until there is a certificate. With `{id}`
    /// or `{name}` in its paths it can have several certificates.
    #[serde(default)]
    pub config: Value,
    /// Whether certificates are put there; true when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

/// What to change of a target.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct TargetChanges {
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub name: Option<String>,
    /// What is served there.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The agent on its host.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    /// Settings of its type, all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Value>,
    /// Whether certificates are put there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}
