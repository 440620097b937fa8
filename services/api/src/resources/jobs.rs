//! Jobs.

use certctl_contract::{
    health::Outcome,
    jobs::{ApproveJob, CancelJob, Decision, GetJob, Job, JobFilter, JobSort, ListJobs, RejectJob, RetryJob},
    list::{Page, Sort},
    problem::Kind,
};
use certctl_model::{
    id::{AgentId, CertificateId, JobId},
    job::{AwaitingApproval, Failed, JobFacts},
};
use certctl_store::{Error as StoreError, Tx, certificates, jobs, tallies::Subject};
use sqlx::{FromRow, postgres::PgRow};

use super::teams::check_text;
use crate::{
    app::{Cx, Request, Routes},
    error::ApiError,
    listing::{self, Column, Listed, Where},
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on(list).on(get).on(cancel).on(retry).on(approve).on(reject)
}

impl Listed for Job {
    type Filter = JobFilter;
    type Sort = JobSort;

    const KIND: &'static str = "job";
    const COLUMNS: &'static str = "j.id, j.type, j.certificate_id, j.target_id, j.agent_id, j.version_id, j.status,
        j.attempts, j.max_attempts, coalesce(j.reason, j.last_error) AS last_error,
        coalesce(j.reason, j.last_error) AS error_message, j.run_at AS scheduled_at, j.started_at,
        j.finished_at AS completed_at, j.created_at";
    const FROM: &'static str = "jobs j";
    const ID: &'static str = "j.id";
    const TALLY: Option<Subject> = Some(Subject::Job);
    const DEFAULT: Sort<JobSort> = Sort {
        key: JobSort::CreatedAt,
        descending: true,
    };

    fn column(key: JobSort) -> Column {
        match key {
            JobSort::CreatedAt => Column::time("j.created_at"),
            JobSort::ScheduledAt => Column::time("j.run_at"),
        }
    }

    fn restrict(f: &JobFilter, sql: &mut Where<'_>) {
        sql.among("j.status", &f.status);
        sql.among("j.type", &f.r#type);
        sql.eq("j.certificate_id", &f.certificate_id);
        sql.eq("j.agent_id", &f.agent_id);
        sql.eq("j.target_id", &f.target_id);
        sql.after("j.created_at", &f.created_after);
        sql.before("j.created_at", &f.created_before);
    }

    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Self::from_row(row)
    }
}

async fn list(cx: Cx, rq: Request<ListJobs>) -> Result<Page<Job>, ApiError> {
    listing::list(&cx, rq.query).await
}

async fn get(cx: Cx, rq: Request<GetJob>) -> Result<Job, ApiError> {
    listing::fetch(&cx, rq.path.id.as_str()).await
}

async fn cancel(cx: Cx, rq: Request<CancelJob>) -> Result<Outcome, ApiError> {
    let mut tx = cx.begin().await?;
    let reason = format!("cancelled by {}", tx.actor().name);
    jobs::call_off(&mut tx, &rq.path.id, &reason).await?;
    tx.commit().await?;
    Ok(Outcome::of("job_cancelled"))
}

async fn retry(cx: Cx, rq: Request<RetryJob>) -> Result<Outcome, ApiError> {
    let id = rq.path.id;
    let mut tx = cx.begin().await?;
    // The certificate first, as revoking and archiving do; then the agent, so that nobody deletes it meanwhile.
    let found: Option<(CertificateId, Option<AgentId>)> =
        sqlx::query_as("SELECT certificate_id, agent_id FROM jobs WHERE id = $1")
            .bind(&id)
            .fetch_optional(&mut *tx)
            .await?;
    let (certificate, agent) = found.ok_or_else(|| ApiError::missing("job", &id))?;
    certificates::lock(&mut tx, &certificate).await?.must_be_live()?;
    sqlx::query("SELECT 1 FROM agents WHERE id = $1 FOR KEY SHARE")
        .bind(&agent)
        .execute(&mut *tx)
        .await?;
    let failed = jobs::lock::<Failed>(&mut tx, &id).await?;
    must_still_be_wanted(&mut tx, &failed.facts).await?;
    let by = tx.actor();
    match jobs::apply(&mut tx, failed.retry(&by)).await {
        Err(StoreError::Taken { .. }) => return Err(superseded(&id)),
        done => done?,
    };
    tx.commit().await?;
    Ok(Outcome::of("job_retried"))
}

