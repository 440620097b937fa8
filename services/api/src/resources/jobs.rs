//! Jobs.

use certctl_contract::{
    endpoint::{Permission, Role},
    health::Outcome,
    jobs::*,
    list::{Page, Sort},
    problem::Kind,
};
use certctl_model::{
    id::{AgentId, CertificateId, JobId},
    job::{AwaitingApproval, Failed, JobFacts},
    notice::NoticeKind,
};
use certctl_store::{
    Error as StoreError, Tx, approvals,
    certificates::{self, Locked},
    jobs,
    outbox::{self, News},
    tallies::Subject,
};
use certctl_x509::pem;
use sqlx::{FromRow, Row, postgres::PgRow};

use super::teams::check_text;
use crate::{
    app::{Cx, Request, Routes},
    error::ApiError,
    listing::{self, Belongs, Column, Listed, Where},
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on(list)
        .on(get)
        .on(cancel)
        .on(retry)
        .on(approval)
        .on(approve)
        .on(reject)
}

impl Listed for Job {
    type Filter = JobFilter;
    type Sort = JobSort;

    const KIND: &'static str = "job";
    const COLUMNS: &'static str = "j.id, j.type, j.certificate_id, j.target_id, j.agent_id, j.version_id, j.status,
        j.attempts, j.max_attempts, coalesce(j.reason, j.last_error) AS last_error,
        coalesce(j.reason, j.last_error) AS error_message,
        (SELECT r.report FROM job_reports r WHERE r.job_id = j.id AND r.error = coalesce(j.reason, j.last_error)) AS reported,
        j.run_at AS scheduled_at, j.started_at,
        j.finished_at AS completed_at, j.retry_at, j.created_at, j.requested_by";
    const FROM: &'static str = "jobs j";
    const ID: &'static str = "j.id";
    const BELONGS: Belongs = Belongs::Certificate("j.certificate_id");
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
    let mut page: Page<Job> = listing::list(&cx, rq.query).await?;
    page.data.iter_mut().for_each(|job| show_report(&cx, job));
    Ok(page)
}

async fn get(cx: Cx, rq: Request<GetJob>) -> Result<Job, ApiError> {
    let mut job: Job = listing::fetch(&cx, rq.path.id.as_str()).await?;
    show_report(&cx, &mut job);
    Ok(job)
}

/// What a command on a host wrote may hold lines of files of that host: it is for those who may operate.
fn show_report(cx: &Cx, job: &mut Job) {
    if let Some(report) = job.reported.take().filter(|_| cx.principal.may(Permission::Operate)) {
        job.error_message = Some(report.clone());
        job.last_error = Some(report);
    }
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
    let waits = jobs::retry_now(&mut tx, std::slice::from_ref(&id)).await?;
    if !waits.is_empty() {
        tx.commit().await?;
        return Ok(Outcome::of("job_retried"));
    }
    let failed = jobs::lock::<Failed>(&mut tx, &id).await?;
    must_still_be_wanted(&mut tx, &failed.facts).await?;
    if failed.facts.kind.issues() {
        approvals::retried(&mut tx, &id).await?;
    }
    let by = tx.actor();
    match jobs::apply(&mut tx, failed.retry(&by)).await {
        Err(StoreError::Taken { .. }) => return Err(superseded(&id)),
        done => done?,
    };
    tx.commit().await?;
    Ok(Outcome::of("job_retried"))
}

/// The words of a job for which an agreement is noted, but more are needed.
const GIVEN: &str = "approval_given";

async fn approve(cx: Cx, rq: Request<ApproveJob>) -> Result<Outcome, ApiError> {
    let (id, reason) = (rq.path.id, reason(rq.body.reason)?);
    let overrides = rq.body.overrides.unwrap_or(false);
    if overrides {
        may_override(&cx, reason.as_deref())?;
    }
    let mut tx = cx.begin().await?;
    let waiting = jobs::lock::<AwaitingApproval>(&mut tx, &id).await?;
    let certificate = certificates::lock(&mut tx, &waiting.facts.certificate).await?;
    certificate.must_be_live()?;
    let approver = tx.principal();
    let standing = approvals::standing(&mut tx, &id, Some(&approver)).await?;
    let wrong = |detail: String| Err(ApiError::new(Kind::WrongState, detail));
    if !standing.has_request {
        return wrong(format!(
            "job {id} has no certification request yet that could be approved"
        ));
    }
    if rq.body.digest.is_some_and(|digest| digest != standing.digest) {
        return wrong(format!(
            "what job {id} would have signed has changed since it was shown; look at GET /api/v1/jobs/{id}/approval again"
        ));
    }
    let by = tx.actor();
    if let Some(action) = standing.conflict.filter(|_| standing.needed > 0 && !overrides) {
        let detail = match action.as_str() {
            "asked for it" => format!("{} asked for job {id}; somebody else has to approve it", by.name),
            action => format!(
                "{} took part in job {id} ({action}); another person has to approve it",
                by.name
            ),
        };
        return Err(ApiError::new(Kind::Forbidden, detail));
    }
    let said = reason.as_deref().unwrap_or_default();
    approvals::give(&mut tx, &id, &standing.digest, said, overrides).await?;
    if !approvals::standing(&mut tx, &id, None).await?.approved {
        let event = tx
            .event("job_approval_given", "job", &id)
            .with("digest", &standing.digest)
            .with("needed", standing.needed)
            .with("reason", said);
        tx.note(event);
        tx.commit().await?;
        return Ok(Outcome::of(GIVEN));
    }
    if overrides {
        let event = tx
            .event("job_approval_overridden", "job", &id)
            .with("digest", &standing.digest)
            .with("needed", standing.needed)
            .with("reason", said);
        tx.note(event);
        outbox::announce(&mut tx, &overridden(&certificate, &id, &by.name, said)).await?;
    }
    let mut approved = waiting.approve(&by);
    if standing.needed > 0 {
        approved.event = approved.event.with("digest", &standing.digest);
    }
    if let Some(reason) = &reason {
        approved.event = approved.event.with("reason", reason);
    }
    jobs::apply(&mut tx, approved).await?;
    tx.commit().await?;
    Ok(Outcome::of("job_approved"))
}

