//! Why a certificate or a job stands where it stands.

use certctl_contract::explain::*;
use certctl_model::{
    certificate::CertificateStatus,
    explain::{CertificateStanding, Explanation, JobStanding},
    id::{CertificateId, IssuerId, ProfileId},
    name::{San, all_names},
    revocation::RevocationReason,
    time::Time,
};
use certctl_store::planning;
use sqlx::{PgConnection, Row, postgres::PgRow};

use super::certificates::refused_by_authority;
use crate::{
    app::{Cx, Request, Routes},
    error::ApiError,
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on(certificate).on(job)
}

async fn certificate(cx: Cx, rq: Request<ExplainCertificate>) -> Result<CertificateExplanation, ApiError> {
    let (id, now) = (rq.path.id, cx.now());
    let mut db = cx.pool().acquire().await?;
    let standing = certificate_standing(&mut db, &id, now).await?;
    let jobs = job_standings(
        &mut db,
        "j.certificate_id = $2 AND (j.status NOT IN ('Completed', 'Failed', 'Cancelled') OR j.retry_at IS NOT NULL)",
        id.as_str(),
        now,
    )
    .await?;
    Ok(CertificateExplanation {
        explanation: standing.explain(now),
        jobs: jobs.iter().map(|job| job.explain(now)).collect(),
    })
}

async fn job(cx: Cx, rq: Request<ExplainJob>) -> Result<Explanation, ApiError> {
    let (id, now) = (rq.path.id, cx.now());
    let mut db = cx.pool().acquire().await?;
    let found = job_standings(&mut db, "j.id = $2", id.as_str(), now).await?.pop();
    found
        .map(|job| job.explain(now))
        .ok_or_else(|| ApiError::missing("job", &id))
}

async fn certificate_standing(
    db: &mut PgConnection,
    id: &CertificateId,
    now: Time,
) -> Result<CertificateStanding, ApiError> {
    let row = sqlx::query(
        "SELECT c.id, certificate_status(c, $2) AS status, c.archived_at, c.revoked_at, c.revocation_reason, c.not_before,
                c.not_after, c.renew_at, c.failure, p.id AS policy, p.auto_renew, p.renew_at_permille,
                p.renewal_window_days, p.spread_percent, c.issuer_id, c.common_name, c.sans, c.profile_id,
                CASE WHEN c.current_version_id IS NULL THEN c.not_after END AS tracked_until,
                ARRAY(SELECT j.id FROM jobs j
                       WHERE j.certificate_id = c.id AND j.request_given AND j.type IN ('Issuance', 'Renewal')
                         AND j.status NOT IN ('Completed', 'Failed', 'Cancelled')) AS given
           FROM certificates c JOIN renewal_policies p ON p.id = c.renewal_policy_id
          WHERE c.id = $1",
    )
    .bind(id)
    .bind(now)
    .fetch_optional(&mut *db)
    .await?
    .ok_or_else(|| ApiError::missing("certificate", id))?;
    let forbidden = sqlx::query_scalar(
        "SELECT format('policy rule %s (%s): %s', name, severity, message) FROM blocking_violations
          WHERE certificate_id = $1 ORDER BY name",
    )
    .bind(id)
    .fetch_all(&mut *db)
    .await?;
    let deployment = sqlx::query_as(
        "SELECT s.status, s.since, s.reason,
                (SELECT min(coalesce(j.retry_at, j.run_at)) FROM jobs j
                  WHERE j.certificate_id = $1 AND j.type = 'Deployment'
                    AND (j.retry_at IS NOT NULL OR j.status = 'Pending' AND j.run_at > $2)) AS next_attempt
           FROM deployment_states s WHERE s.certificate_id = $1",
    )
    .bind(id)
    .bind(now)
    .fetch_optional(&mut *db)
    .await?;
    let (issuer, profile): (IssuerId, Option<ProfileId>) = (row.try_get("issuer_id")?, row.try_get("profile_id")?);
    let names = all_names(&row.try_get("common_name")?, &row.try_get::<Vec<San>, _>("sans")?);
    let refused = refused_by_authority(db, &issuer, profile.as_ref(), &names).await?;
    let agents = planning::standing(db, id, now).await?;
    let revoked: (Option<Time>, Option<RevocationReason>) =
        (row.try_get("revoked_at")?, row.try_get("revocation_reason")?);
    let validity: (Option<Time>, Option<Time>) = (row.try_get("not_before")?, row.try_get("not_after")?);
    Ok(CertificateStanding {
        id: row.try_get("id")?,
        status: row.try_get::<CertificateStatus, _>("status")?,
        archived_at: row.try_get("archived_at")?,
        revoked: revoked.0.zip(revoked.1),
        validity: validity.0.zip(validity.1),
        renew_at: row.try_get("renew_at")?,
        failure: row.try_get("failure")?,
        policy: row.try_get("policy")?,
        auto_renew: row.try_get("auto_renew")?,
        renew_at_permille: row.try_get("renew_at_permille")?,
        renewal_window_days: row.try_get("renewal_window_days")?,
        spread_percent: row.try_get("spread_percent")?,
        uncertifiable_names: names
            .iter()
            .filter(|name| !name.is_certifiable())
            .map(San::to_string)
            .collect(),
        forbidden,
        refused: refused.map(|(_, why)| why),
        agents,
        given: row.try_get("given")?,
        tracked_until: row.try_get("tracked_until")?,
        issuer,
        deployment,
    })
}

