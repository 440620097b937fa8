//! Jobs: inserted with their event, claimed under a lease, locked in a state, moved by a transition.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    iter,
    time::Duration,
};

use certctl_model::{
    audit::Actor,
    id::{AgentId, CertificateId, IssuerId, JobId, TargetId, VersionId},
    job::{
        AwaitingApproval, AwaitingCsr, Cancelled, Failed, Job, JobFacts, JobKind, JobStatus, Pending, Running, State,
        Transition, retry_delay,
    },
    name::DnsName,
    policy::Moment,
    time::Time,
};
use sqlx::{PgConnection, PgPool};

use crate::{
    Tx,
    budgets::{self, Budget},
    column,
    error::*,
    planning, policies, tx,
    wake::Channel,
};

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
    /// The agent that makes the key or deploys; none when the request is there.
    pub agent: Option<AgentId>,
    /// The certification request in DER, when the one who requests the certificate has the key.
    pub request: Option<Vec<u8>>,
    /// Where a deployment goes.
    pub target: Option<TargetId>,
    /// Which version it puts there.
    pub version: Option<VersionId>,
    /// How often it is tried.
    pub max_attempts: i32,
}

/// Inserts jobs, each unless one that is open does the same already. Returns the ids of the new ones.
///
/// # Errors
/// [`Error::Reference`] when an agent, target or certificate is gone.
pub async fn insert(tx: &mut Tx, jobs: &[NewJob]) -> Result<Vec<JobId>> {
    Ok(insert_each(tx, jobs).await?.into_iter().map(|(id, _)| id).collect())
}

/// What [`insert`] does; returns the new ones beside their ids.
pub(crate) async fn insert_each<'a>(tx: &mut Tx, jobs: &'a [NewJob]) -> Result<Vec<(JobId, &'a NewJob)>> {
    if jobs.is_empty() {
        return Ok(vec![]);
    }
    let jobs = permitted(tx, jobs).await?;
    let now = tx.now();
    let ids = column(&jobs, |_| JobId::generate(now));
    let inserted: Vec<JobId> = sqlx::query_scalar(
        "INSERT INTO jobs (id, type, certificate_id, agent_id, target_id, version_id, status, max_attempts, run_at,
                           created_at, requested_by)
         SELECT n.id, n.type, n.certificate_id, n.agent_id, n.target_id, n.version_id, 'Pending', n.max_attempts, $8, $8,
                $9
           FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::integer[])
                AS n (id, type, certificate_id, agent_id, target_id, version_id, max_attempts)
         ON CONFLICT DO NOTHING
         RETURNING id",
    )
    .bind(&ids)
    .bind(column(&jobs, |job| job.kind))
    .bind(column(&jobs, |job| &job.certificate))
    .bind(column(&jobs, |job| job.agent.as_ref()))
    .bind(column(&jobs, |job| job.target.as_ref()))
    .bind(column(&jobs, |job| job.version.as_ref()))
    .bind(column(&jobs, |job| job.max_attempts))
    .bind(now)
    .bind(tx.person())
    .fetch_all(&mut **tx)
    .await?;
    let inserted: HashSet<JobId> = inserted.into_iter().collect();
    let new = ids.into_iter().zip(jobs).filter(|(id, _)| inserted.contains(id));
    let new: Vec<(JobId, &NewJob)> = new.collect();
    for (id, job) in &new {
        // The scheduler, which creates most jobs, may not write requests.
        if let Some(request) = &job.request {
            sqlx::query("UPDATE jobs SET csr_der = $2, request_given = true WHERE id = $1")
                .bind(id)
                .bind(request)
                .execute(&mut **tx)
                .await?;
        }
    }
    supersede(tx, &new).await?;
    for (id, job) in &new {
        let action = match job.kind {
            JobKind::Issuance => "issuance_job_created",
            JobKind::Renewal => "renewal_job_created",
            JobKind::Deployment => "deployment_job_created",
            JobKind::Validation => "validation_job_created",
        };
        let event = tx
            .event(action, "certificate", &job.certificate)
            .with("job_id", id)
            .with("agent_id", &job.agent);
        tx.note(event);
        tx.wake(Channel::Jobs);
    }
    Ok(new)
}

