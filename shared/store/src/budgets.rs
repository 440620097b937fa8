//! What issuers may be given: so many requests at a time, in an hour, and for one registered domain in some days.

use std::collections::HashSet;

use certctl_model::{
    id::{IssuerId, JobId},
    job::JobStatus,
    time::Time,
};
use sqlx::{PgConnection, PgPool};

use crate::{column, error::*, jobs::Claimed};

/// Whether any issuer has a budget.
pub(crate) async fn are_there(pool: &PgPool) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM issuers i WHERE issuer_has_budget(i))";
    Ok(sqlx::query_scalar(sql).fetch_one(pool).await?)
}

/// What an issuer may be given.
#[derive(sqlx::FromRow)]
pub(crate) struct Budget {
    pub(crate) issuer: IssuerId,
    /// How many more requests now.
    pub(crate) room: Option<i64>,
    /// How many for names of one registered domain.
    per_domain: Option<i64>,
    /// In so many days.
    domain_days: i64,
}

/// The budgets of all issuers that have one.
pub(crate) async fn read(db: &mut PgConnection, now: Time) -> Result<Vec<Budget>> {
    Ok(sqlx::query_as(
        "SELECT i.id AS issuer, issuer_room(i, $1) AS room, (i.config->>'max_per_domain')::bigint AS per_domain,
                coalesce((i.config->>'domain_days')::bigint, 7) AS domain_days
           FROM issuers i WHERE issuer_has_budget(i)",
    )
    .bind(now)
    .fetch_all(db)
    .await?)
}

/// Counts what is to be handed on for each registered domain. Those for which a domain has no room are put back until it
/// has, the least urgent of them; they are returned.
pub(crate) async fn hold_back(
    db: &mut PgConnection,
    now: Time,
    budgets: &[Budget],
    claimed: &[Claimed],
) -> Result<HashSet<JobId>> {
    let budgets: Vec<(&Budget, i64)> = budgets
        .iter()
        .filter_map(|budget| Some((budget, budget.per_domain?)))
        .collect();
    let asked: Vec<(&JobId, String)> = claimed
        .iter()
        .filter(|claim| claim.status == JobStatus::Running)
        .filter(|claim| {
            budgets
                .iter()
                .any(|(budget, _)| budget.issuer == claim.subject.issuer_id)
        })
        .flat_map(|claim| {
            claim
                .subject
                .domains()
                .into_iter()
                .map(|domain| (&claim.facts.id, domain))
        })
        .collect();
    if asked.is_empty() {
        return Ok(HashSet::new());
    }
    let held: Vec<(JobId, IssuerId, String)> = sqlx::query_as(
        "WITH budget AS (
            SELECT * FROM unnest($3::text[], $4::bigint[], $5::bigint[]) AS b (issuer_id, most, days)),
         old AS (
            DELETE FROM domain_orders o USING budget b
             WHERE o.issuer_id = b.issuer_id AND o.started_at <= $6 - b.days * interval '1 day'),
         asked AS MATERIALIZED (
            SELECT j.id, j.issuer_id, j.lease_token, a.domain,
                   row_number() OVER (PARTITION BY j.issuer_id, a.domain ORDER BY j.deadline, j.id) AS nth
              FROM unnest($1::text[], $2::text[]) AS a (id, domain) JOIN jobs j ON j.id = a.id),
         room AS MATERIALIZED (
            SELECT d.issuer_id, d.domain, b.most - count(o.job_id) AS jobs
              FROM (SELECT DISTINCT issuer_id, domain FROM asked) d
              JOIN budget b ON b.issuer_id = d.issuer_id
              LEFT JOIN domain_orders o ON o.issuer_id = d.issuer_id AND o.domain = d.domain
                                       AND o.started_at > $6 - b.days * interval '1 day'
             GROUP BY d.issuer_id, d.domain, b.most),
         held AS MATERIALIZED (
            SELECT DISTINCT ON (a.id) a.id, a.issuer_id, a.domain
              FROM asked a JOIN room r ON r.issuer_id = a.issuer_id AND r.domain = a.domain
             WHERE a.nth > r.jobs
             ORDER BY a.id, r.jobs, a.domain),
         counted AS (
            INSERT INTO domain_orders (issuer_id, domain, started_at, job_id, token)
            SELECT a.issuer_id, a.domain, $6, a.id, a.lease_token FROM asked a
             WHERE NOT EXISTS (SELECT 1 FROM held h WHERE h.id = a.id))
         SELECT id, issuer_id, domain FROM held",
    )
    .bind(column(&asked, |(job, _)| *job))
    .bind(column(&asked, |(_, domain)| domain))
    .bind(column(&budgets, |(budget, _)| &budget.issuer))
    .bind(column(&budgets, |(_, most)| *most))
    .bind(column(&budgets, |(budget, _)| budget.domain_days))
    .bind(now)
    .fetch_all(&mut *db)
    .await?;
    // There is room again when the one that took the last place is so many days old.
    sqlx::query(
        "UPDATE jobs j
            SET lease_until = NULL, held_for = h.domain,
                run_at = greatest($6 + interval '1 second', b.days * interval '1 day' + (
                    SELECT o.started_at FROM domain_orders o WHERE o.issuer_id = h.issuer_id AND o.domain = h.domain
                     ORDER BY o.started_at DESC OFFSET b.most - 1 LIMIT 1))
           FROM unnest($1::text[], $2::text[], $3::text[]) AS h (id, issuer_id, domain)
           JOIN unnest($4::text[], $5::bigint[], $7::bigint[]) AS b (issuer_id, most, days) ON b.issuer_id = h.issuer_id
          WHERE j.id = h.id",
    )
    .bind(column(&held, |(job, ..)| job))
    .bind(column(&held, |(_, issuer, _)| issuer))
    .bind(column(&held, |(_, _, domain)| domain))
    .bind(column(&budgets, |(budget, _)| &budget.issuer))
    .bind(column(&budgets, |(_, most)| *most))
    .bind(now)
    .bind(column(&budgets, |(budget, _)| budget.domain_days))
    .execute(db)
    .await?;
    Ok(held.into_iter().map(|(job, ..)| job).collect())
}

/// Counts what is handed on against what an issuer is given in an hour.
pub(crate) async fn count(db: &mut PgConnection, now: Time, budgets: &[Budget], claimed: &[Claimed]) -> Result<()> {
    let limited = |claim: &&Claimed| budgets.iter().any(|budget| budget.issuer == claim.subject.issuer_id);
    let orders: Vec<&Claimed> = claimed
        .iter()
        .filter(|claim| claim.status == JobStatus::Running)
        .filter(limited)
        .collect();
    sqlx::query(
        "WITH old AS (DELETE FROM orders WHERE issuer_id = ANY ($4) AND started_at <= $5 - interval '1 hour')
         INSERT INTO orders (job_id, issuer_id, token, started_at)
         SELECT o.job_id, o.issuer_id, o.token, $5
           FROM unnest($1::text[], $2::text[], $3::bigint[]) AS o (job_id, issuer_id, token)",
    )
    .bind(column(&orders, |claim| &claim.facts.id))
    .bind(column(&orders, |claim| &claim.subject.issuer_id))
    .bind(column(&orders, |claim| claim.token))
    .bind(column(budgets, |budget| &budget.issuer))
    .bind(now)
    .execute(db)
    .await?;
    Ok(())
}
