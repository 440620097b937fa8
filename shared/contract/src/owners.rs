//! Owners: who answers for certificates and is told about them.

use certctl_model::{
    id::{OwnerId, TeamId},
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
    owners "/api/v1/owners";

    /// List owners.
    GET "" ListOwners(query: List<OwnerFilter, OwnerSort>,) [Needs(View)] -> 200 Page<Owner>;
    /// Create an owner.
    POST "" CreateOwner(body: NewOwner,) [Needs(Configure)] -> 201 Owner;
    /// Fetch one owner.
    GET "/{id}" GetOwner(path: Id<OwnerId>,) [Needs(View)] -> 200 Owner;
    /// Change an owner. Keys that are absent keep their value.
    PUT "/{id}" UpdateOwner(path: Id<OwnerId>, body: OwnerChanges,) [Needs(Configure)] -> 200 Owner;
    /// Delete an owner. Refused while certificates refer to it.
    DELETE "/{id}" DeleteOwner(path: Id<OwnerId>,) [Needs(Configure)] -> 204 NoContent;
}

crate::query! {
    /// Which owners.
    pub struct OwnerFilter {
        /// Only owners of this team.
        team_id: TeamId,
        /// Only the owner with this address.
        email: String,
    }
}

crate::sort_keys! {
    /// How owners are sorted.
    pub enum OwnerSort { CreatedAt = "createdAt", Name = "name" }
}

/// An owner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "sqlx", derive(sqlx::FromRow))]
pub struct Owner {
    /// Its id.
    pub id: OwnerId,
    /// Its name.
    pub name: String,
    /// Where its notifications go; empty for nowhere.
    pub email: String,
    /// Its team.
    pub team_id: TeamId,
    /// When it was created.
    pub created_at: Time,
    /// When it was last changed.
    pub updated_at: Time,
}

/// An owner to be.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NewOwner {
    /// An id of your choice; one is made when absent.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub id: Option<OwnerId>,
    /// Its name, 1 to 255 characters.
    #[schemars(length(min = 1, max = 255))]
    pub name: String,
    /// Where its notifications go.
    #[serde(default)]
    pub email: String,
    /// Its team; `t-unassigned` when absent.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub team_id: Option<TeamId>,
}

/// What to change of an owner.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct OwnerChanges {
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub name: Option<String>,
    /// Where its notifications go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// Its team.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub team_id: Option<TeamId>,
}