/// Leaves out the jobs that policy rules keep from happening.
async fn permitted<'a>(tx: &mut Tx, jobs: &'a [NewJob]) -> Result<Vec<&'a NewJob>> {
    let mut permitted: Vec<&NewJob> = jobs.iter().collect();
    for (moment, what) in [(Moment::Issuance, "issuance"), (Moment::Deployment, "deployment")] {
        let asked = |job: &&NewJob| match job.kind {
            JobKind::Issuance | JobKind::Renewal => moment == Moment::Issuance,
            JobKind::Deployment => moment == Moment::Deployment,
            JobKind::Validation => false,
        };
        let certificates: Vec<&CertificateId> = permitted
            .iter()
            .filter(|job| asked(job))
            .map(|job| &job.certificate)
            .collect();
        if certificates.is_empty() {
            continue;
        }
        let blocked = policies::judge(tx, &certificates, moment).await?;
        permitted.retain(|job| !asked(job) || !blocked.contains_key(&job.certificate));
        for (certificate, broken) in blocked {
            let event = tx
                .event("job_blocked", "certificate", &certificate)
                .with("what", what)
                .with("reason", policies::because(&broken));
            tx.note(event);
        }
    }
    Ok(permitted)
}

/// Calls off deployments of other versions to the same targets that have not begun; one that has ends by itself, and
/// is then outdone by the new one.
async fn supersede(tx: &mut Tx, new: &[(JobId, &NewJob)]) -> Result<()> {
    let by: Vec<_> = new.iter().filter(|(_, job)| job.kind == JobKind::Deployment).collect();
    if by.is_empty() {
        return Ok(());
    }
    let older: Vec<JobId> = sqlx::query_scalar(
        "SELECT j.id FROM jobs j
           JOIN unnest($1::text[], $2::text[], $3::text[]) AS n (id, certificate_id, target_id)
             ON j.certificate_id = n.certificate_id AND j.target_id = n.target_id AND j.id <> n.id
          WHERE j.type = 'Deployment' AND j.status = 'Pending'
          ORDER BY j.id",
    )
    .bind(column(&by, |(id, _)| id))
    .bind(column(&by, |(_, job)| &job.certificate))
    .bind(column(&by, |(_, job)| job.target.as_ref()))
    .fetch_all(&mut **tx)
    .await?;
    for id in &older {
        call_off(tx, id, "another version goes to this target").await?;
    }
    sqlx::query(
        "UPDATE jobs j SET retry_at = NULL
           FROM unnest($1::text[], $2::text[], $3::text[]) AS n (id, certificate_id, target_id)
          WHERE j.certificate_id = n.certificate_id AND j.target_id = n.target_id AND j.id <> n.id
            AND j.type = 'Deployment' AND j.retry_at IS NOT NULL",
    )
    .bind(column(&by, |(id, _)| id))
    .bind(column(&by, |(_, job)| &job.certificate))
    .bind(column(&by, |(_, job)| job.target.as_ref()))
    .execute(&mut **tx)
    .await?;
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

/// Locks those of the claimed jobs that are still in state `S` and in the hands of their claimant. Their certificates
/// have to be [locked](crate::certificates::lock_all) already.
///
/// # Errors
/// When the database cannot be asked.
pub async fn hold<S: State>(tx: &mut Tx, claims: &[Claimed]) -> Result<Vec<Job<S>>> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT j.id, j.type, j.certificate_id, j.agent_id, j.target_id, j.version_id, j.attempts, j.max_attempts,
                j.status
           FROM jobs j
           JOIN unnest($1::text[], $2::bigint[]) AS claim (id, token) ON claim.id = j.id AND claim.token = j.lease_token
          WHERE j.status = $3
          ORDER BY j.id
            FOR UPDATE OF j",
    )
    .bind(column(claims, |claim| &claim.facts.id))
    .bind(column(claims, |claim| claim.token))
    .bind(S::STATUS)
    .fetch_all(&mut **tx)
    .await?;
    Ok(rows.into_iter().map(|row| Job::known(row.split().0)).collect())
}