/// The jobs for which a condition holds, oldest first.
async fn job_standings(
    db: &mut PgConnection,
    condition: &'static str,
    of: &str,
    now: Time,
) -> Result<Vec<JobStanding>, ApiError> {
    let sql = format!(
        "SELECT j.id, j.type, j.status, j.agent_id, a.offline_since, j.issuer_id, i.enabled AS issuer_enabled, issuer_room(i, $1) AS issuer_room,
                CASE WHEN j.run_at > $1 THEN j.held_for END AS held_for,
                EXISTS (SELECT 1 FROM fences WHERE lifted_at IS NULL) AS fenced,
                EXISTS (SELECT 1 FROM leases WHERE name = 'scheduler' AND until > $1) AS scheduler_runs,
                j.run_at, j.lease_until, j.attempts, j.max_attempts, coalesce(j.reason, j.last_error) AS last_error,
                j.finished_at, j.retry_at
           FROM jobs j
           JOIN issuers i ON i.id = j.issuer_id
           LEFT JOIN agents a ON a.id = j.agent_id
          WHERE {condition}
          ORDER BY j.created_at, j.id"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(now)
        .bind(of)
        .fetch_all(db)
        .await?;
    Ok(rows.iter().map(read).collect::<Result<_, _>>()?)
}

fn read(row: &PgRow) -> Result<JobStanding, sqlx::Error> {
    Ok(JobStanding {
        id: row.try_get("id")?,
        kind: row.try_get("type")?,
        status: row.try_get("status")?,
        agent: row.try_get("agent_id")?,
        agent_offline_since: row.try_get("offline_since")?,
        issuer: row.try_get("issuer_id")?,
        issuer_enabled: row.try_get("issuer_enabled")?,
        issuer_room: row.try_get("issuer_room")?,
        held_for: row.try_get("held_for")?,
        fenced: row.try_get("fenced")?,
        scheduler_runs: row.try_get("scheduler_runs")?,
        run_at: row.try_get("run_at")?,
        lease_until: row.try_get("lease_until")?,
        tries: (row.try_get("attempts")?, row.try_get("max_attempts")?),
        last_error: row.try_get("last_error")?,
        finished_at: row.try_get("finished_at")?,
        retry_at: row.try_get("retry_at")?,
    })
}
