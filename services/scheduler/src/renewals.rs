//! Plans what is due: renewals, and first issuances that failed before.

use std::sync::Arc;

use certctl_model::id::{CertificateId, JobId};
use certctl_runtime::failpoint;
use certctl_store::{Error, certificates, planning};
use tracing::{info, warn};

use crate::Scheduler;

/// How many certificates one run looks at; a run that planned something is followed by another.
const BATCH: i64 = 500;

/// Creates the jobs of certificates that are due, each in a transaction of its own. Returns how many certificates
/// got some.
///
/// # Errors
/// When the database cannot be asked.
pub async fn sweep(scheduler: Arc<Scheduler>) -> anyhow::Result<u64> {
    let mut planned = 0;
    for id in planning::due(&scheduler.db, scheduler.now(), BATCH).await? {
        match plan(&scheduler, &id).await {
            Ok(jobs) if jobs.is_empty() => {}
            Ok(jobs) => {
                planned += 1;
                metrics::counter!("renewals_planned_total").increment(jobs.len() as u64);
                info!(certificate.id = %id, jobs = jobs.len(), "certificate {id} is due; its renewal is planned");
                failpoint::hold("scheduler.renewal_planned").await;
            }
            // Revoked, archived or deleted since it was found.
            Err(Error::Conflict(_) | Error::Missing { .. }) => {}
            Err(error) if error.is_transient() => return Err(error.into()),
            // One that cannot be planned must not keep the others waiting.
            Err(error) => warn!(certificate.id = %id, "the renewal of certificate {id} cannot be planned: {error}"),
        }
    }
    Ok(planned)
}

/// Creates the jobs of one certificate, if it is still due under its lock. Jobs that are open already are left alone.
async fn plan(scheduler: &Scheduler, id: &CertificateId) -> Result<Vec<JobId>, Error> {
    let mut tx = scheduler.begin().await?;
    let certificate = certificates::lock(&mut tx, id).await?;
    certificate.must_be_live()?;
    let jobs = planning::request_due(&mut tx, &certificate).await?;
    if !jobs.is_empty() {
        tx.commit().await?;
    }
    Ok(jobs)
}