/// Applies a transition: the only way a job moves.
///
/// # Errors
/// [`Error::WrongJobState`] when the job has moved since.
pub async fn apply<To: State>(tx: &mut Tx, transition: Transition<To>) -> Result<Job<To>> {
    let (id, from) = (transition.job.id.clone(), transition.from);
    if let Some(job) = apply_all(tx, vec![transition]).await?.pop() {
        return Ok(job);
    }
    let (_, is) = locked(tx, &id).await?;
    Err(Error::WrongJobState {
        id: id.to_string(),
        is,
        wanted: from.to_string(),
    })
}

/// Applies transitions to one state. Returns the jobs in it; one that has moved since is not among them.
///
/// # Errors
/// When the database cannot be asked.
pub async fn apply_all<To: State>(tx: &mut Tx, transitions: Vec<Transition<To>>) -> Result<Vec<Job<To>>> {
    if transitions.is_empty() {
        return Ok(vec![]);
    }
    let to = To::STATUS;
    let moved: Vec<JobId> = sqlx::query_scalar(
        "UPDATE jobs j
            SET status = $5, reason = t.reason, lease_until = NULL, run_at = $6, retry_at = NULL,
                version_id = t.version_id,
                last_error  = CASE WHEN $5 = 'Completed' THEN NULL ELSE coalesce(t.reason, j.last_error) END,
                requested_by = CASE WHEN $5 = 'Pending' AND t.status = 'Failed' THEN coalesce(j.requested_by, $8) ELSE j.requested_by END,
                started_at  = CASE WHEN $5 = 'Pending' AND t.status = 'Failed' THEN NULL
                                   WHEN $5 = 'Running' THEN coalesce(j.started_at, $6) ELSE j.started_at END,
                -- A try is counted when an agent begins to deploy, and when a worker ends an issuance.
                attempts    = CASE WHEN $5 = 'Pending' AND t.status = 'Failed' THEN 0
                                   WHEN j.type = 'Deployment' AND $5 = 'Running' THEN j.attempts + 1
                                   WHEN j.type <> 'Deployment' AND t.status = 'Running' THEN j.attempts + 1
                                   ELSE j.attempts END,
                finished_at = CASE WHEN $7 THEN $6 END
           FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS t (id, status, reason, version_id)
          WHERE j.id = t.id AND j.status = t.status
         RETURNING j.id",
    )
    .bind(column(&transitions, |t| &t.job.id))
    .bind(column(&transitions, |t| t.from))
    .bind(column(&transitions, |t| t.reason.as_deref()))
    .bind(column(&transitions, |t| t.job.version.as_ref()))
    .bind(to)
    .bind(tx.now())
    .bind(to.is_terminal())
    .bind(tx.person())
    .fetch_all(&mut **tx)
    .await?;
    let moved: HashSet<JobId> = moved.into_iter().collect();
    let mut jobs = Vec::with_capacity(moved.len());
    for Transition { job, event, .. } in transitions {
        if !moved.contains(&job.id) {
            continue;
        }
        tx.note(event);
        tx.wake(Channel::Jobs);
        match (job.kind, to) {
            (JobKind::Deployment, JobStatus::Failed | JobStatus::Cancelled) => give_up_choice(tx, &job).await?,
            // Another version is served.
            (JobKind::Deployment, JobStatus::Completed) => {
                planning::take_dates(tx, std::slice::from_ref(&job.certificate)).await?;
            }
            _ => {}
        }
        jobs.push(Job::known(job));
    }
    Ok(jobs)
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
        _ => planning::take_dates(tx, std::slice::from_ref(&job.certificate)).await,
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

/// Keeps what an agent reports of a deployment, and returns the part of it that everybody may see: without what a
/// command on the host wrote. An agent that does not tell them apart is not quoted.
///
/// # Errors
/// When the database cannot be asked.
pub async fn keep_report(tx: &mut Tx, id: &JobId, error: String, output: Option<&str>) -> Result<String> {
    let (error, report) = match output {
        None => ("the agent reported a failure".to_owned(), error),
        Some("") => return Ok(error),
        Some(output) => {
            let report = format!("{error}: {output}");
            (error, report)
        }
    };
    sqlx::query(
        "INSERT INTO job_reports (job_id, error, report) VALUES ($1, $2, $3)
         ON CONFLICT (job_id) DO UPDATE SET error = excluded.error, report = excluded.report",
    )
    .bind(id)
    .bind(&error)
    .bind(&report)
    .execute(&mut **tx)
    .await?;
    Ok(error)
}

/// Notes why a running job is not finished yet. False when the same was noted before.
///
/// # Errors
/// When the database cannot be asked.
pub async fn note_error(tx: &mut Tx, id: &JobId, error: &str) -> Result<bool> {
    let noted = sqlx::query(
        "UPDATE jobs SET last_error = $2, run_at = $3
          WHERE id = $1 AND status = 'Running' AND last_error IS DISTINCT FROM $2",
    )
    .bind(id)
    .bind(error)
    .bind(tx.now())
    .execute(&mut **tx)
    .await?;
    if noted.rows_affected() == 0 {
        return Ok(false);
    }
    let event = tx.event("deployment_waits", "job", id).with("reason", error);
    tx.note(event);
    Ok(true)
}

/// Notes that an agent still tries to deploy, so that it is not given up: like a heartbeat, without a trace.
///
/// # Errors
/// When the database cannot be asked.
pub async fn is_still_tried(db: &PgPool, id: &JobId, now: Time) -> Result<()> {
    sqlx::query("UPDATE jobs SET run_at = $2 WHERE id = $1 AND type = 'Deployment' AND status = 'Running'")
        .bind(id)
        .bind(now)
        .execute(db)
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
    /// The request, once there is one.
    pub csr_der: Option<Vec<u8>>,
    /// Whether the request came with the job, so that no agent is asked for one.
    pub request_given: bool,
    /// What its certificate has to be.
    pub subject: Subject,
}

/// What the record says that is to be issued, and by whom.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Subject {
    /// The common name.
    pub common_name: String,
    /// The other names.
    pub sans: Vec<String>,
    /// The issuer.
    pub issuer_id: IssuerId,
    /// Its type, as written.
    pub issuer_type: String,
    /// Whether it may be asked.
    pub issuer_enabled: bool,
}

