//! Notices agents that fell silent.

use std::sync::Arc;

use certctl_model::audit::Actor;
use certctl_store::agents;
use tracing::info;

use crate::Scheduler;

/// Marks agents as offline that were not heard of for too long. Returns how many.
///
/// # Errors
/// When the database cannot be asked.
pub async fn mark_silent(scheduler: Arc<Scheduler>) -> anyhow::Result<u64> {
    let now = scheduler.now();
    let silent = agents::mark_silent(&scheduler.db, &Actor::system(), now, scheduler.agent_offline_after).await?;
    if silent > 0 {
        info!(agents = silent, "{silent} agents went offline");
    }
    Ok(silent)
}
