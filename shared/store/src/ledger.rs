//! What the signer is about to sign, and what it signed. A row is older than its signature.

use certctl_model::{
    id::{IssuerId, JobId},
    serial::Serial,
    time::Time,
};
use sqlx::PgPool;

use crate::error::*;

/// A recorded certificate, signed or about to be.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Entry {
    /// By whom.
    pub issuer_id: IssuerId,
    /// Its serial number.
    pub serial_number: Serial,
    /// What it was recorded for: a job's id, or the signer's own word for a certificate of its own.
    pub job_id: String,
    /// The to-be-signed certificate (RFC 5280 §4.1.1.1), DER.
    pub tbs_der: Vec<u8>,
    /// The certificate, once signed.
    pub der: Option<Vec<u8>>,
    /// When it ends.
    pub not_after: Time,
    /// Whether its revocation is not published.
    pub short_lived: bool,
    /// The shard of the CRL that it names as its distribution point; 0 when that is the full one.
    pub shard: i32,
}

/// The entry of a job.
///
/// # Errors
/// When the database cannot be asked.
pub async fn by_job(pool: &PgPool, job: &JobId) -> Result<Option<Entry>> {
    Ok(sqlx::query_as(
        "SELECT issuer_id, serial_number, job_id, tbs_der, der, not_after, short_lived, shard FROM ledger WHERE job_id = $1",
    )
    .bind(job)
    .fetch_optional(pool)
    .await?)
}

/// Records what will be signed; of two calls for one job the first wins, and both get its entry.
///
/// # Errors
/// [`Error::Taken`] when the serial number is in use.
pub async fn record(pool: &PgPool, entry: &Entry, now: Time) -> Result<Entry> {
    let recorded = sqlx::query_as(
        "WITH inserted AS (
             INSERT INTO ledger (issuer_id, serial_number, job_id, tbs_der, not_after, short_lived, recorded_at, shard)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
             ON CONFLICT (job_id) DO NOTHING
             RETURNING issuer_id, serial_number, job_id, tbs_der, der, not_after, short_lived, shard)
         SELECT issuer_id, serial_number, job_id, tbs_der, der, not_after, short_lived, shard FROM inserted
          UNION ALL
         SELECT issuer_id, serial_number, job_id, tbs_der, der, not_after, short_lived, shard FROM ledger WHERE job_id = $3
          LIMIT 1",
    )
    .bind(&entry.issuer_id)
    .bind(&entry.serial_number)
    .bind(&entry.job_id)
    .bind(&entry.tbs_der)
    .bind(entry.not_after)
    .bind(entry.short_lived)
    .bind(now)
    .bind(entry.shard)
    .fetch_optional(pool)
    .await?;
    // Another call inserted the row after our snapshot was taken: it is there now.
    match recorded {
        Some(entry) => Ok(entry),
        None => by_job_text(pool, &entry.job_id).await,
    }
}

async fn by_job_text(pool: &PgPool, job: &str) -> Result<Entry> {
    sqlx::query_as(
        "SELECT issuer_id, serial_number, job_id, tbs_der, der, not_after, short_lived, shard FROM ledger WHERE job_id = $1",
    )
    .bind(job)
    .fetch_optional(pool)
    .await?
    .ok_or_else(|| Error::Missing {
        kind: "ledger entry of job",
        id: job.to_owned(),
    })
}

/// Stores the signed certificate; of two signatures the first stays. Returns the one that is stored.
///
/// # Errors
/// When the database cannot be asked.
pub async fn sign(pool: &PgPool, issuer: &IssuerId, serial: &Serial, der: &[u8]) -> Result<Vec<u8>> {
    Ok(sqlx::query_scalar(
        "UPDATE ledger SET der = coalesce(der, $3) WHERE issuer_id = $1 AND serial_number = $2 RETURNING der",
    )
    .bind(issuer)
    .bind(serial)
    .bind(der)
    .fetch_one(pool)
    .await?)
}