impl Subject {
    /// The registered domains of its names, each once.
    pub(crate) fn domains(&self) -> BTreeSet<String> {
        let names = iter::once(&self.common_name).chain(&self.sans);
        names
            .filter_map(|name| name.parse::<DnsName>().ok()?.registered().map(str::to_owned))
            .collect()
    }
}

#[derive(sqlx::FromRow)]
struct ClaimedRow {
    #[sqlx(flatten)]
    row: Row,
    lease_token: i64,
    csr_der: Option<Vec<u8>>,
    request_given: bool,
    #[sqlx(flatten)]
    subject: Subject,
}

/// What a claim gives back, of job `j`, its certificate `c` and that one's issuer `i`.
macro_rules! claimed {
    () => {
        "RETURNING j.id, j.type, j.certificate_id, j.agent_id, j.target_id, j.version_id, j.attempts, j.max_attempts,
                   j.status, j.lease_token, j.csr_der, j.request_given, c.common_name, c.sans, c.issuer_id,
                   i.type AS issuer_type, i.enabled AS issuer_enabled"
    };
}

impl From<ClaimedRow> for Claimed {
    fn from(row: ClaimedRow) -> Self {
        let (facts, status) = row.row.split();
        Self {
            facts,
            status,
            token: row.lease_token,
            csr_der: row.csr_der,
            request_given: row.request_given,
            subject: row.subject,
        }
    }
}

