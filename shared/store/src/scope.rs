//! The certificates that a party reaches, as a condition of statements: the one place that knows it.

use certctl_model::scope::{Domain, Reach};
use sqlx::{PgConnection, Postgres, QueryBuilder};

use crate::error::*;

/// Adds the condition that a row of `certificates`, under this alias, is within reach.
pub fn push(sql: &mut QueryBuilder<Postgres>, certificates: &str, reach: &Reach) {
    let c = certificates;
    sql.push(" (true");
    if let Some(principal) = &reach.created_by {
        sql.push(format!(" AND {c}.created_by = ")).push_bind(principal.clone());
    }
    if !reach.scopes.is_empty() {
        sql.push(" AND (false");
        for scope in &reach.scopes {
            sql.push(" OR (true");
            if let Some(teams) = &scope.teams {
                sql.push(format!(" AND {c}.team_id = ANY ("))
                    .push_bind(teams.clone())
                    .push(")");
            }
            if let Some(environments) = &scope.environments {
                sql.push(format!(" AND {c}.environment = ANY ("))
                    .push_bind(environments.clone())
                    .push(")");
            }
            if let Some(issuers) = &scope.issuers {
                sql.push(format!(" AND {c}.issuer_id = ANY ("))
                    .push_bind(issuers.clone())
                    .push(")");
            }
            if let Some(profiles) = &scope.profiles {
                sql.push(format!(" AND {c}.profile_id = ANY ("))
                    .push_bind(profiles.clone())
                    .push(")");
            }
            if let Some(domains) = &scope.domains {
                let domains: Vec<String> = domains.iter().map(Domain::as_str).map(str::to_owned).collect();
                sql.push(format!(" AND within_domains({c}.common_name, {c}.sans, "))
                    .push_bind(domains)
                    .push(")");
            }
            sql.push(")");
        }
        sql.push(")");
    }
    sql.push(")");
}

/// Adds the statement for the ids of the certificates within reach.
pub fn push_ids(sql: &mut QueryBuilder<Postgres>, reach: &Reach) {
    sql.push("SELECT reached.id FROM certificates reached WHERE");
    push(sql, "reached", reach);
}

/// The first of these certificates that does not exist or is not within reach.
///
/// # Errors
/// When the database cannot be asked.
pub async fn beyond(db: &mut PgConnection, reach: &Reach, certificates: &[String]) -> Result<Option<String>> {
    if certificates.is_empty() {
        return Ok(None);
    }
    let mut sql = QueryBuilder::new("SELECT asked.id FROM unnest(");
    sql.push_bind(certificates)
        .push("::text[]) AS asked (id) WHERE NOT EXISTS (SELECT 1 FROM certificates c WHERE c.id = asked.id AND");
    push(&mut sql, "c", reach);
    sql.push(") LIMIT 1");
    Ok(sql.build_query_scalar().fetch_optional(db).await?)
}

/// The certificate of a job.
///
/// # Errors
/// When the database cannot be asked.
pub async fn certificate_of_job(db: &mut PgConnection, job: &str) -> Result<Option<String>> {
    let found = sqlx::query_scalar("SELECT certificate_id FROM jobs WHERE id = $1");
    Ok(found.bind(job).fetch_optional(db).await?)
}
