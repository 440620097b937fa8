//! Jobs: inserted with their event, claimed under a lease, locked in a state, moved by a transition.

use std::time::Duration;

use certctl_model::{
    audit::Actor,
    id::{AgentId, CertificateId, JobId, TargetId, VersionId},
    job::{AwaitingApproval, AwaitingCsr, Cancelled, Job, JobFacts, JobKind, JobStatus, Pending, State, Transition},
    time::Time,
};
use sqlx::{PgConnection, PgPool};

use crate::{Tx, error::*, planning, wake::Channel};

#[derive(sqlx::FromRow)]
struct Row {
    id: JobId,
    #[sqlx(rename = "type")]
    kind: JobKind,
    certificate_id: CertificateId,
    agent_id: Option<AgentId>,
    target_id: Option<TargetId>,
    version_id: Option<VersionId>,
    attempts: i32,
    max_attempts: i32,
    status: JobStatus,
}

impl Row {
    fn split(self) -> (JobFacts, JobStatus) {
        let facts = JobFacts {
            id: self.id,
            kind: self.kind,
            certificate: self.certificate_id,
            agent: self.agent_id,
            target: self.target_id,
            version: self.version_id,
            attempts: self.attempts,
            max_attempts: self.max_attempts,
        };
        (facts, self.status)
    }
}

/// A job to be; it begins Pending.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// What it does.
    pub kind: JobKind,
    /// For which certificate.
    pub certificate: CertificateId,
    /// The agent that makes the key or deploys.
    pub agent: AgentId,
    /// Where a deployment goes.
    pub target: Option<TargetId>,
    /// Which version it puts there.
    pub version: Option<VersionId>,
    /// How often it is tried.
    pub max_attempts: i32,
}

/// Inserts a job, unless one that is open does the same already. Returns the new job's id.
///
/// # Errors
/// [`Error::Reference`] when agent, target or certificate are gone.
pub async fn insert(tx: &mut Tx, job: &NewJob) -> Result<Option<JobId>> {
    let (id, now) = (JobId::generate(tx.now()), tx.now());
    let inserted: Option<JobId> = sqlx::query_scalar(
        "INSERT INTO jobs (id, type, certificate_id, agent_id, target_id, version_id, status, max_attempts, run_at,
                           created_at)
         VALUES ($1, $2, $3, $4, $5, $6, 'Pending', $7, $8, $8)
         ON CONFLICT DO NOTHING
         RETURNING id",
    )
    .bind(&id)
    .bind(job.kind)
    .bind(&job.certificate)
    .bind(&job.agent)
    .bind(&job.target)
    .bind(&job.version)
    .bind(job.max_attempts)
    .bind(now)
    .fetch_optional(&mut **tx)
    .await?;
    if inserted.is_some() {
        if let (JobKind::Deployment, Some(target)) = (job.kind, &job.target) {
            supersede(tx, &id, &job.certificate, target).await?;
        }
        let action = match job.kind {
            JobKind::Issuance => "issuance_job_created",
            JobKind::Renewal => "renewal_job_created",
            JobKind::Deployment => "deployment_job_created",
            JobKind::Validation => "validation_job_created",
        };
        let event = tx
            .event(action, "certificate", &job.certificate)
            .with("job_id", &id)
            .with("agent_id", &job.agent);
        tx.note(event);
        tx.wake(Channel::Jobs);
    }
    Ok(inserted)
}

/// Calls off deployments of other versions to the same target that have not begun; one that has ends by itself, and
/// is then outdone by the new one.
async fn supersede(tx: &mut Tx, by: &JobId, certificate: &CertificateId, target: &TargetId) -> Result<()> {
    let older: Vec<JobId> = sqlx::query_scalar(
        "SELECT id FROM jobs
          WHERE certificate_id = $1 AND target_id = $2 AND id <> $3 AND type = 'Deployment' AND status = 'Pending'
          ORDER BY id",
    )
    .bind(certificate)
    .bind(target)
    .bind(by)
    .fetch_all(&mut **tx)
    .await?;
    for id in &older {
        call_off(tx, id, "another version goes to this target").await?;
    }
    Ok(())
}