/// Claims about `limit` issuances and renewals that a scheduler has to move. Every issuer that has some has its turn, up to
/// `of_each` with those of its jobs that are `under_way` already; of one issuer's jobs those go first that have the least
/// time left. An issuer with a budget is given no more requests than that leaves room for. Deployments are never claimed:
/// their agent does them.
///
/// # Errors
/// When the database cannot be asked.
pub async fn claim(
    pool: &PgPool,
    now: Time,
    lease: Duration,
    limit: i64,
    of_each: i64,
    under_way: &HashMap<IssuerId, i64>,
) -> Result<Vec<Claimed>> {
    let turn = Turn {
        now,
        until: now + lease,
        limit,
        of_each,
        under_way: under_way.iter().map(|(issuer, jobs)| (issuer, *jobs)).collect(),
    };
    if !budgets::are_there(pool).await? {
        return take(&mut *pool.acquire().await?, &turn, &[]).await;
    }
    // One claims at a time, so that two do not fill the same room.
    let mut tx = tx::begin(pool, None).await?;
    sqlx::query("SELECT pg_advisory_xact_lock(hashtext('certctl.budgets'))")
        .execute(&mut *tx)
        .await?;
    let budgets = budgets::read(&mut tx, now).await?;
    let claimed = loop {
        let mut claimed = take(&mut tx, &turn, &budgets).await?;
        let held = budgets::hold_back(&mut tx, now, &budgets, &claimed).await?;
        claimed.retain(|claim| !held.contains(&claim.facts.id));
        // What is held leaves its turn to those behind it.
        if !claimed.is_empty() || held.is_empty() {
            break claimed;
        }
    };
    budgets::count(&mut tx, now, &budgets, &claimed).await?;
    tx.commit().await?;
    Ok(claimed)
}

/// What a claim goes by.
struct Turn<'a> {
    now: Time,
    until: Time,
    limit: i64,
    of_each: i64,
    under_way: Vec<(&'a IssuerId, i64)>,
}

/// Each look at the jobs has an order, and what is claimed is an array: so all go by an index, however many jobs there are
/// that are over or wait.
async fn take(db: &mut PgConnection, turn: &Turn<'_>, budgets: &[Budget]) -> Result<Vec<Claimed>> {
    let rows: Vec<ClaimedRow> = sqlx::query_as(concat!(
        "WITH asked AS MATERIALIZED (
            SELECT i.id, $4 - coalesce(busy.jobs, 0) AS room, budget.room AS budget
              FROM issuers i
              LEFT JOIN unnest($5::text[], $6::bigint[]) AS busy (issuer_id, jobs) ON busy.issuer_id = i.id
              LEFT JOIN unnest($7::text[], $8::bigint[]) AS budget (issuer_id, room) ON budget.issuer_id = i.id
             WHERE coalesce(busy.jobs, 0) < $4
               AND (EXISTS (SELECT 1 FROM (
                        SELECT 1 FROM jobs j
                         WHERE j.issuer_id = i.id AND j.type IN ('Issuance', 'Renewal') AND j.status = 'Running'
                           AND j.run_at <= $1 AND (j.lease_until IS NULL OR j.lease_until <= $1)
                         ORDER BY j.deadline, j.id LIMIT 1) requested)
                 OR EXISTS (SELECT 1 FROM (
                        SELECT 1 FROM jobs j
                         WHERE j.issuer_id = i.id AND j.type IN ('Issuance', 'Renewal') AND j.status = 'Pending'
                           AND j.run_at <= $1 AND (j.lease_until IS NULL OR j.lease_until <= $1)
                         ORDER BY j.deadline, j.id LIMIT 1) waiting))),
         turn AS MATERIALIZED (
            SELECT id, budget, least(room, ceil($3::float8 / (SELECT count(*) FROM asked))::bigint) AS most FROM asked),
         due AS MATERIALIZED (
            SELECT requested.id
              FROM turn
             CROSS JOIN LATERAL (
                   SELECT j.id FROM jobs j
                    WHERE j.issuer_id = turn.id AND j.type IN ('Issuance', 'Renewal') AND j.status = 'Running'
                      AND j.run_at <= $1 AND (j.lease_until IS NULL OR j.lease_until <= $1)
                    ORDER BY j.deadline, j.id LIMIT least(turn.most, turn.budget) FOR UPDATE SKIP LOCKED) requested
             UNION ALL
            SELECT waiting.id
              FROM turn
             CROSS JOIN LATERAL (
                   SELECT j.id FROM jobs j
                    WHERE j.issuer_id = turn.id AND j.type IN ('Issuance', 'Renewal') AND j.status = 'Pending'
                      AND j.run_at <= $1 AND (j.lease_until IS NULL OR j.lease_until <= $1)
                    ORDER BY j.deadline, j.id LIMIT turn.most FOR UPDATE SKIP LOCKED) waiting)
         UPDATE jobs j
            SET lease_until = $2, lease_token = j.lease_token + 1, held_for = NULL
           FROM certificates c, issuers i
          WHERE j.id = ANY (ARRAY(SELECT id FROM due)) AND c.id = j.certificate_id AND i.id = c.issuer_id
        ",
        claimed!()
    ))
    .bind(turn.now)
    .bind(turn.until)
    .bind(turn.limit)
    .bind(turn.of_each)
    .bind(column(&turn.under_way, |(issuer, _)| *issuer))
    .bind(column(&turn.under_way, |(_, jobs)| *jobs))
    .bind(column(budgets, |budget| &budget.issuer))
    .bind(column(budgets, |budget| budget.room.map(|jobs| jobs.max(0))))
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(Claimed::from).collect())
}

