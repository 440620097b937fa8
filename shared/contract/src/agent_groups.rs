//! Agent groups: agents that match, and those named.

use certctl_model::{
    group::Membership,
    id::{AgentGroupId, AgentId},
    time::Time,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    agents::{Agent, AgentFilter, AgentSort},
    endpoint::NoContent,
    list::{List, Page, blank},
    query::Id,
};

crate::resource! {
    agent_groups "/api/v1/agent-groups";

    /// List agent groups, by name unless sorted.
    GET "" ListAgentGroups(query: List<AgentGroupFilter, AgentGroupSort>,) [Needs(View)] -> 200 Page<AgentGroup>;
    /// Create an agent group.
    POST "" CreateAgentGroup(body: NewAgentGroup,) [Needs(Configure)] -> 201 AgentGroup;
    /// Fetch one agent group.
    GET "/{id}" GetAgentGroup(path: Id<AgentGroupId>,) [Needs(View)] -> 200 AgentGroup;
    /// Change an agent group. Keys that are absent keep their value; a criterion is taken away by the empty text.
    PUT "/{id}" UpdateAgentGroup(path: Id<AgentGroupId>, body: AgentGroupChanges,) [Needs(Configure)] -> 200 AgentGroup;
    /// Delete an agent group. Its agents stay.
    DELETE "/{id}" DeleteAgentGroup(path: Id<AgentGroupId>,) [Needs(Configure)] -> 204 NoContent;
    /// List the agents of a group: those that match or are included, without those excluded.
    ///
    /// Unless pages are asked for, one page holds all of them up to 500; `next_cursor` says that there are more.
    GET "/{id}/members" ListAgentGroupMembers(path: Id<AgentGroupId>, query: List<AgentFilter, AgentSort>,)
        [Needs(View)] -> 200 Page<Agent>;
    /// Include an agent in a group, or exclude it, whether it matches or not.
    PUT "/{id}/members/{agent_id}" SetAgentGroupMember(path: MemberPath, body: NewMember,)
        [Needs(Configure)] -> 200 Member;
    /// Take back that an agent is included or excluded; the group's criteria decide again.
    DELETE "/{id}/members/{agent_id}" RemoveAgentGroupMember(path: MemberPath,) [Needs(Configure)] -> 204 NoContent;
    /// List the agents that a group includes or excludes by name.
    GET "/{id}/overrides" ListAgentGroupOverrides(path: Id<AgentGroupId>, query: List<MemberFilter, MemberSort>,)
        [Needs(View)] -> 200 Page<Member>;
}

crate::path! {
    /// An agent as a member of a group.
    pub struct MemberPath {
        /// Which group.
        id: AgentGroupId,
        /// Which agent.
        agent_id: AgentId,
    }
}

crate::query! {
    /// Which agent groups.
    pub struct AgentGroupFilter {
        /// Only the group of this name.
        name: String,
        /// Only groups that are, or are not, enabled.
        enabled: bool,
    }
}

crate::sort_keys! {
    /// How agent groups are sorted.
    pub enum AgentGroupSort { Name = "name", CreatedAt = "createdAt" }
}

crate::query! {
    /// Which overrides.
    pub struct MemberFilter {
        /// Only agents that are included, or only those excluded.
        membership_type: Membership,
    }
}

crate::sort_keys! {
    /// How overrides are sorted.
    pub enum MemberSort { CreatedAt = "createdAt" }
}

/// An agent group. Agents match that meet every criterion that is not empty; where all are empty, none does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "sqlx", derive(sqlx::FromRow))]
pub struct AgentGroup {
    /// Its id.
    pub id: AgentGroupId,
    /// Its name, unique.
    pub name: String,
    /// Free text.
    pub description: String,
    /// Operating system, in any case.
    pub match_os: String,
    /// Processor, in any case.
    pub match_architecture: String,
    /// Block of addresses, IPv4 or IPv6.
    pub match_ip_cidr: String,
    /// Version, or range of versions.
    pub match_version: String,
    /// Whether agents match; of a group that is disabled only those included are members.
    pub enabled: bool,
    /// When it was created.
    pub created_at: Time,
    /// When it was last changed.
    pub updated_at: Time,
}

/// An agent group to be.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NewAgentGroup {
    /// An id of your choice; one is made when absent.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub id: Option<AgentGroupId>,
    /// Its name, unique, 1 to 255 characters.
    #[schemars(length(min = 1, max = 255))]
    pub name: String,
    /// Free text.
    #[serde(default)]
    pub description: String,
    /// Operating system, as agents name it: `linux`, `darwin`, `windows`.
    #[serde(default)]
    pub match_os: String,
    /// Processor, as agents name it: `amd64`, `arm64`.
    #[serde(default)]
    pub match_architecture: String,
    /// Block of addresses, like `10.0.0.0/8` or `2001:db8::/32`.
    #[serde(default)]
    pub match_ip_cidr: String,
    /// One version, like `2.1.0`, or a range, like `>=2.0.0, <3.0.0`.
    #[serde(default)]
    pub match_version: String,
    /// Whether agents match; true when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

/// What to change of an agent group.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct AgentGroupChanges {
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub name: Option<String>,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Operating system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub match_os: Option<String>,
    /// Processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub match_architecture: Option<String>,
    /// Block of addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub match_ip_cidr: Option<String>,
    /// Version, or range of versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub match_version: Option<String>,
    /// Whether agents match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

/// How an agent is named by a group.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct NewMember {
    /// `include` (when absent) or `exclude`.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub membership_type: Option<Membership>,
}

/// An agent that a group names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "sqlx", derive(sqlx::FromRow))]
pub struct Member {
    /// The group.
    pub agent_group_id: AgentGroupId,
    /// The agent.
    pub agent_id: AgentId,
    /// How it is named.
    pub membership_type: Membership,
    /// Since when.
    pub created_at: Time,
}
