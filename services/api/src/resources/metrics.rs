//! Figures, from the tallies.

use std::{collections::BTreeMap, time::Duration};

use certctl_contract::metrics::*;
use certctl_model::certificate::{CertificateStatus, DeploymentStatus};

use sqlx::AssertSqlSafe;
use tokio::try_join;

use crate::{
    app::{Cx, Request, Routes},
    error::ApiError,
    listing,
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on(metrics).on(summary)
}

/// An agent that was heard of within this time is counted as online.
const HEARD: Duration = Duration::from_secs(300);
/// A certificate that ends within this time is counted as expiring.
const SOON: Duration = Duration::from_secs(30 * 86_400);

/// What the tallies add up to.
#[derive(Default)]
struct Figures {
    certificates: Certificates,
    jobs: Jobs,
    issued: i64,
    by_status: BTreeMap<String, i64>,
    by_deployment_status: BTreeMap<String, i64>,
}

#[derive(Default)]
struct Certificates {
    total: i64,
    active: i64,
    expiring: i64,
    expired: i64,
    revoked: i64,
}

#[derive(Default)]
struct Jobs {
    open: i64,
    completed: i64,
    failed: i64,
    renewed: i64,
}

/// What is tallied under one word: how many, of them those that have a day, and whose day lies before today or before
/// the last of [`SOON`]. Each with what has ended today, and will have ended on the last day, until this time.
#[derive(sqlx::FromRow)]
struct Tallied {
    subject: String,
    kind: String,
    status: String,
    count: i64,
    dated: i64,
    past: i64,
    nearly: i64,
    today: i64,
    last: i64,
}

/// Active, expiring, expired and revoked exclude each other; what is archived or not issued yet is none of them. Whole
/// days are tallied; only those that end on the two days at the edges are counted: all of them, which the index holds,
/// without those few that are none.
async fn figures(cx: &Cx) -> Result<Figures, ApiError> {
    listing::settle_statuses(cx).await?;
    let now = cx.now();
    // Each count in an index of its own.
    let ended_that_day = |until: &str| {
        let ended = format!(
            "SELECT count(*) FROM certificates
              WHERE coalesce(not_after, 'infinity') >= utc_day({until})::timestamp AT TIME ZONE 'UTC'
                AND coalesce(not_after, 'infinity') <= {until}"
        );
        format!("({ended}) - ({ended} AND status IN ('Revoked', 'Archived'))")
    };
    let sql = format!(
        "SELECT subject, kind, status, sum(delta)::bigint AS count,
                coalesce(sum(delta) FILTER (WHERE day IS NOT NULL), 0)::bigint AS dated,
                coalesce(sum(delta) FILTER (WHERE day < utc_day($1)), 0)::bigint AS past,
                coalesce(sum(delta) FILTER (WHERE day < utc_day($2)), 0)::bigint AS nearly,
                {} AS today, {} AS last
           FROM tallies GROUP BY subject, kind, status",
        ended_that_day("$1"),
        ended_that_day("$2"),
    );
    // Made of texts that stand here.
    let tallied: Vec<Tallied> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(now)
        .bind(now + SOON)
        .persistent(false)
        .fetch_all(cx.pool())
        .await?;
    let none = |status: &CertificateStatus| (status.to_string(), 0);
    let mut figures = Figures {
        by_status: CertificateStatus::ALL.iter().map(none).collect(),
        by_deployment_status: DeploymentStatus::ALL
            .iter()
            .map(|status| (status.to_string(), 0))
            .collect(),
        ..Figures::default()
    };
    let (certificates, jobs) = (&mut figures.certificates, &mut figures.jobs);
    let (mut live, mut ended, mut nearly) = match tallied.first() {
        Some(first) => (0, first.today, first.last),
        None => (0, 0, 0),
    };
    for one in tallied {
        match (one.subject.as_str(), one.status.as_str()) {
            ("certificate", status) => {
                certificates.total += one.count;
                match status {
                    "Revoked" => certificates.revoked += one.count,
                    "Archived" => {}
                    _ => {
                        live += one.dated;
                        ended += one.past;
                        nearly += one.nearly;
                    }
                }
                *figures.by_status.entry(one.status).or_default() += one.count;
            }
            ("job", "Completed") => {
                jobs.completed += one.count;
                jobs.renewed += if one.kind == "Renewal" { one.count } else { 0 };
            }
            ("job", "Failed") => jobs.failed += one.count,
            ("job", "Cancelled") => {}
            ("job", _) => jobs.open += one.count,
            ("deployment", _) => *figures.by_deployment_status.entry(one.status).or_default() += one.count,
            _ => figures.issued += one.count,
        }
    }
    certificates.expired = ended;
    certificates.expiring = nearly - ended;
    certificates.active = live - nearly;
    Ok(figures)
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

async fn metrics(cx: Cx, _: Request<Metrics>) -> Result<MetricsReport, ApiError> {
    let (figures, agents) = try_join!(figures(&cx), agents(&cx))?;
    let Figures {
        certificates,
        jobs,
        issued,
        by_status,
        by_deployment_status,
    } = figures;
    let (now, started) = (cx.now(), cx.app.started);
    Ok(MetricsReport {
        gauge: Gauges {
            certificate_total: certificates.total,
            certificate_active: certificates.active,
            certificate_expiring_soon: certificates.expiring,
            certificate_expired: certificates.expired,
            certificate_revoked: certificates.revoked,
            certificate_by_status: by_status,
            certificate_by_deployment_status: by_deployment_status,
            agent_total: agents.total,
            agent_online: agents.online,
            agent_offline: agents.total - agents.online,
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
    let (figures, agents) = try_join!(figures(&cx), agents(&cx))?;
    let Figures {
        certificates,
        jobs,
        by_status,
        by_deployment_status,
        ..
    } = figures;
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
        by_deployment_status,
        completed_at: cx.now(),
    })
}
