//! Holds all certificates against the policy rules: after a rule changed, and now and then, because time passes and agents
//! move between groups.

use std::sync::Arc;

use certctl_model::{id::CertificateId, policy::Moment};
use certctl_store::policies;

use crate::Scheduler;

/// Certificates that are judged together, in one unit of work.
const BATCH: i64 = 1_000;

/// Returns how many violations were opened, closed or changed.
///
/// # Errors
/// When the database cannot be asked.
pub async fn sweep(scheduler: Arc<Scheduler>) -> anyhow::Result<u64> {
    let (mut changed, mut behind) = (0, String::new());
    loop {
        let mut tx = scheduler.begin_as_leader().await?;
        let ids = policies::ids_behind(&mut tx, &behind, BATCH).await?;
        let batch: Vec<&CertificateId> = ids.iter().collect();
        policies::judge(&mut tx, &batch, Moment::Sweep).await?;
        let events = tx.events() as u64;
        if events > 0 {
            tx.commit().await?;
        }
        changed += events;
        match ids.last() {
            Some(last) if ids.len() as i64 == BATCH => behind = last.to_string(),
            _ => return Ok(changed),
        }
    }
}
