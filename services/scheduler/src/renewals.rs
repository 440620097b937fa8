//! Plans what is due: renewals, and first issuances that failed before.

use std::{collections::BTreeMap, slice, sync::Arc};

use certctl_model::id::{CertificateId, JobId};
use certctl_runtime::failpoint;
use certctl_store::{
    Error, freezes,
    planning::{self, Due},
    wake::{self, Channel},
};
use tracing::{info, warn};

use crate::Scheduler;

/// Certificates that are planned together, in one unit of work.
const BATCH: usize = 1_000;

/// Creates the jobs of all certificates that are due. Returns how many certificates got some.
///
/// Dying in between is harmless, and so is another that does the same: what has its job is not due any more, and no
/// agent has two open jobs for one certificate.
///
/// # Errors
/// When the database cannot be asked.
pub async fn sweep(scheduler: Arc<Scheduler>) -> anyhow::Result<u64> {
    let planned = plan_all(&scheduler).await?;
    // Workers begin behind the pass: both want the same rows, and the last to be planned is no less due than the first.
    if planned > 0 {
        wake::wake(&scheduler.db, Channel::Jobs).await?;
    }
    Ok(planned)
}

async fn plan_all(scheduler: &Scheduler) -> anyhow::Result<u64> {
    let holds = freezes::holds(&mut *scheduler.db.acquire().await?, scheduler.now()).await?;
    let (mut planned, mut behind) = (0, None);
    loop {
        let due = planning::due(&scheduler.db, scheduler.now(), &holds, behind.as_ref(), BATCH as i64).await?;
        planned += match plan(scheduler, &due).await {
            Err(error) if error.is_transient() => return Err(error.into()),
            // Another plans them.
            Err(Error::LeaseLost) => return Ok(planned),
            // One that cannot be planned must not keep the others waiting.
            Err(error) => {
                warn!(
                    "{} renewals are not planned together but one by one: {error}",
                    due.len()
                );
                one_by_one(scheduler, &due).await?
            }
            Ok(certificates) => certificates,
        };
        if due.len() < BATCH {
            return Ok(planned);
        }
        behind = due.into_iter().next_back();
    }
}

async fn one_by_one(scheduler: &Scheduler, due: &[Due]) -> Result<u64, Error> {
    let mut planned = 0;
    for one in due {
        match plan(scheduler, slice::from_ref(one)).await {
            Ok(certificates) => planned += certificates,
            Err(error) if error.is_transient() || matches!(error, Error::LeaseLost) => return Err(error),
            Err(error) => {
                let id = &one.id;
                warn!(certificate.id = %id, "the renewal of certificate {id} cannot be planned: {error}");
            }
        }
    }
    Ok(planned)
}

/// Creates the jobs of those that are still due under their locks. Jobs that are open already are left alone. Returns
/// how many certificates got some.
async fn plan(scheduler: &Scheduler, due: &[Due]) -> Result<u64, Error> {
    if due.is_empty() {
        return Ok(0);
    }
    let mut tx = scheduler.begin_as_leader().await?;
    let jobs = planning::request_due(&mut tx, due).await?;
    tx.let_sleep();
    // Without jobs too: what a rule keeps from being issued is recorded then, and not due any more.
    tx.commit().await?;
    if jobs.is_empty() {
        return Ok(0);
    }
    metrics::counter!("renewals_planned_total").increment(jobs.len() as u64);
    let mut planned: BTreeMap<&CertificateId, Vec<&JobId>> = BTreeMap::new();
    for (certificate, job) in &jobs {
        planned.entry(certificate).or_default().push(job);
    }
    for (id, jobs) in &planned {
        info!(certificate.id = %id, jobs = jobs.len(), "certificate {id} is due; its renewal is planned");
    }
    failpoint::hold("scheduler.renewal_planned").await;
    Ok(planned.len() as u64)
}