/// Locks the job's certificate, then the job: everyone takes the two in this order, so that nobody waits in a circle.
async fn locked(db: &mut PgConnection, id: &JobId) -> Result<(JobFacts, JobStatus)> {
    sqlx::query("SELECT 1 FROM certificates WHERE id = (SELECT certificate_id FROM jobs WHERE id = $1) FOR UPDATE")
        .bind(id)
        .execute(&mut *db)
        .await?;
    let row: Option<Row> = sqlx::query_as(
        "SELECT id, type, certificate_id, agent_id, target_id, version_id, attempts, max_attempts, status
           FROM jobs WHERE id = $1 FOR UPDATE",
    )
    .bind(id)
    .fetch_optional(db)
    .await?;
    row.map(Row::split).ok_or_else(|| Error::Missing {
        kind: "job",
        id: id.to_string(),
    })
}

/// Locks a job, whatever its state.
///
/// # Errors
/// [`Error::Missing`].
pub async fn lock_any(tx: &mut Tx, id: &JobId) -> Result<(JobFacts, JobStatus)> {
    locked(tx, id).await
}

/// Locks a job that is in state `S`.
///
/// # Errors
/// [`Error::Missing`]; [`Error::WrongJobState`] when it is in another.
pub async fn lock<S: State>(tx: &mut Tx, id: &JobId) -> Result<Job<S>> {
    let (facts, status) = locked(tx, id).await?;
    if status != S::STATUS {
        return Err(Error::WrongJobState {
            id: id.to_string(),
            is: status,
            wanted: S::STATUS.to_string(),
        });
    }
    Ok(Job::known(facts))
}

/// Applies a transition: the only way a job moves.
///
/// # Errors
/// [`Error::WrongJobState`] when the job has moved since.
pub async fn apply<To: State>(tx: &mut Tx, transition: Transition<To>) -> Result<Job<To>> {
    apply_with(tx, transition, None).await
}

/// Applies a transition as the holder of a lease.
///
/// # Errors
/// [`Error::LeaseLost`] when somebody else has claimed the job since, or it has moved.
pub async fn apply_claimed<To: State>(tx: &mut Tx, transition: Transition<To>, claim: &Claimed) -> Result<Job<To>> {
    apply_with(tx, transition, Some(claim.token)).await
}

async fn apply_with<To: State>(tx: &mut Tx, transition: Transition<To>, token: Option<i64>) -> Result<Job<To>> {
    let Transition {
        job,
        from,
        to,
        reason,
        event,
        ..
    } = transition;
    let done = sqlx::query(
        "UPDATE jobs
            SET status = $3, reason = $4, lease_until = NULL, run_at = $5,
                last_error  = CASE WHEN $3 = 'Completed' THEN NULL ELSE coalesce($4, last_error) END,
                started_at  = CASE WHEN $3 = 'Pending' THEN NULL
                                   WHEN $3 = 'Running' THEN coalesce(started_at, $5) ELSE started_at END,
                -- A try is counted when an agent begins to deploy, and when a worker ends an issuance.
                attempts    = CASE WHEN $3 = 'Pending' THEN 0
                                   WHEN type = 'Deployment' AND $3 = 'Running' THEN attempts + 1
                                   WHEN type <> 'Deployment' AND $2 = 'Running' THEN attempts + 1
                                   ELSE attempts END,
                finished_at = CASE WHEN $6 THEN $5 END
          WHERE id = $1 AND status = $2 AND ($7::bigint IS NULL OR lease_token = $7)",
    )
    .bind(&job.id)
    .bind(from)
    .bind(to)
    .bind(&reason)
    .bind(tx.now())
    .bind(to.is_terminal())
    .bind(token)
    .execute(&mut **tx)
    .await?;
    if done.rows_affected() == 0 {
        return match token {
            Some(_) => Err(Error::LeaseLost),
            None => {
                let (_, is) = locked(tx, &job.id).await?;
                Err(Error::WrongJobState {
                    id: job.id.to_string(),
                    is,
                    wanted: from.to_string(),
                })
            }
        };
    }
    tx.note(event);
    tx.wake(Channel::Jobs);
    if job.kind == JobKind::Deployment && matches!(to, JobStatus::Failed | JobStatus::Cancelled) {
        give_up_choice(tx, &job).await?;
    }
    Ok(Job::known(job))
}

