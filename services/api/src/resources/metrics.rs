//! Figures: each set is one pass over its table.

use std::time::Duration;

use certctl_contract::metrics::*;

use crate::{
    app::{Cx, Request, Routes},
    error::ApiError,
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on(metrics).on(summary)
}

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

/// Active, expiring, expired and revoked exclude each other; what is archived or not issued yet is none of them.
async fn certificates(cx: &Cx) -> Result<Certificates, ApiError> {
    let now = cx.now();
    Ok(sqlx::query_as(
        "SELECT count(*) AS total,
                count(*) FILTER (WHERE revoked_at IS NULL AND archived_at IS NULL AND not_after > $2) AS active,
                count(*) FILTER (WHERE revoked_at IS NULL AND archived_at IS NULL
                                   AND not_after > $1 AND not_after <= $2) AS expiring,
                count(*) FILTER (WHERE revoked_at IS NULL AND archived_at IS NULL AND not_after <= $1) AS expired,
                count(*) FILTER (WHERE revoked_at IS NOT NULL) AS revoked
           FROM certificates",
    )
    .bind(now)
    .bind(now + SOON)
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
                count(*) FILTER (WHERE offline_since IS NULL AND last_heartbeat_at IS NOT NULL) AS online
           FROM agents",
    )
    .fetch_one(cx.pool())
    .await?)
}

#[derive(sqlx::FromRow)]
struct Jobs {
    open: i64,
    completed: i64,
    failed: i64,
    renewed: i64,
}

async fn jobs(cx: &Cx) -> Result<Jobs, ApiError> {
    Ok(sqlx::query_as(
        "SELECT count(*) FILTER (WHERE status NOT IN ('Completed', 'Failed', 'Cancelled')) AS open,
                count(*) FILTER (WHERE status = 'Completed') AS completed,
                count(*) FILTER (WHERE status = 'Failed') AS failed,
                count(*) FILTER (WHERE status = 'Completed' AND type = 'Renewal') AS renewed
           FROM jobs",
    )
    .fetch_one(cx.pool())
    .await?)
}

async fn metrics(cx: Cx, _: Request<Metrics>) -> Result<MetricsReport, ApiError> {
    let (certificates, agents, jobs) = (certificates(&cx).await?, agents(&cx).await?, jobs(&cx).await?);
    let issued: i64 = sqlx::query_scalar("SELECT count(*) FROM certificate_versions")
        .fetch_one(cx.pool())
        .await?;
    let (now, started) = (cx.now(), cx.app.started);
    Ok(MetricsReport {
        gauge: Gauges {
            certificate_total: certificates.total,
            certificate_active: certificates.active,
            certificate_expiring_soon: certificates.expiring,
            certificate_expired: certificates.expired,
            certificate_revoked: certificates.revoked,
            agent_total: agents.total,
            agent_online: agents.online,
            job_pending: jobs.open,
        },
        counter: Counters {
            job_completed_total: jobs.completed,
            job_failed_total: jobs.failed,
            issuance_total: issued,
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
        completed_at: cx.now(),
    })
}
