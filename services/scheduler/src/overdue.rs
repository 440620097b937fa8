//! Ends jobs that wait for somebody who does not come: an agent for its request or its report, a person for approval. Tries
//! failed deployments again.

use std::{sync::Arc, time::Duration};

use certctl_model::{
    audit::Actor,
    id::JobId,
    job::{AwaitingApproval, AwaitingCsr, Fallible, JobKind, JobStatus, Running},
};
use certctl_store::{Error, certificates, jobs};
use tracing::warn;

use crate::Scheduler;

/// How often is looked.
pub const EVERY: Duration = Duration::from_secs(30);
/// How many jobs of each kind one run ends; a run that ended some is followed by another.
const BATCH: i64 = 100;

/// Fails what has waited too long. Renewals are planned again as after any failure. Returns how many jobs failed.
///
/// # Errors
/// When the database cannot be asked.
pub async fn sweep(scheduler: Arc<Scheduler>) -> anyhow::Result<u64> {
    let patience = &scheduler.patience;
    let csr = fail_all::<AwaitingCsr>(
        &scheduler,
        patience.csr,
        "its agent did not send a certification request",
    );
    let csr = csr.await?;
    let approval = fail_all::<AwaitingApproval>(&scheduler, patience.approval, "nobody approved it").await?;
    let deployment = "its agent began to deploy and did not tell what became of it";
    let deployment = fail_all::<Running>(&scheduler, patience.deployment, deployment).await?;
    Ok(csr + approval + deployment + retry(&scheduler).await?)
}

/// Hands out failed deployments again that are due. Returns how many were looked at.
async fn retry(scheduler: &Scheduler) -> anyhow::Result<u64> {
    let mut retried = 0;
    for id in jobs::retries_due(&scheduler.db, scheduler.now(), BATCH).await? {
        match retry_one(scheduler, &id).await {
            Ok(()) => retried += 1,
            Err(Error::WrongJobState { .. } | Error::Missing { .. }) => {}
            Err(Error::LeaseLost) => return Ok(retried),
            Err(error) if error.is_transient() => return Err(error.into()),
            Err(error) => warn!(job.id = %id, "job {id} cannot be retried: {error}"),
        }
    }
    Ok(retried)
}

async fn retry_one(scheduler: &Scheduler, id: &JobId) -> Result<(), Error> {
    let mut tx = scheduler.begin_as_leader().await?;
    jobs::retry_due(&mut tx, id).await?;
    tx.commit().await
}

async fn fail_all<S: Fallible>(scheduler: &Scheduler, patience: Duration, why: &str) -> anyhow::Result<u64> {
    let since = scheduler.now() - patience;
    // What a worker signs is bounded by its lease and its tries.
    let kind = (S::STATUS == JobStatus::Running).then_some(JobKind::Deployment);
    let mut failed = 0;
    for id in jobs::waiting_since(&scheduler.db, S::STATUS, kind, since, BATCH).await? {
        let reason = format!("{why} within {}", humantime::format_duration(patience));
        match fail::<S>(scheduler, &id, &reason).await {
            Ok(()) => {
                failed += 1;
                warn!(job.id = %id, "job {id} failed: {reason}");
            }
            // Moved since it was found, or another scheduler leads now.
            Err(Error::WrongJobState { .. } | Error::Missing { .. }) => {}
            Err(Error::LeaseLost) => return Ok(failed),
            Err(error) if error.is_transient() => return Err(error.into()),
            Err(error) => warn!(job.id = %id, "job {id} is overdue and cannot be ended: {error}"),
        }
    }
    Ok(failed)
}

async fn fail<S: Fallible>(scheduler: &Scheduler, id: &JobId, reason: &str) -> Result<(), Error> {
    let mut tx = scheduler.begin_as_leader().await?;
    let job = jobs::lock::<S>(&mut tx, id).await?;
    let facts = job.facts.clone();
    let by = Actor::system();
    if facts.kind == JobKind::Deployment {
        certificates::note_not_deployed(&mut tx, &by, &facts, S::STATUS, reason).await?;
    } else {
        certificates::note_failure(&mut tx, &facts, reason).await?;
        jobs::apply(&mut tx, job.fail(&by, reason.to_owned())).await?;
    }
    tx.commit().await
}