/// A version that was chosen for a target and does not get there is not what the target serves.
async fn give_up_choice(tx: &mut Tx, job: &JobFacts) -> Result<()> {
    let done = sqlx::query(
        "UPDATE certificate_targets SET chosen_version_id = NULL
          WHERE certificate_id = $1 AND target_id = $2 AND chosen_version_id = $3",
    )
    .bind(&job.certificate)
    .bind(&job.target)
    .bind(&job.version)
    .execute(&mut **tx)
    .await?;
    match done.rows_affected() {
        0 => Ok(()),
        _ => planning::take_dates(tx, &job.certificate).await,
    }
}

/// Keeps the request an agent handed in for a job that awaits it.
///
/// # Errors
/// When the database cannot be asked.
pub async fn keep_request(tx: &mut Tx, id: &JobId, csr_der: &[u8]) -> Result<()> {
    sqlx::query("UPDATE jobs SET csr_der = $2 WHERE id = $1")
        .bind(id)
        .bind(csr_der)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// A job somebody holds a lease on.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// What it is about.
    pub facts: JobFacts,
    /// Where it stands: Pending or Running.
    pub status: JobStatus,
    /// Fencing token of the lease.
    pub token: i64,
    /// The agent's request, once there is one.
    pub csr_der: Option<Vec<u8>>,
}

#[derive(sqlx::FromRow)]
struct ClaimedRow {
    #[sqlx(flatten)]
    row: Row,
    lease_token: i64,
    csr_der: Option<Vec<u8>>,
}

/// Claims up to `limit` issuances and renewals that a scheduler has to move, oldest first. Deployments are never
/// claimed: their agent does them.
///
/// # Errors
/// When the database cannot be asked.
pub async fn claim(pool: &PgPool, now: Time, lease: Duration, limit: i64) -> Result<Vec<Claimed>> {
    let rows: Vec<ClaimedRow> = sqlx::query_as(
        "UPDATE jobs j
            SET lease_until = $2, lease_token = j.lease_token + 1
           FROM (SELECT id FROM jobs
                  WHERE type IN ('Issuance', 'Renewal') AND status IN ('Pending', 'Running')
                    AND run_at <= $1 AND (lease_until IS NULL OR lease_until <= $1)
                  ORDER BY run_at
                  LIMIT $3
                    FOR UPDATE SKIP LOCKED) due
          WHERE j.id = due.id
         RETURNING j.id, j.type, j.certificate_id, j.agent_id, j.target_id, j.version_id, j.attempts, j.max_attempts,
                   j.status, j.lease_token, j.csr_der",
    )
    .bind(now)
    .bind(now + lease)
    .bind(limit)
    .fetch_all(pool)
    .await?;
    let claimed = |row: ClaimedRow| {
        let (facts, status) = row.row.split();
        Claimed {
            facts,
            status,
            token: row.lease_token,
            csr_der: row.csr_der,
        }
    };
    Ok(rows.into_iter().map(claimed).collect())
}

/// Puts a claimed job back, to be tried from `at`. Whether the try counts against `max_attempts` is the caller's word:
/// an issuer that said "later" does, one that could not be reached does not.
///
/// # Errors
/// [`Error::LeaseLost`] when somebody else has claimed it since.
pub async fn put_back(pool: &PgPool, claim: &Claimed, at: Time, error: &str, counts: bool) -> Result<()> {
    let done = sqlx::query(
        "UPDATE jobs SET lease_until = NULL, run_at = $3, last_error = $4, attempts = attempts + $5
          WHERE id = $1 AND lease_token = $2 AND status IN ('Pending', 'Running')",
    )
    .bind(&claim.facts.id)
    .bind(claim.token)
    .bind(at)
    .bind(error)
    .bind(i32::from(counts))
    .execute(pool)
    .await?;
    match done.rows_affected() {
        0 => Err(Error::LeaseLost),
        _ => Ok(()),
    }
}

