//! Figures, from the tallies.

use std::{collections::BTreeMap, time::Duration};

use certctl_contract::metrics::*;
use certctl_model::certificate::CertificateStatus;

use crate::{
    app::{Cx, Request, Routes},
    error::ApiError,
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on(metrics).on(summary)
}

/// An agent that was heard of within this time is counted as online.
const HEARD: Duration = Duration::from_secs(300);
/// A certificate that ends within this time is counted as expiring.
const SOON: Duration = Duration::from_secs(30 * 86_400);

#[derive(sqlx::FromRow)]
struct Certificates {
    total: i64,
    active: i64,
    expiring: i64,
    expired: i64,
    revoked: i64,
}

/// Active, expiring, expired and revoked exclude each other; what is archived or not issued yet is none of them. Whole
/// days are tallied; only those that end on the two days at the edges are counted.
async fn certificates(cx: &Cx) -> Result<Certificates, ApiError> {
    let now = cx.now();
    Ok(sqlx::query_as(
        "SELECT total, live - ended - soon AS active, soon AS expiring, ended AS expired, revoked
           FROM (SELECT total, live, revoked, past + today AS ended, nearly + edge - past - today AS soon
                   FROM (SELECT coalesce(sum(delta), 0)::bigint AS total,
                                coalesce(sum(delta) FILTER (WHERE status = 'Revoked'), 0)::bigint AS revoked,
                                coalesce(sum(delta) FILTER (WHERE issued), 0)::bigint AS live,
                                coalesce(sum(delta) FILTER (WHERE issued AND day < utc_day($1)), 0)::bigint AS past,
                                coalesce(sum(delta) FILTER (WHERE issued AND day < utc_day($2)), 0)::bigint AS nearly
                           FROM (SELECT *, day IS NOT NULL AND status NOT IN ('Revoked', 'Archived') AS issued
                                   FROM tallies WHERE subject = 'certificate') t) tallied,
                        (SELECT count(*) AS today FROM certificates
                          WHERE coalesce(not_after, 'infinity') >= utc_day($1)::timestamp AT TIME ZONE 'UTC'
                            AND coalesce(not_after, 'infinity') <= $1
                            AND revoked_at IS NULL AND archived_at IS NULL) begun,
                        (SELECT count(*) AS edge FROM certificates
                          WHERE coalesce(not_after, 'infinity') >= utc_day($2)::timestamp AT TIME ZONE 'UTC'
                            AND coalesce(not_after, 'infinity') <= $2
                            AND revoked_at IS NULL AND archived_at IS NULL) last) counted",
    )
    .bind(now)
    .bind(now + SOON)
    .persistent(false)
    .fetch_one(cx.pool())
    .await?)
}

#[derive(sqlx::FromRow)]
struct Agents {
    total: i64,
    online: i64,
}

async fn agents(cx: &Cx) -> Result<Agents, ApiError> {
    Ok(sqlx::query_as(
        "SELECT count(*) AS total,
                count(*) FILTER (WHERE offline_since IS NULL AND last_heartbeat_at > $1) AS online
           FROM agents",
    )
    .bind(cx.now() - HEARD)
    .fetch_one(cx.pool())
    .await?)
}

#[derive(sqlx::FromRow)]
struct Jobs {
    open: i64,
    completed: i64,
    failed: i64,
    renewed: i64,
    issued: i64,
}

async fn jobs(cx: &Cx) -> Result<Jobs, ApiError> {
    Ok(sqlx::query_as(
        "SELECT coalesce(sum(delta) FILTER (WHERE subject = 'job'
                                              AND status NOT IN ('Completed', 'Failed', 'Cancelled')), 0)::bigint AS open,
                coalesce(sum(delta) FILTER (WHERE subject = 'job' AND status = 'Completed'), 0)::bigint AS completed,
                coalesce(sum(delta) FILTER (WHERE subject = 'job' AND status = 'Failed'), 0)::bigint AS failed,
                coalesce(sum(delta) FILTER (WHERE subject = 'job' AND status = 'Completed'
                                              AND kind = 'Renewal'), 0)::bigint AS renewed,
                coalesce(sum(delta) FILTER (WHERE subject = 'version'), 0)::bigint AS issued
           FROM tallies",
    )
    .fetch_one(cx.pool())
    .await?)
}

/// Certificates of each status, by the status's word.
async fn by_status(cx: &Cx) -> Result<BTreeMap<String, i64>, ApiError> {
    let counts = super::stats::statuses(cx).await?;
    Ok(counts
        .into_iter()
        .map(|one| (one.status.to_string(), one.count))
        .collect())
}

async fn metrics(cx: Cx, _: Request<Metrics>) -> Result<MetricsReport, ApiError> {
    let (certificates, agents, jobs) = (certificates(&cx).await?, agents(&cx).await?, jobs(&cx).await?);
    let by_status = by_status(&cx).await?;
    let (now, started) = (cx.now(), cx.app.started);
    Ok(MetricsReport {
        gauge: Gauges {
            certificate_total: certificates.total,
            certificate_active: certificates.active,
            certificate_expiring_soon: certificates.expiring,
            certificate_expired: certificates.expired,
            certificate_revoked: certificates.revoked,
            certificate_by_status: by_status,
            agent_total: agents.total,
            agent_online: agents.online,
            agent_offline: agents.total - agents.online,
            job_pending: jobs.open,
        },
        counter: Counters {
            job_completed_total: jobs.completed,
            job_failed_total: jobs.failed,
            issuance_total: jobs.issued,
            renewal_total: jobs.renewed,
        },
        uptime: Uptime {
            uptime_seconds: now.seconds_since(started).max(0),
            server_started: started,
            measured_at: now,
        },
    })
}

async fn summary(cx: Cx, _: Request<DashboardSummary>) -> Result<Summary, ApiError> {
    let (certificates, agents, jobs) = (certificates(&cx).await?, agents(&cx).await?, jobs(&cx).await?);
    let by_status = by_status(&cx).await?;
    Ok(Summary {
        total_certificates: certificates.total,
        expiring_certificates: certificates.expiring,
        expired_certificates: certificates.expired,
        revoked_certificates: certificates.revoked,
        active_agents: agents.online,
        offline_agents: agents.total - agents.online,
        total_agents: agents.total,
        pending_jobs: jobs.open,
        failed_jobs: jobs.failed,
        complete_jobs: jobs.completed,
        renewals_in_progress: by_status
            .get(CertificateStatus::RenewalInProgress.as_str())
            .copied()
            .unwrap_or(0),
        by_status,
        completed_at: cx.now(),
    })
}
