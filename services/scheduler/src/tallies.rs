//! Settles statuses that changed by themselves, and keeps the counts short.

use std::{sync::Arc, time::Duration};

use certctl_store::tallies::{self, Subject};

use crate::Scheduler;

/// How often statuses are settled. Whoever asks by status does it for himself; this keeps his share small.
pub const SETTLE_EVERY: Duration = Duration::from_secs(5);
/// How often differences are summed up.
pub const COMPACT_EVERY: Duration = Duration::from_secs(2);

/// Settles what changed since. Returns how many.
///
/// # Errors
/// When the database cannot be asked.
pub async fn settle(scheduler: Arc<Scheduler>) -> anyhow::Result<u64> {
    tallies::settle(&scheduler.db, scheduler.now()).await?;
    Ok(0)
}

/// Sums up, and publishes the counts.
///
/// # Errors
/// When the database cannot be asked.
pub async fn compact(scheduler: Arc<Scheduler>) -> anyhow::Result<u64> {
    tallies::compact(&scheduler.db).await?;
    for (subject, name) in [(Subject::Certificate, "certificates"), (Subject::Job, "jobs")] {
        for (status, count) in tallies::by_status(&scheduler.db, subject).await? {
            #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
            metrics::gauge!(name, "status" => status).set(count as f64);
        }
    }
    Ok(0)
}
