//! Counts that are kept as differences, and statuses that change by themselves.
//!
//! Triggers append to `tallies` what each statement changed; a count is a sum, and nobody waits for anybody. `status` of a
//! certificate is an index over what `certificate_status` answers: it is settled before anyone chooses, sorts or counts
//! by it.

use certctl_model::time::Time;
use sqlx::{PgConnection, PgPool, Postgres, QueryBuilder};

use crate::{error::*, tx};

/// Statuses settled at a time.
const BATCH: u64 = 500;

/// A statement that tells whether there is a status that changed by itself until `now`: the index knows which is next.
pub fn unsettled(now: Time) -> QueryBuilder<Postgres> {
    let mut sql = QueryBuilder::new("SELECT ");
    sql.push_bind(now).push(
        " >= coalesce((SELECT status_until FROM certificates WHERE status_until < 'infinity'
                         ORDER BY status_until LIMIT 1), 'infinity')",
    );
    sql
}

/// Brings the statuses up to date that changed by themselves until `now`. Returns how many.
///
/// Those that somebody else has locked are left to them: whoever changes a certificate settles it.
///
/// # Errors
/// When the database cannot be asked.
pub async fn settle(pool: &PgPool, now: Time) -> Result<u64> {
    let mut settled = 0;
    loop {
        // Nobody waits for the disk: what is lost with the server is settled again.
        let mut tx = tx::begin(pool, Some("BEGIN; SET LOCAL synchronous_commit = off")).await?;
        let batch = settle_batch(&mut tx, now).await?;
        tx.commit().await?;
        settled += batch;
        if batch < BATCH {
            return Ok(settled);
        }
    }
}

/// Does the same within a unit of work.
///
/// # Errors
/// When the database cannot be asked.
pub async fn settle_in(db: &mut PgConnection, now: Time) -> Result<u64> {
    let mut settled = 0;
    loop {
        let batch = settle_batch(db, now).await?;
        settled += batch;
        if batch < BATCH {
            return Ok(settled);
        }
    }
}

async fn settle_batch(db: &mut PgConnection, now: Time) -> Result<u64> {
    let settled = sqlx::query(
        "UPDATE certificates SET status_at = $1
          WHERE id IN (SELECT id FROM certificates
                        WHERE status_until <= $1 AND status_until < 'infinity'
                        ORDER BY status_until LIMIT $2 FOR UPDATE SKIP LOCKED)",
    )
    .bind(now)
    .bind(BATCH.cast_signed())
    .execute(db)
    .await?;
    Ok(settled.rows_affected())
}

/// Replaces differences by their sums. Whoever reads meanwhile sees the ones or the others.
///
/// # Errors
/// When the database cannot be asked.
pub async fn compact(pool: &PgPool) -> Result<u64> {
    let written: i64 = sqlx::query_scalar("SELECT tallies_compact()").fetch_one(pool).await?;
    Ok(written.cast_unsigned())
}

/// What is tallied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Certificates, by status and by the day they end.
    Certificate,
    /// Jobs, by type, status and the day they were finished.
    Job,
    /// Certificates with targets, by deployment status.
    Deployment,
}

impl Subject {
    /// The word in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Subject::Certificate => "certificate",
            Subject::Job => "job",
            Subject::Deployment => "deployment",
        }
    }
}

/// How many there are, of one status or of all.
///
/// # Errors
/// When the database cannot be asked.
pub async fn count(pool: &PgPool, subject: Subject, status: Option<&str>) -> Result<i64> {
    Ok(sqlx::query_scalar(
        "SELECT coalesce(sum(delta), 0)::bigint FROM tallies WHERE subject = $1 AND ($2::text IS NULL OR status = $2)",
    )
    .bind(subject.as_str())
    .bind(status)
    .fetch_one(pool)
    .await?)
}

/// How many there are of each status.
///
/// # Errors
/// When the database cannot be asked.
pub async fn by_status(pool: &PgPool, subject: Subject) -> Result<Vec<(String, i64)>> {
    Ok(sqlx::query_as(
        "SELECT status, sum(delta)::bigint FROM tallies WHERE subject = $1 GROUP BY status ORDER BY status",
    )
    .bind(subject.as_str())
    .fetch_all(pool)
    .await?)
}
