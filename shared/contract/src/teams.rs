//! Teams.

use certctl_model::{id::TeamId, notice::NoticeSeverity, time::Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    endpoint::NoContent,
    list::{List, Page, blank},
    query::Id,
};

crate::resource! {
    teams "/api/v1/teams";

    /// List teams.
    GET "" ListTeams(query: List<TeamFilter, TeamSort>,) [Needs(View), Rows] -> 200 Page<Team>;
    /// Create a team.
    POST "" CreateTeam(body: NewTeam,) [Needs(Configure)] -> 201 Team;
    /// Fetch one team.
    GET "/{id}" GetTeam(path: Id<TeamId>,) [Needs(View), Rows] -> 200 Team;
    /// Change a team. Keys that are absent keep their value.
    PUT "/{id}" UpdateTeam(path: Id<TeamId>, body: TeamChanges,) [Needs(Configure)] -> 200 Team;
    /// Delete a team. Refused while owners or certificates refer to it.
    DELETE "/{id}" DeleteTeam(path: Id<TeamId>,) [Needs(Configure)] -> 204 NoContent;
}

crate::query! {
    /// Which teams.
    pub struct TeamFilter {
        /// Only the team of this name.
        name: String,
    }
}

crate::sort_keys! {
    /// How teams are sorted.
    pub enum TeamSort { CreatedAt = "createdAt", Name = "name" }
}

/// A team.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "sqlx", derive(sqlx::FromRow))]
pub struct Team {
    /// Its id.
    pub id: TeamId,
    /// Its name, unique.
    pub name: String,
    /// Free text.
    pub description: String,
    /// Where it is told of its certificates; nowhere when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// From which severity on.
    pub notify_from: NoticeSeverity,
    /// When it was created.
    pub created_at: Time,
    /// When it was last changed.
    pub updated_at: Time,
}

/// A team to be.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NewTeam {
    /// An id of your choice; one is made when absent.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub id: Option<TeamId>,
    /// Its name, unique, 1 to 255 characters.
    #[schemars(length(min = 1, max = 255))]
    pub name: String,
    /// Free text.
    #[serde(default)]
    pub description: String,
    /// Where it is told of its certificates, besides their owners; nowhere when absent.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// From which severity on: `Info`, `Warning` or `Critical`; `Warning` when absent.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub notify_from: Option<String>,
}

/// What to change of a team.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct TeamChanges {
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub name: Option<String>,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Where it is told of its certificates; an empty text takes the address away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// From which severity on.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub notify_from: Option<String>,
}
