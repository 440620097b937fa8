//! Freezes: times in which nothing is renewed by itself.

use certctl_model::{
    id::{AgentGroupId, FreezeId, RenewalPolicyId},
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
    freezes "/api/v1/freezes";

    /// List freezes, newest first unless sorted.
    GET "" ListFreezes(query: List<FreezeFilter, FreezeSort>,) [Needs(View)] -> 200 Page<Freeze>;
    /// Create a freeze: until it ends, certificates it holds for are not renewed by themselves.
    ///
    /// What was begun goes on, and whatever a person asks for is done. A certificate that would end earlier than a day
    /// after the freeze is renewed all the same.
    POST "" CreateFreeze(body: NewFreeze,) [Needs(Configure)] -> 201 Freeze;
    /// Fetch one freeze.
    GET "/{id}" GetFreeze(path: Id<FreezeId>,) [Needs(View)] -> 200 Freeze;
    /// Change a freeze, for example its end. Keys that are absent keep their value.
    PUT "/{id}" UpdateFreeze(path: Id<FreezeId>, body: FreezeChanges,) [Needs(Configure)] -> 200 Freeze;
    /// Delete a freeze: what it held is renewed.
    DELETE "/{id}" DeleteFreeze(path: Id<FreezeId>,) [Needs(Configure)] -> 204 NoContent;
}

crate::query! {
    /// Which freezes.
    pub struct FreezeFilter {
        /// Only freezes that end after this time.
        ends_after: Time,
        /// Only freezes that start before this time.
        starts_before: Time,
    }
}

crate::sort_keys! {
    /// How freezes are sorted.
    pub enum FreezeSort { CreatedAt = "createdAt", StartsAt = "startsAt" }
}

/// A freeze.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "sqlx", derive(sqlx::FromRow))]
pub struct Freeze {
    /// Its id.
    pub id: FreezeId,
    /// Its name, unique.
    pub name: String,
    /// Why, in words.
    pub reason: String,
    /// From when.
    pub starts_at: Time,
    /// Until when.
    pub ends_at: Time,
    /// It holds only for renewals by agents in one of these groups; everywhere when there is none.
    pub agent_group_ids: Vec<AgentGroupId>,
    /// It holds only for certificates under one of these; everywhere when there is none.
    pub renewal_policy_ids: Vec<RenewalPolicyId>,
    /// When it was created.
    pub created_at: Time,
    /// When it was last changed.
    pub updated_at: Time,
}

/// A freeze to be.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NewFreeze {
    /// An id of your choice; one is made when absent.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub id: Option<FreezeId>,
    /// Its name, unique, 1 to 255 characters.
    #[schemars(length(min = 1, max = 255))]
    pub name: String,
    /// Why, in words: at most 1000 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1000))]
    pub reason: Option<String>,
    /// From when; at once when absent.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub starts_at: Option<Time>,
    /// Until when.
    pub ends_at: Time,
    /// It holds only for renewals by agents in one of these groups; everywhere when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_group_ids: Option<Vec<AgentGroupId>>,
    /// It holds only for certificates under one of these; everywhere when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewal_policy_ids: Option<Vec<RenewalPolicyId>>,
}

/// What to change of a freeze.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct FreezeChanges {
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub name: Option<String>,
    /// Why, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1000))]
    pub reason: Option<String>,
    /// From when.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub starts_at: Option<Time>,
    /// Until when.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub ends_at: Option<Time>,
    /// The groups it holds for, all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_group_ids: Option<Vec<AgentGroupId>>,
    /// The renewal policies it holds for, all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewal_policy_ids: Option<Vec<RenewalPolicyId>>,
}
