//! Who has to agree before a job's request is signed, and who did.
//!
//! What is agreed to is known by its digest: request, names, issuer, rules of the profile and targets. An agreement to
//! anything else counts for nothing. The signer asks the same functions of the database.

use certctl_model::id::JobId;
use sqlx::PgConnection;

use crate::{Tx, error::*};

/// How a job stands with those who have to agree.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Standing {
    /// How many are needed.
    pub needed: i32,
    /// Whether enough have agreed to what would be signed now.
    pub approved: bool,
    /// What would be signed now.
    pub digest: String,
    /// The person who asked for it.
    pub requested_by: Option<String>,
    /// Whether there is a request yet.
    pub has_request: bool,
}

/// How a job stands.
///
/// # Errors
/// [`Error::Missing`].
pub async fn standing(db: &mut PgConnection, job: &JobId) -> Result<Standing> {
    let standing = sqlx::query_as(
        "SELECT coalesce(job_approvals_needed(j, c), 0) AS needed, job_approved(j, c) AS approved,
                job_digest(j, c) AS digest, j.requested_by, j.csr_der IS NOT NULL AS has_request
           FROM jobs j JOIN certificates c ON c.id = j.certificate_id WHERE j.id = $1",
    )
    .bind(job)
    .fetch_optional(db)
    .await?;
    standing.ok_or_else(|| Error::Missing {
        kind: "job",
        id: job.to_string(),
    })
}

/// Notes that the actor agrees to what has this digest. Who agreed to something else before agrees to this now.
///
/// # Errors
/// When the database cannot be asked.
pub async fn give(tx: &mut Tx, job: &JobId, digest: &str, reason: &str, overrides: bool) -> Result<()> {
    sqlx::query(
        "INSERT INTO approvals (job_id, approver, digest, reason, overrides, created_at)
         VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (job_id, approver) DO UPDATE
            SET digest = excluded.digest, reason = excluded.reason, overrides = excluded.overrides,
                created_at = excluded.created_at",
    )
    .bind(job)
    .bind(tx.actor().name)
    .bind(digest)
    .bind(reason)
    .bind(overrides)
    .bind(tx.now())
    .execute(&mut **tx)
    .await?;
    Ok(())
}