/// Claims validations whose time has come, those first that have waited longest.
///
/// # Errors
/// When the database cannot be asked.
pub async fn claim_validations(pool: &PgPool, now: Time, lease: Duration, limit: i64) -> Result<Vec<Claimed>> {
    let rows: Vec<ClaimedRow> = sqlx::query_as(concat!(
        "UPDATE jobs j
            SET lease_until = $2, lease_token = j.lease_token + 1
           FROM (SELECT id FROM jobs
                  WHERE type = 'Validation' AND status IN ('Pending', 'Running')
                    AND run_at <= $1 AND (lease_until IS NULL OR lease_until <= $1)
                  ORDER BY run_at, id LIMIT $3 FOR UPDATE SKIP LOCKED) due, certificates c, issuers i
          WHERE j.id = due.id AND c.id = j.certificate_id AND i.id = c.issuer_id
        ",
        claimed!()
    ))
    .bind(now)
    .bind(now + lease)
    .bind(limit)
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(Claimed::from).collect())
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

/// A failed attempt to deploy.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Which one it was, from 1.
    pub number: i32,
    /// After how many failed attempts the job is Failed.
    pub most: i32,
    /// When the next one is due.
    pub next: Time,
}

/// Records that an attempt to deploy failed. The job is Pending until the next one is due, and Failed when as many failed as
/// there may be; then [`retry_due`] goes on at a low rate. Returns none for a repeated report of an attempt that is recorded
/// already. The certificate has to be locked.
///
/// # Errors
/// [`Error::WrongJobState`] when no attempt can have failed.
pub async fn attempt_failed(
    tx: &mut Tx,
    by: &Actor,
    facts: JobFacts,
    is: JobStatus,
    reason: &str,
) -> Result<Option<Attempt>> {
    let (interval, waits): (i32, bool) = sqlx::query_as(
        "SELECT p.retry_interval_seconds, j.status = 'Pending' AND j.attempts > 0 AND j.run_at > $2
           FROM jobs j
           JOIN certificates c ON c.id = j.certificate_id
           JOIN renewal_policies p ON p.id = c.renewal_policy_id
          WHERE j.id = $1",
    )
    .bind(&facts.id)
    .bind(tx.now())
    .fetch_one(&mut **tx)
    .await?;
    if waits {
        return Ok(None);
    }
    let id = facts.id.clone();
    // An agent that did not report the begin reports the end all the same.
    let (number, most) = (facts.attempts + i32::from(is == JobStatus::Pending), facts.max_attempts);
    let interval = Duration::from_secs(interval.unsigned_abs().into());
    let next = tx.now() + retry_delay(interval, number, most);
    match (is, number < most) {
        (JobStatus::Pending, true) => {}
        (JobStatus::Running, true) => drop(apply(tx, Job::<Running>::known(facts).put_back(by)).await?),
        (JobStatus::Pending, false) => {
            drop(apply(tx, Job::<Pending>::known(facts).fail(by, reason.to_owned())).await?);
        }
        (JobStatus::Running, false) => {
            drop(apply(tx, Job::<Running>::known(facts).fail(by, reason.to_owned())).await?);
        }
        _ => {
            return Err(Error::WrongJobState {
                id: id.to_string(),
                is,
                wanted: "Pending or Running".to_owned(),
            });
        }
    }
    sqlx::query(
        "UPDATE jobs
            SET attempts = $2, last_error = $3, run_at = CASE status WHEN 'Pending' THEN $4 ELSE run_at END,
                retry_at = CASE status WHEN 'Failed' THEN $4 END
          WHERE id = $1",
    )
    .bind(&id)
    .bind(number)
    .bind(reason)
    .bind(next)
    .execute(&mut **tx)
    .await?;
    Ok(Some(Attempt { number, most, next }))
}