async fn approve(cx: Cx, rq: Request<ApproveJob>) -> Result<Outcome, ApiError> {
    let reason = reason(rq.body)?;
    let mut tx = cx.begin().await?;
    let waiting = jobs::lock::<AwaitingApproval>(&mut tx, &rq.path.id).await?;
    certificates::lock(&mut tx, &waiting.facts.certificate)
        .await?
        .must_be_live()?;
    let ready: bool = sqlx::query_scalar("SELECT csr_der IS NOT NULL FROM jobs WHERE id = $1")
        .bind(&rq.path.id)
        .fetch_one(&mut *tx)
        .await?;
    if !ready {
        let detail = format!(
            "job {} has no certification request yet that could be approved",
            rq.path.id
        );
        return Err(ApiError::new(Kind::WrongState, detail));
    }
    let mut approved = waiting.approve(&tx.actor());
    if let Some(reason) = &reason {
        approved.event = approved.event.with("reason", reason);
    }
    jobs::apply(&mut tx, approved).await?;
    tx.commit().await?;
    Ok(Outcome::of("job_approved"))
}

async fn reject(cx: Cx, rq: Request<RejectJob>) -> Result<Outcome, ApiError> {
    let reason = reason(rq.body)?;
    let mut tx = cx.begin().await?;
    let waiting = jobs::lock::<AwaitingApproval>(&mut tx, &rq.path.id).await?;
    let by = tx.actor();
    let reason = reason.unwrap_or_else(|| format!("rejected by {}", by.name));
    jobs::apply(&mut tx, waiting.reject(&by, reason)).await?;
    tx.commit().await?;
    Ok(Outcome::of("job_rejected"))
}

fn reason(decision: Decision) -> Result<Option<String>, ApiError> {
    match decision.reason {
        Some(reason) => check_text("reason", &reason).map(|()| Some(reason)),
        None => Ok(None),
    }
}

fn superseded(id: &JobId) -> ApiError {
    ApiError::new(
        Kind::WrongState,
        format!("a newer job does what job {id} was to do already"),
    )
}

/// Refuses what would undo something newer, or go where nothing is wanted any more.
async fn must_still_be_wanted(tx: &mut Tx, job: &JobFacts) -> Result<(), ApiError> {
    let gone = |what: &str| ApiError::new(Kind::WrongState, format!("{what} job {} was for is gone", job.id));
    if job.agent.is_none() {
        return Err(gone("the agent"));
    }
    if job.kind.issues() {
        // A job has one certificate for ever: asking again would give the same one.
        let recorded: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM ledger WHERE job_id = $1)")
            .bind(&job.id)
            .fetch_one(&mut **tx)
            .await?;
        return match recorded {
            true => Err(ApiError::new(
                Kind::WrongState,
                format!(
                    "job {} has its certificate in the ledger already; renew certificate {} instead",
                    job.id, job.certificate
                ),
            )),
            false => Ok(()),
        };
    }
    let (wanted, newer): (bool, bool) = sqlx::query_as(
        "SELECT EXISTS (SELECT 1 FROM certificate_targets m JOIN targets t ON t.id = m.target_id
                         WHERE m.certificate_id = $1 AND m.target_id = $2 AND t.agent_id = $3),
                EXISTS (SELECT 1 FROM certificate_versions v JOIN certificate_versions own ON own.id = $4
                         WHERE v.certificate_id = $1 AND v.agent_id = $3 AND v.version > own.version)",
    )
    .bind(&job.certificate)
    .bind(&job.target)
    .bind(&job.agent)
    .bind(&job.version)
    .fetch_one(&mut **tx)
    .await?;
    match (wanted, newer) {
        (false, _) => Err(gone("the target")),
        (true, true) => Err(superseded(&job.id)),
        (true, false) => Ok(()),
    }
}
