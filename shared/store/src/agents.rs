//! Signs of life and their absence.

use std::{net::IpAddr, time::Duration};

use certctl_model::{audit::Actor, id::AgentId, notice::NoticeKind, time::Time};
use sqlx::PgPool;

use crate::{
    Tx,
    error::*,
    outbox::{self, PlatformNews},
};

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
    /// Address, as the agent states it.
    pub ip_address: String,
    /// The address it connects from.
    pub peer: Option<IpAddr>,
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
                version      = CASE WHEN $3 = '' OR 'version' = ANY (operator_set) THEN version ELSE $3 END,
                hostname     = coalesce(nullif($4, ''), hostname),
                os           = CASE WHEN $5 = '' OR 'os' = ANY (operator_set) THEN os ELSE $5 END,
                architecture = CASE WHEN $6 = '' OR 'architecture' = ANY (operator_set) THEN architecture ELSE $6 END,
                ip_address   = CASE WHEN $7 = '' OR 'ip_address' = ANY (operator_set) THEN ip_address ELSE $7 END,
                peer_address = coalesce($9::text::inet, peer_address),
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
    .bind(life.peer.map(|peer| peer.to_string()))
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

/// Marks agents as offline that were not heard of for so long, says so in the trail and tells of it. Returns how many.
///
/// # Errors
/// When the database cannot be asked.
pub async fn mark_silent(pool: &PgPool, actor: &Actor, now: Time, after: Duration) -> Result<u64> {
    let mut tx = Tx::begin(pool, actor, now).await?;
    let silent: Vec<(AgentId, String, Time)> = sqlx::query_as(
        "UPDATE agents SET offline_since = $1
          WHERE offline_since IS NULL AND coalesce(last_heartbeat_at, registered_at) < $2
         RETURNING id, name, coalesce(last_heartbeat_at, registered_at)",
    )
    .bind(now)
    .bind(now - after)
    .fetch_all(&mut *tx)
    .await?;
    if silent.is_empty() {
        return Ok(0);
    }
    for (id, ..) in &silent {
        let event = tx.event("agent_offline", "agent", id);
        tx.note(event);
    }
    outbox::announce_platform(&mut tx, &gone(&silent, now)).await?;
    tx.commit().await?;
    Ok(silent.len() as u64)
}

/// One piece of news for all of them: after an outage of the platform itself they are many.
fn gone(silent: &[(AgentId, String, Time)], now: Time) -> PlatformNews {
    const NAMED: usize = 20;
    let named = silent.iter().take(NAMED);
    let named: Vec<String> = named
        .map(|(id, name, heard)| format!("{name} ({id}), last heard of at {heard}"))
        .collect();
    let more = match silent.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    PlatformNews {
        kind: NoticeKind::AgentOffline,
        dedup: format!("{}:{now}", silent[0].0),
        subject: match silent {
            [(_, name, _)] => format!("Agent {name} is offline"),
            _ => format!("{} agents are offline", silent.len()),
        },
        message: format!(
            "Offline: {}{more}. What they should do waits for them.",
            named.join("; ")
        ),
    }
}
