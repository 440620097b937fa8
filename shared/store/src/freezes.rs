//! Freezes: times in which nothing is renewed by itself.

use std::collections::{HashMap, HashSet};

use certctl_model::{
    id::{AgentGroupId, AgentId, RenewalPolicyId},
    time::Time,
};
use sqlx::PgConnection;

use crate::{column, error::*, policies};

/// What is held now, as columns that a statement can read: one entry for each freeze, policy and agent, empty where any
/// is meant.
#[derive(Clone, Debug, Default)]
pub struct Holds {
    /// Renewal policies.
    pub(crate) policies: Vec<String>,
    /// Agents.
    pub(crate) agents: Vec<String>,
    /// When the freeze ends.
    pub(crate) until: Vec<Time>,
    /// Its name.
    pub(crate) names: Vec<String>,
}

#[derive(sqlx::FromRow)]
struct Freeze {
    name: String,
    ends_at: Time,
    groups: Vec<AgentGroupId>,
    policies: Vec<RenewalPolicyId>,
}

/// What is held at an instant.
///
/// # Errors
/// When the database cannot be asked.
pub async fn holds(db: &mut PgConnection, now: Time) -> Result<Holds> {
    let freezes: Vec<Freeze> = sqlx::query_as(
        "SELECT f.name, f.ends_at,
                ARRAY(SELECT s.agent_group_id FROM freeze_scopes s
                       WHERE s.freeze_id = f.id AND s.agent_group_id IS NOT NULL) AS groups,
                ARRAY(SELECT s.renewal_policy_id FROM freeze_scopes s
                       WHERE s.freeze_id = f.id AND s.renewal_policy_id IS NOT NULL) AS policies
           FROM freezes f WHERE f.starts_at <= $1 AND f.ends_at > $1",
    )
    .bind(now)
    .fetch_all(&mut *db)
    .await?;
    let groups: HashSet<&AgentGroupId> = freezes.iter().flat_map(|freeze| &freeze.groups).collect();
    let mut members: HashMap<AgentGroupId, Vec<AgentId>> = HashMap::new();
    if !groups.is_empty() {
        let agents: Vec<AgentId> = sqlx::query_scalar("SELECT id FROM agents").fetch_all(&mut *db).await?;
        for (group, agent) in policies::members(db, groups, agents.iter().collect()).await? {
            members.entry(group).or_default().push(agent);
        }
    }
    let mut holds = Holds::default();
    for freeze in &freezes {
        let agents: Vec<String> = match freeze.groups.is_empty() {
            true => vec![String::new()],
            false => {
                let of = |group| members.get(group).into_iter().flatten().map(ToString::to_string);
                freeze.groups.iter().flat_map(of).collect()
            }
        };
        let policies = match freeze.policies.is_empty() {
            true => vec![String::new()],
            false => column(&freeze.policies, ToString::to_string),
        };
        for (policy, agent) in policies
            .iter()
            .flat_map(|policy| agents.iter().map(move |agent| (policy, agent)))
        {
            holds.policies.push(policy.clone());
            holds.agents.push(agent.clone());
            holds.until.push(freeze.ends_at);
            holds.names.push(freeze.name.clone());
        }
    }
    Ok(holds)
}
