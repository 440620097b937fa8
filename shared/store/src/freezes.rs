//! Times in which nothing is renewed by itself: freezes, and all but the maintenance windows of a policy.

use std::collections::{HashMap, HashSet};

use certctl_model::{
    id::{AgentGroupId, AgentId, RenewalPolicyId},
    time::Time,
    window::Windows,
};
use sqlx::PgConnection;

use crate::{
    column,
    error::*,
    policies::{self, Facts},
};

/// What is held now, as columns that a statement can read: one entry for each freeze, policy and agent, empty where any
/// is meant.
#[derive(Clone, Debug, Default)]
pub struct Holds {
    /// Renewal policies.
    pub(crate) policies: Vec<String>,
    /// Agents.
    pub(crate) agents: Vec<String>,
    /// When that ends.
    pub(crate) until: Vec<Time>,
    /// What holds it, in words.
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
        for (group, agent) in policies::members(db, groups, agents.iter().collect(), Facts::Stated).await? {
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
            holds.names.push(format!("freeze \"{}\"", freeze.name));
        }
    }
    let limited: Vec<(RenewalPolicyId, Vec<String>)> = sqlx::query_as(
        "SELECT id, maintenance_windows FROM renewal_policies WHERE cardinality(maintenance_windows) > 0",
    )
    .fetch_all(&mut *db)
    .await?;
    for (policy, windows) in limited {
        // What cannot be read was refused when it was written, and holds nothing.
        let opens = Windows::read(&windows)
            .ok()
            .and_then(|windows| windows.next_opening(now));
        if let Some(opens) = opens {
            holds
                .names
                .push(format!("the maintenance windows of renewal policy {policy}"));
            holds.policies.push(policy.to_string());
            holds.agents.push(String::new());
            holds.until.push(opens);
        }
    }
    Ok(holds)
}