/// Failed deployments that are due to be tried again, those first that have been due longest.
///
/// # Errors
/// When the database cannot be asked.
pub async fn retries_due(pool: &PgPool, now: Time, limit: i64) -> Result<Vec<JobId>> {
    Ok(
        sqlx::query_scalar("SELECT id FROM jobs WHERE retry_at <= $1 ORDER BY retry_at, id LIMIT $2")
            .bind(now)
            .bind(limit)
            .fetch_all(pool)
            .await?,
    )
}

/// Tries a failed deployment once more, unless the target is to have another version by now, or none: then it is not tried
/// again at all.
///
/// # Errors
/// [`Error::Missing`]; [`Error::WrongJobState`] when it has moved since.
pub async fn retry_due(tx: &mut Tx, id: &JobId) -> Result<()> {
    let failed = lock::<Failed>(tx, id).await?;
    let facts = &failed.facts;
    let wanted: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM target_deployments d
                          JOIN targets t ON t.id = d.target_id AND t.agent_id = $4
                          JOIN certificate_versions v ON v.id = d.version_id AND v.not_after > $5
                         WHERE d.certificate_id = $1 AND d.target_id = $2 AND d.version_id = $3 AND d.status = 'Failed')",
    )
    .bind(&facts.certificate)
    .bind(&facts.target)
    .bind(&facts.version)
    .bind(&facts.agent)
    .bind(tx.now())
    .fetch_one(&mut **tx)
    .await?;
    if !wanted {
        sqlx::query("UPDATE jobs SET retry_at = NULL WHERE id = $1")
            .bind(id)
            .execute(&mut **tx)
            .await?;
        let event = tx
            .event("job_retries_ended", "job", id)
            .with("certificate_id", &facts.certificate)
            .with("reason", "the target is not to have this version");
        tx.note(event);
        return Ok(());
    }
    let blocked = policies::judge(tx, &[&facts.certificate], Moment::Deployment).await?;
    if let Some(broken) = blocked.get(&facts.certificate) {
        let next = tx.now() + retry_delay(Duration::ZERO, facts.attempts, facts.max_attempts);
        sqlx::query("UPDATE jobs SET retry_at = $2 WHERE id = $1")
            .bind(id)
            .bind(next)
            .execute(&mut **tx)
            .await?;
        let event = tx
            .event("job_blocked", "certificate", &facts.certificate)
            .with("what", "deployment")
            .with("reason", policies::because(broken));
        tx.note(event);
        return Ok(());
    }
    let by = tx.actor();
    apply(tx, failed.retry(&by)).await?;
    // One attempt more, not as many as an operator gives.
    sqlx::query("UPDATE jobs SET attempts = greatest(max_attempts - 1, 0) WHERE id = $1")
        .bind(id)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// Inserts deployments, and makes those due now that are there already and wait for their next attempt. Returns both.
///
/// # Errors
/// [`Error::Reference`] when an agent, target or certificate is gone.
pub async fn deploy_now(tx: &mut Tx, deployments: &[NewJob]) -> Result<Vec<JobId>> {
    let waiting: Vec<JobId> = sqlx::query_scalar(
        "SELECT j.id FROM jobs j JOIN unnest($1::text[], $2::text[], $3::text[]) AS n (certificate_id, target_id, version_id)
             ON j.certificate_id = n.certificate_id AND j.target_id = n.target_id AND j.version_id = n.version_id
          WHERE j.type = 'Deployment' AND j.status = 'Pending' AND j.run_at > $4
          ORDER BY j.id",
    )
    .bind(column(deployments, |job| &job.certificate))
    .bind(column(deployments, |job| job.target.as_ref()))
    .bind(column(deployments, |job| job.version.as_ref()))
    .bind(tx.now())
    .fetch_all(&mut **tx)
    .await?;
    let mut jobs = retry_now(tx, &waiting).await?;
    jobs.extend(insert(tx, deployments).await?);
    Ok(jobs)
}

