//! Settles statuses that changed by themselves, and keeps the counts short.

use std::{sync::Arc, time::Duration};

use certctl_model::{
    certificate::{CertificateStatus, DeploymentStatus},
    job::JobStatus,
};
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
    let certificates = tallies::by_status(&scheduler.db, Subject::Certificate).await?;
    for status in CertificateStatus::ALL {
        publish("certificates", status.as_str(), &certificates);
    }
    let deployments = tallies::by_status(&scheduler.db, Subject::Deployment).await?;
    for status in DeploymentStatus::ALL {
        publish("certificate_deployments", status.as_str(), &deployments);
    }
    let jobs = tallies::by_status(&scheduler.db, Subject::Job).await?;
    for status in JobStatus::ALL {
        publish("jobs", status.as_str(), &jobs);
    }
    Ok(0)
}

fn publish(name: &'static str, status: &'static str, counts: &[(String, i64)]) {
    let count = counts
        .iter()
        .find(|(word, _)| word == status)
        .map_or(0, |(_, count)| *count);
    metrics::gauge!(name, "status" => status).set(count as f64);
}