/// Only administrators go on without the others, and they say why.
fn may_override(cx: &Cx, reason: Option<&str>) -> Result<(), ApiError> {
    match (cx.principal.role, reason) {
        (Some(Role::Admin), Some(_)) => Ok(()),
        (Some(Role::Admin), None) => Err(ApiError::invalid("reason", "is needed to override an approval")),
        _ => Err(ApiError::new(
            Kind::Forbidden,
            "only administrators may override an approval",
        )),
    }
}

fn overridden(certificate: &Locked, job: &JobId, by: &str, reason: &str) -> News {
    let (id, name) = (&certificate.id, &certificate.common_name);
    News {
        kind: NoticeKind::ApprovalOverridden,
        certificate: id.clone(),
        dedup: job.to_string(),
        subject: format!("{name} is signed without the approvals it needs"),
        message: format!("{by} overrode the approval of job {job} for certificate {id} ({name}): {reason}"),
    }
}

async fn approval(cx: Cx, rq: Request<GetJobApproval>) -> Result<JobApproval, ApiError> {
    let id = rq.path.id;
    let mut db = cx.pool().acquire().await?;
    let standing = approvals::standing(&mut db, &id, None).await?;
    let row = sqlx::query(
        "SELECT j.status, j.csr_der, j.agent_id, c.id AS certificate_id, c.common_name, c.sans, c.issuer_id, c.profile_id,
                ARRAY(SELECT t.id FROM certificate_targets m JOIN targets t ON t.id = m.target_id
                       WHERE m.certificate_id = c.id AND t.agent_id = j.agent_id ORDER BY t.id) AS targets
           FROM jobs j JOIN certificates c ON c.id = j.certificate_id WHERE j.id = $1",
    )
    .bind(&id)
    .fetch_one(&mut *db)
    .await?;
    let given = sqlx::query_as(
        "SELECT a.approver, a.digest, a.overrides, a.reason, a.created_at,
                a.digest = $2 AND (a.overrides OR job_approver_conflict(j, c, a.approver) IS NULL) AS valid
           FROM approvals a JOIN jobs j ON j.id = a.job_id JOIN certificates c ON c.id = j.certificate_id
          WHERE a.job_id = $1 ORDER BY a.created_at, a.approver",
    )
    .bind(&id)
    .bind(&standing.digest)
    .fetch_all(&mut *db)
    .await?;
    let participants = sqlx::query_as(
        "SELECT DISTINCT p.participant AS name, p.action
           FROM jobs j JOIN certificates c ON c.id = j.certificate_id CROSS JOIN LATERAL job_participants(j, c) p
          WHERE j.id = $1 ORDER BY 1, 2",
    )
    .bind(&id)
    .fetch_all(&mut *db)
    .await?;
    let csr_der: Option<Vec<u8>> = row.try_get("csr_der")?;
    Ok(JobApproval {
        job_id: id,
        status: row.try_get("status")?,
        needed: standing.needed,
        approvals: given,
        requested_by: standing.requested_by,
        participants,
        self_approval: standing.self_approval,
        digest: standing.digest,
        certificate_id: row.try_get("certificate_id")?,
        common_name: row.try_get("common_name")?,
        sans: row.try_get("sans")?,
        issuer_id: row.try_get("issuer_id")?,
        certificate_profile_id: row.try_get("profile_id")?,
        target_ids: row.try_get("targets")?,
        agent_id: row.try_get("agent_id")?,
        csr_pem: csr_der.map(|der| pem::encode("CERTIFICATE REQUEST", &der)),
    })
}

async fn reject(cx: Cx, rq: Request<RejectJob>) -> Result<Outcome, ApiError> {
    let reason = reason(rq.body.reason)?;
    let mut tx = cx.begin().await?;
    let waiting = jobs::lock::<AwaitingApproval>(&mut tx, &rq.path.id).await?;
    let by = tx.actor();
    let reason = reason.unwrap_or_else(|| format!("rejected by {}", by.name));
    jobs::apply(&mut tx, waiting.reject(&by, reason)).await?;
    tx.commit().await?;
    Ok(Outcome::of("job_rejected"))
}

fn reason(given: Option<String>) -> Result<Option<String>, ApiError> {
    match given {
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