/// Makes deployments due now that wait for their next attempt. Returns those that waited.
///
/// # Errors
/// When the database cannot be asked.
pub async fn retry_now(tx: &mut Tx, deployments: &[JobId]) -> Result<Vec<JobId>> {
    let due: Vec<JobId> = sqlx::query_scalar(
        "UPDATE jobs SET run_at = $2
          WHERE id = ANY ($1) AND type = 'Deployment' AND status = 'Pending' AND run_at > $2
         RETURNING id",
    )
    .bind(deployments)
    .bind(tx.now())
    .fetch_all(&mut **tx)
    .await?;
    for id in &due {
        let event = tx.event("job_retried", "job", id);
        tx.note(event);
        tx.wake(Channel::Jobs);
    }
    Ok(due)
}

/// Frees leases that ran out, so that the figures show no holder who is gone. Returns how many.
///
/// # Errors
/// When the database cannot be asked.
pub async fn reap(pool: &PgPool, now: Time) -> Result<u64> {
    let done = sqlx::query(
        "UPDATE jobs SET lease_until = NULL
          WHERE type <> 'Deployment' AND status IN ('Pending', 'Running') AND lease_until <= $1",
    )
    .bind(now)
    .execute(pool)
    .await?;
    Ok(done.rows_affected())
}

/// Jobs that have been in a state since before an instant, oldest first; of one kind or of all.
///
/// # Errors
/// When the database cannot be asked.
pub async fn waiting_since(
    pool: &PgPool,
    status: JobStatus,
    kind: Option<JobKind>,
    before: Time,
    limit: i64,
) -> Result<Vec<JobId>> {
    // A transition sets run_at, and only what a worker claims is put back to another.
    Ok(sqlx::query_scalar(
        "SELECT id FROM jobs WHERE status = $1 AND run_at <= $2 AND ($3::text IS NULL OR type = $3)
          ORDER BY run_at, id LIMIT $4",
    )
    .bind(status)
    .bind(before)
    .bind(kind)
    .bind(limit)
    .fetch_all(pool)
    .await?)
}

/// Calls a job off in the name of the unit of work's actor.
///
/// # Errors
/// [`Error::Missing`]; [`Error::WrongJobState`] when it is being done or finished.
pub async fn call_off(tx: &mut Tx, id: &JobId, reason: &str) -> Result<()> {
    let (facts, is) = locked(tx, id).await?;
    // One that failed is over, unless it would be tried again.
    let over = is == JobStatus::Failed
        && sqlx::query_scalar("SELECT retry_at IS NULL FROM jobs WHERE id = $1")
            .bind(id)
            .fetch_one(&mut **tx)
            .await?;
    let cancellation = cancellation(facts, is, &tx.actor(), reason).filter(|_| !over);
    let transition = cancellation.ok_or_else(|| Error::WrongJobState {
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
    Ok(apply_all(tx, cancelled).await?.len())
}

/// The move that calls a job off, if its state has one.
fn cancellation(facts: JobFacts, is: JobStatus, by: &Actor, reason: &str) -> Option<Transition<Cancelled>> {
    let reason = reason.to_owned();
    match is {
        JobStatus::Pending => Some(Job::<Pending>::known(facts).cancel(by, reason)),
        JobStatus::AwaitingCsr => Some(Job::<AwaitingCsr>::known(facts).cancel(by, reason)),
        JobStatus::AwaitingApproval => Some(Job::<AwaitingApproval>::known(facts).cancel(by, reason)),
        JobStatus::Failed => Some(Job::<Failed>::known(facts).cancel(by, reason)),
        JobStatus::Running | JobStatus::Completed | JobStatus::Cancelled => None,
    }
}
