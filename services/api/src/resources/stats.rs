//! Figures for charts, from the tallies.

use std::collections::BTreeMap;

use certctl_contract::stats::*;
use certctl_model::certificate::CertificateStatus;
use certctl_store::tallies::{self, Subject};

use crate::{
    app::{Cx, Request, Routes},
    error::ApiError,
    listing,
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on(by_status).on(expirations).on(job_trends).on(issuance_rate)
}

/// Certificates of each status, those of which there are none included.
async fn by_status(cx: Cx, _: Request<CertificatesByStatus>) -> Result<Vec<StatusCount>, ApiError> {
    listing::settle_statuses(&cx).await?;
    let counts: BTreeMap<String, i64> = tallies::by_status(cx.pool(), Subject::Certificate)
        .await?
        .into_iter()
        .collect();
    let count = |status: &CertificateStatus| StatusCount {
        status: *status,
        count: counts.get(status.as_str()).copied().unwrap_or(0),
    };
    Ok(CertificateStatus::ALL.iter().map(count).collect())
}

async fn expirations(cx: Cx, rq: Request<ExpirationTimeline>) -> Result<Vec<ExpirationDay>, ApiError> {
    listing::settle_statuses(&cx).await?;
    // Of today, those that have ended are taken away.
    let rows: Vec<(String, Option<String>, i64)> = sqlx::query_as(
        "SELECT d.day::text, n.status, coalesce(sum(n.delta), 0)::bigint
           FROM (SELECT utc_day($1) + i AS day FROM generate_series(0, $2 - 1) AS i) d
           LEFT JOIN (SELECT day, status, delta FROM tallies
                       WHERE subject = 'certificate' AND status NOT IN ('Revoked', 'Archived')
                      UNION ALL
                      SELECT utc_day($1), c.status, -count(*) FROM certificates c
                       WHERE coalesce(c.not_after, 'infinity') >= utc_day($1)::timestamp AT TIME ZONE 'UTC'
                         AND coalesce(c.not_after, 'infinity') <= $1
                         AND c.status NOT IN ('Revoked', 'Archived')
                       GROUP BY c.status) n ON n.day = d.day
          GROUP BY 1, 2
          ORDER BY 1, 2",
    )
    .bind(cx.now())
    .bind(rq.query.days.unwrap_or_default().get())
    .persistent(false)
    .fetch_all(cx.pool())
    .await?;
    let mut days: Vec<ExpirationDay> = vec![];
    for (date, status, count) in rows {
        if days.last().is_none_or(|day| day.date != date) {
            let (count, by_status) = (0, BTreeMap::new());
            days.push(ExpirationDay { date, count, by_status });
        }
        if let (Some(day), Some(status), 1..) = (days.last_mut(), status, count) {
            day.count += count;
            day.by_status.insert(status, count);
        }
    }
    Ok(days)
}

async fn job_trends(cx: Cx, rq: Request<JobTrends>) -> Result<Vec<JobDay>, ApiError> {
    Ok(sqlx::query_as(
        "SELECT date::text, completed_count, failed_count,
                coalesce(100.0 * completed_count / nullif(completed_count + failed_count, 0), 0)::float8 AS success_rate
           FROM (SELECT utc_day($1) - i AS date,
                        coalesce(sum(t.delta) FILTER (WHERE t.status = 'Completed'), 0)::bigint AS completed_count,
                        coalesce(sum(t.delta) FILTER (WHERE t.status = 'Failed'), 0)::bigint AS failed_count
                   FROM generate_series(0, $2 - 1) AS i
                   LEFT JOIN tallies t ON t.subject = 'job' AND t.day = utc_day($1) - i
                  GROUP BY 1) days
          ORDER BY 1",
    )
    .bind(cx.now())
    .bind(rq.query.days.unwrap_or_default().get())
    .fetch_all(cx.pool())
    .await?)
}

async fn issuance_rate(cx: Cx, rq: Request<IssuanceRate>) -> Result<Vec<IssuanceDay>, ApiError> {
    Ok(sqlx::query_as(
        "SELECT (utc_day($1) - i)::text AS date, coalesce(sum(t.delta), 0)::bigint AS issued_count
           FROM generate_series(0, $2 - 1) AS i
           LEFT JOIN tallies t ON t.subject = 'version' AND t.day = utc_day($1) - i
          GROUP BY 1
          ORDER BY 1",
    )
    .bind(cx.now())
    .bind(rq.query.days.unwrap_or_default().get())
    .fetch_all(cx.pool())
    .await?)
}