/// Frees leases that ran out, so that the figures show no holder who is gone. Returns how many.
///
/// # Errors
/// When the database cannot be asked.
pub async fn reap(pool: &PgPool, now: Time) -> Result<u64> {
    let done = sqlx::query("UPDATE jobs SET lease_until = NULL WHERE lease_until <= $1")
        .bind(now)
        .execute(pool)
        .await?;
    Ok(done.rows_affected())
}

/// Calls a job off in the name of the unit of work's actor.
///
/// # Errors
/// [`Error::Missing`]; [`Error::WrongJobState`] when it is being done or finished.
pub async fn call_off(tx: &mut Tx, id: &JobId, reason: &str) -> Result<()> {
    let (facts, is) = locked(tx, id).await?;
    let transition = cancellation(facts, is, &tx.actor(), reason).ok_or_else(|| Error::WrongJobState {
        id: id.to_string(),
        is,
        wanted: "Pending, AwaitingCSR or AwaitingApproval".to_owned(),
    })?;
    apply(tx, transition).await?;
    Ok(())
}

/// Cancels what is open for a certificate and not being done; returns how many.
///
/// # Errors
/// When the database cannot be asked.
pub async fn cancel_open(tx: &mut Tx, certificate: &CertificateId, reason: &str) -> Result<usize> {
    cancel_open_of(tx, &[certificate], reason).await
}

/// The same for several certificates, which the caller has locked.
///
/// # Errors
/// When the database cannot be asked.
pub async fn cancel_open_of(tx: &mut Tx, certificates: &[&CertificateId], reason: &str) -> Result<usize> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT id, type, certificate_id, agent_id, target_id, version_id, attempts, max_attempts, status
           FROM jobs
          WHERE certificate_id = ANY ($1) AND status IN ('Pending', 'AwaitingCSR', 'AwaitingApproval')
          ORDER BY id FOR UPDATE",
    )
    .bind(certificates)
    .fetch_all(&mut **tx)
    .await?;
    if rows.is_empty() {
        return Ok(0);
    }
    let by = tx.actor();
    let cancelled: Vec<Transition<Cancelled>> = rows
        .into_iter()
        .filter_map(|row| {
            let (facts, is) = row.split();
            cancellation(facts, is, &by, reason)
        })
        .collect();
    let ids: Vec<&JobId> = cancelled.iter().map(|transition| &transition.job.id).collect();
    sqlx::query(
        "UPDATE jobs SET status = 'Cancelled', reason = $2, last_error = $2, lease_until = NULL, run_at = $3,
                         finished_at = $3
          WHERE id = ANY ($1) AND status IN ('Pending', 'AwaitingCSR', 'AwaitingApproval')",
    )
    .bind(&ids)
    .bind(reason)
    .bind(tx.now())
    .execute(&mut **tx)
    .await?;
    let count = cancelled.len();
    for transition in cancelled {
        tx.note(transition.event);
        if transition.job.kind == JobKind::Deployment {
            give_up_choice(tx, &transition.job).await?;
        }
    }
    tx.wake(Channel::Jobs);
    Ok(count)
}

/// The move that calls a job off, if its state has one.
fn cancellation(facts: JobFacts, is: JobStatus, by: &Actor, reason: &str) -> Option<Transition<Cancelled>> {
    let reason = reason.to_owned();
    match is {
        JobStatus::Pending => Some(Job::<Pending>::known(facts).cancel(by, reason)),
        JobStatus::AwaitingCsr => Some(Job::<AwaitingCsr>::known(facts).cancel(by, reason)),
        JobStatus::AwaitingApproval => Some(Job::<AwaitingApproval>::known(facts).cancel(by, reason)),
        JobStatus::Running | JobStatus::Completed | JobStatus::Failed | JobStatus::Cancelled => None,
    }
}
