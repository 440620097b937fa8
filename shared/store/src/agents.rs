//! Signs of life and their absence.

use std::time::Duration;

use certctl_model::{audit::Actor, id::AgentId, time::Time};
use sqlx::PgPool;

use crate::{Tx, error::*};

/// What a heartbeat says; empty texts keep what was known.
#[derive(Clone, Debug, Default)]
pub struct SignOfLife {
    /// Version of the agent.
    pub version: String,
    /// Host name.
    pub hostname: String,
    /// Operating system.
    pub os: String,
    /// Processor.
    pub architecture: String,
    /// Address.
    pub ip_address: String,
    /// Target types it can deploy to.
    pub capabilities: Vec<String>,
}

/// Records that an agent is alive: one statement, no event.
///
/// # Errors
/// [`Error::Missing`] when there is no such agent.
pub async fn heartbeat(pool: &PgPool, id: &AgentId, life: &SignOfLife, now: Time) -> Result<()> {
    let done = sqlx::query(
        "UPDATE agents
            SET last_heartbeat_at = $2, offline_since = NULL, updated_at = $2,
                version      = coalesce(nullif($3, ''), version),
                hostname     = coalesce(nullif($4, ''), hostname),
                os           = coalesce(nullif($5, ''), os),
                architecture = coalesce(nullif($6, ''), architecture),
                ip_address   = coalesce(nullif($7, ''), ip_address),
                capabilities = CASE WHEN $8::text[] = '{}' THEN capabilities ELSE $8 END
          WHERE id = $1",
    )
    .bind(id)
    .bind(now)
    .bind(&life.version)
    .bind(&life.hostname)
    .bind(&life.os)
    .bind(&life.architecture)
    .bind(&life.ip_address)
    .bind(&life.capabilities)
    .execute(pool)
    .await?;
    match done.rows_affected() {
        0 => Err(Error::Missing {
            kind: "agent",
            id: id.to_string(),
        }),
        _ => Ok(()),
    }
}

/// Marks agents as offline that were not heard of for so long, and says so in the trail. Returns how many.
///
/// # Errors
/// When the database cannot be asked.
pub async fn mark_silent(pool: &PgPool, actor: &Actor, now: Time, after: Duration) -> Result<u64> {
    let mut tx = Tx::begin(pool, actor, now).await?;
    let silent: Vec<AgentId> = sqlx::query_scalar(
        "UPDATE agents SET offline_since = $1
          WHERE offline_since IS NULL AND coalesce(last_heartbeat_at, registered_at) < $2
         RETURNING id",
    )
    .bind(now)
    .bind(now - after)
    .fetch_all(&mut *tx)
    .await?;
    if silent.is_empty() {
        return Ok(0);
    }
    for id in &silent {
        let event = tx.event("agent_offline", "agent", id);
        tx.note(event);
    }
    tx.commit().await?;
    Ok(silent.len() as u64)
}
